/**
 * A set of IPv6 prefixes, asked whether an address is in one of them. By open addressing, once for each length that
 * occurs: usually one. Filled as a whole, between breaths.
 *
 * Addresses are eight 16-bit words as little-endian loads give them.
 */
import { maskWords } from '../wire/ipv6.js';

interface PrefixV6 {
  /** Eight words, host bits clear. */
  readonly words: Uint16Array;
  readonly length: number;
}

/** In place of a place. */
export const NO_PREFIX = -1;

export class Prefixes6 {
  /** Lengths that occur, with their masks of eight words each. */
  private lengths = new Int32Array(0);
  private masks = new Uint16Array(0);
  /** Of each slot the length of its prefix plus one, 0 when it is empty; and the prefix. */
  private used = new Uint8Array(4);
  private prefixes = new Uint16Array(4 * 8);
  /** Place of the prefix in the list that was set. */
  private places = new Int32Array(4);
  private readonly wanted = new Uint16Array(8);

  set(prefixes: readonly PrefixV6[]): void {
    let slots = 4;
    while (slots < prefixes.length * 4) slots *= 2;
    this.used = new Uint8Array(slots);
    this.prefixes = new Uint16Array(slots * 8);
    this.places = new Int32Array(slots);
    for (const [place, { words, length }] of prefixes.entries()) {
      let slot = this.slot(words, length);
      while (this.used[slot] !== 0) slot = (slot + 1) & (slots - 1);
      this.used[slot] = length + 1;
      this.prefixes.set(words, slot * 8);
      this.places[slot] = place;
    }
    this.lengths = Int32Array.from(new Set(prefixes.map(({ length }) => length)));
    this.masks = new Uint16Array(this.lengths.length * 8);
    this.lengths.forEach((length, i) => {
      this.masks.set(maskWords(length), i * 8);
    });
  }

  /** Whether the address at `word` is in one of them. */
  cover(u16: Uint16Array, word: number): boolean {
    return this.find(u16, word) !== NO_PREFIX;
  }

  /** Place in the list of one that the address at `word` is in, or NO_PREFIX. */
  find(u16: Uint16Array, word: number): number {
    const { lengths, masks, wanted, used } = this;
    for (let l = 0; l < lengths.length; l++) {
      for (let i = 0; i < 8; i++) wanted[i] = u16[word + i] & masks[l * 8 + i];
      let slot = this.slot(wanted, lengths[l]);
      for (; used[slot] !== 0; slot = (slot + 1) & (used.length - 1))
        if (used[slot] === lengths[l] + 1 && this.holds(slot)) return this.places[slot];
    }
    return NO_PREFIX;
  }

  private holds(slot: number): boolean {
    for (let i = 0; i < 8; i++) if (this.prefixes[slot * 8 + i] !== this.wanted[i]) return false;
    return true;
  }

  private slot(words: Uint16Array, length: number): number {
    let h = length;
    for (let i = 0; i < 8; i += 2)
      h = Math.imul(h ^ (h >>> 15) ^ words[i] ^ (words[i + 1] << 16), 0x9e3779b1);
    return (h ^ (h >>> 15)) & (this.used.length - 1);
  }
}
