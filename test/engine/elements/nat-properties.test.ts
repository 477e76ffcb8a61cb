/** What holds for any packets: there and back is identity, no two flows share their ends, sums are those of the book. */
import test from 'ava';
import fc from 'fast-check';
import { replaceAddress, replacePort } from '../../../engine/elements/nat/packet.js';
import {
  GSO_TCPV4,
  GSO_UDP_L4,
  OFFLOAD_GSO_SHIFT,
  OFFLOAD_NEEDS_CSUM,
} from '../../../engine/memory/frames.js';
import {
  EXTERNAL as EXTERNAL_WORD,
  FLOW_SHIFT,
  IN_PORTS,
  INSIDE as INSIDE_WORD,
  OUT_KEY,
  OUT_PORTS,
  REMOTE_END,
} from '../../../engine/tables/flows.js';
import { be16, concat, ip, slowSum } from '../../support/frames.js';
import {
  answerTo,
  badChecksums,
  EXTERNAL,
  ICMP,
  NatRig,
  numbers,
  type Packet,
  packet,
  REMOTE,
  SCTP,
  TCP,
  UDP,
} from '../../support/nat.js';

const MAPPINGS = ['endpoint-independent', 'endpoint-dependent'] as const;

const anyPacket: fc.Arbitrary<Packet & { domain: number }> = fc.record({
  protocol: fc.constantFrom(TCP, TCP, UDP, UDP, ICMP, SCTP, 47, 136),
  source: fc.constantFrom('10.0.0.1', '10.0.0.2', '0.0.0.0', '255.255.255.255'),
  destination: fc.constantFrom(REMOTE, '198.51.100.8', '0.0.0.1', '255.255.0.0'),
  sourcePort: fc.oneof(fc.constantFrom(0, 1, 0xffff, 40000), fc.integer({ min: 0, max: 0xffff })),
  destinationPort: fc.constantFrom(0, 53, 0xffff),
  flags: fc.integer({ min: 0, max: 255 }),
  icmpType: fc.constantFrom(8, 13),
  content: fc.uint8Array({ maxLength: 40 }),
  noChecksum: fc.boolean(),
  domain: fc.constantFrom(0, 1, 4095),
});

const step = fc.record({
  packet: anyPacket,
  wait: fc.constantFrom(0, 0, 0, 1, 61, 300),
  answer: fc.boolean(),
});

/** Ends of every live flow, outside and inside, as text. */
function endsOfFlows({ tables }: NatRig): { outside: string[]; inside: string[] } {
  const { words } = tables.flows;
  const outside: string[] = [];
  const inside: string[] = [];
  tables.flows.forEach((flow) => {
    const word = (which: number): number => words[(flow << FLOW_SHIFT) + which]!;
    outside.push(`${word(EXTERNAL_WORD)} ${word(REMOTE_END)} ${word(IN_PORTS)} ${word(OUT_KEY) & 0xff}`);
    inside.push(`${word(INSIDE_WORD)} ${word(REMOTE_END)} ${word(OUT_PORTS)} ${word(OUT_KEY)}`);
  });
  return { outside, inside };
}

for (const mapping of MAPPINGS)
  test(`property: whatever goes out comes back to who sent it, byte for byte, and no two flows share their ends (${mapping})`, (t) => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), fc.integer(), (steps, seed) => {
        // So few flows and ports that they run out.
        const n = new NatRig({
          mapping,
          seed,
          maxFlows: 24,
          firstPort: 1020,
          lastPort: 1050,
          random: numbers(seed),
        });
        for (const { packet: p, wait, answer } of steps) {
          const sent = packet(p);
          const { outside } = n.feed(false, [sent], { domain: p.domain });
          const { outside: ends, inside } = endsOfFlows(n);
          t.is(new Set(ends).size, n.flows);
          t.is(new Set(inside).size, n.flows);
          if (outside.length === 1) {
            const frame = outside[0]!.bytes;
            t.deepEqual(badChecksums(frame), [], JSON.stringify(p));
            t.deepEqual([...frame.slice(26, 30)], [...ip(EXTERNAL)]);
            if (answer) {
              const back = n.feed(true, [answerTo(frame)]).inside;
              t.is(back.length, 1);
              t.deepEqual(back[0]!.bytes, answerTo(sent));
              t.is(back[0]!.domain, p.domain);
            }
          }
          n.pass(wait);
        }
        n.finish(t);
      }),
      { numRuns: 150 },
    );
  });

test('property: a sequence of packets as one batch does what it does one by one', (t) => {
  fc.assert(
    fc.property(fc.array(anyPacket, { maxLength: 100 }), (list) => {
      const frames = list.map(packet);
      const [together, single] = [new NatRig(), new NatRig()];
      const outside = together.feed(false, frames).outside.map(({ bytes }) => bytes);
      t.deepEqual(
        outside,
        frames.flatMap((frame) => single.feed(false, [frame]).outside.map(({ bytes }) => bytes)),
      );
      t.deepEqual(together.drops(), single.drops());
    }),
    { numRuns: 50 },
  );
});

