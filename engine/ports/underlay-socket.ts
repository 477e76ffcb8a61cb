/**
 * The underlay over sockets: works on every kernel, needs no device. UDP for VXLAN and for encapsulated ESP, or a raw
 * socket for ESP as an IP protocol.
 *
 * Elements see whole outer packets, so what the socket delivers gets its outer header back – from the source
 * address, port and TOS that the kernel reports – and what is sent has its outer header read and left behind.
 * Sending sockets are bound to ports of the entropy range (RFC 7348, section 5) and chosen by the source port in
 * the header: a flow keeps its socket, and so its order and its path. ESP has but one port, or none, and one socket.
 *
 * Not handled here: inner super-frames and partial checksums, which `segment` in front of this port finishes.
 */
import { native } from '../../native-bindings/index.js';
import { Batch, type Context, Drops } from '../graph.js';
import { BATCH_SIZE, GSO_UDP_L4, LARGE_CAPACITY, OFFLOAD_GSO_SHIFT } from '../memory/frames.js';
import type { LocalVtep } from '../tables/vteps.js';
import { ESP_HEADER, ESP_IV, PROTOCOL_ESP } from '../wire/esp.js';
import { ETHERNET_HEADER, ETHERTYPE_IPV4_LE, ETHERTYPE_IPV6_LE, swap16 } from '../wire/ethernet.js';
import { fold16, IPV4_HEADER, IPV6_HEADER, PROTOCOL_UDP, UDP_HEADER } from '../wire/ip.js';
import { VXLAN_HEADER } from '../wire/vxlan.js';
import type { Port } from './port.js';
import { createSplitter } from './split.js';
import { countFailures } from './tap.js';

const REASONS = ['no-room', 'unreachable', 'too-big', 'not-sent', 'truncated', 'queue-full'] as const;
const TRUNCATED = 4;
const QUEUE_FULL = 5;
/** Index behind the reasons in a native send's failures: messages refused for their segmentation. */
const GSO_REFUSED = 4;
const COUNTERS = ['rx-frames', 'rx-bytes', 'tx-frames', 'tx-bytes', 'gso-refused'] as const;
const [RX_FRAMES, RX_BYTES, TX_FRAMES, TX_BYTES, GSO_REFUSALS] = COUNTERS.keys();

export interface SocketUnderlayOptions {
  readonly id: number;
  /** Socket bound to the VTEP's address and port. */
  readonly fd: number;
  /** Sockets bound to the VTEP's address and ports of the entropy range; a power of two of them. */
  readonly senders: readonly number[];
  /** Our address and the port, 0 for a raw socket. */
  readonly local: Pick<LocalVtep, 'address' | 'port'>;
  /** What is carried; of ESP, what arrived as one is handed on whole, as a UDP super-frame. */
  readonly carries: 'vxlan' | 'esp';
}

/** Bytes between the UDP or IP payload and the inner frame, which is to lie where a TAP would have put it. */
const IN_FRONT = { vxlan: VXLAN_HEADER, esp: ESP_HEADER + ESP_IV + UDP_HEADER + VXLAN_HEADER } as const;

