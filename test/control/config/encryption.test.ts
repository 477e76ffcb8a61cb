import { chmodSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import {
  type Algorithm,
  algorithmSizes,
  ConfigError,
  defaultMtu,
  largestMtu,
  loadConfig,
  parseConfig,
} from '../../../control/config.js';
import { Secret } from '../../../control/secret.js';
import { BLUE, HEAD, type Row, refuses, revealed, underlay } from './support.js';

const S1 = '01'.repeat(32);
const S2 = 'ab'.repeat(32);
const S3 = 'cd'.repeat(32);
const S4 = 'ef'.repeat(32);
const RING = `keys: [{ id: 1, secret: "${S1}" }]`;
/** Key and salt of AES-128. */
const K1 = '11'.repeat(20);
const K2 = '22'.repeat(20);

const ring = (keys: string, net = '') =>
  `${HEAD}networks: [{ ${BLUE}, encrypted: true${net} }]\nencryption: { ${RING}, ${keys} }\n`;
const keyring = (...keys: string[]) =>
  `${HEAD}encryption:\n  keys:\n${keys.map((k) => `    - ${k}\n`).join('')}`;
/** With an encrypted network that lacks something, and the same without the mark. */
const blue = (net: string, rest: string) =>
  `${HEAD}networks: [{ ${BLUE}, encrypted: ▸true, ${net} }]\n${rest}`;
const sound = (net: string, rest: string) => blue(net, rest).replace('▸', '');
const list = (...items: string[]) =>
  `security_associations:\n${items.map((item) => `  - { ${item} }\n`).join('')}`;
const OUT = `peer: 192.168.50.2, direction: out, spi: 0x1001, algorithm: aes-128-gcm-16, key: "${K1}"`;
const IN = `peer: 192.168.50.2, direction: in, spi: 0x1002, algorithm: aes-128-gcm-16, key: "${K2}"`;
const PEER = 'peers: [192.168.50.2]';
const statics = (...items: string[]) => HEAD + list(...items);

test('a file that does not speak of encryption has none', (t) => {
  const config = parseConfig(`${HEAD}networks: [{ ${BLUE} }]`, 'f');
  t.is(config.encryption, undefined);
  t.deepEqual(config.associations, []);
  t.false(config.networks[0].encrypted);
});

test('a key ring alone: defaults fill the rest', (t) => {
  const config = parseConfig(sound(PEER, `encryption: { ${RING} }`), 'f');
  t.true(config.networks[0].encrypted);
  t.deepEqual(revealed(config.encryption), {
    keys: [{ id: 1, secret: S1 }],
    encapsulation: 'udp',
    port: 4500,
    exchangePort: 7949,
    algorithm: 'aes-128-gcm-16',
    replayWindow: 4096,
    rotate: { after: 43200, packets: 4294967296, bytes: 1099511627776 },
  });
  t.true(config.encryption!.keys[0].secret instanceof Secret);
});

test('every key of encryption and of an association reaches the config', (t) => {
  const config = parseConfig(
    `${HEAD}encryption:
  keys: [{ id: 4294967295, secret: "${S3.toUpperCase()}" }, { id: 1, secret: "${S1}" }, { id: 7, secret: "${S2}" }]
  encapsulation: esp
  port: 1
  exchange_port: 2
  algorithm: aes-256-gcm-8
  replay_window: 4096
  rotate: { after: 10m, packets: 65536, bytes: 67108864 }
security_associations:
  - { peer: 192.168.50.3, direction: out, spi: 0xffffffff, algorithm: aes-256-gcm-12, key: "${'Aa'.repeat(36)}", esn: true, replay_window: 32 }
  - { peer: 192.168.50.3, direction: in, spi: 256, algorithm: aes-192-gcm-8, key: "${'0b'.repeat(28)}" }`,
    'f',
  );
  t.deepEqual(revealed(config.encryption), {
    keys: [
      { id: 4294967295, secret: S3 },
      { id: 1, secret: S1 },
      { id: 7, secret: S2 },
    ],
    encapsulation: 'esp',
    port: 1,
    exchangePort: 2,
    algorithm: 'aes-256-gcm-8',
    replayWindow: 4096,
    rotate: { after: 600, packets: 65536, bytes: 67108864 },
  });
  t.deepEqual(revealed(config.associations), [
    {
      peer: '192.168.50.3',
      direction: 'out',
      spi: 4294967295,
      algorithm: 'aes-256-gcm-12',
      key: 'aa'.repeat(36),
      esn: true,
      replayWindow: 32,
    },
    {
      peer: '192.168.50.3',
      direction: 'in',
      spi: 256,
      algorithm: 'aes-192-gcm-8',
      key: '0b'.repeat(28),
      esn: false,
      replayWindow: 1024,
    },
  ]);
});

test('static associations alone: the encapsulation and its port have their defaults, the ring is empty', (t) => {
  const config = parseConfig(sound(PEER, list(OUT, IN)), 'f');
  t.deepEqual(config.encryption!.keys, []);
  t.is(config.encryption!.encapsulation, 'udp');
  t.is(config.associations.length, 2);
});

test('a ring serves the peers that have no static association', (t) => {
  const config = parseConfig(
    sound('peers: [192.168.50.2, 192.168.50.3]', `encryption: { ${RING} }\n${list(OUT, IN)}`),
    'f',
  );
  t.is(config.associations.length, 2);
});

test('what may repeat in associations is not refused', (t) => {
  const other = (peer: string, key: string) => `peer: ${peer}, algorithm: aes-128-gcm-16, key: "${key}"`;
  const salt = '00000000';
  const config = parseConfig(
    statics(
      `${other('192.168.50.2', '01'.repeat(16) + salt)}, direction: out, spi: 0x1001`,
      `${other('192.168.50.2', '02'.repeat(16) + salt)}, direction: in, spi: 0x1001`,
      `${other('192.168.50.2', '03'.repeat(16) + salt)}, direction: in, spi: 0x1002`,
      `${other('192.168.50.3', '04'.repeat(16) + salt)}, direction: out, spi: 0x1001`,
    ),
    'f',
  );
  t.is(config.associations.length, 4);
});

test('encryption that nothing uses yet, or whose port is not used, is not refused', (t) => {
  const prepared = parseConfig(`${HEAD}encryption: { ${RING} }`, 'f');
  t.is(prepared.encryption!.keys.length, 1);
  const empty = parseConfig(`${HEAD}encryption: { keys: [], exchange_port: 4789 }`, 'f');
  t.deepEqual(empty.encryption!.keys, []);
  const esp = parseConfig(`${HEAD}encryption: { ${RING}, encapsulation: esp, port: 4789 }`, 'f');
  t.is(esp.encryption!.port, 4789);
  t.is(parseConfig(underlay('port: 4500'), 'f').underlay.port, 4500);
});

const NONE = 'the network is encrypted, and there are no keys';
const LACKS = 'the network is encrypted, and security_associations lacks';
// biome-ignore format: one row a refusal reads best on one line.
const rows: readonly Row[] = [
  // Shapes.
  ['encryption empty', `${HEAD}▸encryption:\n`, 'encryption | encryption is empty, not a mapping | such as keys: …'],
  ['encryption a list', `${HEAD}encryption: ▸[]\n`, 'encryption | a list, not a mapping | such as keys'],
  ['keys a mapping', `${HEAD}encryption: { keys: ▸{ id: 1 } }\n`, 'encryption.keys | keys is a mapping, not a list | after "- "'],
  ['key of the ring is text', `${HEAD}encryption: { keys: [▸${S2}] }\n`, 'encryption.keys[0] | entry 0 of keys is text, not a mapping | such as id: …'],
  ['id and secret missing', keyring('▸▸{}'), 'encryption.keys[0].id | id is missing | add id', 'encryption.keys[0].secret | secret is missing | add secret: 64 hex digits in quotes, as "openssl rand -hex 32" prints them'],
  ['id 0', keyring(`{ id: ▸0, secret: "${S1}" }`), 'encryption.keys[0].id | id is a number, out of range | from 1 to 4294967295'],
  ['id 2^32', keyring(`{ id: ▸4294967296, secret: "${S1}" }`), 'encryption.keys[0].id | out of range | from 1 to 4294967295'],
  ['id twice', keyring(`{ id: 1, secret: "${S1}" }`, `{ id: ▸1, secret: "${S2}" }`), 'encryption.keys[1].id | key id 1 is used twice, first on line 5 | its own id'],
  ['secret twice', keyring(`{ id: 1, secret: "${S2}" }`, `{ id: 2, secret: ▸"${S2.toUpperCase()}" }`), 'encryption.keys[1].secret | this secret is used twice, first on line 5 | openssl rand -hex 32'],
  ['four keys', keyring(...[S1, S2, S3, S4].map((s, i) => `{ id: ${i + 1}, secret: "${s}" }`)).replace('-', '▸-'), 'encryption.keys | 4 keys are more than the key ring holds | keep 3'],
  ['secret too short', keyring(`{ id: 1, secret: ▸"${S1.slice(1)}" }`), 'encryption.keys[0].secret | secret has 63 hex digits, not 64 | openssl rand -hex 32'],
  ['secret no hex', keyring(`{ id: 1, secret: ▸"${'xy'.repeat(32)}" }`), 'encryption.keys[0].secret | secret has 64 characters that are not all hex digits | 64 hex digits in quotes'],
  ['secret empty', keyring('{ id: 1, secret: ▸"" }'), 'encryption.keys[0].secret | secret has 0 hex digits, not 64 | 64 hex digits in quotes'],
  ['secret a number', keyring(`{ id: 1, secret: ▸${'12'.repeat(32)} }`), 'encryption.keys[0].secret | secret has no quotes, and YAML reads it as a number | 64 hex digits in quotes'],
  ['secret a list', keyring('{ id: 1, secret: ▸[] }'), 'encryption.keys[0].secret | secret is a list, not text | 64 hex digits in quotes'],
  ['encapsulation', ring('encapsulation: ▸gre'), 'encryption.encapsulation | encapsulation is text, which is not valid | write esp or udp'],
  ['port', ring('port: ▸0'), 'encryption.port | port is a number, out of range | from 1 to 65535'],
  ['exchange_port', ring('exchange_port: ▸"7949"'), 'encryption.exchange_port | exchange_port is text, not a number | from 1 to 65535'],
  ['algorithm', ring('algorithm: ▸aes-128-gcm-20'), 'encryption.algorithm | algorithm is text, which is not valid | write aes-128-gcm-16, or'],
  ['replay_window too small', ring('replay_window: ▸31'), 'encryption.replay_window | out of range | from 32 to 4096'],
  ['replay_window too large', ring('replay_window: ▸4097'), 'encryption.replay_window | out of range | from 32 to 4096'],
  ['rotate a number', ring('rotate: ▸12'), 'encryption.rotate | rotate is a number, not a mapping | such as after: …'],
  ...['9', '31d', '721h', '[]'].map((value): [string, string, string] => [
    `rotate.after ${value}`,
    ring(`rotate: { after: ▸${value} }`),
    'encryption.rotate.after | after is | a duration from 10s to 2592000s, such as 12h',
  ]),
  ['rotate.packets', ring('rotate: { packets: ▸65535 }'), 'encryption.rotate.packets | out of range | from 65536 to 68719476736'],
  ['rotate.bytes', ring('rotate: { bytes: ▸17592186044417 }'), 'encryption.rotate.bytes | out of range | from 67108864 to 17592186044416'],
  ['unknown key, close', ring('encapsulaton: esp').replace('encapsulaton', '▸encapsulaton'), 'encryption.… | unknown key | did you mean encapsulation?'],
  ['unknown key, not close', ring('▸colour: red'), 'encryption.… | unknown key | write one of keys, encapsulation'],
  ['key of the wrong level', `${HEAD}▸keys: []\n`, 'keys | keys does not belong here | move it into encryption'],
  ['secret of the wrong level', `${HEAD}encryption: { ▸secret: "${S1}" }\n`, 'encryption.secret | secret does not belong here | an entry of encryption.keys'],
  ['encryption in a network', `${HEAD}networks: [{ ${BLUE}, ▸encryption: {} }]\n`, 'networks[0].encryption | encryption does not belong here | the file itself'],
  // Ports.
  ['port of the underlay', ring('port: ▸4789'), 'encryption.port | UDP port 4789 of encryption.port is underlay.port already | write another port'],
  ['default port of the underlay', `${underlay('port: 4500')}networks: [{ ${BLUE}, encrypted: true }]\nencryption: ▸{ ${RING} }\n`, 'encryption.port | UDP port 4500 of encryption.port is underlay.port already | write another'],
  ['exchange_port of the underlay', ring('encapsulation: esp, exchange_port: ▸4789'), 'encryption.exchange_port | is underlay.port already | write another exchange_port'],
  ['both ports the same', `${HEAD}encryption: ▸{ ${RING}, port: 7949 }\n`, 'encryption.exchange_port | UDP port 7949 of encryption.exchange_port is encryption.port already | the same on every host'],
  // Associations.
  ['associations a mapping', `${HEAD}security_associations: ▸{ peer: a }\n`, 'security_associations | a mapping, not a list | after "- "'],
  ['association keys missing', `${HEAD}security_associations:\n  - ▸▸▸▸▸{}`, ...['peer', 'direction', 'spi', 'algorithm', 'key'].map((key) => `security_associations[0].${key} | ${key} is missing | add ${key}: `)],
  ['peer wrong', statics(OUT.replace('192.168.50.2', '▸192.168.50.999')), 'security_associations[0].peer | peer is text, which is not valid | the unicast address of a host'],
  ['peer of the other family', statics(OUT.replace('192.168.50.2', '▸fd00::2')), 'security_associations[0].peer | is IPv6 and the underlay is IPv4 | IPv4 address'],
  ['peer is this host', statics(OUT.replace('192.168.50.2', '▸192.168.50.1')), "security_associations[0].peer | this host's own underlay address | list other hosts"],
  ['direction', statics(OUT.replace('out', '▸both')), 'security_associations[0].direction | direction is text, which is not valid | write in or out'],
  ['SPI 255', statics(OUT.replace('0x1001', '▸255')), 'security_associations[0].spi | spi is a number, out of range | from 256 to 4294967295'],
  ['SPI 2^32', statics(OUT.replace('0x1001', '▸0x100000000')), 'security_associations[0].spi | out of range | from 256 to 4294967295'],
  ['SPI text', statics(OUT.replace('0x1001', '▸"0x1001"')), 'security_associations[0].spi | spi is text, not a number | from 256'],
  ['esn', statics(`${OUT}, esn: ▸yes`), 'security_associations[0].esn | esn is text, not true or false | true or false'],
  ['association replay_window', statics(`${OUT}, replay_window: ▸0`), 'security_associations[0].replay_window | out of range | from 32 to 4096'],
  ['key without salt', statics(OUT.replace(`"${K1}"`, `▸"${K1.slice(8)}"`)), 'security_associations[0].key | key has 32 hex digits, not 40 or 56 or 72 | its 4-byte salt'],
  ['key too long for the algorithm', statics(OUT.replace(`"${K1}"`, `▸"${'33'.repeat(36)}"`)), 'security_associations[0].key | key has 72 hex digits, and aes-128-gcm-16 takes 40 | write 32 of the key and 8 of the salt'],
  ['key too short for the algorithm', statics(OUT.replace('aes-128', 'aes-192').replace(`"${K1}"`, `▸"${K1}"`)), 'security_associations[0].key | key has 40 hex digits, and aes-192-gcm-16 takes 56 | write 48 of the key and 8 of the salt'],
  ['inbound SPI twice', statics(IN, IN.replace('0x1002', '▸4098').replace(K2, K1).replace('50.2', '50.3')), 'security_associations[1].spi | inbound SPI 0x1002 is used twice, first on line 4 | its own SPI'],
  ['two outbound for one peer', statics(OUT, OUT.replace(K1, K2).replace('192', '▸192').replace('1001', '1003')), 'security_associations[1].peer | the outbound association with 192.168.50.2 is used twice, first on line 4 | keep the one'],
  ['one key for both directions', statics(OUT, IN.replace(`"${K2}"`, `▸"${K1}"`)), 'security_associations[1].key | this key with its salt is used twice, first on line 4 | in and out too'],
  ['one key for two inbound', statics(IN, IN.replace('0x1002', '0x1003').replace(`"${K2}"`, `▸"${K2}"`)), 'security_associations[1].key | is used twice | a key of its own'],
  ['one key for two peers', statics(OUT, OUT.replace('50.2', '50.3').replace('"', '▸"')), 'security_associations[1].key | is used twice | a key of its own'],
  // Networks that are encrypted and have not what they need.
  ['no keys at all', blue('mtu: 1400', ''), `networks[0].encrypted | ${NONE} | add encryption.keys, with secrets made by "openssl rand -hex 32"`],
  ['an empty ring', blue(PEER, 'encryption: { keys: [] }'), `networks[0].encrypted | ${NONE} | add encryption.keys`],
  ['no inbound association', blue(PEER, list(OUT)), `networks[0].encrypted | ${LACKS} 192.168.50.2 (in) | add what is missing, or encryption.keys`],
  ['no outbound association, with a ring', blue(PEER, `encryption: { ${RING} }\n${list(IN)}`), `networks[0].encrypted | ${LACKS} 192.168.50.2 (out) | leave these peers to encryption.keys`],
  ['a peer without associations', blue('peers: [192.168.50.2, 192.168.50.3]', list(OUT, IN)), `networks[0].encrypted | ${LACKS} 192.168.50.3 (in and out) | add what is missing`],
  ['a remote endpoint without associations', blue(PEER, `${list(OUT, IN)}endpoints: [{ name: r, network: blue, vtep: 192.168.50.4, address: 10.0.9.4/24 }]`), `networks[0].encrypted | ${LACKS} 192.168.50.4 (in and out) | add what is missing`],
  ['many peers without associations', blue(`peers: [${[3, 4, 5, 6, 7, 8, 9].map((n) => `192.168.50.${n}`).join(', ')}]`, list(OUT, IN)), `networks[0].encrypted | 192.168.50.7 (in and out) and 2 more | add what is missing`],
  // MTU.
  ['mtu past ESP in UDP', `${underlay('mtu: 1500')}networks: [{ ${BLUE}, encrypted: true, mtu: ▸1409 }]\nencryption: { ${RING} }\n`, 'networks[0].mtu | MTU 1409 with VXLAN in ESP in UDP over IPv4 does not fit an underlay of 1500 bytes | write 1408 or less'],
  ['mtu past ESP', `${underlay('mtu: 1500')}networks: [{ ${BLUE}, encrypted: true, mtu: ▸1417 }]\nencryption: { ${RING}, encapsulation: esp }\n`, 'networks[0].mtu | VXLAN in ESP over IPv4 | write 1416 or less'],
  ['underlay too small for ESP', `${underlay('mtu: ▸1371')}networks: [{ ${BLUE}, subnet6: fd00::/64, encrypted: true }]\nencryption: { ${RING} }\n`, 'underlay.mtu | leaves 1276 for network "blue", which needs 1280 | write 1372 or more'],
];

for (const [title, text, ...expected] of rows) {
  test(`refused: ${title}`, (t) => refuses(t, text, ...expected));
}

test('a network is not said to lack what could not be read', (t) => {
  refuses(
    t,
    sound(PEER, list(OUT, IN.replace('direction: in', 'direction: ▸inn'))),
    'security_associations[1].direction | not valid | in or out',
  );
  refuses(
    t,
    sound(PEER, 'security_associations: ▸5\n'),
    'security_associations | a number, not a list | "- "',
  );
  refuses(t, sound(PEER, 'encryption: { keys: ▸5 }\n'), 'encryption.keys | a number, not a list | "- "');
  refuses(
    t,
    sound('peers: [▸fd00::2, ▸192.168.50.1]', list(OUT, IN)),
    'networks[0].peers[0] | is IPv6 | IPv4',
    "networks[0].peers[1] | this host's own | other hosts",
  );
});

test('more associations, or VTEPs, than a node can have', (t) => {
  const many = (count: number, peer: (i: number) => string) => {
    const items = Array.from({ length: count }, (_, i) => {
      const key = i.toString(16).padStart(40, '0');
      return `{peer: ${peer(i)},direction: in,spi: ${256 + i},algorithm: aes-128-gcm-8,key: "${key}"}`;
    });
    return `node: a\nunderlay: { address: 10.0.0.1 }\nsecurity_associations:\n▸- ${items.join('\n- ')}\n`;
  };
  refuses(
    t,
    many(8193, () => '10.0.0.2'),
    'security_associations | 8193 associations are more than a node can have | keep to 8192',
  );
  refuses(
    t,
    many(4097, (i) => `10.0.${1 + (i >> 8)}.${i & 255}`)
      .replace('▸', '')
      .replace('node', '▸node'),
    'networks | 4097 VTEPs are more than a node can have | keep to 4096',
  );
});

test('sizes of the algorithms', (t) => {
  const sizes: Record<Algorithm, { key: number; icv: number }> = {
    'aes-128-gcm-8': { key: 16, icv: 8 },
    'aes-128-gcm-12': { key: 16, icv: 12 },
    'aes-128-gcm-16': { key: 16, icv: 16 },
    'aes-192-gcm-8': { key: 24, icv: 8 },
    'aes-192-gcm-12': { key: 24, icv: 12 },
    'aes-192-gcm-16': { key: 24, icv: 16 },
    'aes-256-gcm-8': { key: 32, icv: 8 },
    'aes-256-gcm-12': { key: 32, icv: 12 },
    'aes-256-gcm-16': { key: 32, icv: 16 },
  };
  for (const [name, expected] of Object.entries(sizes)) {
    t.deepEqual(algorithmSizes(name as Algorithm), expected as never, name);
    const key = 'a5'.repeat(expected.key + 4);
    const text = statics(OUT.replace('aes-128-gcm-16', name).replace(K1, key));
    t.is(parseConfig(text, 'f').associations[0].key.length, expected.key + 4);
  }
});

test('the MTU inside ESP: the packet fits, and four bytes more do not', (t) => {
  t.is(defaultMtu(1500, 4, 'udp'), 1408);
  t.is(defaultMtu(1500, 4, 'esp'), 1416);
  t.is(defaultMtu(1500, 6, 'udp'), 1388);
  t.is(defaultMtu(9000, 6, 'esp'), 8896);
  for (const family of [4, 6] as const) {
    for (const encapsulation of ['udp', 'esp'] as const) {
      const outer = (inner: number) => {
        const sealed = 8 + 8 + 14 + inner;
        const padded = Math.ceil((sealed + 2) / 4) * 4;
        return (family === 4 ? 20 : 40) + (encapsulation === 'udp' ? 8 : 0) + 8 + 8 + padded + 16;
      };
      for (let underlayMtu = 1300; underlayMtu < 1320; underlayMtu++) {
        const inner = defaultMtu(underlayMtu, family, encapsulation);
        t.true(outer(inner) <= underlayMtu && outer(inner + 1) > underlayMtu, `${underlayMtu} ${inner}`);
      }
    }
  }
});

test('an encrypted network gets the MTU of its encapsulation, a plain one beside it its own', (t) => {
  const text = (encapsulation: string) => `${underlay('mtu: 1500')}networks:
  - { ${BLUE}, encrypted: true }
  - { name: red, vni: 43, subnet: 10.0.8.0/24 }
encryption: { ${RING}, encapsulation: ${encapsulation} }`;
  const mtus = (encapsulation: string) =>
    parseConfig(text(encapsulation), 'f').networks.map(({ mtu }) => mtu);
  t.deepEqual(mtus('udp'), [1408, 1450]);
  t.deepEqual(mtus('esp'), [1416, 1450]);
  const config = parseConfig(text('esp'), 'f');
  t.deepEqual(
    config.networks.map((network) => largestMtu(config, network, 1400)),
    [1316, 1350],
  );
});

test('a file with secrets is for its owner alone, also behind a symbolic link', (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'weft-config-'));
  const file = join(dir, 'weft.yaml');
  const link = join(dir, 'link.yaml');
  const write = (text: string, mode: number) => {
    writeFileSync(file, text);
    chmodSync(file, mode);
  };
  try {
    symlinkSync(file, link);
    const secret = `${HEAD}encryption: { ${RING} }\n`;
    for (const mode of [0o600, 0o400, 0o700]) {
      write(secret, mode);
      t.is(loadConfig(file).encryption!.keys.length, 1);
      t.is(loadConfig(link).encryption!.keys.length, 1);
    }
    for (const [text, path, column] of [
      [secret, 'encryption.keys', 15],
      [statics(OUT), 'security_associations', 1],
    ] as const) {
      for (const mode of [0o644, 0o640, 0o604, 0o620, 0o602, 0o4644]) {
        write(text, mode);
        for (const name of [file, link]) {
          const { problems } = t.throws(() => loadConfig(name), { instanceOf: ConfigError })!;
          t.deepEqual(problems, [
            {
              file: name,
              line: 3,
              column,
              path,
              message: `the file holds secrets, and its mode ${mode.toString(8).padStart(4, '0')} opens it to others than its owner`,
              remedy: `chmod 600 ${name}`,
            },
          ]);
        }
      }
    }
    write(HEAD, 0o644);
    t.is(loadConfig(file).encryption, undefined);
    write(`${HEAD}encryption: { keys: [], encapsulation: esp }\nsecurity_associations: []\n`, 0o644);
    t.is(loadConfig(file).encryption!.encapsulation, 'esp');
    // What is wrong beside it is told too.
    write(`${HEAD}encryption: { keys: [5], port: 0 }\n`, 0o644);
    t.is(t.throws(() => loadConfig(file), { instanceOf: ConfigError })!.problems.length, 3);
  } finally {
    rmSync(dir, { recursive: true });
  }
});
