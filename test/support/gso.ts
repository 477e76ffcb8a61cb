/**
 * Frames and their segmentation the slow way, byte by byte and from RFCs, so that no code of the engine decides
 * what is right: a builder of TCP and UDP frames, segments as they must look, a checker of every checksum and
 * length, and a model of generic receive offload on parsed frames.
 */
import { Counters } from '../../engine/counters.js';
import { Batch, Context } from '../../engine/graph.js';
import {
  FrameMemory,
  GSO_ECN,
  GSO_TCPV4,
  GSO_TCPV6,
  GSO_UDP_L4,
  OFFLOAD_GSO_SHIFT,
  OFFLOAD_NEEDS_CSUM,
  OFFLOAD_OUTER_SHIFT,
} from '../../engine/memory/frames.js';
import { native } from '../../native-bindings/index.js';

export const FIN = 1;
export const SYN = 2;
export const RST = 4;
export const PSH = 8;
export const ACK = 16;
export const URG = 32;
export const ECE = 64;
export const CWR = 128;

/** A TCP or UDP frame in terms of its fields. */
export interface Spec {
  v6: boolean;
  udp: boolean;
  macs: Uint8Array;
  /** VLAN tags: TPID and TCI each. */
  tags: readonly [number, number][];
  source: Uint8Array;
  destination: Uint8Array;
  ports: [number, number];
  /** Type of service or traffic class. */
  tos: number;
  ttl: number;
  id: number;
  df: boolean;
  flowLabel: number;
  /** IPv4 options or IPv6 destination options, a multiple of 4 (IPv4) or 8 (IPv6) bytes. */
  ipOptions: Uint8Array;
  sequence: number;
  acknowledgment: number;
  flags: number;
  window: number;
  urgent: number;
  /** A multiple of 4 bytes. */
  tcpOptions: Uint8Array;
  payload: Uint8Array;
}

export const NOTHING = new Uint8Array(0);

export function spec(change: Partial<Spec> = {}): Spec {
  const v6 = change.v6 ?? false;
  const address = (last: number): Uint8Array =>
    v6 ? Uint8Array.of(0xfd, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last) : Uint8Array.of(10, 0, 9, last);
  return {
    v6,
    udp: false,
    macs: Uint8Array.of(2, 0x42, 10, 0, 9, 2, 2, 0x42, 10, 0, 9, 1),
    tags: [],
    source: address(1),
    destination: address(2),
    ports: [40000, 5201],
    tos: 0,
    ttl: 64,
    id: 0x1234,
    df: true,
    flowLabel: 0x12345,
    ipOptions: NOTHING,
    sequence: 0xfffff000,
    acknowledgment: 77,
    flags: ACK,
    window: 501,
    urgent: 0,
    tcpOptions: NOTHING,
    payload: NOTHING,
    ...change,
  };
}

/** One's complement sum of big-endian words (RFC 1071), folded. */
export function sum(bytes: Uint8Array, initial = 0): number {
  let total = initial;
  for (let i = 0; i < bytes.length; i += 2) total += bytes[i] * 256 + (bytes[i + 1] ?? 0);
  while (total > 0xffff) total = (total % 0x10000) + Math.floor(total / 0x10000);
  return total;
}

const be16 = (value: number): number[] => [(value >>> 8) & 255, value & 255];
const be32 = (value: number): number[] => [...be16(value >>> 16), ...be16(value & 0xffff)];

/** Sum of the pseudo-header of `length` bytes of transport header and payload. */
function pseudoSum(of: Spec, length: number): number {
  return sum(Uint8Array.of(...of.source, ...of.destination, 0, of.udp ? 17 : 6, ...be32(length)));
}

function transport(of: Spec, partial: boolean): Uint8Array {
  const { udp, ports, payload, tcpOptions } = of;
  const offset = (20 + tcpOptions.length) / 4;
  const head = udp
    ? [...be16(ports[0]), ...be16(ports[1]), ...be16(8 + payload.length), 0, 0]
    : [
        ...be16(ports[0]),
        ...be16(ports[1]),
        ...be32(of.sequence),
        ...be32(of.acknowledgment),
        offset << 4,
        of.flags,
        ...be16(of.window),
        0,
        0,
        ...be16(of.urgent),
        ...tcpOptions,
      ];
  const bytes = new Uint8Array(head.length + payload.length);
  bytes.set(head);
  bytes.set(payload, head.length);
  const pseudo = pseudoSum(of, bytes.length);
  let checksum = partial ? pseudo : 0xffff - sum(bytes, pseudo);
  if (udp && checksum === 0) checksum = 0xffff;
  bytes.set(be16(checksum), udp ? 6 : 16);
  return bytes;
}

