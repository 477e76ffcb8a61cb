/**
 * Which backend a new flow of a service gets, and what flows count for.
 *
 * Affinity is a flow of its own kind in the same table: from the client to the service's virtual address, whatever led to
 * it, without ports, with the backend that the client had last. It lives as long as the affinity does after the client's last new flow.
 */
import type { Context } from '../../graph.js';
import type { Addresses6 } from '../../tables/addresses6.js';
import { NO_BACKEND } from '../../tables/backends.js';
import {
  ESTABLISHED,
  isClosed,
  isOpening,
  isState,
  NEW_IN,
  NEW_OUT,
  SYN_IN,
  type Timeouts,
  TWO_SIDED,
} from '../../tables/connection.js';
import { CLOSED } from '../../tables/flow-events.js';
import {
  BALANCER_OWNER,
  EXPIRY,
  EXTERNAL,
  FLOW_SHIFT,
  type Flows,
  flowKeyHash,
  IN_DOMAIN,
  IN_PORTS,
  INSIDE,
  IPV6_FLOW,
  MESH_OWNER,
  NEXT_OF_PORT,
  NO_FLOW,
  OUT_KEY,
  OUT_PORTS,
  OWNER_SHIFT,
  REMOTE_END,
  STATE,
  STATE_MASK,
} from '../../tables/flows.js';
import { NOTHING, type Services } from '../../tables/services.js';
import { PROTOCOL_TCP, PROTOCOL_UDP } from '../../wire/ip.js';
import type { Balancing } from '../nat/tables.js';

export const BALANCE_REASONS = ['no-flow', 'no-service', 'no-backend', 'conflict', 'table-full'] as const;
export const [NO_SUCH_FLOW, NO_SERVICE_THERE, WITHOUT_BACKEND, CONFLICT, TABLE_FULL] = BALANCE_REASONS.keys();

/** Of two flows that mirror each other, the one that counts for nothing: bit of STATE. */
export const MIRROR = 0x80;
/** Word of a connection: number of its service, and 1. Packets do not need it; who takes over the table does. */
const SERVICE = NEXT_OF_PORT;
/** Further backends that are tried for a client that has a flow with the same ends already. */
const MOST_TRIED = 16;
/** Protocol of flows that are an affinity. */
const AFFINITY = 0;

export interface ChooserOptions {
  readonly flows: Flows;
  readonly services: Services;
  readonly timeouts: Timeouts;
  /** Called for each flow that has to make room. */
  readonly evicted: () => void;
  /** Numbers of IPv6 addresses, for flows of IPv6: each holds its three. */
  readonly addresses?: Addresses6;
}

export interface Chooser extends Omit<Balancing, 'expired'> {
  /**
   * Makes the flow of a packet to a service.
   * @param key of its domain, owner and protocol. @param flags TCP's; SYN_LE of UDP.
   * @returns its number, or -1 - reason.
   */
  make(mark: number, own: number, remote: number, pair: number, key: number, flags: number): number;
  /** Whether an address is that of a backend of the service of a mark, in the domain or IPv6 space. */
  isBackend(space: number, mark: number, address: number): boolean;
  /** Whether a flow is a connection of TCP. */
  isTcp(flow: number): boolean;
  /** Gives up what a flow that `make` made uses. */
  forget(flow: number): void;
  /** Takes over a flow that another process left, see FlowOwner. */
  adopt(flow: number): boolean;
}

/** Words of a flow that are addresses. */
const HELD = [INSIDE, REMOTE_END, EXTERNAL] as const;

/** What keys of affinities have in common, of a domain and a family. */
function aboutClients(key: number): number {
  return (key & (~0xffff | IPV6_FLOW)) | (BALANCER_OWNER << OWNER_SHIFT) | IN_DOMAIN;
}

/** What schedulers take for a client of IPv6. */
function wordOfClient({ words }: Addresses6, number: number): number {
  const at = number * 4;
  return words[at] ^ words[at + 1] ^ words[at + 2] ^ words[at + 3];
}

/** Whether a flow in a state counts as active, as IPVS counts: TCP once it is established, all else always. */
function isActive(state: number): boolean {
  return state === ESTABLISHED || state === NEW_IN || state === TWO_SIDED;
}

