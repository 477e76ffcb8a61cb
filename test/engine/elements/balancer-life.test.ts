/** The life of backends and flows: weights, drain, death, removal, affinity, expiry, and what is counted. */
import test from 'ava';
import type { ServiceIntent } from '../../../engine/intent.js';
import { ESTABLISHED, SYN_IN } from '../../../engine/tables/connection.js';
import { FLOW_SHIFT, flowKeyHash, OUT_KEY, STATE } from '../../../engine/tables/flows.js';
import { addressWord } from '../../../engine/tables/gateways.js';
import { Services } from '../../../engine/tables/services.js';
import { BalancerRig, backend, CLIENT, service, VIP } from '../../support/balancer.js';
import { ack, backendOf, close, isReset, numberAt, open, syn, tcp, udp } from '../../support/connections.js';
import { ip, station } from '../../support/frames.js';
import { ACK, answerTo, badChecksums, ends, FIN, type Packet, RST, SYN, TCP } from '../../support/nat.js';

const of = (more: Partial<ServiceIntent>, ...backends: ReturnType<typeof backend>[]) =>
  service({ backends, ...more });
const counts = (b: BalancerRig, id: number) => {
  const { active, inactive, flows, failures } = b.services.counts().find((one) => one.id === id)!;
  return { active, inactive, flows, failures };
};
/** Backends that so many new connections get, of as many clients. */
function chosen(b: BalancerRig, connections: number, firstPort = 10_000): Record<number, number> {
  const found: Record<number, number> = {};
  for (let i = 0; i < connections; i++) {
    const which = backendOf(b.one(syn(firstPort + i, { source: `10.0.9.${60 + i}` })));
    found[which] = (found[which] ?? 0) + 1;
  }
  return found;
}

for (const scheduler of ['rr', 'wrr', 'lc', 'wlc', 'sh', 'maglev'] as const) {
  test(`${scheduler}: a drained backend gets no new connections, and its old ones finish`, (t) => {
    const both = (weight: number) => of({ scheduler }, backend(1, { weight }), backend(2));
    const b = new BalancerRig([both(1)]);
    const from = (i: number): Packet => ({ source: `10.0.9.${60 + i}` });
    const clients = Array.from({ length: 20 }, (_, i) => i);
    const mine = clients.filter((i) => backendOf(open(b, 4000, from(i))) === 1);
    t.true(mine.length > 0 && mine.length < 20);
    b.set([both(0)]);
    b.services.schedulers.rebuild(1e9);
    t.deepEqual(chosen(b, 30), { 2: 30 });
    for (const i of mine) {
      const there = b.one(ack(4000, from(i)));
      t.is(backendOf(there), 1);
      t.is(ends(b.one(answerTo(there))), `${VIP}:80 > ${from(i).source}:4000`);
    }
    b.age(1001);
    t.is(counts(b, 1).active, mine.length);
    b.rig.finish(t);
  });

  test(`${scheduler}: a dead backend gets no connections, and lives again when it does`, (t) => {
    const both = (alive: boolean) => of({ scheduler }, backend(1, { alive }), backend(2));
    const b = new BalancerRig([both(true)]);
    b.services.schedulers.rebuild(1e9);
    t.true(chosen(b, 20)[1]! > 0);
    b.set([both(false)]);
    t.deepEqual(chosen(b, 20, 20_000), { 2: 20 });
    for (let i = 0; i < 5; i++) b.age(1001);
    t.deepEqual([counts(b, 1).active, counts(b, 1).inactive], [0, 0]);
    b.set([both(true)]);
    t.true(chosen(b, 20, 30_000)[1]! > 0);
    b.rig.finish(t);
  });
}

test('weights: shares of new connections, as they are now', (t) => {
  const of2 = (weight: number) => of({ scheduler: 'wrr' }, backend(1, { weight }), backend(2));
  const b = new BalancerRig([of2(3)]);
  t.deepEqual(chosen(b, 40), { 1: 30, 2: 10 });
  b.set([of2(1)]);
  t.deepEqual(chosen(b, 40, 20_000), { 1: 20, 2: 20 });
});

