/**
 * `segment`: finishes what offloads left undone, in front of a port that takes neither super-frames nor partial
 * checksums (a UDP socket, a packet socket, a capture).
 *
 * Per batch:
 *   1. the partial checksums of all ordinary frames are summed in one native call and stored;
 *   2. frames leave in their order; in place of a super-frame (virtio 1.2, 5.1.6.2) leave its segments, in a row.
 * Per super-frame:
 *   1. the headers are found by parsing, whatever the kernel hinted, for a container can write any hint;
 *   2. the payload of every segment is summed in one native call;
 *   3. each segment gets a slot, the headers, its piece of the payload, and its own lengths, IPv4 id, sequence
 *      number, flags and checksums, as the kernel does it (tcp_gso_segment, __udp_gso_segment, inet_gso_segment):
 *      id and sequence count on, FIN and PSH stay on the last, CWR stays on the first (RFC 3168, 6.1.2);
 *   4. outer VXLAN headers, if they are there already, get their lengths and checksums too. The outer IPv4 id
 *      stays: the encapsulation sets DF, and then the id means nothing (RFC 6864, 4.1).
 *
 * Not handled, dropped as `bad-offload`: UFO (GSO type 3), fragments, IPv6 routing headers, more than two VLAN
 * tags, checksum fields at odd offsets.
 */
import { native } from '../../native-bindings/index.js';
import { type Batch, type Consumer, type Context, Drops } from '../graph.js';
import {
  BATCH_SIZE,
  GSO_ECN,
  GSO_TCPV4,
  GSO_TCPV6,
  GSO_UDP_L4,
  NO_FRAME,
  OFFLOAD_GSO_MASK,
  OFFLOAD_GSO_SHIFT,
  OFFLOAD_NEEDS_CSUM,
  OFFLOAD_OUTER_MASK,
  OFFLOAD_OUTER_SHIFT,
} from '../memory/frames.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV6_LE, swap16 } from '../wire/ethernet.js';
import {
  fold16,
  IPV4_CHECKSUM,
  IPV4_LENGTH,
  IPV4_SOURCE,
  IPV6_HEADER,
  IPV6_LENGTH,
  IPV6_SOURCE,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  sumWords,
  UDP_HEADER,
} from '../wire/ip.js';
import { NO_TRANSPORT, networkOffset, transportOffset } from '../wire/layers.js';
import {
  CWR_LE,
  FIN_LE,
  PSH_LE,
  TCP_CHECKSUM,
  TCP_FLAGS,
  TCP_HEADER,
  TCP_SEQUENCE,
  tcpHeaderLength,
} from '../wire/tcp.js';
import { OUTER_IPV4, OUTER_IPV6 } from '../wire/vxlan.js';

const REASONS = ['bad-offload', 'no-slot'] as const;
const [BAD_OFFLOAD, NO_SLOT] = REASONS.keys();

const COUNTERS = ['super-frames', 'segments', 'checksums'] as const;
const [SUPER_FRAMES, SEGMENTS, CHECKSUMS] = COUNTERS.keys();

/** 64 KiB in segments of 48 bytes, the least that Linux sends (net.ipv4.tcp_min_snd_mss). */
const MAX_TCP_SEGMENTS = 1366;
/** Segments that are handed on together. */
const CUTS = 64;
/** UDP_MAX_SEGMENTS of Linux since 6.9; 64 before. */
const MAX_UDP_SEGMENTS = 128;
/** Longest headers that are copied in front of each segment: outer 70, Ethernet 22, IPv4 60, TCP 60 is 212. */
const MAX_HEADERS = 512;
/** Word indices within outer headers that begin at word 0. */
const OUTER_IP = ETHERNET_HEADER / 2;
const OUTER_UDP4 = (OUTER_IPV4 - 16) / 2;
const OUTER_UDP6 = (OUTER_IPV6 - 16) / 2;
const UDP_LENGTH = 2;
const UDP_CHECKSUM = 3;

