import test from 'ava';
import fc from 'fast-check';
import { createGateway } from '../../../engine/elements/gateway.js';
import { createIcmpErrors } from '../../../engine/elements/icmp-errors.js';
import { createIcmpv6Errors } from '../../../engine/elements/icmpv6-errors.js';
import { NO_NODE, WAITS } from '../../../engine/elements/mesh/ways.js';
import type { Mesh } from '../../../engine/elements/mesh.js';
import { Batch } from '../../../engine/graph.js';
import { GATEWAY_PORT } from '../../../engine/intent.js';
import { GSO_TCPV4, OFFLOAD_GSO_SHIFT, OFFLOAD_NEEDS_CSUM, REMOTE } from '../../../engine/memory/frames.js';
import { addressWord, Gateways } from '../../../engine/tables/gateways.js';
import { Neighbours } from '../../../engine/tables/neighbours.js';
import {
  be16,
  type Caught,
  concat,
  dropped,
  ethernet,
  ip,
  type Metadata,
  mac,
  payload,
  Rig,
  slowSum,
  station,
} from '../../support/frames.js';
import {
  badChecksums,
  dotted,
  fragmentsOf,
  framed,
  ICMP,
  icmpError,
  type Packet,
  packet,
  TCP,
} from '../../support/nat.js';

const BLUE = 3;
const GREEN = 4;
const INNER = 5;
const C1 = '10.0.9.1';
const GATEWAY = '10.0.9.254';
const UPLINK = '192.168.60.10';
const FAR = '203.0.113.2';
const KEPT = '203.0.113.3';
const GATEWAY_MAC = mac('02:42:0a:00:09:fe');

/**
 * A gateway of blue (MTU 1450) and green with an uplink (MTU 1500 unless told), and of inner without.
 * @param carried largest packet of a mesh, by which FAR came from VTEP 7, and which frees what is for KEPT; 0: there is none.
 */
function gatewayRig({ mtu = 1500, carried = 0 } = {}) {
  const rig = new Rig();
  rig.context.setTime(1_000_000);
  const gateways = new Gateways();
  const neighbours = new Neighbours(1);
  neighbours.set(BLUE, ip(C1), station(1));
  const network = (domain: number, third: number, uplink: number) =>
    gateways.set({
      domain,
      v4: { address: ip(`10.0.${third}.254`), subnet: ip(`10.0.${third}.0`), length: 24 },
      ...{ mac: mac(`02:42:0a:00:0${third.toString(16)}:fe`), uplink, routed: false, mtu: 1450 },
    });
  network(BLUE, 9, 0);
  network(GREEN, 10, 0);
  network(INNER, 11, -1);
  gateways.reindex();
  const sinks = Array.from({ length: 4 }, () => rig.sink());
  const batches = sinks.map((sink) => new Batch(sink));
  const entryOf = (frame: number, at: number): number => {
    const destination = dotted(rig.memory.u8.slice(at * 2 + 16, at * 2 + 20));
    if (destination === KEPT) rig.memory.free(frame);
    return destination === FAR ? 7 : destination === KEPT ? WAITS : NO_NODE;
  };
  const back = (frame: number, vtep: number): void => {
    rig.memory.dest[frame] = vtep;
    batches[3].push(frame);
  };
  const mesh = { entryOf, back, ingress: Int32Array.of(1, carried) } as Partial<Mesh> as Mesh;
  const errors = { v4: createIcmpErrors(rig.context), v6: createIcmpv6Errors(rig.context) };
  const gateway = createGateway(rig.context, gateways, neighbours, errors, {
    vxlanPort: 4789,
    ports: [null, batches[0]],
    bridge: batches[2],
    mesh: carried === 0 ? null : { element: mesh, forth: batches[2] },
    uplinks: [
      {
        address: addressWord(ip(UPLINK)),
        network: addressWord(ip('192.168.60.0')),
        broadcast: addressWord(ip('192.168.60.255')),
        mtu,
        out: batches[1],
        v6: null,
      },
    ],
  });
  const feed = (inward: boolean, bytes: Uint8Array, metadata: Metadata) => {
    rig.feed(inward ? gateway.fromOutside : gateway.fromInside, rig.put(bytes, metadata));
    for (const batch of batches) batch.flush();
    const [answers, left, entered, back] = sinks.map((sink) => sink.caught.splice(0));
    return { answers, left, entered, back, drops: dropped(gateway.drops) };
  };
  return {
    rig,
    /** From c1, of blue. */
    send: (bytes: Uint8Array, metadata: Metadata = {}) =>
      feed(false, bytes, { ingress: 1, domain: BLUE, ...metadata }),
    receive: (bytes: Uint8Array, metadata: Metadata = {}) => feed(true, bytes, { domain: BLUE, ...metadata }),
  };
}

