/**
 * Traffic for `balance`: so many connections of TCP over IPv4 from clients to virtual addresses, each with a frame, in
 * random order. The service of a flow is its number modulo theirs, so that one after another is asked for.
 */
import { installKeys, randomKey } from '../control/replay-keys.js';
import { CHAIN_NAT, type Chain, createChain } from '../engine/chain.js';
import type { ServiceIntent } from '../engine/intent.js';
import { BATCH_SIZE, FrameMemory } from '../engine/memory/frames.js';
import type { FrameList } from '../engine/ports/capture-source.js';
import type { SchedulerName } from '../engine/tables/backends.js';
import { ESTABLISHED } from '../engine/tables/connection.js';
import { FLOW_SHIFT, STATE, STATE_MASK } from '../engine/tables/flows.js';
import { ESP_UDP_PORT } from '../engine/wire/esp.js';
import { fold16, sumWords, writeIpv4Checksum } from '../engine/wire/ip.js';
import { generator, shuffled } from './traffic.js';

export interface BalanceTraffic {
  readonly chain: readonly string[];
  readonly flows: number;
  /** Different frames, at least as many as flows. */
  readonly frames: number;
  /** Lengths in bytes that the frames take in turn. */
  readonly lengths: readonly number[];
  readonly services: number;
  /** Of all services, the same number of each. */
  readonly backends: number;
  readonly scheduler: SchedulerName;
  /**
   * What comes: SYNs of flows that are not there; segments of flows that are there, and established; or the backends'
   * answers to those.
   */
  readonly what: 'new' | 'to-backends' | 'from-backends';
}

const CLIENTS = 16384;
const LONGEST_GROWTH = 128;
const ETHERNET = 14;
const TRANSPORT = 34;
const SYN = 2;
const ACK = 16;
/** Domain of all of them. */
const DOMAIN = 0;

const four = (first: number, rest: number): number[] => [10, first | (rest >>> 16), rest >>> 8, rest];

/** The chain over the traffic; keys that it installs stay until the process ends. */
export function balanceChain(traffic: BalanceTraffic): Chain {
  const { chain: names, flows, frames: count, lengths, what } = traffic;
  const room = (Math.max(...lengths) + LONGEST_GROWTH) & ~7;
  const memory = new FrameMemory({ small: 2 * BATCH_SIZE, large: 1, arena: count * room });
  const list: FrameList = {
    count,
    offsets: Uint32Array.from({ length: count }, (_, i) => memory.arenaStart + i * room),
    lengths: Uint32Array.from({ length: count }, (_, i) => lengths[i % lengths.length]),
    ingress: new Uint16Array(count),
  };
  const order = shuffled(flows, generator(1));
  const write = (flags: number): void => {
    for (let i = 0; i < count; i++) writeFrame(memory, list, i, order[i % flows], traffic.services, flags);
  };
  write(SYN);
  const remote = Uint8Array.of(192, 0, 2, 2);
  const sealing = names.includes('esp-encrypt') ? [outbound(remote)] : [];
  const chain = createChain({
    names,
    frames: memory,
    list,
    vnis: [42],
    carryVlan: false,
    strict: false,
    local: { address: Uint8Array.of(192, 0, 2, 1), port: 4789, ttl: 64 },
    remote,
    stations: 32768,
    vteps: 16,
    associations: installKeys(sealing).associations,
    espPort: ESP_UDP_PORT,
    // Of a chain with both, each connection is a flow of both.
    nat: { ...CHAIN_NAT, maxFlows: 2 * flows },
    balance: { services: servicesOf(traffic), marks: [], maxFlows: flows },
  });
  if (what === 'new') return chain;
  chain.pass();
  establish(chain);
  write(ACK);
  if (what === 'from-backends') answer(chain, memory, list);
  return chain;
}

function outbound(vtep: Uint8Array) {
  const algorithm = 'aes-128-gcm-16';
  const own = { algorithm, esn: true, replayWindow: 1024, direction: 'out', spi: 0x1000, vtep } as const;
  return { ...own, key: randomKey(algorithm) };
}

/** Virtual addresses are 10.64.0.0 and on, backends 10.128.0.0 and on, clients 10.0.0.0 and on. */
function servicesOf({ services, backends, scheduler }: BalanceTraffic): ServiceIntent[] {
  const each = backends / services;
  return Array.from({ length: services }, (_, id) => ({
    ...{
      id,
      domain: DOMAIN,
      address: Uint8Array.from(four(64, id)),
      scheduler,
      direct: false,
      mark: 256 + id,
    },
    ...{ affinity: 0, idle: 7440, ports: [{ protocol: 6, port: 80, target: 8080 }], publish: [] },
    backends: Array.from({ length: each }, (_, i) => {
      const address = Uint8Array.from(four(128, id * each + i));
      return { id: id * each + i, address, mac: Uint8Array.of(2, 66, ...address), weight: 1, alive: true };
    }),
  }));
}

/** What the answers of both sides would do. */
function establish({ tools }: Chain): void {
  const { flows } = tools.balance!;
  flows.forEach((flow) => {
    const at = (flow << FLOW_SHIFT) + STATE;
    flows.words[at] = (flows.words[at] & ~STATE_MASK) | ESTABLISHED;
  });
}

/** Makes each frame the answer to what it became. */
function answer(chain: Chain, memory: FrameMemory, { offsets }: FrameList): void {
  const { u8, u16, off, len } = memory;
  chain.observe({
    delivered(frame, index) {
      u8.copyWithin(offsets[index], off[frame], off[frame] + len[frame]);
      const ip = (offsets[index] + ETHERNET) >>> 1;
      for (const [a, b] of [
        [6, 8],
        [7, 9],
        [10, 11],
      ])
        [u16[ip + a], u16[ip + b]] = [u16[ip + b], u16[ip + a]];
    },
    dropped(_frame, _index, element, reason) {
      throw new Error(`benchmark traffic is dropped by ${element}: ${reason}`);
    },
    breath() {},
  });
}

function writeFrame(
  { u8, u16 }: FrameMemory,
  { offsets, lengths }: FrameList,
  i: number,
  flow: number,
  services: number,
  flags: number,
): void {
  const at = offsets[i];
  const total = lengths[i] - ETHERNET;
  const client = flow % CLIENTS;
  const port = 0x4000 + Math.floor(flow / CLIENTS);
  const address = four(64, flow % services);
  u8.set(
    [
      ...[6, 0x57, ...address, 2, 66, ...four(0, client), 0x08, 0x00],
      ...[0x45, 0, total >>> 8, total, 0, 0, 0x40, 0, 64, 6, 0, 0, ...four(0, client), ...address],
      ...[port >>> 8, port, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0],
    ],
    at,
  );
  const ip = (at + ETHERNET) >>> 1;
  writeIpv4Checksum(u16, ip);
  const length = lengths[i] - TRANSPORT;
  // Pseudo-header: addresses, protocol and length, as the view gives them. What follows is zeros.
  const pseudo = sumWords(u16, ip + 6, 4) + (6 << 8) + ((length >>> 8) | ((length & 0xff) << 8));
  u16[ip + 18] = ~fold16(pseudo + sumWords(u16, ip + 10, 10)) & 0xffff;
}
