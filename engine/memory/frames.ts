/**
 * Frame memory: one page-aligned shared buffer of slots, and what is known of the frame in each slot.
 *
 * A frame is an integer, the number of its slot. Its bytes lie at `off[frame]`, `len[frame]` of them;
 * everything else about it lies in the parallel arrays below. Prepending a header lowers `off` and raises
 * `len`; payload is never moved and nothing here allocates after construction.
 *
 * Invariant: every Ethernet header begins at an even address, so 16-bit loads through `u16` are always
 * allowed. Input ports put the frame at an even offset; every header Weft adds or removes has even length.
 *
 * Not handled here: sharing between threads. A FrameMemory belongs to one worker; the buffer is shared only
 * so that native code and, read-only, other threads can see it.
 */
import { endianness } from 'node:os';

if (endianness() !== 'LE')
  throw new Error('Weft reads packet words through little-endian views; this host is big-endian');

/** Frames a port hands over in one go, and the capacity of every batch. */
export const BATCH_SIZE = 256;

/**
 * Bytes in front of a received frame, in which headers may be prepended. The longest chain is a 24-byte vnet
 * header, outer Ethernet and IPv6 (54), UDP (8), ESP with IV (16), UDP again for ESP-in-UDP (8) and VXLAN (8):
 * 118, kept at 256 so that the frame itself starts on a cache line.
 */
export const HEADROOM = 256;

/**
 * 2 KiB and one cache line: with a stride of exactly 2,048 the heads of 256 frames share two of the 64 sets
 * of a first-level cache.
 */
export const SMALL_STRIDE = 2048 + 64;

/** A 64 KiB super-frame with its headroom and tail; an odd number of cache lines for the same reason. */
export const LARGE_STRIDE = 1041 * 64;

/** Longest frame a small and a large slot hold behind the headroom, leaving 64 bytes of tail for trailers. */
export const SMALL_CAPACITY = SMALL_STRIDE - HEADROOM - 64;
export const LARGE_CAPACITY = LARGE_STRIDE - HEADROOM - 64;

/** No frame: what the allocators return when no slot is free. */
export const NO_FRAME = -1;

/** Bit 0 of `offload`, as in the flags of a virtio-net header (virtio 1.2, 5.1.6). */
export const OFFLOAD_NEEDS_CSUM = 1;
/** GSO type of virtio-net in bits 8–15 of `offload`; 0 is an ordinary frame. */
export const OFFLOAD_GSO_SHIFT = 8;
export const OFFLOAD_GSO_MASK = 0xff00;
export const GSO_TCPV4 = 1;
export const GSO_TCPV6 = 4;
export const GSO_UDP_L4 = 5;
export const GSO_ECN = 0x80;
/** Length in bytes of the outer headers in front of the inner Ethernet header, in bits 16–23; 0 when none. */
export const OFFLOAD_OUTER_SHIFT = 16;
export const OFFLOAD_OUTER_MASK = 0xff0000;

/** `ingress` and `dest` of a frame: this bit set means a remote VTEP (low bits its index), clear a local port. */
export const REMOTE = 0x10000;
/** `dest` of a frame that the tunnel must replicate to every VTEP of its domain. */
export const FLOOD_VTEPS = 0x1ffff;

export interface FrameMemoryOptions {
  /** Number of 2 KiB slots. */
  readonly small: number;
  /** Number of 64 KiB slots. */
  readonly large: number;
  /** Bytes kept behind the slots, for a preloaded capture for instance. */
  readonly arena?: number;
}

export class FrameMemory {
  readonly small: number;
  readonly large: number;
  readonly buffer: SharedArrayBuffer;
  readonly u8: Uint8Array;
  readonly u16: Uint16Array;
  readonly u32: Uint32Array;
  /** For copies alone: its values are BigInts, and only a load stored at once is free of allocation. */
  readonly u64: BigUint64Array;
  /** First byte of the arena and its size in bytes. */
  readonly arenaStart: number;
  readonly arenaSize: number;

  /** Byte offset of the frame's first byte in `u8`. */
  readonly off: Uint32Array;
  /** Length of the frame in bytes. */
  readonly len: Uint32Array;
  /** Where it came in: a local port number, or REMOTE | VTEP index. */
  readonly ingress: Uint32Array;
  /** Broadcast domain (network) it belongs to, an index into the engine's domains. */
  readonly domain: Uint16Array;
  /** Where it goes when it goes to the tunnel: REMOTE | VTEP index, or FLOOD_VTEPS. */
  readonly dest: Uint32Array;
  /** Firewall mark. */
  readonly mark: Uint32Array;
  /** Offload word: 0 is an ordinary frame with finished checksums, and then the five arrays below say nothing. */
  readonly offload: Uint32Array;
  /** Payload bytes of each segment of a super-frame. */
  readonly gsoSize: Uint16Array;
  /** Bytes of headers in front of a super-frame's payload, as the kernel hinted it (0 unknown). */
  readonly hdrLen: Uint16Array;
  /** Where a partial checksum starts, from the frame's first byte, and where it is stored, from that start. */
  readonly csumStart: Uint16Array;
  readonly csumOffset: Uint16Array;

