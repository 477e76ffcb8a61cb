/** Bursts over loopback with contents that name their sender: what one thread does of the batched calls. */
import { FrameMemory } from '../../../engine/memory/frames.js';
import { native } from '../../../native-bindings/index.js';
import { ethernet, ipv4, payload, slowSum, udp } from '../../support/frames.js';

/** @returns 'sound', or what was not. */
export function burst(seed: number): string {
  const memory = new FrameMemory({ small: 128, large: 128 });
  native.attach(memory.u8, memory.off, memory.len, memory.freeLarge);
  const open = (): { fd: number; port: number } => {
    for (let port = 21000 + (process.pid % 9000) + seed * 101; ; port++) {
      try {
        return { fd: native.udpOpen({ address: '127.0.0.1', port, ttl: 1, gro: false }), port };
      } catch (error) {
        if ((error as { code?: string }).code !== 'EADDRINUSE') throw error;
      }
    }
  };
  const { fd, port } = open();
  const addresses = new Uint8Array(16 * 64);
  const meta = new Uint32Array(4 * 64);
  const failures = new Uint32Array(5);
  let verdict = 'sound';
  for (let round = 0; round < 300 && verdict === 'sound'; round++) {
    const contents = Array.from({ length: 40 }, (_, i) =>
      payload(100 + (i >>> 2) * 50, seed * 64 + round + i),
    );
    const frames = Uint32Array.from(contents, (content) => {
      const bytes = ethernet(
        { type: 0x0800 },
        ipv4({ source: '127.0.0.1', destination: '127.0.0.1' }, udp(1, port, content)),
      );
      const frame = memory.allocSmall();
      memory.u8.set(bytes, memory.off[frame]);
      memory.len[frame] = bytes.length;
      return frame;
    });
    if (native.udpSend(fd, 0, frames, 40, round & 1, failures) !== 40) verdict = `failures ${failures}`;
    for (const frame of frames) memory.free(frame);
    const got = native.udpReceive(fd, memory.freeLargeCount, 64, 0, 2000, addresses, meta);
    if (got !== 40) verdict = `${got} of 40 datagrams`;
    for (let i = 0; i < got; i++) {
      const slot = memory.freeLarge[memory.freeLargeCount - 1 - i];
      const bytes = memory.u8.slice(memory.off[slot], memory.off[slot] + memory.len[slot]);
      if (!bytes.every((byte, at) => byte === contents[i][at]))
        verdict = `datagram ${i} of round ${round} is another`;
      if (native.checksum(memory.off[slot], bytes.length, 0) !== slowSum(bytes)) verdict = 'a wrong checksum';
    }
  }
  native.close(fd);
  return verdict;
}
