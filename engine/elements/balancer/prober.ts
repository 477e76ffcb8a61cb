/**
 * Checks of backends from the engine's own side: a small TCP client (RFC 9293) that opens a connection from an address
 * that every host has, asks for a page if that is wanted, and resets the connection as soon as it knows enough. A
 * backend that only has its port looked at never sees a connection: it gets the RST before one is open.
 *
 * Each check has a port of its own from FIRST_PROBE_PORT on, by which its answers are told; the state of all is in
 * arrays under that port. SYN and request are sent once more when nothing is heard. Segments are taken in order alone:
 * what comes early comes again. Only what was sent is judged, and only time in which the engine ran counts.
 *
 * Not handled: a status line that does not follow the handshake at once (1xx answers).
 */
import { native } from '../../../native-bindings/index.js';
import type { Batch, Context } from '../../graph.js';
import { OFFLOAD_NEEDS_CSUM } from '../../memory/frames.js';
import { ETHERNET_HEADER, swap16 } from '../../wire/ethernet.js';
import { FRAGMENTATION_NEEDED, ICMP_HEADER, UNREACHABLE } from '../../wire/icmp.js';
import { UNREACHABLE_V6 } from '../../wire/icmpv6.js';
import { PROTOCOL_TCP } from '../../wire/ip.js';
import {
  ACK_LE,
  FIN_LE,
  PSH_LE,
  RST_LE,
  SYN_LE,
  sequenceAt,
  TCP_ACKNOWLEDGMENT,
  TCP_FLAGS,
  TCP_HEADER,
  TCP_SEQUENCE,
  tcpHeaderLength,
} from '../../wire/tcp.js';
import { FIRST_PROBE_PORT, PROBE_PORTS } from './relay.js';
import { random32 } from './resets.js';
import { addressesAt, carriedTcp, createSegments, type Ends, isAt, lengthBehind } from './segments.js';

/** Outcomes of a check; of a page that says that all is not well, its status, 100 to 999. */
export const GOOD = 0;
export const SILENT = 1;
export const WAS_RESET = 2;
export const NOT_REACHED = 3;
export const NOT_HTTP = 4;

/** Checks under way at once: a port is free then after a few tries. */
const MOST_UNDER_WAY = 4096;
/** What is enough of an answer: `HTTP/1.1 200`. */
const HEAD = 12;

const FREE = 0;
const OPENING = 1;
const ASKED = 2;

/** What is checked, and how. */
export interface Check extends Ends {
  /** What is sent once the connection is open; null when that is enough. */
  readonly request: Uint8Array | null;
  /** Milliseconds. */
  readonly timeout: number;
}

export interface Prober<C extends Check> {
  /** Begins a check. @returns false when too many are under way, or no slot is free for its SYN. */
  begin(check: C): boolean;
  /** Takes a TCP segment from a backend if it belongs to a check; `t` is the index of its header's first word. */
  take(frame: number, t: number): boolean;
  /** Takes a sound ICMP error if it is about a check; `t` is the index of the ICMP header's first word. */
  unreachable(frame: number, t: number): boolean;
  /** Sends again, and gives up. Called between breaths. @param late milliseconds in which nothing could be heard. */
  tick(late: number): void;
}

/**
 * @param out takes frames to backends, to the bridge.
 * @param done called once for each check that was begun.
 */
