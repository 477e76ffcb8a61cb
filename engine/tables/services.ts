/**
 * The services of a node: which packet is for which, by virtual address and port or by firewall mark, and what is
 * known of each and of its backends beside what the schedulers count (backends.ts).
 *
 * Found by open addressing over one Int32Array, eight words an entry: domain + 1 and protocol, address, port, service
 * + 1, target. A virtual address has an entry of its own beside those of its ports (protocol ADDRESS), and one for
 * every port (protocol ANY) when it has no ports of its own. Marks are in the same table, of each family under the one
 * domain that is none.
 *
 * A filter of one byte per hash says of an address whether it may be virtual or a backend's: most frames are neither,
 * and cost two loads. Addresses and ports are words as little-endian loads give them; of IPv6 an address is its number
 * (see Addresses6), which the services hold, and its domain is looked for in a space of its own, IPV6_SPACE.
 */
import type { BackendIntent, NeighbourIntent, ServiceIntent } from '../intent.js';
import { swap16 } from '../wire/ethernet.js';
import { words16 } from '../wire/ipv6.js';
import { type Addresses6, NO_ADDRESS } from './addresses6.js';
import { Backends, identityOf, NO_SERVICE, SCHEDULERS } from './backends.js';
import { addressWord } from './gateways.js';
import { MAX_DOMAINS } from './mac-table.js';
import { createSchedulers, type Schedulers } from './schedulers/index.js';

/** Most services, and backends of all of them. */
export const MAX_SERVICES = 16384;
export const MAX_BACKENDS = 131072;

/** The first two bytes of a virtual address's MAC, 06:57, locally administered; the address itself follows. */
export const VIRTUAL_MAC_LE = 0x5706;

/** The addresses of a service and its backends, with their MACs. */
export function neighboursOf({ domain, address, backends }: ServiceIntent): NeighbourIntent[] {
  const mac = Uint8Array.of(VIRTUAL_MAC_LE & 0xff, VIRTUAL_MAC_LE >>> 8, ...address.slice(-4));
  return [
    { domain, address, mac },
    ...backends.map((one) => ({ domain, address: one.address, mac: one.mac })),
  ];
}

/** What the methods take for the domain of IPv6 addresses: it, and this bit. Below are domains. */
export const IPV6_SPACE = 1 << 16;

/** No entry. */
export const NOTHING = -1;
/** Bits of the filter. */
export const MAY_BE_VIRTUAL = 1;
export const MAY_BE_BACKEND = 2;

/** `protocol` of an entry for every port, for the address itself, and for a mark. */
const ANY = 0;
const ADDRESS = 255;
const MARK = 254;

const ENTRY_SHIFT = 3;
const FILTER_SLOTS = 1 << 16;

function filterSlot(domain: number, address: number): number {
  const h = Math.imul(address ^ Math.imul(domain + 1, 0x85ebca6b), 0x9e3779b1);
  return (h ^ (h >>> 15)) & (FILTER_SLOTS - 1);
}

function entryHash(key: number, address: number, port: number): number {
  let h = Math.imul(address ^ Math.imul(key, 0xc2b2ae35), 0x9e3779b1);
  h = Math.imul(h ^ (h >>> 15) ^ port, 0x85ebca6b);
  return h ^ (h >>> 13);
}

export class Services {
  readonly backends: Backends;
  readonly schedulers: Schedulers;
  /** Services of each domain. */
  readonly inDomain = new Uint16Array(MAX_DOMAINS);
  /** What the filter says of a hash; see `filter`. */
  private readonly bits = new Uint8Array(FILTER_SLOTS);
  /** Of each service: whether packets keep their addresses, and are of IPv6; seconds of affinity; its virtual address and domain. */
  private readonly direct: Uint8Array;
  private readonly ipv6: Uint8Array;
  readonly affinity: Int32Array;
  readonly virtual: Int32Array;
  readonly domain: Int32Array;
  /** Of each backend: whether packets to it keep their addresses; three words of its MAC; seconds an established connection of it may be silent; failures seen. */
  readonly keeps: Uint8Array;
  readonly macs: Uint16Array;
  readonly idle: Int32Array;
  readonly failures: Float64Array;
  /** Its port that is checked, as a little-endian load gives it, 0: none. */
  private readonly checked: Uint16Array;
  /** How many connections to that port were reset, and not answered, by backend, since somebody took them out. */
  readonly refused = new Map<number, number>();
  readonly unanswered = new Map<number, number>();
  private entries = new Int32Array(64 << ENTRY_SHIFT);
  private mask = 63;
  /** What is there now: services by number, and the numbers of their backends here by those of the intent. */
  private current = new Map<number, ServiceIntent>();
  /** Services that are gone, whose addresses stay virtual for a while: ends of their connections are reset there. */
  private former: readonly ServiceIntent[] = [];
  private readonly numbers = new Map<number, number>();
  /** Numbers of IPv6 addresses that are held, by the addresses in text. */
  private held = new Map<string, number>();

