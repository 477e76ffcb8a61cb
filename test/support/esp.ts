/**
 * ESP by the book: packets made and read by node:crypto alone (RFC 4303, RFC 4106, RFC 3948), to compare the elements
 * with; and a rig of both elements with associations to peers, so that a test talks about sequence numbers and bytes.
 */
import { createDecipheriv } from 'node:crypto';
import type { ExecutionContext } from 'ava';
import { createEspDecrypt } from '../../engine/elements/esp-decrypt.js';
import { createEspEncrypt } from '../../engine/elements/esp-encrypt.js';
import { Batch, type Consumer } from '../../engine/graph.js';
import type { AssociationIntent } from '../../engine/intent.js';
import { type FrameMemory, REMOTE } from '../../engine/memory/frames.js';
import { AssociationState, associationStateBytes } from '../../engine/tables/association-state.js';
import { Associations } from '../../engine/tables/associations.js';
import { Vteps } from '../../engine/tables/vteps.js';
import { native } from '../../native-bindings/index.js';
import { type EspKey, noise, sealed } from '../native-bindings/support/gcm.js';
import {
  be16,
  type Caught,
  dropped,
  ethernet,
  ip,
  ipv4,
  ipv6,
  LOCAL_V4,
  LOCAL_V6,
  type Metadata,
  payload,
  REMOTE_V4,
  REMOTE_V6,
  Rig,
  station,
  udp,
} from './frames.js';

/** An outer form of ESP: over which IP, and the UDP port it is behind, 0 for none. */
export interface Form {
  readonly name: string;
  readonly v6: boolean;
  readonly port: number;
}

export const FORMS: readonly Form[] = [
  { name: 'protocol 50 over IPv4', v6: false, port: 0 },
  { name: 'UDP over IPv4', v6: false, port: 4500 },
  { name: 'protocol 50 over IPv6', v6: true, port: 0 },
  { name: 'UDP over IPv6', v6: true, port: 4500 },
];
export const [ESP_V4, UDP_V4, ESP_V6, UDP_V6] = FORMS;

/** Bytes of Ethernet and IP header, and of all that is in front of the ESP header. */
export const frontOf = ({ v6 }: Form): number => (v6 ? 54 : 34);
export const espAt = (form: Form): number => frontOf(form) + (form.port === 0 ? 0 : 8);

export const join = (...parts: readonly Uint8Array[]): Uint8Array => new Uint8Array(Buffer.concat(parts));
const be32 = (value: number): Uint8Array => be16(Math.floor(value / 65536), value);

/** A copy with other bytes at a place. */
export function edit(bytes: Uint8Array, at: number, ...values: readonly number[]): Uint8Array {
  const copy = Uint8Array.from(bytes);
  copy.set(values, at);
  return copy;
}

// --- One packet -------------------------------------------------------------------------------------------------

export interface EspAssociation extends EspKey {
  readonly spi: number;
}

export interface EspOptions {
  /** The high half is authenticated with ESN only. */
  readonly sequence: number;
  readonly next?: number;
  /** In place of 1, 2, 3 … */
  readonly padding?: Uint8Array;
  readonly padLength?: number;
  /** In place of the sequence number. */
  readonly iv?: Uint8Array;
}

/** ESP header, IV, ciphertext and ICV around what is behind the IP header. */
export function makeEsp(under: EspAssociation, o: EspOptions, content: Uint8Array): Uint8Array {
  const { sequence, next = 17 } = o;
  const padding = o.padding ?? Uint8Array.from({ length: -(content.length + 2) & 3 }, (_, i) => i + 1);
  const high = Math.floor(sequence / 2 ** 32);
  const low = sequence % 2 ** 32;
  const header = join(be32(under.spi), be32(low), o.iv ?? join(be32(high), be32(low)));
  const trailer = Uint8Array.of(o.padLength ?? padding.length, next);
  return join(header, sealed(under, header, join(content, padding, trailer), high));
}

export interface OpenedEsp {
  readonly spi: number;
  readonly low: number;
  readonly iv: Uint8Array;
  readonly content: Uint8Array;
  readonly padding: Uint8Array;
  readonly next: number;
}

