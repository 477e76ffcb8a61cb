/**
 * Classic pcap (draft-ietf-opsawg-pcap): a 24-byte header, then records of a 16-byte header and the packet.
 * Both byte orders, micro- and nanoseconds, and Kuznetzov's modified form.
 *
 * A damaged record header ends the reading: pcap has no framing by which to find the next record, and guessing
 * would invent packets. Not handled: the further vendor forms that share a magic number (Nokia, AIX, IXIA).
 */
import { type Capture, CaptureBuilder, CaptureError, type CaptureFormat } from './capture.js';
import { LINKTYPE_DBUS, LINKTYPE_EBHSCR, LINKTYPE_USBPCAP } from './linktype.js';

const HEADER_LENGTH = 24;

interface Variant {
  readonly little: boolean;
  readonly format: CaptureFormat;
  readonly unitsPerSecond: number;
  /** Bytes of a record header. */
  readonly recordHeader: number;
}

/** By the first four bytes of the file, read big-endian. */
const VARIANTS: ReadonlyMap<number, Variant> = new Map<number, Variant>([
  [0xa1b2c3d4, { little: false, format: 'pcap-be-us', unitsPerSecond: 1e6, recordHeader: 16 }],
  [0xd4c3b2a1, { little: true, format: 'pcap-le-us', unitsPerSecond: 1e6, recordHeader: 16 }],
  [0xa1b23c4d, { little: false, format: 'pcap-be-ns', unitsPerSecond: 1e9, recordHeader: 16 }],
  [0x4d3cb2a1, { little: true, format: 'pcap-le-ns', unitsPerSecond: 1e9, recordHeader: 16 }],
  [0xa1b2cd34, { little: false, format: 'pcap-be-us-modified', unitsPerSecond: 1e6, recordHeader: 24 }],
  [0x34cdb2a1, { little: true, format: 'pcap-le-us-modified', unitsPerSecond: 1e6, recordHeader: 24 }],
]);

/** Whether `readPcap` reads a file whose first four bytes, read big-endian, are `magic`. */
export function isPcap(magic: number): boolean {
  return VARIANTS.has(magic);
}

/** Longest packet that is believed, in bytes; the limits of libpcap (max_snaplen_for_dlt). */
function longestPacket(linkType: number): number {
  const long = linkType === LINKTYPE_DBUS || linkType === LINKTYPE_USBPCAP || linkType === LINKTYPE_EBHSCR;
  return long ? 128 * 1024 * 1024 : 262_144;
}

/** Indexes a pcap file whose magic number `isPcap` knows. @throws CaptureError when its header is unusable. */
export function readPcap(bytes: Uint8Array, name: string): Capture {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const variant = VARIANTS.get(view.getUint32(0));
  if (variant === undefined) {
    throw new CaptureError(name, 0, 'this is not a pcap file', 'check that it is a capture');
  }
  const { little } = variant;
  if (bytes.length < HEADER_LENGTH) {
    const fault = `the pcap header is cut: ${bytes.length} of ${HEADER_LENGTH} bytes`;
    throw new CaptureError(name, bytes.length, fault, 'capture or copy the file again');
  }
  const major = view.getUint16(4, little);
  const minor = view.getUint16(6, little);
  if (major !== 2 || minor > 4) {
    const fault = `pcap version ${major}.${minor} is not known`;
    throw new CaptureError(name, 4, fault, 'Weft reads 2.0 to 2.4; convert the file with editcap -F pcapng');
  }
  // Bits 0–15 are the link type; bit 26 says that bits 28–31 count the frame check sequence in 16-bit words.
  const link = view.getUint32(20, little);
  const linkType = link & 0xffff;
  const capture = new CaptureBuilder(bytes, name);
  capture.interfaces.push({
    linkType,
    snaplen: view.getUint32(16, little),
    tsUnitsPerSecond: variant.unitsPerSecond,
    tsOffsetSeconds: 0,
    fcsLength: (link & 0x04000000) !== 0 ? (link >>> 28) * 2 : 0,
  });
  indexRecords(capture, view, variant, minor, longestPacket(linkType));
  return capture.finish(variant.format);
}

function indexRecords(
  capture: CaptureBuilder,
  view: DataView,
  variant: Variant,
  minor: number,
  longest: number,
): void {
  const { little, recordHeader, unitsPerSecond } = variant;
  const end = view.byteLength;
  const nanosecondsPerUnit = 1e9 / unitsPerSecond;
  let at = HEADER_LENGTH;
  while (at < end) {
    if (end - at < recordHeader) {
      capture.problem(at, `the last record header is cut: ${end - at} of ${recordHeader} bytes`);
      return;
    }
    let captured = view.getUint32(at + 8, little);
    let original = view.getUint32(at + 12, little);
    // Before 2.3 the two lengths stood in the other order, and 2.3 was written both ways (libpcap, sf-pcap.c).
    if (minor < 3 || (minor === 3 && captured > original)) {
      const swap = captured;
      captured = original;
      original = swap;
    }
    if (captured > longest) {
      const fault = `a record says it holds ${captured} bytes, more than any packet (${longest})`;
      capture.problem(at, `${fault}; nothing after it can be read`);
      return;
    }
    const packet = at + recordHeader;
    if (captured > end - packet) {
      capture.problem(at, `the last record is cut: ${end - packet} of ${captured} bytes`);
      return;
    }
    // A fraction of a second or more occurs in the wild; it carries.
    const fraction = view.getUint32(at + 4, little);
    const carry = Math.floor(fraction / unitsPerSecond);
    const nanoseconds = (fraction - carry * unitsPerSecond) * nanosecondsPerUnit;
    capture.add(packet, captured, original, view.getUint32(at, little) + carry, nanoseconds, 0);
    at = packet + captured;
  }
}
