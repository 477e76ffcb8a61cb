/**
 * The daemon's answers over its control socket: HTTP with JSON on a Unix socket, readable by root and its group.
 * Paths are versionless; each answer carries `schemaVersion`. Numbers are counts and bytes as they are.
 */
import { chmodSync, mkdirSync, rmSync } from 'node:fs';
import { createServer, type Server, type ServerResponse } from 'node:http';
import { connect } from 'node:net';
import { dirname } from 'node:path';
import { ESP_PORT, FIRST_UPLINK_PORT, UNDERLAY_PORT, UPLINK_PORT } from '../engine/intent.js';
import { REMOTE } from '../engine/memory/frames.js';
import { formatIp, formatMac } from './addresses.js';
import {
  type ConntrackList,
  conntrackList,
  flushConntrack,
  type PublishRow,
  publishRows,
} from './conntrack.js';
import type { Daemon } from './daemon.js';
import { type FlowEvent, type FlowEventLine, streamEvents } from './flow-watch.js';
import { Ending } from './hand-over.js';
import type { SaRow } from './keying/store.js';
import { UnknownPeer } from './keying/unknown-peer.js';
import { SCHEMA_VERSION } from './protocol.js';
import {
  type BackendRow,
  removeService,
  type ServiceRow,
  serviceRows,
  weighBackend,
} from './service-rows.js';
import { UnknownName } from './unknown-name.js';

export type { BackendRow, ConntrackList, FlowEvent, FlowEventLine, PublishRow, SaRow, ServiceRow };

export interface FdbRow {
  readonly network: string;
  readonly mac: string;
  /** Endpoint name, or undefined for a remote station. */
  readonly endpoint?: string;
  /** Address of the VTEP, or undefined for a local station. */
  readonly vtep?: string;
  readonly static: boolean;
  /** Seconds since the station was last seen; undefined for static entries. */
  readonly age?: number;
}

export interface DropRow {
  /** Element or port. */
  readonly element: string;
  readonly reason: string;
  readonly count: number;
}

export interface SaList {
  readonly associations: readonly SaRow[];
  /** VTEPs with which no keys are agreed yet: nothing encrypted is sent to them. */
  readonly waiting: readonly string[];
  /** Messages of the exchange of keys that were dropped, by reason; empty without one. */
  readonly exchangeDrops: Readonly<Record<string, number>>;
}

interface PortStatus {
  readonly name: string;
  readonly network: string;
  readonly netns: string;
  readonly interface: string;
  readonly address: string;
  readonly mac: string;
  readonly state: 'forwarding' | 'lost';
  readonly counters: Record<string, number>;
}

export interface Status {
  readonly schemaVersion: number;
  readonly node: string;
  readonly pid: number;
  readonly uptimeSeconds: number;
  readonly underlay: {
    readonly address: string;
    readonly port: number;
    readonly interface: string;
    readonly mtu: number;
    /** Which way the underlay is used, and why. */
    readonly path: 'uplink' | 'socket';
    readonly why: string;
    readonly counters: Record<string, number>;
  };
  readonly networks: {
    readonly name: string;
    readonly vni: number;
    readonly mtu: number;
    readonly encrypted: boolean;
    readonly peers: readonly string[];
    readonly stations: number;
  }[];
  readonly endpoints: PortStatus[];
  readonly elements: Record<string, Record<string, number>>;
  readonly slotsInUse: number;
  /** Share of the last second that each data-plane worker spent working, 0 to 1. */
  readonly workers: readonly { readonly load: number }[];
}

async function fdbRows(daemon: Daemon): Promise<FdbRow[]> {
  const { stations, vteps, seconds } = await daemon.inspect();
  const addresses = new Map(vteps.map(({ index, address }) => [index, formatIp(address)]));
  return stations
    .map((station): FdbRow => {
      const remote = station.destination >= REMOTE;
      return {
        network: daemon.networkName(station.domain),
        mac: formatMac(station.mac),
        ...(remote
          ? { vtep: addresses.get(station.destination & 0xffff) ?? 'gone' }
          : { endpoint: daemon.endpointName(station.destination) }),
        static: station.isStatic,
        ...(station.isStatic ? {} : { age: seconds - station.seen }),
      };
    })
    .sort((a, b) => (a.network === b.network ? compare(a.mac, b.mac) : compare(a.network, b.network)));
}

