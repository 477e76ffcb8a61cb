/**
 * Replays every capture below a folder through the chains that matter and holds the engine to its promises: no
 * crash, no leaked slot, every frame delivered or dropped with a reason, and what was put into VXLAN comes out of
 * it byte for byte. `npm run replay:all [FOLDER]`; exits with 1 when a promise is broken.
 *
 * A capture that is damaged or cannot be read is reported with the offset; that breaks no promise.
 */
import '../engine/tuning.js';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chainOver, type LoadedCaptures, loadCaptures, type ReplayOptions } from '../control/replay.js';
import type { Chain } from '../engine/chain.js';

/** From dist/bench/ to the folder beside the repository. */
export const SHARED_CAPTURES = fileURLToPath(new URL('../../../shared/pcaps', import.meta.url));

const BACK = ['vxlan-encap', 'vxlan-decap'];
const CHAINS: readonly (readonly string[])[] = [
  ['bridge'],
  ['bridge', 'vxlan-encap'],
  BACK,
  ['vxlan-decap', 'bridge'],
];
const V4 = { local: Uint8Array.of(192, 0, 2, 1), remote: Uint8Array.of(192, 0, 2, 2) };
const V6 = {
  local: Uint8Array.of(0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1),
  remote: Uint8Array.of(0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2),
};
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
  for (const [i, through] of CHAINS.entries()) {
    for (const ends of [V4, V6]) {
      try {
        const options = { through, ...ends, port: 4789, carryVlan: true, strict: false };
        const loaded = loadCaptures([path], options);
        if (i === 0 && ends === V4) describe(loaded, summary, say);
        replayOnce(loaded, options, summary);
      } catch (error) {
        summary.violations.push(`${path} through ${through}: ${(error as Error).message}`);
      }
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
function replayOnce(
  loaded: LoadedCaptures,
  options: Omit<ReplayOptions, 'loops'>,
  summary: SweepSummary,
): void {
  const { chain } = chainOver(loaded, options);
  if (options.through === BACK) comeBack(chain, loaded);
  else chain.pass();
  chain.pass();
  const { frames, delivered, drops } = chain.totals();
  summary.replayed += frames;
  summary.delivered += delivered;
  for (const [reason, count] of Object.entries(drops))
    summary.drops[reason] = (summary.drops[reason] ?? 0) + count;
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
      const refused = element === 'vxlan-encap' && (reason === 'inner-runt' || reason === 'too-big');
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
