/**
 * What the data plane is told to do: an inert value of numbers and bytes that crosses to the worker as a whole.
 * The worker compares it with what it has and changes only the difference. Names, files and devices are control's.
 */
import type { SchedulerName } from './tables/backends.js';

import type { Timeouts } from './tables/connection.js';

interface UnderlayIntent {
  /** Socket bound to the VTEP's address and port. */
  readonly fd: number;
  /** Sockets for sending, bound to entropy ports; a power of two of them. */
  readonly senders: readonly number[];
  /** This host's VTEP address, 4 or 16 bytes. */
  readonly address: Uint8Array;
  readonly port: number;
  readonly ttl: number;
  /** Refuse reserved VXLAN bits, as Linux does. */
  readonly strict: boolean;
  /** MTU of the network card, bytes. */
  readonly mtu: number;
  /** Queue of the uplink TAP, where the host can have one. */
  readonly uplink?: number;
  /** What carries ESP; without it nothing of an encrypted domain leaves or enters. */
  readonly esp?: EspIntent;
}

export interface EspIntent {
  /** Socket bound to the VTEP's address: UDP, or raw for IP protocol 50. */
  readonly fd: number;
  /** Whether this worker receives from it: of raw sockets each gets every packet. */
  readonly receive: boolean;
  /** UDP port of encapsulation, here and at every peer; 0 for IP protocol 50. */
  readonly port: number;
}

/** The next hop of a VTEP, by which the uplink TAP reaches it; a VTEP without one goes through the socket. */
interface LinkIntent {
  /** 4 or 16 bytes. */
  readonly vtep: Uint8Array;
  /** MAC of the next hop, and of our own card. */
  readonly destination: Uint8Array;
  readonly source: Uint8Array;
}

export interface DomainIntent {
  /** Index below MAX_DOMAINS; a network keeps its own for life. */
  readonly id: number;
  readonly vni: number;
  /** CARRY_VLAN, LEARN, PEERS_ONLY, ENCRYPTED. */
  readonly flags: number;
  /** Seconds. */
  readonly ageing: number;
  readonly learningLimit: number;
  /** Addresses of the VTEPs that get what is flooded. */
  readonly peers: readonly Uint8Array[];
}

export interface PortIntent {
  /** Port number, 1 to 4094. */
  readonly id: number;
  /** Queues of the TAP, one a worker. */
  readonly fd: number;
  readonly domain: number;
}

/** A station whose place is known in advance. */
export interface StationIntent {
  readonly domain: number;
  /** Six bytes. */
  readonly mac: Uint8Array;
  /** A local port, or the address of a VTEP. */
  readonly at: number | Uint8Array;
}

/** An address for which ARP or ND is answered. */
export interface NeighbourIntent {
  readonly domain: number;
  /** 4 or 16 bytes. */
  readonly address: Uint8Array;
  readonly mac: Uint8Array;
  /** It is a gateway. */
  readonly router?: true;
}

/** A gateway's address, and the prefix of its network; 4 or 16 bytes each. */
export interface GatewayAddressIntent {
  readonly address: Uint8Array;
  readonly subnet: Uint8Array;
  readonly length: number;
}

/** The gateway of a network: a router that is on every host under the same addresses, each for its own containers. */
export interface GatewayIntent {
  readonly domain: number;
  /** What it is of IPv4 and of IPv6; one of them at least. */
  readonly v4?: GatewayAddressIntent;
  readonly v6?: GatewayAddressIntent;
  readonly mac: Uint8Array;
  /** Whether packets keep their addresses on their way out. */
  readonly routed: boolean;
  /** Index of the uplink, -1 when there is no way out. */
  readonly uplink: number;
  /** Largest IP packet of the network, bytes. */
  readonly mtu: number;
}

/** A way out of the host, where the engine is a router with an address of its own. Stays for life. */
export interface UplinkIntent {
  /** Packet socket that is a station of the MAC; or a TAP. */
  readonly fd: number;
  /** Whether `fd` is a TAP into the host's stack, which routes all the rest and translates. */
  readonly tap: boolean;
  readonly mac: Uint8Array;
  /** Four bytes. */
  readonly address: Uint8Array;
  readonly length: number;
  /** Next hop of what is not on the link; without it nothing else is reached. */
  readonly gateway?: Uint8Array;
  /** Address of IPv6, if it has one, 16 bytes; its length, and the next hop, which may be link-local. */
  readonly v6?: { readonly address: Uint8Array; readonly length: number; readonly gateway?: Uint8Array };
  /** Whether SYNs are made to announce what fits. */
  readonly clampMss: boolean;
  /** Largest IP packet, bytes. */
  readonly mtu: number;
}

