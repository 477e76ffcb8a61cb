/** `mark`: which rule a packet of either family meets, and what a mark leads to over IPv4; over IPv6: balancer-v6.test.ts. */
import test from 'ava';
import fc from 'fast-check';
import { createMarker, type Marker } from '../../../engine/elements/mark.js';
import type { MarkIntent } from '../../../engine/intent.js';
import { BalancerRig, backend, CLIENT, service, VIP } from '../../support/balancer.js';
import { backendOf, open, syn, udp } from '../../support/connections.js';
import { be16, concat, ethernet, ip, type Metadata, payload, Rig, type Sink } from '../../support/frames.js';
import { ACK, answerTo, ends, framed, ICMP, type Packet, packet, TCP, UDP } from '../../support/nat.js';
import { framedV6, ICMPV6, type PacketV6, packetV6, transportV6 } from '../../support/nat6.js';

/** A prefix of as many bits as are given. */
const range = (address: string, length: number): MarkIntent['source'] => ({ address: ip(address), length });

const ANY: MarkIntent = {
  ...{ mark: 300, domain: 0, protocol: 0, firstPort: 0, lastPort: 65535, port: -1 },
  ...{ source: range('0.0.0.0', 0), destination: range('0.0.0.0', 0) },
};
/** The same of IPv6. */
const ANY6: MarkIntent = { ...ANY, source: range('::', 0), destination: range('::', 0) };

class MarkRig {
  readonly rig = new Rig();
  readonly sink: Sink = this.rig.sink();
  readonly marker: Marker = createMarker(this.rig.context, this.sink);

  constructor(...rules: readonly Partial<MarkIntent>[]) {
    this.marker.set(rules.map((rule) => ({ ...ANY, ...rule })));
  }

  /** With rules of IPv6. */
  static v6(...rules: readonly Partial<MarkIntent>[]): MarkRig {
    return new MarkRig(...rules.map((rule) => ({ ...ANY6, ...rule })));
  }

  /** Marks that frames get, given as one batch; a mark from before is not kept. */
  marks(frames: readonly Uint8Array[], metadata: Metadata = {}): number[] {
    this.rig.feed(this.marker, ...frames.map((bytes) => this.rig.put(bytes, { mark: 77, ...metadata })));
    return this.sink.caught.splice(0).map(({ mark }) => mark);
  }

  mark(p: Packet, metadata: Metadata = {}): number {
    return this.marks([packet(p)], metadata)[0]!;
  }
}

test('without rules nothing is marked, and no mark of before is left', (t) => {
  const m = new MarkRig();
  t.deepEqual(m.marks([syn(), udp(), payload(60)]), [0, 0, 0]);
  m.marker.set([ANY]);
  t.deepEqual(m.marks([syn()]), [300]);
  m.marker.set([]);
  t.deepEqual(m.marks([syn()]), [0]);
  m.rig.finish(t);
});

test('each thing that a rule may say is asked for', (t) => {
  const p: Packet = { protocol: TCP, source: CLIENT, destination: VIP, destinationPort: 80 };
  const cases: [Partial<MarkIntent>, Packet, Metadata][] = [
    [{ protocol: TCP }, { ...p, protocol: UDP }, {}],
    [{ destination: range(VIP, 32) }, { ...p, destination: '10.0.9.101' }, {}],
    [{ firstPort: 80, lastPort: 80 }, { ...p, destinationPort: 81 }, {}],
    [{ firstPort: 80, lastPort: 90 }, { ...p, destinationPort: 79 }, {}],
    [{ source: range('10.0.9.0', 24) }, { ...p, source: '10.0.8.50' }, {}],
    [{ source: range(CLIENT, 32) }, { ...p, source: '10.0.9.51' }, {}],
    [{ port: 5 }, p, { ingress: 6 }],
    [{ domain: 0 }, p, { domain: 1 }],
  ];
  for (const [rule, other, metadata] of cases) {
    const m = new MarkRig(rule);
    t.is(m.mark(p, { ingress: 5 }), 300, JSON.stringify(rule));
    t.is(m.mark(other, { ingress: 5, ...metadata }), 0, JSON.stringify(rule));
  }
});

