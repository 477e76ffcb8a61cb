/**
 * Our segments against the kernel's own: the same super-frame goes through `segment`, and through a bridge to a TAP
 * that has its offloads switched off, so that the kernel must cut it. And what `coalesce` makes, the kernel must cut
 * back into what it was.
 */
import { spawnSync } from 'node:child_process';
import test, { type ExecutionContext } from 'ava';
import { Lab, waitFor } from '../../../cli/lab.js';
import { createCoalesce } from '../../../engine/elements/coalesce.js';
import { createSegment } from '../../../engine/elements/segment.js';
import { LARGE_CAPACITY } from '../../../engine/memory/frames.js';
import { readVnet, VNET_HEADER, writeVnet } from '../../../engine/ports/tap.js';
import { native } from '../../../native-bindings/index.js';
import {
  ACK,
  build,
  CWR,
  cutSpec,
  ECE,
  FIN,
  PSH,
  payload,
  Rig,
  type Spec,
  spec,
  URG,
} from '../../support/gso.js';

const reason =
  Lab.unavailable() ?? (spawnSync('ethtool', ['--version']).status === 0 ? undefined : 'it needs ethtool');
const TIMESTAMPS = Uint8Array.of(1, 1, 8, 10, 0, 1, 2, 3, 4, 5, 6, 7);
const OPTIONS4 = Uint8Array.of(7, 7, 4, 1, 2, 3, 4, 0);
const OPTIONS6 = Uint8Array.of(0, 0, 1, 4, 0, 0, 0, 0);

/** Two TAPs on a bridge: `near` takes super-frames, at `far` the kernel has to finish everything. */
async function bridgeOfTaps(t: ExecutionContext, lab: Lab): Promise<{ near: number; far: number }> {
  const host = lab.host('taps');
  const [near, far] = ['near', 'far'].map((name) => {
    const tap = native.tapOpen({ name, netns: host.path, persist: false, tunnel: false });
    t.is(tap.vnet, VNET_HEADER);
    t.teardown(() => native.close(tap.fd));
    return tap.fd;
  });
  host.ip('link', 'add', 'br0', 'type', 'bridge', 'mcast_snooping', '0');
  for (const name of ['near', 'far', 'br0']) {
    if (name !== 'br0') host.ip('link', 'set', name, 'master', 'br0');
    host.ip('link', 'set', name, 'mtu', '9000', 'addrgenmode', 'none', 'up');
  }
  await host.run('ethtool', ['-K', 'far', ...['tx', 'tso', 'gso', 'sg'].flatMap((name) => [name, 'off'])]);
  // A queue discipline comes with the carrier, a little after "up"; until then the kernel drops what we write.
  const ready = (): boolean => !host.ip('link', 'show', 'master', 'br0').includes('qdisc noop');
  const forwarding = (): boolean => host.bridge('link').match(/state forwarding/g)?.length === 2;
  await waitFor(() => ready() && forwarding(), { what: 'the bridge to forward' });
  return { near, far };
}

/** Writes frames into one TAP and collects the frames of ours that leave by the other. */
async function through(
  rig: Rig,
  near: number,
  far: number,
  ids: number[],
  count: number,
): Promise<Uint8Array[]> {
  const m = rig.memory;
  rig.attach();
  const got: Uint8Array[] = [];
  const read = (): void => {
    const n = native.tapRead(
      far,
      m.freeLargeCount,
      Math.min(256, m.freeLargeCount),
      VNET_HEADER,
      LARGE_CAPACITY,
    );
    const taken = Array.from({ length: Math.max(0, n) }, () => m.takeLarge());
    for (const f of taken) {
      m.len[f] -= VNET_HEADER;
      readVnet(m, f, m.off[f] - VNET_HEADER);
      const bytes = m.u8.slice(m.off[f], m.off[f] + m.len[f]);
      if (bytes[0] === 2 && bytes[1] === 0x42) {
        if (m.offload[f] !== 0) throw new Error('the far TAP still gives unfinished frames');
        got.push(bytes);
      }
    }
    for (const f of taken) m.free(f);
  };
  for (const f of ids) writeVnet(m, f, m.off[f] - VNET_HEADER);
  const failures = new Uint32Array(4);
  const put = native.tapWrite(near, Uint32Array.from(ids), ids.length, VNET_HEADER, failures);
  for (const f of ids) m.free(f);
  if (put !== ids.length) throw new Error(`the kernel refused super-frames: ${failures.join()}`);
  const complete = (): boolean => {
    read();
    return got.length >= count;
  };
  await waitFor(complete, { what: `${count} frames from the kernel` });
  read();
  return got;
}

