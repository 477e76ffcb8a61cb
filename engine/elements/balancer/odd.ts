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
import { EXTERNAL, FLOW_SHIFT, type Flows, IN, INSIDE, OUT, STATE } from '../../tables/flows.js';
import { MAPPED_IPV4, type Neighbours, NO_NEIGHBOUR } from '../../tables/neighbours.js';
import type { Services } from '../../tables/services.js';
import { ETHERNET_HEADER, swap16 } from '../../wire/ethernet.js';
import { isError } from '../../wire/icmp.js';
import { IPV4_DESTINATION, IPV4_LENGTH, IPV4_SOURCE } from '../../wire/ip.js';
import { answerEcho, isEcho } from '../echo.js';
import { createErrorTranslator, ERROR_REASONS, TRANSLATED } from '../nat/errors.js';
import { createFragments, FRAGMENTS_V4, HELD, PASSED } from '../nat/fragments.js';
import { replaceAddress } from '../nat/packet.js';
import type { Checks } from './relay.js';

const NO_FLOW_FOR_IT = ERROR_REASONS.indexOf('icmp-no-flow');

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

export interface Odd {
  /** Takes ICMP that is whole; `t` is the index of its first word, `own` the word of the address on our side. */
  icmp(frame: number, t: number, direction: number, own: number): void;
  /** Takes a fragment behind the first. */
  later(frame: number, direction: number, own: number): void;
  /** Remembers the first fragment of a flow whose words begin at `at`. @returns those that waited for it. */
  first(frame: number, direction: number, at: number): readonly number[];
  /** Sends on one that waited. */
  deliver(frame: number, direction: number, own: number): void;
  /** Gives up what waits for a first fragment that was refused. */
  refuse(frame: number): void;
  /** Gives up what waited too long, or all. */
  expire(all?: boolean): void;
}

/** @param out takes what passes, to the bridge. */
export function createOdd(context: Context, options: OddOptions, out: Batch): Odd {
  const { frames } = context;
  const { u16, off, len, domain, ingress, mark } = frames;
  const { flows, services, neighbours, checks, drops, fragment, notServed, firstError, answered } = options;
  const { macs, keeps } = services;
  const translator = createErrorTranslator(context, options);
  const fragments = [OUT, IN].map((direction) =>
    createFragments(context, direction, FRAGMENTS_V4, (frame) => drops.drop(frame, fragment), true),
  );

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
    if (direction === OUT) {
      otherError(frame, ip, at);
      return;
    }
    const verdict = toBackend(frame, at, own);
    if (verdict !== TRANSLATED && (verdict !== NO_FLOW_FOR_IT || !checks?.unreachable(frame, t)))
      drops.drop(frame, firstError + verdict);
  }

  /** An error to no virtual address: of a backend, about what went out from a marked address, or about neither. */
  function otherError(frame: number, ip: number, at: number): void {
    const called = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    if (translator.translate(frame, OUT, at) === TRANSLATED) out.push(frame);
    else if (toBackend(frame, at, called) !== TRANSLATED) out.push(frame);
  }

  /** Sends an error to the backend whose flow it is about. @returns TRANSLATED, or an index of ERROR_REASONS. */
  function toBackend(frame: number, at: number, own: number): number {
    const flow = translator.flowOf(frame, IN, at);
    if (flow < 0) return -1 - flow;
    const backend = (flows.words[(flow << FLOW_SHIFT) + STATE] >>> 8) - 1;
    if (keeps[backend] === 1) {
      for (let i = 0; i < 3; i++) u16[(off[frame] >>> 1) + i] = macs[backend * 3 + i];
      out.push(frame);
    } else {
      translator.translate(frame, IN, at);
      deliver(frame, IN, own);
    }
    return TRANSLATED;
  }

  function later(frame: number, direction: number, own: number): void {
    const side = fragments[direction];
    if (direction === OUT && !side.known(frame)) {
      out.push(frame);
      return;
    }
    const verdict = side.later(frame);
    if (verdict === PASSED) deliver(frame, direction, own);
    else if (verdict !== HELD) drops.drop(frame, fragment);
  }

  function first(frame: number, direction: number, at: number): readonly number[] {
    const address = at + (direction === OUT ? EXTERNAL : INSIDE);
    return fragments[direction].first(frame, flows.words, address, domain[frame]);
  }

  /** Sends on a packet whose addresses are translated already; to a backend under its MAC. */
  function deliver(frame: number, direction: number, own: number): void {
    if (direction === IN) address(frame, own);
    out.push(frame);
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

  return {
    icmp,
    later,
    first,
    deliver,
    refuse: (frame) => fragments[IN].refuse(frame),
    expire(all) {
      for (const side of fragments) side.expire(all);
    },
  };
}
