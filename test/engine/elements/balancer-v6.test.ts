import test from 'ava';
import fc from 'fast-check';
import { BALANCER_PORT } from '../../../engine/intent.js';
import { OFFLOAD_NEEDS_CSUM } from '../../../engine/memory/frames.js';
import { ESTABLISHED } from '../../../engine/tables/connection.js';
import { FLOW_SHIFT, IPV6_FLOW, STATE } from '../../../engine/tables/flows.js';
import { words16 } from '../../../engine/wire/ipv6.js';
import { BalancerRig, VIP } from '../../support/balancer.js';
import {
  ack6,
  BalancerRigV6,
  backend6,
  CLIENT6,
  cut6,
  MAC6,
  service6,
  syn6,
  tcp6,
  VIP6,
} from '../../support/balancer6.js';
import { be16, concat, ip, station } from '../../support/frames.js';
import { ACK, FIN, packet, RST, SYN } from '../../support/nat.js';
import {
  answerToV6,
  destinationV6,
  endsV6,
  ICMPV6,
  icmpv6Error,
  packetV6,
  soundV6,
  sourceV6,
} from '../../support/nat6.js';

const TCP = 6;
const UDP = 17;
const flagsOf = (frame: Uint8Array): number => frame[54 + 13]!;

test('a connection goes to one backend and comes back as from the service, every checksum right', (t) => {
  const b = new BalancerRigV6();
  const request = b.one(syn6(4000));
  t.is(endsV6(request), `[${CLIENT6}]:4000 > [fd00:9::3]:80`);
  t.deepEqual(request.slice(0, 12), concat(station(3), station(50)));
  const answer = b.one(answerToV6(request, SYN | ACK));
  t.is(endsV6(answer), `[${VIP6}]:80 > [${CLIENT6}]:4000`);
  t.true(soundV6(request) && soundV6(answer));
  t.is(endsV6(b.one(ack6(4000))), `[${CLIENT6}]:4000 > [fd00:9::3]:80`);
  t.is(endsV6(b.one(syn6(4001))), `[${CLIENT6}]:4001 > [fd00:9::2]:80`);
  t.is(b.flows.size, 2);
  t.is(
    b.services.backends.active.reduce((sum, one) => sum + one, 0),
    1,
    'one is established',
  );
  b.rig.finish(t);
});

test('UDP too, to another port', (t) => {
  const b = new BalancerRigV6([
    service6({ ports: [{ protocol: UDP, port: 53, target: 5353 }], backends: [backend6(1)] }),
  ]);
  const request = b.one(packetV6({ source: CLIENT6, destination: VIP6, destinationPort: 53 }));
  t.is(endsV6(request), `[${CLIENT6}]:4000 > [fd00:9::1]:5353`);
  const answer = b.one(answerToV6(request));
  t.is(endsV6(answer), `[${VIP6}]:53 > [${CLIENT6}]:4000`);
  t.true(soundV6(request) && soundV6(answer));
  b.rig.finish(t);
});

test('services of both families are told apart, though a number is also an address', (t) => {
  const b = new BalancerRigV6([
    service6(),
    { ...service6(), id: 2, address: Uint8Array.of(1, 0, 0, 0), backends: [] },
  ]);
  t.is(b.services.isVirtual(0, 1), true);
  t.is(endsV6(b.one(syn6(4000))), `[${CLIENT6}]:4000 > [fd00:9::3]:80`);
  const v4 = packet({
    protocol: TCP,
    flags: SYN,
    source: '10.0.9.50',
    destination: '1.0.0.0',
    destinationPort: 80,
  });
  t.deepEqual(
    b.feed([v4]).map(({ bytes }) => bytes[23]),
    [1],
    'nobody is there',
  );
  b.rig.finish(t);
});

test('a segment of no connection is answered by an RST that its sender must believe', (t) => {
  const b = new BalancerRigV6();
  const reset = b.one(ack6(4000));
  t.is(endsV6(reset), `[${VIP6}]:80 > [${CLIENT6}]:4000`);
  t.deepEqual(reset.slice(0, 12), concat(station(50), MAC6));
  t.is(flagsOf(reset), RST);
  t.true(soundV6(reset));
  t.deepEqual(b.feed([tcp6(4000, RST)]), [], 'an RST is not answered');
  t.deepEqual(b.drops(), { 'no-flow': 1 });
  b.rig.finish(t);
});

