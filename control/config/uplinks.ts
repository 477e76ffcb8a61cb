/** The keys `uplinks`, `publish` and `nat`: read, checked for each other and for the networks, and built. */
import { createHash } from 'node:crypto';
import { MAX_UPLINKS } from '../../engine/intent.js';
import type { Timeouts } from '../../engine/tables/connection.js';
import { contains, isLinkLocal, type Prefix, quote } from '../addresses.js';
import { isMapping } from './document.js';
import type { Findings, Path } from './problems.js';
import { checkPublish, type PublishDraft, Taken } from './publish.js';
import { type Draft, readLeaves, readList } from './read.js';
import { type EndpointDraft, type NetworkDraft, Unique, unknownName, unusable } from './relations.js';
import { natSchema, publishSchema, timeoutsSchema, uplinkSchema } from './schema.js';
import type { Nat, Uplink } from './types.js';

export interface Part<F> {
  readonly path: Path;
  readonly fields: F;
}

export type UplinkDraft = Part<Draft<typeof uplinkSchema>>;

export interface UplinksDraft {
  readonly uplinks: readonly UplinkDraft[];
  readonly publish: readonly PublishDraft[];
  readonly nat: Draft<typeof natSchema>;
  readonly timeouts: Draft<typeof timeoutsSchema>;
}

/** Reads the three keys of a file. */
export function readUplinks(root: Record<string, unknown>, findings: Findings): UplinksDraft {
  const uplinks = readList(root['uplinks'], ['uplinks'], findings, (raw, path) => ({
    path,
    fields: readLeaves(uplinkSchema, raw, path, findings),
  }));
  const publish = readList(root['publish'], ['publish'], findings, (raw, path) => ({
    path,
    fields: readLeaves(publishSchema, raw, path, findings),
  }));
  const nat = root['nat'] ?? {};
  const timeouts = isMapping(nat) ? (nat['timeouts'] ?? {}) : {};
  return {
    ...{ uplinks, publish },
    nat: readLeaves(natSchema, nat, ['nat'], findings),
    timeouts: readLeaves(timeoutsSchema, timeouts, ['nat', 'timeouts'], findings),
  };
}

/** Checks all that concerns ways out; absent fields were reported already and are passed over. */
export function checkUplinks(
  { uplinks, publish }: UplinksDraft,
  workers: number | undefined,
  networks: readonly NetworkDraft[],
  endpoints: readonly EndpointDraft[],
  findings: Findings,
): void {
  checkEach(uplinks, findings);
  if (uplinks.length > 0 && workers !== undefined && workers !== 1) {
    findings.add(
      ['workers'],
      `a node with uplinks has one data-plane thread, not ${workers}: flows are not shared between threads yet`,
      'write 1, or remove the key',
    );
  }
  for (const network of networks) checkNetwork(network, uplinks, networks, findings);
  const taken = new Taken();
  for (const rule of publish) checkPublish(rule, uplinks, networks, endpoints, taken, findings);
}

function checkEach(uplinks: readonly UplinkDraft[], findings: Findings): void {
  if (uplinks.length > MAX_UPLINKS) {
    const message = `${uplinks.length} uplinks are more than a node can have`;
    findings.add(['uplinks'], message, `keep to ${MAX_UPLINKS}`);
  }
  const names = new Unique(findings);
  const addresses = new Unique(findings);
  const hosts = new Unique(findings);
  for (const { path, fields } of uplinks) {
    const { name, address } = fields;
    if (name !== undefined)
      names.add(name, [...path, 'name'], `uplink name "${name}"`, 'give each uplink its own name');
    if (fields.mode === 'host') {
      checkHost(path, fields, findings);
      hosts.add('', [...path, 'mode'], 'mode host', 'write one uplink of mode host: it serves all networks');
      continue;
    }
    for (const key of ['interface', 'address'] as const) {
      if (
        fields[key] === undefined &&
        !findings.problems.some(({ path: at }) => at === `uplinks[${path[1]}].${key}`)
      )
        findings.add(
          path,
          `${key} is missing`,
          `add ${key}: an uplink that is a router has interface and address`,
        );
    }
    if (address === undefined) continue;
    addresses.add(
      address.address.text,
      [...path, 'address'],
      `address ${address.address.text}`,
      'give each uplink its own address',
    );
    checkAddress(address, fields, path, findings);
    checkAddress6(fields, path, addresses, findings);
  }
}

