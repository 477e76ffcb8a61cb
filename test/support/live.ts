/**
 * Live rigs: hosts and containers in network namespaces, engines started as an operator starts them, and what it
 * takes to see every frame. Nothing is left behind: a rig kills its engines, removes its namespaces and its files.
 */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { ask } from '../../cli/client.js';
import {
  type CommandResult,
  Lab,
  type Namespace,
  ping,
  type RunningCommand,
  toolEnvironment,
  waitFor,
} from '../../cli/lab.js';
import type { DropRow, FdbRow, Status } from '../../control/api.js';
import type { SaRow } from '../../control/keying/store.js';
import type { PeerMode } from './live-peer.js';

export const MAIN = fileURLToPath(new URL('../../cli/main.js', import.meta.url));
const PEER = fileURLToPath(new URL('./live-peer.js', import.meta.url));
/** An engine on a busy machine of two cores may take this long to start. */
const START_MS = 30_000;

type Body = (t: ExecutionContext) => Promise<void>;

/** Why the tests of a file cannot run here, or undefined when they can. */
export function missing(tools: readonly string[]): string | undefined {
  const lab = Lab.unavailable();
  if (lab) return lab;
  if (!existsSync('/dev/net/tun')) return 'it needs /dev/net/tun';
  const directories = (toolEnvironment()['PATH'] ?? '').split(':');
  const tool = tools.find((name) => !directories.some((directory) => existsSync(`${directory}/${name}`)));
  return tool && `it needs ${tool}`;
}

/** Why there is no witness of package `cap` here, or undefined when there is. */
export function capMissing(): string | undefined {
  try {
    createRequire(import.meta.url)('cap');
    return undefined;
  } catch {
    return 'the optional package cap is not there';
  }
}

export interface LiveOptions {
  /** Tools beside ip, bridge and nsenter. */
  readonly tools?: readonly string[];
  /** Another reason to skip. */
  readonly skip?: string | undefined;
}

/** Registers a serial test, skipped with the reason in its title where it cannot run. */
export function live(title: string, body: Body, { tools = [], skip }: LiveOptions = {}): void {
  const reason = skip ?? missing(tools);
  if (reason) test.serial.skip(`${title} [skipped: ${reason}]`, () => {});
  else test.serial(title, body);
}

/** A rig that the tests of a file share: made before the first unless they `skip`, closed whatever happens. */
export function shared<R extends Rig>(make: () => Promise<R>, skip = missing([])): () => R {
  let rig: R | undefined;
  // One after another: a file may have eight of them, and sixteen engines that start at once keep each other waiting.
  test.serial.before(async () => {
    if (skip === undefined) rig = await make();
  });
  test.after.always(() => rig?.close());
  return () => rig!;
}

/** What a node's file holds; written as JSON, which is YAML. */
export interface NodeFile {
  node?: string;
  underlay: Record<string, unknown>;
  networks: Record<string, unknown>[];
  endpoints: Record<string, unknown>[];
  [further: string]: unknown;
}

export class Rig {
  readonly lab = Lab.create();
  readonly directory = mkdtempSync(join(tmpdir(), 'weft-live-'));
  readonly #engines: Engine[] = [];

  /** An engine in a host, not started. */
  engine(host: Namespace, file: NodeFile | string): Engine {
    const engine = new Engine(host, join(this.directory, `${host.label}-${this.#engines.length}`));
    this.#engines.push(engine);
    engine.write(file);
    return engine;
  }

  /** Starts them all at once. If one does not start, the rig is closed, for nobody will get it. */
  async start(...engines: readonly Engine[]): Promise<void> {
    try {
      await Promise.all(engines.map((engine) => engine.start()));
    } catch (error) {
      this.close();
      throw error;
    }
  }

