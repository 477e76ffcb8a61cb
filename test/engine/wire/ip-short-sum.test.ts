/** The sum of short payloads by 32-bit words against the plain sum of bytes. */
import test from 'ava';
import { fold16, SHORT_SUM, sumShort } from '../../../engine/wire/ip.js';

test('every length up to the limit, with bytes behind the end that must not count', (t) => {
  const bytes = new Uint8Array(SHORT_SUM + 16).map((_, i) => (i * 151 + 255) & 0xff);
  const u32 = new Uint32Array(bytes.buffer);
  for (let length = 0; length <= SHORT_SUM; length++) {
    for (const start of [0, 4, 8]) {
      let sum = 0;
      for (let i = 0; i < length; i++) sum += bytes[start + i] << (i % 2 === 0 ? 0 : 8);
      t.is(fold16(sumShort(u32, start, length)), fold16(sum), `${length} bytes from ${start}`);
    }
  }
});

test('all ones', (t) => {
  const u32 = new Uint32Array(64).fill(0xffffffff);
  t.is(sumShort(u32, 0, 8), 4 * 0xffff);
  t.is(sumShort(u32, 0, 7), 3 * 0xffff + 0xff);
});
