import test from 'ava';
import fc from 'fast-check';
import { createVxlanEncap } from '../../../engine/elements/vxlan-encap.js';
import { Batch } from '../../../engine/graph.js';
import { REMOTE } from '../../../engine/memory/frames.js';
import { CARRY_VLAN, LEARN } from '../../../engine/tables/domains.js';
import { Vteps } from '../../../engine/tables/vteps.js';
import { decapRig, edit, mend } from '../../support/decap.js';
import {
  type Caught,
  concat,
  dropped,
  ip,
  type Metadata,
  REMOTE_V4,
  REMOTE_V6,
  udpFrame,
  vxlan,
} from '../../support/frames.js';

const INNER = udpFrame(1234, { size: 64 });

/** Encapsulation at one end, decapsulation at the other. */
function overlay(v6: boolean) {
  const far = decapRig({ v6, configured: false, flags: LEARN | CARRY_VLAN });
  const vteps = new Vteps(4);
  vteps.add(far.local.address, true, { ...far.local, address: ip(v6 ? REMOTE_V6 : REMOTE_V4) }, 0);
  const wire = new Batch(far.decap);
  const { context } = far.rig;
  const encap = createVxlanEncap(context, far.domains, vteps, { v6, checksum: true }, wire);
  return {
    rig: far.rig,
    drops: () => ({ ...dropped(encap.drops), ...far.drops() }),
    pass(bytes: Uint8Array, metadata: Metadata = {}): Caught {
      far.rig.feed(encap, far.rig.put(bytes, { dest: REMOTE, domain: 3, ...metadata }));
      wire.flush();
      far.flush();
      return far.sink.one();
    },
  };
}

for (const v6 of [false, true]) {
  const over = v6 ? 'IPv6' : 'IPv4';

  test(`a super-frame over ${over} goes in and comes out unchanged, metadata and all`, (t) => {
    const o = overlay(v6);
    const inner = udpFrame(9, { size: 60000 });
    for (const hdrLen of [0, 42]) {
      const metadata = { offload: 0x501, gsoSize: 1400, hdrLen, csumStart: 34, csumOffset: 6, mark: 8 };
      t.like(o.pass(inner, metadata), { bytes: inner, domain: 3, ingress: REMOTE, ...metadata });
    }
    t.deepEqual(o.drops(), {});
    o.rig.finish(t);
  });
}

test('property: encapsulation and decapsulation are the identity for any frame', (t) => {
  const overlays = [overlay(false), overlay(true)];
  const anyFrame = fc.oneof(
    fc.uint8Array({ minLength: 14, maxLength: 2000 }),
    fc
      .record({ flow: fc.nat(65535), v6: fc.boolean(), tos: fc.nat(255), size: fc.nat(1500) })
      .map(({ flow, ...options }) => udpFrame(flow, options)),
  );
  fc.assert(
    fc.property(anyFrame, fc.boolean(), fc.constantFrom(0, 2, 4, 6), (bytes, v6, alignment) => {
      t.deepEqual(overlays[Number(v6)].pass(bytes, { alignment }).bytes, bytes);
    }),
    { numRuns: 400 },
  );
  for (const o of overlays) t.deepEqual(o.drops(), {});
  overlays[0].rig.finish(t);
});

test('property: noise, and noise behind a sound beginning, never crash and never leak', (t) => {
  const d = decapRig({ configured: false, capacity: 1000, addressed: false });
  const six = decapRig({ v6: true, configured: false, capacity: 1000, addressed: false });
  const starts = [vxlan({}, INNER), vxlan({ source: REMOTE_V6 }, INNER), new Uint8Array(0)];
  fc.assert(
    fc.property(fc.nat(2), fc.nat(120), fc.uint8Array({ maxLength: 200 }), (which, keep, noise) => {
      const packet = concat(starts[which].slice(0, keep), noise);
      for (const rig of [d, six]) t.truthy(rig.verdict(packet));
      t.is(d.rig.memory.inUse, 0);
    }),
    { numRuns: 1000 },
  );
  d.rig.finish(t);
});

test('IPv4 options of every length are stepped over, a header longer than the packet is refused', (t) => {
  const d = decapRig();
  for (let words = 0; words <= 10; words++) {
    const packet = vxlan({ checksum: true, ipv4: { options: new Uint8Array(words * 4).fill(1) } }, INNER);
    t.deepEqual(d.inner(packet).bytes, INNER, `${words} words of options`);
    t.is(d.verdict(edit(packet, 24, packet[24] ^ 1)), 'ip-checksum');
  }
  const sound = vxlan({}, INNER);
  for (let words = 0; words < 5; words++)
    t.is(d.verdict(mend(edit(sound, 14, 0x40 | words))), 'bad-ip-header', `IHL ${words}`);
  const short = vxlan({}, INNER).slice(0, 60);
  t.is(d.verdict(edit(edit(short, 16, 0, 46), 14, 0x4f)), 'bad-length');
  d.rig.finish(t);
});

test('packets at every even alignment are taken apart alike', (t) => {
  const d = decapRig();
  for (const alignment of [0, 2, 4, 6])
    t.deepEqual(d.inner(vxlan({ checksum: true }, INNER), { alignment }).bytes, INNER);
  d.rig.finish(t);
});

test('sources over IPv6 that differ in one of their four words are four VTEPs, one after the other', (t) => {
  const d = decapRig({ v6: true, configured: false });
  const sources = ['2001:db8::9', '2001:db9::9', '2001:db8:0:1::9', '2001:db8::1:0:9', '2001:db8::8'];
  for (const [i, source] of [...sources, ...sources].entries()) {
    const { ingress } = d.inner(vxlan({ source }, INNER));
    t.is(ingress, REMOTE | (i % 5));
    t.is(d.inner(vxlan({ source: sources[0] }, INNER)).ingress, REMOTE);
  }
  d.rig.finish(t);
});

test('two thousand packets of many VTEPs in one go keep order, domain and VTEP', (t) => {
  const d = decapRig({ configured: false, capacity: 64 });
  const packets = Array.from({ length: 2000 }, (_, i) =>
    vxlan(
      { source: `192.0.2.${10 + ((i * 7) % 50)}`, vni: [42, 0, 0xffffff][i % 3] },
      edit(INNER, 60, i, i >>> 8),
    ),
  );
  for (let i = 0; i < packets.length; i += 500) {
    d.rig.feed(d.decap, ...packets.slice(i, i + 500).map((packet) => d.rig.put(packet, { alignment: 6 })));
    d.flush();
  }
  for (const [i, { bytes, domain, ingress }] of d.sink.caught.entries()) {
    t.is(bytes[60] | (bytes[61] << 8), i);
    t.is(domain, [3, 4, 5][i % 3]);
    t.is(d.vteps.address(ingress & 0xffff)[3], 10 + ((i * 7) % 50));
  }
  t.is(d.sink.take().length, 2000);
  t.is(d.count('vteps-learned'), 50);
  d.rig.finish(t);
});