test('the first rule that matches decides', (t) => {
  const m = new MarkRig({ mark: 1, firstPort: 80, lastPort: 80 }, { mark: 2, protocol: TCP }, { mark: 3 });
  const p: Packet = { protocol: TCP, destinationPort: 80 };
  t.is(m.mark(p), 1);
  t.is(m.mark({ ...p, destinationPort: 81 }), 2);
  t.is(m.mark({ protocol: UDP, destinationPort: 81 }), 3);
});

test('bounds of ports and prefixes are within', (t) => {
  const ports = new MarkRig({ firstPort: 80, lastPort: 90 });
  const at = (destinationPort: number) => ports.mark({ destinationPort });
  t.deepEqual([79, 80, 90, 91].map(at), [0, 300, 300, 0]);
  const prefix = new MarkRig({ source: range('10.0.8.7', 23) });
  const from = (source: string) => prefix.mark({ source });
  t.deepEqual(['10.0.7.255', '10.0.8.0', '10.0.9.255', '10.0.10.0'].map(from), [0, 300, 300, 0]);
  const destinations = new MarkRig({ destination: range('10.0.8.0', 23) });
  const to = (destination: string) => destinations.mark({ destination });
  t.deepEqual(['10.0.7.255', '10.0.8.0', '10.0.9.255', '10.0.10.0'].map(to), [0, 300, 300, 0]);
  // Within a word, and past one.
  const prefix6 = MarkRig.v6({
    source: range('fd00:9:0:1230::', 60),
    destination: range('fd00:9::100', 121),
  });
  const between = (source: string, destination: string) =>
    prefix6.marks([packetV6({ source, destination })])[0];
  const sources = ['fd00:9:0:122f::1', 'fd00:9:0:1230::', 'fd00:9:0:123f:ffff::', 'fd00:9:0:1240::'];
  t.deepEqual(
    sources.map((source) => between(source, 'fd00:9::105')),
    [0, 300, 300, 0],
  );
  const targets = ['fd00:9::ff', 'fd00:9::100', 'fd00:9::17f', 'fd00:9::180'];
  t.deepEqual(
    targets.map((target) => between('fd00:9:0:1235::1', target)),
    [0, 300, 300, 0],
  );
});

test('each thing that a rule of IPv6 may say is asked for', (t) => {
  const [source, destination] = ['fd00:9::50', 'fd00:9::100'];
  const p: PacketV6 = { protocol: TCP, source, destination, destinationPort: 80 };
  const cases: [Partial<MarkIntent>, PacketV6, Metadata][] = [
    [{ protocol: TCP }, { ...p, protocol: UDP }, {}],
    [{ destination: range(destination, 128) }, { ...p, destination: 'fd00:9::101' }, {}],
    [{ destination: range('fd00:9::', 64) }, { ...p, destination: 'fd00:a::100' }, {}],
    [{ firstPort: 80, lastPort: 90 }, { ...p, destinationPort: 91 }, {}],
    [{ source: range('fd00:9::', 64) }, { ...p, source: 'fd00:9:0:1::50' }, {}],
    [{ source: range(source, 128) }, { ...p, source: 'fd00:9::51' }, {}],
    [{ port: 5 }, p, { ingress: 6 }],
    [{ domain: 0 }, p, { domain: 1 }],
  ];
  for (const [rule, other, metadata] of cases) {
    const m = MarkRig.v6(rule);
    t.deepEqual(m.marks([packetV6(p)], { ingress: 5 }), [300], JSON.stringify(rule));
    t.deepEqual(m.marks([packetV6(other)], { ingress: 5, ...metadata }), [0], JSON.stringify(rule));
  }
});

