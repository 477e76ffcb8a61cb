/** A network namespace of a laboratory: a host, a container or a switch. */
import type { ChildProcess, SpawnOptions } from 'node:child_process';
import {
  CommandError,
  type CommandResult,
  RunningCommand,
  type RunOptions,
  runSync,
} from '../../control/command.js';
import { addressCommands, runAll, sysctlCommand } from './script.js';

export interface RouteOptions {
  /** Next hop. */
  via?: string;
  dev?: string;
  /** Locks the path MTU in bytes, as a router's "fragmentation needed" would. */
  mtu?: number;
}

const family = (address: string) => (address.includes(':') ? '-6' : '-4');

export class Namespace {
  readonly #children = new Set<ChildProcess>();

  /** Made by `Lab.host`. `name` is the kernel's (/run/netns), `label` what the lab calls it. */
  constructor(
    readonly name: string,
    readonly label: string,
  ) {}

  /** For `nsenter --net=`, or a daemon that wants a path. */
  get path(): string {
    return `/run/netns/${this.name}`;
  }

  /** `ip -n NAME ARGS…`; returns what it prints. @throws CommandError */
  ip(...args: string[]): string {
    return runSync('ip', ['-n', this.name, ...args]);
  }

  /** `bridge -n NAME ARGS…`; returns what it prints. @throws CommandError */
  bridge(...args: string[]): string {
    return runSync('bridge', ['-n', this.name, ...args]);
  }

  /** Many `ip` commands in one process; stops at the first that fails. @throws CommandError */
  ipBatch(lines: readonly string[]): void {
    runSync('ip', ['-n', this.name, '-batch', '-'], { input: `${lines.join('\n')}\n` });
  }

  /** Adds addresses such as 10.0.0.1/24; IPv6 ones without duplicate detection, so they work at once. */
  addAddresses(device: string, addresses: readonly string[]): void {
    runAll(addressCommands(this.name, device, addresses));
  }

  /** Adds or replaces a route; `destination` is a prefix or `default`. */
  route(destination: string, options: RouteOptions): void {
    const { via, dev, mtu } = options;
    this.ip(
      family(via ?? destination),
      ...['route', 'replace', destination],
      ...(via ? ['via', via] : []),
      ...(dev ? ['dev', dev] : []),
      ...(mtu ? ['mtu', 'lock', String(mtu)] : []),
    );
  }

  /** Lets the namespace route between its interfaces. */
  enableForwarding(): void {
    runAll([sysctlCommand(this.name, '1', ['net/ipv4/ip_forward', 'net/ipv6/conf/all/forwarding'])]);
  }

  /** Called once by the lab: loopback up, IPv6 addresses usable at once and no router solicitations. */
  make(): void {
    const keys = ['all/accept_dad', 'default/accept_dad', 'default/router_solicitations'];
    runAll([
      ['ip', 'netns', 'add', this.name],
      ['ip', '-n', this.name, 'link', 'set', 'lo', 'up'],
      sysctlCommand(
        this.name,
        '0',
        keys.map((key) => `net/ipv6/conf/${key}`),
      ),
    ]);
  }

  /** Starts a command in the namespace; the lab kills it at its close if it still runs. */
  start(command: string, args: readonly string[] = [], options: SpawnOptions = {}): RunningCommand {
    // nsenter becomes the command, so signals reach it. Unlike `ip netns exec` it keeps our mounts: what the
    // command adds to /run/netns is seen by everybody.
    const running = new RunningCommand('nsenter', [`--net=${this.path}`, '--', command, ...args], options);
    this.#children.add(running.child);
    const forget = () => this.#children.delete(running.child);
    running.ended.then(forget, forget);
    return running;
  }

  /** As `start`, for those who want the bare ChildProcess. Its output is read, so it never blocks on a full pipe. */
  spawn(command: string, args: readonly string[] = [], options: SpawnOptions = {}): ChildProcess {
    return this.start(command, args, options).child;
  }

  /** Runs a command to its end, whatever its exit code. @throws CommandError when it takes too long. */
  async exec(
    command: string,
    args: readonly string[] = [],
    options: RunOptions = {},
  ): Promise<CommandResult> {
    const running = this.start(command, args, { stdio: ['pipe', 'pipe', 'pipe'] });
    running.child.stdin?.on('error', () => {}); // it may end without reading its input
    running.child.stdin?.end(options.input ?? '');
    return running.finish(options.timeoutMs);
  }

  /** Runs a command that must succeed and returns its stdout. @throws CommandError on another code than 0. */
  async run(command: string, args: readonly string[] = [], options: RunOptions = {}): Promise<string> {
    const { code, stdout, stderr } = await this.exec(command, args, options);
    if (code === 0) return stdout;
    const text = [command, ...args].join(' ');
    throw new CommandError(`${this.label}: ${text}`, code, stderr || stdout, `exit code ${code}`);
  }

  /** Kills what was started here. Synchronous, for use while the process exits. */
  killChildren(): void {
    for (const child of this.#children) child.kill('SIGKILL');
    this.#children.clear();
  }
}
