/** What `weft bench` measures. A new scenario of the engine is one entry in the list. */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { PerformanceObserver } from 'node:perf_hooks';
import { setImmediate as turn } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { getHeapStatistics } from 'node:v8';
import { chainOver, loadCaptures } from '../control/replay.js';
import type { Chain } from '../engine/chain.js';
import { SCHEDULERS, type SchedulerName } from '../engine/tables/backends.js';
import type { Flows } from '../engine/tables/flows.js';
import { type BalanceTraffic, balanceChain } from './balance.js';
import { type NatTraffic, natChain } from './nat.js';
import { chainOverTraffic, type EspTraffic, IMIX, type Traffic } from './traffic.js';

/** One round of one scenario. */
export interface Measurement {
  readonly frames: number;
  readonly bytes: number;
  /** Wall clock, and CPU time of the process. */
  readonly seconds: number;
  readonly cpuSeconds: number;
  /** Further figures by name, with their unit in the name. */
  readonly extra: Readonly<Record<string, number>>;
}

export interface Scenario {
  readonly name: string;
  readonly group: string;
  /** Mpps that the project promises on a quiet machine. */
  readonly floor?: number;
  /** Scenario whose ns per frame this one is compared with. */
  readonly against?: string;
  /** Measured once however many rounds are asked for. */
  readonly once?: boolean;
  /** Runs in a process of its own. @param seconds to measure for, after warming up. */
  measure(seconds: number): Promise<Measurement>;
}

const BRIDGE = ['bridge'];
const OUT = ['bridge', 'vxlan-encap'];
const IN = ['vxlan-decap', 'bridge'];
const PLAIN = { lengths: [64], stations: 256, frames: 4096, v6: false };
/** As many frames in every scenario of the group, so that only the table differs. */
const MANY = 1 << 20;
/** So many that clearing the windows of 500 associations before each pass costs but 2 ns a frame. */
const ESP_MANY = 1 << 16;
const WARM_SECONDS = 0.4;
const HEAP_FRAMES = 100e6;
/** Seconds; every flow is over by then. */
const LONG_SILENCE = 8000;

const SYNTHETIC: readonly Scenario[] = [
  synthetic('core', 'bridge', { ...PLAIN, chain: BRIDGE }, { floor: 30 }),
  synthetic('core', 'bridge,vxlan-encap', { ...PLAIN, chain: OUT }, { floor: 18 }),
  synthetic('core', 'vxlan-decap,bridge', { ...PLAIN, chain: IN }, { floor: 18 }),
  ...(
    [
      ['512', [512]],
      ['1500', [1500]],
      ['imix', IMIX],
    ] as const
  ).flatMap(([size, lengths]) =>
    [BRIDGE, OUT, IN].map((chain) => synthetic('sizes', `${chain} ${size}`, { ...PLAIN, chain, lengths })),
  ),
  synthetic('ipv6', 'bridge,vxlan-encap ipv6', { ...PLAIN, chain: OUT, v6: true }),
  synthetic('ipv6', 'vxlan-decap,bridge ipv6', { ...PLAIN, chain: IN, v6: true }),
  ...[256, 100_000, 1_000_000].map((stations) =>
    synthetic(
      'tables',
      `bridge ${stations} MACs`,
      { ...PLAIN, chain: BRIDGE, stations, frames: MANY },
      { against: 'bridge 256 MACs' },
    ),
  ),
  ...espScenarios(),
  ...natScenarios(),
  ...balanceScenarios(),
  { name: 'heap', group: 'heap', once: true, measure: measureHeap },
];

/** Live benchmarks, over real interfaces, are no chains: they join in harness.ts, beside `micro`. */
export function scenarios(): Scenario[] {
  return [...SYNTHETIC, ...captureScenarios()];
}

/** What is sealed has the size that is named; see Traffic. */
function espScenarios(): Scenario[] {
  const usual: EspTraffic = { algorithm: 'aes-128-gcm-16', peers: 1 };
  const one = (name: string, more: Partial<Traffic>, figures: { floor?: number; against?: string } = {}) =>
    synthetic('esp', name, { ...PLAIN, chain: [name.split(' ')[0]], esp: usual, ...more }, figures);
  const ways = ['esp-encrypt', 'esp-decrypt'];
  const floors = [
    [64, 10],
    [512, 8],
    [1400, 6],
  ] as const;
  const variants = (label: string, esp: EspTraffic, sizes: readonly number[]) =>
    ways.flatMap((way) =>
      sizes.map((size) =>
        one(`${way} ${size} ${label}`, { lengths: [size], esp }, { against: `${way} ${size}` }),
      ),
    );
  return [
    ...ways.flatMap((way) =>
      floors.map(([size, floor]) => one(`${way} ${size}`, { lengths: [size] }, { floor })),
    ),
    ...variants('AES-256', { ...usual, algorithm: 'aes-256-gcm-16' }, [64, 512, 1400]),
    ...variants('OpenSSL', { ...usual, library: 'openssl' }, [64, 1400]),
    ...ways.flatMap((way) =>
      [1, 500].map((peers) =>
        one(
          `${way} ${2 * peers} SAs`,
          { frames: ESP_MANY, esp: { ...usual, peers } },
          { against: `${way} 2 SAs` },
        ),
      ),
    ),
    one('bridge,vxlan-encap,esp-encrypt imix', { chain: [...OUT, 'esp-encrypt'], lengths: IMIX }),
  ];
}

