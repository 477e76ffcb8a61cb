/** Several data-plane workers: all kinds of traffic, one table to the outside, reloads and crashes. */
import type { ExecutionContext } from 'ava';
import { echoServer, pythonMissing } from '../../bench/wire-traffic.js';
import { type Namespace, ping, waitFor } from '../../cli/lab.js';
import {
  linkOf,
  linksOf,
  live,
  Mesh,
  type NodeFile,
  overlayAddress,
  overlayMac,
  shared,
  underlayAddress,
} from '../support/live.js';
import { exchange } from '../support/offload.js';

const requirements = { tools: ['socat'], skip: pythonMissing() };

const withWorkers = (file: NodeFile, workers: number): NodeFile => Object.assign(file, { workers });

/** Two hosts, each with so many workers. */
async function team(workers: number, mode: string): Promise<Mesh> {
  const mesh = new Mesh({ hosts: 2, underlay: { mode } });
  for (const n of [1, 2])
    mesh.engines.push(mesh.engine(mesh.hosts[n - 1], withWorkers(mesh.fileOf(n), workers)));
  await mesh.start(...mesh.engines);
  return mesh;
}

async function traffic(t: ExecutionContext, mesh: Mesh): Promise<void> {
  const [a, b] = mesh.containers;
  const server = await echoServer(b, overlayAddress(2), overlayAddress(2, true));
  const result = await ping(a, overlayAddress(2), { count: 20, interval: 0.1 });
  t.is(result.received, 20);
  t.is(result.duplicates, 0);
  await exchange(t, a, overlayAddress(2), ['bulk', 'streams', 'udp', 'uso-1000', 'fragments']);
  await exchange(t, a, overlayAddress(2, true), ['streams', 'udp-few', 'fragments']);
  await server.stop();
}

/** Sends datagrams of 64 flows. */
async function oneWay(from: Namespace, address: string, port: number): Promise<void> {
  const script = `import socket
for _ in range(64):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(10):
        s.sendto(b"x", ("${address}", ${port}))`;
  await from.run('/usr/bin/python3', ['-c', script]);
}

/** What both engines flooded so far. */
async function flooded(mesh: Mesh): Promise<number> {
  const counts = await Promise.all(mesh.engines.map((engine) => engine.element('bridge')));
  return counts.reduce((sum, bridge) => sum + bridge['flooded'], 0);
}

for (const workers of [2, 4]) {
  for (const mode of ['uplink', 'socket'] as const) {
    const mesh = shared(() => team(workers, mode));
    const title = `${workers} workers, ${mode}`;

    live(
      `${title}: ping, TCP, eight streams and UDP, without a drop or a slot kept`,
      async (t) => {
        const dropped = await Promise.all(mesh().engines.map((engine) => engine.watchDrops()));
        await traffic(t, mesh());
        for (const each of dropped) t.deepEqual(await each(), {});
        for (const engine of mesh().engines) {
          const status = await engine.status();
          t.is(status.slotsInUse, 0);
          t.is(status.workers.length, workers);
          t.true(status.workers.every(({ load }) => load >= 0 && load <= 1.5));
          t.is(status.underlay.path, mode);
          t.true(status.elements['gossip']['told'] > 0);
          t.is(status.elements['gossip']['lost'], 0);
        }
        t.regex((await mesh().engines[0].cli('status')).stdout, /workers?\b/i);
      },
      requirements,
    );

    live(
      `${title}: a station is known to every worker, shown once, and not flooded to for ever`,
      async (t) => {
        const { containers, engines } = mesh();
        const [a, b] = containers;
        for (const engine of engines) await engine.flush();
        t.true((await ping(a, overlayAddress(2), { count: 5, interval: 0.1, deadlineS: 10 })).received >= 5);
        const fdb = await engines[0].fdb();
        const macs = fdb.map(({ mac }) => mac);
        t.is(new Set(macs).size, macs.length, 'each station once');
        t.like(
          fdb.find(({ mac }) => mac === overlayMac(2)),
          { vtep: underlayAddress(2, false), static: false },
        );
        // Each worker gets some of 64 flows to which nobody answers: it knows the station only by what it was told.
        const sink = b.start('socat', ['-d', '-d', '-u', 'UDP4-RECV:7200', 'OPEN:/dev/null']);
        await sink.output(/starting data transfer/, { stream: 'stderr' });
        const before = await flooded(mesh());
        await oneWay(a, overlayAddress(2), 7200);
        t.is(await flooded(mesh()), before);
        await sink.stop('SIGKILL');
      },
      requirements,
    );

    if (workers !== 2) continue;

    live(
      `${title}: reloads, kill -9 and a restart`,
      async (t) => {
        const { containers, engines, lab } = mesh();
        const extra = lab.host('extra');
        const file = withWorkers(mesh().fileOf(1), workers);
        const two = { ...file, endpoints: [...file.endpoints, mesh().endpointOf(8, extra.name)] };
        await engines[0].change(two);
        t.true((await ping(containers[1], overlayAddress(8), { count: 5, deadlineS: 5 })).received >= 5);
        t.true((await ping(extra, overlayAddress(1), { count: 5, deadlineS: 5 })).received >= 5);
        await engines[0].change(file);
        t.deepEqual(linksOf(extra), []);
        await traffic(t, mesh());

        engines[0].write(withWorkers(mesh().fileOf(1), 3));
        t.regex(await engines[0].reload(), /workers cannot change while the engine runs/);
        engines[0].write(file);

        const before = linkOf(containers[0], 'eth0');
        await engines[0].kill();
        t.is(linkOf(containers[0], 'eth0')?.ifindex, before?.ifindex);
        await engines[0].start();
        t.is(linkOf(containers[0], 'eth0')?.ifindex, before?.ifindex);
        t.true((await ping(containers[0], overlayAddress(2), { count: 1, deadlineS: 10 })).received > 0);
        await traffic(t, mesh());
      },
      requirements,
    );

    live(
      `${title}: killed, it can be started again with another number of workers`,
      async (t) => {
        const { containers, engines } = mesh();
        for (const other of [1, 3]) {
          await engines[0].kill();
          engines[0].write(withWorkers(mesh().fileOf(1), other));
          await engines[0].start();
          t.is((await engines[0].status()).workers.length, other);
          t.true((await ping(containers[0], overlayAddress(2), { count: 1, deadlineS: 10 })).received > 0);
          await traffic(t, mesh());
        }
        await waitFor(async () => (await engines[0].status()).slotsInUse === 0, { what: 'free slots' });
        const { code } = await engines[0].stop();
        t.is(code, 0);
        t.deepEqual(linksOf(containers[0]), []);
        t.deepEqual(linksOf(mesh().hosts[0]), ['under0']);
      },
      requirements,
    );
  }
}