/**
 * The inverse of `makeEsp`.
 * @param high half of the sequence number.
 * @throws Error when the ICV is wrong.
 */
export function readEsp(under: EspAssociation, packet: Uint8Array, high = 0): OpenedEsp {
  const text = Buffer.from(packet);
  const name = `aes-${under.key.length * 8}-gcm` as 'aes-128-gcm';
  const iv = Buffer.concat([under.salt, text.subarray(8, 16)]);
  const decipher = createDecipheriv(name, under.key, iv, { authTagLength: under.icv });
  const middle = under.esn ? be32(high) : new Uint8Array(0);
  decipher.setAAD(join(text.subarray(0, 4), middle, text.subarray(4, 8)));
  decipher.setAuthTag(text.subarray(text.length - under.icv));
  const plain = join(decipher.update(text.subarray(16, text.length - under.icv)), decipher.final());
  const end = plain.length - 2;
  return {
    spi: text.readUInt32BE(0),
    low: text.readUInt32BE(4),
    iv: packet.slice(8, 16),
    content: plain.slice(0, end - plain[end]),
    padding: plain.slice(end - plain[end], end),
    next: plain[end + 1],
  };
}

export interface OuterOptions {
  readonly source?: string;
  readonly destination?: string;
  readonly tos?: number;
  /** Source port of the UDP header in front of ESP, where there is one. */
  readonly sourcePort?: number;
}

/** Outer Ethernet, IP and perhaps UDP header around ESP; from the peer to us unless told otherwise. */
export function outerEsp(form: Form, content: Uint8Array, o: OuterOptions = {}): Uint8Array {
  const { port } = form;
  const inside = port === 0 ? content : udp(o.sourcePort ?? port, port, content);
  return outerIp(form, port === 0 ? 50 : 17, inside, o);
}

/** Outer Ethernet and IP header around anything. */
export function outerIp(
  { v6 }: Form,
  protocol: number,
  content: Uint8Array,
  o: OuterOptions = {},
): Uint8Array {
  const { source = v6 ? REMOTE_V6 : REMOTE_V4, destination = v6 ? LOCAL_V6 : LOCAL_V4, tos = 0 } = o;
  const packet = v6
    ? ipv6({ source, destination, tos, next: protocol }, content)
    : ipv4({ source, destination, tos, protocol, fragment: 0x4000 }, content);
  return ethernet({ type: v6 ? 0x86dd : 0x0800, to: station(2), from: station(1) }, packet);
}

/** The packet that ESP is put around: from us to the peer, `size` bytes behind its UDP header. */
export function plainPacket(form: Form, size: number, o: OuterOptions & { first?: number } = {}): Uint8Array {
  const { source = form.v6 ? LOCAL_V6 : LOCAL_V4, destination = peerAddress(form, 0) } = o;
  return outerIp(form, 17, datagram(size, o.first), { ...o, source, destination });
}

/** A UDP datagram to the VXLAN port, with `size` bytes behind its header. */
export function datagram(size: number, first = 0): Uint8Array {
  return udp(50000 + (first & 0xff), 4789, payload(size, first));
}

/** A UDP super-frame of ESP packets as a port with UDP_GRO hands it over. */
export function superFrame(
  form: Form,
  packets: readonly Uint8Array[],
  o: OuterOptions = {},
): { readonly bytes: Uint8Array; readonly metadata: Metadata } {
  const bytes = outerEsp(form, join(...packets), o);
  return { bytes, metadata: { offload: 0x501, gsoSize: packets[0].length, hdrLen: espAt(form) } };
}

/** The ESP packets of what `esp-encrypt` pushed: of a super-frame each, as who cuts it finds them. */
export function espPackets(form: Form, { bytes, offload, gsoSize }: Caught): Uint8Array[] {
  const esp = bytes.slice(espAt(form));
  if ((offload & 0xff00) === 0) return [esp];
  return Array.from({ length: Math.ceil(esp.length / gsoSize) }, (_, i) =>
    esp.slice(i * gsoSize, (i + 1) * gsoSize),
  );
}