const fromC1 = (p: Packet = {}): Uint8Array => packet({ source: C1, destination: FAR, ...p });
const toC1 = (p: Packet = {}): Uint8Array => packet({ source: FAR, destination: C1, ...p });

/** The packet with another TTL, its header's checksum right. */
function withTtl(frame: Uint8Array, ttl: number): Uint8Array {
  const copy = frame.slice();
  copy[22] = ttl;
  copy.set([0, 0], 24);
  copy.set(be16(~slowSum(copy.slice(14, 34)) & 0xffff), 24);
  return copy;
}

const long = (p: Packet, bytes: number): Uint8Array => fromC1({ ...p, content: payload(bytes - 28) });

/** `type/code`, source, and the MTU of an error, whose checksums must be right; and that it is about this packet. */
function errorOf({ bytes }: Caught, about: Uint8Array): string {
  const ok =
    badChecksums(bytes).length === 0 &&
    Buffer.from(bytes.slice(42)).equals(about.slice(14, bytes.length - 28));
  return `${bytes[34]}/${bytes[35]} ${dotted(bytes.slice(26, 30))} to ${dotted(bytes.slice(30, 34))} mtu ${(bytes[40] << 8) | bytes[41]}${ok ? '' : ' WRONG'}`;
}

test('a packet out loses one of its TTL and goes to the uplink; padding is cut off', (t) => {
  const { send, rig } = gatewayRig();
  const { left, drops } = send(concat(fromC1(), new Uint8Array(9)));
  t.deepEqual(drops, {});
  t.deepEqual(Buffer.from(left[0].bytes.slice(14)), Buffer.from(withTtl(fromC1(), 63).slice(14)));
  t.is(left[0].domain, BLUE);
  rig.finish(t);
});

test('a packet in gets the MACs of gateway and container, and enters at the port of the gateway', (t) => {
  const { receive, rig } = gatewayRig();
  const { entered } = receive(toC1());
  t.deepEqual(entered[0].bytes, concat(station(1), GATEWAY_MAC, withTtl(toC1(), 63).slice(12)));
  t.is(entered[0].ingress, GATEWAY_PORT);
  t.deepEqual(receive(packet({ source: FAR, destination: '10.0.9.77' })).drops, { 'no-neighbour': 1 });
  t.deepEqual(receive(toC1(), { domain: 9 }).drops['no-gateway'], 1);
  rig.finish(t);
});

