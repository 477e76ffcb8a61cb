/** What is measured of a contender, and the figures it gives. */
import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { type Iperf3Options, type Iperf3Result, iperf3 } from '../../cli/lab.js';
import type { Site } from './site.js';
import { percentile } from './statistics.js';

/** A figure: how it is called, in what unit, and which way is better. */
export interface Metric {
  readonly key: string;
  readonly title: string;
  readonly unit: string;
  readonly better: 'more' | 'less';
}

const metric = (key: string, title: string, unit: string, better: 'more' | 'less'): Metric => ({
  key,
  title,
  unit,
  better,
});

/** In the order of tables and charts. */
export const METRICS: readonly Metric[] = [
  metric('tcp1-ab', 'TCP, 1 stream, A → B', 'Gb/s', 'more'),
  metric('tcp1-ba', 'TCP, 1 stream, B → A', 'Gb/s', 'more'),
  metric('tcp8-ab', 'TCP, 8 streams, A → B', 'Gb/s', 'more'),
  metric('tcp8-ba', 'TCP, 8 streams, B → A', 'Gb/s', 'more'),
  metric('udp64', 'UDP 64 B delivered', 'k/s', 'more'),
  metric('udp64-reaching', 'UDP 64 B reaching the receiver', 'k/s', 'more'),
  metric('udp64-lost', 'UDP 64 B lost', '%', 'less'),
  metric('udp1400', 'UDP 1,400 B delivered', 'k/s', 'more'),
  metric('udp1400-reaching', 'UDP 1,400 B reaching the receiver', 'k/s', 'more'),
  metric('udp1400-lost', 'UDP 1,400 B lost', '%', 'less'),
  metric('rtt-idle-p50', 'Round trip, idle, p50', 'µs', 'less'),
  metric('rtt-idle-p99', 'Round trip, idle, p99', 'µs', 'less'),
  metric('rtt-loaded-p50', 'Round trip beside TCP, p50', 'µs', 'less'),
  metric('rtt-loaded-p99', 'Round trip beside TCP, p99', 'µs', 'less'),
  metric('cpu-tcp1', 'CPU, TCP 1 stream, whole machine', 's/GB', 'less'),
  metric('cpu-tcp8', 'CPU, TCP 8 streams, whole machine', 's/GB', 'less'),
  metric('engine-tcp1', 'CPU, TCP 1 stream, engines alone', 's/GB', 'less'),
  metric('engine-tcp8', 'CPU, TCP 8 streams, engines alone', 's/GB', 'less'),
];

/** CPU seconds that a transfer took: of the whole machine, and of the engines' processes. */
export interface Cost {
  readonly bytes: number;
  readonly machine: number;
  readonly engines: number;
}

interface Outcome {
  readonly values: Readonly<Record<string, number>>;
  /** For the CPU figures, which are taken over both directions together. */
  readonly cost?: { readonly of: 'tcp1' | 'tcp8' } & Cost;
}

/** One measurement; it fails when nothing arrives. */
export interface Measurement {
  readonly name: string;
  readonly run: (site: Site, seconds: number) => Promise<Outcome>;
}

export const MEASUREMENTS: readonly Measurement[] = [
  { name: 'tcp1-ab', run: (site, seconds) => tcp(site, seconds, 1, false) },
  { name: 'tcp1-ba', run: (site, seconds) => tcp(site, seconds, 1, true) },
  { name: 'tcp8-ab', run: (site, seconds) => tcp(site, seconds, 8, false) },
  { name: 'tcp8-ba', run: (site, seconds) => tcp(site, seconds, 8, true) },
  { name: 'udp64', run: (site, seconds) => udp(site, seconds, 64) },
  { name: 'udp1400', run: (site, seconds) => udp(site, seconds, 1400) },
  { name: 'rtt-idle', run: idle },
  { name: 'rtt-loaded', run: loaded },
];

/** One second each way and of small datagrams: the JIT compiles what the measurements then find compiled. */
export async function warmUp(site: Site): Promise<void> {
  await transfer(site, { seconds: 1 });
  await transfer(site, { seconds: 1, reverse: true });
  await transfer(site, { seconds: 1, udp: true, length: 64 });
}

/** iperf3 from container A to container B. @throws CommandError */
function transfer(site: Site, options: Iperf3Options): Promise<Iperf3Result> {
  const [a, b] = site.containers;
  return iperf3(a, b, site.target, options);
}

