/** Chains: every frame is delivered once or dropped with a reason, in order, and nobody loses a slot unseen. */
import test from 'ava';
import { type Chain, type ChainSetup, createChain } from '../../engine/chain.js';
import { ELEMENTS, type ElementDefinition } from '../../engine/elements/index.js';
import { type Batch, Drops } from '../../engine/graph.js';
import { FrameMemory } from '../../engine/memory/frames.js';
import { FrameListBuilder, listArenaBytes } from '../../engine/ports/capture-list.js';

const A = [2, 0, 0, 0, 0, 0xa];
const B = [2, 0, 0, 0, 0, 0xb];
const BROADCAST = [255, 255, 255, 255, 255, 255];
const BPDU = [1, 0x80, 0xc2, 0, 0, 0];
const GROUP = [3, 0, 0, 0, 0, 1];

function frame(to: number[], from: number[], length = 60): Uint8Array {
  const bytes = Uint8Array.from({ length }, (_, i) => i);
  bytes.set([...to, ...from, 0x88, 0xb5].slice(0, length));
  return bytes;
}

/** A VXLAN packet over IPv4 with a checksum that is right. */
function vxlan(vni: number, inner: Uint8Array, source = 3): Uint8Array {
  const bytes = new Uint8Array(50 + inner.length);
  const total = 36 + inner.length;
  const udp = 16 + inner.length;
  bytes.set([
    ...B,
    ...A,
    8,
    0,
    0x45,
    0,
    total >> 8,
    total,
    0,
    0,
    0x40,
    0,
    64,
    17,
    0,
    0,
    10,
    0,
    0,
    source,
    10,
    0,
    0,
    9,
  ]);
  let sum = 0;
  for (let i = 14; i < 34; i += 2) sum += (bytes[i] << 8) | bytes[i + 1];
  sum = ~((sum & 0xffff) + (sum >>> 16));
  bytes.set([sum >> 8, sum], 24);
  bytes.set([0xc0, 0, 0x12, 0xb5, udp >> 8, udp, 0, 0, 8, 0, 0, 0, vni >> 16, vni >> 8, vni, 0], 34);
  bytes.set(inner, 50);
  return bytes;
}

function build(names: string[], frames: Uint8Array[], more: Partial<ChainSetup> = {}) {
  const bytes = frames.reduce((sum, { length }) => sum + length, 0);
  const memory = new FrameMemory({ small: 512, large: 256, arena: listArenaBytes(bytes, frames.length) });
  const u8 = new Uint8Array(bytes);
  const offsets = new Uint32Array(frames.length);
  const lengths = new Uint32Array(frames.length);
  let next = 0;
  frames.forEach((one, i) => {
    u8.set(one, next);
    offsets[i] = next;
    lengths[i] = one.length;
    next += one.length;
  });
  const builder = new FrameListBuilder(memory, frames.length, names.includes('vxlan-decap'), 4789);
  builder.add(u8, { count: frames.length, offsets, lengths });
  const list = builder.finish();
  const chain = createChain({
    names,
    frames: memory,
    list,
    vnis: [42],
    carryVlan: true,
    strict: false,
    local: { address: Uint8Array.of(192, 0, 2, 1), port: 4789, ttl: 64 },
    remote: Uint8Array.of(192, 0, 2, 2),
    stations: 16,
    vteps: 16,
    ...more,
  });
  return { chain, memory, list, builder };
}

/** What became of each frame, in the order in which it was told. */
function outcomes(chain: Chain): string[] {
  const seen: string[] = [];
  chain.observe({
    delivered: (_frame, index) => void seen.push(`${index}`),
    dropped: (_frame, index, element, reason) => void seen.push(`${index} ${element} ${reason}`),
    breath() {},
  });
  return seen;
}

test('a bridge delivers unicast, unknown unicast and group frames once each, in order', (t) => {
  const frames = [frame(B, A), frame(BROADCAST, B), frame(A, B), frame(GROUP, A), frame(B, A)];
  const { chain } = build(['bridge'], frames);
  t.deepEqual(outcomes(chain), ['0', '1', '2', '3', '4']);
  t.deepEqual(chain.totals(), { frames: 5, bytes: 300, delivered: 5, drops: {}, flows: 0 });
});

test('drops are told with element and reason, and counted', (t) => {
  const frames = [frame(B, A), frame(A, A), frame(BPDU, A), frame(B, GROUP), frame(B, A, 13), frame(B, A, 0)];
  const { chain } = build(['bridge', 'vxlan-encap'], frames);
  t.deepEqual(outcomes(chain).sort(), [
    '0',
    '1 bridge same-port',
    '2 bridge reserved-group',
    '3 bridge bad-source',
    '4 bridge runt',
    '5 bridge runt',
  ]);
  chain.pass();
  t.deepEqual(chain.totals(), {
    frames: 12,
    bytes: 506,
    delivered: 2,
    flows: 0,
    drops: {
      'bridge: runt': 4,
      'bridge: bad-source': 2,
      'bridge: reserved-group': 2,
      'bridge: same-port': 2,
    },
  });
});

