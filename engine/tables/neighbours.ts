/**
 * Known neighbours: (domain, IP address) → MAC, for those who answer ARP and ND in their name.
 *
 * Open addressing over one Int32Array, eight words (32 bytes) an entry, so that no entry crosses a cache line:
 *   word 0     domain + 1; 0 is an empty slot
 *   words 1–4  address, as little-endian loads give it; IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2)
 *   word 5     first four bytes of the MAC
 *   word 6     last two bytes of the MAC; ROUTER
 * Linear probing at a load of at most one half: a table that is fuller doubles, which `set` alone does, between
 * breaths. Removal shifts the run back, so there are no tombstones.
 *
 * Words are signed: every int32 is a small integer to V8 and crosses a call without being boxed.
 *
 * Entries are set by intent alone and never age. Not handled here: learning from ARP and ND.
 */
import { MAX_DOMAINS } from './mac-table.js';
import { addressWords } from './vteps.js';

const ENTRY_SHIFT = 3;
const MAC = 5;
/** Bit of word 6: the neighbour is a router. */
const ROUTER = 1 << 16;
/** Third address word of a mapped IPv4 address. */
export const MAPPED_IPV4 = 0xffff0000 | 0;
/** No entry: what `lookup` returns for an unknown address. */
export const NO_NEIGHBOUR = -1;

export class Neighbours {
  /** Valid entries. */
  size = 0;
  private words = new Int32Array(64 << ENTRY_SHIFT);
  private mask = 63;
  /** Bits of a product that are not of a slot's number. */
  private shift = 26;
  private readonly seed: number;

  /** @param seed makes the hash unpredictable to who chooses addresses. */
  constructor(seed: number) {
    this.seed = seed | 0;
  }

  get bytes(): number {
    return this.words.byteLength;
  }

