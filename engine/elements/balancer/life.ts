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
  FLOW_SHIFT,
  type Flows,
  INSIDE,
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
  /** The time of a flow has come. */
  over(flow: number): void;
}

export function createLife(context: Context, options: LifeOptions): Life {
  const { flows, services, timeouts, chooser, endings } = options;
  const { words } = flows;
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
    const oneSided = keeps[backend] === 1 || words[at + INSIDE] === words[at + REMOTE_END];
    const next = oneSided ? nextOneSided(state, flags) : nextTcpState(state, inward, flags);
    words[at + STATE] += next - state;
    // A SYN that comes again after seconds is one that the backend did not answer.
    if (state === SYN_IN && next === SYN_IN && context.seconds - words[at + EXPIRY] + tcp[SYN_IN] >= 2)
      services.suspect(backend, words[at + OUT_PORTS] & 0xffff);
    chooser.turned(flow, state, next, !inward && (flags & RST_LE) !== 0);
    const expiry = context.seconds + (next >= FIN_OUT ? idle[backend] : tcp[next]);
    if (expiry < words[at + EXPIRY]) flows.hasten(flow, expiry);
    else if ((flags & RST_LE) === 0) words[at + EXPIRY] = expiry;
    if (next !== state) flows.changed(flow);
  }

  /** A TCP connection that was silent for too long: an open one is reset, one that was not answered counts as failed. */
  function over(flow: number): void {
    if (!chooser.isTcp(flow)) return;
    const at = flow << FLOW_SHIFT;
    const state = words[at + STATE] & STATE_MASK;
    if (state >= FIN_OUT) endings.reset(flow);
    const backend = (words[at + STATE] >>> 8) - 1;
    // What was refused is counted already, and that a caller did not answer itself by its other flow.
    const failed = state === SYN_IN && words[at + PACKETS_OUT] === 0 && (words[at + STATE] & MIRROR) === 0;
    // What is answered past us, and not gone on with, looks the same.
    if (failed && keeps[backend] !== 1) services.failed(backend, words[at + OUT_PORTS] & 0xffff, false);
  }

  return { turn, over };
}
