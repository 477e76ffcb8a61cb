/** The main thread's end of the data-plane worker: starts it, asks it, reads its counters. */
import { EventEmitter, once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { type CounterBlock, Counters, readCounters } from '../engine/counters.js';
import type { Team } from '../engine/dataplane.js';
import type { HealthChange } from '../engine/health.js';
import type { AssociationIntent, Intent } from '../engine/intent.js';
import type { FlowFilter } from '../engine/publisher.js';
import type { Inspection, Notice, Reply, Request, WorkerData } from '../engine/worker.js';
import { native } from '../native-bindings/index.js';

/** How long a worker may take to answer; a breath takes well under a millisecond. */
const ANSWER_MS = 10_000;

type Question =
  | { kind: 'apply'; intent: Intent }
  | { kind: 'associate'; associations: readonly AssociationIntent[] }
  | { kind: 'inspect' }
  | { kind: 'flush' }
  | { kind: 'flush-flows'; filter: FlowFilter }
  | { kind: 'stop' };

export class EngineThread extends EventEmitter<{
  failed: [Error];
  'port-lost': [number];
  /** A VTEP did what its operator should hear of: its address and a SAW_ bit. */
  seen: [Uint8Array, number];
  /** Backends of services are found to live or not. */
  health: [readonly HealthChange[]];
}> {
  private readonly wake = native.eventCreate();
  private readonly waiting = new Map<
    number,
    { resolve: (reply: Reply) => void; reject: (error: Error) => void }
  >();
  private readonly counters = new Counters();
  private layout: CounterBlock[] = [];
  private next = 1;
  private readonly worker: Worker;
  private stopped = false;
  /** Set before the worker is asked to stop: its end is then no failure, even when we hear of it before the answer. */
  private stopping = false;

  private constructor(intent: Intent, seed: number, team: Team) {
    super();
    const workerData: WorkerData = { intent, counters: this.counters.buffer, wake: this.wake, seed, team };
    this.worker = new Worker(new URL('../engine/worker.js', import.meta.url), { workerData });
    this.worker.on('message', (message: Reply | Notice) => this.receive(message));
    this.worker.on('error', (error: Error) => this.fail(error));
    this.worker.on('exit', (code) => this.fail(new Error(`the data plane ended with code ${code}`)));
  }

  /** Starts a worker; resolves when it forwards. */
  static async start(intent: Intent, seed: number, team: Team): Promise<EngineThread> {
    const thread = new EngineThread(intent, seed, team);
    await thread.answer(0);
    return thread;
  }

  private receive(message: Reply | Notice): void {
    if ('lost' in message) {
      this.emit('port-lost', message.lost);
      return;
    }
    if ('saw' in message) {
      this.emit('seen', message.vtep, message.saw);
      return;
    }
    if ('health' in message) {
      this.emit('health', message.health);
      return;
    }
    this.layout = message.layout;
    const waiting = this.waiting.get(message.id);
    this.waiting.delete(message.id);
    if (message.error === undefined) waiting?.resolve(message);
    else waiting?.reject(new Error(message.error));
  }

  private fail(error: Error): void {
    for (const { reject } of this.waiting.values()) reject(error);
    this.waiting.clear();
    if (!this.stopped && !this.stopping) this.emit('failed', error);
    this.stopped = true;
  }

  private async answer(id: number): Promise<Reply> {
    const { promise, resolve, reject } = withResolvers<Reply>();
    this.waiting.set(id, { resolve, reject });
    const timer = setTimeout(
      () => reject(new Error(`the data plane did not answer in ${ANSWER_MS} ms`)),
      ANSWER_MS,
    );
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      this.waiting.delete(id);
    }
  }

  private ask(question: Question): Promise<Reply> {
    if (this.stopped) return Promise.reject(new Error('the data plane has stopped'));
    const id = this.next++;
    this.worker.postMessage({ ...question, id } satisfies Request);
    native.eventSignal(this.wake);
    return this.answer(id);
  }

  async apply(intent: Intent): Promise<void> {
    await this.ask({ kind: 'apply', intent });
  }

  /** Makes the security associations what the list says; resolves when the worker uses them. */
  async associate(associations: readonly AssociationIntent[]): Promise<void> {
    await this.ask({ kind: 'associate', associations });
  }

  async inspect(): Promise<Inspection> {
    return (await this.ask({ kind: 'inspect' })).inspection!;
  }

  /** Forgets everything learned. */
  async flush(): Promise<void> {
    await this.ask({ kind: 'flush' });
  }

  /** Ends flows of address translation; resolves with how many. */
  async flushFlows(filter: FlowFilter): Promise<number> {
    return (await this.ask({ kind: 'flush-flows', filter })).ended!;
  }

  /** Counters by owner and name, read from shared memory: the worker does not notice. */
  read(): Record<string, Record<string, number>> {
    return readCounters(this.counters.values, this.layout);
  }

  async stop(): Promise<void> {
    if (!this.stopped) {
      const exit = once(this.worker, 'exit');
      this.stopping = true;
      await this.ask({ kind: 'stop' });
      this.stopped = true;
      await exit;
    }
    native.close(this.wake);
  }
}

/** Promise.withResolvers, which Node 20 does not have. */
function withResolvers<T>(): {
  promise: Promise<T>;
  resolve: (value: T) => void;
  reject: (error: Error) => void;
} {
  let resolve!: (value: T) => void;
  let reject!: (error: Error) => void;
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}
