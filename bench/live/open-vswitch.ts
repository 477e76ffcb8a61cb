/**
 * Open vSwitch's userspace datapath (`datapath_type=netdev`): a daemon and a database of its own on each host. The
 * underlay's card is a port of br-phy, which has the host's address; VXLAN leaves through br-int.
 */
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { type Namespace, toolEnvironment, waitFor } from '../../cli/lab.js';
import { CARD, hasTool, INTERFACE, PORT, type Site, VNI } from './site.js';

const SCHEMA = '/usr/share/openvswitch/vswitch.ovsschema';

export function openVswitchMissing(): string | undefined {
  const tool = ['ovs-vswitchd', 'ovsdb-server', 'ovsdb-tool', 'ovs-vsctl'].find((name) => !hasTool(name));
  if (tool) return `there is no ${tool}; install it with "apt-get install openvswitch-switch"`;
  return hasTool('ethtool') ? undefined : 'there is no ethtool; install it with "apt-get install ethtool"';
}

export async function openVswitch(site: Site): Promise<void> {
  await Promise.all(site.hosts.map((_, index) => start(site, index)));
}

async function start(site: Site, index: number): Promise<void> {
  const host = site.hosts[index];
  const directory = join(site.directory, `ovs${index}`);
  mkdirSync(directory);
  // Nothing of it is shared with a switch that may run on this machine.
  const env = {
    ...toolEnvironment(),
    OVS_RUNDIR: directory,
    OVS_LOGDIR: directory,
    OVS_DBDIR: directory,
    OVS_SYSCONFDIR: directory,
  };
  const database = join(directory, 'conf.db');
  const socket = join(directory, 'db.sock');
  const server = `unix:${socket}`;
  await host.run('ovsdb-tool', ['create', database, SCHEMA]);
  const begin = (name: string, args: readonly string[]) => site.begin(index, name, name, args, { env });
  const options = ['-vconsole:warn', '-vfile:off', '-vsyslog:off'];
  begin('ovsdb-server', [database, `--remote=p${server}`, `--unixctl=${directory}/db.ctl`, ...options]);
  await waitFor(() => existsSync(socket), { what: `ovsdb-server of ${host.label}` });
  const vsctl = (...args: string[]) => host.run('ovs-vsctl', [`--db=${server}`, '--timeout=10', ...args]);
  await vsctl('--no-wait', 'init');
  begin('ovs-vswitchd', [server, `--unixctl=${directory}/switch.ctl`, ...options]);
  await attachContainer(site, index);
  await vsctl(
    ...['add-br', 'br-phy', '--', 'set', 'bridge', 'br-phy', 'datapath_type=netdev', 'fail-mode=standalone'],
    ...[`other_config:hwaddr="${site.cardMac(index)}"`, '--', 'add-port', 'br-phy', CARD],
    ...['--', 'add-br', 'br-int', '--', 'set', 'bridge', 'br-int', 'datapath_type=netdev'],
    ...['--', 'add-port', 'br-int', PORT],
    ...['--', 'add-port', 'br-int', 'vx0', '--', 'set', 'interface', 'vx0', 'type=vxlan'],
    ...[`options:remote_ip=${quoted(site.vtep(1 - index))}`, `options:key=${VNI}`],
  );
  moveAddress(host, `${site.vtep(index)}/${site.ipv6 ? 64 : 24}`);
}

/** ovs-vsctl takes a bare colon for the end of a key. */
const quoted = (address: string): string => (address.includes(':') ? `"${address}"` : address);

/** A veth, whose checksums the container completes itself: this datapath passes frames on as it reads them. */
async function attachContainer(site: Site, index: number): Promise<void> {
  site.attachVeth(index, site.mtu);
  await site.containers[index].run('ethtool', ['-K', INTERFACE, 'tx', 'off']);
}

/** The host's address belongs to the bridge that holds the card. */
function moveAddress(host: Namespace, address: string): void {
  host.ip('addr', 'flush', 'dev', CARD);
  host.addAddresses('br-phy', [address]);
  host.ip('link', 'set', 'br-phy', 'up');
}
