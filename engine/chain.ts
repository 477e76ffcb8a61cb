/**
 * A chain of elements over frames that lie in memory: source → elements → sink, the same elements that a live
 * engine runs. What a replay and the benchmarks stand on.
 *
 * Holds at any time between passes, and `totals` checks it: frames in = delivered + dropped, and no slot in use.
 * Time stands still in a chain unless `age` moves it: stations and VTEPs do not age.
 */
import { native } from '../native-bindings/index.js';
import { Counters } from './counters.js';
import { CHAIN_PORT, type ChainElement, type ChainTools, ELEMENTS } from './elements/index.js';
import type { InsidePrefix } from './elements/nat/one-stream.js';
import { type NatOptions, NatTables } from './elements/nat/tables.js';
import { Batch, Context, Stages } from './graph.js';
import type { AssociationIntent, MarkIntent, ServiceIntent } from './intent.js';
import { type FrameMemory, REMOTE } from './memory/frames.js';
import { createCaptureSink } from './ports/capture-sink.js';
import { createCaptureSource, type FrameList } from './ports/capture-source.js';
import { Addresses6, addressesFor } from './tables/addresses6.js';
import { AssociationState, associationStateBytes } from './tables/association-state.js';
import { Associations } from './tables/associations.js';
import { CARRY_VLAN, Domains, LEARN } from './tables/domains.js';
import { Flows } from './tables/flows.js';
import { MAX_DOMAINS, MacTable } from './tables/mac-table.js';
import { Neighbours } from './tables/neighbours.js';
import { MAX_BACKENDS, MAX_SERVICES, Services } from './tables/services.js';
import { type LocalVtep, Vteps } from './tables/vteps.js';

/** A replay repeats exactly. */
const SEED = 0x5eed;
/** Milliseconds the clock of a chain shows. */
const NOW = 1000;

export interface ChainSetup {
  /** Names out of ELEMENTS, at least one. */
  readonly names: readonly string[];
  readonly frames: FrameMemory;
  readonly list: FrameList;
  /** VNIs of the domains; the frames of the list belong to the first. At most MAX_DOMAINS, each once. */
  readonly vnis: readonly number[];
  /** Whether tagged frames may be inside VXLAN (RFC 7348, section 6.1). */
  readonly carryVlan: boolean;
  readonly strict: boolean;
  readonly local: LocalVtep;
  /** Address of the VTEP every frame is sent to; of the same IP version as `local`. */
  readonly remote: Uint8Array;
  /** Stations each bridge must be able to hold. */
  readonly stations: number;
  /** VTEPs that may be learned. */
  readonly vteps: number;
  /**
   * Whose keys lie in the addon already. A pass begins with windows in which nothing was received, unless the chain
   * opens what it sealed itself: those numbers go on from pass to pass.
   */
  readonly associations?: readonly AssociationIntent[];
  /** UDP port of encapsulated ESP, which is opened beside IP protocol 50; 0, the default, when there is none. */
  readonly espPort?: number;
  /** Seal as IP protocol 50 although there is a port. */
  readonly rawEsp?: boolean;
  /** Absent: CHAIN_NAT. */
  readonly nat?: ChainNatSetup;
  /** Absent: no services. */
  readonly balance?: ChainBalanceSetup;
}

export interface ChainBalanceSetup {
  readonly services: readonly ServiceIntent[];
  readonly marks: readonly MarkIntent[];
  /** Of a chain that has no `nat`, whose flows it shares. */
  readonly maxFlows: number;
}

/** No services at all. */
export const CHAIN_BALANCE: ChainBalanceSetup = { services: [], marks: [], maxFlows: 65536 };

export interface ChainNatSetup extends Pick<NatOptions, 'external' | 'firstPort' | 'lastPort' | 'mapping'> {
  readonly maxFlows: number;
  readonly inside: readonly InsidePrefix[];
  /** External address of IPv6, 16 bytes, and what is inside there; absent where IPv6 is not translated. */
  readonly v6?: { readonly external: Uint8Array; readonly inside: readonly InsidePrefix[] };
}

/** Private addresses (RFC 1918) are inside; outside they are one of a documentation prefix (RFC 5737). */
export const CHAIN_NAT: ChainNatSetup = {
  external: Uint8Array.of(203, 0, 113, 1),
  firstPort: 32768,
  lastPort: 60999,
  maxFlows: 65536,
  mapping: 'endpoint-independent',
  inside: [
    { address: Uint8Array.of(10, 0, 0, 0), length: 8 },
    { address: Uint8Array.of(172, 16, 0, 0), length: 12 },
    { address: Uint8Array.of(192, 168, 0, 0), length: 16 },
  ],
};

