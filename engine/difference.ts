/** What differs between two intents, and what a data plane has of them when it could not apply all of one. */
import type { Intent } from './intent.js';

/** Members of `a` that `b` does not have, compared by value. */
export function difference<T>(a: readonly T[], b: readonly T[]): T[] {
  const known = new Set(b.map((item) => JSON.stringify(item)));
  return a.filter((item) => !known.has(JSON.stringify(item)));
}

/** What a data plane has. Both are the intent that was applied, unless the application failed midway. */
export interface Standing {
  /** All that may be there. */
  readonly maybe: Intent;
  /** All that is there for certain. */
  readonly sure: Intent;
}

/** What there is when a further intent was applied in part, nobody knows which. */
export function torn({ maybe, sure }: Standing, next: Intent): Standing {
  return {
    maybe: {
      ...next,
      domains: union(maybe.domains, next.domains),
      ports: union(maybe.ports, next.ports),
      stations: union(maybe.stations, next.stations),
      neighbours: union(maybe.neighbours, next.neighbours),
      gateways: union(maybe.gateways, next.gateways),
    },
    sure: {
      ...sure,
      domains: common(sure.domains, next.domains),
      ports: common(sure.ports, next.ports),
      neighbours: common(sure.neighbours, next.neighbours),
    },
  };
}

const union = <T>(a: readonly T[], b: readonly T[]): T[] => [...a, ...difference(b, a)];
const common = <T>(a: readonly T[], b: readonly T[]): T[] => difference(a, difference(a, b));
