import test from 'ava';
import fc from 'fast-check';
import { MAPPED_IPV4, Neighbours, NO_NEIGHBOUR } from '../../../engine/tables/neighbours.js';

const A = Uint8Array.of(10, 0, 9, 1);
const A6 = Uint8Array.of(0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfe);
const MAC = Uint8Array.of(2, 0x42, 0xff, 0x80, 0xfe, 0x01);

test('an address is found in its domain alone, by bytes and by words', (t) => {
  const table = new Neighbours(1);
  table.set(7, A, MAC);
  t.deepEqual(table.get(7, A), MAC);
  t.is(table.get(6, A), undefined);
  const handle = table.lookup(7, 0, 0, MAPPED_IPV4, 10 | (9 << 16) | (1 << 24));
  t.not(handle, NO_NEIGHBOUR);
  t.deepEqual(
    [0, 1, 2].map((i) => table.macWord(handle, i)),
    [0x4202, 0x80ff, 0x01fe],
  );
});

test('IPv6 and IPv4 addresses live side by side; domain 0 and the last one too', (t) => {
  const table = new Neighbours(1);
  table.set(0, A6, MAC);
  table.set(4095, A, A6.subarray(0, 6));
  t.deepEqual(table.get(0, A6), MAC);
  t.deepEqual(table.get(4095, A), A6.slice(0, 6));
  t.is(table.size, 2);
});

test('setting again replaces the MAC and takes no second entry', (t) => {
  const table = new Neighbours(1);
  table.set(1, A, MAC);
  const other = Uint8Array.of(2, 1, 1, 1, 1, 1);
  table.set(1, A, other);
  t.is(table.size, 1);
  t.deepEqual(table.get(1, A), other);
});

test('removing says whether it was there; removing a domain leaves the others', (t) => {
  const table = new Neighbours(1);
  for (let domain = 0; domain < 3; domain++) {
    for (let i = 0; i < 100; i++) table.set(domain, Uint8Array.of(10, 0, i, 1), MAC);
  }
  t.true(table.remove(0, Uint8Array.of(10, 0, 5, 1)));
  t.false(table.remove(0, Uint8Array.of(10, 0, 5, 1)));
  t.is(table.removeDomain(1), 100);
  t.is(table.removeDomain(1), 0);
  t.is(table.size, 199);
  for (let i = 0; i < 100; i++) {
    t.is(table.get(1, Uint8Array.of(10, 0, i, 1)), undefined);
    t.deepEqual(table.get(2, Uint8Array.of(10, 0, i, 1)), MAC);
  }
});

test('what cannot be an entry is refused with its measure', (t) => {
  const table = new Neighbours(1);
  t.throws(() => table.set(4096, A, MAC), { instanceOf: RangeError, message: /4096/ });
  t.throws(() => table.set(-1, A, MAC), { instanceOf: RangeError });
  t.throws(() => table.set(0, A.subarray(1), MAC), { message: /4 or 16 bytes, not 3/ });
  t.throws(() => table.set(0, A, A), { message: /6 bytes, not 4/ });
  t.is(table.size, 0);
});

test('behaves as a Map through any run of sets and removals, growth included', (t) => {
  // Few distinct addresses, so that runs collide, are removed from and are added to again.
  const address = fc.oneof(
    fc.tuple(fc.nat(3), fc.nat(40)).map(([a, b]) => Uint8Array.of(10, 0, a, b)),
    fc.nat(60).map((b) => Uint8Array.of(...A6.subarray(0, 15), b)),
  );
  const step = fc.record({
    kind: fc.constantFrom('set', 'set', 'set', 'remove', 'removeDomain'),
    domain: fc.nat(2),
    address,
    mac: fc.uint8Array({ minLength: 6, maxLength: 6 }),
  });
  fc.assert(
    fc.property(fc.integer(), fc.array(step, { maxLength: 300, size: 'max' }), (seed, steps) => {
      const table = new Neighbours(seed);
      const model = new Map<string, Uint8Array>();
      const key = (domain: number, bytes: Uint8Array): string => `${domain}/${bytes.join('.')}`;
      for (const { kind, domain, address: bytes, mac } of steps) {
        if (kind === 'set') {
          table.set(domain, bytes, mac);
          model.set(key(domain, bytes), mac);
        } else if (kind === 'remove') {
          if (table.remove(domain, bytes) !== model.delete(key(domain, bytes))) return false;
        } else {
          const gone = [...model.keys()].filter((name) => name.startsWith(`${domain}/`));
          for (const name of gone) model.delete(name);
          if (table.removeDomain(domain) !== gone.length) return false;
        }
      }
      if (table.size !== model.size) return false;
      return steps.every(({ domain, address: bytes }) => {
        const expected = model.get(key(domain, bytes));
        const found = table.get(domain, bytes);
        return expected === undefined ? found === undefined : found?.join() === expected.join();
      });
    }),
    { numRuns: 300 },
  );
  t.pass();
});

test('endpoints of one network, whose addresses differ in the last byte alone, have slots of their own', (t) => {
  for (const [prefix, words] of [
    [
      [10, 0, 9],
      [0, 0, MAPPED_IPV4, 10 | (9 << 16)],
    ],
    [A6.slice(0, 15), [0xfd, 0, 0, 0]],
  ] as const) {
    const table = new Neighbours(5);
    const homes = new Map<number, number>();
    for (let host = 0; host < 256; host++) table.set(3, Uint8Array.of(...prefix, host), MAC);
    for (let host = 0; host < 256; host++) {
      const [a, b, c, d] = words;
      const home = table['slot'](4, a, b, c, d | (host << 24));
      homes.set(home, (homes.get(home) ?? 0) + 1);
    }
    t.true(Math.max(...homes.values()) <= 4, `${Math.max(...homes.values())} have one`);
  }
});
