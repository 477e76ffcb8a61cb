/** Hairpinning: RFC 4787, REQ-9; RFC 5382, REQ-8; RFC 5508, REQ-7. */
import test from 'ava';
import { BATCH_SIZE } from '../../../engine/memory/frames.js';
import {
  ACK,
  answerTo,
  badChecksums,
  EXTERNAL,
  ends,
  ICMP,
  icmpError,
  NatRig,
  packet,
  REMOTE,
  SYN,
  sourcePort,
  TCP,
  UDP,
} from '../../support/nat.js';

const SERVER = '10.0.0.9';

for (const mapping of ['endpoint-independent', 'endpoint-dependent'] as const)
  for (const [protocol, requirement] of [
    [UDP, 'RFC 4787, REQ-9 and REQ-9a'],
    [TCP, 'RFC 5382, REQ-8'],
  ] as const)
    test(`${requirement}: another endpoint reaches what is published, and sees external addresses (${mapping})`, (t) => {
      const n = new NatRig({ mapping });
      n.publish(8080, 80, { address: SERVER, domain: 3, protocol });
      const call = packet({
        protocol,
        flags: SYN,
        sourcePort: 40000,
        destination: EXTERNAL,
        destinationPort: 8080,
      });
      const { outside, inside } = n.feed(false, [call], { domain: 1 });
      t.deepEqual(outside, []);
      t.is(inside.length, 1);
      const { bytes, domain } = inside[0]!;
      t.is(ends(bytes), `${EXTERNAL}:40000 > ${SERVER}:80`);
      t.is(domain, 3);
      t.deepEqual(badChecksums(bytes), []);
      const answer = n.feed(false, [protocol === TCP ? answerTo(bytes, SYN | ACK) : answerTo(bytes)], {
        domain: 3,
      });
      t.deepEqual(answer.outside, []);
      t.is(ends(answer.inside[0]!.bytes), `${EXTERNAL}:8080 > 10.0.0.1:40000`);
      t.is(answer.inside[0]!.domain, 1);
      t.deepEqual(badChecksums(answer.inside[0]!.bytes), []);
      t.is(n.rig.counter('nat', 'hairpinned'), 2);
      n.finish(t);
    });

test('an endpoint reaches what it publishes itself', (t) => {
  const n = new NatRig();
  n.publish(8080, 80, { address: SERVER });
  const call = packet({
    source: SERVER,
    sourcePort: 5000,
    destination: EXTERNAL,
    destinationPort: 8080,
    protocol: TCP,
    flags: SYN,
  });
  const there = n.feed(false, [call]).inside[0]!.bytes;
  const port = sourcePort(there);
  t.is(ends(there), `${EXTERNAL}:${port} > ${SERVER}:80`);
  t.is(
    ends(n.feed(false, [answerTo(there, SYN | ACK)]).inside[0]!.bytes),
    `${EXTERNAL}:8080 > ${SERVER}:5000`,
  );
});

test('RFC 4787, REQ-9: mapped endpoints reach each other once both have spoken, as filtering has it', (t) => {
  const n = new NatRig();
  const ports = ['10.0.0.1', '10.0.0.2'].map((source) =>
    sourcePort(n.out(packet({ source, sourcePort: 40000, destination: REMOTE }))),
  );
  const call = (i: number): Uint8Array =>
    packet({
      source: `10.0.0.${i + 1}`,
      sourcePort: 40000,
      destination: EXTERNAL,
      destinationPort: ports[1 - i]!,
    });
  t.is(n.refused(false, call(0)), 'filtered');
  const [caught] = n.feed(false, [call(1)]).inside;
  t.is(ends(caught!.bytes), `${EXTERNAL}:${ports[1]} > 10.0.0.1:40000`);
  t.is(ends(n.feed(false, [call(0)]).inside[0]!.bytes), `${EXTERNAL}:${ports[0]} > 10.0.0.2:40000`);
});

test('RFC 5508, REQ-7: an error about what turned back turns back, and reaches who sent it', (t) => {
  const n = new NatRig();
  n.publish(8080, 80, { address: SERVER, protocol: UDP, domain: 3 });
  const call = packet({ sourcePort: 40000, destination: EXTERNAL, destinationPort: 8080 });
  const there = n.feed(false, [call], { domain: 1 }).inside[0]!.bytes;
  const { outside, inside } = n.feed(false, [icmpError(there, { from: SERVER, to: EXTERNAL, code: 3 })], {
    domain: 3,
  });
  t.deepEqual(outside, []);
  t.is(inside[0]!.domain, 1);
  t.is(ends(inside[0]!.bytes).split(' id')[0], `${EXTERNAL} > 10.0.0.1`);
  t.deepEqual(inside[0]!.bytes.slice(42), call.slice(14));
  t.deepEqual(badChecksums(inside[0]!.bytes), []);
});

test('a ping of the external address is not the NAT’s to answer', (t) => {
  const n = new NatRig();
  t.is(n.refused(false, packet({ protocol: ICMP, destination: EXTERNAL })), 'icmp-type');
});

test('more turns back from one batch than a batch holds: nothing is mixed up', (t) => {
  const n = new NatRig();
  n.publish(8080, 80, { address: SERVER, protocol: UDP });
  const datagram = (id: number): Uint8Array[] => {
    const common = {
      sourcePort: 40000,
      destination: EXTERNAL,
      destinationPort: 8080,
      id,
      content: new Uint8Array(16),
    };
    return [packet({ ...common, fragment: 0x2000 }), packet({ ...common, fragment: 3 })];
  };
  // Sixteen that wait for the last of the batch, behind 255 that turn back at once.
  const waiting = Array.from({ length: 16 }, () => datagram(9)[1]!);
  t.deepEqual(n.feed(false, waiting), { outside: [], inside: [] });
  const calls = Array.from({ length: BATCH_SIZE - 1 }, (_, i) =>
    packet({ source: `10.0.1.${i}`, sourcePort: 50000 + i, destination: EXTERNAL, destinationPort: 8080 }),
  );
  const { inside, outside } = n.feed(false, [...calls, datagram(9)[0]!]);
  t.is(outside.length, 0);
  t.is(inside.length, BATCH_SIZE + 16);
  for (const { bytes } of inside) t.regex(ends(bytes), /^203\.0\.113\.1.* > 10\.0\.0\.9/);
  t.deepEqual(
    inside.slice(0, BATCH_SIZE).flatMap(({ bytes }) => badChecksums(bytes)),
    [],
  );
  n.finish(t);
});
