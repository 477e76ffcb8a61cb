/**
 * Fragments of one direction through a NAT, in order and out of order (RFC 4787, REQ-14): only the first of a datagram
 * has ports, so what it becomes is remembered for the others, and others that come before it wait for it.
 *
 * Everything is bounded (REQ-14a): datagrams remembered, fragments waiting, fragments of one datagram, seconds. Of
 * TCP, UDP and ICMP the checksum lies in the first fragment and covers the whole, so the others change in address
 * alone. Not handled: overlaps, which are the receiver's to judge.
 */
import type { Context } from '../../graph.js';
import { IN } from '../../tables/flows.js';
import { ETHERNET_HEADER } from '../../wire/ethernet.js';
import { IPV4_DESTINATION, IPV4_ID, IPV4_SOURCE, IPV4_TTL_PROTOCOL } from '../../wire/ip.js';
import { replaceAddress } from './packet.js';

/** Datagrams remembered at a time. */
const DATAGRAMS = 256;
/** Fragments that wait, in all and of one datagram. */
const WAITING = 128;
const WAITING_EACH = 16;
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

/** What a first fragment becomes. */
interface Translated {
  readonly address: number;
  /** Of the frame, when it goes inside. */
  readonly domain: number;
}

export interface Fragments {
  /** Takes a fragment that has no ports: translates it when its first one went by, holds it, or refuses it. */
  later(frame: number): number;
  /**
   * Remembers what a first fragment becomes, before it is translated.
   * @returns those that waited for it, translated.
   */
  first(frame: number, translated: Translated): readonly number[];
  /** Gives up what waits for a first fragment that was refused. */
  refuse(frame: number): void;
  /** Gives up what waited too long, or all. */
  expire(all?: boolean): void;
}

/** @param lost takes a fragment that waited in vain. */
export function createFragments(
  context: Context,
  direction: number,
  lost: (frame: number) => void,
): Fragments {
  const { u16, off, domain } = context.frames;
  const sources = new Int32Array(DATAGRAMS);
  const destinations = new Int32Array(DATAGRAMS);
  /** Identification and protocol; and domain + 1 from inside, 0 from outside. */
  const ids = new Int32Array(DATAGRAMS);
  const spaces = new Int32Array(DATAGRAMS);
  const states = new Uint8Array(DATAGRAMS);
  const addresses = new Int32Array(DATAGRAMS);
  const domains = new Uint16Array(DATAGRAMS);
  const seconds = new Int32Array(DATAGRAMS);
  const held = new Uint32Array(WAITING);
  const heldFor = new Int16Array(WAITING).fill(-1);
  let next = 0;
  let inUse = 0;

  /** Place of the datagram that a fragment belongs to. */
  function place(frame: number): number {
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    const source = u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16);
    const destination = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    const space = direction === IN ? 0 : domain[frame] + 1;
    const id = u16[ip + IPV4_ID] | ((u16[ip + IPV4_TTL_PROTOCOL] >>> 8) << 16);
    for (let i = 0; i < DATAGRAMS; i++) {
      if (ids[i] === id && sources[i] === source && destinations[i] === destination)
        if (states[i] !== FREE && spaces[i] === space) return i;
    }
    // The oldest one's, whose fragments, if any wait, are given up.
    next = (next + 1) % DATAGRAMS;
    giveUp(next);
    inUse++;
    sources[next] = source;
    destinations[next] = destination;
    ids[next] = id;
    spaces[next] = space;
    states[next] = UNKNOWN;
    seconds[next] = context.seconds;
    return next;
  }

  function giveUp(datagram: number): void {
    if (states[datagram] === FREE) return;
    states[datagram] = FREE;
    inUse--;
    for (let i = 0; i < WAITING; i++) {
      if (heldFor[i] !== datagram) continue;
      heldFor[i] = -1;
      lost(held[i]);
    }
  }

  function later(frame: number): number {
    const datagram = place(frame);
    if (states[datagram] === KNOWN) {
      translate(frame, datagram);
      return PASSED;
    }
    let mine = 0;
    let free = -1;
    for (let i = 0; i < WAITING; i++) {
      if (heldFor[i] === datagram) mine++;
      else if (heldFor[i] < 0 && free < 0) free = i;
    }
    if (free < 0 || mine >= WAITING_EACH) return REFUSED;
    held[free] = frame;
    heldFor[free] = datagram;
    return HELD;
  }

  function translate(frame: number, datagram: number): void {
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    replaceAddress(u16, ip, direction === IN ? IPV4_DESTINATION : IPV4_SOURCE, addresses[datagram]);
    if (direction === IN) domain[frame] = domains[datagram];
  }

  function first(frame: number, translated: Translated): readonly number[] {
    const datagram = place(frame);
    states[datagram] = KNOWN;
    addresses[datagram] = translated.address;
    domains[datagram] = translated.domain;
    const released: number[] = [];
    for (let i = 0; i < WAITING; i++) {
      if (heldFor[i] !== datagram) continue;
      heldFor[i] = -1;
      translate(held[i], datagram);
      released.push(held[i]);
    }
    return released;
  }

  function expire(all = false): void {
    if (inUse === 0) return;
    for (let i = 0; i < DATAGRAMS; i++) if (all || context.seconds - seconds[i] > PATIENCE) giveUp(i);
  }

  return { later, first, refuse: (frame) => giveUp(place(frame)), expire };
}
