/**
 * ICMP errors through a NAT (RFC 5508, section 4): the packet they carry is one of a flow's, as it looked on the other
 * side, and is made to look as on this side; the error itself gets the address that goes with it.
 *
 * An error never makes, refreshes or ends a flow (REQ-6). Its own checksum must be right (REQ-3), and the carried IP
 * header's (REQ-3a); the carried transport checksum is not looked at (REQ-3c), only mended where it is there. Whoever
 * sends it, it passes (RFC 4787, REQ-12a).
 */
import { native } from '../../../native-bindings/index.js';
import type { Context } from '../../graph.js';
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
import { ETHERNET_HEADER } from '../../wire/ethernet.js';
import { ICMP_CHECKSUM, ICMP_HEADER, ICMP_IDENTIFIER, isQuery, isReply } from '../../wire/icmp.js';
import {
  fold16,
  IPV4_DESTINATION,
  IPV4_FRAGMENT,
  IPV4_HEADER,
  IPV4_OFFSET_LE,
  IPV4_SOURCE,
  IPV4_TTL_PROTOCOL,
  PROTOCOL_ICMP,
  PROTOCOL_TCP,
  sumWords,
} from '../../wire/ip.js';
import { TCP_CHECKSUM } from '../../wire/tcp.js';
import { replaceAddress, replacePort } from './packet.js';
import { hasPorts, type NatTables } from './tables.js';

/** Bytes of the carried transport header that are always there (RFC 792), and that a flow is told by. */
const CARRIED = 8;
/** Bytes of it that hold the checksum of TCP. */
const CARRIED_TCP = 2 * (TCP_CHECKSUM + 1);

export const ERROR_REASONS = ['icmp-checksum', 'icmp-malformed', 'icmp-no-flow'] as const;
/** Verdicts: translated, or which of ERROR_REASONS. */
const [BAD_CHECKSUM, MALFORMED, NO_FLOW_FOR_IT] = ERROR_REASONS.keys();
export const TRANSLATED = -1;

export interface ErrorTranslator {
  /**
   * Translates an error whose ICMP header begins at byte `icmp` of the frame.
   * @returns TRANSLATED, with the domain of the frame set when it goes inside; or an index of ERROR_REASONS.
   */
  translate(frame: number, direction: number, icmp: number): number;
  /** The flow that such an error is about, which stays as it is; or -1 - an index of ERROR_REASONS. */
  flowOf(frame: number, direction: number, icmp: number): number;
}

/** @param tables the flows, and what the keys of their owner have in common. */
export function createErrorTranslator(
  context: Context,
  { flows, ownerKey }: Pick<NatTables, 'flows' | 'ownerKey'>,
): ErrorTranslator {
  const { u16, off, len, domain } = context.frames;
  const { words, seed, find } = flows;

  function flowOf(frame: number, direction: number, icmp: number): number {
    const start = off[frame] + icmp;
    const length = len[frame] - icmp;
    if (length < ICMP_HEADER + IPV4_HEADER + CARRIED) return -1 - MALFORMED;
    if (native.checksum(start, length, 0) !== 0xffff) return -1 - BAD_CHECKSUM;
    const inner = (start + ICMP_HEADER) >>> 1;
    const header = (u16[inner] & 15) << 2;
    if ((u16[inner] & 0xf0) !== 0x40 || header < IPV4_HEADER) return -1 - MALFORMED;
    if (length < ICMP_HEADER + header + CARRIED) return -1 - MALFORMED;
    if (fold16(sumWords(u16, inner, header >>> 1)) !== 0xffff) return -1 - BAD_CHECKSUM;
    // Only a first fragment has ports.
    if ((u16[inner + IPV4_FRAGMENT] & IPV4_OFFSET_LE) !== 0) return -1 - NO_FLOW_FOR_IT;
    const protocol = u16[inner + IPV4_TTL_PROTOCOL] >>> 8;
    const flow = carriedBy(frame, direction, inner, inner + (header >>> 1), protocol);
    return flow === NO_FLOW ? -1 - NO_FLOW_FOR_IT : flow;
  }

  function translate(frame: number, direction: number, icmp: number): number {
    const flow = flowOf(frame, direction, icmp);
    if (flow < 0) return -1 - flow;
    const start = off[frame] + icmp;
    const length = len[frame] - icmp;
    const inner = (start + ICMP_HEADER) >>> 1;
    const header = (u16[inner] & 15) << 2;
    const protocol = u16[inner + IPV4_TTL_PROTOCOL] >>> 8;
    const t = inner + (header >>> 1);
    rewrite(frame, direction, inner, t, protocol, flow << FLOW_SHIFT, length - ICMP_HEADER - header);
    // The whole was summed already; what has changed in it are several fields, so it is summed again.
    u16[(start >>> 1) + ICMP_CHECKSUM] = 0;
    const sum = native.checksum(start, length, 0);
    u16[(start >>> 1) + ICMP_CHECKSUM] = ~(((sum & 0xff) << 8) | (sum >>> 8));
    return TRANSLATED;
  }

  /** The flow of the carried packet, which went the other way. */
  function carriedBy(frame: number, direction: number, inner: number, t: number, protocol: number): number {
    const source = u16[inner + IPV4_SOURCE] | (u16[inner + IPV4_SOURCE + 1] << 16);
    const destination = u16[inner + IPV4_DESTINATION] | (u16[inner + IPV4_DESTINATION + 1] << 16);
    // From outside comes an error about what we sent: its source is our side. From inside, the other way round.
    const own = direction === IN ? source : destination;
    const remote = direction === IN ? destination : source;
    const within = direction === OUT || (ownerKey & IN_DOMAIN) !== 0;
    const key = protocol | ownerKey | (within ? (domain[frame] + 1) << 16 : 0);
    let ports = 0;
    if (protocol === PROTOCOL_ICMP) {
      const type = u16[t] & 0xff;
      if (!isQuery(type) && !isReply(type)) return NO_FLOW;
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
    const address = words[at + (direction === IN ? INSIDE : EXTERNAL)];
    const port = words[at + (direction === IN ? OUT_PORTS : IN_PORTS)] & 0xffff;
    const delta = replaceAddress(u16, inner, direction === IN ? IPV4_SOURCE : IPV4_DESTINATION, address);
    // What is behind a TCP header cut short is no checksum.
    if (protocol === PROTOCOL_TCP && carried < CARRIED_TCP) u16[t + (direction === IN ? 0 : 1)] = port;
    else replacePort(u16, t, protocol, direction === IN ? 0 : 1, port, delta, false);
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    replaceAddress(u16, ip, direction === IN ? IPV4_DESTINATION : IPV4_SOURCE, address);
    if (direction === IN) domain[frame] = (words[at + OUT_KEY] >>> 16) - 1;
  }

  return { translate, flowOf };
}
