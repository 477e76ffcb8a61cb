import test from 'ava';
import fc from 'fast-check';
import type { AssociationIntent } from '../../../engine/intent.js';
import { AssociationState, associationStateBytes } from '../../../engine/tables/association-state.js';
import { Associations, createAssociationFinder } from '../../../engine/tables/associations.js';
import { addressWords } from '../../../engine/tables/vteps.js';
import { ip } from '../../support/frames.js';

const table = (slots = 8, vteps = 8): Associations =>
  new Associations(new AssociationState(new SharedArrayBuffer(associationStateBytes(slots))), vteps);

/** VTEP `n` is 192.0.2.n. */
const vtepOf = (address: Uint8Array): number => address[address.length - 1];
const intent = (o: Partial<AssociationIntent> & { slot: number }, vtep = 1): AssociationIntent => ({
  direction: 'in',
  spi: 0x1000 + o.slot,
  vtep: ip(`192.0.2.${vtep}`),
  icv: 16,
  esn: false,
  window: 64,
  ...o,
});
/** As a load of the four bytes from the wire gives it. */
const load = (spi: number): number => {
  const bytes = new DataView(new ArrayBuffer(4));
  bytes.setUint32(0, spi);
  return bytes.getInt32(0, true);
};
const find = (associations: Associations, spi: number): number =>
  createAssociationFinder(associations)(load(spi));

test('an empty table finds nothing and sends to nobody', (t) => {
  const associations = table();
  for (const spi of [0, 1, 256, 0x80000000, 0xffffffff]) t.is(find(associations, spi), -1);
  t.deepEqual([...associations.outbound], Array(8).fill(-1));
  associations.set([], vtepOf);
  t.is(find(associations, 0), -1, 'slots that are free have no SPI of zero');
});

test('inbound associations are found by their SPI, outbound ones by their VTEP', (t) => {
  const associations = table();
  associations.set(
    [
      intent({ slot: 3, spi: 0x80000001, icv: 8, esn: true, window: 4096 }),
      intent({ slot: 4, spi: 0x80000001, direction: 'out', icv: 12, window: 0 }, 5),
      intent({ slot: 0, spi: 0xffffffff }, 2),
    ],
    vtepOf,
  );
  t.is(find(associations, 0x80000001), 3);
  t.is(find(associations, 0xffffffff), 0);
  t.is(find(associations, 0x01000080), -1);
  t.deepEqual([...associations.outbound], [-1, -1, -1, -1, -1, 4, -1, -1]);
  t.deepEqual([associations.icv[3], associations.icv[4], associations.icv[0]], [8, 12, 16]);
  t.deepEqual([associations.esn[3], associations.esn[4]], [1, 0]);
  t.deepEqual([associations.window[3], associations.window[4]], [4096, 0]);
  t.deepEqual([...associations.peer.subarray(12, 16)], addressWords(ip('192.0.2.1')));
  t.is(associations.spi[4], load(0x80000001), 'what is sent carries it as it is');
});

test('an IPv6 peer is all four words of its address', (t) => {
  const associations = table();
  const address = ip('2001:db8:1:2:3:4:5:6');
  associations.set([intent({ slot: 2, vtep: address })], vtepOf);
  t.deepEqual([...associations.peer.subarray(8, 12)], addressWords(address));
});

test('a list replaces the one before: what is not in it is gone, what is in both keeps what it has', (t) => {
  const associations = table();
  const [a, b] = [intent({ slot: 1 }), intent({ slot: 2 })];
  const [out, next] = [intent({ slot: 3, direction: 'out' }, 4), intent({ slot: 5, direction: 'out' }, 4)];
  associations.set([a, b, out], vtepOf);
  associations.state.sequence[2] = 99;
  associations.state.packets[1] = 7;
  associations.set([a, next], vtepOf);
  t.deepEqual([find(associations, a.spi), find(associations, b.spi)], [1, -1]);
  t.is(associations.outbound[4], 5, 'the new one sends');
  t.deepEqual([associations.icv[2], associations.icv[3]], [0, 0], 'free');
  t.deepEqual([associations.state.last(1), associations.state.packets[1]], [99, 7]);
  associations.set([a], vtepOf);
  t.is(associations.outbound[4], -1);
  // A slot that is free is used anew.
  associations.set([intent({ slot: 2, spi: a.spi }), intent({ slot: 1, spi: b.spi })], vtepOf);
  t.deepEqual([find(associations, a.spi), find(associations, b.spi)], [2, 1]);
});