const REFUSED: readonly (readonly [title: string, bytes: Uint8Array, reason: string, error?: string])[] = [
  [
    'another network',
    fromC1({ destination: '10.0.10.1' }),
    'between-networks',
    `3/13 ${GATEWAY} to ${C1} mtu 0`,
  ],
  [
    "another network's gateway",
    fromC1({ destination: '10.0.10.254' }),
    'between-networks',
    `3/13 ${GATEWAY} to ${C1} mtu 0`,
  ],
  ['VXLAN', fromC1({ destinationPort: 4789 }), 'to-underlay', `3/13 ${GATEWAY} to ${C1} mtu 0`],
  [
    'VXLAN behind options, in a first fragment',
    fromC1({ destinationPort: 4789, options: Uint8Array.of(1, 1, 1, 0), fragment: 0x2000 }),
    'to-underlay',
    `3/13 ${GATEWAY} to ${C1} mtu 0`,
  ],
  ['its own network', fromC1({ destination: '10.0.9.2' }), 'same-network', `3/13 ${GATEWAY} to ${C1} mtu 0`],
  ['TTL 1', withTtl(fromC1(), 1), 'ttl-exceeded', `11/0 ${GATEWAY} to ${C1} mtu 0`],
  ['TTL 0', withTtl(fromC1(), 0), 'ttl-exceeded', `11/0 ${GATEWAY} to ${C1} mtu 0`],
  [
    'a service of the gateway',
    fromC1({ destination: GATEWAY }),
    'not-served',
    `3/3 ${GATEWAY} to ${C1} mtu 0`,
  ],
  [
    'TCP to the gateway',
    fromC1({ destination: GATEWAY, protocol: TCP }),
    'not-served',
    `3/3 ${GATEWAY} to ${C1} mtu 0`,
  ],
  ['multicast', fromC1({ destination: '224.0.0.9' }), 'bad-destination'],
  ['broadcast', fromC1({ destination: '255.255.255.255' }), 'bad-destination'],
  ["broadcast of the uplink's link", fromC1({ destination: '192.168.60.255' }), 'bad-destination'],
  ["network of the uplink's link", fromC1({ destination: '192.168.60.0' }), 'bad-destination'],
  ['broadcast of its own network', fromC1({ destination: '10.0.9.255' }), 'bad-destination'],
  ['loopback', fromC1({ destination: '127.0.0.1' }), 'bad-destination'],
  ['link-local', fromC1({ destination: '169.254.1.1' }), 'bad-destination'],
  ['from elsewhere', fromC1({ source: '10.0.10.1' }), 'bad-source'],
  ["from the gateway's address", fromC1({ source: GATEWAY }), 'bad-source'],
  ['from everybody in the network', fromC1({ source: '10.0.9.255' }), 'bad-source'],
  ['a loose source route', fromC1({ options: Uint8Array.of(131, 7, 4, 192, 0, 2, 1, 0) }), 'source-route'],
  [
    'a source route behind others',
    fromC1({ options: Uint8Array.of(1, 148, 4, 0, 0, 137, 3, 4) }),
    'source-route',
  ],
  ['options that do not add up', fromC1({ options: Uint8Array.of(7, 0, 0, 0) }), 'source-route'],
  ['neither IPv4 nor IPv6', ethernet({ type: 0x8847 }, payload(60)), 'not-ip'],
  ['a wrong header checksum', fromC1().map((byte, i) => (i === 25 ? byte ^ 1 : byte)), 'malformed'],
  ['half a header', fromC1().slice(0, 30), 'malformed'],
  ['an error with TTL 1', withTtl(icmpError(toC1(), { from: C1, to: FAR }), 1), 'ttl-exceeded'],
  ['a later fragment with TTL 1', withTtl(fromC1({ fragment: 8 }), 1), 'ttl-exceeded'],
];

for (const [title, bytes, reason, error] of REFUSED) {
  test(`refused: ${title}`, (t) => {
    const { send, rig } = gatewayRig();
    const { answers, left, drops } = send(bytes);
    t.deepEqual(drops, { [reason]: 1 });
    t.deepEqual(left, []);
    t.deepEqual(
      answers.map((answer) => errorOf(answer, bytes)),
      error === undefined ? [] : [error],
    );
    rig.finish(t);
  });
}

test('what only looks like VXLAN passes, and so does what is published at its port', (t) => {
  const { send, rig } = gatewayRig();
  for (const p of [
    { destinationPort: 4788 },
    { sourcePort: 4789 },
    { protocol: TCP, destinationPort: 4789 },
    { destinationPort: 4789, fragment: 8 },
    { destinationPort: 4789, destination: UPLINK },
  ])
    t.is(send(fromC1(p)).left.length, 1, JSON.stringify(p));
  rig.finish(t);
});

