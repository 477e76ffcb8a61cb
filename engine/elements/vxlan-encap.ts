/**
 * `vxlan-encap`: puts frames into VXLAN for the VTEP in `dest` (RFC 7348, sections 4 and 5).
 *
 * Per frame:
 *   1. a frame for FLOOD_VTEPS is copied for every VTEP of its domain but one (head-end replication);
 *   2. a tagged inner frame is refused unless the domain carries tags (section 6.1);
 *   3. the VTEP's ready-made outer header is copied in front, and length, TOS, source port, VNI and checksum
 *      are filled in: the source port from the inner flow's hash, the ECN field from the inner header;
 *   4. the offload metadata, if any, moves with the header: a super-frame stays whole.
 *
 * The outer UDP checksum is zero over IPv4, as section 5 recommends. Over IPv6 it is computed here, because
 * Linux refuses zero there unless told otherwise; of a super-frame only its pseudo-header, for the kernel that
 * cuts it. Not handled: fragmentation, which a VTEP must not do.
 */
import { native } from '../../native-bindings/index.js';
import { type Batch, type Consumer, type Context, Drops } from '../graph.js';
import {
  FLOOD_VTEPS,
  NO_FRAME,
  OFFLOAD_GSO_MASK,
  OFFLOAD_NEEDS_CSUM,
  OFFLOAD_OUTER_SHIFT,
  REMOTE,
} from '../memory/frames.js';
import { CARRY_VLAN, type Domains, ENCRYPTED } from '../tables/domains.js';
import { TEMPLATE_WORDS, type Vteps } from '../tables/vteps.js';
import {
  ETHERNET_HEADER,
  ETHERTYPE_IPV4_LE,
  ETHERTYPE_IPV6_LE,
  ETHERTYPE_QINQ_LE,
  ETHERTYPE_VLAN_LE,
  swap16,
} from '../wire/ethernet.js';
import { flowHash } from '../wire/flow-hash.js';
import {
  CE,
  ECT_0,
  fold16,
  IPV4_CHECKSUM,
  IPV4_LENGTH,
  IPV6_LENGTH,
  SHORT_SUM,
  sumShort,
  sumWords,
  UDP_HEADER,
} from '../wire/ip.js';
import { ENTROPY_PORT, OUTER_IPV4, OUTER_IPV6 } from '../wire/vxlan.js';

const REASONS = ['inner-runt', 'inner-vlan', 'too-big', 'no-vtep', 'no-slot', 'not-encrypted'] as const;
const [INNER_RUNT, INNER_VLAN, TOO_BIG, NO_VTEP, NO_SLOT, NOT_ENCRYPTED] = REASONS.keys();

const COUNTERS = ['frames', 'bytes', 'copies'] as const;
const [FRAMES, BYTES, COPIES] = COUNTERS.keys();

export interface EncapOptions {
  /** Whether the underlay is IPv6. */
  readonly v6: boolean;
  /** Compute the outer UDP checksum over IPv6 for `out`; false where its port has the kernel do it. */
  readonly checksum: boolean;
}

export interface VxlanEncap extends Consumer {
  readonly drops: Drops;
}

/**
 * @param out outer packets for VTEPs whose next hop is not known; all of them when there is no `linked`.
 * @param linked outer packets for VTEPs whose next hop is known.
 * @param secured outer packets of domains that are encrypted, whose only way it is; their `dest` is their VTEP. Their
 *   outer UDP checksum over IPv6 is always computed, since nobody behind can.
 */
