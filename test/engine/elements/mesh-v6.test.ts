import test from 'ava';
import { NO_NODE } from '../../../engine/elements/mesh/ways.js';
import { FLOOD_VTEPS } from '../../../engine/memory/frames.js';
import { flowKeyHash, IPV6_FLOW, OWNER_SHIFT } from '../../../engine/tables/flows.js';
import { words16 } from '../../../engine/wire/ipv6.js';
import { backend, service } from '../../support/balancer.js';
import { concat, ip, station } from '../../support/frames.js';
import {
  BACK,
  BACKEND6,
  BLUE,
  FORTH,
  GATEWAY_MAC,
  INGRESS,
  MeshNode,
  meshed,
  NODE_A,
  NODE_B,
  PORT,
} from '../../support/mesh.js';
import { ACK, FIN, RST, SYN } from '../../support/nat.js';
import { answerToV6, endsV6, ICMPV6, icmpv6Error, packetV6, soundV6 } from '../../support/nat6.js';

const CLIENT = '2001:db8::7';
const TCP = 6;

const segment = (flags: number, more = {}) =>
  packetV6({
    ...{ protocol: TCP, flags, source: CLIENT, destination: BACKEND6, sourcePort: 4000, destinationPort: 80 },
    ...more,
  });
const syn = segment(SYN);

/** Gives a node's NAT the flow of the connection, as the packet from outside made it. */
function admit({ addresses, flows }: MeshNode): void {
  const [own, remote] = [BACKEND6, CLIENT].map((one) => addresses.hold(words16(ip(one)), 0));
  const key = TCP | IPV6_FLOW | (0 << OWNER_SHIFT) | ((BLUE + 1) << 16);
  flows.create(own!, remote!, 0xa00f5000 | 0, key, own!, 2);
  if (
    flows.find(flowKeyHash(1, own!, remote!, 0xa00f5000 | 0, key), own!, remote!, 0xa00f5000 | 0, key) === 0
  )
    throw new Error('no flow');
}

test('a packet finds its backend on another node, and the answer the node it came by', (t) => {
  const a = new MeshNode(NODE_B);
  const sent = a.forth(syn).tunnel!;
  t.deepEqual([sent.dest, sent.domain], [NODE_B, INGRESS]);
  t.deepEqual(sent.bytes.slice(0, 6), FORTH);
  t.deepEqual(sent.bytes.slice(12), syn.slice(12), 'nothing but the addresses of the frame is another');
  const b = new MeshNode(PORT);
  const there = b.arrives(sent.bytes, NODE_A).port!;
  t.deepEqual(there.bytes.slice(12), syn.slice(12));
  t.deepEqual(there.bytes.slice(0, 12), concat(station(1), GATEWAY_MAC));
  t.is(there.domain, BLUE);
  const { vtep, tunnel } = b.answers(answerToV6(syn, SYN | ACK));
  t.is(vtep, NODE_A);
  t.deepEqual([tunnel!.dest, tunnel!.domain, tunnel!.bytes.slice(0, 6)], [NODE_A, INGRESS, BACK]);
  t.falsy(a.arrives(tunnel!.bytes, NODE_B).outside, 'who has not come in here');
  t.deepEqual(a.drops(), { 'no-flow': 1 });
  admit(a);
  const back = a.arrives(tunnel!.bytes, NODE_B).outside!;
  t.is(endsV6(back.bytes), `[${BACKEND6}]:80 > [${CLIENT}]:4000`);
  t.is(back.domain, BLUE);
  a.rig.finish(t);
  b.rig.finish(t);
});

test('a backend that is not known is looked for on all nodes', (t) => {
  const nowhere = new MeshNode(undefined).forth(syn).tunnel!;
  t.is(nowhere.dest, FLOOD_VTEPS);
  t.truthy(new MeshNode(PORT).arrives(nowhere.bytes, NODE_A).port);
});

test('a connection from before this process: what the backend says goes to all nodes', (t) => {
  const b = new MeshNode(PORT);
  const published = { uplink: 0, protocol: TCP, port: 8080, target: 80 };
  const backends = [backend(1, { address: ip(BACKEND6) })];
  b.mesh.origins.set([service({ domain: BLUE, publish: [published], backends })]);
  t.is(b.answers(answerToV6(syn, ACK)).vtep, FLOOD_VTEPS);
  t.is(b.answers(answerToV6(syn, SYN | ACK)).vtep, NO_NODE, 'nothing begins so');
  admit(b);
  t.is(b.answers(answerToV6(syn, ACK)).vtep, NO_NODE, 'the client came by this node');
  b.rig.finish(t);
});

