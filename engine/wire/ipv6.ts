/**
 * What a router asks of an IPv6 packet before it looks further (RFC 8200), and where its transport header is. Functions
 * take the index of a header's first 16-bit word.
 *
 * `transportOffset` of layers.ts finds checksums for those who cut packets; this one tells fragments and source routes
 * apart, which a router must know of.
 */
import { swap16 } from './ethernet.js';
import { IPV6_FRAGMENT_HEADER, IPV6_HEADER, IPV6_LENGTH, IPV6_NEXT_HOP } from './ip.js';

const HOP_BY_HOP = 0;
const ROUTING = 43;
const DESTINATION_OPTIONS = 60;
/** Extension headers that are walked; nobody sends more. */
const MAX_EXTENSIONS = 8;

/** What `upperLayer` returns for headers that do not add up, and for a route that the sender has chosen. */
const BAD_EXTENSIONS = -1;
export const ROUTED_BY_SENDER = -2;
/** Bits of what it returns: a fragment that is the first of several, and one that is not. */
export const FIRST_OF_FRAGMENTS = 1 << 24;
export const LATER_FRAGMENT_V6 = 1 << 25;

/** Word index within a fragment header, from its first word on (RFC 8200, 4.5), and the bits of the word there. */
const FRAGMENT_FIELD = 1;
export const FRAGMENT_OFFSET_LE = 0xf8ff;
const MORE_FRAGMENTS_LE = 0x0100;

/** Bytes of a well-formed packet; 0 of anything else. Jumbograms are none. @param left bytes there from the header on. */
export function ipv6Length(u16: Uint16Array, ip: number, left: number): number {
  if (left < IPV6_HEADER || (u16[ip] & 0xf0) !== 0x60) return 0;
  const total = IPV6_HEADER + swap16(u16[ip + IPV6_LENGTH]);
  return total > left ? 0 : total;
}

/**
 * Finds the upper-layer header of a well-formed packet of `total` bytes.
 * @returns its offset from the IP header in bits 0–15 and its protocol in bits 16–23, with FIRST_OF_FRAGMENTS or
 *   LATER_FRAGMENT_V6 (the offset is then that of the fragment's content); BAD_EXTENSIONS; or ROUTED_BY_SENDER when a
 *   routing header has segments left (RFC 5095).
 */
export function upperLayer(u16: Uint16Array, ip: number, total: number): number {
  let next = u16[ip + IPV6_NEXT_HOP] & 0xff;
  let at = IPV6_HEADER;
  let flags = 0;
  for (let i = 0; isExtension(next); i++) {
    if (i === MAX_EXTENSIONS || total < at + 8) return BAD_EXTENSIONS;
    // Hop-by-hop options come first or not at all (4.1).
    if (next === HOP_BY_HOP && i > 0) return BAD_EXTENSIONS;
    const word = ip + (at >>> 1);
    if (next === IPV6_FRAGMENT_HEADER) {
      const field = u16[word + FRAGMENT_FIELD];
      if ((field & FRAGMENT_OFFSET_LE) !== 0)
        return (at + 8) | ((u16[word] & 0xff) << 16) | LATER_FRAGMENT_V6;
      // One that is all of its packet is whole (RFC 6946).
      if ((field & MORE_FRAGMENTS_LE) !== 0) flags = FIRST_OF_FRAGMENTS;
      at += 8;
    } else {
      if (next === ROUTING && u16[word + 1] >>> 8 !== 0) return ROUTED_BY_SENDER;
      at += ((u16[word] >>> 8) + 1) << 3;
    }
    next = u16[word] & 0xff;
  }
  return at > total ? BAD_EXTENSIONS : at | (next << 16) | flags;
}

/** Index of the first word of the fragment header of a packet in which `upperLayer` has found one. */
export function fragmentHeader(u16: Uint16Array, ip: number): number {
  let next = u16[ip + IPV6_NEXT_HOP] & 0xff;
  let word = ip + IPV6_HEADER / 2;
  for (let i = 0; i < MAX_EXTENSIONS && next !== IPV6_FRAGMENT_HEADER; i++) {
    next = u16[word] & 0xff;
    word += ((u16[word] >>> 8) + 1) << 2;
  }
  return word;
}

function isExtension(next: number): boolean {
  return (
    next === HOP_BY_HOP || next === ROUTING || next === DESTINATION_OPTIONS || next === IPV6_FRAGMENT_HEADER
  );
}

/**
 * Whether the address at a word may be the source or the destination of what is routed: no group, nothing of one link
 * alone (RFC 4291, 2.5.6), and nothing of ::/80, where the unspecified, the loopback and the IPv4-mapped addresses are.
 */
export function isRoutableV6(u16: Uint16Array, word: number): boolean {
  const first = u16[word];
  if ((first & 0xff) === 0xff || isLinkLocal(u16, word)) return false;
  return (first | u16[word + 1] | u16[word + 2] | u16[word + 3] | u16[word + 4]) !== 0;
}

/** Whether the address at a word is link-local, fe80::/10. */
export function isLinkLocal(u16: Uint16Array, word: number): boolean {
  return (u16[word] & 0xc0ff) === 0x80fe;
}

/** Whether the address at a word is that of eight other words. */
export function sameAddress(u16: Uint16Array, word: number, words: Uint16Array, other: number): boolean {
  for (let i = 0; i < 8; i++) if (u16[word + i] !== words[other + i]) return false;
  return true;
}

/** Whether the address at a word is in the prefix of eight words and a mask of eight. */
export function inPrefix(
  u16: Uint16Array,
  word: number,
  prefix: Uint16Array,
  mask: Uint16Array,
  other: number,
): boolean {
  for (let i = 0; i < 8; i++) if (((u16[word + i] ^ prefix[other + i]) & mask[other + i]) !== 0) return false;
  return true;
}

/** Eight words of an address of 16 bytes, as a little-endian load gives them. */
export function words16(address: Uint8Array): Uint16Array {
  return Uint16Array.from({ length: 8 }, (_, i) => address[2 * i] | (address[2 * i + 1] << 8));
}

/** Mask of a prefix length, likewise. */
export function maskWords(length: number): Uint16Array {
  const bytes = Uint8Array.from({ length: 16 }, (_, i) => {
    const bits = Math.min(8, Math.max(0, length - 8 * i));
    return 0xff00 >>> bits;
  });
  return words16(bytes);
}
