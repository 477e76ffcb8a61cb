import test from 'ava';
import fc from 'fast-check';
import { REMOTE } from '../../../engine/memory/frames.js';
import {
  FULL,
  HELD,
  KNOWN,
  LEARNED,
  LIMITED,
  MAX_DOMAINS,
  MacTable,
  MOVED,
  macHigh,
  macLow,
  REFRESHED,
  UNKNOWN,
} from '../../../engine/tables/mac-table.js';
import { mac, station } from '../../support/frames.js';

const SEED = 12345;

interface Key {
  readonly low: number;
  readonly high: number;
}

const key = (n: number, domain = 0): Key => ({ low: macLow(station(n)), high: macHigh(station(n), domain) });

/** Keys whose search begins at one and the same slot. */
function colliding(count: number, slot: number, table: MacTable): Key[] {
  const hash = table as unknown as { slot(low: number, high: number): number };
  const keys: Key[] = [];
  for (let n = 1; keys.length < count; n++) {
    const { low, high } = key(n, n & 3);
    if (hash.slot(low, high) === slot) keys.push({ low, high });
  }
  return keys;
}

test('a key is the MAC in wire order and the domain', (t) => {
  const address = mac('02:42:0a:00:09:ff');
  t.is(macLow(address), 0x000a4202);
  t.is(macHigh(address, 0xfff), 0x0fffff09);
  const table = new MacTable(10, SEED);
  table.learn(macLow(address), macHigh(address, 4095), REMOTE | 65535, 77);
  t.deepEqual(table.entries(), [
    { domain: 4095, mac: address, destination: REMOTE | 65535, isStatic: false, seen: 77 },
  ]);
});

test('addresses with the highest bits set are found again', (t) => {
  const table = new MacTable(100, SEED);
  for (const [i, text] of ['fe:ff:ff:ff:ff:ff', '00:00:00:80:00:80', '02:00:00:ff:ff:00'].entries()) {
    const address = mac(text);
    t.is(table.learn(macLow(address), macHigh(address, MAX_DOMAINS - 1), i, 1), LEARNED);
    t.is(table.lookup(macLow(address), macHigh(address, MAX_DOMAINS - 1)), i);
    t.is(table.lookup(macLow(address), macHigh(address, 0)), UNKNOWN);
  }
});

test('outcomes of learning', (t) => {
  const table = new MacTable(2, SEED);
  const [a, b, c] = [key(1), key(2), key(3)];
  t.is(table.learn(a.low, a.high, 0, 1), LEARNED);
  t.is(table.learn(a.low, a.high, 0, 1), KNOWN);
  t.is(table.learn(a.low, a.high, 0, 2), REFRESHED);
  t.is(table.learn(a.low, a.high, 5, 3), MOVED);
  t.true(table.setStatic(b.low, b.high, 7, 0));
  t.is(table.learn(b.low, b.high, 8, 4), HELD);
  t.is(table.learn(b.low, b.high, 7, 4), REFRESHED);
  t.is(table.learn(c.low, c.high, 1, 5), FULL);
  t.false(table.setStatic(c.low, c.high, 1, 5));
  t.is(table.size, 2);
  t.is(table.learned[0], 1);
  table.limits[0] = 1;
  t.true(table.remove(b.low, b.high));
  t.is(table.learn(c.low, c.high, 1, 5), LIMITED);
  t.true(table.setStatic(c.low, c.high, 1, 5), 'the limit is for learned stations');
  t.true(table.setStatic(a.low, a.high, 9, 5), 'a learned one becomes static');
  t.is(table.learned[0], 0);
  t.is(table.lookup(a.low, a.high), 9);
  t.is(table.size, 2);
});