test('connections of a dead backend that both ends have closed: nobody is asked', (t) => {
  const b = new BalancerRig([of({}, backend(1))]);
  close(b, open(b));
  b.set([of({}, backend(1, { alive: false }), backend(2))]);
  t.deepEqual(b.age(1001), []);
  t.deepEqual([counts(b, 1).active, counts(b, 1).inactive], [0, 0]);
  b.rig.finish(t);
});

test('connections of a dead backend: both ends are asked, and each answer is reset', (t) => {
  const b = new BalancerRig([of({}, backend(1))]);
  const request = open(b);
  b.set([of({}, backend(1, { alive: false }), backend(2))]);
  const asked = b.age(1001).map(({ bytes }) => bytes);
  t.deepEqual(asked.map(ends), [`${VIP}:80 > ${CLIENT}:4000`, `${CLIENT}:4000 > 10.0.9.1:80`]);
  t.deepEqual(
    asked.map((bytes) => [...bytes.slice(0, 6)]),
    [[...station(50)], [...station(1)]],
  );
  t.deepEqual(asked.flatMap(badChecksums), []);
  // RFC 9293, 3.10.7.4: an end that is asked acknowledges what it has.
  const told = ack(4000);
  told.set([9, 9, 9, 9], 42);
  const reset = b.one(told);
  t.true(isReset(reset));
  t.is(numberAt(reset, 4), 0x09090909);
  const other = b.one(answerTo(request, ACK));
  t.is(
    ends(other),
    `10.0.9.1:80 > ${CLIENT}:4000`,
    'the client knows none with this end, and resets it itself',
  );
  t.is(backendOf(open(b)), 2, 'and begins anew elsewhere');
  b.rig.finish(t);
});

test('of UDP a dead backend’s flows go, and the next packet gets another', (t) => {
  const b = new BalancerRig([of({ scheduler: 'sh' }, backend(1), backend(2))]);
  const before = backendOf(b.one(udp()));
  const alive = (id: number) => backend(id, { alive: id !== before });
  b.set([of({ scheduler: 'sh' }, alive(1), alive(2))]);
  t.deepEqual(b.age(1001), []);
  t.is(backendOf(b.one(udp())), 3 - before);
  b.rig.finish(t);
});

test('a removed service: its connections are reset at its address for a while, then it is nobody’s', (t) => {
  const b = new BalancerRig([of({}, backend(1)), service({ id: 2, domain: 1, backends: [backend(7)] })]);
  open(b);
  b.set([service({ id: 2, domain: 1, backends: [backend(7)] })]);
  t.is(b.age(1001).length, 2);
  t.true(isReset(b.one(ack())));
  t.is(b.one(syn(4001))[23], 1, 'unreachable');
  b.services.forget();
  t.deepEqual(b.one(ack()), ack());
  t.is(b.services.inDomain[0], 0);
  t.deepEqual(b.drops(), { 'no-service': 1 });
  b.rig.finish(t);
});

test('a service that moves to another address is found there alone; one that comes back is itself again', (t) => {
  const b = new BalancerRig([of({}, backend(1))]);
  const other = Uint8Array.of(10, 0, 9, 101);
  b.set([of({ address: other }, backend(1))]);
  t.is(ends(b.one(syn(4000, { destination: '10.0.9.101' }))), `${CLIENT}:4000 > 10.0.9.1:80`);
  t.is(b.one(syn(4001))[23], 1);
  b.set([of({}, backend(1))]);
  t.is(backendOf(b.one(syn(4002))), 1);
  b.services.forget();
  t.is(backendOf(b.one(syn(4003))), 1);
  b.rig.finish(t);
});

test('a caller that is its own backend, dead: each of the two flows asks its own end', (t) => {
  const b = new BalancerRig([of({}, backend(1))]);
  const own = { source: '10.0.9.1' };
  const request = b.one(syn(4000, own));
  b.one(answerTo(request, SYN | ACK));
  b.one(ack(4000, own));
  b.set([of({})]);
  const asked = b.age(1001).map(({ bytes }) => ends(bytes));
  t.deepEqual(asked.sort(), [`${VIP}:4000 > 10.0.9.1:80`, `${VIP}:80 > 10.0.9.1:4000`]);
  t.is(b.flows.size, 0);
  b.rig.finish(t);
});

