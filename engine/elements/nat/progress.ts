/** How a flow goes on with each packet: its state, and the second in which it expires. */
import type { Context } from '../../graph.js';
import {
  ESTABLISHED,
  NEW_IN,
  NEW_OUT,
  nextTcpState,
  TURNING_FLAGS,
  TWO_SIDED,
} from '../../tables/connection.js';
import { EXPIRY, FLOW_SHIFT, IN, STATE, STATE_MASK } from '../../tables/flows.js';
import { PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP } from '../../wire/ip.js';
import { RST_LE } from '../../wire/tcp.js';
import type { NatTables } from './tables.js';

/** @param flags TCP's, as the view gives their word; anything for others. */
export type Progress = (flow: number, protocol: number, direction: number, flags: number) => void;

export function createProgress(context: Context, tables: NatTables): Progress {
  const { flows, timeouts, tcpTimeouts } = tables;
  const { words } = flows;

  function progress(flow: number, protocol: number, direction: number, flags: number): void {
    const at = flow << FLOW_SHIFT;
    if (protocol === PROTOCOL_TCP) {
      if ((words[at + STATE] & STATE_MASK) === ESTABLISHED && (flags & TURNING_FLAGS) === 0)
        words[at + EXPIRY] = context.seconds + silence(flow, words[at + STATE]);
      else turn(flow, at, direction === IN, flags);
      return;
    }
    const before = words[at + STATE] & STATE_MASK;
    const answered = before === (direction === IN ? NEW_OUT : NEW_IN);
    if (answered) words[at + STATE] += TWO_SIDED - before;
    const quiet =
      protocol === PROTOCOL_UDP ? timeouts.udp : protocol === PROTOCOL_ICMP ? timeouts.icmp : timeouts.other;
    words[at + EXPIRY] = context.seconds + quiet;
    if (answered) flows.changed(flow);
  }

  /** Seconds that an established connection may be silent; a service says that of its own. */
  function silence(flow: number, word: number): number {
    return word > STATE_MASK && tables.balancing !== null
      ? tables.balancing.idleOf(flow)
      : timeouts.established;
  }

  /** A TCP packet that opens, closes or resets. */
  function turn(flow: number, at: number, inward: boolean, flags: number): void {
    const state = words[at + STATE] & STATE_MASK;
    const next = nextTcpState(state, inward, flags);
    words[at + STATE] += next - state;
    if (words[at + STATE] > STATE_MASK)
      tables.balancing?.turned(flow, state, next, !inward && (flags & RST_LE) !== 0);
    const expiry =
      context.seconds + (next === ESTABLISHED ? silence(flow, words[at + STATE]) : tcpTimeouts[next]);
    if (next !== state && expiry < words[at + EXPIRY]) flows.hasten(flow, expiry);
    // An RST does not prolong what is ending (RFC 7857, section 2.2).
    else if ((flags & RST_LE) === 0) words[at + EXPIRY] = expiry;
    if (next !== state) flows.changed(flow);
  }

  return progress;
}
