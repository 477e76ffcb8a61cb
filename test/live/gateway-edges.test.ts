/** The way out where something runs short: ports, and room on the path. */
import { ping, waitFor } from '../../cli/lab.js';
import {
  FAR_ADDRESS,
  FAR_ADDRESS6,
  GatewayRig,
  NEAR_ADDRESS,
  NEAR_ADDRESS6,
  serve,
  socatAddress,
  UPLINK_ADDRESS6,
} from '../support/gateway.js';
import { live } from '../support/live.js';

live(
  'who finds no port left is told that it is prohibited (RFC 5508, REQ-8)',
  async (t) => {
    const rig = await GatewayRig.up({ ipv6: true, file: { nat: { ports: '40000-40001' } } });
    try {
      for (const [protocol, address] of [
        ['UDP4', FAR_ADDRESS],
        ['UDP6', `[${FAR_ADDRESS6}]`],
      ] as const) {
        const send = (port: number) =>
          rig.c1.exec(
            'socat',
            ['-T', '1', 'STDIN,ignoreeof', `${protocol}:${address}:9,sourceport=${port}`],
            {
              input: 'x',
            },
          );
        await send(40000);
        await send(40001);
        const { stderr } = await send(40002);
        t.regex(stderr, /No route to host|Permission denied/, JSON.stringify(await rig.engine1.drops()));
      }
      const drops = await rig.engine1.drops();
      t.true(drops['nat no-port'] >= 1 && drops['nat-v6 no-port'] >= 1, JSON.stringify(drops));
    } finally {
      rig.close();
    }
  },
  { tools: ['socat'] },
);

live(
  'with clamp_mss a SYN announces what the uplink takes, and one from outside what the network does',
  async (t) => {
    const rig = await GatewayRig.up({ ipv6: true, mtu: 1300 });
    try {
      const file = rig.file();
      const [out] = file['uplinks'] as Record<string, unknown>[];
      await rig.engine1.stop();
      rig.engine1.write({ ...file, uplinks: [{ ...out, clamp_mss: true }] });
      await rig.engine1.start();
      const { c1, far } = rig;
      // Nobody on the path says that it is too narrow.
      for (const [protocol, address, mss] of [
        ['TCP', FAR_ADDRESS, 1260],
        ['TCP6', FAR_ADDRESS6, 1240],
      ] as const) {
        const server = await serve(far, protocol, 7001);
        const family = protocol === 'TCP' ? 'ip' : 'ip6';
        const heard = far.start('tcpdump', [
          ...['-n', '-l', '--immediate-mode', '-c', '1', '-i', 'eth0'],
          `${family} and port 7001`,
        ]);
        await heard.output(/listening on/, { stream: 'stderr' });
        const { stdout } = await c1.exec(
          'socat',
          ['-t', '2', '-', `TCP:${address.includes(':') ? `[${address}]` : address}:7001`],
          { input: 'there\n' },
        );
        t.regex(stdout, /there/);
        if (protocol === 'TCP6') t.true(stdout.startsWith(socatAddress(UPLINK_ADDRESS6)));
        await heard.output(new RegExp(`mss ${mss}\\b`));
        await heard.finish();
        await server.stop();
      }
      t.true((await rig.engine1.element('clamp-mss'))['clamped'] >= 4);
    } finally {
      rig.close();
    }
  },
  { tools: ['socat', 'tcpdump'] },
);

live('a switch that snoops multicast listeners lets solicitations of the uplink through', async (t) => {
  const rig = new GatewayRig({ ipv6: true });
  const { near, engine1 } = rig;
  // The router is a bridge of its own, which asks for listeners and floods to nobody else.
  near.ip('link', 'add', 'br0', 'type', 'bridge', 'mcast_snooping', '1', 'mcast_querier', '1');
  near.ip('link', 'set', 'in0', 'master', 'br0');
  near.ip('link', 'set', 'br0', 'up');
  near.addAddresses('br0', [`${NEAR_ADDRESS6}/64`, `${NEAR_ADDRESS}/24`]);
  near.ip('address', 'flush', 'dev', 'in0');
  await rig.start(engine1);
  try {
    const members = () => near.run('bridge', ['mdb', 'show', 'dev', 'br0']);
    await waitFor(async () => /port in0 grp ff02::1:ff00:10 /.test(await members()), {
      what: 'the group of the uplink',
    });
    near.ip('-6', 'neigh', 'flush', 'dev', 'br0');
    const { received } = await ping(near, UPLINK_ADDRESS6, { count: 3, deadlineS: 5 });
    t.is(received, 3, JSON.stringify(await engine1.drops()));
  } finally {
    rig.close();
  }
});
