/**
 * `bundle`: lays equal-sized outer datagrams of one flow one after another behind one outer header, in front of an
 * uplink TAP, so that they pass the host's stack, the wire of a virtual card and the peer's uplink TAP as one UDP
 * super-frame (UDP_L4 GSO). A card that does not segment UDP gets them cut by the kernel.
 *
 * Per batch:
 *   1. runs are found: neighbours with the same outer addresses, ports and TOS and the same length, of which the
 *      last may be shorter; TCP super-frames, which are bundles already, are never part of one;
 *   2. partial inner checksums of frames in runs are finished, all in one native call: inside a bundle the inner
 *      frame is payload;
 *   3. each run becomes the frame of its first member, the others' payloads copied behind it; the outer UDP checksum
 *      is left to whoever cuts it, with the sum of the pseudo-header in its field.
 * Frames leave in the order in which they came.
 */
import { native } from '../../native-bindings/index.js';
import type { Batch, Consumer, Context } from '../graph.js';
import { BATCH_SIZE, OFFLOAD_GSO_MASK, OFFLOAD_NEEDS_CSUM } from '../memory/frames.js';
import { createCopy } from '../memory/unaligned.js';
import { ETHERNET_HEADER, swap16 } from '../wire/ethernet.js';
import { UDP_HEADER } from '../wire/ip.js';
import { createBundleFinisher, MOST_BYTES, MOST_DATAGRAMS } from '../wire/udp-bundle.js';
import { OUTER_IPV4, OUTER_IPV6, VXLAN_HEADER } from '../wire/vxlan.js';

const COUNTERS = ['bundles', 'bundled'] as const;
const [BUNDLES, BUNDLED] = COUNTERS.keys();

export function createBundle(context: Context, v6: boolean, out: Batch): Consumer {
  const { frames } = context;
  const { u16, off, len, offload, csumStart, csumOffset } = frames;
  const { values } = context.counters;
  const { base } = context.counters.claim('bundle', COUNTERS);
  const copy = createCopy(frames);
  const finishBundle = createBundleFinisher(frames, v6);
  /** Outer Ethernet, IP and UDP. */
  const outer = (v6 ? OUTER_IPV6 : OUTER_IPV4) - VXLAN_HEADER;
  /** In 16-bit words from the frame's start: the IP header, the UDP header, and what makes a flow. */
  const ip = ETHERNET_HEADER / 2;
  const udp = (outer - UDP_HEADER) / 2;
  /** Frames in the run that begins here; 0 for those behind the first. */
  const runs = new Uint8Array(BATCH_SIZE);
  const spans = new Uint32Array(BATCH_SIZE * 3);
  const sums = new Uint32Array(BATCH_SIZE);
  const partial = new Uint32Array(BATCH_SIZE);

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    if (count === 1) {
      out.push(ids[0]);
      return;
    }
    let waiting = 0;
    for (let k = 0; k < count; ) {
      const length = runFrom(ids, k, count);
      runs[k] = length;
      if (length > 1) for (let i = k; i < k + length; i++) waiting = gather(ids[i], waiting);
      k += length;
    }
    if (waiting > 0) finish(waiting);
    for (let k = 0; k < count; k += runs[k]) {
      if (runs[k] > 1) join(ids, k, runs[k]);
      out.push(ids[k]);
    }
  }

  /** Length of the run that begins at `k`. */
  function runFrom(ids: Uint32Array, k: number, count: number): number {
    const first = ids[k];
    // The others are laid behind the first, so it needs a slot that has the room.
    if (!mayJoin(first) || first < frames.small) return 1;
    const size = len[first] - outer;
    const most = Math.min(count - k, MOST_DATAGRAMS, Math.floor(MOST_BYTES / size));
    const w = off[first] >>> 1;
    let n = 1;
    while (n < most) {
      const frame = ids[k + n];
      const next = len[frame] - outer;
      if (next > size || !mayJoin(frame) || !sameFlow(w, off[frame] >>> 1)) break;
      n++;
      if (next < size) break;
    }
    return n;
  }

  function mayJoin(frame: number): boolean {
    const word = offload[frame];
    if (len[frame] <= outer) return false;
    if ((word & (OFFLOAD_NEEDS_CSUM | OFFLOAD_GSO_MASK)) === 0) return true;
    if ((word & OFFLOAD_GSO_MASK) !== 0) return false;
    // A container chose these numbers: a checksum must lie behind the inner Ethernet header, whole.
    const start = csumStart[frame];
    const field = start + csumOffset[frame];
    return (
      start >= outer + VXLAN_HEADER + ETHERNET_HEADER &&
      ((start | field) & 1) === 0 &&
      field + 2 <= len[frame]
    );
  }

  /** Same TOS, addresses and ports; everything else of the outer headers we wrote ourselves. */
  function sameFlow(a: number, b: number): boolean {
    if (u16[a + udp] !== u16[b + udp] || u16[a + ip] !== u16[b + ip]) return false;
    for (let i = udp - (v6 ? 8 : 2); i < udp; i++) if (u16[a + i] !== u16[b + i]) return false;
    return true;
  }

  function gather(frame: number, waiting: number): number {
    if ((offload[frame] & OFFLOAD_NEEDS_CSUM) === 0) return waiting;
    const start = csumStart[frame];
    spans[waiting * 3] = off[frame] + start;
    spans[waiting * 3 + 1] = len[frame] - start;
    partial[waiting] = frame;
    return waiting + 1;
  }

  function finish(waiting: number): void {
    native.checksums(spans, waiting, sums);
    for (let i = 0; i < waiting; i++) {
      const frame = partial[i];
      // A computed zero is sent as all ones (RFC 768); for TCP both mean the same.
      const sum = swap16(sums[i]);
      u16[(off[frame] + csumStart[frame] + csumOffset[frame]) >>> 1] = sum === 0xffff ? 0xffff : ~sum;
      offload[frame] = 0;
    }
  }

  function join(ids: Uint32Array, k: number, count: number): void {
    const frame = ids[k];
    const size = len[frame] - outer;
    let end = off[frame] + len[frame];
    for (let i = 1; i < count; i++) {
      const member = ids[k + i];
      const length = len[member] - outer;
      copy(off[member] + outer, end, length);
      end += length;
      frames.free(member);
    }
    finishBundle(frame, end - off[frame] - outer, size);
    values[base + BUNDLES]++;
    values[base + BUNDLED] += count;
  }

  return { process };
}
