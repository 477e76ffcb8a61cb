/**
 * The uplink TAP on the host's side: the device, two nftables rules that move frames between it and the network
 * card, and the watch over next hops and MTU.
 *
 * One rule on the card takes unfragmented VXLAN and encapsulated ESP to our VTEP address into the TAP; one on the TAP
 * sends what the engine wrote out of the card. Nothing else of the host is touched: fragments, other ports and other addresses go
 * their usual way. The device goes with the process, however it ends; the table is removed on exit, made again when
 * somebody flushes it and, after a crash, replaced by the next start.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import type { Tap } from '../native-bindings/index.js';
import { macBytes, parseIp } from './addresses.js';
import { runSync, toolEnvironment } from './command.js';
import { closeQueues, openQueues } from './devices.js';
import type { LocalInterface } from './interfaces.js';
import type { Table } from './netlink.js';
import { makeTables, removeTable, TableWatch } from './nftables.js';

/** Length of the vnet header when the kernel segments UDP tunnels for us. */
const TUNNEL_VNET = 24;

export interface Uplink {
  /** One queue a worker. */
  readonly taps: readonly Tap[];
  readonly table: Table;
  readonly watch: TableWatch;
}

/** Where frames for a VTEP go first: MAC of the next hop and of our card, six bytes each. */
export interface Link {
  readonly vtep: Uint8Array;
  readonly destination: Uint8Array;
  readonly source: Uint8Array;
}

/** Our table: one for each VTEP address and port, so that a restart finds what a crash left. */
export function tableOf(address: string, port: number): Table {
  return `netdev weft_${address.replaceAll(/[.:]/g, '_')}_${port}`;
}

/**
 * Opens the uplink TAP and installs the rules.
 * @param ports UDP ports whose packets come in through it, that of VXLAN first.
 * @param log hears when the rules had to be made again.
 * @returns the uplink, or in one line why this host cannot have it.
 */
export function openUplink(
  address: string,
  ports: readonly [number, ...number[]],
  device: LocalInterface,
  workers: number,
  log: (line: string) => void,
): Uplink | string {
  if (device.linkType !== 'ether') return `${device.name} is no Ethernet interface`;
  let taps: Tap[];
  try {
    taps = openQueues({ name: 'weft%d', netns: '', persist: false, tunnel: true }, workers);
  } catch (error) {
    return (error as Error).message;
  }
  const [tap] = taps;
  if (tap.vnet !== TUNNEL_VNET) {
    closeQueues(taps);
    return 'this kernel does not segment UDP tunnels on TAPs (Linux 6.17 does)';
  }
  const table = tableOf(address, ports[0]);
  const make = (): void => makeTables(rules(table, address, ports, device.name, tap.name));
  try {
    // No addresses and no neighbours of its own: nothing but our frames is to come out of it.
    const settings = [
      `link set dev ${tap.name} addrgenmode none`,
      `link set dev ${tap.name} arp off mtu ${device.mtu} up`,
    ];
    runSync('ip', ['-batch', '-'], { input: `${settings.join('\n')}\n` });
    make();
  } catch (error) {
    closeQueues(taps);
    return `the rules that move frames between card and TAP were refused (${(error as Error).message.split('\n')[0]})`;
  }
  const watch = new TableWatch({ name: 'underlay', log, tables: () => [table], make });
  return { taps, table, watch };
}

function rules(table: Table, address: string, ports: readonly number[], card: string, tap: string): string {
  // Fragments carry no port after the first: all of them stay with the host's stack, which reassembles.
  const match = address.includes(':')
    ? `ip6 daddr ${address}`
    : `ip daddr ${address} ip frag-off & 0x3fff == 0`;
  return `table ${table} {}
delete table ${table}
table ${table} {
  chain from_card {
    type filter hook ingress device "${card}" priority 0;
    ${match} udp dport { ${ports.join(', ')} } fwd to "${tap}"
  }
  chain from_engine {
    type filter hook ingress device "${tap}" priority 0;
    fwd to "${card}"
  }
}
`;
}

export function closeUplink({ taps, table, watch }: Uplink): void {
  watch.close();
  removeTable(table);
  closeQueues(taps);
}

/** The network card as `ip -j link` shows it; only what is used here. */
interface Card {
  readonly address: string;
  readonly mtu: number;
  readonly flags: readonly string[];
}

interface Neighbour {
  readonly dst: string;
  readonly lladdr?: string;
  readonly state: readonly string[];
}

const UNUSABLE = new Set(['INCOMPLETE', 'FAILED', 'NONE']);
/** Changes come in bursts; one look serves them all. */
const SETTLE_MS = 20;
/** Before `ip monitor` is started again. */
const RESTART_MS = 1000;
/** How often entries that nobody else keeps fresh are confirmed; the kernel's own base reachable time is 30 s. */
const CONFIRM_MS = 25_000;

interface Listener {
  readonly log: (line: string) => void;
  /** Called with all links whenever they, or the MTU, differ from before. */
  readonly onChange: (links: Link[]) => void;
}

