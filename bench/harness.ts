/**
 * The engine's own harness. Every round of a scenario runs in a fresh process, since V8 specialises hot code on
 * what it met before, and rounds alternate between scenarios, so that a disturbance of the machine meets all of
 * them. The best round says what the code can do, the spread how far the machine let it.
 */
import { execFile } from 'node:child_process';
import { cpus } from 'node:os';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { type GcmLibrary, native } from '../native-bindings/index.js';
import { type Measurement, type Scenario, scenarios } from './scenarios.js';

export interface BenchOptions {
  /** Seconds of measurement a round. */
  readonly seconds: number;
  readonly rounds: number;
  /** Takes a line of progress. */
  readonly say: (line: string) => void;
}

export interface ScenarioResult {
  readonly name: string;
  readonly group: string;
  /** Millions of frames a second by the wall clock: best and middle round, and (best - worst) / median in percent. */
  readonly mpps: number;
  readonly medianMpps: number;
  readonly spreadPercent: number;
  /** Of the best round, by the CPU time of the process: what the wall clock would show on a quiet machine. */
  readonly cpuMpps: number;
  /** Of the best round. Bytes are those handed to the chain. */
  readonly nsPerFrame: number;
  readonly gbps: number;
  readonly floorMpps?: number | undefined;
  /** ns per frame as a multiple of another scenario's. */
  readonly against?: { readonly name: string; readonly factor: number } | undefined;
  readonly extra: Readonly<Record<string, number>>;
}

export interface BenchReport {
  readonly node: string;
  readonly cpu: string;
  /** What does AES-GCM unless a scenario says otherwise. */
  readonly gcm: GcmLibrary;
  readonly seconds: number;
  readonly rounds: number;
  readonly scenarios: readonly ScenarioResult[];
}

/** Groups that a user may name beside single scenarios. */
export function groups(): string[] {
  return [...new Set(scenarios().map(({ group }) => group))];
}

/** The scenarios of these names or groups, all for none; undefined stands for a name that is neither. */
export function select(names: readonly string[]): Scenario[] | undefined {
  const all = scenarios();
  if (names.length === 0) return all;
  const known = (name: string): boolean => all.some((one) => one.name === name || one.group === name);
  if (!names.every(known)) return undefined;
  return all.filter(({ name, group }) => names.includes(name) || names.includes(group));
}

export async function bench(selected: readonly Scenario[], options: BenchOptions): Promise<BenchReport> {
  const { seconds, rounds, say } = options;
  const measured = new Map<string, Measurement[]>(selected.map(({ name }) => [name, []]));
  for (let round = 0; round < rounds; round++) {
    for (const scenario of selected) {
      if (round > 0 && scenario.once) continue;
      const measurement = await runChild(scenario.name, seconds);
      measured.get(scenario.name)?.push(measurement);
      say(`round ${round + 1} of ${rounds}: ${scenario.name}: ${rate(measurement).toFixed(2)} Mpps`);
    }
  }
  const results = selected.map((scenario) => summarise(scenario, measured.get(scenario.name) ?? []));
  return {
    node: process.version,
    cpu: cpus()[0]?.model ?? 'unknown',
    gcm: native.gcmLibraries()[0],
    seconds,
    rounds,
    scenarios: results.map((result, i) => compare(result, selected[i].against, results)),
  };
}

async function runChild(name: string, seconds: number): Promise<Measurement> {
  const child = fileURLToPath(new URL('./child.js', import.meta.url));
  const { stdout } = await promisify(execFile)(process.execPath, [child, name, String(seconds)]);
  return JSON.parse(stdout) as Measurement;
}

function rate({ frames, seconds }: Measurement): number {
  return frames / seconds / 1e6;
}

function summarise(scenario: Scenario, rounds: readonly Measurement[]): ScenarioResult {
  const sorted = rounds.toSorted((a, b) => rate(b) - rate(a));
  const best = sorted[0];
  const middle = sorted.length >> 1;
  const median =
    sorted.length % 2 === 1 ? rate(sorted[middle]) : (rate(sorted[middle - 1]) + rate(sorted[middle])) / 2;
  return {
    name: scenario.name,
    group: scenario.group,
    mpps: rate(best),
    medianMpps: median,
    spreadPercent: (100 * (rate(best) - rate(sorted[sorted.length - 1]))) / median,
    cpuMpps: Math.max(...rounds.map(({ frames, cpuSeconds }) => frames / cpuSeconds / 1e6)),
    nsPerFrame: (best.seconds * 1e9) / best.frames,
    gbps: (best.bytes * 8) / best.seconds / 1e9,
    floorMpps: scenario.floor,
    extra: best.extra,
  };
}

function compare(
  result: ScenarioResult,
  against: string | undefined,
  all: readonly ScenarioResult[],
): ScenarioResult {
  const other = all.find(({ name }) => name === against);
  if (other === undefined || other === result) return result;
  return { ...result, against: { name: other.name, factor: result.nsPerFrame / other.nsPerFrame } };
}
