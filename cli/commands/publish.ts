/** `weft publish`: ports of endpoints that are reached at an uplink's address. */
import type { Command } from 'commander';
import type { PublishRow } from '../../control/api.js';
import { ask, type ClientOptions, withClient } from '../client.js';
import { printJson, printTable } from '../output.js';

export function register(program: Command): void {
  const publish = program.command('publish').description('published ports');
  withClient(publish.command('ls', { isDefault: true }).description('list published ports')).action(list);
}

async function list({ json, ...options }: ClientOptions & { readonly json?: boolean }): Promise<void> {
  const { published } = await ask<{ published: PublishRow[] }>('GET', '/publish', options);
  if (json) {
    printJson({ published });
    return;
  }
  printTable(
    [
      { title: 'UPLINK' },
      { title: 'PROTOCOL' },
      { title: 'AT' },
      { title: 'ENDPOINT' },
      { title: 'TARGET', align: 'right' },
    ],
    published.map(({ uplink, protocol, address, port, endpoint, service, target }) => [
      ...[uplink, protocol, `${address.includes(':') ? `[${address}]` : address}:${port}`],
      ...[endpoint ?? `service ${service}`, String(target)],
    ]),
  );
}
