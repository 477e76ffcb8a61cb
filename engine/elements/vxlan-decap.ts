/**
 * `vxlan-decap`: takes VXLAN packets apart (RFC 7348, sections 4 and 5).
 *
 * Per packet, whole from its outer Ethernet header on:
 *   1. the outer IP header (see `createOuterParser`); UDP to our port;
 *   2. the UDP checksum, where it is not zero and no port vouches for it (section 4.3 leaves it to us);
 *   3. VXLAN: the I flag; reserved bits ignored (section 5), or refused like Linux when `strict`;
 *   4. VNI → domain, source address → VTEP;
 *   5. a domain that is encrypted takes what came through ESP, and nothing else; any other takes nothing of it;
 *      the VTEP is learned when it is new;
 *   6. the inner frame: long enough, untagged unless the domain carries tags (section 6.1);
 *   7. the outer ECN field is merged into the inner one (RFC 6040, section 4.2);
 *   8. the outer headers are left behind; offload metadata moves with the frame.
 *
 * Not handled: outer VLAN tags, IPv6 extension headers, VXLAN-GPE.
 */
import { native } from '../../native-bindings/index.js';
import { type Batch, type Consumer, type Context, Drops } from '../graph.js';
import { OFFLOAD_NEEDS_CSUM, OFFLOAD_OUTER_MASK, REMOTE } from '../memory/frames.js';
import { CARRY_VLAN, type Domains, ENCRYPTED, PEERS_ONLY } from '../tables/domains.js';
import {
  addressBytes,
  type LocalVtep,
  SAW_ESP_FOR_PLAIN,
  SAW_PLAIN_FOR_ENCRYPTED,
  type Vteps,
} from '../tables/vteps.js';
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
import { createOuterParser, OUTER_REASONS } from '../wire/outer.js';
import { VNI_VALID_LE, VXLAN_HEADER } from '../wire/vxlan.js';

const REASONS = [
  ...OUTER_REASONS,
  'not-udp',
  'not-vxlan-port',
  'udp-checksum',
  'no-vni-flag',
  'reserved-bits',
  'unknown-vni',
  'plain-for-encrypted',
  'esp-for-plain',
  'unknown-vtep',
  'vtep-table-full',
  'inner-runt',
  'inner-vlan',
  'ecn',
] as const;
type Reason = (typeof REASONS)[number];
const R = Object.fromEntries(REASONS.map((name, i) => [name, i])) as Record<Reason, number>;
// What `parse` returns for a packet to be dropped: -1 - reason.
const NOT_UDP = -1 - R['not-udp'];
const NOT_VXLAN_PORT = -1 - R['not-vxlan-port'];
const BAD_LENGTH = -1 - R['bad-length'];
const UDP_CHECKSUM = -1 - R['udp-checksum'];
const NO_VNI_FLAG = R['no-vni-flag'];
const RESERVED_BITS = R['reserved-bits'];
const UNKNOWN_VNI = R['unknown-vni'];
const PLAIN_FOR_ENCRYPTED = R['plain-for-encrypted'];
const ESP_FOR_PLAIN = R['esp-for-plain'];
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
  /**
   * Whether the packets were opened by ESP: only then are they taken for a domain that is encrypted, and for no
   * other. Their UDP checksum is not looked at, since the ICV says more (RFC 3948, section 3.1.2). Default false.
   */
  readonly secured?: boolean;
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
  const { addressed, strict, local, secured = false } = options;
  const name = secured ? 'vxlan-decap:esp' : 'vxlan-decap';
  const drops = new Drops(context, name, REASONS);
  const { base } = context.counters.claim(name, COUNTERS);
  const portLe = swap16(local.port);
  const outer = createOuterParser(context.frames, local, addressed);
  const { source } = outer;
  /** The outer source of the packet before: most packets of a batch share source and VNI. */
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
      const at = parse(frame, w);
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

  /** Steps 1 and 2. Returns the offset of the VXLAN header, or a refusal; trims trailing padding. */
  function parse(frame: number, w: number): number {
    const found = outer.parse(frame, w, UDP_HEADER + VXLAN_HEADER);
    if (found < 0) return found;
    if (found >>> 16 !== PROTOCOL_UDP) return NOT_UDP;
    const udp = found & 0xffff;
    const u = w + (udp >>> 1);
    if (u16[u + 1] !== portLe) return NOT_VXLAN_PORT;
    const udpLength = len[frame] - udp;
    if (swap16(u16[u + 2]) !== udpLength) return BAD_LENGTH;
    if (!secured && u16[u + 3] !== 0 && offload[frame] === 0 && !checksumHolds(w, udp, udpLength))
      return UDP_CHECKSUM;
    return udp + UDP_HEADER;
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

  /** Steps 3 to 6 for the VXLAN header at word `v` and `inner` bytes behind it. A drop reason, or -1. */
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
    if (((domainFlags & ENCRYPTED) !== 0) !== secured) {
      if (lastVtep >= 0) vteps.note(lastVtep, secured ? SAW_ESP_FOR_PLAIN : SAW_PLAIN_FOR_ENCRYPTED);
      return secured ? ESP_FOR_PLAIN : PLAIN_FOR_ENCRYPTED;
    }
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
