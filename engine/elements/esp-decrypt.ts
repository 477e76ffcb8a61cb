/**
 * `esp-decrypt`: opens ESP packets, transport mode between VTEPs (RFC 4303, AES-GCM by RFC 4106), as IP protocol 50
 * or behind a UDP header (RFC 3948), alone or laid one behind another in a UDP super-frame.
 *
 * Per batch:
 *   1. the outer IP header is checked (see `createOuterParser`), the ESP header found behind it;
 *   2. the SPI names the association; the packet must come from its peer (RFC 4301, section 4.1);
 *   3. a packet that its window would refuse is not even opened (RFC 4303, section 3.4.3);
 *   4. all are opened in one native call: a packet alone in its own slot, those of a super-frame each into a slot of
 *      its own, so that taking them apart costs nothing;
 *   5. in the order of arrival: the ICV; the window again, which only now moves, so that of eight copies in one batch
 *      one gets through; the trailer, believed only now: next header UDP, padding 1, 2, 3 … (section 2.4);
 *   6. what is left is the packet as it was before ESP, with its outer header: length, protocol, checksum set anew.
 * Dummies (next header 59, section 2.6) go silently, as do keepalives (RFC 3948, section 2.3).
 *
 * Not handled: fragments, outer VLAN tags, IPv6 extension headers, address translation between the VTEPs.
 */
import { GCM_JOB_WORDS, native } from '../../native-bindings/index.js';
import { type Batch, type Consumer, type Context, Drops } from '../graph.js';
import { BATCH_SIZE, NO_FRAME, OFFLOAD_GSO_MASK } from '../memory/frames.js';
import { acquire, release } from '../tables/association-lock.js';
import { REFUSALS, type Refusal } from '../tables/association-state.js';
import { type Associations, createAssociationFinder } from '../tables/associations.js';
import { createReplayWindows, FRESH, REPLAYED, TOO_OLD } from '../tables/replay-window.js';
import type { LocalVtep } from '../tables/vteps.js';
import { ESP_HEADER, ESP_IV, ESP_TRAILER, NO_NEXT_HEADER, PROTOCOL_ESP } from '../wire/esp.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV6_LE, swap16 } from '../wire/ethernet.js';
import {
  fold16,
  IPV4_CHECKSUM,
  IPV4_LENGTH,
  IPV4_TTL_PROTOCOL,
  IPV6_HEADER,
  IPV6_LENGTH,
  IPV6_NEXT_HOP,
  PROTOCOL_UDP,
  UDP_HEADER,
} from '../wire/ip.js';
import { createOuterParser, OUTER_REASONS } from '../wire/outer.js';

const REASONS = [
  ...OUTER_REASONS,
  'not-esp',
  'keepalive',
  'exchange',
  'undersized',
  'unknown-spi',
  'wrong-source',
  'replayed',
  'too-old',
  'icv',
  'not-opened',
  'dummy',
  'bad-trailer',
  'no-slot',
] as const;
type Reason = (typeof REASONS)[number];
const R = Object.fromEntries(REASONS.map((name, i) => [name, i])) as Record<Reason, number>;
const NOT_ESP = R['not-esp'];
const KEEPALIVE = R.keepalive;
const EXCHANGE = R.exchange;
const UNDERSIZED = R.undersized;
const UNKNOWN_SPI = R['unknown-spi'];
const WRONG_SOURCE = R['wrong-source'];
const REPLAY = R.replayed;
const OLD = R['too-old'];
const ICV = R.icv;
const NOT_OPENED = R['not-opened'];
const DUMMY = R.dummy;
const BAD_TRAILER = R['bad-trailer'];
const NO_SLOT = R['no-slot'];
/** Verdict on a packet that goes on; the others are reasons. */
const PASSED = -1;

/** Which of our reasons counts among an association's refusals, and where; -1 for the others. */
const REFUSAL = Int8Array.from(REASONS, (name) => REFUSALS.indexOf(name as Refusal));

const COUNTERS = ['frames', 'bytes'] as const;
const [FRAMES, BYTES] = COUNTERS.keys();

