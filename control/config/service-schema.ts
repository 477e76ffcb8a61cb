/** The shape of `ingress`, `services` and `marks` in a node's file; what they mean for each other is in `services.ts`. */
import { z } from 'zod';
import { MAX_WEIGHT } from '../../engine/tables/backends.js';
import { LONGEST_SILENCE } from '../../engine/tables/connection.js';
import { parseMac, quote, ValueError } from '../addresses.js';
import {
  between,
  duration,
  integer,
  ip,
  leaf,
  NAME_FORM,
  name,
  range,
  reads,
  subnet,
  TRUTH,
  VTEP_FORM,
  vtep,
} from './leaf.js';

const IPV4_FORM = 'an IPv4 address in text, such as 10.0.9.100';
const IPV6_FORM = 'an IPv6 address in text, such as fd00:9::100';
const PORT = between(1, 65535);

/** Automatic marks begin here; below are those that people write. */
export const FIRST_MARK = 256;

export const ingressSchema = z.strictObject({
  vni: leaf(integer(1, 0xffffff), between(1, 0xffffff), 'VXLAN network identifier, of no network.'),
  subnet: leaf(subnet(), 'a prefix such as 10.255.0.0/16', 'IPv4 prefix of the ingress network.'),
  encrypted: leaf(z.boolean().default(false), TRUTH, 'Whether its VXLAN leaves this host only inside ESP.'),
  peers: z
    .array(leaf(vtep(), VTEP_FORM, 'A remote VTEP.'))
    .default([])
    .meta({ description: 'VTEPs of the other nodes of the routing mesh.' }),
});

const protocol = () => z.enum(['tcp', 'udp']);

export const servicePortSchema = z.strictObject({
  protocol: leaf(protocol(), 'tcp or udp', 'Protocol of the port.'),
  port: leaf(integer(1, 65535), PORT, 'Port of the virtual address.'),
  target: leaf(integer(1, 65535).optional(), PORT, 'Port of the backends; the same as port when absent.'),
});

export const servicePublishSchema = z.strictObject({
  protocol: leaf(protocol(), 'tcp or udp', 'Protocol of the port.'),
  port: leaf(integer(1, 65535), PORT, "Port at the uplink's address."),
  target: leaf(integer(1, 65535).optional(), PORT, 'Port of the backends; the same as port when absent.'),
  mode: leaf(
    z.enum(['ingress']),
    'ingress',
    'How it is published: at every node, whether or not a backend is there.',
  ),
  uplink: leaf(
    name().optional(),
    'the name of an uplink of this file',
    "Uplink at whose address it is; that of the service's network, or the only one, when absent.",
  ),
});

export const backendSchema = z.strictObject({
  address: leaf(ip(), IPV4_FORM, "Address of the backend, of the service's network."),
  address6: leaf(
    ip().optional(),
    IPV6_FORM,
    "Its address in subnet6, where the service has vip6; the endpoint's, when it is one of this file.",
  ),
  weight: leaf(
    integer(0, MAX_WEIGHT).default(1),
    between(0, MAX_WEIGHT),
    'Its share of new flows with wrr, wlc, sh and maglev; with 0 it gets none.',
  ),
  mac: leaf(
    reads(z.string(), parseMac).optional(),
    'a unicast MAC in quotes, such as "02:42:0a:00:09:01"',
    'MAC of a backend that is no endpoint of this file; 02:42 and its address when absent.',
  ),
});

export const affinitySchema = z.strictObject({
  by: leaf(z.enum(['client']).default('client'), 'client', 'Who comes to the same backend again.'),
  timeout: duration(
    'timeout',
    1,
    86_400,
    600,
    '10m',
    'Time for which a client that is silent keeps its backend.',
  ),
});

const PATH_FORM = 'a path that begins with "/", without spaces, such as /health';

function readPath(value: string): string {
  if (value.length <= 1024 && /^\/[\x21-\x7e]*$/.test(value)) return value;
  throw new ValueError(`${quote(value)} is not the path of a request`, `write ${PATH_FORM}`);
}

export const httpSchema = z.strictObject({
  port: leaf(integer(1, 65535), PORT, 'Port of the backend that is asked.'),
  path: leaf(
    reads(z.string(), readPath).default('/'),
    PATH_FORM,
    'Path that is asked for; an answer of 2xx or 3xx is one of a living backend.',
  ),
});

/** Of what is asked of a backend, seconds. */
const MOST_INTERVAL = 3600;

