/**
 * Neighbours that a router on an Ethernet segment has found by ARP (RFC 826; RFC 1122, 2.3.2.1 for their ageing), or
 * by ND (RFC 4861).
 *
 * Sets of four ways over one Int32Array, eight words an entry; a full set loses the entry that was used longest ago,
 * if ever. So memory is fixed, and neither who has many asked for nor who answers for many displaces what is in use.
 *   word 0  IPv4 address, as a little-endian load gives it; of IPv6 a number that no entry had before; 0 is empty
 *   word 1  state: ASKING, KNOWN; 0 until somebody asks
 *   word 2  first four bytes of the MAC
 *   word 3  last two bytes of the MAC
 *   word 4  second in which it was confirmed last
 *   word 5  second in which it was asked for last
 *   word 6  how often it was asked for since it was confirmed
 *   word 7  second in which it was used last
 */
import { sameAddress } from '../wire/ipv6.js';

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
const SET_SHIFT = 24;
const WAYS = 4;

/** No entry. */
export const NO_ENTRY = -1;

/** What of a cache does not depend on the family of its addresses. */
export interface HopCache {
  readonly words: Int32Array;
  /** The entry whose word 0 is this, which was at `place` when it was seen; NO_ENTRY when it is gone. */
  entryOf(hop: number, place: number): number;
  remove(at: number): void;
}

function remove(words: Int32Array, at: number): void {
  words.fill(0, at, at + ARP_WORDS);
}

/** Empties the entry of a set that is free, or was used longest ago, or never. Returns its first word. */
function makeRoom(words: Int32Array, first: number): number {
  let best = first;
  for (let at = first; at < first + WAYS * ARP_WORDS; at += ARP_WORDS) {
    if (words[at] === 0) return at;
    if (words[at + ARP_USED] < words[best + ARP_USED]) best = at;
  }
  remove(words, best);
  return best;
}

/**
 * First word of the set that a product leads to: by its highest bits, which each bit of a factor reaches. The last byte
 * of an address, in which stations of one link differ, is the highest of its word, and reaches no others.
 */
function setOf(product: number): number {
  return ((product >>> SET_SHIFT) * WAYS) << 3;
}

/** @param first, second, third words of the MAC. */
export function setMac(words: Int32Array, at: number, first: number, second: number, third: number): void {
  words[at + ARP_MAC] = first | (second << 16);
  words[at + ARP_MAC + 1] = third;
}

export class ArpCache implements HopCache {
  readonly words = new Int32Array(SETS * WAYS * ARP_WORDS);
  private readonly seed: number;

  constructor(seed: number) {
    this.seed = seed | 0;
  }

  private set(address: number): number {
    return setOf(Math.imul(address ^ this.seed, 0x9e3779b1));
  }

  /** First word of an address's entry; NO_ENTRY when there is none. */
  find(address: number): number {
    const { words } = this;
    const first = this.set(address);
    for (let at = first; at < first + WAYS * ARP_WORDS; at += ARP_WORDS) if (words[at] === address) return at;
    return NO_ENTRY;
  }

  entryOf(hop: number): number {
    return this.find(hop);
  }

  /**
   * Makes an entry, all else zero, in place of the one of its set that was used longest ago.
   * @returns its first word; what was there is gone.
   */
  add(address: number): number {
    const at = makeRoom(this.words, this.set(address));
    this.words[at] = address;
    return at;
  }

  remove(at: number): void {
    remove(this.words, at);
  }
}

/** The same for IPv6, whose addresses, eight 16-bit words each, lie apart. */
export class NdCache implements HopCache {
  readonly words = new Int32Array(SETS * WAYS * ARP_WORDS);
  /** Those of the entry at word `at` begin at `at`. */
  readonly addresses = new Uint16Array(SETS * WAYS * ARP_WORDS);
  private readonly seed: number;
  private last = 0;

  constructor(seed: number) {
    this.seed = seed | 0;
  }

  private set(u16: Uint16Array, word: number): number {
    let h = this.seed;
    for (let i = 0; i < 8; i += 2)
      h = Math.imul(h ^ (h >>> 15) ^ u16[word + i] ^ (u16[word + i + 1] << 16), 0x9e3779b1);
    return setOf(h);
  }

  /** First word of the entry of the address at `word`; NO_ENTRY when there is none. */
  find(u16: Uint16Array, word: number): number {
    const { words, addresses } = this;
    const first = this.set(u16, word);
    for (let at = first; at < first + WAYS * ARP_WORDS; at += ARP_WORDS)
      if (words[at] !== 0 && sameAddress(u16, word, addresses, at)) return at;
    return NO_ENTRY;
  }

  entryOf(hop: number, place: number): number {
    return this.words[place] === hop ? place : NO_ENTRY;
  }

  add(u16: Uint16Array, word: number): number {
    const at = makeRoom(this.words, this.set(u16, word));
    this.last = (this.last % 0x7fffffff) + 1;
    this.words[at] = this.last;
    for (let i = 0; i < 8; i++) this.addresses[at + i] = u16[word + i];
    return at;
  }

  remove(at: number): void {
    remove(this.words, at);
  }
}
