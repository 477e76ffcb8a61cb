/**
 * The daemon of a node: brings a config up, follows changes of its file, answers questions, takes everything down.
 *
 * Start: underlay sockets first, since a taken port tells of another daemon before any container is touched; then
 * TAPs; then the worker. What fails midway is undone: interfaces that were made are removed, those that were there
 * stay. A reload validates the whole file first and changes nothing when anything is wrong with it; what fails later
 * is undone, or is said.
 */
import { type AssociationIntent, GATEWAY_PORT, type Intent } from '../engine/intent.js';
import type { FlowFilter } from '../engine/publisher.js';
import { AssociationState } from '../engine/tables/association-state.js';
import type { Tap } from '../native-bindings/index.js';
import { formatIp } from './addresses.js';
import {
  type Attached,
  attachAll,
  convergeAll,
  endpointsOf,
  leaveBehind,
  localEndpoints,
  namespaceOf,
  remember,
  remove,
  removeLeftOvers,
  undo,
  undoFresh,
} from './attached.js';
import {
  type Config,
  carriedNetworks,
  hostError,
  type LocalEndpoint,
  largestMtu,
  loadConfig,
} from './config.js';
import { type Shape, shapeOf } from './devices.js';
import { EngineTeam, RefusedError, TornError } from './engine-team.js';
import type { FlowFile } from './flow-file.js';
import { hearHealth } from './health.js';
import { checkHost, closeSockets, openSockets, type Sockets } from './host.js';
import type { LocalInterface } from './interfaces.js';
import { Keying } from './keying/keying.js';
import { removeTable } from './nftables.js';
import { createPlan, intentOf, type Plan, randomSeed, savePlan } from './plan.js';
import { PublishedPorts } from './published.js';
import { failuresOf, ReloadError } from './reload-error.js';
import { Seen } from './seen.js';
import { rememberedTaps, rememberTaps } from './state.js';
import { unchangeable } from './unchangeable.js';
import { closeUplink, type Link, LinkWatch, openUplink, tableOf, type Uplink } from './uplink.js';

/** How often to look whether namespaces are still there. */
const NAMESPACES_MS = 1000;

/** TUN_F_USO4 and TUN_F_USO6 among the offloads of a TAP. */
const TUN_F_USO = 0x60;

export interface DaemonOptions {
  /** Path of the node's file. */
  readonly file: string;
  /** Where the daemon notes which interfaces it made, so that a start after a crash finds what is left over. */
  readonly state: string;
  /** Where it says what happens; one line a call. */
  readonly log: (line: string) => void;
}

export class Daemon {
  config: Config;
  underlayDevice: LocalInterface;
  readonly started = Date.now();
  readonly plan: Plan;
  private attached = new Map<string, Attached>();
  private thread: EngineTeam | undefined;
  readonly published = new PublishedPorts();
  private reloading = Promise.resolve();

  /** The uplink TAP, or why there is none. */
  readonly uplink: Uplink | string;
  private readonly associationState: AssociationState | undefined;
  private opened: Keying | undefined;
  private readonly seen: Seen;
  private watch: LinkWatch | undefined;
  private links: readonly Link[] = [];
  private readonly look = setInterval(() => this.loseNamespaces(), NAMESPACES_MS).unref();

  private constructor(
    private readonly options: DaemonOptions,
    config: Config,
    device: LocalInterface,
    private readonly sockets: Sockets,
  ) {
    const { address, port, mode } = config.underlay;
    const { encryption } = config;
    const espPorts = encryption?.encapsulation === 'udp' ? [encryption.port] : [];
    this.uplink =
      mode === 'socket'
        ? 'underlay.mode says socket'
        : openUplink(address, [port, ...espPorts], device, config.workers, options.log);
    // An uplink replaces the rules that a crash left; without one they would lead into a device which is gone.
    if (typeof this.uplink === 'string') removeTable(tableOf(address, port));
    this.plan = createPlan(sockets.flows);
    this.config = config;
    this.seen = new Seen(options.log);
    this.underlayDevice = device;
    this.associationState = encryption && new AssociationState();
  }

  /** What can be known of a file before anything is touched. @throws ConfigError */
  static check(file: string): { config: Config; device: LocalInterface } {
    const config = loadConfig(file);
    return { config, device: checkHost(file, config) };
  }

