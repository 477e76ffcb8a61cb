/** Batches of AES-GCM: what each job does and does not touch, under each library, against node:crypto. */
import { closeSync, openSync, readFileSync, readSync } from 'node:fs';
import test from 'ava';
import fc from 'fast-check';
import { FrameMemory } from '../../engine/memory/frames.js';
import { MAX_ASSOCIATIONS } from '../../engine/tables/association-state.js';
import { GCM_JOB_WORDS, GCM_MAX_JOBS, type GcmLibrary, native } from '../../native-bindings/index.js';
import { type EspKey, noise, sealed } from './support/gcm.js';

const [EFAULT, EINVAL] = [-14, -22];
const memory = new FrameMemory({ small: 4, large: 2, arena: 1 << 20 });
native.attach(memory.u8, memory.off, memory.len, memory.freeLarge);
const { u8, arenaStart: BASE } = memory;
const SIZE = u8.length;
const libraries = native.gcmLibraries();

function under(seed: number, bits: 128 | 192 | 256 = 128, icv: 8 | 12 | 16 = 16, esn = false): EspKey {
  return { key: noise(seed, bits / 8), salt: noise(seed + 1, 4), icv, esn };
}

function install(library: GcmLibrary, slot: number, key: EspKey): void {
  native.gcmInstall({ ...key, slot, library });
}

interface Job {
  readonly header: number;
  readonly source: number;
  readonly destination: number;
  readonly length: number;
  readonly slot: number;
  readonly high?: number;
}

const jobs = (...list: Job[]): Uint32Array =>
  Uint32Array.from(
    list.flatMap((job) => [job.header, job.source, job.destination, job.length, job.slot, job.high ?? 0]),
  );

const seal = (...list: Job[]): number => native.gcmSeal(jobs(...list), list.length);

/** The results, or the errno. */
function open(...list: Job[]): number | number[] {
  const results = new Uint32Array(list.length).fill(7);
  const code = native.gcmOpen(jobs(...list), list.length, results);
  return code === 0 ? [...results] : code;
}

test.beforeEach(() => {
  for (let slot = 0; slot < 16; slot++) native.gcmRemove(slot);
});

test.serial('the words and limits are those of the addon and of the table of associations', (t) => {
  t.is(GCM_JOB_WORDS, 6);
  t.throws(() => native.gcmSeal(new Uint32Array((GCM_MAX_JOBS + 1) * 6), GCM_MAX_JOBS + 1), {
    instanceOf: TypeError,
  });
  t.is(native.gcmSeal(new Uint32Array(GCM_MAX_JOBS * 6), 0), 0);
  native.gcmInstall({ ...under(1), slot: MAX_ASSOCIATIONS - 1 });
  t.throws(() => native.gcmInstall({ ...under(1), slot: MAX_ASSOCIATIONS }), { message: /slot/ });
  native.gcmRemove(MAX_ASSOCIATIONS - 1);
});

const flags = readFileSync('/proc/cpuinfo', 'latin1');
const able = process.arch === 'x64' && /\bpclmulqdq\b/.test(flags) && /\baes\b/.test(flags);
const built = libraries.includes('ipsec-mb');
const why = able ? 'this build has no libipsec-mb' : 'this CPU has not what libipsec-mb needs';
(built ? test.serial : test.serial.skip)(
  `libipsec-mb is preferred${built ? '' : ` [skipped, like all tests of it: ${why}]`}`,
  (t) => {
    t.deepEqual(libraries, ['ipsec-mb', 'openssl']);
  },
);

test.serial('OpenSSL is there, for node brings it', (t) => {
  t.true(libraries.includes('openssl'));
});

