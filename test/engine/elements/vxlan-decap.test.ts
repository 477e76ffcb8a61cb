import test from 'ava';
import { REMOTE } from '../../../engine/memory/frames.js';
import { CARRY_VLAN, LEARN, PEERS_ONLY } from '../../../engine/tables/domains.js';
import { decapRig, edit, mend } from '../../support/decap.js';
import {
  be16,
  concat,
  ethernet,
  ip,
  ipv4,
  LOCAL_V4,
  LOCAL_V6,
  payload,
  REMOTE_V4,
  REMOTE_V6,
  udp,
  udpFrame,
  vxlan,
} from '../../support/frames.js';

const INNER = udpFrame(1234, { size: 64 });

for (const v6 of [false, true]) {
  const over = v6 ? 'IPv6' : 'IPv4';
  const source = v6 ? REMOTE_V6 : REMOTE_V4;
  const header = v6 ? 40 : 20;
  const vxlanAt = 14 + header + 8;
  const sound = vxlan({ source }, INNER);

  test(`VXLAN 4: a packet over ${over} gives its frame, its domain and its VTEP`, (t) => {
    const d = decapRig({ v6 });
    t.like(d.inner(sound, { mark: 9 }), { bytes: INNER, domain: 3, ingress: REMOTE, mark: 9, offload: 0 });
    t.is(d.count('frames'), 1);
    t.is(d.count('bytes'), sound.length);
    t.is(d.count('vteps-learned'), 0);
    t.deepEqual(d.drops(), {});
    d.rig.finish(t);
  });

  test(`VXLAN 4: a new source over ${over} becomes a VTEP, found again and seen`, (t) => {
    const d = decapRig({ v6, configured: false });
    d.rig.context.setTime(5000);
    const other = v6 ? '2001:db8::99' : '192.0.2.99';
    for (const [i, from] of [source, other, source, source, other].entries())
      t.is(d.inner(vxlan({ source: from }, INNER)).ingress, REMOTE | [0, 1, 0, 0, 1][i]);
    t.is(d.count('vteps-learned'), 2);
    t.is(d.vteps.learned, 2);
    t.deepEqual([...d.vteps.address(1)], [...ip(other)]);
    t.is(d.vteps.seen[0], 5);
    d.rig.context.setTime(9000);
    d.inner(sound);
    t.is(d.vteps.seen[0], 9);
    t.is(d.vteps.seen[1], 5);
    d.rig.finish(t);
  });

  test(`a full VTEP table over ${over}: counted, known VTEPs still heard`, (t) => {
    const d = decapRig({ v6, capacity: 2 });
    const from = (n: number) => vxlan({ source: v6 ? `2001:db8::5:${n}` : `192.0.2.5${n}` }, INNER);
    t.deepEqual(
      [0, 1, 2, 1, 0].map((n) => d.verdict(from(n))),
      ['passed', 'vtep-table-full', 'vtep-table-full', 'vtep-table-full', 'passed'],
    );
    t.is(d.verdict(sound), 'passed');
    d.rig.finish(t);
  });

  test(`peers only over ${over}: strangers are refused and not learned`, (t) => {
    const d = decapRig({ v6, flags: LEARN | PEERS_ONLY });
    const stranger = vxlan({ source: v6 ? '2001:db8::66' : '192.0.2.66' }, INNER);
    t.deepEqual(
      [sound, stranger, stranger, sound].map((packet) => d.verdict(packet)),
      ['passed', 'unknown-vtep', 'unknown-vtep', 'passed'],
    );
    t.is(d.vteps.learned, 0);
    // A peer of domain 3 is none of domain 4.
    t.is(d.verdict(vxlan({ source, vni: 0 }, INNER)), 'unknown-vtep');
    d.rig.finish(t);
  });

  test(`VXLAN 8: without the I flag over ${over}: no-vni-flag`, (t) => {
    const d = decapRig({ v6 });
    t.is(d.verdict(edit(sound, vxlanAt, 0)), 'no-vni-flag');
    t.is(d.verdict(edit(sound, vxlanAt, 0xf7)), 'no-vni-flag');
    d.rig.finish(t);
  });

  test(`VXLAN 9: each of the 39 reserved bits over ${over}: ignored, refused when strict`, (t) => {
    const lax = decapRig({ v6 });
    const strict = decapRig({ v6, strict: true });
    const vniBits = (bit: number) => bit >= 32 && bit < 56;
    let reserved = 0;
    for (let bit = 0; bit < 64; bit++) {
      if (bit === 4 || vniBits(bit)) continue; // the I flag, counted from the most significant bit
      reserved++;
      const at = vxlanAt + (bit >>> 3);
      const packet = edit(sound, at, sound[at] | (0x80 >>> (bit & 7)));
      t.is(strict.verdict(packet), 'reserved-bits', `bit ${bit}`);
      t.deepEqual(lax.inner(packet).bytes, INNER, `bit ${bit}`);
    }
    t.is(reserved, 39);
    t.is(strict.verdict(sound), 'passed');
    lax.rig.finish(t);
  });

  test(`VXLAN 10: VNI 0, 0xffffff and unknown ones over ${over}`, (t) => {
    const d = decapRig({ v6 });
    t.is(d.inner(vxlan({ source, vni: 0 }, INNER)).domain, 4);
    t.is(d.inner(vxlan({ source, vni: 0xffffff }, INNER)).domain, 5);
    for (const vni of [1, 43, 0x2a00, 0x2a0000, 0xfffffe])
      t.is(d.verdict(vxlan({ source, vni }, INNER)), 'unknown-vni');
    t.is(d.inner(sound).domain, 3, 'the VNI remembered is the last known one');
    t.deepEqual(d.drops(), { 'unknown-vni': 5 });
    d.rig.finish(t);
  });

  test(`a domain removed over ${over}: its packets are of an unknown VNI`, (t) => {
    const d = decapRig({ v6 });
    d.inner(sound);
    d.domains.remove(3);
    d.decap.invalidate();
    t.is(d.verdict(sound), 'unknown-vni');
    d.domains.set(7, { vni: 42, flags: LEARN, ageing: 0 });
    t.is(d.inner(sound).domain, 7);
    d.rig.finish(t);
  });

  test(`VXLAN 11: UDP checksum over ${over}: zero accepted, right accepted, wrong refused`, (t) => {
    const d = decapRig({ v6 });
    for (const size of [0, 1, 2, 3, 99, 1400]) {
      const inner = udpFrame(5, { size });
      const packet = vxlan({ source, checksum: true }, inner);
      t.deepEqual(d.inner(packet).bytes, inner);
      t.is(d.verdict(edit(packet, packet.length - 1, packet.at(-1)! ^ 1)), 'udp-checksum');
      t.is(d.verdict(edit(packet, vxlanAt - 1, packet[vxlanAt - 1] ^ 0x80)), 'udp-checksum');
    }
    // A port that vouches for it, as a virtio-net header does, is believed.
    const wrong = edit(vxlan({ source, checksum: true }, INNER), vxlanAt - 1, 0x55);
    t.is(d.verdict(wrong, { offload: 2 }), 'passed');
    d.rig.finish(t);
  });

  test(`VXLAN 11: the checksum 0xffff of a sum that came out as zero holds over ${over}`, (t) => {
    const d = decapRig({ v6 });
    const open = vxlan({ source, checksum: true }, edit(INNER, INNER.length - 2, 0, 0));
    const inner = edit(INNER, INNER.length - 2, open[vxlanAt - 2], open[vxlanAt - 1]);
    const packet = vxlan({ source, checksum: true }, inner);
    t.deepEqual(packet.slice(vxlanAt - 2, vxlanAt), Uint8Array.of(0xff, 0xff));
    t.is(d.verdict(packet), 'passed');
    d.rig.finish(t);
  });

  test(`VXLAN 14: a tagged inner frame over ${over} is dropped unless the domain carries tags`, (t) => {
    const tagged = ethernet({ tags: [5], type: 0x0800 }, ipv4({}, udp(1, 2, payload(9))));
    const qinq = edit(tagged, 12, 0x88, 0xa8);
    const d = decapRig({ v6 });
    t.is(d.verdict(vxlan({ source }, tagged)), 'inner-vlan');
    t.is(d.verdict(vxlan({ source }, qinq)), 'inner-vlan');
    const carrying = decapRig({ v6, flags: LEARN | CARRY_VLAN });
    t.deepEqual(carrying.inner(vxlan({ source }, tagged)).bytes, tagged);
    t.deepEqual(carrying.inner(vxlan({ source }, qinq)).bytes, qinq);
    d.rig.finish(t);
  });

  test(`VXLAN 15: an inner frame below 14 bytes over ${over}: inner-runt`, (t) => {
    const d = decapRig({ v6, configured: false });
    for (let size = 0; size < 14; size++)
      t.is(d.verdict(vxlan({ source }, INNER.slice(0, size))), 'inner-runt');
    t.is(d.vteps.learned, 0, 'what is dropped teaches no VTEP');
    t.is(d.verdict(vxlan({ source }, INNER.slice(0, 14))), 'passed');
    d.rig.finish(t);
  });

  test(`VXLAN 15: cut at every length over ${over}: dropped and counted, never passed`, (t) => {
    const d = decapRig({ v6, configured: false });
    for (let length = 0; length < sound.length; length++) {
      const reason = d.verdict(sound.slice(0, length));
      const expected = length < 34 ? 'not-ip' : 'bad-length';
      t.is(reason, expected, `${length} bytes`);
    }
    t.is(d.vteps.learned, 0);
    t.is(d.count('frames'), 0);
    d.rig.finish(t);
  });

  test(`VXLAN 15: lengths that disagree over ${over}: bad-length`, (t) => {
    const d = decapRig({ v6 });
    const udpLength = 14 + header + 4;
    const ipLength = v6 ? 18 : 16;
    const length = (sound[udpLength] << 8) | sound[udpLength + 1];
    for (const wrong of [0, 7, 8, 15, length - 1, length + 1, 0xffff])
      t.is(d.verdict(edit(sound, udpLength, ...be16(wrong))), 'bad-length', `UDP length ${wrong}`);
    for (const wrong of [0, 7, 15, length + (v6 ? 0 : 20) - 1, length + (v6 ? 0 : 20) + 1, 0xffff]) {
      const packet = edit(sound, ipLength, ...be16(wrong));
      t.is(d.verdict(v6 ? packet : mend(packet)), 'bad-length', `IP length ${wrong}`);
    }
    d.rig.finish(t);
  });

  test(`padding behind the packet over ${over} is cut off`, (t) => {
    const d = decapRig({ v6 });
    const tiny = INNER.slice(0, 14);
    for (const padding of [1, 2, 46])
      t.deepEqual(d.inner(concat(vxlan({ source, checksum: true }, tiny), payload(padding))).bytes, tiny);
    d.rig.finish(t);
  });

  test(`VXLAN 16: our own packet come back over ${over}: own-source`, (t) => {
    const d = decapRig({ v6 });
    const own = v6 ? LOCAL_V6 : LOCAL_V4;
    t.is(d.verdict(vxlan({ source: own }, INNER)), 'own-source');
    t.is(d.verdict(vxlan({ source: own, destination: source }, INNER)), 'own-source');
    const capture = decapRig({ v6, addressed: false, configured: false });
    t.is(capture.verdict(vxlan({ source: own }, INNER)), 'passed', 'a capture is nobody’s');
    d.rig.finish(t);
  });

  test(`a foreign destination over ${over}: not-ours, but not in a capture`, (t) => {
    const d = decapRig({ v6 });
    const foreign = v6
      ? ['2001:db8::3', '2001:db8:0:1::1', '2001:db9::1', 'ff02::1', '3001:db8::1', '2001:db8::1:0:1']
      : ['192.0.2.3', '192.0.3.1', '193.0.2.1', '239.1.1.1', '255.255.255.255'];
    for (const destination of foreign)
      t.is(d.verdict(vxlan({ source, destination }, INNER)), 'not-ours', destination);
    const capture = decapRig({ v6, addressed: false });
    for (const destination of foreign)
      t.deepEqual(capture.inner(vxlan({ source, destination }, INNER)).bytes, INNER);
    d.rig.finish(t);
  });

  test(`group and unspecified sources over ${over}: bad-outer-source`, (t) => {
    const d = decapRig({ v6, configured: false });
    const bad = v6
      ? ['ff02::1', 'ff0e::1', '::', '::ffff:c000:202']
      : ['224.0.0.1', '239.255.0.1', '255.255.255.255', '240.0.0.1', '0.0.0.0'];
    for (const from of bad)
      t.is(
        d.verdict(vxlan({ source: from, destination: v6 ? LOCAL_V6 : LOCAL_V4 }, INNER)),
        'bad-outer-source',
        from,
      );
    t.is(d.vteps.learned, 0);
    d.rig.finish(t);
  });

  test(`the other family over ${over}: not-ours, and never a VTEP`, (t) => {
    // The last 32 bits of the local IPv6 address look like an IPv4 one, and an IPv4 one mapped into IPv6 is equal.
    const d = decapRig({ v6, local: v6 ? '2001:db8::c000:201' : LOCAL_V4, configured: false });
    const other = v6
      ? vxlan({ source: REMOTE_V4, destination: '192.0.2.1' }, INNER)
      : vxlan({ source: REMOTE_V6, destination: '::ffff:c000:201' }, INNER);
    t.is(d.verdict(other), 'not-ours');
    t.is(d.vteps.learned, 0);
    d.rig.finish(t);
  });

  test(`another UDP port, another protocol, a fragment over ${over}`, (t) => {
    const d = decapRig({ v6 });
    t.is(d.verdict(vxlan({ source, port: 4790 }, INNER)), 'not-vxlan-port');
    t.is(d.verdict(vxlan({ source, port: 0xb512 }, INNER)), 'not-vxlan-port');
    for (const protocol of [1, 6, 50, 58])
      t.is(d.verdict(vxlan({ source, ipv4: { protocol }, ipv6: { next: protocol } }, INNER)), 'not-udp');
    if (v6) t.is(d.verdict(vxlan({ source, ipv6: { next: 44 } }, INNER)), 'fragment');
    else {
      for (const fragment of [0x2000, 0x0001, 0x1fff, 0x3fff, 0x0100, 0x6000])
        t.is(d.verdict(vxlan({ source, ipv4: { fragment } }, INNER)), 'fragment', fragment.toString(16));
      for (const fragment of [0, 0x4000, 0x8000])
        t.is(d.verdict(vxlan({ source, ipv4: { fragment } }, INNER)), 'passed', fragment.toString(16));
    }
    d.rig.finish(t);
  });

  test(`what is not IP or of another version over ${over}`, (t) => {
    const d = decapRig({ v6 });
    t.is(d.verdict(edit(sound, 12, 0x08, 0x06)), 'not-ip');
    t.is(d.verdict(edit(sound, 12, 0x81, 0x00)), 'not-ip');
    for (let version = 0; version < 16; version++) {
      const packet = edit(sound, 14, (version << 4) | (sound[14] & 15));
      const expected = version === (v6 ? 6 : 4) ? 'passed' : 'bad-ip-header';
      t.is(d.verdict(v6 ? packet : mend(packet)), expected);
    }
    d.rig.finish(t);
  });

  for (const inner6 of [false, true]) {
    test(`VXLAN 7: the decapsulation matrix of ECN, ${inner6 ? 'IPv6' : 'IPv4'} in ${over} (RFC 6040, figure 4)`, (t) => {
      const d = decapRig({ v6 });
      // Row: inner Not-ECT, ECT(1), ECT(0), CE; column: outer the same. -1: drop.
      const matrix = [
        [0, 0, 0, -1],
        [1, 1, 1, 3],
        [2, 1, 2, 3],
        [3, 3, 3, 3],
      ];
      for (const [ecn, row] of matrix.entries()) {
        for (const [outer, expected] of row.entries()) {
          for (const dscp of [0, 0xb8, 0xfc]) {
            const inner = udpFrame(1, { v6: inner6, tos: dscp | ecn });
            const packet = vxlan({ source, tos: (dscp ^ 0x24) | outer }, inner);
            if (expected < 0) {
              t.is(d.verdict(packet), 'ecn');
              continue;
            }
            const want = udpFrame(1, { v6: inner6, tos: dscp | expected });
            t.deepEqual(
              d.inner(packet).bytes,
              want,
              `inner ${ecn} outer ${outer}: checksum and all else right`,
            );
          }
        }
      }
      d.rig.finish(t);
    });
  }

  test(`VXLAN 7: CE on a frame without ECN field over ${over} changes nothing`, (t) => {
    const d = decapRig({ v6 });
    const frames = [
      ethernet({ type: 0x0806 }, payload(28, 2)),
      ethernet({ type: 0x0800 }, Uint8Array.of(0x45)),
      ethernet({ type: 0x0800 }, payload(19, 0x45)),
      ethernet({ type: 0x86dd }, payload(39, 0x60)),
    ];
    for (const inner of frames) t.deepEqual(d.inner(vxlan({ source, tos: 3 }, inner)).bytes, inner);
    d.rig.finish(t);
  });

  test(`any bit flipped over ${over} never crashes, and is either passed or counted`, (t) => {
    const packet = vxlan({ source, checksum: true }, udpFrame(3, { size: 20 }));
    const d = decapRig({ v6, configured: false, capacity: 512 });
    let passed = 0;
    for (let bit = 0; bit < packet.length * 8; bit++) {
      const verdict = d.verdict(edit(packet, bit >>> 3, packet[bit >>> 3] ^ (1 << (bit & 7))));
      if (verdict === 'passed') passed++;
      // Behind the IP header the UDP checksum finds every single flip but the one of the port, seen before.
      if (bit >= (14 + header) * 8) t.not(verdict, 'passed', `bit ${bit}`);
      else if (!v6 && bit >= 14 * 8) t.not(verdict, 'passed', `bit ${bit}`);
    }
    // The outer Ethernet addresses are the kernel's business; over IPv6 so are flow label, class and hop limit.
    t.is(passed, 12 * 8 + (v6 ? 4 + 24 + 8 : 0));
    d.rig.finish(t);
  });

  test(`a partial checksum of the outer UDP header over ${over} ends with the outer header`, (t) => {
    const d = decapRig({ v6 });
    const metadata = { offload: 1, csumStart: 14 + header, csumOffset: 6 };
    const caught = d.inner(edit(sound, 14 + header + 6, 0x12, 0x34), metadata);
    t.deepEqual(caught.bytes, INNER);
    t.is(caught.offload & 1, 0, 'nothing is left to be finished');
    d.rig.finish(t);
  });
}
