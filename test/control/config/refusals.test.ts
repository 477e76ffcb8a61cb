import test from 'ava';
import { BLUE, HEAD, network, type Row, refusal, refuses, underlay } from './support.js';

const UNDERLAY = 'write the unicast address of the host on the underlay';
// biome-ignore format: one row a refusal reads best on one line.
const rows: readonly Row[] = [
  ['empty file', '▸', ' | the file is empty | write at least node and underlay'],
  ['comments only', '▸# nothing\n', ' | the file is empty | write at least node'],
  ['root is a list', '▸- a\n', ' | the file is a list, not a mapping | such as node'],
  ['root is text', '▸hello\n', ' | the file is text, not a mapping | such as node'],
  ['node missing', '▸underlay: { address: 10.0.0.1 }', 'node | node is missing | add node: 1 to 63 letters'],
  ['underlay missing', '▸node: a', 'underlay | underlay is missing | add underlay: { address'],
  ['underlay empty', 'node: a\n▸underlay:\n', 'underlay | underlay is empty, not a mapping | such as address: …'],
  ['node a number', 'node: ▸12\nunderlay: { address: 10.0.0.1 }', 'node | node is the number 12, not text | in quotes'],
  ['node with a space', 'node: ▸host A\nunderlay: { address: 10.0.0.1 }', 'node | the text "host A", which is not valid | write 1 to 63 letters'],
  ['node too long', `node: ▸${'a'.repeat(64)}\nunderlay: { address: 10.0.0.1 }`, 'node | not valid | 1 to 63'],
  // Syntax.
  ['YAML: unclosed list', 'node: [a▸', ' | YAML: Flow sequence | close every bracket'],
  ['YAML: tab', 'node: a\nunderlay:\n▸\taddress: 10.0.0.1\n', ' | YAML: Tabs are not allowed | indent with spaces'],
  ['YAML: nested mapping on one line', 'node: ▸a: b\n', ' | YAML: Nested mappings | value on its own line, or in quotes'],
  ['YAML: two documents', 'node: a\n▸---\nnode: b\n', ' | more than one YAML document | remove the "---" line'],
  ['YAML: tag', 'node: ▸!secret a\n', ' | YAML: a tag | remove the tag'],
  ['YAML 1.1', '▸%YAML 1.1\n---\nnode: a\n', ' | asks for YAML 1.1 | remove the %YAML line'],
  ['YAML: unknown alias', 'node: ▸*a\n', 'node | alias names no anchor | write the value out'],
  ['YAML: alias in itself', 'node: a\nnetworks: &n\n  - ▸*n\n', 'networks[0] | stands inside the value it names | write the value out'],
  ['YAML: key that is a list', `▸${HEAD}? [a]\n: b\n`, ' | a key of this mapping is not plain text | write keys as words'],
  ['duplicate key', `${HEAD}▸node: b\n`, 'node | key "node" is written twice, first on line 1 | keep one'],
  ['duplicate key below', underlay('port: 1, ▸port: 2'), 'underlay.port | key "port" is written twice, first on line 2 | keep one'],
  ['merge key', `${HEAD}▸<<: { a: b }\n`, '<< | no merge key | write the keys out'],
  // Keys.
  ['unknown key, close', underlay('▸adress: 1'), 'underlay.adress | unknown key "adress" | did you mean address?'],
  ['unknown key, other style', network('▸reservedBits: 1, ▸inner-vlan: carry'), 'networks[0].reservedBits | unknown key | write one of name, vni', 'networks[0].inner-vlan | unknown key | did you mean inner_vlan?'],
  ['unknown key, not close', `${HEAD}▸colour: red\n`, 'colour | unknown key "colour" | write one of node, workers, underlay, networks, endpoints'],
  ['key of another level', `${HEAD}▸vni: 42\n`, 'vni | vni does not belong here | move it into an entry of networks'],
  ['key __proto__', `${HEAD}▸__proto__: { node: a }\n`, '__proto__ | unknown key "__proto__" | remove it'],
  ['key constructor', `${HEAD}▸constructor: 1\n`, 'constructor | unknown key "constructor" | remove it'],
  ['services in a network', network('▸services: []'), 'networks[0].services | services does not belong here | move it into the file itself'],
  // Underlay.
  ['underlay address missing', 'node: a\nunderlay: ▸{ port: 1 }\n', 'underlay.address | address is missing | add address: this host'],
  ['underlay address wrong', 'node: a\nunderlay: { address: ▸10.0.0 }\n', 'underlay.address | "10.0.0" is not an IP address | write an IPv4 address'],
  ['underlay address multicast', 'node: a\nunderlay: { address: ▸ff02::1 }\n', `underlay.address | multicast | ${UNDERLAY}`],
  ['underlay address unspecified', 'node: a\nunderlay: { address: ▸0.0.0.0 }\n', `underlay.address | unspecified | ${UNDERLAY}`],
  ['underlay address broadcast', 'node: a\nunderlay: { address: ▸255.255.255.255 }\n', `underlay.address | broadcast | ${UNDERLAY}`],
  ['port text', underlay('port: ▸"4789"'), 'underlay.port | the text "4789", not a number | write 4789 without quotes'],
  ['port 0', underlay('port: ▸0'), 'underlay.port | the number 0, out of range | write a number from 1 to 65535'],
  ['port 65536', underlay('port: ▸65536'), 'underlay.port | out of range | from 1 to 65535'],
  ['port not whole', underlay('port: ▸1.5'), 'underlay.port | the number 1.5, not a whole number | from 1 to 65535'],
  ['port NaN', underlay('port: ▸.nan'), 'underlay.port | the number NaN | from 1 to 65535'],
  ['port empty', underlay('▸port:'), 'underlay.port | port is empty | from 1 to 65535'],
  ['underlay mtu', underlay('mtu: ▸575'), 'underlay.mtu | out of range | from 576 to 65535'],
  ['IPv6 underlay mtu', 'node: a\nunderlay: { address: fd00::1, mtu: ▸1279 }', 'underlay.mtu | IPv6 underlay cannot have an MTU of 1279 | from 1280'],
  ['mode', underlay('mode: ▸fast'), 'underlay.mode | the text "fast" | write auto, socket or uplink'],
  ['reserved_bits', underlay('reserved_bits: ▸no'), 'underlay.reserved_bits | the text "no" | write ignore or strict'],
  ['accept', underlay('accept: ▸[]'), 'underlay.accept | a list | write any or peers'],
  ['ttl', underlay('ttl: ▸0'), 'underlay.ttl | out of range | from 1 to 255'],
  ['tos', underlay('tos: ▸3'), 'underlay.tos | the number 3 | write inherit-ecn'],
];

for (const [title, text, ...expected] of rows) {
  test(`refused: ${title}`, (t) => refuses(t, text, ...expected));
}

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
    'many errors': [']'.repeat(10_000), /YAML: unexpected text or punctuation/],
    'too large': ['#'.repeat((1 << 23) + 1), /^weft.yaml: the file is larger than 8388608 bytes; check/],
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
