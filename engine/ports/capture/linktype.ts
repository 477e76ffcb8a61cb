/**
 * From a captured record to an Ethernet frame: for each link type how many bytes of its own header go and which
 * Ethernet header takes their place. Numbers are LINKTYPE_ values, https://www.tcpdump.org/linktypes.html.
 *
 * A synthesised header carries locally administered addresses, since the link had none: source 02:00:00:00:00:01,
 * destination 02:00:00:00:00:02. A Linux cooked capture tells more: its source address is kept where it is six
 * bytes and could be an interface's (neither zero nor a group), and its packet type gives the destination
 * ff:ff:ff:ff:ff:ff for a broadcast and 01:00:5e:00:00:01 for a multicast.
 *
 * Not handled, so skipped and counted by name: wireless, USB, bus and switch-tag captures; inside the links below
 * whatever has no EtherType (PPP control protocols, HDLC keepalives, CAN in a cooked capture).
 */

const LINKTYPE_NULL = 0;
const LINKTYPE_ETHERNET = 1;
const LINKTYPE_PPP = 9;
/** DLT_RAW where it was written unmapped: 12 on most systems, 14 on OpenBSD. */
const LINKTYPE_DLT_RAW = 12;
const LINKTYPE_DLT_RAW_OPENBSD = 14;
const LINKTYPE_PPP_HDLC = 50;
const LINKTYPE_RAW = 101;
const LINKTYPE_C_HDLC = 104;
const LINKTYPE_LOOP = 108;
const LINKTYPE_LINUX_SLL = 113;
const LINKTYPE_IPV4 = 228;
const LINKTYPE_IPV6 = 229;
export const LINKTYPE_DBUS = 231;
export const LINKTYPE_USBPCAP = 249;
const LINKTYPE_LINUX_SLL2 = 276;
export const LINKTYPE_EBHSCR = 279;

const NAMES: Readonly<Record<number, string>> = {
  [LINKTYPE_NULL]: 'NULL',
  [LINKTYPE_ETHERNET]: 'EN10MB',
  6: 'IEEE802_5',
  7: 'ARCNET_BSD',
  8: 'SLIP',
  [LINKTYPE_PPP]: 'PPP',
  10: 'FDDI',
  [LINKTYPE_DLT_RAW]: 'RAW',
  [LINKTYPE_DLT_RAW_OPENBSD]: 'RAW',
  [LINKTYPE_PPP_HDLC]: 'PPP_HDLC',
  51: 'PPP_ETHER',
  100: 'ATM_RFC1483',
  [LINKTYPE_RAW]: 'RAW',
  [LINKTYPE_C_HDLC]: 'C_HDLC',
  105: 'IEEE802_11',
  107: 'FRELAY',
  [LINKTYPE_LOOP]: 'LOOP',
  [LINKTYPE_LINUX_SLL]: 'LINUX_SLL',
  117: 'PFLOG',
  119: 'PRISM_HEADER',
  127: 'IEEE802_11_RADIOTAP',
  129: 'ARCNET_LINUX',
  138: 'APPLE_IP_OVER_IEEE1394',
  147: 'USER0',
  149: 'USER2',
  187: 'BLUETOOTH_HCI_H4',
  189: 'USB_LINUX',
  195: 'IEEE802_15_4',
  220: 'USB_LINUX_MMAPPED',
  227: 'CAN_SOCKETCAN',
  [LINKTYPE_IPV4]: 'IPV4',
  [LINKTYPE_IPV6]: 'IPV6',
  [LINKTYPE_DBUS]: 'DBUS',
  242: 'IPOIB',
  247: 'INFINIBAND',
  [LINKTYPE_USBPCAP]: 'USBPCAP',
  253: 'NETLINK',
  258: 'PKTAP',
  271: 'VSOCK',
  [LINKTYPE_LINUX_SLL2]: 'LINUX_SLL2',
  281: 'DSA_TAG_BRCM',
  285: 'DSA_TAG_EDSA',
};

/** The LINKTYPE_ name without its prefix, or the number. */
export function linkTypeName(linkType: number): string {
  return NAMES[linkType] ?? String(linkType);
}

