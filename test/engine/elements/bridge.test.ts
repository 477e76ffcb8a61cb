import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { createBridge } from '../../../engine/elements/bridge.js';
import { Batch, type Consumer } from '../../../engine/graph.js';
import { FLOOD_VTEPS, FrameMemory, REMOTE } from '../../../engine/memory/frames.js';
import { CARRY_VLAN, Domains, LEARN } from '../../../engine/tables/domains.js';
import { MacTable, macHigh, macLow, UNKNOWN } from '../../../engine/tables/mac-table.js';
import { dropped, ethernet, type Metadata, mac, payload, Rig, station } from '../../support/frames.js';

const BROADCAST = mac('ff:ff:ff:ff:ff:ff');

interface BridgeOptions {
  ports?: number;
  capacity?: number;
  memory?: FrameMemory;
  vteps?: readonly number[];
  flags?: number;
}

/** A bridge with ports 0 to n-1 in domain 0 (VNI 42) and domain 1 (VNI 43), and VTEPs 0 and 1. */
function bridgeRig(options: BridgeOptions = {}) {
  const { ports: count = 3, capacity = 512, memory, vteps = [0, 1], flags = LEARN } = options;
  const rig = new Rig(memory);
  const table = new MacTable(capacity, 7);
  const domains = new Domains();
  domains.set(0, { vni: 42, flags, ageing: 300 });
  domains.set(1, { vni: 43, flags, ageing: 300 });
  domains.setVteps(0, vteps);
  const sinks = Array.from({ length: count }, () => rig.sink());
  const ports: (Batch | null)[] = sinks.map((sink) => new Batch(sink));
  for (let port = 0; port < count; port++) domains.addPort(0, port);
  const tunnelSink = rig.sink();
  const tunnel = new Batch(tunnelSink);
  const flooder: Consumer = {
    process(batch) {
      for (let i = 0; i < batch.count; i++) bridge.flood(batch.frames[i]);
    },
  };
  const group = new Batch(flooder);
  const bridge = createBridge(rig.context, table, domains, { ports, tunnel, group });

  function flush(): void {
    group.flush();
    for (const port of ports) port?.flush();
    tunnel.flush();
  }

  return {
    rig,
    table,
    domains,
    bridge,
    ports,
    sinks,
    tunnel: tunnelSink,
    flush,
    send(bytes: Uint8Array, metadata: Metadata = {}): void {
      rig.feed(bridge, rig.put(bytes, metadata));
      flush();
    },
    /** How many frames each port and the tunnel got since the last call. */
    got(): number[] {
      return [...sinks, tunnelSink].map((sink) => sink.take().length);
    },
    count: (name: string) => rig.counter('bridge', name),
    where: (address: Uint8Array, domain = 0) => table.lookup(macLow(address), macHigh(address, domain)),
    drops: () => dropped(bridge.drops),
    finish: (t: ExecutionContext) => rig.finish(t),
  };
}

const frame = (from: number | Uint8Array, to: number | Uint8Array, size = 46): Uint8Array =>
  ethernet(
    {
      from: typeof from === 'number' ? station(from) : from,
      to: typeof to === 'number' ? station(to) : to,
    },
    payload(size),
  );

test('L2: learning sends the second frame to one port only', (t) => {
  const b = bridgeRig();
  b.send(frame(1, 2), { ingress: 0 });
  t.deepEqual(b.got(), [0, 1, 1, 1]);
  b.send(frame(2, 1), { ingress: 2 });
  t.deepEqual(b.got(), [1, 0, 0, 0]);
  b.send(frame(1, 2), { ingress: 0 });
  t.deepEqual(b.got(), [0, 0, 1, 0]);
  t.is(b.count('learned'), 2);
  t.is(b.count('unicast'), 2);
  t.is(b.count('flooded'), 1);
  t.is(b.count('frames'), 3);
  t.deepEqual(b.drops(), {});
  b.finish(t);
});

test('L2: a frame is forwarded byte for byte with its metadata', (t) => {
  const b = bridgeRig();
  const metadata = { mark: 77, offload: 0x101, gsoSize: 1400, hdrLen: 54, csumStart: 34, csumOffset: 16 };
  b.send(frame(2, 9), { ingress: 2 });
  b.got();
  b.send(frame(1, 2), { ingress: 0, ...metadata });
  t.like(b.sinks[2].one(), { bytes: frame(1, 2), ingress: 0, domain: 0, ...metadata });
  // The copies of a flood as well.
  b.send(frame(1, 99), { ingress: 0, ...metadata });
  for (const sink of [b.sinks[1], b.sinks[2], b.tunnel])
    t.like(sink.one(), { bytes: frame(1, 99), ingress: 0, domain: 0, ...metadata });
  b.finish(t);
});