function natScenarios(): readonly Scenario[] {
  const floors = [
    [1024, 14],
    [33_696, 9],
    [1_000_000, 4],
  ] as const;
  return [
    ...floors.flatMap(([flows, floor]): Scenario[] => [
      established(`nat ${flows} flows`, { flows, frames: Math.max(flows, 4096), inward: false }, floor),
      established(`nat ${flows} flows, from outside`, { flows, frames: Math.max(flows, 4096), inward: true }),
    ]),
    { name: 'nat new flows', group: 'nat', floor: 1.5, measure: newNatFlows },
  ];
}

function balanceScenarios(): readonly Scenario[] {
  const usual: BalanceTraffic = {
    ...{ chain: ['balance'], flows: 1024, frames: 4096, lengths: [64], services: 1, backends: 10 },
    ...{ scheduler: 'rr', what: 'to-backends' },
  };
  const one = (
    name: string,
    more: Partial<BalanceTraffic>,
    figures: { floor?: number; against?: string },
  ) => ({
    ...{ name: `balance ${name}`, group: 'balance', ...figures },
    measure: async (seconds: number) => measureChain(balanceChain({ ...usual, ...more }), seconds),
  });
  const million = { flows: 1_000_000, frames: 1_000_000 };
  const some = { flows: 16_384, frames: 16_384 };
  const many = { services: 10_000, backends: 100_000 };
  const fresh = (name: string, scheduler: SchedulerName, more: Partial<BalanceTraffic>) => ({
    ...{ name: `balance new flows ${name}`, group: 'balance', floor: 1.2 },
    measure: (seconds: number) => {
      const chain = balanceChain({ ...usual, ...million, scheduler, what: 'new', ...more });
      return measureNewFlows(chain, chain.tools.balance!.flows, seconds);
    },
  });
  return [
    one('1024 flows', {}, { floor: 12 }),
    one('1024 flows, from backends', { what: 'from-backends' }, {}),
    one('1000000 flows', million, { floor: 4 }),
    one('1000000 flows, from backends', { ...million, what: 'from-backends' }, {}),
    one('1 service', some, {}),
    one('10000 services', { ...some, ...many }, { against: 'balance 1 service' }),
    ...SCHEDULERS.map((scheduler) => fresh(scheduler, scheduler, {})),
    { ...fresh('10000 services', 'rr', many), against: 'balance new flows rr' },
    one(
      'and all of the way out, imix',
      { chain: ['bridge', 'balance', 'nat', ...OUT.slice(1), 'esp-encrypt'], lengths: IMIX },
      { floor: 2.5 },
    ),
  ];
}

function established(name: string, traffic: NatTraffic, floor?: number): Scenario {
  return {
    name,
    group: 'nat',
    ...(floor !== undefined && { floor }),
    measure: async (seconds) => {
      const chain = natChain(traffic);
      const measurement = measureChain(chain, seconds);
      return { ...measurement, extra: { ...measurement.extra, ...natMemory(chain) } };
    },
  };
}

function natMemory({ tools }: Chain): Record<string, number> {
  const { flows, bytes } = tools.nat!.tables;
  return { ...tableFigures(flows), tableMiB: bytes / 2 ** 20 };
}

function tableFigures(flows: Flows): Record<string, number> {
  const { mean, longest } = flows.probes();
  const { bytes, capacity } = flows;
  return { bytesPerFlow: bytes / capacity, tableMiB: bytes / 2 ** 20, probes: mean, longestProbe: longest };
}

async function newNatFlows(seconds: number): Promise<Measurement> {
  const chain = natChain({ flows: 1_000_000, frames: 1_000_000, inward: false });
  const measurement = await measureNewFlows(chain, chain.tools.nat!.tables.flows, seconds);
  return { ...measurement, extra: { ...measurement.extra, ...natMemory(chain) } };
}

