/**
 * `balance`: gives the packets of a service to its backends, by connection tracking in the node's flow table.
 *
 * It stands before the bridge, on the host of who asks, and sees all frames of domains that have services:
 *   1. by their addresses, packets to a service and packets from a backend are told from the others, which pass;
 *   2. of those, keys are read, index and entries touched, flows found, as `nat` does;
 *   3. a packet to a service without a flow begins one: mark or virtual address and port say the service, its affinity
 *      or its scheduler the backend; what cannot begin one is answered by an RST or an ICMP error, never left to hang;
 *   4. to the backend it goes with the backend's address, port and MAC, and from the backend with the virtual address
 *      and port: the backend sees who asks. Of a service that is `direct` only the MAC is replaced, for the backend has
 *      the virtual address itself;
 *   5. a caller that is its own backend would see its own address, which no host takes from a wire: it sees the virtual
 *      one. Two flows that mirror each other stand for such a connection.
 *
 * A flow is that of a port published by `nat`, seen from the service: inside is the backend, external the virtual
 * address. Echo to a virtual address is answered here; ARP is by the neighbour element.
 *
 * Packets of IPv6 go their own way, see balancer-v6.ts.
 *
 * Not handled: protocols other than TCP and UDP; more than one worker.
 */
import { type Batch, type Consumer, type Context, Drops } from '../graph.js';
import { BALANCER_PORT } from '../intent.js';
import { BATCH_SIZE, OFFLOAD_NEEDS_CSUM, REMOTE } from '../memory/frames.js';
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
import { MAY_BE_BACKEND, MAY_BE_VIRTUAL, type Services, VIRTUAL_MAC_LE } from '../tables/services.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV4_LE, ETHERTYPE_IPV6_LE, swap16 } from '../wire/ethernet.js';
import {
  IPV4_DESTINATION,
  IPV4_FRAGMENT,
  IPV4_HEADER,
  IPV4_LENGTH,
  IPV4_SOURCE,
  IPV4_TTL_PROTOCOL,
  PROTOCOL_ICMP,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  UDP_HEADER,
} from '../wire/ip.js';
import { ipv4Length } from '../wire/ipv4-checks.js';
import { TCP_FLAGS, TCP_HEADER } from '../wire/tcp.js';
import { BALANCE_REASONS, CONFLICT, createChooser } from './balancer/chooser.js';
import { createEndings } from './balancer/endings.js';
import { createLife } from './balancer/life.js';
import { createOdd } from './balancer/odd.js';
import { createRefuse } from './balancer/refusals.js';
import type { Checks } from './balancer/relay.js';
import { createResets } from './balancer/resets.js';
import type { IcmpErrors } from './icmp-errors.js';
import { ERROR_REASONS } from './nat/errors.js';
import { replaceAddress, replacePort } from './nat/packet.js';
import { type Balancing, makesWay } from './nat/tables.js';

const REASONS = [...BALANCE_REASONS, ...ERROR_REASONS, 'malformed', 'not-served', 'fragment'] as const;
const FIRST_ERROR = BALANCE_REASONS.length;
const MALFORMED = REASONS.indexOf('malformed');
const NOT_SERVED = REASONS.indexOf('not-served');
const FRAGMENT = REASONS.indexOf('fragment');

const COUNTERS = [
  'frames',
  'to-backends',
  'from-backends',
  'flows-made',
  'flows-expired',
  'flows-evicted',
  'resets',
  'echo-answered',
] as const;
const [FRAMES, INWARD, OUTWARD, MADE, EXPIRED, EVICTED, RESETS, ECHO_ANSWERED] = COUNTERS.keys();

/** Classes of a packet: of nobody here; to a service and from a backend, with a key; as these, but on their own way. */
const PASS = 0;
const TO_SERVICE = 1;
const FROM_BACKEND = 2;
/** These two are the two above and ODD. */
const ODD = 2;
const ODD_TO_SERVICE = TO_SERVICE + ODD;
const BROKEN = 5;
const IPV6 = 6;
const TAKEN = 7;

/** Flows looked at for expiry in one call, a third of a millisecond: 10,000 connections a second may come and go. */
const EXPIRY_BUDGET = 1024;
export interface BalancerOptions {
  readonly flows: Flows;
  readonly services: Services;
  readonly neighbours: Neighbours;
  readonly timeouts: Timeouts;
  readonly errors: IcmpErrors;
  /** Absent where no backends are checked. */
  readonly checks?: Checks;
  /** Takes what leaves through the NAT that owns a flow, by its number. */
  readonly outside: (owner: number) => Batch;
  /** Takes what is for a backend as if it was let in from outside. */
  readonly inside: Batch;
  /** Takes packets of IPv6 in domains that have services; without it they pass. */
  readonly v6?: ((frame: number) => void) | undefined;
}

