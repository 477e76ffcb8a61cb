import test from 'ava';
import fc from 'fast-check';
import type { Resolver } from '../../../engine/elements/resolver.js';
import { createResolverV6 } from '../../../engine/elements/resolver-v6.js';
import { createUplinkIn } from '../../../engine/elements/uplink-in.js';
import { createUplinkInV6 } from '../../../engine/elements/uplink-in-v6.js';
import { Batch } from '../../../engine/graph.js';
import { NdCache } from '../../../engine/tables/arp-cache.js';
import { Gateways } from '../../../engine/tables/gateways.js';
import { maskWords, words16 } from '../../../engine/wire/ipv6.js';
import { be16, concat, dropped, ip, mac, payload, Rig, slowSum, station } from '../../support/frames.js';
import { destinationV6, framedV6, ICMPV6, packetV6, soundV6, sourceV6 } from '../../support/nat6.js';

const OWN = 'fd00:60::10';
const ROUTER = 'fd00:60::1';
const FAR = '2001:db8::2';
const OWN_MAC = mac('02:42:c0:a8:3c:0a');
const ALL_NODES = mac('33:33:00:00:00:01');
/** Groups of the addresses that end in 1 and in 10. */
const GROUP_OF_1 = mac('33:33:ff:00:00:01');
const GROUP_OF_OWN = mac('33:33:ff:00:00:10');

interface Discovery {
  readonly type: 135 | 136;
  readonly target: string;
  readonly source: string;
  readonly destination: string;
  readonly to: Uint8Array;
  readonly from: Uint8Array;
  readonly flags?: number;
  /** MAC of the option; null for none. */
  readonly option?: Uint8Array | null;
  readonly hopLimit?: number;
}

function discovery(d: Discovery): Uint8Array {
  const { type, target, source, destination, to, from, flags = 0, option = from, hopLimit = 255 } = d;
  const link = option === null ? new Uint8Array(0) : concat(Uint8Array.of(type - 134, 1), option);
  const message = concat(Uint8Array.of(type, 0, 0, 0, flags, 0, 0, 0), ip(target), link);
  const pseudo = slowSum(concat(ip(source), ip(destination), be16(ICMPV6, message.length)));
  message.set(be16(~slowSum(message, pseudo) & 0xffff), 2);
  return framedV6({ source, destination, protocol: ICMPV6, hopLimit, to, from }, message);
}

/** What the uplink asks for an address. */
const question = (target: string, to?: Uint8Array): Uint8Array =>
  discovery({
    ...{ type: 135, target, source: OWN, from: OWN_MAC },
    destination: to ? target : `ff02::1:ff00:${target.split('::')[1]}`,
    to: to ?? mac(`33:33:ff:00:00:0${target.at(-1)}`),
  });

const SOLICITED = 0x40;
const OVERRIDE = 0x20;

const answer = (target: string, o: Partial<Discovery> = {}): Uint8Array =>
  discovery({
    ...{ type: 136, target, source: target, destination: OWN, to: OWN_MAC, from: station(7) },
    ...{ flags: SOLICITED | OVERRIDE, ...o },
  });

const asks = (o: Partial<Discovery> = {}): Uint8Array =>
  discovery({
    ...{ type: 135, target: OWN, source: ROUTER, destination: 'ff02::1:ff00:10', to: GROUP_OF_OWN },
    ...{ from: station(7), ...o },
  });

function resolverRig({ gateway = ROUTER as string | null } = {}) {
  const rig = new Rig();
  const [sent, nat] = [rig.sink(), rig.sink()];
  const batches = [sent, nat].map((sink) => new Batch(sink));
  const unreachable: string[] = [];
  const own = {
    address: words16(ip(OWN)),
    mask: maskWords(64),
    gateway: gateway === null ? null : words16(ip(gateway)),
    mac: Uint16Array.from([0, 2, 4], (i) => OWN_MAC[i] | (OWN_MAC[i + 1] << 8)),
  };
  const resolver = createResolverV6(rig.context, '0', own, new NdCache(1), {
    port: batches[0],
    unreachable: (_, route) => unreachable.push(route ? 'net' : 'host'),
  });
  const gateways = new Gateways();
  const blue = { address: ip('fd00:9::fe'), subnet: ip('fd00:9::'), length: 64 };
  gateways.set({ domain: 0, v6: blue, mac: station(9), routed: false, uplink: 0, mtu: 1450 });
  gateways.reindex();
  const v6 = createUplinkInV6(rig.context, '0', own, gateways, {
    ...{ resolver, port: batches[0], nat: batches[1] },
  });
  const input = createUplinkIn(rig.context, '0', { address: 0 }, gateways, {
    ...{ resolver: undefined as unknown as Resolver, port: batches[0], nat: batches[1], v6 },
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
      rig.feed(resolver, rig.put(packetV6({ source: OWN, destination })));
      return flush().sent;
    },
    /** A frame of the link. */
    hear(bytes: Uint8Array) {
      rig.feed(input, rig.put(bytes));
      return flush();
    },
    flush,
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
    drops: () => ({ ...dropped(resolver.drops), ...dropped(v6.drops), ...dropped(input.drops) }),
  };
}

