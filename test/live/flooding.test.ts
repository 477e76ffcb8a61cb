/** Three hosts: what is flooded reaches each other host exactly once, what is known only its owner, moves are followed. */
import type { ExecutionContext } from 'ava';
import { type Namespace, ping, waitFor } from '../../cli/lab.js';
import { concat, ethernet, mac, payload } from '../support/frames.js';
import {
  capMissing,
  inject,
  live,
  Mesh,
  overlayAddress,
  overlayMac,
  seen,
  sendUdp,
  shared,
  sightings,
  sniff,
  underlayAddress,
  witness,
} from '../support/live.js';

const tools = ['socat', 'tcpdump', 'arping'];
const FILTER = 'ether proto 0x88b5';
const BROADCAST = 'ff:ff:ff:ff:ff:ff';
const NOBODY = '02:00:00:00:77:77';

const mesh = shared(() => Mesh.up({ hosts: 3 }));

const mark = (number: number): Uint8Array => Uint8Array.of(0xc0, 0xff, 0xee, number >>> 8, number);

function frameFrom(n: number, to: string, number: number): Uint8Array {
  return ethernet({ to: mac(to), from: mac(overlayMac(n)) }, concat(mark(number), payload(60)));
}

/** Watches all three containers while container 1 sends; a broadcast at the end tells that all before has passed. */
async function sightingsOf(frames: readonly Uint8Array[], end: number): Promise<(n: number) => number[]> {
  const { containers } = mesh();
  const sniffers = await Promise.all(containers.map((container) => sniff(container, 'eth0', FILTER)));
  await inject(containers[0], 'eth0', ...frames, frameFrom(1, BROADCAST, end));
  for (const sniffer of sniffers.slice(1)) await seen(sniffer, mark(end));
  await Promise.all(sniffers.map((sniffer) => sniffer.stop()));
  return (number) => sniffers.map((sniffer) => sightings(sniffer, mark(number)));
}

live(
  'broadcast, IPv4 and IPv6 multicast reach each other host exactly once',
  async (t) => {
    const watches = await Promise.all(mesh().engines.map((engine) => engine.watchDrops()));
    const groups = [BROADCAST, '01:00:5e:01:02:03', '33:33:00:00:00:fb'];
    const times = await sightingsOf(
      groups.map((group, i) => frameFrom(1, group, 100 + i)),
      109,
    );
    for (const [i, group] of groups.entries()) t.deepEqual(times(100 + i), [0, 1, 1], group);
    for (const dropped of watches) t.deepEqual(await dropped(), {});
  },
  { tools },
);

live(
  'a broadcast ping reaches each other host exactly once, and all answer',
  async (t) => {
    const { containers } = mesh();
    for (const container of containers.slice(1))
      await container.run('sysctl', ['-q', '-w', 'net.ipv4.icmp_echo_ignore_broadcasts=0']);
    const filter = `(icmp[icmptype] == icmp-echo and dst 10.0.9.255) or ${FILTER}`;
    const answers = await sniff(containers[0], 'eth0', 'icmp[icmptype] == icmp-echoreply');
    const sniffers = await Promise.all(
      containers.slice(1).map((container) => sniff(container, 'eth0', filter)),
    );
    await containers[0].exec('ping', ['-b', '-n', '-c', '3', '-i', '0.05', '-W', '1', '10.0.9.255']);
    await waitFor(() => answers.frames().length >= 6, { what: 'two answers to each of three requests' });
    await inject(containers[0], 'eth0', frameFrom(1, BROADCAST, 119));
    for (const sniffer of sniffers) {
      await seen(sniffer, mark(119));
      t.is(sniffer.frames().length, 4, 'three requests and the last frame');
      await sniffer.stop();
    }
    t.is(answers.frames().length, 6);
    await answers.stop();
  },
  { tools },
);

