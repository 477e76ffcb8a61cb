/**
 * Published ports: which port each rule gets, and, of an uplink of mode host, that the port is nobody else's on this
 * host. It is held as long as it is published: who wants it meanwhile hears that it is taken.
 */
import { native } from '../native-bindings/index.js';
import { type Config, gatewayAddresses, type HostProblem, hostError, type Publish } from './config.js';
import type { HostPort } from './host-rules.js';

/** Ports that are given out when a rule names none. */
const FIRST_AUTOMATIC = 30_000;
const LAST_AUTOMATIC = 32_767;
const AUTOMATIC = LAST_AUTOMATIC - FIRST_AUTOMATIC + 1;

export const PROTOCOL_NUMBERS = { tcp: 6, udp: 17, sctp: 132 } as const;

export interface PublishedPort {
  readonly endpoint: string;
  readonly uplink: string;
  readonly protocol: Publish['protocol'];
  /** Address of the host; undefined: all of them, or that of the uplink. */
  readonly address: string | undefined;
  readonly port: number;
  readonly target: number;
}

/** What a port is of the host: one of each IP version that its endpoint has, or that of its address. */
export function hostPorts(config: Config, published: PublishedPort): HostPort[] {
  const { protocol, address, port, target } = published;
  const endpoint = config.endpoints.find(({ name }) => name === published.endpoint)!;
  const network = gatewayAddresses(config.networks.find(({ name }) => name === endpoint.network)!);
  const ends = [endpoint.address, ...(endpoint.address6 === undefined ? [] : [endpoint.address6])];
  return ends.flatMap((cidr) => {
    const to = cidr.split('/')[0];
    const six = to.includes(':');
    if ((six ? network.v6 : network.v4) === undefined) return [];
    if (address !== undefined && address.includes(':') !== six) return [];
    return { protocol, address, port, to, target };
  });
}

/** Ports for a config, before it is what the node is. */
interface Prepared {
  readonly ports: readonly PublishedPort[];
  /** Makes them what is published; ports that are not any more are let go. */
  commit(): void;
  /** Lets go of what only they need. */
  abandon(): void;
}

const keyOf = (uplink: string, protocol: string, port: number): string => `${uplink} ${protocol} ${port}`;
const ruleOf = ({ endpoint, uplink, protocol, address, target }: Publish | PublishedPort): string =>
  [endpoint, uplink, protocol, address ?? '', target].join(' ');

/** FNV-1a, 32 bits: the same rule begins its search at the same port after every start. */
function hash(text: string): number {
  let value = 0x811c9dc5;
  for (const byte of Buffer.from(text)) value = Math.imul(value ^ byte, 0x01000193);
  return value >>> 0;
}

export class PublishedPorts {
  current: readonly PublishedPort[] = [];
  /** Descriptors that hold ports. */
  private held = new Map<string, number>();
  /** Ports that rules were given. */
  private given = new Map<string, number>();

  /** @throws ConfigError when ports are taken by others; nothing is held then that was not before. */
  prepare(file: string, config: Config): Prepared {
    const round = new Round(config, this.held, this.given);
    const problems = round.run();
    if (problems.length > 0) {
      round.letGo(this.held);
      throw hostError(file, problems);
    }
    return {
      ports: round.ports,
      abandon: () => round.letGo(this.held),
      commit: () => {
        for (const [place, fd] of this.held) if (!round.held.has(place)) native.close(fd);
        this.held = round.held;
        this.given = round.given;
        this.current = round.ports;
      },
    };
  }

  close(): void {
    for (const fd of this.held.values()) native.close(fd);
    this.held.clear();
    this.current = [];
  }
}

/** One config's ports being found. */
class Round {
  readonly ports: PublishedPort[] = [];
  readonly held = new Map<string, number>();
  readonly given = new Map<string, number>();
  private readonly used = new Set<string>();
  private readonly hosts: ReadonlySet<string>;

  constructor(
    private readonly config: Config,
    private readonly before: ReadonlyMap<string, number>,
    private readonly givenBefore: ReadonlyMap<string, number>,
  ) {
    for (const { publish } of config.services)
      for (const { uplink, protocol, port } of publish) this.used.add(keyOf(uplink, protocol, port));
    this.hosts = new Set(config.uplinks.flatMap((uplink) => (uplink.mode === 'host' ? [uplink.name] : [])));
  }

  run(): HostProblem[] {
    const problems: HostProblem[] = [];
    const { publish } = this.config;
    publish.forEach((rule, index) => {
      if (rule.port !== undefined) problems.push(...this.fixed(rule, rule.port, index));
    });
    // Behind those that want a certain port, and first those that had one.
    const had = (rule: Publish): number => Number(!this.givenBefore.has(ruleOf(rule)));
    const automatic = publish.map((rule, index) => ({ rule, index })).filter(({ rule }) => !rule.port);
    for (const { rule, index } of automatic.sort((a, b) => had(a.rule) - had(b.rule))) {
      if (this.automatic(rule)) continue;
      const message = `no ${rule.protocol} port from ${FIRST_AUTOMATIC} to ${LAST_AUTOMATIC} is free for endpoint "${rule.endpoint}"`;
      problems.push({ path: ['publish', index], message, remedy: 'write a port' });
    }
    return problems;
  }

