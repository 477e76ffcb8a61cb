/**
 * The live data plane of one worker: memory, tables, elements and ports wired together, the breath that runs
 * them, and the application of an intent between two breaths.
 *
 *   TAP ──► bridge ──► TAP                        unicast, and unknown unicast flooded
 *             ├─────► neighbour ──► TAP, tunnel   broadcast and multicast: answered or flooded
 *             └─────► vxlan-encap ──► bundle ──► uplink TAP     next hop known: super-frames stay whole
 *                          ├────────► segment ──► UDP socket    otherwise, and on kernels without the uplink TAP
 *                          └────────► (secure.ts) ──► uplink TAP, ESP socket    encrypted domains
 *   uplink TAP, UDP socket ──► vxlan-decap ──► unfinished ──► coalesce ──► bridge
 *   uplink TAP, ESP socket ──► (secure.ts) ──────────────────┘
 *   bridge ──► (gateway.ts) ──► packet sockets ──► (gateway.ts) ──► bridge    what leaves the overlay and enters it
 */
import { native } from '../native-bindings/index.js';
import type { Counters } from './counters.js';
import { difference, type Standing, torn } from './difference.js';
import { createBridge } from './elements/bridge.js';
import { createBundle } from './elements/bundle.js';
import { createCoalesce } from './elements/coalesce.js';
import { createNeighbour } from './elements/neighbour.js';
import { createSegment } from './elements/segment.js';
import { createUnfinished } from './elements/unfinished.js';
import { createVxlanDecap, type VxlanDecap } from './elements/vxlan-decap.js';
import { createVxlanEncap } from './elements/vxlan-encap.js';
import { asLeft, FlowMemory } from './flow-memory.js';
import { GatewayWay } from './gateway.js';
import { createGossip, type Gossip } from './gossip.js';
import { Batch, type Consumer, Context, Stages } from './graph.js';
import type { HealthChange } from './health.js';
import {
  type AssociationIntent,
  BALANCER_PORT,
  type DomainIntent,
  ESP_PORT,
  GATEWAY_PORT,
  type Intent,
  MAX_VTEPS,
  MESH_PORT,
  type StationIntent,
  UNDERLAY_PORT,
  UPLINK_PORT,
} from './intent.js';
import { FrameMemory, REMOTE } from './memory/frames.js';
import type { Port } from './ports/port.js';
import { createSocketUnderlay } from './ports/underlay-socket.js';
import { createUplinkTap } from './ports/uplink-tap.js';
import type { FlowFilter } from './publisher.js';
import { createSecureIn, createSecureOut, type SecureOptions } from './secure.js';
import { ServiceFront } from './services.js';
import { AssociationState } from './tables/association-state.js';
import { Associations } from './tables/associations.js';
import { Domains } from './tables/domains.js';
import { type MacEntry, MacTable, macHigh, macLow } from './tables/mac-table.js';
import { Neighbours } from './tables/neighbours.js';
import type { BackendCounts } from './tables/services.js';
import { type LocalVtep, SAW_NO_ASSOCIATION, Vteps } from './tables/vteps.js';
import { TapPorts } from './tap-ports.js';

/** Slots: 8 MiB of small ones for copies, segments and answers; large ones for all that is received. */
const SMALL_SLOTS = 4096;
const LARGE_SLOTS = 1024;
const MAX_PORTS = UPLINK_PORT;
/** Times that the stages run once more in a breath, for frames that come in again. */
const MOST_AGAIN = 8;
/** A learned VTEP goes after this many seconds of silence, when its stations have long aged. */
const VTEP_SILENCE = 900;
/** Table slots looked at per tick of 100 ms: the whole table in a little over 25 seconds, 0.1 ms at a time. */
const SWEEP_SLOTS = 1024;
/**
 * Sparse traffic is mostly somebody waiting for an answer, and a sleeping thread takes some microseconds to wake: a
 * breath whose predecessor lies more than SPARSE ms back is followed by looking for more for so long before the
 * worker sleeps. Between two looks the processor is given away. In dense traffic the next frame is there anyway, and
 * looking costs: TCP across two hosts took 0.69 s of engine CPU a gigabyte and reached 14.4 Gb/s when every breath
 * was followed by it, 0.43 s and 16.4 Gb/s when none was.
 */
const SPARSE_MS = 0.2;
const SPIN_MICROSECONDS = 100;

