import test from 'ava';
import { native } from '../../../native-bindings/index.js';
import {
  datagram,
  ESP_V4,
  edit,
  espAt,
  espRig,
  FORMS,
  frontOf,
  join,
  makeEsp,
  outerEsp,
  outerIp,
  UDP_V4,
} from '../../support/esp.js';
import { be16, ipv4, LOCAL_V4, LOCAL_V6, payload, REMOTE_V4, slowSum, udp } from '../../support/frames.js';

const all = (count: number, verdict: string): string[] => Array(count).fill(verdict);

/** Makes the IPv4 header checksum right again after an edit. */
const mend = (packet: Uint8Array): Uint8Array => {
  const header = edit(packet, 24, 0, 0).subarray(14, 14 + (packet[14] & 15) * 4);
  return edit(packet, 24, ...be16(~slowSum(header) & 0xffff));
};

for (const form of FORMS) {
  const { name, v6, port } = form;
  const front = frontOf(form);

  test(`${name}: what comes out is the packet before ESP, with its outer header`, (t) => {
    const b = espRig({ form });
    for (const [k, tos] of [0, 1, 2, 3, 0xb8].entries()) {
      const content = datagram(300 + k, k);
      const esp = outerEsp(form, makeEsp(b.inbound(), { sequence: k + 1 }, content), { tos });
      t.deepEqual(b.open([esp]), [outerIp(form, 17, content, { tos })]);
    }
    t.is(b.rig.counter('esp-decrypt', 'frames'), 5);
    t.is(b.rig.counter('esp-decrypt', 'bytes'), 5 * (front + 308) + 10);
    t.is(b.state.packets[b.inbound().slot], 5);
    // UDP header, payload and two bytes of trailer, rounded up to four.
    t.is(b.state.bytes[b.inbound().slot], 3 * 312 + 2 * 316);
    b.finish(t);
  });

  test(`${name}: every even alignment, whatever the flags of the frame`, (t) => {
    const b = espRig({ form });
    for (const [k, alignment] of [0, 2, 4, 6].entries())
      for (const offload of [0, 1, 2]) {
        const content = datagram(50 + k);
        const packet = b.make(k * 3 + offload + 1, { content });
        t.deepEqual(b.open([packet], { alignment, offload }), [outerIp(form, 17, content)]);
        t.is(b.opened.calls, k * 3 + offload + 1);
      }
    b.finish(t);
  });

  test(`${name}: metadata stays with the frame, and no offload is left`, (t) => {
    const b = espRig({ form });
    b.rig.feed(
      b.decrypt,
      b.rig.put(b.make(1), { alignment: 6, ingress: 5, domain: 9, mark: 77, offload: 1 }),
    );
    b.flush();
    t.like(b.opened.one(), { ingress: 5, domain: 9, mark: 77, offload: 0 });
    b.finish(t);
  });

  test(`${name}: padding behind the packet is cut off before the ICV is looked for`, (t) => {
    const b = espRig({ form });
    for (const [k, padding] of [1, 2, 3, 18, 46].entries()) {
      const packet = join(b.make(k + 1), payload(padding, 5));
      t.deepEqual(b.open([packet]), [outerIp(form, 17, datagram(20))]);
    }
    b.finish(t);
  });

  test(`${name}: outer headers that are not right are refused for what is wrong with them`, (t) => {
    const b = espRig({ form });
    const packet = b.make(1);
    const right = v6 ? (bytes: Uint8Array) => bytes : mend;
    const lengthAt = v6 ? 18 : 16;
    const length = (packet[lengthAt] << 8) | packet[lengthAt + 1];
    const verdict = (bytes: Uint8Array) => b.verdicts(bytes)[0];
    t.is(verdict(edit(packet, 12, 0x08, 0x06)), 'not-ip');
    t.is(verdict(packet.slice(0, 33)), 'not-ip');
    t.is(verdict(right(edit(packet, 14, v6 ? 0x50 : 0x55))), 'bad-ip-header');
    t.is(verdict(right(edit(packet, lengthAt, ...be16(length + 1)))), 'bad-length');
    t.is(verdict(right(edit(packet, lengthAt, ...be16(v6 ? 0 : 20)))), 'bad-length');
    const next = v6 ? 20 : 23;
    for (const protocol of [6, 1, 51, 4, 0])
      t.is(verdict(right(edit(packet, next, protocol))), 'not-esp', `protocol ${protocol}`);
    if (v6) t.is(verdict(edit(packet, next, 44)), 'fragment');
    else {
      t.is(verdict(edit(packet, 25, packet[25] ^ 1)), 'ip-checksum');
      t.is(verdict(mend(edit(packet, 20, 0x20, 0))), 'fragment');
      t.is(verdict(mend(edit(packet, 20, 0, 1))), 'fragment');
    }
    const esp = makeEsp(b.inbound(), { sequence: 1 }, datagram(20));
    t.is(verdict(outerEsp(form, esp, { source: v6 ? LOCAL_V6 : LOCAL_V4 })), 'own-source');
    t.is(verdict(outerEsp(form, esp, { source: v6 ? 'ff02::1' : '224.0.0.1' })), 'bad-outer-source');
    const foreign = v6 ? '2001:db8::7' : '192.0.2.7';
    t.is(verdict(outerEsp(form, esp, { destination: foreign })), 'not-ours');
    t.is(b.state.last(b.inbound().slot), 0);
    t.is(verdict(packet), 'passed');
    b.finish(t);
    // A capture is nobody's.
    const capture = espRig({ form, addressed: false });
    t.deepEqual(capture.verdicts(outerEsp(form, esp, { destination: foreign })), ['passed']);
    capture.finish(t);
  });

  test(`${name}: without its key nothing is opened, and the window does not move`, (t) => {
    const b = espRig({ form });
    native.gcmRemove(b.inbound().slot);
    t.deepEqual(b.open([1, 2, 3].map((sequence) => b.make(sequence))), []);
    t.deepEqual(b.decryptDrops(), { 'not-opened': 3 });
    t.deepEqual(b.refused(b.inbound()), {});
    t.is(b.state.last(b.inbound().slot), 0);
    b.finish(t);
  });

  test(`${name}: a window of 0 lets replays pass, and only what is authentic`, (t) => {
    const b = espRig({ form, window: 0 });
    t.deepEqual(b.receive(5, 5, 9000, 1, 5, 0), [...all(5, 'passed'), 'too-old']);
    const packet = b.make(6);
    t.deepEqual(b.verdicts(edit(packet, packet.length - 1, packet.at(-1)! ^ 1)), ['icv']);
    b.finish(t);
    // With extended numbers the half is the one nearest to the highest number.
    const half = 2 ** 32;
    const extended = espRig({ form, window: 0, esn: true, last: 3 * half + 10 });
    const past = 2 * half + 2 ** 31 + 11;
    const verdicts = extended.receive(past, past, past - 1, 3 * half + 9, past + half - 1, past);
    t.deepEqual(verdicts, ['passed', 'passed', 'icv', 'passed', 'passed', 'icv']);
    extended.finish(t);
  });

  test(`${name}: an association taken away is unknown, and its successor receives at once`, (t) => {
    const b = espRig({ form, peers: 2 });
    const [first] = [b.make(1), b.make(1, { peer: 1 })];
    const only = (peer: number) => b.use(b.intents.filter(({ slot }) => slot === b.inbound(peer).slot));
    only(1);
    t.deepEqual(b.verdicts(first, b.make(2, { peer: 1 })), ['unknown-spi', 'passed']);
    only(0);
    t.deepEqual(b.verdicts(first, b.make(3, { peer: 1 })), ['passed', 'unknown-spi']);
    b.finish(t);
  });

  if (port === 0) continue;

  test(`${name}: keepalives, exchanges of keys and runts behind the port of ESP`, (t) => {
    const b = espRig({ form });
    const verdict = (content: Uint8Array) => b.verdicts(outerEsp(form, content))[0];
    t.is(verdict(Uint8Array.of(0xff)), 'keepalive');
    t.is(verdict(Uint8Array.of(0xfe)), 'undersized');
    t.is(verdict(Uint8Array.of(0xff, 0xff)), 'undersized');
    t.is(verdict(new Uint8Array(0)), 'undersized');
    t.is(verdict(new Uint8Array(7)), 'undersized');
    t.is(verdict(new Uint8Array(8)), 'exchange');
    t.is(verdict(join(new Uint8Array(4), payload(200))), 'exchange');
    t.deepEqual(b.refused(b.inbound()), {});
    b.finish(t);
  });

  test(`${name}: protocol 50 is ESP all the same; other ports and wrong lengths are not`, (t) => {
    const b = espRig({ form });
    const esp = makeEsp(b.inbound(), { sequence: 1 }, datagram(20));
    t.deepEqual(b.verdicts(outerEsp({ ...form, port: 4501 }, esp)), ['not-esp']);
    t.deepEqual(b.verdicts(outerIp(form, 17, udp(4500, 4789, esp))), ['not-esp']);
    const packet = outerEsp(form, esp);
    const length = (packet[front + 4] << 8) | packet[front + 5];
    for (const wrong of [0, 7, 8, length - 1, length + 1, 0xffff])
      t.deepEqual(b.verdicts(edit(packet, front + 4, ...be16(wrong))), ['bad-length']);
    for (const size of [1, 2, 7])
      t.deepEqual(b.verdicts(outerIp(form, 17, payload(size))), ['not-esp'], `${size} bytes of UDP header`);
    // The checksum of the UDP header is not looked at (RFC 3948, 2.1), nor its source port.
    t.deepEqual(b.verdicts(edit(packet, front + 6, 0x12, 0x34)), ['passed']);
    t.deepEqual(
      b.verdicts(outerEsp(form, makeEsp(b.inbound(), { sequence: 2 }, datagram(9)), { sourcePort: 1 })),
      ['passed'],
    );
    const bare = makeEsp(b.inbound(), { sequence: 3 }, datagram(20));
    t.deepEqual(b.open([outerEsp({ ...form, port: 0 }, bare)]), [outerIp(form, 17, datagram(20))]);
    b.finish(t);
  });
}

