/** The keys `ingress`, `services` and `marks`: read, checked for each other and for the rest of the file, and built. */
import { MAX_BACKENDS, MAX_SERVICES } from '../../engine/tables/services.js';
import { quote } from '../addresses.js';
import { isMapping } from './document.js';
import type { Findings, Path } from './problems.js';
import { type Draft, readLeaf, readLeaves, readList } from './read.js';
import { type EndpointDraft, type NetworkDraft, Unique, unknownName } from './relations.js';
import { checkAddresses, checkMac, type Holders, holdersOf } from './service-addresses.js';
import {
  affinitySchema,
  backendSchema,
  healthSchema,
  httpSchema,
  ingressSchema,
  markSchema,
  servicePortSchema,
  servicePublishSchema,
  serviceSchema,
} from './service-schema.js';
import type { Health, MarkRule, Service } from './types.js';
import type { UplinksDraft } from './uplinks.js';

interface Part<F> {
  readonly path: Path;
  readonly fields: F;
}

type PublishDraft = Part<Draft<typeof servicePublishSchema>>;
type MarkDraft = Part<Draft<typeof markSchema>>;

interface HealthDraft {
  readonly fields: Draft<typeof healthSchema>;
  readonly http: Draft<typeof httpSchema> | undefined;
}

export interface ServiceDraft extends Part<Draft<typeof serviceSchema>> {
  readonly affinity: Draft<typeof affinitySchema> | undefined;
  readonly ports: readonly Part<Draft<typeof servicePortSchema>>[];
  readonly publish: readonly PublishDraft[];
  readonly backends: readonly Part<Draft<typeof backendSchema>>[];
  readonly health: HealthDraft | undefined;
}

export interface ServicesDraft {
  /** As any other network, which the ingress network is but for its name. */
  readonly ingress: NetworkDraft | undefined;
  readonly services: readonly ServiceDraft[];
  readonly marks: readonly MarkDraft[];
}

/** What of the rest of the file services are checked with. */
interface Surroundings {
  readonly workers: number | undefined;
  readonly ways: UplinksDraft;
  readonly networks: readonly NetworkDraft[];
  readonly endpoints: readonly EndpointDraft[];
}

/** By which key of its network a virtual address has a gateway of its family. */
const GATEWAYS_OF = [
  ['vip', 'gateway'],
  ['vip6', 'gateway6'],
] as const;

/** Name of the ingress network, which no other may have. */
const INGRESS = 'ingress';

/** Reads the three keys of a file. */
export function readServices(root: Record<string, unknown>, findings: Findings): ServicesDraft {
  const services = readList(root['services'], ['services'], findings, (raw, path) =>
    readService(raw, path, findings),
  );
  const marks = readList(root['marks'], ['marks'], findings, (raw, path) => ({
    path,
    fields: readLeaves(markSchema, raw, path, findings),
  }));
  return { ingress: readIngress(root['ingress'], findings), services, marks };
}

function readIngress(raw: unknown, findings: Findings): NetworkDraft | undefined {
  if (raw === undefined) return undefined;
  const path = ['ingress'];
  const { peers: _, ...own } = readLeaves(ingressSchema, raw, path, findings);
  const element = ingressSchema.shape.peers.unwrap().element;
  const list = isMapping(raw) ? raw['peers'] : undefined;
  const peers = readList(list, [...path, 'peers'], findings, (item, at) => ({
    path: at,
    ip: readLeaf(element, item, at, findings),
  }));
  const usual = { masquerade: true, internal: true, learning: true, ageing: 300, learning_limit: 65536 };
  const fields = { name: INGRESS, ...own, inner_vlan: 'discard' as const, ...usual };
  return { path, fields, peers };
}

