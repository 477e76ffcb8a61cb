/**
 * A mesh in which the second host is the VM with the kernel's ESP: network blue is encrypted between it and Weft on the
 * first host, by associations that both have written down.
 */
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { isDeepStrictEqual } from 'node:util';
import { ping } from '../../../cli/lab.js';
import { fingerprint } from '../../../control/keying/persist.js';
import type { SaRow } from '../../../control/keying/store.js';
import { Secret } from '../../../control/secret.js';
import { KernelVm } from '../kernel-vm.js';
import { type Engine, Mesh, type NodeFile, overlayAddress, overlayMac, underlayAddress } from '../live.js';
import { EspPeer, type KernelSa } from './esp.js';

/** How the underlay is used, which Weft chooses when it starts. */
export interface Shape {
  readonly v6: boolean;
  readonly encapsulation: 'esp' | 'udp';
  readonly mode: 'auto' | 'socket';
}

/** One association of each direction, named as the VM has them: it sends on `out`, and Weft on `in`. */
export interface Pair {
  readonly out: KernelSa;
  readonly in: KernelSa;
}

export const shapeName = ({ v6, encapsulation, mode }: Shape): string =>
  `IPv${v6 ? 6 : 4}, ${encapsulation === 'esp' ? 'protocol 50' : 'in UDP'}, underlay ${mode}`;

/** SPIs are counted, so that none comes twice. */
let spis = 0x1000;

/** Associations with keys of their own; `bits` of the AES key. */
export function newPair(options: Omit<KernelSa, 'spi' | 'key'> & { bits?: 128 | 192 | 256 } = {}): Pair {
  const { bits = 128, ...rest } = options;
  const sa = (): KernelSa => ({ ...rest, spi: ++spis, key: randomBytes(bits / 8 + 4) });
  return { out: sa(), in: sa() };
}

/** An association of the VM as Weft's file has it, where its direction is the other one. */
function written(direction: 'in' | 'out', sa: KernelSa, v6: boolean): Record<string, unknown> {
  const { spi, key, icv = 16, esn = false, replayWindow = 1024 } = sa;
  return {
    peer: underlayAddress(2, v6),
    direction: direction === 'in' ? 'out' : 'in',
    spi,
    algorithm: `aes-${(key.length - 4) * 8}-gcm-${icv}`,
    key: Buffer.from(key).toString('hex'),
    esn,
    replay_window: replayWindow,
  };
}

export class EspMesh extends Mesh {
  vm!: KernelVm;
  /** What the VM gives to whoever connects to its TCP port 7002. To port 7001 it answers with a digest. */
  data!: string;
  /** What `connect` made last. */
  weft!: Engine;
  peer!: EspPeer;
  private shape: Shape | undefined;

  static async boot(): Promise<EspMesh> {
    const mesh = new EspMesh({ hosts: 2 });
    try {
      mesh.vm = await KernelVm.asHost(mesh, 2);
      for (const v6 of [false, true])
        await ping(mesh.hosts[0], underlayAddress(2, v6), { count: 1, deadlineS: 10 });
      // Takes data and answers with its digest; gives data.
      mesh.data = randomBytes(96_000).toString('base64');
      await mesh.vm.run('tee', ['/run/data'], { input: mesh.data });
      await mesh.vm.sh(
        'nc -ll -p 7001 -e sha256sum >/dev/null 2>&1 &\nnc -ll -p 7002 -e cat /run/data >/dev/null 2>&1 &',
      );
      return mesh;
    } catch (error) {
      mesh.close();
      throw error;
    }
  }

  /** Weft's file: it sends on the first pair that is given, and receives on all of them. */
  espFile(shape: Shape, ...pairs: readonly [Pair, ...Pair[]]): NodeFile {
    const { v6, encapsulation, mode } = shape;
    const file = this.fileOf(1);
    return {
      ...file,
      underlay: { address: underlayAddress(1, v6), mode },
      networks: [{ ...file.networks[0], encrypted: true, peers: [underlayAddress(2, v6)] }],
      encryption: { encapsulation },
      security_associations: [
        written('in', pairs[0].in, v6),
        ...pairs.map((pair) => written('out', pair.out, v6)),
      ],
    };
  }

  /**
   * Makes the VM container 2 of network blue, encrypted by these associations; what was before is taken away. Weft is
   * started, or only reloaded where it runs in this shape already and need not begin at a certain number.
   * @param theirs associations of the VM, when it is to have others than Weft.
   */
  async connect(shape: Shape, pair: Pair, theirs = pair): Promise<void> {
    const { vm } = this;
    const { v6 } = shape;
    await this.leave();
    // First, so that nothing meets a kernel that has no association yet.
    await this.give(shape, theirs);
    const file = this.espFile(shape, pair);
    if (isDeepStrictEqual(this.shape, shape) && !pair.in.sequence) await this.weft.change(file);
    else {
      await this.stop();
      this.weft = this.engineAt(file, pair.in, v6);
      await this.weft.start();
    }
    this.shape = shape;
    await vm.vxlan({
      ...{ vni: 42, local: underlayAddress(2, v6), remote: underlayAddress(1, v6), mac: overlayMac(2) },
      addresses: [`${overlayAddress(2)}/24`, `${overlayAddress(2, true)}/64`],
      mtu: (await this.weft.status()).networks[0].mtu,
    });
  }

  /** Takes the VM out of the network: what it then sends is plain. */
  private async leave(): Promise<void> {
    await this.vm.exec('ip', ['link', 'del', 'vxlan42']); // which is not there at first
    await this.peer?.down();
  }

  private async stop(): Promise<void> {
    if (this.shape) await this.weft.stop();
    this.shape = undefined;
  }

  /** Weft with another file, and the VM as it was at first. */
  async instead(file: NodeFile | string): Promise<void> {
    await this.leave();
    await this.stop();
    this.weft = this.engine(this.hosts[0], file);
    await this.weft.start();
  }

  /** Gives the VM these associations in place of those it had. */
  async give({ v6, encapsulation }: Shape, pair: Pair): Promise<void> {
    await this.peer?.down();
    const [local, remote] = [underlayAddress(2, v6), underlayAddress(1, v6)];
    this.peer = await EspPeer.up(this.vm, { local, remote, ...pair, encapsulation });
  }

  /** An engine that numbers on from the association's `sequence`, as one does that has sent so much before. */
  private engineAt(file: NodeFile, sa: KernelSa, v6: boolean): Engine {
    const engine = this.engine(this.hosts[0], file);
    const id = fingerprint({
      ...{ peer: underlayAddress(2, v6), direction: 'out', spi: sa.spi, esn: true, replayWindow: 1024 },
      algorithm: 'aes-128-gcm-16',
      key: new Secret(Buffer.from(sa.key).toString('hex')),
    });
    writeFileSync(
      `${engine.socket}.state.sequences`,
      JSON.stringify({ sequences: { [id]: sa.sequence ?? 0 } }),
    );
    return engine;
  }

  /** Weft's row of an association. */
  async row({ spi }: KernelSa): Promise<SaRow> {
    return (await this.weft.associations()).find((row) => row.spi === spi)!;
  }
}
