/** Services while a node runs: numbers that stay, marks, MACs, and what an operator made of them across reloads. */
import test, { type ExecutionContext } from 'ava';
import { formatIp, formatMac, parseIp } from '../../control/addresses.js';
import { parseConfig } from '../../control/config.js';
import { ServiceBook } from '../../control/services.js';
import { unchangeable } from '../../control/unchangeable.js';
import { UnknownName } from '../../control/unknown-name.js';
import { BALANCER_PORT } from '../../engine/intent.js';
import { MAX_SERVICES } from '../../engine/tables/services.js';

const NUMBERS = {
  domainOf: (network: string) => ['blue', 'red'].indexOf(network),
  portOf: (endpoint: string) => Number(endpoint.slice(1)),
  uplinkOf: (uplink: string) => ['in', 'out'].indexOf(uplink),
};

const HEAD = `
node: a
underlay: { address: 192.168.50.1 }
networks:
  - { name: blue, vni: 42, subnet: 10.0.9.0/24 }
  - { name: red, vni: 43, subnet: 10.0.9.0/24 }
endpoints:
  - { name: c1, network: blue, netns: n, interface: eth0, address: 10.0.9.1/24, mac: "02:00:00:00:00:01" }
  - { name: c2, network: blue, vtep: 192.168.50.2, address: 10.0.9.2/24, mac: "02:00:00:00:00:02" }
  - { name: c3, network: red, vtep: 192.168.50.2, address: 10.0.9.3/24, mac: "02:00:00:00:00:03" }
`;

const file = (services: readonly string[], more = '') =>
  parseConfig(
    `${HEAD}services:\n${services.map((one) => `  - { ${one} }\n`).join('') || '  []\n'}${more}`,
    'f',
  );

const web = (backends: string, more = '') =>
  `name: web, network: blue, vip: 10.0.9.100, ${more} backends: [${backends}]`;
const at = (last: number, more = '') => `{ address: 10.0.9.${last}${more} }`;

/** A book, its clock, and what it tells of a file. */
function bookOf(t: ExecutionContext) {
  const clock = { now: 1000 };
  const book = new ServiceBook(() => clock.now);
  let config = file([]);
  const look = (next = config) => {
    config = next;
    return book.intents(config, NUMBERS);
  };
  const idsOf = (next = config) => look(next).services.map((one) => one.backends.map(({ id }) => id));
  t.deepEqual(look(), { services: [], marks: [], stations: [], neighbours: [] });
  return { book, clock, look, idsOf };
}

test('a service is told with all its keys; its virtual address is a station and a neighbour', (t) => {
  const { look } = bookOf(t);
  const { services, marks, stations, neighbours } = look(
    file(
      [
        'name: web, network: red, vip: 10.0.9.100, scheduler: maglev, forwarding: dsr, fwmark: 4294967295, affinity: { timeout: 5m }, idle_timeout: 20m, ports: [{ protocol: udp, port: 53 }], backends: [{ address: 10.0.9.3, weight: 7 }]',
      ],
      'marks:\n  - { mark: 4294967295, network: red, protocol: tcp, address: 10.1.2.3, ports: 80-90, source: 10.0.8.0/22 }\n  - { mark: 4294967295, network: red }\n',
    ),
  );
  const address = Uint8Array.of(10, 0, 9, 100);
  t.deepEqual(services, [
    {
      ...{ id: 0, domain: 1, address, scheduler: 'maglev', direct: true, mark: 4294967295, affinity: 300 },
      ...{ idle: 1200, ports: [{ protocol: 17, port: 53, target: 53 }], publish: [] },
      backends: [
        {
          ...{ id: 0, address: Uint8Array.of(10, 0, 9, 3), mac: Uint8Array.of(2, 0, 0, 0, 0, 3) },
          ...{ weight: 7, alive: true },
        },
      ],
    },
  ]);
  t.deepEqual(marks, [
    {
      ...{ mark: 4294967295, domain: 1, protocol: 6, firstPort: 80, lastPort: 90, port: -1 },
      source: { address: Uint8Array.of(10, 0, 8, 0), length: 22 },
      destination: { address: Uint8Array.of(10, 1, 2, 3), length: 32 },
    },
    {
      ...{ mark: 4294967295, domain: 1, protocol: 0, firstPort: 0, lastPort: 65535, port: -1 },
      source: { address: new Uint8Array(4), length: 0 },
      destination: { address: new Uint8Array(4), length: 0 },
    },
  ]);
  const mac = Uint8Array.of(0x06, 0x57, 10, 0, 9, 100);
  t.deepEqual(stations, [{ domain: 1, mac, at: BALANCER_PORT }]);
  t.deepEqual(neighbours, [{ domain: 1, address, mac }]);
});

