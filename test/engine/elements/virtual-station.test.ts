/** The station of virtual addresses: it answers ARP for them at the port that asked, and nothing else. */
import test from 'ava';
import { createVirtualStation } from '../../../engine/elements/balancer/virtual-station.js';
import { Batch } from '../../../engine/graph.js';
import { Services } from '../../../engine/tables/services.js';
import { CLIENT, service, VIP } from '../../support/balancer.js';
import { be16, concat, ethernet, ip, payload, Rig, station } from '../../support/frames.js';
import { packet } from '../../support/nat.js';

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
