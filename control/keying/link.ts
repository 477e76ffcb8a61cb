/** What the two halves of an exchange with a peer share: writing messages, installing associations, completing a session. */
import { createHash, type KeyObject } from 'node:crypto';
import type { Ip } from '../addresses.js';
import type { Algorithm, Encryption } from '../config.js';
import { Generations, type Session } from './generations.js';
import { type Message, writeMessage } from './messages.js';
import type { Budget, ExchangeDrop, Refusals } from './refusals.js';
import type { ExchangeKey, Ring, SessionSecret } from './ring.js';
import type { AssociationHandle, ExchangeHost, NewAssociation } from './types.js';

/** A session is renewed when it has this share of its age, or up to all of it, so that not all peers do at once. */
const EARLIEST_REKEY = 0.8;

/** What is said of a message that repeats our fresh nonce and is not authentic. */
export const FORGED = 'somebody who does not know the keys answers in its name';

/** What the exchanges with all peers share. */
export interface Common {
  readonly host: ExchangeHost;
  readonly node: string;
  readonly local: Ip;
  readonly algorithm: Algorithm;
  readonly replayWindow: number;
  readonly rotate: Encryption['rotate'];
  readonly graceMs: number;
  ring: Ring;
  readonly refusals: Refusals;
  /** MACs computed for whoever asks, and for whoever repeats a fresh nonce of ours. */
  readonly asked: Budget;
  readonly echoed: Budget;
}

/** The fresh nonces of both sides. */
export interface Nonces {
  readonly ni: Uint8Array;
  readonly nr: Uint8Array;
}

type Unaddressed = {
  [K in Message['kind']]: Omit<Extract<Message, { kind: K }>, 'keyId' | 'from' | 'to'>;
}[Message['kind']];

export class Link {
  readonly generations: Generations;
  /** While associations are being installed; what the peer sends meanwhile is dropped as if lost. */
  busy = false;
  closed = false;
  readonly #waiting = new Set<(completed: boolean) => void>();

  /** @param settled called when a change is over, whatever came of it. */
  constructor(
    readonly common: Common,
    readonly peer: Ip,
    private readonly settled: () => void,
  ) {
    this.generations = new Generations(common.host, common.graceMs);
  }

  send(message: Uint8Array): void {
    this.common.host.send(this.peer.text, message);
  }

  write(key: ExchangeKey, message: Unaddressed, mac: KeyObject = key.mac): Uint8Array {
    const { bytes } = this.common.local;
    return writeMessage({ keyId: key.id, from: bytes, to: this.peer.bytes, ...message }, mac);
  }

  drop(reason: ExchangeDrop, line?: string): void {
    this.common.refusals.count(reason, this.peer.text, line);
  }

  dropAlgorithm(theirs: string): void {
    const ours = this.common.algorithm;
    this.drop('algorithm', `uses ${theirs} and this host ${ours}; give both the same encryption.algorithm`);
  }

  /**
   * The associations of a session; the secret is wiped.
   * @param node name of the peer.
   * @param inSpi under which this side receives.
   */
  associations(
    secret: SessionSecret,
    key: ExchangeKey,
    nonces: Nonces,
    node: string,
    inSpi: number,
    outSpi: number,
  ): { readonly inbound: NewAssociation; readonly outbound: NewAssociation } {
    const { algorithm, replayWindow, local } = this.common;
    const us = { node: this.common.node, address: local.bytes };
    const them = { node, address: this.peer.bytes };
    const same = {
      algorithm,
      esn: true,
      window: replayWindow,
      keyId: key.id,
      sessionId: sessionId(nonces),
    };
    const inbound = { ...same, spi: inSpi, ...secret.traffic(them, us, inSpi, algorithm) };
    const outbound = { ...same, spi: outSpi, ...secret.traffic(us, them, outSpi, algorithm) };
    secret.wipe();
    return { inbound, outbound };
  }

  /** Runs what installs associations. What it rejects with is said, and the exchange left where it is. */
  async change(work: () => Promise<void>): Promise<void> {
    this.busy = true;
    try {
      await work();
    } catch (error) {
      const { message } = error as Error;
      this.common.refusals.say(this.peer.text, 'install', `cannot install its associations: ${message}`);
    }
    this.busy = false;
    this.settled();
  }

  /** Installs once: the keys are overwritten whatever comes of it. */
  async install(direction: 'in' | 'out', association: NewAssociation): Promise<AssociationHandle> {
    const { host } = this.common;
    try {
      return direction === 'in'
        ? await host.installInbound(this.peer.text, association)
        : await host.installOutbound(this.peer.text, association);
    } finally {
      wipe(association);
    }
  }

  /** Both directions are installed. */
  complete(session: Omit<Session, 'id' | 'since' | 'rekeyAt'>, nonces: Nonces): void {
    const { host, rotate, refusals } = this.common;
    if (this.closed) {
      host.remove(session.outbound);
      host.remove(session.inbound);
      return;
    }
    const since = host.now();
    const share = EARLIEST_REKEY + ((1 - EARLIEST_REKEY) * host.random(1)[0]) / 255;
    const rekeyAt = since + rotate.after * 1000 * share;
    this.generations.advance({ ...session, id: sessionId(nonces), since, rekeyAt });
    if (refusals.forget(this.peer.text)) host.log(`${this.peer.text}: agreed on keys`);
    this.settleWaiting(true);
  }

  /** Calls once, with true when a session is completed and with false when the peer is removed before. */
  onceCompleted(call: (completed: boolean) => void): () => void {
    this.#waiting.add(call);
    return () => this.#waiting.delete(call);
  }

  settleWaiting(completed: boolean): void {
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const call of waiting) call(completed);
  }
}

/** Overwrites the keys of an association that will not be installed, or is. */
export function wipe({ key, salt }: NewAssociation): void {
  key.fill(0);
  salt.fill(0);
}

export function equal(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

/** For people, who compare it on both hosts. */
function sessionId({ ni, nr }: Nonces): string {
  return createHash('sha256').update(ni).update(nr).digest('hex').slice(0, 16);
}
