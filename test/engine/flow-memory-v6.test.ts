/** Flows of IPv6 that outlive the process, and the addresses that they name by number. */
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { FlowMemory, flowMemoryBytes, takenOver } from '../../engine/flow-memory.js';
import type { Intent, LeftFlows } from '../../engine/intent.js';
import { EXTERNAL, FLOW_SHIFT, flowBytes, INSIDE, OUT_KEY, REMOTE_END } from '../../engine/tables/flows.js';
import { native } from '../../native-bindings/index.js';
import { flowFile } from '../support/flow-file.js';
import { ip } from '../support/frames.js';
import {
  answerToV6,
  EXTERNAL_V6,
  endsV6,
  FROM_V6,
  NatRigV6,
  packetV6,
  soundV6,
  TO_V6,
} from '../support/nat6.js';

const CAPACITY = 40;
const ADDRESSES = 90;
const TCP = 6;
const SYN = 2;
const SYN_ACK = 0x12;

const fileOf = (t: ExecutionContext): number => flowFile(t, flowMemoryBytes(CAPACITY, ADDRESSES));

const LEFT: LeftFlows = {
  domains: [0],
  endpoints: [{ domain: 0, address: ip(FROM_V6) }],
  unpublished: [],
  services: [],
};

interface Options {
  readonly left?: LeftFlows;
  readonly external?: string;
  readonly uplink?: number;
  readonly publish?: (rig: NatRigV6) => void;
}

/** A process over the file. */
function life(fd: number, { left, external = EXTERNAL_V6, uplink = 0, publish }: Options = {}): NatRigV6 {
  const table = { capacity: CAPACITY, fd, addresses: ADDRESSES, ...(left && { left }) };
  let memory!: FlowMemory;
  const rig = new NatRigV6({
    ...{ external: ip(external), owner: uplink },
    memory: (context) => {
      memory = new FlowMemory(context, table);
      return memory;
    },
  });
  publish?.(rig);
  memory.begin({ gateways: [{ domain: 0, uplink }], flows: table } as unknown as Intent);
  return rig;
}

const counts = (fd: number): readonly number[] => {
  const { taken, refused } = takenOver(native.fileMap(fd, flowBytes(CAPACITY)));
  return [taken, refused];
};

const opening = packetV6({ protocol: TCP, sourcePort: 40_000, destinationPort: 80, flags: SYN });

function talk(rig: NatRigV6): Uint8Array {
  const left = rig.out(opening);
  rig.in(answerToV6(left, SYN_ACK));
  return left;
}

test('flows go on in the next process, under whatever numbers their addresses get there', (t) => {
  const fd = fileOf(t);
  const before = life(fd);
  // Addresses that came first, and are of nobody any more.
  for (let i = 0; i < 5; i++) before.out(packetV6({ destination: `2001:db8:1::${i + 1}` }));
  const tcp = talk(before);
  before.flows.forEach((flow) => {
    if ((before.flows.words[(flow << FLOW_SHIFT) + OUT_KEY] & 0xff) !== TCP) before.flows.end(flow);
  });
  const after = life(fd, { left: LEFT, uplink: 2 });
  t.deepEqual(counts(fd), [1, 0]);
  t.is(after.addresses.size, 3);
  const back = after.in(answerToV6(tcp, 0x10));
  t.true(soundV6(back));
  t.is(endsV6(back), `[${TO_V6}]:80 > [${FROM_V6}]:40000`);
  t.is(endsV6(after.out(packetV6({ protocol: TCP, sourcePort: 40_000, destinationPort: 80 }))), endsV6(tcp));
  t.is(after.flows.size, 1);
  after.pass(8000);
  t.is(after.addresses.size, 1);
  t.is(after.tables.ports.available(0), 60999 - 32768 + 1);
});

test('what is nobody’s any more is not taken over, and holds nothing', (t) => {
  const rows: readonly Options[] = [
    {},
    { left: { ...LEFT, domains: [] } },
    { left: { ...LEFT, endpoints: [{ domain: 0, address: ip('fd00:9::2') }] } },
    { left: { ...LEFT, endpoints: [{ domain: 1, address: ip(FROM_V6) }] } },
    { left: LEFT, external: 'fd00:60::11' },
    {
      left: {
        ...LEFT,
        unpublished: [{ address: ip(EXTERNAL_V6), protocol: TCP, port: 40_000 }],
      },
    },
  ];
  for (const options of rows) {
    const fd = fileOf(t);
    talk(life(fd));
    const after = life(fd, options);
    t.deepEqual(counts(fd), [0, 1]);
    t.is(after.addresses.size, 1);
    t.is(after.flows.size, 0);
    talk(after);
  }
});

test('a published port is the flow’s as long as it is published as it was', (t) => {
  const publish = (rig: NatRigV6) =>
    rig.tables.publish({ protocol: TCP, port: 8080, domain: 0, address: ip(FROM_V6), target: 80 });
  const fd = fileOf(t);
  const syn = packetV6({
    ...{ protocol: TCP, source: TO_V6, destination: EXTERNAL_V6, destinationPort: 8080, flags: SYN },
  });
  life(fd, { publish }).in(syn);
  const after = life(fd, { left: LEFT, publish });
  t.deepEqual(counts(fd), [1, 0]);
  t.is(endsV6(after.in(syn)), `[${TO_V6}]:4000 > [${FROM_V6}]:80`);
});

test('property: whatever lies in the memory, what is taken over is sound, and lets all go', (t) => {
  const fd = fileOf(t);
  const words = new Int32Array(native.fileMap(fd, flowMemoryBytes(CAPACITY, ADDRESSES)));
  const wrong = fc.tuple(
    fc.integer({ min: 1, max: 8 }),
    fc.constantFrom(INSIDE, REMOTE_END, EXTERNAL, 2, 3, 5),
    fc.oneof(fc.integer(), fc.nat(ADDRESSES + 1)),
  );
  const torn = fc.tuple(fc.nat(ADDRESSES), fc.nat(3), fc.integer());
  fc.assert(
    fc.property(fc.array(wrong, { maxLength: 4 }), fc.array(torn, { maxLength: 4 }), (entries, addresses) => {
      words.fill(0);
      const before = life(fd);
      talk(before);
      for (let i = 0; i < 6; i++) before.out(packetV6({ destination: `2001:db8:1::${i + 1}` }));
      for (const [flow, word, value] of entries) words[(flow << FLOW_SHIFT) + word] = value;
      for (const [number, word, value] of addresses)
        words[flowBytes(CAPACITY) / 4 + number * 4 + word] = value;
      const after = life(fd, { left: LEFT });
      t.true(after.flows.size <= 7);
      after.flows.forEach((flow) => {
        after.flows.end(flow);
      });
      t.is(after.flows.size, 0);
      t.is(after.addresses.size, 1);
      talk(after);
    }),
    { numRuns: 200 },
  );
});
