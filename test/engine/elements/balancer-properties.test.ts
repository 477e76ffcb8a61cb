/**
 * What holds whatever happens: a flow keeps its backend while it lives, there and back is identity, what is counted of
 * backends is what is in the table, and no frame is lost.
 */
import test from 'ava';
import fc from 'fast-check';
import type { ServiceIntent } from '../../../engine/intent.js';
import { ESTABLISHED, NEW_IN, TWO_SIDED } from '../../../engine/tables/connection.js';
import {
  EXTERNAL,
  FLOW_SHIFT,
  IN_PORTS,
  INSIDE,
  OUT_KEY,
  OUT_PORTS,
  PACKETS_IN,
  PACKETS_OUT,
  REMOTE_END,
  STATE,
  STATE_MASK,
} from '../../../engine/tables/flows.js';
import { BalancerRig, backend, service, VIP } from '../../support/balancer.js';
import { ip } from '../../support/frames.js';
import { answerTo, badChecksums, type Packet, packet, TCP, UDP } from '../../support/nat.js';

const OTHER = '10.0.9.101';
/** Bit of STATE of flows that count for nothing. */
const MIRROR = 0x80;

interface Setting {
  readonly scheduler: ServiceIntent['scheduler'];
  readonly affinity: number;
  readonly direct: boolean;
  readonly target: number;
  /** Weight of each backend that is there; 0: drained, below: dead. */
  readonly weights: readonly (number | undefined)[];
}

const setting: fc.Arbitrary<Setting> = fc.record({
  scheduler: fc.constantFrom('rr', 'wrr', 'lc', 'wlc', 'sh', 'maglev'),
  affinity: fc.constantFrom(0, 0, 30),
  direct: fc.constantFrom(false, false, false, true),
  target: fc.constantFrom(80, 8080),
  weights: fc.array(fc.constantFrom(undefined, -1, 0, 1, 1, 1, 1, 2), { minLength: 3, maxLength: 3 }),
});

/** Two services with the same backends: one of two ports, one of all. */
function servicesOf({ weights, target, direct, ...rest }: Setting): ServiceIntent[] {
  const backends = (first: number) =>
    weights.flatMap((weight, i) =>
      weight === undefined
        ? []
        : [
            backend(first + i, {
              address: ip(`10.0.9.${1 + i}`),
              weight: Math.max(weight, 0),
              alive: weight >= 0,
            }),
          ],
    );
  const ports = [
    { protocol: TCP, port: 80, target: direct ? 80 : target },
    { protocol: UDP, port: 53, target: 53 },
  ];
  return [
    service({ ...rest, direct, ports, backends: backends(1) }),
    service({ ...rest, id: 2, address: ip(OTHER), backends: backends(11) }),
  ];
}

const request: fc.Arbitrary<Packet> = fc.record({
  protocol: fc.constantFrom(TCP, TCP, TCP, UDP),
  // The first two are backends themselves.
  source: fc.constantFrom('10.0.9.1', '10.0.9.2', '10.0.9.50', '10.0.9.51', '10.0.9.52'),
  destination: fc.constantFrom(VIP, VIP, OTHER),
  sourcePort: fc.constantFrom(4000, 4001, 4002, 53),
  destinationPort: fc.constantFrom(80, 80, 53, 8080),
  flags: fc.constantFrom(2, 2, 2, 2, 0x10, 0x10, 0x11, 0x04, 0x12, 3),
  content: fc.uint8Array({ maxLength: 12 }),
  noChecksum: fc.boolean(),
});

type Step =
  | { readonly kind: 'packet'; readonly packet: Packet; readonly answer: number | undefined }
  | { readonly kind: 'wait'; readonly seconds: number }
  | { readonly kind: 'set'; readonly setting: Setting };

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 12,
    arbitrary: fc.record({
      kind: fc.constant('packet' as const),
      packet: request,
      answer: fc.constantFrom(undefined, 0x12, 0x10, 0x11, 0x14),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant('wait' as const),
      seconds: fc.constantFrom(0, 1, 29, 241, 7500),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('set' as const), setting }) },
);

