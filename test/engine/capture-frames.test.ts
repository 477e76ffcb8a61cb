import test from 'ava';
import { loadFrames, MAX_FRAME_LENGTH, measureFrames } from '../../engine/ports/capture/frames.js';
import { linkTypeName } from '../../engine/ports/capture/linktype.js';
import { readCapture } from '../../engine/ports/capture/reader.js';
import { concat, type FixturePacket, filler, hex, PcapngFixture, pcap } from '../support/pcap-fixtures.js';

const IPV4 = hex('45 00 00 14 00 01 00 00 40 11 00 00 0a 00 00 01 0a 00 00 02');
const IPV6 = concat([hex('60 00 00 00 00 00 3b 40'), filler(32)]);
const TO_HOST = '02 00 00 00 00 02';
const FROM_LINK = '02 00 00 00 00 01';

/** Loads the packets of one pcap file of this link-type word; frames are copied out. */
function frames(link: number, packets: readonly FixturePacket[]) {
  const capture = readCapture(pcap(packets, { link }));
  const { arenaBytes } = measureFrames([capture]);
  const u8 = new Uint8Array(arenaBytes + 8).fill(0xee);
  const index = loadFrames([capture], { u8, start: 4, size: arenaBytes });
  const out = Array.from(index.offsets, (offset, i) => u8.slice(offset, offset + index.lengths[i]));
  return { index, u8, out };
}

interface LinkCase {
  readonly what: string;
  readonly link: number;
  readonly header: string;
  readonly payload?: Uint8Array;
  /** The Ethernet header expected, or the reason of the skip. */
  readonly expect: string;
}

