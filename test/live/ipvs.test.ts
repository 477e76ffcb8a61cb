/**
 * The schedulers against IPVS of Debian's kernel in a VM: the same services, changes and arrivals for both, and the
 * sequence of what each chose must be the same.
 *
 * Arrivals are frames sent to the VM one by one, each from an address and port of its own; which real server one went to
 * is read from the kernel's table of connections. To real servers there is no route: it has chosen before it looks for one.
 */
import { waitFor } from '../../cli/lab.js';
import { Backends, SCHEDULERS, type SchedulerName } from '../../engine/tables/backends.js';
import { addressWord } from '../../engine/tables/gateways.js';
import { createSchedulers } from '../../engine/tables/schedulers/index.js';
import { be16, concat, ethernet, ip, ipv4, ipv6, mac, payload, udp, udpSum } from '../support/frames.js';
import { VmMesh } from '../support/kernel-vm/mesh.js';
import { KernelVm } from '../support/kernel-vm.js';
import { inject, linkOf, live, shared, underlayAddress } from '../support/live.js';

const skip = KernelVm.unavailable();
const mesh = shared(() => VmMesh.boot(), skip);

/** Real servers are numbers here. */
type Step =
  | { readonly add: number; readonly weight: number }
  | { readonly weigh: number; readonly weight: number }
  | { readonly remove: number }
  /** So many arrivals. */
  | { readonly arrive: number };

interface Scenario {
  readonly title: string;
  readonly scheduler: SchedulerName;
  /** UDP and IPv4 unless told. */
  readonly tcp?: boolean;
  readonly v6?: boolean;
  /** Further arguments of ipvsadm for the service. */
  readonly flags?: string;
  readonly steps: readonly Step[];
}

const add = (...weights: number[]): Step[] => weights.map((weight, i) => ({ add: i + 1, weight }));

const scenarios: Scenario[] = [
  { title: 'rr', scheduler: 'rr', steps: [...add(1, 1, 1), { arrive: 7 }] },
  { title: 'rr over TCP', scheduler: 'rr', tcp: true, steps: [...add(1, 3, 1, 1), { arrive: 9 }] },
  {
    title: 'rr, with changes: drained, added, and the one chosen last removed',
    scheduler: 'rr',
    steps: [
      ...add(1, 0, 1, 1),
      { arrive: 5 },
      { weigh: 2, weight: 1 },
      { weigh: 3, weight: 0 },
      { arrive: 5 },
      { add: 5, weight: 1 },
      { arrive: 4 },
      { remove: 2 },
      { arrive: 3 },
      { remove: 1 },
      { arrive: 6 },
    ],
  },
  { title: 'wrr, 3 2 1', scheduler: 'wrr', steps: [...add(3, 2, 1), { arrive: 13 }] },
  { title: 'wrr, 5 0 1 1', scheduler: 'wrr', steps: [...add(5, 0, 1, 1), { arrive: 16 }] },
  { title: 'wrr, 6 4 2: a common divisor', scheduler: 'wrr', steps: [...add(6, 4, 2), { arrive: 8 }] },
  {
    title: 'wrr, with changes',
    scheduler: 'wrr',
    steps: [
      ...add(4, 2, 8),
      { arrive: 5 },
      { weigh: 1, weight: 3 },
      { arrive: 6 },
      { add: 4, weight: 9 },
      { arrive: 7 },
      { remove: 3 },
      { arrive: 8 },
      { weigh: 4, weight: 0 },
      { arrive: 6 },
    ],
  },
  {
    title: 'lc',
    scheduler: 'lc',
    steps: [...add(1, 5, 1), { arrive: 7 }, { add: 4, weight: 1 }, { arrive: 6 }],
  },
  { title: 'wlc', scheduler: 'wlc', steps: [...add(3, 2, 0, 1), { arrive: 14 }] },
  { title: 'sh', scheduler: 'sh', steps: [...add(1, 1, 1), { arrive: 20 }] },
  { title: 'sh over IPv6', scheduler: 'sh', v6: true, steps: [...add(1, 2, 1), { arrive: 16 }] },
  {
    title: 'sh, with weights and changes',
    scheduler: 'sh',
    steps: [
      ...add(3, 1, 2),
      { arrive: 10 },
      { add: 4, weight: 5 },
      { arrive: 10 },
      { remove: 1 },
      { arrive: 10 },
    ],
  },
  {
    title: 'sh, one drained: as with sh-fallback',
    scheduler: 'sh',
    flags: '-b sh-fallback',
    steps: [...add(2, 0, 1), { arrive: 18 }],
  },
];

const realServer = (n: number, v6 = false): string => (v6 ? `fd77::${n}` : `10.77.0.${n}`);
/** Of arrival `i`: addresses differ in all of their bytes, ports too. */
const clientOf = (i: number, v6 = false): { address: string; port: number } => ({
  address: v6
    ? `fd80:${i % 7}::${(i * 7919 + 1).toString(16)}:${(i * 101).toString(16)}`
    : `10.${80 + (i % 7)}.${(i * 37) % 256}.${1 + ((i * 101) % 254)}`,
  port: 20000 + i * 7,
});

