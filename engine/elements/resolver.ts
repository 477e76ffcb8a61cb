/**
 * `resolver`: the link layer of an uplink: finds by ARP (RFC 826) the next hop of each IPv4 packet, writes its Ethernet
 * header, and answers for the uplink's own address.
 *
 * What waits for an answer is bounded, by next hop and in all (RFC 1122, 2.3.2.2); after three questions without one it
 * is dropped, and its sender hears that the host is unreachable. A neighbour in use is asked again after half a minute,
 * by unicast and then by broadcast, and forgotten when it does not answer (2.3.2.1).
 *
 * Not handled: defending the address against another station that claims it more than by announcing it (RFC 5227,
 * 2.4): such claims are counted as conflicts.
 */
import { type Batch, type Consumer, type Context, Drops } from '../graph.js';
import { NO_FRAME } from '../memory/frames.js';
import {
  ARP_ASKED,
  ARP_CONFIRMED,
  ARP_MAC,
  ARP_STATE,
  ARP_TRIES,
  ARP_USED,
  ARP_WORDS,
  type ArpCache,
  ASKING,
  KNOWN,
  NO_ENTRY,
} from '../tables/arp-cache.js';
import {
  ARP_OPERATION,
  ARP_PACKET,
  ARP_REQUEST_LE,
  ARP_SENDER_IP,
  ARP_SENDER_MAC,
  ARP_TARGET_IP,
  ARP_TARGET_MAC,
  isArpIpv4,
  pair,
} from '../wire/arp.js';
import { ETHERNET_HEADER, ETHERTYPE_ARP_LE, ETHERTYPE_IPV4_LE } from '../wire/ethernet.js';
import { IPV4_DESTINATION } from '../wire/ip.js';
import { answerArp } from './answer-arp.js';

const REASONS = ['no-route', 'unresolved', 'queue-full', 'arp-malformed', 'arp-for-others'] as const;
const [NO_ROUTE, UNRESOLVED, QUEUE_FULL, ARP_MALFORMED, ARP_FOR_OTHERS] = REASONS.keys();
const COUNTERS = ['frames', 'asked', 'answered', 'resolved', 'failed', 'conflict', 'no-slot'] as const;
const [FRAMES, ASKED, ANSWERED, RESOLVED, FAILED, CONFLICT, NO_SLOT] = COUNTERS.keys();

const ARP_FRAME = ETHERNET_HEADER + ARP_PACKET;
/** Frames that wait, in all and for one next hop. */
const MOST_WAITING = 256;
const MOST_FOR_ONE = 64;
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

/** What an uplink is on its link; addresses as signed little-endian words. */
export interface Station {
  readonly address: number;
  readonly subnet: number;
  readonly mask: number;
  /** Next hop of what is not on the link, 0 when there is none. */
  readonly gateway: number;
  /** Three words. */
  readonly mac: Uint16Array;
}

export interface ResolverOutputs {
  readonly port: Batch;
  /** Told of each packet whose next hop cannot be reached, before it is dropped. */
  readonly unreachable: (frame: number, route: boolean) => void;
}

export interface Resolver extends Consumer {
  readonly drops: Drops;
  /** Takes an ARP frame of the link. */
  arp(frame: number): void;
  /** Asks again, gives up, forgets. Called between breaths. */
  tick(): void;
  /** Tells the link of our address and MAC (RFC 5227, 2.3). */
  announce(): void;
}

