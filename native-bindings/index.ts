/**
 * The C addon, typed: system calls and arithmetic in batches. Nothing here decides anything.
 *
 * Descriptors are plain numbers, valid in every thread of the process. Batched calls work on the frame memory
 * that the calling thread attached; they return a count, or a negative errno when nothing could be done.
 */
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

export interface TapOptions {
  /** Interface name, at most 15 bytes; '' lets the kernel choose. */
  readonly name: string;
  /** Path of a network namespace; '' is the caller's own. */
  readonly netns: string;
  /** Whether the device outlives its descriptors. */
  readonly persist: boolean;
  /** Ask for a 24-byte vnet header with UDP-tunnel segmentation (Linux 6.17); falls back to 12 bytes. */
  readonly tunnel: boolean;
}

export interface Tap {
  readonly fd: number;
  readonly name: string;
  /** Length of the vnet header in bytes: 12, or 24 with UDP-tunnel segmentation. */
  readonly vnet: number;
  /** TUN_F_ bits the kernel accepted. */
  readonly offloads: number;
  /** Whether the interface was there before. */
  readonly existed: boolean;
}

interface UdpOptions {
  /** Local IPv4 or IPv6 address. */
  readonly address: string;
  /** Local port; 0 lets the kernel choose. */
  readonly port: number;
  /** TTL or hop limit of what is sent. */
  readonly ttl: number;
  /** Whether several datagrams of one sender may arrive as one buffer (UDP_GRO). */
  readonly gro: boolean;
  /** Whether other sockets of ours share address and port (SO_REUSEPORT), each with its own flows. */
  readonly share?: boolean;
  /** IP protocol of a raw socket, in place of UDP. An IPv4 one receives the IP header too. */
  readonly protocol?: number;
}

export type GcmLibrary = 'ipsec-mb' | 'openssl';

/** 32-bit words of a job of `gcmSeal` and `gcmOpen`. */
export const GCM_JOB_WORDS = 6;
/** Jobs that one call takes. */
export const GCM_MAX_JOBS = 1024;

interface GcmKey {
  /** Where the key goes: 0 to 16,383. */
  readonly slot: number;
  /** 16, 24 or 32 bytes. */
  readonly key: Uint8Array;
  /** Four bytes. */
  readonly salt: Uint8Array;
  /** Bytes of the integrity check value. */
  readonly icv: 8 | 12 | 16;
  /** Whether the high half of the sequence number is authenticated too (RFC 4303, 2.2.1). */
  readonly esn: boolean;
  /** The preferred one of `gcmLibraries` when absent. */
  readonly library?: GcmLibrary;
}

interface GcmVector {
  /** The preferred one of `gcmLibraries` when absent. */
  readonly library?: GcmLibrary;
  /** 16, 24 or 32 bytes. */
  readonly key: Uint8Array;
  /** Twelve bytes. */
  readonly iv: Uint8Array;
  readonly aad: Uint8Array;
  /** Plaintext; or ciphertext with the tag behind it. */
  readonly text: Uint8Array;
  /** Bytes of the tag, 4 to 16. */
  readonly icv: number;
  readonly encrypt: boolean;
}

