import test from 'ava';
import fc from 'fast-check';
import {
  FrameMemory,
  HEADROOM,
  LARGE_CAPACITY,
  LARGE_STRIDE,
  NO_FRAME,
  SMALL_CAPACITY,
  SMALL_STRIDE,
} from '../../../engine/memory/frames.js';
import { payload } from '../../support/frames.js';

test('slots do not overlap each other, the arena or the metadata', (t) => {
  const m = new FrameMemory({ small: 5, large: 3, arena: 1000 });
  for (let frame = 0; frame < 8; frame++) {
    const end = m.start(frame) - HEADROOM + (frame < 5 ? SMALL_STRIDE : LARGE_STRIDE);
    t.is(m.start(frame) % 64, 0, 'on a cache line');
    t.true(end <= (frame < 7 ? m.start(frame + 1) - HEADROOM : m.arenaStart));
  }
  t.true(m.off.byteOffset >= m.arenaStart + m.arenaSize);
  const arrays = [m.off, m.len, m.ingress, m.dest, m.mark, m.offload, m.domain, m.gsoSize, m.hdrLen];
  const spans = [...arrays, m.csumStart, m.csumOffset].map((a) => [
    a.byteOffset,
    a.byteOffset + a.byteLength,
  ]);
  for (const [i, [start]] of spans.entries()) if (i > 0) t.true(start >= spans[i - 1][1]);
  t.true(spans.at(-1)![1] <= m.buffer.byteLength);
});

test('small slots come first, then large ones, then none', (t) => {
  const m = new FrameMemory({ small: 2, large: 1 });
  t.deepEqual([m.alloc(10), m.alloc(SMALL_CAPACITY), m.alloc(10), m.alloc(10)], [0, 1, 2, NO_FRAME]);
  t.is(m.inUse, 3);
  t.deepEqual([m.freeSmallCount, m.freeLargeCount], [0, 0]);
  t.is(m.allocSmall(), NO_FRAME);
  t.is(m.allocLarge(), NO_FRAME);
  for (const frame of [1, 2, 0]) m.free(frame);
  m.audit();
  t.is(m.inUse, 0);
  t.is(m.alloc(SMALL_CAPACITY + 1), 2);
  t.is(m.alloc(SMALL_CAPACITY + 1), NO_FRAME, 'it does not fit into a small one');
  t.is(m.alloc(LARGE_CAPACITY + 1), NO_FRAME);
  m.free(2);
});

test('a slot handed out anew is behind the headroom and an ordinary frame', (t) => {
  const m = new FrameMemory({ small: 1, large: 1 });
  for (const take of [() => m.allocSmall(), () => m.allocLarge()]) {
    const frame = take();
    m.off[frame] -= 100;
    m.offload[frame] = 0x501;
    m.free(frame);
    t.is(take(), frame);
    t.is(m.off[frame], m.start(frame));
    t.is(m.offload[frame], 0);
    m.free(frame);
  }
});

test('a slot freed twice is found', (t) => {
  const m = new FrameMemory({ small: 3, large: 2 });
  const frame = m.allocSmall();
  m.allocSmall();
  m.free(frame);
  m.audit();
  m.free(frame);
  t.throws(() => m.audit(), { message: /slot 0 was freed twice/ });
  const large = new FrameMemory({ small: 1, large: 1 });
  large.free(1);
  t.throws(() => large.audit(), { message: /more slots were freed than exist/ });
});

test('property: taking and giving back in any order never hands a slot out twice', (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.constantFrom('small', 'large', 'fit', 'free'), fc.nat(70000))),
      (steps) => {
        const m = property;
        const held: number[] = [];
        for (const [what, n] of steps) {
          if (what === 'free') {
            if (held.length > 0) m.free(held.splice(n % held.length, 1)[0]);
            continue;
          }
          const frame = what === 'small' ? m.allocSmall() : what === 'large' ? m.allocLarge() : m.alloc(n);
          if (frame === NO_FRAME) continue;
          t.false(held.includes(frame));
          if (what === 'fit' && n > SMALL_CAPACITY) t.true(frame >= m.small);
          held.push(frame);
        }
        t.is(m.inUse, held.length);
        m.audit();
        for (const frame of held) m.free(frame);
        m.audit();
        t.is(m.inUse, 0);
      },
    ),
  );
});

const property = new FrameMemory({ small: 6, large: 4 });

