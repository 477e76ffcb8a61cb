/** Capture files built by hand, byte by byte, so that no code of ours decides what is right. */
import type { Capture } from '../../engine/ports/capture/capture.js';

/** Grows a byte string in one byte order. */
class Bytes {
  private readonly out: number[] = [];

  constructor(private readonly little: boolean) {}

  number(value: number | bigint, size: number): this {
    let rest = BigInt.asUintN(size * 8, BigInt(value));
    const bytes: number[] = [];
    for (let i = 0; i < size; i++, rest >>= 8n) bytes.push(Number(rest & 0xffn));
    this.out.push(...(this.little ? bytes : bytes.reverse()));
    return this;
  }

  u16(value: number): this {
    return this.number(value, 2);
  }

  u32(value: number | bigint): this {
    return this.number(value, 4);
  }

  raw(bytes: Iterable<number>): this {
    for (const byte of bytes) this.out.push(byte);
    return this;
  }

  pad(): this {
    while (this.out.length % 4 !== 0) this.out.push(0);
    return this;
  }

  get length(): number {
    return this.out.length;
  }

  done(): Uint8Array {
    return Uint8Array.from(this.out);
  }
}

export interface FixturePacket {
  readonly data: Uint8Array;
  readonly seconds?: number;
  /** In the file's unit. */
  readonly fraction?: number;
  readonly original?: number;
  /** What the header says instead of the length of `data`. */
  readonly captured?: number;
}

export interface PcapOptions {
  readonly little?: boolean;
  readonly magic?: number;
  readonly version?: readonly [number, number];
  readonly snaplen?: number;
  /** The whole link-type word. */
  readonly link?: number;
  /** Bytes between each record header and its packet, as the modified format has 8. */
  readonly extra?: number;
}

export function pcap(packets: readonly FixturePacket[], options: PcapOptions = {}): Uint8Array {
  const {
    little = true,
    magic = 0xa1b2c3d4,
    version = [2, 4],
    snaplen = 65535,
    link = 1,
    extra = 0,
  } = options;
  const bytes = new Bytes(little)
    .u32(magic)
    .u16(version[0])
    .u16(version[1])
    .u32(0)
    .u32(0)
    .u32(snaplen)
    .u32(link);
  for (const { data, seconds = 0, fraction = 0, original, captured } of packets) {
    bytes
      .u32(seconds)
      .u32(fraction)
      .u32(captured ?? data.length)
      .u32(original ?? data.length);
    bytes.raw(new Uint8Array(extra)).raw(data);
  }
  return bytes.done();
}

export type FixtureOption = readonly [code: number, value: Uint8Array];

/** Blocks of one pcapng section, in one byte order. */
export class PcapngFixture {
  readonly blocks: Uint8Array[] = [];

  constructor(private readonly little = true) {}

  /** A block with any body, padded; `length` and `trailer` override what the frame says. */
  block(type: number, body: Uint8Array, override: { length?: number; trailer?: number } = {}): this {
    const total = 12 + Math.ceil(body.length / 4) * 4;
    const { length = total, trailer = length } = override;
    this.blocks.push(this.bytes().u32(type).u32(length).raw(body).pad().u32(trailer).done());
    return this;
  }

  section(version = 1): this {
    return this.block(0x0a0d0d0a, this.bytes().u32(0x1a2b3c4d).u16(version).u16(0).number(-1n, 8).done());
  }

  interface(linkType: number, snaplen = 0, options: readonly FixtureOption[] = []): this {
    return this.block(1, this.options(this.bytes().u16(linkType).u16(0).u32(snaplen), options).done());
  }

  enhanced(
    iface: number,
    data: Uint8Array,
    ticks: bigint,
    { original = data.length, captured = data.length, options = [] as readonly FixtureOption[] } = {},
  ): this {
    const body = this.bytes()
      .u32(iface)
      .u32(ticks >> 32n)
      .u32(ticks)
      .u32(captured)
      .u32(original);
    return this.block(6, this.options(body.raw(data).pad(), options).done());
  }

  /** The obsolete Packet Block. */
  packet(iface: number, data: Uint8Array, ticks: bigint): this {
    const body = this.bytes()
      .u16(iface)
      .u16(0xffff)
      .u32(ticks >> 32n)
      .u32(ticks)
      .u32(data.length)
      .u32(data.length);
    return this.block(2, body.raw(data).done());
  }

  simple(data: Uint8Array, original = data.length): this {
    return this.block(3, this.bytes().u32(original).raw(data).done());
  }

  done(): Uint8Array {
    return concat(this.blocks);
  }

  /** Where the block of this number begins. */
  offsetOf(block: number): number {
    return this.blocks.slice(0, block).reduce((sum, b) => sum + b.length, 0);
  }

  private bytes(): Bytes {
    return new Bytes(this.little);
  }

  private options(bytes: Bytes, options: readonly FixtureOption[]): Bytes {
    for (const [code, value] of options) bytes.u16(code).u16(value.length).raw(value).pad();
    if (options.length > 0) bytes.u32(0);
    return bytes;
  }
}

export function concat(parts: readonly Uint8Array[]): Uint8Array {
  return Uint8Array.from(parts.flatMap((part) => Array.from(part)));
}

/** Bytes from text such as `45 00 00 14`. */
export function hex(text: string): Uint8Array {
  return Uint8Array.from(text.replace(/\s+/g, '').match(/../g) ?? [], (byte) => Number.parseInt(byte, 16));
}

/** `length` bytes that differ from packet to packet. */
export function filler(length: number, seed = 0): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 7 + seed * 31 + 1) & 0xff);
}

/** The bytes of one packet of a capture. */
export function packetBytes(capture: Capture, packet: number): Uint8Array {
  const from = capture.offsets[packet];
  return capture.bytes.slice(from, from + capture.capturedLengths[packet]);
}
