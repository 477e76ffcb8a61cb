/**
 * `gateway`: the router between the networks of this host and its uplinks (RFC 1812); IPv6 in gateway-v6.ts.
 *
 * From inside, frames that the bridge delivers to the gateway's MAC of a network:
 *   1. ARP for the gateway's address is answered, and echo to it; nothing else is served;
 *   2. the header is checked, and the source, which must be of the network;
 *   3. what is for a network of this host goes nowhere: neither between networks nor, by this way, between containers;
 *      nor does VXLAN, which a container would reach any network by, and which hosts take from each other alone;
 *   4. networks without uplink have no way out;
 *   5. TTL and MTU: the sender hears why its packet does not go on;
 *   6. the packet goes to the uplink's way out, address translation first.
 * From outside, packets that address translation has admitted and given their domain:
 *   7. TTL and MTU again; the sender hears by an error that is translated as those of containers are;
 *   8. it gets the gateway's and the container's MAC, and goes to the bridge as a frame from the gateway's port.
 *
 * Not handled: redirects, which a router that is nobody's neighbour never sends.
 */
import { Batch, type Consumer, type Context, Drops } from '../graph.js';
import { GATEWAY_PORT } from '../intent.js';
import { GSO_UDP_L4, NO_FRAME, OFFLOAD_GSO_MASK, OFFLOAD_GSO_SHIFT, REMOTE } from '../memory/frames.js';
import { type Gateways, NO_UPLINK } from '../tables/gateways.js';
import { MAPPED_IPV4, type Neighbours, NO_NEIGHBOUR } from '../tables/neighbours.js';
import {
  ETHERNET_HEADER,
  ETHERTYPE_ARP_LE,
  ETHERTYPE_IPV4_LE,
  ETHERTYPE_IPV6_LE,
  swap16,
} from '../wire/ethernet.js';
import {
  ADMINISTRATIVELY_PROHIBITED,
  FRAGMENTATION_NEEDED,
  HOST_UNREACHABLE,
  NET_UNREACHABLE,
  PORT_UNREACHABLE,
  TIME_EXCEEDED,
  UNREACHABLE,
} from '../wire/icmp.js';
import {
  IPV4_CHECKSUM,
  IPV4_DESTINATION,
  IPV4_FRAGMENT,
  IPV4_HEADER,
  IPV4_LENGTH,
  IPV4_OFFSET_LE,
  IPV4_SOURCE,
  IPV4_TTL_PROTOCOL,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  UDP_HEADER,
  updateChecksum,
} from '../wire/ip.js';
import { hasSourceRoute, ipv4Length, isRoutable } from '../wire/ipv4-checks.js';
import { TCP_FLAGS, tcpHeaderLength } from '../wire/tcp.js';
import { answerArp } from './answer-arp.js';
import { answerEcho, isEcho, isEchoFragment } from './echo.js';
import { createFragmenter } from './fragment.js';
import { createGatewayV6, type GatewayUplinkV6 } from './gateway-v6.js';
import type { IcmpErrors } from './icmp-errors.js';
import type { Icmpv6Errors } from './icmpv6-errors.js';
import { NO_NODE, WAITS } from './mesh/ways.js';
import type { Mesh } from './mesh.js';

const REASONS = [
  'remote',
  'malformed',
  'not-ip',
  'bad-source',
  'bad-destination',
  'source-route',
  'not-served',
  'same-network',
  'between-networks',
  'to-underlay',
  'no-uplink',
  'ttl-exceeded',
  'too-big',
  'no-gateway',
  'no-neighbour',
] as const;
const [
  FROM_REMOTE,
  MALFORMED,
  NOT_IP,
  BAD_SOURCE,
  BAD_DESTINATION,
  SOURCE_ROUTE,
  NOT_SERVED,
  SAME_NETWORK,
  BETWEEN_NETWORKS,
  TO_UNDERLAY,
  WITHOUT_UPLINK,
  TTL_EXCEEDED,
  TOO_BIG,
  NO_GATEWAY,
  WITHOUT_NEIGHBOUR,
] = REASONS.keys();

const COUNTERS = ['out', 'in', 'arp-answered', 'echo-answered', 'fragmented'] as const;
const [OUTWARD, INWARD, ARP_ANSWERED, ECHO_ANSWERED, FRAGMENTED] = COUNTERS.keys();

const DONT_FRAGMENT_LE = 0x0040;

