/** The uplink TAP as a port: two of them on a kernel bridge, so that what one writes the other reads. */
import test, { type ExecutionContext } from 'ava';
import { Lab, waitFor } from '../../../cli/lab.js';
import { Batch } from '../../../engine/graph.js';
import {
  FrameMemory,
  GSO_TCPV4,
  GSO_TCPV6,
  GSO_UDP_L4,
  OFFLOAD_GSO_SHIFT,
  OFFLOAD_NEEDS_CSUM,
  OFFLOAD_OUTER_SHIFT,
} from '../../../engine/memory/frames.js';
import { createUplinkTap } from '../../../engine/ports/uplink-tap.js';
import { native } from '../../../native-bindings/index.js';
import { Rig } from '../../support/frames.js';
import {
  ACK,
  build,
  encapsulate,
  headerLength,
  l4Offset,
  PSH,
  payload,
  type Spec,
  spec,
} from '../../support/gso.js';

/** Why this kernel has no such device, or undefined when it has. */
function missing(): string | undefined {
  const reason = Lab.unavailable();
  if (reason) return reason;
  const lab = Lab.create();
  try {
    const tap = native.tapOpen({ name: '', netns: lab.host('probe').path, persist: false, tunnel: true });
    native.close(tap.fd);
    return tap.vnet === 24 ? undefined : 'this kernel does not segment UDP tunnels on TAPs';
  } finally {
    lab.close();
  }
}

const reason = missing();

function live(title: string, body: (t: ExecutionContext, lab: Lab) => Promise<void>): void {
  if (reason) return void test.skip(`${title} [skipped: ${reason}]`, () => {});
  test.serial(title, async (t) => {
    const lab = Lab.create();
    t.teardown(() => lab.close());
    await body(t, lab);
  });
}

const OUTER = { v4: 50, v6: 70 };

/** Ports 1 and 2, MTU 1500, on a bridge of the kernel's, whose own MTU is larger. */
async function bridged(t: ExecutionContext, lab: Lab, v6: boolean) {
  const rig = new Rig(new FrameMemory({ small: 128, large: 64 }));
  const host = lab.host('taps');
  host.ip('link', 'add', 'br0', 'type', 'bridge', 'mcast_snooping', '0');
  const ports = [1, 2].map((id) => {
    const tap = native.tapOpen({ name: `t${id}`, netns: host.path, persist: false, tunnel: true });
    t.teardown(() => native.close(tap.fd));
    host.ip('link', 'set', `t${id}`, 'master', 'br0');
    return createUplinkTap(rig.context, { id, fd: tap.fd, v6, mtu: new Uint32Array([1500]) });
  });
  for (const name of ['t1', 't2', 'br0'])
    host.ip('link', 'set', name, 'mtu', '9000', 'addrgenmode', 'none', 'up');
  const ready = (): boolean => !host.ip('link', 'show', 'master', 'br0').includes('qdisc noop');
  const forwarding = (): boolean => host.bridge('link').match(/state forwarding/g)?.length === 2;
  await waitFor(() => ready() && forwarding(), { what: 'the bridge to forward' });
  const sink = rig.sink();
  const input = new Batch(sink);
  return {
    ...{ rig, ports },
    counter: (id: number, name: string) => rig.counter(`port:${id}`, name),
    drops: (id: number, name: string) => rig.counter(`port:${id}:drops`, name),
    send: (...frames: number[]) => rig.feed(ports[0], ...frames),
    async receive(count: number) {
      const got: (typeof sink.caught)[number][] = [];
      await waitFor(
        () => {
          ports[1].receive(input);
          input.flush();
          got.push(...sink.caught.splice(0).filter(({ bytes }) => bytes[0] === 2 && bytes[1] === 0x42));
          return got.length >= count;
        },
        { what: `${count} frames` },
      );
      return got;
    },
  };
}

const nested = (of: Spec, v6: boolean, partial: boolean): Uint8Array =>
  encapsulate(build(of, partial), { v6, checksum: v6 && !partial });