/** The frame, with its checksums finished or, when `partial`, the pseudo-header's sum in the transport checksum. */
export function build(of: Spec, partial = false): Uint8Array {
  const body = transport(of, partial);
  const { v6, ipOptions } = of;
  const protocol = of.udp ? 17 : 6;
  const ethernet = [...of.macs, ...of.tags.flatMap(([tpid, tci]) => [...be16(tpid), ...be16(tci)])];
  let ip: number[];
  if (v6) {
    const first = ((6 << 28) | (of.tos << 20) | of.flowLabel) >>> 0;
    const length = ipOptions.length + body.length;
    const next = ipOptions.length > 0 ? 60 : protocol;
    ip = [...be32(first), ...be16(length), next, of.ttl, ...of.source, ...of.destination, ...ipOptions];
    if (ipOptions.length > 0) {
      ip[40] = protocol;
      ip[41] = ipOptions.length / 8 - 1;
    }
  } else {
    const header = 20 + ipOptions.length;
    ip = [0x40 | (header / 4), of.tos, ...be16(header + body.length), ...be16(of.id), of.df ? 0x40 : 0, 0];
    ip.push(of.ttl, protocol, 0, 0, ...of.source, ...of.destination, ...ipOptions);
    ip.splice(10, 2, ...be16(0xffff - sum(Uint8Array.from(ip))));
  }
  const head = [...ethernet, ...(v6 ? [0x86, 0xdd] : [0x08, 0x00]), ...ip];
  const frame = new Uint8Array(head.length + body.length);
  frame.set(head);
  frame.set(body, head.length);
  return frame;
}

export const l4Offset = (of: Spec): number =>
  14 + 4 * of.tags.length + (of.v6 ? 40 : 20) + of.ipOptions.length;
export const headerLength = (of: Spec): number => l4Offset(of) + (of.udp ? 8 : 20 + of.tcpOptions.length);

/** The segments of a super-frame (virtio 1.2, 5.1.6.2; RFC 3168, 6.1.2), as specs. */
export function cutSpec(of: Spec, size: number): Spec[] {
  const count = Math.max(1, Math.ceil(of.payload.length / size));
  return Array.from({ length: count }, (_, i) => {
    let { flags } = of;
    if (i < count - 1) flags &= ~(FIN | PSH);
    if (i > 0) flags &= ~CWR;
    return {
      ...of,
      id: (of.id + i) & 0xffff,
      sequence: (of.sequence + i * size) >>> 0,
      flags,
      payload: of.payload.slice(i * size, (i + 1) * size),
    };
  });
}

export interface Outer {
  v6: boolean;
  checksum: boolean;
}

/** Outer Ethernet, IP, UDP and VXLAN (VNI 42) in front of a frame; the UDP checksum 0 over IPv4. */
export function encapsulate(inner: Uint8Array, outer: Outer): Uint8Array {
  const shell = spec({ v6: outer.v6, udp: true, ports: [51234, 4789], id: 0, tos: 2, flowLabel: 0 });
  shell.payload = Uint8Array.of(8, 0, 0, 0, 0, 0, 42, 0, ...inner);
  const bytes = build(shell);
  if (!outer.checksum) bytes.fill(0, l4Offset(shell) + 6, l4Offset(shell) + 8);
  return bytes;
}

/** Finds what is wrong with a finished frame: lengths and checksums, of inner frames in VXLAN too. '' is sound. */
export function faults(frame: Uint8Array): string {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
  let at = 12;
  while ([0x8100, 0x88a8].includes(view.getUint16(at))) at += 4;
  const type = view.getUint16(at);
  const ip = at + 2;
  const v6 = type === 0x86dd;
  let transportAt = ip + (v6 ? 40 : (frame[ip] & 15) * 4);
  let protocol = frame[ip + (v6 ? 6 : 9)];
  const total = v6 ? 40 + view.getUint16(ip + 4) : view.getUint16(ip + 2);
  if (ip + total !== frame.length) return `IP length ${total}, frame ${frame.length - ip}`;
  if (!v6 && sum(frame.subarray(ip, transportAt)) !== 0xffff) return 'IPv4 checksum';
  while (v6 && (protocol === 60 || protocol === 0)) {
    protocol = frame[transportAt];
    transportAt += (frame[transportAt + 1] + 1) * 8;
  }
  const body = frame.subarray(transportAt);
  const addresses = frame.subarray(ip + (v6 ? 8 : 12), ip + (v6 ? 40 : 20));
  const pseudo = sum(Uint8Array.of(...addresses, 0, protocol, ...be32(body.length)));
  const none = protocol === 17 && view.getUint16(transportAt + 6) === 0;
  if (!none && sum(body, pseudo) !== 0xffff) return `checksum of protocol ${protocol}`;
  if (protocol !== 17) return '';
  if (view.getUint16(transportAt + 4) !== body.length) return 'UDP length';
  return view.getUint16(transportAt + 2) === 4789 ? faults(frame.subarray(transportAt + 16)) : '';
}

