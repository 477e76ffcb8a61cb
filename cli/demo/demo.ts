/**
 * The demo: two hosts in namespaces, a container on each, and the same measurements three times – both hosts on
 * Weft, one on Weft and one on the kernel's bridge and vxlan, both on the kernel's.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { kernelVxlan, Lab, type Namespace } from '../lab.js';
import { Engine, type EngineFigures } from './engine.js';
import { MEASUREMENTS, type Measures, type Pair } from './measure.js';
import type { Progress } from './progress.js';
import { type ReplayFigures, replayCapture } from './replay.js';

const VNI = 42;
const MTU = 1450;
const UNDERLAY = 'under0';

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

/** Steps that the progress line counts. */
export const STEPS = 5 + STAGES.length * MEASUREMENTS.length;

export interface DemoReport {
  /** Wall clock of everything. */
  readonly seconds: number;
  readonly stages: Record<Stage, Measures>;
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
    await this.step('starting the engine of each host', () => this.startEngines());
    const weft = await this.measure('weft');
    const figures = [await this.engines[0].figures(), await this.engines[1].figures()];
    await this.step("host B: the engine stops, the kernel's bridge and vxlan take over", () =>
      this.replace(1),
    );
    const mixed = await this.measure('mixed');
    await this.step("host A: the kernel's bridge and vxlan take over, too", () => this.replace(0));
    const kernel = await this.measure('kernel');
    const replay = await this.step('replaying a capture through the same elements', () =>
      replayCapture(this.hosts[0]),
    );
    const seconds = (performance.now() - began) / 1000;
    return { seconds, stages: { weft, mixed, kernel }, engines: figures, replay };
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
  }

  private async startEngines(): Promise<void> {
    const started = HOSTS.map((host, i) =>
      Engine.start(this.hosts[i], {
        directory: this.directory,
        node: host.node,
        config: configOf(host, this.containers[i]),
        onEnd: (error) => this.fail(error),
      }),
    );
    this.engines.push(...(await Promise.all(started)));
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

  private async measure(stage: Stage): Promise<Measures> {
    const [c1, c2] = this.containers;
    const { seconds } = this;
    const pair: Pair = { c1, c2, address2: HOSTS[1].address, broadcast: '10.0.9.255', seconds };
    const measured: Partial<Record<keyof Measures, Measures[keyof Measures]>> = {};
    for (const { key, title, run } of MEASUREMENTS)
      measured[key] = await this.step(`${STAGE_TITLES[stage]}: ${title}`, () => run(pair));
    return measured as Measures;
  }
}

/** A node's file as a user would write it. */
function configOf({ node, vtep, peer, endpoint, address, mac }: Host, container: Namespace): string {
  return `node: ${node}
underlay: { address: ${vtep}, port: 4789 }
networks:
  - { name: blue, vni: ${VNI}, subnet: 10.0.9.0/24, mtu: ${MTU}, peers: [${peer}] }
endpoints:
  - { name: ${endpoint}, network: blue, netns: ${container.name}, interface: eth0, address: ${address}/24, mac: "${mac}" }
`;
}