function readService(raw: unknown, path: Path, findings: Findings): ServiceDraft {
  const fields = readLeaves(serviceSchema, raw, path, findings);
  const value = isMapping(raw) ? raw : {};
  const parts = <T>(key: string, read: (item: unknown, at: Path) => T) =>
    readList(value[key], [...path, key], findings, (item, at) => ({ path: at, fields: read(item, at) }));
  return {
    ...{ path, fields },
    affinity:
      value['affinity'] === undefined
        ? undefined
        : readLeaves(affinitySchema, value['affinity'], [...path, 'affinity'], findings),
    ports: parts('ports', (item, at) => readLeaves(servicePortSchema, item, at, findings)),
    publish: parts('publish', (item, at) => readLeaves(servicePublishSchema, item, at, findings)),
    backends: parts('backends', (item, at) => readLeaves(backendSchema, item, at, findings)),
    health: readHealth(value['health'], [...path, 'health'], findings),
  };
}

function readHealth(raw: unknown, path: Path, findings: Findings): HealthDraft | undefined {
  if (raw === undefined) return undefined;
  const fields = readLeaves(healthSchema, raw, path, findings);
  const page = isMapping(raw) ? raw['http'] : undefined;
  const http = page === undefined ? undefined : readLeaves(httpSchema, page, [...path, 'http'], findings);
  if (!isMapping(raw)) return { fields, http };
  if ((raw['tcp'] === undefined) === (page === undefined)) {
    const message = page === undefined ? 'health says neither tcp nor http' : 'health says both tcp and http';
    findings.add(path, message, 'write tcp: a port, or http: { port, path }');
  }
  return { fields, http };
}

/** Checks all that concerns services; absent fields were reported already and are passed over. */
export function checkServices(
  { ingress, services, marks }: ServicesDraft,
  around: Surroundings,
  findings: Findings,
): void {
  const { workers, networks } = around;
  checkCounts(services, findings);
  if (services.length > 0 && workers !== undefined && workers !== 1) {
    const message = `a node with services has one data-plane thread, not ${workers}: flows are not shared between threads yet`;
    findings.add(['workers'], message, 'write 1, or remove the key');
  }
  for (const { path, fields } of ingress === undefined ? [] : networks) {
    if (fields.name !== INGRESS) continue;
    const message = `network name "${INGRESS}" is that of the key ${INGRESS}`;
    findings.add([...path, 'name'], message, 'give the network another');
  }
  const seen = {
    names: new Unique(findings),
    marks: new Unique(findings),
    addresses: new Unique(findings),
    published: published(around.ways),
    holders: holdersOf(services, around.endpoints),
  };
  for (const service of services) checkService(service, ingress !== undefined, seen, around, findings);
  if (services.length > 0) checkMacs(around.endpoints, findings);
  for (const mark of marks) checkMark(mark, services, around, findings);
}

/** What no two services have, and where it was first. */
interface Seen {
  readonly names: Unique;
  readonly marks: Unique;
  readonly addresses: Unique;
  /** Uplink, protocol and port: of which key they are. */
  readonly published: Map<string, string>;
  readonly holders: Holders;
}

function checkCounts(services: readonly ServiceDraft[], findings: Findings): void {
  // Of two families they are two in the engine.
  const families = ({ fields }: ServiceDraft): number => (fields.vip6 === undefined ? 1 : 2);
  const all = services.reduce((sum, service) => sum + families(service), 0);
  const backends = services.reduce((sum, service) => sum + families(service) * service.backends.length, 0);
  const counts = [
    { what: 'services', count: all, most: MAX_SERVICES },
    { what: 'backends', count: backends, most: MAX_BACKENDS },
  ];
  for (const { what, count, most } of counts)
    if (count > most)
      findings.add(['services'], `${count} ${what} are more than a node can have`, `keep to ${most}`);
}

