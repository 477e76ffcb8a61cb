/**
 * The thread that waits for the frames of one `Tap` and hands them over in bursts, copied. It sleeps in the kernel
 * until there are frames, and after each burst until the stream has room again.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { FrameMemory, LARGE_CAPACITY } from '../../engine/memory/frames.js';
import { native } from '../../native-bindings/index.js';
import { PLAIN_HEADER, type ReaderData, STOP, TAKEN } from './shared.js';

/** Frames read before the stream is asked whether it has room: what may wait beyond its high-water mark. */
const BURST = 32;
function run({ fd, wake, shared }: ReaderData): void {
  const memory = new FrameMemory({ small: 0, large: BURST });
  native.attach(memory.u8, memory.off, memory.len, memory.freeLarge);
  const ready = new Uint32Array(2);
  const wait = native.waitCreate();
  native.waitAdd(wait, fd, 0);
  native.waitAdd(wait, wake, 1);
  try {
    while (Atomics.load(shared, STOP) === 0) {
      native.wait(wait, ready, -1, 0);
      if (Atomics.load(shared, STOP) !== 0) break;
      const taken = Atomics.load(shared, TAKEN);
      const count = native.tapRead(fd, BURST, BURST, PLAIN_HEADER, LARGE_CAPACITY);
      if (count < 0) throw new Error(`the TAP cannot be read any more (errno ${-count}): was it removed?`);
      if (count === 0) continue;
      handOver(memory, count);
      // Ends at once when TAKEN has moved on already; the stream moves it when it stops us, too.
      Atomics.wait(shared, TAKEN, taken);
    }
  } finally {
    native.close(wait);
  }
}

/** The slots stay free: nothing but the read fills them, and their frames are copied out before the next one. */
function handOver(memory: FrameMemory, count: number): void {
  const frames: Uint8Array<ArrayBuffer>[] = [];
  for (let i = 0; i < count; i++) {
    const slot = memory.freeLarge[BURST - 1 - i];
    const start = memory.off[slot];
    frames.push(new Uint8Array(memory.u8.subarray(start, start + memory.len[slot] - PLAIN_HEADER)));
  }
  parentPort?.postMessage(
    frames,
    frames.map(({ buffer }) => buffer),
  );
}

run(workerData as ReaderData);
