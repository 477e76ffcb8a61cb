/**
 * What an uplink's link layer does alike for IPv4 and IPv6: frames wait for next hops that are being asked for, and
 * neighbours are asked again, given up and forgotten.
 *
 * What waits is bounded, by next hop and in all (RFC 1122, 2.3.2.2); after three questions without an answer it is
 * dropped, and its sender hears that the host is unreachable. A neighbour in use is asked again after half a minute, by
 * unicast and then by everybody's address, and forgotten when it does not answer (2.3.2.1; RFC 4861, 7.3).
 */
import type { Context, Drops } from '../graph.js';
import { NO_FRAME } from '../memory/frames.js';
import {
  ARP_ASKED,
  ARP_CONFIRMED,
  ARP_STATE,
  ARP_TRIES,
  ARP_USED,
  ARP_WORDS,
  ASKING,
  type HopCache,
  KNOWN,
  NO_ENTRY,
} from '../tables/arp-cache.js';

/** The first reasons of a resolver, as its drops must have them; and its counters. */
const HOP_REASONS = ['no-route', 'unresolved', 'queue-full'] as const;
const [NO_ROUTE, UNRESOLVED, QUEUE_FULL] = HOP_REASONS.keys();
export const HOP_COUNTERS = [
  'frames',
  'asked',
  'answered',
  'resolved',
  'failed',
  'conflict',
  'no-slot',
] as const;
const [FRAMES, ASKED, ANSWERED, RESOLVED, FAILED, CONFLICT, NO_SLOT] = HOP_COUNTERS.keys();

export { ANSWERED, FRAMES, NO_SLOT };

/** Frames that wait, in all and for one next hop. */
const MOST_WAITING = 256;
const MOST_FOR_ONE = 64;
/** Room for what waits for the next hop of all that is not on the link, when there is none for others any more. */
const KEPT_FOR_GATEWAY = MOST_FOR_ONE;
/** Questions, a second apart, before a next hop that was never known is given up. */
const FIRST_TRIES = 3;
/** Seconds after which a neighbour in use is confirmed; questions until it is forgotten, the first by unicast. */
const CONFIRM_AFTER = 30;
const CONFIRM_TRIES = 6;
const UNICAST_TRIES = 3;
/** Seconds after which a neighbour that nobody uses is forgotten. */
const FORGET_AFTER = 600;
/** Seconds between two announcements in answer to others that claim the address (RFC 5227, 2.4). */
const DEFEND_INTERVAL = 10;

export interface NextHopsOptions {
  readonly cache: HopCache;
  readonly drops: Drops;
  /** First of the counters, HOP_COUNTERS. */
  readonly base: number;
  /** Sends a frame to the neighbour of an entry. */
  readonly send: (frame: number, at: number) => void;
  /** Asks for the MAC of an entry's neighbour, that neighbour alone or everybody. */
  readonly request: (at: number, unicast: boolean) => void;
  readonly announce: () => void;
  /** Told of each packet whose next hop cannot be reached, before it is dropped. */
  readonly unreachable: (frame: number, route: boolean) => void;
  /** Whether an entry is that of the next hop of all that is not on the link. */
  readonly isGateway: (at: number) => boolean;
}

export interface NextHops {
  /** Drops a frame to which no route leads. */
  noRoute(frame: number): void;
  /** Makes a frame wait for an entry that is not known; one that is new (no state yet) is asked for. */
  wait(frame: number, at: number): void;
  /** An entry's MAC has been heard: it is known, and what waits for it goes on. */
  heard(at: number): void;
  /** Somebody else claims our address. */
  conflict(): void;
  /** Asks again, gives up, forgets. Called between breaths. */
  tick(): void;
}

