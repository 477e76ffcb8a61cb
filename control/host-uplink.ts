/**
 * Uplinks of mode host, on the host's side: a TAP into the host's own stack, which routes, masquerades and hands over
 * published ports; Weft is a router at the other end of the TAP's point-to-point link.
 *
 * What is made of the host: the TAP with a link address, a route by it to each network's prefix, one nftables table,
 * and forwarding of the interfaces that have addresses. TAP and routes go with the process, however it ends; the rest
 * is undone on exit and, after a crash, taken over by the next start.
 */
import { createHash } from 'node:crypto';
import { networkInterfaces } from 'node:os';
import type { UplinkIntent } from '../engine/intent.js';
import { native, type Tap } from '../native-bindings/index.js';
import { contains, deriveMac, macBytes, parseIp, parsePrefix } from './addresses.js';
import { runSync } from './command.js';
import { type Config, ConfigError, type HostProblem, type HostUplink, hostError } from './config.js';
import { Forwarding, setConf } from './forwarding.js';
import { type HostPort, hostRules, hostTable } from './host-rules.js';
import { interfaceNamed } from './interfaces.js';
import { endKernelFlows, type KernelFlow } from './kernel-flows.js';
import { PROTOCOL_NUMBERS, type PublishedPort } from './published.js';
import { rememberedHost, rememberHost } from './state.js';

/** Mark of our routes (rtnetlink(7), rtm_protocol). */
const ROUTE_PROTOCOL = 87;
/** Of the TAP, its most, bytes: what is too long for a network, its route says. */
const MTU = 65_521;
/** How often to look for interfaces that have come. */
const LOOK_MS = 1000;
/** What containers see in place of the host's loopback when the host has no address (RFC 7600: nobody's). */
const NOBODY = '192.0.0.8';

/** A route as `ip -j` lists it; only what is used here. */
interface Route {
  readonly dst: string;
  readonly dev?: string;
  readonly metrics?: readonly { readonly mtu?: number }[];
}

/** Ends of the point-to-point link, dotted decimal. */
interface LinkAddresses {
  readonly host: string;
  readonly weft: string;
  readonly length: number;
}

export interface HostSideOptions {
  readonly file: string;
  readonly state: string;
  readonly log: (line: string) => void;
}

const hostUplinkOf = (config: Config): HostUplink | undefined =>
  config.uplinks.find((uplink): uplink is HostUplink => uplink.mode === 'host');

/** Addresses of this host beside its loopback and the device. */
function hostAddresses(except: string): { readonly device: string; readonly cidr: string }[] {
  return Object.entries(networkInterfaces()).flatMap(([device, addresses = []]) =>
    device === except
      ? []
      : addresses.flatMap(({ cidr, family }) =>
          family === 'IPv4' && cidr !== null ? [{ device, cidr }] : [],
        ),
  );
}

/**
 * A /30 of 169.254.0.0/16 (RFC 3927) that no address of the host is in: the same after each start, unless it is taken.
 * Not the first and last 256 addresses, which are reserved, nor 169.254.169.0/24, where clouds answer.
 */
function chooseLink(node: string, uplink: string, except: string): LinkAddresses {
  const taken = hostAddresses(except).map(({ cidr }) => parsePrefix(cidr));
  const [high, low] = createHash('sha256').update(`${node} ${uplink}`).digest();
  for (let i = 0, block = (high << 8) | low; ; i++, block++) {
    const third = (block >>> 6) & 0xff;
    const base = (block & 0x3f) << 2;
    if (third === 0 || third === 169 || third === 255) continue;
    const link = parsePrefix(`169.254.${third}.${base}/30`);
    if (i < 1 << 14 && taken.some((one) => contains(link, one.address) || contains(one, link.network)))
      continue;
    return { host: `169.254.${third}.${base + 1}`, weft: `169.254.${third}.${base + 2}`, length: 30 };
  }
}

