/** Floods: established connections go on, memory is what it was, and whatever is refused is counted. */
import test from 'ava';
import { BalancerRig, backend, CLIENT, service, VIP } from '../../support/balancer.js';
import { ack, backendOf, open, syn, tcp, udp } from '../../support/connections.js';
import { be16, payload, slowSum } from '../../support/frames.js';
import { ACK, answerTo, ends, framed, RST, SYN, UDP } from '../../support/nat.js';

const BATCH = 250;

/** Feeds copies of a frame, each with another source, without keeping what leaves. */
function flood(b: BalancerRig, frame: Uint8Array, count: number, firstSource = 0): number {
  const frames = Array.from({ length: BATCH }, () => frame.slice());
  let left = 0;
  for (let source = firstSource; source < firstSource + count; source += BATCH) {
    for (let i = 0; i < BATCH; i++) {
      const one = frames[i]!;
      // 11.0.0.0 and on.
      one.set([11, (source + i) >>> 16, (source + i) >>> 8, source + i], 26);
      one.set([0, 0], 24);
      one.set(be16(~slowSum(one.subarray(14, 34)) & 0xffff), 24);
    }
    left += b.feed(frames).length;
  }
  return left;
}

const total = (b: BalancerRig, what: 'active' | 'inactive'): number =>
  b.services.counts().reduce((sum, one) => sum + one[what], 0);

test('a million spoofed SYNs leave established connections untouched, and the table as large as it was', (t) => {
  const b = new BalancerRig([service()], 20_000);
  const bytes = b.flows.bytes;
  const requests = Array.from({ length: 500 }, (_, i) => open(b, 4000 + i));
  const left = flood(b, syn(), 1_000_000);
  t.is(left, 1_000_000, 'each goes to a backend');
  t.is(b.flows.size, 20_000);
  t.is(b.flows.bytes, bytes);
  t.deepEqual([total(b, 'active'), total(b, 'inactive')], [500, 19_500]);
  t.is(b.rig.counter('balance', 'flows-evicted'), 1_000_000 - 19_500);
  requests.forEach((request, i) => {
    t.is(ends(b.one(ack(4000 + i))), ends(request));
    t.is(ends(b.one(answerTo(request, ACK))), `${VIP}:80 > ${CLIENT}:${4000 + i}`);
  });
  // Somebody new gets in all the same.
  t.true(backendOf(open(b, 6000)) <= 3);
  b.rig.finish(t);
});

test('SYNs that backends answer, and never hear of again, establish nothing', (t) => {
  const b = new BalancerRig([service({ backends: [backend(1)] })], 100);
  open(b);
  for (let i = 0; i < 500; i++) {
    const request = b.one(syn(5000 + i, { source: '11.0.0.1' }));
    b.one(answerTo(request, SYN | ACK));
  }
  t.deepEqual([total(b, 'active'), b.flows.size], [1, 100]);
  t.is(ends(b.one(ack())), `${CLIENT}:4000 > 10.0.9.1:80`);
  b.rig.finish(t);
});

test('a flood of UDP leaves those alone who are answered; with affinity too', (t) => {
  for (const affinity of [0, 600]) {
    const b = new BalancerRig([service({ affinity })], 1000);
    const requests = Array.from({ length: 100 }, (_, i) => b.one(udp(4000 + i, { source: `10.0.8.${i}` })));
    for (const request of requests) b.one(answerTo(request));
    const open1 = open(b);
    flood(b, udp(), 20_000);
    t.is(b.flows.size, 1000);
    for (const [i, request] of requests.entries())
      t.is(ends(b.one(udp(4000 + i, { source: `10.0.8.${i}` }))), ends(request));
    t.is(ends(b.one(ack())), ends(open1));
    b.rig.finish(t);
  }
});

test('a table full of what stays: new ones are dropped and counted', (t) => {
  const b = new BalancerRig([service()], 10);
  for (let i = 0; i < 10; i++) open(b, 4000 + i);
  t.deepEqual(b.feed([syn(5000), udp()]), []);
  t.deepEqual(b.drops(), { 'table-full': 2 });
  t.deepEqual([b.flows.size, total(b, 'active'), total(b, 'inactive')], [10, 10, 0]);
  b.rig.finish(t);
});

for (const capacity of [1, 2, 3])
  test(`a table of ${capacity}: a caller to itself, with affinity, gets all or nothing`, (t) => {
    const b = new BalancerRig([service({ affinity: 60, backends: [backend(1)] })], capacity);
    const out = b.feed([syn(4000, { source: '10.0.9.1' })]);
    t.is(out.length, capacity < 3 ? 0 : 1);
    if (capacity === 3) t.is(ends(out[0]!.bytes), `${VIP}:4000 > 10.0.9.1:80`);
    const next = b.one(syn(4001));
    t.is(ends(next), `${CLIENT}:4001 > 10.0.9.1:80`, 'a caller from elsewhere needs one');
    t.true(b.flows.size <= capacity);
    const { active, inactive } = b.services.counts()[0]!;
    t.true(active === 0 && inactive >= 1 && inactive <= 2);
    b.rig.finish(t);
  });

test('forged segments of a connection: an RST leaves it its time, a SYN changes nothing, strangers get RSTs', (t) => {
  const b = new BalancerRig([service()]);
  const request = open(b);
  b.one(syn());
  t.is(ends(b.one(ack())), ends(request));
  b.one(tcp(RST));
  t.is(ends(b.one(ack())), ends(request), 'the backend judges, by its number');
  b.age(1300);
  t.is(ends(b.one(ack())), ends(request));
  t.is(flood(b, ack(), 1000), 1000);
  t.deepEqual([b.flows.size, b.rig.counter('balance', 'resets')], [1, 1000]);
  t.is(flood(b, tcp(RST), 1000), 0);
  t.deepEqual(b.drops(), { 'no-flow': 1000 });
  b.rig.finish(t);
});

test('ICMP errors about refusals are few, however many are refused', (t) => {
  const b = new BalancerRig([service({ backends: [] })]);
  t.is(flood(b, udp(), 10_000), 50);
  t.deepEqual(b.drops(), { 'no-backend': 10_000 });
  b.rig.finish(t);
});

test('a bomb of fragments holds few frames, and harms no connection', (t) => {
  const b = new BalancerRig([service()]);
  const request = open(b);
  for (let i = 0; i < 2000; i++) {
    const from = `11.0.${i >>> 8}.${i & 255}`;
    const p = { source: from, destination: VIP, protocol: UDP, id: i, fragment: 100 };
    b.feed([framed(p, payload(64))]);
    t.true(b.rig.memory.inUse <= 128);
  }
  t.is(ends(b.one(ack())), ends(request));
  b.age(1010);
  t.is(b.drops()['fragment'], 2000);
  b.rig.finish(t);
});
