/** What a NAT knows: its flows, the ports of its external address, and what it publishes. */

import { DEFAULT_TIMEOUTS, ESTABLISHED, type Timeouts, TWO_SIDED } from '../../tables/connection.js';
import { Flows } from '../../tables/flows.js';
import { PortMappings, SPACE_ICMP, SPACE_TCP, SPACE_UDP } from '../../tables/port-mappings.js';
import { PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP } from '../../wire/ip.js';

/** Which remote ends may answer to a mapped port. */
export type Mapping = 'endpoint-independent' | 'endpoint-dependent';

export interface NatOptions {
  /** External address, four bytes. */
  readonly external: Uint8Array;
  /** Lowest and highest port that is given out. */
  readonly firstPort: number;
  readonly lastPort: number;
  readonly maxFlows: number;
  readonly mapping: Mapping;
  readonly timeouts?: Timeouts;
  readonly seed: number;
  /** Second by the clock of the context. */
  readonly now: number;
  readonly random: (below: number) => number;
}

/** A port of the external address that stands for an endpoint inside, for whoever asks. */
export interface Published {
  /** TCP, UDP or SCTP. */
  readonly protocol: number;
  readonly port: number;
  readonly domain: number;
  /** Four bytes. */
  readonly address: Uint8Array;
  readonly target: number;
}

/** Port space of a protocol, -1 when it has none. */
export function spaceOf(protocol: number): number {
  if (protocol === PROTOCOL_TCP) return SPACE_TCP;
  if (protocol === PROTOCOL_UDP) return SPACE_UDP;
  return protocol === PROTOCOL_ICMP ? SPACE_ICMP : -1;
}

export class NatTables {
  readonly flows: Flows;
  readonly ports: PortMappings;
  /** External address as a little-endian load gives it. */
  readonly external: number;
  readonly independent: boolean;
  readonly timeouts: Timeouts;
  /** Seconds of silence by state of a TCP connection. */
  readonly tcpTimeouts: Int32Array;
  /** 1 for ports that are published, by space and port. */
  readonly published = new Uint8Array(3 << 16);
  /** First flow of each external port, plus one. */
  readonly firstOfPort = new Int32Array(3 << 16);

  constructor(options: NatOptions) {
    const { external, seed, now, maxFlows, firstPort, lastPort, random } = options;
    this.external = word(external);
    this.independent = options.mapping === 'endpoint-independent';
    this.timeouts = options.timeouts ?? DEFAULT_TIMEOUTS;
    const { established, transitory } = this.timeouts;
    this.tcpTimeouts = Int32Array.from({ length: TWO_SIDED + 1 }, (_, state) =>
      state === ESTABLISHED ? established : transitory,
    );
    this.flows = new Flows(maxFlows, seed, now);
    this.ports = new PortMappings(seed, firstPort, lastPort, random);
  }
}

export function word(address: Uint8Array): number {
  return address[0] | (address[1] << 8) | (address[2] << 16) | (address[3] << 24);
}
