/** Traffic for `balance` is what it says: every frame is of a flow, translated, and goes to a backend or comes from one. */
import test from 'ava';
import { type BalanceTraffic, balanceChain } from '../../bench/balance.js';
import { IMIX } from '../../bench/traffic.js';
import { SCHEDULERS } from '../../engine/tables/backends.js';
import { badChecksums, ends } from '../support/nat.js';

const usual: BalanceTraffic = {
  ...{ chain: ['balance'], flows: 512, frames: 1024, lengths: [64], services: 1, backends: 10 },
  ...{ scheduler: 'rr', what: 'to-backends' },
};

/** Of the frames of a pass: which ends they have, and that their checksums are right. */
function delivered(traffic: BalanceTraffic): { ends: string[]; bad: string[]; made: number } {
  const chain = balanceChain(traffic);
  const { u8, off, len } = chain.tools.context.frames;
  const found: string[] = [];
  const bad: string[] = [];
  chain.observe({
    delivered(frame) {
      const bytes = u8.slice(off[frame], off[frame]! + len[frame]!);
      found.push(ends(bytes));
      bad.push(...badChecksums(bytes));
    },
    dropped: (_frame, _index, element, reason) => bad.push(`${element}: ${reason}`),
    breath() {},
  });
  return { ends: found, bad, made: chain.totals().flows };
}

for (const scheduler of SCHEDULERS)
  test(`new flows by ${scheduler}: each frame makes its own`, (t) => {
    const { ends, bad, made } = delivered({ ...usual, frames: 512, scheduler, what: 'new' });
    t.deepEqual([new Set(ends).size, bad, made], [512, [], 512]);
    t.true(ends.every((one) => / > 10\.128\.0\.\d:8080$/.test(one)));
  });

for (const [scheduler, most] of [
  ['rr', 1000],
  ['wrr', 1000],
  ['lc', 1000],
  ['wlc', 1000],
  ['sh', 1050],
  ['maglev', 1050],
] as const)
  test(`10,000 flows over 10 backends by ${scheduler}: nobody has more than ${most}`, (t) => {
    const { ends } = delivered({ ...usual, flows: 10_000, frames: 10_000, scheduler, what: 'new' });
    const counts = new Map<string, number>();
    for (const one of ends) {
      const backend = one.split(' > ')[1]!;
      counts.set(backend, (counts.get(backend) ?? 0) + 1);
    }
    t.is(counts.size, 10);
    t.true(Math.max(...counts.values()) <= most && Math.min(...counts.values()) >= 2000 - most);
  });

test('established flows to backends, and from them', (t) => {
  const there = delivered(usual);
  t.deepEqual([there.ends.length, there.bad, there.made], [1024, [], 512]);
  const back = delivered({ ...usual, what: 'from-backends' });
  t.deepEqual([back.ends.length, back.bad], [1024, []]);
  t.true(back.ends.every((one) => one.startsWith('10.64.0.0:80 > 10.0.')));
});

test('many services: one after another is asked for', (t) => {
  const { ends, bad } = delivered({ ...usual, services: 256, backends: 2560 });
  t.deepEqual(bad, []);
  const backends = new Set(ends.map((one) => one.split(' > ')[1]));
  // Two flows of each service, by turns.
  t.is(backends.size, 512);
});

test('the whole way out takes them', (t) => {
  const chain = balanceChain({
    ...usual,
    chain: ['bridge', 'balance', 'nat', 'vxlan-encap', 'esp-encrypt'],
    frames: 1200,
    lengths: IMIX,
  });
  chain.pass();
  const { frames, delivered, drops, flows } = chain.totals();
  t.deepEqual([frames, delivered, drops, flows], [2400, 2400, {}, 1024]);
});
