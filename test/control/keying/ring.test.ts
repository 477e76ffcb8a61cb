import { createHmac } from 'node:crypto';
import { inspect } from 'node:util';
import test from 'ava';
import type { Algorithm } from '../../../control/config.js';
import { type End, Ephemeral, Ring, SessionSecret } from '../../../control/keying/ring.js';
import { Secret } from '../../../control/secret.js';
import { privateKey, ringOf, secret } from './network.js';

const hex = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text, 'hex'));
const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

test('the middle key sends: the only one, the older of two, the second of three', (t) => {
  t.is(new Ring(ringOf(7)).sending.id, 7);
  t.is(new Ring(ringOf(7, 8)).sending.id, 7);
  t.is(new Ring(ringOf(7, 8, 9)).sending.id, 8);
});

test('the sending key is tried first, then the others from the newest', (t) => {
  const order = (...ids: number[]): number[] => new Ring(ringOf(...ids)).inOrder.map(({ id }) => id);
  t.deepEqual(order(7), [7]);
  t.deepEqual(order(7, 8), [7, 8]);
  t.deepEqual(order(7, 8, 9), [8, 9, 7]);
});

test('a ring knows its keys by id and secret', (t) => {
  const ring = new Ring(ringOf(1, 2));
  t.is(ring.byId(2)?.id, 2);
  t.is(ring.byId(3), undefined);
  t.true(ring.has({ id: 1, secret: secret(1) }));
  t.false(ring.has({ id: 1, secret: secret(2) }), 'the same id with another secret');
  t.false(ring.has({ id: 3, secret: secret(3) }));
});

test('what is no ring is refused, and the refusal shows no secret', (t) => {
  const refused = [[], ringOf(1, 2, 3, 4), ringOf(1, 1), [{ id: 1, secret: new Secret('00'.repeat(31)) }]];
  for (const keys of refused) {
    const error = t.throws(() => new Ring(keys), { instanceOf: TypeError });
    for (const key of keys) t.false(error?.message.includes(toHex(key.secret.bytes())));
  }
});

test('a ring prints no secret', (t) => {
  const shown =
    inspect(new Ring(ringOf(1, 2)), { depth: 10, showHidden: true }) + JSON.stringify(new Ring(ringOf(1)));
  t.false(shown.includes(toHex(secret(1).bytes())));
  t.true(shown.includes('[secret]'));
});

test('X25519: the vectors of RFC 7748 section 6.1', (t) => {
  const alice = new Ephemeral(
    privateKey(hex('77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a')),
  );
  const bob = new Ephemeral(
    privateKey(hex('5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb')),
  );
  t.is(toHex(alice.share), '8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a');
  t.is(toHex(bob.share), 'de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f');
  const shared = '4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742';
  t.is(toHex(alice.shared(bob.share)!), shared);
  t.is(toHex(bob.shared(alice.share)!), shared);
});

test('every exchange has another key', (t) => {
  const [one, other] = [new Ephemeral(), new Ephemeral()];
  t.notDeepEqual(one.share, other.share);
  t.deepEqual(one.shared(other.share), other.shared(one.share));
});

test('a share that makes the shared secret zero is refused: all points of small order', (t) => {
  const own = new Ephemeral();
  const p = 'ff'.repeat(30);
  const small = [
    '00'.repeat(32),
    `01${'00'.repeat(31)}`,
    'e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800',
    '5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157',
    `ec${p}7f`,
    `ed${p}7f`,
    `ee${p}7f`,
  ];
  for (const share of small) t.is(own.shared(hex(share)), undefined, share);
  t.is(own.shared(hex(`09${'00'.repeat(31)}`))?.length, 32, 'the base point is one of large order');
});

/** HKDF written from RFC 5869, section 2. */
function hkdf(material: Uint8Array, salt: Uint8Array, info: Uint8Array, length: number): Uint8Array {
  const mac = (key: Uint8Array, ...parts: Uint8Array[]): Buffer =>
    createHmac('sha256', key).update(Buffer.concat(parts)).digest();
  const prk = mac(salt, material);
  const blocks: Uint8Array[] = [new Uint8Array(0)];
  while ((blocks.length - 1) * 32 < length) {
    blocks.push(mac(prk, blocks[blocks.length - 1], info, Uint8Array.of(blocks.length)));
  }
  return Buffer.concat(blocks).subarray(0, length);
}