  /**
   * Brings a node up; resolves when every port forwards.
   * @throws ConfigError when the file, or what it asks of this host, is wrong: nothing is left half-configured.
   */
  static async start(options: DaemonOptions, onFailure: (error: Error) => void): Promise<Daemon> {
    const { config, device } = Daemon.check(options.file);
    const daemon = new Daemon(options, config, device, openSockets(options, config));
    const remembered = rememberedTaps(options.state);
    try {
      daemon.requireUplink();
      daemon.opened = await daemon.openKeying();
      removeLeftOvers(options.state, config);
      remember(options.state, localEndpoints(config));
      daemon.attached = daemon.attachAll(config, new Map());
      daemon.number(config);
      daemon.followLinks();
      daemon.published.prepare(options.file, config).commit();
      daemon.sockets.host?.apply(config, daemon.published.current, (network) => daemon.mtuOf(network));
      const intents = daemon.intents();
      daemon.sockets.flows?.change(config, daemon.plan, intents[0]);
      const associations = daemon.associationState?.buffer ?? null;
      daemon.thread = await EngineTeam.start(intents, randomSeed(), associations);
      daemon.sockets.flows?.settle(config, daemon.plan, intents[0]);
      await daemon.keying.start();
    } catch (error) {
      clearInterval(daemon.look);
      await daemon.thread?.stop();
      daemon.opened?.close();
      daemon.closeUplink();
      for (const attached of daemon.attached.values()) undo(attached);
      closeSockets(daemon.sockets);
      daemon.published.close();
      rememberTaps(options.state, remembered);
      throw error;
    }
    daemon.sayPath();
    for (const line of daemon.sockets.flows?.said() ?? []) options.log(line);
    // What changed while the worker started.
    daemon.applyAgain();
    daemon.thread.on('failed', onFailure);
    daemon.thread.on('segmentation-refused', () =>
      options.log('the way to the underlay does not segment UDP for us: frames go one by one from now on'),
    );
    daemon.thread.on('port-lost', (id) => daemon.markLost(id));
    daemon.thread.on('seen', (address, saw) => daemon.seen.say(formatIp(address), saw));
    daemon.thread.on('health', (changes) =>
      hearHealth(daemon.plan.services, daemon.config, changes, options.log),
    );
    return daemon;
  }

  private openKeying(): Promise<Keying> {
    const { options, config, associationState: state } = this;
    return Keying.open({
      ...{ file: options.file, config, state, stateFile: options.state, log: options.log },
      apply: (associations) => this.associate(associations),
    });
  }

  /** Security associations and the exchange that makes them. */
  get keying(): Keying {
    if (!this.opened) throw new Error('internal: asked for keys before the node was up');
    return this.opened;
  }

  private get running(): EngineTeam {
    if (!this.thread) throw new Error('the data plane is not running');
    return this.thread;
  }

  /** MTU of a network's interfaces, bytes. */
  mtuOf(network: string, config = this.config): number {
    const found = carriedNetworks(config).find(({ name }) => name === network)!;
    return found.mtu ?? largestMtu(config, found, config.underlay.mtu ?? this.underlayDevice.mtu);
  }

  /** What the network of an endpoint makes of its interface. */
  private shapeOf({ network }: LocalEndpoint, config: Config): Shape {
    return shapeOf(config.networks.find(({ name }) => name === network)!, this.mtuOf(network, config));
  }

  /** What each worker is to do. */
  private intents(config = this.config, attached = this.attached, published = this.published.current) {
    const queues = new Map<string, readonly Tap[]>();
    for (const { endpoint, taps, lost } of attached.values()) if (!lost) queues.set(endpoint.name, taps);
    const opened = {
      ...this.sockets,
      published,
      uplink: typeof this.uplink === 'string' ? undefined : this.uplink,
      mtu: this.watch?.mtu ?? this.underlayDevice.mtu,
      queues,
      links: this.links,
      mtuOf: (network: string) => this.mtuOf(network, config),
      udpSegmentation: this.udpSegmentation,
    };
    return this.sockets.sockets.map((_, worker) => intentOf(config, this.plan, opened, worker));
  }

  /** Any TAP tells, since it is the kernel that accepts offloads. */
  private get udpSegmentation(): boolean {
    const taps = [...this.attached.values()].flatMap((attached) => attached.taps);
    if (typeof this.uplink !== 'string') taps.push(...this.uplink.taps);
    return taps.some(({ offloads }) => (offloads & TUN_F_USO) === TUN_F_USO);
  }

  private attachAll(config: Config, kept: ReadonlyMap<string, Attached>): Map<string, Attached> {
    return attachAll(this.options.file, config, kept, (endpoint) => this.shapeOf(endpoint, config));
  }