test('a published port is told with the number of its uplink', (t) => {
  const { look } = bookOf(t);
  const more = `ingress: { vni: 4096, subnet: 10.255.0.0/16 }
uplinks: [{ name: out, interface: eth0, address: 192.168.60.10/24 }]
`;
  const port = 'publish: [{ protocol: udp, port: 8053, target: 53, mode: ingress }],';
  const [{ publish }] = look(file([web(at(1), port)], more)).services;
  t.deepEqual(publish, [{ uplink: 1, protocol: 17, port: 8053, target: 53 }]);
});

test('backends that are no endpoints are neighbours too, each once', (t) => {
  const { look } = bookOf(t);
  const other = `name: other, network: blue, vip: 10.0.9.101, backends: [${at(4)}]`;
  const { neighbours } = look(file([web(`${at(1)}, ${at(2)}, ${at(3)}, ${at(4)}`), other]));
  t.deepEqual(
    neighbours.map(({ domain, address, mac }) => [domain, address[3], Buffer.from(mac).toString('hex')]),
    [
      [0, 100, '06570a000964'],
      [0, 3, '02420a000903'],
      [0, 4, '02420a000904'],
      [0, 101, '06570a000965'],
    ],
  );
});

test('a rule of an endpoint names its port', (t) => {
  const { look } = bookOf(t);
  const rule = 'marks: [{ mark: 300, network: blue, ports: 80, endpoint: c1 }]\n';
  const [mark] = look(file([web(at(1), 'fwmark: 300,')], rule)).marks;
  t.like(mark, { port: 1, firstPort: 80, lastPort: 80 });
});

test('the MAC of a backend is that of the endpoint of its network, or that of the file, or derived', (t) => {
  const { look } = bookOf(t);
  const [{ backends }] = look(
    file([web([at(1), at(2), at(3), at(4, ', mac: "02:00:00:00:00:44"')].join(', '))]),
  ).services;
  t.deepEqual(
    backends.map(({ mac }) => Buffer.from(mac).toString('hex')),
    ['020000000001', '020000000002', '02420a000903', '020000000044'],
  );
});

test('numbers stay; one that was given back rests for 300 s', (t) => {
  const { clock, idsOf } = bookOf(t);
  t.deepEqual(idsOf(file([web(`${at(1)}, ${at(2)}`)])), [[0, 1]]);
  t.deepEqual(idsOf(file([web(`${at(3)}, ${at(2)}`)])), [[2, 1]]);
  clock.now += 299;
  t.deepEqual(idsOf(file([web(`${at(4)}, ${at(2)}`)])), [[3, 1]]);
  clock.now += 1;
  t.deepEqual(idsOf(file([web(`${at(1)}, ${at(2)}`)])), [[0, 1]]);
});

test('services keep their numbers while others come and go', (t) => {
  const { clock, look } = bookOf(t);
  const one = (name: string, last: number) => `name: ${name}, network: blue, vip: 10.0.9.${last}`;
  const ids = (...services: string[]) => look(file(services)).services.map(({ id }) => id);
  t.deepEqual(ids(one('a', 100), one('b', 101)), [0, 1]);
  t.deepEqual(ids(one('b', 101), one('c', 102)), [1, 2]);
  t.deepEqual(ids(one('c', 103), one('b', 101), one('a', 100)), [2, 1, 3]);
  clock.now += 300;
  t.deepEqual(ids(one('d', 104), one('b', 101)), [0, 1]);
});

test('where all numbers are taken or rest, the one that rested longest is given out', (t) => {
  const { look } = bookOf(t);
  const config = file([web('')]);
  const named = (names: readonly number[]) => ({
    ...config,
    services: names.map((n) => ({ ...config.services[0], name: `s${n}` })),
  });
  const all = Array.from({ length: MAX_SERVICES }, (_, n) => n);
  t.is(look(named(all)).services.at(-1)!.id, MAX_SERVICES - 1);
  look(named(all.filter((n) => n !== 5 && n !== 9)));
  const ids = look(named([MAX_SERVICES, ...all.filter((n) => n !== 5)])).services.map(({ id }) => id);
  t.deepEqual(ids.slice(0, 1), [5]);
  t.is(ids[all.indexOf(9)], 9);
});

