/** UDP super-frames of ESP packets: taken apart while they are opened, and each packet judged by itself. */
import test from 'ava';
import fc from 'fast-check';
import { FrameMemory } from '../../../engine/memory/frames.js';
import {
  datagram,
  type EspRig,
  edit,
  espRig,
  type Form,
  frontOf,
  makeEsp,
  outerEsp,
  outerIp,
  superFrame,
  UDP_V4,
  UDP_V6,
} from '../../support/esp.js';
import { payload } from '../../support/frames.js';

const range = (first: number, last: number): number[] =>
  Array.from({ length: last - first + 1 }, (_, i) => first + i);

/** ESP packets of the first peer, numbered from `first` on. */
function packets(b: EspRig, sizes: readonly number[], first = 1): Uint8Array[] {
  return sizes.map((size, k) => makeEsp(b.inbound(), { sequence: first + k }, datagram(size, k)));
}

function openSuper(b: EspRig, form: Form, list: readonly Uint8Array[], metadata = {}): Uint8Array[] {
  const frame = superFrame(form, list);
  return b.open([frame.bytes], { ...frame.metadata, ...metadata });
}

/** What is delivered of a list, and why not, one packet after another in a rig of its own. */
function oneByOne(form: Form, options: object, list: readonly Uint8Array[]) {
  const single = espRig({ form, ...options });
  const opened = list.flatMap((esp) => single.open([outerEsp(form, esp)]));
  const refused = single.refused(single.inbound());
  return {
    single,
    opened,
    refused,
    drops: single.decryptDrops(),
    last: single.state.last(single.inbound().slot),
  };
}