/** The link of an address that was written: Weft's end; the host's is the other. */
function writtenLink(cidr: string): LinkAddresses {
  const { address, length } = parsePrefix(cidr);
  const last = address.bytes[3];
  const other = length === 31 ? last ^ 1 : last ^ 3;
  return { weft: address.text, host: address.text.replace(/\d+$/, String(other)), length };
}

/** Device of a route to exactly the prefix that is not ours. */
function foreignRoute(prefix: string, tap: string): string | undefined {
  const routes = JSON.parse(runSync('ip', ['-j', '-4', 'route', 'show', 'exact', prefix]) || '[]') as Route[];
  const found = routes.find(({ dev }) => dev !== tap);
  return found && (found.dev ?? 'nothing');
}

/** What of the host keeps an uplink of mode host from being. */
export function hostUplinkProblems(config: Config): HostProblem[] {
  const uplink = hostUplinkOf(config);
  if (uplink === undefined) return [];
  const problems: HostProblem[] = [];
  config.networks.forEach(({ name, subnet, uplink: way }, index) => {
    if (way !== uplink.name) return;
    const prefix = parsePrefix(subnet);
    const owner = hostAddresses(uplink.interface).find(({ cidr }) =>
      contains(prefix, parsePrefix(cidr).address),
    );
    const route = owner ? undefined : foreignRoute(subnet, uplink.interface);
    if (owner === undefined && route === undefined) return;
    const what = owner ? `has ${owner.cidr}, on ${owner.device}` : `routes elsewhere, by ${route}`;
    problems.push({
      path: ['networks', index, 'subnet'],
      message: `network "${name}" leaves by the host, which ${what}: ${subnet} is taken`,
      remedy: 'give the network a subnet that this host is not in and has no route to',
    });
  });
  return problems;
}

export class HostSide {
  private config: Config | undefined;
  private ports: readonly PublishedPort[] = [];
  private readonly timer: NodeJS.Timeout;

  private constructor(
    private readonly options: HostSideOptions,
    readonly uplink: HostUplink,
    readonly tap: Tap,
    readonly link: LinkAddresses,
    private readonly table: string,
    private readonly forwarding: Forwarding,
  ) {
    this.timer = setInterval(() => this.look(), LOOK_MS).unref();
  }

  /** The uplink of mode host of a config, opened but for rules and routes; undefined when it has none. @throws ConfigError */
  static open(options: HostSideOptions, config: Config): HostSide | undefined {
    const uplink = hostUplinkOf(config);
    const table = uplink && hostTable(config.node, uplink.name);
    removeLeftOvers(options.state, table);
    if (uplink === undefined || table === undefined) return undefined;
    const path = ['uplinks', config.uplinks.indexOf(uplink)];
    const name = uplink.interface;
    if (interfaceNamed(name) !== undefined) {
      const remedy = 'remove it, or write another name for the TAP as interface';
      const message = `this host has an interface ${name} already`;
      throw hostError(options.file, [{ path: [...path, 'interface'], message, remedy }]);
    }
    const link =
      uplink.address === undefined ? chooseLink(config.node, uplink.name, name) : writtenLink(uplink.address);
    let tap: Tap | undefined;
    try {
      tap = native.tapOpen({ name, netns: '', persist: false, tunnel: false });
      shape(name, link);
      const forwarding = new Forwarding(name, [4], rememberedHost(options.state).forwarding);
      return new HostSide(options, uplink, tap, link, table, forwarding);
    } catch (error) {
      if (tap !== undefined) native.close(tap.fd);
      throw hostError(options.file, [{ path, message: (error as Error).message, remedy: 'see the message' }]);
    }
  }

  /** What the data plane is told of it. */
  get intent(): UplinkIntent {
    const { host, weft, length } = this.link;
    const address = parseIp(weft);
    return {
      fd: this.tap.fd,
      tap: true,
      mac: macBytes(deriveMac(address)),
      address: Uint8Array.from(address.bytes),
      length,
      gateway: Uint8Array.from(parseIp(host).bytes),
      mtu: MTU,
    };
  }