export function createSocketUnderlay(context: Context, options: SocketUnderlayOptions): Port {
  const { frames } = context;
  const { off, len, u16, offload, gsoSize } = frames;
  const { values } = context.counters;
  const { id, fd, senders, local, carries } = options;
  if ((senders.length & (senders.length - 1)) !== 0)
    throw new RangeError('the number of senders is no power of two');
  const v6 = local.address.length === 16;
  const raw = local.port === 0;
  /** Bytes of outer Ethernet, IP and, if it is there, UDP in front of the payload. */
  const outer = ETHERNET_HEADER + (v6 ? IPV6_HEADER : IPV4_HEADER) + (raw ? 0 : UDP_HEADER);
  /** A raw IPv4 socket delivers the IP header itself. */
  const delivered = raw && !v6 ? IPV4_HEADER : 0;
  const before = IN_FRONT[carries];
  const kind = (v6 ? 1 : 0) | (raw ? 2 : 0);
  const drops = new Drops(context, `port:${id}`, REASONS);
  const block = context.counters.claim(`port:${id}`, COUNTERS);
  const { base } = block;
  const splitter = createSplitter(context, `port:${id}:split`, v6);
  const addresses = new Uint8Array(BATCH_SIZE * 16);
  const addressHalves = new Uint16Array(addresses.buffer);
  const meta = new Uint32Array(BATCH_SIZE * 4);
  const overflow = new Uint32Array(1);
  const failures = new Uint32Array(5);
  const received = new Uint32Array(BATCH_SIZE);
  const template = receivedHeader(local);
  const templateSum = templateChecksum(template);
  const perSender = senders.map((sender) => new Batch({ process: (batch) => sendOn(sender, batch) }));
  let gso = 1;

  function receive(to: Batch): number {
    const free = frames.freeLargeCount;
    const room = Math.min(BATCH_SIZE, free);
    const lead = before + delivered;
    const count = native.udpReceive(fd, free, room, lead, LARGE_CAPACITY, addresses, meta);
    if (count <= 0) return 0;
    let bytes = 0;
    let datagrams = 0;
    // All of them before anything else may take a slot: splitting does.
    for (let i = 0; i < count; i++) received[i] = frames.takeLarge();
    for (let i = 0; i < count; i++) {
      const frame = received[i];
      const payload = len[frame] - delivered;
      off[frame] -= before + outer;
      len[frame] = Math.max(payload, 0) + outer;
      if ((meta[i * 4 + 3] & 1) !== 0) {
        drops.drop(frame, TRUNCATED);
        continue;
      }
      writeReceived(off[frame] >>> 1, i, payload);
      bytes += payload + outer;
      const size = meta[i * 4 + 2];
      if (size !== 0 && size < payload) {
        if (carries === 'vxlan') {
          datagrams += splitter.split(frame, size, to);
          continue;
        }
        offload[frame] = GSO_UDP_L4 << OFFLOAD_GSO_SHIFT;
        gsoSize[frame] = size;
        datagrams += Math.ceil(payload / size);
      } else datagrams++;
      to.push(frame);
    }
    countOverflow(meta[count * 4 - 1] >>> 1);
    values[base + RX_FRAMES] += datagrams;
    values[base + RX_BYTES] += bytes;
    return count;
  }

  /** What the kernel dropped because we were too slow, as its running count of 31 bits. */
  function countOverflow(total: number): void {
    if (total === overflow[0]) return;
    drops.add(QUEUE_FULL, (total - overflow[0]) & 0x7fffffff);
    overflow[0] = total;
  }

  /** Writes the outer header of the `i`th datagram received: what the kernel took off and reported. */
  function writeReceived(w: number, i: number, payload: number): void {
    const tos = meta[i * 4 + 1];
    // Of a header that was delivered only Ethernet is missing.
    const missing = delivered === 0 ? outer : ETHERNET_HEADER;
    for (let j = 0; j < missing / 2; j++) u16[w + j] = template[j];
    if (delivered !== 0) return;
    const ip = w + ETHERNET_HEADER / 2;
    const udp = w + outer / 2 - UDP_HEADER / 2;
    const length = swap16(payload + (raw ? 0 : UDP_HEADER));
    const from = i * 8;
    if (v6) {
      // Traffic class: high nibble in the low bits of byte 0, low nibble in the high bits of byte 1.
      u16[ip] = 0x60 | (tos >>> 4) | ((tos & 15) << 12);
      u16[ip + 2] = length;
      for (let j = 0; j < 8; j++) u16[ip + 4 + j] = addressHalves[from + j];
    } else {
      const total = swap16(payload + 28);
      u16[ip] |= tos << 8;
      u16[ip + 1] = total;
      u16[ip + 6] = addressHalves[from];
      u16[ip + 7] = addressHalves[from + 1];
      u16[ip + 5] = ~fold16(templateSum + (tos << 8) + total + addressHalves[from] + addressHalves[from + 1]);
    }
    if (raw) return;
    u16[udp] = swap16(meta[i * 4]);
    u16[udp + 2] = length;
  }

  function process(batch: Batch): void {
    const { frames: ids, count } = batch;
    if (senders.length === 1) {
      sendOn(senders[0], batch);
      return;
    }
    const mask = perSender.length - 1;
    for (let k = 0; k < count; k++) {
      const frame = ids[k];
      const port = swap16(u16[(off[frame] + outer - UDP_HEADER) >>> 1]);
      perSender[port & mask].push(frame);
    }
    for (let i = 0; i < perSender.length; i++) perSender[i].flush();
  }

  function sendOn(sender: number, batch: Batch): void {
    const { frames: ids, count } = batch;
    let bytes = 0;
    for (let k = 0; k < count; k++) bytes += len[ids[k]];
    const sent = native.udpSend(sender, kind, ids, count, gso, failures);
    for (let k = 0; k < count; k++) frames.free(ids[k]);
    values[base + TX_FRAMES] += sent;
    values[base + TX_BYTES] += bytes;
    if (failures[GSO_REFUSED] !== 0) {
      // The way out cannot segment; asking again for every batch would cost a call each.
      values[base + GSO_REFUSALS] += failures[GSO_REFUSED];
      failures[GSO_REFUSED] = 0;
      gso = 0;
    }
    if (sent !== count) countFailures(drops, failures);
  }

  function close(): void {
    drops.release();
    splitter.close();
    context.counters.release(block);
  }

  return { id, fd, receive, process, close };
}

/** The outer header that received packets get, in halves: lengths, source, TOS and checksum still zero. */
function receivedHeader(local: SocketUnderlayOptions['local']): Uint16Array {
  const v6 = local.address.length === 16;
  const udp = ETHERNET_HEADER + (v6 ? IPV6_HEADER : IPV4_HEADER);
  const bytes = new Uint8Array(udp + UDP_HEADER);
  const halves = new Uint16Array(bytes.buffer);
  halves[6] = v6 ? ETHERTYPE_IPV6_LE : ETHERTYPE_IPV4_LE;
  const ip = ETHERNET_HEADER;
  bytes[ip] = v6 ? 0x60 : 0x45;
  bytes[ip + (v6 ? 6 : 9)] = local.port === 0 ? PROTOCOL_ESP : PROTOCOL_UDP;
  bytes[ip + (v6 ? 7 : 8)] = 64;
  bytes.set(local.address, ip + (v6 ? 24 : 16));
  bytes[udp + 2] = local.port >>> 8;
  bytes[udp + 3] = local.port;
  return halves;
}

function templateChecksum(template: Uint16Array): number {
  let sum = 0;
  for (let i = ETHERNET_HEADER / 2; i < (ETHERNET_HEADER + 20) / 2; i++) sum += template[i];
  return fold16(sum);
}