test('the first packet waits for the next hop, and goes on with the answer, and others at once', (t) => {
  const { send, hear, rig } = resolverRig();
  t.deepEqual(send(FAR), [question(ROUTER)]);
  t.deepEqual(send(FAR), []);
  const { sent } = hear(answer(ROUTER));
  t.deepEqual(sent.map(destinationV6), [FAR, FAR]);
  for (const frame of sent) t.deepEqual(frame.slice(0, 14), concat(station(7), OWN_MAC, be16(0x86dd)));
  t.deepEqual(send(FAR).map(destinationV6), [FAR]);
  t.deepEqual(send('fd00:60::5'), [question('fd00:60::5')]);
  hear(answer('fd00:60::5', { from: station(8) }));
  t.deepEqual(send('fd00:60::5')[0].slice(0, 6), station(8));
  rig.finish(t);
});

test('the next hop may be link-local', (t) => {
  const { send, hear, rig } = resolverRig({ gateway: 'fe80::1' });
  const [asked] = send(FAR);
  t.deepEqual(asked.slice(0, 6), GROUP_OF_1);
  t.is(`${sourceV6(asked)} ${destinationV6(asked)}`, `${OWN} ff02::1:ff00:1`);
  t.deepEqual(asked.slice(62, 78), ip('fe80::1'));
  t.true(soundV6(asked));
  t.is(hear(answer('fe80::1')).sent.length, 1);
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
  rig.finish(t);
});

test('without a gateway only the link is reached', (t) => {
  const { send, unreachable, drops, rig, wait } = resolverRig({ gateway: null });
  t.deepEqual(send(FAR), []);
  t.deepEqual(unreachable, ['net']);
  t.deepEqual(send(ROUTER), [question(ROUTER)]);
  wait(3);
  t.deepEqual(drops(), { 'no-route': 1, unresolved: 1 });
  rig.finish(t);
});

test('what waits is bounded, for one next hop and in all', (t) => {
  const { send, wait, drops, rig } = resolverRig();
  for (let i = 0; i < 70; i++) send(FAR);
  t.deepEqual(drops(), { 'queue-full': 6 });
  for (let i = 0; i < 300; i++) send(`fd00:60::1:${i.toString(16)}`);
  t.is(drops()['queue-full'], 6 + 300 - 192);
  wait(4);
  t.is(drops()['unresolved'], 256);
  rig.finish(t);
});

test('who has frames wait for many that do not answer leaves room for what waits for the router', (t) => {
  const { send, hear, drops, wait, rig } = resolverRig({ gateway: 'fe80::1' });
  for (let host = 20; host < 250; host++) for (let i = 0; i < 3; i++) send(`fd00:60::${host.toString(16)}`);
  t.true(drops()['queue-full'] > 0);
  t.is(send(FAR).length, 1);
  t.is(hear(answer('fe80::1')).sent.length, 1);
  wait(5);
  rig.finish(t);
});

test('who asks for our address gets it, solicited, and is known from then on', (t) => {
  const { hear, send, rig } = resolverRig();
  const { sent } = hear(asks());
  t.deepEqual(sent, [
    discovery({
      ...{ type: 136, target: OWN, source: OWN, destination: ROUTER, to: station(7), from: OWN_MAC },
      flags: SOLICITED | OVERRIDE,
    }),
  ]);
  t.deepEqual(send(FAR)[0].slice(0, 6), station(7));
  // By unicast as well, from a link-local address and without an option.
  const unicast = asks({ source: 'fe80::7', destination: OWN, to: OWN_MAC, option: null });
  t.is(destinationV6(hear(unicast).sent[0]), 'fe80::7');
  rig.finish(t);
});

