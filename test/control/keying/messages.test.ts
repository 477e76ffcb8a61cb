import { createSecretKey } from 'node:crypto';
import test from 'ava';
import fc from 'fast-check';
import {
  isAuthentic,
  LONGEST_MESSAGE,
  type Message,
  readMessage,
  writeMessage,
} from '../../../control/keying/messages.js';

const KEY = createSecretKey(new Uint8Array(32).fill(1));
const OTHER_KEY = createSecretKey(new Uint8Array(32).fill(2));

const bytes = (length: number): fc.Arbitrary<Uint8Array> =>
  fc.uint8Array({ minLength: length, maxLength: length });
const spi = fc.integer({ min: 256, max: 2 ** 32 - 1 });
const algorithm = fc.stringMatching(/^[a-z0-9-]{1,32}$/);
const node = fc
  .string({ unit: 'grapheme', minLength: 1, maxLength: 60 })
  .filter((name) => /^\P{C}+$/u.test(name) && Buffer.byteLength(name) <= 255);
const fields = { ni: bytes(32), nr: bytes(32), share: bytes(32), spi, algorithm, node };
const { ni, nr, share } = fields;

const message: fc.Arbitrary<Message> = fc
  .tuple(
    fc.oneof(
      fc.record({ kind: fc.constant('init' as const), ni, share, algorithm, node }),
      fc.record({ kind: fc.constant('reply' as const), ni, nr, share, spi, algorithm, node }),
      fc.record({ kind: fc.constant('confirm' as const), ni, nr, spi }),
      fc.record({ kind: fc.constant('ack' as const), ni, nr }),
      fc.record({ kind: fc.constant('refuse' as const), ni, algorithm }),
    ),
    fc.integer({ min: 0, max: 2 ** 32 - 1 }),
    fc.constantFrom(4, 16).chain((size) => fc.tuple(bytes(size), bytes(size))),
  )
  .map(([body, keyId, [from, to]]) => ({ ...body, keyId, from, to }));

test('what is written is read', (t) => {
  fc.assert(
    fc.property(message, (value) => {
      const written = writeMessage(value, KEY);
      t.true(written.length <= LONGEST_MESSAGE);
      const { kind, keyId, from, to, ...rest } = value;
      const read = readMessage(written);
      t.is(typeof read, 'object');
      const { kind: k, keyId: id, from: f, to: o, ...others } = read as Message;
      t.deepEqual([k, id, Buffer.from(f), Buffer.from(o)], [kind, keyId, Buffer.from(from), Buffer.from(to)]);
      const plain = (record: object): unknown =>
        Object.fromEntries(
          Object.entries(record).map(([name, field]) => [
            name,
            field instanceof Uint8Array ? Buffer.from(field).toString('hex') : field,
          ]),
        );
      t.deepEqual(plain(others), plain(rest));
      t.true(isAuthentic(written, KEY));
      t.false(isAuthentic(written, OTHER_KEY));
    }),
  );
});

test('with any one byte changed it is not read, or is not authentic', (t) => {
  fc.assert(
    fc.property(message, fc.integer({ min: 1, max: 255 }), (value, change) => {
      const written = writeMessage(value, KEY);
      for (let at = 0; at < written.length; at++) {
        const changed = Uint8Array.from(written);
        changed[at] ^= change;
        t.true(typeof readMessage(changed) === 'string' || !isAuthentic(changed, KEY), `byte ${at}`);
      }
    }),
    { numRuns: 20 },
  );
});

test('cut short or made longer it is not read', (t) => {
  fc.assert(
    fc.property(message, bytes(1), (value, more) => {
      const written = writeMessage(value, KEY);
      for (let length = 0; length < written.length; length++) {
        t.is(readMessage(written.subarray(0, length)), 'malformed');
      }
      t.is(readMessage(Buffer.concat([written, more])), 'malformed');
    }),
    { numRuns: 20 },
  );
});

test('a message read keeps nothing of the buffer it came in', (t) => {
  fc.assert(
    fc.property(message, (value) => {
      const written = writeMessage(value, KEY);
      const read = readMessage(written);
      const before = JSON.stringify(read);
      written.fill(0);
      t.is(JSON.stringify(read), before);
    }),
  );
});

test('any bytes are read or refused, and nothing is thrown', (t) => {
  const known = fc
    .tuple(message, fc.array(fc.tuple(fc.nat(400), fc.nat(255)), { maxLength: 6 }), fc.nat(500))
    .map(([value, changes, length]) => {
      const written = writeMessage(value, KEY);
      for (const [at, byte] of changes) if (at < written.length) written[at] = byte;
      const cut = written.subarray(0, Math.max(45, length));
      // With the length made right the fields themselves are looked at.
      new DataView(cut.buffer, cut.byteOffset).setUint16(6, cut.length);
      return cut;
    });
  let read = 0;
  fc.assert(
    fc.property(fc.oneof(fc.uint8Array({ maxLength: 1200 }), known), (any) => {
      const result = readMessage(any);
      if (typeof result === 'object') read++;
      else t.true(result === 'malformed' || result === 'other-version');
    }),
    { numRuns: 3000 },
  );
  t.true(read > 100, `${read} were read`);
});

const PLAIN = { keyId: 1, from: Uint8Array.of(192, 0, 2, 1), to: Uint8Array.of(192, 0, 2, 2) };
const NONCE = new Uint8Array(32).fill(5);

test('another version is told from nonsense', (t) => {
  const written = writeMessage({ ...PLAIN, kind: 'ack', ni: NONCE, nr: NONCE }, KEY);
  written[4] = 2;
  t.is(readMessage(written), 'other-version');
});

test('reserved SPIs, names with control characters and names that are not UTF-8 are malformed', (t) => {
  const init = (name: string): Uint8Array =>
    writeMessage({ ...PLAIN, kind: 'init', ni: NONCE, share: NONCE, algorithm: 'x', node: name }, KEY);
  t.is(typeof readMessage(init('hostÄ 1')), 'object');
  for (const name of ['', 'a\nb', 'a\u001b[31m', 'a\u202eb'])
    t.is(readMessage(init(name)), 'malformed', name);
  const raw = init('ab');
  raw[raw.length - 33] = 0xff;
  t.is(readMessage(raw), 'malformed');
  const confirm = (value: number): Uint8Array =>
    writeMessage({ ...PLAIN, kind: 'confirm', ni: NONCE, nr: NONCE, spi: value }, KEY);
  t.is(readMessage(confirm(255)), 'malformed');
  t.is(typeof readMessage(confirm(256)), 'object');
});
