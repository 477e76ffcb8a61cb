/** RFC 4787, REQ-14: fragments in order and out of order, and bounded. */
import test from 'ava';
import fc from 'fast-check';
import { slowSum } from '../../support/frames.js';
import {
  answerTo,
  EXTERNAL,
  fragmentsOf,
  framed,
  ICMP,
  INSIDE,
  icmpError,
  NatRig,
  type Outcome,
  packet,
  REMOTE,
  TCP,
  transport,
  UDP,
} from '../../support/nat.js';

const MORE = 0x2000;

/** What the receiver puts together: the transport header and content, by address. */
function reassemble(frames: readonly Uint8Array[]): Uint8Array {
  const parts = frames.map((frame) => ({
    at: (((frame[20]! & 0x1f) << 8) | frame[21]!) * 8,
    bytes: frame.slice(34, 14 + ((frame[16]! << 8) | frame[17]!)),
  }));
  const whole = new Uint8Array(Math.max(...parts.map(({ at, bytes }) => at + bytes.length)));
  for (const { at, bytes } of parts) whole.set(bytes, at);
  return whole;
}

const bytesOf = (caught: Outcome['outside']): Uint8Array[] => caught.map(({ bytes }) => bytes);
const addresses = (frame: Uint8Array): string =>
  `${frame.slice(26, 30).join('.')} > ${frame.slice(30, 34).join('.')}`;
const content = (length: number): Uint8Array => Uint8Array.from({ length }, (_, i) => i * 7);

for (const [name, protocol] of [
  ['UDP', UDP],
  ['TCP', TCP],
  ['ICMP', ICMP],
] as const)
  test(`RFC 4787, REQ-14: fragments of ${name} in order, there and back, are whole at the end`, (t) => {
    const n = new NatRig();
    const p = { protocol, content: content(100) };
    const outside = bytesOf(n.feed(false, fragmentsOf(p, [40, 40])).outside);
    t.is(outside.length, 3);
    const source = packet({ ...p, source: EXTERNAL });
    for (const frame of outside) {
      t.is(addresses(frame), `${EXTERNAL} > ${REMOTE}`);
      t.is(slowSum(frame.slice(14, 34)), 0xffff);
    }
    t.deepEqual(reassemble(outside).length, transport(p).length);
    // The reassembled packet is what the NAT makes of it whole.
    const one = new NatRig();
    t.deepEqual(reassemble(outside), one.out(packet(p)).slice(34));
    t.is(source.length, one.out(packet(p)).length);
    const back = fragmentsOf(
      {
        protocol,
        source: REMOTE,
        destination: EXTERNAL,
        sourcePort: 53,
        destinationPort: 4000,
        icmpType: 0,
        content: content(90),
      },
      [24, 48],
    );
    if (protocol === ICMP) return;
    const port = (reassemble(outside)[0]! << 8) | reassemble(outside)[1]!;
    back[0]!.set([port >>> 8, port & 0xff], 36);
    const inside = n.feed(true, back).inside;
    t.is(inside.length, back.length);
    for (const { bytes } of inside) t.is(addresses(bytes), `${REMOTE} > ${INSIDE}`);
    n.finish(t);
  });

test('RFC 4787, REQ-14: in any order, of several datagrams at once, all arrive, and each is whole', (t) => {
  const shuffled = fc.shuffledSubarray([...Array(12).keys()], { minLength: 12 });
  fc.assert(
    fc.property(shuffled, (order) => {
      const n = new NatRig();
      const datagrams = [0, 1, 2, 3].map((i) => ({
        source: `10.0.0.${1 + (i & 1)}`,
        sourcePort: 40000,
        id: i >>> 1,
        content: content(80 + i),
      }));
      const frames = datagrams.flatMap((p) => fragmentsOf(p, [32, 32]));
      const out = order.flatMap((i) => bytesOf(n.feed(false, [frames[i]!]).outside));
      t.is(out.length, 12);
      const ports = new Map<string, number>();
      for (const p of datagrams) {
        const length = transport(p).length;
        // Lengths tell the datagrams apart, for the rest of them is alike outside.
        const first = out.filter((frame) => (frame[20]! & 0x3f) === 0x20 && frame[21] === 0);
        const mine = first.find((frame) => ((frame[38]! << 8) | frame[39]!) === length)!;
        ports.set(`${p.source}`, (mine[34]! << 8) | mine[35]!);
        t.is(((mine[34]! << 8) | mine[35]!) % 2, 0);
      }
      t.is(new Set(ports.values()).size, 2);
      n.finish(t);
      t.deepEqual(n.drops(), {});
    }),
    { numRuns: 50 },
  );
});

