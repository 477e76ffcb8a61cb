/** What follows from a node's file without being written in it. */
import type { Family } from '../addresses.js';

/** Bytes of VXLAN around an inner IP packet: inner Ethernet 14, VXLAN 8, UDP 8, and IPv4 20 or IPv6 40 (RFC 7348 section 5). */
export function overlayOverhead(underlayFamily: Family): 50 | 70 {
  return underlayFamily === 4 ? 50 : 70;
}

/** The largest inner MTU in bytes that an underlay of `underlayMtu` bytes carries whole. An inner VLAN tag takes 4 more. */
export function defaultMtu(underlayMtu: number, underlayFamily: Family): number {
  return underlayMtu - overlayOverhead(underlayFamily);
}

/** The file of a network namespace written as a name or an absolute path. /var/run is /run (file hierarchy standard). */
export function netnsPath(netns: string): string {
  return netns.startsWith('/') ? netns.replace(/^\/var\/run\//, '/run/') : `/run/netns/${netns}`;
}
