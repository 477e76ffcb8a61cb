/** Where frames enter and leave. Elements never know which kind of port they talk to. */
import type { Batch, Consumer } from '../graph.js';

export interface Port extends Consumer {
  /** Number by which elements and counters know the port. */
  readonly id: number;
  /** Descriptor that becomes readable when frames wait; -1 for a port that is always ready (a capture). */
  readonly fd: number;
  /**
   * Receives up to a batch of frames and pushes them to `to`, with off, len, ingress, domain and offload set.
   * @returns how many; 0 when nothing waits or no slot is free; negative when the device is gone.
   */
  receive(to: Batch): number;
  /** Sends the frames of a batch and frees them; what cannot be sent is dropped with a reason. */
  process(batch: Batch): void;
  /** Releases counters; the descriptor belongs to whoever opened it. */
  close(): void;
}
