/** What the keys of a node's file mean for each other: references, uniqueness, families, containment, MTUs. */
import { MAX_ENDPOINTS, MAX_VTEPS } from '../../engine/intent.js';
import { MAX_DOMAINS } from '../../engine/tables/mac-table.js';
import {
  contains,
  deriveMac,
  type Ip,
  isBroadcastAddress,
  isNetworkAddress,
  type Prefix,
  quote,
} from '../addresses.js';
import { defaultMtu, netnsPath } from './derived.js';
import type { Findings, Path } from './problems.js';
import { closest, type Draft } from './read.js';
import { type endpointSchema, LEAST_MTU, type networkSchema, type underlaySchema } from './schema.js';
import type { Encapsulation } from './types.js';

export type UnderlayDraft = Draft<typeof underlaySchema>;

export interface NetworkDraft {
  readonly path: Path;
  readonly fields: Draft<typeof networkSchema>;
  readonly peers: readonly { readonly path: Path; readonly ip: Ip | undefined }[];
}

export interface EndpointDraft {
  readonly path: Path;
  readonly fields: Draft<typeof endpointSchema>;
  /** Optional keys that were written, rightly or wrongly: what is wrong must not also be called missing. */
  readonly written: ReadonlySet<string>;
}

/** Remembers where each value was first used, and reports the second use. */
export class Unique {
  private readonly first = new Map<string, Path>();
  constructor(private readonly findings: Findings) {}

  /** @param what the value for people, such as `network name "blue"`. */
  add(key: string, path: Path, what: string, remedy: string): void {
    const before = this.first.get(key);
    if (before === undefined) this.first.set(key, path);
    else
      this.findings.add(path, `${what} is used twice, first on line ${this.findings.lineOf(before)}`, remedy);
  }
}

/** What encryption means for the rest of the file. */
export interface Sealing {
  readonly encapsulation: Encapsulation;
  /** Peers of static associations. */
  readonly peers: readonly string[];
}

/**
 * Checks everything but encryption itself; absent fields were reported already and are passed over.
 * @param ingress a network too, but one without endpoints.
 */
export function checkRelations(
  underlay: UnderlayDraft,
  { encapsulation, peers }: Sealing,
  networks: readonly NetworkDraft[],
  ingress: NetworkDraft | undefined,
  endpoints: readonly EndpointDraft[],
  findings: Findings,
): void {
  const all = ingress === undefined ? networks : [...networks, ingress];
  checkUnderlay(underlay, findings);
  checkCounts(all, endpoints, peers, findings);
  const names = new Unique(findings);
  const vnis = new Unique(findings);
  for (const network of all) {
    const { name, vni } = network.fields;
    if (name !== undefined && network !== ingress) {
      names.add(name, [...network.path, 'name'], `network name "${name}"`, 'give each network its own name');
    }
    if (vni !== undefined) {
      vnis.add(String(vni), [...network.path, 'vni'], `VNI ${vni}`, 'give each network its own VNI');
    }
    checkPrefixes(network, findings);
    checkNetworkMtu(network, underlay, network.fields.encrypted ? encapsulation : undefined, findings);
    checkPeers(network, underlay, findings);
  }
  checkEndpoints(underlay, networks, endpoints, findings);
}

/** The engine's tables are of a fixed size; what would not fit is refused here, not halfway through. */
function checkCounts(
  networks: readonly NetworkDraft[],
  endpoints: readonly EndpointDraft[],
  others: readonly string[],
  findings: Findings,
): void {
  const remote = endpoints.flatMap(({ fields }) => (fields.vtep === undefined ? [] : [fields.vtep.text]));
  const peers = networks.flatMap((network) => network.peers.map(({ ip }) => ip?.text));
  const vteps = new Set([...peers, ...remote, ...others]);
  const counts = [
    { key: 'networks', what: 'networks', count: networks.length, most: MAX_DOMAINS },
    {
      key: 'endpoints',
      what: 'local endpoints',
      count: endpoints.length - remote.length,
      most: MAX_ENDPOINTS,
    },
    { key: 'networks', what: 'VTEPs', count: vteps.size, most: MAX_VTEPS },
  ];
  for (const { key, what, count, most } of counts) {
    if (count > most)
      findings.add([key], `${count} ${what} are more than a node can have`, `keep to ${most}`);
  }
}