for (const form of [UDP_V4, UDP_V6]) {
  const { name } = form;
  const plain = (size: number, k: number) => outerIp(form, 17, datagram(size, k));

  for (const icv of [8, 12, 16] as const)
    test(`${name}, ICV ${icv}: every packet comes out as if it had come alone`, (t) => {
      for (const sizes of [
        Array<number>(64).fill(900),
        [...Array<number>(45).fill(1400), 3],
        [200, 200, 199],
        [0, 0, 0],
        [100],
        [1442, 1441],
        [8900, 8900, 8000],
      ]) {
        const b = espRig({ form, icv });
        t.deepEqual(openSuper(b, form, packets(b, sizes)), sizes.map(plain));
        t.deepEqual(b.decryptDrops(), {});
        t.is(b.rig.counter('esp-decrypt', 'frames'), sizes.length);
        t.is(b.state.packets[b.inbound().slot], sizes.length);
        b.finish(t);
      }
    });

  test(`${name}: packets are frames of their own, without offload, with the metadata of none`, (t) => {
    const b = espRig({ form });
    const frame = superFrame(form, packets(b, [300, 300, 20]));
    b.rig.feed(b.decrypt, b.rig.put(frame.bytes, { ...frame.metadata, alignment: 2 }));
    b.flush();
    const caught = b.opened.caught.splice(0);
    t.is(caught.length, 3);
    for (const { offload, off } of caught) {
      t.is(offload, 0);
      t.is((off + frontOf(form)) & 7, 0, 'what follows the IP header is aligned');
    }
    b.finish(t);
  });

  test(`${name}: one bad packet among good ones is dropped alone`, (t) => {
    const b = espRig({ form, peers: 2 });
    const other = b.inbound(1);
    const good = packets(b, Array<number>(9).fill(400));
    const list = [
      good[0],
      edit(good[1], good[1].length - 1, good[1].at(-1)! ^ 1),
      good[2],
      edit(good[3], 0, 0x55),
      good[4],
      makeEsp(other, { sequence: 6 }, datagram(400)),
      good[6],
      makeEsp(b.inbound(), { sequence: 8, next: 59 }, datagram(400)),
      good[8].slice(0, 20),
    ];
    t.deepEqual(
      openSuper(b, form, list),
      [0, 2, 4, 6].map((k) => plain(400, k)),
    );
    const drops = { icv: 1, 'unknown-spi': 1, 'wrong-source': 1, dummy: 1, undersized: 1 };
    t.deepEqual(b.decryptDrops(), drops);
    t.deepEqual(b.refused(b.inbound()), { icv: 1, undersized: 1 });
    t.deepEqual(b.refused(other), { 'wrong-source': 1 });
    b.finish(t);
  });

  test(`${name}: every byte of one packet flipped in turn: the others alone are delivered`, (t) => {
    const b = espRig({ form, window: 0 });
    const list = packets(b, [40, 40, 40]);
    for (let at = 0; at < list[1].length; at++) {
      const damaged = edit(list[1], at, list[1][at] ^ (1 << (at & 7)));
      t.deepEqual(
        openSuper(b, form, [list[0], damaged, list[2]]),
        [plain(40, 0), plain(40, 2)],
        `byte ${at}`,
      );
    }
    const dropped = Object.values(b.decryptDrops()).reduce((sum, count) => sum + count, 0);
    t.is(dropped, list[1].length);
    b.finish(t);
  });

  test(`${name}: replays within one super-frame, and of it`, (t) => {
    const b = espRig({ form });
    const [a, c, d] = packets(b, [500, 500, 500]);
    t.is(openSuper(b, form, [a, c, a, a, d, c]).length, 3);
    t.deepEqual(b.decryptDrops(), { replayed: 3 });
    t.is(openSuper(b, form, [a, c, d]).length, 0);
    t.deepEqual(b.decryptDrops(), { replayed: 6 });
    b.finish(t);
  });

  test(`${name}: a lying segment size delivers nothing that is not whole`, (t) => {
    const b = espRig({ form });
    const list = packets(b, Array<number>(6).fill(300));
    const size = list[0].length;
    const total = size * 6;
    const { bytes, metadata } = superFrame(form, list);
    for (const gsoSize of [0, 1, Math.ceil(total / 128) - 1])
      t.deepEqual(b.open([bytes], { ...metadata, gsoSize }), []);
    t.deepEqual(b.decryptDrops(), { 'bad-length': 3 });
    let pieces = 0;
    for (const gsoSize of [
      Math.ceil(total / 128),
      17,
      size - 1,
      size + 1,
      size / 2,
      size * 2,
      total,
      total + 1,
      65535,
    ]) {
      t.deepEqual(b.open([bytes], { ...metadata, gsoSize }), [], `segments of ${gsoSize} bytes`);
      pieces += Math.ceil(total / gsoSize);
    }
    const refusals = Object.values(b.decryptDrops()).reduce((sum, count) => sum + count, 0);
    t.is(refusals, 3 + pieces);
    t.is(b.state.last(b.inbound().slot), 0);
    t.is(b.open([bytes], metadata).length, 6);
    b.finish(t);
  });

  test(`${name}: packets of an odd length lie at odd addresses, and are opened`, (t) => {
    const b = espRig({ form });
    for (const [k, padding] of [0, 1, 2, 3, 4].entries()) {
      // A peer that does not pad to four bytes, with a last packet that is shorter.
      const list = range(1, 5).map((n) => {
        const content = datagram(n === 5 ? 30 : 101, n);
        const bytes = Uint8Array.from({ length: padding }, (_, i) => i + 1);
        return makeEsp(b.inbound(), { sequence: k * 5 + n, padding: bytes }, content);
      });
      t.deepEqual(
        openSuper(b, form, list),
        range(1, 5).map((n) => plain(n === 5 ? 30 : 101, n)),
      );
    }
    b.finish(t);
  });

  test(`${name}: packets for which there is no slot are counted, the others pass`, (t) => {
    const memory = new FrameMemory({ small: 4, large: 1 });
    const b = espRig({ form, memory });
    const opened = openSuper(b, form, packets(b, Array<number>(10).fill(500)));
    t.deepEqual(
      opened,
      range(0, 3).map((k) => plain(500, k)),
    );
    t.deepEqual(b.decryptDrops(), { 'no-slot': 6 });
    t.is(b.state.last(b.inbound().slot), 4, 'what was not opened may come again');
    b.finish(t);
  });

  test(`${name}: two generations of keys in one super-frame`, (t) => {
    // As while keys rotate: both associations are one peer's.
    const b = espRig({ form, peers: 2 });
    const { vtep } = b.intents[1];
    const inbound = b.intents.filter(({ direction }) => direction === 'in');
    b.use(inbound.map((intent) => ({ ...intent, vtep })));
    const list = range(1, 8).map((n) => makeEsp(b.inbound(n & 1), { sequence: n }, datagram(700, n)));
    t.deepEqual(
      openSuper(b, form, list),
      range(1, 8).map((n) => plain(700, n)),
    );
    b.finish(t);
  });

  test(`${name}: single packets and super-frames in one batch keep their order`, (t) => {
    const b = espRig({ form });
    const sealed = packets(b, Array<number>(300).fill(150));
    const single = (k: number) => ({ bytes: outerEsp(form, sealed[k]), metadata: {} });
    const group = (k: number, count: number) => superFrame(form, sealed.slice(k, k + count));
    const frames = [single(0), group(1, 60), single(61), single(62), group(63, 64), group(127, 64)];
    frames.push(single(191), group(192, 64), single(256), group(257, 43));
    b.rig.feed(
      b.decrypt,
      ...frames.map(({ bytes, metadata }) => b.rig.put(bytes, { ...metadata, alignment: form.v6 ? 2 : 6 })),
    );
    b.flush();
    t.deepEqual(
      b.opened.take(),
      range(0, 299).map((k) => plain(150, k)),
    );
    b.finish(t);
  });

  test(`property, ${name}: a super-frame is what its packets are one by one`, (t) => {
    const damage = fc.constantFrom('none', 'none', 'none', 'flip', 'cut', 'spi', 'again', 'dummy', 'trailer');
    const one = fc.record({ sequence: fc.integer({ min: 1, max: 90 }), damage, at: fc.nat(300) });
    const options = fc.record({
      icv: fc.constantFrom<8 | 12 | 16>(8, 12, 16),
      esn: fc.boolean(),
      window: fc.constantFrom(0, 32, 64),
      last: fc.constantFrom(0, 40),
    });
    fc.assert(
      fc.property(options, fc.array(one, { minLength: 1, maxLength: 40 }), fc.nat(300), (o, list, size) => {
        const b = espRig({ form, ...o });
        const under = b.inbound();
        const sealed = list.map(({ sequence, damage, at }, k) => {
          const next = damage === 'dummy' ? 59 : damage === 'trailer' ? 6 : 17;
          const esp = makeEsp(under, { sequence, next }, datagram(size, k));
          if (damage === 'flip') return edit(esp, at % esp.length, esp[at % esp.length] ^ 4);
          return damage === 'spi' ? edit(esp, 2, 0xee) : esp;
        });
        // All but the last are of one size; the last may be cut.
        const final = list.length - 1;
        if (list[final].damage === 'cut')
          sealed[final] = sealed[final].slice(0, 1 + (list[final].at % size || 0));
        const opened = openSuper(b, form, sealed);
        const [drops, refused] = [b.decryptDrops(), b.refused(under)];
        const last = b.state.last(under.slot);
        b.finish(t);
        const expected = oneByOne(form, o, sealed);
        expected.single.finish(t);
        t.deepEqual([opened, last], [expected.opened, expected.last]);
        // For which of these a flipped packet is refused depends on what of its batch was opened before.
        const merged = ({
          icv = 0,
          'too-old': old = 0,
          replayed = 0,
          ...others
        }: Record<string, number>) => ({
          ...others,
          wrong: icv + old + replayed,
        });
        t.deepEqual(merged(drops), merged(expected.drops));
        t.deepEqual(merged(refused), merged(expected.refused));
      }),
      { numRuns: 150 },
    );
  });
}

test('what a super-frame holds besides ESP packets is never delivered', (t) => {
  const b = espRig({ form: UDP_V4 });
  for (const [content, gsoSize] of [
    [payload(5000), 500],
    [new Uint8Array(6400).fill(0xff), 100],
    [new Uint8Array(6400), 100],
  ] as const)
    t.deepEqual(b.open([outerEsp(UDP_V4, content)], { offload: 0x501, gsoSize }), []);
  // The first datagram of a super-frame decides whether all of it is somebody's exchange of keys.
  t.deepEqual(b.decryptDrops(), { 'unknown-spi': 74, exchange: 1 });
  b.finish(t);
});
