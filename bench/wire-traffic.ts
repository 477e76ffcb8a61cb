/**
 * Traffic that makes senders use every offload there is, and wires with faults: for the live tests and the soak.
 *
 * The traffic is a Python program, since Node can set neither UDP_SEGMENT nor MSG_OOB nor MSG_FASTOPEN: an echo
 * server, a client that runs cases by name against it, and a wire between two packet sockets, for not every kernel
 * has netem. Data are of a seed, so runs compare.
 */
import { existsSync } from 'node:fs';
import type { Namespace, RunningCommand } from '../cli/lab.js';

const PYTHON = '/usr/bin/python3';
export const pythonMissing = (): string | undefined =>
  existsSync(PYTHON) ? undefined : `it needs ${PYTHON}`;

const PROGRAM = String.raw`
import hashlib, json, random, select, signal, socket, sys, threading, time
SOL_UDP, UDP_SEGMENT, SO_RCVBUFFORCE = 17, 103, 33
FASTOPEN = 0x20000000
out = threading.Lock()

def say(*words):
    with out:
        print(*words, flush=True)

def family(address):
    return socket.AF_INET6 if ':' in address else socket.AF_INET

def sysctl(name, value):
    with open('/proc/sys/net/ipv4/' + name, 'w') as file:
        file.write(str(value))

def serve_one(connection):
    digest, size = hashlib.sha256(), 0
    try:
        while True:
            data = connection.recv(1 << 18)
            if not data:
                break
            digest.update(data)
            size += len(data)
            connection.sendall(data)
        connection.close()
    except OSError as error:
        say('failed', error)
    say('got', size, digest.hexdigest())

def serve_tcp(address, port):
    server = socket.socket(family(address), socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
    server.bind((address, port))
    server.listen(64)
    return server

def accept(server):
    while True:
        connection, _ = server.accept()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        threading.Thread(target=serve_one, args=(connection,), daemon=True).start()

def udp_socket(address, port=None):
    sock = socket.socket(family(address), socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    if port is not None:
        sock.bind((address, port))
    return sock

def echo_udp(sock):
    while True:
        data, source = sock.recvfrom(65536)
        sock.sendto(data, source)

def server(port, *addresses):
    sysctl('tcp_fastopen', 0x207)
    for address in addresses:
        threading.Thread(target=accept, args=(serve_tcp(address, port),), daemon=True).start()
        threading.Thread(target=echo_udp, args=(udp_socket(address, port),), daemon=True).start()
    say('listening')
    threading.Event().wait()

def chunks(data, rng, low, high):
    at = 0
    while at < len(data):
        size = rng.randint(low, high)
        yield data[at:at + size]
        at += size

def tcp(address, port, size, seed=1, writes=(1 << 16, 1 << 16), urgent=0, nodelay=False, fastopen=False, pause=0):
    rng = random.Random(seed)
    data = rng.randbytes(size)
    sock = socket.socket(family(address), socket.SOCK_STREAM)
    sock.settimeout(30)
    if nodelay:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    pieces = list(chunks(data, rng, *writes))
    if fastopen:
        sock.sendto(pieces.pop(0), FASTOPEN, (address, port))
    else:
        sock.connect((address, port))

    def write():
        for i, piece in enumerate(pieces):
            sock.sendall(piece[:-1])
            sock.send(piece[-1:], socket.MSG_OOB if urgent and i % urgent == 0 else 0)
            if pause:
                time.sleep(pause)
        sock.shutdown(socket.SHUT_WR)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    digest, size = hashlib.sha256(), 0
    while True:
        got = sock.recv(1 << 18)
        if not got:
            break
        digest.update(got)
        size += len(got)
    return {'sent': hashlib.sha256(data).hexdigest(), 'back': digest.hexdigest(), 'bytes': size}

def streams(address, port, size, count):
    results = [None] * count
    def one(i):
        results[i] = tcp(address, port, size, seed=100 + i)
    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    whole = lambda key: hashlib.sha256(''.join(result[key] for result in results).encode()).hexdigest()
    return {'sent': whole('sent'), 'back': whole('back'), 'bytes': sum(result['bytes'] for result in results)}

def pattern(size, seed):
    return bytes((seed * 7 + i * 13 + (i >> 8)) & 255 for i in range(size))

def collect(sock, wanted, patience=3):
    missing = dict(wanted)
    sock.settimeout(patience)
    try:
        while missing:
            data = sock.recv(65536)
            for key, value in missing.items():
                if value == data:
                    del missing[key]
                    break
    except TimeoutError:
        pass
    return sorted(missing)

def udp(address, port, sizes):
    sock = udp_socket(address)
    sock.connect((address, port))
    missing = []
    for at in range(0, len(sizes), 24):
        wanted = {size: pattern(size, size) for size in sizes[at:at + 24]}
        for data in wanted.values():
            sock.send(data)
        missing += collect(sock, wanted)
    return {'sent': len(sizes), 'missing': missing}

def uso(address, port, size, total):
    sock = udp_socket(address)
    sock.connect((address, port))
    sock.setsockopt(SOL_UDP, UDP_SEGMENT, size)
    data = pattern(total, size)
    # Counted as a multiset: two segments may be alike.
    wanted = {i: data[at:at + size] for i, at in enumerate(range(0, total, size))}
    sock.send(data)
    return {'sent': len(wanted), 'missing': collect(sock, wanted)}

def client(address, port, *names):
    def plain(**options):
        return lambda: tcp(address, port, **options)
    cases = {
        'bulk': plain(size=700000),
        'megabytes': plain(size=4 << 20),
        'no-timestamps': plain(size=300000, seed=2),
        'ecn': plain(size=300000, seed=3),
        'urgent': plain(size=200000, seed=4, writes=(1, 20000), urgent=3, pause=0.0005),
        'push': plain(size=60000, seed=5, writes=(1, 1500), nodelay=True),
        'syn-data': plain(size=20000, seed=6, writes=(1000, 1200), fastopen=True),
        'streams': lambda: streams(address, port, 500000, 8),
        'udp': lambda: udp(address, port, [*range(1, 40), *range(90, 110), *range(1340, 1404)]),
        'udp-few': lambda: udp(address, port, [1, 2, 17, 511, 1390]),
        'fragments': lambda: udp(address, port, [1423, 2800, 2801, 8000, 20000, 65000]),
        'uso-1000': lambda: uso(address, port, 1000, 40007),
        'uso-odd': lambda: uso(address, port, 333, 333 * 60),
        'uso-full': lambda: uso(address, port, 1352, 1352 * 40 + 1),
        'uso-tiny': lambda: uso(address, port, 1, 50),
    }
    before = {'no-timestamps': ('tcp_timestamps', 0, 1), 'ecn': ('tcp_ecn', 1, 2), 'syn-data': ('tcp_fastopen', 0x207, 1)}
    report = {}
    for name in names:
        key, value, old = before.get(name, (None, 0, 0))
        if key:
            sysctl(key, value)
        try:
            report[name] = cases[name]()
        except OSError as error:
            report[name] = {'failed': str(error)}
        finally:
            if key:
                sysctl(key, old)
    print(json.dumps(report))

def soak(address, port, seconds):
    end, count, seed = time.time() + seconds, 0, 1000
    while time.time() < end:
        seed += 1
        result = tcp(address, port, 2 << 20, seed=seed)
        if result['sent'] != result['back']:
            sys.exit('stream %d was changed on its way' % seed)
        count += result['bytes']
    print(json.dumps({'bytes': count}))

def impair(kind, *devices):
    socks = []
    for device in devices:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sock.setsockopt(263, 23, 1)  # PACKET_IGNORE_OUTGOING
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
        sock.bind((device, 0))
        socks.append(sock)
    random.seed(7)
    done = 0
    def report(*_):
        say('impaired', done)
        sys.exit(0)
    signal.signal(signal.SIGTERM, report)
    say('listening')
    other = {socks[0]: socks[1], socks[1]: socks[0]}
    late = {sock: [] for sock in socks}
    while True:
        for sock in select.select(socks, [], [], 0.002)[0]:
            frame, to = sock.recv(65536), other[sock]
            if len(frame) > 1514:
                say('oversize', len(frame))
            # Neighbour discovery stays whole, so that a case is about streams alone.
            eligible = len(frame) > 100 and frame[12:14] in (b'\x08\x00', b'\x86\xdd')
            chance = random.random()
            if eligible and kind == 'loss' and chance < 0.01:
                done += 1
            elif eligible and kind == 'reorder' and chance < 0.02:
                done += 1
                late[to].append([random.randint(1, 8), frame])
            elif eligible and kind == 'duplicate' and chance < 0.02:
                done += 1
                to.send(frame)
                to.send(frame)
            elif eligible and kind == 'corrupt' and chance < 0.004:
                done += 1
                damaged = bytearray(frame)
                damaged[random.randrange(14, len(frame))] ^= 1 << random.randrange(8)
                to.send(damaged)
            else:
                to.send(frame)
            for held in late[to]:
                held[0] -= 1
        for to, held in late.items():
            while held and held[0][0] <= 0:
                to.send(held.pop(0)[1])
            if held and not select.select(socks, [], [], 0)[0]:
                to.send(held.pop(0)[1])

mode, *rest = sys.argv[1:]
if mode == 'server':
    server(int(rest[0]), *rest[1:])
elif mode == 'client':
    client(rest[0], int(rest[1]), *rest[2:])
elif mode == 'impair':
    impair(*rest)
elif mode == 'soak':
    soak(rest[0], int(rest[1]), float(rest[2]))
`;

