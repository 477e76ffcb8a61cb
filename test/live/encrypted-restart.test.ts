/** Engines that die and start again under encryption: peers agree anew, and what was recorded before is refused. */
import { setTimeout as delay } from 'node:timers/promises';
import type { ExecutionContext } from 'ava';
import { pythonMissing } from '../../bench/wire-traffic.js';
import { ask } from '../../cli/client.js';
import { waitFor } from '../../cli/lab.js';
import type { SaList } from '../../control/api.js';
import {
  alone,
  assertNonces,
  assertSealed,
  type EspPacket,
  encrypted,
  Flow,
  injectAll,
  outbound,
  type Recording,
  reached,
  record,
  sending,
} from '../support/encrypted.js';
import {
  type Engine,
  live,
  type Mesh,
  overlayAddress,
  overlayMac,
  shared,
  sniff,
  underlayAddress,
} from '../support/live.js';

const requirements = { tools: ['tcpdump'], skip: pythonMissing() };
/** Packets a host that are put on the wire again, at most. */
const MOST_REPLAYED = 600;
/** Why a packet of a former session may be refused, whatever of it is still there. */
const REFUSED = /^esp-decrypt (unknown-spi|replayed|too-old)$/;

const addresses = [overlayAddress(1), overlayAddress(2)] as const;

/** Waits until both have sent so many more packets under the keys they have now. */
async function used(engines: readonly Engine[], packets: number): Promise<void> {
  const sent = async () => (await Promise.all(engines.map(outbound))).map(([row]) => row.packets);
  const before = await sent();
  await waitFor(async () => (await sent()).every((count, i) => count >= before[i] + packets), {
    what: `${packets} packets of each`,
    timeoutMs: 30_000,
  });
}

/** Puts recorded packets on the wire once more, and asserts that each is refused and none delivered. */
async function replay(t: ExecutionContext, mesh: Mesh, recorded: readonly EspPacket[], v6: boolean) {
  const { hosts, containers, engines } = mesh;
  for (const [i, engine] of engines.entries()) {
    const packets = recorded.filter(({ from }) => from === underlayAddress(2 - i, v6)).slice(-MOST_REPLAYED);
    t.true(packets.length > 50, `${packets.length} packets to replay to host ${i + 1}`);
    const dropped = await engine.watchDrops();
    const sniffer = await sniff(containers[i], 'eth0', 'udp port 7300');
    await injectAll(
      hosts[1 - i],
      packets.map((packet) => alone(packet)),
    );
    // Behind them all, and through.
    await reached(t, containers[i], addresses[1 - i]);
    const drops = await dropped();
    t.deepEqual(
      Object.keys(drops).filter((reason) => !REFUSED.test(reason)),
      [],
    );
    t.is(
      Object.values(drops).reduce((sum, count) => sum + count, 0),
      packets.length,
      JSON.stringify(drops),
    );
    await sniffer.stop();
    t.deepEqual(sniffer.frames(), [], 'delivered once more');
  }
}

/** Puts recorded messages of the exchange on the wire once more, and asserts that nobody installs anything. */
async function replayExchange(t: ExecutionContext, mesh: Mesh, messages: Recording['exchange'], v6: boolean) {
  const { hosts, engines, containers } = mesh;
  const spis = async () => (await Promise.all(engines.map((engine) => engine.associations()))).flat();
  const before = (await spis()).map(({ spi }) => spi);
  const dropped = async () =>
    (await Promise.all(engines.map(exchangeDrops))).reduce((sum, each) => sum + each);
  const dropsBefore = await dropped();
  for (const n of [1, 2]) {
    const recorded = messages.filter(({ from }) => from === underlayAddress(n, v6)).map(({ frame }) => frame);
    t.true(recorded.length >= 2, `${recorded.length} messages of host ${n}`);
    await injectAll(hosts[n - 1], recorded);
  }
  // Some are answered, as when they came first: the answers are what is refused.
  await waitFor(async () => (await dropped()) > dropsBefore, {
    what: 'messages of the exchange to be dropped',
  });
  await reached(t, containers[0], addresses[1]);
  t.deepEqual(
    (await spis()).map(({ spi }) => spi),
    before,
  );
}