test('who probes our address hears of it, as all do, and is counted', (t) => {
  const { hear, rig } = resolverRig();
  const { sent } = hear(asks({ source: '::', option: null }));
  const announcement = discovery({
    ...{ type: 136, target: OWN, source: OWN, destination: 'ff02::1', to: ALL_NODES, from: OWN_MAC },
    flags: OVERRIDE,
  });
  t.deepEqual(sent, [announcement, announcement]);
  t.is(rig.counter('resolver-v6:0', 'conflict'), 1);
  rig.finish(t);
});

test('who claims our address is counted and told, not too often', (t) => {
  const { hear, wait, rig } = resolverRig();
  const claim = answer(OWN, { destination: 'ff02::1', to: ALL_NODES, flags: OVERRIDE });
  t.is(hear(claim).sent.length, 1);
  t.is(hear(claim).sent.length, 0);
  wait(10);
  t.is(hear(claim).sent.length, 1);
  t.is(rig.counter('resolver-v6:0', 'conflict'), 3);
  rig.finish(t);
});

test('what is announced: address and MAC, and the group that is listened to, which is said again', (t) => {
  const { resolver, flush, wait, rig } = resolverRig();
  resolver.announce();
  const [advertisement, report] = flush().sent;
  t.deepEqual(
    advertisement,
    discovery({
      ...{ type: 136, target: OWN, source: OWN, destination: 'ff02::1', to: ALL_NODES, from: OWN_MAC },
      flags: OVERRIDE,
    }),
  );
  // RFC 3810, 5.2: one record, CHANGE_TO_EXCLUDE_MODE, no sources.
  const record = concat(Uint8Array.of(4, 0, 0, 0), ip('ff02::1:ff00:10'));
  const message = concat(Uint8Array.of(143, 0, 0, 0, 0, 0, 0, 1), record);
  const pseudo = slowSum(concat(ip('::'), ip('ff02::16'), be16(ICMPV6, message.length)));
  message.set(be16(~slowSum(message, pseudo) & 0xffff), 2);
  const wanted = framedV6(
    {
      ...{ source: '::', destination: 'ff02::16', protocol: ICMPV6, hopLimit: 1, first: 0 },
      ...{ extensions: Uint8Array.of(58, 0, 5, 2, 0, 0, 1, 0), from: OWN_MAC },
      to: mac('33:33:00:00:00:16'),
    },
    message,
  );
  t.deepEqual(Buffer.from(report), Buffer.from(wanted));
  t.deepEqual(wait(59), []);
  t.deepEqual(
    wait(61).map((frame) => Buffer.from(frame)),
    [Buffer.from(wanted), Buffer.from(wanted)],
  );
  rig.finish(t);
});

test('who begins in the first second of its clock says its group again, and defends its address no oftener', (t) => {
  const { resolver, flush, wait, hear, rig } = resolverRig();
  rig.context.setTime(200);
  resolver.announce();
  t.is(flush().sent.length, 2);
  const claim = answer(OWN, { destination: 'ff02::1', to: ALL_NODES, from: station(9), flags: OVERRIDE });
  t.deepEqual([hear(claim).sent.length, hear(claim).sent.length], [1, 0]);
  t.deepEqual(wait(59), []);
  t.is(wait(1).length, 1);
  rig.finish(t);
});

test('a neighbour that moves is followed when it says so, and asked again (RFC 4861, 7.2.5)', (t) => {
  const { send, hear, wait, rig } = resolverRig();
  hear(asks());
  const moved = { destination: 'ff02::1', to: ALL_NODES, from: station(9) };
  hear(answer(ROUTER, { ...moved, flags: 0 }));
  t.deepEqual(send(FAR)[0].slice(0, 6), station(7));
  hear(answer(ROUTER, { ...moved, flags: OVERRIDE }));
  t.deepEqual(send(FAR)[0].slice(0, 6), station(9));
  t.deepEqual(wait(1), [question(ROUTER, station(9))]);
  hear(answer(ROUTER, { from: station(9) }));
  t.deepEqual(wait(5), []);
  rig.finish(t);
});