const A: End = { node: 'hostA', address: Uint8Array.of(192, 0, 2, 1) };
const B: End = { node: 'hostB', address: Uint8Array.of(192, 0, 2, 2) };
const NI = new Uint8Array(32).fill(1);
const NR = new Uint8Array(32).fill(2);
const SHARED = new Uint8Array(32).fill(3);

interface Inputs {
  readonly ring: Secret;
  readonly shared: Uint8Array;
  readonly ni: Uint8Array;
  readonly nr: Uint8Array;
  readonly sender: End;
  readonly receiver: End;
  readonly spi: number;
  readonly algorithm: Algorithm;
}

const INPUTS: Inputs = {
  ring: secret(1),
  shared: SHARED,
  ni: NI,
  nr: NR,
  sender: A,
  receiver: B,
  spi: 0x1001,
  algorithm: 'aes-256-gcm-16',
};

function traffic(changed: Partial<Inputs> = {}): string {
  const { ring, shared, ni, nr, sender, receiver, spi, algorithm } = { ...INPUTS, ...changed };
  const session = new SessionSecret(ring, shared.slice(), ni, nr);
  const { key, salt } = session.traffic(sender, receiver, spi, algorithm);
  return toHex(key) + toHex(salt);
}

test('traffic keys are HKDF-SHA256 of the secrets, the nonces and the direction', (t) => {
  const text = (value: string): Buffer => Buffer.from(value);
  const parts = [text('weft esp'), text('hostA'), A.address, text('hostB'), B.address, hex('00001001')];
  const sized = [...parts, text('aes-256-gcm-16')].map((part) =>
    Buffer.concat([Uint8Array.of(part.length), part]),
  );
  const material = Buffer.concat([secret(1).bytes(), SHARED]);
  const expected = hkdf(material, Buffer.concat([NI, NR]), Buffer.concat(sized), 36);
  t.is(traffic(), toHex(expected));
});

test('keys have the size of their algorithm, and a salt of 4 bytes', (t) => {
  for (const [bits, icv] of [
    [128, 16],
    [192, 12],
    [256, 8],
  ] as const) {
    t.is(traffic({ algorithm: `aes-${bits}-gcm-${icv}` as Algorithm }).length, (bits / 8 + 4) * 2);
  }
});

test('whatever differs makes other keys', (t) => {
  const other = new Uint8Array(32).fill(9);
  const moved = { sender: { ...A, node: 'host' }, receiver: { ...B, node: 'AhostB' } };
  const keys = [
    traffic(),
    traffic({ ring: secret(2) }),
    traffic({ shared: other }),
    traffic({ ni: other }),
    traffic({ nr: other }),
    traffic({ ni: NR, nr: NI }),
    traffic({ sender: B, receiver: A }),
    traffic({ sender: { ...A, node: 'hostC' } }),
    traffic({ receiver: { ...B, address: Uint8Array.of(192, 0, 2, 3) } }),
    traffic(moved),
    traffic({ spi: 0x1002 }),
    traffic({ algorithm: 'aes-256-gcm-12' }),
  ];
  t.is(new Set(keys.map((key) => key.slice(0, 32))).size, keys.length);
});

test('what authenticates the second half of an exchange depends on the first, and on all that traffic keys do', (t) => {
  const confirmation = (changed: Partial<Inputs> = {}, init = [1, 2], reply = [3]): string => {
    const { ring, shared, ni, nr } = { ...INPUTS, ...changed };
    const session = new SessionSecret(ring, shared.slice(), ni, nr);
    return session.confirmation(Uint8Array.from(init), Uint8Array.from(reply)).export().toString('hex');
  };
  const other = new Uint8Array(32).fill(9);
  const keys = [
    confirmation(),
    confirmation({}, [1, 1]),
    confirmation({}, [1, 2], [4]),
    confirmation({ ring: secret(2) }),
    confirmation({ shared: other }),
    confirmation({ ni: other }),
    confirmation({ nr: other }),
    traffic().slice(0, 64),
  ];
  t.is(new Set(keys).size, keys.length);
});

test('a session secret overwrites what it is given, and itself', (t) => {
  const shared = SHARED.slice();
  const session = new SessionSecret(secret(1), shared, NI, NR);
  t.deepEqual(shared, new Uint8Array(32));
  const before = session.traffic(A, B, 256, 'aes-128-gcm-16');
  session.wipe();
  t.notDeepEqual(session.traffic(A, B, 256, 'aes-128-gcm-16'), before);
  t.false(inspect(session, { showHidden: true, depth: 5 }).includes(toHex(secret(1).bytes()).slice(0, 8)));
});
