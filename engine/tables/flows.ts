/**
 * Connection tracking: the flows that pass between inside and outside, each found by a packet of either direction in
 * one probe. A node has one such table; who translates – the NAT of each uplink, the balancer – owns its flows in it.
 *
 * A flow is a small number from 1 on. Its entry is one cache line of sixteen words (see the word names below); what is
 * needed only when a flow comes or goes lies apart. Both directions are in one index, open addressing with linear
 * probing at a load of at most two thirds: a word holds the number of flow and direction and, above it, bits of the
 * hash, so that a probe seldom looks at an entry in vain. Removal shifts the run back; there are no tombstones. A flow
 * takes 64 bytes of entry, 8 of wheel and, as the index is a power of two, 12 to 24 of index: 89 in a table of a million.
 *
 * Flows expire by a wheel of one bucket a second. A packet only writes when its flow expires; a flow that is met in
 * its bucket before its time moves on, and only one that is to expire sooner than it was has to change its bucket at
 * once. What `expire` does in a call is bounded.
 *
 * Addresses, ports and identifiers are words as little-endian loads give them. Everything is a signed 32-bit number:
 * those are small integers to V8 and cross calls without being boxed.
 */
import { isClosed, KEPT, LONGEST_SILENCE, WORTHS } from './connection.js';
import { CHANGED, CLOSED, ENDED, EVICTED, EXPIRED, FLUSHED, type FlowEvents, MADE } from './flow-events.js';
import { createFinder, type FlowFinder, outerKey } from './flow-finder.js';

/** Words of an entry. */
export const FLOW_SHIFT = 4;
/** Address inside, and of the remote end outside. */
export const INSIDE = 0;
export const REMOTE_END = 1;
/** Port inside in the low half, remote port in the high half. ICMP queries have their identifier and zero. */
export const OUT_PORTS = 2;
/**
 * Protocol in bits 0–7, IPV6_FLOW in bit 8, IN_DOMAIN in bit 9, owner in bits 10–14, domain + 1 in bits 16–31; 0 when the entry is free.
 * The key of packets from inside; that of packets from outside has no domain, unless IN_DOMAIN says so.
 */
export const OUT_KEY = 3;
/** Address outside that stands for the one inside. */
export const EXTERNAL = 4;
/** Port outside in the low half, remote port in the high half. */
export const IN_PORTS = 5;
/** Next and previous flow of the same external port; or what else whoever made the flow keeps there. */
export const NEXT_OF_PORT = 6;
/** State of the connection in bits 0–6, see connection.ts; above, what the owner keeps. */
export const STATE = 7;
export const STATE_MASK = 0x7f;
/** Second in which the flow expires. */
export const EXPIRY = 8;
const HASH_OUT = 9;
const HASH_IN = 10;
export const PREVIOUS_OF_PORT = 11;
/** Packets from inside and from outside, modulo 2^32. */
export const PACKETS_OUT = 12;
export const PACKETS_IN = 13;
/** Two words, one double: bytes of IP packets of both directions. */
const BYTES_WORD = 14;

/** Addresses are numbers of IPv6 addresses, see addresses6.ts. */
export const IPV6_FLOW = 0x100;
/** Both sides of a flow are in its domain, as keys of both directions then say. */
export const IN_DOMAIN = 0x200;
/** Who made the flow and has to be told when it goes. */
export const OWNER_SHIFT = 10;
export const OWNERS = 32;
/** Owners below are the uplinks' NATs, by index; then the balancer, and the mesh. */
export const BALANCER_OWNER = 16;
export const MESH_OWNER = 17;
/** Bits of a key that tell the owner and the family. */
export const OWNER_KEY = ((OWNERS - 1) << OWNER_SHIFT) | IPV6_FLOW;
/** Directions: a packet from inside, and one from outside. */
export const OUT = 0;
export const IN = 1;

/** No flow: entry 0 is nobody's, and a word of the index that is 0 leads to it. */
export const NO_FLOW = 0;

/** Buckets of the wheel, in seconds. Who may be silent for longer is met once a turn. */
export const WHEEL_SECONDS = 8192;
/** Entries that are looked at for one that may go when the table is full. */
const SAMPLE = 32;
/** A prime above every capacity, so that all entries come in turn, and neighbours, which are alike, far apart. */
const STRIDE = 0x9e3779b1;

