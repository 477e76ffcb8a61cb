import test from 'ava';
import fc from 'fast-check';
import {
  ESTABLISHED,
  FIN_BOTH,
  LONGEST_SILENCE,
  NEW_IN,
  SYN_OUT,
  TWO_SIDED,
  WORTHS,
} from '../../../engine/tables/connection.js';
import {
  EXPIRY,
  EXTERNAL,
  FLOW_SHIFT,
  Flows,
  flowBytes,
  flowKeyHash,
  IN,
  IN_PORTS,
  INSIDE,
  NO_FLOW,
  OUT,
  OUT_KEY,
  OUT_PORTS,
  REMOTE_END,
  STATE,
  WHEEL_SECONDS,
} from '../../../engine/tables/flows.js';

const SEED = 99;
const NOW = 5000;

/** Six words as `create` takes them. */
type Ends = readonly [
  inside: number,
  remote: number,
  out: number,
  key: number,
  external: number,
  back: number,
];

/** Flow `n`: few different words, so that keys differ in one of them only. */
function ends(n: number): Ends {
  const key = 17 | ((((n >>> 3) % 3) + 1) << 16);
  const remote = 0xc6336407 + (n & 3);
  return [
    0x0a000001 + ((n >>> 2) & 1),
    remote,
    (n << 16) | 4000,
    key,
    0xcb007101,
    (n << 16) | (n & 0xffff),
  ].map((word) => word | 0) as unknown as Ends;
}

function find(flows: Flows, own: number, remote: number, ports: number, key: number): number {
  return flows.find(flowKeyHash(flows.seed, own, remote, ports, key), own, remote, ports, key);
}

/** What each direction of a flow's packets finds. */
function both(flows: Flows, [inside, remote, out, key, external, back]: Ends): [number, number] {
  return [find(flows, inside, remote, out, key), find(flows, external, remote, back, key & 0xff)];
}

function add(flows: Flows, n: number, second = NOW + 300): number {
  const flow = flows.create(...ends(n));
  if (flow !== NO_FLOW) flows.setExpiry(flow, second);
  return flow;
}

/** Every word of the index leads to a flow that is there, and every flow is led to twice. */
function consistent(flows: Flows): boolean {
  const refs = flows.index.filter((word) => word !== 0).map((word) => word & flows.refMask);
  const live = new Set<number>();
  flows.forEach((flow) => {
    live.add(flow * 2 + OUT).add(flow * 2 + IN);
  });
  return refs.length === live.size && refs.every((ref) => live.has(ref)) && live.size === flows.size * 2;
}

test('a search looks at few words of the index, also when it is as full as it gets', (t) => {
  const flows = new Flows(21_845, SEED, NOW);
  t.deepEqual(flows.probes(), { mean: 0, longest: 0 });
  for (let n = 0; n < 21_845; n++) add(flows, n);
  // Of linear probing at a load of two thirds: two on average (Knuth, TAOCP 3, 6.4).
  const { mean, longest } = flows.probes();
  t.true(mean > 1.8 && mean < 2.2 && longest >= mean, `${mean}, ${longest}`);
});

test('a flow is found from both sides, and its words are those it was made of', (t) => {
  const flows = new Flows(10, SEED, NOW);
  const flow = add(flows, 5);
  t.deepEqual(both(flows, ends(5)), [flow * 2 + OUT, flow * 2 + IN]);
  const words = [INSIDE, REMOTE_END, OUT_PORTS, OUT_KEY, EXTERNAL, IN_PORTS].map(
    (word) => flows.words[(flow << FLOW_SHIFT) + word]!,
  );
  t.deepEqual(words, [...ends(5)]);
  for (let word = 0; word < 4; word++) {
    const other = [...ends(5)] as [number, number, number, number, number, number];
    other[word]! ^= 1 << (word * 5);
    t.is(both(flows, other)[0], NO_FLOW, `word ${word} of the key`);
  }
});

test('a table is full at its capacity, and takes the next when one goes', (t) => {
  for (const capacity of [1, 2, 3, 21, 85]) {
    const flows = new Flows(capacity, SEED, NOW);
    const made = Array.from({ length: capacity }, (_, n) => add(flows, n));
    t.is(new Set(made).size, capacity);
    t.is(add(flows, capacity), NO_FLOW);
    flows.remove(made[0]!);
    t.not(add(flows, capacity), NO_FLOW);
    t.true(consistent(flows));
  }
});

test('capacities that cannot be are refused', (t) => {
  for (const capacity of [0, -1, Number.NaN, (1 << 22) + 1])
    t.throws(() => new Flows(capacity, 1, 0), { message: /capacity/ });
});

test('entries, index and wheel take at most 96 bytes a flow', (t) => {
  for (const capacity of [1000, 21_845, 33_696, 65_536, 174_763, 1_000_000]) {
    const { bytes } = new Flows(capacity, SEED, NOW);
    t.true(bytes / capacity <= 96.2, `${bytes / capacity} at ${capacity}`);
  }
});

