import test from 'ava';
import fc from 'fast-check';
import { createGateway } from '../../../engine/elements/gateway.js';
import { createIcmpErrors } from '../../../engine/elements/icmp-errors.js';
import { createIcmpv6Errors } from '../../../engine/elements/icmpv6-errors.js';
import { NO_NODE, WAITS } from '../../../engine/elements/mesh/ways.js';
import type { Mesh } from '../../../engine/elements/mesh.js';
import { Batch } from '../../../engine/graph.js';
import { GATEWAY_PORT } from '../../../engine/intent.js';
import {
  GSO_TCPV6,
  GSO_UDP_L4,
  OFFLOAD_GSO_SHIFT,
  OFFLOAD_NEEDS_CSUM,
} from '../../../engine/memory/frames.js';
import { Gateways } from '../../../engine/tables/gateways.js';
import { Neighbours } from '../../../engine/tables/neighbours.js';
import { words16 } from '../../../engine/wire/ipv6.js';
import {
  be16,
  type Caught,
  concat,
  dropped,
  ip,
  type Metadata,
  mac,
  payload,
  Rig,
  slowSum,
  station,
} from '../../support/frames.js';
import {
  destinationV6,
  fragmentsOfV6,
  framedV6,
  ICMPV6,
  icmpv6Error,
  type PacketV6,
  packetV6,
  soundV6,
  sourceV6,
} from '../../support/nat6.js';

const BLUE = 3;
const GREEN = 4;
const INNER = 5;
const PLAIN = 6;
const C1 = 'fd00:9::1';
const GATEWAY = 'fd00:9::fe';
const UPLINK = 'fd00:60::10';
const FAR = '2001:db8::2';
const GATEWAY_MAC = mac('02:42:00:00:09:fe');
/** Last byte of an address. */
const KEPT = 3;

/**
 * A gateway of blue (MTU 1450) and green with an uplink (MTU 1500 unless told), and of inner without.
 * @param carried largest packet of a mesh, by which FAR came from VTEP 7, and which frees what is for KEPT; 0: there is no mesh.
 */
function gatewayRig({ mtu = 1500, v6 = true, carried = 0 } = {}) {
  const rig = new Rig();
  rig.context.setTime(1_000_000);
  const gateways = new Gateways();
  const neighbours = new Neighbours(1);
  neighbours.set(BLUE, ip(C1), station(1));
  const network = (domain: number, group: number, uplink: number) =>
    gateways.set({
      domain,
      v6: { address: ip(`fd00:${group}::fe`), subnet: ip(`fd00:${group}::`), length: 64 },
      ...{ mac: mac(`02:42:00:00:0${group.toString(16)}:fe`), uplink, mtu: 1450, routed: false },
    });
  network(BLUE, 9, 0);
  network(GREEN, 10, 0);
  network(INNER, 11, -1);
  gateways.set({
    ...{ domain: PLAIN, v4: { address: ip('10.0.9.254'), subnet: ip('10.0.9.0'), length: 24 } },
    ...{ mac: GATEWAY_MAC, uplink: 0, mtu: 1450, routed: false },
  });
  gateways.reindex();
  const sinks = Array.from({ length: 5 }, () => rig.sink());
  const batches = sinks.map((sink) => new Batch(sink));
  const meshOf = (largest: number): Mesh => {
    const entryOfV6 = (frame: number, at: number): number => {
      if (at !== (rig.memory.off[frame] + 14) >> 1) throw new Error('not the header');
      const last = rig.memory.u8[at * 2 + 39];
      if (last === KEPT) rig.memory.free(frame);
      return last === 2 ? 7 : last === KEPT ? WAITS : NO_NODE;
    };
    const back = (frame: number, vtep: number): void => {
      rig.memory.dest[frame] = vtep;
      batches[4].push(frame);
    };
    return { entryOfV6, back, ingress: Int32Array.of(1, largest) } as Partial<Mesh> as Mesh;
  };
  const errors = { v4: createIcmpErrors(rig.context), v6: createIcmpv6Errors(rig.context) };
  const gateway = createGateway(rig.context, gateways, neighbours, errors, {
    vxlanPort: 4789,
    ports: [null, batches[0]],
    bridge: batches[2],
    mesh: carried === 0 ? null : { element: meshOf(carried), forth: batches[3] },
    uplinks: [
      {
        ...{ address: 0, network: 0, broadcast: 0, mtu, out: new Batch(rig.sink()) },
        v6: v6 ? { address: words16(ip(UPLINK)), out: batches[1] } : null,
      },
    ],
  });
  const feed = (way: 'fromInside' | 'fromOutside' | 'fromMesh', bytes: Uint8Array, metadata: Metadata) => {
    rig.feed(gateway[way], rig.put(bytes, metadata));
    for (const batch of batches) batch.flush();
    const [answers, left, entered, forth, back] = sinks.map((sink) => sink.caught.splice(0));
    return {
      answers,
      left,
      entered,
      forth,
      back,
      drops: { ...dropped(gateway.drops), ...dropped(gateway.dropsV6) },
    };
  };
  return {
    rig,
    /** From c1, of blue. */
    send: (bytes: Uint8Array, metadata: Metadata = {}) =>
      feed('fromInside', bytes, { ingress: 1, domain: BLUE, ...metadata }),
    receive: (bytes: Uint8Array, metadata: Metadata = {}) =>
      feed('fromOutside', bytes, { domain: BLUE, ...metadata }),
    /** What came back from another node. */
    comeBack: (bytes: Uint8Array) => feed('fromMesh', bytes, { domain: BLUE }),
  };
}

