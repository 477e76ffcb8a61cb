/**
 * Who is measured: Weft, the kernel, loops in C that do nothing but move frames, and Open vSwitch in userspace; and
 * among the encrypted Weft, wireguard-go and Nebula.
 */
import { CommandError, EXIT } from '../../cli/output.js';
import { kernelBridge, kernelMasquerade, kernelOverlay } from './kernel.js';
import { tapLoop, uplinkLoop } from './loops.js';
import { nebula, nebulaMissing } from './nebula.js';
import { openVswitch, openVswitchMissing } from './open-vswitch.js';
import type { Site, Topology } from './site.js';
import { weftGateway, weftOneHost, weftTwoHosts } from './weft.js';
import { wireguard, wireguardMissing } from './wireguard.js';

/** What ratios are taken of: the kernel's own way, and the loop that is the bound. */
type Role = 'weft' | 'kernel' | 'loop' | 'other';

export interface Contender {
  readonly name: string;
  /** In tables and charts. */
  readonly title: string;
  readonly role: Role;
  /** Whether what passes between the hosts is encrypted. */
  readonly encrypted?: true;
  /** Why it cannot run on this machine, or undefined. */
  missing?(): string | undefined;
  /** Joins the site's containers. @throws Unavailable when this machine cannot, Error when it should but did not. */
  up(site: Site): Promise<void>;
}

const ONE_HOST: readonly Contender[] = [
  { name: 'weft', title: 'Weft', role: 'weft', up: weftOneHost },
  { name: 'kernel', title: 'Linux bridge + veth', role: 'kernel', up: kernelBridge },
  { name: 'c-loop', title: 'C loop, TAP ↔ TAP', role: 'loop', up: tapLoop },
];

const TWO_HOSTS: readonly Contender[] = [
  {
    name: 'weft-uplink',
    title: 'Weft, uplink TAP',
    role: 'weft',
    up: (site) => weftTwoHosts(site, 'uplink'),
  },
  {
    name: 'weft-socket',
    title: 'Weft, UDP socket',
    role: 'weft',
    up: (site) => weftTwoHosts(site, 'socket'),
  },
  { name: 'kernel', title: 'Linux bridge + vxlan', role: 'kernel', up: kernelOverlay },
  { name: 'c-loop', title: 'C loop, uplink TAP', role: 'loop', up: uplinkLoop },
  {
    name: 'ovs',
    title: 'Open vSwitch, userspace',
    role: 'other',
    missing: openVswitchMissing,
    up: openVswitch,
  },
  {
    name: 'weft-encrypted-uplink',
    title: 'Weft ESP/UDP, uplink',
    role: 'weft',
    encrypted: true,
    up: (site) => weftTwoHosts(site, 'uplink', 'udp'),
  },
  {
    name: 'weft-encrypted-socket',
    title: 'Weft ESP/UDP, socket',
    role: 'weft',
    encrypted: true,
    up: (site) => weftTwoHosts(site, 'socket', 'udp'),
  },
  {
    name: 'weft-encrypted-esp',
    title: 'Weft ESP, raw socket',
    role: 'weft',
    encrypted: true,
    up: (site) => weftTwoHosts(site, 'socket', 'esp'),
  },
  {
    name: 'wireguard-go',
    title: 'wireguard-go',
    role: 'other',
    encrypted: true,
    missing: wireguardMissing,
    up: wireguard,
  },
  { name: 'nebula', title: 'Nebula', role: 'other', encrypted: true, missing: nebulaMissing, up: nebula },
];

const GATEWAY: readonly Contender[] = [
  { name: 'weft-router', title: 'Weft, own router', role: 'weft', up: (site) => weftGateway(site, 'router') },
  { name: 'weft-host', title: 'Weft, mode host', role: 'weft', up: (site) => weftGateway(site, 'host') },
  { name: 'kernel', title: 'Linux bridge + nft masquerade', role: 'kernel', up: kernelMasquerade },
];

const CONTENDERS: Readonly<Record<Topology, readonly Contender[]>> = {
  'one-host': ONE_HOST,
  'two-hosts': TWO_HOSTS,
  gateway: GATEWAY,
};

export const TOPOLOGY_TITLES: Readonly<Record<Topology, string>> = {
  'one-host': 'Two containers on one host',
  'two-hosts': 'Two hosts, a container on each, an overlay between them',
  gateway: 'A container and a server outside, address translation between them',
};

/** Picks by name; `weft` stands for every contender whose name begins with it. @throws CommandError */
export function selectContenders(topologies: readonly Topology[], only: readonly string[] | undefined) {
  const matches = (contender: Contender, name: string): boolean =>
    contender.name === name || contender.name.startsWith(`${name}-`);
  const all = topologies.flatMap((topology) => CONTENDERS[topology]);
  const unknown = only?.find((name) => !all.some((contender) => matches(contender, name)));
  if (unknown !== undefined) {
    const names = [...new Set(all.map(({ name }) => name))].join(', ');
    throw new CommandError(`there is no contender ${unknown}; there are ${names}`, EXIT.usage);
  }
  return topologies
    .map((topology) => ({
      topology,
      contenders: CONTENDERS[topology].filter(
        (contender) => only === undefined || only.some((name) => matches(contender, name)),
      ),
    }))
    .filter(({ contenders }) => contenders.length > 0);
}
