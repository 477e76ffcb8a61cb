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
 *   3. what the backend sends to that client by the gateway goes back to that node, not out here.
 * Where the client came in again:
 *   4. a packet that comes back goes to the uplink, if there is a flow that it belongs to.
 *
 * Inside the ingress network a frame's addresses say what it is: 06 (07 when it is for all), the VNI of the backend's
 * network, and in the last byte FORTH or BACK. Nobody learns them.
 *
 * IPv6 goes the same ways: mesh-v6.ts.
 *
 * Not handled: fragments but the first from a backend, which go out as its own.
 */
import { type Batch, type Consumer, type Context, Drops } from '../graph.js';
import { GATEWAY_PORT } from '../intent.js';
import { FLOOD_VTEPS, REMOTE } from '../memory/frames.js';
import type { Addresses6 } from '../tables/addresses6.js';
import {
  FIN_BOTH,
  MET_IN,
  NEW_IN,
  nextTcpState,
  SYN_IN,
  type Timeouts,
  TRANSITORY,
  TWO_SIDED,
  tcpTimeouts,
} from '../tables/connection.js';
import type { Domains } from '../tables/domains.js';
import {
  EXPIRY,
  FLOW_SHIFT,
  type Flows,
  flowKeyHash,
  IN,
  IN_DOMAIN,
  MESH_OWNER,
  NEXT_OF_PORT,
  NO_FLOW,
  OWNER_SHIFT,
  OWNERS,
  STATE,
  STATE_MASK,
  WHEEL_SECONDS,
} from '../tables/flows.js';
import type { Gateways } from '../tables/gateways.js';
import type { MacTable } from '../tables/mac-table.js';
import { UNKNOWN } from '../tables/mac-table.js';
import { MAPPED_IPV4, type Neighbours, NO_NEIGHBOUR } from '../tables/neighbours.js';
import { Origins } from '../tables/origins.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV4_LE, ETHERTYPE_IPV6_LE, swap16 } from '../wire/ethernet.js';
import { isError } from '../wire/icmp.js';
import {
  IPV4_DESTINATION,
  IPV4_FRAGMENT,
  IPV4_LENGTH,
  IPV4_SOURCE,
  IPV4_TTL_PROTOCOL,
  IPV6_NEXT_HOP,
  PROTOCOL_ICMP,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  UDP_HEADER,
} from '../wire/ip.js';
import { ipv4Length } from '../wire/ipv4-checks.js';
import { ipv6Length } from '../wire/ipv6.js';
import { RST_LE, SYN_LE, TCP_FLAGS, TCP_HEADER } from '../wire/tcp.js';
import { createResets } from './balancer/resets.js';
import { createMeshV6 } from './mesh-v6.js';
import { createErrorTranslator, TRANSLATED } from './nat/errors.js';

const REASONS = [
  'not-mesh',
  'malformed',
  'not-here',
  'no-network',
  'no-flow',
  'conflict',
  'table-full',
  'not-served',
] as const;
const [NOT_MESH, MALFORMED, NOT_HERE, NO_NETWORK, WITHOUT_FLOW, CONFLICT, TABLE_FULL, NOT_SERVED] =
  REASONS.keys();

const COUNTERS = ['forth', 'back', 'taken', 'returned', 'flows-made'] as const;
const [SENT_FORTH, SENT_BACK, TAKEN, RETURNED, MADE] = COUNTERS.keys();

/** First byte of addresses within the ingress network, and the last one. */
const STATION = 0x06;
const GROUP = 0x07;
/** Of a packet that answers nobody who came over the mesh. */
export const NO_NODE = -1;
const FORTH = 1;
const BACK = 2;

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
}

export interface Mesh {
  readonly drops: Drops;
  /** Step 1: packets for backends, whose Ethernet header is that to the station. */
  readonly forth: Consumer;
  /** Steps 2 and 4: frames that the bridge of the ingress network delivers. */
  readonly arrived: Consumer;
  /**
   * Step 3: the node by which the client came that a packet of a station answers, FLOOD_VTEPS when that is forgotten.
   * @param ip first word of its sound IP header, of a packet of `total` bytes when it is of IPv6. @returns REMOTE | VTEP, or NO_NODE when it came by none.
   */
  entryOf(frame: number, ip: number): number;
  entryOfV6(frame: number, ip: number, total: number): number;
  /** Sends such a packet back to that node. */
  back(frame: number, vtep: number): void;
  /** The domain of the ingress network, -1 without one, and the largest IP packet that it carries. */
  readonly ingress: Int32Array;
  readonly origins: Origins;
}

