/**
 * `mesh`: carries packets of published services between the node that a client came to and the node that has the
 * backend, over the ingress network, with the client's address as it is.
 *
 * Where the client came in (an uplink's `nat` has chosen the backend):
 *   1. a packet for a backend of this node goes to the bridge; any other into the ingress network, to the VTEP behind
 *      which the backend's MAC was seen, or to all, of which one takes it.
 * Where the backend is:
 *   2. a packet from the ingress network for a station of this node goes to it as from the gateway, and its flow
 *      remembers the node it came by;
 *   3. what the backend sends to that client by the gateway goes back to that node, not out here: its packets, their
 *      later fragments, and ICMP errors about what the client has sent.
 * Where the client came in again, which may be here:
 *   4. a packet that comes back goes to the uplink, if there is a flow that it belongs to. A TCP segment of none, as a
 *      backend says it when it is asked at the end of a connection (see balancer/endings.ts), is reset. So is that of a
 *      backend of this node when the connection has ended just now.
 *
 * Inside the ingress network a frame's addresses say what it is: 06 (07 when it is for all), the VNI of the backend's
 * network, and in the last byte FORTH or BACK. Nobody learns them.
 *
 * IPv6 goes the same ways: mesh-v6.ts. What becomes of flows is in mesh/tracks.ts.
 *
 * Not handled: ICMP errors and fragments of a backend whose client's node is forgotten, until the client is heard again.
 */
import { type Batch, type Consumer, type Context, Drops } from '../graph.js';
import { GATEWAY_PORT } from '../intent.js';
import { FLOOD_VTEPS, REMOTE } from '../memory/frames.js';
import type { Addresses6 } from '../tables/addresses6.js';
import type { Timeouts } from '../tables/connection.js';
import type { Domains } from '../tables/domains.js';
import { FLOW_SHIFT, type Flows, flowKeyHash, IN, NEXT_OF_PORT, NO_FLOW, OUT } from '../tables/flows.js';
import type { Gateways } from '../tables/gateways.js';
import type { MacTable } from '../tables/mac-table.js';
import { UNKNOWN } from '../tables/mac-table.js';
import { MAPPED_IPV4, type Neighbours, NO_NEIGHBOUR } from '../tables/neighbours.js';
import { Origins } from '../tables/origins.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV4_LE, ETHERTYPE_IPV6_LE, swap16 } from '../wire/ethernet.js';
import { ICMP_HEADER, isError } from '../wire/icmp.js';
import {
  IPV4_DESTINATION,
  IPV4_FRAGMENT,
  IPV4_LENGTH,
  IPV4_OFFSET_LE,
  IPV4_SOURCE,
  IPV4_TTL_PROTOCOL,
  PROTOCOL_ICMP,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  UDP_HEADER,
} from '../wire/ip.js';
import { ipv4Length } from '../wire/ipv4-checks.js';
import { ipv6Length } from '../wire/ipv6.js';
import { TCP_FLAGS, TCP_HEADER } from '../wire/tcp.js';
import { createResets } from './balancer/resets.js';
import { CONFLICT, createTracks, MESH_KEY, NOT_SERVED, TRACK_REASONS, WITHOUT_FLOW } from './mesh/tracks.js';
import { createWays, NO_NODE, WAITS } from './mesh/ways.js';
import { createMeshV6 } from './mesh-v6.js';
import { createErrorTranslator, TRANSLATED } from './nat/errors.js';
import { FRAGMENTS_V4 } from './nat/fragments.js';

const REASONS = [...TRACK_REASONS, 'not-mesh', 'malformed', 'not-here', 'no-network', 'fragment'] as const;
const NOT_MESH = REASONS.indexOf('not-mesh');
const MALFORMED = REASONS.indexOf('malformed');
const NOT_HERE = REASONS.indexOf('not-here');
const NO_NETWORK = REASONS.indexOf('no-network');
const FRAGMENT = REASONS.indexOf('fragment');

