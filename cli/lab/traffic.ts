/** Traffic between namespaces by the usual tools, as figures. */
import { CommandError } from '../../control/command.js';
import type { Namespace } from './namespace.js';

export interface PingOptions {
  /** Requests; 3 unless told. With `deadlineS`, the number of answers to wait for. */
  count?: number;
  /** Payload bytes, without the 8 of ICMP; 56 unless told. */
  size?: number;
  /** Seconds between requests, and at least so long the last one's answer is waited for; 0.2 unless told. */
  interval?: number;
  /** Asks on until `count` answers came or these seconds are over: for a path that is about to open. */
  deadlineS?: number;
  /** Sets don't fragment; what is larger than the path is then lost. */
  df?: boolean;
  /** At most 16 bytes in hexadecimal, repeated to the end of the payload. */
  pattern?: string;
}

export interface PingResult {
  sent: number;
  received: number;
  duplicates: number;
  /** Round trips in ms; NaN when nothing came back. */
  rttMin: number;
  rttAvg: number;
  rttMax: number;
  rttDeviation: number;
}

/** Pings an IPv4 or IPv6 address. Loss is a result; @throws CommandError when ping itself fails (no route, …). */
export async function ping(
  from: Pick<Namespace, 'exec' | 'label'>,
  address: string,
  options: PingOptions = {},
): Promise<PingResult> {
  const { count = 3, size = 56, interval = 0.2, deadlineS, df = false, pattern } = options;
  const args = ['-n', '-q', '-c', String(count), '-s', String(size), '-i', String(interval), '-W', '1'];
  if (deadlineS !== undefined) args.push('-w', String(Math.ceil(deadlineS)));
  if (df) args.push('-M', 'do');
  if (pattern !== undefined) args.push('-p', pattern);
  const timeoutMs = ((deadlineS ?? count * interval) + 10) * 1000;
  const { code, stdout, stderr } = await from.exec('ping', [...args, address], { timeoutMs });
  const totals = /(\d+) packets transmitted, (\d+) received/.exec(stdout);
  if (!totals) {
    throw new CommandError(`${from.label}: ping ${address}`, code, stderr || stdout, `exit code ${code}`);
  }
  const rtt = /= ([\d.]+)\/([\d.]+)\/([\d.]+)\/([\d.]+) ms/.exec(stdout)?.slice(1).map(Number) ?? [];
  return {
    sent: Number(totals[1]),
    received: Number(totals[2]),
    duplicates: Number(/\+(\d+) duplicates/.exec(stdout)?.[1] ?? 0),
    rttMin: rtt[0] ?? Number.NaN,
    rttAvg: rtt[1] ?? Number.NaN,
    rttMax: rtt[2] ?? Number.NaN,
    rttDeviation: rtt[3] ?? Number.NaN,
  };
}

export interface Iperf3Options {
  udp?: boolean;
  /** Duration; 2 unless told. */
  seconds?: number;
  /** Payload after which it ends, however long it takes; in place of `seconds`. */
  bytes?: number;
  /** Bytes a write (TCP) or a datagram (UDP); iperf3's choice unless told. */
  length?: number;
  /** Streams; 1 unless told. */
  parallel?: number;
  /** The other side sends. */
  reverse?: boolean;
  /** Bits a second offered; 0 is as many as go, and the default. */
  bandwidth?: number;
  /** Seconds at the start that do not count. */
  omit?: number;
  /** Control and data port; 5201 unless told. */
  port?: number;
}

export interface Iperf3Result {
  /** Payload that arrived. */
  bitsPerSecond: number;
  /** Datagrams that arrived; NaN for TCP. */
  packetsPerSecond: number;
  /** Datagrams lost, percent; 0 for TCP. */
  lostPercent: number;
  /** Segments sent again; 0 for UDP. */
  retransmits: number;
  /** Percent of one CPU that iperf3 itself used, at either side. */
  cpu: { sender: number; receiver: number };
}

interface Iperf3Sum {
  seconds: number;
  bits_per_second: number;
  packets?: number;
  lost_packets?: number;
  lost_percent?: number;
  retransmits?: number;
}

interface Iperf3Report {
  error?: string;
  end: {
    sum_sent?: Iperf3Sum;
    sum_received?: Iperf3Sum;
    cpu_utilization_percent?: { host_total: number; remote_total: number };
  };
}

/** Runs iperf3 from one namespace to an address of another. @throws CommandError */
export async function iperf3(
  from: Namespace,
  to: Namespace,
  address: string,
  options: Iperf3Options = {},
): Promise<Iperf3Result> {
  const {
    udp = false,
    seconds = 2,
    bytes,
    length,
    parallel = 1,
    reverse = false,
    bandwidth = 0,
    omit = 0,
  } = options;
  const port = String(options.port ?? 5201);
  const server = to.start('iperf3', ['--server', '--one-off', '--forceflush', '--port', port]);
  try {
    await server.output(/Server listening/);
    const end = bytes === undefined ? ['--time', String(seconds)] : ['--bytes', String(bytes)];
    const args = ['--client', address, '--port', port, '--json', ...end];
    args.push('--parallel', String(parallel), '--bitrate', String(bandwidth), '--connect-timeout', '5000');
    if (udp) args.push('--udp');
    if (length !== undefined) args.push('--length', String(length));
    if (reverse) args.push('--reverse');
    if (omit > 0) args.push('--omit', String(omit));
    const { code, stdout, stderr } = await from.exec('iperf3', args, {
      timeoutMs: (seconds + omit + 20) * 1000,
    });
    return readReport(`${from.label}: iperf3 ${args.join(' ')}`, code, stdout, stderr, options);
  } finally {
    if (server.child.exitCode === null) await server.stop('SIGKILL');
  }
}

function readReport(
  command: string,
  code: number,
  stdout: string,
  stderr: string,
  { udp = false, reverse = false }: Iperf3Options,
): Iperf3Result {
  let report: Iperf3Report;
  try {
    report = JSON.parse(stdout) as Iperf3Report;
  } catch {
    throw new CommandError(command, code, stderr || stdout, `exit code ${code}, and no JSON`);
  }
  const { sum_sent: sent, sum_received: received, cpu_utilization_percent: cpu } = report.end;
  // With --json iperf3 3.12 exits 0 also when it failed, and says so only in the document.
  if (report.error || !sent || !received) {
    throw new CommandError(command, code, stderr, report.error ?? 'the report holds no totals');
  }
  const arrived = (received.packets ?? 0) - (received.lost_packets ?? 0);
  const [own, other] = [cpu?.host_total ?? Number.NaN, cpu?.remote_total ?? Number.NaN];
  return {
    bitsPerSecond: received.bits_per_second,
    packetsPerSecond: udp ? arrived / received.seconds : Number.NaN,
    lostPercent: received.lost_percent ?? 0,
    retransmits: sent.retransmits ?? 0,
    cpu: reverse ? { sender: other, receiver: own } : { sender: own, receiver: other },
  };
}
