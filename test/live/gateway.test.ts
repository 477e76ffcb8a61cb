/** Out of the overlay by an uplink on which the engine is a router of its own, and in by published ports. */
import type { ExecutionContext } from 'ava';
import { iperf3, type Namespace, ping, waitFor } from '../../cli/lab.js';
import type { ConntrackList } from '../../control/api.js';
import { attacksMissing } from '../support/attacks.js';
import {
  askTcp,
  askUdp,
  FAR_ADDRESS,
  GatewayRig,
  HOST_ADDRESS,
  NEAR_ADDRESS,
  serve,
  UPLINK_ADDRESS,
} from '../support/gateway.js';
import { type Engine, live, shared } from '../support/live.js';
import { associate, sctpServer, TO_CLIENT, TO_SERVER } from '../support/sctp.js';

const rig = shared(() => GatewayRig.up());

async function reaches(t: ExecutionContext, from: Namespace, address: string, engine: Engine): Promise<void> {
  const { received } = await ping(from, address, { count: 3, deadlineS: 5 });
  t.true(received >= 3, `${address}: ${JSON.stringify(await engine.drops())}`);
}

live('a container reaches its gateway, the link of the uplink, and what is behind it', async (t) => {
  const { c1, c2, g1, engine1 } = rig();
  for (const address of ['10.0.9.254', UPLINK_ADDRESS, NEAR_ADDRESS, FAR_ADDRESS])
    await reaches(t, c1, address, engine1);
  await reaches(t, c2, FAR_ADDRESS, engine1);
  await reaches(t, g1, FAR_ADDRESS, engine1);
});

live("the uplink's address answers echo, and is a station beside the host's own", async (t) => {
  const { near, host, engine1 } = rig();
  await reaches(t, near, UPLINK_ADDRESS, engine1);
  await reaches(t, near, HOST_ADDRESS, engine1);
  await reaches(t, host, NEAR_ADDRESS, engine1);
});

live(
  'TCP and UDP out: the server sees the address of the uplink',
  async (t) => {
    const { c1, far } = rig();
    const tcp = await serve(far, 'TCP', 7001);
    const udp = await serve(far, 'UDP', 7002);
    t.is(await askTcp(c1, FAR_ADDRESS, 7001, 'over tcp'), `${UPLINK_ADDRESS} over tcp`);
    t.is(await askUdp(c1, FAR_ADDRESS, 7002, 'over udp'), `${UPLINK_ADDRESS} over udp`);
    await tcp.stop();
    await udp.stop();
  },
  { tools: ['socat'] },
);

live(
  'a published port is reached from outside, from another container and from its own; others are not',
  async (t) => {
    const { c1, c2, g1, far, near, host, engine1 } = rig();
    const tcp = await serve(c1, 'TCP', 80);
    const udp = await serve(c1, 'UDP', 53);
    const closed = await serve(c1, 'TCP', 81);
    t.is(await askTcp(far, UPLINK_ADDRESS, 8080, 'from far'), `${FAR_ADDRESS} from far`);
    t.is(await askTcp(near, UPLINK_ADDRESS, 8080, 'from near'), `${NEAR_ADDRESS} from near`);
    t.is(await askUdp(far, UPLINK_ADDRESS, 5353, 'datagram'), `${FAR_ADDRESS} datagram`);
    for (const [name, container] of Object.entries({ c2, g1, c1 })) {
      const answer = await askTcp(container, UPLINK_ADDRESS, 8080, name);
      t.is(answer, `${UPLINK_ADDRESS} ${name}`, `${name}: ${JSON.stringify(await engine1.drops())}`);
      t.is(await askUdp(container, UPLINK_ADDRESS, 5353, name), `${UPLINK_ADDRESS} ${name}`);
    }
    const drops = await engine1.watchDrops();
    t.is(await askTcp(far, UPLINK_ADDRESS, 81, 'closed'), '');
    t.is(await askTcp(far, UPLINK_ADDRESS, 80, 'closed'), '');
    t.is(await askUdp(far, UPLINK_ADDRESS, 53, 'closed', 1000), '');
    const grown = await drops();
    t.true(grown['nat not-published'] >= 3, JSON.stringify(grown));
    t.not(host, undefined);
    for (const running of [tcp, udp, closed]) await running.stop();
  },
  { tools: ['socat'] },
);

