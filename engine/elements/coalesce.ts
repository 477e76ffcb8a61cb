/**
 * `coalesce`: makes super-frames of runs of one flow's segments, in front of a TAP that takes super-frames, by the
 * rules of Linux's generic receive offload (net/core/gro.c, tcp_gro_receive, udp_gro_receive_segment).
 *
 * Per batch:
 *   1. every frame is classified; the transport checksums of all that could merge are summed in one native call;
 *   2. a segment that continues a held frame of its flow is laid behind it, anything else of that flow sends the
 *      held frame on first, so that a flow never changes its order;
 *   3. at the end all held frames go, in the order in which they came.
 * Two segments merge when ports, addresses and everything below are equal – MAC addresses, tags, ingress, domain,
 * mark, TTL, TOS, DF, flow label – and
 *   - IPv4: no options, header checksum right, id counting on, or with DF staying the same;
 *   - TCP: the next sequence number; same acknowledgement, window, urgent pointer, options and flags, but for CWR,
 *     which only the first may carry, and FIN and PSH, which end the run; SYN, RST and URG never merge;
 *   - UDP (when asked for): a checksum is there; at most 64 datagrams;
 *   - payload as long as the first one's, or shorter, which ends the run;
 *   - the checksum of each is right. A wrong one goes on alone, for its receiver to refuse.
 *
 * Not handled, passed on as they are: IPv4 options, IPv6 extension headers, fragments, padded frames, frames that
 * are super-frames or carry a partial checksum already.
 */
import { native } from '../../native-bindings/index.js';
import type { Batch, Consumer, Context } from '../graph.js';
import {
  BATCH_SIZE,
  GSO_ECN,
  GSO_TCPV4,
  GSO_TCPV6,
  GSO_UDP_L4,
  LARGE_CAPACITY,
  NO_FRAME,
  OFFLOAD_GSO_SHIFT,
  OFFLOAD_NEEDS_CSUM,
} from '../memory/frames.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV4_LE, ETHERTYPE_IPV6_LE, swap16 } from '../wire/ethernet.js';
import {
  fold16,
  IPV4_FRAGMENT,
  IPV4_HEADER,
  IPV4_LENGTH,
  IPV4_SOURCE,
  IPV4_TTL_PROTOCOL,
  IPV6_HEADER,
  IPV6_LENGTH,
  IPV6_NEXT_HOP,
  IPV6_SOURCE,
  PROTOCOL_ICMPV6,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  sumWords,
  UDP_HEADER,
  writeIpv4Checksum,
} from '../wire/ip.js';
import { networkOffset } from '../wire/layers.js';
import {
  CWR_LE,
  FIN_LE,
  PSH_LE,
  RST_LE,
  SYN_LE,
  TCP_ACKNOWLEDGMENT,
  TCP_CHECKSUM,
  TCP_FLAGS,
  TCP_HEADER,
  TCP_SEQUENCE,
  TCP_URGENT,
  TCP_WINDOW,
  tcpHeaderLength,
  URG_LE,
} from '../wire/tcp.js';

const COUNTERS = ['super-frames', 'merged', 'bad-checksums', 'no-slot'] as const;
const [SUPER_FRAMES, MERGED, BAD_CHECKSUMS, NO_SLOT] = COUNTERS.keys();

/** Flows under construction; one more sends the oldest on. GRO keeps at least as many. */
const FLOWS = 16;
/** UDP_GRO_CNT_MAX of Linux: more would be refused by UDP_MAX_SEGMENTS of older kernels. */
const MAX_DATAGRAMS = 64;
/** DF alone, as the view gives it; the only bit a mergeable packet may carry there. */
const DF_LE = 0x0040;
const UDP_CHECKSUM = 3;

/**
 * Classes of a frame. A candidate is a positive number: offset of the IP header in bits 0–7, of the transport header
 * in bits 8–15, of the payload in bits 16–23, and the bits below.
 */
const UNRELATED = 0;
/** TCP or UDP, perhaps, but not to be merged: whatever is held between its two addresses must go first. */
const UNMERGEABLE = -1;
const V6 = 1 << 24;
const UDP = 1 << 25;

export interface CoalesceOptions {
  /** Merge UDP datagrams too: only where the TAP takes GSO type 5 (Linux 6.2, TUN_F_USO4 and _USO6). */
  readonly udp: boolean;
  /** Owner of the counters; default `coalesce`. */
  readonly name?: string;
}

export interface Coalesce extends Consumer {
  /** Gives the counters back. */
  close(): void;
}

