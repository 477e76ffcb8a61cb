/** The initiator's half of an exchange: it asks, and repeats itself for ever until it has an answer. */
import type { KeyObject } from 'node:crypto';
import { equal, FORGED, type Link, wipe } from './link.js';
import { type Ack, isAuthentic, type Refuse, type Reply } from './messages.js';
import { Ephemeral, type ExchangeKey, NONCE_BYTES, type Ring, SessionSecret } from './ring.js';
import type { AssociationHandle, NewAssociation } from './types.js';

/** ms until the first repetition; it doubles with each. */
const FIRST_DELAY = 50;
const LONGEST_DELAY = 5000;
/** Tries under the sending key before the others have their turn, and before a silent peer is talked about. */
const TRIES_OF_SENDING_KEY = 3;
const TRIES_UNTIL_SAID = 8;
/** Tries of a confirm before all begins anew: the peer may have restarted and know nothing of it. */
const TRIES_OF_CONFIRM = 4;
/** ms at most until the first repetition after exchanges that ended so, as on a path that is slow. */
const LONGEST_FIRST_DELAY = 1600;

/** What is known after a reply. */
interface Answer {
  readonly key: ExchangeKey;
  readonly nr: Uint8Array;
  /** Name of the peer. */
  readonly node: string;
  readonly confirmation: KeyObject;
  readonly confirm: Uint8Array;
  readonly inbound: AssociationHandle;
  readonly outbound: NewAssociation;
}

interface Attempt {
  readonly ring: Ring;
  readonly ni: Uint8Array;
  readonly ephemeral: Ephemeral;
  /** The keys under which it was asked, and the bytes. */
  readonly inits: Map<ExchangeKey, Uint8Array>;
  answer: Answer | undefined;
  tries: number;
  delay: number;
  sentAt: number;
  cancel: () => void;
}

export class Asking {
  #attempt: Attempt | undefined;
  #firstDelay = FIRST_DELAY;

  /** @param again asks once more, later. */
  constructor(
    private readonly link: Link,
    private readonly again: () => void,
  ) {}

  get active(): boolean {
    return this.#attempt !== undefined;
  }

