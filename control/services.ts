/**
 * Services of a node while it runs: their numbers and those of their backends, what its operator and the health checks
 * made of them, and what the data plane is told.
 *
 * What an operator set holds until the file says something else of the same entry: a reload keeps it, a restart does
 * not. Health lasts as long as the backend.
 */
import {
  BALANCER_PORT,
  type BackendIntent,
  type HealthIntent,
  type MarkIntent,
  type NeighbourIntent,
  type ServiceIntent,
  type StationIntent,
} from '../engine/intent.js';
import { MAX_BACKENDS, MAX_SERVICES } from '../engine/tables/services.js';
import { deriveMac, formatIp, ipBytes, macBytes, parseIp, parseRange, virtualMac } from './addresses.js';
import { FIRST_MARK } from './config/service-schema.js';
import type { Backend, Config, Health, MarkRule, Service } from './config.js';
import type { NamedService } from './left-services.js';
import { UnknownName } from './unknown-name.js';

/** Seconds for which the number of what is gone is nobody's: flows of it are gone then. */
const REST = 300;
const PROTOCOLS = { tcp: 6, udp: 17 } as const;

/** What of a node's file services are made of. */
type ServicesConfig = Pick<Config, 'endpoints' | 'services' | 'marks'>;

/** Names to numbers, for what the data plane needs them. */
interface ServiceNumbers {
  domainOf(network: string): number;
  portOf(endpoint: string): number;
  uplinkOf(uplink: string): number;
}

/** Numbers below a limit. One that was given back rests before it is given out again, unless there is no other. */
class Numbers {
  private next = 0;
  /** Oldest first. */
  private resting: { readonly number: number; readonly since: number }[] = [];

  /** @param taken numbers that somebody has. */
  constructor(
    private readonly limit: number,
    private readonly seconds: () => number,
    taken: ReadonlySet<number> = new Set(),
  ) {
    const end = Math.max(-1, ...taken) + 1;
    for (; this.next < end; this.next++) if (!taken.has(this.next)) this.giveBack(this.next);
  }

  take(): number {
    const [oldest] = this.resting;
    const rested = oldest !== undefined && this.seconds() - oldest.since >= REST;
    if (oldest === undefined || (!rested && this.next < this.limit)) return this.next++;
    this.resting.shift();
    return oldest.number;
  }

  giveBack(number: number): void {
    this.resting.push({ number, since: this.seconds() });
  }

  /** Returns what makes them what they are now again. */
  save(): () => void {
    const { next } = this;
    const resting = [...this.resting];
    return () => {
      this.next = next;
      this.resting = resting;
    };
  }
}

interface KnownBackend {
  readonly id: number;
  /** Its entry in the file, as text. */
  entry: string;
  /** Set by the operator. */
  weight: number | undefined;
  removed: boolean;
  alive: boolean;
}

interface Known {
  readonly id: number;
  entry: string;
  removed: boolean;
  /** Given when the file has none. */
  mark: number;
  readonly backends: Map<string, KnownBackend>;
  /** Made when it is asked for; undefined when something changed since. */
  intent: ServiceIntent | undefined;
}

/** A backend of which the data plane speaks. */
interface Heard {
  readonly service: string;
  readonly address: string;
  readonly backend: KnownBackend;
  readonly known: Known;
}

/** A backend in one of the families of its service, and what it is in the other. */
type HalfBackend = Omit<Backend, 'address6'> & { readonly other: string | undefined };

/** A service in one family of addresses: the data plane knows no others. */
interface Half extends Omit<Service, 'vip6' | 'backends'> {
  /** Its name here. */
  readonly key: string;
  /** All of it in the file, as text. */
  readonly entry: string;
  readonly backends: readonly HalfBackend[];
}

/** The name under which what a service is in `subnet6` is known. */
const key6 = (name: string): string => `${name} 6`;

function halvesOf(whole: Service): Half[] {
  const { vip6, backends, ...service } = whole;
  const entry = JSON.stringify(whole);
  const first = backends.map(({ address6, ...backend }) => ({ ...backend, other: address6 }));
  const half = { ...service, key: service.name, entry, backends: first };
  if (vip6 === undefined) return [half];
  const second = backends.flatMap(({ address, address6, ...backend }) =>
    address6 === undefined ? [] : { ...backend, address: address6, other: address },
  );
  return [half, { ...half, vip: vip6, key: key6(service.name), backends: second }];
}

