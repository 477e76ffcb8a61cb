/**
 * The forwarding table: (domain, MAC) → where that station is.
 *
 * Open addressing over one Uint32Array, four words (16 bytes) an entry, so that a probe touches one cache line:
 *   word 0  first four bytes of the MAC, as a little-endian load gives them
 *   word 1  last two bytes of the MAC in the low half, the domain in the high half
 *   word 2  destination (local port, or REMOTE | VTEP index) in bits 0–16, then VALID and STATIC
 *   word 3  second in which the station was last seen
 * Linear probing at a load of at most one half; removal shifts the run back, so there are no tombstones and
 * lookups never degrade. Memory is fixed when the table is made: 32 bytes per station it can hold.
 *
 * Not handled here: what a move or a full table means – `learn` says what happened, the bridge counts it.
 */

/** Bits of word 2. A valid entry is never 0, so 0 in word 2 is an empty slot. */
const VALID = 1 << 20;
const STATIC = 1 << 21;
/** The destination in word 2. */
const DESTINATION = 0x1ffff;

/** What `learn` found: the outcomes a bridge counts. */
export const KNOWN = 0;
export const LEARNED = 1;
export const MOVED = 2;
/** The MAC has a static entry elsewhere, which stays. */
export const HELD = 3;
/** The domain has learned as many as it may. */
export const LIMITED = 4;
/** The table is full, or the run at this place is too long. */
export const FULL = 5;
/** Known, and seen for the first time in this second. */
export const REFRESHED = 6;

/** No entry: what `lookup` returns for an unknown station. */
export const UNKNOWN = -1;

/**
 * Longest run of slots that is searched for a free place. At half load a random run of 64 has a probability
 * below 1e-9; longer ones are made on purpose, and must not turn each frame into a scan.
 */
const MAX_PROBE = 64;

/** Most domains a table counts learned stations for. */
export const MAX_DOMAINS = 4096;

export interface MacEntry {
  readonly domain: number;
  /** Six bytes in wire order. */
  readonly mac: Uint8Array;
  /** Local port number, or REMOTE | VTEP index. */
  readonly destination: number;
  readonly isStatic: boolean;
  /** Second in which it was last seen. */
  readonly seen: number;
}

export class MacTable {
  /** Number of slots, a power of two. */
  readonly slots: number;
  readonly words: Uint32Array;
  /** Valid entries. */
  size = 0;
  /** Learned (not static) stations per domain and how many each may have. */
  readonly learned = new Uint32Array(MAX_DOMAINS);
  readonly limits = new Uint32Array(MAX_DOMAINS).fill(0xffffffff);
  private readonly mask: number;
  private readonly seed: number;
  private readonly capacity: number;
  private sweepAt = 0;

  /**
   * @param capacity most stations held; slots are at least twice as many.
   * @param seed makes the hash unpredictable to who chooses MACs.
   */
  constructor(capacity: number, seed: number) {
    let slots = 1024;
    while (slots < capacity * 2) slots *= 2;
    this.slots = slots;
    this.mask = slots - 1;
    this.capacity = capacity;
    this.seed = seed | 0;
    this.words = new Uint32Array(slots * 4);
  }

  get bytes(): number {
    return this.words.byteLength;
  }

  /** First slot to look at for a key. */
  private slot(low: number, high: number): number {
    let h = Math.imul(low ^ this.seed, 0x9e3779b1);
    h = Math.imul(h ^ (h >>> 15) ^ high, 0x85ebca6b);
    return (h ^ (h >>> 14)) & this.mask;
  }

  /** Loads a key's first line. The batch loops call it ahead, so that the misses of a batch overlap. */
  touch(low: number, high: number): number {
    return this.words[this.slot(low, high) << 2];
  }

  /** Destination of a station, UNKNOWN when there is none. */
  lookup(low: number, high: number): number {
    const words = this.words;
    const mask = this.mask;
    let i = this.slot(low, high);
    for (;;) {
      const at = i << 2;
      const value = words[at + 2];
      if (value === 0) return UNKNOWN;
      if (words[at] === low && words[at + 1] === high) return value & DESTINATION;
      i = (i + 1) & mask;
    }
  }

  /** Notes that a station was seen at a destination; returns one of the outcomes above. */
  learn(low: number, high: number, destination: number, now: number): number {
    const words = this.words;
    const mask = this.mask;
    let i = this.slot(low, high);
    for (;;) {
      const at = i << 2;
      const value = words[at + 2];
      if (value === 0) return this.insertLearned(low, high, destination, now);
      if (words[at] === low && words[at + 1] === high) {
        // A store only when the second changed: a table that is only read stays clean in every cache.
        if ((value & DESTINATION) === destination) {
          if (words[at + 3] === now) return KNOWN;
          words[at + 3] = now;
          return REFRESHED;
        }
        if (value & STATIC) return HELD;
        words[at + 2] = destination | VALID;
        words[at + 3] = now;
        return MOVED;
      }
      i = (i + 1) & mask;
    }
  }

  private insertLearned(low: number, high: number, destination: number, now: number): number {
    const domain = high >>> 16;
    if (this.learned[domain] >= this.limits[domain]) return LIMITED;
    if (!this.insert(low, high, destination | VALID, now)) return FULL;
    this.learned[domain]++;
    return LEARNED;
  }

