/** Flows of services that outlive the process, whatever numbers their backends get in the next one. */
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { asLeft, FlowMemory, flowMemoryBytes, takenOver } from '../../engine/flow-memory.js';
import type { Context } from '../../engine/graph.js';
import type { FlowTableIntent, Intent, ServiceIntent } from '../../engine/intent.js';
import {
  BALANCER_OWNER,
  EXTERNAL,
  FLOW_SHIFT,
  flowBytes,
  IN_DOMAIN,
  IN_PORTS,
  INSIDE,
  NEXT_OF_PORT,
  OUT_KEY,
  OUT_PORTS,
  OWNER_SHIFT,
  REMOTE_END,
  STATE,
} from '../../engine/tables/flows.js';
import { native } from '../../native-bindings/index.js';
import { BalancerRig, backend, CLIENT, service, VIP } from '../support/balancer.js';
import { BalancerRigV6, backend6, CLIENT6, service6, VIP6 } from '../support/balancer6.js';
import { ack, backendOf, isReset, open, syn, udp } from '../support/connections.js';
import { flowFile } from '../support/flow-file.js';
import { ip, station } from '../support/frames.js';
import { ACK, answerTo, ends, type Packet, SYN } from '../support/nat.js';
import { answerToV6, endsV6, packetV6 } from '../support/nat6.js';

const CAPACITY = 40;
const ADDRESSES = 90;

const fileOf = (t: ExecutionContext): number => flowFile(t, flowMemoryBytes(CAPACITY, ADDRESSES));

/** An intent over the file. @param left the services as they were, of a process that finds flows. */
function intentOf(fd: number, left: readonly ServiceIntent[] | undefined, addresses?: number): Intent {
  const flows: FlowTableIntent = {
    ...{ capacity: CAPACITY, fd },
    ...(addresses !== undefined && { addresses }),
    ...(left && { left: { domains: [0], endpoints: [], unpublished: [], services: left } }),
  };
  return { gateways: [], neighbours: [], flows } as unknown as Intent;
}

/** Runs a process over the file, which does what DataPlane does at its start. */
function start<R extends { set(services: readonly ServiceIntent[]): void }>(
  intent: Intent,
  services: readonly ServiceIntent[],
  make: (services: readonly ServiceIntent[], memory: (context: Context) => FlowMemory) => R,
): R {
  let memory!: FlowMemory;
  const rig = make(asLeft({ ...intent, services }).services!, (context) => {
    memory = new FlowMemory(context, intent.flows!);
    return memory;
  });
  memory.begin(intent);
  if (intent.flows?.left) rig.set(services);
  return rig;
}

function life(fd: number, services: readonly ServiceIntent[], left?: readonly ServiceIntent[]): BalancerRig {
  return start(
    intentOf(fd, left),
    services,
    (first, memory) => new BalancerRig(first, CAPACITY, (context) => memory(context).flows),
  );
}

function life6(fd: number, services: readonly ServiceIntent[], left?: readonly ServiceIntent[]) {
  return start(
    intentOf(fd, left, ADDRESSES),
    services,
    (first, memory) => new BalancerRigV6(first, CAPACITY, ADDRESSES, memory),
  );
}

const tally = (fd: number): readonly number[] => {
  const { taken, refused } = takenOver(native.fileMap(fd, flowBytes(CAPACITY)));
  return [taken, refused];
};

/** Flows of each backend by its number in the intent: established ones, and others. */
const counts = ({ services }: Pick<BalancerRig, 'services'>): Record<number, readonly number[]> =>
  Object.fromEntries(services.counts().map(({ id, active, inactive }) => [id, [active, inactive]]));

const of = (more: Partial<ServiceIntent>, ...backends: ReturnType<typeof backend>[]) =>
  service({ backends, ...more });

/** A service in front of the others, so that backends have other numbers than before. */
const first = service({
  id: 9,
  address: ip('10.0.9.99'),
  backends: [backend(33, { address: ip('10.0.9.3') })],
});

