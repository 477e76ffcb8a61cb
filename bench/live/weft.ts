/** Weft as an operator runs it: a file and `weft up` on each host. */
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ask } from '../../cli/client.js';
import type { Status } from '../../control/api.js';
import type { Encapsulation } from '../../control/config/types.js';
import { INTERFACE, overlayAddress, overlayMac, type Site, VNI } from './site.js';
import { Unavailable } from './unavailable.js';

const WEFT = fileURLToPath(new URL('../../cli/main.js', import.meta.url));

type Mode = 'socket' | 'uplink';

/** What a node's file says under `encryption`. */
interface Encryption {
  readonly keys: readonly { readonly id: number; readonly secret: string }[];
  readonly encapsulation: Encapsulation;
}

export async function weftOneHost(site: Site): Promise<void> {
  await up(site, 0, 'socket', [0, 1]);
}

/** @param encapsulation what ESP goes in; without it nothing is encrypted. */
export async function weftTwoHosts(site: Site, mode: Mode, encapsulation?: Encapsulation): Promise<void> {
  const encryption = encapsulation && { keys: keyRing(), encapsulation };
  await Promise.all([up(site, 0, mode, [0], encryption), up(site, 1, mode, [1], encryption)]);
}

/** Three, as a manager hands them out: all receive, the middle one sends. */
const keyRing = (): Encryption['keys'] =>
  [1, 2, 3].map((id) => ({ id, secret: randomBytes(32).toString('hex') }));

/** Starts the engine of a host that has these containers. */
async function up(
  site: Site,
  host: number,
  mode: Mode,
  containers: readonly number[],
  encryption?: Encryption,
): Promise<void> {
  const file = join(site.directory, `host${host}.yaml`);
  const socket = join(site.directory, `host${host}.sock`);
  const network = { name: 'blue', vni: VNI, subnet: '10.0.9.0/24', peers: [site.vtep(1 - host)] };
  const config = {
    node: `host${host}`,
    underlay: { address: site.vtep(host), mode },
    // Encrypted, the engine takes what the underlay carries whole: the overhead is another.
    networks: [encryption ? { ...network, encrypted: true } : { ...network, mtu: site.mtu }],
    ...(encryption ? { encryption } : {}),
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
