/** Endpoints of this host whose interfaces are open. */
import { statSync } from 'node:fs';
import type { Tap } from '../native-bindings/index.js';
import { type Config, type HostProblem, hostError, type LocalEndpoint, netnsPath } from './config.js';
import { closeQueues, converge, openEndpoint, removeQueues, removeStale, type Shape } from './devices.js';
import { rememberedTaps, rememberTaps } from './state.js';

export interface Attached {
  readonly endpoint: LocalEndpoint;
  readonly taps: readonly Tap[];
  readonly reattached: boolean;
  /** Which namespace it is in, whatever its name stands for later. */
  readonly namespace: string;
  lost: boolean;
  closed: boolean;
}

export const localEndpoints = (config: Config): LocalEndpoint[] =>
  config.endpoints.filter((endpoint): endpoint is LocalEndpoint => endpoint.kind === 'local');

export const endpointsOf = (attached: ReadonlyMap<string, Attached>): LocalEndpoint[] =>
  [...attached.values()].map(({ endpoint }) => endpoint);

/** Where an endpoint's interface is: its identity, whatever its name. */
const placeOf = (endpoint: LocalEndpoint): string => `${netnsPath(endpoint.netns)} ${endpoint.interface}`;

/** Device and inode of a namespace's file; empty when there is none. */
export function namespaceOf({ netns }: LocalEndpoint): string {
  const found = statSync(netnsPath(netns), { throwIfNoEntry: false });
  return found ? `${found.dev}:${found.ino}` : '';
}

/** Takes an interface away, with its descriptor; of one that is gone only the descriptor is left. */
export function remove(attached: Attached): void {
  const { taps, lost, closed } = attached;
  if (closed) return;
  attached.closed = true;
  if (lost) closeQueues(taps);
  else removeQueues(taps);
}

/** Lets go of an interface that stays for the next process. */
export function leaveBehind(attached: Attached): void {
  if (!attached.closed) closeQueues(attached.taps);
  attached.closed = true;
}

/** Undoes an opening: an interface that was there before stays. */
export function undo(attached: Attached): void {
  if (attached.reattached) closeQueues(attached.taps);
  else remove(attached);
}

/** Removes interfaces of an earlier, killed daemon that the config does not name any more. */
export function removeLeftOvers(state: string, config: Config): void {
  const wanted = new Set(localEndpoints(config).map(placeOf));
  for (const { netns, interface: name } of rememberedTaps(state)) {
    if (!wanted.has(`${netns} ${name}`)) removeStale(netns, name);
  }
}

/** Notes interfaces before they are made: what is killed in the middle is found by the next start. */
export function remember(state: string, endpoints: readonly LocalEndpoint[]): void {
  rememberTaps(
    state,
    endpoints.map(({ netns, interface: name }) => ({ netns: netnsPath(netns), interface: name })),
  );
}

/**
 * Opens the TAPs that `kept` does not have, then makes the kept ones what the config says.
 * @throws ConfigError with all that could not be opened; what was opened is undone.
 */
export function attachAll(
  file: string,
  config: Config,
  kept: ReadonlyMap<string, Attached>,
  shapeOf: (endpoint: LocalEndpoint) => Shape,
): Map<string, Attached> {
  const all = new Map<string, Attached>();
  const problems: HostProblem[] = [];
  config.endpoints.forEach((endpoint, index) => {
    if (endpoint.kind !== 'local') return;
    const old = kept.get(placeOf(endpoint));
    if (old && !old.lost) {
      all.set(placeOf(endpoint), { ...old, endpoint });
      return;
    }
    try {
      const namespace = namespaceOf(endpoint);
      const { taps, reattached } = openEndpoint(config.node, endpoint, shapeOf(endpoint), config.workers);
      all.set(placeOf(endpoint), { endpoint, taps, reattached, namespace, lost: false, closed: false });
    } catch (error) {
      problems.push(endpointProblem(index, endpoint, error as NodeJS.ErrnoException));
    }
  });
  try {
    if (problems.length > 0) throw hostError(file, problems);
    convergeAll(config, all, kept, shapeOf);
  } catch (error) {
    undoFresh(all, kept);
    throw error;
  }
  return all;
}

/** Makes the interfaces that were there before what a config says. @throws CommandError when `ip` refuses. */
export function convergeAll(
  config: Config,
  all: ReadonlyMap<string, Attached>,
  kept: ReadonlyMap<string, Attached>,
  shapeOf: (endpoint: LocalEndpoint) => Shape,
): void {
  for (const [place, { endpoint, lost }] of all)
    if (kept.has(place) && !lost) converge(config.node, endpoint, shapeOf(endpoint));
}

/** Undoes what was opened beside those that are kept. */
export function undoFresh(all: ReadonlyMap<string, Attached>, kept: ReadonlyMap<string, Attached>): void {
  for (const [place, one] of all) if (one.taps !== kept.get(place)?.taps) undo(one);
}

/** What an endpoint's interface could not be opened for, as a problem of the file. */
function endpointProblem(index: number, endpoint: LocalEndpoint, error: NodeJS.ErrnoException): HostProblem {
  const at = `endpoint ${endpoint.name}`;
  const where = `${endpoint.interface} in ${endpoint.netns}`;
  const remedies: Record<string, string> = {
    EPERM: 'run weft as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN',
    EACCES: 'run weft as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN',
    ENOENT: 'load the tun module ("modprobe tun"), or make /dev/net/tun available here',
    EINVAL: `${where} is an interface of another kind: remove it, or choose another name`,
    EBUSY: `another program holds ${where}: stop it, or choose another name`,
    EEXIST: 'remove that interface, or choose another name',
  };
  const key =
    error.code === 'EINVAL' || error.code === 'EEXIST' || error.code === 'EBUSY' ? ['interface'] : [];
  return {
    path: ['endpoints', index, ...key],
    message: `${at}: ${error.message}`,
    remedy: remedies[error.code ?? ''] ?? 'see the message',
  };
}