/** What the gateway knows of an uplink; addresses as signed little-endian words. */
interface GatewayUplink {
  readonly address: number;
  /** Addresses of its prefix that are no host's: the lowest and the highest; 0 where there are none (RFC 3021). */
  readonly network: number;
  readonly broadcast: number;
  /** Bytes of the largest IP packet. */
  readonly mtu: number;
  /** Takes packets of domains, Ethernet header still to be written. */
  readonly out: Batch;
  /** Null without IPv6. */
  readonly v6: GatewayUplinkV6 | null;
}

export interface GatewayOutputs {
  /** Sending side of each local port, by port number; answers go to the port the packet came from. */
  readonly ports: readonly (Batch | null)[];
  readonly uplinks: readonly GatewayUplink[];
  readonly bridge: Batch;
  /** Packets for stations of all nodes; null where nothing is carried between nodes. */
  readonly mesh: { readonly element: Mesh; readonly forth: Batch } | null;
  /** UDP port of the underlay, to which no container speaks. */
  readonly vxlanPort: number;
}

export interface Gateway {
  readonly drops: Drops;
  readonly dropsV6: Drops;
  readonly fromInside: Consumer;
  readonly fromOutside: Consumer;
  /** Packets that came back from another node, and leave here. */
  readonly fromMesh: Consumer;
}

