/**
 * ICMPv6 (RFC 4443) on 16-bit views: types and codes. The header has ICMP's size and fields; its checksum covers the
 * pseudo-header (RFC 8200, 8.1).
 */

export const UNREACHABLE_V6 = 1;
export const PACKET_TOO_BIG = 2;
export const TIME_EXCEEDED_V6 = 3;
const PARAMETER_PROBLEM_V6 = 4;
export const ECHO_V6 = 128;
export const ECHO_REPLY_V6 = 129;
const REDIRECT_V6 = 137;

/** Codes of UNREACHABLE_V6. */
export const NO_ROUTE = 0;
export const PROHIBITED = 1;
export const ADDRESS_UNREACHABLE = 3;
export const PORT_UNREACHABLE_V6 = 4;

/** Whether a message carries the beginning of a packet that it is about, and NAT knows how to translate it. */
export function isErrorV6(type: number): boolean {
  return type >= UNREACHABLE_V6 && type <= PARAMETER_PROBLEM_V6;
}

/** Whether no error may be made about a message: it is one itself, known or not, or a redirect (2.4 e). */
export function isNeverAnswered(type: number): boolean {
  return type < 128 || type === REDIRECT_V6;
}
