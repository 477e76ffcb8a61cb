/**
 * Flows of the mesh, whatever their family: on the node that has the backend they remember by which node the client
 * came, as long as their connection lives.
 */
import type { Context } from '../../graph.js';
import {
  isClosed,
  MET_IN,
  NEW_IN,
  nextTcpState,
  SYN_IN,
  type Timeouts,
  TWO_SIDED,
  tcpTimeouts,
} from '../../tables/connection.js';
import {
  EXPIRY,
  FLOW_SHIFT,
  type Flows,
  flowKeyHash,
  IN_DOMAIN,
  MESH_OWNER,
  NEXT_OF_PORT,
  NO_FLOW,
  OWNER_SHIFT,
  OWNERS,
  STATE,
  STATE_MASK,
  WHEEL_SECONDS,
} from '../../tables/flows.js';
import type { Gateways } from '../../tables/gateways.js';
import type { Origins } from '../../tables/origins.js';
import { PROTOCOL_TCP } from '../../wire/ip.js';
import { RST_LE, SYN_LE, TCP_FLAGS } from '../../wire/tcp.js';

/** Reasons of `mesh`, in the order that `Tracks` counts on. */
export const TRACK_REASONS = ['no-flow', 'conflict', 'table-full', 'not-served'] as const;
export const [WITHOUT_FLOW, CONFLICT, TABLE_FULL, NOT_SERVED] = TRACK_REASONS.keys();

/** What keys of the mesh have in common. */
export const MESH_KEY = (MESH_OWNER << OWNER_SHIFT) | IN_DOMAIN;

/** What becomes of flows. Words of a flow begin at `at`; `flags` are TCP's. */
export interface Tracks {
  /** Makes a flow by a packet that came by a node. @returns a reason, or -1. */
  make(own: number, remote: number, pair: number, key: number, flags: number, from: number): number;
  /** A packet to the backend of a flow comes by a node. @returns a reason, or -1. */
  inward(at: number, protocol: number, flags: number, from: number): number;
  /** A packet of the backend goes back. */
  outward(at: number, protocol: number, flags: number): void;
  /**
   * Whether a TCP packet is of a connection to a backend that was here before this process, so that all nodes are asked
   * for its client: its header begins at `t`, its address of `length` words at `source`.
   */
  isLost(frame: number, t: number, source: number, length: number): boolean;
  /** Whether the NAT of the network's uplink has a flow with these ends. @param key as the mesh's flows have it. */
  isKnown(own: number, remote: number, pair: number, key: number): boolean;
  /** Whether it had one whose connection was ended, and has no other. */
  hasEnded(own: number, remote: number, pair: number, key: number): boolean;
}

export interface TrackOptions {
  readonly flows: Flows;
  readonly gateways: Gateways;
  readonly timeouts: Timeouts;
  readonly origins: Origins;
  /** Called for each flow that is made. */
  readonly made: () => void;
}

/** Whether a connection in a state stands in nobody's way. */
function isOver(state: number): boolean {
  return isClosed(state) || state === MET_IN;
}

export function createTracks(context: Context, options: TrackOptions): Tracks {
  const { u16, domain } = context.frames;
  const { flows, gateways, timeouts, origins, made } = options;
  const { words, seed, find } = flows;
  // The node that has chosen the backend knows how long a connection may be silent. What is forgotten here is found as
  // what was lost in a restart.
  const tcp = tcpTimeouts({ ...timeouts, established: WHEEL_SECONDS - 1 });

  function make(own: number, remote: number, pair: number, key: number, flags: number, from: number): number {
    const protocol = key & 0xff;
    if (protocol === PROTOCOL_TCP && (flags & RST_LE) !== 0) return WITHOUT_FLOW;
    if (isTakenHere(own, remote, pair, key)) return CONFLICT;
    const flow = flows.obtain(own, remote, pair, key, own, pair, () => {});
    if (flow === NO_FLOW) return TABLE_FULL;
    const at = flow << FLOW_SHIFT;
    // What is no SYN belongs to a connection that ended, and the backend resets it; it must not stand in the way.
    const state = protocol !== PROTOCOL_TCP ? NEW_IN : (flags & SYN_LE) !== 0 ? SYN_IN : MET_IN;
    words[at + STATE] = state;
    words[at + NEXT_OF_PORT] = from;
    flows.setExpiry(flow, context.seconds + (protocol === PROTOCOL_TCP ? tcp[state] : timeouts.udp));
    made();
    return -1;
  }

  function inward(at: number, protocol: number, flags: number, from: number): number {
    if (words[at + NEXT_OF_PORT] !== from) {
      // The client comes by another node: as a new connection once the old one is over, else to another backend.
      const over = isOver(words[at + STATE]) && (flags & SYN_LE) !== 0;
      if (protocol === PROTOCOL_TCP && !over) return CONFLICT;
      words[at + NEXT_OF_PORT] = from;
    }
    advance(at, protocol, true, flags);
    return -1;
  }

  /** The key of the flow with the same ends that the NAT of the network's uplink has; 0 without an uplink. */
  function keyHere(key: number): number {
    const uplink = gateways.uplink[(key >>> 16) - 1];
    return uplink < 0 ? 0 : (key & ~(IN_DOMAIN | ((OWNERS - 1) << OWNER_SHIFT))) | (uplink << OWNER_SHIFT);
  }

  /** Finds that flow. */
  function findHere(own: number, remote: number, pair: number, key: number): number {
    const outer = keyHere(key);
    return outer === 0
      ? NO_FLOW
      : find(flowKeyHash(seed, own, remote, pair, outer), own, remote, pair, outer);
  }

  function hasEnded(own: number, remote: number, pair: number, key: number): boolean {
    // Mostly there is none, and every packet that leaves is asked about.
    if (flows.ended.size === 0 || !flows.ended.has(flowKeyHash(seed, own, remote, pair, keyHere(key))))
      return false;
    return findHere(own, remote, pair, key) === NO_FLOW;
  }

  /** Whether the client has come to this backend by an uplink of this node, with the same ports, and that goes on. */
  function isTakenHere(own: number, remote: number, pair: number, key: number): boolean {
    const ref = findHere(own, remote, pair, key);
    return ref !== NO_FLOW && !isOver(words[((ref >>> 1) << FLOW_SHIFT) + STATE] & STATE_MASK);
  }

  function advance(at: number, protocol: number, inward: boolean, flags: number): void {
    if (protocol !== PROTOCOL_TCP) {
      if (!inward) words[at + STATE] = TWO_SIDED;
      words[at + EXPIRY] = context.seconds + timeouts.udp;
      return;
    }
    const state = words[at + STATE];
    const next = nextTcpState(state, inward, flags);
    words[at + STATE] = next;
    const expiry = context.seconds + tcp[next];
    if (expiry < words[at + EXPIRY]) flows.hasten(at >>> FLOW_SHIFT, expiry);
    else words[at + EXPIRY] = expiry;
  }

  function isLost(frame: number, t: number, source: number, length: number): boolean {
    if ((u16[t + TCP_FLAGS] & (SYN_LE | RST_LE)) !== 0) return false;
    return origins.has(u16, source, length, domain[frame], u16[t]);
  }

  return {
    make,
    inward,
    outward: (at, protocol, flags) => advance(at, protocol, false, flags),
    isLost,
    hasEnded,
    isKnown: (own, remote, pair, key) => findHere(own, remote, pair, key) !== NO_FLOW,
  };
}