interface ChainTotals {
  /** Frames and bytes handed to the first element. */
  readonly frames: number;
  readonly bytes: number;
  readonly delivered: number;
  /** `element: reason` → frames, in the order of the chain, without zeros. */
  readonly drops: Record<string, number>;
  /** Flows that `nat` and `balance` know. */
  readonly flows: number;
}

/** Sees every frame of a pass; the frame's bytes are at `off` and `len` during the call. */
export interface ChainObserver {
  /** @param index of the frame in the list. */
  delivered(frame: number, index: number): void;
  dropped(frame: number, index: number, element: string, reason: string): void;
  /** After each breath, when no frame is on its way. */
  breath(): void;
}

export interface Chain {
  readonly tools: ChainTools;
  /** Runs the whole list through the chain once. */
  pass(): void;
  /** The same, showing each frame. */
  observe(observer: ChainObserver): void;
  /** Moves the clock on, and has elements let go, once, of what is over. */
  age(seconds: number): void;
  /** @throws Error when frames or slots are not accounted for: a bug of an element. */
  totals(): ChainTotals;
}

export function createChain(setup: ChainSetup): Chain {
  const { frames, list, names } = setup;
  const context = new Context(frames, new Counters(), SEED);
  context.setTime(NOW);
  const tools = chainTools(setup, context);
  native.attach(frames.u8, frames.off, frames.len, frames.freeLarge);

  const sink = createCaptureSink(context);
  const out = new Batch(sink);
  const batches = [out];
  const elements: ChainElement[] = [];
  for (let i = names.length - 1; i >= 0; i--) {
    const definition = ELEMENTS.get(names[i]);
    if (definition === undefined) throw new RangeError(`there is no element ${names[i]}`);
    // Bridges before and behind a tunnel are those of two hosts, and see each station at another place.
    const far = names[i] === 'bridge' && names.indexOf('bridge') < i;
    const stations = far ? new MacTable(setup.stations, SEED) : tools.stations;
    const element = definition.build({ ...tools, stations }, batches[0]);
    elements.unshift(element);
    batches.unshift(new Batch(element));
  }
  const input = batches[0];
  const stages = new Stages();
  for (const batch of batches) stages.add(batch);
  const source = createCaptureSource(context, list, 0);

  const inbound = opensItsOwn(names)
    ? []
    : (setup.associations ?? []).filter(({ direction }) => direction === 'in');

  /** The same packets come again in each pass, and are no replays. */
  function rewind(): void {
    source.rewind();
    for (const { slot } of inbound) tools.associations.state.begin(slot);
  }

  function pass(): void {
    rewind();
    while (source.receive(input) > 0) stages.run();
    finish();
  }

  function finish(): void {
    for (const element of elements) {
      element.finish?.();
      stages.run();
    }
  }

  function observe(observer: ChainObserver): void {
    /** Index in the list of the frame in each slot. */
    const origin = new Uint32Array(frames.small + frames.large);
    context.dropObserver = (frame, element, reason) =>
      observer.dropped(frame, origin[frame], element, reason);
    out.next = {
      process(batch) {
        for (let k = 0; k < batch.count; k++) observer.delivered(batch.frames[k], origin[batch.frames[k]]);
        sink.process(batch);
      },
    };
    rewind();
    let index = 0;
    for (let handed = source.receive(input); handed > 0; handed = source.receive(input)) {
      for (let k = 0; k < handed; k++) origin[input.frames[k]] = index++;
      stages.run();
      observer.breath();
    }
    finish();
    observer.breath();
    context.dropObserver = null;
    out.next = sink;
  }

  function totals(): ChainTotals {
    const { frames: handed, bytes } = source.totals();
    const delivered = sink.delivered();
    const drops: Record<string, number> = {};
    let dropped = 0;
    for (const own of elements.flatMap(({ drops: first, moreDrops = [] }) => [first, ...moreDrops])) {
      for (const name of own.names) {
        const count = own.count(name);
        if (count === 0) continue;
        const key = `${own.owner}: ${name}`;
        drops[key] = (drops[key] ?? 0) + count;
        dropped += count;
      }
    }
    if (handed !== delivered + dropped || handed % Math.max(list.count, 1) !== 0) {
      throw new Error(
        `internal error: frames are not accounted for: ${handed} in of a list of ${list.count}, ${delivered} delivered, ${dropped} dropped`,
      );
    }
    if (frames.inUse !== 0)
      throw new Error(`internal error: ${frames.inUse} slots are in use after the replay`);
    frames.audit();
    return { frames: handed, bytes, delivered, drops, flows: flowsOf(tools)?.size ?? 0 };
  }

  function age(seconds: number): void {
    context.setTime(context.now + seconds * 1000);
    for (const element of elements) element.expire?.();
  }

  return { tools, pass, observe, age, totals };
}

