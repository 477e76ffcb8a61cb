/** Nodes that exchange keys over a simulated network in virtual time, and all that they ever sent and installed. */
import { createHash, createHmac, createPrivateKey, type KeyObject } from 'node:crypto';
import { type ExchangeOptions, KeyExchange } from '../../../control/keying/exchange.js';
import type {
  AssociationHandle,
  ExchangeHost,
  NewAssociation,
  Usage,
} from '../../../control/keying/types.js';
import { Secret } from '../../../control/secret.js';

/** What the network does to a datagram between two nodes. Shares are 0 to 1. */
export interface Weather {
  readonly loss: number;
  readonly twice: number;
  /** ms, of each copy on its own, so that they overtake each other. */
  readonly delay: readonly [number, number];
  /** ms that the store takes. */
  readonly install: readonly [number, number];
  /** Installations that fail. */
  readonly failure: number;
}

export const CALM: Weather = { loss: 0, twice: 0, delay: [1, 1], install: [1, 1], failure: 0 };

export interface Sent {
  readonly from: string;
  readonly to: string;
  readonly bytes: Uint8Array;
}

export interface Installed {
  /** Which start of which node. */
  readonly boot: string;
  readonly peer: string;
  readonly direction: 'in' | 'out';
  readonly spi: number;
  /** Key and salt, hex. */
  readonly key: string;
  readonly keyId: number;
  readonly sessionId: string;
}

export interface Traffic {
  readonly sent: number;
  /** Arrived where nothing could read them, or could not be sent. */
  readonly lost: number;
  /** Keys used. */
  readonly generations: ReadonlySet<string>;
}

interface Event {
  readonly at: number;
  readonly order: number;
  call(): void;
}

/** The secret with this number, the same everywhere. */
export function secret(number: number): Secret {
  return new Secret(createHash('sha256').update(`secret ${number}`).digest('hex'));
}

export function ringOf(...ids: readonly number[]): { id: number; secret: Secret }[] {
  return ids.map((id) => ({ id, secret: secret(id) }));
}

export function address(number: number): string {
  return `192.0.2.${number}`;
}

export class Network {
  now = 0;
  weather = CALM;
  readonly nodes = new Map<string, Node>();
  readonly sent: Sent[] = [];
  readonly installed: Installed[] = [];
  /** Keys and salts as they were given, which are to be overwritten. */
  readonly given: Uint8Array[] = [];
  readonly log: string[] = [];
  /** Whether a datagram gets through; a partition, or a test that looks at each. */
  passes: (datagram: Sent) => boolean = () => true;
  readonly #random: () => number;
  #events: Event[] = [];
  #order = 0;

  constructor(readonly seed: number = 1) {
    const words = stream(`network ${seed}`, 4);
    this.#random = () => Buffer.from(words()).readUInt32BE() / 2 ** 32;
  }

  /** Between the two, as the weather has it. */
  between([low, high]: readonly [number, number]): number {
    return low + this.#random() * (high - low);
  }

  chance(share: number): boolean {
    return this.#random() < share;
  }

  /** A node with a ring of key 1, not started. */
  node(number: number, options: Partial<ExchangeOptions> = {}): Node {
    const node = new Node(this, address(number), options);
    this.nodes.set(node.address, node);
    return node;
  }

  after(ms: number, call: () => void): () => void {
    const event = { at: this.now + ms, order: this.#order++, call };
    this.#events.push(event);
    return () => {
      this.#events = this.#events.filter((other) => other !== event);
    };
  }

  send(datagram: Sent): void {
    this.sent.push(datagram);
    const copies = this.chance(this.weather.twice) ? 2 : 1;
    for (let k = 0; k < copies; k++) {
      if (!this.passes(datagram) || this.chance(this.weather.loss)) continue;
      this.after(this.between(this.weather.delay), () => this.deliver(datagram));
    }
  }

  deliver({ from, to, bytes }: Sent): void {
    this.nodes.get(to)?.exchange?.receive(from, bytes);
  }

  /** Lets virtual time go on. */
  async run(ms: number): Promise<void> {
    const until = this.now + ms;
    for (;;) {
      await rest();
      const next = this.#events.reduce<Event | undefined>(
        (first, event) =>
          !first || event.at < first.at || (event.at === first.at && event.order < first.order)
            ? event
            : first,
        undefined,
      );
      if (!next || next.at > until) break;
      this.#events.splice(this.#events.indexOf(next), 1);
      this.now = next.at;
      next.call();
    }
    this.now = until;
  }

  /**
   * Packets between two nodes, one each so many ms in either direction, which the network delays and never loses.
   */
  traffic(a: Node, b: Node, everyMs: number): Traffic {
    const traffic = { sent: 0, lost: 0, generations: new Set<string>() };
    const send = (from: Node, to: Node): void => {
      const used = from.outbound.get(to.address);
      if (!used) {
        traffic.lost++;
        return;
      }
      traffic.sent++;
      traffic.generations.add(used.key);
      this.after(this.between(this.weather.delay), () => {
        if (to.inbound.get(used.spi)?.key !== used.key) traffic.lost++;
      });
    };
    const tick = (): void => {
      send(a, b);
      send(b, a);
      this.after(everyMs, tick);
    };
    tick();
    return traffic;
  }

