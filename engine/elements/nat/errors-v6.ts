/**
 * ICMPv6 errors through a NAT, as errors.ts does it for IPv4 (RFC 5508, section 4, said of IPv4, is followed): what
 * differs is that ICMPv6 checksums cover the addresses, and that extension headers may be in front of what is carried.
 */
import { native } from '../../../native-bindings/index.js';
import type { Context } from '../../graph.js';
import type { Addresses6 } from '../../tables/addresses6.js';
import {
  EXTERNAL,
  FLOW_SHIFT,
  flowKeyHash,
  IN,
  IN_DOMAIN,
  IN_PORTS,
  INSIDE,
  NO_FLOW,
  OUT,
  OUT_KEY,
  OUT_PORTS,
} from '../../tables/flows.js';
import { ETHERNET_HEADER, swap16 } from '../../wire/ethernet.js';
import { ICMP_CHECKSUM, ICMP_HEADER, ICMP_IDENTIFIER } from '../../wire/icmp.js';
import { ECHO_REPLY_V6, ECHO_V6 } from '../../wire/icmpv6.js';
import {
  fold16,
  IPV6_DESTINATION,
  IPV6_HEADER,
  IPV6_LENGTH,
  IPV6_SOURCE,
  PROTOCOL_ICMP,
  PROTOCOL_ICMPV6,
  PROTOCOL_TCP,
  sumWords,
} from '../../wire/ip.js';
import { LATER_FRAGMENT_V6, upperLayer } from '../../wire/ipv6.js';
import { TCP_CHECKSUM } from '../../wire/tcp.js';
import { ERROR_REASONS, type ErrorTranslator, TRANSLATED } from './errors.js';
import { replaceAddressV6, replacePortV6 } from './packet-v6.js';
import { hasPorts, type NatTables } from './tables.js';

/** Bytes of the carried transport header that a flow is told by, and those that hold the checksum of TCP. */
const CARRIED = 8;
const CARRIED_TCP = 2 * (TCP_CHECKSUM + 1);

const [BAD_CHECKSUM, MALFORMED, NO_FLOW_FOR_IT] = ERROR_REASONS.keys();

export function createErrorTranslatorV6(
  context: Context,
  { flows, ownerKey }: Pick<NatTables, 'flows' | 'ownerKey'>,
  addresses: Addresses6,
): ErrorTranslator {
  const { u16, off, len, domain } = context.frames;
  const { words, seed, find } = flows;

  function flowOf(frame: number, direction: number, icmp: number): number {
    const start = off[frame] + icmp;
    const length = len[frame] - icmp;
    if (length < ICMP_HEADER + IPV6_HEADER + CARRIED) return -1 - MALFORMED;
    if (sum((off[frame] + ETHERNET_HEADER) >>> 1, start, length) !== 0xffff) return -1 - BAD_CHECKSUM;
    const inner = (start + ICMP_HEADER) >>> 1;
    if ((u16[inner] & 0xf0) !== 0x60) return -1 - MALFORMED;
    const carried = carriedOf(inner, length);
    const upper = upperLayer(u16, inner, carried);
    if (upper < 0 || carried < (upper & 0xffff) + CARRIED) return -1 - MALFORMED;
    // Only a first fragment has ports.
    if ((upper & LATER_FRAGMENT_V6) !== 0) return -1 - NO_FLOW_FOR_IT;
    const flow = carriedBy(frame, direction, inner, inner + ((upper & 0xffff) >>> 1), protocolOf(upper));
    return flow === NO_FLOW ? -1 - NO_FLOW_FOR_IT : flow;
  }

  /** Bytes of the packet at `inner` that an error of `length` bytes carries. */
  function carriedOf(inner: number, length: number): number {
    return Math.min(length - ICMP_HEADER, IPV6_HEADER + swap16(u16[inner + IPV6_LENGTH]));
  }

  function translate(frame: number, direction: number, icmp: number): number {
    const flow = flowOf(frame, direction, icmp);
    if (flow < 0) return -1 - flow;
    const start = off[frame] + icmp;
    const length = len[frame] - icmp;
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    const inner = (start + ICMP_HEADER) >>> 1;
    const carried = carriedOf(inner, length);
    const upper = upperLayer(u16, inner, carried);
    const t = inner + ((upper & 0xffff) >>> 1);
    const left = carried - (upper & 0xffff);
    rewrite(frame, direction, inner, t, protocolOf(upper), flow << FLOW_SHIFT, left);
    // The whole was summed already; what has changed in it are several fields, so it is summed again.
    u16[(start >>> 1) + ICMP_CHECKSUM] = 0;
    u16[(start >>> 1) + ICMP_CHECKSUM] = ~sum(ip, start, length);
    return TRANSLATED;
  }

  /** Sum of an ICMPv6 message and its pseudo-header. */
  function sum(ip: number, start: number, length: number): number {
    const message = swap16(native.checksum(start, length, 0));
    return fold16(message + sumWords(u16, ip + IPV6_SOURCE, 16) + swap16(length) + (PROTOCOL_ICMPV6 << 8));
  }

  /** The flow of the carried packet, which went the other way. */
  function carriedBy(frame: number, direction: number, inner: number, t: number, protocol: number): number {
    const source = addresses.find(u16, inner + IPV6_SOURCE);
    const destination = addresses.find(u16, inner + IPV6_DESTINATION);
    // From outside comes an error about what we sent: its source is our side. From inside, the other way round.
    const own = direction === IN ? source : destination;
    const remote = direction === IN ? destination : source;
    const within = direction === OUT || (ownerKey & IN_DOMAIN) !== 0;
    const key = protocol | ownerKey | (within ? (domain[frame] + 1) << 16 : 0);
    let ports = 0;
    if (protocol === PROTOCOL_ICMP) {
      const type = u16[t] & 0xff;
      if (type !== ECHO_V6 && type !== ECHO_REPLY_V6) return NO_FLOW;
      ports = u16[t + ICMP_IDENTIFIER];
    } else if (hasPorts(protocol))
      ports = direction === IN ? u16[t] | (u16[t + 1] << 16) : u16[t + 1] | (u16[t] << 16);
    return find(flowKeyHash(seed, own, remote, ports, key), own, remote, ports, key) >>> 1;
  }

  function rewrite(
    frame: number,
    direction: number,
    inner: number,
    t: number,
    protocol: number,
    at: number,
    carried: number,
  ): void {
    const address = words[at + (direction === IN ? INSIDE : EXTERNAL)] * 4;
    const port = words[at + (direction === IN ? OUT_PORTS : IN_PORTS)] & 0xffff;
    const place = inner + (direction === IN ? IPV6_SOURCE : IPV6_DESTINATION);
    const delta = replaceAddressV6(u16, place, addresses.words, address);
    // What is behind a TCP header cut short is no checksum.
    if (protocol === PROTOCOL_TCP && carried < CARRIED_TCP) u16[t + (direction === IN ? 0 : 1)] = port;
    else replacePortV6(u16, t, protocol, direction === IN ? 0 : 1, port, delta, false);
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    replaceAddressV6(u16, ip + (direction === IN ? IPV6_DESTINATION : IPV6_SOURCE), addresses.words, address);
    if (direction === IN) domain[frame] = (words[at + OUT_KEY] >>> 16) - 1;
  }

  return { translate, flowOf };
}

/** Protocol of what `upperLayer` found, as flows know it: ICMPv6 has the number of ICMP. */
export function protocolOf(upper: number): number {
  const protocol = (upper >>> 16) & 0xff;
  return protocol === PROTOCOL_ICMPV6 ? PROTOCOL_ICMP : protocol;
}
