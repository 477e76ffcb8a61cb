/**
 * Fragments through a NAT, in order and out of order (RFC 4787, REQ-14): only the first of a datagram has ports, so
 * what it becomes is remembered for the others, and others that come before it wait for it.
 *
 * Everything is bounded (REQ-14a): datagrams remembered, fragments waiting, fragments of one datagram, seconds. Of
 * TCP, UDP and ICMP the checksum lies in the first fragment and covers the whole, so the others change in address
 * alone. Not handled: overlaps, which are the receiver's to judge.
 */
import type { Context } from '../../graph.js';
import { IN } from '../../tables/flows.js';
import { ETHERNET_HEADER } from '../../wire/ethernet.js';
import { IPV4_DESTINATION, IPV4_SOURCE, IPV4_TTL_PROTOCOL } from '../../wire/ip.js';
import { replaceAddress } from './packet.js';

/** Datagrams remembered at a time. */
const DATAGRAMS = 256;
/** Fragments that wait, in all and of one datagram. */
const WAITING = 128;
const WAITING_EACH = 16;
/** Seconds. A sender's fragments follow each other at once. */
const PATIENCE = 5;

/** What became of a fragment that is not the first. */
export const PASSED = 0;
export const HELD = 1;
export const REFUSED = 2;

export interface Fragments {
  /**
   * Takes a fragment that has no ports: translates it when its first one went by, holds it, or refuses it.
   */
  later(frame: number, direction: number): number;
  /**
   * Remembers what the first fragment became.
   * @param ip its IP header's first word, before translation.
   * @param release called with each fragment that waited, translated.
   */
  first(
    frame: number,
    direction: number,
    address: number,
    inside: number,
    release: (frame: number) => void,
  ): void;
  /** Gives up what waited too long. */
  expire(): void;
}

/** @param lost takes a fragment that waited in vain. */
export function createFragments(context: Context, lost: (frame: number) => void): Fragments {
  const { u16, off, domain } = context.frames;
  const sources = new Int32Array(DATAGRAMS);
  const destinations = new Int32Array(DATAGRAMS);
  const ids = new Int32Array(DATAGRAMS);
  /** 0 free, 1 waits for its first fragment, 2 knows it. */
  const states = new Uint8Array(DATAGRAMS);
  const addresses = new Int32Array(DATAGRAMS);
  const insides = new Int32Array(DATAGRAMS);
  const seconds = new Int32Array(DATAGRAMS);
  const held = new Uint32Array(WAITING);
  const heldFor = new Int16Array(WAITING).fill(-1);
  let next = 0;

  /** Place of the datagram that a fragment belongs to. */
  function identity(frame: number, direction: number): number {
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    const source = u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16);
    const destination = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    const space = direction === IN ? 0 : domain[frame] + 1;
    const id = u16[ip + 2] | ((u16[ip + IPV4_TTL_PROTOCOL] >>> 8) << 16);
    for (let i = 0; i < DATAGRAMS; i++) {
      if (states[i] !== 0 && ids[i] === id && sources[i] === source && destinations[i] === destination) {
        if (insides[i] === space || direction === IN) return i;
      }
    }
    return enter(source, destination, id, space);
  }

  /** A place for a new datagram: the oldest one's, whose fragments, if any wait, are given up. */
  function enter(source: number, destination: number, id: number, space: number): number {
    next = (next + 1) % DATAGRAMS;
    giveUp(next);
    sources[next] = source;
    destinations[next] = destination;
    ids[next] = id;
    insides[next] = space;
    states[next] = 1;
    seconds[next] = context.seconds;
    return next;
  }

  function giveUp(datagram: number): void {
    for (let i = 0; i < WAITING; i++) {
      if (heldFor[i] !== datagram) continue;
      heldFor[i] = -1;
      lost(held[i]);
    }
    states[datagram] = 0;
  }

  function later(frame: number, direction: number): number {
    const datagram = identity(frame, direction);
    if (states[datagram] === 2) {
      translate(frame, direction, datagram);
      return PASSED;
    }
    let mine = 0;
    let place = -1;
    for (let i = 0; i < WAITING; i++) {
      if (heldFor[i] === datagram) mine++;
      else if (heldFor[i] < 0) place = i;
    }
    if (place < 0 || mine >= WAITING_EACH) return REFUSED;
    held[place] = frame;
    heldFor[place] = datagram;
    return HELD;
  }

  function translate(frame: number, direction: number, datagram: number): void {
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    replaceAddress(u16, ip, direction === IN ? IPV4_DESTINATION : IPV4_SOURCE, addresses[datagram]);
    if (direction === IN) domain[frame] = insides[datagram];
  }

  function first(
    frame: number,
    direction: number,
    address: number,
    inside: number,
    release: (frame: number) => void,
  ): void {
    const datagram = identity(frame, direction);
    states[datagram] = 2;
    addresses[datagram] = address;
    if (direction === IN) insides[datagram] = inside;
    for (let i = 0; i < WAITING; i++) {
      if (heldFor[i] !== datagram) continue;
      heldFor[i] = -1;
      translate(held[i], direction, datagram);
      release(held[i]);
    }
  }

  function expire(): void {
    for (let i = 0; i < DATAGRAMS; i++)
      if (states[i] !== 0 && context.seconds - seconds[i] > PATIENCE) giveUp(i);
  }

  return { later, first, expire };
}
