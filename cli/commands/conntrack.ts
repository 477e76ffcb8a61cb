/** `weft conntrack`: what passes between the overlay and the outside. */
import { type Command, InvalidArgumentError } from 'commander';
import type { ConntrackList, FlowEvent, FlowEventLine } from '../../control/api.js';
import { ask, type ClientOptions, follow, withClient, withQuery } from '../client.js';
import { CommandError, EXIT, printJson, printTable, say } from '../output.js';

interface ListOptions extends ClientOptions {
  readonly json?: boolean;
  readonly network?: string;
  readonly protocol?: string;
  readonly limit: string;
}

interface FlushOptions extends ClientOptions {
  readonly json?: boolean;
  readonly network?: string;
  readonly endpoint?: string;
}

interface EventOptions extends ClientOptions {
  readonly json?: boolean;
  readonly network?: string;
  readonly protocol?: string;
}

export function register(program: Command): void {
  const conntrack = program.command('conntrack').description('flows of address translation at uplinks');
  withClient(conntrack.command('ls', { isDefault: true }).description('list flows'))
    .option('--network <name>', 'only this network')
    .option('--protocol <name>', 'only this one: tcp, udp, icmp …')
    .option('--limit <flows>', 'how many to list', wholeNumber, '1000')
    .action(list);
  withClient(
    conntrack.command('stats').description('how many flows there are, and what became of packets'),
  ).action(stats);
  withClient(conntrack.command('flush').description('end flows; connections over them break'))
    .option('--network <name>', 'only this network')
    .option('--endpoint <name>', 'only this endpoint')
    .action(flush);
  withClient(conntrack.command('events').description('show flows that are made, change their state or end'))
    .option('--network <name>', 'only this network')
    .option('--protocol <name>', 'only this one: tcp, udp, icmp …')
    .action(events);
}

function wholeNumber(text: string): string {
  if (!/^[0-9]{1,9}$/.test(text)) throw new InvalidArgumentError('Write a whole number of flows.');
  return text;
}

async function list({ network, protocol, limit, json, ...options }: ListOptions): Promise<void> {
  const path = withQuery('/conntrack', { network, protocol, limit });
  const { flows, matching } = await ask<ConntrackList>('GET', path, options);
  if (json) {
    printJson({ flows, matching });
    return;
  }
  printTable(
    [
      ...[{ title: 'PROTOCOL' }, { title: 'STATE' }, { title: 'NETWORK' }, { title: 'INSIDE' }],
      ...[{ title: 'OUTSIDE' }, { title: 'REMOTE' }],
      ...['OUT', 'IN', 'BYTES', 'EXPIRES'].map((title) => ({ title, align: 'right' as const })),
    ],
    flows.map((flow) => [
      ...[flow.protocol, flow.state, flow.network, flow.inside, flow.outside, flow.remote],
      ...[String(flow.packetsOut), String(flow.packetsIn), String(flow.bytes), `${flow.expires} s`],
    ]),
  );
  if (matching > flows.length) say(`${flows.length} of ${matching} flows; --limit shows more`);
}

async function stats({ json, ...options }: ClientOptions & { readonly json?: boolean }): Promise<void> {
  const { tracked, maxFlows, counters } = await ask<ConntrackList>('GET', '/conntrack?limit=0', options);
  if (json) {
    printJson({ tracked, maxFlows, counters });
    return;
  }
  say(`${tracked} flows of at most ${maxFlows}`);
  printTable(
    [{ title: 'COUNTER' }, { title: 'PACKETS', align: 'right' }],
    Object.entries(counters).map(([name, value]) => [name, String(value)]),
  );
}

async function flush({ network, endpoint, json, ...options }: FlushOptions): Promise<void> {
  const path = withQuery('/conntrack/flush', { network, endpoint });
  const { ended } = await ask<{ ended: number }>('POST', path, options);
  if (json) printJson({ ended });
  else say(`${ended} flows ended`);
}

async function events({ network, protocol, json, ...options }: EventOptions): Promise<void> {
  await follow<FlowEventLine>(withQuery('/conntrack/events', { network, protocol }), options, (line) => {
    if ('schemaVersion' in line) say('listening');
    else if (json) printJson(line);
    else if ('lost' in line) say(`${line.lost} events were lost: they come faster than they are read`);
    else process.stdout.write(`${eventLine(line)}\n`);
  });
  throw new CommandError('the daemon has ended', EXIT.unreachable);
}

function eventLine(row: FlowEvent): string {
  const { event, reason, protocol, state, network, inside, outside, remote } = row;
  const counts =
    event === 'end' ? ` ${row.packetsOut} out, ${row.packetsIn} in, ${row.bytes} bytes, ${reason}` : '';
  return `${row.time} ${event} ${protocol} ${state} ${network} ${inside} ${outside} ${remote}${counts}`;
}
