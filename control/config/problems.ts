/** What is wrong in a node's file: one problem a place, all at once, each with its remedy. */
import { isKnown } from './secrecy.js';

/** Steps from the root of the file to a value: keys of mappings, indices of lists. */
export type Path = readonly (string | number)[];

/** One thing wrong. `line` and `column` count from 1; both are 0 when the file could not be read at all. */
export interface Problem {
  readonly file: string;
  readonly line: number;
  readonly column: number;
  /** Where in the file's structure, such as `networks[0].vni`; empty for the whole file. */
  readonly path: string;
  readonly message: string;
  /** What to write or do instead. */
  readonly remedy: string;
  /** True when the file is sound but this host lacks what it asks for. */
  readonly host?: boolean;
}

/** More than this many problems are counted, not listed: a file of garbage must not print megabytes. */
const MOST_LISTED = 100;

/** A node's file that is not used. `problems` are sorted by place, at most 100; `omitted` counts the rest. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
  readonly problems: readonly Problem[];
  readonly omitted: number;

  constructor(problems: readonly Problem[]) {
    const sorted = [...problems].sort((a, b) => a.line - b.line || a.column - b.column);
    const listed = sorted.slice(0, MOST_LISTED);
    const omitted = sorted.length - listed.length;
    const lines = listed.map(formatProblem);
    if (omitted > 0) lines.push(`${sorted[0].file}: and ${omitted} more problems; mend these first`);
    super(lines.join('\n'));
    this.problems = listed;
    this.omitted = omitted;
  }
}

function formatProblem(problem: Problem): string {
  const place = problem.line > 0 ? `:${problem.line}:${problem.column}` : '';
  return `${problem.file}${place}: ${problem.message}; ${problem.remedy}`;
}

function formatPath(path: Path, shows: (key: string) => boolean): string {
  return path.reduce<string>((text, step) => {
    if (typeof step === 'number') return `${text}[${step}]`;
    const shown = shows(step) ? step : '…';
    const key = shown.length > 60 ? `${shown.slice(0, 57)}...` : shown;
    return text === '' ? key : `${text}.${key}`;
  }, '');
}

export interface Position {
  readonly line: number;
  readonly column: number;
}

/** Turns a path into a position; `key` points at the key of a mapping, `value` at what it holds. */
export type Locate = (path: Path, at: 'key' | 'value') => Position;

/** Collects problems while a file is read. */
export class Findings {
  readonly problems: Problem[] = [];

  /** @param guarded the file may hold secrets: keys are shown only when they are the schema's. */
  constructor(
    private readonly file: string,
    private readonly locate: Locate,
    private readonly guarded: boolean,
  ) {}

  /** Whether a key may be quoted. */
  shows(key: string): boolean {
    return !this.guarded || isKnown(key);
  }

  add(path: Path, message: string, remedy: string, at: 'key' | 'value' = 'value'): void {
    this.addAt(this.locate(path, at), path, message, remedy);
  }

  addAt({ line, column }: Position, path: Path, message: string, remedy: string): void {
    const shown = formatPath(path, (key) => this.shows(key));
    this.problems.push({ file: this.file, line, column, path: shown, message, remedy });
  }

  /** The line of a value, for messages that name two places. */
  lineOf(path: Path): number {
    return this.locate(path, 'value').line;
  }
}
