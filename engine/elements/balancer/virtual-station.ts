/** The station that virtual addresses are on a link: answers unicast ARP, by which hosts confirm what they know. */
import { type Batch, type Consumer, type Context, Drops } from '../../graph.js';
import { type Services, VIRTUAL_MAC_LE } from '../../tables/services.js';
import { ARP_PACKET, ARP_TARGET_IP, pair } from '../../wire/arp.js';
import { ETHERNET_HEADER, ETHERTYPE_ARP_LE } from '../../wire/ethernet.js';
import { answerArp } from '../answer-arp.js';

const REASONS = ['not-served'] as const;

/** @param ports sending side of each local port, by port number. */
export function createVirtualStation(
  context: Context,
  services: Services,
  ports: readonly (Batch | null)[],
): Consumer {
  const { frames } = context;
  const { u16, off, len, domain, ingress } = frames;
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
    if (len[frame] < ETHERNET_HEADER + ARP_PACKET || u16[w + 6] !== ETHERTYPE_ARP_LE) return false;
    const target = pair(u16, w + ETHERNET_HEADER / 2 + ARP_TARGET_IP);
    if (!services.isVirtual(domain[frame], target)) return false;
    mac[0] = VIRTUAL_MAC_LE;
    mac[1] = target;
    mac[2] = target >>> 16;
    return answerArp(frames, frame, target, mac, 0);
  }

  return { process };
}
