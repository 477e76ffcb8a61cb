/**
 * The gateways of networks: what a router must know of each domain that has one, in parallel arrays; and which
 * prefixes are networks of this host at all, between which nothing is routed.
 *
 * Addresses are signed little-endian words.
 */
import type { GatewayIntent } from '../intent.js';
import { MAX_DOMAINS } from './mac-table.js';

/** `uplink` of a domain without a way out. */
export const NO_UPLINK = -1;

const SLOTS = 4 * MAX_DOMAINS;

export class Gateways {
  /** Whether the domain has a gateway; the others below are valid while it has. */
  readonly used = new Uint8Array(MAX_DOMAINS);
  readonly address = new Int32Array(MAX_DOMAINS);
  readonly subnet = new Int32Array(MAX_DOMAINS);
  readonly mask = new Int32Array(MAX_DOMAINS);
  /** Three words a domain, as little-endian loads give them. */
  readonly macs = new Uint16Array(MAX_DOMAINS * 3);
  /** Index of the uplink, or NO_UPLINK. */
  readonly uplink = new Int16Array(MAX_DOMAINS).fill(NO_UPLINK);
  /** Bytes of the largest IP packet. */
  readonly mtu = new Uint16Array(MAX_DOMAINS);
  /** Masks of all prefixes, each once; and the prefixes with their masks by open addressing; a mask of 0 is empty. */
  private masks = new Int32Array(0);
  private readonly prefixes = new Int32Array(SLOTS);
  private readonly prefixMasks = new Int32Array(SLOTS);

  /** Domains that have one. */
  get domains(): number[] {
    return [...this.used.keys()].filter((domain) => this.used[domain] === 1);
  }

  set(intent: GatewayIntent): void {
    const { domain, address, subnet, length, mac, uplink, mtu } = intent;
    this.used[domain] = 1;
    this.address[domain] = addressWord(address);
    this.subnet[domain] = addressWord(subnet);
    this.mask[domain] = maskWord(length);
    for (let i = 0; i < 3; i++) this.macs[domain * 3 + i] = mac[2 * i] | (mac[2 * i + 1] << 8);
    this.uplink[domain] = uplink;
    this.mtu[domain] = mtu;
  }

  remove(domain: number): void {
    this.used[domain] = 0;
    this.uplink[domain] = NO_UPLINK;
  }

  /** Makes `covers` know what `set` and `remove` did. */
  reindex(): void {
    const { prefixes, prefixMasks, subnet, mask, domains } = this;
    prefixMasks.fill(0);
    for (const domain of domains) {
      let slot = this.slot(subnet[domain]);
      while (
        prefixMasks[slot] !== 0 &&
        (prefixMasks[slot] !== mask[domain] || prefixes[slot] !== subnet[domain])
      )
        slot = (slot + 1) & (SLOTS - 1);
      prefixes[slot] = subnet[domain];
      prefixMasks[slot] = mask[domain];
    }
    this.masks = Int32Array.from(new Set(domains.map((domain) => mask[domain])));
  }

  private slot(subnet: number): number {
    const h = Math.imul(subnet, 0x9e3779b1);
    return (h ^ (h >>> 15)) & (SLOTS - 1);
  }

  /** Whether an address is in a network of this host. */
  covers(address: number): boolean {
    const { masks, prefixes, prefixMasks } = this;
    for (let i = 0; i < masks.length; i++) {
      const wanted = address & masks[i];
      for (let slot = this.slot(wanted); prefixMasks[slot] !== 0; slot = (slot + 1) & (SLOTS - 1))
        if (prefixes[slot] === wanted && prefixMasks[slot] === masks[i]) return true;
    }
    return false;
  }
}

/** Signed little-endian word of an IPv4 address of four bytes. */
export function addressWord(address: Uint8Array): number {
  return address[0] | (address[1] << 8) | (address[2] << 16) | (address[3] << 24);
}

/** Mask of a prefix length, as a little-endian load gives it. */
export function maskWord(length: number): number {
  const mask = length === 0 ? 0 : -1 << (32 - length);
  return (mask >>> 24) | ((mask >>> 8) & 0xff00) | ((mask << 8) & 0xff0000) | (mask << 24);
}
