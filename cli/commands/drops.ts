/** `weft drops`: every frame that was dropped, by element and reason. */
import { setTimeout as delay } from 'node:timers/promises';
import type { Command } from 'commander';
import type { DropRow } from '../../control/api.js';
import { ask, type ClientOptions, withClient } from '../client.js';
import { CommandError, EXIT, printJson, printTable, say } from '../output.js';

interface DropsOptions extends ClientOptions {
  readonly json?: boolean;
  readonly all?: boolean;
  readonly watch?: string | true;
}

export function register(program: Command): void {
  withClient(program.command('drops').description('show dropped frames by element and reason'))
    .option('--all', 'also reasons that never happened')
    .option('--watch [seconds]', 'print again every so many seconds (1)')
    .action(drops);
}

async function drops(options: DropsOptions): Promise<void> {
  const seconds = options.watch === true ? 1 : Number(options.watch ?? 0);
  if (Number.isNaN(seconds) || seconds < 0)
    throw new CommandError('--watch takes a number of seconds', EXIT.usage);
  for (;;) {
    const answer = await ask<{ drops: DropRow[] }>('GET', '/drops', options);
    const rows = answer.drops.filter(({ count }) => options.all || count > 0);
    if (options.json) printJson({ drops: rows });
    else if (rows.length > 0) print(rows);
    else say('nothing was dropped');
    if (seconds === 0) return;
    await delay(seconds * 1000);
  }
}

function print(rows: readonly DropRow[]): void {
  printTable(
    [{ title: 'ELEMENT' }, { title: 'REASON' }, { title: 'FRAMES', align: 'right' }],
    rows.map(({ element, reason, count }) => [element, reason, String(count)]),
  );
}
