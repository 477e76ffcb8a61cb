import test from 'ava';
import { parseConfig } from '../../../control/config.js';
import { BLUE, HEAD, type Row, refuses } from './support.js';

const OUT = 'name: out, interface: eth0, address: 192.168.60.10/24';
const C1 = 'name: c1, network: blue, netns: cA, interface: eth0, address: 10.0.9.1/24';
const C2 = 'name: c2, network: red, vtep: 192.168.50.2, address: 10.0.8.2/24';
const WEB = 'name: web, network: blue';
const VIP = 'vip: 10.0.9.100';
const TCP = 'protocol: tcp, port: 80';
const INGRESS = 'ingress: { vni: 4096, subnet: 10.255.0.0/16, peers: [192.168.50.2] }\n';

interface Parts {
  readonly head?: string;
  readonly network?: string;
  readonly uplinks?: readonly string[];
  readonly endpoints?: readonly string[];
  readonly ingress?: string;
  readonly services?: readonly string[];
  readonly marks?: readonly string[];
  readonly more?: string;
}

const list = (key: string, entries: readonly string[]): string =>
  entries.length === 0
    ? ''
    : `${key}:\n${entries.map((entry) => `  - ${entry.startsWith('▸') ? `▸{ ${entry.slice(1)} }` : `{ ${entry} }`}\n`).join('')}`;

/** A file in order, but for the parts given. The first network is on line 4, the first endpoint on line 7. */
function file({
  head = HEAD,
  network = 'gateway: 10.0.9.254',
  uplinks = [],
  endpoints = [C1, C2],
  ingress = '',
  services = [],
  marks = [],
  more = '',
}: Parts): string {
  return (
    head +
    list('networks', [`${BLUE}, ${network}`, 'name: red, vni: 43, subnet: 10.0.8.0/24']) +
    list('endpoints', endpoints) +
    list('services', services) +
    list('marks', marks) +
    list('uplinks', uplinks) +
    ingress +
    more
  );
}

/** A file with one service of these keys beside its network. */
const service = (keys: string, parts: Parts = {}) => file({ services: [`${WEB}, ${keys}`], ...parts });
/** One that has an ingress network, and one uplink. */
const published = (keys: string, parts: Parts = {}) =>
  service(`${VIP}, publish: [${keys}]`, { ingress: INGRESS, uplinks: [OUT], ...parts });
/** A rule for a service with the mark 300. */
const marked = (keys: string) => file({ services: [`${WEB}, ${VIP}, fwmark: 300`], marks: [keys] });

test('the fixed part of the format reaches the config, defaults filled in', (t) => {
  const config = parseConfig(
    service(
      `${VIP}, scheduler: rr, fwmark: 256, affinity: { by: client, timeout: 10m }, publish: [{ protocol: tcp, port: 8080, target: 80, mode: ingress }], backends: [{ address: 10.0.9.1, weight: 1 }, { address: 10.0.9.2 }], health: { tcp: 80, interval: 2s, failures: 3 }`,
      { ingress: INGRESS, uplinks: [OUT] },
    ),
    'f',
  );
  t.like(config.ingress, {
    ...{
      name: 'ingress',
      vni: 4096,
      subnet: '10.255.0.0/16',
      encrypted: false,
      internal: true,
      mtu: undefined,
    },
    peers: ['192.168.50.2'],
  });
  t.deepEqual(config.services, [
    {
      ...{
        name: 'web',
        network: 'blue',
        vip: '10.0.9.100',
        vip6: undefined,
        scheduler: 'rr',
        forwarding: 'masq',
        fwmark: 256,
      },
      ...{ affinity: 600, idleTimeout: 7440, ports: [] },
      publish: [{ protocol: 'tcp', port: 8080, target: 80, mode: 'ingress', uplink: 'out' }],
      backends: [
        { address: '10.0.9.1', address6: undefined, weight: 1, mac: undefined },
        { address: '10.0.9.2', address6: undefined, weight: 1, mac: undefined },
      ],
      health: {
        ...{ kind: 'tcp', port: 80, path: undefined, interval: 2, timeout: 1, failures: 3, successes: 2 },
      },
    },
  ]);
  t.deepEqual(config.marks, []);
});

