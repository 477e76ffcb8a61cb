/**
 * The host's side of ports: TAPs inside containers' namespaces, and the underlay's sockets. Opens, converges and
 * removes them; what flows through them is the engine's.
 *
 * A TAP is persistent while the engine runs, so that a container keeps its interface, addresses and connections
 * when the engine is killed: the next one attaches to it again. It carries the alias `weft:NODE:ENDPOINT`, by which
 * a later start knows its own.
 */
import { existsSync } from 'node:fs';
import { PROTOCOL_ESP } from '../engine/wire/esp.js';
import { native, type Tap, type TapOptions } from '../native-bindings/index.js';
import { runSync } from './command.js';
import { gatewayAddresses, type LocalEndpoint, type Network, netnsPath, type Underlay } from './config.js';

/** One interface as `ip -j address` describes it; only what is used here. */
interface Link {
  readonly ifname: string;
  readonly ifindex: number;
  readonly mtu: number;
  readonly address: string;
  readonly ifalias?: string;
  readonly flags: readonly string[];
  readonly gso_max_size?: number;
  readonly addr_info: readonly { local: string; prefixlen: number; scope: string; dynamic?: boolean }[];
}

/**
 * Largest super-frame a container may send, in bytes of IP packet: with 70 bytes of outer headers and the inner
 * Ethernet header it must still fit the 16-bit length of the outer IP header.
 */
const GSO_MAX_SIZE = 65_400;

/** Sockets that send, each on its own entropy port; a flow keeps one. */
const SENDERS = 8;

export interface OpenEndpoint {
  /** One queue a worker; the first tells name and offloads. */
  readonly taps: readonly Tap[];
  /** Whether the device was there before, left by an engine that was killed. */
  readonly reattached: boolean;
}

/** What its network makes of an endpoint's interface. */
export interface Shape {
  /** Bytes. */
  readonly mtu: number;
  /** Addresses of the default routes' next hops; undefined: no such route of ours. */
  readonly gateway: string | undefined;
  readonly gateway6: string | undefined;
}

/** What a network of this MTU makes of its endpoints' interfaces; one that is internal has no way out. */
export function shapeOf(network: Network, mtu: number): Shape {
  const { v4, v6 } = network.internal ? {} : gatewayAddresses(network);
  return { mtu, gateway: v4?.[0], gateway6: v6?.[0] };
}

/** Mark of our routes (rtnetlink(7), rtm_protocol): others that a container has are not touched. */
const ROUTE_PROTOCOL = 87;
/** A container in several networks has a default route by each; the interface that came first is preferred. */
const FIRST_METRIC = 100;

function alias(node: string, endpoint: string): string {
  return `weft:${node}:${endpoint}`;
}

/** `nsenter` runs the tool in the namespace of a path; `ip -n` knows only names. */
function ipIn(netns: string, args: readonly string[], input?: string): string {
  return runSync('nsenter', [`--net=${netns}`, 'ip', ...args], input === undefined ? {} : { input });
}

function linksIn(netns: string): Link[] {
  return JSON.parse(ipIn(netns, ['-j', '-d', 'address', 'show'])) as Link[];
}

function linkIn(netns: string, name: string): Link {
  return (JSON.parse(ipIn(netns, ['-j', '-d', 'address', 'show', 'dev', name])) as Link[])[0];
}

/**
 * Opens the TAP of an endpoint, or attaches to the one that is there, with a queue for each worker, and makes its
 * address, MAC and MTU what the config says. What is right already is not touched: open connections must not notice.
 * @throws Error with `code`: the errno's name, EEXIST when the interface is somebody else's.
 */
