/**
 * A node's file (`weft.yaml`): read, checked whole, and turned into an inert value, or refused with every problem and
 * its place. Nothing is looked up on the host: whether a namespace exists or a port is free is for those who use it.
 */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { deriveMac, parsePrefix } from './addresses.js';
import { defaultMtu } from './config/derived.js';
import { isMapping, readDocument } from './config/document.js';
import {
  buildAssociations,
  buildEncryption,
  checkAssociations,
  checkEncryption,
  checkMode,
  type EncryptionDraft,
  readEncryption,
  sealingOf,
} from './config/encryption.js';
import { ConfigError, type Findings, type Path } from './config/problems.js';
import { buildPublish } from './config/publish.js';
import { readLeaf, readLeaves, readList } from './config/read.js';
import {
  checkRelations,
  type EndpointDraft,
  type NetworkDraft,
  type UnderlayDraft,
} from './config/relations.js';
import { configSchema, endpointSchema, networkSchema, underlaySchema } from './config/schema.js';
import {
  buildMark,
  buildService,
  checkServices,
  readServices,
  type ServicesDraft,
} from './config/services.js';
import type {
  Config,
  Encapsulation,
  Endpoint,
  Network,
  StaticAssociation,
  Underlay,
} from './config/types.js';
import { buildNat, buildUplink, checkUplinks, readUplinks, type UplinksDraft } from './config/uplinks.js';

export {
  algorithmSizes,
  carriedNetworks,
  defaultMtu,
  gatewayAddresses,
  hasServicesOfIpv6,
  largestMtu,
  netnsPath,
  overlayOverhead,
  routedAddresses,
  servedAddresses,
} from './config/derived.js';
export { ConfigError, type Problem } from './config/problems.js';
export { configJsonSchema } from './config/schema.js';
export type {
  Algorithm,
  Backend,
  Config,
  Encryption,
  Endpoint,
  Health,
  HostUplink,
  LocalEndpoint,
  MarkRule,
  Network,
  Publish,
  RingKey,
  RouterUplink,
  Service,
  StaticAssociation,
  Underlay,
} from './config/types.js';

/** Bytes. A thousand endpoints written at length are 150 KiB, 10,000 services of 10 backends 3.5 MiB. */
const LARGEST_FILE = 1 << 23;

/**
 * Reads a node's file. One that holds secrets is refused when anybody but its owner may read or write it.
 * @throws ConfigError when it cannot be read (line and column 0), or its content is refused.
 */
export function loadConfig(path: string): Config {
  const { text, mode } = readConfigFile(path);
  return parse(text, path, mode);
}

/**
 * Reads the text of a node's file.
 * @param name what to call the file in problems.
 * @throws ConfigError and nothing else, whatever the text.
 */
export function parseConfig(text: string, name: string): Config {
  return parse(text, name, undefined);
}

/** Keys of a file of which only a part is read: no field is a leaf. */
const namesSchema = configSchema.partial();

/**
 * Reads the static associations of a file, which may be a node's; of what else it holds only the names are looked at,
 * and `encryption`.
 * @throws ConfigError as `loadConfig` does, and when there are none.
 */
export function loadAssociations(path: string): readonly StaticAssociation[] {
  const { text, mode } = readConfigFile(path);
  const { value, findings } = readDocument(text.replace(/^\ufeff/, ''), path);
  if (value === undefined) throw new ConfigError(findings.problems);
  readLeaves(namesSchema, value ?? {}, [], findings);
  const draft = readEncryption(isMapping(value) ? value : {}, findings);
  checkAssociations(draft, {}, findings);
  checkMode(draft, path, mode, findings);
  if (findings.problems.length === 0 && draft.associations.length === 0) {
    const remedy = 'add entries such as { peer: …, direction: in, spi: …, algorithm: …, key: … }';
    findings.add(['security_associations'], 'security_associations is empty', remedy, 'key');
  }
  if (findings.problems.length > 0) throw new ConfigError(findings.problems);
  return freeze(buildAssociations(draft));
}

/**
 * Reads the services and marks of a file, which may be a node's. Networks that it does not define, if it defines none,
 * are taken for granted; `publish` of services is left out.
 * @throws ConfigError as `loadConfig` does, and when there are none.
 */
export function loadServices(path: string): Pick<Config, 'endpoints' | 'services' | 'marks'> {
  const { text } = readConfigFile(path);
  const { value, findings } = readDocument(text.replace(/^\ufeff/, ''), path);
  if (value === undefined) throw new ConfigError(findings.problems);
  readLeaves(namesSchema, value ?? {}, [], findings);
  const root = isMapping(value) ? value : {};
  const { ingress, ...read } = readServices(root, findings);
  const services = read.services.map((service) => ({ ...service, publish: [] }));
  const written = readNetworks(root, findings);
  const networks = written.length > 0 ? written : services.map(impliedNetwork);
  const endpoints = readEndpoints(root, findings);
  const ways = readUplinks({}, findings);
  checkServices(
    { ingress, services, marks: read.marks },
    { workers: 1, ways, networks, endpoints },
    findings,
  );
  if (services.length === 0)
    findings.add(
      ['services'],
      'services is empty',
      'add entries such as { name: web, network: blue, vip: … }',
      'key',
    );
  if (findings.problems.length > 0) throw new ConfigError(findings.problems);
  return freeze({
    endpoints: endpoints.map(buildEndpoint),
    services: services.map((service) => buildService(service, networks, endpoints, ways)),
    marks: read.marks.map(buildMark),
  });
}

