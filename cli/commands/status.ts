/** `weft status`: what runs, over which underlay, and how much went through. */
import type { Command } from 'commander';
import type { Status } from '../../control/api.js';
import { ask, type ClientOptions, withClient } from '../client.js';
import { printJson, printTable } from '../output.js';

export function register(program: Command): void {
  withClient(
    program.command('status').description('show networks, endpoints and the underlay of the running node'),
  ).action(status);
}

async function status(options: ClientOptions & { json?: boolean }): Promise<void> {
  const answer = await ask<Status>('GET', '/status', options);
  if (options.json) {
    printJson(answer);
    return;
  }
  const { underlay, networks, endpoints } = answer;
  const counters = underlay.counters;
  process.stdout.write(
    `node ${answer.node}, up ${answer.uptimeSeconds} s, pid ${answer.pid}, ` +
      `${answer.workers.length === 1 ? 'worker' : 'workers'} ` +
      `${answer.workers.map(({ load }) => `${Math.round(load * 100)} %`).join(', ')} busy\n` +
      `underlay ${underlay.address} port ${underlay.port} on ${underlay.interface}, MTU ${underlay.mtu}, ` +
      `path ${underlay.path} (${underlay.why})\n` +
      `  received ${counters['rx-frames'] ?? 0} frames, sent ${counters['tx-frames'] ?? 0}\n\n`,
  );
  printTable(
    [
      { title: 'NETWORK' },
      { title: 'VNI', align: 'right' },
      { title: 'MTU', align: 'right' },
      { title: 'ENCRYPTED' },
      { title: 'STATIONS', align: 'right' },
      { title: 'PEERS' },
    ],
    networks.map(({ name, vni, mtu, encrypted, stations, peers }) => [
      name,
      String(vni),
      String(mtu),
      encrypted ? 'yes' : 'no',
      String(stations),
      peers.join(' ') || '-',
    ]),
  );
  process.stdout.write('\n');
  printTable(
    [
      { title: 'ENDPOINT' },
      { title: 'NETWORK' },
      { title: 'WHERE' },
      { title: 'ADDRESS' },
      { title: 'STATE' },
      { title: 'RX FRAMES', align: 'right' },
      { title: 'TX FRAMES', align: 'right' },
    ],
    endpoints.map((endpoint) => [
      endpoint.name,
      endpoint.network,
      `${endpoint.netns}/${endpoint.interface}`,
      endpoint.address,
      endpoint.state,
      String(endpoint.counters['rx-frames'] ?? 0),
      String(endpoint.counters['tx-frames'] ?? 0),
    ]),
  );
}
