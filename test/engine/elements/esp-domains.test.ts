/**
 * Encryption as a property of a domain: its frames leave through ESP and no other way, and nothing is taken for it
 * that did not come through ESP; nor through ESP what belongs to another.
 */
import test from 'ava';
import { createVxlanDecap } from '../../../engine/elements/vxlan-decap.js';
import { createVxlanEncap } from '../../../engine/elements/vxlan-encap.js';
import { Batch } from '../../../engine/graph.js';
import { FLOOD_VTEPS, REMOTE } from '../../../engine/memory/frames.js';
import { Domains, ENCRYPTED, LEARN, PEERS_ONLY } from '../../../engine/tables/domains.js';
import {
  SAW_ESP_FOR_PLAIN,
  SAW_NO_ASSOCIATION,
  SAW_PLAIN_FOR_ENCRYPTED,
  Vteps,
} from '../../../engine/tables/vteps.js';
import {
  type EspRigOptions,
  edit,
  espPackets,
  espRig,
  FORMS,
  type Form,
  peerAddress,
  readEsp,
  UDP_V4,
} from '../../support/esp.js';
import {
  dropped,
  ip,
  LOCAL_V4,
  LOCAL_V6,
  type Metadata,
  Rig,
  station,
  udpFrame,
  udpSum,
  vxlan,
} from '../../support/frames.js';

/** VNI 42 is domain 3 and encrypted, VNI 43 is domain 4 and is not. */
const [SECRET, OPEN] = [3, 4];
const FRAME = udpFrame(1234, { size: 64 });

function domainsWith(vteps: readonly number[]): Domains {
  const domains = new Domains();
  domains.set(SECRET, { vni: 42, flags: LEARN | ENCRYPTED, ageing: 300 });
  domains.set(OPEN, { vni: 43, flags: LEARN, ageing: 300 });
  for (const domain of [SECRET, OPEN]) domains.setVteps(domain, vteps);
  return domains;
}

/** `vxlan-encap` with all three ways out, the secured one through `esp-encrypt`, to three VTEPs. */
function outRig(o: EspRigOptions & { readonly form: Form }) {
  const esp = espRig({ peers: 3, checksum: true, ...o });
  const { rig, vteps } = esp;
  const [out, linked] = [rig.sink(), rig.sink()];
  const [toOut, toLinked, secured] = [new Batch(out), new Batch(linked), new Batch(esp.encrypt)];
  const domains = domainsWith([0, 1, 2]);
  const options = { v6: o.form.v6, checksum: false };
  const encap = createVxlanEncap(rig.context, domains, vteps, options, toOut, toLinked, secured);
  return {
    ...esp,
    domains,
    plain: out,
    plainLinked: linked,
    send(metadata: readonly Metadata[]): void {
      rig.feed(encap, ...metadata.map((one) => rig.put(FRAME, one)));
      for (const batch of [toOut, toLinked, secured]) batch.flush();
      esp.flush();
    },
    encapDrops: () => dropped(encap.drops),
  };
}

/** What a sealed packet of domain 42 must be when it is opened: the VXLAN packet to its VTEP, behind the IP header. */
function vxlanOf(packet: Uint8Array): { readonly vni: number; readonly inner: Uint8Array } {
  return { vni: (packet[12] << 16) | (packet[13] << 8) | packet[14], inner: packet.slice(16) };
}

