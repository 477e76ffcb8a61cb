/**
 * The rounds. In each, every contender is built anew in namespaces of its own, all of them stand side by side, and
 * each measurement is taken of one after the other before the next measurement begins: what disturbs the machine
 * for seconds meets all of them alike. Who comes first changes from measurement to measurement and round to round.
 */
import { SCHEMA_VERSION } from '../../control/protocol.js';
import type { Contender } from './contenders.js';
import { TOPOLOGY_TITLES } from './contenders.js';
import { type Environment, environment } from './environment.js';
import { type Cost, METRICS, type Measurement, warmUp } from './measure.js';
import { overheard } from './overheard.js';
import { Site, type Topology } from './site.js';
import { rotated, type Summary, summarise } from './statistics.js';
import { reached, type Target } from './targets.js';
import { Unavailable } from './unavailable.js';

export interface LiveOptions {
  readonly plan: readonly { topology: Topology; contenders: readonly Contender[] }[];
  readonly measurements: readonly Measurement[];
  readonly rounds: number;
  /** Of each measurement. */
  readonly seconds: number;
  /** Measured without a warm-up: for who wants to see it run, not the figures. */
  readonly cold?: true;
  /** Whether the underlay between two hosts is IPv6. */
  readonly ipv6: boolean;
  /** Told what is being done, before each step. */
  readonly step: (text: string) => void;
}

export interface Figure extends Summary {
  /** Median over the median of the kernel, and of the C loop, where they were measured too. */
  readonly toKernel?: number;
  readonly toLoop?: number;
}

export interface ContenderReport {
  readonly name: string;
  readonly title: string;
  readonly role: Contender['role'];
  readonly encrypted?: true;
  /** Why it was not measured: this machine cannot run it. */
  readonly skipped?: string;
  /** What went wrong, with the round and the measurement. */
  readonly failures: readonly string[];
  /** By key of the metric. */
  readonly figures: Readonly<Record<string, Figure>>;
}

export interface TopologyReport {
  readonly topology: Topology;
  readonly title: string;
  readonly contenders: readonly ContenderReport[];
  readonly targets: readonly Target[];
}

export interface LiveReport {
  readonly schemaVersion: number;
  readonly environment: Environment;
  readonly rounds: number;
  readonly seconds: number;
  readonly underlay: 'IPv4' | 'IPv6';
  readonly topologies: readonly TopologyReport[];
}

/** What is gathered of a contender while it runs. */
interface Gathered {
  readonly contender: Contender;
  skipped?: string;
  readonly failures: string[];
  readonly samples: Map<string, number[]>;
}

interface Standing {
  readonly record: Gathered;
  readonly site: Site;
  readonly costs: { of: 'tcp1' | 'tcp8'; cost: Cost }[];
}

export async function runLive(options: LiveOptions): Promise<LiveReport> {
  const { plan, rounds, seconds, ipv6 } = options;
  const about = await environment();
  const topologies: TopologyReport[] = [];
  for (const { topology, contenders } of plan) {
    const records = contenders.map(
      (contender): Gathered => ({ contender, failures: [], samples: new Map() }),
    );
    for (let round = 0; round < rounds; round++) await runRound(options, topology, records, round);
    topologies.push(report(topology, records));
  }
  return {
    schemaVersion: SCHEMA_VERSION,
    environment: about,
    rounds,
    seconds,
    underlay: ipv6 ? 'IPv6' : 'IPv4',
    topologies,
  };
}

async function runRound(options: LiveOptions, topology: Topology, records: Gathered[], round: number) {
  const { measurements, rounds, step } = options;
  const prefix = `${topology}, round ${round + 1} of ${rounds}`;
  const standing: Standing[] = [];
  try {
    for (const record of records) {
      if (record.skipped !== undefined) continue;
      step(`${prefix}: ${record.contender.title}: building and warming up`);
      const site = await build(options, topology, record, round);
      if (site) standing.push({ record, site, costs: [] });
    }
    for (const [index, measurement] of measurements.entries()) {
      for (const one of rotated(standing, round + index)) {
        step(`${prefix}: ${measurement.name}: ${one.record.contender.title}`);
        await measure(one, measurement, options.seconds, round);
      }
    }
    for (const one of standing) addCosts(one);
  } finally {
    for (const { site } of standing) site.close();
  }
}

