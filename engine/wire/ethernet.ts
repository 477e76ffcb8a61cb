/**
 * Ethernet II (IEEE 802.3, 3.2) on 16-bit views. All functions take the index of the header's first 16-bit word
 * (byte offset / 2) and presume that the header is there: whoever calls has checked the length.
 * Values loaded from the view have their bytes swapped, and so have the constants named *_LE.
 */

/** Bytes of a header without tag. */
export const ETHERNET_HEADER = 14;
/** Bytes a VLAN tag adds (IEEE 802.1Q, 9.3). */
export const VLAN_TAG = 4;

/** Ethertypes as a little-endian load gives them. */
export const ETHERTYPE_IPV4_LE = 0x0008;
export const ETHERTYPE_IPV6_LE = 0xdd86;
export const ETHERTYPE_ARP_LE = 0x0608;
export const ETHERTYPE_VLAN_LE = 0x0081;
export const ETHERTYPE_QINQ_LE = 0xa888;

/** 01-80-C2-00-00-00 to -0F never pass a bridge (IEEE 802.1D, table 7-10). */
export function isReservedGroup(u16: Uint16Array, word: number): boolean {
  return u16[word] === 0x8001 && u16[word + 1] === 0x00c2 && (u16[word + 2] & 0xf0ff) === 0;
}

/** Swaps the bytes of a 16-bit number: wire order to value and back. */
export function swap16(value: number): number {
  return ((value & 0xff) << 8) | (value >>> 8);
}
