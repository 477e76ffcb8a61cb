/**
 * `uplink-in`: what enters at an uplink: ARP goes to the resolver, echo requests to the uplink's address are answered,
 * and IPv4 for that address or for a network of this host goes to address translation, which admits what belongs to a
 * flow or to a published port. Nothing else enters, and nothing from an address of a network of this host, which is
 * nobody's out there (RFC 2827); IPv6 by uplink-in-v6.ts.
 *
 * Not handled: fragmented echo requests.
 */
import { type Batch, type Consumer, type Context, Drops } from '../graph.js';
import type { Gateways } from '../tables/gateways.js';
import { ETHERNET_HEADER, ETHERTYPE_ARP_LE, ETHERTYPE_IPV4_LE, ETHERTYPE_IPV6_LE } from '../wire/ethernet.js';
import { IPV4_DESTINATION, IPV4_SOURCE } from '../wire/ip.js';
import { hasSourceRoute, ipv4Length, isRoutable } from '../wire/ipv4-checks.js';
import { answerEcho, isEcho } from './echo.js';
import type { Resolver, Station } from './resolver.js';
import type { UplinkInV6 } from './uplink-in-v6.js';

const REASONS = ['not-ip', 'malformed', 'not-unicast', 'not-ours', 'bad-source', 'source-route'] as const;
const [NOT_IP, MALFORMED, NOT_UNICAST, NOT_OURS, BAD_SOURCE, SOURCE_ROUTE] = REASONS.keys();
const COUNTERS = ['frames', 'echo-answered'] as const;
const [FRAMES, ECHO_ANSWERED] = COUNTERS.keys();

export interface UplinkInOutputs {
  readonly resolver: Resolver;
  /** Answers on the link. */
  readonly port: Batch;
  readonly nat: Batch;
  /** Null where the uplink has no IPv6. */
  readonly v6: UplinkInV6 | null;
}

export interface UplinkIn extends Consumer {
  readonly drops: Drops;
}

export function createUplinkIn(
  context: Context,
  name: string,
  station: Pick<Station, 'address'>,
  gateways: Gateways,
  to: UplinkInOutputs,
): UplinkIn {
  const { frames } = context;
  const { u16, off, len } = frames;
  const { values } = context.counters;
  const { address } = station;
  const { resolver, port, nat, v6 } = to;
  const drops = new Drops(context, `uplink-in:${name}`, REASONS);
  const { base } = context.counters.claim(`uplink-in:${name}`, COUNTERS);

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      const w = off[frame] >>> 1;
      const type = len[frame] < ETHERNET_HEADER ? 0 : u16[w + 6];
      if (type === ETHERTYPE_ARP_LE) resolver.arp(frame);
      else if (type === ETHERTYPE_IPV6_LE && v6 !== null) v6.take(frame);
      else if (type !== ETHERTYPE_IPV4_LE) drops.drop(frame, NOT_IP);
      // A packet for one host in a frame for all is none to take (RFC 1122, 3.3.6).
      else if ((u16[w] & 1) !== 0) drops.drop(frame, NOT_UNICAST);
      else packet(frame, w + ETHERNET_HEADER / 2);
    }
    values[base + FRAMES] += count;
  }

  function packet(frame: number, ip: number): void {
    const total = ipv4Length(u16, ip, len[frame] - ETHERNET_HEADER);
    if (total === 0) {
      drops.drop(frame, MALFORMED);
      return;
    }
    len[frame] = ETHERNET_HEADER + total;
    const source = u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16);
    const destination = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    if (destination !== address && !gateways.covers(destination)) drops.drop(frame, NOT_OURS);
    else if (!isRoutable(source) || source === address || gateways.covers(source))
      drops.drop(frame, BAD_SOURCE);
    else if ((u16[ip] & 15) > 5 && hasSourceRoute(u16, ip)) drops.drop(frame, SOURCE_ROUTE);
    else if (destination === address && isEcho(u16, ip)) {
      answerEcho(frames, frame);
      values[base + ECHO_ANSWERED]++;
      port.push(frame);
    } else nat.push(frame);
  }

  return { drops, process };
}
