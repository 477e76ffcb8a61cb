import test, { type ExecutionContext } from 'ava';
import { readMessage } from '../../../control/keying/messages.js';
import { address, CALM, Network, type Node, ringOf, type Sent, secret, startAll } from './network.js';

function kindOf({ bytes }: Sent): string {
  const message = readMessage(bytes);
  return typeof message === 'string' ? message : message.kind;
}

function kinds(network: Network): string[] {
  return network.sent.map((sent) => `${sent.from.split('.')[3]} ${kindOf(sent)}`);
}

/** Nodes 1 to `count`, started and agreed. */
async function agreed(t: ExecutionContext, count = 2): Promise<{ network: Network; nodes: Node[] }> {
  const network = new Network();
  const nodes = Array.from({ length: count }, (_, k) => network.node(k + 1));
  startAll(nodes);
  await network.run(500);
  t.deepEqual(network.disagreements(), []);
  return { network, nodes };
}

/** What one host counted, without the zeros. */
function drops(node: Node): Record<string, number> {
  return Object.fromEntries(Object.entries(node.exchange!.drops).filter(([, count]) => count > 0));
}

function sessionOf(node: Node, peer: Node): string | undefined {
  return node.exchange!.peers.find((state) => state.peer === peer.address)?.session?.id;
}

test('four messages, and both sides have the same two associations', async (t) => {
  const network = new Network();
  const [a, b] = [network.node(1), network.node(2)];
  a.start([]);
  b.start([a]);
  a.exchange!.setPeers([b.address]);
  await network.run(500);
  t.deepEqual(network.disagreements(), []);
  t.is(network.installed.length, 4);
  const [state] = a.exchange!.peers;
  t.like(state, {
    peer: b.address,
    exchanging: false,
    older: [],
    session: { keyId: 1, node: `node-${b.address}` },
  });
  t.is(sessionOf(a, b), sessionOf(b, a));
  t.not(a.outbound.get(b.address)!.key, b.outbound.get(a.address)!.key, 'each direction has its own');
});

test('only the other one starts: four messages are all there are', async (t) => {
  for (const first of [1, 2]) {
    const network = new Network();
    const nodes = [network.node(1), network.node(2)];
    const [asks, answers] = first === 1 ? nodes : nodes.reverse();
    answers.start([]);
    network.passes = () => false;
    answers.exchange!.setPeers([asks.address]);
    await network.run(20);
    network.passes = () => true;
    asks.start([answers]);
    await network.run(30);
    t.deepEqual(network.disagreements(), [], `node ${first} asks`);
  }
});

test('both ask at the same time: the lower address goes first', async (t) => {
  const { network } = await agreed(t);
  t.deepEqual(kinds(network), ['1 init', '2 init', '2 reply', '1 confirm', '2 ack']);
  t.is(network.installed.length, 4);
});

for (const lost of ['1 init', '2 init', '2 reply', '1 confirm', '2 ack']) {
  test(`both ask at the same time, and the first "${lost}" is lost`, async (t) => {
    const network = new Network();
    const nodes = [network.node(1), network.node(2)];
    let gone = false;
    network.passes = (sent) => {
      if (gone || `${sent.from.split('.')[3]} ${kindOf(sent)}` !== lost) return true;
      gone = true;
      return false;
    };
    startAll(nodes);
    await network.run(1000);
    t.true(gone);
    t.deepEqual(network.disagreements(), []);
    t.is(network.installed.length, 4, 'one session');
  });
}

test('the responder installs nothing before the initiator has repeated its nonce', async (t) => {
  const network = new Network();
  const [a, b] = [network.node(1), network.node(2)];
  network.passes = (sent) => kindOf(sent) !== 'confirm';
  startAll([a, b]);
  await network.run(5000);
  t.true(kinds(network).includes('1 confirm'));
  t.deepEqual(
    network.installed.filter(({ boot }) => boot.startsWith(b.address)),
    [],
  );
  t.true(
    a.inbound.size > 0 && a.inbound.size <= 8,
    `what the initiator has ready is bounded: ${a.inbound.size}`,
  );
  t.is(a.outbound.size, 0);
  network.passes = () => true;
  await network.run(6000);
  t.deepEqual(network.disagreements(), []);
  await network.run(30_000);
  t.is(a.inbound.size, 1, 'and goes when a session is complete and its grace over');
});

