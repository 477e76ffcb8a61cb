/**
 * TCP (RFC 9293, 3.1) on 16-bit views: word indices within the header, and the flags as a little-endian load of
 * the word that holds data offset and flags gives them (the flags in the high byte).
 */
import { swap16 } from './ethernet.js';

export const TCP_HEADER = 20;

export const TCP_SEQUENCE = 2;
export const TCP_ACKNOWLEDGMENT = 4;
/** Data offset, reserved bits and flags. */
export const TCP_FLAGS = 6;
export const TCP_WINDOW = 7;
export const TCP_CHECKSUM = 8;
export const TCP_URGENT = 9;

export const FIN_LE = 0x0100;
export const SYN_LE = 0x0200;
export const RST_LE = 0x0400;
export const PSH_LE = 0x0800;
export const ACK_LE = 0x1000;
export const URG_LE = 0x2000;
export const CWR_LE = 0x8000;

/** Length in bytes of the header whose flags word is given; below 20 it is nonsense. */
export function tcpHeaderLength(flagsWord: number): number {
  return (flagsWord & 0xf0) >>> 2;
}

/** A sequence or acknowledgement number, unsigned; `word` is the index of its first 16-bit word. */
export function sequenceAt(u16: Uint16Array, word: number): number {
  return swap16(u16[word]) * 0x10000 + swap16(u16[word + 1]);
}