/** Hash of a key; both directions use it, and the protocol word tells them apart. */
export function flowKeyHash(seed: number, own: number, remote: number, ports: number, key: number): number {
  // High bits come down between any two words, for addresses often differ in their last byte, which is the high one.
  let h = Math.imul(own ^ seed, 0x9e3779b1);
  h = Math.imul(h ^ (h >>> 16) ^ remote, 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13) ^ ports, 0xc2b2ae35);
  h = Math.imul(h ^ (h >>> 16) ^ key, 0x27d4eb2f);
  h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d);
  return h ^ (h >>> 16);
}

/** Who makes flows, and what has to happen when they go. */
export interface FlowOwner {
  /** A flow's time has come. @returns the second until which it is to stay after all; 0 lets it go. */
  over(flow: number): number;
  /** Gives up what a flow uses, for it is about to be removed. */
  leave(flow: number): void;
  /**
   * Takes over a flow that another process left, and takes what it uses; its words are those of no one who can be
   * trusted. Owners without it take none. @returns false when it cannot be.
   */
  adopt?(flow: number): boolean;
}

/** Owner of flows that use nothing. */
const NOBODY: FlowOwner = { over: () => 0, leave: () => {} };

export class Flows {
  readonly capacity: number;
  readonly words: Int32Array;
  /** The same memory as doubles: bytes of flow f are at f * 8 + 7. */
  readonly doubles: Float64Array;
  readonly index: Int32Array;
  readonly indexMask: number;
  /** Bits of an index word that number flow and direction; the others are of the hash. */
  readonly refMask: number;
  readonly seed: number;
  /** Flows in use. */
  size = 0;
  /**
   * Hashes of the keys, both of each, of connections that were ended although they were open: both ends are being asked
   * to reset themselves, and nothing begins by what they answer.
   */
  readonly ended = new Set<number>();
  /** Told of flows that are made, change their state, or end. */
  events: FlowEvents | null = null;
  /** Finds the flow of a packet; a function over captured arrays, so to be captured itself where it is hot. */
  readonly find: FlowFinder;
  private readonly nextInBucket: Int32Array;
  private readonly previousInBucket: Int32Array;
  /** First flow of each bucket. */
  private readonly buckets = new Int32Array(WHEEL_SECONDS);
  private freeHead = NO_FLOW;
  /** The second whose bucket is being emptied. */
  private emptying: number;
  private cursor = 1;
  private readonly stride: number;
  /** Of IPv4, and then of IPv6. */
  private readonly owners: FlowOwner[] = new Array<FlowOwner>(OWNERS * 2).fill(NOBODY);

  /**
   * @param capacity most flows, at most 2^22.
   * @param seed makes the hash unpredictable to who chooses addresses and ports.
   * @param memory of `flowBytes(capacity)`, for flows that outlive the process; its entries are adopted by `adopt`.
   */
  constructor(capacity: number, seed: number, now: number, memory?: ArrayBufferLike) {
    if (!(capacity >= 1 && capacity <= 1 << 22))
      throw new RangeError(`capacity ${capacity} is not in 1–${1 << 22}`);
    this.capacity = capacity;
    this.seed = seed | 0;
    this.emptying = now;
    this.stride = STRIDE % capacity;
    const buffer = memory ?? new ArrayBuffer(flowBytes(capacity));
    this.words = new Int32Array(buffer, 0, (capacity + 1) << FLOW_SHIFT);
    this.doubles = new Float64Array(buffer, 0, (capacity + 1) << (FLOW_SHIFT - 1));
    let slots = 16;
    while (slots < capacity * 3) slots *= 2;
    this.index = new Int32Array(slots);
    this.indexMask = slots - 1;
    let refs = 16;
    while (refs < (capacity + 1) * 2) refs *= 2;
    this.refMask = refs - 1;
    this.nextInBucket = new Int32Array(capacity + 1);
    this.previousInBucket = new Int32Array(capacity + 1);
    for (let flow = capacity; flow > 0; flow--) this.giveBack(flow);
    this.find = createFinder(this.words, this.index, this.refMask);
  }

  private giveBack(flow: number): void {
    this.nextInBucket[flow] = this.freeHead;
    this.freeHead = flow;
  }

