/** Where one contender stands: its own hosts and containers in namespaces, and a directory for its files. */
import type { SpawnOptions } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Lab, type Namespace, type RunningCommand, toolEnvironment, waitFor } from '../../cli/lab.js';

/** Interface of the underlay in each host, and of the overlay in each container. */
export const CARD = 'under0';
export const INTERFACE = 'eth0';
export const VNI = 42;
/** The host's end of a container's veth, where a contender wants one. */
export const PORT = 'ct0';
/** Of the container's network, where it has one. */
export const GATEWAY = '10.0.9.254';
/** Of the veth between two hosts. */
export const UNDERLAY_MTU = 1500;
/**
 * What Weft sets on its TAPs: the largest super-frame that still fits a 16-bit outer length. Every TAP here gets it,
 * so that all carry super-frames of one size.
 */
const GSO_MAX_SIZE = 65_400;

/** Addresses inside, by container: 0 is A, 1 is B. */
export const overlayAddress = (index: number): string => `10.0.9.${index + 1}`;
export const overlayMac = (index: number): string => `02:42:0a:00:09:0${index + 1}`;

/** In `gateway` container B is no container but the second host, outside of the overlay. */
export type Topology = 'one-host' | 'two-hosts' | 'gateway';

/** What a contender runs, measured beside it. */
export interface Engine {
  readonly process: RunningCommand;
  readonly name: string;
}

export class Site {
  readonly directory: string;
  readonly hosts: Namespace[] = [];
  readonly containers: Namespace[] = [];
  readonly engines: Engine[] = [];
  private readonly lab: Lab;
  private readonly clean = (): void => this.close();

  /** @throws CommandError; nothing is left behind then. */
  constructor(
    readonly topology: Topology,
    readonly ipv6: boolean,
  ) {
    this.lab = Lab.create();
    this.directory = mkdtempSync(join(tmpdir(), 'weft-bench-'));
    process.on('exit', this.clean);
    try {
      this.build();
    } catch (error) {
      this.close();
      throw error;
    }
  }

  private build(): void {
    // On one host the second is only there for the underlay to lead somewhere.
    this.hosts.push(this.lab.host('hA'), this.lab.host('hB'));
    this.containers.push(
      this.lab.host('cA'),
      this.topology === 'gateway' ? this.hosts[1] : this.lab.host('cB'),
    );
    this.lab.link(this.hosts[0], this.hosts[1], {
      nameA: CARD,
      nameB: CARD,
      mtu: UNDERLAY_MTU,
      addressesA: [`${this.vtep(0)}/${this.ipv6 ? 64 : 24}`],
      addressesB: [`${this.vtep(1)}/${this.ipv6 ? 64 : 24}`],
    });
  }

  /** Underlay address of a host. */
  vtep(index: number): string {
    return this.ipv6 ? `fd50::${index + 1}` : `192.168.50.${index + 1}`;
  }

  /** Where container A finds B. */
  get target(): string {
    return this.topology === 'gateway' ? this.vtep(1) : overlayAddress(1);
  }

  /** What fits through the underlay in VXLAN: 50 bytes of outer headers over IPv4, 70 over IPv6. Also used on one host. */
  get mtu(): number {
    return UNDERLAY_MTU - (this.ipv6 ? 70 : 50);
  }

  /** Starts an engine in a host: its time is counted, and what it says is quoted when something fails. */
  begin(
    host: number,
    name: string,
    command: string,
    args: readonly string[],
    options?: SpawnOptions,
  ): RunningCommand {
    const process = this.hosts[host].start(command, args, options);
    this.engines.push({ process, name: `${name} on ${this.hosts[host].label}` });
    return process;
  }

  /** Starts an engine and waits until it says `ready`. @throws CommandError with what it said instead. */
  async start(host: number, name: string, command: string, args: readonly string[]): Promise<void> {
    await this.begin(host, name, command, args).output(/^ready$/m, { timeoutMs: 20_000 });
  }

  /** Gives a container its interface as one end of a veth whose other end, `PORT`, is in its host. */
  attachVeth(index: number, mtu: number): void {
    const container = this.containers[index];
    const peer = `name ${INTERFACE} mtu ${mtu} address ${overlayMac(index)} netns ${container.name}`;
    this.hosts[index].ipBatch([`link add ${PORT} mtu ${mtu} type veth peer ${peer}`, `link set ${PORT} up`]);
    container.ip('link', 'set', INTERFACE, 'up');
    container.addAddresses(INTERFACE, [`${overlayAddress(index)}/24`]);
  }

  /** Gives a TAP that an engine has made in a container the address, MAC and sizes that Weft gives its own. */
  configureTap(index: number): void {
    const container = this.containers[index];
    container.ipBatch([
      `link set dev ${INTERFACE} address ${overlayMac(index)} mtu ${this.mtu} gso_max_size ${GSO_MAX_SIZE} up`,
      `addr add ${overlayAddress(index)}/24 dev ${INTERFACE}`,
    ]);
  }

  cardMac(host: number): string {
    const [link] = JSON.parse(this.hosts[host].ip('-j', 'link', 'show', 'dev', CARD)) as {
      address: string;
    }[];
    return link.address;
  }

  /** Waits until the containers reach each other. @throws Error when they do not within ten seconds. */
  async connected(): Promise<void> {
    const [a] = this.containers;
    const probe = ['-n', '-q', '-c', '1', '-W', '1', this.target];
    await waitFor(async () => (await a.exec('ping', probe)).code === 0, {
      what: `an answer of ${this.target}; ${this.said() || 'no engine said anything'}`,
      timeoutMs: 10_000,
    });
  }

  /** The end of what the engines printed on stderr, for the message of a failure. */
  said(): string {
    return this.engines
      .filter(({ process }) => process.stderr.trim() !== '')
      .map(({ name, process }) => `${name} said: ${process.stderr.trim().slice(-2000)}`)
      .join('\n');
  }

  /** Kills and removes everything. Synchronous, so that it also works while the process exits. */
  close(): void {
    process.off('exit', this.clean);
    try {
      this.lab.close();
    } finally {
      rmSync(this.directory, { recursive: true, force: true });
    }
  }
}

/** Whether a tool is installed where the lab looks for it. */
export function hasTool(name: string): boolean {
  const directories = (toolEnvironment()['PATH'] ?? '').split(':');
  return directories.some((directory) => existsSync(join(directory, name)));
}
