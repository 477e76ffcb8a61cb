/** Members of `a` that `b` does not have, compared by value. */
export function difference<T>(a: readonly T[], b: readonly T[]): T[] {
  const known = new Set(b.map((item) => JSON.stringify(item)));
  return a.filter((item) => !known.has(JSON.stringify(item)));
}