/** Most packets in one UDP super-frame: UDP_MAX_SEGMENTS of Linux. */
const MOST_DATAGRAMS = 128;
/** Bytes from a slot's `off`, modulo 8, that put what follows Ethernet and IP header on a multiple of 8. */
const PHASE_IPV4 = 6;
const PHASE_IPV6 = 2;

export interface EspDecryptOptions {
  readonly local: LocalVtep;
  /** Check that packets are addressed to us; false for captures, which are nobody's. */
  readonly addressed: boolean;
  /** UDP port of encapsulation; 0 when only IP protocol 50 is ESP. */
  readonly udpPort: number;
  /** Whether other workers receive under the same associations. */
  readonly shared: boolean;
}

export interface EspDecrypt extends Consumer {
  readonly drops: Drops;
}

export function createEspDecrypt(
  context: Context,
  associations: Associations,
  options: EspDecryptOptions,
  out: Batch,
): EspDecrypt {
  const { frames } = context;
  const { u8, u16, u64, off, len, offload, gsoSize } = frames;
  const { icv, peer, state } = associations;
  const find = createAssociationFinder(associations);
  const { packets, bytes: openedBytes, refused, lock } = state;
  const { values } = context.counters;
  const { udpPort, shared } = options;
  const drops = new Drops(context, 'esp-decrypt', REASONS);
  const { base } = context.counters.claim('esp-decrypt', COUNTERS);
  const outer = createOuterParser(frames, options.local, options.addressed);
  const { source } = outer;
  const windows = createReplayWindows(associations);
  const portLe = swap16(udpPort);
  const jobs = new Uint32Array(BATCH_SIZE * GCM_JOB_WORDS);
  const results = new Uint32Array(BATCH_SIZE);
  /** Per job: the frame it opens into, its low sequence number, bytes of Ethernet and IP header. */
  const opening = new Uint32Array(BATCH_SIZE);
  const lows = new Uint32Array(BATCH_SIZE);
  const fronts = new Uint8Array(BATCH_SIZE);
  /** Super-frames whose packets are being opened. */
  const emptied = new Uint32Array(BATCH_SIZE * 2);
  let waiting = 0;
  let empty = 0;
  const { number } = windows;

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      const found = outer.parse(frame, off[frame] >>> 1, 1);
      if (found < 0) {
        drops.drop(frame, -1 - found);
        continue;
      }
      const front = found & 0xffff;
      const esp = front + (found >>> 16 === PROTOCOL_ESP ? 0 : UDP_HEADER);
      const reason = found >>> 16 === PROTOCOL_ESP ? PASSED : checkUdp(frame, front, found >>> 16);
      if (reason !== PASSED) drops.drop(frame, reason);
      else if ((offload[frame] & OFFLOAD_GSO_MASK) !== 0) takeApart(frame, front, esp);
      else takeAlone(frame, front, esp);
    }
    open();
  }

  /** Whether UDP encapsulates ESP here (RFC 3948, section 2). */
  function checkUdp(frame: number, front: number, protocol: number): number {
    const w = (off[frame] + front) >>> 1;
    if (udpPort === 0 || protocol !== PROTOCOL_UDP || len[frame] < front + UDP_HEADER) return NOT_ESP;
    if (u16[w + 1] !== portLe) return NOT_ESP;
    if (swap16(u16[w + 2]) !== len[frame] - front) return R['bad-length'];
    const payload = len[frame] - front - UDP_HEADER;
    if (payload === 1 && u8[off[frame] + front + UDP_HEADER] === 0xff) return KEEPALIVE;
    if (payload < ESP_HEADER) return UNDERSIZED;
    // Four zero bytes in place of an SPI: an exchange of keys, by somebody's IKE.
    return u16[w + 4] === 0 && u16[w + 5] === 0 ? EXCHANGE : PASSED;
  }

  function takeAlone(frame: number, front: number, esp: number): void {
    const at = off[frame] + esp;
    const reason = admit(at, len[frame] - esp);
    if (reason < 0) {
      drops.drop(frame, -1 - reason);
      return;
    }
    addJob(frame, at, at + ESP_HEADER + ESP_IV, len[frame] - esp, reason, front);
  }

  /** Opens each packet of a super-frame into a slot of its own. */
  function takeApart(frame: number, front: number, esp: number): void {
    const size = gsoSize[frame];
    const total = len[frame] - esp;
    if (size === 0 || size * MOST_DATAGRAMS < total) {
      drops.drop(frame, R['bad-length']);
      return;
    }
    const phase = u16[(off[frame] >>> 1) + 6] === ETHERTYPE_IPV6_LE ? PHASE_IPV6 : PHASE_IPV4;
    for (let at = 0; at < total; at += size) {
      const length = Math.min(size, total - at);
      const slot = admit(off[frame] + esp + at, length);
      if (slot < 0) {
        drops.add(-1 - slot);
        continue;
      }
      const piece = frames.alloc(front + phase + length);
      if (piece === NO_FRAME) {
        drops.add(NO_SLOT);
        continue;
      }
      off[piece] += phase;
      for (let i = 0; i < front / 2; i++) u16[(off[piece] >>> 1) + i] = u16[(off[frame] >>> 1) + i];
      addJob(piece, off[frame] + esp + at, off[piece] + front, length, slot, front);
    }
    if (empty === emptied.length) open();
    emptied[empty++] = frame;
  }

  /** Steps 2 and 3 for the ESP packet of `length` bytes at `at`; its slot, or -1 - reason. */
  function admit(at: number, length: number): number {
    if (length < ESP_HEADER + ESP_IV + ESP_TRAILER) return -1 - UNDERSIZED;
    const slot = find(u8[at] | (u8[at + 1] << 8) | (u8[at + 2] << 16) | (u8[at + 3] << 24));
    if (slot < 0) return -1 - UNKNOWN_SPI;
    const p = slot * 4;
    if (length < ESP_HEADER + ESP_IV + ESP_TRAILER + icv[slot]) return -1 - refuse(slot, UNDERSIZED);
    if (
      source[3] !== peer[p + 3] ||
      source[2] !== peer[p + 2] ||
      source[1] !== peer[p + 1] ||
      source[0] !== peer[p]
    )
      return -1 - refuse(slot, WRONG_SOURCE);
    // Byte by byte: in a super-frame of odd pieces a packet begins anywhere.
    number[0] = (u8[at + 4] << 24) | (u8[at + 5] << 16) | (u8[at + 6] << 8) | u8[at + 7];
    // Both halves of the highest number must be of one moment.
    if (shared) acquire(lock, slot);
    const verdict = windows.complete(slot) ? windows.check(slot) : TOO_OLD;
    if (shared) release(lock, slot);
    return verdict === FRESH ? slot : -1 - refuse(slot, verdict === REPLAYED ? REPLAY : OLD);
  }

  /** Counts a refusal of an association's; returns the reason. */
  function refuse(slot: number, reason: number): number {
    if (shared) acquire(lock, slot);
    refused[slot * REFUSALS.length + REFUSAL[reason]]++;
    if (shared) release(lock, slot);
    return reason;
  }

  /** Lays out the opening of a packet at `at`, `length` bytes long, into `text`; `admit` has left its number. */
  function addJob(
    frame: number,
    at: number,
    text: number,
    length: number,
    slot: number,
    front: number,
  ): void {
    const job = waiting * GCM_JOB_WORDS;
    jobs[job] = at;
    jobs[job + 1] = at + ESP_HEADER + ESP_IV;
    jobs[job + 2] = text;
    jobs[job + 3] = length - ESP_HEADER - ESP_IV - icv[slot];
    jobs[job + 4] = slot;
    jobs[job + 5] = number[1];
    lows[waiting] = number[0];
    opening[waiting] = frame;
    fronts[waiting] = front;
    if (++waiting === BATCH_SIZE) open();
  }

  /** Steps 4 to 6 for all packets laid out. */
  function open(): void {
    const count = waiting;
    if (count > 0) {
      const failed = native.gcmOpen(jobs, count, results) !== 0;
      // Before any packet is handed on: what comes behind may take this long, and must find us empty.
      waiting = 0;
      deliver(count, failed);
    }
    for (let i = 0; i < empty; i++) frames.free(emptied[i]);
    empty = 0;
  }

  function deliver(count: number, failed: boolean): void {
    let bytes = 0;
    let passed = 0;
    for (let i = 0; i < count; i++) {
      const frame = opening[i];
      const verdict = failed ? NOT_OPENED : judge(i);
      if (verdict !== PASSED) {
        drops.drop(frame, verdict);
        continue;
      }
      const job = i * GCM_JOB_WORDS;
      const text = jobs[job + 2];
      const length = jobs[job + 3];
      restore(frame, text, length - ESP_TRAILER - u8[text + length - 2], fronts[i]);
      passed++;
      bytes += len[frame];
      out.push(frame);
    }
    values[base + FRAMES] += passed;
    values[base + BYTES] += bytes;
  }

  /** Step 5: the verdict on a packet, which its association counts. */
  function judge(i: number): number {
    const job = i * GCM_JOB_WORDS;
    const slot = jobs[job + 4];
    if (results[i] !== 1) return refuse(slot, ICV);
    const verdict = believe(jobs[job + 2], jobs[job + 3]);
    if (shared) acquire(lock, slot);
    number[0] = lows[i];
    number[1] = jobs[job + 5];
    // Whatever the trailer says, the number of an authentic packet is used up.
    const window = windows.accept(slot);
    if (window === FRESH && verdict !== BAD_TRAILER) {
      packets[slot]++;
      openedBytes[slot] += jobs[job + 3];
    }
    if (shared) release(lock, slot);
    if (window !== FRESH) return refuse(slot, window === REPLAYED ? REPLAY : OLD);
    return verdict === BAD_TRAILER ? refuse(slot, verdict) : verdict;
  }

  /** What the trailer of an authentic packet says. */
  function believe(text: number, length: number): number {
    const end = text + length;
    const padding = u8[end - 2];
    const next = u8[end - 1];
    // A dummy's content is anything, its padding too.
    if (next === NO_NEXT_HEADER) return DUMMY;
    if (next !== PROTOCOL_UDP || padding + ESP_TRAILER + UDP_HEADER > length) return BAD_TRAILER;
    for (let n = 1, at = end - ESP_TRAILER - padding; n <= padding; n++, at++)
      if (u8[at] !== (n & 0xff)) return BAD_TRAILER;
    return PASSED;
  }

  /** Step 6: the outer header goes in front of what was opened. */
  function restore(frame: number, text: number, length: number, front: number): void {
    const at = text - front;
    if (off[frame] !== at) moveFront(off[frame], at, front);
    off[frame] = at;
    len[frame] = front + length;
    offload[frame] = 0;
    const ip = (at + ETHERNET_HEADER) >>> 1;
    if (u16[ip - 1] === ETHERTYPE_IPV6_LE) {
      u16[ip + IPV6_LENGTH] = swap16(length + front - ETHERNET_HEADER - IPV6_HEADER);
      u16[ip + IPV6_NEXT_HOP] = (u16[ip + IPV6_NEXT_HOP] & 0xff00) | PROTOCOL_UDP;
      return;
    }
    // The checksum was right, so it is mended for the two words that change.
    const total = swap16(length + front - ETHERNET_HEADER);
    const protocol = (u16[ip + IPV4_TTL_PROTOCOL] & 0xff) | (PROTOCOL_UDP << 8);
    const before = (~u16[ip + IPV4_LENGTH] & 0xffff) + (~u16[ip + IPV4_TTL_PROTOCOL] & 0xffff);
    u16[ip + IPV4_CHECKSUM] = ~fold16((~u16[ip + IPV4_CHECKSUM] & 0xffff) + before + total + protocol);
    u16[ip + IPV4_LENGTH] = total;
    u16[ip + IPV4_TTL_PROTOCOL] = protocol;
  }

  /** Moves Ethernet and IP header towards higher addresses, by less than their length: so from the end. */
  function moveFront(from: number, at: number, front: number): void {
    if (((from + front) & 7) === 0 && ((at + front) & 7) === 0) {
      const source = (from + front) >>> 3;
      const target = (at + front) >>> 3;
      // The last word copied is not all ours: what it takes along falls into headroom.
      for (let i = 1; i <= (front + 7) >>> 3; i++) u64[target - i] = u64[source - i];
      return;
    }
    for (let i = front / 2 - 1; i >= 0; i--) u16[(at >>> 1) + i] = u16[(from >>> 1) + i];
  }

  return { drops, process };
}