test('L2: a station that moves is followed and counted', (t) => {
  const b = bridgeRig();
  b.send(frame(1, 9), { ingress: 0 });
  b.send(frame(1, 9), { ingress: 1 });
  t.is(b.where(station(1)), 1);
  b.send(frame(1, 9), { ingress: REMOTE | 1 });
  t.is(b.where(station(1)), REMOTE | 1);
  b.send(frame(1, 9), { ingress: 2 });
  t.is(b.where(station(1)), 2);
  t.is(b.count('moved'), 3);
  t.is(b.count('learned'), 1);
  b.got();
  b.finish(t);
});

test('L2: ageing forgets after the time of the domain, never a static entry, with bounded work', (t) => {
  const b = bridgeRig();
  b.rig.context.setTime(1_000_000);
  b.send(frame(1, 9), { ingress: 0 });
  t.true(b.table.setStatic(macLow(station(5)), macHigh(station(5), 0), 1, 0));
  b.rig.context.setTime(1_300_000);
  b.bridge.age(b.table.slots);
  t.is(b.where(station(1)), 0, 'as old as allowed, not older');
  b.rig.context.setTime(1_301_000);
  b.bridge.age(1);
  b.bridge.age(b.table.slots);
  t.is(b.where(station(1)), UNKNOWN);
  t.is(b.where(station(5)), 1);
  t.is(b.count('aged'), 1);
  t.is(b.table.learned[0], 0);
  b.got();
  b.finish(t);
});

test('L2: a frame renews its station, and ageing 0 is for ever', (t) => {
  const b = bridgeRig();
  b.send(frame(1, 9), { ingress: 0 });
  b.rig.context.setTime(200_000);
  b.send(frame(1, 9), { ingress: 0 });
  b.rig.context.setTime(400_000);
  b.bridge.age(b.table.slots);
  t.is(b.where(station(1)), 0);
  b.domains.set(0, { vni: 42, flags: LEARN, ageing: 0 });
  b.rig.context.setTime(4_000_000_000);
  b.bridge.age(b.table.slots);
  t.is(b.where(station(1)), 0);
  b.got();
  b.finish(t);
});

test('L2: a static entry does not move', (t) => {
  const b = bridgeRig();
  b.table.setStatic(macLow(station(1)), macHigh(station(1), 0), 2, 0);
  b.send(frame(1, 9), { ingress: 0 });
  t.is(b.where(station(1)), 2);
  t.is(b.count('static-held'), 1);
  t.is(b.count('moved'), 0);
  t.deepEqual(b.got(), [0, 1, 1, 1], 'the frame itself passes');
  b.finish(t);
});

test('L2: a domain learns no more than its limit, others are not touched', (t) => {
  const b = bridgeRig();
  b.domains.addPort(1, 0);
  b.domains.addPort(1, 1);
  b.table.limits[0] = 3;
  for (let i = 1; i <= 10; i++) b.send(frame(i, 99), { ingress: 0 });
  b.send(frame(1, 99), { ingress: 0, domain: 1 });
  t.is(b.table.learned[0], 3);
  t.is(b.table.learned[1], 1);
  t.is(b.count('learn-limited'), 7);
  t.is(b.where(station(10)), UNKNOWN);
  t.deepEqual(b.drops(), {}, 'frames of unlearned stations pass');
  t.deepEqual(b.got(), [0, 11, 10, 10]);
  b.finish(t);
});

test('L2: a full table is counted, frames pass, known stations stay', (t) => {
  const b = bridgeRig({ capacity: 8 });
  for (let i = 1; i <= 12; i++) b.send(frame(i, 99), { ingress: 0 });
  t.is(b.table.size, 8);
  t.is(b.count('table-full'), 4);
  t.is(b.count('learned'), 8);
  for (let i = 1; i <= 8; i++) t.is(b.where(station(i)), 0);
  b.got();
  b.send(frame(20, 3), { ingress: 1 });
  t.deepEqual(b.got(), [1, 0, 0, 0]);
  b.finish(t);
});

