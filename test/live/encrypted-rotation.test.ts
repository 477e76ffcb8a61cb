/**
 * Traffic keys made anew under traffic: nothing is lost, nothing is out of order, and no number and no IV is on the
 * wire twice under one key.
 */
import { pythonMissing } from '../../bench/wire-traffic.js';
import { ask } from '../../cli/client.js';
import { iperf3, waitFor } from '../../cli/lab.js';
import {
  assertNonces,
  assertSealed,
  assertWhole,
  encrypted,
  Flow,
  kernelDrops,
  outbound,
  reached,
  record,
} from '../support/encrypted.js';
import { type Engine, live, overlayAddress, shared, underlayAddress } from '../support/live.js';

const ROTATIONS = 10;
const requirements = { tools: ['tcpdump', 'iperf3'], skip: pythonMissing() };

const rotate = ({ socket }: Engine): Promise<{ peers: number }> => ask('POST', '/sa/rotate', { socket });

/** Waits until both hosts have sent so many packets under one session. @returns its name. */
async function used(engines: readonly Engine[], packets: number): Promise<string> {
  return waitFor(
    async () => {
      const [[mine], [theirs]] = await Promise.all(engines.map(outbound));
      const both = mine.session === theirs.session && Math.min(mine.packets, theirs.packets) >= packets;
      return both ? mine.session : undefined;
    },
    { what: `${packets} packets under one session`, timeoutMs: 10_000 },
  );
}

const variants = [
  { title: 'UDP, uplink', mode: 'uplink', encapsulation: 'udp', v6: false },
  { title: 'UDP, socket', mode: 'socket', encapsulation: 'udp', v6: false },
  { title: 'IP protocol 50', mode: 'auto', encapsulation: 'esp', v6: false },
  { title: 'UDP over IPv6, uplink', mode: 'uplink', encapsulation: 'udp', v6: true },
] as const;

for (const { title, mode, encapsulation, v6 } of variants) {
  const mesh = shared(() => encrypted({ hosts: 2, encapsulation, v6, underlay: { mode } }));

  live(
    `ESP in ${title}: ten rotations under traffic both ways lose nothing and repeat no nonce`,
    async (t) => {
      const { containers, engines, hosts, lab } = mesh();
      const [a, b] = containers;
      await reached(t, a, overlayAddress(2));
      const dropped = await Promise.all(engines.map((engine) => engine.watchDrops()));
      const before = await kernelDrops(lab.namespaces);
      const recording = await record(mesh(), hosts[0]);
      const flow = await Flow.between(containers, [overlayAddress(1), overlayAddress(2)]);
      const stream = iperf3(a, b, overlayAddress(2), { seconds: 5, bandwidth: 50e6 });
      const sessions = new Set([await used(engines, 1)]);
      for (let i = 0; i < ROTATIONS; i++) {
        t.is((await rotate(engines[i % 2])).peers, 1);
        sessions.add(await used(engines, i % 3 === 2 ? 1 : 300));
      }
      t.is(sessions.size, ROTATIONS + 1, 'each time new ones');
      t.true((await stream).bitsPerSecond > 0);
      const reports = await flow.stop();
      assertWhole(t, reports, (await kernelDrops(lab.namespaces)) - before);
      const { esp, ...rest } = await recording.stop();
      for (const each of dropped) t.deepEqual(await each(), {});

      assertSealed(t, { esp, ...rest });
      const senders = assertNonces(t, esp);
      for (const n of [1, 2]) {
        // A session that is replaced at once may have had nothing to carry one way, and where answers come late, there
        // may be one more than was asked for.
        const spis = senders.get(underlayAddress(n, v6))?.size ?? 0;
        t.true(spis > ROTATIONS / 2 && spis <= 2 * ROTATIONS, `${spis} SPIs of host ${n}`);
        t.log(`host ${n}: ${esp.filter(({ from }) => from === underlayAddress(n, v6)).length} ESP packets`);
      }
      for (const engine of engines) t.is((await engine.status()).slotsInUse, 0);
    },
    requirements,
  );
}

const busy = shared(() => encrypted({ hosts: 2, encapsulation: 'udp' }));

live(
  'both hosts rotate at the same moment, again and again: nothing is lost, and both end in one session',
  async (t) => {
    const { containers, engines, lab } = busy();
    await reached(t, containers[0], overlayAddress(2));
    const dropped = await Promise.all(engines.map((engine) => engine.watchDrops()));
    const before = await kernelDrops(lab.namespaces);
    const flow = await Flow.between(containers, [overlayAddress(1), overlayAddress(2)], 1000);
    const sessions = new Set([await used(engines, 1)]);
    for (let i = 0; i < 5; i++) {
      const results = await Promise.all(engines.map(rotate));
      t.deepEqual(
        results.map(({ peers }) => peers),
        [1, 1],
      );
      sessions.add(await used(engines, 100));
    }
    t.is(sessions.size, 6);
    assertWhole(t, await flow.stop(), (await kernelDrops(lab.namespaces)) - before);
    for (const each of dropped) t.deepEqual(await each(), {});
  },
  requirements,
);
