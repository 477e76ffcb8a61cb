import test from 'ava';
import fc from 'fast-check';
import { createRouteIn, createRouteInV6 } from '../../../engine/elements/route-in.js';
import { Batch } from '../../../engine/graph.js';
import type { GatewayIntent } from '../../../engine/intent.js';
import { addressWord } from '../../../engine/tables/gateways.js';
import { NO_NETWORK, Routes } from '../../../engine/tables/routes.js';
import { be16, dropped, ethernet, ip, ipv6, mac, Rig } from '../../support/frames.js';
import { packet } from '../../support/nat.js';

const gateway = (domain: number, subnet: string, length: number): GatewayIntent => ({
  domain,
  v4: { address: ip(subnet), subnet: ip(subnet), length },
  ...{ mac: mac('02:42:00:00:00:01'), uplink: 0, routed: false, mtu: 1450 },
});

test('a packet goes to the network that has its destination; others are counted', (t) => {
  const rig = new Rig();
  const routes = new Routes();
  routes.set([gateway(3, '10.0.9.0', 24), gateway(4, '10.1.0.0', 16)]);
  const sink = rig.sink();
  const out = new Batch(sink);
  const element = createRouteIn(rig.context, '0', routes, out);
  const to = (destination: string): number => {
    return rig.put(packet({ source: '203.0.113.2', destination }));
  };
  rig.feed(element, to('10.0.9.1'), to('10.0.8.1'), to('10.1.255.255'), to('10.2.0.1'));
  out.flush();
  t.deepEqual(
    sink.caught.map(({ domain }) => domain),
    [3, 4],
  );
  t.deepEqual(dropped(element.drops), { 'no-network': 2 });
  t.is(rig.counter('route-in:0', 'packets'), 4);
  rig.finish(t);
});

test('IPv6 likewise, of networks that have it, whatever their order', (t) => {
  const rig = new Rig();
  const routes = new Routes();
  const six = (domain: number, subnet: string, length: number): GatewayIntent => ({
    ...gateway(domain, '10.0.9.0', 24),
    v6: { address: ip(subnet), subnet: ip(subnet), length },
  });
  routes.set([gateway(3, '10.0.8.0', 24), six(5, 'fd00:9::', 64), six(4, 'fd00:10::', 48)]);
  const sink = rig.sink();
  const out = new Batch(sink);
  const element = createRouteInV6(rig.context, '0', routes, out);
  const to = (destination: string): number =>
    rig.put(ethernet({ type: 0x86dd }, ipv6({ source: '2001:db8::1', destination }, be16(1, 2, 8, 0))));
  rig.feed(element, to('fd00:10:0:ffff::1'), to('fd00:9::1'), to('fd00:9:0:1::1'), to('fd00:11::1'));
  out.flush();
  t.deepEqual(
    sink.caught.map(({ domain }) => domain),
    [4, 5],
  );
  t.deepEqual(dropped(element.drops), { 'no-network': 2 });
  rig.finish(t);
});

test('routes are those of the last set, and find what a search of all prefixes finds', (t) => {
  const third = fc.integer({ min: 0, max: 255 });
  const routes = new Routes();
  routes.set([gateway(9, '192.168.0.0', 16)]);
  fc.assert(
    fc.property(
      fc.uniqueArray(third, { maxLength: 40 }),
      fc.uniqueArray(third, { maxLength: 10 }),
      fc.array(fc.tuple(third, third), { maxLength: 50 }),
      (narrow, wide, asked) => {
        const gateways = [
          ...narrow.map((n) => gateway(n, `10.0.${n}.0`, 24)),
          ...wide.map((n) => gateway(256 + n, `172.${n}.0.0`, 16)),
        ];
        routes.set(gateways);
        t.is(routes.find(addressWord(ip('192.168.0.1'))), NO_NETWORK);
        for (const [a, b] of asked) {
          t.is(routes.find(addressWord(ip(`10.0.${a}.${b}`))), narrow.includes(a) ? a : NO_NETWORK);
          t.is(routes.find(addressWord(ip(`172.${a}.${b}.1`))), wide.includes(a) ? 256 + a : NO_NETWORK);
        }
      },
    ),
    { numRuns: 50 },
  );
});
