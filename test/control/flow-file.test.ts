/** The file of the flow table: whose it is, when it is taken for what it was, and what its numbers stand for. */
import {
  chmodSync,
  existsSync,
  linkSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { parseConfig } from '../../control/config.js';
import { FlowFile } from '../../control/flow-file.js';
import { createPlan } from '../../control/plan.js';
import { HEADER_BYTES, holdsFlows } from '../../engine/flow-memory.js';
import type { Intent, PublishIntent } from '../../engine/intent.js';
import { native } from '../../native-bindings/index.js';

function stateOf(t: ExecutionContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'weft-flow-file-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  return join(directory, 'state');
}

function configOf(networks: readonly string[], more = '') {
  const lines = networks.map((name) => {
    const third = [...name].reduce((sum, letter) => (sum + letter.charCodeAt(0)) % 200, 0);
    return `  - { name: ${name}, vni: ${third + 1}, subnet: 10.0.${third}.0/24, gateway: 10.0.${third}.254, uplink: out, peers: [] }`;
  });
  return parseConfig(
    [
      'node: n1',
      'underlay: { address: 192.168.50.1 }',
      'uplinks: [ { name: out, interface: eth0, address: 192.168.60.10/24 } ]',
      'endpoints: []',
      'networks:',
      ...lines,
      more,
    ].join('\n'),
    'f',
  );
}

const PUBLISHED: PublishIntent = {
  ...{ uplink: 0, protocol: 6, port: 8080, domain: 0, target: 80 },
  address: Uint8Array.of(10, 0, 9, 1),
};

function intentOf(publish: readonly PublishIntent[] = []): Intent {
  return { publish, uplinks: [{ address: Uint8Array.of(192, 168, 60, 10) }] } as unknown as Intent;
}

/** A file that a data plane has used, with networks of these names, left as by a kill. */
function used(state: string, networks: readonly string[], publish: readonly PublishIntent[] = []) {
  const config = configOf(networks);
  const file = FlowFile.open(state, config);
  const plan = createPlan(file);
  plan.networks.assign(networks);
  file.change(config, plan, intentOf(publish));
  const { fd } = file.intentOf(config, intentOf(publish));
  const words = new Int32Array(native.fileMap(fd, HEADER_BYTES));
  words[0] = 0x776c6f01;
  words[1] = config.nat.maxFlows;
  file.settle(config, plan, intentOf(publish));
  return { file, config, plan, words };
}

const leftIn = (file: FlowFile, networks: readonly string[], publish: readonly PublishIntent[] = []) =>
  file.intentOf(configOf(networks), intentOf(publish)).left;

test('a file is its owner’s alone, is locked, and goes unless it is to stay', (t) => {
  const state = stateOf(t);
  const config = configOf(['blue']);
  const file = FlowFile.open(state, config);
  t.is(statSync(`${state}.flows`).mode & 0o777, 0o600);
  t.throws(() => FlowFile.open(state, config), { message: /in use by another process/ });
  file.close();
  t.false(existsSync(`${state}.flows`));
  const { file: again } = used(state, ['blue']);
  again.close(true);
  t.true(existsSync(`${state}.flows`) && existsSync(`${state}.flows.names`));
  // A start that fails leaves what it found.
  FlowFile.open(state, config).close();
  t.true(existsSync(`${state}.flows`));
  FlowFile.discard(state);
  t.false(existsSync(`${state}.flows`) || existsSync(`${state}.flows.names`));
});

test('what somebody else may have made is refused, and left as it is', (t) => {
  const state = stateOf(t);
  const path = `${state}.flows`;
  const config = configOf(['blue']);
  const other = `${state}.other`;
  writeFileSync(other, 'precious', { mode: 0o600 });
  symlinkSync(other, path);
  t.throws(() => FlowFile.open(state, config), { message: /is a symbolic link: remove it/ });
  rmSync(path);
  linkSync(other, path);
  t.throws(() => FlowFile.open(state, config), { message: /not this user's alone/ });
  rmSync(path);
  symlinkSync(other, `${path}.names.new`);
  used(state, ['blue']).file.close();
  t.is(readFileSync(other, 'utf8'), 'precious');
  writeFileSync(path, 'x');
  chmodSync(path, 0o660);
  t.throws(() => FlowFile.open(state, config), { message: /not this user's alone/ });
});

test('networks keep their numbers, and others do not get them', (t) => {
  const state = stateOf(t);
  const { file, plan } = used(state, ['blue', 'green', 'red']);
  const before = ['blue', 'green', 'red'].map((name) => plan.networks.of(name));
  file.close(true);
  const next = FlowFile.open(state, configOf(['teal', 'red', 'blue']));
  t.deepEqual([...next.numbers].sort(), [
    ['blue', before[0]],
    ['red', before[2]],
  ]);
  const numbers = createPlan(next).networks;
  numbers.assign(['teal', 'red', 'blue']);
  t.deepEqual([numbers.of('blue'), numbers.of('red')], [before[0], before[2]]);
  t.deepEqual([...leftIn(next, ['teal', 'red', 'blue'])!.domains].sort(), [before[0], before[2]]);
  next.close();
});

test('services are known again by their networks, also when the way out of those is another', (t) => {
  const config = (more: string, vips: readonly string[]) => {
    const services = vips.map((vip, i) => `  - { name: s${i}, network: blue, vip: "${vip}", backends: [] }`);
    const text = [
      ...['node: n1', 'underlay: { address: 192.168.50.1 }', 'networks:'],
      `  - { name: blue, vni: 42, subnet: 10.0.9.0/24, ${more} }`,
      ...['  - { name: six, vni: 43, subnet: "fd00:9::/64" }', 'endpoints: []'],
      'uplinks: [ { name: out, interface: eth0, address: 192.168.60.10/24 } ]',
      ...['services:', ...services, '  - { name: s6, network: six, vip: "fd00:9::100", backends: [] }'],
    ];
    return parseConfig(text.join('\n'), 'f');
  };
  const process = (now: ReturnType<typeof parseConfig>) => {
    const file = FlowFile.open(state, now);
    const plan = createPlan(file);
    plan.networks.assign(now.networks.map(({ name }) => name));
    const numbers = {
      domainOf: (name: string) => plan.networks.of(name),
      portOf: () => 0,
      uplinkOf: () => 0,
    };
    const { services } = plan.services.intents(now, numbers);
    const intent = { ...intentOf(), services };
    const { left, fd } = file.intentOf(now, intent);
    const words = new Int32Array(native.fileMap(fd, HEADER_BYTES));
    words.set([0x776c6f01, now.nat.maxFlows]);
    file.change(now, plan, intent);
    file.settle(now, plan, intent);
    file.close(true);
    const known = file.services.map(({ key, id, vip }) => [key, id, vip]);
    return { left: left && [left.domains, left.services.map(({ id, domain }) => [id, domain])], known };
  };
  const state = stateOf(t);
  const gateway = 'gateway: 10.0.9.254, uplink: out';
  t.false(FlowFile.hasServices(state));
  t.is(process(config(gateway, ['10.0.9.100', '10.0.9.101'])).left, undefined);
  t.true(FlowFile.hasServices(state));
  const second = process(config('gateway: 10.0.9.254', ['10.0.9.100']));
  t.deepEqual(second.known, [
    ['s0', 0, '10.0.9.100'],
    ['s1', 1, '10.0.9.101'],
    ['s6', 2, 'fd00:9::100'],
  ]);
  const all = [0, 1, 2].map((id) => [id, Number(id === 2)]);
  t.deepEqual(second.left, [[1], all], 'nothing that leaves by an uplink is taken over');
  // The last service of IPv6 is gone, and its addresses still have to be known.
  const bare = parseConfig(
    'node: n1\nunderlay: { address: 192.168.50.1 }\nnetworks: [{ name: six, vni: 43, subnet: "fd00:9::/64" }]',
    'f',
  );
  const third = process(bare);
  t.deepEqual(third.left, [[1], [[2, 1]]]);
  t.false(FlowFile.hasServices(state));
});

test('a table is taken for empty when it is another’s, half there, or of an earlier boot', (t) => {
  const cases: readonly [string, (state: string) => void, string?][] = [
    ['another size', () => {}, 'nat: { max_flows: 2048 }'],
    ['no names', (state) => rmSync(`${state}.flows.names`)],
    ['names that are damaged', (state) => writeFileSync(`${state}.flows.names`, '{"boot":')],
    [
      'names behind a link',
      (state) => {
        renameSync(`${state}.flows.names`, `${state}.elsewhere`);
        symlinkSync(`${state}.elsewhere`, `${state}.flows.names`);
      },
    ],
    [
      'two networks of one number',
      (state) => {
        const names = JSON.parse(readFileSync(`${state}.flows.names`, 'utf8'));
        writeFileSync(`${state}.flows.names`, JSON.stringify({ ...names, networks: { a: 1, b: 1 } }));
      },
    ],
    ...[[['192.168.60.10 6 8080 1']], [7], [null], { length: 1 }].map(
      (published): [string, (state: string) => void] => [
        `published ${JSON.stringify(published)}`,
        (state) => {
          const names = JSON.parse(readFileSync(`${state}.flows.names`, 'utf8'));
          writeFileSync(`${state}.flows.names`, JSON.stringify({ ...names, published }));
        },
      ],
    ),
    [
      'another boot',
      (state) => {
        const names = JSON.parse(readFileSync(`${state}.flows.names`, 'utf8'));
        writeFileSync(`${state}.flows.names`, JSON.stringify({ ...names, boot: 'b' }));
      },
    ],
  ];
  for (const [what, spoil, more] of cases) {
    const state = stateOf(t);
    const { file } = used(state, ['blue']);
    file.close(true);
    spoil(state);
    const config = configOf(['blue'], more);
    const next = FlowFile.open(state, config);
    t.is(next.intentOf(config, intentOf()).left, undefined, what);
    t.false(holdsFlows(next.entries.buffer as ArrayBuffer, config.nat.maxFlows), what);
    next.close();
  }
  const state = stateOf(t);
  const { file, words } = used(state, ['blue']);
  // Killed while it took over.
  words[0] = 0;
  file.close(true);
  const next = FlowFile.open(state, configOf(['blue']));
  t.is(leftIn(next, ['blue']), undefined);
  next.close();
});

test('ports that were published and are not any more are told of, by all that they were', (t) => {
  const state = stateOf(t);
  const { file } = used(state, ['blue'], [PUBLISHED, { ...PUBLISHED, port: 8081 }]);
  file.close(true);
  const next = FlowFile.open(state, configOf(['blue']));
  const address = Uint8Array.of(192, 168, 60, 10);
  t.deepEqual(leftIn(next, ['blue'], [PUBLISHED])!.unpublished, [{ address, protocol: 6, port: 8081 }]);
  t.deepEqual(leftIn(next, ['blue'], [{ ...PUBLISHED, target: 81 }])!.unpublished.length, 2);
  next.close();
});

test('between change and settling the names hold of both what was and what will be', (t) => {
  const state = stateOf(t);
  const { file, plan } = used(state, ['blue', 'green'], [PUBLISHED]);
  const next = configOf(['blue', 'red']);
  const green = plan.networks.of('green');
  plan.networks.assign(['blue', 'red']);
  t.is(plan.networks.of('red'), green, 'the number is used again');
  const other = { ...PUBLISHED, port: 9 };
  file.change(next, plan, intentOf([other]));
  const names = () => JSON.parse(readFileSync(`${state}.flows.names`, 'utf8'));
  t.is(Object.keys(names().networks).length, 1);
  t.is(names().published.length, 2);
  file.settle(next, plan, intentOf([other]));
  t.is(Object.keys(names().networks).length, 2);
  t.is(names().published.length, 1);
  file.close();
});
