/** Services for tests of schedulers: backends by small numbers, clients, and who chose what. */
import { Backends, NO_BACKEND, SCHEDULERS, type SchedulerName } from '../../engine/tables/backends.js';
import { addressWord } from '../../engine/tables/gateways.js';
import { createSchedulers, type Schedulers } from '../../engine/tables/schedulers/index.js';

/** Word of an address that is given as a number. */
export const word = (address: number): number =>
  addressWord(Uint8Array.of(address >>> 24, address >>> 16, address >>> 8, address));

/** As a little-endian load gives it. */
export const portWord = (port: number): number => ((port & 0xff) << 8) | (port >>> 8);

/** Real server n: address and port are its number's and no other's. */
const addressOf = (n: number): number => word(0x0a4d0000 + n);

/** One service, number 0 unless told, with backends that a test calls 1, 2, 3 … */
export class ServiceRig {
  readonly backends: Backends;
  readonly schedulers: Schedulers;
  private readonly numbers = new Map<number, number>();

  constructor(
    scheduler: SchedulerName,
    weights: readonly number[] = [],
    readonly service = 0,
    capacity = 4096,
  ) {
    this.backends = new Backends(service + 1, capacity);
    this.schedulers = createSchedulers(this.backends);
    this.backends.open(service, SCHEDULERS.indexOf(scheduler));
    for (const [i, weight] of weights.entries()) this.add(i + 1, weight);
    this.settle();
  }

  add(n: number, weight = 1): void {
    this.numbers.set(n, this.backends.add(this.service, addressOf(n), portWord(80), weight));
  }

  remove(n: number): void {
    this.backends.remove(this.number(n));
    this.numbers.delete(n);
  }

  weigh(n: number, weight: number): void {
    this.backends.setWeight(this.number(n), weight);
  }

  turn(n: number, up: boolean): void {
    this.backends.setUp(this.number(n), up);
  }

  arrange(order: readonly number[]): void {
    this.backends.arrange(
      this.service,
      order.map((n) => this.number(n)),
    );
  }

  /** Its number in the table. */
  number(n: number): number {
    return this.numbers.get(n)!;
  }

  /** Those that there are. */
  get members(): number[] {
    return [...this.numbers.keys()];
  }

  /** Finishes every table. */
  settle(): void {
    while (this.schedulers.rebuild(1 << 30));
  }

  /** Who gets a new flow of this client, counted as active; 0 when nobody does. */
  pick(client = 0, port = 0): number {
    const backend = this.schedulers.pick(this.service, word(client), portWord(port));
    if (backend === NO_BACKEND) return 0;
    this.backends.active[backend]++;
    return this.backends.service[backend] === this.service
      ? (this.backends.address[backend] >>> 24) + ((this.backends.address[backend] >>> 8) & 0xff00) // its last two bytes
      : Number.NaN;
  }

  /** Who gets the flows of so many clients with consecutive addresses. */
  picks(count: number, first = 0x0a000001): number[] {
    return Array.from({ length: count }, (_, i) => this.pick(first + i));
  }
}

/** How often each occurs. */
export function tally(chosen: readonly number[]): Map<number, number> {
  const counts = new Map<number, number>();
  for (const n of chosen) counts.set(n, (counts.get(n) ?? 0) + 1);
  return counts;
}