export function createGateway(
  context: Context,
  gateways: Gateways,
  neighbours: Neighbours,
  { v4: errors, v6: errorsV6 }: { readonly v4: IcmpErrors; readonly v6: Icmpv6Errors },
  to: GatewayOutputs,
): Gateway {
  const { frames } = context;
  const { u16, off, len, domain, ingress, offload, gsoSize } = frames;
  const { used, address, subnet, mask, broadcast, macs, uplink: uplinkOf, mtu } = gateways;
  const { values } = context.counters;
  const { ports, uplinks, bridge } = to;
  const drops = new Drops(context, 'gateway', REASONS);
  const { base } = context.counters.claim('gateway', COUNTERS);
  const fragmenter = createFragmenter(context);
  /** The pieces of one packet, which are fewer than a batch has room for. */
  const parts = new Batch({ process() {} });
  const mesh = to.mesh?.element ?? null;
  const vxlan = swap16(to.vxlanPort);
  const v6 = createGatewayV6(context, gateways, neighbours, errorsV6, to);

  function fromInside(batch: Batch): void {
    const { frames: ids, count } = batch;
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      const type = u16[(off[frame] >>> 1) + 6];
      if (ingress[frame] >= REMOTE) drops.drop(frame, FROM_REMOTE);
      else if (type === ETHERTYPE_IPV4_LE) outward(frame);
      else if (type === ETHERTYPE_ARP_LE) arp(frame);
      else if (type === ETHERTYPE_IPV6_LE) v6.outward(frame);
      else drops.drop(frame, NOT_IP);
    }
    values[base + OUTWARD] += count;
  }

  /** Unicast requests, by which hosts confirm what they know; the others the neighbour element answers. */
  function arp(frame: number): void {
    const dom = domain[frame];
    const port = ports[ingress[frame]];
    if (!port || !answerArp(frames, frame, address[dom], macs, dom * 3)) {
      drops.drop(frame, NOT_SERVED);
      return;
    }
    values[base + ARP_ANSWERED]++;
    port.push(frame);
  }

  function outward(frame: number): void {
    const dom = domain[frame];
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    const total = ipv4Length(u16, ip, len[frame] - ETHERNET_HEADER);
    if (total === 0) {
      drops.drop(frame, MALFORMED);
      return;
    }
    len[frame] = ETHERNET_HEADER + total;
    const source = u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16);
    const destination = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    if (((source ^ subnet[dom]) & mask[dom]) !== 0 || source === address[dom] || source === broadcast[dom])
      drops.drop(frame, BAD_SOURCE);
    else if (destination === address[dom]) local(frame, ip, address[dom]);
    else if (!isRoutable(destination) || destination === broadcast[dom]) drops.drop(frame, BAD_DESTINATION);
    else if ((u16[ip] & 15) > 5 && hasSourceRoute(u16, ip)) drops.drop(frame, SOURCE_ROUTE);
    else if (mesh === null || !backByMesh(mesh, frame, ip)) onward(frame, ip, destination);
  }

  /** Whether a packet answers a client that came by another node, to which it goes back then; or it waits. */
  function backByMesh(mesh: Mesh, frame: number, ip: number): boolean {
    const vtep = mesh.entryOf(frame, ip);
    if (vtep === NO_NODE) return false;
    if (vtep === WAITS) return true;
    if ((u16[ip + IPV4_TTL_PROTOCOL] & 0xff) <= 1) refuse(frame, TTL_EXCEEDED, TIME_EXCEEDED, 0, 0);
    else if (packetSize(frame, ip) > mesh.ingress[1]) cutBack(mesh, frame, ip, vtep);
    else {
      hop(ip);
      mesh.back(frame, vtep);
    }
    return true;
  }

  /** Sends a packet back that is too large for the ingress network, in fragments if it may be cut. */
  function cutBack(mesh: Mesh, frame: number, ip: number, vtep: number): void {
    const most = mesh.ingress[1];
    const cut = (u16[ip + IPV4_FRAGMENT] & DONT_FRAGMENT_LE) === 0;
    if (cut) hop(ip);
    if (!cut || !fragmenter.fragment(frame, most, parts)) {
      refuse(frame, TOO_BIG, UNREACHABLE, FRAGMENTATION_NEEDED, most);
      return;
    }
    values[base + FRAGMENTED]++;
    for (let k = 0; k < parts.count; k++) mesh.back(parts.frames[k], vtep);
    parts.count = 0;
  }

  function onward(frame: number, ip: number, destination: number): void {
    const dom = domain[frame];
    if (((destination ^ subnet[dom]) & mask[dom]) === 0)
      refuse(frame, SAME_NETWORK, UNREACHABLE, ADMINISTRATIVELY_PROHIBITED, 0);
    else if (uplinkOf[dom] === NO_UPLINK) refuse(frame, WITHOUT_UPLINK, UNREACHABLE, NET_UNREACHABLE, 0);
    else route(frame, ip, destination, uplinks[uplinkOf[dom]]);
  }

  /** Steps 3, 5 and 6. */
  function route(frame: number, ip: number, destination: number, way: GatewayUplink): void {
    if (destination === way.address && isEcho(u16, ip)) {
      local(frame, ip, way.address);
      return;
    }
    if (destination === way.network || destination === way.broadcast) {
      drops.drop(frame, BAD_DESTINATION);
      return;
    }
    if (gateways.covers(destination)) {
      refuse(frame, BETWEEN_NETWORKS, UNREACHABLE, ADMINISTRATIVELY_PROHIBITED, 0);
      return;
    }
    if (isVxlan(ip) && destination !== way.address) {
      refuse(frame, TO_UNDERLAY, UNREACHABLE, ADMINISTRATIVELY_PROHIBITED, 0);
      return;
    }
    if ((u16[ip + IPV4_TTL_PROTOCOL] & 0xff) <= 1) {
      refuse(frame, TTL_EXCEEDED, TIME_EXCEEDED, 0, 0);
      return;
    }
    if (packetSize(frame, ip) > way.mtu) {
      const cut = (u16[ip + IPV4_FRAGMENT] & DONT_FRAGMENT_LE) === 0;
      if (cut) hop(ip);
      if (cut && fragmenter.fragment(frame, way.mtu, way.out)) values[base + FRAGMENTED]++;
      else refuse(frame, TOO_BIG, UNREACHABLE, FRAGMENTATION_NEEDED, way.mtu);
      return;
    }
    hop(ip);
    way.out.push(frame);
  }

  function isVxlan(ip: number): boolean {
    if (u16[ip + IPV4_TTL_PROTOCOL] >>> 8 !== PROTOCOL_UDP) return false;
    // A fragment behind the first has no ports.
    return (u16[ip + IPV4_FRAGMENT] & IPV4_OFFSET_LE) === 0 && u16[ip + ((u16[ip] & 15) << 1) + 1] === vxlan;
  }

  /** What is for the gateway itself, by the address given. */
  function local(frame: number, ip: number, own: number): void {
    const port = ports[ingress[frame]];
    // To an uplink's address fragments may be those of flows.
    const asked = isEcho(u16, ip) || (own === address[domain[frame]] && isEchoFragment(u16, ip));
    if (port && asked) {
      values[base + ECHO_ANSWERED]++;
      answerEcho(frames, frame);
      port.push(frame);
      return;
    }
    const protocol = u16[ip + IPV4_TTL_PROTOCOL] >>> 8;
    if ((protocol === PROTOCOL_UDP || protocol === PROTOCOL_TCP) && own === address[domain[frame]])
      refuse(frame, NOT_SERVED, UNREACHABLE, PORT_UNREACHABLE, 0);
    else drops.drop(frame, NOT_SERVED);
  }

  /** Drops a packet from inside and tells its sender why. */
  function refuse(frame: number, reason: number, type: number, code: number, argument: number): void {
    const port = ports[ingress[frame]];
    const error = port ? errors.make(frame, type, code, argument, address[domain[frame]]) : NO_FRAME;
    if (port && error !== NO_FRAME) port.push(error);
    drops.drop(frame, reason);
  }

  /** Bytes of the largest IP packet that comes of a frame. */
  function packetSize(frame: number, ip: number): number {
    const gso = offload[frame] & OFFLOAD_GSO_MASK;
    if (gso === 0) return swap16(u16[ip + IPV4_LENGTH]);
    const header = (u16[ip] & 15) << 2;
    const isUdp = gso === GSO_UDP_L4 << OFFLOAD_GSO_SHIFT;
    const transport = isUdp ? UDP_HEADER : tcpHeaderLength(u16[ip + (header >>> 1) + TCP_FLAGS]);
    return header + transport + gsoSize[frame];
  }

  function hop(ip: number): void {
    const before = u16[ip + IPV4_TTL_PROTOCOL];
    u16[ip + IPV4_TTL_PROTOCOL] = before - 1;
    u16[ip + IPV4_CHECKSUM] = updateChecksum(u16[ip + IPV4_CHECKSUM], before, before - 1);
  }

  function fromOutside(batch: Batch): void {
    const { frames: ids, count } = batch;
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      if (u16[(off[frame] >>> 1) + 6] === ETHERTYPE_IPV6_LE) v6.inward(frame);
      else inward(frame);
    }
    values[base + INWARD] += count;
  }

  function fromMesh(batch: Batch): void {
    for (let k = 0; k < batch.count; k++) {
      const frame = batch.frames[k];
      const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
      const destination = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
      if (u16[(off[frame] >>> 1) + 6] === ETHERTYPE_IPV6_LE) v6.fromMesh(frame);
      else route(frame, ip, destination, uplinks[uplinkOf[domain[frame]]]);
    }
    values[base + OUTWARD] += batch.count;
  }

  function inward(frame: number): void {
    const dom = domain[frame];
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    if (used[dom] === 0 || len[frame] < ETHERNET_HEADER + IPV4_HEADER) {
      drops.drop(frame, NO_GATEWAY);
      return;
    }
    const destination = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    const known = neighbours.lookup(dom, 0, 0, MAPPED_IPV4, destination);
    if (known === NO_NEIGHBOUR) sendBack(frame, WITHOUT_NEIGHBOUR, UNREACHABLE, HOST_UNREACHABLE, 0);
    else if ((u16[ip + IPV4_TTL_PROTOCOL] & 0xff) <= 1) sendBack(frame, TTL_EXCEEDED, TIME_EXCEEDED, 0, 0);
    else {
      const w = off[frame] >>> 1;
      for (let i = 0; i < 3; i++) {
        u16[w + i] = neighbours.macWord(known, i);
        u16[w + 3 + i] = macs[dom * 3 + i];
      }
      u16[w + 6] = ETHERTYPE_IPV4_LE;
      ingress[frame] = GATEWAY_PORT;
      if (mesh === null || mesh.ingress[0] < 0) deliver(frame, ip, mtu[dom], bridge);
      else deliver(frame, ip, Math.min(mtu[dom], mesh.ingress[1]), to.mesh!.forth);
    }
  }

  function deliver(frame: number, ip: number, most: number, way: Batch): void {
    if (packetSize(frame, ip) <= most) {
      hop(ip);
      way.push(frame);
      return;
    }
    const cut = (u16[ip + IPV4_FRAGMENT] & DONT_FRAGMENT_LE) === 0;
    if (cut) hop(ip);
    if (cut && fragmenter.fragment(frame, most, way)) values[base + FRAGMENTED]++;
    else sendBack(frame, TOO_BIG, UNREACHABLE, FRAGMENTATION_NEEDED, most);
  }

  /** Drops a packet from outside and tells its sender why, by the way that errors of containers take. */
  function sendBack(frame: number, reason: number, type: number, code: number, argument: number): void {
    const dom = domain[frame];
    const error =
      uplinkOf[dom] === NO_UPLINK ? NO_FRAME : errors.make(frame, type, code, argument, address[dom]);
    if (error !== NO_FRAME) uplinks[uplinkOf[dom]].out.push(error);
    drops.drop(frame, reason);
  }

  return {
    drops,
    dropsV6: v6.drops,
    fromInside: { process: fromInside },
    fromOutside: { process: fromOutside },
    fromMesh: { process: fromMesh },
  };
}