live(
  'arping asks each host once for an address that nobody knows',
  async (t) => {
    const { containers } = mesh();
    const filter = `(arp[6:2] == 1 and arp[24:4] == 0x0a0009c9) or ${FILTER}`;
    const own = await sniff(containers[0], 'eth0', filter, 'out');
    const sniffers = await Promise.all(
      containers.slice(1).map((container) => sniff(container, 'eth0', filter)),
    );
    await containers[0].exec('arping', ['-c', '2', '-w', '2', '-I', 'eth0', '10.0.9.201']);
    await inject(containers[0], 'eth0', frameFrom(1, BROADCAST, 118));
    for (const sniffer of [own, ...sniffers]) await seen(sniffer, mark(118));
    const asked = own.frames().length;
    t.true(asked > 1);
    for (const sniffer of sniffers) t.is(sniffer.frames().length, asked);
    for (const sniffer of [own, ...sniffers]) await sniffer.stop();
  },
  { tools },
);

live(
  'a known neighbour on this host is answered for, and the request goes nowhere',
  async (t) => {
    const { containers, engines } = mesh();
    const extra = mesh().lab.host('c1b');
    const file = mesh().fileOf(1);
    const neighbour = {
      name: 'c1b',
      network: 'blue',
      netns: extra.name,
      interface: 'eth0',
      address: '10.0.9.21/24',
    };
    await engines[0].change({ ...file, endpoints: [...file.endpoints, neighbour] });
    const before = await engines[0].element('neighbour');
    const sniffer = await sniff(containers[1], 'eth0', `arp or ${FILTER}`);
    containers[0].ip('neigh', 'flush', 'all');
    t.true((await ping(containers[0], '10.0.9.21', { count: 2, deadlineS: 10 })).received >= 2);
    await inject(containers[0], 'eth0', frameFrom(1, BROADCAST, 120));
    await seen(sniffer, mark(120));
    t.is(sniffer.frames().length, 1);
    t.true((await engines[0].element('neighbour'))['arp-answered'] > before['arp-answered']);
    await sniffer.stop();
    await engines[0].change(file);
  },
  { tools },
);

live(
  'unknown unicast is flooded exactly once; once learned, only its owner gets it',
  async (t) => {
    const { containers, engines } = mesh();
    const flooded = await sightingsOf([frameFrom(1, NOBODY, 130)], 131);
    t.deepEqual(flooded(130), [0, 1, 1]);
    // Somebody behind container 3 takes that address and says something.
    const hello = ethernet({ to: mac(overlayMac(1)), from: mac(NOBODY) }, concat(mark(132), payload(60)));
    const sniffer = await sniff(containers[0], 'eth0', FILTER);
    await inject(containers[2], 'eth0', hello);
    await seen(sniffer, mark(132));
    await sniffer.stop();
    const row = (await engines[0].fdb()).find((entry) => entry.mac === NOBODY);
    t.like(row, { network: 'blue', vtep: underlayAddress(3, false), static: false });
    const known = await sightingsOf([frameFrom(1, NOBODY, 133)], 134);
    t.deepEqual(known(133), [0, 0, 1]);
    await engines[0].flush();
    t.is(
      (await engines[0].fdb()).find((entry) => entry.mac === NOBODY),
      undefined,
    );
    const forgotten = await sightingsOf([frameFrom(1, NOBODY, 135)], 136);
    t.deepEqual(forgotten(135), [0, 1, 1]);
  },
  { tools },
);

