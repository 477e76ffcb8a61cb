/** Floods, scans and forgeries: what is established goes on, memory stays, and every drop is counted. */
import test from 'ava';
import { ESTABLISHED, STATE_NAMES, TRANSITORY } from '../../../engine/tables/connection.js';
import {
  ACK,
  answerTo,
  EXTERNAL,
  ends,
  FIN,
  icmpError,
  NatRig,
  packet,
  REMOTE,
  RST,
  SYN,
  TCP,
  UDP,
} from '../../support/nat.js';

const stranger = (i: number): string => `192.0.${(i >>> 8) & 0xff}.${i & 0xff}`;

/** A NAT with a published server and so many connections from inside, of each its SYN as it looks outside. */
function busy(connections: number, maxFlows: number): { n: NatRig; syns: Uint8Array[] } {
  const n = new NatRig({ maxFlows });
  n.publish(80, 8080, { address: '10.0.0.9' });
  n.publish(53, 5353, { address: '10.0.0.9', protocol: UDP });
  const syns = Array.from({ length: connections }, (_, i) => {
    const call = { protocol: TCP, source: `10.0.1.${i}`, destinationPort: 443 };
    const syn = n.out(packet({ ...call, flags: SYN }));
    n.in(answerTo(syn, SYN | ACK));
    n.out(packet({ ...call, flags: ACK }));
    return syn;
  });
  return { n, syns };
}

const alive = (n: NatRig, syns: readonly Uint8Array[]): boolean =>
  syns.every((syn) => n.feed(true, [answerTo(syn, ACK)]).inside.length === 1);

const FLOODS: readonly [name: string, inward: boolean, frame: (i: number) => Uint8Array][] = [
  [
    'SYNs to a published port',
    true,
    (i) =>
      packet({ protocol: TCP, source: stranger(i), destination: EXTERNAL, destinationPort: 80, flags: SYN }),
  ],
  [
    'ACKs to a published port',
    true,
    (i) =>
      packet({ protocol: TCP, source: stranger(i), destination: EXTERNAL, destinationPort: 80, flags: ACK }),
  ],
  [
    'UDP from many sources',
    true,
    (i) => packet({ source: stranger(i), destination: EXTERNAL, destinationPort: 53 }),
  ],
  [
    'SYNs from inside',
    false,
    (i) => packet({ protocol: TCP, destination: stranger(i), destinationPort: 80, flags: SYN }),
  ],
  [
    'ACKs from inside',
    false,
    (i) => packet({ protocol: TCP, destination: stranger(i), destinationPort: 80, flags: ACK }),
  ],
  ['UDP from inside', false, (i) => packet({ destination: stranger(i) })],
  [
    'pings from inside',
    false,
    (i) => packet({ protocol: 1, sourcePort: i & 0xff, destination: stranger(i) }),
  ],
];

for (const [name, inward, frame] of FLOODS)
  test(`flood of ${name}: established connections go on, memory stays as it is, who begins is put out and counted`, (t) => {
    const { n, syns } = busy(50, 100);
    const { bytes } = n.tables;
    for (let i = 0; i < 5000; i++) n.feed(inward, [frame(i)]);
    t.is(n.flows, 100);
    t.is(n.states().filter((state) => state === ESTABLISHED).length, 50);
    t.true(alive(n, syns));
    t.is(n.rig.counter('nat', 'flows-evicted'), 5000 - 50);
    t.is(n.tables.bytes, bytes);
    t.deepEqual(n.drops(), {});
    n.finish(t);
  });

test('flood of SYNs that the server answers: nothing is established by them, and it is they who go', (t) => {
  const { n, syns } = busy(50, 100);
  for (let i = 0; i < 2000; i++) {
    const [caught] = n.feed(true, [FLOODS[0]![2](i)]).inside;
    n.feed(false, [answerTo(caught!.bytes, SYN | ACK)]);
  }
  t.deepEqual(
    new Set(n.states().map((state) => STATE_NAMES[state])),
    new Set(['established', 'syn-answered']),
  );
  t.is(n.states().filter((state) => state === ESTABLISHED).length, 50);
  t.true(alive(n, syns));
});

