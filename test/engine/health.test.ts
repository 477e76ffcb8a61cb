/** What checks and connections say of backends, and what follows. */
import test from 'ava';
import { GOOD, SILENT, WAS_RESET } from '../../engine/elements/balancer/prober.js';
import { CONNECTIONS_FAILED } from '../../engine/health.js';
import type { HealthIntent } from '../../engine/intent.js';
import { NO_FRAME, REMOTE } from '../../engine/memory/frames.js';
import { BalancerRig, backend, CLIENT, service, VIP } from '../support/balancer.js';
import { answer, BACKEND, flagsOf, HEALTH, rigOf } from '../support/checks.js';
import { ACK, answerTo, ends, icmpError, packet, RST, SYN, TCP } from '../support/nat.js';

test('so many failures in a row take a backend down with the very last one, so many successes bring it back', (t) => {
  const { b, syn, isUp, told } = rigOf(HEALTH);
  const refused = () => b.feed([answer(syn(), { flags: RST | ACK, seq: 0 })]);
  const well = () => b.feed([answer(syn(), { flags: SYN | ACK })]);
  refused();
  refused();
  well();
  refused();
  refused();
  t.true(isUp());
  t.deepEqual(refused(), [], 'an RST is not answered');
  t.false(isUp());
  t.deepEqual(told(), [WAS_RESET]);
  well();
  refused();
  well();
  t.false(isUp());
  well();
  t.true(isUp());
  t.deepEqual(told(), ['up']);
  b.rig.finish(t);
});

test('when a backend is found down its connections are reset', (t) => {
  const { b, syn } = rigOf({ ...HEALTH, failures: 1 });
  const open = { protocol: TCP, source: CLIENT, destination: VIP, sourcePort: 4000, destinationPort: 80 };
  const request = b.one(packet({ ...open, flags: SYN }));
  b.one(answerTo(request, SYN | ACK));
  b.one(packet({ ...open, flags: ACK }));
  b.feed([answer(syn(), { flags: RST | ACK })]);
  t.deepEqual(
    b.age(b.rig.context.seconds).map(({ bytes }) => ends(bytes)),
    [`${VIP}:80 > ${CLIENT}:4000`, `${CLIENT}:4000 > ${BACKEND}:80`],
  );
  b.rig.finish(t);
});

test('checks of other hosts: what the backend answers goes back to who asked, and no further', (t) => {
  const { b } = rigOf({ ...HEALTH, interval: 1_000_000 });
  b.check(1000);
  const theirs = packet({
    ...{
      protocol: TCP,
      flags: SYN,
      source: VIP,
      destination: BACKEND,
      sourcePort: 61_234,
      destinationPort: 80,
    },
    content: new Uint8Array(0),
  });
  const reply = answer(theirs, { flags: SYN | ACK });
  t.is(flagsOf(b.one(reply)), RST, 'of nobody');
  t.deepEqual(
    b.feed([theirs], { ingress: REMOTE | 5 }).map(({ bytes }) => bytes),
    [theirs],
  );
  b.feed(
    [packet({ protocol: TCP, source: VIP, destination: BACKEND, sourcePort: 61_234, destinationPort: 80 })],
    {
      ingress: REMOTE | 7,
    },
  );
  t.deepEqual(b.feed([reply], { ingress: 2 }), []);
  const [back] = b.tunnel.caught.splice(0);
  t.deepEqual([back!.bytes, back!.dest], [reply, REMOTE | 5]);
  t.deepEqual(b.feed([icmpError(theirs, { to: VIP })], { ingress: 2 }), []);
  t.is(b.tunnel.one().dest, REMOTE | 5);
  t.is(flagsOf(b.feed([reply], { ingress: REMOTE | 6 })[0]!.bytes), RST, 'from a third host it is of nobody');
  b.rig.finish(t);
});

const client = (port: number, flags: number, n: number) =>
  packet({
    ...{ protocol: TCP, flags, source: CLIENT, destination: VIP },
    ...{ sourcePort: 4000 + n, destinationPort: port },
  });

