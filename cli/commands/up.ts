/** `weft up`: brings a node up and stays in the foreground until it is told to stop. */
import type { Command } from 'commander';
import { claimSocket, serve } from '../../control/api.js';
import { ConfigError, type Problem } from '../../control/config.js';
import type { Daemon } from '../../control/daemon.js';
import { Ending } from '../../control/hand-over.js';
import { DEFAULT_SOCKET, SCHEMA_VERSION } from '../../control/protocol.js';
import { ReloadError } from '../../control/reload-error.js';
import { ask } from '../client.js';
import { CommandError, EXIT, say } from '../output.js';

export function register(program: Command): void {
  program
    .command('up')
    .description(
      'bring this node up as its file says; SIGHUP follows changes of the file, SIGTERM takes it down',
    )
    .requiredOption('-c, --config <file>', "the node's file")
    .option('--socket <path>', 'where other commands reach this daemon', DEFAULT_SOCKET)
    .option('--replace', 'take over from the daemon on that socket: its interfaces and flows stay')
    .action(up);
}

/** A file that is wrong in itself is a matter of usage; one that asks for what the host lacks has failed. */
function exitCodeOf(error: unknown): number {
  return error instanceof ConfigError && !isHostProblem(error.problems) ? EXIT.usage : EXIT.failed;
}

const isHostProblem = (problems: readonly Problem[]): boolean => problems.every(({ host }) => host === true);

interface UpOptions {
  readonly config: string;
  readonly socket: string;
  readonly replace?: boolean;
}

async function up(options: UpOptions): Promise<void> {
  const ending = new Ending();
  ending.followSignals();
  let failed: Error | undefined;
  const failure = new Promise<void>((resolve) => {
    onFailure = (error) => {
      failed = error;
      resolve();
    };
  });
  const daemon = await start(options);
  const server = await serve(daemon, options.socket, ending).catch(async (error: Error) => {
    await daemon.stop();
    throw new CommandError(`cannot listen on ${options.socket}: ${error.message}`);
  });
  process.on('SIGHUP', () => void reload(daemon));
  process.on('SIGUSR2', () => say(JSON.stringify(daemon.counters())));
  process.stdout.write('ready\n');
  const end = await Promise.race([ending.asked, failure]);
  // A second signal does not wait for an orderly end.
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => process.exit(EXIT.failed));
  server.close();
  await daemon.stop(end?.leave);
  await ending.answer({ schemaVersion: SCHEMA_VERSION });
  server.closeAllConnections();
  if (failed) throw new CommandError(`the data plane failed: ${failed.message}`);
  say(end?.leave ? `handed over to the next process, by ${end.by}` : `stopped by ${end?.by}`);
}

/** How long a daemon may take to stop: what is asked of it before, it ends first. */
const HAND_OVER_MS = 60_000;

let onFailure: (error: Error) => void = () => undefined;

async function start({ config, socket, replace }: UpOptions): Promise<Daemon> {
  try {
    // Loaded here, not above: without the addon, the other commands still say what is wrong.
    const { Daemon } = await import('../../control/daemon.js');
    if (replace) {
      Daemon.check(config);
      await takeOver(socket);
    }
    await claimSocket(socket);
    return await Daemon.start({ file: config, state: `${socket}.state`, log: say }, (error) =>
      onFailure(error),
    );
  } catch (error) {
    if (error instanceof CommandError) throw error;
    throw new CommandError((error as Error).message, exitCodeOf(error));
  }
}

/** Has the daemon that runs hand over, if one does. @throws CommandError when it refuses. */
async function takeOver(socket: string): Promise<void> {
  try {
    await ask('POST', '/hand-over', { socket, timeoutMs: HAND_OVER_MS });
    say('the daemon that ran has handed over');
  } catch (error) {
    const { exitCode, message } = error as CommandError;
    if (exitCode === EXIT.notFound)
      throw new CommandError(`the daemon on ${socket} is too old to hand over: stop it first`, EXIT.conflict);
    if (exitCode !== EXIT.unreachable) throw new CommandError(message, exitCode);
    // Whoever does answer, but too late, is found alive when the socket is claimed.
    say('there is no daemon to take over from');
  }
}

async function reload(daemon: Daemon): Promise<void> {
  try {
    await daemon.reload();
    say('reloaded');
  } catch (error) {
    const { message } = error as Error;
    say(error instanceof ReloadError ? message : `not reloaded, nothing changed:\n${message}`);
  }
}
