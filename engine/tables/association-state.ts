/**
 * What changes with every packet of a security association (RFC 4303, section 2.2 and 3.4.3): sequence numbers,
 * replay windows and counts. It lies in shared memory, since all workers send and receive under the same
 * associations, and since control reads it to say how old and how used an association is.
 *
 * An association is a small number, its slot, which is also where its key lies in the addon. Whoever changes the
 * sequence or the window of a slot holds its lock; with one worker nobody else does, and no lock is taken.
 */

/** Associations there can be at a time: two directions and an old generation for each of 4,096 VTEPs, and room. */
export const MAX_ASSOCIATIONS = 16_384;

/** Largest anti-replay window, in packets. */
export const MAX_REPLAY_WINDOW = 4096;
/** 32-bit words of a window's bitmap: one more than the window has, rounded up to a power of two (RFC 6479, 2.1). */
export const WINDOW_WORDS = 256;

/** Why packets of an association were refused, in the order of `refused`. */
export const REFUSALS = [
  'icv',
  'replayed',
  'too-old',
  'wrong-source',
  'undersized',
  'bad-trailer',
  'exhausted',
] as const;
export type Refusal = (typeof REFUSALS)[number];

const WORDS = 1 + 2 + 2 + WINDOW_WORDS;
const DOUBLES = 2 + REFUSALS.length;

/** Bytes of shared memory for so many slots. */
export function associationStateBytes(slots = MAX_ASSOCIATIONS): number {
  return slots * (WORDS * 4 + DOUBLES * 8);
}

export class AssociationState {
  readonly slots: number;
  /** 1 while somebody changes the slot. */
  readonly lock: Int32Array;
  /** Two words a slot, low and high: the last number sent, or the highest accepted. */
  readonly sequence: Uint32Array;
  /** Two words a slot, low and high: xored with the sequence number they are the IV of what is sent. */
  readonly mask: Uint32Array;
  /** WINDOW_WORDS a slot: bit n of the ring is set when the number congruent to n was accepted. */
  readonly window: Uint32Array;
  readonly packets: Float64Array;
  /** Bytes of sealed payload: what is between ESP header and ICV. */
  readonly bytes: Float64Array;
  /** REFUSALS.length a slot. */
  readonly refused: Float64Array;

  /** @param buffer of `associationStateBytes()`, zeroed. */
  constructor(readonly buffer: SharedArrayBuffer = new SharedArrayBuffer(associationStateBytes())) {
    const slots = Math.floor(buffer.byteLength / associationStateBytes(1));
    this.slots = slots;
    let next = 0;
    const doubles = (count: number): Float64Array => {
      const array = new Float64Array(buffer, next, count);
      next += count * 8;
      return array;
    };
    const words = (count: number): Uint32Array => {
      const array = new Uint32Array(buffer, next, count);
      next += count * 4;
      return array;
    };
    this.packets = doubles(slots);
    this.bytes = doubles(slots);
    this.refused = doubles(slots * REFUSALS.length);
    this.sequence = words(slots * 2);
    this.mask = words(slots * 2);
    this.window = words(slots * WINDOW_WORDS);
    this.lock = new Int32Array(buffer, next, slots);
  }

  /**
   * Readies a slot for a new association. Called before any worker is told of it.
   * @param last sequence number sent before, for associations that outlive a process; 0 for a new one.
   * @param mask eight random bytes for the IVs of an outbound one.
   */
  begin(slot: number, last = 0, mask: Uint8Array = new Uint8Array(8)): void {
    this.lock[slot] = 0;
    this.sequence[slot * 2] = last >>> 0;
    this.sequence[slot * 2 + 1] = Math.floor(last / 2 ** 32);
    const words = new Uint32Array(Uint8Array.from(mask).buffer);
    this.mask.set(words.subarray(0, 2), slot * 2);
    this.window.fill(0, slot * WINDOW_WORDS, (slot + 1) * WINDOW_WORDS);
    this.packets[slot] = 0;
    this.bytes[slot] = 0;
    this.refused.fill(0, slot * REFUSALS.length, (slot + 1) * REFUSALS.length);
  }

  /** Last number sent, or highest accepted; exact to 2^53. */
  last(slot: number): number {
    return this.sequence[slot * 2 + 1] * 2 ** 32 + this.sequence[slot * 2];
  }

  refusals(slot: number): Record<Refusal, number> {
    const at = slot * REFUSALS.length;
    return Object.fromEntries(REFUSALS.map((name, i) => [name, this.refused[at + i]])) as Record<
      Refusal,
      number
    >;
  }
}
