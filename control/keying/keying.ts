/**
 * All of a node's security associations and where they come from, as the daemon has it: the store, the exchange of
 * keys under the ring, and the associations that the config writes out. Without encryption it does nothing.
 *
 * A peer with a static association has no other; every other VTEP of an encrypted network is a peer of the exchange.
 */
import { performance } from 'node:perf_hooks';
import { isDeepStrictEqual } from 'node:util';
import type { AssociationIntent } from '../../engine/intent.js';
import type { AssociationState } from '../../engine/tables/association-state.js';
import { native as addon } from '../../native-bindings/index.js';
import {
  type Config,
  carriedNetworks,
  type Encryption,
  hostError,
  type RingKey,
  type StaticAssociation,
} from '../config.js';
import { remoteVteps } from '../peers.js';
import { watchClockSteps } from './clock-steps.js';
import { KeyExchange } from './exchange.js';
import { ReservedSequences } from './persist.js';
import type { ExchangeDrop } from './refusals.js';
import { ExchangeSocket } from './socket.js';
import { hexSpi } from './spi.js';
import { InstalledAssociations, type SaRow, type StoreHost } from './store.js';
import { ExchangeTenant } from './tenant.js';
import type { AssociationHandle } from './types.js';
import { UnknownPeer } from './unknown-peer.js';

/** How often to look at the sequence numbers of static associations. */
const LOOK_MS = 100;
/** What setTimeout takes, 24 days; the longest time asked for is 30. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;

export interface KeyingOptions {
  /** The node's file, for errors that point into it. */
  readonly file: string;
  readonly config: Config;
  /** What the workers share; undefined when the config has no encryption. */
  readonly state: AssociationState | undefined;
  /** The daemon's own state file; what is kept here is in a file beside it. */
  readonly stateFile: string;
  /** Resolves when every worker has this list in place of the one before. Lists arrive in the order of the calls. */
  readonly apply: (associations: readonly AssociationIntent[]) => Promise<void>;
  /** A line for people. */
  readonly log: (line: string) => void;
  /** Where keys go; the addon's slots, of which a process has one set, when absent. */
  readonly native?: StoreHost['native'];
}

/** An association of the config. */
interface Fixed {
  readonly association: StaticAssociation;
  /** Undefined while it is being installed. */
  handle: AssociationHandle | undefined;
}

interface Exchanging {
  readonly exchange: KeyExchange;
  readonly tenant: ExchangeTenant;
  readonly config: Config;
}

const clock = {
  now: () => performance.now(),
  after(ms: number, call: () => void): () => void {
    const timer = setTimeout(call, Math.min(ms, LONGEST_TIMER_MS)).unref();
    return () => clearTimeout(timer);
  },
};

export class Keying {
  private config: Config;
  private readonly store: InstalledAssociations | undefined;
  private readonly sequences: ReservedSequences | undefined;
  private fixed: readonly Fixed[] = [];
  private socket: ExchangeSocket | undefined;
  /** Opened for a config that is not in force yet. */
  private prepared: ExchangeSocket | undefined;
  private exchanging: Exchanging | undefined;
  private looking: NodeJS.Timeout | undefined;
  private endWatch = (): void => undefined;

  private constructor(private readonly options: KeyingOptions) {
    const { config, state, stateFile, apply, log, native = addon } = options;
    this.config = config;
    if (!state) return;
    this.store = new InstalledAssociations({ state, native, apply, log, ...clock });
    this.sequences = new ReservedSequences(`${stateFile}.sequences`, log);
  }

  /** Opens what the config asks for. @throws ConfigError that points into the file, with nothing left open. */
  static async open(options: KeyingOptions): Promise<Keying> {
    const keying = new Keying(options);
    await keying.prepare(options.config);
    return keying;
  }

  /** Once the workers run. Static associations are in force when it resolves, and peers are being asked for keys. */
  start(): Promise<void> {
    this.endWatch = watchClockSteps((ms) => this.startOver(ms));
    return this.reload(this.config);
  }

  private startOver(ms: number): void {
    if (!this.exchanging) return;
    const seconds = Math.round(ms / 1000);
    this.options.log(`encryption: the clock was set by ${seconds} s, so all traffic keys are made anew`);
    this.exchanging.exchange.startOver();
  }