interface Addon {
  /** Names the frame memory for the batched calls of this thread. */
  attach(memory: Uint8Array, off: Uint32Array, len: Uint32Array, freeLarge: Uint32Array): void;
  close(fd: number): void;
  /** Opens or re-attaches one queue of a TAP. @throws Error with `code`, the errno's name. */
  tapOpen(options: TapOptions): Tap;
  tapPersist(fd: number, persist: boolean): void;
  /** Takes back all offloads: each read is one finished frame behind a vnet header of 10 zero bytes. */
  tapPlain(fd: number): void;
  /**
   * Reads up to `max` frames into the free large slots below `top`, each `before` bytes in front of the slot's
   * off; sets len to the bytes read, those in front included.
   */
  tapRead(fd: number, top: number, max: number, before: number, capacity: number): number;
  /** Writes each frame with `before` bytes in front of it; failures: no room, down, bad header, other. */
  tapWrite(fd: number, frames: Uint32Array, count: number, before: number, failures: Uint32Array): number;
  /**
   * Opens a non-blocking packet socket that is a station of its own on an interface: it receives what is for its MAC,
   * and broadcast and multicast; of multicast what the interface lets in, which is what is sent to `group` at least.
   * @throws Error with `code`, the errno's name.
   */
  packetOpen(options: {
    readonly interface: string;
    readonly mac: string;
    readonly group?: string | undefined;
  }): number;
  /**
   * Receives frames into the free large slots below `top`, each with its vnet header from `before` bytes in front of
   * off; sets len to the bytes received, 0 for a frame that did not fit. overflow[0] becomes the running count of
   * frames that the socket's full queue has dropped.
   */
  packetReceive(
    fd: number,
    top: number,
    max: number,
    before: number,
    capacity: number,
    overflow: Uint32Array,
  ): number;
  /**
   * Sends each frame with the vnet header in front of it; failures: no room, down, bad header or too long, other.
   */
  packetSend(fd: number, frames: Uint32Array, count: number, before: number, failures: Uint32Array): number;
  /** What a UDP socket of this kernel accepts: UDP_SEGMENT and UDP_GRO. */
  udpOffloads(): { segment: boolean; gro: boolean };
  /** Opens and binds a non-blocking socket with DF set. @throws Error with `code`, the errno's name. */
  udpOpen(options: UdpOptions): number;
  /**
   * Receives UDP payloads `before` bytes in front of off; addresses gets 16 bytes and meta four words a
   * datagram: source port, TOS, GRO segment size (0: none), and truncated in bit 0 with,
   * above it, the count of datagrams that the socket's full queue has dropped so far.
   */
  udpReceive(
    fd: number,
    top: number,
    max: number,
    before: number,
    capacity: number,
    addresses: Uint8Array,
    meta: Uint32Array,
  ): number;
  /**
   * Sends the UDP payload of frames that carry their outer header; failures: no room, unreachable, too big,
   * other, segmentation refused. `kind` is 1 over IPv6, 0 over IPv4, and 2 more for a raw socket, which sends what
   * comes behind the IP header.
   */
  udpSend(
    fd: number,
    kind: number,
    frames: Uint32Array,
    count: number,
    gso: number,
    failures: Uint32Array,
  ): number;
  /**
   * Opens a socket that holds a port, so that nobody else gets it, and neither listens nor is read.
   * @throws Error with `code`: EADDRINUSE when the port is taken, EADDRNOTAVAIL, EPROTONOSUPPORT and others.
   */
  portBind(options: {
    readonly protocol: number;
    readonly address: string;
    readonly port: number;
    /** Also where the port is held by sockets of which `portShare` said that they share it. */
    readonly share?: boolean;
  }): number;
  portShare(fd: number, on: boolean): void;
  /**
   * Sends one netlink message (netlink(7)), which must ask for a dump or an acknowledgement, and returns all messages
   * that answer it, the last one left out. @throws Error with `code`, the errno's name.
   */
  netlinkAsk(family: number, request: Uint8Array): Uint8Array;
  waitCreate(): number;
  waitAdd(wait: number, fd: number, tag: number): void;
  waitRemove(wait: number, fd: number): void;
  /**
   * Waits for readable descriptors: looks for `spin` microseconds without sleeping, then sleeps for `microseconds`,
   * for ever when negative. Fills `ready` with tags.
   */
  wait(wait: number, ready: Uint32Array, microseconds: number, spin: number): number;
  eventCreate(): number;
  eventSignal(fd: number): void;
  eventClear(fd: number): void;
  /** Takes the lock of flock(2), until `fileUnlock` or the end of the process; false when somebody else has it. */
  fileLock(fd: number): boolean;
  /** Closing the descriptor does not do this while the file is mapped. */
  fileUnlock(fd: number): void;
  /** Makes the file at least so many bytes long, with room for all of them. @throws Error with `code`: ENOSPC … */
  fileReserve(fd: number, bytes: number): void;
  /**
   * Maps the first `bytes` of a file that is as long at least: what is written lies in the file at once, and stays
   * when the process is gone. Each call makes a mapping of its own, which the collector takes away with the buffer.
   */
  fileMap(fd: number, bytes: number): ArrayBuffer;
  /** AES-GCM libraries that this build can use on this CPU, the preferred one first. */
  gcmLibraries(): readonly GcmLibrary[];
  /**
   * Expands a key into a slot, for all threads that hear of the slot afterwards. The caller's key is not wiped.
   * @throws TypeError when the slot is taken, a length is wrong, or the library is not available.
   */
  gcmInstall(options: GcmKey): void;
  /** Wipes the key of a slot and frees it, after the batches under way. An empty slot is no error. */
  gcmRemove(slot: number): void;
  /**
   * Seals ESP packets (RFC 4106) in the attached memory. A job is GCM_JOB_WORDS: offset of the ESP header (SPI, low
   * half of the sequence number, IV, as on the wire); offset of the plaintext; offset where the ciphertext goes, the
   * ICV behind it; length in bytes without ICV; slot; high half of the sequence number, used with ESN only.
   * Plaintext and ciphertext are in the same place or do not overlap.
   * @returns 0; or, with nothing done, -EFAULT (outside the memory, or an empty slot) or -EINVAL (they overlap);
   *   or -EIO when the library refused some: those are zeros.
   */
  gcmSeal(jobs: Uint32Array, count: number): number;
  /**
   * The inverse: ciphertext with the ICV behind it becomes plaintext. A result is 1 when the ICV was right; when it
   * was not it is 0, and there are zeros where the plaintext would be.
   * @returns 0; or, with nothing done, -EFAULT or -EINVAL.
   */
  gcmOpen(jobs: Uint32Array, count: number, results: Uint32Array): number;
  /**
   * One AES-GCM operation with additional data of any length, through what gcmSeal and gcmOpen call: for published
   * vectors. @returns the text in its other form, or null when the tag is wrong.
   */
  gcmVector(options: GcmVector): Uint8Array | null;
  /** One's complement sum (RFC 1071), folded to 16 bits, not complemented. */
  checksum(offset: number, length: number, initial: number): number;
  /** The same for `count` triples of offset, length, initial. */
  checksums(spans: Uint32Array, count: number, out: Uint32Array): number;
  /** Copies within the memory, in order: `count` triples of from, to, length. @returns 0 or -EFAULT. */
  copies(spans: Uint32Array, count: number): number;
}

function load(): Addon {
  // From dist/native-bindings/ to the tree's native-bindings/build/.
  const path = fileURLToPath(new URL('../../native-bindings/build/weft.node', import.meta.url));
  try {
    return createRequire(import.meta.url)(path) as Addon;
  } catch (error) {
    const reason = (error as Error).message.split('\n')[0];
    throw new Error(`the native addon cannot be loaded (${reason}); build it with "npm run build"`);
  }
}

export const native: Addon = load();
