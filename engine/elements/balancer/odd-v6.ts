/** What of a service's packets of IPv6 has no ports of its own, as odd.ts has it of IPv4: ICMPv6, and later fragments. */
import type { Batch, Context } from '../../graph.js';
import { BALANCER_PORT } from '../../intent.js';
import { type Addresses6, NO_ADDRESS } from '../../tables/addresses6.js';
import { IN, OUT } from '../../tables/flows.js';
import { NO_NEIGHBOUR } from '../../tables/neighbours.js';
import { IPV6_SPACE } from '../../tables/services.js';
import { pair } from '../../wire/arp.js';
import { ETHERNET_HEADER } from '../../wire/ethernet.js';
import { ICMP_HEADER } from '../../wire/icmp.js';
import { isErrorV6 } from '../../wire/icmpv6.js';
import { IPV6_DESTINATION, IPV6_SOURCE } from '../../wire/ip.js';
import { FIRST_OF_FRAGMENTS } from '../../wire/ipv6.js';
import { NEIGHBOUR_SOLICITATION_LE } from '../../wire/nd.js';
import { answerEchoV6, isEchoV6 } from '../echo.js';
import { TRANSLATED } from '../nat/errors.js';
import { createErrorTranslatorV6 } from '../nat/errors-v6.js';
import { createFragments } from '../nat/fragments.js';
import { FRAGMENTS_V6, replaceAddressV6 } from '../nat/packet-v6.js';
import type { Odd, OddOptions } from './odd.js';
import { createOnward } from './onward.js';

export interface OddV6 extends Omit<Odd, 'icmp' | 'first'> {
  /** Takes ICMPv6 of `total` bytes, whose header `upperLayer` has found; `own` is the number of the address on our side. */
  icmp(frame: number, upper: number, total: number, direction: number, own: number): void;
  /** Remembers the first fragment of a flow, and the address that it gets. @returns those that waited for it. */
  first(frame: number, direction: number, address: number): readonly number[];
}

/** @param out takes what passes, to the bridge. */
export function createOddV6(
  context: Context,
  options: OddOptions & { readonly addresses: Addresses6 },
  out: Batch,
): OddV6 {
  const { frames } = context;
  const { u16, off, len, domain, ingress, mark } = frames;
  const { addresses, services, neighbours, drops, fragment, notServed, answered } = options;
  const translator = createErrorTranslatorV6(context, options, addresses);
  const fragments = [OUT, IN].map((direction) =>
    createFragments(context, direction, FRAGMENTS_V6, (frame) => drops.drop(frame, fragment), true),
  );
  const onward = createOnward(context, options, { translator, fragments, address }, out);

  function icmp(frame: number, upper: number, total: number, direction: number, own: number): void {
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    const at = ETHERNET_HEADER + (upper & 0xffff);
    const whole = (upper & FIRST_OF_FRAGMENTS) === 0 && ETHERNET_HEADER + total - at >= ICMP_HEADER;
    const first = u16[(off[frame] + at) >>> 1];
    const error = whole && isErrorV6(first & 0xff);
    // An error ends with its packet, whatever a link has put behind it.
    if (error) len[frame] = ETHERNET_HEADER + total;
    if (direction === OUT && error) otherError(frame, ip, at);
    else if (direction === OUT) out.push(frame);
    else if (error) onward.errorToService(frame, at, own);
    else if (whole && first === NEIGHBOUR_SOLICITATION_LE) out.push(frame);
    else if (whole && isEchoV6(u16, ip)) {
      answerEchoV6(frames, frame);
      answered();
      ingress[frame] = BALANCER_PORT;
      out.push(frame);
    } else drops.drop(frame, notServed);
  }

  /** An error to no virtual address: of a backend, about what went out from a marked address, or about neither. */
  function otherError(frame: number, ip: number, at: number): void {
    const isOut = translator.translate(frame, OUT, at) === TRANSLATED;
    const called = isOut ? NO_ADDRESS : addresses.find(u16, ip + IPV6_DESTINATION);
    if (called === NO_ADDRESS || onward.toBackend(frame, at, called) !== TRANSLATED) out.push(frame);
  }

  function first(frame: number, direction: number, address: number): readonly number[] {
    return fragments[direction].first(frame, addresses.words, address * 4, domain[frame]);
  }

  /** Gives a packet to a backend the MAC, and what else is not the same for all of them. */
  function address(frame: number, own: number): void {
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    const at = ip + IPV6_DESTINATION;
    const known = neighbours.lookup(
      domain[frame],
      pair(u16, at),
      pair(u16, at + 2),
      pair(u16, at + 4),
      pair(u16, at + 6),
    );
    const backend = addresses.find(u16, at);
    if (services.isDirect(domain[frame] | IPV6_SPACE, own, mark[frame]))
      replaceAddressV6(u16, at, addresses.words, own * 4);
    else if (addresses.find(u16, ip + IPV6_SOURCE) === backend) {
      for (let i = 0; i < 3; i++) u16[w + 3 + i] = u16[w + i];
      ingress[frame] = BALANCER_PORT;
      replaceAddressV6(u16, ip + IPV6_SOURCE, addresses.words, own * 4);
    }
    // Of one whose MAC is not known the virtual station makes a counted drop.
    if (known === NO_NEIGHBOUR) return;
    for (let i = 0; i < 3; i++) u16[w + i] = neighbours.macWord(known, i);
  }

  const { later, deliver, refuse, expire } = onward;
  return { icmp, later, first, deliver, refuse, expire };
}
