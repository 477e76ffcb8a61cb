/**
 * ARP for IPv4 over Ethernet (RFC 826) on 16-bit views. Functions take the index of the packet's first 16-bit
 * word and presume ARP_PACKET bytes there. Values are as a little-endian load gives them.
 */

/** Bytes of a packet with six-byte hardware and four-byte protocol addresses. */
export const ARP_PACKET = 28;

/** Word indices within a packet. */
export const ARP_OPERATION = 3;
export const ARP_SENDER_MAC = 4;
export const ARP_SENDER_IP = 7;
export const ARP_TARGET_MAC = 9;
export const ARP_TARGET_IP = 12;

export const ARP_REQUEST_LE = 0x0100;
export const ARP_REPLY_LE = 0x0200;

/** Whether hardware is Ethernet, protocol IPv4, and the address lengths are theirs. */
export function isArpIpv4(u16: Uint16Array, arp: number): boolean {
  return u16[arp] === 0x0100 && u16[arp + 1] === 0x0008 && u16[arp + 2] === 0x0406;
}

/** Signed 32-bit little-endian word made of two 16-bit ones: an IPv4 address, or a quarter of an IPv6 one. */
export function pair(u16: Uint16Array, word: number): number {
  return u16[word] | (u16[word + 1] << 16);
}