/** Messages of the exchange that an engine dropped. */
async function exchangeDrops({ socket }: Engine): Promise<number> {
  const { exchangeDrops } = await ask<SaList>('GET', '/sa', { socket });
  return Object.values(exchangeDrops).reduce((sum, count) => sum + count, 0);
}

const variants = [
  { title: 'UDP, uplink', mode: 'uplink', encapsulation: 'udp', v6: false },
  { title: 'UDP, socket', mode: 'socket', encapsulation: 'udp', v6: false },
  { title: 'IP protocol 50 over IPv6', mode: 'auto', encapsulation: 'esp', v6: true },
] as const;

for (const { title, mode, encapsulation, v6 } of variants) {
  const mesh = shared(() => encrypted({ hosts: 2, encapsulation, v6, underlay: { mode } }));

  for (const victims of [[0], [0, 1]]) {
    const who = victims.length === 1 ? 'an engine' : 'both engines';
    live(
      `ESP in ${title}: ${who} killed under traffic and started again: new keys, and old packets are refused`,
      async (t) => {
        const { hosts, containers, engines } = mesh();
        await reached(t, containers[0], addresses[1]);
        // What a kernel keeps while it resolves a neighbour may overtake what comes behind.
        for (const [i, container] of containers.entries())
          container.ip('neigh', 'replace', addresses[1 - i], 'lladdr', overlayMac(2 - i), 'dev', 'eth0');
        const recording = await record(mesh(), hosts[0]);
        const flow = await Flow.between(containers, addresses, 500);
        const before = (await Promise.all(engines.map(outbound))).map(([row]) => row.spi);
        await used(engines, 100);
        await Promise.all(victims.map((i) => engines[i].kill()));
        await Promise.all(victims.map((i) => engines[i].start()));
        for (const engine of engines) await sending(engine, 1);
        await reached(t, containers[0], addresses[1]);
        await used(engines, 50);
        const reports = await flow.stop();
        const { esp, ...rest } = await recording.stop();
        for (const { sent, last, duplicates, reordered } of reports) {
          t.is(last, sent - 1, 'the flow goes on to its end');
          t.deepEqual([duplicates, reordered], [0, 0]);
        }

        assertSealed(t, { esp, ...rest });
        const senders = assertNonces(t, esp, false);
        const now = (await Promise.all(engines.map(outbound))).map(([row]) => row.spi);
        for (const i of [0, 1]) {
          t.not(now[i], before[i]);
          const spis = senders.get(underlayAddress(i + 1, v6));
          t.true(spis?.has(before[i]), 'the old keys were in use');
          t.true(spis?.has(now[i]), 'the new keys are in use');
        }
        await replay(
          t,
          mesh(),
          esp.filter(({ spi }) => !now.includes(spi)),
          v6,
        );
        await replayExchange(t, mesh(), rest.exchange, v6);
      },
      requirements,
    );
  }
}

const fragile = shared(() => encrypted({ hosts: 2, encapsulation: 'udp' }));

for (const ms of [0, 3, 10, 30]) {
  live(
    `killed ${ms} ms after new keys were asked for, and started again: both agree and nothing plain leaves`,
    async (t) => {
      const { hosts, containers, engines } = fragile();
      const recording = await record(fragile(), hosts[0]);
      const asked = ask('POST', '/sa/rotate', { socket: engines[1].socket }).catch((error: Error) => error);
      await delay(ms);
      await engines[0].kill();
      await engines[0].start();
      await asked;
      for (const engine of engines) await sending(engine, 1);
      await reached(t, containers[0], addresses[1]);
      const [[mine], [theirs]] = await Promise.all(engines.map(outbound));
      t.is(mine.session, theirs.session);
      const { esp, ...rest } = await recording.stop();
      assertSealed(t, { esp, ...rest });
      assertNonces(t, esp, false);
    },
    requirements,
  );
}
