/**
 * Uplinks on the host's side: the packet socket by which the engine is a router of its own on an interface. The
 * interface stays the host's; nothing of it is changed but that it receives for one MAC more.
 */
import type { UplinkIntent } from '../engine/intent.js';
import { native } from '../native-bindings/index.js';
import { deriveMac, ipBytes, macBytes, parsePrefix } from './addresses.js';
import type { Config, HostProblem, RouterUplink } from './config.js';
import { interfaceNamed, interfaceOf } from './interfaces.js';

/** What of the host keeps uplinks from being; addresses must not be the host's own, which would answer too. */
export function routerProblems({ uplinks }: Config): HostProblem[] {
  return uplinks.flatMap((uplink, index): HostProblem[] => {
    if (uplink.mode !== 'router') return [];
    const device = interfaceNamed(uplink.interface);
    const problems: HostProblem[] = [];
    if (device === undefined || device.linkType !== 'ether') {
      problems.push({
        path: ['uplinks', index, 'interface'],
        message: device
          ? `${uplink.interface} is no Ethernet interface`
          : `this host has no interface ${uplink.interface}`,
        remedy: 'write the name of an Ethernet interface that "ip link" shows here',
      });
    }
    for (const key of ['address', 'address6'] as const) {
      const address = uplink[key]?.split('/')[0];
      const owner = address === undefined ? undefined : interfaceOf(address);
      if (owner === undefined) continue;
      problems.push({
        path: ['uplinks', index, key],
        message: `${address} is this host's own address, on ${owner.name}`,
        remedy: 'write another free address of that link: Weft is a router beside the host there',
      });
    }
    return problems;
  });
}

/** Opens the packet socket of an uplink. @throws Error with `code`, the errno's name. */
export function openRouter(uplink: RouterUplink): UplinkIntent {
  const { address, length } = parsePrefix(uplink.address);
  const mac = deriveMac(address);
  const group = uplink.address6 && solicitedNodeMac(uplink.address6);
  return {
    fd: native.packetOpen({ interface: uplink.interface, mac, group }),
    tap: false,
    mac: macBytes(mac),
    address: Uint8Array.from(address.bytes),
    length,
    ...(uplink.gateway !== undefined && { gateway: ipBytes(uplink.gateway) }),
    ...(uplink.address6 !== undefined && { v6: uplinkIntent6(uplink.address6, uplink.gateway6) }),
    clampMss: uplink.clampMss,
    mtu: interfaceNamed(uplink.interface)?.mtu ?? 1500,
  };
}

/** MAC of the group that is asked for an address (RFC 4291 section 2.7.1; RFC 2464 section 7). */
function solicitedNodeMac(address: string): string {
  const last = Array.from(parsePrefix(address).address.bytes.slice(-3));
  return ['33:33:ff', ...last.map((byte) => byte.toString(16).padStart(2, '0'))].join(':');
}

function uplinkIntent6(prefix: string, gateway: string | undefined): NonNullable<UplinkIntent['v6']> {
  const { address, length } = parsePrefix(prefix);
  return {
    address: Uint8Array.from(address.bytes),
    length,
    ...(gateway !== undefined && { gateway: ipBytes(gateway) }),
  };
}
