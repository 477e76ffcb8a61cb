/** Running the system's tools: no shell, a time limit on everything, errors that say what was run. */
import { type ChildProcess, type SpawnOptions, spawn, spawnSync } from 'node:child_process';
import { constants } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';

const OUTPUT_LIMIT = 1 << 20;
const DEFAULT_TIMEOUT_MS = 30_000;

/** What a finished command left. `code` is 128 + the signal's number when a signal ended it, as in a shell. */
export interface CommandResult {
  code: number;
  stdout: string;
  stderr: string;
}

export interface RunOptions {
  /** Text for stdin; without it stdin is empty. */
  input?: string;
  /** After this many ms the command is killed and the call fails; 30,000 unless told. */
  timeoutMs?: number;
}

/** A command that could not be started, ended with another code than 0, or took too long. */
export class CommandError extends Error {
  override name = 'CommandError';
  constructor(
    readonly command: string,
    readonly code: number | undefined,
    readonly stderr: string,
    reason: string,
  ) {
    super(`${command}: ${reason}${stderr.trim() ? `\n${stderr.trim()}` : ''}`);
  }
}

/**
 * The environment for the system's tools. npm puts node_modules/.bin in front of PATH, where some package's `nft`
 * hides the real one, and cron or a bare CI leave the sbin directories out.
 */
export function toolEnvironment(): NodeJS.ProcessEnv {
  const own = (process.env['PATH'] ?? '').split(':').filter((dir) => dir && !dir.includes('node_modules'));
  const system = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin'];
  return { ...process.env, LC_ALL: 'C', PATH: [...new Set([...own, ...system])].join(':') };
}

const exitCode = (code: number | null, signal: NodeJS.Signals | null) =>
  code ?? 128 + (signal ? constants.signals[signal] : 0);

/**
 * Runs a short command to its end and returns its stdout.
 * @throws CommandError when it ends with another code than 0.
 */
export function runSync(command: string, args: readonly string[], options: RunOptions = {}): string {
  const result = spawnSync(command, args, {
    input: options.input ?? '',
    encoding: 'utf8',
    env: toolEnvironment(),
    timeout: options.timeoutMs ?? DEFAULT_TIMEOUT_MS,
    killSignal: 'SIGKILL',
    maxBuffer: 1 << 26,
    // Its own session: a Ctrl-C at the terminal stops us, not the half-done clean-up we then run.
    ...({ detached: true } as object),
  });
  if (result.error || result.status !== 0) {
    const text = [command, ...args].join(' ');
    const reason = result.error?.message ?? `exit code ${exitCode(result.status, result.signal)}`;
    throw new CommandError(text, result.status ?? undefined, result.stderr ?? '', reason);
  }
  return result.stdout;
}

/** A command that runs beside us, with what it has printed so far (the last mebibyte of it). */
export class RunningCommand {
  stdout = '';
  stderr = '';
  readonly child: ChildProcess;
  /** Settles when the command has ended and its output is complete; rejects only if it could not be started. */
  readonly ended: Promise<CommandResult>;
  readonly #text: string;
  #over = false;
  #changed: (() => void)[] = [];

  constructor(command: string, args: readonly string[], options: SpawnOptions = {}) {
    this.#text = [command, ...args].join(' ');
    this.child = spawn(command, args, {
      env: toolEnvironment(),
      stdio: ['ignore', 'pipe', 'pipe'],
      ...options,
    });
    for (const name of ['stdout', 'stderr'] as const) {
      this.child[name]?.setEncoding('utf8').on('data', (chunk: string) => {
        this[name] = (this[name] + chunk).slice(-OUTPUT_LIMIT);
        this.#notify();
      });
    }
    this.ended = new Promise((resolve, reject) => {
      this.child.on('error', (error) => reject(this.#error(undefined, error.message)));
      this.child.on('close', (code, signal) =>
        resolve({ code: exitCode(code, signal), stdout: this.stdout, stderr: this.stderr }),
      );
    });
    const over = () => {
      this.#over = true;
      this.#notify();
    };
    this.ended.then(over, over);
  }

  /**
   * Waits until `stdout` (or the other stream) matches.
   * @throws CommandError when the command ends, or `timeoutMs` (20,000) pass, before that.
   */
  async output(pattern: RegExp, options: { stream?: 'stdout' | 'stderr'; timeoutMs?: number } = {}) {
    const { stream = 'stdout', timeoutMs = 20_000 } = options;
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      const match = pattern.exec(this[stream]);
      if (match) return match;
      if (this.#over) {
        const { code } = await this.ended;
        throw this.#error(code, `ended with code ${code} before it printed ${pattern}`);
      }
      if (Date.now() >= deadline)
        throw this.#error(undefined, `did not print ${pattern} within ${timeoutMs} ms`);
      await this.#change(deadline - Date.now());
    }
  }

  /** Sends a signal (SIGTERM) and waits for the end; SIGKILL follows after `timeoutMs` (10,000), and an error. */
  async stop(signal: NodeJS.Signals = 'SIGTERM', timeoutMs = 10_000): Promise<CommandResult> {
    this.child.kill(signal);
    return this.#endWithin(timeoutMs, `did not end within ${timeoutMs} ms of ${signal}`);
  }

  /** Waits for the end; kills the command when it takes longer than `timeoutMs`, and that is an error. */
  async finish(timeoutMs = DEFAULT_TIMEOUT_MS): Promise<CommandResult> {
    return this.#endWithin(timeoutMs, `did not end within ${timeoutMs} ms`);
  }

  async #endWithin(timeoutMs: number, reason: string): Promise<CommandResult> {
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      this.child.kill('SIGKILL');
      // A grandchild may hold the pipes open; without this the end would wait for it.
      this.child.stdout?.destroy();
      this.child.stderr?.destroy();
    }, timeoutMs);
    try {
      const result = await this.ended;
      if (late) throw this.#error(result.code, reason);
      return result;
    } finally {
      clearTimeout(timer);
    }
  }

  #change(timeoutMs: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, timeoutMs);
      this.#changed.push(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }

  #notify(): void {
    for (const wake of this.#changed.splice(0)) wake();
  }

  #error(code: number | undefined, reason: string): CommandError {
    return new CommandError(this.#text, code, this.stderr, reason);
  }
}

/** For what gives no event: asks every `intervalMs` (10) until the answer is truthy, and returns it. */
export async function waitFor<T>(
  probe: () => T | Promise<T>,
  options: { what: string; timeoutMs?: number; intervalMs?: number },
): Promise<NonNullable<T>> {
  const { what, timeoutMs = 15_000, intervalMs = 10 } = options;
  const deadline = Date.now() + timeoutMs;
  let failure: unknown;
  do {
    try {
      failure = undefined;
      const answer = await probe();
      if (answer) return answer;
    } catch (error) {
      failure = error;
    }
    await delay(intervalMs);
  } while (Date.now() < deadline);
  const last = failure === undefined ? '' : `; last error: ${(failure as Error).message ?? failure}`;
  throw new Error(`waited ${timeoutMs} ms in vain for ${what}${last}`, { cause: failure });
}
