/**
 * A port whose frames come from a capture that lies in the memory's arena: each is copied into a slot of its
 * own, as a card would, so that replay pays for memory as traffic does.
 */
import { native } from '../../native-bindings/index.js';
import type { Batch, Context } from '../graph.js';
import { BATCH_SIZE, NO_FRAME } from '../memory/frames.js';

/** Bytes from which on a copy is made by the addon, many in one call: 1,400 B in 30 ns in place of 80. */
const LONG = 256;

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
  /** From, to and length of the long ones. */
  const moves = new Uint32Array(BATCH_SIZE * 3);
  let position = 0;
  /** Frames and bytes handed out. In an array: a variable beyond 31 bits makes an object at each store. */
  const handedOut = new Float64Array(2);

  function receive(to: Batch): number {
    const end = Math.min(position + BATCH_SIZE, count);
    let i = position;
    let bytes = 0;
    let moving = 0;
    for (; i < end; i++) {
      const length = lengths[i];
      const frame = frames.alloc(length);
      if (frame === NO_FRAME) break;
      const from = offsets[i];
      const at = off[frame] + (from & 7);
      if (length <= LONG) frames.copy(from, at, length);
      else {
        moves[moving * 3] = from;
        moves[moving * 3 + 1] = at;
        moves[moving * 3 + 2] = length;
        moving++;
      }
      off[frame] = at;
      len[frame] = length;
      ingress[frame] = ports[i];
      if (destinations !== undefined) dest[frame] = destinations[i];
      domains[frame] = domain;
      bytes += length;
      to.push(frame);
    }
    // A batch holds all of them: none is handed on before its bytes are there.
    if (moving > 0) native.copies(moves, moving);
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
