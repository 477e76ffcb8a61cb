/** A TAP as a port: two of them on a kernel bridge, so that what one writes the other reads. */
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { Lab, type Namespace, waitFor } from '../../../cli/lab.js';
import { Batch } from '../../../engine/graph.js';
import {
  FrameMemory,
  GSO_TCPV4,
  GSO_TCPV6,
  GSO_UDP_L4,
  OFFLOAD_GSO_SHIFT,
  OFFLOAD_NEEDS_CSUM,
} from '../../../engine/memory/frames.js';
import { createTapPort, readVnet, VNET_HEADER, writeVnet } from '../../../engine/ports/tap.js';
import { native } from '../../../native-bindings/index.js';
import { ethernet, mac, payload, Rig, udpFrame } from '../../support/frames.js';
import { ACK, build, headerLength, l4Offset, PSH, spec } from '../../support/gso.js';

const reason = Lab.unavailable();

function live(title: string, body: (t: ExecutionContext, lab: Lab) => Promise<void>): void {
  if (reason) return void test.skip(`${title} [skipped: ${reason}]`, () => {});
  test.serial(title, async (t) => {
    const lab = Lab.create();
    t.teardown(() => lab.close());
    await body(t, lab);
  });
}

const OURS = mac('02:42:0a:00:09:01');
const isOurs = (bytes: Uint8Array): boolean => OURS.every((byte, i) => bytes[6 + i] === byte);

/** Ports 1 and 2 on a bridge of the kernel's, MTU 9000, in domains 7 and 8. */
async function bridged(t: ExecutionContext, lab: Lab) {
  const rig = new Rig(new FrameMemory({ small: 64, large: 64 }));
  const host: Namespace = lab.host('taps');
  host.ip('link', 'add', 'br0', 'type', 'bridge', 'mcast_snooping', '0');
  const ports = [1, 2].map((id) => {
    const tap = native.tapOpen({ name: `t${id}`, netns: host.path, persist: false, tunnel: false });
    t.teardown(() => native.close(tap.fd));
    host.ip('link', 'set', `t${id}`, 'master', 'br0');
    return createTapPort(rig.context, { id, fd: tap.fd, domain: 6 + id });
  });
  for (const name of ['t1', 't2', 'br0'])
    host.ip('link', 'set', name, 'mtu', '9000', 'addrgenmode', 'none', 'up');
  const ready = (): boolean => !host.ip('link', 'show', 'master', 'br0').includes('qdisc noop');
  const forwarding = (): boolean => host.bridge('link').match(/state forwarding/g)?.length === 2;
  await waitFor(() => ready() && forwarding(), { what: 'the bridge to forward' });
  const sink = rig.sink();
  const input = new Batch(sink);
  return {
    ...{ rig, host, ports, sink },
    counter: (id: number, name: string) => rig.counter(`port:${id}`, name),
    drops: (id: number, name: string) => rig.counter(`port:${id}:drops`, name),
    send: (id: number, ...frames: number[]) => rig.feed(ports[id - 1], ...frames),
    /** Receives at a port until `count` frames of ours came. */
    async receive(id: number, count: number) {
      const got: (typeof sink.caught)[number][] = [];
      await waitFor(
        () => {
          ports[id - 1].receive(input);
          input.flush();
          got.push(...sink.caught.splice(0).filter(({ bytes }) => isOurs(bytes)));
          return got.length >= count;
        },
        { what: `${count} frames at port ${id}` },
      );
      return got;
    },
  };
}

test('a vnet header is read as it was written', (t) => {
  const memory = new FrameMemory({ small: 2, large: 1 });
  const word = fc.nat(0xffff);
  fc.assert(
    fc.property(
      fc.constantFrom(0, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_TCPV4 | 0x80),
      fc.boolean(),
      word,
      word,
      word,
      word,
      (type, needs, hdrLen, gsoSize, csumStart, csumOffset) => {
        const [a, b] = [0, 1];
        memory.offload[a] = (type << OFFLOAD_GSO_SHIFT) | (needs ? OFFLOAD_NEEDS_CSUM : 0) | 0x320000;
        memory.hdrLen[a] = hdrLen;
        memory.gsoSize[a] = gsoSize;
        memory.csumStart[a] = csumStart;
        memory.csumOffset[a] = csumOffset;
        memory.u8.fill(0xee, memory.off[b] - VNET_HEADER, memory.off[b]);
        writeVnet(memory, a, memory.off[b] - VNET_HEADER);
        memory.offload[b] = 0;
        readVnet(memory, b, memory.off[b] - VNET_HEADER);
        t.is(memory.offload[b], memory.offload[a] & 0xffff);
        if (memory.offload[b] === 0) return;
        t.is(memory.csumStart[b], csumStart);
        t.is(memory.csumOffset[b], csumOffset);
        t.is(memory.hdrLen[b], type === 0 ? 0 : hdrLen);
        t.is(memory.gsoSize[b], type === 0 ? 0 : gsoSize);
      },
    ),
  );
});

