/** What a reload cannot change, since sockets, tables and workers are made once. */
import { type Config, type HostProblem, hasServicesOfIpv6 } from './config.js';

const REMEDY = 'restart weft up, or put the old value back';

/**
 * A problem for each key that differs and must not.
 * @param flows the engine's table of flows, if it has one.
 */
export function unchangeable(
  before: Config,
  after: Config,
  flows: { readonly hasIpv6: boolean } | undefined,
): HostProblem[] {
  const keys: { path: string[]; old: unknown; next: unknown }[] = [
    ...(['address', 'port', 'ttl', 'mode'] as const).map((key) => ({
      path: ['underlay', key],
      old: before.underlay[key],
      next: after.underlay[key],
    })),
    {
      path: ['underlay', 'reserved_bits'],
      old: before.underlay.reservedBits,
      next: after.underlay.reservedBits,
    },
    { path: ['workers'], old: before.workers, next: after.workers },
  ];
  if (before.encryption && after.encryption) {
    for (const key of ['encapsulation', 'port'] as const)
      keys.push({ path: ['encryption', key], old: before.encryption[key], next: after.encryption[key] });
  }
  const ways = [
    { path: ['uplinks'], same: JSON.stringify(before.uplinks) === JSON.stringify(after.uplinks) },
    { path: ['nat'], same: JSON.stringify(before.nat) === JSON.stringify(after.nat) },
  ].filter(({ same }) => !same);
  const changed = ways.map(({ path }) => ({
    path,
    message: `${path.join('.')} cannot change while the engine runs`,
    remedy: REMEDY,
  }));
  const fixed = keys
    .filter(({ old, next }) => old !== next)
    .map(({ path, old }) => ({
      path,
      message: `${path.join('.')} cannot change while the engine runs (it is ${old})`,
      remedy: REMEDY,
    }));
  return [...fixed, ...changed, ...firstServices(after, flows)];
}

/** The table of flows is made once, when there is use for it, and so is its room for IPv6. */
function firstServices(config: Config, flows: { readonly hasIpv6: boolean } | undefined): HostProblem[] {
  const { services } = config;
  if (services.length === 0 || (flows && (flows.hasIpv6 || !hasServicesOfIpv6(config)))) return [];
  const what = flows === undefined ? 'services need a table of flows' : 'services of IPv6 need room for it';
  const message = `${what}, which the engine was started without`;
  return [{ path: ['services'], message, remedy: 'restart weft up, or remove them' }];
}
