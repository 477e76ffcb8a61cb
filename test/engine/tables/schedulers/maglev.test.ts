import test from 'ava';
import fc from 'fast-check';
import { Backends, identityOf, MAGLEV } from '../../../../engine/tables/backends.js';
import { createSchedulers } from '../../../../engine/tables/schedulers/index.js';
import { ip } from '../../../support/frames.js';
import { ServiceRig, tally } from '../../../support/services.js';

/** So many that each of 12,288 cells is met by one at least. */
const CLIENTS = 65_536;

/** Backends by number, with their weights. */
type Weights = ReadonlyMap<number, number>;

function rigOf(weights: Weights): ServiceRig {
  const rig = new ServiceRig('maglev');
  for (const [n, weight] of weights) rig.add(n, weight);
  rig.settle();
  return rig;
}

const chosen = (weights: Weights): number[] => rigOf(weights).picks(CLIENTS);

const shareOf = (weights: Weights, n: number): number =>
  (weights.get(n) ?? 0) / [...weights.values()].reduce((sum, weight) => sum + weight, 0);

/** How many of all clients have another backend. */
const moved = (before: readonly number[], after: readonly number[]): number =>
  before.filter((n, i) => n !== after[i]).length / before.length;

/** Other random sets are other addresses: numbers are part of those. */
const sets = (weight: fc.Arbitrary<number>): fc.Arbitrary<Map<number, number>> =>
  fc
    .uniqueArray(fc.record({ n: fc.integer({ min: 1, max: 4000 }), weight }), {
      minLength: 2,
      maxLength: 40,
      selector: ({ n }) => n,
    })
    .map((all) => new Map(all.map(({ n, weight: one }) => [n, one])));
const equal = sets(fc.constant(1));
const weighted = sets(fc.integer({ min: 1, max: 20 }));

/** The same sets in each run: a bound that is a matter of chance, however improbable, must not be a matter of the run. */
const fixed = { numRuns: 40, seed: 20260 };

test('10,000 flows over 10 equal backends are within 5 %: of consecutive clients, and of consecutive ports of one', (t) => {
  const rig = new ServiceRig('maglev', Array(10).fill(1));
  const within = (picks: number[]) =>
    [...tally(picks).values()].every((count) => Math.abs(count - 1000) <= 50) && tally(picks).size === 10;
  t.true(within(rig.picks(10_000)));
  t.true(within(Array.from({ length: 10_000 }, (_, i) => rig.pick(0x0a000001, 32768 + i))));
});

test('every backend has its share of the clients, within 5 % of that', (t) => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 10 }), { minLength: 1, maxLength: 12 }), (all) => {
      const weights = new Map(all.map((weight, i) => [i + 1, weight]));
      const counts = tally(chosen(weights));
      return all.every(
        (_, i) => Math.abs((counts.get(i + 1) ?? 0) / CLIENTS / shareOf(weights, i + 1) - 1) < 0.05,
      );
    }),
    fixed,
  );
  t.pass();
});

test('whatever their order, and the numbers that they have in the table, the answer is the same', (t) => {
  fc.assert(
    fc.property(weighted, fc.array(fc.nat()), fc.nat({ max: 50 }), (weights, keys, others) => {
      const order = [...weights].map((entry, i) => ({ entry, key: keys[i % (keys.length || 1)] ?? -i }));
      const shuffled = order.sort((a, b) => a.key - b.key).map(({ entry }) => entry);
      const rig = new ServiceRig('maglev', [], 5);
      for (let i = 0; i < others; i++) rig.add(10_000 + i);
      for (const [n, weight] of shuffled) rig.add(n, weight);
      for (let i = 0; i < others; i++) rig.remove(10_000 + i);
      rig.settle();
      return rig.picks(3000).join() === rigOf(weights).picks(3000).join();
    }),
    { numRuns: 30 },
  );
  t.pass();
});

for (const [what, arbitrary] of [
  ['equal weights', equal],
  ['any weights', weighted],
] as const)
  test(`one that goes or comes moves its share of the clients and at most 1 % more: ${what}`, (t) => {
    const most = Math.max(
      ...fc.sample(fc.tuple(arbitrary, fc.nat()), fixed).map(([weights, at]) => {
        const n = [...weights.keys()][at % weights.size];
        const without = new Map([...weights].filter(([other]) => other !== n));
        return moved(chosen(weights), chosen(without)) - shareOf(weights, n);
      }),
    );
    t.log(`at most ${(100 * most).toFixed(2)} % more`);
    t.true(most <= 0.01, `${most}`);
  });

test('one that gets another weight moves its larger share at most, and 1 % more', (t) => {
  const samples = fc.sample(fc.tuple(weighted, fc.nat(), fc.integer({ min: 0, max: 40 })), fixed);
  for (const [weights, at, weight] of samples) {
    const n = [...weights.keys()][at % weights.size];
    const after = new Map(weights).set(n, weight);
    const share = Math.max(shareOf(weights, n), shareOf(after, n));
    t.true(moved(chosen(weights), chosen(after)) <= share + 0.01);
  }
});

