/**
 * `balance-v6`: gives the packets of a service to its backends over IPv6, as balancer.ts does it for IPv4, in the same
 * flow table: addresses stand there by their numbers (see Addresses6), and keys say that they are of IPv6. Chooser,
 * ends of flows and fragments are shared.
 *
 * One packet after the other, as in nat-v6.ts. Neighbour Solicitations to a virtual address pass, for the station that
 * it is on its link answers them; echo is answered here.
 *
 * Not handled: fragments of a backend that overtake their first one.
 */
import { type Batch, type Context, Drops } from '../graph.js';
import { BALANCER_PORT } from '../intent.js';
import { NO_FRAME, OFFLOAD_NEEDS_CSUM, REMOTE } from '../memory/frames.js';
import { type Addresses6, NO_ADDRESS } from '../tables/addresses6.js';
import {
  ESTABLISHED,
  isOpening,
  NEW_IN,
  type Timeouts,
  TURNING_FLAGS,
  TWO_SIDED,
} from '../tables/connection.js';
import {
  BALANCER_OWNER,
  EXPIRY,
  EXTERNAL,
  FLOW_SHIFT,
  type Flows,
  flowKeyHash,
  IN,
  IN_DOMAIN,
  IN_PORTS,
  INSIDE,
  IPV6_FLOW,
  NO_FLOW,
  OUT,
  OUT_PORTS,
  OWNER_SHIFT,
  PACKETS_IN,
  PACKETS_OUT,
  REMOTE_END,
  STATE,
  STATE_MASK,
} from '../tables/flows.js';
import type { Neighbours } from '../tables/neighbours.js';
import {
  IPV6_SPACE,
  MAY_BE_BACKEND,
  MAY_BE_VIRTUAL,
  type Services,
  VIRTUAL_MAC_LE,
} from '../tables/services.js';
import { pair as pairAt } from '../wire/arp.js';
import { ETHERNET_HEADER } from '../wire/ethernet.js';
import { ADDRESS_UNREACHABLE, PORT_UNREACHABLE_V6, UNREACHABLE_V6 } from '../wire/icmpv6.js';
import {
  IPV6_DESTINATION,
  IPV6_HEADER,
  IPV6_NEXT_HOP,
  IPV6_SOURCE,
  PROTOCOL_ICMPV6,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  UDP_HEADER,
} from '../wire/ip.js';
import { FIRST_OF_FRAGMENTS, ipv6Length, LATER_FRAGMENT_V6, upperLayer } from '../wire/ipv6.js';
import { TCP_FLAGS, TCP_HEADER } from '../wire/tcp.js';
import {
  BALANCE_REASONS,
  CONFLICT,
  createChooser,
  NO_SERVICE_THERE,
  NO_SUCH_FLOW,
  TABLE_FULL,
  WITHOUT_BACKEND,
} from './balancer/chooser.js';
import { createEndings } from './balancer/endings.js';
import { createLife } from './balancer/life.js';
import { createOddV6 } from './balancer/odd-v6.js';
import { type Checks, isProbePort } from './balancer/relay.js';
import { createResetsV6 } from './balancer/resets-v6.js';
import type { Icmpv6Errors } from './icmpv6-errors.js';
import { ERROR_REASONS } from './nat/errors.js';
import { replaceAddressV6, replacePortV6 } from './nat/packet-v6.js';
import { type Balancing, makesWay } from './nat/tables.js';

const REASONS = [...BALANCE_REASONS, ...ERROR_REASONS, 'malformed', 'not-served', 'fragment'] as const;
const FIRST_ERROR = BALANCE_REASONS.length;
const MALFORMED = REASONS.indexOf('malformed');
const NOT_SERVED = REASONS.indexOf('not-served');
const FRAGMENT = REASONS.indexOf('fragment');

