/** The kernel's own overlay, as a peer for ours and as what we are measured against: bridge, vxlan and veth. */
import type { Namespace } from './namespace.js';

export interface AttachOptions {
  /** Interface in the container; `eth0` unless told. */
  devName?: string;
  /** Addresses with prefix length. */
  address: string | readonly string[];
  mac?: string;
  /** Bytes; 1450 unless told. */
  mtu?: number;
}

export interface KernelVxlanOptions extends AttachOptions {
  vni: number;
  /** Own VTEP, IPv4 or IPv6. */
  local: string;
  /** Other VTEPs; frames to unknown and to group addresses go to each (head-end replication). */
  remote?: string;
  remotes?: readonly string[];
  /** UDP port; 4789 unless told. */
  port?: number;
  /** Interface of the underlay in the host. */
  underlayDev: string;
  /** More words for `ip link add … type vxlan`, such as `udp6zerocsumrx` or `nolearning`. */
  extra?: readonly string[];
}

export interface KernelVxlan {
  /** Names of the devices in the host. */
  bridge: string;
  vxlan: string;
}

/** Builds bridge `br<vni>` and vxlan device `vx<vni>` in the host and attaches the container. @throws CommandError */
export function kernelVxlan(host: Namespace, container: Namespace, options: KernelVxlanOptions): KernelVxlan {
  const { vni, local, port = 4789, mtu = 1450, underlayDev, extra = [] } = options;
  const remotes = [...(options.remote ? [options.remote] : []), ...(options.remotes ?? [])];
  const bridge = `br${vni}`;
  const vxlan = `vx${vni}`;
  const type = `type vxlan id ${vni} local ${local} dstport ${port} dev ${underlayDev}`;
  host.ipBatch([
    `link add ${bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0`,
    `link add ${vxlan} mtu ${mtu} ${type} ${extra.join(' ')}`,
    `link set ${vxlan} master ${bridge}`,
    `link set ${vxlan} up`,
    `link set ${bridge} up`,
  ]);
  for (const remote of remotes) {
    host.bridge('fdb', 'append', '00:00:00:00:00:00', 'dev', vxlan, 'dst', remote);
  }
  kernelAttach(host, container, bridge, options);
  return { bridge, vxlan };
}

/** Joins one more container to a bridge of the host. @returns the name of the bridge's port. @throws CommandError */
export function kernelAttach(
  host: Namespace,
  container: Namespace,
  bridge: string,
  options: AttachOptions,
): string {
  const { devName = 'eth0', address, mac, mtu = 1450 } = options;
  const taken = new Set(
    (JSON.parse(host.ip('-j', 'link', 'show')) as { ifname: string }[]).map(({ ifname }) => ifname),
  );
  let index = 0;
  while (taken.has(`ct${index}`)) index++;
  const port = `ct${index}`;
  const peer = `name ${devName} mtu ${mtu} ${mac ? `address ${mac}` : ''} netns ${container.name}`;
  host.ipBatch([
    `link add ${port} mtu ${mtu} type veth peer ${peer}`,
    `link set ${port} master ${bridge}`,
    `link set ${port} up`,
  ]);
  container.ip('link', 'set', devName, 'up');
  container.addAddresses(devName, typeof address === 'string' ? [address] : address);
  return port;
}