/** A backend as it is now. */
interface BackendView {
  /** Its number in the data plane. */
  readonly id: number;
  readonly address: string;
  readonly mac: string;
  readonly weight: number;
  readonly alive: boolean;
}

/** A service as it is now. */
interface ServiceView {
  readonly service: Service;
  readonly fwmark: number;
  readonly backends: readonly BackendView[];
}

interface ServiceIntents {
  readonly services: readonly ServiceIntent[];
  readonly marks: readonly MarkIntent[];
  /** Virtual addresses, and where they are. */
  readonly stations: readonly StationIntent[];
  readonly neighbours: readonly NeighbourIntent[];
}

export class ServiceBook {
  private config: ServicesConfig | undefined;
  private halves: readonly Half[] = [];
  /** By the names of halves. */
  private known = new Map<string, Known>();
  private readonly ids: Numbers;
  private readonly backendIds: Numbers;
  /** Backends by their numbers; made when it is asked for, undefined when they may be others. */
  private byId: Map<number, Heard> | undefined;
  /** MACs of endpoints, by network and address. */
  private macs: ReadonlyMap<string, string> = new Map();

  /**
   * @param seconds a clock that never goes back.
   * @param left services of an earlier process, which keep their numbers; those that are gone are gone from now on.
   */
  constructor(seconds = () => performance.now() / 1000, left: readonly NamedService[] = []) {
    this.ids = new Numbers(MAX_SERVICES, seconds, new Set(left.map(({ id }) => id)));
    this.backendIds = new Numbers(MAX_BACKENDS, seconds);
    for (const { key, id } of left)
      this.known.set(key, {
        ...{ id, entry: '', removed: false, mark: 0, backends: new Map(), intent: undefined },
      });
  }

  /** Returns what makes services, numbers and what the operator set what they are now again. */
  save(): () => void {
    const { config, halves, macs } = this;
    const known = structuredClone(this.known);
    const numbers = [this.ids.save(), this.backendIds.save()];
    return () => {
      Object.assign(this, { config, halves, macs, known, byId: undefined });
      for (const undo of numbers) undo();
    };
  }

  /** Makes the file's services those of the node. The same config again changes nothing. */
  private follow(config: ServicesConfig): void {
    if (config === this.config) return;
    this.config = config;
    this.byId = undefined;
    this.macs = macsOf(config);
    this.halves = config.services.flatMap(halvesOf);
    const keys = new Set(this.halves.map(({ key }) => key));
    for (const [key, known] of this.known) if (!keys.has(key)) this.forget(key, known);
    for (const half of this.halves) this.followOne(half);
    this.giveMarks(config.services);
  }

  private followOne(service: Half): void {
    const { entry } = service;
    let known = this.known.get(service.key);
    if (known === undefined) {
      const backends = new Map<string, KnownBackend>();
      known = { id: this.ids.take(), entry, removed: false, mark: 0, backends, intent: undefined };
      this.known.set(service.key, known);
    }
    if (known.entry !== entry) known.removed = false;
    known.entry = entry;
    // Numbers of networks and MACs of endpoints may be others now.
    known.intent = undefined;
    this.followBackends(known.backends, service.backends);
    // Nobody would find out that it lives.
    if (service.health === undefined) for (const backend of known.backends.values()) backend.alive = true;
  }

  private followBackends(known: Map<string, KnownBackend>, backends: readonly HalfBackend[]): void {
    const addresses = new Set(backends.map(({ address }) => address));
    for (const [address, { id }] of known) {
      if (addresses.has(address)) continue;
      this.backendIds.giveBack(id);
      known.delete(address);
    }
    for (const backend of backends) {
      const entry = JSON.stringify(backend);
      const before = known.get(backend.address);
      if (before?.entry === entry) continue;
      const id = before?.id ?? this.backendIds.take();
      const alive = before?.alive ?? true;
      known.set(backend.address, { id, entry, weight: undefined, removed: false, alive });
    }
  }

  private forget(key: string, { id, backends }: Known): void {
    for (const backend of backends.values()) this.backendIds.giveBack(backend.id);
    this.ids.giveBack(id);
    this.known.delete(key);
  }

  /** Marks for services that have none of their own; one that was given stays unless the file gives it to another. */
  private giveMarks(services: readonly Service[]): void {
    const used = new Set(services.flatMap(({ fwmark }) => fwmark ?? []));
    const without = services
      .filter(({ fwmark }) => fwmark === undefined)
      .map(({ name }) => this.known.get(name)!);
    for (const known of without) {
      if (used.has(known.mark)) known.mark = 0;
      else if (known.mark !== 0) used.add(known.mark);
    }
    let next = FIRST_MARK;
    for (const known of without) {
      if (known.mark !== 0) continue;
      while (used.has(next)) next++;
      known.mark = next++;
    }
  }

