import test from 'ava';
import fc from 'fast-check';
import { STATE_NAMES } from '../../../engine/tables/connection.js';
import {
  CHANGED,
  CLOSED,
  ENDED,
  EVENT_KIND,
  EVICTED,
  EXPIRED,
  FLOW_EVENT_BYTES,
  FLUSHED,
  FlowEventReader,
  FlowEvents,
  MADE,
} from '../../../engine/tables/flow-events.js';
import { STATE } from '../../../engine/tables/flows.js';
import { ACK, answerTo, FIN, NatRig, packet, RST, SYN, TCP } from '../../support/nat.js';

const NAMES: Readonly<Record<number, string>> = {
  [MADE]: 'made',
  [CHANGED]: 'changed',
  [ENDED]: 'ended',
  [ENDED | (EXPIRED << 8)]: 'expired',
  [ENDED | (CLOSED << 8)]: 'closed',
  [ENDED | (EVICTED << 8)]: 'evicted',
  [ENDED | (FLUSHED << 8)]: 'flushed',
};

function watched(options: ConstructorParameters<typeof NatRig>[0] = {}) {
  const n = new NatRig(options);
  const memory = new SharedArrayBuffer(FLOW_EVENT_BYTES);
  const { flows } = n.tables;
  flows.events = new FlowEvents(n.rig.context, memory, flows.words);
  const reader = new FlowEventReader(memory);
  const read = (): string[] => {
    const seen: string[] = [];
    reader.drain((event) => {
      seen.push(`${NAMES[event[EVENT_KIND]!]} ${STATE_NAMES[event[STATE]!]}`);
    });
    return seen;
  };
  return { n, reader, read, ring: new Int32Array(memory) };
}

const opening = packet({ protocol: TCP, flags: SYN });

test('a connection is told of from its first packet to its end, and not of what changes nothing', (t) => {
  const { n, reader, read } = watched();
  reader.listen(true);
  const out = n.out(opening);
  n.in(answerTo(out, SYN | ACK));
  for (let i = 0; i < 10; i++) n.in(answerTo(n.out(packet({ protocol: TCP, flags: ACK })), ACK));
  t.deepEqual(read(), ['made syn-sent', 'changed established']);
  n.out(packet({ protocol: TCP, flags: FIN | ACK }));
  n.in(answerTo(out, FIN | ACK));
  t.deepEqual(read(), ['changed fin-sent', 'changed closing']);
  n.pass(300);
  t.deepEqual(read(), ['closed closing']);
});

test('why flows end: silence, an RST, no room, and because they are told to', (t) => {
  const { n, reader, read } = watched({ maxFlows: 1 });
  reader.listen(true);
  const out = n.out(packet());
  n.in(answerTo(out));
  n.pass(400);
  t.deepEqual(read(), ['made unreplied', 'changed active', 'expired active']);
  n.out(packet());
  n.out(packet({ sourcePort: 5 }));
  t.deepEqual(read(), ['made unreplied', 'evicted unreplied', 'made unreplied']);
  n.tables.flows.forEach((flow) => {
    n.tables.flows.end(flow);
  });
  t.deepEqual(read(), ['flushed unreplied']);
  n.in(answerTo(n.out(opening), SYN | ACK));
  n.out(packet({ protocol: TCP, flags: RST }));
  n.pass(400);
  t.deepEqual(read().slice(-2), ['changed transitory', 'closed transitory']);
});

test('while nobody listens nothing is written, and who begins hears nothing of before', (t) => {
  const { n, reader, read, ring } = watched();
  n.out(packet());
  t.true(ring.every((word) => word === 0));
  reader.listen(true);
  t.deepEqual(read(), []);
  n.out(packet({ sourcePort: 9 }));
  t.deepEqual(read(), ['made unreplied']);
  n.out(packet({ sourcePort: 10 }));
  reader.listen(false);
  reader.listen(true);
  t.deepEqual(read(), []);
});

test('property: what is read and what is lost is together what was written, in its order', (t) => {
  const { n, reader } = watched({ maxFlows: 2 });
  const { flows } = n.tables;
  const flow = flows.create(1, 2, 3, 0x1_0011, 4, 5);
  flows.setExpiry(flow, 5000);
  reader.listen(true);
  let next = 0;
  let expected = 0;
  // Beyond 2^32 events too.
  new Int32Array(flows.words.buffer);
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 0, max: 9000 }), { minLength: 1, maxLength: 5 }), (bursts) => {
      for (const burst of bursts) {
        for (let i = 0; i < burst; i++) {
          flows.words[flow * 16 + STATE] = next++;
          flows.changed(flow);
        }
        const seen: number[] = [];
        const lost = reader.drain((event) => {
          seen.push(event[STATE]!);
        });
        t.is(lost + seen.length, burst);
        t.true(burst >= 4096 || lost === 0);
        expected += lost;
        for (const state of seen) t.is(state, expected++);
      }
    }),
    { numRuns: 30 },
  );
});