const EVERYTHING = { 4: parsePrefix('0.0.0.0/0'), 6: parsePrefix('::/0') };

/** The network of a service where no networks are written: it has every address. */
function impliedNetwork({
  path,
  fields: { network: name, vip },
}: ServicesDraft['services'][number]): NetworkDraft {
  const prefixes =
    vip?.family === 6 ? { subnet: EVERYTHING[6] } : { subnet: EVERYTHING[4], subnet6: EVERYTHING[6] };
  return { path, fields: { ...(name !== undefined && { name }), ...prefixes }, peers: [] };
}

function readNetworks(root: Record<string, unknown>, findings: Findings): NetworkDraft[] {
  return readList(root['networks'], ['networks'], findings, (raw, path) => readNetwork(raw, path, findings));
}

function readEndpoints(root: Record<string, unknown>, findings: Findings): EndpointDraft[] {
  const all = readList(root['endpoints'], ['endpoints'], findings, (raw, path) =>
    readEndpoint(raw, path, findings),
  );
  return all.filter((endpoint) => endpoint !== undefined);
}

function parse(text: string, name: string, mode: number | undefined): Config {
  if (Buffer.byteLength(text) > LARGEST_FILE) throw tooLarge(name);
  const { value, findings } = readDocument(text.replace(/^\ufeff/, ''), name);
  if (value === undefined) throw new ConfigError(findings.problems);
  if (value === null) {
    findings.add(
      [],
      'the file is empty',
      'write at least node and underlay; examples/ has files to start from',
    );
    throw new ConfigError(findings.problems);
  }
  const root = readLeaves(configSchema, value, [], findings);
  if (!isMapping(value)) throw new ConfigError(findings.problems);
  const underlay = readUnderlay(value['underlay'], findings);
  const networks = readNetworks(value, findings);
  const endpoints = readEndpoints(value, findings);
  const encryption = readEncryption(value, findings);
  const ways = readUplinks(value, findings);
  const services = readServices(value, findings);
  const { ingress } = services;
  const sealed = ingress === undefined ? networks : [...networks, ingress];
  checkRelations(underlay, sealingOf(encryption), networks, ingress, endpoints, findings);
  checkEncryption(encryption, underlay, sealed, endpoints, findings);
  checkUplinks(ways, root.workers, networks, endpoints, findings);
  checkServices(services, { workers: root.workers, ways, networks, endpoints }, findings);
  if (mode !== undefined) checkMode(encryption, name, mode, findings);
  if (findings.problems.length > 0) throw new ConfigError(findings.problems);
  return freeze(
    build(root.node!, root.workers!, { underlay, networks, endpoints, encryption, ways, services }),
  );
}

/** A place in a node's file and what the host says about it. */
export interface HostProblem {
  readonly path: Path;
  readonly message: string;
  readonly remedy: string;
}

/** What a sound file asks for and this host does not have, as an error that points into the file. */
export function hostError(file: string, problems: readonly HostProblem[]): ConfigError {
  const { findings } = readDocument(readConfigFile(file).text, file);
  for (const { path, message, remedy } of problems) findings.add(path, message, remedy);
  return new ConfigError(findings.problems.map((problem) => ({ ...problem, host: true })));
}

function readUnderlay(raw: unknown, findings: Findings): UnderlayDraft {
  if (raw !== undefined) return readLeaves(underlaySchema, raw, ['underlay'], findings);
  findings.add(['underlay'], 'underlay is missing', "add underlay: { address: <this host's VTEP address> }");
  return {};
}

function readNetwork(raw: unknown, path: Path, findings: Findings): NetworkDraft {
  const fields = readLeaves(networkSchema, raw, path, findings);
  const peerSchema = networkSchema.shape.peers.unwrap().element;
  const list = isMapping(raw) ? raw['peers'] : undefined;
  const peers = readList(list, [...path, 'peers'], findings, (item, at) => ({
    path: at,
    ip: readLeaf(peerSchema, item, at, findings),
  }));
  return { path, fields, peers };
}

function readEndpoint(raw: unknown, path: Path, findings: Findings): EndpointDraft | undefined {
  const fields = readLeaves(endpointSchema, raw, path, findings);
  return isMapping(raw) ? { path, fields, written: new Set(Object.keys(raw)) } : undefined;
}

// Past this line nothing is missing: no problem was found, so every required field was read.

interface Drafts {
  readonly underlay: UnderlayDraft;
  readonly networks: readonly NetworkDraft[];
  readonly endpoints: readonly EndpointDraft[];
  readonly encryption: EncryptionDraft;
  readonly ways: UplinksDraft;
  readonly services: ServicesDraft;
}