// --- The rig ----------------------------------------------------------------------------------------------------

/** Address of peer `n`. */
export function peerAddress({ v6 }: Form, n: number): string {
  if (n === 0) return v6 ? REMOTE_V6 : REMOTE_V4;
  return v6 ? `2001:db8::5:${n.toString(16)}` : `198.51.100.${n}`;
}

export interface EspRigOptions {
  readonly form?: Form;
  readonly bits?: 128 | 192 | 256;
  readonly icv?: 8 | 12 | 16;
  readonly esn?: boolean;
  readonly window?: number;
  /** Peers, each with an association in either direction. */
  readonly peers?: number;
  /** Peers whose next hop is known; without a list there is one output for all. */
  readonly linked?: readonly number[];
  /** Last number of every association, both directions. */
  readonly last?: number;
  /** Eight bytes that are xored into the IVs of what is sent. */
  readonly mask?: Uint8Array;
  /** The host at the other end: addresses and directions swapped, the same keys. With one peer only. */
  readonly mirrored?: boolean;
  readonly shared?: boolean;
  readonly checksum?: boolean;
  readonly addressed?: boolean;
  readonly memory?: FrameMemory;
}

/** Slots of the addon that no rig of this process uses. */
const slots = Array.from({ length: 1024 }, (_, slot) => slot);

