/**
 * Reading capture files: bytes in, an index out. Knows pcap and pcapng by their magic numbers; opening paths and
 * decompression belong to whoever calls.
 */
import { type Capture, CaptureError } from './capture.js';
import { isPcap, readPcap } from './pcap.js';
import { isPcapng, readPcapng } from './pcapng.js';

/** Formats that are recognised so that the message can say what to do. Magic read big-endian. */
const FOREIGN: ReadonlyMap<number, readonly [string, string]> = new Map<number, readonly [string, string]>([
  [0x736e6f6f, ['a snoop capture, which Weft does not read', 'convert it with editcap -F pcapng FILE NEW']],
  [0x28b52ffd, ['compressed with zstd', 'decompress it first with zstd -d']],
  [0xfd377a58, ['compressed with xz', 'decompress it first with unxz']],
  [0x425a6839, ['compressed with bzip2', 'decompress it first with bunzip2']],
]);

/**
 * Indexes a capture. The result refers to `bytes`, which must not change while it is in use.
 * Damage ends the index early or leaves packets out, and is listed in `problems`.
 * @param name what messages call the file.
 * @throws CaptureError when nothing can be read: empty, of an unknown format, or its header is cut.
 */
export function readCapture(bytes: Uint8Array, name = 'capture'): Capture {
  if (bytes.length === 0) throw new CaptureError(name, 0, 'the file is empty', 'capture or copy it again');
  if (bytes.length > 0xffffffff) {
    throw new CaptureError(name, 0, 'the file is larger than 4 GiB', 'split it with editcap -c');
  }
  if (bytes.length < 4) {
    const fault = `the file ends within its magic number, after ${bytes.length} bytes`;
    throw new CaptureError(name, bytes.length, fault, 'capture or copy it again');
  }
  const magic = new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0);
  if (isPcap(magic)) return readPcap(bytes, name);
  if (isPcapng(magic)) return readPcapng(bytes, name);
  const foreign = FOREIGN.get(magic);
  if (foreign !== undefined) throw new CaptureError(name, 0, `this is ${foreign[0]}`, foreign[1]);
  if (magic >>> 16 === 0x1f8b) {
    throw new CaptureError(name, 0, 'this is compressed with gzip', 'decompress it first with gunzip');
  }
  const fault = `the magic number 0x${magic.toString(16).padStart(8, '0')} is neither pcap nor pcapng`;
  throw new CaptureError(
    name,
    0,
    fault,
    'check that it is a capture; editcap -F pcapng converts many formats',
  );
}
