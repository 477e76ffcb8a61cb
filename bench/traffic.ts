/**
 * Synthetic traffic for the benchmarks: frames laid out in the arena of a frame memory, and the chain over them.
 *
 * Every station sends UDP from a MAC and an IP address of its own and sits at port `station % 4`; destinations are
 * stations at another port, picked at random with a fixed seed. Lengths are those of the frame in memory: from the
 * Ethernet header on, without preamble and check sequence.
 */
import type { Algorithm } from '../control/config.js';
import { installKeys, type KeyedAssociation, randomKey } from '../control/replay-keys.js';
import { type Chain, type ChainObserver, createChain } from '../engine/chain.js';
import type { AssociationIntent } from '../engine/intent.js';
import { BATCH_SIZE, FrameMemory, REMOTE, SMALL_CAPACITY } from '../engine/memory/frames.js';
import type { FrameList } from '../engine/ports/capture-source.js';
import { addressWords } from '../engine/tables/vteps.js';
import { ESP_UDP_PORT } from '../engine/wire/esp.js';
import { UDP_HEADER, writeIpv4Checksum } from '../engine/wire/ip.js';
import { OUTER_IPV6, VXLAN_HEADER, VXLAN_PORT } from '../engine/wire/vxlan.js';
import type { GcmLibrary } from '../native-bindings/index.js';

export interface Traffic {
  /**
   * Elements of the chain. One that begins with vxlan-decap gets VXLAN packets of remote stations, with esp-encrypt
   * VXLAN packets, with esp-decrypt ESP packets in UDP, sealed by this very engine.
   */
  readonly chain: readonly string[];
  /**
   * Lengths in bytes that the frames take in turn. For a chain that begins with ESP those of what is sealed: outer
   * UDP and VXLAN header and the frame, without padding and trailer.
   */
  readonly lengths: readonly number[];
  readonly stations: number;
  /** Different frames; at least as many as stations. */
  readonly frames: number;
  /** IPv6 outside. */
  readonly v6: boolean;
  /** Of chains with ESP. */
  readonly esp?: EspTraffic;
}

export interface EspTraffic {
  readonly algorithm: Algorithm;
  /** VTEPs that packets go to or come from, at random, each with an association in and one out. */
  readonly peers: number;
  /** The preferred one when absent. */
  readonly library?: GcmLibrary;
}

/** Simple IMIX, 7:4:1, in an order that mixes them. */
export const IMIX = [64, 570, 64, 64, 570, 64, 1518, 64, 570, 64, 570, 64] as const;

const PORTS = 4;
const VNI = 42;
/** What a host's table holds by default: 1 MiB of slots. */
const TABLE = 32768;
const V4 = [Uint8Array.of(192, 0, 2, 1), Uint8Array.of(192, 0, 2, 2)] as const;
const V6 = V4.map((v4) => Uint8Array.of(0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, ...v4));
/** What ESP seals in front of a frame. */
const SEALED_HEADERS = UDP_HEADER + VXLAN_HEADER;
/** Most bytes by which a packet grows in ESP: UDP, ESP header, IV, padding with trailer, ICV. */
const ESP_GROWTH = 48;
/** First bytes of the stations' MACs, as table keys have them: 02:42:0a. */
const MAC_PREFIX = 0x0a4202;

/** Keys that it installs stay until the process ends. */
export function chainOverTraffic(traffic: Traffic): Chain {
  const { chain: names, frames: count, v6, stations, esp } = traffic;
  const longest = Math.max(...traffic.lengths) + OUTER_IPV6 + ESP_GROWTH;
  if (longest > SMALL_CAPACITY) throw new RangeError(`frames of ${longest} bytes do not fit a small slot`);
  const inFront = PACKETS.get(names[0]);
  const bytes = count * (longest + 16);
  const memory = new FrameMemory({
    small: 2 * BATCH_SIZE,
    large: 1,
    arena: (inFront === undefined ? 1 : 2) * bytes,
  });
  const [local, remote] = v6 ? V6 : V4;
  const associations = esp === undefined ? [] : installKeys(pairs(esp, remote), esp.library).associations;
  const over = (through: readonly string[], list: FrameList, ours = associations): Chain => {
    const chain = createChain({
      names: through,
      frames: memory,
      list,
      vnis: [VNI],
      carryVlan: false,
      strict: false,
      local: { address: local, port: VXLAN_PORT, ttl: 64 },
      remote,
      stations: Math.max(TABLE, stations),
      vteps: 16 + associations.length,
      associations: ours,
      espPort: ESP_UDP_PORT,
    });
    if (list.dest !== undefined) spread(list.dest, chain, ours);
    return chain;
  };
  const inner = layOut(memory, traffic);
  if (inFront === undefined) return over(names, inner);
  // What comes to us was sealed by its sender, under what is inbound here.
  const theirs = names[0] === 'esp-decrypt' ? associations.filter(isInbound).map(turned) : associations;
  const packets = wrapped(memory, over(inFront, inner, theirs), memory.arenaStart + bytes, traffic);
  const chain = over(names, packets);
  for (let station = 0; station < stations; station++) {
    const [low, high] = stationKey(station);
    chain.tools.stations.setStatic(low, high, station % PORTS, 0);
  }
  return chain;
}

/** What makes the packets that a chain's first element takes. */
const PACKETS: ReadonlyMap<string, readonly string[]> = new Map([
  ['vxlan-decap', ['vxlan-encap']],
  ['esp-encrypt', ['vxlan-encap']],
  ['esp-decrypt', ['vxlan-encap', 'esp-encrypt']],
]);

