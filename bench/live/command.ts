/** `weft bench live` and `npm run bench:live`: the options, and what becomes of the report. */
import { accessSync, existsSync, constants as fs, writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import { dirname } from 'node:path';
import { Command, InvalidArgumentError } from 'commander';
import { CommandError, EXIT, printJson, say } from '../../cli/output.js';
import type { Topology } from './site.js';

interface Flags {
  readonly rounds: number;
  readonly seconds: number;
  readonly only?: readonly string[];
  readonly measure?: readonly string[];
  readonly topology?: Topology;
  readonly ipv6?: true;
  readonly quick?: true;
  readonly json?: true;
  readonly output?: string;
  readonly svg?: string;
}

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
const TOPOLOGIES: readonly Topology[] = ['one-host', 'two-hosts', 'gateway'];

/** The command, to be run as a program or added to one. Modules load only when it runs. */
export function liveCommand(): Command {
  return new Command('live')
    .description(
      "Weft, the kernel's overlay, C loops and Open vSwitch side by side between network namespaces",
    )
    .option('--rounds <n>', 'rounds; every contender is measured in each', whole(100), 3)
    .option('--seconds <s>', 'duration of each measurement', whole(60), 3)
    .option('--only <names>', 'contenders, separated by commas', list)
    .option('--measure <names>', 'measurements, separated by commas', list)
    .option('--topology <name>', 'one-host, two-hosts or gateway (default: all)', topology)
    .option('--ipv6', 'underlay over IPv6')
    .option('--quick', 'one round of one second: a smoke test')
    .option('--json', 'print one JSON object')
    .option('--output <file>', 'write the report as JSON')
    .option('--svg <file>', 'write a chart')
    .action(live);
}

function whole(most: number) {
  return (text: string): number => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < 1 || value > most)
      throw new InvalidArgumentError(`Write a whole number from 1 to ${most}.`);
    return value;
  };
}

function list(text: string): string[] {
  const names = text.split(',').map((name) => name.trim());
  if (names.includes('')) throw new InvalidArgumentError('Write names separated by commas.');
  return names;
}

function topology(text: string): Topology {
  const found = TOPOLOGIES.find((name) => name === text);
  if (!found) throw new InvalidArgumentError(`Write ${TOPOLOGIES.join(' or ')}.`);
  return found;
}

async function live(flags: Flags): Promise<void> {
  const { Lab } = await import('../../cli/lab.js');
  const reason = Lab.unavailable() ?? (await missingTool());
  if (reason !== undefined) throw new CommandError(`bench live cannot run here: ${reason}`);
  for (const file of [flags.output, flags.svg]) if (file !== undefined) checkWritable(file);
  const { selectContenders } = await import('./contenders.js');
  const { runLive } = await import('./run.js');
  const { Progress } = await import('../../cli/demo/progress.js');
  const rounds = flags.quick ? 1 : flags.rounds;
  const plan = selectContenders(flags.topology ? [flags.topology] : TOPOLOGIES, flags.only);
  const measurements = await selectMeasurements(flags.measure);
  const contenders = plan.reduce((sum, entry) => sum + entry.contenders.length, 0);
  const progress = new Progress(contenders * (measurements.length + 1) * rounds);
  for (const signal of SIGNALS) {
    process.once(signal, () => {
      progress.clear();
      say(`${signal}: the benchmark stops here`);
      process.exit(128 + constants.signals[signal]); // which removes the namespaces
    });
  }
  try {
    const report = await runLive({
      plan,
      measurements,
      rounds,
      seconds: flags.quick ? 1 : flags.seconds,
      ipv6: flags.ipv6 ?? false,
      step: (text) => progress.step(text),
    });
    progress.clear();
    if (flags.output !== undefined) writeFileSync(flags.output, `${JSON.stringify(report, null, 2)}\n`);
    if (flags.svg !== undefined) writeFileSync(flags.svg, (await import('./svg.js')).chart(report));
    if (flags.json) printJson(report);
    else (await import('./table.js')).printReport(report);
    const failed = report.topologies.some((one) =>
      one.contenders.some(({ failures }) => failures.length > 0),
    );
    if (failed) process.exitCode = EXIT.failed;
  } finally {
    progress.clear();
  }
}

/** Minutes later would be a bad time to find out. */
function checkWritable(file: string): void {
  try {
    accessSync(existsSync(file) ? file : dirname(file), fs.W_OK);
  } catch (error) {
    throw new CommandError(`cannot write ${file}: ${(error as Error).message}`, EXIT.usage);
  }
}

async function missingTool(): Promise<string | undefined> {
  const { hasTool } = await import('./site.js');
  if (!existsSync('/dev/net/tun')) return 'there is no /dev/net/tun; load it with "modprobe tun"';
  for (const [tool, debian] of [
    ['ping', 'iputils-ping'],
    ['iperf3', 'iperf3'],
  ] as const) {
    if (!hasTool(tool)) return `it needs ${tool}; install it with "apt-get install ${debian}"`;
  }
  return undefined;
}

async function selectMeasurements(names: readonly string[] | undefined) {
  const { MEASUREMENTS } = await import('./measure.js');
  const unknown = names?.find((name) => !MEASUREMENTS.some((one) => one.name === name));
  if (unknown !== undefined)
    throw new CommandError(
      `there is no measurement ${unknown}; there are ${MEASUREMENTS.map(({ name }) => name).join(', ')}`,
      EXIT.usage,
    );
  return MEASUREMENTS.filter(({ name }) => names === undefined || names.includes(name));
}
