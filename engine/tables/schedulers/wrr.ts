/**
 * `wrr`: one after another in proportion to their weights, interleaved.
 *
 * As IPVS does it (net/netfilter/ipvs/ip_vs_wrr.c): a pass goes through the list, newest first, and chooses who weighs
 * at least what the pass demands. The first pass demands the most, each later one less by the greatest common divisor of
 * all weights, the last one 1. A change of the list or of a weight begins at the front, with a demand near to what it
 * was. What is down is passed over and weighs what it weighed.
 */
import { type Backends, NO_BACKEND } from '../backends.js';
import type { Scheduler } from './index.js';

export function createWrr({ services, lists, weight, up, available }: Backends): Scheduler {
  /** As of `rr`. */
  const cursor = new Int32Array(services);
  /** What the pass demands, what the first pass does, and by how much each demands less. */
  const demand = new Int32Array(services);
  const first = new Int32Array(services);
  const step = new Int32Array(services);
  /** Weight of the heaviest that may be chosen: passes that demand more would find nobody. */
  const heaviest = new Int32Array(services);

  function nextDemand(service: number, last: number): number {
    const decrease = step[service];
    const next = last > decrease ? last - decrease : first[service];
    const excess = next - heaviest[service];
    return excess > 0 ? next - Math.ceil(excess / decrease) * decrease : next;
  }

  function pick(service: number): number {
    if (available[service] === 0) return NO_BACKEND;
    const list = lists[service];
    let least = demand[service];
    for (let place = cursor[service]; ; place = list.length) {
      while (--place >= 0) {
        const backend = list[place];
        if (weight[backend] < least || up[backend] === 0) continue;
        cursor[service] = place;
        demand[service] = least;
        return backend;
      }
      least = nextDemand(service, least);
    }
  }

  function turned(service: number): void {
    let most = 0;
    for (const backend of lists[service]) if (up[backend] === 1) most = Math.max(most, weight[backend]);
    heaviest[service] = most;
  }

  function measure(service: number): void {
    let divisor = 0;
    let most = 0;
    for (const backend of lists[service]) {
      divisor = greatestCommonDivisor(weight[backend], divisor);
      most = Math.max(most, weight[backend]);
    }
    step[service] = Math.max(divisor, 1);
    first[service] = most - (step[service] - 1);
    cursor[service] = lists[service].length;
    turned(service);
  }

  function changed(service: number): void {
    measure(service);
    const decrease = step[service];
    const last = demand[service];
    if (last > first[service] || last === 0) demand[service] = first[service];
    else if (decrease > 1) demand[service] = Math.trunc(last / decrease) * decrease + 1;
  }

  return {
    pick,
    opened(service) {
      measure(service);
      demand[service] = first[service];
    },
    closed() {},
    added: changed,
    removed: changed,
    weighed: changed,
    arranged: changed,
    turned,
  };
}

/** Of 0 and n it is n. */
function greatestCommonDivisor(a: number, b: number): number {
  while (b !== 0) [a, b] = [b, a % b];
  return a;
}
