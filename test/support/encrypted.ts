/**
 * What the live tests of encrypted networks share: meshes with a ring of keys, what is on the wire between the hosts
 * as ESP packets one by one, numbered datagrams of which none may be lost, and packets put on the wire a second time.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, readSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { type Namespace, type PingOptions, ping, type RunningCommand, waitFor } from '../../cli/lab.js';
import { openCapture } from '../../control/capture-files.js';
import type { SaRow } from '../../control/keying/store.js';
import { be16, concat, ethernet, slowSum, udpSum } from './frames.js';
import { type Engine, hex, Mesh, type MeshOptions, type Rig } from './live.js';

export type Encapsulation = 'esp' | 'udp';

/** UDP ports: VXLAN that is not encrypted, encapsulated ESP, and the exchange of keys. */
const VXLAN_PORT = 4789;
const ESP_PORT = 4500;
const EXCHANGE_PORT = 7949;
/** ESP header, IV, UDP and VXLAN header, an Ethernet header and the shortest ICV. */
const SHORTEST_ESP = 16 + 8 + 8 + 14 + 8;
const PYTHON = '/usr/bin/python3';

/** A key of the ring, as the file has it. */
export interface RingSecret {
  readonly id: number;
  readonly secret: string;
}

export const secretOf = (id: number): RingSecret => ({ id, secret: randomBytes(32).toString('hex') });

export interface EncryptedOptions extends Omit<MeshOptions, 'file'> {
  readonly encapsulation: Encapsulation;
  /** Oldest first; two of its own unless told. */
  readonly keys?: readonly RingSecret[];
  /** Further keys of `encryption`. */
  readonly encryption?: Record<string, unknown>;
  /** Further keys of each file. */
  readonly file?: Record<string, unknown>;
}

/** Options of a mesh whose network is encrypted. */
export function encryptedOptions(options: EncryptedOptions): MeshOptions {
  const { encapsulation, keys = [1, 2].map(secretOf), encryption, file, network, ...rest } = options;
  return {
    ...rest,
    network: { encrypted: true, ...network },
    file: { encryption: { keys, encapsulation, ...encryption }, ...file },
  };
}

/** A mesh whose network is encrypted, and whose hosts all have agreed on keys. */
export async function encrypted(options: EncryptedOptions): Promise<Mesh> {
  const mesh = await Mesh.up(encryptedOptions(options));
  for (const [i, engine] of mesh.engines.entries())
    if (!options.without?.includes(i + 1)) await sending(engine, options.hosts - 1);
  return mesh;
}

/** Waits until an engine sends to so many peers. */
export async function sending(engine: Engine, peers: number): Promise<void> {
  await waitFor(async () => (await outbound(engine)).length === peers, {
    what: `${engine.host.label} to have agreed on keys with ${peers} peers`,
    timeoutMs: 20_000,
  });
}

/** The associations with which an engine sends. */
export async function outbound(engine: Engine): Promise<SaRow[]> {
  return (await engine.associations()).filter(({ state }) => state === 'sending');
}

/** Asserts that pings come back, each once, in a few seconds at most. */
export async function reached(
  t: ExecutionContext,
  from: Namespace,
  to: string,
  options: Pick<PingOptions, 'size' | 'df' | 'pattern'> = {},
): Promise<void> {
  // With a deadline, for without one ping does not wait for answers that take longer than those before. But it ends
  // when a neighbour is not found.
  const { duplicates } = await waitFor(
    async () => {
      const result = await ping(from, to, { ...options, count: 3, deadlineS: 10 });
      return result.received >= 3 ? result : undefined;
    },
    { what: `answers from ${to}`, timeoutMs: 15_000 },
  );
  t.is(duplicates, 0);
}

// --- The wire ---------------------------------------------------------------------------------------------------

