/**
 * The exchange of keys with one peer: either side asks, and both end with the same two associations.
 *
 *     init     ->   nonce, share
 *              <-   reply     nonce, share, SPI. The responder has installed nothing.
 *     confirm  ->   SPI. The initiator receives with the new association already.
 *              <-   ack       The responder receives and sends with the new ones. Now the initiator sends too.
 *
 * Every message repeats the fresh nonces that are known, so what was recorded earlier, here or before a restart of
 * either side, makes nobody install anything. Who asks repeats itself until it is answered, for ever; what is repeated
 * is answered with the same bytes as the first time.
 *
 * When both ask at the same time, the one with the lower address goes first: it answers nothing while it asks, and
 * forgets what it answered before; the other answers even so. The sessions of the lower side are therefore in one
 * order, and completing one of them ends what the other side asks for itself.
 */
import type { Ip } from '../addresses.js';
import { Answering } from './answering.js';
import { Asking } from './asking.js';
import type { Generations } from './generations.js';
import { type Common, equal, Link } from './link.js';
import type { Message } from './messages.js';

export class PeerExchange {
  readonly #link: Link;
  /** Whether this side goes first when both ask. */
  readonly #first: boolean;
  readonly #asking: Asking;
  readonly #answering: Answering;
  #wanted = false;

  constructor(common: Common, peer: Ip) {
    this.#link = new Link(common, peer, () => this.#settled());
    this.#first = Buffer.compare(common.local.bytes, peer.bytes) < 0;
    this.#asking = new Asking(this.#link, () => this.ask());
    this.#answering = new Answering(this.#link, this.#asking, this.#first);
  }

  get asking(): boolean {
    return this.#asking.active;
  }

  get generations(): Generations {
    return this.#link.generations;
  }

  /** Asks for a new session, unless that is under way. */
  ask(): void {
    if (this.#link.closed) return;
    if (this.#asking.active) this.#asking.hurry();
    else if (this.#link.busy) this.#wanted = true;
    else this.#begin();
  }

  /** Calls once, with true when a session is completed and with false when the peer is removed before. */
  onceCompleted(call: (completed: boolean) => void): () => void {
    return this.#link.onceCompleted(call);
  }

  /** Does what the ring, the age and the use of the session ask for. Called from time to time and after changes. */
  reconsider(): void {
    if (this.#link.busy || this.#link.closed) return;
    this.#answering.reconsider();
    if (this.#asking.active) this.#asking.reconsider();
    else if (this.#outlived()) this.#begin();
  }

  /** Removes all associations with the peer at once; one that is being installed, as soon as it is. */
  close(): void {
    const link = this.#link;
    link.closed = true;
    this.#asking.silence();
    if (!link.busy) this.#asking.giveUp();
    this.#answering.forget();
    link.generations.clear();
    link.common.refusals.forget(link.peer.text);
    link.settleWaiting(false);
  }

  /** @param bytes of the message, which are kept and must not change. */
  receive(message: Message, bytes: Uint8Array): void {
    const link = this.#link;
    if (!equal(message.from, link.peer.bytes) || !equal(message.to, link.common.local.bytes)) {
      link.drop('wrong-address', 'its messages name other addresses than they travel between');
      return;
    }
    if (link.busy) {
      link.drop('busy');
      return;
    }
    if (message.kind === 'init') this.#answering.onInit(message, bytes);
    else if (message.kind === 'confirm') this.#answering.onConfirm(message, bytes);
    else if (message.kind === 'reply') this.#asking.onReply(message, bytes);
    else if (message.kind === 'ack') this.#asking.onAck(message, bytes);
    else this.#asking.onRefuse(message, bytes);
  }

  #begin(): void {
    if (this.#first) this.#answering.forget();
    this.#asking.begin();
  }

  #outlived(): boolean {
    const { host, ring, rotate } = this.#link.common;
    const session = this.#link.generations.current;
    if (!session) return false;
    const seen = session.ring;
    session.ring = ring;
    if (!ring.has(session.key) || host.now() >= session.rekeyAt) return true;
    // Under a ring that did not change any key will do: the peer may not know the one that sends here yet.
    if (seen !== ring && session.key.id !== ring.sending.id) return true;
    return [session.inbound, session.outbound].some((handle) => {
      const { packets, bytes, sequence } = host.usage(handle);
      return Math.max(packets, sequence) >= rotate.packets || bytes >= rotate.bytes;
    });
  }

  #settled(): void {
    if (this.#link.closed) {
      this.#asking.giveUp();
      return;
    }
    this.reconsider();
    if (!this.#wanted) return;
    this.#wanted = false;
    this.ask();
  }
}
