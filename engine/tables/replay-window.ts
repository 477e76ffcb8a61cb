/**
 * Anti-replay windows (RFC 4303, section 3.4.3) with extended sequence numbers (appendix A), as a ring of bits that
 * is never shifted (RFC 6479).
 *
 * Whoever calls `accept` holds the lock of the slot, where several workers share it. `check` before decryption may be
 * without: it only saves the work, and `accept` decides.
 */
import { WINDOW_WORDS } from './association-state.js';
import type { Associations } from './associations.js';

/** Verdicts of `check` and `accept`. */
export const FRESH = 0;
export const REPLAYED = 1;
export const TOO_OLD = 2;

/** Bits of the ring; a window of 4,096 needs 4,096 and one word more. */
const RING = WINDOW_WORDS * 32;
/** How far back a number may lie that is taken for one of this half, when the window is switched off. */
const UNCHECKED = 2 ** 31;

export interface ReplayWindows {
  /**
   * The sequence number at hand, low and high word. In an array, since an argument that has 32 bits may make an
   * object at each call.
   */
  readonly number: Uint32Array;
  /** Finds the high word for the low one (RFC 4303, A2.2); false when it would lie before the first half. */
  complete(slot: number): boolean;
  check(slot: number): number;
  /** As `check`; what is fresh is noted, and the window moves when it is the highest. Only after its ICV was right. */
  accept(slot: number): number;
}

export function createReplayWindows(associations: Associations): ReplayWindows {
  const { esn, window: sizes } = associations;
  const { sequence, window: bits } = associations.state;
  const number = new Uint32Array(2);

  function complete(slot: number): boolean {
    number[1] = 0;
    if (esn[slot] === 0) return true;
    const low = number[0];
    const high = sequence[slot * 2 + 1];
    const bottom = sequence[slot * 2] - (sizes[slot] || UNCHECKED) + 1;
    // Case A: the window lies within one half. Case B: it reaches back into the half before.
    if (bottom >= 0) number[1] = low >= bottom ? high : high + 1;
    else if (low < bottom + 2 ** 32) number[1] = high;
    else if (high === 0) return false;
    else number[1] = high - 1;
    return true;
  }

  /** How far the number lies above the highest accepted; exact to 2^53. */
  function ahead(slot: number): number {
    return (number[1] - sequence[slot * 2 + 1]) * 2 ** 32 + (number[0] - sequence[slot * 2]);
  }

  function check(slot: number): number {
    const size = sizes[slot];
    const low = number[0];
    // Numbers begin with one (section 2.2): zero is nobody's first.
    if (low === 0 && number[1] === 0) return TOO_OLD;
    const distance = ahead(slot);
    if (distance > 0 || size === 0) return FRESH;
    if (distance <= -size) return TOO_OLD;
    const word = bits[slot * WINDOW_WORDS + ((low >>> 5) & (WINDOW_WORDS - 1))];
    return ((word >>> (low & 31)) & 1) === 0 ? FRESH : REPLAYED;
  }

  function accept(slot: number): number {
    const verdict = check(slot);
    if (verdict !== FRESH) return verdict;
    const low = number[0];
    const base = slot * WINDOW_WORDS;
    const distance = ahead(slot);
    if (distance > 0) {
      clear(base, distance, sequence[slot * 2]);
      sequence[slot * 2] = low;
      sequence[slot * 2 + 1] = number[1];
    }
    bits[base + ((low >>> 5) & (WINDOW_WORDS - 1))] |= 1 << (low & 31);
    return FRESH;
  }

  /** Clears the words between the highest so far and the new one, which the ring last used a turn ago. */
  function clear(base: number, distance: number, top: number): void {
    const words = ((number[0] >>> 5) - (top >>> 5)) & (WINDOW_WORDS - 1);
    const count = distance >= RING - 31 ? WINDOW_WORDS : words;
    for (let i = 1; i <= count; i++) bits[base + (((top >>> 5) + i) & (WINDOW_WORDS - 1))] = 0;
  }

  return { number, complete, check, accept };
}