test('a neighbour in use is confirmed by unicast, then by its group, and forgotten when it is silent', (t) => {
  const { send, hear, wait, rig } = resolverRig();
  hear(asks());
  send(FAR);
  t.deepEqual(wait(29), []);
  send(FAR);
  const asked = wait(8).map((frame) => (Buffer.from(frame.slice(0, 6)).equals(station(7)) ? 'one' : 'all'));
  t.deepEqual(asked, ['one', 'one', 'one', 'all', 'all', 'all']);
  t.deepEqual(send(FAR), [question(ROUTER)]);
  wait(3);
  rig.finish(t);
});

const LIES: readonly (readonly [title: string, frame: Uint8Array, reason: string])[] = [
  ['with another hop limit', asks({ hopLimit: 254 }), 'nd-malformed'],
  ['from a group', asks({ source: 'ff02::1' }), 'nd-malformed'],
  ['with another MAC than it sends from', asks({ option: station(9) }), 'nd-malformed'],
  ['an advertisement with another MAC', answer(ROUTER, { option: station(9) }), 'nd-malformed'],
  ['a probe with an option', asks({ source: '::' }), 'nd-malformed'],
  ['solicited, to a group', answer(ROUTER, { destination: 'ff02::1', to: ALL_NODES }), 'nd-malformed'],
  ['with a wrong checksum', asks().map((byte, i) => (i === 56 ? byte ^ 1 : byte)), 'nd-malformed'],
  ['about others', asks({ target: 'fd00:60::77' }), 'nd-for-others'],
  ['unasked', answer(ROUTER), 'nd-for-others'],
];
for (const [title, frame, reason] of LIES) {
  test(`discovery ${title} is dropped, and nothing believed`, (t) => {
    const { hear, send, drops, wait, rig } = resolverRig();
    t.deepEqual(hear(frame).sent, []);
    t.deepEqual(drops(), { [reason]: 1 });
    t.deepEqual(send(FAR), [question(ROUTER)]);
    wait(3);
    rig.finish(t);
  });
}

test('IPv6 for our address goes to translation, echo is answered, all else is dropped', (t) => {
  const { hear, drops, rig } = resolverRig();
  const toUs = packetV6({ source: FAR, destination: OWN });
  t.deepEqual(hear(concat(toUs, new Uint8Array(7))).nat, [toUs]);
  const [echo] = hear(packetV6({ source: FAR, destination: OWN, protocol: ICMPV6 })).sent;
  t.true(soundV6(echo));
  t.is(`${echo[54]} ${destinationV6(echo)}`, `129 ${FAR}`);
  for (const other of [
    packetV6({ source: FAR, destination: 'fd00:60::11' }),
    packetV6({ source: 'fe80::7', destination: OWN }),
    packetV6({ source: OWN, destination: OWN }),
    packetV6({ source: 'fd00:9::5', destination: OWN }),
    packetV6({ source: 'fd00:9::5', destination: OWN, protocol: ICMPV6 }),
    packetV6({ source: FAR, destination: 'ff02::1', to: ALL_NODES }),
    packetV6({
      source: FAR,
      destination: OWN,
      first: 43,
      extensions: Uint8Array.of(17, 0, 0, 1, 0, 0, 0, 0),
    }),
    packetV6({ source: FAR, destination: OWN }).slice(0, 50),
  ])
    t.deepEqual(hear(other), { sent: [], nat: [] });
  t.deepEqual(drops(), { 'not-ours': 1, 'bad-source': 4, 'not-unicast': 1, 'source-route': 1, malformed: 1 });
  rig.finish(t);
});

test('property: whatever is heard, nothing is lost and nothing leaks', (t) => {
  const frame = fc
    .tuple(
      fc.constantFrom(asks(), answer(ROUTER), packetV6({ source: FAR, destination: OWN })),
      fc.array(fc.tuple(fc.integer({ min: 14, max: 90 }), fc.nat(255)), { maxLength: 3 }),
      fc.nat(110),
    )
    .map(([bytes, changes, length]) => {
      const copy = concat(bytes, payload(20)).slice(0, Math.max(14, length));
      for (const [at, value] of changes) if (at < copy.length) copy[at] = value;
      return copy;
    });
  fc.assert(
    fc.property(fc.array(frame, { maxLength: 5 }), (heard) => {
      const { hear, rig } = resolverRig();
      for (const bytes of heard) hear(bytes);
      t.is(rig.memory.inUse, 0);
    }),
    { numRuns: 300 },
  );
});
