import test from 'ava';
import fc from 'fast-check';
import { FrameMemory } from '../../engine/memory/frames.js';
import { native } from '../../native-bindings/index.js';
import { slowSum } from '../support/frames.js';

const memory = new FrameMemory({ small: 4, large: 2, arena: 100_000 });
native.attach(memory.u8, memory.off, memory.len, memory.freeLarge);
const { u8, arenaStart } = memory;
const SIZE = memory.u8.length;

function noise(seed: number, bytes: Uint8Array): void {
  for (let i = 0, x = seed; i < bytes.length; i++) {
    x = (Math.imul(x, 1103515245) + 12345) >>> 0;
    bytes[i] = x >>> 16;
  }
}

test('the sum of every length 0 to 300 from even and odd places is the slow one', (t) => {
  noise(1, u8.subarray(arenaStart, arenaStart + 1000));
  for (let length = 0; length <= 300; length++) {
    for (let start = 0; start < 9; start++) {
      const at = arenaStart + start;
      const bytes = u8.slice(at, at + length);
      for (const initial of [0, 1, 0xffff])
        t.is(native.checksum(at, length, initial), slowSum(bytes, initial), `${length} bytes from ${start}`);
    }
  }
});

test('only zeroes give 0, only ones give 0xffff, whatever the length', (t) => {
  for (const length of [1, 2, 3, 64, 65, 1500, 65535]) {
    u8.fill(0, arenaStart, arenaStart + length);
    t.is(native.checksum(arenaStart, length, 0), 0);
    u8.fill(0xff, arenaStart, arenaStart + length);
    t.is(native.checksum(arenaStart, length, 0), length % 2 === 0 ? 0xffff : 0xff00);
  }
});

test('an initial sum of 32 bits is folded in', (t) => {
  for (const initial of [0x10000, 0x1fffe, 0x12345678, 0xffffffff]) {
    const sum = native.checksum(arenaStart, 0, initial);
    t.true(sum > 0 && sum <= 0xffff);
    t.is(sum % 0xffff, initial % 0xffff);
  }
});

test('property: long runs, and the sum of parts is the sum of the whole', (t) => {
  fc.assert(
    fc.property(fc.nat(1 << 30), fc.nat(7), fc.nat(70_000), fc.nat(35_000), (seed, start, length, cut) => {
      const at = arenaStart + start;
      noise(seed, u8.subarray(at, at + length));
      const whole = native.checksum(at, length, 0);
      t.is(whole, slowSum(u8.subarray(at, at + length)));
      const half = Math.min(cut * 2, length);
      t.is(native.checksum(at + half, length - half, native.checksum(at, half, 0)), whole);
    }),
    { numRuns: 60 },
  );
});

test('a batch gives what single calls give', (t) => {
  noise(7, u8.subarray(arenaStart, arenaStart + 5000));
  const spans = Uint32Array.from(
    { length: 300 * 3 },
    (_, i) => [arenaStart + (i % 97), i * 3, i * 1001][i % 3],
  );
  const out = new Uint32Array(300);
  t.is(native.checksums(spans, 300, out), 0);
  for (let i = 0; i < 300; i++)
    t.is(out[i], native.checksum(spans[i * 3], spans[i * 3 + 1], spans[i * 3 + 2]));
  out.fill(9);
  t.is(native.checksums(spans, 0, out), 0);
  t.true(out.every((word) => word === 9));
});

test('spans outside the memory are errors: the last byte is in, the one behind is not', (t) => {
  t.notThrows(() => native.checksum(SIZE - 1, 1, 0));
  t.notThrows(() => native.checksum(SIZE, 0, 0));
  for (const [start, length] of [
    [SIZE - 1, 2],
    [SIZE, 1],
    [0, SIZE + 1],
    [0xffffffff, 1],
    [1, 0xffffffff],
    [0xffffffff, 0xffffffff],
    [-1, 1],
    [0, -1],
  ]) {
    t.throws(() => native.checksum(start, length, 0), {
      instanceOf: TypeError,
      message: /outside the frame memory/,
    });
    const out = new Uint32Array(2);
    t.is(native.checksums(Uint32Array.of(0, 2, 0, start, length, 0), 2, out), -14, 'EFAULT');
  }
});

test('counts and types that do not fit are refused', (t) => {
  const spans = new Uint32Array(6);
  const out = new Uint32Array(2);
  const call = native.checksums as (...args: unknown[]) => number;
  for (const count of [3, 0xffffffff, -1]) t.throws(() => call(spans, count, out), { instanceOf: TypeError });
  t.throws(() => call(spans, 2, new Uint32Array(1)), { instanceOf: TypeError });
  for (const wrong of [
    null,
    undefined,
    {},
    [],
    'x',
    7,
    new Int32Array(9),
    new Float64Array(9),
    new DataView(new ArrayBuffer(9)),
  ]) {
    t.throws(() => call(wrong, 1, out), { instanceOf: TypeError });
    t.throws(() => call(spans, 1, wrong), { instanceOf: TypeError });
  }
  const single = native.checksum as (...args: unknown[]) => number;
  for (const wrong of [null, undefined, {}, '1', 1n])
    t.throws(() => single(wrong, 1, 0), { instanceOf: TypeError });
  t.throws(() => single(1, 2), { instanceOf: TypeError, message: /checksum takes 3 arguments, got 2/ });
  t.throws(() => single(), { instanceOf: TypeError });
});
