/** The port at the far end of a replay: counts frames and frees their slots. */
import type { Batch, Consumer, Context } from '../graph.js';

export interface CaptureSink extends Consumer {
  /** Frames taken so far. */
  delivered(): number;
}

export function createCaptureSink(context: Context): CaptureSink {
  const { frames } = context;
  let delivered = 0;

  function process(batch: Batch): void {
    frames.freeAll(batch.frames, batch.count);
    delivered += batch.count;
  }

  return { process, delivered: () => delivered };
}
