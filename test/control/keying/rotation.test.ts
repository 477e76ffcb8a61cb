import test, { type ExecutionContext } from 'ava';
import type { ExchangeOptions } from '../../../control/keying/exchange.js';
import { CALM, Network, type Node, ringOf, startAll } from './network.js';

const ROTATE = { after: 43_200, packets: 2 ** 32, bytes: 2 ** 40 };
const HOUR = 3_600_000;

async function agreed(
  t: ExecutionContext,
  count = 2,
  options: Partial<ExchangeOptions> = {},
): Promise<{ network: Network; nodes: Node[] }> {
  const network = new Network();
  const nodes = Array.from({ length: count }, (_, k) => network.node(k + 1, options));
  startAll(nodes);
  await network.run(500);
  t.deepEqual(network.disagreements(), []);
  return { network, nodes };
}

/** Ids of the keys under which sessions are, by the node that says so. */
function keyIds(nodes: readonly Node[]): (number | undefined)[] {
  return nodes.flatMap((node) => node.exchange!.peers.map(({ session }) => session?.keyId));
}

function sessions(network: Network): number {
  return new Set(network.installed.map(({ sessionId }) => sessionId)).size;
}

test('a rotation gives every peer new associations, and counts them', async (t) => {
  const { network, nodes } = await agreed(t, 4);
  const before = sessions(network);
  const rotated = nodes[2].exchange!.rotate();
  await network.run(1000);
  t.is(await rotated, 3);
  t.is(sessions(network), before + 3);
  t.deepEqual(network.disagreements(), []);
});

test('a rotation with one peer leaves the others alone', async (t) => {
  const { network, nodes } = await agreed(t, 3);
  const [a, b, c] = nodes;
  const before = a.outbound.get(c.address)!.key;
  const rotated = a.exchange!.rotate(b.address);
  await network.run(1000);
  t.is(await rotated, 1);
  t.is(a.outbound.get(c.address)!.key, before);
  await t.throwsAsync(a.exchange!.rotate('192.0.2.77'), {
    message: '192.0.2.77 is no peer of an encrypted network',
  });
});

test('a rotation names the peers that do not answer in time, and the keys there are stay', async (t) => {
  const { network, nodes } = await agreed(t, 3);
  const [a, b, c] = nodes;
  c.crash();
  const before = a.outbound.get(c.address)!.key;
  const rotated = a.exchange!.rotate(undefined, 2000).then(
    () => undefined,
    (error: Error) => error.message,
  );
  await network.run(3000);
  t.is(await rotated, `no answer from ${c.address}: the keys there are stay in use`);
  t.is(a.outbound.get(c.address)!.key, before);
  c.start([a, b]);
  await network.run(500);
  t.deepEqual(network.disagreements(), []);
});

test('a rotation ends when a peer is removed while it lasts', async (t) => {
  const { network, nodes } = await agreed(t, 3);
  const [a, b, c] = nodes;
  b.crash();
  const rotated = a.exchange!.rotate();
  await network.run(1000);
  a.exchange!.setPeers([c.address]);
  await network.run(1000);
  t.is(await rotated, 1);
});

for (const [what, weather] of [
  ['a quiet network', CALM],
  [
    'a network that loses, doubles and delays',
    { ...CALM, loss: 0.3, twice: 0.2, delay: [0, 40], install: [0, 20] },
  ],
] as const) {
  test(`ten rotations in a row over ${what} lose no packet`, async (t) => {
    const { network, nodes } = await agreed(t);
    const [a, b] = nodes;
    network.weather = weather;
    const traffic = network.traffic(a, b, 1);
    for (let k = 0; k < 10; k++) {
      let done = false;
      const rotated = nodes[k % 2].exchange!.rotate(undefined, 60_000).then((count) => {
        done = true;
        return count;
      });
      for (let waited = 0; !done && waited < 60_000; waited += 10) await network.run(10);
      t.is(await rotated, 1);
    }
    t.true(a.inbound.size <= 8 && b.inbound.size <= 8, 'generations are bounded');
    t.true(a.inbound.size >= 7, 'and several are alive');
    await network.run(40_000);
    t.true(traffic.sent > 80_000);
    t.is(traffic.lost, 0);
    t.true(traffic.generations.size >= 22, `${traffic.generations.size} keys were used`);
    t.deepEqual(network.disagreements(), []);
    t.deepEqual([a.inbound.size, b.inbound.size], [1, 1]);
  });
}

test('rotations from both sides at once are one', async (t) => {
  const { network, nodes } = await agreed(t);
  const [a, b] = nodes;
  const before = sessions(network);
  const both = Promise.all([a.exchange!.rotate(), b.exchange!.rotate(), a.exchange!.rotate()]);
  await network.run(1000);
  t.deepEqual(await both, [1, 1, 1]);
  t.is(sessions(network), before + 1);
});

test('keys are made anew by age, before it is reached and not all at once', async (t) => {
  const { network, nodes } = await agreed(t, 5, { rotate: { ...ROTATE, after: 3600 } });
  const began = network.now;
  const first = sessions(network);
  await network.run(0.79 * HOUR);
  t.is(sessions(network), first, 'not before four fifths of it');
  const times = new Set<number>();
  let seen = first;
  while (network.now - began < HOUR + 3000) {
    await network.run(1000);
    if (sessions(network) > seen) times.add(network.now);
    seen = sessions(network);
  }
  t.true(seen >= first + 10, 'each of ten pairs by the end of it');
  t.true(times.size > 5, 'at different times');
  t.deepEqual(network.disagreements(), []);
  for (const node of nodes) for (const { session } of node.exchange!.peers) t.true(session!.ageMs < HOUR);
});

