/**
 * `clamp-mss`: lowers the Maximum Segment Size that a SYN announces to what the network and the uplink both take, for
 * paths on which ICMP is lost, so that path MTU discovery is not heard (RFC 9293, 3.7.1; RFC 6691). It stands where an
 * uplink asks for it, on the way out and on the way in.
 *
 * A SYN that announces none is left alone, for an option cannot be added in place: its sender is content with 536 or
 * 1220 bytes.
 */
import type { Batch, Consumer, Context } from '../graph.js';
import { OFFLOAD_NEEDS_CSUM } from '../memory/frames.js';
import type { Gateways } from '../tables/gateways.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV4_LE, ETHERTYPE_IPV6_LE } from '../wire/ethernet.js';
import {
  IPV4_FRAGMENT,
  IPV4_HEADER,
  IPV4_OFFSET_LE,
  IPV4_TTL_PROTOCOL,
  IPV6_HEADER,
  PROTOCOL_TCP,
  updateChecksum,
} from '../wire/ip.js';
import { LATER_FRAGMENT_V6, upperLayer } from '../wire/ipv6.js';
import { SYN_LE, TCP_CHECKSUM, TCP_FLAGS, TCP_HEADER, tcpHeaderLength } from '../wire/tcp.js';

const END = 0;
const NO_OPERATION = 1;
const MSS = 2;
const MSS_LENGTH = 4;

const COUNTERS = ['clamped'] as const;

/**
 * @param mtu of the uplink, bytes; that of the network is the gateway's.
 * @param out takes the frames, IPv4 and IPv6 whose headers were checked before, with their domain.
 */
export function createClampMss(context: Context, gateways: Gateways, mtu: number, out: Batch): Consumer {
  const { u16, off, len, domain, offload, csumStart } = context.frames;
  const { values } = context.counters;
  const { base } = context.counters.claim('clamp-mss', COUNTERS);

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      const tcp = tcpOf(frame);
      if (tcp !== 0) look(frame, tcp);
      out.push(frame);
    }
  }

  /** Offset of the header of a SYN from the frame's first byte; 0 of anything else. */
  function tcpOf(frame: number): number {
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    let at = 0;
    if (u16[w + 6] === ETHERTYPE_IPV4_LE) {
      const first = (u16[ip + IPV4_FRAGMENT] & IPV4_OFFSET_LE) === 0;
      if (u16[ip + IPV4_TTL_PROTOCOL] >>> 8 === PROTOCOL_TCP && first) at = (u16[ip] & 15) << 2;
    } else if (u16[w + 6] === ETHERTYPE_IPV6_LE) {
      const upper = upperLayer(u16, ip, len[frame] - ETHERNET_HEADER);
      const first = upper > 0 && (upper & LATER_FRAGMENT_V6) === 0;
      if (first && ((upper >>> 16) & 0xff) === PROTOCOL_TCP) at = upper & 0xffff;
    }
    if (at === 0 || len[frame] < ETHERNET_HEADER + at + TCP_HEADER) return 0;
    return (u16[ip + (at >>> 1) + TCP_FLAGS] & SYN_LE) === 0 ? 0 : ETHERNET_HEADER + at;
  }

  /** Goes through the options of a SYN whose header begins at byte `tcp` of the frame. */
  function look(frame: number, tcp: number): void {
    const start = off[frame] + tcp;
    const end = start + Math.min(tcpHeaderLength(u16[(start >>> 1) + TCP_FLAGS]), len[frame] - tcp);
    for (let at = start + TCP_HEADER; at < end; ) {
      const kind = byteAt(at);
      if (kind === END) return;
      const length = kind === NO_OPERATION ? 1 : at + 1 < end ? byteAt(at + 1) : 0;
      if (length === 0 || at + length > end) return;
      if (kind === MSS && length === MSS_LENGTH) {
        lower(frame, start, at + 2);
        return;
      }
      at += length;
    }
  }

  /** Lowers the value at byte `at`, which need not be an even one. */
  function lower(frame: number, start: number, at: number): void {
    const v4 = u16[(off[frame] >>> 1) + 6] === ETHERTYPE_IPV4_LE;
    const most = Math.min(mtu, gateways.mtu[domain[frame]]) - (v4 ? IPV4_HEADER : IPV6_HEADER) - TCP_HEADER;
    if (((byteAt(at) << 8) | byteAt(at + 1)) <= most) return;
    // A partial checksum is completed with what is there then.
    const partial = (offload[frame] & OFFLOAD_NEEDS_CSUM) !== 0 && off[frame] + csumStart[frame] === start;
    setByte(at, most >>> 8, start, partial);
    setByte(at + 1, most & 0xff, start, partial);
    values[base]++;
  }

  function byteAt(at: number): number {
    return (u16[at >>> 1] >>> ((at & 1) << 3)) & 0xff;
  }

  function setByte(at: number, value: number, start: number, partial: boolean): void {
    const shift = (at & 1) << 3;
    const before = u16[at >>> 1];
    const after = (before & ~(0xff << shift)) | (value << shift);
    u16[at >>> 1] = after;
    const field = (start >>> 1) + TCP_CHECKSUM;
    if (!partial) u16[field] = updateChecksum(u16[field], before, after);
  }

  return { process };
}
