/**
 * The messages in which two hosts agree on traffic keys, and how they are written. All numbers are big-endian.
 *
 *     magic "WEFT" 4 | version 1 | kind 1 | length of all 2 | key id 4 | IP version 1 | from 4 or 16 | to likewise |
 *     the fields of the kind | HMAC-SHA256 of all before, 32
 *
 * `init`, `reply` and `refuse` are authenticated under a key of the ring; `confirm` and `ack` under one of the session,
 * which only who knows the ring's key and made one of the two shares has, and which depends on every byte of `init`
 * and `reply`.
 */
import { createHmac, type KeyObject, timingSafeEqual } from 'node:crypto';
import { NONCE_BYTES, SHARE_BYTES } from './ring.js';

const MAGIC = Buffer.from('WEFT');
const VERSION = 1;
const MAC_BYTES = 32;
const SHORTEST = 12 + 1 + 8 + NONCE_BYTES + MAC_BYTES;
/** Bytes; more than the longest there can be, less than any path's MTU. */
export const LONGEST_MESSAGE = 1024;
/** Bytes of a node's name. */
export const LONGEST_NAME = 255;
/** Lower ones are reserved (RFC 4303 section 2.1). */
const LOWEST_SPI = 256;

interface Fields {
  /** Fresh nonces of the initiator and of the responder. */
  readonly ni: Uint8Array;
  readonly nr: Uint8Array;
  /** Of the sender, for X25519. */
  readonly share: Uint8Array;
  /** Under which the sender receives. */
  readonly spi: number;
  /** Which the sender is configured to use; any name of lower-case letters, digits and hyphens. */
  readonly algorithm: string;
  /** Of the sender. */
  readonly node: string;
}

/** In the order of their numbers, from 1. */
const LAYOUTS = {
  init: ['ni', 'share', 'algorithm', 'node'],
  reply: ['ni', 'nr', 'share', 'spi', 'algorithm', 'node'],
  confirm: ['ni', 'nr', 'spi'],
  ack: ['ni', 'nr'],
  /** Instead of a reply, from who uses another algorithm. */
  refuse: ['ni', 'algorithm'],
} as const satisfies Record<string, readonly (keyof Fields)[]>;

type Kind = keyof typeof LAYOUTS;
const KINDS = Object.keys(LAYOUTS) as readonly Kind[];

interface Envelope {
  readonly keyId: number;
  /** VTEPs, 4 or 16 bytes, both of one family. */
  readonly from: Uint8Array;
  readonly to: Uint8Array;
}

type Of<K extends Kind> = Envelope & { readonly kind: K } & Pick<Fields, (typeof LAYOUTS)[K][number]>;
export type Message = { [K in Kind]: Of<K> }[Kind];
export type Init = Of<'init'>;
export type Reply = Of<'reply'>;
export type Confirm = Of<'confirm'>;
export type Ack = Of<'ack'>;
export type Refuse = Of<'refuse'>;

/** The bytes of a message, authenticated. */
export function writeMessage(message: Message, key: KeyObject): Uint8Array {
  const { kind, keyId, from, to } = message;
  const head = Buffer.alloc(13);
  MAGIC.copy(head);
  head[4] = VERSION;
  head[5] = KINDS.indexOf(kind) + 1;
  head.writeUInt32BE(keyId, 8);
  head[12] = from.length === 4 ? 4 : 6;
  const values: Partial<Fields> = message;
  const fields = LAYOUTS[kind].map((name) => writeField(values[name]!));
  const body = Buffer.concat([head, from, to, ...fields]);
  body.writeUInt16BE(body.length + MAC_BYTES, 6);
  return Buffer.concat([body, macOf(body, key)]);
}

/**
 * Reads what somebody sent, whatever it is. Whether it is authentic is another question.
 * @returns a message that keeps no reference to `bytes`, or why there is none.
 */
export function readMessage(bytes: Uint8Array): Message | 'malformed' | 'other-version' {
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.length < SHORTEST || view.length > LONGEST_MESSAGE || !view.subarray(0, 4).equals(MAGIC))
    return 'malformed';
  if (view[4] !== VERSION) return 'other-version';
  const kind = KINDS[view[5] - 1];
  if (kind === undefined || view.readUInt16BE(6) !== view.length) return 'malformed';
  const reader = new Reader(view.subarray(12, -MAC_BYTES));
  const size = { 4: 4, 6: 16 }[reader.take(1)[0]] ?? Number.NaN;
  const fields: Record<string, unknown> = { from: reader.take(size), to: reader.take(size) };
  for (const name of LAYOUTS[kind]) fields[name] = readField(name, reader);
  if (!reader.finished || Object.values(fields).includes(undefined)) return 'malformed';
  return { kind, keyId: view.readUInt32BE(8), ...fields } as unknown as Message;
}

/** Whether who wrote a message, which `readMessage` took, had this key. */
export function isAuthentic(bytes: Uint8Array, key: KeyObject): boolean {
  const end = bytes.length - MAC_BYTES;
  return timingSafeEqual(bytes.subarray(end), macOf(bytes.subarray(0, end), key));
}

function macOf(bytes: Uint8Array, key: KeyObject): Uint8Array {
  return createHmac('sha256', key).update(bytes).digest();
}

function writeField(value: Uint8Array | number | string): Uint8Array {
  if (typeof value === 'object') return value;
  if (typeof value === 'string')
    return Buffer.concat([Uint8Array.of(Buffer.byteLength(value)), Buffer.from(value)]);
  const number = Buffer.alloc(4);
  number.writeUInt32BE(value);
  return number;
}

/** Undefined for a value that the field cannot have; what is missing is noticed by the reader. */
function readField(name: keyof Fields, reader: Reader): Uint8Array | number | string | undefined {
  if (name === 'ni' || name === 'nr') return reader.take(NONCE_BYTES);
  if (name === 'share') return reader.take(SHARE_BYTES);
  if (name === 'spi') {
    const spi = Buffer.concat([reader.take(4), Buffer.alloc(4)]).readUInt32BE();
    return spi >= LOWEST_SPI ? spi : undefined;
  }
  const bytes = reader.take(reader.take(1)[0] ?? Number.NaN);
  const value = Buffer.from(bytes).toString();
  const allowed = name === 'algorithm' ? /^[a-z0-9-]{1,32}$/ : /^\P{C}+$/u;
  // Bytes that are not UTF-8 come out as other ones, and two names must not become one.
  return allowed.test(value) && Buffer.from(value).equals(bytes) ? value : undefined;
}

/** Copies from the front of bytes; past their end it gives nothing, and is never finished. */
class Reader {
  #next = 0;
  #short = false;

  constructor(private readonly bytes: Uint8Array) {}

  /** NaN counts as more than there is. */
  take(length: number): Uint8Array {
    if (this.#short || !(length <= this.bytes.length - this.#next)) {
      this.#short = true;
      return new Uint8Array(0);
    }
    this.#next += length;
    return Uint8Array.prototype.slice.call(this.bytes, this.#next - length, this.#next);
  }

  get finished(): boolean {
    return !this.#short && this.#next === this.bytes.length;
  }
}
