/**
 * What a node is told to be: the inert value read from its file, with every default filled in and every address in
 * canonical text. Units: MTU and sizes in bytes, times in seconds. docs/configuration.md has the meaning of each key.
 */

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
  readonly gateway: string | undefined;
  /** Inner IP MTU. Undefined only while `underlay.mtu` is: then `defaultMtu` of the interface's. */
  readonly mtu: number | undefined;
  readonly encrypted: false;
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

/** Frozen all the way down; names unique, references resolved, safe to post to another thread. */
export interface Config {
  readonly node: string;
  /** Data-plane threads. */
  readonly workers: number;
  readonly underlay: Underlay;
  readonly networks: readonly Network[];
  readonly endpoints: readonly Endpoint[];
}
