/**
 * What a node is told to be: the inert value read from its file, with every default filled in and every address in
 * canonical text. Units: MTU and sizes in bytes, times in seconds. docs/configuration.md has the meaning of each key.
 */
import type { Timeouts } from '../../engine/tables/connection.js';
import type { Secret } from '../secret.js';

export interface Underlay {
  /** This host's VTEP address: dotted decimal or RFC 5952. */
  readonly address: string;
  /** UDP port of VXLAN, here and at every peer. */
  readonly port: number;
  /** Undefined: taken from the interface that has the address. */
  readonly mtu: number | undefined;
  readonly mode: 'auto' | 'socket' | 'uplink';
  readonly reservedBits: 'ignore' | 'strict';
  readonly accept: 'any' | 'peers';
  /** TTL or hop limit of the outer header. */
  readonly ttl: number;
  readonly tos: 'inherit-ecn';
}

export interface Network {
  readonly name: string;
  /** 1..16777215. */
  readonly vni: number;
  /** `address/length` without host bits; IPv4 or IPv6. */
  readonly subnet: string;
  /** Second prefix of a dual-stack network, always IPv6. */
  readonly subnet6: string | undefined;
  /** Address at which this host is the gateway of its endpoints here. */
  readonly gateway: string | undefined;
  /** Another of a dual-stack network, in `subnet6`. */
  readonly gateway6: string | undefined;
  /** Name of an uplink of this config; undefined: no way out. */
  readonly uplink: string | undefined;
  readonly masquerade: boolean;
  /** Inner IP MTU. Undefined only while `underlay.mtu` is: then `defaultMtu` of the interface's. */
  readonly mtu: number | undefined;
  /** Leaves the host only inside ESP, and is taken from no other. */
  readonly encrypted: boolean;
  readonly internal: boolean;
  /** Remote VTEP addresses, of the underlay's family. */
  readonly peers: readonly string[];
  readonly innerVlan: 'discard' | 'carry';
  /** Seconds after which a learned MAC that was not seen is forgotten. */
  readonly ageing: number;
  /** Most MACs learned in this network. */
  readonly learningLimit: number;
  readonly learning: boolean;
}

interface EndpointCommon {
  readonly name: string;
  /** Name of a network of this config. */
  readonly network: string;
  /** `address/length` inside the network's `subnet`. */
  readonly address: string;
  /** `address/length` inside the network's `subnet6`. */
  readonly address6: string | undefined;
  /** Lower case with colons; written, or derived from the address. */
  readonly mac: string;
}

/** An endpoint on this host: Weft makes its interface. */
export interface LocalEndpoint extends EndpointCommon {
  readonly kind: 'local';
  /** As written: a name in /run/netns or an absolute path; `netnsPath` gives the path. */
  readonly netns: string;
  readonly interface: string;
}

/** An endpoint on another host, known in advance: its MAC is a static entry towards `vtep`. */
interface RemoteEndpoint extends EndpointCommon {
  readonly kind: 'remote';
  readonly vtep: string;
}

export type Endpoint = LocalEndpoint | RemoteEndpoint;

/** A way out of the overlay: this host as a router with an address of its own on an interface. */
export interface RouterUplink {
  readonly name: string;
  readonly mode: 'router';
  readonly interface: string;
  /** IPv4, `address/length`. */
  readonly address: string;
  /** Next hop; undefined: only the link itself is reached. */
  readonly gateway: string | undefined;
  /** IPv6, `address/length`, and its next hop, which may be link-local. */
  readonly address6: string | undefined;
  readonly gateway6: string | undefined;
  /** SYNs are made to announce what fits. */
  readonly clampMss: boolean;
}

/** A way out of the overlay by a TAP into the host's own stack, which routes and translates. At most one a node. */
export interface HostUplink {
  readonly name: string;
  readonly mode: 'host';
  /** Name of the TAP. */
  readonly interface: string;
  /** Weft's end of the link, IPv4, `address/30` or `/31`; undefined: a link-local one is chosen. */
  readonly address: string | undefined;
  readonly clampMss: boolean;
}

export type Uplink = RouterUplink | HostUplink;

/** Ports at an uplink's address, or the host's, that stand for as many of an endpoint. */
export interface Publish {
  /** Name of a local endpoint of this config, in a network that leaves by the uplink. */
  readonly endpoint: string;
  /** `sctp` only at an uplink of mode host. */
  readonly protocol: 'tcp' | 'udp' | 'sctp';
  /** The first one; undefined: one is given. */
  readonly port: number | undefined;
  readonly count: number;
  /** Port of the endpoint that the first one stands for. */
  readonly target: number;
  readonly uplink: string;
  /** Of the host, at an uplink of mode host; undefined: all of them, or the uplink's. */
  readonly address: string | undefined;
}

/** Address translation at every uplink. */
export interface Nat {
  readonly mapping: 'endpoint-independent' | 'endpoint-dependent';
  /** Ports given out. */
  readonly ports: { readonly first: number; readonly last: number };
  readonly maxFlows: number;
  /** Seconds of silence. */
  readonly timeouts: Timeouts;
}

/** Protocol, port of a virtual address, and port of its backends. */
interface ServicePort {
  readonly protocol: 'tcp' | 'udp';
  readonly port: number;
  readonly target: number;
}

/** A port at an uplink's address at which a service is reached, at every node that has it. */
interface ServicePublish extends ServicePort {
  readonly mode: 'ingress';
  /** Name of an uplink of mode router of this config. */
  readonly uplink: string;
}

