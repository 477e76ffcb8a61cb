/**
 * Frames made byte by byte, a slow checksum to compare with, and a rig: elements with something in front that
 * puts frames into slots and sinks behind that copy them out, so that a test talks about bytes alone.
 */
import type { ExecutionContext } from 'ava';
import { Counters, readCounters } from '../../engine/counters.js';
import { Batch, type Consumer, Context, type Drops } from '../../engine/graph.js';
import { FrameMemory, NO_FRAME } from '../../engine/memory/frames.js';
import { native } from '../../native-bindings/index.js';

/** Bytes of a MAC in the notation people use. */
export function mac(text: string): Uint8Array {
  return Uint8Array.from(text.split(':'), (byte) => Number.parseInt(byte, 16));
}

/** Station `n`: a locally administered unicast MAC. */
export function station(n: number): Uint8Array {
  return Uint8Array.of(2, 0, n >>> 24, n >>> 16, n >>> 8, n);
}

/** Bytes of an IPv4 or IPv6 address; of IPv6 all groups must be written or `::` stand once. */
export function ip(text: string): Uint8Array {
  if (!text.includes(':')) return Uint8Array.from(text.split('.'), Number);
  const [head, tail] = text.split('::').map((part) => (part ? part.split(':') : []));
  const groups = tail ? [...head, ...Array(8 - head.length - tail.length).fill('0'), ...tail] : head;
  return Uint8Array.from(
    groups.flatMap((group) => [Number.parseInt(group, 16) >>> 8, Number.parseInt(group, 16)]),
  );
}