export function createVxlanEncap(
  context: Context,
  domains: Domains,
  vteps: Vteps,
  options: EncapOptions,
  out: Batch,
  linked: Batch | null = null,
  secured: Batch | null = null,
): VxlanEncap {
  const { frames } = context;
  const { u16, u32, u64, off, len, dest, domain, offload, csumStart, csumOffset, hdrLen } = frames;
  const { flags, vni: vnis, vteps: members } = domains;
  const { templates, headerSum, linked: isLinked } = vteps;
  const { values } = context.counters;
  const { v6, checksum } = options;
  const drops = new Drops(context, 'vxlan-encap', REASONS);
  const { base } = context.counters.claim('vxlan-encap', COUNTERS);
  const outer = v6 ? OUTER_IPV6 : OUTER_IPV4;
  /** 64-bit words of a template, and the bytes of padding in front. */
  const words = v6 ? TEMPLATE_WORDS : TEMPLATE_WORDS - 2;
  const padding = words * 8 - outer;

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    let bytes = 0;
    let sent = 0;
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      const to = dest[frame];
      if (to === FLOOD_VTEPS) {
        replicate(frame);
        continue;
      }
      const reason = encapsulate(frame, to & 0xffff);
      if (reason >= 0) drops.drop(frame, reason);
      else {
        sent++;
        bytes += len[frame];
        if ((flags[domain[frame]] & ENCRYPTED) !== 0) secured!.push(frame);
        else if (linked !== null && isLinked[to & 0xffff] === 1) linked.push(frame);
        else out.push(frame);
      }
    }
    values[base + FRAMES] += sent;
    values[base + BYTES] += bytes;
  }

  function send(frame: number, vtep: number): void {
    const reason = encapsulate(frame, vtep);
    if (reason >= 0) {
      drops.drop(frame, reason);
      return;
    }
    values[base + FRAMES]++;
    values[base + BYTES] += len[frame];
    if ((flags[domain[frame]] & ENCRYPTED) !== 0) secured!.push(frame);
    else if (linked !== null && isLinked[vtep] === 1) linked.push(frame);
    else out.push(frame);
  }

  function replicate(frame: number): void {
    const to = members[domain[frame]];
    if (to.length === 0) {
      drops.drop(frame, NO_VTEP);
      return;
    }
    for (let i = 1; i < to.length; i++) {
      const copy = frames.clone(frame);
      if (copy === NO_FRAME) drops.add(NO_SLOT);
      else {
        values[base + COPIES]++;
        send(copy, to[i]);
      }
    }
    send(frame, to[0]);
  }

  /** Puts the outer header for a VTEP in front of a frame. Returns a drop reason, or -1. */
  function encapsulate(frame: number, vtep: number): number {
    const inner = len[frame];
    if (inner < ETHERNET_HEADER) return INNER_RUNT;
    if (inner + outer - ETHERNET_HEADER > 65535) return TOO_BIG;
    const dom = domain[frame];
    const encrypted = (flags[dom] & ENCRYPTED) !== 0;
    if (encrypted && secured === null) return NOT_ENCRYPTED;
    const w = off[frame] >>> 1;
    const type = u16[w + 6];
    if ((type === ETHERTYPE_VLAN_LE || type === ETHERTYPE_QINQ_LE) && (flags[dom] & CARRY_VLAN) === 0)
      return INNER_VLAN;
    const port = ENTROPY_PORT | (flowHash(u16, w, inner) >>> 18);
    const ecn = inner < 34 ? 0 : outerEcn(u16, w, type);
    copyTemplate(vtep, (w << 1) - outer);
    const udp = w - 8;
    const ip = w + 7 - (outer >>> 1);
    const length = swap16(inner + 16);
    if (v6) {
      u16[ip] |= ecn << 12;
      u16[ip + IPV6_LENGTH] = length;
    } else {
      const total = swap16(inner + 36);
      u16[ip] |= ecn << 8;
      u16[ip + IPV4_LENGTH] = total;
      u16[ip + IPV4_CHECKSUM] = ~fold16(headerSum[vtep] + total + (ecn << 8));
    }
    const vni = vnis[dom];
    u16[udp] = swap16(port);
    u16[udp + 2] = length;
    u16[udp + 6] = (vni >>> 16) | (vni & 0xff00);
    u16[udp + 7] = vni & 0xff;
    off[frame] = (w << 1) - outer;
    len[frame] = inner + outer;
    if (offload[frame] !== 0) shiftOffload(frame);
    if (encrypted) dest[frame] = REMOTE | vtep;
    if (v6 && (checksum || encrypted || (linked !== null && isLinked[vtep] === 1)))
      checksumIpv6(frame, vtep, udp, inner + 16);
    return -1;
  }

  function copyTemplate(vtep: number, to: number): void {
    const from = vtep * TEMPLATE_WORDS;
    if (((to - padding) & 7) === 0) {
      // The padding falls into headroom.
      const word = (to - padding) >>> 3;
      for (let i = 0; i < words; i++) u64[word + i] = templates[from + i];
    } else copyUnaligned(from, to);
  }

  function copyUnaligned(from: number, to: number): void {
    const halves = new Uint16Array(templates.buffer, from * 8 + padding, outer / 2);
    u16.set(halves, to >>> 1);
  }

  function shiftOffload(frame: number): void {
    offload[frame] |= outer << OFFLOAD_OUTER_SHIFT;
    csumStart[frame] += outer;
    if (hdrLen[frame] !== 0) hdrLen[frame] += outer;
  }

  function checksumIpv6(frame: number, vtep: number, udp: number, length: number): void {
    // headerSum holds the destination port; the length counts twice, in the pseudo-header and in UDP's own.
    if ((offload[frame] & OFFLOAD_GSO_MASK) !== 0) {
      // The kernel fills it in for each segment, from the sum of the pseudo-header alone.
      // The port is taken out by its complement: a difference below zero would fold to one too many.
      u16[udp + 3] = fold16(headerSum[vtep] + (~u16[udp + 1] & 0xffff) + u16[udp + 2]);
      return;
    }
    const start = (udp << 1) + UDP_HEADER;
    let payload: number;
    if ((offload[frame] & OFFLOAD_NEEDS_CSUM) !== 0) {
      // What the inner checksum covers will sum up to the complement of what its field holds now, so the payload
      // need not be read (local checksum offload, Linux Documentation/networking/checksum-offloads.rst).
      const covered = off[frame] + csumStart[frame];
      payload = fold16(
        // Signed: a start near 65,535 has wrapped round to one before the inner frame, and sums up nothing.
        sumWords(u16, start >>> 1, (covered - start) >> 1) +
          (~u16[(covered + csumOffset[frame]) >>> 1] & 0xffff),
      );
    } else if (length <= SHORT_SUM && (start & 3) === 0) payload = sumShort(u32, start, length - UDP_HEADER);
    else payload = swap16(native.checksum(start, length - UDP_HEADER, 0));
    const sum = fold16(headerSum[vtep] + u16[udp] + u16[udp + 2] * 2 + payload);
    // A computed zero is sent as all ones (RFC 768).
    u16[udp + 3] = sum === 0xffff ? 0xffff : ~sum;
  }

  return { drops, process };
}

/** ECN of the outer header (RFC 3168, 9.1.1, full functionality, as Linux does): CE starts anew as ECT(0). */
function outerEcn(u16: Uint16Array, word: number, type: number): number {
  let ecn = 0;
  if (type === ETHERTYPE_IPV4_LE) ecn = (u16[word + 7] >>> 8) & 3;
  else if (type === ETHERTYPE_IPV6_LE) ecn = (u16[word + 7] >>> 12) & 3;
  return ecn === CE ? ECT_0 : ecn;
}
