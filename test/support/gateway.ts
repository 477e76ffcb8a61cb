/**
 * A host with containers, an uplink, and the world behind it:
 *
 *   c1, c2 (blue), g1 (green), i1 (inner, internal) ── host h1 ── out0 ── near (192.168.60.1) ── far (203.0.113.2)
 *
 * `near` routes between the link and `far`, and knows nothing of the networks' prefixes: what is not masqueraded is
 * not answered. With `ipv6` all of it has IPv6 as well.
 */
import { type Namespace, type RunningCommand, waitFor } from '../../cli/lab.js';
import { type Engine, type NodeFile, Rig } from './live.js';

export const UPLINK_ADDRESS = '192.168.60.10';
export const NEAR_ADDRESS = '192.168.60.1';
export const HOST_ADDRESS = '192.168.60.2';
export const FAR_ADDRESS = '203.0.113.2';
export const UPLINK_ADDRESS6 = 'fd00:60::10';
export const NEAR_ADDRESS6 = 'fd00:60::1';
export const FAR_ADDRESS6 = '2001:db8::2';

export interface GatewayRigOptions {
  /** Keys over those of the file. */
  readonly file?: Partial<NodeFile>;
  /** Bytes, of the link between `near` and `far`. */
  readonly farMtu?: number;
  /** Bytes, of the uplink's link. */
  readonly mtu?: number;
  readonly ipv6?: boolean;
}

export class GatewayRig extends Rig {
  readonly host: Namespace;
  readonly near: Namespace;
  readonly far: Namespace;
  readonly c1: Namespace;
  readonly c2: Namespace;
  readonly g1: Namespace;
  readonly i1: Namespace;
  readonly engine1: Engine;

  constructor(readonly options: GatewayRigOptions = {}) {
    super();
    const { lab } = this;
    const { mtu = 1500, farMtu = 1500 } = options;
    this.host = lab.host('h1');
    this.near = lab.host('near');
    this.far = lab.host('far');
    this.c1 = lab.host('c1');
    this.c2 = lab.host('c2');
    this.g1 = lab.host('g1');
    this.i1 = lab.host('i1');
    lab.bridgeUnderlay([this.host], { addresses: [['192.168.50.1/24']] });
    lab.link(this.host, this.near, {
      ...{ nameA: 'out0', nameB: 'in0', mtu },
      ...{ addressesA: [`${HOST_ADDRESS}/24`], addressesB: [`${NEAR_ADDRESS}/24`] },
    });
    lab.link(this.near, this.far, {
      ...{ nameA: 'far0', nameB: 'eth0', mtu: farMtu },
      ...{ addressesA: ['203.0.113.1/24'], addressesB: [`${FAR_ADDRESS}/24`] },
    });
    this.near.enableForwarding();
    this.far.route('default', { via: '203.0.113.1' });
    if (options.ipv6) this.addIpv6();
    this.engine1 = this.engine(this.host, this.file());
  }

  private addIpv6(): void {
    this.host.addAddresses('out0', ['fd00:60::2/64']);
    this.near.addAddresses('in0', [`${NEAR_ADDRESS6}/64`]);
    this.near.addAddresses('far0', ['2001:db8::1/64']);
    this.far.addAddresses('eth0', [`${FAR_ADDRESS6}/64`]);
    this.far.route('default', { via: '2001:db8::1' });
  }

  static async up(options: GatewayRigOptions = {}): Promise<GatewayRig> {
    const rig = new GatewayRig(options);
    await rig.start(rig.engine1);
    return rig;
  }

  file(): NodeFile {
    const { ipv6 = false } = this.options;
    const network = (name: string, vni: number, third: number, more: object): Record<string, unknown> => ({
      ...{ name, vni, subnet: `10.0.${third}.0/24`, gateway: `10.0.${third}.254`, peers: [] },
      ...(ipv6 && { subnet6: `fd00:${third}::/64`, gateway6: `fd00:${third}::fe` }),
      ...more,
    });
    const address6 = (address: string): string =>
      address.replace(/^10\.0\.(\d+)\.(\d+)$/, (_, third, fourth) => `fd00:${third}::${fourth}/64`);
    const endpoint = (netns: Namespace, net: string, address: string): Record<string, unknown> => ({
      ...{ name: netns.label, network: net, netns: netns.name, interface: 'eth0', address: `${address}/24` },
      ...(ipv6 && { address6: address6(address) }),
    });
    return {
      underlay: { address: '192.168.50.1' },
      uplinks: [
        {
          ...{ name: 'out', interface: 'out0', address: `${UPLINK_ADDRESS}/24`, gateway: NEAR_ADDRESS },
          ...(ipv6 && { address6: `${UPLINK_ADDRESS6}/64`, gateway6: NEAR_ADDRESS6 }),
        },
      ],
      networks: [
        network('blue', 42, 9, { uplink: 'out' }),
        network('green', 43, 10, { uplink: 'out' }),
        network('inner', 44, 11, { internal: true }),
      ],
      endpoints: [
        endpoint(this.c1, 'blue', '10.0.9.1'),
        endpoint(this.c2, 'blue', '10.0.9.2'),
        endpoint(this.g1, 'green', '10.0.10.1'),
        endpoint(this.i1, 'inner', '10.0.11.1'),
      ],
      publish: [
        { endpoint: 'c1', protocol: 'tcp', port: 8080, target: 80 },
        { endpoint: 'c1', protocol: 'udp', port: 5353, target: 53 },
      ],
      ...this.options.file,
    };
  }
}

