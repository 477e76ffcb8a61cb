/**
 * `rr`: one after another, whatever their weights; a weight of 0 and what is down are passed over.
 *
 * The order is that of IPVS (net/netfilter/ipvs/ip_vs_rr.c and ip_vs_ctl.c): a new backend goes to the front, so that
 * the one that was added last comes first, and the round begins before the first.
 */
import { type Backends, NO_BACKEND } from '../backends.js';
import type { Scheduler } from './index.js';

export function createRr({ services, lists, weight, up, available }: Backends): Scheduler {
  /** Place of the one chosen last. The front of the round is the end of the list, and before it is the list's length. */
  const cursor = new Int32Array(services);

  function pick(service: number): number {
    if (available[service] === 0) return NO_BACKEND;
    const list = lists[service];
    for (let place = cursor[service]; ; place = list.length) {
      while (--place >= 0) {
        const backend = list[place];
        if (weight[backend] === 0 || up[backend] === 0) continue;
        cursor[service] = place;
        return backend;
      }
    }
  }

  return {
    pick,
    opened(service) {
      cursor[service] = lists[service].length;
    },
    closed() {},
    added(service) {
      // Before the first stays before the first.
      if (cursor[service] === lists[service].length - 1) cursor[service]++;
    },
    removed(service, place) {
      // When the one chosen last goes, its successor is next all the same: its place is now its predecessor's.
      if (cursor[service] > place) cursor[service]--;
    },
    weighed() {},
    arranged(service, before) {
      const last = cursor[service];
      if (last < before.length) cursor[service] = lists[service].indexOf(before[last]);
    },
    turned() {},
  };
}
