/**
 * The way out of the overlay and into it: the gateway of all networks, and for each uplink its address translation, its
 * link layer and its port.
 *
 *   bridge ──► gateway ──► nat ──► resolver ──► packet socket
 *   packet socket ──► uplink-in ──► nat ──► gateway ──► bridge
 *
 * An uplink of mode host has a TAP in place of the packet socket, and nothing is translated there, for the host does:
 *
 *   bridge ──► gateway ──► resolver ──► TAP
 *   TAP ──► uplink-in ──► route-in ──► gateway ──► bridge
 *
 * IPv6 goes a way of its own between gateway and port: uplink-v6.ts.
 *
 * What must come in again at once – packets from inside to the external address (hairpinning, RFC 4787, REQ-9), and
 * errors about packets that were already translated – waits until the stages have run, which then run again.
 */
import { native } from '../native-bindings/index.js';
import { createDeferred, type Deferred } from './deferred.js';
import { createResets } from './elements/balancer/resets.js';
import { createClampMss } from './elements/clamp-mss.js';
import { createGateway } from './elements/gateway.js';
import { createIcmpErrors, type IcmpErrors } from './elements/icmp-errors.js';
import { createIcmpv6Errors, type Icmpv6Errors } from './elements/icmpv6-errors.js';
import { createMesh, type Mesh, type MeshOptions } from './elements/mesh.js';
import { type Balancing, NatTables } from './elements/nat/tables.js';
import { createNat, type Nat } from './elements/nat.js';
import { createResolver, type Resolver, type Station } from './elements/resolver.js';
import { createRouteIn } from './elements/route-in.js';
import { createUplinkIn } from './elements/uplink-in.js';
import { Batch, type Consumer, type Context } from './graph.js';
import {
  FIRST_UPLINK_PORT,
  type GatewayAddressIntent,
  type GatewayIntent,
  type Intent,
  type NatIntent,
  type NeighbourIntent,
  type PublishIntent,
  type ServiceIntent,
  type UplinkIntent,
} from './intent.js';
import { NO_FRAME } from './memory/frames.js';
import { createPacketSocket } from './ports/packet-socket.js';
import type { Port } from './ports/port.js';
import { createTapPort } from './ports/tap.js';
import { type FlowFilter, Publisher } from './publisher.js';
import type { Addresses6 } from './tables/addresses6.js';
import { ArpCache } from './tables/arp-cache.js';
import type { Flows } from './tables/flows.js';
import { addressWord, Gateways, maskWord } from './tables/gateways.js';
import type { Neighbours } from './tables/neighbours.js';
import { Routes } from './tables/routes.js';
import { type UplinkV6, wireV6 } from './uplink-v6.js';
import { ADMINISTRATIVELY_PROHIBITED, HOST_UNREACHABLE, NET_UNREACHABLE, UNREACHABLE } from './wire/icmp.js';

/** Longest sleep while flows are over that have not gone: 256 go in a breath, in less than a tenth of this. */
const BEHIND_MICROSECONDS = 1000;

/** A batch whose consumer is wired last. */
const NOWHERE: Consumer = {
  process() {
    throw new Error('internal: a batch leads nowhere');
  },
};

export interface GatewayOptions {
  readonly uplinks: readonly UplinkIntent[];
  readonly nat: NatIntent;
  /** There when there are uplinks. */
  readonly flows: Flows | null;
  /** There when an uplink has IPv6. */
  readonly addresses: Addresses6 | null;
  readonly neighbours: Neighbours;
  /** Sending side of each local port, by port number. */
  readonly ports: readonly (Batch | null)[];
  readonly bridge: Batch;
  /** UDP port of the underlay. */
  readonly vxlanPort: number;
  /** What the mesh needs beside, and where it sends frames for VTEPs. */
  readonly mesh: Pick<MeshOptions, 'domains' | 'stations'> & { readonly tunnel: Batch };
}

/** One uplink, wired. */
interface Uplink {
  readonly port: Port;
  readonly input: Batch;
  /** Into address translation, from outside and from inside; where there is none, past it. */
  readonly fromOutside: Batch;
  readonly fromInside: Batch;
  /** Translated packets on their way out, and frames on theirs. */
  readonly toResolver: Batch;
  readonly toPort: Batch;
  readonly resolver: Resolver;
  readonly deferred: Deferred;
  /** Its stages from inside to outside, first to last. */
  readonly outbound: readonly Batch[];
  readonly translation: Translation | undefined;
  /** Where nothing is translated. */
  readonly routes: Routes | undefined;
  readonly v6: UplinkV6 | null;
  /** The stage in front of the networks where segment sizes are lowered. */
  readonly clamped: readonly Batch[];
}