  private number(config: Config): void {
    this.plan.networks.assign(carriedNetworks(config).map(({ name }) => name));
    this.plan.endpoints.assign(localEndpoints(config).map(({ name }) => name));
  }

  /** Follows the next hops of all VTEPs that the config names, when there is an uplink to use them. */
  private followLinks(config = this.config): void {
    if (typeof this.uplink === 'string') return;
    this.watch ??= new LinkWatch(config.underlay.address, this.underlayDevice, this.uplink, {
      log: this.options.log,
      onChange: (links) => {
        this.links = links;
        this.applyAgain();
      },
    });
    const remote = config.endpoints.flatMap((endpoint) =>
      endpoint.kind === 'remote' ? [endpoint.vtep] : [],
    );
    this.links = this.watch.follow([...carriedNetworks(config).flatMap(({ peers }) => peers), ...remote]);
  }

  /** Tells the worker what is now, once there is one. After a reload under way, or it would be what was before it. */
  applyAgain(): Promise<void> {
    const applied = this.reloading.then(() => this.thread?.apply(this.intents()));
    this.reloading = applied.catch((error: Error) => {
      this.options.log(`not applied: ${error.message}`);
    });
    return applied;
  }

  private associate(associations: readonly AssociationIntent[]): Promise<void> {
    for (const { direction, vtep } of associations) if (direction === 'out') this.seen.keyed(formatIp(vtep));
    return this.running.associate(associations);
  }

  private sayPath(): void {
    const { uplink } = this;
    if (typeof uplink !== 'string')
      this.options.log(`underlay: super-frames whole through ${uplink.taps[0].name}`);
    else this.options.log(`underlay: UDP sockets (${uplink})`);
    if (this.attached.size > 0 && !this.udpSegmentation)
      this.options.log(
        "this kernel's TAPs take no UDP super-frames (Linux 6.2 does): UDP goes frame by frame",
      );
  }

  private requireUplink(): void {
    if (this.config.underlay.mode !== 'uplink' || typeof this.uplink !== 'string') return;
    throw hostError(this.options.file, [
      {
        path: ['underlay', 'mode'],
        message: `this host cannot have an uplink TAP: ${this.uplink}`,
        remedy: 'write "mode: auto", which takes sockets instead',
      },
    ]);
  }

  private closeUplink(): void {
    this.watch?.close();
    if (typeof this.uplink !== 'string') closeUplink(this.uplink);
  }

  /**
   * Reads the file again and applies the difference.
   * @throws ReloadError that says what came of it; ConfigError or another Error, and then nothing has changed.
   */
  reload(): Promise<void> {
    const next = this.reloading.then(() => this.reloadNow());
    this.reloading = next.catch(() => undefined);
    return next;
  }

  private async reloadNow(): Promise<void> {
    const config = loadConfig(this.options.file);
    const fixed = unchangeable(this.config, config, this.sockets.flows);
    if (fixed.length > 0) throw hostError(this.options.file, fixed);
    await this.keying.prepare(config);
    const device = checkHost(this.options.file, config);
    this.loseNamespaces();
    const before = this.attached;
    const ports = this.published.prepare(this.options.file, config);
    const undo = this.saved();
    let attached = before;
    let intents: readonly Intent[];
    try {
      remember(this.options.state, [...endpointsOf(before), ...localEndpoints(config)]);
      this.underlayDevice = device;
      attached = this.attachAll(config, before);
      this.sockets.host?.apply(config, ports.ports, (network) => this.mtuOf(network, config));
      this.number(config);
      this.followLinks(config);
      intents = this.intents(config, attached, ports.ports);
      this.sockets.flows?.change(config, this.plan, intents[0]);
      await this.running.apply(intents);
    } catch (error) {
      // What is between two files may use all that was opened for either.
      if (error instanceof TornError) throw new ReloadError(`not reloaded: ${error.message}`);
      ports.abandon();
      throw await undo(attached, error as Error);
    }
    ports.commit();
    this.config = config;
    this.attached = attached;
    const kept = new Set([...attached.values()].map(({ taps }) => taps[0].fd));
    for (const old of before.values()) if (!kept.has(old.taps[0].fd)) remove(old);
    const failures = await failuresOf([
      () => this.sockets.flows?.settle(config, this.plan, intents[0]),
      () => this.keying.reload(config),
      () => remember(this.options.state, localEndpoints(config)),
    ]);
    if (failures.length > 0) throw new ReloadError(`reloaded, but for this:\n${failures.join('\n')}`);
  }