function checkUnderlay({ address, mtu }: UnderlayDraft, findings: Findings): void {
  if (address?.family === 6 && mtu !== undefined && mtu < LEAST_MTU[6]) {
    findings.add(
      ['underlay', 'mtu'],
      `an IPv6 underlay cannot have an MTU of ${mtu} bytes`,
      `write a number from ${LEAST_MTU[6]} (RFC 8200 section 5)`,
    );
  }
}

/** Why an address of the prefix cannot be a host's; undefined when it can. */
export function unusable(prefix: Prefix, ip: Ip): string | undefined {
  const { network, length } = prefix;
  const subnet = `${network.text}/${length}`;
  if (!contains(prefix, ip)) return `${ip.text} is outside ${subnet}`;
  if (isNetworkAddress(prefix, ip)) return `${ip.text} is the network address of ${subnet}, not a host's`;
  if (isBroadcastAddress(prefix, ip)) return `${ip.text} is the broadcast address of ${subnet}, not a host's`;
  return undefined;
}

function checkPrefixes({ path, fields }: NetworkDraft, findings: Findings): void {
  const { subnet, subnet6, gateway, gateway6 } = fields;
  if (subnet6 !== undefined && subnet6.address.family === 4) {
    findings.add(
      [...path, 'subnet6'],
      `subnet6 ${subnet6.text} is an IPv4 prefix`,
      'write an IPv6 prefix, or move it to subnet',
    );
  } else if (subnet6 !== undefined && subnet?.address.family === 6) {
    findings.add(
      [...path, 'subnet6'],
      'subnet is an IPv6 prefix already',
      'keep the IPv6 prefix in one of them; subnet6 goes beside an IPv4 subnet',
    );
  }
  if (gateway6 !== undefined && subnet6 !== undefined) {
    const wrong = unusable(subnet6, gateway6);
    if (wrong !== undefined)
      findings.add([...path, 'gateway6'], `gateway6 ${wrong}`, `write a host address of ${subnet6.text}`);
  } else if (gateway6 !== undefined && subnet !== undefined) {
    const remedy =
      subnet.address.family === 6 ? 'write it as gateway' : 'add subnet6 to the network, or remove gateway6';
    findings.add([...path, 'gateway6'], `network "${fields.name}" has no subnet6`, remedy);
  }
  if (subnet === undefined || gateway === undefined) return;
  const why = unusable(subnet, gateway);
  if (why !== undefined)
    findings.add([...path, 'gateway'], `gateway ${why}`, `write a host address of ${subnet.text}`);
}

/** The inner MTU must hold its protocol and fit the underlay, whose frames Weft sends with DF set. */
function checkNetworkMtu(
  { path, fields }: NetworkDraft,
  underlay: UnderlayDraft,
  encapsulation: Encapsulation | undefined,
  findings: Findings,
): void {
  const ipv6 = fields.subnet?.address.family === 6 || fields.subnet6 !== undefined;
  const least = LEAST_MTU[ipv6 ? 6 : 4];
  const family = underlay.address?.family;
  const most = family && defaultMtu(underlay.mtu ?? 65535, family, encapsulation);
  const { mtu } = fields;
  if (mtu !== undefined && mtu < least) {
    findings.add(
      [...path, 'mtu'],
      `a network with an IPv6 prefix cannot have an MTU of ${mtu} bytes`,
      `write a number from ${least} (RFC 8200 section 5)`,
    );
  } else if (mtu !== undefined && most !== undefined && mtu > most) {
    const what = { none: 'VXLAN', esp: 'VXLAN in ESP', udp: 'VXLAN in ESP in UDP' }[encapsulation ?? 'none'];
    findings.add(
      [...path, 'mtu'],
      `MTU ${mtu} with ${what} over IPv${family} does not fit an underlay of ${underlay.mtu ?? 65535} bytes`,
      `write ${most} or less`,
    );
  } else if (mtu === undefined && most !== undefined && most < least) {
    let enough = underlay.mtu! + least - most;
    // ESP is padded to whole words.
    while (defaultMtu(enough - 1, family!, encapsulation) >= least) enough--;
    findings.add(
      ['underlay', 'mtu'],
      `an underlay of ${underlay.mtu} bytes leaves ${most} for network ${quote(fields.name ?? '')}, which needs ${least}`,
      `write ${enough} or more`,
    );
  }
}

