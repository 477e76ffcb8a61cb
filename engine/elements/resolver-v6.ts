/**
 * `resolver-v6`: the link layer of an uplink for IPv6: finds by Neighbour Discovery (RFC 4861) the next hop of each
 * packet, writes its Ethernet header, and answers for the uplink's own address, also to who probes it (RFC 4862, 5.4).
 *
 * How frames wait and neighbours are confirmed: next-hops.ts. That the group of our address is listened to is reported
 * at the start and once a minute, for switches that snoop Multicast Listener Discovery: a membership lasts for 260 s
 * (RFC 3810, 9.4), so their queries need not be answered.
 *
 * Not handled: a link-local address of our own, Router Advertisements and Redirects, which nobody asked for.
 */
import { type Batch, type Consumer, type Context, Drops } from '../graph.js';
import { NO_FRAME } from '../memory/frames.js';
import {
  ARP_CONFIRMED,
  ARP_MAC,
  ARP_STATE,
  ARP_USED,
  KNOWN,
  type NdCache,
  NO_ENTRY,
  setMac,
} from '../tables/arp-cache.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV6_LE } from '../wire/ethernet.js';
import { IPV6_DESTINATION, IPV6_SOURCE } from '../wire/ip.js';
import { inPrefix, isLinkLocal, sameAddress } from '../wire/ipv6.js';
import { MLD_REPORT, writeReport } from '../wire/mld.js';
import {
  BAD_OPTIONS,
  isNd,
  isUnspecified,
  LINK_LAYER_OPTION,
  linkLayerOption,
  ND_FLAGS,
  ND_TARGET,
  NEIGHBOUR_ADVERTISEMENT_LE,
  NO_OPTION,
  OVERRIDE_LE,
  SOLICITED_LE,
  TARGET_LINK_LAYER,
  writeAdvertisement,
  writeAllNodes,
  writeSolicitation,
  writeSolicitedNode,
} from '../wire/nd.js';
import { advertise, ND_FRAME, NO_SOLICITATION, solicitor } from './answer-nd.js';
import { ANSWERED, createNextHops, FRAMES, HOP_COUNTERS, NO_SLOT } from './next-hops.js';

const REASONS = ['no-route', 'unresolved', 'queue-full', 'nd-malformed', 'nd-for-others'] as const;
const ND_MALFORMED = REASONS.indexOf('nd-malformed');
const ND_FOR_OTHERS = REASONS.indexOf('nd-for-others');

/** Seconds between two reports of the group. */
const REPORT_INTERVAL = 60;

/** What an uplink is on its link; addresses and mask of eight words. */
export interface StationV6 {
  readonly address: Uint16Array;
  readonly mask: Uint16Array;
  /** Next hop of what is not on the link, which may be link-local; null when there is none. */
  readonly gateway: Uint16Array | null;
  /** Three words. */
  readonly mac: Uint16Array;
}

export interface ResolverV6Outputs {
  readonly port: Batch;
  /** Told of each packet whose next hop cannot be reached, before it is dropped. */
  readonly unreachable: (frame: number, route: boolean) => void;
}

export interface ResolverV6 extends Consumer {
  readonly drops: Drops;
  /** Takes a frame of the link with ICMPv6 of Neighbour Discovery. */
  nd(frame: number): void;
  /** Asks again, gives up, forgets. Called between breaths. */
  tick(): void;
  /** Tells the link of our address and MAC (RFC 4861, 7.2.6), and of the group by which we are asked for. */
  announce(): void;
}

