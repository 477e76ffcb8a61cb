/**
 * The routing mesh over IPv6: what mesh.ts does where it looks into packets, for those of IPv6; the ingress network
 * carries both. Flows are in the same table, addresses there by their numbers (see Addresses6).
 */
import type { Batch, Context } from '../graph.js';
import { FLOOD_VTEPS } from '../memory/frames.js';
import { type Addresses6, NO_ADDRESS } from '../tables/addresses6.js';
import {
  FLOW_SHIFT,
  type Flows,
  flowKeyHash,
  IN,
  INSIDE,
  IPV6_FLOW,
  MESH_OWNER,
  NEXT_OF_PORT,
  NO_FLOW,
  OUT,
  REMOTE_END,
} from '../tables/flows.js';
import type { Neighbours } from '../tables/neighbours.js';
import { pair as pairAt } from '../wire/arp.js';
import { ETHERNET_HEADER } from '../wire/ethernet.js';
import { ICMP_HEADER } from '../wire/icmp.js';
import { isErrorV6 } from '../wire/icmpv6.js';
import {
  IPV6_DESTINATION,
  IPV6_SOURCE,
  PROTOCOL_ICMPV6,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  UDP_HEADER,
} from '../wire/ip.js';
import { FIRST_OF_FRAGMENTS, LATER_FRAGMENT_V6, upperLayer } from '../wire/ipv6.js';
import { TCP_FLAGS, TCP_HEADER } from '../wire/tcp.js';
import { createResetsV6 } from './balancer/resets-v6.js';
import { MESH_KEY, NOT_SERVED, TABLE_FULL, type Tracks } from './mesh/tracks.js';
import { createWays, NO_NODE } from './mesh/ways.js';
import type { MeshFamily } from './mesh.js';
import { TRANSLATED } from './nat/errors.js';
import { createErrorTranslatorV6 } from './nat/errors-v6.js';
import { FRAGMENTS_V6 } from './nat/packet-v6.js';

export interface MeshV6 extends MeshFamily {
  /** As of `Mesh`. */
  entryOf(frame: number, ip: number, total: number): number;
  expire(all?: boolean): void;
}

export interface MeshV6Options {
  readonly flows: Flows;
  readonly addresses: Addresses6;
  readonly neighbours: Neighbours;
  readonly tracks: Tracks;
  /** As of `createWays`. */
  readonly again: Batch;
  readonly lost: (frame: number) => void;
  /** Gives a station the reset that its segment has become. @returns WAITS. */
  readonly resetStation: (frame: number) => number;
}

