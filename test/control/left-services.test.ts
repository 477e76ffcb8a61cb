/** Services of a process that is gone: by what they are found again, and what of them the next one begins with. */
import test from 'ava';
import { parseConfig } from '../../control/config.js';
import { areNamed, type NamedService, namedMeanwhile, servicesAsLeft } from '../../control/left-services.js';
import { ServiceBook } from '../../control/services.js';
import { MAX_BACKENDS, MAX_SERVICES } from '../../engine/tables/services.js';

const NUMBERS = { domainOf: () => 0, portOf: () => 0, uplinkOf: () => 0 };
const DOMAINS = new Map([['blue', 0]]);
const web = { vip: '10.0.9.100', backends: [1, 2] };

/** Lines of a file's services: name, and what is not as usual. */
function file(
  services: Readonly<Record<string, { vip: string; backends: readonly number[]; more?: string }>>,
) {
  const lines = Object.entries(services).map(([name, { vip, backends, more = '' }]) => {
    const second = (n: number): string => (more.includes('vip6') ? `, address6: "fd00:9::${n}"` : '');
    const addresses = backends.map((n) => `{ address: 10.0.9.${n}${second(n)} }`);
    return `  - { name: ${name}, network: blue, vip: ${vip}, ${more} backends: [${addresses}] }`;
  });
  const head = ['node: a', 'underlay: { address: 192.168.50.1 }', 'networks:'];
  const network = '  - { name: blue, vni: 42, subnet: 10.0.9.0/24, subnet6: "fd00:9::/64" }';
  return parseConfig([...head, network, 'services:', ...lines, ''].join('\n'), 'f');
}

/** A process over a file, which finds services of these names. */
function life(config: ReturnType<typeof file>, left: readonly NamedService[] = []) {
  const book = new ServiceBook(() => 1000, left);
  const { services } = book.intents(config, NUMBERS);
  return { named: book.named(), services, left: servicesAsLeft(left, services, DOMAINS, true) };
}

const summary = (services: ReturnType<typeof servicesAsLeft>) =>
  services.map(({ id, address, backends }) => [
    id,
    address.join('.'),
    ...backends.map((one) => one.address[3]),
  ]);

test('services keep their numbers, whatever else there is; who is new gets another', (t) => {
  const before = life(
    file({ api: { vip: '10.0.9.101', backends: [3] }, old: { ...web, vip: '10.0.9.102' }, web }),
  );
  const after = life(
    file({ new: { vip: '10.0.9.103', backends: [1] }, web, api: { ...web, vip: '10.0.9.104' } }),
    before.named,
  );
  const ids = (one: typeof before) => Object.fromEntries(one.named.map(({ key, id }) => [key, id]));
  t.deepEqual(ids(before), { api: 0, old: 1, web: 2 });
  t.deepEqual(ids(after), { new: 3, web: 2, api: 0 });
});

test('it begins with what was: backends that are gone behind the others, and services that are gone', (t) => {
  const { named } = life(
    file({ web, gone: { vip: '10.0.9.101', backends: [3] }, moved: { vip: '10.0.9.102', backends: [4] } }),
  );
  const next = file({
    web: { ...web, backends: [5, 2] },
    moved: { vip: '10.0.9.103', backends: [4] },
    new: { vip: '10.0.9.104', backends: [6] },
  });
  const { services, left } = life(next, named);
  t.deepEqual(summary(left), [
    [0, '10.0.9.100', 5, 2, 1],
    [1, '10.0.9.101', 3],
    [2, '10.0.9.102', 4],
    [3, '10.0.9.104', 6],
  ]);
  // Numbers of their own, and MACs by which they are found.
  const ids = [...services, ...left].flatMap(({ backends }) => backends.map(({ id }) => id));
  t.deepEqual(
    [...new Set(ids)].sort((a, b) => a - b),
    [0, 1, 2, 3, ...[3, 2, 1].map((n) => MAX_BACKENDS - n)],
  );
  t.deepEqual([...left[0]!.backends[2]!.mac], [0x02, 0x42, 10, 0, 9, 1]);
  t.deepEqual(left[0]!.backends[0], services[0]!.backends[0]);
});

test('one whose way of forwarding is another is the one before alone', (t) => {
  const { named } = life(file({ web }));
  const { left } = life(file({ web: { ...web, more: 'forwarding: dsr,' } }), named);
  t.deepEqual(
    left.map(({ direct, backends }) => [direct, backends.length]),
    [[false, 2]],
  );
});

test('of networks that are not what they were there is nothing, nor of IPv6 where there is no room', (t) => {
  const config = file({ web: { ...web, more: 'vip6: "fd00:9::100",' } });
  const { named, services } = life(config);
  t.deepEqual(
    named.map(({ key, vip }) => [key, vip]),
    [
      ['web', web.vip],
      ['web 6', 'fd00:9::100'],
    ],
  );
  t.deepEqual(servicesAsLeft(named, services, new Map(), true), []);
  t.deepEqual(servicesAsLeft([], services, new Map([['blue', 1]]), true), [], 'of a network that is new');
  t.deepEqual(servicesAsLeft(named, services, DOMAINS, true).length, 2);
  t.deepEqual(
    servicesAsLeft(named, [], DOMAINS, false).map(({ id }) => id),
    [0],
  );
});

test('there are never more backends than there is room for', (t) => {
  const { named, services } = life(file({ web }));
  const [first] = services;
  const all = Array.from({ length: MAX_BACKENDS - 1 }, (_, id) => ({ ...first!.backends[0]!, id: id + 1 }));
  const others = [{ ...first!, id: 5, address: Uint8Array.of(10, 0, 9, 5), backends: all }];
  const [one] = servicesAsLeft(named, others, DOMAINS, true);
  t.deepEqual(
    one!.backends.map(({ id }) => id),
    [0],
  );
});

test('while services change, the names say what is so before and after', (t) => {
  const [was] = life(file({ web })).named;
  const [grown] = life(file({ web: { ...web, backends: [2, 3] } })).named;
  const [moved] = life(file({ web: { ...web, vip: '10.0.9.101' } })).named;
  const addresses = (named: readonly NamedService[]) =>
    named.map(({ key, backends }) => [key, ...backends.map(({ address }) => address)]);
  t.deepEqual(addresses(namedMeanwhile([was!], [grown!])), [['web', '10.0.9.1', '10.0.9.2', '10.0.9.3']]);
  t.deepEqual(namedMeanwhile([was!], [moved!]), []);
  t.deepEqual(namedMeanwhile([was!], []), [was!]);
  t.deepEqual(namedMeanwhile([], [was!]), [was!]);
});

test('what is no list of services is told from one', (t) => {
  const { named } = life(file({ web, api: { vip: '10.0.9.101', backends: [3] } }));
  const [one, two] = named as [NamedService, NamedService];
  t.true(areNamed(JSON.parse(JSON.stringify(named))));
  for (const wrong of [
    { id: 0 },
    { id: -1 },
    { id: MAX_SERVICES },
    { id: '1' },
    { key: 'web' },
    { key: 7 },
    { direct: 1 },
  ])
    t.false(areNamed([one, { ...two, ...wrong } as unknown as NamedService]), JSON.stringify(wrong));
  for (const wrong of [
    { vip: 'x' },
    { backends: 7 },
    { backends: [{ address: 'x' }] },
    { backends: [{ address: '10.0.9.1', mac: '' }] },
  ])
    t.throws(
      () => areNamed([{ ...one, ...wrong } as unknown as NamedService]),
      undefined,
      JSON.stringify(wrong),
    );
});
