/**
 * The shape of a node's file: each key's type, range, default and meaning. What one key means for another is in
 * `relations.ts`. docs/configuration.md is the table for people; keep the two together.
 */
import { z } from 'zod';
import { DEFAULT_TIMEOUTS } from '../../engine/tables/connection.js';
import { parseMac, quote, ValueError } from '../addresses.js';
import { Secret } from '../secret.js';
import { ALGORITHMS } from './derived.js';
import {
  between,
  duration,
  IP_FORM,
  integer,
  ip,
  leaf,
  NAME_FORM,
  name,
  prefix,
  reads,
  subnet,
  TRUTH,
  VTEP_FORM,
  vtep,
} from './leaf.js';
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

/** Bytes: the least a host must take of IPv4 (RFC 1122 section 3.3.2) and of IPv6 (RFC 8200 section 5). */
export const LEAST_MTU = { 4: 576, 6: 1280 } as const;
const MOST_MTU = 65535;

/** One that was, one that sends, one that is to come. */
export const MOST_KEYS = 3;

/** Seconds: the upper bound of IEEE 802.1Q. Its lower bound of 10 s serves spanning tree, which Weft has not. */
const MOST_AGEING = 1_000_000;

// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for.
const BLANK_OR_CONTROL = /[\s\u0000-\u001f\u007f-\u009f]/;
const INTERFACE_FORM = '1 to 15 bytes without "/", ":", "%" or spaces, such as eth0';

/** Linux dev_valid_name, less "%" (a template to the kernel) and names the kernel or its sysctl tree keep. */
function readInterface(value: string): string {
  const size = Buffer.byteLength(value);
  if (size < 1 || size > 15 || /[/:%]/.test(value) || BLANK_OR_CONTROL.test(value)) {
    throw new ValueError(`${quote(value)} is not a Linux interface name`, `write ${INTERFACE_FORM}`);
  }
  if (['.', '..', 'lo', 'all', 'default'].includes(value)) {
    throw new ValueError(`${quote(value)} is a name Linux keeps for itself`, 'write another, such as eth0');
  }
  return value;
}

const NETNS_FORM = 'a name in /run/netns (as `ip netns list` shows it) or an absolute path';

function readNetns(value: string): string {
  const size = Buffer.byteLength(value);
  const path = value.startsWith('/') && size <= 4095;
  const bare = !value.includes('/') && size >= 1 && size <= 255 && value !== '.' && value !== '..';
  if (BLANK_OR_CONTROL.test(value) || !(path || bare)) {
    throw new ValueError(`${quote(value)} is not the name of a network namespace`, `write ${NETNS_FORM}`);
  }
  return value;
}

export const underlaySchema = z.strictObject({
  address: leaf(vtep(), "this host's IPv4 or IPv6 address on the underlay", "This host's VTEP address."),
  port: leaf(integer(1, 65535).default(4789), between(1, 65535), 'UDP port of VXLAN, here and at peers.'),
  mtu: leaf(
    integer(LEAST_MTU[4], MOST_MTU).optional(),
    between(LEAST_MTU[4], MOST_MTU),
    'MTU of the underlay in bytes; found from the interface when absent.',
  ),
  mode: leaf(
    z.enum(['auto', 'socket', 'uplink']).default('auto'),
    'auto, socket or uplink',
    'How frames reach the underlay: a UDP socket, or an uplink TAP.',
  ),
  reserved_bits: leaf(
    z.enum(['ignore', 'strict']).default('ignore'),
    'ignore or strict',
    'Reserved bits of a received VXLAN header: ignored (RFC 7348 section 5), or a reason to drop as Linux does.',
  ),
  accept: leaf(
    z.enum(['any', 'peers']).default('any'),
    'any or peers',
    'Whose VXLAN is taken: of any VTEP, or only of the peers of the network.',
  ),
  ttl: leaf(integer(1, 255).default(64), between(1, 255), 'TTL or hop limit of the outer header.'),
  tos: leaf(
    z.enum(['inherit-ecn']).default('inherit-ecn'),
    'inherit-ecn',
    'Outer traffic class: DSCP 0, ECN from the inner header (RFC 6040).',
  ),
});

const noVniZero = (value: unknown) =>
  value === 0 ? 'VNI 0 is read as "no VNI" by many VTEPs, so no network may have it' : undefined;

