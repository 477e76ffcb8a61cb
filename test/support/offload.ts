/**
 * Traffic that makes senders use every offload there is, and a judge of what of it is on the wire.
 *
 * The traffic is a Python program, since Node can set neither UDP_SEGMENT nor MSG_OOB nor MSG_FASTOPEN: an echo
 * server, and a client that runs cases by name against it. Data are of a seed, so runs compare.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { stripVTControlCharacters } from 'node:util';
import type { ExecutionContext } from 'ava';
import type { Namespace, RunningCommand } from '../../cli/lab.js';
import { type Mesh, underlayAddress } from './live.js';

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

export type Case =
  | 'bulk'
  | 'megabytes'
  | 'no-timestamps'
  | 'ecn'
  | 'urgent'
  | 'push'
  | 'syn-data'
  | 'streams'
  | 'udp'
  | 'udp-few'
  | 'fragments'
  | 'uso-1000'
  | 'uso-odd'
  | 'uso-full'
  | 'uso-tiny';

export const TCP_CASES: readonly Case[] = ['bulk', 'no-timestamps', 'ecn', 'urgent', 'push', 'syn-data'];
export const UDP_CASES: readonly Case[] = ['udp', 'uso-1000', 'uso-odd', 'uso-full', 'uso-tiny', 'fragments'];

interface CaseReport {
  readonly sent: string | number;
  readonly back?: string;
  readonly missing?: number[];
  readonly failed?: string;
}

const PORT = 7100;

/** An echo server in a namespace; what it got over TCP is told as `bytes sha256`. */
export async function echoServer(at: Namespace, ...addresses: string[]) {
  const running = at.start(PYTHON, ['-c', PROGRAM, 'server', String(PORT), ...addresses]);
  await running.output(/^listening$/m);
  return {
    streams: (): string[] => [...running.stdout.matchAll(/^got (\d+ \w+)$/gm)].map(([, stream]) => stream),
    stop: () => running.stop('SIGKILL'),
  };
}

/** Runs cases from a namespace against an echo server and asserts that everything came back as it was sent. */
export async function exchange(
  t: ExecutionContext,
  from: Namespace,
  address: string,
  cases: readonly Case[],
): Promise<void> {
  const args = ['-c', PROGRAM, 'client', address, String(PORT), ...cases];
  const report = JSON.parse(await from.run(PYTHON, args, { timeoutMs: 90_000 })) as Record<Case, CaseReport>;
  for (const name of cases) {
    const { sent, back, missing, failed } = report[name];
    const what = `${name} from ${from.label} to ${address}`;
    t.is(failed, undefined, what);
    if (missing) t.deepEqual(missing, [], `${what}: these of ${sent} did not come back`);
    else t.is(back, String(sent), what);
  }
}

/** Starts a case that is not expected to end. */
export function begin(from: Namespace, address: string, name: Case): RunningCommand {
  return from.start(PYTHON, ['-c', PROGRAM, 'client', address, String(PORT), name]);
}

/** Streams of random data there and back for so many seconds; resolves with the bytes that came back. */
export async function soak(from: Namespace, address: string, seconds: number): Promise<number> {
  const args = ['-c', PROGRAM, 'soak', address, String(PORT), String(seconds)];
  const report = await from.run(PYTHON, args, { timeoutMs: seconds * 1000 + 60_000 });
  return (JSON.parse(report) as { bytes: number }).bytes;
}

