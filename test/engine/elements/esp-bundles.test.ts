/** Runs of packets that `esp-encrypt` lays into one UDP super-frame: the same bytes as one by one, and no other runs. */
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { FrameMemory, REMOTE } from '../../../engine/memory/frames.js';
import { native } from '../../../native-bindings/index.js';
import {
  ESP_V4,
  type EspRigOptions,
  espPackets,
  espRig,
  type Form,
  frontOf,
  plainPacket,
  UDP_V4,
  UDP_V6,
} from '../../support/esp.js';
import { be16, type Caught, concat, payload, slowSum, station } from '../../support/frames.js';

interface Item {
  readonly size: number;
  readonly peer?: number;
  readonly tos?: number;
}

const MASK = payload(8, 77);
/** Bytes of an ESP packet around a datagram of `size` bytes. */
const espSize = (size: number, icv: number): number => 16 + ((8 + size + 2 + 3) & ~3) + icv;
const at16 = (bytes: Uint8Array, at: number): number => (bytes[at] << 8) | bytes[at + 1];

/** Destination and bytes of every ESP packet, super-frames cut. */
function cut(form: Form, caught: readonly Caught[]): { dest: number; esp: string }[] {
  return caught.flatMap((one) =>
    espPackets(form, one).map((esp) => ({ dest: one.dest, esp: Buffer.from(esp).toString('hex') })),
  );
}

/** What a frame has in front of ESP must say how long it is, and how it is to be cut. */
function checkOuter(t: ExecutionContext, form: Form, { bytes, ...metadata }: Caught, icv: number): void {
  const front = frontOf(form);
  const count = espPackets(form, { bytes, ...metadata }).length;
  t.is(at16(bytes, form.v6 ? 18 : 16), bytes.length - 14 - (form.v6 ? 40 : 0));
  t.true(bytes.length - 14 <= 65535 && count <= 64, `${count} packets, ${bytes.length} bytes`);
  if (!form.v6) t.is(slowSum(bytes.slice(14, 34)), 0xffff);
  t.deepEqual(bytes.slice(front, front + 6), be16(4500, 4500, bytes.length - front));
  const super_ = count > 1;
  if (!super_ && !form.v6) {
    t.is(metadata.offload, 0);
    t.is(at16(bytes, front + 6), 0);
    return;
  }
  t.is(metadata.offload, super_ ? 0x501 : 1);
  t.like(metadata, { csumStart: front, csumOffset: 6, hdrLen: front + 8 });
  const addresses = bytes.slice(form.v6 ? 22 : 26, front);
  t.is(at16(bytes, front + 6), slowSum(concat(addresses, be16(17, bytes.length - front))));
  if (super_) t.true(metadata.gsoSize % 4 === 0 && metadata.gsoSize >= 16 + 12 + icv);
}

/**
 * Seals one batch with bundles and without, and compares byte by byte.
 * @returns how many ESP packets each frame for a known next hop held.
 */
