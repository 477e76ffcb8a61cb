/**
 * Which packets without a flow get one: the first of each is admitted or refused here.
 *
 * From inside: the endpoint gets a port of the external address, the one it has already if it has one; a packet to the
 * external address itself finds its way back in by that (hairpinning, RFC 4787, REQ-9).
 * From outside: to a published port, always; to a port that stands for an endpoint, when that endpoint has a flow to
 * the sender's address (address-dependent filtering, REQ-8); else refused.
 *
 * Packets of routed domains keep their addresses and ports: such a flow has the same ends inside and outside, and only
 * what belongs to it enters. To the external address itself they are translated as all others are.
 *
 * TCP without SYN makes a flow too where a SYN would, which the other side must answer: so connections live on when
 * the table was lost; but not one to a service that was ended on purpose. An RST never makes one, nor does an ICMP reply.
 */
import type { Context } from '../../graph.js';
import {
  FIN_BOTH,
  isState,
  MET_IN,
  MET_OUT,
  NEW_IN,
  NEW_OUT,
  SYN_IN,
  SYN_OUT,
} from '../../tables/connection.js';
import { EVICTED } from '../../tables/flow-events.js';
import { outerKey } from '../../tables/flow-finder.js';
import {
  EXPIRY,
  EXTERNAL,
  FLOW_SHIFT,
  flowKeyHash,
  IN_PORTS,
  INSIDE,
  NEXT_OF_PORT,
  NO_FLOW,
  OUT_KEY,
  OUT_PORTS,
  PREVIOUS_OF_PORT,
  REMOTE_END,
  STATE,
  STATE_MASK,
} from '../../tables/flows.js';
import { NO_PORT, SPACE_TCP } from '../../tables/port-mappings.js';
import { swap16 } from '../../wire/ethernet.js';
import { PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP } from '../../wire/ip.js';
import { RST_LE, SYN_LE } from '../../wire/tcp.js';
import { type NatTables, spaceOf } from './tables.js';

/** Flows of one port, newest first, that are looked at for one to the sender's address: some microseconds. */
const MOST_LOOKED_AT = 128;
/**
 * Ports of each parity that are tried for one flow, where ports may be shared by flows to other remote ends; and in all
 * where one is looked for whose connection is over.
 */
const MOST_TRIED = 64;

export interface FlowMaker {
  /**
   * Makes the flow of a packet from inside.
   * @param flags TCP's, 0 for others.
   * @returns its number, or -1 - reason.
   */
  outward(own: number, remote: number, ports: number, key: number, flags: number): number;
  /** The same for a packet from outside. */
  inward(own: number, remote: number, ports: number, key: number, flags: number): number;
}

/** Reasons of `nat`, in the order that `FlowMaker` counts on. */
export const FLOW_REASONS = [
  'no-flow',
  'not-published',
  'filtered',
  'no-port',
  'table-full',
  'no-backend',
] as const;
const [NO_SUCH_FLOW, NOT_PUBLISHED, FILTERED, NO_FREE_PORT, TABLE_FULL, NO_BACKEND] = FLOW_REASONS.keys();

/** Whether a reason is that there is not enough of something. */
export function isShortage(reason: number): boolean {
  return reason === NO_FREE_PORT || reason === TABLE_FULL;
}

/** Whether a reason is that a service has nobody who may be chosen. */
export function isWithoutBackend(reason: number): boolean {
  return reason === NO_BACKEND;
}