const COUNTERS = [
  'to-backends',
  'from-backends',
  'flows-made',
  'flows-evicted',
  'resets',
  'echo-answered',
] as const;
const [INWARD, OUTWARD, MADE, EVICTED, RESETS, ECHO_ANSWERED] = COUNTERS.keys();

export interface BalancerV6Options {
  readonly flows: Flows;
  readonly addresses: Addresses6;
  /** Made with the same addresses. */
  readonly services: Services;
  readonly neighbours: Neighbours;
  readonly timeouts: Timeouts;
  readonly errors: Icmpv6Errors;
  /** Absent where no backends are checked. */
  readonly checks?: Checks;
  /** Takes what leaves through the NAT that owns a flow, by its number. */
  readonly outside: (owner: number) => Batch;
  /** Takes what is for a backend as if it was let in from outside. */
  readonly inside: Batch;
}

export interface BalancerV6 {
  /** Chooses for those who come from outside, too. */
  readonly balancing: Balancing;
  readonly drops: Drops;
  /** Takes a frame of IPv6, of a domain that has services. */
  packet(frame: number): void;
  /** The same as of IPv4, whose balancer lets flows of both go. */
  age(): void;
  end(backend: number): void;
  sweep(): boolean;
  /** Gives up the fragments that wait. */
  flush(): void;
}