test('a caller that is its own backend sees the virtual address, both ways', (t) => {
  const b = new BalancerRigV6([service6({ backends: [backend6(1)] })]);
  const own = { source: 'fd00:9::1', from: station(1) };
  const [caught] = b.feed([syn6(4000, own)]);
  const request = caught!.bytes;
  t.is(endsV6(request), `[${VIP6}]:4000 > [fd00:9::1]:80`);
  t.is(caught!.ingress, BALANCER_PORT, 'a frame of its own');
  t.deepEqual(request.slice(0, 12), concat(station(1), MAC6));
  const answer = b.one(answerToV6(request, SYN | ACK));
  t.is(endsV6(answer), `[${VIP6}]:80 > [fd00:9::1]:4000`);
  t.true(soundV6(request) && soundV6(answer));
  t.is(endsV6(b.one(ack6(4000, own))), `[${VIP6}]:4000 > [fd00:9::1]:80`);
  b.rig.finish(t);
});

test('dsr: only the MAC is another, and the client alone is seen', (t) => {
  const b = new BalancerRigV6([service6({ direct: true, backends: [backend6(1)] })]);
  const request = b.one(syn6(4000));
  t.is(endsV6(request), `[${CLIENT6}]:4000 > [${VIP6}]:80`);
  t.deepEqual(request.slice(0, 6), station(1));
  b.one(ack6(4000));
  t.is(b.services.backends.active[0], 1);
  const closed = b.one(tcp6(4000, FIN | ACK));
  t.is(endsV6(closed), `[${CLIENT6}]:4000 > [${VIP6}]:80`);
  t.is(b.services.backends.active[0], 0);
  b.rig.finish(t);
});

test('when a backend is gone, both ends of its connections are asked, and reset by what they answer', (t) => {
  const b = new BalancerRigV6([service6({ backends: [backend6(1)] })]);
  const request = b.one(syn6(4000));
  b.one(answerToV6(request, SYN | ACK));
  b.one(ack6(4000));
  b.set([service6({ backends: [] })]);
  const asked = b.age(1001).map(({ bytes }) => bytes);
  t.deepEqual(asked.map(endsV6), [`[${VIP6}]:80 > [${CLIENT6}]:4000`, `[${CLIENT6}]:4000 > [fd00:9::1]:80`]);
  t.deepEqual(
    asked.map((bytes) => bytes.slice(0, 12)),
    [concat(station(50), MAC6), concat(station(1), MAC6)],
  );
  t.true(asked.every(soundV6));
  t.is(b.flows.size, 0);
  t.is(flagsOf(b.one(ack6(4000))), RST);
  const [refused] = b.feed([syn6(4001)]);
  t.deepEqual([...refused!.bytes.slice(54, 56)], [1, 3], 'address unreachable');
  t.is(sourceV6(refused!.bytes), VIP6);
  t.true(soundV6(refused!.bytes));
  b.rig.finish(t);
});

test('an open connection that is silent for too long is reset at both ends', (t) => {
  const b = new BalancerRigV6([service6({ idle: 60, backends: [backend6(1)] })]);
  b.one(answerToV6(b.one(syn6(4000)), SYN | ACK));
  b.one(ack6(4000));
  t.deepEqual(b.age(1059), []);
  t.is(b.age(1061).length, 2);
  t.is(b.flows.size, 0);
  b.rig.finish(t);
});

test('both ends of a connection from outside are asked as they know it, and again; then nobody holds their addresses', (t) => {
  const b = new BalancerRigV6([service6({ backends: [backend6(1)] })]);
  const before = b.addresses.size;
  const hold = (address: string): number => b.addresses.hold(words16(ip(address)), 0);
  const [inside, client, external] = ['fd00:9::1', '2001:db8::7', '2001:db8:1::1'].map(hold);
  const key = TCP | IPV6_FLOW | (1 << 16);
  // As the NAT of an uplink makes it: port 8080 of its address for port 80 of the first backend.
  const flow = b.flows.create(inside!, client!, 0xa00f5000 | 0, key, external!, 0xa00f901f | 0);
  b.flows.setExpiry(flow, 9000);
  b.flows.words[(flow << FLOW_SHIFT) + STATE] = ESTABLISHED | (1 << 8);
  b.v6.balancing.expired(flow);
  b.flows.end(flow);
  for (const number of [inside!, client!]) b.addresses.release(number);
  const question = ['[2001:db8:1::1]:8080 > [2001:db8::7]:4000', '[2001:db8::7]:4000 > [fd00:9::1]:80'];
  for (const second of [1000, 1001, 1004])
    t.deepEqual(
      b.age(second).map(({ bytes }) => [endsV6(bytes), soundV6(bytes)]),
      question.map((one) => [one, true]),
    );
  b.addresses.release(external!);
  t.is(b.addresses.size, before);
  b.rig.finish(t);
});

