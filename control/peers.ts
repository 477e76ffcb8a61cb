/** What the path to each VTEP of a node's file is, and whether the overlay's MTUs fit through it. */
import { parseIp } from './addresses.js';
import { type Config, carriedNetworks, largestMtu } from './config.js';
import type { LocalInterface } from './interfaces.js';
import { PathProber, type PathResult } from './path-mtu.js';

/** Paths measured at the same time. */
const CONCURRENT = 32;

export interface NetworkVerdict {
  readonly name: string;
  /** Inner MTU the network has, bytes. */
  readonly mtu: number;
  /** Largest inner MTU the path carries whole, bytes; undefined when the path is not known. */
  readonly largest: number | undefined;
  readonly verdict: 'right' | 'too-large' | 'smaller' | 'unknown';
}

export interface PeerReport extends PathResult {
  readonly vtep: string;
  /** The networks that reach hosts through it. */
  readonly networks: readonly NetworkVerdict[];
}

/** VTEPs of other hosts in a node's file, in the order in which it names them. */
export function remoteVteps(config: Config): string[] {
  const peers = carriedNetworks(config).flatMap((network) => network.peers);
  const stations = config.endpoints.flatMap((endpoint) =>
    endpoint.kind === 'remote' ? [endpoint.vtep] : [],
  );
  return [...new Set([...peers, ...stations])].filter((vtep) => vtep !== config.underlay.address);
}

/**
 * Measures the paths to VTEPs.
 * @param link the interface that has the underlay's address; no packet is tried that is larger than its MTU.
 * @throws ProbeUnavailable when this process cannot send echoes.
 */
export async function measurePeers(
  config: Config,
  link: LocalInterface,
  vteps: readonly string[],
): Promise<PeerReport[]> {
  const prober = await PathProber.open(parseIp(config.underlay.address));
  try {
    const reports: PeerReport[] = [];
    for (let i = 0; i < vteps.length; i += CONCURRENT) {
      const group = vteps.slice(i, i + CONCURRENT).map(async (vtep) => {
        const path = await prober.measure(parseIp(vtep), link.mtu);
        return { vtep, ...path, networks: judge(config, link, vtep, path.mtu) };
      });
      reports.push(...(await Promise.all(group)));
    }
    return reports;
  } finally {
    prober.close();
  }
}

function judge(
  config: Config,
  link: LocalInterface,
  vtep: string,
  pathMtu: number | undefined,
): NetworkVerdict[] {
  return carriedNetworks(config)
    .filter(
      ({ name, peers }) =>
        peers.includes(vtep) ||
        config.endpoints.some((end) => end.kind === 'remote' && end.network === name && end.vtep === vtep),
    )
    .map((network) => {
      const mtu = network.mtu ?? largestMtu(config, network, config.underlay.mtu ?? link.mtu);
      const largest = pathMtu === undefined ? undefined : largestMtu(config, network, pathMtu);
      return { name: network.name, mtu, largest, verdict: verdictOf(mtu, largest) };
    });
}

function verdictOf(mtu: number, largest: number | undefined): NetworkVerdict['verdict'] {
  if (largest === undefined) return 'unknown';
  if (mtu > largest) return 'too-large';
  return mtu === largest ? 'right' : 'smaller';
}

/** One sentence for people about a network's MTU on a path. */
export function sentence({ name, mtu, largest, verdict }: NetworkVerdict): string {
  if (verdict === 'unknown') return `${name}: mtu ${mtu} not checked`;
  if (verdict === 'right') return `${name}: mtu ${mtu} is right`;
  if (verdict === 'smaller') return `${name}: mtu ${mtu} fits (up to ${largest} would)`;
  return `${name}: mtu ${mtu} is too large for the path, it should be ${largest}`;
}