live(
  'split horizon: what came from one VTEP never goes to another, and is counted',
  async (t) => {
    const { hosts, containers, engines } = mesh();
    t.true((await ping(containers[0], overlayAddress(3), { count: 1, deadlineS: 10 })).received >= 1);
    const dropped = await engines[0].watchDrops();
    const sniffers = await Promise.all(containers.map((container) => sniff(container, 'eth0', FILTER)));
    const packet = (inner: Uint8Array) => concat(Uint8Array.of(8, 0, 0, 0, 0, 0, 42, 0), inner);
    const to = underlayAddress(1, false);
    // Known to be behind host 3; then nobody's; then everybody's.
    await sendUdp(hosts[1], to, 4789, packet(frameFrom(2, overlayMac(3), 140)));
    await sendUdp(hosts[1], to, 4789, packet(frameFrom(2, NOBODY, 141)));
    await sendUdp(hosts[1], to, 4789, packet(frameFrom(2, BROADCAST, 142)));
    await seen(sniffers[0], mark(142));
    await inject(containers[0], 'eth0', frameFrom(1, BROADCAST, 143));
    for (const sniffer of sniffers.slice(1)) await seen(sniffer, mark(143));
    const times = (number: number) => sniffers.map((sniffer) => sightings(sniffer, mark(number)));
    t.deepEqual(times(140), [0, 0, 0]);
    t.deepEqual(times(141), [1, 0, 0]);
    t.deepEqual(times(142), [1, 0, 0]);
    t.deepEqual(await dropped(), { 'bridge split-horizon': 1 });
    for (const sniffer of sniffers) await sniffer.stop();
  },
  { tools },
);

live(
  'cap, an independent witness, sees one packet a host of what is flooded and none of what is not for it',
  async (t) => {
    const { hosts, containers } = mesh();
    const filter = 'udp and dst port 4789';
    const witnesses = await Promise.all(hosts.slice(1).map((host) => witness(host, 'under0', filter)));
    t.true((await ping(containers[0], overlayAddress(3), { count: 1, deadlineS: 10 })).received >= 1);
    await inject(
      containers[0],
      'eth0',
      frameFrom(1, BROADCAST, 150),
      frameFrom(1, '01:00:5e:01:02:03', 151),
      frameFrom(1, overlayMac(3), 152),
      frameFrom(1, BROADCAST, 153),
    );
    for (const each of witnesses) await seen(each, mark(153));
    const times = (number: number) => witnesses.map((each) => sightings(each, mark(number)));
    t.deepEqual(times(150), [1, 1]);
    t.deepEqual(times(151), [1, 1]);
    t.deepEqual(times(152), [0, 1]);
    // Before its interface can go down.
    for (const each of witnesses) await each.stop();
  },
  { tools, skip: capMissing() },
);

live(
  'a container that moves to another host takes its traffic with it',
  async (t) => {
    const { containers, engines, lab } = mesh();
    const mover: Namespace = lab.host('mover');
    const endpoint = mesh().endpointOf(9, mover.name);
    const with9 = (n: number) => ({
      ...mesh().fileOf(n),
      endpoints: [...mesh().fileOf(n).endpoints, endpoint],
    });
    await engines[1].change(with9(2));
    t.true((await ping(containers[0], overlayAddress(9), { count: 2, deadlineS: 10 })).received >= 2);
    await locate(t, 2);
    await engines[1].change(mesh().fileOf(2));
    await engines[2].change(with9(3));
    // It announces itself or speaks first; either way host 1 follows.
    await mover.exec('ping', ['-c', '1', '-w', '5', overlayAddress(1)]);
    t.true((await ping(containers[0], overlayAddress(9), { count: 3, deadlineS: 10 })).received >= 3);
    t.true((await ping(containers[1], overlayAddress(9), { count: 3, deadlineS: 10 })).received >= 3);
    await locate(t, 3);
    t.true((await engines[0].element('bridge'))['moved'] >= 1);
    await engines[2].change(mesh().fileOf(3));
  },
  { tools },
);

async function locate(t: ExecutionContext, host: number): Promise<void> {
  const row = await waitFor(
    async () => (await mesh().engines[0].fdb()).find((entry) => entry.mac === overlayMac(9)),
    { what: 'the moved station in the table of host 1' },
  );
  t.is(row.vtep, underlayAddress(host, false));
}
