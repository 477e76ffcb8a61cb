/**
 * A port whose frames come from a capture that lies in the memory's arena: each is copied into a slot of its
 * own, as a card would, so that replay pays for memory as traffic does.
 */
import type { Batch, Context } from '../graph.js';
import { BATCH_SIZE, NO_FRAME } from '../memory/frames.js';

/**
 * Frames in the arena. An offset modulo 8 is kept in the slot: 0 for ordinary frames, 6 for outer packets, whose
 * inner frame, 50 or 70 bytes later, then is aligned for word copies.
 */
export interface FrameList {
  readonly count: number;
  /** Byte offset in the frame memory. */
  readonly offsets: Uint32Array;
  /** Bytes. */
  readonly lengths: Uint32Array;
  /** Ingress port of each frame. */
  readonly ingress: Uint16Array;
  /** What `dest` each frame is to have; without it slots keep the one they have. */
  readonly dest?: Uint32Array;
}

export interface CaptureSource {
  /** Hands out up to a batch; returns how many, 0 at the end of the list or when no slot is free. */
  receive(to: Batch): number;
  /** Begins the list anew. */
  rewind(): void;
  /** Frames and bytes handed out so far. */
  totals(): { frames: number; bytes: number };
}

/** @param domain broadcast domain of the frames. */
export function createCaptureSource(context: Context, list: FrameList, domain: number): CaptureSource {
  const { frames } = context;
  const { off, len, ingress, dest, domain: domains } = frames;
  const { offsets, lengths, ingress: ports, dest: destinations, count } = list;
  let position = 0;
  /** Frames and bytes handed out. In an array: a variable beyond 31 bits makes an object at each store. */
  const handedOut = new Float64Array(2);

  function receive(to: Batch): number {
    const end = Math.min(position + BATCH_SIZE, count);
    let i = position;
    let bytes = 0;
    for (; i < end; i++) {
      const length = lengths[i];
      const frame = frames.alloc(length);
      if (frame === NO_FRAME) break;
      const from = offsets[i];
      const at = off[frame] + (from & 7);
      frames.copy(from, at, length);
      off[frame] = at;
      len[frame] = length;
      ingress[frame] = ports[i];
      if (destinations !== undefined) dest[frame] = destinations[i];
      domains[frame] = domain;
      bytes += length;
      to.push(frame);
    }
    const handed = i - position;
    position = i;
    handedOut[0] += handed;
    handedOut[1] += bytes;
    return handed;
  }

  return {
    receive,
    rewind: () => {
      position = 0;
    },
    totals: () => ({ frames: handedOut[0], bytes: handedOut[1] }),
  };
}
