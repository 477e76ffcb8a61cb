/** What of a backend goes back over the mesh beside its packets, over IPv4 and IPv6: ICMP errors, fragments, resets. */
import test, { type ExecutionContext } from 'ava';
import { NO_NODE, WAITS } from '../../../engine/elements/mesh/ways.js';
import { ESTABLISHED, TRANSITORY } from '../../../engine/tables/connection.js';
import { EXPIRY, FLOW_SHIFT, flowKeyHash, IPV6_FLOW, STATE } from '../../../engine/tables/flows.js';
import { addressWord } from '../../../engine/tables/gateways.js';
import { words16 } from '../../../engine/wire/ipv6.js';
import { ip, payload } from '../../support/frames.js';
import {
  BACK,
  BACKEND,
  BACKEND6,
  BLUE,
  FORTH,
  MeshNode,
  meshed,
  NODE_A,
  NODE_B,
  PORT,
} from '../../support/mesh.js';
import {
  ACK,
  answerTo,
  badChecksums,
  ends,
  fragmentsOf,
  ICMP,
  icmpError,
  type Packet,
  packet,
  RST,
  SYN,
  TCP,
  UDP,
} from '../../support/nat.js';
import {
  answerToV6,
  endsV6,
  fragmentsOfV6,
  ICMPV6,
  icmpv6Error,
  packetV6,
  soundV6,
} from '../../support/nat6.js';

const CLIENT = '198.51.100.7';
const CLIENT6 = '2001:db8::7';
const ENDS = { sourcePort: 4000, destinationPort: 80 };
type Ends = Pick<Packet, 'protocol' | 'flags' | 'sourcePort' | 'destinationPort' | 'content'>;

/** Packets of one family. */
interface Family {
  readonly title: string;
  readonly icmp: number;
  readonly toBackend: (p?: Ends) => Uint8Array;
  readonly answerTo: (frame: Uint8Array, flags?: number) => Uint8Array;
  /** Port unreachable, from the backend about a packet. */
  readonly error: (frame: Uint8Array) => Uint8Array;
  /** A packet of the backend to the client, UDP unless told, in pieces. */
  readonly pieces: (id: number, protocol?: number) => Uint8Array[];
  readonly ends: (frame: Uint8Array) => string;
  readonly sound: (frame: Uint8Array) => boolean;
  /** Where a frame has TCP's flags. */
  readonly flagsAt: number;
  /** The backend and the client, as flows of a node have them. */
  readonly numbers: (node: MeshNode) => readonly [number, number];
  /** The bit of a key that says so. */
  readonly family: number;
}

const families: readonly Family[] = [
  {
    title: 'IPv4',
    icmp: ICMP,
    toBackend: (p) => packet({ source: CLIENT, destination: BACKEND, ...ENDS, ...p }),
    answerTo,
    error: (frame) => icmpError(frame, { from: BACKEND, to: CLIENT, code: 3 }),
    pieces: (id, protocol = UDP) =>
      fragmentsOf(
        {
          protocol,
          source: BACKEND,
          destination: CLIENT,
          sourcePort: 80,
          destinationPort: 4000,
          content: payload(100),
          id,
        },
        [40, 40],
      ),
    ends,
    sound: (frame) => badChecksums(frame).length === 0,
    flagsAt: 47,
    numbers: () => [addressWord(ip(BACKEND)), addressWord(ip(CLIENT))],
    family: 0,
  },
  {
    title: 'IPv6',
    icmp: ICMPV6,
    toBackend: (p) => packetV6({ source: CLIENT6, destination: BACKEND6, ...ENDS, ...p }),
    answerTo: answerToV6,
    error: (frame) => icmpv6Error(frame, { from: BACKEND6, to: CLIENT6, code: 4 }),
    pieces: (id, protocol = UDP) =>
      fragmentsOfV6(
        {
          protocol,
          source: BACKEND6,
          destination: CLIENT6,
          sourcePort: 80,
          destinationPort: 4000,
          content: payload(100),
        },
        40,
        id,
      ),
    ends: endsV6,
    sound: soundV6,
    flagsAt: 67,
    numbers: ({ addresses }) => {
      const [own, remote] = [BACKEND6, CLIENT6].map((one) => addresses.hold(words16(ip(one)), 0));
      return [own!, remote!];
    },
    family: IPV6_FLOW,
  },
];

