/** `weft up`: brings a node up and stays in the foreground until it is told to stop. */
import type { Command } from 'commander';
import { claimSocket, DEFAULT_SOCKET, serve } from '../../control/api.js';
import { ConfigError, type Problem } from '../../control/config.js';
import type { Daemon } from '../../control/daemon.js';
import { CommandError, EXIT, say } from '../output.js';

export function register(program: Command): void {
  program
    .command('up')
    .description(
      'bring this node up as its file says; SIGHUP follows changes of the file, SIGTERM takes it down',
    )
    .requiredOption('-c, --config <file>', "the node's file")
    .option('--socket <path>', 'where other commands reach this daemon', DEFAULT_SOCKET)
    .action(up);
}

/** A file that is wrong in itself is a matter of usage; one that asks for what the host lacks has failed. */
function exitCodeOf(error: unknown): number {
  return error instanceof ConfigError && !isHostProblem(error.problems) ? EXIT.usage : EXIT.failed;
}

const isHostProblem = (problems: readonly Problem[]): boolean => problems.every(({ host }) => host === true);

async function up(options: { config: string; socket: string }): Promise<void> {
  // A listener, so that the signal does not open Node's inspector in a process that runs as root.
  process.on('SIGUSR1', () => say('SIGUSR1 is not used; SIGUSR2 prints counters'));
  const stop = new Promise<string>((resolve) => {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => resolve(signal));
  });
  let failed: Error | undefined;
  const failure = new Promise<void>((resolve) => {
    onFailure = (error) => {
      failed = error;
      resolve();
    };
  });
  const daemon = await start(options);
  const server = await serve(daemon, options.socket).catch(async (error: Error) => {
    await daemon.stop();
    throw new CommandError(`cannot listen on ${options.socket}: ${error.message}`);
  });
  process.on('SIGHUP', () => void reload(daemon));
  process.on('SIGUSR2', () => say(JSON.stringify(daemon.counters())));
  process.stdout.write('ready\n');
  const signal = await Promise.race([stop, failure]);
  // A second signal does not wait for an orderly end.
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => process.exit(EXIT.failed));
  server.close();
  server.closeAllConnections();
  await daemon.stop();
  if (failed) throw new CommandError(`the data plane failed: ${failed.message}`);
  say(`stopped by ${signal}`);
}

let onFailure: (error: Error) => void = () => undefined;

async function start({ config, socket }: { config: string; socket: string }): Promise<Daemon> {
  try {
    // Loaded here, not above: without the addon, the other commands still say what is wrong.
    const { Daemon } = await import('../../control/daemon.js');
    await claimSocket(socket);
    return await Daemon.start({ file: config, state: `${socket}.state`, log: say }, (error) =>
      onFailure(error),
    );
  } catch (error) {
    throw new CommandError((error as Error).message, exitCodeOf(error));
  }
}

async function reload(daemon: Daemon): Promise<void> {
  try {
    await daemon.reload();
    say('reloaded');
  } catch (error) {
    say(`not reloaded, nothing changed:\n${(error as Error).message}`);
  }
}
