/**
 * What translation does to a packet: addresses and ports replaced, checksums updated by RFC 1624, in one place for the
 * fast path, errors and fragments. All words are as the 16-bit view gives them.
 */
import {
  fold16,
  IPV4_CHECKSUM,
  PROTOCOL_ICMP,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  updateChecksum,
} from '../../wire/ip.js';
import { TCP_CHECKSUM } from '../../wire/tcp.js';

const UDP_CHECKSUM = 3;
const ICMP_CHECKSUM = 1;
const ICMP_IDENTIFIER = 2;

/** What to add to a sum of 16-bit words when an address changes: complements of the old halves, and the new ones. */
export function addressDelta(before: number, after: number): number {
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
 * Replaces a port or identifier and mends the transport checksum for it and for an address that changed.
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
  if (protocol === PROTOCOL_ICMP) {
    // The pseudo-header is no part of it (RFC 792).
    const before = u16[t + ICMP_IDENTIFIER];
    if (before === after) return;
    u16[t + ICMP_CHECKSUM] = updateChecksum(u16[t + ICMP_CHECKSUM], before, after);
    u16[t + ICMP_IDENTIFIER] = after;
    return;
  }
  if (protocol !== PROTOCOL_TCP && protocol !== PROTOCOL_UDP) return;
  const before = u16[t + port];
  u16[t + port] = after;
  const field = t + (protocol === PROTOCOL_TCP ? TCP_CHECKSUM : UDP_CHECKSUM);
  if (partial) {
    u16[field] = fold16(u16[field] + delta);
    return;
  }
  const sum = u16[field];
  if (protocol === PROTOCOL_UDP && sum === 0) return;
  const next = ~fold16((~sum & 0xffff) + delta + (~before & 0xffff) + after) & 0xffff;
  // A computed zero is sent as all ones, since zero says that there is none (RFC 768).
  u16[field] = next === 0 && protocol === PROTOCOL_UDP ? 0xffff : next;
}