export function createResolverV6(
  context: Context,
  name: string,
  station: StationV6,
  cache: NdCache,
  to: ResolverV6Outputs,
): ResolverV6 {
  const { frames } = context;
  const { u16, off, len, offload } = frames;
  const { words, addresses } = cache;
  const { values } = context.counters;
  const { address, mask, gateway, mac } = station;
  const { port, unreachable } = to;
  const drops = new Drops(context, `resolver-v6:${name}`, REASONS);
  const { base } = context.counters.claim(`resolver-v6:${name}`, HOP_COUNTERS);
  const nextHops = createNextHops(context, {
    ...{ cache, drops, base, send, request, announce: advertiseOurs, unreachable },
    isGateway: (at) => gateway !== null && sameAddress(addresses, at, gateway, 0),
  });
  /** The second of the last report, -1 before the first. */
  const reported = new Int32Array([-1]);

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      const destination = ((off[frame] + ETHERNET_HEADER) >>> 1) + IPV6_DESTINATION;
      if (inPrefix(u16, destination, address, mask, 0)) direct(frame, u16, destination);
      else if (gateway !== null) direct(frame, gateway, 0);
      else nextHops.noRoute(frame);
    }
    values[base + FRAMES] += count;
  }

  /** To the neighbour whose address is at `word`. */
  function direct(frame: number, of: Uint16Array, word: number): void {
    const at = cache.find(of, word);
    if (at === NO_ENTRY) nextHops.wait(frame, cache.add(of, word));
    else if (words[at + ARP_STATE] === KNOWN) send(frame, at);
    else nextHops.wait(frame, at);
  }

  function send(frame: number, at: number): void {
    const w = off[frame] >>> 1;
    u16[w] = words[at + ARP_MAC];
    u16[w + 1] = words[at + ARP_MAC] >>> 16;
    u16[w + 2] = words[at + ARP_MAC + 1];
    for (let i = 0; i < 3; i++) u16[w + 3 + i] = mac[i];
    u16[w + 6] = ETHERTYPE_IPV6_LE;
    words[at + ARP_USED] = context.seconds;
    port.push(frame);
  }

  /** 7.2.2: from our address, with our MAC; to the neighbour alone, or to the group of its address. */
  function request(at: number, unicast: boolean): void {
    const frame = message(addresses, at);
    if (frame === NO_FRAME) return;
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    if (unicast) {
      for (let i = 0; i < 8; i++) u16[ip + IPV6_DESTINATION + i] = addresses[at + i];
      u16[w] = words[at + ARP_MAC];
      u16[w + 1] = words[at + ARP_MAC] >>> 16;
      u16[w + 2] = words[at + ARP_MAC + 1];
    } else {
      writeSolicitedNode(u16, ip + IPV6_DESTINATION, ip + ND_TARGET);
      u16[w] = 0x3333;
      u16[w + 1] = u16[ip + IPV6_DESTINATION + 6];
      u16[w + 2] = u16[ip + IPV6_DESTINATION + 7];
    }
    writeSolicitation(u16, ip, w + 3);
    port.push(frame);
  }

  /** A frame from us about a target, but for destinations and message; NO_FRAME when no slot is free. */
  function message(target: Uint16Array, word: number): number {
    const frame = frames.allocSmall();
    if (frame === NO_FRAME) {
      values[base + NO_SLOT]++;
      return NO_FRAME;
    }
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    for (let i = 0; i < 3; i++) u16[w + 3 + i] = mac[i];
    u16[w + 6] = ETHERTYPE_IPV6_LE;
    for (let i = 0; i < 8; i++) {
      u16[ip + IPV6_SOURCE + i] = address[i];
      u16[ip + ND_TARGET + i] = target[word + i];
    }
    len[frame] = ND_FRAME + LINK_LAYER_OPTION;
    return frame;
  }

  function announce(): void {
    advertiseOurs();
    report();
  }

  /** Says that we listen to our group. */
  function report(): void {
    const frame = message(address, 0);
    if (frame === NO_FRAME) return;
    reported[0] = context.seconds;
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    // Behind the report, where the slot has room.
    const group = ip + MLD_REPORT / 2;
    writeSolicitedNode(u16, group, ip + ND_TARGET);
    writeReport(u16, ip, group);
    u16[w] = 0x3333;
    u16[w + 1] = 0;
    u16[w + 2] = 0x1600;
    len[frame] = ETHERNET_HEADER + MLD_REPORT;
    port.push(frame);
  }

  function tick(): void {
    nextHops.tick();
    if (reported[0] >= 0 && context.seconds - reported[0] >= REPORT_INTERVAL) report();
  }

  /** An advertisement to all nodes, which overrides what they have. */
  function advertiseOurs(): void {
    const frame = message(address, 0);
    if (frame === NO_FRAME) return;
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    writeAllNodes(u16, ip + IPV6_DESTINATION);
    u16[w] = 0x3333;
    u16[w + 1] = 0;
    u16[w + 2] = 0x0100;
    writeAdvertisement(u16, ip, OVERRIDE_LE, w + 3);
    port.push(frame);
  }

  function nd(frame: number): void {
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    const whole = offload[frame] === 0 && len[frame] >= ND_FRAME;
    if (whole && isNd(u16, ip, len[frame] - ETHERNET_HEADER, NEIGHBOUR_ADVERTISEMENT_LE)) {
      advertised(frame, ip);
      return;
    }
    const asker = whole ? solicitor(frames, frame) : NO_SOLICITATION;
    if (asker === NO_SOLICITATION || !honest(frame, asker)) {
      drops.drop(frame, ND_MALFORMED);
      return;
    }
    const ours = sameAddress(u16, ip + ND_TARGET, address, 0);
    if (isUnspecified(u16, ip + IPV6_SOURCE)) {
      // Somebody tries whether the address is free.
      if (ours) nextHops.conflict();
    } else if (sameAddress(u16, ip + IPV6_SOURCE, address, 0)) {
      nextHops.conflict();
      drops.drop(frame, ND_FOR_OTHERS);
      return;
    } else learn(ip + IPV6_SOURCE, asker, ours);
    if (!ours) {
      drops.drop(frame, ND_FOR_OTHERS);
      return;
    }
    advertise(frames, frame, mac[0], mac[1], mac[2], 0);
    values[base + ANSWERED]++;
    port.push(frame);
  }

  /** Who writes another MAC than it sends from, or a group's, is not believed. */
  function honest(frame: number, link: number): boolean {
    const w = off[frame] >>> 1;
    for (let i = 0; i < 3; i++) if (u16[w + 3 + i] !== u16[link + i]) return false;
    return (u16[link] & 1) === 0;
  }

  /** What a solicitation tells of its sender (7.2.3); one that asks for us becomes known. */
  function learn(sender: number, link: number, toUs: boolean): void {
    let at = cache.find(u16, sender);
    if (at === NO_ENTRY) {
      if (!toUs || isLinkLocal(u16, sender) || !inPrefix(u16, sender, address, mask, 0)) return;
      at = cache.add(u16, sender);
      words[at + ARP_USED] = context.seconds;
    }
    setMac(words, at, u16[link], u16[link + 1], u16[link + 2]);
    nextHops.heard(at);
  }

  /** 7.2.5, for neighbours whose MAC we ask for or know. */
  function advertised(frame: number, ip: number): void {
    const link = linkLayerOption(u16, ip, TARGET_LINK_LAYER);
    const flags = u16[ip + ND_FLAGS];
    const solicited = (flags & SOLICITED_LE) !== 0;
    const group = (u16[ip + IPV6_DESTINATION] & 0xff) === 0xff;
    const from = link === NO_OPTION ? (off[frame] >>> 1) + 3 : link;
    if (link === BAD_OPTIONS || (solicited && group) || !honest(frame, from)) {
      drops.drop(frame, ND_MALFORMED);
      return;
    }
    if (sameAddress(u16, ip + ND_TARGET, address, 0)) nextHops.conflict();
    const at = cache.find(u16, ip + ND_TARGET);
    if (at !== NO_ENTRY) confirm(at, from, solicited, (flags & OVERRIDE_LE) !== 0);
    drops.drop(frame, ND_FOR_OTHERS);
  }

  function confirm(at: number, from: number, solicited: boolean, override: boolean): void {
    const known = words[at + ARP_STATE] === KNOWN;
    const first = u16[from] | (u16[from + 1] << 16);
    const same = words[at + ARP_MAC] === first && words[at + ARP_MAC + 1] === u16[from + 2];
    if (known && !same && !override) return;
    setMac(words, at, u16[from], u16[from + 1], u16[from + 2]);
    if (solicited || !known) nextHops.heard(at);
    // Nobody has said that it hears us there: it is asked with the next packet.
    if (!solicited && !same) words[at + ARP_CONFIRMED] = 0;
  }

  return { drops, process, nd, tick, announce };
}
