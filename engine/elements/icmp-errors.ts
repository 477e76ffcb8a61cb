/**
 * ICMP errors as a router sends them (RFC 792; RFC 1812, 4.3 and 5.2.7): made of the packet that they are about, in a
 * slot of their own.
 *
 * None is made about an ICMP error, a fragment but the first, a packet to or from a group or a broadcast address, or
 * one whose source is nobody's (RFC 1122, 3.2.2). They are limited by a token bucket, as RFC 1812, 4.3.2.8 asks; those
 * by which senders find out how long packets may be have one of their own, for without them connections hang.
 */
import { native } from '../../native-bindings/index.js';
import type { Context } from '../graph.js';
import { NO_FRAME } from '../memory/frames.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV4_LE, swap16 } from '../wire/ethernet.js';
import {
  FRAGMENTATION_NEEDED,
  ICMP_CHECKSUM,
  ICMP_HEADER,
  isError,
  REDIRECT,
  UNREACHABLE,
} from '../wire/icmp.js';
import {
  IPV4_DESTINATION,
  IPV4_FRAGMENT,
  IPV4_HEADER,
  IPV4_LENGTH,
  IPV4_OFFSET_LE,
  IPV4_SOURCE,
  IPV4_TTL_PROTOCOL,
  PROTOCOL_ICMP,
  writeIpv4Checksum,
} from '../wire/ip.js';
import { isRoutable } from '../wire/ipv4-checks.js';

/** Errors a second, and how many at once: Linux's own figures. */
const PER_SECOND = 1000;
const BURST = 50;
/** Longest error, bytes of IP packet (RFC 1812, 4.3.2.3). */
const LONGEST = 576;
/** Version and header length, and precedence 6, internetwork control (RFC 1812, 4.3.2.5). */
const VERSION_AND_TOS_LE = 0xc045;
const DONT_FRAGMENT_LE = 0x0040;
const TTL = 64;

const COUNTERS = ['sent', 'limited', 'no-slot'] as const;
const [SENT, LIMITED, NO_SLOT] = COUNTERS.keys();

export interface IcmpErrors {
  /**
   * Makes an error about a sound IPv4 packet, from `source` to who sent it; the Ethernet addresses are the packet's,
   * turned round. Offload, ingress and domain: none, and the packet's.
   * @param argument the second word of the error's rest: the MTU of the next hop, in bytes; else 0.
   * @returns the error's frame; NO_FRAME when there must not be one.
   */
  make(about: number, type: number, code: number, argument: number, source: number): number;
}

/** Says whether an error may be sent now, and counts it as sent. */
export function createErrorLimit(context: Context): () => boolean {
  /** Tokens, and when they were counted, in milliseconds. */
  const bucket = new Float64Array([BURST, 0]);
  return () => {
    const { now } = context;
    bucket[0] = Math.min(BURST, bucket[0] + ((now - bucket[1]) * PER_SECOND) / 1000);
    bucket[1] = now;
    if (bucket[0] < 1) return false;
    bucket[0]--;
    return true;
  };
}

export function createIcmpErrors(context: Context): IcmpErrors {
  const { frames } = context;
  const { u16, off, len, domain, ingress } = frames;
  const { values } = context.counters;
  const { base } = context.counters.claim('icmp-errors', COUNTERS);
  const take = createErrorLimit(context);
  const takeTooLong = createErrorLimit(context);

  function make(about: number, type: number, code: number, argument: number, source: number): number {
    const w = off[about] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    if (!deserves(w, ip)) return NO_FRAME;
    const tooLong = type === UNREACHABLE && code === FRAGMENTATION_NEEDED;
    if (tooLong ? !takeTooLong() : !take()) {
      values[base + LIMITED]++;
      return NO_FRAME;
    }
    const quoted = Math.min(swap16(u16[ip + IPV4_LENGTH]), LONGEST - IPV4_HEADER - ICMP_HEADER);
    const length = ETHERNET_HEADER + IPV4_HEADER + ICMP_HEADER + quoted;
    const frame = frames.allocSmall();
    if (frame === NO_FRAME) {
      values[base + NO_SLOT]++;
      return NO_FRAME;
    }
    const to = off[frame] >>> 1;
    for (let i = 0; i < 3; i++) {
      u16[to + i] = u16[w + 3 + i];
      u16[to + 3 + i] = u16[w + i];
    }
    u16[to + 6] = ETHERTYPE_IPV4_LE;
    const icmp = to + (ETHERNET_HEADER + IPV4_HEADER) / 2;
    const quote = icmp + ICMP_HEADER / 2;
    for (let i = 0; i < (quoted + 1) >> 1; i++) u16[quote + i] = u16[ip + i];
    writeIp(to + ETHERNET_HEADER / 2, length - ETHERNET_HEADER, source, ip);
    u16[icmp] = type | (code << 8);
    u16[icmp + ICMP_CHECKSUM] = 0;
    u16[icmp + 2] = 0;
    u16[icmp + 3] = swap16(argument);
    u16[icmp + ICMP_CHECKSUM] = ~swap16(native.checksum(icmp * 2, ICMP_HEADER + quoted, 0));
    len[frame] = length;
    domain[frame] = domain[about];
    ingress[frame] = ingress[about];
    values[base + SENT]++;
    return frame;
  }

  function writeIp(ip: number, length: number, source: number, about: number): void {
    u16[ip] = VERSION_AND_TOS_LE;
    u16[ip + IPV4_LENGTH] = swap16(length);
    u16[ip + 2] = 0;
    u16[ip + IPV4_FRAGMENT] = DONT_FRAGMENT_LE;
    u16[ip + IPV4_TTL_PROTOCOL] = TTL | (PROTOCOL_ICMP << 8);
    u16[ip + IPV4_SOURCE] = source;
    u16[ip + IPV4_SOURCE + 1] = source >>> 16;
    u16[ip + IPV4_DESTINATION] = u16[about + IPV4_SOURCE];
    u16[ip + IPV4_DESTINATION + 1] = u16[about + IPV4_SOURCE + 1];
    writeIpv4Checksum(u16, ip);
  }

  function deserves(w: number, ip: number): boolean {
    // To a group on the link, or a fragment but the first.
    if ((u16[w] & 1) !== 0 || (u16[ip + IPV4_FRAGMENT] & IPV4_OFFSET_LE) !== 0) return false;
    if (!isRoutable(u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16))) return false;
    if ((u16[ip + IPV4_DESTINATION] & 0xff) >= 224) return false;
    if (u16[ip + IPV4_TTL_PROTOCOL] >>> 8 !== PROTOCOL_ICMP) return true;
    const header = (u16[ip] & 15) << 2;
    if (swap16(u16[ip + IPV4_LENGTH]) < header + ICMP_HEADER) return false;
    const type = u16[ip + (header >>> 1)] & 0xff;
    return !isError(type) && type !== REDIRECT;
  }

  return { make };
}
