/**
 * `sh`: by the client's address alone, so that a client keeps its backend.
 *
 * As IPVS does it (net/netfilter/ipvs/ip_vs_sh.c): a table of 256 places, filled with the backends, newest first, each as
 * many times as it weighs and then the next, over and over; Knuth's multiplicative hash of the address is the place. When
 * that one may not be chosen, the search goes on as with IPVS's `sh-fallback`. The table depends on weights and order,
 * not on health: who goes down moves nobody but its own clients. A change of list or weights moves most of them; where
 * that matters, `maglev` is the one to use. Backends beyond the
 * 256th are not in the table, nor are those behind a weight of 256.
 */
import { type Backends, NO_BACKEND } from '../backends.js';
import type { Scheduler } from './index.js';

const PLACES = 256;
/** Upper bits of the product that are the place. */
const SHIFT = 24;
const GOLDEN_RATIO = 0x61c88647;

export function createSh({ services, lists, weight, up, available }: Backends): Scheduler {
  const tables: Int32Array[] = Array.from({ length: services }, () => EMPTY);

  /** @param client word of the address; of IPv6 the exclusive or of its four. */
  function pick(service: number, client: number): number {
    if (available[service] === 0) return NO_BACKEND;
    const table = tables[service];
    const place = Math.imul(hostOrder(client), GOLDEN_RATIO) >>> SHIFT;
    const backend = table[place];
    if (weight[backend] > 0 && up[backend] === 1) return backend;
    for (let i = 0; i < PLACES; i++) {
      const other = table[(2 * place + i) % PLACES];
      if (weight[other] > 0 && up[other] === 1) return other;
    }
    // The table may be full of one that is down, and IPVS then has none.
    for (const other of lists[service]) if (weight[other] > 0 && up[other] === 1) return other;
    return NO_BACKEND;
  }

  function fill(service: number): void {
    const list = lists[service];
    if (tables[service].length === 0) tables[service] = new Int32Array(PLACES);
    const table = tables[service];
    let place = list.length - 1;
    let times = 0;
    for (let i = 0; i < PLACES && place >= 0; i++) {
      table[i] = list[place];
      if (++times < weight[list[place]]) continue;
      place = place === 0 ? list.length - 1 : place - 1;
      times = 0;
    }
  }

  return {
    pick,
    opened: fill,
    closed(service) {
      tables[service] = EMPTY;
    },
    added: fill,
    removed: fill,
    weighed: fill,
    arranged: fill,
    turned() {},
  };
}

const EMPTY = new Int32Array(0);

/** The number that a word of an address is. */
export function hostOrder(word: number): number {
  return (word << 24) | ((word & 0xff00) << 8) | ((word >>> 8) & 0xff00) | (word >>> 24);
}