  /**
   * First slot to look at for a key: by the highest bits of a product. The last byte of an address, in which those of
   * one network differ, is the highest of its word, and reaches no others: by lower bits a search among 250 endpoints
   * took 140 ns, and takes 25.
   */
  private slot(key: number, a: number, b: number, c: number, d: number): number {
    let h = Math.imul(a ^ this.seed ^ Math.imul(key, 0xc2b2ae35), 0x9e3779b1);
    h = Math.imul(h ^ (h >>> 15) ^ b, 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13) ^ c, 0xc2b2ae35);
    return Math.imul(h ^ (h >>> 16) ^ d, 0x27d4eb2f) >>> this.shift;
  }

  /**
   * Finds a neighbour by its domain and the four signed little-endian words of its address; allocates nothing.
   * @returns a handle for `macWord`, good until the table changes; NO_NEIGHBOUR when it is unknown.
   */
  lookup(domain: number, a: number, b: number, c: number, d: number): number {
    const { words, mask } = this;
    const key = domain + 1;
    for (let i = this.slot(key, a, b, c, d); ; i = (i + 1) & mask) {
      const at = i << ENTRY_SHIFT;
      const there = words[at];
      if (there === 0) return NO_NEIGHBOUR;
      if (
        words[at + 4] === d &&
        there === key &&
        words[at + 3] === c &&
        words[at + 2] === b &&
        words[at + 1] === a
      )
        return at;
    }
  }

  /** One of the three 16-bit words of a neighbour's MAC (0, 1 or 2), as a little-endian load gives it. */
  macWord(handle: number, index: number): number {
    return (this.words[handle + MAC + (index >> 1)] >>> ((index & 1) << 4)) & 0xffff;
  }

  /** Whether a neighbour is a router, and says so (RFC 4861, 4.4). */
  isRouter(handle: number): boolean {
    return (this.words[handle + MAC + 1] & ROUTER) !== 0;
  }

  /**
   * Sets an address of 4 or 16 bytes to a MAC of six, in place of what was there.
   * @throws RangeError for a domain out of range, an address or a MAC of another length.
   */
  set(domain: number, address: Uint8Array, mac: Uint8Array, router = false): void {
    check(domain, address);
    if (mac.length !== 6) throw new RangeError(`a MAC has 6 bytes, not ${mac.length}`);
    const [a, b, c, d] = signedWords(address);
    let at = this.lookup(domain, a, b, c, d);
    if (at === NO_NEIGHBOUR) {
      if (this.size * 2 > this.mask) this.grow();
      at = this.free(domain + 1, a, b, c, d);
      this.words.set([domain + 1, a, b, c, d], at);
      this.size++;
    }
    this.words[at + MAC] = mac[0] | (mac[1] << 8) | (mac[2] << 16) | (mac[3] << 24);
    this.words[at + MAC + 1] = mac[4] | (mac[5] << 8) | (router ? ROUTER : 0);
  }

  /** First word of the free slot where a key that is not there belongs. */
  private free(key: number, a: number, b: number, c: number, d: number): number {
    let i = this.slot(key, a, b, c, d);
    while (this.words[i << ENTRY_SHIFT] !== 0) i = (i + 1) & this.mask;
    return i << ENTRY_SHIFT;
  }

  private grow(): void {
    const old = this.words;
    this.words = new Int32Array(old.length * 2);
    this.mask = this.mask * 2 + 1;
    this.shift--;
    for (let from = 0; from < old.length; from += 1 << ENTRY_SHIFT) {
      if (old[from] === 0) continue;
      const to = this.free(old[from], old[from + 1], old[from + 2], old[from + 3], old[from + 4]);
      for (let i = 0; i < 1 << ENTRY_SHIFT; i++) this.words[to + i] = old[from + i];
    }
  }

  /** MAC of an address of 4 or 16 bytes, undefined when it is unknown; for people and tests, it allocates. */
  get(domain: number, address: Uint8Array): Uint8Array | undefined {
    check(domain, address);
    const at = this.lookup(domain, ...signedWords(address));
    if (at === NO_NEIGHBOUR) return undefined;
    return Uint8Array.from({ length: 6 }, (_, i) => this.macWord(at, i >> 1) >>> ((i & 1) << 3));
  }

  /** Removes an address; false when it is unknown. */
  remove(domain: number, address: Uint8Array): boolean {
    check(domain, address);
    const at = this.lookup(domain, ...signedWords(address));
    if (at === NO_NEIGHBOUR) return false;
    this.removeAt(at >> ENTRY_SHIFT);
    return true;
  }

  /** Removes every address of a domain; returns how many. */
  removeDomain(domain: number): number {
    const before = this.size;
    for (let i = 0; i <= this.mask; ) {
      // Another entry may have moved into an emptied slot: look at it again.
      if (this.words[i << ENTRY_SHIFT] === domain + 1) this.removeAt(i);
      else i++;
    }
    return before - this.size;
  }

  /** Empties slot `i` and moves later entries of its run back over the hole (Knuth 6.4, algorithm R). */
  private removeAt(i: number): void {
    const { words, mask } = this;
    let hole = i;
    for (let next = (i + 1) & mask; ; next = (next + 1) & mask) {
      const from = next << ENTRY_SHIFT;
      if (words[from] === 0) break;
      const home = this.slot(words[from], words[from + 1], words[from + 2], words[from + 3], words[from + 4]);
      // Leave it when its home lies cyclically in (hole, next]: it can be found from there.
      if (((next - home) & mask) < ((next - hole) & mask)) continue;
      words.copyWithin(hole << ENTRY_SHIFT, from, from + (1 << ENTRY_SHIFT));
      hole = next;
    }
    words.fill(0, hole << ENTRY_SHIFT, (hole + 1) << ENTRY_SHIFT);
    this.size--;
  }
}

function check(domain: number, address: Uint8Array): void {
  if (!Number.isInteger(domain) || domain < 0 || domain >= MAX_DOMAINS)
    throw new RangeError(`domain ${domain} is not below ${MAX_DOMAINS}`);
  if (address.length !== 4 && address.length !== 16)
    throw new RangeError(`an address has 4 or 16 bytes, not ${address.length}`);
}

function signedWords(address: Uint8Array): [number, number, number, number] {
  const [a, b, c, d] = addressWords(address);
  return [a | 0, b | 0, c | 0, d | 0];
}
