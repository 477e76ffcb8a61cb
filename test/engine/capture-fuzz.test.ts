import test from 'ava';
import fc from 'fast-check';
import { type Capture, CaptureError } from '../../engine/ports/capture/capture.js';
import { loadFrames, measureFrames } from '../../engine/ports/capture/frames.js';
import { readCapture } from '../../engine/ports/capture/reader.js';
import { filler, PcapngFixture, pcap } from '../support/pcap-fixtures.js';

/** Seeds: one file per format and link type, small enough that a few mutations hit something that matters. */
const LINKS = [0, 1, 9, 50, 101, 104, 108, 113, 228, 229, 231, 276, 0x24000001];
const SEEDS: readonly Uint8Array[] = [
  ...LINKS.map((link) =>
    pcap([{ data: filler(30) }, { data: filler(0) }, { data: filler(61, 3) }], { link }),
  ),
  ...[0xa1b23c4d, 0xa1b2cd34].map((magic) =>
    pcap([{ data: filler(30) }, { data: filler(20) }], { magic, little: false, extra: magic & 1 ? 0 : 8 }),
  ),
  ...[true, false].map((little) =>
    new PcapngFixture(little)
      .section()
      .interface(1, 50, [
        [2, filler(5)],
        [9, Uint8Array.of(9)],
        [13, Uint8Array.of(4)],
        [14, filler(8)],
      ])
      .enhanced(0, filler(33), 12345678901234567n, { options: [[1, filler(3)]] })
      .interface(113)
      .simple(filler(20))
      .packet(1, filler(40), 99n)
      .section()
      .interface(101, 0, [[9, Uint8Array.of(0xa0)]])
      .enhanced(0, filler(20), 5n)
      .done(),
  ),
];

/** Reads the bytes and holds every claim of the interface to them. */
function holds(bytes: Uint8Array): void {
  let capture: Capture;
  try {
    capture = readCapture(bytes, 'fuzz');
  } catch (error) {
    if (!(error instanceof CaptureError)) throw error;
    if (!(error.offset >= 0 && error.offset <= bytes.length)) throw new Error(`error at ${error.offset}`);
    return;
  }
  const { count, offsets, capturedLengths, nanoseconds, interfaceIndices, interfaces, problems } = capture;
  let end = 0;
  for (let i = 0; i < count; i++) {
    if (offsets[i] < end) throw new Error(`packet ${i} overlaps the one before`);
    end = offsets[i] + capturedLengths[i];
    if (end > bytes.length) throw new Error(`packet ${i} lies outside the file`);
    if (nanoseconds[i] > 999_999_999) throw new Error(`packet ${i} has ${nanoseconds[i]} ns`);
    if (interfaceIndices[i] >= interfaces.length) throw new Error(`packet ${i} has no interface`);
  }
  for (const { offset } of problems) {
    if (!(offset >= 0 && offset < bytes.length)) throw new Error(`problem at ${offset} of ${bytes.length}`);
  }
  const { arenaBytes, count: frames } = measureFrames([capture]);
  const index = loadFrames([capture], { u8: new Uint8Array(arenaBytes), start: 0, size: arenaBytes });
  const skipped = Object.values(index.skipped).reduce((sum, n) => sum + n, 0);
  if (index.count !== frames || index.count + skipped !== count)
    throw new Error('frames are not accounted for');
}

test('the seeds themselves are sound', (t) => {
  for (const seed of SEEDS) {
    t.deepEqual(readCapture(seed).problems, []);
    t.true(readCapture(seed).count >= 2);
    holds(seed);
  }
});

test('property: random bytes behind any magic number give packets inside the file or a CaptureError', (t) => {
  const magics = ['d4c3b2a1', 'a1b2c3d4', '4d3cb2a1', 'a1b23c4d', '34cdb2a1', '0a0d0d0a', '1f8b0800', ''];
  const heads = magics.map((magic) => Uint8Array.from(Buffer.from(magic, 'hex')));
  heads.push(...SEEDS.map((seed) => seed.slice(0, 28)));
  fc.assert(
    fc.property(fc.constantFrom(...heads), fc.uint8Array({ maxLength: 400 }), (head, rest) => {
      holds(Uint8Array.from([...head, ...rest]));
    }),
    { numRuns: 20_000 },
  );
  t.pass();
});

test('property: mutated captures give packets inside the file or a CaptureError', (t) => {
  const interesting = fc.constantFrom(0, 1, 4, 12, 0x7f, 0x80, 0xff);
  const mutation = fc.record({
    at: fc.nat(1000),
    value: fc.oneof(interesting, fc.nat(255)),
    /** How many bytes in a row take the value. */
    run: fc.constantFrom(1, 1, 2, 4),
  });
  const cut = fc.option(fc.nat(1000));
  fc.assert(
    fc.property(
      fc.constantFrom(...SEEDS),
      fc.array(mutation, { maxLength: 6 }),
      cut,
      (seed, mutations, length) => {
        const bytes = length === null ? seed.slice() : seed.slice(0, length % (seed.length + 1));
        for (const { at, value, run } of mutations)
          bytes.fill(value, at % seed.length, (at % seed.length) + run);
        holds(bytes);
      },
    ),
    { numRuns: 20_000 },
  );
  t.pass();
});

test('every byte of every seed, set to each of a few values', (t) => {
  for (const seed of SEEDS) {
    for (let at = 0; at < seed.length; at++) {
      for (const value of [0, 1, 0x7f, 0x80, 0xff]) {
        const bytes = seed.slice();
        bytes[at] = value;
        holds(bytes);
      }
    }
  }
  t.pass();
});
