/**
 * The reader against others' judgement: pcap-parser packet by packet, and the counts that the shared captures'
 * index gives. pcap-parser knows only microsecond pcap, and drops a cut last packet silently, as we do aloud.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import pcapParser, { type Packet } from 'pcap-parser';
import { openCapture } from '../../control/capture-files.js';
import { type Capture, CaptureError } from '../../engine/ports/capture/capture.js';
import { loadFrames, measureFrames } from '../../engine/ports/capture/frames.js';
import { readCapture } from '../../engine/ports/capture/reader.js';
import { filler, packetBytes, pcap } from '../support/pcap-fixtures.js';

/** What pcap-parser makes of the bytes. One chunk, or it copies the remainder of each. */
function oracle(bytes: Uint8Array): Promise<Packet[]> {
  return new Promise((resolve, reject) => {
    const packets: Packet[] = [];
    const stream = Readable.from([Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)]);
    const parser = pcapParser.parse(stream);
    parser.on('packet', (packet) => packets.push(packet));
    parser.on('end', () => resolve(packets));
    parser.on('error', reject);
  });
}

/** Compares count, lengths, times and bytes. Written so that only a difference allocates a message. */
async function agrees(t: ExecutionContext, capture: Capture): Promise<void> {
  const packets = await oracle(capture.bytes);
  t.is(capture.count, packets.length, `${capture.name}: packets`);
  const differs = packets.findIndex(({ header, data }, i) => {
    const carry = Math.floor(header.timestampMicroseconds / 1e6);
    const from = capture.offsets[i];
    const ours = Buffer.from(
      capture.bytes.buffer,
      capture.bytes.byteOffset + from,
      capture.capturedLengths[i],
    );
    return !(
      capture.capturedLengths[i] === header.capturedLength &&
      capture.originalLengths[i] === header.originalLength &&
      capture.seconds[i] === header.timestampSeconds + carry &&
      capture.nanoseconds[i] === (header.timestampMicroseconds - carry * 1e6) * 1000 &&
      ours.equals(data)
    );
  });
  t.is(differs, -1, `${capture.name}: first packet that differs`);
}

const PACKETS = Array.from({ length: 300 }, (_, i) => ({
  data: filler((i * 37) % 1515, i),
  seconds: 1_700_000_000 + i,
  fraction: (i * 7919) % 1_200_000,
  original: 1514 + i,
}));

for (const little of [true, false]) {
  test(`pcap-parser agrees on hand-made files, ${little ? 'little' : 'big'}-endian`, async (t) => {
    const whole = pcap(PACKETS, { little });
    const capture = readCapture(whole);
    t.is(capture.count, 300);
    t.deepEqual(packetBytes(capture, 299), PACKETS[299].data);
    await agrees(t, capture);
    await agrees(t, readCapture(pcap([], { little })));
    // Cut within a packet and within a header: the same packets, and only we say so.
    for (const length of [whole.length - 1, whole.length - PACKETS[299].data.length - 3]) {
      const cut = readCapture(whole.subarray(0, length));
      t.deepEqual([cut.count, cut.problems.length], [299, 1]);
      await agrees(t, cut);
    }
  });
}

test('the oracle notices a difference', async (t) => {
  const capture = readCapture(pcap(PACKETS));
  capture.originalLengths[17]++;
  const attempt = await t.try(agrees, capture);
  const { passed } = attempt;
  attempt.discard();
  t.false(passed);
});

const ROOT = fileURLToPath(new URL('../../../', import.meta.url));
const OWN = join(ROOT, 'pcaps');
const SHARED = join(ROOT, '..', 'shared', 'pcaps');

/** Whether the oracle reads it: microsecond pcap in the form that 2.3 settled. */
function isClassic(capture: Capture): boolean {
  return capture.format === 'pcap-le-us' || capture.format === 'pcap-be-us';
}

test("the repository's own captures: sound, and pcap-parser agrees", async (t) => {
  const names = existsSync(OWN)
    ? readdirSync(OWN).filter((name) => /\.(pcap|pcapng)(\.gz)?$/.test(name))
    : [];
  if (names.length === 0) t.log('skipped: pcaps/ holds no capture');
  for (const name of names) {
    const capture = openCapture(join(OWN, name));
    t.deepEqual(capture.problems, [], name);
    t.true(capture.count > 0, name);
    if (isClassic(capture)) await agrees(t, capture);
  }
  t.pass();
});

