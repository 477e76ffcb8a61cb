/**
 * The life of a flow: its state, what a packet does to it, and how long it may be silent then. TCP by the state
 * machine of RFC 6146, section 3.5.2, which RFC 7857, section 2.1, asks of every NAT: an RST does not end a
 * connection at once, and a packet of data brings back one that was taken for ended.
 *
 * States lie in bits 0–7 of a flow's STATE word; those below ESTABLISHED have not seen both sides.
 */
import { FIN_LE, RST_LE, SYN_LE } from '../wire/tcp.js';

export const STATE_MASK = 0xff;
/** UDP, ICMP and others: packets of one side only, or of both. */
export const ONE_SIDED = 1;
/** TCP: SYN of one side only. */
export const SYN_OUT = 2;
export const SYN_IN = 3;
/** TCP after an RST, or the FINs of both sides, or after a restart met without SYN: waits to be gone or to come back. */
export const TRANSITORY = 4;
export const FIN_BOTH = 5;
/** TCP: a FIN of one side. */
export const FIN_OUT = 6;
export const FIN_IN = 7;
export const ESTABLISHED = 8;
export const TWO_SIDED = 9;

/** Names of states, for people. */
export const STATE_NAMES: Readonly<Record<number, string>> = {
  [ONE_SIDED]: 'unreplied',
  [SYN_OUT]: 'syn-sent',
  [SYN_IN]: 'syn-received',
  [TRANSITORY]: 'transitory',
  [FIN_BOTH]: 'closing',
  [FIN_OUT]: 'fin-sent',
  [FIN_IN]: 'fin-received',
  [ESTABLISHED]: 'established',
  [TWO_SIDED]: 'active',
};

/** Seconds of silence after which a flow goes. */
export interface Timeouts {
  /** RFC 5382, REQ-5: at least 2 h 4 min. */
  readonly established: number;
  /** RFC 5382, REQ-5: at least 4 min; also for connections that end. */
  readonly transitory: number;
  /** RFC 4787, REQ-5: at least 2 min, 5 recommended. */
  readonly udp: number;
  /** RFC 5508, REQ-2: at least 60 s. */
  readonly icmp: number;
  /** SCTP and all else that is tracked. */
  readonly other: number;
}

export const DEFAULT_TIMEOUTS: Timeouts = {
  established: 7440,
  transitory: 240,
  udp: 300,
  icmp: 60,
  other: 300,
};

/** TCP state after a packet. @param inward whether it comes from outside. @param flags as TCP_FLAGS gives them. */
export function nextTcpState(state: number, inward: boolean, flags: number): number {
  if ((flags & RST_LE) !== 0) return state >= FIN_OUT ? TRANSITORY : state;
  if ((flags & FIN_LE) !== 0) return afterFin(state, inward);
  if ((flags & SYN_LE) !== 0) {
    if (state === SYN_OUT) return inward ? ESTABLISHED : SYN_OUT;
    if (state === SYN_IN) return inward ? SYN_IN : ESTABLISHED;
    // A new connection over the ports of one that ended.
    if (state === TRANSITORY || state === FIN_BOTH) return inward ? SYN_IN : SYN_OUT;
    return state;
  }
  return state === TRANSITORY ? ESTABLISHED : state;
}

function afterFin(state: number, inward: boolean): number {
  if (state === ESTABLISHED) return inward ? FIN_IN : FIN_OUT;
  if (state === FIN_OUT) return inward ? FIN_BOTH : FIN_OUT;
  if (state === FIN_IN) return inward ? FIN_IN : FIN_BOTH;
  return state;
}

/** Worth of a flow when the table is full: 0 goes first, 255 stays. Nobody is put out by somebody who only began. */
export function worthOf(state: number): number {
  if (state === SYN_IN || state === ONE_SIDED) return 0;
  if (state === SYN_OUT) return 1;
  if (state === TRANSITORY || state === FIN_BOTH) return 2;
  return state === TWO_SIDED ? 100 : 255;
}
