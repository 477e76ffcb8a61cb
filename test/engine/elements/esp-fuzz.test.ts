/** Packets of somebody who wishes us ill: nothing but what a peer sealed is delivered, and nothing is lost count of. */
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { FrameMemory, REMOTE, SMALL_CAPACITY, SMALL_STRIDE } from '../../../engine/memory/frames.js';
import {
  datagram,
  type EspRig,
  edit,
  espAt,
  espRig,
  FORMS,
  type Form,
  frontOf,
  join,
  makeEsp,
  outerEsp,
  outerIp,
  plainPacket,
  superFrame,
} from '../../support/esp.js';
import { payload } from '../../support/frames.js';

const sum = (counts: Record<string, number>): number => Object.values(counts).reduce((a, b) => a + b, 0);
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

/** Bytes of the outer header that nobody vouches for: a packet changed there is delivered, with the change in it. */
function unprotected(form: Form, at: number): boolean {
  const { v6, port } = form;
  if (at < 12) return true; // both MAC addresses
  // Over IPv6: traffic class and flow label behind the version, and hop limit. Of IPv4 a checksum knows all.
  if (v6 && ((at > 14 && at < 18) || at === 21)) return true;
  const udp = frontOf(form);
  // Source port and checksum of UDP.
  return port !== 0 && [udp, udp + 1, udp + 6, udp + 7].includes(at);
}

type Mutation = { at: number; value: number } | { cut: number } | { more: Uint8Array };

function mutate(bytes: Uint8Array, mutations: readonly Mutation[]): Uint8Array {
  let result = bytes;
  for (const one of mutations) {
    if ('cut' in one) result = result.slice(0, Math.max(0, result.length - one.cut));
    else if ('more' in one) result = join(result, one.more);
    else if (result.length > 0) result = edit(result, one.at % result.length, one.value);
  }
  return result;
}

/** Mostly none, so that most packets come as far as the ESP header. */
const outerMutations: fc.Arbitrary<readonly Mutation[]> = fc.oneof(
  { weight: 4, arbitrary: fc.constant([]) },
  { weight: 1, arbitrary: fc.array(fc.record({ at: fc.nat(70), value: fc.nat(255) }), { maxLength: 2 }) },
  { weight: 1, arbitrary: fc.array(fc.record({ cut: fc.nat(60) }), { maxLength: 1 }) },
);

