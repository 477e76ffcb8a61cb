/**
 * The file in which the flow table lies, so that flows outlive the process: beside the daemon's state, which is on a
 * tmpfs under /run. Memory of the process would go with it, and a file that is written now and then would be old when
 * it is needed; this one is the table. Whoever is killed leaves it, and whoever is stopped removes it.
 *
 * What numbers of the entries stand for is in a second file: networks, services, and published ports. It never says of
 * a number what is not so of every entry: what changes is first taken out of it, and put in when the data plane has
 * changed.
 */
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statfsSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { flowMemoryBytes, HEADER_BYTES, holdsFlows, takenOver } from '../engine/flow-memory.js';
import type { FlowTableIntent, Intent, LeftFlows } from '../engine/intent.js';
import { addressesFor } from '../engine/tables/addresses6.js';
import { flowBytes } from '../engine/tables/flows.js';
import { MAX_DOMAINS } from '../engine/tables/mac-table.js';
import { native } from '../native-bindings/index.js';
import { ipBytes } from './addresses.js';
import { localEndpoints } from './attached.js';
import { type Config, hasServicesOfIpv6 } from './config.js';
import { FlowWatch } from './flow-watch.js';
import { areNamed, type NamedService, namedMeanwhile, servicesAsLeft } from './left-services.js';
import type { Plan } from './plan.js';

/** What numbers stand for. */
interface Names {
  /** The boot in which flows were tracked: their clock is the kernel's, which begins anew with each. */
  readonly boot: string;
  /** Number of each network, by all that its flows depend on. */
  readonly networks: Readonly<Record<string, number>>;
  /** Published ports, as `publishedName` writes them. */
  readonly published: readonly string[];
  readonly services: readonly NamedService[];
}

const PUBLISHED = /^\d+(?:\.\d+){3,15} \d+ \d+ /;

/** Of a file system in memory (statfs(2)). */
const TMPFS_MAGIC = 0x01021994;

const bootId = (): string => readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();

/** A network whose flows are of no use when any of this is different: those that leave it when the last two are. */
function networkNames({ networks }: Config): Map<string, string> {
  return new Map(
    networks.map(({ name, vni, subnet, uplink, masquerade }) => [
      name,
      JSON.stringify([name, vni, subnet, uplink ?? null, masquerade]),
    ]),
  );
}

/** What of such a text is the network itself, and not its way out. */
function networkItself(text: string): string {
  return JSON.stringify(JSON.parse(text).slice(0, 3));
}

function publishedNames({ publish, uplinks }: Pick<Intent, 'publish' | 'uplinks'>): string[] {
  return publish.map(({ uplink, protocol, port, domain, address, target }) => {
    const way = address.length === 4 ? uplinks[uplink] : uplinks[uplink]?.v6;
    const external = way?.address.join('.') ?? '';
    return `${external} ${protocol} ${port} ${domain} ${address.join('.')} ${target}`;
  });
}

export class FlowFile {
  /** Numbers of networks that have flows in the file, by name; and services that have. */
  readonly numbers: ReadonlyMap<string, number>;
  readonly services: readonly NamedService[];
  private readonly memory: ArrayBuffer;
  /** The entries, and the addresses by number that those of IPv6 name; the data plane writes both meanwhile. */
  readonly entries: Int32Array;
  readonly numbered: Int32Array;
  /** Addresses that there is room for; undefined where neither an uplink nor a service has IPv6, or had. */
  private readonly addresses: number | undefined;
  private left: Names | undefined;
  private noted: Names | undefined;
  /** Events of the flows. */
  readonly watch = new FlowWatch();

