/** Services of IPv6 that a mark leads to, and errors about them. */
import test from 'ava';
import { backend, CLIENT, service } from '../../support/balancer.js';
import {
  ack6,
  BalancerRigV6,
  backend6,
  CLIENT6,
  cut6,
  service6,
  syn6,
  VIP6,
} from '../../support/balancer6.js';
import { syn } from '../../support/connections.js';
import { concat, ip, station } from '../../support/frames.js';
import { ACK, ends, RST, SYN, TCP } from '../../support/nat.js';
import {
  answerToV6,
  destinationV6,
  endsV6,
  icmpv6Error,
  type PacketV6,
  packetV6,
  soundV6,
  sourceV6,
} from '../../support/nat6.js';

test('a mark leads to its service, whatever the address; it comes back from there', (t) => {
  const elsewhere = { destination: '2001:db8::9', destinationPort: 8080 };
  const b = new BalancerRigV6([service6({ mark: 300, backends: [backend6(1)] })]);
  const request = b.one(syn6(4000, elsewhere), { mark: 300 });
  t.is(endsV6(request), `[${CLIENT6}]:4000 > [fd00:9::1]:8080`, 'the port stays');
  t.deepEqual(request.slice(0, 6), station(1));
  const answer = b.one(answerToV6(request, SYN | ACK));
  t.is(endsV6(answer), `[2001:db8::9]:8080 > [${CLIENT6}]:4000`);
  t.true(soundV6(request) && soundV6(answer));
  t.is(endsV6(b.one(ack6(4000, elsewhere), { mark: 300 })), endsV6(request));
  t.deepEqual(b.one(syn6(4001, elsewhere)), syn6(4001, elsewhere), 'unmarked it is nobody’s');
  b.rig.finish(t);
});

test('a marked address has a number as long as it has flows', (t) => {
  const b = new BalancerRigV6([service6({ mark: 300 })], 10, 7);
  const marked = (p: PacketV6) => b.feed([packetV6({ source: CLIENT6, ...p })], { mark: 300 });
  t.is(b.addresses.size, 4);
  t.is(marked({ destination: '2001:db8::9' }).length, 1);
  t.is(b.addresses.size, 6, 'of it and of its client');
  // Refused: an RST of no connection, and one that does not add up.
  marked({ destination: '2001:db8::a', protocol: TCP, flags: RST });
  marked({ destination: '2001:db8::b', first: 0, extensions: new Uint8Array(0) });
  t.is(b.addresses.size, 6);
  t.deepEqual(b.drops(), { 'no-flow': 1, malformed: 1 });
  marked({ destination: '2001:db8::c' });
  t.is(b.addresses.size, 7);
  t.deepEqual(marked({ destination: '2001:db8::d' }), [], 'there is none left');
  t.is(b.drops()['table-full'], 1);
  for (let second = 1001; second < 1400; second++) b.age(second);
  t.is(b.addresses.size, 4);
  b.rig.finish(t);
});

test('one mark is of a service of each family: packets of IPv4 are for the one, of IPv6 for the other', (t) => {
  const b = new BalancerRigV6([
    service({ mark: 300, backends: [backend(1)] }),
    service6({ id: 2, mark: 300, backends: [backend6(2, { id: 5 })] }),
  ]);
  const metadata = { mark: 300 };
  t.is(ends(b.one(syn(4000, { destination: '203.0.113.9' }), metadata)), `${CLIENT}:4000 > 10.0.9.1:80`);
  t.is(destinationV6(b.one(syn6(4000, { destination: '2001:db8::9' }), metadata)), 'fd00:9::2');
  b.rig.finish(t);
});

test('a mark without a service in IPv6 is refused by the address that was asked, also if IPv4 has one', (t) => {
  const b = new BalancerRigV6([
    service({ mark: 300 }),
    service6({ id: 2, backends: [backend6(1, { id: 9 })] }),
  ]);
  const [refused] = b.feed([syn6(4000, { destination: '2001:db8::9' })], { mark: 300 });
  t.deepEqual([...refused!.bytes.slice(54, 56)], [1, 4]);
  t.is(sourceV6(refused!.bytes), '2001:db8::9');
  t.true(soundV6(refused!.bytes));
  t.deepEqual(b.drops(), { 'no-service': 1 });
  t.is(b.addresses.size, 2);
  b.rig.finish(t);
});

