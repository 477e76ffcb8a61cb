/**
 * Neighbours that a router on an Ethernet segment has found by ARP (RFC 826; RFC 1122, 2.3.2.1 for their ageing).
 *
 * Sets of four ways over one Int32Array, eight words an entry; a full set loses the entry that was confirmed longest
 * ago. So memory is fixed, and nobody who answers for many addresses displaces more than a few.
 *   word 0  address, as a little-endian load gives it; 0 is an empty entry
 *   word 1  state: ASKING, KNOWN
 *   word 2  first four bytes of the MAC
 *   word 3  last two bytes of the MAC
 *   word 4  second in which it was confirmed last
 *   word 5  second in which it was asked for last
 *   word 6  how often it was asked for since it was confirmed
 *   word 7  second in which it was used last
 */

export const ARP_STATE = 1;
export const ARP_MAC = 2;
export const ARP_CONFIRMED = 4;
export const ARP_ASKED = 5;
export const ARP_TRIES = 6;
export const ARP_USED = 7;
export const ARP_WORDS = 8;

/** States. */
export const ASKING = 1;
export const KNOWN = 2;

const SETS = 256;
const WAYS = 4;

/** No entry. */
export const NO_ENTRY = -1;

export class ArpCache {
  readonly words = new Int32Array(SETS * WAYS * ARP_WORDS);
  private readonly seed: number;

  constructor(seed: number) {
    this.seed = seed | 0;
  }

  private set(address: number): number {
    const h = Math.imul(address ^ this.seed, 0x9e3779b1);
    return (((h ^ (h >>> 15)) & (SETS - 1)) * WAYS) << 3;
  }

  /** First word of an address's entry; NO_ENTRY when there is none. */
  find(address: number): number {
    const { words } = this;
    const first = this.set(address);
    for (let at = first; at < first + WAYS * ARP_WORDS; at += ARP_WORDS) if (words[at] === address) return at;
    return NO_ENTRY;
  }

  /**
   * Makes an entry, all else zero, in place of the one of its set that was confirmed longest ago.
   * @returns its first word; what was there is gone.
   */
  add(address: number): number {
    const { words } = this;
    const first = this.set(address);
    let best = first;
    for (let at = first; at < first + WAYS * ARP_WORDS; at += ARP_WORDS) {
      if (words[at] === 0) {
        best = at;
        break;
      }
      if (words[at + ARP_CONFIRMED] < words[best + ARP_CONFIRMED]) best = at;
    }
    words.fill(0, best, best + ARP_WORDS);
    words[best] = address;
    return best;
  }

  remove(at: number): void {
    this.words.fill(0, at, at + ARP_WORDS);
  }

  setMac(at: number, first: number, second: number, third: number): void {
    this.words[at + ARP_MAC] = first | (second << 16);
    this.words[at + ARP_MAC + 1] = third;
  }
}
