/**
 * The cases of ESP with AES-GCM that other implementations test (VPP, Snabb, wireguard-go), one test each. Case 18,
 * the Linux kernel as the peer, is in test/live.
 */
import test from 'ava';
import {
  datagram,
  ESP_V4,
  type EspRig,
  edit,
  espAt,
  espPackets,
  espRig,
  FORMS,
  type Form,
  frontOf,
  makeEsp,
  outerEsp,
  plainPacket,
  readEsp,
  superFrame,
  UDP_V4,
} from '../../support/esp.js';
import { payload } from '../../support/frames.js';

const HALF = 2 ** 32;
const range = (first: number, last: number): number[] =>
  Array.from({ length: last - first + 1 }, (_, i) => first + i);
const all = (count: number, verdict: string): string[] => Array(count).fill(verdict);

/** Seals under `a`, checks with node:crypto what came of it, and opens under `b`, the other end. */
function roundTrip(a: EspRig, b: EspRig, form: Form, sizes: readonly number[]): void {
  const packets = sizes.map((size) => plainPacket(form, size, { first: size }));
  a.seal(packets);
  const sealed = a.out.caught.splice(0);
  const under = a.outbound();
  const first = a.state.last(under.slot) - sizes.length + 1;
  for (const [k, size] of sizes.entries()) {
    const [esp] = espPackets(form, sealed[k]);
    const high = Math.floor((first + k) / HALF);
    const { spi, low, content, padding, next } = readEsp(under, esp, high);
    const sound =
      spi === under.spi &&
      low === (first + k) % HALF &&
      next === 17 &&
      padding.length < 4 &&
      padding.every((byte, i) => byte === i + 1) &&
      esp.length % 4 === 0 &&
      Buffer.compare(content, datagram(size, size)) === 0;
    if (!sound) throw new Error(`${form.name}, ${size} bytes: not sealed by the book`);
  }
  const opened = b.open(sealed.map(({ bytes }) => bytes));
  if (opened.length !== packets.length) throw new Error(`${form.name}: ${opened.length} opened`);
  for (const [k, packet] of packets.entries())
    if (Buffer.compare(opened[k], packet) !== 0) throw new Error(`${form.name}, ${sizes[k]} bytes: changed`);
}

test('ESP 1: round trip of every length from 0 to the MTU, with padding to four bytes', (t) => {
  for (const form of FORMS) {
    const [a, b] = [espRig({ form, checksum: true }), espRig({ form, mirrored: true })];
    for (let size = 0; size <= 1472; size += 256)
      roundTrip(a, b, form, range(size, Math.min(size + 255, 1472)));
    t.is(a.rig.counter('esp-encrypt', 'frames'), 1473);
    t.is(b.rig.counter('esp-decrypt', 'frames'), 1473);
    t.is(a.state.packets[a.outbound().slot], 1473);
    t.is(b.state.packets[b.inbound().slot], 1473);
    t.is(a.state.bytes[a.outbound().slot], b.state.bytes[b.inbound().slot]);
    t.deepEqual([a.encryptDrops(), b.decryptDrops(), b.refused(b.inbound())], [{}, {}, {}]);
    a.finish(t);
    b.finish(t);
  }
});

test('ESP 1: every key size, ICV and kind of sequence number', (t) => {
  for (const form of FORMS)
    for (const bits of [128, 192, 256] as const)
      for (const icv of [8, 12, 16] as const)
        for (const esn of [false, true]) {
          const options = { form, bits, icv, esn, checksum: true, last: esn ? HALF - 20 : 0 };
          const [a, b] = [espRig(options), espRig({ ...options, mirrored: true })];
          roundTrip(a, b, form, [...range(0, 36), 1399, 1400, 1401, 1402, 8900]);
          t.deepEqual(b.decryptDrops(), {});
          a.finish(t);
          b.finish(t);
        }
});

test('ESP 2: 1 to 34 are accepted, then all of them are replays', (t) => {
  for (const form of FORMS) {
    const b = espRig({ form });
    t.deepEqual(b.receive(...range(1, 34)), all(34, 'passed'));
    t.deepEqual(b.receive(...range(1, 34)), all(34, 'replayed'));
    t.deepEqual(b.decryptDrops(), { replayed: 34 });
    t.deepEqual(b.refused(b.inbound()), { replayed: 34 });
    t.is(b.state.packets[b.inbound().slot], 34);
    b.finish(t);
  }
});

