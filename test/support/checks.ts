/** Checks of backends that are made of packets: what the engine sends, and what a backend may answer. */
import type { HealthIntent } from '../../engine/intent.js';
import { BalancerRig, backend, service } from './balancer.js';
import { be16, concat, slowSum } from './frames.js';
import { ACK, framed, SYN, TCP } from './nat.js';
import { colons, framedV6 } from './nat6.js';

export const PSH = 0x08;
export const BACKEND = '10.0.9.1';
export const HEALTH: HealthIntent = {
  ...{ kind: 'tcp', port: 80, path: '', interval: 2000, timeout: 1000, failures: 3, successes: 2 },
};
export const HTTP: HealthIntent = { ...HEALTH, kind: 'http', path: '/health' };
/** Near the end of the numbers, so that they begin anew in the middle of an answer. */
export const FIRST = 0xffff_fffc;

const at32 = (bytes: Uint8Array, at: number): number =>
  new DataView(bytes.buffer, bytes.byteOffset).getUint32(at);
const be32 = (value: number): Uint8Array => be16((value >>> 16) & 0xffff, value & 0xffff);
const isV6 = (frame: Uint8Array): boolean => frame[12] === 0x86;
/** Where the TCP header begins. */
const tcpAt = (frame: Uint8Array): number => (isV6(frame) ? 54 : 34);
export const sequence = (frame: Uint8Array): number => at32(frame, tcpAt(frame) + 4);
export const acknowledgment = (frame: Uint8Array): number => at32(frame, tcpAt(frame) + 8);
export const flagsOf = (frame: Uint8Array): number => frame[tcpAt(frame) + 13]!;
export const contentOf = (frame: Uint8Array): string =>
  String.fromCharCode(...frame.slice(tcpAt(frame) + 20));
const bytesOf = (text: string): Uint8Array => Uint8Array.from(text, (one) => one.charCodeAt(0));

interface Answer {
  readonly flags: number;
  readonly seq?: number;
  readonly ack?: number;
  readonly data?: string;
  /** Data offset and reserved bits. */
  readonly offset?: number;
  readonly options?: Uint8Array;
}

/** What a backend answers to a segment of ours; all that is right unless told. */
export function answer(
  to: Uint8Array,
  { flags, seq = FIRST, ack = sequence(to) + 1, ...rest }: Answer,
): Uint8Array {
  const { data = '', options = new Uint8Array(0), offset = (20 + options.length) << 2 } = rest;
  const v6 = isV6(to);
  const [source, destination] = v6
    ? [to.slice(38, 54), to.slice(22, 38)]
    : [to.slice(30, 34), to.slice(26, 30)];
  const segment = concat(
    be16(80),
    to.slice(tcpAt(to), tcpAt(to) + 2),
    ...[be32(seq), be32(ack), Uint8Array.of(offset, flags), be16(1000, 0, 0), options, bytesOf(data)],
  );
  segment.set(
    be16(~slowSum(segment, slowSum(concat(source, destination, be16(6, segment.length)))) & 0xffff),
    16,
  );
  if (v6)
    return framedV6({ protocol: TCP, source: colons(source), destination: colons(destination) }, segment);
  return framed({ protocol: TCP, source: source.join('.'), destination: destination.join('.') }, segment);
}

/** A service whose backends are checked, and what a test does with the first. */
export function rigOf(health: HealthIntent, backends = [backend(1)]) {
  const b = new BalancerRig([service({ ports: [{ protocol: 6, port: 80, target: 80 }], health, backends })]);
  /** Begins the next check; its SYN. */
  const syn = (): Uint8Array => {
    const sent = b.check(2000);
    if (sent.length !== 1) throw new Error(`${sent.length} frames, not one SYN`);
    return sent[0]!.bytes;
  };
  const isUp = (id = 1): boolean => b.services.backends.up[b.services.numberOf(id)] === 1;
  /** Changes since the last call. */
  const told = () => {
    b.check(0);
    return b.changes.splice(0).map(({ alive, cause }) => (alive ? 'up' : cause));
  };
  /** Opens a connection, and what is asked then. */
  const ask = (): { readonly first: Uint8Array; readonly request: Uint8Array } => {
    const first = syn();
    return { first, request: b.one(answer(first, { flags: SYN | ACK, seq: FIRST - 1 })) };
  };
  return { b, syn, isUp, told, ask };
}
