/** What somebody on the underlay may try against an encrypted network: plain VXLAN, forged ESP, recorded ESP. */
import { randomBytes, randomInt } from 'node:crypto';
import type { ExecutionContext } from 'ava';
import { pythonMissing } from '../../bench/wire-traffic.js';
import { ping, waitFor } from '../../cli/lab.js';
import {
  alone,
  assertWhole,
  type EspPacket,
  encrypted,
  Flow,
  injectAll,
  kernelDrops,
  outbound,
  reached,
  record,
} from '../support/encrypted.js';
import { be16, concat, ethernet, mac, payload } from '../support/frames.js';
import {
  type Engine,
  live,
  Mesh,
  type NodeFile,
  overlayAddress,
  overlayMac,
  sendUdp,
  shared,
  sightings,
  sniff,
  underlayAddress,
} from '../support/live.js';

const requirements = { tools: ['socat', 'tcpdump'], skip: pythonMissing() };
const addresses = [1, 2].map((n) => overlayAddress(n));
const BROADCAST = 'ff:ff:ff:ff:ff:ff';
const FORGED = 3000;

const mark = (number: number): Uint8Array => Uint8Array.of(0xc0, 0xff, 0xee, number >>> 8, number);

/** UDP payload of plain VXLAN for network 42 with a marked broadcast in it. */
const plainVxlan = (number: number): Uint8Array =>
  concat(
    Uint8Array.of(8, 0, 0, 0, 0, 0, 42, 0),
    ethernet({ to: mac(BROADCAST), from: mac(overlayMac(2)) }, concat(mark(number), payload(60))),
  );

const lines = (engine: Engine, text: RegExp): string[] =>
  engine.running!.stderr.split('\n').filter((line) => text.test(line));

/** ESP packets that host 2 sent to host 1 while container 2 pinged container 1. */
async function recorded(mesh: Mesh, count: number): Promise<EspPacket[]> {
  const recording = await record(mesh, mesh.hosts[0]);
  await ping(mesh.containers[1], addresses[0], { count, interval: 0.005 });
  const { esp } = await recording.stop();
  return esp.filter(({ from }) => from === underlayAddress(2, mesh.options.v6 === true));
}

/** A packet with another sequence number and an ICV that cannot be right. */
function forged({ headers, esp }: EspPacket, sequence: number): Uint8Array {
  const bytes = concat(esp.subarray(0, 4), be16(sequence >>> 16, sequence), randomBytes(esp.length - 8));
  return alone({ headers, esp: bytes });
}

/** Number of the last packet that host 1 accepted under the newest keys. */
async function highest(engine: Engine): Promise<number> {
  const rows = await engine.associations();
  return rows.find(({ state }) => state === 'receiving')!.sequence;
}

const variants = [
  { title: 'UDP, uplink', mode: 'uplink', encapsulation: 'udp', v6: false },
  { title: 'UDP, socket', mode: 'socket', encapsulation: 'udp', v6: false },
  { title: 'IP protocol 50', mode: 'auto', encapsulation: 'esp', v6: false },
  { title: 'UDP over IPv6, socket', mode: 'socket', encapsulation: 'udp', v6: true },
] as const;

for (const { title, mode, encapsulation, v6 } of variants) {
  const mesh = shared(() => encrypted({ hosts: 2, encapsulation, v6, underlay: { mode } }));
  const attacked = (what: string, body: (t: ExecutionContext) => Promise<void>): void =>
    live(`ESP in ${title}: ${what}`, body, requirements);

  attacked(
    "plain VXLAN from a peer's address is dropped and counted, said once, never delivered",
    async (t) => {
      const { hosts, containers, engines } = mesh();
      const dropped = await engines[0].watchDrops();
      const sniffer = await sniff(containers[0], 'eth0', 'ether proto 0x88b5 or icmp');
      for (let i = 0; i < 5; i++) await sendUdp(hosts[1], underlayAddress(1, v6), 4789, plainVxlan(i));
      await reached(t, containers[1], addresses[0]);
      await waitFor(async () => (await dropped())['vxlan-decap plain-for-encrypted'] === 5, {
        what: 'five drops',
      });
      t.deepEqual(await dropped(), { 'vxlan-decap plain-for-encrypted': 5 });
      t.true(sniffer.frames().length >= 3);
      t.is(sightings(sniffer, mark(0).subarray(0, 3)), 0);
      await sniffer.stop();
      const said = () => lines(engines[0], /it sends plain VXLAN for an encrypted network, which is dropped/);
      await waitFor(() => said().length > 0, { what: 'a word about it' });
      t.is(said().length, 1);
      t.true(said()[0].includes(underlayAddress(2, v6)), said()[0]);
    },
  );

  attacked('a flood of forged packets is counted, moves no window and disturbs nobody', async (t) => {
    const { hosts, containers, engines, lab } = mesh();
    const [sample] = await recorded(mesh(), 3);
    const dropped = await engines[0].watchDrops();
    const before = await kernelDrops(lab.namespaces);
    const top = await highest(engines[0]);
    const flow = await Flow.between(containers, addresses, 500);
    // Ahead of the window, in front of what comes next, and with numbers of the right of it.
    const wrong = Array.from({ length: FORGED }, (_, i) =>
      forged(sample, i % 2 === 0 ? top + 1_000_000 + i : top + 1 + i),
    );
    const unknown = Array.from({ length: FORGED / 10 }, (_, i) => {
      const spi = randomBytes(4);
      return alone(
        sample,
        concat(spi.some((byte) => byte !== 0) ? spi : Uint8Array.of(1, 1, 1, 1), be16(0, i), randomBytes(60)),
      );
    });
    const noise = Array.from({ length: FORGED / 10 }, () => alone(sample, randomBytes(randomInt(1, 1400))));
    for (const some of [wrong, unknown, noise]) await injectAll(hosts[1], some);
    const reports = await flow.stop();
    await reached(t, containers[0], addresses[1]);
    assertWhole(t, reports, (await kernelDrops(lab.namespaces)) - before);
    t.true((await highest(engines[0])) < top + 100_000, 'the window is where the flow has moved it');
    const drops = await dropped();
    const total = Object.values(drops).reduce((sum, count) => sum + count, 0);
    t.log(JSON.stringify(drops));
    t.is(total, wrong.length + unknown.length + noise.length);
    t.is((await engines[0].status()).slotsInUse, 0);
  });

  attacked('recorded packets sent again are counted and not delivered', async (t) => {
    const { hosts, containers, engines } = mesh();
    const packets = await recorded(mesh(), 50);
    t.true(packets.length >= 50);
    const dropped = await engines[0].watchDrops();
    const sniffer = await sniff(containers[0], 'eth0', 'icmp');
    await injectAll(
      hosts[1],
      packets.map((packet) => alone(packet)),
    );
    await waitFor(async () => (await dropped())['esp-decrypt replayed'] >= packets.length, {
      what: 'refusals',
    });
    t.deepEqual(await dropped(), { 'esp-decrypt replayed': packets.length });
    await sniffer.stop();
    t.deepEqual(sniffer.frames(), []);
    const rows = await engines[0].associations();
    t.true(rows.find(({ state }) => state === 'receiving')!.refusals.replayed >= packets.length);
    t.is((await outbound(engines[0])).length, 1);
  });

  attacked('recorded packets from another address are refused', async (t) => {
    const { hosts, containers, engines } = mesh();
    const [packet] = await recorded(mesh(), 1);
    const dropped = await engines[0].watchDrops();
    const elsewhere = concat(packet.headers);
    // The last byte of the source.
    elsewhere[v6 ? 37 : 29] = 77;
    await injectAll(hosts[1], [alone({ headers: elsewhere, esp: packet.esp })]);
    await waitFor(async () => Object.keys(await dropped()).length > 0, { what: 'a refusal' });
    t.deepEqual(await dropped(), { 'esp-decrypt wrong-source': 1 });
    await reached(t, containers[0], addresses[1]);
  });
}

