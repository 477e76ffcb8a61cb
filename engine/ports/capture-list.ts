/**
 * From loaded captures to the list a replay runs over: every frame aligned in the memory's arena, its ingress
 * port, and what the tables of a chain must be able to hold. All decisions fall here, before the clock starts.
 */
import type { FrameMemory } from '../memory/frames.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV4_LE, ETHERTYPE_IPV6_LE, swap16 } from '../wire/ethernet.js';
import { IPV4_HEADER, IPV6_HEADER, PROTOCOL_UDP, UDP_HEADER } from '../wire/ip.js';
import { VXLAN_HEADER } from '../wire/vxlan.js';
import type { FrameIndex } from './capture/frames.js';
import type { FrameList } from './capture-source.js';

/** Ports that stations get; the one above belongs to the chain. */
const STATION_PORTS = 65535;
/** Tunnels within tunnels that are searched for VNIs. */
const MAX_DEPTH = 4;

/** Most bytes of arena that `count` frames take which measure `bytes`. */
export function listArenaBytes(bytes: number, count: number): number {
  return bytes + count * 16 + 64;
}

/** Fills the arena of a frame memory, capture by capture. */
export class FrameListBuilder {
  private readonly offsets: Uint32Array;
  private readonly lengths: Uint32Array;
  private readonly ingress: Uint16Array;
  /** Source MAC as a number → port. */
  private readonly ports = new Map<number, number>();
  /** VNI → source MACs within it. */
  private readonly inner = new Map<number, Set<number>>();
  private count = 0;
  private next: number;

  /**
   * @param capacity most frames.
   * @param outer whether the chain takes the frames for VXLAN packets: they are then placed so that what is inside
   *   is aligned, and searched for VNIs.
   * @param port UDP port of VXLAN.
   */
  constructor(
    private readonly memory: FrameMemory,
    capacity: number,
    private readonly outer: boolean,
    private readonly port: number,
  ) {
    this.offsets = new Uint32Array(capacity);
    this.lengths = new Uint32Array(capacity);
    this.ingress = new Uint16Array(capacity);
    this.next = memory.arenaStart;
  }

  /** Appends the frames of an index over `u8`. @throws RangeError when the arena or the list is too small. */
  add(u8: Uint8Array, index: Pick<FrameIndex, 'count' | 'offsets' | 'lengths'>): void {
    const { memory, offsets, lengths, ingress } = this;
    const end = memory.arenaStart + memory.arenaSize;
    for (let i = 0; i < index.count; i++) {
      const from = index.offsets[i];
      const length = index.lengths[i];
      const isV6 = length > ETHERNET_HEADER && u8[from + 12] === 0x86 && u8[from + 13] === 0xdd;
      // See FrameList: an outer header of 50 or 70 bytes must end at a multiple of 8.
      const phase = this.outer ? (isV6 ? 2 : 6) : 0;
      const at = ((this.next + 7) & ~7) >>> 0;
      const start = at + phase;
      if (start + length > end || this.count === offsets.length)
        throw new RangeError(`no room for frame ${this.count} in an arena of ${memory.arenaSize} bytes`);
      memory.u8.set(u8.subarray(from, from + length), start);
      offsets[this.count] = start;
      lengths[this.count] = length;
      ingress[this.count] = this.portOf(start, length);
      if (this.outer) this.scan(start >>> 1, length, 0);
      this.count++;
      this.next = start + length;
    }
  }

  finish(): FrameList {
    const { offsets, lengths, ingress, count } = this;
    return { count, offsets, lengths, ingress };
  }

  /** VNIs met, the most stations first. */
  vnis(): number[] {
    return [...this.inner].sort((a, b) => b[1].size - a[1].size).map(([vni]) => vni);
  }

  /** Stations a bridge may have to learn, wherever in the chain it stands. */
  stations(): number {
    let stations = this.ports.size;
    for (const macs of this.inner.values()) stations += macs.size;
    return stations;
  }

  /** Each source MAC is a station at a port of its own, numbered as they appear. */
  private portOf(at: number, length: number): number {
    if (length < ETHERNET_HEADER) return 0;
    const mac = this.mac(at >>> 1);
    let port = this.ports.get(mac);
    if (port === undefined) this.ports.set(mac, (port = this.ports.size % STATION_PORTS));
    return port;
  }

  private mac(word: number): number {
    const { u16 } = this.memory;
    return u16[word + 3] + u16[word + 4] * 2 ** 16 + u16[word + 5] * 2 ** 32;
  }

  /** Notes the VNI and inner source MAC of what may be a VXLAN packet, and of packets within it. */
  private scan(word: number, length: number, depth: number): void {
    const { u16 } = this.memory;
    const type = u16[word + 6];
    let ip = 0;
    if (type === ETHERTYPE_IPV4_LE && u16[word + 11] >>> 8 === PROTOCOL_UDP) ip = (u16[word + 7] & 15) << 2;
    else if (type === ETHERTYPE_IPV6_LE && (u16[word + 10] & 0xff) === PROTOCOL_UDP) ip = IPV6_HEADER;
    if (ip < IPV4_HEADER) return;
    const udp = ETHERNET_HEADER + ip;
    const inside = udp + UDP_HEADER + VXLAN_HEADER;
    if (length < inside + ETHERNET_HEADER || swap16(u16[word + (udp >>> 1) + 1]) !== this.port) return;
    const v = word + ((udp + UDP_HEADER) >>> 1);
    const vni = ((u16[v + 2] & 0xff) << 16) | (u16[v + 2] & 0xff00) | (u16[v + 3] & 0xff);
    const macs = this.inner.get(vni) ?? new Set();
    this.inner.set(vni, macs.add(this.mac(word + (inside >>> 1))));
    if (depth < MAX_DEPTH) this.scan(word + (inside >>> 1), length - inside, depth + 1);
  }
}