  private note(): void {
    rememberHost(this.options.state, { tables: [`ip ${this.table}`], forwarding: this.forwarding.changed });
  }

  /**
   * Makes routes, rules and forwarding what a config asks for; flows of published ports that go end.
   * @throws ConfigError when the host refuses; what was there stays.
   */
  apply(config: Config, published: readonly PublishedPort[], mtuOf: (network: string) => number): void {
    const before = { config: this.config, ports: this.ports };
    const ports = published.filter(({ uplink }) => uplink === this.uplink.name);
    this.config = config;
    this.ports = ports;
    try {
      this.reroute(config, mtuOf);
      this.install();
    } catch (error) {
      ({ config: this.config, ports: this.ports } = before);
      throw this.problem(error as Error, config);
    }
    this.endFlows(before.config === undefined ? [] : before.ports, before.config ?? config);
  }

  private problem(error: Error, config: Config): Error {
    if (error instanceof ConfigError) return error;
    const path = ['uplinks', config.uplinks.findIndex(({ name }) => name === this.uplink.name)];
    const remedy =
      'see the message; mode host needs nft, ip, a kernel with nftables NAT, and /proc/sys to be writable';
    return hostError(this.options.file, [{ path, message: error.message, remedy }]);
  }

  private prefixes(config: Config): string[] {
    return config.networks.flatMap(({ uplink, subnet }) => (uplink === this.uplink.name ? [subnet] : []));
  }

  private reroute(config: Config, mtuOf: (network: string) => number): void {
    const { name, interface: device } = this.uplink;
    const list = ['-j', '-4', 'route', 'show', 'dev', device, 'proto', String(ROUTE_PROTOCOL)];
    const present = (JSON.parse(runSync('ip', list) || '[]') as Route[]).map(
      ({ dst, metrics: [{ mtu = 0 } = {}] = [] }) => `${dst.includes('/') ? dst : `${dst}/32`} mtu ${mtu}`,
    );
    const tail = `via ${this.link.weft} dev ${device} proto ${ROUTE_PROTOCOL}`;
    const wanted = config.networks
      .filter(({ uplink }) => uplink === name)
      .map((network) => `${network.subnet} mtu ${mtuOf(network.name)}`);
    const changes = [
      ...present.filter((route) => !wanted.includes(route)).map((route) => `route del ${route} ${tail}`),
      ...wanted.filter((route) => !present.includes(route)).map((route) => `route add ${route} ${tail}`),
    ];
    if (changes.length > 0) runSync('ip', ['-batch', '-'], { input: `${changes.join('\n')}\n` });
  }

  /** Rules first, then forwarding: no interface forwards a packet that the rules have not seen. */
  private install(): void {
    const { forwarding } = this;
    const fresh = forwarding.look() ?? [];
    this.note();
    runSync('nft', ['-f', '-'], { input: this.rules() });
    forwarding.open(fresh);
  }

  private rules(): string {
    const config = this.config!;
    const { name, interface: tap } = this.uplink;
    const masqueraded = config.networks.filter(({ uplink, masquerade }) => uplink === name && masquerade);
    return hostRules({
      family: 4,
      table: this.table,
      tap,
      prefixes: this.prefixes(config),
      masqueraded: masqueraded.map(({ subnet }) => subnet),
      opened: this.forwarding.openedFor(4),
      published: this.ports.map((port) => hostPort(config, port)),
      self:
        hostAddresses(tap)
          .find(({ cidr }) => !/^(127|169\.254)\./.test(cidr))
          ?.cidr.split('/')[0] ?? NOBODY,
    });
  }

  /** Follows interfaces that come and go. */
  private look(): void {
    if (this.config === undefined) return;
    try {
      const fresh = this.forwarding.look();
      if (fresh === undefined) return;
      this.note();
      runSync('nft', ['-f', '-'], { input: this.rules() });
      this.forwarding.open(fresh);
    } catch (error) {
      this.options.log(`uplink ${this.uplink.name}: forwarding not followed: ${(error as Error).message}`);
    }
  }

