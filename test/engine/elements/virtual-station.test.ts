/** The station of virtual addresses: it answers ARP and ND for them at the port that asked, and nothing else. */
import test from 'ava';
import { createVirtualStation } from '../../../engine/elements/balancer/virtual-station.js';
import { Batch } from '../../../engine/graph.js';
import { Addresses6 } from '../../../engine/tables/addresses6.js';
import { Services } from '../../../engine/tables/services.js';
import { CLIENT, service, VIP } from '../../support/balancer.js';
import { CLIENT6, service6, VIP6 } from '../../support/balancer6.js';
import { be16, concat, ethernet, ip, payload, Rig, slowSum, station } from '../../support/frames.js';
import { packet } from '../../support/nat.js';
import { framedV6, ICMPV6, packetV6, soundV6 } from '../../support/nat6.js';

/** MAC of the virtual address: 06:57 and the address. */
const VIRTUAL = concat(Uint8Array.of(6, 0x57), ip(VIP));

const arp = (target: string, operation = 1): Uint8Array =>
  ethernet(
    { type: 0x0806, to: VIRTUAL, from: station(50) },
    concat(be16(1, 0x800, 0x604, operation), station(50), ip(CLIENT), new Uint8Array(6), ip(target)),
  );

test('ARP for a virtual address is answered at the port that asked; all else is counted', (t) => {
  const rig = new Rig();
  const services = new Services(8, 8);
  services.set([service()], () => {});
  const sink = rig.sink();
  const port = new Batch(sink);
  const here = createVirtualStation(rig.context, services, null, [null, port]);
  const feed = (frame: Uint8Array, ingress = 1, domain = 0): Uint8Array[] => {
    rig.feed(here, rig.put(frame, { ingress, domain }));
    port.flush();
    return sink.take();
  };
  const [answer] = feed(arp(VIP));
  const expected = ethernet(
    { type: 0x0806, to: station(50), from: VIRTUAL },
    concat(be16(1, 0x800, 0x604, 2), VIRTUAL, ip(VIP), station(50), ip(CLIENT)),
  );
  t.deepEqual(answer!.slice(0, 42), expected);
  const refused: [Uint8Array, number?, number?][] = [
    [arp('10.0.9.101')],
    [arp(VIP, 2)],
    [arp(VIP), 0],
    [arp(VIP), 7],
    [arp(VIP), 1, 3],
    [arp(VIP).slice(0, 30)],
    [packet({ destination: VIP })],
    [ethernet({ type: 0x86dd }, payload(80))],
  ];
  for (const [frame, ...where] of refused) t.deepEqual(feed(frame, ...where), []);
  t.is(rig.counter('virtual-station:drops', 'not-served'), refused.length);
  rig.finish(t);
});

const VIRTUAL6 = concat(Uint8Array.of(6, 0x57), ip(VIP6).slice(12));

/** A solicitation that is sent to the station itself (RFC 4861, 7.3.3). */
function solicitation(target: string): Uint8Array {
  const option = concat(Uint8Array.of(1, 1), station(50));
  const message = concat(Uint8Array.of(135, 0, 0, 0, 0, 0, 0, 0), ip(target), option);
  const pseudo = slowSum(concat(ip(CLIENT6), ip(target), be16(ICMPV6, message.length)));
  message.set(be16(~slowSum(message, pseudo) & 0xffff), 2);
  const ends = { source: CLIENT6, destination: target, protocol: ICMPV6, hopLimit: 255 };
  return framedV6({ ...ends, to: VIRTUAL6, from: station(50) }, message);
}

test('a solicitation of a virtual address is answered: solicited, no router, checksum right', (t) => {
  const rig = new Rig();
  const addresses = new Addresses6(8, 1);
  const services = new Services(8, 8, addresses);
  services.set([service6({ backends: [] })], () => {});
  const sink = rig.sink();
  const port = new Batch(sink);
  const here = createVirtualStation(rig.context, services, addresses, [null, port]);
  const feed = (frame: Uint8Array, ingress = 1, domain = 0): Uint8Array[] => {
    rig.feed(here, rig.put(frame, { ingress, domain }));
    port.flush();
    return sink.take();
  };
  const [answer] = feed(solicitation(VIP6));
  t.deepEqual(answer!.slice(0, 12), concat(station(50), VIRTUAL6));
  t.deepEqual(answer!.slice(22, 54), concat(ip(VIP6), ip(CLIENT6)));
  t.deepEqual([answer![54], answer![58]], [136, 0x60]);
  t.deepEqual(answer!.slice(62), concat(ip(VIP6), Uint8Array.of(2, 1), VIRTUAL6));
  t.true(soundV6(answer!));
  const refused: [Uint8Array, number?, number?][] = [
    [solicitation('fd00:9::77')],
    [solicitation(VIP6), 0],
    [solicitation(VIP6), 1, 3],
    [solicitation(VIP6).map((byte, i) => (i === 56 ? byte ^ 1 : byte))],
    [packetV6({ source: CLIENT6, destination: VIP6 })],
  ];
  for (const [frame, ...where] of refused) t.deepEqual(feed(frame, ...where), []);
  t.is(rig.counter('virtual-station:drops', 'not-served'), refused.length);
  rig.finish(t);
});
