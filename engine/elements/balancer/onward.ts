/** How what has no ports of its own goes on to a backend or comes from one: the same for IPv4 and IPv6. */
import type { Batch, Context } from '../../graph.js';
import { FLOW_SHIFT, IN, OUT, STATE } from '../../tables/flows.js';
import { ERROR_REASONS, type ErrorTranslator, TRANSLATED } from '../nat/errors.js';
import { type Fragments, HELD, PASSED } from '../nat/fragments.js';
import type { OddOptions } from './odd.js';

const NO_FLOW_FOR_IT = ERROR_REASONS.indexOf('icmp-no-flow');

/** What depends on the family. */
export interface Family {
  readonly translator: ErrorTranslator;
  /** By direction. */
  readonly fragments: readonly Fragments[];
  /** Gives a packet to a backend the MAC, and what else is not the same for all of them. */
  readonly address: (frame: number, own: number) => void;
}

export interface Onward {
  /**
   * Sends an error whose ICMP header begins at byte `at` to the backend whose flow it is about; `own` is the address on
   * our side. @returns TRANSLATED, or an index of ERROR_REASONS.
   */
  toBackend(frame: number, at: number, own: number): number;
  /** The same of one to a virtual address: what is about no flow may be about a check, or is dropped. */
  errorToService(frame: number, at: number, own: number): void;
  /** Takes a fragment behind the first. */
  later(frame: number, direction: number, own: number): void;
  /** Sends on a packet whose addresses are translated already; to a backend under its MAC. */
  deliver(frame: number, direction: number, own: number): void;
  /** Gives up what waits for a first fragment that was refused. */
  refuse(frame: number): void;
  /** Gives up what waited too long, or all. */
  expire(all?: boolean): void;
}

/** @param out takes what passes, to the bridge. */
export function createOnward(
  context: Context,
  { flows, services, checks, drops, fragment, firstError }: OddOptions,
  { translator, fragments, address }: Family,
  out: Batch,
): Onward {
  const { u16, off } = context.frames;
  const { macs, keeps } = services;

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

  function errorToService(frame: number, at: number, own: number): void {
    const verdict = toBackend(frame, at, own);
    if (verdict === TRANSLATED) return;
    if (verdict !== NO_FLOW_FOR_IT || !checks?.unreachable(frame, (off[frame] + at) >>> 1))
      drops.drop(frame, firstError + verdict);
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

  function deliver(frame: number, direction: number, own: number): void {
    if (direction === IN) address(frame, own);
    out.push(frame);
  }

  return {
    toBackend,
    errorToService,
    later,
    deliver,
    refuse: (frame) => fragments[IN].refuse(frame),
    expire(all) {
      for (const side of fragments) side.expire(all);
    },
  };
}