export interface SegmentOptions {
  /** Owner of the counters; default `segment`. */
  readonly name?: string;
  /** Compute the outer UDP checksum over IPv6 (default); false where the port has the kernel do it. */
  readonly outerChecksum?: boolean;
}

export interface Segment extends Consumer {
  readonly drops: Drops;
  /** Gives the counters back. */
  close(): void;
}

/** Everything that leaves has `offload` 0. */
export function createSegment(context: Context, out: Batch, options: SegmentOptions = {}): Segment {
  const { frames } = context;
  const { u16, off, len, ingress, domain, dest, mark, offload, gsoSize, csumStart, csumOffset } = frames;
  const { values } = context.counters;
  const { name = 'segment', outerChecksum = true } = options;
  const drops = new Drops(context, name, REASONS);
  const block = context.counters.claim(name, COUNTERS);
  const { base } = block;
  const spans = new Uint32Array(Math.max(MAX_TCP_SEGMENTS, BATCH_SIZE) * 3);
  const sums = new Uint32Array(Math.max(MAX_TCP_SEGMENTS, BATCH_SIZE));
  /** Segments whose payload is still to be copied, and the copies: from, to, length. */
  const cuts = new Uint32Array(CUTS);
  const moves = new Uint32Array(CUTS * 3);
  let waiting = 0;
  /** Frames whose partial checksums are being summed. */
  const partial = new Uint32Array(BATCH_SIZE);

  // The super-frame at hand. Lengths and offsets in bytes from the frame's first byte.
  let outer = 0;
  let l3 = 0;
  let l4 = 0;
  let headers = 0;
  let size = 0;
  let segments = 0;
  let v6 = false;
  let tcp = false;
  // Sums of what all its segments share, as the 16-bit view gives the words, not folded.
  let ipSum = 0;
  let transportSum = 0;
  let outerSum = 0;
  let innerPseudo = 0;

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    let unfinished = 0;
    for (let k = 0; k < count; k++) {
      const word = offload[ids[k]];
      if (word !== 0 && (word & OFFLOAD_GSO_MASK) === 0) unfinished = gather(ids[k], word, unfinished);
    }
    if (unfinished > 0) finish(unfinished);
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      const word = offload[frame];
      if (word === 0) out.push(frame);
      // What is still marked here was refused by `gather`.
      else if ((word & OFFLOAD_GSO_MASK) === 0 || !parse(frame, word)) drops.drop(frame, BAD_OFFLOAD);
      else cut(frame);
    }
  }

  /** Adds an ordinary frame with a partial checksum to the spans to sum; returns how many wait now. */
  function gather(frame: number, word: number, waiting: number): number {
    const headroom = (word & OFFLOAD_OUTER_MASK) >>> OFFLOAD_OUTER_SHIFT;
    const start = csumStart[frame];
    const field = start + csumOffset[frame];
    if ((word & OFFLOAD_NEEDS_CSUM) === 0) {
      // Nothing is left to do inside; the encapsulation has left the outer checksum to us all the same.
      if (outerChecksum && headroom === OUTER_IPV6 && len[frame] >= OUTER_IPV6)
        writeOuterChecksum(
          off[frame],
          OUTER_IPV6,
          swap16(native.checksum(off[frame] + OUTER_IPV6, len[frame] - OUTER_IPV6, 0)),
        );
      offload[frame] = 0;
      return waiting;
    }
    // Never into the Ethernet header, let alone the outer ones: a container chose these numbers.
    if (start < headroom + ETHERNET_HEADER || ((start | field) & 1) !== 0 || field + 2 > len[frame])
      return waiting;
    spans[waiting * 3] = off[frame] + start;
    spans[waiting * 3 + 1] = len[frame] - start;
    spans[waiting * 3 + 2] = 0;
    partial[waiting] = frame;
    return waiting + 1;
  }

  function finish(waiting: number): void {
    native.checksums(spans, waiting, sums);
    for (let i = 0; i < waiting; i++) {
      const frame = partial[i];
      const start = csumStart[frame];
      const field = (off[frame] + start + csumOffset[frame]) >>> 1;
      const pseudo = u16[field];
      u16[field] = nonZero(~swap16(sums[i]));
      if (outerChecksum && (offload[frame] & OFFLOAD_OUTER_MASK) >>> OFFLOAD_OUTER_SHIFT === OUTER_IPV6)
        // With its right checksum, everything from `start` on sums to the complement of the pseudo-header.
        writeOuterChecksum(off[frame], start, ~pseudo & 0xffff);
      offload[frame] = 0;
    }
    values[base + CHECKSUMS] += waiting;
  }

  /** Outer UDP checksum over IPv6 (RFC 8200, 8.1), from headers up to `start` and the sum of the rest. */
  function writeOuterChecksum(at: number, start: number, rest: number): void {
    const w = at >>> 1;
    const udp = w + OUTER_UDP6;
    u16[udp + UDP_CHECKSUM] = 0;
    const pseudo =
      sumWords(u16, w + OUTER_IP + IPV6_SOURCE, 16) + (PROTOCOL_UDP << 8) + u16[udp + UDP_LENGTH];
    const sum = fold16(sumWords(u16, udp, (start >>> 1) - OUTER_UDP6));
    u16[udp + UDP_CHECKSUM] = nonZero(~fold16(pseudo + sum + rest));
  }

  /** Finds the headers of a super-frame; false when they are not what its offload metadata says. */
  function parse(frame: number, word: number): boolean {
    outer = (word & OFFLOAD_OUTER_MASK) >>> OFFLOAD_OUTER_SHIFT;
    const inner = len[frame] - outer;
    if ((word & OFFLOAD_NEEDS_CSUM) === 0 || inner < ETHERNET_HEADER) return false;
    if (outer !== 0 && outer !== OUTER_IPV4 && outer !== OUTER_IPV6) return false;
    const w = (off[frame] + outer) >>> 1;
    l3 = networkOffset(u16, w, inner);
    const type = u16[w + (l3 >>> 1) - 1];
    const found = transportOffset(u16, w + (l3 >>> 1), inner - l3, type);
    if (found === NO_TRANSPORT) return false;
    v6 = type === ETHERTYPE_IPV6_LE;
    const gso = ((word & OFFLOAD_GSO_MASK) >>> OFFLOAD_GSO_SHIFT) & ~GSO_ECN;
    tcp = gso === (v6 ? GSO_TCPV6 : GSO_TCPV4);
    if (found >>> 16 !== (tcp ? PROTOCOL_TCP : PROTOCOL_UDP) || (!tcp && gso !== GSO_UDP_L4)) return false;
    l3 += outer;
    l4 = l3 + (found & 0xffff);
    return parseTransport(frame);
  }

  function parseTransport(frame: number): boolean {
    const length = len[frame];
    const least = tcp ? TCP_HEADER : UDP_HEADER;
    if (l4 + least > length) return false;
    const header = tcp ? tcpHeaderLength(u16[((off[frame] + l4) >>> 1) + TCP_FLAGS]) : UDP_HEADER;
    headers = l4 + header;
    if (header < least || headers > length || headers > MAX_HEADERS) return false;
    if (csumStart[frame] !== l4 || csumOffset[frame] !== (tcp ? TCP_CHECKSUM : UDP_CHECKSUM) * 2)
      return false;
    const payload = length - headers;
    // A super-frame may be shorter than one segment: then it is one.
    size = Math.min(gsoSize[frame], payload);
    if (gsoSize[frame] === 0 || headers + size - ETHERNET_HEADER > 65535) return false;
    segments = payload === 0 ? 1 : Math.ceil(payload / size);
    return segments <= (tcp ? MAX_TCP_SEGMENTS : MAX_UDP_SEGMENTS);
  }

  function cut(frame: number): void {
    const payload = len[frame] - headers;
    sumPayload(off[frame] + headers, payload);
    sumHeaders(off[frame]);
    let made = 0;
    for (; made < segments; made++) {
      const bytes = Math.min(size, payload - made * size);
      const segment = frames.alloc(headers + bytes);
      if (segment === NO_FRAME) {
        drops.add(NO_SLOT, segments - made);
        break;
      }
      const at = place(frame, segment, made, bytes);
      writeInner(at, off[frame], made, bytes);
      if (outer !== 0) writeOuter(at >>> 1, bytes);
      cuts[waiting++] = segment;
      if (waiting === CUTS) handOn();
    }
    handOn();
    values[base + SUPER_FRAMES]++;
    values[base + SEGMENTS] += made;
    frames.free(frame);
  }

  /** Hands on the segments that wait. Whoever takes one may send it at once, so their payload comes first. */
  function handOn(): void {
    native.copies(moves, waiting);
    for (let i = 0; i < waiting; i++) out.push(cuts[i]);
    waiting = 0;
  }

  function sumPayload(from: number, payload: number): void {
    for (let i = 0; i < segments; i++) {
      spans[i * 3] = from + i * size;
      spans[i * 3 + 1] = Math.min(size, payload - i * size);
      spans[i * 3 + 2] = 0;
    }
    native.checksums(spans, segments, sums);
  }

  function sumHeaders(at: number): void {
    const ip = (at + l3) >>> 1;
    const t = (at + l4) >>> 1;
    const addresses = v6 ? sumWords(u16, ip + IPV6_SOURCE, 16) : sumWords(u16, ip + IPV4_SOURCE, 4);
    if (!v6)
      ipSum =
        sumWords(u16, ip, (l4 - l3) >>> 1) - u16[ip + IPV4_LENGTH] - u16[ip + 2] - u16[ip + IPV4_CHECKSUM];
    transportSum = addresses + sumWords(u16, t, (headers - l4) >>> 1);
    if (tcp)
      transportSum +=
        (PROTOCOL_TCP << 8) -
        u16[t + TCP_SEQUENCE] -
        u16[t + TCP_SEQUENCE + 1] -
        u16[t + TCP_FLAGS] -
        u16[t + TCP_CHECKSUM];
    else transportSum += (PROTOCOL_UDP << 8) - u16[t + UDP_LENGTH] - u16[t + UDP_CHECKSUM];
    if (outer !== 0) sumOuter(at >>> 1, ip, t, addresses);
  }

  function sumOuter(w: number, ip: number, t: number, addresses: number): void {
    if (outer === OUTER_IPV4) {
      const header = w + OUTER_IP;
      outerSum = sumWords(u16, header, 10) - u16[header + IPV4_LENGTH] - u16[header + IPV4_CHECKSUM];
      return;
    }
    const udp = w + OUTER_UDP6;
    // From the outer UDP header to the inner IP header. An inner IPv4 header sums to zero (0xffff); an inner IPv6
    // header counts but for its length; everything behind sums to the complement of its pseudo-header.
    outerSum =
      sumWords(u16, w + OUTER_IP + IPV6_SOURCE, 16) +
      (PROTOCOL_UDP << 8) +
      sumWords(u16, udp, ip - udp) -
      u16[udp + UDP_LENGTH] -
      u16[udp + UDP_CHECKSUM];
    if (v6) outerSum += sumWords(u16, ip, t - ip) - u16[ip + IPV6_LENGTH];
    innerPseudo = addresses + ((tcp ? PROTOCOL_TCP : PROTOCOL_UDP) << 8);
  }

  /** Copies headers of the `i`th segment into its slot and plans its payload's copy; returns where it begins. */
  function place(frame: number, segment: number, i: number, bytes: number): number {
    // So that headers are congruent, and copied by words.
    const at = off[segment] + (off[frame] & 7);
    frames.copy(off[frame], at, headers);
    moves[waiting * 3] = off[frame] + headers + i * size;
    moves[waiting * 3 + 1] = at + headers;
    moves[waiting * 3 + 2] = bytes;
    off[segment] = at;
    len[segment] = headers + bytes;
    ingress[segment] = ingress[frame];
    domain[segment] = domain[frame];
    dest[segment] = dest[frame];
    mark[segment] = mark[frame];
    return at;
  }

  /** Inner IP and transport header of the `i`th segment at `at`; `first` is where the super-frame begins. */
  function writeInner(at: number, first: number, i: number, bytes: number): void {
    const ip = (at + l3) >>> 1;
    if (v6) u16[ip + IPV6_LENGTH] = swap16(headers - l3 - IPV6_HEADER + bytes);
    else {
      const total = swap16(headers - l3 + bytes);
      const id = swap16((swap16(u16[((first + l3) >>> 1) + 2]) + i) & 0xffff);
      u16[ip + IPV4_LENGTH] = total;
      u16[ip + 2] = id;
      u16[ip + IPV4_CHECKSUM] = ~fold16(ipSum + total + id);
    }
    const t = (at + l4) >>> 1;
    const sum = transportSum + swap16(headers - l4 + bytes) + swap16(sums[i]);
    if (tcp) writeTcp(t, i, sum);
    else {
      const length = swap16(UDP_HEADER + bytes);
      u16[t + UDP_LENGTH] = length;
      u16[t + UDP_CHECKSUM] = nonZero(~fold16(sum + length));
    }
  }

  function writeTcp(t: number, i: number, sum: number): void {
    let flags = u16[t + TCP_FLAGS];
    if (i !== segments - 1) flags &= ~(FIN_LE | PSH_LE);
    if (i !== 0) flags &= ~CWR_LE;
    // In halves, since 32 bits do not fit a small integer.
    const low = swap16(u16[t + TCP_SEQUENCE + 1]) + i * size;
    const lowWord = swap16(low & 0xffff);
    const highWord = swap16((swap16(u16[t + TCP_SEQUENCE]) + (low >>> 16)) & 0xffff);
    u16[t + TCP_FLAGS] = flags;
    u16[t + TCP_SEQUENCE] = highWord;
    u16[t + TCP_SEQUENCE + 1] = lowWord;
    u16[t + TCP_CHECKSUM] = ~fold16(sum + flags + highWord + lowWord);
  }

  function writeOuter(w: number, bytes: number): void {
    const length = headers + bytes - ETHERNET_HEADER;
    if (outer === OUTER_IPV4) {
      const total = swap16(length);
      u16[w + OUTER_IP + IPV4_LENGTH] = total;
      u16[w + OUTER_IP + IPV4_CHECKSUM] = ~fold16(outerSum + total);
      u16[w + OUTER_UDP4 + UDP_LENGTH] = swap16(length - 20);
      return;
    }
    const udpLength = swap16(length - IPV6_HEADER);
    u16[w + OUTER_IP + IPV6_LENGTH] = udpLength;
    u16[w + OUTER_UDP6 + UDP_LENGTH] = udpLength;
    u16[w + OUTER_UDP6 + UDP_CHECKSUM] = 0;
    if (!outerChecksum) return;
    const innerLength = v6 ? u16[w + (l3 >>> 1) + IPV6_LENGTH] : 0;
    const rest = ~fold16(innerPseudo + swap16(headers - l4 + bytes)) & 0xffff;
    u16[w + OUTER_UDP6 + UDP_CHECKSUM] = nonZero(~fold16(outerSum + 2 * udpLength + innerLength + rest));
  }

  function close(): void {
    drops.release();
    context.counters.release(block);
  }

  return { drops, process, close };
}

/** A checksum as it is sent: zero would say "none", all ones means the same number (RFC 768). */
function nonZero(checksum: number): number {
  const value = checksum & 0xffff;
  return value === 0 ? 0xffff : value;
}
