/** `weft service`: virtual addresses, and the backends that answer there. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Command } from 'commander';
import type { BackendRow, ServiceRow } from '../../control/api.js';
import { MAX_WEIGHT } from '../../engine/tables/backends.js';
import { canonicalIp } from '../arguments.js';
import { ask, type ClientOptions, withClient, withQuery } from '../client.js';
import { CommandError, EXIT, printJson, printTable, say } from '../output.js';

interface Flags extends ClientOptions {
  readonly json?: boolean;
}

interface BackendFlags extends Flags {
  readonly stats?: boolean;
  readonly rate?: boolean;
}

const SAMPLE_MS = 1000;

const ABOUT = `
Printed as "ipvsadm -Ln" does. Port 0: every port, each to the same. FWM: what has the mark, whatever its address.

FORWARD  Masq: the destination is translated; Route: the backend has the virtual address itself
STATE    up; drained: weight 0, so it gets no new flows; down: its checks fail`;

const ABOUT_CHANGE = `
What is changed so holds until the entry in the node's file is another; a restart begins with the file.`;

export function register(program: Command): void {
  const service = program.command('service').description('virtual addresses and their backends');
  withClient(service.command('ls', { isDefault: true }).description('list services and their backends'))
    .addHelpText('after', ABOUT)
    .action(list);
  withClient(
    service.command('inspect').argument('<name>').description('all that is known of one service'),
  ).action(inspect);
  withClient(service.command('backends').argument('<name>').description('the backends of one service'))
    .option('--stats', 'connections, packets and bytes since the backend was added')
    .option('--rate', 'the same of one second, which it takes')
    .action(backends);
  const change = (command: Command) =>
    withClient(command.argument('<name>').argument('<backend>', 'its address')).addHelpText(
      'after',
      ABOUT_CHANGE,
    );
  change(
    service.command('drain').description('give a backend no new flows; those that are there finish'),
  ).action((name: string, backend: string, options: Flags) => weigh(name, backend, '0', options));
  change(service.command('weight').description('give a backend another weight'))
    .argument('<weight>', `0 to ${MAX_WEIGHT}`)
    .action(weigh);
  withClient(service.command('rm').argument('<name>').argument('[backend]', 'its address'))
    .description('take a backend out, or the whole service; their flows are reset')
    .addHelpText('after', ABOUT_CHANGE)
    .action(remove);
}

async function fetch(name: string | undefined, options: ClientOptions): Promise<readonly ServiceRow[]> {
  const path = withQuery('/services', { name });
  return (await ask<{ services: ServiceRow[] }>('GET', path, options)).services;
}

async function list({ json, ...options }: Flags): Promise<void> {
  const services = await fetch(undefined, options);
  if (json) {
    printJson({ services });
    return;
  }
  const lines = [
    'Service',
    'Prot LocalAddress:Port Scheduler Flags',
    remoteLine(['RemoteAddress:Port', 'Forward', 'Weight', 'ActiveConn', 'InActConn', 'State']),
    ...services.flatMap(serviceLines),
  ];
  process.stdout.write(`${lines.join('\n')}\n`);
}

function remoteLine([remote, ...cells]: readonly string[]): string {
  const widths = [7, 6, 10, 10, 0];
  return `  -> ${remote.padEnd(27)}${cells.map((cell, i) => ` ${cell.padEnd(widths[i])}`).join('')}`.trimEnd();
}

function serviceLines(row: ServiceRow): string[] {
  const { name, vip, vip6, scheduler, forwarding, fwmark, affinitySeconds, ports } = row;
  const flags = affinitySeconds === 0 ? '' : ` persistent ${affinitySeconds}`;
  const all = ['tcp', 'udp'].map((protocol) => ({ protocol, port: 0, target: 0 }));
  const listed = ports.length === 0 ? all : ports;
  const virtual = [vip, ...(vip6 === undefined ? [] : [vip6])];
  const targets = new Set(listed.map(({ target }) => target));
  const target = targets.size === 1 ? listed[0].target : 0;
  return [
    name,
    ...virtual.flatMap((address) =>
      listed.map(
        ({ protocol, port }) => `${protocol.toUpperCase()}  ${inUrl(address)}:${port} ${scheduler}${flags}`,
      ),
    ),
    ...virtual.map((address) => `FWM  ${fwmark}${address.includes(':') ? ' IPv6' : ''} ${scheduler}${flags}`),
    ...row.backends.map(({ address, weight, active, inactive, state }) =>
      remoteLine([
        ...[`${inUrl(address)}:${target}`, forwarding === 'dsr' ? 'Route' : 'Masq', String(weight)],
        ...[String(active), String(inactive), state],
      ]),
    ),
  ];
}

/** An address in front of a port. */
const inUrl = (address: string): string => (address.includes(':') ? `[${address}]` : address);