test('ESP 3: of eight copies in one batch one is accepted', (t) => {
  for (const form of FORMS) {
    const b = espRig({ form });
    const packets = range(1, 3).flatMap((sequence) => Array(8).fill(b.make(sequence)) as Uint8Array[]);
    t.is(b.open(packets).length, 3);
    t.deepEqual(b.decryptDrops(), { replayed: 21 });
    t.deepEqual(b.refused(b.inbound()), { replayed: 21 });
    if (form.port !== 0) {
      const esp = makeEsp(b.inbound(), { sequence: 4 }, datagram(20));
      const { bytes, metadata } = superFrame(form, Array(8).fill(esp));
      t.is(b.open([bytes], metadata).length, 1, 'in one super-frame');
      t.deepEqual(b.decryptDrops(), { replayed: 28 });
    }
    b.finish(t);
  }
});

test('ESP 4: a jump to 257, then 200 from within the window once', (t) => {
  const b = espRig();
  t.deepEqual(b.receive(1, 257, 200, 200, 257), ['passed', 'passed', 'passed', 'replayed', 'replayed']);
  t.deepEqual(b.refused(b.inbound()), { replayed: 2 });
  b.finish(t);
});

test('ESP 5: seventeen packets under a wrong key do not move the window', (t) => {
  for (const form of FORMS) {
    const b = espRig({ form });
    t.deepEqual(b.receive(257), ['passed']);
    const under = { ...b.inbound(), key: payload(16, 99) };
    const wrong = outerEsp(form, makeEsp(under, { sequence: 350 }, datagram(20)));
    t.deepEqual(b.open(Array(17).fill(wrong)), []);
    t.deepEqual(b.decryptDrops(), { icv: 17 });
    t.deepEqual(b.refused(b.inbound()), { icv: 17 });
    t.is(b.state.last(b.inbound().slot), 257);
    t.deepEqual(b.receive(234, 350), ['passed', 'passed'], 'as if there had been nothing');
    b.finish(t);
  }
});

test('ESP 6: runts of every length are undersized', (t) => {
  for (const form of FORMS)
    for (const icv of [8, 12, 16] as const) {
      const b = espRig({ form, icv });
      const whole = makeEsp(b.inbound(), { sequence: 1 }, new Uint8Array(0));
      t.is(whole.length, 8 + 8 + 4 + icv);
      // Two bytes less would still hold a trailer, and are not of a multiple of four.
      const least = 8 + 8 + 2 + icv;
      const lengths = range(form.port === 0 ? 1 : 0, least - 1);
      const runts = lengths.map((length) => outerEsp(form, whole.slice(0, length)));
      t.deepEqual(b.verdicts(...runts), all(runts.length, 'undersized'), `${form.name}, ICV ${icv}`);
      // Those that name an association and could hold a trailer are counted for it.
      t.deepEqual(b.refused(b.inbound()), { undersized: icv });
      t.deepEqual(b.verdicts(outerEsp(form, whole.slice(0, least))), ['icv']);
      b.finish(t);
    }
});

test('ESP 7: below the window: too old, or with ESN the half to come, whose ICV is wrong', (t) => {
  for (const form of FORMS) {
    const b = espRig({ form });
    t.deepEqual(b.receive(350, 17, 286, 287), ['passed', 'too-old', 'too-old', 'passed']);
    t.deepEqual(b.refused(b.inbound()), { 'too-old': 2 });
    b.finish(t);
    const extended = espRig({ form, esn: true });
    t.deepEqual(extended.receive(350, 17, 286, 287), ['passed', 'icv', 'icv', 'passed']);
    t.deepEqual(extended.refused(extended.inbound()), { icv: 2 });
    extended.finish(t);
  }
});