/** Files of the shared set that cannot be read at all, and why. */
const UNREADABLE: Readonly<Record<string, RegExp>> = {
  // Not required of us: the message says how to convert it.
  'formats/pcpp__solaris.snoop': /snoop/,
};

/** Damaged files: the byte at which reading ends, and the message. Their packets up to there count as INDEX.tsv says. */
const DAMAGED: Readonly<Record<string, readonly [number, RegExp]>> = {
  'formats/sv__bug-1450-04__tls_DER-incomplete-header.pcap': [5035, /holds 4325376 bytes/],
  'formats/sv__smtp-to-comma__10.7.29.101_49898-178.63.41.150_25.pcap': [3695, /holds 3925868813 bytes/],
  'formats/sv__bug-6875-01__fuzz.pcap': [228, /holds 1409179648 bytes/],
  'malformed/ndpi__fuzz-2021-10-13.pcap': [237, /last record header is cut: 2 of 16 bytes/],
};

/** Where our count is right and differs from INDEX.tsv. */
const OTHER_COUNT: Readonly<Record<string, number>> = {
  // Version 2.0, where the captured length (173) stands second. INDEX.tsv took the first (524,501), found it too
  // large and counted 0; tcpdump and tshark read one packet, as we do.
  'malformed/ndpi__fuzz-2021-10-13.pcap': 1,
};

interface Row {
  readonly file: string;
  readonly format: string;
  readonly packets: number;
}

function sharedIndex(): Row[] {
  const [head, ...lines] = readFileSync(join(SHARED, 'INDEX.tsv'), 'utf8').trimEnd().split('\n');
  const columns = head.split('\t');
  const at = (name: string): number => columns.indexOf(name);
  return lines
    .map((line) => line.split('\t'))
    .map((row) => ({
      file: row[at('file')],
      format: row[at('file_format')].replace('gz:', '').replace('-v2.0', ''),
      packets: Number(row[at('packets')]),
    }));
}

const absent = existsSync(SHARED) ? '' : ' [skipped: no captures at ../shared/pcaps beside the repository]';
const shared = absent ? test.skip : test;

shared(`the shared captures: count, format and damage are as their index says${absent}`, (t) => {
  const rows = sharedIndex();
  t.is(rows.length, 410);
  for (const { file, format, packets } of rows) {
    const path = join(SHARED, file);
    if (file in UNREADABLE) {
      t.throws(() => openCapture(path), { instanceOf: CaptureError, message: UNREADABLE[file] });
      continue;
    }
    const capture = openCapture(path);
    t.is(capture.format, format as Capture['format'], file);
    t.is(capture.count, OTHER_COUNT[file] ?? packets, file);
    const damage = DAMAGED[file];
    t.is(capture.problems.length, damage === undefined ? 0 : 1, file);
    if (damage !== undefined) {
      t.is(capture.problems[0].offset, damage[0], file);
      t.regex(capture.problems[0].message, damage[1], file);
    }
    accountsForFrames(t, capture);
  }
});

function accountsForFrames(t: ExecutionContext, capture: Capture): void {
  const { arenaBytes } = measureFrames([capture]);
  const index = loadFrames([capture], { u8: new Uint8Array(arenaBytes), start: 0, size: arenaBytes });
  const skipped = Object.values(index.skipped).reduce((sum, n) => sum + n, 0);
  t.is(index.count + skipped, capture.count, `${capture.name}: frames delivered and skipped`);
}

shared(`the shared captures: pcap-parser agrees on every microsecond pcap${absent}`, async (t) => {
  let compared = 0;
  for (const { file } of sharedIndex()) {
    if (file in UNREADABLE) continue;
    const capture = openCapture(join(SHARED, file));
    if (!isClassic(capture)) continue;
    await agrees(t, capture);
    compared++;
  }
  t.true(compared > 350, `${compared} files compared`);
});

if (!existsSync(SHARED)) {
  test('shared captures', (t) => {
    t.log('the two tests above are skipped: there is no ../shared/pcaps beside the repository');
    t.pass();
  });
}