test('a second virtual address: backends that are endpoints have their own second address, others what is written', (t) => {
  const { services } = parseConfig(
    dual(
      `${VIP}, vip6: "fd00:9:0::0100", backends: [{ address: 10.0.9.1 }, { address: 10.0.9.2, address6: "fd00:9::2" }, { address: 10.0.9.3 }]`,
    ),
    'f',
  );
  t.is(services[0].vip6, 'fd00:9::100');
  t.deepEqual(
    services[0].backends.map(({ address6 }) => address6),
    ['fd00:9::1', 'fd00:9::2', undefined],
  );
});

test('in an IPv6 network the virtual address is one of its subnet', (t) => {
  const { services } = parseConfig(
    `${HEAD}networks: [{ name: blue, vni: 42, subnet: "fd00:9::/64" }]\nservices: [{ ${WEB}, vip: "fd00:9::100", backends: [{ address: "fd00:9::1" }] }]\n`,
    'f',
  );
  t.like(services[0], { vip: 'fd00:9::100', vip6: undefined });
  t.is(services[0].backends[0].address, 'fd00:9::1');
});

test('a service of the fewest keys, and the other ways to write the rest', (t) => {
  const config = parseConfig(
    file({
      services: [
        `${WEB}, ${VIP}`,
        'name: dns, network: red, vip: 10.0.8.100, fwmark: 300, ports: [{ protocol: udp, port: 53 }, { protocol: tcp, port: 53, target: 5353 }], health: { http: { port: 80 }, timeout: 2 }',
      ],
      marks: [
        'mark: 300, network: red',
        'mark: 300, network: red, protocol: udp, address: 10.1.2.3, ports: 53, source: 10.0.8.0/28',
        'mark: 300, network: red, address: 10.1.0.0/16, ports: 1-65535, source: 10.0.8.7',
        'mark: 300, network: red, address: 0.0.0.0/0',
      ],
    }),
    'f',
  );
  t.like(config.services[0], { fwmark: undefined, affinity: 0, ports: [], backends: [], health: undefined });
  t.deepEqual(config.services[1].ports, [
    { protocol: 'udp', port: 53, target: 53 },
    { protocol: 'tcp', port: 53, target: 5353 },
  ]);
  t.like(config.services[1].health, { kind: 'http', port: 80, path: '/', interval: 2, timeout: 2 });
  t.deepEqual(config.marks, [
    {
      ...{ mark: 300, network: 'red', protocol: undefined, address: undefined, source: undefined },
      ...{ ports: undefined, endpoint: undefined },
    },
    {
      ...{ mark: 300, network: 'red', protocol: 'udp', address: '10.1.2.3', source: '10.0.8.0/28' },
      ...{ ports: { first: 53, last: 53 }, endpoint: undefined },
    },
    {
      ...{ mark: 300, network: 'red', protocol: undefined, address: '10.1.0.0/16', source: '10.0.8.7' },
      ...{ ports: { first: 1, last: 65535 }, endpoint: undefined },
    },
    {
      ...{ mark: 300, network: 'red', protocol: undefined, address: '0.0.0.0/0', source: undefined },
      ...{ ports: undefined, endpoint: undefined },
    },
  ]);
});

test('rules may be of either family of a dual-stack service, and of the one of another', (t) => {
  const rule = 'mark: 300, network: blue';
  const of6 = `${rule}, address: "2001:0DB8::/48", source: "fd00:9::1"`;
  const { marks } = parseConfig(
    dual(`${VIP}, vip6: "fd00:9::100", fwmark: 300`) +
      `marks: [{ ${of6} }, { ${rule}, address: 10.1.2.3 }, { ${rule} }]\n`,
    'f',
  );
  t.deepEqual(
    marks.map(({ address, source }) => [address, source]),
    [
      ['2001:db8::/48', 'fd00:9::1'],
      ['10.1.2.3', undefined],
      [undefined, undefined],
    ],
  );
  const six = `${HEAD}networks: [{ name: blue, vni: 42, subnet: "fd00:9::/64" }]\nservices: [{ ${WEB}, vip: "fd00:9::100", fwmark: 300 }]\n`;
  t.is(parseConfig(`${six}marks: [{ ${of6} }]\n`, 'f').marks.length, 1);
});

