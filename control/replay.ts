/**
 * Replaying capture files through a chain of elements: loads them, runs the chain, and writes what came of each
 * frame when asked. Files that are damaged are read as far as they go; files that cannot be read are left out.
 *
 * Not handled: the pace of the capture. Frames follow each other as fast as the chain takes them.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, statSync, writeSync } from 'node:fs';
import {
  type Chain,
  type ChainBalanceSetup,
  type ChainNatSetup,
  type ChainObserver,
  createChain,
  opensItsOwn,
} from '../engine/chain.js';
import { ELEMENTS } from '../engine/elements/index.js';
import { BATCH_SIZE, FrameMemory } from '../engine/memory/frames.js';
import { type Capture, CaptureError, type CaptureProblem } from '../engine/ports/capture/capture.js';
import { loadFrames, measureFrames } from '../engine/ports/capture/frames.js';
import { PcapngWriter } from '../engine/ports/capture/writer.js';
import { FrameListBuilder, listArenaBytes } from '../engine/ports/capture-list.js';
import type { FrameList } from '../engine/ports/capture-source.js';
import { MAX_DOMAINS } from '../engine/tables/mac-table.js';
import { openCapture } from './capture-files.js';
import {
  chooseKeys,
  DEFAULT_ESP,
  type EspOptions,
  installKeys,
  KeyError,
  type KeyOrigin,
} from './replay-keys.js';

const ETHERNET = 1;
const TTL = 64;
/** VNI of frames that come into the chain without one. */
const DEFAULT_VNI = 42;
/** Stations that may be hidden in packets that are opened only on their way; more are not learned. */
const MOST_HIDDEN = 1 << 20;

export interface ReplayOptions {
  /** Names out of ELEMENTS. */
  readonly through: readonly string[];
  /** Times the captures are run through the chain, at least 1. */
  readonly loops: number;
  /** 4 or 16 bytes each, both alike. */
  readonly local: Uint8Array;
  readonly remote: Uint8Array;
  /** UDP port of VXLAN. */
  readonly port: number;
  /** The one VNI there is; undefined is DEFAULT_VNI and every VNI met in the captures. */
  readonly vni?: number | undefined;
  readonly carryVlan: boolean;
  readonly strict: boolean;
  /** Absent: DEFAULT_ESP. */
  readonly esp?: EspOptions;
  /** Absent: CHAIN_NAT. */
  readonly nat?: ChainNatSetup;
  /** Absent: CHAIN_BALANCE. */
  readonly balance?: ChainBalanceSetup;
  /** pcapng file for what came out of the first loop. */
  readonly write?: string | undefined;
}

interface ReplayedFile {
  readonly name: string;
  /** null when the file could not be read; then `problems` says why. */
  readonly format: string | null;
  readonly frames: number;
  /** Records that are no Ethernet frames and cannot be made into ones, by reason. */
  readonly skipped: Record<string, number>;
  readonly problems: readonly CaptureProblem[];
}

export interface ReplayReport {
  readonly through: readonly string[];
  readonly loops: number;
  /** Frames handed to the chain, and their bytes: those of the files times the loops. */
  readonly frames: number;
  readonly bytes: number;
  /** Wall clock of the run, without loading and without writing. */
  readonly seconds: number;
  readonly mpps: number;
  readonly gbps: number;
  readonly nsPerFrame: number;
  readonly delivered: number;
  readonly drops: Record<string, number>;
  /** That `nat` and `balance` know in the end. */
  readonly flows: number;
  readonly keys: KeyOrigin;
  /** VNIs met in the captures for which there was no room. */
  readonly vnisLeftOut: number;
  readonly files: readonly ReplayedFile[];
}

/** What keeps a replay from starting or ending; names the place and the remedy. */
export class ReplayError extends Error {
  /** @param usage whether the caller asked for what must not be done. */
  constructor(
    message: string,
    readonly usage = false,
  ) {
    super(message);
  }
}