live(
  "SCTP out: tracked, under the uplink's address, its CRC32c right",
  async (t) => {
    const { c1, c2, far, engine1 } = rig();
    const server = await sctpServer(far);
    const got = await associate(c1, FAR_ADDRESS, 9, 40_000);
    t.deepEqual(
      got,
      TO_CLIENT.map((chunk) => [FAR_ADDRESS, 9, 40_000, chunk, true]),
    );
    const listed = await engine1.cli('conntrack', 'ls', '--protocol', 'sctp', '--json');
    const { flows } = JSON.parse(listed.stdout) as ConntrackList;
    t.is(flows.length, 1);
    t.like(flows[0], {
      inside: '10.0.9.1:40000',
      outside: `${UPLINK_ADDRESS}:40000`,
      packetsOut: 3,
      packetsIn: 3,
    });
    // Ports are never changed: another's flow with the same ones has no place.
    const dropped = await engine1.watchDrops();
    await t.throwsAsync(associate(c2, FAR_ADDRESS, 9, 40_000));
    t.true((await dropped())['nat no-port'] >= 1);
    t.is((await associate(c2, FAR_ADDRESS, 9, 40_001)).length, TO_CLIENT.length);
    t.deepEqual(
      await server.stop(),
      [40_000, 40_001].flatMap((port) => TO_SERVER.map((chunk) => [UPLINK_ADDRESS, port, 9, chunk, true])),
    );
  },
  { skip: attacksMissing() },
);

live('nothing goes between networks, nor between containers over the gateway', async (t) => {
  const { c1, g1, i1, engine1 } = rig();
  const drops = await engine1.watchDrops();
  for (const [from, to] of [
    [c1, '10.0.10.1'],
    [c1, '10.0.11.1'],
    [g1, '10.0.9.1'],
  ] as const) {
    t.is((await ping(from, to, { count: 2 })).received, 0);
  }
  const grown = await drops();
  t.true(grown['gateway between-networks'] >= 6, JSON.stringify(grown));
  // Internal networks have no default route, and no way out for who makes one.
  t.false(i1.ip('route', 'show', 'default').includes('via'));
  i1.route('203.0.113.0/24', { via: '10.0.11.254' });
  t.is((await ping(i1, FAR_ADDRESS, { count: 2 })).received, 0);
  t.true((await drops())['gateway no-uplink'] >= 2);
  // By the gateway's MAC to a neighbour.
  c1.route('10.0.9.2/32', { via: '10.0.9.254' });
  t.is((await ping(c1, '10.0.9.2', { count: 2 })).received, 0);
  c1.ip('route', 'del', '10.0.9.2/32');
  t.true((await drops())['gateway same-network'] >= 2);
});

live('a packet with little TTL is answered by each router on the way', async (t) => {
  const { c1, far } = rig();
  const hop = async (from: Namespace, to: string, ttl: number): Promise<string> => {
    const { stdout } = await from.exec('ping', ['-n', '-c', '1', '-W', '2', '-t', String(ttl), to]);
    return /From (\S+)/.exec(stdout)?.[1] ?? stdout;
  };
  t.regex(await hop(c1, FAR_ADDRESS, 1), /^10\.0\.9\.254/);
  t.regex(await hop(c1, FAR_ADDRESS, 2), /^192\.168\.60\.1/);
  t.true((await ping(c1, FAR_ADDRESS, { count: 1, deadlineS: 10 })).received >= 1);
  t.true((await ping(far, UPLINK_ADDRESS, { count: 1, deadlineS: 10 })).received >= 1);
});

live('what cannot be reached is said: no host on the link, no port at the server', async (t) => {
  const { c1 } = rig();
  const { stdout } = await c1.exec('ping', ['-n', '-c', '2', '-w', '8', '-W', '8', '192.168.60.77']);
  t.regex(stdout, /From \S+ .*Destination Host Unreachable/);
  const refused = await c1.exec('socat', ['-t', '3', '-', `UDP:${FAR_ADDRESS}:7999`], { input: 'x\n' });
  t.regex(refused.stderr, /Connection refused/);
});

live('TCP at speed, out and back', async (t) => {
  const { c1, far, engine1 } = rig();
  const out = await iperf3(c1, far, FAR_ADDRESS, { bytes: 60e6 });
  t.true(out.bitsPerSecond > 1e7, JSON.stringify(out));
  const back = await iperf3(c1, far, FAR_ADDRESS, { bytes: 60e6, reverse: true });
  t.true(back.bitsPerSecond > 1e7, `${JSON.stringify(back)} ${JSON.stringify(await engine1.drops())}`);
  t.log(
    `${(out.bitsPerSecond / 1e9).toFixed(2)} Gb/s out, ${(back.bitsPerSecond / 1e9).toFixed(2)} Gb/s back`,
  );
});

