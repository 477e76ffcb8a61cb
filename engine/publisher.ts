/** The published ports of an uplink, and the end of flows whose networks are gone. Runs between breaths. */

import { type NatTables, spaceOf } from './elements/nat/tables.js';
import type { PublishIntent } from './intent.js';
import { FLOW_SHIFT, INSIDE, NO_FLOW, OUT_KEY, OWNER_KEY } from './tables/flows.js';

/** Which flows are meant. */
export interface FlowFilter {
  readonly domain?: number;
  /** Four bytes, and those of IPv6. */
  readonly address?: Uint8Array;
  readonly address6?: Uint8Array;
}

export class Publisher {
  private current: readonly PublishIntent[] = [];

  constructor(private readonly tables: NatTables) {}

  /** Makes the published ports what the list says; flows of those that go end. @throws Error for one taken twice. */
  set(next: readonly PublishIntent[]): void {
    const wanted = new Set(next.map(keyOf));
    const there = new Set(this.current.map(keyOf));
    for (const old of this.current) if (!wanted.has(keyOf(old))) this.tables.unpublish(old);
    for (const rule of next) if (!there.has(keyOf(rule))) this.publish(rule);
    this.current = next;
  }

  private publish(rule: PublishIntent): void {
    if (this.tables.publish(rule)) return;
    // Some endpoint was given the port for what it sends: who publishes goes first.
    const at = (spaceOf(rule.protocol) << 16) | rule.port;
    const { firstOfPort, flows } = this.tables;
    for (let flow = firstOfPort[at]; flow !== NO_FLOW; flow = firstOfPort[at]) flows.end(flow);
    if (!this.tables.publish(rule)) throw new Error(`port ${rule.port} is published twice`);
  }

  /** Ends all flows of the domains. */
  endDomains(domains: ReadonlySet<number>): void {
    if (domains.size === 0) return;
    const { flows } = this.tables;
    this.endWhere((at) => domains.has((flows.words[at + OUT_KEY] >>> 16) - 1));
  }

  /** Ends the flows of an endpoint, or, without an address, of a domain, or, without either, all. Returns how many. */
  flush({ domain, address, address6 }: FlowFilter): number {
    const { words } = this.tables.flows;
    const inside = this.tables.numberOf(address, address6);
    return this.endWhere(
      (at) =>
        (domain === undefined || (words[at + OUT_KEY] >>> 16) - 1 === domain) &&
        (inside === undefined || words[at + INSIDE] === inside),
    );
  }

  /** Ends the flows of which `match` says so, told the first word of each. Returns how many. */
  endWhere(match: (at: number) => boolean): number {
    const { flows, ownerKey } = this.tables;
    let ended = 0;
    flows.forEach((flow) => {
      const at = flow << FLOW_SHIFT;
      const mine = (flows.words[at + OUT_KEY] & OWNER_KEY) === ownerKey;
      if (!mine || !match(at)) return;
      flows.end(flow);
      ended++;
    });
    return ended;
  }
}

function keyOf({ protocol, port, domain, address, target, service }: PublishIntent): string {
  return `${protocol} ${port} ${domain} ${address.join('.')} ${target} ${service}`;
}