test('a port that the service does not have is refused', (t) => {
  const b = new BalancerRigV6([service6({ ports: [{ protocol: TCP, port: 80, target: 80 }] })]);
  const [refused] = b.feed([syn6(4000, { destinationPort: 81 })]);
  t.deepEqual([...refused!.bytes.slice(54, 56)], [1, 4], 'port unreachable');
  t.deepEqual(b.drops(), { 'no-service': 1 });
  b.rig.finish(t);
});

test('an affinity keeps a client at its backend, and holds no address when it is over', (t) => {
  const b = new BalancerRigV6([service6({ affinity: 600 })]);
  const [first, ...others] = [4000, 4001, 4002, 4003].map((port) => destinationV6(b.one(syn6(port))));
  t.deepEqual(others, [first, first, first]);
  for (let second = 1001; second < 2000; second++) b.age(second);
  t.is(b.flows.size, 0);
  b.set([]);
  b.services.forget();
  t.is(b.addresses.size, 0);
  b.rig.finish(t);
});

test('an echo is answered, solicitations pass to the station, and what is neither is refused', (t) => {
  const b = new BalancerRigV6();
  const echo = packetV6({ protocol: ICMPV6, source: CLIENT6, destination: VIP6, sourcePort: 7 });
  const reply = b.one(echo);
  t.is(endsV6(reply), `${VIP6} > ${CLIENT6} id 7`);
  t.is(reply[54], 129);
  t.true(soundV6(reply));
  const solicitation = packetV6({ protocol: ICMPV6, icmpType: 135, source: CLIENT6, destination: VIP6 });
  t.deepEqual(b.one(solicitation), solicitation);
  const other = [
    packetV6({ protocol: ICMPV6, icmpType: 129, source: CLIENT6, destination: VIP6 }),
    packetV6({ protocol: 132, source: CLIENT6, destination: VIP6 }),
  ];
  t.deepEqual(b.feed(other), []);
  t.deepEqual(b.drops(), { 'not-served': 2 });
  b.rig.finish(t);
});

test('errors are translated with the packet that they carry, both ways', (t) => {
  const b = new BalancerRigV6([service6({ backends: [backend6(1)] })]);
  const request = b.one(syn6(4000));
  const answer = b.one(answerToV6(request, SYN | ACK));
  const toBackend = b.one(icmpv6Error(answer, { from: CLIENT6, to: VIP6, type: 2, argument: 1280 }));
  t.is(destinationV6(toBackend), 'fd00:9::1');
  t.deepEqual(toBackend.slice(0, 6), station(1));
  t.is(endsV6(toBackend.slice(48)), `[fd00:9::1]:80 > [${CLIENT6}]:4000`);
  t.true(soundV6(toBackend));
  const toClient = b.one(icmpv6Error(request, { from: 'fd00:9::1', to: CLIENT6, code: 4 }));
  t.is(sourceV6(toClient), VIP6);
  t.is(endsV6(toClient.slice(48)), `[${CLIENT6}]:4000 > [${VIP6}]:80`);
  t.true(soundV6(toClient));
  t.deepEqual(b.feed([icmpv6Error(syn6(4001), { from: CLIENT6, to: VIP6 })]), []);
  t.deepEqual(b.drops(), { 'icmp-no-flow': 1 });
  b.rig.finish(t);
});

test('fragments to a service find their backend in any order, and come back as the service', (t) => {
  const b = new BalancerRigV6([service6({ backends: [backend6(1)] })]);
  const [first, later] = cut6({ source: CLIENT6, destination: VIP6 });
  t.deepEqual(b.feed([later]), [], 'it waits');
  const out = b.feed([first]).map(({ bytes }) => bytes);
  t.deepEqual(out.map(destinationV6), ['fd00:9::1', 'fd00:9::1']);
  t.deepEqual(
    out.map((bytes) => bytes.slice(0, 6)),
    [station(1), station(1)],
  );
  const [back, rest] = cut6({
    source: 'fd00:9::1',
    destination: CLIENT6,
    sourcePort: 53,
    destinationPort: 4000,
  });
  t.deepEqual(
    b.feed([back, rest]).map(({ bytes }) => sourceV6(bytes)),
    [VIP6, VIP6],
  );
  b.v6.flush();
  b.rig.finish(t);
});