test('flood of datagrams that are answered: a conversation that goes on is not put out', (t) => {
  const n = new NatRig({ maxFlows: 100 });
  n.publish(53, 5353, { address: '10.0.0.9', protocol: UDP });
  const call = packet({ sourcePort: 40000 });
  const outside = n.out(call);
  for (let i = 0; i < 1000; i++) {
    const [caught] = n.feed(true, [FLOODS[2]![2](i)]).inside;
    n.feed(false, [answerTo(caught!.bytes)]);
    if (i % 20 !== 0) continue;
    // A second of silence between its packets, fifty strangers meanwhile.
    n.pass(1);
    t.is(n.feed(true, [answerTo(outside)]).inside.length, 1, `${i}`);
    n.out(call);
  }
  t.is(n.rig.counter('nat', 'flows-made'), 1001);
});

test('a table full of established connections refuses who is new, and says so', (t) => {
  const { n, syns } = busy(100, 100);
  t.is(n.refused(false, packet({ source: '10.0.2.1' })), 'table-full');
  t.is(n.refused(true, FLOODS[0]![2](1)), 'table-full');
  t.true(alive(n, syns));
  t.is(n.rig.counter('nat', 'flows-evicted'), 0);
  // A port that was given for nothing is given back: the range would be used up else.
  const small = new NatRig({ maxFlows: 1, firstPort: 40000, lastPort: 40001 });
  const syn = small.out(packet({ protocol: TCP, flags: SYN }));
  small.in(answerTo(syn, SYN | ACK));
  for (let i = 0; i < 10; i++)
    t.is(small.refused(false, packet({ protocol: TCP, source: `10.0.3.${i}`, flags: SYN })), 'table-full');
});

test('the flow that makes room may be the last of the very port that is wanted', (t) => {
  const n = new NatRig({ maxFlows: 1 });
  const ports = Array.from({ length: 20 }, (_, i) =>
    ends(n.out(packet({ sourcePort: 40000, destination: stranger(i) }))),
  );
  t.deepEqual(new Set(ports.map((text) => text.split(' ')[0])), new Set([`${EXTERNAL}:40000`]));
  // The port is still one endpoint's alone.
  t.not(ends(n.out(packet({ source: '10.0.0.2', sourcePort: 40001 }))).split(' ')[0], `${EXTERNAL}:40000`);
  t.is(n.flows, 1);
  n.pass(1000);
  t.is(n.flows, 0);
  t.is(n.tables.ports.available(1), 60999 - 32768 + 1);
});

test('a port scan opens nothing and is counted', (t) => {
  const { n, syns } = busy(5, 100);
  for (let port = 1; port < 65536; port += 7)
    n.feed(true, [
      packet({
        protocol: TCP,
        source: stranger(1),
        destination: EXTERNAL,
        destinationPort: port,
        flags: SYN,
      }),
    ]);
  t.is(n.flows, 5);
  const { filtered = 0, 'not-published': refused = 0 } = n.drops();
  t.is(filtered + refused, Math.ceil(65535 / 7));
  t.true(alive(n, syns));
});

test('forged RSTs, FINs and SYNs of every kind end no connection that goes on', (t) => {
  const { n, syns } = busy(10, 20);
  for (const syn of syns) {
    for (const flags of [RST, RST | ACK, RST | SYN, FIN, FIN | ACK, SYN, SYN | ACK, SYN | FIN, 0, 0xff])
      n.feed(true, [answerTo(syn, flags)]);
  }
  t.true(n.states().every((state) => state === TRANSITORY || state >= ESTABLISHED - 2));
  for (let i = 0; i < 10; i++)
    n.out(packet({ protocol: TCP, source: `10.0.1.${i}`, destinationPort: 443, flags: ACK }));
  t.true(alive(n, syns));
  t.true(
    n.states().every((state) => state === ESTABLISHED),
    n.states().join(),
  );
});

test('forged ICMP errors of every type, code and sort change no flow', (t) => {
  const { n, syns } = busy(3, 20);
  const before = n.tables.flows.words.slice();
  for (let type = 0; type < 256; type += type === 20 ? 200 : 1)
    for (const code of [0, 1, 4, 255])
      for (const syn of syns) n.feed(true, [icmpError(syn, { from: REMOTE, to: EXTERNAL, type, code })]);
  t.deepEqual(n.tables.flows.words, before);
  n.finish(t);
});
