#!/usr/bin/env node
/** `weft`: the command line. Each command is a module that loads only when it is called. */
import { Command, CommanderError } from 'commander';
import { CommandError, EXIT, say } from './output.js';

/** The commands in the order of the help. A new one is a line here and a file in commands/. */
const COMMANDS: readonly (() => Promise<{ register(program: Command): void }>)[] = [
  () => import('./commands/up.js'),
  () => import('./commands/status.js'),
  () => import('./commands/fdb.js'),
  () => import('./commands/sa.js'),
  () => import('./commands/conntrack.js'),
  () => import('./commands/publish.js'),
  () => import('./commands/service.js'),
  () => import('./commands/drops.js'),
  () => import('./commands/replay.js'),
  () => import('./commands/bench.js'),
  () => import('./commands/doctor.js'),
  () => import('./commands/peer.js'),
  () => import('./commands/demo.js'),
];

async function main(): Promise<number> {
  const program = new Command('weft')
    .description('A userspace overlay-network engine for Linux')
    .version('0.1.0')
    .exitOverride()
    .showHelpAfterError('see "weft --help", or "weft COMMAND --help"')
    .configureOutput({ outputError: (text, write) => write(text) });
  for (const load of COMMANDS) (await load()).register(program);
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
