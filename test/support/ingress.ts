/**
 * Three nodes with a container each, on one underlay, and clients on a link that all nodes have an uplink on:
 *
 *   c1, c2, c3 (blue) ── h1, h2, h3 ── out0 ── world (192.168.60.0/24) ── k1, k2
 */
import { type Namespace, ping, waitFor } from '../../cli/lab.js';
import { Mesh, type MeshOptions, overlayAddress, underlayAddress } from './live.js';

export const VIP = '10.0.9.100';
export const VIP6 = 'fd00:9::100';
/** Address of node `n`'s uplink, and of client `n`. */
export const uplinkAddress = (n: number): string => `192.168.60.${10 + n}`;
export const clientAddress = (n: number): string => `192.168.60.${200 + n}`;
export const uplinkAddress6 = (n: number): string => `fd00:60::${10 + n}`;
export const clientAddress6 = (n: number): string => `fd00:60::${200 + n}`;

const NETWORK = { gateway: '10.0.9.254', gateway6: 'fd00:9::fe', uplink: 'out' };

export class IngressRig extends Mesh {
  readonly clients: readonly Namespace[];

  constructor(
    options: Partial<MeshOptions> & {
      readonly services: readonly Record<string, unknown>[];
      readonly marks?: readonly Record<string, unknown>[];
    },
  ) {
    super({ hosts: 3, ...options, network: { ...NETWORK, ...options.network } });
    this.clients = [1, 2].map((n) => this.lab.host(`k${n}`));
    const ends = [...this.hosts, ...this.clients];
    this.lab.bridgeUnderlay(ends, {
      label: 'world',
      device: 'out0',
      addresses: ends.map((_, i) =>
        i < 3
          ? [`192.168.60.${100 + i}/24`, `fd00:60::${100 + i}/64`]
          : [`${clientAddress(i - 2)}/24`, `${clientAddress6(i - 2)}/64`],
      ),
    });
    for (const n of [1, 2, 3]) {
      const others = [1, 2, 3].filter((other) => other !== n);
      this.engines.push(
        this.engine(this.hosts[n - 1], {
          ...this.fileOf(n),
          uplinks: [
            {
              ...{ name: 'out', interface: 'out0' },
              ...{ address: `${uplinkAddress(n)}/24`, address6: `${uplinkAddress6(n)}/64` },
            },
          ],
          ingress: {
            ...{ vni: 4096, subnet: '10.255.0.0/16' },
            peers: others.map((other) => underlayAddress(other, options.v6 ?? false)),
            ...((options.network?.['encrypted'] as boolean) ? { encrypted: true } : {}),
          },
          services: options.services,
          ...(options.marks && { marks: options.marks }),
        }),
      );
    }
  }

  async begin(): Promise<this> {
    await this.start(...this.engines);
    return this;
  }

  /** Waits until the clients have their addresses of IPv6, which a fresh interface tries first (RFC 4862, 5.4). */
  async resolve6(): Promise<void> {
    for (const client of this.clients)
      for (const node of [1, 2, 3])
        await waitFor(
          async () => (await ping(client, uplinkAddress6(node), { count: 1, deadlineS: 5 })).received === 1,
          { what: `${client.label} to reach ${uplinkAddress6(node)}` },
        );
  }
}

/** A service of all three containers, published at port 8080 of each node. */
export function webService(more: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    ...{ name: 'web', network: 'blue', vip: VIP },
    publish: [{ protocol: 'tcp', port: 8080, target: 80, mode: 'ingress' }],
    backends: [1, 2, 3].map((n) => ({
      address: overlayAddress(n),
      ...(more['vip6'] !== undefined && { address6: overlayAddress(n, true) }),
    })),
    ...more,
  };
}