export function createResolver(
  context: Context,
  name: string,
  station: Station,
  cache: ArpCache,
  to: ResolverOutputs,
): Resolver {
  const { frames } = context;
  const { u16, off, len } = frames;
  const { words } = cache;
  const { values } = context.counters;
  const { address, subnet, mask, gateway, mac } = station;
  const { port, unreachable } = to;
  const drops = new Drops(context, `resolver:${name}`, REASONS);
  const { base } = context.counters.claim(`resolver:${name}`, COUNTERS);
  const waiting = new Int32Array(MOST_WAITING);
  const hops = new Int32Array(MOST_WAITING);
  /** How many wait; the second of the last look at the cache; the second of the last defence. */
  const state = new Int32Array(3);

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
      const destination = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
      const hop = ((destination ^ subnet) & mask) === 0 ? destination : gateway;
      const at = cache.find(hop);
      if (at !== NO_ENTRY && words[at + ARP_STATE] === KNOWN) send(frame, at);
      else wait(frame, hop, at);
    }
    values[base + FRAMES] += count;
  }

  function send(frame: number, at: number): void {
    const w = off[frame] >>> 1;
    u16[w] = words[at + ARP_MAC];
    u16[w + 1] = words[at + ARP_MAC] >>> 16;
    u16[w + 2] = words[at + ARP_MAC + 1];
    for (let i = 0; i < 3; i++) u16[w + 3 + i] = mac[i];
    u16[w + 6] = ETHERTYPE_IPV4_LE;
    words[at + ARP_USED] = context.seconds;
    port.push(frame);
  }

  function wait(frame: number, hop: number, known: number): void {
    if (hop === 0) {
      unreachable(frame, true);
      drops.drop(frame, NO_ROUTE);
      return;
    }
    let same = 0;
    for (let i = 0; i < state[0]; i++) if (hops[i] === hop) same++;
    if (state[0] === MOST_WAITING || same === MOST_FOR_ONE) {
      drops.drop(frame, QUEUE_FULL);
      return;
    }
    waiting[state[0]] = frame;
    hops[state[0]++] = hop;
    if (known !== NO_ENTRY) return;
    const at = cache.add(hop);
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
        hops[kept++] = hops[i];
      } else if (at !== NO_ENTRY) send(waiting[i], at);
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
    request(words[at], words[at + ARP_STATE] === KNOWN && tries <= UNICAST_TRIES ? at : NO_ENTRY);
    values[base + ASKED]++;
  }

  /** @param known entry whose MAC is asked, or NO_ENTRY to ask everybody. */
  function request(target: number, known: number): void {
    const frame = frames.allocSmall();
    if (frame === NO_FRAME) {
      values[base + NO_SLOT]++;
      return;
    }
    const w = off[frame] >>> 1;
    const at = w + ETHERNET_HEADER / 2;
    u16[w] = known === NO_ENTRY ? 0xffff : words[known + ARP_MAC];
    u16[w + 1] = known === NO_ENTRY ? 0xffff : words[known + ARP_MAC] >>> 16;
    u16[w + 2] = known === NO_ENTRY ? 0xffff : words[known + ARP_MAC + 1];
    u16[w + 6] = ETHERTYPE_ARP_LE;
    // Ethernet, IPv4, address lengths 6 and 4.
    u16[at] = 0x0100;
    u16[at + 1] = 0x0008;
    u16[at + 2] = 0x0406;
    u16[at + ARP_OPERATION] = ARP_REQUEST_LE;
    for (let i = 0; i < 3; i++) {
      u16[w + 3 + i] = mac[i];
      u16[at + ARP_SENDER_MAC + i] = mac[i];
      u16[at + ARP_TARGET_MAC + i] = 0;
    }
    u16[at + ARP_SENDER_IP] = address;
    u16[at + ARP_SENDER_IP + 1] = address >>> 16;
    u16[at + ARP_TARGET_IP] = target;
    u16[at + ARP_TARGET_IP + 1] = target >>> 16;
    len[frame] = ARP_FRAME;
    port.push(frame);
  }

  function arp(frame: number): void {
    const w = off[frame] >>> 1;
    const at = w + ETHERNET_HEADER / 2;
    // Who writes another MAC than it sends from, or a group's, is not believed.
    if (len[frame] < ARP_FRAME || !isArpIpv4(u16, at) || !honest(w, at + ARP_SENDER_MAC)) {
      drops.drop(frame, ARP_MALFORMED);
      return;
    }
    const sender = pair(u16, at + ARP_SENDER_IP);
    const target = pair(u16, at + ARP_TARGET_IP);
    if (sender === address) conflict();
    else if (sender !== 0 && ((sender ^ subnet) & mask) === 0) {
      learn(sender, at + ARP_SENDER_MAC, target === address);
    }
    if (sender !== address && answerArp(frames, frame, address, mac, 0)) {
      values[base + ANSWERED]++;
      port.push(frame);
    } else drops.drop(frame, ARP_FOR_OTHERS);
  }

  function honest(w: number, sender: number): boolean {
    for (let i = 0; i < 3; i++) if (u16[w + 3 + i] !== u16[sender + i]) return false;
    return (u16[sender] & 1) === 0;
  }

  /** What is known of a neighbour is brought up to date; one that speaks to us becomes known (RFC 826). */
  function learn(sender: number, from: number, toUs: boolean): void {
    let at = cache.find(sender);
    if (at === NO_ENTRY) {
      if (!toUs) return;
      at = cache.add(sender);
      words[at + ARP_USED] = context.seconds;
    }
    cache.setMac(at, u16[from], u16[from + 1], u16[from + 2]);
    const asked = words[at + ARP_STATE] === ASKING;
    words[at + ARP_STATE] = KNOWN;
    words[at + ARP_CONFIRMED] = context.seconds;
    words[at + ARP_TRIES] = 0;
    if (!asked) return;
    values[base + RESOLVED]++;
    settle(sender, at);
  }

  function conflict(): void {
    values[base + CONFLICT]++;
    if (state[2] !== 0 && context.seconds - state[2] < DEFEND_INTERVAL) return;
    state[2] = context.seconds;
    announce();
  }

  function announce(): void {
    request(address, NO_ENTRY);
  }

  function tick(): void {
    const now = context.seconds;
    if (state[1] === now) return;
    state[1] = now;
    for (let at = 0; at < words.length; at += ARP_WORDS) if (words[at] !== 0) look(at, now);
    // Of a next hop whose entry had to make room for another.
    for (let i = state[0] - 1; i >= 0; i--) {
      if (i < state[0] && cache.find(hops[i]) === NO_ENTRY) settle(hops[i], NO_ENTRY);
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

  return { drops, process, arp, tick, announce };
}