test('connections go on at their backends, which have other numbers, and are counted there', (t) => {
  const fd = fileOf(t);
  const before = life(fd, [service()]);
  const requests = [4000, 4001, 4002].map((port) => open(before, port));
  before.one(syn(4003));
  const datagram = before.one(udp());
  t.deepEqual(counts(before), { 1: [1, 0], 2: [2, 0], 3: [1, 1] });
  const now = [first, of({}, backend(2), backend(3), backend(1))];
  const after = life(fd, now, now);
  t.deepEqual(tally(fd), [5, 0]);
  t.deepEqual(counts(after), { 33: [0, 0], ...counts(before) });
  // From a backend first, as in a download; the client only acknowledges.
  for (const [i, request] of requests.entries()) {
    t.is(ends(after.one(answerTo(request, ACK))), `${VIP}:80 > ${CLIENT}:${4000 + i}`);
    const there = after.one(ack(4000 + i));
    t.deepEqual([ends(there), there.slice(0, 6)], [ends(request), station(backendOf(request))]);
  }
  t.is(ends(after.one(udp())), ends(datagram));
  t.is(after.flows.size, 5);
  after.age(1000 + 7441);
  t.is(after.flows.size, 0);
  t.deepEqual(counts(after), { 33: [0, 0], 1: [0, 0], 2: [0, 0], 3: [0, 0] });
  after.rig.finish(t);
});

test('a caller that is its own backend has both flows of its connection, which counts once', (t) => {
  const fd = fileOf(t);
  const own: Packet = { source: '10.0.9.1' };
  const before = life(fd, [of({}, backend(1))]);
  const request = before.one(syn(4000, own));
  before.one(answerTo(request, SYN | ACK));
  before.one(ack(4000, own));
  const now = [first, of({}, backend(1))];
  const after = life(fd, now, now);
  t.deepEqual(tally(fd), [2, 0]);
  t.deepEqual(counts(after), { 33: [0, 0], ...counts(before) });
  t.is(ends(after.one(ack(4000, own))), ends(request));
  t.is(ends(after.one(answerTo(request, ACK))), `${VIP}:80 > 10.0.9.1:4000`);
  for (const flow of [1, 2]) after.flows.end(flow);
  t.deepEqual(counts(after), { 33: [0, 0], 1: [0, 0] });
  after.rig.finish(t);
});

test('what is direct, and what a mark has led to the service, goes on there', (t) => {
  const fd = fileOf(t);
  const marked = { mark: 7, id: 2, address: ip('10.0.9.98') };
  const services = [of({ direct: true }, backend(1)), of(marked, backend(2)), of({ ...first }, backend(2))];
  const before = life(fd, services);
  before.one(syn());
  // To the address of the first one, and to that of nobody.
  const other = before.one(syn(4001), { mark: 7 });
  const stray = before.one(syn(4002, { destination: '10.0.9.77' }), { mark: 7 });
  t.deepEqual([backendOf(other), backendOf(stray)], [2, 2]);
  const after = life(fd, services, services);
  t.deepEqual(tally(fd), [3, 0]);
  const there = after.one(ack());
  t.deepEqual([ends(there), there.slice(0, 6)], [`${CLIENT}:4000 > ${VIP}:80`, station(1)]);
  t.is(ends(after.one(ack(4001), { mark: 7 })), ends(other));
  t.is(ends(after.one(answerTo(stray, ACK))), `10.0.9.77:80 > ${CLIENT}:4002`);
  t.deepEqual(
    after.services.counts().map(({ active, inactive }) => active + inactive),
    [1, 2, 0],
  );
});

test('affinity stays with its client, for the rest of its time; of a service that has none any more it goes', (t) => {
  const fd = fileOf(t);
  const sticky = service({ affinity: 100 });
  const before = life(fd, [first, sticky]);
  const which = backendOf(before.one(syn(4000)));
  const after = life(fd, [sticky], [sticky]);
  t.deepEqual(tally(fd), [2, 0]);
  after.at(1050);
  for (let i = 1; i < 4; i++) t.is(backendOf(after.one(syn(4000 + i))), which);
  const last = life(fd, [service()], [service()]);
  t.deepEqual(tally(fd), [4, 1]);
  t.true(new Set([1, 2, 3].map((i) => backendOf(last.one(syn(5000 + i))))).size === 3);
});

