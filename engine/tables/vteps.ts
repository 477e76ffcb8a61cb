/**
 * Remote tunnel endpoints. A VTEP is a small number: MAC entries and frames name it by that, its address and the
 * ready-made outer header lie here.
 *
 * Configured VTEPs stay; those learned from received packets go when nothing was heard of them for a while.
 */
import { ETHERNET_HEADER } from '../wire/ethernet.js';
import { fold16, PROTOCOL_UDP, sumWords, UDP_HEADER } from '../wire/ip.js';
import { OUTER_IPV4, OUTER_IPV6, VXLAN_HEADER } from '../wire/vxlan.js';

/**
 * 64-bit words of a stored header: 6 bytes of padding and 50 over IPv4, 2 and 70 over IPv6, so that the frame
 * behind it is aligned when the header is, and whole words copy it.
 */
export const TEMPLATE_WORDS = 9;
const TEMPLATE_BYTES = TEMPLATE_WORDS * 8;

/** What was seen of a VTEP that its operator should hear of once. Bits of `noted`. */
export const SAW_NO_ASSOCIATION = 1;
export const SAW_PLAIN_FOR_ENCRYPTED = 2;
export const SAW_ESP_FOR_PLAIN = 4;

export interface LocalVtep {
  /** 4 or 16 bytes. */
  readonly address: Uint8Array;
  /** Destination port of what is sent, and of what is accepted. */
  readonly port: number;
  readonly ttl: number;
}

export class Vteps {
  readonly capacity: number;
  /** Outer headers: length, checksum, TOS, source port and VNI still zero. */
  readonly templates: BigUint64Array;
  /** Sum of the IPv4 header in the template, to which length and TOS are added. */
  readonly headerSum: Uint32Array;
  /** 1 configured, 2 learned, 0 free. */
  readonly state: Uint8Array;
  /** 1 when the next hop's MAC is known, so that an uplink TAP can send there. */
  readonly linked: Uint8Array;
  /** Second in which a packet came from it. */
  readonly seen: Uint32Array;
  readonly addresses: Uint32Array;
  private readonly index: Int32Array;
  private readonly mask: number;
  /** Bits of a product that are not of a slot's number. */
  private readonly shift: number;
  /** Learned VTEPs in use. */
  learned = 0;
  /** What was seen of each VTEP, in SAW_ bits, and what of it was told already. */
  private readonly noted: Uint8Array;
  private readonly told: Uint8Array;
  /** Whether something was noted since `tell`. */
  private news = false;

  /** @param capacity most VTEPs, at most 65,535: the index must fit beside REMOTE. */
  constructor(capacity: number) {
    if (capacity < 1 || capacity > 65535) throw new RangeError(`capacity ${capacity} is not in 1–65535`);
    this.capacity = capacity;
    this.templates = new BigUint64Array(capacity * TEMPLATE_WORDS);
    this.headerSum = new Uint32Array(capacity);
    this.state = new Uint8Array(capacity);
    this.linked = new Uint8Array(capacity);
    this.seen = new Uint32Array(capacity);
    this.noted = new Uint8Array(capacity);
    this.told = new Uint8Array(capacity);
    this.addresses = new Uint32Array(capacity * 4);
    let slots = 16;
    while (slots < capacity * 2) slots *= 2;
    this.mask = slots - 1;
    this.shift = Math.clz32(this.mask);
    this.index = new Int32Array(slots).fill(-1);
  }

  /** By the highest bits of a product, which the last byte of an address reaches: it is the highest of its word. */
  private slot(a: number, b: number, c: number, d: number): number {
    let h = Math.imul(a ^ Math.imul(b, 0x85ebca6b), 0x9e3779b1);
    h = Math.imul(h ^ c ^ (h >>> 15), 0xc2b2ae35);
    return Math.imul(h ^ d ^ (h >>> 13), 0x27d4eb2f) >>> this.shift;
  }

  /** Index of the VTEP with this address (four little-endian words, IPv4 as ::ffff:a.b.c.d); -1 unknown. */
  find(a: number, b: number, c: number, d: number): number {
    for (let i = this.slot(a, b, c, d); ; i = (i + 1) & this.mask) {
      const vtep = this.index[i];
      if (vtep < 0) return -1;
      const at = vtep * 4;
      const { addresses } = this;
      if (
        addresses[at + 3] === d &&
        addresses[at + 2] === c &&
        addresses[at + 1] === b &&
        addresses[at] === a
      )
        return vtep;
    }
  }

  /** Finds or makes a VTEP; -1 when there is no room. A configured one stays configured. */
  add(address: Uint8Array, configured: boolean, local: LocalVtep, now: number): number {
    const [a, b, c, d] = addressWords(address);
    const known = this.find(a, b, c, d);
    if (known >= 0) {
      if (configured && this.state[known] === 2) {
        this.state[known] = 1;
        this.learned--;
      }
      return known;
    }
    const vtep = this.state.indexOf(0);
    if (vtep < 0) return -1;
    this.addresses.set([a, b, c, d], vtep * 4);
    this.state[vtep] = configured ? 1 : 2;
    if (!configured) this.learned++;
    this.seen[vtep] = now;
    this.writeTemplate(vtep, address, local);
    let i = this.slot(a, b, c, d);
    while (this.index[i] >= 0) i = (i + 1) & this.mask;
    this.index[i] = vtep;
    return vtep;
  }

