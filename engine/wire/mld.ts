/**
 * Multicast Listener Discovery, version 2 (RFC 3810): the report by which switches that snoop learn that somebody
 * listens to a group (RFC 4541, 3). Functions take the index of the IPv6 header's first 16-bit word.
 */
import { swap16 } from './ethernet.js';
import {
  fold16,
  IPV6_DESTINATION,
  IPV6_HEADER,
  IPV6_LENGTH,
  IPV6_NEXT_HOP,
  IPV6_SOURCE,
  PROTOCOL_ICMPV6,
  sumWords,
} from './ip.js';

const OPTIONS = 8;
const REPORT = 28;
/** Bytes of IPv6 packet. */
export const MLD_REPORT = IPV6_HEADER + OPTIONS + REPORT;

/** Next header hop-by-hop options, hop limit 1 (5). */
const HOP_BY_HOP_1_LE = 0x0100;
/** Type 143, code 0 (5.2). */
const REPORT_LE = 143;
/** CHANGE_TO_EXCLUDE_MODE of no sources: everything that is sent to the group (5.2.12). */
const EXCLUDE_LE = 4;

/**
 * Writes a report that the group of eight words at `group` is listened to: to all routers that speak MLDv2, from the
 * unspecified address, as a node without a link-local one sends it (5.2.13).
 */
export function writeReport(u16: Uint16Array, ip: number, group: number): void {
  for (let i = 0; i < MLD_REPORT / 2; i++) u16[ip + i] = 0;
  u16[ip] = 0x60;
  u16[ip + IPV6_LENGTH] = swap16(OPTIONS + REPORT);
  u16[ip + IPV6_NEXT_HOP] = HOP_BY_HOP_1_LE;
  u16[ip + IPV6_DESTINATION] = 0x02ff;
  u16[ip + IPV6_DESTINATION + 7] = 0x1600;
  // Router Alert for MLD (RFC 2711), and padding.
  const options = ip + IPV6_HEADER / 2;
  u16[options] = PROTOCOL_ICMPV6;
  u16[options + 1] = 0x0205;
  u16[options + 3] = 0x0001;
  const report = options + OPTIONS / 2;
  u16[report] = REPORT_LE;
  u16[report + 3] = 0x0100;
  u16[report + 4] = EXCLUDE_LE;
  for (let i = 0; i < 8; i++) u16[report + 6 + i] = u16[group + i];
  const pseudo = sumWords(u16, ip + IPV6_SOURCE, 16) + swap16(REPORT) + (PROTOCOL_ICMPV6 << 8);
  u16[report + 1] = ~fold16(pseudo + sumWords(u16, report, REPORT / 2));
}
