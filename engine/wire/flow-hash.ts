/**
 * A 32-bit hash of the flow a frame belongs to: addresses, protocol and ports of IPv4 and IPv6, the addresses
 * and the ethertype of anything else. All fragments of a datagram hash alike, since ports are left out of the
 * hash as soon as the header says "fragment".
 */
import { ETHERTYPE_IPV4_LE, ETHERTYPE_IPV6_LE, ETHERTYPE_QINQ_LE, ETHERTYPE_VLAN_LE } from './ethernet.js';
import { PROTOCOL_TCP, PROTOCOL_UDP } from './ip.js';

const A = 0x9e3779b1;
const B = 0x85ebca6b;

function mix(hash: number, word: number): number {
  const h = Math.imul(hash ^ word, A);
  return h ^ (h >>> 15);
}

function finish(hash: number): number {
  const h = Math.imul(hash ^ (hash >>> 16), B);
  return (h ^ (h >>> 13)) >>> 0;
}

/** @param word index of the Ethernet header's first 16-bit word; @param length of the frame in bytes, at least 14. */
export function flowHash(u16: Uint16Array, word: number, length: number): number {
  let l3 = word + 7;
  let left = length - 14;
  let type = u16[word + 6];
  // One tag or two: they belong to the same flow as what they carry.
  for (
    let tags = 0;
    tags < 2 && (type === ETHERTYPE_VLAN_LE || type === ETHERTYPE_QINQ_LE) && left >= 4;
    tags++
  ) {
    type = u16[l3 + 1];
    l3 += 2;
    left -= 4;
  }
  if (type === ETHERTYPE_IPV4_LE && left >= 20) return hashIpv4(u16, l3, left);
  if (type === ETHERTYPE_IPV6_LE && left >= 40) return hashIpv6(u16, l3, left);
  let hash = mix(0, u16[word] | (u16[word + 1] << 16));
  hash = mix(hash, u16[word + 2] | (u16[word + 3] << 16));
  hash = mix(hash, u16[word + 4] | (u16[word + 5] << 16));
  return finish(mix(hash, type));
}

function hashIpv4(u16: Uint16Array, l3: number, left: number): number {
  const protocol = u16[l3 + 4] >>> 8;
  let hash = mix(protocol, u16[l3 + 6] | (u16[l3 + 7] << 16));
  hash = mix(hash, u16[l3 + 8] | (u16[l3 + 9] << 16));
  // 0xff3f: more fragments and the offset, as the view gives them.
  if ((protocol === PROTOCOL_TCP || protocol === PROTOCOL_UDP) && (u16[l3 + 3] & 0xff3f) === 0) {
    const l4 = l3 + ((u16[l3] & 15) << 1);
    if (left >= ((u16[l3] & 15) << 2) + 4) hash = mix(hash, u16[l4] | (u16[l4 + 1] << 16));
  }
  return finish(hash);
}

function hashIpv6(u16: Uint16Array, l3: number, left: number): number {
  const next = u16[l3 + 3] & 0xff;
  let hash = next;
  for (let i = 4; i < 20; i += 2) hash = mix(hash, u16[l3 + i] | (u16[l3 + i + 1] << 16));
  if ((next === PROTOCOL_TCP || next === PROTOCOL_UDP) && left >= 44) {
    hash = mix(hash, u16[l3 + 20] | (u16[l3 + 21] << 16));
  }
  return finish(hash);
}