  /** What is now. Returns what makes everything so again, once the workers are what they were. */
  private saved(): (opened: ReadonlyMap<string, Attached>, error: Error) => Promise<Error> {
    const { config, attached, underlayDevice, options } = this;
    const undoNumbers = savePlan(this.plan);
    return async (opened, error) => {
      this.underlayDevice = underlayDevice;
      undoNumbers();
      undoFresh(opened, attached);
      const failures = await failuresOf([
        () => convergeAll(config, attached, attached, (endpoint) => this.shapeOf(endpoint, config)),
        () => this.sockets.host?.apply(config, this.published.current, (network) => this.mtuOf(network)),
        () => this.followLinks(),
        () => this.sockets.flows?.settle(config, this.plan, this.intents()[0]),
        () => remember(options.state, endpointsOf(attached)),
      ]);
      // Next hops may be others by now.
      this.applyAgain();
      if (failures.length > 0)
        return new ReloadError(
          `not reloaded: ${error.message}\nnor is all as it was before:\n${failures.join('\n')}`,
        );
      if (!(error instanceof RefusedError)) return error;
      const said = 'all is as it was before, but for connections that this file would have ended';
      return new ReloadError(`not reloaded: ${error.message}\n${said}`);
    };
  }

  private markLost(id: number): void {
    const name = this.plan.endpoints.nameOf(id);
    for (const attached of this.attached.values()) if (attached.endpoint.name === name) this.lose(attached);
  }

  private lose(attached: Attached): void {
    if (attached.lost) return;
    attached.lost = true;
    const { name, netns } = attached.endpoint;
    this.options.log(
      `endpoint ${name}: its interface is gone (was the namespace ${netns} removed?); send SIGHUP when it is back`,
    );
    this.reloading = this.reloading.then(() => this.release()).catch(() => undefined);
  }

  /** Our descriptors keep a namespace alive whose name is gone, so the kernel never tells of it: look. */
  private loseNamespaces(): void {
    for (const attached of this.attached.values())
      if (namespaceOf(attached.endpoint) !== attached.namespace) this.lose(attached);
  }

  /** Lets go of what is lost: with our descriptors the last of a removed namespace goes. */
  private async release(): Promise<void> {
    const gone = [...this.attached.values()].filter(({ lost, closed }) => lost && !closed);
    if (gone.length === 0) return;
    await this.running.apply(this.intents());
    for (const attached of gone) remove(attached);
  }

  /** Name of the endpoint or VTEP behind a destination number. */
  endpointName(port: number): string {
    if (port === GATEWAY_PORT) return 'gateway';
    return this.plan.endpoints.nameOf(port) ?? `port ${port}`;
  }

  networkName(domain: number): string {
    return this.plan.networks.nameOf(domain) ?? `domain ${domain}`;
  }

  endpoints(): {
    endpoint: LocalEndpoint;
    port: number;
    reattached: boolean;
    lost: boolean;
    offloads: number;
  }[] {
    return [...this.attached.values()].map(({ endpoint, taps, reattached, lost }) => ({
      endpoint,
      port: this.plan.endpoints.of(endpoint.name),
      reattached,
      lost,
      offloads: taps[0].offloads,
    }));
  }

  counters(): Record<string, Record<string, number>> {
    return this.running.read();
  }

  load(): number[] {
    return this.running.load();
  }

  inspect(): ReturnType<EngineTeam['inspect']> {
    return this.running.inspect();
  }

  flush(): Promise<void> {
    return this.running.flush();
  }

  /** The flow table, written by the data plane meanwhile; none without uplinks and services. */
  flowTable(): Pick<FlowFile, 'entries' | 'numbered' | 'watch'> | undefined {
    return this.sockets.flows;
  }

  flushFlows(filter: FlowFilter): Promise<number> {
    return this.running.flushFlows(filter);
  }

  domainOf(network: string): number {
    return this.plan.networks.of(network);
  }

  /** Stops forwarding and removes every interface and socket; or leaves interfaces and flows to the next process. */
  async stop(leave = false): Promise<void> {
    clearInterval(this.look);
    await this.reloading;
    await this.running.stop();
    this.keying.close();
    this.closeUplink();
    for (const attached of this.attached.values()) (leave ? leaveBehind : remove)(attached);
    this.attached.clear();
    closeSockets(this.sockets, leave);
    this.published.close();
    if (!leave) rememberTaps(this.options.state, []);
  }
}
