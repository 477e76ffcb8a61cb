/** The host's own interfaces, as far as the underlay needs to know them. */
import { runSync } from './command.js';

export interface LocalInterface {
  readonly name: string;
  /** `ether`, `loopback`, `none` … */
  readonly linkType: string;
  /** Bytes. */
  readonly mtu: number;
  readonly up: boolean;
}

interface Listed {
  readonly ifname: string;
  readonly link_type: string;
  readonly mtu: number;
  readonly flags: readonly string[];
  readonly addr_info: readonly { local: string }[];
}

function listed(): Listed[] {
  return JSON.parse(runSync('ip', ['-j', 'address', 'show'])) as Listed[];
}

function described(link: Listed | undefined): LocalInterface | undefined {
  if (link === undefined) return undefined;
  return { name: link.ifname, linkType: link.link_type, mtu: link.mtu, up: link.flags.includes('UP') };
}

/** The interface of this host that has the address; undefined when none has. @throws CommandError without `ip`. */
export function interfaceOf(address: string): LocalInterface | undefined {
  return described(listed().find(({ addr_info }) => addr_info.some(({ local }) => local === address)));
}

/** The interface of this host with the name; undefined when there is none. @throws CommandError without `ip`. */
export function interfaceNamed(name: string): LocalInterface | undefined {
  return described(listed().find(({ ifname }) => ifname === name));
}
