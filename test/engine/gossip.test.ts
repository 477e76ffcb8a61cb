import test from 'ava';
import { Counters } from '../../engine/counters.js';
import { createGossip, gossipBytes } from '../../engine/gossip.js';
import { Context } from '../../engine/graph.js';
import { FrameMemory, REMOTE } from '../../engine/memory/frames.js';
import { Domains, LEARN } from '../../engine/tables/domains.js';
import { MacTable, macHigh, macLow, UNKNOWN } from '../../engine/tables/mac-table.js';
import { addressWords, Vteps } from '../../engine/tables/vteps.js';
import { ip, station } from '../support/frames.js';

/** Events a ring holds, and words from one ring to the next; the memory's layout is the module's own affair. */
const EVENTS = 1024;
const ringWords = (workers: number): number => gossipBytes(workers) / 4 / workers ** 2;

const frames = new FrameMemory({ small: 1, large: 1 });

/** Workers that share rings; domain 0 is VNI 42 with an ageing of 300 s. */
function team(workers: number, memory = new SharedArrayBuffer(gossipBytes(workers))) {
  return Array.from({ length: workers }, (_, self) => {
    const context = new Context(frames, new Counters(), 1);
    const table = new MacTable(4096, 7);
    const vteps = new Vteps(16);
    const domains = new Domains();
    domains.set(0, { vni: 42, flags: LEARN, ageing: 300 });
    const local = { address: ip('192.0.2.1'), port: 4789, ttl: 64 };
    const gossip = createGossip(context, memory, self, workers, { table, vteps, domains, local });
    const { base, names } = context.counters.describe().find(({ owner }) => owner === 'gossip')!;
    return {
      ...{ context, table, vteps, domains, gossip, local },
      count: (name: string) => context.counters.values[base + names.indexOf(name)],
      tell: (n: number, destination: number, domain = 0) =>
        gossip.tell(macLow(station(n)), macHigh(station(n), domain), destination),
      where: (n: number, domain = 0) => table.lookup(macLow(station(n)), macHigh(station(n), domain)),
    };
  });
}

test('what one worker tells, every other hears once', (t) => {
  const [a, b, c] = team(3);
  a.tell(1, 5);
  b.tell(2, 6);
  t.is(a.gossip.hear(), 1);
  t.is(b.gossip.hear(), 1);
  t.is(c.gossip.hear(), 2);
  for (const worker of [a, b, c]) t.is(worker.gossip.hear(), 0, 'nothing twice');
  t.deepEqual([a.where(1), a.where(2)], [UNKNOWN, 6], 'nobody hears itself');
  t.deepEqual([b.where(1), b.where(2)], [5, UNKNOWN]);
  t.deepEqual([c.where(1), c.where(2)], [5, 6]);
  t.is(a.count('told'), 2);
  t.is(c.count('heard'), 2);
  t.is(a.count('lost'), 0);
});

for (const address of ['192.0.2.9', '2001:db8::9']) {
  test(`a remote station is told by the address of its VTEP ${address}, whatever its number here and there`, (t) => {
    const [a, b] = team(2);
    b.vteps.add(ip('192.0.2.77'), true, b.local, 0);
    const there = a.vteps.add(ip(address), false, a.local, 0);
    a.tell(1, REMOTE | there);
    b.context.setTime(9000);
    t.is(b.gossip.hear(), 1);
    const here = b.vteps.find(...addressWords(ip(address)));
    t.is(here, 1);
    t.not(here, there);
    t.is(b.where(1), REMOTE | here);
    t.is(b.vteps.seen[here], 9, 'a VTEP of which others speak is not silent');
  });
}

test('a station that moves is followed', (t) => {
  const [a, b] = team(2);
  a.tell(1, 5);
  b.gossip.hear();
  a.tell(1, 6);
  b.gossip.hear();
  t.is(b.where(1), 6);
});

test('a full ring: the news is lost and counted, and what is told after the other has heard arrives', (t) => {
  const [a, b, c] = team(3);
  for (let n = 0; n < EVENTS + 10; n++) {
    a.tell(n, 5);
    if (n === EVENTS - 1) c.gossip.hear();
  }
  t.is(a.count('lost'), 10, 'to the one that did not listen');
  t.is(a.count('told'), EVENTS * 2 + 10);
  t.is(b.gossip.hear(), EVENTS);
  t.is(c.gossip.hear(), 10);
  t.is(b.where(EVENTS - 1), 5);
  t.is(b.where(EVENTS), UNKNOWN);
  a.tell(EVENTS, 6);
  t.is(a.count('lost'), 10);
  t.is(b.gossip.hear(), 1);
  t.is(b.where(EVENTS), 6);
});

test('cursors wrap round at 2^32', (t) => {
  const memory = new SharedArrayBuffer(gossipBytes(2));
  const words = new Uint32Array(memory);
  // The ring from worker 0 to worker 1: write cursor first, read cursor 128 bytes behind it.
  const ring = ringWords(2);
  words[ring] = 0xfffffffe;
  words[ring + 32] = 0xfffffffe;
  const [a, b] = team(2, memory);
  for (let round = 0; round < 3; round++) {
    for (let n = 0; n < EVENTS; n++) a.tell(n, 10 + round);
    a.tell(EVENTS, 10 + round);
    t.is(a.count('lost'), round + 1, 'full is full on either side of the wrap');
    t.is(b.gossip.hear(), EVENTS);
    for (const n of [0, 1, 2, 3, EVENTS - 1]) t.is(b.where(n), 10 + round);
  }
  t.is(words[ring], (0xfffffffe + 3 * EVENTS) >>> 0);
});

test('a station of a domain that is not there is not learned', (t) => {
  const [a, b] = team(2);
  a.tell(1, 5, 3);
  a.tell(2, 5, 0);
  t.is(b.gossip.hear(), 2);
  t.is(b.where(1, 3), UNKNOWN);
  t.is(b.where(2), 5);
});

test('a static station is not moved by what others tell', (t) => {
  const [a, b] = team(2);
  b.table.setStatic(macLow(station(1)), macHigh(station(1), 0), 3, 0);
  a.tell(1, 5);
  b.gossip.hear();
  t.is(b.where(1), 3);
});

test('a remote station is forgotten when the table of VTEPs is full, and nothing else breaks', (t) => {
  const [a, b] = team(2);
  for (let n = 0; n < b.vteps.capacity; n++) b.vteps.add(ip(`198.51.100.${n}`), true, b.local, 0);
  const vtep = a.vteps.add(ip('192.0.2.9'), false, a.local, 0);
  a.tell(1, REMOTE | vtep);
  a.tell(2, 5);
  t.is(b.gossip.hear(), 2);
  t.is(b.where(1), UNKNOWN);
  t.is(b.where(2), 5);
});

test('a station is told again every quarter of the ageing time, at most every 64 s and at least every second', (t) => {
  const [{ gossip, domains }] = team(2);
  for (const [ageing, seconds] of [
    [300, 64],
    [256, 64],
    [100, 25],
    [4, 1],
    [1, 1],
    [0, 64],
  ]) {
    domains.set(0, { vni: 42, flags: LEARN, ageing });
    t.is(gossip.period(0), seconds, `ageing ${ageing} s`);
  }
});
