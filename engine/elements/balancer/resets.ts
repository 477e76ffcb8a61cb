/**
 * Resets of TCP connections (RFC 9293, 3.5.2 and 3.10.7).
 *
 * A segment of a connection that nobody knows is answered by an RST that its sender must believe, for the segment says
 * itself what number that needs. One that is to end although neither side has sent anything is ended by asking: a
 * segment out of the window is answered by an acknowledgement (RFC 9293, 3.10.7.4), and that by the RST.
 */
import { native } from '../../../native-bindings/index.js';
import type { Context } from '../../graph.js';
import { NO_FRAME } from '../../memory/frames.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV4_LE, swap16 } from '../../wire/ethernet.js';
import {
  fold16,
  IPV4_DESTINATION,
  IPV4_FRAGMENT,
  IPV4_HEADER,
  IPV4_LENGTH,
  IPV4_SOURCE,
  IPV4_TTL_PROTOCOL,
  PROTOCOL_TCP,
  writeIpv4Checksum,
} from '../../wire/ip.js';
import {
  ACK_LE,
  FIN_LE,
  RST_LE,
  SYN_LE,
  sequenceAt,
  TCP_ACKNOWLEDGMENT,
  TCP_CHECKSUM,
  TCP_FLAGS,
  TCP_HEADER,
  TCP_SEQUENCE,
  TCP_URGENT,
  TCP_WINDOW,
  tcpHeaderLength,
} from '../../wire/tcp.js';

const VERSION_LE = 0x0045;
const DONT_FRAGMENT_LE = 0x0040;
const TTL = 64;
/** Data offset of a header without options, as a little-endian load gives it. */
export const NO_OPTIONS = 0x50;

/**
 * Makes a segment that an end must answer, from and to addresses as flows have them, and ports; its MACs are the
 * caller's.
 * @returns NO_FRAME when no slot is free.
 */
export type Probe = (
  source: number,
  sourcePort: number,
  destination: number,
  destinationPort: number,
) => number;

export interface Resets {
  /**
   * Turns a sound TCP segment into the RST that its sender must believe, in place, Ethernet addresses included.
   * @returns false for an RST, which is never answered.
   */
  answer(frame: number): boolean;
  readonly probe: Probe;
}

export function createResets(context: Context): Resets {
  const { frames } = context;
  const { u16, off, len, offload } = frames;

  function answer(frame: number): boolean {
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    const header = (u16[ip] & 15) << 2;
    const t = ip + (header >>> 1);
    const flags = u16[t + TCP_FLAGS];
    if ((flags & RST_LE) !== 0) return false;
    const payload = swap16(u16[ip + IPV4_LENGTH]) - header - tcpHeaderLength(flags);
    for (let i = 0; i < 3; i++) swap(u16, w + i, w + 3 + i);
    for (let i = 0; i < 2; i++) swap(u16, ip + IPV4_SOURCE + i, ip + IPV4_DESTINATION + i);
    // Options of IP go, so that the segment lies where its header ends.
    writeReset(u16, t, ip + IPV4_HEADER / 2, payload);
    finish(frame, ip);
    return true;
  }

  function probe(source: number, sourcePort: number, destination: number, destinationPort: number): number {
    const frame = frames.allocSmall();
    if (frame === NO_FRAME) return NO_FRAME;
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    const t = ip + IPV4_HEADER / 2;
    u16[w + 6] = ETHERTYPE_IPV4_LE;
    u16[ip + IPV4_SOURCE] = source;
    u16[ip + IPV4_SOURCE + 1] = source >>> 16;
    u16[ip + IPV4_DESTINATION] = destination;
    u16[ip + IPV4_DESTINATION + 1] = destination >>> 16;
    u16[t] = sourcePort;
    u16[t + 1] = destinationPort;
    write32(u16, t + TCP_SEQUENCE, random32());
    write32(u16, t + TCP_ACKNOWLEDGMENT, random32());
    u16[t + TCP_FLAGS] = ACK_LE | NO_OPTIONS;
    finish(frame, ip);
    return frame;
  }

  /** What a segment without data is beside its addresses, ports, numbers and flags. */
  function finish(frame: number, ip: number): void {
    const t = ip + IPV4_HEADER / 2;
    u16[ip] = VERSION_LE;
    u16[ip + IPV4_LENGTH] = swap16(IPV4_HEADER + TCP_HEADER);
    u16[ip + 2] = 0;
    u16[ip + IPV4_FRAGMENT] = DONT_FRAGMENT_LE;
    u16[ip + IPV4_TTL_PROTOCOL] = TTL | (PROTOCOL_TCP << 8);
    writeIpv4Checksum(u16, ip);
    u16[t + TCP_WINDOW] = 0;
    u16[t + TCP_CHECKSUM] = 0;
    u16[t + TCP_URGENT] = 0;
    let sum = PROTOCOL_TCP + TCP_HEADER;
    for (let i = 0; i < 4; i++) sum += swap16(u16[ip + IPV4_SOURCE + i]);
    u16[t + TCP_CHECKSUM] = ~swap16(native.checksum(t * 2, TCP_HEADER, fold16(sum)));
    len[frame] = ETHERNET_HEADER + IPV4_HEADER + TCP_HEADER;
    offload[frame] = 0;
  }

  return { answer, probe };
}

/**
 * Writes ports, numbers and flags of the RST that answers a segment of `payload` bytes at `t`.
 * @param to where its header is to begin: at `t`, or before it.
 */
export function writeReset(u16: Uint16Array, t: number, to: number, payload: number): void {
  const flags = u16[t + TCP_FLAGS];
  swap(u16, t, t + 1);
  u16[to] = u16[t];
  u16[to + 1] = u16[t + 1];
  if ((flags & ACK_LE) !== 0) {
    u16[to + TCP_SEQUENCE] = u16[t + TCP_ACKNOWLEDGMENT];
    u16[to + TCP_SEQUENCE + 1] = u16[t + TCP_ACKNOWLEDGMENT + 1];
    write32(u16, to + TCP_ACKNOWLEDGMENT, 0);
    u16[to + TCP_FLAGS] = RST_LE | NO_OPTIONS;
    return;
  }
  const phantom = Number((flags & SYN_LE) !== 0) + Number((flags & FIN_LE) !== 0);
  const next = sequenceAt(u16, t + TCP_SEQUENCE) + Math.max(payload, 0) + phantom;
  write32(u16, to + TCP_SEQUENCE, 0);
  write32(u16, to + TCP_ACKNOWLEDGMENT, next);
  u16[to + TCP_FLAGS] = RST_LE | ACK_LE | NO_OPTIONS;
}

export function swap(u16: Uint16Array, a: number, b: number): void {
  const kept = u16[a];
  u16[a] = u16[b];
  u16[b] = kept;
}

/** Writes a 32-bit number in network order. */
export function write32(u16: Uint16Array, at: number, value: number): void {
  u16[at] = swap16((value / 0x10000) & 0xffff);
  u16[at + 1] = swap16(value & 0xffff);
}

export function random32(): number {
  return Math.floor(Math.random() * 0x1_0000_0000);
}
