/** Segments of checks of backends (RFC 9293, 3.1), over IPv4 or IPv6. They are few, and are written byte by byte. */
import { native } from '../../../native-bindings/index.js';
import type { Batch, Context } from '../../graph.js';
import { BALANCER_PORT } from '../../intent.js';
import { NO_FRAME } from '../../memory/frames.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV4_LE, ETHERTYPE_IPV6_LE, swap16 } from '../../wire/ethernet.js';
import { IPV4_HEADER, IPV6_HEADER, PROTOCOL_TCP } from '../../wire/ip.js';
import { RST_LE, TCP_CHECKSUM, TCP_FLAGS, TCP_HEADER } from '../../wire/tcp.js';

const TTL = 64;
const DONT_FRAGMENT = 0x4000;
/** Data offset of a header without options. */
const NO_OPTIONS_LE = 0x50;
/** Bytes that a backend may send before it hears more: one segment is enough to judge. */
const WINDOW = 2048;

/** Between whom segments go: our address, of 4 or of 16 bytes, and our MAC; the address, MAC and port that are asked. */
export interface Ends {
  readonly domain: number;
  readonly own: Uint8Array;
  readonly ownMac: Uint8Array;
  readonly address: Uint8Array;
  readonly mac: Uint8Array;
  readonly port: number;
}

/**
 * Sends a segment without options to a backend, from a port of ours.
 * @param flags as a little-endian load of TCP_FLAGS gives them.
 * @returns false when no slot is free for it.
 */
export type SendSegment = (
  ends: Ends,
  port: number,
  sequence: number,
  acknowledgment: number,
  flags: number,
  data: Uint8Array | null,
) => boolean;

/** @param out takes frames to backends, to the bridge. */
export function createSegments(context: Context, out: Batch): SendSegment {
  const { frames } = context;
  const { u8, u16, off, len, domain, ingress } = frames;
  const view = new DataView(frames.buffer);

  return (ends, port, sequence, acknowledgment, flags, data) => {
    const frame = frames.allocSmall();
    if (frame === NO_FRAME) return false;
    domain[frame] = ends.domain;
    ingress[frame] = BALANCER_PORT;
    const length = TCP_HEADER + (data?.length ?? 0);
    const v6 = ends.own.length === 16;
    const t = off[frame] + ETHERNET_HEADER + (v6 ? IPV6_HEADER : IPV4_HEADER);
    writeEthernet(off[frame], ends, v6);
    const sum = (v6 ? writeIpv6 : writeIpv4)(off[frame] + ETHERNET_HEADER, ends, length);
    view.setUint16(t, port);
    view.setUint16(t + 2, ends.port);
    view.setUint32(t + 4, sequence);
    view.setUint32(t + 8, acknowledgment);
    u16[(t >>> 1) + TCP_FLAGS] = flags | NO_OPTIONS_LE;
    view.setUint16(t + 14, (flags & RST_LE) === 0 ? WINDOW : 0);
    view.setUint32(t + 16, 0);
    if (data !== null) u8.set(data, t + TCP_HEADER);
    view.setUint16(t + 2 * TCP_CHECKSUM, ~native.checksum(t, length, sum));
    len[frame] = t + length - off[frame];
    out.push(frame);
    return true;
  };

  function writeEthernet(at: number, { mac, ownMac }: Ends, v6: boolean): void {
    u8.set(mac, at);
    u8.set(ownMac, at + 6);
    u16[(at >>> 1) + 6] = v6 ? ETHERTYPE_IPV6_LE : ETHERTYPE_IPV4_LE;
  }

  /** Returns the sum of the pseudo-header; so does `writeIpv6`. */
  function writeIpv4(at: number, { own, address }: Ends, length: number): number {
    view.setUint16(at, 0x4500);
    view.setUint16(at + 2, IPV4_HEADER + length);
    view.setUint16(at + 4, 0);
    view.setUint16(at + 6, DONT_FRAGMENT);
    view.setUint16(at + 8, (TTL << 8) | PROTOCOL_TCP);
    view.setUint16(at + 10, 0);
    u8.set(own, at + 12);
    u8.set(address, at + 16);
    view.setUint16(at + 10, ~native.checksum(at, IPV4_HEADER, 0));
    return native.checksum(at + 12, 8, PROTOCOL_TCP + length);
  }

  function writeIpv6(at: number, { own, address }: Ends, length: number): number {
    view.setUint32(at, 0x60000000);
    view.setUint16(at + 4, length);
    view.setUint16(at + 6, (PROTOCOL_TCP << 8) | TTL);
    u8.set(own, at + 8);
    u8.set(address, at + 24);
    return native.checksum(at + 8, 32, PROTOCOL_TCP + length);
  }
}

/** What is read of a received packet of a check. Bytes from the beginning of memory. */
export interface Packet {
  /** Source and destination, and bytes of an address. */
  readonly source: number;
  readonly destination: number;
  readonly size: 4 | 16;
}

/** Where the addresses of the IP header at byte `at` are. */
export function addressesAt(u8: Uint8Array, at: number): Packet {
  if (u8[at] >>> 4 === 6) return { source: at + 8, destination: at + 24, size: 16 };
  return { source: at + 12, destination: at + 16, size: 4 };
}

/** Whether an address is at byte `at`. */
export function isAt(u8: Uint8Array, at: number, address: Uint8Array): boolean {
  for (let i = 0; i < address.length; i++) if (u8[at + i] !== address[i]) return false;
  return true;
}

/** Length in bytes of what the IP header at byte `at` says is behind byte `t`. */
export function lengthBehind(u16: Uint16Array, at: number, t: number): number {
  const ip = at >>> 1;
  const end = (u16[ip] & 0xf0) === 0x60 ? IPV6_HEADER + swap16(u16[ip + 2]) : swap16(u16[ip + 1]);
  return at + end - t;
}

/** Where the TCP header of a packet that an ICMP error carries begins, 0 when it has none that is whole enough. */
export function carriedTcp(u8: Uint8Array, at: number, end: number): number {
  const v6 = u8[at] >>> 4 === 6;
  const t = at + (v6 ? IPV6_HEADER : (u8[at] & 15) << 2);
  return t + 8 <= end && u8[at + (v6 ? 6 : 9)] === PROTOCOL_TCP ? t : 0;
}
