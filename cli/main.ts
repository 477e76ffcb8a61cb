#!/usr/bin/env node
/** `weft`: the command line. Each command is a module that loads only when it is called. */
import { Command, CommanderError } from 'commander';
import { CommandError, EXIT, say } from './output.js';

interface CommandModule {
  register(program: Command): void;
}

/** The commands by name, in the order of the help. A new one is a line here and a file in commands/. */
const COMMANDS: ReadonlyMap<string, () => Promise<CommandModule>> = new Map([
  ['up', () => import('./commands/up.js')],
  ['status', () => import('./commands/status.js')],
  ['fdb', () => import('./commands/fdb.js')],
  ['sa', () => import('./commands/sa.js')],
  ['conntrack', () => import('./commands/conntrack.js')],
  ['publish', () => import('./commands/publish.js')],
  ['service', () => import('./commands/service.js')],
  ['drops', () => import('./commands/drops.js')],
  ['replay', () => import('./commands/replay.js')],
  ['bench', () => import('./commands/bench.js')],
  ['doctor', () => import('./commands/doctor.js')],
  ['peer', () => import('./commands/peer.js')],
  ['demo', () => import('./commands/demo.js')],
]);

/** What is to be registered: the command that is called, or all of them for the help and for who calls none. */
function called(name = ''): Iterable<() => Promise<CommandModule>> {
  const load = COMMANDS.get(name);
  return load ? [load] : COMMANDS.values();
}

async function main(): Promise<number> {
  const program = new Command('weft')
    .description('A userspace overlay-network engine for Linux')
    .version('0.1.0')
    .exitOverride()
    .showHelpAfterError('see "weft --help", or "weft COMMAND --help"')
    .configureOutput({ outputError: (text, write) => write(text) });
  for (const load of called(process.argv[2])) (await load()).register(program);
  try {
    await program.parseAsync(process.argv);
    return Number(process.exitCode ?? EXIT.done);
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.done : EXIT.usage;
    if (error instanceof CommandError) {
      say(error.message);
      return error.exitCode;
    }
    throw error;
  }
}

process.exitCode = await main();
