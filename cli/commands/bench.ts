/** `weft bench`: how fast the engine is on this machine. */
import { type Command, InvalidArgumentError } from 'commander';
import type { BenchReport, ScenarioResult } from '../../bench/harness.js';
import { liveCommand } from '../../bench/live/command.js';
import type { MicroResult } from '../../bench/micro.js';
import { CommandError, EXIT, printJson, printTable, say } from '../output.js';

interface Flags {
  readonly seconds: number;
  readonly rounds: number;
  readonly json?: true;
}

/** Times the pure functions with another tool, so it is no scenario. */
const MICRO = 'micro';

export function register(program: Command): void {
  const bench = program
    .command('bench')
    .description(
      'measure the engine: chains over preloaded frames, tables, heap; "micro" for single functions',
    )
    .argument(
      '[scenario...]',
      'scenarios or groups of them (default: all but micro); an unknown one lists them',
    )
    .option('--seconds <s>', 'seconds of measurement a round', positive, 1)
    .option('--rounds <n>', 'rounds, each in a process of its own', count, 5)
    .option('--json', 'print one JSON object')
    .enablePositionalOptions()
    .action(run);
  // `live` has options of its own, some of the same name: what comes after the word is for it, not for `bench`.
  program.enablePositionalOptions();
  bench.addCommand(liveCommand().copyInheritedSettings(bench));
}

function positive(text: string): number {
  const value = Number(text);
  if (!(value > 0 && value <= 3600)) throw new InvalidArgumentError('Write a number of seconds up to 3600.');
  return value;
}

function count(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1 || value > 1000)
    throw new InvalidArgumentError('Write a whole number from 1 to 1000.');
  return value;
}

async function run(names: string[], flags: Flags): Promise<void> {
  const { bench, groups, select } = await import('../../bench/harness.js');
  const scenarioNames = names.filter((name) => name !== MICRO);
  const selected = names.length > 0 && scenarioNames.length === 0 ? [] : select(scenarioNames);
  if (selected === undefined) {
    const list = (select([]) ?? []).map(({ name, group }) => `  ${group.padEnd(10)}${name}`).join('\n');
    throw new CommandError(
      `there is no such scenario; groups: ${[...groups(), MICRO].join(', ')}; scenarios:\n${list}`,
      EXIT.usage,
    );
  }
  const report = selected.length > 0 ? await bench(selected, { ...flags, say }) : undefined;
  const functions = names.includes(MICRO) ? await runMicro(flags.seconds) : undefined;
  if (flags.json) {
    printJson({ ...report, ...(functions && { micro: functions }) });
    return;
  }
  if (report !== undefined) print(report);
  if (functions !== undefined) printMicro(functions);
}

async function runMicro(seconds: number): Promise<MicroResult[]> {
  const { micro } = await import('../../bench/micro.js');
  try {
    return await micro(seconds, say);
  } catch (error) {
    throw new CommandError((error as Error).message);
  }
}

function print({ node, cpu, gcm, rounds, seconds, scenarios }: BenchReport): void {
  say(`Node ${node} on ${cpu}, one core, AES-GCM by ${gcm}; best of ${rounds} rounds of ${seconds} s`);
  printTable(
    [
      { title: 'SCENARIO' },
      { title: 'MPPS', align: 'right' },
      { title: 'MEDIAN', align: 'right' },
      { title: 'SPREAD', align: 'right' },
      { title: 'BY CPU', align: 'right' },
      { title: 'NS/FRAME', align: 'right' },
      { title: 'GB/S', align: 'right' },
      { title: 'FLOOR', align: 'right' },
      { title: 'NOTE' },
    ],
    scenarios.map((result) => [
      result.name,
      result.mpps.toFixed(2),
      result.medianMpps.toFixed(2),
      `${result.spreadPercent.toFixed(0)}%`,
      result.cpuMpps.toFixed(2),
      result.nsPerFrame.toFixed(1),
      result.gbps.toFixed(2),
      result.floorMpps?.toString() ?? '',
      note(result),
    ]),
  );
}

function note({ against, extra }: ScenarioResult): string {
  const notes = against === undefined ? [] : [`${against.factor.toFixed(2)} × ${against.name}`];
  const { bytesPerEntry, tableMiB, droppedPercent, heapBeforeKiB, heapAfterKiB, collections } = extra;
  const { bytesPerFlow, probes, longestProbe, longestExpiryMs } = extra;
  if (bytesPerEntry !== undefined)
    notes.push(`${bytesPerEntry.toFixed(1)} B/entry, ${tableMiB.toFixed(0)} MiB`);
  if (bytesPerFlow !== undefined) notes.push(`${bytesPerFlow.toFixed(1)} B/flow, ${tableMiB.toFixed(0)} MiB`);
  if (longestProbe > 0) notes.push(`${probes.toFixed(2)} probes, at most ${longestProbe}`);
  if (longestExpiryMs !== undefined)
    notes.push(`a million expire, longest call ${longestExpiryMs.toFixed(2)} ms`);
  if (droppedPercent > 0) notes.push(`${droppedPercent.toFixed(1)} % dropped`);
  if (heapBeforeKiB !== undefined)
    notes.push(
      `heap used ${heapBeforeKiB.toFixed(0)} → ${heapAfterKiB.toFixed(0)} KiB, ${collections} collections`,
    );
  return notes.join('; ');
}

function printMicro(results: readonly MicroResult[]): void {
  printTable(
    [
      { title: 'FUNCTION' },
      { title: 'MEDIAN NS', align: 'right' },
      { title: 'P99 NS', align: 'right' },
      { title: '±', align: 'right' },
    ],
    results.map(({ name, medianNs, p99Ns, rme }) => [
      name,
      medianNs.toFixed(2),
      p99Ns.toFixed(2),
      `${rme.toFixed(1)}%`,
    ]),
  );
}
