/** What `balance` does to packets: ports, protocols, forwarding, fragments, ICMP, partial checksums, and what it drops. */
import test from 'ava';
import { BALANCER_PORT } from '../../../engine/intent.js';
import { GSO_TCPV4, OFFLOAD_GSO_SHIFT, OFFLOAD_NEEDS_CSUM } from '../../../engine/memory/frames.js';
import { BalancerRig, backend, CLIENT, service, VIP } from '../../support/balancer.js';
import {
  ack,
  backendOf,
  flagsOf,
  fragments,
  isReset,
  numberAt,
  open,
  syn,
  tcp,
  udp,
} from '../../support/connections.js';
import { be16, concat, ethernet, ip, ipv4, payload, slowSum, station } from '../../support/frames.js';
import {
  ACK,
  answerTo,
  badChecksums,
  ends,
  FIN,
  ICMP,
  icmpError,
  packet,
  RST,
  SYN,
  TCP,
  UDP,
} from '../../support/nat.js';

const single = (more = {}) => service({ backends: [backend(1)], ...more });
const DIRECT = single({ direct: true });
const COUNTERS = [
  ...['frames', 'to-backends', 'from-backends', 'flows-made', 'flows-expired', 'flows-evicted'],
  ...['resets', 'echo-answered'],
];
const counters = (b: BalancerRig): Record<string, number> =>
  Object.fromEntries(
    COUNTERS.map((name) => [name, b.rig.counter('balance', name)] as const).filter(([, n]) => n !== 0),
  );

test('UDP: there and back, with and without a checksum, every flow by itself', (t) => {
  const b = new BalancerRig();
  for (const [port, noChecksum] of [
    [4000, false],
    [4001, true],
  ] as const) {
    const request = b.one(udp(port, { noChecksum }));
    t.deepEqual(badChecksums(request), []);
    const answer = b.one(answerTo(request));
    t.is(ends(answer), `${VIP}:53 > ${CLIENT}:${port}`);
    t.deepEqual(answer.slice(12), answerTo(udp(port, { noChecksum })).slice(12));
    t.is(ends(b.one(udp(port, { noChecksum }))), ends(request));
  }
  t.deepEqual(counters(b), { frames: 6, 'to-backends': 4, 'from-backends': 2, 'flows-made': 2 });
  b.rig.finish(t);
});

test('a service of every port leaves each as it is; one of some ports has their targets, and no others', (t) => {
  const all = new BalancerRig([single()]);
  t.is(ends(all.one(syn(4000, { destinationPort: 8443 }))), `${CLIENT}:4000 > 10.0.9.1:8443`);
  t.is(ends(all.one(udp(4000, { destinationPort: 53 }))), `${CLIENT}:4000 > 10.0.9.1:53`);
  const ports = [
    { protocol: TCP, port: 80, target: 8080 },
    { protocol: UDP, port: 53, target: 53 },
  ];
  const some = new BalancerRig([single({ ports })]);
  const request = some.one(syn());
  t.is(ends(request), `${CLIENT}:4000 > 10.0.9.1:8080`);
  t.is(ends(some.one(answerTo(request, SYN | ACK))), `${VIP}:80 > ${CLIENT}:4000`);
  t.is(ends(some.one(udp())), `${CLIENT}:4000 > 10.0.9.1:53`);
  t.deepEqual(badChecksums(request), []);
  for (const b of [all, some]) b.rig.finish(t);
});

test('a port that no service has: unreachable, of UDP and of a SYN; what opens nothing is reset', (t) => {
  const b = new BalancerRig([single({ ports: [{ protocol: TCP, port: 80, target: 80 }] })]);
  for (const frame of [udp(), syn(4000, { destinationPort: 81 })]) {
    const error = b.one(frame);
    t.is(ends(error).split(' id')[0], `${VIP} > ${CLIENT}`);
    t.deepEqual([error[23], error[34], error[35]], [ICMP, 3, 3]);
    t.deepEqual(badChecksums(error), []);
    t.deepEqual(error.slice(42), frame.slice(14), 'the packet is in it');
  }
  t.true(isReset(b.one(ack(4000, { destinationPort: 81 }))));
  t.deepEqual(b.feed([tcp(RST, 4000, { destinationPort: 81 })]), []);
  t.deepEqual(b.drops(), { 'no-service': 2, 'no-flow': 1 });
  b.rig.finish(t);
});