  /**
   * Stack of free large slots, `freeLargeCount` of them. Native receive calls fill the slots below the top, and
   * `takeLarge` then takes them, so that a port never takes more slots than frames arrived.
   */
  readonly freeLarge: Uint32Array;
  private readonly freeSmall: Uint32Array;
  private smallTop: number;
  private largeTop: number;
  /** Large slots whose frames wait. */
  private parked = 0;

  constructor(options: FrameMemoryOptions) {
    const { small, large, arena = 0 } = options;
    const frames = small + large;
    this.small = small;
    this.large = large;
    const slotBytes = small * SMALL_STRIDE + large * LARGE_STRIDE;
    this.arenaStart = slotBytes;
    this.arenaSize = arena;
    const metadata = Math.ceil((slotBytes + arena) / 64) * 64;
    const pages = Math.ceil((metadata + frames * (6 * 4 + 5 * 2) + 64 * 16) / 65536);
    let shared: SharedArrayBuffer;
    try {
      const memory = new WebAssembly.Memory({ shared: true, initial: pages, maximum: pages });
      shared = memory.buffer as SharedArrayBuffer;
    } catch (error) {
      throw new Error(`cannot reserve ${pages * 64} KiB of frame memory: ${(error as Error).message}`);
    }
    this.buffer = shared;
    this.u8 = new Uint8Array(shared);
    this.u16 = new Uint16Array(shared);
    this.u32 = new Uint32Array(shared);
    this.u64 = new BigUint64Array(shared, 0, Math.floor(shared.byteLength / 8));

    let next = metadata;
    const words = (): Uint32Array => {
      const array = new Uint32Array(shared, next, frames);
      next = Math.ceil((next + frames * 4) / 64) * 64;
      return array;
    };
    const halves = (): Uint16Array => {
      const array = new Uint16Array(shared, next, frames);
      next = Math.ceil((next + frames * 2) / 64) * 64;
      return array;
    };
    this.off = words();
    this.len = words();
    this.ingress = words();
    this.dest = words();
    this.mark = words();
    this.offload = words();
    this.domain = halves();
    this.gsoSize = halves();
    this.hdrLen = halves();
    this.csumStart = halves();
    this.csumOffset = halves();

    this.freeSmall = new Uint32Array(small);
    this.freeLarge = new Uint32Array(large);
    // Stacks hand out the slot freed last, whose lines are still in the cache; slot 0 is handed out first.
    for (let i = 0; i < small; i++) this.freeSmall[i] = small - 1 - i;
    for (let i = 0; i < large; i++) this.freeLarge[i] = frames - 1 - i;
    this.smallTop = small;
    this.largeTop = large;
    for (let frame = 0; frame < frames; frame++) this.off[frame] = this.start(frame);
  }

  /** `off` of a slot as it is handed out: behind the headroom, on a cache line. */
  start(frame: number): number {
    return frame < this.small
      ? frame * SMALL_STRIDE + HEADROOM
      : this.small * SMALL_STRIDE + (frame - this.small) * LARGE_STRIDE + HEADROOM;
  }

  /** Takes a 2 KiB slot, `off` behind the headroom, no offload; NO_FRAME when none is free. */
  allocSmall(): number {
    if (this.smallTop === 0) return NO_FRAME;
    const frame = this.freeSmall[--this.smallTop];
    this.offload[frame] = 0;
    return frame;
  }

  /** Takes a 64 KiB slot, `off` behind the headroom, no offload; NO_FRAME when none is free. */
  allocLarge(): number {
    if (this.largeTop === 0) return NO_FRAME;
    return this.takeLarge();
  }

  /** Takes the top of the free stack of large slots, which must not be empty. */
  takeLarge(): number {
    const frame = this.freeLarge[--this.largeTop];
    this.offload[frame] = 0;
    return frame;
  }

  /** Takes the smallest slot that holds `length` bytes; NO_FRAME when none is free or none is that large. */
  alloc(length: number): number {
    if (length <= SMALL_CAPACITY) {
      const frame = this.allocSmall();
      return frame === NO_FRAME ? this.allocLarge() : frame;
    }
    return length <= LARGE_CAPACITY ? this.allocLarge() : NO_FRAME;
  }

