/**
 * Flows of address translation, for people. They are read from memory that the data plane writes meanwhile: a flow
 * that comes or goes in that moment may be shown by halves, and the data plane does not notice.
 */
import { MIRROR } from '../engine/elements/balancer/chooser.js';
import { STATE_NAMES } from '../engine/tables/connection.js';
import {
  EXPIRY,
  EXTERNAL,
  FLOW_SHIFT,
  IN_PORTS,
  INSIDE,
  IPV6_FLOW,
  OUT_KEY,
  OUT_PORTS,
  OWNER_SHIFT,
  OWNERS,
  PACKETS_IN,
  PACKETS_OUT,
  REMOTE_END,
  STATE,
  STATE_MASK,
} from '../engine/tables/flows.js';
import { formatIp, ipBytes } from './addresses.js';
import { routedAddresses, servedAddresses } from './config.js';
import type { Daemon } from './daemon.js';
import { UnknownName } from './unknown-name.js';

/** Flows in one answer, unless told. */
const USUAL_LIMIT = 1000;

export interface FlowRow {
  readonly uplink: string;
  readonly protocol: string;
  readonly state: string;
  readonly network: string;
  /** `address:port` or `[address]:port` inside, outside, and of the remote end; of echo the identifier is the port. */
  readonly inside: string;
  readonly outside: string;
  readonly remote: string;
  readonly packetsOut: number;
  readonly packetsIn: number;
  /** Of IP packets, both directions. */
  readonly bytes: number;
  /** Seconds of silence that are left. */
  readonly expires: number;
}

export interface ConntrackList {
  /** Flows of the node's table, and how many it holds. */
  readonly tracked: number;
  readonly maxFlows: number;
  /** The first of those asked for; how many there are of them. */
  readonly flows: readonly FlowRow[];
  readonly matching: number;
  /** Counters of address translation, drops included. */
  readonly counters: Readonly<Record<string, number>>;
}

export interface PublishRow {
  readonly uplink: string;
  readonly protocol: string;
  /** `*`: every address of the host. */
  readonly address: string;
  readonly port: number;
  /** Who is reached there: one of the two. */
  readonly endpoint?: string;
  readonly service?: string;
  readonly target: number;
}

const PROTOCOLS: Readonly<Record<number, string>> = {
  1: 'icmp',
  6: 'tcp',
  17: 'udp',
  33: 'dccp',
  132: 'sctp',
};

const swap = (half: number): number => ((half & 0xff) << 8) | ((half >>> 8) & 0xff);

/** An address of a little-endian word, and a port of a little-endian half. */
function end(address: number, port: number): string {
  return `${formatIp(Uint8Array.from(new Uint8Array(Int32Array.of(address).buffer)))}:${swap(port & 0xffff)}`;
}

/** The same of IPv6, whose addresses flows have by number. */
function endV6(addresses: Int32Array, number: number, port: number): string {
  const bytes = Uint8Array.from(new Uint8Array(addresses.slice(number * 4, number * 4 + 4).buffer));
  return `[${formatIp(bytes)}]:${swap(port & 0xffff)}`;
}

/** @throws UnknownName for a network that is not there; Error for a limit that is no number. */
export async function conntrackList(daemon: Daemon, query: URLSearchParams): Promise<ConntrackList> {
  const limit = Number(query.get('limit') ?? USUAL_LIMIT);
  if (!(limit >= 0)) throw new Error(`limit is no number of flows: ${query.get('limit')}`);
  const wanted = matcher(daemon, query);
  const { seconds } = await daemon.inspect();
  const flows: FlowRow[] = [];
  let tracked = 0;
  let matching = 0;
  const table = daemon.flowTable();
  const words = table?.entries ?? new Int32Array(0);
  const addresses = table?.numbered ?? new Int32Array(0);
  for (let at = 1 << FLOW_SHIFT; at < words.length; at += 1 << FLOW_SHIFT) {
    if (words[at + OUT_KEY] === 0) continue;
    tracked++;
    if (!wanted(words, at)) continue;
    if (matching++ < limit) flows.push(rowOf(daemon, words, addresses, at, seconds));
  }
  const counters = natCounters(daemon.counters());
  return { tracked, maxFlows: daemon.config.nat.maxFlows, flows, matching, counters };
}

/** Counters of both families' translation, one with the other. */
function natCounters(
  all: Readonly<Record<string, Readonly<Record<string, number>>>>,
): Record<string, number> {
  const sums: Record<string, number> = {};
  for (const owner of ['nat', 'nat:drops', 'nat-v6', 'nat-v6:drops'])
    for (const [name, count] of Object.entries(all[owner] ?? {})) sums[name] = (sums[name] ?? 0) + count;
  return sums;
}