test('a service without a backend: host unreachable', (t) => {
  const b = new BalancerRig([service({ backends: [] })]);
  const error = b.one(syn());
  t.deepEqual([error[23], error[34], error[35]], [ICMP, 3, 1]);
  t.deepEqual(b.drops(), { 'no-backend': 1 });
  b.rig.finish(t);
});

/** RFC 9293, 3.5.2: what a segment of no connection is answered by. */
for (const [title, flags, content, sequence, acknowledgment] of [
  ['an ACK: its number', ACK, 0, 0x01020304, 0],
  ['a FIN and ACK: its number', FIN | ACK, 5, 0x01020304, 0],
  ['a SYN and ACK: its number', SYN | ACK, 0, 0x01020304, 0],
  ['data without ACK: zero, and what follows it', 0x08, 7, 0, 0xfffffff0 + 7],
  ['a FIN without ACK: zero, and what follows it', FIN, 0, 0, 0xfffffff0 + 1],
  ['data and FIN across zero', FIN, 20, 0, 5],
  ['SYN and FIN are two', SYN | FIN, 0, 0, 0xfffffff0 + 2],
] as const)
  test(`no connection: the RST to ${title}`, (t) => {
    const b = new BalancerRig();
    const frame = tcp(flags, 4000, { content: new Uint8Array(content), options: Uint8Array.of(1, 1, 1, 0) });
    const at = 38;
    frame.set([0xff, 0xff, 0xff, 0xf0, 1, 2, 3, 4], at + 4);
    const answer = b.one(frame);
    t.is(ends(answer), `${VIP}:80 > ${CLIENT}:4000`);
    t.is(flagsOf(answer), (flags & ACK) !== 0 ? RST : RST | ACK);
    t.deepEqual([numberAt(answer, 4), numberAt(answer, 8)], [sequence, acknowledgment]);
    t.deepEqual(badChecksums(answer), []);
    t.deepEqual([answer.length, answer[14]], [54, 0x45]);
    t.deepEqual([answer.slice(0, 6), answer.slice(6, 12)], [frame.slice(6, 12), frame.slice(0, 6)]);
    t.deepEqual([b.flows.size, counters(b)['resets']], [0, 1]);
    b.rig.finish(t);
  });

test('a segment that is cut short, or has a broken header, is malformed; of a backend it passes', (t) => {
  const b = new BalancerRig([single()]);
  const bad = [
    ...[tcp(SYN).slice(0, 50), udp().slice(0, 40), packet({ destination: VIP, content: new Uint8Array(0) })],
    ...[0x44, 0x65].map((first) => {
      const frame = syn();
      frame[14] = first;
      return frame;
    }),
  ];
  // Of UDP eight bytes are a whole packet.
  t.is(b.feed(bad).length, 1);
  t.deepEqual(b.drops(), { malformed: 4 });
  const short = tcp(ACK, 80, { source: '10.0.9.1', destination: CLIENT, destinationPort: 4000 }).slice(0, 50);
  t.deepEqual(b.one(short), short);
  b.rig.finish(t);
});

test('frames of others pass untouched: other addresses, domains, ethertypes, tags', (t) => {
  const b = new BalancerRig();
  const frames = [
    packet({ source: '10.0.9.1', destination: CLIENT }),
    packet({ source: CLIENT, destination: '10.0.9.101' }),
    packet({ protocol: ICMP, source: '10.0.9.1', destination: CLIENT }),
    packet({ protocol: 132, source: '10.0.9.1', destination: CLIENT }),
    ethernet({ type: 0x0806 }, concat(be16(1, 0x800, 0x604, 1), station(1), ip(CLIENT), station(0), ip(VIP))),
    ethernet({ type: 0x86dd }, payload(60)),
    ethernet({ type: 0x0800 }, payload(10)),
    ethernet({ type: 0x0800, tags: [5] }, syn().slice(14)),
  ];
  t.deepEqual(
    b.feed(frames).map(({ bytes }) => bytes),
    frames,
  );
  t.deepEqual(b.one(syn(), { domain: 7 }), syn());
  t.is(b.flows.size, 0);
  b.rig.finish(t);
});

