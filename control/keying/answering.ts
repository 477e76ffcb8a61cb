/** The responder's half of an exchange: it installs nothing before the peer has repeated a fresh nonce of its own. */
import type { Asking } from './asking.js';
import { equal, FORGED, type Link, wipe } from './link.js';
import { type Confirm, type Init, isAuthentic } from './messages.js';
import { Ephemeral, type ExchangeKey, NONCE_BYTES, SessionSecret } from './ring.js';

/** Unfinished answers to a peer, of which it needs one; others come of repeated and recorded messages. */
const MOST_PENDING = 8;
const PENDING_MS = 30_000;

/** A reply that the peer has not confirmed. */
interface Pending {
  readonly key: ExchangeKey;
  readonly ask: Init;
  readonly init: Uint8Array;
  readonly reply: Uint8Array;
  readonly nr: Uint8Array;
  readonly spi: number;
  readonly ephemeral: Ephemeral;
  readonly since: number;
}

export class Answering {
  /** Oldest first. */
  #pending: Pending[] = [];

  /** @param first whether this side goes first when both ask. */
  constructor(
    private readonly link: Link,
    private readonly asking: Asking,
    private readonly first: boolean,
  ) {}

  forget(): void {
    this.#pending = [];
  }

  /** Forgets what is old, and what rests on keys that the ring does not have any more. */
  reconsider(): void {
    const { host, ring } = this.link.common;
    const now = host.now();
    this.#pending = this.#pending.filter(({ key, since }) => ring.has(key) && now - since < PENDING_MS);
  }

  onInit(message: Init, bytes: Uint8Array): void {
    const { link } = this;
    const { ring, asked, algorithm } = link.common;
    const same = this.#pending.find(({ init }) => equal(init, bytes));
    if (same) {
      link.send(same.reply);
      return;
    }
    const key = ring.byId(message.keyId);
    if (!key) {
      const line = `uses key ${message.keyId}, which is not in encryption.keys here; give all hosts the same keys`;
      link.drop('unknown-key', line);
      return;
    }
    if (!asked.spend()) {
      link.drop('rate');
      return;
    }
    if (!isAuthentic(bytes, key.mac)) {
      const line = `does not know the secret of key ${key.id}; compare encryption.keys of both hosts`;
      link.drop('bad-mac', line);
      return;
    }
    if (message.algorithm !== algorithm) {
      link.send(link.write(key, { kind: 'refuse', ni: message.ni, algorithm }));
      link.dropAlgorithm(message.algorithm);
      return;
    }
    if (this.first && this.asking.active) {
      link.drop('collision');
      this.asking.hurry();
      return;
    }
    this.#reply(key, message, bytes);
  }

  onConfirm(message: Confirm, bytes: Uint8Array): void {
    const { link } = this;
    const done = link.generations.current?.confirmed;
    if (done && equal(done.confirm, bytes)) {
      link.send(done.ack);
      return;
    }
    const at = this.#pending.findIndex(({ ask, nr }) => equal(ask.ni, message.ni) && equal(nr, message.nr));
    if (at < 0) {
      link.drop('stale');
      return;
    }
    const { key, ask, init, reply, nr, spi, ephemeral } = this.#pending[at];
    if (!link.common.echoed.spend()) {
      link.drop('rate');
      return;
    }
    const shared = ephemeral.shared(ask.share);
    if (!shared) {
      link.drop('bad-share', FORGED);
      return;
    }
    const secret = new SessionSecret(key.secret, shared, ask.ni, nr);
    const confirmation = secret.confirmation(init, reply);
    if (!isAuthentic(bytes, confirmation)) {
      secret.wipe();
      link.drop('bad-mac', FORGED);
      return;
    }
    const nonces = { ni: ask.ni, nr };
    const keys = link.associations(secret, key, nonces, ask.node, spi, message.spi);
    // Taken out whatever comes of it: keys are installed once. What the peer asked for before, it has given up.
    this.#pending.splice(0, at + 1);
    void link.change(async () => {
      const inbound = await link.install('in', keys.inbound).catch((error) => {
        wipe(keys.outbound);
        throw error;
      });
      const outbound = await link.install('out', keys.outbound).catch((error) => {
        link.common.host.remove(inbound);
        throw error;
      });
      this.asking.giveUp();
      const { node } = ask;
      const ack = link.write(key, { kind: 'ack', ...nonces }, confirmation);
      const confirmed = { confirm: bytes, ack };
      link.complete({ key, ring: link.common.ring, node, inbound, outbound, confirmed }, nonces);
      if (!link.closed) link.send(ack);
    });
  }

  #reply(key: ExchangeKey, ask: Init, init: Uint8Array): void {
    const { host, algorithm, node } = this.link.common;
    const nr = host.random(NONCE_BYTES);
    const ephemeral = new Ephemeral(host.privateKey?.());
    const spi = host.allocateSpi();
    const { share } = ephemeral;
    const reply = this.link.write(key, { kind: 'reply', ni: ask.ni, nr, share, spi, algorithm, node });
    if (this.#pending.length >= MOST_PENDING) this.#pending.shift();
    this.#pending.push({ key, ask, init, reply, nr, spi, ephemeral, since: host.now() });
    this.link.send(reply);
  }
}
