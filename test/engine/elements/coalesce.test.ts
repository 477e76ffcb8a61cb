import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { createCoalesce } from '../../../engine/elements/coalesce.js';
import { createSegment } from '../../../engine/elements/segment.js';
import {
  GSO_ECN,
  GSO_TCPV4,
  GSO_TCPV6,
  GSO_UDP_L4,
  OFFLOAD_GSO_SHIFT,
  OFFLOAD_NEEDS_CSUM,
} from '../../../engine/memory/frames.js';
import { bytesOf, type Item, model, type Spoil } from '../../support/gro.js';
import {
  ACK,
  build,
  CWR,
  cutSpec,
  ECE,
  FIN,
  faults,
  headerLength,
  l4Offset,
  NOTHING,
  PSH,
  payload,
  type Received,
  Rig,
  RST,
  type Spec,
  SYN,
  spec,
  URG,
} from '../../support/gso.js';

const TIMESTAMPS = Uint8Array.of(1, 1, 8, 10, 0, 1, 2, 3, 4, 5, 6, 7);

/** The super-frame that a group makes, and its metadata. */
function checkGroup(
  t: ExecutionContext,
  items: readonly Item[],
  group: readonly number[],
  got: Received,
): void {
  const first = items[group[0]];
  const { ingress, domain, mark } = first;
  t.deepEqual({ ingress: got.ingress, domain: got.domain, mark: got.mark }, { ingress, domain, mark });
  if (group.length === 1) {
    t.deepEqual(Buffer.from(got.bytes), Buffer.from(bytesOf(first)));
    t.is(got.offload, first.spoil === 'partial' ? OFFLOAD_NEEDS_CSUM : 0);
    return;
  }
  const { of } = first;
  const last = items[group[group.length - 1]].of;
  const flags = of.flags | (last.flags & (FIN | PSH));
  const whole = { ...of, flags, payload: Buffer.concat(group.map((k) => items[k].of.payload)) };
  t.deepEqual(Buffer.from(got.bytes), Buffer.from(build(whole, true)));
  const gso = of.udp ? GSO_UDP_L4 : (of.v6 ? GSO_TCPV6 : GSO_TCPV4) | (flags & CWR ? GSO_ECN : 0);
  const { offload, gsoSize, hdrLen, csumStart, csumOffset } = got;
  t.deepEqual(
    { offload, gsoSize, hdrLen, csumStart, csumOffset },
    {
      offload: OFFLOAD_NEEDS_CSUM | (gso << OFFLOAD_GSO_SHIFT),
      gsoSize: of.payload.length,
      hdrLen: headerLength(of),
      csumStart: l4Offset(of),
      csumOffset: of.udp ? 6 : 16,
    },
  );
}

function checkBatch(t: ExecutionContext, rig: Rig, items: readonly Item[], udp: boolean, seed = 0): number {
  const coalesce = createCoalesce(rig.context, rig.out, { udp });
  const ids = items.map((item, k) => {
    const bytes = bytesOf(item);
    const small = bytes.length < 1700 && (k + seed) % 3 !== 0;
    const frame = rig.frame(bytes, { small, shift: ((k * seed) % 4) * 2 });
    rig.memory.ingress[frame] = item.ingress;
    rig.memory.domain[frame] = item.domain;
    rig.memory.mark[frame] = item.mark;
    if (item.spoil === 'partial') {
      rig.memory.offload[frame] = OFFLOAD_NEEDS_CSUM;
      rig.memory.csumStart[frame] = l4Offset(item.of);
      rig.memory.csumOffset[frame] = item.of.udp ? 6 : 16;
    }
    return frame;
  });
  const got = rig.run(coalesce, ids);
  const groups = model(items, udp);
  t.is(got.length, groups.length, 'as many frames as GRO would make');
  groups.forEach((group, i) => {
    checkGroup(t, items, group, got[i]);
  });
  coalesce.close();
  t.is(rig.memory.inUse, 0);
  rig.memory.audit();
  return groups.filter((g) => g.length > 1).length;
}