  /** @param addresses numbers of IPv6 addresses; null where there are none. */
  constructor(
    services = MAX_SERVICES,
    backends = MAX_BACKENDS,
    private readonly addresses: Addresses6 | null = null,
  ) {
    this.backends = new Backends(services, backends);
    this.schedulers = createSchedulers(this.backends);
    this.direct = new Uint8Array(services);
    this.ipv6 = new Uint8Array(services);
    this.affinity = new Int32Array(services);
    this.virtual = new Int32Array(services);
    this.domain = new Int32Array(services);
    this.keeps = new Uint8Array(backends);
    this.macs = new Uint16Array(backends * 3);
    this.idle = new Int32Array(backends);
    this.failures = new Float64Array(backends);
    this.checked = new Uint16Array(backends);
  }

  /** What an address may be: MAY_BE_ bits. */
  filter(domain: number, address: number): number {
    return this.bits[filterSlot(domain, address)];
  }

  /**
   * Finds the entry of a virtual address and port.
   * @returns a handle for `serviceAt` and `targetAt`, good until the services change; NOTHING when there is none.
   */
  find(domain: number, address: number, protocol: number, port: number): number {
    const exact = this.entry(((domain + 1) << 8) | protocol, address, port);
    return exact === NOTHING ? this.entry(((domain + 1) << 8) | ANY, address, 0) : exact;
  }

  /** The service that packets of a mark are for, in the domain or IPv6 space; NOTHING when there is none. */
  marked(domain: number, mark: number): number {
    const at = this.entry(markKey(domain), mark | 0, 0);
    return at === NOTHING ? NOTHING : this.serviceAt(at);
  }

  /** Whether an address is virtual. */
  isVirtual(domain: number, address: number): boolean {
    return this.entry(((domain + 1) << 8) | ADDRESS, address, 0) !== NOTHING;
  }

  /** Whether packets to an address, or of a mark, are for a service that is direct. */
  isDirect(domain: number, address: number, mark: number): boolean {
    const marked = mark === 0 ? NOTHING : this.marked(domain, mark);
    if (marked !== NOTHING) return this.direct[marked] === 1;
    const at = this.entry(((domain + 1) << 8) | ADDRESS, address, 0);
    return at !== NOTHING && this.direct[this.serviceAt(at)] === 1;
  }

  serviceAt(entry: number): number {
    return this.entries[entry + 3] - 1;
  }

  /** Port at the backend; `port` itself where every port is the same. */
  targetAt(entry: number, port: number): number {
    const target = this.entries[entry + 4];
    return target < 0 ? port : target;
  }

  private entry(key: number, address: number, port: number): number {
    const { entries, mask } = this;
    for (let i = entryHash(key, address, port) & mask; ; i = (i + 1) & mask) {
      const at = i << ENTRY_SHIFT;
      if (entries[at + 3] === 0) return NOTHING;
      if (entries[at] === key && entries[at + 1] === address && entries[at + 2] === port) return at;
    }
  }

  /** Whether a backend that is there, or just goes, is of IPv6. */
  isIpv6(backend: number): boolean {
    return this.ipv6[this.backends.service[backend]] === 1;
  }

  /** Number here of a backend of the intent; NOTHING when it is not there. */
  numberOf(id: number): number {
    return this.numbers.get(id) ?? NOTHING;
  }

