/** Many commands for the price of one. */
import { runSync } from '../../control/command.js';

const quoted = (word: string): string => `'${word.replaceAll("'", `'\\''`)}'`;

/**
 * Runs commands one after another in a shell: to fork this process, which is large, takes longer than most of them.
 * Stops at the first that fails. @throws CommandError with what it said and what it was.
 */
export function runAll(commands: readonly (readonly string[])[]): void {
  const lines = commands.map(
    (words) =>
      `${words.map(quoted).join(' ')} || { echo ${quoted(`from: ${words.join(' ')}`)} >&2; exit 1; }`,
  );
  runSync('sh', ['-s'], { input: `${lines.join('\n')}\n` });
}

/** What gives addresses such as 10.0.0.1/24; IPv6 ones without duplicate detection, so they work at once. */
export function addressCommands(namespace: string, device: string, addresses: readonly string[]): string[][] {
  return addresses.map((address) => [
    ...['ip', '-n', namespace, 'addr', 'add', address, 'dev', device],
    ...(address.includes(':') ? ['nodad'] : []),
  ]);
}

/** What writes sysctls, such as net/ipv4/ip_forward: their files show the namespace of whoever opens them. */
export function sysctlCommand(namespace: string, value: string, keys: readonly string[]): string[] {
  const write = 'value=$1; shift; for file; do echo "$value" >"$file" || exit; done';
  return [
    ...['nsenter', `--net=/run/netns/${namespace}`, '--', 'sh', '-c', write, 'sh', value],
    ...keys.map((key) => `/proc/sys/${key}`),
  ];
}