/** The exclusive or of an address's words, of which one of IPv4 has one. */
const fold = (address: Uint8Array): number => {
  let word = 0;
  for (let at = 0; at < address.length; at += 4) word ^= addressWord(address.subarray(at, at + 4));
  return word;
};

/** What the engine chooses. */
function choose({ scheduler, steps, v6 = false }: Scenario): number[] {
  const backends = new Backends(1, 16);
  const { pick } = createSchedulers(backends);
  backends.open(0, SCHEDULERS.indexOf(scheduler));
  const numbers = new Map<number, number>();
  const chosen: number[] = [];
  for (const step of steps) {
    if ('add' in step)
      numbers.set(step.add, backends.add(0, addressWord(ip(realServer(step.add))), 80, step.weight));
    else if ('weigh' in step) backends.setWeight(numbers.get(step.weigh)!, step.weight);
    else if ('remove' in step) backends.remove(numbers.get(step.remove)!);
    else
      for (let i = 0; i < step.arrive; i++) {
        const client = fold(ip(clientOf(chosen.length, v6).address));
        const backend = pick(0, client, 0);
        backends.active[backend]++;
        chosen.push([...numbers].find(([, number]) => number === backend)![0]);
      }
  }
  return chosen;
}

/** What IPVS chooses, of the service at this port. */
async function chooseByKernel(
  { scheduler, tcp, v6 = false, flags = '', steps }: Scenario,
  port: number,
): Promise<number[]> {
  const { vm, hosts } = mesh();
  const [to, from] = [macOf(1), macOf(0)];
  const bracketed = (address: string) => (v6 ? `[${address}]` : address);
  const destination = underlayAddress(2, v6);
  const service = `-${tcp ? 't' : 'u'} ${bracketed(destination)}:${port}`;
  await vm.sh(`ipvsadm -A ${service} -s ${scheduler} ${flags}`);
  const connections = async (): Promise<Map<number, number>> => {
    const table = await vm.run('cat', ['/proc/net/ip_vs_conn']);
    const rows = table.split('\n').map((line) => line.trim().split(/\s+/));
    const ours = rows.filter((row) => Number.parseInt(row[4], 16) === port);
    return new Map(ours.map((row) => [Number.parseInt(row[2], 16), Number.parseInt(row[5].slice(-2), 16)]));
  };
  let arrived = 0;
  // The kernel has seen all that arrived so far before anything changes.
  const settle = () =>
    waitFor(async () => (await connections()).size === arrived, { what: `${arrived} connections` });
  const command = (step: Exclude<Step, { arrive: number }>): string => {
    if ('remove' in step) return `ipvsadm -d ${service} -r ${bracketed(realServer(step.remove, v6))}:80`;
    const [verb, n] = 'add' in step ? ['-a', step.add] : ['-e', step.weigh];
    return `ipvsadm ${verb} ${service} -r ${bracketed(realServer(n, v6))}:80 -m -w ${step.weight}`;
  };
  let commands: string[] = [];
  const seen = new Map<number, number>();
  for (const step of steps) {
    if (!('arrive' in step)) {
      commands.push(command(step));
      continue;
    }
    if (commands.length > 0) await vm.sh(commands.join(' && '));
    commands = [];
    for (let i = 0; i < step.arrive; i++) {
      const client = clientOf(arrived++, v6);
      const segment = tcp ? syn(client.port, port) : udp(client.port, port, payload(8));
      const packet = v6
        ? ipv6(
            { source: client.address, destination, next: 17 },
            checked(client.address, destination, segment),
          )
        : ipv4({ source: client.address, destination, protocol: tcp ? 6 : 17 }, segment);
      await inject(hosts[0], 'under0', ethernet({ from, to, type: v6 ? 0x86dd : 0x0800 }, packet));
    }
    await settle();
    for (const [client, server] of await connections()) seen.set(client, server);
  }
  await vm.sh(`ipvsadm -D ${service}`);
  return Array.from({ length: arrived }, (_, i) => seen.get(clientOf(i).port) ?? 0);
}

const macOf = (host: number): Uint8Array => mac(linkOf(mesh().hosts[host], 'under0')!.address);

/** A datagram over IPv6 must have its checksum. */
function checked(source: string, destination: string, datagram: Uint8Array): Uint8Array {
  datagram.set(be16(~udpSum(ip(source), ip(destination), datagram) & 0xffff), 6);
  return datagram;
}

const syn = (source: number, destination: number): Uint8Array =>
  concat(be16(source, destination, 0, 1, 0, 0, 0x5002, 65535, 0, 0));

for (const [i, scenario] of scenarios.entries())
  live(
    `IPVS chooses what Weft chooses: ${scenario.title}`,
    async (t) => {
      const chosen = await chooseByKernel(scenario, 8001 + i);
      t.log(chosen.join(' '));
      t.deepEqual(choose(scenario), chosen);
    },
    { tools: ['socat'], skip },
  );
