/** Several threads under the same keys at the same time. */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import test, { type ExecutionContext } from 'ava';
import { native } from '../../native-bindings/index.js';
import { type EspKey, noise } from './support/gcm.js';
import type { GcmWork } from './support/gcm-worker.js';

const SCRIPT = new URL('./support/gcm-worker.js', import.meta.url);

/** Workers that have attached their memory and wait for a message to begin. */
async function workers(t: ExecutionContext, count: number, keys: readonly EspKey[], rounds: number) {
  const list = Array.from({ length: count }, (_, i) => {
    const workerData: GcmWork = { seed: i * 100_003, rounds, keys };
    return new Worker(SCRIPT, { workerData });
  });
  t.teardown(() => Promise.all(list.map((worker) => worker.terminate())));
  const said = (worker: Worker): Promise<string> => once(worker, 'message').then(([text]) => text as string);
  t.deepEqual(
    await Promise.all(list.map(said)),
    list.map(() => 'ready'),
  );
  return {
    /** What each found wrong. */
    async run(): Promise<string[]> {
      const answers = list.map(said);
      for (const worker of list) worker.postMessage('go');
      return await Promise.all(answers);
    },
  };
}

for (const library of native.gcmLibraries()) {
  test.serial(`${library}: four threads under one slot, and under five`, async (t) => {
    for (const count of [1, 5]) {
      const keys = Array.from({ length: count }, (_, i) => ({
        key: noise(i + 1, [16, 24, 32][i % 3]),
        salt: noise(i + 9, 4),
        icv: ([16, 12, 8] as const)[i % 3],
        esn: i % 2 === 1,
      }));
      for (const [slot, key] of keys.entries()) native.gcmInstall({ ...key, slot, library });
      const { run } = await workers(t, 4, keys, 60);
      const answers = run();
      // Keys of others come and go meanwhile; each removal waits for the batches under way.
      let changes = 0;
      for (let done = false; !done; ) {
        for (let slot = 100; slot < 120; slot++) native.gcmInstall({ ...keys[0], slot, library });
        for (let slot = 100; slot < 120; slot++) native.gcmRemove(slot);
        changes++;
        done = await Promise.race([
          answers.then(() => true),
          new Promise<false>((go) => setTimeout(go, 1, false)),
        ]);
      }
      t.deepEqual(await answers, ['', '', '', '']);
      t.true(changes > 0);
      for (const slot of keys.keys()) native.gcmRemove(slot);
    }
  });
}

test.serial(
  'a thread that has attached nothing seals nothing, and one that ended does not hold up a removal',
  async (t) => {
    native.gcmInstall({ key: noise(1, 16), salt: noise(2, 4), icv: 16, esn: false, slot: 7 });
    const source = `
    const { parentPort, workerData } = require('node:worker_threads');
    const native = require(workerData);
    parentPort.postMessage([
      native.gcmSeal(Uint32Array.of(0, 16, 16, 0, 7, 0), 1),
      native.gcmOpen(Uint32Array.of(0, 16, 16, 0, 7, 0), 1, new Uint32Array(1)),
      native.gcmSeal(new Uint32Array(0), 0),
    ]);`;
    const path = new URL('../../../native-bindings/build/weft.node', import.meta.url).pathname;
    const worker = new Worker(source, { eval: true, workerData: path });
    const [answer] = await once(worker, 'message');
    t.deepEqual(answer, [-14, -14, 0]);
    await worker.terminate();
    native.gcmRemove(7);
    native.gcmRemove(7);
  },
);
