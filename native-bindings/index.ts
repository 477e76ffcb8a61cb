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
   * other, segmentation refused.
   */
  udpSend(
    fd: number,
    v6: number,
    frames: Uint32Array,
    count: number,
    gso: number,
    failures: Uint32Array,
  ): number;
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
  /** One's complement sum (RFC 1071), folded to 16 bits, not complemented. */
  checksum(offset: number, length: number, initial: number): number;
  /** The same for `count` triples of offset, length, initial. */
  checksums(spans: Uint32Array, count: number, out: Uint32Array): number;
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
