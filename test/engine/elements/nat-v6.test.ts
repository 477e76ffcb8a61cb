/** NAT of IPv6; numbers of requirements are those of RFC 4787, 5382 and 5508, which speak of IPv4 and are followed. */
import test from 'ava';
import fc from 'fast-check';
import { GSO_TCPV6, OFFLOAD_GSO_SHIFT, OFFLOAD_NEEDS_CSUM } from '../../../engine/memory/frames.js';
import { be16, concat, ip, payload, slowSum } from '../../support/frames.js';
import {
  answerToV6,
  destinationV6,
  EXTERNAL_V6,
  endsV6,
  FROM_V6,
  fragmentsOfV6,
  framedV6,
  ICMPV6,
  icmpv6Error,
  NatRigV6,
  type PacketV6,
  packetV6,
  soundV6,
  sourceV6,
  TO_V6,
} from '../../support/nat6.js';

const TCP = 6;
const UDP = 17;
const SYN = 2;
const RST = 4;

for (const protocol of [UDP, TCP, ICMPV6]) {
  test(`protocol ${protocol}: out under the external address and back, every checksum right`, (t) => {
    const rig = new NatRigV6();
    const sent = packetV6({ protocol, sourcePort: 4001, flags: SYN });
    const left = rig.out(sent, { domain: 3 });
    t.true(soundV6(left));
    t.is(sourceV6(left), EXTERNAL_V6);
    t.is(destinationV6(left), TO_V6);
    const [{ bytes: back, domain }] = rig.feed(true, [answerToV6(left, 0x12)]).inside;
    t.true(soundV6(back));
    t.is(domain, 3);
    t.is(endsV6(back), endsV6(answerToV6(sent, 0x12)));
    t.is(rig.flows.size, 1);
    rig.rig.finish(t);
  });
}

test('what no flow and no publication lets in is refused, and an RST makes no flow', (t) => {
  const rig = new NatRigV6();
  const left = rig.out(packetV6());
  t.is(rig.refused(true, packetV6({ source: TO_V6, destination: EXTERNAL_V6 })), 'not-published');
  const other = packetV6({ source: '2001:db8::3', destination: EXTERNAL_V6, destinationPort: 4000 });
  t.is(endsV6(left), `[${EXTERNAL_V6}]:${endsV6(left).match(/\]:(\d+) >/)?.[1]} > [${TO_V6}]:53`);
  const port = Number(endsV6(left).match(/\]:(\d+) >/)?.[1]);
  const toPort = packetV6({ source: '2001:db8::3', destination: EXTERNAL_V6, destinationPort: port });
  t.is(rig.refused(true, toPort), 'filtered');
  t.is(rig.refused(true, other), 'not-published');
  t.is(rig.refused(false, packetV6({ protocol: TCP, flags: RST })), 'no-flow');
  t.is(rig.refused(false, packetV6({ protocol: ICMPV6, icmpType: 129 })), 'icmp-type');
  t.is(rig.refused(false, packetV6({ protocol: 1 })), 'icmp-type');
  t.is(rig.refused(false, packetV6().slice(0, 57)), 'malformed');
  // Those who were refused hold nothing: inside, outside, and the external address are left.
  t.is(rig.addresses.size, 3);
  rig.rig.finish(t);
});

test('REQ-8: from another port of who was talked to it comes in', (t) => {
  const rig = new NatRigV6();
  const port = Number(endsV6(rig.out(packetV6())).match(/\]:(\d+) >/)?.[1]);
  const frame = packetV6({ source: TO_V6, sourcePort: 99, destination: EXTERNAL_V6, destinationPort: port });
  t.is(endsV6(rig.in(frame)), `[${TO_V6}]:99 > [${FROM_V6}]:4000`);
  rig.rig.finish(t);
});

