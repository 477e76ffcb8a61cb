/** Linux's own way: a bridge and a veth for each container, and a vxlan device between hosts. */
import { kernelAttach, kernelVxlan } from '../../cli/lab.js';
import { CARD, INTERFACE, overlayAddress, overlayMac, type Site, VNI } from './site.js';

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
