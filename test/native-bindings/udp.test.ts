import test, { type ExecutionContext } from 'ava';
import { Lab } from '../../cli/lab.js';
import { FrameMemory, LARGE_CAPACITY } from '../../engine/memory/frames.js';
import { native } from '../../native-bindings/index.js';
import { ethernet, ip, ipv4, ipv6, payload, udp } from '../support/frames.js';

const unavailable = Lab.unavailable();
const EAGAIN_ROUNDS = 200;

interface Datagram {
  readonly bytes: Uint8Array;
  readonly address: Uint8Array;
  readonly port: number;
  readonly tos: number;
  /** Size of the segments in one buffer, 0 when it is one datagram. */
  readonly segment: number;
  readonly truncated: boolean;
}

/** Two sockets on loopback, and frames to carry between them. */
function pair(t: ExecutionContext, v6: boolean, gro = false) {
  const memory = new FrameMemory({ small: 300, large: 300 });
  native.attach(memory.u8, memory.off, memory.len, memory.freeLarge);
  const address = v6 ? '::1' : '127.0.0.1';
  const to = 20000 + (process.pid % 20000) + (v6 ? 1 : 0) + (gro ? 2 : 0);
  const receiver = open(to);
  const from = receiver.port + 7;
  const sender = open(from);

  /** Opens a socket on the first free port from `start` on. */
  function open(start: number) {
    for (let port = start; ; port += 11) {
      try {
        const fd = native.udpOpen({ address, port, ttl: 9, gro });
        t.teardown(() => native.close(fd));
        return { fd, port };
      } catch (error) {
        if ((error as { code?: string }).code !== 'EADDRINUSE') throw error;
      }
    }
  }

  /** Slots that hold the payloads behind an outer header to `destination`. */
  function fill(
    payloads: readonly Uint8Array[],
    tos = 0,
    destination = address,
    port = receiver.port,
  ): Uint32Array {
    return Uint32Array.from(payloads, (content) => {
      const datagram = udp(1, port, content);
      const outer = v6
        ? ethernet({ type: 0x86dd }, ipv6({ source: address, destination, tos }, datagram))
        : ethernet({ type: 0x0800 }, ipv4({ source: address, destination, tos }, datagram));
      const frame = memory.alloc(outer.length);
      memory.u8.set(outer, memory.off[frame]);
      memory.len[frame] = outer.length;
      return frame;
    });
  }

  return {
    memory,
    receiver: receiver.fd,
    sender: sender.fd,
    from: sender.port,
    address: ip(address),
    fill,
    /** Sends payloads; returns how many went and the failures. */
    send(
      payloads: readonly Uint8Array[],
      options: { gso?: number; tos?: number; to?: string; port?: number } = {},
    ) {
      const { gso = 0, tos = 0, to: destination = address, port = receiver.port } = options;
      const frames = fill(payloads, tos, destination, port);
      const failures = new Uint32Array(5);
      const sent = native.udpSend(sender.fd, v6 ? 1 : 0, frames, frames.length, gso, failures);
      for (const frame of frames) memory.free(frame);
      return { sent, failures: [...failures] };
    },
    /** Receives until `count` datagrams, segments counted apart, are there. */
    receive(count: number, max = 256, capacity = LARGE_CAPACITY): Datagram[] {
      const addresses = new Uint8Array(16 * max);
      const meta = new Uint32Array(4 * max);
      const out: Datagram[] = [];
      let seen = 0;
      for (let round = 0; seen < count && round < EAGAIN_ROUNDS; round++) {
        const top = memory.freeLargeCount;
        const got = native.udpReceive(receiver.fd, top, Math.min(max, top), 50, capacity, addresses, meta);
        if (got < 0) throw new Error(`errno ${-got}`);
        const taken = Array.from({ length: got }, () => memory.takeLarge());
        for (const [i, frame] of taken.entries()) {
          const start = memory.off[frame] - 50;
          const [port, tos, segment, truncated] = meta.subarray(i * 4);
          const bytes = memory.u8.slice(start, start + memory.len[frame]);
          const from = addresses.slice(i * 16, i * 16 + (v6 ? 16 : 4));
          out.push({ bytes, address: from, port, tos, segment, truncated: truncated === 1 });
          seen += segment ? Math.ceil(bytes.length / segment) : 1;
          memory.free(frame);
        }
      }
      return out;
    },
  };
}

/** The datagrams as they were sent: buffers of several segments cut up. */
function segments(datagrams: readonly Datagram[]): Uint8Array[] {
  return datagrams.flatMap(({ bytes, segment }) => {
    if (segment === 0) return [bytes];
    const parts: Uint8Array[] = [];
    for (let at = 0; at < bytes.length; at += segment) parts.push(bytes.slice(at, at + segment));
    return parts;
  });
}