test('a direct backend is asked at the virtual address, which it has', (t) => {
  const b = new BalancerRig([of({ direct: true }, backend(1))]);
  b.one(syn());
  b.one(ack());
  b.set([of({ direct: true })]);
  const asked = b.age(1001);
  t.deepEqual(
    asked.map(({ bytes }) => ends(bytes)),
    [`${VIP}:80 > ${CLIENT}:4000`, `${CLIENT}:4000 > ${VIP}:80`],
  );
  t.deepEqual(asked[1]!.bytes.slice(0, 6), station(1));
  b.rig.finish(t);
});

test('a service that becomes direct, or is it no more: connections of the other kind are reset', (t) => {
  for (const direct of [false, true]) {
    const b = new BalancerRig([of({ direct }, backend(1))]);
    b.one(syn());
    b.one(ack());
    b.set([of({ direct: !direct }, backend(1))]);
    t.is(b.age(1001).length, 2);
    t.is(b.flows.size, 0);
    t.true(isReset(b.one(ack())));
    t.is(b.one(syn())[33], direct ? 1 : 100);
    b.rig.finish(t);
  }
});

test('a backend in the place of another begins with no counts', (t) => {
  const services = new Services(4, 1);
  services.set([of({}, backend(1))], () => {});
  services.failed(services.numberOf(1), 80, true);
  t.is(services.counts()[0]!.failures, 1);
  services.set([of({}, backend(2))], () => {});
  t.deepEqual(services.counts(), [
    { id: 2, active: 0, inactive: 0, flows: 0, packets: 0, bytes: 0, failures: 0 },
  ]);
});

test('silence: an established connection is reset at both ends when its own time is over, and not before', (t) => {
  const b = new BalancerRig([of({ idle: 3000 }, backend(1))]);
  const request = open(b);
  t.deepEqual(b.age(3999), [], '900 s are nothing');
  b.one(ack());
  t.deepEqual(b.age(6998), []);
  b.one(answerTo(request, ACK));
  t.deepEqual(b.age(9997), []);
  const asked = b.age(9999);
  t.deepEqual(
    asked.map(({ bytes }) => ends(bytes)),
    [`${VIP}:80 > ${CLIENT}:4000`, `${CLIENT}:4000 > 10.0.9.1:80`],
  );
  t.is(b.flows.size, 0);
  t.true(isReset(b.one(ack())));
  t.is(b.rig.counter('balance', 'flows-expired'), 1);
  b.rig.finish(t);
});

test('half closed it has the same time; closed by both, or reset, four minutes, and nobody is asked', (t) => {
  const b = new BalancerRig([of({ idle: 3000 }, backend(1))]);
  const half = open(b, 4000);
  b.one(answerTo(half, FIN | ACK));
  const closed = open(b, 4001);
  close(b, closed, 4001);
  const reset = open(b, 4002);
  b.one(answerTo(reset, RST));
  t.deepEqual(counts(b, 1), { active: 0, inactive: 3, flows: 3, failures: 0 });
  b.at(1200);
  b.one(answerTo(reset, RST));
  t.deepEqual(b.age(1239), []);
  t.is(b.flows.size, 3);
  t.deepEqual(b.age(1241), []);
  t.is(b.flows.size, 1);
  t.deepEqual(b.age(3999), []);
  t.is(b.age(4001).length, 2);
  t.deepEqual(counts(b, 1), { active: 0, inactive: 0, flows: 3, failures: 0 });
  b.rig.finish(t);
});

test('data after an RST brings a connection back, counted as what it is', (t) => {
  const b = new BalancerRig([of({}, backend(1))]);
  open(b);
  b.one(tcp(RST));
  t.deepEqual(counts(b, 1), { active: 0, inactive: 1, flows: 1, failures: 0 });
  b.one(ack());
  t.deepEqual(counts(b, 1), { active: 1, inactive: 0, flows: 1, failures: 0 });
});

test('a SYN that is not answered, or answered by an RST, counts as one failure of the backend', (t) => {
  const b = new BalancerRig([of({}, backend(1))]);
  b.one(syn(4000));
  b.age(1241);
  t.is(counts(b, 1).failures, 1);
  const refused = b.one(syn(4001));
  t.true(isReset(b.one(answerTo(refused, RST | ACK))));
  t.is(counts(b, 1).failures, 2);
  b.age(1500);
  t.deepEqual([counts(b, 1).failures, b.flows.size], [2, 0]);
  const own = { source: '10.0.9.1' };
  b.one(syn(4002, own));
  b.age(1800);
  t.deepEqual([counts(b, 1).failures, b.flows.size], [3, 0], 'two flows are one connection');
});

