/**
 * `maglev`: consistent hashing of client address and port by a table, after Eisenbud et al., "Maglev: A Fast and Reliable
 * Software Network Load Balancer", NSDI 2016, section 3.4.
 *
 * Everything depends on addresses, ports and weights of the backends alone, and on constants: not on their order, their
 * numbers, or what was there before. So each node that has the same backends gives the same answer, and there is no seed.
 * How the table is filled, and how little of it changes, is in maglev-table.ts.
 *
 * The hash is linear on purpose. Clients come with addresses and ports that are consecutive, or nearly; multiples of a
 * suitable number lay those out at nearly equal distances, so that 10,000 of them are spread over 10 backends more evenly
 * than by chance. It resists nobody who chooses his ports, which a hash that every node knows cannot either.
 *
 * Who is down stays in the table, and his clients alone go elsewhere, each on a way of its own. A weight of 0, as a
 * backend that is removed, leaves the table.
 */
import { type Backends, NO_BACKEND } from '../backends.js';
import type { Scheduler } from './index.js';
import { mix, TableBuilder } from './maglev-table.js';
import { hostOrder } from './sh.js';

/**
 * The best of some ten thousand: 10,000 clients whose addresses or ports grow by 1, 2, 4, 256 or 65,536, or both alike,
 * or that are a grid of both, lie more evenly in 12,288 cells than by chance (variance of what a cell gets at most 0.34,
 * by chance 0.81). The golden ratio is fine for 1 and worse than chance for 256.
 */
const ADDRESS_STEP = 0x094e1805;
const PORT_STEP = 0x6fc7e649;
/** Places of the table that are tried before the backends are gone through one after another. */
const TRIES = 16;

export interface Maglev extends Scheduler {
  /** See Schedulers. */
  readonly rebuild: (steps: number) => boolean;
}

export function createMaglev(backends: Backends): Maglev {
  const { services, lists, weight, up, available, service: owner } = backends;
  /** Of each service: the table, whose cells are places in `members`; those; and cells for one of a hash. */
  const tables: Uint16Array[] = Array.from({ length: services }, () => NO_TABLE);
  const members: Int32Array[] = Array.from({ length: services }, () => NO_MEMBERS);
  const scales = new Float64Array(services);
  /** Services whose table is stale, in the order in which they became so, each once. */
  const stale = new Set<number>();
  let builder: TableBuilder | undefined;

  function pick(service: number, client: number, port: number): number {
    if (available[service] === 0) return NO_BACKEND;
    const hash = clientHash(client, port);
    const table = tables[service];
    if (table.length === 0) return walk(service, lists[service], hash);
    const backend = members[service][table[Math.floor((hash >>> 0) * scales[service])]];
    if (owner[backend] === service && weight[backend] > 0 && up[backend] === 1) return backend;
    return elsewhere(service, table, hash);
  }

  /** For whose backend may not be chosen: further cells, at distances of the client's own. */
  function elsewhere(service: number, table: Uint16Array, hash: number): number {
    const candidates = members[service];
    const other = mix(hash) >>> 0;
    const distance = (other % table.length) | 1;
    let cell = Math.floor((hash >>> 0) * scales[service]);
    for (let i = 0; i < TRIES; i++) {
      cell = (cell + distance) % table.length;
      const backend = candidates[table[cell]];
      if (owner[backend] === service && weight[backend] > 0 && up[backend] === 1) return backend;
    }
    const backend = walk(service, candidates, other);
    return backend === NO_BACKEND ? walk(service, lists[service], other) : backend;
  }

  function walk(service: number, candidates: Int32Array, hash: number): number {
    const { length } = candidates;
    let place = length === 0 ? 0 : (hash >>> 0) % length;
    for (let i = 0; i < length; i++) {
      const backend = candidates[place];
      if (owner[backend] === service && weight[backend] > 0 && up[backend] === 1) return backend;
      place = place + 1 === length ? 0 : place + 1;
    }
    return NO_BACKEND;
  }

  function changed(service: number): void {
    if (builder?.service === service) builder = undefined;
    stale.add(service);
  }

  function rebuild(steps: number): boolean {
    for (let left = steps; left > 0 && stale.size > 0; ) {
      const [service] = stale;
      builder ??= new TableBuilder(backends, service);
      left -= builder.work(left);
      if (!builder.done) break;
      tables[service] = builder.table;
      members[service] = builder.members;
      scales[service] = builder.table.length / 2 ** 32;
      builder = undefined;
      stale.delete(service);
    }
    return stale.size > 0;
  }

  return {
    pick,
    rebuild,
    opened: changed,
    closed(service) {
      if (builder?.service === service) builder = undefined;
      stale.delete(service);
      tables[service] = NO_TABLE;
      members[service] = NO_MEMBERS;
    },
    added: changed,
    removed: changed,
    weighed: changed,
    arranged() {},
    turned() {},
  };
}

const NO_TABLE = new Uint16Array(0);
const NO_MEMBERS = new Int32Array(0);

function clientHash(client: number, port: number): number {
  const hostPort = ((port & 0xff) << 8) | (port >>> 8);
  return (Math.imul(hostOrder(client), ADDRESS_STEP) + Math.imul(hostPort, PORT_STEP)) | 0;
}
