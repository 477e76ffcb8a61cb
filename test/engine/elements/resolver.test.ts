import test from 'ava';
import fc from 'fast-check';
import { createResolver } from '../../../engine/elements/resolver.js';
import { createUplinkIn } from '../../../engine/elements/uplink-in.js';
import { Batch } from '../../../engine/graph.js';
import { ArpCache } from '../../../engine/tables/arp-cache.js';
import { addressWord, Gateways, maskWord } from '../../../engine/tables/gateways.js';
import { be16, concat, dropped, ethernet, ip, mac, payload, Rig, station } from '../../support/frames.js';
import { badChecksums, dotted, ICMP, packet } from '../../support/nat.js';

const OWN = '192.168.60.10';
const ROUTER = '192.168.60.1';
const FAR = '203.0.113.2';
const OWN_MAC = mac('02:42:c0:a8:3c:0a');
const BROADCAST = mac('ff:ff:ff:ff:ff:ff');

const arpFrame = (
  operation: 1 | 2,
  o: {
    to?: Uint8Array;
    from?: Uint8Array;
    senderMac?: Uint8Array;
    sender: string;
    target: string;
    targetMac?: Uint8Array;
  },
): Uint8Array => {
  const { to = BROADCAST, from = station(1), senderMac = from, targetMac = new Uint8Array(6) } = o;
  return ethernet(
    { to, from, type: 0x0806 },
    concat(be16(1, 0x800, 0x604, operation), senderMac, ip(o.sender), targetMac, ip(o.target)),
  );
};

/** What the uplink asks for an address. */
const question = (target: string, to = BROADCAST): Uint8Array =>
  arpFrame(1, { to, from: OWN_MAC, sender: OWN, target });

function resolverRig({ gateway = ROUTER as string | null } = {}) {
  const rig = new Rig();
  const [sent, nat] = [rig.sink(), rig.sink()];
  const batches = [sent, nat].map((sink) => new Batch(sink));
  const unreachable: string[] = [];
  const own = {
    address: addressWord(ip(OWN)),
    subnet: addressWord(ip('192.168.60.0')),
    mask: maskWord(24),
    gateway: gateway === null ? 0 : addressWord(ip(gateway)),
    mac: Uint16Array.from([0, 2, 4], (i) => OWN_MAC[i] | (OWN_MAC[i + 1] << 8)),
  };
  const resolver = createResolver(rig.context, '0', own, new ArpCache(1), {
    port: batches[0],
    unreachable: (_, route) => unreachable.push(route ? 'net' : 'host'),
  });
  const gateways = new Gateways();
  const blue = { address: ip('10.0.9.254'), subnet: ip('10.0.9.0'), length: 24 };
  gateways.set({ domain: 0, v4: blue, mac: station(9), routed: false, uplink: 0, mtu: 1450 });
  gateways.reindex();
  const input = createUplinkIn(rig.context, '0', own, gateways, {
    resolver,
    port: batches[0],
    nat: batches[1],
    v6: null,
  });
  const flush = () => {
    for (const batch of batches) batch.flush();
    return { sent: sent.take(), nat: nat.take() };
  };
  rig.context.setTime(1_000_000);
  return {
    rig,
    unreachable,
    resolver,
    /** A packet to be sent on. */
    send(destination: string) {
      rig.feed(resolver, rig.put(packet({ source: OWN, destination })));
      return flush().sent;
    },
    /** A frame of the link. */
    hear(bytes: Uint8Array) {
      rig.feed(input, rig.put(bytes));
      return flush();
    },
    /** So many seconds later. */
    wait(seconds: number) {
      const all: Uint8Array[] = [];
      for (let i = 0; i < seconds; i++) {
        rig.context.setTime(rig.context.now + 1000);
        resolver.tick();
        all.push(...flush().sent);
      }
      return all;
    },
    drops: () => ({ ...dropped(resolver.drops), ...dropped(input.drops) }),
  };
}

const answer = (sender: string, from = station(7)): Uint8Array =>
  arpFrame(2, { to: OWN_MAC, from, sender, target: OWN, targetMac: OWN_MAC });
const ends = (frame: Uint8Array): string => dotted(frame.slice(30, 34));

