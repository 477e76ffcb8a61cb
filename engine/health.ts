/**
 * Which backends live: checks of those whose service wants them, at intervals, and what their connections show.
 *
 * So many failed checks in a row mean that a backend is down, so many good ones that it is up. Thresholds count here,
 * not in control: what was found out holds from the very answer on, and control, which has nothing to decide, hears of
 * changes alone, however many checks there are. As many failed connections to the checked port within an interval also
 * mean that it is down; only checks bring it back. A new backend begins as its intent says.
 */
import { createProber, GOOD, type Prober } from './elements/balancer/prober.js';
import { type Checks, createRelay, type Relay } from './elements/balancer/relay.js';
import type { Batch, Context } from './graph.js';
import type { BackendIntent, HealthIntent, ServiceIntent } from './intent.js';
import { NOTHING, type Services } from './tables/services.js';

/** Cause of a change: connections of clients failed. Others are outcomes of a check. */
export const CONNECTIONS_FAILED = 5;

export interface HealthChange {
  /** Number of the backend in the intent. */
  readonly backend: number;
  readonly alive: boolean;
  /** Why it is down: an outcome of a check, or CONNECTIONS_FAILED; GOOD when it is up. */
  readonly cause: number;
}

interface Target {
  readonly id: number;
  /** What it is checked for, as text: another is another target. */
  readonly about: string;
  readonly domain: number;
  readonly virtual: Uint8Array;
  readonly address: Uint8Array;
  mac: Uint8Array;
  readonly port: number;
  readonly request: Uint8Array | null;
  readonly timeout: number;
  readonly health: HealthIntent;
  alive: boolean;
  /** Checks in a row that ended as the last one did, and whether that was well. */
  run: number;
  good: boolean;
  /** When it is checked next, and whether it is now. */
  due: number;
  underWay: boolean;
  /** Its number in the table of services, NOTHING before it is known. */
  number: number;
  /** Failed connections at the beginning of this interval, and when that was. */
  before: number;
  since: number;
}

export class Health implements Checks {
  private targets = new Map<number, Target>();
  private readonly prober: Prober<Target>;
  private readonly relay: Relay;
  private changes: HealthChange[] = [];

  /**
   * @param out leads to the bridge, and `tunnel` to VTEPs.
   * @param turned called at once when a backend, by its number in the intent, is found to live or not.
   * @param tell hears of changes, those of 100 ms at once.
   */
  constructor(
    private readonly context: Context,
    private readonly services: Services,
    { out, tunnel }: { readonly out: Batch; readonly tunnel: Batch },
    private readonly turned: (backend: number, alive: boolean) => void,
    private readonly tell: (changes: readonly HealthChange[]) => void,
  ) {
    this.prober = createProber(context, out, (target, outcome) => this.done(target, outcome));
    this.relay = createRelay(context, tunnel);
  }

  /** Makes the services what is checked. Of a check that did not change everything stays. */
  set(services: readonly ServiceIntent[]): void {
    const targets = new Map<number, Target>();
    for (const service of services)
      for (const backend of service.health === undefined ? [] : service.backends) {
        const target = this.targetOf(service, service.health!, backend);
        targets.set(target.id, target);
      }
    this.targets = targets;
  }

  private targetOf(service: ServiceIntent, health: HealthIntent, backend: BackendIntent): Target {
    const { domain, address: virtual } = service;
    const { id, address, mac } = backend;
    const about = `${domain} ${virtual} ${address} ${JSON.stringify(health)}`;
    const known = this.targets.get(id);
    if (known?.about === about) {
      known.mac = mac;
      return known;
    }
    const { now } = this.context;
    return {
      ...{ id, about, domain, mac, health, port: health.port, timeout: health.timeout },
      ...{ virtual, address },
      request: health.kind === 'http' ? requestOf(health.path, virtual) : null,
      alive: known?.alive ?? backend.alive,
      ...{ run: 0, good: true, underWay: false, number: NOTHING, before: 0, since: now },
      // Not all at the same time.
      due: now + Math.random() * Math.min(health.interval, 1000),
    };
  }

  /** Whether a backend is taken to be alive. */
  isAlive(backend: BackendIntent): boolean {
    return this.targets.get(backend.id)?.alive ?? backend.alive;
  }

  /** Called every 100 ms, between breaths. */
  tick(): void {
    const { now } = this.context;
    this.prober.tick();
    for (const target of this.targets.values()) {
      this.suspect(target, now);
      if (target.underWay || now < target.due || !this.prober.begin(target)) continue;
      target.underWay = true;
      target.due = Math.max(target.due + target.health.interval, now);
    }
    if (this.changes.length === 0) return;
    this.tell(this.changes);
    this.changes = [];
  }

  /** Looks at the connections of clients. */
  private suspect(target: Target, now: number): void {
    const { services } = this;
    if (target.number === NOTHING) {
      target.number = services.numberOf(target.id);
      target.since = Number.NEGATIVE_INFINITY;
      if (target.number === NOTHING) return;
    }
    const failed = services.suspected[target.number];
    if (now - target.since >= target.health.interval) {
      target.before = failed;
      target.since = now;
    } else if (target.alive && failed - target.before >= target.health.failures) {
      this.change(target, false, CONNECTIONS_FAILED);
      target.run = 0;
    }
  }

  private done(target: Target, outcome: number): void {
    if (this.targets.get(target.id) !== target) return;
    const good = outcome === GOOD;
    const { failures, successes } = target.health;
    target.underWay = false;
    target.run = target.good === good ? target.run + 1 : 1;
    target.good = good;
    if (target.alive !== good && target.run >= (good ? successes : failures))
      this.change(target, good, outcome);
  }

  private change(target: Target, alive: boolean, cause: number): void {
    target.alive = alive;
    target.since = Number.NEGATIVE_INFINITY;
    this.turned(target.id, alive);
    this.changes.push({ backend: target.id, alive, cause });
  }

  note(frame: number): void {
    this.relay.note(frame);
  }

  take(frame: number, t: number): boolean {
    return this.prober.take(frame, t) || this.relay.back(frame, t);
  }

  unreachable(frame: number, t: number): boolean {
    return this.prober.unreachable(frame, t) || this.relay.backError(frame, t);
  }
}

function requestOf(path: string, host: Uint8Array): Uint8Array {
  const lines = [`GET ${path} HTTP/1.1`, `Host: ${hostOf(host)}`, 'User-Agent: weft', 'Connection: close'];
  return new TextEncoder().encode(`${lines.join('\r\n')}\r\n\r\n`);
}

/** An address as it stands in a URL (RFC 3986, 3.2.2). */
function hostOf(address: Uint8Array): string {
  if (address.length === 4) return address.join('.');
  const view = new DataView(address.buffer, address.byteOffset);
  return `[${Array.from({ length: 8 }, (_, i) => view.getUint16(2 * i).toString(16)).join(':')}]`;
}
