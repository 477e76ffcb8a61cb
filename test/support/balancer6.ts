/** The balancer of both families between sinks, with services of IPv6; packets are test/support/nat6.ts's. */
import { type Balancer, createBalancer } from '../../engine/elements/balancer.js';
import { type BalancerV6, createBalancerV6 } from '../../engine/elements/balancer-v6.js';
import { createIcmpErrors } from '../../engine/elements/icmp-errors.js';
import { createIcmpv6Errors } from '../../engine/elements/icmpv6-errors.js';
import type { FlowMemory } from '../../engine/flow-memory.js';
import { Batch, type Context } from '../../engine/graph.js';
import { Health, type HealthChange } from '../../engine/health.js';
import type { BackendIntent, ServiceIntent } from '../../engine/intent.js';
import { Addresses6 } from '../../engine/tables/addresses6.js';
import { DEFAULT_TIMEOUTS } from '../../engine/tables/connection.js';
import { Flows } from '../../engine/tables/flows.js';
import { Gateways } from '../../engine/tables/gateways.js';
import { Neighbours } from '../../engine/tables/neighbours.js';
import { Services } from '../../engine/tables/services.js';
import { backend, ROUTER, service } from './balancer.js';
import {
  be16,
  type Caught,
  concat,
  dropped,
  ip,
  type Metadata,
  mac,
  Rig,
  type Sink,
  station,
} from './frames.js';
import { ACK, SYN, TCP, UDP } from './nat.js';
import { framedV6, type PacketV6, packetV6, transportV6 } from './nat6.js';

export const VIP6 = 'fd00:9::100';
export const CLIENT6 = 'fd00:9::50';

export const MAC6 = mac('06:57:00:00:01:00');

/** A TCP segment of the client's, to port 80 of the virtual address. */
export const tcp6 = (sourcePort: number, flags: number, more: PacketV6 = {}): Uint8Array =>
  packetV6({
    ...{ protocol: TCP, flags, source: CLIENT6, destination: VIP6, sourcePort, destinationPort: 80 },
    ...{ to: MAC6, from: station(50), ...more },
  });
export const syn6 = (sourcePort: number, more: PacketV6 = {}): Uint8Array => tcp6(sourcePort, SYN, more);
export const ack6 = (sourcePort: number, more: PacketV6 = {}): Uint8Array => tcp6(sourcePort, ACK, more);

/** The two fragments of a packet of UDP. */
export function cut6(p: PacketV6): [Uint8Array, Uint8Array] {
  const whole = transportV6({ content: new Uint8Array(40), ...p });
  const piece = (offset: number, more: number, content: Uint8Array): Uint8Array =>
    framedV6(
      { ...p, first: 44, extensions: concat(Uint8Array.of(UDP, 0), be16((offset & ~7) | more, 0, 7)) },
      content,
    );
  return [piece(0, 1, whole.slice(0, 24)), piece(24, 0, whole.slice(24))];
}

/** Backend `n`: fd00:9::n. */
export function backend6(n: number, more: Partial<BackendIntent> = {}): BackendIntent {
  return backend(n, { address: ip(`fd00:9::${n}`), ...more });
}

export function service6(more: Partial<ServiceIntent> = {}): ServiceIntent {
  return service({ address: ip(VIP6), backends: [1, 2, 3].map((n) => backend6(n)), ...more });
}

export class BalancerRigV6 {
  readonly rig = new Rig();
  readonly flows: Flows;
  readonly addresses: Addresses6;
  readonly services: Services;
  readonly balancer: Balancer;
  readonly v6: BalancerV6;
  readonly health: Health;
  /** What goes to other hosts past the bridge. */
  readonly tunnel: Sink;
  /** What was found out of backends. */
  readonly changes: HealthChange[] = [];
  private readonly batch: Batch;
  private readonly toTunnel: Batch;
  private readonly sink: Sink;

  constructor(
    services: readonly ServiceIntent[] = [service6()],
    maxFlows = 1000,
    maxAddresses = 2000,
    memory?: (context: Context) => FlowMemory,
  ) {
    const { context } = this.rig;
    this.at(1000);
    const own = memory?.(context);
    this.flows = own?.flows ?? new Flows(maxFlows, 1, context.seconds);
    this.addresses = own?.addresses ?? new Addresses6(maxAddresses, 1);
    this.services = new Services(64, 1024, this.addresses);
    const neighbours = new Neighbours(1);
    neighbours.set(0, ip(CLIENT6), station(50));
    for (const { backends } of services)
      for (const { address, mac } of backends) neighbours.set(0, address, mac);
    this.sink = this.rig.sink();
    this.batch = new Batch(this.sink);
    this.tunnel = this.rig.sink();
    this.toTunnel = new Batch(this.tunnel);
    const gateways = new Gateways();
    gateways.set(ROUTER);
    this.health = new Health(
      ...([context, this.services, gateways, { out: this.batch, tunnel: this.toTunnel }] as const),
      (id, alive) => this.services.setAlive(id, alive, (gone) => this.v6.end(gone)),
      (changes) => this.changes.push(...changes),
    );
    const ways = { outside: (): Batch => this.batch, inside: this.batch };
    const tables = { flows: this.flows, services: this.services, neighbours };
    const shared = { ...tables, ...ways, checks: this.health, timeouts: DEFAULT_TIMEOUTS };
    this.v6 = createBalancerV6(
      context,
      { ...shared, addresses: this.addresses, errors: createIcmpv6Errors(context) },
      this.batch,
    );
    const errors = createIcmpErrors(context);
    const v6 = this.v6.packet;
    this.balancer = createBalancer(context, { ...shared, errors, v6 }, this.batch);
    this.set(services);
  }

  set(services: readonly ServiceIntent[]): void {
    this.health.set(services);
    this.services.set(
      services,
      (gone) => (this.services.isIpv6(gone) ? this.v6.end(gone) : this.balancer.end(gone)),
      (one) => this.health.isAlive(one),
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
    for (const one of [this.balancer, this.v6]) {
      one.age();
      while (one.sweep());
    }
    return this.caught();
  }

  /** Time goes on by so many milliseconds; what checks of backends send. */
  check(milliseconds: number): readonly Caught[] {
    this.rig.context.setTime(this.rig.context.now + milliseconds);
    this.health.tick();
    return this.caught();
  }

  private caught(): readonly Caught[] {
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
    return dropped(this.v6.drops);
  }
}