export function createMeshV6(context: Context, options: MeshV6Options): MeshV6 {
  const { u16, domain } = context.frames;
  const { flows, addresses, neighbours, tracks, again, lost, resetStation } = options;
  const { words, seed, find } = flows;
  const ownerKey = MESH_KEY | IPV6_FLOW;
  const resets = createResetsV6(context, addresses);
  const translator = createErrorTranslatorV6(context, { flows, ownerKey }, addresses);
  const ways = createWays(context, FRAGMENTS_V6, again, lost);

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

  function keyOf(frame: number, upper: number): number {
    return ((upper >>> 16) & 0xff) | ownerKey | ((domain[frame] + 1) << 16);
  }

  function track(frame: number, ip: number, total: number, from: number): number {
    const upper = upperLayer(u16, ip, total);
    const t = ip + ((upper & 0xffff) >>> 1);
    if (upper < 0) return NOT_SERVED;
    // The first one made the flow, and the node before this one has put them in order.
    if ((upper & LATER_FRAGMENT_V6) !== 0) return -1;
    if (((upper >>> 16) & 0xff) === PROTOCOL_ICMPV6) return error(frame, t, upper, total) ? -1 : NOT_SERVED;
    if (!hasRoom(upper, total)) return NOT_SERVED;
    const pair = u16[t + 1] | (u16[t] << 16);
    const key = keyOf(frame, upper);
    const flags = (key & 0xff) === PROTOCOL_TCP ? u16[t + TCP_FLAGS] : 0;
    const flow = flowOf(ip + IPV6_DESTINATION, ip + IPV6_SOURCE, pair, key);
    return flow === NO_FLOW
      ? make(ip, pair, key, flags, from)
      : tracks.inward(flow << FLOW_SHIFT, key & 0xff, flags, from);
  }

  function error(frame: number, t: number, upper: number, total: number): boolean {
    return (
      isIcmpError(t, upper, total) &&
      translator.translate(frame, IN, ETHERNET_HEADER + (upper & 0xffff)) === TRANSLATED
    );
  }

  /** Whether an ICMPv6 message that begins at word `t` is an error. */
  function isIcmpError(t: number, upper: number, total: number): boolean {
    return total - (upper & 0xffff) >= ICMP_HEADER && isErrorV6(u16[t] & 0xff);
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
    if (own === NO_ADDRESS) return TABLE_FULL;
    const remote = addresses.hold(u16, ip + IPV6_SOURCE);
    const refused = remote === NO_ADDRESS ? TABLE_FULL : tracks.make(own, remote, pair, key, flags, from);
    if (refused < 0) return refused;
    addresses.release(own);
    if (remote !== NO_ADDRESS) addresses.release(remote);
    return refused;
  }

  function entryOf(frame: number, ip: number, total: number): number {
    const upper = upperLayer(u16, ip, total);
    if (upper < 0) return NO_NODE;
    if ((upper & LATER_FRAGMENT_V6) !== 0) return ways.later(frame);
    const way = wayOf(frame, ip, upper, total);
    return (upper & FIRST_OF_FRAGMENTS) === 0 ? way : ways.first(frame, way);
  }

  /** Of a connection that only the node knows which its client came by, all are asked. */
  function wayOf(frame: number, ip: number, upper: number, total: number): number {
    const t = ip + ((upper & 0xffff) >>> 1);
    if (((upper >>> 16) & 0xff) === PROTOCOL_ICMPV6) return wayOfError(frame, t, upper, total);
    if (!hasRoom(upper, total)) return NO_NODE;
    const key = keyOf(frame, upper);
    const flow = flowOf(ip + IPV6_SOURCE, ip + IPV6_DESTINATION, pairAt(u16, t), key);
    if (flow === NO_FLOW) {
      if ((key & 0xff) !== PROTOCOL_TCP) return NO_NODE;
      // Asked of every packet that leaves, and mostly there is none.
      const hasEnded = flows.ended.size > 0 && isAmong(tracks.hasEnded, ip, t, key);
      if (hasEnded && answer(frame, ip, total)) return resetStation(frame);
      const isLost = tracks.isLost(frame, t, ip + IPV6_SOURCE, 8);
      return isLost && !isAmong(tracks.isKnown, ip, t, key) ? FLOOD_VTEPS : NO_NODE;
    }
    const at = flow << FLOW_SHIFT;
    tracks.outward(at, key & 0xff, u16[t + TCP_FLAGS]);
    return words[at + NEXT_OF_PORT];
  }

  /** An ICMPv6 error goes where the client is whose packet it carries. */
  function wayOfError(frame: number, t: number, upper: number, total: number): number {
    if (!isIcmpError(t, upper, total)) return NO_NODE;
    const flow = translator.flowOf(frame, OUT, ETHERNET_HEADER + (upper & 0xffff));
    return flow < 0 ? NO_NODE : words[(flow << FLOW_SHIFT) + NEXT_OF_PORT];
  }

  /** Asks the tracks of the ends of a packet of a backend, whose ports are at word `t`. */
  function isAmong(tracked: Tracks['isKnown'], ip: number, t: number, key: number): boolean {
    const own = addresses.find(u16, ip + IPV6_SOURCE);
    const remote = addresses.find(u16, ip + IPV6_DESTINATION);
    return own !== NO_ADDRESS && remote !== NO_ADDRESS && tracked(own, remote, pairAt(u16, t), key);
  }

  function mayReturn(frame: number, ip: number, total: number): boolean {
    const upper = upperLayer(u16, ip, total);
    const t = ip + ((upper & 0xffff) >>> 1);
    if (upper < 0) return false;
    // It follows its first one, or goes when that does not come.
    if ((upper & LATER_FRAGMENT_V6) !== 0) return true;
    if (((upper >>> 16) & 0xff) === PROTOCOL_ICMPV6) return isIcmpError(t, upper, total);
    return hasRoom(upper, total) && isAmong(tracks.isKnown, ip, t, keyOf(frame, upper));
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

  function answer(frame: number, ip: number, total: number): boolean {
    const upper = upperLayer(u16, ip, total);
    const at = upper & 0xffff;
    const isWhole = upper >= 0 && (upper & (FIRST_OF_FRAGMENTS | LATER_FRAGMENT_V6)) === 0;
    const isTcp = ((upper >>> 16) & 0xff) === PROTOCOL_TCP;
    return isWhole && isTcp && hasRoom(upper, total) && resets.answer(frame, ip + (at >>> 1), total - at);
  }

  return { neighbourOf, track, answer, mayReturn, entryOf, expire: ways.expire };
}