function checkService(
  service: ServiceDraft,
  hasIngress: boolean,
  seen: Seen,
  around: Surroundings,
  findings: Findings,
): void {
  const { path, fields } = service;
  const { name, network, fwmark } = fields;
  if (name !== undefined)
    seen.names.add(name, [...path, 'name'], `service name "${name}"`, 'give each service its own name');
  if (fwmark !== undefined)
    seen.marks.add(String(fwmark), [...path, 'fwmark'], `fwmark ${fwmark}`, 'give each service its own');
  const at = [...path, 'network'];
  const found = network === undefined ? undefined : find(around.networks, 'network', network, at, findings);
  if (found !== undefined) checkAddresses(service, found, seen.addresses, seen.holders, findings);
  checkPorts(service, findings);
  checkHealth(service, found, findings);
  for (const one of service.publish)
    checkPublish(one, found, hasIngress, seen.published, around.ways, findings);
}

/** The one of a name; undefined when there is none, and that was reported, or it may be one that was not read. */
function find<T extends Part<{ readonly name?: string | undefined }>>(
  all: readonly T[],
  what: string,
  name: string,
  at: Path,
  findings: Findings,
): T | undefined {
  const found = all.find(({ fields }) => fields.name === name);
  if (found !== undefined || all.some(({ fields }) => fields.name === undefined)) return found;
  const known = all.map(({ fields }) => fields.name!);
  findings.add(at, ...unknownName(what, name, known, `${what}s`));
  return undefined;
}

function checkMacs(endpoints: readonly EndpointDraft[], findings: Findings): void {
  for (const { path, fields } of endpoints) checkMac(fields.mac, [...path, 'mac'], findings);
}

function checkPorts({ fields, ports, path }: ServiceDraft, findings: Findings): void {
  const seen = new Unique(findings);
  for (const { path: place, fields: one } of ports) {
    const { protocol, port, target } = one;
    if (protocol === undefined || port === undefined) continue;
    const what = `${protocol} port ${port} of service ${quote(fields.name ?? String(path[1]))}`;
    seen.add(`${protocol}\0${port}`, [...place, 'port'], what, 'list each port once');
    if (fields.forwarding !== 'dsr' || target === undefined || target === port) continue;
    const message = `forwarding dsr translates nothing, and port ${port} would become ${target}`;
    findings.add([...place, 'target'], message, 'remove target, or write forwarding: masq');
  }
}

function checkHealth(
  { path, fields, health }: ServiceDraft,
  network: NetworkDraft | undefined,
  findings: Findings,
): void {
  if (health === undefined) return;
  for (const [vip, gateway] of GATEWAYS_OF) {
    if (fields.forwarding !== 'dsr' || fields[vip] === undefined) continue;
    if (network === undefined || network.fields[gateway] !== undefined) continue;
    const message = `backends of forwarding dsr are checked from the gateway, and network "${network.fields.name}" has no ${gateway}`;
    const remedy = `add ${gateway} to the network, remove health, or write forwarding: masq`;
    findings.add([...path, 'health'], message, remedy, 'key');
  }
  const { interval, timeout } = health.fields;
  if (interval === undefined || timeout === undefined || timeout <= interval) return;
  const message = `a timeout of ${timeout} s is longer than the interval of ${interval} s`;
  findings.add([...path, 'health', 'timeout'], message, `write ${interval}s or less, or a longer interval`);
}

/** Ports that entries of `publish` have, by uplink. */
function published({ publish }: UplinksDraft): Map<string, string> {
  const taken = new Map<string, string>();
  for (const { path, fields } of publish) {
    const { uplink, protocol, port } = fields;
    if (port === undefined) continue;
    for (let one = port.first; one <= port.last; one++)
      taken.set(`${uplink ?? ''}\0${protocol}\0${one}`, `${path[0]}[${path[1]}]`);
  }
  return taken;
}