test('protocols that no service has are counted', (t) => {
  const b = new BalancerRig();
  t.deepEqual(b.feed([packet({ protocol: 132, source: CLIENT, destination: VIP })]), []);
  t.deepEqual(b.feed([packet({ protocol: ICMP, icmpType: 13, source: CLIENT, destination: VIP })]), []);
  t.deepEqual(b.drops(), { 'not-served': 2 });
  b.rig.finish(t);
});

test('the padding of a short frame goes, and with it nothing of the packet', (t) => {
  const b = new BalancerRig();
  const frame = syn(4000, { content: new Uint8Array(0) });
  const request = b.one(concat(frame, new Uint8Array(6).fill(0xee)));
  t.is(request.length, frame.length);
  t.deepEqual(badChecksums(request), []);
});

test('direct: addresses and ports stay both ways, the MAC is the backend’s', (t) => {
  const b = new BalancerRig([DIRECT]);
  const frame = syn();
  const request = b.one(frame);
  t.deepEqual(request.slice(0, 6), station(1));
  t.deepEqual(request.slice(6), frame.slice(6));
  // The backend answers as the virtual address, which is none of our business.
  const answer = answerTo(frame, SYN | ACK);
  t.deepEqual(b.one(answer), answer);
  b.one(ack());
  t.deepEqual([b.services.counts()[0]!.active, b.services.counts()[0]!.inactive], [1, 0]);
  b.one(tcp(FIN | ACK));
  t.deepEqual([b.services.counts()[0]!.active, b.services.counts()[0]!.inactive], [0, 1]);
  b.age(1241);
  t.is(b.flows.size, 0, 'what one side closes is not waited for as long as what is open');
  b.rig.finish(t);
});

test('a caller that is its own backend: by another port it hears the one that it called', (t) => {
  const b = new BalancerRig([single({ ports: [{ protocol: TCP, port: 80, target: 8080 }] })]);
  const own = { source: '10.0.9.1' };
  const request = b.one(syn(4000, own));
  t.is(ends(request), `${VIP}:4000 > 10.0.9.1:8080`);
  t.deepEqual([request.slice(0, 6), request.slice(6, 12)], [station(1), syn().slice(0, 6)]);
  const answer = b.one(answerTo(request, SYN | ACK));
  t.is(ends(answer), `${VIP}:80 > 10.0.9.1:4000`);
  t.deepEqual([request, answer].flatMap(badChecksums), []);
  b.one(ack(4000, own));
  b.one(answerTo(request, ACK));
  t.deepEqual([b.services.counts()[0]!.active, b.flows.size], [1, 2]);
  b.one(tcp(FIN | ACK, 4000, own));
  b.one(answerTo(request, FIN | ACK));
  t.deepEqual([b.services.counts()[0]!.active, b.services.counts()[0]!.inactive], [0, 1]);
  b.age(1240);
  t.deepEqual([b.flows.size, b.services.counts()[0]!.inactive], [0, 0]);
  b.rig.finish(t);
});

test('a caller to itself whose answers would be those of another connection of its own is refused', (t) => {
  const ports = [
    { protocol: TCP, port: 80, target: 8080 },
    { protocol: TCP, port: 4000, target: 4000 },
  ];
  const b = new BalancerRig([single({ ports })]);
  const own = { source: '10.0.9.1' };
  b.one(syn(8080, { ...own, destinationPort: 4000 }));
  t.deepEqual(b.feed([syn(4000, own)]), []);
  t.deepEqual(b.drops(), { conflict: 1 });
  b.rig.finish(t);
});