/** What a batch leads to until the rest is wired. */
const NOWHERE: Consumer = {
  process() {
    throw new Error('internal: a batch leads nowhere');
  },
};

/** Which of how many workers this is, and the memory through which they tell one another of stations. */
export interface Team {
  readonly self: number;
  readonly workers: number;
  readonly gossip: SharedArrayBuffer | null;
  /** What an AssociationState is made of; null when nothing here is encrypted. */
  readonly associations: SharedArrayBuffer | null;
}

export class DataPlane {
  readonly context: Context;
  readonly table: MacTable;
  readonly vteps = new Vteps(MAX_VTEPS);
  readonly domains = new Domains();
  private readonly neighbours: Neighbours;
  private readonly outputs: (Batch | null)[] = new Array<Batch | null>(MESH_PORT + 1).fill(null);
  private readonly ports: TapPorts;
  private readonly stages = new Stages();
  private readonly tapInput: Batch;
  private readonly underlayInput: Batch;
  private readonly underlay: Port;
  /** Of encrypted domains; null when this host was started without encryption. */
  private readonly associations: Associations | null;
  private associated: readonly AssociationIntent[] = [];
  private readonly espInput: Batch;
  private readonly espPort: Port | null;
  private readonly secureDecap: VxlanDecap | null;
  private readonly uplink: Port | null;
  /** Of the underlay, as the intent has it now. */
  private readonly mtu = new Uint32Array(1);
  private readonly local: LocalVtep;
  private readonly gateway: GatewayWay;
  /** Null while there never was a service. */
  private services: ServiceFront | null = null;
  private readonly serve: () => ServiceFront;
  private readonly wait = native.waitCreate();
  private readonly ready = new Uint32Array(256);
  private readonly gossip: Gossip | null;
  private readonly bridge: ReturnType<typeof createBridge>;
  private readonly decap: VxlanDecap;
  private standing: Standing;
  private ticked = 0;
  /** When the last breath that had work began. */
  private worked = 0;
  /** How long the next wait looks before it sleeps, microseconds. */
  private spin = 0;
  /** Index of the counter of milliseconds spent in breaths, waiting not included. */
  private readonly busy: number;