  /**
   * Makes the services what the list says; what did not change keeps its state.
   * @param ended called for each backend whose flows must end, while its number is still its own.
   * @param isAlive says which are taken to be alive.
   */
  set(
    next: readonly ServiceIntent[],
    ended: (backend: number) => void,
    isAlive: (backend: BackendIntent) => boolean = ({ alive }) => alive,
  ): void {
    const wanted = new Map(next.map((service) => [service.id, service]));
    const places = new Set(next.map(placeOf));
    const gone = [...this.former, ...this.current.values()].filter((one) => !places.has(placeOf(one)));
    this.former = [...new Map(gone.map((one) => [placeOf(one), one])).values()];
    const before = this.hold([...next, ...this.former]);
    for (const [id, service] of this.current) {
      const after = wanted.get(id);
      if (after !== undefined && sameAddress(service, after)) continue;
      for (const backend of service.backends) this.drop(backend, ended);
      this.backends.close(id);
    }
    for (const service of next) this.open(service, ended, isAlive);
    this.current = wanted;
    this.reindex();
    this.letGo(before);
  }

  /** Lets the addresses go of services that are gone, if there are any. */
  forget(): void {
    if (this.former.length === 0) return;
    this.former = [];
    const before = this.hold([...this.current.values()]);
    this.reindex();
    this.letGo(before);
  }

  /** Holds the IPv6 addresses of services. @returns those that were held before, and are still. */
  private hold(services: readonly ServiceIntent[]): ReadonlyMap<string, number> {
    const before = this.held;
    const held = new Map<string, number>();
    for (const { address, backends } of services) {
      if (address.length !== 16) continue;
      for (const one of [address, ...backends.map((backend) => backend.address)]) {
        const text = one.join();
        if (held.has(text)) continue;
        const number = this.addresses?.hold(words16(one), 0) ?? NO_ADDRESS;
        if (number === NO_ADDRESS) {
          this.letGo(held);
          throw new RangeError('there is no room for an IPv6 address of a service');
        }
        held.set(text, number);
      }
    }
    this.held = held;
    return before;
  }

  private letGo(held: ReadonlyMap<string, number>): void {
    for (const number of held.values()) this.addresses!.release(number);
  }

  /** What an address is in flows. */
  private wordOf(address: Uint8Array): number {
    return address.length === 4 ? addressWord(address) : this.held.get(address.join())!;
  }

  private open(
    service: ServiceIntent,
    ended: (backend: number) => void,
    isAlive: (backend: BackendIntent) => boolean,
  ): void {
    const { id } = service;
    this.backends.open(id, SCHEDULERS.indexOf(service.scheduler));
    this.direct[id] = Number(service.direct);
    this.ipv6[id] = Number(service.address.length === 16);
    this.affinity[id] = service.affinity;
    this.virtual[id] = this.wordOf(service.address);
    this.domain[id] = service.domain;
    const kept = new Set(service.backends.map((backend) => backend.id));
    for (const old of this.current.get(id)?.backends ?? []) if (!kept.has(old.id)) this.drop(old, ended);
    for (const backend of service.backends) {
      this.add(service, backend);
      this.setAlive(backend.id, isAlive(backend), ended);
    }
    // As the file has them, so that `sh` answers as on a node that begins with this file.
    const order = service.backends.map((backend) => this.numbers.get(backend.id)!);
    this.backends.arrange(id, order);
  }

  private add(service: ServiceIntent, { id, address, mac, weight }: BackendIntent): void {
    let number = this.numbers.get(id);
    if (number === undefined) {
      const word = this.wordOf(address);
      const identity = address.length === 4 ? word : identityOf(address);
      number = this.backends.add(service.id, word, 0, weight, identity);
      this.numbers.set(id, number);
      this.failures[number] = 0;
    }
    this.backends.setWeight(number, weight);
    this.keeps[number] = Number(service.direct);
    this.idle[number] = service.idle;
    this.checked[number] = swap16(service.health?.port ?? 0);
    for (let i = 0; i < 3; i++) this.macs[number * 3 + i] = mac[2 * i] | (mac[2 * i + 1] << 8);
  }

  /** Tells whether a backend, by its number in the intent, lives. `ended` is called if its flows must end. */
  setAlive(id: number, alive: boolean, ended: (backend: number) => void): void {
    const number = this.numbers.get(id);
    if (number === undefined) return;
    if (!alive && this.backends.up[number] === 1) ended(number);
    this.backends.setUp(number, alive);
  }

  /** Counts a connection that a backend reset or else did not answer; `port`, the backend's, as a load gives it. */
  failed(backend: number, port: number, reset: boolean): void {
    this.failures[backend]++;
    if (reset) this.count(this.refused, backend, port);
    else this.suspect(backend, port);
  }

  /** Takes note that a backend is slow to answer. */
  suspect(backend: number, port: number): void {
    this.count(this.unanswered, backend, port);
  }