test('fragments from outside that come before their first one go where it goes, into its network', (t) => {
  const n = new NatRig();
  n.publish(53, 5353, { address: '10.0.0.9', domain: 4, protocol: UDP });
  const [first, second, third] = fragmentsOf(
    { source: REMOTE, destination: EXTERNAL, sourcePort: 9, destinationPort: 53, content: content(60) },
    [32, 24],
  ) as [Uint8Array, Uint8Array, Uint8Array];
  t.deepEqual(n.feed(true, [third, second]).inside, []);
  const { inside } = n.feed(true, [first]);
  t.deepEqual(bytesOf(inside).map(addresses), Array(3).fill(`${REMOTE} > 10.0.0.9`));
  t.deepEqual(
    inside.map(({ domain }) => domain),
    [4, 4, 4],
  );
  t.deepEqual(
    bytesOf(inside).map((frame) => frame[21]),
    [0, third[21], second[21]],
    'the first, then the others as they came',
  );
  t.is(n.feed(true, [second]).inside.length, 1, 'and another copy at once');
  n.finish(t);
});

test('networks whose addresses overlap do not share fragments', (t) => {
  const n = new NatRig();
  const [first, second] = fragmentsOf({ content: content(50) }, [32]) as [Uint8Array, Uint8Array];
  n.feed(false, [first], { domain: 1 });
  t.is(n.feed(false, [second], { domain: 2 }).outside.length, 0);
  t.is(n.feed(false, [second], { domain: 1 }).outside.length, 1);
  n.finish(t);
});

test('what waits in vain is given up after some seconds, and counted', (t) => {
  const n = new NatRig();
  const [, second] = fragmentsOf({ content: content(50) }, [32]) as [Uint8Array, Uint8Array];
  n.feed(false, [second]);
  n.pass(5);
  t.is(n.rig.memory.inUse, 1);
  n.pass(1);
  t.is(n.rig.memory.inUse, 0);
  t.deepEqual(n.drops(), { fragment: 1 });
});

test('fragments wait in small slots, and go on from there', (t) => {
  const n = new NatRig();
  const { memory } = n.rig;
  const [first, second] = fragmentsOf({ content: content(60) }, [32]) as [Uint8Array, Uint8Array];
  const large = memory.allocLarge();
  memory.u8.set(second, memory.off[large]!);
  memory.len[large] = second.length;
  const free = memory.freeLargeCount;
  n.rig.feed(n.nat.fromInside, large);
  t.deepEqual([memory.freeLargeCount - free, memory.inUse], [1, 1]);
  t.deepEqual(
    bytesOf(n.feed(false, [first]).outside).map(addresses),
    Array(2).fill(`${EXTERNAL} > ${REMOTE}`),
  );
  n.finish(t);
});

test('fragments too long for small slots wait in a quarter of the large ones, again and again', (t) => {
  const n = new NatRig();
  const { memory } = n.rig;
  const most = memory.large >> 2;
  for (let round = 1; round <= 4; round++) {
    const later = (id: number) => framed({ id, fragment: 100 | MORE }, content(4000));
    for (let id = 0; id <= most; id++) n.feed(false, [later(id)]);
    t.is(memory.inUse, most);
    const first = (id: number) => framed({ id, fragment: MORE }, transport({ content: content(40) }));
    if (round % 2 === 0) n.pass(6);
    else for (let id = 0; id <= most; id++) n.feed(false, [first(id)]);
    t.is(memory.inUse, 0);
    n.pass(6);
  }
  n.finish(t);
});

