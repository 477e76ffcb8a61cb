/** What must survive a crash: what the daemon made of the host. A small file beside the control socket. */
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import type { Table } from './netlink.js';

export interface RememberedTap {
  /** Path of the namespace. */
  readonly netns: string;
  readonly interface: string;
}

/** What an uplink of mode host changed. */
export interface RememberedHost {
  /** nftables tables, `ip NAME`. */
  readonly tables: readonly Table[];
  /** Interfaces on which forwarding was enabled, `4 eth0`. */
  readonly forwarding: readonly string[];
}

interface State {
  readonly taps: readonly RememberedTap[];
  readonly host: RememberedHost;
}

const NOTHING: RememberedHost = { tables: [], forwarding: [] };

/** Nothing when the file is missing or damaged, which only costs the clean-up. */
function read(path: string): State {
  try {
    const { taps = [], host = NOTHING } = JSON.parse(readFileSync(path, 'utf8')) as Partial<State>;
    return {
      taps: taps.filter((tap) => typeof tap.netns === 'string' && typeof tap.interface === 'string'),
      host: {
        tables: host.tables.filter((table): table is Table => /^ip6? weft_\w+$/.test(table)),
        forwarding: host.forwarding.filter((key) => /^[46] [^/\s]{1,15}$/.test(key)),
      },
    };
  } catch {
    return { taps: [], host: NOTHING };
  }
}

/** Removes the file when there is nothing to note. Written aside and renamed, so that it is never half there. */
function write(path: string, state: State): void {
  const { taps, host } = state;
  if (taps.length + host.tables.length + host.forwarding.length === 0) {
    rmSync(path, { force: true });
    return;
  }
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.new`, JSON.stringify(state));
  renameSync(`${path}.new`, path);
}

/** Interfaces noted by an earlier run. */
export function rememberedTaps(path: string): readonly RememberedTap[] {
  return read(path).taps;
}

export function rememberTaps(path: string, taps: readonly RememberedTap[]): void {
  write(path, { ...read(path), taps });
}

export function rememberedHost(path: string): RememberedHost {
  return read(path).host;
}

export function rememberHost(path: string, host: RememberedHost = NOTHING): void {
  write(path, { ...read(path), host });
}