test('rules are of one family, and the first of it that matches decides', (t) => {
  const m = new MarkRig({ mark: 1 }, { ...ANY6, mark: 2, protocol: TCP }, { ...ANY6, mark: 3 });
  t.deepEqual(m.marks([udp(), packetV6({ protocol: TCP }), packetV6()]), [1, 2, 3]);
  t.deepEqual(new MarkRig({}).marks([packetV6()]), [0]);
  t.deepEqual(MarkRig.v6({}).marks([udp()]), [0]);
  m.marker.set([ANY]);
  t.deepEqual(m.marks([packetV6()]), [0], 'those of before are gone');
});

test('IPv6: ports are behind extension headers; of fragments only the first has them', (t) => {
  const some = MarkRig.v6({ firstPort: 53, lastPort: 53 });
  const any = MarkRig.v6({});
  const mark = (m: MarkRig, p: PacketV6) => m.marks([packetV6(p)])[0];
  const options = (next: number) => concat(Uint8Array.of(next, 0, 1, 4), new Uint8Array(4));
  const fragment = (field: number) => concat(Uint8Array.of(UDP, 0), be16(field, 0, 7));
  const routing = (left: number) => concat(Uint8Array.of(UDP, 0, 3, left), new Uint8Array(4));
  t.is(mark(some, { first: 0, extensions: concat(options(60), options(44), fragment(1)) }), 300, 'the first');
  t.is(mark(some, { first: 43, extensions: routing(0) }), 300);
  t.is(mark(some, { first: 44, extensions: fragment(8) }), 0, 'a later one');
  t.is(mark(any, { first: 44, extensions: fragment(8) }), 300);
  t.is(mark(any, { first: 43, extensions: routing(1) }), 0, 'a route that the sender has chosen');
  t.is(mark(any, { first: 60, extensions: options(0) }), 0, 'hop-by-hop options that are not the first');
  t.is(mark(any, { protocol: ICMPV6 }), 0);
  t.is(mark(any, { protocol: 132 }), 0);
  t.is(mark(any, { protocol: 59 }), 0);
});

test('IPv6 that is cut off or does not add up is marked by rules for any port at most', (t) => {
  const [any, some] = [MarkRig.v6({}), MarkRig.v6({ firstPort: 53, lastPort: 53 })];
  const whole = packetV6({});
  for (let size = 0; size < whole.length; size++) t.deepEqual(any.marks([whole.slice(0, size)]), [0]);
  const none = framedV6({}, transportV6({}).slice(0, 3));
  t.deepEqual([any.marks([none]), some.marks([none])], [[300], [0]]);
  const odd = Uint8Array.from(whole);
  odd[14] = 0x45;
  t.deepEqual(any.marks([odd]), [0]);
  any.rig.finish(t);
});

test('what has no ports is not marked; a later fragment meets rules for any port alone', (t) => {
  const any = new MarkRig({});
  const some = new MarkRig({ firstPort: 1, lastPort: 65535 });
  t.is(any.mark({ protocol: ICMP }), 0);
  t.is(any.mark({ protocol: 132 }), 0);
  const later = framed({ protocol: UDP, fragment: 3 }, payload(16));
  t.deepEqual([any.marks([later]), some.marks([later])], [[300], [0]]);
  const first = framed({ protocol: UDP, fragment: 0x2000 }, payload(16));
  t.deepEqual(some.marks([first]), [300]);
});

test('what is no IPv4 is not marked, however short or odd', (t) => {
  const m = new MarkRig({});
  const odd = syn();
  odd[14] = 0x65;
  const short = syn();
  short[14] = 0x44;
  const frames = [
    ...[
      payload(10),
      ethernet({ type: 0x86dd }, payload(60)),
      ethernet({ type: 0x800 }, payload(4)),
      odd,
      short,
    ],
    ethernet({ type: 0x0800, tags: [1] }, syn().slice(14)),
  ];
  t.deepEqual(m.marks(frames), [0, 0, 0, 0, 0, 0]);
  m.rig.finish(t);
});

