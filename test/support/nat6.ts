/** Packets of IPv6 whose every checksum is right, made and read without the engine. */
import { type NatOptions, NatTables } from '../../engine/elements/nat/tables.js';
import type { Nat } from '../../engine/elements/nat.js';
import { createNatV6 } from '../../engine/elements/nat-v6.js';
import type { FlowMemory } from '../../engine/flow-memory.js';
import { Batch, type Context } from '../../engine/graph.js';
import { Addresses6 } from '../../engine/tables/addresses6.js';
import { Flows } from '../../engine/tables/flows.js';
import {
  be16,
  type Caught,
  concat,
  dropped,
  ethernet,
  ip,
  ipv6,
  type Metadata,
  Rig,
  type Sink,
  slowSum,
  station,
} from './frames.js';
import { numbers } from './nat.js';

export const ICMPV6 = 58;

export interface PacketV6 {
  readonly protocol?: number;
  readonly source?: string;
  readonly destination?: string;
  /** Ports; of ICMPv6 the identifier is `sourcePort` and the type `icmpType`. */
  readonly sourcePort?: number;
  readonly destinationPort?: number;
  readonly flags?: number;
  readonly icmpType?: number;
  readonly content?: Uint8Array;
  readonly hopLimit?: number;
  /** Extension headers, whole, and the type of the first; the last one must lead to `protocol`. */
  readonly extensions?: Uint8Array;
  readonly first?: number;
  readonly to?: Uint8Array;
  readonly from?: Uint8Array;
}

export const FROM_V6 = 'fd00:9::1';
export const TO_V6 = '2001:db8::2';

const WORD_OF_CHECKSUM: Readonly<Record<number, number>> = { 6: 16, 17: 6, [ICMPV6]: 2 };

function pseudo(source: Uint8Array, destination: Uint8Array, protocol: number, length: number): number {
  return slowSum(concat(source, destination, be16(protocol, length)));
}

/** The transport header and content of a packet, its checksum right. */
export function transportV6(p: PacketV6): Uint8Array {
  const { protocol = 17, source = FROM_V6, destination = TO_V6 } = p;
  const { sourcePort = 4000, destinationPort = 53, flags = 0x10, icmpType = 128 } = p;
  const { content = Uint8Array.of(1, 2, 3) } = p;
  const ports = be16(sourcePort, destinationPort);
  const header =
    protocol === ICMPV6
      ? concat(Uint8Array.of(icmpType, 0, 0, 0), be16(sourcePort, 1))
      : protocol === 6
        ? concat(ports, new Uint8Array(8), Uint8Array.of(0x50, flags), be16(1000, 0, 0))
        : concat(ports, be16(content.length + 8, 0));
  const whole = concat(header, content);
  const field = WORD_OF_CHECKSUM[protocol];
  if (field !== undefined) {
    const sum = ~slowSum(whole, pseudo(ip(source), ip(destination), protocol, whole.length)) & 0xffff;
    whole.set(be16(sum === 0 && protocol === 17 ? 0xffff : sum), field);
  }
  return whole;
}

/** A whole frame. */
export function packetV6(p: PacketV6 = {}): Uint8Array {
  return framedV6(p, transportV6(p));
}

/** A frame of the packet's addresses with other content behind its headers. */
export function framedV6(p: PacketV6, content: Uint8Array): Uint8Array {
  const { protocol = 17, source = FROM_V6, destination = TO_V6, hopLimit = 64 } = p;
  const { extensions = new Uint8Array(0), first = protocol, to = station(2), from = station(1) } = p;
  return ethernet(
    { to, from, type: 0x86dd },
    ipv6({ source, destination, next: first, hopLimit }, concat(extensions, content)),
  );
}

/** Frames that a packet of so many bytes is cut into, in order. */
export function fragmentsOfV6(p: PacketV6, size: number, id: number): Uint8Array[] {
  const { protocol = 17 } = p;
  const whole = transportV6(p);
  const count = Math.ceil(whole.length / size);
  return Array.from({ length: count }, (_, i) => {
    const field = (i * size) | (i < count - 1 ? 1 : 0);
    const header = concat(Uint8Array.of(protocol, 0), be16(field, 0, id));
    return framedV6({ ...p, extensions: header, first: 44 }, whole.slice(i * size, (i + 1) * size));
  });
}

/** An ICMPv6 error about the packet in `frame`, as many bytes of it as `carried` behind its IP header. */
export function icmpv6Error(
  frame: Uint8Array,
  o: { from?: string; to: string; type?: number; code?: number; argument?: number; carried?: number },
): Uint8Array {
  const { from = '2001:db8::fe', to, type = 1, code = 3, argument = 0, carried = 1000 } = o;
  const message = concat(
    Uint8Array.of(type, code, 0, 0),
    be16(0, argument),
    frame.slice(14, 14 + 40 + carried),
  );
  message.set(be16(~slowSum(message, pseudo(ip(from), ip(to), ICMPV6, message.length)) & 0xffff), 2);
  return framedV6({ source: from, destination: to, protocol: ICMPV6 }, message);
}

