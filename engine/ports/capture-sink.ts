/** The port at the far end of a replay: counts frames and frees their slots. */
import type { Batch, Consumer, Context } from '../graph.js';

export interface CaptureSink extends Consumer {
  /** Frames taken so far. */
  delivered(): number;
}

export function createCaptureSink(context: Context): CaptureSink {
  const { frames } = context;
  /** In an array: a variable beyond 31 bits makes an object at each store. */
  const delivered = new Float64Array(1);

  function process(batch: Batch): void {
    frames.freeAll(batch.frames, batch.count);
    delivered[0] += batch.count;
  }

  return { process, delivered: () => delivered[0] };
}
