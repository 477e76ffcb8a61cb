/** RFC 5508, requirement by requirement; errors with what they carry, whole, cut short and forged. */
import test from 'ava';
import {
  ACK,
  answerTo,
  badChecksums,
  EXTERNAL,
  ends,
  ICMP,
  INSIDE,
  icmpError,
  identifier,
  NatRig,
  type Packet,
  packet,
  REMOTE,
  RST,
  SCTP,
  SYN,
  TCP,
  UDP,
} from '../../support/nat.js';

const ping = (more: Packet = {}): Uint8Array => packet({ protocol: ICMP, sourcePort: 40000, ...more });
/** The carried packet as a frame of its own. */
const carriedBy = (frame: Uint8Array): Uint8Array =>
  Uint8Array.from([...frame.slice(0, 14), ...frame.slice(42)]);

test('RFC 5508, REQ-1: queries from inside pass, and their replies', (t) => {
  const n = new NatRig();
  for (const icmpType of [8, 13]) {
    const sent = ping({ icmpType });
    const outside = n.out(sent);
    t.is(ends(outside), `${EXTERNAL} > ${REMOTE} id 40000`);
    t.deepEqual(badChecksums(outside), []);
    t.deepEqual(n.in(answerTo(outside)), answerTo(sent));
  }
});

test('RFC 5508, REQ-1a: the identifier does not depend on who is asked, and stands for one endpoint', (t) => {
  const n = new NatRig();
  const other = '198.51.100.8';
  t.is(identifier(n.out(ping())), identifier(n.out(ping({ destination: other }))));
  const second = n.out(ping({ source: '10.0.0.2' }));
  t.not(identifier(second), 40000);
  t.is(ends(n.in(answerTo(second))), `${REMOTE} > 10.0.0.2 id 40000`);
});

test('RFC 5508, REQ-2: a query is remembered for sixty seconds', (t) => {
  const n = new NatRig();
  const outside = n.out(ping());
  n.pass(59);
  n.in(answerTo(outside));
  n.pass(59);
  t.is(n.flows, 1);
  n.pass(1);
  t.is(n.refused(true, answerTo(outside)), 'no-flow');
});

test('queries from outside, replies nobody asked for and other messages are dropped by reason', (t) => {
  const n = new NatRig();
  n.out(ping());
  const from = (icmpType: number, sourcePort = 40000): string =>
    n.refused(true, ping({ icmpType, sourcePort, source: REMOTE, destination: EXTERNAL }));
  t.is(from(8), 'icmp-type');
  t.is(from(0, 40002), 'no-flow');
  for (const icmpType of [5, 9, 10, 15, 17, 42]) {
    t.is(from(icmpType), 'icmp-type');
    t.is(n.refused(false, ping({ icmpType })), 'icmp-type');
  }
});

test('RFC 5508, REQ-3: an error whose checksum is wrong is dropped', (t) => {
  const n = new NatRig();
  const error = icmpError(n.out(packet()), { to: EXTERNAL });
  error[37]! ^= 1;
  t.is(n.refused(true, error), 'icmp-checksum');
});

test('RFC 5508, REQ-3a: so is one that carries an IP header whose checksum is wrong', (t) => {
  const n = new NatRig();
  const outside = n.out(packet());
  outside[24]! ^= 1;
  t.is(n.refused(true, icmpError(outside, { to: EXTERNAL })), 'icmp-checksum');
});

test('RFC 5508, REQ-3b: options of the carried IP header are skipped', (t) => {
  const n = new NatRig();
  const options = Uint8Array.of(7, 7, 4, 192, 0, 2, 1, 0);
  const sent = packet({ options });
  const frame = n.in(icmpError(n.out(sent), { to: EXTERNAL }));
  t.deepEqual(carriedBy(frame).slice(14), sent.slice(14));
});

test('RFC 5508, REQ-3c: the carried transport checksum is not looked at, and mended all the same', (t) => {
  const n = new NatRig();
  const sent = packet();
  sent[40]! ^= 0x55;
  const frame = n.in(icmpError(n.out(sent), { to: EXTERNAL }));
  t.deepEqual(carriedBy(frame).slice(14), sent.slice(14));
});

