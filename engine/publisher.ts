/** The published ports of an uplink, and the end of flows whose networks or endpoints are gone. Runs between breaths. */

import { type NatTables, spaceOf } from './elements/nat/tables.js';
import type { NeighbourIntent, PublishIntent } from './intent.js';
import { NO_ADDRESS } from './tables/addresses6.js';
import { FLOW_SHIFT, INSIDE, NO_FLOW, OUT_KEY, OWNER_KEY, STATE, STATE_MASK } from './tables/flows.js';

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

  /**
   * Ends all flows of the domains, and those of endpoints: whoever gets an address next is not to get with it what
   * others still say to who had it. Flows of services end with their backends, in ways of their own.
   */
  endGone(
    domains: ReadonlySet<number>,
    endpoints: readonly Pick<NeighbourIntent, 'domain' | 'address'>[],
  ): void {
    const { tables } = this;
    const { words } = tables.flows;
    const places = new Set(
      endpoints.flatMap(({ domain, address }) => {
        const v4 = address.length === 4;
        const inside = tables.numberOf(v4 ? address : undefined, v4 ? undefined : address);
        return inside === undefined || inside === NO_ADDRESS ? [] : placeOf(domain, inside);
      }),
    );
    if (domains.size + places.size === 0) return;
    this.endWhere((at) => {
      const domain = (words[at + OUT_KEY] >>> 16) - 1;
      if (domains.has(domain)) return true;
      return words[at + STATE] <= STATE_MASK && places.has(placeOf(domain, words[at + INSIDE]));
    });
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

/** One number of a domain and what flows have for an address. */
function placeOf(domain: number, inside: number): number {
  return domain * 2 ** 32 + (inside >>> 0);
}