function build(
  node: string,
  workers: number,
  { underlay, networks, endpoints, encryption, ways, services: { ingress, services, marks } }: Drafts,
): Config {
  const encapsulation = encryption.fields.encapsulation!;
  return {
    node,
    workers,
    underlay: buildUnderlay(underlay),
    networks: networks.map((network) => buildNetwork(network, underlay, encapsulation)),
    endpoints: endpoints.map(buildEndpoint),
    uplinks: ways.uplinks.map(buildUplink),
    publish: ways.publish.map((rule) => buildPublish(rule, networks, endpoints)),
    nat: buildNat(ways),
    ingress: ingress && buildNetwork(ingress, underlay, encapsulation),
    services: services.map((service) => buildService(service, networks, endpoints, ways)),
    marks: marks.map(buildMark),
    encryption: buildEncryption(encryption, ingress === undefined ? networks : [...networks, ingress]),
    associations: buildAssociations(encryption),
  };
}

function buildUnderlay(draft: UnderlayDraft): Underlay {
  return {
    address: draft.address!.text,
    port: draft.port!,
    mtu: draft.mtu,
    mode: draft.mode!,
    reservedBits: draft.reserved_bits!,
    accept: draft.accept!,
    ttl: draft.ttl!,
    tos: draft.tos!,
  };
}

function buildNetwork(
  { fields, peers }: NetworkDraft,
  { address, mtu }: UnderlayDraft,
  encapsulation: Encapsulation,
): Network {
  const wrapped = fields.encrypted ? encapsulation : undefined;
  const found = mtu === undefined ? undefined : defaultMtu(mtu, address!.family, wrapped);
  return {
    name: fields.name!,
    vni: fields.vni!,
    subnet: fields.subnet!.text,
    subnet6: fields.subnet6?.text,
    gateway: fields.gateway?.text,
    gateway6: fields.gateway6?.text,
    uplink: fields.uplink,
    masquerade: fields.masquerade!,
    mtu: fields.mtu ?? found,
    encrypted: fields.encrypted!,
    internal: fields.internal!,
    peers: peers.map(({ ip }) => ip!.text),
    innerVlan: fields.inner_vlan!,
    ageing: fields.ageing!,
    learningLimit: fields.learning_limit!,
    learning: fields.learning!,
  };
}

function buildEndpoint({ fields }: EndpointDraft): Endpoint {
  const common = {
    name: fields.name!,
    network: fields.network!,
    address: fields.address!.text,
    address6: fields.address6?.text,
    mac: fields.mac ?? deriveMac(fields.address!.address),
  };
  return fields.vtep === undefined
    ? { kind: 'local', ...common, netns: fields.netns!, interface: fields.interface! }
    : { kind: 'remote', ...common, vtep: fields.vtep.text };
}

function freeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null) {
    for (const part of Object.values(value)) freeze(part);
    Object.freeze(value);
  }
  return value;
}

/** What to do about a file that cannot be opened or read, by errno. */
const FILE_REMEDIES: Readonly<Record<string, [message: string, remedy: string]>> = {
  ENOENT: ['there is no such file', 'check the path, or copy one of examples/'],
  ENOTDIR: ['a part of the path is not a directory', 'check the path'],
  EACCES: ['no permission to read the file', 'run as a user who may, or change its mode'],
  EISDIR: ['is a directory, not a file', 'name the file in it'],
};

function unreadable(file: string, message: string, remedy: string): ConfigError {
  return new ConfigError([{ file, line: 0, column: 0, path: '', message, remedy }]);
}

function tooLarge(file: string): ConfigError {
  return unreadable(file, `the file is larger than ${LARGEST_FILE} bytes`, 'check that it is a node file');
}

/** A file's text, and its mode at the moment it was open. */
interface ConfigFile {
  readonly text: string;
  readonly mode: number;
}

function readConfigFile(path: string): ConfigFile {
  let file: { bytes: Buffer; mode: number };
  try {
    file = readBounded(path);
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    const { code = '', message } = error as NodeJS.ErrnoException;
    throw unreadable(path, ...(FILE_REMEDIES[code] ?? [`cannot be read: ${message}`, 'check the path']));
  }
  try {
    return { text: new TextDecoder('utf-8', { fatal: true }).decode(file.bytes), mode: file.mode };
  } catch {
    throw unreadable(path, 'the file is not UTF-8 text', 'save it as UTF-8');
  }
}

/** Reads a regular file of at most LARGEST_FILE bytes. Opened without blocking: a FIFO nobody writes would hang. */
function readBounded(path: string): { bytes: Buffer; mode: number } {
  const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const stat = fstatSync(fd);
    if (stat.isDirectory()) throw unreadable(path, ...FILE_REMEDIES['EISDIR']);
    if (!stat.isFile()) throw unreadable(path, 'is not a regular file', 'name a file on disk');
    const bytes = Buffer.alloc(LARGEST_FILE + 1);
    let length = 0;
    for (let got = 1; got > 0 && length < bytes.length; length += got) {
      got = readSync(fd, bytes, length, bytes.length - length, null);
    }
    if (length > LARGEST_FILE) throw tooLarge(path);
    return { bytes: bytes.subarray(0, length), mode: stat.mode };
  } finally {
    closeSync(fd);
  }
}
