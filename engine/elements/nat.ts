/**
 * `nat`: masquerades and publishes IPv4, with connection tracking (RFC 4787, 5382, 5508 and 7857).
 *
 * Per batch of one direction, from inside or from outside:
 *   1. the key of each packet is read: own side's address and port, the remote ones, protocol and domain;
 *   2. the index and the entries of all are touched, so that their cache misses overlap;
 *   3. the flow of each is found; what has none is admitted or refused (see `nat/flow-maker.ts`); errors and fragments
 *      go their own way (`nat/errors.ts`, `nat/fragments.ts`);
 *   4. address and port are replaced and the checksums updated (RFC 1624); where the checksum is a partial one, the
 *      sum of the pseudo-header is;
 *   5. the state of the connection moves on, and with it the second in which it expires.
 * Packets leave in the order in which they came, but for fragments that had to wait for their first one.
 *
 * Not handled here: TTL, path MTU, routes, and ICMP in answer to what is dropped, which are the gateway's; application
 * layer gateways, of which there is none (RFC 4787, REQ-10).
 */
import { type Batch, type Consumer, type Context, Drops } from '../graph.js';
import { BATCH_SIZE, OFFLOAD_NEEDS_CSUM } from '../memory/frames.js';
import { isOpening } from '../tables/connection.js';
import {
  EXTERNAL,
  FLOW_SHIFT,
  flowKeyHash,
  IN,
  IN_PORTS,
  INSIDE,
  NO_FLOW,
  OUT,
  OUT_KEY,
  OUT_PORTS,
  PACKETS_IN,
  PACKETS_OUT,
} from '../tables/flows.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV4_LE, swap16 } from '../wire/ethernet.js';
import { ICMP_IDENTIFIER, isError, isQuery, isReply } from '../wire/icmp.js';
import {
  IPV4_DESTINATION,
  IPV4_FRAGMENT,
  IPV4_HEADER,
  IPV4_LENGTH,
  IPV4_SOURCE,
  IPV4_TTL_PROTOCOL,
  PROTOCOL_ICMP,
  PROTOCOL_TCP,
} from '../wire/ip.js';
import { TCP_FLAGS, TCP_HEADER } from '../wire/tcp.js';
import { createErrorTranslator, ERROR_REASONS, TRANSLATED } from './nat/errors.js';
import { createFlowMaker, FLOW_REASONS, isShortage, isWithoutBackend } from './nat/flow-maker.js';
import { createFragments, FRAGMENTS_V4, HELD, PASSED } from './nat/fragments.js';
import { replaceAddress, replacePort } from './nat/packet.js';
import { createProgress } from './nat/progress.js';
import { hasPorts, makesWay, type NatTables } from './nat/tables.js';

const REASONS = [
  ...FLOW_REASONS,
  ...ERROR_REASONS,
  'not-ipv4',
  'malformed',
  'icmp-type',
  'fragment',
  'no-side',
] as const;
const FIRST_ERROR = FLOW_REASONS.length;
const NOT_IPV4 = REASONS.indexOf('not-ipv4');
const MALFORMED = REASONS.indexOf('malformed');
const ICMP_TYPE = REASONS.indexOf('icmp-type');
const FRAGMENT = REASONS.indexOf('fragment');
/** For who puts packets of both sides into one stream: this one is of neither. */
export const NO_SIDE = REASONS.indexOf('no-side');

const COUNTERS = ['out', 'in', 'hairpinned', 'flows-made', 'flows-expired', 'flows-evicted'] as const;
const [PACKETS_OUTWARD, PACKETS_INWARD, HAIRPINNED, MADE, EXPIRED, EVICTED] = COUNTERS.keys();

/** Classes of a packet: with a key; the three that go their own way; or a reason from REFUSED on. */
const KEYED = 0;
const LATER_FRAGMENT = 1;
const ICMP_ERROR = 2;
const FIRST_FRAGMENT = 3;
const REFUSED = 16;

