/** Entries of `publish`: checked for each other, for uplinks, networks and endpoints, and built. */
import type { Findings, Path } from './problems.js';
import type { Draft } from './read.js';
import { type EndpointDraft, type NetworkDraft, unknownName } from './relations.js';
import type { publishSchema } from './schema.js';
import type { Publish } from './types.js';
import { findUplink, type Part, type UplinkDraft } from './uplinks.js';

export type PublishDraft = Part<Draft<typeof publishSchema>>;

/** Where ports are published: of an uplink, a protocol and a port, its addresses and their places in the file. */
export class Taken {
  private readonly places = new Map<
    string,
    { readonly address: string | undefined; readonly path: Path }[]
  >();

  /** The place of who has the port already; undefined when it was free, and is not any more. */
  take(key: string, address: string | undefined, path: Path): Path | undefined {
    const others = this.places.get(key) ?? [];
    const before = others.find((one) => one.address === address || !one.address || !address);
    if (before === undefined) this.places.set(key, [...others, { address, path }]);
    return before?.path;
  }
}

export function checkPublish(
  { path, fields }: PublishDraft,
  uplinks: readonly UplinkDraft[],
  networks: readonly NetworkDraft[],
  endpoints: readonly EndpointDraft[],
  taken: Taken,
  findings: Findings,
): void {
  const { uplink } = fields;
  const known =
    uplink === undefined || findUplink(uplink, [...path, 'uplink'], uplinks, findings) !== undefined;
  const network = networkOf(fields, path, networks, endpoints, findings);
  const own = network?.fields.uplink;
  if (network !== undefined && own === undefined) {
    const message = `network "${network.fields.name}" of endpoint "${fields.endpoint}" has no uplink`;
    findings.add([...path, 'endpoint'], message, 'add uplink to the network');
  } else if (own !== undefined && uplink !== undefined && known && own !== uplink) {
    findings.add(
      [...path, 'uplink'],
      `network "${network!.fields.name}" leaves by "${own}", and answers would not go by "${uplink}"`,
      `write ${own}, or remove the key`,
    );
  }
  checkPorts(fields, path, findings);
  const at = uplink ?? own;
  if (at === undefined) return;
  const mode = uplinks.find(({ fields: one }) => one.name === at)?.fields.mode;
  checkMode(fields, path, mode, endpoints, findings);
  checkTaken(fields, path, at, taken, findings);
}

/** Whether `port` was written and is a number or a range. An automatic one has no value. */
function checkPorts({ port, target }: PublishDraft['fields'], path: Path, findings: Findings): void {
  const wrong = findings.problems.some(({ path: at }) => at.startsWith(`publish[${path[1]}].`));
  if (wrong) return;
  if (port === undefined && target === undefined) {
    findings.add(path, 'target is missing', 'add target: which port of the endpoint is meant, or write port');
  } else if (target !== undefined && target.last - target.first !== (port ? port.last - port.first : 0)) {
    const remedy = 'write as many ports of the endpoint as are published, or remove target';
    findings.add([...path, 'target'], 'target is not as many ports as port', remedy);
  }
}

function checkMode(
  { endpoint, protocol, address }: PublishDraft['fields'],
  path: Path,
  mode: 'router' | 'host' | undefined,
  endpoints: readonly EndpointDraft[],
  findings: Findings,
): void {
  if (mode === 'router' && protocol === 'sctp') {
    const message = 'sctp is published only at an uplink of mode host';
    findings.add([...path, 'protocol'], message, 'write tcp or udp');
  }
  if (address === undefined) return;
  if (mode === 'router') {
    const message = "address is the host's, and this uplink has its own";
    findings.add([...path, 'address'], message, 'remove it, or publish at an uplink of mode host', 'key');
  } else if (address.text === '::1') {
    const remedy = 'write 127.0.0.1 if the endpoint has IPv4, or another address of this host';
    findings.add([...path, 'address'], 'the kernel lets nothing lead away from ::1', remedy);
  } else {
    const found = endpoints.find(({ fields }) => fields.name === endpoint)?.fields;
    const families = [found?.address, found?.address6].map((prefix) => prefix?.address.family);
    if (found === undefined || families.includes(address.family)) return;
    const message = `${address.text} is an IPv${address.family} address, and endpoint "${endpoint}" has none`;
    findings.add(
      [...path, 'address'],
      message,
      `write an IPv${address.family === 4 ? 6 : 4} address of this host`,
    );
  }
}

/** Each port once: at all addresses, or at each of some. */
function checkTaken(
  { protocol, port, address }: PublishDraft['fields'],
  path: Path,
  uplink: string,
  taken: Taken,
  findings: Findings,
): void {
  if (protocol === undefined || port === undefined) return;
  for (let one = port.first; one <= port.last; one++) {
    const before = taken.take(`${uplink}\0${protocol}\0${one}`, address?.text, [...path, 'port']);
    if (before === undefined) continue;
    const message = `${protocol} port ${one} of uplink "${uplink}" is used twice, first on line ${findings.lineOf(before)}`;
    findings.add([...path, 'port'], message, 'publish each port once');
    return;
  }
}

/** Network of the endpoint that is published; undefined when it cannot be told, and that was reported. */
function networkOf(
  { endpoint }: PublishDraft['fields'],
  path: Path,
  networks: readonly NetworkDraft[],
  endpoints: readonly EndpointDraft[],
  findings: Findings,
): NetworkDraft | undefined {
  if (endpoint === undefined) return undefined;
  const found = endpoints.find(({ fields }) => fields.name === endpoint);
  if (found === undefined) {
    if (endpoints.some(({ fields }) => fields.name === undefined)) return undefined;
    const known = endpoints.map(({ fields }) => fields.name!);
    findings.add([...path, 'endpoint'], ...unknownName('endpoint', endpoint, known, 'endpoints'));
    return undefined;
  }
  if (found.written.has('vtep')) {
    const message = `endpoint "${endpoint}" is on another host`;
    findings.add([...path, 'endpoint'], message, 'publish it there, or name a local endpoint');
    return undefined;
  }
  return networks.find(({ fields }) => fields.name !== undefined && fields.name === found.fields.network);
}

/** Past `checkPublish` nothing is missing. */
export function buildPublish(
  { fields }: PublishDraft,
  networks: readonly NetworkDraft[],
  endpoints: readonly EndpointDraft[],
): Publish {
  const endpoint = endpoints.find((one) => one.fields.name === fields.endpoint)!;
  const network = networks.find((one) => one.fields.name === endpoint.fields.network)!;
  const { port, target } = fields;
  return {
    endpoint: fields.endpoint!,
    protocol: fields.protocol!,
    port: port?.first,
    count: port === undefined ? 1 : port.last - port.first + 1,
    target: (target ?? port)!.first,
    uplink: network.fields.uplink!,
    address: fields.address?.text,
  };
}