async function inspect(name: string, { json, ...options }: Flags): Promise<void> {
  const [service] = await fetch(name, options);
  if (json) {
    printJson({ service });
    return;
  }
  printTable([{ title: 'KEY' }, { title: 'VALUE' }], [...keysOf(service)]);
}

function* keysOf(row: ServiceRow): Generator<[key: string, value: string]> {
  const { name, network, vip, vip6 = '-', scheduler, forwarding, fwmark, health } = row;
  yield* Object.entries({ name, network, vip, vip6, scheduler, forwarding, fwmark: String(fwmark) });
  yield ['affinity', row.affinitySeconds === 0 ? '-' : `client, ${row.affinitySeconds} s`];
  yield ['idle timeout', `${row.idleTimeoutSeconds} s`];
  if (row.ports.length === 0) yield ['port', 'every port of tcp and udp'];
  for (const { protocol, port, target } of row.ports) yield ['port', `${protocol} ${port} to ${target}`];
  for (const { protocol, port, target, uplink, mode } of row.publish)
    yield ['published', `${protocol} ${port} of ${uplink} to ${target} (${mode})`];
  if (health === undefined) yield ['health', '-'];
  else {
    const what = health.kind === 'tcp' ? `tcp ${health.port}` : `http ${health.port}${health.path}`;
    const { interval, timeout, failures, successes } = health;
    yield [
      'health',
      `${what} every ${interval} s, ${timeout} s each; ${failures} failures, ${successes} successes`,
    ];
  }
  for (const { address, mac, weight, state } of row.backends)
    yield ['backend', `${address} ${mac}, weight ${weight}, ${state}`];
}

interface Rates {
  readonly connections: number;
  readonly packets: number;
  readonly bytes: number;
}

async function backends(name: string, { json, stats, rate, ...options }: BackendFlags): Promise<void> {
  const [before] = await fetch(name, options);
  const rows = rate ? await withRates(before, options) : before.backends;
  if (json) {
    printJson({ service: name, backends: rows });
    return;
  }
  const titles = [
    ...['WEIGHT', 'ACTIVE', 'INACTIVE'],
    ...(stats ? ['CONNS', 'PACKETS', 'BYTES', 'FAILURES'] : []),
    ...(rate ? ['CPS', 'PPS', 'BPS'] : []),
  ];
  printTable(
    [
      { title: 'BACKEND' },
      { title: 'STATE' },
      ...titles.map((title) => ({ title, align: 'right' as const })),
    ],
    rows.map((row) => [row.address, row.state, ...numbersOf(row, stats === true).map(String)]),
  );
}

function numbersOf(row: BackendRow & { readonly rates?: Rates }, stats: boolean): number[] {
  const { weight, active, inactive, connections, packets, bytes, failures, rates } = row;
  const since = stats ? [connections, packets, bytes, failures] : [];
  const now = rates === undefined ? [] : [rates.connections, rates.packets, rates.bytes];
  return [weight, active, inactive, ...since, ...now];
}

/** Asks once more, and takes the difference by the second. */
async function withRates(
  { name, backends: before }: ServiceRow,
  options: ClientOptions,
): Promise<(BackendRow & { readonly rates: Rates })[]> {
  const start = performance.now();
  await sleep(SAMPLE_MS);
  const [{ backends: after }] = await fetch(name, options);
  const seconds = (performance.now() - start) / 1000;
  return after.map((row) => {
    const old = before.find(({ address }) => address === row.address) ?? row;
    // One that was taken out and came back counts from zero.
    const per = (key: keyof Rates) => Math.max(0, Math.round((row[key] - old[key]) / seconds));
    return {
      ...row,
      rates: { connections: per('connections'), packets: per('packets'), bytes: per('bytes') },
    };
  });
}

async function weigh(name: string, text: string, weight: string, { json, ...options }: Flags): Promise<void> {
  if (!/^[0-9]{1,5}$/.test(weight) || Number(weight) > MAX_WEIGHT)
    throw new CommandError(
      `${JSON.stringify(weight)} is no weight; write a number from 0 to ${MAX_WEIGHT}`,
      EXIT.usage,
    );
  const backend = await canonicalIp(text);
  await ask('POST', withQuery('/services/weight', { name, backend, weight }), options);
  if (json) printJson({ service: name, backend, weight: Number(weight) });
  else say(Number(weight) === 0 ? `${backend} gets no new flows` : `${backend} has weight ${Number(weight)}`);
}

async function remove(name: string, text: string | undefined, { json, ...options }: Flags): Promise<void> {
  const backend = text === undefined ? undefined : await canonicalIp(text);
  await ask('POST', withQuery('/services/rm', { name, backend }), options);
  if (json) printJson({ service: name, backend });
  else
    say(backend === undefined ? `service ${name} is gone` : `${backend} is no backend of ${name} any more`);
}
