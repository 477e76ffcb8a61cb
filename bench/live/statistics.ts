/** The little arithmetic of the live benchmark. */

export interface Summary {
  readonly median: number;
  readonly min: number;
  readonly max: number;
  /** One value a round, in the order of the rounds. */
  readonly samples: readonly number[];
}

/**
 * Percentile by the nearest rank: the smallest value that at least `percent` of all values do not exceed.
 * @throws RangeError for no values, or a percentage outside 0 to 100.
 */
export function percentile(values: readonly number[], percent: number): number {
  if (values.length === 0) throw new RangeError('no values have no percentile');
  if (!(percent >= 0 && percent <= 100)) throw new RangeError(`a percentile is 0 to 100, not ${percent}`);
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)];
}

/** Median, the mean of the two middle values for an even number of them, with the spread. @throws RangeError for none */
export function summarise(samples: readonly number[]): Summary {
  if (samples.length === 0) throw new RangeError('no values have no median');
  const sorted = samples.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  const median = sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  return { median, min: sorted[0], max: sorted[sorted.length - 1], samples };
}

/** The list begun at another place, so that nobody always comes first. */
export function rotated<T>(list: readonly T[], by: number): T[] {
  if (list.length === 0) return [];
  const start = by % list.length;
  return [...list.slice(start), ...list.slice(0, start)];
}

/** A figure with three significant digits and no exponent: 0.0123, 4.56, 12.3, 456. */
export function short(value: number): string {
  if (!Number.isFinite(value)) return '–';
  return Math.abs(value) >= 100 ? String(Math.round(value)) : String(Number(value.toPrecision(3)));
}
