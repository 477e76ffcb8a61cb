/**
 * `vxlan-decap`: takes VXLAN packets apart (RFC 7348, sections 4 and 5).
 *
 * Per packet, whole from its outer Ethernet header on:
 *   1. outer IPv4 or IPv6: header checksum, lengths that fit, no fragment, UDP to our port;
 *   2. the UDP checksum, where it is not zero and no port vouches for it (section 4.3 leaves it to us);
 *   3. the outer source: not ourselves (a looped packet), not a group address;
 *   4. VXLAN: the I flag; reserved bits ignored (section 5), or refused like Linux when `strict`;
 *   5. VNI → domain, source address → VTEP, which is learned when it is new;
 *   6. the inner frame: long enough, untagged unless the domain carries tags (section 6.1);
 *   7. the outer ECN field is merged into the inner one (RFC 6040, section 4.2);
 *   8. the outer headers are left behind; offload metadata moves with the frame.
 *
 * Not handled: outer VLAN tags, IPv6 extension headers (nobody sends VXLAN behind them), VXLAN-GPE.
 */
import { native } from '../../native-bindings/index.js';
import { type Batch, type Consumer, type Context, Drops } from '../graph.js';
import { OFFLOAD_NEEDS_CSUM, OFFLOAD_OUTER_MASK, REMOTE } from '../memory/frames.js';
import { CARRY_VLAN, type Domains, PEERS_ONLY } from '../tables/domains.js';
import { addressBytes, addressWords, type LocalVtep, MAPPED, type Vteps } from '../tables/vteps.js';
import {
  ETHERNET_HEADER,
  ETHERTYPE_IPV4_LE,
  ETHERTYPE_IPV6_LE,
  ETHERTYPE_QINQ_LE,
  ETHERTYPE_VLAN_LE,
  swap16,
} from '../wire/ethernet.js';
import {
  CE,
  ECT_0,
  ECT_1,
  fold16,
  IPV4_HEADER,
  IPV6_FRAGMENT_HEADER,
  IPV6_HEADER,
  NOT_ECT,
  PROTOCOL_UDP,
  SHORT_SUM,
  setEcnIpv4,
  setEcnIpv6,
  sumShort,
  sumWords,
  UDP_HEADER,
} from '../wire/ip.js';
import { VNI_VALID_LE, VXLAN_HEADER } from '../wire/vxlan.js';

const REASONS = [
  'not-ip',
  'bad-ip-header',
  'ip-checksum',
  'fragment',
  'not-udp',
  'not-vxlan-port',
  'bad-length',
  'udp-checksum',
  'own-source',
  'bad-outer-source',
  'not-ours',
  'no-vni-flag',
  'reserved-bits',
  'unknown-vni',
  'unknown-vtep',
  'vtep-table-full',
  'inner-runt',
  'inner-vlan',
  'ecn',
] as const;
type Reason = (typeof REASONS)[number];
const R = Object.fromEntries(REASONS.map((name, i) => [name, i])) as Record<Reason, number>;
/** The parsers return an offset, or -1 - reason for a packet to be dropped. */
const refuse = (reason: Reason): number => -1 - R[reason];
const NOT_IP = refuse('not-ip');
const BAD_IP_HEADER = refuse('bad-ip-header');
const IP_CHECKSUM = refuse('ip-checksum');
const FRAGMENT = refuse('fragment');
const NOT_UDP = refuse('not-udp');
const NOT_VXLAN_PORT = refuse('not-vxlan-port');
const BAD_LENGTH = refuse('bad-length');
const UDP_CHECKSUM = refuse('udp-checksum');
const OWN_SOURCE = refuse('own-source');
const BAD_OUTER_SOURCE = refuse('bad-outer-source');
const NOT_OURS = refuse('not-ours');
const NO_VNI_FLAG = R['no-vni-flag'];
const RESERVED_BITS = R['reserved-bits'];
const UNKNOWN_VNI = R['unknown-vni'];
const UNKNOWN_VTEP = R['unknown-vtep'];
const VTEP_TABLE_FULL = R['vtep-table-full'];
const INNER_RUNT = R['inner-runt'];
const INNER_VLAN = R['inner-vlan'];
const ECN = R.ecn;

const COUNTERS = ['frames', 'bytes', 'vteps-learned'] as const;
const [FRAMES, BYTES, VTEPS_LEARNED] = COUNTERS.keys();

