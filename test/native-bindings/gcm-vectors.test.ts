/** Published AES-GCM vectors, through each library that is here, by the same entry points as packets. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { FrameMemory } from '../../engine/memory/frames.js';
import { GCM_JOB_WORDS, native } from '../../native-bindings/index.js';
import { hex } from './support/gcm.js';

const SHARED = fileURLToPath(new URL('../../../../shared/vectors', import.meta.url));
const absent = existsSync(SHARED) ? '' : ' [skipped: no vectors at ../shared/vectors beside the repository]';
const shared = absent ? test.skip : test;
const CAVP_VECTORS = 750; // in each file
const libraries = native.gcmLibraries();
type Library = (typeof libraries)[number];

interface Vector {
  readonly name: string;
  readonly key: Uint8Array;
  readonly iv: Uint8Array;
  readonly aad: Uint8Array;
  /** Undefined when decryption has to fail. */
  readonly plain: Uint8Array | undefined;
  readonly cipher: Uint8Array;
  readonly tag: Uint8Array;
}

function open(library: Library, { key, iv, aad, cipher, tag }: Vector): Uint8Array | null {
  const text = Buffer.concat([cipher, tag]);
  return native.gcmVector({ library, key, iv, aad, text, icv: tag.length, encrypt: false });
}

function opens(t: ExecutionContext, library: Library, vector: Vector): void {
  t.deepEqual(open(library, vector), vector.plain ?? null, `${vector.name} opens`);
}

function seals(t: ExecutionContext, library: Library, vector: Vector): void {
  const { key, iv, aad, plain, cipher, tag } = vector;
  const got = native.gcmVector({ library, key, iv, aad, text: plain!, icv: tag.length, encrypt: true });
  t.deepEqual(got, new Uint8Array(Buffer.concat([cipher, tag])), `${vector.name} seals`);
}

// --- What is here in any case: McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B ------------

const KEY = 'feffe9928665731c6d6a8f9467308308';
const PLAIN =
  'd9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39';
const WITH_AAD = {
  iv: hex('cafebabefacedbaddecaf888'),
  aad: hex('feedfacedeadbeeffeedfacedeadbeefabaddad2'),
  plain: hex(PLAIN),
};
const SPECIFICATION: readonly Vector[] = [
  {
    name: 'case 1',
    key: new Uint8Array(16),
    iv: new Uint8Array(12),
    aad: hex(''),
    plain: hex(''),
    cipher: hex(''),
    tag: hex('58e2fccefa7e3061367f1d57a4e7455a'),
  },
  {
    name: 'case 2',
    key: new Uint8Array(16),
    iv: new Uint8Array(12),
    aad: hex(''),
    plain: new Uint8Array(16),
    cipher: hex('0388dace60b6a392f328c2b971b2fe78'),
    tag: hex('ab6e47d42cec13bdf53a67b21257bddf'),
  },
  {
    ...WITH_AAD,
    name: 'case 4',
    key: hex(KEY),
    cipher: hex(
      '42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091',
    ),
    tag: hex('5bc94fbc3221a5db94fae95ae7121a47'),
  },
  {
    ...WITH_AAD,
    name: 'case 10',
    key: hex(`${KEY}feffe9928665731c`),
    cipher: hex(
      '3980ca0b3c00e841eb06fac4872a2757859e1ceaa6efd984628593b40ca1e19c7d773d00c144c525ac619d18c84a3f4718e2448b2fe324d9ccda2710',
    ),
    tag: hex('2519498e80f1478f37ba55bd6d27618c'),
  },
  {
    ...WITH_AAD,
    name: 'case 16',
    key: hex(KEY + KEY),
    cipher: hex(
      '522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662',
    ),
    tag: hex('76fc6ece0f4e1768cddf8853bb2d551b'),
  },
];

for (const library of libraries) {
  test(`${library}: the cases of GCM's specification with an IV of 96 bits`, (t) => {
    for (const vector of SPECIFICATION) {
      seals(t, library, vector);
      opens(t, library, vector);
    }
  });

  test(`${library}: a tag that is wrong in any bit opens nothing, whatever its length`, (t) => {
    for (const vector of SPECIFICATION) {
      for (const icv of [4, 8, 12, 13, 16]) {
        const tag = vector.tag.slice(0, icv);
        opens(t, library, { ...vector, tag });
        for (let bit = 0; bit < icv * 8; bit++) {
          tag[bit >> 3] ^= 1 << (bit & 7);
          t.is(open(library, { ...vector, tag }), null, `${vector.name}, bit ${bit} of ${icv} bytes`);
          tag[bit >> 3] ^= 1 << (bit & 7);
        }
      }
    }
  });
}

