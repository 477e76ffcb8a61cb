/**
 * `neighbour`: answers ARP (RFC 826) and Neighbour Solicitations (RFC 4861, 7.2) in the name of endpoints that are
 * known, so that they need not be flooded; and counts who claims an address that belongs to someone else.
 *
 * Per broadcast or multicast frame, of which the bridge has already learned:
 *   1. frames with offload, tagged ones, and whatever is no well-formed ARP or ND: flooded;
 *   2. a claim of an address (sender of ARP; source of a solicitation, target of an advertisement) that
 *      contradicts the table is a `conflict` (RFC 5227, 2.4) and is flooded, so that the owner can defend it;
 *   3. a request from a local port for a known address that is not the asker's own becomes the answer, in place,
 *      and goes back to that port. A probe for someone else's address (RFC 5227, 2.1.1; RFC 4862, 5.4) is answered
 *      too, which is how the prober sees the conflict, and is counted as one;
 *   4. everything else is flooded: a bridge does not police.
 *
 * Not handled: routers but our own gateways – the R flag is set for those alone, so the address of one that sends
 * advertisements of its own must not be in the table; unicast requests, which the bridge forwards to the station itself.
 */
import type { Batch, Consumer, Context } from '../graph.js';
import { REMOTE } from '../memory/frames.js';
import { MAPPED_IPV4, type Neighbours, NO_NEIGHBOUR } from '../tables/neighbours.js';
import {
  ARP_OPERATION,
  ARP_PACKET,
  ARP_REPLY_LE,
  ARP_REQUEST_LE,
  ARP_SENDER_IP,
  ARP_SENDER_MAC,
  ARP_TARGET_IP,
  ARP_TARGET_MAC,
  isArpIpv4,
  pair,
} from '../wire/arp.js';
import { ETHERNET_HEADER, ETHERTYPE_ARP_LE, ETHERTYPE_IPV6_LE } from '../wire/ethernet.js';
import { IPV6_SOURCE } from '../wire/ip.js';
import {
  BAD_OPTIONS,
  isNd,
  isUnspecified,
  linkLayerOption,
  ND_FLAGS,
  ND_TARGET,
  NEIGHBOUR_ADVERTISEMENT_LE,
  NO_OPTION,
  ROUTER_LE,
  SOLICITED_LE,
  TARGET_LINK_LAYER,
} from '../wire/nd.js';
import { advertise, ND_FRAME, NO_SOLICITATION, solicitor } from './answer-nd.js';

const COUNTERS = ['arp-answered', 'nd-answered', 'conflict', 'flooded'] as const;
const [ARP_ANSWERED, ND_ANSWERED, CONFLICT, FLOODED] = COUNTERS.keys();

const ARP_FRAME = ETHERNET_HEADER + ARP_PACKET;

/** The address is unknown, is held by the MAC that names it, or by another one. */
const UNKNOWN = 0;
const SAME = 1;
const OTHER = 2;

export interface NeighbourOutputs {
  /** Sending side of each local port, by port number; answers go to the port the request came from. */
  readonly ports: readonly (Batch | null)[];
  /** The bridge's `flood`: takes the frame. */
  readonly flood: (frame: number) => void;
}