/** A service with every port, of which 80 is checked, seldom. */
function seldom(health: HealthIntent | undefined) {
  const services = [service({ backends: [backend(1)], ...(health && { health }) })];
  const b = new BalancerRig(services);
  const refuse = (port: number, n: number) => b.feed([answerTo(b.one(client(port, SYN, n)), RST | ACK)]);
  const causes = () => b.changes.splice(0).map(({ cause }) => cause);
  return { b, refuse, causes, failures: () => b.services.counts()[0]!.failures };
}

test('so many refused connections to the checked port within an interval take a backend down, those to others do not', (t) => {
  const { b, refuse, causes, failures } = seldom({ ...HEALTH, interval: 600_000, timeout: 100 });
  b.feed([answer(b.check(1000)[0]!.bytes, { flags: SYN | ACK })]);
  for (let n = 0; n < 5; n++) refuse(81, n);
  b.check(100);
  t.deepEqual([causes(), failures()], [[], 5]);
  for (let n = 0; n < 2; n++) refuse(80, n);
  b.check(100);
  t.deepEqual(causes(), []);
  const open = [10, 11, 12].map((n) => b.one(client(80, SYN, n)));
  refuse(80, 3);
  b.check(100);
  t.deepEqual([causes(), failures()], [[CONNECTIONS_FAILED], 8]);
  b.feed(open.map((frame) => answerTo(frame, RST | ACK)));
  for (const _ of [1, 2]) {
    b.check(100);
    t.deepEqual(causes(), [], 'only checks bring it back');
    b.feed([answer(b.check(600_000)[0]!.bytes, { flags: SYN | ACK })]);
  }
  b.check(100);
  t.deepEqual(causes(), [GOOD]);
  b.rig.finish(t);
});

test('failures of two intervals are not added up', (t) => {
  const { b, refuse, causes } = seldom({ ...HEALTH, interval: 5000, timeout: 100 });
  const well = (milliseconds: number) =>
    b.feed(b.check(milliseconds).map(({ bytes }) => answer(bytes, { flags: SYN | ACK })));
  well(1000);
  for (let n = 0; n < 6; n++) {
    if (n % 2 === 0) well(5000);
    refuse(80, n);
    b.check(10);
  }
  t.deepEqual(causes(), []);
  b.rig.finish(t);
});

test('without health failures are counted, and nothing follows', (t) => {
  const { b, refuse, causes, failures } = seldom(undefined);
  for (let n = 0; n < 10; n++) refuse(80, n);
  t.deepEqual(b.check(1000), []);
  t.deepEqual([causes(), failures()], [[], 10]);
  b.rig.finish(t);
});

test('a client whose SYN comes again after seconds has not been answered: a check at once decides', (t) => {
  const { b, causes } = seldom({ ...HEALTH, interval: 600_000, timeout: 1000, failures: 2 });
  b.feed([answer(b.check(1000)[0]!.bytes, { flags: SYN | ACK })]);
  for (let i = 0; i < 10; i++) b.one(client(80, SYN, 1));
  t.deepEqual(b.check(100), [], 'at once it says nothing');
  const unanswered = (): Uint8Array => {
    for (const wait of [2000, 4000]) {
      t.deepEqual(b.check(wait), []);
      b.one(client(80, SYN, 1));
    }
    const [sent] = b.check(100);
    return sent!.bytes;
  };
  b.feed([answer(unanswered(), { flags: SYN | ACK })]);
  b.check(2000);
  t.deepEqual(causes(), [], 'it may have been the client, whom nobody can answer');
  b.one(client(80, SYN, 1));
  t.deepEqual(b.check(100), [], 'as many again are needed for another one');
  b.check(600_000);
  b.check(1000);
  t.deepEqual(causes(), [], 'the next one decides nothing by itself');
  b.feed([answer(b.check(600_000)[0]!.bytes, { flags: SYN | ACK })]);
  unanswered();
  b.check(1000);
  b.check(0);
  t.deepEqual(causes(), [CONNECTIONS_FAILED]);
  b.rig.finish(t);
});

