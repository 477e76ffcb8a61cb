/** Uplinks of mode host beside others: of the same node, of another node on the host, and with IPv6. */
import { existsSync } from 'node:fs';
import { iperf3, type Namespace, ping, waitFor } from '../../cli/lab.js';
import type { PublishRow } from '../../control/api.js';
import {
  askTcp,
  askUdp,
  CLEAN,
  FAR_ADDRESS,
  forwarding,
  GatewayRig,
  HOST_ADDRESS,
  hostFile,
  leftOvers,
  NEAR_ADDRESS,
  serve,
  UPLINK_ADDRESS,
} from '../support/gateway.js';
import { live, missing } from '../support/live.js';

const TOOLS = { tools: ['socat', 'nft'] };

live(
  'both kinds of uplink on one node, each with its published ports; an address that is written',
  async (t) => {
    const { networks, ...file } = hostFile();
    const both = new GatewayRig({
      file: {
        ...file,
        uplinks: [
          { name: 'host', mode: 'host', interface: 'tap-out', address: '172.31.0.1/31' },
          { name: 'out', interface: 'out0', address: `${UPLINK_ADDRESS}/24`, gateway: NEAR_ADDRESS },
        ],
        networks: networks!.map((network) =>
          network['name'] === 'green' ? { ...network, uplink: 'out' } : { ...network, masquerade: false },
        ),
        publish: [
          { endpoint: 'c1', protocol: 'tcp', port: 8080, target: 80 },
          { endpoint: 'g1', protocol: 'tcp', port: '8080-8081', target: '80-81' },
          { endpoint: 'g1', protocol: 'udp', target: 53, uplink: 'out' },
        ],
      },
    });
    try {
      const { host, near, c1, g1, far, engine1 } = both;
      near.ip('route', 'add', '10.0.9.0/24', 'via', HOST_ADDRESS);
      host.route('default', { via: NEAR_ADDRESS });
      await both.start(engine1);
      t.true(host.ip('address', 'show', 'tap-out').includes('172.31.0.0/31'));
      t.true((await ping(c1, FAR_ADDRESS, { count: 1, deadlineS: 10 })).received >= 1);
      t.true((await ping(g1, FAR_ADDRESS, { count: 1, deadlineS: 10 })).received >= 1);
      // Routed without masquerade: outside knows the way back, and still may not come by itself.
      await serve(far, 'TCP', 7001);
      t.is(await askTcp(c1, FAR_ADDRESS, 7001, 'routed'), '10.0.9.1 routed');
      t.is((await ping(near, '10.0.9.1', { count: 1 })).received, 0);
      await serve(c1, 'TCP', 80);
      await serve(g1, 'TCP', 81);
      await serve(g1, 'UDP', 53);
      t.is(await askTcp(far, HOST_ADDRESS, 8080, 'host'), `${FAR_ADDRESS} host`);
      t.is(await askTcp(far, UPLINK_ADDRESS, 8081, 'out'), `${FAR_ADDRESS} out`);
      const { stdout } = await engine1.cli('publish', 'ls', '--json');
      const { published } = JSON.parse(stdout) as { published: PublishRow[] };
      const automatic = published.find(({ protocol }) => protocol === 'udp')!;
      t.is(automatic.address, UPLINK_ADDRESS);
      t.is(await askUdp(far, UPLINK_ADDRESS, automatic.port, 'given'), `${FAR_ADDRESS} given`);
      // The host does not hear what a router on its own interface sends.
      t.is(await askTcp(g1, HOST_ADDRESS, 8080, 'across'), '');
      t.regex((await engine1.cli('publish', 'ls')).stdout, /host +tcp +\*:8080 +c1 +80/);
    } finally {
      both.close();
    }
  },
  TOOLS,
);

live(
  'two nodes on one host, each with its uplink of mode host',
  async (t) => {
    const two = new GatewayRig({ file: hostFile() });
    try {
      const { host, c1, c2, far, engine1 } = two;
      host.route('default', { via: NEAR_ADDRESS });
      const file = two.file();
      const [, second] = file.endpoints;
      const [network] = file.networks;
      engine1.write({ ...file, endpoints: file.endpoints.filter((one) => one !== second) });
      const engine2 = two.engine(host, {
        node: 'other',
        underlay: { address: '192.168.50.1', port: 4790 },
        uplinks: [{ name: 'second', mode: 'host' }],
        networks: [{ ...network, vni: 52, subnet: '10.0.19.0/24', gateway: '10.0.19.254', uplink: 'second' }],
        endpoints: [{ ...second, address: '10.0.19.2/24' }],
        publish: [{ endpoint: 'c2', protocol: 'tcp', port: 8082, target: 80 }],
      });
      await two.start(engine1);
      await two.start(engine2);
      const servers = [await serve(c1, 'TCP', 80), await serve(c2, 'TCP', 80)];
      const both = async (): Promise<void> => {
        t.is(await askTcp(far, HOST_ADDRESS, 8082, 'two'), `${FAR_ADDRESS} two`);
        t.true((await ping(c2, FAR_ADDRESS, { count: 1, deadlineS: 10 })).received >= 1);
      };
      await both();
      t.is(await askTcp(far, HOST_ADDRESS, 8080, 'one'), `${FAR_ADDRESS} one`);
      t.is((await ping(c1, '10.0.19.2', { count: 1 })).received, 0);
      // One goes; the other finds that forwarding went with it, and takes it over.
      await engine1.stop();
      await waitFor(async () => (await forwarding(host, 'out0')) === '1', { what: 'forwarding' });
      await both();
      await engine2.stop();
      t.deepEqual(await leftOvers(host), CLEAN);
      for (const server of servers) await server.stop();
    } finally {
      two.close();
    }
  },
  TOOLS,
);

