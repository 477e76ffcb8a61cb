/** What a node's file asks of this host and of the way to the others. */
import { createSocket } from 'node:dgram';
import { statfsSync } from 'node:fs';
import { parseIp } from '../addresses.js';
import { type Config, ConfigError, loadConfig, netnsPath } from '../config.js';
import { interfaceOf, type LocalInterface } from '../interfaces.js';
import { ProbeUnavailable } from '../path-mtu.js';
import { measurePeers, type PeerReport, remoteVteps, sentence } from '../peers.js';
import { type Check, fail, ok, oneLine, skip, warn } from './check.js';

/** File-system type of a namespace's file (linux/magic.h). */
const NSFS_MAGIC = 0x6e736673;

/** Who holds the underlay's port when it is not free; undefined: not a Weft that answers. */
export type Holder = (underlay: Config['underlay']) => Promise<string | undefined>;

/** @param holder asks the running daemon, if there is one, whether the port is its own. */
export async function checkNodeFile(path: string, holder: Holder): Promise<Check[]> {
  let config: Config;
  try {
    config = loadConfig(path);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return error.problems.map(({ file, line, column, message, remedy }) =>
      fail('node file', line > 0 ? `${file}:${line}:${column}: ${message}` : `${file}: ${message}`, remedy),
    );
  }
  const counts = `${config.networks.length} networks, ${config.endpoints.length} endpoints`;
  const checks = [ok('node file', `${path} is valid: ${counts}`), ...checkNamespaces(config)];
  const { link, check } = checkUnderlay(config);
  checks.push(check);
  if (!link) return [...checks, skip('port and peers', 'not tried without the underlay address')];
  for (const port of portsOf(config)) checks.push(await checkPort(config.underlay, port, holder));
  return [...checks, ...(await checkPeers(config, link))];
}

function checkNamespaces(config: Config): Check[] {
  const names = config.endpoints.flatMap((endpoint) => (endpoint.kind === 'local' ? [endpoint.netns] : []));
  return [...new Set(names)].map((netns) => {
    const name = `namespace ${netns}`;
    const path = netnsPath(netns);
    const remedy = netns.startsWith('/') ? 'start the container it belongs to' : `ip netns add ${netns}`;
    try {
      if (statfsSync(path).type === NSFS_MAGIC) return ok(name, path);
      return fail(name, `${path} is not a network namespace`, remedy);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      return fail(name, code === 'ENOENT' ? `${path} is not there` : oneLine(error), remedy);
    }
  });
}

function checkUnderlay({ underlay }: Config): { link: LocalInterface | undefined; check: Check } {
  const name = 'underlay address';
  const { address, mtu } = underlay;
  let link: LocalInterface | undefined;
  try {
    link = interfaceOf(address);
  } catch (error) {
    return { link, check: skip(name, `not looked up: ${oneLine(error)}`) };
  }
  if (!link) {
    const remedy = `write this host's address into underlay.address, or: ip address add ${address}/… dev …`;
    return { link, check: fail(name, `no interface of this host has ${address}`, remedy) };
  }
  const found = `${address} is on ${link.name}, MTU ${link.mtu}`;
  if (!link.up) return { link, check: fail(name, `${found}, which is down`, `ip link set ${link.name} up`) };
  if (mtu !== undefined && mtu > link.mtu) {
    const check = fail(name, `${found}, but underlay.mtu says ${mtu}`, `write mtu: ${link.mtu}`);
    return { link, check };
  }
  return { link, check: ok(name, found) };
}

/** The ports that Weft binds: of VXLAN, and with encryption those of ESP and of the exchange of keys. */
function portsOf({ underlay, encryption }: Config): number[] {
  if (encryption === undefined) return [underlay.port];
  return [
    underlay.port,
    ...(encryption.encapsulation === 'udp' ? [encryption.port] : []),
    ...(encryption.keys.length > 0 ? [encryption.exchangePort] : []),
  ];
}

async function checkPort(underlay: Config['underlay'], port: number, holder: Holder): Promise<Check> {
  const { address } = underlay;
  const name = `UDP port ${port}`;
  const code = await tryBind(address, port);
  if (code === undefined) return ok(name, `is free on ${address}`);
  if (code === 'EADDRINUSE') {
    const running = await holder(underlay);
    if (running !== undefined) return ok(name, `is used by ${running}`);
    const remedy = `find the program with: ss -ulnp sport = :${port} (a kernel vxlan device shows no program)`;
    return fail(name, `is taken on ${address}`, remedy);
  }
  return fail(name, `cannot be bound on ${address}: ${code}`, 'check the address and the rights');
}

function tryBind(address: string, port: number): Promise<string | undefined> {
  const v6 = parseIp(address).family === 6;
  const socket = createSocket({ type: v6 ? 'udp6' : 'udp4', ipv6Only: v6 });
  return new Promise((resolve) => {
    socket.once('error', (error: NodeJS.ErrnoException) => {
      socket.close();
      resolve(error.code ?? error.message);
    });
    socket.bind({ address, port, exclusive: true }, () => socket.close(() => resolve(undefined)));
  });
}

async function checkPeers(config: Config, link: LocalInterface): Promise<Check[]> {
  const vteps = remoteVteps(config);
  if (vteps.length === 0) return [skip('peers', 'the file names no other VTEP')];
  try {
    const reports = await measurePeers(config, link, vteps);
    return reports.flatMap((report) => judgePeer(report, config.underlay.mtu ?? link.mtu));
  } catch (error) {
    if (error instanceof ProbeUnavailable)
      return [warn('peers', `not measured: ${error.message}`, error.remedy)];
    throw error;
  }
}

function judgePeer(report: PeerReport, underlayMtu: number): Check[] {
  const { vtep, answered, reason, rtt, mtu, networks } = report;
  const name = `VTEP ${vtep}`;
  if (!answered || rtt === undefined || mtu === undefined) {
    const remedy =
      'check the route and the host; a firewall that drops ICMP echoes looks the same, and then VXLAN may still pass';
    return [warn(name, reason ?? 'no answer', remedy)];
  }
  const path = `answers in ${rtt.min.toFixed(2)} ms, path MTU ${mtu}`;
  const checks =
    mtu >= underlayMtu
      ? [ok(name, path)]
      : [warn(name, `${path}, below the underlay's ${underlayMtu}`, `write underlay.mtu: ${mtu}`)];
  for (const network of networks) {
    const about = `MTU of ${network.name} to ${vtep}`;
    if (network.verdict === 'too-large')
      checks.push(fail(about, sentence(network), `write mtu: ${network.largest} for ${network.name}`));
    else checks.push(ok(about, sentence(network)));
  }
  return checks;
}