  /** Bytes of everything but a memory that was given. */
  get bytes(): number {
    return this.words.byteLength + this.index.byteLength + this.nextInBucket.byteLength * 2;
  }

  /**
   * Makes a flow, with state and expiry zero and in no bucket: `setExpiry` must follow.
   * @returns its number, or NO_FLOW when all are taken.
   */
  create(
    inside: number,
    remote: number,
    outPorts: number,
    outKey: number,
    external: number,
    inPorts: number,
  ): number {
    const flow = this.freeHead;
    if (flow === NO_FLOW) return NO_FLOW;
    this.freeHead = this.nextInBucket[flow];
    this.size++;
    const { words } = this;
    const at = flow << FLOW_SHIFT;
    words.fill(0, at, at + (1 << FLOW_SHIFT));
    words[at + INSIDE] = inside;
    words[at + REMOTE_END] = remote;
    words[at + OUT_PORTS] = outPorts;
    words[at + OUT_KEY] = outKey;
    words[at + EXTERNAL] = external;
    words[at + IN_PORTS] = inPorts;
    this.enter(flow);
    return flow;
  }

  /**
   * The same, and when all are taken the least worthy one makes room.
   * @param evicted called for one that did.
   * @returns NO_FLOW when all that were looked at are to stay.
   */
  obtain(
    inside: number,
    remote: number,
    outPorts: number,
    outKey: number,
    external: number,
    inPorts: number,
    evicted: () => void,
  ): number {
    const flow = this.create(inside, remote, outPorts, outKey, external, inPorts);
    if (flow !== NO_FLOW) return flow;
    const victim = this.leastWorthy(WORTHS);
    if (victim === NO_FLOW) return NO_FLOW;
    this.end(victim, EVICTED);
    evicted();
    return this.create(inside, remote, outPorts, outKey, external, inPorts);
  }

  /** Says who is told of the flows whose keys have this owner, and are of this family. */
  own(owner: number, told: FlowOwner, ipv6 = false): void {
    this.owners[owner + (ipv6 ? OWNERS : 0)] = told;
  }

  private ownerOf(flow: number): FlowOwner {
    const key = this.words[(flow << FLOW_SHIFT) + OUT_KEY];
    return this.owners[((key >>> OWNER_SHIFT) & (OWNERS - 1)) + ((key & IPV6_FLOW) !== 0 ? OWNERS : 0)];
  }

  /** Ends a flow, and what it uses. @param why one of flow-events.ts. */
  end(flow: number, why = FLUSHED): void {
    this.events?.tell(ENDED, why, flow);
    this.ownerOf(flow).leave(flow);
    this.remove(flow);
  }

  /** Puts both directions of an entry into the index. */
  private enter(flow: number): void {
    const { words, seed } = this;
    const at = flow << FLOW_SHIFT;
    const remote = words[at + REMOTE_END];
    words[at + HASH_OUT] = flowKeyHash(
      seed,
      words[at + INSIDE],
      remote,
      words[at + OUT_PORTS],
      words[at + OUT_KEY],
    );
    words[at + HASH_IN] = flowKeyHash(
      seed,
      words[at + EXTERNAL],
      remote,
      words[at + IN_PORTS],
      outerKey(words[at + OUT_KEY]),
    );
    this.insert(words[at + HASH_OUT], flow * 2 + OUT);
    this.insert(words[at + HASH_IN], flow * 2 + IN);
  }

  private insert(hash: number, ref: number): void {
    const { index, indexMask, refMask } = this;
    let i = hash & indexMask;
    while (index[i] !== 0) i = (i + 1) & indexMask;
    index[i] = (hash & ~refMask) | ref;
  }

  private erase(hash: number, ref: number): void {
    const { index, indexMask, refMask, words } = this;
    let hole = hash & indexMask;
    while ((index[hole] & refMask) !== ref) hole = (hole + 1) & indexMask;
    for (let i = (hole + 1) & indexMask; index[i] !== 0; i = (i + 1) & indexMask) {
      const other = index[i] & refMask;
      const home = words[((other >>> 1) << FLOW_SHIFT) + HASH_OUT + (other & 1)] & indexMask;
      // One may move back to the hole unless its home lies behind it.
      if (((i - home) & indexMask) < ((i - hole) & indexMask)) continue;
      index[hole] = index[i];
      hole = i;
    }
    index[hole] = 0;
  }

