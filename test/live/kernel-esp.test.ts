/**
 * The Linux kernel's own ESP as the peer of an encrypted network, over both families and encapsulations: Debian's kernel
 * in a VM, since that of this machine may have none. Associations are written out at both ends.
 */
import { createHash, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { isDeepStrictEqual } from 'node:util';
import type { ExecutionContext } from 'ava';
import { type Namespace, ping, waitFor } from '../../cli/lab.js';
import { ESP_IN_UDP_PORT, type KernelSa, type KernelSaState, refusals } from '../support/kernel-vm/esp.js';
import { EspMesh, newPair, type Pair, type Shape, shapeName } from '../support/kernel-vm/esp-mesh.js';
import { KernelVm } from '../support/kernel-vm.js';
import {
  inject,
  live,
  overlayAddress,
  overlayMac,
  type Sniffer,
  sendUdp,
  shared,
  sniff,
  underlayAddress,
} from '../support/live.js';

const skip = KernelVm.unavailable();
const requirements = { tools: ['tcpdump', 'socat'], skip };
const mesh = shared(() => EspMesh.boot(), skip);

/**
 * Inner packets from the shortest to the longest, in both families and directions. From the container one request a
 * call, with seconds for its answer: of several, `ping` waits for the last no longer than the others took. The VM is
 * slow to start a program, so that there few of them ask often.
 */
async function pings(t: ExecutionContext): Promise<void> {
  const { weft, vm, containers } = mesh();
  const { mtu } = (await weft.status()).networks[0];
  const largest = (v6: boolean): number => mtu - (v6 ? 48 : 28);
  for (const v6 of [false, true]) {
    for (const size of [0, 1, 2, 3, 16, 64, 577, largest(v6) - 1, largest(v6)]) {
      const options = { count: 1, size, interval: 5, deadlineS: 5, df: true };
      const { sent, received, duplicates } = await ping(containers[0], overlayAddress(2, v6), options);
      t.deepEqual({ size, sent, received, duplicates }, { size, sent: 1, received: 1, duplicates: 0 });
    }
  }
  const all = [false, true].flatMap((v6) =>
    [1, largest(v6)].map((size) => `-s ${size} ${overlayAddress(1, v6)}`),
  );
  // Each ends well only with as many answers.
  await vm.sh('while read -r what; do ping -n -q -f -c 10 -w 5 -M do $what || exit 1; done', {
    input: `${all.join('\n')}\n`,
  });
}

/** Sends the VM data by TCP and has it sent back; one after the other, lest both ends wait to be read from. */
async function transfers(t: ExecutionContext, v6: boolean): Promise<void> {
  const { containers, data } = mesh();
  const to = v6 ? `TCP6:[${overlayAddress(2, true)}]` : `TCP4:${overlayAddress(2)}`;
  const socat = (port: number, input: string): Promise<string> =>
    containers[0].run('socat', ['-t', '20', '-', `${to}:${port}`], { input });
  const digest = createHash('sha256').update(data).digest('hex');
  t.is(await socat(7001, data), `${digest}  -\n`);
  t.true((await socat(7002, '')) === data, 'the VM sent something else');
}

/** An ESP packet on the wire. */
interface Seen {
  readonly frame: Buffer;
  /** From the SPI on. */
  readonly esp: Buffer;
  readonly spi: number;
  /** Low half of the sequence number. */
  readonly sequence: number;
}

/** What the VTEPs sent each other, neighbours' questions aside; fails the test when it is not ESP, or a fragment. */
function espOf(t: ExecutionContext, sniffer: Sniffer, { v6, encapsulation }: Shape): Seen[] {
  const udp = encapsulation === 'udp';
  const all = sniffer.frames().map((text) => Buffer.from(text, 'hex'));
  return all
    .filter((frame) => frame.readUInt16BE(12) === (v6 ? 0x86dd : 0x0800))
    .map((frame) => ({ frame, protocol: frame[v6 ? 20 : 23], transport: frame.subarray(v6 ? 54 : 34) }))
    .filter(({ protocol }) => protocol !== (v6 ? 58 : 1))
    .map(({ frame, protocol, transport }) => {
      t.is(protocol, udp ? 17 : 50);
      if (!v6) t.is(frame.readUInt16BE(20) & 0x3fff, 0, 'a fragment');
      if (udp) t.is(transport.readUInt32BE(0), ESP_IN_UDP_PORT * 65537);
      const esp = transport.subarray(udp ? 8 : 0);
      return { frame, esp, spi: esp.readUInt32BE(0), sequence: esp.readUInt32BE(4) };
    });
}

const stateOf = async ({ spi }: KernelSa): Promise<KernelSaState> => (await mesh().peer.states()).get(spi)!;

/** Reads two counts until they are equal: packets may be on their way, such as a neighbour's question. */
async function equal(t: ExecutionContext, read: () => Promise<readonly [unknown, unknown]>): Promise<void> {
  let last: readonly [unknown, unknown];
  const probe = async () => isDeepStrictEqual(...(last = await read()));
  await waitFor(probe, { what: 'counts to be equal' }).catch(() => undefined);
  t.deepEqual(...last!);
}

/** Both ends have counted the same packets under the same numbers. */
async function agree(t: ExecutionContext, pair: Pair): Promise<void> {
  const counted = ({ packets, sequence }: { packets: number; sequence: number }) => [packets, sequence];
  for (const sa of [pair.in, pair.out])
    await equal(t, async () => [counted(await mesh().row(sa)), counted(await stateOf(sa))]);
}

/** Starts to watch what the VM's kernel refuses; the function returned tells what it refused since. */
async function watchRefusals(): Promise<() => Promise<Record<string, number>>> {
  const before = await refusals(mesh().vm);
  return async () => {
    const all = Object.entries(await refusals(mesh().vm));
    const grown = all.map(([name, count]) => [name, count - (before[name] ?? 0)] as const);
    return Object.fromEntries(grown.filter(([, count]) => count > 0));
  };
}

/** Sends a packet that was seen once more: to the VM as Weft does, or to Weft as the VM does. */
async function again(to: 'vm' | 'weft', { frame, esp }: Seen, { v6, encapsulation }: Shape): Promise<void> {
  const { hosts, switch: wire } = mesh();
  if (to === 'weft') await inject(wire, 'p0', frame);
  // The checksum of a datagram that leaves is not complete where it was seen.
  else if (encapsulation === 'udp') await sendUdp(hosts[0], underlayAddress(2, v6), ESP_IN_UDP_PORT, esp);
  else await inject(hosts[0], 'under0', frame);
}

/** The last that surely left alone: what bears the number before the next one's is no bundle. */
const oneOf = (seen: readonly Seen[]): Seen =>
  seen.findLast(({ sequence }, i) => seen[i + 1]?.sequence === (sequence + 1) >>> 0)!;

const families = [false, true];
// Protocol 50 has a socket of its own, however the rest of the underlay goes.
const shapes = families.flatMap((v6): { esn: boolean; shape: Shape }[] => [
  { esn: true, shape: { v6, encapsulation: 'esp', mode: v6 ? 'auto' : 'socket' } },
  { esn: false, shape: { v6, encapsulation: 'esp', mode: v6 ? 'socket' : 'auto' } },
  ...(['auto', 'socket'] as const).flatMap((mode) =>
    [true, false].map((esn) => ({ esn, shape: { v6, encapsulation: 'udp' as const, mode } })),
  ),
]);
const algorithms = ([128, 256, 192] as const).flatMap((bits) =>
  ([16, 12, 8] as const).map((icv) => ({ bits, icv })),
);
const variants = shapes.map((variant, i) => ({ ...variant, ...algorithms[i % algorithms.length] }));

for (const { shape, esn, bits, icv } of variants) {
  const numbers = esn ? 'extended sequence numbers across 2^32' : '32-bit sequence numbers';
  live(
    `kernel ESP over ${shapeName(shape)}, aes-${bits}-gcm-${icv}, ${numbers}: every size passes, nothing twice`,
    async (t) => {
      // A wider window would reach below zero, and take the first numbers for some that wrapped.
      const near = { sequence: 2 ** 32 - 36, replayWindow: 32 };
      const pair = newPair({ bits, icv, esn, ...(esn ? near : {}) });
      await mesh().connect(shape, pair);
      const { hosts, weft } = mesh();
      const dropped = await weft.watchDrops();
      const refused = await watchRefusals();
      const sniffer = await sniff(hosts[0], 'under0', 'ip or ip6', 'inout');
      await pings(t);
      await agree(t, pair);
      await sniffer.stop();
      t.deepEqual(await dropped(), {});
      t.deepEqual(await refused(), {});
      const seen = espOf(t, sniffer, shape);
      const [sent, received] = [pair.in, pair.out].map(({ spi }) => seen.filter((one) => one.spi === spi));
      t.is(sent.length + received.length, seen.length);
      t.true(Math.min(sent.length, received.length) >= 36);
      for (const sa of [pair.in, pair.out]) t.is((await mesh().row(sa)).sequence >= 2 ** 32, esn);

      await again('weft', oneOf(received), shape);
      await again('vm', oneOf(sent), shape);
      await waitFor(async () => (await stateOf(pair.in)).replayed > 0, { what: 'a replay in the VM' });
      t.like(await stateOf(pair.in), { replayed: 1, failed: 0 });
      t.deepEqual(await refused(), { XfrmInStateSeqError: 1 });
      await waitFor(async () => Object.keys(await dropped()).length > 0, { what: 'a drop in Weft' });
      t.deepEqual(await dropped(), { 'esp-decrypt replayed': 1 });
      t.like(await mesh().row(pair.out), { refusals: { replayed: 1 } });

      await transfers(t, shape.v6);
      await agree(t, pair);
      t.deepEqual(await dropped(), { 'esp-decrypt replayed': 1 });
      t.deepEqual(await refused(), { XfrmInStateSeqError: 1 });
      t.is((await weft.status()).slotsInUse, 0);
    },
    requirements,
  );
}

const [IN_UDP, PROTOCOL_50]: Shape[] = [
  { v6: false, encapsulation: 'udp', mode: 'auto' },
  { v6: true, encapsulation: 'esp', mode: 'socket' },
];

/** Three requests, to which there is to be no answer. */
async function unanswered(t: ExecutionContext, from: Pick<Namespace, 'run'>, to: string): Promise<void> {
  const script = ['-c', `ping -n -q -c 3 -i 0.05 -W 0.2 ${to} | grep packets`];
  t.regex(await from.run('sh', script), /^3 packets transmitted, 0 received/);
}

/** Of several requests that waited for a neighbour's address, all may be answered at once. */
async function answered(t: ExecutionContext): Promise<void> {
  t.true((await ping(mesh().vm, overlayAddress(1), { count: 1, deadlineS: 5 })).received > 0);
}

/** Packets that container 1 has received. */
function delivered(): number {
  const [link] = JSON.parse(mesh().containers[0].ip('-j', '-s', 'link', 'show', 'eth0'));
  return (link as { stats64: { rx: { packets: number } } }).stats64.rx.packets;
}

/** Registers a test of each shape. */
function each(
  shapes: readonly Shape[],
  title: string,
  body: (t: ExecutionContext, shape: Shape) => Promise<void>,
): void {
  for (const shape of shapes)
    live(`kernel ESP over ${shapeName(shape)}: ${title}`, (t) => body(t, shape), requirements);
}

/** VTEPs of Weft and of the VM. */
const vteps = ({ v6 }: Shape): string[] => [1, 2].map((n) => underlayAddress(n, v6));

/** Lines in which the daemon said this. */
const said = (what: string): string[] =>
  mesh()
    .weft.running!.stderr.split('\n')
    .filter((line) => line.includes(what));

each([PROTOCOL_50], 'VXLAN of a plain network inside ESP is dropped, and said once', async (t, shape) => {
  const pair = newPair();
  await mesh().connect(shape, pair);
  const { weft, vm } = mesh();
  const [weftAddress, vmAddress] = vteps(shape);
  const file = mesh().espFile(shape, pair);
  const green = { name: 'green', vni: 43, subnet: '10.0.10.0/24', peers: [vmAddress] };
  await weft.change({ ...file, networks: [...file.networks, green] });
  const dropped = await weft.watchDrops();
  await vm.vxlan({
    ...{ vni: 43, local: vmAddress, remote: weftAddress, addresses: ['10.0.10.2/24'] },
    ...{ mac: '02:42:0a:00:0a:02', mtu: 1300 },
  });
  await vm.ipBatch(['neigh add 10.0.10.1 lladdr 02:42:0a:00:0a:01 dev vxlan43']);
  await unanswered(t, vm, '10.0.10.1');
  await vm.run('ip', ['link', 'del', 'vxlan43']);
  t.deepEqual(await dropped(), { 'vxlan-decap:esp esp-for-plain': 3 });
  const line = `${vmAddress}: it sends encrypted VXLAN for a network that is plain here, which is dropped`;
  await waitFor(() => said(line).length > 0, { what: 'a line about it' });
  t.deepEqual(said('sends encrypted VXLAN'), [line]);
  await answered(t);
});

each(
  [IN_UDP, PROTOCOL_50],
  'plain VXLAN of the encrypted network is dropped, and said once',
  async (t, shape) => {
    await mesh().connect(shape, newPair());
    const { hosts, weft, peer, vm, containers } = mesh();
    const [weftAddress, vmAddress] = vteps(shape);
    await answered(t);
    const dropped = await weft.watchDrops();
    const sniffer = await sniff(hosts[0], 'under0', `src host ${weftAddress}`, 'out');
    await peer.down();
    const before = delivered();
    await unanswered(t, vm, overlayAddress(1));
    await unanswered(t, containers[0], overlayAddress(2));
    t.is(delivered(), before);
    const drops = await dropped();
    t.deepEqual(Object.keys(drops), ['vxlan-decap plain-for-encrypted']);
    t.true(drops['vxlan-decap plain-for-encrypted'] >= 3);
    const line = `${vmAddress}: it sends plain VXLAN for an encrypted network, which is dropped`;
    await waitFor(() => said(line).length > 0, { what: 'a line about it' });
    await unanswered(t, vm, overlayAddress(1));
    t.deepEqual(said('sends plain VXLAN'), [line]);
    // What Weft itself sends is ESP as before.
    await waitFor(() => sniffer.frames().length >= 3, { what: 'packets of Weft' });
    await sniffer.stop();
    t.true(espOf(t, sniffer, shape).length >= 3);
  },
);

each([IN_UDP], 'what is sealed with another key is not delivered, and moves no window', async (t, shape) => {
  const pair = newPair();
  const others = newPair();
  const theirs = {
    out: { ...pair.out, key: others.out.key, sequence: 5000 },
    in: { ...pair.in, key: others.in.key },
  };
  await mesh().connect(shape, pair, theirs);
  const { weft, vm, containers } = mesh();
  const dropped = await weft.watchDrops();
  const refused = await watchRefusals();
  const before = delivered();
  await vm.ipBatch([`neigh add ${overlayAddress(1)} lladdr ${overlayMac(1)} dev vxlan42`]);
  await unanswered(t, vm, overlayAddress(1));
  // It asks for an address, and no more than that.
  await unanswered(t, containers[0], overlayAddress(2));
  t.is(delivered(), before);
  t.deepEqual(Object.keys(await dropped()), ['esp-decrypt icv']);
  t.deepEqual(Object.keys(await refused()), ['XfrmInStateProtoError']);
  t.true((await stateOf(pair.out)).packets >= 3);
  await equal(t, async () => [(await mesh().row(pair.out)).refusals.icv, (await stateOf(pair.out)).packets]);
  t.like(await mesh().row(pair.out), { packets: 0, sequence: 0 });
  t.true((await mesh().row(pair.in)).packets > 0);
  await equal(t, async () => [(await mesh().row(pair.in)).packets, (await stateOf(pair.in)).failed]);
  t.like(await stateOf(pair.in), { packets: 0, sequence: 0 });

  // The right key, and the first number.
  await mesh().give(shape, pair);
  await answered(t);
  await equal(t, async () => [(await stateOf(pair.out)).packets, (await mesh().row(pair.out)).sequence]);
});

each(
  [IN_UDP, PROTOCOL_50],
  'new associations take over while traffic goes on, and the old ones are done with',
  async (t, shape) => {
    const { containers, vm } = mesh();
    const first = newPair();
    let pair = first;
    await mesh().connect(shape, pair);
    const { weft, peer, hosts } = mesh();
    await answered(t);
    const dropped = await weft.watchDrops();
    const refused = await watchRefusals();
    const sniffer = await sniff(hosts[0], 'under0', 'ip or ip6', 'inout');
    const running = containers[0].start('ping', ['-n', '-i', '0.02', overlayAddress(2)]);
    await vm.sh(`ping -n -i 0.02 ${overlayAddress(1)} >/run/pings 2>&1 &`);
    await running.output(/icmp_seq=3 /);
    for (const next of [newPair({ bits: 256, icv: 12 }), newPair({ esn: true }), newPair()]) {
      await peer.accept(next.in);
      await weft.change(mesh().espFile(shape, next, pair));
      await peer.sendOn(next.out);
      // Packets keep their order, so that nothing comes on the old ones any more.
      await waitFor(async () => (await stateOf(next.in)).packets > 3, { what: 'packets for the VM' });
      await waitFor(async () => (await mesh().row(next.out)).packets > 3, { what: 'packets of the VM' });
      await weft.change(mesh().espFile(shape, next));
      for (const { spi } of [pair.in, pair.out]) await peer.remove(spi);
      pair = next;
    }
    const { stdout } = await running.stop('SIGINT');
    await vm.sh('killall -INT ping; while pidof ping >/dev/null; do usleep 10000; done');
    await sniffer.stop();
    for (const text of [stdout, await vm.run('cat', ['/run/pings'])]) {
      const answers = [...text.matchAll(/icmp_seq=(\d+) /g)].map(([, n]) => Number(n));
      t.true(answers.length > 20, text);
      t.deepEqual(
        answers,
        answers.map((_, i) => i + 1),
      );
    }
    t.deepEqual(await dropped(), {});
    t.deepEqual(await refused(), {});

    const seen = espOf(t, sniffer, shape);
    t.is(new Set(seen.map(({ spi }) => spi)).size, 8);
    await again('weft', seen.find(({ spi }) => spi === first.out.spi)!, shape);
    await again('vm', seen.find(({ spi }) => spi === first.in.spi)!, shape);
    await waitFor(async () => Object.keys(await dropped()).length > 0, { what: 'a drop in Weft' });
    t.deepEqual(await dropped(), { 'esp-decrypt unknown-spi': 1 });
    await waitFor(async () => Object.keys(await refused()).length > 0, { what: 'a refusal of the VM' });
    t.deepEqual(await refused(), { XfrmInNoStates: 1 });
  },
);

each([IN_UDP], 'Weft numbers on when it is killed and started again', async (t, shape) => {
  const pair = newPair();
  await mesh().connect(shape, pair);
  const { weft, containers } = mesh();
  await answered(t);
  const refused = await watchRefusals();
  await weft.kill();
  await weft.start();
  const dropped = await weft.watchDrops();
  const { received } = await ping(containers[0], overlayAddress(2), { count: 3, interval: 0.2 });
  t.is(received, 3);
  await answered(t);
  t.deepEqual(await dropped(), {});
  t.deepEqual(await refused(), {});
  await equal(t, async () => [(await stateOf(pair.in)).sequence, (await mesh().row(pair.in)).sequence]);
});

live(
  'the encrypted network of docs/kernel-peer.md comes up as it is written',
  async (t) => {
    const page = readFileSync(new URL('../../../docs/kernel-peer.md', import.meta.url), 'utf8');
    const keys: Record<string, string> = {};
    for (const name of ['AB', 'BA']) keys[name] = randomBytes(20).toString('hex');
    const block = (pattern: RegExp): string => pattern.exec(page)![1];
    const file = block(/^```yaml\n([^`]*security_associations[^`]*)^```$/m)
      .replaceAll(/\$(AB|BA)/g, (_, name: string) => keys[name])
      .replace('netns: cA', `netns: ${mesh().containers[0].name}`);
    const { vm, hosts } = mesh();
    await mesh().instead(file);
    const { weft } = mesh();
    const commands = block(/^```bash\n([^`]*ip xfrm[^`]*)^```$/m);
    await vm.sh(`set -e\nAB=${keys['AB']} BA=${keys['BA']}\n${commands}`);
    const dropped = await weft.watchDrops();
    const refused = await watchRefusals();
    const sniffer = await sniff(hosts[0], 'under0', 'ip', 'inout');
    const { mtu } = (await weft.status()).networks[0];
    t.is(mtu, 1416);
    const largest = { count: 1, deadlineS: 5, size: mtu - 28, df: true };
    t.true((await ping(vm, overlayAddress(1), largest)).received > 0);
    t.true((await ping(mesh().containers[0], overlayAddress(2), largest)).received > 0);
    await sniffer.stop();
    t.true(espOf(t, sniffer, { v6: false, encapsulation: 'esp', mode: 'auto' }).length >= 4);
    t.deepEqual(await dropped(), {});
    t.deepEqual(await refused(), {});
    await vm.sh('ip link del vx42 && ip xfrm policy flush && ip xfrm state flush');
  },
  requirements,
);
