/**
 * Three nodes with a container each, on one underlay, and clients on a link that all nodes have an uplink on:
 *
 *   c1, c2, c3 (blue) ── h1, h2, h3 ── out0 ── world (192.168.60.0/24) ── k1, k2
 */
import type { Namespace } from '../../cli/lab.js';
import { Mesh, type MeshOptions, overlayAddress, underlayAddress } from './live.js';

export const VIP = '10.0.9.100';
/** Address of node `n`'s uplink, and of client `n`. */
export const uplinkAddress = (n: number): string => `192.168.60.${10 + n}`;
export const clientAddress = (n: number): string => `192.168.60.${200 + n}`;

export class IngressRig extends Mesh {
  readonly clients: readonly Namespace[];

  constructor(options: Partial<MeshOptions> & { readonly services: readonly Record<string, unknown>[] }) {
    super({ hosts: 3, network: { gateway: '10.0.9.254', uplink: 'out' }, ...options });
    this.clients = [1, 2].map((n) => this.lab.host(`k${n}`));
    const ends = [...this.hosts, ...this.clients];
    this.lab.bridgeUnderlay(ends, {
      label: 'world',
      device: 'out0',
      addresses: ends.map((_, i) => [i < 3 ? `192.168.60.${100 + i}/24` : `${clientAddress(i - 2)}/24`]),
    });
    for (const n of [1, 2, 3]) {
      const others = [1, 2, 3].filter((other) => other !== n);
      this.engines.push(
        this.engine(this.hosts[n - 1], {
          ...this.fileOf(n),
          uplinks: [{ name: 'out', interface: 'out0', address: `${uplinkAddress(n)}/24` }],
          ingress: {
            ...{ vni: 4096, subnet: '10.255.0.0/16' },
            peers: others.map((other) => underlayAddress(other, options.v6 ?? false)),
            ...((options.network?.['encrypted'] as boolean) ? { encrypted: true } : {}),
          },
          services: options.services,
        }),
      );
    }
  }

  async begin(): Promise<this> {
    await this.start(...this.engines);
    return this;
  }
}

/** A service of all three containers, published at port 8080 of each node. */
export function webService(more: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    ...{ name: 'web', network: 'blue', vip: VIP },
    publish: [{ protocol: 'tcp', port: 8080, target: 80, mode: 'ingress' }],
    backends: [1, 2, 3].map((n) => ({ address: overlayAddress(n) })),
    ...more,
  };
}