  remove(flow: number): void {
    const { words } = this;
    const at = flow << FLOW_SHIFT;
    this.erase(words[at + HASH_OUT], flow * 2 + OUT);
    this.erase(words[at + HASH_IN], flow * 2 + IN);
    this.leaveBucket(flow);
    words[at + OUT_KEY] = 0;
    this.giveBack(flow);
    this.size--;
  }

  /** Sets when a new flow expires, and puts it into its bucket. Packets that prolong it only write EXPIRY. */
  setExpiry(flow: number, second: number): void {
    this.words[(flow << FLOW_SHIFT) + EXPIRY] = second;
    this.enterBucket(flow, second);
    this.events?.tell(MADE, 0, flow);
  }

  /** Sets that a flow expires sooner than it did: it must not wait in the bucket that it has. */
  hasten(flow: number, second: number): void {
    this.leaveBucket(flow);
    this.words[(flow << FLOW_SHIFT) + EXPIRY] = second;
    this.enterBucket(flow, second);
  }

  /** To be called when a flow's state has become another. */
  changed(flow: number): void {
    this.events?.tell(CHANGED, 0, flow);
  }

  private isClosed(flow: number): boolean {
    return isClosed(this.words[(flow << FLOW_SHIFT) + STATE] & STATE_MASK);
  }

  private enterBucket(flow: number, second: number): void {
    const { buckets, nextInBucket, previousInBucket } = this;
    const bucket = Math.max(second, this.emptying) & (WHEEL_SECONDS - 1);
    const head = buckets[bucket];
    nextInBucket[flow] = head;
    // A flow at the head has its bucket for its predecessor, as a number below zero.
    previousInBucket[flow] = -1 - bucket;
    if (head !== NO_FLOW) previousInBucket[head] = flow;
    buckets[bucket] = flow;
  }

  private leaveBucket(flow: number): void {
    const { buckets, nextInBucket, previousInBucket } = this;
    const next = nextInBucket[flow];
    const previous = previousInBucket[flow];
    if (previous < 0) buckets[-1 - previous] = next;
    else nextInBucket[previous] = next;
    if (next !== NO_FLOW) previousInBucket[next] = previous;
  }

  /**
   * Lets flows go whose time has come.
   * @param budget flows that may be looked at in this call.
   * @returns how many went.
   */
  expire(now: number, budget: number): number {
    const { buckets, words } = this;
    let looked = 0;
    let removed = 0;
    // A pause longer than the wheel has every bucket emptied once.
    if (now - this.emptying > WHEEL_SECONDS) this.emptying = now - WHEEL_SECONDS;
    while (this.emptying <= now) {
      const bucket = this.emptying & (WHEEL_SECONDS - 1);
      for (let flow = buckets[bucket]; flow !== NO_FLOW; flow = buckets[bucket]) {
        if (looked++ >= budget) return removed;
        let expiry = words[(flow << FLOW_SHIFT) + EXPIRY];
        if (expiry <= now) {
          expiry = this.ownerOf(flow).over(flow);
          if (expiry <= now) {
            this.end(flow, this.isClosed(flow) ? CLOSED : EXPIRED);
            removed++;
            continue;
          }
          words[(flow << FLOW_SHIFT) + EXPIRY] = expiry;
        }
        this.leaveBucket(flow);
        // After a long pause a whole turn may lead back into this very bucket: one second early is met again.
        this.enterBucket(flow, (expiry & (WHEEL_SECONDS - 1)) === bucket ? expiry - 1 : expiry);
      }
      if (this.emptying === now) break;
      this.emptying++;
    }
    return removed;
  }

  /** Whether flows may wait to go whose second is over. */
  isBehind(now: number): boolean {
    return this.emptying < now;
  }

