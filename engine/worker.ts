/**
 * The data-plane thread: breathes until it is told to stop, and between two breaths does what the main thread
 * asks for. It sleeps in one native wait, from which a message's event wakes it, so messages need no timer.
 */
import './tuning.js';
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { native } from '../native-bindings/index.js';
import { type CounterBlock, Counters } from './counters.js';
import { DataPlane, type Team } from './dataplane.js';
import type { HealthChange } from './health.js';
import type { AssociationIntent, Intent } from './intent.js';
import type { FlowFilter } from './publisher.js';
import type { MacEntry } from './tables/mac-table.js';
import type { BackendCounts } from './tables/services.js';

export interface WorkerData {
  readonly intent: Intent;
  readonly counters: SharedArrayBuffer;
  /** Event descriptor that is signalled after each message. */
  readonly wake: number;
  readonly seed: number;
  readonly team: Team;
}

export type Request =
  | { readonly kind: 'apply'; readonly id: number; readonly intent: Intent }
  | {
      readonly kind: 'associate';
      readonly id: number;
      readonly associations: readonly AssociationIntent[];
    }
  | { readonly kind: 'inspect'; readonly id: number }
  | { readonly kind: 'flush'; readonly id: number }
  | { readonly kind: 'flush-flows'; readonly id: number; readonly filter: FlowFilter }
  | { readonly kind: 'stop'; readonly id: number };

export interface Inspection {
  readonly stations: MacEntry[];
  /** Addresses of VTEPs by index; empty where there is none. */
  readonly vteps: {
    readonly index: number;
    readonly address: Uint8Array;
    readonly learned: boolean;
    readonly seen: number;
  }[];
  /** The worker's clock in seconds, to which `seen` relates. */
  readonly seconds: number;
  readonly slotsInUse: number;
  /** Of services. */
  readonly backends: BackendCounts[];
}

export interface Reply {
  readonly id: number;
  readonly layout: CounterBlock[];
  readonly inspection?: Inspection;
  /** Flows that were ended. */
  readonly ended?: number;
  readonly error?: string;
}

/**
 * Said without being asked: a port's device is gone; a VTEP did what its operator should hear of (a SAW_ bit); backends
 * of services are found to live or not.
 */
export type Notice =
  | { readonly lost: number }
  | { readonly vtep: Uint8Array; readonly saw: number }
  | { readonly health: readonly HealthChange[] };

const WAKE = 0x10000;
/** Longest sleep without traffic, for ageing. */
const IDLE_MICROSECONDS = 100_000;

function inspect(plane: DataPlane): Inspection {
  const { vteps, context } = plane;
  const known: Inspection['vteps'] = [];
  for (let index = 0; index < vteps.capacity; index++) {
    if (vteps.state[index] === 0) continue;
    known.push({
      index,
      address: vteps.address(index),
      learned: vteps.state[index] === 2,
      seen: vteps.seen[index],
    });
  }
  return {
    stations: plane.stations(),
    vteps: known,
    seconds: context.seconds,
    slotsInUse: context.frames.inUse,
    backends: plane.backends(),
  };
}

function run(port: NonNullable<typeof parentPort>): void {
  const { intent, counters: memory, wake, seed, team } = workerData as WorkerData;
  const counters = new Counters(memory);
  const plane = new DataPlane(
    intent,
    counters,
    seed,
    (lost) => port.postMessage({ lost } satisfies Notice),
    (vtep, saw) => port.postMessage({ vtep, saw } satisfies Notice),
    team,
    (health) => port.postMessage({ health } satisfies Notice),
  );
  plane.watch(wake, WAKE);
  const reply = (id: number, rest: Partial<Reply> = {}): void => {
    port.postMessage({ id, layout: counters.describe(), ...rest } satisfies Reply);
  };
  reply(0);
  let running = true;
  const handle = (request: Request): void => {
    try {
      if (request.kind === 'apply') plane.apply(request.intent);
      if (request.kind === 'associate') plane.associate(request.associations);
      if (request.kind === 'flush') plane.flush();
      if (request.kind === 'stop') running = false;
      if (request.kind === 'flush-flows') {
        reply(request.id, { ended: plane.flushFlows(request.filter) });
        return;
      }
      reply(request.id, request.kind === 'inspect' ? { inspection: inspect(plane) } : {});
    } catch (error) {
      reply(request.id, { error: (error as Error).message });
    }
  };
  while (running) {
    if (plane.breathe(IDLE_MICROSECONDS) !== WAKE) continue;
    native.eventClear(wake);
    for (let message = receiveMessageOnPort(port); message; message = receiveMessageOnPort(port)) {
      handle(message.message as Request);
    }
  }
  plane.close();
  port.close();
}

if (parentPort) run(parentPort);
