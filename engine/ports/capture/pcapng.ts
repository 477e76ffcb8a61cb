/**
 * pcapng (draft-ietf-opsawg-pcapng): sections of blocks, each block framed by its length in front and behind.
 * Reads Section Header, Interface Description, Enhanced, Simple and the obsolete Packet Block; every other block
 * (statistics, name resolution, secrets, custom, unknown) is stepped over.
 *
 * Broken framing ends the reading, as in libpcap and Wireshark; a block that is framed well and wrong inside
 * costs only itself. Not handled: the frame check sequence length in epb_flags (only the interface's counts).
 */
import {
  type Capture,
  CaptureBuilder,
  CaptureError,
  type CaptureFormat,
  type CaptureInterface,
  MAX_INTERFACES,
} from './capture.js';

const SECTION_HEADER = 0x0a0d0d0a;
const INTERFACE_DESCRIPTION = 1;
const PACKET = 2;
const SIMPLE_PACKET = 3;
const ENHANCED_PACKET = 6;

const BYTE_ORDER_MAGIC = 0x1a2b3c4d;
const BYTE_ORDER_SWAPPED = 0x4d3c2b1a;

const IF_NAME = 2;
const IF_TSRESOL = 9;
const IF_FCSLEN = 13;
const IF_TSOFFSET = 14;

const REMEDY = 'capture or copy the file again';

/** Whether `readPcapng` reads a file whose first four bytes, read big-endian, are `magic`. */
export function isPcapng(magic: number): boolean {
  return magic === SECTION_HEADER;
}

/** Indexes a pcapng file. @throws CaptureError when not even its first section header can be read. */
export function readPcapng(bytes: Uint8Array, name: string): Capture {
  return new PcapngReader(bytes, name).read();
}

class PcapngReader {
  private readonly view: DataView;
  private readonly capture: CaptureBuilder;
  private readonly text = new TextDecoder();
  private little = true;
  private format: CaptureFormat | null = null;
  /** Interfaces of earlier sections: numbering starts again in each. */
  private sectionBase = 0;
  /** What `splitTime` found. */
  private seconds = 0;
  private nanoseconds = 0;

