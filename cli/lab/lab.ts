/**
 * Laboratories of network namespaces: hosts, containers and links that exist for one run and leave nothing behind.
 *
 * Every name carries the pid and start time of the process that made it, so runs beside each other never clash, and
 * `sweepStale` knows what a killed run left. A lab is removed by `close`, when the process exits, and on SIGINT,
 * SIGTERM and SIGHUP; only SIGKILL leaves it, until the next run sweeps.
 */
import fs from 'node:fs';
import { runSync, toolEnvironment } from '../../control/command.js';
import { Namespace } from './namespace.js';
import { addressCommands, runAll } from './script.js';

const RUN_NETNS = '/run/netns';
const NAME = /^weft-([0-9a-z]+)-([0-9a-z]+)-\d+-/;
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
const CAP_NET_ADMIN = 12n;
const CAP_SYS_ADMIN = 21n;

export interface LinkOptions {
  /** Interface names at the two ends, at most 15 bytes. */
  nameA: string;
  nameB: string;
  /** Bytes; 1500 unless told. */
  mtu?: number;
  /** With prefix length, IPv4 or IPv6. */
  addressesA?: readonly string[];
  addressesB?: readonly string[];
  macA?: string;
  macB?: string;
}

export interface UnderlayOptions {
  /** Addresses with prefix length, one list a host, in the order of the hosts. */
  addresses: readonly (readonly string[])[];
  /** Name of the interface in each host; `under0` unless told. */
  device?: string;
  /** Bytes; 1500 unless told. */
  mtu?: number;
  /** Label of the namespace that holds the switch; `switch` unless told. */
  label?: string;
}

const openLabs = new Set<Lab>();
let labCount = 0;

export class Lab {
  readonly #namespaces = new Map<string, Namespace>();
  readonly #prefix: string;
  #closed = false;

  private constructor() {
    this.#prefix = `weft-${process.pid.toString(36)}-${startTime(process.pid)}-${labCount++}-`;
  }

  /** An empty lab. Sweeps what killed runs left. @throws Error when this process may not make namespaces. */
  static create(): Lab {
    const reason = Lab.unavailable();
    if (reason) throw new Error(`cannot build a network laboratory: ${reason}`);
    if (labCount === 0) sweepStale();
    const lab = new Lab();
    if (openLabs.size === 0) watchProcess();
    openLabs.add(lab);
    return lab;
  }