for (const form of FORMS) {
  for (const esn of [false, true])
    test(`${form.name}${esn ? ' with ESN' : ''}: every byte flipped in turn`, (t) => {
      const b = espRig({ form, esn, last: 1000 });
      const content = datagram(40);
      const packet = b.make(1010, { content });
      let tried = 0;
      for (let at = 0; at < packet.length; at++) {
        if (unprotected(form, at)) continue;
        for (const flip of [1, 2, 4, 8, 16, 32, 64, 128, 255]) {
          // The traffic class of IPv6 begins in the byte of the version.
          if (form.v6 && at === 14 && flip < 16) continue;
          t.deepEqual(b.open([edit(packet, at, packet[at] ^ flip)]), [], `byte ${at}, ${flip}`);
          t.is(sum(b.decryptDrops()), ++tried);
        }
      }
      t.true(tried > (packet.length - espAt(form)) * 9);
      t.is(b.state.last(b.inbound().slot), 1000, 'nothing has moved the window');
      t.is(b.state.packets[b.inbound().slot], 0);
      t.deepEqual(b.open([packet]), [outerIp(form, 17, content)]);
      b.finish(t);
    });

  test(`${form.name}: what is changed where nobody vouches for it changes nothing behind the outer header`, (t) => {
    const b = espRig({ form });
    const content = datagram(40);
    let sequence = 0;
    for (let at = 0; at < espAt(form); at++) {
      if (!unprotected(form, at)) continue;
      const packet = b.make(++sequence, { content });
      const [opened] = b.open([edit(packet, at, packet[at] ^ 0x18)]);
      t.deepEqual(opened.slice(frontOf(form)), content);
    }
    t.is(sequence, 12 + (form.v6 ? 4 : 0) + (form.port === 0 ? 0 : 4));
    b.finish(t);
  });

  test(`${form.name}: cut at every length, and lengthened`, (t) => {
    const b = espRig({ form });
    const packet = b.make(1);
    for (let length = 0; length < packet.length; length++) t.deepEqual(b.open([packet.slice(0, length)]), []);
    const esp = makeEsp(b.inbound(), { sequence: 1 }, datagram(20));
    for (let length = 0; length < esp.length; length++)
      t.deepEqual(b.open([outerEsp(form, esp.slice(0, length))]), []);
    for (let more = 1; more < 40; more++) t.deepEqual(b.open([outerEsp(form, join(esp, payload(more)))]), []);
    t.is(sum(b.decryptDrops()), packet.length + esp.length + 39);
    t.is(b.open([packet]).length, 1);
    b.finish(t);
  });

  test(`property, ${form.name}: mutated packets, noise and super-frames of both`, (t) => {
    const b = espRig({ form, esn: true });
    const authentic = new Set<string>();
    let sequence = 0;
    const mutation = fc.oneof(
      fc.record({ at: fc.nat(200), value: fc.nat(255) }),
      fc.record({ cut: fc.nat(200) }),
      fc.record({ more: fc.uint8Array({ maxLength: 30 }) }),
    );
    const noise = fc.uint8Array({ maxLength: 200 });
    const kind = fc.constantFrom('sealed', 'mutated', 'mutated', 'mutated', 'esp noise', 'noise');
    const one = fc.record({ kind, size: fc.nat(60), mutations: fc.array(mutation, { maxLength: 4 }), noise });
    const frame = fc.record({
      list: fc.array(one, { minLength: 1, maxLength: 5 }),
      gso: fc.option(fc.nat(300)),
      offload: fc.constantFrom(0, 0, 1, 2, 0x501, 0x101),
    });
    const bytesOf = ({
      kind,
      size,
      mutations,
      noise: bytes,
    }: typeof one extends fc.Arbitrary<infer T> ? T : never) => {
      const content = datagram(size, sequence);
      const esp = makeEsp(b.inbound(), { sequence: ++sequence }, content);
      if (kind === 'noise') return bytes;
      if (kind === 'esp noise') return join(esp.slice(0, 8), bytes);
      authentic.add(hex(content));
      return kind === 'sealed' ? esp : mutate(esp, mutations);
    };
    let delivered = 0;
    fc.assert(
      fc.property(frame, outerMutations, ({ list, gso, offload }, outer) => {
        const packets = list.map(bytesOf);
        const { bytes } = superFrame(form, packets);
        const before = sum(b.decryptDrops());
        const damaged = mutate(bytes, outer);
        const opened = b.open([damaged], { offload, gsoSize: gso ?? packets[0].length });
        for (const packet of opened) {
          const content = hex(packet.slice(14 + (form.v6 ? 40 : (packet[14] & 15) * 4)));
          t.true(authentic.delete(content), 'delivered, and not sealed by the peer or a second time');
        }
        delivered += opened.length;
        const counted = sum(b.decryptDrops()) - before + opened.length;
        if (offload < 0x100) t.is(counted, 1);
        else t.true(counted >= 1);
        t.is(b.rig.memory.inUse, 0);
      }),
      { numRuns: 3000 },
    );
    t.true(delivered > 100, `${delivered} delivered`);
    t.is(b.rig.counter('esp-decrypt', 'frames'), delivered);
    b.finish(t);
  });

  test(`property, ${form.name}: a trailer is believed when it is right, whatever it holds`, (t) => {
    const b = espRig({ form, window: 0 });
    const trailer = fc.oneof(
      fc.tuple(fc.nat(255), fc.constantFrom(17, 17, 17, 59, 4, 6, 0, 255)),
      fc.tuple(fc.nat(12), fc.constantFrom(17, 59)),
    );
    const plain = fc.tuple(fc.uint8Array({ maxLength: 280 }), fc.boolean(), trailer);
    fc.assert(
      fc.property(plain, ([bytes, monotonic, [padLength, next]]) => {
        const text = Uint8Array.from(bytes);
        if (monotonic)
          for (let k = 0; k < padLength && k < text.length; k++) text[text.length - 1 - k] = padLength - k;
        const padding = text.slice(Math.max(0, text.length - padLength));
        const sound =
          padLength + 8 <= text.length &&
          next === 17 &&
          padding.every((byte, k) => byte === ((k + 1) & 0xff));
        const expected = sound ? 'passed' : next === 59 ? 'dummy' : 'bad-trailer';
        const packet = b.make(1, { content: text, padding: new Uint8Array(0), padLength, next });
        t.is(b.verdicts(packet)[0], expected);
      }),
      { numRuns: 1500 },
    );
    b.finish(t);
  });

  test(`property, ${form.name}: what is sealed comes out at the other end, however it is disordered and doubled`, (t) => {
    const scene = fc.record({
      sizes: fc.array(fc.nat(1400), { minLength: 1, maxLength: 60 }),
      order: fc.array(fc.nat(200), { minLength: 60, maxLength: 60 }),
      doubles: fc.array(fc.nat(59), { maxLength: 20 }),
      esn: fc.boolean(),
      icv: fc.constantFrom<8 | 12 | 16>(8, 12, 16),
      last: fc.constantFrom(0, 2 ** 32 - 70, 2 ** 32 - 30),
    });
    fc.assert(
      fc.property(scene, ({ sizes, order, doubles, esn, icv, last: from }) => {
        const last = esn ? from : 0;
        const common = { form, esn, icv, last, window: 64, checksum: true };
        const [a, b] = [espRig(common), espRig({ ...common, mirrored: true })];
        const packets = sizes.map((size, k) => plainPacket(form, size, { first: k }));
        a.seal(packets);
        const sealed = a.out.take();
        const indices = [...sealed.keys(), ...doubles.filter((k) => k < sealed.length)];
        indices.sort((x, y) => order[x] - order[y]);
        const opened = b.open(indices.map((k) => sealed[k]));
        const first = [...new Set(indices)];
        t.deepEqual(
          opened,
          first.map((k) => packets[k]),
        );
        t.is(b.refused(b.inbound())['replayed'] ?? 0, indices.length - first.length);
        a.finish(t);
        b.finish(t);
      }),
      { numRuns: 40 },
    );
  });
}