  /** What is wrong between the nodes that run, all of which have one another as peers; empty when they agree. */
  disagreements(): string[] {
    const running = [...this.nodes.values()].filter(({ exchange }) => exchange);
    return running.flatMap((a) => running.filter((b) => a !== b).flatMap((b) => a.disagreements(b)));
  }
}

/** One host. What it installs is kept as text, since keys are overwritten. */
export class Node {
  exchange: KeyExchange | undefined;
  inbound = new Map<number, Installed>();
  outbound = new Map<string, Installed>();
  /** Of handles, for tests that pretend traffic. */
  readonly usage = new Map<AssociationHandle, Usage>();
  #boots = 0;
  /** Belongs to the start that is not over. */
  #alive: object | undefined;

  constructor(
    readonly network: Network,
    readonly address: string,
    readonly options: Partial<ExchangeOptions>,
  ) {}

  /** @param seed of all its chance; left out, every start has its own. */
  start(peers: readonly Node[], seed = `${this.network.seed} ${this.address} ${this.#boots}`): KeyExchange {
    const boot = `${this.address} boot ${this.#boots++}`;
    this.exchange = new KeyExchange(this.#host(boot, seed), {
      node: `node-${this.address}`,
      local: this.address,
      keys: ringOf(1),
      algorithm: 'aes-128-gcm-16',
      replayWindow: 1024,
      rotate: { after: 43_200, packets: 2 ** 32, bytes: 2 ** 40 },
      ...this.options,
    });
    this.exchange.setPeers(peers.map((peer) => peer.address));
    return this.exchange;
  }

  /** All it knows is gone, and its timers. */
  crash(): void {
    this.exchange = undefined;
    this.inbound = new Map();
    this.outbound = new Map();
    this.#alive = undefined;
  }

  /** What keeps traffic of this node from being read by another, and the peers' ideas of their session apart. */
  disagreements(other: Node): string[] {
    const what = `${this.address} to ${other.address}`;
    const out = this.outbound.get(other.address);
    if (!out) return [`${what}: nothing to send with`];
    const received = other.inbound.get(out.spi);
    if (received?.key !== out.key || received.peer !== this.address) return [`${what}: would not be read`];
    const current = other.exchange!.peers.find(({ peer }) => peer === this.address)?.session;
    return current?.id === out.sessionId ? [] : [`${what}: sends under a session that is not the other's`];
  }

  #host(boot: string, seed: string): ExchangeHost {
    const { network } = this;
    const random = stream(seed, 32);
    const handles = new Map<AssociationHandle, Installed>();
    this.#alive = handles;
    const alive = (): boolean => this.#alive === handles;
    const install = async (
      peer: string,
      direction: 'in' | 'out',
      association: NewAssociation,
    ): Promise<AssociationHandle> => {
      const { spi, keyId, sessionId } = association;
      network.given.push(association.key, association.salt);
      const key = Buffer.concat([association.key, association.salt]).toString('hex');
      await new Promise<void>((resolve) => {
        network.after(network.between(network.weather.install), resolve);
      });
      if (network.chance(network.weather.failure)) throw new Error('no room');
      if (direction === 'in' && this.inbound.has(spi)) throw new Error('the SPI is in use');
      const installed = { boot, peer, direction, spi, key, keyId, sessionId };
      network.installed.push(installed);
      const handle = { peer, direction, spi };
      if (!alive()) return handle;
      handles.set(handle, installed);
      if (direction === 'in') this.inbound.set(spi, installed);
      else this.outbound.set(peer, installed);
      return handle;
    };
    return {
      now: () => network.now,
      after: (ms, call) => network.after(ms, () => alive() && call()),
      random: (bytes) => Uint8Array.prototype.slice.call(random(), 0, bytes),
      privateKey: () => privateKey(random()),
      send: (to, bytes) => network.send({ from: this.address, to, bytes }),
      allocateSpi: () => 256 + (Buffer.from(random()).readUInt32BE() % 0xffff_0000),
      installInbound: (peer, association) => install(peer, 'in', association),
      installOutbound: (peer, association) => install(peer, 'out', association),
      remove: (handle) => {
        const installed = handles.get(handle);
        handles.delete(handle);
        if (!installed || !alive()) return;
        if (this.inbound.get(installed.spi) === installed) this.inbound.delete(installed.spi);
        if (this.outbound.get(installed.peer) === installed) this.outbound.delete(installed.peer);
      },
      usage: (handle) => this.usage.get(handle) ?? { packets: 0, bytes: 0, sequence: 0 },
      log: (line) => network.log.push(line),
    };
  }
}

/** Starts nodes that all know one another. */
export function startAll(nodes: readonly Node[]): void {
  for (const node of nodes) node.start(nodes.filter((other) => other !== node));
}

/** Lets everything run that waits for no time to pass. */
async function rest(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}

/** The X25519 key of these 32 bytes (RFC 8410 section 7). */
export function privateKey(bytes: Uint8Array): KeyObject {
  const key = Buffer.concat([Buffer.from('302e020100300506032b656e04220420', 'hex'), bytes]);
  return createPrivateKey({ key, format: 'der', type: 'pkcs8' });
}

/** Bytes that look random and come out the same for the same seed. */
function stream(seed: string, length: number): () => Uint8Array {
  let count = 0;
  return () => createHmac('sha256', seed).update(`${count++}`).digest().subarray(0, length);
}