/** Port of the echo server. */
export const PORT = 7100;

/** An echo server in a namespace; what it got over TCP is told as `bytes sha256`. */
export async function echoServer(at: Namespace, ...addresses: string[]) {
  const running = at.start(PYTHON, ['-c', PROGRAM, 'server', String(PORT), ...addresses]);
  await running.output(/^listening$/m);
  return {
    streams: (): string[] => [...running.stdout.matchAll(/^got (\d+ \w+)$/gm)].map(([, stream]) => stream),
    stop: () => running.stop('SIGKILL'),
  };
}

/** A case, and what there is to tell of it: digests of a stream, or sizes of datagrams that did not come back. */
export interface CaseReport {
  readonly sent: string | number;
  readonly back?: string;
  readonly missing?: number[];
  readonly failed?: string;
}

/** Starts cases from a namespace against an echo server. */
export function startCases(from: Namespace, address: string, cases: readonly string[]): RunningCommand {
  return from.start(PYTHON, ['-c', PROGRAM, 'client', address, String(PORT), ...cases]);
}

/** Runs them to their end. */
export async function runCases<Name extends string>(
  from: Namespace,
  address: string,
  cases: readonly Name[],
): Promise<Record<Name, CaseReport>> {
  const { code, stdout, stderr } = await startCases(from, address, cases).finish(90_000);
  if (code !== 0) throw new Error(`${from.label}: traffic to ${address}: ${stderr}`);
  return JSON.parse(stdout) as Record<Name, CaseReport>;
}