test('networks without an uplink, and what comes from another host', (t) => {
  const { send, rig } = gatewayRig();
  const about = packet({ source: '10.0.11.1', destination: FAR });
  const { answers } = send(about, { domain: INNER });
  t.is(errorOf(answers[0], about), '3/0 10.0.11.254 to 10.0.11.1 mtu 0');
  const { drops } = send(fromC1(), { ingress: REMOTE | 1 });
  t.deepEqual(drops, { 'no-uplink': 1, remote: 1 });
  rig.finish(t);
});

test('echo to the gateway and to the uplink is answered', (t) => {
  const { send, rig } = gatewayRig();
  for (const destination of [GATEWAY, UPLINK]) {
    const [{ bytes }] = send(fromC1({ destination, protocol: ICMP })).answers;
    t.deepEqual(badChecksums(bytes), []);
    t.is(bytes[34], 0);
    t.is(`${dotted(bytes.slice(26, 30))} ${dotted(bytes.slice(30, 34))}`, `${destination} ${C1}`);
    t.deepEqual(bytes.slice(0, 6), station(1));
  }
  rig.finish(t);
});

test('echo in fragments is answered fragment by fragment, by the gateway', (t) => {
  const { send, rig } = gatewayRig();
  const asked = { source: C1, destination: GATEWAY, protocol: ICMP, content: payload(100) };
  const answers = fragmentsOf(asked, [48, 40]).flatMap((frame) => send(frame).answers);
  t.deepEqual(
    answers.map(({ bytes }) => [dotted(bytes.slice(26, 34)), be16At(bytes, 20), badChecksums(bytes)]),
    [0x2000, 0x2006, 0x000b].map((field) => [`${GATEWAY}.${C1}`, field, []]),
  );
  const message = concat(...answers.map(({ bytes }) => bytes.slice(34)));
  t.deepEqual([message[0], slowSum(message)], [0, 0xffff]);
  t.deepEqual(message.slice(8), asked.content);
  // Of a datagram that is no request the first is not; to the uplink's address they go on, for they may be a flow's.
  t.is(send(framed({ ...asked, fragment: 0x2000 }, new Uint8Array(16))).answers.length, 0);
  t.is(send(fromC1({ destination: GATEWAY, fragment: 8 })).answers.length, 0);
  const onward = send(framed({ ...asked, destination: UPLINK, fragment: 8 }, new Uint8Array(16)));
  t.deepEqual([onward.answers.length, onward.left.length], [0, 1]);
  rig.finish(t);
});

test('a unicast ARP request for the gateway is answered', (t) => {
  const { send, rig } = gatewayRig();
  const arp = (operation: number, target: string): Uint8Array =>
    ethernet(
      { to: GATEWAY_MAC, type: 0x0806 },
      concat(be16(1, 0x800, 0x604, operation), station(1), ip(C1), new Uint8Array(6), ip(target)),
    );
  const [{ bytes }] = send(arp(1, GATEWAY)).answers;
  const reply = concat(be16(1, 0x800, 0x604, 2), GATEWAY_MAC, ip(GATEWAY), station(1), ip(C1));
  t.deepEqual(bytes, ethernet({ to: station(1), from: GATEWAY_MAC, type: 0x0806 }, reply));
  t.deepEqual(send(arp(1, C1)).drops, { 'not-served': 1 });
  rig.finish(t);
});

test('with DF, what is longer than the uplink takes is refused with its MTU, whole and as a super-frame', (t) => {
  const { send, rig } = gatewayRig({ mtu: 1400 });
  const df = 0x4000;
  const about = long({ fragment: df }, 1401);
  t.is(errorOf(send(about).answers[0], about), `3/4 ${GATEWAY} to ${C1} mtu 1400`);
  t.is(send(long({ fragment: df }, 1400)).left.length, 1);
  const tcp = fromC1({ protocol: TCP, fragment: df, content: payload(3000) });
  const gso = (gsoSize: number): Metadata => ({
    ...{ offload: (GSO_TCPV4 << OFFLOAD_GSO_SHIFT) | OFFLOAD_NEEDS_CSUM, gsoSize },
    ...{ csumStart: 34, csumOffset: 16 },
  });
  t.is(send(tcp, gso(1360)).left.length, 1);
  t.is(send(tcp, gso(1361)).answers.length, 1);
  rig.finish(t);
});