/** One change to a frame, or to the state of its flow, that may break a run. */
const CHANGES: Record<string, (item: Item) => void> = {
  push: ({ of }) => void (of.flags |= PSH),
  fin: ({ of }) => void (of.flags |= FIN),
  syn: ({ of }) => void (of.flags |= SYN),
  reset: ({ of }) => void (of.flags |= RST),
  urgent: ({ of }) => void (of.flags |= URG),
  cwr: ({ of }) => void (of.flags |= CWR),
  ece: ({ of }) => void (of.flags |= ECE),
  noAck: ({ of }) => void (of.flags &= ~ACK),
  sequence: ({ of }) => void (of.sequence = (of.sequence + 1) >>> 0),
  acknowledgment: ({ of }) => void (of.acknowledgment += 1),
  window: ({ of }) => void (of.window += 1),
  urgentPointer: ({ of }) => void (of.urgent += 1),
  options: ({ of }) =>
    void (of.tcpOptions = Uint8Array.from(of.tcpOptions, (b, i) => (i === 11 ? b + 1 : b))),
  noOptions: ({ of }) => void (of.tcpOptions = NOTHING),
  tos: ({ of }) => void (of.tos ^= 1),
  ttl: ({ of }) => void (of.ttl -= 1),
  df: ({ of }) => void (of.df = !of.df),
  id: ({ of }) => void (of.id = (of.id + 5) & 0xffff),
  flowLabel: ({ of }) => void (of.flowLabel ^= 1),
  mac: ({ of }) => void (of.macs = Uint8Array.from(of.macs, (b, i) => (i === 11 ? b ^ 1 : b))),
  tag: ({ of }) => void (of.tags = [[0x8100, 3]]),
  source: ({ of }) => {
    of.source = of.source.slice();
    of.source[of.source.length - 1] ^= 8;
  },
  port: ({ of }) => void (of.ports = [of.ports[0], of.ports[1] ^ 1]),
  ipOptions: ({ of }) =>
    void (of.ipOptions = of.v6 ? Uint8Array.of(0, 0, 1, 4, 0, 0, 0, 0) : Uint8Array.of(1, 1, 1, 1)),
  short: ({ of }) => void (of.payload = of.payload.slice(0, -1)),
  long: ({ of }) => void (of.payload = Uint8Array.of(...of.payload, 1)),
  empty: ({ of }) => void (of.payload = NOTHING),
  ingress: (item) => void (item.ingress += 1),
  domain: (item) => void (item.domain += 1),
  mark: (item) => void (item.mark += 1),
};
const SPOILS: Spoil[] = [
  'checksum',
  'ip-checksum',
  'padding',
  'no-udp-checksum',
  'fragment',
  'partial',
  'icmp',
];

interface Step {
  flow: number;
  change: string;
  /** Whether the flow goes on from the changed frame (its sequence and id), or as if it had not been changed. */
  lasting: boolean;
}

const arbitraryFlow = fc.record({
  v6: fc.boolean(),
  udp: fc.boolean(),
  tcpOptions: fc.constantFrom(NOTHING, TIMESTAMPS),
  flags: fc.constantFrom(ACK, ACK | ECE, ACK | CWR),
  tags: fc.constantFrom<[number, number][]>([], [[0x8100, 3]]),
  sequence: fc.constantFrom(0, 0xfffffff0, 0xffff, 123456789),
  id: fc.constantFrom(0, 0xfffe, 500),
  df: fc.boolean(),
  fixed: fc.boolean(),
  size: fc.constantFrom(1, 7, 100, 1398, 1448),
});
const steps = (flows: number): fc.Arbitrary<Step[]> =>
  fc.array(
    fc.record({
      flow: fc.nat(flows - 1),
      change: fc.oneof(
        { weight: 6, arbitrary: fc.constant('none') },
        { weight: 1, arbitrary: fc.constantFrom(...Object.keys(CHANGES), ...SPOILS) },
      ),
      lasting: fc.boolean(),
    }),
    { minLength: 1, maxLength: 60 },
  );

function play(
  flows: readonly (Partial<Spec> & { size: number; fixed: boolean })[],
  list: readonly Step[],
): Item[] {
  const state = flows.map(({ size: _size, fixed: _fixed, ...fields }, i) =>
    spec({ ...fields, flags: ACK | (fields.flags ?? 0), ports: fields.ports ?? [40000 + (i >> 1), 5201] }),
  );
  return list.map(({ flow, change, lasting }, k) => {
    const { size, fixed } = flows[flow];
    const now = { ...state[flow], payload: payload(size, k) };
    const item: Item = { of: now, ingress: 0x10001, domain: 2, mark: 4, spoil: 'none' };
    if (change in CHANGES) CHANGES[change](item);
    else item.spoil = change as Spoil;
    const base = lasting ? item.of : state[flow];
    state[flow] = {
      ...base,
      // Only the first carries CWR, as a sender does it.
      flags: state[flow].flags & ~CWR,
      ports: state[flow].ports,
      id: fixed ? base.id : (base.id + 1) & 0xffff,
      sequence: (base.sequence + item.of.payload.length) >>> 0,
      payload: NOTHING,
    };
    return item;
  });
}

test('coalesces exactly what the kernel would, whatever breaks the runs of interleaved flows', (t) => {
  const rig = new Rig(256, 128);
  let merged = 0;
  fc.assert(
    fc.property(
      fc
        .array(arbitraryFlow, { minLength: 1, maxLength: 4 })
        .chain((flows) => fc.record({ flows: fc.constant(flows), list: steps(flows.length) })),
      fc.boolean(),
      fc.nat(7),
      ({ flows, list }, udp, seed) => {
        merged += checkBatch(t, rig, play(flows, list), udp, seed);
      },
    ),
    { numRuns: 800 },
  );
  t.true(merged > 500, `the property is empty unless frames merge (${merged} super-frames)`);
});