for (const form of FORMS) {
  const { name, v6 } = form;

  test(`${name}: a frame of an encrypted domain leaves through ESP, one of another does not`, (t) => {
    const o = outRig({ form });
    o.vteps.setLink(1, station(8), station(9));
    o.send([
      { domain: SECRET, dest: REMOTE },
      { domain: OPEN, dest: REMOTE },
      { domain: SECRET, dest: REMOTE | 1 },
      { domain: OPEN, dest: REMOTE | 1 },
    ]);
    t.deepEqual(
      o.plain.caught.splice(0).map(({ domain }) => domain),
      [OPEN],
    );
    t.deepEqual(
      o.plainLinked.caught.splice(0).map(({ domain }) => domain),
      [OPEN],
    );
    const sealed = o.out.caught.splice(0);
    t.deepEqual(
      sealed.map(({ domain, dest }) => [domain, dest]),
      [
        [SECRET, REMOTE],
        [SECRET, REMOTE | 1],
      ],
    );
    for (const [peer, caught] of sealed.entries()) {
      const { content } = readEsp(o.outbound(peer), espPackets(form, caught)[0]);
      t.deepEqual(vxlanOf(content), { vni: 42, inner: FRAME });
      // Over IPv6 the inner checksum is there though the port would compute it for plain packets: it cannot see this.
      const ends = [ip(v6 ? LOCAL_V6 : LOCAL_V4), ip(peerAddress(form, peer))] as const;
      if (v6) t.is(udpSum(...ends, content), 0xffff);
    }
    t.deepEqual([o.encapDrops(), o.encryptDrops()], [{}, {}]);
    o.finish(t);
  });

  test(`${name}: a flooded frame is sealed for each VTEP under its own association`, (t) => {
    const o = outRig({ form });
    o.send([
      { domain: SECRET, dest: FLOOD_VTEPS },
      { domain: SECRET, dest: FLOOD_VTEPS },
    ]);
    const sealed = o.out.caught.splice(0);
    t.is(sealed.length, 6);
    const sequences: number[][] = [[], [], []];
    for (const caught of sealed) {
      const peer = caught.dest & 0xffff;
      const [esp] = espPackets(form, caught);
      const { content, low } = readEsp(o.outbound(peer), esp);
      sequences[peer].push(low);
      t.deepEqual(vxlanOf(content), { vni: 42, inner: FRAME });
      const at = v6 ? 38 : 30;
      t.deepEqual(caught.bytes.slice(at, at + (v6 ? 16 : 4)), ip(peerAddress(form, peer)));
      for (const other of [0, 1, 2]) if (other !== peer) t.throws(() => readEsp(o.outbound(other), esp));
    }
    t.deepEqual(sequences, [
      [1, 2],
      [1, 2],
      [1, 2],
    ]);
    t.deepEqual([o.plain.take(), o.plainLinked.take()], [[], []]);
    o.finish(t);
  });

  test(`${name}: without an association for one of three VTEPs its copy is dropped, counted and told`, (t) => {
    const o = outRig({ form });
    o.use(o.intents.filter(({ slot }) => slot !== o.outbound(1).slot));
    const told: [number, number][] = [];
    for (let round = 0; round < 3; round++) {
      o.send([{ domain: SECRET, dest: FLOOD_VTEPS }]);
      o.vteps.tell((vtep, saw) => told.push([vtep, saw]));
      t.deepEqual(
        o.out.caught
          .splice(0)
          .map(({ dest }) => dest)
          .sort(),
        [REMOTE, REMOTE | 2],
      );
    }
    t.deepEqual(o.encryptDrops(), { 'no-association': 3 });
    t.deepEqual(told, [[1, SAW_NO_ASSOCIATION]]);
    t.deepEqual([o.plain.take(), o.plainLinked.take()], [[], []]);
    // Once there is one, the copy leaves.
    o.use(o.intents);
    o.send([{ domain: SECRET, dest: FLOOD_VTEPS }]);
    t.is(o.out.take().length, 3);
    o.finish(t);
  });

  test(`${name}: without any association nothing of an encrypted domain leaves by any way`, (t) => {
    const o = outRig({ form });
    o.use([]);
    for (const n of [0, 1, 2]) o.vteps.setLink(n, station(8), station(9));
    o.send([
      { domain: SECRET, dest: REMOTE },
      { domain: SECRET, dest: FLOOD_VTEPS },
      { domain: SECRET, dest: REMOTE | 2 },
    ]);
    t.deepEqual(
      [o.out, o.linked, o.plain, o.plainLinked].map((sink) => sink.take().length),
      [0, 0, 0, 0],
    );
    t.deepEqual(o.encryptDrops(), { 'no-association': 5 });
    o.finish(t);
  });
}

