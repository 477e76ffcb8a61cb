/** Endpoints of this host whose interfaces are open. */
import { statSync } from 'node:fs';
import type { Tap } from '../native-bindings/index.js';
import { type Config, type LocalEndpoint, netnsPath } from './config.js';
import { closeQueues, removeQueues, removeStale } from './devices.js';
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

/** Where an endpoint's interface is: its identity, whatever its name. */
export const placeOf = (endpoint: LocalEndpoint): string =>
  `${netnsPath(endpoint.netns)} ${endpoint.interface}`;

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