/** Flows that are looked at for expiry in one call, which takes 70 µs when all are over and none is in the cache. */
const EXPIRY_BUDGET = 256;

export interface NatOutputs {
  /** Translated packets from inside. */
  readonly outside: Batch;
  /** Translated packets from outside, the domain they belong to set. */
  readonly inside: Batch;
  /** Packets from inside to the external address itself, translated as those to outside: to come in again. */
  readonly hairpin: Batch;
  /** Told of packets from inside for which no port or no flow is left, before they are dropped (RFC 5508, REQ-8). */
  readonly refused?: (frame: number) => void;
  /**
   * Turns a sound TCP segment into the RST that answers it. It is asked for those to a service of which nobody may be
   * chosen, whose sender would wait for nothing.
   * @param t first word of its TCP header, from which on it has `left` bytes. @returns false when it is not answered.
   */
  readonly reset?: (frame: number, t: number, left: number) => boolean;
}

export interface Nat {
  readonly drops: Drops;
  readonly fromInside: Consumer;
  readonly fromOutside: Consumer;
  /** Lets flows and waiting fragments go whose time has come, some at a time. Called between breaths. */
  age(): void;
  /** Gives up the fragments that wait. */
  flush(): void;
}

export function createNat(context: Context, tables: NatTables, to: NatOutputs): Nat {
  const { u16, off, len, domain, offload, csumStart } = context.frames;
  const { flows, external, ownerKey } = tables;
  const { words, doubles, index, indexMask, refMask, seed, find } = flows;
  const { values } = context.counters;
  const drops = new Drops(context, 'nat', REASONS);
  const { base } = context.counters.claim('nat', COUNTERS);
  const maker = createFlowMaker(context, tables, () => values[base + EVICTED]++);
  const progress = createProgress(context, tables);
  const errors = createErrorTranslator(context, tables);
  const fragments = [OUT, IN].map((direction) =>
    createFragments(context, direction, FRAGMENTS_V4, (frame) => drops.drop(frame, FRAGMENT)),
  );
  /**
   * Per packet: class, word of its transport header, own and remote address, ports, key and hash. Each direction has a
   * batch of places, since what turns back comes in from outside while the batch from inside is at work.
   */
  const classes = new Uint8Array(2 * BATCH_SIZE);
  const transports = new Uint32Array(2 * BATCH_SIZE);
  const owns = new Int32Array(2 * BATCH_SIZE);
  const remotes = new Int32Array(2 * BATCH_SIZE);
  const pairs = new Int32Array(2 * BATCH_SIZE);
  const keys = new Int32Array(2 * BATCH_SIZE);
  const hashes = new Int32Array(2 * BATCH_SIZE);
  const places = new Int32Array(2 * BATCH_SIZE);
  /** What touching read: kept, so that the loads are not optimised away. */
  const touched = new Int32Array(1);

  function translate(batch: Batch, direction: number): void {
    const { frames: ids, count } = batch;
    const first = direction * BATCH_SIZE;
    for (let k = 0; k < count; k++) classes[first + k] = read(ids[k], first + k, direction);
    touch(first, first + count);
    for (let k = 0; k < count; k++) {
      const kind = classes[first + k];
      if (kind === KEYED) keyed(ids[k], first + k, direction);
      else if (kind >= REFUSED) drops.drop(ids[k], kind - REFUSED);
      else own(ids[k], first + k, direction, kind);
    }
    values[base + (direction === OUT ? PACKETS_OUTWARD : PACKETS_INWARD)] += count;
  }

  /** Step 1: the class of a packet, its key noted under `k`. */
  function read(frame: number, k: number, direction: number): number {
    const length = len[frame];
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    if (length < ETHERNET_HEADER + IPV4_HEADER || u16[w + 6] !== ETHERTYPE_IPV4_LE) return REFUSED + NOT_IPV4;
    const header = (u16[ip] & 15) << 2;
    const total = swap16(u16[ip + IPV4_LENGTH]);
    if ((u16[ip] & 0xf0) !== 0x40 || header < IPV4_HEADER) return REFUSED + MALFORMED;
    if (total < header || total > length - ETHERNET_HEADER) return REFUSED + MALFORMED;
    // More fragments, and an offset.
    const fragment = u16[ip + IPV4_FRAGMENT] & 0xff3f;
    if ((fragment & ~0x20) !== 0) return LATER_FRAGMENT;
    const protocol = u16[ip + IPV4_TTL_PROTOCOL] >>> 8;
    const t = ip + (header >>> 1);
    const source = u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16);
    const destination = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    let pair = 0;
    if (hasPorts(protocol)) {
      if (total - header < (protocol === PROTOCOL_TCP ? TCP_HEADER : 8)) return REFUSED + MALFORMED;
      pair = direction === OUT ? u16[t] | (u16[t + 1] << 16) : u16[t + 1] | (u16[t] << 16);
    } else if (protocol === PROTOCOL_ICMP) {
      if (total - header < 8) return REFUSED + MALFORMED;
      const type = u16[t] & 0xff;
      if (isError(type)) return ICMP_ERROR;
      if (!(direction === OUT ? isQuery(type) : isReply(type))) return REFUSED + ICMP_TYPE;
      pair = u16[t + ICMP_IDENTIFIER];
    }
    const mine = direction === OUT ? source : destination;
    const remote = direction === OUT ? destination : source;
    const key = protocol | ownerKey | (direction === OUT ? (domain[frame] + 1) << 16 : 0);
    transports[k] = t;
    owns[k] = mine;
    remotes[k] = remote;
    pairs[k] = pair;
    keys[k] = key;
    hashes[k] = flowKeyHash(seed, mine, remote, pair, key);
    return fragment === 0 ? KEYED : FIRST_FRAGMENT;
  }

  /** Step 2. What is read of packets without a key is of an earlier batch, and does no harm. */
  function touch(first: number, end: number): void {
    for (let k = first; k < end; k++) places[k] = index[hashes[k] & indexMask];
    let sum = 0;
    for (let k = first; k < end; k++) sum ^= words[((places[k] & refMask) >>> 1) << FLOW_SHIFT];
    touched[0] = sum;
  }

  /** Step 3 for a packet with a key. */
  function keyed(frame: number, k: number, direction: number): void {
    const flow = flowOf(k, direction);
    if (flow < 0) {
      const tcp = (keys[k] & 0xff) === PROTOCOL_TCP;
      if (tcp && isWithoutBackend(-1 - flow) && resets(frame, transports[k])) sendTranslated(frame, OUT);
      else refuse(frame, -1 - flow, direction);
      return;
    }
    rewrite(frame, flow, transports[k], keys[k] & 0xff, direction);
    send(frame, remotes[k], direction);
  }

  function resets(frame: number, t: number): boolean {
    return to.reset?.(frame, t, off[frame] + len[frame] - 2 * t) === true;
  }

  function refuse(frame: number, reason: number, direction: number): void {
    if (direction === OUT && isShortage(reason)) to.refused?.(frame);
    drops.drop(frame, reason);
  }

  /** The flow of a packet, a new one if need be; or -1 - reason. */
  function flowOf(k: number, direction: number): number {
    const ref = find(hashes[k], owns[k], remotes[k], pairs[k], keys[k]);
    if (ref === NO_FLOW) return make(k, direction);
    // Of other protocols the word is something else, and their flows make no way.
    const isAgain =
      direction === IN && isOpening(u16[transports[k] + TCP_FLAGS]) && makesWay(flows, ref >>> 1);
    return isAgain ? make(k, direction) : ref >>> 1;
  }

  function make(k: number, direction: number): number {
    const flags = (keys[k] & 0xff) === PROTOCOL_TCP ? u16[transports[k] + TCP_FLAGS] : 0;
    const flow =
      direction === OUT
        ? maker.outward(owns[k], remotes[k], pairs[k], keys[k], flags)
        : maker.inward(owns[k], remotes[k], pairs[k], keys[k], flags);
    if (flow >= 0) values[base + MADE]++;
    return flow;
  }

  function send(frame: number, remote: number, direction: number): void {
    if (direction === IN) to.inside.push(frame);
    else if (remote !== external) to.outside.push(frame);
    else {
      values[base + HAIRPINNED]++;
      to.hairpin.push(frame);
    }
  }

  /** Steps 4 and 5. */
  function rewrite(frame: number, flow: number, t: number, protocol: number, direction: number): void {
    const at = flow << FLOW_SHIFT;
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    progress(flow, protocol, direction, u16[t + TCP_FLAGS]);
    doubles[(at >>> 1) + 7] += swap16(u16[ip + IPV4_LENGTH]);
    // A partial checksum may also be one within a tunnel that the packet is.
    const partial = (offload[frame] & OFFLOAD_NEEDS_CSUM) !== 0 && off[frame] + csumStart[frame] === t << 1;
    if (direction === OUT) {
      words[at + PACKETS_OUT]++;
      const delta = replaceAddress(u16, ip, IPV4_SOURCE, words[at + EXTERNAL]);
      replacePort(u16, t, protocol, 0, words[at + IN_PORTS] & 0xffff, delta, partial);
      return;
    }
    words[at + PACKETS_IN]++;
    domain[frame] = (words[at + OUT_KEY] >>> 16) - 1;
    const delta = replaceAddress(u16, ip, IPV4_DESTINATION, words[at + INSIDE]);
    replacePort(u16, t, protocol, 1, words[at + OUT_PORTS] & 0xffff, delta, partial);
  }

  /** Errors and fragments. */
  function own(frame: number, k: number, direction: number, kind: number): void {
    if (kind === ICMP_ERROR) error(frame, direction);
    else if (kind === FIRST_FRAGMENT) firstFragment(frame, k, direction);
    else {
      const verdict = fragments[direction].later(frame);
      if (verdict === PASSED) sendTranslated(frame, direction);
      else if (verdict !== HELD) drops.drop(frame, FRAGMENT);
    }
  }

  function error(frame: number, direction: number): void {
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    const header = (u16[ip] & 15) << 2;
    // Padding behind the packet is none of the error's.
    len[frame] = ETHERNET_HEADER + swap16(u16[ip + IPV4_LENGTH]);
    const verdict = errors.translate(frame, direction, ETHERNET_HEADER + header);
    if (verdict === TRANSLATED) sendTranslated(frame, direction);
    else drops.drop(frame, FIRST_ERROR + verdict);
  }

  function firstFragment(frame: number, k: number, direction: number): void {
    const flow = flowOf(k, direction);
    if (flow < 0) {
      fragments[direction].refuse(frame);
      refuse(frame, -1 - flow, direction);
      return;
    }
    const at = flow << FLOW_SHIFT;
    const remote = remotes[k];
    const translated = at + (direction === OUT ? EXTERNAL : INSIDE);
    const dom = (words[at + OUT_KEY] >>> 16) - 1;
    const waited = fragments[direction].first(frame, words, translated, dom);
    rewrite(frame, flow, transports[k], keys[k] & 0xff, direction);
    send(frame, remote, direction);
    for (const other of waited) send(other, remote, direction);
  }

  function sendTranslated(frame: number, direction: number): void {
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    send(frame, u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16), direction);
  }

  function age(): void {
    values[base + EXPIRED] += flows.expire(context.seconds, EXPIRY_BUDGET);
    for (const side of fragments) side.expire();
  }

  return {
    drops,
    fromInside: { process: (batch) => translate(batch, OUT) },
    fromOutside: { process: (batch) => translate(batch, IN) },
    age,
    flush: () => {
      for (const side of fragments) side.expire(true);
    },
  };
}