test('property: a clone is the frame with all that is known of it, and touches no other slot', (t) => {
  const m = new FrameMemory({ small: 3, large: 2 });
  const length = fc.oneof(
    fc.integer({ min: 0, max: 200 }),
    fc.constantFrom(SMALL_CAPACITY - 1, SMALL_CAPACITY),
  );
  fc.assert(
    fc.property(length, fc.nat(7), fc.nat(60), (size, alignment, prepended) => {
      const frame = m.allocSmall();
      const guard = [m.allocSmall(), m.allocSmall()];
      for (const other of guard) m.free(other);
      for (let at = 0; at < 3; at++)
        if (at !== frame) m.u8.fill(0xee, at * SMALL_STRIDE, (at + 1) * SMALL_STRIDE);
      m.off[frame] += alignment - prepended;
      m.len[frame] = size;
      m.u8.set(payload(size), m.off[frame]);
      const words = [
        m.ingress,
        m.dest,
        m.mark,
        m.offload,
        m.domain,
        m.gsoSize,
        m.hdrLen,
        m.csumStart,
        m.csumOffset,
      ];
      for (const [i, array] of words.entries()) array[frame] = 1000 + i;
      const copy = m.clone(frame);
      t.not(copy, frame);
      t.deepEqual(m.u8.slice(m.off[copy], m.off[copy] + size), payload(size));
      t.is(m.off[copy] & 7, m.off[frame] & 7);
      t.true(m.off[copy] - m.start(copy) < 8, 'full headroom');
      for (const [i, array] of [m.len, ...words].entries()) t.is(array[copy], i === 0 ? size : 999 + i);
      const third = 3 - frame - copy;
      t.true(m.u8.subarray(third * SMALL_STRIDE, (third + 1) * SMALL_STRIDE).every((byte) => byte === 0xee));
      m.free(frame);
      m.free(copy);
    }),
    { numRuns: 300 },
  );
  t.is(m.inUse, 0);
});

test('a clone of the largest frame fits, and stays within its slot', (t) => {
  const m = new FrameMemory({ small: 1, large: 3 });
  const frame = m.allocLarge();
  const behind = [m.allocLarge(), m.allocLarge()];
  for (const other of behind) m.free(other);
  m.off[frame] += 6;
  m.len[frame] = LARGE_CAPACITY;
  m.u8.set(payload(LARGE_CAPACITY), m.off[frame]);
  const free = 1 + 2 + 3 - frame - m.freeLarge[m.freeLargeCount - 1];
  m.u8.fill(0xee, m.start(free) - HEADROOM, m.start(free) - HEADROOM + LARGE_STRIDE);
  const copy = m.clone(frame);
  t.deepEqual(m.u8.slice(m.off[copy], m.off[copy] + LARGE_CAPACITY), payload(LARGE_CAPACITY));
  t.true(
    m.u8.subarray(m.start(free) - HEADROOM, m.start(free) - HEADROOM + LARGE_STRIDE).every((b) => b === 0xee),
  );
  m.allocSmall();
  m.allocLarge();
  t.is(m.clone(frame), NO_FRAME);
});

test('more memory than can be had is an error that says how much', (t) => {
  t.throws(() => new FrameMemory({ small: 0, large: 1 << 20 }), {
    message: /cannot reserve \d+ KiB of frame memory/,
  });
});

test('who waits gives back a large slot that is larger than it needs, and there are always large ones to receive into', (t) => {
  const m = new FrameMemory({ small: 4, large: 8 });
  const received = (length: number): number => {
    const frame = m.takeLarge();
    m.off[frame] += 10;
    m.len[frame] = length;
    m.domain[frame] = 7;
    m.csumStart[frame] = length & 0xff;
    m.u8.set(payload(length, length), m.off[frame]);
    return frame;
  };
  const waiting = [60, 1500, 1501, 1502, 1503].map((length) => m.park(received(length)));
  // Half of the small slots stay free; then large ones wait, a quarter of them.
  t.deepEqual(
    waiting.map((frame) => frame >= 0 && frame < 4),
    [true, true, false, false, false],
  );
  t.is(waiting[4], NO_FRAME);
  t.deepEqual([m.freeSmallCount, m.freeLargeCount], [2, 5]);
  for (const [i, length] of [60, 1500, 1501].entries()) {
    const frame = waiting[i];
    t.deepEqual([m.len[frame], m.domain[frame], m.csumStart[frame]], [length, 7, length & 0xff]);
    t.deepEqual(m.u8.slice(m.off[frame], m.off[frame] + length), payload(length, length));
  }
  // What is in a small slot waits there, and what ends makes room.
  const small = m.alloc(10);
  t.is(m.park(small), small);
  m.resume(waiting[2]);
  const large = received(40_000);
  t.is(m.park(large), large);
  t.is(m.park(received(40_000)), NO_FRAME);
  for (const frame of [waiting[0], waiting[3], large]) m.resume(frame);
  t.not(m.park(waiting[2]), NO_FRAME);
});
