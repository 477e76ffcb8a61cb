/**
 * The gateway for IPv6 (RFC 8200): the same steps as for IPv4, which gateway.ts names. What differs:
 *   1. a unicast Neighbour Solicitation takes the place of ARP (RFC 4861);
 *   2. there is no header checksum; a route that the sender has chosen is refused (RFC 5095), and so is what belongs
 *      to one link alone;
 *   3. nothing is cut: the sender hears that its packet is too big (RFC 8201).
 */
import { type Batch, type Context, Drops } from '../graph.js';
import { GATEWAY_PORT } from '../intent.js';
import { GSO_UDP_L4, NO_FRAME, OFFLOAD_GSO_MASK, OFFLOAD_GSO_SHIFT } from '../memory/frames.js';
import { type Gateways, NO_UPLINK } from '../tables/gateways.js';
import { type Neighbours, NO_NEIGHBOUR } from '../tables/neighbours.js';
import { pair } from '../wire/arp.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV6_LE, swap16 } from '../wire/ethernet.js';
import {
  ADDRESS_UNREACHABLE,
  NO_ROUTE,
  PACKET_TOO_BIG,
  PORT_UNREACHABLE_V6,
  PROHIBITED,
  TIME_EXCEEDED_V6,
  UNREACHABLE_V6,
} from '../wire/icmpv6.js';
import {
  IPV6_DESTINATION,
  IPV6_HEADER,
  IPV6_LENGTH,
  IPV6_NEXT_HOP,
  IPV6_SOURCE,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  UDP_HEADER,
} from '../wire/ip.js';
import {
  inPrefix,
  ipv6Length,
  isRoutableV6,
  LATER_FRAGMENT_V6,
  ROUTED_BY_SENDER,
  sameAddress,
  upperLayer,
} from '../wire/ipv6.js';
import { ROUTER_LE } from '../wire/nd.js';
import { TCP_FLAGS, tcpHeaderLength } from '../wire/tcp.js';
import { answerNd } from './answer-nd.js';
import { answerEchoV6, isEchoFragmentV6, isEchoV6 } from './echo.js';
import type { Icmpv6Errors } from './icmpv6-errors.js';
import { NO_NODE, WAITS } from './mesh/ways.js';
import type { Mesh } from './mesh.js';

const REASONS = [
  'malformed',
  'bad-source',
  'bad-destination',
  'source-route',
  'not-served',
  'same-network',
  'between-networks',
  'to-underlay',
  'no-uplink',
  'hop-limit',
  'too-big',
  'no-gateway',
  'no-neighbour',
] as const;
const [
  MALFORMED,
  BAD_SOURCE,
  BAD_DESTINATION,
  SOURCE_ROUTE,
  NOT_SERVED,
  SAME_NETWORK,
  BETWEEN_NETWORKS,
  TO_UNDERLAY,
  WITHOUT_UPLINK,
  HOP_LIMIT,
  TOO_BIG,
  NO_GATEWAY,
  WITHOUT_NEIGHBOUR,
] = REASONS.keys();

const COUNTERS = ['out', 'in', 'nd-answered', 'echo-answered'] as const;
const [OUTWARD, INWARD, ND_ANSWERED, ECHO_ANSWERED] = COUNTERS.keys();

/** What the gateway knows of an uplink's IPv6. */
export interface GatewayUplinkV6 {
  /** Eight words. */
  readonly address: Uint16Array;
  /** Takes packets of domains, Ethernet header still to be written. */
  readonly out: Batch;
}

export interface GatewayOutputsV6 {
  readonly ports: readonly (Batch | null)[];
  /** By index; null where an uplink has no IPv6. `mtu`: bytes of the largest IP packet. */
  readonly uplinks: readonly { readonly mtu: number; readonly v6: GatewayUplinkV6 | null }[];
  readonly bridge: Batch;
  /** As of the gateway for IPv4. */
  readonly mesh: { readonly element: Mesh; readonly forth: Batch } | null;
  readonly vxlanPort: number;
}

export interface GatewayV6 {
  readonly drops: Drops;
  /** Takes a frame that the bridge delivers to a gateway. */
  outward(frame: number): void;
  /** Takes a packet that address translation has admitted. */
  inward(frame: number): void;
  /** Takes a packet that came back from another node. */
  fromMesh(frame: number): void;
}

