/**
 * A packet socket on an interface of the host: the frames of a router that is a station of its own there, with a vnet
 * header (virtio 1.2, 5.1.6) in front of each, so that super-frames and unfinished checksums pass as they are.
 *
 * The socket is opened elsewhere; this knows only its descriptor. An interface that goes down is told once by the
 * kernel and works again when it is up; one that was removed stays silent.
 */
import { native } from '../../native-bindings/index.js';
import { type Batch, type Context, Drops } from '../graph.js';
import { BATCH_SIZE, LARGE_CAPACITY, OFFLOAD_GSO_MASK } from '../memory/frames.js';
import type { Port } from './port.js';
import { countFailures, readVnet, writeShortVnet } from './tap.js';

/** Bytes of the vnet header of packet sockets. */
const VNET_HEADER = 10;

const REASONS = ['no-room', 'interface-down', 'bad-header', 'not-sent', 'queue-full', 'truncated'] as const;
const QUEUE_FULL = 4;
const TRUNCATED = 5;
const COUNTERS = ['rx-frames', 'rx-bytes', 'rx-super', 'tx-frames', 'tx-bytes', 'tx-super'] as const;
const [RX_FRAMES, RX_BYTES, RX_SUPER, TX_FRAMES, TX_BYTES, TX_SUPER] = COUNTERS.keys();

export interface PacketSocketOptions {
  readonly id: number;
  /** Packet socket with vnet headers. */
  readonly fd: number;
}

export function createPacketSocket(context: Context, options: PacketSocketOptions): Port {
  const { frames } = context;
  const { off, len, ingress, offload } = frames;
  const { values } = context.counters;
  const { id, fd } = options;
  const drops = new Drops(context, `port:${id}`, REASONS);
  const block = context.counters.claim(`port:${id}`, COUNTERS);
  const { base } = block;
  const failures = new Uint32Array(4);
  const overflow = new Uint32Array(2);

  function receive(to: Batch): number {
    const free = frames.freeLargeCount;
    const room = Math.min(BATCH_SIZE, free);
    const count = native.packetReceive(fd, free, room, VNET_HEADER, LARGE_CAPACITY, overflow);
    if (count <= 0) return 0;
    let bytes = 0;
    let superFrames = 0;
    for (let i = 0; i < count; i++) {
      const frame = frames.takeLarge();
      if (len[frame] < VNET_HEADER) {
        drops.drop(frame, TRUNCATED);
        continue;
      }
      len[frame] -= VNET_HEADER;
      readVnet(frames, frame, off[frame] - VNET_HEADER);
      if ((offload[frame] & OFFLOAD_GSO_MASK) !== 0) superFrames++;
      ingress[frame] = id;
      bytes += len[frame];
      to.push(frame);
    }
    countOverflow();
    values[base + RX_FRAMES] += count;
    values[base + RX_BYTES] += bytes;
    values[base + RX_SUPER] += superFrames;
    return count;
  }

  /** What the kernel dropped because we were too slow: its running count, and what was counted of it. */
  function countOverflow(): void {
    if (overflow[0] === overflow[1]) return;
    drops.add(QUEUE_FULL, (overflow[0] - overflow[1]) >>> 0);
    overflow[1] = overflow[0];
  }

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    let bytes = 0;
    let superFrames = 0;
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      writeShortVnet(frames, frame, off[frame] - VNET_HEADER);
      if ((offload[frame] & OFFLOAD_GSO_MASK) !== 0) superFrames++;
      bytes += len[frame];
    }
    const sent = native.packetSend(fd, ids, count, VNET_HEADER, failures);
    for (let k = 0; k < count; k++) frames.free(ids[k]);
    values[base + TX_FRAMES] += Math.max(sent, 0);
    values[base + TX_BYTES] += bytes;
    values[base + TX_SUPER] += superFrames;
    if (sent !== count) countFailures(drops, failures);
  }

  function close(): void {
    drops.release();
    context.counters.release(block);
  }

  return { id, fd, receive, process, close };
}