const COUNTERS = ['forth', 'back', 'taken', 'returned', 'flows-made', 'resets'] as const;
const [SENT_FORTH, SENT_BACK, TAKEN, RETURNED, MADE, RESETS] = COUNTERS.keys();

/** First byte of addresses within the ingress network, and the last one. */
const STATION = 0x06;
const GROUP = 0x07;
const FORTH = 1;
const BACK = 2;

/** More fragments, and an offset; the former alone. */
const FRAGMENT_LE = 0xff3f;
const MORE_FRAGMENTS_LE = 0x20;

/** The addresses at which a node takes packets of a network, by its VNI: six bytes each. */
export function meshStations(vni: number): readonly Uint8Array[] {
  return [FORTH, BACK].map((last) => Uint8Array.of(STATION, vni >>> 16, vni >>> 8, vni, 0, last));
}

export interface MeshOptions {
  readonly flows: Flows;
  /** Null where there is no IPv6. */
  readonly addresses: Addresses6 | null;
  readonly gateways: Gateways;
  readonly domains: Domains;
  readonly neighbours: Neighbours;
  readonly stations: MacTable;
  readonly timeouts: Timeouts;
}

export interface MeshOutputs {
  /** Frames for VTEPs, `dest` set. */
  readonly tunnel: Batch;
  readonly bridge: Batch;
  /** Sending side of each local port, by port number. */
  readonly ports: readonly (Batch | null)[];
  /** Takes what comes back and is to leave by an uplink. */
  readonly outside: Batch;
  /** Takes what the gateway is to get once more: fragments that waited for their first one. */
  readonly again: Batch;
}

export interface Mesh {
  readonly drops: Drops;
  /** Step 1: packets for backends, whose Ethernet header is that to the station. */
  readonly forth: Consumer;
  /** Steps 2 and 4: frames that the bridge of the ingress network delivers. */
  readonly arrived: Consumer;
  /**
   * Step 3: the node by which the client came that a packet of a station answers, FLOOD_VTEPS when that is forgotten.
   * @param ip first word of its sound IP header, of a packet of `total` bytes when it is of IPv6.
   * @returns REMOTE | VTEP; NO_NODE when it came by none; WAITS when the frame is not the caller's any more.
   */
  entryOf(frame: number, ip: number): number;
  entryOfV6(frame: number, ip: number, total: number): number;
  /** Sends such a packet back to that node. */
  back(frame: number, vtep: number): void;
  /** The domain of the ingress network, -1 without one, and the largest IP packet that it carries. */
  readonly ingress: Int32Array;
  readonly origins: Origins;
  /** Gives up fragments that waited too long, or all. Called between breaths. */
  expire(all?: boolean): void;
}

/** What looks into packets of one family: sound ones, of `total` bytes, whose IP header begins at word `ip`. */
export interface MeshFamily {
  /** The neighbour that a packet is for, as `Neighbours.lookup`. */
  neighbourOf(dom: number, ip: number): number;
  /** Finds or makes the flow of a packet to a backend. @returns a reason, or -1. */
  track(frame: number, ip: number, total: number, from: number): number;
  /** Turns a TCP segment that is no fragment into its reset; false for anything else, and a reset itself. */
  answer(frame: number, ip: number, total: number): boolean;
  /** Whether the NAT may have a packet that came back: it knows its flow, or does not make one of it. */
  mayReturn(frame: number, ip: number, total: number): boolean;
}