test('a mark goes before the address, and then has no ports of it', (t) => {
  const ports = [{ protocol: TCP, port: 80, target: 8080 }];
  const other = { id: 2, mark: 300, address: ip('fd00:9::101') };
  const b = new BalancerRigV6([
    service6({ ports, backends: [backend6(1)] }),
    service6({ ...other, backends: [backend6(7)] }),
  ]);
  t.is(endsV6(b.one(syn6(4000))), `[${CLIENT6}]:4000 > [fd00:9::1]:8080`);
  t.is(endsV6(b.one(syn6(4001), { mark: 300 })), `[${CLIENT6}]:4001 > [fd00:9::7]:80`);
  b.rig.finish(t);
});

for (const direct of [false, true])
  test(`an error about what went out from a marked address finds its backend${direct ? ', dsr' : ''}`, (t) => {
    const b = new BalancerRigV6([service6({ mark: 300, direct, backends: [backend6(7), backend6(1)] })]);
    const marked = { destination: '2001:db8::9' };
    b.one(syn6(4000, marked), { mark: 300 });
    const about = (port: number, from: string) =>
      icmpv6Error(answerToV6(syn6(port, marked)), { from, to: '2001:db8::9', type: 2, argument: 1280 });
    for (const from of ['2001:db8::fe', CLIENT6, 'fd00:9::7']) {
      const error = b.one(about(4000, from));
      t.deepEqual(error.slice(0, 6), station(1), from);
      if (direct) t.deepEqual(error.slice(6), about(4000, from).slice(6), from);
      else {
        t.is(destinationV6(error), 'fd00:9::1', from);
        t.is(endsV6(error.slice(48)), `[fd00:9::1]:80 > [${CLIENT6}]:4000`);
      }
      t.true(soundV6(error));
    }
    const broken = about(4000, CLIENT6);
    broken[56]! ^= 1;
    const others = [about(4001, CLIENT6), about(4001, 'fd00:9::7'), broken];
    t.deepEqual(
      b.feed(others).map(({ bytes }) => bytes),
      others,
    );
    t.deepEqual(b.drops(), {});
    b.rig.finish(t);
  });

test('an error to a dsr service gets the MAC of the backend that it is about, and stays as it is', (t) => {
  const b = new BalancerRigV6([service6({ direct: true })]);
  const [first, second] = [4000, 4001].map((port) => b.one(syn6(port)).slice(0, 6));
  t.notDeepEqual(first, second);
  const about = (port: number) => icmpv6Error(answerToV6(syn6(port)), { from: CLIENT6, to: VIP6, type: 2 });
  t.deepEqual(b.one(about(4000)), concat(first!, about(4000).slice(6)));
  t.deepEqual(b.one(about(4001)), concat(second!, about(4001).slice(6)));
  t.deepEqual(b.feed([about(4002)]), []);
  t.deepEqual(b.drops(), { 'icmp-no-flow': 1 });
  b.rig.finish(t);
});

test('dsr by a mark: the address stays, and only the MAC is another, of each fragment', (t) => {
  const b = new BalancerRigV6([service6({ mark: 300, direct: true, backends: [backend6(1)] })]);
  const elsewhere = '2001:db8::9';
  const [first, later] = cut6({ source: CLIENT6, destination: elsewhere });
  t.deepEqual(b.feed([later], { mark: 300 }), [], 'it waits');
  const out = [...b.feed([first], { mark: 300 }), ...b.feed([later], { mark: 300 })];
  t.deepEqual(
    out.map(({ bytes }) => [destinationV6(bytes), bytes.slice(0, 6)]),
    Array(3).fill([elsewhere, station(1)]),
  );
  b.v6.flush();
  b.rig.finish(t);
});
