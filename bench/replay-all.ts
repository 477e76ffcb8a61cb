/**
 * Replays every capture below a folder through the chains that matter and holds the engine to its promises: no
 * crash, no leaked slot, every frame delivered or dropped with a reason; what was put into VXLAN, plain or sealed,
 * comes out of it byte for byte; and no ESP packet is opened of which the key is not known.
 * `npm run replay:all [FOLDER]`; exits with 1 when a promise is broken.
 *
 * A capture that is damaged or cannot be read is reported with the offset; that breaks no promise.
 */
import '../engine/tuning.js';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { formatIp } from '../control/addresses.js';
import type { StaticAssociation } from '../control/config.js';
import {
  chainOver,
  type LoadedCaptures,
  loadCaptures,
  type ReplayOptions,
  takesOuter,
} from '../control/replay.js';
import { DEFAULT_ESP, randomKey } from '../control/replay-keys.js';
import { CHAIN_NAT, type Chain } from '../engine/chain.js';
import { PROTOCOL_ESP } from '../engine/wire/esp.js';
import { ETHERNET_HEADER } from '../engine/wire/ethernet.js';
import { IPV6_HEADER, PROTOCOL_UDP, UDP_HEADER } from '../engine/wire/ip.js';
import { VXLAN_PORT } from '../engine/wire/vxlan.js';

/** From dist/bench/ to the folder beside the repository. */
export const SHARED_CAPTURES = fileURLToPath(new URL('../../../shared/pcaps', import.meta.url));

const V4 = { local: Uint8Array.of(192, 0, 2, 1), remote: Uint8Array.of(192, 0, 2, 2) };
const V6 = {
  local: Uint8Array.of(0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1),
  remote: Uint8Array.of(0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2),
};
const SEALED = ['vxlan-encap', 'esp-encrypt', 'esp-decrypt', 'vxlan-decap'];
/** Chains that give back what they were given. */
const BACK: readonly (readonly string[])[] = [['vxlan-encap', 'vxlan-decap'], SEALED];
const OPENING = ['esp-decrypt'];
const NAT = ['nat'];
/** Every host is inside; and one side of most captures. */
const NATS = [
  { ...CHAIN_NAT, inside: [{ address: new Uint8Array(4), length: 0 }] },
  { ...CHAIN_NAT, mapping: 'endpoint-dependent' as const, maxFlows: 64 },
];
const CHAINS: readonly (readonly string[])[] = [
  ['bridge'],
  ['bridge', 'vxlan-encap'],
  ['vxlan-decap', 'bridge'],
  ['bridge', ...SEALED, 'bridge'],
  OPENING,
  NAT,
  ...BACK,
];
type Run = Omit<ReplayOptions, 'loops'>;
const RUNS: readonly Run[] = CHAINS.flatMap((through) =>
  (through === SEALED ? (['udp', 'esp'] as const) : (['udp'] as const)).flatMap((encapsulation) =>
    [V4, V6].map((ends, i) => ({
      ...ends,
      through,
      port: VXLAN_PORT,
      carryVlan: true,
      strict: false,
      esp: { ...DEFAULT_ESP, encapsulation },
      ...(through === NAT && { nat: NATS[i] }),
    })),
  ),
);
/** Associations that are made for the ESP packets of one file. */
const MOST_MADE = 1000;
const NO_CAPTURE = /\.(md|tsv|txt|sh)$/;

export interface SweepSummary {
  files: number;
  /** Files of which nothing could be read, and files read in part. */
  unreadable: number;
  damaged: number;
  /** Frames in the files, records that are no Ethernet frames, and frames through all chains together. */
  frames: number;
  skipped: number;
  replayed: number;
  delivered: number;
  /** `element: reason` → frames. */
  drops: Record<string, number>;
  /** Broken promises; empty when all is well. */
  violations: string[];
}

/** @param say takes a line for each damage. */
export function replayAll(folder: string, say: (line: string) => void): SweepSummary {
  const summary: SweepSummary = {
    files: 0,
    unreadable: 0,
    damaged: 0,
    frames: 0,
    skipped: 0,
    replayed: 0,
    delivered: 0,
    drops: {},
    violations: [],
  };
  const entries = readdirSync(folder, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile() && !NO_CAPTURE.test(entry.name));
  for (const path of files.map((entry) => join(entry.parentPath, entry.name)).sort())
    replayFile(path, summary, say);
  return summary;
}

function replayFile(path: string, summary: SweepSummary, say: (line: string) => void): void {
  summary.files++;
  // What a chain takes for packets lies otherwise in memory; the rest of the chain does not matter to it.
  const loaded = new Map<boolean, LoadedCaptures>();
  for (const run of RUNS) {
    const { through, local, esp } = run;
    try {
      const outer = takesOuter(through);
      const captures = loaded.get(outer) ?? loadCaptures([path], run);
      if (loaded.size === 0) describe(captures, summary, say);
      loaded.set(outer, captures);
      replayOnce(captures, run, summary);
    } catch (error) {
      const how = `${through} over IPv${local.length === 4 ? 4 : 6}, ${esp?.encapsulation}`;
      summary.violations.push(`${path} through ${how}: ${(error as Error).message}`);
    }
  }
}

