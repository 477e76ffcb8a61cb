/** Ends flows of the host's kernel that published ports do not stand for any more, or not yet. */
import type { Family } from './addresses.js';
import { parseIp } from './addresses.js';
import type { HostPort } from './host-rules.js';
import { endKernelFlows, type KernelFlow } from './kernel-flows.js';
import { PROTOCOL_NUMBERS, type PublishedPort } from './published.js';

const hexOf = (address: string): string => Buffer.from(parseIp(address).bytes).toString('hex');
const numberOf = (protocol: string): number => PROTOCOL_NUMBERS[protocol as PublishedPort['protocol']];

/**
 * Connections do not outlive their rule; and what was for the host itself, before a port of it was published, would
 * go on being.
 * @param published what is published now.
 * @param endpoints addresses to which ports of the host may have led.
 * @param own addresses of the host.
 */
export function endUnpublished(
  families: readonly Family[],
  published: readonly HostPort[],
  endpoints: readonly string[],
  own: readonly string[],
): void {
  const ends = new Set(endpoints.map(hexOf));
  const hosts = new Set(own.map(hexOf));
  const ports = new Set(published.map(({ protocol, port }) => `${numberOf(protocol)} ${port}`));
  const now = new Set(
    published.map(({ protocol, address, port, to, target }) => {
      const where = address === undefined ? '*' : hexOf(address);
      return `${where} ${numberOf(protocol)} ${port} ${hexOf(to)} ${target}`;
    }),
  );
  const match = ({ original, reply }: KernelFlow): boolean => {
    const { protocol, destination, destinationPort } = original;
    if (reply.source === destination)
      return hosts.has(destination) && ports.has(`${protocol} ${destinationPort}`);
    if (!ends.has(reply.source)) return false;
    const flow = `${protocol} ${destinationPort} ${reply.source} ${reply.sourcePort}`;
    return !now.has(`* ${flow}`) && !now.has(`${destination} ${flow}`);
  };
  for (const family of families) endKernelFlows(family, match);
}