test('affinity: the same backend while it lasts, whatever else comes; then as it is scheduled', (t) => {
  const b = new BalancerRig([of({ affinity: 60 }, backend(1), backend(2), backend(3))]);
  const mine = backendOf(b.one(syn(4000)));
  for (let i = 1; i < 9; i++) {
    b.one(syn(5000 + i, { source: `10.0.9.${60 + i}` }));
    t.is(backendOf(b.one(syn(4000 + i))), mine);
    t.is(backendOf(b.one(udp(4000 + i))), mine, 'of every port and protocol');
  }
  b.age(1059);
  t.is(backendOf(b.one(syn(4100))), mine, 'that begins it anew');
  for (let i = 0; i < 4; i++) {
    b.age(1059 + i);
    b.one(syn(5100 + i, { source: `10.0.8.${i}` }));
  }
  b.age(1118);
  t.is(backendOf(b.one(syn(4101))), mine);
  b.age(1179);
  const later = Array.from({ length: 12 }, (_, i) => {
    b.age(1179 + (i + 1) * 61);
    return backendOf(b.one(syn(4200 + i)));
  });
  t.is(new Set(later).size, 3, `${later}`);
  b.rig.finish(t);
});

for (const [what, change] of [
  ['dies', { alive: false }],
  ['is drained', { weight: 0 }],
  ['is removed', undefined],
] as const)
  test(`affinity ends when its backend ${what}, and is with another then`, (t) => {
    const all = (more: object) => [1, 2, 3].map((n) => backend(n, more));
    const b = new BalancerRig([of({ affinity: 600 }, ...all({}))]);
    const mine = backendOf(b.one(syn(4000)));
    const rest = all({}).filter(({ id }) => id !== mine);
    const changed = change === undefined ? rest : [...rest, backend(mine, change)];
    // Also before its flows have ended.
    b.set([of({ affinity: 600 }, ...changed)]);
    const next = backendOf(b.one(syn(4001)));
    t.not(next, mine);
    for (let i = 2; i < 8; i++) t.is(backendOf(b.one(syn(4000 + i))), next);
    b.rig.finish(t);
  });

test('affinity is of each service alone, and is no flow that is counted', (t) => {
  const other = service({
    id: 2,
    address: Uint8Array.of(10, 0, 9, 101),
    affinity: 60,
    backends: [backend(7), backend(8)],
  });
  const b = new BalancerRig([of({ affinity: 60 }, backend(1), backend(2)), other]);
  const [one, two] = [
    backendOf(b.one(syn(4000))),
    backendOf(b.one(syn(4000, { destination: '10.0.9.101' }))),
  ];
  for (let i = 1; i < 5; i++) {
    t.is(backendOf(b.one(syn(4000 + i))), one);
    t.is(backendOf(b.one(syn(4000 + i, { destination: '10.0.9.101' }))), two);
  }
  t.is(b.flows.size, 12);
  t.is(
    b.services.counts().reduce((sum, { active, inactive }) => sum + active + inactive, 0),
    10,
  );
  b.rig.finish(t);
});

test('with affinity, sh and maglev choose by the address alone', (t) => {
  for (const scheduler of ['sh', 'maglev'] as const) {
    const backends = [1, 2, 3, 4, 5].map((n) => backend(n));
    const b = new BalancerRig([of({ scheduler, affinity: 1 }, ...backends)]);
    b.services.schedulers.rebuild(1e9);
    const first = backendOf(b.one(syn(4000)));
    for (let i = 1; i < 10; i++) {
      b.age(1000 + i * 10);
      t.is(backendOf(b.one(syn(4000 + i))), first, scheduler);
    }
  }
});