export interface Backend {
  /** In the network's `subnet`. */
  readonly address: string;
  /** In `subnet6`; undefined: it has none there, or the service has no `vip6`. */
  readonly address6: string | undefined;
  /** 0..65535. */
  readonly weight: number;
  /** Undefined: that of the endpoint with the address, or else derived from it. */
  readonly mac: string | undefined;
}

/** How it is found out whether a backend lives: a connection is opened, or a page is asked for. */
export interface Health {
  readonly kind: 'tcp' | 'http';
  readonly port: number;
  /** Of `http`. */
  readonly path: string | undefined;
  /** Seconds. */
  readonly interval: number;
  readonly timeout: number;
  /** Checks in a row. */
  readonly failures: number;
  readonly successes: number;
}

/** A virtual address of a network, at which several answer. */
export interface Service {
  readonly name: string;
  /** Name of a network of this config. */
  readonly network: string;
  /** Inside the network's `subnet`, and nobody else's. */
  readonly vip: string;
  /** Another of a dual-stack network, in `subnet6`. */
  readonly vip6: string | undefined;
  readonly scheduler: 'rr' | 'wrr' | 'lc' | 'wlc' | 'sh' | 'maglev';
  readonly forwarding: 'masq' | 'dsr';
  /** 1..2^32-1, of one service alone; undefined: one is given. */
  readonly fwmark: number | undefined;
  /** Seconds for which a client keeps its backend; 0: each flow anew. */
  readonly affinity: number;
  /** Seconds of silence after which an established TCP connection is reset. */
  readonly idleTimeout: number;
  /** Empty: every port of TCP and UDP. */
  readonly ports: readonly ServicePort[];
  readonly publish: readonly ServicePublish[];
  readonly backends: readonly Backend[];
  readonly health: Health | undefined;
}

/** A rule that gives packets a mark; the first that matches decides. */
export interface MarkRule {
  /** `fwmark` of a service of this config. */
  readonly mark: number;
  readonly network: string;
  /** Undefined: any that has ports. */
  readonly protocol: 'tcp' | 'udp' | undefined;
  /** Destination, an address or a prefix, of the family of `source`; undefined: any. */
  readonly address: string | undefined;
  /** Of the destination; undefined: any. */
  readonly ports: { readonly first: number; readonly last: number } | undefined;
  /** An address or a prefix; undefined: any. */
  readonly source: string | undefined;
  /** Name of a local endpoint of the network, from which it comes; undefined: any. */
  readonly endpoint: string | undefined;
}

/** AES-GCM for ESP (RFC 4106): bits of the key, bytes of the ICV. `algorithmSizes` takes it apart. */
export type Algorithm = `aes-${128 | 192 | 256}-gcm-${8 | 12 | 16}`;

/** How ESP travels: as IP protocol 50, or in UDP (RFC 3948). */
export type Encapsulation = 'esp' | 'udp';

/** A secret that the hosts share, from which they derive the keys of their traffic. */
export interface RingKey {
  /** 1..2^32-1. */
  readonly id: number;
  /** 32 bytes. */
  readonly secret: Secret;
}

export interface Encryption {
  /** Oldest first: all of them receive, the middle one sends. At most 3; empty when all associations are static. */
  readonly keys: readonly RingKey[];
  readonly encapsulation: Encapsulation;
  /** UDP port of encapsulated ESP, here and at every peer. Unused with `esp`. */
  readonly port: number;
  /** UDP port on which hosts agree on traffic keys. */
  readonly exchangePort: number;
  /** Of associations that the ring makes; they have extended sequence numbers. */
  readonly algorithm: Algorithm;
  /** Packets, likewise. */
  readonly replayWindow: number;
  /** When traffic keys are made anew: whichever is reached first. `after` in seconds; bytes of sealed payload. */
  readonly rotate: { readonly after: number; readonly packets: number; readonly bytes: number };
}

/** A security association written out, instead of those the ring makes for the peer. */
export interface StaticAssociation {
  /** VTEP, of the underlay's family. */
  readonly peer: string;
  readonly direction: 'in' | 'out';
  /** 256..2^32-1; of inbound ones each once. */
  readonly spi: number;
  readonly algorithm: Algorithm;
  /** The key, then the salt of 4 bytes (RFC 4106 section 8.1). No two associations have the same. */
  readonly key: Secret;
  /** Extended sequence numbers (RFC 4303 section 2.2.1). */
  readonly esn: boolean;
  /** Packets. */
  readonly replayWindow: number;
}

/** Frozen all the way down; names unique, references resolved. A Secret does not survive posting to another thread. */
export interface Config {
  readonly node: string;
  /** Data-plane threads. */
  readonly workers: number;
  readonly underlay: Underlay;
  readonly networks: readonly Network[];
  readonly endpoints: readonly Endpoint[];
  readonly uplinks: readonly Uplink[];
  /** Of each uplink and protocol every port once. */
  readonly publish: readonly Publish[];
  readonly nat: Nat;
  /** The network by which the nodes of the routing mesh reach each other's backends; its name is `ingress`. */
  readonly ingress: Network | undefined;
  readonly services: readonly Service[];
  readonly marks: readonly MarkRule[];
  /** Undefined when the file has no `encryption`, no static association and no encrypted network. */
  readonly encryption: Encryption | undefined;
  readonly associations: readonly StaticAssociation[];
}
