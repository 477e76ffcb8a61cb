/** Encryption by several workers, which share sequence numbers and replay windows: nothing doubled, nothing lost. */
import { echoServer, pythonMissing } from '../../bench/wire-traffic.js';
import { ask } from '../../cli/client.js';
import { iperf3, ping, waitFor } from '../../cli/lab.js';
import {
  alone,
  assertNonces,
  assertSealed,
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
  live,
  overlayAddress,
  overlayMac,
  sendUdp,
  shared,
  sniff,
  underlayAddress,
} from '../support/live.js';
import { exchange } from '../support/offload.js';

const requirements = { tools: ['tcpdump', 'iperf3', 'socat'], skip: pythonMissing() };
const addresses = [1, 2].map((n) => overlayAddress(n));
const COPIES = 8;

/** The packet as if it came from another port, so that another worker may get it. */
function fromPort(packet: EspPacket, port: number): Uint8Array {
  const headers = concat(packet.headers);
  // Over IPv4 and in UDP; ESP alone has no port.
  if (headers.length === 42) headers.set(be16(port), 34);
  return alone({ headers, esp: packet.esp });
}

const variants = [
  { title: 'UDP, uplink', mode: 'uplink', encapsulation: 'udp' },
  { title: 'UDP, socket', mode: 'socket', encapsulation: 'udp' },
  { title: 'IP protocol 50', mode: 'auto', encapsulation: 'esp' },
] as const;

for (const { title, mode, encapsulation } of variants) {
  const file = { workers: 2 };
  const mesh = shared(() => encrypted({ hosts: 2, encapsulation, underlay: { mode }, file }));

  live(
    `2 workers, ESP in ${title}: pings, TCP, eight streams and UDP, without a drop`,
    async (t) => {
      const { containers, engines } = mesh();
      const [a, b] = containers;
      const dropped = await Promise.all(engines.map((engine) => engine.watchDrops()));
      await reached(t, a, addresses[1]);
      const server = await echoServer(b, addresses[1], overlayAddress(2, true));
      await exchange(t, a, addresses[1], ['bulk', 'streams', 'udp', 'uso-1000', 'fragments']);
      await exchange(t, a, overlayAddress(2, true), ['streams', 'udp-few']);
      await server.stop();
      for (const each of dropped) t.deepEqual(await each(), {});
      for (const engine of engines) t.is((await engine.status()).slotsInUse, 0);
    },
    requirements,
  );

  live(
    `2 workers, ESP in ${title}: rotations under traffic lose nothing and repeat no nonce`,
    async (t) => {
      const { containers, engines, hosts, lab } = mesh();
      const [a, b] = containers;
      const dropped = await Promise.all(engines.map((engine) => engine.watchDrops()));
      const before = await kernelDrops(lab.namespaces);
      const recording = await record(mesh(), hosts[0]);
      const flows = [];
      for (const port of [7300, 7301, 7302, 7303])
        flows.push(await Flow.between(containers, addresses, 500, port));
      const stream = iperf3(a, b, addresses[1], { seconds: 3, parallel: 4, bandwidth: 10e6 });
      for (let i = 0; i < 4; i++) {
        await ask('POST', '/sa/rotate', { socket: engines[i % 2].socket });
        await waitFor(
          async () => (await Promise.all(engines.map(outbound))).flat().every(({ packets }) => packets > 300),
          { what: 'packets under the new keys', timeoutMs: 10_000 },
        );
      }
      t.true((await stream).bitsPerSecond > 0);
      const reports = (await Promise.all(flows.map((flow) => flow.stop()))).flat();
      assertWhole(t, reports, (await kernelDrops(lab.namespaces)) - before, false);
      for (const each of dropped) t.deepEqual(await each(), {});
      const recorded = await recording.stop();
      assertSealed(t, recorded);
      const senders = assertNonces(t, recorded.esp);
      // A session that is replaced at once may have had nothing to carry one way.
      for (const n of [1, 2]) {
        const spis = senders.get(underlayAddress(n, false))?.size ?? 0;
        t.true(spis > 2 && spis <= 5, `${spis} SPIs of host ${n}`);
      }
    },
    requirements,
  );

  live(
    `2 workers, ESP in ${title}: of ${COPIES} copies of each packet one gets through, whoever gets them`,
    async (t) => {
      const { containers, engines, hosts } = mesh();
      const [a, b] = containers;
      b.ip('neigh', 'replace', addresses[0], 'lladdr', overlayMac(1), 'dev', 'eth0');
      await reached(t, b, addresses[0]);
      // What host 2 sends now is recorded there and comes nowhere.
      mesh().switch.ip('link', 'set', 'p0', 'nomaster');
      const recording = await record(mesh(), hosts[1]);
      t.is((await ping(b, addresses[0], { count: 40, interval: 0.005 })).received, 0);
      const { esp } = await recording.stop();
      mesh().switch.ip('link', 'set', 'p0', 'master', 'br0');
      const held = esp.filter(({ from }) => from === underlayAddress(2, false));
      t.true(held.length >= 40);

      const dropped = await engines[0].watchDrops();
      const sniffer = await sniff(a, 'eth0', 'icmp[icmptype] = icmp-echo');
      const copies = held.flatMap((packet) =>
        Array.from({ length: COPIES }, (_, i) => fromPort(packet, 4500 + i * 7)),
      );
      await injectAll(hosts[1], copies);
      const refused = held.length * (COPIES - 1);
      await waitFor(async () => (await dropped())['esp-decrypt replayed'] >= refused, { what: 'refusals' });
      t.deepEqual(await dropped(), { 'esp-decrypt replayed': refused });
      await waitFor(() => sniffer.frames().length >= 40, { what: 'forty pings' });
      await sniffer.stop();
      t.is(sniffer.frames().length, 40);
      t.is(new Set(sniffer.frames()).size, 40);

      // All of them once more: none is fresh for anybody.
      await injectAll(hosts[1], copies);
      await waitFor(async () => (await dropped())['esp-decrypt replayed'] >= refused + copies.length, {
        what: 'more refusals',
      });
      t.deepEqual(await dropped(), { 'esp-decrypt replayed': refused + copies.length });
      await reached(t, a, addresses[1]);
    },
    requirements,
  );

  live(
    `2 workers, ESP in ${title}: plain VXLAN that both see is said once`,
    async (t) => {
      const { containers, engines, hosts } = mesh();
      const dropped = await engines[0].watchDrops();
      const inner = ethernet({ to: mac(overlayMac(1)), from: mac(overlayMac(2)) }, payload(60));
      for (let i = 0; i < 16; i++)
        await sendUdp(
          hosts[1],
          underlayAddress(1, false),
          4789,
          concat(Uint8Array.of(8, 0, 0, 0, 0, 0, 42, 0), inner),
        );
      await waitFor(async () => (await dropped())['vxlan-decap plain-for-encrypted'] === 16, {
        what: 'drops',
      });
      await reached(t, containers[0], addresses[1]);
      const said = () =>
        engines[0].running!.stderr.match(/it sends plain VXLAN for an encrypted network/g)?.length;
      await waitFor(said, { what: 'a word about it' });
      await reached(t, containers[0], addresses[1]);
      t.is(said(), 1);
    },
    requirements,
  );
}
