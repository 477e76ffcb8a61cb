/** What holds for every scheduler, and for each of those that IPVS has; that these choose as it does: test/live/ipvs. */
import test from 'ava';
import fc from 'fast-check';
import { SCHEDULERS, type SchedulerName } from '../../../../engine/tables/backends.js';
import { ServiceRig, tally } from '../../../support/services.js';

type Change =
  | { readonly kind: 'add' | 'weigh'; readonly which: number; readonly weight: number }
  | { readonly kind: 'remove' | 'up' | 'down'; readonly which: number }
  | { readonly kind: 'pick'; readonly client: number; readonly port: number }
  | { readonly kind: 'rebuild'; readonly steps: number };

const which = fc.nat({ max: 7 });
const weight = fc.oneof(fc.constantFrom(0, 1, 65535), fc.nat({ max: 12 }));
const change: fc.Arbitrary<Change> = fc.oneof(
  fc.record({ kind: fc.constantFrom('add', 'weigh'), which, weight }),
  fc.record({ kind: fc.constantFrom('remove', 'up', 'down'), which }),
  fc.record({ kind: fc.constant('pick' as const), client: fc.nat(), port: fc.nat({ max: 65535 }) }),
  fc.record({ kind: fc.constant('rebuild' as const), steps: fc.constantFrom(1, 1000, 1_000_000) }),
);

/** Does it to the n-th of those that there are, or adds the next number. */
function apply(rig: ServiceRig, step: Exclude<Change, { kind: 'pick' }>, next: number): void {
  const { members } = rig;
  if (step.kind === 'rebuild') rig.schedulers.rebuild(step.steps);
  else if (step.kind === 'add') rig.add(next, step.weight);
  if (step.kind === 'rebuild' || step.kind === 'add' || members.length === 0) return;
  const n = members[step.which % members.length];
  if (step.kind === 'weigh') rig.weigh(n, step.weight);
  else if (step.kind === 'remove') rig.remove(n);
  else rig.turn(n, step.kind === 'up');
}

for (const name of SCHEDULERS)
  test(`${name}: whatever changes, who is chosen is there, up and of a weight; nobody when there is none`, (t) => {
    fc.assert(
      fc.property(fc.array(change, { maxLength: 60 }), (changes) => {
        const rig = new ServiceRig(name, [], 3);
        const { up, weight: weights, lists, available } = rig.backends;
        let next = 1;
        for (const step of changes) {
          if (step.kind !== 'pick') {
            apply(rig, step, next++);
            continue;
          }
          const may = rig.members.filter((n) => up[rig.number(n)] === 1 && weights[rig.number(n)] > 0);
          const chosen = rig.pick(step.client, step.port);
          if (may.length === 0 ? chosen !== 0 : !may.includes(chosen)) return false;
          if (available[3] !== may.length || lists[3].length !== rig.members.length) return false;
        }
        return true;
      }),
      { numRuns: name === 'maglev' ? 60 : 300 },
    );
    t.pass();
  });

for (const name of SCHEDULERS)
  test(`${name}: a service without backends, or with none that may be chosen, has nobody; one that returns is chosen`, (t) => {
    const rig = new ServiceRig(name);
    t.is(rig.pick(1), 0);
    rig.add(1, 0);
    rig.add(2, 1);
    rig.settle();
    rig.turn(2, false);
    t.is(rig.pick(1), 0);
    rig.turn(2, true);
    t.is(rig.pick(1), 2);
    rig.remove(2);
    t.is(rig.pick(1), 0);
  });

test('a service can be given another scheduler, and closed', (t) => {
  const rig = new ServiceRig('sh', [1, 1, 1]);
  const affine = rig.pick(5);
  t.deepEqual(
    [5, 5, 5].map((client) => rig.pick(client)),
    [affine, affine, affine],
  );
  for (const name of [...SCHEDULERS, ...SCHEDULERS]) {
    rig.backends.open(0, SCHEDULERS.indexOf(name));
    t.true(rig.pick(5) > 0, name);
  }
  rig.backends.close(0);
  t.is(rig.pick(5), 0);
  t.false(rig.schedulers.rebuild(1));
});

test('rr and sh: 10,000 flows over 10 equal backends; within 1 flow, and within 5 %', (t) => {
  const counts = (name: SchedulerName) => [
    ...tally(new ServiceRig(name, Array(10).fill(1)).picks(10_000)).values(),
  ];
  t.deepEqual(counts('rr'), Array(10).fill(1000));
  t.is(counts('sh').length, 10);
  t.true(counts('sh').every((count) => Math.abs(count - 1000) <= 50));
});

const weights = fc.array(fc.nat({ max: 40 }), { minLength: 1, maxLength: 12 });

test('rr: any n flows in a row are spread over those that may be chosen within one', (t) => {
  fc.assert(
    fc.property(weights, fc.nat({ max: 50 }), fc.nat({ max: 50 }), (all, before, count) => {
      fc.pre(all.some((one) => one > 0));
      const rig = new ServiceRig('rr', all);
      rig.picks(before);
      const counts = tally(rig.picks(count));
      const shares = all.flatMap((one, i) => (one > 0 ? [counts.get(i + 1) ?? 0] : []));
      return Math.max(...shares) - Math.min(...shares) <= 1;
    }),
  );
  t.pass();
});