for (const name of [...Object.keys(CHANGES), ...SPOILS]) {
  test(`a run with one frame changed: ${name}`, (t) => {
    const rig = new Rig();
    for (const v6 of [false, true])
      for (const udp of [false, true])
        for (const lasting of [false, true]) {
          const flow = { v6, udp, tcpOptions: TIMESTAMPS, size: 100, fixed: false };
          const list = ['none', 'none', name, 'none', 'none'].map((change) => ({ flow: 0, change, lasting }));
          checkBatch(t, rig, play([flow], list), true);
        }
  });
}

test('more flows than are held at once send the oldest on', (t) => {
  const rig = new Rig(256, 256);
  const flows = Array.from({ length: 40 }, (_, i) => ({
    ports: [1000 + i, 80] as [number, number],
    size: 50,
    fixed: false,
  }));
  const list = Array.from({ length: 160 }, (_, k) => ({ flow: (k * 7) % 40, change: 'none', lasting: true }));
  const few = Array.from({ length: 160 }, (_, k) => ({ flow: (k * 7) % 16, change: 'none', lasting: true }));
  const doubled = list.flatMap((step) => [step, step]).slice(0, 200);
  t.is(checkBatch(t, rig, play(flows, list), true), 0);
  t.is(checkBatch(t, rig, play(flows, few), true), 16);
  t.true(checkBatch(t, rig, play(flows, doubled), true) > 10);
});

test('a super-frame ends at 65,535 bytes of IP, and with UDP at 64 datagrams', (t) => {
  const rig = new Rig(256, 256);
  const run = (flow: Partial<Spec>, size: number, count: number): number =>
    checkBatch(
      t,
      rig,
      play(
        [{ ...flow, size, fixed: false }],
        Array.from({ length: count }, () => ({ flow: 0, change: 'none', lasting: true })),
      ),
      true,
    );
  t.is(run({}, 1448, 100), 3);
  t.is(run({ v6: true }, 9000, 16), 3);
  t.is(run({ udp: true }, 100, 130), 3);
  t.is(run({ udp: true, v6: true, tags: [[0x8100, 1]] }, 1400, 100), 3);
});

test('IPv4 ids count on or, with DF, stay: the second segment decides', (t) => {
  const rig = new Rig();
  for (const df of [false, true])
    for (const ids of [
      [5, 5, 5, 5],
      [5, 6, 5, 8],
      [5, 6, 6, 7],
      [5, 5, 6, 7],
      [5, 5, 7, 8],
      [5, 7, 7, 7],
      [0xffff, 0, 1, 2],
    ]) {
      const items = cutSpec(spec({ df, payload: payload(400) }), 100).map((of, i) => {
        return { of: { ...of, id: ids[i] }, ingress: 1, domain: 1, mark: 0, spoil: 'none' as const };
      });
      checkBatch(t, rig, items, true);
    }
});

test('a flow keeps its own limit and size when one that came before it has gone', (t) => {
  const rig = new Rig();
  const items = (of: Spec, size: number): Item[] =>
    cutSpec(of, size).map((piece) => ({ of: piece, ingress: 1, domain: 1, mark: 0, spoil: 'none' }));
  const [a1, a2] = items(spec({ ports: [1, 2], flags: ACK | PSH, payload: payload(200) }), 100);
  // 40 bytes of headers and five times 13,099 are 65,535: the most that fits, and four more than without the tag.
  const [b1, ...b] = items(spec({ tags: [[0x8100, 1]], payload: payload(13099 * 5) }), 13099);
  t.is(checkBatch(t, rig, [a1, b1, a2, ...b], true), 2);
});

const superSpec = fc
  .record({
    v6: fc.boolean(),
    udp: fc.boolean(),
    tags: fc.constantFrom<[number, number][]>(
      [],
      [[0x8100, 7]],
      [
        [0x88a8, 5],
        [0x8100, 9],
      ],
    ),
    tos: fc.integer({ min: 0, max: 255 }),
    id: fc.integer({ min: 0, max: 65535 }),
    df: fc.boolean(),
    sequence: fc.integer({ min: 0, max: 0xffffffff }),
    flags: fc.constantFrom(ACK, ACK | PSH, ACK | FIN | PSH, ACK | CWR, ACK | ECE | PSH, ACK | CWR | ECE, 0),
    tcpOptions: fc.constantFrom(
      NOTHING,
      TIMESTAMPS,
      Uint8Array.of(...TIMESTAMPS, 1, 1, 5, 10, 9, 9, 9, 9, 8, 8, 8, 8),
    ),
    size: fc.oneof(fc.integer({ min: 1, max: 1500 }), fc.constantFrom(1398, 1448, 8948)),
    count: fc.integer({ min: 2, max: 64 }),
    rest: fc.nat(10000),
  })
  .map(({ size, count, rest, ...fields }) => {
    const length = Math.min((count - 1) * size + 1 + (rest % size), 65000);
    return { of: spec({ ...fields, payload: payload(length, rest) }), size };
  })
  .filter(({ of, size }) => of.payload.length > size);

