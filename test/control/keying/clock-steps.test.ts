import { setTimeout as delay } from 'node:timers/promises';
import test from 'ava';
import { waitFor } from '../../../cli/lab.js';
import { watchClockSteps } from '../../../control/keying/clock-steps.js';

test('a clock that is set forward or back is noticed once each time, one that only runs is not', async (t) => {
  const time = { wall: 1e12, monotonic: 5000 };
  const steps: number[] = [];
  const clocks = { wall: () => time.wall, monotonic: () => time.monotonic };
  const end = watchClockSteps((ms) => steps.push(ms), clocks);
  t.teardown(end);
  // A day passes at once, for both clocks; the wall clock is slewed by half a second.
  time.monotonic += 86_400_000;
  time.wall += 86_400_500;
  await delay(600);
  t.deepEqual(steps, []);
  time.wall += 3_600_000;
  await waitFor(() => steps.length > 0, { what: 'the step forward' });
  time.wall -= 7_200_000;
  await waitFor(() => steps.length > 1, { what: 'the step back' });
  await delay(600);
  t.deepEqual(steps, [3_600_000, -7_200_000]);
  end();
  time.wall += 3_600_000;
  await delay(600);
  t.is(steps.length, 2);
});
