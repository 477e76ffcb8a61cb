/**
 * Services in the file of the flow table: their flows have them by number, and backends by address. Who takes the table
 * over begins with the services as they were, and then does what a reload would.
 */
import type { BackendIntent, ServiceIntent } from '../engine/intent.js';
import { MAX_BACKENDS_OF_SERVICE } from '../engine/tables/backends.js';
import { MAX_BACKENDS, MAX_SERVICES } from '../engine/tables/services.js';
import { ipBytes, macBytes, parseIp } from './addresses.js';

/** A service as its flows know it, by its names. */
export interface NamedService {
  /** Its name, which is that of one family, and its number. */
  readonly key: string;
  readonly id: number;
  readonly network: string;
  readonly vip: string;
  readonly direct: boolean;
  readonly backends: readonly { readonly address: string; readonly mac: string }[];
}

/** Whether this is a list of services, each with a number of its own. @throws Error for addresses that are none. */
export function areNamed(services: readonly NamedService[]): boolean {
  const sound = services.every(({ key, id, network, vip, direct, backends }) => {
    for (const address of [vip, ...backends.map((one) => one.address)]) parseIp(address);
    for (const { mac } of backends) macBytes(mac);
    const texts = [key, network].every((text) => typeof text === 'string');
    return texts && typeof direct === 'boolean' && Number.isInteger(id) && id >= 0 && id < MAX_SERVICES;
  });
  const ids = new Set(services.map(({ id }) => id));
  const keys = new Set(services.map(({ key }) => key));
  return sound && ids.size === services.length && keys.size === services.length;
}

/** What is so of every flow while the services change. */
export function namedMeanwhile(
  before: readonly NamedService[],
  after: readonly NamedService[],
): NamedService[] {
  const old = new Map(before.map((one) => [one.id, one]));
  const next = new Map(after.map((one) => [one.id, one]));
  return [
    ...before.filter(({ id }) => !next.has(id)),
    ...after.flatMap((one) => {
      const was = old.get(one.id);
      if (was === undefined) return one;
      if (identityOf(was) !== identityOf(one)) return [];
      const backends = [...was.backends, ...one.backends].map(
        (backend) => [backend.address, backend] as const,
      );
      return { ...one, backends: [...new Map(backends).values()] };
    }),
  ];
}

const identityOf = ({ key, network, vip, direct }: NamedService): string =>
  `${key} ${network} ${vip} ${direct}`;

/**
 * The services as they were, in networks that are what they were: those of now with what is gone of them, and those
 * that are gone.
 * @param domains numbers of the networks, by name. @param hasIpv6 whether there can be any of IPv6.
 */
export function servicesAsLeft(
  named: readonly NamedService[],
  now: readonly ServiceIntent[],
  domains: ReadonlyMap<string, number>,
  hasIpv6: boolean,
): ServiceIntent[] {
  const byId = new Map(now.map((service) => [service.id, service]));
  const spare = new SpareBackends(now);
  const known = new Set(named.map(({ id }) => id));
  const there = new Set(domains.values());
  return [
    ...named.flatMap(({ id, network, vip, direct, backends }) => {
      const domain = domains.get(network);
      const address = ipBytes(vip);
      if (domain === undefined || (address.length === 16 && !hasIpv6)) return [];
      const same = byId.get(id);
      const was = { id, domain, address, direct };
      return same !== undefined && isSame(same, was)
        ? { ...same, backends: [...same.backends, ...spare.gone(backends, same.backends)] }
        : { ...GONE, ...was, backends: spare.gone(backends) };
    }),
    ...now.filter(({ id, domain }) => !known.has(id) && there.has(domain)),
  ];
}

type Was = Pick<ServiceIntent, 'id' | 'domain' | 'address' | 'direct'>;

function isSame(a: Was, b: Was): boolean {
  return a.domain === b.domain && a.direct === b.direct && a.address.join() === b.address.join();
}

/** What a service that is gone need not be. */
const GONE: Omit<ServiceIntent, keyof Was | 'backends'> = {
  ...{ scheduler: 'rr', mark: 0, affinity: 0, idle: 1, ports: [], publish: [] },
};

/** Numbers that no backend of now has, for those that are gone. */
class SpareBackends {
  private readonly used: ReadonlySet<number>;
  private next = MAX_BACKENDS;
  private room: number;

  constructor(services: readonly ServiceIntent[]) {
    this.used = new Set(services.flatMap(({ backends }) => backends.map(({ id }) => id)));
    this.room = MAX_BACKENDS - this.used.size;
  }

  /** Those that are not among the present ones, as far as there is room for them. */
  gone(named: NamedService['backends'], present: readonly BackendIntent[] = []): BackendIntent[] {
    const here = new Set(present.map(({ address }) => address.join()));
    const room = Math.min(this.room, MAX_BACKENDS_OF_SERVICE - present.length);
    const gone = named
      .map(({ address, mac }) => ({ address: ipBytes(address), mac: macBytes(mac) }))
      .filter(({ address }) => !here.has(address.join()))
      .slice(0, room);
    this.room -= gone.length;
    return gone.map((one) => ({ ...one, id: this.take(), weight: 0, alive: true }));
  }

  private take(): number {
    do this.next--;
    while (this.used.has(this.next));
    return this.next;
  }
}
