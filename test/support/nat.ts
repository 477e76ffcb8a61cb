/** A NAT with sinks on both sides, and packets whose every checksum is right, made and read without the engine. */

import type { ExecutionContext } from 'ava';
import { type NatOptions, NatTables, type Published } from '../../engine/elements/nat/tables.js';
import { createNat, type Nat } from '../../engine/elements/nat.js';
import { Batch, type Context } from '../../engine/graph.js';
import { FLOW_SHIFT, Flows, PACKETS_OUT, STATE } from '../../engine/tables/flows.js';
import {
  be16,
  type Caught,
  concat,
  dropped,
  ethernet,
  ip,
  ipv4,
  type Metadata,
  Rig,
  type Sink,
  slowSum,
} from './frames.js';

export const EXTERNAL = '203.0.113.1';
export const INSIDE = '10.0.0.1';
export const REMOTE = '198.51.100.7';

export const ICMP = 1;
export const TCP = 6;
export const UDP = 17;
export const SCTP = 132;

export const FIN = 0x01;
export const SYN = 0x02;
export const RST = 0x04;
export const ACK = 0x10;

export interface Packet {
  readonly protocol?: number;
  readonly source?: string;
  readonly destination?: string;
  /** Ports; of ICMP the identifier is `sourcePort` and the type `icmpType`. */
  readonly sourcePort?: number;
  readonly destinationPort?: number;
  readonly flags?: number;
  readonly icmpType?: number;
  readonly content?: Uint8Array;
  readonly options?: Uint8Array;
  readonly id?: number;
  readonly fragment?: number;
  /** UDP without a checksum. */
  readonly noChecksum?: boolean;
}

const WORD_OF_CHECKSUM: Readonly<Record<number, number>> = { [TCP]: 16, [UDP]: 6, 33: 6, 136: 6 };

/** The transport header and content of a packet, its checksum right. */
export function transport(p: Packet): Uint8Array {
  const { protocol = UDP, sourcePort = 4000, destinationPort = 53, flags = ACK, icmpType = 8 } = p;
  const { content = Uint8Array.of(1, 2, 3) } = p;
  const ports = be16(sourcePort, destinationPort);
  if (protocol === ICMP) {
    const message = concat(Uint8Array.of(icmpType, 0, 0, 0), be16(sourcePort, 1), content);
    message.set(be16(~slowSum(message) & 0xffff), 2);
    return message;
  }
  const header =
    protocol === TCP
      ? concat(ports, new Uint8Array(8), Uint8Array.of(0x50, flags), be16(1000, 0, 0))
      : protocol === UDP
        ? concat(ports, be16(content.length + 8, 0))
        : concat(ports, new Uint8Array(8));
  const whole = concat(header, content);
  const field = WORD_OF_CHECKSUM[protocol];
  if (field !== undefined && !(protocol === UDP && p.noChecksum)) {
    const sum = ~slowSum(whole, pseudo(p, whole.length)) & 0xffff;
    whole.set(be16(sum === 0 && protocol !== TCP ? 0xffff : sum), field);
  }
  if (protocol === SCTP) whole.set(crc32c(whole), SCTP_CHECKSUM);
  return whole;
}

const SCTP_CHECKSUM = 8;

/** CRC32c of an SCTP packet as its bytes stand in it, the field taken to be zero (RFC 9260, 6.8 and appendix A). */
function crc32c(whole: Uint8Array): Uint8Array {
  let crc = 0xffffffff;
  whole.forEach((byte, at) => {
    crc ^= at >= SCTP_CHECKSUM && at < SCTP_CHECKSUM + 4 ? 0 : byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0);
  });
  return new Uint8Array(Uint32Array.of(~crc).buffer);
}

function pseudo({ protocol = UDP, source = INSIDE, destination = REMOTE }: Packet, length: number): number {
  return slowSum(concat(ip(source), ip(destination), be16(protocol, length)));
}

/** A whole frame. */
export function packet(p: Packet = {}): Uint8Array {
  return framed(p, transport(p));
}

/** A frame of the packet's addresses with other content behind the IP header. */
export function framed(p: Packet, content: Uint8Array): Uint8Array {
  const { source = INSIDE, destination = REMOTE, protocol = UDP, options, id = 7, fragment = 0 } = p;
  return ethernet(
    { type: 0x0800 },
    ipv4({ source, destination, protocol, id, fragment, ...(options && { options }) }, content),
  );
}