for (const library of libraries) {
  test.serial(`${library}: every length from 0 to 1500 as node:crypto seals it, in and out of place`, (t) => {
    const keys = [under(1, 128, 16), under(2, 256, 12, true), under(3, 192, 8), under(4, 128, 16, true)];
    for (const [slot, key] of keys.entries()) install(library, slot, key);
    for (let length = 0; length <= 1500; length++) {
      const slot = length % keys.length;
      const high = length * 7919;
      const plain = noise(length, length);
      const header = BASE + (length % 61);
      const source = header + 16;
      for (const destination of [source, BASE + 4096 + (length % 67)]) {
        u8.set(noise(length + 99, 16), header);
        u8.set(plain, source);
        const want = sealed(keys[slot], u8.subarray(header, header + 16), plain, high);
        u8.fill(0x55, destination + want.length, destination + want.length + 8);
        const job = { header, source, destination, length, slot, high };
        t.is(seal(job), 0);
        if (Buffer.compare(u8.subarray(destination, destination + want.length), want) !== 0)
          t.fail(`${length} bytes, slot ${slot}`);
        t.true(
          u8.subarray(destination + want.length, destination + want.length + 8).every((b) => b === 0x55),
        );
        t.deepEqual(open({ ...job, source: destination, destination: source }), [1]);
        if (Buffer.compare(u8.subarray(source, source + length), plain) !== 0)
          t.fail(`${length} bytes back, slot ${slot}`);
      }
    }
  });

  test.serial(`${library}: any alignment of header, source and destination`, (t) => {
    const key = under(5, 128, 16, true);
    install(library, 1, key);
    for (const length of [0, 1, 15, 16, 17, 64, 100, 300]) {
      const plain = noise(length, length);
      for (let shift = 0; shift < 64; shift++) {
        const header = BASE + ((shift * 5) % 64);
        const source = BASE + 1024 + shift;
        const destination = BASE + 2048 + ((shift * 11) % 64);
        u8.set(noise(shift, 16), header);
        u8.set(plain, source);
        u8.fill(0x55, destination - 64, destination + length + 80);
        const want = sealed(key, u8.subarray(header, header + 16), plain, shift);
        t.is(seal({ header, source, destination, length, slot: 1, high: shift }), 0);
        const around = Uint8Array.from({ length: length + 144 }, () => 0x55);
        around.set(want, 64);
        t.deepEqual(u8.slice(destination - 64, destination + length + 80), around);
        t.deepEqual(u8.slice(source, source + length), plain, 'the source stays');
      }
    }
  });

  test.serial(`${library}: every byte of a packet flipped in turn opens nothing and leaves zeros`, (t) => {
    for (const esn of [false, true]) {
      for (const icv of [8, 12, 16] as const) {
        const key = under(6, 192, icv, esn);
        install(library, 2, key);
        const plain = noise(77, 50);
        const packet = new Uint8Array(16 + 50 + icv);
        packet.set(noise(78, 16));
        packet.set(sealed(key, packet.subarray(0, 16), plain, 9), 16);
        const inPlace = {
          header: BASE,
          source: BASE + 16,
          destination: BASE + 16,
          length: 50,
          slot: 2,
          high: 9,
        };
        const apart = { ...inPlace, destination: BASE + 500 };
        for (let at = 0; at < packet.length; at++) {
          for (const job of [inPlace, apart]) {
            u8.set(packet, BASE);
            u8[BASE + at] ^= 1 << (at % 8);
            u8.fill(0x55, BASE + 500, BASE + 600);
            t.deepEqual(open(job), [0], `byte ${at}`);
            t.true(u8.subarray(job.destination, job.destination + 50).every((b) => b === 0));
          }
          t.true(u8.subarray(BASE + 550, BASE + 600).every((b) => b === 0x55));
        }
        u8.set(packet, BASE);
        t.deepEqual(open(inPlace), [1]);
        u8.set(packet, BASE);
        t.deepEqual(open({ ...inPlace, high: 10 }), [esn ? 0 : 1], 'the high half counts with ESN only');
        native.gcmRemove(2);
      }
    }
  });

  test.serial(`${library}: one bad packet among good ones is the only one that does not open`, (t) => {
    const key = under(7);
    install(library, 3, key);
    const plain = noise(7, 200);
    const list = Array.from({ length: 9 }, (_, i) => {
      const header = BASE + i * 300;
      u8.set(noise(i, 16), header);
      u8.set(sealed(key, u8.subarray(header, header + 16), plain, 0), header + 16);
      return { header, source: header + 16, destination: header + 16, length: 200, slot: 3 };
    });
    u8[list[4].source + 100] ^= 0x80;
    t.deepEqual(open(...list), [1, 1, 1, 1, 0, 1, 1, 1, 1]);
    for (const [i, { destination }] of list.entries())
      t.deepEqual(u8.slice(destination, destination + 200), i === 4 ? new Uint8Array(200) : plain);
  });

  test.serial(`${library}: a key that goes is no longer in the memory of the process`, (t) => {
    // Arrays over a buffer of their own: V8 moves small ones about, and leaves copies behind.
    const inverted = new Int32Array(new ArrayBuffer(32));
    const key = new Int32Array(new ArrayBuffer(32));
    for (let i = 0; i < 8; i++) inverted[i] = Math.random() * 2 ** 32;
    for (let i = 0; i < 8; i++) key[i] = ~inverted[i];
    const bytes = new Uint8Array(key.buffer);
    native.gcmInstall({ slot: 4, key: bytes, salt: new Uint8Array(4), icv: 16, esn: false, library });
    key.fill(0);
    t.true(copiesInMemory(inverted) > 0, 'it is found where it is in use, so that the search is one');
    native.gcmRemove(4);
    t.is(copiesInMemory(inverted), 0);
  });
}

