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

/** @param addresses virtual addresses that services before this one have. */
export function checkAddresses(
  { path, fields, backends }: ServiceDraft,
  services: readonly ServiceDraft[],
  network: NetworkDraft,
  addresses: Unique,
  endpoints: readonly EndpointDraft[],
  findings: Findings,
): void {
  const here = endpoints.filter((endpoint) => endpoint.fields.network === network.fields.name);
  for (const key of ['vip', 'vip6'] as const) {
    const vip = fields[key];
    const at = [...path, key];
    if (vip === undefined || notOf(network, vip, findings, at, key)) continue;
    const owner = here.find((endpoint) => addressesOf(endpoint).includes(vip.text));
    if (owner !== undefined) {
      const message = `${key} ${vip.text} is the address of endpoint "${owner.fields.name}"`;
      findings.add(at, message, 'write an address that nobody has');
    } else {
      const what = `${key} ${vip.text} of network "${network.fields.name}"`;
      addresses.add(`${network.fields.name}\0${vip.text}`, at, what, 'give each service its own');
    }
  }
  const own = new Unique(findings);
  const virtual = (text: string): ServiceDraft | undefined =>
    services.find(
      (other) =>
        other.fields.network === fields.network &&
        [other.fields.vip?.text, other.fields.vip6?.text].includes(text),
    );
  for (const backend of backends) checkBackend(backend, network, { here, own, virtual }, findings);
  if (fields.vip6 !== undefined) return;
  for (const { path: place, fields: backend } of backends) {
    if (backend.address6 === undefined) continue;
    const remedy = 'add vip6 to the service, or remove it';
    findings.add([...place, 'address6'], 'the service has no virtual address of IPv6', remedy, 'key');
  }
}

/** What the backends of a service are checked with. */
interface Others {
  readonly here: readonly EndpointDraft[];
  readonly own: Unique;
  /** The service whose virtual address it is. */
  virtual(address: string): ServiceDraft | undefined;
}

function checkBackend(
  { path, fields }: ServiceDraft['backends'][number],
  network: NetworkDraft,
  { here, own, virtual }: Others,
  findings: Findings,
): void {
  checkMac(fields.mac, [...path, 'mac'], findings);
  for (const key of ['address', 'address6'] as const) {
    const address = fields[key];
    const at = [...path, key];
    if (address === undefined || notOf(network, address, findings, at, key)) continue;
    own.add(address.text, at, `backend ${address.text}`, 'list each backend once');
    const service = virtual(address.text);
    if (service !== undefined) {
      const message = `${address.text} is the vip of service "${service.fields.name}"`;
      findings.add(at, message, "write the backend's own address");
    }
    const known = here.find((endpoint) => addressesOf(endpoint).includes(address.text));
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
