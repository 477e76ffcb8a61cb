import test from 'ava';
import fc from 'fast-check';
import {
  AssociationState,
  associationStateBytes,
  MAX_REPLAY_WINDOW,
  WINDOW_WORDS,
} from '../../../engine/tables/association-state.js';
import { Associations } from '../../../engine/tables/associations.js';
import { createReplayWindows, FRESH, REPLAYED, TOO_OLD } from '../../../engine/tables/replay-window.js';

const VERDICTS = ['fresh', 'replayed', 'too-old'] as const;
type Verdict = (typeof VERDICTS)[number] | 'no-half';
const HALF = 2n ** 32n;
const RING = BigInt(WINDOW_WORDS * 32);
/** Last number that 64 bits hold. */
const LAST = 2n ** 64n - 1n;

interface WindowOptions {
  readonly window: number;
  readonly esn: boolean;
  /** Highest number accepted so far. */
  readonly top?: bigint;
}

/** One association's window, number by number. */
function windows(...list: readonly WindowOptions[]) {
  const state = new AssociationState(new SharedArrayBuffer(associationStateBytes(list.length)));
  const associations = new Associations(state, 4);
  const vtep = Uint8Array.of(192, 0, 2, 2);
  associations.set(
    list.map(({ window, esn }, slot) => ({
      slot,
      direction: 'in',
      spi: 256 + slot,
      vtep,
      icv: 16,
      esn,
      window,
    })),
    () => 0,
  );
  const { number, complete, check, accept } = createReplayWindows(associations);
  for (const [slot, { top = 0n }] of list.entries()) {
    state.begin(slot);
    // Beyond what a double of `begin` could say.
    state.sequence.set([Number(top % HALF), Number(top / HALF)], slot * 2);
  }
  const set = (n: bigint): void => number.set([Number(n % HALF), Number(n / HALF)]);
  return {
    state,
    /** A packet with these low 32 bits arrives, sealed with whatever high half we find. */
    arrive(low: number, slot = 0): Verdict {
      number[0] = low;
      number[1] = 0xdeadbeef;
      if (!complete(slot)) return 'no-half';
      const before = check(slot);
      const verdict = accept(slot);
      if (before !== verdict) throw new Error(`check says ${before}, accept ${verdict}`);
      return VERDICTS[verdict];
    },
    /** The same by its whole number, which must be the one that is found. */
    accept(n: bigint, slot = 0): Verdict {
      const low = Number(n % HALF);
      number[0] = low;
      if (!complete(slot)) return 'no-half';
      set(n);
      return VERDICTS[accept(slot)];
    },
    /** Only looks. */
    check(n: bigint, slot = 0): Verdict {
      set(n);
      return VERDICTS[check(slot)];
    },
    high(low: number, slot = 0): number | 'no-half' {
      number[0] = low;
      return complete(slot) ? number[1] : 'no-half';
    },
    top: (slot = 0): bigint => BigInt(state.sequence[slot * 2 + 1]) * HALF + BigInt(state.sequence[slot * 2]),
  };
}

/** The same by the book: a set of all numbers ever accepted. */
class Naive {
  private readonly seen = new Set<bigint>();
  top: bigint;

  constructor(private readonly o: WindowOptions) {
    this.top = o.top ?? 0n;
  }

  /** The only number with these low bits within 2^32 from the window's lower end on. */
  number(low: number): bigint {
    if (!this.o.esn) return BigInt(low);
    const bottom = this.top - BigInt(this.o.window || 2 ** 31) + 1n;
    return bottom + ((((BigInt(low) - bottom) % HALF) + HALF) % HALF);
  }

  arrive(low: number): Verdict {
    const n = this.number(low);
    if (n < 0n) return 'no-half';
    // Behind the last one the high half begins anew, with numbers of long ago: only a window refuses those.
    if (n > LAST) return this.o.window === 0 && n !== LAST + 1n ? 'fresh' : 'too-old';
    if (n === 0n) return 'too-old';
    if (this.o.window !== 0) {
      if (n <= this.top - BigInt(this.o.window)) return 'too-old';
      if (this.seen.has(n)) return 'replayed';
      this.seen.add(n);
    }
    if (n > this.top) this.top = n;
    return 'fresh';
  }
}

const SIZES = [32, 64, 100, 1024, 4096, 0];
/** Distances from the highest number at which something could go wrong. */
function distances(window: number): number[] {
  const ring = Number(RING);
  const edges = [0, 31, 32, 33, window, ring - 64, ring - 32, ring - 31, ring, ring + 32, 2 * ring];
  return edges.flatMap((edge) => [edge - 2, edge - 1, edge, edge + 1, edge + 2]).flatMap((d) => [d, -d]);
}

