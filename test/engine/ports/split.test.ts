import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { Batch } from '../../../engine/graph.js';
import { FrameMemory } from '../../../engine/memory/frames.js';
import { createSplitter } from '../../../engine/ports/split.js';
import { be16, concat, ethernet, ipv4, ipv6, payload, Rig, slowSum, udp } from '../../support/frames.js';

/** Outer headers, and what is behind them of several datagrams laid one after another. */
function merged(v6: boolean, content: Uint8Array): Uint8Array {
  const datagram = udp(50000, 4789, content);
  datagram.set([0x12, 0x34], 6);
  return v6 ? ethernet({ type: 0x86dd }, ipv6({}, datagram)) : ethernet({ type: 0x0800 }, ipv4({}, datagram));
}

/** What the splitter is to make of one datagram. */
function expected(v6: boolean, content: Uint8Array): Uint8Array {
  const datagram = udp(50000, 4789, content);
  return v6 ? ethernet({ type: 0x86dd }, ipv6({}, datagram)) : ethernet({ type: 0x0800 }, ipv4({}, datagram));
}

function pieces(content: Uint8Array, size: number): Uint8Array[] {
  return Array.from({ length: Math.ceil(content.length / size) }, (_, i) =>
    content.subarray(i * size, (i + 1) * size),
  );
}

function splitRig(v6: boolean, memory?: FrameMemory) {
  const rig = new Rig(memory);
  const sink = rig.sink();
  const to = new Batch(sink);
  const splitter = createSplitter(rig.context, 'port:9:split', v6);
  return {
    rig,
    sink,
    splitter,
    split(bytes: Uint8Array, size: number, alignment = 6): number {
      const count = splitter.split(rig.put(bytes, { alignment, offload: 0x501 }), size, to);
      to.flush();
      return count;
    },
    drops: (reason: string) => rig.counter('port:9:split:drops', reason),
  };
}

function assertSplit(t: ExecutionContext, v6: boolean, length: number, size: number, alignment = 6): void {
  const { rig, sink, split, drops } = splitRig(v6);
  const content = payload(length, size);
  const wanted = pieces(content, size).map((piece) => expected(v6, piece));
  const what = `${length} bytes in ${size}, IPv${v6 ? 6 : 4}`;
  t.is(split(merged(v6, content), size, alignment), wanted.length, what);
  t.true(
    sink.caught.every(({ off, offload }) => (off & 1) === 0 && offload === 0),
    'even addresses, nothing left to do',
  );
  const got = sink.take();
  t.deepEqual(got, wanted, what);
  if (!v6) for (const bytes of got) t.is(slowSum(bytes.subarray(14, 34)), 0xffff, 'IPv4 header checksum');
  t.is(drops('bad-size') + drops('no-slot'), 0);
  rig.finish(t);
}

for (const v6 of [false, true]) {
  const over = `over IPv${v6 ? 6 : 4}`;

  test(`equal datagrams ${over}, the last shorter, odd sizes included`, (t) => {
    for (const [length, size] of [
      [3000, 1000],
      [3001, 1000],
      [2999, 1000],
      [2997, 999],
      [64, 1],
      [127, 2],
      [10, 3],
      [1450 * 40 + 1, 1450],
    ])
      assertSplit(t, v6, length, size);
  });

  test(`one datagram ${over}, shorter than or as long as the size`, (t) => {
    assertSplit(t, v6, 1000, 1000);
    assertSplit(t, v6, 999, 1000);
    assertSplit(t, v6, 1, 65535);
  });

  test(`any length and size ${over}`, (t) => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 6000 }),
        fc.integer({ min: 1, max: 3000 }),
        fc.constantFrom(0, 2, 4, 6),
        (length, size, alignment) => {
          fc.pre(Math.ceil(length / size) <= 128);
          assertSplit(t, v6, length, size, alignment);
        },
      ),
      { numRuns: 150 },
    );
  });

  test(`a size of zero, no payload, and more than 128 datagrams ${over}: dropped and counted`, (t) => {
    const { rig, sink, split, drops } = splitRig(v6);
    t.is(split(merged(v6, payload(100)), 0), 0);
    t.is(split(merged(v6, payload(0)), 10), 0);
    t.is(split(merged(v6, payload(129)), 1), 0);
    t.is(split(merged(v6, payload(0)).subarray(0, 20), 10), 0);
    t.is(drops('bad-size'), 4);
    t.deepEqual(sink.take(), []);
    t.is(split(merged(v6, payload(128)), 1), 128, 'and 128 are taken');
    t.is(sink.take().length, 128);
    rig.finish(t);
  });
}

test('no slot: the datagrams that find one go on in order, the others are counted, nothing leaks', (t) => {
  const memory = new FrameMemory({ small: 4, large: 1 });
  const { rig, sink, split, drops } = splitRig(false, memory);
  const content = payload(7 * 500);
  // The received frame takes the large slot; three of the small ones are taken by others.
  const others = [memory.allocSmall(), memory.allocSmall()];
  t.is(split(merged(false, content), 500), 3);
  const got = sink.take();
  t.deepEqual(
    got,
    pieces(content, 500)
      .slice(0, 3)
      .map((piece) => expected(false, piece)),
  );
  t.is(drops('no-slot'), 4);
  for (const other of others) memory.free(other);
  t.is(split(merged(false, content), 700), 5, 'later there is room again');
  t.is(sink.take().length, 5);
  rig.finish(t);
});

test('a batch that fills while datagrams are pushed hands them on whole', (t) => {
  const { rig, sink, splitter } = splitRig(false);
  // Whoever consumes a batch may write in front of a frame at once, as a port does with its vnet header.
  const spoiler = new Batch({
    process(batch) {
      for (let i = 0; i < batch.count; i++) {
        const start = rig.memory.off[batch.frames[i]];
        rig.memory.u8.fill(0xee, start - 24, start);
      }
      sink.process(batch);
    },
  });
  const content = payload(128 * 20);
  for (let i = 0; i < 3; i++) splitter.split(rig.put(merged(false, content), { alignment: 6 }), 20, spoiler);
  spoiler.flush();
  const wanted = pieces(content, 20).map((piece) => expected(false, piece));
  t.deepEqual(sink.take(), [...wanted, ...wanted, ...wanted]);
  rig.finish(t);
});

test('TOS, TTL and identification of the outer header are copied to each datagram', (t) => {
  const { rig, sink, split } = splitRig(false);
  const header = { tos: 0x03, ttl: 7, id: 0x4321, fragment: 0x4000, source: '192.0.2.7' };
  split(ethernet({ type: 0x0800 }, ipv4(header, udp(1, 2, payload(30)))), 10);
  t.deepEqual(
    sink.take(),
    pieces(payload(30), 10).map((piece) =>
      concat(ethernet({ type: 0x0800 }, ipv4(header, concat(be16(1, 2, 18, 0), piece)))),
    ),
  );
  rig.finish(t);
});
