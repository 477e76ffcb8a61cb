/**
 * How commands speak: data on stdout, talk on stderr, and an exit code that a script can trust.
 */

import { SCHEMA_VERSION } from '../control/protocol.js';

/** Exit codes of every command. */
export const EXIT = {
  done: 0,
  failed: 1,
  /** Wrong usage or invalid configuration. */
  usage: 2,
  /** The daemon does not answer. */
  unreachable: 3,
  notFound: 4,
  conflict: 5,
  interrupted: 130,
} as const;

/** An error that a command ends with: a message for people and an exit code for scripts. */
export class CommandError extends Error {
  constructor(
    message: string,
    readonly exitCode: number = EXIT.failed,
  ) {
    super(message);
  }
}

/** Prints one JSON object to stdout, `schemaVersion` first. */
export function printJson(value: object): void {
  process.stdout.write(`${JSON.stringify({ schemaVersion: SCHEMA_VERSION, ...value })}\n`);
}

/** One line of talk on stderr. */
export function say(message: string): void {
  process.stderr.write(`${message}\n`);
}

export interface Column {
  readonly title: string;
  readonly align?: 'left' | 'right';
}

/** Prints rows as a table with aligned columns to stdout. */
export function printTable(columns: readonly Column[], rows: readonly (readonly string[])[]): void {
  const widths = columns.map((column, i) =>
    Math.max(column.title.length, ...rows.map((row) => row[i].length)),
  );
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, i) => (columns[i].align === 'right' ? cell.padStart(widths[i]) : cell.padEnd(widths[i])))
      .join('  ')
      .trimEnd();
  process.stdout.write(`${line(columns.map((column) => column.title))}\n`);
  for (const row of rows) process.stdout.write(`${line(row)}\n`);
}
