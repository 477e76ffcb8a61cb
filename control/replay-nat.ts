/** What `weft replay --through nat` takes for inside and for the external address: options as text, read strictly. */
import { CHAIN_NAT, type ChainNatSetup } from '../engine/chain.js';
import { type Ip, parsePrefix, parseVtep, quote, ValueError } from './addresses.js';

/** As they were written; undefined and empty ones are left to CHAIN_NAT. */
export interface NatTexts {
  /** IPv4 prefixes. */
  readonly inside: readonly string[];
  readonly external?: string | undefined;
  readonly mapping?: ChainNatSetup['mapping'] | undefined;
  /** `first-last`. */
  readonly ports?: string | undefined;
  readonly maxFlows?: number | undefined;
}

/** @throws ValueError that names the option. */
export function readNat(texts: NatTexts): ChainNatSetup {
  const { inside, external, mapping, ports, maxFlows } = texts;
  return {
    ...CHAIN_NAT,
    ...(inside.length > 0 && { inside: inside.map((text) => at('--inside', () => prefixOf(text))) }),
    ...(external !== undefined && { external: at('--external', () => v4(parseVtep(external)).bytes) }),
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
  return { address: v4(network).bytes, length };
}

function v4(ip: Ip): Ip {
  if (ip.family === 4) return ip;
  throw new ValueError(`${ip.text} is an IPv6 address`, 'write an IPv4 address: only IPv4 is translated');
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
