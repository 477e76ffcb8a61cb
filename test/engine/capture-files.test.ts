import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import test from 'ava';
import { openCapture } from '../../control/capture-files.js';
import { CaptureError } from '../../engine/ports/capture/capture.js';
import { concat, packetBytes, pcap } from '../support/pcap-fixtures.js';

const directory = mkdtempSync(join(tmpdir(), 'weft-capture-files-'));
test.after.always(() => rmSync(directory, { recursive: true }));

/** Bytes that gzip cannot shrink, so that the compressed file has many places to damage. */
const NOISE = Uint8Array.from({ length: 600 }, (_, i) => (Math.imul(i + 1, 2654435761) >>> 13) & 0xff);
const PACKETS = Array.from({ length: 200 }, (_, i) => ({ data: NOISE.map((byte) => byte ^ i), seconds: i }));
const PLAIN = pcap(PACKETS);
const GZIP = gzipSync(PLAIN);

function file(name: string, bytes: Uint8Array): string {
  const path = join(directory, name);
  writeFileSync(path, bytes);
  return path;
}

test('opens a plain file and names the path', (t) => {
  const path = file('plain.pcap', PLAIN);
  const capture = openCapture(path);
  t.deepEqual([capture.name, capture.count, capture.problems.length], [path, 200, 0]);
});

test('opens gzip by content, whatever the name, in one member or several', (t) => {
  const several = concat([gzipSync(PLAIN.subarray(0, 5000)), gzipSync(PLAIN.subarray(5000))]);
  for (const [name, bytes] of [
    ['one.pcap', GZIP],
    ['several.pcap.gz', several],
  ] as const) {
    const capture = openCapture(file(name, bytes));
    t.deepEqual([capture.count, capture.problems.length], [200, 0]);
    t.deepEqual(packetBytes(capture, 199), PACKETS[199].data);
  }
});

test('gzip that ends too early: what was inflated is used, and reported', (t) => {
  const capture = openCapture(file('cut.gz', GZIP.subarray(0, GZIP.length >> 1)));
  t.true(capture.count > 80 && capture.count < 120, `${capture.count} packets`);
  t.deepEqual(packetBytes(capture, 50), PACKETS[50].data);
  t.is(capture.problems[0].offset, capture.bytes.length);
  t.regex(
    capture.problems[0].message,
    /gzip data ends too early \(unexpected end of file\); read up to there/,
  );
  // The pcap reader adds the record in which the inflated bytes end.
  t.is(capture.problems.length, 2);
  t.regex(capture.problems[1].message, /the last record is cut/);
});

test('gzip damaged in the middle: what lies before the damage is used, and reported', (t) => {
  // Two members, the second damaged in its header: where the damage shows is then certain.
  const first = gzipSync(PLAIN.subarray(0, 24 + 616 * 70));
  const second = gzipSync(PLAIN.subarray(24 + 616 * 70));
  second[2] = 99; // an unknown compression method
  const capture = openCapture(file('damaged.gz', concat([first, second])));
  t.is(capture.count, 70);
  t.deepEqual(
    capture.problems.map((p) => p.offset),
    [24 + 616 * 70],
  );
  const [, byte] = /damaged at byte (\d+) of the file .*method/.exec(capture.problems[0].message) ?? [];
  t.true(Number(byte) >= first.length + 2 && Number(byte) < first.length + 10, capture.problems[0].message);
});

test('gzip with a wrong check sum gives everything, and reports it', (t) => {
  const bytes = Uint8Array.from(GZIP);
  bytes[bytes.length - 8] ^= 1;
  const capture = openCapture(file('checksum.gz', bytes));
  t.is(capture.count, 200);
  t.is(capture.problems.length, 1);
  t.regex(capture.problems[0].message, /incorrect data check/);
});

test('gzip damaged anywhere opens with a problem or fails as a CaptureError', (t) => {
  const small = gzipSync(pcap(PACKETS.slice(0, 3)));
  for (let at = 2; at < small.length; at += 7) {
    const bytes = Uint8Array.from(small);
    bytes[at] ^= 0x55;
    const path = file('anywhere.gz', bytes);
    try {
      const { count, problems } = openCapture(path);
      // The header's time, flags and system are not covered by the check sum.
      if (at >= 10) t.true(problems.length > 0, `byte ${at}`);
      t.true(count <= 3);
    } catch (error) {
      t.true(error instanceof CaptureError, `byte ${at}: ${error}`);
    }
  }
});

test('gzip damaged from the start names the path', (t) => {
  const path = file('start.gz', Uint8Array.of(0x1f, 0x8b, 99, 0, 0, 0, 0, 0, 0, 0, 0, 0));
  const error = t.throws(() => openCapture(path), {
    instanceOf: CaptureError,
    message: /damaged from the start/,
  });
  t.is(error?.file, path);
});

test('gzip that inflates past the limit is refused, damaged or not', (t) => {
  const bomb = gzipSync(new Uint8Array(4 * 1024 * 1024));
  const limits = { fileBytes: 1e6, inflatedBytes: 1024 * 1024 };
  const message = /inflates to more than 1 MiB.*gunzip/;
  for (const bytes of [bomb, bomb.subarray(0, bomb.length - 4)]) {
    t.throws(() => openCapture(file('bomb.gz', bytes), limits), { instanceOf: CaptureError, message });
  }
  t.is(openCapture(file('fits.gz', GZIP), { fileBytes: 1e6, inflatedBytes: PLAIN.length }).count, 200);
});

test('a file past the limit is refused before it is read', (t) => {
  const limits = { fileBytes: PLAIN.length - 1, inflatedBytes: 1e6 };
  const path = file('large.pcap', PLAIN);
  t.throws(() => openCapture(path, limits), { instanceOf: CaptureError, message: /MiB.*editcap/ });
  t.is(openCapture(path, { ...limits, fileBytes: PLAIN.length }).count, 200);
});

test('paths that are no capture: the error names path and remedy', (t) => {
  symlinkSync('loop', join(directory, 'loop'));
  mkdirSync(join(directory, 'folder'));
  for (const [name, message] of [
    ['missing.pcap', /no such file.*check the path/],
    ['folder', /is a directory/],
    ['loop', /symbolic links/],
    [join(file('is-a-file', PLAIN).slice(directory.length + 1), 'below'), /not a directory/],
    [file('empty.pcap', new Uint8Array(0)).slice(directory.length + 1), /the file is empty/],
  ] as const) {
    const path = join(directory, name);
    const error = t.throws(() => openCapture(path), { instanceOf: CaptureError, message }, name);
    t.is(error?.file, path);
  }
  t.throws(() => openCapture('/dev/zero'), {
    instanceOf: CaptureError,
    message: /not a regular file.*to a file first/,
  });
  t.throws(() => openCapture('a\0b'), { instanceOf: CaptureError, message: /cannot be read/ });
});

test('a file that may not be read is a CaptureError', (t) => {
  const path = file('forbidden.pcap', PLAIN);
  chmodSync(path, 0);
  chmodSync(directory, 0o755);
  const uid = process.geteuid?.();
  // Root may read everything, so this test becomes someone else for a moment.
  if (uid === 0) process.seteuid?.(65534);
  try {
    t.throws(() => openCapture(path), { instanceOf: CaptureError, message: /not permitted.*mode/ });
  } finally {
    if (uid === 0) process.seteuid?.(0);
  }
});
