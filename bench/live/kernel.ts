/** Linux's own way: a bridge and a veth for each container, a vxlan device between hosts, nftables at the way out. */
import { kernelAttach, kernelVxlan } from '../../cli/lab.js';
import {
  CARD,
  GATEWAY,
  INTERFACE,
  overlayAddress,
  overlayMac,
  type Site,
  UNDERLAY_MTU,
  VNI,
} from './site.js';

const attachment = (site: Site, index: number) => ({
  devName: INTERFACE,
  address: `${overlayAddress(index)}/24`,
  mac: overlayMac(index),
  mtu: site.mtu,
});

export async function kernelBridge(site: Site): Promise<void> {
  const [host] = site.hosts;
  host.ipBatch(['link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0', 'link set br0 up']);
  for (const [index, container] of site.containers.entries()) {
    kernelAttach(host, container, 'br0', attachment(site, index));
  }
}

export async function kernelOverlay(site: Site): Promise<void> {
  for (const [index, host] of site.hosts.entries()) {
    kernelVxlan(host, site.containers[index], {
      vni: VNI,
      local: site.vtep(index),
      remote: site.vtep(1 - index),
      underlayDev: CARD,
      ...attachment(site, index),
    });
  }
}

/** As Docker's bridge network: the bridge is the gateway, and what leaves the host is masqueraded. */
export async function kernelMasquerade(site: Site): Promise<void> {
  const [host] = site.hosts;
  const [container] = site.containers;
  host.ipBatch(['link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0', 'link set br0 up']);
  host.addAddresses('br0', [`${GATEWAY}/24`]);
  kernelAttach(host, container, 'br0', { ...attachment(site, 0), mtu: UNDERLAY_MTU });
  container.route('default', { via: GATEWAY });
  host.enableForwarding();
  await host.run('nft', [
    'add table ip nat; add chain ip nat out { type nat hook postrouting priority srcnat; };' +
      `add rule ip nat out ip saddr 10.0.9.0/24 oifname ${CARD} masquerade`,
  ]);
}
