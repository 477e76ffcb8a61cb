/** Reads mappings, lists and leaves by the schema, one key at a time, so that one bad key hides no other. */
import type { z } from 'zod';
import { quote } from '../addresses.js';
import { isMapping } from './document.js';
import { leaves } from './leaf.js';
import type { Findings, Path } from './problems.js';
import { SCHEMAS } from './schema.js';
import { secrecyOf } from './secrecy.js';

/** What could be read of a mapping: absent keys were not written, or were wrong and reported. */
export type Draft<S extends z.ZodObject> = Partial<z.output<S>>;

/** Reads the leaves of a mapping; structures in it are the caller's. */
export function readLeaves<S extends z.ZodObject>(
  schema: S,
  raw: unknown,
  path: Path,
  findings: Findings,
): Draft<S> {
  const draft: Record<string, unknown> = {};
  if (!isMapping(raw)) {
    const what = path.length === 0 ? 'the file' : String(path.at(-1));
    const label = typeof path.at(-1) === 'number' ? `entry ${what} of ${path.at(-2)}` : what;
    findings.add(
      path,
      `${label} is ${describe(raw, path)}, not a mapping`,
      `write keys and values, such as ${Object.keys(schema.shape)[0]}: …`,
    );
    return draft as Draft<S>;
  }
  for (const key of Object.keys(raw)) {
    if (!Object.hasOwn(schema.shape, key))
      findings.add([...path, key], ...unknownKey(key, findings, schema), 'key');
  }
  for (const [key, field] of Object.entries(schema.shape)) {
    if (!leaves.has(field)) continue;
    const value = readLeaf(field as z.ZodType, raw[key], [...path, key], findings);
    if (value !== undefined) draft[key] = value;
  }
  return draft as Draft<S>;
}

/** Reads a list; an absent one is empty. `readItem` gets each item that is not undefined. */
export function readList<T>(
  raw: unknown,
  path: Path,
  findings: Findings,
  readItem: (item: unknown, path: Path) => T,
): T[] {
  if (raw === undefined) return [];
  if (Array.isArray(raw)) return raw.map((item, index) => readItem(item, [...path, index]));
  const key = path.at(-1);
  const remedy = raw === null ? `list entries with "- ", or remove ${key}` : 'write each entry after "- "';
  findings.add(path, `${key} is ${describe(raw, path)}, not a list`, remedy);
  return [];
}

/** Reads one leaf; undefined when it is absent and optional, or wrong and reported. */
export function readLeaf<T>(
  schema: z.ZodType<T>,
  raw: unknown,
  path: Path,
  findings: Findings,
): T | undefined {
  const result = schema.safeParse(raw);
  if (result.success) return result.data;
  const key = String(path.at(-1));
  const label = typeof path.at(-1) === 'number' ? `entry ${key} of ${path.at(-2)}` : key;
  const { form, why } = leaves.get(schema)!;
  if (raw === undefined) {
    findings.add(path, `${key} is missing`, `add ${key}: ${form}`);
    return undefined;
  }
  for (const issue of result.error.issues.slice(0, 1)) {
    const reason = why?.(raw);
    const shown = secrecyOf(path) === 'open';
    // What a reader of values says may quote the value.
    const custom = issue.code === 'custom' && shown ? (issue.params as { remedy: string }) : undefined;
    const remedy = shown ? remedyFor(raw, issue, form) : `write ${form}`;
    if (custom) findings.add(path, issue.message, custom.remedy);
    else if (reason !== undefined) findings.add(path, reason, `write ${form}`);
    else findings.add(path, `${label} is ${describe(raw, path)}${wrongType(issue)}`, remedy);
  }
  return undefined;
}

function wrongType(issue: z.core.$ZodIssue): string {
  if (issue.code === 'invalid_type') {
    return `, not ${{ string: 'text', boolean: 'true or false', int: 'a whole number' }[String(issue.expected)] ?? 'a number'}`;
  }
  return issue.code === 'too_small' || issue.code === 'too_big' ? ', out of range' : ', which is not valid';
}

function remedyFor(raw: unknown, issue: z.core.$ZodIssue, form: string): string {
  const expected = issue.code === 'invalid_type' ? String(issue.expected) : '';
  if (typeof raw === 'string' && expected === 'number' && /^[0-9]{1,9}$/.test(raw))
    return `write ${raw} without quotes`;
  if (typeof raw === 'number' && expected === 'string' && !form.includes('quotes'))
    return `write ${form}, in quotes`;
  return `write ${form}`;
}

function describe(raw: unknown, path: Path): string {
  // A file that is one text may be a file of a key.
  const shown = path.length > 0 && secrecyOf(path) === 'open';
  if (raw === null || raw === undefined) return 'empty';
  if (typeof raw === 'string') return shown ? `the text ${quote(raw)}` : 'text';
  if (typeof raw === 'number' || typeof raw === 'bigint') return shown ? `the number ${raw}` : 'a number';
  if (typeof raw === 'boolean') return String(raw);
  return Array.isArray(raw) ? 'a list' : 'a mapping';
}

/** What is wrong with a key the schema has not, and the remedy. */
function unknownKey(key: string, findings: Findings, schema: z.ZodObject): [message: string, remedy: string] {
  const known = Object.keys(schema.shape);
  const name = findings.shows(key) ? `unknown key ${quote(key)}` : 'unknown key';
  if (key === '<<') return ['YAML 1.2 has no merge key "<<"', 'write the keys out'];
  const close = closest(key, known);
  if (close !== undefined) return [name, `did you mean ${close}?`];
  const home = SCHEMAS.find(([, level]) => Object.hasOwn(level.shape, key));
  if (home !== undefined) return [`${key} does not belong here`, `move it into ${home[0]}`];
  return [name, `remove it, or write one of ${known.join(', ')}`];
}

/** The candidate at most two edits away, the nearest first; undefined when none is. */
export function closest(word: string, candidates: Iterable<string>): string | undefined {
  let best: string | undefined;
  let least = 3;
  for (const candidate of candidates) {
    // Two edits turn any short word into any other.
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase());
    if (distance < least && distance < candidate.length - 1) {
      best = candidate;
      least = distance;
    }
  }
  return best;
}

/** Levenshtein distance, or 3 when the lengths alone differ by more than 2. */
function editDistance(a: string, b: string): number {
  if (Math.abs(a.length - b.length) > 2) return 3;
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(replaced, row[j] + 1, next[j - 1] + 1));
    }
    row = next;
  }
  return row[b.length];
}