interface Translation {
  readonly tables: NatTables;
  readonly nat: Nat;
  readonly publisher: Publisher;
}

/** The wired way out; its batches are stages of the data plane. */
export class GatewayWay {
  /** What the bridge delivers to the gateway. */
  readonly fromBridge: Batch;
  readonly gateways = new Gateways();
  private readonly uplinks: readonly Uplink[];
  /** What was let in from outside, to the networks. */
  readonly inward: Batch;
  /** What carries packets of services between nodes; null where nothing is tracked. */
  private readonly mesh: Mesh | null;
  private readonly toMesh = new Batch(NOWHERE);
  private readonly fromMesh = new Batch(NOWHERE);
  /** Fragments of stations that waited for their first one. */
  private readonly waited = new Batch(NOWHERE);
  /** What the bridge of the ingress network delivers. */
  readonly fromIngress = new Batch(NOWHERE);
  private announced = 0;
  /** Whose flows expire here; null where nothing is translated. */
  private readonly expiring: Flows | null;

  constructor(
    private readonly context: Context,
    options: GatewayOptions,
  ) {
    const { uplinks, flows, neighbours, ports, bridge } = options;
    if (uplinks.length > 0 && flows === null) throw new Error('internal: uplinks without a flow table');
    const errors = { v4: createIcmpErrors(context), v6: createIcmpv6Errors(context) };
    this.inward = new Batch(NOWHERE);
    const { gateways, inward } = this;
    const shared = { gateways, neighbours, timeouts: options.nat.timeouts, ...options.mesh };
    const outputs = {
      tunnel: options.mesh.tunnel,
      bridge,
      ports,
      outside: this.fromMesh,
      again: this.waited,
    };
    this.mesh = flows && createMesh(context, { ...shared, flows, addresses: options.addresses }, outputs);
    this.uplinks = uplinks.map((uplink, index) =>
      wireClamped(context, uplink, { ...options, index, gateways, errors, inward }),
    );
    this.expiring = this.translations.length > 0 ? flows : null;
    const gateway = createGateway(context, this.gateways, neighbours, errors, {
      ports,
      vxlanPort: options.vxlanPort,
      bridge,
      mesh: this.mesh && { element: this.mesh, forth: this.toMesh },
      uplinks: this.uplinks.map(({ fromInside, v6 }, index) => ({
        address: addressWord(uplinks[index].address),
        ...unusable(uplinks[index]),
        mtu: uplinks[index].mtu,
        out: fromInside,
        v6: v6 && { address: v6.address, out: v6.fromInside },
      })),
    });
    this.inward.next = gateway.fromOutside;
    this.fromMesh.next = gateway.fromMesh;
    this.waited.next = gateway.fromInside;
    if (this.mesh !== null) {
      this.toMesh.next = this.mesh.forth;
      this.fromIngress.next = this.mesh.arrived;
    }
    this.fromBridge = new Batch(gateway.fromInside);
  }

  /** Stages in front of the bridge, first to last. */
  get inbound(): Batch[] {
    const first = this.uplinks.flatMap(({ input, fromOutside, v6, clamped }) => [
      ...[input, fromOutside],
      ...(v6 ? [v6.fromOutside] : []),
      ...clamped,
    ]);
    return [...first, this.inward, this.toMesh];
  }

  /** Stages behind it. */
  get outbound(): Batch[] {
    return [
      this.fromIngress,
      this.fromBridge,
      this.waited,
      this.fromMesh,
      ...this.uplinks.flatMap(({ outbound }) => outbound),
    ];
  }

  /** Lets a wait report the uplinks' ports under their numbers. */
  watch(wait: number): void {
    for (const { port } of this.uplinks) native.waitAdd(wait, port.fd, port.id);
  }

  /** Receives from a port that is ready; false when it is none of an uplink. */
  receive(tag: number): boolean {
    const uplink = this.uplinks[tag - FIRST_UPLINK_PORT];
    if (uplink === undefined) return false;
    uplink.port.receive(uplink.input);
    return true;
  }

  /** Moves what must pass again to the first stages; true when there is something, and the stages must run. */
  again(): boolean {
    let moved = 0;
    for (let i = 0; i < this.uplinks.length; i++) {
      const { deferred, fromOutside, v6 } = this.uplinks[i];
      moved += deferred.release(fromOutside);
      if (v6 !== null) moved += v6.deferred.release(v6.fromOutside);
    }
    return moved > 0;
  }

  /** How long to wait for frames: not long while flows wait to go. */
  patience(microseconds: number): number {
    return this.isBehind ? BEHIND_MICROSECONDS : microseconds;
  }

  /** Called after each breath: as many flows may go in it as come, so that they are over when they are. */
  catchUp(): void {
    if (this.isBehind) this.expire();
  }