test('L2: a run of colliding addresses ends at its bound, counted as a full table', (t) => {
  const b = bridgeRig();
  const seedful = new MacTable(512, 7) as unknown as { slot(low: number, high: number): number };
  const colliding: Uint8Array[] = [];
  for (let n = 1; colliding.length < 70; n++) {
    const address = station(n);
    if (seedful.slot(macLow(address), macHigh(address, 0)) === 1020) colliding.push(address);
  }
  for (const address of colliding) b.send(frame(address, 0xffffff), { ingress: 0 });
  t.is(b.count('learned'), 64);
  t.is(b.count('table-full'), 6);
  for (const [i, address] of colliding.entries()) t.is(b.where(address), i < 64 ? 0 : UNKNOWN);
  // One goes, and its place is found again although the run crosses the end of the table.
  t.true(b.table.remove(macLow(colliding[10]), macHigh(colliding[10], 0)));
  b.send(frame(colliding[69], 0xffffff), { ingress: 1 });
  t.is(b.where(colliding[69]), 1);
  t.is(b.where(colliding[63]), 0);
  b.got();
  b.finish(t);
});

test('L2 and VXLAN 17: zero and group sources are dropped and never learned', (t) => {
  const b = bridgeRig();
  for (const source of ['00:00:00:00:00:00', 'ff:ff:ff:ff:ff:ff', '01:00:5e:00:00:01', '33:33:00:00:00:01']) {
    b.send(frame(mac(source), 2), { ingress: 0 });
    b.send(frame(mac(source), 2), { ingress: REMOTE });
  }
  t.deepEqual(b.drops(), { 'bad-source': 8 });
  t.is(b.table.size, 0);
  t.deepEqual(b.got(), [0, 0, 0, 0]);
  // A source of which only the last bytes are set is a good one.
  b.send(frame(mac('00:00:00:00:01:00'), 2), { ingress: 0 });
  t.is(b.table.size, 1);
  t.deepEqual(b.got(), [0, 1, 1, 1]);
  b.finish(t);
});

test('L2: broadcast and multicast are flooded once to each other port and the tunnel', (t) => {
  const b = bridgeRig();
  for (const to of [BROADCAST, mac('01:00:5e:00:00:fb'), mac('33:33:00:00:00:01')])
    b.send(frame(1, to), { ingress: 1 });
  t.deepEqual(b.got(), [3, 0, 3, 3]);
  t.is(b.count('flooded'), 3);
  t.is(b.count('copies'), 6);
  b.finish(t);
});

test('VXLAN 2: unknown unicast floods exactly once to each local port and to the tunnel', (t) => {
  const b = bridgeRig({ ports: 4 });
  for (let i = 0; i < 10; i++) b.send(frame(1, 99), { ingress: 0 });
  t.deepEqual(
    b.tunnel.caught.map(({ dest }) => dest),
    Array(10).fill(FLOOD_VTEPS),
  );
  t.deepEqual(b.got(), [0, 10, 10, 10, 10]);
  b.finish(t);
});

test('VXLAN 3: known MAC goes only to its VTEP', (t) => {
  const b = bridgeRig();
  b.send(frame(5, 1), { ingress: REMOTE | 1 });
  b.got();
  for (let i = 0; i < 10; i++) b.send(frame(1, 5), { ingress: 0 });
  t.deepEqual(
    b.tunnel.caught.map(({ dest }) => dest),
    Array(10).fill(REMOTE | 1),
  );
  t.deepEqual(b.got(), [0, 0, 0, 10]);
  b.finish(t);
});

test('VXLAN 5: after a flush of the table everything is flooded and learned anew', (t) => {
  const b = bridgeRig();
  b.send(frame(5, 1), { ingress: REMOTE | 1 });
  b.send(frame(1, 5), { ingress: 0 });
  t.is(
    b.table.removeWhere(() => true),
    2,
  );
  b.got();
  b.send(frame(1, 5), { ingress: 0 });
  t.deepEqual(b.got(), [0, 1, 1, 1]);
  b.send(frame(5, 1), { ingress: REMOTE | 1 });
  b.send(frame(1, 5), { ingress: 0 });
  t.deepEqual(b.got(), [1, 0, 0, 1]);
  b.finish(t);
});

test('VXLAN 16: split horizon, nothing goes from one VTEP to another', (t) => {
  const b = bridgeRig();
  b.send(frame(5, BROADCAST), { ingress: REMOTE });
  t.deepEqual(b.got(), [1, 1, 1, 0], 'flooded to local ports only');
  b.send(frame(6, 5), { ingress: REMOTE | 1 });
  t.deepEqual(b.got(), [0, 0, 0, 0]);
  t.deepEqual(b.drops(), { 'split-horizon': 1 });
  b.finish(t);
});