export function concat(...parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

export function be16(...values: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(2 * values.length);
  values.forEach((value, i) => {
    bytes[2 * i] = value >>> 8;
    bytes[2 * i + 1] = value;
  });
  return bytes;
}

/** Bytes whose content says where they were, so that a shift or a hole shows. */
export function payload(length: number, first = 0): Uint8Array {
  return new Uint8Array(length).map((_, i) => (first + i * 7 + (i >>> 8)) & 0xff);
}

/** RFC 1071 by the book: 16-bit words in wire order, one at a time, the carry added at once. */
export function slowSum(bytes: Uint8Array, initial = 0): number {
  let sum = initial;
  for (let i = 0; i < bytes.length; i += 2) {
    sum += (bytes[i] << 8) | (bytes[i + 1] ?? 0);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return sum;
}

/** The sum an IPv6 or IPv4 pseudo-header and all of a UDP datagram give; 0xffff when its checksum holds. */
export function udpSum(source: Uint8Array, destination: Uint8Array, datagram: Uint8Array): number {
  return slowSum(concat(source, destination, be16(17, datagram.length), datagram));
}

export interface EthernetOptions {
  readonly to?: Uint8Array;
  readonly from?: Uint8Array;
  readonly type?: number;
  /** TCIs of 802.1Q tags, outermost first. */
  readonly tags?: readonly number[];
}

export function ethernet(options: EthernetOptions, content: Uint8Array): Uint8Array {
  const { to = station(2), from = station(1), type = 0x88b5, tags = [] } = options;
  return concat(to, from, ...tags.map((tci) => be16(0x8100, tci)), be16(type), content);
}

export interface Ipv4Options {
  readonly source?: string;
  readonly destination?: string;
  readonly protocol?: number;
  /** The whole TOS byte; the ECN field is its low two bits. */
  readonly tos?: number;
  readonly ttl?: number;
  /** Flags and fragment offset, 16 bits. */
  readonly fragment?: number;
  /** Multiple of four bytes. */
  readonly options?: Uint8Array;
  readonly id?: number;
}

export function ipv4(o: Ipv4Options, content: Uint8Array): Uint8Array {
  const { source = '10.0.0.1', destination = '10.0.0.2', protocol = 17, tos = 0, ttl = 64, fragment = 0 } = o;
  const { options = new Uint8Array(0), id = 0 } = o;
  const words = 5 + options.length / 4;
  const length = words * 4 + content.length;
  const header = concat(
    Uint8Array.of(0x40 | words, tos),
    be16(length, id, fragment),
    Uint8Array.of(ttl, protocol, 0, 0),
    ip(source),
    ip(destination),
    options,
  );
  header.set(be16(~slowSum(header) & 0xffff), 10);
  return concat(header, content);
}

export interface Ipv6Options {
  readonly source?: string;
  readonly destination?: string;
  readonly next?: number;
  /** Traffic class; the ECN field is its low two bits. */
  readonly tos?: number;
  readonly hopLimit?: number;
}

export function ipv6(o: Ipv6Options, content: Uint8Array): Uint8Array {
  const { source = 'fd00::1', destination = 'fd00::2', next = 17, tos = 0, hopLimit = 64 } = o;
  return concat(
    Uint8Array.of(0x60 | (tos >>> 4), (tos & 15) << 4, 0, 0),
    be16(content.length),
    Uint8Array.of(next, hopLimit),
    ip(source),
    ip(destination),
    content,
  );
}

/** A UDP datagram with checksum zero. */
export function udp(source: number, destination: number, content: Uint8Array): Uint8Array {
  return concat(be16(source, destination, content.length + 8, 0), content);
}

/** An Ethernet frame with UDP over IPv4 or IPv6 in it, `flow` in the source port. */
export function udpFrame(flow: number, o: { v6?: boolean; tos?: number; size?: number } = {}): Uint8Array {
  const { v6 = false, tos = 0, size = 20 } = o;
  const datagram = udp(flow, 7, payload(size));
  return v6
    ? ethernet({ type: 0x86dd }, ipv6({ tos }, datagram))
    : ethernet({ type: 0x0800 }, ipv4({ tos }, datagram));
}

export interface VxlanOptions {
  readonly source?: string;
  readonly destination?: string;
  readonly vni?: number;
  /** All eight bytes of the VXLAN header, in place of I flag and VNI. */
  readonly header?: Uint8Array;
  readonly port?: number;
  readonly sourcePort?: number;
  readonly tos?: number;
  /** Compute the UDP checksum; else it is zero. */
  readonly checksum?: boolean;
  readonly ipv4?: Ipv4Options;
  readonly ipv6?: Ipv6Options;
}

/** A VXLAN packet from its outer Ethernet header on; over IPv6 when the source is an IPv6 address. */
export function vxlan(o: VxlanOptions, inner: Uint8Array): Uint8Array {
  const v6 = (o.source ?? '').includes(':');
  const { source = REMOTE_V4, destination = v6 ? LOCAL_V6 : LOCAL_V4, vni = 42, tos = 0 } = o;
  const header = o.header ?? Uint8Array.of(8, 0, 0, 0, vni >>> 16, vni >>> 8, vni, 0);
  const datagram = udp(o.sourcePort ?? 50000, o.port ?? 4789, concat(header, inner));
  if (o.checksum) {
    const sum = ~udpSum(ip(source), ip(destination), datagram) & 0xffff;
    datagram.set(be16(sum === 0 ? 0xffff : sum), 6);
  }
  return v6
    ? ethernet({ type: 0x86dd }, ipv6({ source, destination, tos, ...o.ipv6 }, datagram))
    : ethernet({ type: 0x0800 }, ipv4({ source, destination, tos, fragment: 0x4000, ...o.ipv4 }, datagram));
}

export const LOCAL_V4 = '192.0.2.1';
export const REMOTE_V4 = '192.0.2.2';
export const LOCAL_V6 = '2001:db8::1';
export const REMOTE_V6 = '2001:db8::2';

/** What was known of a frame when it reached a sink. */
export interface Caught {
  readonly bytes: Uint8Array;
  readonly off: number;
  readonly ingress: number;
  readonly domain: number;
  readonly dest: number;
  readonly mark: number;
  readonly offload: number;
  readonly gsoSize: number;
  readonly hdrLen: number;
  readonly csumStart: number;
  readonly csumOffset: number;
}

/** Copies out and frees whatever it is handed. */
export class Sink implements Consumer {
  readonly caught: Caught[] = [];
  /** How often it was called, and with how many frames at most. */
  calls = 0;
  longest = 0;

  constructor(private readonly memory: FrameMemory) {}

  process(batch: Batch): void {
    const m = this.memory;
    this.calls++;
    this.longest = Math.max(this.longest, batch.count);
    for (const frame of batch.frames.subarray(0, batch.count)) {
      const off = m.off[frame];
      this.caught.push({
        bytes: Uint8Array.from(m.u8.subarray(off, off + m.len[frame])),
        off,
        ingress: m.ingress[frame],
        domain: m.domain[frame],
        dest: m.dest[frame],
        mark: m.mark[frame],
        offload: m.offload[frame],
        gsoSize: m.gsoSize[frame],
        hdrLen: m.hdrLen[frame],
        csumStart: m.csumStart[frame],
        csumOffset: m.csumOffset[frame],
      });
      m.free(frame);
    }
  }

  /** The bytes caught since the last call. */
  take(): Uint8Array[] {
    return this.caught.splice(0).map(({ bytes }) => bytes);
  }

  /** The one frame caught since the last call. @throws Error when it was none or several. */
  one(): Caught {
    const caught = this.caught.splice(0);
    if (caught.length !== 1) throw new Error(`the sink caught ${caught.length} frames, not one`);
    return caught[0];
  }
}

export type Metadata = Partial<Omit<Caught, 'bytes' | 'off'>> & {
  /** `off` modulo 8: 0 for ordinary frames, 6 for outer packets. */
  readonly alignment?: number;
};

let shared: FrameMemory | null = null;

export class Rig {
  readonly memory: FrameMemory;
  readonly context: Context;

  /** Without a memory of its own a rig takes one that all rigs of the process share, and must leave it empty. */
  constructor(memory?: FrameMemory, seed = 1) {
    this.memory = memory ?? (shared ??= new FrameMemory({ small: 600, large: 300 }));
    const m = this.memory;
    native.attach(m.u8, m.off, m.len, m.freeLarge);
    this.context = new Context(m, new Counters(), seed);
  }

  sink(): Sink {
    return new Sink(this.memory);
  }

  /** Puts a frame into a slot. */
  put(bytes: Uint8Array, metadata: Metadata = {}): number {
    const m = this.memory;
    const frame = m.alloc(bytes.length);
    if (frame === NO_FRAME) throw new Error('no slot for the test frame');
    m.off[frame] += metadata.alignment ?? 0;
    m.len[frame] = bytes.length;
    m.u8.set(bytes, m.off[frame]);
    m.ingress[frame] = metadata.ingress ?? 0;
    m.domain[frame] = metadata.domain ?? 0;
    m.dest[frame] = metadata.dest ?? 0;
    m.mark[frame] = metadata.mark ?? 0;
    m.offload[frame] = metadata.offload ?? 0;
    m.gsoSize[frame] = metadata.gsoSize ?? 0;
    m.hdrLen[frame] = metadata.hdrLen ?? 0;
    m.csumStart[frame] = metadata.csumStart ?? 0;
    m.csumOffset[frame] = metadata.csumOffset ?? 0;
    return frame;
  }

  /** Gives frames to an element as one run of batches. */
  feed(element: Consumer, ...frames: readonly number[]): void {
    const batch = new Batch(element);
    for (const frame of frames) batch.push(frame);
    batch.flush();
  }

  counter(owner: string, name: string): number {
    const { values } = this.context.counters;
    return readCounters(values, this.context.counters.describe())[owner]?.[name] ?? Number.NaN;
  }

  /** Every slot is free again, once. */
  finish(t: ExecutionContext): void {
    if (this.memory.inUse !== 0) shared = null; // the next test must not suffer for this one
    t.is(this.memory.inUse, 0, 'slots leaked');
    t.notThrows(() => this.memory.audit());
  }
}

/** Drops of an element that are not zero, by reason. */
export function dropped(drops: Drops): Record<string, number> {
  return Object.fromEntries(drops.names.map((name) => [name, drops.count(name)]).filter(([, n]) => n !== 0));
}
