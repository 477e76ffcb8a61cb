/** WireGuard in userspace: wireguard-go, Debian's package, one daemon and one device a host, ChaCha20-Poly1305. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { waitFor } from '../../cli/lab.js';
import { routeContainer, tunnelMtu } from './routed.js';
import { hasTool, overlayAddress, type Site } from './site.js';

const DEVICE = 'weft-wg0';
const LISTEN_PORT = 51_820;

export function wireguardMissing(): string | undefined {
  for (const [tool, debian] of [
    ['wireguard-go', 'wireguard-go'],
    ['wg', 'wireguard-tools'],
    ['unshare', 'util-linux'],
  ] as const) {
    if (!hasTool(tool)) return `there is no ${tool}; install it with "apt-get install ${debian}"`;
  }
  return undefined;
}

export async function wireguard(site: Site): Promise<void> {
  const keys = await Promise.all(site.hosts.map(() => makeKey(site)));
  await Promise.all(site.hosts.map((_, index) => start(site, index, keys[index].own, keys[1 - index].open)));
}

interface Key {
  /** Private and public, as `wg` prints them. */
  readonly own: string;
  readonly open: string;
}

async function makeKey({ hosts: [host] }: Site): Promise<Key> {
  const own = await host.run('wg', ['genkey']);
  return { own: own.trim(), open: (await host.run('wg', ['pubkey'], { input: own })).trim() };
}

async function start(site: Site, index: number, own: string, peer: string): Promise<void> {
  const host = site.hosts[index];
  // The daemon's socket is /run/wireguard/<device>.sock whatever the network namespace. In a mount namespace of its
  // own nobody else meets it, and it goes when the daemon goes, however that ends.
  const script = 'mount -t tmpfs tmpfs /run && exec "$0" --foreground "$1"';
  const args = ['--mount', 'sh', '-c', script, 'wireguard-go', DEVICE];
  const { child } = site.begin(index, 'wireguard-go', 'unshare', args);
  const wg = (...words: string[]) =>
    host.run('nsenter', [`--mount=/proc/${child.pid}/ns/mnt`, 'wg', ...words]);
  await waitFor(() => wg('show', DEVICE), { what: `wireguard-go of ${host.label}`, timeoutMs: 10_000 });
  const file = join(site.directory, `wireguard${index}.conf`);
  writeFileSync(file, configuration(site, index, own, peer), { mode: 0o600 });
  await wg('setconf', DEVICE, file);
  routeContainer(site, index);
  host.ipBatch([
    `link set dev ${DEVICE} mtu ${tunnelMtu(site)} up`,
    `route add ${overlayAddress(1 - index)} dev ${DEVICE}`,
  ]);
}

/** In the words of wg(8). */
function configuration(site: Site, index: number, own: string, peer: string): string {
  const other = site.vtep(1 - index);
  return `[Interface]
PrivateKey = ${own}
ListenPort = ${LISTEN_PORT}
[Peer]
PublicKey = ${peer}
Endpoint = ${site.ipv6 ? `[${other}]` : other}:${LISTEN_PORT}
AllowedIPs = ${overlayAddress(1 - index)}/32
`;
}