function* specs(): Generator<[string, Spec, number]> {
  for (const v6 of [false, true])
    for (const [kind, fields] of Object.entries({
      plain: {},
      timestamps: { tcpOptions: TIMESTAMPS },
      ecn: { flags: ACK | CWR | PSH, tos: 2 },
      fin: { flags: ACK | FIN | PSH | ECE },
      urgent: { flags: ACK | URG, urgent: 3 },
      wrapping: { sequence: 0xfffffff0, id: 0xffff, df: false },
      'IP options': { ipOptions: v6 ? OPTIONS6 : OPTIONS4 },
      tagged: { tags: [[0x8100, 7]] as [number, number][] },
      udp: { udp: true },
    }))
      for (const [size, length] of [
        [1398, 20000],
        [1448, 1449],
        [999, 40001],
      ])
        yield [
          `${v6 ? 'v6' : 'v4'} ${kind} ${size}`,
          spec({ v6, ...fields, payload: payload(length) }),
          size,
        ];
}

const live = reason ? test.skip : test.serial;

live(`segments are the kernel's own, byte for byte${reason ? ` [skipped: ${reason}]` : ''}`, async (t) => {
  const lab = Lab.create();
  t.teardown(() => lab.close());
  const { near, far } = await bridgeOfTaps(t, lab);
  const rig = new Rig(512, 256);
  const segment = createSegment(rig.context, rig.out);
  for (const [name, of, size] of specs()) {
    const ours = rig.run(segment, [rig.superFrame(of, size)]).map((g) => Buffer.from(g.bytes));
    const theirs = await through(rig, near, far, [rig.superFrame(of, size)], ours.length);
    t.deepEqual(
      theirs.map((b) => Buffer.from(b)),
      ours,
      name,
    );
  }
  t.is(rig.memory.inUse, 0);
});

live(
  `the kernel cuts what was coalesced into what it was${reason ? ` [skipped: ${reason}]` : ''}`,
  async (t) => {
    const lab = Lab.create();
    t.teardown(() => lab.close());
    const { near, far } = await bridgeOfTaps(t, lab);
    const rig = new Rig(512, 256);
    const m = rig.memory;
    for (const [name, of, size] of specs()) {
      if (name.includes('options') || name.includes('urgent')) continue;
      const pieces = cutSpec(of, size).map((s) => build(s));
      const held: number[] = [];
      const coalesce = createCoalesce(rig.context, rig.out, { udp: true });
      const got = rig.run(
        coalesce,
        pieces.map((bytes) => rig.frame(bytes, { small: true })),
      );
      coalesce.close();
      t.is(got.length, 1, name);
      for (const g of got) {
        const f = rig.frame(g.bytes);
        m.offload[f] = g.offload;
        m.gsoSize[f] = g.gsoSize;
        m.hdrLen[f] = g.hdrLen;
        m.csumStart[f] = g.csumStart;
        m.csumOffset[f] = g.csumOffset;
        held.push(f);
      }
      const theirs = await through(rig, near, far, held, pieces.length);
      t.deepEqual(
        theirs.map((b) => Buffer.from(b)),
        pieces.map((b) => Buffer.from(b)),
        name,
      );
    }
    t.is(m.inUse, 0);
  },
);