export function createNeighbour(context: Context, table: Neighbours, out: NeighbourOutputs): Consumer {
  const { frames } = context;
  const { off, len, domain, ingress, offload, u16 } = frames;
  const { values } = context.counters;
  const { ports, flood } = out;
  const { base } = context.counters.claim('neighbour', COUNTERS);

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      if (offload[frame] === 0 && len[frame] >= ARP_FRAME) {
        const word = off[frame] >>> 1;
        const type = u16[word + 6];
        if (type === ETHERTYPE_ARP_LE) {
          if (arp(frame, word)) continue;
        } else if (type === ETHERTYPE_IPV6_LE && len[frame] >= ND_FRAME) {
          if (nd(frame, word)) continue;
        }
      }
      values[base + FLOODED]++;
      flood(frame);
    }
  }

  /** True when the frame was answered and is gone. */
  function arp(frame: number, word: number): boolean {
    const at = word + ETHERNET_HEADER / 2;
    if (!isArpIpv4(u16, at)) return false;
    const operation = u16[at + ARP_OPERATION];
    if (operation !== ARP_REQUEST_LE && operation !== ARP_REPLY_LE) return false;
    const dom = domain[frame];
    const sender = pair(u16, at + ARP_SENDER_IP);
    const target = pair(u16, at + ARP_TARGET_IP);
    if (sender !== 0 && compare(lookup4(dom, sender), at + ARP_SENDER_MAC) === OTHER) {
      values[base + CONFLICT]++;
      return false;
    }
    // An announcement asks nobody (RFC 5227, 1.1); who writes another MAC than it sends from is not answered.
    if (operation === ARP_REPLY_LE || sender === target || !sameMac(at + ARP_SENDER_MAC, word + 3))
      return false;
    const known = lookup4(dom, target);
    const port = localPort(frame);
    if (port === null || compare(known, at + ARP_SENDER_MAC) !== OTHER) return false;
    if (sender === 0) values[base + CONFLICT]++;
    copyWords(at + ARP_SENDER_MAC, at + ARP_TARGET_MAC, 5); // MAC and address
    for (let i = 0; i < 3; i++) u16[at + ARP_SENDER_MAC + i] = table.macWord(known, i);
    u16[at + ARP_SENDER_IP] = target;
    u16[at + ARP_SENDER_IP + 1] = target >>> 16;
    u16[at + ARP_OPERATION] = ARP_REPLY_LE;
    copyWords(word + 3, word, 3);
    copyWords(at + ARP_SENDER_MAC, word + 3, 3);
    len[frame] = ARP_FRAME;
    values[base + ARP_ANSWERED]++;
    port.push(frame);
    return true;
  }

  /** True when the frame was answered and is gone. */
  function nd(frame: number, word: number): boolean {
    const ip = word + ETHERNET_HEADER / 2;
    const left = len[frame] - ETHERNET_HEADER;
    if (isNd(u16, ip, left, NEIGHBOUR_ADVERTISEMENT_LE)) return advertisement(frame, ip);
    const asker = solicitor(frames, frame);
    if (asker === NO_SOLICITATION) return false;
    const probe = isUnspecified(u16, ip + IPV6_SOURCE);
    const dom = domain[frame];
    if (!probe && compare(lookup6(dom, ip + IPV6_SOURCE), asker) === OTHER) {
      values[base + CONFLICT]++;
      return false;
    }
    if (!sameMac(asker, word + 3)) return false;
    const known = lookup6(dom, ip + ND_TARGET);
    const port = localPort(frame);
    if (port === null || compare(known, asker) !== OTHER) return false;
    if (probe) values[base + CONFLICT]++;
    advertise(
      frames,
      frame,
      table.macWord(known, 0),
      table.macWord(known, 1),
      table.macWord(known, 2),
      table.isRouter(known) ? ROUTER_LE : 0,
    );
    values[base + ND_ANSWERED]++;
    port.push(frame);
    return true;
  }

  /** Group advertisements are unsolicited (7.1.2): claims of an address. Never answered. */
  function advertisement(frame: number, ip: number): false {
    if ((u16[ip + ND_FLAGS] & SOLICITED_LE) !== 0) return false;
    const link = linkLayerOption(u16, ip, TARGET_LINK_LAYER);
    if (link === NO_OPTION || link === BAD_OPTIONS) return false;
    if (compare(lookup6(domain[frame], ip + ND_TARGET), link) === OTHER) values[base + CONFLICT]++;
    return false;
  }

  function localPort(frame: number): Batch | null {
    const from = ingress[frame];
    return from < REMOTE ? (ports[from] ?? null) : null;
  }

  function lookup4(dom: number, address: number): number {
    return table.lookup(dom, 0, 0, MAPPED_IPV4, address);
  }

  function lookup6(dom: number, word: number): number {
    return table.lookup(dom, pair(u16, word), pair(u16, word + 2), pair(u16, word + 4), pair(u16, word + 6));
  }

  function compare(known: number, mac: number): number {
    if (known === NO_NEIGHBOUR) return UNKNOWN;
    for (let i = 0; i < 3; i++) if (u16[mac + i] !== table.macWord(known, i)) return OTHER;
    return SAME;
  }

  function sameMac(one: number, other: number): boolean {
    for (let i = 0; i < 3; i++) if (u16[one + i] !== u16[other + i]) return false;
    return true;
  }

  function copyWords(from: number, to: number, count: number): void {
    for (let i = 0; i < count; i++) u16[to + i] = u16[from + i];
  }

  return { process };
}
