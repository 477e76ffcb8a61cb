/**
 * From names to numbers: turns a config and the devices opened for it into the intent of the data plane. Networks
 * and endpoints keep their numbers as long as they live, so that a reload changes only what differs.
 */
import { randomInt } from 'node:crypto';
import { meshStations } from '../engine/elements/mesh.js';
import {
  GATEWAY_PORT,
  type GatewayAddressIntent,
  type GatewayIntent,
  type Intent,
  MESH_PORT,
  type NeighbourIntent,
  type StationIntent,
  type UplinkIntent,
} from '../engine/intent.js';
import { CARRY_VLAN, ENCRYPTED, LEARN, PEERS_ONLY } from '../engine/tables/domains.js';
import type { Tap } from '../native-bindings/index.js';
import { deriveMac, ipBytes, macBytes, parseIp, parsePrefix } from './addresses.js';
import {
  type Config,
  carriedNetworks,
  type Endpoint,
  gatewayAddresses,
  type Network,
  routedAddresses,
} from './config.js';
import type { EspSocket, UnderlaySockets } from './devices.js';
import type { FlowFile } from './flow-file.js';
import { PROTOCOL_NUMBERS, type PublishedPort } from './published.js';
import { ServiceBook } from './services.js';
import type { Link, Uplink } from './uplink.js';

/** Numbers given to names; a freed number is used again. */
class Numbers {
  private byName: Map<string, number>;

  /** @param first lowest number given out. @param known numbers that names had in an earlier process. */
  constructor(
    private readonly first: number,
    known: ReadonlyMap<string, number> = new Map(),
  ) {
    this.byName = new Map(known);
  }

  /** Gives every name a number and forgets the names that are not there any more. */
  assign(names: readonly string[]): void {
    for (const name of this.byName.keys()) if (!names.includes(name)) this.byName.delete(name);
    const used = new Set(this.byName.values());
    let next = this.first;
    for (const name of names) {
      if (this.byName.has(name)) continue;
      while (used.has(next)) next++;
      this.byName.set(name, next);
      used.add(next);
    }
  }

  /** Returns what gives the names the numbers of now again. */
  save(): () => void {
    const known = new Map(this.byName);
    return () => {
      this.byName = known;
    };
  }

  of(name: string): number {
    const number = this.byName.get(name);
    if (number === undefined) throw new Error(`internal: ${name} has no number`);
    return number;
  }

  nameOf(number: number): string | undefined {
    for (const [name, known] of this.byName) if (known === number) return name;
    return undefined;
  }
}

export interface Plan {
  readonly networks: Numbers;
  readonly endpoints: Numbers;
  readonly services: ServiceBook;
}

/** @param left what had numbers in an earlier process, and is to keep them. */
export function createPlan(left?: Pick<FlowFile, 'numbers' | 'services'>): Plan {
  return {
    networks: new Numbers(0, left?.numbers),
    endpoints: new Numbers(1),
    services: new ServiceBook(undefined, left?.services),
  };
}

/** Returns what makes a plan what it is now again. */
export function savePlan({ networks, endpoints, services }: Plan): () => void {
  const undone = [networks, endpoints, services].map((one) => one.save());
  return () => {
    for (const undo of undone) undo();
  };
}

/** Seed of the engine's hashes, so that nobody outside can choose colliding keys. */
export function randomSeed(): number {
  return randomInt(1, 2 ** 31);
}

function addressOf(cidr: string): Uint8Array {
  return ipBytes(cidr.split('/')[0]);
}

function flagsOf(config: Config, network: Network): number {
  return (
    (network.innerVlan === 'carry' ? CARRY_VLAN : 0) |
    (network.learning ? LEARN : 0) |
    (network.encrypted ? ENCRYPTED : 0) |
    (config.underlay.accept === 'peers' ? PEERS_ONLY : 0)
  );
}

function stationOf(plan: Plan, endpoint: Endpoint): StationIntent {
  return {
    domain: plan.networks.of(endpoint.network),
    mac: macBytes(endpoint.mac),
    at: endpoint.kind === 'local' ? plan.endpoints.of(endpoint.name) : addressOf(endpoint.vtep),
  };
}

function neighboursOf(plan: Plan, endpoint: Endpoint): NeighbourIntent[] {
  const addresses = [endpoint.address, ...(endpoint.address6 === undefined ? [] : [endpoint.address6])];
  return addresses.map((address) => ({
    domain: plan.networks.of(endpoint.network),
    address: addressOf(address),
    mac: macBytes(endpoint.mac),
  }));
}

/** Gateways of networks; the MAC is the same on every host, for it is made of the first address. */
function gatewaysOf(config: Config, plan: Plan, mtuOf: (network: string) => number): GatewayIntent[] {
  return config.networks.flatMap((network) => {
    const { name, uplink } = network;
    const { v4, v6 } = gatewayAddresses(network);
    const first = v4 ?? v6;
    if (first === undefined) return [];
    return {
      domain: plan.networks.of(name),
      ...(v4 && { v4: gatewayAddress(...v4) }),
      ...(v6 && { v6: gatewayAddress(...v6) }),
      mac: macBytes(deriveMac(parseIp(first[0]))),
      routed: !network.masquerade,
      uplink: uplink === undefined ? -1 : config.uplinks.findIndex((one) => one.name === uplink),
      mtu: mtuOf(name),
    };
  });
}

function gatewayAddress(gateway: string, subnet: string): GatewayAddressIntent {
  const { network, length } = parsePrefix(subnet);
  return { address: addressOf(gateway), subnet: Uint8Array.from(network.bytes), length };
}

