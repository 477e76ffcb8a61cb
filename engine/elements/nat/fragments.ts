/**
 * Fragments of one direction through a NAT, in order and out of order (RFC 4787, REQ-14): only the first of a datagram
 * has ports, so what it becomes is remembered for the others, and others that come before it wait for it. What is of one
 * family of addresses alone is apart.
 *
 * Everything is bounded (REQ-14a): datagrams remembered, fragments waiting, fragments of one datagram, seconds. Of
 * TCP, UDP and ICMP the checksum lies in the first fragment and covers the whole, so the others change in address
 * alone. Not handled: overlaps, which are the receiver's to judge.
 */
import type { Context } from '../../graph.js';
import { NO_FRAME } from '../../memory/frames.js';
import { IN } from '../../tables/flows.js';
import { ETHERNET_HEADER } from '../../wire/ethernet.js';
import { IPV4_DESTINATION, IPV4_ID, IPV4_SOURCE, IPV4_TTL_PROTOCOL } from '../../wire/ip.js';
import { replaceAddress } from './packet.js';

/** Datagrams remembered at a time whose first fragment went by. */
const DATAGRAMS = 256;
/** Fragments that wait, in all and of one datagram. */
const WAITING = 128;
const WAITING_EACH = 16;
/** Places of datagrams: of as many as can wait for their first fragment, and of those that had it. */
const PLACES = WAITING + DATAGRAMS;
/** Seconds. A sender's fragments follow each other at once. */
const PATIENCE = 5;

/** States of a datagram's place. */
const FREE = 0;
const UNKNOWN = 1;
const KNOWN = 2;

/** What became of a fragment that is not the first. */
export const PASSED = 0;
export const HELD = 1;
const REFUSED = 2;

/** Words that tell a datagram from others: at most two addresses, identification and protocol. */
const KEY = 10;

/** Words of an address, at most. */
const ADDRESS = 4;

/** What is of one family. */
export interface FragmentFamily {
  /** Writes what tells a fragment's datagram, KEY words at most. @param ip its header's first word. */
  read(u16: Uint16Array, ip: number, key: Int32Array): void;
  /** Replaces a fragment's destination when it goes inside, else its source, by the address at `at`. */
  replace(u16: Uint16Array, ip: number, inward: boolean, words: Int32Array, at: number): void;
}

export const FRAGMENTS_V4: FragmentFamily = {
  read(u16, ip, key) {
    key[0] = u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16);
    key[1] = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    key[2] = u16[ip + IPV4_ID] | ((u16[ip + IPV4_TTL_PROTOCOL] >>> 8) << 16);
  },
  replace(u16, ip, inward, words, at) {
    replaceAddress(u16, ip, inward ? IPV4_DESTINATION : IPV4_SOURCE, words[at]);
  },
};

export interface Fragments {
  /**
   * Takes a fragment that has no ports: translates it when its first one went by, holds it, which is no longer the
   * caller's then, or refuses it.
   */
  later(frame: number): number;
  /** Whether the first fragment of a fragment's datagram went by. */
  known(frame: number): boolean;
  /**
   * Remembers what a first fragment becomes, before it is translated: its address, in the words from `at` on (one of
   * IPv4, four of IPv6), and the domain it goes into, if it goes inside.
   * @returns those that waited for it, translated.
   */
  first(frame: number, words: Int32Array, at: number, domain: number): readonly number[];
  /** Gives up what waits for a first fragment that was refused. */
  refuse(frame: number): void;
  /** Gives up what waited too long, or all. */
  expire(all?: boolean): void;
}

/**
 * @param lost takes a fragment that waited in vain.
 * @param within whether both sides of a flow are in its domain, so that fragments from outside have one too.
 */
