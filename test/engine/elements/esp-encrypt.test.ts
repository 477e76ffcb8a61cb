import test from 'ava';
import { REMOTE } from '../../../engine/memory/frames.js';
import { SAW_NO_ASSOCIATION } from '../../../engine/tables/vteps.js';
import { native } from '../../../native-bindings/index.js';
import {
  ESP_V4,
  edit,
  espAt,
  espPackets,
  espRig,
  FORMS,
  frontOf,
  plainPacket,
  readEsp,
  UDP_V6,
} from '../../support/esp.js';
import { be16, concat, ip, LOCAL_V6, payload, REMOTE_V6, slowSum, udpSum } from '../../support/frames.js';

const at16 = (bytes: Uint8Array, at: number): number => (bytes[at] << 8) | bytes[at + 1];

for (const form of FORMS) {
  const { name, v6, port } = form;
  const front = frontOf(form);

  test(`${name}: the outer header is the packet's own, with another length and protocol`, (t) => {
    const a = espRig({ form, checksum: true });
    for (const [size, tos] of [
      [0, 0],
      [1, 2],
      [333, 0xb8],
      [1400, 1],
      [8900, 0xff],
    ]) {
      const packet = plainPacket(form, size, { tos });
      a.seal([packet], { domain: 7, mark: 0x1234, ingress: 3 });
      const { bytes, ...metadata } = a.out.one();
      t.like(metadata, { dest: REMOTE, domain: 7, mark: 0x1234, ingress: 3, offload: 0 });
      const protocol = port === 0 ? 50 : 17;
      const length = bytes.length - 14 - (v6 ? 40 : 0);
      // What is not length, protocol or checksum is as it was.
      const expected = v6
        ? edit(edit(packet, 18, ...be16(length)), 20, protocol)
        : edit(edit(edit(packet, 16, ...be16(length)), 23, protocol), 24, bytes[24], bytes[25]);
      t.deepEqual(bytes.slice(0, front), expected.slice(0, front));
      if (!v6) t.is(slowSum(bytes.slice(14, 34)), 0xffff, 'header checksum');
      if (port !== 0) {
        const datagram = bytes.slice(front);
        t.deepEqual(datagram.slice(0, 6), be16(port, port, datagram.length));
        if (v6) t.is(udpSum(ip(LOCAL_V6), ip(REMOTE_V6), datagram), 0xffff, 'UDP checksum');
        else t.is(at16(datagram, 6), 0, 'no UDP checksum over IPv4 (RFC 3948, 2.1)');
      }
      t.deepEqual(readEsp(a.outbound(), bytes.slice(espAt(form))).content, packet.slice(front));
    }
    t.is(a.rig.counter('esp-encrypt', 'frames'), 5);
    t.is(a.rig.counter('esp-encrypt', 'bundles'), 0);
    t.is(a.state.packets[a.outbound().slot], 5);
    a.finish(t);
  });

  test(`${name}: packets at every even alignment come out alike`, (t) => {
    const [first, ...others] = [0, 2, 4, 6].map((alignment) => {
      const a = espRig({ form, checksum: true });
      a.seal([plainPacket(form, 77)], { alignment });
      const { bytes } = a.out.one();
      a.finish(t);
      return bytes;
    });
    for (const bytes of others) t.deepEqual(bytes, first);
  });

  test(`${name}: bytes and packets are counted, for the element and for the association`, (t) => {
    const a = espRig({ form, peers: 2 });
    a.seal(
      [10, 20, 30].map((size) => plainPacket(form, size)),
      (k) => ({ dest: REMOTE | (k & 1) }),
    );
    const lengths = a.out.take().map(({ length }) => length);
    t.is(
      a.rig.counter('esp-encrypt', 'bytes'),
      lengths.reduce((sum, length) => sum + length, 0),
    );
    const [slot, other] = [a.outbound().slot, a.outbound(1).slot];
    t.deepEqual([a.state.packets[slot], a.state.packets[other]], [2, 1]);
    // UDP header, payload and two bytes of trailer, rounded up to four.
    t.deepEqual([a.state.bytes[slot], a.state.bytes[other]], [20 + 40, 32]);
    t.deepEqual([a.state.last(slot), a.state.last(other)], [2, 1]);
    a.finish(t);
  });

  test(`${name}: a VTEP without an association gets nothing, and that is told once`, (t) => {
    const a = espRig({ form, peers: 2 });
    a.use(a.intents.filter(({ slot }) => slot !== a.outbound(1).slot));
    const told: number[][] = [];
    for (let round = 0; round < 2; round++) {
      a.seal(
        [10, 20, 30, 40].map((size) => plainPacket(form, size)),
        (k) => ({ dest: REMOTE | (k & 1) }),
      );
      a.vteps.tell((vtep, saw) => told.push([vtep, saw]));
      t.deepEqual(
        a.out.caught.splice(0).map(({ dest }) => dest),
        [REMOTE, REMOTE],
      );
    }
    t.deepEqual(a.encryptDrops(), { 'no-association': 4 });
    t.deepEqual(told, [[1, SAW_NO_ASSOCIATION]]);
    a.finish(t);
  });

  test(`${name}: what is no finished packet is refused`, (t) => {
    const a = espRig({ form });
    const packet = plainPacket(form, 50);
    for (const length of [0, 14, front - 1, front]) a.seal([packet.slice(0, length)]);
    t.deepEqual(a.encryptDrops(), { 'bad-length': 4 });
    for (const offload of [1, 0x101, 0x501]) a.seal([packet], { offload, gsoSize: 10 });
    t.deepEqual(a.encryptDrops(), { 'bad-length': 7 });
    t.is(a.state.last(a.outbound().slot), 0, 'no number is used up');
    t.is(a.sealOne(packet.slice(0, front + 1)).length, 16 + 4 + 16);
    a.finish(t);
  });

  test(`${name}: the longest packet that passes has its length right, longer ones are too big`, (t) => {
    for (const icv of [8, 16] as const) {
      const a = espRig({ form, icv, checksum: true });
      // Trailer and padding take up to five bytes, ESP header and IV sixteen.
      const most = 65535 - (front - 14) - (espAt(form) - front) - 16 - 5 - icv;
      const packet = plainPacket(form, most - 8);
      for (const cut of [0, 1, 2, 3]) {
        a.seal([packet.slice(0, packet.length - cut)]);
        const { bytes } = a.out.one();
        t.is(at16(bytes, v6 ? 18 : 16), bytes.length - 14 - (v6 ? 40 : 0));
        if (port !== 0) t.is(at16(bytes, front + 4), bytes.length - front);
        const { content } = readEsp(a.outbound(), bytes.slice(espAt(form)));
        t.is(Buffer.compare(content, packet.slice(front, packet.length - cut)), 0);
      }
      const longer = new Uint8Array(packet.length + 1);
      longer.set(packet);
      a.seal([longer]);
      t.deepEqual(a.encryptDrops(), { 'too-big': 1 });
      a.finish(t);
    }
  });

  test(`${name}: without its key nothing of a batch leaves, and all of it is counted`, (t) => {
    const a = espRig({ form });
    native.gcmRemove(a.outbound().slot);
    a.seal([10, 20, 30].map((size) => plainPacket(form, size)));
    t.deepEqual(a.out.take(), []);
    t.deepEqual(a.encryptDrops(), { 'not-sealed': 3 });
    a.finish(t);
  });

  test(`${name}: nothing of the packet is left readable in what leaves`, (t) => {
    const a = espRig({ form });
    const secret = payload(600, 31);
    a.seal([plainPacket(form, 600, { first: 31 })]);
    const { bytes } = a.out.one();
    for (let at = 0; at + 8 <= secret.length; at += 8)
      t.is(Buffer.from(bytes).indexOf(secret.subarray(at, at + 8)), -1);
    a.finish(t);
  });
}

