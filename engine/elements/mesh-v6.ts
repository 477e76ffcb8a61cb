/**
 * The routing mesh over IPv6: what mesh.ts does where it looks into packets, for those of IPv6; the ingress network
 * carries both. Flows are in the same table, addresses there by their numbers (see Addresses6).
 *
 * Not handled: fragments but the first from a backend, which go out as its own.
 */
import type { Context } from '../graph.js';
import { FLOOD_VTEPS } from '../memory/frames.js';
import { type Addresses6, NO_ADDRESS } from '../tables/addresses6.js';
import {
  FLOW_SHIFT,
  type Flows,
  flowKeyHash,
  IN,
  IN_DOMAIN,
  INSIDE,
  IPV6_FLOW,
  MESH_OWNER,
  NEXT_OF_PORT,
  NO_FLOW,
  OWNER_SHIFT,
  REMOTE_END,
} from '../tables/flows.js';
import type { Gateways } from '../tables/gateways.js';
import type { Neighbours } from '../tables/neighbours.js';
import { pair as pairAt } from '../wire/arp.js';
import { ETHERNET_HEADER, swap16 } from '../wire/ethernet.js';
import { ICMP_HEADER } from '../wire/icmp.js';
import { isErrorV6 } from '../wire/icmpv6.js';
import {
  IPV6_DESTINATION,
  IPV6_HEADER,
  IPV6_LENGTH,
  IPV6_SOURCE,
  PROTOCOL_ICMPV6,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  UDP_HEADER,
} from '../wire/ip.js';
import { LATER_FRAGMENT_V6, upperLayer } from '../wire/ipv6.js';
import { TCP_FLAGS, TCP_HEADER } from '../wire/tcp.js';
import { createResetsV6 } from './balancer/resets-v6.js';
import type { Tracks } from './mesh.js';
import { TRANSLATED } from './nat/errors.js';
import { createErrorTranslatorV6 } from './nat/errors-v6.js';

export interface MeshV6 {
  /** The neighbour that a packet is for, as `Neighbours.lookup`. @param ip first word of its header; likewise below. */
  neighbourOf(dom: number, ip: number): number;
  /** Finds or makes the flow of a sound packet of `total` bytes to a backend. @returns a reason, or -1. */
  track(frame: number, ip: number, total: number, from: number): number;
  /** As of `Mesh`; undefined when there is none. */
  entryOf(frame: number, ip: number, total: number): number | undefined;
  /** Turns a TCP segment right behind its header into its reset, as `Resets`. */
  answer(frame: number, ip: number): boolean;
  /** Whether a packet of a backend answers somebody who came in here. */
  isKnown(frame: number, ip: number, total: number): boolean;
}

export interface MeshV6Options {
  readonly flows: Flows;
  readonly addresses: Addresses6;
  readonly gateways: Gateways;
  readonly neighbours: Neighbours;
  /** What becomes of flows, whatever their family. */
  readonly tracks: Tracks;
}