/** An uplink of mode host has a link of its own, and the host's routes. */
function checkHost(path: Path, fields: UplinkDraft['fields'], findings: Findings): void {
  for (const key of ['gateway', 'address6', 'gateway6'] as const) {
    if (fields[key] === undefined) continue;
    const message = `${key} does not go with mode host, where the host's stack routes`;
    findings.add([...path, key], message, 'remove it', 'key');
  }
  const { address, interface: tap } = fields;
  if (tap !== undefined && !/^[\w.@-]+$/.test(tap)) {
    const remedy = 'write letters, digits, "_", "-", "." or "@"';
    findings.add([...path, 'interface'], `${quote(tap)} is no name that nftables takes`, remedy);
  }
  if (address === undefined) return;
  const remedy = "write an IPv4 address with /30 or /31: Weft's end of a link that nobody else has";
  if (address.address.family === 6)
    findings.add([...path, 'address'], `address ${address.text} is an IPv6 address`, remedy);
  else if (address.length !== 30 && address.length !== 31)
    findings.add([...path, 'address'], `address ${address.text} is no end of a link of two`, remedy);
  else {
    const why = unusable(address, address.address);
    if (why !== undefined) findings.add([...path, 'address'], `address ${why}`, remedy);
  }
}

/** IPv6 comes beside IPv4: an uplink's MAC is made of its IPv4 address. */
function checkAddress6(
  { address6, gateway6 }: UplinkDraft['fields'],
  path: Path,
  addresses: Unique,
  findings: Findings,
): void {
  if (address6 === undefined) {
    if (gateway6 === undefined) return;
    findings.add([...path, 'gateway6'], 'gateway6 needs address6', 'add address6, or remove the key', 'key');
    return;
  }
  const { address, network, length } = address6;
  const link = `${network.text}/${length}`;
  const why = address.family === 4 ? `${address.text} is an IPv4 address` : unusable(address6, address);
  if (why !== undefined)
    findings.add([...path, 'address6'], `address6 ${why}`, 'write a free IPv6 address of that link');
  const remedy = 'give each uplink its own address';
  addresses.add(address.text, [...path, 'address6'], `address ${address.text}`, remedy);
  if (gateway6 === undefined || isLinkLocal(gateway6)) return;
  const wrong =
    gateway6.text === address.text
      ? `${gateway6.text} is the uplink's own address`
      : unusable(address6, gateway6);
  if (wrong !== undefined) {
    const such = `write the address of a router in ${link}, or its link-local one`;
    findings.add([...path, 'gateway6'], `gateway6 ${wrong}`, such);
  }
}

function checkAddress(
  address: Prefix,
  { gateway }: UplinkDraft['fields'],
  path: Path,
  findings: Findings,
): void {
  if (address.address.family === 6) {
    const remedy = 'write an IPv4 address here, and this one as address6';
    findings.add([...path, 'address'], `address ${address.address.text} is an IPv6 address`, remedy);
    return;
  }
  const why = unusable(address, address.address);
  if (why !== undefined)
    findings.add([...path, 'address'], `address ${why}`, 'write a free address of that link');
  if (gateway === undefined) return;
  const link = `${address.network.text}/${address.length}`;
  const wrong =
    gateway.text === address.address.text
      ? `${gateway.text} is the uplink's own address`
      : unusable(address, gateway);
  if (wrong !== undefined)
    findings.add([...path, 'gateway'], `gateway ${wrong}`, `write the address of a router in ${link}`);
}

