/**
 * An ear on the wire between the two hosts: nftables counters at a host's card, in front of Weft's own rules. They say
 * which kinds of packets come, and in how many of them a mark can be read that a container has put into its pings.
 *
 * The mark is looked for where it stands when nothing is encrypted: behind VXLAN's headers, and behind those of ESP.
 */
import { randomBytes } from 'node:crypto';
import { type Namespace, ping } from '../lab.js';

const TABLE = 'weft_demo_ear';
/** Rules see a packet in the order of their priorities, and Weft's have 0. */
const BEFORE_WEFT = -300;
const PINGS = 5;
/** Most that ping repeats, and that a rule compares. */
const MARK_BYTES = 16;
/** Bytes from the outer UDP header to the mark: UDP 8, VXLAN 8, Ethernet 14, IPv4 20, ICMP 8, and ping's clock 16. */
const TO_MARK = 74;
/** ESP's header and IV, and the UDP header within. */
const ESP_BYTES = 24;

/** Packets that came to host B. The kernel counts a super-frame once. */
export interface Heard {
  readonly vxlan: number;
  readonly esp: number;
  /** Of the exchange of keys. */
  readonly keys: number;
  /** Any other IPv4 packets. */
  readonly other: number;
  /** Marked pings that container c1 sent, all of which were answered, and those that could be read. */
  readonly marked: number;
  readonly read: number;
}

/** UDP ports by which packets are told apart. */
interface Ports {
  readonly vxlan: number;
  readonly esp: number;
  readonly keys: number;
}

export class Ear {
  /** @param deaf why nothing can be heard here. */
  private constructor(
    private readonly host: Namespace,
    private readonly rules: string,
    private readonly mark: string,
    readonly deaf: string | undefined,
  ) {}

  /** Never fails: there are kernels without such rules, and a demo without an ear is one all the same. */
  static async open(host: Namespace, device: string, ports: Ports): Promise<Ear> {
    const mark = randomBytes(MARK_BYTES).toString('hex');
    const rules = rulesOf(device, ports, mark);
    const { code, stderr } = await host.exec('nft', ['-f', '-'], { input: rules });
    return new Ear(host, rules, mark, code === 0 ? undefined : stderr.trim().split('\n')[0]);
  }

  /** Forgets what was heard. */
  async restart(): Promise<void> {
    if (this.deaf === undefined) await this.host.run('nft', ['-f', '-'], { input: this.rules });
  }

  async close(): Promise<void> {
    if (this.deaf === undefined) await this.host.run('nft', ['delete', 'table', 'netdev', TABLE]);
  }

  /** Has marked pings sent, and tells all that was heard since the last start. */
  async listen(from: Namespace, to: string): Promise<Heard | undefined> {
    if (this.deaf !== undefined) return undefined;
    const { sent, received } = await ping(from, to, { count: PINGS, pattern: this.mark });
    // One may be late on a busy machine; what was read on the way is what counts.
    if (received === 0) throw new Error(`none of ${sent} marked pings was answered`);
    const list = await this.host.run('nft', ['-j', 'list', 'counters', 'table', 'netdev', TABLE]);
    const { nftables } = JSON.parse(list) as { nftables: { counter?: { name: string; packets: number } }[] };
    const packets = new Map(nftables.map(({ counter }) => [counter?.name, counter?.packets ?? 0]));
    const [vxlan, esp, keys, other, read] = COUNTERS.map((name) => packets.get(`heard_${name}`) ?? 0);
    return { vxlan, esp, keys, other, marked: sent, read };
  }
}

/** With `heard_` in front, since some of these are words of nft. */
const COUNTERS = ['vxlan', 'esp', 'keys', 'other', 'read'] as const;

function rulesOf(device: string, { vxlan, esp, keys }: Ports, mark: string): string {
  const places = [TO_MARK, TO_MARK + ESP_BYTES].map(
    (bytes) => `meta l4proto udp @th,${bytes * 8},${MARK_BYTES * 8} 0x${mark} counter name heard_read`,
  );
  return `table netdev ${TABLE} {}
delete table netdev ${TABLE}
table netdev ${TABLE} {
${COUNTERS.map((name) => `  counter heard_${name} {}`).join('\n')}
  chain from_wire {
    type filter hook ingress device "${device}" priority ${BEFORE_WEFT};
    ${places.join('\n    ')}
    udp dport ${vxlan} counter name heard_vxlan accept
    udp dport ${esp} counter name heard_esp accept
    udp dport ${keys} counter name heard_keys accept
    meta protocol ip counter name heard_other
  }
}
`;
}
