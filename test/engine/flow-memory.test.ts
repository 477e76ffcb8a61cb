/** What the next process takes over of the flows of one that is gone. */
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { FlowMemory, holdsFlows, takenOver } from '../../engine/flow-memory.js';
import type { Intent, LeftFlows } from '../../engine/intent.js';
import { ESTABLISHED, LONGEST_SILENCE, TWO_SIDED } from '../../engine/tables/connection.js';
import {
  EXPIRY,
  EXTERNAL,
  FLOW_SHIFT,
  flowBytes,
  IN_DOMAIN,
  IN_PORTS,
  INSIDE,
  IPV6_FLOW,
  NEXT_OF_PORT,
  OUT_KEY,
  OUT_PORTS,
  REMOTE_END,
  STATE,
} from '../../engine/tables/flows.js';
import { native } from '../../native-bindings/index.js';
import { flowFile } from '../support/flow-file.js';
import { ip } from '../support/frames.js';
import {
  ACK,
  answerTo,
  EXTERNAL as EXTERNAL_ADDRESS,
  ends,
  INSIDE as INSIDE_ADDRESS,
  NatRig,
  packet,
  REMOTE,
  SYN,
  TCP,
  UDP,
} from '../support/nat.js';

const CAPACITY = 40;

const fileOf = (t: ExecutionContext, capacity = CAPACITY): number => flowFile(t, flowBytes(capacity));

const LEFT: LeftFlows = {
  domains: [0],
  endpoints: [{ domain: 0, address: ip(INSIDE_ADDRESS) }],
  unpublished: [],
  services: [],
};

interface Life {
  readonly rig: NatRig;
  readonly memory: FlowMemory;
}

type Options = Omit<NonNullable<ConstructorParameters<typeof NatRig>[0]>, 'flows'> & {
  readonly seconds?: number;
  readonly left?: LeftFlows | undefined;
  readonly uplink?: number;
  readonly publish?: (rig: NatRig) => void;
};

/** A process over the file, which begins its clock at `seconds`. */
function life(fd: number, options: Options = {}): Life {
  const { seconds = 1000, left, uplink = 0, publish, ...rest } = options;
  let memory!: FlowMemory;
  const flows = (context: NatRig['rig']['context']) => {
    memory = new FlowMemory(context, { capacity: CAPACITY, fd });
    return memory.flows;
  };
  const rig = new NatRig({ ...rest, owner: uplink, flows }, seconds);
  publish?.(rig);
  const intent = {
    gateways: [{ domain: 0, uplink }],
    flows: { capacity: CAPACITY, fd, ...(left && { left }) },
  };
  memory.begin(intent as unknown as Intent);
  return { rig, memory };
}

const counts = (fd: number): readonly [number, number] => {
  const { taken, refused } = takenOver(native.fileMap(fd, flowBytes(CAPACITY)));
  return [taken, refused];
};

/** One TCP connection and one UDP flow from inside, answered. */
function talk({ rig }: Life): { tcp: Uint8Array; udp: Uint8Array } {
  const tcp = rig.out(packet({ protocol: TCP, sourcePort: 40_000, destinationPort: 80, flags: SYN }));
  rig.in(answerTo(tcp, SYN | ACK));
  const udp = rig.out(packet({ protocol: UDP, sourcePort: 1234, destinationPort: 53 }));
  rig.in(answerTo(udp));
  return { tcp, udp };
}

test('a table that was never used holds nothing; one that was is known by its capacity', (t) => {
  const fd = fileOf(t);
  const memory = () => native.fileMap(fd, flowBytes(CAPACITY));
  t.false(holdsFlows(memory(), CAPACITY));
  life(fd);
  t.true(holdsFlows(memory(), CAPACITY));
  t.false(holdsFlows(memory(), CAPACITY - 1));
  t.deepEqual(counts(fd), [0, 0]);
});

