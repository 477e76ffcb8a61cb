/** Opening capture files by path: reads them whole, gunzips what starts as gzip, and names the path in every error. */
import { readFileSync, type Stats, statSync } from 'node:fs';
import { constants, gunzipSync } from 'node:zlib';
import { type Capture, CaptureError, type CaptureProblem } from '../engine/ports/capture/capture.js';
import { readCapture } from '../engine/ports/capture/reader.js';

const MIB = 1024 * 1024;

export interface CaptureLimits {
  /** Largest file that is read, in bytes. Node reads no file of 2 GiB or more in one piece. */
  readonly fileBytes: number;
  /** Most that a gzip file may inflate to, in bytes: a small file can hold a very large one. */
  readonly inflatedBytes: number;
}

const LIMITS: CaptureLimits = { fileBytes: 2048 * MIB - 1, inflatedBytes: 1024 * MIB };

/**
 * Reads a capture file, gzip-compressed or not. Damage that leaves something to read is in `problems`, whose
 * offsets then count in the inflated bytes.
 * @throws CaptureError naming the path: not there, not allowed, not a file, too large, or nothing readable in it.
 */
export function openCapture(path: string, limits: CaptureLimits = LIMITS): Capture {
  const bytes = plain(readWhole(path, limits.fileBytes));
  if (!(bytes.length >= 2 && bytes[0] === 0x1f && bytes[1] === 0x8b)) return readCapture(bytes, path);
  const { inflated, problem } = inflate(bytes, path, limits.inflatedBytes);
  const capture = readCapture(inflated, path);
  return problem === null ? capture : { ...capture, problems: [problem, ...capture.problems] };
}

/** A Buffer's `slice` shares where every other array's copies: nobody further in should meet one. */
function plain(buffer: Uint8Array): Uint8Array {
  return new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
}

const REMEDIES: Readonly<Record<string, readonly [string, string]>> = {
  ENOENT: ['there is no such file', 'check the path'],
  ENOTDIR: ['part of the path is not a directory', 'check the path'],
  EACCES: ['reading it is not permitted', 'run as a user who may read it, or change its mode'],
  EPERM: ['reading it is not permitted', 'run as a user who may read it, or change its mode'],
  ELOOP: ['its symbolic links lead in a circle', 'give the path of the file itself'],
};

function unreadable(path: string, error: unknown): CaptureError {
  const { code, message } = error as NodeJS.ErrnoException;
  const [fault, remedy] = REMEDIES[code ?? ''] ?? [
    `it cannot be read: ${message}`,
    'check the path and the disk',
  ];
  return new CaptureError(path, 0, fault, remedy);
}

function readWhole(path: string, limit: number): Uint8Array {
  let stats: Stats;
  try {
    stats = statSync(path);
  } catch (error) {
    throw unreadable(path, error);
  }
  if (stats.isDirectory()) {
    throw new CaptureError(path, 0, 'it is a directory', 'name the capture files in it');
  }
  // A pipe or a device could keep the reader waiting for ever.
  if (!stats.isFile()) {
    throw new CaptureError(path, 0, 'it is not a regular file', 'write the capture to a file first');
  }
  if (stats.size > limit) {
    const fault = `it has ${Math.ceil(stats.size / MIB)} MiB, more than ${Math.floor(limit / MIB)} MiB`;
    throw new CaptureError(path, 0, fault, 'split it, for instance with editcap -c 1000000');
  }
  try {
    return readFileSync(path);
  } catch (error) {
    throw unreadable(path, error);
  }
}

interface Inflated {
  readonly inflated: Uint8Array;
  readonly problem: CaptureProblem | null;
}

/** Inflates gzip data; of damaged data, what comes before the damage. */
function inflate(bytes: Uint8Array, path: string, limit: number): Inflated {
  try {
    return { inflated: plain(gunzipSync(bytes, { maxOutputLength: limit })), problem: null };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ERR_BUFFER_TOO_LARGE') throw tooLarge(path, limit);
    return salvage(bytes, path, limit, (error as Error).message);
  }
}

function tooLarge(path: string, limit: number): CaptureError {
  const fault = `it inflates to more than ${Math.floor(limit / MIB)} MiB`;
  return new CaptureError(path, 0, fault, 'decompress it with gunzip and split it with editcap -c 1000000');
}

/**
 * zlib gives nothing back of an input in which it meets damage, but everything of one that merely ends too early.
 * So the longest prefix without damage is found by halving: some thirty inflations at worst, and only here.
 */
function salvage(bytes: Uint8Array, path: string, limit: number, reason: string): Inflated {
  let sound = 0;
  let damaged = bytes.length + 1;
  let inflated: Uint8Array = new Uint8Array(0);
  let next = bytes.length;
  while (damaged - sound > 1) {
    const prefix = inflatePrefix(bytes.subarray(0, next), path, limit);
    if (prefix === null) damaged = next;
    else {
      sound = next;
      inflated = prefix;
    }
    next = Math.floor((sound + damaged) / 2);
  }
  if (inflated.length === 0) {
    const fault = `its gzip data is damaged from the start (${reason})`;
    throw new CaptureError(path, sound, fault, 'copy or download the file again');
  }
  const where = sound === bytes.length ? 'ends too early' : `is damaged at byte ${sound} of the file`;
  const message = `the gzip data ${where} (${reason}); read up to there, ${inflated.length} bytes`;
  return { inflated, problem: { offset: inflated.length, message } };
}

/** What a prefix inflates to, or null when there is damage within it. */
function inflatePrefix(prefix: Uint8Array, path: string, limit: number): Uint8Array | null {
  try {
    return plain(gunzipSync(prefix, { maxOutputLength: limit, finishFlush: constants.Z_SYNC_FLUSH }));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ERR_BUFFER_TOO_LARGE') throw tooLarge(path, limit);
    return null;
  }
}