function bundle(t: ExecutionContext, o: EspRigOptions, items: readonly Item[], known?: number[]): number[] {
  const { form = UDP_V4, peers = 1, icv = 16 } = o;
  const options = { ...o, form, peers, mask: MASK };
  const linked = known ?? Array.from({ length: peers }, (_, n) => n);
  const bundling = espRig({ ...options, linked });
  const packets = items.map(({ size, tos = 0 }, k) => plainPacket(form, size, { tos, first: k }));
  const metadata = (k: number) => ({
    dest: REMOTE | (items[k].peer ?? 0),
    domain: 3,
    mark: 0x55,
    ingress: 9,
  });
  bundling.seal(packets, metadata);
  const [toLinked, toOthers] = [bundling.linked.caught.splice(0), bundling.out.caught.splice(0)];
  const drops = bundling.encryptDrops();
  const counts = toLinked.map((one) => espPackets(form, one).length);
  const inBundles = counts.filter((count) => count > 1);
  t.is(bundling.rig.counter('esp-encrypt', 'bundles'), inBundles.length);
  t.is(
    bundling.rig.counter('esp-encrypt', 'bundled'),
    inBundles.reduce((sum, count) => sum + count, 0),
  );
  bundling.finish(t);

  // Made after the other is gone: both stand on one memory.
  const { memory: _, ...others } = options;
  const single = espRig(others);
  single.seal(packets, metadata);
  const expected = cut(form, single.out.caught.splice(0));
  t.deepEqual(single.encryptDrops(), drops);
  single.finish(t);
  const isLinked = ({ dest }: { dest: number }) => linked.includes(dest & 0xffff);
  t.deepEqual(cut(form, toLinked), expected.filter(isLinked));
  t.deepEqual(
    cut(form, toOthers),
    expected.filter((one) => !isLinked(one)),
  );
  for (const one of [...toLinked, ...toOthers]) {
    checkOuter(t, form, one, icv);
    t.like(one, { domain: 3, mark: 0x55, ingress: 9 });
  }
  return counts;
}

const sizes = (...list: readonly number[]): Item[] => list.map((size) => ({ size }));
const equal = (count: number, size: number): Item[] => sizes(...Array<number>(count).fill(size));