function checkNetwork(
  { path, fields }: NetworkDraft,
  uplinks: readonly UplinkDraft[],
  networks: readonly NetworkDraft[],
  findings: Findings,
): void {
  const { name, uplink, gateway, gateway6, subnet, subnet6, internal, masquerade } = fields;
  if (uplink === undefined) return;
  const at = [...path, 'uplink'];
  const way = findUplink(uplink, at, uplinks, findings);
  if (internal === true)
    findings.add(at, `network "${name}" is internal and has no way out`, 'remove uplink, or internal', 'key');
  else if (gateway === undefined && gateway6 === undefined)
    findings.add(
      at,
      `network "${name}" has an uplink and no gateway`,
      'add gateway: a host address of its subnet',
      'key',
    );
  else if (way?.fields.mode === 'router' && subnet?.address.family === 6 && way.fields.address6 === undefined)
    findings.add(
      at,
      `network "${name}" is IPv6, and uplink "${uplink}" has no address6`,
      'add address6 to the uplink',
      'key',
    );
  const host = way?.fields.mode === 'host';
  if (masquerade === false || host) checkDistinct(fields, path, host, networks, findings);
  for (const link of [way?.fields.address, way?.fields.address6]) {
    for (const prefix of [subnet, subnet6]) {
      if (link === undefined || prefix === undefined || !overlap(link, prefix)) continue;
      const message = `network "${name}" and the link of uplink "${uplink}" (${link.network.text}/${link.length}) overlap`;
      findings.add(at, message, 'give the network another subnet, or another uplink');
    }
  }
}

/** A network that outside, or the host, knows by its own addresses: no other of the same uplink may have them. */
function checkDistinct(
  { name, uplink, subnet, subnet6 }: NetworkDraft['fields'],
  path: Path,
  host: boolean,
  networks: readonly NetworkDraft[],
  findings: Findings,
): void {
  const mine = [subnet, subnet6].filter((prefix) => prefix !== undefined);
  for (const { fields: other } of networks) {
    if (other.name === name || other.uplink !== uplink) continue;
    const theirs = [other.subnet, other.subnet6].filter((prefix) => prefix !== undefined);
    if (!mine.some((a) => theirs.some((b) => overlap(a, b)))) continue;
    const what = host ? 'is routed by the host' : 'keeps its addresses outside';
    const message = `network "${name}" ${what}, and overlaps with network "${other.name}" of the same uplink`;
    const remedy = host ? 'give' : 'remove the key, or give';
    findings.add([...path, host ? 'subnet' : 'masquerade'], message, `${remedy} one of them another subnet`);
    if (host) return;
  }
}

function overlap(a: Prefix, b: Prefix): boolean {
  return contains(a, b.network) || contains(b, a.network);
}

export function findUplink(
  name: string,
  at: Path,
  uplinks: readonly UplinkDraft[],
  findings: Findings,
): UplinkDraft | undefined {
  const found = uplinks.find(({ fields }) => fields.name === name);
  // An uplink whose name could not be read may be the one that is meant.
  if (found !== undefined || uplinks.some(({ fields }) => fields.name === undefined)) return found;
  const known = uplinks.map(({ fields }) => fields.name!);
  findings.add(at, ...unknownName('uplink', name, known, 'uplinks'));
  return undefined;
}

// Past this line nothing is missing: no problem was found, so every required field was read.

/** Longest name of an interface, bytes. */
const IFNAME = 15;

/** What the TAP of an uplink is called: its name, cut to what still tells it from others. */
function tapName(uplink: string): string {
  const name = `weft-${uplink}`;
  if (name.length <= IFNAME) return name;
  return name.slice(0, IFNAME - 4) + createHash('sha256').update(uplink).digest('hex').slice(0, 4);
}

export function buildUplink({ fields }: UplinkDraft): Uplink {
  if (fields.mode === 'host') {
    const name = fields.name!;
    return {
      ...{ name, mode: 'host', interface: fields.interface ?? tapName(name) },
      ...{ address: fields.address?.text, clampMss: fields.clamp_mss! },
    };
  }
  return {
    name: fields.name!,
    mode: 'router',
    interface: fields.interface!,
    address: fields.address!.text,
    gateway: fields.gateway?.text,
    address6: fields.address6?.text,
    gateway6: fields.gateway6?.text,
    clampMss: fields.clamp_mss!,
  };
}

export function buildNat({ nat, timeouts }: UplinksDraft): Nat {
  const { mapping, ports, max_flows: maxFlows } = nat;
  return { mapping: mapping!, ports: ports!, maxFlows: maxFlows!, timeouts: timeouts as Timeouts };
}
