/** Packets of clients of a service, and whole connections through a balancer. */
import { type BalancerRig, CLIENT, VIP } from './balancer.js';
import { payload } from './frames.js';
import { ACK, answerTo, FIN, framed, type Packet, packet, RST, SYN, TCP, transport, UDP } from './nat.js';

export const PSH = 0x08;

/** A TCP segment of the client's, to port 80 of the virtual address. */
export const tcp = (flags: number, sourcePort = 4000, more: Packet = {}): Uint8Array =>
  packet({
    ...{ protocol: TCP, flags, source: CLIENT, destination: VIP, sourcePort, destinationPort: 80 },
    ...more,
  });
export const syn = (sourcePort?: number, more?: Packet): Uint8Array => tcp(SYN, sourcePort, more);
export const ack = (sourcePort?: number, more?: Packet): Uint8Array => tcp(ACK, sourcePort, more);
export const udp = (sourcePort = 4000, more: Packet = {}): Uint8Array =>
  packet({
    ...{ protocol: UDP, source: CLIENT, destination: VIP, sourcePort, destinationPort: 53 },
    ...more,
  });

/** Opens a connection by the three segments. @returns the SYN as the backend has it. */
export function open(b: BalancerRig, sourcePort?: number, more?: Packet): Uint8Array {
  const request = b.one(syn(sourcePort, more));
  b.one(answerTo(request, SYN | ACK));
  b.one(ack(sourcePort, more));
  return request;
}

/** Closes it by both sides' FINs. */
export function close(b: BalancerRig, request: Uint8Array, sourcePort?: number, more?: Packet): void {
  b.one(tcp(FIN | ACK, sourcePort, more));
  b.one(answerTo(request, FIN | ACK));
  b.one(ack(sourcePort, more));
}

/** The last byte of the address that a frame is sent to: of a backend its number. */
export const backendOf = (frame: Uint8Array): number => frame[33]!;
export const flagsOf = (frame: Uint8Array): number => frame[14 + (frame[14]! & 15) * 4 + 13]!;
export const isReset = (frame: Uint8Array): boolean => frame[23] === TCP && (flagsOf(frame) & RST) !== 0;

/** Number at byte `at` of the TCP header: sequence at 4, acknowledgment at 8. */
export function numberAt(frame: Uint8Array, at: number): number {
  const t = 14 + (frame[14]! & 15) * 4 + at;
  return new DataView(frame.buffer, frame.byteOffset).getUint32(t);
}

/** A datagram of 2,000 bytes in three fragments, the last byte of the first two at a multiple of eight. */
export function fragments(p: {
  source: string;
  destination: string;
  sourcePort?: number;
  destinationPort?: number;
}) {
  const whole = transport({
    protocol: UDP,
    sourcePort: 4000,
    destinationPort: 53,
    ...p,
    content: payload(1992),
  });
  const part = (from: number, to: number, more: boolean) =>
    framed(
      { ...p, protocol: UDP, id: 99, fragment: (more ? 0x2000 : 0) | (from / 8) },
      whole.slice(from, to),
    );
  return { whole, parts: [part(0, 800, true), part(800, 1600, true), part(1600, 2000, false)] };
}