const fromC1 = (p: PacketV6 = {}): Uint8Array => packetV6({ source: C1, destination: FAR, ...p });
const toC1 = (p: PacketV6 = {}): Uint8Array => packetV6({ source: FAR, destination: C1, ...p });
const long = (bytes: number, p: PacketV6 = {}): Uint8Array => fromC1({ ...p, content: payload(bytes - 48) });

/** The packet one hop further. */
function hopped(frame: Uint8Array): Uint8Array {
  return frame.map((byte, i) => (i === 21 ? byte - 1 : byte));
}

/** `type/code`, ends, and the MTU of an error, whose checksum must be right; and that it is about this packet. */
function errorOf({ bytes }: Caught, about: Uint8Array): string {
  const quoted = Buffer.from(bytes.slice(62));
  const ok = soundV6(bytes) && quoted.equals(about.slice(14, 14 + quoted.length)) && bytes.length <= 1294;
  return `${bytes[54]}/${bytes[55]} ${sourceV6(bytes)} to ${destinationV6(bytes)} mtu ${(bytes[60] << 8) | bytes[61]}${ok ? '' : ' WRONG'}`;
}

/** A solicitation of an address, from c1 unless told, unicast to the gateway. */
function solicitation(target: string, { source = C1, option = true } = {}): Uint8Array {
  const destination = GATEWAY;
  const message = concat(
    Uint8Array.of(135, 0, 0, 0, 0, 0, 0, 0),
    ip(target),
    option ? concat(Uint8Array.of(1, 1), station(1)) : new Uint8Array(0),
  );
  const pseudo = slowSum(concat(ip(source), ip(destination), be16(ICMPV6, message.length)));
  message.set(be16(~slowSum(message, pseudo) & 0xffff), 2);
  return framedV6(
    { source, destination, protocol: ICMPV6, hopLimit: 255, to: GATEWAY_MAC, from: station(1) },
    message,
  );
}

test('a packet out loses one hop and goes to the uplink; padding is cut off', (t) => {
  const { send, rig } = gatewayRig();
  const { left, drops } = send(concat(fromC1(), new Uint8Array(9)));
  t.deepEqual(drops, {});
  t.deepEqual(Buffer.from(left[0].bytes.slice(14)), Buffer.from(hopped(fromC1()).slice(14)));
  t.is(left[0].domain, BLUE);
  rig.finish(t);
});