const HOST_V6 = 'fd00:60::2';
const FAR_V6 = '2001:db8:203::2';

/** The rig with IPv6 everywhere. */
function dualStack(): GatewayRig {
  const made = new GatewayRig({ file: hostFile() });
  const { host, near, far } = made;
  for (const [namespace, device, address] of [
    [host, 'out0', `${HOST_V6}/64`],
    [near, 'in0', 'fd00:60::1/64'],
    [near, 'far0', '2001:db8:203::1/64'],
    [far, 'eth0', `${FAR_V6}/64`],
  ] as const)
    namespace.ip('address', 'add', address, 'dev', device, 'nodad');
  host.route('default', { via: NEAR_ADDRESS });
  host.ip('-6', 'route', 'add', 'default', 'via', 'fd00:60::1');
  far.ip('-6', 'route', 'add', 'default', 'via', '2001:db8:203::1');
  const file = made.file();
  made.engine1.write({
    ...file,
    networks: file.networks.map((network) => {
      const third = String(network['gateway']).split('.')[2];
      return { ...network, subnet6: `fd00:${third}::/64`, gateway6: `fd00:${third}::fe` };
    }),
    endpoints: file.endpoints.map((endpoint) => {
      const [, , third, last] = String(endpoint['address']).split(/[./]/);
      return { ...endpoint, address6: `fd00:${third}::${last}/64` };
    }),
  });
  return made;
}

live(
  'IPv6: out with the address of the host, in by published ports, and not otherwise',
  async (t) => {
    const six = dualStack();
    try {
      const { c1, c2, g1, far, near, host, engine1 } = six;
      await near.run('sysctl', ['-qw', 'net.ipv6.conf.all.forwarding=1']);
      await six.start(engine1);
      const why = async (): Promise<string> => JSON.stringify(await engine1.drops());
      const conf = (device: string, key: string): Promise<string> =>
        host.run('cat', [`/proc/sys/net/ipv6/conf/${device}/${key}`]).then((text) => text.trim());
      t.is(await conf('all', 'forwarding'), '0');
      t.is(await conf('out0', 'force_forwarding'), '1');
      for (const address of [HOST_V6, 'fd00:60::1', FAR_V6])
        t.true(
          (await ping(c1, address, { count: 2, deadlineS: 10 })).received >= 2,
          `${address} ${await why()}`,
        );
      const serve6 = async (server: Namespace, port: number) => {
        const running = server.start('socat', [
          `TCP6-LISTEN:${port},reuseaddr,fork`,
          'SYSTEM:read line; echo "$SOCAT_PEERADDR $line"',
        ]);
        await waitFor(async () => (await server.run('ss', ['-ltn'])).includes(`:${port}`), {
          what: 'a server',
        });
        return running;
      };
      const asked = async (from: Namespace, address: string, port: number): Promise<string> => {
        const to = `TCP6:[${address}]:${port},connect-timeout=2`;
        const { stdout } = await from.exec('socat', ['-t', '2', '-', to], { input: 'line\n' });
        return stdout.trim();
      };
      const long = (address: string): string =>
        `[${address
          .replace('::', ':'.repeat(9 - address.split(':').length + 1))
          .split(':')
          .map((group) => group.padStart(4, '0'))
          .join(':')}]`;
      await serve6(far, 7001);
      t.is(await asked(c1, FAR_V6, 7001), `${long(HOST_V6)} line`, await why());
      await serve6(c1, 80);
      await serve6(c1, 81);
      t.is(await asked(far, HOST_V6, 8080), `${long(FAR_V6)} line`, await why());
      for (const container of [c2, g1, c1, host])
        t.is(
          await asked(container, HOST_V6, 8080),
          `${long(HOST_V6)} line`,
          `${container.label} ${await why()}`,
        );
      near.ip('-6', 'route', 'add', 'fd00:9::/64', 'via', HOST_V6);
      t.is(await asked(near, 'fd00:9::1', 81), '');
      t.is((await ping(near, 'fd00:9::1', { count: 1 })).received, 0);
      t.is((await ping(c1, 'fd00:a::1', { count: 1 })).received, 0);
      const { bitsPerSecond } = await iperf3(c1, far, FAR_V6, { bytes: 60e6 });
      t.true(bitsPerSecond > 1e7, `${bitsPerSecond} ${await why()}`);
      await engine1.stop();
      t.is((await host.run('nft', ['list', 'tables'])).trim(), '');
      t.is(await conf('out0', 'force_forwarding'), '0');
      t.is(host.ip('-6', 'route', 'show', 'proto', '87').trim(), '');
    } finally {
      six.close();
    }
  },
  {
    ...TOOLS,
    skip: existsSync('/proc/sys/net/ipv6/conf/lo/force_forwarding')
      ? undefined
      : (missing(TOOLS.tools) ?? 'this kernel forwards IPv6 by all interfaces or none (Linux 6.17 by some)'),
  },
);
