/**
 * Cuts IPv4 packets into fragments for a smaller MTU (RFC 791, 3.2), in order, the first one first (RFC 4787,
 * REQ-13a). For packets without DF; an unfinished checksum is completed before.
 *
 * Not handled: super-frames, and packets with options, of which each fragment would need a choice.
 */
import { native } from '../../native-bindings/index.js';
import type { Batch, Context } from '../graph.js';
import { type FrameMemory, NO_FRAME, OFFLOAD_GSO_MASK, OFFLOAD_NEEDS_CSUM } from '../memory/frames.js';
import { createCopy } from '../memory/unaligned.js';
import { ETHERNET_HEADER, swap16 } from '../wire/ethernet.js';
import { IPV4_FRAGMENT, IPV4_HEADER, IPV4_LENGTH, writeIpv4Checksum } from '../wire/ip.js';

const MORE_FRAGMENTS = 0x2000;
const OFFSET = 0x1fff;

/** Most fragments of one packet: 65,515 bytes by 552 at the least MTU of 576. */
const MOST = 128;

export interface Fragmenter {
  /**
   * Pushes the fragments of a packet larger than `mtu` bytes.
   * @returns false, with nothing done, when it cannot be cut or no slot is free.
   */
  fragment(frame: number, mtu: number, to: Batch): boolean;
}

export function createFragmenter(context: Context): Fragmenter {
  const { frames } = context;
  const { u16, off, len, offload, ingress, domain } = frames;
  const copyBytes = createCopy(frames);
  const parts = new Uint32Array(MOST);

  function fragment(frame: number, mtu: number, to: Batch): boolean {
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    if ((offload[frame] & OFFLOAD_GSO_MASK) !== 0 || (u16[ip] & 15) !== 5) return false;
    const payload = swap16(u16[ip + IPV4_LENGTH]) - IPV4_HEADER;
    const size = (mtu - IPV4_HEADER) & ~7;
    const count = Math.ceil(payload / size);
    if (size <= 0 || count > MOST || !takeSlots(frame, size, payload, count)) return false;
    finishChecksum(frames, frame);
    const field = swap16(u16[ip + IPV4_FRAGMENT]);
    for (let i = 1; i < count; i++) cut(frame, parts[i], i * size, Math.min(size, payload - i * size));
    for (let i = 0; i < count; i++) {
      const more = i < count - 1 ? MORE_FRAGMENTS : field & MORE_FRAGMENTS;
      const offset = (field & OFFSET) + ((i * size) >>> 3);
      const length = Math.min(size, payload - i * size);
      writeFields(parts[i], length, (field & ~(OFFSET | MORE_FRAGMENTS)) | more | offset);
    }
    for (let i = 0; i < count; i++) to.push(parts[i]);
    return true;
  }

  function takeSlots(frame: number, size: number, payload: number, count: number): boolean {
    parts[0] = frame;
    for (let i = 1; i < count; i++) {
      const part = frames.alloc(ETHERNET_HEADER + IPV4_HEADER + Math.min(size, payload));
      if (part === NO_FRAME) {
        for (let taken = 1; taken < i; taken++) frames.free(parts[taken]);
        return false;
      }
      parts[i] = part;
    }
    return true;
  }

  /** Ethernet and IP headers, and `length` bytes of payload at `at`. */
  function cut(frame: number, part: number, at: number, length: number): void {
    const headers = ETHERNET_HEADER + IPV4_HEADER;
    const from = off[frame] >>> 1;
    // Payload keeps its place modulo 8, so that words copy it.
    off[part] += (off[frame] + at) & 6;
    copyBytes(off[frame] + headers + at, off[part] + headers, length);
    const to = off[part] >>> 1;
    for (let i = 0; i < headers / 2; i++) u16[to + i] = u16[from + i];
    ingress[part] = ingress[frame];
    domain[part] = domain[frame];
  }

  function writeFields(part: number, length: number, field: number): void {
    const ip = (off[part] + ETHERNET_HEADER) >>> 1;
    u16[ip + IPV4_LENGTH] = swap16(IPV4_HEADER + length);
    u16[ip + IPV4_FRAGMENT] = swap16(field);
    writeIpv4Checksum(u16, ip);
    len[part] = ETHERNET_HEADER + IPV4_HEADER + length;
  }

  return { fragment };
}

/** Completes the checksum of a frame that is no super-frame, when it is a partial one. */
function finishChecksum(frames: FrameMemory, frame: number): void {
  const { off, len, offload, csumStart, csumOffset, u16 } = frames;
  if ((offload[frame] & OFFLOAD_NEEDS_CSUM) === 0) return;
  const start = csumStart[frame];
  offload[frame] = 0;
  // What does not add up is left as it is: the receiver finds it wrong.
  if (start + csumOffset[frame] + 2 > len[frame]) return;
  const field = (off[frame] + start + csumOffset[frame]) >>> 1;
  const sum = ~swap16(native.checksum(off[frame] + start, len[frame] - start, 0)) & 0xffff;
  u16[field] = sum === 0 ? 0xffff : sum;
}