/** An ESP packet as it was on the wire; of a super-frame, each. */
export interface EspPacket {
  /** VTEP that sent it. */
  readonly from: string;
  /** ms since 1970. */
  readonly at: number;
  readonly spi: number;
  /** Its low 32 bits, which are what travels. */
  readonly sequence: number;
  /** From the ESP header to the ICV. */
  readonly esp: Uint8Array;
  /** What was in front of it, from the Ethernet header on; lengths may be those of a super-frame. */
  readonly headers: Uint8Array;
}

export interface Recording {
  readonly esp: readonly EspPacket[];
  /** From or to the port of VXLAN: what nobody encrypted. */
  readonly plain: readonly { readonly from: string; readonly at: number; readonly bytes: Uint8Array }[];
  /** Messages of the exchange of keys, ready to be sent again. */
  readonly exchange: readonly { readonly from: string; readonly frame: Uint8Array }[];
  /** Of IP; there must be none of ours. */
  readonly fragments: number;
  /** How many frames contain these bytes. */
  readonly sightings: (bytes: Uint8Array) => number;
}

/** Records every frame at a device, until `stop`. */
export async function record(
  rig: Rig,
  at: Namespace,
  device = 'under0',
): Promise<{ stop(): Promise<Recording> }> {
  const file = join(rig.directory, `${at.label}-${Date.now()}.pcap`);
  const tcpdump = at.start('tcpdump', [
    // Not in immediate mode, in which each frame takes as much of the buffer as the longest may be.
    ...['-i', device, '-n', '-s', '0', '-w', file, '-U', '-B', '65536'],
  ]);
  await tcpdump.output(/listening on/, { stream: 'stderr' });
  return {
    async stop() {
      await drain(file, at, device);
      const { stderr } = await tcpdump.stop('SIGINT');
      const lost = /(\d+) packets? dropped by kernel/.exec(stderr)?.[1];
      if (lost !== '0') throw new Error(`the capture is not whole: ${stderr}`);
      return read(file);
    },
  };
}

/** Waits until all that was sent so far is in the file: tcpdump leaves behind what it has not read when it ends. */
async function drain(file: string, at: Namespace, device: string): Promise<void> {
  const marker = randomBytes(16);
  const start = statSync(file).size;
  await injectAll(at, [ethernet({}, marker)], device);
  const fd = openSync(file, 'r');
  try {
    await waitFor(
      () => {
        const tail = Buffer.alloc(statSync(file).size - start);
        readSync(fd, tail, 0, tail.length, start);
        return tail.includes(marker);
      },
      { what: `the end of ${file}`, timeoutMs: 10_000 },
    );
  } finally {
    closeSync(fd);
  }
}

function read(file: string): Recording {
  const { bytes, count, offsets, capturedLengths, seconds, nanoseconds } = openCapture(file);
  const esp: EspPacket[] = [];
  const plain: Recording['plain'][number][] = [];
  const exchange: Recording['exchange'][number][] = [];
  const frames: Buffer[] = [];
  let fragments = 0;
  for (let i = 0; i < count; i++) {
    const frame = bytes.subarray(offsets[i], offsets[i] + capturedLengths[i]);
    const at = seconds[i] * 1000 + nanoseconds[i] / 1e6;
    frames.push(Buffer.from(frame.buffer, frame.byteOffset, frame.length));
    const found = outerOf(frame);
    if (!found) continue;
    const { from, protocol, ip, fragment } = found;
    if (fragment) fragments++;
    const ports = protocol === 17 ? [word(frame, ip), word(frame, ip + 2)] : [];
    if (ports.includes(VXLAN_PORT)) plain.push({ from, at, bytes: frame });
    if (ports[1] === EXCHANGE_PORT) {
      const message = alone({ headers: frame.subarray(0, ip + 8), esp: frame.subarray(ip + 8) });
      exchange.push({ from, frame: message });
    }
    const start = protocol === 50 ? ip : ports[1] === ESP_PORT ? ip + 8 : 0;
    if (start > 0) for (const each of cut(frame, start)) esp.push({ from, at, ...each });
  }
  const sightings = (wanted: Uint8Array): number =>
    frames.filter((frame) => frame.includes(Buffer.from(wanted))).length;
  return { esp, plain, exchange, fragments, sightings };
}