interface Seen {
  readonly ends: string;
  readonly backend: number;
  readonly inside: number;
  readonly packets: number;
}

/** Every flow by its number; an affinity, which is of no protocol, may have another backend. */
function seen({ flows }: BalancerRig): Map<number, Seen> {
  const found = new Map<number, Seen>();
  const { words } = flows;
  flows.forEach((flow) => {
    const word = (which: number): number => words[(flow << FLOW_SHIFT) + which]!;
    if ((word(OUT_KEY) & 0xff) === 0) return;
    const ends = [EXTERNAL, REMOTE_END, IN_PORTS, OUT_KEY].map(word).join(' ');
    const packets = word(PACKETS_IN) + word(PACKETS_OUT);
    found.set(flow, { ends, backend: (word(STATE) >>> 8) - 1, inside: word(INSIDE), packets });
  });
  return found;
}

/** Active and inactive flows of each backend, by the table. */
function counted({ flows, services }: BalancerRig): Map<number, string> {
  const { words } = flows;
  const found = new Map<number, [number, number]>();
  flows.forEach((flow) => {
    const state = words[(flow << FLOW_SHIFT) + STATE]!;
    if ((state & MIRROR) !== 0) return;
    const backend = (state >>> 8) - 1;
    const counts = found.get(backend) ?? [0, 0];
    counts[[ESTABLISHED, NEW_IN, TWO_SIDED].includes(state & STATE_MASK) ? 0 : 1]++;
    found.set(backend, counts);
  });
  return new Map(
    services.counts().map(({ id }) => [id, (found.get(services.numberOf(id)) ?? [0, 0]).join(' ')] as const),
  );
}

const told = ({ services }: BalancerRig): Map<number, string> =>
  new Map(services.counts().map(({ id, active, inactive }) => [id, `${active} ${inactive}`]));

test('property: flows keep their backends, answers come back as they were asked, counts are the table’s', (t) => {
  let [through, back] = [0, 0];
  fc.assert(
    fc.property(setting, fc.array(step, { minLength: 20, maxLength: 80 }), (first, steps) => {
      // So few flows that they run out.
      const b = new BalancerRig(servicesOf(first), 14);
      const clean = (): number => Object.values(b.drops()).reduce((sum, count) => sum + count, 0);
      const errors = (): number => b.rig.counter('icmp-errors', 'sent');
      let before = seen(b);
      let direct = first.direct;
      let seconds = 1000;
      for (const one of steps) {
        if (one.kind === 'set') {
          b.set(servicesOf(one.setting));
          b.services.schedulers.rebuild(1e9);
          // What ends, ends at once; flows of a service that has become direct, or is it no more, are others.
          b.age(seconds);
          direct = one.setting.direct;
          before = seen(b);
        } else if (one.kind === 'wait') {
          seconds += one.seconds;
          b.age(seconds);
        } else {
          const sent = packet(one.packet);
          const [dropped, made] = [clean(), errors()];
          const out = b.feed([sent]);
          t.is(out.length + clean() - dropped - (errors() - made), 1);
          const frame = out[0]?.bytes;
          const isForward = frame !== undefined && frame[31] === 0 && frame[32] === 9 && frame[33]! <= 3;
          if (
            isForward &&
            !direct &&
            clean() === dropped &&
            frame[26] === sent[26] &&
            frame[29] === sent[29]
          ) {
            through++;
            t.deepEqual(badChecksums(frame), []);
            if (one.answer !== undefined) {
              const tcp = one.packet.protocol === TCP ? one.answer : undefined;
              const [answer] = b.feed([answerTo(frame, tcp)]);
              t.deepEqual(answer!.bytes.slice(12), answerTo(sent, tcp).slice(12));
              back++;
            }
          }
        }
        const after = seen(b);
        for (const [flow, { ends, backend: chosen, inside, packets }] of after) {
          const old = before.get(flow);
          // The same entry, if it is no other flow meanwhile.
          if (old === undefined || old.ends !== ends || packets < old.packets) continue;
          t.deepEqual([chosen, inside], [old.backend, old.inside]);
        }
        before = after;
        t.deepEqual(told(b), counted(b));
        t.true(b.flows.size <= 14);
      }
      b.balancer.flush();
      b.rig.finish(t);
    }),
    { numRuns: 200 },
  );
  t.true(through > 500 && back > 300, `${through} ${back}`);
});

