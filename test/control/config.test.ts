import { execFileSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import {
  type Config,
  ConfigError,
  configJsonSchema,
  defaultMtu,
  formatConfig,
  loadConfig,
  netnsPath,
  overlayOverhead,
  type Problem,
  parseConfig,
} from '../../control/config.js';

// The fixed part of the format, word for word from the design.
const DESIGN = `node: hostA
underlay: { address: 192.168.50.1, port: 4789 }
networks:
  - name: blue
    vni: 42
    subnet: 10.0.9.0/24
    gateway: 10.0.9.254        # optional
    mtu: 1450                  # optional; default underlay MTU less the overhead
    encrypted: false
    internal: false
    peers: [192.168.50.2]      # remote VTEPs when no store fills them in
endpoints:
  - { name: c1, network: blue, netns: cA, interface: eth0, address: 10.0.9.1/24, mac: "02:42:0a:00:09:01" }
`;

function refusal(text: string): ConfigError {
  try {
    parseConfig(text, 'weft.yaml');
  } catch (error) {
    if (error instanceof ConfigError) return error;
    throw error;
  }
  throw new Error(`accepted:\n${text}`);
}

/**
 * Expects exactly the problems marked: each "▸" in the text stands where one is to be reported, in order; each
 * expectation is `path | message | remedy`, and message and remedy are to be contained.
 */
function refuses(t: ExecutionContext, marked: string, ...expected: string[]): void {
  const places: { line: number; column: number }[] = [];
  const lines = marked.split('\n').map((line, index) => {
    const parts = line.split('▸');
    let column = 1;
    for (const part of parts.slice(0, -1)) places.push({ line: index + 1, column: (column += part.length) });
    return parts.join('');
  });
  const { problems, message } = refusal(lines.join('\n'));
  t.deepEqual(
    problems.map(({ line, column }) => ({ line, column })),
    places,
    message,
  );
  t.is(problems.length, expected.length, message);
  for (const [index, expectation] of expected.entries()) {
    const [path, what, remedy] = expectation.split(' | ');
    const problem: Problem = problems[index];
    t.is(problem.path, path, message);
    t.true(problem.message.includes(what), `${problem.message} has no ${what}`);
    t.true(problem.remedy.includes(remedy), `${problem.remedy} has no ${remedy}`);
    t.is(
      message.split('\n')[index],
      `weft.yaml:${problem.line}:${problem.column}: ${problem.message}; ${problem.remedy}`,
    );
  }
}

const HEAD = 'node: hostA\nunderlay: { address: 192.168.50.1 }\n';
const BLUE = 'name: blue, vni: 42, subnet: 10.0.9.0/24';
const network = (keys: string) => `${HEAD}networks:\n  - { ${BLUE}, ${keys} }\n`;
const underlay = (keys: string) => `node: hostA\nunderlay: { address: 192.168.50.1, ${keys} }\n`;
const endpoint = (keys: string, net = '') =>
  `${HEAD}networks: [{ ${BLUE}${net} }]\nendpoints:\n  - { name: c1, network: blue, ${keys} }\n`;
const LOCAL = 'netns: cA, interface: eth0';

test("the design's file gives the whole config", (t) => {
  t.deepEqual(parseConfig(DESIGN, 'weft.yaml'), {
    node: 'hostA',
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

// One row a refusal: title, text with a "▸" at each place, then `path | message | remedy` for each.
const UNDERLAY = 'write the unicast address of the host on the underlay';
const rows: [string, string, ...string[]][] = [
  ['empty file', '▸', ' | the file is empty | write at least node and underlay'],
  ['comments only', '▸# nothing\n', ' | the file is empty | write at least node'],
  ['root is a list', '▸- a\n', ' | the file is a list, not a mapping | such as node'],
  ['root is text', '▸hello\n', ' | the file is the text "hello", not a mapping | such as node'],
  ['node missing', '▸underlay: { address: 10.0.0.1 }', 'node | node is missing | add node: 1 to 63 letters'],
  ['underlay missing', '▸node: a', 'underlay | underlay is missing | add underlay: { address'],
  [
    'underlay empty',
    'node: a\n▸underlay:\n',
    'underlay | underlay is empty, not a mapping | such as address: …',
  ],
  [
    'node a number',
    '▸'.replace('▸', 'node: ▸12\nunderlay: { address: 10.0.0.1 }'),
    'node | node is the number 12, not text | in quotes',
  ],
  [
    'node with a space',
    'node: ▸host A\nunderlay: { address: 10.0.0.1 }',
    'node | the text "host A", which is not valid | write 1 to 63 letters',
  ],
  [
    'node too long',
    `node: ▸${'a'.repeat(64)}\nunderlay: { address: 10.0.0.1 }`,
    'node | not valid | 1 to 63',
  ],
  // Syntax.
  ['YAML: unclosed list', 'node: [a▸', ' | YAML: Flow sequence | close every bracket'],
  [
    'YAML: tab',
    'node: a\nunderlay:\n▸\taddress: 10.0.0.1\n',
    ' | YAML: Tabs are not allowed | indent with spaces',
  ],
  [
    'YAML: nested mapping on one line',
    'node: ▸a: b\n',
    ' | YAML: Nested mappings | value on its own line, or in quotes',
  ],
  [
    'YAML: two documents',
    'node: a\n▸---\nnode: b\n',
    ' | more than one YAML document | remove the "---" line',
  ],
  ['YAML: tag', 'node: ▸!secret a\n', ' | YAML: Unresolved tag | remove the tag'],
  ['YAML 1.1', '▸%YAML 1.1\n---\nnode: a\n', ' | asks for YAML 1.1 | remove the %YAML line'],
  ['YAML: unknown alias', 'node: ▸*a\n', 'node | alias *a names no anchor | write the value out'],
  [
    'YAML: alias in itself',
    'node: a\nnetworks: &n\n  - ▸*n\n',
    'networks[0] | stands inside the value it names | write the value out',
  ],
  [
    'YAML: key that is a list',
    `▸${HEAD}? [a]\n: b\n`,
    ' | a key of this mapping is not plain text | write keys as words',
  ],
  ['duplicate key', `${HEAD}▸node: b\n`, 'node | key "node" is written twice, first on line 1 | keep one'],
  [
    'duplicate key below',
    underlay('port: 1, ▸port: 2'),
    'underlay.port | key "port" is written twice, first on line 2 | keep one',
  ],
  ['merge key', `${HEAD}▸<<: { a: b }\n`, '<< | no merge key | write the keys out'],
  // Keys.
  [
    'unknown key, close',
    underlay('▸adress: 1'),
    'underlay.adress | unknown key "adress" | did you mean address?',
  ],
  [
    'unknown key, other style',
    network('▸reservedBits: 1, ▸inner-vlan: carry'),
    'networks[0].reservedBits | unknown key | write one of name, vni',
    'networks[0].inner-vlan | unknown key | did you mean inner_vlan?',
  ],
  [
    'unknown key, not close',
    `${HEAD}▸colour: red\n`,
    'colour | unknown key "colour" | write one of node, underlay, networks, endpoints',
  ],
  [
    'key of another level',
    `${HEAD}▸vni: 42\n`,
    'vni | vni does not belong here | move it into an entry of networks',
  ],
  ['key __proto__', `${HEAD}▸__proto__: { node: a }\n`, '__proto__ | unknown key "__proto__" | remove it'],
  ['key constructor', `${HEAD}▸constructor: 1\n`, 'constructor | unknown key "constructor" | remove it'],
  ...['encryption', 'security_associations', 'uplinks', 'publish', 'nat', 'services', 'ingress'].map(
    (key): [string, string, string] => [
      `later key ${key}`,
      `${HEAD}▸${key}: []\n`,
      `${key} | ${key} is not built yet | remove it until`,
    ],
  ),
  [
    'later key in a network',
    network('▸encryption: yes'),
    'networks[0].encryption | not built yet | remove it',
  ],
  // Underlay.
  [
    'underlay address missing',
    'node: a\nunderlay: ▸{ port: 1 }\n',
    'underlay.address | address is missing | add address: this host',
  ],
  [
    'underlay address wrong',
    'node: a\nunderlay: { address: ▸10.0.0 }\n',
    'underlay.address | "10.0.0" is not an IP address | write an IPv4 address',
  ],
  [
    'underlay address multicast',
    'node: a\nunderlay: { address: ▸ff02::1 }\n',
    `underlay.address | multicast | ${UNDERLAY}`,
  ],
  [
    'underlay address unspecified',
    'node: a\nunderlay: { address: ▸0.0.0.0 }\n',
    `underlay.address | unspecified | ${UNDERLAY}`,
  ],
  [
    'underlay address broadcast',
    'node: a\nunderlay: { address: ▸255.255.255.255 }\n',
    `underlay.address | broadcast | ${UNDERLAY}`,
  ],
  [
    'port text',
    underlay('port: ▸"4789"'),
    'underlay.port | the text "4789", not a number | write 4789 without quotes',
  ],
  [
    'port 0',
    underlay('port: ▸0'),
    'underlay.port | the number 0, out of range | write a number from 1 to 65535',
  ],
  ['port 65536', underlay('port: ▸65536'), 'underlay.port | out of range | from 1 to 65535'],
  [
    'port not whole',
    underlay('port: ▸1.5'),
    'underlay.port | the number 1.5, not a whole number | from 1 to 65535',
  ],
  ['port NaN', underlay('port: ▸.nan'), 'underlay.port | the number NaN | from 1 to 65535'],
  ['port empty', underlay('▸port:'), 'underlay.port | port is empty | from 1 to 65535'],
  ['underlay mtu', underlay('mtu: ▸575'), 'underlay.mtu | out of range | from 576 to 65535'],
  [
    'IPv6 underlay mtu',
    'node: a\nunderlay: { address: fd00::1, mtu: ▸1279 }',
    'underlay.mtu | IPv6 underlay cannot have an MTU of 1279 | from 1280',
  ],
  ['mode', underlay('mode: ▸fast'), 'underlay.mode | the text "fast" | write auto, socket or uplink'],
  [
    'reserved_bits',
    underlay('reserved_bits: ▸no'),
    'underlay.reserved_bits | the text "no" | write ignore or strict',
  ],
  ['accept', underlay('accept: ▸[]'), 'underlay.accept | a list | write any or peers'],
  ['ttl', underlay('ttl: ▸0'), 'underlay.ttl | out of range | from 1 to 255'],
  ['tos', underlay('tos: ▸3'), 'underlay.tos | the number 3 | write inherit-ecn'],
  // Networks.
  ['networks a mapping', `${HEAD}networks: ▸{ a: b }\n`, 'networks | a mapping, not a list | after "- "'],
  ['networks empty', `${HEAD}▸networks:\n`, 'networks | empty, not a list | or remove networks'],
  [
    'network is text',
    `${HEAD}networks: [▸blue]\n`,
    'networks[0] | entry 0 of networks is the text "blue" | such as name: …',
  ],
  [
    'network keys missing',
    `${HEAD}networks:\n  - ▸▸name: blue\n`,
    'networks[0].vni | vni is missing | from 1 to 16777215',
    'networks[0].subnet | subnet is missing | add subnet: a prefix such as',
  ],
  [
    'network name twice',
    `${HEAD}networks:\n  - { ${BLUE} }\n  - { name: ▸blue, vni: 1, subnet: 10.0.8.0/24 }`,
    'networks[1].name | network name "blue" is used twice, first on line 4 | its own name',
  ],
  [
    'VNI twice',
    `${HEAD}networks:\n  - { ${BLUE} }\n  - { name: red, vni: ▸0x2a, subnet: 10.0.8.0/24 }`,
    'networks[1].vni | VNI 42 is used twice, first on line 4 | its own VNI',
  ],
  [
    'VNI 0',
    `${HEAD}networks: [{ name: a, subnet: 10.0.9.0/24, vni: ▸0 }]`,
    'networks[0].vni | VNI 0 is read as "no VNI" | from 1 to 16777215',
  ],
  [
    'VNI too large',
    `${HEAD}networks: [{ name: a, subnet: 10.0.9.0/24, vni: ▸16777216 }]`,
    'networks[0].vni | 16777216, out of range | from 1 to 16777215',
  ],
  [
    'VNI negative',
    `${HEAD}networks: [{ name: a, subnet: 10.0.9.0/24, vni: ▸-1 }]`,
    'networks[0].vni | out of range | from 1',
  ],
  [
    'subnet with host bits',
    `${HEAD}networks: [{ name: a, vni: 1, subnet: ▸10.0.9.1/24 }]`,
    'networks[0].subnet | bits set after its prefix | write 10.0.9.0/24',
  ],
  [
    'subnet without length',
    `${HEAD}networks: [{ name: a, vni: 1, subnet: ▸10.0.9.0 }]`,
    'networks[0].subnet | no prefix length | address/length',
  ],
  [
    'subnet6 is IPv4',
    network('subnet6: ▸10.0.0.0/8'),
    'networks[0].subnet6 | an IPv4 prefix | write an IPv6 prefix',
  ],
  [
    'two IPv6 prefixes',
    `${HEAD}networks: [{ name: a, vni: 1, subnet: fd00::/64, subnet6: ▸fd01::/64 }]`,
    'networks[0].subnet6 | subnet is an IPv6 prefix already | keep the IPv6 prefix in one',
  ],
  [
    'gateway outside',
    network('gateway: ▸10.0.8.1'),
    'networks[0].gateway | 10.0.8.1 is outside 10.0.9.0/24 | a host address of 10.0.9.0/24',
  ],
  [
    'gateway network address',
    network('gateway: ▸10.0.9.0'),
    'networks[0].gateway | network address | a host address',
  ],
  [
    'gateway broadcast',
    network('gateway: ▸10.0.9.255'),
    'networks[0].gateway | broadcast address | a host address',
  ],
  [
    'gateway with length',
    network('gateway: ▸10.0.9.1/24'),
    'networks[0].gateway | has a prefix length | write the address alone',
  ],
  ['network mtu', network('mtu: ▸65536'), 'networks[0].mtu | out of range | from 576 to 65535'],
  [
    'IPv6 network mtu',
    network('subnet6: fd00::/64, mtu: ▸1279'),
    'networks[0].mtu | IPv6 prefix cannot have an MTU of 1279 | from 1280',
  ],
  [
    'mtu past any underlay',
    network('mtu: ▸65486'),
    'networks[0].mtu | does not fit an underlay of 65535 | write 65485 or less',
  ],
  [
    'mtu past this underlay',
    `${underlay('mtu: 1500')}networks: [{ ${BLUE}, mtu: ▸1451 }]`,
    'networks[0].mtu | does not fit an underlay of 1500 | write 1450 or less',
  ],
  [
    'underlay too small for IPv6 inside',
    `${underlay('mtu: ▸1329')}networks: [{ ${BLUE}, subnet6: fd00::/64 }]`,
    'underlay.mtu | leaves 1279 for network "blue", which needs 1280 | write 1330 or more',
  ],
  [
    'encrypted',
    network('encrypted: ▸true'),
    'networks[0].encrypted | encryption is not built yet, and Weft refuses rather than send plain | write false',
  ],
  [
    'internal',
    network('internal: ▸yes'),
    'networks[0].internal | the text "yes", not true or false | write true or false',
  ],
  ['peers not a list', network('peers: ▸192.168.50.2'), 'networks[0].peers | not a list | after "- "'],
  [
    'peer not an address',
    network('peers: [192.168.50.2, ▸hostB, ▸5]'),
    'networks[0].peers[1] | "hostB" is not an IP address | write an IPv4',
    'networks[0].peers[2] | entry 2 of peers is the number 5 | in quotes',
  ],
  [
    'peer of the other family',
    network('peers: [▸fd00::2]'),
    'networks[0].peers[0] | is IPv6 and the underlay is IPv4 | IPv4 address',
  ],
  [
    'peer is this host',
    network('peers: [▸192.168.50.1]'),
    "networks[0].peers[0] | this host's own underlay address | list other hosts only",
  ],
  [
    'peer twice',
    network('peers:  [192.168.50.2, ▸192.168.50.2]'),
    'networks[0].peers[1] | peer 192.168.50.2 is used twice, first on line 4 | once',
  ],
  ['peer multicast', network('peers: [▸239.0.0.1]'), `networks[0].peers[0] | multicast | ${UNDERLAY}`],
  ['inner_vlan', network('inner_vlan: ▸drop'), 'networks[0].inner_vlan | the text "drop" | discard or carry'],
  ...['0', '5 min', '-1', '1.5', '1000001', '300h'].map((value): [string, string, string] => [
    `ageing ${value}`,
    network(`ageing: ▸${value}`),
    'networks[0].ageing | is not a duration | 300, 300s or 5m',
  ]),
  ['ageing a list', network('ageing: ▸[]'), 'networks[0].ageing | a list | 300, 300s or 5m'],
  [
    'learning_limit',
    network('learning_limit: ▸1048577'),
    'networks[0].learning_limit | out of range | from 0 to 1048576',
  ],
  ['learning', network('learning: ▸1'), 'networks[0].learning | the number 1 | true or false'],
  // Endpoints.
  [
    'endpoint keys missing',
    `${HEAD}endpoints:\n  - ▸▸▸name: c1`,
    'endpoints[0].network | network is missing | a network of this file',
    'endpoints[0].address | address is missing | address/length',
    'endpoints[0] | no place | netns and interface (on this host) or vtep',
  ],
  [
    'endpoint name twice',
    `${endpoint(`${LOCAL}, address: 10.0.9.1/24`)}  - { name: ▸c1, network: blue, vtep: 192.168.50.2, address: 10.0.9.2/24 }`,
    'endpoints[1].name | "c1" is used twice, first on line 5 | its own name',
  ],
  [
    'network unknown',
    `${HEAD}endpoints: [{ name: c1, network: ▸blue, ${LOCAL}, address: 10.0.9.1/24 }]`,
    'endpoints[0].network | there is no network "blue" | add it to networks',
  ],
  [
    'network misspelt',
    endpoint('address: 10.0.9.1/24, netns: a, interface: b').replace('network: blue', 'network: ▸bleu'),
    'endpoints[0].network | there is no network "bleu" | did you mean blue?',
  ],
  [
    'network quite other',
    endpoint('address: 10.0.9.1/24, netns: a, interface: b').replace('network: blue', 'network: ▸yellow'),
    'endpoints[0].network | no network "yellow" | write one of blue',
  ],
  [
    'remote and local',
    endpoint('▸vtep: 192.168.50.2, netns: a, address: 10.0.9.1/24'),
    'endpoints[0].vtep | both remote and local | keep vtep',
  ],
  [
    'interface missing',
    endpoint('netns: a, address: 10.0.9.1/24').replace('- {', '- ▸{'),
    'endpoints[0] | interface is missing | add interface',
  ],
  [
    'netns missing',
    endpoint('interface: a, address: 10.0.9.1/24').replace('- {', '- ▸{'),
    'endpoints[0] | netns is missing | add netns',
  ],
  ...['a/b', '.', '..', '""', 'a b', '"a\\0b"', 'x'.repeat(256)].map((value): [string, string, string] => [
    `netns ${value.slice(0, 9)}`,
    endpoint(`interface: a, netns: ▸${value}, address: 10.0.9.1/24`),
    'endpoints[0].netns | not the name of a network namespace | /run/netns',
  ]),
  ...['a/b', 'a:b', 'a b', '""', 'abcdefghijklmnop', 'eth%d', 'éééééééé', '"a\\eb"'].map(
    (value): [string, string, string] => [
      `interface ${value}`,
      endpoint(`netns: a, interface: ▸${value}, address: 10.0.9.1/24`),
      'endpoints[0].interface | not a Linux interface name | 1 to 15 bytes',
    ],
  ),
  ...['.', '..', 'lo', 'all', 'default'].map((value): [string, string, string] => [
    `interface ${value}`,
    endpoint(`netns: a, interface: ▸${value}, address: 10.0.9.1/24`),
    'endpoints[0].interface | Linux keeps for itself | such as eth0',
  ]),
  [
    'interface twice',
    `${endpoint(`${LOCAL}, address: 10.0.9.1/24`)}  - { name: c2, network: blue, netns: /var/run/netns/cA, interface: ▸eth0, address: 10.0.9.2/24 }`,
    'endpoints[1].interface | used twice, first on line 5 | its own interface',
  ],
  [
    'address without length',
    endpoint(`${LOCAL}, address: ▸10.0.9.1`),
    'endpoints[0].address | no prefix length | address/length',
  ],
  [
    'address outside',
    endpoint(`${LOCAL}, address: ▸10.0.8.1/24`),
    'endpoints[0].address | 10.0.8.1 is outside 10.0.9.0/24 | with /24',
  ],
  [
    'address of the other family',
    endpoint(`${LOCAL}, address: ▸fd00::1/64`),
    'endpoints[0].address | fd00::1 is outside 10.0.9.0/24 | host address',
  ],
  [
    'address with another length',
    endpoint(`${LOCAL}, address: ▸10.0.9.1/16`),
    'endpoints[0].address | another prefix length than its network | write 10.0.9.1/24',
  ],
  [
    'address is the network',
    endpoint(`${LOCAL}, address: ▸10.0.9.0/24`),
    'endpoints[0].address | network address | host address',
  ],
  [
    'address is the broadcast',
    endpoint(`${LOCAL}, address: ▸10.0.9.255/24`),
    'endpoints[0].address | broadcast address | host address',
  ],
  [
    'address is the gateway',
    endpoint(`${LOCAL}, address: ▸10.0.9.254/24`, ', gateway: 10.0.9.254'),
    "endpoints[0].address | the network's gateway | another host address",
  ],
  [
    'address twice',
    `${endpoint(`${LOCAL}, address: 10.0.9.1/24, mac: "02:00:00:00:00:01"`)}  - { name: c2, network: blue, vtep: 192.168.50.2, address: ▸10.0.9.1/24 }`,
    'endpoints[1].address | address 10.0.9.1 is used twice, first on line 5 | its own address',
  ],
  [
    'address6 without subnet6',
    endpoint(`${LOCAL}, address: 10.0.9.1/24, address6: ▸fd00::1/64`),
    'endpoints[0].address6 | has no subnet6 | add subnet6',
  ],
  [
    'address6 outside',
    endpoint(`${LOCAL}, address: 10.0.9.1/24, address6: ▸fd01::1/64`, ', subnet6: fd00::/64'),
    'endpoints[0].address6 | outside fd00::/64 | with /64',
  ],
  [
    'address6 anycast',
    endpoint(`${LOCAL}, address: 10.0.9.1/24, address6: ▸fd00::/64`, ', subnet6: fd00::/64'),
    'endpoints[0].address6 | network address | host address',
  ],
  [
    'mac wrong',
    endpoint(`${LOCAL}, address: 10.0.9.1/24, mac: ▸02-42-0a-00-09-01`),
    'endpoints[0].mac | not a MAC address | six octets',
  ],
  [
    'mac a number',
    endpoint(`${LOCAL}, address: 10.0.9.1/24, mac: ▸024200000901`),
    'endpoints[0].mac | mac is the number 24200000901, not text | in quotes, such as "02:42',
  ],
  [
    'mac group',
    endpoint(`${LOCAL}, address: 10.0.9.1/24, mac: ▸"03:42:0a:00:09:01"`),
    'endpoints[0].mac | group MAC | as in "02:42:0a:00:09:01"',
  ],
  [
    'mac zero',
    endpoint(`${LOCAL}, address: 10.0.9.1/24, mac: ▸"00:00:00:00:00:00"`),
    'endpoints[0].mac | zero MAC | six octets',
  ],
  [
    'mac twice, one derived',
    `${endpoint(`${LOCAL}, address: 10.0.9.1/24`)}  - { name: c2, network: blue, vtep: 192.168.50.2, address: 10.0.9.2/24, mac: ▸"02:42:0A:00:09:01" }`,
    'endpoints[1].mac | MAC 02:42:0a:00:09:01 in network "blue" is used twice, first on line 5 | its own',
  ],
  [
    'derived macs collide',
    `${HEAD}networks: [{ name: six, vni: 1, subnet: fd00::/16 }]\nendpoints:\n  - { name: a, network: six, ${LOCAL}, address: fd00:1::1/16 }\n  - { name: b, network: six, netns: cB, interface: e, address: ▸fd00:2::1/16 }`,
    'endpoints[1].address | (derived from fd00:2::1) in network "six" is used twice, first on line 5 | give one of the two endpoints a mac',
  ],
  [
    'vtep own',
    endpoint('vtep: ▸192.168.50.1, address: 10.0.9.1/24'),
    "endpoints[0].vtep | this host's own underlay address | the other host's address",
  ],
  [
    'vtep of the other family',
    endpoint('vtep: ▸fd00::2, address: 10.0.9.1/24'),
    'endpoints[0].vtep | is IPv6 and the underlay is IPv4 | IPv4 address',
  ],
  [
    'vtep that would be dropped',
    `${underlay('accept: peers')}networks: [{ ${BLUE}, peers: [192.168.50.3] }]\nendpoints: [{ name: r, network: blue, vtep: ▸192.168.50.2, address: 10.0.9.1/24 }]`,
    'endpoints[0].vtep | no peer of network "blue", and underlay.accept is peers | add 192.168.50.2',
  ],
];

for (const [title, text, ...expected] of rows) {
  test(`refused: ${title}`, (t) => refuses(t, text, ...expected));
}

test('what may repeat across networks is not refused', (t) => {
  const config = parseConfig(
    `${HEAD}networks: [{ ${BLUE} }, { name: red, vni: 43, subnet: 10.0.9.0/24 }]
endpoints:
  - { name: a, network: blue, netns: n, interface: eth0, address: 10.0.9.1/24 }
  - { name: b, network: red, netns: n, interface: eth1, address: 10.0.9.1/24 }
  - { name: c, network: red, netns: m, interface: eth0, address: 10.0.9.2/24 }`,
    'f',
  );
  t.is(config.endpoints.length, 3);
});

test('all problems come at once, in the order of the file', (t) => {
  refuses(
    t,
    `node: ▸[]
underlay: { address: ▸x, port: ▸0 }
networks:
  - { name: blue, vni: ▸0, subnet: ▸10.0.9.1/24 }
endpoints:
  - { name: c1, network: ▸red, netns: cA, interface: ▸lo, address: 10.0.9.1/24, mac: ▸1 }
▸extra: 1`,
    'node | a list, not text | 1 to 63',
    'underlay.address | not an IP address | write',
    'underlay.port | out of range | 1 to 65535',
    'networks[0].vni | VNI 0 | 1 to',
    'networks[0].subnet | bits set | 10.0.9.0/24',
    'endpoints[0].network | no network "red" | blue',
    'endpoints[0].interface | keeps for itself | eth0',
    'endpoints[0].mac | the number 1 | quotes',
    'extra | unknown key | remove it',
  );
});

test('a network whose name cannot be read does not make its endpoints wrong too', (t) => {
  refuses(
    t,
    `${HEAD}networks: [{ name: ▸bl ue, vni: 1, subnet: 10.0.9.0/24 }]
endpoints: [{ name: a, network: blue, ${LOCAL}, address: 10.0.9.1/24 }]`,
    'networks[0].name | the text "bl ue" | letters',
  );
});

test('aliases work, and a problem behind one stands at its use', (t) => {
  const config = parseConfig(
    `${HEAD}networks:
  - { ${BLUE}, peers: &others [192.168.50.2] }
  - { name: red, vni: 1, subnet: 10.0.8.0/24, peers: *others }`,
    'f',
  );
  t.deepEqual(config.networks[1].peers, ['192.168.50.2']);
  refuses(
    t,
    `${HEAD}networks:\n  - &n { ${BLUE} }\n  - ▸▸*n\n`,
    'networks[1].name | used twice, first on line 4 | own name',
    'networks[1].vni | used twice, first on line 4 | own VNI',
  );
});

test('lines end as they like: CRLF and a byte-order mark move no position', (t) => {
  const text = `nodee: 1\n${HEAD}networks:\n  - { ${BLUE}, vnii: 1 }\n`;
  const plain = refusal(text).problems;
  t.deepEqual(refusal(text.replaceAll('\n', '\r\n')).problems, plain);
  t.deepEqual(refusal(`\ufeff${text}`).problems, plain);
});

test('hostile YAML is refused and does not hang, recurse or expand', (t) => {
  const bomb = Array.from({ length: 20 }, (_, i) => `a${i + 1}: &a${i + 1} [${`*a${i}, `.repeat(9)}]`);
  const cases: Record<string, [string, RegExp]> = {
    'alias bomb': [`a0: &a0 [1]\n${bomb.join('\n')}`, /YAML aliases add more than 10000 values; write/],
    'deep lists': ['['.repeat(300_000), /nested more than 200 levels deep; a node file needs four/],
    'deep blocks': ['- '.repeat(300_000), /nested more than 200 levels deep/],
    'deep mappings': ['{a: '.repeat(100_000), /nested more than 200 levels deep/],
    'many keys': [Array.from({ length: 40_000 }, (_, i) => `k${i}: 1`).join('\n'), /and 39902 more problems/],
    'many errors': [']'.repeat(10_000), /YAML: Unexpected flow-seq-end/],
    'too large': ['#'.repeat((1 << 20) + 1), /^weft.yaml: the file is larger than 1048576 bytes; check/],
  };
  for (const [name, [text, message]] of Object.entries(cases)) {
    const error = refusal(text);
    t.regex(error.message, message, name);
    t.true(error.message.length < 100_000, name);
  }
});

test('at most 100 problems are listed, the rest counted', (t) => {
  const { problems, omitted, message } = refusal(`${HEAD}${'k: 1\n'.repeat(151)}`);
  t.is(problems.length, 100);
  t.is(omitted, 51);
  t.true(message.endsWith('weft.yaml: and 51 more problems; mend these first'), message);
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
    t.regex(load(write('large.yaml', '#'.repeat((1 << 20) + 1))), /larger than 1048576 bytes; check/);
    t.regex(load(write('latin.yaml', Uint8Array.of(0x6e, 0xe9))), /not UTF-8 text; save it as UTF-8/);
    t.regex(load('a\0b'), /cannot be read: .*; check the path/);
    execFileSync('mkfifo', [join(dir, 'fifo')]);
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
  t.true(names.length >= 3);
  for (const name of names) {
    const config = loadConfig(join('examples', name));
    t.deepEqual(parseConfig(formatConfig(config), name), config);
  }
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
  const fields = schema.properties['networks']['items']['properties'] as Record<
    string,
    { description: string }
  >;
  t.regex(fields['vni'].description, /VXLAN network identifier/);
  t.like(fields['encrypted'], { const: false, default: false });
});

// Properties.

const validFile = fc
  .record({
    six: fc.boolean(),
    port: fc.integer({ min: 1, max: 65535 }),
    mtu: fc.option(fc.integer({ min: 1400, max: 65535 }), { nil: undefined }),
    mode: fc.constantFrom('auto', 'socket', 'uplink'),
    ttl: fc.integer({ min: 1, max: 255 }),
    networks: fc.array(
      fc.record({
        dual: fc.boolean(),
        ageing: fc.integer({ min: 1, max: 1_000_000 }),
        limit: fc.integer({ min: 0, max: 1048576 }),
        carry: fc.boolean(),
        peers: fc.integer({ min: 0, max: 3 }),
        endpoints: fc.array(fc.record({ remote: fc.boolean(), mac: fc.boolean() }), { maxLength: 4 }),
      }),
      { maxLength: 4 },
    ),
  })
  .map(({ six, port, mtu, mode, ttl, networks }): Config => {
    const vtep = (n: number) => (six ? `2001:db8::${n}` : `192.0.2.${n}`);
    return {
      node: 'n',
      underlay: {
        address: vtep(1),
        port,
        mtu,
        mode: mode as 'auto',
        reservedBits: 'ignore',
        accept: 'any',
        ttl,
        tos: 'inherit-ecn',
      },
      networks: networks.map((network, i) => ({
        name: `net${i}`,
        vni: i + 1,
        subnet: `10.${i}.0.0/16`,
        subnet6: network.dual ? `fd00:${i + 1}::/64` : undefined,
        gateway: `10.${i}.255.254`,
        mtu: mtu === undefined ? undefined : defaultMtu(mtu, six ? 6 : 4),
        encrypted: false,
        internal: network.dual,
        peers: Array.from({ length: network.peers }, (_, p) => vtep(p + 2)),
        innerVlan: network.carry ? 'carry' : 'discard',
        ageing: network.ageing,
        learningLimit: network.limit,
        learning: !network.carry,
      })),
      endpoints: networks.flatMap((network, i) =>
        network.endpoints.map(({ remote, mac }, e) => {
          const common = {
            name: `e${i}.${e}`,
            network: `net${i}`,
            address: `10.${i}.0.${e + 1}/16`,
            address6: network.dual ? `fd00:${i + 1}::${e + 1}/64` : undefined,
            mac: mac ? `02:00:00:00:00:0${e}` : `02:42:0a:0${i}:00:0${e + 1}`,
          };
          return remote
            ? ({ kind: 'remote', ...common, vtep: vtep(9) } as const)
            : ({ kind: 'local', ...common, netns: 'n', interface: `i${i}-${e}` } as const);
        }),
      ),
    };
  });

test('property: a valid config survives its text', (t) => {
  fc.assert(
    fc.property(validFile, (config) => {
      t.deepEqual(parseConfig(formatConfig(config), 'f'), config);
    }),
    { numRuns: 100 },
  );
});

/** Parses, and holds every refusal to its promises. */
function onlyConfigError(t: ExecutionContext, text: string): void {
  try {
    parseConfig(text, 'f');
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    const lines = text.split('\n');
    if (error.problems.length === 0) t.fail(`no problem named for ${JSON.stringify(text)}`);
    for (const { line, column, message, remedy } of error.problems) {
      const inside = line >= 1 && line <= lines.length && column >= 1 && column <= lines[line - 1].length + 1;
      if (!inside) t.fail(`${line}:${column} is outside ${JSON.stringify(text)}: ${message}`);
      if (message === '' || remedy === '' || /[\r\n]/.test(message + remedy)) t.fail(`${message}; ${remedy}`);
    }
  }
  t.pass();
}

const WORDS = [
  ...'{}[]:,-?!&*#|>%@"\'\n \t~',
  ...[
    '\n  ',
    '\n- ',
    ': ',
    '---\n',
    '&a',
    '*a',
    '!!str ',
    '<<',
    'null',
    'true',
    '1',
    '0x10',
    '.nan',
    '1e999',
  ],
  ...['node', 'underlay', 'networks', 'endpoints', 'name', 'vni', 'peers', 'address', 'mac', '__proto__'],
  ...['10.0.0.1', '10.0.0.0/8', 'fd00::', '\u0000', '\u2028', '\ufeff', '\r', 'é', '\ud800'],
];

test('property: any text is a config or a ConfigError with places inside it', (t) => {
  const text = fc.oneof(
    fc.string({ unit: 'binary' }),
    fc.array(fc.constantFrom(...WORDS), { maxLength: 40 }).map((words) => words.join('')),
    fc.json(),
  );
  fc.assert(
    fc.property(text, (value) => onlyConfigError(t, value)),
    { numRuns: 1500 },
  );
});

test('property: a valid file with pieces cut, doubled or replaced is a config or a ConfigError', (t) => {
  const cut = fc.record({
    at: fc.nat(DESIGN.length),
    length: fc.nat(12),
    put: fc.oneof(fc.constantFrom(...WORDS, ''), fc.nat(DESIGN.length - 20)),
  });
  fc.assert(
    fc.property(fc.array(cut, { minLength: 1, maxLength: 4 }), (cuts) => {
      let text = DESIGN;
      for (const { at, length, put } of cuts) {
        const piece = typeof put === 'number' ? DESIGN.slice(put, put + 20) : put;
        text = text.slice(0, at) + piece + text.slice(at + length);
      }
      onlyConfigError(t, text);
    }),
    { numRuns: 1500 },
  );
});
