/** How commands ask the daemon: HTTP over its control socket. */
import { request } from 'node:http';
import { createInterface } from 'node:readline';
import type { Command } from 'commander';
import { DEFAULT_SOCKET } from '../control/protocol.js';
import { CommandError, EXIT } from './output.js';

export interface ClientOptions {
  readonly socket: string;
  /** How long an answer may take; 15 s unless told. */
  readonly timeoutMs?: number;
}

/** Adds the options that every command that asks the daemon has. */
export function withClient(command: Command): Command {
  return command
    .option('--socket <path>', "the daemon's control socket", DEFAULT_SOCKET)
    .option('--json', 'print one JSON object');
}

/** The path with what of the query is there. */
export function withQuery(path: string, query: Readonly<Record<string, string | undefined>>): string {
  const given = Object.entries(query).filter((entry): entry is [string, string] => entry[1] !== undefined);
  return `${path}?${new URLSearchParams(given)}`;
}

/** @throws CommandError: exit 3 when no daemon answers, 4 for an unknown path, 5 when it refuses. */
export function ask<T>(
  method: 'GET' | 'POST',
  path: string,
  { socket, timeoutMs = 15_000 }: ClientOptions,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const call = request({ socketPath: socket, path, method, timeout: timeoutMs }, (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (chunk: string) => {
        text += chunk;
      });
      response.on('end', () => {
        const body = JSON.parse(text) as T & { error?: string };
        if (response.statusCode === 200) resolve(body);
        else {
          const exit = response.statusCode === 404 ? EXIT.notFound : EXIT.conflict;
          reject(new CommandError(body.error ?? `the daemon answered ${response.statusCode}`, exit));
        }
      });
    });
    call.on('timeout', () => call.destroy(new Error(`no answer in ${timeoutMs / 1000} s`)));
    call.on('error', (error) => reject(unreachable(socket, error)));
    call.end();
  });
}

function unreachable(socket: string, error: NodeJS.ErrnoException): CommandError {
  const reason =
    error.code === 'ENOENT' || error.code === 'ECONNREFUSED' ? 'no daemon listens there' : error.message;
  return new CommandError(
    `cannot ask the daemon on ${socket}: ${reason}; start one with "weft up -c weft.yaml", or name its socket with --socket`,
    EXIT.unreachable,
  );
}

/**
 * Asks for what goes on: calls for each line of JSON, until the daemon ends.
 * @throws CommandError as `ask`.
 */
export function follow<T>(path: string, { socket }: ClientOptions, each: (line: T) => void): Promise<void> {
  return new Promise((resolve, reject) => {
    const call = request({ socketPath: socket, path }, (response) => {
      const lines = createInterface({ input: response });
      if (response.statusCode === 200) lines.on('line', (line) => each(JSON.parse(line) as T));
      else
        lines.on('line', (line) => {
          const exit = response.statusCode === 404 ? EXIT.notFound : EXIT.conflict;
          reject(new CommandError((JSON.parse(line) as { error: string }).error, exit));
        });
      // A daemon that is killed ends it as well.
      lines.on('error', () => lines.close());
      lines.on('close', resolve);
    });
    call.on('error', (error) => reject(unreachable(socket, error)));
    call.end();
  });
}
