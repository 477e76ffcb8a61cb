/**
 * The schedulers behind one function. What each chooses, and whether IPVS would choose the same: docs/services.md.
 */
import {
  type BackendObserver,
  type Backends,
  LC,
  MAGLEV,
  NO_BACKEND,
  RR,
  SH,
  WLC,
  WRR,
} from '../backends.js';
import { createLc } from './lc.js';
import { createMaglev } from './maglev.js';
import { createRr } from './rr.js';
import { createSh } from './sh.js';
import { createWlc } from './wlc.js';
import { createWrr } from './wrr.js';

export interface Scheduler extends BackendObserver {
  /**
   * Chooses a backend for a new flow, and counts nothing.
   * @param client word of the client's address as a little-endian load gives it; of IPv6 the exclusive or of its four.
   * @param port the client's, as a little-endian load gives it; 0 where a client is to keep its backend.
   * @returns NO_BACKEND when there is none that is up and has a weight.
   */
  readonly pick: (service: number, client: number, port: number) => number;
}

export interface Schedulers {
  readonly pick: Scheduler['pick'];
  /**
   * Between breaths: goes on with tables that changes made stale, about so many steps of some nanoseconds each. Until a
   * table is done the one before is in use, which still never chooses who is gone, down or of no weight.
   * @returns whether there is more to do.
   */
  readonly rebuild: (steps: number) => boolean;
}

/** Makes the schedulers of these backends, of which there must be none yet. */
export function createSchedulers(backends: Backends): Schedulers {
  const { scheduler } = backends;
  const maglev = createMaglev(backends);
  // In the order of SCHEDULERS.
  const all: readonly Scheduler[] = [
    createRr(backends),
    createWrr(backends),
    createLc(backends),
    createWlc(backends),
    createSh(backends),
    maglev,
  ];
  const [{ pick: rr }, { pick: wrr }, { pick: lc }, { pick: wlc }, { pick: sh }] = all;
  const { pick: maglevPick } = maglev;
  backends.observe({
    opened: (service) => all[scheduler[service]].opened(service),
    closed: (service) => all[scheduler[service]].closed(service),
    added: (service) => all[scheduler[service]].added(service),
    removed: (service, place) => all[scheduler[service]].removed(service, place),
    weighed: (service) => all[scheduler[service]].weighed(service),
    arranged: (service, before) => all[scheduler[service]].arranged(service, before),
    turned: (service) => all[scheduler[service]].turned(service),
  });

  // A switch over numbers rather than a call through an array: each call site has one target, and V8 inlines it.
  function pick(service: number, client: number, port: number): number {
    switch (scheduler[service]) {
      case RR:
        return rr(service, client, port);
      case WRR:
        return wrr(service, client, port);
      case LC:
        return lc(service, client, port);
      case WLC:
        return wlc(service, client, port);
      case SH:
        return sh(service, client, port);
      case MAGLEV:
        return maglevPick(service, client, port);
      default:
        return NO_BACKEND;
    }
  }

  return { pick, rebuild: maglev.rebuild };
}
