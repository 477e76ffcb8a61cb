/** Sends through descriptor 30, a UDP-Lite socket, which takes datagrams and refuses to segment; prints what became of it. */
import { Counters, readCounters } from '../../../../engine/counters.js';
import { Batch, Context } from '../../../../engine/graph.js';
import { FrameMemory } from '../../../../engine/memory/frames.js';
import { createSocketUnderlay } from '../../../../engine/ports/underlay-socket.js';
import { native } from '../../../../native-bindings/index.js';
import { ip, payload, vxlan } from '../../../support/frames.js';

const memory = new FrameMemory({ small: 300, large: 4 });
native.attach(memory.u8, memory.off, memory.len, memory.freeLarge);
const context = new Context(memory, new Counters(), 1);
const local = { address: ip('127.0.0.1'), port: 4789, ttl: 64 };
const port = createSocketUnderlay(context, { id: 0, fd: 30, senders: [30], local, carries: 'vxlan' });

function send(count: number): void {
  const batch = new Batch(port);
  for (let i = 0; i < count; i++) {
    const bytes = vxlan({ source: '127.0.0.1', destination: '127.0.0.1' }, payload(500));
    const frame = memory.alloc(bytes.length);
    memory.off[frame] += 6;
    memory.u8.set(bytes, memory.off[frame]);
    memory.len[frame] = bytes.length;
    batch.push(frame);
  }
  batch.flush();
}

const report = () => ({
  ...readCounters(context.counters.values, context.counters.describe()),
  inUse: memory.inUse,
});
const reports = [20, 30].map((count) => {
  send(count);
  return report();
});
process.stdout.write(JSON.stringify(reports));