/** A VTEP must be of the underlay's family and not this host. */
export function checkVtep(
  ip: Ip,
  path: Path,
  what: string,
  { address }: UnderlayDraft,
  findings: Findings,
): boolean {
  if (address === undefined) return true;
  if (ip.family !== address.family) {
    findings.add(
      path,
      `${what} ${ip.text} is IPv${ip.family} and the underlay is IPv${address.family}`,
      `write the peer's IPv${address.family} address`,
    );
    return false;
  }
  if (ip.text === address.text) {
    const remedy = what === 'peer' ? 'remove it; list other hosts only' : "write the other host's address";
    findings.add(path, `${what} ${ip.text} is this host's own underlay address`, remedy);
    return false;
  }
  return true;
}

function checkPeers({ peers }: NetworkDraft, underlay: UnderlayDraft, findings: Findings): void {
  const seen = new Unique(findings);
  for (const { ip, path } of peers) {
    if (ip === undefined || !checkVtep(ip, path, 'peer', underlay, findings)) continue;
    seen.add(ip.text, path, `peer ${ip.text}`, 'list each peer once');
  }
}

function checkEndpoints(
  underlay: UnderlayDraft,
  networks: readonly NetworkDraft[],
  endpoints: readonly EndpointDraft[],
  findings: Findings,
): void {
  const byName = new Map(networks.map((network) => [network.fields.name, network]));
  const names = new Unique(findings);
  const interfaces = new Unique(findings);
  const macs = new Unique(findings);
  const addresses = new Unique(findings);
  for (const endpoint of endpoints) {
    const { path, fields } = endpoint;
    const { name, netns } = fields;
    if (name !== undefined) {
      names.add(name, [...path, 'name'], `endpoint name "${name}"`, 'give each endpoint its own name');
    }
    if (netns !== undefined && fields.interface !== undefined) {
      interfaces.add(
        `${netnsPath(netns)}\0${fields.interface}`,
        [...path, 'interface'],
        `interface ${quote(fields.interface)} of namespace ${quote(netns)}`,
        'give each endpoint of a namespace its own interface',
      );
    }
    checkPlace(endpoint, findings);
    const network = findNetwork(endpoint, byName, findings);
    if (fields.vtep !== undefined) checkEndpointVtep(endpoint, network, underlay, findings);
    if (network !== undefined) checkAddresses(endpoint, network, addresses, macs, findings);
  }
}

/** An endpoint is here (netns and interface) or on another host (vtep). */
function checkPlace({ path, written }: EndpointDraft, findings: Findings): void {
  const local = ['netns', 'interface'].filter((key) => written.has(key));
  if (written.has('vtep') && local.length > 0) {
    findings.add(
      [...path, 'vtep'],
      `the endpoint has vtep and ${local.join(' and ')}, so it is both remote and local`,
      'keep vtep for an endpoint on another host, netns and interface for one on this host',
      'key',
    );
  } else if (!written.has('vtep') && local.length === 0) {
    findings.add(
      path,
      'the endpoint has no place',
      'add netns and interface (on this host) or vtep (on another)',
    );
  } else if (local.length === 1) {
    const missing = local[0] === 'netns' ? 'interface' : 'netns';
    findings.add(path, `${missing} is missing`, `add ${missing}: a local endpoint has netns and interface`);
  }
}

/** Problem and remedy of a name that nothing has. @param list key of the file where it would be. */
export function unknownName(
  what: string,
  wanted: string,
  known: readonly string[],
  list: string,
): [message: string, remedy: string] {
  const close = closest(wanted, known);
  const listed = known.slice(0, 10).join(', ') + (known.length > 10 ? ', …' : '');
  const remedy =
    close !== undefined
      ? `did you mean ${close}?`
      : known.length > 0
        ? `write one of ${listed}, or add it to ${list}`
        : `add it to ${list}`;
  return [`there is no ${what} "${wanted}"`, remedy];
}

