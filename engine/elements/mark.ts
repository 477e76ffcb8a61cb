/**
 * `mark`: sets the firewall mark of each frame by the first rule that its packet meets, as the mangle tables of IPv4
 * and IPv6 do; without one it has none. Of fragments only the first has ports; the others meet rules for any port alone.
 *
 * Rules are looked at one by one, each some nanoseconds: they are meant to be few.
 */
import type { Batch, Consumer, Context } from '../graph.js';
import type { MarkIntent } from '../intent.js';
import { addressWord, maskWord } from '../tables/gateways.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV4_LE, ETHERTYPE_IPV6_LE, swap16 } from '../wire/ethernet.js';
import {
  IPV4_DESTINATION,
  IPV4_FRAGMENT,
  IPV4_HEADER,
  IPV4_OFFSET_LE,
  IPV4_SOURCE,
  IPV4_TTL_PROTOCOL,
  IPV6_DESTINATION,
  IPV6_SOURCE,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
} from '../wire/ip.js';
import { inPrefix, ipv6Length, LATER_FRAGMENT_V6, maskWords, upperLayer, words16 } from '../wire/ipv6.js';

export interface Marker extends Consumer {
  /** Makes the rules what the list says. Called between breaths. */
  set(rules: readonly MarkIntent[]): void;
}

/** A rule as the loops want it; `A` is an address or a mask. */
interface Rule<A> {
  readonly mark: number;
  readonly domain: number;
  readonly protocol: number;
  readonly source: A;
  readonly sourceMask: A;
  readonly destination: A;
  readonly destinationMask: A;
  readonly firstPort: number;
  readonly lastPort: number;
  readonly port: number;
}

/** The port of what has none. */
const NO_PORT = -1;

/** @param next takes the same batch, its frames marked. */
export function createMarker(context: Context, next: Consumer): Marker {
  const { u16, off, len, domain, ingress, mark } = context.frames;
  /** Addresses as little-endian words, and as eight of 16 bits. */
  let rules: readonly Rule<number>[] = [];
  let rulesV6: readonly Rule<Uint16Array>[] = [];

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    if (rules.length + rulesV6.length === 0) for (let k = 0; k < count; k++) mark[ids[k]] = 0;
    else for (let k = 0; k < count; k++) mark[ids[k]] = markOf(ids[k]);
    next.process(batch);
  }

  function markOf(frame: number): number {
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    const type = u16[ip - 1];
    if (type === ETHERTYPE_IPV4_LE) return rules.length === 0 ? 0 : markOfV4(frame, ip);
    return type !== ETHERTYPE_IPV6_LE || rulesV6.length === 0 ? 0 : markOfV6(frame, ip);
  }

  function markOfV4(frame: number, ip: number): number {
    const header = (u16[ip] & 15) << 2;
    if (len[frame] < ETHERNET_HEADER + IPV4_HEADER) return 0;
    if ((u16[ip] & 0xf0) !== 0x40 || header < IPV4_HEADER) return 0;
    const protocol = u16[ip + IPV4_TTL_PROTOCOL] >>> 8;
    if (!hasPorts(protocol)) return 0;
    const whole =
      (u16[ip + IPV4_FRAGMENT] & IPV4_OFFSET_LE) === 0 && len[frame] >= ETHERNET_HEADER + header + 4;
    const port = whole ? swap16(u16[ip + (header >>> 1) + 1]) : NO_PORT;
    const source = u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16);
    const destination = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    for (let i = 0; i < rules.length; i++) {
      const rule = rules[i];
      if (((destination ^ rule.destination) & rule.destinationMask) !== 0) continue;
      if (((source ^ rule.source) & rule.sourceMask) !== 0) continue;
      if (isFor(rule, frame, protocol, port)) return rule.mark;
    }
    return 0;
  }

  function markOfV6(frame: number, ip: number): number {
    const total = ipv6Length(u16, ip, len[frame] - ETHERNET_HEADER);
    const upper = total === 0 ? -1 : upperLayer(u16, ip, total);
    const protocol = (upper >>> 16) & 0xff;
    if (upper < 0 || !hasPorts(protocol)) return 0;
    const at = upper & 0xffff;
    const whole = (upper & LATER_FRAGMENT_V6) === 0 && total >= at + 4;
    const port = whole ? swap16(u16[ip + (at >>> 1) + 1]) : NO_PORT;
    for (let i = 0; i < rulesV6.length; i++) {
      const rule = rulesV6[i];
      if (!inPrefix(u16, ip + IPV6_DESTINATION, rule.destination, rule.destinationMask, 0)) continue;
      if (!inPrefix(u16, ip + IPV6_SOURCE, rule.source, rule.sourceMask, 0)) continue;
      if (isFor(rule, frame, protocol, port)) return rule.mark;
    }
    return 0;
  }

  /** A mark leads to a service, and those have no other protocols. */
  function hasPorts(protocol: number): boolean {
    return protocol === PROTOCOL_TCP || protocol === PROTOCOL_UDP;
  }

  /** Whether a rule for these addresses is met in all else. */
  function isFor(rule: Rule<unknown>, frame: number, protocol: number, port: number): boolean {
    if (rule.domain !== domain[frame] || (rule.protocol !== 0 && rule.protocol !== protocol)) return false;
    if (rule.port >= 0 && rule.port !== ingress[frame]) return false;
    if (rule.firstPort === 0 && rule.lastPort === 65535) return true;
    return port >= rule.firstPort && port <= rule.lastPort;
  }

  function set(wanted: readonly MarkIntent[]): void {
    const of = (size: number) => wanted.filter(({ source }) => source.address.length === size);
    rules = of(4).map((rule) => ruleOf(rule, addressWord, maskWord));
    rulesV6 = of(16).map((rule) => ruleOf(rule, words16, maskWords));
  }

  return { process, set };
}

function ruleOf<A>(
  { source, destination, ...rest }: MarkIntent,
  addressOf: (bytes: Uint8Array) => A,
  maskOf: (length: number) => A,
): Rule<A> {
  return {
    ...{ source: addressOf(source.address), sourceMask: maskOf(source.length) },
    ...{ destination: addressOf(destination.address), destinationMask: maskOf(destination.length) },
    ...rest,
  };
}