for (const v6 of [false, true]) {
  const over = v6 ? 'IPv6' : 'IPv4';
  const local = { address: ip(v6 ? LOCAL_V6 : LOCAL_V4), port: 4789, ttl: 64 };
  const form = FORMS.find((one) => one.v6 === v6 && one.port === 0)!;

  test(`without a way through ESP a frame of an encrypted domain does not leave over ${over}`, (t) => {
    const rig = new Rig();
    const vteps = new Vteps(4);
    const members = [0, 1, 2].map((n) => vteps.add(ip(peerAddress(form, n)), true, local, 0));
    vteps.setLink(1, station(8), station(9));
    const domains = domainsWith(members);
    const [out, linked] = [rig.sink(), rig.sink()];
    const [toOut, toLinked] = [new Batch(out), new Batch(linked)];
    const encap = createVxlanEncap(rig.context, domains, vteps, { v6, checksum: true }, toOut, toLinked);
    const send = (metadata: Metadata): void => {
      rig.feed(encap, rig.put(FRAME, metadata));
      toOut.flush();
      toLinked.flush();
    };
    send({ domain: SECRET, dest: REMOTE });
    send({ domain: SECRET, dest: REMOTE | 1 });
    send({ domain: SECRET, dest: FLOOD_VTEPS });
    t.deepEqual([out.take(), linked.take()], [[], []]);
    t.deepEqual(dropped(encap.drops), { 'not-encrypted': 5 });
    send({ domain: OPEN, dest: FLOOD_VTEPS });
    t.deepEqual([out.take().length, linked.take().length], [2, 1]);
    // From one batch to the next, as after a reload.
    domains.flags[OPEN] |= ENCRYPTED;
    domains.flags[SECRET] &= ~ENCRYPTED;
    send({ domain: OPEN, dest: REMOTE });
    send({ domain: SECRET, dest: REMOTE });
    t.deepEqual(
      out.caught.splice(0).map(({ domain }) => domain),
      [SECRET],
    );
    t.deepEqual(dropped(encap.drops), { 'not-encrypted': 6 });
    rig.finish(t);
  });

  /** The decapsulation of what came plain or was opened, the peer being VTEP 0. */
  function inRig(secured: boolean, flags = LEARN) {
    const rig = new Rig();
    const vteps = new Vteps(4);
    const known = vteps.add(ip(peerAddress(form, 0)), true, local, 0);
    const domains = domainsWith([known]);
    for (const domain of [SECRET, OPEN]) domains.flags[domain] = (domains.flags[domain] & ENCRYPTED) | flags;
    const sink = rig.sink();
    const out = new Batch(sink);
    const options = { local, addressed: true, strict: false, secured };
    const decap = createVxlanDecap(rig.context, domains, vteps, options, out);
    return {
      rig,
      domains,
      vteps,
      decap,
      receive(...packets: readonly Uint8Array[]): number[] {
        rig.feed(decap, ...packets.map((bytes) => rig.put(bytes, { alignment: v6 ? 2 : 6 })));
        out.flush();
        return sink.caught.splice(0).map(({ domain }) => domain);
      },
      told(): [number, number][] {
        const told: [number, number][] = [];
        vteps.tell((vtep, saw) => told.push([vtep, saw]));
        return told;
      },
      drops: () => dropped(decap.drops),
    };
  }

  const source = peerAddress(form, 0);
  const secret = vxlan({ source, vni: 42, checksum: v6 }, FRAME);
  const open = vxlan({ source, vni: 43, checksum: v6 }, FRAME);

  test(`plain VXLAN for an encrypted domain from a valid VTEP over ${over}: refused, counted, told once`, (t) => {
    const plain = inRig(false);
    t.deepEqual(plain.receive(secret, open, secret, secret, open), [OPEN, OPEN]);
    t.deepEqual(plain.drops(), { 'plain-for-encrypted': 3 });
    t.deepEqual(plain.told(), [[0, SAW_PLAIN_FOR_ENCRYPTED]]);
    plain.receive(secret);
    t.deepEqual(plain.told(), []);
    t.is(plain.rig.counter('vxlan-decap', 'frames'), 2);
    plain.rig.finish(t);
  });

  test(`VXLAN that came through ESP for a plain domain over ${over}: refused, counted, told once`, (t) => {
    const secured = inRig(true);
    t.deepEqual(secured.receive(open, secret, open, secret, secret), [SECRET, SECRET, SECRET]);
    t.deepEqual(secured.drops(), { 'esp-for-plain': 2 });
    t.deepEqual(secured.told(), [[0, SAW_ESP_FOR_PLAIN]]);
    secured.receive(open);
    t.deepEqual(secured.told(), []);
    t.is(secured.rig.counter('vxlan-decap:esp', 'frames'), 3);
    secured.rig.finish(t);
  });

  test(`strangers over ${over}: a plain packet for an encrypted domain teaches no VTEP`, (t) => {
    const stranger = vxlan({ source: v6 ? '2001:db8::66' : '192.0.2.66', vni: 42, checksum: v6 }, FRAME);
    for (const flags of [LEARN, LEARN | PEERS_ONLY]) {
      const plain = inRig(false, flags);
      t.deepEqual(plain.receive(stranger, secret, stranger), []);
      t.deepEqual(plain.drops(), { 'plain-for-encrypted': 3 });
      t.deepEqual(plain.told(), [[0, SAW_PLAIN_FOR_ENCRYPTED]], 'of nobody but whom we know');
      t.is(plain.vteps.learned, 0);
      plain.rig.finish(t);
    }
  });

  test(`what becomes encrypted over ${over} is refused from the next packet on`, (t) => {
    const [plain, secured] = [inRig(false), inRig(true)];
    t.deepEqual([plain.receive(open), secured.receive(secret)], [[OPEN], [SECRET]]);
    for (const { domains, decap } of [plain, secured]) {
      domains.flags[OPEN] |= ENCRYPTED;
      domains.flags[SECRET] &= ~ENCRYPTED;
      decap.invalidate();
    }
    t.deepEqual([plain.receive(open, secret), secured.receive(secret, open)], [[SECRET], [OPEN]]);
    t.deepEqual([plain.drops(), secured.drops()], [{ 'plain-for-encrypted': 1 }, { 'esp-for-plain': 1 }]);
    plain.rig.finish(t);
    secured.rig.finish(t);
  });

  test(`the checksum of what was opened is not looked at over ${over} (RFC 3948, 3.1.2), that of the rest is`, (t) => {
    const damaged = (vni: number): Uint8Array => {
      const packet = vxlan({ source, vni, checksum: true }, FRAME);
      const at = (v6 ? 54 : 34) + 6;
      return edit(packet, at, packet[at] ^ 0x40);
    };
    const [plain, secured] = [inRig(false), inRig(true)];
    t.deepEqual(plain.receive(damaged(43)), []);
    t.deepEqual(plain.drops(), { 'udp-checksum': 1 });
    t.deepEqual(secured.receive(damaged(42)), [SECRET]);
    plain.rig.finish(t);
    secured.rig.finish(t);
  });
}

