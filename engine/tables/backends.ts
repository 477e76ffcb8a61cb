/**
 * The backends ("real servers") of all services, in parallel arrays, and of each service the list of those it has.
 *
 * One pool for all services rather than one for each: a flow then remembers its backend as one number, and 10,000
 * services with 100,000 backends are a few arrays. A backend's number stays while it lives, and is given to another as
 * late as can be; whoever keeps it in flows ends those before, or looks at `service`.
 *
 * Everything here changes between breaths only, but the counts of flows, packets and bytes, which whoever moves packets
 * keeps. Schedulers keep state of their own for each service (see schedulers/); they are told of each change.
 *
 * Not here: which service a packet is for, health checks, forwarding methods, thresholds of connections.
 */

/** No backend, where one is asked for. */
export const NO_BACKEND = -1;
/** `service` of a backend that is free. */
export const NO_SERVICE = -1;
/** `scheduler` of a service that is not open. */
const CLOSED = -1;
/** As of IPVS; what Maglev's tables count with. */
export const MAX_WEIGHT = 65535;
/** Most backends of one service: places in its list are 16 bits in Maglev's tables. */
export const MAX_BACKENDS_OF_SERVICE = 65535;

/** Schedulers, by their numbers; the names are those of ipvsadm, where it has them. */
export const SCHEDULERS = ['rr', 'wrr', 'lc', 'wlc', 'sh', 'maglev'] as const;
export type SchedulerName = (typeof SCHEDULERS)[number];
export const [RR, WRR, LC, WLC, SH, MAGLEV] = SCHEDULERS.keys();

/** What a scheduler is told. Lists and arrays are already as they are to be; places are of the list. */
export interface BackendObserver {
  opened(service: number): void;
  closed(service: number): void;
  /** At the end of the list. */
  added(service: number): void;
  /** @param place where it was. */
  removed(service: number, place: number): void;
  weighed(service: number): void;
  /** The list has another order. @param before what it was. */
  arranged(service: number, before: Int32Array): void;
  /** One went up or down. */
  turned(service: number): void;
}

export class Backends {
  /** Of each backend: signed little-endian word; of IPv6 the number that its address was given. */
  readonly address: Int32Array;
  /** What stands for the address where a hash is to be the same on every node. */
  readonly identity: Int32Array;
  /** As a little-endian load gives it. */
  readonly port: Int32Array;
  /** 0: drained, it gets no new flows. */
  readonly weight: Int32Array;
  /** 1 while it may be chosen, as far as its health goes. */
  readonly up: Uint8Array;
  /** Flows of it now: those that are established, and the others. */
  readonly active: Int32Array;
  readonly inactive: Int32Array;
  /** Since it was added. */
  readonly flows: Float64Array;
  readonly packets: Float64Array;
  readonly bytes: Float64Array;
  /** Service that it is of, or NO_SERVICE. */
  readonly service: Int32Array;

  /** Of each service: number of its scheduler, negative while it is not open. */
  readonly scheduler: Int8Array;
  /** Its backends in the order in which they were added, or arranged. */
  readonly lists: Int32Array[];
  /** How many of them may be chosen: up, and of a weight. */
  readonly available: Int32Array;

  /** Free numbers, as a ring: what was freed last comes last. */
  private readonly free: Int32Array;
  private freeFirst = 0;
  private freeCount: number;
  private observer: BackendObserver | undefined;

  /**
   * @param services most services, and `backends` most backends of all of them.
   */
  constructor(
    readonly services: number,
    readonly capacity: number,
  ) {
    if (!(services >= 1 && capacity >= 1))
      throw new RangeError(`there must be room for a service and a backend, not ${services} and ${capacity}`);
    this.address = new Int32Array(capacity);
    this.identity = new Int32Array(capacity);
    this.port = new Int32Array(capacity);
    this.weight = new Int32Array(capacity);
    this.up = new Uint8Array(capacity);
    this.active = new Int32Array(capacity);
    this.inactive = new Int32Array(capacity);
    this.flows = new Float64Array(capacity);
    this.packets = new Float64Array(capacity);
    this.bytes = new Float64Array(capacity);
    this.service = new Int32Array(capacity).fill(NO_SERVICE);
    this.scheduler = new Int8Array(services).fill(CLOSED);
    this.lists = Array.from({ length: services }, () => EMPTY);
    this.available = new Int32Array(services);
    this.free = Int32Array.from({ length: capacity }, (_, i) => i);
    this.freeCount = capacity;
  }

  /** Who is told of changes: the schedulers. */
  observe(observer: BackendObserver): void {
    this.observer = observer;
  }

  /** Backends of all services. */
  get size(): number {
    return this.capacity - this.freeCount;
  }