async function tcp(site: Site, seconds: number, parallel: 1 | 8, reverse: boolean): Promise<Outcome> {
  const before = cpuSeconds(site);
  const { bitsPerSecond } = await transfer(site, { seconds, parallel, reverse });
  const after = cpuSeconds(site);
  if (!(bitsPerSecond > 0)) throw new Error('the connection was made, but no data arrived');
  const of = `tcp${parallel}` as const;
  return {
    values: { [`${of}-${reverse ? 'ba' : 'ab'}`]: bitsPerSecond / 1e9 },
    cost: {
      of,
      bytes: (bitsPerSecond * seconds) / 8,
      machine: after.machine - before.machine,
      engines: after.engines - before.engines,
    },
  };
}

async function udp(site: Site, seconds: number, length: 64 | 1400): Promise<Outcome> {
  const before = await udpArrivals(site);
  const { packetsPerSecond, lostPercent } = await transfer(site, { seconds, udp: true, length });
  const after = await udpArrivals(site);
  if (!(packetsPerSecond > 0)) throw new Error('no datagram arrived');
  return {
    values: {
      [`udp${length}`]: packetsPerSecond / 1e3,
      [`udp${length}-reaching`]: (after - before) / seconds / 1e3,
      [`udp${length}-lost`]: lostPercent,
    },
  };
}

/** Datagrams that came as far as container B's sockets, those included that found the socket's buffer full. */
async function udpArrivals(site: Site): Promise<number> {
  return udpArrived(await site.containers[1].run('cat', ['/proc/net/snmp']));
}

/** InDatagrams and InErrors of UDP in the text of /proc/net/snmp. */
export function udpArrived(text: string): number {
  const [names, values] = [...text.matchAll(/^Udp: (.*)$/gm)].map(([, line]) => line.split(' '));
  const value = (name: string): number => Number(values[names.indexOf(name)]);
  return value('InDatagrams') + value('InErrors');
}

/** Seconds between requests, and how many replies at most are kept. */
const PING_INTERVAL = 0.002;
const MOST_PINGS = 10_000;

async function pings(site: Site, seconds: number): Promise<number[]> {
  const count = Math.min(MOST_PINGS, Math.ceil(seconds / PING_INTERVAL));
  const args = ['-n', '-c', String(count), '-i', String(PING_INTERVAL), '-W', '1', site.target];
  const { stdout, stderr } = await site.containers[0].exec('ping', args, {
    timeoutMs: (seconds + 20) * 1000,
  });
  const times = roundTrips(stdout);
  if (times.length === 0) throw new Error(`no ping was answered: ${stderr || stdout}`);
  return times;
}

/** Round trips in µs of what ping prints. */
export function roundTrips(output: string): number[] {
  return [...output.matchAll(/ time=([\d.]+) ms$/gm)].map(([, ms]) => Number(ms) * 1000);
}

function latency(name: 'idle' | 'loaded', times: readonly number[]): Outcome {
  return {
    values: {
      [`rtt-${name}-p50`]: percentile(times, 50),
      [`rtt-${name}-p99`]: percentile(times, 99),
    },
  };
}

async function idle(site: Site, seconds: number): Promise<Outcome> {
  return latency('idle', await pings(site, seconds));
}

/** How long the stream runs before the first ping and after the last. */
const MARGIN_MS = 500;

async function loaded(site: Site, seconds: number): Promise<Outcome> {
  const stream = transfer(site, { seconds: Math.ceil(seconds + (2 * MARGIN_MS) / 1000) });
  const asked = delay(MARGIN_MS).then(() => pings(site, seconds));
  // Both have ended when this returns, whatever became of them.
  const [times] = await Promise.allSettled([asked, stream]);
  if (times.status === 'rejected') throw times.reason;
  await stream;
  return latency('loaded', times.value);
}

/** CPU seconds so far: of all processors without idle and stolen time, and of the engines with all their threads. */
function cpuSeconds(site: Site): { machine: number; engines: number } {
  const pids = site.engines.map(({ process }) => process.child.pid);
  return {
    machine: machineTicks(readFileSync('/proc/stat', 'utf8')) / TICKS,
    engines: pids.reduce((sum: number, pid) => sum + processTicks(`/proc/${pid}/stat`), 0) / TICKS,
  };
}

/** USER_HZ, the unit of the times in /proc: 100 on every Linux. */
const TICKS = 100;

/** Busy ticks in the text of /proc/stat (proc(5)): user, nice, system, irq and softirq. */
export function machineTicks(text: string): number {
  const [user, nice, system, , , irq, softirq] = text.split('\n')[0].trim().split(/\s+/).slice(1).map(Number);
  return user + nice + system + irq + softirq;
}

/** utime and stime, fields 14 and 15; 0 for a process that is gone. */
function processTicks(file: string): number {
  try {
    const stat = readFileSync(file, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return Number(fields[11]) + Number(fields[12]);
  } catch {
    return 0;
  }
}