test('RFC 5508, REQ-3d: extensions behind the carried packet pass (RFC 4884)', (t) => {
  const n = new NatRig();
  const outside = n.out(packet());
  const padded = Uint8Array.from([
    ...outside,
    ...new Uint8Array(128 - (outside.length - 14)),
    0x20,
    0,
    0,
    0,
    0,
    8,
    1,
    1,
    0,
    1,
    2,
    3,
  ]);
  const frame = n.in(icmpError(padded, { to: EXTERNAL, type: 11 }));
  t.deepEqual(frame.slice(-12), padded.slice(-12));
  t.deepEqual(badChecksums(frame), []);
});

const CARRIED: readonly [name: string, sent: Packet][] = [
  ['UDP', { protocol: UDP }],
  ['UDP without checksum', { protocol: UDP, noChecksum: true }],
  ['TCP', { protocol: TCP, flags: SYN }],
  ['ICMP', { protocol: ICMP }],
  ['SCTP', { protocol: SCTP }],
  ['UDP-Lite', { protocol: 136 }],
  ['DCCP', { protocol: 33 }],
  ['GRE', { protocol: 47 }],
];

for (const [name, sent] of CARRIED)
  test(`RFC 5508, REQ-4: an error from outside about ${name} carries inside what was sent there, whole or cut short`, (t) => {
    const n = new NatRig();
    const frame = packet(sent);
    const outside = n.out(frame);
    for (const carried of [8, 12, 18, 19, 20, 1000]) {
      const error = n.in(icmpError(outside, { to: EXTERNAL, type: 11, code: 0, carried }));
      t.is(ends(error).split(' id')[0], `192.0.2.254 > ${INSIDE}`, 'REQ-4c');
      t.deepEqual([error[34], error[35]], [11, 0], 'REQ-4b');
      t.deepEqual(badChecksums(error), []);
      t.deepEqual(carriedBy(error).slice(14), frame.slice(14, 34 + carried), 'REQ-4a');
    }
    t.is(n.refused(true, icmpError(outside, { to: EXTERNAL, carried: 7 })), 'icmp-malformed');
  });

for (const [name, sent] of CARRIED)
  test(`RFC 5508, REQ-5: an error from inside about ${name} carries outside what came from there`, (t) => {
    const n = new NatRig();
    const answer = answerTo(n.out(packet(sent)));
    const inside = n.in(answer);
    for (const carried of [8, 18, 1000]) {
      const error = n.out(icmpError(inside, { from: INSIDE, to: REMOTE, code: 3, carried }));
      t.is(ends(error).split(' id')[0], `${EXTERNAL} > ${REMOTE}`, 'REQ-5c');
      t.deepEqual([error[34], error[35]], [3, 3]);
      t.deepEqual(badChecksums(error), []);
      t.deepEqual(carriedBy(error).slice(14), answer.slice(14, 34 + carried));
    }
  });

test('RFC 5508, REQ-5: a router inside is hidden behind the external address too', (t) => {
  const n = new NatRig();
  const inside = n.in(answerTo(n.out(packet())));
  t.is(
    ends(n.out(icmpError(inside, { from: '10.9.9.9', to: REMOTE }))).split(' id')[0],
    `${EXTERNAL} > ${REMOTE}`,
  );
});

test('RFC 5508, REQ-6: an error neither refreshes nor ends a flow, nor makes one', (t) => {
  const n = new NatRig();
  const outside = n.out(packet({ protocol: TCP, flags: SYN }));
  const inside = n.in(answerTo(outside, SYN | ACK));
  const before = n.tables.flows.words.slice();
  n.in(icmpError(outside, { to: EXTERNAL }));
  n.out(icmpError(inside, { from: INSIDE, to: REMOTE }));
  t.is(
    n.refused(true, icmpError(packet({ source: EXTERNAL, sourcePort: 99 }), { to: EXTERNAL })),
    'icmp-no-flow',
  );
  t.deepEqual(n.tables.flows.words, before);
  t.is(n.flows, 1);
});