test('flows go on in the next process: both directions, ports, states, counters and what is left of their time', (t) => {
  const fd = fileOf(t);
  const before = life(fd, { seconds: 5000 });
  const { tcp, udp } = talk(before);
  before.rig.pass(60);
  const after = life(fd, { seconds: 20, seed: 77, left: LEFT });
  t.deepEqual(counts(fd), [2, 0]);
  t.deepEqual(after.rig.states().sort(), [TWO_SIDED, ESTABLISHED].sort());
  // What comes from outside first finds the flow: nothing from inside has made it again.
  t.is(ends(after.rig.in(answerTo(tcp, ACK))), `${REMOTE}:80 > ${INSIDE_ADDRESS}:40000`);
  t.is(ends(after.rig.in(answerTo(udp))), `${REMOTE}:53 > ${INSIDE_ADDRESS}:1234`);
  const again = after.rig.out(packet({ protocol: UDP, sourcePort: 1234, destinationPort: 54 }));
  t.is(ends(again).split(' ')[0], ends(udp).split(' ')[0], 'the endpoint keeps its port');
  t.is(after.rig.flows, 3);
  after.rig.finish(t);
  before.rig.finish(t);
});

test('time goes on while no process runs, by the clock of the kernel', (t) => {
  const fd = fileOf(t);
  const before = life(fd, { seconds: 5000 });
  talk(before);
  const doubles = new Float64Array(native.fileMap(fd, 64));
  // Four minutes earlier: the UDP flow has one left, less what this test takes, and the connection two hours.
  doubles[2] -= 240_000;
  const after = life(fd, { seconds: 20, left: LEFT });
  t.deepEqual(counts(fd), [2, 0]);
  after.rig.pass(20);
  t.is(after.rig.flows, 2);
  after.rig.pass(41);
  t.deepEqual(after.rig.states(), [ESTABLISHED]);
  doubles[2] -= 8000_000;
  life(fd, { seconds: 20, left: LEFT });
  t.deepEqual(counts(fd), [0, 1]);
});

test('a service may let its connections be silent for a month: those are taken over too', (t) => {
  const fd = fileOf(t);
  const before = life(fd, { seconds: 5000 });
  talk(before);
  const { words } = before.rig.tables.flows;
  before.rig.tables.flows.forEach((flow) => {
    const at = flow << FLOW_SHIFT;
    if (words[at + STATE] === ESTABLISHED) words[at + EXPIRY] = 5000 + LONGEST_SILENCE;
  });
  const after = life(fd, { seconds: 20, left: LEFT });
  t.deepEqual(counts(fd), [2, 0]);
  after.rig.pass(20_000);
  t.deepEqual(after.rig.states(), [ESTABLISHED]);
  after.rig.finish(t);
  before.rig.finish(t);
});

test('a port whose flows were taken over is given back with the last of them, and not before', (t) => {
  const fd = fileOf(t);
  const before = life(fd);
  for (const port of [53, 54]) before.rig.out(packet({ sourcePort: 1234, destinationPort: port }));
  const { rig } = life(fd, { left: LEFT });
  const { flows, ports } = rig.tables;
  const whole = new NatRig().tables.ports.available(1);
  t.is(ports.available(1), whole - 1);
  const live: number[] = [];
  flows.forEach((flow) => {
    live.push(flow);
  });
  t.is(live.length, 2);
  flows.end(live[0]!);
  t.is(ports.available(1), whole - 1);
  flows.end(live[1]!);
  t.is(ports.available(1), whole);
  t.true(rig.tables.firstOfPort.every((flow) => flow === 0));
});

const published = (target: number, address?: string) => (rig: NatRig) =>
  void rig.publish(8080, target, address === undefined ? {} : { address });