const tops = (esn: boolean): fc.Arbitrary<bigint> => {
  const near = fc.integer({ min: -9000, max: 9000 });
  const low = fc.constantFrom(0n, 1n, 31n, 32n, 8191n, 100_000n, HALF - 9000n);
  const high = fc
    .tuple(fc.constantFrom(1n, 2n, 3n, 2n ** 20n, 2n ** 21n - 1n, 2n ** 21n, 2n ** 31n, 2n ** 32n - 1n), near)
    .map(([half, distance]) => half * HALF + BigInt(distance));
  return esn ? fc.oneof(low, high) : fc.oneof(low, fc.integer({ min: 0, max: 2 ** 32 - 1 }).map(BigInt));
};

for (const esn of [false, true])
  for (const window of SIZES) {
    const title = `${window === 0 ? 'no window' : `a window of ${window}`}${esn ? ' with ESN' : ''}`;
    test(`property: ${title} is what a set of all accepted numbers says`, (t) => {
      const step = fc.oneof(
        { weight: 6, arbitrary: fc.integer({ min: -window - 40, max: 40 }) },
        { weight: 3, arbitrary: fc.constantFrom(...distances(window)) },
        { weight: 1, arbitrary: fc.integer({ min: -(2 ** 31), max: 2 ** 32 }) },
        { weight: 1, arbitrary: fc.integer({ min: 1, max: 9000 }) },
      );
      const steps = fc.array(step, { minLength: 1, maxLength: 120 });
      fc.assert(
        fc.property(tops(esn), steps, (top, list) => {
          const [real, naive] = [windows({ window, esn, top }), new Naive({ window, esn, top })];
          for (const [k, distance] of list.entries()) {
            const low = Number((((naive.top + BigInt(distance)) % HALF) + HALF) % HALF);
            t.is(real.arrive(low), naive.arrive(low), `step ${k}: ${naive.top} and ${distance}`);
            t.is(real.top(), naive.top);
          }
        }),
        { numRuns: 150 },
      );
    });
  }

test('property: slots do not touch each other', (t) => {
  const list = [0, 1, 2].map(() => ({ window: 4096, esn: true, top: HALF - 50n }));
  const arrival = fc.tuple(fc.nat(2), fc.integer({ min: -5000, max: 9000 }));
  fc.assert(
    fc.property(fc.array(arrival, { maxLength: 200 }), (arrivals) => {
      const real = windows(...list);
      const naive = list.map((options) => new Naive(options));
      for (const [slot, distance] of arrivals) {
        const low = Number((naive[slot].top + BigInt(distance)) % HALF);
        t.is(real.arrive(low, slot), naive[slot].arrive(low));
      }
    }),
    { numRuns: 50 },
  );
});

test('zero is nobody’s number, whatever the window', (t) => {
  for (const window of SIZES)
    for (const esn of [false, true]) {
      const w = windows({ window, esn });
      t.is(w.arrive(0), 'too-old');
      t.is(w.arrive(1), 'fresh');
      t.is(w.arrive(0), 'too-old');
    }
  t.is(windows({ window: 64, esn: true, top: HALF - 1n }).arrive(0), 'fresh', '2^32 has a low half of zero');
});

test('without ESN nothing comes after 0xffffffff', (t) => {
  const w = windows({ window: 64, esn: false, top: HALF - 2n });
  t.deepEqual(
    [w.arrive(2 ** 32 - 1), w.arrive(1), w.arrive(64), w.arrive(2 ** 32 - 1)],
    ['fresh', 'too-old', 'too-old', 'replayed'],
  );
});

test('looking changes nothing', (t) => {
  const w = windows({ window: 64, esn: true, top: 1000n });
  const before = [...w.state.window];
  for (const n of [1001n, 999n, 5000n, 937n, 936n]) w.check(n);
  t.deepEqual([...w.state.window], before);
  t.is(w.top(), 1000n);
});

test('the half is found as appendix A2.2 of RFC 4303 does', (t) => {
  // Case A: the window lies within one half.
  const a = windows({ window: 64, esn: true, top: 5n * HALF + 63n });
  t.deepEqual([a.high(0), a.high(63), a.high(64), a.high(0xffffffff)], [5, 5, 5, 5]);
  const later = windows({ window: 64, esn: true, top: 5n * HALF + 64n });
  t.deepEqual([later.high(0), later.high(1), later.high(0xffffffff)], [6, 5, 5]);
  // Case B: it reaches back into the half before.
  const b = windows({ window: 64, esn: true, top: 5n * HALF + 62n });
  t.deepEqual([b.high(0xffffffff), b.high(0xfffffffe), b.high(0), b.high(62)], [4, 5, 5, 5]);
  const first = windows({ window: 64, esn: true, top: 62n });
  t.deepEqual([first.high(0xffffffff), first.high(0xfffffffe)], ['no-half', 0]);
});