test('the first packet waits for the next hop, and goes on with the answer, and others at once', (t) => {
  const { send, hear, rig } = resolverRig();
  t.deepEqual(send(FAR), [question(ROUTER)]);
  t.deepEqual(send(FAR), []);
  const { sent } = hear(answer(ROUTER));
  t.deepEqual(sent.map(ends), [FAR, FAR]);
  for (const frame of sent) {
    t.deepEqual(frame.slice(0, 14), concat(station(7), OWN_MAC, be16(0x0800)));
  }
  t.deepEqual(send(FAR).map(ends), [FAR]);
  t.deepEqual(send('192.168.60.5'), [question('192.168.60.5')]);
  hear(answer('192.168.60.5', station(8)));
  t.deepEqual(send('192.168.60.5')[0].slice(0, 6), station(8));
  rig.finish(t);
});

test('a next hop that does not answer is asked three times; what waited is dropped, and that is told', (t) => {
  const { send, wait, unreachable, drops, rig } = resolverRig();
  send(FAR);
  send(FAR);
  t.deepEqual(wait(2), [question(ROUTER), question(ROUTER)]);
  t.deepEqual(unreachable, []);
  t.deepEqual(wait(1), []);
  t.deepEqual(unreachable, ['host', 'host']);
  t.deepEqual(drops(), { unresolved: 2 });
  // The next packet asks anew.
  t.deepEqual(send(FAR), [question(ROUTER)]);
  wait(3);
  rig.finish(t);
});

test('without a gateway only the link is reached', (t) => {
  const { send, unreachable, drops, rig } = resolverRig({ gateway: null });
  t.deepEqual(send(FAR), []);
  t.deepEqual(unreachable, ['net']);
  t.deepEqual(drops(), { 'no-route': 1 });
  rig.finish(t);
});

test('what waits is bounded, for one next hop and in all', (t) => {
  const { send, wait, drops, rig } = resolverRig();
  for (let i = 0; i < 80; i++) send(FAR);
  t.is(drops()['queue-full'], 16);
  for (let host = 20; host < 220; host++) for (let i = 0; i < 2; i++) send(`192.168.60.${host}`);
  t.is(rig.memory.inUse, 256);
  wait(5);
  rig.finish(t);
});

test('who has frames wait for many that do not answer leaves room for what waits for the router', (t) => {
  const { send, hear, drops, rig } = resolverRig();
  for (let host = 20; host < 250; host++) for (let i = 0; i < 3; i++) send(`192.168.60.${host}`);
  t.true(drops()['queue-full']! > 0);
  t.deepEqual(send(FAR), [question(ROUTER)]);
  t.is(hear(answer(ROUTER)).sent.length, 1);
  for (let host = 20; host < 250; host++) hear(answer(`192.168.60.${host}`));
  rig.finish(t);
});

test('of super-frames a quarter of the large slots waits, and as many again when those have gone', (t) => {
  const { resolver, hear, wait, drops, rig } = resolverRig();
  const large = (destination: string) =>
    rig.put(packet({ source: OWN, destination, content: new Uint8Array(4000) }));
  const most = rig.memory.large >> 2;
  for (const round of [1, 2, 3, 4]) {
    const hosts = [20, 21].map((host) => `192.168.60.${host + 2 * round}`);
    for (let i = 0; i <= most; i++) rig.feed(resolver, large(hosts[i & 1]!));
    t.is(drops()['queue-full'], round);
    t.is(rig.memory.large - rig.memory.freeLargeCount, most);
    if (round % 2 === 0) wait(5);
    else for (const host of hosts) hear(answer(host));
  }
  wait(1);
  rig.finish(t);
});

test('who asks for our address gets it, and is known from then on', (t) => {
  const { hear, send, rig } = resolverRig();
  const { sent } = hear(arpFrame(1, { sender: ROUTER, target: OWN }));
  t.deepEqual(sent, [
    arpFrame(2, { to: station(1), from: OWN_MAC, sender: OWN, target: ROUTER, targetMac: station(1) }),
  ]);
  t.deepEqual(send(FAR)[0].slice(0, 6), station(1));
  rig.finish(t);
});

test('a neighbour that moves is followed; others that speak to others are not noted', (t) => {
  const { hear, send, rig, drops } = resolverRig();
  hear(arpFrame(1, { sender: ROUTER, target: OWN }));
  hear(arpFrame(1, { from: station(5), sender: ROUTER, target: ROUTER }));
  t.deepEqual(send(FAR)[0].slice(0, 6), station(5));
  hear(arpFrame(1, { from: station(6), sender: '192.168.60.6', target: ROUTER }));
  t.deepEqual(send('192.168.60.6'), [question('192.168.60.6')]);
  hear(answer('192.168.60.6'));
  t.is(drops()['arp-for-others'], 3);
  rig.finish(t);
});