/** Whether what the chain opens is what it sealed. */
export function opensItsOwn(names: readonly string[]): boolean {
  const sealing = names.indexOf('esp-encrypt');
  return sealing >= 0 && names.indexOf('esp-decrypt') > sealing;
}

function chainTools(setup: ChainSetup, context: Context): ChainTools {
  const { vnis, local, remote, strict, carryVlan, stations } = setup;
  if (vnis.length === 0 || vnis.length > MAX_DOMAINS)
    throw new RangeError(`a chain has 1 to ${MAX_DOMAINS} VNIs, not ${vnis.length}`);
  if (local.address.length !== remote.length)
    throw new RangeError('the local and the remote VTEP must be of one IP version');
  const domains = new Domains();
  vnis.forEach((vni, domain) => {
    domains.set(domain, { vni, flags: LEARN | (carryVlan ? CARRY_VLAN : 0), ageing: 0 });
    domains.addPort(domain, CHAIN_PORT);
  });
  const vteps = new Vteps(Math.min(setup.vteps + 1, 65535));
  // Nothing in a chain writes another destination, so the slots keep this one.
  context.frames.dest.fill(REMOTE | vteps.add(remote, true, local, 0));
  return {
    context,
    domains,
    stations: new MacTable(stations, SEED),
    vteps,
    local,
    strict,
    associations: chainAssociations(setup, vteps),
    espPort: setup.espPort ?? 0,
    rawEsp: setup.rawEsp ?? false,
    ...tracking(setup),
  };
}

function flowsOf({ nat, balance }: Pick<ChainTools, 'nat' | 'balance'>): Flows | undefined {
  return nat?.tables.flows ?? balance?.flows;
}

/** Tables of some megabytes, where an element needs them. */
function tracking(setup: ChainSetup): Pick<ChainTools, 'nat' | 'balance'> {
  const nat = setup.names.includes('nat') ? chainNat(setup) : undefined;
  const balanced = setup.names.includes('balance') || setup.names.includes('mark');
  return { nat, balance: balanced ? chainBalance(setup, nat) : undefined };
}

function chainBalance(
  { balance = CHAIN_BALANCE }: ChainSetup,
  nat: ChainTools['nat'],
): ChainTools['balance'] {
  const { maxFlows, marks } = balance;
  const flows = nat?.tables.flows ?? new Flows(maxFlows, SEED, NOW / 1000);
  const isV6 = balance.services.some(({ address }) => address.length === 16);
  const own = isV6 ? new Addresses6(addressesFor(flows.capacity), SEED) : null;
  const addresses = nat?.v6?.addresses ?? own;
  const services = new Services(MAX_SERVICES, MAX_BACKENDS, addresses);
  services.set(balance.services, () => {});
  services.schedulers.rebuild(Number.POSITIVE_INFINITY);
  const neighbours = new Neighbours(SEED);
  for (const { domain, backends } of balance.services)
    for (const { address, mac } of backends) neighbours.set(domain, address, mac);
  return { services, neighbours, flows, addresses, marks };
}

function chainNat({ nat = CHAIN_NAT }: ChainSetup): ChainTools['nat'] {
  let state = SEED;
  const random = (below: number): number => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return (state >>> 8) % below;
  };
  const flows = new Flows(nat.maxFlows, SEED, NOW / 1000);
  const tables = new NatTables(flows, 0, { ...nat, random });
  if (nat.v6 === undefined) return { tables, inside: nat.inside, v6: undefined };
  const { external, inside } = nat.v6;
  const addresses = new Addresses6(addressesFor(nat.maxFlows), SEED);
  const v6 = { tables: new NatTables(flows, 0, { ...nat, external, random }, addresses), addresses, inside };
  return { tables, inside: nat.inside, v6 };
}

function chainAssociations(setup: ChainSetup, vteps: Vteps): Associations {
  const intents = setup.associations ?? [];
  const slots = Math.max(0, ...intents.map(({ slot }) => slot)) + 1;
  const state = new AssociationState(new SharedArrayBuffer(associationStateBytes(slots)));
  const associations = new Associations(state, vteps.capacity);
  for (const { slot } of intents) state.begin(slot);
  associations.set(intents, (address) => {
    const vtep = vteps.add(address, true, setup.local, 0);
    if (vtep < 0) throw new RangeError(`more than ${vteps.capacity} VTEPs`);
    return vtep;
  });
  return associations;
}