test('two services with one backend: a client’s port is one connection at the backend', (t) => {
  const other = service({
    id: 2,
    address: ip('10.0.9.101'),
    backends: [backend(7, { address: ip('10.0.9.1') })],
  });
  const b = new BalancerRig([single(), other]);
  const first = b.one(syn());
  t.deepEqual(b.feed([syn(4000, { destination: '10.0.9.101' })]), []);
  t.deepEqual(b.drops(), { conflict: 1 });
  t.is(ends(b.one(answerTo(first, SYN | ACK))), `${VIP}:80 > ${CLIENT}:4000`);
  t.is(ends(b.one(syn(4001, { destination: '10.0.9.101' }))), `${CLIENT}:4001 > 10.0.9.1:80`);
  const choice = new BalancerRig([
    single(),
    { ...other, backends: [backend(8), backend(7, { address: ip('10.0.9.1') })] },
  ]);
  choice.one(syn());
  t.is(
    backendOf(choice.one(syn(4000, { destination: '10.0.9.101' }))),
    8,
    'the last comes first, and has it already',
  );
  for (const one of [b, choice]) one.rig.finish(t);
});

test('echo to a virtual address is answered here, with right checksums', (t) => {
  const b = new BalancerRig();
  const echo = packet({
    protocol: ICMP,
    source: CLIENT,
    destination: VIP,
    sourcePort: 77,
    content: payload(56),
  });
  const reply = b.one(echo);
  t.deepEqual([ends(reply), reply[34]], [`${VIP} > ${CLIENT} id 77`, 0]);
  t.deepEqual(reply.slice(38), echo.slice(38));
  t.deepEqual(badChecksums(reply), []);
  t.deepEqual([b.flows.size, counters(b)['echo-answered']], [0, 1]);
  b.rig.finish(t);
});

test('an ICMP error about what a backend sent goes to it, translated; about no flow it is dropped', (t) => {
  const b = new BalancerRig([single({ ports: [{ protocol: UDP, port: 53, target: 5353 }] })]);
  const request = b.one(udp());
  const answer = b.one(answerTo(request));
  const error = b.one(icmpError(answer, { from: CLIENT, to: VIP, type: 3, code: 3 }));
  t.deepEqual(badChecksums(error), []);
  t.deepEqual([error.slice(30, 34), error.slice(0, 6)], [ip('10.0.9.1'), station(1)]);
  const carried = concat(new Uint8Array(14), error.slice(42));
  t.is(ends(carried), `10.0.9.1:5353 > ${CLIENT}:4000`);
  t.deepEqual(badChecksums(carried), []);
  t.deepEqual(b.feed([icmpError(udp(9), { from: CLIENT, to: VIP })]), []);
  const broken = icmpError(answer, { from: CLIENT, to: VIP });
  broken[36]! ^= 1;
  t.deepEqual(b.feed([broken]), []);
  t.deepEqual(b.feed([icmpError(answer, { from: CLIENT, to: VIP, carried: 4 })]), []);
  t.deepEqual(b.drops(), { 'icmp-no-flow': 1, 'icmp-checksum': 1, 'icmp-malformed': 1 });
  b.rig.finish(t);
});

test('an ICMP error of a backend comes from the virtual address; of others it passes as it is', (t) => {
  const b = new BalancerRig([single({ ports: [{ protocol: UDP, port: 53, target: 5353 }] })]);
  const request = b.one(udp());
  const error = b.one(concat(icmpError(request, { from: '10.0.9.1', to: CLIENT, code: 3 }), payload(6)));
  t.deepEqual(badChecksums(error), []);
  t.deepEqual(error.slice(26, 30), ip(VIP));
  t.is(ends(concat(new Uint8Array(14), error.slice(42))), `${CLIENT}:4000 > ${VIP}:53`);
  const about = packet({ source: CLIENT, destination: '10.0.9.1', sourcePort: 9 });
  const other = icmpError(about, { from: '10.0.9.1', to: CLIENT });
  t.deepEqual(b.one(other), other);
  b.rig.finish(t);
});