/** Addresses for which the gateways answer. */
function gatewayNeighbours({ domain, v4, v6, mac }: GatewayIntent): NeighbourIntent[] {
  return [v4, v6].flatMap((one) =>
    one === undefined ? [] : { domain, address: one.address, mac, router: true },
  );
}

/** Ports that the data plane translates; those at the host's addresses are the host's. */
function publishOf(config: Config, plan: Plan, published: readonly PublishedPort[]): Intent['publish'] {
  return published.flatMap(({ endpoint, protocol, port, target, uplink }) => {
    const index = config.uplinks.findIndex(({ name }) => name === uplink);
    if (config.uplinks[index].mode === 'host') return [];
    const { network } = config.endpoints.find(({ name }) => name === endpoint)!;
    const domain = plan.networks.of(network);
    // At the uplink's IPv6 address, if it has one, as well.
    return routedAddresses(config, endpoint).map((one) => ({
      ...{ uplink: index, protocol: PROTOCOL_NUMBERS[protocol], port, domain, target },
      address: addressOf(one),
    }));
  });
}

/** Where the ingress network's packets for networks of this host arrive. */
function meshStationsOf({ ingress, networks }: Config, plan: Plan): StationIntent[] {
  if (ingress === undefined) return [];
  const domain = plan.networks.of(ingress.name);
  return networks.flatMap(({ vni }) => meshStations(vni).map((mac) => ({ domain, mac, at: MESH_PORT })));
}

/** What was opened on the host for a config. */
export interface Opened {
  /** One set a worker. */
  readonly sockets: readonly UnderlaySockets[];
  /** One a worker; empty without encryption. */
  readonly esp: readonly EspSocket[];
  readonly uplink: Uplink | undefined;
  /** MTU of the underlay's interface, bytes. */
  readonly mtu: number;
  /** Queues of the TAPs, by endpoint, one a worker; an endpoint without is left out. */
  readonly queues: ReadonlyMap<string, readonly Tap[]>;
  readonly links: readonly Link[];
  /** Of each uplink, in the order of the config. */
  readonly uplinks: readonly UplinkIntent[];
  readonly published: readonly PublishedPort[];
  readonly flows: FlowFile | undefined;
  /** MTU of a network's interfaces, bytes. */
  readonly mtuOf: (network: string) => number;
  /** Whether this kernel's TAPs take UDP super-frames. */
  readonly udpSegmentation: boolean;
}

/**
 * Stations that the forwarding table is made for: what the networks may learn, at least 128 K and at most 2 M, at
 * 32 bytes each. The table never grows: what does not fit any more is flooded and counted.
 */
function capacityFor(config: Config): number {
  const wanted = config.networks.reduce(
    (sum, { learningLimit }) => sum + learningLimit,
    config.endpoints.length,
  );
  return Math.min(Math.max(wanted, 1 << 17), 1 << 21);
}

/** @param worker index of the worker whose descriptors the intent names. */
export function intentOf(config: Config, plan: Plan, opened: Opened, worker: number): Intent {
  const { sockets, esp, uplink, mtu, queues, links } = opened;
  const present = config.endpoints.filter(({ kind, name }) => kind === 'remote' || queues.has(name));
  const gateways = gatewaysOf(config, plan, opened.mtuOf);
  const { services, marks, ...virtual } = plan.services.intents(config, {
    domainOf: (network) => plan.networks.of(network),
    portOf: (endpoint) => plan.endpoints.of(endpoint),
    uplinkOf: (uplink) => config.uplinks.findIndex(({ name }) => name === uplink),
  });
  const intent: Omit<Intent, 'flows'> = {
    underlay: {
      ...sockets[worker],
      address: addressOf(config.underlay.address),
      port: config.underlay.port,
      ttl: config.underlay.ttl,
      strict: config.underlay.reservedBits === 'strict',
      mtu,
      ...(uplink === undefined ? {} : { uplink: uplink.taps[worker].fd }),
      ...(esp.length === 0 ? {} : { esp: esp[worker] }),
    },
    links,
    udpSegmentation: opened.udpSegmentation,
    capacity: capacityFor(config),
    domains: carriedNetworks(config).map((network) => ({
      id: plan.networks.of(network.name),
      vni: network.vni,
      flags: network === config.ingress ? flagsOf(config, network) & ~LEARN : flagsOf(config, network),
      ageing: network.ageing,
      learningLimit: network.learningLimit,
      peers: network.peers.map(addressOf),
    })),
    ports: present
      .filter(({ kind }) => kind === 'local')
      .map(({ name, network }) => ({
        id: plan.endpoints.of(name),
        fd: queues.get(name)![worker].fd,
        domain: plan.networks.of(network),
      })),
    stations: [
      ...present.map((endpoint) => stationOf(plan, endpoint)),
      ...gateways.map(({ domain, mac }) => ({ domain, mac, at: GATEWAY_PORT })),
      ...virtual.stations,
      ...meshStationsOf(config, plan),
    ],
    neighbours: [
      ...present.flatMap((endpoint) => neighboursOf(plan, endpoint)),
      ...gateways.flatMap(gatewayNeighbours),
      ...virtual.neighbours,
    ],
    gateways,
    uplinks: opened.uplinks,
    publish: publishOf(config, plan, opened.published),
    nat: {
      mapping: config.nat.mapping,
      firstPort: config.nat.ports.first,
      lastPort: config.nat.ports.last,
      timeouts: config.nat.timeouts,
    },
    ...(services.length > 0 && { services, marks }),
    ...(config.ingress && {
      ingress: { domain: plan.networks.of(config.ingress.name), mtu: opened.mtuOf(config.ingress.name) },
    }),
  };
  const { flows } = opened;
  return flows === undefined ? intent : { ...intent, flows: flows.intentOf(config, intent) };
}
