/**
 * The underlay through an uplink TAP: outer packets enter and leave the host's network card whole, super-frames
 * uncut (UDP-tunnel GSO over TAP, Linux 6.17). Two netdev rules that control installs move them between card and
 * TAP; the engine writes the next hop's MAC itself.
 *
 * The vnet header is virtio_net_hdr_v1_hash_tunnel, 24 bytes, little-endian halves:
 *   0 flags and GSO type   1 header length   2 GSO size   3 checksum start   4 checksum offset   5 buffers
 *   6, 7 hash   8 report   9 padding   10 outer transport offset   11 inner network offset
 *
 * Not handled here: VTEPs whose next hop is not known; encapsulation sends those through the socket.
 */
import { native } from '../../native-bindings/index.js';
import { type Batch, type Context, Drops } from '../graph.js';
import {
  BATCH_SIZE,
  GSO_UDP_L4,
  LARGE_CAPACITY,
  OFFLOAD_GSO_MASK,
  OFFLOAD_GSO_SHIFT,
  OFFLOAD_NEEDS_CSUM,
  OFFLOAD_OUTER_MASK,
  OFFLOAD_OUTER_SHIFT,
} from '../memory/frames.js';
import { ETHERNET_HEADER, ETHERTYPE_QINQ_LE, ETHERTYPE_VLAN_LE, swap16, VLAN_TAG } from '../wire/ethernet.js';
import { UDP_HEADER } from '../wire/ip.js';
import { TCP_FLAGS, tcpHeaderLength } from '../wire/tcp.js';
import { OUTER_IPV4, OUTER_IPV6, VXLAN_HEADER } from '../wire/vxlan.js';
import type { Port } from './port.js';
import { createSplitter } from './split.js';
import { countFailures, TAP_BURST } from './tap.js';

/** Bytes of the vnet header with tunnel offsets. */
const TUNNEL_VNET_HEADER = 24;

/** In the GSO type: the super-frame lies in a UDP tunnel over IPv4, over IPv6. */
const TUNNEL_IPV4 = 0x2000;
const TUNNEL_IPV6 = 0x4000;
/** In the flags: the outer UDP checksum of each segment is to be filled in. */
const TUNNEL_CSUM = 8;

const REASONS = ['no-room', 'interface-down', 'bad-header', 'not-sent', 'too-big'] as const;
const TOO_BIG = 4;
const COUNTERS = ['rx-frames', 'rx-bytes', 'rx-super', 'tx-frames', 'tx-bytes', 'tx-super'] as const;
const [RX_FRAMES, RX_BYTES, RX_SUPER, TX_FRAMES, TX_BYTES, TX_SUPER] = COUNTERS.keys();

export interface UplinkOptions {
  readonly id: number;
  /** Descriptor of one queue, with a 24-byte vnet header agreed on. */
  readonly fd: number;
  readonly v6: boolean;
  /** MTU of the network card as it is now, bytes of IP packet: one element. */
  readonly mtu: Uint32Array;
  /** UDP port of encapsulated ESP and where its packets go, super-frames uncut; everything else is VXLAN. */
  readonly esp?: { readonly port: number; readonly to: Batch };
}

