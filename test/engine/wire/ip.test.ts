import test from 'ava';
import fc from 'fast-check';
import {
  fold16,
  setEcnIpv4,
  setEcnIpv6,
  sumWords,
  updateChecksum,
  writeIpv4Checksum,
} from '../../../engine/wire/ip.js';
import { ipv4, ipv6, payload, slowSum } from '../../support/frames.js';

const view = (bytes: Uint8Array): Uint16Array => new Uint16Array(Uint8Array.from(bytes).buffer);
const bytesOf = (words: Uint16Array): Uint8Array => new Uint8Array(words.buffer, 0, words.byteLength);
const swapped = (value: number): number => ((value & 0xff) << 8) | (value >>> 8);

test('folding takes every sum of up to 65,536 words', (t) => {
  for (const sum of [0, 1, 0xffff, 0x10000, 0x1ffff, 0x1fffe, 0xffff0000, 65536 * 65535, 0xffffffff]) {
    const folded = fold16(sum);
    t.true(folded >= 0 && folded <= 0xffff);
    t.is(folded % 0xffff, sum % 0xffff);
    t.is(folded === 0, sum === 0);
  }
});

test('RFC 1624, section 4: the update that RFC 1141 gets wrong', (t) => {
  t.is(updateChecksum(0xdd2f, 0x5555, 0x3285), 0x0000);
});

test('an update that changes nothing leaves the checksum', (t) => {
  for (const checksum of [0x0001, 0x1234, 0xfffe])
    for (const word of [0, 1, 0x8000, 0xffff]) t.is(updateChecksum(checksum, word, word), checksum);
});

test('property: an updated checksum is the one a full sum gives', (t) => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 20, maxLength: 60 }).filter(({ length }) => length % 2 === 0),
      fc.nat(29),
      fc.oneof(fc.nat(0xffff), fc.constantFrom(0, 0xffff)),
      (content, index, after) => {
        const words = view(content);
        words[0] |= 1; // a header is never all zero, nor does its sum come out as one
        const at = 1 + (index % (words.length - 1));
        const checksum = ~slowSum(bytesOf(words)) & 0xffff;
        const before = words[at];
        words[at] = after;
        const full = ~slowSum(bytesOf(words)) & 0xffff;
        t.is(swapped(updateChecksum(swapped(checksum), before, after)), full);
      },
    ),
    { numRuns: 1000 },
  );
});

test('property: the header checksum written holds, with options too', (t) => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 60, maxLength: 60 }),
      fc.integer({ min: 5, max: 15 }),
      (bytes, length) => {
        const words = view(bytes);
        writeIpv4Checksum(words, 0, length * 2);
        t.is(slowSum(bytesOf(words).slice(0, length * 4)), 0xffff);
        t.deepEqual(bytesOf(words).slice(length * 4), bytes.slice(length * 4));
        t.is(fold16(sumWords(words, 0, length * 2)), 0xffff);
      },
    ),
  );
});

test('the ECN field is set without touching DSCP, version or flow label; the checksum holds', (t) => {
  for (let tos = 0; tos < 256; tos++) {
    for (let ecn = 0; ecn < 4; ecn++) {
      const want = (tos & 0xfc) | ecn;
      const four = view(ipv4({ tos }, payload(8)));
      setEcnIpv4(four, 0, ecn);
      t.deepEqual(bytesOf(four), ipv4({ tos: want }, payload(8)));
      const six = ipv6({ tos }, payload(8));
      six.set([six[1] | 0x0b, 0xcd, 0xef], 1);
      const words = view(six);
      setEcnIpv6(words, 0, ecn);
      const expected = ipv6({ tos: want }, payload(8));
      expected.set([expected[1] | 0x0b, 0xcd, 0xef], 1);
      t.deepEqual(bytesOf(words), expected);
    }
  }
});