/** @param evicted called for each flow that has to make room. */
export function createFlowMaker(context: Context, tables: NatTables, evicted: () => void): FlowMaker {
  const { flows, ports, external, independent, timeouts, tcpTimeouts, published, firstOfPort } = tables;
  const { routed, ownerKey, addresses } = tables;
  const { words } = flows;
  const { endpoint: endpoints, inside: insides } = ports;

  function timeout(flow: number): number {
    const at = flow << FLOW_SHIFT;
    const protocol = words[at + OUT_KEY] & 0xff;
    if (protocol === PROTOCOL_TCP) return tcpTimeouts[words[at + STATE] & STATE_MASK];
    if (protocol === PROTOCOL_UDP) return timeouts.udp;
    return protocol === PROTOCOL_ICMP ? timeouts.icmp : timeouts.other;
  }

  function outward(own: number, remote: number, pair: number, key: number, flags: number): number {
    const protocol = key & 0xff;
    if (protocol === PROTOCOL_TCP && (flags & RST_LE) !== 0) return -1 - NO_SUCH_FLOW;
    const state = protocol === PROTOCOL_TCP ? ((flags & SYN_LE) !== 0 ? SYN_OUT : MET_OUT) : NEW_OUT;
    if (routed[(key >>> 16) - 1] === 1 && remote !== external)
      return make(own, remote, pair, key, own, pair, state);
    const space = spaceOf(protocol);
    const endpoint = (pair & 0xffff) | (key & ~0xffff);
    let port = 0;
    if (space >= 0) {
      port = independent ? independentPort(space, own, endpoint) : sharedPort(space, protocol, remote, pair);
      if (port === NO_PORT) return -1 - NO_FREE_PORT;
    } else if (taken(protocol, remote, pair)) return -1 - NO_FREE_PORT;
    const inPorts = (pair & ~0xffff) | (space >= 0 ? swap16(port) : pair & 0xffff);
    return make(own, remote, pair, key, external, inPorts, state);
  }

  /** The port that stands for an endpoint whatever it talks to. */
  function independentPort(space: number, own: number, endpoint: number): number {
    const known = ports.find(space, own, endpoint);
    if (known !== NO_PORT) return known;
    const port = ports.allocate(space, own, endpoint, swap16(endpoint & 0xffff));
    if (port !== NO_PORT || space !== SPACE_TCP || !endClosed()) return port;
    return ports.allocate(space, own, endpoint, swap16(endpoint & 0xffff));
  }

  /**
   * Ends a connection that both sides have closed and that has a port for itself: of some, the one that is over longest.
   * Connections that come and go would else be as many as there are ports in four minutes.
   * @returns false when there is none.
   */
  function endClosed(): boolean {
    let best = NO_FLOW;
    for (let i = 0; i < MOST_TRIED; i++) {
      const flow = firstOfPort[(SPACE_TCP << 16) | ports.anyOf(i & 1)];
      const at = flow << FLOW_SHIFT;
      if (flow === NO_FLOW || words[at + STATE] !== FIN_BOTH || words[at + NEXT_OF_PORT] !== NO_FLOW)
        continue;
      if (best === NO_FLOW || words[at + EXPIRY] < words[(best << FLOW_SHIFT) + EXPIRY]) best = flow;
    }
    if (best === NO_FLOW) return false;
    flows.end(best, EVICTED);
    evicted();
    return true;
  }

  /** A port that no other flow to the same remote end has: the one inside, or one of its parity, or another. */
  function sharedPort(space: number, protocol: number, remote: number, pair: number): number {
    const own = swap16(pair & 0xffff);
    const ends = pair & ~0xffff;
    const given = own >= ports.first && own <= ports.last;
    if (given && usable(space, own) && !taken(protocol, remote, ends | swap16(own))) return own;
    for (let other = 0; other < 2; other++) {
      let port = ports.anyOf((own & 1) ^ other);
      for (let i = 0; i < MOST_TRIED; i++) {
        if (usable(space, port) && !taken(protocol, remote, ends | swap16(port))) return port;
        port = ports.after(port);
      }
    }
    return NO_PORT;
  }

  function usable(space: number, port: number): boolean {
    return published[(space << 16) | port] === 0;
  }

  /** Whether some flow has these ends outside. */
  function taken(protocol: number, remote: number, pair: number): boolean {
    const key = protocol | ownerKey;
    const hash = flowKeyHash(flows.seed, external, remote, pair, key);
    return flows.find(hash, external, remote, pair, key) !== NO_FLOW;
  }

  function inward(own: number, remote: number, pair: number, outer: number, flags: number): number {
    const protocol = outer & 0xff;
    const space = spaceOf(protocol);
    const at = (space << 16) | swap16(pair & 0xffff);
    if (protocol === PROTOCOL_ICMP || (protocol === PROTOCOL_TCP && (flags & RST_LE) !== 0))
      return -1 - NO_SUCH_FLOW;
    if (own !== external || space < 0) return -1 - NOT_PUBLISHED;
    if (published[at] === 0 && protocol === PROTOCOL_TCP && hasEnded(remote, pair, outer))
      return -1 - NO_BACKEND;
    if (endpoints[at] === 0) return -1 - NOT_PUBLISHED;
    if (published[at] === 0 && !knows(at, remote)) return -1 - FILTERED;
    const endpoint = endpoints[at];
    const outPorts = (pair & ~0xffff) | (endpoint & 0xffff);
    const state = protocol === PROTOCOL_TCP ? ((flags & SYN_LE) !== 0 ? SYN_IN : MET_IN) : NEW_IN;
    const key = (endpoint & ~0xffff) | outer;
    if (tables.balanced !== null && tables.balanced[at] !== 0)
      return balanced(tables.balanced[at] - 1, remote, outPorts, key, pair, state);
    // An endpoint that is published twice, or that had a port before, may have a flow to this very end already.
    const hash = flowKeyHash(flows.seed, insides[at], remote, outPorts, key);
    if (flows.find(hash, insides[at], remote, outPorts, key) !== NO_FLOW) return -1 - NO_FREE_PORT;
    return make(insides[at], remote, outPorts, key, external, pair, state);
  }

  /** A flow to the backend of a service that is chosen for it. */
  function balanced(
    service: number,
    remote: number,
    outPorts: number,
    key: number,
    pair: number,
    state: number,
  ): number {
    const { balancing } = tables;
    if (state === MET_IN && hasEnded(remote, pair, key)) return -1 - NO_BACKEND;
    const backend = balancing === null ? -1 : balancing.backendFor(service, remote, outPorts, key);
    if (balancing === null || backend < 0) return -1 - NO_BACKEND;
    const flow = make(balancing.addressOf(backend), remote, outPorts, key, external, pair, state);
    if (flow >= 0) balancing.begin(flow, backend);
    return flow;
  }

  /** Whether packets from outside are of a connection that was ended, so that nothing begins by them. */
  function hasEnded(remote: number, pair: number, key: number): boolean {
    return flows.ended.has(flowKeyHash(flows.seed, external, remote, pair, outerKey(key)));
  }

  /** Whether a port's endpoint has a flow to this address. */
  function knows(at: number, remote: number): boolean {
    let flow = firstOfPort[at];
    for (let i = 0; flow !== NO_FLOW && i < MOST_LOOKED_AT; i++) {
      if (words[(flow << FLOW_SHIFT) + REMOTE_END] === remote) return true;
      flow = words[(flow << FLOW_SHIFT) + NEXT_OF_PORT];
    }
    return false;
  }

  function make(
    inside: number,
    remote: number,
    outPorts: number,
    key: number,
    outside: number,
    inPorts: number,
    state: number,
  ): number {
    const port = portOf(key, inside, outside, inPorts);
    // Before anything else: the flow that makes room may be the last one of this very port.
    if (port >= 0 && independent) ports.use(port >>> 16, port & 0xffff);
    addresses?.keep(inside);
    addresses?.keep(remote);
    const flow = flows.obtain(inside, remote, outPorts, key, outside, inPorts, evicted);
    if (flow === NO_FLOW) {
      addresses?.release(inside);
      addresses?.release(remote);
      if (port >= 0 && independent) ports.release(port >>> 16, port & 0xffff);
      return -1 - TABLE_FULL;
    }
    words[(flow << FLOW_SHIFT) + STATE] = state;
    flows.setExpiry(flow, context.seconds + timeout(flow));
    if (port >= 0) link(flow, port);
    return flow;
  }

  /** Index of a flow's external port in `firstOfPort`; -1 when no port is translated. */
  function portOf(key: number, inside: number, outside: number, inPorts: number): number {
    const space = spaceOf(key & 0xff);
    return space < 0 || inside === outside ? -1 : (space << 16) | swap16(inPorts & 0xffff);
  }

  function link(flow: number, port: number): void {
    const next = firstOfPort[port];
    words[(flow << FLOW_SHIFT) + NEXT_OF_PORT] = next;
    if (next !== NO_FLOW) words[(next << FLOW_SHIFT) + PREVIOUS_OF_PORT] = flow;
    firstOfPort[port] = flow;
  }

  function leave(flow: number): void {
    const at = flow << FLOW_SHIFT;
    if (words[at + STATE] > STATE_MASK) tables.balancing?.leave(flow);
    leavePort(at);
    addresses?.release(words[at + INSIDE]);
    addresses?.release(words[at + REMOTE_END]);
  }

  function leavePort(at: number): void {
    const port = portOf(words[at + OUT_KEY], words[at + INSIDE], words[at + EXTERNAL], words[at + IN_PORTS]);
    if (port < 0) return;
    const next = words[at + NEXT_OF_PORT];
    const previous = words[at + PREVIOUS_OF_PORT];
    if (previous === NO_FLOW) firstOfPort[port] = next;
    else words[(previous << FLOW_SHIFT) + NEXT_OF_PORT] = next;
    if (next !== NO_FLOW) words[(next << FLOW_SHIFT) + PREVIOUS_OF_PORT] = previous;
    if (independent) ports.release(port >>> 16, port & 0xffff);
  }

  /** A flow that another process left: what `make` does for one, if all of it adds up. */
  function adopt(flow: number): boolean {
    const at = flow << FLOW_SHIFT;
    const key = words[at + OUT_KEY];
    const [inside, outside] = [words[at + INSIDE], words[at + EXTERNAL]];
    const [outPorts, inPorts] = [words[at + OUT_PORTS], words[at + IN_PORTS]];
    words[at + NEXT_OF_PORT] = NO_FLOW;
    words[at + PREVIOUS_OF_PORT] = NO_FLOW;
    const keeps = routed[(key >>> 16) - 1] === 1 && inside === outside;
    if (!keeps && outside !== external) return false;
    const port = portOf(key, inside, outside, inPorts);
    const served = words[at + STATE] > STATE_MASK;
    const backend = served ? servedBy(port, inside) : -1;
    if (served && backend < 0) return false;
    words[at + STATE] &= STATE_MASK;
    if (!isState((key & 0xff) === PROTOCOL_TCP, words[at + STATE])) return false;
    // Of both sides it has the same remote port, and, where none is translated, the same ports.
    if (((outPorts ^ inPorts) & (port < 0 ? -1 : ~0xffff)) !== 0) return false;
    if (port >= 0) {
      if (served && independent) ports.use(port >>> 16, port & 0xffff);
      else if (independent && !claim(port, inside, (outPorts & 0xffff) | (key & ~0xffff))) return false;
      link(flow, port);
    }
    addresses?.keep(inside);
    addresses?.keep(words[at + REMOTE_END]);
    if (served) tables.balancing?.begin(flow, backend);
    return true;
  }

  /** The backend with an address of the service that a port is published for; below 0 when there is none. */
  function servedBy(port: number, inside: number): number {
    const service = port < 0 ? 0 : (tables.balanced?.[port] ?? 0);
    return service === 0 || tables.balancing === null ? -1 : tables.balancing.backendAt(service - 1, inside);
  }

  /** Takes a port for an endpoint, unless it is another one's. */
  function claim(port: number, inside: number, endpoint: number): boolean {
    const [space, number] = [port >>> 16, port & 0xffff];
    const same = endpoints[port] === endpoint && insides[port] === inside;
    if (!same && !ports.claim(space, inside, endpoint, number)) return false;
    ports.use(space, number);
    return true;
  }

  function over(flow: number): number {
    if (words[(flow << FLOW_SHIFT) + STATE] > STATE_MASK) tables.balancing?.expired(flow);
    return 0;
  }

  flows.own(tables.owner, { over, leave, adopt }, addresses !== null);
  return { outward, inward };
}
