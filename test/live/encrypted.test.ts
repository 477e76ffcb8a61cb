/** Encrypted networks between Weft hosts: what containers send arrives, and nothing of it can be read on the way. */
import { randomBytes } from 'node:crypto';
import type { ExecutionContext } from 'ava';
import { iperf3, ping, waitFor } from '../../cli/lab.js';
import { encrypted } from '../support/encrypted.js';
import { live, type Mesh, overlayAddress, shared, sightings, sniff } from '../support/live.js';

async function withoutDrops(t: ExecutionContext, mesh: Mesh, body: () => Promise<void>): Promise<void> {
  const watches = await Promise.all(mesh.engines.map((engine) => engine.watchDrops()));
  await body();
  for (const dropped of watches) t.deepEqual(await dropped(), {});
}

const variants = [4, 6].flatMap((outside) =>
  (
    [
      { mode: 'auto', encapsulation: 'udp' },
      { mode: 'socket', encapsulation: 'udp' },
      { mode: 'auto', encapsulation: 'esp' },
    ] as const
  ).map((variant) => ({ ...variant, outside })),
);

for (const { outside, mode, encapsulation } of variants) {
  const way = encapsulation === 'esp' ? 'IP protocol 50' : `UDP, underlay ${mode}`;
  const title = `encrypted over IPv${outside}, ESP in ${way}`;
  const mesh = shared(() => encrypted({ hosts: 2, encapsulation, v6: outside === 6, underlay: { mode } }));

  live(
    `${title}: pings arrive, and only ESP is on the wire`,
    async (t) => {
      const [a] = mesh().containers;
      const marker = randomBytes(16);
      const sniffer = await sniff(mesh().hosts[0], 'under0', '', 'inout');
      await withoutDrops(t, mesh(), async () => {
        for (const v6 of [false, true]) {
          const result = await ping(a, overlayAddress(2, v6), {
            count: 10,
            interval: 0.02,
            deadlineS: 10,
            pattern: marker.toString('hex'),
          });
          t.true(result.received >= 10);
          t.is(result.duplicates, 0);
        }
      });
      await waitFor(() => sniffer.frames().length >= 40, { what: 'ESP packets on the wire' });
      await sniffer.stop();
      t.is(sightings(sniffer, marker), 0, 'a pattern of the pings is on the wire in plain');
      t.is((await mesh().engines[0].status()).slotsInUse, 0);
    },
    { tools: ['tcpdump'] },
  );

  live(
    `${title}: TCP both ways, without a drop`,
    async (t) => {
      const [a, b] = mesh().containers;
      await withoutDrops(t, mesh(), async () => {
        for (const reverse of [false, true]) {
          const { bitsPerSecond } = await iperf3(a, b, overlayAddress(2), { bytes: 20e6, reverse });
          t.true(bitsPerSecond > 0);
        }
      });
      t.is((await mesh().engines[1].status()).slotsInUse, 0);
    },
    { tools: ['iperf3'] },
  );
}
