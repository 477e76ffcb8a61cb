/**
 * `route-in`: where address translation is at other uplinks: what enters from the host's stack, which translates
 * itself, goes to the network that has its destination.
 */
import { type Batch, type Consumer, type Context, Drops } from '../graph.js';
import { NO_NETWORK, type Routes } from '../tables/routes.js';
import { ETHERNET_HEADER } from '../wire/ethernet.js';
import { IPV4_DESTINATION, IPV6_DESTINATION } from '../wire/ip.js';

const REASONS = ['no-network'] as const;
const COUNTERS = ['packets'] as const;

export interface RouteIn extends Consumer {
  readonly drops: Drops;
}

/** @param out takes IPv4 packets with their domain, checked before they came here. */
export function createRouteIn(context: Context, name: string, routes: Routes, out: Batch): RouteIn {
  const { u16 } = context.frames;
  return create(context, `route-in:${name}`, out, (ip) =>
    routes.find(u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16)),
  );
}

/** The same for IPv6. */
export function createRouteInV6(context: Context, name: string, routes: Routes, out: Batch): RouteIn {
  const { u16 } = context.frames;
  return create(context, `route-in-v6:${name}`, out, (ip) => routes.find6(u16, ip + IPV6_DESTINATION));
}

/** @param find domain for the IP header at a word, or NO_NETWORK. */
function create(context: Context, owner: string, out: Batch, find: (ip: number) => number): RouteIn {
  const { off, domain } = context.frames;
  const { values } = context.counters;
  const drops = new Drops(context, owner, REASONS);
  const { base } = context.counters.claim(owner, COUNTERS);

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      const found = find((off[frame] + ETHERNET_HEADER) >>> 1);
      if (found === NO_NETWORK) drops.drop(frame, 0);
      else {
        domain[frame] = found;
        out.push(frame);
      }
    }
    values[base] += count;
  }

  return { drops, process };
}