test('a published port lets in everybody, and what it was ends with it', (t) => {
  const rig = new NatRigV6();
  const rule = { protocol: TCP, port: 8080, domain: 3, address: ip(FROM_V6), target: 80 };
  t.true(rig.tables.publish(rule));
  t.false(rig.tables.publish({ ...rule, address: ip('fd00:9::2') }));
  const syn = packetV6({
    ...{ protocol: TCP, source: TO_V6, destination: EXTERNAL_V6, destinationPort: 8080, flags: SYN },
  });
  t.is(endsV6(rig.in(syn)), `[${TO_V6}]:4000 > [${FROM_V6}]:80`);
  const answer = packetV6({
    ...{ protocol: TCP, source: FROM_V6, sourcePort: 80, destination: TO_V6, destinationPort: 4000 },
  });
  t.is(endsV6(rig.out(answer, { domain: 3 })), `[${EXTERNAL_V6}]:8080 > [${TO_V6}]:4000`);
  rig.tables.unpublish(rule);
  t.is(rig.flows.size, 0);
  t.is(rig.addresses.size, 1);
  t.is(rig.refused(true, syn), 'not-published');
  rig.rig.finish(t);
});

test('REQ-9: hairpinning, to a published port and to itself', (t) => {
  const rig = new NatRigV6();
  rig.tables.publish({ protocol: UDP, port: 53, domain: 0, address: ip(FROM_V6), target: 5353 });
  for (const source of ['fd00:9::2', FROM_V6]) {
    const { inside, outside } = rig.feed(false, [packetV6({ source, destination: EXTERNAL_V6 })]);
    t.is(outside.length, 0);
    t.true(soundV6(inside[0].bytes));
    t.is(sourceV6(inside[0].bytes), EXTERNAL_V6);
    t.true(endsV6(inside[0].bytes).endsWith(`[${FROM_V6}]:5353`));
  }
  rig.rig.finish(t);
});

test('flows of addresses hold them, and let them go', (t) => {
  const rig = new NatRigV6({ maxFlows: 64, maxAddresses: 40 });
  for (let i = 0; i < 30; i++) rig.out(packetV6({ destination: `2001:db8::${(i + 2).toString(16)}` }));
  t.is(rig.addresses.size, 32);
  // No number is left for so many.
  for (let i = 30; i < 38; i++) rig.out(packetV6({ destination: `2001:db8::${(i + 2).toString(16)}` }));
  t.is(rig.refused(false, packetV6({ destination: '2001:db8:1::1' })), 'table-full');
  t.is(rig.shortages, 1);
  rig.pass(301);
  t.is(rig.flows.size, 0);
  t.is(rig.addresses.size, 1);
  t.is(rig.refused(false, packetV6({ destination: '2001:db8:1::1' })), 'passed');
  rig.rig.finish(t);
});

test('a full table gives up its least worthy flows, and their addresses', (t) => {
  const rig = new NatRigV6({ maxFlows: 50 });
  for (let i = 0; i < 400; i++)
    rig.out(
      packetV6({ source: `fd00:9::${(i + 1).toString(16)}`, destination: `2001:db8::${i.toString(16)}` }),
    );
  t.is(rig.flows.size, 50);
  t.is(rig.addresses.size, 101);
  rig.rig.finish(t);
});

test('a partial checksum stays one, of a super-frame too', (t) => {
  const rig = new NatRigV6();
  const pseudo = (source: string, length: number): number =>
    slowSum(concat(ip(source), ip(TO_V6), be16(TCP, length)));
  const frame = packetV6({ protocol: TCP, flags: SYN, content: payload(3000) });
  frame.set(be16(pseudo(FROM_V6, 3020)), 70);
  const offload = (GSO_TCPV6 << OFFLOAD_GSO_SHIFT) | OFFLOAD_NEEDS_CSUM;
  const left = rig.out(frame, { offload, gsoSize: 1000, csumStart: 54, csumOffset: 16 });
  t.is((left[70] << 8) | left[71], pseudo(EXTERNAL_V6, 3020) % 0xffff || 0xffff);
  rig.rig.finish(t);
});

const reassembled = (frames: readonly Uint8Array[], p: PacketV6): Uint8Array =>
  framedV6(p, concat(...frames.map((frame) => frame.slice(62))));