  /** What the data plane is to do. */
  intents(config: ServicesConfig, numbers: ServiceNumbers): ServiceIntents {
    this.follow(config);
    const present = this.halves.filter(({ key }) => !this.known.get(key)!.removed);
    const services = present.map((service) => this.intentOf(service, numbers));
    return {
      services,
      marks: config.marks.flatMap((rule) => markIntentsOf(rule, config.services, numbers)),
      stations: services.map(({ domain, address }) => ({ domain, mac: macAt(address), at: BALANCER_PORT })),
      neighbours: this.neighboursOf(present, services),
    };
  }

  /** The virtual addresses, and of backends those that are no endpoints: whoever ends their flows finds them by it. */
  private neighboursOf(services: readonly Half[], intents: readonly ServiceIntent[]): NeighbourIntent[] {
    const found = new Map<string, NeighbourIntent>();
    intents.forEach(({ domain, address, backends }, i) => {
      const { network, vip } = services[i];
      found.set(keyOf(network, vip), { domain, address, mac: macAt(address) });
      for (const backend of backends) {
        const key = keyOf(network, formatIp(backend.address));
        if (!this.macs.has(key)) found.set(key, { domain, address: backend.address, mac: backend.mac });
      }
    });
    return [...found.values()];
  }

  private intentOf(service: Half, numbers: ServiceNumbers): ServiceIntent {
    const known = this.known.get(service.key)!;
    known.intent ??= {
      id: known.id,
      domain: numbers.domainOf(service.network),
      address: ipBytes(service.vip),
      scheduler: service.scheduler,
      direct: service.forwarding === 'dsr',
      // One for both halves, and it is the first to which one is given.
      mark: service.fwmark ?? this.known.get(service.name)!.mark,
      affinity: service.affinity,
      idle: service.idleTimeout,
      ports: service.ports.map(({ protocol, port, target }) => ({
        ...{ protocol: PROTOCOLS[protocol], port, target },
      })),
      publish: service.publish.map(({ protocol, port, target, uplink }) => ({
        ...{ uplink: numbers.uplinkOf(uplink), protocol: PROTOCOLS[protocol], port, target },
      })),
      backends: this.backendsOf(service, known).map(backendIntentOf),
      ...(service.health && { health: healthIntentOf(service.health) }),
    };
    return known.intent;
  }

  private backendsOf({ network, backends }: Half, known: Known): BackendView[] {
    return backends.flatMap(({ address, other = address, weight, mac }) => {
      const { id, weight: set, removed, alive } = known.backends.get(address)!;
      if (removed) return [];
      // One that is no endpoint has one MAC for both of its addresses, and IPv4's comes first.
      const derived = deriveMac(parseIp(other.includes(':') ? address : other));
      const found = this.macs.get(keyOf(network, address)) ?? mac ?? derived;
      return { id, address, mac: found, weight: set ?? weight, alive };
    });
  }

  /** What there is now, in the order of the file. */
  list(): ServiceView[] {
    const halfOf = new Map(this.halves.map((half) => [half.key, half]));
    return (this.config?.services ?? []).flatMap((service) => {
      const known = this.known.get(service.name)!;
      if (known.removed) return [];
      const halves = [service.name, key6(service.name)].flatMap((key) => halfOf.get(key) ?? []);
      const backends = halves.flatMap((half) => this.backendsOf(half, this.known.get(half.key)!));
      return { service, fwmark: service.fwmark ?? known.mark, backends };
    });
  }

  /** By what a later process finds the services of flows again. */
  named(): NamedService[] {
    return this.halves.map((half) => {
      const { key, network, vip, forwarding } = half;
      const known = this.known.get(key)!;
      const backends = this.backendsOf(half, known).map(({ address, mac }) => ({ address, mac }));
      return { key, id: known.id, network, vip, direct: forwarding === 'dsr', backends };
    });
  }

  /** What is known of a service. @throws UnknownName */
  private find(name: string): { readonly half: Half; readonly known: Known }[] {
    const halves = this.halves.filter((half) => half.name === name);
    const found = halves.map((half) => ({ half, known: this.known.get(half.key)! }));
    if (found.length === 0 || found[0].known.removed) throw new UnknownName(`there is no service ${name}`);
    return found;
  }

