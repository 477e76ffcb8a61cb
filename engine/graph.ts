/**
 * The graph: batches between elements, and the drops that elements name.
 *
 * An element consumes a batch and pushes each frame to exactly one of its outputs, or drops it with a reason.
 * An output is a `Batch`: when it is full, or when the breath reaches it, it hands its frames to the next
 * element. So a breath needs no queue, and the memory in flight is bounded by the batches alone.
 */
import type { CounterBlock, Counters } from './counters.js';
import { BATCH_SIZE, type FrameMemory } from './memory/frames.js';

/** Something that consumes whole batches: an element, or the sending side of a port. */
export interface Consumer {
  /** Takes every frame of the batch. After the call the frames belong to someone else or are free. */
  process(batch: Batch): void;
}

/** Called for each dropped frame, before its slot is freed. Reasons are indices into the element's list. */
export type DropObserver = (frame: number, element: string, reason: string) => void;

/** What the engine gives every element: its memory, its counters, the time of the breath and randomness. */
export class Context {
  /** Milliseconds on a monotonic clock, read once a breath. */
  now = 0;
  /** The same in whole seconds, for tables: a small integer stores without allocating. */
  seconds = 0;
  /** Set while a capture of drops is wanted; null costs one comparison per dropped frame. */
  dropObserver: DropObserver | null = null;

  constructor(
    readonly frames: FrameMemory,
    readonly counters: Counters,
    /** Seed of hashes and sampling; an argument, so that a test repeats. */
    readonly seed: number,
  ) {}

  setTime(milliseconds: number): void {
    this.now = milliseconds;
    this.seconds = Math.floor(milliseconds / 1000);
  }
}

/** A bounded run of frames on its way to one consumer. */
export class Batch {
  readonly frames = new Uint32Array(BATCH_SIZE);
  count = 0;
  /** Where the frames go. A port that is being removed is replaced by a consumer that drops. */
  next: Consumer;

  constructor(next: Consumer) {
    this.next = next;
  }

  /** Adds a frame; hands the batch on first when it is full. */
  push(frame: number): void {
    if (this.count === BATCH_SIZE) this.flush();
    this.frames[this.count++] = frame;
  }

  /** Hands the frames on, if there are any. */
  flush(): void {
    if (this.count === 0) return;
    this.next.process(this);
    this.count = 0;
  }
}

/** Counters and named drop reasons of one element or port. */
export class Drops<Reason extends string = string> {
  private readonly reasons: CounterBlock;

  constructor(
    private readonly context: Context,
    readonly owner: string,
    readonly names: readonly Reason[],
  ) {
    this.reasons = context.counters.claim(`${owner}:drops`, names);
  }

  /** Counts the frame under `names[reason]` and frees it. */
  drop(frame: number, reason: number): void {
    this.context.counters.values[this.reasons.base + reason]++;
    if (this.context.dropObserver !== null) this.context.dropObserver(frame, this.owner, this.names[reason]);
    this.context.frames.free(frame);
  }

  /** Counts `count` frames under a reason without freeing any: copies that could not be made, sends refused. */
  add(reason: number, count = 1): void {
    this.context.counters.values[this.reasons.base + reason] += count;
  }

  count(reason: Reason): number {
    return this.context.counters.values[this.reasons.base + this.names.indexOf(reason)];
  }

  release(): void {
    this.context.counters.release(this.reasons);
  }
}

/**
 * The stages of a breath in the order in which frames pass them. `run` empties every batch once, first to last;
 * since no element pushes to an earlier stage, all batches are empty afterwards.
 */
export class Stages {
  private readonly batches: Batch[] = [];

  add(batch: Batch): Batch {
    this.batches.push(batch);
    return batch;
  }

  remove(batch: Batch): void {
    const at = this.batches.indexOf(batch);
    if (at >= 0) this.batches.splice(at, 1);
  }

  run(): void {
    for (let i = 0; i < this.batches.length; i++) this.batches[i].flush();
  }
}
