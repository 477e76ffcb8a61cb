/** Checks of backends that have the virtual address themselves: asked at it, from the gateway's. */
import test from 'ava';
import { SILENT, WAS_RESET } from '../../engine/elements/balancer/prober.js';
import { REMOTE } from '../../engine/memory/frames.js';
import { BalancerRig, backend, CLIENT, GATEWAY, GATEWAY6, service, VIP } from '../support/balancer.js';
import { BalancerRigV6, backend6, service6, VIP6 } from '../support/balancer6.js';
import { answer, contentOf, FIRST, flagsOf, HEALTH, HTTP, PSH } from '../support/checks.js';
import { ip, mac, station } from '../support/frames.js';
import { ACK, badChecksums, ends, packet, RST, SYN, sourcePort, TCP } from '../support/nat.js';
import { endsV6, packetV6, soundV6 } from '../support/nat6.js';

const ONE = { direct: true, health: HEALTH };
const v4 = (more = {}) => new BalancerRig([service({ ...ONE, backends: [backend(1)], ...more })]);
const v6 = (more = {}) => new BalancerRigV6([service6({ ...ONE, backends: [backend6(1)], ...more })]);

const FAMILIES = [
  {
    name: 'IPv4',
    make: v4,
    ends,
    sound: (frame: Uint8Array) => badChecksums(frame).length === 0,
    /** From the gateway to the virtual address, and the station that asks. */
    asked: (frame: Uint8Array) => `${GATEWAY}:${sourcePort(frame)} > ${VIP}:80`,
    asking: mac('06:57:0a:00:09:64'),
    marked: '10.0.9.101',
    theirs: (source = GATEWAY) =>
      packet({
        ...{ protocol: TCP, flags: SYN, source, destination: VIP, sourcePort: 61_234, destinationPort: 80 },
        content: new Uint8Array(0),
      }),
  },
  {
    name: 'IPv6',
    make: v6,
    ends: endsV6,
    sound: soundV6,
    asked: (frame: Uint8Array) => `[${GATEWAY6}]:${(frame[54]! << 8) | frame[55]!} > [${VIP6}]:80`,
    asking: mac('06:57:00:00:01:00'),
    marked: 'fd00:9::101',
    theirs: (source = GATEWAY6) =>
      packetV6({
        ...{ protocol: TCP, flags: SYN, source, destination: VIP6, sourcePort: 61_234, destinationPort: 80 },
        content: new Uint8Array(0),
      }),
  },
];

/** As it came to the host of a backend: under its MAC. */
function under(to: Uint8Array, frame: Uint8Array): Uint8Array {
  const sent = frame.slice();
  sent.set(to);
  return sent;
}

for (const family of FAMILIES) {
  test(`${family.name}: the backend is asked at the virtual address, under its MAC, by the gateway's address`, (t) => {
    const b = family.make({ health: { ...HEALTH, failures: 1 } });
    const syn = b.check(2000)[0]!.bytes;
    t.is(family.ends(syn), family.asked(syn));
    t.deepEqual([syn.slice(0, 6), syn.slice(6, 12)], [station(1), family.asking]);
    t.true(family.sound(syn));
    const reset = b.one(answer(syn, { flags: SYN | ACK }));
    t.deepEqual([flagsOf(reset), reset.slice(0, 12)], [RST | ACK, syn.slice(0, 12)]);
    b.feed([answer(b.check(2000)[0]!.bytes, { flags: RST | ACK, seq: 0 })]);
    b.check(0);
    t.deepEqual(
      b.changes.map(({ cause }) => cause),
      [WAS_RESET],
    );
    b.rig.finish(t);
  });

  test(`${family.name}: the answer to another host's check goes back there, and that to a client goes to it`, (t) => {
    const b = family.make({ health: { ...HEALTH, interval: 1_000_000 } });
    const syn = under(station(1), family.theirs());
    const reply = answer(syn, { flags: SYN | ACK });
    t.deepEqual(b.one(reply), reply, 'of nobody: it goes on to the gateway');
    t.deepEqual(b.feed([syn], { ingress: REMOTE | 5 })[0]!.bytes, syn);
    const client = under(station(1), family.theirs(family.name === 'IPv4' ? CLIENT : 'fd00:9::50'));
    t.deepEqual(b.feed([client], { ingress: REMOTE | 7 })[0]!.bytes, client);
    const toClient = answer(client, { flags: SYN | ACK });
    t.deepEqual(b.one(toClient), toClient);
    t.deepEqual(b.feed([reply], { ingress: 2 }), []);
    const back = b.tunnel.one();
    t.deepEqual([back.bytes, back.dest], [reply, REMOTE | 5]);
    t.is(b.feed([reply], { ingress: REMOTE | 6 }).length, 1, 'from a third host it is of nobody');
    t.is(b.flows.size, 0);
    b.rig.finish(t);
  });

  test(`${family.name}: for whom another host has chosen a backend nobody chooses again`, (t) => {
    const b = family.make({ health: undefined });
    const syn = under(station(2), family.theirs());
    t.deepEqual(b.feed([syn], { ingress: REMOTE | 5 })[0]!.bytes, syn);
    const marked = family.make({ health: undefined, mark: 300, address: ip(family.marked) });
    t.deepEqual(marked.feed([syn], { ingress: REMOTE | 5, mark: 300 })[0]!.bytes, syn, 'of a mark');
    t.deepEqual([b.flows.size, marked.flows.size], [0, 0]);
    const toVirtual = under(family.asking, syn);
    t.deepEqual(b.feed([toVirtual], { ingress: REMOTE | 5 })[0]!.bytes.slice(0, 6), station(1));
    t.is(b.flows.size, 1, 'whom nobody has served is served here');
    const masq = family.make({ health: undefined, direct: false });
    t.not(family.ends(masq.feed([syn], { ingress: REMOTE | 5 })[0]!.bytes), family.ends(syn));
    b.rig.finish(t);
    masq.rig.finish(t);
    marked.rig.finish(t);
  });

  test(`${family.name}: a page is asked for by the name of the virtual address`, (t) => {
    const b = family.make({ health: HTTP });
    const syn = b.check(2000)[0]!.bytes;
    const request = b.one(answer(syn, { flags: SYN | ACK, seq: FIRST - 1 }));
    const host = family.name === 'IPv4' ? VIP : '[fd00:9:0:0:0:0:0:100]';
    t.true(contentOf(request).startsWith(`GET /health HTTP/1.1\r\nHost: ${host}\r\n`), contentOf(request));
    const page = answer(request, { flags: ACK | PSH, data: 'HTTP/1.1 200 OK\r\n' });
    t.is(flagsOf(b.one(page)), RST | ACK);
    b.rig.finish(t);
  });
}

