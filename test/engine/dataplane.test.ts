/** How a data plane applies intents, without a packet: of descriptors it has events that nobody signals. */
import { ftruncateSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import test from 'ava';
import { Counters } from '../../engine/counters.js';
import { DataPlane } from '../../engine/dataplane.js';
import { type DomainIntent, type Intent, MAX_VTEPS, type StationIntent } from '../../engine/intent.js';
import { REMOTE } from '../../engine/memory/frames.js';
import { DEFAULT_TIMEOUTS } from '../../engine/tables/connection.js';
import { LEARN } from '../../engine/tables/domains.js';
import { flowBytes } from '../../engine/tables/flows.js';
import { macHigh, macLow } from '../../engine/tables/mac-table.js';
import { native } from '../../native-bindings/index.js';
import { service } from '../support/balancer.js';

const mac = (last: number): Uint8Array => Uint8Array.of(2, 0, 0, 0, 0, last);
const host = (last: number): Uint8Array => Uint8Array.of(10, 0, 9, last);
const vteps = (net: number, count: number): Uint8Array[] =>
  Array.from({ length: count }, (_, i) => Uint8Array.of(10, net, i >> 8, i & 255));

const domain = (id: number, more: Partial<DomainIntent> = {}): DomainIntent => ({
  ...{ id, vni: 40 + id, flags: LEARN, ageing: 300, learningLimit: 100, peers: [] },
  ...more,
});
const fds = Array.from({ length: 8 }, () => native.eventCreate());
const port = (id: number, of = 0) => ({ id, fd: fds[id], domain: of });
const station = (last: number, at: number | Uint8Array, of = 0): StationIntent => ({
  ...{ domain: of, mac: mac(last), at },
});
const neighbour = (last: number) => ({ domain: 0, address: host(last), mac: mac(last) });

const EMPTY: Intent = {
  underlay: {
    ...{ fd: fds[0], senders: [fds[7]], address: Uint8Array.of(192, 168, 50, 1) },
    ...{ port: 4789, ttl: 64, strict: false, mtu: 1500 },
  },
  ...{
    domains: [],
    ports: [],
    stations: [],
    neighbours: [],
    links: [],
    gateways: [],
    uplinks: [],
    publish: [],
  },
  nat: { mapping: 'endpoint-independent', firstPort: 1024, lastPort: 65535, timeouts: DEFAULT_TIMEOUTS },
  ...{ capacity: 1 << 17, udpSegmentation: true },
};

const planeOf = (intent: Intent) => {
  const counters = new Counters();
  const plane = new DataPlane(
    intent,
    counters,
    1,
    () => {},
    () => {},
  );
  return {
    plane,
    /** All that an intent makes of it; of VTEPs the addresses, since their numbers are the order in which they came. */
    state: () => ({
      stations: plane
        .stations()
        .map((one) => [one.domain, one.mac.join(), addressOf(plane, one.destination)].join(' '))
        .sort(),
      neighbours: Array.from({ length: 40 }, (_, last) => plane['neighbours'].get(0, host(last))?.join()),
      domains: [...plane.domains.used.keys()]
        .filter((id) => plane.domains.used[id] === 1)
        .map((id) => [
          id,
          plane.domains.vni[id],
          plane.domains.find(plane.domains.vni[id]) === id,
          [...plane.domains.ports[id]].sort().join(),
          [...plane.domains.vteps[id]].map((vtep) => plane.vteps.address(vtep).join('.')).join(),
        ]),
      owners: counters
        .describe()
        .map(({ owner }) => owner)
        .sort(),
    }),
  };
};

const addressOf = ({ vteps }: DataPlane, destination: number): string =>
  destination < REMOTE ? String(destination) : vteps.address(destination & 0xffff).join('.');

const BEFORE: Intent = {
  ...EMPTY,
  domains: [domain(0, { peers: vteps(1, 3) }), domain(1), domain(2)],
  ports: [port(1), port(2, 1), port(3)],
  stations: [station(1, 1), station(2, 2, 1), station(3, 3), station(9, vteps(1, 3)[2])],
  neighbours: [neighbour(1), neighbour(3), neighbour(9)],
};

/** Everything is another: one port goes, one comes, one changes its domain; VNIs change places. */
const AFTER: Intent = {
  ...EMPTY,
  domains: [domain(0, { vni: 41, peers: vteps(2, 2) }), domain(1, { vni: 40 }), domain(3)],
  ports: [port(2), port(3), port(4, 3)],
  stations: [station(2, 2), station(3, 3), station(4, 4, 3), station(9, vteps(2, 2)[1])],
  neighbours: [neighbour(2), { ...neighbour(3), mac: mac(33) }, neighbour(4)],
};

const TOO_MANY = vteps(3, MAX_VTEPS);
const FAILURES: Readonly<Record<string, Intent>> = {
  'domains are set': { ...AFTER, domains: [...AFTER.domains, domain(4, { peers: TOO_MANY })] },
  'ports are opened': { ...AFTER, ports: [...AFTER.ports, { id: 5, fd: -1, domain: 0 }] },
  'stations are set': {
    ...AFTER,
    stations: [...AFTER.stations, ...TOO_MANY.map((vtep, i) => station(10 + (i % 200), vtep))],
  },
  'neighbours are set': {
    ...AFTER,
    neighbours: [...AFTER.neighbours, { ...neighbour(5), mac: new Uint8Array(5) }],
  },
};

test('an intent makes of a plane with another what it makes of a new one', (t) => {
  const { plane, state } = planeOf(BEFORE);
  plane.apply(AFTER);
  t.deepEqual(state(), planeOf(AFTER).state());
});

for (const [when, failing] of Object.entries(FAILURES)) {
  test(`an intent that fails while ${when}: the one before makes the plane what it was, and a third what it says`, (t) => {
    const { plane, state } = planeOf(BEFORE);
    const before = state();
    t.throws(() => plane.apply(failing));
    t.notDeepEqual(state(), before);
    plane.apply(BEFORE);
    t.deepEqual(state(), before);
    t.throws(() => plane.apply(failing));
    plane.apply(AFTER);
    t.deepEqual(state(), planeOf(AFTER).state());
  });
}

test('learned VTEPs make room for those of an intent, and their stations go with them', (t) => {
  const { plane } = planeOf({ ...EMPTY, domains: [domain(0, { peers: vteps(1, 2000) })] });
  plane.apply({ ...EMPTY, domains: [domain(0)] });
  t.is(plane.vteps.learned, 2000);
  plane.table.learn(macLow(mac(7)), macHigh(mac(7), 0), REMOTE | 5, 0);
  t.is(plane.stations().length, 1);
  plane.apply({ ...EMPTY, domains: [domain(0, { peers: vteps(2, MAX_VTEPS) })] });
  t.is(plane.vteps.learned, 0);
  t.deepEqual(plane.stations(), []);
  t.throws(() => plane.apply({ ...EMPTY, domains: [domain(0, { peers: vteps(3, 1) })] }), {
    message: /more than 4096 VTEPs, those that go included/,
  });
});

test('as long as tables of schedulers are to be made, no breath waits', (t) => {
  const file = join(mkdtempSync(join(tmpdir(), 'weft-dataplane-')), 'flows');
  t.teardown(() => rmSync(dirname(file), { recursive: true }));
  const fd = openSync(file, 'w+');
  ftruncateSync(fd, flowBytes(16));
  const { plane } = planeOf({
    ...EMPTY,
    domains: [domain(0)],
    flows: { capacity: 16, fd },
    services: [service({ scheduler: 'maglev' })],
    marks: [],
  });
  // Without a limit, and nobody signals: one that waits never ends.
  for (let breath = 0; breath < 3; breath++) t.is(plane.breathe(-1), 0);
});