test('an initiator receives before it confirms, and a responder before it acknowledges', async (t) => {
  const network = new Network();
  network.weather = { ...CALM, install: [10, 10] };
  const [a, b] = [network.node(1), network.node(2)];
  let seen = 0;
  network.passes = (sent) => {
    const kind = kindOf(sent);
    if (kind === 'confirm') t.is(a.inbound.size, 1);
    if (kind === 'ack') t.deepEqual([b.inbound.size, b.outbound.size, a.outbound.size], [1, 1, 0]);
    if (kind === 'confirm' || kind === 'ack') seen++;
    return true;
  };
  startAll([a, b]);
  await network.run(500);
  t.true(seen >= 2);
  t.deepEqual(network.disagreements(), []);
});

test('a peer that restarts has its new session at once; the other keeps its old inbound for the grace period', async (t) => {
  for (const restarting of [0, 1]) {
    const { network, nodes } = await agreed(t);
    const [restarted, other] = [nodes[restarting], nodes[1 - restarting]];
    const before = sessionOf(other, restarted);
    restarted.crash();
    await network.run(1000);
    restarted.start([other]);
    await network.run(100);
    t.deepEqual(network.disagreements(), []);
    t.not(sessionOf(other, restarted), before);
    t.is(other.inbound.size, 2);
    await network.run(30_000);
    t.is(other.inbound.size, 1);
    t.is(restarted.inbound.size, 1);
    t.is(new Set(network.installed.map(({ key }) => key)).size, 4, 'two sessions of two keys');
  }
});

test('messages recorded before restarts install nothing', async (t) => {
  const { network, nodes } = await agreed(t);
  const [a, b] = nodes;
  const rotated = a.exchange!.rotate();
  await network.run(1000);
  t.is(await rotated, 1);
  for (const node of nodes) {
    node.crash();
    node.start(nodes.filter((other) => other !== node));
    await network.run(1000);
  }
  const recorded = [...network.sent];
  t.true(recorded.length >= 12);
  const [installed, session] = [network.installed.length, sessionOf(a, b)];
  for (let round = 0; round < 3; round++) {
    for (const sent of recorded) {
      network.deliver(sent);
      await network.run(5);
    }
  }
  for (const sent of recorded) network.deliver(sent);
  await network.run(1000);
  t.is(network.installed.length, installed);
  t.is(sessionOf(a, b), session);
  t.deepEqual(network.disagreements(), []);
});

test('a node that starts twice with the same chance, as a clone does, uses no key twice', async (t) => {
  for (const cloned of [0, 1]) {
    const network = new Network();
    const nodes = [network.node(1), network.node(2)];
    const [clone, other] = [nodes[cloned], nodes[1 - cloned]];
    other.start([clone]);
    for (let boot = 0; boot < 4; boot++) {
      clone.start([other], 'always the same');
      await network.run(1000);
      t.deepEqual(network.disagreements(), []);
      clone.crash();
    }
    for (const direction of ['in', 'out']) {
      const keys = network.installed.filter((one) => one.direction === direction).map(({ key }) => key);
      t.true(keys.length >= 8);
      t.is(new Set(keys).size, keys.length);
    }
  }
});

test('with any one byte of any message changed nothing comes of it, and the true one still counts', async (t) => {
  const network = new Network();
  const [a, b] = [network.node(1), network.node(2)];
  const tried: string[] = [];
  network.passes = (sent) => {
    const kind = kindOf(sent);
    if (tried.includes(kind)) return true;
    tried.push(kind);
    const node = sent.to === a.address ? a : b;
    network.after(0.5, () => {
      const exchange = node.exchange!;
      const before = [network.sent.length, network.installed.length];
      const counted = total(exchange.drops);
      for (let at = 0; at < sent.bytes.length; at++) {
        for (const change of [1 << (at % 8), 0xff]) {
          const bytes = Uint8Array.from(sent.bytes);
          bytes[at] ^= change;
          exchange.receive(sent.from, bytes);
        }
      }
      t.is(total(exchange.drops) - counted, sent.bytes.length * 2, `${kind}: each is dropped and counted`);
      t.deepEqual([network.sent.length, network.installed.length], before, `${kind}: nothing is answered`);
    });
    return true;
  };
  startAll([a, b]);
  await network.run(3000);
  t.deepEqual(tried.sort(), ['ack', 'confirm', 'init', 'reply']);
  t.deepEqual(network.disagreements(), []);
  t.is(network.installed.length, 4);
});

function total(counts: Readonly<Record<string, number>>): number {
  return Object.values(counts).reduce((sum, count) => sum + count, 0);
}

