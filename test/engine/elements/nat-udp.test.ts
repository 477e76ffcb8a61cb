/** RFC 4787, requirement by requirement; those about fragments and hairpinning are in tests of their own. */
import test from 'ava';
import { NEW_OUT, TWO_SIDED } from '../../../engine/tables/connection.js';
import {
  answerTo,
  badChecksums,
  EXTERNAL,
  ends,
  ICMP,
  INSIDE,
  icmpError,
  NatRig,
  numbers,
  packet,
  REMOTE,
  sourcePort,
  TCP,
  UDP,
} from '../../support/nat.js';

const OTHER = '198.51.100.8';

test('a packet goes out under the external address and its answer comes back, every checksum right', (t) => {
  const n = new NatRig();
  const sent = packet({ sourcePort: 40000 });
  const outside = n.out(sent);
  t.is(ends(outside), `${EXTERNAL}:40000 > ${REMOTE}:53`);
  t.deepEqual(badChecksums(outside), []);
  const inside = n.in(answerTo(outside));
  t.deepEqual(inside, answerTo(sent));
  t.is(n.rig.counter('nat', 'flows-made'), 1);
  t.deepEqual([n.rig.counter('nat', 'out'), n.rig.counter('nat', 'in')], [1, 1]);
  n.finish(t);
});

test('RFC 4787, REQ-1: one mapping for an endpoint, whatever it talks to (endpoint-independent)', (t) => {
  const n = new NatRig();
  const ports = [REMOTE, OTHER].flatMap((destination) =>
    [53, 54].map((destinationPort) => sourcePort(n.out(packet({ destination, destinationPort })))),
  );
  t.is(new Set(ports).size, 1);
  t.is(n.flows, 4);
});

test('endpoint-dependent: a port is shared by flows to other ends, and by none to the same', (t) => {
  const n = new NatRig({ mapping: 'endpoint-dependent', firstPort: 40000, lastPort: 40001 });
  const from = (source: string, destination: string): string =>
    ends(n.out(packet({ source, destination, sourcePort: 40000 })));
  t.is(from('10.0.0.1', REMOTE), `${EXTERNAL}:40000 > ${REMOTE}:53`);
  t.is(from('10.0.0.2', OTHER), `${EXTERNAL}:40000 > ${OTHER}:53`);
  t.is(from('10.0.0.2', REMOTE), `${EXTERNAL}:40001 > ${REMOTE}:53`);
  t.is(n.refused(false, packet({ source: '10.0.0.3', sourcePort: 40000 })), 'no-port');
  // Answers find their way by the remote end.
  const answer = { source: OTHER, destination: EXTERNAL, sourcePort: 53, destinationPort: 40000 };
  t.is(ends(n.in(packet(answer))), `${OTHER}:53 > 10.0.0.2:40000`);
  t.is(n.refused(true, packet({ ...answer, sourcePort: 54 })), 'not-published');
});

for (const mapping of ['endpoint-independent', 'endpoint-dependent'] as const)
  test(`RFC 4787, REQ-3: ports are not overloaded; when none is left that is said (${mapping})`, (t) => {
    const n = new NatRig({ mapping, firstPort: 50000, lastPort: 50009 });
    const seen = new Set<number>();
    for (let i = 0; i < 10; i++)
      seen.add(sourcePort(n.out(packet({ source: `10.0.1.${i}`, sourcePort: 50000 }))));
    t.is(seen.size, 10);
    t.is(n.refused(false, packet({ source: '10.0.1.10', sourcePort: 50000 })), 'no-port');
    t.is(n.flows, 10);
    // Another protocol has ports of its own.
    t.is(sourcePort(n.out(packet({ protocol: TCP, source: '10.0.1.10', sourcePort: 50000 }))), 50000);
    n.finish(t);
  });

test('RFC 4787, REQ-3a: a source port below 1024 stays below, where such are given out', (t) => {
  const n = new NatRig({ firstPort: 1, lastPort: 65535 });
  t.is(sourcePort(n.out(packet({ sourcePort: 123 }))), 123);
  const second = sourcePort(n.out(packet({ source: '10.0.0.2', sourcePort: 123 })));
  t.true(second !== 123 && second < 1024 && second % 2 === 1, `${second}`);
  t.true(sourcePort(n.out(packet({ source: '10.0.0.2', sourcePort: 1024 }))) >= 1024);
});

test('RFC 4787, REQ-4: parity is kept', (t) => {
  const n = new NatRig();
  for (let i = 0; i < 40; i++) {
    const port = 2000 + i;
    t.is(sourcePort(n.out(packet({ sourcePort: port }))) % 2, port % 2);
  }
});

