/** A reload that went further than the check of the file, and what came of it; any other error changed nothing. */
export class ReloadError extends Error {
  override name = 'ReloadError';
}

/** Does steps one after the other, whatever becomes of them. Returns what went wrong. */
export async function failuresOf(steps: readonly (() => unknown)[]): Promise<string[]> {
  const failures: string[] = [];
  for (const step of steps) {
    try {
      await step();
    } catch (error) {
      failures.push((error as Error).message);
    }
  }
  return failures;
}