  /**
   * @param first the intent to start with; its underlay stays for life, but for the MTU.
   * @param onLost called when a port's device is gone, once.
   */
  constructor(
    first: Intent,
    counters: Counters,
    seed: number,
    onLost: (id: number) => void,
    /** Called once a VTEP and SAW_ bit. */
    private readonly onSeen: (address: Uint8Array, saw: number) => void,
    team: Team = { self: 0, workers: 1, gossip: null, associations: null },
    /** Hears which backends of services are found to live or not. */
    onHealth: (changes: readonly HealthChange[]) => void = () => {},
  ) {
    const frames = new FrameMemory({ small: SMALL_SLOTS, large: LARGE_SLOTS });
    native.attach(frames.u8, frames.off, frames.len, frames.freeLarge);
    const context = new Context(frames, counters, seed);
    context.setTime(performance.now());
    this.context = context;
    this.busy = counters.claim('worker', ['busy-ms']).base;
    this.table = new MacTable(first.capacity, seed);
    this.neighbours = new Neighbours(seed);
    const { underlay } = first;
    this.local = { address: underlay.address, port: underlay.port, ttl: underlay.ttl };
    this.underlay = createSocketUnderlay(context, {
      id: UNDERLAY_PORT,
      fd: underlay.fd,
      senders: underlay.senders,
      local: this.local,
      carries: 'vxlan',
    });
    // From the last stage to the first, so that each finds its output.
    const toUnderlay = new Batch(this.underlay);
    // The kernel completes the outer UDP checksum of what goes through a socket.
    const toSegment = new Batch(createSegment(context, toUnderlay, { outerChecksum: false }));
    const encap = { v6: underlay.address.length === 16, checksum: false };
    const secure = this.secureOptions(first, team);
    const espInput = new Batch(NOWHERE);
    this.uplink =
      underlay.uplink === undefined
        ? null
        : createUplinkTap(context, {
            id: UPLINK_PORT,
            fd: underlay.uplink,
            v6: encap.v6,
            mtu: this.mtu,
            ...(secure && secure.esp.port !== 0 ? { esp: { port: secure.esp.port, to: espInput } } : {}),
          });
    const toUplink = this.uplink && new Batch(this.uplink);
    const toBundle = toUplink && new Batch(createBundle(context, encap.v6, toUplink));
    this.associations = secure?.associations ?? null;
    const secureOut = secure && createSecureOut(context, secure, toUplink);
    this.espPort = secureOut?.port ?? null;
    const secured = secureOut?.stages[0] ?? null;
    const toTunnel = new Batch(
      createVxlanEncap(context, this.domains, this.vteps, encap, toSegment, toBundle, secured),
    );
    const group = new Batch(
      createNeighbour(context, this.neighbours, {
        ports: this.outputs,
        flood: (frame) => this.bridge.flood(frame),
      }),
    );
    const { table, vteps, domains, local, stages, outputs, wait } = this;
    this.ports = new TapPorts({ context, domains, table, stages, outputs, wait, onLost });
    this.gossip =
      team.gossip &&
      createGossip(context, team.gossip, team.self, team.workers, { table, vteps, domains, local });
    this.bridge = createBridge(
      context,
      this.table,
      this.domains,
      {
        ports: this.outputs,
        tunnel: toTunnel,
        group,
      },
      this.gossip,
    );
    const toBridge = new Batch(this.bridge);
    const behindServices = new Batch(this.bridge);
    const toVirtual = new Batch(NOWHERE);
    this.outputs[BALANCER_PORT] = toVirtual;
    const flowMemory = first.flows ? new FlowMemory(context, first.flows) : null;
    this.gateway = new GatewayWay(context, {
      uplinks: first.uplinks,
      nat: first.nat,
      flows: flowMemory?.flows ?? null,
      addresses: flowMemory?.addresses ?? null,
      neighbours: this.neighbours,
      ports: this.outputs,
      bridge: toBridge,
      vxlanPort: underlay.port,
      mesh: { domains: this.domains, stations: this.table, tunnel: toTunnel },
    });
    const { outputs: ports } = this;
    const ways = { front: toBridge, behind: behindServices, station: toVirtual, tunnel: toTunnel, ports };
    this.serve = () => {
      if (flowMemory === null)
        throw new Error('services need a flow table, which this node was started without');
      return new ServiceFront(
        context,
        flowMemory,
        this.neighbours,
        ways,
        this.gateway,
        first.nat.timeouts,
        onHealth,
      );
    };
    this.outputs[MESH_PORT] = this.gateway.fromIngress;
    this.outputs[GATEWAY_PORT] = this.gateway.fromBridge;
    const decap = { local: this.local, addressed: true, strict: underlay.strict };
    // Container TAPs take UDP super-frames only from Linux 6.2 on; TCP's they all do.
    const toCoalesce = new Batch(createCoalesce(context, toBridge, { udp: first.udpSegmentation }));
    const toUnfinished = new Batch(createUnfinished(context, this.mtu, toCoalesce));
    this.decap = createVxlanDecap(context, this.domains, this.vteps, decap, toUnfinished);
    this.underlayInput = new Batch(this.decap);
    this.tapInput = toBridge;
    const secureIn = secure && createSecureIn(context, secure, espInput, toCoalesce);
    this.secureDecap = secureIn?.decap ?? null;
    this.espInput = espInput;
    for (const batch of [
      this.underlayInput,
      ...(secureIn?.stages ?? []),
      toUnfinished,
      toCoalesce,
      ...this.gateway.inbound,
      toBridge,
      behindServices,
      toVirtual,
      group,
      ...this.gateway.outbound,
      toTunnel,
      ...(secureOut?.stages ?? []),
      toSegment,
      toUnderlay,
    ])
      this.stages.add(batch);
    if (toBundle && toUplink) for (const batch of [toBundle, toUplink]) this.stages.add(batch);
    if (underlay.esp?.receive && this.espPort) native.waitAdd(this.wait, this.espPort.fd, ESP_PORT);
    native.waitAdd(this.wait, underlay.fd, UNDERLAY_PORT);
    if (this.uplink) native.waitAdd(this.wait, this.uplink.fd, UPLINK_PORT);
    this.gateway.watch(this.wait);
    const nobody = { ports: [], stations: [], neighbours: [] };
    const empty = { domains: [], ...nobody, links: [], gateways: [], publish: [] };
    this.standing = { maybe: { ...first, ...empty }, sure: { ...first, ...empty } };
    this.apply(asLeft(first));
    flowMemory?.begin(first);
    if (first.flows?.left) this.apply(first);
  }

