/**
 * Which backends live: checks of those whose service wants them, at intervals, and what their connections show.
 *
 * So many failed checks in a row mean that a backend is down, so many good ones that it is up. Thresholds count here,
 * not in control: what was found out holds from the very answer on, and control, which has nothing to decide, hears of
 * changes alone, however many checks there are. As many connections to the checked port that a backend resets within an
 * interval also mean that it is down; only checks bring it back. As many that are not answered mean that it is checked
 * at once, and that this check alone decides: the answer to a client that is not there, which anybody can play, gets no
 * further than the backend. A new backend begins as its intent says.
 *
 * A check goes from the virtual address to the backend's. The backend of a service that is `direct` has the virtual
 * address itself and takes no packet from it: it is asked at that address, under its own MAC, by the gateway's.
 */
import { createProber, GOOD, type Prober } from './elements/balancer/prober.js';
import { type Checks, createRelay, type Relay } from './elements/balancer/relay.js';
import { addressesAt, carriedTcp } from './elements/balancer/segments.js';
import type { Batch, Context } from './graph.js';
import type { BackendIntent, HealthIntent, ServiceIntent } from './intent.js';
import { REMOTE } from './memory/frames.js';
import type { Gateways } from './tables/gateways.js';
import { type Services, VIRTUAL_MAC_LE } from './tables/services.js';
import { ETHERNET_HEADER } from './wire/ethernet.js';
import { ipv4Length } from './wire/ipv4-checks.js';
import { ipv6Length } from './wire/ipv6.js';
import { TCP_HEADER } from './wire/tcp.js';

/** Cause of a change: connections of clients failed, and a check if they had no answer. Others are outcomes of a check. */
export const CONNECTIONS_FAILED = 5;

/** Checks that begin in one call of `tick`, each in some hundred nanoseconds: the breath is to stay short. */
const MOST_AT_ONCE = 1024;

export interface HealthChange {
  /** Number of the backend in the intent. */
  readonly backend: number;
  readonly alive: boolean;
  /** Why it is down: an outcome of a check, or CONNECTIONS_FAILED; GOOD when it is up. */
  readonly cause: number;
}

interface Target {
  readonly id: number;
  readonly domain: number;
  readonly own: Uint8Array;
  readonly ownMac: Uint8Array;
  readonly address: Uint8Array;
  mac: Uint8Array;
  readonly port: number;
  readonly request: Uint8Array | null;
  readonly timeout: number;
  readonly health: HealthIntent;
  /** All that its service says of its check, as text. */
  readonly about: string;
  /** Its place in the list. */
  index: number;
  alive: boolean;
  underWay: boolean;
  /** Checks in a row that ended as the last one did, and whether that was well. */
  run: number;
  good: boolean;
  /** Connections of this interval that failed, and when it began. */
  refused: number;
  unanswered: number;
  since: number;
  /** Whether the next check that ends decides. */
  doubted: boolean;
}

export class Health implements Checks {
  private targets = new Map<number, Target>();
  private list: Target[] = [];
  /** When each of the list is checked next, and where to go on: all get their turn when there are too many. */
  private due = new Float64Array(0);
  private cursor = 0;
  /** By numbers in the table of services; made when it is needed. */
  private byNumber: Map<number, Target> | undefined;
  private readonly prober: Prober<Target>;
  private readonly relay: Relay;
  private changes: HealthChange[] = [];

  /**
   * @param gateways what they are when services are set.
   * @param out leads to the bridge, and `tunnel` to VTEPs.
   * @param turned called at once when a backend, by its number in the intent, is found to live or not.
   * @param tell hears of changes, those of 100 ms at once.
   */
  constructor(
    private readonly context: Context,
    private readonly services: Services,
    private readonly gateways: Gateways,
    { out, tunnel }: { readonly out: Batch; readonly tunnel: Batch },
    private readonly turned: (backend: number, alive: boolean) => void,
    private readonly tell: (changes: readonly HealthChange[]) => void,
  ) {
    this.prober = createProber(context, out, (target, outcome) => this.done(target, outcome));
    this.relay = createRelay(context, tunnel);
  }

  /** Makes the services what is checked. Of a check that did not change everything stays. */
  set(services: readonly ServiceIntent[]): void {
    const { due } = this;
    const checked = services.filter(({ health }) => health !== undefined);
    this.list = [];
    this.due = new Float64Array(checked.reduce((sum, { backends }) => sum + backends.length, 0));
    for (const service of checked) {
      const { domain, address, direct, health } = service;
      const own = direct ? this.gateways.addressOf(domain, address.length) : address;
      if (own === undefined) continue;
      const about = `${domain} ${address.join()} ${own.join()} ${JSON.stringify(health)}`;
      for (const backend of service.backends) this.put(service, own, about, backend, due);
    }
    this.targets = new Map(this.list.map((target) => [target.id, target]));
    this.byNumber = undefined;
    this.cursor = 0;
  }