live(
  'what is too long for the network or for a router outside is said, or cut where it may be',
  async (t) => {
    const { c1, far, near, engine1 } = rig();
    // Without DF what is longer than the network's MTU is cut at the gateway, both ways.
    const answered = await ping(c1, FAR_ADDRESS, { count: 2, size: 4000 });
    t.is(answered.received, 2, JSON.stringify(await engine1.drops()));
    // With DF the container's own interface already says so; a path beyond has a smaller MTU.
    near.ip('link', 'set', 'far0', 'mtu', '1300');
    far.ip('link', 'set', 'eth0', 'mtu', '1300');
    const { stdout } = await c1.exec('ping', [
      '-n',
      '-c',
      '2',
      '-W',
      '1',
      '-M',
      'do',
      '-s',
      '1372',
      FAR_ADDRESS,
    ]);
    t.regex(stdout, /Frag needed and DF set \(mtu = 1300\)/, JSON.stringify(await engine1.drops()));
    const { bitsPerSecond } = await iperf3(c1, far, FAR_ADDRESS, { bytes: 20e6 });
    t.true(bitsPerSecond > 1e7);
    near.ip('link', 'set', 'far0', 'mtu', '1500');
    far.ip('link', 'set', 'eth0', 'mtu', '1500');
  },
);

live(
  'a datagram from outside that is too long for the network is cut when it may be, and else refused',
  async (t) => {
    const { c1, far, engine1 } = rig();
    const server = c1.start('socat', ['-u', 'UDP-RECVFROM:53,fork', 'SYSTEM:wc -c']);
    const list = ['-H', '-n', '-lu', 'sport = :53'];
    await waitFor(async () => (await c1.run('ss', list)) !== '', { what: 'a server' });
    const long = `${'x'.repeat(1460)}\n`;
    const send = (pmtudisc: number) =>
      // It stays for a second: an error about a socket that is gone is not heard.
      far.exec(
        'socat',
        [
          ...['-T', '1', '-u', '-b', '2000', 'STDIN,ignoreeof'],
          `UDP:${UPLINK_ADDRESS}:5353,ip-mtu-discover=${pmtudisc}`,
        ],
        { input: long },
      );
    await send(0);
    await server.output(/1461/);
    t.true((await engine1.element('gateway'))['fragmented'] >= 1);
    await send(2);
    const route = far.ip('route', 'get', UPLINK_ADDRESS);
    t.regex(route, /mtu 1450/, JSON.stringify(await engine1.drops()));
    await server.stop();
  },
  { tools: ['socat'] },
);

live(
  'a large file out and, from a published port, in, is whole',
  async (t) => {
    const { c1, far, directory } = rig();
    const file = `${directory}/file`;
    await far.run('dd', ['if=/dev/urandom', `of=${file}`, 'bs=1M', 'count=64']);
    const sum = (text: string): string => /^[0-9a-f]{64}/.exec(text)![0];
    const wanted = sum(await far.run('sha256sum', [file]));
    for (const [server, client, port, address] of [
      [far, c1, 7010, FAR_ADDRESS],
      [c1, far, 80, UPLINK_ADDRESS],
    ] as const) {
      const serving = server.start('socat', ['-U', `TCP-LISTEN:${port},reuseaddr`, `OPEN:${file}`]);
      const list = ['-H', '-n', '-lt', `sport = :${port}`];
      await waitFor(async () => (await server.run('ss', list)) !== '', { what: 'a server' });
      const from = `TCP:${address}:${port === 80 ? 8080 : port}`;
      await client.run('socat', ['-u', from, `CREATE:${file}.got`]);
      t.is(sum(await client.run('sha256sum', [`${file}.got`])), wanted);
      await serving.finish();
    }
  },
  { tools: ['socat'] },
);

live('an interface that goes down and comes up again; a router whose MAC changes', async (t) => {
  const { c1, host, near, engine1 } = rig();
  host.ip('link', 'set', 'out0', 'down');
  t.is((await ping(c1, FAR_ADDRESS, { count: 2 })).received, 0);
  host.ip('link', 'set', 'out0', 'up');
  await reaches(t, c1, FAR_ADDRESS, engine1);
  near.ip('link', 'set', 'in0', 'down');
  near.ip('link', 'set', 'in0', 'address', '02:00:00:00:77:77');
  near.ip('link', 'set', 'in0', 'up');
  // What it announces, or what it asks, tells its new address.
  await near.exec('ping', ['-c', '1', '-W', '2', UPLINK_ADDRESS]);
  await reaches(t, c1, FAR_ADDRESS, engine1);
});

live('of an attack on the uplink nothing enters, and who is inside does not notice', async (t) => {
  const { c1, far, near, engine1 } = rig();
  const drops = await engine1.watchDrops();
  const flood = [
    'import socket',
    's=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)',
    `for i in range(20000): s.sendto(b"x",("${UPLINK_ADDRESS}",1+i%65535))`,
  ].join('\n');
  const attack = far.exec('python3', ['-c', flood]);
  await reaches(t, c1, NEAR_ADDRESS, engine1);
  await attack;
  await reaches(t, near, UPLINK_ADDRESS, engine1);
  const grown = await drops();
  const refused = (grown['nat not-published'] ?? 0) + (grown['nat filtered'] ?? 0);
  t.true(refused > 15_000, JSON.stringify(grown));
});