/** A frame memory with an element's input and what came out of it. */
export class Rig {
  readonly memory: FrameMemory;
  readonly context: Context;
  readonly out: Batch;
  /** What left, copied, in order. */
  received: Received[] = [];

  constructor(small = 512, large = 64) {
    this.memory = new FrameMemory({ small, large });
    this.context = new Context(this.memory, new Counters(), 1);
    this.out = new Batch({ process: (batch) => this.collect(batch) });
    this.attach();
  }

  /** Native calls of this thread work on one memory at a time. */
  attach(): void {
    const { u8, off, len, freeLarge } = this.memory;
    native.attach(u8, off, len, freeLarge);
  }

  private collect(batch: Batch): void {
    const m = this.memory;
    for (let k = 0; k < batch.count; k++) {
      const f = batch.frames[k];
      this.received.push({
        bytes: m.u8.slice(m.off[f], m.off[f] + m.len[f]),
        offset: m.off[f],
        offload: m.offload[f],
        gsoSize: m.gsoSize[f],
        hdrLen: m.hdrLen[f],
        csumStart: m.csumStart[f],
        csumOffset: m.csumOffset[f],
        ingress: m.ingress[f],
        domain: m.domain[f],
        dest: m.dest[f],
        mark: m.mark[f],
      });
      m.free(f);
    }
  }

  /** Puts bytes into a slot, `shift` bytes behind its usual beginning; large unless told otherwise. */
  frame(bytes: Uint8Array, { shift = 0, small = false } = {}): number {
    const m = this.memory;
    const f = small ? m.allocSmall() : m.allocLarge();
    if (f < 0) throw new Error('the rig has no slot left');
    m.off[f] += shift;
    m.len[f] = bytes.length;
    m.u8.set(bytes, m.off[f]);
    m.ingress[f] = 3;
    m.domain[f] = 5;
    m.dest[f] = 0x10007;
    m.mark[f] = 9;
    return f;
  }

  /** A super-frame as a container's TAP gives it, behind outer headers when asked for. */
  superFrame(of: Spec, size: number, outer: Outer | null = null): number {
    const inner = build(of, true);
    const bytes = outer === null ? inner : encapsulate(inner, { ...outer, checksum: false });
    const front = bytes.length - inner.length;
    const m = this.memory;
    const f = this.frame(bytes, { shift: front % 8 === 0 ? 0 : 8 - (front % 8) });
    const gso = of.udp ? GSO_UDP_L4 : (of.v6 ? GSO_TCPV6 : GSO_TCPV4) | (of.flags & CWR ? GSO_ECN : 0);
    m.offload[f] = OFFLOAD_NEEDS_CSUM | (gso << OFFLOAD_GSO_SHIFT) | (front << OFFLOAD_OUTER_SHIFT);
    m.gsoSize[f] = size;
    m.hdrLen[f] = front + headerLength(of);
    m.csumStart[f] = front + l4Offset(of);
    m.csumOffset[f] = of.udp ? 6 : 16;
    return f;
  }

  /** Runs frames through an element and returns what left. */
  run(element: { process(batch: Batch): void }, ids: readonly number[]): Received[] {
    this.received = [];
    const input = new Batch(element);
    for (const id of ids) input.push(id);
    input.flush();
    this.out.flush();
    return this.received;
  }
}

export interface Received {
  bytes: Uint8Array;
  offset: number;
  offload: number;
  gsoSize: number;
  hdrLen: number;
  csumStart: number;
  csumOffset: number;
  ingress: number;
  domain: number;
  dest: number;
  mark: number;
}

/** `length` bytes that repeat only after a prime number of them. */
export function payload(length: number, seed = 1): Uint8Array {
  return new Uint8Array(length).map((_, i) => (((i + seed) % 251) * 7 + (i >>> 8) * 13) & 255);
}