test('what a backend sends of its own accord is none of the mesh', (t) => {
  const b = new MeshNode(PORT);
  t.is(b.answers(answerToV6(syn, SYN | ACK)).vtep, NO_NODE);
  b.arrives(meshed(syn, FORTH), NODE_A);
  t.is(b.answers(answerToV6(segment(SYN, { sourcePort: 4001 }), SYN | ACK)).vtep, NO_NODE);
  b.mesh.ingress[0] = -1;
  t.is(b.answers(answerToV6(syn, SYN | ACK)).vtep, NO_NODE, 'without an ingress network');
  b.rig.finish(t);
});

test('a client that comes by another node too is reset, until the first connection is over', (t) => {
  const b = new MeshNode(PORT);
  t.truthy(b.arrives(meshed(syn, FORTH), NODE_A).port);
  t.falsy(b.arrives(meshed(syn, FORTH), NODE_B).port);
  t.deepEqual(b.drops(), { conflict: 1 });
  const reset = b.sent()!;
  t.deepEqual(
    [reset.dest, endsV6(reset.bytes), reset.bytes[67], soundV6(reset.bytes)],
    [NODE_B, `[${BACKEND6}]:80 > [${CLIENT}]:4000`, RST | ACK, true],
  );
  b.answers(answerToV6(syn, SYN | ACK));
  b.arrives(meshed(segment(ACK), FORTH), NODE_A);
  b.arrives(meshed(segment(FIN | ACK), FORTH), NODE_A);
  b.answers(answerToV6(syn, FIN | ACK));
  t.truthy(b.arrives(meshed(syn, FORTH), NODE_B).port);
  t.is(b.answers(answerToV6(syn, SYN | ACK)).vtep, NODE_B);
  b.rig.finish(t);
});

test('UDP by another node goes back by it', (t) => {
  const b = new MeshNode(PORT);
  const datagram = packetV6({ source: CLIENT, destination: BACKEND6 });
  for (const node of [NODE_A, NODE_B]) {
    t.truthy(b.arrives(meshed(datagram, FORTH), node).port);
    t.is(b.answers(answerToV6(datagram)).vtep, node);
  }
  t.is(b.flows.size, 1);
  b.rig.finish(t);
});

test('an ICMPv6 error about what a backend sent reaches it, one about nothing does not', (t) => {
  const b = new MeshNode(PORT);
  const error = meshed(
    icmpv6Error(answerToV6(syn, ACK), { from: CLIENT, to: BACKEND6, type: 2, argument: 1280 }),
    FORTH,
  );
  t.falsy(b.arrives(error, NODE_A).port);
  b.arrives(meshed(syn, FORTH), NODE_A);
  t.truthy(b.arrives(error, NODE_A).port);
  t.deepEqual(b.drops(), { 'not-served': 1 });
  b.rig.finish(t);
});

test('a flow of the mesh holds its two addresses as long as it lives', (t) => {
  const b = new MeshNode(PORT, 2);
  for (let n = 1; n < 9; n++)
    t.truthy(b.arrives(meshed(segment(SYN, { source: `2001:db8::${n}` }), FORTH), NODE_A).port);
  t.deepEqual([b.flows.size, b.addresses.size], [2, 3]);
  for (let i = 0; i < 3; i++) b.flows.expire(b.rig.context.seconds + 300, 100);
  t.deepEqual([b.flows.size, b.addresses.size], [0, 0]);
  b.rig.finish(t);
});

test('every reason to drop', (t) => {
  const b = new MeshNode(PORT, 1);
  const refused = (frame: Uint8Array, reason: string): void => {
    const before = b.drops()[reason] ?? 0;
    t.falsy(b.arrives(frame, NODE_A).port, reason);
    t.is(b.drops()[reason], before + 1, reason);
    t.is(b.addresses.size, b.flows.size * 2, 'no address is left over');
  };
  refused(meshed(syn.slice(0, 60), FORTH), 'malformed');
  refused(meshed(packetV6({ source: CLIENT, destination: 'fd00:9::77' }), FORTH), 'not-here');
  refused(meshed(segment(RST), FORTH), 'no-flow');
  refused(meshed(answerToV6(syn, ACK), BACK), 'no-flow');
  refused(meshed(packetV6({ protocol: 132, source: CLIENT, destination: BACKEND6 }), FORTH), 'not-served');
  refused(meshed(packetV6({ protocol: ICMPV6, source: CLIENT, destination: BACKEND6 }), FORTH), 'not-served');
  t.truthy(b.arrives(meshed(syn, FORTH), NODE_A).port);
  b.flows.words[(1 << 4) + 7] = 13;
  refused(meshed(packetV6({ source: CLIENT, destination: BACKEND6 }), FORTH), 'table-full');
  b.gateways.remove(BLUE);
  refused(meshed(syn, FORTH), 'not-here');
  b.rig.finish(t);
});