test('the destinations 0 and REMOTE | 65535 are kept, and domain 0 with port 0 is an entry', (t) => {
  const table = new MacTable(10, SEED);
  const zero = { low: 0, high: 1 << 8 };
  t.is(table.learn(zero.low, zero.high, 0, 0), LEARNED);
  t.is(table.lookup(zero.low, zero.high), 0);
  t.is(table.learn(zero.low, zero.high, REMOTE | 65535, 0), MOVED);
  t.is(table.lookup(zero.low, zero.high), REMOTE | 65535);
});

test('a full table of colliding keys across the end of the slots: each removal leaves the others in reach', (t) => {
  const table = new MacTable(64, SEED);
  const keys = colliding(64, table.slots - 5, table);
  for (const [i, { low, high }] of keys.entries()) t.is(table.learn(low, high, i, 0), LEARNED);
  const left = new Map(keys.map((k, i) => [k, i]));
  for (let n = 0; left.size > 0; n++) {
    const gone = [...left.keys()][(n * 7) % left.size];
    t.true(table.remove(gone.low, gone.high));
    t.false(table.remove(gone.low, gone.high));
    left.delete(gone);
    for (const [{ low, high }, i] of left) if (table.lookup(low, high) !== i) t.fail(`${i} lost`);
  }
  t.is(table.size, 0);
  t.true(table.words.every((word) => word === 0));
});

test('removeWhere across the end of the slots removes all that match and nothing else', (t) => {
  const table = new MacTable(64, SEED);
  const keys = colliding(60, table.slots - 20, table);
  for (const [i, { low, high }] of keys.entries()) table.learn(low, high, i, 0);
  t.is(
    table.removeWhere((_domain, destination) => destination % 3 !== 0),
    40,
  );
  for (const [i, { low, high }] of keys.entries()) t.is(table.lookup(low, high), i % 3 === 0 ? i : UNKNOWN);
  t.is(table.removeWhere((domain) => domain === 1) + table.removeWhere((domain) => domain !== 1), 20);
  t.is(table.size, 0);
  t.is(
    table.learned.reduce((sum, n) => sum + n, 0),
    0,
  );
});

test('removeWhere sees static entries as such', (t) => {
  const table = new MacTable(10, SEED);
  table.setStatic(key(1).low, key(1).high, 3, 0);
  table.learn(key(2).low, key(2).high, 3, 0);
  t.is(
    table.removeWhere((_domain, destination, isStatic) => destination === 3 && !isStatic),
    1,
  );
  t.is(table.lookup(key(1).low, key(1).high), 3);
});

test('a sweep does no more than it was told, and goes round', (t) => {
  const table = new MacTable(512, SEED);
  const ageing = new Uint32Array(MAX_DOMAINS).fill(10);
  for (let n = 0; n < 500; n++) table.learn(key(n).low, key(n).high, 1, 0);
  t.is(table.sweep(10, ageing, table.slots), 0);
  let removed = 0;
  let calls = 0;
  for (; table.size > 0 && calls < 1000; calls++) {
    const now = table.sweep(11, ageing, 16);
    t.true(now <= 16);
    removed += now;
  }
  t.is(removed, 500);
  // A removal costs one of the slots looked at, and each slot is looked at once besides.
  t.true(calls <= Math.ceil((table.slots + 500) / 16), `${calls} calls`);
});

test('a sweep over a run that crosses the end misses nobody within two rounds', (t) => {
  const table = new MacTable(64, SEED);
  const ageing = new Uint32Array(MAX_DOMAINS).fill(5);
  for (const { low, high } of colliding(40, table.slots - 10, table)) table.learn(low, high, 1, 0);
  table.sweep(100, ageing, table.slots);
  table.sweep(100, ageing, table.slots);
  t.is(table.size, 0);
});

test('time that stands still or runs backwards ages nobody', (t) => {
  const table = new MacTable(10, SEED);
  const ageing = new Uint32Array(MAX_DOMAINS).fill(1);
  table.learn(key(1).low, key(1).high, 1, 1000);
  t.is(table.sweep(1000, ageing, table.slots), 0);
  t.is(table.sweep(5, ageing, table.slots), 0);
});

