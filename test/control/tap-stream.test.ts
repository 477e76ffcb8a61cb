import { setTimeout as delay } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import { Lab, type Namespace, ping, waitFor } from '../../cli/lab.js';
import { Tap } from '../../control/tap-stream.js';

const reason = Lab.unavailable();

/**
 * A test that needs namespaces; skipped, with the reason in its title, where there are none. One after the other:
 * the frames of a Tap pass this thread, which the making of another test's laboratory would hold for seconds.
 */
function live(title: string, body: (t: ExecutionContext, lab: Lab) => Promise<void>): void {
  if (reason) {
    test.skip(`${title} [skipped: ${reason}]`, () => {});
    return;
  }
  test.serial(title, async (t) => {
    const lab = Lab.create();
    t.teardown(() => lab.close());
    await body(t, lab);
  });
}

const MODULE = new URL('../../control/tap-stream.js', import.meta.url).href;

/** A TAP in a namespace that goes with the test. */
function tapIn(
  t: ExecutionContext,
  host: Namespace,
  options: ConstructorParameters<typeof Tap>[0] = {},
): Tap {
  const tap = new Tap({ name: 'eth0', netns: host.path, isUp: true, ...options });
  t.teardown(() => tap.release());
  return tap;
}

live('two containers ping through two Taps, and no frame is merged with another', async (t, lab) => {
  const [a, b] = [lab.host('a'), lab.host('b')];
  const left = tapIn(t, a, { ipv4: '10.0.9.1/24', mac: '02:00:00:00:00:01' });
  const right = tapIn(t, b, { ipv4: '10.0.9.2/24', mac: '02:00:00:00:00:02' });
  const lengths: number[] = [];
  left.on('data', (frame: Buffer) => {
    if (frame.readUInt16BE(12) === 0x800) lengths.push(frame.length);
    right.write(frame);
  });
  right.pipe(left, { end: false });
  const result = await ping(a, '10.0.9.2', { count: 20, interval: 0.01, size: 1000, deadlineS: 30 });
  t.is(result.received, 20);
  t.is(result.duplicates, 0);
  t.true(lengths.length >= 20);
  t.deepEqual([...new Set(lengths)], [14 + 20 + 8 + 1000]);
});

live('TCP passes as ordinary frames: the kernel segments and sums', async (t, lab) => {
  const [a, b] = [lab.host('a'), lab.host('b')];
  const left = tapIn(t, a, { ipv4: '10.0.9.1/24' });
  const right = tapIn(t, b, { ipv4: '10.0.9.2/24' });
  let longest = 0;
  left.on('data', (frame: Buffer) => {
    longest = Math.max(longest, frame.length);
    right.write(frame);
  });
  right.on('data', (frame: Buffer) => left.write(frame));
  const listen = `
    const server = require('net').createServer((c) => { c.pipe(process.stdout); server.close(); });
    server.listen(5000, () => console.error('listening'));`;
  const server = b.start(process.execPath, ['-e', listen]);
  await server.output(/listening/, { stream: 'stderr' });
  const text = 'what goes in comes out\n'.repeat(10_000);
  const connect = "process.stdin.pipe(require('net').connect(5000, '10.0.9.2'))";
  await a.run(process.execPath, ['-e', connect], { input: text });
  const { stdout } = await server.finish();
  t.is(stdout, text);
  t.is(longest, 1514);
});

live('properties say what the kernel says, and setting them tells the kernel', async (t, lab) => {
  const host = lab.host('h');
  const tap = tapIn(t, host, { isUp: false });
  t.is(tap.name, 'eth0');
  t.deepEqual([tap.isTap, tap.isTun], [true, false]);
  t.false(tap.isUp);
  t.is(tap.ipv4, undefined);
  tap.mac = '02:00:00:00:0A:01';
  tap.mtu = 9000;
  tap.ipv4 = '10.0.9.1/24';
  tap.ipv4 = '10.0.9.7/16';
  tap.isUp = true;
  t.deepEqual([tap.mac, tap.mtu, tap.ipv4, tap.isUp], ['02:00:00:00:0a:01', 9000, '10.0.9.7/16', true]);
  const shown = host.ip('-4', 'address', 'show', 'dev', 'eth0');
  t.regex(shown, /mtu 9000 /);
  t.regex(shown, /inet 10\.0\.9\.7\/16/);
  t.notRegex(shown, /10\.0\.9\.1/);
  tap.ipv4 = undefined;
  tap.isUp = false;
  t.deepEqual([tap.ipv4, tap.isUp], [undefined, false]);
  t.throws(() => (tap.mac = 'ff:ff:ff:ff:ff:ff'), { message: /group MAC/ });
  t.throws(() => (tap.ipv4 = '10.0.9.1'), { name: 'ValueError' });
  t.throws(() => (tap.mtu = 1), { name: 'CommandError' });
});