test('ESP 8: after 0xffffffff nothing is sent any more; with ESN 2^32 is', (t) => {
  for (const form of FORMS) {
    const a = espRig({ form, last: HALF - 3 });
    a.seal(range(0, 4).map((size) => plainPacket(form, size)));
    t.deepEqual(
      a.out.caught.splice(0).map((caught) => readEsp(a.outbound(), espPackets(form, caught)[0]).low),
      [HALF - 2, HALF - 1],
    );
    t.deepEqual(a.encryptDrops(), { exhausted: 3 });
    a.seal(range(0, 299).map((size) => plainPacket(form, size)));
    t.is(a.out.caught.length, 0, 'for ever');
    t.deepEqual(a.encryptDrops(), { exhausted: 303 });
    t.deepEqual(a.refused(a.outbound()), { exhausted: 303 });
    t.is(a.state.last(a.outbound().slot), HALF - 1);
    a.finish(t);

    const extended = espRig({ form, esn: true, last: HALF - 3 });
    extended.seal(range(0, 4).map((size) => plainPacket(form, size)));
    const read = extended.out.caught.splice(0).map((caught, k) => {
      const [esp] = espPackets(form, caught);
      return readEsp(extended.outbound(), esp, k < 2 ? 0 : 1).low;
    });
    t.deepEqual(read, [HALF - 2, HALF - 1, 0, 1, 2]);
    t.is(extended.state.last(extended.outbound().slot), HALF + 2);
    t.deepEqual(extended.encryptDrops(), {});
    extended.finish(t);
  }
});

test('ESP 8: after 2^53 - 1 nothing is sent any more with ESN either', (t) => {
  const a = espRig({ esn: true, last: 2 ** 53 - 3 });
  a.seal(range(0, 4).map((size) => plainPacket(ESP_V4, size)));
  const [first, second] = a.out.caught.splice(0).map((caught) => espPackets(ESP_V4, caught)[0]);
  t.is(readEsp(a.outbound(), first, 2 ** 21 - 1).low, HALF - 2);
  t.is(readEsp(a.outbound(), second, 2 ** 21 - 1).low, HALF - 1);
  t.deepEqual(a.encryptDrops(), { exhausted: 3 });
  t.is(a.state.last(a.outbound().slot), 2 ** 53 - 1);
  a.finish(t);
});

test('ESP 9: extended numbers across the halves', (t) => {
  for (const form of FORMS) {
    const b = espRig({ form, esn: true, last: HALF - 10 });
    const wrapped = [HALF + 5, 0xfffffffd, 2 * HALF + 0x999, HALF + 0x555, 2 * HALF + 0x444];
    t.deepEqual(b.receive(...wrapped), ['passed', 'passed', 'icv', 'passed', 'passed']);
    t.is(b.state.last(b.inbound().slot), 2 * HALF + 0x444);
    t.deepEqual(b.receive(HALF + 5, 2 * HALF + 0x443, HALF + 0x555), ['icv', 'passed', 'icv']);
    b.finish(t);
  }
});

test('ESP 10: even numbers, then all: odd ones are accepted, even ones are replays, also across 2^32', (t) => {
  for (const form of FORMS)
    for (const [esn, base] of [
      [false, 0],
      [true, 0],
      [true, HALF - 32],
      [true, 7 * HALF - 31],
      [true, 2 ** 53 - 64],
    ] as const) {
      const b = espRig({ form, esn, last: base });
      const even = range(1, 30).map((n) => base + n * 2);
      t.deepEqual(b.receive(...even), all(30, 'passed'), `${form.name} from ${base}`);
      const verdicts = b.receive(...range(1, 60).map((n) => base + n));
      t.deepEqual(
        verdicts,
        range(1, 60).map((n) => (n % 2 === 0 ? 'replayed' : 'passed')),
        `${form.name} from ${base}`,
      );
      b.finish(t);
    }
});

test('ESP 11: far future and far past are refused, and move nothing', (t) => {
  const b = espRig({ esn: true, last: 2 ** 34 });
  t.deepEqual(b.receive(2 ** 36, 2 ** 35 + 1, 2 ** 34 + HALF * 2), all(3, 'icv'), 'future');
  t.deepEqual(b.receive(2 ** 34 - HALF - 1, 2 ** 33, 5), all(3, 'icv'), 'past');
  t.is(b.state.last(b.inbound().slot), 2 ** 34);
  t.deepEqual(b.receive(2 ** 34 + 1), ['passed']);
  b.finish(t);
  // In the first half there is no past half to look in.
  const fresh = espRig({ esn: true });
  t.deepEqual(fresh.receive(0xfffffff0, 5, 0xfffffff0), ['too-old', 'passed', 'too-old']);
  t.deepEqual(fresh.refused(fresh.inbound()), { 'too-old': 2 });
  fresh.finish(t);
});