test('RFC 4787, REQ-5: a mapping lasts five minutes of silence, and can be configured', (t) => {
  const n = new NatRig();
  const outside = n.out(packet());
  n.pass(299);
  t.is(ends(n.in(answerTo(outside))), `${REMOTE}:53 > ${INSIDE}:4000`);
  n.pass(299);
  t.is(n.flows, 1);
  n.pass(1);
  t.is(n.flows, 0);
  t.is(n.rig.counter('nat', 'flows-expired'), 1);
  t.is(n.refused(true, answerTo(outside)), 'not-published');
  const seconds = { established: 7440, opening: 240, closing: 240, udp: 120, icmp: 60, other: 300 };
  const short = new NatRig({ timeouts: seconds });
  short.out(packet());
  short.pass(119);
  t.is(short.flows, 1);
  short.pass(1);
  t.is(short.flows, 0);
});

test('RFC 4787, REQ-6: packets from inside keep a mapping alive', (t) => {
  const n = new NatRig();
  const ports = new Set<number>();
  for (let i = 0; i < 5; i++) {
    ports.add(sourcePort(n.out(packet())));
    n.pass(290);
  }
  t.is(ports.size, 1);
  t.is(n.rig.counter('nat', 'flows-made'), 1);
});

test('RFC 4787, REQ-7: networks whose addresses overlap, or are those of outside, do not meet', (t) => {
  const n = new NatRig();
  const sources = [0, 1, 4095].map((domain) => {
    const outside = n.out(packet({ sourcePort: 40000 }), { domain });
    return { domain, outside };
  });
  t.is(new Set(sources.map(({ outside }) => sourcePort(outside))).size, 3);
  for (const { domain, outside } of sources) {
    const [caught] = n.feed(true, [answerTo(outside)], { domain: 77 }).inside;
    t.is(caught!.domain, domain);
    t.is(ends(caught!.bytes), `${REMOTE}:53 > ${INSIDE}:40000`);
  }
  // An inside host with an address of outside's.
  const odd = n.out(packet({ source: REMOTE, destination: OTHER, sourcePort: 41000 }));
  t.is(ends(n.in(answerTo(odd))), `${OTHER}:53 > ${REMOTE}:41000`);
});

test('RFC 4787, REQ-8: filtering is address-dependent', (t) => {
  const n = new NatRig();
  const port = sourcePort(n.out(packet()));
  const from = (source: string, sourcePort: number): string =>
    n.refused(true, packet({ source, destination: EXTERNAL, sourcePort, destinationPort: port }));
  t.is(from(REMOTE, 9999), 'passed', 'another port of who was talked to');
  t.is(from(OTHER, 53), 'filtered');
  t.is(
    n.refused(true, packet({ source: REMOTE, destination: EXTERNAL, destinationPort: port + 1 })),
    'not-published',
  );
  t.is(
    n.refused(true, packet({ source: REMOTE, destination: '203.0.113.2', destinationPort: port })),
    'not-published',
  );
  n.out(packet({ destination: OTHER, destinationPort: 1 }));
  t.is(from(OTHER, 53), 'passed', 'once it was talked to');
});

test('RFC 4787, REQ-10: payload is left alone, whatever it says', (t) => {
  const n = new NatRig();
  const content = new TextEncoder().encode(`PORT 10,0,0,1,15,160\r\nContact: <sip:a@${INSIDE}:4000>`);
  const outside = n.out(packet({ destinationPort: 5060, content }));
  t.deepEqual(outside.slice(-content.length), content);
});

test('RFC 4787, REQ-11: the same packets give the same mappings, also where they conflict', (t) => {
  const run = (): number[] => {
    const n = new NatRig({ random: numbers(7) });
    return Array.from({ length: 50 }, (_, i) =>
      sourcePort(n.out(packet({ source: `10.0.0.${i + 1}`, sourcePort: 40000 }))),
    );
  };
  t.deepEqual(run(), run());
});

test('RFC 4787, REQ-12: an ICMP error ends no mapping and does not prolong it', (t) => {
  const n = new NatRig();
  const outside = n.out(packet());
  n.pass(200);
  n.in(icmpError(outside, { to: EXTERNAL, code: 3 }));
  t.is(ends(n.in(answerTo(outside))), `${REMOTE}:53 > ${INSIDE}:4000`);
  const other = new NatRig();
  const sent = other.out(packet());
  other.pass(200);
  other.in(icmpError(sent, { to: EXTERNAL, code: 3 }));
  other.pass(100);
  t.is(other.flows, 0);
});

