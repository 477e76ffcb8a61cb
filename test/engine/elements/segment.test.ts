import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { createSegment } from '../../../engine/elements/segment.js';
import { Batch } from '../../../engine/graph.js';
import { OFFLOAD_NEEDS_CSUM, OFFLOAD_OUTER_SHIFT } from '../../../engine/memory/frames.js';
import { PcapngWriter } from '../../../engine/ports/capture/writer.js';
import {
  ACK,
  build,
  CWR,
  cutSpec,
  ECE,
  encapsulate,
  FIN,
  faults,
  headerLength,
  l4Offset,
  type Outer,
  PSH,
  payload,
  Rig,
  type Spec,
  SYN,
  spec,
  URG,
} from '../../support/gso.js';

const OUTERS: (Outer | null)[] = [null, { v6: false, checksum: false }, { v6: true, checksum: true }];
const TIMESTAMPS = Uint8Array.of(1, 1, 8, 10, 0, 1, 2, 3, 4, 5, 6, 7);
const SACK = Uint8Array.of(...TIMESTAMPS, 1, 1, 5, 10, 9, 9, 9, 9, 8, 8, 8, 8);

function expected(of: Spec, size: number, outer: Outer | null): Uint8Array[] {
  return cutSpec(of, size).map((s) => (outer === null ? build(s) : encapsulate(build(s), outer)));
}

function checkCut(t: ExecutionContext, rig: Rig, of: Spec, size: number, outer: Outer | null): void {
  const segment = createSegment(rig.context, rig.out);
  const got = rig.run(segment, [rig.superFrame(of, size, outer)]);
  const want = expected(of, size, outer);
  t.is(got.length, want.length);
  for (let i = 0; i < want.length; i++) {
    t.deepEqual(Buffer.from(got[i].bytes), Buffer.from(want[i]), `segment ${i}`);
    t.is(faults(got[i].bytes), '');
    t.is(got[i].offset % 2, 0, 'an Ethernet header lies at an even address');
    const { offload, ingress, domain, dest, mark } = got[i];
    t.deepEqual(
      { offload, ingress, domain, dest, mark },
      { offload: 0, ingress: 3, domain: 5, dest: 0x10007, mark: 9 },
    );
  }
  t.is(segment.drops.count('bad-offload') + segment.drops.count('no-slot'), 0);
  segment.close();
  rig.memory.audit();
  t.is(rig.memory.inUse, 0);
}

const arbitrarySpec = fc
  .record({
    v6: fc.boolean(),
    udp: fc.boolean(),
    tags: fc.constantFrom<[number, number][]>(
      [],
      [[0x8100, 7]],
      [
        [0x88a8, 0x6005],
        [0x8100, 9],
      ],
    ),
    tos: fc.integer({ min: 0, max: 255 }),
    id: fc.constantFrom(0, 1, 0x1234, 0xfffe, 0xffff),
    df: fc.boolean(),
    sequence: fc.constantFrom(0, 1, 0xffff, 0xfffff000, 0xffffffff),
    flags: fc.constantFrom(
      ACK,
      ACK | PSH,
      ACK | FIN | PSH,
      ACK | CWR,
      ACK | ECE,
      ACK | CWR | ECE | PSH,
      ACK | URG,
      SYN,
    ),
    tcpOptions: fc.constantFrom(new Uint8Array(0), TIMESTAMPS, SACK),
    options: fc.boolean(),
    length: fc.integer({ min: 0, max: 9000 }),
    size: fc.oneof(fc.integer({ min: 80, max: 1500 }), fc.constantFrom(1, 1398, 1448, 1501, 4000, 9999)),
  })
  .map(({ v6, options, length, size, ...rest }) => ({
    of: spec({
      ...rest,
      v6,
      ipOptions: options
        ? v6
          ? Uint8Array.of(0, 0, 1, 4, 0, 0, 0, 0)
          : Uint8Array.of(7, 7, 4, 1, 2, 3, 4, 0)
        : new Uint8Array(0),
      payload: payload(size < 64 ? length % 100 : length, length),
      urgent: rest.flags & URG ? 5 : 0,
    }),
    size,
  }))
  .filter(({ of, size }) => of.payload.length / size <= (of.udp ? 128 : 1366));

test('segments are those of the specification, to the byte, for any headers and sizes', (t) => {
  const rig = new Rig();
  fc.assert(
    fc.property(arbitrarySpec, fc.constantFrom(...OUTERS), ({ of, size }, outer) => {
      checkCut(t, rig, of, size, outer);
    }),
    { numRuns: 400 },
  );
});

