/** What the demo measures between the two containers, whoever carries their frames. */
import { iperf3, type Namespace, ping } from '../lab.js';

const PINGS = 20;
const BROADCASTS = 5;
/** Bytes of UDP payload: fits an MTU of 1450 with 28 bytes of headers. */
const DATAGRAM = 1400;
/** Bits a second of UDP. A sender without a limit would only show which of the processes gets the processor. */
const UDP_OFFERED = 200e6;

export interface Measures {
  readonly ping: { readonly sent: number; readonly received: number; readonly rttAvgMs: number };
  /** Absent, as is `udp`, where it could not be measured. */
  readonly tcp: { readonly bitsPerSecond: number; readonly retransmits: number };
  /** UDP_OFFERED bits a second are sent. */
  readonly udp: { readonly packetsPerSecond: number; readonly lostPercent: number };
  /** Packets to the broadcast address of the network, and how often the other container received one. */
  readonly broadcast: { readonly sent: number; readonly seen: number };
}

/** How the two containers are reached. */
export interface Pair {
  readonly c1: Namespace;
  readonly c2: Namespace;
  readonly address2: string;
  readonly broadcast: string;
  /** Duration of the TCP run; UDP takes half of it. */
  readonly seconds: number;
}

/** One measurement: what the progress line calls it, and how it is taken. It fails when nothing, or too much, arrives. */
export interface Measurement {
  readonly key: keyof Measures;
  readonly title: string;
  readonly run: (pair: Pair) => Promise<Measures[keyof Measures]>;
}

export const MEASUREMENTS: readonly Measurement[] = [
  { key: 'ping', title: 'ping', run: measurePing },
  { key: 'tcp', title: 'TCP (iperf3)', run: measureTcp },
  { key: 'udp', title: 'UDP (iperf3)', run: measureUdp },
  { key: 'broadcast', title: 'broadcast', run: measureBroadcast },
];

async function measurePing({ c1, address2 }: Pair): Promise<Measures['ping']> {
  // The first answer waits for ARP and for code to be compiled.
  await ping(c1, address2, { count: 3, interval: 0.02, deadlineS: 3 });
  const { sent, received, rttAvg } = await ping(c1, address2, { count: PINGS, interval: 0.02 });
  // ping gives up on its last ones soon: on a busy machine an answer may come too late.
  if (received < sent * 0.9) throw new Error(`only ${received} of ${sent} pings were answered`);
  return { sent, received, rttAvgMs: rttAvg };
}

async function measureTcp({ c1, c2, address2, seconds }: Pair): Promise<NonNullable<Measures['tcp']>> {
  const { bitsPerSecond, retransmits } = await iperf3(c1, c2, address2, { seconds });
  if (!(bitsPerSecond > 0)) throw new Error('the connection was made, but no data arrived');
  return { bitsPerSecond, retransmits };
}

async function measureUdp({ c1, c2, address2, seconds }: Pair): Promise<NonNullable<Measures['udp']>> {
  const options = {
    udp: true,
    seconds: Math.max(1, Math.round(seconds / 2)),
    length: DATAGRAM,
    bandwidth: UDP_OFFERED,
  };
  const { packetsPerSecond, lostPercent } = await iperf3(c1, c2, address2, options);
  if (!(packetsPerSecond > 0)) throw new Error('no datagram arrived');
  return { packetsPerSecond, lostPercent };
}

async function measureBroadcast({ c1, c2, broadcast }: Pair): Promise<Measures['broadcast']> {
  const before = await broadcastsReceived(c2);
  // Nobody answers (Linux does not, by default), so the exit code says nothing; c2's own kernel counts.
  await c1.exec('ping', ['-b', '-n', '-q', '-c', String(BROADCASTS), '-i', '0.05', '-W', '0.3', broadcast]);
  const seen = (await broadcastsReceived(c2)) - before;
  if (seen !== BROADCASTS)
    throw new Error(`${BROADCASTS} broadcast packets were sent, and c2 received ${seen}`);
  return { sent: BROADCASTS, seen };
}

/** IPv4 broadcast packets the kernel of a namespace has received: InBcastPkts of /proc/net/netstat. */
async function broadcastsReceived(namespace: Namespace): Promise<number> {
  const lines = (await namespace.run('cat', ['/proc/net/netstat'])).split('\n');
  const [names, values] = lines.filter((line) => line.startsWith('IpExt:')).map((line) => line.split(' '));
  return Number(values[names.indexOf('InBcastPkts')]);
}