/** A port of an uplink's address that stands for one of an endpoint. */
export interface PublishIntent {
  /** Index of the uplink. */
  readonly uplink: number;
  /** 6 or 17. */
  readonly protocol: number;
  readonly port: number;
  readonly domain: number;
  /** 4 or 16 bytes. */
  readonly address: Uint8Array;
  readonly target: number;
  /** Number of the service that it stands for, whose address it is then. */
  readonly service?: number;
}

/** Address translation of each uplink. Stays for life. */
export interface NatIntent {
  readonly mapping: 'endpoint-independent' | 'endpoint-dependent';
  /** Ports that are given out. */
  readonly firstPort: number;
  readonly lastPort: number;
  readonly timeouts: Timeouts;
}

/** Which of the flows that an earlier process left are still somebody's. */
export interface LeftFlows {
  /** Domains that are what they were, and whose packets go the same way. */
  readonly domains: readonly number[];
  /** Endpoints of this host, and backends; 4 or 16 bytes each. */
  readonly endpoints: readonly { readonly domain: number; readonly address: Uint8Array }[];
  /** Ports that were published and are not any more: external address, 4 or 16 bytes, protocol and port. */
  readonly unpublished: readonly {
    readonly address: Uint8Array;
    readonly protocol: number;
    readonly port: number;
  }[];
  /**
   * Services under the numbers that they had, in domains that are what they were: those of the intent, with the
   * backends that are gone since, and those that are gone.
   */
  readonly services: readonly ServiceIntent[];
}

/** The node's flow table. Stays for life. */
export interface FlowTableIntent {
  readonly capacity: number;
  /** File of its entries, `flowBytes(capacity)` long, which others may read: see flow-memory.ts. */
  readonly fd: number;
  /** Absent when nothing is left there, or nothing any more. */
  readonly left?: LeftFlows;
  /** IPv6 addresses that it has room for, behind the entries; absent where no uplink has IPv6. */
  readonly addresses?: number;
  /** Where events of flows go while somebody listens, see flow-events.ts. */
  readonly events?: SharedArrayBuffer;
}

/** One of those for whom a service stands: a real server. */
export interface BackendIntent {
  /** Below MAX_BACKENDS; its own for life, and not given to another while flows of it may be there. */
  readonly id: number;
  /** As many bytes as that of the service. */
  readonly address: Uint8Array;
  readonly mac: Uint8Array;
  /** Its share of new flows; 0: none, and those that are there finish. */
  readonly weight: number;
  /** Whether it is taken to be alive: flows of one that is not are reset. */
  readonly alive: boolean;
}

/** A service: an address of a network at which several answer. */
export interface ServiceIntent {
  /** Below MAX_SERVICES; its own for life. */
  readonly id: number;
  readonly domain: number;
  /** The virtual address, 4 or 16 bytes. Its MAC is made of the last four: see VIRTUAL_MAC_LE. */
  readonly address: Uint8Array;
  readonly scheduler: SchedulerName;
  /** Packets keep their addresses on their way to the backend, which has the virtual one itself. */
  readonly direct: boolean;
  /** What is marked so is for the service, whatever its address; of each family one service may have it. 0: none. */
  readonly mark: number;
  /** Seconds for which a client comes to the same backend again; 0: each flow anew. */
  readonly affinity: number;
  /** Seconds of silence after which an established TCP connection is reset. */
  readonly idle: number;
  /** Ports of the virtual address; without any, every port of TCP and UDP, each to the same. */
  readonly ports: readonly ServicePort[];
  readonly publish: readonly ServicePublishIntent[];
  /** In the order of the configuration, which is that of the schedulers. */
  readonly backends: readonly BackendIntent[];
  /**
   * How its backends are checked; what is found out then counts, not what `alive` says. Where it is `direct` its domain
   * has a gateway of the same family.
   */
  readonly health?: HealthIntent;
}

/** How backends are checked, and when the result counts. */
export interface HealthIntent {
  /** Whether a connection is enough, or a page is asked for. */
  readonly kind: 'tcp' | 'http';
  /** Port at the backend. */
  readonly port: number;
  /** What is asked for with `http`; else empty. */
  readonly path: string;
  /** From one check to the next, and until one has failed, milliseconds. */
  readonly interval: number;
  readonly timeout: number;
  /** Checks in a row. */
  readonly failures: number;
  readonly successes: number;
}