export function createFragments(
  context: Context,
  direction: number,
  family: FragmentFamily,
  lost: (frame: number) => void,
  within = false,
): Fragments {
  const { frames } = context;
  const { u16, off, domain } = frames;
  const keys = new Int32Array(PLACES * KEY);
  /** Of the fragment at hand. */
  const key = new Int32Array(KEY);
  /** Domain + 1 from inside, 0 from outside. */
  const spaces = new Int32Array(PLACES);
  const states = new Uint8Array(PLACES);
  const addresses = new Int32Array(PLACES * ADDRESS);
  const domains = new Uint16Array(PLACES);
  const seconds = new Int32Array(PLACES);
  const held = new Uint32Array(WAITING);
  const heldFor = new Int16Array(WAITING).fill(-1);
  /** Of its kind the place that was taken last, by state. */
  const next = new Int32Array(KNOWN + 1);
  let inUse = 0;

  /** Place of the datagram that a fragment belongs to, -1 when it has none. */
  function find(frame: number): number {
    family.read(u16, (off[frame] + ETHERNET_HEADER) >>> 1, key);
    const space = spaceOf(frame);
    for (let i = 0; i < PLACES; i++) if (states[i] !== FREE && spaces[i] === space && isKey(i)) return i;
    return -1;
  }

  function spaceOf(frame: number): number {
    return direction === IN && !within ? 0 : domain[frame] + 1;
  }

  /**
   * A place for the datagram of a fragment that has none: the oldest one's of its kind, whose fragments, if any wait, are
   * given up. So those of which only later fragments came have none forgotten whose first one went by.
   */
  function take(frame: number, state: number): number {
    next[state] = (next[state] + 1) % (state === KNOWN ? DATAGRAMS : WAITING);
    const place = next[state] + (state === KNOWN ? WAITING : 0);
    giveUp(place);
    inUse++;
    keys.set(key, place * KEY);
    spaces[place] = spaceOf(frame);
    states[place] = state;
    seconds[place] = context.seconds;
    return place;
  }

  function isKey(datagram: number): boolean {
    for (let i = 0; i < KEY; i++) if (keys[datagram * KEY + i] !== key[i]) return false;
    return true;
  }

  function giveUp(datagram: number): void {
    if (states[datagram] === FREE) return;
    states[datagram] = FREE;
    inUse--;
    for (let i = 0; i < WAITING; i++) {
      if (heldFor[i] !== datagram) continue;
      heldFor[i] = -1;
      frames.resume(held[i]);
      lost(held[i]);
    }
  }

  function known(frame: number): boolean {
    const datagram = find(frame);
    return datagram >= 0 && states[datagram] === KNOWN;
  }

  function later(frame: number): number {
    const there = find(frame);
    if (there >= 0 && states[there] === KNOWN) {
      translate(frame, there);
      return PASSED;
    }
    const datagram = there >= 0 ? there : take(frame, UNKNOWN);
    let mine = 0;
    let free = -1;
    for (let i = 0; i < WAITING; i++) {
      if (heldFor[i] === datagram) mine++;
      else if (heldFor[i] < 0 && free < 0) free = i;
    }
    const parked = free < 0 || mine >= WAITING_EACH ? NO_FRAME : frames.park(frame);
    if (parked === NO_FRAME) return REFUSED;
    held[free] = parked;
    heldFor[free] = datagram;
    return HELD;
  }

  function refuse(frame: number): void {
    const there = find(frame);
    if (there >= 0) giveUp(there);
  }

  function translate(frame: number, datagram: number): void {
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    family.replace(u16, ip, direction === IN, addresses, datagram * ADDRESS);
    if (direction === IN) domain[frame] = domains[datagram];
  }

  function first(frame: number, words: Int32Array, at: number, dom: number): readonly number[] {
    const there = find(frame);
    const datagram = there >= 0 && states[there] === KNOWN ? there : take(frame, KNOWN);
    // It may be another one under the same number.
    seconds[datagram] = context.seconds;
    for (let i = 0; i < ADDRESS; i++) addresses[datagram * ADDRESS + i] = words[at + i];
    domains[datagram] = dom;
    const released: number[] = [];
    for (let i = 0; i < WAITING && there >= 0; i++) {
      if (heldFor[i] !== there) continue;
      heldFor[i] = -1;
      frames.resume(held[i]);
      translate(held[i], datagram);
      released.push(held[i]);
    }
    if (there >= 0 && there !== datagram) giveUp(there);
    return released;
  }

  function expire(all = false): void {
    if (inUse === 0) return;
    for (let i = 0; i < PLACES; i++) if (all || context.seconds - seconds[i] > PATIENCE) giveUp(i);
  }

  return {
    later,
    first,
    known,
    refuse,
    expire,
  };
}