/** An IP packet without options or extension headers: its source, its protocol, and where that begins. */
function outerOf(frame: Uint8Array) {
  const type = word(frame, 12);
  if (type === 0x0800) {
    const from = frame.subarray(26, 30).join('.');
    return { from, protocol: frame[23], ip: 34, fragment: (word(frame, 20) & 0x3fff) !== 0 };
  }
  if (type !== 0x86dd) return undefined;
  // Addresses of the lab: fd50:: and a number.
  const from = `fd50::${frame[37].toString(16)}`;
  return { from, protocol: frame[20], ip: 54, fragment: frame[20] === 44 };
}

/**
 * The ESP packets of a frame. Those of a super-frame are of one size, the last perhaps shorter, and their numbers
 * follow on one another: where the header with the next number stands, the next one begins.
 */
function cut(frame: Uint8Array, start: number): Omit<EspPacket, 'from' | 'at'>[] {
  const all = frame.subarray(start);
  const headers = frame.subarray(0, start);
  const spi = long(all, 0);
  const sequence = long(all, 4);
  let size = SHORTEST_ESP;
  while (size < all.length && (long(all, size) !== spi || long(all, size + 4) !== sequence + 1)) size++;
  const packets = [];
  for (let at = 0; at < all.length; at += size) {
    const esp = all.subarray(at, at + size);
    packets.push({ spi: long(esp, 0), sequence: long(esp, 4), esp, headers });
  }
  return packets;
}

/** A packet as if it had travelled alone, with other bytes behind its headers when told. */
export function alone(
  { headers, esp }: Pick<EspPacket, 'headers' | 'esp'>,
  content: Uint8Array = esp,
): Uint8Array {
  const v6 = word(headers, 12) === 0x86dd;
  const ip = v6 ? 54 : 34;
  const packet = concat(headers, content);
  if (v6) packet.set(be16(packet.length - 54), 18);
  else {
    packet.set(be16(packet.length - 14), 16);
    packet.set(be16(0), 24);
    packet.set(be16(~slowSum(packet.subarray(14, 34)) & 0xffff), 24);
  }
  if (headers.length === ip) return packet;
  packet.set(be16(packet.length - ip, 0), ip + 4);
  if (v6) {
    const sum = ~udpSum(packet.subarray(22, 38), packet.subarray(38, 54), packet.subarray(54)) & 0xffff;
    packet.set(be16(sum === 0 ? 0xffff : sum), ip + 6);
  }
  return packet;
}

const word = (bytes: Uint8Array, at: number): number => (bytes[at] << 8) | bytes[at + 1];
const long = (bytes: Uint8Array, at: number): number => word(bytes, at) * 65536 + word(bytes, at + 2);

/**
 * Asserts that no sequence number, no IV and no ICV was seen twice under one SPI, and that no number between the first
 * and the last of an SPI is missing: nothing has escaped the recording.
 * @param whole false where packets may have been numbered and not sent: by an engine that died, or to one that is dead.
 * @returns the SPIs by sender.
 */
export function assertNonces(
  t: ExecutionContext,
  packets: readonly EspPacket[],
  whole = true,
): Map<string, Set<number>> {
  const seen = new Set<string>();
  const twice: string[] = [];
  const senders = new Map<string, Set<number>>();
  const numbers = new Map<number, number[]>();
  const note = (what: string): void => {
    if (seen.has(what)) twice.push(what);
    seen.add(what);
  };
  for (const { from, spi, sequence, esp } of packets) {
    note(`SPI ${spi} number ${sequence}`);
    note(`SPI ${spi} IV ${hex(esp.subarray(8, 16))}`);
    note(`SPI ${spi} ICV ${hex(esp.subarray(-16))}`);
    senders.set(from, (senders.get(from) ?? new Set()).add(spi));
    const known = numbers.get(spi);
    if (known) known.push(sequence);
    else numbers.set(spi, [sequence]);
  }
  t.deepEqual(twice.slice(0, 5), [], `${twice.length} repetitions in ${packets.length} packets`);
  for (const [spi, all] of whole ? numbers : []) {
    const lowest = all.reduce((a, b) => Math.min(a, b));
    const highest = all.reduce((a, b) => Math.max(a, b));
    t.is(all.length, highest - lowest + 1, `numbers ${lowest} to ${highest} of SPI ${spi}`);
  }
  return senders;
}