test('a full super-frame of 64 KiB, aligned and odd, in slots of either size', (t) => {
  const rig = new Rig();
  for (const outer of OUTERS)
    for (const size of [536, 1398, 1399, 1448, 8948, 32000])
      checkCut(
        t,
        rig,
        spec({ tcpOptions: TIMESTAMPS, flags: ACK | PSH | CWR, payload: payload(65400) }),
        size,
        outer,
      );
});

test('more segments than a batch holds leave in order', (t) => {
  const rig = new Rig(300);
  checkCut(t, rig, spec({ payload: payload(65000) }), 48, null);
});

test('the outer UDP checksum over IPv6 stays zero when the port has the kernel do it', (t) => {
  const rig = new Rig();
  const segment = createSegment(rig.context, rig.out, { outerChecksum: false });
  const of = spec({ v6: true, payload: payload(4000) });
  const outer = { v6: true, checksum: false };
  const got = rig.run(segment, [rig.superFrame(of, 1400, outer)]);
  t.deepEqual(
    got.map((g) => Buffer.from(g.bytes)),
    expected(of, 1400, outer).map((b) => Buffer.from(b)),
  );
});

/** An ordinary frame with a partial checksum. */
function partialFrame(rig: Rig, of: Spec, outer: Outer | null): number {
  const inner = build(of, true);
  const bytes = outer === null ? inner : encapsulate(inner, { ...outer, checksum: false });
  const front = bytes.length - inner.length;
  const frame = rig.frame(bytes);
  rig.memory.offload[frame] = OFFLOAD_NEEDS_CSUM | (front << OFFLOAD_OUTER_SHIFT);
  rig.memory.csumStart[frame] = front + l4Offset(of);
  rig.memory.csumOffset[frame] = of.udp ? 6 : 16;
  return frame;
}

test('partial checksums are finished, frames keep their order among super-frames and untouched ones', (t) => {
  const rig = new Rig();
  const segment = createSegment(rig.context, rig.out);
  const ids: number[] = [];
  const want: Uint8Array[] = [];
  for (const outer of OUTERS)
    for (const v6 of [false, true])
      for (const udp of [false, true])
        for (const length of [0, 1, 18, 333]) {
          const of = spec({ v6, udp, payload: payload(length, want.length) });
          const whole = (inner: Uint8Array) => (outer === null ? inner : encapsulate(inner, outer));
          ids.push(partialFrame(rig, of, outer));
          want.push(whole(build(of)));
          if (length === 18) {
            ids.push(rig.frame(build(of)));
            want.push(build(of));
            const large = { ...of, payload: payload(3000) };
            ids.push(rig.superFrame(large, 1000, outer));
            want.push(...expected(large, 1000, outer));
          }
          if (ids.length > 40) {
            const got = rig.run(segment, ids.splice(0));
            t.deepEqual(
              got.map((g) => Buffer.from(g.bytes)),
              want.splice(0).map((b) => Buffer.from(b)),
            );
          }
        }
  const got = rig.run(segment, ids);
  t.deepEqual(
    got.map((g) => Buffer.from(g.bytes)),
    want.map((b) => Buffer.from(b)),
  );
  t.true(got.every((g) => g.offload === 0 && faults(g.bytes) === ''));
  t.is(rig.memory.inUse, 0);
  rig.memory.audit();
});

test('a UDP checksum that comes out as zero is sent as all ones, in whole frames and segments', (t) => {
  const rig = new Rig();
  const segment = createSegment(rig.context, rig.out);
  const zeroSum = (length: number): Spec => {
    const of = spec({ udp: true, payload: payload(length) });
    const before = build({ ...of, payload: Uint8Array.of(0, 0, ...of.payload.slice(2)) });
    const field = before[l4Offset(of) + 6] * 256 + before[l4Offset(of) + 7];
    of.payload[0] = field >>> 8;
    of.payload[1] = field & 255;
    return of;
  };
  const of = zeroSum(100);
  const built = build(of);
  t.deepEqual([...built.slice(l4Offset(of) + 6, l4Offset(of) + 8)], [255, 255], 'the test hits the case');
  const two = { ...of, payload: Uint8Array.of(...of.payload, ...of.payload) };
  const got = rig.run(segment, [partialFrame(rig, of, null), rig.superFrame(two, 100)]);
  t.deepEqual(
    got.map((g) => [...g.bytes.slice(40, 42)]),
    [
      [255, 255],
      [255, 255],
      [255, 255],
    ],
  );
});

