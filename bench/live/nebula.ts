/**
 * Nebula, Debian's package: one daemon a host, AES-256-GCM. Certificates are made for the run; each host's own names
 * its container's address as a subnet behind it, and the other host routes there ("unsafe route").
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { routeContainer, tunnelMtu } from './routed.js';
import { hasTool, overlayAddress, type Site } from './site.js';

const LISTEN_PORT = 4242;

/** Of a host's end of the tunnel: Nebula wants one, and traffic between containers never shows it. */
const tunnelAddress = (index: number): string => `10.0.8.${index + 1}`;

export function nebulaMissing(): string | undefined {
  const tool = ['nebula', 'nebula-cert'].find((name) => !hasTool(name));
  return tool && `there is no ${tool}; install it with "apt-get install nebula"`;
}

export async function nebula(site: Site): Promise<void> {
  const [host] = site.hosts;
  const file = (name: string): string => join(site.directory, name);
  const authority = ['-name', 'weft-bench', '-out-crt', file('ca.crt'), '-out-key', file('ca.key')];
  await host.run('nebula-cert', ['ca', '-duration', '24h', ...authority]);
  for (const index of site.hosts.keys()) {
    await host.run('nebula-cert', [
      ...['sign', '-ca-crt', file('ca.crt'), '-ca-key', file('ca.key'), '-name', `host${index}`],
      ...['-ip', `${tunnelAddress(index)}/24`, '-subnets', `${overlayAddress(index)}/32`],
      ...['-out-crt', file(`host${index}.crt`), '-out-key', file(`host${index}.key`)],
    ]);
  }
  await Promise.all(site.hosts.map((_, index) => start(site, index)));
}

async function start(site: Site, index: number): Promise<void> {
  const file = join(site.directory, `nebula${index}.json`);
  writeFileSync(file, JSON.stringify(configuration(site, index)), { mode: 0o600 });
  const running = site.begin(index, 'nebula', 'nebula', ['-config', file]);
  await running.output(/Nebula interface is active/);
  routeContainer(site, index);
}

/** In the words of Nebula's config.yml; what is not written is its default. JSON is YAML. */
function configuration(site: Site, index: number): object {
  const other = 1 - index;
  const remote = site.ipv6 ? `[${site.vtep(other)}]` : site.vtep(other);
  const anything = [{ port: 'any', proto: 'any', host: 'any' }];
  const file = (name: string): string => join(site.directory, name);
  return {
    pki: { ca: file('ca.crt'), cert: file(`host${index}.crt`), key: file(`host${index}.key`) },
    static_host_map: { [tunnelAddress(other)]: [`${remote}:${LISTEN_PORT}`] },
    lighthouse: { am_lighthouse: false, hosts: [] },
    listen: { host: site.ipv6 ? '::' : '0.0.0.0', port: LISTEN_PORT },
    cipher: 'aes',
    tun: {
      dev: 'nebula0',
      mtu: tunnelMtu(site),
      unsafe_routes: [{ route: `${overlayAddress(other)}/32`, via: tunnelAddress(other) }],
    },
    logging: { level: 'info', format: 'text' },
    firewall: { outbound: anything, inbound: anything },
  };
}