export interface LoadedCaptures {
  readonly memory: FrameMemory;
  readonly list: FrameList;
  readonly files: readonly ReplayedFile[];
  /** Whole second since 1970 from which `timesNs` counts, and the time of each frame. */
  readonly originSeconds: number;
  readonly timesNs: Float64Array;
  /** VNIs met, and stations, as FrameListBuilder gives them. */
  readonly vnis: readonly number[];
  readonly stations: number;
}

/** Whether the first element of the chain that has to do with tunnels wants outer headers to be there. */
export function takesOuter(through: readonly string[]): boolean {
  const first = through.map((name) => ELEMENTS.get(name)?.outer).find((outer) => outer !== 'keeps');
  return first === 'removes' || first === 'needs';
}

/** Opens the files and lays their frames out for a chain. Never throws for a bad file: `files` says what became of it. */
export function loadCaptures(
  paths: readonly string[],
  options: Pick<ReplayOptions, 'through' | 'port'>,
): LoadedCaptures {
  const opened = paths.map(open);
  let arena = 0;
  let count = 0;
  for (const { capture } of opened) {
    if (capture === null) continue;
    const measure = measureFrames([capture]);
    arena += measure.arenaBytes;
    count += measure.count;
  }
  const memory = reserve(listArenaBytes(arena, count));
  const builder = new FrameListBuilder(memory, count, takesOuter(options.through), options.port);
  const clock = new CaptureClock(count);
  const files = opened.map(({ capture, file }) => {
    if (capture === null) return file;
    const u8 = new Uint8Array(measureFrames([capture]).arenaBytes);
    const index = loadFrames([capture], { u8, start: 0, size: u8.length });
    builder.add(u8, index);
    clock.add(index.originSeconds, index.timesNs);
    return { ...file, frames: index.count, skipped: index.skipped };
  });
  const list = builder.finish();
  return { memory, list, files, ...clock.finish(), vnis: builder.vnis(), stations: builder.stations() };
}

function open(path: string): { capture: Capture | null; file: ReplayedFile } {
  try {
    const capture = openCapture(path);
    const { format, problems } = capture;
    return { capture, file: { name: path, format, frames: 0, skipped: {}, problems } };
  } catch (error) {
    if (!(error instanceof CaptureError)) throw error;
    const problems = [{ offset: error.offset, message: error.message }];
    return { capture: null, file: { name: path, format: null, frames: 0, skipped: {}, problems } };
  }
}

function reserve(arena: number): FrameMemory {
  try {
    // A chain never has more than one batch on its way; slots of both sizes for all of it.
    return new FrameMemory({ small: 2 * BATCH_SIZE, large: BATCH_SIZE, arena });
  } catch (error) {
    throw new ReplayError(`${(error as Error).message}; replay fewer or smaller captures at a time`);
  }
}

/** The times of frames of several files, on one origin so early that none is negative. */
class CaptureClock {
  private readonly seconds: Float64Array;
  private readonly nanoseconds: Float64Array;
  private count = 0;
  private earliest = Number.POSITIVE_INFINITY;

  constructor(capacity: number) {
    this.seconds = new Float64Array(capacity);
    this.nanoseconds = new Float64Array(capacity);
  }

  add(originSeconds: number, timesNs: Float64Array): void {
    for (const time of timesNs) {
      const whole = Math.floor(time / 1e9);
      this.seconds[this.count] = originSeconds + whole;
      this.nanoseconds[this.count] = time - whole * 1e9;
      this.earliest = Math.min(this.earliest, originSeconds + whole);
      this.count++;
    }
  }

  finish(): { originSeconds: number; timesNs: Float64Array } {
    const originSeconds = Number.isFinite(this.earliest) ? this.earliest : 0;
    const timesNs = this.seconds.map((whole, i) => (whole - originSeconds) * 1e9 + this.nanoseconds[i]);
    return { originSeconds, timesNs };
  }
}

export interface ChainOver {
  readonly chain: Chain;
  /** VNIs met for which there was no domain. */
  readonly vnisLeftOut: number;
  readonly keys: KeyOrigin;
  /** Wipes the keys; the chain must not run again. */
  close(): void;
}

/**
 * The chain over loaded captures.
 * @throws ReplayError when it lacks keys, or would seal what cannot be sealed.
 */
