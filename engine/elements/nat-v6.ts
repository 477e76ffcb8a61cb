/**
 * `nat-v6`: masquerades and publishes IPv6 behind one address, as nat.ts does IPv4, in the same flow table: addresses
 * stand there by their numbers (see Addresses6), ICMPv6 under the number of ICMP, and keys say that they are of IPv6.
 *
 * One packet after the other: its key is read; its flow found, or made (nat/flow-maker.ts); address and port replaced
 * and the checksum updated by the difference, of which the pseudo-header is a part; errors and fragments go their own
 * way.
 */
import { type Batch, type Context, Drops } from '../graph.js';
import { OFFLOAD_NEEDS_CSUM } from '../memory/frames.js';
import { type Addresses6, NO_ADDRESS } from '../tables/addresses6.js';
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
  REMOTE_END,
} from '../tables/flows.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV6_LE } from '../wire/ethernet.js';
import { ICMP_HEADER, ICMP_IDENTIFIER } from '../wire/icmp.js';
import { ECHO_REPLY_V6, ECHO_V6, isErrorV6 } from '../wire/icmpv6.js';
import {
  IPV6_DESTINATION,
  IPV6_SOURCE,
  PROTOCOL_ICMP,
  PROTOCOL_ICMPV6,
  PROTOCOL_TCP,
  UDP_HEADER,
} from '../wire/ip.js';
import { FIRST_OF_FRAGMENTS, ipv6Length, LATER_FRAGMENT_V6, upperLayer } from '../wire/ipv6.js';
import { TCP_FLAGS, TCP_HEADER } from '../wire/tcp.js';
import { ERROR_REASONS, TRANSLATED } from './nat/errors.js';
import { createErrorTranslatorV6, protocolOf } from './nat/errors-v6.js';
import { createFlowMaker, FLOW_REASONS, isShortage, isWithoutBackend } from './nat/flow-maker.js';
import { createFragments, HELD, PASSED } from './nat/fragments.js';
import { FRAGMENTS_V6, replaceAddressV6, replacePortV6 } from './nat/packet-v6.js';
import { createProgress } from './nat/progress.js';
import { hasPorts, makesWay, type NatTables } from './nat/tables.js';
import type { Nat, NatOutputs } from './nat.js';

const REASONS = [
  ...FLOW_REASONS,
  ...ERROR_REASONS,
  'not-ipv6',
  'malformed',
  'icmp-type',
  'fragment',
  'no-side',
] as const;
const TABLE_FULL = REASONS.indexOf('table-full');
const FIRST_ERROR = FLOW_REASONS.length;
const NOT_IPV6 = REASONS.indexOf('not-ipv6');
const MALFORMED = REASONS.indexOf('malformed');
const ICMP_TYPE = REASONS.indexOf('icmp-type');
const FRAGMENT = REASONS.indexOf('fragment');
/** For who puts packets of both sides into one stream: this one is of neither. */
export const NO_SIDE_V6 = REASONS.indexOf('no-side');

const COUNTERS = ['out', 'in', 'hairpinned', 'flows-made', 'flows-evicted'] as const;
const [PACKETS_OUTWARD, PACKETS_INWARD, HAIRPINNED, MADE, EVICTED] = COUNTERS.keys();