/** @param out takes what passes, to the bridge. */
export function createBalancerV6(context: Context, options: BalancerV6Options, out: Batch): BalancerV6 {
  const { frames } = context;
  const { u16, off, len, domain, ingress, mark, offload, csumStart } = frames;
  const { flows, addresses, services, neighbours, timeouts, errors, checks } = options;
  const { words, doubles, seed, find } = flows;
  const { backends, macs, idle, keeps } = services;
  const { packets, bytes } = backends;
  const { values } = context.counters;
  const drops = new Drops(context, 'balance-v6', REASONS);
  const { base } = context.counters.claim('balance-v6', COUNTERS);
  const ownerKey = (BALANCER_OWNER << OWNER_SHIFT) | IN_DOMAIN | IPV6_FLOW;
  const evicted = (): void => void values[base + EVICTED]++;
  const chooser = createChooser(context, { flows, services, timeouts, evicted, addresses });
  const resets = createResetsV6(context, addresses);
  const { probe } = resets;
  const { outside, inside } = options;
  const ends = { flows, services, probe, neighbours, outside, inside, addresses };
  const endings = createEndings(context, ends, out);
  const life = createLife(context, { flows, services, timeouts, chooser, endings });
  const places = { fragment: FRAGMENT, notServed: NOT_SERVED, firstError: FIRST_ERROR };
  const answered = (): void => void values[base + ECHO_ANSWERED]++;
  const shared = { flows, addresses, ownerKey, services, neighbours, checks, drops, ...places, answered };
  const odd = createOddV6(context, shared, out);
  /** The same memory as 16-bit words. */
  const halves = new Uint16Array(
    addresses.words.buffer,
    addresses.words.byteOffset,
    addresses.words.length * 2,
  );

  function packet(frame: number): void {
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    const space = domain[frame] | IPV6_SPACE;
    if (len[frame] < ETHERNET_HEADER + IPV6_HEADER) {
      out.push(frame);
      return;
    }
    if (mark[frame] !== 0) {
      marked(frame, ip);
      return;
    }
    const called = addresses.find(u16, ip + IPV6_DESTINATION);
    if (called !== NO_ADDRESS && (services.filter(space, called) & MAY_BE_VIRTUAL) !== 0)
      if (services.isVirtual(space, called)) {
        inward(frame, ip, called);
        return;
      }
    const sender = addresses.find(u16, ip + IPV6_SOURCE);
    const may = sender === NO_ADDRESS ? 0 : services.filter(space, sender);
    if ((may & MAY_BE_VIRTUAL) !== 0 && checks?.fromVirtual(frame)) return;
    // An ICMPv6 error may be about a marked address.
    const isIcmp = (u16[ip + IPV6_NEXT_HOP] & 0xff) === PROTOCOL_ICMPV6;
    if ((may & MAY_BE_BACKEND) === 0 && !isIcmp) out.push(frame);
    else outward(frame, ip, sender);
  }

  /** A packet that a mark leads here: its destination need not be one that somebody holds. */
  function marked(frame: number, ip: number): void {
    const own = addresses.hold(u16, ip + IPV6_DESTINATION);
    if (own === NO_ADDRESS) {
      drops.drop(frame, TABLE_FULL);
      return;
    }
    inward(frame, ip, own);
    addresses.release(own);
  }

  /** Whether another host has chosen the backend already: by its address, or its MAC where a service is direct. */
  function isChosen(frame: number, own: number): boolean {
    const space = domain[frame] | IPV6_SPACE;
    if (mark[frame] !== 0 && chooser.isBackend(space, mark[frame], own)) return true;
    if (u16[off[frame] >>> 1] === VIRTUAL_MAC_LE) return false;
    if (!services.isDirect(space, own, mark[frame])) return false;
    checks?.note(frame);
    return true;
  }

  /** A packet to a service, at the address whose number is given. */
  function inward(frame: number, ip: number, own: number): void {
    if (ingress[frame] >= REMOTE && isChosen(frame, own)) {
      out.push(frame);
      return;
    }
    const total = ipv6Length(u16, ip, len[frame] - ETHERNET_HEADER);
    const upper = total === 0 ? -1 : upperLayer(u16, ip, total);
    if (upper < 0) {
      drops.drop(frame, MALFORMED);
      return;
    }
    len[frame] = ETHERNET_HEADER + total;
    const protocol = (upper >>> 16) & 0xff;
    const left = total - (upper & 0xffff);
    if ((upper & LATER_FRAGMENT_V6) !== 0) odd.later(frame, IN, own);
    else if (protocol === PROTOCOL_ICMPV6) odd.icmp(frame, upper, total, IN, own);
    else if (protocol !== PROTOCOL_TCP && protocol !== PROTOCOL_UDP) drops.drop(frame, NOT_SERVED);
    else if (!hasRoom(protocol, left)) drops.drop(frame, MALFORMED);
    else toService(frame, ip, upper, left, own);
  }

  function hasRoom(protocol: number, left: number): boolean {
    return left >= (protocol === PROTOCOL_TCP ? TCP_HEADER : UDP_HEADER);
  }

  /** Sends a frame of the balancer's own. */
  function sendOwn(frame: number): void {
    ingress[frame] = BALANCER_PORT;
    out.push(frame);
  }

  function toService(frame: number, ip: number, upper: number, left: number, own: number): void {
    const protocol = (upper >>> 16) & 0xff;
    const t = ip + ((upper & 0xffff) >>> 1);
    const first = (upper & FIRST_OF_FRAGMENTS) !== 0;
    const flow = flowOf(frame, ip, t, protocol, own);
    if (flow < 0) {
      if (first) odd.refuse(frame);
      refuse(frame, protocol === PROTOCOL_TCP ? t : 0, left, -1 - flow, own);
      return;
    }
    const waited = first ? odd.first(frame, IN, words[(flow << FLOW_SHIFT) + INSIDE]) : NOBODY;
    forward(frame, ip, flow, t, protocol);
    for (let i = 0; i < waited.length; i++) odd.deliver(waited[i], IN, own);
  }

  /** The flow of a packet to a service, a new one if need be; or -1 - reason. */
  function flowOf(frame: number, ip: number, t: number, protocol: number, own: number): number {
    const pair = u16[t + 1] | (u16[t] << 16);
    const key = protocol | ownerKey | ((domain[frame] + 1) << 16);
    const flags = protocol === PROTOCOL_TCP ? u16[t + TCP_FLAGS] : 0;
    const known = addresses.find(u16, ip + IPV6_SOURCE);
    if (known !== NO_ADDRESS) {
      const ref = find(flowKeyHash(seed, own, known, pair, key), own, known, pair, key);
      if (ref !== NO_FLOW && (ref & 1) !== IN) return -1 - CONFLICT;
      if (ref !== NO_FLOW && !(isOpening(flags) && makesWay(flows, ref >>> 1))) return ref >>> 1;
    }
    // The flow holds it; meanwhile we do.
    const remote = addresses.hold(u16, ip + IPV6_SOURCE);
    if (remote === NO_ADDRESS) return -1 - TABLE_FULL;
    const made = chooser.make(mark[frame], own, remote, pair, key, flags);
    addresses.release(remote);
    if (made >= 0) values[base + MADE]++;
    return made;
  }

  function forward(frame: number, ip: number, flow: number, t: number, protocol: number): void {
    const at = flow << FLOW_SHIFT;
    const w = off[frame] >>> 1;
    const backend = (words[at + STATE] >>> 8) - 1;
    count(frame, at, backend);
    words[at + PACKETS_IN]++;
    advance(flow, at, backend, protocol, IN, t);
    values[base + INWARD]++;
    if (words[at + INSIDE] === words[at + REMOTE_END]) mirror(frame, ip, at, t, protocol);
    else if (keeps[backend] !== 1) {
      const to = words[at + INSIDE] * 4;
      const delta = replaceAddressV6(u16, ip + IPV6_DESTINATION, addresses.words, to);
      replacePortV6(u16, t, protocol, 1, words[at + OUT_PORTS] & 0xffff, delta, isPartial(frame, t));
    }
    for (let i = 0; i < 3; i++) u16[w + i] = macs[backend * 3 + i];
    out.push(frame);
  }

  /** A caller that is its own backend sees the virtual address as the caller's, by a frame of the balancer's own. */
  function mirror(frame: number, ip: number, at: number, t: number, protocol: number): void {
    const w = off[frame] >>> 1;
    for (let i = 0; i < 3; i++) u16[w + 3 + i] = u16[w + i];
    ingress[frame] = BALANCER_PORT;
    const delta =
      replaceAddressV6(u16, ip + IPV6_SOURCE, addresses.words, words[at + EXTERNAL] * 4) +
      replaceAddressV6(u16, ip + IPV6_DESTINATION, addresses.words, words[at + INSIDE] * 4);
    const partial = isPartial(frame, t);
    replacePortV6(u16, t, protocol, 1, words[at + OUT_PORTS] & 0xffff, delta, partial);
    replacePortV6(u16, t, protocol, 0, words[at + OUT_PORTS] >>> 16, 0, partial);
  }

  /** Whether the checksum field holds the sum of the pseudo-header alone; also one within a tunnel may be meant. */
  function isPartial(frame: number, t: number): boolean {
    return (offload[frame] & OFFLOAD_NEEDS_CSUM) !== 0 && off[frame] + csumStart[frame] === t << 1;
  }

  function count(frame: number, at: number, backend: number): void {
    const size = len[frame] - ETHERNET_HEADER;
    doubles[(at >>> 1) + 7] += size;
    packets[backend]++;
    bytes[backend] += size;
  }

  /** A packet that a backend may have sent as one, or for itself. */
  function outward(frame: number, ip: number, own: number): void {
    const total = ipv6Length(u16, ip, len[frame] - ETHERNET_HEADER);
    const upper = total === 0 ? -1 : upperLayer(u16, ip, total);
    const protocol = (upper >>> 16) & 0xff;
    if (upper < 0) out.push(frame);
    else if ((upper & LATER_FRAGMENT_V6) !== 0) odd.later(frame, OUT, own);
    else if (protocol === PROTOCOL_ICMPV6) odd.icmp(frame, upper, total, OUT, own);
    else if (protocol !== PROTOCOL_TCP && protocol !== PROTOCOL_UDP) out.push(frame);
    else if (!hasRoom(protocol, total - (upper & 0xffff))) out.push(frame);
    else fromBackend(frame, ip, upper, own);
  }

  function fromBackend(frame: number, ip: number, upper: number, own: number): void {
    const protocol = (upper >>> 16) & 0xff;
    const t = ip + ((upper & 0xffff) >>> 1);
    const pair = pairAt(u16, t);
    const key = protocol | ownerKey | ((domain[frame] + 1) << 16);
    const remote = addresses.find(u16, ip + IPV6_DESTINATION);
    const ref =
      remote === NO_ADDRESS
        ? NO_FLOW
        : find(flowKeyHash(seed, own, remote, pair, key), own, remote, pair, key);
    if (ref === NO_FLOW || (ref & 1) !== OUT) {
      out.push(frame);
      return;
    }
    const at = (ref >>> 1) << FLOW_SHIFT;
    const waited = (upper & FIRST_OF_FRAGMENTS) === 0 ? NOBODY : odd.first(frame, OUT, words[at + EXTERNAL]);
    const backend = (words[at + STATE] >>> 8) - 1;
    count(frame, at, backend);
    words[at + PACKETS_OUT]++;
    advance(ref >>> 1, at, backend, protocol, OUT, t);
    values[base + OUTWARD]++;
    if (keeps[backend] !== 1) {
      const from = words[at + EXTERNAL] * 4;
      const delta = replaceAddressV6(u16, ip + IPV6_SOURCE, addresses.words, from);
      replacePortV6(u16, t, protocol, 0, words[at + IN_PORTS] & 0xffff, delta, isPartial(frame, t));
    }
    out.push(frame);
    for (let i = 0; i < waited.length; i++) out.push(waited[i]);
  }

  function advance(
    flow: number,
    at: number,
    backend: number,
    protocol: number,
    direction: number,
    t: number,
  ): void {
    const state = words[at + STATE] & STATE_MASK;
    if (protocol === PROTOCOL_TCP) {
      const flags = u16[t + TCP_FLAGS];
      if (state === ESTABLISHED && (flags & TURNING_FLAGS) === 0)
        words[at + EXPIRY] = context.seconds + idle[backend];
      else life.turn(flow, at, backend, state, direction === IN, flags);
      return;
    }
    const answered = state === NEW_IN && direction === OUT;
    if (answered) words[at + STATE] += TWO_SIDED - NEW_IN;
    words[at + EXPIRY] = context.seconds + timeouts.udp;
    if (answered) flows.changed(flow);
  }

  /** @param t first word of the TCP header, 0 when there is none. */
  function refuse(frame: number, t: number, left: number, reason: number, own: number): void {
    if (t !== 0 && reason === NO_SUCH_FLOW && isProbePort(u16[t + 1]) && checks?.take(frame, t)) return;
    if (t !== 0 && reason === NO_SUCH_FLOW && resets.answer(frame, t, left)) {
      values[base + RESETS]++;
      sendOwn(frame);
      return;
    }
    if (reason === NO_SERVICE_THERE || reason === WITHOUT_BACKEND) {
      const code = reason === NO_SERVICE_THERE ? PORT_UNREACHABLE_V6 : ADDRESS_UNREACHABLE;
      const error = errors.make(frame, UNREACHABLE_V6, code, 0, halves, own * 8);
      if (error !== NO_FRAME) sendOwn(error);
    }
    drops.drop(frame, reason);
  }

  flows.own(
    BALANCER_OWNER,
    {
      over(flow) {
        life.over(flow);
        return 0;
      },
      leave: chooser.forget,
      adopt: chooser.adopt,
    },
    true,
  );

  function age(): void {
    endings.askAgain();
    odd.expire();
  }

  return {
    drops,
    packet,
    age,
    balancing: { ...chooser, expired: life.expired },
    end: endings.begin,
    sweep: endings.sweep,
    flush: () => odd.expire(true),
  };
}

const NOBODY: readonly number[] = [];
