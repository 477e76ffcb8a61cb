import test from 'ava';
import { CaptureError } from '../../engine/ports/capture/capture.js';
import { readCapture } from '../../engine/ports/capture/reader.js';
import {
  concat,
  type FixtureOption,
  filler,
  hex,
  PcapngFixture,
  packetBytes,
} from '../support/pcap-fixtures.js';

const NAME: FixtureOption = [2, new TextEncoder().encode('eth0')];
const tsresol = (value: number): FixtureOption => [9, Uint8Array.of(value)];

for (const little of [true, false]) {
  const order = little ? 'le' : 'be';
  test(`reads every packet block of pcapng-${order} and steps over the rest`, (t) => {
    const ticks = 1_700_000_000_123_456n;
    const fixture = new PcapngFixture(little)
      .section()
      .interface(1, 0, [NAME])
      .block(4, filler(8)) // name resolution
      .enhanced(0, filler(61, 1), ticks, { original: 70, options: [[1, filler(5)]] })
      .block(5, filler(12)) // interface statistics
      .block(10, filler(16)) // decryption secrets
      .simple(filler(63, 2))
      .block(0xbad, filler(9)) // custom
      .packet(0, filler(62, 3), ticks + 1n)
      .block(0x7fffffff, filler(0)); // unknown
    const capture = readCapture(fixture.done());
    t.is(capture.format, `pcapng-${order}` as const);
    t.deepEqual(capture.problems, []);
    t.is(capture.count, 3);
    t.deepEqual(capture.interfaces, [
      { linkType: 1, name: 'eth0', snaplen: 0, tsUnitsPerSecond: 1e6, tsOffsetSeconds: 0, fcsLength: 0 },
    ]);
    t.deepEqual(
      [...capture.offsets],
      [fixture.offsetOf(3) + 28, fixture.offsetOf(6) + 12, fixture.offsetOf(8) + 28],
    );
    t.deepEqual([...capture.capturedLengths], [61, 63, 62]);
    t.deepEqual([...capture.originalLengths], [70, 63, 62]);
    t.deepEqual([...capture.seconds], [1_700_000_000, 0, 1_700_000_000]);
    t.deepEqual([...capture.nanoseconds], [123_456_000, 0, 123_457_000]);
    t.deepEqual(packetBytes(capture, 0), filler(61, 1));
    t.deepEqual(packetBytes(capture, 1), filler(63, 2));
    t.deepEqual(packetBytes(capture, 2), filler(62, 3));
  });
}

for (const [what, resolution, ticks, seconds, nanoseconds] of [
  ['seconds', 0, 1_700_000_000n, 1_700_000_000, 0],
  ['milliseconds', 3, 1_700_000_000_999n, 1_700_000_000, 999_000_000],
  ['nanoseconds', 9, 1_700_000_000_123_456_789n, 1_700_000_000, 123_456_789],
  ['nanoseconds at the end of 64 bits', 9, 0xffff_ffff_ffff_ffffn, 18_446_744_073, 709_551_615],
  ['nanoseconds, where a division would round', 9, 1_700_000_000_505_060_000n, 1_700_000_000, 505_060_000],
  ['100 nanoseconds', 7, 1_700_000_000_123_456_7n, 1_700_000_000, 123_456_700],
  ['picoseconds', 12, 1_700_000_123_456_789_012n, 1_700_000, 123_456_789],
  ['10^-19 s', 19, 10n ** 19n + 5n * 10n ** 18n, 1, 500_000_000],
  ['2^-10 s', 0x8a, 1025n, 1, 976_562],
  ['2^-32 s (NTP)', 0xa0, (5n << 32n) | 0x8000_0000n, 5, 500_000_000],
  ['2^-63 s', 0xbf, 3n << 62n, 1, 500_000_000],
] as const) {
  test(`timestamps in ${what}`, (t) => {
    const fixture = new PcapngFixture().section().interface(1, 0, [tsresol(resolution)]);
    const capture = readCapture(fixture.enhanced(0, filler(20), ticks).done());
    t.deepEqual([capture.seconds[0], capture.nanoseconds[0]], [seconds, nanoseconds]);
    t.deepEqual(capture.problems, []);
  });
}

test('if_tsoffset moves the seconds, forwards and back', (t) => {
  for (const [offset, seconds] of [
    ['00 00 00 00 01 00 00 00', 7 + 2 ** 32],
    ['f6 ff ff ff ff ff ff ff', 7 - 10],
  ] as const) {
    const decimal = new PcapngFixture().section().interface(1, 0, [[14, hex(offset)]]);
    t.is(readCapture(decimal.enhanced(0, filler(20), 7_000_000n).done()).seconds[0], seconds);
    const binary = new PcapngFixture().section().interface(1, 0, [tsresol(0xa0), [14, hex(offset)]]);
    t.is(readCapture(binary.enhanced(0, filler(20), 7n << 32n).done()).seconds[0], seconds);
  }
});