export function createChooser(context: Context, options: ChooserOptions): Chooser {
  const { flows, services, timeouts, evicted, addresses } = options;
  const { words, seed, find } = flows;
  const { backends, schedulers, affinity, idle, virtual } = services;
  const { address, active, inactive, flows: counted, weight, up, service: serviceOf } = backends;
  const { pick } = schedulers;
  /** Of lists of backends, which are never changed, their numbers by address. */
  const byAddress = new WeakMap<Int32Array, Map<number, number>>();

  function make(mark: number, own: number, remote: number, pair: number, key: number, flags: number): number {
    const protocol = key & 0xff;
    const port = pair & 0xffff;
    const space = ((key >>> 16) - 1) | ((key & IPV6_FLOW) << 8);
    const entry = services.find(space, own, protocol, port);
    const marked = mark === 0 ? NOTHING : services.marked(space, mark);
    const service = marked !== NOTHING ? marked : entry === NOTHING ? NOTHING : services.serviceAt(entry);
    if (protocol === PROTOCOL_TCP && !isOpening(flags)) return -1 - NO_SUCH_FLOW;
    if (service === NOTHING) return -1 - NO_SERVICE_THERE;
    // The port of another service's address is none of this one's.
    const isOwn = entry !== NOTHING && services.serviceAt(entry) === service;
    const target = isOwn ? services.targetAt(entry, port) : port;
    const outPorts = (pair & ~0xffff) | target;
    const backend = choose(service, remote, outPorts, key);
    if (backend < 0) return backend;
    const state = protocol === PROTOCOL_TCP ? SYN_IN : NEW_IN;
    const inside = address[backend];
    // What the backend answers to itself comes to the virtual address, with these ports.
    const back = (pair >>> 16) | (target << 16);
    // One that mirrors another is what is left of a connection of which the other flow made room.
    if (inside === remote && !isVacant(own, remote, back, key, MIRROR)) return -1 - CONFLICT;
    // First, for it may cost another flow its place.
    if (affinity[service] > 0) remember(service, remote, key, backend);
    const flow = enter(inside, remote, outPorts, key, own, pair, state | ((backend + 1) << 8));
    if (flow === NO_FLOW) return -1 - TABLE_FULL;
    count(flow, backend);
    if (inside !== remote) return flow;
    const ports = (pair >>> 16) | (port << 16);
    const other = enter(inside, inside, ports, key, own, back, state | MIRROR | ((backend + 1) << 8));
    if (other !== NO_FLOW && other !== flow) return flow;
    // No room, or that of the first one.
    flows.end(flow);
    return -1 - TABLE_FULL;
  }

  /** Counts a new flow for its backend. */
  function count(flow: number, backend: number): void {
    const counts = isActive(words[(flow << FLOW_SHIFT) + STATE] & STATE_MASK) ? active : inactive;
    counts[backend]++;
    counted[backend]++;
  }

  /** A backend that has no flow with these ends; or -1 - reason. */
  function choose(service: number, remote: number, outPorts: number, key: number): number {
    const sticky = affinity[service] > 0;
    if (sticky) {
      const before = remembered(service, remote, aboutClients(key));
      if (before !== NO_BACKEND && isFree(before, remote, outPorts, key)) return before;
    }
    const port = sticky ? 0 : outPorts >>> 16;
    const client = addresses === undefined ? remote : wordOfClient(addresses, remote);
    const backend = pick(service, client, port);
    if (backend === NO_BACKEND) return -1 - WITHOUT_BACKEND;
    return isFree(backend, remote, outPorts, key) ? backend : another(backend, remote, outPorts, key);
  }

  /** The next one of the service, in the order of `rr`: most schedulers choose the same for a client again. */
  function another(taken: number, remote: number, outPorts: number, key: number): number {
    const list = backends.lists[serviceOf[taken]];
    const { length } = list;
    const first = list.indexOf(taken);
    for (let i = 1; i < length && i <= MOST_TRIED; i++) {
      const backend = list[(first - i + length) % length];
      if (weight[backend] === 0 || up[backend] === 0) continue;
      if (isFree(backend, remote, outPorts, key)) return backend;
    }
    return -1 - CONFLICT;
  }

  /** Whether nobody else has these ends with a backend: neither as `key` says, nor by another node. */
  function isFree(backend: number, remote: number, outPorts: number, key: number): boolean {
    const own = address[backend];
    const mesh = (key & ~0xfe00) | (MESH_OWNER << OWNER_SHIFT) | IN_DOMAIN;
    return isVacant(own, remote, outPorts, key, 0) && isVacant(own, remote, outPorts, mesh, 0);
  }

  /** Whether no flow has these ends. One that is over goes, and so does one with any of the bits `also` in its state. */
  function isVacant(own: number, remote: number, ports: number, key: number, also: number): boolean {
    const ref = find(flowKeyHash(seed, own, remote, ports, key), own, remote, ports, key);
    if (ref === NO_FLOW) return true;
    const state = words[((ref >>> 1) << FLOW_SHIFT) + STATE];
    if (!isClosed(state & STATE_MASK) && (state & also) === 0) return false;
    flows.end(ref >>> 1, CLOSED);
    return true;
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
    hold(flow);
    words[(flow << FLOW_SHIFT) + SERVICE] = serviceOf[(state >>> 8) - 1] + 1;
    words[(flow << FLOW_SHIFT) + STATE] = state;
    const silence = (state & STATE_MASK) === SYN_IN ? timeouts.opening : timeouts.udp;
    flows.setExpiry(flow, context.seconds + silence);
    return flow;
  }

  /** Holds the addresses of a new flow, which somebody holds as long as it is made. */
  function hold(flow: number): void {
    if (addresses === undefined) return;
    for (const word of HELD) addresses.keep(words[(flow << FLOW_SHIFT) + word]);
  }

  function forget(flow: number): void {
    leave(flow);
    if (addresses === undefined) return;
    for (const word of HELD) addresses.release(words[(flow << FLOW_SHIFT) + word]);
  }

  /** The backend that a client had, if it may have flows still. */
  function remembered(service: number, remote: number, key: number): number {
    const flow = affinityOf(service, remote, key);
    if (flow === NO_FLOW) return NO_BACKEND;
    const backend = (words[(flow << FLOW_SHIFT) + STATE] >>> 8) - 1;
    return serviceOf[backend] === service && up[backend] === 1 && weight[backend] > 0 ? backend : NO_BACKEND;
  }

  function affinityOf(service: number, remote: number, key: number): number {
    const own = virtual[service];
    const about = (key & ~0xff) | AFFINITY;
    return find(flowKeyHash(seed, own, remote, service, about), own, remote, service, about) >>> 1;
  }

  function remember(service: number, remote: number, key: number, backend: number): void {
    const until = context.seconds + affinity[service];
    // Worth less than what has two sides: a flood of clients must not put that out.
    const state = NEW_OUT | MIRROR | ((backend + 1) << 8);
    let flow = affinityOf(service, remote, key);
    if (flow !== NO_FLOW && words[(flow << FLOW_SHIFT) + INSIDE] !== address[backend]) {
      flows.end(flow);
      flow = NO_FLOW;
    }
    if (flow === NO_FLOW) {
      const about = (key & ~0xff) | AFFINITY;
      // Without room for it the client is scheduled anew next time.
      const own = virtual[service];
      flow = flows.obtain(address[backend], remote, service, about, own, service, evicted);
      if (flow === NO_FLOW) return;
      hold(flow);
      flows.setExpiry(flow, until);
    }
    words[(flow << FLOW_SHIFT) + STATE] = state;
    words[(flow << FLOW_SHIFT) + EXPIRY] = until;
  }

  /** Counts a connection that turns from a state into another. @param refused whether the backend has reset it. */
  function turned(flow: number, before: number, after: number, refused: boolean): void {
    const backend = (words[(flow << FLOW_SHIFT) + STATE] >>> 8) - 1;
    // Neither accepted nor left to hang: whoever looks after its health may want to know.
    if (before === SYN_IN && after === SYN_IN) judge(flow << FLOW_SHIFT, backend, refused);
    if (isActive(before) === isActive(after) || (words[(flow << FLOW_SHIFT) + STATE] & MIRROR) !== 0) return;
    const change = isActive(after) ? 1 : -1;
    active[backend] += change;
    inactive[backend] -= change;
  }

  /** A connection goes on as one that is not accepted. */
  function judge(at: number, backend: number, refused: boolean): void {
    const port = words[at + OUT_PORTS] & 0xffff;
    if (refused) services.failed(backend, port, true);
    // A SYN that comes again after seconds is one that the backend did not answer.
    else if (context.seconds - words[at + EXPIRY] + timeouts.opening >= 2) services.suspect(backend, port);
  }

  function backendFor(service: number, remote: number, outPorts: number, key: number): number {
    const about = aboutClients(key);
    const backend = choose(service, remote, outPorts, key);
    if (backend >= 0 && affinity[service] > 0) remember(service, remote, about, backend);
    return backend;
  }

  function backendAt(service: number, wanted: number): number {
    const list = backends.lists[service];
    let known = byAddress.get(list);
    if (known === undefined) {
      known = new Map(Array.from(list, (backend) => [address[backend], backend]));
      byAddress.set(list, known);
    }
    return known.get(wanted) ?? NO_BACKEND;
  }

  function isBackend(space: number, mark: number, wanted: number): boolean {
    const service = services.marked(space, mark);
    return service !== NOTHING && backendAt(service, wanted) !== NO_BACKEND;
  }

  /** Numbers of services are what they were, those of backends are not: they are found again by their addresses. */
  function adopt(flow: number): boolean {
    const at = flow << FLOW_SHIFT;
    const state = words[at + STATE];
    const key = words[at + OUT_KEY];
    const sticky = (key & 0xff) === AFFINITY;
    const service = sticky ? words[at + OUT_PORTS] : words[at + SERVICE] - 1;
    // A number that no service can have is of no domain.
    if (services.domain[service] !== (key >>> 16) - 1) return false;
    const backend = backendAt(service, words[at + INSIDE]);
    if (backend === NO_BACKEND || services.isIpv6(backend) !== (addresses !== undefined)) return false;
    if (!(sticky ? isAffinity(at, service) : isConnection(at))) return false;
    words[at + STATE] = (state & 0xff) | ((backend + 1) << 8);
    hold(flow);
    if ((state & MIRROR) === 0) count(flow, backend);
    return true;
  }

  function isAffinity(at: number, service: number): boolean {
    const known = words[at + IN_PORTS] === service && (words[at + STATE] & 0xff) === (NEW_OUT | MIRROR);
    return known && affinity[service] > 0;
  }

  function isConnection(at: number): boolean {
    const protocol = words[at + OUT_KEY] & 0xff;
    const ports = words[at + OUT_PORTS] ^ words[at + IN_PORTS];
    // The client's is the same on both sides, but for a caller that is its own backend.
    if ((ports & ~0xffff) !== 0 && words[at + INSIDE] !== words[at + REMOTE_END]) return false;
    return (
      (protocol === PROTOCOL_TCP || protocol === PROTOCOL_UDP) &&
      isState(protocol === PROTOCOL_TCP, words[at + STATE] & STATE_MASK)
    );
  }

  function leave(flow: number): void {
    const state = words[(flow << FLOW_SHIFT) + STATE];
    if ((state & MIRROR) !== 0) return;
    const counts = isActive(state & STATE_MASK) ? active : inactive;
    counts[(state >>> 8) - 1]--;
  }

  return {
    make,
    isBackend,
    forget,
    adopt,
    leave,
    turned,
    backendFor,
    addressOf: (backend) => address[backend],
    backendAt,
    idleOf: (flow) => idle[(words[(flow << FLOW_SHIFT) + STATE] >>> 8) - 1],
    begin(flow, backend) {
      words[(flow << FLOW_SHIFT) + STATE] |= (backend + 1) << 8;
      count(flow, backend);
    },
    isTcp: (flow) => (words[(flow << FLOW_SHIFT) + OUT_KEY] & 0xff) === PROTOCOL_TCP,
  };
}