/** `etherType` of an `Adaptation`: the record is an Ethernet frame already. */
export const AS_IS = -1;
/** `etherType` of an `Adaptation`: an IEEE 802.3 frame, whose type field holds the payload's length. */
export const LENGTH_FIELD = -2;

/** `destination` of an `Adaptation`; 0 is one host. */
const TO_HOST = 0;
export const TO_BROADCAST = 1;
export const TO_MULTICAST = 2;

/** What `adapt` decides about one record; one object serves for a whole file. */
export interface Adaptation {
  /** Bytes to leave off at the front. */
  strip: number;
  /** EtherType of the header to put in front, or AS_IS or LENGTH_FIELD. */
  etherType: number;
  destination: number;
  /** Where in the record its source MAC address stands, or -1 for the synthesised one. */
  sourceAt: number;
  /** Why the record is skipped, when `adapt` says so. */
  reason: string;
}

export function newAdaptation(): Adaptation {
  return { strip: 0, etherType: AS_IS, destination: TO_HOST, sourceAt: -1, reason: '' };
}

const ETHERTYPE_IPV4 = 0x0800;
const ETHERTYPE_IPV6 = 0x86dd;
const ETHERTYPE_MPLS = 0x8847;
const ETHERTYPE_MPLS_MULTICAST = 0x8848;

/**
 * Decides how the record of `length` bytes at `offset` becomes an Ethernet frame.
 * @returns false when it cannot, with `out.reason` set: `unsupported-link-type:NAME`, `unsupported-payload:NAME`
 * (the link is known, what it carries here is not), `short-link-header:NAME`.
 */
export function adapt(
  linkType: number,
  bytes: Uint8Array,
  offset: number,
  length: number,
  out: Adaptation,
): boolean {
  out.strip = 0;
  out.etherType = AS_IS;
  out.destination = TO_HOST;
  out.sourceAt = -1;
  switch (linkType) {
    case LINKTYPE_ETHERNET:
      return true;
    case LINKTYPE_RAW:
    case LINKTYPE_DLT_RAW:
    case LINKTYPE_DLT_RAW_OPENBSD:
      if (length < 1) return short(linkType, out);
      return payload(linkType, out, 0, byIpVersion(bytes[offset] >>> 4));
    case LINKTYPE_IPV4:
      return payload(linkType, out, 0, ETHERTYPE_IPV4);
    case LINKTYPE_IPV6:
      return payload(linkType, out, 0, ETHERTYPE_IPV6);
    case LINKTYPE_NULL:
    case LINKTYPE_LOOP:
      if (length < 4) return short(linkType, out);
      return payload(linkType, out, 4, byFamily(bytes, offset));
    case LINKTYPE_LINUX_SLL:
      return cooked(linkType, bytes, offset, length, out);
    case LINKTYPE_LINUX_SLL2:
      return cooked2(linkType, bytes, offset, length, out);
    case LINKTYPE_PPP:
      return ppp(linkType, bytes, offset, length, out);
    case LINKTYPE_PPP_HDLC:
      // RFC 1662: the address is 0xff in PPP; anything else is Cisco's HDLC.
      if (length > 0 && bytes[offset] !== 0xff) return ciscoHdlc(linkType, bytes, offset, length, out);
      return ppp(linkType, bytes, offset, length, out);
    case LINKTYPE_C_HDLC:
      return ciscoHdlc(linkType, bytes, offset, length, out);
    default:
      out.reason = `unsupported-link-type:${linkTypeName(linkType)}`;
      return false;
  }
}

function short(linkType: number, out: Adaptation): false {
  out.reason = `short-link-header:${linkTypeName(linkType)}`;
  return false;
}

/** @param etherType 0 when what the link carries is not known. */
function payload(linkType: number, out: Adaptation, strip: number, etherType: number): boolean {
  out.strip = strip;
  out.etherType = etherType;
  if (etherType !== 0) return true;
  out.reason = `unsupported-payload:${linkTypeName(linkType)}`;
  return false;
}

function word(bytes: Uint8Array, at: number): number {
  return (bytes[at] << 8) | bytes[at + 1];
}

function byIpVersion(version: number): number {
  if (version === 4) return ETHERTYPE_IPV4;
  return version === 6 ? ETHERTYPE_IPV6 : 0;
}