  /** Counts for a backend what happened at the port by which it is judged. */
  private count(failures: Map<number, number>, backend: number, port: number): void {
    if (this.checked[backend] === port) failures.set(backend, (failures.get(backend) ?? 0) + 1);
  }

  private drop({ id }: BackendIntent, ended: (backend: number) => void): void {
    const number = this.numbers.get(id);
    if (number === undefined) return;
    this.numbers.delete(id);
    ended(number);
    if (this.backends.service[number] !== NO_SERVICE) this.backends.remove(number);
  }

  private reindex(): void {
    const wordOf = (service: ServiceIntent): number => this.wordOf(service.address);
    const entries = [...this.current.values()].flatMap((one) => entriesOf(one, wordOf(one)));
    entries.push(...this.former.map((one) => addressEntry(one, wordOf(one))));
    let slots = 64;
    while (slots < entries.length * 2) slots *= 2;
    this.entries = new Int32Array(slots << ENTRY_SHIFT);
    this.mask = slots - 1;
    for (const entry of entries) this.put(entry);
    this.inDomain.fill(0);
    this.bits.fill(0);
    for (const { domain, address } of [...this.current.values(), ...this.former]) {
      this.inDomain[domain]++;
      this.bits[filterSlot(spaceOf(domain, address), this.wordOf(address))] |= MAY_BE_VIRTUAL;
    }
    for (const { domain, backends } of this.current.values()) {
      for (const { address } of backends)
        this.bits[filterSlot(spaceOf(domain, address), this.wordOf(address))] |= MAY_BE_BACKEND;
    }
  }

  private put([key, address, port, service, target]: Entry): void {
    let i = entryHash(key, address, port) & this.mask;
    while (this.entries[(i << ENTRY_SHIFT) + 3] !== 0) i = (i + 1) & this.mask;
    this.entries.set([key, address, port, service + 1, target], i << ENTRY_SHIFT);
  }

  /** For people: what is counted of each backend, under the numbers of the intent. */
  counts(): BackendCounts[] {
    const { active, inactive, flows, packets, bytes } = this.backends;
    return [...this.numbers].map(([id, b]) => ({
      id,
      active: active[b],
      inactive: inactive[b],
      flows: flows[b],
      packets: packets[b],
      bytes: bytes[b],
      failures: this.failures[b],
    }));
  }
}

export interface BackendCounts {
  /** Number of the backend in the intent. */
  readonly id: number;
  /** Flows now: established ones, and others. */
  readonly active: number;
  readonly inactive: number;
  /** Since it was added. */
  readonly flows: number;
  readonly packets: number;
  readonly bytes: number;
  /** Connections that it reset instead of accepting them, or did not answer. */
  readonly failures: number;
}

type Entry = readonly [key: number, address: number, port: number, service: number, target: number];

/** Of what has an address in a domain, that address as text. */
export const placeOf = ({ domain, address }: Pick<ServiceIntent, 'domain' | 'address'>): string =>
  `${domain} ${address.join()}`;

function spaceOf(domain: number, address: Uint8Array): number {
  return address.length === 16 ? domain | IPV6_SPACE : domain;
}

/** Key of marks; a service is of one network, but its mark is nobody else's. */
function markKey(domain: number): number {
  return ((domain & IPV6_SPACE) << 8) | MARK;
}

/** @param word what the address is in flows; of others likewise. */
function addressEntry({ id, domain, address }: ServiceIntent, word: number): Entry {
  return [((spaceOf(domain, address) + 1) << 8) | ADDRESS, word, 0, id, 0];
}

function entriesOf(service: ServiceIntent, word: number): Entry[] {
  const { id, domain, address, mark, ports } = service;
  const key = (spaceOf(domain, address) + 1) << 8;
  const found: Entry[] = [addressEntry(service, word)];
  for (const { protocol, port, target } of ports)
    found.push([key | protocol, word, swap16(port), id, swap16(target)]);
  if (ports.length === 0) found.push([key | ANY, word, 0, id, -1]);
  if (mark !== 0) found.push([markKey(spaceOf(domain, address)), mark | 0, 0, id, -1]);
  return found;
}

/** Whether flows of a service are still its own. */
function sameAddress(a: ServiceIntent, b: ServiceIntent): boolean {
  return a.domain === b.domain && a.address.join() === b.address.join() && a.direct === b.direct;
}