test('an ordinary frame is written with twelve zero bytes, whatever was there', (t) => {
  const memory = new FrameMemory({ small: 1, large: 1 });
  const at = memory.off[0] - VNET_HEADER;
  memory.u8.fill(0xee, at, memory.off[0]);
  memory.offload[0] = 0;
  memory.csumStart[0] = 99;
  writeVnet(memory, 0, at);
  t.deepEqual([...memory.u8.slice(at, memory.off[0])], Array(12).fill(0));
});

live(
  'frames of all sizes cross, with ingress and domain set, counted, and no slot is kept',
  async (t, lab) => {
    const { rig, send, receive, counter } = await bridged(t, lab);
    const frames = [14, 60, 61, 1514, 9014].map((size) => ethernet({ from: OURS }, payload(size - 14)));
    send(1, ...frames.map((bytes) => rig.put(bytes)));
    const got = await receive(2, frames.length);
    t.deepEqual(
      got.map(({ bytes }) => bytes),
      frames,
    );
    for (const { ingress, domain, offload, off } of got)
      t.deepEqual([ingress, domain, offload, off % 8], [2, 8, 0, 0]);
    t.is(counter(1, 'tx-frames'), frames.length);
    t.is(
      counter(1, 'tx-bytes'),
      frames.reduce((sum, { length }) => sum + length, 0),
    );
    t.is(counter(1, 'tx-super'), 0);
    t.is(counter(2, 'rx-super'), 0);
    t.true(counter(2, 'rx-frames') >= frames.length);
    rig.finish(t);
  },
);

live('super-frames and partial checksums cross as they are', async (t, lab) => {
  const { rig, send, receive, counter } = await bridged(t, lab);
  for (const v6 of [false, true]) {
    for (const udp of [false, true]) {
      const of = spec({ v6, udp, flags: ACK | PSH, payload: payload(30_001) });
      const type = udp ? GSO_UDP_L4 : v6 ? GSO_TCPV6 : GSO_TCPV4;
      const wanted = {
        offload: (type << OFFLOAD_GSO_SHIFT) | OFFLOAD_NEEDS_CSUM,
        gsoSize: 1400,
        csumStart: l4Offset(of),
        csumOffset: udp ? 6 : 16,
      };
      const bytes = build(of, true);
      send(1, rig.put(bytes, { ...wanted, hdrLen: headerLength(of) }));
      const [got] = await receive(2, 1);
      t.like(got, wanted);
      t.deepEqual(got.bytes, bytes);
      t.true(got.hdrLen >= headerLength(of));
    }
  }
  t.is(counter(1, 'tx-super'), 4);
  t.is(counter(2, 'rx-super'), 4);
  const small = spec({ payload: payload(100) });
  send(1, rig.put(build(small, true), { offload: OFFLOAD_NEEDS_CSUM, csumStart: 34, csumOffset: 16 }));
  const [got] = await receive(2, 1);
  t.like(got, { offload: OFFLOAD_NEEDS_CSUM, csumStart: 34, csumOffset: 16 });
  rig.finish(t);
});

live('what the kernel refuses is counted by reason: interface down, header without sense', async (t, lab) => {
  const { rig, host, send, drops, counter } = await bridged(t, lab);
  const bytes = udpFrame(1);
  // A super-frame whose checksum begins behind its end.
  send(
    1,
    rig.put(bytes, { offload: 0x101, gsoSize: 1400, hdrLen: 54, csumStart: 5000, csumOffset: 16 }),
    rig.put(bytes),
  );
  t.is(drops(1, 'bad-header'), 1);
  t.is(counter(1, 'tx-frames'), 1, 'the frame behind it goes');
  host.ip('link', 'set', 't1', 'down');
  send(1, rig.put(bytes), rig.put(bytes));
  t.is(drops(1, 'interface-down'), 2);
  t.is(counter(1, 'tx-frames'), 1);
  rig.finish(t);
});

live('without a free slot nothing is read, and nothing is lost that the kernel can keep', async (t, lab) => {
  const { rig, ports, send, receive } = await bridged(t, lab);
  const { memory } = rig;
  const frame = ethernet({ from: OURS }, payload(100));
  send(1, rig.put(frame));
  const held: number[] = [];
  while (memory.freeLargeCount > 0) held.push(memory.allocLarge());
  t.is(ports[1].receive(new Batch(rig.sink())), 0);
  for (const slot of held) memory.free(slot);
  t.deepEqual((await receive(2, 1))[0].bytes, frame);
  rig.finish(t);
});

live('a device that is gone is told by a negative count', async (t, lab) => {
  const { rig, host, ports } = await bridged(t, lab);
  host.ip('link', 'delete', 't2');
  t.true(ports[1].receive(new Batch(rig.sink())) < 0);
  rig.finish(t);
});

live('a closed port gives its counters back', async (t, lab) => {
  const { rig, ports } = await bridged(t, lab);
  const before = rig.context.counters.describe().length;
  ports[0].close();
  t.is(rig.context.counters.describe().length, before - 2);
  rig.finish(t);
});