export function chainOver(
  loaded: LoadedCaptures,
  options: Omit<ReplayOptions, 'loops' | 'write'>,
): ChainOver {
  const { memory, list } = loaded;
  const { through, local, remote, port, carryVlan, strict, vni = DEFAULT_VNI, esp = DEFAULT_ESP } = options;
  const others = options.vni === undefined ? loaded.vnis.filter((met) => met !== vni) : [];
  const vnis = [vni, ...others].slice(0, MAX_DOMAINS);
  const hidden = through.includes('esp-decrypt') && !opensItsOwn(through) ? list.count : 0;
  const { origin, associations, wipe } = keysFor(options, esp);
  const chain = createChain({
    names: through,
    frames: memory,
    list,
    vnis,
    carryVlan,
    strict,
    local: { address: local, port, ttl: TTL },
    remote,
    stations: loaded.stations + Math.min(hidden, MOST_HIDDEN),
    // No more are learned than there are frames.
    vteps: through.includes('vxlan-decap')
      ? Math.min(65534, 1 + associations.length + list.count)
      : 1 + associations.length,
    associations,
    espPort: esp.port,
    rawEsp: esp.encapsulation === 'esp',
    ...(options.nat && { nat: options.nat }),
    ...(options.balance && { balance: options.balance }),
  });
  // A key of a file is used in other runs too, and no two packets under it may have one IV.
  for (const { slot, direction } of associations)
    if (direction === 'out') chain.tools.associations.state.begin(slot, 0, randomBytes(8));
  return { chain, vnisLeftOut: 1 + others.length - vnis.length, keys: origin, close: wipe };
}

function keysFor(options: Pick<ReplayOptions, 'through' | 'local' | 'remote'>, esp: EspOptions) {
  const { through } = options;
  checkSealing(through);
  try {
    const { origin, list } = chooseKeys(through, options, esp.associations);
    return { origin, ...installKeys(list) };
  } catch (error) {
    if (error instanceof KeyError) throw new ReplayError(error.message, true);
    throw error;
  }
}

/** esp-encrypt takes what it gets for an outer packet of our own, as in an engine it is. */
function checkSealing(through: readonly string[]): void {
  let tunnelled = false;
  for (const name of through) {
    if (name === 'esp-encrypt' && !tunnelled)
      throw new ReplayError(
        'esp-encrypt seals what vxlan-encap makes; put vxlan-encap in front of it, as in bridge,vxlan-encap,esp-encrypt',
        true,
      );
    const outer = ELEMENTS.get(name)?.outer;
    if (outer === 'adds' || outer === 'removes') tunnelled = outer === 'adds';
  }
}

/**
 * Replays capture files.
 * @throws ReplayError when no memory can be had, keys are missing, or the output cannot be written.
 */
export function replay(paths: readonly string[], options: ReplayOptions): ReplayReport {
  const { loops, write } = options;
  if (write !== undefined) refuseInput(write, paths);
  const loaded = loadCaptures(paths, options);
  const over = chainOver(loaded, options);
  try {
    let writing = 0;
    const begin = process.hrtime.bigint();
    for (let loop = 0; loop < loops; loop++) {
      if (loop === 0 && write !== undefined) writing = record(over.chain, loaded, options.through, write);
      else over.chain.pass();
    }
    return reportOn(over, loaded, options, Number(process.hrtime.bigint() - begin) - writing);
  } finally {
    over.close();
  }
}

/** @param elapsed nanoseconds. */
function reportOn(
  { chain, keys, vnisLeftOut }: ChainOver,
  { files }: LoadedCaptures,
  { through, loops }: ReplayOptions,
  elapsed: number,
): ReplayReport {
  const totals = chain.totals();
  const { frames, bytes } = totals;
  const some = frames > 0 && elapsed > 0;
  return {
    through,
    loops,
    frames,
    bytes,
    seconds: elapsed / 1e9,
    mpps: some ? (frames * 1e3) / elapsed : 0,
    gbps: some ? (bytes * 8) / elapsed : 0,
    nsPerFrame: some ? elapsed / frames : 0,
    delivered: totals.delivered,
    drops: totals.drops,
    flows: totals.flows,
    keys,
    vnisLeftOut,
    files,
  };
}

