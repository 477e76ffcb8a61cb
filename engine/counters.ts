/**
 * Counters in shared memory. One worker writes, anyone reads: a counter is a double, exact to 2^53, and an
 * aligned 8-byte store is never torn on the machines Weft runs on, so reading never disturbs the worker.
 *
 * A block is a run of counters that belong to one owner (an element, a port). The layout (names to indices)
 * is plain data and travels to other threads with `describe`.
 */
export interface CounterBlock {
  /** Owner, for instance `bridge` or `port:3`. */
  readonly owner: string;
  /** Index of the first counter. */
  readonly base: number;
  readonly names: readonly string[];
}

const PAD = 16; // 128 bytes, two lines apart: a block never shares a line with one that another thread writes

export class Counters {
  readonly values: Float64Array;
  private readonly blocks: CounterBlock[] = [];
  private free: { base: number; size: number }[] = [];
  private next = 0;

  constructor(readonly buffer: SharedArrayBuffer = new SharedArrayBuffer(8 * 65536)) {
    this.values = new Float64Array(buffer);
  }

  /** Claims a block of zeroed counters. @throws RangeError when the counter memory is exhausted. */
  claim(owner: string, names: readonly string[]): CounterBlock {
    const size = Math.ceil(Math.max(names.length, 1) / PAD) * PAD;
    const reuse = this.free.findIndex((hole) => hole.size === size);
    let base: number;
    if (reuse >= 0) base = this.free.splice(reuse, 1)[0].base;
    else {
      base = this.next;
      if (base + size > this.values.length) throw new RangeError(`no counter memory left for ${owner}`);
      this.next += size;
    }
    this.values.fill(0, base, base + size);
    const block: CounterBlock = { owner, base, names };
    this.blocks.push(block);
    return block;
  }

  /** Gives a block back when its owner is gone. */
  release(block: CounterBlock): void {
    const at = this.blocks.indexOf(block);
    if (at < 0) return;
    this.blocks.splice(at, 1);
    this.free.push({ base: block.base, size: Math.ceil(Math.max(block.names.length, 1) / PAD) * PAD });
  }

  /** The layout, to be read together with `buffer` from any thread. */
  describe(): CounterBlock[] {
    return this.blocks.slice();
  }
}

/** Reads every counter of a layout: owner → name → value, summed over blocks of the same owner. */
export function readCounters(
  values: Float64Array,
  layout: readonly CounterBlock[],
): Record<string, Record<string, number>> {
  const out: Record<string, Record<string, number>> = {};
  for (const block of layout) {
    const row = (out[block.owner] ??= {});
    for (let i = 0; i < block.names.length; i++)
      row[block.names[i]] = (row[block.names[i]] ?? 0) + values[block.base + i];
  }
  return out;
}