const at16 = (bytes: Uint8Array, at: number): number => (bytes[at]! << 8) | bytes[at + 1]!;

/** An address as eight groups without leading zeros, the first run of zeros left out. */
export function colons(bytes: Uint8Array): string {
  const groups = Array.from({ length: 8 }, (_, i) => at16(bytes, 2 * i).toString(16)).join(':');
  return groups.replace(/(^|:)0(:0)+(:|$)/, '::');
}

export const sourceV6 = (frame: Uint8Array): string => colons(frame.slice(22, 38));
export const destinationV6 = (frame: Uint8Array): string => colons(frame.slice(38, 54));

/** Whether the transport checksum of a frame without extension headers is right. */
export function soundV6(frame: Uint8Array): boolean {
  const protocol = frame[20]!;
  const whole = frame.slice(54, 54 + at16(frame, 18));
  return slowSum(whole, pseudo(frame.slice(22, 38), frame.slice(38, 54), protocol, whole.length)) === 0xffff;
}

/** `[source]:port > [destination]:port` of a frame without extension headers; of echo the identifier. */
export function endsV6(frame: Uint8Array): string {
  const ends = `${sourceV6(frame)} > ${destinationV6(frame)}`;
  if (frame[20] === ICMPV6) return `${ends} id ${at16(frame, 58)}`;
  return `[${sourceV6(frame)}]:${at16(frame, 54)} > [${destinationV6(frame)}]:${at16(frame, 56)}`;
}

export const EXTERNAL_V6 = 'fd00:60::10';

/** A NAT of IPv6 with sinks on both sides. */
export class NatRigV6 {
  readonly rig = new Rig();
  readonly addresses: Addresses6;
  readonly flows: Flows;
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
      readonly maxAddresses?: number;
      readonly seconds?: number;
      readonly owner?: number;
      /** In place of tables of `maxFlows` and `maxAddresses`. */
      readonly memory?: (context: Context) => FlowMemory;
    } = {},
  ) {
    const { maxFlows = 1000, maxAddresses = 2 * maxFlows + 8, seconds = 1000, owner = 0, ...more } = options;
    const { memory, ...rest } = more;
    const { context } = this.rig;
    context.setTime(seconds * 1000);
    const given6 = memory?.(context);
    this.addresses = given6?.addresses ?? new Addresses6(maxAddresses, 1);
    this.flows = given6?.flows ?? new Flows(maxFlows, 1, seconds);
    const given: NatOptions = {
      external: ip(EXTERNAL_V6),
      ...{ firstPort: 32768, lastPort: 60999, mapping: 'endpoint-independent', random: numbers() },
      ...rest,
    };
    this.tables = new NatTables(this.flows, owner, given, this.addresses);
    this.outside = this.rig.sink();
    this.inside = this.rig.sink();
    const [outside, inside] = [new Batch(this.outside), new Batch(this.inside)];
    const hairpin: Batch = new Batch({ process: (batch) => this.nat.fromOutside.process(batch) });
    this.batches = [hairpin, outside, inside];
    this.nat = createNatV6(context, this.tables, this.addresses, {
      ...{ outside, inside, hairpin },
      refused: () => {
        this.shortages++;
      },
    });
  }

  /** Gives frames to the NAT as one batch. */
  feed(inward: boolean, frames: readonly Uint8Array[], metadata: Metadata = {}) {
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
    const before = dropped(this.nat.drops);
    this.feed(inward, [frame], metadata);
    const after = Object.entries(dropped(this.nat.drops));
    return after.find(([name, count]) => count !== (before[name] ?? 0))?.[0] ?? 'passed';
  }

  /** Lets seconds pass, with everything done that they bring. */
  pass(seconds: number): void {
    const { context } = this.rig;
    context.setTime(context.now + seconds * 1000);
    for (let i = 0; i < 100; i++) {
      this.flows.expire(context.seconds, 256);
      this.nat.age();
    }
  }
}

function only(caught: readonly Caught[]): Uint8Array {
  if (caught.length !== 1) throw new Error(`${caught.length} frames left, not one`);
  return caught[0]!.bytes;
}

/** The answer to a packet: addresses and ports change places, which leaves every sum as it is; an echo becomes a reply. */
export function answerToV6(frame: Uint8Array, flags?: number): Uint8Array {
  const protocol = frame[20]!;
  const o: PacketV6 = {
    ...{ protocol, source: destinationV6(frame), destination: sourceV6(frame) },
    ...(protocol === ICMPV6
      ? { icmpType: 129, sourcePort: at16(frame, 58) }
      : { sourcePort: at16(frame, 56), destinationPort: at16(frame, 54) }),
    ...(flags === undefined ? {} : { flags }),
  };
  return packetV6(o);
}