/** Both elements, with associations of which nothing but the options and the SPIs decides keys and salts. */
export function espRig(o: EspRigOptions = {}) {
  const { form = ESP_V4, bits = 128, icv = 16, esn = false, window = 64, peers = 1, last = 0 } = o;
  const { mirrored = false, shared = false, checksum = false, addressed = true } = o;
  const { v6, port: udpPort } = form;
  const rig = new Rig(o.memory);
  const ours = mirrored ? peerAddress(form, 0) : v6 ? LOCAL_V6 : LOCAL_V4;
  const theirs = (n: number) => (mirrored ? (v6 ? LOCAL_V6 : LOCAL_V4) : peerAddress(form, n));
  const local = { address: ip(ours), port: 4789, ttl: 64 };
  const vteps = new Vteps(Math.max(peers, 4));
  const taken = slots.splice(0, peers * 2);
  const state = new AssociationState(new SharedArrayBuffer(associationStateBytes(Math.max(...taken) + 1)));
  const associations = new Associations(state, vteps.capacity);

  const held: { readonly intent: AssociationIntent; readonly under: EspAssociation }[] = taken.map(
    (slot, i) => {
      const peer = i >> 1;
      const direction = (i & 1) === 0 ? 'out' : 'in';
      // What one end sends under, the other receives under.
      const spi = (direction === 'out') !== mirrored ? 0x1000 + peer : 0x81002000 + peer;
      const under = { spi, key: noise(spi, bits / 8), salt: noise(spi + 7, 4), icv, esn };
      const vtep = ip(theirs(peer));
      if (direction === 'out') vteps.add(vtep, true, local, 0);
      native.gcmRemove(slot);
      native.gcmInstall({ ...under, slot });
      state.begin(slot, last, o.mask);
      return { intent: { slot, direction, spi, vtep, icv, esn, window }, under };
    },
  );
  const intents = held.map(({ intent }) => intent);
  const use = (list: readonly AssociationIntent[]): void =>
    associations.set(list, (address) => vteps.add(address, true, local, 0));
  use(intents);
  for (const n of o.linked ?? []) vteps.setLink(n, station(0x20 + n), station(0x10));

  const [out, linked, opened] = [rig.sink(), rig.sink(), rig.sink()];
  const [toOut, toLinked, toOpened] = [out, linked, opened].map((sink) => new Batch(sink));
  const { context } = rig;
  const encrypting = { v6, udpPort, shared, checksum };
  const encrypt = createEspEncrypt(
    context,
    associations,
    vteps,
    encrypting,
    toOut,
    o.linked ? toLinked : null,
  );
  const decrypting = { local, addressed, udpPort, shared };
  const decrypt = createEspDecrypt(context, associations, decrypting, toOpened);
  const alignment = v6 ? 2 : 6;
  const of = (index: number) => ({ ...held[index].under, slot: held[index].intent.slot });

  function release(): void {
    for (const slot of taken) native.gcmRemove(slot);
    slots.unshift(...taken);
  }

  return {
    rig,
    vteps,
    state,
    associations,
    intents,
    /** Replaces the associations there are, `intents` in the beginning. */
    use,
    encrypt,
    decrypt,
    /** What leaves to peers whose next hop is not known, and to those whose is. */
    out,
    linked,
    opened,
    /** The association that sends to a peer, and the one that receives from it. */
    outbound: (peer = 0) => of(peer * 2),
    inbound: (peer = 0) => of(peer * 2 + 1),
    /** One run of batches through `esp-encrypt`, to the first peer unless told otherwise. */
    seal(packets: readonly Uint8Array[], metadata: Metadata | ((k: number) => Metadata) = {}): void {
      const more = typeof metadata === 'function' ? metadata : () => metadata;
      const put = (bytes: Uint8Array, k: number) => rig.put(bytes, { alignment, dest: REMOTE, ...more(k) });
      rig.feed(encrypt, ...packets.map(put));
      toOut.flush();
      toLinked.flush();
    },
    /** The ESP packet that comes of one packet. */
    sealOne(packet: Uint8Array, metadata: Metadata = {}): Uint8Array {
      this.seal([packet], metadata);
      return out.one().bytes.slice(espAt(form));
    },
    /** A packet of a peer's for us, by the book. */
    make(
      sequence: number,
      m: Partial<EspOptions> & { content?: Uint8Array; peer?: number } = {},
    ): Uint8Array {
      const { content = datagram(20), peer = 0, ...more } = m;
      const esp = makeEsp(of(peer * 2 + 1), { sequence, ...more }, content);
      return outerEsp(form, esp, { source: theirs(peer), destination: ours });
    },
    /** One run of batches through `esp-decrypt`; what it let pass. */
    open(packets: readonly Uint8Array[], metadata: Metadata = {}): Uint8Array[] {
      rig.feed(decrypt, ...packets.map((bytes) => rig.put(bytes, { alignment, ...metadata })));
      toOpened.flush();
      return opened.take();
    },
    flush(): void {
      for (const batch of [toOut, toLinked, toOpened]) batch.flush();
    },
    /** Hands what is sealed to another consumer than `out`. */
    divert(to: Consumer): void {
      toOut.next = to;
    },
    /** Does something while the association that sends to the first peer has no key. */
    withoutKey(action: () => void): void {
      const { slot, ...under } = of(0);
      native.gcmRemove(slot);
      action();
      native.gcmInstall({ ...under, slot });
    },
    /** For each packet, alone in its batch: why it was dropped, or `passed`. */
    verdicts(...packets: readonly Uint8Array[]): string[] {
      return packets.map((packet) => {
        const before = this.decryptDrops();
        const passed = this.open([packet]).length;
        const after = this.decryptDrops();
        const reasons = Object.keys(after).filter((name) => after[name] !== before[name]);
        if (passed + reasons.length !== 1) throw new Error(`${passed} passed, dropped for ${reasons}`);
        return reasons[0] ?? 'passed';
      });
    },
    /** The same for packets of the peer's with these sequence numbers. */
    receive(...sequences: readonly number[]): string[] {
      return this.verdicts(...sequences.map((sequence) => this.make(sequence)));
    },
    encryptDrops: () => dropped(encrypt.drops),
    decryptDrops: () => dropped(decrypt.drops),
    /** Refusals of an association that are not zero. */
    refused: ({ slot }: { slot: number }): Record<string, number> =>
      Object.fromEntries(Object.entries(state.refusals(slot)).filter(([, count]) => count !== 0)),
    /** Wipes the keys and gives the slots of the associations back. */
    release,
    finish(t: ExecutionContext): void {
      rig.finish(t);
      release();
    },
  };
}

export type EspRig = ReturnType<typeof espRig>;