/** Streams of random data there and back for so many seconds; resolves with the bytes that came back. */
export async function soak(from: Namespace, address: string, seconds: number): Promise<number> {
  const args = ['-c', PROGRAM, 'soak', address, String(PORT), String(seconds)];
  const report = await from.run(PYTHON, args, { timeoutMs: seconds * 1000 + 60_000 });
  return (JSON.parse(report) as { bytes: number }).bytes;
}

/** The switch of a laboratory of two hosts (`Lab.bridgeUnderlay`) in two halves, each cutting and summing what it hands to the other. */
export async function halve(at: Namespace, mtu = 1500): Promise<void> {
  at.ipBatch([
    `link add br1 mtu ${mtu} type bridge stp_state 0 forward_delay 0 mcast_snooping 0`,
    'link set br1 up',
    'link set p1 master br1',
    ...[0, 1].flatMap((i) => [
      `link add x${i} mtu ${mtu} type veth peer name y${i} mtu ${mtu}`,
      `link set x${i} master br${i} up`,
      `link set y${i} up`,
    ]),
  ]);
  for (const i of [0, 1]) await offloads(at, `x${i}`, 'off');
}

export type Impairment = 'none' | 'loss' | 'reorder' | 'duplicate' | 'corrupt';

/** Joins the halves by a wire with a fault; this kernel need not have netem. `mend` tells how often it struck. */
export async function impair(at: Namespace, kind: Impairment) {
  const running = at.start(PYTHON, ['-c', PROGRAM, 'impair', kind, 'y0', 'y1']);
  await running.output(/^listening$/m);
  return {
    async mend(): Promise<number> {
      const { stdout } = await running.stop('SIGTERM');
      const [, oversize] = /^oversize (\d+)/m.exec(stdout) ?? [];
      if (oversize) throw new Error(`a frame of ${oversize} bytes on the wire`);
      return Number(/^impaired (\d+)$/m.exec(stdout)?.[1]);
    },
  };
}

/** `ethtool -K` on a device: nothing left to be done later, or everything. */
export async function offloads(at: Namespace, device: string, state: 'on' | 'off'): Promise<void> {
  const features = ['tx', 'sg', 'tso', 'gso', 'tx-udp-segmentation', 'tx-udp_tnl-segmentation'];
  const words = [...features, 'tx-udp_tnl-csum-segmentation'].flatMap((feature) => [feature, state]);
  // Not every device has every feature, and then ethtool says so and sets the others.
  const { code, stderr } = await at.exec('ethtool', ['-K', device, ...words]);
  if (code !== 0 && !/Could not change any/.test(stderr) && !/^Actual changes/m.test(stderr)) {
    for (const feature of features) await at.exec('ethtool', ['-K', device, feature, state]);
  }
}
