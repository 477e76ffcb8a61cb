/**
 * The outer IP header of what arrives from the underlay: checked once for everything that may lie behind it.
 *
 * Per packet, whole from its outer Ethernet header on:
 *   1. IPv4 or IPv6: version, header checksum, lengths that fit, no fragment;
 *   2. the source: not ourselves (a looped packet), not a group address; the destination: ours.
 *
 * Not handled: outer VLAN tags, IPv6 extension headers (nobody sends tunnel packets behind them).
 */
import type { FrameMemory } from '../memory/frames.js';
import { addressWords, type LocalVtep, MAPPED } from '../tables/vteps.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV4_LE, ETHERTYPE_IPV6_LE, swap16 } from './ethernet.js';
import { fold16, IPV4_HEADER, IPV6_FRAGMENT_HEADER, IPV6_HEADER, sumWords } from './ip.js';

/** Reasons for which an outer header is refused; elements that parse begin their own reasons with these. */
export const OUTER_REASONS = [
  'not-ip',
  'bad-ip-header',
  'ip-checksum',
  'fragment',
  'bad-length',
  'own-source',
  'bad-outer-source',
  'not-ours',
] as const;

// What `parse` returns for a packet to be dropped: -1 - reason.
const NOT_IP = -1;
const BAD_IP_HEADER = -2;
const IP_CHECKSUM = -3;
const FRAGMENT = -4;
const BAD_LENGTH = -5;
const OWN_SOURCE = -6;
const BAD_OUTER_SOURCE = -7;
const NOT_OURS = -8;

export interface OuterParser {
  /** Address the packet at hand came from, four words (see `addressWords`). */
  readonly source: Uint32Array;
  /**
   * Checks the header of a frame whose first 16-bit word is `w`, and trims padding behind the packet.
   * @param least bytes that must follow the IP header.
   * @returns offset of what follows the IP header, with the protocol in bits 16–23; or -1 - index of OUTER_REASONS.
   */
  parse(frame: number, w: number, least: number): number;
}

/** @param addressed check that packets are ours and not our own; false for captures, which are nobody's. */
export function createOuterParser(frames: FrameMemory, local: LocalVtep, addressed: boolean): OuterParser {
  const { u16, len } = frames;
  const [localA, localB, localC, localD] = addressWords(local.address);
  const localIpv4 = local.address.length === 4;
  /** In an array, since a variable that holds more than 31 bits makes an object at each store. */
  const source = new Uint32Array(4);

  function parse(frame: number, w: number, least: number): number {
    const length = len[frame];
    if (length < ETHERNET_HEADER + IPV4_HEADER) return NOT_IP;
    const type = u16[w + 6];
    if (type === ETHERTYPE_IPV4_LE) return parseIpv4(frame, w, length, least);
    if (type === ETHERTYPE_IPV6_LE) return parseIpv6(frame, w, length, least);
    return NOT_IP;
  }

  function parseIpv4(frame: number, w: number, length: number, least: number): number {
    const header = (u16[w + 7] & 15) << 2;
    if ((u16[w + 7] & 0xf0) !== 0x40 || header < IPV4_HEADER) return BAD_IP_HEADER;
    const total = swap16(u16[w + 8]);
    if (total < header + least || total > length - ETHERNET_HEADER) return BAD_LENGTH;
    // The usual header is summed without a loop: 5 ns less a packet.
    const sum =
      header === IPV4_HEADER
        ? u16[w + 7] +
          u16[w + 8] +
          u16[w + 9] +
          u16[w + 10] +
          u16[w + 11] +
          u16[w + 12] +
          u16[w + 13] +
          u16[w + 14] +
          u16[w + 15] +
          u16[w + 16]
        : sumWords(u16, w + 7, header >>> 1);
    if (fold16(sum) !== 0xffff) return IP_CHECKSUM;
    // More fragments, or an offset.
    if ((u16[w + 10] & 0xff3f) !== 0) return FRAGMENT;
    const d = (u16[w + 13] | (u16[w + 14] << 16)) >>> 0;
    source[0] = 0;
    source[1] = 0;
    source[2] = MAPPED;
    source[3] = d;
    // Multicast, reserved and broadcast (first byte 224–255) and 0.0.0.0 are no sources.
    if ((d & 0xe0) === 0xe0 || d === 0) return BAD_OUTER_SOURCE;
    if (addressed) {
      if (!localIpv4) return NOT_OURS;
      if (d === localD) return OWN_SOURCE;
      if ((u16[w + 15] | (u16[w + 16] << 16)) >>> 0 !== localD) return NOT_OURS;
    }
    len[frame] = ETHERNET_HEADER + total;
    return (ETHERNET_HEADER + header) | ((u16[w + 11] >>> 8) << 16);
  }

  function parseIpv6(frame: number, w: number, length: number, least: number): number {
    if (length < ETHERNET_HEADER + IPV6_HEADER + least) return BAD_LENGTH;
    if ((u16[w + 7] & 0xf0) !== 0x60) return BAD_IP_HEADER;
    const payload = swap16(u16[w + 9]);
    if (payload < least || payload > length - ETHERNET_HEADER - IPV6_HEADER) return BAD_LENGTH;
    const next = u16[w + 10] & 0xff;
    if (next === IPV6_FRAGMENT_HEADER) return FRAGMENT;
    const a = (u16[w + 11] | (u16[w + 12] << 16)) >>> 0;
    const b = (u16[w + 13] | (u16[w + 14] << 16)) >>> 0;
    const c = (u16[w + 15] | (u16[w + 16] << 16)) >>> 0;
    const d = (u16[w + 17] | (u16[w + 18] << 16)) >>> 0;
    source[0] = a;
    source[1] = b;
    source[2] = c;
    source[3] = d;
    if ((a & 0xff) === 0xff) return BAD_OUTER_SOURCE;
    // Neither is the unspecified address, nor an IPv4-mapped one, which would pass for an IPv4 VTEP.
    if ((a | b) === 0 && (c === MAPPED || (c | d) === 0)) return BAD_OUTER_SOURCE;
    if (addressed) {
      if (localIpv4) return NOT_OURS;
      if (d === localD && c === localC && b === localB && a === localA) return OWN_SOURCE;
      if (!isLocalAt(w + 19)) return NOT_OURS;
    }
    len[frame] = ETHERNET_HEADER + IPV6_HEADER + payload;
    return (ETHERNET_HEADER + IPV6_HEADER) | (next << 16);
  }

  function isLocalAt(w: number): boolean {
    return (
      (u16[w + 6] | (u16[w + 7] << 16)) >>> 0 === localD &&
      (u16[w + 4] | (u16[w + 5] << 16)) >>> 0 === localC &&
      (u16[w + 2] | (u16[w + 3] << 16)) >>> 0 === localB &&
      (u16[w] | (u16[w + 1] << 16)) >>> 0 === localA
    );
  }

  return { source, parse };
}
