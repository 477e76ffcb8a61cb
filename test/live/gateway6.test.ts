/** IPv6 out of the overlay by an uplink, and in by published ports. */
import type { ExecutionContext } from 'ava';
import { iperf3, type Namespace, ping } from '../../cli/lab.js';
import {
  askTcp,
  askUdp,
  FAR_ADDRESS6,
  GatewayRig,
  NEAR_ADDRESS6,
  serve,
  socatAddress,
  UPLINK_ADDRESS6,
} from '../support/gateway.js';
import { type Engine, live, peer, shared } from '../support/live.js';

const rig = shared(() => GatewayRig.up({ ipv6: true }));

async function reaches(t: ExecutionContext, from: Namespace, address: string, engine: Engine): Promise<void> {
  const { received } = await ping(from, address, { count: 3, deadlineS: 5 });
  t.true(received >= 3, `${address}: ${JSON.stringify(await engine.drops())}`);
}

live('a container reaches its gateway, the link of the uplink, and what is behind it', async (t) => {
  const { c1, c2, g1, i1, near, engine1 } = rig();
  t.regex(c1.ip('-6', 'route', 'show', 'default'), /default via fd00:9::fe dev eth0 /);
  t.is(i1.ip('-6', 'route', 'show', 'default'), '');
  for (const address of ['fd00:9::fe', UPLINK_ADDRESS6, NEAR_ADDRESS6, FAR_ADDRESS6])
    await reaches(t, c1, address, engine1);
  await reaches(t, c2, FAR_ADDRESS6, engine1);
  await reaches(t, g1, FAR_ADDRESS6, engine1);
  await reaches(t, near, UPLINK_ADDRESS6, engine1);
  // A router, as its neighbours know it, under the gateway's one MAC.
  t.regex(c1.ip('-6', 'neigh', 'show', 'fd00:9::fe'), /lladdr 02:42:0a:00:09:fe router/);
});

live(
  'TCP and UDP out: the server sees the address of the uplink, and conntrack what became of them',
  async (t) => {
    const { c1, far, engine1 } = rig();
    const tcp = await serve(far, 'TCP6', 7001);
    const udp = await serve(far, 'UDP6', 7002);
    const seen = socatAddress(UPLINK_ADDRESS6);
    t.is(await askTcp(c1, FAR_ADDRESS6, 7001, 'over tcp'), `${seen} over tcp`);
    t.is(await askUdp(c1, FAR_ADDRESS6, 7002, 'over udp'), `${seen} over udp`);
    await tcp.stop();
    await udp.stop();
    const { stdout } = await engine1.cli('conntrack', 'ls', '--json');
    const { flows } = JSON.parse(stdout) as { flows: Record<string, string>[] };
    const flow = flows.find(({ remote }) => remote === `[${FAR_ADDRESS6}]:7002`);
    t.like(flow, { protocol: 'udp', network: 'blue', uplink: 'out' });
    t.regex(flow!['inside'], /^\[fd00:9::1\]:\d+$/);
    t.regex(flow!['outside'], /^\[fd00:60::10\]:\d+$/);
    const flushed = await engine1.cli('conntrack', 'flush', '--endpoint', 'c1');
    t.is(flushed.code, 0);
    const after = JSON.parse((await engine1.cli('conntrack', 'ls', '--json')).stdout) as typeof JSON;
    t.false(JSON.stringify(after).includes('fd00:9::1]'));
  },
  { tools: ['socat'] },
);

live(
  'a published port is reached from outside, from another container and from its own; others are not',
  async (t) => {
    const { c1, c2, g1, far, near, engine1 } = rig();
    const tcp = await serve(c1, 'TCP6', 80);
    const udp = await serve(c1, 'UDP6', 53);
    const closed = await serve(c1, 'TCP6', 81);
    t.is(await askTcp(far, UPLINK_ADDRESS6, 8080, 'far'), `${socatAddress(FAR_ADDRESS6)} far`);
    t.is(await askTcp(near, UPLINK_ADDRESS6, 8080, 'near'), `${socatAddress(NEAR_ADDRESS6)} near`);
    t.is(await askUdp(far, UPLINK_ADDRESS6, 5353, 'far'), `${socatAddress(FAR_ADDRESS6)} far`);
    for (const [name, container] of Object.entries({ c2, g1, c1 })) {
      const wanted = `${socatAddress(UPLINK_ADDRESS6)} ${name}`;
      const answer = await askTcp(container, UPLINK_ADDRESS6, 8080, name);
      t.is(answer, wanted, `${name}: ${JSON.stringify(await engine1.drops())}`);
      t.is(await askUdp(container, UPLINK_ADDRESS6, 5353, name), wanted);
    }
    const drops = await engine1.watchDrops();
    t.is(await askTcp(far, UPLINK_ADDRESS6, 81, 'closed'), '');
    t.is(await askTcp(far, UPLINK_ADDRESS6, 80, 'closed'), '');
    const grown = await drops();
    t.true(grown['nat-v6 not-published'] >= 2, JSON.stringify(grown));
    for (const running of [tcp, udp, closed]) await running.stop();
    const { stdout } = await engine1.cli('publish', 'ls');
    t.regex(stdout, /out +tcp +192\.168\.60\.10:8080 +c1 +80/);
    t.regex(stdout, /out +tcp +\[fd00:60::10\]:8080 +c1 +80/);
  },
  { tools: ['socat'] },
);

