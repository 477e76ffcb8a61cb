import { execFileSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import {
  ConfigError,
  configJsonSchema,
  defaultMtu,
  loadConfig,
  netnsPath,
  overlayOverhead,
  parseConfig,
} from '../../control/config.js';
import { DESIGN, endpoint, formatConfig, HEAD, LOCAL, network, revealed } from './config/support.js';

test("the design's file gives the whole config", (t) => {
  t.deepEqual(parseConfig(DESIGN, 'weft.yaml'), {
    node: 'hostA',
    workers: 1,
    underlay: {
      address: '192.168.50.1',
      port: 4789,
      mtu: undefined,
      mode: 'auto',
      reservedBits: 'ignore',
      accept: 'any',
      ttl: 64,
      tos: 'inherit-ecn',
    },
    networks: [
      {
        name: 'blue',
        vni: 42,
        subnet: '10.0.9.0/24',
        subnet6: undefined,
        gateway: '10.0.9.254',
        gateway6: undefined,
        uplink: undefined,
        masquerade: true,
        mtu: 1450,
        encrypted: false,
        internal: false,
        peers: ['192.168.50.2'],
        innerVlan: 'discard',
        ageing: 300,
        learningLimit: 65536,
        learning: true,
      },
    ],
    endpoints: [
      {
        kind: 'local',
        name: 'c1',
        network: 'blue',
        address: '10.0.9.1/24',
        address6: undefined,
        mac: '02:42:0a:00:09:01',
        netns: 'cA',
        interface: 'eth0',
      },
    ],
    uplinks: [],
    publish: [],
    ingress: undefined,
    services: [],
    marks: [],
    nat: {
      ...{ mapping: 'endpoint-independent', ports: { first: 32768, last: 60999 }, maxFlows: 262144 },
      timeouts: { established: 7440, opening: 240, closing: 240, udp: 300, icmp: 60, other: 300 },
    },
    encryption: undefined,
    associations: [],
  });
});

test('the least file: defaults fill the rest', (t) => {
  const config = parseConfig('node: n\nunderlay: { address: fd00::1 }', 'f');
  t.deepEqual(config.networks, []);
  t.deepEqual(config.endpoints, []);
  t.is(config.underlay.port, 4789);
  const [blue] = parseConfig(network('learning: true'), 'f').networks;
  t.is(blue.mtu, undefined);
  t.deepEqual(blue.peers, []);
  t.is(blue.gateway, undefined);
});

test('every key of the file reaches the config', (t) => {
  const config = parseConfig(
    `node: n
underlay: { address: "2001:DB8::1", port: 8472, mtu: 9000, mode: uplink, reserved_bits: strict, accept: peers, ttl: 1, tos: inherit-ecn }
networks:
  - { name: g, vni: 0xffffff, subnet: 10.0.0.0/8, subnet6: "FD00:0:0::/64", internal: true, peers: ["2001:db8:0::2"], inner_vlan: carry, ageing: 5m, learning_limit: 0, learning: false }
endpoints:
  - { name: r, network: g, vtep: "2001:db8:0:0::2", address: 10.1.2.3/8, address6: "FD00::A/64", mac: "02:42:0A:00:09:01" }
  - { name: l, network: g, netns: /run/user/netns/x, interface: a.b-c, address: 10.1.2.4/8 }`,
    'f',
  );
  t.deepEqual(config.underlay, {
    address: '2001:db8::1',
    port: 8472,
    mtu: 9000,
    mode: 'uplink',
    reservedBits: 'strict',
    accept: 'peers',
    ttl: 1,
    tos: 'inherit-ecn',
  });
  t.deepEqual(config.networks[0], {
    name: 'g',
    vni: 16777215,
    subnet: '10.0.0.0/8',
    subnet6: 'fd00::/64',
    gateway: undefined,
    gateway6: undefined,
    uplink: undefined,
    masquerade: true,
    mtu: 8930, // 9000 less 70: the underlay's MTU is known.
    encrypted: false,
    internal: true,
    peers: ['2001:db8::2'],
    innerVlan: 'carry',
    ageing: 300,
    learningLimit: 0,
    learning: false,
  });
  t.deepEqual(config.endpoints, [
    {
      kind: 'remote',
      name: 'r',
      network: 'g',
      address: '10.1.2.3/8',
      address6: 'fd00::a/64',
      mac: '02:42:0a:00:09:01',
      vtep: '2001:db8::2',
    },
    {
      kind: 'local',
      name: 'l',
      network: 'g',
      address: '10.1.2.4/8',
      address6: undefined,
      mac: '02:42:0a:01:02:04',
      netns: '/run/user/netns/x',
      interface: 'a.b-c',
    },
  ]);
});

test('durations: seconds, or with s, m, h', (t) => {
  for (const [text, seconds] of Object.entries({ 1: 1, 300: 300, '300s': 300, '5m': 300, '2h': 7200 })) {
    t.is(parseConfig(network(`ageing: ${text}`), 'f').networks[0].ageing, seconds);
  }
});

test('a MAC without quotes is text in YAML 1.2, digits alone too', (t) => {
  const config = parseConfig(endpoint(`${LOCAL}, address: 10.0.9.1/24, mac: 02:42:10:00:09:01`), 'f');
  t.is(config.endpoints[0].mac, '02:42:10:00:09:01');
});

test('an IPv6-only network derives MACs from the last four bytes', (t) => {
  const config = parseConfig(
    `${HEAD}networks: [{ name: six, vni: 1, subnet: fd00::/64 }]
endpoints: [{ name: a, network: six, ${LOCAL}, address: fd00::12:3456:789a/64 }]`,
    'f',
  );
  t.is(config.endpoints[0].mac, '02:42:34:56:78:9a');
});

test('the config is frozen all the way down', (t) => {
  const config = parseConfig(DESIGN, 'f');
  const walk = (value: unknown): void => {
    if (typeof value !== 'object' || value === null) return;
    t.true(Object.isFrozen(value));
    for (const part of Object.values(value)) walk(part);
  };
  walk(config);
  t.deepEqual(structuredClone(config), config);
});

test('overlay overhead and MTU', (t) => {
  t.is(overlayOverhead(4), 50);
  t.is(overlayOverhead(6), 70);
  t.is(defaultMtu(1500, 4), 1450);
  t.is(defaultMtu(1500, 6), 1430);
});

test('netns names and paths', (t) => {
  t.is(netnsPath('cA'), '/run/netns/cA');
  t.is(netnsPath('/var/run/netns/cA'), '/run/netns/cA');
  t.is(netnsPath('/proc/1/ns/net'), '/proc/1/ns/net');
});

test('files: what cannot be read says why and what to do', (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'weft-config-'));
  const write = (name: string, content: string | Uint8Array) => {
    writeFileSync(join(dir, name), content);
    return join(dir, name);
  };
  const load = (path: string) => {
    const error = t.throws(() => loadConfig(path), { instanceOf: ConfigError })!;
    t.is(error.problems.length, 1);
    t.like(error.problems[0], { file: path, line: 0, column: 0, path: '' });
    return error.message;
  };
  try {
    t.is(loadConfig(write('ok.yaml', DESIGN)).node, 'hostA');
    const absent = join(dir, 'absent.yaml');
    t.is(load(absent), `${absent}: there is no such file; check the path, or copy one of examples/`);
    t.regex(load(dir), /is a directory, not a file; name the file in it/);
    t.regex(load(join(dir, 'ok.yaml', 'x')), /is not a directory; check the path/);
    t.regex(load('/dev/zero'), /is not a regular file; name a file on disk/);
    t.regex(load(write('large.yaml', '#'.repeat((1 << 23) + 1))), /larger than 8388608 bytes; check/);
    t.regex(load(write('latin.yaml', Uint8Array.of(0x6e, 0xe9))), /not UTF-8 text; save it as UTF-8/);
    t.regex(load('a\0b'), /cannot be read: .*; check the path/);
    execFileSync('sh', ['-c', 'mkfifo "$0"', join(dir, 'fifo')]);
    t.regex(load(join(dir, 'fifo')), /is not a regular file/);
    mkdirSync(join(dir, 'locked'));
    const secret = write('locked/secret.yaml', DESIGN);
    chmodSync(secret, 0);
    chmodSync(join(dir, 'locked'), 0);
    // Root reads everything, so be nobody for one call.
    const root = process.geteuid!() === 0;
    if (root) process.seteuid!(65534);
    try {
      t.is(
        load(secret),
        `${secret}: no permission to read the file; run as a user who may, or change its mode`,
      );
    } finally {
      if (root) process.seteuid!(0);
      chmodSync(join(dir, 'locked'), 0o700);
    }
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test('every example is a valid file', (t) => {
  const names = readdirSync('examples').filter((name) => name.endsWith('.yaml'));
  t.true(names.length >= 4);
  for (const name of names.filter((name) => name !== 'encrypted.yaml')) {
    const config = loadConfig(join('examples', name));
    t.deepEqual(parseConfig(formatConfig(config), name), config);
  }
});

test('the example of encryption wants secrets, and nothing else', (t) => {
  const text = readFileSync('examples/encrypted.yaml', 'utf8');
  const error = t.throws(() => parseConfig(text, 'f'), { instanceOf: ConfigError })!;
  t.deepEqual(
    error.problems.map(({ path }) => path),
    ['encryption.keys[0].secret', 'encryption.keys[1].secret'],
  );
  let made = 0;
  const filled = text.replace(/secret: "[^"]*"/g, () => `secret: "${String(++made).repeat(64)}"`);
  const config = parseConfig(filled, 'f');
  t.true(config.networks[0].encrypted);
  t.deepEqual(revealed(parseConfig(formatConfig(config), 'f')), revealed(config));
});

test('the reference table names every key of the schema, and its example is valid', (t) => {
  const page = readFileSync('docs/configuration.md', 'utf8');
  const walk = (schema: Record<string, unknown>, path: string): void => {
    for (const [key, value] of Object.entries((schema['properties'] ?? {}) as Record<string, never>)) {
      t.true(page.includes(`| \`${path}${key}\` |`), `${path}${key} is not in docs/configuration.md`);
      walk(value, `${path}${key}.`);
      walk((value['items'] ?? {}) as Record<string, unknown>, `${path}${key}[].`);
    }
  };
  walk(configJsonSchema(), '');
  const example = /```yaml\n([\s\S]*?)```/.exec(page)!;
  t.is(parseConfig(example[1], 'docs/configuration.md').node, 'hostA');
});

test('the JSON Schema holds types, ranges, defaults and meanings', (t) => {
  const schema = configJsonSchema() as never as {
    required: string[];
    properties: Record<string, Record<string, Record<string, Record<string, unknown>>>>;
  };
  t.deepEqual(schema.required, ['node', 'underlay']);
  t.like(schema.properties['underlay']['properties']['port'], {
    type: 'integer',
    minimum: 1,
    maximum: 65535,
    default: 4789,
  });
  const encryption = schema.properties['encryption']['properties'] as never as Record<string, never>;
  t.like(encryption['keys'], { type: 'array', maxItems: 3 });
  t.like(encryption['encapsulation'], { enum: ['esp', 'udp'], default: 'udp' });
  t.like(encryption['rotate']['properties']['packets'], { type: 'integer', default: 2 ** 32 });
  const association = schema.properties['security_associations']['items'] as never as {
    required: string[];
    properties: Record<string, object>;
  };
  t.deepEqual(association.required, ['peer', 'direction', 'spi', 'algorithm', 'key']);
  t.like(association.properties['spi'], { type: 'integer', minimum: 256, maximum: 2 ** 32 - 1 });
  t.like(association.properties['key'], { type: 'string' });
  const fields = schema.properties['networks']['items']['properties'] as Record<
    string,
    { description: string }
  >;
  t.regex(fields['vni'].description, /VXLAN network identifier/);
  t.like(fields['encrypted'], { type: 'boolean', default: false });
});
