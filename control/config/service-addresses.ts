/** Addresses of services and their backends: whether they are of the network, and nobody else's. */
import { type Ip, isVirtualMac } from '../addresses.js';
import type { Findings, Path } from './problems.js';
import { type EndpointDraft, type NetworkDraft, Unique, unusable } from './relations.js';
import type { ServiceDraft } from './services.js';

/** Whether an address, the value of `key`, cannot be one of the network's `subnet`, or `subnet6`. */
function notOf(
  { fields }: NetworkDraft,
  ip: Ip,
  findings: Findings,
  path: Path,
  key: 'vip' | 'vip6' | 'address' | 'address6',
): boolean {
  const of = key.endsWith('6') ? 'subnet6' : 'subnet';
  const prefix = fields[of];
  if (prefix === undefined) {
    if (of === 'subnet' || fields.subnet === undefined) return true;
    const isV6 = fields.subnet.address.family === 6;
    const remedy = isV6 ? `write it as ${key.slice(0, -1)}` : `add subnet6 to the network, or remove ${key}`;
    findings.add(path, `network "${fields.name}" has no subnet6`, remedy);
    return true;
  }
  if (prefix.address.family !== ip.family) {
    const message = `${key} ${ip.text} is of IPv${ip.family}, and ${of} ${prefix.text} of network "${fields.name}" is not`;
    const other = ip.family === 6 && fields.subnet6 !== undefined;
    const remedy = `write a host address of ${prefix.text}`;
    findings.add(path, message, other ? `${remedy}, or write it as ${key}6` : remedy);
    return true;
  }
  const why = unusable(prefix, ip);
  if (why !== undefined) findings.add(path, `${key} ${why}`, `write a host address of ${prefix.text}`);
  else if (fields.gateway?.text === ip.text || fields.gateway6?.text === ip.text)
    findings.add(path, `${key} ${ip.text} is the network's gateway`, 'write another host address');
  else return false;
  return true;
}

const addressesOf = ({ fields: { address, address6 } }: EndpointDraft): (string | undefined)[] => [
  address?.address.text,
  address6?.address.text,
];

/** Who has an address of a network: the first service whose virtual address it is, and the first endpoint. */
export interface Holders {
  readonly services: ReadonlyMap<string, ServiceDraft>;
  readonly endpoints: ReadonlyMap<string, EndpointDraft>;
}

const placeOf = (network: string | undefined, address: string): string => `${network}\0${address}`;

export function holdersOf(services: readonly ServiceDraft[], endpoints: readonly EndpointDraft[]): Holders {
  const holders = { services: new Map<string, ServiceDraft>(), endpoints: new Map<string, EndpointDraft>() };
  const hold = <T>(of: Map<string, T>, one: T, network: string | undefined, address: string | undefined) => {
    const place = placeOf(network, address ?? '');
    if (address !== undefined && !of.has(place)) of.set(place, one);
  };
  for (const service of services)
    for (const vip of [service.fields.vip, service.fields.vip6])
      hold(holders.services, service, service.fields.network, vip?.text);
  for (const endpoint of endpoints)
    for (const address of addressesOf(endpoint))
      hold(holders.endpoints, endpoint, endpoint.fields.network, address);
  return holders;
}

/** @param addresses virtual addresses that services before this one have. */
export function checkAddresses(
  { path, fields, backends }: ServiceDraft,
  network: NetworkDraft,
  addresses: Unique,
  holders: Holders,
  findings: Findings,
): void {
  for (const key of ['vip', 'vip6'] as const) {
    const vip = fields[key];
    const at = [...path, key];
    if (vip === undefined || notOf(network, vip, findings, at, key)) continue;
    const owner = holders.endpoints.get(placeOf(network.fields.name, vip.text));
    if (owner !== undefined) {
      const message = `${key} ${vip.text} is the address of endpoint "${owner.fields.name}"`;
      findings.add(at, message, 'write an address that nobody has');
    } else {
      const what = `${key} ${vip.text} of network "${network.fields.name}"`;
      addresses.add(placeOf(network.fields.name, vip.text), at, what, 'give each service its own');
    }
  }
  const own = new Unique(findings);
  for (const backend of backends) checkBackend(backend, network, own, holders, findings);
  if (fields.vip6 !== undefined) return;
  for (const { path: place, fields: backend } of backends) {
    if (backend.address6 === undefined) continue;
    const remedy = 'add vip6 to the service, or remove it';
    findings.add([...place, 'address6'], 'the service has no virtual address of IPv6', remedy, 'key');
  }
}

/** @param own addresses of the service's backends before this one. */
function checkBackend(
  { path, fields }: ServiceDraft['backends'][number],
  network: NetworkDraft,
  own: Unique,
  { services, endpoints }: Holders,
  findings: Findings,
): void {
  checkMac(fields.mac, [...path, 'mac'], findings);
  for (const key of ['address', 'address6'] as const) {
    const address = fields[key];
    const at = [...path, key];
    if (address === undefined || notOf(network, address, findings, at, key)) continue;
    own.add(address.text, at, `backend ${address.text}`, 'list each backend once');
    const service = services.get(placeOf(network.fields.name, address.text));
    if (service !== undefined) {
      const message = `${address.text} is the vip of service "${service.fields.name}"`;
      findings.add(at, message, "write the backend's own address");
    }
    const known = endpoints.get(placeOf(network.fields.name, address.text));
    if (fields.mac === undefined || known === undefined) continue;
    const message = `${address.text} is endpoint "${known.fields.name}", whose MAC is known`;
    findings.add([...path, 'mac'], message, 'remove it', 'key');
  }
}

/** No MAC that is written may be one of virtual addresses. */
export function checkMac(mac: string | undefined, path: Path, findings: Findings): void {
  if (mac === undefined || !isVirtualMac(mac)) return;
  findings.add(path, `MACs with 06:57 are those of virtual addresses, and ${mac} is none`, 'write another');
}
