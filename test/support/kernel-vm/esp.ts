/**
 * The Linux kernel's ESP (AES-GCM, transport mode) as a peer, set up in a VM by `ip xfrm`. What its policies cover
 * leaves inside ESP only, and is taken inside ESP only.
 */
import type { KernelVm } from '../kernel-vm.js';

/** Of UDP encapsulation (RFC 3948). */
export const ESP_IN_UDP_PORT = 4500;
/** Ties the states to the policies. */
const REQID = 4789;

/** One security association, as `ip xfrm state` wants it. */
export interface KernelSa {
  readonly spi: number;
  /** AES key of 16, 24 or 32 bytes and the salt of 4 behind it (RFC 4106, 8.1). */
  readonly key: Uint8Array;
  /** Bytes of the ICV: 8, 12 or 16; 16 unless told. */
  readonly icv?: number;
  /** Extended sequence numbers. */
  readonly esn?: boolean;
  /** Packets; 128 unless told. */
  readonly replayWindow?: number;
  /** Last sequence number of the past, all 64 bits of it: the next one sent, or accepted, is greater. */
  readonly sequence?: number;
}

export interface EspPeerOptions {
  /** Addresses of the VM and of the other side, both IPv4 or both IPv6. */
  readonly local: string;
  readonly remote: string;
  readonly out: KernelSa;
  readonly in: KernelSa;
  /** `udp` wraps what leaves in UDP, port 4500 to port 4500, and takes only such; `esp` unless told. */
  readonly encapsulation?: 'esp' | 'udp';
  /** Destination port of the UDP traffic that must be encrypted; 4789 unless told. */
  readonly port?: number;
}

/** What the kernel tells of an SA. */
export interface KernelSaState {
  readonly spi: number;
  readonly packets: number;
  /** Last one sent, or highest one received. */
  readonly sequence: number;
  /** Refusals: seen before or left of the window; not authentic. */
  readonly replayed: number;
  readonly failed: number;
}

/** ESP between the VM and one other host. */
export class EspPeer {
  readonly #states = new Map<number, string>();
  #down = false;

  private constructor(
    readonly vm: KernelVm,
    readonly options: EspPeerOptions,
  ) {}

  /** Sets up states and policies of both directions. @throws CommandError, which does not hold the keys. */
  static async up(vm: KernelVm, options: EspPeerOptions): Promise<EspPeer> {
    const peer = new EspPeer(vm, options);
    if (options.encapsulation === 'udp') await listenForUdp(vm);
    await vm.ipBatch([
      peer.#state('in', options.in),
      peer.#state('out', options.out),
      `xfrm policy add ${peer.#selector('in')} ${peer.#template('in')}`,
      `xfrm policy add ${peer.#selector('out')} ${peer.#template('out', options.out.spi)}`,
    ]);
    return peer;
  }