for (const [what, limit, usage] of [
  ['packets', { ...ROTATE, packets: 1000 }, { packets: 1000, bytes: 0, sequence: 0 }],
  ['sequence numbers', { ...ROTATE, packets: 1000 }, { packets: 0, bytes: 0, sequence: 1000 }],
  ['bytes', { ...ROTATE, bytes: 50_000 }, { packets: 10, bytes: 50_000, sequence: 10 }],
] as const) {
  for (const direction of ['inbound', 'outbound'] as const) {
    test(`keys are made anew by ${what} of the ${direction} association`, async (t) => {
      const { network, nodes } = await agreed(t, 3, { rotate: limit });
      const [a, b, c] = nodes;
      const before = sessions(network);
      const { session } = a.exchange!.peers[0];
      a.usage.set(session![direction], { packets: 999, bytes: 49_999, sequence: 999 });
      await network.run(3000);
      t.is(sessions(network), before);
      a.usage.set(session![direction], usage);
      await network.run(3000);
      t.is(sessions(network), before + 1, 'once');
      t.not(a.exchange!.peers[0].session!.id, session!.id);
      t.is(b.exchange!.peers[0].session!.id, a.exchange!.peers[0].session!.id);
      t.is(c.inbound.size, 2);
    });
  }
}

test('a ring that moves on, host by host, makes all sessions anew under the new sending key, and loses no packet', async (t) => {
  const { network, nodes } = await agreed(t, 3, { keys: ringOf(1, 2, 3) });
  t.deepEqual(new Set(keyIds(nodes)), new Set([2]));
  const traffic = network.traffic(nodes[0], nodes[2], 1);
  for (const node of nodes) {
    node.exchange!.setRing(ringOf(2, 3, 4));
    await network.run(2000);
    t.deepEqual(network.disagreements(), []);
  }
  t.deepEqual(new Set(keyIds(nodes)), new Set([3]));
  t.is(traffic.lost, 0);
  t.true(traffic.sent > 5000);
});

test('a ring that comes to a host twice changes nothing', async (t) => {
  const { network, nodes } = await agreed(t, 2, { keys: ringOf(1, 2, 3) });
  const before = sessions(network);
  nodes[0].exchange!.setRing(ringOf(1, 2, 3));
  await network.run(5000);
  t.is(sessions(network), before);
});

test('hosts one reload apart find a key that both have, whichever of them starts', async (t) => {
  const rings = [
    [ringOf(1), ringOf(1, 2)],
    [ringOf(1, 2), ringOf(1, 2, 3)],
    [ringOf(1, 2, 3), ringOf(2, 3, 4)],
    [ringOf(1, 2, 3), ringOf(3, 4, 5)],
    [ringOf(1, 2), ringOf(2)],
  ];
  for (const pair of rings.flatMap(([old, young]) => [
    [old, young],
    [young, old],
  ])) {
    const network = new Network();
    const nodes = pair.map((keys, k) => network.node(k + 1, { keys }));
    startAll(nodes);
    await network.run(3000);
    const what = pair.map((keys) => keys.map(({ id }) => id).join(',')).join(' and ');
    t.deepEqual(network.disagreements(), [], what);
  }
});

test('sessions under keys that are gone stay until there is another, and then go with the grace period', async (t) => {
  const { network, nodes } = await agreed(t);
  const [a, b] = nodes;
  const old = a.outbound.get(b.address)!.key;
  a.exchange!.setRing(ringOf(7));
  await network.run(60_000);
  t.is(a.outbound.get(b.address)!.key, old, 'the peer does not have the new key yet');
  b.exchange!.setRing(ringOf(7));
  await network.run(6000);
  t.deepEqual(network.disagreements(), []);
  t.deepEqual(keyIds(nodes), [7, 7]);
  t.is(a.inbound.size, 2);
  await network.run(30_000);
  t.deepEqual([a.inbound.size, b.inbound.size], [1, 1]);
});

test('another secret under the same id is another key', async (t) => {
  const { network, nodes } = await agreed(t);
  const before = sessions(network);
  const other = [{ id: 1, secret: ringOf(9)[0].secret }];
  for (const node of nodes) node.exchange!.setRing(other);
  await network.run(6000);
  t.is(sessions(network), before + 1);
  t.deepEqual(network.disagreements(), []);
});

test('a ring that changes in the middle of an exchange', async (t) => {
  for (let ms = 0; ms <= 12; ms++) {
    for (const changed of [0, 1]) {
      const { network, nodes } = await agreed(t, 2, { keys: ringOf(1, 2, 3) });
      network.weather = { ...CALM, install: [2, 2] };
      const rotated = nodes[0].exchange!.rotate();
      await network.run(ms);
      nodes[changed].exchange!.setRing(ringOf(3));
      await network.run(3000);
      t.is(await rotated, 1);
      t.deepEqual(network.disagreements(), [], `after ${ms} ms`);
      t.deepEqual(keyIds(nodes), [3, 3], `after ${ms} ms`);
    }
  }
});

test('starting over removes every association at once and agrees on new ones', async (t) => {
  const { network, nodes } = await agreed(t, 3);
  const [a] = nodes;
  const before = new Set(network.installed.map(({ key }) => key));
  a.exchange!.startOver();
  t.is(a.inbound.size + a.outbound.size, 0);
  await network.run(1000);
  t.deepEqual(network.disagreements(), []);
  for (const { key } of a.outbound.values()) t.false(before.has(key));
});
