/** Waits for ever on the event it was given, and says what woke it. */
import { parentPort, workerData } from 'node:worker_threads';
import { native } from '../../../native-bindings/index.js';

const wait = native.waitCreate();
native.waitAdd(wait, workerData as number, 5);
const ready = new Uint32Array(1);
parentPort?.postMessage('waiting');
while (native.wait(wait, ready, -1, 0) === 0);
native.eventClear(workerData as number);
native.close(wait);
parentPort?.postMessage(`woken by ${ready[0]}`);