test('REQ-14: fragments pass in any order, both ways', (t) => {
  const rig = new NatRigV6();
  const long: PacketV6 = { content: payload(2000) };
  const cut = fragmentsOfV6(long, 800, 7);
  const [first, second, third] = rig.feed(false, [cut[2], cut[0], cut[1]]).outside.map(({ bytes }) => bytes);
  // The one that came before the first waited for it.
  const whole = reassembled([first, third, second], { source: EXTERNAL_V6 });
  t.true(soundV6(whole));
  t.deepEqual([first, second, third].map(sourceV6), [EXTERNAL_V6, EXTERNAL_V6, EXTERNAL_V6]);
  const port = (whole[54] << 8) | whole[55];
  const back: PacketV6 = {
    ...{
      source: TO_V6,
      sourcePort: 53,
      destination: EXTERNAL_V6,
      destinationPort: port,
      content: payload(1500),
    },
  };
  const entered = rig.feed(true, fragmentsOfV6(back, 1000, 9)).inside.map(({ bytes }) => bytes);
  t.true(soundV6(reassembled(entered, { source: TO_V6, destination: FROM_V6 })));
  t.is(rig.refused(false, fragmentsOfV6(long, 800, 8)[1]), 'passed');
  rig.pass(6);
  t.is(rig.rig.memory.inUse, 0);
  rig.rig.finish(t);
});

test('fragments behind other extension headers are told by their identification too', (t) => {
  const rig = new NatRigV6();
  const options = Uint8Array.of(44, 0, 1, 4, 0, 0, 0, 0);
  const cut = (source: string, id: number) =>
    fragmentsOfV6({ source, content: payload(1000) }, 800, id).map((frame) => {
      const header = frame.slice(54, 62);
      const extensions = concat(options, header);
      return framedV6({ source, first: 60, extensions }, frame.slice(62));
    });
  const one = cut(FROM_V6, 1);
  const two = cut('fd00:9::2', 2);
  t.is(rig.feed(false, [one[0], two[0]]).outside.length, 2);
  t.is(rig.feed(false, [two[1], one[1]]).outside.length, 2);
  // Of a datagram whose first one is still to come nothing is known.
  t.is(rig.feed(false, [cut(FROM_V6, 3)[1]]).outside.length, 0);
  rig.nat.flush();
  rig.rig.finish(t);
});

test('RFC 5508, REQ-7: an error about a packet that turned back finds who sent it', (t) => {
  const rig = new NatRigV6();
  rig.tables.publish({ protocol: UDP, port: 53, domain: 0, address: ip(FROM_V6), target: 5353 });
  const asked = packetV6({ source: 'fd00:9::2', destination: EXTERNAL_V6 });
  const [{ bytes: arrived }] = rig.feed(false, [asked]).inside;
  const error = icmpv6Error(arrived, { from: FROM_V6, to: EXTERNAL_V6, code: 4 });
  const [{ bytes }] = rig.feed(false, [error]).inside;
  t.true(soundV6(bytes));
  t.is(`${sourceV6(bytes)} ${destinationV6(bytes)}`, `${EXTERNAL_V6} fd00:9::2`);
  t.deepEqual(Buffer.from(bytes.slice(62)), Buffer.from(asked.slice(14)));
  rig.rig.finish(t);
});

test('RFC 5508, REQ-4: an error from outside gets in with the packet that it is about as it was sent', (t) => {
  const rig = new NatRigV6();
  for (const protocol of [UDP, TCP, ICMPV6]) {
    const sent = packetV6({ protocol, sourcePort: 4002, flags: SYN, content: payload(40) });
    const left = rig.out(sent, { domain: 3 });
    for (const carried of [1000, 8]) {
      const error = icmpv6Error(left, { to: EXTERNAL_V6, type: 2, code: 0, argument: 1280, carried });
      const [{ bytes, domain }] = rig.feed(true, [error]).inside;
      t.true(soundV6(bytes));
      t.is(domain, 3);
      t.is(`${sourceV6(bytes)} ${destinationV6(bytes)}`, `2001:db8::fe ${FROM_V6}`);
      t.deepEqual(Buffer.from(bytes.slice(62)), Buffer.from(sent.slice(14, 14 + bytes.length - 62)));
    }
  }
  rig.rig.finish(t);
});

