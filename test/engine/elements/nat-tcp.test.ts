/** RFC 5382 and what RFC 7857 changed of it, requirement by requirement, and what is published. */
import test from 'ava';
import { word } from '../../../engine/elements/nat/tables.js';
import {
  ESTABLISHED,
  FIN_BOTH,
  STATE_NAMES,
  SYN_BOTH,
  SYN_IN,
  SYN_OUT,
  TRANSITORY,
} from '../../../engine/tables/connection.js';
import { EXPIRY, FLOW_SHIFT, flowKeyHash, STATE } from '../../../engine/tables/flows.js';
import { ip } from '../../support/frames.js';
import {
  ACK,
  answerTo,
  badChecksums,
  EXTERNAL,
  ends,
  FIN,
  INSIDE,
  icmpError,
  NatRig,
  packet,
  REMOTE,
  RST,
  SYN,
  sourcePort,
  TCP,
  UDP,
} from '../../support/nat.js';

const OTHER = '198.51.100.8';
/** A port that is published for a service. */
const PUBLISHED = {
  protocol: TCP,
  port: 8080,
  domain: 0,
  address: ip('10.0.9.100'),
  target: 80,
  service: 3,
};
const tcp = (flags: number, more = {}): Uint8Array =>
  packet({ protocol: TCP, destinationPort: 80, flags, ...more });

/** A connection from inside after its handshake; returns its SYN as it looks outside. */
function connect(n: NatRig, more = {}): Uint8Array {
  const syn = n.out(tcp(SYN, more));
  n.in(answerTo(syn, SYN | ACK));
  n.out(tcp(ACK, more));
  return syn;
}

const states = (n: NatRig): string[] => n.states().map((state) => STATE_NAMES[state]!);

test('RFC 5382, REQ-1: one mapping for an endpoint, whatever it connects to', (t) => {
  const n = new NatRig();
  const ports = [REMOTE, OTHER].map((destination) => sourcePort(n.out(tcp(SYN, { destination }))));
  t.is(ports[0], ports[1]);
});

test('RFC 5382, REQ-2: handshake, data and end pass both ways', (t) => {
  const n = new NatRig();
  const syn = connect(n);
  t.deepEqual(n.states(), [ESTABLISHED]);
  t.is(ends(n.in(answerTo(syn, ACK))), `${REMOTE}:80 > ${INSIDE}:4000`);
  n.out(tcp(FIN | ACK));
  n.in(answerTo(syn, FIN | ACK));
  t.deepEqual(n.states(), [FIN_BOTH]);
  t.deepEqual(badChecksums(n.out(tcp(ACK))), []);
  t.is(n.flows, 1);
});

test('RFC 5382, REQ-2a: simultaneous open', (t) => {
  const n = new NatRig();
  const syn = n.out(tcp(SYN));
  n.in(answerTo(syn, SYN));
  n.out(tcp(SYN | ACK));
  n.in(answerTo(syn, SYN | ACK));
  t.deepEqual(n.states(), [ESTABLISHED]);
});

test('RFC 5382, REQ-3: filtering is address-dependent, as for UDP', (t) => {
  const n = new NatRig();
  const port = sourcePort(connect(n));
  const from = (source: string): string =>
    n.refused(true, tcp(SYN, { source, destination: EXTERNAL, sourcePort: 7, destinationPort: port }));
  t.is(from(REMOTE), 'passed');
  t.is(from(OTHER), 'filtered');
});

test('RFC 5382, REQ-4: a SYN nobody waits for is dropped in silence, and does no harm to one that goes out', (t) => {
  const n = new NatRig();
  const syn = tcp(SYN, { source: REMOTE, destination: EXTERNAL, sourcePort: 80, destinationPort: 40000 });
  const { outside, inside } = n.feed(true, [syn]);
  t.deepEqual([outside, inside], [[], []]);
  t.deepEqual(n.drops(), { 'not-published': 1 });
  // Within six seconds the inside tries the same.
  n.out(tcp(SYN, { sourcePort: 40000 }));
  t.is(ends(n.in(syn)), `${REMOTE}:80 > ${INSIDE}:40000`);
  t.deepEqual(n.states(), [ESTABLISHED]);
});