export interface Balancer extends Consumer {
  /** Chooses for those who come from outside, too. */
  readonly balancing: Balancing;
  readonly drops: Drops;
  /** Lets flows go whose time has come, and asks again who is to reset himself. Called between breaths. */
  age(): void;
  /** Ends the flows of a backend, some at each `sweep`, which says whether there may be more: both ends of TCP are reset. */
  end(backend: number): void;
  sweep(): boolean;
  /** Gives up the fragments that wait. */
  flush(): void;
}

/** @param out takes what passes, to the bridge. */
export function createBalancer(context: Context, options: BalancerOptions, out: Batch): Balancer {
  const { frames } = context;
  const { u16, off, len, domain, ingress, mark, offload, csumStart } = frames;
  const { flows, services, neighbours, timeouts, errors, checks, v6 } = options;
  const { words, doubles, index, indexMask, refMask, seed, find } = flows;
  const { backends, macs, idle, keeps, inDomain } = services;
  const { packets, bytes } = backends;
  const { values } = context.counters;
  const drops = new Drops(context, 'balance', REASONS);
  const { base } = context.counters.claim('balance', COUNTERS);
  const ownerKey = (BALANCER_OWNER << OWNER_SHIFT) | IN_DOMAIN;
  const chooser = createChooser(context, {
    flows,
    services,
    timeouts,
    evicted: () => values[base + EVICTED]++,
  });
  const resets = createResets(context);
  const { outside, inside } = options;
  const { probe } = resets;
  const endings = createEndings(context, { flows, services, probe, neighbours, outside, inside }, out);
  const life = createLife(context, { flows, services, timeouts, chooser, endings });
  const reset = (): void => void values[base + RESETS]++;
  const tellWhy = createRefuse(context, { drops, errors, resets, checks, out, reset });
  const places = { fragment: FRAGMENT, notServed: NOT_SERVED, firstError: FIRST_ERROR };
  const answered = (): void => void values[base + ECHO_ANSWERED]++;
  const shared = { flows, ownerKey, services, neighbours, checks, drops, ...places, answered };
  const rest = createOdd(context, shared, out);
  const classes = new Uint8Array(BATCH_SIZE);
  const transports = new Uint32Array(BATCH_SIZE);
  const owns = new Int32Array(BATCH_SIZE);
  const remotes = new Int32Array(BATCH_SIZE);
  const pairs = new Int32Array(BATCH_SIZE);
  const keys = new Int32Array(BATCH_SIZE);
  const hashes = new Int32Array(BATCH_SIZE);
  const starts = new Int32Array(BATCH_SIZE);
  const touched = new Int32Array(1);

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    for (let k = 0; k < count; k++) classes[k] = classify(ids[k], k);
    touch(count);
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      const kind = classes[k];
      if (kind === PASS) out.push(frame);
      else if (kind === TO_SERVICE) toService(frame, k);
      else if (kind === FROM_BACKEND) fromBackend(frame, k);
      else if (kind === BROKEN) drops.drop(frame, MALFORMED);
      else if (kind === IPV6) v6!(frame);
      else if (kind !== TAKEN) odd(frame, k, kind === ODD_TO_SERVICE ? IN : OUT);
    }
    values[base + FRAMES] += count;
  }

  /** Step 1. */
  function classify(frame: number, k: number): number {
    const dom = domain[frame];
    const w = off[frame] >>> 1;
    if (inDomain[dom] === 0 || len[frame] < ETHERNET_HEADER + IPV4_HEADER || u16[w + 6] !== ETHERTYPE_IPV4_LE)
      return inDomain[dom] !== 0 && v6 !== undefined && u16[w + 6] === ETHERTYPE_IPV6_LE ? IPV6 : PASS;
    const ip = w + ETHERNET_HEADER / 2;
    const source = u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16);
    const destination = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    if (mark[frame] !== 0 || (services.filter(dom, destination) & MAY_BE_VIRTUAL) !== 0)
      if (mark[frame] !== 0 || services.isVirtual(dom, destination))
        if (ingress[frame] < REMOTE || !isChosen(frame, w, destination))
          return inward(frame, k, ip, source, destination);
    const sender = services.filter(dom, source);
    if ((sender & MAY_BE_VIRTUAL) !== 0 && checks?.fromVirtual(frame)) return TAKEN;
    // An ICMP error may be about a marked address.
    if ((sender & MAY_BE_BACKEND) === 0 && u16[ip + IPV4_TTL_PROTOCOL] >>> 8 !== PROTOCOL_ICMP) return PASS;
    return read(frame, k, ip, source, destination, FROM_BACKEND);
  }

  /** Whether another host has chosen the backend already: by its address, or its MAC where a service is direct. */
  function isChosen(frame: number, w: number, own: number): boolean {
    if (mark[frame] !== 0 && chooser.isBackend(domain[frame], mark[frame], own)) return true;
    if (u16[w] === VIRTUAL_MAC_LE || !services.isDirect(domain[frame], own, mark[frame])) return false;
    checks?.note(frame);
    return true;
  }

  function inward(frame: number, k: number, ip: number, source: number, destination: number): number {
    const total = ipv4Length(u16, ip, len[frame] - ETHERNET_HEADER);
    if (total === 0) return BROKEN;
    len[frame] = ETHERNET_HEADER + total;
    const kind = read(frame, k, ip, destination, source, TO_SERVICE);
    return kind === PASS ? BROKEN : kind;
  }

  /** The key of a packet; PASS when it has none that makes sense. */
  function read(frame: number, k: number, ip: number, own: number, remote: number, kind: number): number {
    const header = (u16[ip] & 15) << 2;
    const protocol = u16[ip + IPV4_TTL_PROTOCOL] >>> 8;
    const t = ip + (header >>> 1);
    const content = swap16(u16[ip + IPV4_LENGTH]) - header;
    transports[k] = t;
    owns[k] = own;
    remotes[k] = remote;
    keys[k] = protocol | ownerKey | ((domain[frame] + 1) << 16);
    const fragment = u16[ip + IPV4_FRAGMENT] & 0xff3f;
    if ((fragment & ~0x20) !== 0) return kind + ODD;
    if (protocol !== PROTOCOL_TCP && protocol !== PROTOCOL_UDP) return kind + ODD;
    const least = protocol === PROTOCOL_TCP ? TCP_HEADER : UDP_HEADER;
    if (header < IPV4_HEADER || content < least || content > len[frame] - ETHERNET_HEADER - header)
      return PASS;
    const pair = kind === FROM_BACKEND ? u16[t] | (u16[t + 1] << 16) : u16[t + 1] | (u16[t] << 16);
    pairs[k] = pair;
    hashes[k] = flowKeyHash(seed, own, remote, pair, keys[k]);
    return fragment === 0 ? kind : kind + ODD;
  }

  /** Step 2. What is read of packets without a key is of an earlier batch, and does no harm. */
  function touch(count: number): void {
    for (let k = 0; k < count; k++) starts[k] = index[hashes[k] & indexMask];
    let sum = 0;
    for (let k = 0; k < count; k++) sum ^= words[((starts[k] & refMask) >>> 1) << FLOW_SHIFT];
    touched[0] = sum;
  }

  function toService(frame: number, k: number): void {
    const flow = flowOf(frame, k);
    if (flow < 0) refuse(frame, k, -1 - flow);
    else forward(frame, flow, transports[k], keys[k] & 0xff);
  }

  /** The flow of a packet to a service, a new one if need be; or -1 - reason. */
  function flowOf(frame: number, k: number): number {
    const ref = find(hashes[k], owns[k], remotes[k], pairs[k], keys[k]);
    const flags = (keys[k] & 0xff) === PROTOCOL_TCP ? u16[transports[k] + TCP_FLAGS] : 0;
    // To a backend's own address, by a mark, from ends that it serves under a virtual one.
    if (ref !== NO_FLOW && (ref & 1) !== IN) return -1 - CONFLICT;
    if (ref !== NO_FLOW && !(isOpening(flags) && makesWay(flows, ref >>> 1))) return ref >>> 1;
    const made = chooser.make(mark[frame], owns[k], remotes[k], pairs[k], keys[k], flags);
    if (made >= 0) values[base + MADE]++;
    return made;
  }

  /** Step 4, to the backend. */
  function forward(frame: number, flow: number, t: number, protocol: number): void {
    const at = flow << FLOW_SHIFT;
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    const backend = (words[at + STATE] >>> 8) - 1;
    const size = swap16(u16[ip + IPV4_LENGTH]);
    words[at + PACKETS_IN]++;
    doubles[(at >>> 1) + 7] += size;
    packets[backend]++;
    bytes[backend] += size;
    advance(flow, at, backend, protocol, IN, t);
    values[base + INWARD]++;
    if (words[at + INSIDE] === words[at + REMOTE_END]) mirror(frame, at, t, protocol);
    else if (keeps[backend] !== 1) {
      const delta = replaceAddress(u16, ip, IPV4_DESTINATION, words[at + INSIDE]);
      replacePort(u16, t, protocol, 1, words[at + OUT_PORTS] & 0xffff, delta, isPartial(frame, t));
    }
    for (let i = 0; i < 3; i++) u16[w + i] = macs[backend * 3 + i];
    out.push(frame);
  }

  /** Step 5: also the source becomes the virtual address, and the frame one of the balancer's own. */
  function mirror(frame: number, at: number, t: number, protocol: number): void {
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    for (let i = 0; i < 3; i++) u16[w + 3 + i] = u16[w + i];
    ingress[frame] = BALANCER_PORT;
    const delta =
      replaceAddress(u16, ip, IPV4_SOURCE, words[at + EXTERNAL]) +
      replaceAddress(u16, ip, IPV4_DESTINATION, words[at + INSIDE]);
    const partial = isPartial(frame, t);
    replacePort(u16, t, protocol, 1, words[at + OUT_PORTS] & 0xffff, delta, partial);
    replacePort(u16, t, protocol, 0, words[at + OUT_PORTS] >>> 16, 0, partial);
  }

  /** Whether the checksum field holds the sum of the pseudo-header alone; also one within a tunnel may be meant. */
  function isPartial(frame: number, t: number): boolean {
    return (offload[frame] & OFFLOAD_NEEDS_CSUM) !== 0 && off[frame] + csumStart[frame] === t << 1;
  }

  /** Step 4, from the backend. */
  function fromBackend(frame: number, k: number): void {
    const flow = flowBack(k);
    if (flow !== NO_FLOW) back(frame, flow << FLOW_SHIFT, transports[k], keys[k] & 0xff);
    out.push(frame);
  }

  /** The flow of a packet from a backend. */
  function flowBack(k: number): number {
    const ref = find(hashes[k], owns[k], remotes[k], pairs[k], keys[k]);
    return (ref & 1) === OUT ? ref >>> 1 : NO_FLOW;
  }

  function back(frame: number, at: number, t: number, protocol: number): void {
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    const backend = (words[at + STATE] >>> 8) - 1;
    const size = swap16(u16[ip + IPV4_LENGTH]);
    words[at + PACKETS_OUT]++;
    doubles[(at >>> 1) + 7] += size;
    packets[backend]++;
    bytes[backend] += size;
    advance(at >>> FLOW_SHIFT, at, backend, protocol, OUT, t);
    values[base + OUTWARD]++;
    if (keeps[backend] === 1) return;
    const delta = replaceAddress(u16, ip, IPV4_SOURCE, words[at + EXTERNAL]);
    replacePort(u16, t, protocol, 0, words[at + IN_PORTS] & 0xffff, delta, isPartial(frame, t));
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

  function refuse(frame: number, k: number, reason: number): void {
    const t = (keys[k] & 0xff) === PROTOCOL_TCP ? transports[k] : 0;
    tellWhy(frame, reason, t, owns[k]);
  }

  /** ICMP, fragments, and protocols that no service has. */
  function odd(frame: number, k: number, direction: number): void {
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    const fragment = u16[ip + IPV4_FRAGMENT] & 0xff3f;
    const protocol = keys[k] & 0xff;
    if ((fragment & ~0x20) !== 0) rest.later(frame, direction, owns[k]);
    else if (protocol === PROTOCOL_ICMP && fragment === 0)
      rest.icmp(frame, transports[k], direction, owns[k]);
    else if (fragment !== 0 && (protocol === PROTOCOL_TCP || protocol === PROTOCOL_UDP))
      firstFragment(frame, k, direction);
    else if (direction === OUT) out.push(frame);
    else drops.drop(frame, NOT_SERVED);
  }

  function firstFragment(frame: number, k: number, direction: number): void {
    const flow = direction === OUT ? flowBack(k) : flowOf(frame, k);
    if (flow === NO_FLOW) {
      out.push(frame);
      return;
    }
    if (flow < 0) {
      rest.refuse(frame);
      refuse(frame, k, -1 - flow);
      return;
    }
    const waited = rest.first(frame, direction, flow << FLOW_SHIFT);
    if (direction === OUT) {
      back(frame, flow << FLOW_SHIFT, transports[k], keys[k] & 0xff);
      out.push(frame);
    } else forward(frame, flow, transports[k], keys[k] & 0xff);
    for (const other of waited) rest.deliver(other, direction, owns[k]);
  }

  flows.own(BALANCER_OWNER, {
    over(flow) {
      life.over(flow);
      return 0;
    },
    leave: chooser.forget,
    adopt: chooser.adopt,
  });

  function age(): void {
    values[base + EXPIRED] += flows.expire(context.seconds, EXPIRY_BUDGET);
    endings.askAgain();
    rest.expire();
  }

  return {
    drops,
    process,
    age,
    balancing: { ...chooser, expired: life.expired },
    end: endings.begin,
    sweep: endings.sweep,
    flush: () => rest.expire(true),
  };
}