test('a mark leads to its service, whatever the address; it comes back from there', (t) => {
  const b = new BalancerRig([service({ mark: 300, backends: [backend(1)] })]);
  const elsewhere = { destination: '203.0.113.9' };
  const request = b.one(syn(4000, elsewhere), { mark: 300 });
  t.is(ends(request), `${CLIENT}:4000 > 10.0.9.1:80`);
  t.is(ends(b.one(answerTo(request, ACK))), `203.0.113.9:80 > ${CLIENT}:4000`);
  t.deepEqual(b.one(syn(4001, elsewhere)), syn(4001, elsewhere), 'unmarked it is nobody’s');
  t.is(b.one(syn(4002, elsewhere), { mark: 301 })[23], ICMP, 'of a mark without a service: unreachable');
  b.rig.finish(t);
});

test('every number is a mark', (t) => {
  for (const mark of [1, 0x7fffffff, 0x80000000, 0xffffffff]) {
    const b = new BalancerRig([service({ mark, backends: [backend(1)] })]);
    t.is(ends(b.one(syn(4000, { destination: '203.0.113.9' }), { mark })), `${CLIENT}:4000 > 10.0.9.1:80`);
    b.rig.finish(t);
  }
});

test('a mark goes before the address, and then has no ports of it', (t) => {
  const ports = [{ protocol: TCP, port: 80, target: 8080 }];
  const other = service({ id: 2, mark: 300, address: ip('10.0.9.101'), backends: [backend(7)] });
  const b = new BalancerRig([service({ ports, backends: [backend(1)] }), other]);
  t.is(ends(b.one(syn(4000))), `${CLIENT}:4000 > 10.0.9.1:8080`);
  t.is(ends(b.one(syn(4001), { mark: 300 })), `${CLIENT}:4001 > 10.0.9.7:80`);
  t.is(ends(b.one(syn(4001), { mark: 300 })), `${CLIENT}:4001 > 10.0.9.7:80`);
  b.rig.finish(t);
});

test('a marked packet to a backend itself, of ends that it serves under the virtual address, is refused', (t) => {
  const b = new BalancerRig([service({ mark: 300, backends: [backend(1)] })]);
  const request = open(b);
  t.deepEqual(b.feed([syn(4000, { destination: '10.0.9.1' })], { mark: 300 }), []);
  t.deepEqual(b.drops(), { conflict: 1 });
  t.is(ends(b.one(answerTo(request, ACK))), `${VIP}:80 > ${CLIENT}:4000`);
  b.rig.finish(t);
});

test('property: marks and virtual addresses agree: the same arrivals get the same backends by either', (t) => {
  const arrival = fc.record({
    client: fc.nat(5),
    port: fc.integer({ min: 1, max: 40 }),
    isTcp: fc.boolean(),
  });
  const scheduler = fc.constantFrom('rr', 'wrr', 'lc', 'wlc', 'sh', 'maglev' as const);
  fc.assert(
    fc.property(
      fc.array(arrival, { maxLength: 60 }),
      scheduler,
      fc.constantFrom(0, 60),
      (list, scheduler, affinity) => {
        const backends = [1, 2, 3, 4].map((n) => backend(n, { weight: n }));
        const make = () => new BalancerRig([service({ scheduler, affinity, mark: 300, backends })]);
        const [byAddress, byMark] = [make(), make()];
        const marker = new MarkRig({
          destination: range('198.51.100.1', 32),
          source: range('10.0.9.0', 24),
        });
        for (const { client, port, isTcp } of list) {
          const p = { source: `10.0.9.${60 + client}` };
          const kind = isTcp ? syn : udp;
          const elsewhere = kind(port, { ...p, destination: '198.51.100.1' });
          const [mark] = marker.marks([elsewhere]);
          const one = byAddress.one(kind(port, p));
          const other = byMark.one(elsewhere, { mark: mark! });
          t.deepEqual([mark, backendOf(other)], [300, backendOf(one)]);
          t.deepEqual(other, one);
        }
        t.deepEqual(byMark.services.counts(), byAddress.services.counts());
      },
    ),
    { numRuns: 100 },
  );
});
