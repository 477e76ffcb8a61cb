/** ESP (RFC 4303) with AES-GCM (RFC 4106), and its encapsulation in UDP (RFC 3948): sizes and numbers. */

export const PROTOCOL_ESP = 50;
/** SPI and sequence number. */
export const ESP_HEADER = 8;
/** Explicit IV behind the header (RFC 4106, section 3.1). */
export const ESP_IV = 8;
/** Pad length and next header, behind the padding. */
export const ESP_TRAILER = 2;
/** Next header of a dummy packet, which says nothing (RFC 4303, section 2.6). */
export const NO_NEXT_HEADER = 59;
/** UDP port of encapsulated ESP. */
export const ESP_UDP_PORT = 4500;