export const networkSchema = z.strictObject({
  name: leaf(name(), NAME_FORM, 'Name of the network, unique.'),
  vni: leaf(integer(1, 0xffffff), between(1, 0xffffff), 'VXLAN network identifier, unique.', noVniZero),
  subnet: leaf(subnet(), 'a prefix such as 10.0.9.0/24 or fd00:9::/64', 'IPv4 or IPv6 prefix.'),
  subnet6: leaf(
    subnet().optional(),
    'an IPv6 prefix such as fd00:9::/64',
    'IPv6 prefix beside an IPv4 subnet.',
  ),
  gateway: leaf(
    ip().optional(),
    IP_FORM,
    'Address inside the subnet at which every host is the gateway of its own endpoints.',
  ),
  gateway6: leaf(ip().optional(), 'an IPv6 address in text', 'Likewise, inside subnet6.'),
  uplink: leaf(
    name().optional(),
    'the name of an uplink of this file',
    'Uplink by which the network leaves.',
  ),
  masquerade: leaf(
    z.boolean().default(true),
    TRUTH,
    "Whether what leaves has the uplink's address in place of the endpoint's.",
  ),
  mtu: leaf(
    integer(LEAST_MTU[4], MOST_MTU).optional(),
    between(LEAST_MTU[4], MOST_MTU),
    'Inner MTU in bytes; the underlay MTU less the overhead when absent.',
  ),
  encrypted: leaf(
    z.boolean().default(false),
    TRUTH,
    'Whether its VXLAN leaves this host only inside ESP, and is taken from no other.',
  ),
  internal: leaf(z.boolean().default(false), TRUTH, 'Whether the network has no way out.'),
  peers: z
    .array(leaf(vtep(), VTEP_FORM, 'A remote VTEP.'))
    .default([])
    .meta({ description: 'Remote VTEPs that get broadcast, unknown unicast and multicast.' }),
  inner_vlan: leaf(
    z.enum(['discard', 'carry']).default('discard'),
    'discard or carry',
    'Frames with an inner VLAN tag: dropped (RFC 7348 section 6.1) or carried.',
  ),
  ageing: duration(
    'ageing',
    1,
    MOST_AGEING,
    300,
    '300, 300s or 5m',
    'Time after which a learned MAC that was not seen is forgotten.',
  ),
  learning_limit: leaf(integer(0, 1048576).default(65536), between(0, 1048576), 'Most MACs learned.'),
  learning: leaf(z.boolean().default(true), TRUTH, 'Whether source MACs are learned.'),
});

export const uplinkSchema = z.strictObject({
  name: leaf(name(), NAME_FORM, 'Name of the uplink, unique.'),
  mode: leaf(
    z.enum(['router', 'host']).default('router'),
    'router or host',
    "Whether Weft is a router of its own on the interface, or the host's stack routes.",
  ),
  interface: leaf(
    reads(z.string(), readInterface).optional(),
    INTERFACE_FORM,
    'Interface of this host on which the router is; of mode host the name of the TAP.',
  ),
  address: leaf(
    prefix().optional(),
    'address/length on the link of the interface, such as 192.168.60.10/24',
    "The router's own address there; of mode host Weft's end of the link.",
  ),
  gateway: leaf(ip().optional(), IP_FORM, 'Next hop of everything that is not on that link.'),
  address6: leaf(
    prefix().optional(),
    'address/length on the link of the interface, such as fd00:60::10/64',
    "The router's own IPv6 address there.",
  ),
  gateway6: leaf(
    ip().optional(),
    'an IPv6 address in text, such as fe80::1',
    'Next hop of all IPv6 that is not on that link.',
  ),
  clamp_mss: leaf(
    z.boolean().default(false),
    TRUTH,
    'Whether TCP connections are made to send segments that fit the network and the uplink.',
  ),
});

const PORT_FORM = 'a number from 1 to 65535, a range such as 8000-8010';
/** Ports of one rule: each is held by a descriptor. */
const MOST_PORTS = 1024;

/** Ports from the first to the last. */
interface Ports {
  readonly first: number;
  readonly last: number;
}