  /** Forgets a VTEP. MAC entries that name it must be gone before. */
  remove(vtep: number): void {
    this.linked[vtep] = 0;
    this.forget(vtep, 0xff);
    if (this.state[vtep] === 2) this.learned--;
    this.state[vtep] = 0;
    this.rebuildIndex();
  }

  /** Notes what its operator should hear of once. */
  note(vtep: number, saw: number): void {
    if ((this.noted[vtep] & saw) !== 0) return;
    this.noted[vtep] |= saw;
    this.news = true;
  }

  /** Forgets that something was seen, so that the next time is told again. */
  forget(vtep: number, saw: number): void {
    this.noted[vtep] &= ~saw;
    this.told[vtep] &= ~saw;
  }

  /** Tells what was noted and not told before, one bit a call. */
  tell(to: (vtep: number, saw: number) => void): void {
    if (!this.news) return;
    this.news = false;
    for (let vtep = 0; vtep < this.capacity; vtep++) {
      const saw = this.noted[vtep] & ~this.told[vtep];
      if (saw === 0) continue;
      this.told[vtep] |= saw;
      for (let bits = saw; bits !== 0; bits &= bits - 1) to(vtep, bits & -bits);
    }
  }

  /** Makes a configured VTEP an ordinary learned one, which ages. */
  unconfigure(vtep: number, now: number): void {
    if (this.state[vtep] !== 1) return;
    this.state[vtep] = 2;
    this.seen[vtep] = now;
    this.learned++;
  }

  private rebuildIndex(): void {
    this.index.fill(-1);
    for (let vtep = 0; vtep < this.capacity; vtep++) {
      if (this.state[vtep] === 0) continue;
      const at = vtep * 4;
      let i = this.slot(
        this.addresses[at],
        this.addresses[at + 1],
        this.addresses[at + 2],
        this.addresses[at + 3],
      );
      while (this.index[i] >= 0) i = (i + 1) & this.mask;
      this.index[i] = vtep;
    }
  }

  /** Address of a VTEP: 4 or 16 bytes. */
  address(vtep: number): Uint8Array {
    return addressBytes(this.addresses.subarray(vtep * 4, vtep * 4 + 4));
  }

  /** Sets the MAC addresses of the outer Ethernet header: next hop and own interface, six bytes each. */
  setLink(vtep: number, destination: Uint8Array, source: Uint8Array): void {
    const bytes = new Uint8Array(this.templates.buffer, vtep * TEMPLATE_BYTES, TEMPLATE_BYTES);
    const v6 = this.addresses[vtep * 4 + 2] !== MAPPED;
    bytes.set(destination, v6 ? 2 : 6);
    bytes.set(source, v6 ? 8 : 12);
    this.linked[vtep] = 1;
  }

  private writeTemplate(vtep: number, remote: Uint8Array, local: LocalVtep): void {
    const v6 = remote.length === 16;
    const padding = v6 ? 2 : 6;
    const at = vtep * TEMPLATE_BYTES;
    const bytes = new Uint8Array(this.templates.buffer, at, TEMPLATE_BYTES).fill(0).subarray(padding);
    const halves = new Uint16Array(this.templates.buffer, at + padding);
    const ip = ETHERNET_HEADER;
    const udp = (v6 ? OUTER_IPV6 : OUTER_IPV4) - VXLAN_HEADER - UDP_HEADER;
    // A locally administered address made from the last bytes of the IP address, until setLink says better.
    bytes.set([2, 0, ...remote.slice(-4)], 0);
    bytes.set([2, 0, ...local.address.slice(-4)], 6);
    bytes[udp + 2] = local.port >>> 8;
    bytes[udp + 3] = local.port;
    bytes[udp + 8] = 0x08; // the I flag
    if (v6) {
      bytes.set([0x86, 0xdd, 0x60], 12);
      bytes[ip + 6] = PROTOCOL_UDP;
      bytes[ip + 7] = local.ttl;
      bytes.set(local.address, ip + 8);
      bytes.set(remote, ip + 24);
      // Pseudo-header without the length (RFC 8200, 8.1): addresses, next header; and the UDP port that is fixed.
      this.headerSum[vtep] = fold16(
        sumWords(halves, ip / 2 + 4, 16) + (PROTOCOL_UDP << 8) + halves[udp / 2 + 1],
      );
    } else {
      bytes.set([0x08, 0x00, 0x45], 12);
      bytes[ip + 6] = 0x40; // DF: a VTEP must not fragment (RFC 7348, section 4.3)
      bytes[ip + 8] = local.ttl;
      bytes[ip + 9] = PROTOCOL_UDP;
      bytes.set(local.address, ip + 12);
      bytes.set(remote, ip + 16);
      this.headerSum[vtep] = fold16(sumWords(halves, ip / 2, 10));
    }
  }
}

/** Third word of an IPv4-mapped address (RFC 4291, 2.5.5.2), little-endian. */
export const MAPPED = 0xffff0000;

/** Four little-endian words of an address of 4 or 16 bytes. */
export function addressWords(address: Uint8Array): [number, number, number, number] {
  const word = (at: number): number =>
    (address[at] | (address[at + 1] << 8) | (address[at + 2] << 16) | (address[at + 3] << 24)) >>> 0;
  return address.length === 4 ? [0, 0, MAPPED, word(0)] : [word(0), word(4), word(8), word(12)];
}

/** The address of 4 or 16 bytes that four words stand for. */
export function addressBytes(words: Uint32Array): Uint8Array {
  const bytes = new Uint8Array(words.slice().buffer);
  return words[0] === 0 && words[1] === 0 && words[2] === MAPPED ? bytes.slice(12) : bytes;
}