test('RFC 5382, REQ-5: established lasts 2 h 4 min of silence, opening and closing four minutes', (t) => {
  const n = new NatRig();
  connect(n);
  n.pass(7439);
  t.is(n.flows, 1);
  n.pass(1);
  t.is(n.flows, 0);
  n.out(tcp(SYN));
  n.pass(239);
  t.is(n.flows, 1);
  n.pass(1);
  t.is(n.flows, 0);
});

test('RFC 5382, REQ-5: one that ends goes after four minutes, though it was to stay two hours', (t) => {
  const n = new NatRig();
  const syn = connect(n);
  // Beyond the first bucket of the wheel.
  n.pass(1000);
  n.out(tcp(FIN | ACK));
  n.pass(1000);
  t.is(n.flows, 1, 'half-closed is established still');
  n.in(answerTo(syn, FIN | ACK));
  n.pass(239);
  t.is(n.flows, 1);
  n.pass(1);
  t.is(n.flows, 0);
});

test('where no port is left, a connection that both sides have closed gives up its own, the one that is over longest', (t) => {
  const n = new NatRig({ firstPort: 40000, lastPort: 40003 });
  const close = (port: number): void => {
    const syn = connect(n, { sourcePort: port });
    n.out(tcp(FIN | ACK, { sourcePort: port }));
    n.in(answerTo(syn, FIN | ACK));
  };
  connect(n, { sourcePort: 1 });
  connect(n, { sourcePort: 2 });
  n.in(answerTo(n.out(tcp(ACK, { sourcePort: 2 })), RST));
  for (const port of [3, 4]) {
    close(port);
    n.pass(10);
  }
  const before = n.states().length;
  const third = sourcePort(n.out(tcp(ACK, { sourcePort: 3 })));
  t.is(sourcePort(n.out(tcp(SYN, { sourcePort: 5 }))), sourcePort(n.out(tcp(ACK, { sourcePort: 5 }))));
  t.is(n.states().length, before);
  t.is(n.rig.counter('nat', 'flows-evicted'), 1);
  // The other one is younger still, for its endpoint has spoken; then nobody is left who has closed.
  t.is(sourcePort(n.out(tcp(SYN, { sourcePort: 6 }))), third);
  t.is(n.refused(false, tcp(SYN, { sourcePort: 7 })), 'no-port');
  t.is(n.shortages, 1);
  // UDP has ports of its own, and nobody there has closed anything.
  for (const port of [1, 2, 3, 4]) n.out(packet({ sourcePort: port }));
  t.is(n.refused(false, packet({ sourcePort: 5 })), 'no-port');
  n.finish(t);
});

test('RFC 5382, REQ-7: ports are not overloaded', (t) => {
  const n = new NatRig();
  const seen = new Set(
    Array.from({ length: 100 }, (_, i) =>
      sourcePort(n.out(tcp(SYN, { source: `10.0.1.${i}`, sourcePort: 40000 }))),
    ),
  );
  t.is(seen.size, 100);
});

test('RFC 5382, REQ-9: errors of type 3 reach who connects', (t) => {
  const n = new NatRig();
  const syn = n.out(tcp(SYN));
  for (const code of [0, 1, 3, 4, 13]) {
    const frame = n.in(icmpError(syn, { to: EXTERNAL, code, carried: 8 }));
    t.is(frame[35], code);
    t.deepEqual(badChecksums(frame), []);
  }
});

test('RFC 5382, REQ-10: an ICMP error ends no connection', (t) => {
  const n = new NatRig();
  const syn = connect(n);
  const before = n.tables.flows.words.slice();
  for (const code of [1, 2, 3, 4]) n.in(icmpError(syn, { to: EXTERNAL, code }));
  t.deepEqual(n.tables.flows.words, before);
  t.is(ends(n.in(answerTo(syn, ACK))), `${REMOTE}:80 > ${INSIDE}:4000`);
});