test('a backend that is gone: both ends are asked, and the others go on; a drained one keeps what it has', (t) => {
  const fd = fileOf(t);
  const before = life(fd, [service()]);
  const requests = [4000, 4001, 4002].map((port) => open(before, port));
  const gone = requests.find((request) => backendOf(request) === 3)!;
  const now = [of({}, backend(1, { weight: 0 }), backend(2))];
  const after = life(fd, now, [service()]);
  t.deepEqual(tally(fd), [3, 0]);
  const port = 4000 + requests.indexOf(gone);
  t.deepEqual(
    after.age(1001).map(({ bytes }) => ends(bytes)),
    [`${VIP}:80 > ${CLIENT}:${port}`, `${CLIENT}:${port} > 10.0.9.3:80`],
  );
  t.true(isReset(after.one(ack(port))));
  t.deepEqual(counts(after), { 1: [1, 0], 2: [1, 0] });
  for (const request of requests)
    if (request !== gone) t.is(ends(after.one(ack(4000 + requests.indexOf(request)))), ends(request));
  t.is(backendOf(after.one(syn(5000))), 2);
  after.rig.finish(t);
});

test('a service that is gone, moved, or direct now: both ends are asked', (t) => {
  const was = of({}, backend(1));
  const rows: readonly (readonly ServiceIntent[])[] = [
    [],
    [first],
    [of({ address: ip('10.0.9.101') }, backend(1))],
    [of({ direct: true }, backend(1))],
  ];
  for (const now of rows) {
    const fd = fileOf(t);
    open(life(fd, [was]));
    const after = life(fd, now, [was]);
    t.deepEqual(tally(fd), [1, 0]);
    t.deepEqual(
      after.age(1001).map(({ bytes }) => ends(bytes)),
      [`${VIP}:80 > ${CLIENT}:4000`, `${CLIENT}:4000 > 10.0.9.1:80`],
    );
    t.is(after.flows.size, 0);
    t.true(isReset(after.one(ack())));
    after.rig.finish(t);
  }
});

test('what nobody says anything of is not taken over: the domain, the service, the backend', (t) => {
  const was = [of({}, backend(1))];
  const rows: readonly (readonly ServiceIntent[])[] = [
    [],
    [of({ domain: 1 }, backend(1))],
    [of({ id: 2 }, backend(1))],
    [of({}, backend(2))],
  ];
  for (const left of rows) {
    const fd = fileOf(t);
    open(life(fd, was));
    const after = life(fd, was, left);
    t.deepEqual(tally(fd), [0, 1]);
    t.deepEqual(counts(after), { 1: [0, 0] });
    t.true(isReset(after.one(ack())));
  }
});

test('an entry that does not add up is not taken over', (t) => {
  const fd = fileOf(t);
  const words = new Int32Array(native.fileMap(fd, flowBytes(CAPACITY)));
  const was = [service({ affinity: 100 })];
  const keyOf = (protocol: number, inDomain = IN_DOMAIN): number =>
    0x1_0000 | (BALANCER_OWNER << OWNER_SHIFT) | inDomain | protocol;
  const rows: readonly (readonly [
    what: string,
    sticky: boolean,
    ...spoilt: [word: number, value: number][],
  ])[] = [
    ['no state', false, [STATE, 0x100]],
    ['a state of UDP', false, [STATE, 0x101]],
    ['another protocol', false, [OUT_KEY, keyOf(1)], [STATE, 0x101]],
    ['not of its domain', false, [OUT_KEY, keyOf(6, 0)]],
    ['ports of two clients', false, [OUT_PORTS, 0x1234_5000]],
    ['no service', false, [NEXT_OF_PORT, 0]],
    ['a service beyond all', false, [NEXT_OF_PORT, 65]],
    ['an affinity that counts', true, [STATE, 0x105]],
    ['an affinity to two services', true, [IN_PORTS, 2]],
  ];
  for (const [what, sticky, ...spoilt] of rows) {
    words.fill(0);
    open(life(fd, was));
    const flow = [1, 2].find((one) => ((words[(one << FLOW_SHIFT) + OUT_KEY]! & 0xff) === 0) === sticky)!;
    for (const [word, value] of spoilt) words[(flow << FLOW_SHIFT) + word] = value;
    life(fd, was, was);
    t.deepEqual(tally(fd), [1, 1], what);
  }
});

const tcp6 = (sourcePort: number, flags: number, source = CLIENT6): Uint8Array =>
  packetV6({ protocol: 6, flags, source, destination: VIP6, sourcePort, destinationPort: 80 });

