/** Weft as an operator runs it: a file and `weft up` on each host. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ask } from '../../cli/client.js';
import type { Status } from '../../control/api.js';
import { INTERFACE, overlayAddress, overlayMac, type Site, VNI } from './site.js';
import { Unavailable } from './unavailable.js';

const WEFT = fileURLToPath(new URL('../../cli/main.js', import.meta.url));

type Mode = 'socket' | 'uplink';

export async function weftOneHost(site: Site): Promise<void> {
  await up(site, 0, 'socket', [0, 1]);
}

export async function weftTwoHosts(site: Site, mode: Mode): Promise<void> {
  await Promise.all([up(site, 0, mode, [0]), up(site, 1, mode, [1])]);
}

/** Starts the engine of a host that has these containers. */
async function up(site: Site, host: number, mode: Mode, containers: readonly number[]): Promise<void> {
  const file = join(site.directory, `host${host}.yaml`);
  const socket = join(site.directory, `host${host}.sock`);
  const config = {
    node: `host${host}`,
    underlay: { address: site.vtep(host), mode },
    networks: [
      { name: 'blue', vni: VNI, subnet: '10.0.9.0/24', mtu: site.mtu, peers: [site.vtep(1 - host)] },
    ],
    endpoints: containers.map((index) => ({
      name: `c${index}`,
      network: 'blue',
      netns: site.containers[index].name,
      interface: INTERFACE,
      address: `${overlayAddress(index)}/24`,
      mac: overlayMac(index),
    })),
  };
  writeFileSync(file, JSON.stringify(config));
  try {
    await site.start(host, `weft on ${site.hosts[host].label}`, process.execPath, [
      ...[WEFT, 'up', '-c', file, '--socket', socket],
    ]);
  } catch (error) {
    const refusal = /cannot have an uplink TAP: .*/.exec((error as Error).message);
    if (refusal) throw new Unavailable(`this host ${refusal[0]}`);
    throw error;
  }
  const { underlay } = await ask<Status>('GET', '/status', { socket });
  if (underlay.path !== mode) throw new Error(`weft took the ${underlay.path} path: ${underlay.why}`);
}