const CASES: readonly LinkCase[] = [
  { what: 'RAW with IPv4', link: 101, header: '', expect: `${TO_HOST} ${FROM_LINK} 08 00` },
  { what: 'RAW with IPv6', link: 101, header: '', payload: IPV6, expect: `${TO_HOST} ${FROM_LINK} 86 dd` },
  { what: 'RAW with neither', link: 101, header: '75', expect: 'unsupported-payload:RAW' },
  { what: 'RAW written as 12', link: 12, header: '', expect: `${TO_HOST} ${FROM_LINK} 08 00` },
  { what: 'RAW written as 14', link: 14, header: '', payload: IPV6, expect: `${TO_HOST} ${FROM_LINK} 86 dd` },
  { what: 'IPV4', link: 228, header: '', expect: `${TO_HOST} ${FROM_LINK} 08 00` },
  { what: 'IPV6', link: 229, header: '', payload: IPV6, expect: `${TO_HOST} ${FROM_LINK} 86 dd` },
  { what: 'NULL, little-endian', link: 0, header: '02 00 00 00', expect: `${TO_HOST} ${FROM_LINK} 08 00` },
  { what: 'NULL, big-endian', link: 0, header: '00 00 00 02', expect: `${TO_HOST} ${FROM_LINK} 08 00` },
  {
    what: 'NULL with IPv6 of macOS',
    link: 0,
    header: '1e 00 00 00',
    expect: `${TO_HOST} ${FROM_LINK} 86 dd`,
  },
  {
    what: 'NULL with IPv6 of FreeBSD',
    link: 0,
    header: '00 00 00 1c',
    expect: `${TO_HOST} ${FROM_LINK} 86 dd`,
  },
  { what: 'NULL with another family', link: 0, header: '07 00 00 00', expect: 'unsupported-payload:NULL' },
  { what: 'NULL with garbage', link: 0, header: '02 00 01 00', expect: 'unsupported-payload:NULL' },
  {
    what: 'LOOP with IPv6 of OpenBSD',
    link: 108,
    header: '00 00 00 18',
    expect: `${TO_HOST} ${FROM_LINK} 86 dd`,
  },
  {
    what: 'LINUX_SLL to this host, with the sender’s address',
    link: 113,
    header: '0000 0001 0006 0a0b0c0d0e0f 0000 0800',
    expect: `${TO_HOST} 0a 0b 0c 0d 0e 0f 08 00`,
  },
  {
    what: 'LINUX_SLL broadcast',
    link: 113,
    header: '0001 0001 0006 0a0b0c0d0e0f 0000 0806',
    expect: 'ff ff ff ff ff ff 0a 0b 0c 0d 0e 0f 08 06',
  },
  {
    what: 'LINUX_SLL multicast',
    link: 113,
    header: '0002 0001 0006 0a0b0c0d0e0f 0000 86dd',
    expect: '01 00 5e 00 00 01 0a 0b 0c 0d 0e 0f 86 dd',
  },
  {
    what: 'LINUX_SLL from loopback, whose address is zero',
    link: 113,
    header: '0000 0304 0006 000000000000 0000 0800',
    expect: `${TO_HOST} ${FROM_LINK} 08 00`,
  },
  {
    what: 'LINUX_SLL with a group address as source',
    link: 113,
    header: '0000 0001 0006 0b0b0c0d0e0f 0000 0800',
    expect: `${TO_HOST} ${FROM_LINK} 08 00`,
  },
  {
    what: 'LINUX_SLL with an address of 8 bytes',
    link: 113,
    header: '0000 0018 0008 0a0b0c0d0e0f1011 0800',
    expect: `${TO_HOST} ${FROM_LINK} 08 00`,
  },
  {
    what: 'LINUX_SLL with an LLC frame: the type field is a length',
    link: 113,
    header: '0002 0001 0006 0a0b0c0d0e0f 0000 0004',
    expect: '01 00 5e 00 00 01 0a 0b 0c 0d 0e 0f 00 14',
  },
  {
    what: 'LINUX_SLL with an LLC frame longer than a length field may say',
    link: 113,
    header: '0000 0001 0006 0a0b0c0d0e0f 0000 0004',
    payload: filler(1501),
    expect: 'unsupported-payload:LINUX_SLL',
  },
  {
    what: 'LINUX_SLL with CAN',
    link: 113,
    header: '0000 0118 0000 0000000000000000 000c',
    expect: 'unsupported-payload:LINUX_SLL',
  },
  {
    what: 'LINUX_SLL cut',
    link: 113,
    header: '00',
    payload: filler(14),
    expect: 'short-link-header:LINUX_SLL',
  },
  {
    what: 'LINUX_SLL2',
    link: 276,
    header: '0800 0000 00000002 0001 01 06 0a0b0c0d0e0f0000',
    expect: 'ff ff ff ff ff ff 0a 0b 0c 0d 0e 0f 08 00',
  },
  {
    what: 'LINUX_SLL2 cut',
    link: 276,
    header: '08',
    payload: filler(18),
    expect: 'short-link-header:LINUX_SLL2',
  },
  { what: 'PPP with IPv4', link: 9, header: 'ff 03 00 21', expect: `${TO_HOST} ${FROM_LINK} 08 00` },
  {
    what: 'PPP with IPv6, fields compressed',
    link: 9,
    header: '57',
    expect: `${TO_HOST} ${FROM_LINK} 86 dd`,
  },
  { what: 'PPP with MPLS', link: 9, header: 'ff 03 02 81', expect: `${TO_HOST} ${FROM_LINK} 88 47` },
  { what: 'PPP with LCP', link: 9, header: 'ff 03 c0 21', expect: 'unsupported-payload:PPP' },
  { what: 'PPP cut', link: 9, header: 'ff 03', payload: new Uint8Array(0), expect: 'short-link-header:PPP' },
  {
    what: 'PPP cut in its protocol',
    link: 9,
    header: '00',
    payload: filler(0),
    expect: 'short-link-header:PPP',
  },
  { what: 'PPP in HDLC', link: 50, header: 'ff 03 00 21', expect: `${TO_HOST} ${FROM_LINK} 08 00` },
  {
    what: 'Cisco HDLC in PPP_HDLC',
    link: 50,
    header: '0f 00 08 00',
    expect: `${TO_HOST} ${FROM_LINK} 08 00`,
  },
  { what: 'C_HDLC', link: 104, header: '0f 00 86 dd', expect: `${TO_HOST} ${FROM_LINK} 86 dd` },
  { what: 'C_HDLC keepalive', link: 104, header: '8f 00 80 35', expect: 'unsupported-payload:C_HDLC' },
  { what: 'C_HDLC cut', link: 104, header: '0f 00', payload: filler(1), expect: 'short-link-header:C_HDLC' },
  { what: '802.11', link: 105, header: '', expect: 'unsupported-link-type:IEEE802_11' },
  { what: 'D-Bus', link: 231, header: '', expect: 'unsupported-link-type:DBUS' },
  { what: 'a number without a name', link: 999, header: '', expect: 'unsupported-link-type:999' },
];

