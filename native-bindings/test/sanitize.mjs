#!/usr/bin/env node
// Builds the addon with AddressSanitizer and UndefinedBehaviorSanitizer and runs the tests that use it most:
//   node native-bindings/test/sanitize.mjs [TEST…]     tests as paths in dist/test, `native-bindings/udp.test.js`
// Needs a finished build (npm run build) and GCC's libasan. Works in a temporary copy: the addon in
// native-bindings/build, which others may be running, is not touched.
//
// What it sees: accesses outside what malloc gave – C's own buffers and the bytes of ordinary typed arrays – and
// undefined arithmetic. What it does not: a step from one slot of the frame memory into the next, for that memory
// is one mapping; the tests of bad frame numbers stand for that. Leaks are not looked for (detect_leaks=0): Node
// and V8 leave their heap to the process's end, and thousands of their blocks would hide one of ours.
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const INCLUDE = path.join(path.dirname(path.dirname(fs.realpathSync(process.execPath))), 'include/node');
const COMPILER = process.env.CC || 'gcc';
// A finding ends the process, and so the test: nothing is left to be overlooked in a log.
const flags = (sanitizers) =>
  `-std=gnu11 -g -O1 -fno-omit-frame-pointer -Wall -Wextra -Wno-unused-function -pthread
  -fsanitize=${sanitizers} -fno-sanitize-recover=all`.split(/\s+/);
const MEMORY = flags('address,undefined');
const THREADS = flags('thread');
// As setup.mjs has it.
const ARCHIVE =
  spawnSync(COMPILER, ['-print-file-name=libIPSec_MB.a'], { encoding: 'utf8' }).stdout?.trim() ?? '';
const IPSEC_MB =
  process.arch === 'x64' && fs.existsSync('/usr/include/intel-ipsec-mb.h') && path.isAbsolute(ARCHIVE)
    ? ['-DWEFT_IPSEC_MB', ARCHIVE, '-Wl,--exclude-libs,ALL']
    : [];
const TESTS = [
  'native-bindings/checksum.test.js',
  'native-bindings/misuse.test.js',
  'native-bindings/gcm.test.js',
  'native-bindings/gcm-vectors.test.js',
  'native-bindings/udp.test.js',
  'native-bindings/tap.test.js',
  'native-bindings/file.test.js',
  'engine/elements/vxlan-encap.test.js',
  'engine/elements/vxlan-decap.test.js',
];

const say = (text) => process.stderr.write(`sanitize: ${text}\n`);

/** Runs a command with its output on ours; ends the script when it fails. */
function run(command, args, options = {}) {
  const result = spawnSync(command, args, { stdio: 'inherit', ...options });
  if (result.status === 0) return;
  say(`${path.basename(command)} ended with ${result.error?.message ?? result.status ?? result.signal}`);
  process.exit(1);
}

function runtime() {
  const { stdout } = spawnSync(COMPILER, ['-print-file-name=libasan.so'], { encoding: 'utf8' });
  const file = stdout?.trim() ?? '';
  if (path.isAbsolute(file)) return fs.realpathSync(file);
  say(`${COMPILER} has no libasan: install GCC's (Debian: libgcc-12-dev) or set CC`);
  return process.exit(1);
}

if (!fs.existsSync(path.join(ROOT, 'dist/native-bindings/index.js'))) {
  say('there is no build in dist: npm run build');
  process.exit(1);
}
const asan = runtime();
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'weft-sanitize-'));
process.on('exit', () => fs.rmSync(scratch, { recursive: true, force: true }));
const copy = path.join(scratch, 'weft');
fs.mkdirSync(copy);
// What tests look for beside the repository.
const shared = path.join(ROOT, '../shared');
if (fs.existsSync(shared)) fs.symlinkSync(shared, path.join(scratch, 'shared'));
const env = {
  ...process.env,
  ASAN_OPTIONS: 'detect_leaks=0:abort_on_error=1:strict_string_checks=1',
  UBSAN_OPTIONS: 'print_stacktrace=1',
};

/** Builds and runs a program of this directory. */
function program(name, sanitizers) {
  const file = path.join(copy, name);
  run(COMPILER, [
    ...sanitizers,
    `-I${INCLUDE}`,
    '-o',
    file,
    path.join(ROOT, `native-bindings/test/${name}.c`),
  ]);
  run(file, [], { env });
}

say('checksums and batches, without Node');
program('checksum', MEMORY);
program('gcm', MEMORY);
say('threads, without Node');
program('gcm', THREADS);

say('the addon, under the tests');
const sources = fs.readdirSync(path.join(ROOT, 'native-bindings/src')).filter((name) => name.endsWith('.c'));
fs.mkdirSync(path.join(copy, 'native-bindings/build'), { recursive: true });
run(COMPILER, [
  ...MEMORY,
  ...['-shared', '-fPIC', `-I${INCLUDE}`, '-o', path.join(copy, 'native-bindings/build/weft.node')],
  ...sources.map((name) => path.join(ROOT, 'native-bindings/src', name)),
  ...IPSEC_MB,
]);
fs.cpSync(path.join(ROOT, 'dist'), path.join(copy, 'dist'), { recursive: true });
fs.copyFileSync(path.join(ROOT, 'package.json'), path.join(copy, 'package.json'));
fs.symlinkSync(path.join(ROOT, 'node_modules'), path.join(copy, 'node_modules'));
const chosen = process.argv.slice(2);
const tests = (chosen.length > 0 ? chosen : TESTS).map((name) => `dist/test/${name}`);
const ava = path.join(ROOT, 'node_modules/ava/entrypoints/cli.mjs');
// Node itself is not instrumented, so the runtime has to be there before it.
run(process.execPath, [ava, '--serial', ...tests], { cwd: copy, env: { ...env, LD_PRELOAD: asan } });
say('nothing found');