test('a packet of the whole window late is accepted, one later is too old, at every place of the ring', (t) => {
  for (const window of [32, 64, 100, 1024, 4096])
    for (let top = 20_000; top < 20_000 + 70; top++) {
      const w = windows({ window, esn: false });
      t.is(w.arrive(top), 'fresh');
      t.is(w.arrive(top - window), 'too-old');
      t.is(w.arrive(top - window + 1), 'fresh');
      t.is(w.arrive(top - window + 1), 'replayed');
    }
});

test('jumps about the size of the ring leave nothing of the turn before', (t) => {
  const ring = Number(RING);
  for (const from of [4096, 4127, 8191, 8192, 8193])
    for (let jump = ring - 70; jump <= ring + 70; jump++) {
      const w = windows({ window: 4096, esn: true, top: HALF - 5000n });
      const base = HALF - 5000n;
      // The window full of accepted numbers, then a jump: all of the new window is fresh but its highest.
      for (let n = from - 200; n <= from; n++) w.accept(base + BigInt(n));
      const top = base + BigInt(from + jump);
      t.is(w.accept(top), 'fresh');
      for (let n = top - 4095n; n < top; n += 61n) t.is(w.check(n), 'fresh', `${from} + ${jump}: ${n}`);
      for (let n = -200n; n <= 0n; n++)
        if (BigInt(from) + n + RING > BigInt(from + jump) - 4096n)
          t.is(w.check(base + BigInt(from) + n + RING), BigInt(jump) === n + RING ? 'replayed' : 'fresh');
      t.is(w.check(top), 'replayed');
    }
});

test('three turns of the ring with each pair in wrong order: nothing of a turn before is in the way', (t) => {
  for (const window of [32, 100, 1024, 4096])
    for (const step of [1, 31, 32, 33, window / 2]) {
      const w = windows({ window, esn: true, top: HALF - 9000n });
      for (let n = HALF - 8999n; n < HALF - 9000n + 3n * RING; n += BigInt(2 * step)) {
        const late = n + BigInt(step) - 1n;
        if (w.accept(late + 1n) !== 'fresh') t.fail(`${window}, ${step}: ${late + 1n}`);
        if (w.accept(late) !== 'fresh') t.fail(`${window}, ${step}: ${late} after ${late + 1n}`);
      }
      t.true(w.top() > HALF + 10_000n);
    }
});

test('near 2^53 and near 2^64 every number counts', (t) => {
  for (const border of [2n ** 53n, 2n ** 63n, 2n ** 64n - 200n]) {
    const w = windows({ window: 64, esn: true, top: border - 100n });
    for (let n = border - 99n; n < border + 100n; n += 2n) t.is(w.accept(n), 'fresh');
    t.is(w.top(), border + 99n);
    for (let n = border + 99n - 63n; n <= border + 99n; n++)
      t.is(w.check(n), (n - border) % 2n === 0n ? 'fresh' : 'replayed');
  }
  // After the last number of all there is none.
  const end = windows({ window: 64, esn: true, top: LAST - 1n });
  t.deepEqual(
    [end.arrive(0xffffffff), end.arrive(0xffffffff), end.arrive(5)],
    ['fresh', 'replayed', 'too-old'],
  );
  t.is(end.top(), LAST);
});

test('the transcript of wireguard-go about a limit: the highest numbers of all in any order, each once', (t) => {
  const w = windows({ window: 4096, esn: true, top: LAST - 2n ** 32n + 5000n });
  const script: readonly [bigint, Verdict][] = [
    [LAST - 1n, 'fresh'],
    [LAST - 1n, 'replayed'],
    [LAST - 2n, 'fresh'],
    [LAST - 2n, 'replayed'],
    [LAST - 3n, 'fresh'],
    [LAST - 4095n, 'fresh'],
    [LAST - 4096n, 'fresh'],
    [LAST - 4097n, 'too-old'],
    [LAST, 'fresh'],
    [LAST - 4096n, 'too-old'],
    [LAST - 4095n, 'replayed'],
    [LAST, 'replayed'],
  ];
  for (const [n, verdict] of script) t.is(w.accept(n), verdict, `${LAST - n} below the last`);
});

test('the ring has room for the largest window and a word more', (t) => {
  t.true(WINDOW_WORDS * 32 >= MAX_REPLAY_WINDOW + 32);
  t.is(WINDOW_WORDS & (WINDOW_WORDS - 1), 0);
  t.deepEqual([FRESH, REPLAYED, TOO_OLD], [0, 1, 2]);
});