test('a neighbour in use is confirmed by unicast, then by broadcast, and forgotten when it is silent', (t) => {
  const { hear, send, wait, rig } = resolverRig();
  hear(arpFrame(1, { sender: ROUTER, target: OWN }));
  wait(29);
  send(FAR);
  const asked = wait(8);
  const unicast = Array.from({ length: 3 }, () => question(ROUTER, station(1)));
  t.deepEqual(asked, [...unicast, ...Array.from({ length: 3 }, () => question(ROUTER))]);
  t.deepEqual(send(FAR), [question(ROUTER)]);
  hear(answer(ROUTER));
  // One that answers is not asked again for half a minute, and one that nobody uses is not asked at all.
  wait(29);
  t.deepEqual(wait(600).length <= 1, true);
  rig.finish(t);
});

test('who claims our address is counted and told, not too often', (t) => {
  const { hear, wait, rig } = resolverRig();
  const claim = arpFrame(1, { from: station(9), sender: OWN, target: OWN });
  t.deepEqual(hear(claim).sent, [question(OWN)]);
  t.deepEqual(hear(claim).sent, []);
  wait(10);
  t.deepEqual(hear(claim).sent, [question(OWN)]);
  t.is(rig.counter('resolver:0', 'conflict'), 3);
  rig.finish(t);
});

test('ARP that lies about its sender is dropped', (t) => {
  const { hear, drops, rig } = resolverRig();
  hear(arpFrame(1, { senderMac: station(3), sender: ROUTER, target: OWN }));
  const group = mac('03:00:00:00:00:01');
  hear(arpFrame(1, { from: group, sender: ROUTER, target: OWN }));
  hear(arpFrame(1, { sender: ROUTER, target: OWN }).slice(0, 40));
  t.deepEqual(drops(), { 'arp-malformed': 3 });
  rig.finish(t);
});

test('IPv4 for our address goes to translation, echo is answered, all else is dropped', (t) => {
  const { hear, drops, rig } = resolverRig();
  const to = (destination: string, more = {}): Uint8Array => packet({ source: FAR, destination, ...more });
  t.is(hear(concat(to(OWN), new Uint8Array(6))).nat[0].length, to(OWN).length);
  const [reply] = hear(to(OWN, { protocol: ICMP })).sent;
  t.deepEqual(badChecksums(reply), []);
  t.is(`${reply[34]} ${dotted(reply.slice(26, 30))} ${ends(reply)}`, `0 ${OWN} ${FAR}`);
  hear(to('192.168.60.11'));
  hear(concat(BROADCAST, to(OWN).slice(6)));
  hear(packet({ source: '127.0.0.1', destination: OWN }));
  hear(packet({ source: OWN, destination: OWN }));
  // From outside nobody is a container: whoever is published would take it for a neighbour.
  hear(packet({ source: '10.0.9.5', destination: OWN }));
  hear(packet({ source: '10.0.9.5', destination: OWN, protocol: ICMP }));
  hear(to(OWN, { options: Uint8Array.of(137, 3, 4, 0) }));
  hear(to(OWN).slice(0, 33));
  hear(ethernet({ type: 0x86dd }, payload(60)));
  hear(new Uint8Array(8));
  t.deepEqual(drops(), {
    ...{ 'not-ours': 1, 'not-unicast': 1, 'bad-source': 4, 'source-route': 1, malformed: 1, 'not-ip': 2 },
  });
  rig.finish(t);
});

test('property: whatever is heard, nothing is lost and nothing leaks', (t) => {
  const frame = fc.oneof(
    fc.uint8Array({ maxLength: 80 }),
    fc
      .tuple(
        fc.constantFrom(
          answer(ROUTER),
          arpFrame(1, { sender: ROUTER, target: OWN }),
          packet({ source: FAR, destination: OWN }),
        ),
        fc.array(fc.tuple(fc.nat(60), fc.nat(255)), { maxLength: 3 }),
      )
      .map(([bytes, changes]) => {
        const copy = bytes.slice();
        for (const [at, value] of changes) if (at < copy.length) copy[at] = value;
        return copy;
      }),
  );
  fc.assert(
    fc.property(fc.array(fc.oneof(frame, fc.nat(3)), { maxLength: 20 }), (steps) => {
      const { hear, send, wait, rig } = resolverRig();
      for (const step of steps) {
        if (typeof step === 'number') send(step === 0 ? FAR : `192.168.60.${step}`);
        else hear(step);
      }
      wait(5);
      t.is(rig.memory.inUse, 0);
    }),
    { numRuns: 200 },
  );
});