  private secureOptions({ underlay }: Intent, team: Team): SecureOptions | null {
    if (underlay.esp === undefined || team.associations === null) return null;
    const { vteps, domains, local } = this;
    const associations = new Associations(new AssociationState(team.associations), vteps.capacity);
    const shared = team.workers > 1;
    return { associations, domains, vteps, local, esp: underlay.esp, shared, strict: underlay.strict };
  }

  /** Makes the security associations what the list says. Called between breaths. */
  associate(next: readonly AssociationIntent[]): void {
    if (this.associations === null) throw new Error('this data plane was started without encryption');
    this.associations.set(next, (address) => this.vtep(address));
    for (const { direction, vtep } of next)
      if (direction === 'out') this.vteps.forget(this.vtep(vtep), SAW_NO_ASSOCIATION);
    this.associated = next;
    this.dropUnusedVteps(this.standing.sure);
  }

  /** Waits on a further descriptor, whose tag `breathe` then reports. Tags of ports are below 65,536. */
  watch(fd: number, tag: number): void {
    native.waitAdd(this.wait, fd, tag);
  }

  /**
   * One breath: waits up to `microseconds` for frames (negative: for ever), receives a batch from each ready port,
   * runs the graph and sends. Returns the tag of a watched descriptor that is ready, 0 when there is none.
   */
  breathe(microseconds: number): number {
    const { ready } = this;
    const patience = this.services?.isBusy ? 0 : this.gateway.patience(microseconds);
    const count = native.wait(this.wait, ready, patience, this.spin);
    this.context.setTime(performance.now());
    this.gossip?.hear();
    let watched = 0;
    for (let i = 0; i < count; i++) {
      const tag = ready[i];
      if (tag === UNDERLAY_PORT) this.underlay.receive(this.underlayInput);
      else if (tag === UPLINK_PORT) this.uplink?.receive(this.underlayInput);
      else if (tag === ESP_PORT) this.espPort?.receive(this.espInput);
      else if (tag < MAX_PORTS) this.ports.receive(tag, this.tapInput);
      else if (!this.gateway.receive(tag)) watched = tag;
    }
    this.services?.work();
    this.runStages();
    this.spin = count > 0 && this.context.now - this.worked > SPARSE_MS ? SPIN_MICROSECONDS : 0;
    if (count > 0) this.worked = this.context.now;
    if (count > 0) this.context.counters.values[this.busy] += performance.now() - this.context.now;
    if (this.context.now - this.ticked >= 100) this.tick();
    else this.gateway.catchUp();
    return watched;
  }

  private runStages(): void {
    this.stages.run();
    for (let round = 0; round < MOST_AGAIN && this.gateway.again(); round++) this.stages.run();
  }

  private tick(): void {
    this.ticked = this.context.now;
    this.bridge.age(SWEEP_SLOTS);
    this.gateway.tick();
    this.services?.tick();
    this.runStages();
    this.vteps.tell((vtep, saw) => this.onSeen(this.vteps.address(vtep), saw));
    const { seconds } = this.context;
    for (let vtep = 0; this.vteps.learned > 0 && vtep < MAX_VTEPS; vtep++) {
      if (this.vteps.state[vtep] === 2 && seconds - this.vteps.seen[vtep] > VTEP_SILENCE)
        this.forgetVtep(vtep);
    }
  }

  private forgetVtep(vtep: number): void {
    this.table.removeWhere((_, destination) => destination === (REMOTE | vtep));
    this.vteps.remove(vtep);
    this.invalidate();
  }

  /** They are learned again by their next packet, and those that the intent names must have room. */
  private forgetLearnedVteps(): void {
    const { state } = this.vteps;
    this.table.removeWhere((_, destination) => destination >= REMOTE && state[destination & 0xffff] === 2);
    for (let vtep = 0; vtep < MAX_VTEPS; vtep++) if (state[vtep] === 2) this.vteps.remove(vtep);
    this.invalidate();
  }

  private invalidate(): void {
    this.decap.invalidate();
    this.secureDecap?.invalidate();
  }

  /**
   * Makes the data plane what the intent says, touching only what differs. Called between breaths.
   * @throws Error midway: some of it is there then, and a further intent, such as the one before, makes it whole.
   */
  apply(next: Intent): void {
    try {
      this.converge(this.standing, next);
    } catch (error) {
      this.standing = torn(this.standing, next);
      throw error;
    }
    this.standing = { maybe: next, sure: next };
  }

