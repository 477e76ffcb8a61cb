/**
 * The `nat` of a chain, where packets of both sides come in one stream, as in a capture: a source in one of the
 * prefixes is inside, the external address as destination is for a packet from outside, and anything else is of
 * neither side. What turns back (RFC 4787, REQ-9) comes in again at once.
 *
 * Packets of one side that follow each other are a batch, so that an answer meets the flow that its question made.
 */
import { Batch, type Context } from '../../graph.js';
import type { Addresses6 } from '../../tables/addresses6.js';
import { Prefixes6 } from '../../tables/prefixes6.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV4_LE, ETHERTYPE_IPV6_LE } from '../../wire/ethernet.js';
import {
  IPV4_DESTINATION,
  IPV4_HEADER,
  IPV4_SOURCE,
  IPV6_DESTINATION,
  IPV6_HEADER,
  IPV6_SOURCE,
} from '../../wire/ip.js';
import { maskWords, words16 } from '../../wire/ipv6.js';
import type { ChainElement } from '../index.js';
import { createNat, type Nat, NO_SIDE } from '../nat.js';
import { createNatV6, NO_SIDE_V6 } from '../nat-v6.js';
import { type NatTables, word } from './tables.js';

export interface InsidePrefix {
  /** Four bytes, or 16. */
  readonly address: Uint8Array;
  /** 0–32, or to 128. */
  readonly length: number;
}

const INSIDE = 0;
const OUTSIDE = 1;
const NEITHER = 2;

export function createTwoSidedNat(
  context: Context,
  tables: NatTables,
  inside: readonly InsidePrefix[],
  out: Batch,
): ChainElement {
  const { u16, off, len } = context.frames;
  const { external } = tables;
  const masks = Int32Array.from(inside, ({ length }) => maskOf(length));
  const networks = Int32Array.from(inside, ({ address }, i) => word(address) & masks[i]);

  /** What is no IPv4 is taken for inside, and refused there. */
  function sideOf(frame: number): number {
    const w = off[frame] >>> 1;
    if (len[frame] < ETHERNET_HEADER + IPV4_HEADER || u16[w + 6] !== ETHERTYPE_IPV4_LE) return INSIDE;
    const ip = w + ETHERNET_HEADER / 2;
    const source = u16[ip + IPV4_SOURCE] | (u16[ip + IPV4_SOURCE + 1] << 16);
    for (let i = 0; i < masks.length; i++) if ((source & masks[i]) === networks[i]) return INSIDE;
    const destination = u16[ip + IPV4_DESTINATION] | (u16[ip + IPV4_DESTINATION + 1] << 16);
    return destination === external ? OUTSIDE : NEITHER;
  }

  return twoSided(
    (hairpin) => createNat(context, tables, { outside: out, inside: out, hairpin }),
    NO_SIDE,
    sideOf,
  );
}

/** The same for IPv6. */
export function createTwoSidedNatV6(
  context: Context,
  tables: NatTables,
  addresses: Addresses6,
  inside: readonly InsidePrefix[],
  out: Batch,
): ChainElement {
  const { u16, off, len } = context.frames;
  const prefixes = new Prefixes6();
  prefixes.set(
    inside.map(({ address, length }) => {
      const mask = maskWords(length);
      return { words: words16(address).map((one, i) => one & mask[i]), length };
    }),
  );

  /** What is cut short is taken for inside, and refused there. */
  function sideOf(frame: number): number {
    const ip = (off[frame] + ETHERNET_HEADER) >>> 1;
    if (len[frame] < ETHERNET_HEADER + IPV6_HEADER || prefixes.cover(u16, ip + IPV6_SOURCE)) return INSIDE;
    return addresses.find(u16, ip + IPV6_DESTINATION) === tables.external ? OUTSIDE : NEITHER;
  }

  const make = (hairpin: Batch): Nat =>
    createNatV6(context, tables, addresses, { outside: out, inside: out, hairpin });
  return twoSided(make, NO_SIDE_V6, sideOf);
}

/** @param make makes the translation, whose packets that turn back come in again at once. */
function twoSided(
  make: (hairpin: Batch) => Nat,
  noSide: number,
  sideOf: (frame: number) => number,
): ChainElement {
  const hairpin = new Batch({ process: (batch) => nat.fromOutside.process(batch) });
  const nat = make(hairpin);
  const fromInside = new Batch(nat.fromInside);
  const fromOutside = new Batch(nat.fromOutside);

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    for (let k = 0; k < count; k++) {
      const side = sideOf(ids[k]);
      if (side !== INSIDE && fromInside.count > 0) flushInside();
      if (side !== OUTSIDE) fromOutside.flush();
      if (side === INSIDE) fromInside.push(ids[k]);
      else if (side === OUTSIDE) fromOutside.push(ids[k]);
      else nat.drops.drop(ids[k], noSide);
    }
    flushInside();
    fromOutside.flush();
  }

  function flushInside(): void {
    fromInside.flush();
    hairpin.flush();
  }

  return { drops: nat.drops, process, finish: nat.flush, expire: nat.age };
}

/** Both families in one stream, each by its own element; order is kept. */
export function createBothFamilies(context: Context, v4: ChainElement, v6: ChainElement): ChainElement {
  const { u16, off, len } = context.frames;
  const [toV4, toV6] = [new Batch(v4), new Batch(v6)];

  function process(batch: Batch): void {
    for (let k = 0; k < batch.count; k++) {
      const frame = batch.frames[k];
      const isV6 = len[frame] >= ETHERNET_HEADER && u16[(off[frame] >>> 1) + 6] === ETHERTYPE_IPV6_LE;
      (isV6 ? toV4 : toV6).flush();
      (isV6 ? toV6 : toV4).push(frame);
    }
    toV4.flush();
    toV6.flush();
  }

  const each = (call: (element: ChainElement) => void): void => {
    for (const element of [v4, v6]) call(element);
  };
  return {
    drops: v4.drops,
    moreDrops: [v6.drops],
    process,
    finish: () => each((element) => element.finish?.()),
    expire: () => each((element) => element.expire?.()),
  };
}

/** The mask of a prefix as a little-endian load gives it. */
function maskOf(length: number): number {
  const bits = length === 0 ? 0 : -1 << (32 - length);
  return word(Uint8Array.of(bits >>> 24, bits >>> 16, bits >>> 8, bits));
}
