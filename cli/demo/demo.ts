/**
 * The demo: two hosts in namespaces, a container on each, and the same measurements three times – both hosts on
 * Weft, one on Weft and one on the kernel's bridge and vxlan, both on the kernel's. In between containers talk to a world
 * outside, and it to them; then Weft's network is encrypted, and an ear on the wire hears what is left to be read there.
 */
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { kernelVxlan, Lab, type Namespace } from '../lab.js';
import { Engine, type EngineFigures } from './engine.js';
import { MEASUREMENTS, type Measures, type Pair } from './measure.js';
import { type Asked, askOutside, buildOutside, outsideConfig } from './outside.js';
import type { Progress } from './progress.js';
import { type ReplayFigures, replayCapture } from './replay.js';
import { Ear, type Heard } from './wire.js';

const VNI = 42;
const MTU = 1450;
const UNDERLAY = 'under0';
/** What Weft uses unless a file says otherwise. */
const PORTS = { vxlan: 4789, esp: 4500, keys: 7949 } as const;

interface Host {
  readonly node: string;
  readonly vtep: string;
  readonly peer: string;
  readonly endpoint: string;
  readonly address: string;
  readonly mac: string;
}

const HOSTS: readonly [Host, Host] = [
  {
    node: 'hostA',
    vtep: '192.168.50.1',
    peer: '192.168.50.2',
    endpoint: 'c1',
    address: '10.0.9.1',
    mac: '02:42:0a:00:09:01',
  },
  {
    node: 'hostB',
    vtep: '192.168.50.2',
    peer: '192.168.50.1',
    endpoint: 'c2',
    address: '10.0.9.2',
    mac: '02:42:0a:00:09:02',
  },
];

/** Whose hosts carry the frames. */
const STAGES = ['weft', 'mixed', 'kernel'] as const;
export type Stage = (typeof STAGES)[number];

const STAGE_TITLES: Record<Stage, string> = {
  weft: 'Weft to Weft',
  mixed: 'Weft to kernel',
  kernel: 'kernel to kernel',
};

/** What is measured again when the network is encrypted. */
const ENCRYPTED = MEASUREMENTS.filter(({ key }) => key === 'ping' || key === 'tcp');

/** Steps that the progress line counts. */
export const STEPS = 10 + STAGES.length * MEASUREMENTS.length + ENCRYPTED.length;

/** Weft to Weft, encrypted. */
interface EncryptionReport extends Pick<Measures, 'ping' | 'tcp'> {
  /** What was heard between the hosts while all was plain, and while it was encrypted. */
  readonly heard: { readonly plain: Heard; readonly encrypted: Heard } | undefined;
  /** Why nobody listened. */
  readonly deaf: string | undefined;
}

export interface DemoReport {
  /** Wall clock of everything. */
  readonly seconds: number;
  readonly stages: Record<Stage, Measures>;
  readonly encryption: EncryptionReport;
  readonly outside: readonly Asked[];
  /** As they were when all was plain. */
  readonly engines: readonly EngineFigures[];
  readonly replay: ReplayFigures;
}

/** A step that went wrong, with its name. */
class DemoError extends Error {}

export class Demo {
  private readonly lab: Lab;
  private readonly directory: string;
  private readonly hosts: Namespace[] = [];
  private readonly containers: Namespace[] = [];
  private readonly engines: Engine[] = [];
  private world: Namespace | undefined;
  /** Of the ring that the hosts share. */
  private readonly secrets = [randomBytes(32), randomBytes(32)].map((bytes) => bytes.toString('hex'));
  private readonly clean = (): void => this.close();
  private fail: (error: Error) => void = () => undefined;
  /** Rejects when an engine ends by itself: whatever step is under way then has failed. */
  private readonly failure: Promise<never>;

  /** @throws Error when this process may not make namespaces. */
  constructor(
    private readonly progress: Progress,
    private readonly seconds: number,
  ) {
    this.lab = Lab.create();
    this.directory = mkdtempSync(join(tmpdir(), 'weft-demo-'));
    process.on('exit', this.clean);
    this.failure = new Promise((_, reject) => {
      this.fail = reject;
    });
    this.failure.catch(() => undefined);
  }

  /** Kills and removes everything the demo made. Synchronous, so that it also works while the process exits. */
  close(): void {
    process.off('exit', this.clean);
    try {
      this.lab.close();
    } finally {
      rmSync(this.directory, { recursive: true, force: true });
    }
  }

  /** @throws DemoError that names the step. */
  async run(): Promise<DemoReport> {
    const began = performance.now();
    await this.step('two hosts, a container on each, an underlay between them', async () => this.build());
    const ear = await this.step('starting the engine of each host', () => this.startEngines());
    const weft = await this.measure('weft');
    const figures = [await this.engines[0].figures(), await this.engines[1].figures()];
    const outside = await this.outside();
    const encryption = await this.encrypt(ear);
    await this.step("host B: the engine stops, the kernel's bridge and vxlan take over", async () => {
      await this.engines[0].change(this.config(0, false));
      await this.replace(1);
    });
    const mixed = await this.measure('mixed');
    await this.step("host A: the kernel's bridge and vxlan take over, too", () => this.replace(0));
    const kernel = await this.measure('kernel');
    const replay = await this.step('replaying a capture through the same elements', () =>
      replayCapture(this.hosts[0]),
    );
    const seconds = (performance.now() - began) / 1000;
    return { seconds, stages: { weft, mixed, kernel }, outside, encryption, engines: figures, replay };
  }