  /**
   * Finds the flow that is least worth keeping among some that are looked at in turn, all over the table; of those of
   * equal worth the one that would expire first.
   * @param worths by state; 0 goes at once, KEPT never.
   * @returns NO_FLOW when all that were looked at are to stay.
   */
  leastWorthy(worths: Uint8Array): number {
    const { words, capacity } = this;
    let best = NO_FLOW;
    let least = KEPT;
    for (let i = 0; i < SAMPLE && least > 0; i++) {
      this.cursor =
        this.cursor + this.stride <= capacity
          ? this.cursor + this.stride
          : this.cursor + this.stride - capacity;
      const at = this.cursor << FLOW_SHIFT;
      if (words[at + OUT_KEY] === 0) continue;
      const worth = worths[words[at + STATE] & STATE_MASK];
      const older = best !== NO_FLOW && words[at + EXPIRY] < words[(best << FLOW_SHIFT) + EXPIRY];
      if (worth > least || (worth === least && !older)) continue;
      least = worth;
      best = this.cursor;
    }
    return best;
  }

  /** How many words of the index a search looks at: on average, and at most. */
  probes(): { mean: number; longest: number } {
    const { index, indexMask, refMask, words } = this;
    let sum = 0;
    let longest = 0;
    for (let i = 0; i <= indexMask; i++) {
      const ref = index[i] & refMask;
      if (ref === 0) continue;
      const home = words[((ref >>> 1) << FLOW_SHIFT) + HASH_OUT + (ref & 1)];
      const looked = ((i - home) & indexMask) + 1;
      sum += looked;
      longest = Math.max(longest, looked);
    }
    return { mean: this.size === 0 ? 0 : sum / (2 * this.size), longest };
  }

  /** Bytes that passed. */
  bytesOf(flow: number): number {
    return this.doubles[(flow << (FLOW_SHIFT - 1)) + BYTES_WORD / 2];
  }

  /** Calls for every flow; the one at hand may be removed meanwhile. */
  forEach(call: (flow: number) => void): void {
    for (let flow = 1; flow <= this.capacity; flow++)
      if (this.words[(flow << FLOW_SHIFT) + OUT_KEY] !== 0) call(flow);
  }

  /**
   * Takes over the entries that another process left in the memory, with their expiry moved to this process's clock:
   * those that `keep` and their owner say, that are not over, and of which no two have the same key. No word of an
   * entry is believed. To be called before anything else.
   * @param keep may set the owner.
   */
  adopt(
    now: number,
    clockShift: number,
    keep: (flow: number) => boolean,
  ): { readonly taken: number; readonly refused: number } {
    let refused = 0;
    this.freeHead = NO_FLOW;
    for (let flow = this.capacity; flow > 0; flow--) {
      const at = flow << FLOW_SHIFT;
      const empty = this.words[at + OUT_KEY] === 0;
      if (!empty && keep(flow) && this.readmit(flow, now, this.words[at + EXPIRY] + clockShift)) continue;
      if (!empty) refused++;
      this.words[at + OUT_KEY] = 0;
      this.giveBack(flow);
    }
    return { taken: this.size, refused };
  }

  private readmit(flow: number, now: number, expiry: number): boolean {
    const { words, doubles } = this;
    const at = flow << FLOW_SHIFT;
    // Said so that what is no number, as of a clock that was damaged, is not taken either.
    const lives = expiry > now && expiry <= now + LONGEST_SILENCE;
    if (!lives || this.isKnown(at)) return false;
    const bytes = this.bytesOf(flow);
    if (!(bytes >= 0 && bytes <= Number.MAX_SAFE_INTEGER)) doubles[(at + BYTES_WORD) >> 1] = 0;
    if (this.ownerOf(flow).adopt?.(flow) !== true) return false;
    this.enter(flow);
    this.size++;
    words[at + EXPIRY] = expiry;
    this.enterBucket(flow, expiry);
    return true;
  }

  /** Whether some flow has a key of the entry at this word. */
  private isKnown(at: number): boolean {
    const { words, seed } = this;
    const [remote, key] = [words[at + REMOTE_END], words[at + OUT_KEY]];
    const known = (own: number, ports: number, its: number): boolean =>
      this.find(flowKeyHash(seed, own, remote, ports, its), own, remote, ports, its) !== NO_FLOW;
    return (
      known(words[at + INSIDE], words[at + OUT_PORTS], key) ||
      known(words[at + EXTERNAL], words[at + IN_PORTS], outerKey(key))
    );
  }
}

/** Bytes of memory for the entries of so many flows. */
export function flowBytes(capacity: number): number {
  return (capacity + 1) << (FLOW_SHIFT + 2);
}
