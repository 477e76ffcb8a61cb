import test from 'ava';
import { Counters, readCounters } from '../../engine/counters.js';

test('blocks are apart by whole lines, zeroed, and read by name', (t) => {
  const counters = new Counters(new SharedArrayBuffer(8 * 64));
  const a = counters.claim('a', ['x', 'y']);
  const b = counters.claim(
    'b',
    Array.from({ length: 17 }, (_, i) => `n${i}`),
  );
  t.is(a.base % 16, 0);
  t.is(b.base, 16);
  counters.values[a.base + 1] = 2 ** 53 - 1;
  counters.values[b.base + 16] = 3;
  const read = readCounters(new Float64Array(counters.buffer), counters.describe());
  t.deepEqual(read['a'], { x: 0, y: 2 ** 53 - 1 });
  t.is(read['b']['n16'], 3);
});

test('a released block is used again, zeroed; released twice it is still one block', (t) => {
  const counters = new Counters(new SharedArrayBuffer(8 * 32));
  const a = counters.claim('a', ['x']);
  counters.claim('b', ['x']);
  t.throws(() => counters.claim('c', ['x']), { instanceOf: RangeError, message: /c/ });
  counters.values[a.base] = 9;
  counters.release(a);
  counters.release(a);
  const c = counters.claim('c', ['z']);
  t.is(c.base, a.base);
  t.is(counters.values[c.base], 0);
  t.throws(() => counters.claim('d', ['x']), { instanceOf: RangeError });
  t.deepEqual(
    counters.describe().map(({ owner }) => owner),
    ['b', 'c'],
  );
});

test('a refused claim changes nothing', (t) => {
  const counters = new Counters(new SharedArrayBuffer(8 * 16));
  t.throws(() => counters.claim('big', Array(17).fill('n')), { instanceOf: RangeError });
  t.deepEqual(counters.describe(), []);
  t.is(counters.claim('fits', []).base, 0);
});
