import { Worker } from 'node:worker_threads';
import test, { type ExecutionContext } from 'ava';
import { Lab, type Namespace, ping } from '../../cli/lab.js';
import { FrameMemory, LARGE_CAPACITY } from '../../engine/memory/frames.js';
import { native, type Tap } from '../../native-bindings/index.js';
import { concat, ethernet, ip, mac, payload, slowSum, station } from '../support/frames.js';

const reason = Lab.unavailable();

function live(title: string, body: (t: ExecutionContext, lab: Lab) => Promise<void> | void): void {
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

const NAME = 'tap0';
const HOST_MAC = '02:00:00:00:00:aa';

function open(host: Namespace, options: { persist?: boolean; tunnel?: boolean; name?: string } = {}): Tap {
  const { persist = false, tunnel = false, name = NAME } = options;
  return native.tapOpen({ name, netns: host.path, persist, tunnel });
}

/** A TAP with an address, up, and a memory to read into. Its link has no IPv6, so it is silent. */
function up(t: ExecutionContext, lab: Lab, tunnel = false) {
  const host = lab.host('h');
  const tap = open(host, { tunnel });
  t.teardown(() => native.close(tap.fd));
  host.ipBatch([`link set ${NAME} address ${HOST_MAC}`, `link set ${NAME} addrgenmode none`]);
  host.ip('link', 'set', NAME, 'up', 'mtu', '1400');
  host.ip('addr', 'add', '10.9.0.1/24', 'dev', NAME);
  host.ip('neigh', 'add', '10.9.0.2', 'lladdr', '02:00:00:00:00:02', 'dev', NAME, 'nud', 'permanent');
  const memory = new FrameMemory({ small: 64, large: 64 });
  native.attach(memory.u8, memory.off, memory.len, memory.freeLarge);
  const wait = native.waitCreate();
  t.teardown(() => native.close(wait));
  native.waitAdd(wait, tap.fd, 1);
  return {
    host,
    tap,
    memory,
    /** Reads until a frame satisfies `want`; each comes with its vnet header. */
    read(
      want: (frame: Uint8Array, vnet: DataView) => boolean,
    ): { frame: Uint8Array; vnet: DataView } | undefined {
      const ready = new Uint32Array(4);
      for (let round = 0; round < 100; round++) {
        native.wait(wait, ready, 100_000, 0);
        const got = native.tapRead(tap.fd, memory.freeLargeCount, 16, tap.vnet, LARGE_CAPACITY);
        if (got < 0) throw new Error(`errno ${-got}`);
        const slots = Array.from({ length: got }, () => memory.takeLarge());
        const seen = slots.map((slot) => {
          const start = memory.off[slot] - tap.vnet;
          const bytes = memory.u8.slice(start, start + memory.len[slot]);
          memory.free(slot);
          return { frame: bytes.slice(tap.vnet), vnet: new DataView(bytes.buffer, 0, tap.vnet) };
        });
        const found = seen.find(({ frame, vnet }) => want(frame, vnet));
        if (found) return found;
      }
      return undefined;
    },
    write(...frames: readonly Uint8Array[]): { sent: number; failures: number[] } {
      const ids = Uint32Array.from(frames, (frame) => {
        const slot = memory.alloc(frame.length);
        memory.u8.fill(0, memory.off[slot] - tap.vnet, memory.off[slot]);
        memory.u8.set(frame, memory.off[slot]);
        memory.len[slot] = frame.length;
        return slot;
      });
      const failures = new Uint32Array(4);
      const sent = native.tapWrite(tap.fd, ids, ids.length, tap.vnet, failures);
      for (const id of ids) memory.free(id);
      return { sent, failures: [...failures] };
    },
  };
}

live('a TAP is made in a namespace, with offloads, and goes with its descriptor', (t, lab) => {
  const host = lab.host('h');
  const tap = open(host);
  t.is(tap.name, NAME);
  t.false(tap.existed);
  t.is(tap.vnet, 12);
  t.is(tap.offloads & 0x0f, 0x0f, 'checksum, both TSO and ECN');
  t.regex(host.ip('-d', 'link', 'show', NAME), /tun type tap pi off vnet_hdr on/);
  native.close(tap.fd);
  t.throws(() => host.ip('link', 'show', NAME));
});

live('the kernel chooses a name when none is given', (t, lab) => {
  const tap = open(lab.host('h'), { name: '' });
  t.regex(tap.name, /^tap\d+$/);
  t.false(tap.existed);
  native.close(tap.fd);
});

live('UDP-tunnel segmentation is asked for, and what was agreed on is said', (t, lab) => {
  const tap = open(lab.host('h'), { tunnel: true });
  if (tap.vnet === 24) t.is(tap.offloads & 0x180, 0x180);
  else t.is(tap.offloads & 0x180, 0);
  t.true(tap.vnet === 24 || tap.vnet === 12);
  native.close(tap.fd);
});

live(
  'a persistent TAP outlives its descriptor, is attached again with its state, and goes when told',
  (t, lab) => {
    const host = lab.host('h');
    const first = open(host, { persist: true });
    host.ip('link', 'set', NAME, 'mtu', '1234');
    native.close(first.fd);
    const second = open(host, { persist: true, tunnel: true });
    t.true(second.existed);
    t.regex(host.ip('link', 'show', NAME), /mtu 1234/);
    native.tapPersist(second.fd, false);
    native.close(second.fd);
    t.throws(() => host.ip('link', 'show', NAME));
  },
);

live(
  'an interface that is no TAP, a TUN, and a vanished namespace are refused with errno and place',
  (t, lab) => {
    const host = lab.host('h');
    lab.link(host, lab.host('other'), { nameA: 'veth0', nameB: 'veth1' });
    host.ip('tuntap', 'add', 'tun7', 'mode', 'tun');
    for (const name of ['veth0', 'tun7', 'lo'])
      t.throws(() => open(host, { name }), {
        code: 'EINVAL',
        message: new RegExp(`TAP ${name} in .*: cannot attach to the existing interface`),
      });
    t.throws(
      () => native.tapOpen({ name: NAME, netns: `${host.path}-gone`, persist: false, tunnel: false }),
      {
        code: 'ENOENT',
        message: /-gone.*open the network namespace/,
      },
    );
  },
);

live('the caller stays in its own namespace', (t, lab) => {
  const tap = open(lab.host('h'), { name: 'weftxyz0' });
  const other = native.udpOpen({ address: '127.0.0.1', port: 0, ttl: 64, gro: false });
  t.true(other > 0);
  t.throws(() => native.tapPersist(other, true));
  native.close(other);
  native.close(tap.fd);
});

for (const tunnel of [false, true]) {
  const header = tunnel ? 'long' : 'short';

  live(
    `a frame of the kernel is read with its ${header} vnet header, checksum to be finished`,
    async (t, lab) => {
      const u = up(t, lab, tunnel);
      const script =
        "import socket;s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.sendto(b'weft'*50,('10.9.0.2',4242))";
      await u.host.run('/usr/bin/python3', ['-c', script]);
      const got = u.read((frame) => frame[23] === 17 && frame[36] === 4242 >>> 8);
      t.truthy(got);
      const { frame, vnet } = got!;
      t.is(frame.length, 14 + 20 + 8 + 200);
      t.deepEqual(frame.slice(0, 12), concat(station(2), mac(HOST_MAC)));
      t.is(vnet.getUint8(0) & 1, 1, 'partial checksum');
      const [start, offset] = [vnet.getUint16(6, true), vnet.getUint16(8, true)];
      t.deepEqual([start, offset], [34, 6]);
      // What stands there is the sum of the pseudo-header; with it the datagram sums up to the checksum.
      const pseudo = slowSum(concat(ip('10.9.0.1'), ip('10.9.0.2'), Uint8Array.of(0, 17, 0, 208)));
      t.is((frame[40] << 8) | frame[41], pseudo);
      t.is(u.memory.inUse, 0);
    },
  );

  live(`frames we write with a ${header} vnet header are seen in the namespace`, async (t, lab) => {
    const u = up(t, lab, tunnel);
    const capture = u.host.start('tcpdump', [
      '-i',
      NAME,
      '-n',
      '-e',
      '-c',
      '3',
      '-xx',
      '--immediate-mode',
      'ether proto 0x88b5',
    ]);
    await capture.output(/listening on/, { stream: 'stderr' });
    const frames = [payload(46, 1), payload(100, 2), payload(1400, 3)].map((content) =>
      ethernet({ to: mac(HOST_MAC), from: station(2) }, content),
    );
    t.deepEqual(u.write(...frames), { sent: 3, failures: [0, 0, 0, 0] });
    const { stdout } = await capture.finish(10_000);
    const hex = stdout.replaceAll(/^\s+0x[0-9a-f]+:|\s/gm, '');
    for (const frame of frames)
      t.true(hex.includes(Buffer.from(frame).toString('hex')), `${frame.length} bytes`);
  });
}

live('frames the kernel refuses are counted by their cause, the others written', (t, lab) => {
  const u = up(t, lab);
  const good = ethernet({ to: mac(HOST_MAC) }, payload(60));
  t.deepEqual(u.write(good, new Uint8Array(5), good), { sent: 2, failures: [0, 0, 1, 0] }, 'a runt');
  // A vnet header that points behind the frame.
  const slot = u.memory.alloc(100);
  u.memory.u8.fill(0, u.memory.off[slot] - 12, u.memory.off[slot] + 100);
  u.memory.u8.set([1, 0, 0, 0, 0, 0, 200, 0, 6, 0], u.memory.off[slot] - 12);
  u.memory.len[slot] = 100;
  const failures = new Uint32Array(4);
  t.is(native.tapWrite(u.tap.fd, Uint32Array.of(slot), 1, 12, failures), 0);
  t.deepEqual([...failures], [0, 0, 1, 0]);
  u.memory.free(slot);
  u.host.ip('link', 'set', NAME, 'down');
  t.deepEqual(u.write(good), { sent: 0, failures: [0, 1, 0, 0] }, 'down');
});

live('reading a TAP that is down says so or nothing, and never hangs', (t, lab) => {
  const u = up(t, lab);
  u.host.ip('link', 'set', NAME, 'down');
  t.true(native.tapRead(u.tap.fd, u.memory.freeLargeCount, 4, 12, 2000) <= 0);
});

/** Two TAPs of two namespaces, what one reads the other writes: a wire, by the batched calls alone. */
function wire(t: ExecutionContext, lab: Lab) {
  const memory = new FrameMemory({ small: 4, large: 256 });
  native.attach(memory.u8, memory.off, memory.len, memory.freeLarge);
  const hosts = ['h1', 'h2'].map((label) => lab.host(label));
  const taps = hosts.map((host, i) => {
    const tap = open(host);
    t.teardown(() => native.close(tap.fd));
    host.ip('link', 'set', NAME, 'up');
    host.addAddresses(NAME, [`10.9.0.${i + 1}/24`, `fd09::${i + 1}/64`]);
    return tap;
  });
  const wait = native.waitCreate();
  t.teardown(() => native.close(wait));
  for (const [i, tap] of taps.entries()) native.waitAdd(wait, tap.fd, i);
  const seen = { frames: 0, superFrames: 0, longest: 0, partial: 0 };
  const ready = new Uint32Array(8);
  const failures = new Uint32Array(4);
  const frames = new Uint32Array(64);
  const turn = (): void => {
    const count = native.wait(wait, ready, 0, 0);
    for (let k = 0; k < count; k++) {
      const from = ready[k];
      const got = native.tapRead(taps[from].fd, memory.freeLargeCount, 64, 12, LARGE_CAPACITY);
      for (let i = 0; i < got; i++) {
        const frame = memory.takeLarge();
        const head = memory.off[frame] - 12;
        memory.len[frame] -= 12;
        seen.frames++;
        seen.partial += memory.u8[head] & 1;
        if (memory.u8[head + 1] !== 0) seen.superFrames++;
        seen.longest = Math.max(seen.longest, memory.len[frame]);
        frames[i] = frame;
      }
      if (got > 0) native.tapWrite(taps[1 - from].fd, frames, got, 12, failures);
      for (let i = 0; i < got; i++) memory.free(frames[i]);
    }
  };
  let running = true;
  const loop = (): void => {
    if (!running) return;
    turn();
    setImmediate(loop);
  };
  loop();
  t.teardown(() => {
    running = false;
  });
  return { hosts, seen, failures, memory };
}

live(
  'ping and TCP through two TAPs: super-frames pass whole, both ways, over IPv4 and IPv6',
  async (t, lab) => {
    const w = wire(t, lab);
    const [a, b] = w.hosts;
    for (const address of ['10.9.0.2', 'fd09::2']) t.is((await ping(a, address, { count: 3 })).received, 3);
    for (const [address, bind] of [
      ['10.9.0.2', '0.0.0.0'],
      ['fd09::2', '::'],
    ]) {
      const family = bind === '::' ? 'AF_INET6' : 'AF_INET';
      const receive = `
import socket,hashlib
s=socket.socket(socket.${family});s.bind(('${bind}',5001));s.listen();print('listening',flush=True)
c,_=s.accept();h=hashlib.sha256();n=0
while True:
  d=c.recv(1<<16)
  if not d: break
  h.update(d);n+=len(d)
print(n,h.hexdigest(),flush=True)`;
      const send = `
import socket,hashlib,random
d=random.Random(1).randbytes(4<<20);s=socket.socket(socket.${family});s.connect(('${address}',5001));s.sendall(d);s.close()
print(len(d),hashlib.sha256(d).hexdigest())`;
      const server = b.start('/usr/bin/python3', ['-c', receive]);
      await server.output(/listening/);
      const sent = await a.run('/usr/bin/python3', ['-c', send]);
      const { stdout } = await server.finish();
      t.is(stdout.trim().split('\n').at(-1), sent.trim());
    }
    t.true(w.seen.superFrames > 0, 'TCP came in super-frames');
    t.true(w.seen.longest > 1514);
    t.true(w.seen.partial > 0);
    t.deepEqual([...w.failures], [0, 0, 0, 0]);
    t.is(w.memory.inUse, 0);
    w.memory.audit();
  },
);

test.serial('waiting: nothing ready, an event, several, one removed, a descriptor closed', (t) => {
  const wait = native.waitCreate();
  const events = [native.eventCreate(), native.eventCreate(), native.eventCreate()];
  t.teardown(() => native.close(wait));
  for (const [i, fd] of events.entries()) native.waitAdd(wait, fd, 100 + i);
  t.throws(() => native.waitAdd(wait, events[0], 1), { code: 'EEXIST' });
  const ready = new Uint32Array(4);
  t.is(native.wait(wait, ready, 0, 0), 0);
  t.is(native.wait(wait, ready, 1, 0), 0, 'returns although nothing happens');
  native.eventSignal(events[1]);
  native.eventSignal(events[1]);
  t.is(native.wait(wait, ready, -1, 0), 1, 'waiting for ever ends at once');
  t.is(ready[0], 101);
  native.eventClear(events[1]);
  native.eventClear(events[1]);
  t.is(native.wait(wait, ready, 0, 0), 0, 'two signals are cleared by one');
  for (const fd of events) native.eventSignal(fd);
  t.is(native.wait(wait, ready, 0, 0), 3);
  t.deepEqual([...ready.subarray(0, 3)].sort(), [100, 101, 102]);
  t.is(native.wait(wait, new Uint32Array(2), 0, 0), 2, 'no more than there is room for');
  native.waitRemove(wait, events[0]);
  t.throws(() => native.waitRemove(wait, events[0]), { code: 'ENOENT' });
  native.close(events[1]);
  t.is(native.wait(wait, ready, 0, 0), 1);
  t.is(ready[0], 102);
  t.throws(() => native.wait(wait, new Uint32Array(0), 0, 0), { instanceOf: TypeError });
  t.throws(() => native.wait(events[2], ready, 0, 0), { code: 'EINVAL' });
  native.close(events[0]);
  native.close(events[2]);
});

test.serial('worker threads and the main thread call at once, each on its own memory', async (t) => {
  const script = new URL('./support/burst-worker.js', import.meta.url);
  const workers = [1, 2].map((seed) => new Worker(script, { workerData: seed }));
  const answers = workers.map(
    (worker) => new Promise((resolve, reject) => worker.on('message', resolve).on('error', reject)),
  );
  const { burst } = await import('./support/burst.js');
  t.is(burst(3), 'sound');
  t.deepEqual(await Promise.all(answers), ['sound', 'sound']);
});

test.serial('an event wakes a thread that waits for ever', async (t) => {
  const event = native.eventCreate();
  t.teardown(() => native.close(event));
  const worker = new Worker(new URL('./support/waiting-worker.js', import.meta.url), { workerData: event });
  const messages: unknown[] = [];
  const ended = new Promise((resolve, reject) => worker.on('exit', resolve).on('error', reject));
  await new Promise<void>((resolve) => {
    worker.on('message', (message) => {
      messages.push(message);
      resolve();
    });
  });
  native.eventSignal(event);
  await ended;
  t.deepEqual(messages, ['waiting', 'woken by 5']);
});
