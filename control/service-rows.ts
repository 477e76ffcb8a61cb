/** Services and their backends, for people, and what people change of them while they run. */
import { MAX_WEIGHT } from '../engine/tables/backends.js';
import type { BackendCounts } from '../engine/tables/services.js';
import type { Service } from './config.js';
import type { Daemon } from './daemon.js';
import { UnknownName } from './unknown-name.js';

export interface BackendRow {
  readonly address: string;
  readonly mac: string;
  readonly weight: number;
  /** `drained`: it has weight 0, and gets no new flows; `down`: its checks fail. */
  readonly state: 'up' | 'drained' | 'down';
  /** Flows now: those that are established, and others. */
  readonly active: number;
  readonly inactive: number;
  /** Since it was added: flows, packets and bytes of both directions, and connections that it did not accept. */
  readonly connections: number;
  readonly packets: number;
  readonly bytes: number;
  readonly failures: number;
}

export interface ServiceRow extends Omit<Service, 'fwmark' | 'affinity' | 'idleTimeout' | 'backends'> {
  readonly fwmark: number;
  /** 0: each flow anew. */
  readonly affinitySeconds: number;
  readonly idleTimeoutSeconds: number;
  readonly backends: readonly BackendRow[];
}

const NOTHING = { active: 0, inactive: 0, flows: 0, packets: 0, bytes: 0, failures: 0 };

/** All services, or the one of the `name`. @throws UnknownName */
export async function serviceRows(daemon: Daemon, query: URLSearchParams): Promise<ServiceRow[]> {
  const name = query.get('name');
  const { backends } = await daemon.inspect();
  const counts = new Map(backends.map((one) => [one.id, one]));
  const views = daemon.plan.services.list().filter(({ service }) => name === null || service.name === name);
  if (name !== null && views.length === 0) throw new UnknownName(`there is no service ${name}`);
  return views.map(({ service: { affinity, idleTimeout, ...same }, fwmark, backends: present }) => ({
    ...same,
    fwmark,
    affinitySeconds: affinity,
    idleTimeoutSeconds: idleTimeout,
    backends: present.map(({ id, address, mac, weight, alive }) => ({
      ...{ address, mac, weight, state: alive ? (weight === 0 ? 'drained' : 'up') : 'down' },
      ...rowOf(counts.get(id) ?? NOTHING),
    })),
  }));
}

function rowOf({ active, inactive, flows, packets, bytes, failures }: Omit<BackendCounts, 'id'>) {
  return { active, inactive, connections: flows, packets, bytes, failures };
}

/** Gives `backend` of the service `name` another `weight`. @throws UnknownName */
export async function weighBackend(daemon: Daemon, query: URLSearchParams): Promise<void> {
  const weight = Number(query.get('weight') ?? Number.NaN);
  if (!Number.isInteger(weight) || weight < 0 || weight > MAX_WEIGHT)
    throw new Error(`a weight is a whole number from 0 to ${MAX_WEIGHT}`);
  daemon.plan.services.setWeight(query.get('name') ?? '', query.get('backend') ?? '', weight);
  await daemon.applyAgain();
}

/** Takes the service `name` out, or of it the `backend`. @throws UnknownName */
export async function removeService(daemon: Daemon, query: URLSearchParams): Promise<void> {
  daemon.plan.services.remove(query.get('name') ?? '', query.get('backend') ?? undefined);
  await daemon.applyAgain();
}
