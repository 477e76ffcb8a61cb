/**
 * The networks that leave by an uplink without translation, by prefix: whose an address is. Prefixes do not overlap.
 * IPv4 addresses and masks are signed little-endian words, IPv6 addresses eight 16-bit words.
 */
import type { GatewayIntent } from '../intent.js';
import { words16 } from '../wire/ipv6.js';
import { addressWord, maskWord } from './gateways.js';
import { MAX_DOMAINS } from './mac-table.js';
import { NO_PREFIX, Prefixes6 } from './prefixes6.js';

/** In place of a domain: no network has the address. */
export const NO_NETWORK = -1;

const SLOTS = 4 * MAX_DOMAINS;

export class Routes {
  /** Every mask once; prefixes, their masks and domains by open addressing; a mask of 0 is empty. */
  private masks = new Int32Array(0);
  private readonly prefixes = new Int32Array(SLOTS);
  private readonly prefixMasks = new Int32Array(SLOTS);
  private readonly domains = new Int32Array(SLOTS);
  private readonly prefixes6 = new Prefixes6();
  private domains6 = new Int32Array(0);

  /** Makes them those of the gateways. */
  set(gateways: readonly GatewayIntent[]): void {
    const { prefixes, prefixMasks, domains } = this;
    prefixMasks.fill(0);
    const masks = new Set<number>();
    for (const { domain, v4 } of gateways) {
      if (v4 === undefined) continue;
      const mask = maskWord(v4.length);
      const subnet = addressWord(v4.subnet);
      let slot = slotOf(subnet);
      while (prefixMasks[slot] !== 0) slot = (slot + 1) & (SLOTS - 1);
      prefixes[slot] = subnet;
      prefixMasks[slot] = mask;
      domains[slot] = domain;
      masks.add(mask);
    }
    this.masks = Int32Array.from(masks);
    const six = gateways.flatMap(({ domain, v6 }) => (v6 === undefined ? [] : { domain, v6 }));
    this.prefixes6.set(six.map(({ v6 }) => ({ words: words16(v6.subnet), length: v6.length })));
    this.domains6 = Int32Array.from(six, ({ domain }) => domain);
  }

  /** The same of the IPv6 address at a word. */
  find6(u16: Uint16Array, word: number): number {
    const found = this.prefixes6.find(u16, word);
    return found === NO_PREFIX ? NO_NETWORK : this.domains6[found];
  }

  /** Domain of the network that has an address, or NO_NETWORK. */
  find(address: number): number {
    const { masks, prefixes, prefixMasks, domains } = this;
    for (let i = 0; i < masks.length; i++) {
      const wanted = address & masks[i];
      for (let slot = slotOf(wanted); prefixMasks[slot] !== 0; slot = (slot + 1) & (SLOTS - 1))
        if (prefixes[slot] === wanted && prefixMasks[slot] === masks[i]) return domains[slot];
    }
    return NO_NETWORK;
  }
}

function slotOf(subnet: number): number {
  const h = Math.imul(subnet, 0x9e3779b1);
  return (h ^ (h >>> 15)) & (SLOTS - 1);
}
