import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { native } from '../../native-bindings/index.js';

function fileOf(t: ExecutionContext): { path: string; fd: number } {
  const directory = mkdtempSync(join(tmpdir(), 'weft-file-'));
  const path = join(directory, 'file');
  const fd = openSync(path, 'w+');
  t.teardown(() => {
    closeSync(fd);
    rmSync(directory, { recursive: true });
  });
  return { path, fd };
}

test('what is written to a mapping is in the file, and in every other mapping of it', (t) => {
  const { path, fd } = fileOf(t);
  native.fileReserve(fd, 10_000);
  t.is(statSync(path).size, 10_000);
  t.true(statSync(path).blocks * 512 >= 10_000, 'the room is taken');
  const one = new Uint8Array(native.fileMap(fd, 10_000));
  const other = new Uint8Array(native.fileMap(fd, 5000));
  one[4999] = 7;
  one[9999] = 9;
  t.is(other.length, 5000);
  t.is(other[4999], 7);
  t.is(readFileSync(path)[9999], 9);
});

test('a file that is reserved keeps what is in it', (t) => {
  const { fd } = fileOf(t);
  native.fileReserve(fd, 100);
  new Uint8Array(native.fileMap(fd, 100))[50] = 1;
  native.fileReserve(fd, 200);
  t.is(new Uint8Array(native.fileMap(fd, 200))[50], 1);
});

test('a lock is one descriptor’s, until it is given back, mapped or not', (t) => {
  const { path, fd } = fileOf(t);
  t.true(native.fileLock(fd));
  const other = openSync(path, 'r+');
  t.false(native.fileLock(other));
  t.true(native.fileLock(fd));
  native.fileReserve(fd, 100);
  const mapped = new Uint8Array(native.fileMap(fd, 100));
  native.fileUnlock(fd);
  t.true(native.fileLock(other));
  t.false(native.fileLock(fd));
  native.fileUnlock(other);
  mapped[0] = 1;
  closeSync(other);
});

test('more than the file holds is not mapped, nor what is no size or no file', (t) => {
  const { fd } = fileOf(t);
  native.fileReserve(fd, 100);
  t.throws(() => native.fileMap(fd, 101), { message: /shorter/ });
  for (const bytes of [0, -1, Number.NaN, 2 ** 50]) t.throws(() => native.fileMap(fd, bytes));
  t.throws(() => native.fileReserve(fd, -5), { message: /size/ });
  t.throws(() => native.fileMap(-1, 10), { code: 'EBADF' });
  t.throws(() => native.fileLock(-1), { code: 'EBADF' });
});