test('property: no two flows share their ends, on either side, of clients that are not backends', (t) => {
  const outside = request.map((p) => ({ ...p, source: `10.0.9.5${Number(p.source!.slice(-1)) % 3}` }));
  fc.assert(
    fc.property(fc.array(outside, { maxLength: 80 }), (list) => {
      const weights = [1, 1, 1];
      const b = new BalancerRig(
        servicesOf({ scheduler: 'rr', affinity: 0, direct: false, target: 8080, weights }),
      );
      b.feed(list.map(packet));
      const { words } = b.flows;
      const ends = { inside: new Set<string>(), external: new Set<string>() };
      b.flows.forEach((flow) => {
        const word = (which: number): number => words[(flow << FLOW_SHIFT) + which]!;
        ends.inside.add([INSIDE, REMOTE_END, OUT_PORTS, OUT_KEY].map(word).join(' '));
        ends.external.add([EXTERNAL, REMOTE_END, IN_PORTS, OUT_KEY].map(word).join(' '));
      });
      t.deepEqual([ends.inside.size, ends.external.size], [b.flows.size, b.flows.size]);
      b.rig.finish(t);
    }),
    { numRuns: 150 },
  );
});

test('property: a batch does what its packets do one by one', (t) => {
  fc.assert(
    fc.property(setting, fc.array(request, { maxLength: 100 }), (how, list) => {
      const frames = list.map(packet);
      const [together, single] = [new BalancerRig(servicesOf(how)), new BalancerRig(servicesOf(how))];
      t.deepEqual(
        together.feed(frames).map(({ bytes }) => bytes),
        frames.flatMap((frame) => single.feed([frame]).map(({ bytes }) => bytes)),
      );
      t.deepEqual([together.drops(), told(together)], [single.drops(), told(single)]);
    }),
    { numRuns: 60 },
  );
});

test('property: noise crashes nothing; every frame leaves or is counted, and every slot comes back', (t) => {
  const frame = fc.oneof(
    fc.uint8Array({ maxLength: 120 }),
    fc
      .tuple(request, fc.array(fc.tuple(fc.nat(60), fc.nat(255)), { maxLength: 6 }), fc.nat(80))
      .map(([p, edits, cut]) => {
        const bytes = packet(p).slice(0, cut < 60 ? undefined : cut);
        for (const [at, value] of edits) if (at < bytes.length) bytes[at] = value;
        return bytes;
      }),
    request.map((p) => answerTo(packet({ ...p, source: '10.0.9.50', destination: '10.0.9.1' }))),
  );
  fc.assert(
    fc.property(setting, fc.array(fc.array(frame, { maxLength: 20 }), { maxLength: 10 }), (how, batches) => {
      const b = new BalancerRig(servicesOf(how), 10);
      let [handed, left] = [0, 0];
      for (const [i, frames] of batches.entries()) {
        left += b.feed(frames, { mark: i % 3 === 0 ? 0 : 300 }).length;
        handed += frames.length;
      }
      left -= b.rig.counter('icmp-errors', 'sent');
      b.balancer.flush();
      const dropped = Object.values(b.drops()).reduce((sum, count) => sum + count, 0);
      t.is(handed, left + dropped);
      b.rig.finish(t);
    }),
    { numRuns: 300 },
  );
});
