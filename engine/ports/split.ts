/**
 * Takes apart what arrived as one: outer UDP datagrams of equal size (the last may be shorter) laid one after
 * another behind one outer header, as UDP_GRO hands them to a socket and UDP segmentation to an uplink TAP.
 *
 * The first datagram stays in its slot; each further one gets a slot of its own with a copy of the outer header,
 * lengths and IPv4 checksum set. Its bytes keep their place modulo 8 where they may, so that words copy them; a
 * datagram at an odd address is moved to an even one, since every Ethernet header must begin there.
 *
 * The outer UDP checksum becomes zero: who merged the datagrams has checked it, or they never left this machine.
 */
import { type Batch, type Context, Drops } from '../graph.js';
import { NO_FRAME } from '../memory/frames.js';
import { createCopy } from '../memory/unaligned.js';
import { ETHERNET_HEADER, swap16 } from '../wire/ethernet.js';
import { IPV4_HEADER, UDP_HEADER, writeIpv4Checksum } from '../wire/ip.js';
import { OUTER_IPV4, OUTER_IPV6, VXLAN_HEADER } from '../wire/vxlan.js';

const REASONS = ['no-slot', 'bad-size'] as const;
const [NO_SLOT, BAD_SIZE] = REASONS.keys();

/** Most datagrams in one buffer: UDP_MAX_SEGMENTS of Linux. */
const MOST = 128;

export interface Splitter {
  /** Pushes the datagrams of `frame`, `size` bytes of UDP payload each, in order. Returns how many. */
  split(frame: number, size: number, to: Batch): number;
  close(): void;
}

export function createSplitter(context: Context, owner: string, v6: boolean): Splitter {
  const { frames } = context;
  const { u16, off, len, offload } = frames;
  const copyBytes = createCopy(frames);
  const drops = new Drops(context, owner, REASONS);
  const parts = new Uint32Array(MOST);
  /** Outer Ethernet, IP and UDP. */
  const outer = (v6 ? OUTER_IPV6 : OUTER_IPV4) - VXLAN_HEADER;

  function split(frame: number, size: number, to: Batch): number {
    const payload = len[frame] - outer;
    if (payload <= 0 || size === 0 || size * MOST < payload) {
      drops.drop(frame, BAD_SIZE);
      return 0;
    }
    // All copies before the first push: a full batch is sent at once, and sending writes into the slot.
    parts[0] = frame;
    let count = 1;
    for (let at = size; at < payload; at += size) {
      const copy = copyPart(frame, at, Math.min(size, payload - at));
      if (copy === NO_FRAME) drops.add(NO_SLOT);
      else parts[count++] = copy;
    }
    trim(frame, Math.min(size, payload));
    for (let i = 0; i < count; i++) to.push(parts[i]);
    return count;
  }

  /** A frame of its own for the `length` bytes of UDP payload at `at`; NO_FRAME when no slot is free. */
  function copyPart(frame: number, at: number, length: number): number {
    const copy = frames.alloc(outer + length);
    if (copy === NO_FRAME) return NO_FRAME;
    const from = off[frame] + outer + at;
    const even = (from & 1) === 0;
    const target = off[copy] + (even ? from & 7 : 0);
    copyBytes(from, target, length);
    const header = (target - outer) >>> 1;
    const original = off[frame] >>> 1;
    for (let i = 0; i < outer / 2; i++) u16[header + i] = u16[original + i];
    off[copy] = target - outer;
    trim(copy, length);
    return copy;
  }

  /** Makes the outer header fit a datagram with `length` bytes of UDP payload. */
  function trim(frame: number, length: number): void {
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    const udp = w + (outer - UDP_HEADER) / 2;
    const udpLength = swap16(length + UDP_HEADER);
    if (v6) u16[ip + 2] = udpLength;
    else {
      u16[ip + 1] = swap16(length + UDP_HEADER + IPV4_HEADER);
      writeIpv4Checksum(u16, ip);
    }
    u16[udp + 2] = udpLength;
    u16[udp + 3] = 0;
    len[frame] = outer + length;
    offload[frame] = 0;
  }

  return { split, close: () => drops.release() };
}
