/** Says which backends are found to live or not; what that means for their flows the data plane has done already. */
import { NOT_HTTP, NOT_REACHED, SILENT, WAS_RESET } from '../engine/elements/balancer/prober.js';
import { CONNECTIONS_FAILED, type HealthChange } from '../engine/health.js';
import type { Config, Health } from './config.js';
import type { ServiceBook } from './services.js';

/** What a check found that failed; where it is not a status of HTTP. */
const CAUSES: Readonly<Record<number, (health: Health) => string>> = {
  [SILENT]: ({ kind, port }) => `no answer${kind === 'http' ? ' to a request' : ''} from port ${port}`,
  [WAS_RESET]: ({ port }) => `port ${port} refuses connections`,
  [NOT_REACHED]: ({ port }) => `port ${port} cannot be reached`,
  [NOT_HTTP]: ({ port }) => `port ${port} does not speak HTTP`,
};

function why(health: Health, cause: number): string {
  const { path, interval, failures } = health;
  if (cause === CONNECTIONS_FAILED)
    return `${failures} connections to port ${health.port} failed within ${interval} s`;
  const what = CAUSES[cause]?.(health) ?? `${path} is answered with status ${cause}`;
  return failures === 1 ? what : `${what} (${failures} in a row)`;
}

/** Notes in the book what the data plane found out, and says it. */
export function hearHealth(
  book: ServiceBook,
  { services }: Config,
  changes: readonly HealthChange[],
  log: (line: string) => void,
): void {
  for (const { backend, alive, cause } of changes) {
    const who = book.hear(backend, alive);
    const health = services.find(({ name }) => name === who?.service)?.health;
    if (who === undefined || health === undefined) continue;
    log(`service ${who.service}: ${who.address} is ${alive ? 'up again' : `down: ${why(health, cause)}`}`);
  }
}
