/**
 * A bundle: outer UDP datagrams of equal size, of which the last may be shorter, one after another behind one outer
 * header. Kernels and cards know it as a UDP super-frame (UDP_L4 GSO), and cut it where they must.
 */
import {
  type FrameMemory,
  GSO_UDP_L4,
  LARGE_CAPACITY,
  OFFLOAD_GSO_SHIFT,
  OFFLOAD_NEEDS_CSUM,
} from '../memory/frames.js';
import { ETHERNET_HEADER, swap16 } from './ethernet.js';
import {
  fold16,
  IPV4_HEADER,
  IPV4_LENGTH,
  IPV6_HEADER,
  IPV6_LENGTH,
  PROTOCOL_UDP,
  sumWords,
  UDP_HEADER,
  writeIpv4Checksum,
} from './ip.js';

/** Most datagrams in a bundle: UDP_MAX_SEGMENTS of kernels before 6.9. */
export const MOST_DATAGRAMS = 64;
/** Most bytes of UDP payload in a bundle; with its headers it must fit the 16-bit length of IP. */
export const MOST_BYTES = Math.min(65_000, LARGE_CAPACITY - ETHERNET_HEADER - IPV6_HEADER - UDP_HEADER);

/**
 * Makes a frame with a whole outer Ethernet, IP and UDP header a bundle: lengths and IPv4 checksum set, and the UDP
 * checksum left to whoever cuts it, with the sum of the pseudo-header in its field.
 */
export type FinishBundle = (frame: number, payload: number, size: number) => void;

export function createBundleFinisher(frames: FrameMemory, v6: boolean): FinishBundle {
  const { u16, off, len, offload, gsoSize, hdrLen, csumStart, csumOffset } = frames;
  const outer = ETHERNET_HEADER + (v6 ? IPV6_HEADER : IPV4_HEADER) + UDP_HEADER;
  const ip = ETHERNET_HEADER / 2;
  const udp = (outer - UDP_HEADER) / 2;

  return (frame, payload, size) => {
    const w = off[frame] >>> 1;
    const length = swap16(payload + UDP_HEADER);
    len[frame] = outer + payload;
    if (v6) u16[w + ip + IPV6_LENGTH] = length;
    else {
      u16[w + ip + IPV4_LENGTH] = swap16(payload + UDP_HEADER + IPV4_HEADER);
      writeIpv4Checksum(u16, w + ip);
    }
    u16[w + udp + 2] = length;
    const addresses = v6 ? sumWords(u16, w + udp - 16, 16) : sumWords(u16, w + udp - 4, 4);
    u16[w + udp + 3] = fold16(addresses + (PROTOCOL_UDP << 8) + length);
    // One datagram alone has its checksum completed and nothing cut.
    offload[frame] = OFFLOAD_NEEDS_CSUM | (size < payload ? GSO_UDP_L4 << OFFLOAD_GSO_SHIFT : 0);
    gsoSize[frame] = size;
    hdrLen[frame] = outer;
    csumStart[frame] = outer - UDP_HEADER;
    csumOffset[frame] = 6;
  };
}