export function createMesh(context: Context, options: MeshOptions, to: MeshOutputs): Mesh {
  const { u16, off, len, domain, dest, ingress } = context.frames;
  const { flows, addresses, gateways, domains, neighbours, stations, timeouts } = options;
  const { words, seed, find } = flows;
  const { vni: vniOf } = domains;
  const { tunnel, bridge, ports, outside, again } = to;
  const { values } = context.counters;
  const drops = new Drops(context, 'mesh', REASONS);
  const { base } = context.counters.claim('mesh', COUNTERS);
  const resets = createResets(context);
  const translator = createErrorTranslator(context, { flows, ownerKey: MESH_KEY });
  const network = Int32Array.of(-1, 0);
  const origins = new Origins();
  const made = (): void => void values[base + MADE]++;
  const tracks = createTracks(context, { flows, gateways, timeouts, origins, made });
  const lost = (frame: number): void => drops.drop(frame, FRAGMENT);
  const ways = createWays(context, FRAGMENTS_V4, again, lost);
  const v4: MeshFamily = { neighbourOf, track, answer, mayReturn };
  const shared = { flows, neighbours, tracks, again, lost, resetStation };
  const v6 = addresses && createMeshV6(context, { ...shared, addresses });

  function forth(batch: Batch): void {
    for (let k = 0; k < batch.count; k++) {
      const frame = batch.frames[k];
      const w = off[frame] >>> 1;
      const low = (u16[w] | (u16[w + 1] << 16)) >>> 0;
      const at = stations.lookup(low, (u16[w + 2] | (domain[frame] << 16)) >>> 0);
      if (at !== UNKNOWN && at < REMOTE) bridge.push(frame);
      else send(frame, at === UNKNOWN ? FLOOD_VTEPS : at, FORTH);
    }
  }

  function send(frame: number, vtep: number, kind: number): void {
    const w = off[frame] >>> 1;
    const vni = vniOf[domain[frame]];
    u16[w] = (vtep === FLOOD_VTEPS ? GROUP : STATION) | ((vni >>> 8) & 0xff00);
    u16[w + 1] = swap16(vni & 0xffff);
    u16[w + 2] = kind << 8;
    u16[w + 3] = STATION | ((vni >>> 8) & 0xff00);
    u16[w + 4] = u16[w + 1];
    u16[w + 5] = 0;
    domain[frame] = network[0];
    ingress[frame] = GATEWAY_PORT;
    dest[frame] = vtep;
    values[base + (kind === FORTH ? SENT_FORTH : SENT_BACK)]++;
    tunnel.push(frame);
  }

  function arrived(batch: Batch): void {
    for (let k = 0; k < batch.count; k++) arrive(batch.frames[k]);
  }

  function arrive(frame: number): void {
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    const from = ingress[frame];
    const kind = u16[w + 2];
    const isV6 = v6 !== null && u16[w + 6] === ETHERTYPE_IPV6_LE;
    if (from < REMOTE || (u16[w] & 0xfe) !== STATION || (u16[w + 6] !== ETHERTYPE_IPV4_LE && !isV6)) {
      drops.drop(frame, NOT_MESH);
      return;
    }
    const dom = domains.find(((u16[w] & 0xff00) << 8) | swap16(u16[w + 1]));
    const left = len[frame] - ETHERNET_HEADER;
    const total = isV6 ? ipv6Length(u16, ip, left) : ipv4Length(u16, ip, left);
    if (dom < 0 || total === 0) {
      drops.drop(frame, total === 0 ? MALFORMED : NO_NETWORK);
      return;
    }
    domain[frame] = dom;
    const of = isV6 ? v6 : v4;
    if (kind === FORTH << 8) deliver(frame, ip, total, of, from);
    else if (kind === BACK << 8) comeBack(frame, ip, total, of, from);
    else drops.drop(frame, NOT_MESH);
  }

  function neighbourOf(dom: number, ip: number): number {
    const destination = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    return neighbours.lookup(dom, 0, 0, MAPPED_IPV4, destination);
  }

  /** Step 2. */
  function deliver(frame: number, ip: number, total: number, of: MeshFamily, from: number): void {
    const dom = domain[frame];
    const known = of.neighbourOf(dom, ip);
    const here = known === NO_NEIGHBOUR ? UNKNOWN : stationOf(dom, known);
    const port = here === UNKNOWN || here >= REMOTE ? null : ports[here];
    if (!port || (of === v4 ? gateways.used : gateways.used6)[dom] === 0) {
      drops.drop(frame, NOT_HERE);
      return;
    }
    const refused = of.track(frame, ip, total, from);
    if (refused >= 0) {
      // A client whose connection is another's here is told, or it would try the same backend again and again.
      if (refused === CONFLICT && of.answer(frame, ip, total)) sendReset(frame, from, BACK, refused);
      else drops.drop(frame, refused);
      return;
    }
    const w = off[frame] >>> 1;
    for (let i = 0; i < 3; i++) {
      u16[w + i] = neighbours.macWord(known, i);
      u16[w + 3 + i] = gateways.macs[dom * 3 + i];
    }
    values[base + TAKEN]++;
    port.push(frame);
  }

  /** Sends the reset that a refused segment has become to where that came from. */
  function sendReset(frame: number, from: number, kind: number, reason: number): void {
    drops.add(reason);
    values[base + RESETS]++;
    send(frame, from, kind);
  }

  function stationOf(dom: number, known: number): number {
    const low = (neighbours.macWord(known, 0) | (neighbours.macWord(known, 1) << 16)) >>> 0;
    return stations.lookup(low, (neighbours.macWord(known, 2) | (dom << 16)) >>> 0);
  }

  function track(frame: number, ip: number, _total: number, from: number): number {
    const header = (u16[ip] & 15) << 2;
    const t = ip + (header >>> 1);
    const protocol = u16[ip + IPV4_TTL_PROTOCOL] >>> 8;
    // The first one made the flow, and the node before this one has put them in order.
    if ((u16[ip + IPV4_FRAGMENT] & IPV4_OFFSET_LE) !== 0) return -1;
    if (protocol === PROTOCOL_ICMP) {
      const error =
        isError(u16[t] & 0xff) && translator.translate(frame, IN, ETHERNET_HEADER + header) === TRANSLATED;
      return error ? -1 : NOT_SERVED;
    }
    if (!hasRoom(ip, header, protocol)) return NOT_SERVED;
    const own = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    const remote = u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16);
    const pair = u16[t + 1] | (u16[t] << 16);
    const key = protocol | MESH_KEY | ((domain[frame] + 1) << 16);
    const flags = protocol === PROTOCOL_TCP ? u16[t + TCP_FLAGS] : 0;
    const ref = find(flowKeyHash(seed, own, remote, pair, key), own, remote, pair, key);
    if (ref === NO_FLOW) return tracks.make(own, remote, pair, key, flags, from);
    return tracks.inward((ref >>> 1) << FLOW_SHIFT, protocol, flags, from);
  }

  function hasRoom(ip: number, header: number, protocol: number): boolean {
    if (protocol !== PROTOCOL_TCP && protocol !== PROTOCOL_UDP) return false;
    return swap16(u16[ip + IPV4_LENGTH]) - header >= (protocol === PROTOCOL_TCP ? TCP_HEADER : UDP_HEADER);
  }

  function answer(frame: number, ip: number): boolean {
    const isTcp = u16[ip + IPV4_TTL_PROTOCOL] >>> 8 === PROTOCOL_TCP;
    const isWhole = (u16[ip + IPV4_FRAGMENT] & FRAGMENT_LE) === 0;
    return isTcp && isWhole && hasRoom(ip, (u16[ip] & 15) << 2, PROTOCOL_TCP) && resets.answer(frame);
  }

  /** Step 3. */
  function entryOf(frame: number, ip: number): number {
    if (network[0] < 0) return NO_NODE;
    const fragment = u16[ip + IPV4_FRAGMENT] & FRAGMENT_LE;
    if (fragment === 0) return wayOf(frame, ip);
    return fragment === MORE_FRAGMENTS_LE ? ways.first(frame, wayOf(frame, ip)) : ways.later(frame);
  }

  /** Of a connection that only the node knows which its client came by, all are asked. */
  function wayOf(frame: number, ip: number): number {
    const header = (u16[ip] & 15) << 2;
    const protocol = u16[ip + IPV4_TTL_PROTOCOL] >>> 8;
    if (protocol === PROTOCOL_ICMP) return wayOfError(frame, ip, header);
    if (!hasRoom(ip, header, protocol)) return NO_NODE;
    const t = ip + (header >>> 1);
    const own = u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16);
    const remote = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    const pair = u16[t] | (u16[t + 1] << 16);
    const key = protocol | MESH_KEY | ((domain[frame] + 1) << 16);
    const ref = find(flowKeyHash(seed, own, remote, pair, key), own, remote, pair, key);
    if (ref === NO_FLOW) {
      if (protocol !== PROTOCOL_TCP) return NO_NODE;
      if (tracks.hasEnded(own, remote, pair, key) && answer(frame, ip)) return resetStation(frame);
      const isLost = tracks.isLost(frame, t, ip + IPV4_SOURCE, 2);
      return isLost && !tracks.isKnown(own, remote, pair, key) ? FLOOD_VTEPS : NO_NODE;
    }
    const at = (ref >>> 1) << FLOW_SHIFT;
    tracks.outward(at, protocol, protocol === PROTOCOL_TCP ? u16[t + TCP_FLAGS] : 0);
    return words[at + NEXT_OF_PORT];
  }

  /** Gives a station the reset that its segment has become, of a connection that has ended here. */
  function resetStation(frame: number): number {
    const port = ports[ingress[frame]];
    if (port) {
      drops.add(WITHOUT_FLOW);
      values[base + RESETS]++;
      port.push(frame);
    } else drops.drop(frame, WITHOUT_FLOW);
    return WAITS;
  }

  /** An ICMP error goes where the client is whose packet it carries. */
  function wayOfError(frame: number, ip: number, header: number): number {
    if (!isIcmpError(ip, header)) return NO_NODE;
    const flow = translator.flowOf(frame, OUT, ETHERNET_HEADER + header);
    return flow < 0 ? NO_NODE : words[(flow << FLOW_SHIFT) + NEXT_OF_PORT];
  }

  function isIcmpError(ip: number, header: number): boolean {
    const room = swap16(u16[ip + IPV4_LENGTH]) - header;
    return room >= ICMP_HEADER && isError(u16[ip + (header >>> 1)] & 0xff);
  }

  function entryOfV6(frame: number, ip: number, total: number): number {
    return network[0] < 0 || v6 === null ? NO_NODE : v6.entryOf(frame, ip, total);
  }

  function mayReturn(frame: number, ip: number): boolean {
    const protocol = u16[ip + IPV4_TTL_PROTOCOL] >>> 8;
    const header = (u16[ip] & 15) << 2;
    // It follows its first one, or goes when that does not come.
    if ((u16[ip + IPV4_FRAGMENT] & FRAGMENT_LE & ~MORE_FRAGMENTS_LE) !== 0) return true;
    if (protocol === PROTOCOL_ICMP) return isIcmpError(ip, header);
    if (!hasRoom(ip, header, protocol)) return false;
    const t = ip + (header >>> 1);
    const own = u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16);
    const remote = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    const key = protocol | MESH_KEY | ((domain[frame] + 1) << 16);
    return tracks.isKnown(own, remote, u16[t] | (u16[t + 1] << 16), key);
  }

  /** Step 4. Without a flow it would get a port of its own, as what begins inside does. */
  function comeBack(frame: number, ip: number, total: number, of: MeshFamily, from: number): void {
    // What went to all nodes is known to another one.
    const isOurs = (u16[off[frame] >>> 1] & 0xff) === STATION;
    if (of.mayReturn(frame, ip, total)) {
      values[base + RETURNED]++;
      outside.push(frame);
    } else if (isOurs && of.answer(frame, ip, total)) sendReset(frame, from, FORTH, WITHOUT_FLOW);
    else drops.drop(frame, WITHOUT_FLOW);
  }

  return {
    drops,
    forth: { process: forth },
    arrived: { process: arrived },
    entryOf,
    entryOfV6,
    back: (frame, vtep) => send(frame, vtep, BACK),
    ingress: network,
    origins,
    expire(all) {
      ways.expire(all);
      v6?.expire(all);
    },
  };
}
