/**
 * What `segment` and `coalesce` cost: `node dist/bench/segment.js`. One core, super-frames of 64 KiB, CPU time of
 * the element alone with its native calls, slots taken and freed. Prints ns a segment and Gb/s of payload, the best
 * and the median of rounds.
 */
import '../engine/tuning.js';
import { Counters } from '../engine/counters.js';
import { createCoalesce } from '../engine/elements/coalesce.js';
import { createSegment } from '../engine/elements/segment.js';
import { Batch, type Consumer, Context } from '../engine/graph.js';
import {
  FrameMemory,
  GSO_TCPV4,
  OFFLOAD_GSO_SHIFT,
  OFFLOAD_NEEDS_CSUM,
  OFFLOAD_OUTER_SHIFT,
} from '../engine/memory/frames.js';
import { native } from '../native-bindings/index.js';

const ROUNDS = 9;
const SUPER_FRAMES_A_ROUND = 4000;
/** Super-frames in flight: as many as a burst from one busy TAP. */
const BURST = 8;
const PAYLOAD = 65_000;

const memory = new FrameMemory({ small: 2048, large: 128 });
native.attach(memory.u8, memory.off, memory.len, memory.freeLarge);
const context = new Context(memory, new Counters(), 1);

/** Ethernet, IPv4, TCP with timestamps; lengths and checksums are the elements' work. */
const HEADER = Uint8Array.of(
  ...[2, 0x42, 10, 0, 9, 2, 2, 0x42, 10, 0, 9, 1, 8, 0],
  ...[0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 9, 1, 10, 0, 9, 2],
  ...[0x9c, 0x40, 0x14, 0x51, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, 16, 1, 0xf5, 0, 0, 0, 0],
  ...[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
);

function superFrame(outer: number, size: number): number {
  const frame = memory.allocLarge();
  memory.off[frame] -= outer;
  const at = memory.off[frame];
  memory.u8.set(HEADER, at + outer);
  memory.len[frame] = outer + HEADER.length + PAYLOAD;
  memory.offload[frame] =
    OFFLOAD_NEEDS_CSUM | (GSO_TCPV4 << OFFLOAD_GSO_SHIFT) | (outer << OFFLOAD_OUTER_SHIFT);
  memory.gsoSize[frame] = size;
  memory.csumStart[frame] = outer + 34;
  memory.csumOffset[frame] = 16;
  return frame;
}

interface Result {
  work: string;
  size: number;
  nsPerSegment: number;
  medianNs: number;
  gbps: number;
}

function report(work: string, size: number, rounds: number[]): Result {
  rounds.sort((a, b) => a - b);
  const best = rounds[0];
  const round = (value: number): number => Math.round(value * 10) / 10;
  return {
    work,
    size,
    nsPerSegment: round(best),
    medianNs: round(rounds[ROUNDS >> 1]),
    gbps: round((size * 8) / best),
  };
}

/** CPU time of the process so far, in ns. */
function nanoseconds(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) * 1000;
}

const freeAll: Consumer = {
  process: (batch) => {
    for (let k = 0; k < batch.count; k++) memory.free(batch.frames[k]);
  },
};

function benchSegment(outer: number, size: number): Result {
  const out = new Batch(freeAll);
  const segment = createSegment(context, out);
  const input = new Batch(segment);
  const each = Math.ceil(PAYLOAD / size);
  const rounds: number[] = [];
  for (let r = 0; r < ROUNDS; r++) {
    const start = nanoseconds();
    for (let i = 0; i < SUPER_FRAMES_A_ROUND; i += BURST) {
      for (let j = 0; j < BURST; j++) input.push(superFrame(outer, size));
      input.flush();
      out.flush();
    }
    rounds.push((nanoseconds() - start) / (SUPER_FRAMES_A_ROUND * each));
  }
  segment.close();
  return report(outer === 0 ? 'segment' : `segment, ${outer} outer bytes`, size, rounds);
}

/**
 * The segments of one super-frame, each in a slot of its own as a socket fills them, coalesced again and again.
 * Filling the slots is not the element's work: it is measured alone and subtracted.
 */
function benchCoalesce(size: number): Result {
  const pieces: number[] = [];
  const keep = new Batch({
    process: (batch) => {
      for (let k = 0; k < batch.count; k++) pieces.push(batch.frames[k]);
    },
  });
  const segment = createSegment(context, keep);
  const cut = new Batch(segment);
  cut.push(superFrame(0, size));
  cut.flush();
  keep.flush();
  const out = new Batch(freeAll);
  const coalesce = createCoalesce(context, out, { udp: true });

  const run = (input: Batch): number => {
    const start = nanoseconds();
    for (let i = 0; i < SUPER_FRAMES_A_ROUND; i++) {
      for (const piece of pieces) {
        const frame = memory.allocLarge();
        const at = memory.off[frame] + (memory.off[piece] & 7);
        memory.copy(memory.off[piece], at, memory.len[piece]);
        memory.off[frame] = at;
        memory.len[frame] = memory.len[piece];
        input.push(frame);
      }
      input.flush();
      out.flush();
    }
    return (nanoseconds() - start) / (SUPER_FRAMES_A_ROUND * pieces.length);
  };
  const rounds: number[] = [];
  for (let r = 0; r < ROUNDS; r++) {
    const filling = run(new Batch(freeAll));
    rounds.push(run(new Batch(coalesce)) - filling);
  }
  for (const piece of pieces) memory.free(piece);
  segment.close();
  coalesce.close();
  return report('coalesce', size, rounds);
}

const results = [
  benchSegment(0, 1448),
  benchSegment(0, 1398),
  benchSegment(50, 1398),
  benchSegment(70, 1398),
  benchSegment(50, 1399),
  benchCoalesce(1448),
  benchCoalesce(1398),
];
memory.audit();
process.stdout.write(`${JSON.stringify(results, null, 2)}\n`);
