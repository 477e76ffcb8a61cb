import test from 'ava';
import { gatewayAddresses, parseConfig } from '../../../control/config.js';
import { BLUE, HEAD, type Row, refuses } from './support.js';

const OUT = 'name: out, interface: eth0, address: 192.168.60.10/24, gateway: 192.168.60.1';
const C1 = 'name: c1, network: blue, netns: cA, interface: eth0, address: 10.0.9.1/24';
const WEB = 'endpoint: c1, protocol: tcp, port: 8080, target: 80';

/** What an entry of `publish` has, if not told. */
const ONE = { endpoint: 'c1', uplink: 'out', count: 1, address: undefined };
const HOST = 'name: out, mode: host';

interface Parts {
  readonly head?: string;
  readonly uplinks?: readonly string[];
  readonly network?: string;
  readonly endpoints?: readonly string[];
  readonly publish?: readonly string[];
  readonly more?: string;
}

const list = (key: string, entries: readonly string[]): string =>
  `${key}:\n${entries.map((entry) => `  - ${entry.startsWith('▸') ? `▸{ ${entry.slice(1)} }` : `{ ${entry} }`}\n`).join('')}`;

/** A file in order, but for the parts given. */
function file({
  head = HEAD,
  uplinks = [OUT],
  network = 'gateway: 10.0.9.254, uplink: out',
  endpoints = [C1],
  publish = [WEB],
  more = '',
}: Parts): string {
  return (
    head +
    list('uplinks', uplinks) +
    list('networks', [`${BLUE}, ${network}`]) +
    list('endpoints', endpoints) +
    (publish.length > 0 ? list('publish', publish) : '') +
    more
  );
}

test('the fixed part of the format reaches the config, defaults filled in', (t) => {
  const config = parseConfig(
    file({
      publish: [WEB, 'endpoint: c1, protocol: udp, port: 53, uplink: out'],
      more: 'nat: { mapping: endpoint-dependent, ports: 32768-60999, max_flows: 1000000, timeouts: { udp: 2m } }\n',
    }),
    'f',
  );
  t.deepEqual(config.uplinks, [
    {
      ...{
        name: 'out',
        mode: 'router',
        interface: 'eth0',
        address: '192.168.60.10/24',
        gateway: '192.168.60.1',
      },
      ...{ address6: undefined, gateway6: undefined, clampMss: false },
    },
  ]);
  t.deepEqual(config.publish, [
    { ...ONE, protocol: 'tcp', port: 8080, target: 80 },
    { ...ONE, protocol: 'udp', port: 53, target: 53 },
  ]);
  t.deepEqual(config.nat, {
    mapping: 'endpoint-dependent',
    ports: { first: 32768, last: 60999 },
    maxFlows: 1_000_000,
    timeouts: { established: 7440, opening: 240, closing: 240, udp: 120, icmp: 60, other: 300 },
  });
  t.is(config.networks[0].uplink, 'out');
  t.true(config.networks[0].masquerade);
});

test('mode host: its TAP has the name of the uplink, cut where it is too long, or the one that is written', (t) => {
  const uplink = (text: string): unknown => {
    const name = /name: ([^,]+)/.exec(text)![1];
    const network = `gateway: 10.0.9.254, uplink: ${name}`;
    return parseConfig(file({ uplinks: [text], network, publish: [] }), 'f').uplinks[0];
  };
  const host = { mode: 'host', address: undefined, clampMss: false };
  t.deepEqual(uplink('name: host, mode: host'), { ...host, name: 'host', interface: 'weft-host' });
  t.deepEqual(uplink('name: h, mode: host, interface: out, address: 172.31.0.2/30'), {
    ...{ ...host, name: 'h', interface: 'out', address: '172.31.0.2/30' },
  });
  const long = (last: string): string =>
    (uplink(`name: a-very-long-name-${last}, mode: host`) as { interface: string }).interface;
  t.regex(long('1'), /^weft-a-very[0-9a-f]{4}$/);
  t.not(long('1'), long('2'));
});

test('ports: ranges, automatic ones, and those of one address of the host', (t) => {
  const { publish } = parseConfig(
    file({
      uplinks: [HOST],
      publish: [
        'endpoint: c1, protocol: tcp, port: 8000-8010, target: 80-90',
        'endpoint: c1, protocol: udp, port: 8000-8010',
        'endpoint: c1, protocol: tcp, target: 22',
        'endpoint: c1, protocol: sctp, port: auto, target: 9',
        'endpoint: c1, protocol: tcp, port: 443, address: 127.0.0.1',
        'endpoint: c1, protocol: tcp, port: 443, target: 444, address: 192.0.2.1',
      ],
    }),
    'f',
  );
  t.deepEqual(publish, [
    { ...ONE, protocol: 'tcp', port: 8000, count: 11, target: 80 },
    { ...ONE, protocol: 'udp', port: 8000, count: 11, target: 8000 },
    { ...ONE, protocol: 'tcp', port: undefined, target: 22 },
    { ...ONE, protocol: 'sctp', port: undefined, target: 9 },
    { ...ONE, protocol: 'tcp', port: 443, target: 443, address: '127.0.0.1' },
    { ...ONE, protocol: 'tcp', port: 443, target: 444, address: '192.0.2.1' },
  ]);
});