for (const v6 of [false, true]) {
  const over = v6 ? 'IPv6' : 'IPv4';

  test.serial(`a burst over ${over}: contents, order, source address, port and TOS`, (t) => {
    const p = pair(t, v6);
    const payloads = Array.from({ length: 200 }, (_, i) => payload(1 + ((i * 37) % 1700), i));
    for (const [i, tos] of [0, 1, 2, 3, 0xb8, 0xfe].entries()) {
      t.deepEqual(p.send(payloads, { tos }), { sent: 200, failures: [0, 0, 0, 0, 0] });
      const got = p.receive(200);
      t.deepEqual(segments(got), payloads, `round ${i}`);
      for (const { address, port, tos: seen, truncated } of got) {
        t.deepEqual(address, p.address);
        t.is(port, p.from);
        t.is(seen, tos);
        t.false(truncated);
      }
    }
    t.is(p.memory.inUse, 0);
    p.memory.audit();
  });

  test.serial(`datagrams of no and of the most bytes over ${over}`, (t) => {
    const p = pair(t, v6);
    const largest = payload(v6 ? 65487 : 65507);
    t.deepEqual(p.send([new Uint8Array(0), largest, new Uint8Array(0)], { gso: 1 }).sent, 3);
    t.deepEqual(segments(p.receive(3)), [new Uint8Array(0), largest, new Uint8Array(0)]);
  });

  for (const gro of [false, true]) {
    test.serial(
      `segmentation offload over ${over}, receiver ${gro ? 'with' : 'without'} GRO: nothing lost, order kept`,
      (t) => {
        const p = pair(t, v6, gro);
        const trains = [
          Array.from({ length: 100 }, (_, i) => payload(1000, i)), // more than one message's segments
          Array.from({ length: 5 }, (_, i) => payload(i < 4 ? 700 : 200, i)), // the last one shorter
          [500, 500, 300, 300, 500, 900, 900, 100, 100, 1].map((size, i) => payload(size, i)),
          Array.from({ length: 120 }, (_, i) => payload(1400, i)), // more than one message's bytes
          [payload(1)],
        ];
        for (const train of trains) {
          t.deepEqual(p.send(train, { gso: 1 }), { sent: train.length, failures: [0, 0, 0, 0, 0] });
          t.deepEqual(segments(p.receive(train.length)), train);
        }
        p.memory.audit();
      },
    );
  }

  test.serial(`equal frames over ${over} travel as one train`, (t) => {
    const p = pair(t, v6, true);
    p.send(
      Array.from({ length: 30 }, (_, i) => payload(800, i)),
      { gso: 1 },
    );
    const got = p.receive(30);
    t.is(got.length, 1, 'one buffer of thirty segments');
    t.is(got[0].segment, 800);
    t.is(got[0].bytes.length, 24000);
  });

  test.serial(`another destination, port or TOS over ${over} begins another train`, (t) => {
    const p = pair(t, v6, true);
    const frames = [0, 0, 2, 2, 0].flatMap((tos, i) => [...p.fill([payload(600, i)], tos)]);
    const failures = new Uint32Array(5);
    t.is(native.udpSend(p.sender, v6 ? 1 : 0, Uint32Array.from(frames), 5, 1, failures), 5);
    for (const frame of frames) p.memory.free(frame);
    const got = p.receive(5);
    t.deepEqual(
      segments(got),
      [0, 1, 2, 3, 4].map((i) => payload(600, i)),
    );
    t.deepEqual(
      got.map(({ tos }) => tos),
      [0, 2, 0],
    );
    t.deepEqual(
      got.map(({ segment }) => segment),
      [600, 600, 0],
    );
  });

  test.serial(`a datagram longer than the slot over ${over} is cut and says so`, (t) => {
    const p = pair(t, v6);
    p.send([payload(1500), payload(100)]);
    const got = p.receive(2, 256, 1000 - 50);
    t.deepEqual(
      got.map(({ bytes, truncated }) => [bytes.length, truncated]),
      [
        [1000, true],
        [100, false],
      ],
    );
    t.deepEqual(got[0].bytes, payload(1500).slice(0, 1000));
  });

  test.serial(`no more is received than there is room for over ${over}`, (t) => {
    const p = pair(t, v6);
    p.send(Array.from({ length: 10 }, (_, i) => payload(20, i)));
    const addresses = new Uint8Array(16 * 4);
    const meta = new Uint32Array(4 * 4);
    t.is(native.udpReceive(p.receiver, p.memory.freeLargeCount, 4, 50, 2000, addresses, meta), 4);
    t.is(p.receive(6).length, 6);
    t.is(native.udpReceive(p.receiver, p.memory.freeLargeCount, 4, 50, 2000, addresses, meta), 0);
  });
}

if (unavailable) test.skip(`larger than the path's MTU [skipped: ${unavailable}]`, () => {});
else
  test.serial(
    'larger than the MTU of the link: too big, with and without segmentation; no route: unreachable',
    async (t) => {
      const lab = Lab.create();
      t.teardown(() => lab.close());
      const [a, b] = [lab.host('hA'), lab.host('hB')];
      lab.link(a, b, {
        nameA: 'ua',
        nameB: 'ub',
        mtu: 1300,
        addressesA: ['192.0.2.1/24', '2001:db8::1/64'],
        addressesB: ['192.0.2.2/24', '2001:db8::2/64'],
      });
      const script = new URL('./support/udp-in-namespace.js', import.meta.url).pathname;
      const results = JSON.parse(await a.run(process.execPath, [script]));
      for (const { name, sent, failures } of results) {
        const [noRoom, unreachable, tooBig, other] = failures;
        t.is(noRoom + other, 0, `${name}: ${failures}`);
        if (name.includes('no route')) t.deepEqual([sent, unreachable, tooBig], [2, 1, 0], name);
        else t.deepEqual([sent, unreachable, tooBig], [2, 0, 2], name);
      }
      t.is(results.length, 6);
    },
  );
