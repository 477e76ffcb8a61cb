/** Answers ARP requests (RFC 826) for an address of ours, in place. */
import type { FrameMemory } from '../memory/frames.js';
import {
  ARP_OPERATION,
  ARP_PACKET,
  ARP_REPLY_LE,
  ARP_REQUEST_LE,
  ARP_SENDER_IP,
  ARP_SENDER_MAC,
  ARP_TARGET_IP,
  ARP_TARGET_MAC,
  isArpIpv4,
  pair,
} from '../wire/arp.js';
import { ETHERNET_HEADER } from '../wire/ethernet.js';

const ARP_FRAME = ETHERNET_HEADER + ARP_PACKET;

/**
 * Makes a request for `address` its reply.
 * @param macs where the MAC that has it is, three words from `mac` on.
 * @returns false, with nothing done, for any other frame.
 */
export function answerArp(
  { u16, off, len, offload }: FrameMemory,
  frame: number,
  address: number,
  macs: Uint16Array,
  mac: number,
): boolean {
  const word = off[frame] >>> 1;
  const at = word + ETHERNET_HEADER / 2;
  if (len[frame] < ARP_FRAME || offload[frame] !== 0 || !isArpIpv4(u16, at)) return false;
  if (u16[at + ARP_OPERATION] !== ARP_REQUEST_LE || pair(u16, at + ARP_TARGET_IP) !== address) return false;
  for (let i = 0; i < 5; i++) u16[at + ARP_TARGET_MAC + i] = u16[at + ARP_SENDER_MAC + i];
  for (let i = 0; i < 3; i++) {
    u16[word + i] = u16[word + 3 + i];
    u16[word + 3 + i] = macs[mac + i];
    u16[at + ARP_SENDER_MAC + i] = macs[mac + i];
  }
  u16[at + ARP_SENDER_IP] = address;
  u16[at + ARP_SENDER_IP + 1] = address >>> 16;
  u16[at + ARP_OPERATION] = ARP_REPLY_LE;
  len[frame] = ARP_FRAME;
  return true;
}
