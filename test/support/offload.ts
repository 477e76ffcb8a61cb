/** Runs traffic of every kind for a test, and judges what of it is on the wire. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { PORT, runCases } from '../../bench/wire-traffic.js';
import type { Namespace } from '../../cli/lab.js';
import { type Mesh, underlayAddress } from './live.js';

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

/** Runs cases from a namespace against an echo server and asserts that everything came back as it was sent. */
export async function exchange(
  t: ExecutionContext,
  from: Namespace,
  address: string,
  cases: readonly Case[],
): Promise<void> {
  const report = await runCases(from, address, cases);
  for (const name of cases) {
    const { sent, back, missing, failed } = report[name];
    const what = `${name} from ${from.label} to ${address}`;
    t.is(failed, undefined, what);
    if (missing) t.deepEqual(missing, [], `${what}: these of ${sent} did not come back`);
    else t.is(back, String(sent), what);
  }
}

/** A packet of the underlay as tshark reads it. Of fields that occur twice, the outer one is first. */
export interface Packet {
  /** In the capture, from 1. */
  readonly number: number;
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
  ...['ip.flags.mf', 'ip.frag_offset', 'ipv6.fraghdr.offset', 'eth.src', 'eth.dst', 'frame.number'],
  'tcp.checksum',
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
      // A running command keeps the end of what it prints, and this is longer.
      const text = `${file}.txt`;
      const args = [
        // Random payload looks like some protocol now and then, and then it is malformed: it is data here.
        ...['udp', 'tcp'].flatMap((layer) => ['-d', `${layer}.port==${PORT},data`]),
        ...['-n', '-r', file, ...verify, '-d', 'udp.port==4789,vxlan', '-T', 'fields'],
        ...['-E', 'separator=;', '-E', 'occurrence=a', '-E', 'aggregator=,'],
        ...FIELDS.flatMap((field) => ['-e', field]),
      ];
      await at.run('sh', ['-c', `exec tshark "$@" >'${text}'`, 'sh', ...args], { timeoutMs: 60_000 });
      return readFileSync(text, 'utf8')
        .split('\n')
        .filter((line) => line !== '')
        .map(packetOf);
    },
  };
}

function packetOf(line: string): Packet {
  const cells = line.split(';').map((cell) => cell.split(',').filter((value) => value !== ''));
  const [bytes, v4, v6, port, ip, udp, tcp, ipLengths, plens, udpLengths, malformed, flags] = cells;
  const [sack, stamps, tcpBytes, ecn4, ecn6, mf, offsets, offsets6, by, to, number, sum] = cells.slice(12);
  const outer6 = v6[0]?.startsWith('fd50') === true;
  const tcpFlags = Number(flags[0] ?? 0);
  const isSet = (value: string): boolean => value === '1' || value === 'True';
  return {
    bytes: Number(bytes[0]),
    from: outer6 ? v6[0] : v4[0],
    number: Number(number[0]),
    by: by[0],
    to: to[0],
    port: Number(port[0]),
    ip,
    udp,
    // Linux writes a TCP checksum of zero as 0xffff (skb_checksum_help); the sum is the same, tshark calls it bad.
    tcp: sum[0] === '0xffff' ? ['1'] : tcp,
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
    return wrong.length > 0 ? [`packet ${packet.number} from ${packet.from}: ${wrong.join('; ')}`] : [];
  });
  t.deepEqual(unsound.slice(0, 5), [], `${unsound.length} of ${packets.length} packets`);
}

/** Packets that host `n` of a mesh sent. */
export const sentBy = (packets: readonly Packet[], n: number, v6: boolean): Packet[] =>
  packets.filter(({ from }) => from === underlayAddress(n, v6));
