import test from 'ava';
import { CaptureError } from '../../engine/ports/capture/capture.js';
import { readCapture } from '../../engine/ports/capture/reader.js';
import { filler, packetBytes, pcap } from '../support/pcap-fixtures.js';

const PACKETS = [
  { data: filler(60, 1), seconds: 1_700_000_000, fraction: 123_456 },
  { data: filler(0), seconds: 1_700_000_001, fraction: 0, original: 90 },
  { data: filler(1500, 2), seconds: 0xffffffff, fraction: 999_999, original: 9000 },
];

for (const [magic, unit, perUnit, extra] of [
  [0xa1b2c3d4, 'us', 1000, 0],
  [0xa1b23c4d, 'ns', 1, 0],
  [0xa1b2cd34, 'us-modified', 1000, 8],
] as const) {
  for (const little of [true, false]) {
    const format = `pcap-${little ? 'le' : 'be'}-${unit}`;
    test(`reads ${format}`, (t) => {
      const capture = readCapture(pcap(PACKETS, { little, magic, extra }));
      t.is(capture.format, format as typeof capture.format);
      t.is(capture.count, 3);
      t.deepEqual(capture.problems, []);
      t.deepEqual(capture.interfaces, [
        { linkType: 1, snaplen: 65535, tsUnitsPerSecond: 1e9 / perUnit, tsOffsetSeconds: 0, fcsLength: 0 },
      ]);
      t.deepEqual(
        [...capture.offsets],
        [24 + 16 + extra, 24 + 60 + 2 * (16 + extra), 24 + 60 + 3 * (16 + extra)],
      );
      t.deepEqual([...capture.capturedLengths], [60, 0, 1500]);
      t.deepEqual([...capture.originalLengths], [60, 90, 9000]);
      t.deepEqual([...capture.seconds], [1_700_000_000, 1_700_000_001, 0xffffffff]);
      t.deepEqual([...capture.nanoseconds], [123_456 * perUnit, 0, 999_999 * perUnit]);
      t.deepEqual([...capture.interfaceIndices], [0, 0, 0]);
      PACKETS.forEach((packet, i) => {
        t.deepEqual(packetBytes(capture, i), packet.data);
      });
    });
  }
}

test('an empty capture has no packets and no problems', (t) => {
  const capture = readCapture(pcap([]));
  t.is(capture.count, 0);
  t.is(capture.offsets.length, 0);
  t.deepEqual(capture.problems, []);
});

test('a view into a larger buffer reads from its own first byte', (t) => {
  const file = pcap(PACKETS);
  const larger = new Uint8Array(file.length + 10).fill(0xee);
  larger.set(file, 5);
  const capture = readCapture(larger.subarray(5, 5 + file.length));
  t.is(capture.count, 3);
  t.deepEqual(packetBytes(capture, 0), PACKETS[0].data);
});

test('more packets than the index first has room for', (t) => {
  const packets = Array.from({ length: 5000 }, (_, i) => ({ data: filler(i % 50, i), seconds: i }));
  const capture = readCapture(pcap(packets));
  t.is(capture.count, 5000);
  for (const i of [0, 1023, 1024, 2048, 4999]) {
    t.is(capture.seconds[i], i);
    t.deepEqual(packetBytes(capture, i), packets[i].data);
  }
});

test('a fraction of a second or more carries into the seconds', (t) => {
  const us = readCapture(pcap([{ data: filler(4), seconds: 10, fraction: 2_500_000 }]));
  t.deepEqual([us.seconds[0], us.nanoseconds[0]], [12, 500_000_000]);
  const ns = readCapture(
    pcap([{ data: filler(4), seconds: 10, fraction: 0xffffffff }], { magic: 0xa1b23c4d }),
  );
  t.deepEqual([ns.seconds[0], ns.nanoseconds[0]], [14, 294_967_295]);
});

test('the link-type word: 16 bits of type, and the frame check sequence in 16-bit words', (t) => {
  const ethernet = readCapture(pcap([], { link: 0x24000001 })).interfaces[0];
  t.deepEqual([ethernet.linkType, ethernet.fcsLength], [1, 4]);
  const ppp = readCapture(pcap([], { link: 0x14000009 })).interfaces[0];
  t.deepEqual([ppp.linkType, ppp.fcsLength], [9, 2]);
  // Without bit 26 the length means nothing, and the reserved bits never do.
  const unknown = readCapture(pcap([], { link: 0x20010001 })).interfaces[0];
  t.deepEqual([unknown.linkType, unknown.fcsLength], [1, 0]);
});