/**
 * Follows the next hop of each VTEP through the kernel's routes and neighbours, and the MTU of the card, which the
 * uplink TAP is given too. A VTEP whose next hop is not known, or whose route leaves by another interface, has no
 * link, and goes through the socket, where the kernel decides.
 */
export class LinkWatch {
  private monitor: ChildProcess | undefined;
  private closed = false;
  private readonly confirm: NodeJS.Timeout;
  private settle: NodeJS.Timeout | undefined;
  private vteps: readonly string[] = [];
  private known = '';
  private readonly device: string;
  /** Of the card, bytes. */
  mtu: number;

  constructor(
    private readonly local: string,
    card: LocalInterface,
    private readonly uplink: Uplink,
    private readonly listener: Listener,
  ) {
    this.device = card.name;
    this.mtu = card.mtu;
    this.listen();
    this.confirm = setInterval(() => this.look(true), CONFIRM_MS);
    this.confirm.unref();
  }

  /** Hears of changes from `ip monitor`, which is started again should it end; without it CONFIRM_MS is how soon. */
  private listen(): void {
    this.monitor = spawn('ip', ['monitor', 'link', 'address', 'route', 'neigh'], {
      env: toolEnvironment(),
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    this.monitor.on('error', () => undefined);
    this.monitor.stdout?.on('data', () => this.soon());
    this.monitor.on('exit', () => {
      if (!this.closed) setTimeout(() => !this.closed && this.listen(), RESTART_MS).unref();
    });
  }

  /** Sets the VTEPs to follow and returns their links as they are now. */
  follow(vteps: readonly string[]): Link[] {
    this.vteps = [...new Set(vteps)];
    return this.links(true);
  }

  private soon(): void {
    this.settle ??= setTimeout(() => {
      this.settle = undefined;
      this.look(false);
    }, SETTLE_MS);
  }

  private look(confirm: boolean): void {
    const before = this.known;
    const links = this.links(confirm);
    if (this.known !== before) this.listener.onChange(links);
  }

  /** @param confirm ask the kernel to resolve or confirm next hops that it is not sure of. */
  private links(confirm: boolean): Link[] {
    const [card] = this.read<Card>(['link', 'show', 'dev', this.device]);
    const source = card?.flags.includes('UP') ? macBytes(card.address) : undefined;
    if (card !== undefined && card.mtu !== this.mtu) this.followMtu(card.mtu);
    const neighbours = new Map<string, Neighbour>();
    for (const entry of this.read<Neighbour>(['neigh', 'show', 'dev', this.device]))
      neighbours.set(entry.dst, entry);
    const links: Link[] = [];
    const ask = new Set<string>();
    for (const vtep of this.vteps) {
      const hop = this.nextHop(vtep);
      if (hop === undefined || source === undefined) continue;
      const entry = neighbours.get(hop);
      const usable = entry?.lladdr !== undefined && !entry.state.some((state) => UNUSABLE.has(state));
      if (!usable || (confirm && entry.state.includes('STALE'))) ask.add(hop);
      if (usable) links.push({ vtep: parseIp(vtep).bytes, destination: macBytes(entry.lladdr!), source });
    }
    if (confirm && ask.size > 0) this.resolve(ask);
    this.known = JSON.stringify([this.mtu, links]);
    return links;
  }

  private read<T>(args: readonly string[]): T[] {
    try {
      return JSON.parse(runSync('ip', ['-j', ...args]) || '[]') as T[];
    } catch {
      // No route, or the interface has just gone: nothing is known.
      return [];
    }
  }

  private followMtu(mtu: number): void {
    const [{ name }] = this.uplink.taps;
    this.mtu = mtu;
    try {
      runSync('ip', ['link', 'set', 'dev', name, 'mtu', String(mtu)]);
      this.listener.log(`underlay: ${this.device} has an MTU of ${mtu} now, and so has ${name}`);
    } catch (error) {
      this.listener.log(
        `underlay: ${this.device} has an MTU of ${mtu} now, which ${name} cannot have: ${(error as Error).message}`,
      );
    }
  }

  private nextHop(vtep: string): string | undefined {
    const [route] = this.read<{ dst: string; dev: string; gateway?: string }>([
      'route',
      'get',
      vtep,
      'from',
      this.local,
    ]);
    return route?.dev === this.device ? (route.gateway ?? route.dst) : undefined;
  }

  private resolve(hops: ReadonlySet<string>): void {
    const lines = [...hops].map((hop) => `neigh replace ${hop} dev ${this.device} use\n`);
    try {
      runSync('ip', ['-force', '-batch', '-'], { input: lines.join('') });
    } catch {
      // Resolved meanwhile, or unreachable: the next event or confirmation tells.
    }
  }

  close(): void {
    clearInterval(this.confirm);
    clearTimeout(this.settle);
    this.closed = true;
    this.monitor?.kill();
  }
}