export function openEndpoint(
  node: string,
  endpoint: LocalEndpoint,
  shape: Shape,
  workers: number,
): OpenEndpoint {
  const netns = netnsPath(endpoint.netns);
  const there = linksIn(netns).find(({ ifname }) => ifname === endpoint.interface);
  // Looked at before it is opened: attaching alone would change a TAP of another program.
  if (there && !isOurs(there)) {
    const message = `${endpoint.interface} in ${endpoint.netns} is there already, and not of Weft's making`;
    throw Object.assign(new Error(message), { code: 'EEXIST' });
  }
  const taps = openQueues({ name: endpoint.interface, netns, persist: true, tunnel: false }, workers);
  const { existed } = taps[0];
  try {
    converge(node, endpoint, shape);
  } catch (error) {
    if (existed) closeQueues(taps);
    else removeQueues(taps);
    throw error;
  }
  return { taps, reattached: existed };
}

/** Opens a TAP and so many queues of it. */
export function openQueues(options: TapOptions, queues: number): Tap[] {
  const taps = [native.tapOpen(options)];
  try {
    while (taps.length < queues) taps.push(native.tapOpen({ ...options, name: taps[0].name }));
  } catch (error) {
    if (taps[0].existed) closeQueues(taps);
    else removeQueues(taps);
    throw error;
  }
  return taps;
}

/** Closes the queues of a TAP; one that persists stays. */
export function closeQueues(taps: readonly Tap[]): void {
  for (const { fd } of taps) native.close(fd);
}

/** Removes a TAP: without persistence it goes with its last descriptor. */
export function removeQueues(taps: readonly Tap[]): void {
  native.tapPersist(taps[0].fd, false);
  closeQueues(taps);
}

function isOurs(link: Link): boolean {
  return link.ifalias?.startsWith('weft:') ?? false;
}

/** Makes the interface of an endpoint what the config says. @throws CommandError when `ip` refuses. */
export function converge(node: string, endpoint: LocalEndpoint, shape: Shape): void {
  const { mtu, gateway, gateway6 } = shape;
  const netns = netnsPath(endpoint.netns);
  const name = endpoint.interface;
  const link = linkIn(netns, name);
  const wanted = [endpoint.address, ...(endpoint.address6 === undefined ? [] : [endpoint.address6])];
  const present = link.addr_info
    .filter(({ scope, dynamic }) => scope === 'global' && !dynamic)
    .map(({ local, prefixlen }) => `${local}/${prefixlen}`);
  const batch: string[] = [];
  if (link.address !== endpoint.mac) batch.push(`link set dev ${name} address ${endpoint.mac}`);
  if (link.mtu !== mtu) batch.push(`link set dev ${name} mtu ${mtu}`);
  if (link.gso_max_size !== GSO_MAX_SIZE) batch.push(`link set dev ${name} gso_max_size ${GSO_MAX_SIZE}`);
  if (link.ifalias !== alias(node, endpoint.name)) {
    batch.push(`link set dev ${name} alias ${alias(node, endpoint.name)}`);
  }
  for (const old of present) if (!wanted.includes(old)) batch.push(`address del ${old} dev ${name}`);
  for (const address of wanted) {
    if (present.includes(address)) continue;
    batch.push(`address add ${address} dev ${name}${address.includes(':') ? ' nodad' : ''}`);
  }
  if (!link.flags.includes('UP')) batch.push(`link set dev ${name} up`);
  batch.push(...routeChanges(netns, link, '-4', gateway), ...routeChanges(netns, link, '-6', gateway6));
  if (batch.length > 0) ipIn(netns, ['-batch', '-'], `${batch.join('\n')}\n`);
}

interface Route {
  readonly gateway?: string;
  readonly metric?: number;
}

/** Makes the default route of a family by an interface what it is to be. */
function routeChanges(
  netns: string,
  { ifname, ifindex }: Link,
  family: '-4' | '-6',
  wanted: string | undefined,
): string[] {
  const list = ['-j', family, 'route', 'show', 'default', 'dev', ifname, 'proto', String(ROUTE_PROTOCOL)];
  const present = JSON.parse(ipIn(netns, list) || '[]') as Route[];
  const tail = `dev ${ifname} proto ${ROUTE_PROTOCOL} metric`;
  const gone = present.filter((route) => route.gateway !== wanted);
  const changes = gone.map((route) => `route del default via ${route.gateway} ${tail} ${route.metric}`);
  if (wanted !== undefined && gone.length === present.length)
    changes.push(`route add default via ${wanted} ${tail} ${FIRST_METRIC + ifindex}`);
  return changes;
}

