import test from 'ava';
import { type Init, type Message, readMessage, writeMessage } from '../../../control/keying/messages.js';
import { Ring } from '../../../control/keying/ring.js';
import { CALM, Network, type Node, ringOf, type Sent, secret, startAll } from './network.js';

const RING_MAC = new Ring(ringOf(1)).sending.mac;

function kindOf({ bytes }: Sent): string {
  return (readMessage(bytes) as Message).kind;
}

function pair(): { network: Network; a: Node; b: Node } {
  const network = new Network();
  return { network, a: network.node(1), b: network.node(2) };
}

/** Messages of an earlier life of both nodes, in which each asked the other at some time. */
async function recording(network: Network, a: Node, b: Node): Promise<Sent[]> {
  startAll([a, b]);
  await network.run(100);
  for (const node of [a, b]) {
    const rotated = node.exchange!.rotate();
    await network.run(100);
    await rotated;
  }
  a.crash();
  b.crash();
  await network.run(100);
  return [...network.sent];
}

for (const missing of ['init', 'reply', 'confirm', 'ack']) {
  test(`recorded messages install nothing in an exchange that waits for its ${missing}`, async (t) => {
    const { network, a, b } = pair();
    const recorded = await recording(network, a, b);
    t.deepEqual(new Set(recorded.map(kindOf)), new Set(['init', 'reply', 'confirm', 'ack']));
    let replaying = false;
    network.passes = (sent) => !replaying && kindOf(sent) !== missing;
    startAll([a, b]);
    await network.run(20);
    const [installed, before] = [network.installed.length, network.sent.length];
    replaying = true;
    for (const sent of [...recorded, ...recorded]) {
      network.deliver(sent);
      await network.run(0.1);
    }
    t.is(network.installed.length, installed);
    t.true(network.sent.length > before, 'some of them are answered, which is all');
    network.passes = () => true;
    await network.run(3000);
    t.deepEqual(network.disagreements(), []);
  });
}

test('what the side that goes first answered counts no more once it asks itself', async (t) => {
  const { network, a, b } = pair();
  startAll([a, b]);
  await network.run(100);
  const held: Sent[] = [];
  network.passes = (sent) => {
    if (kindOf(sent) !== 'confirm') return true;
    if (sent.from === b.address) held.push(sent);
    // It arrives when a's own is on its way, and before that is acknowledged.
    else for (const late of held) network.after(0.1, () => network.deliver(late));
    return sent.from === a.address;
  };
  const rotated = [b.exchange!.rotate()];
  await network.run(10);
  t.is(held.length, 1);
  rotated.push(a.exchange!.rotate());
  await network.run(100);
  t.deepEqual(await Promise.all(rotated), [1, 1]);
  t.is(a.exchange!.drops.stale, 1);
  await network.run(60_000);
  t.deepEqual(network.disagreements(), []);
});

test('when acknowledgements are lost for long, what the peer sends already is read', async (t) => {
  const { network, a, b } = pair();
  startAll([a, b]);
  await network.run(100);
  network.passes = (sent) => kindOf(sent) !== 'ack';
  const traffic = network.traffic(a, b, 5);
  const rotated = a.exchange!.rotate(undefined, 60_000);
  await network.run(5000);
  t.true(a.inbound.size > 2, 'it has begun anew more than once');
  network.passes = () => true;
  await network.run(40_000);
  t.is(await rotated, 1);
  t.is(traffic.lost, 0);
  t.true(traffic.sent > 15_000);
  t.deepEqual([a.inbound.size, b.inbound.size], [1, 1]);
});

test('a path whose round trip is longer than all repetitions of a confirm', async (t) => {
  const { network, a, b } = pair();
  network.weather = { ...CALM, delay: [1000, 1000] };
  startAll([a, b]);
  await network.run(60_000);
  t.deepEqual(network.disagreements(), []);
});

test('a peer that comes up after long silence is agreed with at once', async (t) => {
  for (const late of [0, 1]) {
    const { network, a, b } = pair();
    const [early, other] = late === 0 ? [b, a] : [a, b];
    early.start([other]);
    await network.run(600_000);
    const asked = network.sent.length;
    t.true(asked > 100 && asked < 200, `every five seconds, not more: ${asked}`);
    t.is(network.log.filter((line) => line.includes('does not answer the exchange of keys')).length, 1);
    other.start([early]);
    await network.run(100);
    t.deepEqual(network.disagreements(), []);
  }
});

test('a secret corrected on either side is used for what is being asked', async (t) => {
  for (const wrong of [0, 1]) {
    const { network, a, b } = pair();
    startAll([a, b]);
    const node = [a, b][wrong];
    node.exchange!.setPeers([]);
    node.exchange!.setRing([{ id: 1, secret: secret(99) }]);
    node.exchange!.setPeers([[b, a][wrong].address]);
    await network.run(20_000);
    t.not(network.disagreements().length, 0);
    node.exchange!.setRing(ringOf(1));
    await network.run(6000);
    t.deepEqual(network.disagreements(), []);
  }
});