// --- NIST CAVP --------------------------------------------------------------------------------------------------

/** Vectors of a .rsp file: `Name = value` lines, a blank line behind each, FAIL where decryption has to. */
function cavp(file: string): Vector[] {
  const vectors: Vector[] = [];
  let fields: Record<string, string> = {};
  let failing = false;
  for (const line of `${readFileSync(join(SHARED, file), 'latin1')}\n\n`.split(/\r?\n/)) {
    const [, name, value] = /^(\w+) =\s*(\w*)$/.exec(line) ?? [];
    if (name !== undefined) fields[name] = value;
    if (line === 'FAIL') failing = true;
    if (line !== '' || fields['Count'] === undefined) continue;
    vectors.push({
      name: `${file}, ${fields['Key']}`,
      key: hex(fields['Key']),
      iv: hex(fields['IV']),
      aad: hex(fields['AAD']),
      plain: failing ? undefined : hex(fields['PT']),
      cipher: hex(fields['CT']),
      tag: hex(fields['Tag']),
    });
    fields = {};
    failing = false;
  }
  return vectors;
}

for (const library of libraries) {
  for (const bits of [128, 256]) {
    shared(`${library}: NIST CAVP, encryption with ${bits}-bit keys${absent}`, (t) => {
      const vectors = cavp(`nist_cavp_gcmEncryptExtIV${bits}_iv96.rsp`);
      t.is(vectors.length, CAVP_VECTORS);
      for (const vector of vectors) {
        seals(t, library, vector);
        opens(t, library, vector);
      }
    });

    shared(`${library}: NIST CAVP, decryption with ${bits}-bit keys, and what has to fail${absent}`, (t) => {
      const vectors = cavp(`nist_cavp_gcmDecrypt${bits}_iv96.rsp`);
      t.is(vectors.length, CAVP_VECTORS);
      const failing = vectors.filter(({ plain }) => plain === undefined).length;
      t.true(failing > 0 && failing < CAVP_VECTORS, `${failing} have to fail`);
      for (const vector of vectors) opens(t, library, vector);
      t.log(`${failing} of ${vectors.length} have to fail`);
    });
  }
}

// --- Wycheproof -------------------------------------------------------------------------------------------------

interface Wycheproof {
  readonly numberOfTests: number;
  readonly testGroups: readonly {
    readonly ivSize: number;
    readonly tagSize: number;
    readonly tests: readonly Readonly<
      Record<'key' | 'iv' | 'aad' | 'msg' | 'ct' | 'tag' | 'result' | 'comment', string> & { tcId: number }
    >[];
  }[];
}

for (const library of libraries) {
  shared(`${library}: Wycheproof, with IVs of 96 bits (all that ESP has)${absent}`, (t) => {
    const file = readFileSync(join(SHARED, 'wycheproof_aes_gcm_test.json'), 'utf8');
    const { numberOfTests, testGroups } = JSON.parse(file) as Wycheproof;
    let run = 0;
    for (const { ivSize, tests } of testGroups) {
      if (ivSize !== 96) continue;
      for (const { tcId, comment, result, ...field } of tests) {
        const vector = {
          name: `${tcId} ${comment}`,
          key: hex(field.key),
          iv: hex(field.iv),
          aad: hex(field.aad),
          plain: result === 'invalid' ? undefined : hex(field.msg),
          cipher: hex(field.ct),
          tag: hex(field.tag),
        };
        opens(t, library, vector);
        if (vector.plain) seals(t, library, vector);
        run++;
      }
    }
    t.is(run, 197);
    t.log(`${run} of ${numberOfTests}; ${numberOfTests - run} have IVs of other lengths and are left out`);
  });
}

// --- Whole ESP packets ------------------------------------------------------------------------------------------

interface EspVector {
  readonly name: string;
  readonly alg: string;
  readonly key: string;
  readonly salt: string;
  readonly esn_hi: string | null;
  readonly aad: string;
  readonly iv: string;
  readonly esp: string;
  readonly plaintext_with_trailer: string;
}

const SLOT = 16_383;
const memory = new FrameMemory({ small: 4, large: 1 });
native.attach(memory.u8, memory.off, memory.len, memory.freeLarge);

