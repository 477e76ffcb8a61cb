/**
 * Services in front of the bridge: the marker and the balancer, wired when the first service comes.
 *
 *   TAP, tunnel, gateway ──► mark ──► balance ──► bridge
 */

import { createVirtualStation } from './elements/balancer/virtual-station.js';
import { type Balancer, createBalancer } from './elements/balancer.js';
import { createIcmpErrors } from './elements/icmp-errors.js';
import { createMarker, type Marker } from './elements/mark.js';
import type { Batch, Context } from './graph.js';
import type { Intent } from './intent.js';
import { DEFAULT_TIMEOUTS } from './tables/connection.js';
import type { Flows } from './tables/flows.js';
import type { Neighbours } from './tables/neighbours.js';
import { type BackendCounts, Services } from './tables/services.js';

/** Number of the balancer among those who own flows; those of uplinks are below. */
export const BALANCER_OWNER = 16;
/** Steps of some nanoseconds that tables of schedulers may take between two breaths. */
const REBUILD_STEPS = 50_000;

export interface ServiceBatches {
  readonly front: Batch;
  readonly behind: Batch;
  readonly station: Batch;
}

export class ServiceFront {
  private readonly services = new Services();
  private readonly balancer: Balancer;
  private readonly marker: Marker;

  /**
   * @param front what leads to the bridge; from now on it leads here.
   * @param behind leads to the bridge itself, and `station` to nothing yet: the bridge gives it what is for a virtual
   * address's MAC.
   * @param ports sending side of each local port, by port number.
   */
  constructor(
    context: Context,
    flows: Flows,
    neighbours: Neighbours,
    { front, behind, station }: ServiceBatches,
    ports: readonly (Batch | null)[],
  ) {
    const { services } = this;
    const errors = createIcmpErrors(context);
    const shared = { flows, owner: BALANCER_OWNER, services, neighbours, errors };
    this.balancer = createBalancer(context, { ...shared, timeouts: DEFAULT_TIMEOUTS }, behind);
    this.marker = createMarker(context, this.balancer);
    front.next = this.marker;
    station.next = createVirtualStation(context, services, ports);
  }

  apply({ services = [], marks = [] }: Intent): void {
    this.services.set(services, (backend) => this.balancer.end(backend));
    this.marker.set(marks);
  }

  /** Called every 100 ms, between breaths; the stages must run afterwards. */
  tick(): void {
    this.balancer.age();
    this.services.schedulers.rebuild(REBUILD_STEPS);
  }

  counts(): BackendCounts[] {
    return this.services.counts();
  }
}
