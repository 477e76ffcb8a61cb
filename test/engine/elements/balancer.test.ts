import test from 'ava';
import { BalancerRig, backend, CLIENT, service, VIP } from '../../support/balancer.js';
import { station } from '../../support/frames.js';
import { ACK, answerTo, badChecksums, ends, packet, RST, SYN, TCP } from '../../support/nat.js';

const syn = (sourcePort: number, more = {}) =>
  packet({
    protocol: TCP,
    flags: SYN,
    source: CLIENT,
    destination: VIP,
    sourcePort,
    destinationPort: 80,
    ...more,
  });
const ack = (sourcePort: number, more = {}) => syn(sourcePort, { flags: ACK, ...more });

test('a connection goes to one backend and comes back as from the service, every checksum right', (t) => {
  const b = new BalancerRig();
  const request = b.one(syn(4000));
  t.is(ends(request), `${CLIENT}:4000 > 10.0.9.3:80`);
  t.deepEqual(request.slice(0, 6), station(3));
  t.deepEqual(badChecksums(request), []);
  const answer = b.one(answerTo(request, SYN | ACK));
  t.is(ends(answer), `${VIP}:80 > ${CLIENT}:4000`);
  t.deepEqual(badChecksums(answer), []);
  t.is(ends(b.one(ack(4000))), `${CLIENT}:4000 > 10.0.9.3:80`);
  t.is(ends(b.one(syn(4001))), `${CLIENT}:4001 > 10.0.9.2:80`);
  t.is(b.flows.size, 2);
  b.rig.finish(t);
});

test('a segment of no connection is answered by an RST that its sender must believe', (t) => {
  const b = new BalancerRig();
  const reset = b.one(ack(4000));
  t.is(ends(reset), `${VIP}:80 > ${CLIENT}:4000`);
  t.is(reset[47], RST);
  t.deepEqual(badChecksums(reset), []);
  b.rig.finish(t);
});

test('a caller that is its own backend sees the virtual address, both ways', (t) => {
  const b = new BalancerRig([service({ backends: [backend(1)] })]);
  const own = { source: '10.0.9.1' };
  const request = b.one(syn(4000, own));
  t.is(ends(request), `${VIP}:4000 > 10.0.9.1:80`);
  const answer = b.one(answerTo(request, SYN | ACK));
  t.is(ends(answer), `${VIP}:80 > 10.0.9.1:4000`);
  t.deepEqual([request, answer].flatMap(badChecksums), []);
  t.is(ends(b.one(ack(4000, own))), `${VIP}:4000 > 10.0.9.1:80`);
  b.rig.finish(t);
});

test('when a backend is gone, both ends of its connections are asked, and reset by what they answer', (t) => {
  const b = new BalancerRig([service({ backends: [backend(1)] })]);
  const request = b.one(syn(4000));
  b.one(answerTo(request, SYN | ACK));
  b.one(ack(4000));
  b.set([service({ backends: [] })]);
  const asked = b.age(1001).map(({ bytes }) => ends(bytes));
  t.deepEqual(asked, [`${VIP}:80 > ${CLIENT}:4000`, `${CLIENT}:4000 > 10.0.9.1:80`]);
  t.is(b.flows.size, 0);
  const reset = b.one(ack(4000));
  t.deepEqual([ends(reset), reset[47]], [`${VIP}:80 > ${CLIENT}:4000`, RST]);
  t.deepEqual(
    b.feed([syn(4001)]).map(({ bytes }) => bytes[23]),
    [1],
    'nobody is there: host unreachable',
  );
  b.rig.finish(t);
});
