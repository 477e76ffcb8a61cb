/**
 * The life of a flow: its state, what a packet does to it, and how long it may be silent then.
 *
 * TCP by the state machine of RFC 6146, section 3.5.2, which RFC 7857, section 2, asks of every NAT: an RST does not
 * end a connection at once, and data brings back one that was taken for ended. Two things are stricter. A connection
 * from outside is established only when its opener acknowledges, for the SYN and our answer to it cost a forger
 * nothing; and one that is met in the middle, after the table was lost, only when the other side answers.
 *
 * States rise with what a flow is worth when the table is full.
 */
import { ACK_LE, FIN_LE, RST_LE, SYN_LE } from '../wire/tcp.js';

/** Begun from outside and not answered: UDP, ICMP and others; TCP by a SYN; TCP without one. */
export const NEW_IN = 1;
export const SYN_IN = 2;
export const MET_IN = 3;
/** A SYN from outside that was answered by one from inside, and is not acknowledged yet. */
export const SYN_BOTH = 4;
/** Begun from inside and not answered: UDP, ICMP and others; TCP by a SYN; TCP without one. */
export const NEW_OUT = 5;
export const SYN_OUT = 6;
export const MET_OUT = 7;
/** TCP after the FINs of both sides. */
export const FIN_BOTH = 8;
/** TCP after an RST, or after a SYN over the ports of a connection that ended: waits to be gone or to come back. */
export const TRANSITORY = 9;
/** UDP, ICMP and others: packets of both sides. */
export const TWO_SIDED = 10;
/** TCP: a FIN of one side. */
export const FIN_OUT = 11;
export const FIN_IN = 12;
export const ESTABLISHED = 13;
const STATES = 14;

/** Flags of a TCP packet that may do more than prolong an established connection. */
export const TURNING_FLAGS = RST_LE | FIN_LE | SYN_LE;

/** Whether TCP flags are those of a segment that opens a connection: SYN alone. */
export function isOpening(flags: number): boolean {
  return (flags & (ACK_LE | TURNING_FLAGS)) === SYN_LE;
}

/** Names of states, for people. */
export const STATE_NAMES: Readonly<Record<number, string>> = {
  [NEW_IN]: 'unreplied-in',
  [SYN_IN]: 'syn-received',
  [MET_IN]: 'met-in',
  [SYN_BOTH]: 'syn-answered',
  [NEW_OUT]: 'unreplied',
  [SYN_OUT]: 'syn-sent',
  [MET_OUT]: 'met',
  [FIN_BOTH]: 'closing',
  [TRANSITORY]: 'transitory',
  [TWO_SIDED]: 'active',
  [FIN_OUT]: 'fin-sent',
  [FIN_IN]: 'fin-received',
  [ESTABLISHED]: 'established',
};

/** Seconds of silence after which a flow goes. */
export interface Timeouts {
  /** TCP with at most one FIN; RFC 5382, REQ-5: at least 2 h 4 min. */
  readonly established: number;
  /** TCP that is not established yet (RFC 7857, section 2.1: 4 min unless configured). */
  readonly opening: number;
  /** TCP after both FINs or an RST; the same. */
  readonly closing: number;
  /** RFC 4787, REQ-5: at least 2 min, 5 recommended. */
  readonly udp: number;
  /** RFC 5508, REQ-2: at least 60 s. */
  readonly icmp: number;
  /** SCTP and all else that is tracked. */
  readonly other: number;
}

/** Seconds of silence that any flow survives at most: a service may ask for 30 days. */
export const LONGEST_SILENCE = 2_592_000;

export const DEFAULT_TIMEOUTS: Timeouts = {
  established: 7440,
  opening: 240,
  closing: 240,
  udp: 300,
  icmp: 60,
  other: 300,
};

/** Seconds of silence by state of a TCP connection. */
export function tcpTimeouts({ established, opening, closing }: Timeouts): Int32Array {
  return Int32Array.from({ length: STATES }, (_, state) => {
    if (state >= FIN_OUT) return established;
    return state < FIN_BOTH ? opening : closing;
  });
}

/**
 * TCP state after a packet. A packet that leaves the state as it is keeps the flow alive all the same, but for an RST.
 * @param inward whether it comes from outside. @param flags as TCP_FLAGS gives them.
 */
export function nextTcpState(state: number, inward: boolean, flags: number): number {
  if ((flags & RST_LE) !== 0) return state >= FIN_OUT ? TRANSITORY : state;
  const before = state === SYN_BOTH && inward && (flags & ACK_LE) !== 0 ? ESTABLISHED : state;
  if ((flags & FIN_LE) !== 0) return afterFin(before, inward);
  if ((flags & SYN_LE) !== 0) return afterSyn(before, inward);
  if (before === TRANSITORY || before === (inward ? MET_OUT : MET_IN)) return ESTABLISHED;
  return before;
}

function afterSyn(state: number, inward: boolean): number {
  if (state === SYN_OUT || state === MET_OUT) return inward ? ESTABLISHED : SYN_OUT;
  if (state === SYN_IN || state === MET_IN) return inward ? SYN_IN : SYN_BOTH;
  // Whether the new connection comes to be is seen by its third packet.
  return state === FIN_BOTH ? TRANSITORY : state;
}

function afterFin(state: number, inward: boolean): number {
  if (state === ESTABLISHED) return inward ? FIN_IN : FIN_OUT;
  if (state === (inward ? FIN_OUT : FIN_IN)) return FIN_BOTH;
  return state;
}

/** Whether a TCP connection in a state has ended: who opens one with the same ends begins another. */
export function isClosed(state: number): boolean {
  return state === FIN_BOTH || state === TRANSITORY;
}

/** Whether a flow can be in a state, TCP or not. */
export function isState(tcp: boolean, state: number): boolean {
  if (state === NEW_IN || state === NEW_OUT || state === TWO_SIDED) return !tcp;
  return tcp && state > NEW_IN && state < STATES;
}

/** What stays even when the table is full. */
export const KEPT = 255;

/**
 * Worth of a flow by its state when the table is full: 0 goes first. So nobody is put out by somebody who only began,
 * and nothing from inside by what outside begins.
 */
export const WORTHS: Uint8Array = Uint8Array.from({ length: STATES }, (_, state) => {
  if (state >= FIN_OUT) return KEPT;
  return state <= MET_IN ? 0 : state;
});