test('property: noise crashes nothing; every frame leaves or is counted, and every slot comes back', (t) => {
  const published = { address: '10.0.0.9', protocol: TCP };
  const frame = fc.oneof(
    fc.uint8Array({ maxLength: 120 }),
    fc
      .tuple(anyPacket, fc.array(fc.tuple(fc.nat(60), fc.nat(255)), { maxLength: 6 }), fc.nat(80))
      .map(([p, edits, cut]) => {
        const bytes = packet(p).slice(0, cut < 60 ? undefined : cut);
        for (const [at, value] of edits) if (at < bytes.length) bytes[at] = value;
        return bytes;
      }),
    anyPacket.map((p) => answerTo(packet({ ...p, source: EXTERNAL }))),
  );
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.boolean(), fc.array(frame, { maxLength: 20 })), { maxLength: 10 }),
      (batches) => {
        const n = new NatRig({ maxFlows: 10 });
        n.publish(53, 53, published);
        let [handed, left] = [0, 0];
        for (const [inward, frames] of batches) {
          const { outside, inside } = n.feed(inward, frames);
          handed += frames.length;
          left += outside.length + inside.length;
          n.pass(1);
        }
        n.finish(t);
        const dropped = Object.values(n.drops()).reduce((sum, count) => sum + count, 0);
        t.is(handed, left + dropped);
      },
    ),
    { numRuns: 300 },
  );
});

const word16 = fc.integer({ min: 0, max: 0xffff });
const edge16 = fc.oneof(fc.constantFrom(0, 1, 0xfffe, 0xffff), word16);
const le = (value: number): number => ((value & 0xff) << 8) | (value >>> 8);

/** Words in wire order as the engine's view gives them, and back. */
const view = (bytes: Uint8Array): Uint16Array => new Uint16Array(bytes.slice().buffer);

test('property: an incremental checksum is the full one, at its edges too (RFC 1624)', (t) => {
  const cases = fc.record({
    protocol: fc.constantFrom(TCP, UDP, ICMP),
    before: fc.tuple(edge16, edge16, edge16),
    after: fc.tuple(edge16, edge16, edge16),
    rest: fc.array(edge16, { minLength: 7, maxLength: 12 }),
    port: fc.constantFrom(0, 1),
  });
  const sumOf = (protocol: number, address: readonly number[], words: readonly number[]): number =>
    slowSum(
      be16(...words),
      protocol === ICMP ? 0 : slowSum(be16(...address, 0xc633, 0x6407, protocol, words.length * 2)),
    );
  const field = { [TCP]: 8, [UDP]: 3, [ICMP]: 1 } as Record<number, number>;
  fc.assert(
    fc.property(cases, ({ protocol, before, after, rest, port }) => {
      const place = protocol === ICMP ? 2 : port;
      const make = ([high, low, value]: readonly [number, number, number]): number[] => {
        const words = [0, 0, ...rest];
        words[place] = value;
        words[field[protocol]!] = 0;
        const sum = ~sumOf(protocol, [high, low], words) & 0xffff;
        words[field[protocol]!] = sum === 0 && protocol === UDP ? 0xffff : sum;
        return words;
      };
      const old = make(before);
      if (protocol === ICMP && old.every((word, i) => word === 0 || i === 1)) return;
      // An IPv4 header of which only the source matters, and its checksum.
      const header = concat(
        be16(0x4500, 40, 1, 0, 0x4000 | protocol, 0, before[0], before[1], 0xc633, 0x6407),
      );
      header.set(be16(~slowSum(header) & 0xffff), 10);
      const u16 = view(concat(header, be16(...old)));
      const address = le(after[0]) | (le(after[1]) << 16);
      const delta = replaceAddress(u16, 0, 6, address);
      replacePort(u16, 10, protocol, port, le(after[2]), delta, false);
      t.is(slowSum(new Uint8Array(u16.buffer, 0, 20)), 0xffff);
      const [got, full] = [[...u16.subarray(10)].map(le), make(after)];
      // A message whose header is zeros may be zeros alone, whose checksum is all ones: where it is not, that is as right.
      if (protocol === ICMP && [0, 1, 2, 3].every((word) => full[word] === 0) && got[1] === 0xffff)
        got[1] = 0;
      t.deepEqual(got, full);
    }),
    { numRuns: 5000 },
  );
});

test('property: the partial checksum of a super-frame is that of the new pseudo-header', (t) => {
  const cases = fc.record({
    protocol: fc.constantFrom(TCP, UDP),
    source: fc.tuple(fc.nat(255), fc.nat(255), fc.nat(255), fc.nat(255)),
    segments: fc.integer({ min: 1, max: 40 }),
  });
  fc.assert(
    fc.property(cases, ({ protocol, source, segments }) => {
      const p = { protocol, source: source.join('.'), content: new Uint8Array(segments * 1400) };
      const pseudo = (from: string): number =>
        slowSum(concat(ip(from), ip(REMOTE), be16(protocol, (protocol === TCP ? 20 : 8) + p.content.length)));
      const frame = packet(p);
      const start = 34;
      const field = protocol === TCP ? 16 : 6;
      frame.set(be16(pseudo(p.source)), start + field);
      const offload = OFFLOAD_NEEDS_CSUM | ((protocol === TCP ? GSO_TCPV4 : GSO_UDP_L4) << OFFLOAD_GSO_SHIFT);
      const metadata = { offload, gsoSize: 1400, csumStart: start, csumOffset: field, hdrLen: start + 8 };
      const n = new NatRig();
      const [caught] = n.feed(false, [frame], metadata).outside;
      t.is((caught!.bytes[start + field]! << 8) | caught!.bytes[start + field + 1]!, pseudo(EXTERNAL));
      t.deepEqual([caught!.offload, caught!.gsoSize, caught!.csumStart], [offload, 1400, start]);
      const back = answerTo(caught!.bytes);
      t.deepEqual(n.feed(true, [back], metadata).inside[0]!.bytes, answerTo(frame));
      n.finish(t);
    }),
    { numRuns: 60 },
  );
});

test('a partial checksum of what is inside the packet is no checksum of the packet', (t) => {
  const n = new NatRig();
  const metadata = { offload: OFFLOAD_NEEDS_CSUM, csumStart: 84, csumOffset: 16 };
  const frame = packet({ content: new Uint8Array(100) });
  t.deepEqual(badChecksums(n.out(frame, metadata)), []);
});
