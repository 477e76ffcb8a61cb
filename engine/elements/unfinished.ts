/**
 * `unfinished`: recognises inner frames whose transport checksum a peer on this very machine left undone.
 *
 * A socket hands over VXLAN payload without the kernel's notes on it. From another machine that is all there is;
 * from a kernel VXLAN device behind a veth the inner checksum may still hold the pseudo-header sum alone, and a TCP
 * super-frame may still be whole. A TAP would take both as they are and its stack would refuse them, so the notes
 * are written again: where the field equals the pseudo-header's sum and the checksum is not right as it stands,
 * it is a partial one; and a TCP frame longer than the underlay could carry is a super-frame.
 *
 * Of finished frames one in 65,536 has a field equal to that sum; for those alone the checksum is computed.
 *
 * Not handled: UDP super-frames, whose segment size nobody can tell any more.
 */
import { native } from '../../native-bindings/index.js';
import type { Batch, Consumer, Context } from '../graph.js';
import { GSO_TCPV4, GSO_TCPV6, OFFLOAD_GSO_SHIFT, OFFLOAD_NEEDS_CSUM } from '../memory/frames.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV4_LE, ETHERTYPE_IPV6_LE, swap16 } from '../wire/ethernet.js';
import {
  fold16,
  IPV4_LENGTH,
  IPV4_SOURCE,
  IPV6_HEADER,
  IPV6_LENGTH,
  IPV6_SOURCE,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  sumWords,
} from '../wire/ip.js';
import { NO_TRANSPORT, networkOffset, transportOffset } from '../wire/layers.js';

/** Offset of the checksum in the TCP and the UDP header, bytes. */
const TCP_CHECKSUM = 16;
const UDP_CHECKSUM = 6;

/** @param mtu of the underlay as it is now, bytes, one element: no finished inner frame is longer. */
export function createUnfinished(context: Context, mtu: Uint32Array, out: Batch): Consumer {
  const { frames } = context;
  const { u16, off, len, offload, csumStart, csumOffset, gsoSize, hdrLen } = frames;
  const { values } = context.counters;
  const { base } = context.counters.claim('unfinished', ['checksums', 'super-frames']);

  function process(batch: Batch): void {
    for (let k = 0; k < batch.count; k++) {
      const frame = batch.frames[k];
      if (offload[frame] === 0) examine(frame);
      out.push(frame);
    }
  }

  function examine(frame: number): void {
    const w = off[frame] >>> 1;
    const length = len[frame];
    const l3 = networkOffset(u16, w, length);
    const type = u16[w + (l3 >>> 1) - 1];
    const ip = w + (l3 >>> 1);
    const found = transportOffset(u16, ip, length - l3, type);
    if (found === NO_TRANSPORT) return;
    const protocol = found >>> 16;
    if (protocol !== PROTOCOL_TCP && protocol !== PROTOCOL_UDP) return;
    const header = found & 0xffff;
    const total =
      type === ETHERTYPE_IPV4_LE
        ? swap16(u16[ip + IPV4_LENGTH])
        : swap16(u16[ip + IPV6_LENGTH]) + IPV6_HEADER;
    const left = total - header;
    const l4 = l3 + header;
    const at = protocol === PROTOCOL_TCP ? TCP_CHECKSUM : UDP_CHECKSUM;
    if (left < at + 2 || l4 + left > length) return;
    const field = u16[w + ((l4 + at) >>> 1)];
    const addresses =
      type === ETHERTYPE_IPV4_LE ? sumWords(u16, ip + IPV4_SOURCE, 4) : sumWords(u16, ip + IPV6_SOURCE, 16);
    if (field === 0 || field !== fold16(addresses + (protocol << 8) + swap16(left))) return;
    if (native.checksum(off[frame] + l4, left, swap16(field)) === 0xffff) return;
    offload[frame] = OFFLOAD_NEEDS_CSUM;
    csumStart[frame] = l4;
    csumOffset[frame] = at;
    values[base]++;
    if (protocol === PROTOCOL_TCP && length > mtu[0]) markSuper(frame, type, l4, left);
  }

  function markSuper(frame: number, type: number, l4: number, left: number): void {
    const tcp = (u16[((off[frame] + l4) >>> 1) + 6] & 0xf0) >>> 2;
    if (tcp < 20 || tcp >= left) return;
    offload[frame] |= (type === ETHERTYPE_IPV6_LE ? GSO_TCPV6 : GSO_TCPV4) << OFFLOAD_GSO_SHIFT;
    hdrLen[frame] = l4 + tcp;
    // What the sender's segments were is lost; the largest that the underlay carries is what they are nearly always.
    gsoSize[frame] = Math.min(left - tcp, Math.max(1, mtu[0] - 50 - (l4 - ETHERNET_HEADER) - tcp));
    values[base + 1]++;
  }

  return { process };
}
