/** What figures depend on and a reader must know to judge them. */
import { cpus, loadavg, release } from 'node:os';
import { Lab } from '../../cli/lab.js';
import { runSync } from '../../control/command.js';
import { hasTool } from './site.js';

export interface Environment {
  readonly date: string;
  readonly kernel: string;
  readonly cpu: string;
  readonly processors: number;
  readonly node: string;
  /** Of the containers' TCP. */
  readonly congestionControl: string;
  readonly iperf3: string;
  readonly openVswitch: string | undefined;
  readonly wireguardGo: string | undefined;
  readonly nebula: string | undefined;
  /** Of the last minute, before the first measurement: above a few tenths, others disturb. */
  readonly load: number;
}

export async function environment(): Promise<Environment> {
  const processors = cpus();
  return {
    date: new Date().toISOString(),
    kernel: release(),
    cpu: processors[0]?.model.trim() ?? 'unknown',
    processors: processors.length,
    node: process.version,
    congestionControl: await congestionControl(),
    iperf3: firstLine('iperf3'),
    openVswitch: hasTool('ovs-vswitchd') ? firstLine('ovs-vswitchd') : undefined,
    wireguardGo: hasTool('wireguard-go') ? firstLine('wireguard-go') : undefined,
    nebula: hasTool('nebula') ? firstLine('nebula').replace(/^Version:/, 'nebula') : undefined,
    load: loadavg()[0],
  };
}

/** Asked in a namespace, where it may differ from ours. */
async function congestionControl(): Promise<string> {
  const lab = Lab.create();
  try {
    return (await lab.host('ask').run('cat', ['/proc/sys/net/ipv4/tcp_congestion_control'])).trim();
  } finally {
    lab.close();
  }
}

function firstLine(tool: string): string {
  return runSync(tool, ['--version']).split('\n')[0].trim();
}