export function createUplinkTap(context: Context, options: UplinkOptions): Port {
  const { frames } = context;
  const { off, len, u16, offload, hdrLen, gsoSize, csumStart, csumOffset } = frames;
  const { values } = context.counters;
  const { id, fd, v6, esp, mtu } = options;
  /** UDP destination port of ESP as the view gives it, and in which word of a packet it stands. */
  const espPortLe = esp === undefined ? -1 : swap16(esp.port);
  const portWord = (v6 ? OUTER_IPV6 : OUTER_IPV4) / 2 - 7;
  const outer = v6 ? OUTER_IPV6 : OUTER_IPV4;
  const tunnel = v6 ? TUNNEL_IPV6 : TUNNEL_IPV4;
  /** What lies in front of the inner frame: it is read to where a container's TAP would have put it. */
  const before = outer + TUNNEL_VNET_HEADER;
  const drops = new Drops(context, `port:${id}`, REASONS);
  const block = context.counters.claim(`port:${id}`, COUNTERS);
  const { base } = block;
  const splitter = createSplitter(context, `port:${id}:split`, v6);
  const failures = new Uint32Array(5);
  const received = new Uint32Array(BATCH_SIZE);
  const sending = new Uint32Array(BATCH_SIZE);

  function receive(to: Batch): number {
    const free = frames.freeLargeCount;
    const count = native.tapRead(fd, free, Math.min(TAP_BURST, free), before, LARGE_CAPACITY);
    if (count <= 0) return count;
    let bytes = 0;
    let datagrams = 0;
    let superFrames = 0;
    // All of them before anything else may take a slot: splitting does.
    for (let i = 0; i < count; i++) received[i] = frames.takeLarge();
    for (let i = 0; i < count; i++) {
      const frame = received[i];
      const start = off[frame] - outer;
      const length = Math.max(0, len[frame] - TUNNEL_VNET_HEADER);
      off[frame] = start;
      len[frame] = length;
      bytes += length;
      const h = (start - TUNNEL_VNET_HEADER) >>> 1;
      const flags = u16[h];
      if (esp !== undefined && u16[(start >>> 1) + portWord] === espPortLe) {
        offload[frame] = flags & OFFLOAD_GSO_MASK;
        gsoSize[frame] = u16[h + 2];
        datagrams++;
        esp.to.push(frame);
        continue;
      }
      if ((flags & OFFLOAD_GSO_MASK) === GSO_UDP_L4 << OFFLOAD_GSO_SHIFT) {
        // Outer datagrams laid one after another, as a peer's socket sends them: the inner frames are whole.
        datagrams += splitter.split(frame, u16[h + 2], to);
        continue;
      }
      datagrams++;
      if ((flags & (OFFLOAD_NEEDS_CSUM | OFFLOAD_GSO_MASK)) !== 0) {
        takeOffload(frame, h, flags);
        if ((flags & OFFLOAD_GSO_MASK) !== 0) superFrames++;
      }
      to.push(frame);
    }
    values[base + RX_FRAMES] += datagrams;
    values[base + RX_BYTES] += bytes;
    values[base + RX_SUPER] += superFrames;
    return count;
  }

  function takeOffload(frame: number, h: number, flags: number): void {
    if (u16[h + 3] < outer) {
      // The outer checksum is the one to be filled in, by who would send the packet on: it never left the machine.
      u16[(off[frame] + outer - VXLAN_HEADER - 2) >>> 1] = 0;
      return;
    }
    const word = flags & (OFFLOAD_NEEDS_CSUM | (OFFLOAD_GSO_MASK & ~(TUNNEL_IPV4 | TUNNEL_IPV6)));
    offload[frame] = word | (outer << OFFLOAD_OUTER_SHIFT);
    hdrLen[frame] = u16[h + 1];
    gsoSize[frame] = u16[h + 2];
    csumStart[frame] = u16[h + 3];
    csumOffset[frame] = u16[h + 4];
  }

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    const longest = mtu[0] + ETHERNET_HEADER;
    let bytes = 0;
    let superFrames = 0;
    let n = 0;
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      const isSuper = (offload[frame] & OFFLOAD_GSO_MASK) !== 0;
      if ((isSuper ? segmentLength(frame) : len[frame]) > longest) {
        drops.drop(frame, TOO_BIG);
        continue;
      }
      writeHeader(frame, isSuper);
      if (isSuper) superFrames++;
      bytes += len[frame];
      sending[n++] = frame;
    }
    const sent = native.tapWrite(fd, sending, n, TUNNEL_VNET_HEADER, failures);
    for (let k = 0; k < n; k++) frames.free(sending[k]);
    values[base + TX_FRAMES] += sent;
    values[base + TX_BYTES] += bytes;
    values[base + TX_SUPER] += superFrames;
    if (sent !== n) countFailures(drops, failures);
  }

  /**
   * Bytes of the longest packet into which a super-frame will be cut. Whoever cuts it does not ask the MTU, and the
   * next switch drops in silence. The headers are measured, since the length in the vnet header is but a hint.
   */
  function segmentLength(frame: number): number {
    const l4 = csumStart[frame];
    const isUdp = (offload[frame] & OFFLOAD_GSO_MASK) === GSO_UDP_L4 << OFFLOAD_GSO_SHIFT;
    const header = isUdp ? UDP_HEADER : tcpHeaderLength(u16[((off[frame] + l4) >>> 1) + TCP_FLAGS]);
    return Math.min(len[frame], l4 + header + gsoSize[frame]);
  }

  function writeHeader(frame: number, isSuper: boolean): void {
    const h = (off[frame] - TUNNEL_VNET_HEADER) >>> 1;
    for (let i = 0; i < TUNNEL_VNET_HEADER / 2; i++) u16[h + i] = 0;
    const word = offload[frame] & 0xffff;
    if (word === 0) return;
    u16[h + 3] = csumStart[frame];
    u16[h + 4] = csumOffset[frame];
    if (!isSuper) {
      u16[h] = word;
      return;
    }
    u16[h + 1] = hdrLen[frame];
    u16[h + 2] = gsoSize[frame];
    if ((offload[frame] & OFFLOAD_OUTER_MASK) === 0) {
      // A bundle of outer datagrams: it is the outer UDP that is to be cut.
      u16[h] = word;
      return;
    }
    u16[h] = word | tunnel | (v6 ? TUNNEL_CSUM : 0);
    u16[h + 10] = outer - VXLAN_HEADER - UDP_HEADER;
    u16[h + 11] = innerNetworkOffset((off[frame] + outer) >>> 1);
  }

  /** Where the inner IP header begins, from the outer frame's first byte; `w` is the inner frame's first word. */
  function innerNetworkOffset(w: number): number {
    let at = outer + ETHERNET_HEADER;
    for (
      let word = w + 6;
      u16[word] === ETHERTYPE_VLAN_LE || u16[word] === ETHERTYPE_QINQ_LE;
      word += VLAN_TAG / 2
    ) {
      at += VLAN_TAG;
      if (at > outer + ETHERNET_HEADER + 2 * VLAN_TAG) break;
    }
    return at;
  }

  function close(): void {
    drops.release();
    splitter.close();
    context.counters.release(block);
  }

  return { id, fd, receive, process, close };
}
