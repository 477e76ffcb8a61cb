/**
 * Which backend a new flow of a service gets, and what flows count for.
 *
 * Affinity is a flow of its own kind in the same table: from the client to the virtual address, without ports, with the
 * backend that the client had last. It lives as long as the affinity does after the client's last new flow.
 */
import type { Context } from '../../graph.js';
import { NO_BACKEND } from '../../tables/backends.js';
import { FIN_BOTH, NEW_IN, SYN_IN, type Timeouts, TRANSITORY, TWO_SIDED } from '../../tables/connection.js';
import {
  EXPIRY,
  FLOW_SHIFT,
  type Flows,
  flowKeyHash,
  INSIDE,
  NO_FLOW,
  OUT_KEY,
  OWNER_SHIFT,
  OWNERS,
  STATE,
  STATE_MASK,
} from '../../tables/flows.js';
import { NOTHING, type Services } from '../../tables/services.js';
import { PROTOCOL_TCP } from '../../wire/ip.js';
import { RST_LE, SYN_LE } from '../../wire/tcp.js';

export const BALANCE_REASONS = ['no-flow', 'no-service', 'no-backend', 'conflict', 'table-full'] as const;
export const [NO_SUCH_FLOW, NO_SERVICE_THERE, WITHOUT_BACKEND, CONFLICT, TABLE_FULL] = BALANCE_REASONS.keys();

/** Of two flows that mirror each other, the one that counts for nothing: bit of STATE. */
const MIRROR = 0x80;
/** Backends that are tried for a client that has a flow with the same ends already. */
const MOST_TRIED = 4;
/** Protocol of flows that are an affinity. */
const AFFINITY = 0;

export interface ChooserOptions {
  readonly flows: Flows;
  readonly owner: number;
  readonly services: Services;
  readonly timeouts: Timeouts;
  /** Called for each flow that has to make room. */
  readonly evicted: () => void;
}

export interface Chooser {
  /**
   * Makes the flow of a packet to a service.
   * @param key of its domain, owner and protocol. @param flags TCP's; SYN_LE of UDP.
   * @returns its number, or -1 - reason.
   */
  make(mark: number, own: number, remote: number, pair: number, key: number, flags: number): number;
  /** Takes a flow out of what is counted. */
  leave(flow: number): void;
  /** Whether an entry is one of the balancer's that packets have, and a connection of TCP. */
  isOurs(flow: number): boolean;
  isTcp(flow: number): boolean;
}

/** Whether a flow in a state counts as active: opening or open, not closing. */
export function isActive(state: number): boolean {
  return state !== FIN_BOTH && state !== TRANSITORY;
}