/** What becomes of flows of the mesh, whatever their family. Words of a flow begin at `at`; `flags` are TCP's. */
export interface Tracks {
  /** Makes a flow by a packet that came by a node. @returns a reason, or -1. */
  make(own: number, remote: number, pair: number, key: number, flags: number, from: number): number;
  /** A packet to the backend of a flow comes by a node. @returns a reason, or -1. */
  inward(at: number, protocol: number, flags: number, from: number): number;
  /** Whether a TCP packet without a flow goes to all nodes: its header begins at `t`, its address of words at `source`. */
  isLost(frame: number, t: number, source: number, length: number): boolean;
  /** A packet of the backend goes back. */
  outward(at: number, protocol: number, flags: number): void;
  /** Reasons. */
  readonly tableFull: number;
  readonly notServed: number;
}

/** Whether a connection in a state stands in nobody's way. */
function isOver(state: number): boolean {
  return state === FIN_BOTH || state === TRANSITORY || state === MET_IN;
}

export function createMesh(context: Context, options: MeshOptions, to: MeshOutputs): Mesh {
  const { u16, off, len, domain, dest, ingress } = context.frames;
  const { flows, addresses, gateways, domains, neighbours, stations, timeouts } = options;
  const { words, seed, find } = flows;
  const { vni: vniOf } = domains;
  const { tunnel, bridge, ports, outside } = to;
  // The node that has chosen the backend knows how long a connection may be silent; here it is never shorter.
  const tcp = tcpTimeouts({ ...timeouts, established: WHEEL_SECONDS - 1 });
  const { values } = context.counters;
  const drops = new Drops(context, 'mesh', REASONS);
  const { base } = context.counters.claim('mesh', COUNTERS);
  const ownerKey = (MESH_OWNER << OWNER_SHIFT) | IN_DOMAIN;
  const resets = createResets(context);
  const translator = createErrorTranslator(context, { flows, ownerKey });
  const network = Int32Array.of(-1, 0);
  const origins = new Origins();
  const tracks: Tracks = {
    make,
    inward,
    isLost,
    outward: (at, protocol, flags) => advance(at, protocol, false, flags),
    tableFull: TABLE_FULL,
    notServed: NOT_SERVED,
  };
  const v6 = addresses && createMeshV6(context, { flows, addresses, gateways, neighbours, tracks });

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
    if (kind === FORTH << 8) {
      if (isV6) deliver(frame, ip, v6.neighbourOf(dom, ip), from, total);
      else deliver(frame, ip, neighbourOf(dom, ip), from, 0);
    } else if (kind === BACK << 8) comeBack(frame, isV6 ? v6.isKnown(frame, ip, total) : isKnown(frame, ip));
    else drops.drop(frame, NOT_MESH);
  }

  function neighbourOf(dom: number, ip: number): number {
    const destination = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    return neighbours.lookup(dom, 0, 0, MAPPED_IPV4, destination);
  }

  /** Step 2. @param known the station it is for. @param total bytes of a packet of IPv6, 0 for IPv4. */
  function deliver(frame: number, ip: number, known: number, from: number, total: number): void {
    const dom = domain[frame];
    const here = known === NO_NEIGHBOUR ? UNKNOWN : stationOf(dom, known);
    const port = here === UNKNOWN || here >= REMOTE ? null : ports[here];
    if (!port || (total === 0 ? gateways.used : gateways.used6)[dom] === 0) {
      drops.drop(frame, NOT_HERE);
      return;
    }
    const refused = total === 0 ? track(frame, ip, from) : v6!.track(frame, ip, total, from);
    if (refused >= 0) {
      refuse(frame, ip, from, refused, total === 0);
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

  /** A client whose connection is another's here is told, or it would try the same backend again and again. */
  function refuse(frame: number, ip: number, from: number, reason: number, isV4: boolean): void {
    const isTcp = isV4
      ? u16[ip + IPV4_TTL_PROTOCOL] >>> 8 === PROTOCOL_TCP
      : (u16[ip + IPV6_NEXT_HOP] & 0xff) === PROTOCOL_TCP;
    if (reason !== CONFLICT || !isTcp || !(isV4 ? resets.answer(frame) : v6!.answer(frame, ip)))
      drops.drop(frame, reason);
    else {
      drops.add(CONFLICT);
      send(frame, from, BACK);
    }
  }

  function stationOf(dom: number, known: number): number {
    const low = (neighbours.macWord(known, 0) | (neighbours.macWord(known, 1) << 16)) >>> 0;
    return stations.lookup(low, (neighbours.macWord(known, 2) | (dom << 16)) >>> 0);
  }

  /** Finds or makes the flow of a packet to a backend. @returns a reason, or -1. */
  function track(frame: number, ip: number, from: number): number {
    const header = (u16[ip] & 15) << 2;
    const t = ip + (header >>> 1);
    const protocol = u16[ip + IPV4_TTL_PROTOCOL] >>> 8;
    // The first one made the flow, and the node before this one has put them in order.
    if ((u16[ip + IPV4_FRAGMENT] & 0xff1f) !== 0) return -1;
    if (protocol === PROTOCOL_ICMP) {
      const error =
        isError(u16[t] & 0xff) && translator.translate(frame, IN, ETHERNET_HEADER + header) === TRANSLATED;
      return error ? -1 : NOT_SERVED;
    }
    if (!hasRoom(ip, header, protocol)) return NOT_SERVED;
    const own = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    const remote = u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16);
    const pair = u16[t + 1] | (u16[t] << 16);
    const key = protocol | ownerKey | ((domain[frame] + 1) << 16);
    const flags = protocol === PROTOCOL_TCP ? u16[t + TCP_FLAGS] : 0;
    const ref = find(flowKeyHash(seed, own, remote, pair, key), own, remote, pair, key);
    if (ref === NO_FLOW) return make(own, remote, pair, key, flags, from);
    return inward((ref >>> 1) << FLOW_SHIFT, protocol, flags, from);
  }

  function inward(at: number, protocol: number, flags: number, from: number): number {
    if (words[at + NEXT_OF_PORT] !== from) {
      // The client comes by another node: as a new connection once the old one is over, else to another backend.
      const over = isOver(words[at + STATE]) && (flags & SYN_LE) !== 0;
      if (protocol === PROTOCOL_TCP && !over) return CONFLICT;
      words[at + NEXT_OF_PORT] = from;
    }
    advance(at, protocol, true, flags);
    return -1;
  }

  function hasRoom(ip: number, header: number, protocol: number): boolean {
    if (protocol !== PROTOCOL_TCP && protocol !== PROTOCOL_UDP) return false;
    return swap16(u16[ip + IPV4_LENGTH]) - header >= (protocol === PROTOCOL_TCP ? TCP_HEADER : UDP_HEADER);
  }

  function make(own: number, remote: number, pair: number, key: number, flags: number, from: number): number {
    const protocol = key & 0xff;
    if (protocol === PROTOCOL_TCP && (flags & RST_LE) !== 0) return WITHOUT_FLOW;
    if (isTakenHere(own, remote, pair, key)) return CONFLICT;
    const flow = flows.obtain(own, remote, pair, key, own, pair, () => {});
    if (flow === NO_FLOW) return TABLE_FULL;
    const at = flow << FLOW_SHIFT;
    // What is no SYN belongs to a connection that ended, and the backend resets it; it must not stand in the way.
    const state = protocol !== PROTOCOL_TCP ? NEW_IN : (flags & SYN_LE) !== 0 ? SYN_IN : MET_IN;
    words[at + STATE] = state;
    words[at + NEXT_OF_PORT] = from;
    flows.setExpiry(flow, context.seconds + (protocol === PROTOCOL_TCP ? tcp[state] : timeouts.udp));
    values[base + MADE]++;
    return -1;
  }

  /** Finds the flow with these ends that the NAT of the network's uplink has. @param key as the mesh's flows have it. */
  function findHere(own: number, remote: number, pair: number, key: number): number {
    const uplink = gateways.uplink[(key >>> 16) - 1];
    if (uplink < 0) return NO_FLOW;
    const outer = (key & ~(IN_DOMAIN | ((OWNERS - 1) << OWNER_SHIFT))) | (uplink << OWNER_SHIFT);
    return find(flowKeyHash(seed, own, remote, pair, outer), own, remote, pair, outer);
  }

  /** Whether the client has come to this backend by an uplink of this node, with the same ports, and that goes on. */
  function isTakenHere(own: number, remote: number, pair: number, key: number): boolean {
    const ref = findHere(own, remote, pair, key);
    return ref !== NO_FLOW && !isOver(words[((ref >>> 1) << FLOW_SHIFT) + STATE] & STATE_MASK);
  }

  function advance(at: number, protocol: number, inward: boolean, flags: number): void {
    if (protocol !== PROTOCOL_TCP) {
      if (!inward) words[at + STATE] = TWO_SIDED;
      words[at + EXPIRY] = context.seconds + timeouts.udp;
      return;
    }
    const state = words[at + STATE];
    const next = nextTcpState(state, inward, flags);
    words[at + STATE] = next;
    const expiry = context.seconds + tcp[next];
    if (expiry < words[at + EXPIRY]) flows.hasten(at >>> FLOW_SHIFT, expiry);
    else words[at + EXPIRY] = expiry;
  }

  /** Whether a TCP packet is of a connection to a backend that was here before this process. */
  function isLost(frame: number, t: number, source: number, length: number): boolean {
    if ((u16[t + TCP_FLAGS] & (SYN_LE | RST_LE)) !== 0) return false;
    return origins.has(u16, source, length, domain[frame], u16[t]);
  }

  /** Step 3. Of a connection that only the node knows which its client came by, all are asked. */
  function entryOf(frame: number, ip: number): number {
    if (network[0] < 0) return NO_NODE;
    const header = (u16[ip] & 15) << 2;
    const protocol = u16[ip + IPV4_TTL_PROTOCOL] >>> 8;
    if ((u16[ip + IPV4_FRAGMENT] & 0xff1f) !== 0 || !hasRoom(ip, header, protocol)) return NO_NODE;
    const t = ip + (header >>> 1);
    const own = u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16);
    const remote = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    const pair = u16[t] | (u16[t + 1] << 16);
    const key = protocol | ownerKey | ((domain[frame] + 1) << 16);
    const ref = find(flowKeyHash(seed, own, remote, pair, key), own, remote, pair, key);
    if (ref === NO_FLOW) {
      const lost = protocol === PROTOCOL_TCP && isLost(frame, t, ip + IPV4_SOURCE, 2);
      return lost && !isKnown(frame, ip) ? FLOOD_VTEPS : NO_NODE;
    }
    const at = (ref >>> 1) << FLOW_SHIFT;
    advance(at, protocol, false, protocol === PROTOCOL_TCP ? u16[t + TCP_FLAGS] : 0);
    return words[at + NEXT_OF_PORT];
  }

  function entryOfV6(frame: number, ip: number, total: number): number {
    return network[0] < 0 || v6 === null ? NO_NODE : (v6.entryOf(frame, ip, total) ?? NO_NODE);
  }

  /** Whether a packet of a backend answers somebody who came in here. */
  function isKnown(frame: number, ip: number): boolean {
    const protocol = u16[ip + IPV4_TTL_PROTOCOL] >>> 8;
    const header = (u16[ip] & 15) << 2;
    const t = ip + (header >>> 1);
    const key = protocol | ownerKey | ((domain[frame] + 1) << 16);
    const own = u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16);
    const remote = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    const pair = u16[t] | (u16[t + 1] << 16);
    return hasRoom(ip, header, protocol) && findHere(own, remote, pair, key) !== NO_FLOW;
  }

  /** Step 4. Without a flow it would get a port of its own, as what begins inside does. */
  function comeBack(frame: number, known: boolean): void {
    if (!known) {
      drops.drop(frame, WITHOUT_FLOW);
      return;
    }
    values[base + RETURNED]++;
    outside.push(frame);
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
  };
}