test('a partial checksum stays one', (t) => {
  const b = new BalancerRigV6([service6({ backends: [backend6(1)] })]);
  const whole = syn6(4000);
  // What a host leaves to its card: the sum of the pseudo-header.
  const partial = Uint8Array.from(whole);
  const pseudo = (from: Uint8Array): number => {
    let sum = 6 + from.length - 54;
    for (let i = 22; i < 54; i += 2) sum += (from[i]! << 8) | from[i + 1]!;
    while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
    return sum;
  };
  partial.set(be16(pseudo(partial)), 54 + 16);
  const out = b.one(partial, { offload: OFFLOAD_NEEDS_CSUM, csumStart: 54, csumOffset: 16 });
  t.is(destinationV6(out), 'fd00:9::1');
  t.deepEqual(out.slice(70, 72), be16(pseudo(out)));
  b.rig.finish(t);
});

test('what is of no service passes as it is, and IPv4 goes its own way', (t) => {
  const b = new BalancerRigV6();
  const frames = [
    packetV6({ source: CLIENT6, destination: 'fd00:9::77' }),
    packetV6({ source: 'fd00:9::1', destination: CLIENT6, protocol: TCP, flags: ACK }),
    packetV6({ source: 'fd00:9::1', destination: 'ff02::1', protocol: ICMPV6, icmpType: 135 }),
    packet({ source: '10.0.9.50', destination: VIP }),
    syn6(4000).slice(0, 50),
  ];
  t.deepEqual(
    b.feed(frames).map(({ bytes }) => bytes),
    frames,
  );
  t.deepEqual(b.drops(), {});
  // Without IPv6 in the table all of it passes.
  const without = new BalancerRig();
  t.deepEqual(without.one(syn6(4000)), syn6(4000));
  b.rig.finish(t);
});

test('flows hold their addresses, the service its own, and a full table gives them up', (t) => {
  const b = new BalancerRigV6([service6()], 4, 64);
  for (let n = 0; n < 20; n++) b.one(syn6(4000, { source: `fd00:9::1:${n}` }));
  t.is(b.flows.size, 4);
  t.is(b.addresses.size, 4 + 4, 'those of the service, and a client for each flow');
  for (let second = 1001; second < 1300; second++) b.age(second);
  t.deepEqual([b.flows.size, b.addresses.size], [0, 4]);
  b.set([]);
  t.is(b.addresses.size, 4, 'kept for a while, to reset who asks there');
  b.services.forget();
  t.is(b.addresses.size, 0);
  b.rig.finish(t);
});

test('without a number for the address of a client it is refused', (t) => {
  const b = new BalancerRigV6([service6()], 10, 5);
  b.one(syn6(4000, { source: 'fd00:9::1:1' }));
  t.deepEqual(b.feed([syn6(4000, { source: 'fd00:9::1:2' })]), []);
  t.deepEqual(b.drops(), { 'table-full': 1 });
  b.rig.finish(t);
});

test('sh: a client has one backend whatever its port, and clients that differ in any word are spread', (t) => {
  const b = new BalancerRigV6([service6({ scheduler: 'sh' })]);
  const of = (source: string, port: number): string => destinationV6(b.one(syn6(port, { source })));
  const clients = Array.from({ length: 32 }, (_, n) => `fd00:9:0:${n.toString(16)}::5`);
  const first = clients.map((client) => of(client, 4000));
  t.deepEqual(
    clients.map((client) => of(client, 4001)),
    first,
  );
  t.true(new Set(first).size > 1);
  b.rig.finish(t);
});

test('property: there and back is identity, whatever is asked and however it is cut off; nothing leaks', (t) => {
  const b = new BalancerRigV6();
  const asked = fc.record({
    protocol: fc.constantFrom(TCP, UDP),
    client: fc.integer({ min: 0x200, max: 0x2ff }),
    sourcePort: fc.integer({ min: 1, max: 60_999 }),
    destinationPort: fc.integer({ min: 1, max: 60_999 }),
    content: fc.uint8Array({ maxLength: 64 }),
    keep: fc.integer({ min: 14, max: 200 }),
  });
  fc.assert(
    fc.property(asked, ({ protocol, client, sourcePort, destinationPort, content, keep }) => {
      const source = `fd00:9::${client.toString(16)}`;
      const flags = SYN;
      const frame = packetV6({
        protocol,
        source,
        destination: VIP6,
        sourcePort,
        destinationPort,
        content,
        flags,
      });
      const request = b.one(frame);
      t.true(soundV6(request));
      t.is(sourceV6(request), source);
      const answer = b.one(answerToV6(request, SYN | ACK));
      t.true(soundV6(answer));
      t.is(endsV6(answer), endsV6(answerToV6(frame)));
      // Cut off, it is dropped, or passes untouched where it does not even have addresses.
      b.feed([frame.slice(0, keep)]);
    }),
    { numRuns: 200 },
  );
  b.rig.finish(t);
});
