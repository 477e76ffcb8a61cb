/** The point-to-point link between Weft and the host's stack: its addresses, and the TAP as the host's end of it. */
import { createHash } from 'node:crypto';
import { networkInterfaces } from 'node:os';
import { contains, type Family, parsePrefix } from './addresses.js';
import { runSync } from './command.js';
import { hasConf, setConf } from './forwarding.js';

/** Of the TAP, its most, bytes: what is too long for a network, its route says. */
export const MTU = 65_521;
/** The ends of IPv6: there is nobody else on the link. */
export const HOST_V6 = 'fe80::1';
export const WEFT_V6 = 'fe80::2';

/** Ends of the link, dotted decimal. */
export interface LinkAddresses {
  readonly host: string;
  readonly weft: string;
  readonly length: number;
}

/** Addresses of this host beside those of the device and link-local IPv6. */
export function hostAddresses(except: string): { readonly device: string; readonly cidr: string }[] {
  return Object.entries(networkInterfaces()).flatMap(([device, addresses = []]) =>
    device === except
      ? []
      : addresses.flatMap((one) =>
          one.cidr === null || (one.family === 'IPv6' && one.scopeid) ? [] : [{ device, cidr: one.cidr }],
        ),
  );
}

/**
 * A /30 of 169.254.0.0/16 (RFC 3927) that no address of the host is in: the same after each start, unless it is taken.
 * Not the first and last 256 addresses, which are reserved, nor 169.254.169.0/24, where clouds answer.
 */
export function chooseLink(node: string, uplink: string, except: string): LinkAddresses {
  const taken = hostAddresses(except).map(({ cidr }) => parsePrefix(cidr));
  const [high, low] = createHash('sha256').update(`${node} ${uplink}`).digest();
  for (let i = 0, block = (high << 8) | low; ; i++, block++) {
    const third = (block >>> 6) & 0xff;
    const base = (block & 0x3f) << 2;
    if (third === 0 || third === 169 || third === 255) continue;
    const link = parsePrefix(`169.254.${third}.${base}/30`);
    if (i < 1 << 14 && taken.some(({ address }) => contains(link, address))) continue;
    return { host: `169.254.${third}.${base + 1}`, weft: `169.254.${third}.${base + 2}`, length: 30 };
  }
}

/** The link of an address that was written: Weft's end; the host's is the other. */
export function writtenLink(cidr: string): LinkAddresses {
  const { address, length } = parsePrefix(cidr);
  const last = address.bytes[3];
  const other = length === 31 ? last ^ 1 : last ^ 3;
  return { weft: address.text, host: address.text.replace(/\d+$/, String(other)), length };
}

/** Makes the TAP an end of the link. Returns the IP versions that it has. */
export function shape(device: string, { host, length }: LinkAddresses): readonly Family[] {
  const settings = [
    `link set dev ${device} addrgenmode none`,
    `link set dev ${device} mtu ${MTU} up`,
    // Of link scope, so that the host speaks to containers by an address that others know too.
    `address add ${host}/${length} dev ${device} scope link`,
  ];
  runSync('ip', ['-batch', '-'], { input: `${settings.join('\n')}\n` });
  setConf(4, device, 'forwarding', '1');
  setConf(4, device, 'route_localnet', '1');
  setConf(4, device, 'arp_announce', '2');
  setConf(4, device, 'send_redirects', '0');
  setConf(4, device, 'accept_redirects', '0');
  if (!hasConf(6, device, 'disable_ipv6', '0')) return [4];
  setConf(6, device, 'accept_ra', '0');
  setConf(6, device, 'accept_redirects', '0');
  if (hasConf(6, device, 'force_forwarding')) setConf(6, device, 'force_forwarding', '1');
  runSync('ip', ['address', 'add', `${HOST_V6}/64`, 'dev', device, 'scope', 'link', 'nodad']);
  return [4, 6];
}
