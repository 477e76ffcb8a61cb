/**
 * What enters at an uplink of IPv6, as uplink-in.ts does for IPv4: Neighbour Discovery goes to the resolver, echo
 * requests to the uplink's address are answered, and what is for that address or for a network of this host goes to
 * address translation. Nothing else enters.
 *
 * Not handled: echo requests behind extension headers.
 */
import { type Batch, type Context, Drops } from '../graph.js';
import type { Gateways } from '../tables/gateways.js';
import { ETHERNET_HEADER, swap16 } from '../wire/ethernet.js';
import {
  IPV6_DESTINATION,
  IPV6_HEADER,
  IPV6_LENGTH,
  IPV6_NEXT_HOP,
  IPV6_SOURCE,
  PROTOCOL_ICMPV6,
} from '../wire/ip.js';
import { ipv6Length, isRoutableV6, ROUTED_BY_SENDER, sameAddress, upperLayer } from '../wire/ipv6.js';
import { NEIGHBOUR_ADVERTISEMENT_LE, NEIGHBOUR_SOLICITATION_LE } from '../wire/nd.js';
import { answerEchoV6, isEchoV6 } from './echo.js';
import type { ResolverV6, StationV6 } from './resolver-v6.js';

const REASONS = ['malformed', 'not-unicast', 'not-ours', 'bad-source', 'source-route'] as const;
const [MALFORMED, NOT_UNICAST, NOT_OURS, BAD_SOURCE, SOURCE_ROUTE] = REASONS.keys();
const COUNTERS = ['frames', 'echo-answered'] as const;
const [FRAMES, ECHO_ANSWERED] = COUNTERS.keys();

export interface UplinkInV6Outputs {
  readonly resolver: ResolverV6;
  /** Answers on the link. */
  readonly port: Batch;
  readonly nat: Batch;
}

export interface UplinkInV6 {
  readonly drops: Drops;
  /** Takes a frame with an Ethernet header of IPv6. */
  take(frame: number): void;
}

export function createUplinkInV6(
  context: Context,
  name: string,
  { address }: Pick<StationV6, 'address'>,
  gateways: Gateways,
  to: UplinkInV6Outputs,
): UplinkInV6 {
  const { frames } = context;
  const { u16, off, len } = frames;
  const { values } = context.counters;
  const { resolver, port, nat } = to;
  const drops = new Drops(context, `uplink-in-v6:${name}`, REASONS);
  const { base } = context.counters.claim(`uplink-in-v6:${name}`, COUNTERS);

  function take(frame: number): void {
    values[base + FRAMES]++;
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    const total = ipv6Length(u16, ip, len[frame] - ETHERNET_HEADER);
    if (total === 0) {
      drops.drop(frame, MALFORMED);
      return;
    }
    len[frame] = ETHERNET_HEADER + total;
    if (isDiscovery(ip)) resolver.nd(frame);
    else if ((u16[w] & 1) !== 0) drops.drop(frame, NOT_UNICAST);
    else packet(frame, ip, total);
  }

  function isDiscovery(ip: number): boolean {
    if ((u16[ip + IPV6_NEXT_HOP] & 0xff) !== PROTOCOL_ICMPV6 || swap16(u16[ip + IPV6_LENGTH]) < 2)
      return false;
    const message = u16[ip + IPV6_HEADER / 2];
    return message === NEIGHBOUR_SOLICITATION_LE || message === NEIGHBOUR_ADVERTISEMENT_LE;
  }

  function packet(frame: number, ip: number, total: number): void {
    const ours = sameAddress(u16, ip + IPV6_DESTINATION, address, 0);
    if (!ours && !gateways.covers6(u16, ip + IPV6_DESTINATION)) {
      drops.drop(frame, NOT_OURS);
      return;
    }
    const forged = sameAddress(u16, ip + IPV6_SOURCE, address, 0) || gateways.covers6(u16, ip + IPV6_SOURCE);
    if (forged || !isRoutableV6(u16, ip + IPV6_SOURCE)) {
      drops.drop(frame, BAD_SOURCE);
      return;
    }
    const upper = upperLayer(u16, ip, total);
    if (upper < 0) drops.drop(frame, upper === ROUTED_BY_SENDER ? SOURCE_ROUTE : MALFORMED);
    else if (ours && isEchoV6(u16, ip)) {
      answerEchoV6(frames, frame);
      values[base + ECHO_ANSWERED]++;
      port.push(frame);
    } else nat.push(frame);
  }

  return { drops, take };
}
