/** Runs inside a namespace whose one link has an MTU of 1,300: sends, and prints what became of it. */
import { FrameMemory } from '../../../engine/memory/frames.js';
import { native } from '../../../native-bindings/index.js';
import { ethernet, ipv4, ipv6, payload, udp } from '../../support/frames.js';

const memory = new FrameMemory({ small: 16, large: 4 });
native.attach(memory.u8, memory.off, memory.len, memory.freeLarge);

function attempt(
  name: string,
  v6: boolean,
  destinations: readonly string[],
  sizes: readonly number[],
  gso: number,
): object {
  const source = v6 ? '2001:db8::1' : '192.0.2.1';
  const fd = native.udpOpen({ address: source, port: 0, ttl: 64, gro: false });
  const frames = Uint32Array.from(sizes, (size, i) => {
    const destination = destinations[i % destinations.length];
    const datagram = udp(1, 4789, payload(size));
    const outer = v6
      ? ethernet({ type: 0x86dd }, ipv6({ source, destination }, datagram))
      : ethernet({ type: 0x0800 }, ipv4({ source, destination }, datagram));
    const frame = memory.alloc(outer.length);
    memory.u8.set(outer, memory.off[frame]);
    memory.len[frame] = outer.length;
    return frame;
  });
  const failures = new Uint32Array(5);
  const sent = native.udpSend(fd, v6 ? 1 : 0, frames, frames.length, gso, failures);
  for (const frame of frames) memory.free(frame);
  native.close(fd);
  return { name, sent, failures: [...failures] };
}

const results = [false, true].flatMap((v6) => {
  const fits = 1300 - (v6 ? 48 : 28);
  const sizes = [fits, fits + 1, fits + 1, fits];
  const over = v6 ? 'IPv6' : 'IPv4';
  const [near, far] = v6 ? ['2001:db8::2', '2001:db8:1::1'] : ['192.0.2.2', '198.51.100.1'];
  return [
    attempt(`${over}, too big`, v6, [near], sizes, 0),
    attempt(`${over}, too big with segmentation`, v6, [near], sizes, 1),
    attempt(`${over}, no route`, v6, [near, far, near], [100, 100, 100], 1),
  ];
});
process.stdout.write(JSON.stringify(results));
