/**
 * Uplinks of mode host, on the host's side: a TAP into the host's own stack, which routes, masquerades and hands over
 * published ports; Weft is a router at the other end of the TAP's point-to-point link.
 *
 * What is made of the host: the TAP with a link address, a route by it to each network's prefix, one nftables table
 * of each IP version, and forwarding of the interfaces that have addresses. TAP and routes go with the process,
 * however it ends; the rest is undone on exit and, after a crash, taken over by the next start.
 */
import type { UplinkIntent } from '../engine/intent.js';
import { native, type Tap } from '../native-bindings/index.js';
import { contains, deriveMac, type Family, ipBytes, macBytes, parseIp, parsePrefix } from './addresses.js';
import { runSync } from './command.js';
import {
  type Config,
  ConfigError,
  gatewayAddresses,
  type HostProblem,
  type HostUplink,
  hostError,
  type Network,
} from './config.js';
import { Forwarding } from './forwarding.js';
import { endUnpublished } from './host-flows.js';
import {
  chooseLink,
  HOST_V6,
  hostAddresses,
  type LinkAddresses,
  MTU,
  shape,
  WEFT_V6,
  writtenLink,
} from './host-link.js';
import { type HostPort, hostRules, hostTable } from './host-rules.js';
import { interfaceNamed } from './interfaces.js';
import type { Table } from './netlink.js';
import { makeTables, removeTable, TableWatch } from './nftables.js';
import { hostPorts, type PublishedPort } from './published.js';
import { rememberedHost, rememberHost } from './state.js';

/** Mark of our routes (rtnetlink(7), rtm_protocol). */
const ROUTE_PROTOCOL = 87;
/** What containers see in place of the host's loopback when the host has no address (RFC 7600: nobody's). */
const NOBODY = '192.0.0.8';

/** A route as `ip -j` lists it; only what is used here. */
interface Route {
  readonly dst: string;
  readonly dev?: string;
  readonly protocol?: string;
  readonly metrics?: readonly { readonly mtu?: number }[];
}

export interface HostSideOptions {
  readonly file: string;
  readonly state: string;
  readonly log: (line: string) => void;
}

const hostUplinkOf = (config: Config): HostUplink | undefined =>
  config.uplinks.find((uplink): uplink is HostUplink => uplink.mode === 'host');

/** Prefix of a network in a family, if it has a gateway there. */
const prefixOf = (network: Network, family: Family): string | undefined =>
  gatewayAddresses(network)[family === 4 ? 'v4' : 'v6']?.[1];

/** Device of a route to exactly the prefix that is not ours. */
function foreignRoute(prefix: string, tap: string): string | undefined {
  const family = prefix.includes(':') ? '-6' : '-4';
  const routes = JSON.parse(
    runSync('ip', ['-j', family, 'route', 'show', 'exact', prefix]) || '[]',
  ) as Route[];
  const found = routes.find(({ dev, protocol }) => dev !== tap && protocol !== String(ROUTE_PROTOCOL));
  return found && (found.dev ?? 'nothing');
}

/** What of the host keeps an uplink of mode host from being. */
export function hostUplinkProblems(config: Config): HostProblem[] {
  const uplink = hostUplinkOf(config);
  if (uplink === undefined) return [];
  const problems: HostProblem[] = [];
  const owned = hostAddresses(uplink.interface);
  config.networks.forEach((network, index) => {
    if (network.uplink !== uplink.name) return;
    for (const prefix of [prefixOf(network, 4), prefixOf(network, 6)]) {
      if (prefix === undefined) continue;
      const owner = owned.find(({ cidr }) => contains(parsePrefix(prefix), parsePrefix(cidr).address));
      const route = owner ? undefined : foreignRoute(prefix, uplink.interface);
      if (owner === undefined && route === undefined) continue;
      const what = owner ? `has ${owner.cidr}, on ${owner.device}` : `routes elsewhere, by ${route}`;
      problems.push({
        path: ['networks', index, prefix === network.subnet ? 'subnet' : 'subnet6'],
        message: `network "${network.name}" leaves by the host, which ${what}: ${prefix} is taken`,
        remedy: 'give the network a subnet that this host is not in and has no route to',
      });
    }
  });
  return problems;
}