export function createNextHops(context: Context, options: NextHopsOptions): NextHops {
  const { cache, drops, base, send, request, announce, unreachable, isGateway } = options;
  const { words } = cache;
  const { frames } = context;
  const { values } = context.counters;
  const waiting = new Int32Array(MOST_WAITING + KEPT_FOR_GATEWAY);
  /** Next hop of each, by the first word of its entry, and where that was. */
  const hops = new Int32Array(waiting.length);
  const places = new Int32Array(waiting.length);
  /** How many wait; the second of the last look at the cache; the second of the last defence. */
  const state = new Int32Array([0, 0, -DEFEND_INTERVAL]);

  function noRoute(frame: number): void {
    unreachable(frame, true);
    drops.drop(frame, NO_ROUTE);
  }

  function wait(frame: number, at: number): void {
    const hop = words[at];
    let same = 0;
    for (let i = 0; i < state[0]; i++) if (hops[i] === hop) same++;
    const most = MOST_WAITING + (isGateway(at) ? KEPT_FOR_GATEWAY : 0);
    const full = state[0] >= most || same === MOST_FOR_ONE;
    const parked = full ? NO_FRAME : frames.park(frame);
    if (parked === NO_FRAME) {
      if (words[at + ARP_STATE] === 0) cache.remove(at);
      drops.drop(frame, QUEUE_FULL);
      return;
    }
    waiting[state[0]] = parked;
    places[state[0]] = at;
    hops[state[0]++] = hop;
    if (words[at + ARP_STATE] !== 0) return;
    words[at + ARP_STATE] = ASKING;
    words[at + ARP_CONFIRMED] = context.seconds;
    ask(at);
  }

  /** Lets go of what waits for a next hop, which is known now, or is given up. */
  function settle(hop: number, at: number): void {
    let kept = 0;
    for (let i = 0; i < state[0]; i++) {
      if (hops[i] !== hop) {
        waiting[kept] = waiting[i];
        places[kept] = places[i];
        hops[kept++] = hops[i];
        continue;
      }
      frames.resume(waiting[i]);
      if (at !== NO_ENTRY) send(waiting[i], at);
      else {
        unreachable(waiting[i], false);
        drops.drop(waiting[i], UNRESOLVED);
      }
    }
    state[0] = kept;
  }

  function ask(at: number): void {
    const tries = ++words[at + ARP_TRIES];
    words[at + ARP_ASKED] = context.seconds;
    request(at, words[at + ARP_STATE] === KNOWN && tries <= UNICAST_TRIES);
    values[base + ASKED]++;
  }

  function heard(at: number): void {
    const asked = words[at + ARP_STATE] === ASKING;
    words[at + ARP_STATE] = KNOWN;
    words[at + ARP_CONFIRMED] = context.seconds;
    words[at + ARP_TRIES] = 0;
    if (!asked) return;
    values[base + RESOLVED]++;
    settle(words[at], at);
  }

  function conflict(): void {
    values[base + CONFLICT]++;
    if (context.seconds - state[2] < DEFEND_INTERVAL) return;
    state[2] = context.seconds;
    announce();
  }

  function tick(): void {
    const now = context.seconds;
    if (state[1] === now) return;
    state[1] = now;
    for (let at = 0; at < words.length; at += ARP_WORDS) if (words[at] !== 0) look(at, now);
    // Of a next hop whose entry had to make room for another.
    for (let i = state[0] - 1; i >= 0; i--) {
      if (i < state[0] && cache.entryOf(hops[i], places[i]) === NO_ENTRY) settle(hops[i], NO_ENTRY);
    }
  }

  function look(at: number, now: number): void {
    if (words[at + ARP_STATE] === ASKING) {
      if (now - words[at + ARP_ASKED] < 1) return;
      if (words[at + ARP_TRIES] < FIRST_TRIES) ask(at);
      else giveUp(at);
    } else if (now - words[at + ARP_USED] > FORGET_AFTER) cache.remove(at);
    else if (
      now - words[at + ARP_CONFIRMED] >= CONFIRM_AFTER &&
      now - words[at + ARP_USED] <= CONFIRM_AFTER
    ) {
      if (words[at + ARP_TRIES] < CONFIRM_TRIES) ask(at);
      else giveUp(at);
    }
  }

  function giveUp(at: number): void {
    const hop = words[at];
    cache.remove(at);
    values[base + FAILED]++;
    settle(hop, NO_ENTRY);
  }

  return { noRoute, wait, heard, conflict, tick };
}
