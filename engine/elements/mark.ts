/**
 * `mark`: sets the firewall mark of each frame by the first rule that its packet meets, as the mangle table does;
 * without one it has none. Of fragments only the first has ports; the others meet rules for any port alone.
 *
 * Rules are looked at one by one, each some nanoseconds: they are meant to be few. Not handled: IPv6.
 */
import type { Batch, Consumer, Context } from '../graph.js';
import type { MarkIntent } from '../intent.js';
import { addressWord, maskWord } from '../tables/gateways.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV4_LE, swap16 } from '../wire/ethernet.js';
import {
  IPV4_DESTINATION,
  IPV4_FRAGMENT,
  IPV4_HEADER,
  IPV4_SOURCE,
  IPV4_TTL_PROTOCOL,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
} from '../wire/ip.js';

export interface Marker extends Consumer {
  /** Makes the rules what the list says. Called between breaths. */
  set(rules: readonly MarkIntent[]): void;
}

/** A rule as the loop wants it; addresses as little-endian words. */
interface Rule {
  readonly mark: number;
  readonly domain: number;
  readonly protocol: number;
  readonly anyAddress: boolean;
  readonly address: number;
  readonly firstPort: number;
  readonly lastPort: number;
  readonly source: number;
  readonly mask: number;
  readonly port: number;
}

/** @param next takes the same batch, its frames marked. */
export function createMarker(context: Context, next: Consumer): Marker {
  const { u16, off, len, domain, ingress, mark } = context.frames;
  let rules: readonly Rule[] = [];

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    if (rules.length === 0) for (let k = 0; k < count; k++) mark[ids[k]] = 0;
    else for (let k = 0; k < count; k++) mark[ids[k]] = markOf(ids[k]);
    next.process(batch);
  }

  function markOf(frame: number): number {
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    const header = (u16[ip] & 15) << 2;
    if (len[frame] < ETHERNET_HEADER + IPV4_HEADER || u16[w + 6] !== ETHERTYPE_IPV4_LE) return 0;
    if ((u16[ip] & 0xf0) !== 0x40 || header < IPV4_HEADER) return 0;
    const protocol = u16[ip + IPV4_TTL_PROTOCOL] >>> 8;
    // A mark leads to a service, and those have no other protocols.
    if (protocol !== PROTOCOL_TCP && protocol !== PROTOCOL_UDP) return 0;
    const whole = (u16[ip + IPV4_FRAGMENT] & 0xff1f) === 0 && len[frame] >= ETHERNET_HEADER + header + 4;
    const port = whole ? swap16(u16[ip + (header >>> 1) + 1]) : -1;
    const source = u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16);
    const destination = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    for (let i = 0; i < rules.length; i++) {
      const rule = rules[i];
      if (rule.domain !== domain[frame] || (rule.protocol !== 0 && rule.protocol !== protocol)) continue;
      if (!rule.anyAddress && rule.address !== destination) continue;
      if ((source & rule.mask) !== rule.source || (rule.port >= 0 && rule.port !== ingress[frame])) continue;
      const anyPort = rule.firstPort === 0 && rule.lastPort === 65535;
      if (anyPort || (port >= rule.firstPort && port <= rule.lastPort)) return rule.mark;
    }
    return 0;
  }

  function set(wanted: readonly MarkIntent[]): void {
    rules = wanted.map(({ address, source, length, ...rest }) => ({
      ...rest,
      anyAddress: address === undefined,
      address: address === undefined ? 0 : addressWord(address),
      source: addressWord(source) & maskWord(length),
      mask: maskWord(length),
    }));
  }

  return { process, set };
}