/** As many flows as the table holds, each made by its packet, that then expire: the making is timed, and the longest call. */
async function measureNewFlows(chain: Chain, known: Flows, seconds: number): Promise<Measurement> {
  const flows = known.capacity;
  const cpuOf = ({ user, system }: NodeJS.CpuUsage): number => (user + system) / 1e6;
  let [frames, elapsed, cpu, longest] = [0, 0, 0, 0];
  for (let round = 0; round < 2 || elapsed < seconds; round++) {
    const cpuBefore = process.cpuUsage();
    const begin = performance.now();
    chain.pass();
    const took = performance.now() - begin;
    // The first round warms up.
    if (round > 0) {
      frames += flows;
      elapsed += took / 1e3;
      cpu += cpuOf(process.cpuUsage(cpuBefore));
    }
    chain.age(LONG_SILENCE);
    while (known.size > 0) {
      const start = performance.now();
      chain.age(0);
      if (round > 0) longest = Math.max(longest, performance.now() - start);
    }
  }
  chain.totals();
  return {
    frames,
    bytes: frames * 64,
    seconds: elapsed,
    cpuSeconds: cpu,
    extra: { longestExpiryMs: longest, ...tableFigures(known) },
  };
}

function synthetic(
  group: string,
  name: string,
  traffic: Traffic,
  more: { floor?: number; against?: string } = {},
): Scenario {
  return {
    name,
    group,
    ...more,
    measure: async (seconds) => {
      const chain = chainOverTraffic(traffic);
      const measurement = measureChain(chain, seconds);
      const { stations } = chain.tools;
      if (group !== 'tables') return measurement;
      return {
        ...measurement,
        extra: { bytesPerEntry: stations.bytes / stations.size, tableMiB: stations.bytes / 2 ** 20 },
      };
    },
  };
}

/** The large captures beside the repository, where they are. */
function captureScenarios(): Scenario[] {
  const folder = fileURLToPath(new URL('../../../shared/pcaps/throughput', import.meta.url));
  if (!existsSync(folder)) return [];
  const files = readdirSync(folder).sort();
  return files.flatMap((file) =>
    [BRIDGE, OUT].map((through) => ({
      name: `${through} ${file}`,
      group: 'captures',
      measure: async (seconds: number) => {
        const local = Uint8Array.of(192, 0, 2, 1);
        const remote = Uint8Array.of(192, 0, 2, 2);
        const options = { through, local, remote, port: 4789, carryVlan: true, strict: false };
        return measureChain(chainOver(loadCaptures([join(folder, file)], options), options).chain, seconds);
      },
    })),
  );
}

function measureChain(chain: Chain, seconds: number): Measurement {
  runFor(chain, WARM_SECONDS);
  const before = chain.totals();
  const cpu = process.cpuUsage();
  const elapsed = runFor(chain, seconds);
  const { user, system } = process.cpuUsage(cpu);
  const after = chain.totals();
  const dropped = (totals: typeof after): number => totals.frames - totals.delivered;
  return {
    frames: after.frames - before.frames,
    bytes: after.bytes - before.bytes,
    seconds: elapsed,
    cpuSeconds: (user + system) / 1e6,
    extra: { droppedPercent: (100 * (dropped(after) - dropped(before))) / (after.frames - before.frames) },
  };
}

/** Passes until the time is over; returns the seconds it took. */
function runFor(chain: Chain, seconds: number): number {
  const begin = performance.now();
  let now = begin;
  while (now - begin < seconds * 1e3) {
    chain.pass();
    now = performance.now();
  }
  return (now - begin) / 1e3;
}

/** All elements over 100 million frames: what the heap and the collector make of it. */
async function measureHeap(): Promise<Measurement> {
  const chain = chainOverTraffic({ ...PLAIN, chain: [...OUT, 'vxlan-decap'] });
  runFor(chain, 2 * WARM_SECONDS);
  let collections = 0;
  const observer = new PerformanceObserver((list) => {
    collections += list.getEntries().length;
  });
  observer.observe({ entryTypes: ['gc'] });
  await turn();
  collections = 0;
  const heapBefore = getHeapStatistics().used_heap_size;
  const passes = Math.ceil(HEAP_FRAMES / PLAIN.frames);
  const cpu = process.cpuUsage();
  const begin = performance.now();
  for (let i = 0; i < passes; i++) chain.pass();
  const seconds = (performance.now() - begin) / 1e3;
  const { user, system } = process.cpuUsage(cpu);
  const heapAfter = getHeapStatistics().used_heap_size;
  // Entries arrive in a later turn of the event loop.
  await turn();
  await turn();
  observer.disconnect();
  chain.totals();
  const frames = passes * PLAIN.frames;
  return {
    frames,
    bytes: frames * 64,
    seconds,
    cpuSeconds: (user + system) / 1e6,
    extra: { heapBeforeKiB: heapBefore / 1024, heapAfterKiB: heapAfter / 1024, collections },
  };
}