/** Frames must be whole inner Ethernet frames; what leaves has at most TCPv4, TCPv6 or UDP_L4 offload metadata. */
export function createCoalesce(context: Context, out: Batch, options: CoalesceOptions): Coalesce {
  const { frames } = context;
  const { u16, off, len, ingress, domain, dest, mark, offload, gsoSize, hdrLen, csumStart, csumOffset } =
    frames;
  const { values } = context.counters;
  const block = context.counters.claim(options.name ?? 'coalesce', COUNTERS);
  const { base } = block;
  const { udp: mergeUdp } = options;

  // Per frame of the batch: its class, and the index of its checksum.
  const classes = new Int32Array(BATCH_SIZE);
  const sumOf = new Uint16Array(BATCH_SIZE);
  const spans = new Uint32Array(BATCH_SIZE * 3);
  const sums = new Uint32Array(BATCH_SIZE);

  /** Payloads to be laid behind their heads, and the frames they come from, which must stay until then. */
  const moves = new Uint32Array(BATCH_SIZE * 3);
  const movedFrom = new Uint32Array(BATCH_SIZE);
  let moving = 0;

  // Flows under construction, `held` of them, oldest first.
  let held = 0;
  const heads = new Uint32Array(FLOWS);
  const headClass = new Int32Array(FLOWS);
  const segments = new Uint16Array(FLOWS);
  /** Payload of the first segment, and most bytes the frame may grow to. */
  const sizes = new Uint16Array(FLOWS);
  const limits = new Uint32Array(FLOWS);
  /** Next TCP sequence number, wire order in two words as the view gives them, folded into one. */
  const nextSequence = new Uint32Array(FLOWS);
  /** Flags to or in at the end: FIN and PSH of the last segment. */
  const lastFlags = new Uint16Array(FLOWS);
  /** 1 when the IPv4 id stays the same, 0 when it counts on. */
  const fixedId = new Uint8Array(FLOWS);

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    if (count === 1) {
      out.push(ids[0]);
      return;
    }
    let spanned = 0;
    for (let k = 0; k < count; k++) {
      const kind = classify(ids[k]);
      classes[k] = kind;
      if (kind > 0) {
        addSpan(ids[k], kind, spanned);
        sumOf[k] = spanned++;
      }
    }
    if (spanned > 0) native.checksums(spans, spanned, sums);
    for (let k = 0; k < count; k++) {
      const kind = classes[k];
      if (kind === UNRELATED) out.push(ids[k]);
      else if (kind === UNMERGEABLE) passBehindOwn(ids[k]);
      else take(ids[k], kind, sums[sumOf[k]] === 0xffff);
    }
    while (held > 0) release(0);
  }

  function classify(frame: number): number {
    const length = len[frame];
    if (length < ETHERNET_HEADER) return UNRELATED;
    const w = off[frame] >>> 1;
    const l3 = networkOffset(u16, w, length);
    const ip = w + (l3 >>> 1);
    const type = u16[ip - 1];
    if (type === ETHERTYPE_IPV4_LE)
      return length < l3 + IPV4_HEADER ? UNRELATED : classifyIpv4(frame, ip, l3);
    if (type === ETHERTYPE_IPV6_LE)
      return length < l3 + IPV6_HEADER ? UNRELATED : classifyIpv6(frame, ip, l3);
    return UNRELATED;
  }

  function classifyIpv4(frame: number, ip: number, l3: number): number {
    const protocol = u16[ip + IPV4_TTL_PROTOCOL] >>> 8;
    if (protocol !== PROTOCOL_TCP && (protocol !== PROTOCOL_UDP || !mergeUdp)) return UNRELATED;
    if ((u16[ip] & 0xff) !== 0x45 || (u16[ip + IPV4_FRAGMENT] & ~DF_LE) !== 0) return UNMERGEABLE;
    if (swap16(u16[ip + IPV4_LENGTH]) !== len[frame] - l3 || offload[frame] !== 0) return UNMERGEABLE;
    if (fold16(sumWords(u16, ip, 10)) !== 0xffff) return UNMERGEABLE;
    return classifyTransport(frame, l3, l3 + IPV4_HEADER, protocol, 0);
  }

  function classifyIpv6(frame: number, ip: number, l3: number): number {
    const protocol = u16[ip + IPV6_NEXT_HOP] & 0xff;
    if (protocol === PROTOCOL_ICMPV6) return UNRELATED;
    // Behind any other header there may be TCP or UDP.
    if (protocol !== PROTOCOL_TCP && protocol !== PROTOCOL_UDP) return UNMERGEABLE;
    if (protocol === PROTOCOL_UDP && !mergeUdp) return UNRELATED;
    if ((u16[ip] & 0xf0) !== 0x60 || swap16(u16[ip + IPV6_LENGTH]) !== len[frame] - l3 - IPV6_HEADER)
      return UNMERGEABLE;
    return offload[frame] === 0 ? classifyTransport(frame, l3, l3 + IPV6_HEADER, protocol, V6) : UNMERGEABLE;
  }

  function classifyTransport(frame: number, l3: number, l4: number, protocol: number, bits: number): number {
    const left = len[frame] - l4;
    const t = (off[frame] + l4) >>> 1;
    if (protocol === PROTOCOL_TCP) {
      if (left < TCP_HEADER) return UNMERGEABLE;
      const header = tcpHeaderLength(u16[t + TCP_FLAGS]);
      if (header < TCP_HEADER || header > left) return UNMERGEABLE;
      return l3 | (l4 << 8) | ((l4 + header) << 16) | bits;
    }
    // No checksum: could not be told from damage, and segmentation would compute one (udp_gro_receive_segment).
    if (left <= UDP_HEADER || swap16(u16[t + 2]) !== left || u16[t + UDP_CHECKSUM] === 0) return UNMERGEABLE;
    return l3 | (l4 << 8) | ((l4 + UDP_HEADER) << 16) | bits | UDP;
  }

  /** The span of a candidate's transport checksum, its pseudo-header as the initial sum. */
  function addSpan(frame: number, kind: number, i: number): void {
    const l4 = (kind >>> 8) & 0xff;
    const length = len[frame] - l4;
    spans[i * 3] = off[frame] + l4;
    spans[i * 3 + 1] = length;
    spans[i * 3 + 2] = swap16(fold16(pseudo(frame, kind))) + length;
  }

  /** Sum of addresses and protocol, not folded. */
  function pseudo(frame: number, kind: number): number {
    const ip = (off[frame] + (kind & 0xff)) >>> 1;
    const protocol = ((kind & UDP) !== 0 ? PROTOCOL_UDP : PROTOCOL_TCP) << 8;
    return (kind & V6) !== 0
      ? sumWords(u16, ip + IPV6_SOURCE, 16) + protocol
      : sumWords(u16, ip + IPV4_SOURCE, 4) + protocol;
  }

  function passBehindOwn(frame: number): void {
    for (let i = 0; i < held; ) {
      if (domain[heads[i]] === domain[frame] && sameAddresses(heads[i], headClass[i], frame)) release(i);
      else i++;
    }
    out.push(frame);
  }

  /** Whether a frame that is IP of whatever shape has the addresses of a held one. */
  function sameAddresses(head: number, kind: number, frame: number): boolean {
    const w = off[frame] >>> 1;
    const ip = w + (networkOffset(u16, w, len[frame]) >>> 1);
    const v6 = (kind & V6) !== 0;
    if (u16[ip - 1] !== (v6 ? ETHERTYPE_IPV6_LE : ETHERTYPE_IPV4_LE)) return false;
    const of = (off[head] + (kind & 0xff)) >>> 1;
    return v6
      ? equalWords(of + IPV6_SOURCE, ip + IPV6_SOURCE, 16)
      : equalWords(of + IPV4_SOURCE, ip + IPV4_SOURCE, 4);
  }

  function equalWords(a: number, b: number, count: number): boolean {
    for (let i = 0; i < count; i++) if (u16[a + i] !== u16[b + i]) return false;
    return true;
  }

  /** Merges a candidate into its flow, holds it as the first of a run, or passes it on behind its flow. */
  function take(frame: number, kind: number, sound: boolean): void {
    const i = find(frame, kind);
    const payload = len[frame] - ((kind >>> 16) & 0xff);
    const t = (off[frame] + ((kind >>> 8) & 0xff)) >>> 1;
    const udp = (kind & UDP) !== 0;
    const flags = udp ? 0 : u16[t + TCP_FLAGS];
    if (i >= 0) {
      if (sound && continues(i, frame, kind, payload) && largeHead(i)) {
        const last = payload < sizes[i] || (flags & (FIN_LE | PSH_LE)) !== 0;
        append(i, frame, kind, payload, flags);
        if (last || (udp && segments[i] >= MAX_DATAGRAMS)) release(i);
        return;
      }
      release(i);
    }
    if (!sound) values[base + BAD_CHECKSUMS]++;
    if (!sound || payload === 0 || (flags & (SYN_LE | RST_LE | URG_LE | FIN_LE | PSH_LE)) !== 0)
      out.push(frame);
    else hold(frame, kind, payload);
  }

  /** The flow under construction with this frame's ports, addresses and domain; -1 when there is none. */
  function find(frame: number, kind: number): number {
    const t = (off[frame] + ((kind >>> 8) & 0xff)) >>> 1;
    const dom = domain[frame];
    for (let i = held - 1; i >= 0; i--) {
      const head = heads[i];
      const other = headClass[i];
      if (((kind ^ other) & (V6 | UDP)) !== 0 || domain[head] !== dom) continue;
      const of = (off[head] + ((other >>> 8) & 0xff)) >>> 1;
      if (u16[of] !== u16[t] || u16[of + 1] !== u16[t + 1]) continue;
      // Without options the addresses lie right in front of the ports.
      const words = (kind & V6) !== 0 ? 16 : 4;
      if (equalWords(of - words, t - words, words)) return i;
    }
    return -1;
  }

  /** Whether a frame of flow `i` is the very next segment. */
  function continues(i: number, frame: number, kind: number, payload: number): boolean {
    const head = heads[i];
    if ((payload - 1) >>> 0 >= sizes[i] || len[head] + payload > limits[i]) return false;
    // Equal offsets of IP, and for TCP equal options' length too.
    if (kind !== headClass[i] || ingress[frame] !== ingress[head] || mark[frame] !== mark[head]) return false;
    const w = off[frame] >>> 1;
    const h = off[head] >>> 1;
    const ip = (kind & 0xff) >>> 1;
    if (!equalWords(h, w, ip)) return false;
    if ((kind & V6) !== 0) {
      if (!equalWords(h + ip, w + ip, 2) || u16[h + ip + 3] !== u16[w + ip + 3]) return false;
    } else if (!continuesIpv4(i, h + ip, w + ip)) return false;
    const t = (kind >>> 9) & 0x7f;
    return (kind & UDP) !== 0 || continuesTcp(i, h + t, w + t, ((kind >>> 17) & 0x7f) - t);
  }

  function continuesIpv4(i: number, head: number, ip: number): boolean {
    if (
      u16[head] !== u16[ip] ||
      u16[head + IPV4_FRAGMENT] !== u16[ip + IPV4_FRAGMENT] ||
      u16[head + IPV4_TTL_PROTOCOL] !== u16[ip + IPV4_TTL_PROTOCOL]
    )
      return false;
    const step = (swap16(u16[ip + 2]) - swap16(u16[head + 2])) & 0xffff;
    // The second segment decides whether ids count or, which only DF allows, stay (inet_gro_flush).
    if (segments[i] === 1) fixedId[i] = step === 0 && (u16[ip + IPV4_FRAGMENT] & DF_LE) !== 0 ? 1 : 0;
    return step === (fixedId[i] === 1 ? 0 : segments[i]);
  }

  function continuesTcp(i: number, head: number, t: number, words: number): boolean {
    const flags = u16[t + TCP_FLAGS];
    return (
      (u16[t + TCP_SEQUENCE] | (u16[t + TCP_SEQUENCE + 1] << 16)) === (nextSequence[i] | 0) &&
      u16[head + TCP_ACKNOWLEDGMENT] === u16[t + TCP_ACKNOWLEDGMENT] &&
      u16[head + TCP_ACKNOWLEDGMENT + 1] === u16[t + TCP_ACKNOWLEDGMENT + 1] &&
      ((u16[head + TCP_FLAGS] ^ flags) & ~(CWR_LE | FIN_LE | PSH_LE)) === 0 &&
      (flags & CWR_LE) === 0 &&
      u16[head + TCP_WINDOW] === u16[t + TCP_WINDOW] &&
      u16[head + TCP_URGENT] === u16[t + TCP_URGENT] &&
      equalWords(head + TCP_HEADER / 2, t + TCP_HEADER / 2, words - TCP_HEADER / 2)
    );
  }

  /** Moves the head of flow `i` to a large slot, if it is in a small one; false when none is free. */
  function largeHead(i: number): boolean {
    const head = heads[i];
    if (head >= frames.small) return true;
    const large = frames.allocLarge();
    if (large === NO_FRAME) {
      values[base + NO_SLOT]++;
      return false;
    }
    const at = off[large] + (off[head] & 7);
    frames.copy(off[head], at, len[head]);
    off[large] = at;
    len[large] = len[head];
    ingress[large] = ingress[head];
    domain[large] = domain[head];
    dest[large] = dest[head];
    mark[large] = mark[head];
    frames.free(head);
    heads[i] = large;
    return true;
  }

  function append(i: number, frame: number, kind: number, payload: number, flags: number): void {
    const head = heads[i];
    moves[moving * 3] = off[frame] + ((kind >>> 16) & 0xff);
    moves[moving * 3 + 1] = off[head] + len[head];
    moves[moving * 3 + 2] = payload;
    movedFrom[moving++] = frame;
    len[head] += payload;
    segments[i]++;
    lastFlags[i] = flags & (FIN_LE | PSH_LE);
    if ((kind & UDP) === 0) expect(i, (off[frame] + ((kind >>> 8) & 0xff)) >>> 1, payload);
    values[base + MERGED]++;
  }

  /** Does the moves, all in one native call: 1,340 B to any place in 30 ns, where the words here take 150. */
  function move(): void {
    if (moving === 0) return;
    native.copies(moves, moving);
    frames.freeAll(movedFrom, moving);
    moving = 0;
  }

  /** Notes the sequence number behind the segment whose TCP header is at word `t`. */
  function expect(i: number, t: number, payload: number): void {
    const low = swap16(u16[t + TCP_SEQUENCE + 1]) + payload;
    const high = (swap16(u16[t + TCP_SEQUENCE]) + (low >>> 16)) & 0xffff;
    nextSequence[i] = swap16(high) | (swap16(low & 0xffff) << 16);
  }

  function hold(frame: number, kind: number, payload: number): void {
    if (held === FLOWS) release(0);
    const i = held++;
    heads[i] = frame;
    headClass[i] = kind;
    segments[i] = 1;
    sizes[i] = payload;
    // The IP length field, and the room of the large slot: a head that still is in a small one moves to the front.
    const begin = frame < frames.small ? off[frame] & 7 : off[frame] - frames.start(frame);
    limits[i] = Math.min(65535 + (kind & 0xff), LARGE_CAPACITY - begin);
    lastFlags[i] = 0;
    if ((kind & UDP) === 0) expect(i, (off[frame] + ((kind >>> 8) & 0xff)) >>> 1, payload);
  }

  /** Sends the frame of flow `i` on. */
  function release(i: number): void {
    const head = heads[i];
    if (segments[i] > 1) {
      // Whoever takes the frame may send it at once.
      move();
      complete(i, head, headClass[i]);
    }
    held--;
    for (let j = i; j < held; j++) {
      heads[j] = heads[j + 1];
      headClass[j] = headClass[j + 1];
      segments[j] = segments[j + 1];
      sizes[j] = sizes[j + 1];
      limits[j] = limits[j + 1];
      nextSequence[j] = nextSequence[j + 1];
      lastFlags[j] = lastFlags[j + 1];
      fixedId[j] = fixedId[j + 1];
    }
    out.push(head);
  }

  /** Makes a super-frame of a head with segments behind it: lengths, partial checksum, offload metadata. */
  function complete(i: number, head: number, kind: number): void {
    const l3 = kind & 0xff;
    const l4 = (kind >>> 8) & 0xff;
    const ip = (off[head] + l3) >>> 1;
    const t = (off[head] + l4) >>> 1;
    if ((kind & V6) !== 0) u16[ip + IPV6_LENGTH] = swap16(len[head] - l4);
    else {
      u16[ip + IPV4_LENGTH] = swap16(len[head] - l3);
      writeIpv4Checksum(u16, ip);
    }
    const length = swap16(len[head] - l4);
    const partial = fold16(pseudo(head, kind) + length);
    let gso = GSO_UDP_L4;
    if ((kind & UDP) !== 0) {
      u16[t + 2] = length;
      u16[t + UDP_CHECKSUM] = partial;
    } else {
      gso = ((kind & V6) !== 0 ? GSO_TCPV6 : GSO_TCPV4) | ((u16[t + TCP_FLAGS] & CWR_LE) !== 0 ? GSO_ECN : 0);
      u16[t + TCP_FLAGS] |= lastFlags[i];
      u16[t + TCP_CHECKSUM] = partial;
    }
    offload[head] = OFFLOAD_NEEDS_CSUM | (gso << OFFLOAD_GSO_SHIFT);
    gsoSize[head] = sizes[i];
    hdrLen[head] = (kind >>> 16) & 0xff;
    csumStart[head] = l4;
    csumOffset[head] = ((kind & UDP) !== 0 ? UDP_CHECKSUM : TCP_CHECKSUM) * 2;
    values[base + SUPER_FRAMES]++;
  }

  function close(): void {
    context.counters.release(block);
  }

  return { process, close };
}
