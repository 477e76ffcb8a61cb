import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import fc from 'fast-check';
import { readCapture } from '../../engine/ports/capture/reader.js';
import { PcapngWriter, type WriteOptions } from '../../engine/ports/capture/writer.js';
import { concat, filler, hex, packetBytes } from '../support/pcap-fixtures.js';

function writer(originSeconds?: number) {
  const blocks: Uint8Array[] = [];
  const options = { application: 'weft test', ...(originSeconds === undefined ? {} : { originSeconds }) };
  return {
    blocks,
    pcapng: new PcapngWriter((bytes) => blocks.push(bytes), options),
    done: () => concat(blocks),
  };
}

test('what is written is read back: interfaces, bytes, lengths, times', (t) => {
  const { pcapng, done } = writer(1_700_000_000);
  t.is(pcapng.addInterface({ name: 'c1', linkType: 1, description: 'container c1' }), 0);
  t.is(pcapng.addInterface({ name: 'uplink', linkType: 101 }), 1);
  const memory = filler(300);
  pcapng.write(0, memory, 10, 61, 123_456_789, { direction: 'in', comment: 'a', originalLength: 1500 });
  pcapng.write(1, memory, 100, 0, 5_000_000_001);
  pcapng.write(0, memory, 0, 300, 2 ** 40, { dropReason: 'bridge: same-port' });
  const capture = readCapture(done());
  t.deepEqual(capture.problems, []);
  t.is(capture.format, 'pcapng-le');
  t.deepEqual(
    capture.interfaces.map((i) => [i.name, i.linkType, i.tsUnitsPerSecond, i.snaplen]),
    [
      ['c1', 1, 1e9, 0],
      ['uplink', 101, 1e9, 0],
    ],
  );
  t.deepEqual([...capture.interfaceIndices], [0, 1, 0]);
  t.deepEqual([...capture.capturedLengths], [61, 0, 300]);
  t.deepEqual([...capture.originalLengths], [1500, 0, 300]);
  t.deepEqual([...capture.seconds], [1_700_000_000, 1_700_000_005, 1_700_001_099]);
  t.deepEqual([...capture.nanoseconds], [123_456_789, 1, 511_627_776]);
  t.deepEqual(packetBytes(capture, 0), memory.slice(10, 71));
  t.deepEqual(packetBytes(capture, 2), memory);
});

test('the bytes of a packet block are those of the specification', (t) => {
  const { pcapng, blocks } = writer();
  pcapng.addInterface({ name: 'x', linkType: 1 });
  pcapng.write(0, hex('aa bb cc dd ee'), 1, 3, 2 ** 32 + 5, { direction: 'out', dropReason: 'a: b' });
  const comment = new TextEncoder().encode('dropped by a: b');
  t.deepEqual(
    blocks[2],
    concat([
      hex('06000000 44000000 00000000 01000000 05000000 03000000 03000000 bbccdd00'),
      hex('0100 0f00'),
      comment,
      hex('00'),
      hex('0200 0400 02000000'),
      hex('00000000 44000000'),
    ]),
  );
});

test('a block belongs to the sink: the frame may change afterwards', (t) => {
  const { pcapng, done } = writer();
  pcapng.addInterface({ name: 'x', linkType: 1 });
  const memory = filler(60);
  pcapng.write(0, memory, 0, 60, 0);
  memory.fill(0);
  pcapng.write(0, memory, 0, 60, 0);
  t.deepEqual(packetBytes(readCapture(done()), 0), filler(60));
});

test('an interface that was not described and a frame outside its memory are refused', (t) => {
  const { pcapng, blocks } = writer();
  const memory = filler(60);
  t.throws(() => pcapng.write(0, memory, 0, 60, 0), {
    instanceOf: RangeError,
    message: /addInterface first/,
  });
  pcapng.addInterface({ name: 'x', linkType: 1 });
  for (const [index, offset, length] of [
    [1, 0, 60],
    [-1, 0, 60],
    [0, 1, 60],
    [0, -1, 10],
    [0, 0, -1],
    [0, Number.NaN, 1],
  ]) {
    t.throws(() => pcapng.write(index, memory, offset, length, 0), { instanceOf: RangeError });
  }
  t.is(blocks.length, 2);
});

test('a text too long for an option is cut, and the file stays sound', (t) => {
  const { pcapng, done } = writer();
  pcapng.addInterface({ name: 'ü'.repeat(100_000), linkType: 1 });
  pcapng.write(0, filler(60), 0, 60, 0, { comment: '漢'.repeat(100_000) });
  const capture = readCapture(done());
  t.deepEqual([capture.count, capture.problems.length], [1, 0]);
  t.is(capture.interfaces[0].name, 'ü'.repeat(16_384));
});