test('an error about a flow of another network, of the wrong side or about an error finds no flow', (t) => {
  const n = new NatRig();
  const outside = n.out(packet());
  const inside = n.in(answerTo(outside));
  t.is(n.refused(false, icmpError(inside, { to: REMOTE }), { domain: 1 }), 'icmp-no-flow');
  t.is(n.refused(true, icmpError(inside, { to: EXTERNAL })), 'icmp-no-flow');
  t.is(n.refused(false, icmpError(outside, { to: REMOTE })), 'icmp-no-flow');
  const nested = icmpError(icmpError(outside, { from: EXTERNAL, to: REMOTE }), { to: EXTERNAL });
  t.is(n.refused(true, nested), 'icmp-no-flow');
});

test('an error about a later fragment tells no flow; about a first one it does', (t) => {
  const n = new NatRig();
  const outside = n.out(packet({ fragment: 0x2000, content: new Uint8Array(16) }));
  t.is(n.refused(true, icmpError(outside, { to: EXTERNAL })), 'passed');
  const later = packet({ source: EXTERNAL, fragment: 100 });
  t.is(n.refused(true, icmpError(later, { to: EXTERNAL })), 'icmp-no-flow');
});

test('RFC 5508, REQ-8: who finds no port or no flow inside is told; who asks from outside is not (REQ-9)', (t) => {
  const ports = new NatRig({ firstPort: 40000, lastPort: 40001 });
  for (const sourcePort of [1, 2]) ports.out(packet({ sourcePort }));
  t.is(ports.refused(false, packet({ sourcePort: 3 })), 'no-port');
  t.is(ports.shortages, 1);
  t.is(ports.refused(true, packet({ source: REMOTE, destination: EXTERNAL })), 'not-published');
  t.is(ports.refused(false, packet({ protocol: TCP, flags: RST })), 'no-flow');
  t.is(ports.shortages, 1);
  const flows = new NatRig({ maxFlows: 1 });
  flows.out(packet({ protocol: TCP, flags: SYN }));
  flows.in(answerTo(flows.out(packet({ protocol: TCP, flags: SYN })), SYN | ACK));
  flows.out(packet({ protocol: TCP }));
  t.is(flows.refused(false, packet()), 'table-full');
  t.is(flows.shortages, 1);
});

test('RFC 5508, REQ-10: the types of error that there are pass, redirects do not', (t) => {
  const n = new NatRig();
  const outside = n.out(packet());
  for (const type of [3, 4, 11, 12])
    t.is(n.refused(true, icmpError(outside, { to: EXTERNAL, type })), 'passed');
  t.is(n.refused(true, icmpError(outside, { to: EXTERNAL, type: 5 })), 'icmp-type');
});

test('errors cut anywhere, and with every byte changed once, crash nothing and lose no slot', (t) => {
  const n = new NatRig();
  const outside = n.out(packet({ protocol: TCP }));
  const error = icmpError(outside, { to: EXTERNAL });
  for (let length = 0; length <= error.length; length++) n.feed(true, [error.slice(0, length)]);
  for (let at = 0; at < error.length; at++) {
    for (const value of [0, 1, 0x7f, 0xff]) {
      const edited = error.slice();
      edited[at] = value;
      n.feed(true, [edited]);
      n.feed(false, [edited]);
    }
  }
  n.finish(t);
});

test('padding behind an error is taken off, and is none of its checksum', (t) => {
  const n = new NatRig();
  const error = icmpError(n.out(packet()), { to: EXTERNAL });
  t.is(n.in(Uint8Array.from([...error, 1, 2, 3])).length, error.length);
});

test('an echo of zeros alone has a checksum of ones, which RFC 1624 cannot come to', (t) => {
  const n = new NatRig({ firstPort: 5, lastPort: 5 });
  const zeros = ping({ sourcePort: 0, icmpType: 8, content: new Uint8Array(8) });
  // Sequence zero as well.
  zeros.set([0xf7, 0xff, 0, 0, 0, 0], 36);
  t.deepEqual(badChecksums(zeros), []);
  const outside = n.out(zeros);
  t.is(identifier(outside), 5);
  const reply = answerTo(outside);
  const inside = n.in(reply);
  t.deepEqual(inside.slice(34, 42), Uint8Array.of(0, 0, 0xff, 0xff, 0, 0, 0, 0));
  t.deepEqual(badChecksums(inside), []);
});