/** One port, or a range of them. */
function readPort(value: number | string, form: string): Ports {
  const [, low, high] = /^([0-9]{1,5})(?:-([0-9]{1,5}))?$/.exec(String(value)) ?? [];
  const first = Number(low);
  const last = Number(high ?? low);
  const shown = typeof value === 'string' ? quote(value) : value;
  if (!(first >= 1 && last <= 65535 && first <= last))
    throw new ValueError(`${shown} is no port and no range of ports`, `write ${form}`);
  if (last - first >= MOST_PORTS)
    throw new ValueError(`${shown} is more than ${MOST_PORTS} ports`, 'write smaller ranges');
  return { first, last };
}

export const publishSchema = z.strictObject({
  endpoint: leaf(name(), 'the name of a local endpoint of this file', 'Endpoint that is to be reached.'),
  protocol: leaf(z.enum(['tcp', 'udp', 'sctp']), 'tcp, udp or sctp', 'Protocol of the port.'),
  port: leaf(
    reads(z.union([z.number(), z.string()]), (value) =>
      value === 'auto' ? undefined : readPort(value, `${PORT_FORM}, or auto`),
    ).optional(),
    `${PORT_FORM}, or auto`,
    "Port at the uplink's address, or the host's; one of 30000 to 32767 when absent.",
  ),
  target: leaf(
    reads(z.union([z.number(), z.string()]), (value) => readPort(value, PORT_FORM)).optional(),
    PORT_FORM,
    'Port of the endpoint; the same as port when absent.',
  ),
  address: leaf(ip().optional(), IP_FORM, 'Address of the host, with mode host; all of them when absent.'),
  uplink: leaf(
    name().optional(),
    'the name of an uplink of this file',
    "Uplink at whose address it is; that of the endpoint's network when absent.",
  ),
});

const PORTS_FORM = 'two ports and a dash, such as 32768-60999';

/** Lowest and highest port of a range. */
function readPorts(text: string): Ports {
  const [, low, high] = /^([0-9]{1,5})-([0-9]{1,5})$/.exec(text) ?? [];
  const [first, last] = [Number(low), Number(high)];
  if (!(first >= 1 && last <= 65535 && first <= last))
    throw new ValueError(`${quote(text)} is not a range of ports`, `write ${PORTS_FORM}`);
  return { first, last };
}

/** Most flows of a node; each takes 92 bytes. */
const MOST_FLOWS = 1 << 22;

/** Longest that a flow may be silent: less than the timer wheel goes round in. */
const MOST_SILENCE = 8191;

/** Seconds of silence. Lower bounds are what the RFCs must not have undercut; of opening and closing they do not say. */
export const timeoutsSchema = z.strictObject({
  established: duration(
    'established',
    ...([7440, MOST_SILENCE, DEFAULT_TIMEOUTS.established, '124m'] as const),
    'TCP until both sides have closed (RFC 5382, REQ-5: 2 h 4 min at least).',
  ),
  opening: duration(
    'opening',
    ...([10, 7440, DEFAULT_TIMEOUTS.opening, '4m'] as const),
    'TCP that is not established yet (RFC 7857, 2.1).',
  ),
  closing: duration(
    'closing',
    ...([10, 7440, DEFAULT_TIMEOUTS.closing, '4m'] as const),
    'TCP after both FINs or an RST (RFC 7857, 2.1).',
  ),
  udp: duration(
    'udp',
    ...([120, MOST_SILENCE, DEFAULT_TIMEOUTS.udp, '5m'] as const),
    'UDP (RFC 4787, REQ-5: 2 min at least).',
  ),
  icmp: duration(
    'icmp',
    ...([60, MOST_SILENCE, DEFAULT_TIMEOUTS.icmp, '60s'] as const),
    'ICMP queries (RFC 5508, REQ-2: 60 s at least).',
  ),
  other: duration(
    'other',
    ...([60, MOST_SILENCE, DEFAULT_TIMEOUTS.other, '5m'] as const),
    'All other protocols.',
  ),
});

export const natSchema = z.strictObject({
  mapping: leaf(
    z.enum(['endpoint-independent', 'endpoint-dependent']).default('endpoint-independent'),
    'endpoint-independent or endpoint-dependent',
    'Whether a port outside stands for one endpoint whatever it talks to (RFC 4787), or is shared as Linux does.',
  ),
  ports: leaf(
    reads(z.string(), readPorts).default({ first: 32768, last: 60999 }),
    PORTS_FORM,
    'Ports that endpoints get outside.',
  ),
  max_flows: leaf(
    integer(1024, MOST_FLOWS).default(262144),
    between(1024, MOST_FLOWS),
    'Flows that the node can track, in memory taken at the start.',
  ),
  timeouts: timeoutsSchema.optional().meta({ description: 'Silence after which a flow goes.' }),
});

