import test from 'ava';
import { Publisher } from '../../engine/publisher.js';
import { ip } from '../support/frames.js';
import { NatRig, packet } from '../support/nat.js';
import { FROM_V6, NatRigV6, packetV6 } from '../support/nat6.js';

const NONE: ReadonlySet<number> = new Set();

test('with an endpoint its flows go, and its port; those of others stay', (t) => {
  const n = new NatRig();
  const publisher = new Publisher(n.tables);
  n.out(packet({ source: '10.0.0.1' }));
  n.out(packet({ source: '10.0.0.1', destinationPort: 54 }));
  n.out(packet({ source: '10.0.0.2' }));
  n.out(packet({ source: '10.0.0.1' }), { domain: 1 });
  const free = n.tables.ports.available(1);
  publisher.endGone(NONE, []);
  t.is(n.flows, 4);
  publisher.endGone(NONE, [{ domain: 0, address: ip('10.0.0.1') }]);
  t.is(n.flows, 2);
  t.is(n.tables.ports.available(1), free + 1);
  // An endpoint that has the number of that address in a network of IPv6 is another.
  publisher.endGone(NONE, [{ domain: 0, address: ip('::a00:2') }]);
  t.is(n.flows, 2);
  publisher.endGone(new Set([1]), []);
  t.is(n.flows, 1);
  n.finish(t);
});

test('of IPv6 too, and the numbers of addresses are given back', (t) => {
  const n = new NatRigV6();
  const publisher = new Publisher(n.tables);
  n.out(packetV6());
  n.out(packetV6({ source: 'fd00:9::2' }));
  publisher.endGone(NONE, [
    { domain: 0, address: ip(FROM_V6) },
    { domain: 0, address: ip('fd00:9::77') },
    { domain: 0, address: ip('10.0.0.1') },
  ]);
  t.is(n.flows.size, 1);
  t.is(n.addresses.size, 3);
  n.rig.finish(t);
});
