/** What the keying side asks of its surroundings: a clock, chance, a way to send, and the store of associations. */
import type { KeyObject } from 'node:crypto';
import type { Algorithm } from '../config.js';

/** An association to be installed. `key` and `salt` are overwritten when the promise of its installation settles. */
export interface NewAssociation {
  /** 256 to 2^32 - 1 (RFC 4303 section 2.1). */
  readonly spi: number;
  readonly algorithm: Algorithm;
  /** 16, 24 or 32 bytes. */
  readonly key: Uint8Array;
  /** 4 bytes (RFC 4106 section 4). */
  readonly salt: Uint8Array;
  /** Extended sequence numbers. */
  readonly esn: boolean;
  /** Packets of the replay window. */
  readonly window: number;
  /** Of the ring's key that both sides proved to know; for display. */
  readonly keyId: number;
  /** 16 hex digits, the same for both directions and on both hosts; for display. */
  readonly sessionId: string;
}

/** An installed association; the store adds what it wants to know about it. */
export interface AssociationHandle {
  /** VTEP, canonical. */
  readonly peer: string;
  readonly direction: 'in' | 'out';
  readonly spi: number;
}

export interface Usage {
  /** Sent or accepted. */
  readonly packets: number;
  /** Of sealed payload. */
  readonly bytes: number;
  /** Last sent or highest accepted. */
  readonly sequence: number;
}

/** The store of associations as the exchange of keys sees it. Peers are canonical texts of VTEP addresses. */
export interface AssociationStore {
  /**
   * A random SPI that no inbound association has, static ones included. Nothing is reserved by asking: it may be asked
   * again and the number never used, and `installInbound` refuses one that was taken meanwhile.
   */
  allocateSpi(): number;
  /**
   * Resolves when all workers receive with it; other inbound associations of the peer stay.
   * Rejects, with nothing installed, when there is no room or the SPI is in use.
   */
  installInbound(peer: string, association: NewAssociation): Promise<AssociationHandle>;
  /**
   * Makes it the one that sends to the peer. When it resolves all workers send with it, and the former is gone and
   * wiped: its handle means nothing any more. Rejects, with the former still sending, when there is no room.
   */
  installOutbound(peer: string, association: NewAssociation): Promise<AssociationHandle>;
  /**
   * Takes effect with the next change the workers hear of, at once; wiped as soon as no worker can use it. Of an
   * outbound association that was replaced it does nothing.
   */
  remove(handle: AssociationHandle): void;
  /** Zeros for what is gone. */
  usage(handle: AssociationHandle): Usage;
}

/** All that the exchange of keys does not do itself. */
export interface ExchangeHost extends AssociationStore {
  /** Milliseconds, never going back. */
  now(): number;
  /** Calls once after so many milliseconds, unless the returned function is called before. */
  after(ms: number, call: () => void): () => void;
  /** Unpredictable bytes, of a generator for keys. */
  random(bytes: number): Uint8Array;
  /** An X25519 key for one exchange. Left out, Node makes one; for tests that want the same again. */
  privateKey?(): KeyObject;
  /** A datagram to the peer, which may be lost, doubled or late. Never throws. */
  send(peer: string, message: Uint8Array): void;
  /** A line for people. */
  log(line: string): void;
}