for (const v6 of [false, true]) {
  const outer = v6 ? OUTER.v6 : OUTER.v4;
  const over = `over IPv${v6 ? 6 : 4}`;

  live(
    `finished packets cross ${over}, the inner frame where a container's TAP would have put it`,
    async (t, lab) => {
      const { rig, send, receive, counter } = await bridged(t, lab, v6);
      const packets = [0, 1, 50, 51, 1380].map((size) => nested(spec({ payload: payload(size) }), v6, false));
      send(...packets.map((bytes) => rig.put(bytes, { alignment: 6 })));
      const got = await receive(packets.length);
      t.deepEqual(
        got.map(({ bytes }) => bytes),
        packets,
      );
      for (const { off, offload } of got) {
        t.is((off + outer) % 8, 0);
        t.is(offload, 0);
      }
      t.is(counter(1, 'tx-frames'), packets.length);
      t.is(counter(1, 'tx-super'), 0);
      t.is(counter(2, 'rx-super'), 0);
      rig.finish(t);
    },
  );

  live(`super-frames cross ${over} whole, with what is left to be done`, async (t, lab) => {
    const { rig, send, receive, counter } = await bridged(t, lab, v6);
    let count = 0;
    for (const inner6 of [false, true]) {
      for (const udp of [false, true]) {
        for (const tags of [[], [[0x8100, 7]]] as [number, number][][]) {
          const of = spec({ v6: inner6, udp, tags, flags: ACK | PSH, payload: payload(20_001) });
          const type = udp ? GSO_UDP_L4 : inner6 ? GSO_TCPV6 : GSO_TCPV4;
          const wanted = {
            offload: (type << OFFLOAD_GSO_SHIFT) | OFFLOAD_NEEDS_CSUM | (outer << OFFLOAD_OUTER_SHIFT),
            gsoSize: 1300,
            csumStart: outer + l4Offset(of),
            csumOffset: udp ? 6 : 16,
          };
          const bytes = nested(of, v6, true);
          send(rig.put(bytes, { ...wanted, hdrLen: outer + headerLength(of), alignment: 6 }));
          const [got] = await receive(1);
          count++;
          t.like(got, wanted);
          t.is(got.bytes.length, bytes.length);
          t.deepEqual(got.bytes.subarray(outer), bytes.subarray(outer), 'the inner frame');
          t.deepEqual(got.bytes.subarray(0, outer - 10), bytes.subarray(0, outer - 10), 'outer headers');
        }
      }
    }
    t.is(counter(1, 'tx-super'), count);
    t.is(counter(2, 'rx-super'), count);
    rig.finish(t);
  });

  live(`a partial inner checksum crosses ${over}`, async (t, lab) => {
    const { rig, send, receive } = await bridged(t, lab, v6);
    const of = spec({ payload: payload(333) });
    const bytes = nested(of, v6, true);
    const left = { offload: OFFLOAD_NEEDS_CSUM, csumStart: outer + l4Offset(of), csumOffset: 16 };
    send(rig.put(bytes, { ...left, offload: left.offload | (outer << OFFLOAD_OUTER_SHIFT), alignment: 6 }));
    const [got] = await receive(1);
    t.like(got, { ...left, offload: left.offload | (outer << OFFLOAD_OUTER_SHIFT) });
    t.deepEqual(got.bytes.subarray(outer), bytes.subarray(outer));
    rig.finish(t);
  });

  live(
    `longer than the MTU ${over}: dropped as too-big, whole or in segments; what just fits goes`,
    async (t, lab) => {
      const { rig, send, receive, drops, counter } = await bridged(t, lab, v6);
      const inner = 1500 + 14 - outer;
      const fits = spec({ payload: payload(inner - headerLength(spec())) });
      const larger = spec({ payload: payload(inner - headerLength(spec()) + 1) });
      send(
        rig.put(nested(larger, v6, false), { alignment: 6 }),
        rig.put(nested(fits, v6, false), { alignment: 6 }),
      );
      t.is((await receive(1))[0].bytes.length, 1514);
      t.is(drops(1, 'too-big'), 1);
      for (const udp of [false, true]) {
        const of = spec({ udp, payload: payload(9000) });
        const most = inner - headerLength(of);
        const type = udp ? GSO_UDP_L4 : GSO_TCPV4;
        const metadata = {
          offload: (type << OFFLOAD_GSO_SHIFT) | OFFLOAD_NEEDS_CSUM | (outer << OFFLOAD_OUTER_SHIFT),
          ...{ csumStart: outer + l4Offset(of), csumOffset: udp ? 6 : 16, alignment: 6 },
        };
        const before = drops(1, 'too-big');
        // Whatever the header length says: it is a hint.
        send(rig.put(nested(of, v6, true), { ...metadata, gsoSize: most + 1, hdrLen: 0 }));
        t.is(drops(1, 'too-big'), before + 1, 'one byte too many');
        send(rig.put(nested(of, v6, true), { ...metadata, gsoSize: most, hdrLen: outer + headerLength(of) }));
        t.is(drops(1, 'too-big'), before + 1);
        t.is((await receive(1))[0].gsoSize, most);
      }
      t.is(counter(1, 'tx-frames'), 3);
      rig.finish(t);
    },
  );

  live(`outer datagrams laid one after another ${over} are taken apart`, async (t, lab) => {
    const { rig, ports, receive, counter } = await bridged(t, lab, v6);
    // As a peer's socket sends them with UDP_SEGMENT: a super-frame of plain UDP, nothing said of a tunnel.
    const inner = build(spec({ payload: payload(101) }));
    const vxlan = Uint8Array.of(8, 0, 0, 0, 0, 0, 42, 0, ...inner);
    const most = 5;
    const last = vxlan.subarray(0, 90);
    const shell = spec({ v6, udp: true, ports: [51234, 4789], payload: payload(0) });
    shell.payload = Uint8Array.from([...Array.from({ length: most }, () => [...vxlan]).flat(), ...last]);
    const offload = (GSO_UDP_L4 << OFFLOAD_GSO_SHIFT) | OFFLOAD_NEEDS_CSUM;
    const csumStart = l4Offset(shell);
    // This port writes tunnels; a plain super-frame is written as a container's port does, behind the same header.
    const frame = rig.put(build(shell, true), { alignment: 6 });
    const { memory } = rig;
    const h = (memory.off[frame] - 24) >>> 1;
    memory.u16.fill(0, h, h + 12);
    memory.u16.set([offload, csumStart + 8, vxlan.length, csumStart, 6], h);
    const failures = new Uint32Array(5);
    t.is(native.tapWrite(ports[0].fd, Uint32Array.of(frame), 1, 24, failures), 1);
    memory.free(frame);
    const got = await receive(most + 1);
    for (const { bytes, offload: left } of got.slice(0, most)) {
      t.deepEqual(bytes.subarray(outer), inner);
      t.is(left, 0);
    }
    t.deepEqual(got[most].bytes.subarray(outer - 8), last);
    t.true(counter(2, 'rx-frames') >= most + 1);
    rig.finish(t);
  });
}
