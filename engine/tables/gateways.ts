/**
 * The gateways of networks: what a router must know of each domain that has one, in parallel arrays; and which
 * prefixes are networks of this host at all, between which nothing is routed.
 *
 * IPv4 addresses are signed little-endian words, IPv6 addresses eight 16-bit words as little-endian loads give them.
 */
import type { GatewayIntent } from '../intent.js';
import { maskWords, words16 } from '../wire/ipv6.js';
import { MAX_DOMAINS } from './mac-table.js';
import { Prefixes6 } from './prefixes6.js';

/** `uplink` of a domain without a way out. */
export const NO_UPLINK = -1;

const SLOTS = 4 * MAX_DOMAINS;

export class Gateways {
  /** Whether the domain has a gateway of IPv4; without one nothing is in its prefix. */
  readonly used = new Uint8Array(MAX_DOMAINS);
  readonly address = new Int32Array(MAX_DOMAINS);
  readonly subnet = new Int32Array(MAX_DOMAINS);
  readonly mask = new Int32Array(MAX_DOMAINS);
  /** Everybody's address in the network; 0 where it has none (RFC 3021). */
  readonly broadcast = new Int32Array(MAX_DOMAINS);
  /** The same of IPv6, eight words a domain. */
  readonly used6 = new Uint8Array(MAX_DOMAINS);
  readonly address6 = new Uint16Array(MAX_DOMAINS * 8);
  readonly subnet6 = new Uint16Array(MAX_DOMAINS * 8);
  readonly mask6 = new Uint16Array(MAX_DOMAINS * 8);
  private readonly lengths6 = new Uint8Array(MAX_DOMAINS);
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
  private readonly prefixes6 = new Prefixes6();

  /** Domains that have one of IPv4. */
  get domains(): number[] {
    return [...this.used.keys()].filter((domain) => this.used[domain] === 1);
  }

  set({ domain, v4, v6, mac, uplink, mtu }: GatewayIntent): void {
    this.used[domain] = v4 === undefined ? 0 : 1;
    this.address[domain] = v4 === undefined ? 0 : addressWord(v4.address);
    this.subnet[domain] = v4 === undefined ? 0 : addressWord(v4.subnet);
    this.mask[domain] = maskWord(v4?.length ?? 32);
    this.broadcast[domain] = (v4?.length ?? 32) >= 31 ? 0 : this.subnet[domain] | ~this.mask[domain];
    this.used6[domain] = v6 === undefined ? 0 : 1;
    if (v6 !== undefined) {
      this.address6.set(words16(v6.address), domain * 8);
      this.subnet6.set(words16(v6.subnet), domain * 8);
      this.mask6.set(maskWords(v6.length), domain * 8);
      this.lengths6[domain] = v6.length;
    }
    for (let i = 0; i < 3; i++) this.macs[domain * 3 + i] = mac[2 * i] | (mac[2 * i + 1] << 8);
    this.uplink[domain] = uplink;
    this.mtu[domain] = mtu;
  }

  remove(domain: number): void {
    this.used[domain] = 0;
    this.used6[domain] = 0;
    this.uplink[domain] = NO_UPLINK;
  }

  /** The gateway's address of 4 or of 16 bytes, undefined where there is none. */
  addressOf(domain: number, size: number): Uint8Array | undefined {
    if ((size === 4 ? this.used : this.used6)[domain] === 0) return undefined;
    const words =
      size === 4 ? this.address.slice(domain, domain + 1) : this.address6.slice(domain * 8, domain * 8 + 8);
    return new Uint8Array(words.buffer);
  }

  /** Whether an address of 4 or of 16 bytes, whose first word is given, is the gateway's. */
  isAddress(domain: number, u16: Uint16Array, word: number, size: number): boolean {
    if (size === 4)
      return this.used[domain] === 1 && (u16[word] | (u16[word + 1] << 16)) === this.address[domain];
    for (let i = 0; i < 8; i++) if (u16[word + i] !== this.address6[domain * 8 + i]) return false;
    return this.used6[domain] === 1;
  }

  /** Makes `covers` and `covers6` know what `set` and `remove` did. */
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
    const with6 = [...this.used6.keys()].filter((domain) => this.used6[domain] === 1);
    this.prefixes6.set(
      with6.map((domain) => ({
        words: this.subnet6.slice(domain * 8, domain * 8 + 8),
        length: this.lengths6[domain],
      })),
    );
  }

  private slot(subnet: number): number {
    const h = Math.imul(subnet, 0x9e3779b1);
    return (h ^ (h >>> 15)) & (SLOTS - 1);
  }

  /** Whether the IPv6 address at a word is in a network of this host. */
  covers6(u16: Uint16Array, word: number): boolean {
    return this.prefixes6.cover(u16, word);
  }

  /** Whether an IPv4 address is in a network of this host. */
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