test('RFC 5508, REQ-5: an error from inside leaves under the external address', (t) => {
  const rig = new NatRigV6();
  const left = rig.out(packetV6(), { domain: 3 });
  const entered = rig.in(answerToV6(left));
  const error = icmpv6Error(entered, { from: FROM_V6, to: TO_V6, type: 1, code: 4 });
  const out = rig.out(error, { domain: 3 });
  t.true(soundV6(out));
  t.is(`${sourceV6(out)} ${destinationV6(out)}`, `${EXTERNAL_V6} ${TO_V6}`);
  t.deepEqual(Buffer.from(out.slice(62)), Buffer.from(answerToV6(left).slice(14)));
  rig.rig.finish(t);
});

test('errors with a wrong checksum, about nothing, or about no flow do not pass', (t) => {
  const rig = new NatRigV6();
  const left = rig.out(packetV6());
  const error = icmpv6Error(left, { to: EXTERNAL_V6 });
  t.is(
    rig.refused(
      true,
      error.map((byte, i) => (i === 56 ? byte ^ 1 : byte)),
    ),
    'icmp-checksum',
  );
  t.is(rig.refused(true, icmpv6Error(left, { to: EXTERNAL_V6, carried: 4 })), 'icmp-malformed');
  const other = packetV6({ source: EXTERNAL_V6, sourcePort: 9 });
  t.is(rig.refused(true, icmpv6Error(other, { to: EXTERNAL_V6 })), 'icmp-no-flow');
  t.is(rig.refused(true, icmpv6Error(packetV6({ source: '::7' }), { to: EXTERNAL_V6 })), 'icmp-no-flow');
  rig.rig.finish(t);
});

test('property: out and back in is identity, and what was translated is sound', (t) => {
  const address = (prefix: string) => fc.nat(0xffff).map((n) => `${prefix}::${(n + 1).toString(16)}`);
  fc.assert(
    fc.property(
      fc.array(
        fc.record({
          protocol: fc.constantFrom(UDP, TCP, ICMPV6),
          source: address('fd00:9'),
          destination: address('2001:db8'),
          sourcePort: fc.integer({ min: 1, max: 65535 }),
          destinationPort: fc.integer({ min: 1, max: 65535 }),
          flags: fc.constant(SYN),
          content: fc.uint8Array({ maxLength: 30 }),
        }),
        { maxLength: 30 },
      ),
      (packets) => {
        const rig = new NatRigV6();
        for (const p of packets) {
          const sent = packetV6(p);
          const left = rig.out(sent);
          t.true(soundV6(left));
          const back = rig.in(answerToV6(left, 0x12));
          t.deepEqual(Buffer.from(back), Buffer.from(answerToV6(sent, 0x12)));
        }
        rig.pass(8000);
        t.is(rig.addresses.size, 1);
      },
    ),
    { numRuns: 60 },
  );
});

test('property: noise crashes nothing; every slot comes back', (t) => {
  const noise = fc
    .tuple(
      fc.constantFrom(
        packetV6(),
        packetV6({ source: TO_V6, destination: EXTERNAL_V6, protocol: TCP }),
        fragmentsOfV6({ content: payload(100) }, 48, 3)[1],
        icmpv6Error(packetV6({ source: EXTERNAL_V6 }), { to: EXTERNAL_V6 }),
      ),
      fc.array(fc.tuple(fc.integer({ min: 12, max: 120 }), fc.nat(255)), { maxLength: 4 }),
      fc.nat(140),
      fc.boolean(),
    )
    .map(([frame, changes, length, inward]) => {
      const copy = frame.slice(0, Math.max(14, length));
      for (const [at, value] of changes) if (at < copy.length) copy[at] = value;
      return { copy, inward };
    });
  fc.assert(
    fc.property(fc.array(noise, { maxLength: 10 }), (frames) => {
      const rig = new NatRigV6();
      for (const { copy, inward } of frames) rig.feed(inward, [copy]);
      rig.nat.flush();
      t.is(rig.rig.memory.inUse, 0);
    }),
    { numRuns: 300 },
  );
});
