/**
 * The flow table's entries in a file that is mapped, so that they outlive the process, and what the next one takes
 * over of them.
 *
 * Entry 0, which is no flow, says what lies there:
 *   word 0       MAGIC, which holds the version of the layout; 0 while flows are being taken over
 *   word 1       capacity
 *   words 2, 3   flows taken over at the start, and those that were not
 *   words 4, 5   a double: milliseconds of CLOCK_MONOTONIC at which the clock of the entries was zero
 * Only the entries are believed, each after it was looked at: index, wheel, ports and their lists are made anew.
 */
import { native } from '../native-bindings/index.js';
import type { Context } from './graph.js';
import { type FlowTableIntent, type Intent, type LeftFlows, MAX_UPLINKS } from './intent.js';
import {
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
} from './tables/flows.js';
import { addressWord } from './tables/gateways.js';
import { swap16 } from './wire/ethernet.js';

/** "wflo" and the version of the layout, which changes with any word of an entry. */
const MAGIC = 0x776c6f01;
const CAPACITY = 1;
const TAKEN = 2;
const REFUSED = 3;
const CLOCK = 2;

/** Whether there is a whole table of this capacity. @param memory of `flowBytes(capacity)`. */
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
  private readonly words: Int32Array;
  private readonly doubles: Float64Array;

  constructor(
    private readonly context: Context,
    { capacity, fd }: FlowTableIntent,
  ) {
    const memory = native.fileMap(fd, flowBytes(capacity));
    this.words = new Int32Array(memory, 0, 1 << FLOW_SHIFT);
    this.doubles = new Float64Array(memory, 0, 1 << (FLOW_SHIFT - 1));
    this.flows = new Flows(capacity, context.seed, context.seconds, memory);
  }

  /** Takes over the flows that the intent says are left, once all it says else is applied; all others go. */
  begin(intent: Intent): void {
    const { words, doubles, flows, context } = this;
    const epoch = epochOf(context);
    // Who is killed from here on leaves nothing: half of the flows would be by one clock, half by the other.
    words[0] = 0;
    const left = intent.flows?.left;
    const keep = left === undefined ? () => false : keeper(flows, intent, left);
    const shift = Math.round((doubles[CLOCK] - epoch) / 1000);
    const { taken, refused } = flows.adopt(context.seconds, left === undefined ? 0 : shift, keep);
    words[CAPACITY] = flows.capacity;
    words[TAKEN] = taken;
    words[REFUSED] = refused;
    doubles[CLOCK] = epoch;
    words[0] = MAGIC;
  }
}

/**
 * Which entries may be taken over, as far as their owner need not be asked: IPv4, of a network and an endpoint that are
 * still what they were, and not of a port that is published no more. The owner is set anew, for uplinks may have
 * changed places: it is the uplink of the network.
 */
function keeper(flows: Flows, intent: Intent, left: LeftFlows): (flow: number) => boolean {
  const { words } = flows;
  const uplinkOf = new Map<number, number>();
  for (const { domain, uplink } of intent.gateways)
    if (uplink >= 0 && left.domains.includes(domain)) uplinkOf.set(domain, uplink);
  const endpoints = new Set(
    left.endpoints.map(({ domain, address }) => placeOf(domain, addressWord(address))),
  );
  const unpublished = new Set(
    left.unpublished.map(
      ({ address, protocol, port }) => `${protocol} ${addressWord(address)} ${swap16(port)}`,
    ),
  );
  const gone = (at: number): boolean =>
    unpublished.has(`${words[at + OUT_KEY] & 0xff} ${words[at + EXTERNAL]} ${words[at + IN_PORTS] & 0xffff}`);
  return (flow) => {
    const at = flow << FLOW_SHIFT;
    const key = words[at + OUT_KEY];
    const domain = (key >>> 16) - 1;
    const uplink = uplinkOf.get(domain);
    if (uplink === undefined || (key & (IN_DOMAIN | IPV6_FLOW | 0x8000)) !== 0) return false;
    if (((key >>> OWNER_SHIFT) & (OWNERS - 1)) >= MAX_UPLINKS) return false;
    if (!endpoints.has(placeOf(domain, words[at + INSIDE]))) return false;
    if (unpublished.size > 0 && gone(at)) return false;
    words[at + OUT_KEY] = (key & ~((OWNERS - 1) << OWNER_SHIFT)) | (uplink << OWNER_SHIFT);
    return true;
  };
}

/** One number of a domain and an address. */
function placeOf(domain: number, address: number): number {
  return domain * 2 ** 32 + (address >>> 0);
}
