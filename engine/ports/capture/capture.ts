/**
 * What a capture file is once read: its bytes, untouched, and an index over them in parallel typed arrays.
 * There is no object per packet; packet `i` is `bytes[offsets[i]]` and the `capturedLengths[i]` bytes from there.
 */

/** One interface of a capture; a classic pcap file has exactly one. */
export interface CaptureInterface {
  /** LINKTYPE_ number, https://www.tcpdump.org/linktypes.html. */
  readonly linkType: number;
  /** Name as the file gives it, undefined when it gives none. Untrusted text. */
  readonly name?: string | undefined;
  /** Longest packet the capture kept, in bytes; 0 is no limit. */
  readonly snaplen: number;
  /** Timestamp units a second: 1e6 for microseconds, 2^n where the file counts in powers of two. */
  readonly tsUnitsPerSecond: number;
  /** Seconds added to every timestamp (pcapng if_tsoffset). */
  readonly tsOffsetSeconds: number;
  /** Bytes of frame check sequence at the end of every packet; 0 when there are none or the file is silent. */
  readonly fcsLength: number;
}

/** Damage that was met and survived: `offset` is a byte offset into `Capture.bytes`. */
export interface CaptureProblem {
  readonly offset: number;
  readonly message: string;
}

export type CaptureFormat =
  | `pcap-${'le' | 'be'}-${'us' | 'ns'}`
  /** Kuznetzov's modified pcap, magic 0xa1b2cd34: record headers of 24 bytes. */
  | `pcap-${'le' | 'be'}-us-modified`
  /** The byte order is that of the first section. */
  | `pcapng-${'le' | 'be'}`;

export interface Capture {
  /** What errors call the file. */
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly format: CaptureFormat;
  readonly interfaces: readonly CaptureInterface[];
  /** Number of packets; the length of each array below. */
  readonly count: number;
  /** Byte offset into `bytes` of the packet's first byte. */
  readonly offsets: Uint32Array;
  /** Bytes of the packet that are in the file. */
  readonly capturedLengths: Uint32Array;
  /** Bytes the packet had on the wire. */
  readonly originalLengths: Uint32Array;
  /** Whole seconds since 1970 (beyond 2^32, or negative, where a pcapng file says so). */
  readonly seconds: Float64Array;
  /** Nanoseconds within the second, 0–999,999,999. */
  readonly nanoseconds: Uint32Array;
  /** Index into `interfaces`. */
  readonly interfaceIndices: Uint16Array;
  /** Everything that was wrong with the file, in the order met; empty for a sound file. */
  readonly problems: readonly CaptureProblem[];
}

/** A file of which nothing can be read. Names the file, the byte and what to do about it. */
export class CaptureError extends Error {
  override readonly name = 'CaptureError';

  /** @param offset byte offset of the fault in the file. @param remedy what the user can do. */
  constructor(
    readonly file: string,
    readonly offset: number,
    fault: string,
    readonly remedy: string,
  ) {
    super(`${file}: ${fault} (at byte ${offset}); ${remedy}`);
  }
}

/** Interfaces of one file: what a 16-bit index can name, and a bound on what a hostile file makes us allocate. */
export const MAX_INTERFACES = 65_535;
/** Problems listed for one file; a last one says that there are more. */
const MAX_PROBLEMS = 100;

/** Grows a `Capture` packet by packet. Allocates when an array is full, not per packet. */
export class CaptureBuilder {
  readonly interfaces: CaptureInterface[] = [];
  private readonly problems: CaptureProblem[] = [];
  private count = 0;
  private capacity = 1024;
  private offsets = new Uint32Array(this.capacity);
  private capturedLengths = new Uint32Array(this.capacity);
  private originalLengths = new Uint32Array(this.capacity);
  private seconds = new Float64Array(this.capacity);
  private nanoseconds = new Uint32Array(this.capacity);
  private interfaceIndices = new Uint16Array(this.capacity);

  constructor(
    readonly bytes: Uint8Array,
    readonly name: string,
  ) {}

  add(
    offset: number,
    captured: number,
    original: number,
    seconds: number,
    nanoseconds: number,
    interfaceIndex: number,
  ): void {
    const at = this.count;
    if (at === this.capacity) this.grow(offset);
    this.offsets[at] = offset;
    this.capturedLengths[at] = captured;
    this.originalLengths[at] = original;
    this.seconds[at] = seconds;
    this.nanoseconds[at] = nanoseconds;
    this.interfaceIndices[at] = interfaceIndex;
    this.count = at + 1;
  }

  problem(offset: number, message: string): void {
    const listed = this.problems.length;
    if (listed < MAX_PROBLEMS) this.problems.push({ offset, message });
    else if (listed === MAX_PROBLEMS)
      this.problems.push({ offset, message: 'further problems are not listed' });
  }

  finish(format: CaptureFormat): Capture {
    const { bytes, name, interfaces, count, problems } = this;
    return {
      name,
      bytes,
      format,
      interfaces,
      count,
      offsets: this.offsets.slice(0, count),
      capturedLengths: this.capturedLengths.slice(0, count),
      originalLengths: this.originalLengths.slice(0, count),
      seconds: this.seconds.slice(0, count),
      nanoseconds: this.nanoseconds.slice(0, count),
      interfaceIndices: this.interfaceIndices.slice(0, count),
      problems,
    };
  }

  private grow(offset: number): void {
    this.capacity *= 2;
    const widen = <T extends Uint32Array | Uint16Array | Float64Array>(into: T, from: T): T => {
      into.set(from);
      return into;
    };
    try {
      this.offsets = widen(new Uint32Array(this.capacity), this.offsets);
      this.capturedLengths = widen(new Uint32Array(this.capacity), this.capturedLengths);
      this.originalLengths = widen(new Uint32Array(this.capacity), this.originalLengths);
      this.seconds = widen(new Float64Array(this.capacity), this.seconds);
      this.nanoseconds = widen(new Uint32Array(this.capacity), this.nanoseconds);
      this.interfaceIndices = widen(new Uint16Array(this.capacity), this.interfaceIndices);
    } catch {
      const fault = `no memory for an index of more than ${this.count} packets`;
      throw new CaptureError(
        this.name,
        offset,
        fault,
        'split the file, for instance with editcap -c 1000000',
      );
    }
  }
}