test('RFC 4787, REQ-12a: whoever sends an ICMP error, it passes', (t) => {
  const n = new NatRig();
  const outside = n.out(packet());
  for (const from of ['192.0.2.1', '8.8.8.8', REMOTE])
    t.is(ends(n.in(icmpError(outside, { from, to: EXTERNAL }))).split(' id')[0], `${from} > ${INSIDE}`);
});

test('UDP without checksum stays without, and one that comes to zero is sent as all ones', (t) => {
  const n = new NatRig();
  const outside = n.out(packet({ noChecksum: true }));
  t.deepEqual(outside.slice(40, 42), Uint8Array.of(0, 0));
  t.deepEqual(n.in(answerTo(outside)).slice(40, 42), Uint8Array.of(0, 0));
  let met = 0;
  // Two bytes of content take every value: among the checksums outside is the one that is zero.
  for (let value = 0; value < 65536; value++) {
    const frame = n.out(packet({ content: Uint8Array.of(value >>> 8, value) }));
    const sum = (frame[40]! << 8) | frame[41]!;
    if (sum === 0) t.fail(`content ${value} lost its checksum`);
    if (sum !== 0xffff) continue;
    met++;
    t.deepEqual(badChecksums(frame), []);
  }
  t.is(met, 1);
});

test('a flow is answered once the other side has spoken', (t) => {
  const n = new NatRig();
  const outside = n.out(packet());
  n.out(packet());
  t.deepEqual(n.states(), [NEW_OUT]);
  n.in(answerTo(outside));
  t.deepEqual(n.states(), [TWO_SIDED]);
  t.deepEqual(n.packetsOut(), [2]);
});

test('what is no IPv4, and what contradicts itself, is dropped by reason', (t) => {
  const n = new NatRig();
  const good = packet();
  const edit = (at: number, ...bytes: number[]): Uint8Array => {
    const frame = good.slice();
    frame.set(bytes, at);
    return frame;
  };
  t.is(n.refused(false, good.slice(0, 33)), 'not-ipv4');
  t.is(n.refused(false, edit(12, 0x86, 0xdd)), 'not-ipv4');
  t.is(n.refused(false, edit(14, 0x65)), 'malformed');
  t.is(n.refused(false, edit(14, 0x44)), 'malformed');
  t.is(n.refused(false, edit(14, 0x4f)), 'malformed');
  t.is(n.refused(false, edit(16, 0, 19)), 'malformed');
  t.is(n.refused(false, edit(16, 0x7f, 0xff)), 'malformed');
  t.is(n.refused(false, edit(16, 0, 27)), 'malformed');
  t.is(n.refused(false, edit(23, TCP)), 'malformed');
  t.is(n.refused(false, edit(16, 0, 28)), 'passed', 'shorter than the frame: padding');
  t.is(
    n.refused(true, packet({ protocol: ICMP, icmpType: 8, source: REMOTE, destination: EXTERNAL })),
    'icmp-type',
  );
  t.is(n.flows, 1);
  n.finish(t);
});

test('IP options and padding pass untouched', (t) => {
  const n = new NatRig();
  const options = Uint8Array.of(0x94, 4, 0, 0, 1, 1, 1, 0);
  const padding = Uint8Array.of(9, 9, 9);
  const frame = Uint8Array.from([...packet({ options, protocol: UDP }), ...padding]);
  const outside = n.out(frame);
  t.deepEqual(outside.slice(34, 42), options);
  t.deepEqual(outside.slice(-3), padding);
  t.deepEqual(badChecksums(outside), []);
  t.is(n.tables.flows.bytesOf(1), frame.length - 14 - 3);
});

test('packets of a routed domain keep their ends, and only what belongs to a flow of theirs comes in', (t) => {
  const n = new NatRig();
  n.tables.routed.fill(1);
  const free = n.tables.ports.available(1);
  const sent = packet({ sourcePort: 40000 });
  t.is(ends(n.out(sent)), `${INSIDE}:40000 > ${REMOTE}:53`);
  t.is(ends(n.in(answerTo(sent))), `${REMOTE}:53 > ${INSIDE}:40000`);
  const stranger = packet({ source: OTHER, destination: INSIDE, sourcePort: 53, destinationPort: 40000 });
  t.is(n.refused(true, stranger), 'not-published');
  t.is(n.tables.ports.available(1), free, 'it takes no port');
  n.finish(t);
});