test('slots out of range, and slots, SPIs or VTEPs named twice are refused, and nothing has changed', (t) => {
  const associations = table();
  const standing = [intent({ slot: 1 }), intent({ slot: 2, direction: 'out' }, 3)];
  associations.set(standing, vtepOf);
  const wrong: readonly [string, readonly AssociationIntent[]][] = [
    ['association slot 8 is not below 8', [intent({ slot: 8 })]],
    ['association slot -1 is not below 8', [intent({ slot: -1 })]],
    ['two associations have slot 4', [intent({ slot: 4, spi: 300 }), intent({ slot: 4, spi: 301 })]],
    ['two associations have inbound SPI 300', [intent({ slot: 4, spi: 300 }), intent({ slot: 5, spi: 300 })]],
    [
      'two associations have outbound VTEP 6',
      [intent({ slot: 4, direction: 'out' }, 6), intent({ slot: 5, direction: 'out' }, 6)],
    ],
  ];
  for (const [message, list] of wrong) {
    t.throws(() => associations.set(list, vtepOf), { instanceOf: RangeError, message });
    t.is(find(associations, standing[0].spi), 1);
    t.is(associations.outbound[3], 2);
    t.deepEqual([associations.icv[1], associations.icv[2]], [16, 16]);
  }
  // Of outbound ones the SPI is the peer's choice: several peers may choose the same.
  const same = [
    intent({ slot: 4, direction: 'out', spi: 500 }, 1),
    intent({ slot: 5, direction: 'out', spi: 500 }, 2),
  ];
  t.notThrows(() => associations.set(same, vtepOf));
});

test('a full table finds all it has, and stops looking for what it has not', (t) => {
  const associations = table(4096, 2);
  // SPIs that differ in few bits, or in the high ones alone.
  const spis = Array.from({ length: 4096 }, (_, n) => (n < 2048 ? 256 + n : ((n << 20) | 0xfffff) >>> 0));
  associations.set(
    spis.map((spi, slot) => intent({ slot, spi })),
    vtepOf,
  );
  for (const [slot, spi] of spis.entries()) if (find(associations, spi) !== slot) t.fail(`SPI ${spi}`);
  for (let spi = 256 + 2048; spi < 256 + 4096; spi++)
    if (find(associations, spi) !== -1) t.fail(`SPI ${spi}`);
  t.is(find(associations, 0), -1);
});

test('property: lists one after another, against a map', (t) => {
  const one = fc.record({
    slot: fc.nat(31),
    direction: fc.constantFrom<'in' | 'out'>('in', 'out'),
    spi: fc.oneof(fc.integer({ min: 256, max: 300 }), fc.integer({ min: 256, max: 2 ** 32 - 1 })),
    vtep: fc.nat(7),
  });
  const unique = (list: readonly (typeof one extends fc.Arbitrary<infer T> ? T : never)[]) => {
    const seen = new Set<string>();
    return list.filter(({ slot, direction, spi, vtep }) => {
      const keys = [`slot ${slot}`, direction === 'in' ? `spi ${spi}` : `vtep ${vtep}`];
      const fresh = keys.every((key) => !seen.has(key));
      if (fresh) for (const key of keys) seen.add(key);
      return fresh;
    });
  };
  fc.assert(
    fc.property(fc.array(fc.array(one, { maxLength: 24 }), { minLength: 1, maxLength: 6 }), (lists) => {
      const associations = table(32);
      const asked = new Set<number>([256]);
      for (const list of lists.map(unique)) {
        associations.set(
          list.map(({ vtep, ...o }) => intent(o, vtep)),
          vtepOf,
        );
        const inbound = new Map<number, number>();
        const outbound = Array<number>(8).fill(-1);
        for (const { slot, direction, spi, vtep } of list) {
          asked.add(spi);
          if (direction === 'in') inbound.set(spi, slot);
          else outbound[vtep] = slot;
        }
        for (const spi of asked) t.is(find(associations, spi), inbound.get(spi) ?? -1);
        t.deepEqual([...associations.outbound], outbound);
        const used = new Set(list.map(({ slot }) => slot));
        t.deepEqual(
          [...associations.icv],
          Array.from({ length: 32 }, (_, slot) => (used.has(slot) ? 16 : 0)),
        );
      }
    }),
    { numRuns: 200 },
  );
});
