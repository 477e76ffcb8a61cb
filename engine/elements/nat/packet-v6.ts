/** What translation does to a packet of IPv6: packet.ts, for addresses of 128 bits and ICMPv6. */
import { ICMP_CHECKSUM, ICMP_IDENTIFIER } from '../../wire/icmp.js';
import { fold16, IPV6_DESTINATION, IPV6_SOURCE, PROTOCOL_ICMP } from '../../wire/ip.js';
import { fragmentHeader } from '../../wire/ipv6.js';
import type { FragmentFamily } from './fragments.js';
import { replacePort } from './packet.js';

/**
 * Replaces the address of eight words at `word` by that of four words from `at` on.
 * @returns what to add to a sum of 16-bit words (RFC 1624).
 */
export function replaceAddressV6(u16: Uint16Array, word: number, words: Int32Array, at: number): number {
  let delta = 0;
  for (let i = 0; i < 8; i++) {
    const after = (words[at + (i >> 1)] >>> ((i & 1) << 4)) & 0xffff;
    delta += (~u16[word + i] & 0xffff) + after;
    u16[word + i] = after;
  }
  return delta;
}

/** `replacePort` for IPv6; of ICMPv6, whose protocol is given as ICMP's, the checksum covers the addresses too. */
export function replacePortV6(
  u16: Uint16Array,
  t: number,
  protocol: number,
  port: number,
  after: number,
  delta: number,
  partial: boolean,
): void {
  if (protocol !== PROTOCOL_ICMP) {
    replacePort(u16, t, protocol, port, after, delta, partial);
    return;
  }
  const before = u16[t + ICMP_IDENTIFIER];
  const sum = u16[t + ICMP_CHECKSUM];
  u16[t + ICMP_IDENTIFIER] = after;
  u16[t + ICMP_CHECKSUM] = partial
    ? fold16(sum + delta)
    : ~fold16((~sum & 0xffff) + delta + (~before & 0xffff) + after);
}

/** Fragments of IPv6 are told by their addresses and their identification (RFC 8200, 4.5). */
export const FRAGMENTS_V6: FragmentFamily = {
  read(u16, ip, key) {
    for (let i = 0; i < 8; i++)
      key[i] = u16[ip + IPV6_SOURCE + 2 * i] | (u16[ip + IPV6_SOURCE + 2 * i + 1] << 16);
    const header = fragmentHeader(u16, ip);
    key[8] = u16[header + 2] | (u16[header + 3] << 16);
  },
  replace(u16, ip, inward, words, at) {
    replaceAddressV6(u16, ip + (inward ? IPV6_DESTINATION : IPV6_SOURCE), words, at);
  },
};
