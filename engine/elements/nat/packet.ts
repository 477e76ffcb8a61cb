/**
 * What translation does to a packet: addresses and ports replaced, checksums updated by RFC 1624, in one place for the
 * fast path, errors and fragments. All words are as the 16-bit view gives them.
 */
import { ICMP_CHECKSUM, ICMP_IDENTIFIER } from '../../wire/icmp.js';
import {
  fold16,
  IPV4_CHECKSUM,
  PROTOCOL_DCCP,
  PROTOCOL_ICMP,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  PROTOCOL_UDP_LITE,
  updateChecksum,
} from '../../wire/ip.js';
import { TCP_CHECKSUM } from '../../wire/tcp.js';

/** Word of the checksum, in UDP, in UDP-Lite (RFC 3828, 3.1) and in DCCP (RFC 4340, 5.1). */
const UDP_CHECKSUM = 3;
const ICMP_SEQUENCE = 3;

/** What to add to a sum of 16-bit words when an address changes: complements of the old halves, and the new ones. */
function addressDelta(before: number, after: number): number {
  return (~before & 0xffff) + (~(before >>> 16) & 0xffff) + (after & 0xffff) + (after >>> 16);
}

/** Replaces the address at word `at` of an IPv4 header at `ip` and mends the header's checksum. Returns the delta. */
export function replaceAddress(u16: Uint16Array, ip: number, at: number, after: number): number {
  const before = u16[ip + at] | (u16[ip + at + 1] << 16);
  const delta = addressDelta(before, after);
  u16[ip + at] = after;
  u16[ip + at + 1] = after >>> 16;
  u16[ip + IPV4_CHECKSUM] = ~fold16((~u16[ip + IPV4_CHECKSUM] & 0xffff) + delta);
  return delta;
}

/**
 * Replaces the port or identifier, of protocols whose ports are translated, and mends the transport checksum for it
 * and for an address that changed.
 * @param t first word of the transport header; `port` the word of the port there.
 * @param delta of the address, as `replaceAddress` gave it.
 * @param partial whether the checksum field holds the sum of the pseudo-header alone, for others to complete.
 */
export function replacePort(
  u16: Uint16Array,
  t: number,
  protocol: number,
  port: number,
  after: number,
  delta: number,
  partial: boolean,
): void {
  if (protocol === PROTOCOL_TCP || protocol === PROTOCOL_UDP) {
    const before = u16[t + port];
    u16[t + port] = after;
    const field = t + (protocol === PROTOCOL_TCP ? TCP_CHECKSUM : UDP_CHECKSUM);
    const sum = u16[field];
    if (partial) u16[field] = fold16(sum + delta);
    // Zero says of UDP that there is none (RFC 768), and a computed zero is sent as all ones.
    else if (protocol === PROTOCOL_TCP) u16[field] = mended(sum, delta + (~before & 0xffff) + after);
    else if (sum !== 0) u16[field] = mended(sum, delta + (~before & 0xffff) + after) || 0xffff;
  } else if (protocol === PROTOCOL_ICMP) replaceIdentifier(u16, t, after);
  else if (protocol === PROTOCOL_UDP_LITE || protocol === PROTOCOL_DCCP)
    u16[t + UDP_CHECKSUM] = mended(u16[t + UDP_CHECKSUM], delta) || 0xffff;
}

/** RFC 1624, eqn. 3, with the sum of all that changed. */
function mended(checksum: number, delta: number): number {
  return ~fold16((~checksum & 0xffff) + delta) & 0xffff;
}

function replaceIdentifier(u16: Uint16Array, t: number, after: number): void {
  // The pseudo-header is no part of it (RFC 792).
  const before = u16[t + ICMP_IDENTIFIER];
  if (before === after) return;
  u16[t + ICMP_IDENTIFIER] = after;
  const next = updateChecksum(u16[t + ICMP_CHECKSUM], before, after);
  // Without a pseudo-header a message may be of zeros alone, whose checksum is all ones: what RFC 1624 presumes never
  // to happen. Where the rest is not zero, all ones are as right as zero.
  const zeros = next === 0 && after === 0 && u16[t] === 0 && u16[t + ICMP_SEQUENCE] === 0;
  u16[t + ICMP_CHECKSUM] = zeros ? 0xffff : next;
}