  /** One more SA to receive on. */
  async accept(sa: KernelSa): Promise<void> {
    await this.vm.ipBatch([this.#state('in', sa)]);
  }

  /** Sends on another SA from now on; the one before stays until it is removed. */
  async sendOn(sa: KernelSa): Promise<void> {
    await this.vm.ipBatch([
      this.#state('out', sa),
      `xfrm policy update ${this.#selector('out')} ${this.#template('out', sa.spi)}`,
    ]);
  }

  /** Forgets an SA, of either direction. */
  async remove(spi: number): Promise<void> {
    await this.vm.ipBatch([`xfrm state delete ${this.#states.get(spi)}`]);
    this.#states.delete(spi);
  }

  /** Every SA with this host, by its SPI. */
  async states(): Promise<Map<number, KernelSaState>> {
    const text = await this.vm.run('ip', ['-s', 'xfrm', 'state', 'list', 'nokeys']);
    const states = text
      .split(/^(?=src )/m)
      .filter((block) => block !== '')
      .map(stateIn);
    return new Map(states.filter(({ spi }) => this.#states.has(spi)).map((state) => [state.spi, state]));
  }

  /** Takes states and policies away: traffic is plain again. A second call does nothing. */
  async down(): Promise<void> {
    if (this.#down) return;
    this.#down = true;
    await this.vm.ipBatch([
      ...[...this.#states.values()].map((state) => `xfrm state delete ${state}`),
      ...(['in', 'out'] as const).map((direction) => `xfrm policy delete ${this.#selector(direction)}`),
    ]);
    this.#states.clear();
  }

  #ends(direction: 'in' | 'out'): string {
    const { local, remote } = this.options;
    return direction === 'in' ? `src ${remote} dst ${local}` : `src ${local} dst ${remote}`;
  }

  #state(direction: 'in' | 'out', sa: KernelSa): string {
    const { spi, key, icv = 16, esn = false, replayWindow = 128, sequence = 0 } = sa;
    const id = `${this.#ends(direction)} proto esp spi 0x${spi.toString(16)}`;
    this.#states.set(spi, id);
    const which = direction === 'in' ? 'replay-seq' : 'replay-oseq';
    return [
      `xfrm state add ${id} reqid ${REQID} mode transport`,
      `replay-window ${replayWindow}${esn ? ' flag esn' : ''}`,
      `${which} 0x${(sequence >>> 0).toString(16)} ${which}-hi 0x${Math.floor(sequence / 2 ** 32).toString(16)}`,
      `aead rfc4106(gcm(aes)) 0x${Buffer.from(key).toString('hex')} ${icv * 8}`,
      ...(this.options.encapsulation === 'udp'
        ? [`encap espinudp ${ESP_IN_UDP_PORT} ${ESP_IN_UDP_PORT} ${this.#anywhere}`]
        : []),
    ].join(' ');
  }

  /** The original address of `encap`, which means nothing in transport mode. */
  get #anywhere(): string {
    return this.options.local.includes(':') ? '::' : '0.0.0.0';
  }

  #selector(direction: 'in' | 'out'): string {
    return `${this.#ends(direction)} proto udp dport ${this.options.port ?? 4789} dir ${direction}`;
  }

  #template(direction: 'in' | 'out', spi?: number): string {
    const which = spi === undefined ? '' : ` spi 0x${spi.toString(16)}`;
    return `tmpl ${this.#ends(direction)} proto esp${which} reqid ${REQID} mode transport`;
  }
}

/** Packets that the kernel refused because of IPsec, by its own names (`XfrmInNoPols` …); those at 0 are left out. */
export async function refusals(vm: KernelVm): Promise<Record<string, number>> {
  const rows = (await vm.run('cat', ['/proc/net/xfrm_stat'])).trim().split('\n');
  const counts = rows
    .map((row) => row.split(/\s+/))
    .map(([name = '', count]) => [name, Number(count)] as const);
  return Object.fromEntries(counts.filter(([, count]) => count > 0));
}

async function listenForUdp(vm: KernelVm): Promise<void> {
  const log = '/run/udp-encap';
  await vm.sh(
    `pidof udp-encap >/dev/null && exit
    udp-encap ${ESP_IN_UDP_PORT} >${log} 2>&1 &
    until grep -q . ${log}; do usleep 10000; done
    grep -qx ready ${log} || { cat ${log} >&2; exit 1; }`,
  );
}

/** Reads a block of `ip -s xfrm state`. */
function stateIn(block: string): KernelSaState {
  const number = (pattern: RegExp) => Number(pattern.exec(block)?.[1] ?? 0);
  // Narrow windows have a context without upper halves. The `seq` in the line of `replay-window` is that of neither.
  const context = (name: string) => number(new RegExp(`anti-replay [^]*?\\b${name} (0x[0-9a-f]+)`));
  const sequence = (name: string) => context(`${name}-hi`) * 2 ** 32 + context(name);
  return {
    spi: number(/ spi (0x[0-9a-f]+)/),
    packets: number(/ (\d+)\(packets\)/),
    sequence: Math.max(sequence('seq'), sequence('oseq')), // one of them is of the other direction, and zero
    replayed: number(/\breplay (\d+) failed/),
    failed: number(/\bfailed (\d+)/),
  };
}
