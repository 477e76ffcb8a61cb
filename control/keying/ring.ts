/**
 * The ring of secrets that hosts share, and what is derived from it (HKDF-SHA256, RFC 5869). The secrets themselves
 * encrypt nothing: they prove who is asked for traffic keys, and the traffic keys of a session depend on fresh nonces
 * and on an ephemeral X25519 secret (RFC 7748) of both sides. A secret that leaks later opens nothing recorded before.
 */
import {
  createHash,
  createPublicKey,
  createSecretKey,
  diffieHellman,
  generateKeyPairSync,
  hkdfSync,
  type KeyObject,
} from 'node:crypto';
import { type Algorithm, algorithmSizes, type RingKey } from '../config.js';
import type { Secret } from '../secret.js';

export const NONCE_BYTES = 32;
export const SHARE_BYTES = 32;
const SECRET_BYTES = 32;
const SALT_BYTES = 4;
const MOST_KEYS = 3;
const NOTHING = new Uint8Array(0);

/** A key of the ring with what authenticates messages under it. */
export interface ExchangeKey extends RingKey {
  readonly mac: KeyObject;
}

/** The keys of a node's file. All of them are accepted; the middle one, which every host has by now, is used. */
export class Ring {
  readonly sending: ExchangeKey;
  /** The sending key, then the others, newest first. */
  readonly inOrder: readonly ExchangeKey[];

  /**
   * @param keys oldest first.
   * @throws TypeError unless there are 1 to 3, with different ids and 32 bytes each.
   */
  constructor(keys: readonly RingKey[]) {
    if (keys.length < 1 || keys.length > MOST_KEYS) throw new TypeError('a ring has 1 to 3 keys');
    if (new Set(keys.map(({ id }) => id)).size < keys.length)
      throw new TypeError('two keys of a ring have the same id');
    const ready = keys.map(({ id, secret }) => ({ id, secret, mac: exchangeMac(secret) }));
    const [sending] = ready.splice(Math.floor((ready.length - 1) / 2), 1);
    this.sending = sending;
    this.inOrder = [sending, ...ready.reverse()];
  }

  byId(id: number): ExchangeKey | undefined {
    return this.inOrder.find((key) => key.id === id);
  }

  /** Whether the ring has this id with this secret. */
  has(key: RingKey): boolean {
    return this.byId(key.id)?.secret.equals(key.secret) ?? false;
  }
}

/** The fresh half of an X25519 agreement. Its private key never leaves OpenSSL. */
export class Ephemeral {
  /** What the other side gets, 32 bytes. */
  readonly share: Uint8Array;

  /** @param privateKey given by tests alone. */
  constructor(private readonly privateKey: KeyObject = generateKeyPairSync('x25519').privateKey) {
    this.share = Uint8Array.from(
      Buffer.from(createPublicKey(privateKey).export({ format: 'jwk' }).x!, 'base64url'),
    );
  }

  /** The secret shared with whoever has the other half; undefined for a share that would make it zero (RFC 7748, 6.1). */
  shared(share: Uint8Array): Uint8Array | undefined {
    const { privateKey } = this;
    const key = { kty: 'OKP', crv: 'X25519', x: Buffer.from(share).toString('base64url') };
    try {
      const shared = diffieHellman({ privateKey, publicKey: createPublicKey({ key, format: 'jwk' }) });
      return shared.some((byte) => byte !== 0) ? shared : undefined;
    } catch {
      // OpenSSL refuses such a share itself, with an exception.
      return undefined;
    }
  }
}

/** One end of a direction. */
export interface End {
  readonly node: string;
  /** VTEP, 4 or 16 bytes. */
  readonly address: Uint8Array;
}

/** What the keys of a session are derived from. To be wiped as soon as they are. */
export class SessionSecret {
  readonly #material: Uint8Array;
  readonly #salt: Uint8Array;

  /** @param shared of the ephemeral agreement; overwritten. */
  constructor(secret: Secret, shared: Uint8Array, ni: Uint8Array, nr: Uint8Array) {
    const ring = secret.bytes();
    this.#material = Buffer.concat([ring, shared]);
    this.#salt = Buffer.concat([ni, nr]);
    ring.fill(0);
    shared.fill(0);
  }

  /** Authenticates the second half of an exchange, whose first half was these two messages, byte for byte. */
  confirmation(init: Uint8Array, reply: Uint8Array): KeyObject {
    const heard = createHash('sha256').update(init).update(reply).digest();
    return secretKey(derive(this.#material, this.#salt, [text('weft exchange confirm'), heard], 32));
  }

  /** Key and salt of one direction (RFC 4106 section 8.1). */
  traffic(
    sender: End,
    receiver: End,
    spi: number,
    algorithm: Algorithm,
  ): { key: Uint8Array; salt: Uint8Array } {
    const size = algorithmSizes(algorithm).key;
    const ends = [sender, receiver].flatMap(({ node, address }) => [text(node), address]);
    const number = Buffer.alloc(4);
    number.writeUInt32BE(spi);
    const info = [text('weft esp'), ...ends, number, text(algorithm)];
    const bytes = derive(this.#material, this.#salt, info, size + SALT_BYTES);
    const parts = { key: bytes.slice(0, size), salt: bytes.slice(size) };
    bytes.fill(0);
    return parts;
  }

  wipe(): void {
    this.#material.fill(0);
  }
}

function exchangeMac(secret: Secret): KeyObject {
  if (secret.length !== SECRET_BYTES) throw new TypeError('a secret of the ring has 32 bytes');
  const material = secret.bytes();
  const key = secretKey(derive(material, NOTHING, [text('weft exchange mac')], 32));
  material.fill(0);
  return key;
}

/** HKDF whose info is a list: each part with its length before it, so that no two lists are the same bytes. */
function derive(
  material: Uint8Array,
  salt: Uint8Array,
  info: readonly Uint8Array[],
  length: number,
): Uint8Array {
  const parts = info.flatMap((part) => [Uint8Array.of(part.length), part]);
  return new Uint8Array(hkdfSync('sha256', material, salt, Buffer.concat(parts), length));
}

function secretKey(bytes: Uint8Array): KeyObject {
  const key = createSecretKey(bytes);
  bytes.fill(0);
  return key;
}

function text(value: string): Uint8Array {
  return Buffer.from(value);
}
