import test from 'ava';
import fc from 'fast-check';
import { createVxlanEncap } from '../../../engine/elements/vxlan-encap.js';
import { Batch } from '../../../engine/graph.js';
import { FLOOD_VTEPS, FrameMemory, REMOTE } from '../../../engine/memory/frames.js';
import { CARRY_VLAN, Domains, LEARN } from '../../../engine/tables/domains.js';
import { Vteps } from '../../../engine/tables/vteps.js';
import {
  be16,
  type Caught,
  concat,
  dropped,
  ethernet,
  ip,
  ipv4,
  ipv6,
  LOCAL_V4,
  LOCAL_V6,
  type Metadata,
  payload,
  Rig,
  slowSum,
  station,
  udp,
  udpFrame,
  udpSum,
} from '../../support/frames.js';

interface EncapRigOptions {
  v6?: boolean;
  vni?: number;
  flags?: number;
  vteps?: number;
  memory?: FrameMemory;
  checksum?: boolean;
  ttl?: number;
}

const remote = (v6: boolean, n: number): string => (v6 ? `2001:db8::1:${n}` : `198.51.100.${n}`);

function encapRig(options: EncapRigOptions = {}) {
  const {
    v6 = false,
    vni = 42,
    flags = LEARN,
    vteps: count = 3,
    memory,
    checksum = true,
    ttl = 64,
  } = options;
  const rig = new Rig(memory);
  const domains = new Domains();
  const vteps = new Vteps(16);
  const local = { address: ip(v6 ? LOCAL_V6 : LOCAL_V4), port: 4789, ttl };
  domains.set(0, { vni, flags, ageing: 300 });
  const members: number[] = [];
  for (let n = 0; n < count; n++) members.push(vteps.add(ip(remote(v6, n)), true, local, 0));
  domains.setVteps(0, members);
  const sink = rig.sink();
  const out = new Batch(sink);
  const encap = createVxlanEncap(rig.context, domains, vteps, { v6, checksum }, out);
  return {
    rig,
    domains,
    vteps,
    encap,
    sink,
    outer: v6 ? 70 : 50,
    send(inner: Uint8Array, metadata: Metadata = {}): void {
      rig.feed(encap, rig.put(inner, { dest: REMOTE, ...metadata }));
      out.flush();
    },
    /** Encapsulates a frame and takes the packet apart. */
    packet(inner: Uint8Array, metadata: Metadata = {}) {
      this.send(inner, metadata);
      return dissect(sink.one());
    },
    count: (name: string) => rig.counter('vxlan-encap', name),
    drops: () => dropped(encap.drops),
  };
}

const at16 = (bytes: Uint8Array, at: number): number => (bytes[at] << 8) | bytes[at + 1];

/** A VXLAN packet field by field, by nobody's code but this. */
function dissect({ bytes, ...metadata }: Caught) {
  const v6 = at16(bytes, 12) === 0x86dd;
  const udpAt = v6 ? 54 : 34;
  return {
    ...metadata,
    bytes,
    type: at16(bytes, 12),
    tos: v6 ? ((bytes[14] & 15) << 4) | (bytes[15] >>> 4) : bytes[15],
    ipLength: v6 ? at16(bytes, 18) : at16(bytes, 16),
    ttl: v6 ? bytes[21] : bytes[22],
    protocol: v6 ? bytes[20] : bytes[23],
    fragment: v6 ? 0 : at16(bytes, 20),
    source: bytes.slice(v6 ? 22 : 26, v6 ? 38 : 30),
    destination: bytes.slice(v6 ? 38 : 30, udpAt),
    ip: bytes.slice(14, udpAt),
    udp: bytes.slice(udpAt),
    sourcePort: at16(bytes, udpAt),
    destinationPort: at16(bytes, udpAt + 2),
    udpLength: at16(bytes, udpAt + 4),
    checksum: at16(bytes, udpAt + 6),
    vxlan: bytes.slice(udpAt + 8, udpAt + 16),
    inner: bytes.slice(udpAt + 16),
  };
}