test('property: writer and reader agree', (t) => {
  const frame = fc.record({
    data: fc.uint8Array({ maxLength: 80 }),
    time: fc.nat(2 ** 31 - 1),
    more: fc.nat(5000),
    iface: fc.nat(2),
    options: fc.record(
      {
        comment: fc.string({ unit: 'grapheme' }),
        dropReason: fc.string(),
        direction: fc.constantFrom('in' as const, 'out' as const),
      },
      { requiredKeys: [] },
    ),
  });
  const property = fc.property(fc.array(frame), fc.nat(2 ** 32 - 1), (written, origin) => {
    const { pcapng, done } = writer(origin);
    for (const name of ['a', 'b', 'c']) pcapng.addInterface({ name, linkType: 1 });
    for (const { data, time, more, iface, options } of written) {
      const all: WriteOptions = { ...options, originalLength: data.length + more };
      pcapng.write(iface, data, 0, data.length, time * 1000, all);
    }
    const capture = readCapture(done());
    t.deepEqual(capture.problems, []);
    t.is(capture.count, written.length);
    written.forEach(({ data, time, more, iface }, i) => {
      t.deepEqual(packetBytes(capture, i), Uint8Array.from(data));
      t.is(capture.originalLengths[i], data.length + more);
      t.is(capture.interfaceIndices[i], iface);
      t.is(capture.seconds[i], origin + Math.floor(time / 1e6));
      t.is(capture.nanoseconds[i], (time % 1e6) * 1000);
    });
  });
  fc.assert(property, { numRuns: 200 });
});

/** Runs a Wireshark tool; null when it is not installed. */
function wireshark(tool: string, args: readonly string[]): string | null {
  try {
    return execFileSync(tool, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}

test('tshark and capinfos read what is written', (t) => {
  const { pcapng, done } = writer(1_700_000_000);
  pcapng.addInterface({ name: 'c1', linkType: 1, description: 'container one' });
  pcapng.addInterface({ name: 'vxlan', linkType: 1 });
  const arp = hex(
    'ffffffffffff 020000000001 0806 0001 0800 06 04 0001 020000000001 0a000001 000000000000 0a000002',
  );
  pcapng.write(0, arp, 0, arp.length, 1, { direction: 'in' });
  pcapng.write(1, arp, 0, arp.length, 999_999_999, { direction: 'out', comment: 'Grüße, 漢字' });
  const drop: WriteOptions = { direction: 'in', dropReason: 'bridge: same-port', originalLength: 60 };
  pcapng.write(0, arp, 0, 41, 3_000_000_000, drop);
  const directory = mkdtempSync(join(tmpdir(), 'weft-capture-'));
  try {
    const path = join(directory, 'written.pcapng');
    writeFileSync(path, done());
    const fields = [
      'frame.interface_name',
      'frame.time_epoch',
      'frame.packet_flags_direction',
      'frame.cap_len',
    ];
    fields.push('frame.len', 'frame.comment', 'arp.dst.proto_ipv4');
    const rows = wireshark('tshark', [
      '-r',
      path,
      '-T',
      'fields',
      ...fields.flatMap((field) => ['-e', field]),
    ]);
    const infos = wireshark('capinfos', ['-M', '-c', '-E', '-I', path]);
    if (rows === null || infos === null) {
      t.log('skipped: tshark and capinfos are not installed');
      t.pass();
      return;
    }
    const [first, second, third] = rows
      .trimEnd()
      .split('\n')
      .map((row) => row.split('\t'));
    t.deepEqual(first.slice(0, 2), ['c1', '1700000000.000000001']);
    t.is(Number(first[2]), 1);
    t.deepEqual(first.slice(3), ['42', '42', '', '10.0.0.2']);
    t.deepEqual(second.slice(0, 2), ['vxlan', '1700000000.999999999']);
    t.is(Number(second[2]), 2);
    t.deepEqual(second.slice(3), ['42', '42', 'Grüße, 漢字', '10.0.0.2']);
    t.deepEqual(third.slice(0, 2), ['c1', '1700000003.000000000']);
    t.deepEqual(third.slice(3, 6), ['41', '60', 'dropped by bridge: same-port']);
    t.regex(infos, /Number of packets:\s+3\b/);
    t.regex(infos, /Number of interfaces in file:\s+2\b/);
    t.regex(infos, /Description = container one/);
    t.regex(infos, /Time precision = nanoseconds \(9\)/);
    t.regex(
      infos,
      /Interface #0[\s\S]*Number of packets = 2\b[\s\S]*Interface #1[\s\S]*Number of packets = 1\b/,
    );
  } finally {
    rmSync(directory, { recursive: true });
  }
});