test('who is down moves its own clients alone, and they are spread over the others', (t) => {
  fc.assert(
    fc.property(weighted, fc.array(fc.nat(), { minLength: 1, maxLength: 4 }), (weights, at) => {
      const rig = rigOf(weights);
      const before = rig.picks(5000);
      const down = new Set(at.map((i) => [...weights.keys()][i % weights.size]));
      fc.pre(down.size < weights.size);
      for (const n of down) rig.turn(n, false);
      const during = rig.picks(5000);
      for (const n of down) rig.turn(n, true);
      return (
        before.every((n, i) => (down.has(n) ? !down.has(during[i]) : during[i] === n)) &&
        rig.picks(5000).join() === before.join()
      );
    }),
    { numRuns: 30 },
  );
  const rig = rigOf(new Map(Array.from({ length: 10 }, (_, i) => [i + 1, 1])));
  const before = rig.picks(CLIENTS);
  rig.turn(4, false);
  const heirs = tally(rig.picks(CLIENTS).filter((_, i) => before[i] === 4));
  t.is(heirs.size, 9);
  t.true([...heirs.values()].every((count) => Math.abs(count / CLIENTS / (0.1 / 9) - 1) < 0.25));
});

test('with a port of 0 a client keeps its backend; with its ports it has several', (t) => {
  const rig = new ServiceRig('maglev', [1, 1, 1, 1]);
  for (let client = 1; client < 100; client++) {
    t.is(new Set([0, 0, 0].map((port) => rig.pick(client, port))).size, 1);
    t.true(new Set(Array.from({ length: 50 }, (_, port) => rig.pick(client, 1024 + port))).size === 4);
  }
});

test('a table that is made in small pieces is the one that is made at once; until then the old one serves', (t) => {
  const weights = new Map(Array.from({ length: 9 }, (_, i) => [i + 1, i + 1] as const));
  const rig = rigOf(weights);
  const before = rig.picks(5000);
  rig.remove(9);
  rig.add(10, 5);
  let pieces = 0;
  for (; rig.schedulers.rebuild(500); pieces++)
    if (pieces === 20) {
      const during = rig.picks(5000);
      t.true(before.every((n, i) => (n === 9 ? during[i] !== 9 && during[i] !== 0 : during[i] === n)));
    }
  t.true(pieces > 100, `${pieces} pieces`);
  const after = new Map([...weights].filter(([n]) => n !== 9)).set(10, 5);
  t.deepEqual(rig.picks(5000), rigOf(after).picks(5000));
});

test('a service that changes while its table is made gets that of the last change', (t) => {
  const rig = new ServiceRig('maglev', [1, 1, 1]);
  rig.weigh(1, 5);
  t.true(rig.schedulers.rebuild(5000));
  rig.weigh(1, 3);
  rig.add(4, 2);
  rig.settle();
  const weights = new Map([
    [1, 3],
    [2, 1],
    [3, 1],
    [4, 2],
  ]);
  t.deepEqual(rig.picks(5000), rigOf(weights).picks(5000));
});

test('before its first table is made, a service chooses all the same', (t) => {
  const rig = new ServiceRig('maglev');
  for (let n = 1; n <= 5; n++) rig.add(n);
  rig.turn(3, false);
  t.deepEqual([...tally(rig.picks(1000)).keys()].sort(), [1, 2, 4, 5]);
});

test('500 backends: all have clients, and one that goes moves its share and at most 1 % more', (t) => {
  const weights = new Map(Array.from({ length: 500 }, (_, i) => [i + 1, 1]));
  const before = chosen(weights);
  t.is(tally(before).size, 500);
  const after = new Map([...weights].filter(([n]) => n !== 250));
  t.true(moved(before, chosen(after)) <= 1 / 500 + 0.01);
});

test('IPv6 backends are hashed by their addresses, not by the numbers that a node gives those', (t) => {
  const addresses = Array.from({ length: 8 }, (_, i) => ip(`fd00:9::${i + 1}`));
  t.is(new Set(addresses.map(identityOf)).size, 8);
  const [one, other] = [0, 100].map((first) => {
    const backends = new Backends(1, 8);
    const { pick, rebuild } = createSchedulers(backends);
    backends.open(0, MAGLEV);
    for (const [i, address] of addresses.entries()) backends.add(0, first - i, 80, 1, identityOf(address));
    while (rebuild(1 << 30));
    return Array.from({ length: 1000 }, (_, client) => first - backends.address[pick(0, client, 0)]);
  });
  t.deepEqual(one, other);
  t.is(tally(one).size, 8);
});