  /** @param own the address that asks. @param due when those that are known are checked. */
  private put(
    service: ServiceIntent,
    own: Uint8Array,
    about: string,
    backend: BackendIntent,
    due: Float64Array,
  ): void {
    const known = this.targets.get(backend.id);
    const index = this.list.length;
    const address = service.direct ? service.address : backend.address;
    if (known?.about === about && known.address.every((byte, i) => byte === address[i])) {
      known.mac = backend.mac;
      this.due[index] = due[known.index];
      known.index = index;
      this.list.push(known);
      return;
    }
    const { now } = this.context;
    const health = service.health!;
    // Not all at the same time.
    this.due[index] = now + Math.random() * Math.min(health.interval, 1000);
    this.list.push({
      id: backend.id,
      domain: service.domain,
      own,
      ownMac: Uint8Array.of(VIRTUAL_MAC_LE & 0xff, VIRTUAL_MAC_LE >>> 8, ...service.address.slice(-4)),
      address,
      mac: backend.mac,
      port: health.port,
      request: health.kind === 'http' ? requestOf(health.path, service.address) : null,
      timeout: health.timeout,
      health,
      about,
      index,
      alive: known?.alive ?? backend.alive,
      underWay: false,
      run: 0,
      good: true,
      refused: 0,
      unanswered: 0,
      since: now,
      doubted: false,
    });
  }

  /** Whether a backend is taken to be alive. */
  isAlive(backend: BackendIntent): boolean {
    return this.targets.get(backend.id)?.alive ?? backend.alive;
  }

  /** Called every 100 ms, between breaths. @param late milliseconds for which the engine did not run meanwhile. */
  tick(late = 0): void {
    this.prober.tick(late);
    this.suspect();
    this.begin();
    if (this.changes.length === 0) return;
    this.tell(this.changes);
    this.changes = [];
  }

  /** Begins what is due, as many as may be under way. */
  private begin(): void {
    const { list, due, prober } = this;
    const { now } = this.context;
    const { length } = list;
    const first = this.cursor;
    let begun = 0;
    for (let k = 0; k < length && begun < MOST_AT_ONCE; k++) {
      const i = first + k < length ? first + k : first + k - length;
      if (now < due[i] || list[i].underWay) continue;
      this.cursor = i;
      if (!prober.begin(list[i])) return;
      begun++;
      list[i].underWay = true;
      due[i] = Math.max(due[i] + list[i].health.interval, now);
    }
  }

  /** Looks at the connections of clients that failed since it was last called. */
  private suspect(): void {
    const { refused, unanswered } = this.services;
    for (const [number, times] of refused) {
      const target = this.suspected(number);
      if (target === undefined || (target.refused += times) < target.health.failures) continue;
      this.change(target, false, CONNECTIONS_FAILED);
      target.run = 0;
    }
    for (const [number, times] of unanswered) {
      const target = this.suspected(number);
      if (target === undefined || (target.unanswered += times) < target.health.failures) continue;
      target.unanswered = 0;
      target.doubted = true;
      this.due[target.index] = this.context.now;
    }
    refused.clear();
    unanswered.clear();
  }

  /** The backend of a number in the table of services, if it is checked and lives. */
  private suspected(number: number): Target | undefined {
    this.byNumber ??= new Map(this.list.map((one) => [this.services.numberOf(one.id), one]));
    const target = this.byNumber.get(number);
    if (target === undefined || !target.alive) return undefined;
    const { now } = this.context;
    if (now - target.since >= target.health.interval) {
      target.since = now;
      target.refused = 0;
      target.unanswered = 0;
    }
    return target;
  }

  private done(target: Target, outcome: number): void {
    if (this.targets.get(target.id) !== target) return;
    const good = outcome === GOOD;
    const { failures, successes } = target.health;
    target.underWay = false;
    target.run = target.good === good ? target.run + 1 : 1;
    target.good = good;
    const enough = target.run >= (good ? successes : failures);
    if (target.alive !== good && (enough || target.doubted))
      this.change(target, good, enough ? outcome : CONNECTIONS_FAILED);
    target.doubted = false;
  }

  private change(target: Target, alive: boolean, cause: number): void {
    target.alive = alive;
    target.refused = 0;
    target.unanswered = 0;
    target.doubted = false;
    this.turned(target.id, alive);
    this.changes.push({ backend: target.id, alive, cause });
  }

  note(frame: number): void {
    const { u8, u16, off, domain } = this.context.frames;
    const { source, size } = addressesAt(u8, off[frame] + ETHERNET_HEADER);
    if (this.gateways.isAddress(domain[frame], u16, source >>> 1, size)) this.relay.note(frame);
  }

  fromVirtual(frame: number): boolean {
    const { u8, u16, off, len, domain, ingress } = this.context.frames;
    if (ingress[frame] >= REMOTE) this.relay.note(frame);
    const ip = off[frame] + ETHERNET_HEADER;
    const { destination, size } = addressesAt(u8, ip);
    if (!this.gateways.isAddress(domain[frame], u16, destination >>> 1, size)) return false;
    const most = len[frame] - ETHERNET_HEADER;
    const total = size === 4 ? ipv4Length(u16, ip >>> 1, most) : ipv6Length(u16, ip >>> 1, most);
    const t = carriedTcp(u8, ip, ip + total - TCP_HEADER + 8) >>> 1;
    return t !== 0 && this.take(frame, t);
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
