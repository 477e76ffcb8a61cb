/**
 * Streams through a wire with faults for minutes: `npm run soak [SECONDS] [uplink|socket]`, 60 s a fault unless told.
 *
 * Two Wefts in namespaces; random bytes go there and back over TCP while the wire loses, reorders, duplicates and
 * damages packets, one fault after another. Exits with 1 when a stream was changed, a slot was kept, or a heap grew.
 * A line a round on stderr, one JSON object a path on stdout.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ask } from '../cli/client.js';
import { Lab, type Namespace, type RunningCommand, waitFor } from '../cli/lab.js';
import type { Status } from '../control/api.js';
import { echoServer, halve, type Impairment, impair, pythonMissing, soak } from './wire-traffic.js';

const MAIN = fileURLToPath(new URL('../cli/main.js', import.meta.url));
const FAULTS: readonly Impairment[] = ['none', 'loss', 'reorder', 'duplicate', 'corrupt'];
/** A heap may grow by so much between the first round and the last, in MiB: what V8 keeps differs a little. */
const HEAP_SLACK = 4;
const TARGET = '10.0.9.2';

interface Round {
  readonly fault: Impairment;
  readonly megabytes: number;
  readonly struck: number;
  /** Resident memory of both engines, MiB. */
  readonly resident: number[];
  /** Collections so far, and MiB of heap left by the last one, of each isolate of both engines. */
  readonly heaps: { readonly collections: number; readonly megabytes: number }[];
}

class Host {
  readonly running: RunningCommand;
  readonly socket: string;
  private gcLog = '';

  constructor(host: Namespace, container: Namespace, n: number, directory: string, mode: string) {
    const file = join(directory, `${mode}-${n}.json`);
    this.socket = join(directory, `${mode}-${n}.sock`);
    const node = {
      node: `soak${n}`,
      underlay: { address: `192.168.50.${n}`, mode },
      networks: [{ name: 'blue', vni: 42, subnet: '10.0.9.0/24', peers: [`192.168.50.${3 - n}`] }],
      endpoints: [
        { name: 'c', network: 'blue', netns: container.name, interface: 'eth0', address: `10.0.9.${n}/24` },
      ],
    };
    writeFileSync(file, JSON.stringify(node));
    const up = ['--trace-gc', MAIN, 'up', '-c', file, '--socket', this.socket];
    this.running = host.start(process.execPath, up);
    this.running.child.stdout?.on('data', (chunk: string) => {
      this.gcLog += chunk;
    });
  }

  get resident(): number {
    const status = readFileSync(`/proc/${this.running.child.pid}/status`, 'utf8');
    return Math.round(Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1]) / 1024);
  }

  /** From `[pid:isolate] … Scavenge 6.1 (8.0) -> 4.9 (9.0) MB`. */
  get heaps(): Round['heaps'][number][] {
    const isolates = new Map<string, Round['heaps'][number]>();
    for (const [, isolate, left] of this.gcLog.matchAll(/^\[\d+:(\w+)\].* -> ([\d.]+) \(/gm)) {
      const collections = (isolates.get(isolate)?.collections ?? 0) + 1;
      isolates.set(isolate, { collections, megabytes: Number(left) });
    }
    return [...isolates.values()];
  }

  status(): Promise<Status> {
    return ask<Status>('GET', '/status', { socket: this.socket });
  }
}

async function soakPath(mode: string, seconds: number, directory: string): Promise<Round[]> {
  const lab = Lab.create();
  try {
    const namespaces = ['h1', 'h2', 'c1', 'c2'].map((label) => lab.host(label));
    const [one, two, from, to] = namespaces;
    const addresses = [['192.168.50.1/24'], ['192.168.50.2/24']];
    const wire = lab.bridgeUnderlay([one, two], { addresses });
    await halve(wire);
    const hosts = [new Host(one, from, 1, directory, mode), new Host(two, to, 2, directory, mode)];
    for (const { running } of hosts) await running.output(/^ready$/m, { timeoutMs: 30_000 });
    await echoServer(to, TARGET);
    const rounds: Round[] = [];
    for (const fault of FAULTS) {
      const fate = await impair(wire, fault);
      const bytes = await soak(from, TARGET, seconds);
      const struck = await fate.mend();
      for (const host of hosts)
        await waitFor(async () => (await host.status()).slotsInUse === 0, { what: 'every slot to be free' });
      const resident = hosts.map((host) => host.resident);
      const heaps = hosts.flatMap((host) => host.heaps);
      rounds.push({ fault, megabytes: Math.round(bytes / 1e6), struck, resident, heaps });
      process.stderr.write(`${mode} ${lineOf(rounds.at(-1)!)}\n`);
    }
    for (const { running } of hosts) await running.stop('SIGTERM');
    return rounds;
  } finally {
    lab.close();
  }
}

function lineOf({ fault, megabytes, struck, resident, heaps }: Round): string {
  const each = heaps.map((heap) => `${heap.megabytes} MiB after ${heap.collections}`).join(', ');
  return `${fault}: ${megabytes} MB whole, fault struck ${struck} times, resident ${resident.join(' and ')} MiB, heaps ${each} collections`;
}

/** Heaps that grew, in words; an isolate that had not collected by the first round has nothing to compare with. */
function grown(rounds: readonly Round[]): string[] {
  const [first, last] = [rounds[0], rounds.at(-1)!];
  if (first.heaps.length !== last.heaps.length) return [];
  return first.heaps.flatMap(({ megabytes }, i) => {
    const now = last.heaps[i].megabytes;
    return now > megabytes + HEAP_SLACK ? [`a heap grew from ${megabytes} to ${now} MiB`] : [];
  });
}

async function main([seconds = '60', only]: readonly string[]): Promise<number> {
  const reason = Lab.unavailable() ?? pythonMissing();
  if (reason || !(Number(seconds) > 0)) {
    process.stderr.write(reason ? `soak: ${reason}\n` : 'usage: npm run soak [SECONDS] [uplink|socket]\n');
    return reason ? 1 : 2;
  }
  const directory = mkdtempSync(join(tmpdir(), 'weft-soak-'));
  let bad = 0;
  try {
    for (const mode of only ? [only] : ['uplink', 'socket']) {
      const rounds = await soakPath(mode, Number(seconds), directory);
      const problems = grown(rounds);
      process.stdout.write(`${JSON.stringify({ schemaVersion: 1, path: mode, rounds, problems })}\n`);
      bad += problems.length;
    }
  } catch (error) {
    process.stderr.write(`soak: ${(error as Error).message}\n`);
    bad++;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
  return bad === 0 ? 0 : 1;
}

process.exitCode = await main(process.argv.slice(2));
