/**
 * Packets of captures as Ethernet frames in one packed arena, so that replaying needs neither the files nor any
 * decision: frame `i` is the `lengths[i]` bytes at `offsets[i]`. Everything that depends on the link type
 * (`linktype.ts`) is settled here, at load time.
 */
import type { Capture } from './capture.js';
import {
  type Adaptation,
  AS_IS,
  adapt,
  LENGTH_FIELD,
  newAdaptation,
  TO_BROADCAST,
  TO_MULTICAST,
} from './linktype.js';

/** Longest frame that is delivered, in bytes: an IP packet of 65,535 with an Ethernet header and one VLAN tag. */
export const MAX_FRAME_LENGTH = 65_535 + 18;

/** Part of a byte array, for instance the arena of a FrameMemory. Bytes; `start` is a multiple of 4. */
export interface Arena {
  readonly u8: Uint8Array;
  readonly start: number;
  readonly size: number;
}

export interface FrameMeasure {
  /** Arena bytes that `loadFrames` needs, padding included; a multiple of 4. */
  readonly arenaBytes: number;
  readonly count: number;
}

export interface FrameIndex {
  /** Number of frames; the length of each array below. */
  readonly count: number;
  /** First byte of each frame in the arena's `u8`, a multiple of 4. */
  readonly offsets: Uint32Array;
  /** Length of each frame in bytes. Short frames are delivered as captured: 0 occurs. */
  readonly lengths: Uint32Array;
  /** Time of each frame in nanoseconds since `originSeconds`; exact for captures of up to 104 days. */
  readonly timesNs: Float64Array;
  /** Whole second, since 1970, of the first frame; 0 when there are no frames. */
  readonly originSeconds: number;
  /** Sum of `lengths`. */
  readonly bytes: number;
  /** Records that are not delivered, by reason: those of `adapt`, and `oversized` (above MAX_FRAME_LENGTH). */
  readonly skipped: Record<string, number>;
  /** Delivered frames of which the capture kept only the beginning. For information: they are not skipped. */
  readonly truncated: number;
}

const HEADER = 14;
const SOURCE = [0x02, 0x00, 0x00, 0x00, 0x00, 0x01];
const DESTINATION = [0x02, 0x00, 0x00, 0x00, 0x00, 0x02];
const MULTICAST = [0x01, 0x00, 0x5e, 0x00, 0x00, 0x01];
const BROADCAST = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff];

/** Called for each deliverable record, in file order. `length` is that of the frame, header included. */
type Visit = (capture: Capture, packet: number, length: number, how: Adaptation) => void;

/** How much arena the frames of these captures take. */
export function measureFrames(captures: readonly Capture[]): FrameMeasure {
  let arenaBytes = 0;
  let count = 0;
  visitFrames(captures, null, (_capture, _packet, length) => {
    arenaBytes += padded(length);
    count++;
  });
  return { arenaBytes, count };
}

/**
 * Writes the frames of the captures, one file after the other, into the arena.
 * @throws RangeError when `target` is smaller than `measureFrames` says, or `target.start` is not a multiple of 4.
 */
export function loadFrames(captures: readonly Capture[], target: Arena): FrameIndex {
  const { u8, start, size } = target;
  const measure = measureFrames(captures);
  if (start % 4 !== 0) throw new RangeError(`the arena starts at ${start}, which is not a multiple of 4`);
  if (measure.arenaBytes > size || start + size > u8.length) {
    const room = Math.min(size, Math.max(u8.length - start, 0));
    throw new RangeError(`the frames take ${measure.arenaBytes} bytes, the arena has ${room}`);
  }
  const offsets = new Uint32Array(measure.count);
  const lengths = new Uint32Array(measure.count);
  const timesNs = new Float64Array(measure.count);
  const skipped: Record<string, number> = {};
  let count = 0;
  let bytes = 0;
  let truncated = 0;
  let originSeconds = 0;
  let next = start;
  visitFrames(captures, skipped, (capture, packet, length, how) => {
    if (count === 0) originSeconds = capture.seconds[packet];
    writeFrame(u8, next, length, capture, packet, how);
    offsets[count] = next;
    lengths[count] = length;
    timesNs[count] = (capture.seconds[packet] - originSeconds) * 1e9 + capture.nanoseconds[packet];
    if (capture.capturedLengths[packet] < capture.originalLengths[packet]) truncated++;
    bytes += length;
    next += padded(length);
    count++;
  });
  return { count, offsets, lengths, timesNs, originSeconds, bytes, skipped, truncated };
}

function padded(length: number): number {
  return (length + 3) & ~3;
}

function visitFrames(
  captures: readonly Capture[],
  skipped: Record<string, number> | null,
  visit: Visit,
): void {
  const how = newAdaptation();
  for (const capture of captures) {
    const { bytes, offsets, capturedLengths, originalLengths, interfaceIndices, interfaces } = capture;
    for (let i = 0; i < capture.count; i++) {
      const { linkType, fcsLength } = interfaces[interfaceIndices[i]];
      // The check sequence ends the packet on the wire, so the snaplen may have cut it off already.
      const withoutFcs = Math.max(originalLengths[i] - fcsLength, 0);
      const kept = fcsLength === 0 ? capturedLengths[i] : Math.min(capturedLengths[i], withoutFcs);
      let reason = '';
      if (!adapt(linkType, bytes, offsets[i], kept, how)) reason = how.reason;
      else {
        const length = how.etherType === AS_IS ? kept : HEADER + kept - how.strip;
        if (length > MAX_FRAME_LENGTH) reason = 'oversized';
        else visit(capture, i, length, how);
      }
      if (reason !== '' && skipped !== null) skipped[reason] = (skipped[reason] ?? 0) + 1;
    }
  }
}

function writeFrame(
  u8: Uint8Array,
  at: number,
  length: number,
  capture: Capture,
  packet: number,
  how: Adaptation,
): void {
  const { bytes } = capture;
  const from = capture.offsets[packet] + how.strip;
  if (how.etherType === AS_IS) {
    u8.set(bytes.subarray(from, from + length), at);
    return;
  }
  const payload = length - HEADER;
  if (how.destination === TO_BROADCAST) u8.set(BROADCAST, at);
  else u8.set(how.destination === TO_MULTICAST ? MULTICAST : DESTINATION, at);
  if (how.sourceAt < 0) u8.set(SOURCE, at + 6);
  else u8.set(bytes.subarray(how.sourceAt, how.sourceAt + 6), at + 6);
  const type = how.etherType === LENGTH_FIELD ? payload : how.etherType;
  u8[at + 12] = type >>> 8;
  u8[at + 13] = type & 0xff;
  u8.set(bytes.subarray(from, from + payload), at + HEADER);
}