for (const { what, link, header, payload = IPV4, expect } of CASES) {
  test(`link type: ${what}`, (t) => {
    const data = concat([hex(header), payload]);
    const { index, out } = frames(link, [{ data }]);
    if (expect.includes(':')) {
      t.is(index.count, 0);
      t.deepEqual(index.skipped, { [expect]: 1 });
    } else {
      t.deepEqual(index.skipped, {});
      t.deepEqual(out, [concat([hex(expect), payload])]);
    }
  });
}

test('Ethernet goes through as it is, down to no bytes at all', (t) => {
  const data = [filler(60), filler(0), filler(13), filler(1514)];
  const { index, out } = frames(
    1,
    data.map((d) => ({ data: d })),
  );
  t.deepEqual(out, data);
  t.is(index.bytes, 60 + 13 + 1514);
  t.deepEqual(index.skipped, {});
});

test('frames lie at multiples of 4, in order, without overlap, and nothing else is touched', (t) => {
  const packets = [5, 0, 4, 7, 1].map((n) => ({ data: filler(n, n) }));
  const { index, u8 } = frames(1, packets);
  t.deepEqual([...index.offsets], [4, 12, 12, 16, 24]);
  t.deepEqual([...index.lengths], [5, 0, 4, 7, 1]);
  t.deepEqual([...u8.subarray(0, 4)], [0xee, 0xee, 0xee, 0xee]);
  t.deepEqual([...u8.subarray(28)], [0xee, 0xee, 0xee, 0xee]);
  t.is(u8.length, 32);
});

test('the frame check sequence goes, where the file says there is one', (t) => {
  const { out } = frames(0x24000001, [{ data: filler(64) }]);
  t.deepEqual(out, [filler(64).slice(0, 60)]);
  const without = frames(0x20000001, [{ data: filler(64) }]);
  t.is(without.out[0].length, 64);
});

test('a snaplen that cut into the frame check sequence leaves less of it to take away', (t) => {
  const { index } = frames(0x24000001, [
    { data: filler(64), original: 66 },
    { data: filler(64), original: 68 },
    { data: filler(64), original: 100 },
    { data: filler(2), original: 2 },
  ]);
  t.deepEqual([...index.lengths], [62, 64, 64, 0]);
});

test('the frame check sequence of a pcapng interface, on another link than Ethernet', (t) => {
  const fixture = new PcapngFixture().section().interface(9, 0, [[13, Uint8Array.of(16)]]);
  fixture.enhanced(0, concat([hex('ff 03 00 21'), IPV4, hex('aa bb')]), 0n);
  const u8 = new Uint8Array(64);
  const index = loadFrames([readCapture(fixture.done())], { u8, start: 0, size: 64 });
  t.deepEqual(u8.slice(14, index.lengths[0]), IPV4);
});