live('nothing goes between networks, nor between containers over the gateway', async (t) => {
  const { c1, g1, i1, engine1 } = rig();
  const drops = await engine1.watchDrops();
  for (const [from, to] of [
    [c1, 'fd00:10::1'],
    [c1, 'fd00:11::1'],
    [g1, 'fd00:9::1'],
  ] as const) {
    t.is((await ping(from, to, { count: 2 })).received, 0);
  }
  t.true((await drops())['gateway-v6 between-networks'] >= 6);
  i1.route('2001:db8::/64', { via: 'fd00:11::fe' });
  t.is((await ping(i1, FAR_ADDRESS6, { count: 2 })).received, 0);
  t.true((await drops())['gateway-v6 no-uplink'] >= 2);
  c1.route('fd00:9::2/128', { via: 'fd00:9::fe' });
  t.is((await ping(c1, 'fd00:9::2', { count: 2 })).received, 0);
  c1.ip('-6', 'route', 'del', 'fd00:9::2/128');
  t.true((await drops())['gateway-v6 same-network'] >= 2);
});

live('a packet with a small hop limit is answered by each router on the way', async (t) => {
  const { c1 } = rig();
  const hop = async (limit: number): Promise<string> => {
    const args = ['-6', '-n', '-c', '1', '-W', '2', '-t', String(limit), FAR_ADDRESS6];
    const { stdout } = await c1.exec('ping', args);
    return /From (\S+)/.exec(stdout)?.[1] ?? stdout;
  };
  t.regex(await hop(1), /^fd00:9::fe/);
  t.regex(await hop(2), /^fd00:60::1/);
});

live(
  'traceroute shows every router',
  async (t) => {
    const { c1 } = rig();
    const { stdout } = await c1.exec('traceroute', ['-6', '-n', '-w', '2', '-q', '1', FAR_ADDRESS6]);
    t.regex(stdout, /1 +fd00:9::fe [\s\S]*2 +fd00:60::1 [\s\S]*3 +2001:db8::2 /);
  },
  { tools: ['traceroute'] },
);

live('what cannot be reached is said: no host on the link, no port at the server', async (t) => {
  const { c1 } = rig();
  const { stdout } = await c1.exec('ping', ['-6', '-n', '-c', '2', '-w', '8', '-W', '8', 'fd00:60::77']);
  t.regex(stdout, /From \S+ .*Address unreachable/);
  const refused = await c1.exec('socat', ['-t', '3', '-', `UDP:[${FAR_ADDRESS6}]:7999`], { input: 'x\n' });
  t.regex(refused.stderr, /Connection refused/);
});

live('TCP at speed, out and back', async (t) => {
  const { c1, far, engine1 } = rig();
  const out = await iperf3(c1, far, FAR_ADDRESS6, { bytes: 60e6 });
  t.true(out.bitsPerSecond > 1e7, JSON.stringify(out));
  const back = await iperf3(c1, far, FAR_ADDRESS6, { bytes: 60e6, reverse: true });
  t.true(back.bitsPerSecond > 1e7, `${JSON.stringify(back)} ${JSON.stringify(await engine1.drops())}`);
  t.log(
    `${(out.bitsPerSecond / 1e9).toFixed(2)} Gb/s out, ${(back.bitsPerSecond / 1e9).toFixed(2)} Gb/s back`,
  );
});

live(
  'fragments pass both ways; what is too long for a router outside, or for the network, is said',
  async (t) => {
    const { c1, far, near, engine1 } = rig();
    // The sender cuts, nobody on the way: the far end learns by its first answer what the network takes.
    await ping(c1, FAR_ADDRESS6, { count: 1, size: 4000 });
    const answered = await ping(c1, FAR_ADDRESS6, { count: 2, size: 4000 });
    t.is(answered.received, 2, JSON.stringify(await engine1.drops()));
    near.ip('link', 'set', 'far0', 'mtu', '1300');
    const probe = ['-6', '-n', '-c', '2', '-W', '1', '-M', 'do', '-s', '1352', FAR_ADDRESS6];
    const { stdout, stderr } = await c1.exec('ping', probe);
    t.regex(stdout + stderr, /mtu[ =:]*1300/i, JSON.stringify(await engine1.drops()));
    const { bitsPerSecond } = await iperf3(c1, far, FAR_ADDRESS6, { bytes: 20e6 });
    t.true(bitsPerSecond > 1e7);
    near.ip('link', 'set', 'far0', 'mtu', '1500');
    // From outside to a published port: the gateway says the network's MTU, and the sender hears it.
    await far.exec(
      'socat',
      ['-T', '1', '-u', '-b', '2000', 'STDIN,ignoreeof', `UDP:[${UPLINK_ADDRESS6}]:5353`],
      {
        input: 'x'.repeat(1450),
      },
    );
    t.regex(far.ip('-6', 'route', 'get', UPLINK_ADDRESS6), /mtu 1450/, JSON.stringify(await engine1.drops()));
  },
);

