/** What `balance` does to fragments, of both directions, in order and not. */
import test from 'ava';
import { BalancerRig, backend, CLIENT, service, VIP } from '../../support/balancer.js';
import { backendOf, fragments, udp } from '../../support/connections.js';
import { be16, concat, ip, slowSum, station } from '../../support/frames.js';
import { badChecksums, ICMP, UDP } from '../../support/nat.js';

const single = (more = {}) => service({ backends: [backend(1)], ...more });
const DIRECT = single({ direct: true });

/** The datagram of fragments in whatever order, and the ends of each. */
function joined(frames: readonly Uint8Array[]): { addresses: string[]; whole: Uint8Array } {
  const sorted = [...frames].sort(
    (a, b) => (((a[20]! << 8) | a[21]!) & 0x1fff) - (((b[20]! << 8) | b[21]!) & 0x1fff),
  );
  return {
    addresses: [
      ...new Set(
        sorted.map((frame) => `${frame.slice(26, 30).join('.')} > ${frame.slice(30, 34).join('.')}`),
      ),
    ],
    whole: concat(...sorted.map((frame) => frame.slice(34))),
  };
}

/** The checksum of a UDP datagram, by the book. */
const holds = (source: string, destination: string, whole: Uint8Array): boolean =>
  slowSum(whole, slowSum(concat(ip(source), ip(destination), be16(UDP, whole.length)))) === 0xffff;

for (const [title, order] of [
  ['in order', [0, 1, 2]],
  ['the first one last', [2, 1, 0]],
  ['the first one between', [1, 0, 2]],
] as const)
  test(`fragments to a service, ${title}`, (t) => {
    const b = new BalancerRig([single({ ports: [{ protocol: UDP, port: 53, target: 5353 }] })]);
    const { parts } = fragments({ source: CLIENT, destination: VIP });
    const got = order.flatMap((i) => b.feed([parts[i]!])).map(({ bytes }) => bytes);
    const { addresses, whole } = joined(got);
    t.deepEqual(addresses, [`${CLIENT} > 10.0.9.1`]);
    t.true(holds(CLIENT, '10.0.9.1', whole));
    for (const frame of got) {
      t.deepEqual(frame.slice(0, 6), station(1));
      t.deepEqual(badChecksums(frame), []);
    }
    b.rig.finish(t);
  });

test('fragments from a backend, in order; of others and before their first one they pass as they are', (t) => {
  const b = new BalancerRig([single()]);
  b.one(udp());
  const ends = { source: '10.0.9.1', destination: CLIENT, sourcePort: 53, destinationPort: 4000 };
  const { parts } = fragments(ends);
  const { addresses, whole } = joined(b.feed(parts).map(({ bytes }) => bytes));
  t.deepEqual(addresses, [`${VIP} > ${CLIENT}`]);
  t.true(holds(VIP, CLIENT, whole));
  const others = fragments({ ...ends, destinationPort: 9 }).parts.map((frame) => {
    frame[19] = 98;
    return frame;
  });
  t.deepEqual(
    b.feed(others).map(({ bytes }) => bytes),
    others,
  );
  b.rig.finish(t);
});

test('fragments of a direct service keep the address, and all get the MAC', (t) => {
  const b = new BalancerRig([DIRECT]);
  const { parts } = fragments({ source: CLIENT, destination: VIP });
  const got = [2, 0, 1].flatMap((i) => b.feed([parts[i]!])).map(({ bytes }) => bytes);
  t.is(got.length, 3);
  for (const frame of got) {
    const before = parts.find((part) => part[20] === frame[20] && part[21] === frame[21])!;
    t.deepEqual(frame.slice(0, 6), station(1));
    t.deepEqual(frame.slice(6), before.slice(6));
  }
  b.rig.finish(t);
});

test('fragments of a caller to itself come from the virtual address', (t) => {
  const b = new BalancerRig([single()]);
  const { parts } = fragments({ source: '10.0.9.1', destination: VIP });
  const got = [1, 0, 2].flatMap((i) => b.feed([parts[i]!])).map(({ bytes }) => bytes);
  const { addresses, whole } = joined(got);
  t.deepEqual(addresses, [`${VIP} > 10.0.9.1`]);
  t.true(holds(VIP, '10.0.9.1', whole));
  t.deepEqual(got.flatMap(badChecksums), []);
  b.rig.finish(t);
});

test('a fragment is of its own domain, even where another has the same addresses and number', (t) => {
  const b = new BalancerRig([single(), single({ id: 2, domain: 1, backends: [backend(2)] })]);
  const { parts } = fragments({ source: CLIENT, destination: VIP });
  t.is(b.feed(parts.slice(0, 1)).length, 1);
  t.deepEqual(b.feed(parts.slice(1, 2), { domain: 1 }), [], 'it waits for its own first one');
  const [mine] = b.feed(parts.slice(2));
  t.deepEqual([mine!.domain, backendOf(mine!.bytes)], [0, 1]);
  const theirs = b.feed(parts.slice(0, 1), { domain: 1 });
  t.deepEqual(
    theirs.map(({ domain, bytes }) => [domain, backendOf(bytes)]),
    [
      [1, 2],
      [1, 2],
    ],
  );
  b.rig.finish(t);
});

test('fragments whose first one never comes, or is refused, are counted', (t) => {
  const b = new BalancerRig([single({ ports: [{ protocol: UDP, port: 53, target: 53 }] })]);
  const { parts } = fragments({ source: CLIENT, destination: VIP });
  t.deepEqual(b.feed(parts.slice(1)), []);
  b.age(1006);
  t.deepEqual(b.drops(), { fragment: 2 });
  const refused = fragments({ source: CLIENT, destination: VIP, destinationPort: 54 }).parts;
  b.feed(refused.slice(1));
  t.is(b.feed(refused.slice(0, 1))[0]!.bytes[23], ICMP);
  t.deepEqual(b.drops(), { fragment: 4, 'no-service': 1 });
  b.feed(parts.slice(2));
  b.balancer.flush();
  t.is(b.drops()['fragment'], 5);
  b.rig.finish(t);
});