test('services without a mark get one from 256 which they keep, and which gives way to one of the file', (t) => {
  const { look } = bookOf(t);
  const one = (name: string, last: number, more = '') =>
    `name: ${name}, network: blue, vip: 10.0.9.${last}${more}`;
  const marks = (...services: string[]) => look(file(services)).services.map(({ mark }) => mark);
  t.deepEqual(marks(one('a', 100), one('b', 101), one('c', 102, ', fwmark: 257')), [256, 258, 257]);
  t.deepEqual(marks(one('b', 101), one('d', 103)), [258, 256]);
  t.deepEqual(marks(one('b', 101), one('d', 103, ', fwmark: 258')), [256, 258]);
});

test('what an operator set holds across reloads until the entry is another', (t) => {
  const { book, look } = bookOf(t);
  const weights = (backends: string, more = '') =>
    look(file([web(backends, more)])).services[0].backends.map(({ weight }) => weight);
  t.deepEqual(weights(`${at(1)}, ${at(2)}`), [1, 1]);
  book.setWeight('web', '10.0.9.1', 0);
  book.setWeight('web', '10.0.9.2', 9);
  t.deepEqual(weights(`${at(1)}, ${at(2)}`), [0, 9]);
  t.deepEqual(weights(`${at(2)}, ${at(1)}`, 'scheduler: wrr,'), [9, 0]);
  t.deepEqual(weights(`${at(1, ', weight: 3')}, ${at(2)}`), [3, 9]);
  t.deepEqual(weights(at(1, ', weight: 3')), [3]);
  t.deepEqual(weights(`${at(1)}, ${at(2)}`), [1, 1]);
});

test('a backend that was removed stays away until its entry is another, and then is who it was', (t) => {
  const { book, idsOf } = bookOf(t);
  const both = `${at(1)}, ${at(2)}`;
  t.deepEqual(idsOf(file([web(both)])), [[0, 1]]);
  book.remove('web', '10.0.9.1');
  t.deepEqual(idsOf(), [[1]]);
  t.deepEqual(idsOf(file([web(both, 'scheduler: sh,')])), [[1]]);
  t.throws(() => book.setWeight('web', '10.0.9.1', 1), {
    instanceOf: UnknownName,
    message: /no backend 10.0.9.1/,
  });
  t.deepEqual(idsOf(file([web(`${at(1, ', weight: 2')}, ${at(2)}`)])), [[0, 1]]);
});

test('a service that was removed stays away, address and all, until its entry is another', (t) => {
  const { book, look } = bookOf(t);
  const names = (more = '') => {
    const { services, stations, neighbours } = look(file([web(at(1), more)]));
    t.is(stations.length, services.length);
    t.is(neighbours.length, services.length);
    return book.list().map(({ service }) => service.name);
  };
  t.deepEqual(names(), ['web']);
  book.remove('web');
  t.deepEqual(names(), []);
  for (const call of [() => book.remove('web'), () => book.setWeight('web', '10.0.9.1', 1)])
    t.throws(call, { instanceOf: UnknownName, message: 'there is no service web' });
  t.deepEqual(names('idle_timeout: 1h,'), ['web']);
});

test('what the data plane finds out lasts across reloads and edits of the entry, and ends with the backend', (t) => {
  const { book, look } = bookOf(t);
  const alive = (backends: string, more = 'health: { tcp: 80 },') =>
    look(file([web(backends, more)])).services[0].backends.map((one) => one.alive);
  t.deepEqual(alive(`${at(1)}, ${at(2)}`), [true, true]);
  t.deepEqual(book.hear(0, false), { service: 'web', address: '10.0.9.1' });
  t.deepEqual(alive(`${at(1)}, ${at(2)}`), [false, true]);
  t.deepEqual(alive(`${at(1, ', weight: 2')}, ${at(2)}`), [false, true]);
  t.deepEqual(alive(`${at(1)}, ${at(2)}`, ''), [true, true], 'nobody would find out that it lives');
  book.hear(0, false);
  t.deepEqual(alive(at(2)), [true]);
  t.is(book.hear(0, true), undefined, 'it is nobody any more');
  t.deepEqual(alive(`${at(1)}, ${at(2)}`), [true, true]);
  t.deepEqual(book.hear(2, false), { service: 'web', address: '10.0.9.1' });
  t.deepEqual(book.hear(2, true), { service: 'web', address: '10.0.9.1' });
  t.deepEqual(alive(`${at(1)}, ${at(2)}`), [true, true]);
});