test('an ICMP error to a direct service gets the MAC of the backend that it is about, and stays as it is', (t) => {
  const b = new BalancerRig([service({ direct: true })]);
  const [first, second] = [4000, 4001].map((port) => b.one(udp(port)).slice(0, 6));
  t.notDeepEqual(first, second);
  const about = (port: number) => icmpError(answerTo(udp(port)), { from: CLIENT, to: VIP, code: 4 });
  t.deepEqual(b.one(about(4000)), concat(first!, about(4000).slice(6)));
  t.deepEqual(b.one(about(4001)), concat(second!, about(4001).slice(6)));
  t.deepEqual(b.feed([about(4002)]), []);
  t.deepEqual(b.drops(), { 'icmp-no-flow': 1 });
  b.rig.finish(t);
});

for (const direct of [false, true])
  test(`an ICMP error about what went out from a marked address finds its backend${direct ? ', direct' : ''}`, (t) => {
    const b = new BalancerRig([service({ direct, mark: 300, backends: [backend(7), backend(1)] })]);
    const marked = { destination: '203.0.113.9' };
    b.one(udp(4000, marked), { mark: 300 });
    const about = (port: number, from: string) =>
      icmpError(answerTo(udp(port, marked)), { from, to: '203.0.113.9', code: 4 });
    // Of a router, of the client, and of one that is a backend itself.
    for (const from of ['192.0.2.1', CLIENT, '10.0.9.7']) {
      const error = b.one(about(4000, from));
      t.deepEqual(error.slice(0, 6), station(1), from);
      if (direct) t.deepEqual(error.slice(6), about(4000, from).slice(6), from);
      else {
        t.deepEqual(error.slice(30, 34), ip('10.0.9.1'), from);
        t.is(ends(concat(new Uint8Array(14), error.slice(42))), `10.0.9.1:53 > ${CLIENT}:4000`);
        t.deepEqual(error.slice(38, 42), be16(0, 1500), 'the MTU');
      }
      t.deepEqual(badChecksums(error), []);
    }
    // About no flow, and broken: nobody's here.
    const broken = about(4000, CLIENT);
    broken[36]! ^= 1;
    const others = [about(4001, CLIENT), about(4001, '10.0.9.7'), broken];
    t.deepEqual(
      b.feed(others).map(({ bytes }) => bytes),
      others,
    );
    t.deepEqual(b.drops(), {});
    b.rig.finish(t);
  });

for (const direct of [false, true])
  test(`a super-frame with a partial checksum${direct ? ', direct' : ''}: the sum is that of the new pseudo-header`, (t) => {
    const b = new BalancerRig([single({ direct })]);
    const content = payload(5000);
    const pseudo = (source: string, destination: string): number =>
      slowSum(concat(ip(source), ip(destination), be16(TCP, 20 + content.length)));
    const frame = tcp(SYN, 4000, { content });
    frame.set(be16(pseudo(CLIENT, VIP)), 50);
    const offload = OFFLOAD_NEEDS_CSUM | (GSO_TCPV4 << OFFLOAD_GSO_SHIFT);
    const metadata = { offload, gsoSize: 1400, csumStart: 34, csumOffset: 16, hdrLen: 54 };
    const [there] = b.feed([frame], metadata);
    const field = (bytes: Uint8Array): number => (bytes[50]! << 8) | bytes[51]!;
    t.is(field(there!.bytes), pseudo(CLIENT, direct ? VIP : '10.0.9.1'));
    t.deepEqual([there!.offload, there!.gsoSize, there!.csumStart], [offload, 1400, 34]);
    const [back] = b.feed([answerTo(there!.bytes)], metadata);
    t.deepEqual(back!.bytes.slice(12), answerTo(frame).slice(12));
    const own = tcp(SYN, 4000, { source: '10.0.9.1', content });
    own.set(be16(pseudo('10.0.9.1', VIP)), 50);
    const [mirrored] = b.feed([own], metadata);
    if (!direct) t.is(field(mirrored!.bytes), pseudo(VIP, '10.0.9.1'));
    b.rig.finish(t);
  });