function refuseInput(write: string, paths: readonly string[]): void {
  const target = statSync(write, { throwIfNoEntry: false });
  if (target === undefined) return;
  for (const path of paths) {
    const input = statSync(path, { throwIfNoEntry: false });
    if (input !== undefined && input.dev === target.dev && input.ino === target.ino)
      throw new ReplayError(`${write} is one of the captures to be replayed; write to another file`, true);
  }
}

/** Runs one pass and writes what came of each frame. Returns the nanoseconds that went into writing. */
function record(chain: Chain, loaded: LoadedCaptures, through: readonly string[], path: string): number {
  const file = new OutputFile(path);
  try {
    const recorder = new Recorder(loaded, through.at(-1)!, (bytes) => file.write(bytes));
    chain.observe(recorder);
    file.end();
    return recorder.nanoseconds;
  } finally {
    file.close();
  }
}

interface RecordedFrame {
  readonly index: number;
  readonly bytes: Uint8Array;
  readonly dropReason: string | undefined;
}

/** Keeps the frames of a breath and writes them in the order in which they came in. */
class Recorder implements ChainObserver {
  nanoseconds = 0;
  private kept: RecordedFrame[] = [];
  private readonly writer: PcapngWriter;
  private readonly deliveredTo: number;
  private readonly droppedTo: number;

  constructor(
    private readonly loaded: LoadedCaptures,
    end: string,
    sink: (bytes: Uint8Array) => void,
  ) {
    const { originSeconds } = loaded;
    this.writer = new PcapngWriter(sink, { application: 'weft replay', originSeconds });
    this.deliveredTo = this.writer.addInterface({ name: end, linkType: ETHERNET });
    this.droppedTo = this.writer.addInterface({ name: 'dropped', linkType: ETHERNET });
  }

  delivered(frame: number, index: number): void {
    this.keep(frame, index, undefined);
  }

  dropped(frame: number, index: number, element: string, reason: string): void {
    this.keep(frame, index, `${element}: ${reason}`);
  }

  breath(): void {
    const begin = process.hrtime.bigint();
    this.kept.sort((a, b) => a.index - b.index);
    for (const { index, bytes, dropReason } of this.kept) {
      const to = dropReason === undefined ? this.deliveredTo : this.droppedTo;
      this.writer.write(to, bytes, 0, bytes.length, this.loaded.timesNs[index], { dropReason });
    }
    this.kept = [];
    this.nanoseconds += Number(process.hrtime.bigint() - begin);
  }

  private keep(frame: number, index: number, dropReason: string | undefined): void {
    const begin = process.hrtime.bigint();
    const { u8, off, len } = this.loaded.memory;
    const bytes = u8.slice(off[frame], off[frame] + len[frame]);
    this.kept.push({ index, bytes, dropReason });
    this.nanoseconds += Number(process.hrtime.bigint() - begin);
  }
}

const CHUNK = 1 << 20;

/** A file written in large pieces. */
class OutputFile {
  private readonly fd: number;
  private readonly chunk = new Uint8Array(CHUNK);
  private filled = 0;

  constructor(private readonly path: string) {
    try {
      this.fd = openSync(path, 'w');
    } catch (error) {
      throw this.failure(error);
    }
  }

  write(bytes: Uint8Array): void {
    if (this.filled + bytes.length > CHUNK) this.end();
    if (bytes.length > CHUNK) this.put(bytes);
    else {
      this.chunk.set(bytes, this.filled);
      this.filled += bytes.length;
    }
  }

  /** Writes what is still in memory. */
  end(): void {
    this.put(this.chunk.subarray(0, this.filled));
    this.filled = 0;
  }

  close(): void {
    closeSync(this.fd);
  }

  private put(bytes: Uint8Array): void {
    try {
      for (let at = 0; at < bytes.length; ) at += writeSync(this.fd, bytes, at);
    } catch (error) {
      throw this.failure(error);
    }
  }

  private failure(error: unknown): ReplayError {
    return new ReplayError(
      `cannot write ${this.path}: ${(error as Error).message}; name a file that can be written`,
    );
  }
}