/** Where in the writable memory of this process some words are, which are given inverted so as not to be found. */
function copiesInMemory(inverted: Int32Array): number {
  const regions = readFileSync('/proc/self/maps', 'latin1')
    .split('\n')
    .map((line) => /^([0-9a-f]+)-([0-9a-f]+) rw/.exec(line))
    .filter((match) => match !== null)
    .map((match) => [Number.parseInt(match[1], 16), Number.parseInt(match[2], 16)])
    // A sanitizer's shadow of all memory is no place for keys, and would take days to read.
    .filter(([from, to]) => to - from <= 1 << 30);
  const file = openSync('/proc/self/mem', 'r');
  const chunk = new Int32Array(1 << 16);
  let found = 0;
  for (const [from, to] of regions) {
    // Chunks overlap by a key, which may lie across their border.
    for (let at = from; at < to; at += chunk.byteLength - inverted.byteLength) {
      const count = readWords(file, chunk, Math.min(chunk.byteLength, to - at), at);
      for (let i = 0; i < count; i++)
        if (chunk[i] === ~inverted[0] && inverted.every((word, k) => chunk[i + k] === ~word)) found++;
      chunk.fill(0);
    }
  }
  closeSync(file);
  return found;
}

/** @returns the count of words; 0 where the memory is gone by now, or cannot be read. */
function readWords(file: number, out: Int32Array, bytes: number, at: number): number {
  try {
    return readSync(file, out, 0, bytes, at) >> 2;
  } catch {
    return 0;
  }
}

test.serial(
  'a batch over many slots, libraries and shapes is what node:crypto makes, and comes back',
  (t) => {
    const shapes = [16, 24, 32].flatMap((length) =>
      ([8, 12, 16] as const).map((icv) => ({ length, icv, esn: (length + icv) % 3 === 0 })),
    );
    const keys = shapes.map(({ length, icv, esn }, i) => ({
      key: noise(i, length),
      salt: noise(i + 50, 4),
      icv,
      esn,
    }));
    for (const [slot, key] of keys.entries()) install(libraries[slot % libraries.length], slot, key);
    const job = fc.record({
      slot: fc.nat(keys.length - 1),
      length: fc.oneof(fc.nat(80), fc.nat(3000)),
      shift: fc.nat(31),
      high: fc.integer({ min: 0, max: 0xffffffff }),
      apart: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(job, { minLength: 1, maxLength: 40 }), fc.nat(1 << 30), (list, seed) => {
        const placed = list.map(({ slot, length, shift, high, apart }, i) => {
          const header = BASE + i * 8192 + shift;
          return {
            header,
            source: header + 16,
            destination: header + (apart ? 4096 : 16),
            length,
            slot,
            high,
          };
        });
        const plain = placed.map(({ length }, i) => noise(seed + i, length));
        for (const [i, { header, source }] of placed.entries()) {
          u8.set(noise(seed - i, 16), header);
          u8.set(plain[i], source);
        }
        const want = placed.map(({ header, slot, high }, i) =>
          sealed(keys[slot], u8.subarray(header, header + 16), plain[i], high),
        );
        t.is(seal(...placed), 0);
        for (const [i, { destination }] of placed.entries())
          t.deepEqual(u8.slice(destination, destination + want[i].length), want[i]);
        const back = placed.map((one) => ({ ...one, source: one.destination, destination: one.source }));
        t.deepEqual(
          open(...back),
          placed.map(() => 1),
        );
        for (const [i, { source, length }] of placed.entries())
          t.deepEqual(u8.slice(source, source + length), plain[i]);
      }),
      { numRuns: 60 },
    );
  },
);