for (const form of [UDP_V4, UDP_V6]) {
  for (const icv of [8, 12, 16] as const) {
    const o = { form, icv };
    const name = `${form.name}, ICV ${icv}`;

    test(`${name}: equal sizes leave together, the last may be shorter`, (t) => {
      t.deepEqual(bundle(t, o, equal(10, 1400)), [10]);
      t.deepEqual(bundle(t, o, sizes(900, 900, 900, 100)), [4]);
      t.deepEqual(bundle(t, o, sizes(900, 900, 100, 100, 900)), [3, 1, 1]);
      t.deepEqual(bundle(t, o, sizes(100, 900, 900)), [1, 2]);
      t.deepEqual(bundle(t, o, sizes(900, 800, 700, 600)), [2, 2]);
      t.deepEqual(bundle(t, o, sizes(100)), [1]);
      t.deepEqual(bundle(t, o, sizes(900, 0)), [2]);
    });

    test(`${name}: sizes are equal that padding makes so`, (t) => {
      t.deepEqual(bundle(t, o, sizes(99, 102, 100, 101)), [4]);
      t.deepEqual(bundle(t, o, sizes(103, 102, 103)), [2, 1]);
    });

    test(`${name}: at most 64 packets, and no more bytes than an IP packet has`, (t) => {
      t.deepEqual(bundle(t, o, equal(200, 20)), [64, 64, 64, 8]);
      for (const size of [1000, 1400, 1442, 8900, 30000]) {
        const most = Math.min(64, Math.floor(65000 / espSize(size, icv)));
        const count = Math.min(2 * most + 1, 140);
        t.deepEqual(bundle(t, o, equal(count, size)), [most, most, 1]);
      }
      t.deepEqual(bundle(t, o, equal(3, 40000)), [1, 1, 1]);
    });
  }

  test(`${form.name}: packets of two VTEPs, or with two TOS, do not leave together`, (t) => {
    const o = { form, peers: 2 };
    const to = (...peers: readonly number[]): Item[] => peers.map((peer) => ({ peer, size: 500 }));
    t.deepEqual(bundle(t, o, to(0, 1, 0, 1)), [1, 1, 1, 1]);
    t.deepEqual(bundle(t, o, to(0, 0, 1, 1, 1, 0)), [2, 3, 1]);
    const tos = [0, 0, 2, 2, 2, 0, 1, 1].map((value) => ({ tos: value, size: 500 }));
    t.deepEqual(bundle(t, o, tos), [2, 3, 1, 2]);
    t.deepEqual(
      bundle(
        t,
        o,
        [0x00, 0x10, 0x20, 0x20].map((value) => ({ tos: value, size: 9 })),
      ),
      [1, 1, 2],
    );
  });

  test(`${form.name}: only VTEPs whose next hop is known get bundles`, (t) => {
    const items = [0, 0, 1, 1, 0, 1, 1, 1].map((peer) => ({ peer, size: 700 }));
    t.deepEqual(bundle(t, { form, peers: 2 }, items, [0]), [2, 1]);
    t.deepEqual(bundle(t, { form, peers: 2 }, items, [1]), [2, 3]);
    t.deepEqual(bundle(t, { form, peers: 2 }, items, []), []);
  });

  test(`${form.name}: without a free large slot packets leave one by one`, (t) => {
    const memory = (large: number) => new FrameMemory({ small: 100, large });
    t.deepEqual(bundle(t, { form, memory: memory(0) }, equal(12, 1000)), Array(12).fill(1));
    // One is free: the first run has it, the second has none.
    const items = [...equal(5, 1000), ...equal(5, 1100)];
    t.deepEqual(bundle(t, { form, memory: memory(1) }, items), [5, 1, 1, 1, 1, 1]);
  });

  test(`${form.name}: what may not go leaves no hole in a bundle`, (t) => {
    const last = 2 ** 32 - 6;
    t.deepEqual(bundle(t, { form, last }, equal(9, 300)), [5], 'numbers run out');
    const a = espRig({ form, linked: [0] });
    const bad = { offload: 1 };
    a.seal(
      equal(6, 300).map(({ size }) => plainPacket(form, size)),
      (k) => (k === 2 ? bad : {}),
    );
    t.is(espPackets(form, a.linked.one()).length, 5);
    t.deepEqual(a.encryptDrops(), { 'bad-length': 1 });
    a.finish(t);
  });

  test(`${form.name}: a bundle that is not sealed does not leave, and each packet is counted`, (t) => {
    const a = espRig({ form, linked: [0] });
    native.gcmRemove(a.outbound().slot);
    a.seal([100, 100, 100, 50, 70].map((size) => plainPacket(form, size)));
    t.deepEqual([a.linked.take(), a.out.take()], [[], []]);
    t.deepEqual(a.encryptDrops(), { 'not-sealed': 5 });
    a.finish(t);
  });

  test(`property, ${form.name}: bundles are the concatenation of what single packets would be`, (t) => {
    const item = fc.record({
      size: fc.oneof(fc.constantFrom(50, 51, 1400), fc.nat(1460)),
      peer: fc.nat(2),
      tos: fc.constantFrom(0, 0, 0, 2),
    });
    const runs = fc.array(fc.tuple(item, fc.integer({ min: 1, max: 20 })), { minLength: 1, maxLength: 12 });
    fc.assert(
      fc.property(
        runs,
        fc.constantFrom(8, 12, 16),
        fc.subarray([0, 1, 2]),
        fc.nat(3),
        (list, icv, known, large) => {
          const items = list.flatMap(([one, count]) => Array<Item>(count).fill(one));
          const memory = new FrameMemory({ small: 300, large });
          bundle(t, { form, icv: icv as 8 | 12 | 16, peers: 3, memory }, items, known);
        },
      ),
      { numRuns: 60 },
    );
  });
}

test('bundles without a UDP port, or with a checksum computed over the whole of one, are refused', (t) => {
  for (const options of [{ form: ESP_V4 }, { form: UDP_V6, checksum: true }]) {
    let made = false;
    t.throws(() => (made = espRig({ ...options, linked: [0] }) !== null), {
      message: /ESP is bundled behind/,
    });
    t.false(made);
  }
});

test('the next hop of a bundle is that of its packets', (t) => {
  const a = espRig({ form: UDP_V4, linked: [0] });
  const packets = [1, 2, 3].map(() => plainPacket(UDP_V4, 100));
  a.seal(packets);
  const { bytes } = a.linked.one();
  t.deepEqual(bytes.slice(0, 14), packets[0].slice(0, 14));
  t.deepEqual(bytes.slice(0, 6), station(2));
  a.finish(t);
});
