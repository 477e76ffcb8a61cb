import { type ChildProcess, spawn } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import type { DemoReport } from '../../cli/demo/demo.js';
import { Progress } from '../../cli/demo/progress.js';
import { Lab, toolEnvironment, waitFor } from '../../cli/lab.js';

const MAIN = fileURLToPath(new URL('../../cli/main.js', import.meta.url));

const missing = Lab.unavailable() ?? (existsSync('/dev/net/tun') ? undefined : 'there is no /dev/net/tun');

/** A test that needs namespaces and TAPs; skipped, with the reason in its title, where there are none. */
function live(title: string, body: (t: ExecutionContext) => Promise<void>): void {
  if (missing) test.skip(`${title} [skipped: ${missing}]`, () => {});
  // One after the other: each run takes both cores.
  else test.serial(title, body);
}

interface Run {
  readonly child: ChildProcess;
  readonly directory: string;
  readonly closed: Promise<number | null>;
  stdout: string;
  stderr: string;
}

interface RunOptions {
  readonly env?: NodeJS.ProcessEnv;
  /** What starts the program, such as a tool that takes rights away. */
  readonly wrapper?: readonly string[];
}

/** Starts `weft demo` with a temporary directory of its own. */
function start(t: ExecutionContext, args: readonly string[], { env, wrapper = [] }: RunOptions = {}): Run {
  const directory = mkdtempSync(join(tmpdir(), 'weft-demo-test-'));
  const [command, ...rest] = [...wrapper, process.execPath, MAIN, 'demo', ...args];
  const child = spawn(command!, rest, {
    env: { ...toolEnvironment(), TMPDIR: directory, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  // From the start: one that ends before it is asked is not to be waited for in vain.
  const closed = new Promise<number | null>((resolve) => child.on('close', resolve));
  const run: Run = { child, directory, closed, stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const) {
    child[name]!.setEncoding('utf8').on('data', (chunk: string) => {
      run[name] += chunk;
    });
  }
  t.teardown(() => {
    child.kill('SIGKILL');
    rmSync(directory, { recursive: true, force: true });
  });
  return run;
}

/** Exit code, once its output is complete. */
function ended({ closed }: Run): Promise<number | null> {
  return closed;
}

/** Namespaces, processes and files of a run that is over. */
function leftovers({ child, directory }: Run): string[] {
  const prefix = `weft-${child.pid!.toString(36)}-`;
  const namespaces = existsSync('/run/netns') ? readdirSync('/run/netns') : [];
  const processes = readdirSync('/proc')
    .filter((pid) => /^\d+$/.test(pid) && Number(pid) !== process.pid)
    .map((pid) => commandLine(pid))
    .filter((command) => command.includes(directory) || command.includes(prefix));
  return [...namespaces.filter((name) => name.startsWith(prefix)), ...processes, ...readdirSync(directory)];
}

function commandLine(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
  } catch {
    return '';
  }
}

function stream(isTTY: boolean): {
  written: string;
  isTTY: boolean;
  columns: number;
  write(text: string): boolean;
} {
  return {
    written: '',
    isTTY,
    columns: 20,
    write(text) {
      this.written += text;
      return true;
    },
  };
}

test('progress is plain lines where nobody watches', (t) => {
  const to = stream(false);
  const progress = new Progress(2, to as never);
  progress.step('first, with a text longer than a line');
  progress.step('second');
  progress.clear();
  t.is(to.written, '[1/2] first, with a text longer than a line\n[2/2] second\n');
});

test.serial('progress is one line, rewritten and at the end gone, on a terminal', (t) => {
  const term = process.env['TERM'];
  process.env['TERM'] = 'xterm';
  t.teardown(() => {
    if (term === undefined) delete process.env['TERM'];
    else process.env['TERM'] = term;
  });
  const to = stream(true);
  const progress = new Progress(2, to as never);
  progress.step('first, with a text longer than a line');
  progress.step('second');
  progress.clear();
  progress.clear();
  t.is(to.written, '\r[1/2] first, with a\u001b[K\r[2/2] second\u001b[K\r\u001b[K');
});

live('the demo shows every step and leaves nothing behind', async (t) => {
  const run = start(t, ['--json', '--seconds', '1']);
  t.is(await ended(run), 0, run.stderr);
  const report = JSON.parse(run.stdout) as DemoReport & { schemaVersion: number };
  t.is(report.schemaVersion, 1);
  for (const stage of ['weft', 'mixed', 'kernel'] as const) {
    const { ping, tcp, udp, broadcast } = report.stages[stage];
    t.true(ping.received >= ping.sent * 0.9, stage);
    t.true(ping.rttAvgMs > 0);
    t.true(tcp!.bitsPerSecond > 0, stage);
    t.true(udp!.packetsPerSecond > 0, stage);
    t.is(broadcast.seen, broadcast.sent, stage);
  }
  const answers = report.outside.map(({ asked, answered, seen }) => ({
    asked,
    answered,
    seen: seen.toSorted(),
  }));
  const both = { asked: 10, answered: { c1: 5, c2: 5 } };
  t.deepEqual(answers, [
    { asked: 1, answered: { world: 1 }, seen: ['192.168.60.11'] },
    { asked: 1, answered: { c1: 1 }, seen: ['192.168.60.9'] },
    // What c1 asks itself comes from the service.
    { ...both, seen: ['10.0.9.1', '10.0.9.100'] },
    { ...both, seen: ['192.168.60.9'] },
    { ...both, seen: ['192.168.60.9'] },
  ]);
  const { encryption } = report;
  t.true(encryption.ping.received > 0);
  t.true(encryption.tcp.bitsPerSecond > 0);
  t.is(encryption.deaf, undefined);
  const { plain, encrypted } = encryption.heard!;
  // Of the marks that can be read one may be lost or late on a busy machine; of the others none may be read.
  t.like(plain, { esp: 0, keys: 0 });
  t.true(plain.read > 0 && plain.read <= plain.marked && plain.vxlan > 0);
  t.like(encrypted, { vxlan: 0, read: 0 });
  t.true(encrypted.marked > 0 && encrypted.esp > 0 && encrypted.keys > 0);
  t.deepEqual(
    report.engines.map(({ node }) => node),
    ['hostA', 'hostB'],
  );
  for (const { vxlanSent, vxlanReceived } of report.engines) t.true(vxlanSent > 0 && vxlanReceived > 0);
  const { replay } = report;
  const dropped = Object.values(replay.drops).reduce((sum, count) => sum + count, 0);
  t.is(replay.delivered + dropped, replay.frames);
  t.true(replay.delivered > 0);
  t.regex(run.stderr, /^\[1\/24\] .*\n\[2\/24\] /);
  t.false(run.stderr.includes('\u001b'));
  t.deepEqual(leftovers(run), []);
});

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  for (const [step, wait] of [
    [2, 100],
    [8, 300],
    [14, 20],
  ] as const) {
    if ((signal === 'SIGTERM') !== (step === 14)) continue;
    live(`${signal} in step ${step} leaves nothing behind`, async (t) => {
      const run = start(t, ['--seconds', '1']);
      await waitFor(() => run.stderr.includes(`[${step}/`) || run.child.exitCode !== null, {
        what: `step ${step}`,
        timeoutMs: 60_000,
      });
      await new Promise((resolve) => setTimeout(resolve, wait));
      run.child.kill(signal);
      t.is(await ended(run), code, run.stderr);
      t.is(run.stdout, '');
      t.deepEqual(leftovers(run), []);
    });
  }
}

live('a step that fails is named, with what went wrong, and leaves nothing behind', async (t) => {
  const bin = mkdtempSync(join(tmpdir(), 'weft-demo-bin-'));
  t.teardown(() => rmSync(bin, { recursive: true }));
  writeFileSync(join(bin, 'iperf3'), '#!/bin/sh\necho iperf3: out of order >&2\nexit 1\n');
  chmodSync(join(bin, 'iperf3'), 0o755);
  const run = start(t, [], { env: { PATH: `${bin}:${toolEnvironment()['PATH']}` } });
  t.is(await ended(run), 1);
  t.is(run.stdout, '');
  t.regex(run.stderr, /the demo failed at: Weft to Weft: TCP[\s\S]*iperf3: out of order/);
  t.deepEqual(leftovers(run), []);
});

live('an engine that dies ends the demo with its name', async (t) => {
  const run = start(t, []);
  await waitFor(() => run.stderr.includes('[4/'), { what: 'the TCP step', timeoutMs: 60_000 });
  const engine = readdirSync('/proc').find(
    (pid) =>
      /^\d+$/.test(pid) &&
      commandLine(pid).includes(`${run.directory}/`) &&
      commandLine(pid).includes('hostB'),
  );
  process.kill(Number(engine), 'SIGKILL');
  t.is(await ended(run), 1);
  t.regex(run.stderr, /the demo failed at: Weft to Weft: TCP[\s\S]*the engine of hostB ended with code 137/);
  t.deepEqual(leftovers(run), []);
});

live('without rights or without TUN it says what is missing', async (t) => {
  const noRights = start(t, [], { wrapper: ['setpriv', '--bounding-set=-all', '--inh-caps=-all'] });
  t.is(await ended(noRights), 1);
  t.regex(noRights.stderr, /^the demo cannot run here: it needs CAP_NET_ADMIN: run as root\n$/);

  const noTun = start(t, [], {
    wrapper: ['unshare', '-m', 'sh', '-c', 'mount -t tmpfs none /dev/net && exec "$@"', 'sh'],
  });
  t.is(await ended(noTun), 1);
  t.regex(noTun.stderr, /^the demo cannot run here: there is no \/dev\/net\/tun; .*modprobe tun/);
  for (const run of [noRights, noTun]) t.deepEqual(leftovers(run), []);
});

test('a duration that is none is refused', async (t) => {
  for (const seconds of ['0', '61', '1.5', 'x']) {
    const run = start(t, ['--seconds', seconds]);
    t.is(await ended(run), 2, seconds);
    t.regex(run.stderr, /from 1 to 60/);
  }
});
