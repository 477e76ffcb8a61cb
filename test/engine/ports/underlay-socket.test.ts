/** The socket underlay as a port: two of them over loopback. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { waitFor } from '../../../cli/lab.js';
import { Batch } from '../../../engine/graph.js';
import { FrameMemory } from '../../../engine/memory/frames.js';
import { createSocketUnderlay } from '../../../engine/ports/underlay-socket.js';
import { native } from '../../../native-bindings/index.js';
import { concat, ethernet, ip, ipv4, ipv6, payload, Rig, udp, vxlan } from '../../support/frames.js';

/** Opens a socket at some free port from `start` on; of several tests at once each finds its own. */
function open(
  t: ExecutionContext,
  address: string,
  start: number,
  gro = false,
): { fd: number; port: number } {
  for (let port = start; ; port += 13) {
    try {
      const fd = native.udpOpen({ address, port, ttl: 9, gro });
      t.teardown(() => native.close(fd));
      return { fd, port };
    } catch (error) {
      if ((error as { code?: string }).code !== 'EADDRINUSE') throw error;
    }
  }
}

const ADDRESSES = { v4: ['127.0.0.1', '127.0.0.2'], v6: ['::1', '::1'] };

/** Port 1 sends to port 2. */
function pair(t: ExecutionContext, v6: boolean, { senders = 4, small = 600, large = 300 } = {}) {
  const rig = new Rig(new FrameMemory({ small, large }));
  const [source, destination] = v6 ? ADDRESSES.v6 : ADDRESSES.v4;
  const start = 22_000 + (process.pid % 9000);
  const receiver = open(t, destination, start, true);
  const ways = Array.from({ length: senders }, () => open(t, source, start + 1));
  const own = open(t, source, start + 2, true);
  const port = (id: number, address: string, at: { fd: number; port: number }, fds: number[]) =>
    createSocketUnderlay(rig.context, {
      ...{ id, fd: at.fd, senders: fds },
      local: { address: ip(address), port: at.port },
      carries: 'vxlan',
    });
  const fds = ways.map(({ fd }) => fd);
  const ports = [port(1, source, own, fds), port(2, destination, receiver, [own.fd])];
  const sink = rig.sink();
  const input = new Batch(sink);
  /** Everything that waits. */
  function drain() {
    while (ports[1].receive(input) > 0) input.flush();
    input.flush();
    return sink.caught.splice(0);
  }

  return {
    ...{ rig, ports, drain, source, destination },
    to: receiver.port,
    from: ways.map((way) => way.port),
    counter: (id: number, name: string) => rig.counter(`port:${id}`, name),
    drops: (id: number, name: string) => rig.counter(`port:${id}:drops`, name),
    send(...packets: Uint8Array[]): void {
      rig.feed(ports[0], ...packets.map((bytes) => rig.put(bytes, { alignment: 6 })));
    },
    async receive(count: number) {
      const got: (typeof sink.caught)[number][] = [];
      await waitFor(
        () => {
          got.push(...drain());
          return got.length >= count;
        },
        { what: `${count} packets` },
      );
      return got;
    },
  };
}

test('a number of senders that is no power of two is refused', (t) => {
  const rig = new Rig();
  const local = { address: ip('127.0.0.1'), port: 4789, ttl: 64 };
  for (const senders of [
    [1, 2, 3],
    [1, 2, 3, 4, 5, 6],
  ])
    t.throws(() => createSocketUnderlay(rig.context, { id: 0, fd: 0, senders, local, carries: 'vxlan' }), {
      instanceOf: RangeError,
    });
  rig.finish(t);
});