test('protocol 50 over IPv4: UDP is not ESP without a port', (t) => {
  const b = espRig({ form: ESP_V4 });
  const esp = makeEsp(b.inbound(), { sequence: 1 }, datagram(20));
  t.deepEqual(b.verdicts(outerEsp(UDP_V4, esp)), ['not-esp']);
  t.deepEqual(b.verdicts(outerIp(ESP_V4, 17, udp(0, 0, esp))), ['not-esp'], 'port 0 is no port');
  b.finish(t);
});

test('IPv4 options in the outer header stay', (t) => {
  for (const form of [ESP_V4, UDP_V4]) {
    const b = espRig({ form });
    for (const [k, words] of [1, 3, 10].entries()) {
      const options = join(Uint8Array.of(1, 1, 1), new Uint8Array(words * 4 - 3));
      const esp = makeEsp(b.inbound(), { sequence: k + 1 }, datagram(99));
      const fields = { source: REMOTE_V4, destination: LOCAL_V4, fragment: 0x4000, options };
      const inside = form.port === 0 ? esp : udp(4500, 4500, esp);
      const header = outerEsp(form, esp).slice(0, 14);
      const packet = join(header, ipv4({ ...fields, protocol: form.port === 0 ? 50 : 17 }, inside));
      t.deepEqual(b.open([packet]), [join(header, ipv4({ ...fields, protocol: 17 }, datagram(99)))]);
    }
    b.finish(t);
  }
});

test('the least that is let pass is a UDP header, and a byte less is no transport', (t) => {
  for (const form of FORMS) {
    const b = espRig({ form });
    t.deepEqual(b.open([b.make(1, { content: datagram(0) })]), [outerIp(form, 17, datagram(0))]);
    t.deepEqual(b.verdicts(b.make(2, { content: payload(7) })), ['bad-trailer']);
    t.deepEqual(b.verdicts(b.make(3, { content: payload(0) })), ['bad-trailer']);
    b.finish(t);
  }
});

test('peers are told apart by all four words of their address', (t) => {
  const form = FORMS[2];
  const b = espRig({ form });
  const esp = makeEsp(b.inbound(), { sequence: 1 }, datagram(20));
  const packet = outerEsp(form, esp);
  for (let byte = 22; byte < 38; byte++)
    t.deepEqual(b.verdicts(edit(packet, byte, packet[byte] ^ 0x10)), ['wrong-source'], `byte ${byte}`);
  t.deepEqual(b.refused(b.inbound()), { 'wrong-source': 16 });
  t.deepEqual(b.verdicts(packet), ['passed']);
  t.is(espAt(form), 54);
  b.finish(t);
});
