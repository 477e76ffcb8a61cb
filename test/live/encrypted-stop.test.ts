/** Engines that end and start in an orderly way under encrypted traffic: at no moment does a plain frame leave. */
import { setTimeout as delay } from 'node:timers/promises';
import { pythonMissing } from '../../bench/wire-traffic.js';
import { assertSealed, encrypted, Flow, reached, record, sending } from '../support/encrypted.js';
import { live, overlayAddress, shared } from '../support/live.js';

const requirements = { tools: ['tcpdump'], skip: pythonMissing() };
const addresses = [1, 2].map((n) => overlayAddress(n));

const variants = [
  { title: 'UDP, uplink', mode: 'uplink', encapsulation: 'udp', v6: false },
  { title: 'UDP, socket', mode: 'socket', encapsulation: 'udp', v6: false },
  { title: 'IP protocol 50 over IPv6', mode: 'auto', encapsulation: 'esp', v6: true },
] as const;

for (const { title, mode, encapsulation, v6 } of variants) {
  const mesh = shared(() => encrypted({ hosts: 2, encapsulation, v6, underlay: { mode } }));

  live(
    `ESP in ${title}: SIGTERM and a start under traffic, on either host and on both: nothing plain leaves`,
    async (t) => {
      const { hosts, containers, engines } = mesh();
      await reached(t, containers[0], addresses[1]);
      const recording = await record(mesh(), hosts[0]);
      for (const victims of [[0], [1], [0, 1]]) {
        const flow = await Flow.between(containers, addresses, 1000, 7300 + victims.length * 2 + victims[0]);
        await delay(100);
        for (const { code } of await Promise.all(victims.map((i) => engines[i].stop()))) t.is(code, 0);
        await Promise.all(victims.map((i) => engines[i].start()));
        for (const engine of engines) await sending(engine, 1);
        await reached(t, containers[0], addresses[1]);
        await flow.stop();
      }
      const recorded = await recording.stop();
      assertSealed(t, recorded);
      t.true(recorded.esp.length > 1000);
    },
    requirements,
  );
}