/** A mesh with a second network, green: plain on host 1, and on host 2 as it says. */
async function mixed(mode: string, encapsulation: 'udp' | 'esp'): Promise<Mesh> {
  const keys = [{ id: 1, secret: randomBytes(32).toString('hex') }];
  const mesh = new Mesh({
    hosts: 2,
    underlay: { mode },
    network: { encrypted: true },
    file: { encryption: { keys, encapsulation } },
  });
  for (const n of [1, 2]) {
    const file = mesh.fileOf(n);
    const green = {
      name: 'green',
      vni: 43,
      subnet: '10.0.9.0/24',
      encrypted: n === 2,
      peers: file.networks[0]['peers'],
    };
    const netns = mesh.lab.host(`g${n}`).name;
    const endpoint = {
      name: `g${n}`,
      network: 'green',
      netns,
      interface: 'eth0',
      address: `${overlayAddress(n)}/24`,
    };
    const both: NodeFile = {
      ...file,
      networks: [...file.networks, green],
      endpoints: [...file.endpoints, endpoint],
    };
    mesh.engines.push(mesh.engine(mesh.hosts[n - 1], both));
  }
  await mesh.start(...mesh.engines);
  return mesh;
}

for (const [mode, encapsulation] of [
  ['uplink', 'udp'],
  ['socket', 'udp'],
  ['auto', 'esp'],
] as const) {
  const mesh = shared(() => mixed(mode, encapsulation));

  live(
    `underlay ${mode}, ${encapsulation}: a network encrypted on one host only is refused both ways, and said once`,
    async (t) => {
      const { containers, engines, lab } = mesh();
      const green = lab.namespaces.filter(({ label }) => label.startsWith('g'));
      await reached(t, containers[0], addresses[1]);
      const [first, second] = await Promise.all(engines.map((engine) => engine.watchDrops()));
      const sniffer = await sniff(green[0], 'eth0', '', 'in');
      // Neighbours that are known: neither is answered by its own host.
      for (const [i, container] of green.entries())
        container.ip('neigh', 'replace', addresses[1 - i], 'lladdr', overlayMac(2 - i), 'dev', 'eth0');
      for (const [i, container] of green.entries())
        t.is((await ping(container, addresses[1 - i], { count: 5, interval: 0.05 })).received, 0);
      await waitFor(async () => (await first())['vxlan-decap:esp esp-for-plain'] >= 5, {
        what: 'refusals of ESP',
      });
      await waitFor(async () => (await second())['vxlan-decap plain-for-encrypted'] >= 5, {
        what: 'refusals of plain',
      });
      t.deepEqual(Object.keys(await first()), ['vxlan-decap:esp esp-for-plain']);
      t.deepEqual(Object.keys(await second()), ['vxlan-decap plain-for-encrypted']);
      await sniffer.stop();
      t.deepEqual(sniffer.frames(), []);
      const said = () => [
        lines(engines[0], /sends encrypted VXLAN for a network that is plain here/).length,
        lines(engines[1], /sends plain VXLAN for an encrypted network/).length,
      ];
      await waitFor(() => said().every((times) => times > 0), { what: 'words about it' });
      await reached(t, containers[0], addresses[1]);
      t.deepEqual(said(), [1, 1]);
    },
    requirements,
  );
}
