import test from 'ava';
import { parseConfig } from '../../../control/config.js';
import { BLUE, endpoint, HEAD, LOCAL, network, type Row, refuses, underlay } from './support.js';

const UNDERLAY = 'write the unicast address of the host on the underlay';
// biome-ignore format: one row a refusal reads best on one line.
const rows: readonly Row[] = [
  // Networks.
  ['networks a mapping', `${HEAD}networks: ▸{ a: b }\n`, 'networks | a mapping, not a list | after "- "'],
  ['networks empty', `${HEAD}▸networks:\n`, 'networks | empty, not a list | or remove networks'],
  ['network is text', `${HEAD}networks: [▸blue]\n`, 'networks[0] | entry 0 of networks is the text "blue" | such as name: …'],
  ['network keys missing', `${HEAD}networks:\n  - ▸▸name: blue\n`, 'networks[0].vni | vni is missing | from 1 to 16777215', 'networks[0].subnet | subnet is missing | add subnet: a prefix such as'],
  ['network name twice', `${HEAD}networks:\n  - { ${BLUE} }\n  - { name: ▸blue, vni: 1, subnet: 10.0.8.0/24 }`, 'networks[1].name | network name "blue" is used twice, first on line 4 | its own name'],
  ['VNI twice', `${HEAD}networks:\n  - { ${BLUE} }\n  - { name: red, vni: ▸0x2a, subnet: 10.0.8.0/24 }`, 'networks[1].vni | VNI 42 is used twice, first on line 4 | its own VNI'],
  ['VNI 0', `${HEAD}networks: [{ name: a, subnet: 10.0.9.0/24, vni: ▸0 }]`, 'networks[0].vni | VNI 0 is read as "no VNI" | from 1 to 16777215'],
  ['VNI too large', `${HEAD}networks: [{ name: a, subnet: 10.0.9.0/24, vni: ▸16777216 }]`, 'networks[0].vni | 16777216, out of range | from 1 to 16777215'],
  ['VNI negative', `${HEAD}networks: [{ name: a, subnet: 10.0.9.0/24, vni: ▸-1 }]`, 'networks[0].vni | out of range | from 1'],
  ['subnet with host bits', `${HEAD}networks: [{ name: a, vni: 1, subnet: ▸10.0.9.1/24 }]`, 'networks[0].subnet | bits set after its prefix | write 10.0.9.0/24'],
  ['subnet without length', `${HEAD}networks: [{ name: a, vni: 1, subnet: ▸10.0.9.0 }]`, 'networks[0].subnet | no prefix length | address/length'],
  ['subnet6 is IPv4', network('subnet6: ▸10.0.0.0/8'), 'networks[0].subnet6 | an IPv4 prefix | write an IPv6 prefix'],
  ['two IPv6 prefixes', `${HEAD}networks: [{ name: a, vni: 1, subnet: fd00::/64, subnet6: ▸fd01::/64 }]`, 'networks[0].subnet6 | subnet is an IPv6 prefix already | keep the IPv6 prefix in one'],
  ['gateway outside', network('gateway: ▸10.0.8.1'), 'networks[0].gateway | 10.0.8.1 is outside 10.0.9.0/24 | a host address of 10.0.9.0/24'],
  ['gateway network address', network('gateway: ▸10.0.9.0'), 'networks[0].gateway | network address | a host address'],
  ['gateway broadcast', network('gateway: ▸10.0.9.255'), 'networks[0].gateway | broadcast address | a host address'],
  ['gateway6 outside', network('subnet6: "fd00:9::/64", gateway6: ▸"fd00:8::1"'), 'networks[0].gateway6 | fd00:8::1 is outside fd00:9::/64 | a host address of fd00:9::/64'],
  ['gateway6 of IPv4', network('subnet6: "fd00:9::/64", gateway6: ▸10.0.9.1'), 'networks[0].gateway6 | 10.0.9.1 is outside fd00:9::/64 | a host address of fd00:9::/64'],
  ['gateway6 without subnet6', network('gateway6: ▸"fd00:9::1"'), 'networks[0].gateway6 | has no subnet6 | add subnet6'],
  ['gateway with length', network('gateway: ▸10.0.9.1/24'), 'networks[0].gateway | has a prefix length | write the address alone'],
  ['network mtu', network('mtu: ▸65536'), 'networks[0].mtu | out of range | from 576 to 65535'],
  ['IPv6 network mtu', network('subnet6: fd00::/64, mtu: ▸1279'), 'networks[0].mtu | IPv6 prefix cannot have an MTU of 1279 | from 1280'],
  ['mtu past any underlay', network('mtu: ▸65486'), 'networks[0].mtu | does not fit an underlay of 65535 | write 65485 or less'],
  ['mtu past this underlay', `${underlay('mtu: 1500')}networks: [{ ${BLUE}, mtu: ▸1451 }]`, 'networks[0].mtu | does not fit an underlay of 1500 | write 1450 or less'],
  ['underlay too small for IPv6 inside', `${underlay('mtu: ▸1329')}networks: [{ ${BLUE}, subnet6: fd00::/64 }]`, 'underlay.mtu | leaves 1279 for network "blue", which needs 1280 | write 1330 or more'],
  ['encrypted', network('encrypted: ▸yes'), 'networks[0].encrypted | the text "yes", not true or false | write true or false'],
  ['internal', network('internal: ▸yes'), 'networks[0].internal | the text "yes", not true or false | write true or false'],
  ['peers not a list', network('peers: ▸192.168.50.2'), 'networks[0].peers | not a list | after "- "'],
  ['peer not an address', network('peers: [192.168.50.2, ▸hostB, ▸5]'), 'networks[0].peers[1] | "hostB" is not an IP address | write an IPv4', 'networks[0].peers[2] | entry 2 of peers is the number 5 | in quotes'],
  ['peer of the other family', network('peers: [▸fd00::2]'), 'networks[0].peers[0] | is IPv6 and the underlay is IPv4 | IPv4 address'],
  ['peer is this host', network('peers: [▸192.168.50.1]'), "networks[0].peers[0] | this host's own underlay address | list other hosts only"],
  ['peer twice', network('peers:  [192.168.50.2, ▸192.168.50.2]'), 'networks[0].peers[1] | peer 192.168.50.2 is used twice, first on line 4 | once'],
  ['peer multicast', network('peers: [▸239.0.0.1]'), `networks[0].peers[0] | multicast | ${UNDERLAY}`],
  ['inner_vlan', network('inner_vlan: ▸drop'), 'networks[0].inner_vlan | the text "drop" | discard or carry'],
  ...['0', '5 min', '-1', '1.5', '1000001', '300h'].map((value): [string, string, string] => [
    `ageing ${value}`,
    network(`ageing: ▸${value}`),
    'networks[0].ageing | is not a duration | 300, 300s or 5m',
  ]),
  ['ageing a list', network('ageing: ▸[]'), 'networks[0].ageing | a list | 300, 300s or 5m'],
  ['learning_limit', network('learning_limit: ▸1048577'), 'networks[0].learning_limit | out of range | from 0 to 1048576'],
  ['learning', network('learning: ▸1'), 'networks[0].learning | the number 1 | true or false'],
  // Endpoints.
  ['endpoint keys missing', `${HEAD}endpoints:\n  - ▸▸▸name: c1`, 'endpoints[0].network | network is missing | a network of this file', 'endpoints[0].address | address is missing | address/length', 'endpoints[0] | no place | netns and interface (on this host) or vtep'],
  ['endpoint name twice', `${endpoint(`${LOCAL}, address: 10.0.9.1/24`)}  - { name: ▸c1, network: blue, vtep: 192.168.50.2, address: 10.0.9.2/24 }`, 'endpoints[1].name | "c1" is used twice, first on line 5 | its own name'],
  ['network unknown', `${HEAD}endpoints: [{ name: c1, network: ▸blue, ${LOCAL}, address: 10.0.9.1/24 }]`, 'endpoints[0].network | there is no network "blue" | add it to networks'],
  ['network misspelt', endpoint('address: 10.0.9.1/24, netns: a, interface: b').replace('network: blue', 'network: ▸bleu'), 'endpoints[0].network | there is no network "bleu" | did you mean blue?'],
  ['network quite other', endpoint('address: 10.0.9.1/24, netns: a, interface: b').replace('network: blue', 'network: ▸yellow'), 'endpoints[0].network | no network "yellow" | write one of blue'],
  ['remote and local', endpoint('▸vtep: 192.168.50.2, netns: a, address: 10.0.9.1/24'), 'endpoints[0].vtep | both remote and local | keep vtep'],
  ['interface missing', endpoint('netns: a, address: 10.0.9.1/24').replace('- {', '- ▸{'), 'endpoints[0] | interface is missing | add interface'],
  ['netns missing', endpoint('interface: a, address: 10.0.9.1/24').replace('- {', '- ▸{'), 'endpoints[0] | netns is missing | add netns'],
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
  ['interface twice', `${endpoint(`${LOCAL}, address: 10.0.9.1/24`)}  - { name: c2, network: blue, netns: /var/run/netns/cA, interface: ▸eth0, address: 10.0.9.2/24 }`, 'endpoints[1].interface | used twice, first on line 5 | its own interface'],
  ['address without length', endpoint(`${LOCAL}, address: ▸10.0.9.1`), 'endpoints[0].address | no prefix length | address/length'],
  ['address outside', endpoint(`${LOCAL}, address: ▸10.0.8.1/24`), 'endpoints[0].address | 10.0.8.1 is outside 10.0.9.0/24 | with /24'],
  ['address of the other family', endpoint(`${LOCAL}, address: ▸fd00::1/64`), 'endpoints[0].address | fd00::1 is outside 10.0.9.0/24 | host address'],
  ['address with another length', endpoint(`${LOCAL}, address: ▸10.0.9.1/16`), 'endpoints[0].address | another prefix length than its network | write 10.0.9.1/24'],
  ['address is the network', endpoint(`${LOCAL}, address: ▸10.0.9.0/24`), 'endpoints[0].address | network address | host address'],
  ['address is the broadcast', endpoint(`${LOCAL}, address: ▸10.0.9.255/24`), 'endpoints[0].address | broadcast address | host address'],
  ['address is the gateway', endpoint(`${LOCAL}, address: ▸10.0.9.254/24`, ', gateway: 10.0.9.254'), "endpoints[0].address | the network's gateway | another host address"],
  ['address twice', `${endpoint(`${LOCAL}, address: 10.0.9.1/24, mac: "02:00:00:00:00:01"`)}  - { name: c2, network: blue, vtep: 192.168.50.2, address: ▸10.0.9.1/24 }`, 'endpoints[1].address | address 10.0.9.1 is used twice, first on line 5 | its own address'],
  ['address6 without subnet6', endpoint(`${LOCAL}, address: 10.0.9.1/24, address6: ▸fd00::1/64`), 'endpoints[0].address6 | has no subnet6 | add subnet6'],
  ['address6 outside', endpoint(`${LOCAL}, address: 10.0.9.1/24, address6: ▸fd01::1/64`, ', subnet6: fd00::/64'), 'endpoints[0].address6 | outside fd00::/64 | with /64'],
  ['address6 anycast', endpoint(`${LOCAL}, address: 10.0.9.1/24, address6: ▸fd00::/64`, ', subnet6: fd00::/64'), 'endpoints[0].address6 | network address | host address'],
  ['mac wrong', endpoint(`${LOCAL}, address: 10.0.9.1/24, mac: ▸02-42-0a-00-09-01`), 'endpoints[0].mac | not a MAC address | six octets'],
  ['mac a number', endpoint(`${LOCAL}, address: 10.0.9.1/24, mac: ▸024200000901`), 'endpoints[0].mac | mac is the number 24200000901, not text | in quotes, such as "02:42'],
  ['mac group', endpoint(`${LOCAL}, address: 10.0.9.1/24, mac: ▸"03:42:0a:00:09:01"`), 'endpoints[0].mac | group MAC | as in "02:42:0a:00:09:01"'],
  ['mac zero', endpoint(`${LOCAL}, address: 10.0.9.1/24, mac: ▸"00:00:00:00:00:00"`), 'endpoints[0].mac | zero MAC | six octets'],
  ['mac twice, one derived', `${endpoint(`${LOCAL}, address: 10.0.9.1/24`)}  - { name: c2, network: blue, vtep: 192.168.50.2, address: 10.0.9.2/24, mac: ▸"02:42:0A:00:09:01" }`, 'endpoints[1].mac | MAC 02:42:0a:00:09:01 in network "blue" is used twice, first on line 5 | its own'],
  ['derived macs collide', `${HEAD}networks: [{ name: six, vni: 1, subnet: fd00::/16 }]\nendpoints:\n  - { name: a, network: six, ${LOCAL}, address: fd00:1::1/16 }\n  - { name: b, network: six, netns: cB, interface: e, address: ▸fd00:2::1/16 }`, 'endpoints[1].address | (derived from fd00:2::1) in network "six" is used twice, first on line 5 | give one of the two endpoints a mac'],
  ['vtep own', endpoint('vtep: ▸192.168.50.1, address: 10.0.9.1/24'), "endpoints[0].vtep | this host's own underlay address | the other host's address"],
  ['vtep of the other family', endpoint('vtep: ▸fd00::2, address: 10.0.9.1/24'), 'endpoints[0].vtep | is IPv6 and the underlay is IPv4 | IPv4 address'],
  ['vtep that would be dropped', `${underlay('accept: peers')}networks: [{ ${BLUE}, peers: [192.168.50.3] }]\nendpoints: [{ name: r, network: blue, vtep: ▸192.168.50.2, address: 10.0.9.1/24 }]`, 'endpoints[0].vtep | no peer of network "blue", and underlay.accept is peers | add 192.168.50.2'],
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