/** The switch of a mesh of two hosts in two halves, each cutting and summing what it hands to the other. */
export async function halve(mesh: Mesh): Promise<void> {
  const { switch: at, options } = mesh;
  const mtu = String(options.mtu ?? 1500);
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
export async function impair(mesh: Mesh, kind: Impairment) {
  const running = mesh.switch.start(PYTHON, ['-c', PROGRAM, 'impair', kind, 'y0', 'y1']);
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

/** A packet of the underlay as tshark reads it. Of fields that occur twice, the outer one is first. */
export interface Packet {
  readonly bytes: number;
  /** Address of the VTEP that sent it. */
  readonly from: string;
  /** Outer MAC addresses. */
  readonly by: string;
  readonly to: string;
  readonly port: number;
  /** Status of each checksum: 0 bad, 1 good, 2 not verified, 3 not present. */
  readonly ip: string[];
  readonly udp: string[];
  readonly tcp: string[];
  /** Lengths that the headers tell. */
  readonly ipLengths: number[];
  readonly plens: number[];
  readonly udpLengths: number[];
  readonly malformed: boolean;
  readonly urgent: boolean;
  readonly sack: boolean;
  readonly timestamps: boolean;
  readonly syn: boolean;
  readonly tcpBytes: number;
  readonly tcpFlags: number;
  /** ECN bits, outer and inner. */
  readonly ecn: number[];
  readonly fragment: boolean;
  readonly v4Inside: boolean;
}

const FIELDS = [
  ...['frame.len', 'ip.src', 'ipv6.src', 'udp.srcport', 'ip.checksum.status', 'udp.checksum.status'],
  ...['tcp.checksum.status', 'ip.len', 'ipv6.plen', 'udp.length', '_ws.malformed', 'tcp.flags'],
  ...['tcp.options.sack_le', 'tcp.options.timestamp.tsval', 'tcp.len', 'ip.dsfield.ecn', 'ipv6.tclass.ecn'],
  ...['ip.flags.mf', 'ip.frag_offset', 'ipv6.fraghdr.offset', 'eth.src', 'eth.dst'],
];

/** Captures VXLAN at a device until `stop`, which reads it with every checksum verified. */
export async function wire(mesh: Mesh, at: Namespace, device: string) {
  const file = join(mesh.directory, `${at.label}-${device}.pcap`);
  const filter = 'udp or (ip and ip[6:2] & 0x3fff != 0)';
  const tcpdump = at.start('tcpdump', [
    ...['-i', device, '-n', '-s', '0', '-w', file, '-U', '-B', '65536', '--immediate-mode', filter],
  ]);
  await tcpdump.output(/listening on/, { stream: 'stderr' });
  return {
    async stop(): Promise<Packet[]> {
      const { stderr } = await tcpdump.stop('SIGINT');
      const lost = /(\d+) packets? dropped by kernel/.exec(stderr)?.[1];
      if (lost !== '0') throw new Error(`the capture is not whole: ${stderr}`);
      const verify = ['ip', 'udp', 'tcp'].flatMap((layer) => ['-o', `${layer}.check_checksum:TRUE`]);
      const text = await at.run(
        'tshark',
        [
          // Random payload looks like some protocol now and then, and then it is malformed: it is data here.
          ...['udp', 'tcp'].flatMap((layer) => ['-d', `${layer}.port==${PORT},data`]),
          ...['-n', '-r', file, ...verify, '-d', 'udp.port==4789,vxlan', '-T', 'fields'],
          ...['-E', 'separator=;', '-E', 'occurrence=a', '-E', 'aggregator=,'],
          ...FIELDS.flatMap((field) => ['-e', field]),
        ],
        { timeoutMs: 60_000 },
      );
      return stripVTControlCharacters(text)
        .split('\n')
        .filter((line) => line !== '')
        .map(packetOf);
    },
  };
}

function packetOf(line: string): Packet {
  const cells = line.split(';').map((cell) => cell.split(',').filter((value) => value !== ''));
  const [bytes, v4, v6, port, ip, udp, tcp, ipLengths, plens, udpLengths, malformed, flags] = cells;
  const [sack, stamps, tcpBytes, ecn4, ecn6, mf, offsets, offsets6, by, to] = cells.slice(12);
  const outer6 = v6[0]?.startsWith('fd50') === true;
  const tcpFlags = Number(flags[0] ?? 0);
  const isSet = (value: string): boolean => value === '1' || value === 'True';
  return {
    bytes: Number(bytes[0]),
    from: outer6 ? v6[0] : v4[0],
    by: by[0],
    to: to[0],
    port: Number(port[0]),
    ip,
    udp,
    tcp,
    ipLengths: ipLengths.map(Number),
    plens: plens.map(Number),
    udpLengths: udpLengths.map(Number),
    malformed: malformed.length > 0,
    urgent: (tcpFlags & 0x20) !== 0,
    sack: sack.length > 0,
    timestamps: stamps.length > 0,
    syn: (tcpFlags & 2) !== 0,
    tcpBytes: Number(tcpBytes[0] ?? 0),
    tcpFlags,
    ecn: (outer6 ? [...ecn6.slice(0, 1), ...ecn4, ...ecn6.slice(1)] : [...ecn4, ...ecn6]).map(Number),
    fragment: mf.some(isSet) || offsets.some((offset) => offset !== '0') || offsets6.length > 0,
    v4Inside: ipLengths.length > (outer6 ? 0 : 1),
  };
}

/** Asserts that every packet is sound: checksums inside and outside, lengths, and none longer than the MTU. */
export function assertSound(t: ExecutionContext, packets: readonly Packet[], v6: boolean, mtu = 1500): void {
  const outer = v6 ? 70 : 50;
  const unsound = packets.flatMap((packet) => {
    const { bytes, ip, udp, tcp, ipLengths, plens, udpLengths } = packet;
    const outerIp = v6 ? plens[0] + 40 : ipLengths[0];
    const innerV4 = v6 ? ipLengths[0] : ipLengths[1];
    const innerV6 = v6 ? plens[1] : plens[0];
    const inner = innerV4 ?? (innerV6 === undefined ? undefined : innerV6 + 40);
    const wrong = [
      packet.malformed && 'malformed',
      [...ip, ...udp, ...tcp].includes('0') && `checksum: ip ${ip} udp ${udp} tcp ${tcp}`,
      tcp.includes('2') && 'TCP checksum not verified',
      v6 && udp[0] !== '1' && `outer UDP checksum over IPv6 is ${udp[0]}`,
      bytes > mtu + 14 && `${bytes} bytes`,
      outerIp !== bytes - 14 && `outer IP length ${outerIp} of ${bytes} bytes`,
      udpLengths[0] !== bytes - 14 - (v6 ? 40 : 20) && `outer UDP length ${udpLengths[0]} of ${bytes}`,
      inner !== undefined && inner !== bytes - outer - 14 && `inner IP length ${inner} of ${bytes}`,
    ].filter((problem) => problem !== false);
    return wrong.length > 0 ? [`from ${packet.from}: ${wrong.join('; ')}`] : [];
  });
  t.deepEqual(unsound.slice(0, 5), [], `${unsound.length} of ${packets.length} packets`);
}

/** Packets that host `n` of a mesh sent. */
export const sentBy = (packets: readonly Packet[], n: number, v6: boolean): Packet[] =>
  packets.filter(({ from }) => from === underlayAddress(n, v6));