test('in and out: what one host seals, the other takes for the encrypted domain and for no other', (t) => {
  for (const form of FORMS) {
    const o = outRig({ form, peers: 1 });
    o.domains.setVteps(SECRET, [0]);
    const there = espRig({ form, mirrored: true });
    const address = ip(peerAddress(form, 0));
    const options = { local: { address, port: 4789, ttl: 64 }, addressed: true, strict: true, secured: true };
    const sink = there.rig.sink();
    const out = new Batch(sink);
    const decap = createVxlanDecap(there.rig.context, domainsWith([0]), there.vteps, options, out);
    o.send([
      { domain: SECRET, dest: REMOTE },
      { domain: SECRET, dest: FLOOD_VTEPS },
    ]);
    const opened = there.open(o.out.take());
    there.rig.feed(decap, ...opened.map((bytes) => there.rig.put(bytes, { alignment: form.v6 ? 2 : 6 })));
    out.flush();
    const caught = sink.caught.splice(0);
    t.deepEqual(
      caught.map(({ bytes, domain, ingress }) => [bytes, domain, ingress]),
      [0, 1].map(() => [FRAME, SECRET, REMOTE]),
    );
    o.finish(t);
    there.finish(t);
  }
});

test('a super-frame from an encrypted domain is not sealed whole: it must be cut before', (t) => {
  const o = outRig({ form: UDP_V4 });
  o.send([{ domain: SECRET, dest: REMOTE, offload: 0x501, gsoSize: 10, csumStart: 34, csumOffset: 6 }]);
  t.deepEqual([o.out.take(), o.plain.take()], [[], []]);
  t.deepEqual(o.encryptDrops(), { 'bad-length': 1 });
  o.finish(t);
});
