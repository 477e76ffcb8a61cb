/**
 * `lc`: who has the fewest flows, whatever its weight, as long as that is not 0.
 *
 * As IPVS counts (net/netfilter/ipvs/ip_vs_lc.c): an established flow is worth 256 others, and of equals the one that
 * was added last is chosen. It looks at every backend of the service for each new flow.
 */
import { type Backends, NO_BACKEND } from '../backends.js';
import type { Scheduler } from './index.js';

/** Flows that are not established and weigh as much as one that is. */
export const ACTIVE_WORTH = 256;

export function createLc({ lists, weight, up, active, inactive }: Backends): Scheduler {
  function pick(service: number): number {
    const list = lists[service];
    let least = NO_BACKEND;
    let load = 0;
    for (let place = list.length - 1; place >= 0; place--) {
      const backend = list[place];
      if (weight[backend] === 0 || up[backend] === 0) continue;
      const its = active[backend] * ACTIVE_WORTH + inactive[backend];
      if (least !== NO_BACKEND && its >= load) continue;
      least = backend;
      load = its;
    }
    return least;
  }

  return { pick, ...STATELESS };
}

/** For a scheduler that keeps nothing. */
export const STATELESS = {
  opened() {},
  closed() {},
  added() {},
  removed() {},
  weighed() {},
  arranged() {},
  turned() {},
} as const;