/** A node with the backend, to which the client has come by node A. */
function served(t: ExecutionContext, frame: Uint8Array): MeshNode {
  const b = new MeshNode(PORT);
  t.truthy(b.arrives(meshed(frame, FORTH), NODE_A).port);
  return b;
}

for (const {
  title,
  icmp,
  toBackend,
  answerTo,
  error,
  pieces,
  ends,
  sound,
  flagsAt,
  numbers,
  family,
} of families) {
  test(`${title}: an ICMP error of a backend goes to the node that the client came by, and out there`, (t) => {
    for (const frame of [toBackend(), toBackend({ protocol: TCP, flags: SYN })]) {
      const b = served(t, frame);
      const expiry = b.flows.words[(1 << FLOW_SHIFT) + EXPIRY];
      b.rig.context.setTime(b.rig.context.now + 10_000);
      const { vtep, tunnel } = b.answers(error(frame));
      t.deepEqual([vtep, tunnel!.dest, tunnel!.bytes.slice(0, 6)], [NODE_A, NODE_A, BACK]);
      t.deepEqual(tunnel!.bytes.slice(12), error(frame).slice(12), 'as it was');
      t.is(b.flows.words[(1 << FLOW_SHIFT) + EXPIRY], expiry, 'RFC 5508, REQ-6: it keeps no flow alive');
      // Whether it has a flow is for the NAT to say, which makes none of an error.
      t.truthy(new MeshNode(undefined).arrives(tunnel!.bytes, NODE_B).outside);
      b.rig.finish(t);
    }
  });

  test(`${title}: what is no ICMP error about a client's packet is none of the mesh`, (t) => {
    const b = served(t, toBackend());
    const broken = error(toBackend());
    broken[broken.length - 1]! ^= 1;
    for (const [what, frame] of [
      ['about another port', error(toBackend({ destinationPort: 81 }))],
      ['about another protocol', error(toBackend({ protocol: TCP, flags: SYN }))],
      ['with a wrong checksum', broken],
      ['an echo', answerTo(toBackend({ protocol: icmp }))],
    ] as const)
      t.is(b.answers(frame).vtep, NO_NODE, what);
    const a = new MeshNode(NODE_B);
    t.falsy(a.arrives(meshed(answerTo(toBackend({ protocol: icmp })), BACK), NODE_B).outside);
    t.deepEqual(a.drops(), { 'no-flow': 1 }, 'an echo would make a flow of the NAT');
    a.rig.finish(t);
    b.rig.finish(t);
  });

  test(`${title}: fragments of a backend take the way of the first one, which they may overtake`, (t) => {
    const b = served(t, toBackend());
    const [first, ...others] = pieces(1);
    for (const piece of [first!, ...others]) t.is(b.answers(piece).vtep, NODE_A);
    const [later, ...overtaking] = pieces(2);
    for (const piece of overtaking) {
      const { vtep, tunnel } = b.answers(piece);
      t.deepEqual([vtep, tunnel], [WAITS, undefined]);
    }
    t.is(b.answers(later!).vtep, NODE_A);
    const waited = b.waited();
    t.deepEqual(waited, overtaking, 'the gateway gets them again as they were');
    for (const piece of waited) t.is(b.answers(piece).vtep, NODE_A);
    const a = new MeshNode(NODE_B);
    const [own, remote] = numbers(a);
    a.flows.create(own, remote, 0xa00f5000 | 0, UDP | family | ((BLUE + 1) << 16), own, 2);
    for (const piece of [overtaking[0]!, later!])
      t.truthy(a.arrives(meshed(piece, BACK), NODE_B).outside, 'the NAT puts them in order');
    a.rig.finish(t);
    b.rig.finish(t);
  });

  test(`${title}: fragments of a datagram that nobody over the mesh gets go out here, in any order`, (t) => {
    const b = new MeshNode(PORT);
    const [first, second, third] = pieces(1);
    t.is(b.answers(second!).vtep, WAITS);
    t.is(b.answers(first!).vtep, NO_NODE);
    t.deepEqual(b.waited(), [second]);
    for (const piece of [second!, third!]) t.is(b.answers(piece).vtep, NO_NODE);
    b.mesh.ingress[0] = -1;
    t.is(b.answers(pieces(2)[1]!).vtep, NO_NODE, 'and none waits without an ingress network');
    b.rig.finish(t);
  });

  test(`${title}: fragments whose first one does not come are given up, and few wait`, (t) => {
    const b = served(t, toBackend());
    for (let i = 0; i < 17; i++) t.is(b.answers(pieces(1)[1]!).vtep, WAITS);
    t.deepEqual(b.drops(), { fragment: 1 });
    b.rig.context.setTime(b.rig.context.now + 4000);
    b.mesh.expire();
    t.deepEqual(b.drops(), { fragment: 1 });
    b.rig.context.setTime(b.rig.context.now + 3000);
    b.mesh.expire();
    t.deepEqual(b.drops(), { fragment: 17 });
    b.rig.finish(t);
  });

  test(`${title}: what a backend says in a connection that the client's node does not know is reset`, (t) => {
    const opening = toBackend({ protocol: TCP, flags: SYN });
    const b = served(t, opening);
    b.answers(answerTo(opening, SYN | ACK));
    b.arrives(meshed(toBackend({ protocol: TCP, flags: ACK }), FORTH), NODE_A);
    const state = (): number => b.flows.words[(1 << FLOW_SHIFT) + STATE]!;
    t.is(state(), ESTABLISHED);
    const { tunnel } = b.answers(answerTo(opening, ACK));
    const a = new MeshNode(NODE_B);
    t.falsy(a.arrives(tunnel!.bytes, NODE_B).outside);
    const reset = a.sent()!;
    t.deepEqual([reset.dest, reset.bytes.slice(0, 6)], [NODE_B, FORTH]);
    t.deepEqual([reset.bytes[flagsAt], ends(reset.bytes)], [RST, ends(opening)]);
    t.true(sound(reset.bytes));
    t.deepEqual([a.drops(), a.rig.counter('mesh', 'resets')], [{ 'no-flow': 1 }, 1]);
    t.is(ends(b.arrives(reset.bytes, NODE_A).port!.bytes), ends(opening));
    t.is(state(), TRANSITORY, 'the flow is over with it');
    a.rig.finish(t);
    b.rig.finish(t);
  });

  test(`${title}: what a backend says in a connection that has ended just now, and came in here, is reset`, (t) => {
    const b = new MeshNode(PORT);
    const opening = toBackend({ protocol: TCP, flags: SYN });
    const [own, remote] = numbers(b);
    const key = TCP | family | ((BLUE + 1) << 16);
    b.flows.ended.add(flowKeyHash(1, own, remote, 0xa00f5000 | 0, key));
    t.is(b.answers(answerTo(opening, ACK)).vtep, WAITS);
    const reset = b.station()!;
    t.deepEqual([reset[flagsAt], ends(reset), sound(reset)], [RST, ends(opening), true]);
    t.is(b.answers(answerTo(opening, RST)).vtep, NO_NODE, 'but no reset is');
    for (const piece of pieces(1, TCP)) t.is(b.answers(piece).vtep, NO_NODE, 'and no fragment');
    t.is(b.answers(answerTo(toBackend({ protocol: TCP, destinationPort: 81 }), ACK)).vtep, NO_NODE);
    // The client has begun anew with the same ports.
    b.flows.create(own, remote, 0xa00f5000 | 0, key, own, 2);
    t.is(b.answers(answerTo(opening, SYN | ACK)).vtep, NO_NODE);
    t.deepEqual(b.drops(), { 'no-flow': 1 });
    b.rig.finish(t);
  });

  test(`${title}: nobody is reset who asks all nodes, resets, or has no connection`, (t) => {
    const a = new MeshNode(NODE_B);
    const opening = toBackend({ protocol: TCP, flags: SYN });
    const toAll = meshed(answerTo(opening, ACK), BACK);
    toAll[0] = 7;
    for (const frame of [
      toAll,
      meshed(answerTo(opening, RST), BACK),
      meshed(answerTo(toBackend()), BACK),
      meshed(answerTo(toBackend({ protocol: 132 })), BACK),
    ]) {
      t.falsy(a.arrives(frame, NODE_B).outside);
      t.is(a.sent(), undefined);
    }
    t.deepEqual(a.drops(), { 'no-flow': 4 });
    a.rig.finish(t);
  });
}