test.serial(
  'a job that points outside or names an empty slot: EFAULT, and nothing of its batch is done',
  (t) => {
    install(libraries[0], 1, under(20));
    install(libraries[0], 2, under(21, 128, 8));
    const good = { header: BASE, source: BASE + 16, destination: BASE + 16, length: 100, slot: 1 };
    const far = 0xffffffff;
    const wrong: Partial<Job>[] = [
      { slot: 3 },
      { slot: MAX_ASSOCIATIONS },
      { slot: far },
      { header: SIZE - 15 },
      { header: SIZE },
      { header: far },
      { source: SIZE - 99 },
      { source: far },
      { destination: SIZE - 99 },
      { destination: far },
      { length: SIZE },
      { length: far },
      { length: far - 15 },
      { source: SIZE, destination: SIZE, length: 1 },
    ];
    for (const bad of wrong) {
      for (const batch of [
        [good, { ...good, ...bad }],
        [{ ...good, ...bad }, good],
      ]) {
        u8.fill(0x55, BASE, BASE + 200);
        t.is(seal(...batch), EFAULT, JSON.stringify(bad));
        t.is(open(...batch), EFAULT, JSON.stringify(bad));
        t.true(u8.subarray(BASE, BASE + 200).every((b) => b === 0x55));
      }
    }
  },
);

test.serial('the last byte of the memory is in, the one behind is not: the ICV counts', (t) => {
  for (const [slot, icv] of [
    [1, 16],
    [2, 8],
  ] as const) {
    install(libraries[0], slot, under(30, 128, icv));
    const last = { header: BASE, source: SIZE - 40 - icv, destination: SIZE - 40 - icv, length: 40, slot };
    t.is(seal(last), 0);
    t.deepEqual(open(last), [1]);
    t.is(seal({ ...last, length: 41 }), EFAULT);
    t.is(open({ ...last, length: 41 }), EFAULT);
    // Only what is sealed has an ICV behind it.
    t.is(seal({ ...last, source: SIZE - 40, destination: BASE + 100 }), 0);
    t.is(seal({ ...last, source: BASE + 100, destination: SIZE - 40 }), EFAULT);
    t.is(open({ ...last, source: SIZE - 40, destination: BASE + 100 }), EFAULT);
    t.deepEqual(open({ ...last, source: BASE + 100, destination: SIZE - 40 }), [1]);
    t.is(seal({ ...last, header: SIZE - 16, source: BASE, destination: BASE }), 0);
  }
});

test.serial('source and destination that overlap without being the same are refused: EINVAL', (t) => {
  install(libraries[0], 1, under(40));
  const at = (source: number, destination: number, length: number): Job => ({
    header: BASE,
    source: BASE + source,
    destination: BASE + destination,
    length,
    slot: 1,
  });
  u8.fill(0x55, BASE, BASE + 1000);
  for (const [source, destination] of [
    [100, 101],
    [101, 100],
    [100, 199],
    [199, 100],
  ]) {
    t.is(seal(at(source, destination, 100)), EINVAL);
    t.is(open(at(source, destination, 100)), EINVAL);
  }
  t.true(u8.subarray(BASE, BASE + 1000).every((b) => b === 0x55));
  t.is(seal(at(100, 200, 100)), 0);
  t.is(seal(at(200, 100, 100)), 0);
});

test.serial('a slot takes one key at a time; the next one is another key', (t) => {
  install(libraries[0], 1, under(50));
  t.throws(() => install(libraries[0], 1, under(51)), {
    instanceOf: TypeError,
    message: /slot 1 holds a key/,
  });
  const job = { header: BASE, source: BASE + 16, destination: BASE + 16, length: 64, slot: 1 };
  const once = (): Uint8Array => {
    u8.fill(0x33, BASE, BASE + 96);
    t.is(seal(job), 0);
    return u8.slice(BASE + 16, BASE + 96);
  };
  const first = once();
  t.deepEqual(first, sealed(under(50), u8.subarray(BASE, BASE + 16), new Uint8Array(64).fill(0x33), 0));
  native.gcmRemove(1);
  t.is(seal(job), EFAULT);
  t.is(open(job), EFAULT);
  native.gcmRemove(1);
  install(libraries[0], 1, under(51));
  t.notDeepEqual(once(), first);
});