  private get isBehind(): boolean {
    return this.expiring?.isBehind(this.context.seconds) ?? false;
  }

  private expire(): void {
    for (const { translation, v6 } of this.uplinks) {
      translation?.nat.age();
      v6?.translation?.nat.age();
    }
  }

  /** Called every 100 ms, between breaths; the stages must run afterwards. */
  tick(): void {
    this.expire();
    this.mesh?.expire();
    for (const { resolver, v6 } of this.uplinks) {
      for (const one of v6 ? [resolver, v6.resolver] : [resolver]) {
        one.tick();
        // Twice, for the first may come before the link forwards (RFC 5227, 2.3).
        if (this.announced < 2) one.announce();
      }
    }
    this.announced++;
  }

  /** Of IPv4 and of IPv6. */
  private get translations(): Translation[] {
    return this.uplinks.flatMap(({ translation, v6 }) => [
      ...(translation ? [translation] : []),
      ...(v6?.translation ? [v6.translation] : []),
    ]);
  }

  /** Ends flows. Returns how many. */
  flush(filter: FlowFilter): number {
    return this.translations.reduce((sum, { publisher }) => sum + publisher.flush(filter), 0);
  }

  /** Lets somebody choose the backends of what is published for services over IPv4, and over IPv6. */
  balanceBy(v4: Balancing, v6: Balancing | null): void {
    for (const { tables } of this.translations) tables.balancing = tables.addresses === null ? v4 : v6;
  }

  /** Where packets that are translated leave, by the number of the NAT whose they are. */
  outsideOf(owner: number): Batch {
    return this.uplinks[owner].toResolver;
  }

  /** The same for an uplink that has IPv6. */
  outsideOfV6(owner: number): Batch {
    return this.uplinks[owner].v6!.toResolver;
  }

  /**
   * Makes gateways and published ports what the intent says, and ends flows of who is gone.
   * @param endpoints gone, or with another MAC than before.
   */
  apply(before: Intent, next: Intent, endpoints: readonly NeighbourIntent[]): void {
    const gone = before.gateways.filter((old) => !next.gateways.some((kept) => sameWay(old, kept)));
    for (const { domain } of gone) this.gateways.remove(domain);
    for (const gateway of next.gateways) this.gateways.set(gateway);
    this.gateways.reindex();
    this.mesh?.origins.set(next.services ?? []);
    this.mesh?.ingress.set([next.ingress?.domain ?? -1, next.ingress?.mtu ?? 0]);
    const domains = new Set(gone.map(({ domain }) => domain));
    this.uplinks.forEach(({ routes }, index) => {
      routes?.set(next.gateways.filter(({ uplink }) => uplink === index));
    });
    for (const { publisher, tables } of this.translations) {
      for (const { domain, routed } of next.gateways) tables.routed[domain] = Number(routed);
      const bytes = tables.addresses === null ? 4 : 16;
      const mine = ({ uplink, address }: PublishIntent): boolean =>
        uplink === tables.owner && address.length === bytes;
      const services = (next.services ?? []).filter((service) => hasGateway(next, service));
      publisher.set([...next.publish, ...services.flatMap(publishedBy)].filter(mine));
      publisher.endGone(domains, endpoints);
    }
  }
}

/** Whether a service's network has a gateway of its family, without which nothing reaches it from outside. */
function hasGateway({ gateways }: Intent, { domain, address }: ServiceIntent): boolean {
  const own = gateways.find((gateway) => gateway.domain === domain);
  return (address.length === 16 ? own?.v6 : own?.v4) !== undefined;
}

/** The ports at which a service is reached from outside. */
function publishedBy({ id, domain, address, publish }: ServiceIntent): PublishIntent[] {
  return publish.map((port) => ({ ...port, domain, address, service: id }));
}

/** Whether packets of two intents for one domain go the same way. */
function sameWay(a: GatewayIntent, b: GatewayIntent): boolean {
  return (
    a.domain === b.domain &&
    a.uplink === b.uplink &&
    a.routed === b.routed &&
    sameSubnet(a.v4, b.v4) &&
    sameSubnet(a.v6, b.v6)
  );
}

function sameSubnet(a: GatewayAddressIntent | undefined, b: GatewayAddressIntent | undefined): boolean {
  if (a === undefined || b === undefined) return a === b;
  return a.length === b.length && a.subnet.every((byte, i) => byte === b.subnet[i]);
}

/** Network and broadcast address of an uplink's prefix; 0 where it has none (RFC 3021). */
function unusable({ address, length }: UplinkIntent): { network: number; broadcast: number } {
  if (length >= 31) return { network: 0, broadcast: 0 };
  const network = addressWord(address) & maskWord(length);
  return { network, broadcast: network | ~maskWord(length) };
}

