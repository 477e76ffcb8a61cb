/**
 * The sessions of one peer: the current one, which sends, and older inbound associations, which stay for a while so
 * that nothing in flight is lost.
 */
import type { ExchangeKey, Ring } from './ring.js';
import type { AssociationHandle, ExchangeHost } from './types.js';

/** Inbound associations of a peer, the current one among them; beyond that the oldest goes at once. */
const MOST_GENERATIONS = 8;

/** Both directions that one exchange made. */
export interface Session {
  /** 16 hex digits. */
  readonly id: string;
  readonly key: ExchangeKey;
  /** The ring for which its key was last looked at. */
  ring: Ring;
  /** Name of the peer. */
  readonly node: string;
  readonly inbound: AssociationHandle;
  readonly outbound: AssociationHandle;
  /** What completed it here, and the answer to that, for when the answer is lost; only at the responder. */
  readonly confirmed: { readonly confirm: Uint8Array; readonly ack: Uint8Array } | undefined;
  /** Of the host's clock, ms. */
  readonly since: number;
  readonly rekeyAt: number;
}

interface Old {
  readonly inbound: AssociationHandle;
  cancel: (() => void) | undefined;
}

export class Generations {
  #current: Session | undefined;
  /** Oldest first. */
  readonly #old: Old[] = [];

  constructor(
    private readonly host: ExchangeHost,
    private readonly graceMs: number,
  ) {}

  get current(): Session | undefined {
    return this.#current;
  }

  get older(): readonly AssociationHandle[] {
    return this.#old.map(({ inbound }) => inbound);
  }

  /** The session is complete and its outbound association the one that sends: all before it have their grace. */
  advance(session: Session): void {
    if (this.#current) this.keep(this.#current.inbound);
    this.#current = session;
    for (const old of this.#old) old.cancel ??= this.host.after(this.graceMs, () => this.#retire(old));
  }

  /** Of an exchange given up after the peer may have completed it: it stays until another one is complete, and its grace. */
  keep(inbound: AssociationHandle): void {
    this.#old.push({ inbound, cancel: undefined });
    if (this.#old.length >= MOST_GENERATIONS) this.#retire(this.#old[0]);
  }

  /** Removes all there is. */
  clear(): void {
    while (this.#old.length > 0) this.#retire(this.#old[0]);
    if (!this.#current) return;
    this.host.remove(this.#current.outbound);
    this.host.remove(this.#current.inbound);
    this.#current = undefined;
  }

  #retire(old: Old): void {
    old.cancel?.();
    this.#old.splice(this.#old.indexOf(old), 1);
    this.host.remove(old.inbound);
  }
}