test('RFC 7857, 2.2: an RST passes and leaves four minutes, in which data brings the connection back', (t) => {
  const n = new NatRig();
  const syn = connect(n);
  t.is(ends(n.in(answerTo(syn, RST))), `${REMOTE}:80 > ${INSIDE}:4000`);
  t.deepEqual(n.states(), [TRANSITORY]);
  n.pass(239);
  // The forged RST is found out: the connection goes on.
  n.out(tcp(ACK));
  t.deepEqual(n.states(), [ESTABLISHED]);
  n.pass(7439);
  t.is(n.flows, 1);
  n.in(answerTo(syn, RST));
  n.pass(240);
  t.is(n.flows, 0);
});

test('RFC 7857, 2.2: RSTs do not prolong what is ending', (t) => {
  const n = new NatRig();
  const syn = connect(n);
  n.out(tcp(RST));
  const expiry = n.tables.flows.words[(1 << FLOW_SHIFT) + EXPIRY];
  n.pass(100);
  n.in(answerTo(syn, RST));
  n.out(tcp(RST | ACK));
  t.is(n.tables.flows.words[(1 << FLOW_SHIFT) + EXPIRY], expiry);
});

test('an RST, or a stranger’s ACK, makes no flow', (t) => {
  const n = new NatRig();
  n.publish(80, 8080);
  t.is(n.refused(false, tcp(RST)), 'no-flow');
  t.is(n.refused(true, tcp(RST, { source: REMOTE, destination: EXTERNAL })), 'no-flow');
  t.is(
    n.refused(true, tcp(ACK, { source: REMOTE, destination: EXTERNAL, destinationPort: 81 })),
    'not-published',
  );
  t.is(n.flows, 0);
});

test('a connection whose flow was lost goes on under the same port, once both sides have spoken', (t) => {
  const before = new NatRig();
  const syn = connect(before, { sourcePort: 40000 });
  const n = new NatRig();
  t.is(ends(n.out(tcp(ACK, { sourcePort: 40000 }))), ends(syn));
  t.deepEqual(states(n), ['met']);
  n.in(answerTo(syn, ACK));
  t.deepEqual(states(n), ['established']);
});

test('a published port: strangers come in, the client’s address is kept, answers leave from the port', (t) => {
  const n = new NatRig();
  n.publish(8080, 80, { address: '10.0.0.9', domain: 5 });
  const syn = tcp(SYN, { source: OTHER, destination: EXTERNAL, sourcePort: 1234, destinationPort: 8080 });
  const [caught] = n.feed(true, [syn]).inside;
  t.is(ends(caught!.bytes), `${OTHER}:1234 > 10.0.0.9:80`);
  t.is(caught!.domain, 5);
  t.deepEqual(badChecksums(caught!.bytes), []);
  t.deepEqual(n.states(), [SYN_IN]);
  t.is(ends(n.out(answerTo(caught!.bytes, SYN | ACK), { domain: 5 })), `${EXTERNAL}:8080 > ${OTHER}:1234`);
  t.deepEqual(states(n), ['syn-answered']);
  n.in(tcp(ACK, { source: OTHER, destination: EXTERNAL, sourcePort: 1234, destinationPort: 8080 }));
  t.deepEqual(states(n), ['established']);
  t.is(
    n.refused(true, packet({ protocol: UDP, destination: EXTERNAL, destinationPort: 8080 })),
    'not-published',
  );
});

test('what is published stays when nobody uses it, and nobody else is given its port', (t) => {
  const n = new NatRig();
  n.publish(40000, 80);
  n.in(tcp(SYN, { source: OTHER, destination: EXTERNAL, destinationPort: 40000 }));
  n.pass(1000);
  t.is(n.flows, 0);
  t.not(sourcePort(n.out(tcp(SYN, { source: '10.0.0.2', sourcePort: 40000 }))), 40000);
  t.is(n.refused(true, tcp(SYN, { source: OTHER, destination: EXTERNAL, destinationPort: 40000 })), 'passed');
});

