/** One engine process of the demo: `weft up` as a user would start it, with a config file of its own. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { DropRow, SaList, Status } from '../../control/api.js';
import { ask } from '../client.js';
import { type Namespace, type RunningCommand, waitFor } from '../lab.js';

/** The program this is part of. */
export const WEFT = fileURLToPath(new URL('../main.js', import.meta.url));

/** What one engine did, read from its counters. */
export interface EngineFigures {
  readonly node: string;
  /** How it reached the underlay: `socket`, or `uplink`. */
  readonly path: string;
  readonly vxlanSent: number;
  readonly vxlanReceived: number;
  /** `element: reason` → frames, without zeros. */
  readonly drops: Record<string, number>;
}

export interface EngineOptions {
  /** Where its files are put. */
  readonly directory: string;
  readonly node: string;
  /** The text of its config file. */
  readonly config: string;
  /** Called when it ends without having been told to. */
  readonly onEnd: (error: Error) => void;
}

export class Engine {
  private expected = false;

  private constructor(
    readonly node: string,
    private readonly file: string,
    readonly socket: string,
    private readonly running: RunningCommand,
  ) {}

  /** Starts an engine; resolves when it forwards. @throws CommandError with what it said, when it does not. */
  static async start(host: Namespace, { directory, node, config, onEnd }: EngineOptions): Promise<Engine> {
    const file = join(directory, `${node}.yaml`);
    const socket = join(directory, `${node}.sock`);
    write(file, config);
    const running = host.start(process.execPath, [WEFT, 'up', '-c', file, '--socket', socket]);
    await running.output(/^ready$/m, { timeoutMs: 20_000 });
    const engine = new Engine(node, file, socket, running);
    void running.ended.then(({ code }) => {
      if (engine.expected) return;
      const said = running.stderr.trim();
      onEnd(new Error(`the engine of ${node} ended with code ${code}${said ? `; it said:\n${said}` : ''}`));
    });
    return engine;
  }

  /** What it printed on stderr, for the message of a failure. */
  get said(): string {
    return this.running.stderr.trim();
  }

  async figures(): Promise<EngineFigures> {
    const { socket } = this;
    const { underlay } = await ask<Status>('GET', '/status', { socket });
    const { drops } = await ask<{ drops: DropRow[] }>('GET', '/drops', { socket });
    return {
      node: this.node,
      path: underlay.path,
      vxlanSent: underlay.counters['tx-frames'] ?? 0,
      vxlanReceived: underlay.counters['rx-frames'] ?? 0,
      drops: Object.fromEntries(
        drops
          .filter(({ count }) => count > 0)
          .map(({ element, reason, count }) => [`${element}: ${reason}`, count]),
      ),
    };
  }

  /** Gives it another config while it runs. @throws CommandError when it refuses, and has changed nothing. */
  async change(config: string): Promise<void> {
    write(this.file, config);
    await ask('POST', '/reload', this);
  }

  /** Waits until it has agreed on keys with its peers. */
  async agreed(): Promise<void> {
    const sends = async (): Promise<boolean> => {
      const { associations, waiting } = await ask<SaList>('GET', '/sa', this);
      return associations.some(({ state }) => state === 'sending') && waiting.length === 0;
    };
    await waitFor(sends, { what: `${this.node} to have agreed on keys`, timeoutMs: 10_000 });
  }

  /** SIGTERM, as an operator would; it must end well. */
  async stop(): Promise<void> {
    this.expected = true;
    const { code } = await this.running.stop();
    if (code !== 0)
      throw new Error(`the engine of ${this.node} ended with code ${code} on SIGTERM\n${this.said}`);
  }
}

/** A file that holds secrets is refused unless it is its owner's alone. */
function write(file: string, config: string): void {
  writeFileSync(file, config, { mode: 0o600 });
}
