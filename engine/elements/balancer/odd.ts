/**
 * What of a service's packets has no ports of its own: ICMP, and fragments behind the first.
 *
 * Of a service that is `direct` fragments and ICMP errors keep their addresses and get the MAC. A fragment of a caller
 * to itself gets the virtual address for its source, as its first one did.
 *
 * An error to an address that is no virtual one may be about a flow to which a mark led, and has no mark itself: it is
 * looked for among the flows, and passes as it is when it is about none.
 *
 * Not handled: fragments of a backend that overtake their first one, which leave untranslated: most that come from its
 * address belong to no service, and must not wait.
 */
import type { Batch, Context, Drops } from '../../graph.js';
import { BALANCER_PORT } from '../../intent.js';
import { EXTERNAL, type Flows, IN, INSIDE, OUT } from '../../tables/flows.js';
import { MAPPED_IPV4, type Neighbours, NO_NEIGHBOUR } from '../../tables/neighbours.js';
import type { Services } from '../../tables/services.js';
import { ETHERNET_HEADER, swap16 } from '../../wire/ethernet.js';
import { isError } from '../../wire/icmp.js';
import { IPV4_DESTINATION, IPV4_LENGTH, IPV4_SOURCE } from '../../wire/ip.js';
import { answerEcho, isEcho } from '../echo.js';
import { createErrorTranslator, TRANSLATED } from '../nat/errors.js';
import { createFragments, FRAGMENTS_V4 } from '../nat/fragments.js';
import { replaceAddress } from '../nat/packet.js';
import { createOnward, type Onward } from './onward.js';
import type { Checks } from './relay.js';

export interface OddOptions {
  readonly flows: Flows;
  /** What keys of the balancer have in common. */
  readonly ownerKey: number;
  readonly services: Services;
  readonly neighbours: Neighbours;
  readonly checks: Checks | undefined;
  readonly drops: Drops;
  /** Places in the list of drop reasons: fragments, what no service has, and the first of ERROR_REASONS. */
  readonly fragment: number;
  readonly notServed: number;
  readonly firstError: number;
  /** Called for each echo that was answered. */
  readonly answered: () => void;
}

export interface Odd extends Omit<Onward, 'toBackend' | 'errorToService'> {
  /** Takes ICMP that is whole; `t` is the index of its first word, `own` the word of the address on our side. */
  icmp(frame: number, t: number, direction: number, own: number): void;
  /** Remembers the first fragment of a flow whose words begin at `at`. @returns those that waited for it. */
  first(frame: number, direction: number, at: number): readonly number[];
}

/** @param out takes what passes, to the bridge. */
export function createOdd(context: Context, options: OddOptions, out: Batch): Odd {
  const { frames } = context;
  const { u16, off, len, domain, ingress, mark } = frames;
  const { flows, services, neighbours, drops, fragment, notServed, answered } = options;
  const translator = createErrorTranslator(context, options);
  const fragments = [OUT, IN].map((direction) =>
    createFragments(context, direction, FRAGMENTS_V4, (frame) => drops.drop(frame, fragment), true),
  );
  const onward = createOnward(context, options, { translator, fragments, address }, out);

  function icmp(frame: number, t: number, direction: number, own: number): void {
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    if (direction === IN && isEcho(u16, ip)) {
      answerEcho(frames, frame);
      answered();
      ingress[frame] = BALANCER_PORT;
      out.push(frame);
      return;
    }
    if (!isError(u16[t] & 0xff)) {
      if (direction === OUT) out.push(frame);
      else drops.drop(frame, notServed);
      return;
    }
    // An error ends with its packet, whatever a link has put behind it.
    len[frame] = Math.min(len[frame], ETHERNET_HEADER + swap16(u16[ip + IPV4_LENGTH]));
    const at = (t << 1) - off[frame];
    if (direction === OUT) otherError(frame, ip, at);
    else onward.errorToService(frame, at, own);
  }

  /** An error to no virtual address: of a backend, about what went out from a marked address, or about neither. */
  function otherError(frame: number, ip: number, at: number): void {
    const called = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    if (translator.translate(frame, OUT, at) === TRANSLATED) out.push(frame);
    else if (onward.toBackend(frame, at, called) !== TRANSLATED) out.push(frame);
  }

  function first(frame: number, direction: number, at: number): readonly number[] {
    const address = at + (direction === OUT ? EXTERNAL : INSIDE);
    return fragments[direction].first(frame, flows.words, address, domain[frame]);
  }

  /** Gives a packet to a backend the MAC, and what else is not the same for all of them. */
  function address(frame: number, own: number): void {
    const w = off[frame] >>> 1;
    const ip = w + ETHERNET_HEADER / 2;
    const backend = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    const source = u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16);
    if (isDirect(frame, own)) replaceAddress(u16, ip, IPV4_DESTINATION, own);
    else if (source === backend) {
      for (let i = 0; i < 3; i++) u16[w + 3 + i] = u16[w + i];
      ingress[frame] = BALANCER_PORT;
      replaceAddress(u16, ip, IPV4_SOURCE, own);
    }
    // Of one whose MAC is not known the virtual station makes a counted drop.
    const known = neighbours.lookup(domain[frame], 0, 0, MAPPED_IPV4, backend);
    if (known === NO_NEIGHBOUR) return;
    for (let i = 0; i < 3; i++) u16[w + i] = neighbours.macWord(known, i);
  }

  function isDirect(frame: number, own: number): boolean {
    return services.isDirect(domain[frame], own, mark[frame]);
  }

  const { later, deliver, refuse, expire } = onward;
  return { icmp, later, first, deliver, refuse, expire };
}