test('L2: what would leave where it came in is dropped', (t) => {
  const b = bridgeRig();
  b.send(frame(2, 9), { ingress: 0 });
  b.send(frame(5, 9), { ingress: REMOTE | 1 });
  b.got();
  b.send(frame(1, 2), { ingress: 0 });
  b.send(frame(6, 5), { ingress: REMOTE | 1 });
  t.deepEqual(b.drops(), { 'same-port': 2 });
  t.deepEqual(b.got(), [0, 0, 0, 0]);
  b.finish(t);
});

test('L2: the sixteen reserved group addresses stop here, their neighbours pass', (t) => {
  const b = bridgeRig();
  for (let last = 0; last < 16; last++)
    b.send(frame(1, Uint8Array.of(1, 0x80, 0xc2, 0, 0, last)), { ingress: 0 });
  t.deepEqual(b.drops(), { 'reserved-group': 16 });
  t.deepEqual(b.got(), [0, 0, 0, 0]);
  const neighbours = ['01:80:c2:00:00:10', '01:80:c2:00:01:00', '01:80:c3:00:00:00', '03:80:c2:00:00:00'];
  for (const to of neighbours) b.send(frame(1, mac(to)), { ingress: 0 });
  t.deepEqual(b.got(), [0, 4, 4, 4]);
  b.finish(t);
});

test('L2: runts of every length are dropped and never learned, 14 bytes pass', (t) => {
  const b = bridgeRig();
  const whole = frame(1, 2);
  for (let length = 0; length < 14; length++) b.send(whole.slice(0, length), { ingress: 0 });
  t.deepEqual(b.drops(), { runt: 14 });
  t.is(b.table.size, 0);
  b.send(whole.slice(0, 14), { ingress: 0 });
  t.deepEqual(b.got(), [0, 1, 1, 1]);
  b.finish(t);
});

for (const size of [1500, 1792, 1793, 9000, 65535, 65550]) {
  test(`L2: a frame of ${size} bytes is flooded whole`, (t) => {
    const b = bridgeRig();
    const bytes = frame(1, 2, size - 14);
    b.send(bytes, { ingress: 0 });
    for (const sink of [b.sinks[1], b.sinks[2], b.tunnel]) t.deepEqual(sink.one().bytes, bytes);
    b.finish(t);
  });
}

test('L2: learning switched off floods and remembers nothing', (t) => {
  const b = bridgeRig({ flags: CARRY_VLAN });
  b.send(frame(1, 2), { ingress: 0 });
  b.send(frame(2, 1), { ingress: 1 });
  t.is(b.table.size, 0);
  t.deepEqual(b.got(), [1, 1, 2, 2]);
  b.finish(t);
});

test('VNI isolation: one MAC in two domains is two stations', (t) => {
  const b = bridgeRig();
  b.domains.removePort(0, 2);
  b.domains.addPort(1, 2);
  b.domains.addPort(1, 0);
  b.send(frame(1, 9), { ingress: 1, domain: 0 });
  b.send(frame(1, 9), { ingress: 2, domain: 1 });
  t.deepEqual([b.where(station(1), 0), b.where(station(1), 1)], [1, 2]);
  t.is(b.count('moved'), 0);
  b.got();
  b.send(frame(7, 1), { ingress: 0, domain: 0 });
  t.deepEqual(b.got(), [0, 1, 0, 0]);
  b.send(frame(7, 1), { ingress: 0, domain: 1 });
  t.deepEqual(b.got(), [0, 0, 1, 0]);
  b.send(frame(7, 50), { ingress: 0, domain: 1 });
  t.deepEqual(b.got(), [0, 0, 1, 0], 'domain 1 has no VTEPs and no port 1');
  b.finish(t);
});

test('L2: a port removed while its stations are known: no-port, and floods pass it by', (t) => {
  const b = bridgeRig();
  b.send(frame(2, 9), { ingress: 2 });
  b.got();
  b.ports[2] = null;
  b.send(frame(1, 2), { ingress: 0 });
  t.deepEqual(b.drops(), { 'no-port': 1 });
  b.send(frame(1, BROADCAST), { ingress: 0 });
  t.deepEqual(b.got(), [0, 1, 0, 1]);
  b.finish(t);
});

