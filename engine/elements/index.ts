/**
 * The elements by name: what `weft replay --through` and `weft bench` build their chains of. A new element is one
 * line in ELEMENTS and a definition that says how it stands between two others when a capture is replayed.
 *
 * In a chain every output of an element leads to the next one, and a frame is never copied: each is delivered
 * once or dropped with a reason.
 */
import { Batch, type Consumer, type Context, Drops } from '../graph.js';
import type { MarkIntent } from '../intent.js';
import { NO_FRAME } from '../memory/frames.js';
import type { Addresses6 } from '../tables/addresses6.js';
import type { Associations } from '../tables/associations.js';
import { DEFAULT_TIMEOUTS } from '../tables/connection.js';
import type { Domains } from '../tables/domains.js';
import type { Flows } from '../tables/flows.js';
import type { MacTable } from '../tables/mac-table.js';
import type { Neighbours } from '../tables/neighbours.js';
import type { Services } from '../tables/services.js';
import type { LocalVtep, Vteps } from '../tables/vteps.js';
import { createBalancer } from './balancer.js';
import { createBalancerV6 } from './balancer-v6.js';
import { createBridge } from './bridge.js';
import { createEspDecrypt } from './esp-decrypt.js';
import { createEspEncrypt } from './esp-encrypt.js';
import { createMarker } from './mark.js';
import {
  createBothFamilies,
  createTwoSidedNat,
  createTwoSidedNatV6,
  type InsidePrefix,
} from './nat/one-stream.js';
import type { NatTables } from './nat/tables.js';
import { createVxlanDecap } from './vxlan-decap.js';
import { createVxlanEncap } from './vxlan-encap.js';

/** What the elements of one chain share. */
export interface ChainTools {
  readonly context: Context;
  readonly domains: Domains;
  readonly stations: MacTable;
  readonly vteps: Vteps;
  /** This end of the tunnel; its address also says which IP version is outside. */
  readonly local: LocalVtep;
  /** Refuse VXLAN packets with reserved bits set. */
  readonly strict: boolean;
  readonly associations: Associations;
  /** UDP port of encapsulated ESP, which is opened beside IP protocol 50; 0 when there is none. */
  readonly espPort: number;
  /** Seal as IP protocol 50 although there is a port. */
  readonly rawEsp: boolean;
  /** Absent in a chain without `nat`. */
  readonly nat: ChainNat | undefined;
  /** Absent in a chain without `balance` and `mark`. */
  readonly balance: ChainBalance | undefined;
}

/** What the `nat` of a chain takes for inside, and what it knows. */
interface ChainNat {
  readonly tables: NatTables;
  readonly inside: readonly InsidePrefix[];
  /** The same of IPv6; undefined where that is not translated. */
  readonly v6: ChainNatV6 | undefined;
}

interface ChainNatV6 {
  readonly tables: NatTables;
  readonly addresses: Addresses6;
  readonly inside: readonly InsidePrefix[];
}

/** Services of a chain, and what marks lead to them. */
interface ChainBalance {
  readonly services: Services;
  readonly marks: readonly MarkIntent[];
  /** Those of `nat` where the chain has it. */
  readonly flows: Flows;
  /** Null where no service is of IPv6. */
  readonly addresses: Addresses6 | null;
  /** The backends. */
  readonly neighbours: Neighbours;
}

export interface ChainElement extends Consumer {
  readonly drops: Drops;
  /** Of one that is several elements. */
  readonly moreDrops?: readonly Drops[];
  /** Lets go of frames that wait for others to come; called when none will. */
  finish?(): void;
  /** Lets go of some of what is over by the clock of the context. */
  expire?(): void;
}

export interface ElementDefinition {
  readonly summary: string;
  /** What it does to the outer headers of the tunnel, or that it needs them to be there. */
  readonly outer: 'keeps' | 'adds' | 'removes' | 'needs';
  build(tools: ChainTools, out: Batch): ChainElement;
}

/** The port of a chain's bridge that is every domain's flood list, and no frame's ingress. */
export const CHAIN_PORT = 65535;

