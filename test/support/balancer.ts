/** A balancer between sinks, and the services of one domain; packets are test/support/nat.ts's. */

import type { Balancer } from '../../engine/elements/balancer.js';
import { createBalancer } from '../../engine/elements/balancer.js';
import { createIcmpErrors } from '../../engine/elements/icmp-errors.js';
import { Batch, type Context } from '../../engine/graph.js';
import { Health, type HealthChange } from '../../engine/health.js';
import type { BackendIntent, GatewayIntent, ServiceIntent } from '../../engine/intent.js';
import { DEFAULT_TIMEOUTS } from '../../engine/tables/connection.js';
import { Flows } from '../../engine/tables/flows.js';
import { Gateways } from '../../engine/tables/gateways.js';
import { Neighbours } from '../../engine/tables/neighbours.js';
import { Services } from '../../engine/tables/services.js';
import { type Caught, dropped, ip, type Metadata, Rig, type Sink, station } from './frames.js';

export const VIP = '10.0.9.100';
export const CLIENT = '10.0.9.50';
export const GATEWAY = '10.0.9.254';
export const GATEWAY6 = 'fd00:9::fe';

/** The gateway of both families that domain 0 has, and no way out. */
export const ROUTER: GatewayIntent = {
  ...{ domain: 0, mac: station(254), routed: false, uplink: -1, mtu: 1450 },
  v4: { address: ip(GATEWAY), subnet: ip('10.0.9.0'), length: 24 },
  v6: { address: ip(GATEWAY6), subnet: ip('fd00:9::'), length: 64 },
};

/** Backend `n`: 10.0.9.n. */
export function backend(n: number, more: Partial<BackendIntent> = {}): BackendIntent {
  return { id: n, address: ip(`10.0.9.${n}`), mac: station(n), weight: 1, alive: true, ...more };
}

export function service(more: Partial<ServiceIntent> = {}): ServiceIntent {
  return {
    ...{
      id: 1,
      domain: 0,
      address: ip(VIP),
      scheduler: 'rr',
      direct: false,
      mark: 0,
      affinity: 0,
      idle: 7440,
    },
    ...{ ports: [], publish: [], backends: [1, 2, 3].map((n) => backend(n)), ...more },
  };
}

export class BalancerRig {
  readonly rig = new Rig();
  readonly flows: Flows;
  readonly services = new Services(64, 4096);
  readonly gateways = new Gateways();
  readonly balancer: Balancer;
  private readonly batch: Batch;
  private readonly sink: Sink;
  readonly health: Health;
  /** What goes to other hosts past the bridge. */
  readonly tunnel: Sink;
  private readonly toTunnel: Batch;
  /** What was found out of backends. */
  readonly changes: HealthChange[] = [];

  constructor(
    services: readonly ServiceIntent[] = [service()],
    maxFlows = 1000,
    flows = (context: Context): Flows => new Flows(maxFlows, 1, context.seconds),
  ) {
    const { context } = this.rig;
    this.at(1000);
    this.flows = flows(context);
    const neighbours = new Neighbours(1);
    neighbours.set(0, ip(CLIENT), station(50));
    for (const { backends } of services)
      for (const { address, mac } of backends) neighbours.set(0, address, mac);
    this.sink = this.rig.sink();
    this.batch = new Batch(this.sink);
    this.tunnel = this.rig.sink();
    this.toTunnel = new Batch(this.tunnel);
    this.gateways.set(ROUTER);
    this.health = new Health(
      context,
      this.services,
      this.gateways,
      { out: this.batch, tunnel: this.toTunnel },
      (id, alive) => this.services.setAlive(id, alive, (gone) => this.balancer.end(gone)),
      (changes) => this.changes.push(...changes),
    );
    const shared = { flows: this.flows, services: this.services, neighbours, checks: this.health };
    const errors = createIcmpErrors(context);
    this.balancer = createBalancer(
      context,
      { ...shared, errors, timeouts: DEFAULT_TIMEOUTS, outside: () => this.batch, inside: this.batch },
      this.batch,
    );
    this.set(services);
  }

  set(services: readonly ServiceIntent[]): void {
    this.health.set(services);
    this.services.set(
      services,
      (backend) => this.balancer.end(backend),
      (backend) => this.health.isAlive(backend),
    );
  }

  at(seconds: number): void {
    this.rig.context.setTime(seconds * 1000);
  }

  /** What comes out of frames that are given as one batch. */
  feed(frames: readonly Uint8Array[], metadata: Metadata = {}): readonly Caught[] {
    this.rig.feed(this.balancer, ...frames.map((bytes) => this.rig.put(bytes, metadata)));
    return this.caught();
  }

  /** Time goes on; what leaves by itself. */
  age(seconds: number): readonly Caught[] {
    this.at(seconds);
    this.balancer.age();
    while (this.balancer.sweep());
    return this.caught();
  }

  /** Time goes on by so many milliseconds, of which the engine ran but the last; what checks of backends send. */
  check(milliseconds: number, late = 0): readonly Caught[] {
    this.rig.context.setTime(this.rig.context.now + milliseconds);
    this.health.tick(late);
    return this.caught();
  }

  caught(): readonly Caught[] {
    this.batch.flush();
    this.toTunnel.flush();
    return this.sink.caught.splice(0);
  }

  one(frame: Uint8Array, metadata?: Metadata): Uint8Array {
    const all = this.feed([frame], metadata);
    if (all.length !== 1) throw new Error(`${all.length} frames came out; ${JSON.stringify(this.drops())}`);
    return all[0]!.bytes;
  }

  drops(): Record<string, number> {
    return dropped(this.balancer.drops);
  }
}
