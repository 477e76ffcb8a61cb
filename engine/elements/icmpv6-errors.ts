/**
 * ICMPv6 errors as a router sends them (RFC 4443): made of the packet that they are about, in a slot of their own.
 *
 * None is made about an ICMPv6 error, a redirect, a packet to or from a group, or one whose source is nobody's or of
 * one link alone (2.4 e); they are limited as those of IPv4 are (2.4 f).
 */
import { native } from '../../native-bindings/index.js';
import type { Context } from '../graph.js';
import { NO_FRAME } from '../memory/frames.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV6_LE, swap16 } from '../wire/ethernet.js';
import { ICMP_CHECKSUM, ICMP_HEADER } from '../wire/icmp.js';
import { isNeverAnswered, PACKET_TOO_BIG } from '../wire/icmpv6.js';
import {
  fold16,
  IPV6_DESTINATION,
  IPV6_HEADER,
  IPV6_LENGTH,
  IPV6_NEXT_HOP,
  IPV6_SOURCE,
  PROTOCOL_ICMPV6,
  sumWords,
} from '../wire/ip.js';
import { isRoutableV6, LATER_FRAGMENT_V6, upperLayer } from '../wire/ipv6.js';
import { createErrorLimit } from './icmp-errors.js';

/** Longest error, bytes of IP packet: the least MTU of IPv6 (2.4 c). */
const LONGEST = 1280;
const HOP_LIMIT = 64;

const COUNTERS = ['sent', 'limited', 'no-slot'] as const;
const [SENT, LIMITED, NO_SLOT] = COUNTERS.keys();

export interface Icmpv6Errors {
  /**
   * Makes an error about a sound IPv6 packet, from the address of eight words at `source` of `words` to who sent it;
   * the Ethernet addresses are the packet's, turned round. Offload, ingress and domain: none, and the packet's.
   * @param argument the second word of the header: the MTU of the next hop, in bytes; else 0.
   * @returns the error's frame; NO_FRAME when there must not be one.
   */
  make(
    about: number,
    type: number,
    code: number,
    argument: number,
    words: Uint16Array,
    source: number,
  ): number;
}

export function createIcmpv6Errors(context: Context): Icmpv6Errors {
  const { frames } = context;
  const { u16, off, len, domain, ingress } = frames;
  const { values } = context.counters;
  const { base } = context.counters.claim('icmpv6-errors', COUNTERS);
  const take = createErrorLimit(context);
  const takeTooBig = createErrorLimit(context);

  function make(
    about: number,
    type: number,
    code: number,
    argument: number,
    words: Uint16Array,
    source: number,
  ): number {
    const w = off[about] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    if (!deserves(w, ip)) return NO_FRAME;
    if (type === PACKET_TOO_BIG ? !takeTooBig() : !take()) {
      values[base + LIMITED]++;
      return NO_FRAME;
    }
    const frame = frames.allocSmall();
    if (frame === NO_FRAME) {
      values[base + NO_SLOT]++;
      return NO_FRAME;
    }
    const whole = IPV6_HEADER + swap16(u16[ip + IPV6_LENGTH]);
    const quoted = Math.min(whole, LONGEST - IPV6_HEADER - ICMP_HEADER);
    const to = off[frame] >>> 1;
    for (let i = 0; i < 3; i++) {
      u16[to + i] = u16[w + 3 + i];
      u16[to + 3 + i] = u16[w + i];
    }
    u16[to + 6] = ETHERTYPE_IPV6_LE;
    const icmp = to + (ETHERNET_HEADER + IPV6_HEADER) / 2;
    for (let i = 0; i < (quoted + 1) >> 1; i++) u16[icmp + ICMP_HEADER / 2 + i] = u16[ip + i];
    writeIp(to + ETHERNET_HEADER / 2, ICMP_HEADER + quoted, words, source, ip);
    u16[icmp] = type | (code << 8);
    u16[icmp + ICMP_CHECKSUM] = 0;
    u16[icmp + 2] = 0;
    u16[icmp + 3] = swap16(argument);
    writeChecksum(icmp, ICMP_HEADER + quoted);
    len[frame] = ETHERNET_HEADER + IPV6_HEADER + ICMP_HEADER + quoted;
    domain[frame] = domain[about];
    ingress[frame] = ingress[about];
    values[base + SENT]++;
    return frame;
  }

  function writeIp(ip: number, payload: number, words: Uint16Array, source: number, about: number): void {
    u16[ip] = 0x60;
    u16[ip + 1] = 0;
    u16[ip + IPV6_LENGTH] = swap16(payload);
    u16[ip + IPV6_NEXT_HOP] = PROTOCOL_ICMPV6 | (HOP_LIMIT << 8);
    for (let i = 0; i < 8; i++) {
      u16[ip + IPV6_SOURCE + i] = words[source + i];
      u16[ip + IPV6_DESTINATION + i] = u16[about + IPV6_SOURCE + i];
    }
  }

  function writeChecksum(icmp: number, length: number): void {
    const message = swap16(native.checksum(icmp * 2, length, 0));
    const addresses = sumWords(u16, icmp - 16, 16);
    u16[icmp + ICMP_CHECKSUM] = ~fold16(message + addresses + swap16(length) + (PROTOCOL_ICMPV6 << 8));
  }

  function deserves(w: number, ip: number): boolean {
    if ((u16[w] & 1) !== 0 || !isRoutableV6(u16, ip + IPV6_SOURCE)) return false;
    if ((u16[ip + IPV6_DESTINATION] & 0xff) === 0xff) return false;
    const total = IPV6_HEADER + swap16(u16[ip + IPV6_LENGTH]);
    const upper = upperLayer(u16, ip, total);
    if (upper < 0) return false;
    if (((upper >>> 16) & 0xff) !== PROTOCOL_ICMPV6) return true;
    const at = upper & 0xffff;
    // A later fragment does not say what it is of.
    if ((upper & LATER_FRAGMENT_V6) !== 0 || total < at + ICMP_HEADER) return false;
    return !isNeverAnswered(u16[ip + (at >>> 1)] & 0xff);
  }

  return { make };
}