const compare = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

/** Ports that lead to the underlay, and what people call them. */
const WAYS_OUT: Readonly<Record<number, string>> = {
  [UNDERLAY_PORT]: 'underlay',
  [UPLINK_PORT]: 'uplink',
  [ESP_PORT]: 'underlay:esp',
};

/** Name of a counter's owner as people know it: `port:3` is an endpoint, `port:3:split` a part of it. */
function ownerName(daemon: Daemon, owner: string): string {
  const part = /^((?:resolver|uplink-in|route-in|again)(?:-v6)?):(\d+)$/.exec(owner);
  if (part) return `${part[1]} ${daemon.config.uplinks[Number(part[2])]?.name ?? part[2]}`;
  const port = /^port:(\d+)(?::(.*))?$/.exec(owner);
  if (!port) return owner;
  const id = Number(port[1]);
  const way = daemon.config.uplinks[id - FIRST_UPLINK_PORT];
  if (way !== undefined) return `uplink ${way.name}`;
  const name = WAYS_OUT[id] ?? `endpoint ${daemon.endpointName(id)}`;
  return port[2] === undefined ? name : `${name} ${port[2]}`;
}

/** Every drop reason with its count, those that never happened included. */
function dropRows(daemon: Daemon): DropRow[] {
  const rows: DropRow[] = [];
  for (const [owner, counters] of Object.entries(daemon.counters())) {
    if (!owner.endsWith(':drops')) continue;
    const element = ownerName(daemon, owner.slice(0, -':drops'.length));
    for (const [reason, count] of Object.entries(counters)) rows.push({ element, reason, count });
  }
  return rows;
}

/** What a node's associations are, and what keeps it from having more. */
function saList({ keying }: Daemon): SaList {
  return { associations: keying.list(), waiting: keying.waiting(), exchangeDrops: keying.drops() };
}

function underlayPath({ uplink }: Daemon): { path: 'uplink' | 'socket'; why: string } {
  return typeof uplink === 'string'
    ? { path: 'socket', why: uplink }
    : { path: 'uplink', why: `super-frames pass whole through ${uplink.taps[0].name}` };
}

function sum(a: Record<string, number>, b: Record<string, number>): Record<string, number> {
  const total = { ...a };
  for (const [name, value] of Object.entries(b)) total[name] = (total[name] ?? 0) + value;
  return total;
}

async function status(daemon: Daemon): Promise<Status> {
  const { config } = daemon;
  const { stations, slotsInUse } = await daemon.inspect();
  const counters = daemon.counters();
  const perNetwork = new Map<string, number>();
  for (const { domain } of stations) {
    const name = daemon.networkName(domain);
    perNetwork.set(name, (perNetwork.get(name) ?? 0) + 1);
  }
  return {
    schemaVersion: SCHEMA_VERSION,
    node: config.node,
    pid: process.pid,
    uptimeSeconds: Math.round((Date.now() - daemon.started) / 1000),
    underlay: {
      address: config.underlay.address,
      port: config.underlay.port,
      interface: daemon.underlayDevice.name,
      mtu: config.underlay.mtu ?? daemon.underlayDevice.mtu,
      ...underlayPath(daemon),
      counters: Object.keys(WAYS_OUT).reduce((total, id) => sum(total, counters[`port:${id}`] ?? {}), {}),
    },
    networks: config.networks.map(({ name, vni, encrypted, peers }) => ({
      name,
      vni,
      encrypted,
      mtu: daemon.mtuOf(name),
      peers,
      stations: perNetwork.get(name) ?? 0,
    })),
    endpoints: daemon.endpoints().map(({ endpoint, port, lost }) => ({
      name: endpoint.name,
      network: endpoint.network,
      netns: endpoint.netns,
      interface: endpoint.interface,
      address: endpoint.address,
      mac: endpoint.mac,
      state: lost ? 'lost' : 'forwarding',
      counters: counters[`port:${port}`] ?? {},
    })),
    elements: Object.fromEntries(
      Object.entries(counters).filter(([owner]) => !owner.startsWith('port:') && !owner.endsWith(':drops')),
    ),
    slotsInUse,
    workers: daemon.load().map((load) => ({ load })),
  };
}