  /** What is known of a backend, by any of its addresses. @throws UnknownName */
  private findBackend(name: string, address: string): KnownBackend[] {
    const text = canonical(address);
    const found = this.find(name).flatMap(({ half, known }) => {
      const entry = half.backends.find((one) => one.address === text || one.other === text);
      const backend = entry && known.backends.get(entry.address);
      if (backend === undefined || backend.removed) return [];
      known.intent = undefined;
      return backend;
    });
    if (found.length === 0) throw new UnknownName(`service ${name} has no backend ${address}`);
    return found;
  }

  /** Gives a backend another weight, 0 to 65535; with 0 it gets no new flows. @throws UnknownName */
  setWeight(service: string, address: string, weight: number): void {
    for (const backend of this.findBackend(service, address)) backend.weight = weight;
  }

  /** Takes a backend out, or the whole service. @throws UnknownName */
  remove(service: string, address?: string): void {
    if (address === undefined) for (const { known } of this.find(service)) known.removed = true;
    else for (const backend of this.findBackend(service, address)) backend.removed = true;
  }

  /**
   * Hears from the data plane whether a backend lives. What it found out counts there already.
   * @param id number of the backend there.
   * @returns who it is; undefined when it is nobody's any more.
   */
  hear(id: number, alive: boolean): { readonly service: string; readonly address: string } | undefined {
    this.byId ??= new Map(this.halves.flatMap((half) => this.heardOf(half)));
    const heard = this.byId.get(id);
    if (heard === undefined) return undefined;
    heard.backend.alive = alive;
    heard.known.intent = undefined;
    return { service: heard.service, address: heard.address };
  }

  private heardOf({ name, key }: Half): [id: number, heard: Heard][] {
    const known = this.known.get(key)!;
    return Array.from(known.backends, ([address, backend]) => [
      backend.id,
      { service: name, address, backend, known },
    ]);
  }
}

const keyOf = (network: string, address: string): string => `${network} ${address}`;

function macsOf({ endpoints, services }: ServicesConfig): Map<string, string> {
  if (services.length === 0) return new Map();
  return new Map(
    endpoints.flatMap(({ network, address, address6, mac }) =>
      [address, ...(address6 === undefined ? [] : [address6])].map((one) => [
        keyOf(network, one.split('/')[0]),
        mac,
      ]),
    ),
  );
}

/** An address as the config has it, if it is one. */
function canonical(text: string): string {
  try {
    return parseIp(text).text;
  } catch {
    return text;
  }
}

const macAt = (address: Uint8Array): Uint8Array => macBytes(virtualMac(address));

function backendIntentOf({ id, address, mac, weight, alive }: BackendView): BackendIntent {
  return { id, address: ipBytes(address), mac: macBytes(mac), weight, alive };
}

function healthIntentOf({
  kind,
  port,
  path = '',
  interval,
  timeout,
  failures,
  successes,
}: Health): HealthIntent {
  return { kind, port, path, interval: interval * 1000, timeout: timeout * 1000, failures, successes };
}

/** A rule of a file is one in each family that it may mean: that of its addresses, or those of its service. */
function markIntentsOf(rule: MarkRule, services: readonly Service[], numbers: ServiceNumbers): MarkIntent[] {
  const { mark, network, protocol, address, ports, source, endpoint } = rule;
  const written = address ?? source;
  const { vip, vip6 } = services.find(({ fwmark }) => fwmark === mark)!;
  const told = written === undefined ? [vip, ...(vip6 === undefined ? [] : [vip6])] : [written];
  return told.map((text) => {
    const { bytes } = parseRange(text).address;
    return {
      mark,
      domain: numbers.domainOf(network),
      protocol: protocol === undefined ? 0 : PROTOCOLS[protocol],
      source: rangeOf(source, bytes.length),
      destination: rangeOf(address, bytes.length),
      firstPort: ports?.first ?? 0,
      lastPort: ports?.last ?? 65535,
      port: endpoint === undefined ? -1 : numbers.portOf(endpoint),
    };
  });
}

/** What a rule says of an address; all of so many bytes when it says nothing. */
function rangeOf(text: string | undefined, size: number): MarkIntent['source'] {
  if (text === undefined) return { address: new Uint8Array(size), length: 0 };
  const { network, length } = parseRange(text);
  return { address: Uint8Array.from(network.bytes), length };
}