  constructor(bytes: Uint8Array, name: string) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.capture = new CaptureBuilder(bytes, name);
  }

  read(): Capture {
    const end = this.view.byteLength;
    let at = 0;
    while (at < end) {
      const length = this.frame(at, end);
      if (length === 0 || !this.block(at, length)) break;
      at += length;
    }
    return this.capture.finish(this.format ?? 'pcapng-le');
  }

  /** Total length of the block at `at`, or 0 when its framing is broken; takes up a new section's byte order. */
  private frame(at: number, end: number): number {
    const { view } = this;
    if (end - at < 12) return this.broken(at, `the last block is cut: ${end - at} of at least 12 bytes`);
    const section = view.getUint32(at) === SECTION_HEADER;
    if (section) {
      const magic = view.getUint32(at + 8, true);
      if (magic !== BYTE_ORDER_MAGIC && magic !== BYTE_ORDER_SWAPPED) {
        return this.broken(at + 8, 'the section header has no byte-order magic');
      }
      this.little = magic === BYTE_ORDER_MAGIC;
    }
    const length = view.getUint32(at + 4, this.little);
    if (length < (section ? 28 : 12) || length % 4 !== 0) {
      return this.broken(at + 4, `a block says it is ${length} bytes long, which no such block can be`);
    }
    if (length > end - at) return this.broken(at, `the last block is cut: ${end - at} of ${length} bytes`);
    const trailer = view.getUint32(at + length - 4, this.little);
    if (trailer !== length) {
      const fault = `a block is ${length} bytes long by its first length and ${trailer} by its last`;
      return this.broken(at + length - 4, fault);
    }
    return length;
  }

  private broken(offset: number, message: string): 0 {
    if (this.format === null) throw new CaptureError(this.capture.name, offset, message, REMEDY);
    this.capture.problem(offset, `${message}; nothing after it can be read`);
    return 0;
  }

  /** Takes in one well-framed block. @returns false when nothing after it can be understood. */
  private block(at: number, length: number): boolean {
    switch (this.view.getUint32(at, this.little)) {
      case SECTION_HEADER:
        return this.section(at);
      case INTERFACE_DESCRIPTION:
        return this.interface(at, length);
      case ENHANCED_PACKET:
        this.packet(at, length, length < 32 ? -1 : this.view.getUint32(at + 8, this.little));
        return true;
      case PACKET:
        this.packet(at, length, length < 32 ? -1 : this.view.getUint16(at + 8, this.little));
        return true;
      case SIMPLE_PACKET:
        this.simplePacket(at, length);
        return true;
      default:
        return true;
    }
  }

  private section(at: number): boolean {
    const major = this.view.getUint16(at + 12, this.little);
    if (major !== 1) {
      this.broken(at + 12, `pcapng version ${major} is not known`);
      return false;
    }
    this.format ??= this.little ? 'pcapng-le' : 'pcapng-be';
    this.sectionBase = this.capture.interfaces.length;
    return true;
  }

  private interface(at: number, length: number): boolean {
    const { interfaces } = this.capture;
    // Without this interface the numbers of those after it would be wrong, so reading ends.
    if (length < 20) return this.broken(at, `an interface block is ${length} bytes long, not 20`) !== 0;
    if (interfaces.length === MAX_INTERFACES) {
      return this.broken(at, `the file describes more than ${MAX_INTERFACES} interfaces`) !== 0;
    }
    interfaces.push(this.describe(at, at + length - 4));
    return true;
  }

  private describe(at: number, end: number): CaptureInterface {
    const { view, little } = this;
    let name: string | undefined;
    let tsUnitsPerSecond = 1e6;
    let tsOffsetSeconds = 0;
    let fcsLength = 0;
    for (let option = at + 16; option + 4 <= end; ) {
      const code = view.getUint16(option, little);
      const size = view.getUint16(option + 2, little);
      const value = option + 4;
      if (code === 0) break;
      if (size > end - value) {
        this.capture.problem(
          option,
          `option ${code} of an interface is ${size} bytes long, ${end - value} remain`,
        );
        break;
      }
      if (code === IF_NAME) name = this.text.decode(this.capture.bytes.slice(value, value + size));
      else if (code === IF_TSRESOL && size >= 1) tsUnitsPerSecond = this.resolution(value);
      else if (code === IF_FCSLEN && size >= 1) fcsLength = fcsBytes(view.getUint8(value));
      else if (code === IF_TSOFFSET && size >= 8) tsOffsetSeconds = Number(view.getBigInt64(value, little));
      option = value + Math.ceil(size / 4) * 4;
    }
    return {
      linkType: view.getUint16(at + 8, little),
      name,
      snaplen: view.getUint32(at + 12, little),
      tsUnitsPerSecond,
      tsOffsetSeconds,
      fcsLength,
    };
  }

  /** if_tsresol: 10^-n seconds, or 2^-n when the top bit is set. */
  private resolution(at: number): number {
    const value = this.view.getUint8(at);
    const exponent = value & 0x7f;
    // Finer than this a 64-bit timestamp holds less than a second: no writer means it.
    if (exponent > (value & 0x80 ? 63 : 19)) {
      const unit = `${value & 0x80 ? 2 : 10}^-${exponent} s`;
      this.capture.problem(at, `timestamps in units of ${unit} are not believed; read as microseconds`);
      return 1e6;
    }
    return value & 0x80 ? 2 ** exponent : 10 ** exponent;
  }

  /** Enhanced and obsolete Packet Block: they differ only in the interface's number, -1 for a block too short. */
  private packet(at: number, length: number, number: number): void {
    const { view, little, capture } = this;
    if (number < 0) {
      capture.problem(at, `a packet block is ${length} bytes long, not at least 32`);
      return;
    }
    const index = this.sectionBase + number;
    if (index >= capture.interfaces.length) {
      capture.problem(at + 8, `a packet names interface ${number}, which its section does not describe`);
      return;
    }
    const captured = view.getUint32(at + 20, little);
    if (captured > length - 32) {
      capture.problem(
        at + 20,
        `a packet says it holds ${captured} bytes, its block has room for ${length - 32}`,
      );
      return;
    }
    this.splitTime(
      view.getUint32(at + 12, little),
      view.getUint32(at + 16, little),
      capture.interfaces[index],
    );
    const original = view.getUint32(at + 24, little);
    capture.add(at + 28, captured, original, this.seconds, this.nanoseconds, index);
  }

  /** Simple Packet Block: interface 0, no time, and a captured length that follows from the snaplen. */
  private simplePacket(at: number, length: number): void {
    const { view, little, capture } = this;
    if (length < 16) {
      capture.problem(at, `a simple packet block is ${length} bytes long, not at least 16`);
      return;
    }
    if (capture.interfaces.length === this.sectionBase) {
      capture.problem(at, 'a simple packet precedes the interface it belongs to');
      return;
    }
    const original = view.getUint32(at + 8, little);
    const { snaplen } = capture.interfaces[this.sectionBase];
    const captured = snaplen === 0 ? original : Math.min(original, snaplen);
    if (captured > length - 16) {
      capture.problem(
        at + 8,
        `a packet says it holds ${captured} bytes, its block has room for ${length - 16}`,
      );
      return;
    }
    capture.add(at + 12, captured, original, 0, 0, this.sectionBase);
  }

  /** Splits a 64-bit count of units into `seconds` and `nanoseconds`, exactly. */
  private splitTime(
    high: number,
    low: number,
    { tsUnitsPerSecond, tsOffsetSeconds }: CaptureInterface,
  ): void {
    if (1e9 % tsUnitsPerSecond !== 0) {
      const units = BigInt(tsUnitsPerSecond);
      const ticks = (BigInt(high) << 32n) | BigInt(low);
      this.seconds = Number(ticks / units) + tsOffsetSeconds;
      this.nanoseconds = Number(((ticks % units) * 1_000_000_000n) / units);
      return;
    }
    // Long division in digits of 16 bits: the remainder stays below 2^30, so each step is exact in a double.
    let rest = high % tsUnitsPerSecond;
    let quotient = Math.floor(high / tsUnitsPerSecond);
    for (let shift = 16; shift >= 0; shift -= 16) {
      const digit = rest * 65536 + ((low >>> shift) & 0xffff);
      const part = Math.floor(digit / tsUnitsPerSecond);
      quotient = quotient * 65536 + part;
      rest = digit - part * tsUnitsPerSecond;
    }
    this.seconds = quotient + tsOffsetSeconds;
    this.nanoseconds = rest * (1e9 / tsUnitsPerSecond);
  }
}

/**
 * if_fcslen in bytes. The drafts called it bits and bytes by turns, and both are found: no link has a frame check
 * sequence of eight bytes or more, and none of less than one.
 */
function fcsBytes(value: number): number {
  return value < 8 ? value : Math.floor(value / 8);
}