export class HostSide {
  private config: Config | undefined;
  private ports: readonly HostPort[] = [];
  /** Whether there is a table of IPv6. */
  private six = false;
  /** Interfaces that forward because of us, as noted last. */
  private noted = '';
  private readonly watch: TableWatch;

  private constructor(
    private readonly options: HostSideOptions,
    readonly uplink: HostUplink,
    private readonly tap: Tap,
    private readonly link: LinkAddresses,
    /** 6 only where the host has IPv6. */
    private readonly families: readonly Family[],
    private readonly table: string,
    private readonly forwarding: Forwarding,
  ) {
    this.watch = new TableWatch({
      name: `uplink ${uplink.name}`,
      log: options.log,
      tables: () => (this.config === undefined ? [] : this.tables),
      changed: () => this.interfacesChanged(),
      make: () => this.install(),
    });
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
      const families = shape(name, link);
      const forwarding = new Forwarding(name, families, rememberedHost(options.state).forwarding);
      return new HostSide(options, uplink, tap, link, families, table, forwarding);
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
      clampMss: this.uplink.clampMss,
      mac: macBytes(deriveMac(address)),
      address: Uint8Array.from(address.bytes),
      length,
      gateway: ipBytes(host),
      ...(this.families.includes(6) && {
        v6: { address: parseIp(WEFT_V6).bytes, length: 64, gateway: parseIp(HOST_V6).bytes },
      }),
      mtu: MTU,
    };
  }

  private get tables(): Table[] {
    return [`ip ${this.table}`, ...(this.six ? [`ip6 ${this.table}` as const] : [])];
  }

  private note(): void {
    rememberHost(this.options.state, { tables: this.tables, forwarding: this.forwarding.changed });
    this.noted = this.forwarding.changed.join();
  }

  /**
   * Makes routes, rules and forwarding what a config asks for; flows of published ports that go end.
   * @throws ConfigError when the host refuses; what was there stays.
   */
  apply(config: Config, published: readonly PublishedPort[], mtuOf: (network: string) => number): void {
    const before = { config: this.config, ports: this.ports };
    const mine = published.filter(({ uplink }) => uplink === this.uplink.name);
    this.config = config;
    this.ports = mine.flatMap((port) => hostPorts(config, port));
    try {
      if (this.prefixes(config, 6).length > 0) this.useSix(before.config === undefined);
      for (const family of this.families) this.reroute(config, family, mtuOf);
      this.install();
    } catch (error) {
      ({ config: this.config, ports: this.ports } = before);
      throw this.problem(error as Error, config);
    }
    // To look through what the kernel tracks takes a while when it is much.
    const same = before.config !== undefined && JSON.stringify(before.ports) === JSON.stringify(this.ports);
    if (!same) this.endFlows([before.config, config]);
  }

  /** @param first whether to say what this host lacks. */
  private useSix(first: boolean): void {
    this.six = this.families.includes(6);
    const lack = this.six
      ? this.forwarding.lacks(6)
        ? 'this kernel forwards IPv6 by all interfaces or none (Linux 6.17 by some); see docs/gateway.md'
        : undefined
      : 'this host has no IPv6';
    if (first && lack !== undefined)
      this.options.log(`uplink ${this.uplink.name}: IPv6 does not leave by it: ${lack}`);
  }

  private problem(error: Error, config: Config): Error {
    if (error instanceof ConfigError) return error;
    const path = ['uplinks', config.uplinks.findIndex(({ name }) => name === this.uplink.name)];
    const remedy =
      'see the message; mode host needs nft, ip, a kernel with nftables NAT, and /proc/sys to be writable';
    return hostError(this.options.file, [{ path, message: error.message, remedy }]);
  }

  private networks(config: Config): readonly Network[] {
    return config.networks.filter(({ uplink }) => uplink === this.uplink.name);
  }

  private prefixes(config: Config, family: Family): string[] {
    return this.networks(config).flatMap((network) => prefixOf(network, family) ?? []);
  }

  private reroute(config: Config, family: Family, mtuOf: (network: string) => number): void {
    const { interface: device } = this.uplink;
    const version = `-${family}`;
    const list = ['-j', version, 'route', 'show', 'dev', device, 'proto', String(ROUTE_PROTOCOL)];
    const present = (JSON.parse(runSync('ip', list) || '[]') as Route[]).map(
      ({ dst, metrics: [{ mtu = 0 } = {}] = [] }) =>
        `${dst.includes('/') ? dst : parsePrefix(`${dst}/${family === 4 ? 32 : 128}`).text} mtu ${mtu}`,
    );
    const tail = `via ${family === 4 ? this.link.weft : WEFT_V6} dev ${device} proto ${ROUTE_PROTOCOL}`;
    const wanted = this.networks(config).flatMap((network) => {
      const prefix = prefixOf(network, family);
      return prefix === undefined ? [] : `${prefix} mtu ${mtuOf(network.name)}`;
    });
    const changes = [
      ...present.filter((route) => !wanted.includes(route)).map((route) => `route del ${route} ${tail}`),
      ...wanted.filter((route) => !present.includes(route)).map((route) => `route add ${route} ${tail}`),
    ];
    if (changes.length > 0) runSync('ip', [version, '-batch', '-'], { input: `${changes.join('\n')}\n` });
  }

  /** Rules first, then forwarding: no interface forwards a packet that the rules have not seen. */
  private install(): void {
    const { forwarding } = this;
    const fresh = forwarding.look();
    this.note();
    makeTables(this.rules());
    forwarding.open(fresh);
  }

  private rules(): string {
    return this.rulesOf(4) + (this.six ? this.rulesOf(6) : '');
  }

  private rulesOf(family: Family): string {
    const config = this.config!;
    const tap = this.uplink.interface;
    const masqueraded = this.networks(config).filter(({ masquerade }) => masquerade);
    const own = hostAddresses(tap).find(({ cidr }) => !/^(127|169\.254)\.|:/.test(cidr));
    return hostRules({
      ...{ family, table: this.table, tap, clampMss: this.uplink.clampMss },
      prefixes: this.prefixes(config, family),
      masqueraded: masqueraded.flatMap((network) => prefixOf(network, family) ?? []),
      opened: this.forwarding.openedFor(family),
      published: this.ports.filter(({ to }) => to.includes(':') === (family === 6)),
      self: family === 4 ? (own?.cidr.split('/')[0] ?? NOBODY) : undefined,
    });
  }

  /** Whether interfaces have come or gone since the rules were made. */
  private interfacesChanged(): boolean {
    return this.forwarding.look().length > 0 || this.noted !== this.forwarding.changed.join();
  }

  private endFlows(configs: readonly (Config | undefined)[]): void {
    const own = hostAddresses(this.uplink.interface).map(({ cidr }) => cidr.split('/')[0]);
    const endpoints = configs.flatMap((config) =>
      (config?.endpoints ?? []).flatMap(({ address, address6 }) => [
        address,
        ...(address6 ? [address6] : []),
      ]),
    );
    try {
      endUnpublished(
        this.six ? [4, 6] : [4],
        this.ports,
        endpoints.map((cidr) => cidr.split('/')[0]),
        own,
      );
    } catch (error) {
      this.options.log(
        `uplink ${this.uplink.name}: the kernel's flows cannot be ended (${(error as Error).message}); those of ports that are not published any more are dropped`,
      );
    }
  }

  /** Takes everything back. @param leave rules and forwarding stay for the next process, as after a crash. */
  close(leave = false): void {
    this.watch.close();
    this.config = undefined;
    native.close(this.tap.fd);
    if (leave) return;
    for (const table of this.tables) removeTable(table);
    this.forwarding.close();
    rememberHost(this.options.state);
  }
}

/** Removes what a crash left, but for the table that is about to be replaced, and forwarding if that comes back. */
function removeLeftOvers(state: string, kept: string | undefined): void {
  const { tables, forwarding } = rememberedHost(state);
  for (const table of tables) if (table.split(' ')[1] !== kept) removeTable(table);
  if (kept !== undefined || tables.length + forwarding.length === 0) return;
  new Forwarding('', [4, 6], forwarding).close();
  rememberHost(state);
}