for (const v6 of [false, true]) {
  const over = v6 ? 'IPv6' : 'IPv4';

  test(`VXLAN 13: every outer field over ${over}: lengths, TTL, DF, ports, checksums, VNI`, (t) => {
    const e = encapRig({ v6, ttl: 37, vni: 0x123456 });
    for (const size of [0, 1, 27, 50, 999, 1450, 8950]) {
      const inner = udpFrame(1000, { size });
      const p = e.packet(inner);
      t.deepEqual(p.inner, inner);
      t.is(p.type, v6 ? 0x86dd : 0x0800);
      t.is(p.ipLength, inner.length + 16 + (v6 ? 0 : 20));
      t.is(p.udpLength, inner.length + 16);
      t.is(p.ttl, 37);
      t.is(p.protocol, 17);
      t.is(p.fragment, v6 ? 0 : 0x4000, 'DF, no fragment');
      t.deepEqual(p.source, ip(v6 ? LOCAL_V6 : LOCAL_V4));
      t.deepEqual(p.destination, ip(remote(v6, 0)));
      t.is(p.destinationPort, 4789);
      t.deepEqual(p.vxlan, Uint8Array.of(8, 0, 0, 0, 0x12, 0x34, 0x56, 0));
      if (v6) t.is(udpSum(p.source, p.destination, p.udp), 0xffff, 'UDP checksum');
      else {
        t.is(slowSum(p.ip), 0xffff, 'IPv4 header checksum');
        t.is(p.checksum, 0, 'no UDP checksum over IPv4');
      }
    }
    t.is(e.count('frames'), 7);
    t.deepEqual(e.drops(), {});
    e.rig.finish(t);
  });

  test(`VXLAN 10: VNI 0 and 0xffffff over ${over}`, (t) => {
    for (const vni of [0, 0xffffff, 0xff0000, 0x00ff00, 0x0000ff]) {
      const e = encapRig({ v6, vni });
      const { vxlan } = e.packet(udpFrame(1));
      t.deepEqual(vxlan, Uint8Array.of(8, 0, 0, 0, vni >>> 16, vni >>> 8, vni, 0));
      e.rig.finish(t);
    }
  });

  test(`VXLAN 7: ECN into the outer header over ${over}: 0→0, 1→1, 2→2, 3→2, DSCP kept inside`, (t) => {
    const e = encapRig({ v6 });
    for (const inner6 of [false, true]) {
      for (const [ecn, expected] of [0, 1, 2, 2].entries()) {
        const inner = udpFrame(1, { v6: inner6, tos: 0xb8 | ecn });
        const p = e.packet(inner);
        t.is(p.tos, expected);
        t.deepEqual(p.inner, inner);
        if (!v6) t.is(slowSum(p.ip), 0xffff);
      }
    }
    // What is not IP, is tagged or is too short has no ECN field.
    t.is(e.packet(ethernet({ type: 0x0806 }, payload(28, 3))).tos, 0);
    t.is(e.packet(ethernet({ type: 0x0800 }, Uint8Array.of(0x45, 3))).tos, 0);
    e.rig.finish(t);
  });

  test(`VXLAN 12: source ports over ${over} are in 49152–65535, stable per flow and spread over flows`, (t) => {
    const e = encapRig({ v6 });
    for (const inner6 of [false, true]) {
      const ports = new Set<number>();
      for (let flow = 1024; flow < 2048; flow++) {
        const { sourcePort } = e.packet(udpFrame(flow, { v6: inner6 }));
        t.true(sourcePort >= 49152 && sourcePort <= 65535);
        t.is(e.packet(udpFrame(flow, { v6: inner6, size: 700, tos: 2 })).sourcePort, sourcePort);
        ports.add(sourcePort);
      }
      // 1,024 balls into 16,384 boxes leave 993 boxes taken on average, with a deviation of 5.5.
      t.true(ports.size > 950, `${ports.size} ports for 1,024 flows`);
      t.true(Math.min(...ports) < 50000 && Math.max(...ports) > 64700, 'over the whole range');
    }
    e.rig.finish(t);
  });

  test(`VXLAN 12: all fragments of a datagram over ${over} take one source port`, (t) => {
    const e = encapRig({ v6 });
    const part = (fragment: number, first: number) =>
      ethernet({ type: 0x0800 }, ipv4({ fragment, id: 99 }, payload(48, first)));
    const ports = [0x2000, 0x2006, 0x3fff, 0x000c, 0x1fff].map(
      (f, i) => e.packet(part(f, i * 31)).sourcePort,
    );
    t.is(new Set(ports).size, 1);
    const six = (offset: number, first: number) =>
      ethernet(
        { type: 0x86dd },
        ipv6({ next: 44 }, Uint8Array.from([17, 0, ...be16(offset), 0, 0, 0, 9, ...payload(40, first)])),
      );
    const sixPorts = [1, 41, 80].map((f, i) => e.packet(six(f, i * 31)).sourcePort);
    t.is(new Set(sixPorts).size, 1);
    e.rig.finish(t);
  });

  test(`VXLAN 14: a tagged frame is refused over ${over} unless the domain carries tags`, (t) => {
    const e = encapRig({ v6 });
    const tagged = ethernet({ tags: [7], type: 0x0800 }, ipv4({}, udp(1, 2, payload(30))));
    const qinq = Uint8Array.from(tagged);
    qinq.set([0x88, 0xa8], 12);
    e.send(tagged);
    e.send(qinq);
    t.deepEqual(e.drops(), { 'inner-vlan': 2 });
    t.is(e.sink.caught.length, 0);
    e.domains.set(0, { vni: 42, flags: LEARN | CARRY_VLAN, ageing: 300 });
    t.deepEqual(e.packet(tagged).inner, tagged);
    t.deepEqual(e.packet(qinq).inner, qinq);
    e.rig.finish(t);
  });

  test(`head-end replication over ${over}: each VTEP exactly once, each packet whole`, (t) => {
    const e = encapRig({ v6, vteps: 9 });
    const inner = udpFrame(5, { size: 100 });
    e.send(inner, { dest: FLOOD_VTEPS });
    const packets = e.sink.caught.splice(0).map(dissect);
    const reached = packets.map(({ destination }) => destination.join('.')).sort();
    t.deepEqual(reached, Array.from({ length: 9 }, (_, n) => ip(remote(v6, n)).join('.')).sort());
    for (const p of packets) {
      t.deepEqual(p.inner, inner);
      if (v6) t.is(udpSum(p.source, p.destination, p.udp), 0xffff);
      else t.is(slowSum(p.ip), 0xffff);
    }
    t.is(e.count('copies'), 8);
    t.is(e.count('frames'), 9);
    t.is(e.count('bytes'), 9 * (inner.length + e.outer));
    e.rig.finish(t);
  });

  test(`VXLAN 13: too big for a datagram over ${over}: refused and counted, the largest one passes`, (t) => {
    const e = encapRig({ v6 });
    const largest = 65535 + 14 - e.outer;
    const fits = ethernet({}, payload(largest - 14));
    const p = e.packet(fits);
    t.is(p.inner.length, largest);
    t.deepEqual(p.inner, fits);
    e.send(ethernet({}, payload(largest - 13)));
    e.send(ethernet({}, payload(66304 - 14)), { dest: FLOOD_VTEPS });
    t.deepEqual(e.drops(), { 'too-big': 1 + 3 });
    t.is(e.sink.caught.length, 0);
    e.rig.finish(t);
  });

  test(`a super-frame's metadata moves with the outer header over ${over}`, (t) => {
    const e = encapRig({ v6 });
    const inner = udpFrame(9, { size: 3000 });
    const offload = 0x501; // UDP segmentation, partial checksum
    const metadata = { offload, gsoSize: 1400, hdrLen: 42, csumStart: 34, csumOffset: 6, mark: 3 };
    const p = e.packet(inner, metadata);
    t.deepEqual(p.inner, inner);
    t.like(p, {
      ...metadata,
      offload: offload | (e.outer << 16),
      hdrLen: 42 + e.outer,
      csumStart: 34 + e.outer,
    });
    // Of the outer checksum there is the pseudo-header's sum, as the kernel wants it for each segment it cuts.
    const pseudo = slowSum(concat(p.source, p.destination, be16(17, p.udpLength)));
    t.is(p.checksum, v6 ? pseudo : 0);
    t.is(e.packet(inner, { ...metadata, hdrLen: 0 }).hdrLen, 0, 'unknown stays unknown');
    e.rig.finish(t);
  });

  test(`frames at every even alignment over ${over} come out alike`, (t) => {
    const e = encapRig({ v6 });
    const inner = udpFrame(77, { size: 321 });
    const [first, ...others] = [0, 2, 4, 6].map((alignment) => e.packet(inner, { alignment }).bytes);
    for (const bytes of others) t.deepEqual(bytes, first);
    e.rig.finish(t);
  });
}

