/** A node of the routing mesh between sinks, with a backend of network blue somewhere; packets are nat.ts's and nat6.ts's. */
import { NO_NODE, WAITS } from '../../engine/elements/mesh/ways.js';
import { createMesh, type Mesh, meshStations } from '../../engine/elements/mesh.js';
import { Batch } from '../../engine/graph.js';
import { REMOTE } from '../../engine/memory/frames.js';
import { Addresses6 } from '../../engine/tables/addresses6.js';
import { DEFAULT_TIMEOUTS } from '../../engine/tables/connection.js';
import { Domains, LEARN } from '../../engine/tables/domains.js';
import { Flows } from '../../engine/tables/flows.js';
import { Gateways } from '../../engine/tables/gateways.js';
import { MacTable, macHigh, macLow } from '../../engine/tables/mac-table.js';
import { Neighbours } from '../../engine/tables/neighbours.js';
import { type Caught, dropped, ip, mac, Rig, type Sink, station } from './frames.js';

export const BACKEND = '10.0.9.1';
export const BACKEND6 = 'fd00:9::1';
export const GATEWAY_MAC = mac('02:42:0a:00:09:fe');
export const [BLUE, INGRESS] = [0, 1];
const [BLUE_VNI, INGRESS_VNI] = [0x01022a, 4096];
/** Local port of the backend, where it is. */
export const PORT = 3;
export const NODE_A = REMOTE | 5;
export const NODE_B = REMOTE | 6;

/** One node, on which the backend is at a place: a port, a VTEP, or unknown. */
export class MeshNode {
  readonly rig = new Rig();
  readonly mesh: Mesh;
  readonly flows: Flows;
  readonly addresses: Addresses6;
  readonly gateways = new Gateways();
  private readonly sinks: Record<'tunnel' | 'bridge' | 'port' | 'outside' | 'again', Sink>;
  private readonly batches: Batch[];
  private readonly kept: Caught[] = [];

  constructor(backendAt: number | undefined, maxFlows = 10) {
    const { context } = this.rig;
    context.setTime(1_000_000);
    this.flows = new Flows(maxFlows, 1, context.seconds);
    this.addresses = new Addresses6(2 * maxFlows, 1);
    const domains = new Domains();
    domains.set(BLUE, { vni: BLUE_VNI, flags: LEARN, ageing: 0 });
    domains.set(INGRESS, { vni: INGRESS_VNI, flags: 0, ageing: 0 });
    const neighbours = new Neighbours(1);
    for (const address of [BACKEND, BACKEND6]) neighbours.set(BLUE, ip(address), station(1));
    const stations = new MacTable(64, 1);
    if (backendAt !== undefined)
      stations.setStatic(macLow(station(1)), macHigh(station(1), BLUE), backendAt, context.seconds);
    const v4 = { address: ip('10.0.9.254'), subnet: ip('10.0.9.0'), length: 24 };
    const v6 = { address: ip('fd00:9::fe'), subnet: ip('fd00:9::'), length: 64 };
    this.gateways.set({ domain: BLUE, v4, v6, mac: GATEWAY_MAC, routed: false, uplink: 0, mtu: 1450 });
    const sink = () => this.rig.sink();
    this.sinks = { tunnel: sink(), bridge: sink(), port: sink(), outside: sink(), again: sink() };
    const [tunnel, bridge, port, outside, again] = Object.values(this.sinks).map((one) => new Batch(one));
    this.batches = [tunnel!, bridge!, port!, outside!, again!];
    const tables = {
      flows: this.flows,
      addresses: this.addresses,
      gateways: this.gateways,
      domains,
      neighbours,
      stations,
      timeouts: DEFAULT_TIMEOUTS,
    };
    const ports = Array.from({ length: PORT + 1 }, (_, i) => (i === PORT ? port! : null));
    const ways = { tunnel: tunnel!, bridge: bridge!, ports, outside: outside!, again: again! };
    this.mesh = createMesh(context, tables, ways);
    this.mesh.ingress.set([INGRESS, 1400]);
  }

  private take(from: keyof MeshNode['sinks']): Caught | undefined {
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
    const at = (this.rig.memory.off[put]! + 14) >> 1;
    const isV6 = frame[12] === 0x86;
    const vtep = isV6 ? this.mesh.entryOfV6(put, at, frame.length - 14) : this.mesh.entryOf(put, at);
    if (vtep === NO_NODE) this.rig.memory.free(put);
    else if (vtep !== WAITS) this.mesh.back(put, vtep);
    return { vtep, tunnel: this.take('tunnel') };
  }

  /** What the backend gets by itself. */
  station(): Uint8Array | undefined {
    return this.take('port')?.bytes;
  }

  /** What the gateway gets once more. */
  waited(): Uint8Array[] {
    for (const batch of this.batches) batch.flush();
    return this.sinks.again.caught.splice(0).map(({ bytes }) => bytes);
  }

  /** What it sent into the tunnel by itself. */
  sent(): Caught | undefined {
    return this.kept.splice(0)[0];
  }

  drops(): Record<string, number> {
    return dropped(this.mesh.drops);
  }
}

/** A frame as it is within the ingress network. */
export const meshed = (frame: Uint8Array, at: Uint8Array | undefined): Uint8Array => {
  const whole = Uint8Array.from(frame);
  whole.set(at!, 0);
  whole.set(at!, 6);
  return whole;
};
export const [FORTH, BACK] = meshStations(BLUE_VNI);