export const healthSchema = z.strictObject({
  tcp: leaf(integer(1, 65535).optional(), PORT, 'Port of the backend to which a connection is opened.'),
  http: httpSchema.optional().meta({ description: 'Page of the backend that is asked for.' }),
  interval: duration('interval', 1, MOST_INTERVAL, 2, '2s', 'Time from one check of a backend to the next.'),
  timeout: duration('timeout', 1, MOST_INTERVAL, 1, '1s', 'Time after which a check has failed.'),
  failures: leaf(
    integer(1, 100).default(3),
    between(1, 100),
    'Failed checks in a row after which it is dead.',
  ),
  successes: leaf(
    integer(1, 100).default(2),
    between(1, 100),
    'Good checks in a row after which it is alive.',
  ),
});

export const serviceSchema = z.strictObject({
  name: leaf(name(), NAME_FORM, 'Name of the service, unique.'),
  network: leaf(
    name(),
    'the name of a network of this file',
    'Network of the virtual address and the backends.',
  ),
  vip: leaf(ip(), IPV4_FORM, "Virtual address, inside the subnet and nobody else's."),
  vip6: leaf(ip().optional(), IPV6_FORM, 'Another of IPv6, inside subnet6 of a dual-stack network.'),
  scheduler: leaf(
    z.enum(['rr', 'wrr', 'lc', 'wlc', 'sh', 'maglev']).default('rr'),
    'rr, wrr, lc, wlc, sh or maglev',
    'How the backend of a new flow is chosen.',
  ),
  forwarding: leaf(
    z.enum(['masq', 'dsr']).default('masq'),
    'masq or dsr',
    'Whether the destination is translated, or the backend has the virtual address itself.',
  ),
  fwmark: leaf(
    integer(1, 0xffffffff).optional(),
    between(1, 0xffffffff),
    `What is marked so is for the service; one from ${FIRST_MARK} when absent.`,
  ),
  affinity: affinitySchema
    .optional()
    .meta({ description: 'Whether a client comes to the same backend again.' }),
  idle_timeout: duration(
    'idle_timeout',
    1,
    LONGEST_SILENCE,
    7440,
    '2h',
    'Silence after which an established TCP connection is reset (RFC 5382, REQ-5).',
  ),
  ports: z
    .array(servicePortSchema)
    .default([])
    .meta({ description: 'Ports of the virtual address; all of TCP and UDP when absent.' }),
  publish: z
    .array(servicePublishSchema)
    .default([])
    .meta({ description: 'Ports at which the service is reached from outside.' }),
  backends: z.array(backendSchema).default([]).meta({ description: 'Those that answer.' }),
  health: healthSchema.optional().meta({ description: 'How it is found out whether a backend lives.' }),
});

const RANGE_FORM = 'an address or a prefix, such as 10.0.9.1 or fd00:9::/64';
const PORTS_FORM = 'a port or two and a dash, such as 80 or 8000-8010';

/** Lowest and highest port of what a rule matches. */
function readPorts(value: string | number): { readonly first: number; readonly last: number } {
  const [, low, high] = /^([0-9]{1,5})(?:-([0-9]{1,5}))?$/.exec(String(value)) ?? [];
  const first = Number(low);
  const last = Number(high ?? low);
  if (first >= 1 && last <= 65535 && first <= last) return { first, last };
  const shown = typeof value === 'string' ? quote(value) : value;
  throw new ValueError(`${shown} is no port and no range of ports`, `write ${PORTS_FORM}`);
}

export const markSchema = z.strictObject({
  mark: leaf(
    integer(1, 0xffffffff),
    between(1, 0xffffffff),
    'Mark of what matches: the fwmark of a service.',
  ),
  network: leaf(name(), 'the name of a network of this file', 'Network in which it is looked for.'),
  protocol: leaf(protocol().optional(), 'tcp or udp', 'Protocol; any that has ports when absent.'),
  address: leaf(range().optional(), RANGE_FORM, 'Destination; any when absent.'),
  ports: leaf(
    reads(z.union([z.number(), z.string()]), readPorts).optional(),
    PORTS_FORM,
    'Ports of the destination; all when absent.',
  ),
  source: leaf(range().optional(), RANGE_FORM, 'Where it comes from; anywhere when absent.'),
  endpoint: leaf(
    name().optional(),
    'the name of a local endpoint of this file',
    'Endpoint from which it comes; any when absent.',
  ),
});
