/**
 * The exchange of keys of a node with all its peers: who they are, which ring is in force, when keys are made anew.
 *
 * Without sockets and without a store of its own: both are the host's (`types.ts`). How two nodes agree is in `peer.ts`.
 *
 * Not handled: hosts behind NAT, and a virtual machine that is resumed twice from one image of its running memory,
 * where even the associations in use are copied: whoever notices such a thing calls `startOver`.
 */
import { parseIp } from '../addresses.js';
import type { Algorithm, Encryption, RingKey } from '../config.js';
import type { Common } from './link.js';
import { LONGEST_NAME, readMessage } from './messages.js';
import { PeerExchange } from './peer.js';
import { Budget, type ExchangeDrop, Refusals } from './refusals.js';
import { Ring } from './ring.js';
import type { AssociationHandle, ExchangeHost } from './types.js';

/** ms an inbound association stays when another took its place. */
const GRACE_MS = 30_000;
/** ms between two looks at how old and used associations are. */
const TICK_MS = 1000;
/** MACs a second computed for messages of nobody yet known to be a peer; one, and the key of an answer, take 0.1 ms. */
const MACS_PER_SECOND = 1000;
const ROTATION_TIMEOUT_MS = 10_000;

export interface ExchangeOptions {
  /** Name of this node, at most 255 bytes. */
  readonly node: string;
  /** VTEP of this node, canonical. */
  readonly local: string;
  /** Oldest first. */
  readonly keys: readonly RingKey[];
  readonly algorithm: Algorithm;
  /** Packets. */
  readonly replayWindow: number;
  readonly rotate: Encryption['rotate'];
  readonly graceMs?: number;
}

/** What there is with a peer. */
export interface PeerState {
  /** VTEP, canonical. */
  readonly peer: string;
  /** Whether new keys are being agreed on. */
  readonly exchanging: boolean;
  /** Undefined before the first exchange is complete. */
  readonly session:
    | {
        readonly id: string;
        /** Of the ring's key it was made under. */
        readonly keyId: number;
        /** Name of the peer. */
        readonly node: string;
        readonly ageMs: number;
        readonly inbound: AssociationHandle;
        readonly outbound: AssociationHandle;
      }
    | undefined;
  /** Inbound associations of former sessions, oldest first. */
  readonly older: readonly AssociationHandle[];
}

export class KeyExchange {
  readonly #peers = new Map<string, PeerExchange>();
  readonly #common: Common;
  #cancelTick: () => void;

  /** @throws TypeError for a ring or a name that cannot be. */
  constructor(
    private readonly host: ExchangeHost,
    options: ExchangeOptions,
  ) {
    const { node, local, keys, graceMs = GRACE_MS, ...same } = options;
    if (node === '' || Buffer.byteLength(node) > LONGEST_NAME)
      throw new TypeError(`the name of a node has 1 to ${LONGEST_NAME} bytes`);
    const now = () => host.now();
    this.#common = {
      ...same,
      host,
      node,
      graceMs,
      local: parseIp(local),
      ring: new Ring(keys),
      refusals: new Refusals((line) => host.log(line)),
      asked: new Budget(MACS_PER_SECOND, now),
      echoed: new Budget(MACS_PER_SECOND, now),
    };
    this.#cancelTick = host.after(TICK_MS, () => this.#tick());
  }

  /** Messages dropped, by reason. */
  get drops(): Readonly<Record<ExchangeDrop, number>> {
    return this.#common.refusals.counts;
  }

  get peers(): readonly PeerState[] {
    const now = this.host.now();
    return [...this.#peers].map(([peer, { asking, generations }]) => {
      const { current, older } = generations;
      const session = current && {
        id: current.id,
        keyId: current.key.id,
        node: current.node,
        ageMs: now - current.since,
        inbound: current.inbound,
        outbound: current.outbound,
      };
      return { peer, exchanging: asking, session, older };
    });
  }

  /**
   * New peers are asked for keys at once; all associations with those that are gone are removed at once.
   * @param peers VTEPs, canonical, of the family of this node's own, which is none of them.
   */
  setPeers(peers: readonly string[]): void {
    const wanted = new Set(peers);
    for (const [text, exchange] of this.#peers) {
      if (wanted.has(text)) continue;
      this.#peers.delete(text);
      exchange.close();
    }
    for (const text of wanted) {
      if (this.#peers.has(text)) continue;
      const exchange = new PeerExchange(this.#common, parseIp(text));
      this.#peers.set(text, exchange);
      exchange.ask();
    }
  }

  /**
   * Sessions made under keys that are gone, or that another key has taken over from, are made anew; until each is, the
   * old one stays.
   * @param keys oldest first.
   * @throws TypeError for a ring that cannot be; the former one stays then.
   */
  setRing(keys: readonly RingKey[]): void {
    this.#common.ring = new Ring(keys);
    for (const exchange of this.#peers.values()) exchange.reconsider();
  }

  /** Takes a datagram that came to the port of the exchange, whatever it is. @param from canonical address. */
  receive(from: string, datagram: Uint8Array): void {
    const { refusals } = this.#common;
    const exchange = this.#peers.get(from);
    if (!exchange) {
      refusals.stranger(from);
      return;
    }
    const bytes = Uint8Array.prototype.slice.call(datagram);
    const message = readMessage(bytes);
    if (message === 'malformed') refusals.count('malformed', from, 'sends what is no exchange of keys');
    else if (message === 'other-version')
      refusals.count(
        'other-version',
        from,
        'speaks another version of the exchange of keys; run the same weft',
      );
    else exchange.receive(message, bytes);
  }

  /**
   * Makes traffic keys anew, with one peer or with all.
   * @returns how many peers have new associations.
   * @throws Error when it is no peer, or naming those that did not answer in time; they are still being asked.
   */
  async rotate(peer?: string, timeoutMs = ROTATION_TIMEOUT_MS): Promise<number> {
    const one = peer === undefined ? undefined : this.#peers.get(peer);
    if (peer !== undefined && !one) throw new Error(`${peer} is no peer of an encrypted network`);
    const targets = one ? [[peer!, one] as const] : [...this.#peers];
    const results = await Promise.all(
      targets.map(async ([text, exchange]) => ({ text, result: await this.#renew(exchange, timeoutMs) })),
    );
    const silent = results.filter(({ result }) => result === 'silent').map(({ text }) => text);
    if (silent.length > 0)
      throw new Error(`no answer from ${silent.join(', ')}: the keys there are stay in use`);
    return results.filter(({ result }) => result === 'new').length;
  }

  /** Removes every association at once and agrees on new ones: for when this process may have been copied while it ran. */
  startOver(): void {
    const peers = [...this.#peers.keys()];
    this.setPeers([]);
    this.setPeers(peers);
  }

  /** Removes all associations and stops. */
  close(): void {
    this.setPeers([]);
    this.#cancelTick();
  }

  #renew(exchange: PeerExchange, timeoutMs: number): Promise<'new' | 'silent' | 'gone'> {
    return new Promise((resolve) => {
      const forget = exchange.onceCompleted((completed) => {
        cancel();
        resolve(completed ? 'new' : 'gone');
      });
      const cancel = this.host.after(timeoutMs, () => {
        forget();
        resolve('silent');
      });
      exchange.ask();
    });
  }

  #tick(): void {
    for (const exchange of this.#peers.values()) exchange.reconsider();
    this.#cancelTick = this.host.after(TICK_MS, () => this.#tick());
  }
}