  /** Gives a slot back. Freeing one twice corrupts the memory: `audit` finds it in tests. */
  free(frame: number): void {
    if (frame < this.small) {
      this.off[frame] = frame * SMALL_STRIDE + HEADROOM;
      this.freeSmall[this.smallTop++] = frame;
    } else {
      this.off[frame] = this.start(frame);
      this.freeLarge[this.largeTop++] = frame;
    }
  }

  /** Gives back the first `count` slots of a list: `free` for each, with the top of the stack in a register. */
  freeAll(list: Uint32Array, count: number): void {
    const { off, freeSmall, small } = this;
    let top = this.smallTop;
    for (let k = 0; k < count; k++) {
      const frame = list[k];
      if (frame < small) {
        off[frame] = frame * SMALL_STRIDE + HEADROOM;
        freeSmall[top++] = frame;
      } else {
        off[frame] = this.start(frame);
        this.freeLarge[this.largeTop++] = frame;
      }
    }
    this.smallTop = top;
  }

  /**
   * Copies `length` bytes between two places that are congruent modulo 8. Whole words are copied: up to 7 bytes
   * in front of `to` and 31 behind the end are overwritten, which headroom and tail of a slot allow for.
   *
   * Words of 64 bits, four a turn: optimised code moves them through a register and makes no BigInt (64 B in
   * 3 ns, 1,500 B in 50; by 32-bit words 6 and 130; copyWithin on shared memory 18 and 220).
   */
  copy(from: number, to: number, length: number): void {
    const { u64 } = this;
    const words = (length + (from & 7) + 7) >>> 3;
    const source = from >>> 3;
    const target = to >>> 3;
    for (let i = 0; i < words; i += 4) {
      u64[target + i] = u64[source + i];
      u64[target + i + 1] = u64[source + i + 1];
      u64[target + i + 2] = u64[source + i + 2];
      u64[target + i + 3] = u64[source + i + 3];
    }
  }

  /**
   * Copies a frame with all that is known of it into a slot of its own, with full headroom; NO_FRAME when no
   * slot is free. For flooding, head-end replication and what waits, the only places where payload is copied.
   */
  clone(frame: number): number {
    const length = this.len[frame];
    const copy = this.alloc(length);
    if (copy === NO_FRAME) return NO_FRAME;
    const from = this.off[frame];
    const to = this.off[copy] + (from & 7);
    this.copy(from, to, length);
    this.off[copy] = to;
    this.len[copy] = length;
    this.ingress[copy] = this.ingress[frame];
    this.domain[copy] = this.domain[frame];
    this.dest[copy] = this.dest[frame];
    this.mark[copy] = this.mark[frame];
    this.offload[copy] = this.offload[frame];
    this.gsoSize[copy] = this.gsoSize[frame];
    this.hdrLen[copy] = this.hdrLen[frame];
    this.csumStart[copy] = this.csumStart[frame];
    this.csumOffset[copy] = this.csumOffset[frame];
    return copy;
  }

  /**
   * Lets a frame wait longer than a breath: in a small slot where it fits, for large ones are what is received into,
   * and who makes frames wait must not take them from all others. Half of the small slots stay free, and three quarters
   * of the large ones.
   * @returns the frame, by another number perhaps; NO_FRAME when too much waits, and then nothing was done.
   */
  park(frame: number): number {
    if (frame < this.small) return frame;
    if (this.len[frame] <= SMALL_CAPACITY && this.smallTop > this.small >> 1) {
      const copy = this.clone(frame);
      this.free(frame);
      return copy;
    }
    if (this.parked >= this.large >> 2) return NO_FRAME;
    this.parked++;
    return frame;
  }

  /** To be called of each frame that `park` returned, when it goes on or is dropped. */
  resume(frame: number): void {
    if (frame >= this.small) this.parked--;
  }

  /** Slots taken at the moment. */
  get inUse(): number {
    return this.small + this.large - this.smallTop - this.largeTop;
  }

  get freeLargeCount(): number {
    return this.largeTop;
  }

  get freeSmallCount(): number {
    return this.smallTop;
  }

  /** Checks the free stacks; throws when a slot was freed twice or does not exist. For tests and after errors. */
  audit(): void {
    const seen = new Uint8Array(this.small + this.large);
    const check = (stack: Uint32Array, top: number, low: number, high: number): void => {
      if (top > high - low) throw new Error(`more slots were freed than exist: ${top} of ${high - low}`);
      for (let i = 0; i < top; i++) {
        const frame = stack[i];
        if (frame < low || frame >= high) throw new Error(`slot ${frame} is on the wrong free list`);
        if (seen[frame]++) throw new Error(`slot ${frame} was freed twice`);
      }
    };
    check(this.freeSmall, this.smallTop, 0, this.small);
    check(this.freeLarge, this.largeTop, this.small, this.small + this.large);
  }
}