for (const v6 of [false, true]) {
  const over = `over IPv${v6 ? 6 : 4}`;

  /** What a received packet is to look like: the header of its sender, with fresh Ethernet and TTL. */
  const wanted = (
    source: string,
    destination: string,
    from: number,
    to: number,
    tos: number,
    content: Uint8Array,
  ) => {
    const none = new Uint8Array(6);
    const datagram = udp(from, to, concat(Uint8Array.of(8, 0, 0, 0, 0, 0, 42, 0), content));
    const header = { source, destination, tos };
    return v6
      ? ethernet({ to: none, from: none, type: 0x86dd }, ipv6(header, datagram))
      : ethernet({ to: none, from: none, type: 0x0800 }, ipv4(header, datagram));
  };

  test.serial(`packets of all sizes cross ${over} and get their outer header back`, async (t) => {
    const { rig, send, receive, source, destination, to, from, counter } = pair(t, v6);
    const sizes = [14, 15, 60, 1000, 1450, 9000, 60_000];
    const sourcePort = 50_001;
    for (const tos of [0, 1, 2, 3]) {
      send(
        ...sizes.map((size) => vxlan({ source, destination, port: to, sourcePort, tos }, payload(size, tos))),
      );
      const got = await receive(sizes.length);
      t.deepEqual(
        got.map(({ bytes }) => bytes),
        sizes.map((size) => wanted(source, destination, from[sourcePort % 4], to, tos, payload(size, tos))),
      );
      for (const { off, offload } of got) {
        t.is((off + (v6 ? 70 : 50)) % 8, 0, 'the inner frame lies on a word');
        t.is(offload, 0);
      }
    }
    t.is(counter(1, 'tx-frames'), sizes.length * 4);
    t.is(counter(2, 'rx-frames'), sizes.length * 4);
    t.is(counter(1, 'tx-bytes'), counter(2, 'rx-bytes'));
    rig.finish(t);
  });

  test.serial(
    `the source port chooses the socket ${over}: a flow keeps its own, and its order`,
    async (t) => {
      const { rig, send, receive, source, destination, to, from } = pair(t, v6);
      const flows = Array.from({ length: 200 }, (_, i) => 49_152 + ((i * 7919) % 16_384));
      send(
        ...flows.map((sourcePort, i) =>
          vxlan({ source, destination, port: to, sourcePort }, payload(100 + (i % 3), i)),
        ),
      );
      const got = await receive(flows.length);
      for (const [sender, port] of from.entries()) {
        const at = v6 ? 54 : 34;
        const arrived = got.filter(({ bytes }) => ((bytes[at] << 8) | bytes[at + 1]) === port);
        const sent = flows.flatMap((flow, i) => (flow % 4 === sender ? [payload(100 + (i % 3), i)] : []));
        t.true(sent.length > 20);
        t.deepEqual(
          arrived.map(({ bytes }) => bytes.subarray(at + 16)),
          sent,
        );
      }
      rig.finish(t);
    },
  );

  test.serial(`equal packets of a flow ${over} travel as one and arrive one by one`, async (t) => {
    const { rig, send, receive, source, destination, to, counter, drops } = pair(t, v6);
    const contents = [...Array.from({ length: 63 }, (_, i) => payload(777, i)), payload(33)];
    send(...contents.map((content) => vxlan({ source, destination, port: to }, content)));
    const got = await receive(contents.length);
    const outer = v6 ? 70 : 50;
    t.deepEqual(
      got.map(({ bytes }) => bytes.subarray(outer)),
      contents,
    );
    t.is(counter(2, 'rx-frames'), contents.length);
    t.is(counter(1, 'gso-refused'), 0);
    t.is(rig.counter('port:2:split:drops', 'bad-size') + drops(2, 'truncated'), 0);
    rig.finish(t);
  });
}

test.serial('what a full socket queue dropped is counted, once', async (t) => {
  const { rig, send, drain, source, destination, to, drops, counter } = pair(t, false);
  // Each longer than the one before, so that none travel together: the kernel counts what it drops as one.
  const packets = Array.from({ length: 200 }, (_, i) =>
    vxlan({ source, destination, port: to }, payload(1000 + i)),
  );
  for (let round = 0; round < 150; round++) send(...packets);
  const sent = counter(1, 'tx-frames');
  t.is(sent, 150 * packets.length);
  const received = drain().length;
  t.true(received < sent, 'some were too many');
  // The kernel tells with the next datagram.
  send(packets[0]);
  t.is(drain().length, 1);
  t.is(drops(2, 'queue-full'), sent - received);
  send(packets[0]);
  t.is(drain().length, 1);
  t.is(drops(2, 'queue-full'), sent - received);
  rig.finish(t);
});

test.serial('without a free slot nothing is read, and what waits is read later', async (t) => {
  const { rig, ports, send, receive, source, destination, to } = pair(t, false);
  const { memory } = rig;
  send(vxlan({ source, destination, port: to }, payload(300)));
  const held: number[] = [];
  while (memory.freeLargeCount > 0) held.push(memory.allocLarge());
  t.is(ports[1].receive(new Batch(rig.sink())), 0);
  for (const slot of held) memory.free(slot);
  t.is((await receive(1)).length, 1);
  rig.finish(t);
});

test.serial('a closed port gives its counters back', (t) => {
  const { rig, ports } = pair(t, false);
  const before = rig.context.counters.describe().length;
  ports[0].close();
  t.is(rig.context.counters.describe().length, before - 3);
  rig.finish(t);
});

const PYTHON = '/usr/bin/python3';
const SOCKET = 'import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)';
const lite = spawnSync(PYTHON, ['-c', SOCKET]).status === 0;
const refusal = 'a socket that refuses to segment: counted once, everything goes one by one, nothing is kept';

if (!lite) test.skip(`${refusal} [skipped: it needs ${PYTHON} and UDP-Lite]`, () => {});
else {
  test.serial(refusal, (t) => {
    const script = fileURLToPath(new URL('./support/refusing-socket.js', import.meta.url));
    const hand = [
      'import os, sys',
      SOCKET,
      's.bind(("127.0.0.1", 0))',
      'os.dup2(s.fileno(), 30, inheritable=True)',
      'os.execv(sys.argv[1], sys.argv[1:])',
    ];
    const { stdout, stderr, status } = spawnSync(PYTHON, ['-c', hand.join('\n'), process.execPath, script], {
      encoding: 'utf8',
    });
    t.is(status, 0, stderr);
    const [first, second] = JSON.parse(stdout) as Record<string, Record<string, number>>[];
    t.is(first['port:0']['gso-refused'], 1);
    t.is(first['port:0']['tx-frames'], 20);
    t.is(second['port:0']['gso-refused'], 1, 'not tried again');
    t.is(second['port:0']['tx-frames'], 50);
    t.deepEqual(
      Object.values(second['port:0:drops']).filter((count) => count > 0),
      [],
    );
    t.is(second['inUse'] as unknown as number, 0);
  });
}
