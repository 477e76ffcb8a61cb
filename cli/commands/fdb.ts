/** `weft fdb`: which station is where. */
import type { Command } from 'commander';
import type { FdbRow } from '../../control/api.js';
import { ask, type ClientOptions, withClient } from '../client.js';
import { CommandError, EXIT, printJson, printTable } from '../output.js';

interface ListOptions extends ClientOptions {
  readonly json?: boolean;
  readonly network?: string;
}

export function register(program: Command): void {
  const fdb = program.command('fdb').description('show and flush the forwarding table');
  withClient(fdb.command('ls', { isDefault: true }).description('list stations'))
    .option('--network <name>', 'only this network')
    .action(list);
  withClient(
    fdb.command('get').argument('<mac>').description('show one station; exit 4 when it is not known'),
  )
    .option('--network <name>', 'only this network')
    .action(get);
  withClient(fdb.command('flush').description('forget everything learned')).action(
    async (options: ClientOptions) => {
      await ask('POST', '/fdb/flush', options);
    },
  );
}

async function rows({ network, ...options }: ListOptions): Promise<FdbRow[]> {
  const { entries } = await ask<{ entries: FdbRow[] }>('GET', '/fdb', options);
  return entries.filter((entry) => network === undefined || entry.network === network);
}

function print(entries: readonly FdbRow[], json?: boolean): void {
  if (json) {
    printJson({ entries });
    return;
  }
  printTable(
    [
      { title: 'NETWORK' },
      { title: 'MAC' },
      { title: 'AT' },
      { title: 'AGE', align: 'right' },
      { title: 'KIND' },
    ],
    entries.map((entry) => [
      entry.network,
      entry.mac,
      entry.vtep === undefined ? `endpoint ${entry.endpoint}` : `vtep ${entry.vtep}`,
      entry.age === undefined ? '-' : `${entry.age} s`,
      entry.static ? 'static' : 'learned',
    ]),
  );
}

async function list(options: ListOptions): Promise<void> {
  print(await rows(options), options.json);
}

async function get(mac: string, options: ListOptions): Promise<void> {
  const entries = (await rows(options)).filter((entry) => entry.mac === mac.toLowerCase());
  if (entries.length === 0) throw new CommandError(`${mac} is not in the forwarding table`, EXIT.notFound);
  print(entries, options.json);
}