export const ELEMENTS: ReadonlyMap<string, ElementDefinition> = new Map<string, ElementDefinition>([
  ['bridge', { summary: 'learning switch', outer: 'keeps', build: buildBridge }],
  ['vxlan-encap', { summary: 'puts frames into VXLAN', outer: 'adds', build: buildEncap }],
  ['esp-encrypt', { summary: 'puts outer packets into ESP', outer: 'needs', build: buildEncrypt }],
  ['esp-decrypt', { summary: 'opens ESP packets', outer: 'needs', build: buildDecrypt }],
  ['vxlan-decap', { summary: 'takes VXLAN packets apart', outer: 'removes', build: buildDecap }],
  ['nat', { summary: 'masquerades IPv4 and IPv6 behind one address each', outer: 'keeps', build: buildNat }],
  ['mark', { summary: 'gives packets firewall marks', outer: 'keeps', build: buildMark }],
  ['balance', { summary: 'gives packets of services to backends', outer: 'keeps', build: buildBalance }],
]);

function buildBridge({ context, stations, domains }: ChainTools, out: Batch): ChainElement {
  const ports = new Array<Batch>(CHAIN_PORT + 1).fill(out);
  const group = new FloodAtOnce(out.next);
  const bridge = createBridge(context, stations, domains, { ports, tunnel: out, group });
  group.flood = bridge.flood;
  return bridge;
}

/** Group frames would overtake or be overtaken if they waited for the end of the batch: a replay keeps the order. */
class FloodAtOnce extends Batch {
  flood: (frame: number) => void = () => {};

  override push(frame: number): void {
    this.flood(frame);
  }
}

function buildEncap({ context, domains, vteps, local }: ChainTools, out: Batch): ChainElement {
  const v6 = local.address.length === 16;
  return createVxlanEncap(context, domains, vteps, { v6, checksum: true }, out);
}

function buildDecap({ context, domains, vteps, local, strict }: ChainTools, out: Batch): ChainElement {
  return createVxlanDecap(context, domains, vteps, { local, strict, addressed: false }, out);
}

function buildEncrypt(tools: ChainTools, out: Batch): ChainElement {
  const { context, associations, vteps, local } = tools;
  const v6 = local.address.length === 16;
  const udpPort = tools.rawEsp ? 0 : tools.espPort;
  return createEspEncrypt(context, associations, vteps, { v6, udpPort, shared: false, checksum: true }, out);
}

function buildDecrypt({ context, associations, local, espPort }: ChainTools, out: Batch): ChainElement {
  return createEspDecrypt(
    context,
    associations,
    { local, addressed: false, udpPort: espPort, shared: false },
    out,
  );
}

function buildNat({ context, nat }: ChainTools, out: Batch): ChainElement {
  if (nat === undefined) throw new TypeError('a chain with nat needs its tables');
  const { tables, inside, v6 } = nat;
  const v4 = createTwoSidedNat(context, tables, inside, out);
  if (v6 === undefined) return v4;
  return createBothFamilies(
    context,
    v4,
    createTwoSidedNatV6(context, v6.tables, v6.addresses, v6.inside, out),
  );
}

function buildMark({ context, balance }: ChainTools, out: Batch): ChainElement {
  const marker = createMarker(context, {
    process({ frames, count }) {
      for (let k = 0; k < count; k++) out.push(frames[k]);
    },
  });
  marker.set(balance!.marks);
  return { drops: new Drops(context, 'mark', []), process: marker.process };
}

/** A chain hands on what it got and makes no frames: who is refused hears no ICMP error. */
function buildBalance({ context, balance }: ChainTools, out: Batch): ChainElement {
  const { addresses, ...known } = balance!;
  const errors = { make: () => NO_FRAME };
  const shared = { ...known, errors, timeouts: DEFAULT_TIMEOUTS, outside: () => out, inside: out };
  const v6 = addresses && createBalancerV6(context, { ...shared, addresses }, out);
  const balancer = createBalancer(context, { ...shared, v6: v6?.packet }, out);
  return {
    drops: balancer.drops,
    ...(v6 && { moreDrops: [v6.drops] }),
    process: balancer.process,
    finish() {
      balancer.flush();
      v6?.flush();
    },
    expire() {
      balancer.age();
      v6?.age();
    },
  };
}