test('the longest frame is delivered, one byte more is oversized', (t) => {
  t.is(MAX_FRAME_LENGTH, 65_553);
  const { index } = frames(1, [{ data: filler(65_553) }, { data: filler(65_554) }, { data: filler(60) }]);
  t.deepEqual([...index.lengths], [65_553, 60]);
  t.deepEqual(index.skipped, { oversized: 1 });
  // The synthesised header counts.
  const raw = frames(228, [{ data: filler(65_539) }, { data: filler(65_540) }]);
  t.deepEqual([...raw.index.lengths], [65_553]);
  t.deepEqual(raw.index.skipped, { oversized: 1 });
});

test('frames of which the capture kept only the beginning are delivered and counted', (t) => {
  const { index } = frames(1, [{ data: filler(60) }, { data: filler(60), original: 61 }]);
  t.deepEqual([index.count, index.truncated], [2, 1]);
  t.deepEqual(index.skipped, {});
});

test('times count from the whole second of the first frame delivered, over all files', (t) => {
  const first = pcap(
    [
      { data: filler(20), seconds: 1_699_999_000 },
      { data: IPV4, seconds: 1_700_000_000, fraction: 123_456_789 },
      { data: IPV4, seconds: 1_700_000_002, fraction: 1 },
    ],
    { magic: 0xa1b23c4d, link: 101 },
  );
  const second = pcap([{ data: filler(60), seconds: 1_699_999_999, fraction: 999_999 }]);
  const captures = [readCapture(first), readCapture(second)];
  const { arenaBytes } = measureFrames(captures);
  const index = loadFrames(captures, { u8: new Uint8Array(arenaBytes), start: 0, size: arenaBytes });
  t.deepEqual(index.skipped, { 'unsupported-payload:RAW': 1 });
  t.is(index.originSeconds, 1_700_000_000);
  t.deepEqual([...index.timesNs], [123_456_789, 2_000_000_001, -1000]);
});

test('one file may mix link types', (t) => {
  const fixture = new PcapngFixture().section().interface(1).interface(101).interface(105);
  fixture.enhanced(1, IPV4, 0n).enhanced(2, filler(30), 0n).enhanced(0, filler(60), 0n);
  const u8 = new Uint8Array(128);
  const index = loadFrames([readCapture(fixture.done())], { u8, start: 0, size: 128 });
  t.deepEqual([...index.lengths], [34, 60]);
  t.deepEqual(index.skipped, { 'unsupported-link-type:IEEE802_11': 1 });
});

test('an arena too small or out of step is refused before anything is written', (t) => {
  const capture = readCapture(pcap([{ data: filler(61) }]));
  t.deepEqual(measureFrames([capture]), { arenaBytes: 64, count: 1 });
  const u8 = new Uint8Array(100);
  t.throws(() => loadFrames([capture], { u8, start: 0, size: 63 }), {
    message: /take 64 bytes, the arena has 63/,
  });
  t.throws(() => loadFrames([capture], { u8, start: 40, size: 64 }), {
    message: /take 64 bytes, the arena has 60/,
  });
  t.throws(() => loadFrames([capture], { u8, start: 2, size: 64 }), { message: /starts at 2/ });
  t.true(u8.every((byte) => byte === 0));
});

test('frames load into shared memory, and no captures give no frames', (t) => {
  const u8 = new Uint8Array(new SharedArrayBuffer(64));
  const index = loadFrames([readCapture(pcap([{ data: filler(60) }]))], { u8, start: 0, size: 64 });
  t.deepEqual([...u8.slice(0, 60)], [...filler(60)]);
  t.is(index.count, 1);
  const none = loadFrames([], { u8, start: 64, size: 0 });
  t.deepEqual([none.count, none.bytes, none.originSeconds], [0, 0, 0]);
});

test('link types are named as the registry names them', (t) => {
  t.is(linkTypeName(1), 'EN10MB');
  t.is(linkTypeName(276), 'LINUX_SLL2');
  t.is(linkTypeName(12345), '12345');
});