test('any bytes from a peer or a stranger are counted, and what the log says of them is bounded', async (t) => {
  const { network, nodes } = await agreed(t);
  const [a, b] = nodes;
  const before = total(a.exchange!.drops);
  for (let k = 0; k < 3000; k++) {
    const bytes = Uint8Array.from({ length: k % 400 }, (_, at) => (k * 31 + at * 7) & 0xff);
    a.exchange!.receive(k % 2 ? b.address : address(100 + (k % 150)), bytes);
  }
  t.is(total(a.exchange!.drops) - before, 3000);
  t.deepEqual(drops(a), { malformed: 1500, 'unknown-peer': 1500, collision: 1 });
  t.true(network.log.length < 70, `${network.log.length} lines`);
  t.true(network.log.some((line) => line.startsWith(`${b.address}: sends what is no exchange of keys`)));
  t.deepEqual(network.disagreements(), []);
});

test('an unknown peer is dropped, counted and said once', async (t) => {
  const network = new Network();
  const [a, b] = [network.node(1), network.node(2)];
  a.start([]);
  b.start([a]);
  await network.run(10_000);
  t.deepEqual(Object.keys(drops(a)), ['unknown-peer']);
  t.true(drops(a)['unknown-peer'] > 5);
  t.is(network.log.filter((line) => line.includes('is no peer here')).length, 1);
  t.deepEqual(network.installed, []);
});

test('a wrong secret: dropped, counted, said once with the remedy, and healed by the right one', async (t) => {
  const network = new Network();
  const a = network.node(1);
  const b = network.node(2, { keys: [{ id: 1, secret: secret(99) }] });
  startAll([a, b]);
  await network.run(20_000);
  t.deepEqual(Object.keys(drops(a)), ['bad-mac']);
  t.deepEqual(network.installed, []);
  const said = network.log.filter((line) => line.includes('does not know the secret of key 1'));
  t.is(said.length, 2, 'once on each side');
  b.exchange!.setRing(ringOf(1));
  await network.run(6000);
  t.deepEqual(network.disagreements(), []);
  t.is(network.log.filter((line) => line.endsWith('agreed on keys')).length, 2);
});

test('an unknown key id: dropped, counted and said once', async (t) => {
  const network = new Network();
  startAll([network.node(1), network.node(2, { keys: ringOf(5) })]);
  await network.run(20_000);
  for (const node of network.nodes.values()) t.deepEqual(Object.keys(drops(node)), ['unknown-key']);
  t.deepEqual(network.installed, []);
  t.is(network.log.filter((line) => line.includes('which is not in encryption.keys here')).length, 2);
});

test('different algorithms are refused, and both logs say which they are', async (t) => {
  const network = new Network();
  const [a, b] = [network.node(1), network.node(2, { algorithm: 'aes-256-gcm-16' })];
  startAll([a, b]);
  await network.run(20_000);
  t.deepEqual(network.installed, []);
  const said = network.log.filter((line) => line.includes('encryption.algorithm'));
  t.deepEqual(said.sort(), [
    `${a.address}: uses aes-128-gcm-16 and this host aes-256-gcm-16; give both the same encryption.algorithm`,
    `${b.address}: uses aes-256-gcm-16 and this host aes-128-gcm-16; give both the same encryption.algorithm`,
  ]);
  t.true(kinds(network).length < 40, 'and they do not go on asking at full speed');
});

test('messages that name other addresses than they travel between are dropped', async (t) => {
  const { network, nodes } = await agreed(t, 3);
  const [a, b, c] = nodes;
  const init = network.sent.find((sent) => sent.from === b.address && sent.to === a.address)!;
  a.exchange!.receive(c.address, init.bytes);
  t.is(drops(a)['wrong-address'], 1);
  t.is(network.log.filter((line) => line.includes('other addresses')).length, 1);
});

test('asking is bounded: beyond a thousand MACs a second it is not even looked at', async (t) => {
  const { network, nodes } = await agreed(t);
  const [a, b] = nodes;
  const init = Uint8Array.from(
    network.sent.find((sent) => sent.to === a.address && kindOf(sent) === 'init')!.bytes,
  );
  for (let k = 0; k < 2500; k++) {
    init[60] = k & 0xff;
    init[61] = k >>> 8;
    a.exchange!.receive(b.address, init);
  }
  t.is(drops(a)['bad-mac'] + drops(a)['rate'], 2500);
  t.true(drops(a)['bad-mac'] <= 1000);
  const rotated = b.exchange!.rotate();
  await network.run(2000);
  t.is(await rotated, 1, 'and is possible again a little later');
});

test('a flood of recorded requests keeps nobody from agreeing', async (t) => {
  const network = new Network();
  const [a, b] = [network.node(1), network.node(2)];
  // All of them are authentic, since they were sent, and none will ever be confirmed.
  a.start([]);
  for (let k = 0; k < 40; k++) {
    b.start([a]);
    await network.run(1);
    b.crash();
  }
  const recorded = network.sent.filter((sent) => kindOf(sent) === 'init');
  t.is(recorded.length, 40);
  a.exchange!.setPeers([b.address]);
  for (const sent of recorded) network.deliver(sent);
  b.start([a]);
  for (let k = 0; k < 200; k++) {
    network.deliver(recorded[k % 40]);
    await network.run(10);
  }
  t.deepEqual(network.disagreements(), []);
});