test('what is found out outlasts an intent that does not know of it; another check begins anew', (t) => {
  const { b, syn, isUp, told } = rigOf({ ...HEALTH, failures: 1 });
  const of = (health: HealthIntent | undefined, alive: boolean) => [
    service({ backends: [backend(1, { alive })], ...(health && { health }) }),
  ];
  b.feed([answer(syn(), { flags: RST | ACK })]);
  t.deepEqual(told(), [WAS_RESET]);
  b.set(of({ ...HEALTH, failures: 1 }, true));
  t.false(isUp());
  b.feed([answer(syn(), { flags: SYN | ACK })]);
  b.set(of({ ...HEALTH, failures: 2 }, false));
  t.false(isUp());
  b.feed([answer(syn(), { flags: SYN | ACK })]);
  t.false(isUp(), 'one success of the check before counts no more');
  b.feed([answer(syn(), { flags: SYN | ACK })]);
  t.true(isUp());
  b.set(of({ ...HEALTH, failures: 2 }, false));
  t.true(isUp());
  b.set(of(undefined, false));
  t.false(isUp());
  t.deepEqual(b.check(10_000), []);
  b.rig.finish(t);
});

test('time in which the engine did not run is nobody’s silence', (t) => {
  const { b, syn, told } = rigOf({ ...HEALTH, interval: 20_000, failures: 1 });
  const first = syn();
  t.deepEqual(b.check(5000, 4800), [], 'not even again');
  t.deepEqual(b.check(300)[0]!.bytes, first);
  b.feed([answer(first, { flags: SYN | ACK })]);
  t.deepEqual(told(), []);
  t.is(b.check(20_000).length, 1);
  b.check(9900, 9000);
  t.deepEqual(told(), []);
  b.check(100);
  t.deepEqual(told(), [SILENT]);
  b.rig.finish(t);
});

test('a check whose SYN finds no slot has not begun', (t) => {
  const { b, told } = rigOf({ ...HEALTH, failures: 1 });
  const { memory } = b.rig;
  const taken: number[] = [];
  for (let frame = memory.allocSmall(); frame !== NO_FRAME; frame = memory.allocSmall()) taken.push(frame);
  t.deepEqual(b.check(2000), []);
  t.deepEqual(b.check(2000), []);
  for (const frame of taken) memory.free(frame);
  const [sent] = b.check(0);
  b.feed([answer(sent!.bytes, { flags: SYN | ACK })]);
  b.check(1000);
  t.deepEqual(told(), []);
  b.rig.finish(t);
});

test('a service that goes takes its checks with it', (t) => {
  const { b, syn } = rigOf({ ...HEALTH, failures: 1 });
  syn();
  b.set([]);
  t.deepEqual(
    b.check(5000).map(({ bytes }) => flagsOf(bytes)),
    [RST | ACK],
    'what may have been opened',
  );
  t.deepEqual(b.check(5000), []);
  t.deepEqual(b.changes, []);
  b.rig.finish(t);
});

test('where more are to be checked than can be at once, all get their turn', (t) => {
  const backends = Array.from({ length: 1000 }, (_, i) => ({
    ...backend(1, { id: i }),
    address: Uint8Array.of(10, 1, i >>> 8, i),
  }));
  const services = [1, 2, 3].map((id) =>
    service({
      id,
      address: Uint8Array.of(10, 0, 9, 100 + id),
      health: { ...HEALTH, interval: 1000 },
      backends: backends.map((one) => ({ ...one, id: id * 1000 + one.id })),
    }),
  );
  const b = new BalancerRig(services);
  const asked = new Set<string>();
  // Each time all of them are due.
  const rounds = [1, 2, 3].map(() => {
    const sent = b.check(1000).filter(({ bytes }) => flagsOf(bytes) === SYN);
    for (const { bytes } of sent) asked.add(bytes.slice(26, 34).join());
    return sent.length;
  });
  t.deepEqual(rounds, [1024, 1024, 1024]);
  t.is(asked.size, 3000);
  b.rig.finish(t);
});