interface WireOptions extends Pick<GatewayOptions, 'nat' | 'flows' | 'addresses' | 'ports'> {
  readonly index: number;
  readonly gateways: Gateways;
  readonly errors: { readonly v4: IcmpErrors; readonly v6: Icmpv6Errors };
  readonly inward: Batch;
}

/** An uplink, its both sides behind what lowers the segment size of connections where that is asked for. */
function wireClamped(context: Context, intent: UplinkIntent, options: WireOptions): Uplink {
  if (!intent.clampMss) return wire(context, intent, options);
  const clamped = (to: Batch): Batch => new Batch(createClampMss(context, options.gateways, intent.mtu, to));
  const inward = clamped(options.inward);
  const uplink = wire(context, intent, { ...options, inward });
  const fromInside = clamped(uplink.fromInside);
  const v6 = uplink.v6 && { ...uplink.v6, fromInside: clamped(uplink.v6.fromInside) };
  const outbound = [fromInside, ...(v6 ? [v6.fromInside] : []), ...uplink.outbound];
  return { ...uplink, fromInside, v6, outbound, clamped: [inward] };
}

function wire(context: Context, intent: UplinkIntent, options: WireOptions): Uplink {
  const { index, nat: given, flows, addresses, gateways, errors, inward, ports } = options;
  const { fd, tap } = intent;
  const id = FIRST_UPLINK_PORT + index;
  const port = tap ? createTapPort(context, { id, fd, domain: 0 }) : createPacketSocket(context, { id, fd });
  const toPort = new Batch(port);
  const station = stationOf(intent);
  const routes = tap ? new Routes() : undefined;
  const name = String(index);
  const deferred = createDeferred(context, `again:${name}`);
  const unreachable = (frame: number, route: boolean): void => {
    const code = route ? NET_UNREACHABLE : HOST_UNREACHABLE;
    const error = errors.v4.make(frame, UNREACHABLE, code, 0, station.address);
    if (error !== NO_FRAME) deferred.push(error);
  };
  const cache = new ArpCache(context.seed);
  const resolver = createResolver(context, name, station, cache, { port: toPort, unreachable });
  const toResolver = new Batch(resolver);
  const shared = { index, nat: given, flows, addresses, gateways, inward, toPort, routes, ports };
  const v6 = wireV6(context, intent, { ...shared, errors: errors.v6 });
  const toUplinkIn = (fromOutside: Batch): Batch =>
    new Batch(
      createUplinkIn(context, name, station, gateways, {
        resolver,
        port: toPort,
        nat: fromOutside,
        v6: v6?.input ?? null,
      }),
    );
  const link = { port, toResolver, toPort, resolver, deferred, v6, clamped: [] };
  if (routes !== undefined) {
    const fromOutside = new Batch(createRouteIn(context, name, routes, inward));
    return {
      ...link,
      ...{ input: toUplinkIn(fromOutside), fromOutside, fromInside: toResolver },
      ...{ outbound: [toResolver, ...(v6?.outbound ?? []), toPort], translation: undefined, routes },
    };
  }
  const toDeferred = new Batch(deferred);
  const tables = new NatTables(flows!, index, {
    ...given,
    external: intent.address,
    random: (below) => Math.floor(Math.random() * below),
  });
  const refused = (frame: number): void => {
    const to = ports[context.frames.ingress[frame]];
    const source = gateways.address[context.frames.domain[frame]];
    const error = to ? errors.v4.make(frame, UNREACHABLE, ADMINISTRATIVELY_PROHIBITED, 0, source) : NO_FRAME;
    if (error !== NO_FRAME) to!.push(error);
  };
  const nat = createNat(context, tables, {
    ...{ outside: toResolver, inside: inward, hairpin: toDeferred, refused },
    reset: createResets(context).answer,
  });
  const fromOutside = new Batch(nat.fromOutside);
  const fromInside = new Batch(nat.fromInside);
  return {
    ...link,
    ...{ input: toUplinkIn(fromOutside), fromOutside, fromInside },
    outbound: [fromInside, toDeferred, toResolver, ...(v6?.outbound ?? []), toPort],
    translation: { tables, nat, publisher: new Publisher(tables) },
    routes: undefined,
  };
}

function stationOf({ address, length, gateway, mac }: UplinkIntent): Station {
  return {
    address: addressWord(address),
    subnet: addressWord(address) & maskWord(length),
    mask: maskWord(length),
    gateway: gateway === undefined ? 0 : addressWord(gateway),
    mac: Uint16Array.from([0, 2, 4], (i) => mac[i] | (mac[i + 1] << 8)),
  };
}