test('a computed UDP checksum of zero is sent as 0xffff over IPv6', (t) => {
  const e = encapRig({ v6: true });
  const inner = ethernet({}, payload(50));
  // The last two payload bytes take whatever sum is missing.
  inner.set([0, 0], inner.length - 2);
  const p = e.packet(inner);
  inner.set(be16(p.checksum), inner.length - 2);
  const zero = e.packet(inner);
  t.is(zero.checksum, 0xffff);
  t.is(udpSum(zero.source, zero.destination, zero.udp), 0xffff);
  e.rig.finish(t);
});

test('the pseudo-header of a super-frame over IPv6 is summed right for every VTEP and length', (t) => {
  const e = encapRig({ v6: true, vteps: 16 });
  for (let vtep = 0; vtep < 16; vtep++) {
    for (const size of [100, 1000, 4242, 20000, 60000]) {
      const p = e.packet(udpFrame(1, { size }), {
        dest: REMOTE | vtep,
        offload: 0x501,
        csumStart: 34,
        csumOffset: 6,
      });
      t.is(
        p.checksum,
        slowSum(concat(p.source, p.destination, be16(17, p.udpLength))),
        `${vtep}, ${size} bytes`,
      );
    }
  }
  e.rig.finish(t);
});

test('property: the outer checksum over IPv6 of a frame whose inner one is unfinished holds once it is finished', (t) => {
  const e = encapRig({ v6: true });
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), fc.boolean(), fc.nat(65535), (content, v6, flow) => {
      const datagram = udp(flow, 7, content);
      const [source, destination] = v6 ? ['fd00::1', 'fd00::2'] : ['10.0.0.1', '10.0.0.2'];
      const pseudo = slowSum(concat(ip(source), ip(destination), be16(17, datagram.length)));
      datagram.set(be16(pseudo), 6);
      const inner = v6
        ? ethernet({ type: 0x86dd }, ipv6({ source, destination }, datagram))
        : ethernet({ type: 0x0800 }, ipv4({ source, destination }, datagram));
      const csumStart = v6 ? 54 : 34;
      const p = e.packet(inner, { offload: 1, csumStart, csumOffset: 6 });
      t.is(p.csumStart, csumStart + e.outer);
      const finished = ~slowSum(p.bytes.slice(p.csumStart)) & 0xffff;
      p.bytes.set(be16(finished === 0 ? 0xffff : finished), p.csumStart + 6);
      t.is(udpSum(p.source, p.destination, p.bytes.slice(54)), 0xffff);
    }),
    { numRuns: 300 },
  );
  e.rig.finish(t);
});