for (const mapping of ['endpoint-independent', 'endpoint-dependent'] as const)
  test(`what is no longer published ends with its flows, and may be published anew (${mapping})`, (t) => {
    const n = new NatRig({ mapping });
    const published = n.publish(8080, 80);
    const syn = tcp(SYN, { source: OTHER, destination: EXTERNAL, sourcePort: 9, destinationPort: 8080 });
    for (let i = 0; i < 3; i++)
      n.in(tcp(SYN, { source: OTHER, destination: EXTERNAL, sourcePort: i, destinationPort: 8080 }));
    connect(n, { source: '10.0.0.2' });
    t.is(n.flows, 4);
    t.throws(() => n.publish(8080, 81, { address: '10.0.0.3' }), { message: /taken/ });
    n.tables.unpublish(published);
    n.tables.unpublish(published);
    t.deepEqual(states(n), ['established']);
    t.is(n.refused(true, syn), 'not-published');
    n.publish(8080, 81, { address: '10.0.0.3' });
    t.is(ends(n.in(syn)), `${OTHER}:9 > 10.0.0.3:81`);
  });

test('an endpoint that is published twice: one end cannot have both of its ports to the same target', (t) => {
  const n = new NatRig();
  n.publish(8080, 80);
  n.publish(8081, 80);
  const syn = (destinationPort: number): Uint8Array =>
    tcp(SYN, { source: OTHER, destination: EXTERNAL, sourcePort: 9, destinationPort });
  t.is(n.refused(true, syn(8080)), 'passed');
  t.is(n.refused(true, syn(8081)), 'no-port', 'the answers could not be told apart');
  t.is(n.flows, 1);
  t.deepEqual(n.states(), [SYN_IN]);
});

test('an endpoint that is published leaves from its published port too', (t) => {
  const n = new NatRig();
  n.publish(8080, 5000);
  t.is(sourcePort(n.out(tcp(SYN, { sourcePort: 5000 }))), 8080);
  t.deepEqual(n.states(), [SYN_OUT]);
});

test('a port that is published for a service leads to the backend that is chosen, counts, and lasts as the service says', (t) => {
  const n = new NatRig();
  const told: string[] = [];
  let chosen = 6;
  n.tables.balancing = {
    backendFor(service) {
      told.push(`for ${service}`);
      return chosen;
    },
    addressOf: () => word(ip('10.0.9.7')),
    backendAt: () => chosen,
    begin(flow, backend) {
      n.tables.flows.words[(flow << FLOW_SHIFT) + STATE] |= (backend + 1) << 8;
    },
    leave: () => told.push('leaves'),
    turned(_flow, before, after) {
      if (before !== after) told.push(`${before} to ${after}`);
    },
    idleOf: () => 50,
    expired: () => told.push('expired'),
  };
  t.true(n.tables.publish(PUBLISHED));
  const syn = tcp(SYN, { source: OTHER, destination: EXTERNAL, sourcePort: 9, destinationPort: 8080 });
  const arrived = n.in(syn);
  t.is(ends(arrived), `${OTHER}:9 > 10.0.9.7:80`);
  t.is(ends(n.out(answerTo(arrived, SYN | ACK))), `${EXTERNAL}:8080 > ${OTHER}:9`);
  n.in(tcp(ACK, { source: OTHER, destination: EXTERNAL, sourcePort: 9, destinationPort: 8080 }));
  t.deepEqual(told, ['for 3', `${SYN_IN} to ${SYN_BOTH}`, `${SYN_BOTH} to ${ESTABLISHED}`]);
  n.pass(49);
  t.is(n.flows, 1);
  // As after a restart, when the entries are all that is left.
  const { flows } = n.tables;
  const again = new NatRig();
  const counted: number[][] = [];
  again.tables.balancing = { ...n.tables.balancing, begin: (...one) => counted.push(one) };
  again.tables.publish(PUBLISHED);
  again.tables.flows.words.set(flows.words);
  const seconds = again.rig.context.seconds;
  t.deepEqual(
    again.tables.flows.adopt(seconds, 0, () => true),
    { taken: 1, refused: 0 },
  );
  t.deepEqual(counted, [[1, chosen]]);
  t.deepEqual(states(again), ['established']);
  const gone = new NatRig();
  gone.tables.flows.words.set(flows.words);
  t.deepEqual(
    gone.tables.flows.adopt(seconds, 0, () => true),
    { taken: 0, refused: 1 },
    'published no more',
  );
  n.pass(1);
  t.is(n.flows, 0);
  t.deepEqual(told.slice(3), ['expired', 'leaves']);
  const [own, remote] = [EXTERNAL, OTHER].map((address) => word(ip(address)));
  n.tables.flows.ended.add(flowKeyHash(n.tables.flows.seed, own!, remote!, 0x0900901f, TCP));
  const late = { source: OTHER, destination: EXTERNAL, sourcePort: 9, destinationPort: 8080 };
  t.is(n.refused(true, tcp(ACK, late)), 'no-backend', 'what was ended does not begin again');
  t.is(n.refused(true, tcp(ACK, { ...late, sourcePort: 11 })), 'passed');
  t.is(n.refused(true, tcp(SYN, late)), 'passed', 'a new connection does');
  chosen = -1;
  const refused = tcp(SYN, { source: OTHER, destination: EXTERNAL, sourcePort: 10, destinationPort: 8080 });
  t.is(n.refused(true, refused), 'no-backend');
  n.finish(t);
});

