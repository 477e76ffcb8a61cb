/**
 * Neighbour Solicitation and Advertisement (RFC 4861, 4.3 and 4.4) on 16-bit views. Functions take the index of
 * the IPv6 header's first 16-bit word. Values are as a little-endian load gives them.
 *
 * Not handled: extension headers in front of ICMPv6 (no node sends them with ND), and SEND (RFC 3971).
 */
import { swap16 } from './ethernet.js';
import {
  fold16,
  IPV6_HEADER,
  IPV6_LENGTH,
  IPV6_NEXT_HOP,
  IPV6_SOURCE,
  PROTOCOL_ICMPV6,
  sumWords,
} from './ip.js';

/** Bytes of a solicitation or advertisement without options, and of a link-layer address option for Ethernet. */
export const ND_MESSAGE = 24;
export const LINK_LAYER_OPTION = 8;

/** Type and code 0, the first word of the ICMPv6 message. */
export const NEIGHBOUR_SOLICITATION_LE = 135;
export const NEIGHBOUR_ADVERTISEMENT_LE = 136;
/** Option types. */
export const SOURCE_LINK_LAYER = 1;
export const TARGET_LINK_LAYER = 2;
/** Flags of an advertisement (4.4), in the word behind the checksum. */
export const ROUTER_LE = 0x80;
export const SOLICITED_LE = 0x40;
export const OVERRIDE_LE = 0x20;

/** Word indices from the IPv6 header on, ICMPv6 right behind it. */
const ND_TYPE = IPV6_HEADER / 2;
const ND_CHECKSUM = ND_TYPE + 1;
export const ND_FLAGS = ND_TYPE + 2;
export const ND_TARGET = ND_TYPE + 4;
const ND_OPTIONS = ND_TYPE + 12;

/** What `linkLayerOption` returns when there is none, and when the options are malformed. */
export const NO_OPTION = 0;
export const BAD_OPTIONS = -1;

/** Next header ICMPv6 and hop limit 255. */
const ICMPV6_255_LE = 0xff00 | PROTOCOL_ICMPV6;

/**
 * Whether the packet is IPv6 with an ND message that passes the checks that 7.1.1 and 7.1.2 have in common: hop
 * limit 255, code 0 and the type wanted, long enough, target not multicast, checksum right.
 * @param left bytes there from the IPv6 header on, at least IPV6_HEADER + ND_MESSAGE.
 */
export function isNd(u16: Uint16Array, ip: number, left: number, typeAndCode: number): boolean {
  if ((u16[ip] & 0xf0) !== 0x60 || u16[ip + IPV6_NEXT_HOP] !== ICMPV6_255_LE) return false;
  if (u16[ip + ND_TYPE] !== typeAndCode) return false;
  const payload = swap16(u16[ip + IPV6_LENGTH]);
  if (payload < ND_MESSAGE || payload > left - IPV6_HEADER || (payload & 7) !== 0) return false;
  if ((u16[ip + ND_TARGET] & 0xff) === 0xff) return false;
  return ndSum(u16, ip, payload) === 0xffff;
}

/** One's complement sum of an ND message and its pseudo-header (RFC 8200, 8.1); 0xffff when its checksum is right. */
function ndSum(u16: Uint16Array, ip: number, payload: number): number {
  const message = sumWords(u16, ip + ND_TYPE, payload >>> 1);
  return fold16(message + sumWords(u16, ip + IPV6_SOURCE, 16) + swap16(payload) + (PROTOCOL_ICMPV6 << 8));
}

/**
 * Looks through the options of a message that `isNd` has passed (4.6).
 * @returns index of the first word of the link-layer address in the first option of `type`, or NO_OPTION, or
 *   BAD_OPTIONS when an option has length 0, ends behind the message, or is not Ethernet's.
 */
