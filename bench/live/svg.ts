/**
 * The report as a chart: a panel for each metric, a bar for each contender, a line from the smallest round to the
 * largest. Colours are of middling lightness on no background, so that it reads on a light page and on a dark one.
 */
import { METRICS, type Metric } from './measure.js';
import type { ContenderReport, LiveReport, TopologyReport } from './run.js';
import { short } from './statistics.js';

const WIDTH = 960;
const COLUMNS = 2;
const GAP = 32;
const PANEL = (WIDTH - (COLUMNS + 1) * GAP) / COLUMNS;
/** Width of the names in front of the bars, and of the figures behind them. */
const NAMES = 156;
const VALUES = 56;
const ROW = 20;
const BAR = 12;
const TITLE = 26;

const INK = '#77808a';
/** Between the plain and the encrypted, so that the eye compares like with like. */
const DIVIDE = 6;
type Shades = Readonly<Record<ContenderReport['role'], readonly string[]>>;
const COLOURS: Shades = {
  weft: ['#2f81f7', '#6f9fe8'],
  kernel: ['#c98a1b'],
  loop: ['#8b949e'],
  other: ['#a371c7'],
};
const ENCRYPTED_COLOURS: Shades = {
  ...COLOURS,
  weft: ['#1f9d73', '#45b28c', '#74c2a5'],
  other: ['#c2608a', '#d68fae'],
};

const escaped = (text: string): string =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');

const number = (value: number): string => String(Math.round(value * 10) / 10);

interface Style {
  readonly size?: number;
  readonly anchor?: 'start' | 'end';
  readonly bold?: boolean;
}

function text(
  x: number,
  y: number,
  content: string,
  { size = 12, anchor = 'start', bold }: Style = {},
): string {
  const weight = bold ? ' font-weight="600"' : '';
  return `<text x="${number(x)}" y="${number(y)}" font-size="${size}" text-anchor="${anchor}"${weight}>${escaped(content)}</text>`;
}

/** @returns the text of an SVG file. */
export function chart(report: LiveReport): string {
  const body: string[] = [];
  let y = 12;
  for (const topology of report.topologies) {
    y += 18;
    body.push(text(GAP, y, topology.title, { size: 16, bold: true }));
    y = drawPanels(topology, y + 14, body);
  }
  for (const line of caption(report)) {
    y += 15;
    body.push(text(GAP, y, line, { size: 11 }));
  }
  const height = Math.ceil(y + 16);
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}"`,
    ` font-family="system-ui, -apple-system, 'Segoe UI', sans-serif" fill="${INK}" role="img"`,
    ` aria-label="Weft beside others: throughput, latency and CPU time">\n${body.join('\n')}\n</svg>\n`,
  ].join('');
}

/** Draws the panels of a topology below `top`. @returns the y below them. */
function drawPanels({ contenders }: TopologyReport, top: number, body: string[]): number {
  const colours = colourOf(contenders);
  const shown = METRICS.filter(({ key }) =>
    contenders.some(({ figures }) => figures[key] !== undefined),
  ).filter(({ unit }) => unit !== '%');
  let y = top;
  for (let i = 0; i < shown.length; i += COLUMNS) {
    const line = shown.slice(i, i + COLUMNS);
    const heights = line.map((metric, column) =>
      drawPanel(metric, contenders, colours, GAP + column * (PANEL + GAP), y, body),
    );
    y += Math.max(...heights) + 10;
  }
  return y;
}

function colourOf(contenders: readonly ContenderReport[]): Map<string, string> {
  const used = new Map<readonly string[], number>();
  return new Map(
    contenders.map(({ name, role, encrypted }) => {
      const choice = (encrypted ? ENCRYPTED_COLOURS : COLOURS)[role];
      const turn = used.get(choice) ?? 0;
      used.set(choice, turn + 1);
      return [name, choice[turn % choice.length]];
    }),
  );
}

/** @returns its height. */
function drawPanel(
  { key, title, unit, better }: Metric,
  contenders: readonly ContenderReport[],
  colours: ReadonlyMap<string, string>,
  x: number,
  y: number,
  body: string[],
): number {
  const rows = contenders.filter(({ figures }) => figures[key] !== undefined);
  const scale =
    (PANEL - NAMES - VALUES) / Math.max(Number.MIN_VALUE, ...rows.map(({ figures }) => figures[key].max));
  body.push(text(x, y + 14, `${title}, ${unit}`, { size: 13, bold: true }));
  body.push(text(x + PANEL, y + 14, `${better} is better`, { size: 11, anchor: 'end' }));
  let next = y + TITLE;
  rows.forEach(({ name, title: of, encrypted, figures }, i) => {
    const { median, min, max } = figures[key];
    if (i > 0 && encrypted !== rows[i - 1].encrypted) next += DIVIDE;
    const middle = next + BAR / 2;
    next += ROW;
    const left = x + NAMES;
    body.push(text(left - 8, middle + 4, of, { anchor: 'end' }));
    body.push(
      `<rect x="${number(left)}" y="${number(middle - BAR / 2)}" width="${number(Math.max(1, median * scale))}" height="${BAR}" rx="2" fill="${colours.get(name)}"/>`,
    );
    if (max > min) {
      const [from, to] = [left + min * scale, left + max * scale].map(number);
      body.push(`<path d="M${from} ${number(middle)}H${to}" stroke="${INK}" stroke-width="2"/>`);
    }
    body.push(text(left + max * scale + 6, middle + 4, short(median), { bold: true }));
  });
  return next - y;
}

function caption({ environment, rounds, seconds, underlay }: LiveReport): string[] {
  const { kernel, cpu, processors, node, congestionControl } = environment;
  return [
    `Median of ${rounds === 1 ? 'one round' : `${rounds} alternating rounds`} of ${seconds} s; a line spans all rounds. ${underlay} underlay, MTU 1500.`,
    `Engines, hosts, containers and iperf3 share ${processors} processors: ratios are what counts.`,
    `Linux ${kernel}, ${cpu}, Node ${node}, TCP ${congestionControl}.`,
  ];
}