test('UDP over IPv6: the checksum is left to whoever sends the packet on, when asked', (t) => {
  const a = espRig({ form: UDP_V6 });
  a.seal([plainPacket(UDP_V6, 100)]);
  const { bytes, ...metadata } = a.out.one();
  t.like(metadata, { offload: 1, csumStart: 54, csumOffset: 6 });
  const pseudo = concat(ip(LOCAL_V6), ip(REMOTE_V6), be16(17, bytes.length - 54));
  t.is(at16(bytes, 60), slowSum(pseudo));
  a.finish(t);
});

test('packets of several associations in one batch leave in the order in which they came', (t) => {
  const a = espRig({ form: ESP_V4, peers: 3 });
  const order = [0, 1, 2, 2, 1, 0, 0, 2, 1, 1];
  a.seal(
    order.map((peer) => plainPacket(ESP_V4, peer)),
    (k) => ({ dest: REMOTE | order[k] }),
  );
  const caught = a.out.caught.splice(0);
  t.deepEqual(
    caught.map(({ dest }) => dest & 0xffff),
    order,
  );
  const next = [1, 1, 1];
  for (const [k, peer] of order.entries()) {
    const { low, content } = readEsp(a.outbound(peer), espPackets(ESP_V4, caught[k])[0]);
    t.deepEqual([low, content.length], [next[peer]++, 8 + peer]);
  }
  a.finish(t);
});