test('ESP 12: the transcript of a window, one higher than where counting begins at zero', (t) => {
  for (const window of [32, 64, 1024, 4096]) {
    // A window of W numbers takes the highest and W - 1 below it.
    const top = window;
    const script: readonly [number, boolean][] = [
      [0, true],
      [1, true],
      [1, false],
      [9, true],
      [8, true],
      [7, true],
      [7, false],
      [top, true],
      [top - 1, true],
      [top - 1, false],
      [top - 2, true],
      [2, true],
      [2, false],
      [top + 16, true],
      [3, false],
      [top + 16, false],
      [top * 4, true],
      [top * 3 + 1, true],
      [10, false],
      [top * 3, false],
      [top * 3 - 1, false],
      [top * 3 + 2, true],
      [top * 3 + 1, false],
      [0, false],
    ];
    const b = espRig({ window });
    for (const [step, [n, passes]] of script.entries())
      t.is(b.receive(n + 1)[0] === 'passed', passes, `window ${window}, step ${step}: ${n}`);
    t.is(b.state.packets[b.inbound().slot], script.filter(([, passes]) => passes).length);
    b.finish(t);
  }
});

test('ESP 12: bulks of the window’s size, upwards and downwards', (t) => {
  for (const window of [32, 64, 1024]) {
    const up = espRig({ window });
    t.deepEqual(up.receive(...range(1, window), ...range(1, window)).slice(window), all(window, 'replayed'));
    up.finish(t);
    const down = espRig({ window });
    t.deepEqual(down.receive(...range(1, window).toReversed()), all(window, 'passed'));
    t.deepEqual(down.receive(window + 1, 1, 2), ['passed', 'too-old', 'replayed']);
    down.finish(t);
    const late = espRig({ window });
    t.deepEqual(late.receive(...range(2, window + 1), 1), [...all(window, 'passed'), 'too-old']);
    late.finish(t);
  }
});

test('ESP 13: a bit flipped anywhere in SPI, sequence number, IV, ciphertext or ICV', (t) => {
  for (const form of FORMS)
    for (const esn of [false, true]) {
      const b = espRig({ form, esn, last: 100 });
      const packet = b.make(120);
      let tried = 0;
      for (let at = espAt(form); at < packet.length; at++)
        for (let bit = 0; bit < 8; bit++) {
          const [verdict] = b.verdicts(edit(packet, at, packet[at] ^ (1 << bit)));
          const field = at - espAt(form);
          if (field < 4) t.is(verdict, 'unknown-spi');
          else if (field < 8) t.true(['icv', 'too-old'].includes(verdict), verdict);
          else t.is(verdict, 'icv', `byte ${field}, bit ${bit}`);
          tried++;
        }
      t.is(tried, (packet.length - espAt(form)) * 8);
      t.is(b.state.last(b.inbound().slot), 100, 'the window has not moved');
      t.deepEqual(b.verdicts(packet), ['passed']);
      b.finish(t);
    }
});

test('ESP 14: unknown SPI, wrong destination, wrong source, dummies, bad trailers', (t) => {
  for (const form of FORMS) {
    const b = espRig({ form, peers: 2 });
    const under = b.inbound();
    const outer = (spi: number, o = {}) =>
      outerEsp(form, makeEsp({ ...under, spi }, { sequence: 1 }, datagram(20)), o);
    const spis = [0x81002002, 0x1000, 1, 0xffffffff];
    t.deepEqual(b.verdicts(...spis.map((spi) => outer(spi))), all(4, 'unknown-spi'));
    const elsewhere = form.v6 ? '2001:db8::3' : '192.0.2.3';
    t.deepEqual(b.verdicts(outer(under.spi, { destination: elsewhere })), ['not-ours']);
    t.deepEqual(b.verdicts(outer(under.spi, { source: elsewhere })), ['wrong-source']);
    const ofOther = outer(under.spi, { source: form.v6 ? '2001:db8::5:1' : '198.51.100.1' });
    t.deepEqual(b.verdicts(ofOther), ['wrong-source'], 'the SPI is that of another peer');
    t.deepEqual(b.refused(under), { 'wrong-source': 2 });

    // A dummy's content and padding are anything; it is authentic, and its number is used up.
    const dummies = [
      b.make(1, { next: 59 }),
      b.make(2, { next: 59, content: new Uint8Array(0) }),
      b.make(3, { next: 59, padding: Uint8Array.of(9, 9), padLength: 255 }),
    ];
    t.deepEqual(b.verdicts(...dummies, dummies[0]), [...all(3, 'dummy'), 'replayed']);

    const bad = [
      b.make(4, { padLength: 255 }),
      b.make(5, { content: payload(30), padding: new Uint8Array(0), padLength: 31 }),
      b.make(6, { padding: Uint8Array.of(1, 2, 4) }),
      b.make(7, { padding: Uint8Array.of(0, 1) }),
      b.make(8, { padding: Uint8Array.of(1, 1) }),
      b.make(9, { next: 4 }),
      b.make(10, { next: 41 }),
      b.make(11, { next: 0 }),
      b.make(12, { content: payload(7), padding: Uint8Array.of(1, 2, 3) }),
    ];
    t.deepEqual(b.verdicts(...bad), all(bad.length, 'bad-trailer'));
    t.deepEqual(b.refused(under), { 'wrong-source': 2, replayed: 1, 'bad-trailer': bad.length });
    // Longer padding than is needed hides a length (RFC 4303, section 2.4) and is right.
    const longest = Uint8Array.from({ length: 255 }, (_, i) => i + 1);
    const content = datagram(20);
    const [opened] = b.open([b.make(13, { content, padding: longest })]);
    t.deepEqual(opened.slice(frontOf(form)), content);
    b.finish(t);
  }
});