test('property: the table is a map from both keys, whatever comes and goes', (t) => {
  const steps = fc.array(fc.tuple(fc.integer({ min: 0, max: 60 }), fc.boolean()), { maxLength: 200 });
  fc.assert(
    fc.property(steps, fc.integer(), (list, seed) => {
      // So small an index that runs wrap round its end and overlap.
      const flows = new Flows(20, seed, NOW);
      const model = new Map<number, number>();
      for (const [n, remove] of list) {
        const known = model.get(n);
        if (remove && known !== undefined) {
          flows.remove(known);
          model.delete(n);
        } else if (!remove && known === undefined) {
          const flow = add(flows, n);
          t.is(flow === NO_FLOW, model.size === 20);
          if (flow !== NO_FLOW) model.set(n, flow);
        }
      }
      t.is(flows.size, model.size);
      for (let n = 0; n <= 60; n++) {
        const flow = model.get(n);
        t.deepEqual(both(flows, ends(n)), flow === undefined ? [0, 0] : [flow * 2, flow * 2 + 1]);
      }
      t.true(consistent(flows));
    }),
    { numRuns: 200 },
  );
});

test('property: a flow goes in the second in which it expires, and not before, however it is prolonged', (t) => {
  const step = fc.record({
    flow: fc.integer({ min: 0, max: 9 }),
    // As far as the longest timeout.
    for: fc.oneof(fc.integer({ min: 0, max: 400 }), fc.integer({ min: 7000, max: WHEEL_SECONDS - 1 })),
    wait: fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 300 }), fc.integer({ min: 0, max: 20_000 })),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const flows = new Flows(10, SEED, NOW);
      const model = new Map<number, { flow: number; expiry: number }>();
      let now = NOW;
      for (const { flow: n, for: seconds, wait } of steps) {
        const known = model.get(n);
        const expiry = now + seconds;
        if (known === undefined) model.set(n, { flow: add(flows, n, expiry), expiry });
        else {
          if (expiry < known.expiry) flows.hasten(known.flow, expiry);
          else flows.words[(known.flow << FLOW_SHIFT) + EXPIRY] = expiry;
          known.expiry = expiry;
        }
        now += wait;
        const gone: number[] = [];
        flows.own(0, { over: () => 0, leave: (flow) => gone.push(flow) });
        flows.expire(now, 1e9);
        const due = [...model].filter(([, one]) => one.expiry <= now);
        t.deepEqual(gone.sort(), due.map(([, one]) => one.flow).sort());
        for (const [key] of due) model.delete(key);
        t.is(flows.size, model.size);
      }
      t.true(consistent(flows));
    }),
    { numRuns: 200 },
  );
});

test('expiry never looks at more than its budget, and comes to its end', (t) => {
  const flows = new Flows(1000, SEED, NOW);
  for (let n = 0; n < 1000; n++) add(flows, n, NOW + 10 + (n & 1));
  // Prolonged, so that they are looked at and stay.
  flows.forEach((flow) => {
    if (flow % 3 === 0) flows.words[(flow << FLOW_SHIFT) + EXPIRY] = NOW + 5000;
  });
  let calls = 0;
  for (let left = 1000; left > 333; calls++) {
    const before = flows.size;
    let seen = 0;
    flows.own(0, { over: () => 0, leave: () => seen++ });
    const removed = flows.expire(NOW + 11, 64);
    t.is(seen, removed);
    t.true(removed <= 64);
    t.is(flows.size, before - removed);
    left = flows.size;
    // A second later it is known whether all went.
    t.is(flows.isBehind(NOW + 12), true);
    t.true(calls < 50);
  }
  // Each was looked at once: what stays is in another bucket.
  t.true(calls >= Math.floor(1000 / 64));
  t.is(flows.expire(NOW + 4999, 1e6), 0);
  t.false(flows.isBehind(NOW + 4999));
  t.is(flows.expire(NOW + 5000, 1e6), 333);
  t.is(flows.size, 0);
});

test('a flow that is hastened does not wait in its old bucket', (t) => {
  const flows = new Flows(10, SEED, NOW);
  const flow = add(flows, 1, NOW + 7440);
  flows.hasten(flow, NOW + 240);
  t.is(flows.expire(NOW + 239, 100), 0);
  t.is(flows.expire(NOW + 240, 100), 1);
});

const worthTable = (list: readonly (readonly [state: number, expiry: number])[]): Flows => {
  const flows = new Flows(list.length, SEED, NOW);
  for (const [n, [state, expiry]] of list.entries()) {
    const flow = add(flows, n, expiry);
    flows.words[(flow << FLOW_SHIFT) + STATE] = state;
  }
  return flows;
};