test('a partial checksum that starts past what the outer header leaves room for does not hang the worker', (t) => {
  const e = encapRig({ v6: true });
  const inner = ethernet({}, payload(65465));
  for (const csumStart of [65466, 65470, 65476]) {
    const p = e.packet(inner, { offload: 1, csumStart, csumOffset: 0 });
    t.deepEqual(p.inner, inner);
    // Nothing in front of the wrapped start is summed, so only the headers and the field itself are in it.
    const field = ~at16(p.bytes, p.csumStart) & 0xffff;
    const header = concat(p.source, p.destination, be16(17, p.udpLength), p.udp.slice(0, 8));
    t.is(slowSum(concat(header, be16(field))), 0xffff);
  }
  e.rig.finish(t);
});

test('the outer checksum over IPv6 is left to the port when it asks for that', (t) => {
  const e = encapRig({ v6: true, checksum: false });
  t.is(e.packet(udpFrame(1)).checksum, 0);
  e.rig.finish(t);
});

test('runts of every length are refused', (t) => {
  for (const v6 of [false, true]) {
    const e = encapRig({ v6 });
    for (let length = 0; length < 14; length++) e.send(udpFrame(1).slice(0, length));
    t.deepEqual(e.drops(), { 'inner-runt': 14 });
    t.is(e.packet(udpFrame(1).slice(0, 14)).inner.length, 14);
    e.rig.finish(t);
  }
});