/** Frames of a local experimental ethertype, numbered, out of the namespace through its TAP. */
async function flood(host: Namespace, count: number): Promise<void> {
  const python = `
import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
for i in range(${count}):
    s.send(b"\\xff" * 6 + b"\\x02" + b"\\0" * 5 + b"\\x88\\xb5" + i.to_bytes(4, "big") + b"\\0" * 42)`;
  await host.run('/usr/bin/python3', ['-c', python]);
}

const number = (frame: Buffer): number => (frame.readUInt16BE(12) === 0x88b5 ? frame.readUInt32BE(14) : -1);

live('a slow reader gets frames in order, and only so many wait in memory', async (t, lab) => {
  const host = lab.host('h');
  const tap = tapIn(t, host, { highWaterMark: 8 });
  tap.pause();
  tap.read(0); // starts reading, as a paused consumer would
  await flood(host, 400);
  await waitFor(() => tap.readableLength >= 8, { what: 'frames to wait' });
  await delay(50);
  t.true(tap.readableLength <= 8 + 2 * 32, `${tap.readableLength} frames wait in the stream`);
  const seen: number[] = [];
  tap.on('data', (frame: Buffer) => {
    if (number(frame) >= 0) seen.push(number(frame));
  });
  tap.resume();
  await waitFor(() => seen.length === 400, {
    what: 'all frames; the kernel keeps what the stream does not take',
  });
  t.deepEqual(
    seen,
    Array.from({ length: 400 }, (_, i) => i),
  );
});

live(
  'release while frames pour in: the interface goes, the stream closes, no event follows',
  async (t, lab) => {
    const host = lab.host('h');
    const tap = tapIn(t, host);
    let after = 0;
    let released: Promise<void> | undefined;
    tap.on('data', (frame: Buffer) => {
      if (released) after++;
      else if (number(frame) === 5) released = tap.release();
    });
    // The interface goes under the sender, which then fails.
    await flood(host, 500).catch(() => {});
    await waitFor(() => released !== undefined, { what: 'the sixth frame' });
    await released;
    t.is(after, 0);
    t.true(tap.closed);
    t.notRegex(host.ip('link', 'show'), /eth0/);
    t.throws(() => tap.mtu, { message: /eth0 was released/ });
    await tap.release(); // again is nothing
  },
);

live('an interface that somebody removes is an error, not a silence', async (t, lab) => {
  const host = lab.host('h');
  const tap = tapIn(t, host);
  const failure = new Promise<Error>((resolve) => tap.once('error', resolve));
  tap.resume();
  await delay(100); // the reader sleeps in its wait
  host.ip('link', 'del', 'eth0');
  t.regex((await failure).message, /cannot be read any more .*removed/);
  await waitFor(() => tap.closed, { what: 'the stream to close' });
});

live('frames that are none, and a name that is taken, are refused', async (t, lab) => {
  const host = lab.host('h');
  const tap = tapIn(t, host);
  t.throws(() => new Tap({ name: 'eth0', netns: host.path }), {
    code: 'EEXIST',
    message: /choose another name/,
  });
  t.throws(() => new Tap({ name: 'a-name-much-too-long', netns: host.path }), { message: /longer than 15/ });
  t.throws(() => new Tap({ netns: '/run/netns/weft-no-such' }), { code: 'ENOENT' });
  t.throws(() => new Tap({ netns: host.path, name: 'bad0', mac: 'nonsense' }), { name: 'ValueError' });
  t.notRegex(host.ip('link', 'show'), /bad0/, 'a half-made interface does not stay');
  const failure = new Promise<Error>((resolve) => tap.once('error', resolve));
  tap.write(Buffer.alloc(13));
  t.regex((await failure).message, /14 to 65549 bytes, this one 13/);
});

live('writing to an interface that is down says so', async (t, lab) => {
  const tap = tapIn(t, lab.host('h'), { isUp: false });
  const failure = new Promise<NodeJS.ErrnoException>((resolve) => tap.once('error', resolve));
  tap.write(Buffer.alloc(60));
  const error = await failure;
  t.is(error.code, 'EIO');
  t.regex(error.message, /eth0 is down; set isUp = true/);
});

live('a script that just ends does not hang on its reader, and its interface goes', async (t, lab) => {
  const host = lab.host('h');
  const script = `
    const { Tap } = await import('${MODULE}');
    const tap = new Tap({ name: 'eth0', isUp: true });
    tap.on('data', () => {});
    setTimeout(() => process.exit(7), 200);`;
  const { code, stderr } = await host.exec(process.execPath, ['--input-type=module', '-e', script], {
    timeoutMs: 20_000,
  });
  t.is(code, 7, stderr);
  t.notRegex(host.ip('link', 'show'), /eth0/);
});

live('without rights the error says what to run as', async (t, lab) => {
  const script = `
    const { Tap } = await import('${MODULE}');
    try { new Tap(); } catch ({ code, message }) { console.log(code, message); }`;
  const drop = ['--bounding-set=-all', '--inh-caps=-all', '--', process.execPath];
  const { stdout, stderr } = await lab
    .host('h')
    .exec('setpriv', [...drop, '--input-type=module', '-e', script]);
  t.regex(stdout, /^EPERM .*run as root, or with CAP_NET_ADMIN/, stderr);
});