  /** Why there can be no lab here, or undefined when there can. */
  static unavailable(): string | undefined {
    const status = fs.readFileSync('/proc/self/status', 'utf8');
    const capabilities = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)/m.exec(status)?.[1] ?? '0'}`);
    for (const [bit, name] of [
      [CAP_NET_ADMIN, 'CAP_NET_ADMIN'],
      [CAP_SYS_ADMIN, 'CAP_SYS_ADMIN'],
    ] as const) {
      if (((capabilities >> bit) & 1n) === 0n) return `it needs ${name}: run as root`;
    }
    const directories = (toolEnvironment()['PATH'] ?? '').split(':');
    for (const [tool, debian] of [
      ['ip', 'iproute2'],
      ['bridge', 'iproute2'],
      ['nsenter', 'util-linux'],
    ] as const) {
      if (!directories.some((dir) => fs.existsSync(`${dir}/${tool}`)))
        return `it needs ${tool} (package ${debian})`;
    }
    return undefined;
  }

  /** The namespaces in the order they were made. */
  get namespaces(): Namespace[] {
    return [...this.#namespaces.values()];
  }

  /** Makes a namespace: a host, or a container. `label` is letters, digits and _, unique in the lab. */
  host(label: string): Namespace {
    if (this.#closed) throw new Error(`lab: cannot make ${label}, the lab is closed`);
    if (!/^\w{1,32}$/.test(label))
      throw new Error(`lab: a label is up to 32 letters, digits and _, not "${label}"`);
    if (this.#namespaces.has(label)) throw new Error(`lab: there is a ${label} already`);
    const namespace = new Namespace(this.#prefix + label, label);
    this.#namespaces.set(label, namespace); // before the kernel has it, so that close() also removes a half-made one
    namespace.make();
    return namespace;
  }

  /** Joins two namespaces by a veth pair, up and with addresses. */
  link(a: Namespace, b: Namespace, options: LinkOptions): void {
    runAll(linkCommands(a.name, b.name, options));
  }

  /** Joins hosts on one subnet by a switch: a namespace, which is returned, with a kernel bridge br0, ports p0, p1 … */
  bridgeUnderlay(hosts: readonly Namespace[], options: UnderlayOptions): Namespace {
    const { addresses, device = 'under0', mtu = 1500, label = 'switch' } = options;
    if (addresses.length !== hosts.length) {
      throw new Error(
        `lab: ${hosts.length} hosts on the underlay but ${addresses.length} lists of addresses`,
      );
    }
    const sw = this.host(label);
    const inside = ['ip', '-n', sw.name, 'link'];
    const ports = hosts.flatMap((host, i) => [
      ...linkCommands(host.name, sw.name, {
        nameA: device,
        nameB: `p${i}`,
        mtu,
        addressesA: addresses[i] ?? [],
      }),
      [...inside, 'set', `p${i}`, 'master', 'br0'],
    ]);
    const bridge = 'type bridge stp_state 0 forward_delay 0 mcast_snooping 0'.split(' ');
    runAll([
      [...inside, 'add', 'br0', 'mtu', String(mtu), ...bridge],
      [...inside, 'set', 'br0', 'up'],
      ...ports,
    ]);
    return sw;
  }

  /** Kills whatever runs in the namespaces and removes them. Synchronous; a second call does nothing. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    openLabs.delete(this);
    if (openLabs.size === 0) unwatchProcess();
    for (const namespace of this.#namespaces.values()) namespace.killChildren();
    removeNamespaces([...this.#namespaces.values()].map((namespace) => namespace.name));
  }
}

function linkCommands(a: string, b: string, options: LinkOptions): string[][] {
  const { nameA, nameB, mtu = 1500, macA, macB, addressesA = [], addressesB = [] } = options;
  const mac = (address: string | undefined) => (address ? ['address', address] : []);
  return [
    [
      ...['ip', 'link', 'add', nameA, 'mtu', String(mtu), ...mac(macA), 'netns', a],
      ...['type', 'veth', 'peer', 'name', nameB, 'mtu', String(mtu), ...mac(macB), 'netns', b],
    ],
    ['ip', '-n', a, 'link', 'set', nameA, 'up'],
    ...addressCommands(a, nameA, addressesA),
    ['ip', '-n', b, 'link', 'set', nameB, 'up'],
    ...addressCommands(b, nameB, addressesB),
  ];
}

/** Removes the namespaces, with what runs in them, of labs whose process is gone. @returns their names. */
export function sweepStale(): string[] {
  if (!fs.existsSync(RUN_NETNS)) return [];
  const stale = fs.readdirSync(RUN_NETNS).filter((name) => {
    const [, pid, start] = NAME.exec(name) ?? [];
    return pid !== undefined && startTime(Number.parseInt(pid, 36)) !== start;
  });
  removeNamespaces(stale);
  return stale;
}

/** When a process started, in ticks after boot, base 36: with the pid it names a process for good. '' if gone. */
function startTime(pid: number): string {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The name, in parentheses, may hold blanks and parentheses. Field 22 is the start time (proc(5)).
    return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]).toString(36);
  } catch {
    return '';
  }
}

function removeNamespaces(names: readonly string[]): void {
  if (names.length === 0) return;
  killProcessesIn(names);
  try {
    runSync('ip', ['-force', '-batch', '-'], { input: names.map((name) => `netns del ${name}\n`).join('') });
  } catch (error) {
    // Gone already: another process swept one at the same time, or it never came to be.
    const left = names.filter((name) => fs.existsSync(`${RUN_NETNS}/${name}`));
    if (left.length > 0)
      throw new Error(`lab: namespaces are left behind: ${left.join(' ')}\n${(error as Error).message}`);
  }
}

/** A process keeps its namespace, and the devices in it, alive after the name is gone. */
function killProcessesIn(names: readonly string[]): void {
  const ids = new Set(names.map((name) => namespaceId(`${RUN_NETNS}/${name}`)).filter((id) => id !== ''));
  const clock = new Int32Array(new SharedArrayBuffer(4));
  // More than once, for a process may fork while we look; 400 times 5 ms is a bound never met.
  for (let attempt = 0; ids.size > 0 && attempt < 400; attempt++) {
    const inside = fs
      .readdirSync('/proc')
      .filter(
        (pid) =>
          /^\d+$/.test(pid) && Number(pid) !== process.pid && ids.has(namespaceId(`/proc/${pid}/ns/net`)),
      );
    if (inside.length === 0) return;
    for (const pid of inside) {
      try {
        process.kill(Number(pid), 'SIGKILL');
      } catch {
        // It ended by itself.
      }
    }
    Atomics.wait(clock, 0, 0, 5);
  }
}

function namespaceId(path: string): string {
  try {
    const { dev, ino } = fs.statSync(path);
    return `${dev}:${ino}`;
  } catch {
    return '';
  }
}

function closeAll(): void {
  for (const lab of [...openLabs]) {
    try {
      lab.close();
    } catch (error) {
      process.stderr.write(`${(error as Error).message}\n`);
    }
  }
}

/** A program that handles the signal itself decides when it exits; that closes the labs. */
function onSignal(signal: NodeJS.Signals): void {
  if (process.listenerCount(signal) > 1) return;
  closeAll();
  process.kill(process.pid, signal);
}

function watchProcess(): void {
  process.on('exit', closeAll);
  for (const signal of SIGNALS) process.on(signal, onSignal);
}

function unwatchProcess(): void {
  process.off('exit', closeAll);
  for (const signal of SIGNALS) process.off(signal, onSignal);
}