test('memory is 32 bytes for each station it can hold', (t) => {
  t.is(new MacTable(1 << 16, SEED).bytes, (1 << 16) * 32);
  t.is(new MacTable((1 << 16) + 1, SEED).slots, 1 << 18);
});

/** The table as it should be, kept in a Map. */
class Model {
  readonly entries = new Map<number, { destination: number; isStatic: boolean; seen: number }>();

  constructor(
    readonly keys: readonly Key[],
    readonly capacity: number,
    readonly limit: number,
  ) {}

  domain(k: number): number {
    return this.keys[k].high >>> 16;
  }

  learned(domain: number): number {
    return [...this.entries].filter(([k, e]) => !e.isStatic && this.domain(k) === domain).length;
  }

  learn(k: number, destination: number, now: number): number {
    const entry = this.entries.get(k);
    if (!entry) {
      if (this.learned(this.domain(k)) >= this.limit) return LIMITED;
      if (this.entries.size >= this.capacity) return FULL;
      this.entries.set(k, { destination, isStatic: false, seen: now });
      return LEARNED;
    }
    if (entry.destination !== destination && entry.isStatic) return HELD;
    const moved = entry.destination !== destination;
    this.entries.set(k, { ...entry, destination, seen: now });
    if (moved) return MOVED;
    return entry.seen === now ? KNOWN : REFRESHED;
  }
}

const operation = fc.record({
  what: fc.constantFrom('learn', 'learn', 'learn', 'static', 'remove', 'where', 'sweep'),
  k: fc.nat(59),
  destination: fc.constantFrom(0, 1, 2, REMOTE, REMOTE | 1),
  later: fc.nat(4),
});

for (const [name, collide] of [
  ['spread', false],
  ['colliding', true],
] as const) {
  test(`property: the table is a map, ${name} keys`, (t) => {
    const probe = new MacTable(24, SEED);
    const keys = collide
      ? colliding(60, probe.slots - 3, probe)
      : Array.from({ length: 60 }, (_, n) => key(n * 77 + 1, n & 3));
    const ageing = new Uint32Array(MAX_DOMAINS);
    ageing.set([0, 3, 6, 9]);
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 150 }), (operations) => {
        const table = new MacTable(24, SEED);
        table.limits.fill(9);
        const model = new Model(keys, 24, 9);
        let now = 100;
        for (const { what, k, destination, later } of operations) {
          now += later;
          const { low, high } = keys[k];
          if (what === 'learn')
            t.is(table.learn(low, high, destination, now), model.learn(k, destination, now));
          else if (what === 'static') {
            const fits = model.entries.has(k) || model.entries.size < 24;
            t.is(table.setStatic(low, high, destination, now), fits);
            if (fits) model.entries.set(k, { destination, isStatic: true, seen: now });
          } else if (what === 'remove') t.is(table.remove(low, high), model.entries.delete(k));
          else if (what === 'where') {
            const gone = [...model.entries].filter(([, e]) => e.destination === destination && !e.isStatic);
            for (const [index] of gone) model.entries.delete(index);
            t.is(
              table.removeWhere((_d, to, isStatic) => to === destination && !isStatic),
              gone.length,
            );
          } else {
            // Twice round: a run that moved back across the end is only met in the second.
            table.sweep(now, ageing, table.slots);
            table.sweep(now, ageing, table.slots);
            for (const [index, e] of model.entries) {
              const limit = ageing[model.domain(index)];
              if (!e.isStatic && limit !== 0 && now - e.seen > limit) model.entries.delete(index);
            }
          }
        }
        t.is(table.size, model.entries.size);
        for (const [index, { low, high }] of keys.entries())
          t.is(table.lookup(low, high), model.entries.get(index)?.destination ?? UNKNOWN);
        for (const domain of [0, 1, 2, 3]) t.is(table.learned[domain], model.learned(domain));
        t.is(table.entries().length, table.size);
      }),
      { numRuns: 150 },
    );
  });
}