  /**
   * Ends what the kernel tracks of ports that are not published any more, so that connections do not outlive their
   * rule; and, of ports that are now, what was for the host itself, which would go on being.
   */
  private endFlows(before: readonly PublishedPort[], config: Config): void {
    const place = (of: Config, port: PublishedPort): string => flowKey(hostPort(of, port));
    const now = new Set(this.ports.map((port) => place(this.config!, port)));
    const was = new Set(before.map((port) => place(config, port)));
    const gone = new Set([...was].filter((key) => !now.has(key)));
    const own = new Set(hostAddresses(this.uplink.interface).map(({ cidr }) => hexOf(cidr.split('/')[0])));
    const come = new Set(
      this.ports
        .filter((port) => !was.has(place(this.config!, port)))
        .map(({ protocol, port }) => `${PROTOCOL_NUMBERS[protocol]} ${port}`),
    );
    if (gone.size === 0 && come.size === 0) return;
    const match = ({ original, reply }: KernelFlow): boolean =>
      gone.has(`${original.protocol} ${original.destinationPort} ${reply.source} ${reply.sourcePort}`) ||
      (own.has(original.destination) &&
        reply.source === original.destination &&
        come.has(`${original.protocol} ${original.destinationPort}`));
    try {
      endKernelFlows(4, match);
    } catch (error) {
      this.options.log(
        `uplink ${this.uplink.name}: the kernel's flows cannot be ended (${(error as Error).message}); those of ports that are not published any more are dropped`,
      );
    }
  }

  /** Takes everything back. */
  close(): void {
    clearInterval(this.timer);
    this.config = undefined;
    removeTable(`ip ${this.table}`);
    this.forwarding.close();
    rememberHost(this.options.state);
    native.close(this.tap.fd);
  }
}

const hexOf = (address: string): string => Buffer.from(parseIp(address).bytes).toString('hex');

/** As a flow of the kernel shows it: protocol, port, and the end that answers. */
function flowKey({ protocol, port, to, target }: HostPort): string {
  return `${PROTOCOL_NUMBERS[protocol as PublishedPort['protocol']]} ${port} ${hexOf(to)} ${target}`;
}

function hostPort(config: Config, { protocol, address, port, endpoint, target }: PublishedPort): HostPort {
  const { address: to } = config.endpoints.find(({ name }) => name === endpoint)!;
  return { protocol, address, port, to: to.split('/')[0], target };
}

/** Makes the TAP an end of the link. */
function shape(device: string, { host, length }: LinkAddresses): void {
  const settings = [
    `link set dev ${device} addrgenmode none`,
    `link set dev ${device} mtu ${MTU} up`,
    // Of link scope, so that the host speaks to containers by an address that others know too.
    `address add ${host}/${length} dev ${device} scope link`,
  ];
  runSync('ip', ['-batch', '-'], { input: `${settings.join('\n')}\n` });
  setConf(4, device, 'forwarding', '1');
  setConf(4, device, 'route_localnet', '1');
  setConf(4, device, 'arp_announce', '2');
  setConf(4, device, 'send_redirects', '0');
  setConf(4, device, 'accept_redirects', '0');
}

/** Removes what a crash left, but for the table that is about to be replaced, and forwarding if that comes back. */
function removeLeftOvers(state: string, kept: string | undefined): void {
  const { tables, forwarding } = rememberedHost(state);
  for (const table of tables) if (table !== `ip ${kept}`) removeTable(table);
  if (kept !== undefined || tables.length + forwarding.length === 0) return;
  new Forwarding('', [4], forwarding).close();
  rememberHost(state);
}

/** Removes a table of ours; one that is not there is no error. */
function removeTable(table: string): void {
  try {
    runSync('nft', ['delete', 'table', ...table.split(' ')]);
  } catch {
    // Not there, or no nft on this host, and then no table either.
  }
}
