/**
 * Uplinks on the host's side: the packet socket by which the engine is a router of its own on an interface. The
 * interface stays the host's; nothing of it is changed but that it receives for one MAC more.
 */
import type { UplinkIntent } from '../engine/intent.js';
import { flowBytes } from '../engine/tables/flows.js';
import { native } from '../native-bindings/index.js';
import { deriveMac, macBytes, parsePrefix } from './addresses.js';
import type { Config, HostProblem, Uplink } from './config.js';
import { interfaceNamed, interfaceOf } from './interfaces.js';

export interface OpenRouter {
  readonly uplink: Uplink;
  readonly fd: number;
  readonly mac: string;
  /** MTU of the interface, bytes. */
  readonly mtu: number;
  /** Entries of its flow table, which the data plane writes. */
  readonly flows: SharedArrayBuffer;
}

/** What of the host keeps uplinks from being; addresses must not be the host's own, which would answer too. */
export function routerProblems({ uplinks }: Config): HostProblem[] {
  return uplinks.flatMap((uplink, index): HostProblem[] => {
    const device = interfaceNamed(uplink.interface);
    const { address } = parsePrefix(uplink.address);
    const owner = interfaceOf(address.text);
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
    if (owner !== undefined) {
      problems.push({
        path: ['uplinks', index, 'address'],
        message: `${address.text} is this host's own address, on ${owner.name}`,
        remedy: 'write another free address of that link: Weft is a router beside the host there',
      });
    }
    return problems;
  });
}

/** @param maxFlows flows that it can track. @throws Error with `code`, the errno's name. */
export function openRouter(uplink: Uplink, maxFlows: number): OpenRouter {
  const mac = deriveMac(parsePrefix(uplink.address).address);
  const fd = native.packetOpen({ interface: uplink.interface, mac });
  const mtu = interfaceNamed(uplink.interface)?.mtu ?? 1500;
  return { uplink, fd, mac, mtu, flows: new SharedArrayBuffer(flowBytes(maxFlows)) };
}

export function closeRouters(routers: readonly OpenRouter[]): void {
  for (const { fd } of routers) native.close(fd);
}

export function uplinkIntentOf({ uplink, fd, mac, mtu, flows }: OpenRouter): UplinkIntent {
  const { address, length } = parsePrefix(uplink.address);
  return {
    fd,
    flows,
    mac: macBytes(mac),
    address: Uint8Array.from(address.bytes),
    length,
    ...(uplink.gateway === undefined
      ? {}
      : { gateway: Uint8Array.from(parsePrefix(`${uplink.gateway}/32`).address.bytes) }),
    mtu,
  };
}
