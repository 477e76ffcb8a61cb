/**
 * Offloads on the wire: super-frames, partial checksums and segmentation of every kind, captured where everything
 * has been cut and summed, and read by tshark. Each pair of underlay paths, IPv4 and IPv6 outside.
 */
import type { ExecutionContext } from 'ava';
import { echoServer, offloads, pythonMissing, startCases } from '../../bench/wire-traffic.js';
import { ping, waitFor } from '../../cli/lab.js';
import { live, Mesh, overlayAddress, shared } from '../support/live.js';
import { assertSound, exchange, sentBy, TCP_CASES, UDP_CASES, wire } from '../support/offload.js';

const requirements = { tools: ['tcpdump', 'tshark', 'ethtool'], skip: pythonMissing() };

/** Two Wefts, each on its own path; the last switch port and host 2 leave nothing to be done later. */
async function pair(v6: boolean, first: string, second: string): Promise<Mesh> {
  const mesh = new Mesh({ hosts: 2, v6 });
  for (const [i, mode] of [first, second].entries()) {
    const file = mesh.fileOf(i + 1);
    mesh.engines.push(mesh.engine(mesh.hosts[i], { ...file, underlay: { ...file.underlay, mode } }));
  }
  await mesh.start(...mesh.engines);
  try {
    await cutBefore(mesh);
  } catch (error) {
    mesh.close();
    throw error;
  }
  return mesh;
}

/** Whatever host 2 sees has been cut and summed: by host 1, or by the switch's last port from what host 1 said. */
async function cutBefore(mesh: Mesh): Promise<void> {
  await offloads(mesh.switch, 'p1', 'off');
  await offloads(mesh.hosts[1], 'under0', 'off');
  await mesh.hosts[1].run('ethtool', ['-K', 'under0', 'gro', 'off']);
}

/** Runs everything in both directions and both families, and asserts that each case is on the wire as meant. */
async function everything(t: ExecutionContext, mesh: Mesh, v6: boolean): Promise<void> {
  const [a, b] = mesh.containers;
  const servers = [
    await echoServer(a, overlayAddress(1), overlayAddress(1, true)),
    await echoServer(b, overlayAddress(2), overlayAddress(2, true)),
  ];
  const capture = await wire(mesh, mesh.hosts[1], 'under0');
  await exchange(t, a, overlayAddress(2), [...TCP_CASES, ...UDP_CASES]);
  await exchange(t, b, overlayAddress(1, true), [...TCP_CASES, ...UDP_CASES]);
  const packets = await capture.stop();
  for (const server of servers) await server.stop();
  assertSound(t, packets, v6);
  for (const n of [1, 2]) {
    const sent = sentBy(packets, n, v6);
    t.true(sent.length > 500, `${sent.length} packets of host ${n}`);
    const tcp = sent.filter((packet) => packet.tcp.length > 0);
    t.true(tcp.some(({ timestamps }) => timestamps) && tcp.some(({ timestamps }) => !timestamps));
    t.true(tcp.some(({ tcpFlags }) => (tcpFlags & 8) !== 0) && tcp.some(({ tcpBytes }) => tcpBytes > 1300));
    t.true(
      tcp.some(({ syn, tcpBytes }) => syn && tcpBytes > 0),
      'SYN with data',
    );
    t.true(
      tcp.some(({ urgent }) => urgent),
      'URG',
    );
    t.true(
      tcp.some(({ ecn }) => ecn[1] === 2),
      'ECT(0)',
    );
    t.true(
      sent.some(({ fragment }) => fragment),
      'fragments',
    );
    const differ = sent.filter(({ ecn }) => ecn.length === 2 && ecn[0] !== ecn[1]);
    t.deepEqual(differ, [], 'outer ECN is the inner one');
    t.true(sent.some(({ v4Inside }) => v4Inside) && sent.some(({ v4Inside }) => !v4Inside), 'both families');
  }
}

const pairs = [
  ['uplink', 'uplink'],
  ['socket', 'socket'],
  ['uplink', 'socket'],
  ['socket', 'uplink'],
] as const;

for (const [first, second] of pairs) {
  for (const outside of [4, 6]) {
    const v6 = outside === 6;
    const mesh = shared(() => pair(v6, first, second));
    const title = `${first} to ${second} over IPv${outside}`;

    live(
      `${title}: everything arrives as sent, and every packet on the wire is sound`,
      async (t) => {
        const dropped = await Promise.all(mesh().engines.map((engine) => engine.watchDrops()));
        await everything(t, mesh(), v6);
        for (const each of dropped) t.deepEqual(await each(), {});
        for (const [i, mode] of [first, second].entries()) {
          const status = await mesh().engines[i].status();
          t.is(status.underlay.path, mode);
          t.is(status.slotsInUse, 0);
        }
      },
      requirements,
    );

    if (first !== second) continue;
    live(
      `${title}: segments that are longer than the underlay takes are dropped and counted, not sent`,
      (t) => tooLong(t, mesh(), v6),
      requirements,
    );
  }
}

/** Containers that gave themselves a larger MTU than the overlay has: TCP agrees on segments that cannot pass. */
async function tooLong(t: ExecutionContext, mesh: Mesh, v6: boolean): Promise<void> {
  const [a, b] = mesh.containers;
  const mtu = String(v6 ? 1430 : 1450);
  const server = await echoServer(b, overlayAddress(2));
  for (const container of [a, b]) container.ip('link', 'set', 'eth0', 'mtu', '9000');
  const capture = await wire(mesh, mesh.hosts[1], 'under0');
  const dropped = await mesh.engines[0].watchDrops();
  const superFrames = async () => (await mesh.engines[0].status()).underlay.counters['tx-super'] ?? 0;
  const before = await superFrames();
  const client = startCases(a, overlayAddress(2), ['bulk']);
  await waitFor(async () => Object.keys(await dropped()).some((reason) => reason.endsWith(' too-big')), {
    what: 'a drop',
  });
  await client.stop('SIGKILL');
  await server.stop();
  const packets = await capture.stop();
  t.true(packets.length > 0);
  t.deepEqual(
    packets.map(({ bytes }) => bytes).filter((bytes) => bytes > 1514),
    [],
  );
  t.is((await superFrames()) - before, 0, 'super-frames of such segments');
  for (const container of [a, b]) container.ip('link', 'set', 'eth0', 'mtu', mtu);
  t.true((await ping(a, overlayAddress(2), { count: 2, deadlineS: 5 })).received >= 2);
}
