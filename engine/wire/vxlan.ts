/** VXLAN (RFC 7348, section 5): sizes, flags and the ports of its outer UDP header. */

export const VXLAN_HEADER = 8;
export const VXLAN_PORT = 4789;
/** Outer Ethernet, IP, UDP and VXLAN in front of the inner Ethernet header. */
export const OUTER_IPV4 = 14 + 20 + 8 + 8;
export const OUTER_IPV6 = 14 + 40 + 8 + 8;
/** First of the source ports that carry the flow's entropy: 49152–65535 (RFC 7348, section 5). */
export const ENTROPY_PORT = 49152;
/** The I flag in the header's first 16-bit word, as a little-endian load gives it. */
export const VNI_VALID_LE = 0x0008;
