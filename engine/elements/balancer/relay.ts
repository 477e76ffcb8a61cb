/**
 * Checks of a backend by another host. Their answers are for the virtual address, which is here as well as there; so it
 * is remembered by which VTEP each came, and what the backend answers goes back to it.
 *
 * A memory of fixed size, in which a new check takes the place of an old one.
 */
import type { Batch, Context } from '../../graph.js';
import { REMOTE } from '../../memory/frames.js';
import { ETHERNET_HEADER, swap16 } from '../../wire/ethernet.js';
import { ICMP_HEADER } from '../../wire/icmp.js';
import {
  IPV4_DESTINATION,
  IPV4_HEADER,
  IPV4_SOURCE,
  IPV4_TTL_PROTOCOL,
  PROTOCOL_TCP,
} from '../../wire/ip.js';
import { ACK_LE, RST_LE, SYN_LE, TCP_FLAGS, TCP_HEADER } from '../../wire/tcp.js';

/** Ports from which backends are checked, up to the last. */
export const FIRST_PROBE_PORT = 61_000;
export const PROBE_PORTS = 65_536 - FIRST_PROBE_PORT;

const ENTRIES = 8192;

/** Whether a port, as a little-endian load gives it, is one from which backends are checked. */
export function isProbePort(port: number): boolean {
  return swap16(port) >= FIRST_PROBE_PORT;
}

export interface Relay {
  /** Remembers a frame that came from another host, if it begins a check. Its addresses are known to be IPv4's. */
  note(frame: number): void;
  /**
   * Sends a frame of this host to where the check is that it belongs to.
   * @param virtual @param address words. @param port that of the check, as a little-endian load gives it.
   * @returns false when there is none.
   */
  back(frame: number, virtual: number, address: number, port: number): boolean;
  /** The same of a sound ICMP error about a check; `t` is the index of the ICMP header's first word. */
  backError(frame: number, t: number): boolean;
}

/** Who gets from the balancer what belongs to checks of backends, and to nobody else. */
export interface Checks {
  /** Looks at a frame from another host whose source may be a virtual address. */
  note(frame: number): void;
  /**
   * Takes a TCP segment to a port of checks at a virtual address, whose header begins at word `t`.
   * @param virtual @param address words. @param port as a little-endian load gives it.
   * @returns false when it belongs to no check; then it is still the balancer's.
   */
  take(frame: number, t: number, virtual: number, address: number, port: number): boolean;
  /** Takes a sound ICMP error to a virtual address, whose header begins at word `t`; as `take`. */
  unreachable(frame: number, t: number): boolean;
}

/** @param tunnel takes frames for a VTEP, `dest` set. */
export function createRelay(context: Context, tunnel: Batch): Relay {
  const { u16, off, len, domain, ingress, dest } = context.frames;
  /** Virtual address, the backend's, domain and port, VTEP. */
  const entries = new Int32Array(ENTRIES * 4);

  function placeOf(virtual: number, address: number, about: number): number {
    const h = Math.imul(virtual ^ Math.imul(address ^ Math.imul(about, 0x85ebca6b), 0xc2b2ae35), 0x9e3779b1);
    return ((h ^ (h >>> 15)) & (ENTRIES - 1)) << 2;
  }

  function note(frame: number): void {
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    const t = ip + IPV4_HEADER / 2;
    if (len[frame] < ETHERNET_HEADER + IPV4_HEADER + TCP_HEADER || (u16[ip] & 0xff) !== 0x45) return;
    if (u16[ip + IPV4_TTL_PROTOCOL] >>> 8 !== PROTOCOL_TCP || !isProbePort(u16[t])) return;
    if ((u16[t + TCP_FLAGS] & (SYN_LE | ACK_LE | RST_LE)) !== SYN_LE) return;
    const virtual = u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16);
    const address = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    const about = (domain[frame] << 16) | u16[t];
    const at = placeOf(virtual, address, about);
    entries[at] = virtual;
    entries[at + 1] = address;
    entries[at + 2] = about;
    entries[at + 3] = ingress[frame];
  }

  function back(frame: number, virtual: number, address: number, port: number): boolean {
    // What came from another host never goes to a third.
    if (ingress[frame] >= REMOTE) return false;
    const about = (domain[frame] << 16) | port;
    const at = placeOf(virtual, address, about);
    if (entries[at + 3] === 0 || entries[at] !== virtual) return false;
    if (entries[at + 1] !== address || entries[at + 2] !== about) return false;
    dest[frame] = entries[at + 3];
    tunnel.push(frame);
    return true;
  }

  function backError(frame: number, t: number): boolean {
    const inner = t + ICMP_HEADER / 2;
    const virtual = u16[inner + IPV4_SOURCE] | (u16[inner + IPV4_SOURCE + 1] << 16);
    const address = u16[inner + IPV4_DESTINATION] | (u16[inner + IPV4_DESTINATION + 1] << 16);
    return back(frame, virtual, address, u16[inner + ((u16[inner] & 15) << 1)]);
  }

  return { note, back, backError };
}