test('versions before 2.3 hold the two lengths in the other order', (t) => {
  const old = pcap([{ data: filler(20), captured: 90, original: 20 }], { version: [2, 2] });
  const capture = readCapture(old);
  t.deepEqual([capture.count, capture.capturedLengths[0], capture.originalLengths[0]], [1, 20, 90]);
  // 2.3 was written both ways: the smaller length is the captured one.
  for (const packet of [
    { data: filler(20), captured: 90, original: 20 },
    { data: filler(20), captured: 20, original: 90 },
  ]) {
    const either = readCapture(pcap([packet], { version: [2, 3] }));
    t.deepEqual([either.capturedLengths[0], either.originalLengths[0]], [20, 90]);
  }
});

test('a cut last packet is left out and reported where its record begins', (t) => {
  const whole = pcap(PACKETS);
  const capture = readCapture(whole.subarray(0, whole.length - 1));
  t.is(capture.count, 2);
  t.deepEqual(capture.problems, [
    { offset: 24 + 60 + 2 * 16, message: 'the last record is cut: 1499 of 1500 bytes' },
  ]);
});

test('a cut last record header is reported where it begins', (t) => {
  const whole = pcap(PACKETS.slice(0, 2));
  const capture = readCapture(whole.subarray(0, whole.length - 1));
  t.is(capture.count, 1);
  t.deepEqual(capture.problems, [
    { offset: 24 + 16 + 60, message: 'the last record header is cut: 15 of 16 bytes' },
  ]);
});

test('every cut of a file gives the packets that are whole, and a problem unless it falls between records', (t) => {
  const whole = pcap(PACKETS.slice(0, 2));
  for (let length = 24; length <= whole.length; length++) {
    const capture = readCapture(whole.subarray(0, length));
    t.is(capture.count, length < 100 ? 0 : length < 116 ? 1 : 2, `${length} bytes`);
    t.is(capture.problems.length, [24, 100, 116].includes(length) ? 0 : 1, `${length} bytes`);
  }
});

test('an absurd length ends the reading where it stands', (t) => {
  for (const captured of [262_145, 0x7fffffff, 0xffffffff]) {
    const file = pcap([PACKETS[0], { data: filler(300), captured }, PACKETS[2]]);
    const capture = readCapture(file);
    t.is(capture.count, 1);
    t.is(capture.problems.length, 1);
    t.is(capture.problems[0].offset, 24 + 16 + 60);
    t.regex(capture.problems[0].message, new RegExp(`says it holds ${captured} bytes`));
  }
});

test('the longest believable packet is read, and a D-Bus message may be longer', (t) => {
  t.is(readCapture(pcap([{ data: filler(262_144) }])).capturedLengths[0], 262_144);
  t.is(readCapture(pcap([{ data: filler(262_145) }])).count, 0);
  t.is(readCapture(pcap([{ data: filler(262_145) }], { link: 231 })).capturedLengths[0], 262_145);
});

for (const [what, bytes, offset, message] of [
  ['an empty file', new Uint8Array(0), 0, /the file is empty.*again/],
  ['three bytes', Uint8Array.of(0xd4, 0xc3, 0xb2), 3, /within its magic number/],
  ['a cut header', pcap([]).subarray(0, 23), 23, /header is cut: 23 of 24/],
  ['an unknown version', pcap([], { version: [3, 0] }), 4, /version 3\.0 is not known.*editcap/],
  ['a later version', pcap([], { version: [2, 5] }), 4, /version 2\.5 is not known/],
  ['an unknown magic number', filler(100), 0, /0x01080f16 is neither pcap nor pcapng.*check/],
  ['snoop', new TextEncoder().encode('snoop\0\0\0\0\0\0\x02'), 0, /snoop.*editcap -F pcapng/],
  ['gzip', Uint8Array.of(0x1f, 0x8b, 8, 0, 0), 0, /gzip.*gunzip/],
  ['zstd', Uint8Array.of(0x28, 0xb5, 0x2f, 0xfd), 0, /zstd/],
] as const) {
  test(`${what} is a CaptureError with file, offset and remedy`, (t) => {
    const error = t.throws(() => readCapture(bytes, 'some.pcap'), { instanceOf: CaptureError, message });
    t.is(error?.file, 'some.pcap');
    t.is(error?.offset, offset);
    t.true(error?.message.startsWith('some.pcap: '));
    t.true((error?.remedy.length ?? 0) > 0);
    t.true(error?.message.includes(error.remedy));
  });
}
