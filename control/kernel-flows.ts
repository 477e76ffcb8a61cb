/**
 * The connections that the host's kernel tracks (nfnetlink_conntrack.h), as far as they must end: those of published
 * ports that are taken back.
 */
import { ACK, askNetfilter, attribute, attributes, DUMP, HEADER, NESTED } from './netlink.js';

const FAMILIES = { 4: 'ip', 6: 'ip6' } as const;
const GET = 0x101;
const DELETE = 0x102;
const TUPLE_ORIGINAL = 1;
const TUPLE_REPLY = 2;
const TUPLE_IP = 1;
const TUPLE_PROTOCOL = 2;

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

/**
 * Ends the tracked flows of a family that `match` says yes to. Returns how many.
 * @throws Error with `code` when the kernel does not tell of them (no nf_conntrack_netlink).
 */
export function endKernelFlows(family: 4 | 6, match: (flow: KernelFlow) => boolean): number {
  const dump = askNetfilter(GET, DUMP, FAMILIES[family]);
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
    if (end(family, parts.get(TUPLE_ORIGINAL)!)) ended++;
  }
  return ended;
}

function end(family: 4 | 6, tuple: Uint8Array): boolean {
  try {
    askNetfilter(DELETE, ACK, FAMILIES[family], attribute(TUPLE_ORIGINAL | NESTED, tuple));
    return true;
  } catch (error) {
    // It ended by itself meanwhile.
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}