async function answer(
  daemon: Daemon,
  route: string,
  searchParams: URLSearchParams,
): Promise<{ code: number; body: object }> {
  switch (route) {
    case 'GET /status':
      return { code: 200, body: await status(daemon) };
    case 'GET /fdb':
      return { code: 200, body: { schemaVersion: SCHEMA_VERSION, entries: await fdbRows(daemon) } };
    case 'POST /fdb/flush':
      await daemon.flush();
      return { code: 200, body: { schemaVersion: SCHEMA_VERSION } };
    case 'GET /drops':
      return { code: 200, body: { schemaVersion: SCHEMA_VERSION, drops: dropRows(daemon) } };
    case 'GET /sa':
      return { code: 200, body: { schemaVersion: SCHEMA_VERSION, ...saList(daemon) } };
    case 'POST /sa/rotate':
      return {
        code: 200,
        body: {
          schemaVersion: SCHEMA_VERSION,
          ...(await daemon.keying.rotate(searchParams.get('peer') ?? undefined)),
        },
      };
    case 'GET /conntrack':
      return {
        code: 200,
        body: { schemaVersion: SCHEMA_VERSION, ...(await conntrackList(daemon, searchParams)) },
      };
    case 'POST /conntrack/flush':
      return {
        code: 200,
        body: { schemaVersion: SCHEMA_VERSION, ended: await flushConntrack(daemon, searchParams) },
      };
    case 'GET /publish':
      return { code: 200, body: { schemaVersion: SCHEMA_VERSION, published: publishRows(daemon) } };
    case 'GET /services':
      return {
        code: 200,
        body: { schemaVersion: SCHEMA_VERSION, services: await serviceRows(daemon, searchParams) },
      };
    case 'POST /services/weight':
      await weighBackend(daemon, searchParams);
      return { code: 200, body: { schemaVersion: SCHEMA_VERSION } };
    case 'POST /services/rm':
      await removeService(daemon, searchParams);
      return { code: 200, body: { schemaVersion: SCHEMA_VERSION } };
    case 'POST /reload':
      await daemon.reload();
      return { code: 200, body: { schemaVersion: SCHEMA_VERSION } };
    default:
      return { code: 404, body: { error: `no such path: ${route}` } };
  }
}

function reply(response: ServerResponse, code: number, body: object): void {
  response.writeHead(code, { 'content-type': 'application/json' }).end(`${JSON.stringify(body)}\n`);
}

/** Listens on a Unix socket. @throws Error when another daemon answers there, or it cannot be made. */
export async function serve(daemon: Daemon, path: string, ending = new Ending()): Promise<Server> {
  const server = createServer((request, response) => {
    request.resume();
    const { pathname, searchParams } = new URL(request.url ?? '/', 'http://daemon');
    const route = `${request.method} ${pathname}`;
    if (route === 'POST /hand-over') {
      ending.ask(response);
      return;
    }
    const answered =
      route === 'GET /conntrack/events'
        ? Promise.resolve().then(() => streamEvents(daemon, searchParams, response))
        : answer(daemon, route, searchParams).then(({ code, body }) => reply(response, code, body));
    answered.catch((error: Error) =>
      reply(response, error instanceof UnknownPeer || error instanceof UnknownName ? 404 : 409, {
        error: error.message,
      }),
    );
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, resolve);
  });
  chmodSync(path, 0o660);
  return server;
}

/**
 * Makes way for a control socket: the folder is made, a dead daemon's socket removed.
 * @throws Error when a living daemon answers there.
 */
export async function claimSocket(path: string): Promise<void> {
  mkdirSync(dirname(path), { recursive: true });
  const alive = await new Promise<boolean>((resolve) => {
    const probe = connect(path, () => resolve(true));
    probe.on('error', () => resolve(false));
    probe.on('close', () => probe.destroy());
    probe.on('connect', () => probe.destroy());
  });
  if (alive)
    throw new Error(`another daemon answers on ${path}: stop it, or choose another path with --socket`);
  rmSync(path, { force: true });
}