test('ESP 15: another salt opens nothing, and no IV comes twice after a restart', (t) => {
  for (const form of FORMS) {
    const b = espRig({ form });
    const salted = { ...b.inbound(), salt: payload(4, 200) };
    t.deepEqual(b.verdicts(outerEsp(form, makeEsp(salted, { sequence: 1 }, datagram(20)))), ['icv']);
    t.notDeepEqual(b.inbound().salt, b.outbound().salt);
    b.finish(t);

    // Key and sequence number are those of before, as after a crash that forgot them; the mask is another.
    const seen = new Set<string>();
    for (const mask of [payload(8, 1), payload(8, 2), payload(8, 3)]) {
      const a = espRig({ form, mask });
      for (let k = 0; k < 300; k++)
        seen.add(Buffer.from(a.sealOne(plainPacket(form, 10)).subarray(8, 16)).toString('hex'));
      t.is(a.state.last(a.outbound().slot), 300);
      a.finish(t);
    }
    t.is(seen.size, 900);
  }
});

test('ESP 16: SPI and sequence number are authenticated, with ESN the high half too', (t) => {
  for (const form of FORMS)
    for (const esn of [false, true]) {
      const last = esn ? 5 * HALF + 6 : 6;
      const a = espRig({ form, esn, last });
      const esp = a.sealOne(plainPacket(form, 33));
      const under = a.outbound();
      const high = Math.floor(last / HALF);
      t.notThrows(() => readEsp(under, esp, high));
      t.throws(() => readEsp({ ...under, esn: !esn }, esp, high), undefined, 'another length of AAD');
      if (esn) t.throws(() => readEsp(under, esp, high + 1), undefined, 'another half');
      a.finish(t);

      const b = espRig({ form, esn, last });
      const other = makeEsp({ ...b.inbound(), esn: !esn }, { sequence: last + 1 }, datagram(20));
      t.deepEqual(b.verdicts(outerEsp(form, other)), ['icv']);
      t.deepEqual(b.receive(last + 1), ['passed']);
      b.finish(t);
    }
});

test('ESP 17: bursts of 257, more than a batch', (t) => {
  for (const form of FORMS) {
    const [a, b] = [espRig({ form, checksum: true }), espRig({ form, mirrored: true })];
    roundTrip(a, b, form, range(0, 256));
    t.deepEqual([a.out.longest, a.out.calls], [256, 2]);
    t.deepEqual(b.decryptDrops(), {});
    a.finish(t);
    b.finish(t);
  }
});

test('ESP 17: 320 packets in five super-frames of one batch', (t) => {
  const b = espRig({ form: UDP_V4 });
  const frames = range(0, 4).map((n) => {
    const packets = range(1, 64).map((k) =>
      makeEsp(b.inbound(), { sequence: n * 64 + k }, datagram(900, n * 64 + k)),
    );
    return superFrame(UDP_V4, packets);
  });
  const opened = b.open(
    frames.map(({ bytes }) => bytes),
    frames[0].metadata,
  );
  t.deepEqual(
    opened.map((bytes) => bytes.slice(34)),
    range(1, 320).map((k) => datagram(900, k)),
  );
  t.deepEqual(b.decryptDrops(), {});
  b.finish(t);
});
