/**
 * The flow table's entries in a file that is mapped, so that they outlive the process, and what the next one takes
 * over of them.
 *
 * Entry 0, which is no flow, says what lies there:
 *   word 0       MAGIC, which holds the version of the layout; 0 while flows are being taken over
 *   word 1       capacity
 *   words 2, 3   flows taken over at the start, and those that were not
 *   words 4, 5   a double: milliseconds of CLOCK_MONOTONIC at which the clock of the entries was zero
 * Only the entries are believed, each after it was looked at: index, wheel, ports and their lists are made anew. Behind
 * the entries lie the addresses of those of IPv6, which are numbered anew as well.
 */
import { native } from '../native-bindings/index.js';
import type { Context } from './graph.js';
import { type FlowTableIntent, type Intent, type LeftFlows, MAX_UPLINKS } from './intent.js';
import { Addresses6, addressBytes, NO_ADDRESS } from './tables/addresses6.js';
import { FlowEvents } from './tables/flow-events.js';
import {
  BALANCER_OWNER,
  EXTERNAL,
  FLOW_SHIFT,
  Flows,
  flowBytes,
  IN_DOMAIN,
  IN_PORTS,
  INSIDE,
  IPV6_FLOW,
  OUT_KEY,
  OWNER_SHIFT,
  OWNERS,
  REMOTE_END,
} from './tables/flows.js';
import { addressWord } from './tables/gateways.js';
import { neighboursOf, placeOf } from './tables/services.js';
import { swap16 } from './wire/ethernet.js';
import { words16 } from './wire/ipv6.js';

/** "wflo" and the version of the layout, which changes with any word of an entry. */
const MAGIC = 0x776c6f01;
const CAPACITY = 1;
const TAKEN = 2;
const REFUSED = 3;
const CLOCK = 2;

/** Bytes of entry 0. */
export const HEADER_BYTES = 4 << FLOW_SHIFT;

/** Whether there is a whole table of this capacity. @param memory its first HEADER_BYTES, or more. */
export function holdsFlows(memory: ArrayBuffer, capacity: number): boolean {
  const words = new Int32Array(memory);
  return words[0] === MAGIC && words[CAPACITY] === capacity;
}

/** Flows of an earlier process that were taken over, and those that were not. */
export function takenOver(memory: ArrayBuffer): { readonly taken: number; readonly refused: number } {
  const words = new Int32Array(memory, 0, 1 << FLOW_SHIFT);
  return { taken: words[TAKEN], refused: words[REFUSED] };
}

/** Milliseconds of CLOCK_MONOTONIC at which the clock of a context that is told `now` was zero. */
function epochOf({ now }: Context): number {
  return Number(process.hrtime.bigint() / 1000n) / 1000 - now;
}

export class FlowMemory {
  readonly flows: Flows;
  /** Null where no uplink has IPv6. */
  readonly addresses: Addresses6 | null;
  /** Addresses that an earlier process left, eight 16-bit words each. */
  private leftAddresses: Uint16Array | null = null;
  private readonly words: Int32Array;
  private readonly doubles: Float64Array;

  constructor(
    private readonly context: Context,
    { capacity, fd, left, addresses }: FlowTableIntent,
  ) {
    const memory = native.fileMap(fd, flowMemoryBytes(capacity, addresses));
    this.words = new Int32Array(memory, 0, 1 << FLOW_SHIFT);
    this.doubles = new Float64Array(memory, 0, 1 << (FLOW_SHIFT - 1));
    this.flows = new Flows(capacity, context.seed, context.seconds, memory);
    this.addresses =
      addresses === undefined ? null : new Addresses6(addresses, context.seed, memory, flowBytes(capacity));
    if (this.addresses === null || left === undefined) return;
    // Now, for the NATs write their own over them; and so nobody else is to find what the entries name.
    this.leftAddresses = new Uint16Array(this.addresses.words.slice().buffer);
    this.words[0] = 0;
  }

  /** Takes over the flows that the intent says are left, once all it says else is applied; all others go. */
  begin(intent: Intent): void {
    const { words, doubles, flows, context } = this;
    const epoch = epochOf(context);
    // Who is killed from here on leaves nothing: half of the flows would be by one clock, half by the other.
    words[0] = 0;
    const left = intent.flows?.left;
    const numbers = new Numbers(this.addresses, this.leftAddresses);
    const keep = left === undefined ? () => false : keeper(flows, numbers, intent, left);
    const shift = Math.round((doubles[CLOCK] - epoch) / 1000);
    const { taken, refused } = flows.adopt(context.seconds, left === undefined ? 0 : shift, keep);
    numbers.release();
    this.leftAddresses = null;
    words[CAPACITY] = flows.capacity;
    words[TAKEN] = taken;
    words[REFUSED] = refused;
    doubles[CLOCK] = epoch;
    words[0] = MAGIC;
    const events = intent.flows?.events;
    if (events) flows.events = new FlowEvents(context, events, flows.words, this.addresses?.words ?? null);
  }
}