test('a datagram that comes again under its number is remembered from then on', (t) => {
  const n = new NatRig();
  const [first, second] = fragmentsOf({ content: content(60) }, [32]) as [Uint8Array, Uint8Array];
  n.feed(false, [first, second]);
  n.pass(4);
  t.is(n.feed(false, [first]).outside.length, 1);
  n.pass(3);
  t.is(n.feed(false, [second]).outside.length, 1);
  n.finish(t);
});

test('what waits for a first fragment that is refused is given up at once', (t) => {
  const n = new NatRig();
  const [first, second] = fragmentsOf(
    { source: REMOTE, destination: EXTERNAL, content: content(50) },
    [32],
  ) as [Uint8Array, Uint8Array];
  n.feed(true, [second, first]);
  t.deepEqual(n.drops(), { fragment: 1, 'not-published': 1 });
  t.is(n.rig.memory.inUse, 0);
});

test('RFC 4787, REQ-14a: a flood of fragments holds few slots, and harms neither those in order nor the other side', (t) => {
  const n = new NatRig();
  const flood = (id: number): Uint8Array =>
    framed({ source: REMOTE, destination: EXTERNAL, id, fragment: 100 | MORE }, content(64));
  for (let id = 0; id < 3000; id++) {
    n.feed(true, [flood(id)]);
    t.true(n.rig.memory.inUse <= 128);
  }
  // Many of one datagram.
  for (let i = 0; i < 100; i++) n.feed(true, [flood(9999)]);
  t.true(n.rig.memory.inUse <= 128);
  const frames = fragmentsOf({ content: content(100) }, [40, 40]);
  t.is(n.feed(false, frames.toReversed()).outside.length, 3);
  const n53 = { source: REMOTE, destination: EXTERNAL, sourcePort: 53, id: 77, content: content(100) };
  const port = (n.out(packet({ sourcePort: 45000 }))[34]! << 8) | 0;
  t.true(port > 0);
  t.is(n.feed(true, fragmentsOf({ ...n53, destinationPort: 45000 }, [40, 40])).inside.length, 3);
  n.finish(t);
  t.true(n.drops()['fragment']! >= 3100 - 128);
});

test('a flood of fragments that are refused has no datagram forgotten that went by', (t) => {
  const n = new NatRig();
  n.publish(53, 5353, { protocol: UDP });
  const ends = { source: REMOTE, destination: EXTERNAL, sourcePort: 9, destinationPort: 53 };
  const [first, second] = fragmentsOf({ ...ends, id: 1, content: content(60) }, [32]) as [
    Uint8Array,
    Uint8Array,
  ];
  n.feed(true, [first]);
  for (let id = 2; id < 1000; id++)
    n.feed(true, [framed({ ...ends, id, fragment: 100 | MORE }, content(64))]);
  for (let id = 1000; id < 2000; id++) {
    const [refused] = fragmentsOf({ ...ends, id, destinationPort: 54, content: content(60) }, [32]);
    n.feed(true, [refused!]);
  }
  t.is(n.feed(true, [second]).inside.length, 1);
  n.finish(t);
});

test('a first fragment too short for its ports is dropped (RFC 1858)', (t) => {
  const n = new NatRig();
  t.is(n.refused(false, framed({ protocol: TCP, fragment: MORE }, content(16))), 'malformed');
  t.is(n.refused(false, framed({ protocol: UDP, fragment: MORE }, content(4))), 'malformed');
  n.finish(t);
});

test('an ICMP error that is itself in fragments cannot be checked, and is dropped', (t) => {
  const n = new NatRig();
  const error = icmpError(answerTo(answerTo(n.out(packet()))), { to: EXTERNAL });
  error[20] = 0x20;
  t.is(n.refused(true, error), 'passed', 'the whole of it is there, whatever the flag says');
  const half = framed(
    { source: REMOTE, destination: EXTERNAL, protocol: ICMP, fragment: MORE },
    error.slice(34, -3),
  );
  t.is(n.refused(true, half), 'icmp-checksum');
  n.finish(t);
});