test.serial('keys of wrong lengths, numbers that are none and libraries that are none are refused', (t) => {
  const call = native.gcmInstall as (options: unknown) => void;
  const right = { ...under(60), slot: 5 };
  const wrong: [Record<string, unknown>, RegExp][] = [
    ...[0, 15, 17, 23, 31, 33, 64].map((n): [Record<string, unknown>, RegExp] => [
      { key: noise(1, n) },
      /key/,
    ]),
    ...[0, 3, 5, 12].map((n): [Record<string, unknown>, RegExp] => [{ salt: noise(1, n) }, /salt/]),
    ...[0, 4, 10, 13, 17, -8, '16', undefined].map((icv): [Record<string, unknown>, RegExp] => [
      { icv },
      /icv/,
    ]),
    ...[-1, MAX_ASSOCIATIONS, 1.5, 2 ** 32, Number.NaN, '1', undefined].map(
      (slot): [Record<string, unknown>, RegExp] => [{ slot }, /slot/],
    ),
    ...['aes', 'ipsec-mb ', 'x'.repeat(99)].map((library): [Record<string, unknown>, RegExp] => [
      { library },
      /library/,
    ]),
    [{ library: 7 }, /library/],
    [{ key: undefined }, /Uint8Array/],
    [{ key: new Uint32Array(4) }, /Uint8Array/],
    [{ salt: 'salt' }, /Uint8Array/],
  ];
  for (const [part, message] of wrong)
    t.throws(() => call({ ...right, ...part }), { instanceOf: TypeError, message });
  for (const none of [undefined, null, 1, 'x']) t.throws(() => call(none), { instanceOf: TypeError });
  const text = t.throws(() => call({ ...right, key: new Uint8Array(15).fill(0x41) })).message;
  t.notRegex(text, /65|41|A{3}/, 'no error shows a key');
  t.is(seal({ header: BASE, source: BASE, destination: BASE, length: 0, slot: 5 }), EFAULT, 'none went in');
  t.throws(() => native.gcmRemove(MAX_ASSOCIATIONS), { instanceOf: TypeError });
});

test.serial('a getter that gives the key away while it is read is no way into freed memory', (t) => {
  const key = noise(1, 32);
  const options = {
    slot: 6,
    icv: 16,
    esn: false,
    key,
    get salt() {
      structuredClone(key, { transfer: [key.buffer as ArrayBuffer] });
      return new Uint8Array(4);
    },
  };
  const call = native.gcmInstall as (options: unknown) => void;
  t.throws(() => call(options), { instanceOf: TypeError, message: /key is not of/ });
  const fails = {
    get library() {
      throw new RangeError('mine');
    },
  };
  t.throws(() => call(fails), { instanceOf: RangeError, message: 'mine' });
});

test.serial('counts and arrays that do not fit are refused', (t) => {
  const [sealAny, openAny] = [native.gcmSeal, native.gcmOpen] as ((...args: unknown[]) => number)[];
  for (const count of [2, -1, 0xffffffff]) {
    t.throws(() => sealAny(new Uint32Array(11), count), { instanceOf: TypeError });
    t.throws(() => openAny(new Uint32Array(11), count, new Uint32Array(9)), { instanceOf: TypeError });
  }
  t.throws(() => openAny(new Uint32Array(12), 2, new Uint32Array(1)), { instanceOf: TypeError });
  for (const wrong of [null, {}, [], 'x', new Int32Array(6), new Uint8Array(24)]) {
    t.throws(() => sealAny(wrong, 1), { instanceOf: TypeError });
    t.throws(() => openAny(wrong, 1, new Uint32Array(1)), { instanceOf: TypeError });
    t.throws(() => openAny(new Uint32Array(6), 1, wrong), { instanceOf: TypeError });
  }
  t.throws(() => sealAny(new Uint32Array(6)), { message: /gcmSeal takes 2 arguments/ });
});

test.serial('gcmVector refuses what is no IV, tag or text', (t) => {
  const [key, iv, none] = [noise(1, 16), noise(2, 12), new Uint8Array(0)];
  const right = { key, iv, aad: none, text: noise(3, 20), icv: 16, encrypt: false };
  t.is(native.gcmVector(right), null);
  for (const part of [
    { key: noise(1, 20) },
    { iv: noise(1, 8) },
    { iv: noise(1, 16) },
    { icv: 3 },
    { icv: 17 },
    { text: noise(1, 15) },
    { text: new Uint8Array((1 << 20) + 1) },
    { aad: new Uint8Array((1 << 20) + 1) },
  ])
    t.throws(() => native.gcmVector({ ...right, ...part }), {
      instanceOf: TypeError,
      message: /^gcmVector: /,
    });
});
