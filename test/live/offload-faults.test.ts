/**
 * Streams through a wire with faults – loss, reordering, duplicates, damaged bits – and through containers whose
 * offloads are off: the same bytes arrive, and no slot is kept.
 */
import type { ExecutionContext } from 'ava';
import {
  echoServer,
  halve,
  type Impairment,
  impair,
  offloads,
  pythonMissing,
} from '../../bench/wire-traffic.js';
import { ping, waitFor } from '../../cli/lab.js';
import { live, Mesh, overlayAddress, shared } from '../support/live.js';
import { assertSound, exchange, sentBy, TCP_CASES, UDP_CASES, wire } from '../support/offload.js';

const requirements = { tools: ['tcpdump', 'tshark', 'ethtool'], skip: pythonMissing() };
const modes = ['uplink', 'socket'] as const;
const meshes = modes.map((mode) => shared(() => halved(mode)));

async function halved(mode: string): Promise<Mesh> {
  const mesh = await Mesh.up({ hosts: 2, underlay: { mode } });
  try {
    await halve(mesh.switch);
    await mesh.hosts[1].run('ethtool', ['-K', 'under0', 'gro', 'off']);
  } catch (error) {
    mesh.close();
    throw error;
  }
  return mesh;
}

async function noSlotKept(mesh: Mesh): Promise<void> {
  for (const engine of mesh.engines) {
    await waitFor(async () => (await engine.status()).slotsInUse === 0, {
      what: `every slot of ${engine.host.label} to be free`,
    });
  }
}

/** What a fault may make an engine drop; anything else is one of ours. */
const EXPECTED: Record<Impairment, RegExp> = {
  none: /^$/,
  loss: /^$/,
  reorder: /^$/,
  duplicate: /^$/,
  // The kernel counts a wrong outer checksum as it counts what does not fit into the socket's queue.
  corrupt: /^((vxlan-decap|bridge|coalesce|neighbour) |underlay queue-full$)/,
};

async function through(t: ExecutionContext, mesh: Mesh, kind: Impairment): Promise<void> {
  const [a, b] = mesh.containers;
  const server = await echoServer(b, overlayAddress(2), overlayAddress(2, true));
  const dropped = await Promise.all(mesh.engines.map((engine) => engine.watchDrops()));
  const fault = await impair(mesh.switch, kind);
  t.true((await ping(a, overlayAddress(2), { count: 1, deadlineS: 10 })).received > 0);
  const capture = await wire(mesh, mesh.hosts[1], 'under0');
  await exchange(t, a, overlayAddress(2), ['megabytes', 'urgent']);
  await exchange(t, a, overlayAddress(2, true), ['bulk']);
  const packets = await capture.stop();
  const times = await fault.mend();
  t.true(times > 0, 'the fault struck');
  if (kind !== 'corrupt') {
    assertSound(t, sentBy(packets, 1, false), false);
    t.is(
      packets.some(({ sack }) => sack),
      true,
      'SACK, or DSACK for duplicates',
    );
  }
  const streams = server.streams().map((stream) => stream.split(' ')[1]);
  t.is(new Set(streams).size, 3, 'the server got three streams');
  await server.stop();
  await noSlotKept(mesh);
  for (const each of dropped) {
    const reasons = Object.keys(await each()).filter((reason) => !EXPECTED[kind].test(reason));
    t.deepEqual(reasons, []);
  }
}

for (const [i, mode] of modes.entries()) {
  for (const kind of ['loss', 'reorder', 'duplicate', 'corrupt'] as const) {
    live(
      `${mode}: TCP streams are whole on a wire with ${kind}, and every slot is free again`,
      (t) => through(t, meshes[i](), kind),
      requirements,
    );
  }

  live(
    `${mode}: containers with and without offloads get the same streams`,
    async (t) => {
      const mesh = meshes[i]();
      const fault = await impair(mesh.switch, 'none');
      const [a, b] = mesh.containers;
      const got: string[][] = [];
      const frames: number[] = [];
      for (const state of ['on', 'off'] as const) {
        for (const container of [a, b]) await offloads(container, 'eth0', state);
        const server = await echoServer(b, overlayAddress(2), overlayAddress(2, true));
        const before = (await mesh.engines[0].status()).endpoints[0].counters['rx-super'];
        for (const inner6 of [false, true])
          await exchange(t, a, overlayAddress(2, inner6), [...TCP_CASES, ...UDP_CASES]);
        frames.push((await mesh.engines[0].status()).endpoints[0].counters['rx-super'] - before);
        got.push(server.streams().sort());
        await server.stop();
      }
      for (const container of [a, b]) await offloads(container, 'eth0', 'on');
      await fault.mend();
      t.is(got[0].length, TCP_CASES.length * 2);
      t.deepEqual(got[1], got[0]);
      t.true(frames[0] > 0, 'super-frames with offloads');
      t.is(frames[1], 0, 'none without');
      await noSlotKept(mesh);
    },
    requirements,
  );
}
