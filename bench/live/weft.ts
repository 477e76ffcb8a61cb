/** Weft as an operator runs it: a file and `weft up` on each host. */
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ask } from '../../cli/client.js';
import type { Status } from '../../control/api.js';
import type { Encapsulation } from '../../control/config/types.js';
import {
  CARD,
  GATEWAY,
  INTERFACE,
  overlayAddress,
  overlayMac,
  type Site,
  UNDERLAY_MTU,
  VNI,
} from './site.js';
import { Unavailable } from './unavailable.js';

const WEFT = fileURLToPath(new URL('../../cli/main.js', import.meta.url));

type Mode = 'socket' | 'uplink';

/** Of the engine's own router, on the link between the hosts. */
const OWN_ADDRESS = '192.168.50.10/24';

export async function weftOneHost(site: Site): Promise<void> {
  await up(site, 0, 'socket', [0, 1]);
}

/** @param encapsulation what ESP goes in; without it nothing is encrypted. */
export async function weftTwoHosts(site: Site, mode: Mode, encapsulation?: Encapsulation): Promise<void> {
  const more: [object?, object?] = encapsulation
    ? [{ encryption: { keys: keyRing(), encapsulation } }, { encrypted: true }]
    : [];
  await Promise.all([up(site, 0, mode, [0], ...more), up(site, 1, mode, [1], ...more)]);
}

/** One host whose container leaves it: by a router of the engine's own, or through the host's stack. */
export async function weftGateway(site: Site, way: 'router' | 'host'): Promise<void> {
  const uplink =
    way === 'router' ? { name: 'out', interface: CARD, address: OWN_ADDRESS } : { name: 'out', mode: 'host' };
  const network = { gateway: GATEWAY, uplink: 'out', mtu: UNDERLAY_MTU };
  await up(site, 0, 'socket', [0], { uplinks: [uplink] }, network);
}

/** Three, as a manager hands them out: all receive, the middle one sends. */
const keyRing = (): readonly { readonly id: number; readonly secret: string }[] =>
  [1, 2, 3].map((id) => ({ id, secret: randomBytes(32).toString('hex') }));

/**
 * Starts the engine of a host that has these containers.
 * @param keys further ones of its file. @param network of its network: encrypted, the engine takes what the underlay
 * carries whole, for the overhead is another.
 */
async function up(
  site: Site,
  host: number,
  mode: Mode,
  containers: readonly number[],
  keys: object = {},
  network: object = { mtu: site.mtu },
): Promise<void> {
  const file = join(site.directory, `host${host}.yaml`);
  const socket = join(site.directory, `host${host}.sock`);
  const config = {
    node: `host${host}`,
    underlay: { address: site.vtep(host), mode },
    networks: [{ name: 'blue', vni: VNI, subnet: '10.0.9.0/24', peers: [site.vtep(1 - host)], ...network }],
    ...keys,
    endpoints: containers.map((index) => ({
      name: `c${index}`,
      network: 'blue',
      netns: site.containers[index].name,
      interface: INTERFACE,
      address: `${overlayAddress(index)}/24`,
      mac: overlayMac(index),
    })),
  };
  writeFileSync(file, JSON.stringify(config), { mode: 0o600 });
  try {
    await site.start(host, 'weft', process.execPath, [...[WEFT, 'up', '-c', file, '--socket', socket]]);
  } catch (error) {
    const refusal = /cannot have an uplink TAP: .*/.exec((error as Error).message);
    if (refusal) throw new Unavailable(`this host ${refusal[0]}`);
    throw error;
  }
  const { underlay } = await ask<Status>('GET', '/status', { socket });
  if (underlay.path !== mode) throw new Error(`weft took the ${underlay.path} path: ${underlay.why}`);
}