test('if_fcslen is read as bytes and as bits', (t) => {
  for (const [value, bytes] of [
    [0, 0],
    [4, 4],
    [32, 4],
    [16, 2],
  ]) {
    const fixture = new PcapngFixture().section().interface(1, 0, [[13, Uint8Array.of(value)]]);
    t.is(readCapture(fixture.done()).interfaces[0].fcsLength, bytes);
  }
});

test('sections number their interfaces anew and may differ in byte order', (t) => {
  const first = new PcapngFixture(true).section().interface(1).interface(101).enhanced(1, filler(20, 1), 1n);
  const second = new PcapngFixture(false)
    .section()
    .interface(113)
    .enhanced(0, filler(21, 2), 2n)
    .simple(filler(22));
  const capture = readCapture(concat([first.done(), second.done()]));
  t.is(capture.format, 'pcapng-le');
  t.deepEqual(
    capture.interfaces.map((i) => i.linkType),
    [1, 101, 113],
  );
  t.deepEqual([...capture.interfaceIndices], [1, 2, 2]);
  t.deepEqual([...capture.capturedLengths], [20, 21, 22]);
  t.deepEqual(capture.problems, []);
});

test('a simple packet holds what the snaplen of interface 0 let through', (t) => {
  const fixture = new PcapngFixture().section().interface(1, 24).simple(filler(24), 1000);
  const capture = readCapture(fixture.done());
  t.deepEqual([capture.capturedLengths[0], capture.originalLengths[0]], [24, 1000]);
  t.deepEqual(capture.problems, []);
});

/** Three packets, the middle one or its surroundings spoilt by `spoil`; where and what is reported. */
interface Damage {
  readonly what: string;
  readonly spoil: (fixture: PcapngFixture) => PcapngFixture;
  /** Offset of the problem from the start of the spoilt block (block 3). */
  readonly at: number;
  readonly message: RegExp;
  /** Packets that are read. */
  readonly count: number;
}

const DAMAGES: readonly Damage[] = [
  {
    what: 'a packet of an interface that is not described',
    spoil: (f) => f.enhanced(7, filler(20), 1n),
    at: 8,
    message: /names interface 7/,
    count: 2,
  },
  {
    what: 'a packet longer than its block',
    spoil: (f) => f.enhanced(0, filler(20), 1n, { captured: 21 }),
    at: 20,
    message: /holds 21 bytes, its block has room for 20/,
    count: 2,
  },
  {
    what: 'a packet of absurd length',
    spoil: (f) => f.enhanced(0, filler(20), 1n, { captured: 0xffffffff }),
    at: 20,
    message: /holds 4294967295 bytes/,
    count: 2,
  },
  {
    what: 'a packet block too short for its header',
    spoil: (f) => f.block(6, filler(16)),
    at: 0,
    message: /28 bytes long, not at least 32/,
    count: 2,
  },
  {
    what: 'a simple packet block without its length',
    spoil: (f) => f.block(3, filler(0)),
    at: 0,
    message: /12 bytes long, not at least 16/,
    count: 2,
  },
  {
    what: 'a simple packet longer than its block',
    spoil: (f) => f.simple(filler(20), 21),
    at: 8,
    message: /holds 21 bytes, its block has room for 20/,
    count: 2,
  },
  {
    what: 'a block length that is no multiple of 4',
    spoil: (f) => f.block(6, filler(40), { length: 53 }),
    at: 4,
    message: /53 bytes long/,
    count: 1,
  },
  {
    what: 'a block length of zero',
    spoil: (f) => f.block(6, filler(40), { length: 0 }),
    at: 4,
    message: /0 bytes long/,
    count: 1,
  },
  {
    what: 'a block longer than the file',
    spoil: (f) => f.block(6, filler(40), { length: 0xfffffff0 }),
    at: 0,
    message: /of 4294967280 bytes/,
    count: 1,
  },
  {
    what: 'two lengths that differ',
    spoil: (f) => f.block(6, filler(40), { trailer: 56 }),
    at: 48,
    message: /52 bytes long by its first length and 56 by its last/,
    count: 1,
  },
  {
    what: 'an interface block too short',
    spoil: (f) => f.block(1, filler(4)),
    at: 0,
    message: /interface block is 16 bytes/,
    count: 1,
  },
  {
    what: 'a section of another version',
    spoil: (f) => f.section(2),
    at: 12,
    message: /version 2 is not known/,
    count: 1,
  },
  {
    what: 'a section without byte-order magic',
    spoil: (f) => f.block(0x0a0d0d0a, filler(16)),
    at: 8,
    message: /no byte-order magic/,
    count: 1,
  },
];

