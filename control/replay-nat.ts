/** What `weft replay --through nat` takes for inside and for the external address: options as text, read strictly. */
import { CHAIN_NAT, type ChainNatSetup } from '../engine/chain.js';
import { type Family, type Ip, parsePrefix, parseVtep, quote, ValueError } from './addresses.js';

/** RFC 4193: what is inside of IPv6 unless told. */
const UNIQUE_LOCAL = [{ address: Uint8Array.of(0xfc, ...new Uint8Array(15)), length: 7 }];

/** As they were written; undefined and empty ones are left to CHAIN_NAT. */
export interface NatTexts {
  /** Prefixes; of IPv6 only with `external6`. */
  readonly inside: readonly string[];
  readonly external?: string | undefined;
  readonly external6?: string | undefined;
  readonly mapping?: ChainNatSetup['mapping'] | undefined;
  /** `first-last`. */
  readonly ports?: string | undefined;
  readonly maxFlows?: number | undefined;
}

/** @throws ValueError that names the option. */
export function readNat(texts: NatTexts): ChainNatSetup {
  const { inside: given, external, external6, mapping, ports, maxFlows } = texts;
  const prefixes = given.map((text) => at('--inside', () => prefixOf(text)));
  const inside = prefixes.filter(({ address }) => address.length === 4);
  const inside6 = prefixes.filter(({ address }) => address.length === 16);
  if (inside6.length > 0 && external6 === undefined)
    throw new ValueError('--inside: IPv6 is translated only with --external6', 'write --external6 as well');
  return {
    ...CHAIN_NAT,
    ...(inside.length > 0 && { inside }),
    ...(external !== undefined && { external: at('--external', () => of(4, parseVtep(external)).bytes) }),
    ...(external6 !== undefined && {
      v6: {
        external: at('--external6', () => of(6, parseVtep(external6)).bytes),
        inside: inside6.length > 0 ? inside6 : UNIQUE_LOCAL,
      },
    }),
    ...(mapping !== undefined && { mapping }),
    ...(ports !== undefined && at('--nat-ports', () => rangeOf(ports))),
    ...(maxFlows !== undefined && { maxFlows }),
  };
}

function at<T>(option: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    if (error instanceof ValueError) throw new ValueError(`${option}: ${error.message}`, error.remedy);
    throw error;
  }
}

function prefixOf(text: string): ChainNatSetup['inside'][number] {
  const { network, length } = parsePrefix(text);
  return { address: network.bytes, length };
}

function of(family: Family, ip: Ip): Ip {
  if (ip.family === family) return ip;
  const other = ip.family === 4 ? 'write it as --external' : 'write it as --external6';
  throw new ValueError(`${ip.text} is an IPv${ip.family} address`, other);
}

function rangeOf(text: string): Pick<ChainNatSetup, 'firstPort' | 'lastPort'> {
  const [, first, last] = /^(\d{1,5})-(\d{1,5})$/.exec(text) ?? [];
  const [firstPort, lastPort] = [Number(first), Number(last)];
  if (firstPort >= 1 && firstPort <= lastPort && lastPort <= 65535) return { firstPort, lastPort };
  throw new ValueError(
    `${quote(text)} is no range of ports`,
    'write the first and the last, such as 32768-60999',
  );
}
