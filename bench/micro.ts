/**
 * Micro-benchmarks of the engine's pure functions with the package `benchmark`. A sample is a run over 256 different
 * inputs, so that its clock is fine enough and no input is predicted; times are per call.
 */
import '../engine/tuning.js';
import type Benchmark from 'benchmark';
import { FrameMemory } from '../engine/memory/frames.js';
import { MacTable } from '../engine/tables/mac-table.js';
import { TEMPLATE_WORDS, Vteps } from '../engine/tables/vteps.js';
import { flowHash } from '../engine/wire/flow-hash.js';
import { fold16, sumWords } from '../engine/wire/ip.js';
import { native } from '../native-bindings/index.js';
import { stationKey } from './traffic.js';

export interface MicroResult {
  readonly name: string;
  /** Nanoseconds a call: middle and 99th percentile of the samples. */
  readonly medianNs: number;
  readonly p99Ns: number;
  /** Relative margin of error of the mean, percent. */
  readonly rme: number;
  readonly samples: number;
}

const INPUTS = 256;
const STRIDE = 2048;
const WORDS_IPV4 = TEMPLATE_WORDS - 2;

/** @param seconds most time for each function. @throws Error when the package is not installed. */
export async function micro(seconds: number, say: (line: string) => void): Promise<MicroResult[]> {
  const { default: Bench } = await load();
  const results: MicroResult[] = [];
  for (const [name, run] of subjects()) {
    const one = new Bench(name, run, { maxTime: seconds, minSamples: 20, minTime: Math.min(0.05, seconds) });
    one.run();
    // It keeps what a subject throws, and times nothing.
    if (one.error !== undefined) throw one.error;
    const result = summarise(name, one.stats);
    say(`${name}: ${result.medianNs.toFixed(2)} ns`);
    results.push(result);
  }
  return results;
}

async function load(): Promise<{ default: typeof Benchmark }> {
  try {
    return await import('benchmark');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_MODULE_NOT_FOUND') throw error;
    throw new Error(
      'the package "benchmark" is not installed: it is a development dependency; run npm install --include=dev',
    );
  }
}

function summarise(name: string, stats: Benchmark.Stats): MicroResult {
  const sorted = stats.sample.map((seconds) => (seconds * 1e9) / INPUTS).sort((a, b) => a - b);
  const at = (share: number): number =>
    sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
  return { name, medianNs: at(0.5), p99Ns: at(0.99), rme: stats.rme, samples: sorted.length };
}

/** Where results go, so that no call is optimised away. */
const kept = new Uint32Array(1);

function subjects(): [string, () => void][] {
  return [...tableSubjects(), ...wireSubjects()];
}

function tableSubjects(): [string, () => void][] {
  const table = new MacTable(32768, 1);
  const low = new Uint32Array(INPUTS);
  const high = new Uint32Array(INPUTS);
  for (let i = 0; i < INPUTS; i++) {
    [low[i], high[i]] = stationKey(i);
    table.learn(low[i], high[i], i & 3, 1);
  }
  return [
    [
      'MAC lookup, known, 256 in the table',
      () => {
        for (let i = 0; i < INPUTS; i++) kept[0] ^= table.lookup(low[i], high[i]);
      },
    ],
    [
      'MAC lookup, unknown',
      () => {
        for (let i = 0; i < INPUTS; i++) kept[0] ^= table.lookup(low[i] ^ 4, high[i]);
      },
    ],
    [
      'MAC learn, known at its port',
      () => {
        for (let i = 0; i < INPUTS; i++) kept[0] ^= table.learn(low[i], high[i], i & 3, 1);
      },
    ],
  ];
}

function wireSubjects(): [string, () => void][] {
  const memory = new FrameMemory({ small: 16, large: 1, arena: INPUTS * STRIDE });
  native.attach(memory.u8, memory.off, memory.len, memory.freeLarge);
  const { u8, u16, u64, arenaStart } = memory;
  for (let i = 0; i < INPUTS * STRIDE; i++) u8[arenaStart + i] = i * 7;
  for (let i = 0; i < INPUTS; i++)
    u8.set([8, 0, 0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 17], arenaStart + i * STRIDE + 12);
  const vteps = new Vteps(16);
  vteps.add(
    Uint8Array.of(192, 0, 2, 2),
    true,
    { address: Uint8Array.of(192, 0, 2, 1), port: 4789, ttl: 64 },
    0,
  );
  const { templates } = vteps;
  const checksums = [20, 64, 1500].flatMap((length): [string, () => void][] => [
    [
      `checksum of ${length} B, native`,
      () => {
        for (let i = 0; i < INPUTS; i++) kept[0] ^= native.checksum(arenaStart + i * STRIDE, length, 0);
      },
    ],
    [
      `checksum of ${length} B, TypeScript`,
      () => {
        for (let i = 0; i < INPUTS; i++)
          kept[0] ^= fold16(sumWords(u16, (arenaStart + i * STRIDE) >>> 1, length >>> 1));
      },
    ],
  ]);
  return [
    ...checksums,
    [
      'flow hash, UDP over IPv4',
      () => {
        for (let i = 0; i < INPUTS; i++) kept[0] ^= flowHash(u16, (arenaStart + i * STRIDE) >>> 1, 64);
      },
    ],
    [
      'outer header from its template, IPv4',
      () => {
        for (let i = 0; i < INPUTS; i++) {
          const word = (arenaStart + i * STRIDE) >>> 3;
          for (let w = 0; w < WORDS_IPV4; w++) u64[word + w] = templates[w];
        }
      },
    ],
  ];
}