test('a peer removed at any moment, from both sides, leaves nothing on either, whatever fails', async (t) => {
  const { network, a, b } = pair();
  network.weather = { ...CALM, delay: [0, 3], install: [0, 8], failure: 0.3 };
  startAll([a, b]);
  for (let k = 0; k < 200; k++) {
    a.exchange!.setPeers([b.address]);
    b.exchange!.setPeers([a.address]);
    await network.run(k % 40);
    for (const node of [a, b]) node.exchange!.rotate(undefined, 10).catch(() => undefined);
    await network.run(k % 17);
    a.exchange!.setPeers([]);
    b.exchange!.setPeers([]);
    await network.run(60);
    const left = [a.inbound.size, a.outbound.size, b.inbound.size, b.outbound.size];
    if (left.some((size) => size > 0)) t.deepEqual(left, [0, 0, 0, 0], `time ${k}`);
  }
  t.true(network.installed.length > 200);
});

test('removed while the answer to a peer is being installed, which fails, it leaves nothing of its own question', async (t) => {
  const { network, a, b } = pair();
  startAll([a, b]);
  await network.run(100);
  network.passes = (sent) => kindOf(sent) !== 'confirm' || sent.from === a.address;
  for (const node of [b, a]) {
    node.exchange!.rotate(undefined, 10).catch(() => undefined);
    await network.run(2.5);
  }
  await network.run(1);
  t.is(b.inbound.size, 2, 'its own question was answered, and it receives with what came of it');
  network.weather = { ...CALM, install: [50, 50], failure: 1 };
  await network.run(20);
  b.exchange!.setPeers([]);
  await network.run(100);
  t.is(b.inbound.size, 0);
});

test('a session asked for while another one is being installed follows it', async (t) => {
  const { network, a, b } = pair();
  startAll([a, b]);
  await network.run(100);
  network.weather = { ...CALM, install: [50, 50] };
  const rotated = [b.exchange!.rotate()];
  await network.run(60);
  t.is(a.inbound.size, 1, 'a has begun to install and is not done');
  rotated.push(a.exchange!.rotate());
  await network.run(2000);
  t.deepEqual(await Promise.all(rotated), [1, 1]);
  t.is(new Set(network.installed.map(({ sessionId }) => sessionId)).size, 3);
  t.deepEqual(network.disagreements(), []);
});

/** What a member of the ring at `from` says to `to`, made up. */
function forged(from: Node, to: Node, body: object): Uint8Array {
  const bytes = (node: Node): Uint8Array => Uint8Array.from(node.address.split('.').map(Number));
  return writeMessage({ keyId: 1, from: bytes(from), to: bytes(to), ...body } as Message, RING_MAC);
}

const NONCE = new Uint8Array(32).fill(5);
const ZERO = new Uint8Array(32);

test('a member of the ring that replies with another algorithm, or a share of zero, is refused', async (t) => {
  const { network, a, b } = pair();
  a.start([b]);
  const asked = readMessage(network.sent[0].bytes) as Init;
  const reply = {
    kind: 'reply',
    ni: asked.ni,
    nr: NONCE,
    share: NONCE,
    spi: 1000,
    algorithm: 'aes-128-gcm-16',
    node: 'b',
  };
  a.exchange!.receive(b.address, forged(b, a, { ...reply, algorithm: 'aes-128-gcm-8' }));
  a.exchange!.receive(b.address, forged(b, a, { ...reply, share: ZERO }));
  await network.run(20);
  t.like(a.exchange!.drops, { algorithm: 1, 'bad-share': 1 });
  t.deepEqual(network.installed, []);
  a.exchange!.receive(b.address, forged(b, a, reply));
  await network.run(20);
  t.is(network.installed.length, 1, 'and would have been taken without that');
});

test('a member of the ring that asks with a share of zero is refused', async (t) => {
  const { network, a, b } = pair();
  b.start([]);
  network.passes = () => false;
  b.exchange!.setPeers([a.address]);
  const init = { kind: 'init', ni: NONCE, share: ZERO, algorithm: 'aes-128-gcm-16', node: 'a' };
  b.exchange!.receive(a.address, forged(a, b, init));
  const reply = readMessage(network.sent[1].bytes);
  t.is((reply as Message).kind, 'reply');
  const { nr } = reply as { nr: Uint8Array } & Message;
  b.exchange!.receive(a.address, forged(a, b, { kind: 'confirm', ni: NONCE, nr, spi: 1000 }));
  await network.run(20);
  t.is(b.exchange!.drops['bad-share'], 1);
  t.deepEqual(network.installed, []);
});

test('answers that wait are few, go after half a minute, and with the key they rest on', async (t) => {
  const { network, a, b } = pair();
  b.start([]);
  network.passes = () => false;
  b.exchange!.setPeers([a.address]);
  /** What b replies to the k-th question; the same bytes again as long as it remembers. */
  const ask = (k: number): string => {
    const from = network.sent.length;
    const ni = new Uint8Array(32).fill(k);
    const init = { kind: 'init', ni, share: NONCE, algorithm: 'aes-128-gcm-16', node: 'a' };
    b.exchange!.receive(a.address, forged(a, b, init));
    return network.sent
      .slice(from)
      .map(({ bytes }) => Buffer.from(bytes).toString('hex'))
      .join();
  };
  const first = ask(1);
  t.true(first.length > 100);
  for (let k = 2; k <= 8; k++) ask(k);
  t.is(ask(1), first);
  ask(9);
  t.not(ask(1), first, 'the ninth took the place of the first');
  const last = ask(9);
  await network.run(28_000);
  t.is(ask(9), last);
  await network.run(4000);
  t.not(ask(9), last);
  t.true(ask(10).length > 100);
  b.exchange!.setRing(ringOf(7));
  t.is(ask(10), '', 'key 1 is gone');
});