/** BSD loopback: an address family in the byte order of whoever captured; AF_INET6 differs by system. */
function byFamily(bytes: Uint8Array, at: number): number {
  const big = word(bytes, at) * 65536 + word(bytes, at + 2);
  const family = big > 0xffff ? (bytes[at + 1] << 8) | bytes[at] : big;
  if (big > 0xffff && (bytes[at + 2] | bytes[at + 3]) !== 0) return 0;
  if (family === 2) return ETHERTYPE_IPV4;
  return family === 10 || family === 24 || family === 28 || family === 30 ? ETHERTYPE_IPV6 : 0;
}

/** Linux cooked capture: packet type, ARPHRD type, address length, address (8 bytes), protocol. */
function cooked(
  linkType: number,
  bytes: Uint8Array,
  offset: number,
  length: number,
  out: Adaptation,
): boolean {
  if (length < 16) return short(linkType, out);
  cookedAddresses(bytes, offset + 6, word(bytes, offset), word(bytes, offset + 4), out);
  return payload(linkType, out, 16, cookedProtocol(word(bytes, offset + 14), length - 16));
}

/** Version 2: protocol, reserved, interface index (4), ARPHRD type, packet type (1), address length (1), address. */
function cooked2(
  linkType: number,
  bytes: Uint8Array,
  offset: number,
  length: number,
  out: Adaptation,
): boolean {
  if (length < 20) return short(linkType, out);
  cookedAddresses(bytes, offset + 12, bytes[offset + 10], bytes[offset + 11], out);
  return payload(linkType, out, 20, cookedProtocol(word(bytes, offset), length - 20));
}

function cookedAddresses(
  bytes: Uint8Array,
  address: number,
  packetType: number,
  addressLength: number,
  out: Adaptation,
): void {
  if (packetType === 1) out.destination = TO_BROADCAST;
  else if (packetType === 2) out.destination = TO_MULTICAST;
  if (addressLength !== 6 || (bytes[address] & 1) !== 0) return;
  let any = 0;
  for (let i = 0; i < 6; i++) any |= bytes[address + i];
  if (any !== 0) out.sourceAt = address;
}

/** ETH_P_802_3 (1) and ETH_P_802_2 (4) are frames with a length field; other small numbers are no EtherTypes. */
function cookedProtocol(protocol: number, payloadLength: number): number {
  if (protocol >= 0x0600) return protocol;
  const counted = (protocol === 1 || protocol === 4) && payloadLength <= 1500;
  return counted ? LENGTH_FIELD : 0;
}

/** RFC 1661 and 1662: optional ff 03, then a protocol of two bytes, or of one when its low bit is set. */
function ppp(linkType: number, bytes: Uint8Array, offset: number, length: number, out: Adaptation): boolean {
  let at = length >= 2 && bytes[offset] === 0xff && bytes[offset + 1] === 0x03 ? 2 : 0;
  if (length < at + 1) return short(linkType, out);
  let protocol = bytes[offset + at++];
  if ((protocol & 1) === 0) {
    if (length < at + 1) return short(linkType, out);
    protocol = (protocol << 8) | bytes[offset + at++];
  }
  return payload(linkType, out, at, byPppProtocol(protocol));
}

function byPppProtocol(protocol: number): number {
  if (protocol === 0x0021) return ETHERTYPE_IPV4;
  if (protocol === 0x0057) return ETHERTYPE_IPV6;
  if (protocol === 0x0281) return ETHERTYPE_MPLS;
  return protocol === 0x0283 ? ETHERTYPE_MPLS_MULTICAST : 0;
}

/**
 * Cisco HDLC: address, control, then an EtherType. Only the network protocols pass: its own keepalives use 0x8035,
 * which Ethernet would read as RARP.
 */
function ciscoHdlc(
  linkType: number,
  bytes: Uint8Array,
  offset: number,
  length: number,
  out: Adaptation,
): boolean {
  if (length < 4) return short(linkType, out);
  const type = word(bytes, offset + 2);
  const known =
    type === ETHERTYPE_IPV4 ||
    type === ETHERTYPE_IPV6 ||
    type === ETHERTYPE_MPLS ||
    type === ETHERTYPE_MPLS_MULTICAST;
  return payload(linkType, out, 4, known ? type : 0);
}
