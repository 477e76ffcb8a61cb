/**
 * IPv4 and IPv6 forwarding of the host, no wider than an uplink of mode host needs it: of each interface that has an
 * address, and only where it is off. The rules of the uplink see to it that such an interface forwards for nobody
 * else. What was changed is noted, so that a start after a crash still knows it, and undone on exit.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import type { Family } from './addresses.js';

const conf = (family: Family, device: string, key: string): string =>
  `/proc/sys/net/ipv${family}/conf/${device}/${key}`;

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    // The interface has just gone, or this host has no IPv6.
    return '';
  }
}

/** Whether a key of an interface is there, and has a value if one is told. */
export function hasConf(family: Family, device: string, key: string, value?: string): boolean {
  const found = read(conf(family, device, key));
  return value === undefined ? found !== '' : found === value;
}

/** Sets a key of an interface unless it is so. @throws Error with `code`, EROFS where /proc/sys is not to be written. */
export function setConf(family: Family, device: string, key: string, value: string): void {
  const path = conf(family, device, key);
  if (read(path) !== value) writeFileSync(path, value);
}

/** What lets an interface forward: of IPv6 `forwarding` is for all of them, and Linux 6.17 has one for each. */
const KEYS = { 4: 'forwarding', 6: 'force_forwarding' } as const;

/** Names that the rules can hold as they are; others are left alone. */
const PLAIN_NAME = /^[\w.@-]{1,15}$/;

const isRouter = (family: Family): boolean => hasConf(family, 'all', 'forwarding', '1');

export class Forwarding {
  /** Interfaces, `4 eth0`, that forward because of us. */
  private readonly ours: Set<string>;

  /**
   * @param tap which forwards in any case, and goes by itself.
   * @param remembered what an earlier run noted and could not undo.
   */
  constructor(
    private readonly tap: string,
    private readonly families: readonly Family[],
    remembered: readonly string[],
  ) {
    this.ours = new Set(remembered.filter((key) => read(this.path(key)) === '1'));
  }

  private path(key: string): string {
    const [family, device] = key.split(' ');
    const version = family === '4' ? 4 : 6;
    return conf(version, device, KEYS[version]);
  }

  /** Whether this kernel forwards a family by all interfaces or none, and now by none. */
  lacks(family: Family): boolean {
    return !isRouter(family) && !hasConf(family, 'lo', KEYS[family]);
  }

  /** What is ours, to be noted. */
  get changed(): string[] {
    return [...this.ours];
  }

  /** Interfaces that forward a family because of us. */
  openedFor(family: Family): string[] {
    return this.changed.filter((key) => key.startsWith(`${family} `)).map((key) => key.slice(2));
  }

  /** Looks at the host again. Returns the interfaces to open, which are ours from now on. */
  look(): readonly string[] {
    const fresh: string[] = [];
    for (const family of this.families) {
      // Who makes the host a router means everybody: nothing is ours any more.
      const router = isRouter(family);
      for (const key of this.changed)
        if (key.startsWith(`${family} `) && (router || !existsSync(this.path(key)))) this.ours.delete(key);
      if (!router) fresh.push(...this.closed(family));
    }
    for (const key of fresh) this.ours.add(key);
    return fresh;
  }

  private closed(family: Family): string[] {
    return Object.entries(networkInterfaces())
      .filter(([name, addresses]) => name !== this.tap && addresses?.some((one) => belongs(one, family)))
      .map(([name]) => name)
      .filter((name) => PLAIN_NAME.test(name))
      .map((name) => `${family} ${name}`)
      .filter((key) => read(this.path(key)) === '0');
  }

  /** @throws Error with `code` when the host does not let us. */
  open(keys: readonly string[]): void {
    for (const key of keys) writeFileSync(this.path(key), '1');
  }

  /** Puts everything back. */
  close(): void {
    for (const key of this.ours) {
      try {
        writeFileSync(this.path(key), '0');
      } catch {
        // The interface is gone.
      }
    }
    this.ours.clear();
  }
}

function belongs(
  { family, internal, scopeid }: { family: string; internal: boolean; scopeid?: number | undefined },
  wanted: Family,
): boolean {
  return !internal && family === `IPv${wanted}` && !scopeid;
}