export function linkLayerOption(u16: Uint16Array, ip: number, type: number): number {
  const end = ip + ND_TYPE + (swap16(u16[ip + IPV6_LENGTH]) >>> 1);
  let found = NO_OPTION;
  for (let at = ip + ND_OPTIONS; at < end; ) {
    const words = (u16[at] >>> 8) << 2;
    if (words === 0 || at + words > end) return BAD_OPTIONS;
    if ((u16[at] & 0xff) === type && found === NO_OPTION) {
      if (words !== LINK_LAYER_OPTION / 2) return BAD_OPTIONS;
      found = at + 1;
    }
    at += words;
  }
  return found;
}

/** Whether eight words are the unspecified address. */
export function isUnspecified(u16: Uint16Array, word: number): boolean {
  return (
    (u16[word] |
      u16[word + 1] |
      u16[word + 2] |
      u16[word + 3] |
      u16[word + 4] |
      u16[word + 5] |
      u16[word + 6] |
      u16[word + 7]) ===
    0
  );
}

/** Whether eight words are a solicited-node multicast address, ff02::1:ffXX:XXXX (RFC 4291, 2.7.1). */
export function isSolicitedNode(u16: Uint16Array, word: number): boolean {
  return (
    u16[word] === 0x02ff &&
    (u16[word + 1] | u16[word + 2] | u16[word + 3] | u16[word + 4]) === 0 &&
    u16[word + 5] === 0x0100 &&
    (u16[word + 6] & 0xff) === 0xff
  );
}

/** Writes ff02::1, all nodes. */
export function writeAllNodes(u16: Uint16Array, word: number): void {
  u16[word] = 0x02ff;
  for (let i = 1; i < 7; i++) u16[word + i] = 0;
  u16[word + 7] = 0x0100;
}

/** Writes the solicited-node address of the address at `of`. */
export function writeSolicitedNode(u16: Uint16Array, word: number, of: number): void {
  u16[word] = 0x02ff;
  for (let i = 1; i < 5; i++) u16[word + i] = 0;
  u16[word + 5] = 0x0100;
  u16[word + 6] = 0xff | (u16[of + 6] & 0xff00);
  u16[word + 7] = u16[of + 7];
}

/**
 * Writes a solicitation with a source link-layer address option around the IPv6 addresses and the target, which have
 * been set already (4.3), lengths and checksum included.
 * @param link index of the first word of the six-byte MAC of who asks; outside the message.
 */
export function writeSolicitation(u16: Uint16Array, ip: number, link: number): void {
  writeMessage(u16, ip, NEIGHBOUR_SOLICITATION_LE, 0, SOURCE_LINK_LAYER, link);
}

/**
 * Turns a solicitation, whose IPv6 addresses and target have been set already, into an advertisement with a
 * target link-layer address option (4.4), lengths and checksum included.
 * @param link index of the first word of the six-byte MAC to announce; outside the message.
 */
export function writeAdvertisement(u16: Uint16Array, ip: number, flags: number, link: number): void {
  writeMessage(u16, ip, NEIGHBOUR_ADVERTISEMENT_LE, flags, TARGET_LINK_LAYER, link);
}

function writeMessage(
  u16: Uint16Array,
  ip: number,
  type: number,
  flags: number,
  option: number,
  link: number,
): void {
  const payload = ND_MESSAGE + LINK_LAYER_OPTION;
  u16[ip] = 0x60;
  u16[ip + 1] = 0;
  u16[ip + IPV6_LENGTH] = swap16(payload);
  u16[ip + IPV6_NEXT_HOP] = ICMPV6_255_LE;
  u16[ip + ND_TYPE] = type;
  u16[ip + ND_CHECKSUM] = 0;
  u16[ip + ND_FLAGS] = flags;
  u16[ip + ND_FLAGS + 1] = 0;
  u16[ip + ND_OPTIONS] = option | 0x0100;
  for (let i = 0; i < 3; i++) u16[ip + ND_OPTIONS + 1 + i] = u16[link + i];
  u16[ip + ND_CHECKSUM] = ~ndSum(u16, ip, payload);
}
