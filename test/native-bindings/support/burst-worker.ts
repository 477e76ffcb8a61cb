import { parentPort, workerData } from 'node:worker_threads';
import { burst } from './burst.js';

parentPort?.postMessage(burst(workerData as number));