test('a packet in gets the MACs of gateway and container, and enters at the port of the gateway', (t) => {
  const { receive, rig } = gatewayRig();
  const { entered } = receive(toC1());
  t.deepEqual(entered[0].bytes, concat(station(1), GATEWAY_MAC, hopped(toC1()).slice(12)));
  t.is(entered[0].ingress, GATEWAY_PORT);
  t.deepEqual(receive(packetV6({ source: FAR, destination: 'fd00:9::77' })).drops, { 'no-neighbour': 1 });
  t.is(receive(toC1(), { domain: 9 }).drops['no-gateway'], 1);
  rig.finish(t);
});

/** An extension header of eight bytes. */
const extension = (next: number, second = 0, third = 0): Uint8Array =>
  Uint8Array.of(next, second, third, third, 0, 0, 0, 0);

const PROHIBITED = `1/1 ${GATEWAY} to ${C1} mtu 0`;
const REFUSED: readonly (readonly [title: string, bytes: Uint8Array, reason: string, error?: string])[] = [
  ['another network', fromC1({ destination: 'fd00:10::1' }), 'between-networks', PROHIBITED],
  ["another network's gateway", fromC1({ destination: 'fd00:10::fe' }), 'between-networks', PROHIBITED],
  ['an internal network', fromC1({ destination: 'fd00:11::1' }), 'between-networks', PROHIBITED],
  ['its own network', fromC1({ destination: 'fd00:9::2' }), 'same-network', PROHIBITED],
  ['hop limit 1', fromC1({ hopLimit: 1 }), 'hop-limit', `3/0 ${GATEWAY} to ${C1} mtu 0`],
  ['hop limit 0', fromC1({ hopLimit: 0 }), 'hop-limit', `3/0 ${GATEWAY} to ${C1} mtu 0`],
  ['a service', fromC1({ destination: GATEWAY }), 'not-served', `1/4 ${GATEWAY} to ${C1} mtu 0`],
  [
    'TCP to the gateway',
    fromC1({ destination: GATEWAY, protocol: 6 }),
    'not-served',
    `1/4 ${GATEWAY} to ${C1} mtu 0`,
  ],
  ['SCTP to the gateway', fromC1({ destination: GATEWAY, protocol: 132 }), 'not-served'],
  ['a group', fromC1({ destination: 'ff0e::1' }), 'bad-destination'],
  ['link-local', fromC1({ destination: 'fe80::1' }), 'bad-destination'],
  ['loopback', fromC1({ destination: '::1' }), 'bad-destination'],
  ['IPv4-mapped', fromC1({ destination: '::ffff:c000:201' }), 'bad-destination'],
  ['from elsewhere', fromC1({ source: 'fd00:10::1' }), 'bad-source'],
  ['from the link alone', fromC1({ source: 'fe80::1' }), 'bad-source'],
  ["from the gateway's address", fromC1({ source: GATEWAY }), 'bad-source'],
  ['VXLAN', fromC1({ destinationPort: 4789 }), 'to-underlay', `1/1 ${GATEWAY} to ${C1} mtu 0`],
  [
    'VXLAN behind other headers',
    fromC1({ destinationPort: 4789, extensions: extension(17), first: 60 }),
    'to-underlay',
    `1/1 ${GATEWAY} to ${C1} mtu 0`,
  ],
  ['a source route', fromC1({ extensions: extension(17, 0, 1), first: 43 }), 'source-route'],
  [
    'hop-by-hop options behind others',
    fromC1({ extensions: concat(extension(0), extension(17)), first: 60 }),
    'malformed',
  ],
  ['extension headers that do not end', fromC1({ extensions: extension(60, 200), first: 60 }), 'malformed'],
  ['half a header', fromC1().slice(0, 50), 'malformed'],
  ['less than it says', fromC1().slice(0, 60), 'malformed'],
  ['an error with hop limit 1', erring(), 'hop-limit'],
  [
    'a later fragment of ICMPv6 with hop limit 1',
    fromC1({ hopLimit: 1, protocol: ICMPV6, extensions: Uint8Array.of(58, 0, 0, 8, 0, 0, 0, 1), first: 44 }),
    'hop-limit',
  ],
];

