/**
 * A slow model of Linux's generic receive offload, on specs rather than bytes, against which `coalesce` is held.
 */
import { build, CWR, FIN, headerLength, l4Offset, PSH, RST, type Spec, SYN, URG } from './gso.js';

/** How a frame differs from what its spec says. */
export type Spoil =
  | 'none'
  | 'checksum'
  | 'ip-checksum'
  | 'padding'
  | 'no-udp-checksum'
  | 'fragment'
  | 'partial'
  | 'icmp';

export interface Item {
  of: Spec;
  ingress: number;
  domain: number;
  mark: number;
  spoil: Spoil;
}

/** The frame as it is sent. */
export function bytesOf({ of, spoil }: Item): Uint8Array {
  const bytes = build(of, spoil === 'partial');
  const ip = 14 + 4 * of.tags.length;
  const field = l4Offset(of) + (of.udp ? 6 : 16);
  if (spoil === 'checksum') bytes[field] ^= 1;
  if (spoil === 'ip-checksum' && !of.v6) bytes[ip + 10] ^= 1;
  if (spoil === 'no-udp-checksum' && of.udp) bytes.fill(0, field, field + 2);
  if (spoil === 'fragment') {
    if (of.v6) bytes[ip + 6] = 44;
    else {
      bytes[ip + 6] |= 0x20;
      const sum = bytes[ip + 10] * 256 + bytes[ip + 11] - 0x2000;
      const mended = sum < 0 ? sum + 0xffff : sum;
      bytes.set([mended >>> 8, mended & 255], ip + 10);
    }
  }
  if (spoil === 'icmp') bytes[ip + (of.v6 ? 6 : 9)] = of.v6 ? 58 : 1;
  return spoil === 'padding' ? Uint8Array.of(...bytes, 0, 0) : bytes;
}

const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

/**
 * What Linux's GRO would do with the frames of one batch, as groups of indices in the order in which they leave.
 * Written from tcp_gro_receive, udp_gro_receive_segment, inet_gro_receive and ipv6_gro_receive, on specs, slowly.
 */
export function model(items: readonly Item[], udp: boolean): number[][] {
  if (items.length === 1) return [[0]];
  const out: number[][] = [];
  let held: number[][] = [];
  const flush = (group: number[]): void => {
    held = held.filter((g) => g !== group);
    out.push(group);
  };
  const sameHosts = (a: Item, b: Item): boolean =>
    a.of.v6 === b.of.v6 &&
    a.domain === b.domain &&
    same(a.of.source, b.of.source) &&
    same(a.of.destination, b.of.destination);
  const sameFlow = (a: Item, b: Item): boolean =>
    sameHosts(a, b) && a.of.udp === b.of.udp && a.of.ports.join() === b.of.ports.join();
  items.forEach((item, k) => {
    const { of, spoil } = item;
    if (
      spoil === 'icmp' ||
      (of.udp && !udp && !(of.v6 && (of.ipOptions.length > 0 || spoil === 'fragment')))
    ) {
      out.push([k]);
      return;
    }
    const odd =
      of.ipOptions.length > 0 ||
      (spoil === 'ip-checksum' && !of.v6) ||
      ['padding', 'fragment', 'partial'].includes(spoil) ||
      (of.udp && (of.payload.length === 0 || spoil === 'no-udp-checksum'));
    if (odd) {
      for (const group of held.filter((g) => sameHosts(items[g[0]], item))) flush(group);
      out.push([k]);
      return;
    }
    const group = held.find((g) => sameFlow(items[g[0]], item));
    const sound = spoil !== 'checksum';
    if (group !== undefined && sound && follows(items, group, item)) {
      group.push(k);
      const short = of.payload.length < items[group[0]].of.payload.length;
      if (short || (of.udp ? group.length >= 64 : (of.flags & (FIN | PSH)) !== 0)) flush(group);
      return;
    }
    if (group !== undefined) flush(group);
    const alone = !of.udp && (of.flags & (SYN | RST | URG | FIN | PSH)) !== 0;
    if (!sound || alone || of.payload.length === 0) out.push([k]);
    else {
      if (held.length === 16) flush(held[0]);
      held.push([k]);
    }
  });
  return [...out, ...held];
}

function follows(items: readonly Item[], group: readonly number[], item: Item): boolean {
  const head = items[group[0]];
  const a = head.of;
  const b = item.of;
  if (b.payload.length === 0 || b.payload.length > a.payload.length) return false;
  const before = group.reduce((n, k) => n + items[k].of.payload.length, 0);
  if (headerLength(a) - 14 - 4 * a.tags.length + before + b.payload.length > 65535) return false;
  if (head.ingress !== item.ingress || head.mark !== item.mark) return false;
  if (!same(a.macs, b.macs) || a.tags.join() !== b.tags.join()) return false;
  if (a.tos !== b.tos || a.ttl !== b.ttl) return false;
  if (a.v6 && a.flowLabel !== b.flowLabel) return false;
  if (!a.v6) {
    if (a.df !== b.df) return false;
    // Fixed ids only with DF, and only if the second already had the first's.
    const second = group.length > 1 ? items[group[1]].of : b;
    const fixed = a.df && second.id === a.id;
    if (((b.id - a.id) & 0xffff) !== (fixed ? 0 : group.length)) return false;
  }
  if (a.udp) return true;
  const changed = a.flags ^ b.flags;
  return (
    b.sequence === (a.sequence + before) >>> 0 &&
    b.acknowledgment === a.acknowledgment &&
    b.window === a.window &&
    b.urgent === a.urgent &&
    (changed & ~(CWR | FIN | PSH)) === 0 &&
    (b.flags & CWR) === 0 &&
    same(a.tcpOptions, b.tcpOptions)
  );
}