export function createMeshV6(context: Context, options: MeshV6Options): MeshV6 {
  const { u16, domain } = context.frames;
  const { flows, addresses, gateways, neighbours, tracks } = options;
  const { words, seed, find } = flows;
  const ownerKey = (MESH_OWNER << OWNER_SHIFT) | IN_DOMAIN | IPV6_FLOW;
  const resets = createResetsV6(context, addresses);
  const translator = createErrorTranslatorV6(context, { flows, ownerKey }, addresses);

  function neighbourOf(dom: number, ip: number): number {
    const at = ip + IPV6_DESTINATION;
    return neighbours.lookup(
      dom,
      pairAt(u16, at),
      pairAt(u16, at + 2),
      pairAt(u16, at + 4),
      pairAt(u16, at + 6),
    );
  }

  function hasRoom(upper: number, total: number): boolean {
    const protocol = (upper >>> 16) & 0xff;
    if (protocol !== PROTOCOL_TCP && protocol !== PROTOCOL_UDP) return false;
    return total - (upper & 0xffff) >= (protocol === PROTOCOL_TCP ? TCP_HEADER : UDP_HEADER);
  }

  function keyOf(frame: number, upper: number, owner: number): number {
    return ((upper >>> 16) & 0xff) | owner | ((domain[frame] + 1) << 16);
  }

  function track(frame: number, ip: number, total: number, from: number): number {
    const upper = upperLayer(u16, ip, total);
    const t = ip + ((upper & 0xffff) >>> 1);
    if (upper < 0) return tracks.notServed;
    // The first one made the flow, and the node before this one has put them in order.
    if ((upper & LATER_FRAGMENT_V6) !== 0) return -1;
    if (((upper >>> 16) & 0xff) === PROTOCOL_ICMPV6)
      return error(frame, t, upper, total) ? -1 : tracks.notServed;
    if (!hasRoom(upper, total)) return tracks.notServed;
    const pair = u16[t + 1] | (u16[t] << 16);
    const key = keyOf(frame, upper, ownerKey);
    const flags = (key & 0xff) === PROTOCOL_TCP ? u16[t + TCP_FLAGS] : 0;
    const flow = flowOf(ip + IPV6_DESTINATION, ip + IPV6_SOURCE, pair, key);
    return flow === NO_FLOW
      ? make(ip, pair, key, flags, from)
      : tracks.inward(flow << FLOW_SHIFT, key & 0xff, flags, from);
  }

  function error(frame: number, t: number, upper: number, total: number): boolean {
    const at = upper & 0xffff;
    if (total - at < ICMP_HEADER || !isErrorV6(u16[t] & 0xff)) return false;
    return translator.translate(frame, IN, ETHERNET_HEADER + at) === TRANSLATED;
  }

  /** @param own word of the address on the backend's side, and `theirs` that of the client's. */
  function flowOf(own: number, theirs: number, pair: number, key: number): number {
    const inside = addresses.find(u16, own);
    const remote = addresses.find(u16, theirs);
    if (inside === NO_ADDRESS || remote === NO_ADDRESS) return NO_FLOW;
    return find(flowKeyHash(seed, inside, remote, pair, key), inside, remote, pair, key) >>> 1;
  }

  /** Makes a flow, which holds its addresses. */
  function make(ip: number, pair: number, key: number, flags: number, from: number): number {
    const own = addresses.hold(u16, ip + IPV6_DESTINATION);
    if (own === NO_ADDRESS) return tracks.tableFull;
    const remote = addresses.hold(u16, ip + IPV6_SOURCE);
    const refused =
      remote === NO_ADDRESS ? tracks.tableFull : tracks.make(own, remote, pair, key, flags, from);
    if (refused < 0) return refused;
    addresses.release(own);
    if (remote !== NO_ADDRESS) addresses.release(remote);
    return refused;
  }

  function entryOf(frame: number, ip: number, total: number): number | undefined {
    const upper = upperLayer(u16, ip, total);
    if (upper < 0 || (upper & LATER_FRAGMENT_V6) !== 0 || !hasRoom(upper, total)) return undefined;
    const t = ip + ((upper & 0xffff) >>> 1);
    const key = keyOf(frame, upper, ownerKey);
    const flow = flowOf(ip + IPV6_SOURCE, ip + IPV6_DESTINATION, pairAt(u16, t), key);
    if (flow === NO_FLOW) {
      const lost = (key & 0xff) === PROTOCOL_TCP && tracks.isLost(frame, t, ip + IPV6_SOURCE, 8);
      return lost && !isKnown(frame, ip, total) ? FLOOD_VTEPS : undefined;
    }
    const at = flow << FLOW_SHIFT;
    tracks.outward(at, key & 0xff, u16[t + TCP_FLAGS]);
    return words[at + NEXT_OF_PORT];
  }

  function isKnown(frame: number, ip: number, total: number): boolean {
    const upper = upperLayer(u16, ip, total);
    const uplink = gateways.uplink[domain[frame]];
    if (upper < 0 || uplink < 0 || (upper & LATER_FRAGMENT_V6) !== 0 || !hasRoom(upper, total)) return false;
    const key = keyOf(frame, upper, (uplink << OWNER_SHIFT) | IPV6_FLOW);
    const pair = pairAt(u16, ip + ((upper & 0xffff) >>> 1));
    return flowOf(ip + IPV6_SOURCE, ip + IPV6_DESTINATION, pair, key) !== NO_FLOW;
  }

  flows.own(
    MESH_OWNER,
    {
      over: () => 0,
      leave(flow) {
        addresses.release(words[(flow << FLOW_SHIFT) + INSIDE]);
        addresses.release(words[(flow << FLOW_SHIFT) + REMOTE_END]);
      },
    },
    true,
  );

  function answer(frame: number, ip: number): boolean {
    const t = ip + IPV6_HEADER / 2;
    return resets.answer(frame, t, swap16(u16[ip + IPV6_LENGTH]));
  }

  return { neighbourOf, track, answer, entryOf, isKnown };
}
