/** Checks of backends that are made of packets: what the engine sends, and what a backend may answer. */
import type { HealthIntent } from '../../engine/intent.js';
import { BalancerRig, backend, service } from './balancer.js';
import { be16, concat, slowSum } from './frames.js';
import { ACK, framed, SYN, sourcePort, TCP } from './nat.js';

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
export const sequence = (frame: Uint8Array): number => at32(frame, 38);
export const acknowledgment = (frame: Uint8Array): number => at32(frame, 42);
export const flagsOf = (frame: Uint8Array): number => frame[47]!;
export const contentOf = (frame: Uint8Array): string => String.fromCharCode(...frame.slice(54));
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
  const [source, destination] = [to.slice(30, 34), to.slice(26, 30)];
  const segment = concat(
    be16(80, sourcePort(to)),
    ...[be32(seq), be32(ack), Uint8Array.of(offset, flags), be16(1000, 0, 0), options, bytesOf(data)],
  );
  segment.set(
    be16(~slowSum(segment, slowSum(concat(source, destination, be16(6, segment.length)))) & 0xffff),
    16,
  );
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