export function createGatewayV6(
  context: Context,
  gateways: Gateways,
  neighbours: Neighbours,
  errors: Icmpv6Errors,
  to: GatewayOutputsV6,
): GatewayV6 {
  const { frames } = context;
  const { u16, off, len, domain, ingress, offload, gsoSize } = frames;
  const { used6, address6, subnet6, mask6, macs, uplink: uplinkOf, mtu } = gateways;
  const { values } = context.counters;
  const { ports, uplinks, bridge } = to;
  const mesh = to.mesh?.element ?? null;
  const vxlan = swap16(to.vxlanPort);
  const drops = new Drops(context, 'gateway-v6', REASONS);
  const { base } = context.counters.claim('gateway-v6', COUNTERS);

  function outward(frame: number): void {
    values[base + OUTWARD]++;
    const own = domain[frame] * 8;
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    const total = ipv6Length(u16, ip, len[frame] - ETHERNET_HEADER);
    if (used6[domain[frame]] === 0) {
      drops.drop(frame, NO_GATEWAY);
      return;
    }
    if (total === 0) {
      drops.drop(frame, MALFORMED);
      return;
    }
    len[frame] = ETHERNET_HEADER + total;
    const toGateway = sameAddress(u16, ip + IPV6_DESTINATION, address6, own);
    // Whoever asks for our MAC may do so from an address of the link alone.
    if (toGateway && solicited(frame)) return;
    if (!inPrefix(u16, ip + IPV6_SOURCE, subnet6, mask6, own)) drops.drop(frame, BAD_SOURCE);
    else if (sameAddress(u16, ip + IPV6_SOURCE, address6, own)) drops.drop(frame, BAD_SOURCE);
    else if (toGateway) local(frame, ip, true);
    else if (!isRoutableV6(u16, ip + IPV6_DESTINATION)) drops.drop(frame, BAD_DESTINATION);
    else if (mesh === null || !backByMesh(mesh, frame, ip, total)) onward(frame, ip, total);
  }

  function onward(frame: number, ip: number, total: number): void {
    const own = domain[frame] * 8;
    if (inPrefix(u16, ip + IPV6_DESTINATION, subnet6, mask6, own))
      refuse(frame, SAME_NETWORK, UNREACHABLE_V6, PROHIBITED, 0);
    else route(frame, ip, total);
  }

  /** Whether a packet answers a client that came by another node, to which it goes back then; or it waits. */
  function backByMesh(element: Mesh, frame: number, ip: number, total: number): boolean {
    const vtep = element.entryOfV6(frame, ip, total);
    if (vtep === NO_NODE) return false;
    if (vtep === WAITS) return true;
    const most = element.ingress[1];
    if (u16[ip + IPV6_NEXT_HOP] >>> 8 <= 1) refuse(frame, HOP_LIMIT, TIME_EXCEEDED_V6, 0, 0);
    else if (packetSize(frame, ip, upperLayer(u16, ip, total)) > most)
      refuse(frame, TOO_BIG, PACKET_TOO_BIG, 0, most);
    else {
      u16[ip + IPV6_NEXT_HOP] -= 0x100;
      element.back(frame, vtep);
    }
    return true;
  }

  /** Answers for the gateway's address; true when the frame is gone. */
  function solicited(frame: number): boolean {
    const port = ports[ingress[frame]];
    const dom = domain[frame];
    if (!port || !answerNd(frames, frame, address6, dom * 8, macs, dom * 3, ROUTER_LE)) return false;
    values[base + ND_ANSWERED]++;
    port.push(frame);
    return true;
  }

  function route(frame: number, ip: number, total: number): void {
    const way = uplinkOf[domain[frame]] === NO_UPLINK ? undefined : uplinks[uplinkOf[domain[frame]]];
    const out = way?.v6;
    const upper = upperLayer(u16, ip, total);
    if (upper < 0) drops.drop(frame, upper === ROUTED_BY_SENDER ? SOURCE_ROUTE : MALFORMED);
    else if (gateways.covers6(u16, ip + IPV6_DESTINATION))
      refuse(frame, BETWEEN_NETWORKS, UNREACHABLE_V6, PROHIBITED, 0);
    else if (!way || !out) refuse(frame, WITHOUT_UPLINK, UNREACHABLE_V6, NO_ROUTE, 0);
    else if (sameAddress(u16, ip + IPV6_DESTINATION, out.address, 0) && isEchoV6(u16, ip))
      local(frame, ip, false);
    else if (isVxlan(ip, upper) && !sameAddress(u16, ip + IPV6_DESTINATION, out.address, 0))
      refuse(frame, TO_UNDERLAY, UNREACHABLE_V6, PROHIBITED, 0);
    else if (u16[ip + IPV6_NEXT_HOP] >>> 8 <= 1) refuse(frame, HOP_LIMIT, TIME_EXCEEDED_V6, 0, 0);
    else if (packetSize(frame, ip, upper) > way.mtu) refuse(frame, TOO_BIG, PACKET_TOO_BIG, 0, way.mtu);
    else {
      u16[ip + IPV6_NEXT_HOP] -= 0x100;
      out.out.push(frame);
    }
  }

  /** @param upper as `upperLayer` gives it. */
  function isVxlan(ip: number, upper: number): boolean {
    if (((upper >>> 16) & 0xff) !== PROTOCOL_UDP || (upper & LATER_FRAGMENT_V6) !== 0) return false;
    return u16[ip + ((upper & 0xffff) >>> 1) + 1] === vxlan;
  }

  /** What is for the gateway itself, or an echo request for the uplink's address. */
  function local(frame: number, ip: number, toGateway: boolean): void {
    const port = ports[ingress[frame]];
    if (port && (isEchoV6(u16, ip) || (toGateway && isEchoFragmentV6(u16, ip)))) {
      values[base + ECHO_ANSWERED]++;
      answerEchoV6(frames, frame);
      port.push(frame);
      return;
    }
    const protocol = u16[ip + IPV6_NEXT_HOP] & 0xff;
    if (toGateway && (protocol === PROTOCOL_UDP || protocol === PROTOCOL_TCP))
      refuse(frame, NOT_SERVED, UNREACHABLE_V6, PORT_UNREACHABLE_V6, 0);
    else drops.drop(frame, NOT_SERVED);
  }

  /** Drops a packet from inside and tells its sender why. */
  function refuse(frame: number, reason: number, type: number, code: number, argument: number): void {
    const port = ports[ingress[frame]];
    const error = port ? errors.make(frame, type, code, argument, address6, domain[frame] * 8) : NO_FRAME;
    if (port && error !== NO_FRAME) port.push(error);
    drops.drop(frame, reason);
  }

  /** Bytes of the largest IP packet that comes of a frame. @param upper as `upperLayer` gives it. */
  function packetSize(frame: number, ip: number, upper: number): number {
    const gso = offload[frame] & OFFLOAD_GSO_MASK;
    if (gso === 0) return IPV6_HEADER + swap16(u16[ip + IPV6_LENGTH]);
    const at = upper & 0xffff;
    const isUdp = gso === GSO_UDP_L4 << OFFLOAD_GSO_SHIFT;
    return at + (isUdp ? UDP_HEADER : tcpHeaderLength(u16[ip + (at >>> 1) + TCP_FLAGS])) + gsoSize[frame];
  }

  function inward(frame: number): void {
    values[base + INWARD]++;
    const dom = domain[frame];
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    const total = ipv6Length(u16, ip, len[frame] - ETHERNET_HEADER);
    if (used6[dom] === 0 || total === 0) {
      drops.drop(frame, used6[dom] === 0 ? NO_GATEWAY : MALFORMED);
      return;
    }
    const at = ip + IPV6_DESTINATION;
    const known = neighbours.lookup(
      dom,
      pair(u16, at),
      pair(u16, at + 2),
      pair(u16, at + 4),
      pair(u16, at + 6),
    );
    const upper = upperLayer(u16, ip, total);
    if (upper < 0) drops.drop(frame, upper === ROUTED_BY_SENDER ? SOURCE_ROUTE : MALFORMED);
    else if (known === NO_NEIGHBOUR)
      sendBack(frame, WITHOUT_NEIGHBOUR, UNREACHABLE_V6, ADDRESS_UNREACHABLE, 0);
    else if (u16[ip + IPV6_NEXT_HOP] >>> 8 <= 1) sendBack(frame, HOP_LIMIT, TIME_EXCEEDED_V6, 0, 0);
    else {
      const meshed = mesh !== null && mesh.ingress[0] >= 0;
      const most = meshed ? Math.min(mtu[dom], mesh.ingress[1]) : mtu[dom];
      if (packetSize(frame, ip, upper) > most) sendBack(frame, TOO_BIG, PACKET_TOO_BIG, 0, most);
      else deliver(frame, ip, known, meshed ? to.mesh!.forth : bridge);
    }
  }

  /** A packet that came back from another node, and leaves here. */
  function fromMesh(frame: number): void {
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    const total = ipv6Length(u16, ip, len[frame] - ETHERNET_HEADER);
    if (total === 0) drops.drop(frame, MALFORMED);
    else route(frame, ip, total);
  }

  function deliver(frame: number, ip: number, known: number, way: Batch): void {
    const w = off[frame] >>> 1;
    const mac = domain[frame] * 3;
    for (let i = 0; i < 3; i++) {
      u16[w + i] = neighbours.macWord(known, i);
      u16[w + 3 + i] = macs[mac + i];
    }
    u16[w + 6] = ETHERTYPE_IPV6_LE;
    u16[ip + IPV6_NEXT_HOP] -= 0x100;
    ingress[frame] = GATEWAY_PORT;
    way.push(frame);
  }

  /** Drops a packet from outside and tells its sender why, by the way that errors of containers take. */
  function sendBack(frame: number, reason: number, type: number, code: number, argument: number): void {
    const dom = domain[frame];
    const out = uplinkOf[dom] === NO_UPLINK ? null : uplinks[uplinkOf[dom]].v6;
    const error = out ? errors.make(frame, type, code, argument, address6, dom * 8) : NO_FRAME;
    if (out && error !== NO_FRAME) out.out.push(error);
    drops.drop(frame, reason);
  }

  return { drops, outward, inward, fromMesh };
}
