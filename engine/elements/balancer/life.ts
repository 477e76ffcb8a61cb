/** How connections of services go on, and how they end: what of it is the same for IPv4 and IPv6, and not hot. */
import type { Context } from '../../graph.js';
import {
  ESTABLISHED,
  FIN_BOTH,
  FIN_OUT,
  nextTcpState,
  SYN_IN,
  type Timeouts,
  TURNING_FLAGS,
  tcpTimeouts,
} from '../../tables/connection.js';
import {
  EXPIRY,
  EXTERNAL,
  FLOW_SHIFT,
  type Flows,
  flowKeyHash,
  IN,
  INSIDE,
  NO_FLOW,
  OUT_KEY,
  OUT_PORTS,
  PACKETS_OUT,
  REMOTE_END,
  STATE,
  STATE_MASK,
} from '../../tables/flows.js';
import type { Services } from '../../tables/services.js';
import { FIN_LE, RST_LE } from '../../wire/tcp.js';
import { type Chooser, MIRROR } from './chooser.js';
import type { Endings } from './endings.js';

/**
 * State of a connection of which only the client's side is seen: whatever follows its SYN says that the other has
 * answered, and its FIN that both will close.
 */
function nextOneSided(state: number, flags: number): number {
  if (state === SYN_IN && (flags & TURNING_FLAGS) === 0) return ESTABLISHED;
  if ((flags & (RST_LE | FIN_LE)) === FIN_LE) return FIN_BOTH;
  return nextTcpState(state, true, flags);
}

export interface LifeOptions {
  readonly flows: Flows;
  readonly services: Services;
  readonly timeouts: Timeouts;
  readonly chooser: Chooser;
  readonly endings: Endings;
}

export interface Life {
  /** A TCP packet opens, closes or resets the flow of a backend, whose words begin at `at`. */
  turn(flow: number, at: number, backend: number, state: number, inward: boolean, flags: number): void;
  /** A flow was silent for too long: an open connection of TCP is reset. */
  over(flow: number): void;
  /** The same of a flow that a NAT owns. */
  expired(flow: number): void;
}

export function createLife(context: Context, options: LifeOptions): Life {
  const { flows, services, timeouts, chooser, endings } = options;
  const { words, seed, find } = flows;
  const { keeps, idle } = services;
  const tcp = tcpTimeouts(timeouts);

  function turn(
    flow: number,
    at: number,
    backend: number,
    state: number,
    inward: boolean,
    flags: number,
  ): void {
    if (words[at + INSIDE] === words[at + REMOTE_END]) {
      turnBoth(flow, at, backend, state, flags);
      return;
    }
    const next = keeps[backend] === 1 ? nextOneSided(state, flags) : nextTcpState(state, inward, flags);
    chooser.turned(flow, state, next, !inward && (flags & RST_LE) !== 0);
    become(flow, at, backend, next, flags);
  }

  /** Of a caller that is its own backend each flow sees one side, to which all is from outside: both are one connection. */
  function turnBoth(flow: number, at: number, backend: number, state: number, flags: number): void {
    const isAnswer = (words[at + STATE] & MIRROR) !== 0;
    const other = otherOf(at);
    const next = nextTcpState(state, !isAnswer, flags);
    const counted = isAnswer ? other : flow;
    if (counted !== NO_FLOW) chooser.turned(counted, state, next, isAnswer && (flags & RST_LE) !== 0);
    become(flow, at, backend, next, flags);
    if (other === NO_FLOW) return;
    become(other, other << FLOW_SHIFT, backend, next, flags);
    // By this it is known not to be silent.
    if (isAnswer) words[(other << FLOW_SHIFT) + PACKETS_OUT]++;
  }

  /** The other flow of a caller that is its own backend: it is called at the port that this one calls from. */
  function otherOf(at: number): number {
    const [own, remote, key] = [words[at + EXTERNAL], words[at + REMOTE_END], words[at + OUT_KEY]];
    const ports = (words[at + OUT_PORTS] >>> 16) | (words[at + OUT_PORTS] << 16);
    const ref = find(flowKeyHash(seed, own, remote, ports, key), own, remote, ports, key);
    return (ref & 1) === IN ? ref >>> 1 : NO_FLOW;
  }

  function become(flow: number, at: number, backend: number, next: number, flags: number): void {
    const state = words[at + STATE] & STATE_MASK;
    words[at + STATE] += next - state;
    const expiry = context.seconds + (next >= FIN_OUT ? idle[backend] : tcp[next]);
    if (expiry < words[at + EXPIRY]) flows.hasten(flow, expiry);
    else if ((flags & RST_LE) === 0) words[at + EXPIRY] = expiry;
    if (next !== state) flows.changed(flow);
  }

  function over(flow: number): void {
    if (!chooser.isTcp(flow)) return;
    if ((words[(flow << FLOW_SHIFT) + STATE] & STATE_MASK) >= FIN_OUT) endings.reset(flow);
    judge(flow);
  }

  function expired(flow: number): void {
    endings.expired(flow);
    if (chooser.isTcp(flow)) judge(flow);
  }

  /** One that was not answered counts as failed. */
  function judge(flow: number): void {
    const at = flow << FLOW_SHIFT;
    const state = words[at + STATE] & STATE_MASK;
    const backend = (words[at + STATE] >>> 8) - 1;
    // What was refused is counted already, and what a caller does not answer itself by the other flow.
    const failed = state === SYN_IN && words[at + PACKETS_OUT] === 0 && (words[at + STATE] & MIRROR) === 0;
    // What is answered past us, and not gone on with, looks the same.
    if (failed && keeps[backend] !== 1) services.failed(backend, words[at + OUT_PORTS] & 0xffff, false);
  }

  return { turn, over, expired };
}
