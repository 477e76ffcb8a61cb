/** `wlc`: who has the fewest flows for its weight. What counts, and who of equals, is as for `lc`. */
import { type Backends, NO_BACKEND } from '../backends.js';
import type { Scheduler } from './index.js';
import { ACTIVE_WORTH, STATELESS } from './lc.js';

export function createWlc({ lists, weight, up, active, inactive }: Backends): Scheduler {
  function pick(service: number): number {
    const list = lists[service];
    let least = NO_BACKEND;
    let load = 0;
    for (let place = list.length - 1; place >= 0; place--) {
      const backend = list[place];
      if (weight[backend] === 0 || up[backend] === 0) continue;
      const its = active[backend] * ACTIVE_WORTH + inactive[backend];
      // load / weight[least] <= its / weight[backend], without dividing; exact, for both sides are below 2^53.
      if (least !== NO_BACKEND && load * weight[backend] <= its * weight[least]) continue;
      least = backend;
      load = its;
    }
    return least;
  }

  return { pick, ...STATELESS };
}