test('a flood in a domain without VTEPs: no-vtep', (t) => {
  const e = encapRig({ vteps: 0 });
  e.send(udpFrame(1), { dest: FLOOD_VTEPS });
  t.deepEqual(e.drops(), { 'no-vtep': 1 });
  e.rig.finish(t);
});

test('slots run out while replicating: counted, one packet is sent, nothing leaks', (t) => {
  const memory = new FrameMemory({ small: 3, large: 0 });
  const e = encapRig({ vteps: 8, memory });
  e.send(udpFrame(1), { dest: FLOOD_VTEPS });
  t.is(e.sink.take().length, 3);
  t.deepEqual(e.drops(), { 'no-slot': 5 });
  t.is(e.count('copies'), 2);
  e.rig.finish(t);
});

test('the next hop set for a VTEP is the outer Ethernet header', (t) => {
  for (const v6 of [false, true]) {
    const e = encapRig({ v6 });
    e.vteps.setLink(1, station(0xabcd), station(0xef01));
    const { bytes } = e.packet(udpFrame(1), { dest: REMOTE | 1 });
    t.deepEqual(bytes.slice(0, 6), station(0xabcd));
    t.deepEqual(bytes.slice(6, 12), station(0xef01));
    t.is(at16(bytes, 12), v6 ? 0x86dd : 0x0800);
    e.rig.finish(t);
  }
});

test('property: whatever the frame, the outer header is right and the frame is whole', (t) => {
  const rigs = [encapRig({ v6: false }), encapRig({ v6: true })];
  const bytes = fc.uint8Array({ minLength: 14, maxLength: 300 });
  fc.assert(
    fc.property(bytes, fc.boolean(), fc.nat(2), fc.constantFrom(0, 2, 4, 6), (inner, v6, vtep, alignment) => {
      const e = rigs[Number(v6)];
      e.domains.flags[0] = CARRY_VLAN;
      const p = e.packet(inner, { dest: REMOTE | vtep, alignment });
      t.deepEqual(p.inner, inner);
      t.is(v6 ? udpSum(p.source, p.destination, p.udp) : slowSum(p.ip), 0xffff);
      t.is(p.udpLength, inner.length + 16);
      t.true(p.sourcePort >= 49152);
      t.deepEqual(p.destination, ip(remote(v6, vtep)));
    }),
    { numRuns: 500 },
  );
  rigs[0].rig.finish(t);
});