interface ServicePort {
  /** 6 or 17. */
  readonly protocol: number;
  readonly port: number;
  /** Port at the backend. */
  readonly target: number;
}

/** The network over which packets of published services pass between nodes. */
interface IngressIntent {
  readonly domain: number;
  /** Largest IP packet, bytes. */
  readonly mtu: number;
}

/** A port of an uplink's address that stands for a service. */
interface ServicePublishIntent {
  /** Index of the uplink, which is a router. */
  readonly uplink: number;
  /** 6 or 17. */
  readonly protocol: number;
  readonly port: number;
  /** Port at the backend. */
  readonly target: number;
}

/** Addresses of a family: 4 or 16 bytes, of which the first `length` bits count; length 0: all. */
interface RangeIntent {
  readonly address: Uint8Array;
  readonly length: number;
}

/** A rule that marks packets of one family, as the mangle table does. The first that matches decides. */
export interface MarkIntent {
  readonly mark: number;
  readonly domain: number;
  /** 0: any that has ports. */
  readonly protocol: number;
  /** Both of the family of the packets that are meant. */
  readonly source: RangeIntent;
  readonly destination: RangeIntent;
  /** Ports of the destination; 0 to 65535: any, and packets without ports. */
  readonly firstPort: number;
  readonly lastPort: number;
  /** Number of a local port; -1: any. */
  readonly port: number;
}

/**
 * A security association (RFC 4303) that the data plane is to use. Its key lies in the addon under `slot` and never
 * in an intent; what changes with each packet lies in the AssociationState that all workers share.
 */
export interface AssociationIntent {
  /** Below MAX_ASSOCIATIONS; not used again before every worker has been told that it is gone. */
  readonly slot: number;
  /** Of all inbound ones every SPI once; of all outbound ones every VTEP once: the one that sends. */
  readonly direction: 'in' | 'out';
  /** 256 to 2^32 - 1 (RFC 4303, section 2.1). */
  readonly spi: number;
  /** Address of the peer, 4 or 16 bytes. */
  readonly vtep: Uint8Array;
  /** Bytes of the ICV. */
  readonly icv: 8 | 12 | 16;
  /** Extended sequence numbers. */
  readonly esn: boolean;
  /** Packets of the replay window, 32 to MAX_REPLAY_WINDOW; 0 switches the check off. */
  readonly window: number;
}

export interface Intent {
  readonly underlay: UnderlayIntent;
  readonly domains: readonly DomainIntent[];
  readonly ports: readonly PortIntent[];
  readonly stations: readonly StationIntent[];
  readonly neighbours: readonly NeighbourIntent[];
  readonly links: readonly LinkIntent[];
  readonly gateways: readonly GatewayIntent[];
  readonly uplinks: readonly UplinkIntent[];
  readonly publish: readonly PublishIntent[];
  readonly nat: NatIntent;
  /** Absent on a node without services. */
  readonly services?: readonly ServiceIntent[];
  readonly marks?: readonly MarkIntent[];
  readonly ingress?: IngressIntent;
  /** Absent on a node that tracks nothing: without uplinks. */
  readonly flows?: FlowTableIntent;
  /** Stations that the forwarding table can hold. Stays for life. */
  readonly capacity: number;
  /** Whether every TAP takes UDP super-frames (USO). Stays for life. */
  readonly udpSegmentation: boolean;
}

/** Most VTEPs, configured and learned. */
export const MAX_VTEPS = 4096;

/** Number of the underlay's port. */
export const UNDERLAY_PORT = 0;
/** Number of the uplink TAP's port; endpoints stay below. */
export const UPLINK_PORT = 4095;
/** Number of the port that carries ESP over a socket. */
export const ESP_PORT = 4096;
/** Number under which bridges know the gateway. */
export const GATEWAY_PORT = 4097;
/** Numbers of the ports of uplinks, by index from here. */
export const FIRST_UPLINK_PORT = 4098;
/** Number under which bridges know the balancer. */
export const BALANCER_PORT = 4114;
/** Number under which the bridge of the ingress network knows the mesh. */
export const MESH_PORT = 4115;
/** Most uplinks of a node. */
export const MAX_UPLINKS = 16;
/** Most local endpoints: ports 1 to 4094. */
export const MAX_ENDPOINTS = UPLINK_PORT - 1;
