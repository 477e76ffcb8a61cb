/**
 * Writing pcapng (draft-ietf-opsawg-pcapng), little-endian, one section, nanoseconds: what `weft capture` and the
 * capture of drops produce. Each block goes to the sink whole, so a file cut anywhere loses one block at most.
 *
 * Not handled: interface statistics, name resolution, and lengths in the section header (it says "unknown", as it
 * must in a file that is still growing).
 */

const SECTION_HEADER = 0x0a0d0d0a;
const INTERFACE_DESCRIPTION = 1;
const ENHANCED_PACKET = 6;
const BYTE_ORDER_MAGIC = 0x1a2b3c4d;

const OPT_COMMENT = 1;
const SHB_USERAPPL = 4;
const IF_NAME = 2;
const IF_DESCRIPTION = 3;
const IF_TSRESOL = 9;
const EPB_FLAGS = 2;

/** Characters kept of any text, so that its UTF-8 fits the 16-bit length of an option. */
const MAX_TEXT = 16_384;

export interface PcapngWriterOptions {
  /** Program that writes the file, for instance `weft 0.1.0`. */
  readonly application: string;
  /**
   * Whole seconds since 1970 from which the times given to `write` count; default 0. A double holds nanoseconds
   * since 1970 only to 256 ns: with the second the capture began here, times are exact.
   */
  readonly originSeconds?: number;
}

export interface WriterInterface {
  readonly name: string;
  /** LINKTYPE_ number; 1 is Ethernet. */
  readonly linkType: number;
  readonly description?: string | undefined;
}

export interface WriteOptions {
  readonly comment?: string | undefined;
  /** Bytes the frame had on the wire, when fewer are written; default `length`. */
  readonly originalLength?: number | undefined;
  readonly direction?: 'in' | 'out' | undefined;
  /** Becomes the comment `dropped by …`: element and reason, for instance `bridge: same-port`. */
  readonly dropReason?: string | undefined;
}

const NO_OPTIONS: WriteOptions = {};

export class PcapngWriter {
  private interfaces = 0;
  private readonly encoder = new TextEncoder();
  /** `originSeconds` in nanoseconds, as two 32-bit halves. */
  private readonly originHigh: number;
  private readonly originLow: number;

  /** Writes the section header. @param sink takes each block; the bytes are its to keep. */
  constructor(
    private readonly sink: (bytes: Uint8Array) => void,
    options: PcapngWriterOptions,
  ) {
    const origin = BigInt(options.originSeconds ?? 0) * 1_000_000_000n;
    this.originHigh = Number(origin >> 32n);
    this.originLow = Number(origin & 0xffffffffn);
    const application = this.encode(options.application);
    const block = new Block(SECTION_HEADER, 16, optionBytes(application.length));
    block.u32(BYTE_ORDER_MAGIC);
    block.u16(1); // version 1.0
    block.u16(0);
    block.u32(0xffffffff); // section length unknown
    block.u32(0xffffffff);
    block.option(SHB_USERAPPL, application);
    this.sink(block.finish());
  }

  /** Describes an interface. @returns its number, for `write`. */
  addInterface(description: WriterInterface): number {
    const name = this.encode(description.name);
    const text = description.description === undefined ? null : this.encode(description.description);
    const options =
      optionBytes(name.length) + (text === null ? 0 : optionBytes(text.length)) + optionBytes(1);
    const block = new Block(INTERFACE_DESCRIPTION, 8, options);
    block.u16(description.linkType);
    block.u16(0);
    block.u32(0); // snaplen: no limit
    block.option(IF_NAME, name);
    if (text !== null) block.option(IF_DESCRIPTION, text);
    block.option(IF_TSRESOL, Uint8Array.of(9));
    this.sink(block.finish());
    return this.interfaces++;
  }

  /**
   * Writes the frame `bytes[offset … offset + length)`; it is copied.
   * @param timeNs nanoseconds since `originSeconds`, not negative.
   * @throws RangeError when the interface is not described or the frame does not lie in `bytes`.
   */
  write(
    interfaceIndex: number,
    bytes: Uint8Array,
    offset: number,
    length: number,
    timeNs: number,
    options: WriteOptions = NO_OPTIONS,
  ): void {
    if (!(interfaceIndex >= 0 && interfaceIndex < this.interfaces)) {
      throw new RangeError(`interface ${interfaceIndex} is not described: call addInterface first`);
    }
    if (!(offset >= 0 && length >= 0 && offset + length <= bytes.length)) {
      throw new RangeError(`a frame of ${length} bytes at ${offset} does not lie in ${bytes.length} bytes`);
    }
    const { comment, dropReason, direction, originalLength = length } = options;
    const texts: Uint8Array[] = [];
    if (dropReason !== undefined) texts.push(this.encode(`dropped by ${dropReason}`));
    if (comment !== undefined) texts.push(this.encode(comment));
    let optionsLength = direction === undefined ? 0 : optionBytes(4);
    for (const text of texts) optionsLength += optionBytes(text.length);

    const block = new Block(ENHANCED_PACKET, 20 + length, optionsLength);
    const low = this.originLow + (timeNs % 2 ** 32);
    block.u32(interfaceIndex);
    block.u32(this.originHigh + Math.floor(timeNs / 2 ** 32) + Math.floor(low / 2 ** 32));
    block.u32(low);
    block.u32(length);
    block.u32(Math.max(originalLength, length));
    block.raw(bytes.subarray(offset, offset + length));
    for (const text of texts) block.option(OPT_COMMENT, text);
    if (direction !== undefined) block.option(EPB_FLAGS, Uint8Array.of(direction === 'in' ? 1 : 2, 0, 0, 0));
    this.sink(block.finish());
  }

  private encode(text: string): Uint8Array {
    return this.encoder.encode(text.length > MAX_TEXT ? text.slice(0, MAX_TEXT) : text);
  }
}

/** Bytes of an option with a value of `length` bytes, header and padding included. */
function optionBytes(length: number): number {
  return 4 + Math.ceil(length / 4) * 4;
}

/** One block being filled: type and lengths around a body, then options and their end mark when there are any. */
class Block {
  private readonly bytes: Uint8Array;
  private readonly view: DataView;
  private readonly hasOptions: boolean;
  private at = 8;

  /** @param body bytes of the body without padding. @param options bytes of all options, end mark excluded. */
  constructor(type: number, body: number, options: number) {
    this.hasOptions = options > 0;
    const total = 12 + Math.ceil(body / 4) * 4 + options + (this.hasOptions ? 4 : 0);
    this.bytes = new Uint8Array(total);
    this.view = new DataView(this.bytes.buffer);
    this.view.setUint32(0, type, true);
    this.view.setUint32(4, total, true);
  }

  u16(value: number): void {
    this.view.setUint16(this.at, value, true);
    this.at += 2;
  }

  u32(value: number): void {
    this.view.setUint32(this.at, value, true);
    this.at += 4;
  }

  /** Bytes, padded to a multiple of 4. */
  raw(value: Uint8Array): void {
    this.bytes.set(value, this.at);
    this.at += Math.ceil(value.length / 4) * 4;
  }

  option(code: number, value: Uint8Array): void {
    this.u16(code);
    this.u16(value.length);
    this.raw(value);
  }

  finish(): Uint8Array {
    if (this.hasOptions) this.at += 4; // opt_endofopt is four zero bytes
    this.view.setUint32(this.at, this.bytes.length, true);
    return this.bytes;
  }
}
