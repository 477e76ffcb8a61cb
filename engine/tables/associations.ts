/**
 * Security associations as one worker knows them: which slot sends to a VTEP, which slot an SPI names, and what the
 * elements must know of each. What changes with every packet lies in AssociationState, the keys in the addon.
 */
import type { AssociationIntent } from '../intent.js';
import type { AssociationState } from './association-state.js';
import { addressWords } from './vteps.js';

export class Associations {
  /** SPI of each slot, as a little-endian load of the ESP header gives it; signed, so that it is a small integer. */
  readonly spi: Int32Array;
  /** Bytes of the ICV; 0 when the slot is free. */
  readonly icv: Uint8Array;
  /** 1 with extended sequence numbers. */
  readonly esn: Uint8Array;
  /** Packets of the replay window, 0 for none. */
  readonly window: Uint16Array;
  /** Address of the peer, four words a slot (see `addressWords`). */
  readonly peer: Uint32Array;
  /** Slot that sends to a VTEP, -1 for none. */
  readonly outbound: Int32Array;
  /** Slots of inbound associations by SPI, open addressing -1 is empty. */
  readonly index: Int32Array;
  readonly indexMask: number;
  private current: readonly { readonly intent: AssociationIntent; readonly vtep: number }[] = [];

  /** @param vteps number of VTEPs there can be. */
  constructor(
    readonly state: AssociationState,
    vteps: number,
  ) {
    const { slots } = state;
    this.spi = new Int32Array(slots);
    this.icv = new Uint8Array(slots);
    this.esn = new Uint8Array(slots);
    this.window = new Uint16Array(slots);
    this.peer = new Uint32Array(slots * 4);
    this.outbound = new Int32Array(vteps).fill(-1);
    let size = 16;
    while (size < slots * 2) size *= 2;
    this.indexMask = size - 1;
    this.index = new Int32Array(size).fill(-1);
  }

  /**
   * Makes the associations what the list says. Slots and SPIs that are in both lists keep what they have.
   * @param vtepOf index of a VTEP by its address.
   * @throws RangeError when a slot is out of range, or a slot, an inbound SPI or an outbound VTEP is named twice.
   */
  set(next: readonly AssociationIntent[], vtepOf: (address: Uint8Array) => number): void {
    const placed = next.map((intent) => ({ intent, vtep: vtepOf(intent.vtep) }));
    check(placed, this.state.slots);
    for (const { intent } of this.current) this.icv[intent.slot] = 0;
    this.index.fill(-1);
    this.outbound.fill(-1);
    for (const { intent, vtep } of placed) {
      const { slot, spi } = intent;
      this.spi[slot] = littleEndian(spi);
      this.icv[slot] = intent.icv;
      this.esn[slot] = intent.esn ? 1 : 0;
      this.window[slot] = intent.window;
      this.peer.set(addressWords(intent.vtep), slot * 4);
      if (intent.direction === 'out') this.outbound[vtep] = slot;
      else this.insert(slot);
    }
    this.current = placed;
  }

  private insert(slot: number): void {
    let i = hash(this.spi[slot]) & this.indexMask;
    while (this.index[i] >= 0) i = (i + 1) & this.indexMask;
    this.index[i] = slot;
  }
}

/** An SPI as a little-endian 32-bit load of the ESP header gives it. */
function littleEndian(spi: number): number {
  return (spi >>> 24) | ((spi >>> 8) & 0xff00) | ((spi << 8) & 0xff0000) | (spi << 24);
}

/** Finds the slot of an inbound association by its SPI, as `spi` has it; -1 when it is unknown. */
export function createAssociationFinder({
  index,
  indexMask,
  spi: spis,
}: Associations): (spi: number) => number {
  return (spi) => {
    for (let i = hash(spi) & indexMask; ; i = (i + 1) & indexMask) {
      const slot = index[i];
      if (slot < 0 || spis[slot] === spi) return slot;
    }
  };
}

function hash(spi: number): number {
  const h = Math.imul(spi ^ (spi >>> 16), 0x9e3779b1);
  return h ^ (h >>> 15);
}

function check(
  placed: readonly { readonly intent: AssociationIntent; readonly vtep: number }[],
  slots: number,
): void {
  const seen = new Set<string>();
  for (const { intent, vtep } of placed) {
    const { slot, spi, direction } = intent;
    if (!(slot >= 0 && slot < slots)) throw new RangeError(`association slot ${slot} is not below ${slots}`);
    const keys = [`slot ${slot}`, direction === 'in' ? `inbound SPI ${spi}` : `outbound VTEP ${vtep}`];
    for (const key of keys) {
      if (seen.has(key)) throw new RangeError(`two associations have ${key}`);
      seen.add(key);
    }
  }
}