/** Asserts that nothing but ESP carried the network. */
export function assertSealed(t: ExecutionContext, { plain, fragments }: Recording): void {
  t.deepEqual(
    plain.slice(0, 3).map(({ from, bytes }) => `${from}: ${hex(bytes)}`),
    [],
    `${plain.length} plain packets`,
  );
  t.is(fragments, 0);
}

// --- Packets put on the wire -------------------------------------------------------------------------------------

const INJECT = `import socket, struct, sys, time
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.setsockopt(socket.SOL_SOCKET, 32, 8 << 20)
wire.bind((sys.argv[1], 0))
data, at, sent = sys.stdin.buffer.read(), 0, 0
while at < len(data):
    size, = struct.unpack_from('>I', data, at)
    wire.send(data[at + 4:at + 4 + size])
    at += 4 + size
    sent += 1
    if sent % 16 == 0:
        time.sleep(0.002)`;

/** Sends raw frames out of a device, in order and no faster than anybody can read them. */
export async function injectAll(
  namespace: Namespace,
  frames: readonly Uint8Array[],
  device = 'under0',
): Promise<void> {
  const running = namespace.start(PYTHON, ['-c', INJECT, device], { stdio: ['pipe', 'pipe', 'pipe'] });
  const sized = frames.flatMap((frame) => [be16(0, frame.length), frame]);
  running.child.stdin?.end(concat(...sized));
  const { code, stderr } = await running.finish();
  if (code !== 0) throw new Error(`${namespace.label}: ${stderr}`);
}

// --- Numbered datagrams ------------------------------------------------------------------------------------------

const NUMBERED = `import json, select, signal, socket, struct, sys, time
own, other, port, rate = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
sock = socket.socket(socket.AF_INET6 if ':' in own else socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)
sock.setsockopt(socket.SOL_SOCKET, 32, 8 << 20)
sock.bind((own, port))
sock.connect((other, port))
sock.setblocking(False)
state, sent, seen, last = 'waits', 0, set(), -1
report = {'received': 0, 'duplicates': 0, 'reordered': 0}
def turn(to):
    def change(*_):
        global state
        state = to
    return change
signal.signal(signal.SIGUSR2, turn('sends'))
signal.signal(signal.SIGUSR1, turn('stops'))
signal.signal(signal.SIGTERM, turn('drains'))
def drain():
    global last
    while True:
        try:
            number, = struct.unpack_from('>Q', sock.recv(65536))
        except OSError:
            return
        report['received'] += 1
        report['duplicates'] += number in seen
        report['reordered'] += number < last
        seen.add(number)
        last = max(last, number)
print('bound', flush=True)
quiet, due = None, 0
while state != 'drains' or time.monotonic() - quiet < 1:
    readable = select.select([sock], [], [], max(0, min(0.004, due - time.monotonic())) if state in ('sends', 'stops') else 0.1)[0]
    if readable:
        drain()
    if state in ('sends', 'stops') and time.monotonic() >= due:
        due = time.monotonic() + 0.004
        # Runs of one size, which may leave together, and others between them.
        for i in range(rate // 250):
            size = 1200 if i % 4 else 40 + sent % 1100
            try:
                sock.send(struct.pack('>Q', sent) + b'n' * size)
                sent += 1
            except OSError as error:
                print('not sent', error, file=sys.stderr)
    # However soon it is told to stop: fewer say nothing.
    if state == 'stops' and sent > 150:
        state = 'waits'
        print('sent', sent, flush=True)
    if quiet is None and state == 'drains' or readable:
        quiet = time.monotonic()
missing = sorted(set(range(last + 1)) - seen)
print(json.dumps({**report, 'last': last, 'missing': missing[:20]}))`;