/** Bytes of a table of so many flows, and of so many addresses behind it. */
export function flowMemoryBytes(capacity: number, addresses?: number): number {
  return flowBytes(capacity) + (addresses === undefined ? 0 : addressBytes(addresses));
}

/**
 * An intent as a process finds the flows that another left: with the services as they were, so that the flows of what
 * is gone of them end as with a reload, when the intent itself is applied.
 */
export function asLeft(intent: Intent): Intent {
  const left = intent.flows?.left;
  if (left === undefined) return intent;
  const known = new Set(intent.neighbours.map(placeOf));
  const gone = left.services.flatMap(neighboursOf).filter((one) => !known.has(placeOf(one)));
  return { ...intent, services: left.services, neighbours: [...intent.neighbours, ...gone] };
}

/** The numbers that addresses get in the table of this process; all are held until `release`. */
class Numbers {
  private readonly held: number[] = [];

  /** @param left what numbers stood for in that of an earlier process; null when it is not known. */
  constructor(
    private readonly addresses: Addresses6 | null,
    private readonly left: Uint16Array | null,
  ) {}

  /** Of an address of 4 bytes its word, of 16 its number; NO_ADDRESS when there is none. */
  of(address: Uint8Array): number {
    return address.length === 4 ? addressWord(address) : this.hold(words16(address), 0);
  }

  /** Gives what an entry has for addresses the numbers of now. @returns false when it cannot be. */
  renew(words: Int32Array, at: number): boolean {
    if (this.left === null) return false;
    for (const end of [INSIDE, REMOTE_END, EXTERNAL]) {
      const number = words[at + end];
      if (number <= 0 || number * 8 >= this.left.length) return false;
      const now = this.hold(this.left, number * 8);
      if (now === NO_ADDRESS) return false;
      words[at + end] = now;
    }
    return true;
  }

  private hold(u16: Uint16Array, word: number): number {
    const number = this.addresses?.hold(u16, word) ?? NO_ADDRESS;
    if (number !== NO_ADDRESS) this.held.push(number);
    return number;
  }

  release(): void {
    for (const number of this.held) this.addresses!.release(number);
  }
}

/**
 * Which entries may be taken over, as far as their owner need not be asked: of a network and an endpoint that are still
 * what they were, and not of a port that is published no more. The owner is set anew, for uplinks may have changed
 * places: it is the uplink of the network. The balancer knows itself which flows are of its services.
 */
function keeper(flows: Flows, numbers: Numbers, intent: Intent, left: LeftFlows): (flow: number) => boolean {
  const { words } = flows;
  const uplinkOf = new Map<number, number>();
  for (const { domain, uplink } of intent.gateways)
    if (uplink >= 0 && left.domains.includes(domain)) uplinkOf.set(domain, uplink);
  const endpoints = new Set(
    left.endpoints.map(({ domain, address }) => numberOf(domain, numbers.of(address), address.length === 16)),
  );
  const unpublished = new Set(
    left.unpublished.map(
      ({ address, protocol, port }) =>
        `${protocol | familyOf(address)} ${numbers.of(address)} ${swap16(port)}`,
    ),
  );
  const gone = (at: number): boolean => {
    const protocol = words[at + OUT_KEY] & (0xff | IPV6_FLOW);
    return unpublished.has(`${protocol} ${words[at + EXTERNAL]} ${words[at + IN_PORTS] & 0xffff}`);
  };
  return (flow) => {
    const at = flow << FLOW_SHIFT;
    const key = words[at + OUT_KEY];
    const domain = (key >>> 16) - 1;
    const owner = (key >>> OWNER_SHIFT) & (OWNERS - 1);
    const uplink = uplinkOf.get(domain);
    const ipv6 = (key & IPV6_FLOW) !== 0;
    const inDomain = key & (IN_DOMAIN | 0x8000);
    if (owner === BALANCER_OWNER) return inDomain === IN_DOMAIN && (!ipv6 || numbers.renew(words, at));
    if (uplink === undefined || inDomain !== 0 || owner >= MAX_UPLINKS) return false;
    if (ipv6 && !numbers.renew(words, at)) return false;
    if (!endpoints.has(numberOf(domain, words[at + INSIDE], ipv6))) return false;
    if (unpublished.size > 0 && gone(at)) return false;
    words[at + OUT_KEY] = (key & ~((OWNERS - 1) << OWNER_SHIFT)) | (uplink << OWNER_SHIFT);
    return true;
  };
}

/** One number of a domain and an address of either family. */
function numberOf(domain: number, address: number, ipv6: boolean): number {
  return (domain * 2 + (ipv6 ? 1 : 0)) * 2 ** 32 + (address >>> 0);
}

/** What the key of a flow of the address's family has. */
function familyOf(address: Uint8Array): number {
  return address.length === 16 ? IPV6_FLOW : 0;
}
