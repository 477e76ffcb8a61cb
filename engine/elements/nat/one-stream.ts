/**
 * The `nat` of a chain, where packets of both sides come in one stream, as in a capture: a source in one of the
 * prefixes is inside, the external address as destination is for a packet from outside, and anything else is of
 * neither side. What turns back (RFC 4787, REQ-9) comes in again at once.
 *
 * Packets of one side that follow each other are a batch, so that an answer meets the flow that its question made.
 */
import { Batch, type Context } from '../../graph.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV4_LE } from '../../wire/ethernet.js';
import { IPV4_DESTINATION, IPV4_HEADER, IPV4_SOURCE } from '../../wire/ip.js';
import type { ChainElement } from '../index.js';
import { createNat, NO_SIDE } from '../nat.js';
import { type NatTables, word } from './tables.js';

export interface InsidePrefix {
  /** Four bytes. */
  readonly address: Uint8Array;
  /** 0–32. */
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
  const hairpin = new Batch({ process: (batch) => nat.fromOutside.process(batch) });
  const nat = createNat(context, tables, { outside: out, inside: out, hairpin });
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
      else nat.drops.drop(ids[k], NO_SIDE);
    }
    flushInside();
    fromOutside.flush();
  }

  function flushInside(): void {
    fromInside.flush();
    hairpin.flush();
  }

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

  return { drops: nat.drops, process, finish: nat.flush, expire: nat.age };
}

/** The mask of a prefix as a little-endian load gives it. */
function maskOf(length: number): number {
  const bits = length === 0 ? 0 : -1 << (32 - length);
  return word(Uint8Array.of(bits >>> 24, bits >>> 16, bits >>> 8, bits));
}