test('over IPv6: addresses and backends have other numbers, and what is gone is asked', (t) => {
  const fd = fileOf(t);
  const was = [service6({ affinity: 100 })];
  const before = life6(fd, was);
  const opened = (sourcePort: number, source?: string): Uint8Array => {
    const request = before.one(tcp6(sourcePort, SYN, source));
    before.one(answerToV6(request, SYN | ACK));
    before.one(tcp6(sourcePort, ACK, source));
    return request;
  };
  // Each has an affinity; the second is its own backend, and has two flows.
  const [other, own, third] = [opened(4000), opened(4001, 'fd00:9::2'), opened(4002, 'fd00:9::60')];
  t.deepEqual([other, own, third].map(endsV6), [
    `[${CLIENT6}]:4000 > [fd00:9::3]:80`,
    `[${VIP6}]:4001 > [fd00:9::2]:80`,
    '[fd00:9::60]:4002 > [fd00:9::1]:80',
  ]);
  const front = service6({ id: 9, address: ip('fd00:9::99'), backends: [backend6(8)] });
  const now = [front, service6({ affinity: 100, backends: [backend6(2), backend6(3)] })];
  const after = life6(fd, now, [front, ...was]);
  t.deepEqual(tally(fd), [7, 0]);
  t.deepEqual(
    after.age(1001).map(({ bytes }) => endsV6(bytes)),
    // Of the client the MAC is not known here.
    ['[fd00:9::60]:4002 > [fd00:9::1]:80'],
  );
  t.deepEqual(counts(after), { 8: [0, 0], 2: [1, 0], 3: [1, 0] });
  t.is(endsV6(after.one(answerToV6(other, ACK))), `[${VIP6}]:80 > [${CLIENT6}]:4000`);
  t.is(endsV6(after.one(tcp6(4001, ACK, 'fd00:9::2'))), endsV6(own));
  t.is(endsV6(after.one(answerToV6(own, ACK))), `[${VIP6}]:80 > [fd00:9::2]:4001`);
  t.is(endsV6(after.one(tcp6(5000, SYN))), `[${CLIENT6}]:5000 > [fd00:9::3]:80`, 'the affinity');
  after.flows.forEach((flow) => {
    after.flows.end(flow);
  });
  t.is(after.addresses.size, 5, 'those of the services are left');
  t.deepEqual(counts(after), { 8: [0, 0], 2: [0, 0], 3: [0, 0] });
  after.rig.finish(t);
});

/** What may be wrong of an entry, by word; and what makes it look like another's. */
const wrong = fc.tuple(
  fc.integer({ min: 1, max: 9 }),
  fc.constantFrom(INSIDE, REMOTE_END, OUT_PORTS, OUT_KEY, EXTERNAL, IN_PORTS, NEXT_OF_PORT, STATE),
  fc.oneof(
    fc.integer(),
    fc.nat(12),
    fc.nat(0xffff),
    fc.nat(31).map((owner) => 0x1_0006 | IN_DOMAIN | (owner << OWNER_SHIFT)),
    fc.constantFrom(0, 0x1_0000 | IN_DOMAIN | (BALANCER_OWNER << OWNER_SHIFT)),
  ),
);

test('property: whatever lies in the memory, what is taken over is counted once, and lets all go', (t) => {
  const fd = fileOf(t);
  const memory = native.fileMap(fd, flowMemoryBytes(CAPACITY, ADDRESSES));
  const words = new Int32Array(memory);
  const services = [service({ affinity: 50 }), first];
  const services6 = [service6({ affinity: 50 })];
  fc.assert(
    fc.property(fc.array(wrong, { maxLength: 6 }), fc.boolean(), (entries, ipv6) => {
      words.fill(0);
      if (ipv6) {
        const before = life6(fd, services6);
        for (let i = 0; i < 3; i++) before.one(tcp6(4000 + i, SYN, `fd00:9::${i + 1}`));
      } else {
        const before = life(fd, services);
        for (let i = 0; i < 3; i++) before.one(syn(4000 + i, { source: `10.0.9.${i + 1}` }));
      }
      for (const [flow, word, value] of entries) words[(flow << FLOW_SHIFT) + word] = value;
      const after = ipv6 ? life6(fd, services6, services6) : life(fd, services, services);
      const { active, inactive } = after.services.backends;
      t.true([...active, ...inactive].every((count) => count >= 0 && count <= 9));
      after.flows.forEach((flow) => {
        after.flows.end(flow);
      });
      t.is(after.flows.size, 0);
      t.true([...active, ...inactive].every((count) => count === 0));
      t.true(after.flows.index.every((word) => word === 0));
      if (after instanceof BalancerRigV6) t.is(after.addresses.size, 4);
    }),
    { numRuns: 100 },
  );
});