function erring(): Uint8Array {
  const error = icmpv6Error(toC1(), { from: C1, to: FAR });
  error[21] = 1;
  return error;
}

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

test('extension headers that add up pass, a whole fragment and a routing header at its end included', (t) => {
  const { send, rig } = gatewayRig();
  const chain = concat(extension(60), extension(43), extension(44), extension(17));
  t.is(send(fromC1({ extensions: chain, first: 0 })).left.length, 1);
  rig.finish(t);
});

test('networks without an uplink, uplinks and networks without IPv6', (t) => {
  const { send, rig } = gatewayRig();
  const about = packetV6({ source: 'fd00:11::1', destination: FAR });
  t.is(errorOf(send(about, { domain: INNER }).answers[0], about), '1/0 fd00:11::fe to fd00:11::1 mtu 0');
  t.is(send(fromC1(), { domain: PLAIN }).drops['no-gateway'], 1);
  rig.finish(t);
  const without = gatewayRig({ v6: false });
  const { answers, drops } = without.send(fromC1());
  t.is(errorOf(answers[0], fromC1()), `1/0 ${GATEWAY} to ${C1} mtu 0`);
  t.deepEqual(drops, { 'no-uplink': 1 });
  without.rig.finish(t);
});

test('echo to the gateway and to the uplink is answered', (t) => {
  const { send, rig } = gatewayRig();
  for (const destination of [GATEWAY, UPLINK]) {
    const [{ bytes }] = send(fromC1({ destination, protocol: ICMPV6, hopLimit: 1 })).answers;
    t.true(soundV6(bytes));
    t.is(bytes[54], 129);
    t.is(`${sourceV6(bytes)} ${destinationV6(bytes)} ${bytes[21]}`, `${destination} ${C1} 64`);
    t.deepEqual(bytes.slice(0, 6), station(1));
  }
  rig.finish(t);
});

test('echo in fragments is answered fragment by fragment, by the gateway', (t) => {
  const { send, rig } = gatewayRig();
  const asked = { source: C1, destination: GATEWAY, protocol: ICMPV6, content: payload(100) };
  const frames = fragmentsOfV6(asked, 48, 7);
  const answers = frames.flatMap((frame) => send(frame).answers.map(({ bytes }) => bytes));
  t.deepEqual(
    answers.map((bytes) => `${sourceV6(bytes)} ${destinationV6(bytes)} ${bytes[20]} ${bytes[21]}`),
    frames.map(() => `${GATEWAY} ${C1} 44 64`),
  );
  const message = concat(...answers.map((bytes) => bytes.slice(62)));
  const pseudo = slowSum(concat(ip(GATEWAY), ip(C1), be16(message.length, ICMPV6)));
  t.deepEqual([message[0], slowSum(message, pseudo)], [129, 0xffff]);
  t.deepEqual(message.slice(8), asked.content);
  t.is(
    send(fragmentsOfV6({ source: C1, destination: GATEWAY, content: payload(90) }, 48, 7)[1]).answers.length,
    0,
  );
  rig.finish(t);
});

test('a unicast solicitation of the gateway is answered, whoever asks; of others it is not', (t) => {
  const { send, rig } = gatewayRig();
  for (const source of [C1, 'fe80::1']) {
    for (const option of [true, false]) {
      const [{ bytes }] = send(solicitation(GATEWAY, { source, option })).answers;
      t.true(soundV6(bytes));
      t.deepEqual(bytes.slice(0, 14), concat(station(1), GATEWAY_MAC, be16(0x86dd)));
      t.is(`${sourceV6(bytes)} ${destinationV6(bytes)} ${bytes[21]}`, `${GATEWAY} ${source} 255`);
      // An advertisement of a router, solicited, that overrides.
      t.deepEqual(bytes.slice(54, 56), Uint8Array.of(136, 0));
      t.is(bytes[58], 0xe0);
      t.deepEqual(bytes.slice(62), concat(ip(GATEWAY), Uint8Array.of(2, 1), GATEWAY_MAC));
    }
  }
  t.deepEqual(send(solicitation('fd00:9::2')).drops, { 'not-served': 1 });
  rig.finish(t);
});