  private converge({ maybe, sure }: Standing, next: Intent): void {
    this.mtu[0] = next.underlay.mtu;
    for (const station of difference(maybe.stations, next.stations)) this.table.remove(...key(station));
    for (const port of difference(maybe.ports, next.ports)) this.ports.remove(port.id);
    for (const domain of maybe.domains)
      if (!next.domains.some(({ id }) => id === domain.id)) this.removeDomain(domain);
    const changed = difference(next.domains, sure.domains);
    // First of all: one may get the VNI that another had.
    for (const { id } of changed) this.domains.freeVni(id);
    for (const domain of changed) this.setDomain(domain);
    for (const port of difference(next.ports, sure.ports)) this.ports.add(port);
    // Stations that an unchanged intent names are set again: a port or VTEP they point to may be new.
    for (const station of next.stations) this.setStation(station);
    this.dropUnusedVteps(next);
    this.setLinks(next);
    const gone = difference(maybe.neighbours, next.neighbours);
    for (const { domain, address } of gone) this.neighbours.remove(domain, address);
    for (const added of difference(next.neighbours, sure.neighbours))
      this.neighbours.set(added.domain, added.address, added.mac, added.router);
    this.gateway.apply(maybe, next, gone);
    if (next.ingress) this.domains.addPort(next.ingress.domain, MESH_PORT);
    if (next.services !== undefined && next.services.length > 0) this.services ??= this.serve();
    this.services?.apply(next, gone);
    this.invalidate();
  }

  private setDomain(domain: DomainIntent): void {
    this.domains.set(domain.id, domain);
    this.table.limits[domain.id] = domain.learningLimit;
    this.domains.setVteps(
      domain.id,
      domain.peers.map((address) => this.vtep(address)),
    );
  }

  private removeDomain(domain: DomainIntent): void {
    this.table.removeWhere((id) => id === domain.id);
    this.domains.remove(domain.id);
  }

  private setStation(station: StationIntent): void {
    const destination = typeof station.at === 'number' ? station.at : REMOTE | this.vtep(station.at);
    this.table.setStatic(...key(station), destination, this.context.seconds);
  }

  /** Index of a configured VTEP. @throws RangeError when the table is full. */
  private vtep(address: Uint8Array): number {
    const add = (): number => this.vteps.add(address, true, this.local, this.context.seconds);
    let vtep = add();
    if (vtep < 0 && this.vteps.learned > 0) {
      this.forgetLearnedVteps();
      vtep = add();
    }
    if (vtep < 0)
      throw new RangeError(`more than ${MAX_VTEPS} VTEPs, those that go included: take them away first`);
    return vtep;
  }

  /** VTEPs that the intent no longer names become learned ones, and go when nothing is heard of them. */
  private dropUnusedVteps(next: Intent): void {
    const named = new Set<number>();
    for (const domain of next.domains) for (const address of domain.peers) named.add(this.vtep(address));
    for (const { at } of next.stations) if (typeof at !== 'number') named.add(this.vtep(at));
    // An association must never come to another VTEP that got the number.
    for (const { vtep } of this.associated) named.add(this.vtep(vtep));
    for (let vtep = 0; vtep < MAX_VTEPS; vtep++) {
      if (this.vteps.state[vtep] === 1 && !named.has(vtep))
        this.vteps.unconfigure(vtep, this.context.seconds);
    }
  }

  /** Forgets everything learned; what the intent says stays. */
  flush(): void {
    this.table.removeWhere((_domain, _destination, isStatic) => !isStatic);
  }

  /** Ends flows of address translation. Returns how many. */
  flushFlows(filter: FlowFilter): number {
    return this.gateway.flush(filter);
  }

  private setLinks(next: Intent): void {
    this.vteps.linked.fill(0);
    for (const { vtep, destination, source } of next.links) {
      this.vteps.setLink(this.vtep(vtep), destination, source);
    }
  }

  /** What is counted of the backends of services, for people. */
  backends(): BackendCounts[] {
    return this.services?.counts() ?? [];
  }

  /** A copy of the forwarding table, for people. */
  stations(): MacEntry[] {
    return this.table.entries();
  }

  /** Releases what the data plane holds itself; descriptors belong to whoever opened them. */
  close(): void {
    native.close(this.wait);
  }
}

function key(station: StationIntent): [number, number] {
  return [macLow(station.mac), macHigh(station.mac, station.domain)];
}