  /** Opens a service, or gives an open one another scheduler, which begins anew. */
  open(service: number, scheduler: number): void {
    if (!(service >= 0 && service < this.services))
      throw new RangeError(`service ${service} is not below ${this.services}`);
    if (SCHEDULERS[scheduler] === undefined) throw new RangeError(`there is no scheduler ${scheduler}`);
    if (this.scheduler[service] === scheduler) return;
    if (this.scheduler[service] !== CLOSED) this.observer?.closed(service);
    this.scheduler[service] = scheduler;
    this.observer?.opened(service);
  }

  /** Closes a service and frees its backends. */
  close(service: number): void {
    if (this.scheduler[service] === CLOSED) return;
    this.observer?.closed(service);
    this.scheduler[service] = CLOSED;
    for (const backend of this.lists[service]) this.release(backend);
    this.lists[service] = EMPTY;
    this.available[service] = 0;
  }

  /**
   * Adds a backend, which is up.
   * @param identity the address itself for IPv4; for IPv6, whose numbers are each node's own, `identityOf` its bytes.
   * @returns its number.
   * @throws RangeError when there is no room, the service is not open, or the weight is none.
   */
  add(service: number, address: number, port: number, weight: number, identity = address): number {
    const list = this.lists[service];
    if (!(this.scheduler[service] >= 0)) throw new RangeError(`service ${service} is not open`);
    if (this.freeCount === 0)
      throw new RangeError(`there is room for ${this.capacity} backends of all services`);
    if (list.length === MAX_BACKENDS_OF_SERVICE)
      throw new RangeError(`a service has at most ${MAX_BACKENDS_OF_SERVICE} backends`);
    checkWeight(weight);
    const backend = this.free[this.freeFirst];
    this.freeFirst = (this.freeFirst + 1) % this.capacity;
    this.freeCount--;
    this.address[backend] = address;
    this.identity[backend] = identity;
    this.port[backend] = port;
    this.weight[backend] = weight;
    this.up[backend] = 1;
    this.service[backend] = service;
    for (const counts of [this.active, this.inactive, this.flows, this.packets, this.bytes])
      counts[backend] = 0;
    const longer = new Int32Array(list.length + 1);
    longer.set(list);
    longer[list.length] = backend;
    this.lists[service] = longer;
    this.available[service] += this.isAvailable(backend);
    this.observer?.added(service);
    return backend;
  }

  /** Takes a backend out of its service. Its flows are the caller's to end. */
  remove(backend: number): void {
    const service = this.service[backend];
    const place = this.lists[service].indexOf(backend);
    this.available[service] -= this.isAvailable(backend);
    this.lists[service] = this.lists[service].filter((other) => other !== backend);
    this.release(backend);
    this.observer?.removed(service, place);
  }

  /**
   * Gives a service's list an order, so that one that changed step by step is as one that was made anew.
   * @param order all of its backends. @throws RangeError when it has others.
   */
  arrange(service: number, order: readonly number[]): void {
    const before = this.lists[service];
    if (order.length !== before.length || order.some((backend) => this.service[backend] !== service))
      throw new RangeError(`service ${service} has other backends than those that are to be arranged`);
    if (order.every((backend, place) => before[place] === backend)) return;
    this.lists[service] = Int32Array.from(order);
    this.observer?.arranged(service, before);
  }

  setWeight(backend: number, weight: number): void {
    checkWeight(weight);
    if (this.weight[backend] === weight) return;
    const service = this.service[backend];
    this.available[service] -= this.isAvailable(backend);
    this.weight[backend] = weight;
    this.available[service] += this.isAvailable(backend);
    this.observer?.weighed(service);
  }

  setUp(backend: number, up: boolean): void {
    if (this.up[backend] === Number(up)) return;
    const service = this.service[backend];
    this.available[service] -= this.isAvailable(backend);
    this.up[backend] = Number(up);
    this.available[service] += this.isAvailable(backend);
    this.observer?.turned(service);
  }

  private isAvailable(backend: number): number {
    return this.weight[backend] > 0 ? this.up[backend] : 0;
  }

  private release(backend: number): void {
    this.service[backend] = NO_SERVICE;
    this.free[(this.freeFirst + this.freeCount++) % this.capacity] = backend;
  }
}

/** A word of an IPv6 address: a hash, so that of a few thousand addresses hardly two have the same. */
export function identityOf(address: Uint8Array): number {
  return address.reduce((hash, byte) => {
    const h = Math.imul(hash ^ byte, 0x85ebca6b);
    return h ^ (h >>> 15);
  }, 0x9e3779b1 | 0);
}

const EMPTY = new Int32Array(0);

function checkWeight(weight: number): void {
  if (!(Number.isInteger(weight) && weight >= 0 && weight <= MAX_WEIGHT))
    throw new RangeError(`weight ${weight} is not a whole number in 0–${MAX_WEIGHT}`);
}