test('flows of a published port: taken over while it is published as it was, and only then', (t) => {
  const syn = packet({
    ...{ protocol: TCP, source: REMOTE, destination: EXTERNAL_ADDRESS, flags: SYN },
    ...{ sourcePort: 5000, destinationPort: 8080 },
  });
  const unpublished = [{ address: ip(EXTERNAL_ADDRESS), protocol: TCP, port: 8080 }];
  const cases: readonly [string, Options, readonly [number, number]][] = [
    ['as it was', { publish: published(80), left: LEFT }, [1, 0]],
    ['for another target', { publish: published(81), left: LEFT }, [0, 1]],
    ['for another endpoint', { publish: published(80, '10.0.0.2'), left: LEFT }, [0, 1]],
    ['not any more', { left: { ...LEFT, unpublished } }, [0, 1]],
  ];
  for (const [what, options, expected] of cases) {
    const fd = fileOf(t);
    life(fd, { publish: published(80) }).rig.in(syn);
    const { rig } = life(fd, options);
    t.deepEqual(counts(fd), expected, what);
    if (expected[0] === 0) continue;
    t.is(ends(rig.in(syn)), `${REMOTE}:5000 > ${INSIDE_ADDRESS}:80`);
    rig.tables.unpublish({ protocol: TCP, port: 8080, domain: 0, address: ip(INSIDE_ADDRESS), target: 80 });
    t.is(rig.flows, 0);
    t.is(rig.tables.ports.endpoint[8080], 0);
  }
});

test('flows are of the uplink that has their address, whatever its place', (t) => {
  const fd = fileOf(t);
  const { tcp } = talk(life(fd, { uplink: 2 }));
  const { rig } = life(fd, { uplink: 5, left: LEFT });
  t.deepEqual(counts(fd), [2, 0]);
  t.is(ends(rig.in(answerTo(tcp, ACK))), `${REMOTE}:80 > ${INSIDE_ADDRESS}:40000`);
  life(fd, { uplink: 5, external: ip('203.0.113.9'), left: LEFT });
  t.deepEqual(counts(fd), [0, 2]);
});

test('what is nobody’s any more is not taken over', (t) => {
  const cases: readonly [string, Options][] = [
    ['the network', { left: { ...LEFT, domains: [1] } }],
    ['the endpoint', { left: { ...LEFT, endpoints: [{ domain: 0, address: ip('10.0.0.9') }] } }],
    ['everything', {}],
  ];
  for (const [what, options] of cases) {
    const fd = fileOf(t);
    talk(life(fd));
    const { rig } = life(fd, options);
    t.deepEqual(counts(fd), [0, 2], what);
    t.is(rig.flows, 0);
    talk({ rig } as Life);
    t.is(rig.flows, 2);
  }
});

test('flows of services that nobody has are not taken over, nor of IPv6 without its addresses', (t) => {
  for (const bits of [IPV6_FLOW, IN_DOMAIN, 16 << 10]) {
    const fd = fileOf(t);
    const { memory } = life(fd);
    const { rig } = life(fd);
    talk({ rig, memory });
    const words = new Int32Array(native.fileMap(fd, flowBytes(CAPACITY)));
    for (let flow = 1; flow <= CAPACITY; flow++)
      if (words[(flow << FLOW_SHIFT) + OUT_KEY] !== 0) words[(flow << FLOW_SHIFT) + OUT_KEY]! |= bits;
    life(fd, { left: LEFT });
    t.deepEqual(counts(fd), [0, 2]);
  }
});

/** An entry that is right, but for some words: what a process leaves that is killed while it writes, and worse. */
const entry = fc.record({
  protocol: fc.constantFrom(TCP, UDP, 1, 132),
  own: fc.integer({ min: 1, max: 4 }),
  outer: fc.integer({ min: 1, max: 4 }),
  remote: fc.integer({ min: 1, max: 3 }),
  seconds: fc.integer({ min: 1, max: 8000 }),
  wrong: fc.array(
    fc.tuple(fc.nat(15), fc.oneof(fc.integer(), fc.constantFrom(0, 0x1_0006, 0x1_0106, 0x1_4406))),
    {
      maxLength: 2,
      size: 'small',
    },
  ),
  cut: fc.option(fc.nat(15), { freq: 3 }),
});
const garbage = fc.array(fc.integer(), { minLength: 16 * CAPACITY, maxLength: 16 * CAPACITY });

const wordOf = (bytes: Uint8Array): number => new DataView(bytes.buffer, bytes.byteOffset).getInt32(0, true);

