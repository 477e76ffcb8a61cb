/**
 * What a router asks of an IPv4 packet before it looks further (RFC 1812, 5.2.2 and 5.3.7). Functions take the index
 * of a header's first 16-bit word, and addresses as signed little-endian words.
 */
import { swap16 } from './ethernet.js';
import { fold16, IPV4_HEADER, IPV4_LENGTH, sumWords } from './ip.js';

const LOOSE_SOURCE_ROUTE = 131;
const STRICT_SOURCE_ROUTE = 137;

/**
 * Bytes of a well-formed packet: version, header length and total length sound and its header's checksum right; 0 of
 * anything else.
 * @param left bytes there from the header on.
 */
export function ipv4Length(u16: Uint16Array, ip: number, left: number): number {
  if (left < IPV4_HEADER || (u16[ip] & 0xf0) !== 0x40) return 0;
  const header = (u16[ip] & 15) << 2;
  const total = swap16(u16[ip + IPV4_LENGTH]);
  if (header < IPV4_HEADER || total < header || total > left) return 0;
  return fold16(sumWords(u16, ip, header >>> 1)) === 0xffff ? total : 0;
}

/** Whether an address may be the source or the destination of what is routed: no network 0, loopback, link-local. */
export function isRoutable(address: number): boolean {
  const first = address & 0xff;
  // 224 and above: multicast, reserved, limited broadcast. 0xfea9: 169.254, as a little-endian load gives it.
  return first !== 0 && first !== 127 && first < 224 && (address & 0xffff) !== 0xfea9;
}

/** Whether the options of a header hold a source route, which nobody is to follow (RFC 7126, 4.3 and 4.4). */
export function hasSourceRoute(u16: Uint16Array, ip: number): boolean {
  const end = ((u16[ip] & 15) << 2) - IPV4_HEADER;
  let at = 0;
  while (at < end) {
    const type = byteAt(u16, ip, IPV4_HEADER + at);
    if (type === 0) return false;
    if (type === LOOSE_SOURCE_ROUTE || type === STRICT_SOURCE_ROUTE) return true;
    const length = type === 1 ? 1 : at + 1 < end ? byteAt(u16, ip, IPV4_HEADER + at + 1) : 0;
    // Options that do not add up are treated as one that hides something.
    if (length === 0 || (type !== 1 && length < 2)) return true;
    at += length;
  }
  return false;
}

function byteAt(u16: Uint16Array, word: number, offset: number): number {
  return (u16[word + (offset >>> 1)] >>> ((offset & 1) << 3)) & 0xff;
}