/** Removes a TAP that an engine which was killed left behind; one that is gone, or not ours, is left alone. */
export function removeStale(netns: string, name: string): void {
  if (!existsSync(netns)) return;
  try {
    if (!isOurs(linkIn(netns, name))) return;
    removeQueues(openQueues({ name, netns, persist: true, tunnel: false }, 1));
  } catch {
    // Gone between two looks, or no TAP any more: nothing of ours is left.
  }
}

export interface UnderlaySockets {
  readonly fd: number;
  readonly senders: readonly number[];
}

/**
 * Opens the underlay's sockets, a set for each worker; workers share address and port, and the kernel gives each
 * flow to one of them.
 * @throws Error with `code`: EADDRINUSE when the port is taken, and others.
 */
export function openUnderlay(underlay: Underlay, workers: number): UnderlaySockets[] {
  const { address, port, ttl } = underlay;
  // Sockets that share a port would share it with another daemon too: one that does not share finds that out.
  if (workers > 1) native.close(native.udpOpen({ address, port, ttl, gro: false, share: false }));
  const all: UnderlaySockets[] = [];
  try {
    while (all.length < workers) all.push(openSockets(underlay, workers > 1));
  } catch (error) {
    closeUnderlay(all);
    throw error;
  }
  return all;
}

function openSockets({ address, port, ttl }: Underlay, share: boolean): UnderlaySockets {
  const fd = native.udpOpen({ address, port, ttl, gro: true, share });
  const senders: number[] = [];
  try {
    while (senders.length < SENDERS) senders.push(openSender(address, ttl));
  } catch (error) {
    closeUnderlay([{ fd, senders }]);
    throw error;
  }
  return { fd, senders };
}

/** What carries ESP for a worker: a UDP socket, or a raw one, which all workers share and one of them reads. */
export interface EspSocket {
  readonly fd: number;
  readonly port: number;
  readonly receive: boolean;
}

/**
 * Opens what carries ESP, for each worker.
 * @param port UDP port of encapsulation, 0 for IP protocol 50.
 * @throws Error with `code`: EADDRINUSE when the port is taken, EPERM without the right to raw sockets.
 */
export function openEsp({ address, ttl }: Underlay, port: number, workers: number): EspSocket[] {
  const raw = port === 0;
  if (!raw && workers > 1) native.close(native.udpOpen({ address, port, ttl, gro: false, share: false }));
  const all: EspSocket[] = [];
  try {
    while (all.length < workers) {
      const first = all[0];
      const fd =
        raw && first
          ? first.fd
          : native.udpOpen({
              address,
              port,
              ttl,
              gro: !raw,
              share: !raw && workers > 1,
              ...(raw ? { protocol: PROTOCOL_ESP } : {}),
            });
      all.push({ fd, port, receive: !raw || first === undefined });
    }
  } catch (error) {
    closeEsp(all);
    throw error;
  }
  return all;
}

export function closeEsp(sockets: readonly EspSocket[]): void {
  for (const fd of new Set(sockets.map((socket) => socket.fd))) native.close(fd);
}

/** Binds to some free port of the entropy range (RFC 7348, section 5). */
function openSender(address: string, ttl: number): number {
  for (let attempt = 0; ; attempt++) {
    const port = 49152 + Math.floor(Math.random() * 16384);
    try {
      return native.udpOpen({ address, port, ttl, gro: false, share: false });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EADDRINUSE' || attempt >= 100) throw error;
    }
  }
}

export function closeUnderlay(sockets: readonly UnderlaySockets[]): void {
  for (const { fd, senders } of sockets) for (const descriptor of [fd, ...senders]) native.close(descriptor);
}