function checkPublish(
  { path, fields }: PublishDraft,
  network: NetworkDraft | undefined,
  hasIngress: boolean,
  taken: Map<string, string>,
  { uplinks }: UplinksDraft,
  findings: Findings,
): void {
  if (fields.mode !== undefined && !hasIngress) {
    const remedy = 'add ingress: { vni, subnet, peers }, the same on every node';
    findings.add([...path, 'mode'], 'mode ingress needs the key ingress', remedy);
  }
  const uplink = uplinkOf(fields, path, network, uplinks, findings);
  const { protocol, port } = fields;
  if (uplink === undefined || protocol === undefined || port === undefined) return;
  const key = `${uplink}\0${protocol}\0${port}`;
  const other = taken.get(key) ?? taken.get(`\0${protocol}\0${port}`);
  const place = `services[${path[1]}]`;
  if (other === undefined) taken.set(key, place);
  else {
    const message = `${protocol} port ${port} of uplink "${uplink}" is published by ${other} already`;
    findings.add([...path, 'port'], message, 'publish each port once');
  }
}

/** Name of the uplink at which a port is; undefined when it cannot be told, and that was reported. */
function uplinkOf(
  { uplink }: PublishDraft['fields'],
  path: Path,
  network: NetworkDraft | undefined,
  uplinks: UplinksDraft['uplinks'],
  findings: Findings,
): string | undefined {
  const at = [...path, 'uplink'];
  if (uplink !== undefined) {
    const found = find(uplinks, 'uplink', uplink, at, findings);
    if (found?.fields.mode !== 'host') return found?.fields.name;
    const remedy = 'name one that is a router';
    findings.add(at, `uplink "${uplink}" is of mode host, and the mesh is entered at a router`, remedy);
    return undefined;
  }
  if (uplinks.some(({ fields }) => fields.name === undefined || fields.mode === undefined)) return undefined;
  const name = usualUplink(network, uplinks);
  if (name === undefined) {
    const many = uplinks.filter(({ fields }) => fields.mode === 'router').length > 1;
    const message = many ? 'this node has several uplinks' : 'this node has no uplink that is a router';
    const remedy = many
      ? 'write uplink: the one at whose address it is'
      : 'add one to uplinks, or remove publish';
    findings.add(path, message, remedy);
  }
  return name;
}

/** The uplink of the network, or the only one; of routers. */
function usualUplink(
  network: NetworkDraft | undefined,
  uplinks: UplinksDraft['uplinks'],
): string | undefined {
  const routers = uplinks.filter(({ fields }) => fields.mode === 'router').map(({ fields }) => fields.name!);
  const own = network?.fields.uplink;
  if (own !== undefined && routers.includes(own)) return own;
  return routers.length === 1 ? routers[0] : undefined;
}

function checkMark(
  { path, fields }: MarkDraft,
  services: readonly ServiceDraft[],
  { networks, endpoints }: Surroundings,
  findings: Findings,
): void {
  const { mark, network, endpoint } = fields;
  const known =
    network === undefined ? undefined : find(networks, 'network', network, [...path, 'network'], findings);
  if (mark !== undefined) checkTarget(mark, known?.fields.name, [...path, 'mark'], services, findings);
  checkFamilies({ path, fields }, services, findings);
  if (endpoint === undefined) return;
  const at = [...path, 'endpoint'];
  const found = find(endpoints, 'endpoint', endpoint, at, findings);
  if (found?.written.has('vtep')) {
    const message = `endpoint "${endpoint}" is on another host`;
    findings.add(at, message, 'name a local endpoint, or write source: its address');
  } else if (known !== undefined && found?.fields.network !== undefined && found.fields.network !== network) {
    const message = `endpoint "${endpoint}" is in network "${found.fields.network}"`;
    findings.add(at, message, `name one of network "${network}"`);
  }
}

