/** Answers Neighbour Solicitations (RFC 4861, 7.2) for an address, in place. */
import type { FrameMemory } from '../memory/frames.js';
import { ETHERNET_HEADER } from '../wire/ethernet.js';
import { IPV6_DESTINATION, IPV6_HEADER, IPV6_SOURCE } from '../wire/ip.js';
import { sameAddress } from '../wire/ipv6.js';
import {
  BAD_OPTIONS,
  isNd,
  isSolicitedNode,
  isUnspecified,
  LINK_LAYER_OPTION,
  linkLayerOption,
  ND_MESSAGE,
  ND_TARGET,
  NEIGHBOUR_SOLICITATION_LE,
  NO_OPTION,
  OVERRIDE_LE,
  SOLICITED_LE,
  SOURCE_LINK_LAYER,
  writeAdvertisement,
  writeAllNodes,
} from '../wire/nd.js';

/** Bytes of the least frame with a solicitation or an advertisement. */
export const ND_FRAME = ETHERNET_HEADER + IPV6_HEADER + ND_MESSAGE;

/** What `solicitor` returns for what is no sound solicitation. */
export const NO_SOLICITATION = -1;

/**
 * Checks a solicitation (7.1.1) that has at least ND_FRAME bytes.
 * @returns index of the first word of the asker's MAC, as its option tells it or else the Ethernet header; or
 *   NO_SOLICITATION.
 */
export function solicitor({ u16, off, len }: FrameMemory, frame: number): number {
  const word = off[frame] >>> 1;
  const ip = word + ETHERNET_HEADER / 2;
  if (!isNd(u16, ip, len[frame] - ETHERNET_HEADER, NEIGHBOUR_SOLICITATION_LE)) return NO_SOLICITATION;
  const link = linkLayerOption(u16, ip, SOURCE_LINK_LAYER);
  if (link === BAD_OPTIONS || (u16[ip + IPV6_SOURCE] & 0xff) === 0xff) return NO_SOLICITATION;
  // From the unspecified address only to a solicited-node address, and without the option.
  if (isUnspecified(u16, ip + IPV6_SOURCE))
    if (link !== NO_OPTION || !isSolicitedNode(u16, ip + IPV6_DESTINATION)) return NO_SOLICITATION;
  return link === NO_OPTION ? word + 3 : link;
}

/**
 * Makes a sound solicitation the advertisement of its target (7.2.4): to the asker, solicited; or to all nodes when
 * the asker, who probes (RFC 4862, 5.4), has no address to answer to.
 * @param first, second, third words of the MAC that has the target.
 * @param flags of the advertisement beside those: ROUTER_LE, or 0.
 */
export function advertise(
  { u16, off, len }: FrameMemory,
  frame: number,
  first: number,
  second: number,
  third: number,
  flags: number,
): void {
  const word = off[frame] >>> 1;
  const ip = word + ETHERNET_HEADER / 2;
  const probe = isUnspecified(u16, ip + IPV6_SOURCE);
  if (probe) {
    writeAllNodes(u16, ip + IPV6_DESTINATION);
    u16[word] = 0x3333;
    u16[word + 1] = 0;
    u16[word + 2] = 0x0100;
  } else {
    for (let i = 0; i < 8; i++) u16[ip + IPV6_DESTINATION + i] = u16[ip + IPV6_SOURCE + i];
    for (let i = 0; i < 3; i++) u16[word + i] = u16[word + 3 + i];
  }
  for (let i = 0; i < 8; i++) u16[ip + IPV6_SOURCE + i] = u16[ip + ND_TARGET + i];
  u16[word + 3] = first;
  u16[word + 4] = second;
  u16[word + 5] = third;
  // The MAC is the target's own, not a proxy's: it overrides what the asker has.
  writeAdvertisement(u16, ip, OVERRIDE_LE | flags | (probe ? 0 : SOLICITED_LE), word + 3);
  // A solicitation without option grows by eight bytes, which the slot's tail has room for.
  len[frame] = ND_FRAME + LINK_LAYER_OPTION;
}

/**
 * Makes a solicitation of an address of ours its advertisement.
 * @param addresses where the address is, eight words from `address` on; `macs` and `mac` likewise three.
 * @returns false, with nothing done, for any other frame.
 */
export function answerNd(
  frames: FrameMemory,
  frame: number,
  addresses: Uint16Array,
  address: number,
  macs: Uint16Array,
  mac: number,
  flags: number,
): boolean {
  const { u16, off, len, offload } = frames;
  if (len[frame] < ND_FRAME || offload[frame] !== 0) return false;
  if (solicitor(frames, frame) === NO_SOLICITATION) return false;
  const target = ((off[frame] + ETHERNET_HEADER) >>> 1) + ND_TARGET;
  if (!sameAddress(u16, target, addresses, address)) return false;
  advertise(frames, frame, macs[mac], macs[mac + 1], macs[mac + 2], flags);
  return true;
}
