/** What a NAT knows: its flows, the ports of its external address, and what it publishes. */
import { type Addresses6, NO_ADDRESS } from '../../tables/addresses6.js';
import { DEFAULT_TIMEOUTS, FIN_OUT, isClosed, type Timeouts, tcpTimeouts } from '../../tables/connection.js';
import { CLOSED } from '../../tables/flow-events.js';
import {
  FLOW_SHIFT,
  type Flows,
  INSIDE,
  IPV6_FLOW,
  NEXT_OF_PORT,
  NO_FLOW,
  OUT_KEY,
  OUT_PORTS,
  OWNER_SHIFT,
  STATE,
  STATE_MASK,
} from '../../tables/flows.js';
import { MAX_DOMAINS } from '../../tables/mac-table.js';
import { PortMappings, SPACE_ICMP, SPACE_TCP, SPACE_UDP, SPACES } from '../../tables/port-mappings.js';
import { swap16 } from '../../wire/ethernet.js';
import {
  PROTOCOL_DCCP,
  PROTOCOL_ICMP,
  PROTOCOL_SCTP,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  PROTOCOL_UDP_LITE,
} from '../../wire/ip.js';
import { words16 } from '../../wire/ipv6.js';

/** Whether an endpoint has one external port for all it talks to, or ports are shared by who talks to different ends. */
type Mapping = 'endpoint-independent' | 'endpoint-dependent';

export interface NatOptions {
  /** External address, four bytes; 16 with `addresses`. */
  readonly external: Uint8Array;
  /** Lowest and highest port that is given out, 1–65535. */
  readonly firstPort: number;
  readonly lastPort: number;
  readonly mapping: Mapping;
  readonly timeouts?: Timeouts;
  readonly random: (below: number) => number;
}

/** A port of the external address that stands for an endpoint inside, for whoever asks. */
export interface Published {
  /** TCP or UDP. */
  readonly protocol: number;
  readonly port: number;
  readonly domain: number;
  /** Four bytes, or 16. */
  readonly address: Uint8Array;
  readonly target: number;
  /** Number of the service that it stands for; then the address is the service's. */
  readonly service?: number;
}

/** Who chooses the backend of a flow to a published service, and counts it. */
export interface Balancing {
  /**
   * @param ends of the flow: the client's address, its port above the backend's, and the key.
   * @returns a backend, or a number below 0 when there is none.
   */
  backendFor(service: number, remote: number, outPorts: number, key: number): number;
  addressOf(backend: number): number;
  /** The backend of a service that has an address; below 0 when none has it. */
  backendAt(service: number, address: number): number;
  /** Begins to count a flow, whose STATE says its backend from now on. */
  begin(flow: number, backend: number): void;
  /** A flow goes, or its connection turns from a state into another. */
  leave(flow: number): void;
  turned(flow: number, before: number, after: number, refused: boolean): void;
  /** Seconds that an established connection of a flow may be silent. */
  idleOf(flow: number): number;
  /** A flow ends that was silent too long, or whose port goes: both ends of an open connection are made to reset themselves. */
  expired(flow: number): void;
}

/** Port space of a protocol, -1 when its ports, if it has any, are not translated. */
export function spaceOf(protocol: number): number {
  if (protocol === PROTOCOL_TCP) return SPACE_TCP;
  if (protocol === PROTOCOL_UDP) return SPACE_UDP;
  return protocol === PROTOCOL_ICMP ? SPACE_ICMP : -1;
}

/** Whether the first four bytes of a packet of the protocol are ports, which tell its flow. */
export function hasPorts(protocol: number): boolean {
  return (
    protocol === PROTOCOL_TCP ||
    protocol === PROTOCOL_UDP ||
    protocol === PROTOCOL_SCTP ||
    protocol === PROTOCOL_DCCP ||
    protocol === PROTOCOL_UDP_LITE
  );
}

export class NatTables {
  readonly ports: PortMappings;
  /** Owner of this NAT's flows, as their keys have it. */
  readonly ownerKey: number;
  /** External address as a little-endian load gives it; of IPv6 its number. */
  readonly external: number;
  readonly independent: boolean;
  readonly timeouts: Timeouts;
  /** Seconds of silence by state of a TCP connection. */
  readonly tcpTimeouts: Int32Array;
  /** 1 for ports that are published, by space and port. */
  readonly published = new Uint8Array(SPACES << 16);
  /** First flow of each external port. */
  readonly firstOfPort = new Int32Array(SPACES << 16);
  /** Service of each port that is published for one, plus one; null as long as there is none. */
  balanced: Int32Array | null = null;
  balancing: Balancing | null = null;
  /** 1 for domains whose packets keep their addresses: they are tracked, and enter only as answers. */
  readonly routed = new Uint8Array(MAX_DOMAINS);