  private fixed(rule: Publish, first: number, index: number): HostProblem[] {
    const problems: HostProblem[] = [];
    for (let i = 0; i < rule.count; i++) {
      const code = this.claim({ ...rule, port: first + i, target: rule.target + i });
      if (code !== undefined) problems.push(takenProblem(rule, first + i, index, code));
    }
    return problems;
  }

  private automatic(rule: Publish): boolean {
    // Of rules that are alike each has a name of its own, by its place among them.
    let name = ruleOf(rule);
    for (let nth = 2; this.given.has(name); nth++) name = `${ruleOf(rule)} ${nth}`;
    const start = this.givenBefore.get(name) ?? FIRST_AUTOMATIC + (hash(name) % AUTOMATIC);
    for (let i = 0; i < AUTOMATIC; i++) {
      const port = FIRST_AUTOMATIC + ((start - FIRST_AUTOMATIC + i) % AUTOMATIC);
      if (this.used.has(keyOf(rule.uplink, rule.protocol, port))) continue;
      if (this.claim({ ...rule, port }) !== undefined) continue;
      this.given.set(name, port);
      return true;
    }
    return false;
  }

  /** Takes a port. Returns the errno's name of why it cannot be had. */
  private claim({ endpoint, uplink, protocol, address, port, target }: PublishedPort): string | undefined {
    const one = { endpoint, uplink, protocol, address, port, target };
    if (this.hosts.has(uplink)) {
      const code = this.hold(one);
      if (code !== undefined) return code;
    }
    this.used.add(keyOf(uplink, protocol, port));
    this.ports.push(one);
    return undefined;
  }

  private hold(one: PublishedPort): string | undefined {
    const held: [place: string, fd: number][] = [];
    for (const { to } of hostPorts(this.config, one)) {
      const address = one.address ?? (to.includes(':') ? '::' : '0.0.0.0');
      const place = `${one.protocol} ${one.port} ${address}`;
      const got = this.before.get(place) ?? this.bindBeside(one, address);
      if (got === undefined) continue;
      if (typeof got === 'number') held.push([place, got]);
      else {
        for (const [other, fd] of held) if (!this.before.has(other)) native.close(fd);
        return got;
      }
    }
    for (const [place, fd] of held) this.held.set(place, fd);
    return undefined;
  }

  /** Binds a port, also where we hold it by another address and are about to let go of that. */
  private bindBeside(one: PublishedPort, address: string): number | string | undefined {
    const got = bind(one, address, false);
    const same = `${one.protocol} ${one.port} `;
    const ours = [...this.before].filter(([place]) => place.startsWith(same)).map(([, fd]) => fd);
    if (got !== 'EADDRINUSE' || ours.length === 0) return got;
    for (const fd of ours) native.portShare(fd, true);
    const shared = bind(one, address, true);
    for (const fd of ours) native.portShare(fd, false);
    return shared;
  }

  letGo(kept: ReadonlyMap<string, number>): void {
    for (const [place, fd] of this.held) if (!kept.has(place)) native.close(fd);
  }
}

/** A descriptor that holds a port; undefined where nobody can; or the errno's name of why it cannot be had. */
function bind(
  { protocol, port }: PublishedPort,
  address: string,
  share: boolean,
): number | string | undefined {
  try {
    return native.portBind({ protocol: PROTOCOL_NUMBERS[protocol], address, port, share });
  } catch (error) {
    const { code = 'EUNKNOWN' } = error as NodeJS.ErrnoException;
    // A kernel without the protocol has nobody who could hold its ports.
    return code === 'EPROTONOSUPPORT' || code === 'EAFNOSUPPORT' ? undefined : code;
  }
}

function takenProblem(
  { protocol, address, endpoint }: Publish,
  port: number,
  index: number,
  code: string,
): HostProblem {
  const what = `${protocol} port ${port}${address === undefined ? '' : ` of ${address}`}`;
  if (code === 'EADDRINUSE') {
    return {
      path: ['publish', index, 'port'],
      message: `${what} is in use on this host, so it cannot be endpoint "${endpoint}"'s`,
      remedy: 'stop what listens there ("ss -lntup" shows it), or publish another port',
    };
  }
  if (code === 'EADDRNOTAVAIL') {
    return {
      path: ['publish', index, 'address'],
      message: `${address} is no address of this host`,
      remedy: 'write an address that "ip address" shows here, or remove the key',
    };
  }
  return { path: ['publish', index], message: `${what} cannot be held (${code})`, remedy: 'see the message' };
}
