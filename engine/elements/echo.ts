/** Answers echo requests to an address of ours (RFC 792; RFC 1122, 3.2.2.6; RFC 4443, 4.2), in place. */
import type { FrameMemory } from '../memory/frames.js';
import { ETHERNET_HEADER, swap16 } from '../wire/ethernet.js';
import { ECHO, ECHO_REPLY, ICMP_CHECKSUM, ICMP_HEADER } from '../wire/icmp.js';
import { ECHO_REPLY_V6, ECHO_V6 } from '../wire/icmpv6.js';
import {
  IPV4_DESTINATION,
  IPV4_FRAGMENT,
  IPV4_LENGTH,
  IPV4_OFFSET_LE,
  IPV4_SOURCE,
  IPV4_TTL_PROTOCOL,
  IPV6_DESTINATION,
  IPV6_FRAGMENT_HEADER,
  IPV6_HEADER,
  IPV6_LENGTH,
  IPV6_NEXT_HOP,
  IPV6_SOURCE,
  PROTOCOL_ICMP,
  PROTOCOL_ICMPV6,
  updateChecksum,
  writeIpv4Checksum,
} from '../wire/ip.js';
import { FRAGMENT_OFFSET_LE } from '../wire/ipv6.js';

const TTL = 64;
/** Words of the fragment header of IPv6 (RFC 8200, 4.5). */
const FRAGMENT_HEADER = 4;

/** Whether a sound packet is a whole echo request. */
export function isEcho(u16: Uint16Array, ip: number): boolean {
  if (u16[ip + IPV4_TTL_PROTOCOL] >>> 8 !== PROTOCOL_ICMP || (u16[ip + IPV4_FRAGMENT] & 0xff3f) !== 0)
    return false;
  const header = (u16[ip] & 15) << 2;
  return swap16(u16[ip + IPV4_LENGTH]) >= header + ICMP_HEADER && u16[ip + (header >>> 1)] === ECHO;
}

/**
 * Whether a sound packet is a fragment of an echo request, or may be: only the first says so. Where nothing else is
 * served each is answered by itself, for addresses that change places and a type leave the rest of a datagram as it is.
 */
export function isEchoFragment(u16: Uint16Array, ip: number): boolean {
  const field = u16[ip + IPV4_FRAGMENT] & 0xff3f;
  if (u16[ip + IPV4_TTL_PROTOCOL] >>> 8 !== PROTOCOL_ICMP || field === 0) return false;
  const header = (u16[ip] & 15) << 2;
  const first = swap16(u16[ip + IPV4_LENGTH]) >= header + ICMP_HEADER && u16[ip + (header >>> 1)] === ECHO;
  return first || (field & IPV4_OFFSET_LE) !== 0;
}

/**
 * Makes an echo request, or a fragment of one, its reply, Ethernet addresses included. A request with a wrong checksum
 * gets a wrong one.
 */
export function answerEcho({ u16, off }: FrameMemory, frame: number): void {
  const w = off[frame] >>> 1;
  const ip = w + ETHERNET_HEADER / 2;
  const words = (u16[ip] & 15) << 1;
  for (let i = 0; i < 3; i++) swap(u16, w + i, w + 3 + i);
  for (let i = 0; i < 2; i++) swap(u16, ip + IPV4_SOURCE + i, ip + IPV4_DESTINATION + i);
  u16[ip + IPV4_TTL_PROTOCOL] = TTL | (PROTOCOL_ICMP << 8);
  writeIpv4Checksum(u16, ip, words);
  if ((u16[ip + IPV4_FRAGMENT] & IPV4_OFFSET_LE) !== 0) return;
  const icmp = ip + words;
  u16[icmp] = ECHO_REPLY;
  u16[icmp + ICMP_CHECKSUM] = updateChecksum(u16[icmp + ICMP_CHECKSUM], ECHO, ECHO_REPLY);
}

/** Whether a sound IPv6 packet is a whole echo request, right behind its header. */
export function isEchoV6(u16: Uint16Array, ip: number): boolean {
  if ((u16[ip + IPV6_NEXT_HOP] & 0xff) !== PROTOCOL_ICMPV6) return false;
  return swap16(u16[ip + IPV6_LENGTH]) >= ICMP_HEADER && u16[ip + IPV6_HEADER / 2] === ECHO_V6;
}

/** The same as `isEchoFragment`, where the fragment header is the only one in front. */
export function isEchoFragmentV6(u16: Uint16Array, ip: number): boolean {
  const header = ip + IPV6_HEADER / 2;
  if ((u16[ip + IPV6_NEXT_HOP] & 0xff) !== IPV6_FRAGMENT_HEADER || swap16(u16[ip + IPV6_LENGTH]) < 16)
    return false;
  if ((u16[header] & 0xff) !== PROTOCOL_ICMPV6) return false;
  return (u16[header + 1] & FRAGMENT_OFFSET_LE) !== 0 || u16[header + FRAGMENT_HEADER] === ECHO_V6;
}

/** Makes it the reply. Addresses that change places leave the sum of the pseudo-header as it is. */
export function answerEchoV6({ u16, off }: FrameMemory, frame: number): void {
  const w = off[frame] >>> 1;
  const ip = w + ETHERNET_HEADER / 2;
  for (let i = 0; i < 3; i++) swap(u16, w + i, w + 3 + i);
  for (let i = 0; i < 8; i++) swap(u16, ip + IPV6_SOURCE + i, ip + IPV6_DESTINATION + i);
  const next = u16[ip + IPV6_NEXT_HOP] & 0xff;
  u16[ip + IPV6_NEXT_HOP] = next | (TTL << 8);
  const header = ip + IPV6_HEADER / 2;
  const part = next === IPV6_FRAGMENT_HEADER;
  if (part && (u16[header + 1] & FRAGMENT_OFFSET_LE) !== 0) return;
  const icmp = header + (part ? FRAGMENT_HEADER : 0);
  u16[icmp] = ECHO_REPLY_V6;
  u16[icmp + ICMP_CHECKSUM] = updateChecksum(u16[icmp + ICMP_CHECKSUM], ECHO_V6, ECHO_REPLY_V6);
}

function swap(u16: Uint16Array, a: number, b: number): void {
  const kept = u16[a];
  u16[a] = u16[b];
  u16[b] = kept;
}