/** Puts a contender up in a site of its own; undefined when it cannot stand, which is recorded. */
async function build(
  { ipv6, cold }: LiveOptions,
  topology: Topology,
  record: Gathered,
  round: number,
): Promise<Site | undefined> {
  const { contender } = record;
  const missing = contender.missing?.();
  if (missing !== undefined) {
    record.skipped = missing;
    return undefined;
  }
  const site = new Site(topology, ipv6);
  try {
    await contender.up(site);
    await site.connected();
    if (contender.encrypted && (await overheard(site)))
      throw new Error('what it sends can be read between the hosts');
    if (!cold) await warmUp(site);
    return site;
  } catch (error) {
    if (error instanceof Unavailable) record.skipped = error.message;
    else record.failures.push(`round ${round + 1}, building: ${explain(error, site)}`);
    site.close();
    return undefined;
  }
}

async function measure(
  { record, site, costs }: Standing,
  measurement: Measurement,
  seconds: number,
  round: number,
) {
  try {
    const { values, cost } = await measurement.run(site, seconds);
    for (const [key, value] of Object.entries(values)) add(record, key, value);
    if (cost) costs.push({ of: cost.of, cost });
  } catch (error) {
    record.failures.push(`round ${round + 1}, ${measurement.name}: ${explain(error, site)}`);
  }
}

function explain(error: unknown, site: Site): string {
  const said = site.said();
  return `${(error as Error).message}${said ? `\n${said}` : ''}`;
}

function add({ samples }: Gathered, key: string, value: number): void {
  const values = samples.get(key);
  if (values) values.push(value);
  else samples.set(key, [value]);
}

/** CPU seconds per gigabyte of the round, over both directions. */
function addCosts({ record, costs }: Standing): void {
  for (const kind of ['tcp1', 'tcp8'] as const) {
    const of = costs.filter((entry) => entry.of === kind).map(({ cost }) => cost);
    if (of.length === 0) continue;
    const gigabytes = of.reduce((sum, { bytes }) => sum + bytes, 0) / 1e9;
    add(record, `cpu-${kind}`, of.reduce((sum, { machine }) => sum + machine, 0) / gigabytes);
    if (record.contender.role !== 'kernel')
      add(record, `engine-${kind}`, of.reduce((sum, { engines }) => sum + engines, 0) / gigabytes);
  }
}

function report(topology: Topology, records: readonly Gathered[]): TopologyReport {
  const summaries = new Map(
    records.map(({ contender, samples }) => [
      contender.role,
      new Map([...samples].map(([key, values]) => [key, summarise(values).median])),
    ]),
  );
  const contenders = records.map(({ contender, skipped, failures, samples }): ContenderReport => {
    const figures: Record<string, Figure> = {};
    for (const { key, unit } of METRICS) {
      const values = samples.get(key);
      if (values === undefined) continue;
      const summary = summarise(values);
      // A ratio of losses, one of them near zero, says nothing.
      const of = (base: Contender['role']) => (unit === '%' ? undefined : summaries.get(base)?.get(key));
      const [kernel, loop] = [of('kernel'), of('loop')];
      figures[key] = {
        ...summary,
        ...(kernel ? { toKernel: summary.median / kernel } : {}),
        ...(loop ? { toLoop: summary.median / loop } : {}),
      };
    }
    const { name, title, role, encrypted } = contender;
    return {
      ...{ name, title, role, failures, figures },
      ...(encrypted ? { encrypted } : {}),
      ...(skipped === undefined ? {} : { skipped }),
    };
  });
  return { topology, title: TOPOLOGY_TITLES[topology], contenders, targets: reached(topology, contenders) };
}
