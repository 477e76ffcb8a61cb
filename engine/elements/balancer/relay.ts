/**
 * Checks of a backend by another host. Their answers are for an address that is here as well as there, the virtual one
 * or the gateway's; so it is remembered by which VTEP each came, and what the backend answers goes back to it.
 *
 * A memory of fixed size, in which a new check takes the place of an old one.
 */
import type { Batch, Context } from '../../graph.js';
import { REMOTE } from '../../memory/frames.js';
import { ETHERNET_HEADER, swap16 } from '../../wire/ethernet.js';
import { ICMP_HEADER } from '../../wire/icmp.js';
import { ACK_LE, RST_LE, SYN_LE, TCP_FLAGS, TCP_HEADER } from '../../wire/tcp.js';
import { addressesAt, carriedTcp } from './segments.js';

/** Ports from which backends are checked, up to the last. */
export const FIRST_PROBE_PORT = 61_000;
export const PROBE_PORTS = 65_536 - FIRST_PROBE_PORT;

const ENTRIES = 8192;

/** Whether a port, as a little-endian load gives it, is one from which backends are checked. */
export function isProbePort(port: number): boolean {
  return swap16(port) >= FIRST_PROBE_PORT;
}

/** Of packets of IPv4 and IPv6, with all of their IP header there. */
export interface Relay {
  /** Remembers a frame that came from another host, if it begins a check. */
  note(frame: number): void;
  /** Sends a TCP segment of this host, whose header begins at word `t`, to where the check is that it belongs to. */
  back(frame: number, t: number): boolean;
  /** The same of a sound ICMP error about a check; `t` is the index of the ICMP header's first word. */
  backError(frame: number, t: number): boolean;
}

/** Who gets from the balancer what belongs to checks of backends, and to nobody else. */
export interface Checks {
  /** Looks at a frame from another host to a backend that has the virtual address itself. */
  note(frame: number): void;
  /**
   * Looks at a frame whose source may be a virtual address: the check of another host, or what a backend that has that
   * address answers to one.
   * @returns whether it took the frame.
   */
  fromVirtual(frame: number): boolean;
  /**
   * Takes a TCP segment to a port of checks at a virtual address, whose header begins at word `t`.
   * @returns false when it belongs to no check; then it is still the balancer's.
   */
  take(frame: number, t: number): boolean;
  /** Takes a sound ICMP error to a virtual address, whose header begins at word `t`; as `take`. */
  unreachable(frame: number, t: number): boolean;
}

/** @param tunnel takes frames for a VTEP, `dest` set. */
export function createRelay(context: Context, tunnel: Batch): Relay {
  const { u8, u16, off, len, domain, ingress, dest } = context.frames;
  /** Hashes of the addresses that ask and are asked, domain and port, VTEP. */
  const entries = new Int32Array(ENTRIES * 4);

  /** An address of IPv4 itself, a hash of one of IPv6: who meets another's is relayed in vain. */
  function wordOf(at: number, size: number): number {
    let word = 0;
    for (let i = at; i < at + size; i += 4)
      word = Math.imul(word, 0xc2b2ae35) ^ u16[i >>> 1] ^ (u16[(i >>> 1) + 1] << 16);
    return word;
  }

  function placeOf(asking: number, asked: number, about: number): number {
    const h = Math.imul(asking ^ Math.imul(asked ^ Math.imul(about, 0x85ebca6b), 0xc2b2ae35), 0x9e3779b1);
    return ((h ^ (h >>> 15)) & (ENTRIES - 1)) << 2;
  }

  function note(frame: number): void {
    const ip = off[frame] + ETHERNET_HEADER;
    const t = carriedTcp(u8, ip, off[frame] + len[frame] - TCP_HEADER + 8) >>> 1;
    if (t === 0 || !isProbePort(u16[t])) return;
    if ((u16[t + TCP_FLAGS] & (SYN_LE | ACK_LE | RST_LE)) !== SYN_LE) return;
    const { source, destination, size } = addressesAt(u8, ip);
    const asking = wordOf(source, size);
    const asked = wordOf(destination, size);
    const about = (domain[frame] << 16) | u16[t];
    entries.set([asking, asked, about, ingress[frame]], placeOf(asking, asked, about));
  }

  function send(frame: number, asking: number, asked: number, port: number): boolean {
    // What came from another host never goes to a third.
    if (ingress[frame] >= REMOTE) return false;
    const about = (domain[frame] << 16) | port;
    const at = placeOf(asking, asked, about);
    if (entries[at + 3] === 0 || entries[at] !== asking) return false;
    if (entries[at + 1] !== asked || entries[at + 2] !== about) return false;
    dest[frame] = entries[at + 3];
    tunnel.push(frame);
    return true;
  }

  function back(frame: number, t: number): boolean {
    const { source, destination, size } = addressesAt(u8, off[frame] + ETHERNET_HEADER);
    return send(frame, wordOf(destination, size), wordOf(source, size), u16[t + 1]);
  }

  function backError(frame: number, t: number): boolean {
    const inner = t * 2 + ICMP_HEADER;
    const s = carriedTcp(u8, inner, off[frame] + len[frame]) >>> 1;
    const { source, destination, size } = addressesAt(u8, inner);
    return s !== 0 && send(frame, wordOf(source, size), wordOf(destination, size), u16[s]);
  }

  return { note, back, backError };
}