/** What fragments carry, in the order of their offsets; and whether they fit and agree. */
function reassemble(caught: readonly Caught[], mtu: number): Uint8Array {
  const parts: Uint8Array[] = [];
  let at = 0;
  caught.forEach(({ bytes }, i) => {
    const field = (bytes[20] << 8) | bytes[21];
    if (bytes.length - 14 > mtu || (field & 0x1fff) * 8 !== at) throw new Error(`fragment ${i} is wrong`);
    if (((field & 0x2000) === 0) !== (i === caught.length - 1)) throw new Error('more fragments is wrong');
    if (slowSum(bytes.slice(14, 34)) !== 0xffff) throw new Error('header checksum');
    parts.push(bytes.slice(34));
    at += bytes.length - 34;
  });
  return concat(...parts);
}

test('property: without DF it is cut in order, and nothing is lost; a partial checksum is completed', (t) => {
  fc.assert(
    fc.property(
      fc.record({
        mtu: fc.integer({ min: 576, max: 1400 }),
        size: fc.integer({ min: 1401, max: 1440 }),
        partial: fc.boolean(),
        inward: fc.boolean(),
      }),
      ({ mtu, size, partial, inward }) => {
        const { send, receive, rig } = gatewayRig({ mtu });
        const whole = inward ? toC1({ content: payload(size + 40) }) : fromC1({ content: payload(size) });
        const given = whole.slice();
        if (partial) {
          const sum = slowSum(concat(whole.slice(26, 34), be16(17, whole.length - 34)));
          given.set(be16(sum), 40);
        }
        const metadata = partial ? { offload: OFFLOAD_NEEDS_CSUM, csumStart: 34, csumOffset: 6 } : {};
        const { left, entered } = inward ? receive(given, metadata) : send(given, metadata);
        const pieces = inward ? entered : left;
        if (inward && whole.length - 14 <= 1450) return;
        const got = reassemble(pieces, inward ? 1450 : mtu);
        t.deepEqual(Buffer.from(got), Buffer.from(whole.slice(34)));
        rig.finish(t);
      },
    ),
    { numRuns: 60 },
  );
});

test('of a packet in that does not go on, the error goes out the way of the containers’', (t) => {
  const { receive, rig } = gatewayRig();
  const about = toC1({ fragment: 0x4000, content: payload(1440) });
  const { left, drops } = receive(about);
  t.is(errorOf(left[0], about), `3/4 ${GATEWAY} to ${FAR} mtu 1450`);
  t.is(left[0].domain, BLUE);
  const late = withTtl(toC1(), 1);
  t.is(errorOf(receive(late).left[0], late), `11/0 ${GATEWAY} to ${FAR} mtu 0`);
  t.deepEqual(drops, { 'too-big': 1 });
  rig.finish(t);
});

test('errors are limited: fifty at once, and one a millisecond', (t) => {
  const { send, rig } = gatewayRig();
  const provoke = () => send(withTtl(fromC1(), 1)).answers.length;
  let sent = 0;
  for (let i = 0; i < 80; i++) sent += provoke();
  t.is(sent, 50);
  t.is(rig.counter('icmp-errors', 'limited'), 30);
  rig.context.setTime(1_000_010);
  for (let i = 0; i < 80; i++) sent += provoke();
  t.is(sent, 60);
  rig.finish(t);
});

test('who provokes errors of other kinds keeps nobody from hearing how long a packet may be', (t) => {
  const { send, rig } = gatewayRig({ mtu: 1400 });
  for (let i = 0; i < 80; i++) send(withTtl(fromC1(), 1));
  const about = long({ fragment: 0x4000 }, 1401);
  let sent = 0;
  for (let i = 0; i < 80; i++) sent += send(about).answers.length;
  t.is(sent, 50);
  rig.finish(t);
});

