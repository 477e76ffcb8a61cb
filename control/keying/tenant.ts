/**
 * The store of associations, a socket and a clock as one exchange of keys uses them. When an exchange with other
 * options takes its place, its associations stay until the new one has agreed with their peer, so that nothing is
 * lost in between; what was under way in the old one changes nothing any more.
 */
import { webcrypto } from 'node:crypto';
import type { AssociationHandle, AssociationStore, ExchangeHost, NewAssociation, Usage } from './types.js';

/** ms that inherited associations stay when the peer has new ones: what is in flight arrives within them. */
const GRACE_MS = 30_000;

export interface Surroundings {
  now(): number;
  after(ms: number, call: () => void): () => void;
  send(peer: string, message: Uint8Array): void;
  log(line: string): void;
}

/** Associations that are left to the next exchange, by peer. */
type Heritage = Map<string, AssociationHandle[]>;

export class ExchangeTenant implements ExchangeHost {
  private peers: ReadonlySet<string> = new Set();
  private state: 'living' | 'leaving' | 'gone' = 'living';

  /**
   * @param heritage of the exchange before.
   * @param longestMs after which it goes, whatever the peers do.
   */
  constructor(
    private readonly store: AssociationStore,
    private readonly surroundings: Surroundings,
    private readonly heritage: Heritage,
    longestMs: number,
  ) {
    if (heritage.size > 0) surroundings.after(longestMs, () => this.keepOnly(new Set()));
  }

  /** Only with these may associations be made; what was inherited of others goes at once. */
  serve(peers: readonly string[]): void {
    this.peers = new Set(peers);
    this.keepOnly(this.peers);
  }

  /** Ends the exchange. @param end removes all its associations. @returns those that the next one is to have. */
  leave(end: () => void): Heritage {
    this.state = 'leaving';
    end();
    this.state = 'gone';
    const left = new Map(this.heritage);
    this.heritage.clear();
    return left;
  }

  now(): number {
    return this.surroundings.now();
  }

  after(ms: number, call: () => void): () => void {
    return this.surroundings.after(ms, call);
  }

  random(bytes: number): Uint8Array {
    return webcrypto.getRandomValues(new Uint8Array(bytes));
  }

  send(peer: string, message: Uint8Array): void {
    this.surroundings.send(peer, message);
  }

  log(line: string): void {
    if (this.state === 'living') this.surroundings.log(line);
  }

  allocateSpi(): number {
    return this.store.allocateSpi();
  }

  async installInbound(peer: string, association: NewAssociation): Promise<AssociationHandle> {
    this.check(peer);
    return this.store.installInbound(peer, association);
  }

  async installOutbound(peer: string, association: NewAssociation): Promise<AssociationHandle> {
    this.check(peer);
    const handle = await this.store.installOutbound(peer, association);
    const former = this.heritage.get(peer);
    if (former) this.after(GRACE_MS, () => this.drop(peer));
    return handle;
  }

  remove(handle: AssociationHandle): void {
    const left = this.heritage.get(handle.peer);
    if (this.state !== 'leaving') this.store.remove(handle);
    else if (left) left.push(handle);
    else this.heritage.set(handle.peer, [handle]);
  }

  usage(handle: AssociationHandle): Usage {
    return this.store.usage(handle);
  }

  /** What an exchange began before its peer was taken away must not end in associations. */
  private check(peer: string): void {
    if (this.state !== 'living' || !this.peers.has(peer))
      throw new Error(`${peer} is no peer of the exchange any more`);
  }

  private keepOnly(peers: ReadonlySet<string>): void {
    for (const peer of [...this.heritage.keys()]) if (!peers.has(peer)) this.drop(peer);
  }

  private drop(peer: string): void {
    for (const handle of this.heritage.get(peer) ?? []) this.store.remove(handle);
    this.heritage.delete(peer);
  }
}
