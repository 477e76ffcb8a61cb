/** What follows from a node's file without being written in it. */
import { type Family, parseIp } from '../addresses.js';
import type { Algorithm, Config, Encapsulation, Network, Service } from './types.js';

const ETHERNET = 14;
const VXLAN = 8;
const UDP = 8;
/** SPI and sequence number (RFC 4303 section 2). */
const ESP_HEADER = 8;
/** RFC 4106 section 3.1. */
const ESP_IV = 8;
/** The longest, also where a peer has a shorter one: the MTU does not change with the algorithm. */
const ESP_ICV = 16;
/** Pad length and next header; payload, padding and these two end on a multiple of 4 (RFC 4303 section 2.4). */
const ESP_TRAILER = 2;
const ESP_ALIGNMENT = 4;
/** Bytes behind the key that are its salt (RFC 4106 section 4). */
export const SALT = 4;

/** Bytes of VXLAN around an inner IP packet: inner Ethernet 14, VXLAN 8, UDP 8, and IPv4 20 or IPv6 40 (RFC 7348 section 5). */
export function overlayOverhead(underlayFamily: Family): 50 | 70 {
  return underlayFamily === 4 ? 50 : 70;
}

/**
 * The largest inner MTU in bytes that an underlay of `underlayMtu` bytes carries whole. An inner VLAN tag takes 4 more.
 * @param encapsulation of an encrypted network; left out for a plain one.
 */
export function defaultMtu(
  underlayMtu: number,
  underlayFamily: Family,
  encapsulation?: Encapsulation,
): number {
  if (encapsulation === undefined) return underlayMtu - overlayOverhead(underlayFamily);
  const ip = underlayFamily === 4 ? 20 : 40;
  const udp = encapsulation === 'udp' ? UDP : 0;
  const room = underlayMtu - ip - udp - ESP_HEADER - ESP_IV - ESP_ICV;
  return room - (room % ESP_ALIGNMENT) - ESP_TRAILER - UDP - VXLAN - ETHERNET;
}

/** The largest inner MTU in bytes of a network on a path of `pathMtu` bytes. */
export function largestMtu(config: Config, { encrypted }: Network, pathMtu: number): number {
  const encapsulation = encrypted ? config.encryption?.encapsulation : undefined;
  return defaultMtu(pathMtu, parseIp(config.underlay.address).family, encapsulation);
}

/** Everything that is carried between hosts: the networks, and the ingress network of the routing mesh. */
export function carriedNetworks({ networks, ingress }: Config): readonly Network[] {
  return ingress === undefined ? networks : [...networks, ingress];
}

/** The gateway of a network and the prefix it is in, of each family. */
export function gatewayAddresses({ gateway, gateway6, subnet, subnet6 }: Network): {
  readonly v4?: readonly [gateway: string, subnet: string];
  readonly v6?: readonly [gateway: string, subnet: string];
} {
  const ipv6 = subnet.includes(':');
  return {
    ...(gateway !== undefined && { [ipv6 ? 'v6' : 'v4']: [gateway, subnet] }),
    ...(gateway6 !== undefined && subnet6 !== undefined && { v6: [gateway6, subnet6] }),
  };
}

/** Addresses of an endpoint, `address/length`, for which its network has a gateway. */
export function routedAddresses({ networks, endpoints }: Config, endpoint: string): string[] {
  const { network, address, address6 } = endpoints.find(({ name }) => name === endpoint)!;
  const { v4, v6 } = gatewayAddresses(networks.find(({ name }) => name === network)!);
  const own6 = address.includes(':') ? address : address6;
  return [...(v4 && address !== own6 ? [address] : []), ...(v6 && own6 !== undefined ? [own6] : [])];
}

/** Every Algorithm. */
export const ALGORITHMS = [16, 12, 8].flatMap((icv) =>
  [128, 192, 256].map((bits) => `aes-${bits}-gcm-${icv}` as Algorithm),
);

/** Bytes of the key without its salt, and of the ICV. */
export function algorithmSizes(algorithm: Algorithm): {
  readonly key: 16 | 24 | 32;
  readonly icv: 8 | 12 | 16;
} {
  const [, bits, , icv] = algorithm.split('-').map(Number);
  return { key: (bits / 8) as 16 | 24 | 32, icv: icv as 8 | 12 | 16 };
}

/** The file of a network namespace written as a name or an absolute path. /var/run is /run (file hierarchy standard). */
export function netnsPath(netns: string): string {
  return netns.startsWith('/') ? netns.replace(/^\/var\/run\//, '/run/') : `/run/netns/${netns}`;
}

/** Whether a service has a virtual address of IPv6. */
export function hasServicesOfIpv6({ services }: Pick<Config, 'services'>): boolean {
  return services.some(({ vip, vip6 }) => vip6 !== undefined || vip.includes(':'));
}

/** `address/length` of an uplink at which a service is reached: one of each family that it, the network and the uplink have. */
export function servedAddresses(
  { networks, uplinks }: Pick<Config, 'networks' | 'uplinks'>,
  { network, vip, vip6 }: Service,
  uplink: string,
): string[] {
  const gateways = gatewayAddresses(networks.find(({ name }) => name === network)!);
  const way = uplinks.find(({ name }) => name === uplink)!;
  if (way.mode !== 'router') return [];
  const isV6 = (vip6 ?? vip).includes(':');
  return [
    ...(gateways.v4 && !vip.includes(':') ? [way.address] : []),
    ...(gateways.v6 && isV6 && way.address6 !== undefined ? [way.address6] : []),
  ];
}