test('what is longer than the uplink takes is refused with its MTU, whole and as a super-frame', (t) => {
  const { send, rig } = gatewayRig({ mtu: 1400 });
  const about = long(1401);
  t.is(errorOf(send(about).answers[0], about), `2/0 ${GATEWAY} to ${C1} mtu 1400`);
  t.is(send(long(1400)).left.length, 1);
  const gso = (type: number, gsoSize: number): Metadata => ({
    ...{ offload: (type << OFFLOAD_GSO_SHIFT) | OFFLOAD_NEEDS_CSUM, gsoSize },
    ...{ csumStart: 54, csumOffset: type === GSO_TCPV6 ? 16 : 6 },
  });
  const tcp = fromC1({ protocol: 6, content: payload(3000) });
  t.is(send(tcp, gso(GSO_TCPV6, 1340)).left.length, 1);
  t.is(send(tcp, gso(GSO_TCPV6, 1341)).answers.length, 1);
  const udp = fromC1({ content: payload(3000) });
  t.is(send(udp, gso(GSO_UDP_L4, 1352)).left.length, 1);
  t.is(send(udp, gso(GSO_UDP_L4, 1353)).answers.length, 1);
  rig.finish(t);
});

test('of a packet in that does not go on, the error goes out the way of the containers’', (t) => {
  const { receive, rig } = gatewayRig();
  const about = toC1({ content: payload(1440) });
  const { left, drops } = receive(about);
  t.is(errorOf(left[0], about), `2/0 ${GATEWAY} to ${FAR} mtu 1450`);
  t.is(left[0].domain, BLUE);
  t.deepEqual(drops, { 'too-big': 1 });
  const late = toC1({ hopLimit: 1 });
  t.is(errorOf(receive(late).left[0], late), `3/0 ${GATEWAY} to ${FAR} mtu 0`);
  rig.finish(t);
});

test('errors are limited: fifty at once, and one a millisecond', (t) => {
  const { send, rig } = gatewayRig();
  let sent = 0;
  for (let i = 0; i < 80; i++) sent += send(fromC1({ hopLimit: 1 })).answers.length;
  t.is(sent, 50);
  t.is(rig.counter('icmpv6-errors', 'limited'), 30);
  rig.finish(t);
});

test('what only looks like VXLAN passes, and so does what is published at its port', (t) => {
  const { send, rig } = gatewayRig();
  const later = Uint8Array.of(17, 0, 0, 8, 0, 0, 0, 1);
  for (const p of [
    { sourcePort: 4789 },
    { protocol: 6, destinationPort: 4789 },
    { destinationPort: 4789, extensions: later, first: 44 },
    { destinationPort: 4789, destination: UPLINK },
  ])
    t.is(send(fromC1(p)).left.length, 1, JSON.stringify(p));
  rig.finish(t);
});

test('who provokes errors of other kinds keeps nobody from hearing how long a packet may be', (t) => {
  const { send, rig } = gatewayRig({ mtu: 1400 });
  for (let i = 0; i < 80; i++) send(fromC1({ hopLimit: 1 }));
  let sent = 0;
  for (let i = 0; i < 80; i++) sent += send(long(1401)).answers.length;
  t.is(sent, 50);
  rig.finish(t);
});