test('an RST made of a super-frame is an ordinary frame', (t) => {
  const b = new BalancerRig();
  const metadata = { offload: OFFLOAD_NEEDS_CSUM, csumStart: 34, csumOffset: 16, hdrLen: 54, gsoSize: 1400 };
  const [reset] = b.feed([tcp(ACK, 4000, { content: payload(3000) })], metadata);
  t.deepEqual([reset!.offload, reset!.bytes.length], [0, 54]);
  t.deepEqual(badChecksums(reset!.bytes), []);
  b.rig.finish(t);
});

test('a batch of all kinds: each goes its way, and the counters say so', (t) => {
  const b = new BalancerRig([single()]);
  const request = open(b);
  const before = counters(b);
  const out = b.feed([
    ack(),
    answerTo(request, ACK),
    ack(9999),
    packet({ protocol: ICMP, source: CLIENT, destination: VIP }),
    packet({ source: CLIENT, destination: '10.0.9.200' }),
    packet({ protocol: 132, source: CLIENT, destination: VIP }),
    syn(4001),
  ]);
  t.is(out.length, 6);
  t.deepEqual(before, { frames: 3, 'to-backends': 2, 'from-backends': 1, 'flows-made': 1 });
  t.deepEqual(counters(b), {
    ...{ frames: 10, 'to-backends': 4, 'from-backends': 2, 'flows-made': 2, resets: 1 },
    'echo-answered': 1,
  });
  const [count] = b.services.counts();
  t.deepEqual([count!.flows, count!.packets, count!.active, count!.inactive], [2, 6, 1, 1]);
  t.true(count!.bytes > 6 * 40);
  b.rig.finish(t);
});

test('IP options stay, and ports behind them are found', (t) => {
  const b = new BalancerRig([single({ ports: [{ protocol: TCP, port: 80, target: 8080 }] })]);
  const options = Uint8Array.of(1, 1, 1, 0);
  const request = b.one(syn(4000, { options }));
  t.deepEqual([ends(request), badChecksums(request)], [`${CLIENT}:4000 > 10.0.9.1:8080`, []]);
  t.deepEqual(request.slice(34, 38), options);
  b.rig.finish(t);
});

test('what is turned round is the balancer’s own frame, for a bridge sends nothing back where it came from', (t) => {
  const b = new BalancerRig([single({ ports: [{ protocol: TCP, port: 80, target: 80 }] })]);
  const own = { source: '10.0.9.1' };
  const ingressOf = (frame: Uint8Array): number => b.feed([frame], { ingress: 5 })[0]!.ingress;
  const echo = packet({ protocol: ICMP, source: CLIENT, destination: VIP });
  t.deepEqual([syn(4000, own), ack(9999), udp(), echo].map(ingressOf), [
    BALANCER_PORT,
    BALANCER_PORT,
    BALANCER_PORT,
    BALANCER_PORT,
  ]);
  const all = new BalancerRig([single()]);
  const parts = all.feed(fragments({ source: '10.0.9.1', destination: VIP }).parts, { ingress: 5 });
  t.deepEqual(
    parts.map(({ ingress }) => ingress),
    [BALANCER_PORT, BALANCER_PORT, BALANCER_PORT],
  );
  t.is(ingressOf(syn(4001)), 5, 'what is forwarded is whose it was');
  for (const one of [b, all]) one.rig.finish(t);
});

test('where a checksum would be partial says nothing of a frame that has none', (t) => {
  const b = new BalancerRig([single()]);
  const [out] = b.feed([syn()], { csumStart: 34, csumOffset: 16 });
  t.deepEqual(badChecksums(out!.bytes), []);
});

test('a packet of a flow that is longer than its frame passes as it is', (t) => {
  const b = new BalancerRig([single()]);
  const cut = answerTo(open(b), ACK).slice(0, 56);
  t.deepEqual(b.one(cut), cut);
});

test('a datagram within IPv4 that says too much of its length is malformed', (t) => {
  const b = new BalancerRig();
  const frame = ethernet({ type: 0x800 }, ipv4({ source: CLIENT, destination: VIP }, payload(20)));
  frame[17] = 200;
  t.deepEqual(b.feed([frame]), []);
  t.deepEqual(b.drops(), { malformed: 1 });
  b.rig.finish(t);
});