export function createChooser(context: Context, options: ChooserOptions): Chooser {
  const { flows, owner, services, timeouts, evicted } = options;
  const { words, seed, find } = flows;
  const { backends, schedulers, affinity } = services;
  const { address, active, inactive, flows: counted, weight, up, service: serviceOf } = backends;
  const { pick } = schedulers;

  function make(mark: number, own: number, remote: number, pair: number, key: number, flags: number): number {
    const protocol = key & 0xff;
    const port = pair & 0xffff;
    const domain = (key >>> 16) - 1;
    const entry = services.find(domain, own, protocol, port);
    const marked = mark === 0 ? NOTHING : services.marked(mark);
    const service = marked !== NOTHING ? marked : entry === NOTHING ? NOTHING : services.serviceAt(entry);
    if (service === NOTHING) return -1 - NO_SERVICE_THERE;
    if (protocol === PROTOCOL_TCP && (flags & (RST_LE | SYN_LE)) !== SYN_LE) return -1 - NO_SUCH_FLOW;
    const target = entry === NOTHING ? port : services.targetAt(entry, port);
    const outPorts = (pair & ~0xffff) | target;
    const backend = choose(service, own, remote, pair, outPorts, key);
    if (backend < 0) return backend;
    const state = protocol === PROTOCOL_TCP ? SYN_IN : NEW_IN;
    const inside = address[backend];
    const flow = enter(inside, remote, outPorts, key, own, pair, state | ((backend + 1) << 8));
    if (flow === NO_FLOW) return -1 - TABLE_FULL;
    active[backend]++;
    counted[backend]++;
    if (affinity[service] > 0) remember(service, own, remote, key, backend);
    if (inside !== remote) return flow;
    // What the backend answers to the virtual address goes to itself, from there.
    const back = (pair >>> 16) | (target << 16);
    if (enter(inside, inside, back, key, own, back, state | MIRROR | ((backend + 1) << 8)) !== NO_FLOW)
      return flow;
    flows.end(flow);
    return -1 - TABLE_FULL;
  }

  /** A backend that has no flow with these ends; or -1 - reason. */
  function choose(
    service: number,
    own: number,
    remote: number,
    pair: number,
    outPorts: number,
    key: number,
  ): number {
    const sticky = affinity[service] > 0;
    if (sticky) {
      const before = remembered(service, own, remote, key);
      if (before !== NO_BACKEND && isFree(before, remote, outPorts, key)) return before;
    }
    const port = sticky ? 0 : pair >>> 16;
    for (let i = 0; i < MOST_TRIED; i++) {
      const backend = pick(service, remote, port);
      if (backend === NO_BACKEND) return -1 - WITHOUT_BACKEND;
      if (isFree(backend, remote, outPorts, key)) return backend;
    }
    return -1 - CONFLICT;
  }

  function isFree(backend: number, remote: number, outPorts: number, key: number): boolean {
    const own = address[backend];
    return find(flowKeyHash(seed, own, remote, outPorts, key), own, remote, outPorts, key) === NO_FLOW;
  }

  function enter(
    inside: number,
    remote: number,
    outPorts: number,
    key: number,
    own: number,
    pair: number,
    state: number,
  ): number {
    const flow = flows.obtain(inside, remote, outPorts, key, own, pair, evicted);
    if (flow === NO_FLOW) return NO_FLOW;
    words[(flow << FLOW_SHIFT) + STATE] = state;
    const silence = (state & STATE_MASK) === SYN_IN ? timeouts.opening : timeouts.udp;
    flows.setExpiry(flow, context.seconds + silence);
    return flow;
  }

  /** The backend that a client had, if it may have flows still. */
  function remembered(service: number, own: number, remote: number, key: number): number {
    const flow = affinityOf(service, own, remote, key);
    if (flow === NO_FLOW) return NO_BACKEND;
    const backend = (words[(flow << FLOW_SHIFT) + STATE] >>> 8) - 1;
    return serviceOf[backend] === service && up[backend] === 1 && weight[backend] > 0 ? backend : NO_BACKEND;
  }

  function affinityOf(service: number, own: number, remote: number, key: number): number {
    const about = (key & ~0xff) | AFFINITY;
    return find(flowKeyHash(seed, own, remote, service, about), own, remote, service, about) >>> 1;
  }

  function remember(service: number, own: number, remote: number, key: number, backend: number): void {
    const until = context.seconds + affinity[service];
    const state = TWO_SIDED | MIRROR | ((backend + 1) << 8);
    let flow = affinityOf(service, own, remote, key);
    if (flow !== NO_FLOW && words[(flow << FLOW_SHIFT) + INSIDE] !== address[backend]) {
      flows.end(flow);
      flow = NO_FLOW;
    }
    if (flow === NO_FLOW) {
      const about = (key & ~0xff) | AFFINITY;
      // Without room for it the client is scheduled anew next time.
      flow = flows.obtain(address[backend], remote, service, about, own, service, evicted);
      if (flow === NO_FLOW) return;
      flows.setExpiry(flow, until);
    }
    words[(flow << FLOW_SHIFT) + STATE] = state;
    words[(flow << FLOW_SHIFT) + EXPIRY] = until;
  }

  function leave(flow: number): void {
    const state = words[(flow << FLOW_SHIFT) + STATE];
    if ((state & MIRROR) !== 0) return;
    const counts = isActive(state & STATE_MASK) ? active : inactive;
    counts[(state >>> 8) - 1]--;
  }

  function isOurs(flow: number): boolean {
    const key = words[(flow << FLOW_SHIFT) + OUT_KEY];
    return key !== 0 && ((key >>> OWNER_SHIFT) & (OWNERS - 1)) === owner && (key & 0xff) !== AFFINITY;
  }

  return {
    make,
    leave,
    isOurs,
    isTcp: (flow) => (words[(flow << FLOW_SHIFT) + OUT_KEY] & 0xff) === PROTOCOL_TCP,
  };
}
