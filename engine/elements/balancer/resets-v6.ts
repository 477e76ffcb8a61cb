/** Resets of TCP connections over IPv6: what resets.ts makes over IPv4. */
import { native } from '../../../native-bindings/index.js';
import type { Context } from '../../graph.js';
import { NO_FRAME } from '../../memory/frames.js';
import type { Addresses6 } from '../../tables/addresses6.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV6_LE, swap16 } from '../../wire/ethernet.js';
import {
  fold16,
  IPV6_DESTINATION,
  IPV6_HEADER,
  IPV6_LENGTH,
  IPV6_NEXT_HOP,
  IPV6_SOURCE,
  PROTOCOL_TCP,
  sumWords,
} from '../../wire/ip.js';
import {
  ACK_LE,
  RST_LE,
  TCP_ACKNOWLEDGMENT,
  TCP_CHECKSUM,
  TCP_FLAGS,
  TCP_HEADER,
  TCP_SEQUENCE,
  TCP_URGENT,
  TCP_WINDOW,
  tcpHeaderLength,
} from '../../wire/tcp.js';
import { NO_OPTIONS, type Probe, random32, swap, write32, writeReset } from './resets.js';

const HOP_LIMIT = 64;

export interface ResetsV6 {
  /**
   * Turns a sound TCP segment into the RST that its sender must believe, in place, Ethernet addresses included.
   * @param t first word of its TCP header, from which on it has `left` bytes.
   * @returns false for an RST, which is never answered.
   */
  answer(frame: number, t: number, left: number): boolean;
  readonly probe: Probe;
}

export function createResetsV6(context: Context, addresses: Addresses6): ResetsV6 {
  const { frames } = context;
  const { u16, off, len, offload } = frames;

  function answer(frame: number, t: number, left: number): boolean {
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    const flags = u16[t + TCP_FLAGS];
    if ((flags & RST_LE) !== 0) return false;
    for (let i = 0; i < 3; i++) swap(u16, w + i, w + 3 + i);
    for (let i = 0; i < 8; i++) swap(u16, ip + IPV6_SOURCE + i, ip + IPV6_DESTINATION + i);
    writeReset(u16, t, ip + IPV6_HEADER / 2, left - tcpHeaderLength(flags));
    finish(frame, ip);
    return true;
  }

  function probe(source: number, sourcePort: number, destination: number, destinationPort: number): number {
    const frame = frames.allocSmall();
    if (frame === NO_FRAME) return NO_FRAME;
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    const t = ip + IPV6_HEADER / 2;
    u16[w + 6] = ETHERTYPE_IPV6_LE;
    writeAddress(ip + IPV6_SOURCE, source);
    writeAddress(ip + IPV6_DESTINATION, destination);
    u16[t] = sourcePort;
    u16[t + 1] = destinationPort;
    write32(u16, t + TCP_SEQUENCE, random32());
    write32(u16, t + TCP_ACKNOWLEDGMENT, random32());
    u16[t + TCP_FLAGS] = ACK_LE | NO_OPTIONS;
    finish(frame, ip);
    return frame;
  }

  function writeAddress(word: number, number: number): void {
    for (let i = 0; i < 8; i++) u16[word + i] = addresses.words[number * 4 + (i >> 1)] >>> ((i & 1) << 4);
  }

  /** What a segment is beside its addresses, ports, numbers and flags. */
  function finish(frame: number, ip: number): void {
    const t = ip + IPV6_HEADER / 2;
    u16[ip] = 0x60;
    u16[ip + 1] = 0;
    u16[ip + IPV6_LENGTH] = swap16(TCP_HEADER);
    u16[ip + IPV6_NEXT_HOP] = PROTOCOL_TCP | (HOP_LIMIT << 8);
    u16[t + TCP_WINDOW] = 0;
    u16[t + TCP_CHECKSUM] = 0;
    u16[t + TCP_URGENT] = 0;
    const sum =
      swap16(native.checksum(t * 2, TCP_HEADER, 0)) +
      sumWords(u16, ip + IPV6_SOURCE, 16) +
      swap16(TCP_HEADER) +
      swap16(PROTOCOL_TCP);
    u16[t + TCP_CHECKSUM] = ~fold16(sum);
    len[frame] = ETHERNET_HEADER + IPV6_HEADER + TCP_HEADER;
    offload[frame] = 0;
  }

  return { answer, probe };
}
