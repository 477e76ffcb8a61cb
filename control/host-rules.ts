/**
 * The one nftables table, of each IP version, by which the host's stack serves an uplink of mode host: it masquerades
 * what leaves, hands over published ports, and lets nothing into the TAP that was not asked for.
 */

/** A port of the host that stands for one of an endpoint. */
export interface HostPort {
  readonly protocol: string;
  /** Address of the host; undefined: all of them. */
  readonly address: string | undefined;
  readonly port: number;
  /** Of the endpoint. */
  readonly to: string;
  readonly target: number;
}

export interface HostRules {
  readonly family: 4 | 6;
  readonly table: string;
  readonly tap: string;
  /** Prefixes of the networks that leave by it, and those of them that the host's address replaces. */
  readonly prefixes: readonly string[];
  readonly masqueraded: readonly string[];
  /** Whether connections announce no longer segments than their ways take. */
  readonly clampMss: boolean;
  /** Interfaces that forward because of us, and are to forward for nobody else. */
  readonly opened: readonly string[];
  readonly published: readonly HostPort[];
  /** Source of what the host sends to a published port by its loopback; undefined: that way is not there. */
  readonly self: string | undefined;
}

/** Name of the table: one for each node and uplink, so that a start finds what a crash left. */
export function hostTable(node: string, uplink: string): string {
  return `weft_host_${`${node}_${uplink}`.replaceAll(/[^A-Za-z0-9]/g, '_')}`;
}

function named(kind: 'set' | 'map', name: string, type: string, elements: readonly string[]): string {
  const list = elements.length === 0 ? '' : ` elements = { ${[...new Set(elements)].join(', ')} };`;
  return `  ${kind} ${name} { type ${type};${list} }`;
}

const TERMS = {
  4: {
    family: 'ip',
    address: 'ipv4_addr',
    redirect: 'icmp type redirect',
    loopback: '127.0.0.0/8',
  },
  6: {
    family: 'ip6',
    address: 'ipv6_addr',
    redirect: 'icmpv6 type nd-redirect',
    loopback: '::1',
  },
} as const;

/** Text for `nft -f`: replaces the table as a whole, in one transaction. */
export function hostRules(rules: HostRules): string {
  const { table, tap, published, self } = rules;
  const { family, address, redirect, loopback } = TERMS[rules.family];
  const here = published.filter((port) => port.address !== undefined);
  const anywhere = published.filter((port) => port.address === undefined);
  const interval = `${address}; flags interval; auto-merge`;
  const lines = [
    `table ${family} ${table} {}`,
    `delete table ${family} ${table}`,
    `table ${family} ${table} {`,
    named('set', 'prefixes', interval, rules.prefixes),
    named('set', 'masqueraded', interval, rules.masqueraded),
    named(
      'set',
      'opened',
      'ifname',
      rules.opened.map((name) => `"${name}"`),
    ),
    named(
      'map',
      'here',
      `${address} . inet_proto . inet_service : ${address} . inet_service`,
      here.map((one) => `${one.address} . ${one.protocol} . ${one.port} : ${one.to} . ${one.target}`),
    ),
    named(
      'map',
      'anywhere',
      `inet_proto . inet_service : ${address} . inet_service`,
      anywhere.map(({ protocol, port, to, target }) => `${protocol} . ${port} : ${to} . ${target}`),
    ),
    named(
      'set',
      'targets',
      `inet_proto . ${address} . inet_service`,
      published.map(({ protocol, to, target }) => `${protocol} . ${to} . ${target}`),
    ),
    '  chain from_tap {',
    '    type filter hook prerouting priority raw;',
    // The TAP may route loopback addresses, for the host's own sake: containers must not use that.
    `    iifname "${tap}" ${family} daddr ${loopback} drop`,
    '  }',
    '  chain published {',
    `    fib daddr type local dnat ${family} to ${family} daddr . meta l4proto . th dport map @here`,
    `    fib daddr type local dnat ${family} to meta l4proto . th dport map @anywhere`,
    '  }',
    '  chain prerouting {',
    '    type nat hook prerouting priority dstnat;',
    '    jump published',
    '  }',
    '  chain output {',
    '    type nat hook output priority -100;',
    // ::1 cannot leave the loopback, so it must not be led away from it.
    ...(self === undefined ? [`    ${family} daddr ${loopback} accept`] : []),
    '    jump published',
    '  }',
    '  chain forward {',
    '    type filter hook forward priority filter;',
    ...(rules.clampMss
      ? ['iifname', 'oifname'].map(
          (side) => `    ${side} "${tap}" tcp flags syn tcp option maxseg size set rt mtu`,
        )
      : []),
    '    iifname @opened oifname "weft-*" accept',
    `    iifname @opened oifname != "${tap}" drop`,
    // What conntrack does not understand it does not translate.
    `    iifname "${tap}" oifname != "${tap}" ${family} saddr @masqueraded ct state invalid drop`,
    '  }',
    '  chain into_tap {',
    // Behind routing, so that it sees what the host sends as well as what it forwards.
    '    type filter hook postrouting priority filter;',
    `    oifname "${tap}" jump enter`,
    '  }',
    '  chain enter {',
    `    ${redirect} drop`,
    ...(rules.family === 6 ? ['    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept'] : []),
    '    ct state related accept',
    '    ct state established ct direction reply accept',
    `    ct status dnat meta l4proto . ${family} daddr . th dport @targets accept`,
    '    counter drop',
    '  }',
    '  chain postrouting {',
    '    type nat hook postrouting priority srcnat;',
    // Hairpin: the answer must come back here, whichever container it is for.
    `    oifname "${tap}" ${family} saddr @prefixes snat to ct original ${family} daddr`,
    ...(self === undefined ? [] : [`    oifname "${tap}" ${family} saddr ${loopback} snat to ${self}`]),
    `    oifname != "${tap}" ${family} saddr @masqueraded masquerade`,
    '  }',
    '}',
  ];
  return `${lines.join('\n')}\n`;
}
