import test, { type ExecutionContext } from 'ava';
import { createMesh, type Mesh, meshStations, NO_NODE } from '../../../engine/elements/mesh.js';
import { Batch } from '../../../engine/graph.js';
import { FLOOD_VTEPS, REMOTE } from '../../../engine/memory/frames.js';
import { Domains, LEARN } from '../../../engine/tables/domains.js';
import { Flows, OWNER_SHIFT } from '../../../engine/tables/flows.js';
import { addressWord, Gateways } from '../../../engine/tables/gateways.js';
import { MacTable, macHigh, macLow } from '../../../engine/tables/mac-table.js';
import { Neighbours } from '../../../engine/tables/neighbours.js';
import { type Caught, dropped, ip, mac, Rig, type Sink, station } from '../../support/frames.js';
import { ACK, answerTo, ends, FIN, icmpError, packet, RST, SYN, TCP } from '../../support/nat.js';

const CLIENT = '198.51.100.7';
const BACKEND = '10.0.9.1';
const GATEWAY_MAC = mac('02:42:0a:00:09:fe');
const [BLUE, INGRESS] = [0, 1];
const [BLUE_VNI, INGRESS_VNI] = [0x01022a, 4096];
/** Local port of the backend, where it is. */
const PORT = 3;
const NODE_A = REMOTE | 5;
const NODE_B = REMOTE | 6;

/** One node, on which the backend is at a place: a port, a VTEP, or unknown. */
class Node {
  readonly rig = new Rig();
  readonly mesh: Mesh;
  readonly flows: Flows;
  readonly gateways = new Gateways();
  private readonly sinks: Record<'tunnel' | 'bridge' | 'port' | 'outside', Sink>;
  private readonly batches: Batch[];
  private readonly kept: Caught[] = [];

  constructor(backendAt: number | undefined, maxFlows = 10) {
    const { context } = this.rig;
    context.setTime(1_000_000);
    this.flows = new Flows(maxFlows, 1, context.seconds);
    const domains = new Domains();
    domains.set(BLUE, { vni: BLUE_VNI, flags: LEARN, ageing: 0 });
    domains.set(INGRESS, { vni: INGRESS_VNI, flags: 0, ageing: 0 });
    const neighbours = new Neighbours(1);
    neighbours.set(BLUE, ip(BACKEND), station(1));
    const stations = new MacTable(64, 1);
    if (backendAt !== undefined)
      stations.setStatic(macLow(station(1)), macHigh(station(1), BLUE), backendAt, context.seconds);
    const v4 = { address: ip('10.0.9.254'), subnet: ip('10.0.9.0'), length: 24 };
    this.gateways.set({ domain: BLUE, v4, mac: GATEWAY_MAC, routed: false, uplink: 0, mtu: 1450 });
    const sink = () => this.rig.sink();
    this.sinks = { tunnel: sink(), bridge: sink(), port: sink(), outside: sink() };
    const [tunnel, bridge, port, outside] = Object.values(this.sinks).map((one) => new Batch(one));
    this.batches = [tunnel!, bridge!, port!, outside!];
    const tables = {
      flows: this.flows,
      addresses: null,
      gateways: this.gateways,
      domains,
      neighbours,
      stations,
    };
    const ports = Array.from({ length: PORT + 1 }, (_, i) => (i === PORT ? port! : null));
    this.mesh = createMesh(context, tables, { tunnel: tunnel!, bridge: bridge!, ports, outside: outside! });
    this.mesh.ingress.set([INGRESS, 1400]);
  }

  private take(from: keyof Node['sinks']): Caught | undefined {
    for (const batch of this.batches) batch.flush();
    return this.sinks[from].caught.splice(0)[0];
  }

  /** A packet of a client for the backend, chosen by this node's NAT. */
  forth(frame: Uint8Array): { tunnel: Caught | undefined; bridge: Caught | undefined } {
    const framed = Uint8Array.from(frame);
    framed.set(station(1), 0);
    framed.set(GATEWAY_MAC, 6);
    this.rig.feed(this.mesh.forth, this.rig.put(framed, { domain: BLUE }));
    return { tunnel: this.take('tunnel'), bridge: this.take('bridge') };
  }

  /** A frame from the ingress network. */
  arrives(frame: Uint8Array, ingress: number): { port: Caught | undefined; outside: Caught | undefined } {
    this.rig.feed(this.mesh.arrived, this.rig.put(frame, { domain: INGRESS, ingress }));
    const came = { port: this.take('port'), outside: this.take('outside') };
    this.kept.push(...this.sinks.tunnel.caught.splice(0));
    return came;
  }

