/** What this host says about a config that is sound in itself: problems with their place in the file and a remedy. */
import { existsSync, readFileSync } from 'node:fs';
import { dirname } from 'node:path';
import type { UplinkIntent } from '../engine/intent.js';
import { native } from '../native-bindings/index.js';
import { type Config, type HostProblem, hostError, netnsPath } from './config.js';
import {
  closeEsp,
  closeUnderlay,
  type EspSocket,
  openEsp,
  openUnderlay,
  type UnderlaySockets,
} from './devices.js';
import { FlowFile } from './flow-file.js';
import { HostSide, type HostSideOptions, hostUplinkProblems } from './host-uplink.js';
import { interfaceOf, type LocalInterface } from './interfaces.js';
import { openRouter, routerProblems } from './router.js';

/** Bits of CAP_NET_ADMIN and CAP_SYS_ADMIN (capabilities(7)). */
const NEEDED = (1n << 12n) | (1n << 21n);

function lacksRights(): boolean {
  const effective = /^CapEff:\s*([0-9a-f]+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0';
  return (BigInt(`0x${effective}`) & NEEDED) !== NEEDED;
}

/** What can be known before anything is touched. @throws ConfigError with every problem. */
export function checkHost(file: string, config: Config): LocalInterface {
  const problems: HostProblem[] = [];
  if (lacksRights()) {
    problems.push({
      path: [],
      message: 'weft up needs root, with CAP_NET_ADMIN and CAP_SYS_ADMIN, to make interfaces',
      remedy: 'run it with sudo, or in a container that has these capabilities',
    });
  }
  const device = interfaceOf(config.underlay.address);
  if (!device) {
    problems.push({
      path: ['underlay', 'address'],
      message: `no interface of this host has the address ${config.underlay.address}`,
      remedy: `write an address that "ip address" shows here, or add this one to an interface`,
    });
  }
  if (config.encryption && native.gcmLibraries().length === 0) {
    problems.push({
      path: ['encryption'],
      message: 'this host has no library for AES-GCM, so it cannot encrypt',
      remedy: 'see "weft doctor"',
    });
  }
  config.endpoints.forEach((endpoint, index) => {
    if (endpoint.kind !== 'local' || existsSync(netnsPath(endpoint.netns))) return;
    problems.push({
      path: ['endpoints', index, 'netns'],
      message: `the network namespace ${endpoint.netns} does not exist`,
      remedy: `make it with "ip netns add ${endpoint.netns}", or correct the name`,
    });
  });
  problems.push(...routerProblems(config), ...hostUplinkProblems(config));
  if (problems.length > 0) throw hostError(file, problems);
  return device!;
}

/** What carries packets to other hosts: of each one a worker, of ESP none without encryption. */
export interface Sockets {
  readonly sockets: readonly UnderlaySockets[];
  readonly esp: readonly EspSocket[];
  /** Of each uplink, in the order of the config. */
  readonly uplinks: readonly UplinkIntent[];
  /** That of mode host, whose rules and routes are still to be made. */
  readonly host: HostSide | undefined;
  /** Of the flow table; none without uplinks and services, and where there were no services just before. */
  readonly flows: FlowFile | undefined;
}

/** @throws ConfigError that points at what is taken or wrong; nothing is left open. */
export function openSockets(options: HostSideOptions, config: Config): Sockets {
  const { file } = options;
  const sockets = openVxlan(file, config);
  let esp: EspSocket[] = [];
  let host: HostSide | undefined;
  let flows: FlowFile | undefined;
  try {
    host = HostSide.open(options, config);
    esp = openEspSockets(file, config);
    flows = openFlows(options, config);
    return { sockets, esp, uplinks: openUplinks(file, config, host), host, flows };
  } catch (error) {
    host?.close();
    closeUnderlay(sockets);
    closeEsp(esp);
    flows?.close();
    throw error;
  }
}

/** @param keepFlows whether the next process is to find the flows; unless told, when they were found. */
export function closeSockets({ sockets, esp, uplinks, host, flows }: Sockets, keepFlows?: boolean): void {
  closeUnderlay(sockets);
  closeEsp(esp);
  closeRouters(uplinks);
  host?.close(keepFlows);
  flows?.close(keepFlows);
}

function openFlows({ file, state }: HostSideOptions, config: Config): FlowFile | undefined {
  const isUsed = config.uplinks.length + config.services.length > 0;
  // Flows of services that are gone must end, and with several workers there is no table.
  if (!isUsed && (config.workers > 1 || !FlowFile.hasServices(state))) {
    FlowFile.discard(state);
    return undefined;
  }
  try {
    return FlowFile.open(state, config);
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const remedy =
      code === 'ENOSPC'
        ? `make room in ${dirname(state)}, lower nat.max_flows, or choose another place with --socket`
        : 'see the message';
    throw hostError(file, [{ path: ['nat'], message: `no file for the flows: ${message}`, remedy }]);
  }
}

function closeRouters(uplinks: readonly UplinkIntent[]): void {
  for (const { fd, tap } of uplinks) if (!tap) native.close(fd);
}

function openUplinks(file: string, config: Config, host: HostSide | undefined): UplinkIntent[] {
  const uplinks: UplinkIntent[] = [];
  const problems: HostProblem[] = [];
  config.uplinks.forEach((uplink, index) => {
    try {
      uplinks.push(uplink.mode === 'host' ? host!.intent : openRouter(uplink));
    } catch (error) {
      const remedy = 'check that the interface is there, and that weft may open packet sockets (CAP_NET_RAW)';
      problems.push({ path: ['uplinks', index, 'interface'], message: (error as Error).message, remedy });
    }
  });
  if (problems.length === 0) return uplinks;
  closeRouters(uplinks);
  throw hostError(file, problems);
}

function openVxlan(file: string, { underlay, workers }: Config): UnderlaySockets[] {
  try {
    return openUnderlay(underlay, workers);
  } catch (error) {
    const remedy =
      'stop what listens there ("ss -ulpn" shows it; a kernel vxlan device is not shown), or choose another port here and at every peer';
    const paths = { taken: ['underlay', 'port'], otherwise: ['underlay', 'address'] };
    throw hostError(file, [socketProblem(error as Error, underlay.address, underlay.port, paths, remedy)]);
  }
}

function openEspSockets(file: string, { encryption, underlay, workers }: Config): EspSocket[] {
  if (encryption === undefined) return [];
  const { encapsulation, port } = encryption;
  try {
    return openEsp(underlay, encapsulation === 'udp' ? port : 0, workers);
  } catch (error) {
    const remedy =
      'stop what listens there (an IKE daemon does; "ss -ulpn" shows it), or choose another port here and at every peer';
    const paths = { taken: ['encryption', 'port'], otherwise: ['encryption'] };
    throw hostError(file, [socketProblem(error as Error, underlay.address, port, paths, remedy)]);
  }
}

/**
 * What a socket could not be opened for, as a problem of the file.
 * @param paths of the key that is at fault when the port is taken, and for any other reason.
 * @param remedy for a port that is taken.
 */
export function socketProblem(
  { code, message }: NodeJS.ErrnoException,
  address: string,
  port: number,
  paths: { readonly taken: readonly string[]; readonly otherwise: readonly string[] },
  remedy: string,
): HostProblem {
  return code === 'EADDRINUSE'
    ? { path: paths.taken, message: `UDP port ${port} of ${address} is in use`, remedy }
    : { path: paths.otherwise, message, remedy: 'see the message' };
}