function describe(loaded: LoadedCaptures, summary: SweepSummary, say: (line: string) => void): void {
  for (const { name, format, frames, skipped, problems } of loaded.files) {
    if (format === null) summary.unreadable++;
    else if (problems.length > 0) summary.damaged++;
    summary.frames += frames;
    for (const count of Object.values(skipped)) summary.skipped += count;
    for (const { offset, message } of problems)
      say(format === null ? message : `${name}: at byte ${offset}: ${message}`);
  }
}

/** Two passes, so that the second meets tables that know every station. */
function replayOnce(loaded: LoadedCaptures, run: Run, summary: SweepSummary): void {
  const { through, esp = DEFAULT_ESP } = run;
  const opening = through === OPENING;
  const keys = opening ? { esp: { ...esp, associations: strangersKeys(loaded) } } : {};
  const { chain, close } = chainOver(loaded, { ...run, ...keys });
  try {
    if (BACK.includes(through)) comeBack(chain, loaded);
    else chain.pass();
    chain.pass();
  } finally {
    close();
  }
  const { frames, delivered, drops } = chain.totals();
  if (opening && delivered > 0) throw new Error(`${delivered} packets were opened without their key`);
  summary.replayed += frames;
  summary.delivered += delivered;
  for (const [reason, count] of Object.entries(drops))
    summary.drops[reason] = (summary.drops[reason] ?? 0) + count;
}

/** An association with a random key for each SPI of a capture, so that its packets are refused by nothing but the ICV. */
function strangersKeys({ memory, list }: LoadedCaptures): StaticAssociation[] {
  const peers = new Map([[0x1000, '192.0.2.1']]);
  for (let i = 0; i < list.count && peers.size < MOST_MADE; i++) {
    const frame = Buffer.from(memory.u8.buffer, list.offsets[i], list.lengths[i]);
    if (frame.length < ETHERNET_HEADER + IPV6_HEADER + UDP_HEADER) continue;
    const v6 = frame.readUInt16BE(12) === 0x86dd;
    const protocol = frame[v6 ? 20 : 23];
    const behind = ETHERNET_HEADER + (v6 ? IPV6_HEADER : 4 * (frame[ETHERNET_HEADER] & 15));
    const at = protocol === PROTOCOL_ESP ? behind : behind + UDP_HEADER;
    if ((protocol !== PROTOCOL_ESP && protocol !== PROTOCOL_UDP) || at + 4 > frame.length) continue;
    const spi = frame.readUInt32BE(at);
    if (!peers.has(spi)) peers.set(spi, formatIp(frame.subarray(...(v6 ? [22, 38] : [26, 30]))));
  }
  const algorithm = 'aes-128-gcm-16';
  const common = { direction: 'in', algorithm, esn: false, replayWindow: 1024 } as const;
  return [...peers].map(([spi, peer]) => ({ ...common, spi, peer, key: randomKey(algorithm) }));
}

/** Compares every frame that comes out of the tunnel with what went in. @throws Error at the first that differs. */
function comeBack(chain: Chain, { memory, list }: LoadedCaptures): void {
  const { u8, off, len } = memory;
  chain.observe({
    delivered(frame, index) {
      const before = Buffer.from(u8.buffer, list.offsets[index], list.lengths[index]);
      const after = Buffer.from(u8.buffer, off[frame], len[frame]);
      if (!before.equals(after)) throw new Error(`frame ${index} comes out of the tunnel changed`);
    },
    dropped(_frame, index, element, reason) {
      // Shorter than an Ethernet header, or too long to be wrapped: neither can go into a tunnel.
      const refused = reason === 'too-big' || (element === 'vxlan-encap' && reason === 'inner-runt');
      if (!refused) throw new Error(`frame ${index} is lost in the tunnel, ${element}: ${reason}`);
    },
    breath() {},
  });
}

function main(folder: string): number {
  const begin = Date.now();
  const summary = replayAll(folder, (line) => process.stderr.write(`${line}\n`));
  const { violations, drops, ...figures } = summary;
  for (const line of violations) process.stderr.write(`BROKEN: ${line}\n`);
  for (const [name, value] of Object.entries(figures)) process.stdout.write(`${name}: ${value}\n`);
  for (const [reason, count] of Object.entries(drops)) process.stdout.write(`dropped, ${reason}: ${count}\n`);
  process.stdout.write(`violations: ${violations.length}\nseconds: ${(Date.now() - begin) / 1000}\n`);
  return summary.files === 0 || violations.length > 0 ? 1 : 0;
}

if (process.argv[1] === fileURLToPath(import.meta.url))
  process.exitCode = main(process.argv[2] ?? SHARED_CAPTURES);