test('removed peers lose all associations at once, also those that are being installed', async (t) => {
  const { network, nodes } = await agreed(t, 3);
  const [a, b, c] = nodes;
  const rotated = a.exchange!.rotate();
  await network.run(1000);
  await rotated;
  t.is([...a.inbound.values()].filter(({ peer }) => peer === b.address).length, 2);
  a.exchange!.setPeers([c.address]);
  t.deepEqual(
    [...a.inbound.values()].filter(({ peer }) => peer === b.address),
    [],
  );
  t.false(a.outbound.has(b.address));
  t.true(a.outbound.has(c.address));
  for (const wait of [0, 2, 4, 6, 8, 10, 14, 18]) {
    network.weather = { ...CALM, install: [3, 3] };
    a.exchange!.setPeers([b.address, c.address]);
    await network.run(wait);
    a.exchange!.setPeers([c.address]);
    await network.run(100);
    t.false(a.outbound.has(b.address), `after ${wait} ms`);
    t.is([...a.inbound.values()].filter(({ peer }) => peer === b.address).length, 0, `after ${wait} ms`);
  }
});

test('a peer that comes back is exchanged with at once', async (t) => {
  const { network, nodes } = await agreed(t);
  const [a, b] = nodes;
  a.exchange!.setPeers([]);
  await network.run(100);
  a.exchange!.setPeers([b.address]);
  await network.run(100);
  t.deepEqual(network.disagreements(), []);
});

test('when installing fails it is said, and tried again until it works', async (t) => {
  const network = new Network();
  network.weather = { ...CALM, failure: 1 };
  startAll([network.node(1), network.node(2)]);
  await network.run(30_000);
  t.deepEqual(network.installed, []);
  t.true(network.log.some((line) => line.includes('cannot install its associations: no room')));
  t.true(network.log.length < 8, 'once on each side');
  network.weather = CALM;
  await network.run(15_000);
  t.deepEqual(network.disagreements(), []);
});

test('keys are overwritten once they are installed, or could not be, or are not wanted any more', async (t) => {
  for (const failure of [0, 0.5]) {
    const { network, nodes } = await agreed(t, 3);
    network.weather = { ...CALM, failure };
    nodes[0].exchange!.rotate(undefined, 1000).catch(() => undefined);
    await network.run(3);
    nodes[1].exchange!.close();
    await network.run(20_000);
    t.true(network.given.length > 20);
    for (const bytes of network.given) t.true(bytes.every((byte) => byte === 0));
  }
});

test('no secret and no key is in any line of the log or in what is shown', async (t) => {
  const { network, nodes } = await agreed(t);
  nodes[1].exchange!.setRing([{ id: 1, secret: secret(99) }]);
  nodes[0].exchange!.setRing(ringOf(3));
  await network.run(60_000);
  const shown = [...network.log, ...nodes.map((node) => JSON.stringify(node.exchange!.peers))].join('\n');
  t.true(network.log.length > 2);
  const secrets = [1, 3, 99].map((number) => Buffer.from(secret(number).bytes()).toString('hex'));
  for (const hidden of [...secrets, ...network.installed.map(({ key }) => key)]) {
    t.false(shown.includes(hidden.slice(0, 16)));
  }
});

test('a name or a ring that cannot be is refused at construction, and a bad new ring leaves the old', async (t) => {
  const { network, nodes } = await agreed(t);
  const [a] = nodes;
  t.throws(() => network.node(9, { node: '' }).start([]), { instanceOf: TypeError });
  t.throws(() => network.node(9, { node: 'ä'.repeat(128) }).start([]), { instanceOf: TypeError });
  t.throws(() => network.node(9, { keys: [] }).start([]), { instanceOf: TypeError });
  network.nodes.delete(address(9));
  t.throws(() => a.exchange!.setRing(ringOf(1, 2, 3, 4)), { instanceOf: TypeError });
  const rotated = a.exchange!.rotate();
  await network.run(1000);
  t.is(await rotated, 1);
});

test('closed, it has nothing left and says nothing more', async (t) => {
  const { network, nodes } = await agreed(t);
  const [a, b] = nodes;
  a.exchange!.close();
  t.is(a.inbound.size + a.outbound.size, 0);
  const before = network.sent.filter(({ from }) => from === a.address).length;
  b.exchange!.rotate(undefined, 1000).catch(() => undefined);
  await network.run(10_000);
  t.is(network.sent.filter(({ from }) => from === a.address).length, before);
});