export function createProber<C extends Check>(
  context: Context,
  out: Batch,
  done: (check: C, outcome: number) => void,
): Prober<C> {
  const { frames } = context;
  const { u8, u16, off, len, domain, offload } = frames;
  const sendSegment = createSegments(context, out);
  const checks = new Array<C | null>(PROBE_PORTS).fill(null);
  const state = new Uint8Array(PROBE_PORTS);
  /** Sequence number of our SYN, and of what is expected next. */
  const first = new Uint32Array(PROBE_PORTS);
  const next = new Uint32Array(PROBE_PORTS);
  /** When it fails, and when it is tried again. */
  const deadline = new Float64Array(PROBE_PORTS);
  const again = new Float64Array(PROBE_PORTS);
  /** Beginning of the answer. */
  const heads = new Uint8Array(PROBE_PORTS * HEAD);
  const got = new Uint8Array(PROBE_PORTS);
  let underWay = 0;

  function begin(check: C): boolean {
    if (underWay === MOST_UNDER_WAY) return false;
    // At random, so that two hosts hardly ever ask a backend from the same port at the same time.
    let slot = random32() % PROBE_PORTS;
    while (state[slot] !== FREE) slot = (slot + 1) % PROBE_PORTS;
    first[slot] = random32();
    next[slot] = 0;
    if (!send(check, slot, first[slot], SYN_LE, null)) return false;
    underWay++;
    checks[slot] = check;
    state[slot] = OPENING;
    got[slot] = 0;
    deadline[slot] = context.now + check.timeout;
    again[slot] = context.now + check.timeout / 2;
    return true;
  }

  function send(check: C, slot: number, sequence: number, flags: number, data: Uint8Array | null): boolean {
    return sendSegment(check, FIRST_PROBE_PORT + slot, sequence, next[slot], flags, data);
  }

  const ask = (check: C, slot: number): boolean =>
    send(check, slot, first[slot] + 1, ACK_LE | PSH_LE, check.request);

  /** What we have sent: the SYN, and the request once it was sent. */
  const sent = (check: C, slot: number): number =>
    1 + (state[slot] === ASKED ? (check.request?.length ?? 0) : 0);

  function end(check: C, slot: number, outcome: number, reset: boolean): void {
    if (reset) send(check, slot, first[slot] + sent(check, slot), RST_LE | ACK_LE, null);
    state[slot] = FREE;
    checks[slot] = null;
    underWay--;
    done(check, outcome);
  }

  function take(frame: number, t: number): boolean {
    const ip = off[frame] + ETHERNET_HEADER;
    const check = find(frame, ip, t, 1);
    if (!check) return false;
    const content = lengthBehind(u16, ip, t * 2);
    const header = tcpHeaderLength(u16[t + TCP_FLAGS]);
    if (header >= TCP_HEADER && header <= content && isSound(frame, ip, t * 2, content))
      hear(check, swap16(u16[t + 1]) - FIRST_PROBE_PORT, t, header, content - header);
    frames.free(frame);
    return true;
  }

  /**
   * The check to which a packet belongs by its ends: IP header at byte `at`, ports from word `t` on.
   * @param ours which of the two ports is ours: 0 of what we sent, 1 of what came back.
   */
  function find(frame: number, at: number, t: number, ours: 0 | 1): C | null {
    const slot = swap16(u16[t + ours]) - FIRST_PROBE_PORT;
    const check = slot < 0 ? null : checks[slot];
    if (!check || check.domain !== domain[frame] || swap16(u16[t + 1 - ours]) !== check.port) return null;
    const { source, destination, size } = addressesAt(u8, at);
    const [own, remote] = ours === 0 ? [source, destination] : [destination, source];
    if (size !== check.own.length) return null;
    return isAt(u8, own, check.own) && isAt(u8, remote, check.address) ? check : null;
  }

  /** Whether the checksum is right; a container may leave it to its card, which the TAP is. */
  function isSound(frame: number, ip: number, t: number, content: number): boolean {
    if ((offload[frame] & OFFLOAD_NEEDS_CSUM) !== 0) return true;
    const { source, size } = addressesAt(u8, ip);
    const pseudo = native.checksum(source, 2 * size, PROTOCOL_TCP + content);
    return native.checksum(t, content, pseudo) === 0xffff;
  }

  function hear(check: C, slot: number, t: number, header: number, length: number): void {
    const flags = u16[t + TCP_FLAGS];
    const sequence = sequenceAt(u16, t + TCP_SEQUENCE);
    if (state[slot] === ASKED && (flags & RST_LE) !== 0) {
      // Any other number may be a guess (RFC 5961, 3.2).
      if (sequence === next[slot]) end(check, slot, WAS_RESET, false);
      return;
    }
    const acknowledged = (sequenceAt(u16, t + TCP_ACKNOWLEDGMENT) - first[slot]) >>> 0;
    if ((flags & ACK_LE) === 0 || acknowledged === 0 || acknowledged > sent(check, slot)) {
      // Of another connection with these ends (RFC 9293, 3.10.7.3): that one is reset, ours goes on.
      if (state[slot] === OPENING && (flags & (ACK_LE | RST_LE)) === ACK_LE)
        send(check, slot, sequenceAt(u16, t + TCP_ACKNOWLEDGMENT), RST_LE, null);
    } else if (state[slot] === OPENING) opening(check, slot, flags, sequence);
    else answered(check, slot, flags, sequence, acknowledged, t * 2 + header, length);
  }

  function opening(check: C, slot: number, flags: number, sequence: number): void {
    if ((flags & RST_LE) !== 0) end(check, slot, WAS_RESET, false);
    else if ((flags & SYN_LE) !== 0) {
      next[slot] = sequence + 1;
      if (check.request === null) {
        end(check, slot, GOOD, true);
        return;
      }
      state[slot] = ASKED;
      again[slot] = context.now + (deadline[slot] - context.now) / 2;
      ask(check, slot);
    }
  }

  /** A segment of an open connection, `length` bytes of data at byte `at`. */
  function answered(
    check: C,
    slot: number,
    flags: number,
    sequence: number,
    acknowledged: number,
    at: number,
    length: number,
  ): void {
    if ((flags & SYN_LE) !== 0) {
      if ((sequence + 1) >>> 0 === next[slot]) ask(check, slot);
      return;
    }
    if (acknowledged === sent(check, slot)) again[slot] = Number.POSITIVE_INFINITY;
    const known = (next[slot] - sequence) | 0;
    if (known < 0 || known > length) return;
    const fresh = length - known;
    for (let i = 0; i < fresh && got[slot] < HEAD; i++) heads[slot * HEAD + got[slot]++] = u8[at + known + i];
    next[slot] += fresh;
    if (got[slot] === HEAD) end(check, slot, judge(slot * HEAD), true);
    else if ((flags & FIN_LE) !== 0) end(check, slot, NOT_HTTP, true);
    else if (fresh > 0) send(check, slot, first[slot] + sent(check, slot), ACK_LE, null);
  }

  /** What a status line says (RFC 9112, 4): GOOD, its status, or NOT_HTTP. */
  function judge(at: number): number {
    const [, code] =
      /^HTTP\/\d\.\d (\d{3})$/.exec(String.fromCharCode(...heads.subarray(at, at + HEAD))) ?? [];
    const status = Number(code ?? 0);
    return status < 100 ? NOT_HTTP : status >= 200 && status < 400 ? GOOD : status;
  }

  function unreachable(frame: number, t: number): boolean {
    const ip = off[frame] + ETHERNET_HEADER;
    const inner = t * 2 + ICMP_HEADER;
    const s = carriedTcp(u8, inner, off[frame] + len[frame]) >>> 1;
    const check = s === 0 ? null : find(frame, inner, s, 0);
    if (!check) return false;
    const slot = swap16(u16[s]) - FIRST_PROBE_PORT;
    const type = u16[t] & 0xff;
    const isFinal =
      u8[ip] >>> 4 === 6
        ? type === UNREACHABLE_V6
        : type === UNREACHABLE && u16[t] >>> 8 !== FRAGMENTATION_NEEDED;
    // Once a connection is open an error may pass (RFC 5461).
    if (isFinal && state[slot] === OPENING && sequenceAt(u16, s + TCP_SEQUENCE) === first[slot])
      end(check, slot, NOT_REACHED, false);
    frames.free(frame);
    return true;
  }

  function tick(late: number): void {
    for (let slot = 0; underWay > 0 && slot < PROBE_PORTS; slot++) {
      const check = checks[slot];
      if (check === null) continue;
      deadline[slot] += late;
      again[slot] += late;
      if (context.now >= deadline[slot]) end(check, slot, SILENT, true);
      else if (context.now >= again[slot] && sendAgain(check, slot)) again[slot] = Number.POSITIVE_INFINITY;
    }
  }

  function sendAgain(check: C, slot: number): boolean {
    return state[slot] === OPENING ? send(check, slot, first[slot], SYN_LE, null) : ask(check, slot);
  }

  return { begin, take, unreachable, tick };
}
