/** What must survive a crash: which interfaces the daemon made. A small file beside the control socket. */
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';

export interface RememberedTap {
  /** Path of the namespace. */
  readonly netns: string;
  readonly interface: string;
}

/** Interfaces noted by an earlier run; none when the file is missing or damaged, which only costs the clean-up. */
export function rememberedTaps(path: string): RememberedTap[] {
  try {
    const { taps } = JSON.parse(readFileSync(path, 'utf8')) as { taps: RememberedTap[] };
    return taps.filter((tap) => typeof tap.netns === 'string' && typeof tap.interface === 'string');
  } catch {
    return [];
  }
}

/** Notes the interfaces; an empty list removes the file. Written aside and renamed, so that it is never half there. */
export function rememberTaps(path: string, taps: readonly RememberedTap[]): void {
  if (taps.length === 0) {
    rmSync(path, { force: true });
    return;
  }
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.new`, JSON.stringify({ taps }));
  renameSync(`${path}.new`, path);
}