test('a published port is at the uplink of the network when there are several', (t) => {
  const { services } = parseConfig(
    published('{ protocol: tcp, port: 8080, mode: ingress }', {
      network: 'gateway: 10.0.9.254, uplink: in',
      uplinks: [OUT, 'name: in, interface: eth1, address: 192.168.61.10/24'],
    }),
    'f',
  );
  t.like(services[0].publish[0], { uplink: 'in', target: 8080 });
});

test('backends of forwarding dsr are checked where the network has a gateway', (t) => {
  const text = dual(`${VIP}, vip6: "fd00:9::100", forwarding: dsr, health: { tcp: 80 }`);
  t.like(parseConfig(text, 'f').services[0].health, { kind: 'tcp', port: 80 });
});

test('addresses of one network are no conflict with those of another', (t) => {
  const text = file({
    endpoints: [C1, C2, 'name: c3, network: green, vtep: 192.168.50.2, address: 10.0.9.100/24'],
    services: [
      `${WEB}, ${VIP}, backends: [{ address: 10.0.9.101 }]`,
      'name: b, network: green, vip: 10.0.9.101, backends: [{ address: 10.0.9.100 }]',
      'name: c, network: blue, vip: 10.0.9.102',
      'name: d, network: green, vip: 10.0.9.102',
    ],
  }).replace('  - { name: red', '  - { name: green, vni: 44, subnet: 10.0.9.0/24 }\n  - { name: red');
  t.is(parseConfig(text, 'f').services.length, 4);
});

/** Services in a dual-stack network, where endpoint c1 has the addresses that end with 1. */
const dual = (...services: readonly string[]): string =>
  file({
    network: 'gateway: 10.0.9.254, subnet6: "fd00:9::/64", gateway6: "fd00:9::fe"',
    endpoints: [`${C1}, address6: "fd00:9::1/64"`],
    services: services.map((one, i) => (i === 0 ? `${WEB}, ${one}` : one)),
  });

