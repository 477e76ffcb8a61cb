import test from 'ava';
import fc from 'fast-check';
import { createClampMss } from '../../../engine/elements/clamp-mss.js';
import { Batch } from '../../../engine/graph.js';
import { OFFLOAD_NEEDS_CSUM } from '../../../engine/memory/frames.js';
import { Gateways } from '../../../engine/tables/gateways.js';
import { be16, concat, ip, type Metadata, Rig, slowSum, station } from '../../support/frames.js';
import { badChecksums, framed, TCP } from '../../support/nat.js';
import { framedV6, soundV6 } from '../../support/nat6.js';

const DOMAIN = 3;
const SYN = 2;

function clampRig({ mtu = 1500, network = 1450 } = {}) {
  const rig = new Rig();
  const gateways = new Gateways();
  gateways.set({
    ...{ domain: DOMAIN, mac: station(9), uplink: 0, mtu: network, routed: false },
    v4: { address: ip('10.0.9.254'), subnet: ip('10.0.9.0'), length: 24 },
  });
  const sink = rig.sink();
  const out = new Batch(sink);
  const clamp = createClampMss(rig.context, gateways, mtu, out);
  return {
    rig,
    pass(bytes: Uint8Array, metadata: Metadata = {}): Uint8Array {
      rig.feed(clamp, rig.put(bytes, { domain: DOMAIN, ...metadata }));
      out.flush();
      return sink.take()[0];
    },
  };
}

const mss = (value: number): Uint8Array => concat(Uint8Array.of(2, 4), be16(value));
const NOP = Uint8Array.of(1);

/** A TCP packet with options, padded, its checksum right. */
function tcp(options: Uint8Array, { v6 = false, flags = SYN, pad = 0 } = {}): Uint8Array {
  const padded = concat(options, new Uint8Array((4 - (options.length % 4)) % 4).fill(pad));
  const header = concat(
    be16(4000, 80, 0, 1, 0, 0),
    Uint8Array.of(((20 + padded.length) / 4) << 4, flags),
    be16(1000, 0, 0),
    padded,
  );
  const [source, destination] = v6 ? ['fd00:9::1', '2001:db8::2'] : ['10.0.9.1', '203.0.113.2'];
  const pseudo = slowSum(concat(ip(source), ip(destination), be16(TCP, header.length)));
  header.set(be16(~slowSum(header, pseudo) & 0xffff), 16);
  return v6
    ? framedV6({ protocol: TCP, source, destination }, header)
    : framed({ protocol: TCP, source, destination }, header);
}

const sound = (frame: Uint8Array, v6: boolean): boolean =>
  v6 ? soundV6(frame) : badChecksums(frame).length === 0;

for (const v6 of [false, true]) {
  const header = v6 ? 74 : 54;
  const family = v6 ? 'IPv6' : 'IPv4';

  test(`${family}: a SYN announces what fits the network and the uplink, wherever the option is`, (t) => {
    for (const before of [0, 1, 2, 3]) {
      const { pass, rig } = clampRig();
      const options = concat(...Array<Uint8Array>(before).fill(NOP), mss(1460), Uint8Array.of(3, 3, 7));
      const got = pass(tcp(options, { v6 }));
      const at = header + before + 2;
      t.is((got[at] << 8) | got[at + 1], v6 ? 1390 : 1410);
      t.true(sound(got, v6));
      t.is(rig.counter('clamp-mss', 'clamped'), 1);
      rig.finish(t);
    }
    const small = clampRig({ mtu: 1300 }).pass(tcp(mss(1460), { v6, flags: 0x12 }));
    t.is((small[header + 2] << 8) | small[header + 3], v6 ? 1240 : 1260);
  });

  test(`${family}: what is small enough, no SYN, or says nothing, is left as it is`, (t) => {
    const { pass, rig } = clampRig();
    for (const frame of [
      tcp(mss(1390), { v6 }),
      tcp(mss(1460), { v6, flags: 0x10 }),
      tcp(NOP, { v6 }),
      tcp(concat(Uint8Array.of(0), mss(1460)), { v6 }),
      tcp(Uint8Array.of(3, 0, 2, 4), { v6 }),
      tcp(Uint8Array.of(2, 40, 5, 5), { v6 }),
      tcp(Uint8Array.of(1, 1, 1, 2), { v6 }),
    ])
      t.deepEqual(pass(frame), frame);
    t.is(rig.counter('clamp-mss', 'clamped'), 0);
    rig.finish(t);
  });

  test(`${family}: a partial checksum is left to who completes it`, (t) => {
    const { pass, rig } = clampRig();
    const frame = tcp(mss(1460), { v6 });
    const metadata = { offload: OFFLOAD_NEEDS_CSUM, csumStart: header - 20, csumOffset: 16 };
    const got = pass(frame, metadata);
    t.deepEqual(got.slice(header - 4, header - 2), frame.slice(header - 4, header - 2));
    t.is((got[header + 2] << 8) | got[header + 3], v6 ? 1390 : 1410);
    rig.finish(t);
  });

  test(`${family}, property: whatever the options are, checksums stay right and nothing else changes`, (t) => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 40 }), fc.nat(1), (options, pad) => {
        const { pass, rig } = clampRig({ network: 600 });
        const frame = tcp(options, { v6, pad });
        const got = pass(frame);
        t.true(sound(got, v6));
        const changed = [...got.keys()].filter((i) => got[i] !== frame[i]);
        t.true(changed.length <= 4);
        rig.finish(t);
      }),
    );
  });
}

test('what is no TCP passes', (t) => {
  const { pass, rig } = clampRig();
  const udp = framed({ protocol: 17 }, new Uint8Array(60).fill(2));
  t.deepEqual(pass(udp), udp);
  t.is(pass(tcp(mss(1460)).slice(0, 50)).length, 50);
  const fragment = framed({ protocol: TCP, fragment: 4 }, new Uint8Array(60).fill(2));
  t.deepEqual(pass(fragment), fragment);
  rig.finish(t);
});