test('health is told in milliseconds', (t) => {
  const { look } = bookOf(t);
  const [tcp] = look(file([web(at(1), 'health: { tcp: 80, interval: 1m },')])).services;
  t.deepEqual(tcp.health, {
    ...{ kind: 'tcp', port: 80, path: '', interval: 60_000, timeout: 1000, failures: 3, successes: 2 },
  });
  const [http] = look(
    file([web(at(1), 'health: { http: { port: 81, path: /a }, failures: 1, successes: 4 },')]),
  ).services;
  t.deepEqual(http.health, {
    ...{ kind: 'http', port: 81, path: '/a', interval: 2000, timeout: 1000, failures: 1, successes: 4 },
  });
  t.false('health' in look(file([web(at(1))])).services[0]);
});

test('a service of which nothing changed is the same value again', (t) => {
  const { book, look } = bookOf(t);
  const one = (name: string, last: number) =>
    `name: ${name}, network: blue, vip: 10.0.9.${last}, backends: [${at(1)}]`;
  const before = look(file([one('a', 100), one('b', 101)])).services;
  book.setWeight('a', '10.0.9.1', 5);
  const after = look().services;
  t.not(after[0], before[0]);
  t.is(after[1], before[1]);
});

test('what a file made of it is undone: numbers, and what an operator set', (t) => {
  const { book, look, idsOf } = bookOf(t);
  const other = `name: other, network: blue, vip: 10.0.9.101, backends: [${at(3)}]`;
  const config = file([web(`${at(1)}, ${at(2)}`), other]);
  look(config);
  book.setWeight('web', '10.0.9.1', 5);
  const before = look();
  const undo = book.save();
  const [next] = idsOf(file([web(`${at(2)}, ${at(4)}`)]));
  t.deepEqual(next, [1, 3]);
  book.setWeight('web', '10.0.9.2', 9);
  undo();
  t.deepEqual(look(config), before);
  t.deepEqual(
    book.list().map(({ backends }) => backends.map(({ weight }) => weight)),
    [[5, 1], [1]],
  );
  t.deepEqual(idsOf(file([web(`${at(1)}, ${at(2)}, ${at(4)}`), other])), [[0, 1, 3], [2]]);
});

test('the first service needs a restart of a node that tracks nothing, and no other', (t) => {
  const [none, some] = [file([]), file([web(at(1))])];
  t.deepEqual(unchangeable(none, some, { hasIpv6: false }), []);
  t.deepEqual(unchangeable(none, none, undefined), []);
  const [problem, ...others] = unchangeable(none, some, undefined);
  t.deepEqual(problem.path, ['services']);
  t.regex(problem.message, /need a table of flows, which the engine was started without/);
  t.deepEqual(others, []);
});

const DUAL = HEAD.replace('subnet: 10.0.9.0/24', '$&, subnet6: "fd00:9::/64"').replace(
  'address: 10.0.9.1/24',
  '$&, address6: "fd00:9::1/64"',
);
const dual = (services: readonly string[], more = '') =>
  parseConfig(`${DUAL}services:\n${services.map((one) => `  - { ${one} }\n`).join('')}${more}`, 'f');
const web6 = (backends: string) => web(backends, 'vip6: "fd00:9::100",');

