/**
 * Services in front of the bridge: the marker and the balancer, wired when the first service comes.
 *
 *   TAP, tunnel, gateway ──► mark ──► balance ──► bridge
 */

import { createVirtualStation } from './elements/balancer/virtual-station.js';
import { type Balancer, createBalancer } from './elements/balancer.js';
import { type BalancerV6, createBalancerV6 } from './elements/balancer-v6.js';
import { createIcmpErrors } from './elements/icmp-errors.js';
import { createIcmpv6Errors } from './elements/icmpv6-errors.js';
import { createMarker, type Marker } from './elements/mark.js';
import type { FlowMemory } from './flow-memory.js';
import type { GatewayWay } from './gateway.js';
import type { Batch, Context } from './graph.js';
import { Health, type HealthChange } from './health.js';
import type { Intent, NeighbourIntent, ServiceIntent } from './intent.js';
import type { Timeouts } from './tables/connection.js';
import type { Neighbours } from './tables/neighbours.js';
import {
  type BackendCounts,
  MAX_BACKENDS,
  MAX_SERVICES,
  neighboursOf,
  placeOf,
  Services,
} from './tables/services.js';

/** Steps of some nanoseconds that tables of schedulers may take between two breaths. */
const REBUILD_STEPS = 5000;

/** Ticks for which the address of a service that is gone answers still, so that its connections are reset. */
const FORGET_TICKS = 50;

/** Milliseconds from one tick to the next that are usual: it comes with a breath, of which an idle one takes 100. */
const PUNCTUAL = 200;

export interface ServiceBatches {
  readonly front: Batch;
  readonly behind: Batch;
  readonly station: Batch;
  readonly tunnel: Batch;
  /** Sending side of each local port, by port number. */
  readonly ports: readonly (Batch | null)[];
}

export class ServiceFront {
  private readonly services: Services;
  private readonly balancer: Balancer;
  /** Null where the table of flows has no IPv6. */
  private readonly v6: BalancerV6 | null;
  private readonly marker: Marker;
  private readonly health: Health;
  private rebuilding = false;
  private ending = false;
  private forgetting = 0;
  private ticked = 0;
  private current: readonly ServiceIntent[] = [];
  /** Addresses of services and backends that are gone, as neighbours. */
  private gone: readonly NeighbourIntent[] = [];

  /**
   * @param front what leads to the bridge; from now on it leads here.
   * @param behind leads to the bridge itself, and `station` to nothing yet: the bridge gives it what is for a virtual
   * address's MAC.
   * @param timeouts of what no service says itself.
   * @param tell hears which backends are found to live or not.
   */
  constructor(
    private readonly context: Context,
    { flows, addresses }: Pick<FlowMemory, 'flows' | 'addresses'>,
    private readonly neighbours: Neighbours,
    { front, behind, station, tunnel, ports }: ServiceBatches,
    gateway: Pick<GatewayWay, 'balanceBy' | 'gateways' | 'inward' | 'outsideOf' | 'outsideOfV6'>,
    timeouts: Timeouts,
    tell: (changes: readonly HealthChange[]) => void,
  ) {
    const services = new Services(MAX_SERVICES, MAX_BACKENDS, addresses);
    this.services = services;
    const errors = createIcmpErrors(context);
    const outside = (owner: number): Batch => gateway.outsideOf(owner);
    const turned = (backend: number, alive: boolean): void => this.turn(backend, alive);
    this.health = new Health(context, services, gateway.gateways, { out: behind, tunnel }, turned, tell);
    const shared = { flows, services, neighbours, timeouts, inside: gateway.inward };
    this.v6 =
      addresses &&
      createBalancerV6(
        context,
        {
          ...shared,
          addresses,
          errors: createIcmpv6Errors(context),
          checks: this.health,
          outside: (owner) => gateway.outsideOfV6(owner),
        },
        behind,
      );
    const v6 = this.v6?.packet;
    this.balancer = createBalancer(context, { ...shared, errors, outside, checks: this.health, v6 }, behind);
    gateway.balanceBy(this.balancer.balancing, this.v6?.balancing ?? null);
    this.marker = createMarker(context, this.balancer);
    front.next = this.marker;
    station.next = createVirtualStation(context, services, addresses, ports);
  }

  /** @param gone neighbours that the intent has no more. */
  apply(intent: Intent, gone: readonly NeighbourIntent[]): void {
    const { services = [], marks = [] } = intent;
    this.health.set(services);
    this.services.set(
      services,
      (backend) => this.end(backend),
      (backend) => this.health.isAlive(backend),
    );
    this.rebuilding = true;
    this.forgetting = FORGET_TICKS;
    this.marker.set(marks);
    this.keepNeighbours(intent, gone);
    this.current = services;
  }

  /**
   * Who is gone stays a neighbour for a while: both ends of its connections are asked to reset themselves, and at a
   * restart, when their interface had no carrier, clients have forgotten the virtual address that they answer to.
   */
  private keepNeighbours({ neighbours }: Intent, gone: readonly NeighbourIntent[]): void {
    if (gone.length + this.gone.length === 0) return;
    const ours = new Set(this.current.flatMap(neighboursOf).map(placeOf));
    const taken = new Set(neighbours.map(placeOf));
    const kept = [...this.gone, ...gone.filter((one) => ours.has(placeOf(one)))];
    this.gone = kept.filter((one) => !taken.has(placeOf(one)));
    for (const { domain, address, mac } of this.gone) this.neighbours.set(domain, address, mac);
  }

  private forget(): void {
    this.services.forget();
    for (const { domain, address } of this.gone) this.neighbours.remove(domain, address);
    this.gone = [];
  }

  private turn(backend: number, alive: boolean): void {
    this.services.setAlive(backend, alive, (number) => this.end(number));
    this.rebuilding = true;
  }

  /** Ends the flows of a backend, by its number in the table of services. */
  private end(backend: number): void {
    if (this.services.isIpv6(backend)) this.v6?.end(backend);
    else this.balancer.end(backend);
    this.ending = true;
  }

  /** Called every 100 ms, between breaths; the stages must run afterwards. */
  tick(): void {
    const { now } = this.context;
    this.health.tick(Math.max(0, now - this.ticked - PUNCTUAL));
    this.ticked = now;
    this.balancer.age();
    this.v6?.age();
    if (--this.forgetting === 0) this.forget();
  }

  /** Called in each breath before the stages run: goes on with tables that changes made stale, and with flows to end. */
  work(): void {
    if (this.rebuilding) this.rebuilding = this.services.schedulers.rebuild(REBUILD_STEPS);
    if (this.ending) this.ending = [this.balancer, this.v6].some((one) => one?.sweep());
  }

  /** Whether `work` has more to do, for which nobody may sleep: hosts do not choose alike, or who is to know waits. */
  get isBusy(): boolean {
    return this.rebuilding || this.ending;
  }

  counts(): BackendCounts[] {
    return this.services.counts();
  }
}