  begin(): void {
    const { host, ring } = this.link.common;
    this.#attempt = {
      ring,
      ni: host.random(NONCE_BYTES),
      ephemeral: new Ephemeral(host.privateKey?.()),
      inits: new Map(),
      answer: undefined,
      tries: 0,
      delay: this.#firstDelay,
      sentAt: 0,
      cancel: () => {},
    };
    this.#transmit(this.#attempt);
  }

  /** The peer is there: it is asked again now and under the sending key, as if it had not been silent before. */
  hurry(): void {
    const attempt = this.#attempt;
    if (!attempt || attempt.answer) return;
    if (this.link.common.host.now() - attempt.sentAt < FIRST_DELAY) return;
    attempt.tries = 0;
    attempt.delay = this.#firstDelay;
    this.#transmit(attempt);
  }

  /** Begins anew if what is under way rests on keys that the ring does not have any more, or was asked under another ring. */
  reconsider(): void {
    const { ring } = this.link.common;
    const attempt = this.#attempt;
    if (!attempt || (attempt.answer ? ring.has(attempt.answer.key) : attempt.ring === ring)) return;
    this.giveUp();
    this.begin();
  }

  /** Ends what is under way. Not while its associations are being installed: their keys would be overwritten on the way. */
  giveUp(): void {
    const attempt = this.#attempt;
    this.#attempt = undefined;
    attempt?.cancel();
    if (!attempt?.answer) return;
    const { outbound, inbound } = attempt.answer;
    wipe(outbound);
    if (this.link.closed) this.link.common.host.remove(inbound);
    else this.link.generations.keep(inbound);
  }

  /** Says nothing more. */
  silence(): void {
    this.#attempt?.cancel();
  }

  onReply(message: Reply, bytes: Uint8Array): void {
    const { link } = this;
    const { common } = link;
    const attempt = this.#attempt;
    const key = this.#keyOf(message, bytes);
    if (!attempt || !key) return;
    if (message.algorithm !== common.algorithm) {
      link.dropAlgorithm(message.algorithm);
      return;
    }
    const shared = attempt.ephemeral.shared(message.share);
    if (!shared) {
      link.drop('bad-share', FORGED);
      return;
    }
    const { ni, nr, node } = message;
    const secret = new SessionSecret(key.secret, shared, ni, nr);
    const confirmation = secret.confirmation(attempt.inits.get(key)!, bytes);
    const spi = common.host.allocateSpi();
    const keys = link.associations(secret, key, message, node, spi, message.spi);
    void link.change(async () => {
      const inbound = await link.install('in', keys.inbound).catch((error) => {
        wipe(keys.outbound);
        throw error;
      });
      const confirm = link.write(key, { kind: 'confirm', ni, nr, spi }, confirmation);
      attempt.answer = { key, nr, node, confirmation, confirm, inbound, outbound: keys.outbound };
      if (link.closed) return this.giveUp();
      attempt.tries = 0;
      attempt.delay = this.#firstDelay;
      this.#transmit(attempt);
    });
  }

  onAck(message: Ack, bytes: Uint8Array): void {
    const { link } = this;
    const attempt = this.#attempt;
    const answer = attempt?.answer;
    if (!answer || !equal(message.ni, attempt.ni) || !equal(message.nr, answer.nr)) {
      link.drop('stale');
      return;
    }
    if (!link.common.echoed.spend()) {
      link.drop('rate');
      return;
    }
    if (!isAuthentic(bytes, answer.confirmation)) {
      link.drop('bad-mac', FORGED);
      return;
    }
    attempt.cancel();
    void link.change(async () => {
      const outbound = await link.install('out', answer.outbound).catch((error) => {
        this.giveUp();
        link.common.host.after(LONGEST_DELAY, this.again);
        throw error;
      });
      this.#attempt = undefined;
      this.#firstDelay = FIRST_DELAY;
      const { key, node, inbound } = answer;
      const { ring } = attempt;
      link.complete({ key, ring, node, inbound, outbound, confirmed: undefined }, message);
    });
  }

  onRefuse(message: Refuse, bytes: Uint8Array): void {
    if (!this.#keyOf(message, bytes)) return;
    this.#attempt!.delay = LONGEST_DELAY;
    this.link.dropAlgorithm(message.algorithm);
  }

  /** The key under which an authentic answer to what was asked last came; otherwise it is dropped. */
  #keyOf(message: Reply | Refuse, bytes: Uint8Array): ExchangeKey | undefined {
    const { link } = this;
    const attempt = this.#attempt;
    if (!attempt || attempt.answer || !equal(message.ni, attempt.ni)) {
      link.drop('stale');
      return undefined;
    }
    const key = attempt.ring.byId(message.keyId);
    if (!key || !attempt.inits.has(key)) link.drop('unknown-key');
    else if (!link.common.echoed.spend()) link.drop('rate');
    else if (!isAuthentic(bytes, key.mac)) link.drop('bad-mac', FORGED);
    else return key;
    return undefined;
  }

  #transmit(attempt: Attempt): void {
    const { host } = this.link.common;
    attempt.cancel();
    this.link.send(attempt.answer?.confirm ?? this.#init(attempt));
    attempt.tries++;
    attempt.sentAt = host.now();
    const jitter = 0.75 + host.random(1)[0] / 512;
    attempt.cancel = host.after(attempt.delay * jitter, () => this.#unanswered(attempt));
    attempt.delay = Math.min(attempt.delay * 2, LONGEST_DELAY);
  }

  /** Hosts may be one ring apart: when the sending key brings no answer, all have their turn. */
  #init(attempt: Attempt): Uint8Array {
    const { node, algorithm } = this.link.common;
    const { ring, ni, ephemeral, inits } = attempt;
    const turn = Math.max(0, attempt.tries - TRIES_OF_SENDING_KEY + 1) % ring.inOrder.length;
    const key = ring.inOrder[turn];
    const { share } = ephemeral;
    const init = inits.get(key) ?? this.link.write(key, { kind: 'init', ni, share, algorithm, node });
    inits.set(key, init);
    return init;
  }

  #unanswered(attempt: Attempt): void {
    const { link } = this;
    if (attempt.answer && attempt.tries >= TRIES_OF_CONFIRM) {
      this.#firstDelay = Math.min(this.#firstDelay * 2, LONGEST_FIRST_DELAY);
      this.giveUp();
      this.begin();
      return;
    }
    if (attempt.tries === TRIES_UNTIL_SAID) {
      const then = link.generations.current
        ? 'the keys there are stay in use'
        : 'nothing encrypted is sent to it until it does';
      link.common.refusals.say(link.peer.text, 'silent', `does not answer the exchange of keys: ${then}`);
    }
    this.#transmit(attempt);
  }
}