/** Seals the plaintext behind the packet's own header, and opens what the packet holds. */
function bothWays(t: ExecutionContext, library: Library, vector: EspVector): void {
  const [esp, plain] = [hex(vector.esp), hex(vector.plaintext_with_trailer)];
  const icv = (esp.length - 16 - plain.length) as 8 | 12 | 16;
  const high = vector.esn_hi === null ? 0 : Number.parseInt(vector.esn_hi, 16);
  const esn = vector.esn_hi !== null;
  native.gcmInstall({ slot: SLOT, key: hex(vector.key), salt: hex(vector.salt), icv, esn, library });
  const { u8 } = memory;
  u8.fill(0xaa, 0, 2048);
  u8.set(esp.subarray(0, 16), 100);
  u8.set(plain, 116);
  const job = Uint32Array.of(100, 116, 116, plain.length, SLOT, high);
  t.is(job.length, GCM_JOB_WORDS);
  t.is(native.gcmSeal(job, 1), 0);
  t.deepEqual(u8.slice(100, 100 + esp.length), esp, `${vector.name} seals`);
  t.is(u8[100 + esp.length], 0xaa);
  const results = new Uint32Array(1);
  t.is(native.gcmOpen(job, 1, results), 0);
  t.is(results[0], 1, `${vector.name} opens`);
  t.deepEqual(u8.slice(116, 116 + plain.length), plain);
  native.gcmRemove(SLOT);
}

/** RFC 4543: nothing is encrypted, all of the packet is additional data. The only packet of that kind. */
function authenticates(t: ExecutionContext, library: Library, vector: EspVector): void {
  const [aad, key, iv] = [hex(vector.aad), hex(vector.key), hex(vector.salt + vector.iv)];
  const tag = hex(vector.esp).slice(aad.length);
  const given = { library, key, iv, aad, icv: tag.length };
  t.deepEqual(native.gcmVector({ ...given, text: hex(''), encrypt: true }), tag, vector.name);
  t.deepEqual(native.gcmVector({ ...given, text: tag, encrypt: false }), hex(''), vector.name);
}

for (const library of libraries) {
  shared(`${library}: ten ESP packets of others in both directions, and one with GMAC${absent}`, (t) => {
    const file = readFileSync(join(SHARED, 'esp_gcm_vectors.json'), 'utf8');
    const { vectors } = JSON.parse(file) as { vectors: EspVector[] };
    const gmac = vectors.filter(({ alg }) => alg.includes('GMAC'));
    t.deepEqual([vectors.length, gmac.length], [11, 1]);
    for (const vector of vectors) (gmac.includes(vector) ? authenticates : bothWays)(t, library, vector);
  });

  // draft-mcgrew-gcm-test-01, case 2; and a packet with ESN that Linux 4.4 made (scapy, ipsec.uts).
  test(`${library}: an ESP packet of the draft, and one of Linux with ESN, in both directions`, (t) => {
    bothWays(t, library, {
      name: 'draft-mcgrew-gcm-test-01, case 2',
      alg: 'AES-128-GCM-16',
      key: KEY,
      salt: 'cafebabe',
      esn_hi: null,
      aad: '0000a5f80000000a',
      iv: 'facedbaddecaf888',
      esp: '0000a5f80000000afacedbaddecaf888deb22cd9b07c72c16e3a65beeb8df304a5a5897d33ae530f1ba76d5d114d2a5c3de81827c10e9a4f51330d0eec416642cfbb85a5b47e48a4ec3b9ba95d918bd426f8391b9927d0fcc984561bbbce9fc0',
      plaintext_with_trailer:
        '4500003e698f000080114dccc0a80102c0a801010a980035002a2343b2d001000001000000000000037369700963796265726369747902646b00000100010004',
    });
    bothWays(t, library, {
      name: 'Linux with ESN',
      alg: 'AES-128-GCM-16',
      key: '3136627974656b65792b34627974656e',
      salt: '6f6e6365',
      esn_hi: '00000001',
      aad: '000002220000000100000001',
      iv: '66002886e9dfc524',
      esp: '000002220000000166002886e9dfc524b0bdfd62617ed3767b48288e76aaea48b840308ace5071bbc0b24771d7a4a0cb0368d3165a7c378487c71959b47c76e348c0904bd23695c1b7a4b67b89e64f10aedb84474600b444e66d16555f8236a549f7528165904d28fe4d22836a810d6094db45220392f694',
      plaintext_with_trailer:
        '450000546b2340003f01bb580ac800010a6400010800e88b017200012f6fc1580000000050660e0000000000101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363701020204',
    });
  });
}