/** Keys over those of the file that make the host itself the way out. */
export function hostFile(): Partial<NodeFile> {
  const network = (name: string, vni: number, third: number, more: object): Record<string, unknown> => ({
    ...{ name, vni, subnet: `10.0.${third}.0/24`, gateway: `10.0.${third}.254`, peers: [] },
    ...more,
  });
  return {
    uplinks: [{ name: 'host', mode: 'host' }],
    networks: [
      network('blue', 42, 9, { uplink: 'host' }),
      network('green', 43, 10, { uplink: 'host' }),
      network('inner', 44, 11, { internal: true }),
    ],
  };
}

/** Whether an interface forwards, by itself: 0 or 1. */
export const forwarding = (host: Namespace, device: string): Promise<string> =>
  host.run('cat', [`/proc/sys/net/ipv4/conf/${device}/forwarding`]).then((text) => text.trim());

/** What mode host makes of a host, and leaves when all is well. */
export const CLEAN = { tables: '', tap: '', routes: '', forwarding: '0' };

export async function leftOvers(host: Namespace): Promise<typeof CLEAN> {
  return {
    tables: (await host.run('nft', ['list', 'tables', 'ip'])).trim(),
    tap: host.ip('-br', 'link', 'show', 'type', 'tun').match(/weft-\S+/)?.[0] ?? '',
    routes: host.ip('route', 'show', 'proto', '87').trim(),
    forwarding: await forwarding(host, 'out0'),
  };
}

/** One line over TCP or UDP, answered by the server with the address of who asked, and the line. */
export async function serve(
  server: Namespace,
  protocol: 'TCP' | 'UDP' | 'TCP6' | 'UDP6',
  port: number,
): Promise<RunningCommand> {
  const tcp = protocol.startsWith('TCP');
  const options = `${port},reuseaddr,fork${protocol.endsWith('6') ? ',ipv6only=1' : ''}`;
  const listen = `${protocol}-${tcp ? 'LISTEN' : 'RECVFROM'}:${options}`;
  const running = server.start('socat', [listen, `SYSTEM:read line; echo "$SOCAT_PEERADDR $line"`]);
  const list = ['-H', '-n', tcp ? '-lt' : '-lu', `sport = :${port}`];
  await waitFor(async () => (await server.run('ss', list)) !== '', { what: `a server on port ${port}` });
  return running;
}

export const bracketed = (address: string): string => (address.includes(':') ? `[${address}]` : address);

/** An address of IPv6 as socat shows it. */
export function socatAddress(address: string): string {
  const [head, tail] = address.split('::').map((part) => (part ? part.split(':') : []));
  const zeros = Array<string>(8 - head!.length - tail!.length).fill('0');
  return `[${[...head!, ...zeros, ...tail!].map((group) => group.padStart(4, '0')).join(':')}]`;
}

export async function askTcp(from: Namespace, address: string, port: number, line: string): Promise<string> {
  const { stdout } = await from.exec(
    'socat',
    ['-t', '10', '-', `TCP:${bracketed(address)}:${port},connect-timeout=2`],
    {
      input: `${line}\n`,
    },
  );
  return stdout.trim();
}

/** @param patienceMs for the answer, where there is to be none; nobody says of UDP that it is over. */
export async function askUdp(
  from: Namespace,
  address: string,
  port: number,
  line: string,
  patienceMs = 10_000,
): Promise<string> {
  const stdio = ['pipe', 'pipe', 'pipe'] as const;
  const asking = from.start('socat', ['-', `UDP:${bracketed(address)}:${port}`], { stdio: [...stdio] });
  asking.child.stdin!.write(`${line}\n`);
  await asking.output(/\n/, { timeoutMs: patienceMs }).catch(() => undefined);
  await asking.stop('SIGKILL');
  return asking.stdout.trim();
}