test('property: whatever comes, each frame is sent on, answered or dropped, once', (t) => {
  const bytes = fc.oneof(
    fc.uint8Array({ minLength: 0, maxLength: 200 }),
    fc
      .tuple(
        fc.constantFrom(fromC1(), fromC1({ protocol: ICMP, destination: GATEWAY }), toC1()),
        fc.array(fc.tuple(fc.nat(80), fc.nat(255)), { maxLength: 4 }),
        fc.nat(90),
      )
      .map(([frame, changes, length]) => {
        const copy = frame.slice(0, Math.max(length, 14));
        for (const [at, value] of changes) if (at < copy.length) copy[at] = value;
        return copy;
      }),
  );
  fc.assert(
    fc.property(bytes, fc.boolean(), (frame, inward) => {
      const { send, receive, rig } = gatewayRig();
      if (inward) receive(frame);
      else send(frame);
      t.is(rig.memory.inUse, 0);
    }),
    { numRuns: 500 },
  );
});

test('networks of this host are told from prefixes that only begin as they do', (t) => {
  const gateways = new Gateways();
  const set = (domain: number, subnet: string, length: number) =>
    gateways.set({
      domain,
      v4: { address: ip(subnet), subnet: ip(subnet), length },
      ...{ mac: station(1), uplink: 0, routed: false, mtu: 1450 },
    });
  set(0, '10.0.0.0', 24);
  set(1, '172.16.0.0', 16);
  gateways.reindex();
  const covers = (address: string) => gateways.covers(addressWord(ip(address)));
  t.deepEqual(['10.0.0.7', '172.16.9.9'].map(covers), [true, true]);
  t.deepEqual(['10.0.1.7', '172.17.0.1', '8.8.8.8'].map(covers), [false, false, false]);
  gateways.remove(1);
  gateways.reindex();
  t.false(covers('172.16.9.9'));
});

test('a frame with other content than a packet, framed as one, is not routed', (t) => {
  const { send, rig } = gatewayRig();
  t.deepEqual(send(framed({ source: C1, destination: FAR }, new Uint8Array(0)).slice(0, 20)).drops, {
    malformed: 1,
  });
  rig.finish(t);
});

test('what answers a client of another node goes back to that node, a hop less, in fragments if it must', (t) => {
  const { send, rig } = gatewayRig({ carried: 1400 });
  const { back, left, drops } = send(fromC1());
  t.deepEqual(drops, {});
  t.deepEqual(left, []);
  t.is(back[0].dest, 7);
  t.deepEqual(back[0].bytes.slice(14), withTtl(fromC1(), 63).slice(14));
  t.is(send(fromC1({ destination: '203.0.113.4' })).left.length, 1, 'nobody who came over the mesh');
  const last = withTtl(fromC1(), 1);
  t.is(errorOf(send(last).answers[0], last), `11/0 ${GATEWAY} to ${C1} mtu 0`);
  t.is(send(long({}, 1400)).back.length, 1);
  const parts = send(long({}, 3000)).back;
  t.deepEqual(
    parts.map(({ dest }) => dest),
    [7, 7, 7],
  );
  t.deepEqual(reassemble(parts, 1400), long({}, 3000).slice(34));
  const whole = long({ fragment: 0x4000 }, 1401);
  t.is(errorOf(send(whole).answers[0], whole), `3/4 ${GATEWAY} to ${C1} mtu 1400`);
  rig.finish(t);
});

test("what the mesh keeps is none of the gateway's any more", (t) => {
  const { send, rig } = gatewayRig({ carried: 1400 });
  const { answers, left, entered, back, drops } = send(fromC1({ destination: KEPT }));
  t.deepEqual([answers, left, entered, back, drops], [[], [], [], [], {}]);
  rig.finish(t);
});

function be16At(bytes: Uint8Array, at: number): number {
  return (bytes[at]! << 8) | bytes[at + 1]!;
}