/** What a rule matches is of one family, in which the service of its mark has an address. */
function checkFamilies(
  { path, fields }: MarkDraft,
  services: readonly ServiceDraft[],
  findings: Findings,
): void {
  const { mark, address, source } = fields;
  const service = services.find(({ fields: { fwmark } }) => fwmark !== undefined && fwmark === mark);
  const of = [service?.fields.vip?.family, service?.fields.vip6?.family];
  for (const key of ['address', 'source'] as const) {
    const range = fields[key];
    if (range === undefined || service?.fields.vip === undefined) continue;
    const { family } = range.address;
    if (of.includes(family)) continue;
    const message = `${key} ${range.text} is of IPv${family}, and service "${service.fields.name}" of fwmark ${mark} has no such address`;
    const remedy = family === 6 ? 'write IPv4, or add vip6 to the service' : 'write IPv6';
    findings.add([...path, key], message, remedy);
    return;
  }
  if (address === undefined || source === undefined) return;
  const [there, here] = [address.address.family, source.address.family];
  if (there === here) return;
  const message = `source ${source.text} is of IPv${here}, and address ${address.text} of IPv${there}`;
  findings.add([...path, 'source'], message, 'write both of one family, or two rules');
}

/** A mark leads to the service that has it. */
function checkTarget(
  mark: number,
  network: string | undefined,
  at: Path,
  services: readonly ServiceDraft[],
  findings: Findings,
): void {
  const found = services.find(({ fields }) => fields.fwmark === mark);
  if (found === undefined) {
    const remedy = `write fwmark: ${mark} at the service that is meant`;
    findings.add(at, `no service has fwmark ${mark}`, remedy);
  } else if (
    network !== undefined &&
    found.fields.network !== undefined &&
    found.fields.network !== network
  ) {
    const message = `service "${found.fields.name}" of fwmark ${mark} is in network "${found.fields.network}"`;
    findings.add(at, message, `write the fwmark of a service in "${network}"`);
  }
}

// Past this line nothing is missing: no problem was found, so every required field was read.

export function buildService(
  { fields, affinity, ports, publish, backends, health }: ServiceDraft,
  networks: readonly NetworkDraft[],
  endpoints: readonly EndpointDraft[],
  { uplinks }: UplinksDraft,
): Service {
  // An endpoint's other address is known.
  const address6Of = (of: string, address: string): string | undefined =>
    endpoints.find(
      ({ fields: { network: its, address: own } }) => its === of && own?.address.text === address,
    )?.fields.address6?.address.text;
  const network = networks.find((one) => one.fields.name === fields.network);
  return {
    name: fields.name!,
    network: fields.network!,
    vip: fields.vip!.text,
    vip6: fields.vip6?.text,
    scheduler: fields.scheduler!,
    forwarding: fields.forwarding!,
    fwmark: fields.fwmark,
    affinity: affinity?.timeout ?? 0,
    idleTimeout: fields.idle_timeout!,
    ports: ports.map(({ fields: { protocol, port, target } }) => ({
      ...{ protocol: protocol!, port: port!, target: target ?? port! },
    })),
    publish: publish.map(({ fields: { protocol, port, target, mode, uplink } }) => ({
      ...{ protocol: protocol!, port: port!, target: target ?? port!, mode: mode! },
      uplink: uplink ?? usualUplink(network, uplinks)!,
    })),
    backends: backends.map(({ fields: { address, address6, weight, mac } }) => ({
      address: address!.text,
      address6: address6?.text ?? (fields.vip6 && address6Of(fields.network!, address!.text)),
      ...{ weight: weight!, mac },
    })),
    health: health && buildHealth(health),
  };
}

function buildHealth({ fields, http }: HealthDraft): Health {
  return {
    kind: http === undefined ? 'tcp' : 'http',
    port: (http?.port ?? fields.tcp)!,
    path: http?.path,
    interval: fields.interval!,
    timeout: fields.timeout!,
    failures: fields.failures!,
    successes: fields.successes!,
  };
}

export function buildMark({ fields }: MarkDraft): MarkRule {
  return {
    mark: fields.mark!,
    network: fields.network!,
    protocol: fields.protocol,
    address: fields.address?.text,
    ports: fields.ports,
    source: fields.source?.text,
    endpoint: fields.endpoint,
  };
}