test('without slots the rest of a super-frame is counted and the super-frame freed once', (t) => {
  const rig = new Rig(4, 1);
  const kept: number[] = [];
  const out = new Batch({
    process: (batch) => {
      for (let k = 0; k < batch.count; k++) kept.push(batch.frames[k]);
    },
  });
  const segment = createSegment(rig.context, out);
  const input = new Batch(segment);
  input.push(rig.superFrame(spec({ payload: payload(10000) }), 1000));
  input.flush();
  out.flush();
  t.is(kept.length, 4);
  t.is(segment.drops.count('no-slot'), 6);
  t.is(rig.memory.inUse, 4);
  for (const frame of kept) rig.memory.free(frame);
  rig.memory.audit();
  t.is(rig.memory.inUse, 0);
});

test('offload metadata that does not fit the frame is refused, each kind by name', (t) => {
  const rig = new Rig();
  const segment = createSegment(rig.context, rig.out);
  const m = rig.memory;
  const of = spec({ payload: payload(4000) });
  const wrong: [string, (f: number) => void, Partial<Spec>?][] = [
    ['no segment size', (f) => (m.gsoSize[f] = 0)],
    ['too many segments', (f) => (m.gsoSize[f] = 2)],
    ['type of the other family', (f) => (m.offload[f] = OFFLOAD_NEEDS_CSUM | (4 << 8))],
    ['UFO', (f) => (m.offload[f] = OFFLOAD_NEEDS_CSUM | (3 << 8))],
    ['ECN alone', (f) => (m.offload[f] = OFFLOAD_NEEDS_CSUM | (0x80 << 8))],
    ['USO of TCP', (f) => (m.offload[f] = OFFLOAD_NEEDS_CSUM | (5 << 8))],
    ['no partial checksum', (f) => (m.offload[f] = 1 << 8)],
    ['outer headers of no known length', (f) => (m.offload[f] |= 51 << OFFLOAD_OUTER_SHIFT)],
    ['outer headers that are not there', (f) => (m.offload[f] |= 50 << OFFLOAD_OUTER_SHIFT)],
    ['checksum start', (f) => (m.csumStart[f] += 2)],
    ['checksum offset', (f) => (m.csumOffset[f] = 6)],
    ['data offset below 5', (f) => (m.u8[m.off[f] + 46] = 0x40)],
    ['data offset behind the end', (f) => (m.len[f] = 60), { tcpOptions: SACK }],
    ['IP version', (f) => (m.u8[m.off[f] + 14] = 0x55)],
    ['IP header length', (f) => (m.u8[m.off[f] + 14] = 0x42)],
    ['fragment', (f) => (m.u8[m.off[f] + 20] = 0x20)],
    ['protocol', (f) => (m.u8[m.off[f] + 23] = 1)],
    ['cut in the Ethernet header', (f) => (m.len[f] = 13)],
    ['cut in the TCP header', (f) => (m.len[f] = 50)],
    ['too many datagrams', (f) => (m.gsoSize[f] = 10), { udp: true }],
    [
      'headers too long',
      () => {},
      {
        v6: true,
        ipOptions: Uint8Array.from({ length: 512 }, (_, i) =>
          i === 1 ? 63 : i === 2 ? 1 : i === 3 ? 508 : 0,
        ),
      },
    ],
    ['a segment longer than IP can say', (f) => (m.gsoSize[f] = 65535), { payload: payload(66000) }],
    ['cut in the UDP header', (f) => (m.len[f] = 40), { udp: true }],
  ];
  for (const [name, spoil, change] of wrong) {
    const before = segment.drops.count('bad-offload');
    const frame = rig.superFrame({ ...of, ...change }, 1000);
    spoil(frame);
    t.deepEqual(rig.run(segment, [frame]), [], name);
    t.is(segment.drops.count('bad-offload'), before + 1, name);
  }
  for (const [start, offset] of [
    [0, 16],
    [12, 2],
    [15, 1],
    [34, 5],
    [4054, 0],
    [65534, 65535],
    [4052, 2],
  ]) {
    const before = segment.drops.count('bad-offload');
    const frame = partialFrame(rig, of, null);
    m.csumStart[frame] = start;
    m.csumOffset[frame] = offset;
    t.deepEqual(rig.run(segment, [frame]), [], `partial checksum ${start} + ${offset}`);
    t.is(segment.drops.count('bad-offload'), before + 1);
  }
  // Behind outer headers, a start that lies in them.
  const behind = partialFrame(rig, of, { v6: false, checksum: false });
  m.csumStart[behind] = 34;
  t.deepEqual(rig.run(segment, [behind]), []);
  t.is(m.inUse, 0);
  m.audit();
});