export const endpointSchema = z.strictObject({
  name: leaf(name(), NAME_FORM, 'Name of the endpoint, unique.'),
  network: leaf(name(), 'the name of a network of this file', 'Network the endpoint is in.'),
  netns: leaf(reads(z.string(), readNetns).optional(), NETNS_FORM, 'Network namespace of a local endpoint.'),
  interface: leaf(
    reads(z.string(), readInterface).optional(),
    INTERFACE_FORM,
    'Interface Weft makes in the namespace.',
  ),
  vtep: leaf(vtep().optional(), VTEP_FORM, 'Host of a remote endpoint.'),
  address: leaf(
    prefix(),
    "address/length inside the network's subnet, such as 10.0.9.1/24",
    'Address of the endpoint.',
  ),
  address6: leaf(
    prefix().optional(),
    "address/length inside the network's subnet6, such as fd00:9::1/64",
    'IPv6 address in a network with subnet6.',
  ),
  mac: leaf(
    reads(z.string(), parseMac).optional(),
    'a unicast MAC in quotes, such as "02:42:0a:00:09:01"',
    'MAC of the endpoint; 02:42 and the last four bytes of the address when absent.',
  ),
});

/** Text that is hex digits of one of some lengths, as a Secret. What is wrong with it is told without showing it. */
function hex(key: string, digits: readonly number[], form: string, meaning: string) {
  const pattern = new RegExp(`^(?:${digits.map((count) => `[0-9A-Fa-f]{${count}}`).join('|')})$`);
  const wanted = digits.join(' or ');
  const why = (value: unknown): string | undefined => {
    if (typeof value === 'number' || typeof value === 'bigint') {
      return `${key} has no quotes, and YAML reads it as a number`;
    }
    if (typeof value !== 'string') return undefined;
    if (/^[0-9A-Fa-f]*$/.test(value)) return `${key} has ${value.length} hex digits, not ${wanted}`;
    return `${key} has ${value.length} characters that are not all hex digits`;
  };
  const read = z
    .string()
    .regex(pattern)
    .transform((value) => new Secret(value));
  return leaf(read, form, meaning, why);
}

const ALGORITHM_FORM = 'aes-128-gcm-16, or with 192 or 256 bits of key, or 8 or 12 bytes of ICV';
const algorithm = z.enum(ALGORITHMS);
const replayWindow = (usual: number, meaning: string) =>
  leaf(integer(32, 4096).default(usual), between(32, 4096), `Anti-replay window in packets${meaning}.`);

export const ringKeySchema = z.strictObject({
  id: leaf(
    integer(1, 0xffffffff),
    between(1, 0xffffffff),
    'Number of the key, unique, the same on every host.',
  ),
  secret: hex(
    'secret',
    [64],
    '64 hex digits in quotes, as "openssl rand -hex 32" prints them',
    'Secret that the hosts share, unique.',
  ),
});

/**
 * Upper bounds: AES-GCM loses its margin with the square of the blocks sealed under one key (RFC 8446 section 5.5).
 * After 2^44 bytes an attacker who sees them all tells them from noise with a probability of 2^-49.
 */
export const rotateSchema = z.strictObject({
  after: duration('after', 10, 2_592_000, 43_200, '12h', 'Time after which traffic keys are made anew.'),
  packets: leaf(
    integer(2 ** 16, 2 ** 36).default(2 ** 32),
    between(2 ** 16, 2 ** 36),
    'Packets after which a traffic key is replaced.',
  ),
  bytes: leaf(
    integer(2 ** 26, 2 ** 44).default(2 ** 40),
    between(2 ** 26, 2 ** 44),
    'Sealed bytes after which a traffic key is replaced.',
  ),
});

