/**
 * ICMP echo packets with DF as bytes: whole IP packets, since the probe sends with a header of its own so that the
 * source is the VTEP's address and nothing on this host fragments them. RFC 792, RFC 4443 (section 4), RFC 1191.
 */
import type { Ip } from '../addresses.js';

export const ICMP = 1;
export const ICMPV6 = 58;
const IPV4_HEADER = 20;
const IPV6_HEADER = 40;
const ICMP_HEADER = 8;

/** Smallest packet in bytes that `echoRequest` makes. */
export const smallestEcho = (family: 4 | 6): number =>
  (family === 4 ? IPV4_HEADER : IPV6_HEADER) + ICMP_HEADER;

export interface EchoRequest {
  readonly source: Ip;
  readonly destination: Ip;
  readonly id: number;
  readonly sequence: number;
  /** Bytes of the whole IP packet. */
  readonly size: number;
}

/** What a received message says about an echo of ours. */
export type EchoEvent =
  | { readonly kind: 'reply'; readonly id: number; readonly sequence: number; readonly size: number }
  /** A router cannot forward it; `mtu` in bytes is that of its next hop, 0 when it did not say. */
  | { readonly kind: 'too-big'; readonly id: number; readonly sequence: number; readonly mtu: number }
  | { readonly kind: 'unreachable'; readonly id: number; readonly sequence: number; readonly code: number };

/** An IPv4 or IPv6 packet with an ICMP echo request; DF is set in IPv4 and implied in IPv6. */
export function echoRequest(request: EchoRequest): Buffer {
  const { source, destination, id, sequence, size } = request;
  const v6 = source.family === 6;
  const packet = Buffer.alloc(size);
  const icmp = packet.subarray(v6 ? IPV6_HEADER : IPV4_HEADER);
  icmp[0] = v6 ? 128 : 8;
  icmp.writeUInt16BE(id, 4);
  icmp.writeUInt16BE(sequence, 6);
  if (v6) {
    packet[0] = 0x60;
    packet.writeUInt16BE(icmp.length, 4);
    packet[6] = ICMPV6;
    packet[7] = 64;
    packet.set(source.bytes, 8);
    packet.set(destination.bytes, 24);
    const pseudo = Buffer.from([...source.bytes, ...destination.bytes, 0, 0, 0, 0, 0, 0, 0, ICMPV6]);
    pseudo.writeUInt32BE(icmp.length, 32);
    icmp.writeUInt16BE(~sum(icmp, sum(pseudo)) & 0xffff, 2);
  } else {
    packet[0] = 0x45;
    packet.writeUInt16BE(size, 2);
    packet[6] = 0x40; // DF; the kernel fills in identification and checksum (raw(7))
    packet[8] = 64;
    packet[9] = ICMP;
    packet.set(source.bytes, 12);
    packet.set(destination.bytes, 16);
    icmp.writeUInt16BE(~sum(icmp) & 0xffff, 2);
  }
  return packet;
}

/** One's complement sum (RFC 1071) over big-endian words, folded. */
function sum(bytes: Buffer, initial = 0): number {
  let total = initial;
  for (let i = 0; i + 1 < bytes.length; i += 2) total += bytes.readUInt16BE(i);
  if (bytes.length % 2) total += bytes[bytes.length - 1] << 8;
  while (total > 0xffff) total = (total & 0xffff) + (total >>> 16);
  return total;
}

/**
 * Reads what a raw ICMP socket received: IPv4 with its header, IPv6 without (raw(7)). Undefined for everything that
 * is not about an echo, and for whatever is cut short.
 */
export function readEchoEvent(family: 4 | 6, message: Buffer): EchoEvent | undefined {
  if (family === 6) return message.length < ICMP_HEADER ? undefined : readIcmpv6(message);
  if (message.length < IPV4_HEADER) return undefined;
  const header = (message[0] & 15) * 4;
  if (message[9] !== ICMP || header < IPV4_HEADER || message.length < header + ICMP_HEADER) return undefined;
  return readIcmp(message.subarray(header), message.length);
}

function readIcmp(icmp: Buffer, size: number): EchoEvent | undefined {
  if (icmp[0] === 0) return { kind: 'reply', ...identity(icmp), size };
  if (icmp[0] !== 3) return undefined;
  const original = icmp.subarray(ICMP_HEADER);
  if (original.length < IPV4_HEADER || original[9] !== ICMP) return undefined;
  const echo = original.subarray((original[0] & 15) * 4);
  if (echo.length < ICMP_HEADER || echo[0] !== 8) return undefined;
  if (icmp[1] === 4) return { kind: 'too-big', ...identity(echo), mtu: icmp.readUInt16BE(6) };
  return { kind: 'unreachable', ...identity(echo), code: icmp[1] };
}

function readIcmpv6(icmp: Buffer): EchoEvent | undefined {
  if (icmp[0] === 129) return { kind: 'reply', ...identity(icmp), size: icmp.length + IPV6_HEADER };
  if (icmp[0] !== 1 && icmp[0] !== 2) return undefined;
  const original = icmp.subarray(ICMP_HEADER);
  const echo = original.subarray(IPV6_HEADER);
  if (echo.length < ICMP_HEADER || original[6] !== ICMPV6 || echo[0] !== 128) return undefined;
  if (icmp[0] === 2) return { kind: 'too-big', ...identity(echo), mtu: icmp.readUInt32BE(4) };
  return { kind: 'unreachable', ...identity(echo), code: icmp[1] };
}

const identity = (icmp: Buffer): { id: number; sequence: number } => ({
  id: icmp.readUInt16BE(4),
  sequence: icmp.readUInt16BE(6),
});
