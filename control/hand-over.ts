/**
 * How a daemon ends: told by a signal, or by another process that takes its place. Who hands over stops as ever, but
 * leaves to the next process what a killed one would: the interfaces of containers, and the flows.
 */
import type { ServerResponse } from 'node:http';

/** What a daemon ends by. */
interface End {
  /** A signal's name, or who asked. */
  readonly by: string;
  /** Whether another process goes on. */
  readonly leave: boolean;
}

/** SIGUSR1 is what a service manager may send in place of SIGTERM when it is to start the same again. */
const SIGNALS = { SIGTERM: false, SIGINT: false, SIGUSR1: true } as const;

export class Ending {
  /** Resolves with the first. */
  readonly asked: Promise<End>;
  private readonly resolve: (end: End) => void;
  private asking: ServerResponse | undefined;

  constructor() {
    let resolve!: (end: End) => void;
    this.asked = new Promise((yes) => {
      resolve = yes;
    });
    this.resolve = resolve;
  }

  /** Ends by signals of this process, from here on. */
  followSignals(): void {
    // Of SIGUSR1 there must be a listener at any time, or Node opens its inspector, in a process that runs as root.
    for (const [signal, leave] of Object.entries(SIGNALS))
      process.on(signal, () => this.resolve({ by: signal, leave }));
  }

  /** Another process asks; it is answered when everything is let go. */
  ask(response: ServerResponse): void {
    this.asking = response;
    this.resolve({ by: 'the process that takes over', leave: true });
  }

  /** Answers who asked. Resolves when the answer is on its way. */
  async answer(body: object): Promise<void> {
    const { asking } = this;
    if (asking === undefined || asking.destroyed) return;
    await new Promise<void>((resolve) => {
      asking.on('close', resolve);
      asking.writeHead(200, { 'content-type': 'application/json', connection: 'close' });
      asking.end(`${JSON.stringify(body)}\n`, resolve);
    });
  }
}
