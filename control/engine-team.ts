/** The data-plane workers of a node as one: each applies the same intent over its own queues. */
import { EventEmitter } from 'node:events';
import { performance } from 'node:perf_hooks';
import { gossipBytes } from '../engine/gossip.js';
import type { HealthChange } from '../engine/health.js';
import { type AssociationIntent, type Intent, UNDERLAY_PORT } from '../engine/intent.js';
import type { FlowFilter } from '../engine/publisher.js';
import type { Inspection } from '../engine/worker.js';
import { EngineThread } from './engine-thread.js';

/** The workers could not be what they were told, and are what they were. */
export class RefusedError extends Error {
  override name = 'RefusedError';
}

/** The workers could neither be what they were told nor what they were. */
export class TornError extends Error {
  override name = 'TornError';

  constructor(refused: readonly string[], torn: readonly string[]) {
    super(
      `${refused.join('; ')}\nand the data plane could not go back (${torn.join('; ')}): ` +
        'a part of each file is in force; restart with "weft up --replace"',
    );
  }
}

/** Load is measured over the last so many ms. */
const LOAD_MS = 1000;

export class EngineTeam extends EventEmitter<{
  failed: [Error];
  'port-lost': [number];
  /** A VTEP did what its operator should hear of: its address and a SAW_ bit. */
  seen: [Uint8Array, number];
  /** Backends of services are found to live or not. */
  health: [readonly HealthChange[]];
  /** A socket refused to segment, and is not asked again. Said once. */
  'segmentation-refused': [];
}> {
  private readonly sampling: NodeJS.Timeout;
  private samples: { busy: number; at: number }[];
  private loads: number[];
  private refused = false;

  private constructor(
    private readonly threads: readonly EngineThread[],
    /** What they were told last, and are. */
    private intents: readonly Intent[],
  ) {
    super();
    for (const thread of threads) {
      thread.on('failed', (error) => this.emit('failed', error));
      thread.on('port-lost', (port) => this.emit('port-lost', port));
      thread.on('seen', (address, saw) => this.emit('seen', address, saw));
      thread.on('health', (changes) => this.emit('health', changes));
    }
    this.samples = threads.map(() => ({ busy: 0, at: performance.now() }));
    this.loads = threads.map(() => 0);
    this.sampling = setInterval(() => this.sample(), LOAD_MS);
    this.sampling.unref();
  }

  /**
   * Starts a worker for each intent; resolves when all forward.
   * @param associations memory of the AssociationState, null without encryption.
   */
  static async start(
    intents: readonly Intent[],
    seed: number,
    associations: SharedArrayBuffer | null,
  ): Promise<EngineTeam> {
    const workers = intents.length;
    const gossip = workers > 1 ? new SharedArrayBuffer(gossipBytes(workers)) : null;
    const starting = intents.map((intent, self) =>
      EngineThread.start(intent, seed, { self, workers, gossip, associations }),
    );
    const started = await Promise.allSettled(starting);
    const threads = started.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
    const failed = started.find((result) => result.status === 'rejected');
    if (failed) {
      await Promise.all(threads.map((thread) => thread.stop()));
      throw failed.reason;
    }
    return new EngineTeam(threads, intents);
  }

  private sample(): void {
    const at = performance.now();
    this.threads.forEach((thread, i) => {
      const counters = thread.read();
      const busy = counters['worker']?.['busy-ms'] ?? 0;
      this.loads[i] = (busy - this.samples[i].busy) / (at - this.samples[i].at);
      this.samples[i] = { busy, at };
      if (this.refused || !counters[`port:${UNDERLAY_PORT}`]?.['gso-refused']) return;
      this.refused = true;
      this.emit('segmentation-refused');
    });
  }

  /**
   * Makes all workers what the intents say. One call after the other.
   * @throws RefusedError when one of them cannot be that: all are again what they were, but for flows that have ended;
   * TornError when not even that could be had.
   */
  async apply(intents: readonly Intent[]): Promise<void> {
    const refused = await this.tell(intents);
    if (refused.length === 0) {
      this.intents = intents;
      return;
    }
    const torn = await this.tell(this.intents);
    if (torn.length > 0) throw new TornError(refused, torn);
    throw new RefusedError(refused.join('; '));
  }

  /** Returns why workers did not apply their intents. */
  private async tell(intents: readonly Intent[]): Promise<string[]> {
    const told = await Promise.allSettled(this.threads.map((thread, i) => thread.apply(intents[i])));
    const reasons = told.flatMap((one) => (one.status === 'rejected' ? (one.reason as Error).message : []));
    return [...new Set(reasons)];
  }

  /** Makes the security associations what the list says; resolves when every worker uses them. */
  async associate(associations: readonly AssociationIntent[]): Promise<void> {
    await Promise.all(this.threads.map((thread) => thread.associate(associations)));
  }

  /** Tables of all workers in one: a station is listed as the worker that saw it last has it. */
  async inspect(): Promise<Inspection> {
    const all = await Promise.all(this.threads.map((thread) => thread.inspect()));
    if (all.length === 1) return all[0];
    return mergeInspections(all);
  }

  /** Forgets everything learned. */
  async flush(): Promise<void> {
    await Promise.all(this.threads.map((thread) => thread.flush()));
  }

  /** Ends flows of address translation; resolves with how many. */
  async flushFlows(filter: FlowFilter): Promise<number> {
    const ended = await Promise.all(this.threads.map((thread) => thread.flushFlows(filter)));
    return ended.reduce((sum, one) => sum + one, 0);
  }

  /** Counters by owner and name, summed over the workers. */
  read(): Record<string, Record<string, number>> {
    const total: Record<string, Record<string, number>> = {};
    for (const thread of this.threads) {
      for (const [owner, counters] of Object.entries(thread.read())) {
        const sums = (total[owner] ??= {});
        for (const [name, value] of Object.entries(counters)) sums[name] = (sums[name] ?? 0) + value;
      }
    }
    return total;
  }

  /** Share of the last second that each worker spent working, 0 to 1. */
  load(): number[] {
    return [...this.loads];
  }

  async stop(): Promise<void> {
    clearInterval(this.sampling);
    await Promise.all(this.threads.map((thread) => thread.stop()));
  }
}

/** Workers number learned VTEPs each on their own, so addresses are what they agree on. */
function mergeInspections(all: readonly Inspection[]): Inspection {
  const vteps: Inspection['vteps'][number][] = [];
  const indexOf = new Map<string, number>();
  const stations = new Map<string, Inspection['stations'][number]>();
  for (const one of all) {
    const renumbered = new Map<number, number>();
    for (const vtep of one.vteps) {
      const key = vtep.address.join('.');
      let index = indexOf.get(key);
      if (index === undefined) {
        index = vteps.length;
        indexOf.set(key, index);
        vteps.push({ ...vtep, index });
      }
      renumbered.set(vtep.index, index);
    }
    for (const station of one.stations) {
      const key = `${station.domain} ${station.mac.join('.')}`;
      const known = stations.get(key);
      if (known && (known.isStatic || known.seen >= station.seen)) continue;
      const remote = station.destination & ~0xffff;
      const number = remote === 0 ? station.destination : (renumbered.get(station.destination & 0xffff) ?? 0);
      stations.set(key, { ...station, destination: remote | number });
    }
  }
  return {
    stations: [...stations.values()],
    vteps,
    seconds: Math.max(...all.map(({ seconds }) => seconds)),
    slotsInUse: all.reduce((sum, { slotsInUse }) => sum + slotsInUse, 0),
    // A node with services has one worker.
    backends: all.flatMap(({ backends }) => backends),
  };
}