export const encryptionSchema = z.strictObject({
  keys: z
    .array(ringKeySchema)
    .max(MOST_KEYS)
    .default([])
    .meta({ description: 'Key ring, oldest first: all receive, the middle one sends.' }),
  encapsulation: leaf(
    z.enum(['esp', 'udp']).default('udp'),
    'esp or udp',
    'How ESP travels: as IP protocol 50, or in UDP (RFC 3948).',
  ),
  port: leaf(
    integer(1, 65535).default(4500),
    between(1, 65535),
    'UDP port of encapsulated ESP, here and at peers.',
  ),
  exchange_port: leaf(
    integer(1, 65535).default(7949),
    between(1, 65535),
    'UDP port on which hosts agree on traffic keys.',
  ),
  algorithm: leaf(algorithm.default('aes-128-gcm-16'), ALGORITHM_FORM, 'Of what the key ring encrypts.'),
  // A breath of super-frames holds some thousand packets, by which workers may overtake each other.
  replay_window: replayWindow(4096, ' of the key ring'),
  rotate: rotateSchema.optional().meta({ description: 'When traffic keys are made anew.' }),
});

export const associationSchema = z.strictObject({
  peer: leaf(vtep(), VTEP_FORM, 'VTEP at the other end.'),
  direction: leaf(z.enum(['in', 'out']), 'in or out', 'Whether it receives or sends.'),
  spi: leaf(integer(256, 0xffffffff), between(256, 0xffffffff), 'Security parameters index.'),
  algorithm: leaf(algorithm, ALGORITHM_FORM, 'Algorithm, the same at the peer.'),
  key: hex(
    'key',
    [40, 56, 72],
    'the key and its 4-byte salt as hex digits in quotes: 40 for AES-128, 56 for AES-192, 72 for AES-256',
    'Key and salt, of this association alone.',
  ),
  esn: leaf(z.boolean().default(false), TRUTH, 'Whether sequence numbers are extended.'),
  replay_window: replayWindow(1024, ''),
});

export const configSchema = z.strictObject({
  node: leaf(name(), NAME_FORM, 'Name of this host.'),
  workers: leaf(
    z.number().int().min(1).max(16).default(1),
    'a whole number from 1 to 16',
    'Data-plane threads; each takes its share of the flows.',
  ),
  underlay: underlaySchema.meta({ description: 'How VXLAN reaches other hosts.' }),
  networks: z.array(networkSchema).default([]).meta({ description: 'Overlay networks of this host.' }),
  endpoints: z.array(endpointSchema).default([]).meta({ description: 'Interfaces of the networks.' }),
  uplinks: z.array(uplinkSchema).default([]).meta({ description: 'Ways out of the overlay.' }),
  publish: z
    .array(publishSchema)
    .default([])
    .meta({ description: 'Ports of endpoints, reached at an uplink.' }),
  nat: natSchema.optional().meta({ description: 'How addresses are translated at uplinks.' }),
  ingress: ingressSchema.optional().meta({ description: 'The network of the routing mesh.' }),
  services: z
    .array(serviceSchema)
    .default([])
    .meta({ description: 'Virtual addresses of several backends.' }),
  marks: z.array(markSchema).default([]).meta({ description: 'Rules that mark packets for services.' }),
  encryption: encryptionSchema.optional().meta({ description: 'How encrypted networks are encrypted.' }),
  security_associations: z
    .array(associationSchema)
    .default([])
    .meta({ description: 'Static associations, in place of the key ring for their peers.' }),
});

/** Every mapping of a node's file, by its place. */
export const SCHEMAS: readonly (readonly [place: string, schema: z.ZodObject])[] = [
  ['the file itself', configSchema],
  ['underlay', underlaySchema],
  ['an entry of networks', networkSchema],
  ['an entry of endpoints', endpointSchema],
  ['an entry of uplinks', uplinkSchema],
  ['an entry of publish', publishSchema],
  ['nat', natSchema],
  ['nat.timeouts', timeoutsSchema],
  ['ingress', ingressSchema],
  ['an entry of services', serviceSchema],
  ['services[].affinity', affinitySchema],
  ['an entry of services[].ports', servicePortSchema],
  ['an entry of services[].publish', servicePublishSchema],
  ['an entry of services[].backends', backendSchema],
  ['services[].health', healthSchema],
  ['services[].health.http', httpSchema],
  ['an entry of marks', markSchema],
  ['encryption', encryptionSchema],
  ['an entry of encryption.keys', ringKeySchema],
  ['encryption.rotate', rotateSchema],
  ['an entry of security_associations', associationSchema],
];

/** The JSON Schema (draft 2020-12) of a node's file, for editors. It knows shapes, not relations between keys. */
export function configJsonSchema(): Record<string, unknown> {
  return z.toJSONSchema(configSchema, { io: 'input', unrepresentable: 'any' });
}
