/**
 * Seals and opens batches in a memory of its own under keys that other threads use too, and compares with node:crypto.
 * Says when it is ready, and then what was wrong, in one message; it ends by itself.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { FrameMemory } from '../../../engine/memory/frames.js';
import { native } from '../../../native-bindings/index.js';
import { type EspKey, noise, sealed } from './gcm.js';

export interface GcmWork {
  readonly seed: number;
  readonly rounds: number;
  /** Slots 0, 1, …, all of them installed. */
  readonly keys: readonly EspKey[];
}

const BATCH = 32;
const { seed, rounds, keys } = workerData as GcmWork;
const memory = new FrameMemory({ small: 4, large: 1, arena: BATCH * 2048 });
native.attach(memory.u8, memory.off, memory.len, memory.freeLarge);
const { u8, arenaStart } = memory;
const jobs = new Uint32Array(BATCH * 6);
const results = new Uint32Array(BATCH);

function round(number: number): string {
  const want: Uint8Array[] = [];
  const plain: Uint8Array[] = [];
  for (let i = 0; i < BATCH; i++) {
    const slot = (number + i) % keys.length;
    const header = arenaStart + i * 2048;
    plain.push(noise(seed + number * BATCH + i, (number * 37 + i * 53) % 1500));
    u8.set(noise(seed - number * BATCH - i, 16), header);
    u8.set(plain[i], header + 16);
    want.push(sealed(keys[slot], u8.subarray(header, header + 16), plain[i], i));
    jobs.set([header, header + 16, header + 16, plain[i].length, slot, i], i * 6);
  }
  const holds = (bytes: Uint8Array, i: number): boolean => {
    const at = arenaStart + i * 2048 + 16;
    return Buffer.compare(u8.subarray(at, at + bytes.length), bytes) === 0;
  };
  if (native.gcmSeal(jobs, BATCH) !== 0) return 'the batch was not sealed';
  if (!want.every(holds)) return 'sealed wrongly';
  if (native.gcmOpen(jobs, BATCH, results) !== 0) return 'the batch was not opened';
  if (!results.every((result) => result === 1)) return 'a packet did not open';
  return plain.every(holds) ? '' : 'opened wrongly';
}

parentPort?.once('message', () => {
  let problem = '';
  for (let number = 0; number < rounds && problem === ''; number++) problem = round(number);
  parentPort?.postMessage(problem);
});
parentPort?.postMessage('ready');