  private constructor(
    private readonly path: string,
    private readonly fd: number,
    config: Config,
  ) {
    const { maxFlows } = config.nat;
    const most = addressesFor(maxFlows);
    const isDual = config.uplinks.some((uplink) => uplink.mode === 'router' && uplink.address6 !== undefined);
    const sizes = [flowMemoryBytes(maxFlows), flowMemoryBytes(maxFlows, most)];
    const { size } = fstatSync(fd);
    const names = sizes.includes(size) ? readNames(namesPath(path)) : undefined;
    const wasServed = names?.services.some(({ vip }) => vip.includes(':')) ?? false;
    this.addresses = isDual || hasServicesOfIpv6(config) || wasServed ? most : undefined;
    const bytes = flowMemoryBytes(maxFlows, this.addresses);
    if (names === undefined || !holdsFlows(native.fileMap(fd, HEADER_BYTES), maxFlows)) ftruncateSync(fd, 0);
    else {
      this.left = names;
      // Addresses that are not there, or are no longer: their flows go.
      if (size > bytes) ftruncateSync(fd, bytes);
    }
    native.fileReserve(fd, bytes);
    this.noted = this.left;
    this.memory = native.fileMap(fd, bytes);
    this.entries = new Int32Array(this.memory, 0, flowBytes(maxFlows) / 4);
    this.numbered = new Int32Array(this.memory, flowBytes(maxFlows));
    this.services = this.left?.services ?? [];
    const known = new Map(
      Object.entries(this.left?.networks ?? {}).map(([all, number]) => [networkItself(all), number]),
    );
    const now = [...networkNames(config)].map(
      ([name, all]) => [name, known.get(networkItself(all))] as const,
    );
    this.numbers = new Map(now.filter((entry): entry is [string, number] => entry[1] !== undefined));
  }

  /** Whether flows of IPv6 can be in it. */
  get hasIpv6(): boolean {
    return this.addresses !== undefined;
  }

  /**
   * Opens the file, or makes it.
   * @throws Error with `code` ENOSPC when there is no room; Error for a file that is not ours, or in use.
   */
  static open(state: string, config: Config): FlowFile {
    const path = filePath(state);
    mkdirSync(dirname(path), { recursive: true });
    const fd = openOwn(path);
    try {
      return new FlowFile(path, fd, config);
    } catch (error) {
      // Nothing was in it, and nothing is.
      if (fstatSync(fd).size === 0) removeFiles(path);
      native.fileUnlock(fd);
      closeSync(fd);
      throw error;
    }
  }

  /** Whether an earlier process left flows of services. */
  static hasServices(state: string): boolean {
    return (readNames(namesPath(filePath(state)))?.services.length ?? 0) > 0;
  }

  /** Removes what an earlier process left, for there is no table any more. */
  static discard(state: string): void {
    removeFiles(filePath(state));
  }

  /** What the data plane is told of it, with what else it is told. */
  intentOf(config: Config, intent: Omit<Intent, 'flows'>): FlowTableIntent {
    const { fd, left, addresses, watch } = this;
    return {
      ...{ capacity: config.nat.maxFlows, fd, events: watch.memory },
      ...(addresses !== undefined && { addresses }),
      ...(left && { left: this.leftOf(config, intent, left) }),
    };
  }

  private leftOf(config: Config, intent: Omit<Intent, 'flows'>, left: Names): LeftFlows {
    const kept = new Set(publishedNames(intent));
    const domains = this.numbers;
    const services = servicesAsLeft(left.services, intent.services ?? [], domains, this.hasIpv6);
    // The way out of the others is another.
    const unchanged = [...networkNames(config)].filter(([, all]) => left.networks[all] !== undefined);
    return {
      services,
      domains: unchanged.map(([name]) => domains.get(name)!),
      endpoints: [
        ...localEndpoints(config).flatMap(({ network, address, address6 }) => {
          const domain = domains.get(network);
          if (domain === undefined) return [];
          const addresses = address6 === undefined ? [address] : [address, address6];
          return addresses.map((one) => ({
            domain,
            address: ipBytes(one.split('/')[0]),
          }));
        }),
        // Published services lead to backends wherever they are.
        ...services.flatMap(({ domain, backends }) => backends.map(({ address }) => ({ domain, address }))),
      ],
      unpublished: left.published
        .filter((name) => !kept.has(name))
        .map((name) => {
          const [address, protocol, port] = name.split(' ');
          return {
            address: Uint8Array.from(address.split('.').map(Number)),
            protocol: Number(protocol),
            port: Number(port),
          };
        }),
    };
  }

