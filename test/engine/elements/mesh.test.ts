import test, { type ExecutionContext } from 'ava';
import { NO_NODE } from '../../../engine/elements/mesh/ways.js';
import { meshStations } from '../../../engine/elements/mesh.js';
import { FLOOD_VTEPS } from '../../../engine/memory/frames.js';
import { ESTABLISHED, TRANSITORY } from '../../../engine/tables/connection.js';
import { FLOW_SHIFT, OWNER_SHIFT, STATE } from '../../../engine/tables/flows.js';
import { addressWord } from '../../../engine/tables/gateways.js';
import { backend, service } from '../../support/balancer.js';
import { ip, station } from '../../support/frames.js';
import {
  BACK,
  BACKEND,
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
import { ACK, answerTo, ends, FIN, icmpError, packet, RST, SYN, TCP } from '../../support/nat.js';

const CLIENT = '198.51.100.7';

const first = {
  protocol: TCP,
  flags: SYN,
  source: CLIENT,
  destination: BACKEND,
  sourcePort: 4000,
  destinationPort: 80,
};
const syn = packet(first);

test('a packet finds its backend on another node, and the answer the node it came by', (t) => {
  const a = new MeshNode(NODE_B);
  const sent = a.forth(syn).tunnel!;
  t.deepEqual([sent.dest, sent.domain], [NODE_B, INGRESS]);
  t.deepEqual(sent.bytes.slice(0, 6), FORTH);
  t.deepEqual(sent.bytes.slice(12), syn.slice(12), 'nothing but the addresses of the frame is another');
  const b = new MeshNode(PORT);
  const there = b.arrives(sent.bytes, NODE_A).port!;
  t.is(ends(there.bytes), `${CLIENT}:4000 > ${BACKEND}:80`);
  t.deepEqual([there.bytes.slice(0, 6), there.bytes.slice(6, 12)], [station(1), GATEWAY_MAC]);
  t.is(there.domain, BLUE);
  const answer = answerTo(syn, SYN | ACK);
  const { vtep, tunnel } = b.answers(answer);
  t.is(vtep, NODE_A);
  t.deepEqual([tunnel!.dest, tunnel!.domain, tunnel!.bytes.slice(0, 6)], [NODE_A, INGRESS, BACK]);
  // Node A's NAT has the flow, as the packet from outside made it.
  a.flows.create(
    addressWord(ip(BACKEND)),
    addressWord(ip(CLIENT)),
    0xa00f5000 | 0,
    6 | (0 << OWNER_SHIFT) | (1 << 16),
    1,
    2,
  );
  const back = a.arrives(tunnel!.bytes, NODE_B).outside!;
  t.is(ends(back.bytes), `${BACKEND}:80 > ${CLIENT}:4000`);
  t.is(back.domain, BLUE);
  a.rig.finish(t);
  b.rig.finish(t);
});

test('a backend of this node is reached by the bridge, and one that is not known on all nodes', (t) => {
  const here = new MeshNode(PORT).forth(syn);
  t.is(here.tunnel, undefined);
  t.is(ends(here.bridge!.bytes), `${CLIENT}:4000 > ${BACKEND}:80`);
  const nowhere = new MeshNode(undefined).forth(syn).tunnel!;
  t.is(nowhere.dest, FLOOD_VTEPS);
  t.is(nowhere.bytes[0]! & 1, 1, 'to a group');
  t.is(ends(new MeshNode(PORT).arrives(nowhere.bytes, NODE_A).port!.bytes), `${CLIENT}:4000 > ${BACKEND}:80`);
});

test('what a backend sends of its own accord is none of the mesh', (t) => {
  const b = new MeshNode(PORT);
  t.is(b.answers(answerTo(syn, SYN | ACK)).vtep, NO_NODE);
  b.arrives(meshed(syn, FORTH), NODE_A);
  b.mesh.ingress[0] = -1;
  t.is(b.answers(answerTo(syn, SYN | ACK)).vtep, NO_NODE, 'without an ingress network');
  b.rig.finish(t);
});

test('a client that comes by another node too: not with the same ports, until the first connection is over', (t) => {
  const b = new MeshNode(PORT);
  t.truthy(b.arrives(meshed(syn, FORTH), NODE_A).port);
  t.falsy(b.arrives(meshed(syn, FORTH), NODE_B).port);
  t.deepEqual(b.drops(), { conflict: 1 });
  const reset = b.sent()!;
  t.deepEqual(
    [reset.dest, ends(reset.bytes), reset.bytes[47]],
    [NODE_B, `${BACKEND}:80 > ${CLIENT}:4000`, RST | ACK],
  );
  const segment = (flags: number) =>
    meshed(
      packet({
        protocol: TCP,
        flags,
        source: CLIENT,
        destination: BACKEND,
        sourcePort: 4000,
        destinationPort: 80,
      }),
      FORTH,
    );
  b.answers(answerTo(syn, SYN | ACK));
  b.arrives(segment(ACK), NODE_A);
  b.arrives(segment(FIN | ACK), NODE_A);
  b.answers(answerTo(syn, FIN | ACK));
  t.truthy(b.arrives(meshed(syn, FORTH), NODE_B).port);
  t.is(b.answers(answerTo(syn, SYN | ACK)).vtep, NODE_B);
  b.rig.finish(t);
});

test('a connection from before this process: what the backend says goes to all nodes, and one of them knows it', (t) => {
  const b = new MeshNode(PORT);
  const later = answerTo(syn, ACK);
  t.is(b.answers(later).vtep, NO_NODE, 'nobody has published it');
  const published = { uplink: 0, protocol: 6, port: 8080, target: 80 };
  b.mesh.origins.set([service({ domain: BLUE, publish: [published], backends: [backend(1)] })]);
  const { vtep, tunnel } = b.answers(later);
  t.is(vtep, FLOOD_VTEPS);
  t.is(tunnel!.bytes[0]! & 1, 1, 'to a group');
  for (const [what, frame] of [
    ['that begins', answerTo(syn, SYN | ACK)],
    ['that ends', answerTo(syn, RST)],
    ['of another port', answerTo(packet({ ...first, destinationPort: 81 }), ACK)],
    ['of another station', answerTo(packet({ ...first, destination: '10.0.9.2' }), ACK)],
  ] as const)
    t.is(b.answers(frame).vtep, NO_NODE, what);
  t.is(new MeshNode(PORT).arrives(tunnel!.bytes, NODE_A).port, undefined, 'and nobody else takes it');
  // The client says something: the node that it comes by is known again.
  t.truthy(b.arrives(meshed(packet({ ...first, flags: ACK }), FORTH), NODE_B).port);
  t.is(b.answers(later).vtep, NODE_B);
  b.mesh.origins.set([]);
  b.rig.finish(t);
});

test('what is left of a connection that ended does not stand in the way of one by another node', (t) => {
  const b = new MeshNode(PORT);
  const late = packet({
    ...{ protocol: TCP, flags: ACK, source: CLIENT, destination: BACKEND },
    ...{ sourcePort: 4000, destinationPort: 80 },
  });
  t.truthy(b.arrives(meshed(late, FORTH), NODE_A).port);
  t.is(b.answers(answerTo(syn, RST)).vtep, NODE_A, 'the backend knows of no such connection');
  t.truthy(b.arrives(meshed(syn, FORTH), NODE_B).port);
  t.is(b.answers(answerTo(syn, SYN | ACK)).vtep, NODE_B);
  b.rig.finish(t);
});

test('an ICMP error about what a backend sent reaches it, one about nothing does not', (t) => {
  const b = new MeshNode(PORT);
  const error = (about: Uint8Array) => meshed(icmpError(about, { to: BACKEND }), FORTH);
  t.falsy(b.arrives(error(answerTo(syn, ACK)), NODE_A).port);
  b.arrives(meshed(syn, FORTH), NODE_A);
  t.truthy(b.arrives(error(answerTo(syn, ACK)), NODE_A).port);
  t.deepEqual(b.drops(), { 'not-served': 1 });
  b.rig.finish(t);
});

function refused(
  t: ExecutionContext,
  node: MeshNode,
  frame: Uint8Array,
  reason: string,
  from = NODE_A,
): void {
  const before = node.drops()[reason] ?? 0;
  const { port, outside } = node.arrives(frame, from);
  t.falsy(port ?? outside, reason);
  t.is(node.drops()[reason], before + 1, reason);
}

test('every reason to drop', (t) => {
  const b = new MeshNode(PORT, 1);
  refused(t, b, meshed(syn, FORTH), 'not-mesh', PORT);
  refused(t, b, meshed(syn, Uint8Array.of(6, 1, 2, 0x2a, 0, 9)), 'not-mesh');
  refused(t, b, meshed(syn, station(9)), 'not-mesh');
  refused(t, b, meshed(syn.slice(0, 40), FORTH), 'malformed');
  refused(t, b, meshed(syn, meshStations(77)[0]), 'no-network');
  refused(t, b, meshed(packet({ source: CLIENT, destination: '10.0.9.77' }), FORTH), 'not-here');
  refused(t, new MeshNode(NODE_B), meshed(syn, FORTH), 'not-here');
  refused(
    t,
    b,
    meshed(packet({ protocol: TCP, flags: RST, source: CLIENT, destination: BACKEND }), FORTH),
    'no-flow',
  );
  refused(t, b, meshed(answerTo(syn, ACK), BACK), 'no-flow');
  refused(t, b, meshed(packet({ protocol: 132, source: CLIENT, destination: BACKEND }), FORTH), 'not-served');
  t.truthy(b.arrives(meshed(syn, FORTH), NODE_A).port);
  b.flows.words[(1 << 4) + 7] = 13;
  refused(t, b, meshed(packet({ source: CLIENT, destination: BACKEND }), FORTH), 'table-full');
  b.gateways.remove(BLUE);
  refused(t, b, meshed(syn, FORTH), 'not-here');
  b.rig.finish(t);
});

test('a client that came here to the same backend with the same ports is reset where it comes by another node', (t) => {
  const b = new MeshNode(PORT);
  const [own, remote] = [BACKEND, CLIENT].map((address) => addressWord(ip(address)));
  const key = TCP | (0 << OWNER_SHIFT) | ((BLUE + 1) << 16);
  // As this node's NAT makes it of a packet that came in by the uplink.
  const flow = b.flows.create(own!, remote!, 0xa00f5000 | 0, key, 1, 2);
  b.flows.words[(flow << FLOW_SHIFT) + STATE] = ESTABLISHED;
  for (const flags of [SYN, ACK]) {
    t.falsy(b.arrives(meshed(packet({ ...first, flags }), FORTH), NODE_A).port);
    const reset = b.sent()!;
    t.deepEqual([reset.dest, ends(reset.bytes)], [NODE_A, `${BACKEND}:80 > ${CLIENT}:4000`]);
    t.true((reset.bytes[47]! & RST) !== 0);
  }
  t.deepEqual(b.drops(), { conflict: 2 });
  b.flows.words[(flow << FLOW_SHIFT) + STATE] = TRANSITORY;
  t.truthy(b.arrives(meshed(syn, FORTH), NODE_A).port, 'once that is over it may');
  b.rig.finish(t);
});