export interface FlowReport {
  readonly sent: number;
  readonly received: number;
  readonly duplicates: number;
  /** Those behind one with a higher number. */
  readonly reordered: number;
  readonly last: number;
  /** The first of those below `last` that did not come. */
  readonly missing: readonly number[];
}

/** Numbered datagrams both ways between two containers, which never pause. */
export class Flow {
  private constructor(private readonly ends: readonly RunningCommand[]) {}

  /** @param rate datagrams a second and direction, at most. */
  static async between(
    [a, b]: readonly Namespace[],
    [from, to]: readonly string[],
    rate = 2000,
    port = 7300,
  ): Promise<Flow> {
    const end = (namespace: Namespace, own: string, other: string): RunningCommand => {
      const args = ['-', own, other, String(port), String(rate)];
      const running = namespace.start(PYTHON, args, { stdio: ['pipe', 'pipe', 'pipe'] });
      running.child.stdin?.end(NUMBERED);
      return running;
    };
    const ends = [end(a, from, to), end(b, to, from)];
    for (const one of ends) await one.output(/^bound$/m);
    for (const { child } of ends) child.kill('SIGUSR2');
    return new Flow(ends);
  }

  /** @returns what came of those from the first to the second, and of the others. */
  async stop(): Promise<[FlowReport, FlowReport]> {
    const sent: number[] = [];
    for (const one of this.ends) {
      one.child.kill('SIGUSR1');
      sent.push(Number((await one.output(/^sent (\d+)$/m))[1]));
    }
    const [back, forth] = await Promise.all(
      this.ends.map(async (one) => JSON.parse((await one.stop()).stdout.trim().split('\n').at(-1)!)),
    );
    return [
      { ...forth, sent: sent[0] },
      { ...back, sent: sent[1] },
    ];
  }
}

interface Counted {
  readonly ifname: string;
  readonly stats64?: { readonly rx: { readonly dropped: number }; readonly tx: { readonly dropped: number } };
}

/** Packets that the kernel dropped at interfaces and sockets of these namespaces: what no engine can have lost. */
export async function kernelDrops(namespaces: readonly Namespace[]): Promise<number> {
  let total = 0;
  for (const namespace of namespaces) {
    for (const { stats64 } of JSON.parse(namespace.ip('-s', '-j', 'link', 'show')) as Counted[])
      total += (stats64?.rx.dropped ?? 0) + (stats64?.tx.dropped ?? 0);
    const snmp = await namespace.run('cat', ['/proc/net/snmp', '/proc/net/snmp6']);
    const [names = '', values = ''] = [...snmp.matchAll(/^Udp: (.*)$/gm)].map(([, line]) => line);
    const at = names.split(' ').indexOf('RcvbufErrors');
    total += Number(values.split(' ')[at]) + Number(/^Udp6RcvbufErrors\s+(\d+)/m.exec(snmp)?.[1] ?? 0);
  }
  return total;
}

/**
 * Asserts that of a flow nothing was lost, doubled or out of order, but what the kernel says it dropped itself.
 * @param ordered false where several workers serve a flow in turn, as the queues of a TAP have it.
 */
export function assertWhole(
  t: ExecutionContext,
  reports: readonly FlowReport[],
  explained = 0,
  ordered = true,
): void {
  for (const [i, { sent, received, duplicates, reordered, missing }] of reports.entries()) {
    const what = `direction ${i}: ${received} of ${sent}, missing from ${missing.join(' ')}`;
    t.true(sent > 100, what);
    t.is(duplicates, 0, what);
    if (ordered) t.is(reordered, 0, what);
    if (explained > 0) t.log(`the kernel dropped ${explained}; ${what}`);
    t.true(sent - received <= explained, what);
  }
}
