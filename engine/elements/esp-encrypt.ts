/**
 * `esp-encrypt`: puts outer packets into ESP, transport mode between the VTEPs (RFC 4303, AES-GCM by RFC 4106), as
 * IP protocol 50 or behind a UDP header (RFC 3948).
 *
 * Per batch:
 *   1. the association that sends to the VTEP in `dest` is found; without one the packet goes no further;
 *   2. runs are found of packets that may leave as one UDP super-frame: to one VTEP whose next hop is known, with one
 *      TOS, equal in size but for the last, which may be shorter;
 *   3. each packet gets the next sequence number; after the last one there is nothing is sent any more (section 3.3.3);
 *   4. each gets its trailer: padding 1, 2, 3 … to a multiple of four bytes, pad length, next header (section 2.4);
 *   5. a packet alone has its Ethernet and IP header moved forward and ESP header and IV written into the gap; those of
 *      a run get them in a slot of their own, one behind the other: sealing copies, so bundling costs nothing;
 *   6. all are sealed in one native call.
 * The IV is the sequence number xored with a random number of the association's: no two packets of a key share one.
 * Packets leave in the order in which they came.
 *
 * Not handled: super-frames and partial checksums, which `segment` in front of this element finishes.
 */
import { GCM_JOB_WORDS, native } from '../../native-bindings/index.js';
import { type Batch, type Consumer, type Context, Drops } from '../graph.js';
import { BATCH_SIZE, NO_FRAME } from '../memory/frames.js';
import { acquire, release } from '../tables/association-lock.js';
import { REFUSALS } from '../tables/association-state.js';
import type { Associations } from '../tables/associations.js';
import { SAW_NO_ASSOCIATION, type Vteps } from '../tables/vteps.js';
import { ESP_HEADER, ESP_IV, ESP_TRAILER, PROTOCOL_ESP } from '../wire/esp.js';
import { ETHERNET_HEADER, swap16 } from '../wire/ethernet.js';
import {
  IPV4_HEADER,
  IPV4_LENGTH,
  IPV4_TTL_PROTOCOL,
  IPV6_HEADER,
  IPV6_LENGTH,
  IPV6_NEXT_HOP,
  PROTOCOL_UDP,
  UDP_HEADER,
  writeIpv4Checksum,
} from '../wire/ip.js';
import { createBundleFinisher, MOST_BYTES, MOST_DATAGRAMS } from '../wire/udp-bundle.js';

const REASONS = ['no-association', 'exhausted', 'too-big', 'bad-length', 'not-sealed'] as const;
const [NO_ASSOCIATION, EXHAUSTED, TOO_BIG, BAD_LENGTH, NOT_SEALED] = REASONS.keys();

const COUNTERS = ['frames', 'bytes', 'bundles', 'bundled'] as const;
const [FRAMES, BYTES, BUNDLES, BUNDLED] = COUNTERS.keys();

const REFUSED_EXHAUSTED = REFUSALS.indexOf('exhausted');
/** Last sequence number with extended numbers: beyond it a double would not count on. */
const MOST_HIGH = 2 ** 21;

export interface EspEncryptOptions {
  readonly v6: boolean;
  /** UDP port of encapsulation (RFC 3948, section 2.1), or 0 for IP protocol 50. */
  readonly udpPort: number;
  /** Whether other workers send under the same associations. */
  readonly shared: boolean;
  /** Compute the outer UDP checksum over IPv6 for `out`; false where its port has the kernel do it. */
  readonly checksum: boolean;
}

export interface EspEncrypt extends Consumer {
  readonly drops: Drops;
}

/**
 * @param out ESP packets for VTEPs whose next hop is not known; all of them when there is no `linked`.
 * @param linked ESP packets for VTEPs whose next hop is known, bundled where they may be.
 * @throws RangeError with `linked` and no UDP port, or with `linked` and `checksum`.
 */
