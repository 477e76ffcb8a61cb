import test from 'ava';
import fc from 'fast-check';
import { isReservedGroup } from '../../../engine/wire/ethernet.js';
import { flowHash } from '../../../engine/wire/flow-hash.js';
import { be16, ethernet, ipv4, ipv6, mac, payload, udp, udpFrame } from '../../support/frames.js';

/** Hash of a frame with `canary` on all sides of it. */
function hash(frame: Uint8Array, canary = 0xa5): number {
  const bytes = new Uint8Array(64 + frame.length + 129).fill(canary);
  bytes.set(frame, 64);
  return flowHash(new Uint16Array(bytes.buffer, 0, bytes.length >> 1), 32, frame.length);
}

/**
 * A frame of odd length has its last byte in a word with the byte behind it; the hash takes whole words only
 * where the length says they are whole.
 */
test('property: the bytes behind a frame, and in front, do not change its hash', (t) => {
  const tags = fc.constantFrom([], [5], [5, 6], [5, 6, 7]);
  const header = fc.constantFrom(
    [0x08, 0x00, 0x45],
    [0x08, 0x00, 0x4f],
    [0x08, 0x00, 0x40],
    [0x86, 0xdd, 0x60],
    [0x81, 0x00],
    [0x88, 0xa8],
    [0x08, 0x06],
    [],
  );
  const protocol = fc.constantFrom(6, 17, 1, 44);
  const noise = fc.uint8Array({ maxLength: 120 });
  fc.assert(
    fc.property(tags, header, protocol, noise, fc.nat(120), (tcis, start, next, bytes, length) => {
      const whole = ethernet({ tags: tcis }, bytes);
      const at = 12 + tcis.length * 4;
      const frame = Uint8Array.from(
        { length: Math.max(14, Math.min(length, whole.length)) },
        (_, i) => whole[i] ?? 0,
      );
      if (frame.length > at + 24) {
        frame.set(start, at);
        frame[at + 2 + (start[0] === 8 ? 9 : 6)] = next;
        if (start[0] === 8) frame.set([0x40, 0], at + 8);
      }
      t.is(hash(frame, 0x00), hash(frame, 0xff));
    }),
    { numRuns: 3000 },
  );
});

test('every cut of frames that are worth hashing: nothing behind the end is read', (t) => {
  const frames = [
    udpFrame(1000),
    udpFrame(1000, { v6: true }),
    ethernet({ type: 0x0800 }, ipv4({ options: new Uint8Array(40) }, udp(1, 2, payload(9)))),
    ethernet({ tags: [1, 2], type: 0x0800 }, ipv4({}, udp(1, 2, payload(9)))),
    ethernet({ tags: [1, 2], type: 0x86dd }, ipv6({ next: 6 }, payload(9))),
  ];
  for (const frame of frames)
    for (let length = 14; length <= frame.length; length++)
      t.is(hash(frame.slice(0, length), 0), hash(frame.slice(0, length), 0xff), `${length} bytes`);
});

test('addresses, protocol and ports each make another flow', (t) => {
  const base = { source: '10.0.0.1', destination: '10.0.0.2' };
  const frame = (o: object, from = 1, to = 2) =>
    ethernet({ type: 0x0800 }, ipv4({ ...base, ...o }, udp(from, to, payload(9))));
  const hashes = [
    frame({}),
    frame({ source: '10.0.0.3' }),
    frame({ destination: '10.0.0.3' }),
    frame({ source: base.destination, destination: base.source }),
    frame({ protocol: 6 }),
    frame({}, 3),
    frame({}, 1, 3),
    frame({}, 2, 1),
  ].map((bytes) => hash(bytes));
  t.is(new Set(hashes).size, hashes.length);
});

test('every bit of every IPv6 address counts', (t) => {
  const frame = udpFrame(1, { v6: true });
  const hashes = new Set([hash(frame)]);
  for (let bit = 22 * 8; bit < 58 * 8; bit++) {
    const other = Uint8Array.from(frame);
    other[bit >>> 3] ^= 1 << (bit & 7);
    hashes.add(hash(other));
  }
  t.is(hashes.size, 36 * 8 + 1, 'addresses and ports');
});

test('what is not of the flow does not count: TOS, TTL, id, length, payload', (t) => {
  const of = (o: object, content: Uint8Array) =>
    hash(ethernet({ type: 0x0800 }, ipv4(o, udp(1, 2, content))));
  const want = of({}, payload(9));
  t.is(of({ tos: 255, ttl: 1, id: 77, fragment: 0x4000 }, payload(500, 3)), want);
});

test('all fragments of a datagram hash alike, whatever stands where ports would', (t) => {
  const parts = [0x2000, 0x2001, 0x1fff, 0x0001, 0x6000].map((fragment, i) =>
    hash(ethernet({ type: 0x0800 }, ipv4({ fragment }, payload(40, i * 9)))),
  );
  t.is(new Set(parts).size, 1);
  const six = [0, 1].map((i) =>
    hash(
      ethernet({ type: 0x86dd }, ipv6({ next: 44 }, Uint8Array.from([17, 0, ...be16(i), ...payload(40, i)]))),
    ),
  );
  t.is(six[0], six[1]);
});

test('tags do not change the flow of what they carry', (t) => {
  const content = ipv4({}, udp(5, 6, payload(9)));
  const want = hash(ethernet({ type: 0x0800 }, content));
  t.is(hash(ethernet({ type: 0x0800, tags: [9] }, content)), want);
  t.is(hash(ethernet({ type: 0x0800, tags: [9, 10] }, content)), want);
});

test('frames without IP hash by addresses and type', (t) => {
  const arp = (from: string, type = 0x0806) => hash(ethernet({ from: mac(from), type }, payload(28)));
  const hashes = [arp('02:00:00:00:00:01'), arp('02:00:00:00:00:02'), arp('02:00:00:00:00:01', 0x0807)];
  t.is(new Set(hashes).size, 3);
});

test('reserved group addresses are told by all six bytes but the low half of the last', (t) => {
  const words = (text: string) => new Uint16Array(mac(text).buffer);
  t.true(isReservedGroup(words('01:80:c2:00:00:00'), 0));
  t.true(isReservedGroup(words('01:80:c2:00:00:0f'), 0));
  for (const other of ['01:80:c2:00:00:10', '01:80:c2:00:01:0f', '01:80:c2:01:00:00', '00:80:c2:00:00:00'])
    t.false(isReservedGroup(words(other), 0), other);
});
