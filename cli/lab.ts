/** Laboratories out of network namespaces: what `weft demo`, `weft bench` and the live tests stand on. */
export {
  CommandError,
  type CommandResult,
  RunningCommand,
  type RunOptions,
  toolEnvironment,
  waitFor,
} from '../control/command.js';
export {
  type AttachOptions,
  type KernelVxlan,
  type KernelVxlanOptions,
  kernelAttach,
  kernelVxlan,
} from './lab/kernel-vxlan.js';
export { Lab, type LinkOptions, sweepStale, type UnderlayOptions } from './lab/lab.js';
export { Namespace, type RouteOptions } from './lab/namespace.js';
export {
  type Iperf3Options,
  type Iperf3Result,
  iperf3,
  type PingOptions,
  type PingResult,
  ping,
} from './lab/traffic.js';