  /** Puts a new entry into the first free slot of its run. False when the table or the run is full. */
  private insert(low: number, high: number, value: number, now: number): boolean {
    if (this.size >= this.capacity) return false;
    let i = this.slot(low, high);
    for (let probe = 0; probe < MAX_PROBE; probe++) {
      const at = i << 2;
      if (this.words[at + 2] === 0) {
        this.words[at] = low;
        this.words[at + 1] = high;
        this.words[at + 2] = value;
        this.words[at + 3] = now;
        this.size++;
        return true;
      }
      i = (i + 1) & this.mask;
    }
    return false;
  }

  private find(low: number, high: number): number {
    let i = this.slot(low, high);
    while (this.words[(i << 2) + 2] !== 0) {
      if (this.words[i << 2] === low && this.words[(i << 2) + 1] === high) return i;
      i = (i + 1) & this.mask;
    }
    return -1;
  }

  /** Sets an entry that neither ages nor moves, in place of a learned one. False when the table is full. */
  setStatic(low: number, high: number, destination: number, now: number): boolean {
    const i = this.find(low, high);
    if (i < 0) return this.insert(low, high, destination | VALID | STATIC, now);
    const at = i << 2;
    if (!(this.words[at + 2] & STATIC)) this.learned[high >>> 16]--;
    this.words[at + 2] = destination | VALID | STATIC;
    this.words[at + 3] = now;
    return true;
  }

  /** Removes an entry; false when there is none. */
  remove(low: number, high: number): boolean {
    const i = this.find(low, high);
    if (i < 0) return false;
    this.removeAt(i);
    return true;
  }

  /** Empties slot `i` and moves later entries of its run back over the hole (Knuth 6.4, algorithm R). */
  private removeAt(i: number): void {
    const words = this.words;
    if (!(words[(i << 2) + 2] & STATIC)) this.learned[words[(i << 2) + 1] >>> 16]--;
    this.size--;
    let hole = i;
    let next = i;
    for (;;) {
      next = (next + 1) & this.mask;
      const from = next << 2;
      if (words[from + 2] === 0) break;
      const home = this.slot(words[from], words[from + 1]);
      // Leave it when its home lies cyclically in (hole, next]: it can be found from there.
      if (((next - home) & this.mask) < ((next - hole) & this.mask)) continue;
      words.copyWithin(hole << 2, from, from + 4);
      hole = next;
    }
    words.fill(0, hole << 2, (hole << 2) + 4);
  }

  /** Removes every entry for which `match` says so (static ones included); returns how many. */
  removeWhere(match: (domain: number, destination: number, isStatic: boolean) => boolean): number {
    let removed = 0;
    for (let i = 0; i < this.slots; ) {
      const value = this.words[(i << 2) + 2];
      const domain = this.words[(i << 2) + 1] >>> 16;
      if (value !== 0 && match(domain, value & DESTINATION, (value & STATIC) !== 0)) {
        this.removeAt(i);
        removed++;
        // Another entry may have moved into this slot.
      } else i++;
    }
    return removed;
  }

  /**
   * Ages learned entries: looks at `slots` slots, going round, and removes what was last seen more than
   * `ageing[domain]` seconds ago (0: never). Bounded work, so that a breath is never long. Returns how many went.
   */
  sweep(now: number, ageing: Uint32Array, slots: number): number {
    let removed = 0;
    const words = this.words;
    for (let n = Math.min(slots, this.slots); n > 0; n--) {
      const i = this.sweepAt;
      const at = i << 2;
      const value = words[at + 2];
      const limit = ageing[words[at + 1] >>> 16];
      if (value !== 0 && !(value & STATIC) && limit !== 0 && now - words[at + 3] > limit) {
        this.removeAt(i);
        removed++;
        // The run moved back into this slot: look at it again, within the same bound.
      } else this.sweepAt = (i + 1) & this.mask;
    }
    return removed;
  }

  /** A copy of all entries, for people; not for the hot path. */
  entries(): MacEntry[] {
    const out: MacEntry[] = [];
    for (let at = 0; at < this.words.length; at += 4) {
      const value = this.words[at + 2];
      if (value === 0) continue;
      const low = this.words[at];
      const high = this.words[at + 1];
      out.push({
        domain: high >>> 16,
        mac: Uint8Array.of(low, low >>> 8, low >>> 16, low >>> 24, high, high >>> 8),
        destination: value & DESTINATION,
        isStatic: (value & STATIC) !== 0,
        seen: this.words[at + 3],
      });
    }
    return out;
  }
}

/** First word of a key: the first four bytes of a MAC as a little-endian load gives them. */
export function macLow(mac: Uint8Array): number {
  return (mac[0] | (mac[1] << 8) | (mac[2] << 16) | (mac[3] << 24)) >>> 0;
}

/** Second word of a key: the last two bytes of a MAC and the domain. */
export function macHigh(mac: Uint8Array, domain: number): number {
  return (mac[4] | (mac[5] << 8) | (domain << 16)) >>> 0;
}
