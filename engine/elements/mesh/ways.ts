/**
 * The way that a packet of a station takes, and that of fragments behind the first: only the first has the ports that
 * say it. Those that come before it wait for it, whichever way it goes (see nat/fragments.ts, which bounds all that).
 */
import type { Batch, Context } from '../../graph.js';
import { OUT } from '../../tables/flows.js';
import { createFragments, type FragmentFamily, HELD, PASSED } from '../nat/fragments.js';

/** Of a packet that answers nobody who came over the mesh. */
export const NO_NODE = -1;
/** Of a fragment that waits, or that is gone: nobody else may touch it. */
export const WAITS = -2;

export interface Ways {
  /** Remembers the way of a first fragment, which it returns; those that waited for it come again. */
  first(frame: number, way: number): number;
  /** The way of a fragment behind the first, or WAITS. */
  later(frame: number): number;
  /** Gives up what waited too long, or all. */
  expire(all?: boolean): void;
}

/**
 * @param again takes fragments that waited, to be asked of again.
 * @param lost takes those that waited in vain, or for which there is no room.
 */
export function createWays(
  context: Context,
  { read }: FragmentFamily,
  again: Batch,
  lost: (frame: number) => void,
): Ways {
  /** Of the datagram at hand, in the place of an address that it would get. */
  const way = new Int32Array(4);
  const family: FragmentFamily = {
    read,
    replace(_u16, _ip, _inward, words, at) {
      way[0] = words[at];
    },
  };
  const fragments = createFragments(context, OUT, family, lost);

  function first(frame: number, of: number): number {
    way[0] = of;
    for (const waited of fragments.first(frame, way, 0, 0)) again.push(waited);
    return of;
  }

  function later(frame: number): number {
    const verdict = fragments.later(frame);
    if (verdict === PASSED) return way[0];
    if (verdict !== HELD) lost(frame);
    return WAITS;
  }

  return { first, later, expire: fragments.expire };
}