  /** Opens what another config asks for, and changes nothing yet. @throws ConfigError when it cannot be had. */
  async prepare(config: Config): Promise<void> {
    const { file, state } = this.options;
    if (config.encryption && !state) {
      const message = 'encryption cannot begin while the engine runs';
      throw hostError(file, [{ path: ['encryption'], message, remedy: 'restart weft up' }]);
    }
    const port = isRinged(config.encryption) ? config.encryption.exchangePort : undefined;
    if (this.prepared && this.prepared.port !== port) {
      this.prepared.close();
      this.prepared = undefined;
    }
    if (port === undefined || port === this.socket?.port || this.prepared) return;
    this.prepared = await ExchangeSocket.open(file, config.underlay.address, port);
  }

  /**
   * Does the difference between the config in force and this one; resolves when its static associations are in force.
   * One call after the other.
   * @throws ConfigError as `prepare`, which it does first; Error naming static associations that were not installed.
   */
  async reload(config: Config): Promise<void> {
    await this.prepare(config);
    const { store } = this;
    if (!store) return;
    this.config = config;
    const peers = exchangePeers(config);
    // First of all: what takes the place of these is then in the same list for the workers.
    if (this.exchanging) {
      const wanted = new Set(peers);
      this.serve(
        this.exchanging,
        peersOf(this.exchanging).filter((peer) => wanted.has(peer)),
      );
    }
    const installed = this.changeFixed(store, config.associations);
    this.changeExchange(store, config, peers);
    await installed;
  }

  private changeExchange(store: InstalledAssociations, config: Config, peers: readonly string[]): void {
    const { encryption } = config;
    const old = this.exchanging;
    const port = isRinged(encryption) ? encryption.exchangePort : undefined;
    if (this.socket?.port !== port) {
      this.socket?.close();
      this.socket = this.prepared;
      this.prepared = undefined;
      if (this.socket)
        this.socket.receive = (from, message) => this.exchanging?.exchange.receive(from, message);
    }
    if (!isRinged(encryption)) {
      old?.exchange.close();
      this.exchanging = undefined;
      return;
    }
    if (!old || !sameOptions(old.config, config)) {
      const heritage = old?.tenant.leave(() => old.exchange.close()) ?? new Map();
      const surroundings = {
        ...clock,
        send: (peer: string, message: Uint8Array) => this.socket?.send(peer, message),
        log: (line: string) => this.options.log(`encryption: ${line}`),
      };
      const tenant = new ExchangeTenant(store, surroundings, heritage, encryption.rotate.after * 1000);
      const { node, underlay } = config;
      const exchange = new KeyExchange(tenant, { ...encryption, node, local: underlay.address });
      this.exchanging = { exchange, tenant, config };
    } else if (!sameRing(old.config.encryption!.keys, encryption.keys)) {
      old.exchange.setRing(encryption.keys);
      this.exchanging = { ...old, config };
    }
    this.serve(this.exchanging!, peers);
  }

  private serve({ exchange, tenant }: Exchanging, peers: readonly string[]): void {
    tenant.serve(peers);
    exchange.setPeers(peers);
  }

  /** Done at once; resolves when the workers have them. */
  private async changeFixed(
    store: InstalledAssociations,
    wanted: readonly StaticAssociation[],
  ): Promise<void> {
    const places = new Map(wanted.map((association) => [placeOf(association), association]));
    const kept = new Map<string, Fixed>();
    for (const one of this.fixed) {
      const { association, handle } = one;
      const place = placeOf(association);
      const now = places.get(place);
      if (now && isSame(now, association)) kept.set(place, one);
      else {
        if (handle) store.remove(handle);
        if (association.direction === 'out') this.sequences!.end(association);
      }
    }
    const fresh = wanted
      .filter((association) => !kept.has(placeOf(association)))
      .map((association): Fixed => ({ association, handle: undefined }));
    this.fixed = [...kept.values(), ...fresh];
    this.look();
    const problems: string[] = [];
    const installing = fresh.map(async (one) => {
      const { peer, spi, direction } = one.association;
      try {
        one.handle = await store.installStatic(one.association, this.firstSequence(store, one));
      } catch (error) {
        this.fixed = this.fixed.filter((other) => other !== one);
        if (direction === 'out') this.sequences!.end(one.association);
        problems.push(`static association ${hexSpi(spi)} with ${peer}: ${(error as Error).message}`);
      }
    });
    // Before the workers hear of them, which is not in this turn of the event loop.
    this.sequences!.save();
    await Promise.all(installing);
    if (problems.length > 0) throw new Error(problems.join('\n'));
  }

  private firstSequence(store: InstalledAssociations, one: Fixed): number {
    if (one.association.direction === 'in') return 0;
    const first = this.sequences!.begin(one.association, () =>
      one.handle ? store.usage(one.handle).sequence : first,
    );
    return first;
  }

