/** A file that a table of flows lies in, for as long as a test runs. */
import { closeSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { native } from '../../native-bindings/index.js';

/** @returns its descriptor; it has so many bytes. */
export function flowFile(t: ExecutionContext, bytes: number): number {
  const directory = mkdtempSync(join(tmpdir(), 'weft-flows-'));
  const fd = openSync(join(directory, 'flows'), 'w+');
  native.fileReserve(fd, bytes);
  t.teardown(() => {
    closeSync(fd);
    rmSync(directory, { recursive: true });
  });
  return fd;
}
