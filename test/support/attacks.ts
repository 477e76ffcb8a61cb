/**
 * What somebody on the link of an uplink may send, whole frames with any source: floods, a scan, fragments, forged
 * resets and errors. Templates are scapy's; of a flood only source, port and sums change from frame to frame.
 */
import { existsSync } from 'node:fs';
import { pythonMissing } from '../../bench/wire-traffic.js';
import type { Namespace } from '../../cli/lab.js';

const PYTHON = '/usr/bin/python3';

/** Why nobody can attack here, or undefined when somebody can. */
export function attacksMissing(): string | undefined {
  const scapy = existsSync('/usr/lib/python3/dist-packages/scapy/__init__.py');
  return pythonMissing() ?? (scapy ? undefined : 'it needs python3-scapy');
}

const PROGRAM = `
import json, random, socket, sys, time
from scapy.layers.l2 import Ether
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw
asked = json.loads(sys.argv[1])
count, target, port = asked['count'], asked['target'], asked.get('port', 0)
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind((asked['device'], 0))
link = Ether(src='02:00:00:00:66:66', dst=asked['station'])
random.seed(5)

def fold(value):
    while value >> 16:
        value = (value >> 16) + (value & 0xffff)
    return value

def put(frame, at, value):
    frame[at] = value >> 8
    frame[at + 1] = value & 0xff

def word(frame, at):
    return frame[at] << 8 | frame[at + 1]

def outside(i):
    return 0x1400 + (i >> 16), i & 0xffff

def inside(i):
    """An address of 10.0.9.0/24 that is nobody's."""
    return 0x0a00, 0x0900 | 150 + i % 90

def flood(packet, sum_at, destination=None):
    """Count frames, each of another source address and port."""
    source = inside if asked.get('inside') else outside
    frame = bytearray(bytes(link / packet))
    ip_sum = word(frame, 24) ^ 0xffff
    sum_ = word(frame, sum_at) ^ 0xffff
    send = wire.send
    for i in range(count):
        high, low = source(i)
        own = 1024 + i * 7 % 60000
        to = port if destination is None else destination(i)
        put(frame, 24, fold(ip_sum + high + low) ^ 0xffff)
        put(frame, 26, high)
        put(frame, 28, low)
        put(frame, 34, own)
        put(frame, 36, to)
        put(frame, sum_at, fold(sum_ + high + low + own + to) ^ 0xffff or 0xffff)
        send(frame)

def syn():
    flood(IP(src='0.0.0.0', dst=target) / TCP(sport=0, dport=0, flags='S', seq=7, options=[('MSS', 1460)]), 50)

def syn6():
    """Each of another station of the link, none of which is there."""
    packet = IPv6(src=asked['source'], dst=target) / TCP(sport=0, dport=port, flags='S', seq=7)
    frame = bytearray(bytes(link / packet))
    sum_ = word(frame, 70) ^ 0xffff
    for i in range(count):
        high, low, own = 0x100 + (i >> 16), i & 0xffff, 1024 + i * 7 % 60000
        put(frame, 34, high)
        put(frame, 36, low)
        put(frame, 54, own)
        put(frame, 70, fold(sum_ + high + low + own) ^ 0xffff)
        wire.send(frame)

def udp():
    # One in four to what is published, the others to anything.
    flood(IP(src='0.0.0.0', dst=target) / UDP(sport=0, dport=0) / Raw(b'flood'), 40,
          lambda i: port if i % 4 == 0 else 1 + i * 31 % 65535)

def scan():
    """Every port, from one source."""
    packet = IP(src=asked['source'], dst=target) / TCP(sport=4444, dport=0, flags='S', seq=7)
    frame = bytearray(bytes(link / packet))
    sum_ = word(frame, 50) ^ 0xffff
    for to in range(1, 65536):
        put(frame, 36, to)
        put(frame, 50, fold(sum_ + to) ^ 0xffff)
        wire.send(frame)

def fragments():
    """First ones without an end, later ones without a first, ones that overlap, and ones beyond 65,535 bytes."""
    first = bytes(UDP(sport=5000, dport=port, len=4000, chksum=0)) + b'a' * 56
    frames = []
    for fields, other, data in [
        ({'flags': 'MF', 'frag': 0}, 0, first),
        ({'flags': 'MF', 'frag': 4}, 0, b'b' * 64),
        ({'flags': 'MF', 'frag': 90}, 30000, b'c' * 64),
        ({'flags': 0, 'frag': 8189}, 0, b'd' * 1400),
    ]:
        ip = IP(src=asked['source'], dst=target, id=0, proto=17, **fields)
        frame = bytearray(bytes(link / ip / Raw(data)))
        frames.append((frame, other, word(frame, 24) ^ 0xffff))
    for i in range(count):
        for frame, other, sum_ in frames:
            number = (i + other) & 0xffff
            put(frame, 18, number)
            put(frame, 24, fold(sum_ + number) ^ 0xffff)
            wire.send(frame)
        # No faster than anybody can read them.
        if i % 4 == 3:
            time.sleep(0.002)

def rst():
    """As from the server of a connection, with numbers that are guessed."""
    for i in range(count):
        tcp = TCP(sport=asked['remotePort'], dport=port, flags='RA' if i % 2 else 'R',
                  seq=random.getrandbits(32), ack=random.getrandbits(32), window=0)
        wire.send(bytes(link / IP(src=asked['source'], dst=target) / tcp))

def icmp():
    """Errors about a connection, as from a router, and as many about connections that are none."""
    for i in range(count):
        own = port if i % 2 == 0 else 1 + i
        about = IP(src=target, dst=asked['source'], ttl=60, len=1500) / TCP(
            sport=own, dport=asked['remotePort'], seq=random.getrandbits(32), flags='A')
        kind, code = [(3, 1), (3, 3), (3, 4), (11, 0), (5, 1)][i // 2 % 5]
        error = ICMP(type=kind, code=code)
        if (kind, code) == (3, 4):
            error.nexthopmtu = 68
        wire.send(bytes(link / IP(src='192.0.2.1', dst=target) / error / Raw(bytes(about)[:28])))

globals()[asked['kind']]()
`;

export interface Attack {
  /** From sources of 20.0.0.0/8 (`syn6`: of the /64 of `source`, whose last word is 0), or of network blue when `inside`: `syn`, `udp`. From one: `scan`, `fragments`, `rst`, `icmp`. */
  readonly kind: 'syn' | 'syn6' | 'udp' | 'scan' | 'fragments' | 'rst' | 'icmp';
  /** Interface that it leaves by, and the station it is for. */
  readonly device: string;
  readonly station: string;
  readonly target: string;
  /** Frames; of `fragments` four times as many. */
  readonly count?: number;
  readonly port?: number;
  readonly inside?: boolean;
  readonly source?: string;
  readonly remotePort?: number;
}

/** Ends when all of it was sent. */
export async function attack(from: Namespace, options: Attack): Promise<void> {
  const asked = JSON.stringify({ count: 0, ...options });
  await from.run(PYTHON, ['-', asked], { input: PROGRAM });
}