/** The fragments of a packet, each with so many bytes as `sizes` says, multiples of eight, and the rest. */
export function fragmentsOf(p: Packet, sizes: readonly number[]): Uint8Array[] {
  const whole = transport(p);
  const frames: Uint8Array[] = [];
  let at = 0;
  for (const size of [...sizes, whole.length]) {
    const part = whole.slice(at, at + size);
    frames.push(framed({ ...p, fragment: (at >>> 3) | (at + size < whole.length ? 0x2000 : 0) }, part));
    at += size;
    if (at >= whole.length) break;
  }
  return frames;
}

/** An ICMP error about the packet in `frame`, as many bytes of it as `carried` behind its IP header. */
export function icmpError(
  frame: Uint8Array,
  o: { from?: string; to: string; type?: number; code?: number; carried?: number },
): Uint8Array {
  const { from = '192.0.2.254', to, type = 3, code = 1, carried = 1000 } = o;
  const header = (frame[14]! & 15) * 4;
  const message = concat(
    Uint8Array.of(type, code, 0, 0, 0, 0, 5, 220),
    frame.slice(14, 14 + header + carried),
  );
  message.set(be16(~slowSum(message) & 0xffff), 2);
  return framed({ source: from, destination: to, protocol: ICMP }, message);
}

export const dotted = (bytes: Uint8Array): string => bytes.join('.');
const at16 = (bytes: Uint8Array, at: number): number => (bytes[at]! << 8) | bytes[at + 1]!;

/** `source:port > destination:port` of a frame; of ICMP queries the identifier in place of the inside's port. */
export function ends(frame: Uint8Array): string {
  const t = 14 + (frame[14]! & 15) * 4;
  const [source, destination] = [dotted(frame.slice(26, 30)), dotted(frame.slice(30, 34))];
  if (frame[23] === ICMP) return `${source} > ${destination} id ${at16(frame, t + 4)}`;
  return `${source}:${at16(frame, t)} > ${destination}:${at16(frame, t + 2)}`;
}

export const sourcePort = (frame: Uint8Array): number => at16(frame, 14 + (frame[14]! & 15) * 4);
export const identifier = (frame: Uint8Array): number => at16(frame, 18 + (frame[14]! & 15) * 4);

/** Which checksums of a frame are wrong, by the book; no word of the engine's is used. */
export function badChecksums(frame: Uint8Array): string[] {
  const bad: string[] = [];
  const header = (frame[14]! & 15) * 4;
  if (slowSum(frame.slice(14, 14 + header)) !== 0xffff) bad.push('ip');
  const protocol = frame[23]!;
  const whole = frame.slice(14 + header, 14 + at16(frame, 16));
  if ((at16(frame, 20) & 0x3fff) !== 0) return bad;
  if (protocol === ICMP && slowSum(whole) !== 0xffff) bad.push('icmp');
  if (protocol === SCTP && crc32c(whole).join() !== whole.slice(SCTP_CHECKSUM, SCTP_CHECKSUM + 4).join())
    bad.push('sctp');
  const field = WORD_OF_CHECKSUM[protocol];
  if (field === undefined || (protocol === UDP && at16(whole, 6) === 0)) return bad;
  const [source, destination] = [dotted(frame.slice(26, 30)), dotted(frame.slice(30, 34))];
  if (slowSum(whole, pseudo({ protocol, source, destination }, whole.length)) !== 0xffff)
    bad.push('transport');
  return bad;
}

/** The answer to a packet: addresses and ports change places, which leaves every sum but a CRC as it is; an echo becomes a reply. */
export function answerTo(frame: Uint8Array, flags?: number): Uint8Array {
  const whole = frame.slice();
  const header = (frame[14]! & 15) * 4;
  const t = 14 + header;
  whole.set(frame.slice(30, 34), 26);
  whole.set(frame.slice(26, 30), 30);
  if (frame[23] === ICMP) {
    whole[t]! ^= frame[t]! === 8 || frame[t]! === 0 ? 8 : 3;
    whole.set([0, 0], t + 2);
    whole.set(be16(~slowSum(whole.slice(t, 14 + at16(frame, 16))) & 0xffff), t + 2);
  } else {
    whole.set(frame.slice(t + 2, t + 4), t);
    whole.set(frame.slice(t, t + 2), t + 2);
    if (frame[23] === SCTP) whole.set(crc32c(whole.slice(t, 14 + at16(frame, 16))), t + SCTP_CHECKSUM);
  }
  if (flags !== undefined) {
    const before = at16(whole, t + 12);
    whole[t + 13] = flags;
    const sum = slowSum(be16(~at16(whole, t + 16) & 0xffff, ~before & 0xffff, at16(whole, t + 12)));
    whole.set(be16(~sum & 0xffff), t + 16);
  }
  return whole;
}