test('wrr: in each round everybody has exactly its weight', (t) => {
  fc.assert(
    fc.property(weights, (all) => {
      const sum = all.reduce((total, one) => total + one, 0);
      fc.pre(sum > 0);
      const rig = new ServiceRig('wrr', all);
      rig.picks(sum);
      const counts = tally(rig.picks(sum));
      return all.every((one, i) => (counts.get(i + 1) ?? 0) === one);
    }),
  );
  t.pass();
});

test('wrr: who is down is passed over, the others keep their proportions, and a round costs no more', (t) => {
  const rig = new ServiceRig('wrr', [65535, 1, 2]);
  rig.picks(10);
  rig.turn(1, false);
  // 65,533 passes of which nobody weighs enough are not gone through: this would take minutes.
  const counts = tally(rig.picks(300_000));
  t.deepEqual([counts.get(2), counts.get(3)], [100_000, 200_000]);
  rig.turn(1, true);
  t.true(rig.picks(100).includes(1));
});

for (const name of ['lc', 'wlc'] as const)
  test(`${name}: chooses one that has the least`, (t) => {
    const counts = fc.nat({ max: 1000 });
    const backend = fc.record({
      weight: fc.nat({ max: 50 }),
      active: counts,
      inactive: counts,
      up: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(backend, { minLength: 1, maxLength: 20 }), (all) => {
        const may = all.flatMap((one, i) => (one.up && one.weight > 0 ? [i] : []));
        fc.pre(may.length > 0);
        const rig = new ServiceRig(
          name,
          all.map(({ weight: one }) => one),
        );
        for (const [i, { active, inactive, up }] of all.entries()) {
          rig.backends.active[rig.number(i + 1)] = active;
          rig.backends.inactive[rig.number(i + 1)] = inactive;
          rig.turn(i + 1, up);
        }
        const load = (i: number) =>
          (all[i].active * 256 + all[i].inactive) / (name === 'wlc' ? all[i].weight : 1);
        const chosen = rig.pick() - 1;
        return may.includes(chosen) && may.every((i) => load(chosen) <= load(i) * (1 + 1e-12));
      }),
    );
    t.pass();
  });

test('wlc: flows that stay are spread as the weights are', (t) => {
  const rig = new ServiceRig('wlc', [5, 0, 3, 2]);
  const counts = tally(rig.picks(1000));
  t.deepEqual(
    [1, 2, 3, 4].map((n) => counts.get(n)),
    [500, undefined, 300, 200],
  );
});

test('sh: a client keeps its backend, whatever its port and number of flows', (t) => {
  const rig = new ServiceRig('sh', [1, 2, 3, 4]);
  for (let client = 0; client < 500; client++) {
    const first = rig.pick(client * 7919);
    for (const port of [1, 80, 65535]) t.is(rig.pick(client * 7919, port), first);
  }
});

test('sh: weights are shares of the clients', (t) => {
  const counts = tally(new ServiceRig('sh', [1, 2, 0, 5]).picks(65_536));
  // Of the 256 places the last round has only a part; one of no weight has places too, and its clients go elsewhere.
  const share = (n: number) => (counts.get(n) ?? 0) / 65_536;
  t.is(share(3), 0);
  for (const [n, weight] of [
    [1, 1],
    [2, 2],
    [4, 5],
  ])
    t.true(Math.abs(share(n) - weight / 8) < 0.12, `${n}: ${share(n)}`);
});

test('sh: who goes down moves its own clients alone, and has them again when it is up', (t) => {
  const rig = new ServiceRig('sh', [3, 1, 2, 1, 1]);
  const before = rig.picks(2000);
  rig.turn(1, false);
  rig.turn(4, false);
  const during = rig.picks(2000);
  t.true(before.every((n, i) => (n === 1 || n === 4 ? during[i] !== 1 && during[i] !== 4 : during[i] === n)));
  rig.turn(1, true);
  rig.turn(4, true);
  t.deepEqual(rig.picks(2000), before);
});

for (const name of SCHEDULERS)
  test(`${name}: a list that is arranged gives what one gives that was made in that order`, (t) => {
    const rig = new ServiceRig(name, [1, 2, 1]);
    rig.remove(2);
    rig.add(4, 3);
    rig.arrange([4, 3, 1]);
    rig.settle();
    const fresh = new ServiceRig(name);
    for (const [n, weight] of [
      [4, 3],
      [3, 1],
      [1, 1],
    ])
      fresh.add(n, weight);
    fresh.settle();
    t.deepEqual(rig.picks(100), fresh.picks(100));
    t.throws(() => rig.arrange([4, 3]), { message: /^service 0 has other backends/ });
  });

test('rr: arranging does not begin anew', (t) => {
  const rig = new ServiceRig('rr', [1, 1, 1, 1]);
  t.deepEqual(rig.picks(2), [4, 3]);
  rig.arrange([2, 1, 3, 4]);
  t.deepEqual(rig.picks(5), [1, 2, 4, 3, 1]);
});
