/** What a reload cannot change, since sockets, tables and workers are made once. */
import type { Config, HostProblem } from './config.js';

const REMEDY = 'restart weft up, or put the old value back';

/** A problem for each key that differs and must not. @param tracks whether the engine has a table of flows. */
export function unchangeable(before: Config, after: Config, tracks: boolean): HostProblem[] {
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
  return [...fixed, ...changed, ...(tracks ? [] : firstServices(after))];
}

/** The table of flows is made once, when there is use for it. */
function firstServices({ services }: Config): HostProblem[] {
  if (services.length === 0) return [];
  const message = 'services need a table of flows, which the engine was started without';
  return [{ path: ['services'], message, remedy: 'restart weft up, or remove them' }];
}
