/** The report as text. */
import { printTable } from '../../cli/output.js';
import { METRICS } from './measure.js';
import type { ContenderReport, Figure, LiveReport, TopologyReport } from './run.js';
import { short } from './statistics.js';

const out = (line: string): void => {
  process.stdout.write(`${line}\n`);
};

export function printReport(report: LiveReport): void {
  for (const line of heading(report)) out(line);
  for (const topology of report.topologies) {
    out('');
    out(topology.title);
    printTable(
      [
        { title: 'MEASUREMENT' },
        { title: 'OF' },
        { title: 'MEDIAN', align: 'right' },
        { title: 'MIN–MAX', align: 'right' },
        { title: '× KERNEL', align: 'right' },
        { title: '× C LOOP', align: 'right' },
      ],
      tableRows(topology),
    );
    printTargets(topology);
    for (const line of remarks(topology.contenders)) out(line);
  }
}

/** What the figures are and on what they were taken. */
export function heading({ environment, rounds, seconds, underlay }: LiveReport): string[] {
  const { kernel, cpu, processors, node, congestionControl, load, date } = environment;
  const { iperf3, openVswitch, wireguardGo, nebula } = environment;
  const tools = [iperf3, openVswitch, wireguardGo, nebula].filter((version) => version !== undefined);
  return [
    `${date}: Linux ${kernel}, ${processors} processors of ${cpu}, Node ${node}, TCP ${congestionControl}, ` +
      `${tools.join(', ')}, load before the start ${load.toFixed(2)}`,
    `${rounds} ${rounds === 1 ? 'round' : 'rounds'} of ${seconds} s a measurement, all contenders in turn, ${underlay} underlay.`,
    `Ratios are what counts: engines, both hosts, both containers and iperf3 share ${processors} processors.`,
  ];
}

/** Rows of the table: metric, contender, median, spread, ratios; the metric is named in the first of its rows. */
export function tableRows({ contenders }: Pick<TopologyReport, 'contenders'>): string[][] {
  return METRICS.flatMap(({ key, title, unit }) =>
    contenders
      .filter(({ figures }) => figures[key] !== undefined)
      .map(({ title: of, figures }, i) => [i === 0 ? `${title}, ${unit}` : '', of, ...cells(figures[key])]),
  );
}

function cells({ median, min, max, toKernel, toLoop }: Figure): string[] {
  const ratio = (value: number | undefined): string => (value === undefined ? '' : value.toFixed(2));
  return [short(median), `${short(min)}–${short(max)}`, ratio(toKernel), ratio(toLoop)];
}

function printTargets({ targets }: TopologyReport): void {
  if (targets.length === 0) return;
  out('');
  printTable(
    [{ title: 'TARGET' }, { title: 'MEASURED', align: 'right' }, { title: '' }],
    targets.map(({ text, ratio, reached }) => [text, ratio.toFixed(2), reached ? 'reached' : 'missed']),
  );
}

function remarks(contenders: readonly ContenderReport[]): string[] {
  return contenders.flatMap(({ title, skipped, failures }) => [
    ...(skipped === undefined ? [] : [`${title} was skipped: ${skipped}`]),
    ...failures.map((failure) => `${title} failed: ${failure}`),
  ]);
}