  close(): void {
    for (const engine of this.#engines) engine.running?.child.kill('SIGKILL');
    this.lab.close();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** One `weft up` in a host of the lab. */
export class Engine {
  readonly file: string;
  readonly socket: string;
  running: RunningCommand | undefined;

  constructor(
    readonly host: Namespace,
    path: string,
  ) {
    this.file = `${path}.yaml`;
    this.socket = `${path}.sock`;
  }

  write(file: NodeFile | string): void {
    const text =
      typeof file === 'string' ? file : JSON.stringify({ node: this.host.label, ...file }, null, 2);
    // A file may hold secrets, and then Weft wants it to be its owner's alone.
    writeFileSync(this.file, text, { mode: 0o600 });
  }

  /** Starts the process and does not wait. */
  launch(...options: string[]): RunningCommand {
    const args = ['up', '-c', this.file, '--socket', this.socket, ...options];
    this.running = this.host.start(process.execPath, [MAIN, ...args]);
    return this.running;
  }

  /** Starts and waits until every port forwards. */
  async start(...options: string[]): Promise<void> {
    await this.launch(...options).output(/^ready$/m, { timeoutMs: START_MS });
  }

  /** Has a new process take over; resolves with the end of the old one when the new one forwards. */
  async replace(): Promise<CommandResult> {
    const before = this.running!;
    await this.start('--replace');
    return before.finish(START_MS);
  }

  /** Starts an engine that is to refuse; resolves with its end. */
  async refuse(): Promise<CommandResult> {
    return this.launch().finish(START_MS);
  }

  get pid(): number {
    return this.running!.child.pid!;
  }

  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<CommandResult> {
    return this.running!.stop(signal);
  }

  async kill(): Promise<void> {
    this.running!.child.kill('SIGKILL');
    await this.running!.ended;
  }

  /** SIGHUP; resolves with what the engine said: `reloaded`, or why not. */
  async reload(): Promise<string> {
    const before = this.running!.stderr.length;
    this.running!.child.kill('SIGHUP');
    await waitFor(() => /^(not )?reloaded/m.test(this.running!.stderr.slice(before)), {
      what: `an answer to SIGHUP of ${this.host.label}`,
      timeoutMs: START_MS,
    });
    return this.running!.stderr.slice(before);
  }

  /** Writes the file and reloads; fails when the engine does. */
  async change(file: NodeFile): Promise<void> {
    this.write(file);
    const answer = await this.reload();
    if (!/^reloaded$/m.test(answer)) throw new Error(`${this.host.label} was not reloaded: ${answer}`);
  }

  status(): Promise<Status> {
    return ask<Status>('GET', '/status', { socket: this.socket });
  }

  /** Rows of `weft sa ls`. */
  async associations(): Promise<SaRow[]> {
    return (await ask<{ associations: SaRow[] }>('GET', '/sa', { socket: this.socket })).associations;
  }

  async fdb(): Promise<FdbRow[]> {
    return (await ask<{ entries: FdbRow[] }>('GET', '/fdb', { socket: this.socket })).entries;
  }

  async flush(): Promise<void> {
    await ask('POST', '/fdb/flush', { socket: this.socket });
  }

  /** Drops by `element reason`; those that never happened are left out. */
  async drops(): Promise<Record<string, number>> {
    const { drops } = await ask<{ drops: DropRow[] }>('GET', '/drops', { socket: this.socket });
    const found = drops.filter(({ count }) => count > 0);
    return Object.fromEntries(found.map(({ element, reason, count }) => [`${element} ${reason}`, count]));
  }

  /** Counters of an element, such as `bridge`. */
  async element(name: string): Promise<Record<string, number>> {
    return (await this.status()).elements[name];
  }

  /** Starts to watch drops; the function returned tells what was dropped since, and by whom. */
  async watchDrops(): Promise<() => Promise<Record<string, number>>> {
    const before = await this.drops();
    return async () => {
      const after = await this.drops();
      const grown = Object.keys(after).filter((key) => after[key] !== before[key]);
      return Object.fromEntries(grown.map((key) => [key, after[key] - (before[key] ?? 0)]));
    };
  }

  /** Runs `weft ARGS… --socket …` as an operator does. */
  async cli(...args: string[]): Promise<CommandResult> {
    return this.host.exec(process.execPath, [MAIN, ...args, '--socket', this.socket]);
  }
}

/** Runs a mode of live-peer in a namespace. */
export function peer(namespace: Namespace, mode: PeerMode, ...args: string[]): RunningCommand {
  return namespace.start(process.execPath, [PEER, mode, ...args]);
}

/** Sends raw Ethernet frames out of a device. */
export async function inject(namespace: Namespace, device: string, ...frames: Uint8Array[]): Promise<void> {
  for (const frame of frames) await pour(namespace, frame, `INTERFACE:${device}`);
}

/** Sends one UDP datagram, as some program of the host would. */
export async function sendUdp(from: Namespace, to: string, port: number, payload: Uint8Array): Promise<void> {
  await pour(from, payload, to.includes(':') ? `UDP6-SENDTO:[${to}]:${port}` : `UDP4-SENDTO:${to}:${port}`);
}

async function pour(namespace: Namespace, bytes: Uint8Array, to: string): Promise<void> {
  const running = namespace.start('socat', ['-u', '-b', '65536', 'STDIN', to], {
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  running.child.stdin?.end(bytes);
  const { code, stderr } = await running.finish();
  if (code !== 0) throw new Error(`${namespace.label}: socat to ${to}: ${stderr}`);
}

/** Whoever shows frames of an interface as hexadecimal text, in the order in which they came. */
export interface Sniffer {
  frames(): string[];
  stop(): Promise<void>;
}

/** Shows frames of an interface by tcpdump; those that come in, unless `direction` says otherwise. */
export async function sniff(
  namespace: Namespace,
  device: string,
  filter: string,
  direction: 'in' | 'out' | 'inout' = 'in',
): Promise<Sniffer> {
  const running = namespace.start('tcpdump', [
    // A place for a frame takes 128 KiB: of its own accord tcpdump has 32, which a busy machine leaves unread too long.
    ...['-i', device, '-n', '-t', '-l', '-xx', '-s', '0', '-B', '8192', '--immediate-mode', '-Q', direction],
    filter,
  ]);
  await running.output(/listening on/, { stream: 'stderr' });
  return {
    frames: () =>
      running.stdout
        .split(/^(?=\S)/m)
        .map((text) => [...text.matchAll(/^\s+0x[0-9a-f]+:\s+([0-9a-f ]+)$/gm)])
        .map((lines) => lines.map(([, hex]) => hex.replaceAll(' ', '')).join(''))
        .filter((hex) => hex !== ''),
    stop: async () => {
      await running.stop('SIGTERM');
    },
  };
}

/** The same by package `cap`, in a process of its own since cap aborts when its interface goes down. */
export async function witness(namespace: Namespace, device: string, filter: string): Promise<Sniffer> {
  const running = peer(namespace, 'witness', device, filter);
  await running.output(/^listening$/m);
  return {
    frames: () => running.stdout.split('\n').filter((line) => /^[0-9a-f]+$/.test(line)),
    stop: async () => {
      await running.stop('SIGTERM');
    },
  };
}

export const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

/** How many of the frames contain these bytes. */
export function sightings(sniffer: Sniffer, bytes: Uint8Array): number {
  const wanted = hex(bytes);
  return sniffer.frames().filter((frame) => frame.includes(wanted)).length;
}

/** Waits until a sniffer has seen these bytes. */
export async function seen(sniffer: Sniffer, bytes: Uint8Array, times = 1): Promise<void> {
  await waitFor(() => sightings(sniffer, bytes) >= times, { what: `frame ${hex(bytes).slice(0, 60)}` });
}

/** An interface as `ip -j -d address` describes it, or undefined when it is not there. */
export function linkOf(namespace: Namespace, name: string): Link | undefined {
  const links = JSON.parse(namespace.ip('-j', '-d', 'address', 'show')) as Link[];
  return links.find(({ ifname }) => ifname === name);
}

export interface Link {
  readonly ifname: string;
  readonly ifindex: number;
  readonly mtu: number;
  readonly address: string;
  readonly ifalias?: string;
  readonly addr_info: readonly { local: string; prefixlen: number; scope: string }[];
}

/** Names of interfaces of a namespace but lo. */
export function linksOf(namespace: Namespace): string[] {
  const links = JSON.parse(namespace.ip('-j', 'link', 'show')) as Link[];
  return links.map(({ ifname }) => ifname).filter((name) => name !== 'lo');
}

export const underlayAddress = (n: number, v6: boolean): string => (v6 ? `fd50::${n}` : `192.168.50.${n}`);
export const overlayAddress = (n: number, v6 = false): string => (v6 ? `fd00:9::${n}` : `10.0.9.${n}`);
/** MAC that Weft derives for `overlayAddress(n)`. */
export const overlayMac = (n: number): string => `02:42:0a:00:09:${n.toString(16).padStart(2, '0')}`;

export interface MeshOptions {
  /** How many hosts, numbered from 1; each has a container of its number. */
  readonly hosts: number;
  readonly v6?: boolean;
  /** Bytes, of the underlay. */
  readonly mtu?: number;
  readonly underlay?: Record<string, unknown>;
  readonly network?: Record<string, unknown>;
  /** Further keys of each file, such as `encryption`. */
  readonly file?: Record<string, unknown>;
  /** Hosts that get no engine: the test puts something else there. */
  readonly without?: readonly number[];
}

/** Hosts on one underlay, `under0` in each, one container a host, network blue (VNI 42) among them. */
export class Mesh extends Rig {
  readonly hosts: Namespace[] = [];
  readonly containers: Namespace[] = [];
  /** By number of the host, less one. */
  readonly engines: Engine[] = [];
  readonly switch: Namespace;

  constructor(readonly options: MeshOptions) {
    super();
    const { mtu = 1500, hosts } = options;
    for (let n = 1; n <= hosts; n++) this.hosts.push(this.lab.host(`h${n}`));
    for (let n = 1; n <= hosts; n++) this.containers.push(this.lab.host(`c${n}`));
    const addresses = this.hosts.map((_, i) => [`192.168.50.${i + 1}/24`, `fd50::${i + 1}/64`]);
    this.switch = this.lab.bridgeUnderlay(this.hosts, { addresses, mtu });
  }

  /** Starts every engine with its file. */
  static async up(options: MeshOptions): Promise<Mesh> {
    const mesh = new Mesh(options);
    for (let n = 1; n <= options.hosts; n++)
      mesh.engines.push(mesh.engine(mesh.hosts[n - 1], mesh.fileOf(n)));
    const wanted = mesh.engines.filter((_, i) => !options.without?.includes(i + 1));
    await mesh.start(...wanted);
    await mesh.resolveUnderlay();
    return mesh;
  }

  /**
   * Waits until the hosts reach one another. A fresh interface tries its IPv6 addresses first (RFC 4862, 5.4), and
   * what is sent before that is done may be lost: that is not ours to count.
   */
  private async resolveUnderlay(): Promise<void> {
    const { hosts, v6 = false } = this.options;
    const [first, ...others] = this.hosts;
    for (let n = 2; n <= hosts; n++) {
      await ping(first, underlayAddress(n, v6), { count: 1, deadlineS: 5 });
      await ping(others[n - 2], underlayAddress(1, v6), { count: 1, deadlineS: 5 });
    }
  }

  /** The file of host `n`. */
  fileOf(n: number): NodeFile {
    const { hosts, v6 = false, underlay = {}, network = {}, file = {} } = this.options;
    const others = Array.from({ length: hosts }, (_, i) => i + 1).filter((other) => other !== n);
    return {
      underlay: { address: underlayAddress(n, v6), ...underlay },
      networks: [
        {
          name: 'blue',
          vni: 42,
          subnet: '10.0.9.0/24',
          subnet6: 'fd00:9::/64',
          peers: others.map((other) => underlayAddress(other, v6)),
          ...network,
        },
      ],
      endpoints: [this.endpointOf(n)],
      ...file,
    };
  }

  /** Endpoint `n` of network blue, in container `n` unless told. */
  endpointOf(n: number, netns = this.containers[n - 1].name): Record<string, unknown> {
    return {
      name: `c${n}`,
      network: 'blue',
      netns,
      interface: 'eth0',
      address: `${overlayAddress(n)}/24`,
      address6: `${overlayAddress(n, true)}/64`,
    };
  }
}
