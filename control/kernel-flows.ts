/**
 * The connections that the host's kernel tracks (nfnetlink_conntrack.h), as far as they must end: those of published
 * ports that are taken back.
 */
import { native } from '../native-bindings/index.js';

const NETLINK_NETFILTER = 12;
const GET = 0x101;
const DELETE = 0x102;
const REQUEST = 1;
const ACK = 4;
const DUMP = 0x300;
/** Length of nlmsghdr and nfgenmsg. */
const HEADER = 20;
const TYPE_MASK = 0x3fff;
const TUPLE_ORIGINAL = 1;
const TUPLE_REPLY = 2;
const TUPLE_IP = 1;
const TUPLE_PROTOCOL = 2;
const AF_INET = 2;
const AF_INET6 = 10;

interface Tuple {
  readonly protocol: number;
  /** Address bytes in hex, for comparison. */
  readonly source: string;
  readonly destination: string;
  readonly sourcePort: number;
  readonly destinationPort: number;
}

export interface KernelFlow {
  readonly original: Tuple;
  readonly reply: Tuple;
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

/** Attributes of a netlink message, by type; of each type the last one. */
function attributes(bytes: Uint8Array): Map<number, Uint8Array> {
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

function tupleOf(bytes: Uint8Array | undefined): Tuple | undefined {
  const parts = attributes(bytes ?? new Uint8Array(0));
  const ip = attributes(parts.get(TUPLE_IP) ?? new Uint8Array(0));
  const transport = attributes(parts.get(TUPLE_PROTOCOL) ?? new Uint8Array(0));
  const source = ip.get(1) ?? ip.get(3);
  const destination = ip.get(2) ?? ip.get(4);
  const protocol = transport.get(1)?.[0];
  if (source === undefined || destination === undefined || protocol === undefined) return undefined;
  const port = (type: number): number => {
    const value = transport.get(type);
    return value === undefined ? 0 : (value[0] << 8) | value[1];
  };
  return {
    protocol,
    source: hex(source),
    destination: hex(destination),
    sourcePort: port(2),
    destinationPort: port(3),
  };
}

function message(type: number, flags: number, family: number, body: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(HEADER + body.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length, true);
  view.setUint16(4, type, true);
  view.setUint16(6, flags, true);
  bytes[16] = family;
  bytes.set(body, HEADER);
  return bytes;
}

/** The attribute of an original tuple, as DELETE wants it. */
function tupleAttribute(tuple: Uint8Array): Uint8Array {
  const bytes = new Uint8Array((4 + tuple.length + 3) & ~3);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, 4 + tuple.length, true);
  view.setUint16(2, TUPLE_ORIGINAL | 0x8000, true);
  bytes.set(tuple, 4);
  return bytes;
}

/**
 * Ends the tracked flows of a family that `match` says yes to. Returns how many.
 * @throws Error with `code` when the kernel does not tell of them (no nf_conntrack_netlink).
 */
export function endKernelFlows(family: 4 | 6, match: (flow: KernelFlow) => boolean): number {
  const number = family === 4 ? AF_INET : AF_INET6;
  const dump = native.netlinkAsk(NETLINK_NETFILTER, message(GET, REQUEST | DUMP, number, new Uint8Array(0)));
  const view = new DataView(dump.buffer, dump.byteOffset, dump.length);
  let ended = 0;
  for (let at = 0; at + HEADER <= dump.length; ) {
    const length = view.getUint32(at, true);
    if (length < HEADER) break;
    const parts = attributes(dump.subarray(at + HEADER, at + length));
    at += (length + 3) & ~3;
    const original = tupleOf(parts.get(TUPLE_ORIGINAL));
    const reply = tupleOf(parts.get(TUPLE_REPLY));
    if (original === undefined || reply === undefined || !match({ original, reply })) continue;
    if (end(number, parts.get(TUPLE_ORIGINAL)!)) ended++;
  }
  return ended;
}

function end(family: number, tuple: Uint8Array): boolean {
  try {
    native.netlinkAsk(NETLINK_NETFILTER, message(DELETE, REQUEST | ACK, family, tupleAttribute(tuple)));
    return true;
  } catch (error) {
    // It ended by itself meanwhile.
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}