  /** What the backend sends to the gateway: the node it goes back to, and as what. */
  answers(frame: Uint8Array): { vtep: number; tunnel: Caught | undefined } {
    const put = this.rig.put(frame, { domain: BLUE, ingress: PORT });
    const vtep = this.mesh.entryOf(put, (this.rig.memory.off[put]! + 14) >> 1);
    if (vtep === NO_NODE) this.rig.memory.free(put);
    else this.mesh.back(put, vtep);
    return { vtep, tunnel: this.take('tunnel') };
  }

  /** What it sent into the tunnel by itself. */
  sent(): Caught | undefined {
    return this.kept.splice(0)[0];
  }

  drops(): Record<string, number> {
    return dropped(this.mesh.drops);
  }
}

const syn = packet({
  protocol: TCP,
  flags: SYN,
  source: CLIENT,
  destination: BACKEND,
  sourcePort: 4000,
  destinationPort: 80,
});
const meshed = (frame: Uint8Array, at: Uint8Array | undefined): Uint8Array => {
  const whole = Uint8Array.from(frame);
  whole.set(at!, 0);
  whole.set(at!, 6);
  return whole;
};
const [FORTH, BACK] = meshStations(BLUE_VNI);

test('a packet finds its backend on another node, and the answer the node it came by', (t) => {
  const a = new Node(NODE_B);
  const sent = a.forth(syn).tunnel!;
  t.deepEqual([sent.dest, sent.domain], [NODE_B, INGRESS]);
  t.deepEqual(sent.bytes.slice(0, 6), FORTH);
  t.deepEqual(sent.bytes.slice(12), syn.slice(12), 'nothing but the addresses of the frame is another');
  const b = new Node(PORT);
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
  const here = new Node(PORT).forth(syn);
  t.is(here.tunnel, undefined);
  t.is(ends(here.bridge!.bytes), `${CLIENT}:4000 > ${BACKEND}:80`);
  const nowhere = new Node(undefined).forth(syn).tunnel!;
  t.is(nowhere.dest, FLOOD_VTEPS);
  t.is(nowhere.bytes[0]! & 1, 1, 'to a group');
  t.is(ends(new Node(PORT).arrives(nowhere.bytes, NODE_A).port!.bytes), `${CLIENT}:4000 > ${BACKEND}:80`);
});

test('what a backend sends of its own accord is none of the mesh', (t) => {
  const b = new Node(PORT);
  t.is(b.answers(answerTo(syn, SYN | ACK)).vtep, NO_NODE);
  b.arrives(meshed(syn, FORTH), NODE_A);
  b.mesh.ingress[0] = -1;
  t.is(b.answers(answerTo(syn, SYN | ACK)).vtep, NO_NODE, 'without an ingress network');
  b.rig.finish(t);
});

test('a client that comes by another node too: not with the same ports, until the first connection is over', (t) => {
  const b = new Node(PORT);
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

test('what is left of a connection that ended does not stand in the way of one by another node', (t) => {
  const b = new Node(PORT);
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
  const b = new Node(PORT);
  const error = (about: Uint8Array) => meshed(icmpError(about, { to: BACKEND }), FORTH);
  t.falsy(b.arrives(error(answerTo(syn, ACK)), NODE_A).port);
  b.arrives(meshed(syn, FORTH), NODE_A);
  t.truthy(b.arrives(error(answerTo(syn, ACK)), NODE_A).port);
  t.deepEqual(b.drops(), { 'not-served': 1 });
  b.rig.finish(t);
});

function refused(t: ExecutionContext, node: Node, frame: Uint8Array, reason: string, from = NODE_A): void {
  const before = node.drops()[reason] ?? 0;
  const { port, outside } = node.arrives(frame, from);
  t.falsy(port ?? outside, reason);
  t.is(node.drops()[reason], before + 1, reason);
}

test('every reason to drop', (t) => {
  const b = new Node(PORT, 1);
  refused(t, b, meshed(syn, FORTH), 'not-mesh', PORT);
  refused(t, b, meshed(syn, Uint8Array.of(6, 1, 2, 0x2a, 0, 9)), 'not-mesh');
  refused(t, b, meshed(syn, station(9)), 'not-mesh');
  refused(t, b, meshed(syn.slice(0, 40), FORTH), 'malformed');
  refused(t, b, meshed(syn, meshStations(77)[0]), 'no-network');
  refused(t, b, meshed(packet({ source: CLIENT, destination: '10.0.9.77' }), FORTH), 'not-here');
  refused(t, new Node(NODE_B), meshed(syn, FORTH), 'not-here');
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