/** Repeats exactly. */
export function numbers(seed = 1): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** What a packet came to: frames that left on either side, in order. */
export interface Outcome {
  readonly outside: readonly Caught[];
  readonly inside: readonly Caught[];
}

export class NatRig {
  readonly rig: Rig;
  readonly tables: NatTables;
  readonly nat: Nat;
  /** How often a packet from inside was told of that found no port or no flow left. */
  shortages = 0;
  private readonly batches: readonly Batch[];
  private readonly outside: Sink;
  private readonly inside: Sink;

  constructor(
    options: Partial<NatOptions> & {
      readonly maxFlows?: number;
      readonly seed?: number;
      /** In place of a table of `maxFlows`. */
      readonly flows?: (context: Context) => Flows;
      readonly owner?: number;
    } = {},
    seconds = 1000,
  ) {
    this.rig = new Rig();
    this.rig.context.setTime(seconds * 1000);
    const { maxFlows = 1000, seed = 1, owner = 0, flows, ...rest } = options;
    const table = flows?.(this.rig.context) ?? new Flows(maxFlows, seed, seconds);
    this.tables = new NatTables(table, owner, {
      external: ip(EXTERNAL),
      firstPort: 32768,
      lastPort: 60999,
      mapping: 'endpoint-independent',
      random: numbers(),
      ...rest,
    });
    this.outside = this.rig.sink();
    this.inside = this.rig.sink();
    const outside = new Batch(this.outside);
    const inside = new Batch(this.inside);
    const hairpin: Batch = new Batch({ process: (batch) => this.nat.fromOutside.process(batch) });
    this.batches = [hairpin, outside, inside];
    this.nat = createNat(this.rig.context, this.tables, {
      ...{ outside, inside, hairpin },
      refused: () => {
        this.shortages++;
      },
    });
  }

  /** Gives frames to the NAT as one batch. */
  feed(inward: boolean, frames: readonly Uint8Array[], metadata: Metadata = {}): Outcome {
    const ids = frames.map((bytes) => this.rig.put(bytes, metadata));
    this.rig.feed(inward ? this.nat.fromOutside : this.nat.fromInside, ...ids);
    for (const batch of this.batches) batch.flush();
    return { outside: this.outside.caught.splice(0), inside: this.inside.caught.splice(0) };
  }

  /** A frame from inside that must leave outside. */
  out(frame: Uint8Array, metadata?: Metadata): Uint8Array {
    return only(this.feed(false, [frame], metadata).outside);
  }

  /** A frame from outside that must arrive inside. */
  in(frame: Uint8Array, metadata?: Metadata): Uint8Array {
    return only(this.feed(true, [frame], metadata).inside);
  }

  /** Why a frame is dropped; `passed` when it is not. */
  refused(inward: boolean, frame: Uint8Array, metadata?: Metadata): string {
    const before = this.drops();
    this.feed(inward, [frame], metadata);
    const [reason] =
      Object.entries(this.drops()).find(([name, count]) => count !== (before[name] ?? 0)) ?? [];
    return reason ?? 'passed';
  }

  drops(): Record<string, number> {
    return dropped(this.nat.drops);
  }

  /** Lets seconds pass, with everything done that they bring. */
  pass(seconds: number): void {
    const { context } = this.rig;
    context.setTime(context.now + seconds * 1000);
    for (let i = 0; i < 100; i++) this.nat.age();
  }

  /** Nothing waits, and every slot is free again. */
  finish(t: ExecutionContext): void {
    this.nat.flush();
    this.rig.finish(t);
  }

  get flows(): number {
    return this.tables.flows.size;
  }

  /** States of all flows, in the order of their numbers. */
  states(): number[] {
    return this.word(STATE);
  }

  packetsOut(): number[] {
    return this.word(PACKETS_OUT);
  }

  private word(which: number): number[] {
    const found: number[] = [];
    const { flows } = this.tables;
    flows.forEach((flow) => {
      found.push(flows.words[(flow << FLOW_SHIFT) + which]!);
    });
    return found;
  }

  publish(
    port: number,
    target: number,
    o: { address?: string; domain?: number; protocol?: number } = {},
  ): Published {
    const { address = INSIDE, domain = 0, protocol = TCP } = o;
    const published = { protocol, port, domain, address: ip(address), target };
    if (!this.tables.publish(published)) throw new Error(`port ${port} is taken`);
    return published;
  }
}

function only(caught: readonly Caught[]): Uint8Array {
  if (caught.length !== 1) throw new Error(`${caught.length} frames left, not one`);
  return caught[0]!.bytes;
}
