/**
 * The lock of an association's slot, for workers that send or receive under it at the same time. It is held for a run
 * of packets' bookkeeping, well below a microsecond, so waiting is looking again.
 */

export function acquire(lock: Int32Array, slot: number): void {
  while (Atomics.compareExchange(lock, slot, 0, 1) !== 0);
}

export function release(lock: Int32Array, slot: number): void {
  Atomics.store(lock, slot, 0);
}