test('clients with ports of checks do not put out what is remembered of those', (t) => {
  const b = v4({ health: { ...HEALTH, interval: 1_000_000 } });
  const [{ theirs }] = FAMILIES as [(typeof FAMILIES)[0]];
  const syn = under(station(1), theirs());
  const from = { ingress: REMOTE | 5 };
  b.feed([syn], from);
  for (let n = 0; n < 160; n++) {
    const clients = Array.from({ length: 250 }, (_, i) => {
      const client = syn.slice();
      client.set([10, 0, n, i], 26);
      return client;
    });
    t.is(b.feed(clients, { ingress: REMOTE | 7 }).length, 250);
  }
  b.feed([answer(syn, { flags: SYN | ACK })]);
  t.is(b.tunnel.one().dest, REMOTE | 5);
  b.rig.finish(t);
});

test('where its network gets another gateway the check begins anew, where it has none nothing is checked', (t) => {
  const b = v4();
  const syn = b.check(2000)[0]!.bytes;
  b.one(answer(syn, { flags: SYN | ACK }));
  const services = [service({ ...ONE, backends: [backend(1)] })];
  b.gateways.set({
    ...{ domain: 0, mac: station(254), routed: false, uplink: -1, mtu: 1450 },
    v4: { address: Uint8Array.of(10, 0, 9, 253), subnet: Uint8Array.of(10, 0, 9, 0), length: 24 },
  });
  b.set(services);
  const again = b.check(2000)[0]!.bytes;
  t.is(ends(again), `10.0.9.253:${sourcePort(again)} > ${VIP}:80`);
  b.one(answer(again, { flags: SYN | ACK }));
  b.gateways.remove(0);
  b.set(services);
  t.deepEqual(b.check(10_000), []);
  t.deepEqual(b.one(answer(again, { flags: SYN | ACK })), answer(again, { flags: SYN | ACK }));
  b.rig.finish(t);
});

test('what is for the gateway and no answer to a check passes', (t) => {
  const b = v4({ health: { ...HEALTH, failures: 1 } });
  const syn = b.check(2000)[0]!.bytes;
  const reply = answer(syn, { flags: RST | ACK, seq: 0 });
  const port = reply.slice();
  port[36] = 0x10;
  const protocol = reply.slice();
  protocol[23] = 17;
  const short = reply.slice(0, 50);
  const other = packet({ protocol: TCP, flags: RST, source: VIP, destination: CLIENT, sourcePort: 80 });
  const all = [port, protocol, short, other];
  t.deepEqual(
    b.feed(all).map(({ bytes }) => bytes),
    all,
  );
  b.check(0);
  t.deepEqual(b.changes, []);
  b.feed([reply]);
  b.check(0);
  t.is(b.changes.length, 1);
  b.rig.finish(t);
});

test('what a direct backend answers is not seen: who begins and does not go on fails nobody, who asks again has it checked', (t) => {
  const b = v4({ health: { ...HEALTH, interval: 600_000, timeout: 1000, failures: 1 } });
  b.one(answer(b.check(1000)[0]!.bytes, { flags: SYN | ACK }));
  const client = { protocol: TCP, flags: SYN, source: CLIENT, destination: VIP, sourcePort: 4000 };
  const syn = packet({ ...client, destinationPort: 80 });
  b.one(syn);
  b.age(b.rig.context.seconds + 300);
  t.deepEqual([b.flows.size, b.check(0), b.services.counts()[0]!.failures], [0, [], 0]);
  const again = (): Uint8Array => {
    b.one(syn);
    b.check(3000);
    b.one(syn);
    const [sent] = b.check(0);
    return sent!.bytes;
  };
  b.one(answer(again(), { flags: SYN | ACK }));
  b.age(b.rig.context.seconds + 300);
  again();
  t.deepEqual(b.changes, []);
  b.check(1000);
  b.check(0);
  t.deepEqual(
    b.changes.map(({ cause }) => cause),
    [SILENT],
  );
  b.rig.finish(t);
});
