/** What fits through an encrypted network: the MTU inside is the largest whose packets the underlay carries whole. */
import { pythonMissing } from '../../bench/wire-traffic.js';
import { ping } from '../../cli/lab.js';
import { alone, assertSealed, type Encapsulation, encrypted, reached, record } from '../support/encrypted.js';
import { linkOf, live, overlayAddress, shared } from '../support/live.js';

const requirements = { tools: ['tcpdump'], skip: pythonMissing() };

interface Variant {
  readonly encapsulation: Encapsulation;
  readonly mode: string;
  readonly v6: boolean;
  readonly outside: number;
  readonly inside: number;
}

const variants: readonly Variant[] = [
  { encapsulation: 'udp', mode: 'uplink', v6: false, outside: 1500, inside: 1408 },
  { encapsulation: 'udp', mode: 'socket', v6: false, outside: 1500, inside: 1408 },
  { encapsulation: 'esp', mode: 'auto', v6: false, outside: 1500, inside: 1416 },
  { encapsulation: 'udp', mode: 'uplink', v6: true, outside: 1500, inside: 1388 },
  { encapsulation: 'esp', mode: 'auto', v6: true, outside: 1500, inside: 1396 },
  { encapsulation: 'udp', mode: 'uplink', v6: false, outside: 9000, inside: 8908 },
  { encapsulation: 'udp', mode: 'socket', v6: true, outside: 9000, inside: 8888 },
  { encapsulation: 'esp', mode: 'auto', v6: false, outside: 9000, inside: 8916 },
];

for (const { encapsulation, mode, v6, outside, inside } of variants) {
  const mesh = shared(() => encrypted({ hosts: 2, encapsulation, v6, mtu: outside, underlay: { mode } }));
  const title = `${encapsulation}, underlay ${mode} of ${outside} bytes over IPv${v6 ? 6 : 4}`;

  live(
    `${title}: the MTU inside is ${inside}, which just fits, and one byte more is dropped and counted`,
    async (t) => {
      const { hosts, containers, engines } = mesh();
      const [a, b] = containers;
      t.is(linkOf(a, 'eth0')?.mtu, inside);
      t.is((await engines[0].status()).networks[0].mtu, inside);
      await reached(t, a, overlayAddress(2));
      const dropped = await Promise.all(engines.map((engine) => engine.watchDrops()));
      const recording = await record(mesh(), hosts[0]);
      for (const size of [inside - 28, inside - 29, inside - 31])
        await reached(t, a, overlayAddress(2), { size, df: true });
      await reached(t, a, overlayAddress(2, true), { size: inside - 48, df: true });
      for (const each of dropped) t.deepEqual(await each(), {});
      const recorded = await recording.stop();
      assertSealed(t, recorded);
      const longest = Math.max(...recorded.esp.map((packet) => alone(packet).length - 14));
      // ESP pads to four bytes.
      t.true(longest <= outside && longest > outside - 4, `${longest} bytes`);

      for (const each of [a, b]) each.ip('link', 'set', 'eth0', 'mtu', String(outside + 100));
      const { path } = (await engines[0].status()).underlay;
      const way = path === 'socket' || encapsulation === 'esp' ? 'underlay:esp' : 'uplink';
      const size = inside - 28 + 1 + (outside - longest);
      t.is((await ping(a, overlayAddress(2), { count: 2, size, df: true })).received, 0);
      for (const each of [a, b]) each.ip('link', 'set', 'eth0', 'mtu', String(inside));
      t.deepEqual(await dropped[0](), { [`${way} too-big`]: 2 });
      const { counters } = (await engines[0].status()).underlay;
      t.true(counters['tx-frames'] >= 12 && counters['rx-frames'] >= 12, 'whatever the way, it is counted');
    },
    requirements,
  );
}
