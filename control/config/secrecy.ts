/**
 * Where a node's file holds secrets, so that no problem quotes one. What is wrong there is told by its place, kind and
 * length. A secret may stand anywhere in the two structures that have secrets (as a list entry, as a key), under its
 * key anywhere in the file, and, where a line was broken, as a key of any mapping.
 */
import type { Path } from './problems.js';
import { SCHEMAS } from './schema.js';

const ROOTS: ReadonlySet<unknown> = new Set(['encryption', 'security_associations']);
const SECRETS: ReadonlySet<unknown> = new Set(['secret', 'key']);
const KNOWN: ReadonlySet<string> = new Set(SCHEMAS.flatMap(([, { shape }]) => Object.keys(shape)));

/** `open`: what stands there may be quoted; `near`: not, for it may be a misplaced secret; `secret`: it is one. */
export type Secrecy = 'open' | 'near' | 'secret';

export function secrecyOf(path: Path): Secrecy {
  if (path.some((step) => SECRETS.has(step))) return 'secret';
  return path.some((step) => ROOTS.has(step)) ? 'near' : 'open';
}

/** Whether a file may hold secrets. In such a file no key is shown that the schema has not. */
export function isGuarded(text: string): boolean {
  return /secret|key|encryption|security_associations/.test(text);
}

export function isKnown(key: string): boolean {
  return KNOWN.has(key);
}

/**
 * Whether an alias may carry a value from where its anchor stands to where it is used. A secret shared with another key
 * would be shown where that key is, and a name or address used as a secret is none.
 */
export function mayCarry(anchor: Path, use: Path): boolean {
  const from = secrecyOf(anchor);
  const to = secrecyOf(use);
  return from === to || (from === 'open' && to === 'near');
}
