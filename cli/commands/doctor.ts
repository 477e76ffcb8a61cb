/** `weft doctor`: what this host has, what it lacks, and what to do about it. */
import type { Command } from 'commander';
import type { Status } from '../../control/api.js';
import type { Check } from '../../control/doctor/check.js';
import type { Holder } from '../../control/doctor/node-file.js';
import { DEFAULT_SOCKET } from '../../control/protocol.js';
import { ask } from '../client.js';
import { EXIT, printJson, printTable } from '../output.js';

interface Flags {
  readonly config?: string;
  readonly socket: string;
  readonly json?: true;
}

export function register(program: Command): void {
  program
    .command('doctor')
    .description('look whether this host has what Weft needs, and whether a node file fits it')
    .option('-c, --config <file>', "also check this node's file: namespaces, underlay, port, paths and MTUs")
    .option('--socket <path>', "the daemon's control socket", DEFAULT_SOCKET)
    .option('--json', 'print one JSON object')
    .addHelpText('after', '\nExits with 0 when nothing failed, 1 otherwise; a warning is not a failure.')
    .action(doctor);
}

async function doctor(flags: Flags): Promise<void> {
  const { checkHost } = await import('../../control/doctor/host.js');
  const checks = await checkHost();
  if (flags.config !== undefined) {
    const { checkNodeFile } = await import('../../control/doctor/node-file.js');
    checks.push(...(await checkNodeFile(flags.config, askHolder(flags.socket))));
  }
  const healthy = checks.every(({ status }) => status !== 'fail');
  if (flags.json) printJson({ ok: healthy, checks });
  else print(checks);
  process.exitCode = healthy ? EXIT.done : EXIT.failed;
}

/** Whether the daemon on the socket is the one that holds the underlay's port. */
function askHolder(socket: string): Holder {
  return async ({ address, port }) => {
    try {
      const { pid, node, underlay } = await ask<Status>('GET', '/status', { socket });
      if (underlay.address !== address || underlay.port !== port) return undefined;
      return `weft itself (node ${node}, pid ${pid})`;
    } catch {
      return undefined;
    }
  };
}

function print(checks: readonly Check[]): void {
  const rows = checks.flatMap(({ name, status, message, remedy }) => {
    const row = [status, name, message];
    return remedy === undefined ? [row] : [row, ['', '', `-> ${remedy}`]];
  });
  printTable([{ title: 'STATUS' }, { title: 'CHECK' }, { title: 'FOUND' }], rows);
  const count = (wanted: Check['status']): number => checks.filter(({ status }) => status === wanted).length;
  process.stdout.write(
    `\n${count('ok')} ok, ${count('warn')} warnings, ${count('fail')} failed, ${count('skip')} skipped\n`,
  );
}
