/** What `weft doctor` finds: one line a probe, and what to do about it. */

/** `warn` costs speed or a feature, `fail` keeps Weft from working, `skip` could not be looked at. */
type CheckStatus = 'ok' | 'warn' | 'fail' | 'skip';

export interface Check {
  /** What was looked at, such as `/dev/net/tun`. */
  readonly name: string;
  readonly status: CheckStatus;
  readonly message: string;
  /** What to type or change. */
  readonly remedy?: string;
}

export const ok = (name: string, message: string): Check => ({ name, status: 'ok', message });
export const warn = (name: string, message: string, remedy: string): Check => ({
  name,
  status: 'warn',
  message,
  remedy,
});
export const fail = (name: string, message: string, remedy: string): Check => ({
  name,
  status: 'fail',
  message,
  remedy,
});
export const skip = (name: string, message: string): Check => ({ name, status: 'skip', message });

/** What an error says, on one line and not at length. */
export const oneLine = (error: unknown): string =>
  (error as Error).message
    .trim()
    .replace(/\s*\n\s*/g, ' | ')
    .slice(0, 300);