export function createEspEncrypt(
  context: Context,
  associations: Associations,
  vteps: Vteps,
  options: EspEncryptOptions,
  out: Batch,
  linked: Batch | null = null,
): EspEncrypt {
  const { frames } = context;
  const { u8, u16, u64, off, len, dest, offload } = frames;
  const { outbound, spi, icv, esn, state } = associations;
  const { sequence, mask, packets, bytes: sealedBytes, refused, lock } = state;
  const { linked: isLinked } = vteps;
  const { values } = context.counters;
  const { v6, udpPort, shared } = options;
  if (linked !== null && (udpPort === 0 || options.checksum))
    throw new RangeError('ESP is bundled behind a UDP header only, whose checksum the port completes');
  const drops = new Drops(context, 'esp-encrypt', REASONS);
  const { base } = context.counters.claim('esp-encrypt', COUNTERS);
  const finishBundle = createBundleFinisher(frames, v6);
  const ipHeader = v6 ? IPV6_HEADER : IPV4_HEADER;
  /** Outer Ethernet and IP header. */
  const front = ETHERNET_HEADER + ipHeader;
  const encapsulation = udpPort === 0 ? 0 : UDP_HEADER;
  /** By how much a packet grows in front. */
  const gap = encapsulation + ESP_HEADER + ESP_IV;
  const portLe = swap16(udpPort);
  const complete = options.checksum && v6 && udpPort !== 0;
  const protocol = udpPort === 0 ? PROTOCOL_ESP : PROTOCOL_UDP;
  const jobs = new Uint32Array(BATCH_SIZE * GCM_JOB_WORDS);
  /** Per packet of the batch: its slot, the bytes to be sealed, how many leave with it, and the frame they leave in. */
  const slots = new Int32Array(BATCH_SIZE);
  const texts = new Uint32Array(BATCH_SIZE);
  const runs = new Uint8Array(BATCH_SIZE);
  const carriers = new Uint32Array(BATCH_SIZE);
  /** Packets that go on, after those were dropped that may not. */
  const going = new Uint32Array(BATCH_SIZE);

  function process(batch: Batch): void {
    let count = admit(batch);
    count = number(count);
    if (count === 0) return;
    findRuns(count);
    for (let k = 0; k < count; ) {
      const length = runs[k];
      if (length === 1 || !layBundle(k, length)) for (let i = k; i < k + length; i++) layAlone(i);
      k += length;
    }
    const failed = native.gcmSeal(jobs, count) !== 0;
    for (let k = 0; k < count; k += runs[k]) {
      for (let i = k; i < k + runs[k]; i++) {
        if (failed) drops.drop(going[i], NOT_SEALED);
        else if (carriers[i] === going[i]) send(going[i]);
        else frames.free(going[i]);
      }
      if (carriers[k] === going[k]) continue;
      if (failed) frames.free(carriers[k]);
      else send(carriers[k]);
    }
  }

  function send(frame: number): void {
    if (complete) completeChecksum(frame);
    values[base + BYTES] += len[frame];
    if (linked !== null && isLinked[dest[frame] & 0xffff] === 1) linked.push(frame);
    else out.push(frame);
  }

  /** Finishes the UDP checksum, whose field holds the sum of the pseudo-header (RFC 8200, 8.1). */
  function completeChecksum(frame: number): void {
    const sum = native.checksum(off[frame] + front, len[frame] - front, 0);
    u16[((off[frame] + front) >>> 1) + 3] = sum === 0xffff ? 0xffff : ~swap16(sum);
    offload[frame] = 0;
  }

  /** Step 1, and the trailer's size; drops what may not go and returns how many are left. */
  function admit(batch: Batch): number {
    const { frames: ids, count } = batch;
    let n = 0;
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      const vtep = dest[frame] & 0xffff;
      const slot = outbound[vtep];
      const inner = len[frame] - front;
      if (slot < 0) {
        vteps.note(vtep, SAW_NO_ASSOCIATION);
        drops.drop(frame, NO_ASSOCIATION);
      } else if (len[frame] <= front || offload[frame] !== 0) drops.drop(frame, BAD_LENGTH);
      else if (front + gap + inner + 3 + ESP_TRAILER + icv[slot] - ETHERNET_HEADER > 65535)
        drops.drop(frame, TOO_BIG);
      else {
        going[n] = frame;
        slots[n] = slot;
        texts[n] = (inner + ESP_TRAILER + 3) & ~3;
        n++;
      }
    }
    return n;
  }

  /** Step 3: gives out sequence numbers, into the jobs; drops what finds none and returns how many are left. */
  function number(count: number): number {
    let n = 0;
    let held = -1;
    for (let k = 0; k < count; k++) {
      const slot = slots[k];
      if (shared && slot !== held) {
        if (held >= 0) release(lock, held);
        acquire(lock, slot);
        held = slot;
      }
      const low = (sequence[slot * 2] + 1) >>> 0;
      const high = low === 0 ? sequence[slot * 2 + 1] + 1 : sequence[slot * 2 + 1];
      if (high >= (esn[slot] === 0 ? 1 : MOST_HIGH)) {
        refused[slot * REFUSALS.length + REFUSED_EXHAUSTED]++;
        drops.drop(going[k], EXHAUSTED);
        continue;
      }
      sequence[slot * 2] = low;
      sequence[slot * 2 + 1] = high;
      packets[slot]++;
      sealedBytes[slot] += texts[k];
      going[n] = going[k];
      slots[n] = slot;
      texts[n] = texts[k];
      jobs[n * GCM_JOB_WORDS] = low;
      jobs[n * GCM_JOB_WORDS + 5] = high;
      n++;
    }
    if (held >= 0) release(lock, held);
    values[base + FRAMES] += n;
    return n;
  }

  /** Step 2, after what may not go has gone. */
  function findRuns(count: number): void {
    for (let k = 0; k < count; ) {
      const length = linked === null ? 1 : runFrom(k, count);
      runs[k] = length;
      k += length;
    }
  }

  function runFrom(k: number, count: number): number {
    const slot = slots[k];
    const text = texts[k];
    if (isLinked[dest[going[k]] & 0xffff] === 0) return 1;
    const size = text + ESP_HEADER + ESP_IV + icv[slot];
    const most = Math.min(count - k, MOST_DATAGRAMS, Math.floor(MOST_BYTES / size));
    const tos = u16[(off[going[k]] + ETHERNET_HEADER) >>> 1];
    let n = 1;
    while (n < most) {
      const next = texts[k + n];
      if (slots[k + n] !== slot || next > text) break;
      if (u16[(off[going[k + n]] + ETHERNET_HEADER) >>> 1] !== tos) break;
      n++;
      if (next < text) break;
    }
    return n;
  }

  /** Lays a run into a large slot; false when none is free. */
  function layBundle(k: number, count: number): boolean {
    const bundle = frames.allocLarge();
    if (bundle === NO_FRAME) return false;
    const first = going[k];
    frames.ingress[bundle] = frames.ingress[first];
    frames.domain[bundle] = frames.domain[first];
    frames.mark[bundle] = frames.mark[first];
    dest[bundle] = dest[first];
    const at = off[bundle];
    let next = at + front + encapsulation;
    for (let i = k; i < k + count; i++) {
      carriers[i] = bundle;
      writeTrailer(i);
      layJob(i, next, off[going[i]] + front);
      next += ESP_HEADER + ESP_IV + texts[i] + icv[slots[i]];
    }
    copyFront(off[first], at);
    writeProtocol(at >>> 1);
    writeUdp(at);
    const size = ESP_HEADER + ESP_IV + texts[k] + icv[slots[k]];
    finishBundle(bundle, next - at - front - encapsulation, size);
    values[base + BUNDLES]++;
    values[base + BUNDLED] += count;
    return true;
  }

  /** Lays out a packet that leaves by itself, in its own slot. */
  function layAlone(k: number): void {
    const frame = going[k];
    runs[k] = 1;
    carriers[k] = frame;
    writeTrailer(k);
    const from = off[frame];
    const at = from - gap;
    copyFront(from, at);
    layJob(k, at + front + encapsulation, from + front);
    off[frame] = at;
    const payload = ESP_HEADER + ESP_IV + texts[k] + icv[slots[k]];
    len[frame] = front + encapsulation + payload;
    const ip = (at + ETHERNET_HEADER) >>> 1;
    writeProtocol(at >>> 1);
    if (udpPort !== 0) {
      writeUdp(at);
      // Over IPv6 the checksum must be there (RFC 8200, 8.1), and only what comes behind can afford it.
      if (v6) {
        finishBundle(frame, payload, payload);
        return;
      }
    }
    if (v6) u16[ip + IPV6_LENGTH] = swap16(encapsulation + payload);
    else {
      u16[ip + IPV4_LENGTH] = swap16(IPV4_HEADER + encapsulation + payload);
      writeIpv4Checksum(u16, ip);
    }
    if (udpPort !== 0) u16[((at + front) >>> 1) + 2] = swap16(UDP_HEADER + payload);
  }

  /** Step 4: padding, pad length and next header behind the packet. */
  function writeTrailer(k: number): void {
    const frame = going[k];
    const end = off[frame] + len[frame];
    const padding = texts[k] - (len[frame] - front) - ESP_TRAILER;
    for (let i = 0; i < padding; i++) u8[end + i] = i + 1;
    u8[end + padding] = padding;
    u8[end + padding + 1] = PROTOCOL_UDP;
  }

  /** Writes ESP header and IV at `header`, and the job that seals what lies at `text` behind them. */
  function layJob(k: number, header: number, text: number): void {
    const job = k * GCM_JOB_WORDS;
    const slot = slots[k];
    const low = jobs[job];
    const high = jobs[job + 5];
    const w = header >>> 1;
    u16[w] = spi[slot];
    u16[w + 1] = spi[slot] >>> 16;
    u16[w + 2] = swap16(low >>> 16);
    u16[w + 3] = swap16(low & 0xffff);
    const ivHigh = high ^ mask[slot * 2 + 1];
    const ivLow = low ^ mask[slot * 2];
    u16[w + 4] = ivHigh;
    u16[w + 5] = ivHigh >>> 16;
    u16[w + 6] = ivLow;
    u16[w + 7] = ivLow >>> 16;
    jobs[job] = header;
    jobs[job + 1] = text;
    jobs[job + 2] = header + ESP_HEADER + ESP_IV;
    jobs[job + 3] = texts[k];
    jobs[job + 4] = slot;
  }

  /** Copies Ethernet and IP header forward, by 64-bit words where what follows them is aligned. */
  function copyFront(from: number, to: number): void {
    if (((from + front) & 7) === 0 && ((to + front) & 7) === 0) {
      const words = (front + 7) >>> 3;
      const source = ((from + front) >>> 3) - words;
      const target = ((to + front) >>> 3) - words;
      // The first word is not all ours: what it takes along falls into headroom.
      for (let i = 0; i < words; i++) u64[target + i] = u64[source + i];
      return;
    }
    for (let i = 0; i < front / 2; i++) u16[(to >>> 1) + i] = u16[(from >>> 1) + i];
  }

  function writeProtocol(w: number): void {
    const ip = w + ETHERNET_HEADER / 2;
    if (v6) u16[ip + IPV6_NEXT_HOP] = (u16[ip + IPV6_NEXT_HOP] & 0xff00) | protocol;
    else u16[ip + IPV4_TTL_PROTOCOL] = (u16[ip + IPV4_TTL_PROTOCOL] & 0xff) | (protocol << 8);
  }

  /** UDP header without length, checksum zero (RFC 3948, section 2.1). */
  function writeUdp(at: number): void {
    const w = (at + front) >>> 1;
    u16[w] = portLe;
    u16[w + 1] = portLe;
    u16[w + 3] = 0;
  }

  return { drops, process };
}
