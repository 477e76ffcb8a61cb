/** The published ports of an uplink, and the end of flows whose networks are gone. Runs between breaths. */

import { type NatTables, spaceOf } from './elements/nat/tables.js';
import type { Nat } from './elements/nat.js';
import type { PublishIntent } from './intent.js';
import { FLOW_SHIFT, NO_FLOW, OUT_KEY } from './tables/flows.js';

export class Publisher {
  private current: readonly PublishIntent[] = [];

  constructor(
    private readonly tables: NatTables,
    private readonly nat: Nat,
  ) {}

  /** Makes the published ports what the list says; flows of those that go end. @throws Error for one taken twice. */
  set(next: readonly PublishIntent[]): void {
    const wanted = new Set(next.map(keyOf));
    const there = new Set(this.current.map(keyOf));
    for (const old of this.current)
      if (!wanted.has(keyOf(old))) this.nat.unpublish(old);
    for (const rule of next) if (!there.has(keyOf(rule))) this.publish(rule);
    this.current = next;
  }

  private publish(rule: PublishIntent): void {
    if (this.tables.publish(rule)) return;
    // Some endpoint was given the port for what it sends: who publishes goes first.
    const at = (spaceOf(rule.protocol) << 16) | rule.port;
    const { firstOfPort } = this.tables;
    for (let flow = firstOfPort[at]; flow !== NO_FLOW; flow = firstOfPort[at]) this.nat.end(flow);
    if (!this.tables.publish(rule)) throw new Error(`port ${rule.port} is published twice`);
  }

  /** Ends all flows of the domains. */
  endDomains(domains: ReadonlySet<number>): void {
    if (domains.size === 0) return;
    const { flows } = this.tables;
    for (let flow = 0; flow < flows.capacity; flow++) {
      const key = flows.words[(flow << FLOW_SHIFT) + OUT_KEY];
      if (key !== 0 && domains.has((key >>> 16) - 1)) this.nat.end(flow);
    }
  }
}

function keyOf({ protocol, port, domain, address, target }: PublishIntent): string {
  return `${protocol} ${port} ${domain} ${address.join('.')} ${target}`;
}