test('property: whatever is put into esp-encrypt leaves sealed or is counted', (t) => {
  const rigs: EspRig[] = FORMS.map((form) =>
    espRig({ form, peers: 2, ...(form.port === 0 ? {} : { linked: [1] }) }),
  );
  const frame = fc.record({
    bytes: fc.uint8Array({ maxLength: 300 }),
    dest: fc.constantFrom(REMOTE, REMOTE | 1, REMOTE | 2, REMOTE | 3),
    offload: fc.constantFrom(0, 0, 0, 0, 1, 0x501),
  });
  fc.assert(
    fc.property(fc.nat(3), fc.array(frame, { minLength: 1, maxLength: 30 }), (n, list) => {
      const a = rigs[n];
      const before = sum(a.encryptDrops());
      const sent = a.rig.counter('esp-encrypt', 'frames');
      a.seal(
        list.map(({ bytes }) => bytes),
        (k) => ({ dest: list[k].dest, offload: list[k].offload }),
      );
      const left = a.rig.counter('esp-encrypt', 'frames') - sent;
      t.is(left + sum(a.encryptDrops()) - before, list.length);
      t.is(a.out.take().length + a.linked.caught.splice(0).length > 0, left > 0);
      t.is(a.rig.memory.inUse, 0);
    }),
    { numRuns: 500 },
  );
  for (const a of rigs) a.release();
  rigs[0].rig.finish(t);
});

test('sealing the longest frames of a slot writes into no other slot', (t) => {
  for (const form of FORMS)
    for (const icv of [8, 16] as const) {
      const memory = new FrameMemory({ small: 3, large: 0 });
      const a = espRig({ form, icv, memory });
      const frames = [memory.allocSmall(), memory.allocSmall(), memory.allocSmall()];
      const alignment = form.v6 ? 2 : 6;
      // Behind the tunnel header of VXLAN, whose 50 or 70 bytes lie in the headroom.
      const inner = SMALL_CAPACITY;
      const packet = plainPacket(form, inner - 14);
      memory.u8.fill(0xa5, 0, 3 * SMALL_STRIDE);
      const middle = frames[1];
      memory.off[middle] += inner - packet.length;
      memory.off[middle] -= (memory.off[middle] - alignment) & 7;
      memory.len[middle] = packet.length;
      memory.u8.set(packet, memory.off[middle]);
      memory.dest[middle] = REMOTE;
      memory.offload[middle] = 0;
      a.rig.feed(a.encrypt, middle);
      a.flush();
      t.is(a.out.caught.length, 1);
      untouched(t, memory, 0, SMALL_STRIDE);
      untouched(t, memory, 2 * SMALL_STRIDE, 3 * SMALL_STRIDE);
      memory.free(frames[0]);
      memory.free(frames[2]);
      a.finish(t);
    }
});

function untouched(t: ExecutionContext, memory: FrameMemory, from: number, to: number): void {
  t.true(
    memory.u8.subarray(from, to).every((byte) => byte === 0xa5),
    `bytes ${from} to ${to}`,
  );
}