test('affinity is of the service, whether its address or a mark leads to it', (t) => {
  const b = new BalancerRig([of({ affinity: 60, mark: 300 }, backend(1), backend(2))]);
  const mine = backendOf(b.one(syn(4000)));
  for (let i = 1; i < 5; i++) {
    const marked = b.one(syn(4000 + i, { destination: `10.0.9.20${i}` }), { mark: 300 });
    t.is(backendOf(marked), mine);
  }
  t.is(b.flows.size, 6);
  b.rig.finish(t);
});

test('what is counted of backends is what is in the table', (t) => {
  const b = new BalancerRig();
  for (let i = 0; i < 30; i++) {
    const request = open(b, 4000 + i);
    if (i % 3 === 0) close(b, request, 4000 + i);
    if (i % 5 === 0) b.one(answerTo(request, RST));
    b.one(udp(4000 + i));
    b.one(syn(6000 + i));
  }
  const { words } = b.flows;
  let flows = 0;
  b.flows.forEach((flow) => {
    flows += Number(words[(flow << FLOW_SHIFT) + OUT_KEY] !== 0 && words[(flow << FLOW_SHIFT) + STATE] !== 0);
  });
  const all = b.services.counts();
  t.is(
    all.reduce((sum, { active, inactive }) => sum + active + inactive, 0),
    flows,
  );
  t.is(
    all.reduce((sum, one) => sum + one.flows, 0),
    90,
  );
});

test('a connection from outside that is not answered counts as failed, and its SYNs as signs of that', (t) => {
  const health = { kind: 'tcp', path: '', interval: 2000, timeout: 1000, failures: 3, successes: 2 } as const;
  const b = new BalancerRig([service({ backends: [backend(1)], health: { ...health, port: 80 } })]);
  const { balancing } = b.balancer;
  const [inside, client, external] = ['10.0.9.1', '198.51.100.7', '203.0.113.1'].map((a) =>
    addressWord(ip(a)),
  );
  const key = TCP | (1 << 16);
  const flow = b.flows.create(inside!, client!, 0xa00f5000 | 0, key, external!, 0xa00f901f | 0);
  b.flows.words[(flow << FLOW_SHIFT) + STATE] = SYN_IN;
  b.flows.setExpiry(flow, 1240);
  balancing.begin(flow, 0);
  balancing.turned(flow, SYN_IN, SYN_IN, false);
  t.is(b.services.unanswered.size, 0);
  b.at(1002);
  balancing.turned(flow, SYN_IN, SYN_IN, false);
  t.deepEqual([...b.services.unanswered], [[0, 1]]);
  t.is(counts(b, 1).failures, 0);
  balancing.expired(flow);
  t.deepEqual([[...b.services.unanswered], counts(b, 1).failures], [[[0, 2]], 1]);
  b.flows.remove(flow);
  b.rig.finish(t);
});

test('both ends of a connection from outside are asked as they know it, and again when they may not have heard', (t) => {
  const b = new BalancerRig([service({ backends: [backend(1)] })]);
  const [inside, client, external] = ['10.0.9.1', '198.51.100.7', '203.0.113.1'].map((a) =>
    addressWord(ip(a)),
  );
  // As the NAT of an uplink makes it: port 8080 of its address for port 80 of the first backend.
  const flow = b.flows.create(inside!, client!, 0xa00f5000 | 0, TCP | (1 << 16), external!, 0xa00f901f | 0);
  b.flows.setExpiry(flow, 9000);
  b.flows.words[(flow << FLOW_SHIFT) + STATE] = ESTABLISHED | (1 << 8);
  b.set([service({ backends: [] })]);
  const asked = (seconds: number) => b.age(seconds).map(({ bytes }) => ends(bytes));
  const hashes = [
    flowKeyHash(1, external!, client!, 0xa00f901f | 0, TCP),
    flowKeyHash(1, inside!, client!, 0xa00f5000 | 0, TCP | (1 << 16)),
  ];
  const question = ['203.0.113.1:8080 > 198.51.100.7:4000', '198.51.100.7:4000 > 10.0.9.1:80'];
  t.deepEqual(asked(1000), question);
  t.is(b.flows.size, 0);
  t.deepEqual([...b.flows.ended], hashes);
  t.deepEqual(
    [asked(1000), asked(1001), asked(1003), asked(1004), asked(1100)],
    [[], question, [], question, []],
  );
  t.is(b.flows.ended.size, 0, 'what is met then may begin a flow again');
  b.rig.finish(t);
});