test('cut, then coalesced, a super-frame is what it was: bytes and metadata', (t) => {
  const rig = new Rig(512, 256);
  fc.assert(
    fc.property(superSpec, ({ of, size }) => {
      const segment = createSegment(rig.context, rig.out);
      const pieces = rig.run(segment, [rig.superFrame(of, size)]);
      segment.close();
      t.is(pieces.length, Math.ceil(of.payload.length / size));
      const coalesce = createCoalesce(rig.context, rig.out, { udp: true });
      const got = rig.run(
        coalesce,
        pieces.map(({ bytes }, i) => rig.frame(bytes, { small: bytes.length < 1700 && i % 2 === 0 })),
      );
      coalesce.close();
      t.is(got.length, 1);
      const items = cutSpec(of, size).map((s) => ({
        of: s,
        ingress: 3,
        domain: 5,
        mark: 9,
        spoil: 'none' as const,
      }));
      checkGroup(
        t,
        items,
        items.map((_, i) => i),
        got[0],
      );
      t.deepEqual(Buffer.from(got[0].bytes), Buffer.from(build(of, true)));
      t.is(rig.memory.inUse, 0);
      rig.memory.audit();
    }),
    { numRuns: 300 },
  );
});

test('without a large slot the frames go on unmerged', (t) => {
  const rig = new Rig(32, 1);
  const occupied = rig.memory.allocLarge();
  const coalesce = createCoalesce(rig.context, rig.out, { udp: true });
  const pieces = cutSpec(spec({ payload: payload(5000) }), 1000).map((s) => build(s));
  const got = rig.run(
    coalesce,
    pieces.map((bytes) => rig.frame(bytes, { small: true })),
  );
  t.deepEqual(
    got.map((g) => Buffer.from(g.bytes)),
    pieces.map((b) => Buffer.from(b)),
  );
  rig.memory.free(occupied);
  t.is(rig.memory.inUse, 0);
  rig.memory.audit();
});

test('damaged frames, any bytes at all: each comes out, whole or in a sound super-frame, and nothing leaks', (t) => {
  const rig = new Rig(64, 64);
  const coalesce = createCoalesce(rig.context, rig.out, { udp: true });
  const segment = createSegment(rig.context, rig.out);
  const damage = fc.array(fc.tuple(fc.nat(90), fc.nat(255)), { maxLength: 3 });
  fc.assert(
    fc.property(
      arbitraryFlow,
      fc.array(fc.record({ damage, cut: fc.option(fc.nat(80), { freq: 6 }) }), {
        minLength: 2,
        maxLength: 10,
      }),
      (flow, list) => {
        const items = play(
          [flow],
          list.map(() => ({ flow: 0, change: 'none', lasting: true })),
        );
        const sent = items.map((item, i) => {
          const bytes = bytesOf(item);
          for (const [at, value] of list[i].damage) if (at < bytes.length) bytes[at] = value;
          const { cut } = list[i];
          return cut === null ? bytes : bytes.slice(0, cut);
        });
        const got = rig.run(
          coalesce,
          sent.map((bytes) => rig.frame(bytes)),
        );
        t.is(rig.memory.inUse, 0);
        // Cut again, what comes out is what went in, whatever merged; ids that stayed the same count on.
        const again: Uint8Array[] = [];
        for (const { bytes, offload, gsoSize, csumStart, csumOffset } of got) {
          if (offload === 0) again.push(bytes);
          else {
            const frame = rig.frame(bytes);
            Object.assign(rig.memory.offload, { [frame]: offload });
            rig.memory.gsoSize[frame] = gsoSize;
            rig.memory.csumStart[frame] = csumStart;
            rig.memory.csumOffset[frame] = csumOffset;
            for (const piece of rig.run(segment, [frame])) {
              t.is(faults(piece.bytes), '');
              again.push(piece.bytes);
            }
          }
        }
        t.is(again.length, sent.length);
        const key = (b: Uint8Array): string => Buffer.from(b).toString('hex');
        if (!flow.fixed) t.deepEqual(again.map(key).sort(), sent.map(key).sort());
      },
    ),
    { numRuns: 1000 },
  );
  rig.memory.audit();
});