test('L2: a station behind a port number that never was', (t) => {
  const b = bridgeRig();
  b.table.setStatic(macLow(station(2)), macHigh(station(2), 0), 4000, 0);
  b.send(frame(1, 2), { ingress: 0 });
  t.deepEqual(b.drops(), { 'no-port': 1 });
  b.finish(t);
});

test('L2: a domain with nobody else in it: no-member', (t) => {
  const b = bridgeRig({ ports: 1, vteps: [] });
  b.send(frame(1, 2), { ingress: 0 });
  b.send(frame(1, BROADCAST), { ingress: 0 });
  b.send(frame(1, BROADCAST), { ingress: 0, domain: 4095 });
  t.deepEqual(b.drops(), { 'no-member': 3 });
  b.finish(t);
});

test('L2: slots run out while flooding: counted, the frame itself arrives, nothing leaks', (t) => {
  const memory = new FrameMemory({ small: 3, large: 1 });
  const b = bridgeRig({ ports: 8, memory });
  b.send(frame(1, BROADCAST), { ingress: 0 });
  const got = b.got();
  t.is(
    got.reduce((sum, n) => sum + n, 0),
    4,
    'the frame and the three copies there was room for',
  );
  t.is(got.at(-1), 1, 'the last one out is the frame itself');
  t.deepEqual(b.drops(), { 'no-slot': 4 });
  t.is(b.count('copies'), 3);
  b.finish(t);
});

test('L2: more frames than a batch holds, all in order', (t) => {
  const b = bridgeRig({ ports: 2, vteps: [] });
  const ids = Array.from({ length: 600 }, (_, i) =>
    b.rig.put(frame(1, 2, 50 + (i % 7)), { ingress: 0, mark: i }),
  );
  b.rig.feed(b.bridge, ...ids);
  b.flush();
  t.deepEqual(
    b.sinks[1].caught.map(({ mark }) => mark),
    [...ids.keys()],
  );
  t.is(b.sinks[1].longest, 256);
  b.got();
  b.finish(t);
});

test('L2: a table too large for the cache forwards as a small one does', (t) => {
  const b = bridgeRig({ capacity: 1 << 16 });
  t.is(b.table.slots, 1 << 17);
  b.send(frame(1, 2), { ingress: 0 });
  b.send(frame(2, 1), { ingress: 2 });
  b.send(frame(1, 2).slice(0, 5), { ingress: 0 });
  t.deepEqual(b.got(), [1, 1, 1, 1]);
  t.deepEqual(b.drops(), { runt: 1 });
  b.finish(t);
});

test('property: frames in and copies are what came out and was dropped, and nobody gets his own frame', (t) => {
  const traffic = fc.array(
    fc.record({
      from: fc.integer({ min: 0, max: 6 }),
      to: fc.integer({ min: 0, max: 8 }),
      ingress: fc.constantFrom(0, 1, 2, 3, REMOTE, REMOTE | 1),
      domain: fc.constantFrom(0, 0, 0, 1),
      length: fc.oneof(fc.integer({ min: 0, max: 80 }), fc.constant(60)),
    }),
    { maxLength: 120 },
  );
  fc.assert(
    fc.property(traffic, fc.boolean(), (frames, scarce) => {
      const memory = scarce ? new FrameMemory({ small: frames.length + 1, large: 0 }) : undefined;
      const b = bridgeRig(memory ? { ports: 4, memory } : { ports: 4 });
      b.ports[3] = null;
      const address = (n: number) => (n === 0 ? new Uint8Array(6) : n === 8 ? BROADCAST : station(n));
      b.rig.feed(
        b.bridge,
        ...frames.map(({ from, to, ingress, domain, length }) =>
          b.rig.put(frame(address(from), address(to)).slice(0, length), { ingress, domain }),
        ),
      );
      b.flush();
      for (const [port, sink] of b.sinks.entries())
        t.false(sink.caught.some(({ ingress }) => ingress === port));
      t.false(
        b.tunnel.caught.some(({ ingress }) => ingress >= REMOTE),
        'split horizon',
      );
      const out = b.got().reduce((sum, n) => sum + n, 0);
      const { 'no-slot': unmade = 0, ...gone } = b.drops();
      const lost = Object.values(gone).reduce((sum, n) => sum + n, 0);
      t.is(frames.length + b.count('copies'), out + lost, `without ${unmade} copies never made`);
      t.is(b.count('frames'), frames.length);
      t.is(b.rig.memory.inUse, 0);
      b.rig.memory.audit();
    }),
    { numRuns: 150 },
  );
});