export function rowOf(
  daemon: Daemon,
  words: Int32Array,
  addresses: Int32Array,
  at: number,
  seconds: number,
): FlowRow {
  const protocol = words[at + OUT_KEY] & 0xff;
  const endOf = (words[at + OUT_KEY] & IPV6_FLOW) === 0 ? end : endV6.bind(undefined, addresses);
  const doubles = new Float64Array(words.buffer, (at + 14) * 4, 1);
  return {
    uplink: daemon.config.uplinks[(words[at + OUT_KEY] >>> OWNER_SHIFT) & (OWNERS - 1)]?.name ?? '',
    protocol: PROTOCOLS[protocol] ?? String(protocol),
    state: STATE_NAMES[words[at + STATE] & STATE_MASK] ?? 'new',
    network: daemon.networkName((words[at + OUT_KEY] >>> 16) - 1),
    inside: endOf(words[at + INSIDE], words[at + OUT_PORTS]),
    outside: endOf(words[at + EXTERNAL], words[at + IN_PORTS]),
    remote: endOf(words[at + REMOTE_END], words[at + OUT_PORTS] >>> 16),
    packetsOut: words[at + PACKETS_OUT] >>> 0,
    packetsIn: words[at + PACKETS_IN] >>> 0,
    bytes: doubles[0],
    expires: Math.max(0, words[at + EXPIRY] - seconds),
  };
}

function domainOf(daemon: Daemon, query: URLSearchParams): number | undefined {
  const network = query.get('network');
  if (network === null) return undefined;
  if (!daemon.config.networks.some(({ name }) => name === network))
    throw new UnknownName(`there is no network ${network}`);
  return daemon.domainOf(network);
}

/** Which flows a query asks for. @throws UnknownName. */
export function matcher(daemon: Daemon, query: URLSearchParams): (words: Int32Array, at: number) => boolean {
  const domain = domainOf(daemon, query);
  const protocol = query.get('protocol');
  return (words, at) => {
    const key = words[at + OUT_KEY];
    // Which endpoint a client comes back to, and the second half of an endpoint's flow to itself.
    if ((words[at + STATE] & MIRROR) !== 0) return false;
    if (domain !== undefined && (key >>> 16) - 1 !== domain) return false;
    return protocol === null || (PROTOCOLS[key & 0xff] ?? String(key & 0xff)) === protocol;
  };
}

/** Ends flows: of an endpoint, of a network, or all. @throws UnknownName. Resolves with how many. */
export function flushConntrack(daemon: Daemon, query: URLSearchParams): Promise<number> {
  const name = query.get('endpoint');
  const domain = domainOf(daemon, query);
  if (name === null) return daemon.flushFlows(domain === undefined ? {} : { domain });
  const endpoint = daemon.config.endpoints.find((one) => one.name === name && one.kind === 'local');
  if (endpoint === undefined) throw new UnknownName(`there is no local endpoint ${name}`);
  const given = [endpoint.address, ...(endpoint.address6 === undefined ? [] : [endpoint.address6])];
  const addresses = given.map((one) => ipBytes(one.split('/')[0]));
  const address = addresses.find(({ length }) => length === 4);
  const address6 = addresses.find(({ length }) => length === 16);
  return daemon.flushFlows({
    domain: daemon.domainOf(endpoint.network),
    ...(address && { address }),
    ...(address6 && { address6 }),
  });
}

export function publishRows({ config, published, plan }: Daemon): PublishRow[] {
  const services = plan.services.list().flatMap(({ service }) =>
    service.publish.flatMap(({ uplink, protocol, port, target }) =>
      servedAddresses(config, service, uplink).map((cidr) => ({
        ...{ uplink, protocol, address: cidr.split('/')[0], port, service: service.name, target },
      })),
    ),
  );
  const endpoints = published.current.flatMap(({ address, ...row }) => {
    const way = config.uplinks.find(({ name }) => name === row.uplink)!;
    const at =
      way.mode === 'host'
        ? [address ?? '*']
        : routedAddresses(config, row.endpoint).flatMap(
            (own) => (own.includes(':') ? way.address6 : way.address) ?? [],
          );
    const { uplink, protocol, port, endpoint, target } = row;
    return at.map((one) => ({ uplink, protocol, address: one.split('/')[0], port, endpoint, target }));
  });
  return [...endpoints, ...services];
}
