/**
 * Frames that must pass a stage of this breath again, which has run already: they wait here, and the data plane runs
 * its stages once more. An element must never be entered from within itself, as a full batch would do.
 */
import { type Batch, type Consumer, type Context, Drops } from './graph.js';
import { BATCH_SIZE } from './memory/frames.js';

const REASONS = ['queue-full'] as const;
const MOST = 4 * BATCH_SIZE;

export interface Deferred extends Consumer {
  readonly drops: Drops;
  push(frame: number): void;
  /** Moves up to a batch of the frames, oldest first. Returns how many. */
  release(to: Batch): number;
}

export function createDeferred(context: Context, name: string): Deferred {
  const drops = new Drops(context, name, REASONS);
  const waiting = new Uint32Array(MOST);
  let first = 0;
  let count = 0;

  function push(frame: number): void {
    if (count === MOST) drops.drop(frame, 0);
    else waiting[(first + count++) % MOST] = frame;
  }

  function process(batch: Batch): void {
    for (let k = 0; k < batch.count; k++) push(batch.frames[k]);
  }

  function release(to: Batch): number {
    const moved = Math.min(count, BATCH_SIZE);
    for (let k = 0; k < moved; k++) to.push(waiting[(first + k) % MOST]);
    first = (first + moved) % MOST;
    count -= moved;
    return moved;
  }

  return { drops, push, process, release };
}
