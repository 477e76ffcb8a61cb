/**
 * IPv6 addresses as small numbers, so that the flow table has one word for an address of either family. An address has
 * a number while somebody holds it: each flow holds that of its inside and of its remote end, a NAT its own.
 *
 * Open addressing over typed arrays of fixed size, at a load of at most one half; removal shifts the run back. A number
 * takes 32 to 40 bytes. The addresses may lie in the memory of the flows, where others read them by number, and where
 * they outlive the process.
 */
import { MAX_UPLINKS } from '../intent.js';

/** No address: number 0 is nobody's. */
export const NO_ADDRESS = 0;

/** Words of an address, as little-endian loads give them. */
const WORDS = 4;

export class Addresses6 {
  /** Address of number n: four words from 4 n on. */
  readonly words: Int32Array;
  /** Addresses in use. */
  size = 0;
  /** How often each is held; of those that are free the next one that is, as -1 - number. */
  private readonly holds: Int32Array;
  private readonly index: Int32Array;
  private readonly mask: number;
  private freeHead = NO_ADDRESS;

  /**
   * @param capacity most addresses.
   * @param seed makes the hash unpredictable to who chooses addresses.
   * @param memory that has `addressBytes(capacity)` from `offset` on; what is in it is nobody's.
   */
  constructor(
    readonly capacity: number,
    private readonly seed: number,
    memory?: ArrayBufferLike,
    offset = 0,
  ) {
    const buffer = memory ?? new ArrayBuffer(addressBytes(capacity));
    this.words = new Int32Array(buffer, offset, (capacity + 1) * WORDS);
    this.holds = new Int32Array(capacity + 1);
    let slots = 16;
    while (slots < capacity * 2) slots *= 2;
    this.index = new Int32Array(slots);
    this.mask = slots - 1;
    for (let number = capacity; number > 0; number--) this.giveBack(number);
  }

  private hash(a: number, b: number, c: number, d: number): number {
    let h = Math.imul(a ^ this.seed, 0x9e3779b1);
    h = Math.imul(h ^ (h >>> 15) ^ b, 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13) ^ c, 0xc2b2ae35);
    h = Math.imul(h ^ (h >>> 16) ^ d, 0x27d4eb2f);
    return h ^ (h >>> 15);
  }

  /** Number of the address whose eight 16-bit words begin at `word`; NO_ADDRESS when nobody holds it. */
  find(u16: Uint16Array, word: number): number {
    const { words, index, mask } = this;
    const a = u16[word] | (u16[word + 1] << 16);
    const b = u16[word + 2] | (u16[word + 3] << 16);
    const c = u16[word + 4] | (u16[word + 5] << 16);
    const d = u16[word + 6] | (u16[word + 7] << 16);
    for (let i = this.hash(a, b, c, d) & mask; index[i] !== NO_ADDRESS; i = (i + 1) & mask) {
      const at = index[i] * WORDS;
      if (words[at + 3] === d && words[at + 2] === c && words[at + 1] === b && words[at] === a)
        return index[i];
    }
    return NO_ADDRESS;
  }

  /** The same, and holds it; an address that nobody held gets a number. NO_ADDRESS when there is none left. */
  hold(u16: Uint16Array, word: number): number {
    const known = this.find(u16, word);
    if (known !== NO_ADDRESS) {
      this.holds[known]++;
      return known;
    }
    const number = this.freeHead;
    if (number === NO_ADDRESS) return NO_ADDRESS;
    this.freeHead = -1 - this.holds[number];
    this.holds[number] = 1;
    for (let i = 0; i < WORDS; i++)
      this.words[number * WORDS + i] = u16[word + 2 * i] | (u16[word + 2 * i + 1] << 16);
    this.enter(number);
    return number;
  }

  /** Holds an address that somebody holds once more. */
  keep(number: number): void {
    this.holds[number]++;
  }

  release(number: number): void {
    if (--this.holds[number] > 0) return;
    this.erase(number);
    this.giveBack(number);
  }

  private giveBack(number: number): void {
    this.holds[number] = -1 - this.freeHead;
    this.freeHead = number;
  }

  private home(number: number): number {
    const { words } = this;
    const at = number * WORDS;
    return this.hash(words[at], words[at + 1], words[at + 2], words[at + 3]) & this.mask;
  }

  private enter(number: number): void {
    const { index, mask } = this;
    let i = this.home(number);
    while (index[i] !== NO_ADDRESS) i = (i + 1) & mask;
    index[i] = number;
    this.size++;
  }

  private erase(number: number): void {
    const { index, mask } = this;
    let hole = this.home(number);
    while (index[hole] !== number) hole = (hole + 1) & mask;
    for (let i = (hole + 1) & mask; index[i] !== NO_ADDRESS; i = (i + 1) & mask) {
      const home = this.home(index[i]);
      // One may move back to the hole unless its home lies behind it.
      if (((i - home) & mask) < ((i - hole) & mask)) continue;
      index[hole] = index[i];
      hole = i;
    }
    index[hole] = NO_ADDRESS;
    this.size--;
  }

  /** Bytes of everything but a memory that was given. */
  get bytes(): number {
    return this.words.byteLength + this.holds.byteLength + this.index.byteLength;
  }
}

/** Most addresses that so many flows have, with those of uplinks and of published ports. */
export function addressesFor(flows: number): number {
  return 2 * flows + MAX_UPLINKS + 2 * 65_536;
}

/** Bytes of memory for so many addresses. */
export function addressBytes(capacity: number): number {
  return (capacity + 1) * WORDS * 4;
}
