/**
 * Where the headers of a frame lie: Ethernet, at most two VLAN tags, IPv4 with options or IPv6 with extension
 * headers, transport. Offsets are in bytes; nothing is read beyond the length given.
 *
 * Not handled: IPv6 routing headers (whose pseudo-header has another destination), AH, ESP, more than two tags.
 */
import {
  ETHERNET_HEADER,
  ETHERTYPE_IPV4_LE,
  ETHERTYPE_IPV6_LE,
  ETHERTYPE_QINQ_LE,
  ETHERTYPE_VLAN_LE,
  VLAN_TAG,
} from './ethernet.js';
import { IPV4_FRAGMENT, IPV4_HEADER, IPV4_TTL_PROTOCOL, IPV6_HEADER, IPV6_NEXT_HOP } from './ip.js';

/** What `transportOffset` returns for a packet whose transport header cannot be found. */
export const NO_TRANSPORT = -1;

const HOP_BY_HOP = 0;
const DESTINATION_OPTIONS = 60;
/** Extension headers that are walked; nobody sends more. */
const MAX_EXTENSIONS = 4;

/**
 * Offset from the Ethernet header at `word` to what follows the last tag; its ethertype is the word in front.
 * @param length bytes of the frame, at least 14.
 */
export function networkOffset(u16: Uint16Array, word: number, length: number): number {
  let at = ETHERNET_HEADER;
  for (let tags = 0; tags < 2; tags++) {
    const type = u16[word + (at >>> 1) - 1];
    if (type !== ETHERTYPE_VLAN_LE && type !== ETHERTYPE_QINQ_LE) break;
    if (length < at + VLAN_TAG) break;
    at += VLAN_TAG;
  }
  return at;
}

/**
 * Finds the transport header of the IP packet at `word`, with `left` bytes to the end of the frame, by ethertype.
 * @returns its offset from the IP header, with the protocol in bits 16–23; NO_TRANSPORT for anything else than
 * unfragmented IPv4 and IPv6 whose headers lie within `left`.
 */
export function transportOffset(u16: Uint16Array, word: number, left: number, type: number): number {
  if (type === ETHERTYPE_IPV4_LE) {
    if (left < IPV4_HEADER || (u16[word] & 0xf0) !== 0x40) return NO_TRANSPORT;
    const header = (u16[word] & 15) << 2;
    // 0xff3f: more fragments and the offset, as the view gives them.
    if (header < IPV4_HEADER || header > left || (u16[word + IPV4_FRAGMENT] & 0xff3f) !== 0)
      return NO_TRANSPORT;
    return header | ((u16[word + IPV4_TTL_PROTOCOL] >>> 8) << 16);
  }
  if (type !== ETHERTYPE_IPV6_LE || left < IPV6_HEADER || (u16[word] & 0xf0) !== 0x60) return NO_TRANSPORT;
  let next = u16[word + IPV6_NEXT_HOP] & 0xff;
  let at = IPV6_HEADER;
  for (let i = 0; i < MAX_EXTENSIONS && (next === HOP_BY_HOP || next === DESTINATION_OPTIONS); i++) {
    if (left < at + 8) return NO_TRANSPORT;
    const first = u16[word + (at >>> 1)];
    next = first & 0xff;
    at += ((first >>> 8) + 1) << 3;
  }
  return at > left ? NO_TRANSPORT : at | (next << 16);
}