test('the least worthy of those that are looked at goes, of equals the one that would expire first', (t) => {
  const flows = worthTable([
    [ESTABLISHED, 100],
    [TWO_SIDED, 101],
    [SYN_OUT, 300],
    [SYN_OUT, 200],
    [FIN_BOTH, 100],
    [TWO_SIDED, 100],
  ]);
  const order: number[] = [];
  for (let victim = flows.leastWorthy(WORTHS); victim !== NO_FLOW; victim = flows.leastWorthy(WORTHS)) {
    order.push(victim);
    flows.remove(victim);
  }
  t.deepEqual(order, [4, 3, 5, 6, 2]);
  t.is(flows.size, 1);
});

test('an established flow is never put out', (t) => {
  const flows = worthTable(Array.from({ length: 100 }, () => [ESTABLISHED, 1] as const));
  for (let i = 0; i < 500; i++) t.is(flows.leastWorthy(WORTHS), NO_FLOW);
});

test('victims are looked for in turn: a few that may go are found wherever they are', (t) => {
  const list = Array.from({ length: 300 }, (_, n) => [n === 250 ? NEW_IN : ESTABLISHED, 1] as const);
  const flows = worthTable(list);
  const found = Array.from({ length: 20 }, () => flows.leastWorthy(WORTHS)).filter(
    (flow) => flow !== NO_FLOW,
  );
  t.true(found.length >= 1);
  t.true(found.every((flow) => flow === 251));
});

test('a process takes over what another left, in its own time', (t) => {
  const capacity = 50;
  const memory = new ArrayBuffer(flowBytes(capacity));
  const before = new Flows(capacity, SEED, NOW, memory);
  for (let n = 0; n < 40; n++) add(before, n, NOW + 100 + n);
  before.remove(7);
  const after = new Flows(capacity, 12345, 20, memory);
  after.own(0, { over: () => 0, leave: () => {}, adopt: () => true });
  t.deepEqual(
    after.adopt(20, 20 - NOW, (flow) => flow % 2 === 0),
    { taken: 20, refused: 19 },
  );
  t.true(consistent(after));
  for (let n = 0; n < 40; n++) {
    const kept = (n + 1) % 2 === 0;
    t.deepEqual(both(after, ends(n)), kept ? [(n + 1) * 2, (n + 1) * 2 + 1] : [0, 0]);
  }
  t.is(after.expire(20 + 100, 1e6), 0);
  t.is(after.expire(20 + 101, 1e6), 1);
  for (let n = 0; n < 31; n++) t.not(add(after, 100 + n), NO_FLOW);
  t.is(add(after, 200), NO_FLOW);
});

test('of what another process left, flows that are over, that come twice or that nobody wants are not taken', (t) => {
  const capacity = 10;
  const memory = new ArrayBuffer(flowBytes(capacity));
  const before = new Flows(capacity, SEED, NOW, memory);
  const twice = add(before, 0);
  const over = add(before, 1, NOW + 10);
  const distant = add(before, 2, NOW + LONGEST_SILENCE + 51);
  const good = add(before, 3, NOW + 60);
  const copy = add(before, 4);
  for (let word = 0; word < 16; word++)
    before.words[(copy << FLOW_SHIFT) + word] = before.words[(twice << FLOW_SHIFT) + word];
  before.doubles[(good << (FLOW_SHIFT - 1)) + 7] = Number.NaN;
  const orphan = add(before, 5);
  before.words[(orphan << FLOW_SHIFT) + OUT_KEY] |= 3 << 10;
  const after = new Flows(capacity, SEED, NOW + 50, memory);
  after.own(0, { over: () => 0, leave: () => {}, adopt: () => true });
  t.deepEqual(
    after.adopt(NOW + 50, 0, () => true),
    { taken: 2, refused: 4 },
  );
  t.true(consistent(after));
  t.is(after.bytesOf(good), 0);
  t.is([over, distant, orphan].filter((flow) => after.words[(flow << FLOW_SHIFT) + OUT_KEY] !== 0).length, 0);
  t.not(find(after, ends(0)[0], ends(0)[1], ends(0)[2], ends(0)[3]), NO_FLOW);
});

test('of a clock that is no number nothing is taken over', (t) => {
  const memory = new ArrayBuffer(flowBytes(10));
  add(new Flows(10, SEED, NOW, memory), 0);
  for (const shift of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
    const after = new Flows(10, SEED, NOW, memory.slice(0));
    after.own(0, { over: () => 0, leave: () => {}, adopt: () => true });
    t.deepEqual(
      after.adopt(NOW, shift, () => true),
      { taken: 0, refused: 1 },
    );
  }
});

test('hashes of neighbours spread: no slot of the index is the home of many', (t) => {
  const slots = 1 << 14;
  const homes = new Uint8Array(slots);
  let most = 0;
  // Sixteen endpoints, a thousand ports each, to one server: what a flood or a scan looks like.
  for (let n = 0; n < slots; n++) {
    const ports = ((n >>> 4) * 256) | (53 << 24);
    most = Math.max(
      most,
      ++homes[flowKeyHash(SEED, 0x0a + ((n & 15) << 24), 0x076433c6, ports, 17) & (slots - 1)]!,
    );
  }
  // By chance alone seven or eight (a Poisson distribution of mean one).
  t.true(most <= 10, `${most}`);
});