test('networks of this host are told from prefixes that only begin as they do', (t) => {
  const gateways = new Gateways();
  const set = (domain: number, subnet: string, length: number) =>
    gateways.set({
      domain,
      v6: { address: ip(subnet), subnet: ip(subnet), length },
      ...{ mac: station(1), uplink: 0, mtu: 1450, routed: false },
    });
  set(0, 'fd00:9::', 64);
  set(1, 'fd01:8000::', 17);
  for (let i = 2; i < 40; i++) set(i, `fd02:${i}::`, 48);
  gateways.reindex();
  const covers = (address: string) => gateways.covers6(words16(ip(address)), 0);
  t.deepEqual(['fd00:9::7', 'fd01:ffff::9', 'fd02:27:0:9::1'].map(covers), [true, true, true]);
  t.deepEqual(['fd00:9:0:1::7', 'fd01:7fff::1', '2001:db8::1'].map(covers), [false, false, false]);
  gateways.remove(1);
  gateways.reindex();
  t.false(covers('fd01:ffff::9'));
});

test('property: whatever comes, each frame is sent on, answered or dropped, once', (t) => {
  const bytes = fc
    .tuple(
      fc.constantFrom(
        fromC1(),
        fromC1({ protocol: ICMPV6, destination: GATEWAY }),
        fromC1({ extensions: concat(extension(60), extension(44), extension(17)), first: 0 }),
        solicitation(GATEWAY),
        toC1(),
      ),
      fc.array(fc.tuple(fc.integer({ min: 14, max: 100 }), fc.nat(255)), { maxLength: 4 }),
      fc.nat(110),
    )
    .map(([frame, changes, length]) => {
      const copy = frame.slice(0, Math.max(length, 14));
      for (const [at, value] of changes) if (at < copy.length) copy[at] = value;
      return copy;
    });
  fc.assert(
    fc.property(bytes, fc.boolean(), (frame, inward) => {
      const { send, receive, rig } = gatewayRig();
      const { answers, left, entered, drops } = inward ? receive(frame) : send(frame);
      const gone = Object.values(drops).reduce((sum, count) => sum + count, 0);
      t.true(answers.length + left.length + entered.length + gone >= 1);
      t.is(rig.memory.inUse, 0);
    }),
    { numRuns: 500 },
  );
});

test('what answers a client of another node goes back to that node, a hop less', (t) => {
  const { send, rig } = gatewayRig({ carried: 1400 });
  const { back, left, drops } = send(fromC1());
  t.deepEqual(drops, {});
  t.deepEqual(left, []);
  t.is(back[0].dest, 7);
  t.deepEqual(back[0].bytes.slice(14), hopped(fromC1()).slice(14));
  t.is(send(fromC1({ destination: '2001:db8::4' })).left.length, 1, 'nobody who came over the mesh');
  const kept = send(fromC1({ destination: '2001:db8::3' }));
  t.deepEqual([kept.answers, kept.left, kept.back, kept.drops], [[], [], [], {}], 'what the mesh keeps');
  const last = fromC1({ hopLimit: 1 });
  t.is(errorOf(send(last).answers[0], last), `3/0 ${GATEWAY} to ${C1} mtu 0`);
  const most = send(long(1400));
  t.is(most.back.length, 1);
  t.is(errorOf(send(long(1401)).answers[0], long(1401)), `2/0 ${GATEWAY} to ${C1} mtu 1400`);
  rig.finish(t);
});

test('with a mesh, a packet in goes where its station is, if it fits', (t) => {
  const { receive, rig } = gatewayRig({ carried: 1400 });
  const { forth, entered } = receive(toC1());
  t.deepEqual(entered, []);
  t.deepEqual(forth[0].bytes.slice(0, 12), concat(station(1), GATEWAY_MAC));
  t.deepEqual(forth[0].bytes.slice(14), hopped(toC1()).slice(14));
  const longer = toC1({ content: payload(1401 - 48) });
  t.is(errorOf(receive(longer).left[0], longer), `2/0 ${GATEWAY} to ${FAR} mtu 1400`);
  rig.finish(t);
});

test('what comes back from another node leaves by the uplink; what is no packet is dropped', (t) => {
  const { comeBack, rig } = gatewayRig({ carried: 1400 });
  t.deepEqual(comeBack(fromC1()).left[0].bytes.slice(14), hopped(fromC1()).slice(14));
  t.deepEqual(comeBack(fromC1().slice(0, 50)).drops, { malformed: 1 });
  rig.finish(t);
});
