/**
 * Containers behind a tunnel that carries IP packets, where the others carry frames. The tunnel ends in the hosts, as
 * VXLAN does; each host routes between its container's veth and the tunnel, and the container reaches its neighbour of
 * the same subnet through a gateway. What measures sees the same interfaces and addresses as everywhere else.
 */
import { GATEWAY, overlayAddress, PORT, type Site, UNDERLAY_MTU } from './site.js';

/**
 * What fits through the underlay: WireGuard and Nebula both add a header of 16 bytes and a tag of 16 behind UDP (8)
 * and IPv4 (20) or IPv6 (40).
 */
export function tunnelMtu({ ipv6 }: Site): number {
  return UNDERLAY_MTU - (ipv6 ? 80 : 60);
}

/** Attaches a container to its host. The route from the host to the other container is the tunnel's affair. */
export function routeContainer(site: Site, index: number): void {
  const host = site.hosts[index];
  site.attachVeth(index, tunnelMtu(site));
  host.enableForwarding();
  host.ipBatch([`addr add ${GATEWAY}/32 dev ${PORT}`, `route add ${overlayAddress(index)} dev ${PORT}`]);
  site.containers[index].route(overlayAddress(1 - index), { via: GATEWAY });
}