  private async step<T>(title: string, work: () => Promise<T>): Promise<T> {
    this.progress.step(title);
    try {
      return await Promise.race([work(), this.failure]);
    } catch (error) {
      const said = this.engines
        .filter((engine) => engine.said !== '')
        .map((engine) => `\nthe engine of ${engine.node} said:\n${engine.said}`);
      throw new DemoError(`the demo failed at: ${title}\n${(error as Error).message}${said.join('')}`);
    }
  }

  private build(): void {
    for (const { node, endpoint } of HOSTS) {
      this.hosts.push(this.lab.host(node));
      this.containers.push(this.lab.host(endpoint));
    }
    this.lab.link(this.hosts[0], this.hosts[1], {
      nameA: UNDERLAY,
      nameB: UNDERLAY,
      addressesA: [`${HOSTS[0].vtep}/24`],
      addressesB: [`${HOSTS[1].vtep}/24`],
    });
    this.world = buildOutside(this.lab, this.hosts);
  }

  private async startEngines(): Promise<Ear> {
    const started = HOSTS.map((host, i) =>
      Engine.start(this.hosts[i], {
        directory: this.directory,
        node: host.node,
        config: this.config(i, false),
        onEnd: (error) => this.fail(error),
      }),
    );
    this.engines.push(...(await Promise.all(started)));
    return Ear.open(this.hosts[1], UNDERLAY, PORTS);
  }

  /** Publishes containers by the files of running engines, and asks from inside and outside. */
  private async outside(): Promise<Asked[]> {
    await this.step('both files get a published port and a service: reloaded', async () => {
      for (const index of [0, 1]) await this.engines[index].change(this.config(index, false, true));
    });
    return this.step('out to the world, and in from it', () =>
      askOutside([this.containers[0], this.containers[1]], this.world!),
    );
  }

  /** Encrypts the network of running engines, by their files, and measures and listens again. */
  private async encrypt(ear: Ear): Promise<EncryptionReport> {
    const listen = () => ear.listen(this.containers[0], HOSTS[1].address);
    const plain = await this.step('Weft to Weft: marked pings, and an ear on the wire', listen);
    await this.step('both files say "encrypted: true": reloaded, keys agreed on', async () => {
      await this.engines[0].change(this.config(0, true));
      // The ear is at host B: from here on host A has nothing plain to say.
      await ear.restart();
      await this.engines[1].change(this.config(1, true));
      await Promise.all(this.engines.map((engine) => engine.agreed()));
    });
    const { ping, tcp } = await this.measureAs('encrypted', ENCRYPTED);
    const encrypted = await this.step('encrypted: marked pings, and an ear on the wire', listen);
    await ear.close();
    return { ping, tcp, heard: plain && encrypted && { plain, encrypted }, deaf: ear.deaf };
  }

  private config(index: number, encrypted: boolean, services = false): string {
    const backends = services ? HOSTS.map(({ address }) => address) : [];
    const outside = outsideConfig(index, HOSTS[index].endpoint, backends);
    return configOf(HOSTS[index], this.containers[index], this.secrets, encrypted) + outside;
  }

  /** Puts the kernel's overlay in the place of an engine. */
  private async replace(index: 0 | 1): Promise<void> {
    await this.engines[index].stop();
    const { vtep, peer, address, mac } = HOSTS[index];
    kernelVxlan(this.hosts[index], this.containers[index], {
      vni: VNI,
      local: vtep,
      remote: peer,
      underlayDev: UNDERLAY,
      address: `${address}/24`,
      mac,
      mtu: MTU,
    });
  }

  private measure(stage: Stage): Promise<Measures> {
    return this.measureAs(STAGE_TITLES[stage], MEASUREMENTS);
  }

  private async measureAs(name: string, measurements: typeof MEASUREMENTS): Promise<Measures> {
    const [c1, c2] = this.containers;
    const { seconds } = this;
    const pair: Pair = { c1, c2, address2: HOSTS[1].address, broadcast: '10.0.9.255', seconds };
    const measured: Partial<Record<keyof Measures, Measures[keyof Measures]>> = {};
    for (const { key, title, run } of measurements)
      measured[key] = await this.step(`${name}: ${title}`, () => run(pair));
    return measured as Measures;
  }
}

/**
 * A node's file as a user would write it. The keys are there before anything is encrypted, so that encryption can begin
 * while the engine runs; the MTU of an encrypted network is what ESP leaves of the underlay's.
 */
function configOf(host: Host, container: Namespace, secrets: readonly string[], encrypted: boolean): string {
  const { node, vtep, peer, endpoint, address, mac } = host;
  const keys = secrets.map((secret, i) => `    - { id: ${i + 1}, secret: "${secret}" }\n`);
  const how = encrypted ? 'encrypted: true' : `mtu: ${MTU}`;
  return `node: ${node}
underlay: { address: ${vtep} }
encryption:
  keys:
${keys.join('')}ingress: { vni: 4096, subnet: 10.255.0.0/16, peers: [${peer}] }
networks:
  - { name: blue, vni: ${VNI}, subnet: 10.0.9.0/24, gateway: 10.0.9.254, uplink: out, ${how}, peers: [${peer}] }
endpoints:
  - { name: ${endpoint}, network: blue, netns: ${container.name}, interface: eth0, address: ${address}/24, mac: "${mac}" }
`;
}
