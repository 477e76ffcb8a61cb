/**
 * A worker that receives or sends under associations that others use at the same time: its own memory and tables,
 * the shared state of the associations. The workers begin each batch at the same time, so that they meet.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { createEspDecrypt } from '../../../../engine/elements/esp-decrypt.js';
import { createEspEncrypt } from '../../../../engine/elements/esp-encrypt.js';
import { Batch } from '../../../../engine/graph.js';
import type { AssociationIntent } from '../../../../engine/intent.js';
import { BATCH_SIZE, FrameMemory, REMOTE } from '../../../../engine/memory/frames.js';
import { AssociationState } from '../../../../engine/tables/association-state.js';
import { Associations } from '../../../../engine/tables/associations.js';
import { Vteps } from '../../../../engine/tables/vteps.js';
import { dropped, Rig } from '../../../support/frames.js';

export interface SharingTask {
  readonly state: SharedArrayBuffer;
  readonly associations: readonly AssociationIntent[];
  readonly local: Uint8Array;
  /** Packets to open, or to seal; all of them `rounds` times, one after another. */
  readonly receive: boolean;
  readonly packets: readonly Uint8Array[];
  readonly rounds: number;
  /** Counts how often any worker was ready to begin a batch. */
  readonly gate: SharedArrayBuffer;
  readonly workers: number;
}

export interface SharingResult {
  /** What was let pass: of opened packets the last four bytes, of sealed ones SPI, sequence number and IV. */
  readonly passed: readonly string[];
  readonly drops: Record<string, number>;
}

function work(task: SharingTask): SharingResult {
  const { associations: intents, local: address, receive, packets, rounds } = task;
  const rig = new Rig(new FrameMemory({ small: 600, large: 8 }));
  const vteps = new Vteps(8);
  const local = { address, port: 4789, ttl: 64 };
  const associations = new Associations(new AssociationState(task.state), vteps.capacity);
  associations.set(intents, (vtep) => vteps.add(vtep, true, local, 0));
  const passed: string[] = [];
  const { u8, off, len } = rig.memory;
  const out = new Batch({
    process({ frames, count }) {
      for (const frame of frames.subarray(0, count)) {
        const end = off[frame] + len[frame];
        const [from, to] = receive ? [end - 4, end] : [off[frame] + 34, off[frame] + 50];
        passed.push(Buffer.from(u8.subarray(from, to)).toString('hex'));
        rig.memory.free(frame);
      }
    },
  });
  const options = { udpPort: 0, shared: true };
  const element = receive
    ? createEspDecrypt(rig.context, associations, { ...options, local, addressed: true }, out)
    : createEspEncrypt(rig.context, associations, vteps, { ...options, v6: false, checksum: false }, out);

  const gate = new Int32Array(task.gate);
  const batch = new Batch(element);
  let begun = 0;
  for (let round = 0; round < rounds; round++)
    for (let k = 0; k < packets.length; k += BATCH_SIZE) {
      for (const [i, bytes] of packets.slice(k, k + BATCH_SIZE).entries())
        batch.push(rig.put(bytes, { alignment: 6, dest: REMOTE | ((i >> 6) % intents.length) }));
      begun += task.workers;
      Atomics.add(gate, 0, 1);
      while (Atomics.load(gate, 0) < begun);
      batch.flush();
      out.flush();
    }
  rig.memory.audit();
  if (rig.memory.inUse !== 0) throw new Error(`${rig.memory.inUse} slots leaked`);
  return { passed, drops: dropped(element.drops) };
}

parentPort?.postMessage(work(workerData as SharingTask));
