/**
 * Ends of backends at which published services answer: domain, address and port. What one of them says within a
 * connection that nobody here knows answers a client who came by some node, and begins nothing.
 */
import type { ServiceIntent } from '../intent.js';
import { swap16 } from '../wire/ethernet.js';
import { PROTOCOL_TCP } from '../wire/ip.js';

export class Origins {
  /** By a port of TCP, as a little-endian load gives it: whether any backend answers there. */
  private readonly ports = new Uint8Array(65536);
  /** Hashes: an end that is taken for another's is heard by a few nodes in vain. */
  private readonly ends = new Set<number>();

  private of: readonly ServiceIntent[] = [];

  set(services: readonly ServiceIntent[]): void {
    if (services === this.of) return;
    this.of = services;
    this.ports.fill(0);
    this.ends.clear();
    for (const { domain, publish, backends } of services)
      for (const { protocol, target } of publish) {
        if (protocol !== PROTOCOL_TCP) continue;
        const port = swap16(target);
        this.ports[port] = 1;
        for (const { address } of backends) {
          const words = Uint16Array.from({ length: address.length / 2 }, (_, i) => wordAt(address, i));
          this.ends.add(hashOf(words, 0, words.length, domain, port));
        }
      }
  }

  /** Whether an address of `length` words from `at` on, and a port, are those of a backend. */
  has(u16: Uint16Array, at: number, length: number, domain: number, port: number): boolean {
    return this.ports[port] !== 0 && this.ends.has(hashOf(u16, at, length, domain, port));
  }
}

const wordAt = (bytes: Uint8Array, i: number): number => bytes[2 * i] | (bytes[2 * i + 1] << 8);

function hashOf(u16: Uint16Array, at: number, length: number, domain: number, port: number): number {
  let hash = (domain << 16) | port;
  for (let i = 0; i < length; i++) hash = Math.imul(hash ^ u16[at + i], 0x9e3779b1) ^ (hash >>> 15);
  return hash | 0;
}