  /** Before the data plane changes: what is the same before and after, and all that is published before or after. */
  change(config: Config, plan: Plan, intent: Intent): void {
    const next = namesOf(config, plan, intent);
    const before = this.noted ?? { ...next, networks: {}, published: [], services: [] };
    const same = Object.entries(next.networks).filter(([name, number]) => before.networks[name] === number);
    this.write({
      ...next,
      networks: Object.fromEntries(same),
      published: [...new Set([...before.published, ...next.published])],
      services: namedMeanwhile(before.services, next.services),
    });
  }

  /** When it has. */
  settle(config: Config, plan: Plan, intent: Intent): void {
    this.left = undefined;
    this.write(namesOf(config, plan, intent));
  }

  private write(names: Names): void {
    const path = namesPath(this.path);
    rmSync(`${path}.new`, { force: true });
    writeFileSync(`${path}.new`, JSON.stringify(names), { mode: 0o600, flag: 'wx' });
    renameSync(`${path}.new`, path);
    this.noted = names;
  }

  /** What to say of a start: how many flows were taken over, and where the file had better be. */
  said(): string[] {
    const { taken, refused } = takenOver(this.memory);
    const lines = taken + refused === 0 ? [] : [`flows: ${taken} taken over, ${refused} not`];
    if (statfsSync(this.path).type !== TMPFS_MAGIC)
      lines.push(`flows: ${this.path} is on no tmpfs, so the disk is written to all the time`);
    return lines;
  }

  /** @param keep whether the next process is to find it; unless told, when this one found it so itself. */
  close(keep = this.left !== undefined): void {
    if (!keep) removeFiles(this.path);
    native.fileUnlock(this.fd);
    closeSync(this.fd);
  }
}

const filePath = (state: string): string => `${state}.flows`;
const namesPath = (path: string): string => `${path}.names`;

function removeFiles(path: string): void {
  for (const one of [path, namesPath(path), `${namesPath(path)}.new`]) rmSync(one, { force: true });
}

function namesOf(config: Config, plan: Plan, intent: Intent): Names {
  const networks = [...networkNames(config)].map(([name, all]) => [all, plan.networks.of(name)]);
  return {
    ...{ boot: bootId(), networks: Object.fromEntries(networks) },
    ...{ published: publishedNames(intent), services: plan.services.named() },
  };
}

/** Undefined when they are missing, damaged, another's or of an earlier boot: then the flows are of no use. */
function readNames(path: string): Names | undefined {
  try {
    const file = lstatSync(path);
    if (!file.isFile() || file.uid !== process.geteuid?.()) return undefined;
    const {
      boot,
      networks,
      published,
      services = [],
    } = JSON.parse(readFileSync(path, 'utf8')) as Partial<Names>;
    if (boot !== bootId() || typeof networks !== 'object' || !Array.isArray(published)) return undefined;
    const numbers = Object.values(networks);
    if (!numbers.every((number) => Number.isInteger(number) && number >= 0 && number < MAX_DOMAINS))
      return undefined;
    if (new Set(numbers).size !== numbers.length || !areNamed(services)) return undefined;
    for (const text of Object.keys(networks)) networkItself(text);
    if (!published.every((name) => typeof name === 'string')) return undefined;
    return { boot, networks, published: published.filter((name) => PUBLISHED.test(name)), services };
  } catch {
    return undefined;
  }
}

/** Opens a file of ours that nobody else holds. */
function openOwn(path: string): number {
  for (;;) {
    const fd = openNoLink(path);
    try {
      const file = fstatSync(fd);
      if (!file.isFile()) throw new Error(`${path} is no file: remove it`);
      if (file.uid !== process.geteuid?.() || (file.mode & 0o077) !== 0 || file.nlink > 1)
        throw new Error(`${path} is not this user's alone: somebody else made it, so remove it`);
      if (!native.fileLock(fd))
        throw new Error(
          `${path} is in use by another process: stop it, or choose another path with --socket`,
        );
      // Whoever held it before may have removed it as its last deed.
      if (statSync(path, { throwIfNoEntry: false })?.ino === file.ino) return fd;
    } catch (error) {
      closeSync(fd);
      throw error;
    }
    closeSync(fd);
  }
}

function openNoLink(path: string): number {
  try {
    return openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ELOOP') throw error;
    throw new Error(`${path} is a symbolic link: remove it`);
  }
}