test('what goes into the tunnel comes out of it byte for byte, over more than one batch and large slots', (t) => {
  const lengths = [14, 15, 60, 61, 1514, 1800, 9014, 65_479];
  const frames = Array.from({ length: 700 }, (_, i) => frame(B, A, lengths[i % (i < 16 ? 8 : 6)]));
  for (const v6 of [false, true]) {
    const ends = v6
      ? {
          local: { address: new Uint8Array(16).fill(1), port: 4789, ttl: 1 },
          remote: new Uint8Array(16).fill(2),
        }
      : {};
    const { chain, memory } = build(['vxlan-encap', 'vxlan-decap'], frames, ends);
    const back: Buffer[] = [];
    chain.observe({
      delivered: (id, index) => {
        back[index] = Buffer.from(memory.u8.slice(memory.off[id], memory.off[id] + memory.len[id]));
      },
      dropped: (_frame, index, element, reason) => t.fail(`${index} ${element} ${reason}`),
      breath: () => t.is(memory.inUse, 0),
    });
    t.is(
      frames.findIndex((sent, i) => !back[i]?.equals(sent)),
      -1,
    );
    t.is(chain.totals().delivered, 700);
  }
});

test('every VNI of a capture is found, also within tunnels, and has a domain of its own', (t) => {
  const inner = frame(B, A);
  const frames = [
    vxlan(7, inner),
    vxlan(0xabcdef, inner),
    vxlan(7, vxlan(9, inner)),
    frame(B, A),
    vxlan(7, inner, 4),
  ];
  const { builder } = build(['vxlan-decap', 'bridge'], frames);
  t.deepEqual(
    builder.vnis().sort((a, b) => a - b),
    [7, 9, 0xabcdef],
  );
  const all = build(['vxlan-decap', 'bridge'], frames, { vnis: [42, ...builder.vnis()] });
  // The station moves to another VTEP with the last one; its frames are to an unknown station throughout.
  t.deepEqual(outcomes(all.chain), ['3 vxlan-decap not-ip', '0', '1', '2', '4']);
  const one = build(['vxlan-decap', 'bridge'], frames, { vnis: [7] });
  t.is(outcomes(one.chain).filter((line) => line.endsWith('unknown-vni')).length, 1);
});

test('outer packets are placed so that what is inside is aligned to 8 bytes', (t) => {
  const { list } = build(
    ['vxlan-decap'],
    [vxlan(1, frame(B, A)), frame(B, A, 0), frame(B, A, 61), vxlan(1, frame(B, A))],
  );
  t.deepEqual(
    [...list.offsets].map((at) => at % 8),
    [6, 6, 6, 6],
  );
  const plain = build(['bridge'], [frame(B, A, 61), frame(B, A, 3), frame(B, A)]);
  t.deepEqual(
    [...plain.list.offsets].map((at) => at % 8),
    [0, 0, 0],
  );
});

test('a list larger than announced is refused', (t) => {
  const memory = new FrameMemory({ small: 1, large: 1, arena: listArenaBytes(60, 1) });
  const index = { count: 1, offsets: Uint32Array.of(0), lengths: Uint32Array.of(60) };
  const builder = new FrameListBuilder(memory, 1, false, 4789);
  builder.add(frame(B, A), index);
  t.throws(() => builder.add(frame(B, A), index), { instanceOf: RangeError });
});

test('wrong chains are refused when they are made', (t) => {
  t.throws(() => build(['bridge', 'hub'], []), { message: /no element hub/ });
  t.throws(() => build(['bridge'], [], { vnis: [] }), { message: /VNIs/ });
  t.throws(() => build(['bridge'], [], { vnis: [1, 1] }), { message: /VNI 1 belongs/ });
  t.throws(() => build(['vxlan-encap'], [], { remote: new Uint8Array(16) }), { message: /one IP version/ });
});

test('an empty list is run and accounted for', (t) => {
  const { chain } = build(['bridge'], []);
  chain.pass();
  t.deepEqual(chain.totals(), { frames: 0, bytes: 0, delivered: 0, drops: {}, flows: 0 });
});

/** Runs a chain with an element that does not keep its promises. */
function withElement(process: (batch: Batch, out: Batch, free: (frame: number) => void) => void): Chain {
  const definition: ElementDefinition = {
    summary: '',
    outer: 'keeps',
    build: ({ context }, out) => ({
      drops: new Drops(context, 'faulty', []),
      process: (batch) => process(batch, out, (id) => context.frames.free(id)),
    }),
  };
  const elements = ELEMENTS as Map<string, ElementDefinition>;
  elements.set('faulty', definition);
  try {
    return build(['bridge', 'faulty'], [frame(B, A), frame(A, B)]).chain;
  } finally {
    elements.delete('faulty');
  }
}

test.serial('an element that keeps, swallows or doubles frames is found out', (t) => {
  const keeps = withElement(() => {});
  keeps.pass();
  t.throws(() => keeps.totals(), { message: /not accounted for: 2 in .* 0 delivered, 0 dropped/ });
  const swallows = withElement((batch, _out, free) => batch.frames.slice(0, batch.count).forEach(free));
  swallows.pass();
  t.throws(() => swallows.totals(), { message: /not accounted for/ });
  const doubles = withElement((batch, out) => {
    out.push(batch.frames[0]);
    out.push(batch.frames[0]);
  });
  doubles.pass();
  t.throws(() => doubles.totals(), { message: /slots are in use|freed twice|not accounted/ });
});
