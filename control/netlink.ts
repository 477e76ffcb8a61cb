/** Messages to netfilter's part of netlink (nfnetlink.h): built and taken apart. */
import { native } from '../native-bindings/index.js';

const NETLINK_NETFILTER = 12;
const REQUEST = 1;
export const ACK = 4;
export const DUMP = 0x300;
/** Length of nlmsghdr and nfgenmsg. */
export const HEADER = 20;
const TYPE_MASK = 0x3fff;
export const NESTED = 0x8000;
/** NFPROTO_ numbers (netfilter.h) by the names that nft has for them. */
const PROTOCOL_FAMILIES = { ip: 2, ip6: 10, netdev: 5 } as const;
type NetfilterFamily = keyof typeof PROTOCOL_FAMILIES;

/** Attributes of a netlink message, by type; of each type the last one. */
export function attributes(bytes: Uint8Array): Map<number, Uint8Array> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const found = new Map<number, Uint8Array>();
  for (let at = 0; at + 4 <= bytes.length; ) {
    const length = view.getUint16(at, true);
    if (length < 4 || at + length > bytes.length) break;
    found.set(view.getUint16(at + 2, true) & TYPE_MASK, bytes.subarray(at + 4, at + length));
    at += (length + 3) & ~3;
  }
  return found;
}

/** An attribute, padded. */
export function attribute(type: number, value: Uint8Array): Uint8Array {
  const bytes = new Uint8Array((4 + value.length + 3) & ~3);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, 4 + value.length, true);
  view.setUint16(2, type, true);
  bytes.set(value, 4);
  return bytes;
}

/**
 * Asks netfilter.
 * @param type subsystem in the upper byte, message in the lower.
 * @param flags ACK or DUMP.
 * @returns the messages that answer. @throws Error with `code`, the errno's name.
 */
export function askNetfilter(
  type: number,
  flags: number,
  family: NetfilterFamily,
  body: Uint8Array = new Uint8Array(0),
): Uint8Array {
  const bytes = new Uint8Array(HEADER + body.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length, true);
  view.setUint16(4, type, true);
  view.setUint16(6, REQUEST | flags, true);
  bytes[16] = PROTOCOL_FAMILIES[family];
  bytes.set(body, HEADER);
  return native.netlinkAsk(NETLINK_NETFILTER, bytes);
}

const GET_TABLE = 0xa01;
const TABLE_NAME = 1;

/** A table of nftables. */
export type Table = `${NetfilterFamily} ${string}`;

/** Whether nftables has a table. @throws Error with `code` when it cannot be asked. */
export function hasTable(table: Table): boolean {
  const [family, name] = table.split(' ') as [NetfilterFamily, string];
  try {
    askNetfilter(GET_TABLE, ACK, family, attribute(TABLE_NAME, Buffer.from(`${name}\0`)));
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}
