/**
 * Traffic for `nat`: so many flows of UDP over IPv4, each with a frame of 64 bytes that has a checksum, from endpoints
 * inside to ends outside, in random order. At most ENDPOINTS endpoints, which is what one external address can carry
 * without sharing ports, each with flows to as many ends as it takes.
 */
import { CHAIN_NAT, type Chain, createChain } from '../engine/chain.js';
import { BATCH_SIZE, FrameMemory } from '../engine/memory/frames.js';
import { fold16, sumWords, writeIpv4Checksum } from '../engine/wire/ip.js';
import { generator, shuffled } from './traffic.js';

const ENDPOINTS = 16384;
const LENGTH = 64;

export interface NatTraffic {
  readonly flows: number;
  /** Different frames, at least as many as flows. */
  readonly frames: number;
  /** From outside: the answers. */
  readonly inward: boolean;
}

/** A chain of `nat` alone whose flows are there, and established, when `inward`. */
export function natChain({ flows, frames: count, inward }: NatTraffic): Chain {
  const memory = new FrameMemory({ small: 2 * BATCH_SIZE, large: 1, arena: count * LENGTH });
  const offsets = new Uint32Array(count);
  const order = shuffled(flows, generator(1));
  for (let i = 0; i < count; i++) {
    offsets[i] = memory.arenaStart + i * LENGTH;
    writeFrame(memory, offsets[i], order[i % flows]);
  }
  const chain = createChain({
    names: ['nat'],
    frames: memory,
    list: { count, offsets, lengths: new Uint32Array(count).fill(LENGTH), ingress: new Uint16Array(count) },
    vnis: [42],
    carryVlan: false,
    strict: false,
    local: { address: Uint8Array.of(192, 0, 2, 1), port: 4789, ttl: 64 },
    remote: Uint8Array.of(192, 0, 2, 2),
    stations: 1,
    vteps: 1,
    nat: { ...CHAIN_NAT, maxFlows: flows },
  });
  if (inward) answer(chain, memory, offsets);
  return chain;
}

/** Makes each frame the answer to what it became outside. */
function answer(chain: Chain, memory: FrameMemory, offsets: Uint32Array): void {
  const { u8, u16, off } = memory;
  chain.observe({
    delivered(frame, index) {
      u8.copyWithin(offsets[index], off[frame], off[frame] + LENGTH);
      const ip = (offsets[index] + 14) >>> 1;
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

function writeFrame({ u8, u16 }: FrameMemory, at: number, flow: number): void {
  const endpoint = flow % ENDPOINTS;
  const end = Math.floor(flow / ENDPOINTS);
  u8.set(
    [
      ...[2, 0x42, 0x0a, 0, 0, 1, 2, 0x42, 0x0a, 0, 0, 2, 0x08, 0x00],
      ...[0x45, 0, 0, LENGTH - 14, 0, 0, 0x40, 0, 64, 17, 0, 0],
      ...[10, 0, endpoint >>> 8, endpoint, 198, 18, end >>> 8, end],
      ...[0x80 | (endpoint & 0x3f), endpoint >>> 6, 0, 53, 0, LENGTH - 34, 0, 0],
    ],
    at,
  );
  const ip = (at + 14) >>> 1;
  writeIpv4Checksum(u16, ip);
  // Pseudo-header: addresses, protocol and length, as the view gives them.
  const pseudo = sumWords(u16, ip + 6, 4) + (17 << 8) + ((LENGTH - 34) << 8);
  u16[ip + 13] = ~fold16(pseudo + sumWords(u16, ip + 10, (LENGTH - 34) / 2)) & 0xffff;
}