test('fuzz: any metadata over damaged frames neither throws, nor leaks, nor writes outside the slots', (t) => {
  const rig = new Rig(64, 8);
  const m = rig.memory;
  const segment = createSegment(rig.context, rig.out);
  const metadata = fc.record({
    of: arbitrarySpec,
    outer: fc.constantFrom(...OUTERS),
    offload: fc.option(fc.integer({ min: 0, max: 0xffffff })),
    values: fc.array(fc.tuple(fc.nat(3), fc.oneof(fc.nat(0xffff), fc.nat(100))), { maxLength: 3 }),
    damage: fc.array(fc.tuple(fc.nat(130), fc.nat(255)), { maxLength: 4 }),
    cut: fc.option(fc.nat(200)),
  });
  // A slot that nobody may touch lies between the others and holds its bytes.
  const guard = m.allocLarge();
  m.u8.fill(0xa5, m.off[guard] - 256, m.off[guard] + 60000);
  fc.assert(
    fc.property(fc.array(metadata, { minLength: 1, maxLength: 4 }), (list) => {
      const ids = list.map(({ of, outer, offload, values, damage, cut }) => {
        const f = rig.superFrame(of.of, of.size, outer);
        if (offload !== null) m.offload[f] = offload;
        for (const [which, value] of values)
          [m.gsoSize, m.hdrLen, m.csumStart, m.csumOffset][which][f] = value;
        for (const [at, value] of damage) m.u8[m.off[f] + at] = value;
        if (cut !== null) m.len[f] = Math.min(m.len[f], cut);
        return f;
      });
      const got = rig.run(segment, ids);
      t.is(m.inUse, 1);
      t.true(got.every((g) => g.offload === 0));
    }),
    { numRuns: 2000 },
  );
  t.true(m.u8.subarray(m.off[guard] - 256, m.off[guard] + 60000).every((b) => b === 0xa5));
  m.free(guard);
  m.audit();
});

const absent = spawnSync('tshark', ['--version']).status === 0 ? '' : ' [skipped: no tshark here]';
const withTshark = absent ? test.skip : test;

withTshark(`tshark finds nothing wrong with segments, bare and in VXLAN over either family${absent}`, (t) => {
  const rig = new Rig();
  const segment = createSegment(rig.context, rig.out);
  const blocks: Uint8Array[] = [];
  const writer = new PcapngWriter((b) => blocks.push(b), { application: 'weft test' });
  writer.addInterface({ name: 'x', linkType: 1 });
  let frames = 0;
  for (const outer of OUTERS)
    for (const v6 of [false, true])
      for (const udp of [false, true])
        for (const options of [new Uint8Array(0), SACK]) {
          const of = spec({
            v6,
            udp,
            flags: ACK | PSH | CWR,
            tcpOptions: options,
            payload: payload(5001),
            ports: [4000, 4001],
          });
          const large = rig.superFrame(of, 1398, outer);
          const small = partialFrame(rig, { ...of, payload: payload(77) }, outer);
          for (const { bytes } of rig.run(segment, [large, small])) {
            writer.write(0, bytes, 0, bytes.length, frames * 1000);
            frames++;
          }
        }
  const directory = mkdtempSync(join(tmpdir(), 'weft-segment-'));
  try {
    const file = join(directory, 'segments.pcapng');
    writeFileSync(file, Buffer.concat(blocks));
    const options = ['ip.check_checksum', 'tcp.check_checksum', 'udp.check_checksum'].flatMap((o) => [
      '-o',
      `${o}:TRUE`,
    ]);
    const tshark = (filter: string): string[] =>
      execFileSync('tshark', ['-r', file, ...options, '-Y', filter], {
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'ignore'],
      })
        .split('\n')
        .filter(Boolean);
    t.is(tshark('frame').length, frames);
    t.is(
      tshark('tcp.checksum.status == 1 || udp.checksum.status == 1').length,
      frames,
      'checksums were looked at',
    );
    t.deepEqual(
      tshark(
        'ip.checksum.status == 0 || tcp.checksum.status == 0 || udp.checksum.status == 0 || _ws.malformed || udp.length.bad || ip.bogus_ip_length',
      ),
      [],
    );
  } finally {
    rmSync(directory, { recursive: true });
  }
});

test('header lengths of the hint are not believed', (t) => {
  const rig = new Rig();
  const segment = createSegment(rig.context, rig.out);
  const of = spec({ tcpOptions: TIMESTAMPS, payload: payload(3000) });
  for (const hint of [0, 14, headerLength(of) + 100, 65535]) {
    const frame = rig.superFrame(of, 1000);
    rig.memory.hdrLen[frame] = hint;
    t.deepEqual(
      rig.run(segment, [frame]).map((g) => Buffer.from(g.bytes)),
      expected(of, 1000, null).map((b) => Buffer.from(b)),
    );
  }
});