function findNetwork(
  { path, fields }: EndpointDraft,
  byName: ReadonlyMap<string | undefined, NetworkDraft>,
  findings: Findings,
): NetworkDraft | undefined {
  const { network } = fields;
  if (network === undefined) return undefined;
  const found = byName.get(network);
  // A network whose name could not be read may be the one that is meant.
  if (found !== undefined || byName.has(undefined)) return found;
  const known = [...byName.keys()].filter((name) => name !== undefined);
  findings.add([...path, 'network'], ...unknownName('network', network, known, 'networks'));
  return undefined;
}

function checkEndpointVtep(
  { path, fields }: EndpointDraft,
  network: NetworkDraft | undefined,
  underlay: UnderlayDraft,
  findings: Findings,
): void {
  const vtep = fields.vtep!;
  const at = [...path, 'vtep'];
  if (!checkVtep(vtep, at, 'vtep', underlay, findings)) return;
  const peer = network?.peers.some(({ ip }) => ip === undefined || ip.text === vtep.text) ?? true;
  if (underlay.accept === 'peers' && !peer) {
    findings.add(
      at,
      `vtep ${vtep.text} is no peer of network "${network!.fields.name}", and underlay.accept is peers`,
      `add ${vtep.text} to the network's peers, or set underlay.accept to any`,
    );
  }
}

function checkAddresses(
  { path, fields, written }: EndpointDraft,
  { fields: network }: NetworkDraft,
  addresses: Unique,
  macs: Unique,
  findings: Findings,
): void {
  const scope = `${network.name}\0`;
  const first = network.gateway ?? network.gateway6;
  const gatewayMac = first && deriveMac(first);
  const { address, address6, mac } = fields;
  if (address !== undefined && network.subnet !== undefined) {
    checkAddress(address, network.subnet, network.gateway, [...path, 'address'], scope, addresses, findings);
  }
  if (address6 !== undefined && network.subnet6 !== undefined) {
    checkAddress(
      address6,
      network.subnet6,
      network.gateway6,
      [...path, 'address6'],
      scope,
      addresses,
      findings,
    );
  } else if (address6 !== undefined && network.subnet !== undefined) {
    findings.add(
      [...path, 'address6'],
      `network "${network.name}" has no subnet6`,
      'add subnet6 to the network, or remove address6',
    );
  }
  if (mac !== undefined && mac === gatewayMac) {
    findings.add([...path, 'mac'], `MAC ${mac} is that of the network's gateway`, 'write another');
  } else if (mac !== undefined) {
    macs.add(
      scope + mac,
      [...path, 'mac'],
      `MAC ${mac} in network "${network.name}"`,
      'give each endpoint its own',
    );
  } else if (address !== undefined && !written.has('mac')) {
    const derived = deriveMac(address.address);
    if (derived === gatewayMac && address.address.text !== first?.text) {
      const message = `MAC ${derived} (derived from ${address.address.text}) is that of the network's gateway`;
      findings.add([...path, 'address'], message, 'give the endpoint a mac');
    }
    const what = `MAC ${derived} (derived from ${address.address.text}) in network "${network.name}"`;
    macs.add(scope + derived, [...path, 'address'], what, 'give one of the two endpoints a mac');
  }
}

function checkAddress(
  address: Prefix,
  subnet: Prefix,
  gateway: Ip | undefined,
  path: Path,
  scope: string,
  addresses: Unique,
  findings: Findings,
): void {
  const ip = address.address;
  const why = unusable(subnet, ip);
  if (why !== undefined) {
    findings.add(path, `address ${why}`, `write a host address of the network, with /${subnet.length}`);
  } else if (address.length !== subnet.length) {
    findings.add(
      path,
      `address ${address.text} has another prefix length than its network ${subnet.text}`,
      `write ${ip.text}/${subnet.length}`,
    );
  } else if (gateway?.text === ip.text) {
    findings.add(path, `address ${ip.text} is the network's gateway`, 'write another host address');
  } else {
    addresses.add(scope + ip.text, path, `address ${ip.text}`, 'give each endpoint its own address');
  }
}