live(
  'the router outside confirms the uplink, and the uplink the router, for as long as they talk',
  async (t) => {
    const { c1, near, engine1 } = rig();
    near.ip('-6', 'neigh', 'flush', 'dev', 'in0');
    await reaches(t, near, UPLINK_ADDRESS6, engine1);
    t.regex(near.ip('-6', 'neigh', 'show', UPLINK_ADDRESS6), /lladdr 02:42:c0:a8:3c:0a/);
    near.ip('link', 'set', 'in0', 'down');
    near.ip('link', 'set', 'in0', 'address', '02:00:00:00:77:77');
    near.ip('link', 'set', 'in0', 'up');
    near.addAddresses('in0', [`${NEAR_ADDRESS6}/64`]);
    await near.exec('ping', ['-6', '-c', '1', '-W', '2', UPLINK_ADDRESS6]);
    await reaches(t, c1, FAR_ADDRESS6, engine1);
  },
);

live(
  'by a reload: a network of IPv6 alone gets a way out, and one keeps its addresses outside',
  async (t) => {
    const { c2, g1, far, near, engine1 } = rig();
    const file = rig().file();
    const [blue, green, inner] = file.networks;
    const six = {
      name: 'six',
      vni: 45,
      subnet: 'fd00:12::/64',
      gateway: 'fd00:12::fe',
      uplink: 'out',
      peers: [],
    };
    const place = { netns: c2.name, interface: 'eth1' };
    await engine1.change({
      ...file,
      networks: [blue, { ...green, masquerade: false }, inner, six],
      endpoints: [...file.endpoints, { name: 's1', network: 'six', ...place, address: 'fd00:12::1/64' }],
      publish: [{ endpoint: 's1', protocol: 'tcp', port: 8443, target: 443 }],
    });
    near.route('fd00:10::/64', { via: UPLINK_ADDRESS6 });
    const server = await serve(far, 'TCP6', 7003);
    t.is(await askTcp(g1, FAR_ADDRESS6, 7003, 'routed'), `${socatAddress('fd00:10::1')} routed`);
    t.is((await ping(far, 'fd00:10::1', { count: 1 })).received, 0);
    c2.ip('-6', 'route', 'del', 'default', 'dev', 'eth0');
    t.is(await askTcp(c2, FAR_ADDRESS6, 7003, 'alone'), `${socatAddress(UPLINK_ADDRESS6)} alone`);
    const published = await serve(c2, 'TCP6', 443);
    t.is(await askTcp(far, UPLINK_ADDRESS6, 8443, 'in'), `${socatAddress(FAR_ADDRESS6)} in`);
    await published.stop();
    await server.stop();
    await engine1.change(file);
    await reaches(t, c2, FAR_ADDRESS6, engine1);
  },
  { tools: ['socat'] },
);

live('kill -9 and a start: open downloads through the uplink and from a published port go on', async (t) => {
  const { c1, far, engine1 } = rig();
  const start = async (server: Namespace, client: Namespace, address: string, port: number, at = port) => {
    const sending = peer(server, 'slow-server', '::', String(at));
    await sending.output(/^listening$/m);
    const getting = peer(client, 'slow-client', address, String(port));
    await getting.output(/^got 2$/m);
    return { sending, getting };
  };
  await engine1.cli('conntrack', 'flush');
  const downloads = [
    await start(far, c1, FAR_ADDRESS6, 7010),
    await start(c1, far, UPLINK_ADDRESS6, 8080, 80),
  ];
  await engine1.kill();
  await engine1.start();
  t.regex(engine1.running!.stderr, /^flows: [2-9] taken over, 0 not$/m);
  for (const { sending, getting } of downloads) {
    sending.child.kill('SIGUSR1');
    const [, sent] = await sending.output(/^sum (\w+)$/m, { timeoutMs: 30_000 });
    const [, got] = await getting.output(/^sum (\w+)$/m, { timeoutMs: 30_000 });
    t.is(got, sent);
    await getting.finish();
    await sending.stop('SIGKILL');
  }
});