test('IPv6 beside IPv4 reaches the config; the next hop may be link-local', (t) => {
  const config = parseConfig(
    file({
      uplinks: [`${OUT}, address6: "fd00:60::10/64", gateway6: "fe80::1", clamp_mss: true`],
      network: 'gateway: 10.0.9.254, subnet6: "fd00:9::/64", gateway6: "fd00:9::fe", uplink: out',
    }),
    'f',
  );
  t.like(config.uplinks[0], { address6: 'fd00:60::10/64', gateway6: 'fe80::1', clampMss: true });
  t.deepEqual(gatewayAddresses(config.networks[0]), {
    v4: ['10.0.9.254', '10.0.9.0/24'],
    v6: ['fd00:9::fe', 'fd00:9::/64'],
  });
});

const ROWS: readonly Row[] = [
  // Uplinks.
  [
    'two of mode host',
    file({ uplinks: [HOST, 'name: in, mode: ▸host'] }),
    'uplinks[1].mode | mode host is used twice | write one',
  ],
  [
    'mode host with a next hop and IPv6',
    file({ uplinks: [`${HOST}, ▸gateway: 192.168.60.1, ▸address6: "fd00::1/64", ▸gateway6: "fe80::1"`] }),
    'uplinks[0].gateway | does not go with mode host | remove it',
    'uplinks[0].address6 | does not go with mode host | remove it',
    'uplinks[0].gateway6 | does not go with mode host | remove it',
  ],
  [
    'a TAP of mode host with a name for a shell',
    file({ uplinks: [`${HOST}, interface: ▸'a"*'`] }),
    'uplinks[0].interface | no name that nftables takes | letters, digits',
  ],
  [
    'mode host on a wide link',
    file({ uplinks: [`${HOST}, address: ▸172.31.0.2/24`] }),
    'uplinks[0].address | no end of a link of two | /30 or /31',
  ],
  [
    'mode host at the address of a link',
    file({ uplinks: [`${HOST}, address: ▸172.31.0.0/30`] }),
    'uplinks[0].address | 172.31.0.0 | /30 or /31',
  ],
  [
    'no interface',
    file({ uplinks: ['▸name: out, address: 192.168.60.10/24'] }),
    'uplinks[0] | interface is missing | add interface',
  ],
  [
    'no address',
    file({ uplinks: ['▸name: out, interface: eth0'] }),
    'uplinks[0] | address is missing | add address',
  ],
  [
    'address without length',
    file({ uplinks: ['name: out, interface: eth0, address: ▸192.168.60.10'] }),
    'uplinks[0].address | no prefix length | address/length',
  ],
  [
    'IPv6 address',
    file({ uplinks: ['name: out, interface: eth0, address: ▸"fd60::10/64"'] }),
    'uplinks[0].address | fd60::10 is an IPv6 address | this one as address6',
  ],
  [
    'broadcast address',
    file({ uplinks: ['name: out, interface: eth0, address: ▸192.168.60.255/24'] }),
    'uplinks[0].address | broadcast address | a free address',
  ],
  [
    'gateway elsewhere',
    file({ uplinks: ['name: out, interface: eth0, address: 192.168.60.10/24, gateway: ▸192.168.61.1'] }),
    'uplinks[0].gateway | outside 192.168.60.0/24 | a router in 192.168.60.0/24',
  ],
  [
    'gateway itself',
    file({ uplinks: ['name: out, interface: eth0, address: 192.168.60.10/24, gateway: ▸192.168.60.10'] }),
    "uplinks[0].gateway | the uplink's own address | a router in",
  ],
  [
    'address6 of IPv4',
    file({ uplinks: [`${OUT}, address6: ▸192.168.61.10/24`] }),
    'uplinks[0].address6 | is an IPv4 address | a free IPv6 address',
  ],
  [
    'address6 is the anycast address of its link',
    file({ uplinks: [`${OUT}, address6: ▸"fd00:60::/64"`] }),
    'uplinks[0].address6 | network address | a free IPv6 address',
  ],
  [
    'gateway6 alone',
    file({ uplinks: [`${OUT}, ▸gateway6: "fe80::1"`] }),
    'uplinks[0].gateway6 | gateway6 needs address6 | add address6',
  ],
  [
    'gateway6 elsewhere',
    file({ uplinks: [`${OUT}, address6: "fd00:60::10/64", gateway6: ▸"fd00:61::1"`] }),
    'uplinks[0].gateway6 | outside fd00:60::/64 | or its link-local one',
  ],
  [
    'gateway6 itself',
    file({ uplinks: [`${OUT}, address6: "fd00:60::10/64", gateway6: ▸"fd00:60::10"`] }),
    "uplinks[0].gateway6 | the uplink's own address | a router in fd00:60::/64",
  ],
  [
    'an IPv6 network at an uplink without address6',
    HEAD +
      list('uplinks', [OUT]) +
      'networks: [ { name: blue, vni: 42, subnet: "fd00:9::/64", gateway: "fd00:9::fe", ▸uplink: out } ]\n',
    'networks[0].uplink | IPv6, and uplink "out" has no address6 | add address6',
  ],
  [
    'subnet6 on the link of the uplink',
    file({
      uplinks: [`${OUT}, address6: "fd00:9::10/64"`],
      network: 'gateway: 10.0.9.254, subnet6: "fd00:9::/64", uplink: ▸out',
    }),
    'networks[0].uplink | (fd00:9::/64) overlap | another subnet',
  ],
  [
    'two of a name',
    file({ uplinks: [OUT, 'name: ▸out, interface: eth1, address: 192.168.61.10/24'] }),
    'uplinks[1].name | used twice, first on line 4 | its own name',
  ],
  [
    'two of an address',
    file({ uplinks: [OUT, 'name: in, interface: eth1, address: ▸192.168.60.10/24'] }),
    'uplinks[1].address | used twice | its own address',
  ],
  [
    'workers',
    file({ head: `node: hostA\nworkers: ▸2\nunderlay: { address: 192.168.50.1 }\n` }),
    'workers | one data-plane thread, not 2 | write 1',
  ],
  // Networks.
  [
    'unknown uplink',
    file({ network: 'gateway: 10.0.9.254, uplink: ▸outt', publish: [] }),
    'networks[0].uplink | there is no uplink "outt" | did you mean out?',
  ],
  [
    'internal with uplink',
    file({ network: 'gateway: 10.0.9.254, internal: true, ▸uplink: out', publish: [] }),
    'networks[0].uplink | internal and has no way out | remove uplink',
  ],
  [
    'no gateway',
    file({ network: '▸uplink: out' }),
    'networks[0].uplink | an uplink and no gateway | add gateway',
  ],
  [
    'overlap',
    file({
      uplinks: ['name: out, interface: eth0, address: 10.0.0.1/16'],
      network: 'gateway: 10.0.9.254, uplink: ▸out',
    }),
    'networks[0].uplink | overlap | another subnet',
  ],
  [
    'MAC of the gateway',
    file({ endpoints: [`${C1}, mac: ▸"02:42:0a:00:09:fe"`] }),
    "endpoints[0].mac | that of the network's gateway | another",
  ],
  // Published ports.
  [
    'unknown endpoint',
    file({ publish: ['endpoint: ▸c2, protocol: tcp, port: 80'] }),
    'publish[0].endpoint | there is no endpoint "c2" | write one of c1',
  ],
  [
    'remote endpoint',
    file({
      endpoints: ['name: c1, network: blue, vtep: 192.168.50.2, address: 10.0.9.1/24'],
      publish: ['endpoint: ▸c1, protocol: tcp, port: 80'],
    }),
    'publish[0].endpoint | on another host | publish it there',
  ],
  [
    'no uplink',
    file({ network: 'gateway: 10.0.9.254', publish: ['endpoint: ▸c1, protocol: tcp, port: 80'] }),
    'publish[0].endpoint | has no uplink | add uplink to the network',
  ],
  [
    'unknown uplink of a port',
    file({ publish: [`${WEB}, uplink: ▸far`] }),
    'publish[0].uplink | no uplink "far" | write one of out',
  ],
  [
    'the other uplink',
    file({
      uplinks: [OUT, 'name: in, interface: eth1, address: 192.168.61.10/24'],
      publish: [`${WEB}, uplink: ▸in`],
    }),
    'publish[0].uplink | network "blue" leaves by "out" | write out',
  ],
  [
    'port twice',
    file({ publish: [WEB, 'endpoint: c1, protocol: tcp, port: ▸8080'] }),
    'publish[1].port | tcp port 8080 of uplink "out" is used twice | publish each port once',
  ],
  [
    'protocol',
    file({ publish: ['endpoint: c1, protocol: ▸icmp, port: 80'] }),
    'publish[0].protocol | the text "icmp" | write tcp, udp or sctp',
  ],
  [
    'port 0',
    file({ publish: ['endpoint: c1, protocol: tcp, port: ▸0'] }),
    'publish[0].port | 0 is no port | from 1 to 65535',
  ],
  [
    'a range that is none',
    file({ publish: ['endpoint: c1, protocol: tcp, port: ▸8010-8000, target: ▸any'] }),
    'publish[0].port | "8010-8000" is no port | a range such as 8000-8010, or auto',
    'publish[0].target | "any" is no port | a range such as 8000-8010',
  ],
  [
    'a very large range',
    file({ publish: ['endpoint: c1, protocol: tcp, port: ▸1-2000'] }),
    'publish[0].port | more than 1024 ports | smaller ranges',
  ],
  [
    'ranges of two lengths',
    file({ publish: ['endpoint: c1, protocol: tcp, port: 8000-8010, target: ▸80'] }),
    'publish[0].target | not as many ports | as many',
  ],
  [
    'neither port nor target',
    file({ publish: ['▸endpoint: c1, protocol: tcp'] }),
    'publish[0] | target is missing | add target',
  ],
  [
    'ranges that overlap',
    file({
      publish: ['endpoint: c1, protocol: tcp, port: 8000-8010', 'endpoint: c1, protocol: tcp, port: ▸8010'],
    }),
    'publish[1].port | tcp port 8010 of uplink "out" is used twice | publish each port once',
  ],
  [
    'a port at one address and at all',
    file({
      uplinks: [HOST],
      publish: [`${WEB}, address: 192.0.2.1`, 'endpoint: c1, protocol: tcp, port: ▸8080'],
    }),
    'publish[1].port | tcp port 8080 of uplink "out" is used twice | publish each port once',
  ],
  [
    'what only mode host has',
    file({ publish: ['endpoint: c1, protocol: ▸sctp, port: 9, ▸address: 192.0.2.1'] }),
    'publish[0].protocol | sctp is published only at an uplink of mode host | write tcp or udp',
    "publish[0].address | the host's | remove it",
  ],
  [
    'at an IPv6 address, of an endpoint without',
    file({ uplinks: [HOST], publish: [`${WEB}, address: ▸"2001:db8::1"`] }),
    'publish[0].address | is an IPv6 address, and endpoint "c1" has none | write an IPv4 address',
  ],
  [
    'at ::1',
    file({ uplinks: [HOST], publish: [`${WEB}, address: ▸"::1"`] }),
    'publish[0].address | the kernel lets nothing lead away from ::1 | 127.0.0.1',
  ],
  // Translation.
  [
    'ports',
    file({ more: 'nat: { ports: ▸60999-32768 }\n' }),
    'nat.ports | not a range of ports | such as 32768-60999',
  ],
  ['max_flows', file({ more: 'nat: { max_flows: ▸100 }\n' }), 'nat.max_flows | out of range | from 1024'],
  [
    'timeouts below what RFCs ask, and above what can be kept',
    file({
      more: 'nat: { timeouts: { established: ▸2h, udp: ▸119, icmp: ▸59s, opening: ▸7441, other: ▸3h } }\n',
    }),
    'nat.timeouts.established | established "2h" is not a duration | from 7440s to 8191s, such as 124m',
    'nat.timeouts.udp | udp 119 is not a duration | from 120s to 8191s',
    'nat.timeouts.icmp | icmp "59s" is not a duration | from 60s to 8191s',
    'nat.timeouts.opening | opening 7441 is not a duration | from 10s to 7440s',
    'nat.timeouts.other | other "3h" is not a duration | from 60s to 8191s',
  ],
  [
    'unknown timeouts',
    file({ more: 'nat: { timeouts: { ▸etsablished: 7440 } }\n' }),
    'nat.timeouts.etsablished | unknown key "etsablished" | did you mean established?',
  ],
  [
    'timeouts that are none',
    file({ more: 'nat: { timeouts: ▸5 }\n' }),
    'nat.timeouts | timeouts is the number 5, not a mapping | write keys and values',
  ],
  [
    'mapping',
    file({ more: 'nat: { mapping: ▸symmetric }\n' }),
    'nat.mapping | the text "symmetric" | endpoint-independent',
  ],
];

for (const [title, text, ...expected] of ROWS) {
  test(`refused: ${title}`, (t) => refuses(t, text, ...expected));
}

test('the same port of two protocols is no conflict', (t) => {
  const { publish } = parseConfig(file({ publish: [WEB, 'endpoint: c1, protocol: udp, port: 8080'] }), 'f');
  t.is(publish.length, 2);
});
