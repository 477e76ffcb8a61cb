/**
 * Events of flows, for whoever wants to watch: made, another state, ended and why. The data plane writes them into a
 * ring in shared memory, and only while somebody listens; it never waits, so that a reader who is too slow loses some,
 * which he notices. Established flows have none.
 *
 * Word 0 is not 0 while somebody listens, word 1 counts events ever written, modulo 2^32. An event is EVENT_WORDS:
 *   words 0–15   the flow's entry (flows.ts)
 *   word 16      kind, and in bits 8–15 why a flow ended
 *   word 17      second of the data plane's clock
 *   words 20–31  addresses of an IPv6 flow: inside, remote end, external
 */
import type { Context } from '../graph.js';
import { EXTERNAL, FLOW_SHIFT, INSIDE, IPV6_FLOW, OUT_KEY, REMOTE_END } from './flows.js';

/** Kinds. */
export const MADE = 1;
export const CHANGED = 2;
export const ENDED = 3;

/** Why a flow ended: its time was over; the same after it was closed; it made room; it was told to. */
export const EXPIRED = 1;
export const CLOSED = 2;
export const EVICTED = 3;
export const FLUSHED = 4;

const LISTENING = 0;
const WRITTEN = 1;
/** Words in front of the events. */
const FIRST = 16;
/** Events that the ring holds. */
const EVENTS = 4096;
export const EVENT_WORDS = 32;
/** Where in an event these are. */
export const EVENT_KIND = 16;
export const EVENT_SECOND = 17;
export const EVENT_ADDRESSES = 20;

/** Bytes of the ring. */
export const FLOW_EVENT_BYTES = (FIRST + EVENTS * EVENT_WORDS) * 4;

/** The data plane's end. */
export class FlowEvents {
  private readonly ring: Int32Array;

  /** @param flows words of the flow table. @param addresses words of the IPv6 addresses that flows have by number. */
  constructor(
    private readonly context: Context,
    memory: SharedArrayBuffer,
    private readonly flows: Int32Array,
    private readonly addresses: Int32Array | null = null,
  ) {
    this.ring = new Int32Array(memory);
  }

  tell(kind: number, why: number, flow: number): void {
    if (this.ring[LISTENING] !== 0) this.write(kind, why, flow);
  }

  private write(kind: number, why: number, flow: number): void {
    const { ring, flows } = this;
    const written = ring[WRITTEN];
    const at = FIRST + (written & (EVENTS - 1)) * EVENT_WORDS;
    const from = flow << FLOW_SHIFT;
    for (let i = 0; i < 1 << FLOW_SHIFT; i++) ring[at + i] = flows[from + i];
    ring[at + EVENT_KIND] = kind | (why << 8);
    ring[at + EVENT_SECOND] = this.context.seconds;
    if ((flows[from + OUT_KEY] & IPV6_FLOW) !== 0) {
      this.copyAddress(flows[from + INSIDE], at + EVENT_ADDRESSES);
      this.copyAddress(flows[from + REMOTE_END], at + EVENT_ADDRESSES + 4);
      this.copyAddress(flows[from + EXTERNAL], at + EVENT_ADDRESSES + 8);
    }
    Atomics.store(ring, WRITTEN, (written + 1) | 0);
  }

  private copyAddress(number: number, at: number): void {
    if (this.addresses === null) return;
    for (let i = 0; i < 4; i++) this.ring[at + i] = this.addresses[number * 4 + i];
  }
}

/** The other end, which others than the data plane have. */
export class FlowEventReader {
  private readonly ring: Int32Array;
  private read = 0;

  constructor(memory: SharedArrayBuffer) {
    this.ring = new Int32Array(memory);
  }

  /** Begins with what comes from now on, or ends it. */
  listen(on: boolean): void {
    this.read = Atomics.load(this.ring, WRITTEN);
    Atomics.store(this.ring, LISTENING, Number(on));
  }

  /**
   * Hands on what was written since.
   * @param call gets the words of one event, which are good until it returns.
   * @returns how many were lost, for they were written over before they were read.
   */
  drain(call: (event: Int32Array) => void): number {
    const { ring } = this;
    const event = new Int32Array(EVENT_WORDS);
    let lost = 0;
    const end = Atomics.load(ring, WRITTEN);
    while (this.read !== end) {
      const at = FIRST + (this.read & (EVENTS - 1)) * EVENT_WORDS;
      event.set(ring.subarray(at, at + EVENT_WORDS));
      // The one that is being written has the place of the one that is a whole ring older.
      if (((Atomics.load(ring, WRITTEN) - this.read) | 0) < EVENTS) call(event);
      else lost++;
      this.read = (this.read + 1) | 0;
    }
    return lost;
  }
}
