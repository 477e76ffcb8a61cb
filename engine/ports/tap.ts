/**
 * A TAP: frames of one container, with a vnet header (virtio 1.2, 5.1.6) in front of each, so that checksums and
 * segmentation stay undone as long as nobody needs them.
 *
 * The device is opened, named and moved elsewhere; this knows only its descriptor.
 */
import { native } from '../../native-bindings/index.js';
import { type Batch, type Context, Drops } from '../graph.js';
import {
  type FrameMemory,
  LARGE_CAPACITY,
  OFFLOAD_GSO_MASK,
  OFFLOAD_GSO_SHIFT,
  OFFLOAD_NEEDS_CSUM,
} from '../memory/frames.js';
import type { Port } from './port.js';

/** Bytes of the vnet header that container TAPs use. */
export const VNET_HEADER = 12;

/**
 * Frames read from a TAP in one go. What is read in one go is also sent in one go, and long trains overflow the
 * receiving socket: delivered across two hosts in one run, Mb/s of 64 B and of 1,398 B datagrams: with 256 frames 89 and
 * 1,420, with 64 97 and 1,870, with 32 90 and 1,800, with 16 81 and 1,950; TCP did not care.
 */
export const TAP_BURST = 64;

const REASONS = ['no-room', 'interface-down', 'bad-header', 'not-sent'] as const;
const COUNTERS = ['rx-frames', 'rx-bytes', 'rx-super', 'tx-frames', 'tx-bytes', 'tx-super'] as const;
const [RX_FRAMES, RX_BYTES, RX_SUPER, TX_FRAMES, TX_BYTES, TX_SUPER] = COUNTERS.keys();

export interface TapOptions {
  readonly id: number;
  /** Descriptor of one queue, with a 12-byte vnet header agreed on. */
  readonly fd: number;
  /** Broadcast domain of what comes in. */
  readonly domain: number;
}

export function createTapPort(context: Context, options: TapOptions): Port {
  const { frames } = context;
  const { off, len, ingress, domain: domains, offload } = frames;
  const { values } = context.counters;
  const { id, fd, domain } = options;
  const drops = new Drops(context, `port:${id}`, REASONS);
  const block = context.counters.claim(`port:${id}`, COUNTERS);
  const { base } = block;
  const failures = new Uint32Array(4);

  function receive(to: Batch): number {
    const free = frames.freeLargeCount;
    const count = native.tapRead(fd, free, Math.min(TAP_BURST, free), VNET_HEADER, LARGE_CAPACITY);
    if (count <= 0) return count;
    let bytes = 0;
    let superFrames = 0;
    for (let i = 0; i < count; i++) {
      const frame = frames.takeLarge();
      len[frame] = Math.max(0, len[frame] - VNET_HEADER);
      readVnet(frames, frame, off[frame] - VNET_HEADER);
      if ((offload[frame] & OFFLOAD_GSO_MASK) !== 0) superFrames++;
      ingress[frame] = id;
      domains[frame] = domain;
      bytes += len[frame];
      to.push(frame);
    }
    values[base + RX_FRAMES] += count;
    values[base + RX_BYTES] += bytes;
    values[base + RX_SUPER] += superFrames;
    return count;
  }

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    let bytes = 0;
    let superFrames = 0;
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      writeVnet(frames, frame, off[frame] - VNET_HEADER);
      if ((offload[frame] & OFFLOAD_GSO_MASK) !== 0) superFrames++;
      bytes += len[frame];
    }
    const sent = native.tapWrite(fd, ids, count, VNET_HEADER, failures);
    for (let k = 0; k < count; k++) frames.free(ids[k]);
    values[base + TX_FRAMES] += sent;
    values[base + TX_BYTES] += bytes;
    values[base + TX_SUPER] += superFrames;
    if (sent !== count) countFailures(drops, failures);
  }

  function close(): void {
    drops.release();
    context.counters.release(block);
  }

  return { id, fd, receive, process, close };
}

/** Adds what a native send counted to the first four drop reasons, which have its order, and clears it. */
export function countFailures(drops: Drops, failures: Uint32Array): void {
  for (let reason = 0; reason < 4; reason++) {
    drops.add(reason, failures[reason]);
    failures[reason] = 0;
  }
}

/** Takes the first 12 bytes of a vnet header into the frame's offload metadata; offsets as the header has them. */
export function readVnet(frames: FrameMemory, frame: number, at: number): void {
  const { u16 } = frames;
  const h = at >>> 1;
  const flags = u16[h];
  // Flags and GSO type in one word; bit 0 is all that a sender's flags can tell (virtio 1.2, 5.1.6.2).
  if ((flags & (OFFLOAD_NEEDS_CSUM | OFFLOAD_GSO_MASK)) === 0) return;
  frames.offload[frame] = flags & (OFFLOAD_NEEDS_CSUM | OFFLOAD_GSO_MASK);
  frames.hdrLen[frame] = u16[h + 1];
  frames.gsoSize[frame] = u16[h + 2];
  frames.csumStart[frame] = u16[h + 3];
  frames.csumOffset[frame] = u16[h + 4];
}

/** Writes a 12-byte vnet header from the frame's offload metadata. */
export function writeVnet(frames: FrameMemory, frame: number, at: number): void {
  frames.u16[(at >>> 1) + 5] = 0;
  writeShortVnet(frames, frame, at);
}

/** Writes a 10-byte vnet header, which is one without the count of buffers, as packet sockets use. */
export function writeShortVnet(frames: FrameMemory, frame: number, at: number): void {
  const { u16 } = frames;
  const h = at >>> 1;
  const offload = frames.offload[frame];
  if (offload === 0) {
    u16[h] = 0;
    u16[h + 1] = 0;
    u16[h + 2] = 0;
    u16[h + 3] = 0;
    u16[h + 4] = 0;
    return;
  }
  const isSuper = (offload & OFFLOAD_GSO_MASK) >>> OFFLOAD_GSO_SHIFT !== 0;
  u16[h] = offload & 0xffff;
  u16[h + 1] = isSuper ? frames.hdrLen[frame] : 0;
  u16[h + 2] = isSuper ? frames.gsoSize[frame] : 0;
  u16[h + 3] = frames.csumStart[frame];
  u16[h + 4] = frames.csumOffset[frame];
}
