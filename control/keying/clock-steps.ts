/**
 * Watches for steps of the wall clock. A machine that is resumed from an image of its running memory, perhaps for the
 * second time, has its clock set once somebody tells it the time; so have others, which does no harm: whoever hears of
 * a step makes traffic keys anew. A copy is noticed by its first step and no sooner (see docs/encryption.md).
 */
import { performance } from 'node:perf_hooks';

const LOOK_MS = 250;
/** ms. Clocks that are disciplined run a little faster or slower, and do not step. */
const STEP_MS = 1000;

export interface Clocks {
  /** ms since 1970, as the machine believes. */
  wall(): number;
  /** ms, never going back and never set. */
  monotonic(): number;
}

const CLOCKS: Clocks = { wall: () => Date.now(), monotonic: () => performance.now() };

/**
 * @param stepped called with the ms by which the clock was set, forward or back.
 * @returns ends the watch.
 */
export function watchClockSteps(stepped: (ms: number) => void, clocks: Clocks = CLOCKS): () => void {
  let before = clocks.wall() - clocks.monotonic();
  const timer = setInterval(() => {
    const now = clocks.wall() - clocks.monotonic();
    const step = now - before;
    before = now;
    if (Math.abs(step) > STEP_MS) stepped(step);
  }, LOOK_MS).unref();
  return () => clearInterval(timer);
}
