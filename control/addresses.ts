/**
 * Addresses as text at the edge: IP, prefix and MAC, read strictly and written one way.
 * Not for the data plane: it allocates. The engine takes the bytes.
 * Not handled: zone indices (`fe80::1%eth0`), IPv4-mapped IPv6, non-contiguous masks; all are refused.
 */
import ipaddr from 'ipaddr.js';

export type Family = 4 | 6;

/** One IP address. `text` is canonical: dotted decimal, or RFC 5952 for IPv6. `bytes` is 4 or 16 bytes in network order. */
export interface Ip {
  readonly family: Family;
  readonly text: string;
  readonly bytes: Uint8Array;
}

/** An address with a prefix length in bits; `network` is the address with its host bits cleared. */
export interface Prefix {
  readonly address: Ip;
  readonly length: number;
  readonly network: Ip;
  /** `address/length`, canonical. */
  readonly text: string;
}

/** What is wrong with a value, and what to write instead. */
export class ValueError extends Error {
  override readonly name = 'ValueError';
  readonly remedy: string;
  constructor(message: string, remedy: string) {
    super(message);
    this.remedy = remedy;
  }
}

const IP_REMEDY = 'write an IPv4 address such as 192.0.2.1 or an IPv6 address such as 2001:db8::1';
const MAC_REMEDY = 'write six octets in hexadecimal, such as "02:42:0a:00:09:01"';
// 45 characters are the longest text of an IPv6 address: nothing longer reaches the parser or a message whole.
const LONGEST_IP = 45;

