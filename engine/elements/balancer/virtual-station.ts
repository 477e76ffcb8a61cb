/**
 * The station that virtual addresses are on a link: answers unicast ARP and Neighbour Solicitations, by which hosts
 * confirm what they know.
 */
import { type Batch, type Consumer, type Context, Drops } from '../../graph.js';
import { type Addresses6, NO_ADDRESS } from '../../tables/addresses6.js';
import { IPV6_SPACE, type Services, VIRTUAL_MAC_LE } from '../../tables/services.js';
import { ARP_PACKET, ARP_TARGET_IP, pair } from '../../wire/arp.js';
import { ETHERNET_HEADER, ETHERTYPE_ARP_LE, ETHERTYPE_IPV6_LE } from '../../wire/ethernet.js';
import { ND_TARGET } from '../../wire/nd.js';
import { answerArp } from '../answer-arp.js';
import { advertise, ND_FRAME, NO_SOLICITATION, solicitor } from '../answer-nd.js';

const REASONS = ['not-served'] as const;

/**
 * @param addresses numbers of those of IPv6; null where there are none.
 * @param ports sending side of each local port, by port number.
 */
export function createVirtualStation(
  context: Context,
  services: Services,
  addresses: Addresses6 | null,
  ports: readonly (Batch | null)[],
): Consumer {
  const { frames } = context;
  const { u16, off, len, domain, ingress, offload } = frames;
  const drops = new Drops(context, 'virtual-station', REASONS);
  const mac = new Uint16Array(3);

  function process(batch: Batch): void {
    for (let k = 0; k < batch.count; k++) {
      const frame = batch.frames[k];
      const port = ports[ingress[frame]];
      if (port && answers(frame)) port.push(frame);
      else drops.drop(frame, 0);
    }
  }

  function answers(frame: number): boolean {
    const w = off[frame] >>> 1;
    if (u16[w + 6] === ETHERTYPE_IPV6_LE) return answersNd(frame, w);
    if (len[frame] < ETHERNET_HEADER + ARP_PACKET || u16[w + 6] !== ETHERTYPE_ARP_LE) return false;
    const target = pair(u16, w + ETHERNET_HEADER / 2 + ARP_TARGET_IP);
    if (!services.isVirtual(domain[frame], target)) return false;
    mac[0] = VIRTUAL_MAC_LE;
    mac[1] = target;
    mac[2] = target >>> 16;
    return answerArp(frames, frame, target, mac, 0);
  }

  function answersNd(frame: number, w: number): boolean {
    if (addresses === null || len[frame] < ND_FRAME || offload[frame] !== 0) return false;
    const target = w + ETHERNET_HEADER / 2 + ND_TARGET;
    if (solicitor(frames, frame) === NO_SOLICITATION) return false;
    const number = addresses.find(u16, target);
    if (number === NO_ADDRESS || !services.isVirtual(domain[frame] | IPV6_SPACE, number)) return false;
    advertise(frames, frame, VIRTUAL_MAC_LE, u16[target + 6], u16[target + 7], 0);
    return true;
  }

  return { process };
}