  /**
   * @param owner number of this NAT among those who own flows in the table.
   * @param addresses numbers of the addresses, of a NAT of IPv6.
   */
  constructor(
    readonly flows: Flows,
    readonly owner: number,
    options: NatOptions,
    readonly addresses: Addresses6 | null = null,
  ) {
    const { external, firstPort, lastPort, random } = options;
    this.ownerKey = (owner << OWNER_SHIFT) | (addresses === null ? 0 : IPV6_FLOW);
    this.external = this.holdAddress(external);
    this.independent = options.mapping === 'endpoint-independent';
    this.timeouts = options.timeouts ?? DEFAULT_TIMEOUTS;
    this.tcpTimeouts = tcpTimeouts(this.timeouts);
    this.ports = new PortMappings(flows.seed, firstPort, lastPort, random);
  }

  /** Bytes of everything, whatever is in it. */
  get bytes(): number {
    const { flows, ports, published, firstOfPort } = this;
    return flows.bytes + ports.bytes + published.byteLength + firstOfPort.byteLength;
  }

  /** What an address is in flows; of IPv6 a number, which is held from now on. */
  private holdAddress(address: Uint8Array): number {
    return this.addresses === null ? word(address) : this.addresses.hold(words16(address), 0);
  }

  /**
   * What of an endpoint's addresses is of this NAT's family, as flows have it; undefined when neither was given, and
   * what no flow has when it has none.
   */
  numberOf(address: Uint8Array | undefined, address6: Uint8Array | undefined): number | undefined {
    if (address === undefined && address6 === undefined) return undefined;
    if (this.addresses === null) return address === undefined ? NO_ADDRESS : word(address);
    return address6 === undefined ? NO_ADDRESS : this.addresses.find(words16(address6), 0);
  }

  /** @returns false when the port stands for another endpoint already, until that one's flows are over. */
  publish({ protocol, port, domain, address, target, service }: Published): boolean {
    const space = spaceOf(protocol);
    const endpoint = swap16(target) | ((domain + 1) << 16);
    const at = (space << 16) | port;
    if (this.published[at] === 1) return false;
    const inside = this.holdAddress(address);
    const same = this.ports.endpoint[at] === endpoint && this.ports.inside[at] === inside;
    if (!same && !this.ports.claim(space, inside, endpoint, port)) {
      this.addresses?.release(inside);
      return false;
    }
    this.ports.use(space, port);
    this.published[at] = 1;
    if (service !== undefined) (this.balanced ??= new Int32Array(SPACES << 16))[at] = service + 1;
    return true;
  }

  /** Takes back what was published, and ends its flows; both ends of open connections to a service hear of it. */
  unpublish({ protocol, port }: Published): void {
    const { words } = this.flows;
    const space = spaceOf(protocol);
    const at = (space << 16) | port;
    if (this.published[at] === 0) return;
    const inside = this.ports.inside[at];
    const endpoint = this.ports.endpoint[at];
    let next = NO_FLOW;
    for (let flow = this.firstOfPort[at]; flow !== NO_FLOW; flow = next) {
      const entry = flow << FLOW_SHIFT;
      next = words[entry + NEXT_OF_PORT];
      // Where ports are shared, others may have flows at it.
      const its = (words[entry + OUT_PORTS] & 0xffff) | (words[entry + OUT_KEY] & ~0xffff);
      const mine = words[entry + INSIDE] === inside || (this.balanced?.[at] ?? 0) !== 0;
      if (!mine || its !== endpoint) continue;
      const isOpen = (words[entry + STATE] & STATE_MASK) >= FIN_OUT;
      if (isOpen && words[entry + STATE] > STATE_MASK) this.balancing?.expired(flow);
      this.flows.end(flow);
    }
    this.published[at] = 0;
    if (this.balanced !== null) this.balanced[at] = 0;
    this.ports.release(space, port);
    this.addresses?.release(inside);
  }
}

/**
 * Whether a flow makes way for a connection that is opened over its ports, since its own to a service has ended: then it
 * goes, and a backend is chosen for the new one as for any other.
 */
export function makesWay(flows: Flows, flow: number): boolean {
  const state = flows.words[(flow << FLOW_SHIFT) + STATE];
  if (state <= STATE_MASK || !isClosed(state & STATE_MASK)) return false;
  flows.end(flow, CLOSED);
  return true;
}

/** Four bytes of an address as a little-endian load gives them. */
export function word(address: Uint8Array): number {
  return address[0] | (address[1] << 8) | (address[2] << 16) | (address[3] << 24);
}