  /** Follows the sequence numbers of what sends, while there is such a thing. */
  private look(): void {
    clearInterval(this.looking);
    if (!this.fixed.some(({ association }) => association.direction === 'out')) return;
    this.looking = setInterval(() => this.sequences!.look(), LOOK_MS).unref();
  }

  /** Every association that the workers have. */
  list(): SaRow[] {
    return this.store?.rows() ?? [];
  }

  /** Peers of the exchange with which no keys are agreed yet; nothing encrypted is sent to them. */
  waiting(): string[] {
    const peers = this.exchanging?.exchange.peers ?? [];
    return peers.filter(({ session }) => session === undefined).map(({ peer }) => peer);
  }

  /** Messages of the exchange that were dropped, by reason; empty without one. */
  drops(): Readonly<Partial<Record<ExchangeDrop, number>>> {
    return this.exchanging?.exchange.drops ?? {};
  }

  /**
   * Makes traffic keys anew with one peer, or with all of the exchange.
   * @returns how many peers have new ones.
   * @throws UnknownPeer; Error when there is nothing to rotate, or naming the peers that did not answer.
   */
  async rotate(peer?: string): Promise<{ peers: number }> {
    const { exchanging, config } = this;
    if (!config.encryption) {
      throw new Error(
        'this node encrypts nothing: set "encrypted: true" in a network of its file, and encryption.keys',
      );
    }
    const peers = exchanging ? peersOf(exchanging) : [];
    if (peer === undefined ? this.fixed.length > 0 && peers.length === 0 : this.isFixed(peer)) {
      const whose = peer === undefined ? 'all associations are' : `the associations with ${peer} are`;
      throw new Error(`${whose} static: write other keys into the files of both hosts, then reload them`);
    }
    if (peer !== undefined && !peers.includes(peer)) {
      throw new UnknownPeer(
        `${peer} is no peer of an encrypted network; they are ${peers.join(', ') || 'none'}`,
      );
    }
    if (!exchanging) throw new Error('there are no keys to make traffic keys from: add encryption.keys');
    return { peers: await exchanging.exchange.rotate(peer) };
  }

  private isFixed(peer: string): boolean {
    return this.fixed.some(({ association }) => association.peer === peer);
  }

  /** Wipes every key and lets go of everything. After the workers have stopped: they could not use the keys any more. */
  close(): void {
    this.endWatch();
    clearInterval(this.looking);
    this.exchanging?.tenant.leave(() => this.exchanging?.exchange.close());
    this.exchanging = undefined;
    this.sequences?.close();
    this.store?.close();
    for (const socket of [this.socket, this.prepared]) socket?.close();
    this.socket = this.prepared = undefined;
  }
}

const peersOf = ({ exchange }: Exchanging): string[] => exchange.peers.map(({ peer }) => peer);

/** Whether there are keys to agree under. */
function isRinged(encryption: Encryption | undefined): encryption is Encryption {
  return encryption !== undefined && encryption.keys.length > 0;
}

/** VTEPs of encrypted networks that have no static association. */
function exchangePeers(config: Config): string[] {
  const networks = carriedNetworks(config).filter(({ encrypted }) => encrypted);
  const endpoints = config.endpoints.filter(({ network }) => networks.some(({ name }) => name === network));
  const fixed = new Set(config.associations.map(({ peer }) => peer));
  return remoteVteps({ ...config, networks, ingress: undefined, endpoints }).filter(
    (vtep) => !fixed.has(vtep),
  );
}

/** Whether an exchange that was made for one config serves for the other; peers and ring can be changed. */
function sameOptions(a: Config, b: Config): boolean {
  const { keys: _a, ...before } = a.encryption!;
  const { keys: _b, ...after } = b.encryption!;
  return a.node === b.node && isDeepStrictEqual(before, after);
}

function sameRing(a: readonly RingKey[], b: readonly RingKey[]): boolean {
  return (
    a.length === b.length && a.every(({ id, secret }, i) => id === b[i].id && secret.equals(b[i].secret))
  );
}

const placeOf = ({ direction, peer, spi }: StaticAssociation): string => `${direction} ${peer} ${spi}`;

/** Of two in the same place. The window of one that sends does not matter. */
function isSame(a: StaticAssociation, b: StaticAssociation): boolean {
  const window = a.direction === 'out' || a.replayWindow === b.replayWindow;
  return window && a.algorithm === b.algorithm && a.esn === b.esn && a.key.equals(b.key);
}
