/** Who a connection is taken for: over the ports of one that has ended, by another service, to oneself, chosen elsewhere. */
import test from 'ava';
import type { ServiceIntent } from '../../../engine/intent.js';
import { REMOTE } from '../../../engine/memory/frames.js';
import { BalancerRig, backend, CLIENT, service, VIP } from '../../support/balancer.js';
import { BalancerRigV6, CLIENT6, service6 } from '../../support/balancer6.js';
import { ack, backendOf, close, open, syn, tcp } from '../../support/connections.js';
import { ip } from '../../support/frames.js';
import { ACK, answerTo, ends, RST, SYN } from '../../support/nat.js';
import { packetV6 } from '../../support/nat6.js';

const of = (more: Partial<ServiceIntent>, ...backends: ReturnType<typeof backend>[]) =>
  service({ backends, ...more });
const counts = (b: BalancerRig, id: number) => {
  const { active, inactive, flows, failures } = b.services.counts().find((one) => one.id === id)!;
  return { active, inactive, flows, failures };
};

for (const [what, end] of [
  ['closed', (b: BalancerRig, request: Uint8Array) => close(b, request)],
  ['reset', (b: BalancerRig) => void b.one(tcp(RST))],
] as const)
  test(`a connection over the ports of one that was ${what} is a new one: scheduled, counted, not for a drained backend`, (t) => {
    const both = (weight: number) => of({ scheduler: 'lc' }, backend(1, { weight }), backend(2));
    const b = new BalancerRig([both(1)]);
    const first = backendOf(open(b));
    t.is(first, 2);
    end(b, b.one(ack()));
    t.is(b.flows.size, 1);
    b.one(syn(4001, { source: '10.0.9.51' }));
    const again = open(b);
    t.is(backendOf(again), 2, 'of equals the last');
    t.deepEqual([b.flows.size, counts(b, 2).flows, counts(b, 2).active], [2, 2, 1]);
    end(b, again);
    b.set([of({ scheduler: 'lc' }, backend(1), backend(2, { weight: 0 }))]);
    const other = open(b);
    t.is(backendOf(other), 1);
    t.is(ends(b.one(answerTo(other))), `${VIP}:80 > ${CLIENT}:4000`);
    t.deepEqual([counts(b, 1).active, counts(b, 2).inactive], [1, 0]);
    b.rig.finish(t);
  });

test('a caller that is its own backend: both of its flows are as old, and as far, as the connection', (t) => {
  const b = new BalancerRig([of({}, backend(1))]);
  const own = { source: '10.0.9.1' };
  const request = open(b, 4000, own);
  t.is(b.flows.size, 2);
  // A server that speaks when it is spoken to, and nobody speaks for longer than a connection may take to open.
  b.age(1500);
  t.deepEqual([b.flows.size, counts(b, 1).active], [2, 1]);
  t.is(ends(b.one(answerTo(request, ACK))), `${VIP}:80 > 10.0.9.1:4000`);
  b.one(tcp(RST, 4000, own));
  t.deepEqual([counts(b, 1).active, counts(b, 1).inactive], [0, 1]);
  const again = open(b, 4000, own);
  t.is(ends(again), ends(request), 'the ports are free');
  b.one(tcp(RST, 4000, own));
  t.deepEqual(b.age(1741), [], 'nobody waits');
  t.is(b.flows.size, 0);
  const refused = b.one(syn(4001, own));
  b.one(answerTo(refused, RST | ACK));
  b.age(2000);
  t.deepEqual([b.flows.size, counts(b, 1)], [0, { active: 0, inactive: 0, flows: 3, failures: 1 }]);
  b.rig.finish(t);
});

for (const scheduler of ['rr', 'wrr', 'lc', 'wlc', 'sh', 'maglev'] as const)
  test(`${scheduler}: a client that has the same connection with a backend by another service gets another one`, (t) => {
    const shared = [1, 2, 3, 4].map((n) => backend(n));
    const again = [1, 2, 3, 4].map((n) => backend(10 + n, { address: ip(`10.0.9.${n}`) }));
    const to = { destination: '10.0.9.101' };
    const other = service({ id: 2, scheduler, address: ip(to.destination), backends: again });
    const b = new BalancerRig([of({ scheduler }, ...shared), other]);
    b.services.schedulers.rebuild(1e9);
    for (let port = 4000; port < 4010; port++) {
      const first = b.one(syn(port));
      const second = b.one(syn(port, to));
      t.not(backendOf(second), backendOf(first));
      t.is(ends(b.one(answerTo(second, SYN | ACK))), `${to.destination}:80 > ${CLIENT}:${port}`);
    }
    b.rig.finish(t);
  });

test('a connection that has ended stands in the way of none by another service', (t) => {
  const to = { destination: '10.0.9.101' };
  const other = service({
    id: 2,
    address: ip(to.destination),
    backends: [backend(7, { address: ip('10.0.9.1') })],
  });
  const b = new BalancerRig([of({}, backend(1)), other]);
  close(b, open(b));
  const second = open(b, 4000, to);
  t.is(ends(b.one(answerTo(second, ACK))), `${to.destination}:80 > ${CLIENT}:4000`);
  t.deepEqual([b.flows.size, counts(b, 1).inactive, counts(b, 7).active], [1, 0, 1]);
  b.rig.finish(t);
});

test('a backend that lives again before all that it had has ended keeps what it gets then', (t) => {
  const other = (alive: boolean) => backend(2, { weight: 0, alive });
  const b = new BalancerRig([of({}, backend(1), other(true))], 4000);
  for (let port = 1; port <= 300; port++) b.one(syn(port));
  b.set([of({}, backend(1, { alive: false }), other(true))]);
  t.true(b.balancer.sweep());
  t.is(b.caught().length, 512, 'both ends are asked');
  t.is(b.flows.size, 300 - 256);
  b.set([of({}, backend(1), other(true))]);
  const opened = open(b, 2000);
  b.set([of({}, backend(1), other(false))]);
  b.age(1001);
  t.is(ends(b.one(ack(2000))), ends(opened));
  t.is(counts(b, 1).active, 1);
  b.rig.finish(t);
});

test('what another host has sent to a backend of its choice by a mark is not balanced again', (t) => {
  const b = new BalancerRig([of({ mark: 300 }, backend(1), backend(2))]);
  const chosen = syn(4000, { destination: '10.0.9.1' });
  t.deepEqual(b.one(chosen, { mark: 300, ingress: REMOTE | 1 }), chosen);
  t.is(b.flows.size, 0);
  const called = syn(4001, { destination: '10.0.9.200' });
  t.not(backendOf(b.one(called, { mark: 300, ingress: REMOTE | 1 })), 200, 'of a host without services');
  b.one(chosen, { mark: 300 });
  t.is(b.flows.size, 2, 'a call from here to a backend itself is one to the service');
  b.rig.finish(t);
});

test('what another host has sent to a backend of its choice by a mark is not balanced again, over IPv6', (t) => {
  const b = new BalancerRigV6([service6({ mark: 300 })]);
  const chosen = packetV6({ source: CLIENT6, destination: 'fd00:9::1' });
  t.deepEqual(b.one(chosen, { mark: 300, ingress: REMOTE | 1 }), chosen);
  t.is(b.flows.size, 0);
  b.one(chosen, { mark: 300 });
  t.is(b.flows.size, 1);
  b.rig.finish(t);
});