/** @param tables made with the same addresses. */
export function createNatV6(context: Context, tables: NatTables, addresses: Addresses6, to: NatOutputs): Nat {
  const { u16, off, len, domain, offload, csumStart } = context.frames;
  const { flows, external, ownerKey } = tables;
  const { words, doubles, seed, find } = flows;
  const { values } = context.counters;
  const drops = new Drops(context, 'nat-v6', REASONS);
  const { base } = context.counters.claim('nat-v6', COUNTERS);
  const maker = createFlowMaker(context, tables, () => values[base + EVICTED]++);
  const progress = createProgress(context, tables);
  const errors = createErrorTranslatorV6(context, tables, addresses);
  const fragments = [OUT, IN].map((direction) =>
    createFragments(context, direction, FRAGMENTS_V6, (frame) => drops.drop(frame, FRAGMENT)),
  );

  function translate(batch: Batch, direction: number): void {
    const { frames: ids, count } = batch;
    for (let k = 0; k < count; k++) packet(ids[k], direction);
    values[base + (direction === OUT ? PACKETS_OUTWARD : PACKETS_INWARD)] += count;
  }

  function packet(frame: number, direction: number): void {
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    const total = ipv6Length(u16, ip, len[frame] - ETHERNET_HEADER);
    const upper = total === 0 ? -1 : upperLayer(u16, ip, total);
    if (u16[w + 6] !== ETHERTYPE_IPV6_LE) drops.drop(frame, NOT_IPV6);
    else if (upper < 0) drops.drop(frame, MALFORMED);
    else if ((upper & LATER_FRAGMENT_V6) !== 0) laterFragment(frame, direction);
    else {
      // Padding behind the packet is none of an error's.
      len[frame] = ETHERNET_HEADER + total;
      whole(frame, ip, upper, total - (upper & 0xffff), direction);
    }
  }

  /** A packet that has its transport header. @param left bytes from there on. */
  function whole(frame: number, ip: number, upper: number, left: number, direction: number): void {
    const protocol = protocolOf(upper);
    const t = ip + ((upper & 0xffff) >>> 1);
    let pair = 0;
    if (hasPorts(protocol)) {
      if (left < (protocol === PROTOCOL_TCP ? TCP_HEADER : UDP_HEADER)) {
        drops.drop(frame, MALFORMED);
        return;
      }
      pair = direction === OUT ? u16[t] | (u16[t + 1] << 16) : u16[t + 1] | (u16[t] << 16);
    } else if (protocol === PROTOCOL_ICMP) {
      const type = u16[t] & 0xff;
      if (left < ICMP_HEADER) drops.drop(frame, MALFORMED);
      else if (((upper >>> 16) & 0xff) !== PROTOCOL_ICMPV6) drops.drop(frame, ICMP_TYPE);
      else if (isErrorV6(type)) error(frame, direction, ETHERNET_HEADER + (upper & 0xffff));
      else if (type !== (direction === OUT ? ECHO_V6 : ECHO_REPLY_V6)) drops.drop(frame, ICMP_TYPE);
      else keyed(frame, ip, t, upper, u16[t + ICMP_IDENTIFIER], direction);
      return;
    }
    keyed(frame, ip, t, upper, pair, direction);
  }

  function keyed(frame: number, ip: number, t: number, upper: number, pair: number, direction: number): void {
    const protocol = protocolOf(upper);
    const flow = flowOf(frame, ip, t, protocol, pair, direction);
    if (flow < 0) {
      refuse(frame, -1 - flow, protocol === PROTOCOL_TCP ? t : 0, upper, direction);
      return;
    }
    const hairpin = direction === OUT && words[(flow << FLOW_SHIFT) + REMOTE_END] === external;
    const waited = (upper & FIRST_OF_FRAGMENTS) === 0 ? NOBODY : firstFragment(frame, flow, direction);
    rewrite(frame, ip, t, flow, protocol, direction);
    send(frame, hairpin, direction);
    for (let i = 0; i < waited.length; i++) send(waited[i], hairpin, direction);
  }

  /** The flow of a packet, a new one if need be; or -1 - reason. */
  function flowOf(
    frame: number,
    ip: number,
    t: number,
    protocol: number,
    pair: number,
    direction: number,
  ): number {
    const mine = ip + (direction === OUT ? IPV6_SOURCE : IPV6_DESTINATION);
    const theirs = ip + (direction === OUT ? IPV6_DESTINATION : IPV6_SOURCE);
    const key = protocol | ownerKey | (direction === OUT ? (domain[frame] + 1) << 16 : 0);
    const flags = protocol === PROTOCOL_TCP ? u16[t + TCP_FLAGS] : 0;
    const own = addresses.find(u16, mine);
    const remote = addresses.find(u16, theirs);
    if (own !== NO_ADDRESS && remote !== NO_ADDRESS) {
      const ref = find(flowKeyHash(seed, own, remote, pair, key), own, remote, pair, key);
      const isAgain = direction === IN && isOpening(flags) && ref !== NO_FLOW && makesWay(flows, ref >>> 1);
      if (ref !== NO_FLOW && !isAgain) return ref >>> 1;
    }
    return make(mine, theirs, pair, key, flags, direction);
  }

  /** Makes a flow, which then holds its addresses; meanwhile we do. */
  function make(
    mine: number,
    theirs: number,
    pair: number,
    key: number,
    flags: number,
    direction: number,
  ): number {
    const own = addresses.hold(u16, mine);
    if (own === NO_ADDRESS) return -1 - TABLE_FULL;
    const remote = addresses.hold(u16, theirs);
    if (remote === NO_ADDRESS) {
      addresses.release(own);
      return -1 - TABLE_FULL;
    }
    const flow =
      direction === OUT
        ? maker.outward(own, remote, pair, key, flags)
        : maker.inward(own, remote, pair, key, flags);
    addresses.release(own);
    addresses.release(remote);
    if (flow >= 0) values[base + MADE]++;
    return flow;
  }

  function rewrite(
    frame: number,
    ip: number,
    t: number,
    flow: number,
    protocol: number,
    direction: number,
  ): void {
    const at = flow << FLOW_SHIFT;
    progress(flow, protocol, direction, u16[t + TCP_FLAGS]);
    doubles[(at >>> 1) + 7] += len[frame] - ETHERNET_HEADER;
    // A partial checksum may also be one within a tunnel that the packet is.
    const partial = (offload[frame] & OFFLOAD_NEEDS_CSUM) !== 0 && off[frame] + csumStart[frame] === t << 1;
    if (direction === OUT) {
      words[at + PACKETS_OUT]++;
      const delta = replaceAddressV6(u16, ip + IPV6_SOURCE, addresses.words, words[at + EXTERNAL] * 4);
      replacePortV6(u16, t, protocol, 0, words[at + IN_PORTS] & 0xffff, delta, partial);
      return;
    }
    words[at + PACKETS_IN]++;
    domain[frame] = (words[at + OUT_KEY] >>> 16) - 1;
    const delta = replaceAddressV6(u16, ip + IPV6_DESTINATION, addresses.words, words[at + INSIDE] * 4);
    replacePortV6(u16, t, protocol, 1, words[at + OUT_PORTS] & 0xffff, delta, partial);
  }

  function send(frame: number, hairpin: boolean, direction: number): void {
    if (direction === IN) to.inside.push(frame);
    else if (!hairpin) to.outside.push(frame);
    else {
      values[base + HAIRPINNED]++;
      to.hairpin.push(frame);
    }
  }

  /** @param t first word of its TCP header, 0 when there is none. */
  function refuse(frame: number, reason: number, t: number, upper: number, direction: number): void {
    const isFragment = (upper & FIRST_OF_FRAGMENTS) !== 0;
    const left = off[frame] + len[frame] - 2 * t;
    if (t !== 0 && !isFragment && isWithoutBackend(reason) && to.reset?.(frame, t, left)) {
      sendTranslated(frame, OUT);
      return;
    }
    if (isFragment) fragments[direction].refuse(frame);
    if (direction === OUT && isShortage(reason)) to.refused?.(frame);
    drops.drop(frame, reason);
  }

  function firstFragment(frame: number, flow: number, direction: number): readonly number[] {
    const at = flow << FLOW_SHIFT;
    const address = words[at + (direction === OUT ? EXTERNAL : INSIDE)] * 4;
    const dom = (words[at + OUT_KEY] >>> 16) - 1;
    return fragments[direction].first(frame, addresses.words, address, dom);
  }

  function laterFragment(frame: number, direction: number): void {
    const verdict = fragments[direction].later(frame);
    if (verdict === PASSED) sendTranslated(frame, direction);
    else if (verdict !== HELD) drops.drop(frame, FRAGMENT);
  }

  function error(frame: number, direction: number, icmp: number): void {
    const verdict = errors.translate(frame, direction, icmp);
    if (verdict === TRANSLATED) sendTranslated(frame, direction);
    else drops.drop(frame, FIRST_ERROR + verdict);
  }

  function sendTranslated(frame: number, direction: number): void {
    const destination = ((off[frame] + ETHERNET_HEADER) >>> 1) + IPV6_DESTINATION;
    send(frame, addresses.find(u16, destination) === external, direction);
  }

  return {
    drops,
    fromInside: { process: (batch) => translate(batch, OUT) },
    fromOutside: { process: (batch) => translate(batch, IN) },
    age: () => {
      for (const side of fragments) side.expire();
    },
    flush: () => {
      for (const side of fragments) side.expire(true);
    },
  };
}

const NOBODY: readonly number[] = [];