/** Two associations for each peer, as the key ring makes them: with extended sequence numbers. */
function pairs({ algorithm, peers }: EspTraffic, remote: Uint8Array): KeyedAssociation[] {
  const common = { algorithm, esn: true, replayWindow: 1024 };
  return Array.from({ length: peers }, (_, peer) => {
    // The benchmark addresses of RFC 2544, appendix C.2.2.
    const address = [...remote];
    if (peer > 0) address.splice(-4, 4, 198, 18, peer >>> 8, peer & 0xff);
    const vtep = Uint8Array.from(address);
    return (['out', 'in'] as const).map((direction, i) => {
      const spi = 0x1000 + 2 * peer + i;
      return { ...common, direction, spi, vtep, key: randomKey(algorithm) };
    });
  }).flat();
}

const isInbound = ({ direction }: AssociationIntent): boolean => direction === 'in';

/** The association as the peer has it. */
const turned = (one: AssociationIntent): AssociationIntent => ({ ...one, direction: 'out' });

/** Gives each frame one of the peers that are sent to, at random. */
function spread(dest: Uint32Array, { tools }: Chain, associations: readonly AssociationIntent[]): void {
  const outbound = associations.filter(({ direction }) => direction === 'out');
  const vteps = outbound.map(({ vtep }) => tools.vteps.find(...addressWords(vtep)));
  const random = generator(2);
  for (let i = 0; i < dest.length; i++) dest[i] = REMOTE | vteps[random() % vteps.length];
}

/** The key words of a station's MAC in domain 0: 02:42:0a and the station's number. */
export function stationKey(station: number): [number, number] {
  return [(MAC_PREFIX | ((station >>> 16) << 24)) >>> 0, ((station >>> 8) & 0xff) | ((station & 0xff) << 8)];
}

function layOut(memory: FrameMemory, traffic: Traffic): FrameList {
  const { frames: count, lengths, stations } = traffic;
  // Sources behind a tunnel are other stations than the local ones: 06:42:0a.
  const remote = traffic.chain[0] === 'vxlan-decap' ? 4 : 0;
  const sealed = traffic.chain[0].startsWith('esp-') ? SEALED_HEADERS : 0;
  const random = generator(1);
  const order = shuffled(stations, random);
  const list = emptyList(traffic);
  let next = memory.arenaStart;
  for (let i = 0; i < count; i++) {
    const source = order[i % stations];
    let destination = source;
    while (destination % PORTS === source % PORTS) destination = random() % stations;
    const length = lengths[i % lengths.length] - sealed;
    writeFrame(memory, next, length, source, destination, i);
    memory.u8[next + 6] |= remote;
    list.offsets[i] = next;
    list.lengths[i] = length;
    list.ingress[i] = source % PORTS;
    next += (length + 7) & ~7;
  }
  return list;
}

function emptyList({ frames: count, esp }: Traffic): FrameList {
  return {
    count,
    offsets: new Uint32Array(count),
    lengths: new Uint32Array(count),
    ingress: new Uint16Array(count),
    ...(esp && { dest: new Uint32Array(count) }),
  };
}

function writeFrame(
  memory: FrameMemory,
  at: number,
  length: number,
  source: number,
  destination: number,
  flow: number,
): void {
  const mac = (station: number): number[] => [2, 0x42, 0x0a, station >>> 16, station >>> 8, station];
  const ip = (station: number): number[] => [10, station >>> 16, station >>> 8, station];
  const total = length - 14;
  const udp = total - 20;
  memory.u8.set(
    [
      ...[...mac(destination), ...mac(source), 0x08, 0x00],
      ...[0x45, 0, total >>> 8, total, 0, 0, 0x40, 0, 64, 17, 0, 0, ...ip(source), ...ip(destination)],
      ...[0x80 | ((flow >>> 8) & 0x7f), flow, 0, 80, udp >>> 8, udp, 0, 0],
    ],
    at,
  );
  writeIpv4Checksum(memory.u16, (at + 14) >>> 1);
}

/** What `encap` makes of its frames, laid out from `start` on; ESP as packets of the other end. */
function wrapped(memory: FrameMemory, encap: Chain, start: number, traffic: Traffic): FrameList {
  const list = emptyList(traffic);
  const { v6, chain } = traffic;
  let next = start;
  const { u8, off, len } = memory;
  const observer: ChainObserver = {
    delivered(frame, index) {
      const at = next + (v6 ? 2 : 6);
      u8.copyWithin(at, off[frame], off[frame] + len[frame]);
      if (chain[0] === 'esp-decrypt') swapAddresses(u8, at, v6);
      list.offsets[index] = at;
      list.lengths[index] = len[frame];
      next = (at + len[frame] + 7) & ~7;
    },
    dropped(_frame, _index, element, reason) {
      throw new Error(`benchmark traffic is dropped by ${element}: ${reason}`);
    },
    breath() {},
  };
  encap.observe(observer);
  return list;
}

/** Makes a packet to a peer one from it: the checksums stay right. */
function swapAddresses(u8: Uint8Array, at: number, v6: boolean): void {
  const size = v6 ? 16 : 4;
  const source = at + (v6 ? 22 : 26);
  const before = u8.slice(source, source + size);
  u8.copyWithin(source, source + size, source + 2 * size);
  u8.set(before, source + size);
}

/** Numbers of 31 bits, the same in every run (xorshift32; Marsaglia, Xorshift RNGs, 2003). */
export function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 1;
  };
}

/** 0 … count - 1 in random order. */
export function shuffled(count: number, random: () => number): Uint32Array {
  const order = Uint32Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = random() % (i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}