test('a service with a second virtual address is two: of each family, with the backends that have an address there', (t) => {
  const { book, look } = bookOf(t);
  const { services, stations, neighbours } = look(
    dual([web6(`${at(1)}, ${at(2)}, ${at(7, ', address6: "fd00:9::7", weight: 3')}`)]),
  );
  const [v4, v6] = services;
  t.is(services.length, 2);
  const own = { id: v6!.id, address: Uint8Array.from(parseIp('fd00:9::100').bytes) };
  t.deepEqual(v6, { ...v4!, ...own, backends: v6!.backends });
  t.is(v4!.mark, 256);
  const of = ({ backends }: typeof v4) =>
    backends.map(({ address, mac, weight }) => [formatIp(address), formatMac(mac), weight]);
  t.deepEqual(of(v4!), [
    ['10.0.9.1', '02:00:00:00:00:01', 1],
    ['10.0.9.2', '02:00:00:00:00:02', 1],
    ['10.0.9.7', '02:42:0a:00:09:07', 3],
  ]);
  t.deepEqual(of(v6!), [
    ['fd00:9::1', '02:00:00:00:00:01', 1],
    ['fd00:9::7', '02:42:0a:00:09:07', 3],
  ]);
  const ids = services.flatMap(({ backends }) => backends.map(({ id }) => id));
  t.is(new Set(ids).size, 5);
  t.deepEqual(
    stations.map(({ mac, at: place }) => [formatMac(mac), place]),
    [
      ['06:57:0a:00:09:64', BALANCER_PORT],
      ['06:57:00:00:01:00', BALANCER_PORT],
    ],
  );
  t.deepEqual(
    neighbours.map(({ address, mac }) => `${formatIp(address)} ${formatMac(mac)}`),
    [
      '10.0.9.100 06:57:0a:00:09:64',
      '10.0.9.7 02:42:0a:00:09:07',
      'fd00:9::100 06:57:00:00:01:00',
      'fd00:9::7 02:42:0a:00:09:07',
    ],
  );
  t.deepEqual(
    book.list().map(({ backends, service }) => [service.vip6, backends.map(({ address }) => address)]),
    [['fd00:9::100', ['10.0.9.1', '10.0.9.2', '10.0.9.7', 'fd00:9::1', 'fd00:9::7']]],
  );
});

test('a rule means the families of its service, or that of its addresses', (t) => {
  const { look } = bookOf(t);
  const of = (rule: string, services: string[]) =>
    look(dual(services, `marks: [{ mark: 300, network: blue${rule} }]\n`)).marks.map(
      ({ source, destination }) =>
        [source, destination].map((one) => `${formatIp(one.address)}/${one.length}`),
    );
  const one = web(at(1), 'fwmark: 300,');
  const both = web(at(1), 'vip6: "fd00:9::100", fwmark: 300,');
  t.deepEqual(of('', [one]), [['0.0.0.0/0', '0.0.0.0/0']]);
  t.deepEqual(of('', [both]), [
    ['0.0.0.0/0', '0.0.0.0/0'],
    ['::/0', '::/0'],
  ]);
  t.deepEqual(of(', address: "2001:db8::/48"', [both]), [['::/0', '2001:db8::/48']]);
  t.deepEqual(of(', address: 10.1.2.3', [both]), [['0.0.0.0/0', '10.1.2.3/32']]);
  t.deepEqual(of(', source: "fd00:9::1"', [both]), [['fd00:9::1/128', '::/0']]);
  t.deepEqual(of(', source: 0.0.0.0/0', [both]), [['0.0.0.0/0', '0.0.0.0/0']]);
});

test('either address of a backend means both; health is of each', (t) => {
  const { book, look, idsOf } = bookOf(t);
  const config = dual([web6(`${at(1)}, ${at(7, ', address6: "fd00:9::7"')}`)]);
  const [, [, last]] = idsOf(config);
  const weights = () => look().services.map(({ backends }) => backends.map(({ weight }) => weight));
  book.setWeight('web', 'fd00:9:0::7', 5);
  t.deepEqual(weights(), [
    [1, 5],
    [1, 5],
  ]);
  book.setWeight('web', '10.0.9.7', 0);
  t.deepEqual(weights(), [
    [1, 0],
    [1, 0],
  ]);
  t.deepEqual(book.hear(last!, false), { service: 'web', address: 'fd00:9::7' });
  t.deepEqual(
    look().services.map(({ backends }) => backends.map(({ alive }) => alive)),
    [
      [true, true],
      [true, false],
    ],
  );
  book.remove('web', '10.0.9.7');
  t.deepEqual(weights(), [[1], [1]]);
  t.throws(() => book.remove('web', 'fd00:9::7'), { instanceOf: UnknownName });
  book.remove('web');
  t.deepEqual(look().services, []);
  t.throws(() => book.remove('web'), { instanceOf: UnknownName });
  // Whatever is edited in its entry, it comes back as a whole.
  t.is(look(dual([web(at(1), 'vip6: "fd00:9::101",')])).services.length, 2);
});

test('a reload cannot bring the first service of IPv6 where there is no room for its addresses', (t) => {
  const before = dual([web(at(1))]);
  const after = dual([web6(at(1))]);
  t.deepEqual(unchangeable(before, after, { hasIpv6: true }), []);
  const [problem, ...others] = unchangeable(before, after, { hasIpv6: false });
  t.deepEqual([problem?.path, others], [['services'], []]);
  t.regex(problem!.message, /services of IPv6 need room for it, which the engine was started without/);
});
