/**
 * `resolver`: the link layer of an uplink: finds by ARP (RFC 826) the next hop of each IPv4 packet, writes its Ethernet
 * header, and answers for the uplink's own address.
 *
 * How frames wait and neighbours are confirmed: next-hops.ts; IPv6: resolver-v6.ts.
 *
 * Not handled: defending the address against another station that claims it more than by announcing it (RFC 5227,
 * 2.4): such claims are counted as conflicts.
 */
import { type Batch, type Consumer, type Context, Drops } from '../graph.js';
import { NO_FRAME } from '../memory/frames.js';
import { ARP_MAC, ARP_STATE, ARP_USED, type ArpCache, KNOWN, NO_ENTRY, setMac } from '../tables/arp-cache.js';
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
import { ANSWERED, createNextHops, FRAMES, HOP_COUNTERS, NO_SLOT } from './next-hops.js';

const REASONS = ['no-route', 'unresolved', 'queue-full', 'arp-malformed', 'arp-for-others'] as const;
const ARP_MALFORMED = REASONS.indexOf('arp-malformed');
const ARP_FOR_OTHERS = REASONS.indexOf('arp-for-others');

const ARP_FRAME = ETHERNET_HEADER + ARP_PACKET;

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
  const { base } = context.counters.claim(`resolver:${name}`, HOP_COUNTERS);
  const nextHops = createNextHops(context, {
    ...{ cache, drops, base, send, unreachable, announce },
    request: (at, unicast) => request(words[at], unicast ? at : NO_ENTRY),
    isGateway: (at) => words[at] === gateway,
  });

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
      const destination = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
      const hop = ((destination ^ subnet) & mask) === 0 ? destination : gateway;
      const at = cache.find(hop);
      if (at !== NO_ENTRY && words[at + ARP_STATE] === KNOWN) send(frame, at);
      else if (hop === 0) nextHops.noRoute(frame);
      else nextHops.wait(frame, at === NO_ENTRY ? cache.add(hop) : at);
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
    if (sender === address) nextHops.conflict();
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
    setMac(words, at, u16[from], u16[from + 1], u16[from + 2]);
    nextHops.heard(at);
  }

  function announce(): void {
    request(address, NO_ENTRY);
  }

  return { drops, process, arp, tick: nextHops.tick, announce };
}