export interface DecapOptions {
  readonly local: LocalVtep;
  /** Check that packets are addressed to us and are not our own; false for captures, which are nobody's. */
  readonly addressed: boolean;
  /** Refuse packets with reserved bits set, as Linux does by default. */
  readonly strict: boolean;
}

export interface VxlanDecap extends Consumer {
  readonly drops: Drops;
  /** Forgets what was remembered between packets; to be called when domains or VTEPs change. */
  invalidate(): void;
}

export function createVxlanDecap(
  context: Context,
  domains: Domains,
  vteps: Vteps,
  options: DecapOptions,
  out: Batch,
): VxlanDecap {
  const { u16, u32, off, len, ingress, domain, offload, csumStart, hdrLen } = context.frames;
  const { flags, vteps: members } = domains;
  const { seen } = vteps;
  const { values } = context.counters;
  const { addressed, strict, local } = options;
  const [localA, localB, localC, localD] = addressWords(local.address);
  const localIpv4 = local.address.length === 4;
  const drops = new Drops(context, 'vxlan-decap', REASONS);
  const { base } = context.counters.claim('vxlan-decap', COUNTERS);
  const portLe = swap16(local.port);
  /**
   * The outer source of the packet at hand and of the one before, four words each. Most packets of a batch
   * share source and VNI. In an array, since a variable that holds more than 31 bits makes an object at each store.
   */
  const source = new Uint32Array(4);
  const last = new Uint32Array(4);
  let lastVtep = -1;
  let lastVni = -1;
  let lastDomain = -1;

  function invalidate(): void {
    lastVtep = -1;
    lastVni = -1;
  }

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    let passed = 0;
    let bytes = 0;
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      const w = off[frame] >>> 1;
      const length = len[frame];
      const at = parse(frame, w, length);
      if (at < 0) {
        drops.drop(frame, -1 - at);
        continue;
      }
      const v = w + (at >>> 1);
      const inner = len[frame] - at - VXLAN_HEADER;
      let reason = admit(v, inner);
      if (reason < 0 && !mergeEcn(w, v + 4, inner)) reason = ECN;
      if (reason >= 0) {
        drops.drop(frame, reason);
        continue;
      }
      off[frame] = (v << 1) + VXLAN_HEADER;
      len[frame] = inner;
      if (offload[frame] !== 0) shiftOffload(frame, at + VXLAN_HEADER);
      ingress[frame] = REMOTE | lastVtep;
      domain[frame] = lastDomain;
      passed++;
      bytes += length;
      out.push(frame);
    }
    values[base + FRAMES] += passed;
    values[base + BYTES] += bytes;
  }

  /** Steps 1 to 3. Returns the offset of the VXLAN header, or a refusal; trims trailing padding. */
  function parse(frame: number, w: number, length: number): number {
    if (length < ETHERNET_HEADER + IPV4_HEADER) return NOT_IP;
    const type = u16[w + 6];
    // Offset of the UDP header; its payload's length is what `len` says afterwards.
    let udp = 0;
    if (type === ETHERTYPE_IPV4_LE) udp = parseIpv4(frame, w, length);
    else if (type === ETHERTYPE_IPV6_LE) udp = parseIpv6(frame, w, length);
    else return NOT_IP;
    if (udp < 0) return udp;
    const u = w + (udp >>> 1);
    if (u16[u + 1] !== portLe) return NOT_VXLAN_PORT;
    const udpLength = len[frame] - udp;
    if (swap16(u16[u + 2]) !== udpLength) return BAD_LENGTH;
    if (u16[u + 3] !== 0 && offload[frame] === 0 && !checksumHolds(w, udp, udpLength)) return UDP_CHECKSUM;
    return udp + UDP_HEADER;
  }

  function parseIpv4(frame: number, w: number, length: number): number {
    const header = (u16[w + 7] & 15) << 2;
    if ((u16[w + 7] & 0xf0) !== 0x40 || header < IPV4_HEADER) return BAD_IP_HEADER;
    const total = swap16(u16[w + 8]);
    if (total < header + UDP_HEADER + VXLAN_HEADER || total > length - ETHERNET_HEADER) return BAD_LENGTH;
    // The usual header is summed without a loop: 5 ns less a packet.
    const sum =
      header === IPV4_HEADER
        ? u16[w + 7] +
          u16[w + 8] +
          u16[w + 9] +
          u16[w + 10] +
          u16[w + 11] +
          u16[w + 12] +
          u16[w + 13] +
          u16[w + 14] +
          u16[w + 15] +
          u16[w + 16]
        : sumWords(u16, w + 7, header >>> 1);
    if (fold16(sum) !== 0xffff) return IP_CHECKSUM;
    // More fragments, or an offset.
    if ((u16[w + 10] & 0xff3f) !== 0) return FRAGMENT;
    if (u16[w + 11] >>> 8 !== PROTOCOL_UDP) return NOT_UDP;
    const d = (u16[w + 13] | (u16[w + 14] << 16)) >>> 0;
    source[0] = 0;
    source[1] = 0;
    source[2] = MAPPED;
    source[3] = d;
    // Multicast, reserved and broadcast (first byte 224–255) and 0.0.0.0 are no sources.
    if ((d & 0xe0) === 0xe0 || d === 0) return BAD_OUTER_SOURCE;
    if (addressed) {
      if (!localIpv4) return NOT_OURS;
      if (d === localD) return OWN_SOURCE;
      if ((u16[w + 15] | (u16[w + 16] << 16)) >>> 0 !== localD) return NOT_OURS;
    }
    len[frame] = ETHERNET_HEADER + total;
    return ETHERNET_HEADER + header;
  }

  function parseIpv6(frame: number, w: number, length: number): number {
    if (length < ETHERNET_HEADER + IPV6_HEADER + UDP_HEADER + VXLAN_HEADER) return BAD_LENGTH;
    if ((u16[w + 7] & 0xf0) !== 0x60) return BAD_IP_HEADER;
    const payload = swap16(u16[w + 9]);
    if (payload < UDP_HEADER + VXLAN_HEADER || payload > length - ETHERNET_HEADER - IPV6_HEADER)
      return BAD_LENGTH;
    const next = u16[w + 10] & 0xff;
    if (next !== PROTOCOL_UDP) return next === IPV6_FRAGMENT_HEADER ? FRAGMENT : NOT_UDP;
    const a = (u16[w + 11] | (u16[w + 12] << 16)) >>> 0;
    const b = (u16[w + 13] | (u16[w + 14] << 16)) >>> 0;
    const c = (u16[w + 15] | (u16[w + 16] << 16)) >>> 0;
    const d = (u16[w + 17] | (u16[w + 18] << 16)) >>> 0;
    source[0] = a;
    source[1] = b;
    source[2] = c;
    source[3] = d;
    if ((a & 0xff) === 0xff) return BAD_OUTER_SOURCE;
    // Neither is the unspecified address, nor an IPv4-mapped one, which would pass for an IPv4 VTEP.
    if ((a | b) === 0 && (c === MAPPED || (c | d) === 0)) return BAD_OUTER_SOURCE;
    if (addressed) {
      if (localIpv4) return NOT_OURS;
      if (d === localD && c === localC && b === localB && a === localA) return OWN_SOURCE;
      if (!isLocalAt(w + 19)) return NOT_OURS;
    }
    len[frame] = ETHERNET_HEADER + IPV6_HEADER + payload;
    return ETHERNET_HEADER + IPV6_HEADER;
  }

  function isLocalAt(w: number): boolean {
    return (
      (u16[w + 6] | (u16[w + 7] << 16)) >>> 0 === localD &&
      (u16[w + 4] | (u16[w + 5] << 16)) >>> 0 === localC &&
      (u16[w + 2] | (u16[w + 3] << 16)) >>> 0 === localB &&
      (u16[w] | (u16[w + 1] << 16)) >>> 0 === localA
    );
  }

  function checksumHolds(w: number, udp: number, length: number): boolean {
    // Pseudo-header (RFC 768; RFC 8200, 8.1): both addresses, the protocol and the UDP length.
    const addresses = u16[w + 6] === ETHERTYPE_IPV6_LE ? sumWords(u16, w + 11, 16) : sumWords(u16, w + 13, 4);
    const start = (w << 1) + udp;
    if (length <= SHORT_SUM && (start & 3) === 0)
      return (
        fold16(addresses + swap16(length) + (PROTOCOL_UDP << 8) + sumShort(u32, start, length)) === 0xffff
      );
    const pseudo = swap16(fold16(addresses)) + PROTOCOL_UDP + length;
    return native.checksum(start, length, pseudo) === 0xffff;
  }

  /** Steps 4 to 6 for the VXLAN header at word `v` and `inner` bytes behind it. A drop reason, or -1. */
  function admit(v: number, inner: number): number {
    const bits = u16[v];
    if ((bits & VNI_VALID_LE) === 0) return NO_VNI_FLAG;
    if (strict && (bits !== VNI_VALID_LE || u16[v + 1] !== 0 || u16[v + 3] >>> 8 !== 0)) return RESERVED_BITS;
    const vni = ((u16[v + 2] & 0xff) << 16) | (u16[v + 2] & 0xff00) | (u16[v + 3] & 0xff);
    if (vni !== lastVni) {
      const found = domains.find(vni);
      if (found < 0) return UNKNOWN_VNI;
      lastVni = vni;
      lastDomain = found;
    }
    if (
      lastVtep < 0 ||
      source[3] !== last[3] ||
      source[2] !== last[2] ||
      source[1] !== last[1] ||
      source[0] !== last[0]
    ) {
      lastVtep = vteps.find(source[0], source[1], source[2], source[3]);
      last[0] = source[0];
      last[1] = source[1];
      last[2] = source[2];
      last[3] = source[3];
    }
    const domainFlags = flags[lastDomain];
    if ((domainFlags & PEERS_ONLY) !== 0 && !members[lastDomain].includes(lastVtep)) return UNKNOWN_VTEP;
    if (inner < ETHERNET_HEADER) return INNER_RUNT;
    const type = u16[v + 10];
    if ((type === ETHERTYPE_VLAN_LE || type === ETHERTYPE_QINQ_LE) && (domainFlags & CARRY_VLAN) === 0)
      return INNER_VLAN;
    if (lastVtep < 0 && !learnVtep()) return VTEP_TABLE_FULL;
    if (seen[lastVtep] !== context.seconds) seen[lastVtep] = context.seconds;
    return -1;
  }

  /** Makes the source of the packet a VTEP; allocates, once for each new one. */
  function learnVtep(): boolean {
    lastVtep = vteps.add(addressBytes(source), false, local, context.seconds);
    if (lastVtep < 0) return false;
    values[base + VTEPS_LEARNED]++;
    return true;
  }

  /** Merges the outer ECN field into the inner header (RFC 6040, figure 4); false when the packet must go. */
  function mergeEcn(w: number, inner: number, length: number): boolean {
    const outerEcn = u16[w + 6] === ETHERTYPE_IPV4_LE ? (u16[w + 7] >>> 8) & 3 : (u16[w + 7] >>> 12) & 3;
    if (outerEcn === NOT_ECT || outerEcn === ECT_0) return true;
    const type = u16[inner + 6];
    const v4 = type === ETHERTYPE_IPV4_LE && length >= ETHERNET_HEADER + IPV4_HEADER;
    if (!v4 && !(type === ETHERTYPE_IPV6_LE && length >= ETHERNET_HEADER + IPV6_HEADER)) return true;
    const innerEcn = v4 ? (u16[inner + 7] >>> 8) & 3 : (u16[inner + 7] >>> 12) & 3;
    if (innerEcn === NOT_ECT) return outerEcn !== CE;
    // Here the outer field is ECT(1) or CE: CE always enters, ECT(1) only in place of ECT(0).
    if (innerEcn === CE || (outerEcn === ECT_1 && innerEcn === ECT_1)) return true;
    if (v4) setEcnIpv4(u16, inner + 7, outerEcn);
    else setEcnIpv6(u16, inner + 7, outerEcn);
    return true;
  }

  function shiftOffload(frame: number, outer: number): void {
    offload[frame] &= ~OFFLOAD_OUTER_MASK;
    if (csumStart[frame] >= outer) csumStart[frame] -= outer;
    else {
      // A partial checksum of the outer UDP header, which is left behind.
      offload[frame] &= ~OFFLOAD_NEEDS_CSUM;
      csumStart[frame] = 0;
    }
    hdrLen[frame] = hdrLen[frame] > outer ? hdrLen[frame] - outer : 0;
  }

  return { drops, process, invalidate };
}
