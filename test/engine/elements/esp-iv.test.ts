/** No key meets an IV twice: what the IV is made of, and that no two sequence numbers can give the same. */
import test from 'ava';
import fc from 'fast-check';
import { REMOTE } from '../../../engine/memory/frames.js';
import { ESP_V4, espAt, espPackets, espRig, FORMS, plainPacket, UDP_V4 } from '../../support/esp.js';
import { payload } from '../../support/frames.js';

const PACKET = plainPacket(ESP_V4, 10);
const NO_MASK = new Uint8Array(8);

/** The IV of the packet that carries a sequence number. */
function ivOf(sequence: number, mask: Uint8Array): bigint {
  const a = espRig({ esn: true, mask, last: sequence - 1 });
  const iv = Buffer.from(a.sealOne(PACKET)).readBigUInt64BE(8);
  a.release();
  return iv;
}

/** Sequence numbers at which a word or a half ends, and their neighbours. */
const BORDERS = [8, 16, 24, 31, 32, 33, 40, 48, 52]
  .flatMap((bits) => [-2, -1, 0, 1, 2].map((n) => 2 ** bits + n))
  .concat(1, 2, 3, 2 ** 53 - 2, 2 ** 53 - 1);

test('each bit of the sequence number changes one bit of the IV, and each another one', (t) => {
  // The IV is linear in the number then, and no two numbers below 2^53 have the same.
  const bits = Array.from({ length: 53 }, (_, bit) => ivOf(2 ** bit, NO_MASK));
  for (const [bit, iv] of bits.entries()) t.true(iv !== 0n && (iv & (iv - 1n)) === 0n, `bit ${bit}`);
  t.is(new Set(bits).size, 53);
  const linear = (n: number): bigint =>
    bits.reduce((iv, one, bit) => (Math.floor(n / 2 ** bit) % 2 === 1 ? iv ^ one : iv), 0n);
  for (const n of BORDERS) t.is(ivOf(n, NO_MASK), linear(n), `number ${n}`);
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 2 ** 53 - 1 }),
      fc.uint8Array({ minLength: 8, maxLength: 8 }),
      (n, mask) => {
        t.is(ivOf(n, mask) ^ ivOf(1, mask), linear(n) ^ linear(1));
      },
    ),
    { numRuns: 200 },
  );
});

test('a mask is xored in: the numbers of two masks meet nowhere that their difference does not reach', (t) => {
  const [one, other] = [payload(8, 3), payload(8, 200)];
  const difference = Buffer.from(one).readBigUInt64LE() ^ Buffer.from(other).readBigUInt64LE();
  t.true(difference !== 0n);
  const moved = ivOf(1, one) ^ ivOf(1, other);
  for (const n of BORDERS) t.is(ivOf(n, one) ^ ivOf(n, other), moved, 'the same for every number');
  // Two numbers share an IV only if they differ by just that: a random one of 64 bits.
  t.true(moved >= 2n ** 32n);
});

test('a million numbers across 2^32, in batches: all IVs differ, and are those of their numbers', (t) => {
  const count = 1_000_000;
  const last = 2 ** 32 - count / 2;
  const a = espRig({ esn: true, last, mask: payload(8, 9) });
  const { rig, encrypt, out } = a;
  const ivs = new BigUint64Array(count);
  const { u8, off } = rig.memory;
  let n = 0;
  let wrong = 0;
  // The sink that copies what it catches would take minutes for a million.
  a.divert({
    process({ frames, count: handed }) {
      for (let k = 0; k < handed; k++) {
        const at = off[frames[k]] + espAt(ESP_V4);
        const view = Buffer.from(u8.buffer, at, 16);
        ivs[n++] = view.readBigUInt64BE(8);
        if (view.readUInt32BE(4) !== (last + n) % 2 ** 32) wrong++;
        rig.memory.free(frames[k]);
      }
    },
  });
  for (let fed = 0; fed < count; fed += 250)
    rig.feed(encrypt, ...Array.from({ length: 250 }, () => rig.put(PACKET, { alignment: 6, dest: REMOTE })));
  a.flush();
  t.is(n, count);
  t.is(wrong, 0, 'numbers follow each other');
  t.is(ivs[0], ivOf(last + 1, payload(8, 9)));
  t.is(ivs[count - 1], ivOf(last + count, payload(8, 9)));
  ivs.sort();
  let twice = 0;
  for (let k = 1; k < count; k++) if (ivs[k] === ivs[k - 1]) twice++;
  t.is(twice, 0);
  t.is(out.calls, 0);
  a.finish(t);
});

test('key and numbers of before with another mask, as after a crash: no IV of before', (t) => {
  const before = new Set<string>();
  for (const [k, mask] of [payload(8, 1), payload(8, 2), payload(8, 3), payload(8, 4)].entries()) {
    const a = espRig({ mask });
    for (let batch = 0; batch < 20; batch++) {
      a.seal(Array<Uint8Array>(250).fill(PACKET));
      for (const caught of a.out.caught.splice(0))
        before.add(Buffer.from(espPackets(ESP_V4, caught)[0].subarray(8, 16)).toString('hex'));
    }
    t.is(before.size, (k + 1) * 5000);
    a.finish(t);
  }
});

test('alone or in bundles, over either IP and either form: the IV is the same', (t) => {
  const mask = payload(8, 5);
  const of = (a: ReturnType<typeof espRig>, form: typeof ESP_V4): string[] => {
    a.seal(Array.from({ length: 6 }, () => plainPacket(form, 10)));
    const ivs = [...a.linked.caught.splice(0), ...a.out.caught.splice(0)]
      .flatMap((caught) => espPackets(form, caught))
      .map((esp) => Buffer.from(esp.subarray(4, 16)).toString('hex'));
    a.finish(t);
    return ivs;
  };
  const [first, ...others] = FORMS.map((form) => of(espRig({ form, mask }), form));
  others.push(of(espRig({ form: UDP_V4, mask, linked: [0] }), UDP_V4));
  t.is(new Set(first).size, 6);
  for (const ivs of others) t.deepEqual(ivs, first);
});

test('what is dropped behind the numbering uses its number up', (t) => {
  const a = espRig({ mask: NO_MASK });
  const [first] = [a.sealOne(PACKET)];
  a.withoutKey(() => a.seal([PACKET, PACKET]));
  t.deepEqual(a.encryptDrops(), { 'not-sealed': 2 });
  const next = a.sealOne(PACKET);
  const low = (esp: Uint8Array) => Buffer.from(esp).readUInt32BE(4);
  t.deepEqual([low(first), low(next)], [1, 4]);
  a.finish(t);
});