const PORT = 'protocol: tcp, port: 8080';
// biome-ignore format: one row a refusal reads best on one line.
const ROWS: readonly Row[] = [
  // The virtual address.
  ['no vip', file({ services: [`▸${WEB}`] }), 'services[0].vip | vip is missing | add vip: an IPv4 address'],
  ['vip outside', service('vip: ▸10.0.8.100'), 'services[0].vip | vip 10.0.8.100 is outside 10.0.9.0/24 | a host address of 10.0.9.0/24'],
  ['vip is broadcast', service('vip: ▸10.0.9.255'), 'services[0].vip | broadcast address | a host address'],
  ['vip is the gateway', service('vip: ▸10.0.9.254'), "services[0].vip | the network's gateway | another host address"],
  ['vip of an endpoint', service('vip: ▸10.0.9.1'), 'services[0].vip | the address of endpoint "c1" | that nobody has'],
  ['vip of IPv6', service('vip: ▸"fd00::1"'), 'services[0].vip | vip fd00::1 is of IPv6, and subnet 10.0.9.0/24 of network "blue" is not | a host address of 10.0.9.0/24'],
  ['vip in an IPv6 network', `${HEAD}networks: [{ name: blue, vni: 42, subnet: "fd00:9::/64" }]\nservices: [{ ${WEB}, vip: ▸10.0.9.100 }]\n`, 'services[0].vip | vip 10.0.9.100 is of IPv4, and subnet fd00:9::/64 of network "blue" is not | a host address of fd00:9::/64'],
  ['vip twice', file({ services: [`${WEB}, ${VIP}`, 'name: b, network: blue, vip: ▸10.0.9.100'] }), 'services[1].vip | vip 10.0.9.100 of network "blue" is used twice, first on line 10 | its own'],
  ['vip6 without subnet6', service(`${VIP}, vip6: ▸"fd00::1"`), 'services[0].vip6 | network "blue" has no subnet6 | add subnet6 to the network, or remove vip6'],
  ['vip6 in an IPv6 network', `${HEAD}networks: [{ name: blue, vni: 42, subnet: "fd00:9::/64" }]\nservices: [{ ${WEB}, vip: "fd00:9::1", vip6: ▸"fd00:9::2" }]\n`, 'services[0].vip6 | network "blue" has no subnet6 | write it as vip'],
  ['vip6 of IPv4', dual(`${VIP}, vip6: ▸10.0.9.101`), 'services[0].vip6 | vip6 10.0.9.101 is of IPv4, and subnet6 fd00:9::/64 of network "blue" is not | a host address of fd00:9::/64'],
  ['vip of subnet6', dual('vip: ▸"fd00:9::100"'), 'services[0].vip | vip fd00:9::100 is of IPv6 | a host address of 10.0.9.0/24, or write it as vip6'],
  ['vip6 outside', dual(`${VIP}, vip6: ▸"fd00:8::1"`), 'services[0].vip6 | vip6 fd00:8::1 is outside fd00:9::/64 | a host address of fd00:9::/64'],
  ['vip6 is the gateway', dual(`${VIP}, vip6: ▸"fd00:9::fe"`), "services[0].vip6 | the network's gateway | another host address"],
  ['vip6 of an endpoint', dual(`${VIP}, vip6: ▸"fd00:9::1"`), 'services[0].vip6 | the address of endpoint "c1" | that nobody has'],
  ['vip6 twice', dual(`${VIP}, vip6: "fd00:9::100"`, `name: b, network: blue, vip: 10.0.9.101, vip6: ▸"fd00:9::100"`), 'services[1].vip6 | vip6 fd00:9::100 of network "blue" is used twice | its own'],
  ['address6 without vip6', dual(`${VIP}, backends: [{ address: 10.0.9.1, ▸address6: "fd00:9::1" }]`), 'services[0].backends[0].address6 | the service has no virtual address of IPv6 | add vip6'],
  ['address6 is a vip6', dual(`${VIP}, vip6: "fd00:9::100", backends: [{ address: 10.0.9.2, address6: ▸"fd00:9::100" }]`), 'services[0].backends[0].address6 | fd00:9::100 is the vip of service "web" | own address'],
  ['address6 twice', dual(`${VIP}, vip6: "fd00:9::100", backends: [{ address: 10.0.9.2, address6: "fd00:9::2" }, { address: 10.0.9.3, address6: ▸"fd00:9::2" }]`), 'services[0].backends[1].address6 | backend fd00:9::2 is used twice | list each backend once'],
  ['vip with length', service('vip: ▸10.0.9.100/24'), 'services[0].vip | has a prefix length | the address alone'],
  // Names and numbers.
  ['name twice', file({ services: [`${WEB}, ${VIP}`, 'name: ▸web, network: blue, vip: 10.0.9.101'] }), 'services[1].name | service name "web" is used twice, first on line 10 | its own name'],
  ['unknown network', service('vip: 10.0.9.100').replace('web, network: blue', 'web, network: ▸blau'), 'services[0].network | there is no network "blau" | did you mean blue?'],
  ['scheduler', service(`${VIP}, scheduler: ▸wlb`), 'services[0].scheduler | the text "wlb" | rr, wrr, lc, wlc, sh or maglev'],
  ['forwarding', service(`${VIP}, forwarding: ▸tunnel`), 'services[0].forwarding | the text "tunnel" | masq or dsr'],
  ['fwmark 0', service(`${VIP}, fwmark: ▸0`), 'services[0].fwmark | out of range | from 1 to 4294967295'],
  ['fwmark twice', file({ services: [`${WEB}, ${VIP}, fwmark: 300`, 'name: b, network: red, vip: 10.0.8.100, fwmark: ▸300'] }), 'services[1].fwmark | fwmark 300 is used twice, first on line 10 | its own'],
  ['affinity by', service(`${VIP}, affinity: { by: ▸cookie }`), 'services[0].affinity.by | the text "cookie" | write client'],
  ['affinity timeout', service(`${VIP}, affinity: { timeout: ▸2d }`), 'services[0].affinity.timeout | is not a duration | such as 10m'],
  ['affinity is text', service(`${VIP}, affinity: ▸client`), 'services[0].affinity | affinity is the text "client", not a mapping | such as by: …'],
  ['idle_timeout', service(`${VIP}, idle_timeout: ▸0`), 'services[0].idle_timeout | is not a duration | such as 2h'],
  ['workers', service(VIP, { head: 'node: hostA\nworkers: ▸2\nunderlay: { address: 192.168.50.1 }\n' }), 'workers | a node with services has one data-plane thread, not 2 | write 1'],
  ['unknown key', service(`${VIP}, ▸schedular: rr`), 'services[0].schedular | unknown key "schedular" | did you mean scheduler?'],
  ['MAC of virtual addresses', service(VIP, { endpoints: [`${C1}, mac: ▸"06:57:0a:00:09:01"`, C2] }), 'endpoints[0].mac | MACs with 06:57 are those of virtual addresses | write another'],
  // Ports.
  ['ports not a list', service(`${VIP}, ports: ▸80`), 'services[0].ports | the number 80, not a list | after "- "'],
  ['port without protocol', service(`${VIP}, ports: [▸{ port: 80 }]`), 'services[0].ports[0].protocol | protocol is missing | tcp or udp'],
  ['port twice', service(`${VIP}, ports: [{ ${TCP} }, { protocol: tcp, port: ▸80 }]`), 'services[0].ports[1].port | tcp port 80 of service "web" is used twice | list each port once'],
  ['port of dsr', service(`${VIP}, forwarding: dsr, ports: [{ ${TCP}, target: ▸8080 }]`), 'services[0].ports[0].target | dsr translates nothing, and port 80 would become 8080 | remove target'],
  // Backends.
  ['backend outside', service(`${VIP}, backends: [{ address: ▸10.0.8.1 }]`), 'services[0].backends[0].address | address 10.0.8.1 is outside 10.0.9.0/24 | a host address of 10.0.9.0/24'],
  ['backend is the gateway', service(`${VIP}, backends: [{ address: ▸10.0.9.254 }]`), "services[0].backends[0].address | the network's gateway | another host address"],
  ['backend is the vip', service(`${VIP}, backends: [{ address: ▸10.0.9.100 }]`), 'services[0].backends[0].address | 10.0.9.100 is the vip of service "web" | the backend\'s own address'],
  ['backend is another vip', file({ services: [`${WEB}, ${VIP}, backends: [{ address: ▸10.0.9.101 }]`, 'name: b, network: blue, vip: 10.0.9.101'] }), 'services[0].backends[0].address | 10.0.9.101 is the vip of service "b" | own address'],
  ['backend twice', service(`${VIP}, backends: [{ address: 10.0.9.1 }, { address: ▸10.0.9.1 }]`), 'services[0].backends[1].address | backend 10.0.9.1 is used twice | list each backend once'],
  ['weight', service(`${VIP}, backends: [{ address: 10.0.9.1, weight: ▸65536 }]`), 'services[0].backends[0].weight | out of range | from 0 to 65535'],
  ['mac of an endpoint', service(`${VIP}, backends: [{ address: 10.0.9.1, ▸mac: "02:00:00:00:00:01" }]`), 'services[0].backends[0].mac | 10.0.9.1 is endpoint "c1", whose MAC is known | remove it'],
  ['mac of a virtual address', service(`${VIP}, backends: [{ address: 10.0.9.2, mac: ▸"06:57:00:00:00:01" }]`), 'services[0].backends[0].mac | those of virtual addresses | write another'],
  // Health.
  ['health of neither', service(`${VIP}, health: ▸{ interval: 2s }`), 'services[0].health | neither tcp nor http | write tcp: a port'],
  ['health of both', service(`${VIP}, health: ▸{ tcp: 80, http: { port: 80 } }`), 'services[0].health | both tcp and http | write tcp: a port'],
  ['health timeout', service(`${VIP}, health: { tcp: 80, interval: 2s, timeout: ▸3s }`), 'services[0].health.timeout | a timeout of 3 s is longer than the interval of 2 s | write 2s or less'],
  ['health of dsr', service(`${VIP}, forwarding: dsr, ▸health: { tcp: 80 }`, { network: 'mtu: 1400' }), 'services[0].health | forwarding dsr are checked from the gateway, and network "blue" has no gateway | add gateway to the network, remove health'],
  ['health of dsr over IPv6', service(`${VIP}, vip6: "fd00:9::100", forwarding: dsr, ▸health: { tcp: 80 }`, { network: 'gateway: 10.0.9.254, subnet6: "fd00:9::/64"' }), 'services[0].health | network "blue" has no gateway6 | add gateway6'],
  ['health path', service(`${VIP}, health: { http: { port: 80, path: ▸health } }`), 'services[0].health.http.path | "health" is not the path of a request | begins with "/"'],
  ['health port', service(`${VIP}, health: { http: ▸{ path: / } }`), 'services[0].health.http.port | port is missing | from 1 to 65535'],
  ['health failures', service(`${VIP}, health: { tcp: 80, failures: ▸0 }`), 'services[0].health.failures | out of range | from 1 to 100'],
  // Published ports.
  ['mode', published(`{ ${PORT}, mode: ▸host }`), 'services[0].publish[0].mode | the text "host" | write ingress'],
  ['no ingress', published(`{ ${PORT}, mode: ▸ingress }`, { ingress: '' }), 'services[0].publish[0].mode | mode ingress needs the key ingress | add ingress:'],
  ['no uplink', published(`▸{ ${PORT}, mode: ingress }`, { uplinks: [] }), 'services[0].publish[0] | no uplink that is a router | add one to uplinks'],
  ['only an uplink of the host', published(`▸{ ${PORT}, mode: ingress }`, { uplinks: ['name: host, mode: host'] }), 'services[0].publish[0] | no uplink that is a router | add one to uplinks'],
  ['several uplinks', published(`▸{ ${PORT}, mode: ingress }`, { uplinks: [OUT, 'name: in, interface: eth1, address: 192.168.61.10/24'] }), 'services[0].publish[0] | several uplinks | write uplink'],
  ['unknown uplink', published(`{ ${PORT}, mode: ingress, uplink: ▸far }`), 'services[0].publish[0].uplink | no uplink "far" | write one of out'],
  ['uplink of the host', published(`{ ${PORT}, mode: ingress, uplink: ▸host }`, { uplinks: [OUT, 'name: host, mode: host'] }), 'services[0].publish[0].uplink | uplink "host" is of mode host | one that is a router'],
  ['port published twice', published(`{ ${PORT}, mode: ingress }, { protocol: tcp, port: ▸8080, mode: ingress }`), 'services[0].publish[1].port | tcp port 8080 of uplink "out" is published by services[0] already | each port once'],
  ['port of an endpoint', published(`{ protocol: tcp, port: ▸8081, mode: ingress }`, { network: 'gateway: 10.0.9.254, uplink: out', more: 'publish: [{ endpoint: c1, protocol: tcp, port: 8079-8081, target: 79-81 }]\n' }), 'services[0].publish[0].port | published by publish[0] already | each port once'],
  // The ingress network.
  ['ingress without vni', file({ ingress: 'ingress: ▸{ subnet: 10.255.0.0/16 }\n' }), 'ingress.vni | vni is missing | add vni'],
  ['ingress with the VNI of a network', file({ ingress: 'ingress: { vni: ▸42, subnet: 10.255.0.0/16 }\n' }), 'ingress.vni | VNI 42 is used twice, first on line 4 | its own VNI'],
  ['ingress without keys', file({ ingress: 'ingress: { vni: 4096, subnet: 10.255.0.0/16, encrypted: ▸true }\n' }), 'ingress.encrypted | encrypted, and there are no keys | add encryption.keys'],
  ['ingress peer is this host', file({ ingress: 'ingress: { vni: 4096, subnet: 10.255.0.0/16, peers: [▸192.168.50.1] }\n' }), "ingress.peers[0] | this host's own underlay address | list other hosts only"],
  ['a network named ingress', file({ ingress: INGRESS }).replace('name: red', 'name: ▸ingress').replace('network: red', 'network: ingress'), 'networks[1].name | network name "ingress" is that of the key ingress | give the network another'],
  ['an endpoint in the ingress network', file({ ingress: INGRESS, endpoints: [C1, C2.replace('red', '▸ingress')] }), 'endpoints[1].network | there is no network "ingress" | write one of blue, red'],
  // Marks.
  ['mark of nobody', marked('mark: ▸301, network: blue'), 'marks[0].mark | no service has fwmark 301 | write fwmark: 301 at the service'],
  ['mark of another network', marked('mark: ▸300, network: red'), 'marks[0].mark | service "web" of fwmark 300 is in network "blue" | of a service in "red"'],
  ['mark of an unknown network', marked('mark: 300, network: ▸blu'), 'marks[0].network | there is no network "blu" | did you mean blue?', ],
  ['mark by protocol', marked('mark: 300, network: blue, protocol: ▸icmp'), 'marks[0].protocol | the text "icmp" | tcp or udp'],
  ['mark by ports', marked('mark: 300, network: blue, ports: ▸90-80'), 'marks[0].ports | "90-80" is no port and no range of ports | such as 80 or 8000-8010'],
  ['mark by address of IPv6, the service of IPv4', marked('mark: 300, network: blue, address: ▸"fd00::1", source: "fd00::/64"'), 'marks[0].address | address fd00::1 is of IPv6, and service "web" of fwmark 300 has no such address | write IPv4, or add vip6 to the service'],
  ['mark by source of IPv6, the service of IPv4', marked('mark: 300, network: blue, address: 10.1.2.3, source: ▸"fd00::/64"'), 'marks[0].source | source fd00::/64 is of IPv6, and service "web" | write IPv4'],
  ['mark by address of IPv4, the service of IPv6', `${HEAD}networks: [{ name: blue, vni: 42, subnet: "fd00:9::/64" }]\nservices: [{ ${WEB}, vip: "fd00:9::100", fwmark: 300 }]\nmarks: [{ mark: 300, network: blue, address: ▸10.1.2.3 }]\n`, 'marks[0].address | address 10.1.2.3 is of IPv4, and service "web" of fwmark 300 has no such address | write IPv6'],
  ['mark by addresses of two families', `${dual(`${VIP}, vip6: "fd00:9::100", fwmark: 300`)}marks: [{ mark: 300, network: blue, address: 10.1.2.3, source: ▸"fd00::/64" }]\n`, 'marks[0].source | source fd00::/64 is of IPv6, and address 10.1.2.3 of IPv4 | both of one family, or two rules'],
  ['mark by what is no address', marked('mark: 300, network: blue, address: ▸10.1.2'), 'marks[0].address | 10.1.2 | write an IPv4 address'],
  ['mark by address with host bits', marked('mark: 300, network: blue, address: ▸10.1.2.3/24'), 'marks[0].address | bits set after its prefix | write 10.1.2.0/24'],
  ['mark by source with host bits', marked('mark: 300, network: blue, source: ▸10.0.9.1/24'), 'marks[0].source | bits set after its prefix | write 10.0.9.0/24'],
  ['mark by unknown endpoint', marked('mark: 300, network: blue, endpoint: ▸c3'), 'marks[0].endpoint | there is no endpoint "c3" | write one of c1, c2'],
  ['mark by remote endpoint', marked('mark: 300, network: blue, endpoint: ▸c2'), 'marks[0].endpoint | endpoint "c2" is on another host | name a local endpoint'],
  ['mark by endpoint of another network', file({ services: ['name: web, network: red, vip: 10.0.8.100, fwmark: 300'], marks: ['mark: 300, network: red, endpoint: ▸c1'] }), 'marks[0].endpoint | endpoint "c1" is in network "blue" | one of network "red"'],
];

for (const [title, text, ...expected] of ROWS) {
  test(`refused: ${title}`, (t) => refuses(t, text, ...expected));
}