/** Quotes a value for a message: one line, no control or direction characters, at most 60 characters. */
export function quote(value: string): string {
  const cut = value.length > 60 ? `${value.slice(0, 57)}...` : value;
  return JSON.stringify(cut).replace(
    /[\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

function toIp(parsed: ipaddr.IPv4 | ipaddr.IPv6): Ip {
  return {
    family: parsed.kind() === 'ipv4' ? 4 : 6,
    text: parsed instanceof ipaddr.IPv6 ? parsed.toRFC5952String() : parsed.toString(),
    bytes: Uint8Array.from(parsed.toByteArray()),
  };
}

function fromBytes(bytes: Uint8Array): Ip {
  return toIp(ipaddr.fromByteArray(Array.from(bytes)));
}

/** Canonical text of an address of 4 or 16 bytes. */
export function formatIp(bytes: Uint8Array): string {
  return fromBytes(bytes).text;
}

/**
 * Reads an IPv4 address of four decimal parts or an IPv6 address (RFC 4291 section 2.2).
 * @throws ValueError for anything else: leading zeros, short forms, zones, IPv4-mapped IPv6.
 */
export function parseIp(text: string): Ip {
  if (text.includes('/')) {
    throw new ValueError(`${quote(text)} has a prefix length`, `write the address alone: ${IP_REMEDY}`);
  }
  if (text.includes('%')) {
    throw new ValueError(
      `${quote(text)} has a zone index`,
      'use a global or unique-local address, without "%interface"',
    );
  }
  // ipaddr.js also reads inet_aton's forms (1.2, 010.0.0.1, 0x7f.1), which mean different hosts to different programs.
  if (text.length <= LONGEST_IP && ipaddr.IPv4.isValidFourPartDecimal(text))
    return toIp(ipaddr.IPv4.parse(text));
  if (text.length > LONGEST_IP || !text.includes(':') || !ipaddr.IPv6.isValid(text)) {
    throw new ValueError(`${quote(text)} is not an IP address`, IP_REMEDY);
  }
  const parsed = ipaddr.IPv6.parse(text);
  if (parsed.isIPv4MappedAddress()) {
    throw new ValueError(
      `${quote(text)} is an IPv4-mapped IPv6 address`,
      `write it as IPv4: ${parsed.toIPv4Address().toString()}`,
    );
  }
  return toIp(parsed);
}

/**
 * What an address is for: `unicast`, `unspecified`, `multicast`, `broadcast`, `loopback`, `linkLocal`, or another
 * special range by ipaddr.js's name (IANA special-purpose registries).
 */
function rangeOf(ip: Ip): string {
  return ipaddr.fromByteArray(Array.from(ip.bytes)).range();
}

/** Whether an address is of one link alone (RFC 3927; RFC 4291 section 2.5.6). */
export function isLinkLocal(ip: Ip): boolean {
  return rangeOf(ip) === 'linkLocal';
}

/**
 * Reads the address of a VTEP: an address a host can bind and be reached at.
 * @throws ValueError for multicast, unspecified, broadcast, and IPv6 link-local (which needs an interface to mean anything).
 */
export function parseVtep(text: string): Ip {
  const ip = parseIp(text);
  const range = rangeOf(ip);
  const remedy = 'write the unicast address of the host on the underlay';
  if (range === 'multicast' || range === 'broadcast' || range === 'unspecified') {
    const article = range === 'unspecified' ? 'the unspecified' : `a ${range}`;
    throw new ValueError(`${ip.text} is ${article} address, not a host's`, remedy);
  }
  if (ip.family === 6 && range === 'linkLocal') {
    throw new ValueError(
      `${ip.text} is link-local and names no host without its interface`,
      'use a global or unique-local IPv6 address',
    );
  }
  return ip;
}

/**
 * Reads `address/length`; host bits may be set.
 * @throws ValueError.
 */
export function parsePrefix(text: string): Prefix {
  const slash = text.indexOf('/');
  if (slash < 0) {
    throw new ValueError(
      `${quote(text)} has no prefix length`,
      'write address/length, such as 10.0.9.1/24 or fd00:9::1/64',
    );
  }
  const address = parseIp(text.slice(0, slash));
  const digits = text.slice(slash + 1);
  const bits = address.family === 4 ? 32 : 128;
  if (!/^(0|[1-9][0-9]{0,2})$/.test(digits) || Number(digits) > bits) {
    throw new ValueError(
      `${quote(digits)} is not a prefix length of IPv${address.family}`,
      `write a number of bits from 0 to ${bits} after the slash`,
    );
  }
  const length = Number(digits);
  const network = fromBytes(keepBits(address.bytes, length));
  return { address, length, network, text: `${address.text}/${length}` };
}

/**
 * Reads an address, or a prefix without host bits: what a rule matches.
 * @throws ValueError.
 */
export function parseRange(text: string): Prefix {
  if (text.includes('/')) return withoutHostBits(parsePrefix(text));
  const address = parseIp(text);
  return { address, length: address.family === 4 ? 32 : 128, network: address, text: address.text };
}

/** The prefix that is given. @throws ValueError */
function withoutHostBits(prefix: Prefix): Prefix {
  if (prefix.address.text === prefix.network.text) return prefix;
  throw new ValueError(
    `${prefix.text} has bits set after its prefix`,
    `write ${prefix.network.text}/${prefix.length}`,
  );
}

/**
 * Reads the prefix of a network: no host bits, not empty of hosts, unicast.
 * @throws ValueError.
 */
export function parseSubnet(text: string): Prefix {
  const prefix = withoutHostBits(parsePrefix(text));
  if (prefix.length === 0) {
    throw new ValueError(`${prefix.text} covers every address`, 'write the prefix of this network alone');
  }
  const range = rangeOf(prefix.network);
  if (range === 'multicast' || range === 'loopback' || range === 'unspecified' || range === 'broadcast') {
    throw new ValueError(
      `${prefix.text} is in the ${range} range`,
      'write a unicast prefix, such as 10.0.9.0/24 or fd00:9::/64',
    );
  }
  return prefix;
}

/** The first `length` bits of an address; the rest zero, or one when `fill` is set. */
function keepBits(bytes: Uint8Array, length: number, fill = false): Uint8Array {
  return bytes.map((byte, index) => {
    const kept = Math.min(8, Math.max(0, length - index * 8));
    const hostMask = 0xff >>> kept;
    return fill ? byte | hostMask : byte & ~hostMask;
  });
}

/** Whether the address lies in the prefix; false for another family. */
export function contains(prefix: Prefix, ip: Ip): boolean {
  if (ip.family !== prefix.network.family) return false;
  return fromBytes(keepBits(ip.bytes, prefix.length)).text === prefix.network.text;
}

/**
 * Whether the address is the prefix's own: the network address of IPv4, the subnet-router anycast address of IPv6
 * (RFC 4291 section 2.6.1). Point-to-point and host prefixes have none (RFC 3021, RFC 6164).
 */
export function isNetworkAddress(prefix: Prefix, ip: Ip): boolean {
  return hasReserved(prefix) && ip.text === prefix.network.text;
}

/** Whether the address is the prefix's directed broadcast; IPv6 has none. */
export function isBroadcastAddress(prefix: Prefix, ip: Ip): boolean {
  if (prefix.network.family === 6 || !hasReserved(prefix)) return false;
  return fromBytes(keepBits(prefix.network.bytes, prefix.length, true)).text === ip.text;
}

function hasReserved(prefix: Prefix): boolean {
  return prefix.length < (prefix.network.family === 4 ? 31 : 127);
}

/**
 * Reads a MAC of one station, canonical in lower case with colons.
 * @throws ValueError for another form, the zero address, and group addresses (multicast and broadcast).
 */
export function parseMac(text: string): string {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text)) {
    throw new ValueError(`${quote(text)} is not a MAC address`, MAC_REMEDY);
  }
  const mac = text.toLowerCase();
  if (mac === '00:00:00:00:00:00')
    throw new ValueError(`${mac} is the zero MAC, not a station's`, MAC_REMEDY);
  const first = Number.parseInt(mac.slice(0, 2), 16);
  if (first & 1) {
    const single = (first & 0xfe).toString(16).padStart(2, '0');
    throw new ValueError(
      `${mac} is a group MAC (the lowest bit of its first octet is set), not a station's`,
      `clear that bit, as in "${single}${mac.slice(2)}"`,
    );
  }
  return mac;
}

/** The six bytes of a canonical MAC, in wire order. */
/** The bytes of an address without a prefix. @throws ValueError */
export function ipBytes(address: string): Uint8Array {
  return Uint8Array.from(parseIp(address).bytes);
}

export function macBytes(mac: string): Uint8Array {
  return Uint8Array.from(parseMac(mac).split(':'), (octet) => Number.parseInt(octet, 16));
}

/** By its first two bytes a virtual address is told from stations. */
const VIRTUAL = '06:57:';

/** The MAC at which a virtual address is found: 06:57 and its last four bytes. */
export function virtualMac(bytes: Uint8Array): string {
  return VIRTUAL + formatMac(bytes.slice(-4));
}

/** Whether a canonical MAC is one of virtual addresses. */
export function isVirtualMac(mac: string): boolean {
  return mac.startsWith(VIRTUAL);
}

/** The MAC an address gets when none is written: 02:42 and the last four bytes, as Docker does for IPv4. */
export function deriveMac(ip: Ip): string {
  return `02:42:${formatMac(ip.bytes.slice(-4))}`;
}

/** Text of the bytes of a MAC. */
export function formatMac(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join(':');
}