test('a port that is a service’s no more: open connections end as they do elsewhere, and their clients are reset', (t) => {
  const n = new NatRig();
  const told: number[] = [];
  const { flows } = n.tables;
  n.tables.balancing = {
    backendFor: () => 6,
    addressOf: () => word(ip('10.0.9.7')),
    backendAt: () => 6,
    begin(flow, backend) {
      flows.words[(flow << FLOW_SHIFT) + STATE] |= (backend + 1) << 8;
    },
    leave: () => {},
    turned: () => {},
    idleOf: () => 50,
    expired: (flow) => told.push(flow),
  };
  n.tables.publish(PUBLISHED);
  const to = { source: OTHER, destination: EXTERNAL, sourcePort: 9, destinationPort: 8080 };
  n.out(answerTo(n.in(tcp(SYN, to)), SYN | ACK));
  n.in(tcp(ACK, to));
  n.in(tcp(SYN, { ...to, sourcePort: 10 }));
  n.tables.unpublish(PUBLISHED);
  t.deepEqual([told, n.flows], [[1], 0], 'who has only begun tries again');
  const [own, remote] = [EXTERNAL, OTHER].map((address) => word(ip(address)));
  flows.ended.add(flowKeyHash(flows.seed, own!, remote!, 0x0900901f, TCP));
  t.is(n.refused(true, tcp(ACK, to)), 'no-backend', 'which is a reset');
  t.is(n.refused(true, tcp(ACK, { ...to, sourcePort: 10 })), 'not-published');
  n.finish(t);
});

test('a connection to a service over the ports of one that has ended gets a backend like any other', (t) => {
  const n = new NatRig();
  let chosen = 6;
  n.tables.balancing = {
    backendFor: () => chosen,
    addressOf: (backend) => word(ip(`10.0.9.${backend}`)),
    backendAt: () => chosen,
    begin(flow, backend) {
      n.tables.flows.words[(flow << FLOW_SHIFT) + STATE] |= (backend + 1) << 8;
    },
    leave: () => {},
    turned: () => {},
    idleOf: () => 50,
    expired: () => {},
  };
  const address = ip('10.0.9.100');
  n.tables.publish({ protocol: TCP, port: 8080, domain: 0, address, target: 80, service: 3 });
  const to = { source: OTHER, destination: EXTERNAL, sourcePort: 9, destinationPort: 8080 };
  const arrived = n.in(tcp(SYN, to));
  n.out(answerTo(arrived, SYN | ACK));
  n.in(tcp(ACK, to));
  chosen = 7;
  t.is(ends(n.in(tcp(SYN, to))), `${OTHER}:9 > 10.0.9.6:80`, 'one that is open goes on');
  n.in(tcp(FIN | ACK, to));
  n.out(answerTo(arrived, FIN | ACK));
  t.is(ends(n.in(tcp(ACK, to))), `${OTHER}:9 > 10.0.9.6:80`, 'the last segment of all');
  const again = n.in(tcp(SYN, to));
  t.is(ends(again), `${OTHER}:9 > 10.0.9.7:80`);
  t.is(ends(n.out(answerTo(again, SYN | ACK))), `${EXTERNAL}:8080 > ${OTHER}:9`);
  t.is(n.flows, 1);
  n.finish(t);
});