for (const { what, spoil, at, message, count } of DAMAGES) {
  test(`damage: ${what}`, (t) => {
    const fixture = new PcapngFixture().section().interface(1).enhanced(0, filler(30, 1), 1n);
    spoil(fixture).enhanced(0, filler(40, 2), 2n);
    const capture = readCapture(fixture.done());
    t.is(capture.count, count);
    t.deepEqual(packetBytes(capture, 0), filler(30, 1));
    if (count === 2) t.deepEqual(packetBytes(capture, 1), filler(40, 2));
    t.is(capture.problems.length, 1);
    t.is(capture.problems[0].offset, fixture.offsetOf(3) + at);
    t.regex(capture.problems[0].message, message);
  });
}

test('a new section forgets the interfaces of the one before', (t) => {
  const fixture = new PcapngFixture().section().interface(1).section();
  fixture.simple(filler(20)).enhanced(0, filler(20), 1n);
  const capture = readCapture(fixture.done());
  t.is(capture.count, 0);
  t.deepEqual(
    capture.problems.map((p) => p.offset),
    [fixture.offsetOf(3), fixture.offsetOf(4) + 8],
  );
});

test('an option that reaches past its block is reported, the interface kept', (t) => {
  const body = concat([hex('01 00 00 00 00 00 00 00'), hex('02 00 ff 00'), filler(4)]);
  const fixture = new PcapngFixture().section().block(1, body).enhanced(0, filler(20), 1n);
  const capture = readCapture(fixture.done());
  t.is(capture.count, 1);
  t.is(capture.interfaces[0].name, undefined);
  t.deepEqual(capture.problems, [
    { offset: fixture.offsetOf(1) + 16, message: 'option 2 of an interface is 255 bytes long, 4 remain' },
  ]);
});

test('a resolution finer than 64 bits can count is read as microseconds and reported', (t) => {
  for (const value of [20, 0x7f, 0xc0, 0xff]) {
    const fixture = new PcapngFixture()
      .section()
      .interface(1, 0, [tsresol(value)])
      .enhanced(0, filler(20), 2_000_000n);
    const capture = readCapture(fixture.done());
    t.is(capture.seconds[0], 2);
    t.deepEqual(
      capture.problems.map((p) => p.offset),
      [fixture.offsetOf(1) + 20],
    );
  }
});

test('every cut of a file gives the packets that are whole, and a problem unless it falls between blocks', (t) => {
  const fixture = new PcapngFixture()
    .section()
    .interface(1)
    .enhanced(0, filler(20), 1n)
    .enhanced(0, filler(9), 2n);
  const whole = fixture.done();
  const ends = [1, 2, 3, 4].map((n) => fixture.offsetOf(n));
  for (let length = ends[0]; length <= whole.length; length++) {
    const capture = readCapture(whole.subarray(0, length));
    t.is(capture.count, length < ends[2] ? 0 : length < ends[3] ? 1 : 2, `${length} bytes`);
    t.is(capture.problems.length, ends.includes(length) ? 0 : 1, `${length} bytes`);
    if (capture.problems.length > 0) t.is(capture.problems[0].offset, ends.findLast((end) => end < length)!);
  }
});

test('thousands of bad blocks list a hundred problems and say so', (t) => {
  const fixture = new PcapngFixture().section();
  for (let i = 0; i < 3000; i++) fixture.block(6, filler(0));
  const { problems } = readCapture(fixture.done());
  t.is(problems.length, 101);
  t.deepEqual(problems[100], { offset: fixture.offsetOf(101), message: 'further problems are not listed' });
});

test('more interfaces than an index can name end the reading', (t) => {
  const interfaces = new PcapngFixture().interface(1).done();
  const head = new PcapngFixture().section().done();
  const bytes = new Uint8Array(head.length + 65_536 * interfaces.length);
  bytes.set(head);
  for (let i = 0; i < 65_536; i++) bytes.set(interfaces, head.length + i * interfaces.length);
  const capture = readCapture(bytes);
  t.is(capture.interfaces.length, 65_535);
  t.is(capture.problems[0].offset, head.length + 65_535 * interfaces.length);
});

const header = new PcapngFixture().section().done();
for (const [what, bytes, offset, message] of [
  ['a cut section header', header.subarray(0, 27), 0, /the last block is cut: 27 of 28 bytes/],
  ['nothing but a block type', header.subarray(0, 8), 0, /8 of at least 12 bytes/],
  ['no byte-order magic', concat([header.subarray(0, 8), filler(20)]), 8, /no byte-order magic/],
  ['an unknown version', new PcapngFixture().section(9).done(), 12, /pcapng version 9 is not known/],
] as const) {
  test(`a file that begins with ${what} is a CaptureError`, (t) => {
    const error = t.throws(() => readCapture(bytes, 'some.pcapng'), { instanceOf: CaptureError, message });
    t.is(error?.offset, offset);
    t.is(error?.file, 'some.pcapng');
  });
}