test('property: whatever lies in the memory, the table is sound, and empty again when its flows end', (t) => {
  const fd = fileOf(t);
  const memory = native.fileMap(fd, flowBytes(CAPACITY));
  const words = new Int32Array(memory);
  const entries = fc.array(entry, { minLength: 1, maxLength: CAPACITY });
  let taken = 0;
  fc.assert(
    fc.property(
      fc.option(garbage),
      entries,
      fc.boolean(),
      fc.boolean(),
      (noise, list, independent, isPublished) => {
        if (noise !== null) words.set(noise, 1 << FLOW_SHIFT);
        else words.fill(0, 1 << FLOW_SHIFT);
        list.forEach(({ protocol, own, outer, remote, seconds, wrong, cut }, i) => {
          const at = (i + 1) << FLOW_SHIFT;
          const far = protocol === 1 ? 0 : 0x5000_0000;
          words[at + INSIDE] = wordOf(ip(INSIDE_ADDRESS));
          words[at + REMOTE_END] = remote;
          words[at + OUT_PORTS] = far | (own << 8);
          words[at + OUT_KEY] = 0x1_0000 | protocol;
          words[at + EXTERNAL] = wordOf(ip(EXTERNAL_ADDRESS));
          words[at + IN_PORTS] = far | ((protocol === 132 ? own : outer) << 8);
          words[at + STATE] = protocol === TCP ? ESTABLISHED : TWO_SIDED;
          words[at + EXPIRY] = 1000 + seconds;
          for (const [word, value] of wrong) words[at + word] = value;
          if (cut !== null) words.fill(0, at + cut, at + 16);
        });
        // By its own clock, so that seconds are what they are.
        new Float64Array(memory)[2] = Number(process.hrtime.bigint() / 1000n) / 1000 - 1_000_000;
        const { rig } = life(fd, {
          left: LEFT,
          mapping: independent ? 'endpoint-independent' : 'endpoint-dependent',
          ...(isPublished && { publish: published(80) }),
        });
        taken += rig.flows;
        sound(t, rig);
        rig.tables.flows.forEach((flow) => {
          rig.tables.flows.end(flow);
        });
        t.is(rig.flows, 0);
        t.true(rig.tables.flows.index.every((word) => word === 0));
        t.true(rig.tables.firstOfPort.every((flow) => flow === 0));
        const claims = rig.tables.ports.endpoint.reduce((sum, endpoint) => sum + Number(endpoint !== 0), 0);
        t.is(claims, Number(isPublished));
        talk({ rig } as Life);
        t.is(rig.flows, 2);
      },
    ),
    { numRuns: 150 },
  );
  t.true(taken > 50, 'some of what is nearly right is right');
});

/** Every flow is found by both its keys, and is in the list of its port once. */
function sound(t: ExecutionContext, { tables }: NatRig): void {
  const { flows, firstOfPort } = tables;
  const refs = flows.index.filter((word) => word !== 0).map((word) => word & flows.refMask);
  t.is(new Set(refs).size, flows.size * 2);
  t.is(refs.length, flows.size * 2);
  const listed: number[] = [];
  firstOfPort.forEach((first) => {
    for (let flow = first; flow !== 0; flow = flows.words[(flow << FLOW_SHIFT) + NEXT_OF_PORT]!) {
      listed.push(flow);
      if (listed.length > CAPACITY) throw new Error('a list that has no end');
    }
  });
  t.is(new Set(listed).size, listed.length);
  for (const flow of listed) t.not(flows.words[(flow << FLOW_SHIFT) + OUT_KEY], 0);
  const outer = new Set<string>();
  flows.forEach((flow) => {
    const at = flow << FLOW_SHIFT;
    const { words } = flows;
    outer.add(
      `${words[at + EXTERNAL]} ${words[at + REMOTE_END]} ${words[at + IN_PORTS]} ${words[at + OUT_KEY]! & 0xff}`,
    );
    t.true(words[at + EXPIRY]! > 1000 && words[at + EXPIRY]! <= 1000 + LONGEST_SILENCE);
  });
  t.is(outer.size, flows.size, 'no two have the same ends outside');
}
