/** Out of the overlay and in by the host's own stack: uplinks of mode host. */
import type { ExecutionContext } from 'ava';
import { iperf3, type Namespace, ping, waitFor } from '../../cli/lab.js';
import type { PublishRow } from '../../control/api.js';
import { attacksMissing } from '../support/attacks.js';
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
} from '../support/gateway.js';
import { live, type NodeFile, shared } from '../support/live.js';
import { associate, sctpServer, TO_CLIENT, TO_SERVER } from '../support/sctp.js';

const TOOLS = { tools: ['socat', 'nft'] };
const rig = shared(async () => {
  const made = new GatewayRig({ file: hostFile() });
  made.host.route('default', { via: NEAR_ADDRESS });
  await made.start(made.engine1);
  return made;
});

const engine1File = (): NodeFile => rig().file();

/** A connection to a port of the host that says what it is told to, and shows what it hears. */
function talk(from: Namespace, port: number) {
  return from.start('socat', ['-', `TCP:${HOST_ADDRESS}:${port}`], { stdio: ['pipe', 'pipe', 'pipe'] });
}

/** A download through the host, begun; the function returned lets it go on, and waits for its end. */
async function download(t: ExecutionContext): Promise<() => Promise<void>> {
  const { c1, far, directory } = rig();
  const file = `${directory}/file`;
  await far.run('dd', ['if=/dev/urandom', `of=${file}`, 'bs=1M', 'count=8']);
  const sum = async (name: string): Promise<string> => (await far.run('sha256sum', [name])).slice(0, 64);
  const serving = `SYSTEM:head -c 1M ${file}; until test -e ${file}.on; do sleep 0.05; done; tail -c 7M ${file}`;
  const server = far.start('socat', ['-U', 'TCP-LISTEN:7300,reuseaddr', serving]);
  await waitFor(async () => (await far.run('ss', ['-ltn'])).includes(':7300'), { what: 'a server' });
  const got = `${file}.got`;
  const client = c1.start('socat', ['-u', `TCP:${FAR_ADDRESS}:7300`, `CREATE:${got}`]);
  await waitFor(async () => Number(await c1.run('stat', ['-c', '%s', got])) > 500_000, {
    what: 'a beginning',
  });
  return async () => {
    await far.run('touch', [`${file}.on`]);
    t.is((await client.finish(60_000)).code, 0);
    t.is(await sum(got), await sum(file));
    await server.finish();
    await far.run('rm', [`${file}.on`]);
  };
}

async function reaches(t: ExecutionContext, from: Namespace, address: string): Promise<void> {
  const { received } = await ping(from, address, { count: 2, deadlineS: 5 });
  t.true(received >= 2, `${address}: ${JSON.stringify(await rig().engine1.drops())}`);
}

live(
  'a container puts nothing into another network by speaking VXLAN to its host',
  async (t) => {
    const { c1, engine1 } = rig();
    const drops = await engine1.watchDrops();
    // Of no network, so that it would be counted where it arrived.
    const header = '\\x08\\0\\0\\0\\0\\0\\x09\\0';
    await c1.exec('sh', ['-c', `printf '${header}%060d' 0 | socat - UDP:192.168.50.1:4789`]);
    await waitFor(async () => (await drops())['gateway to-underlay'] >= 1, { what: 'it to be refused' });
    t.is((await drops())['vxlan-decap unknown-vni'] ?? 0, 0);
  },
  TOOLS,
);

live(
  'containers reach the host and what is behind it; the server sees the host',
  async (t) => {
    const { c1, c2, g1, far } = rig();
    for (const address of [HOST_ADDRESS, NEAR_ADDRESS, FAR_ADDRESS]) await reaches(t, c1, address);
    await reaches(t, c2, FAR_ADDRESS);
    await reaches(t, g1, FAR_ADDRESS);
    const tcp = await serve(far, 'TCP', 7001);
    const udp = await serve(far, 'UDP', 7002);
    t.is(await askTcp(c1, FAR_ADDRESS, 7001, 'over tcp'), `${HOST_ADDRESS} over tcp`);
    t.is(await askUdp(c1, FAR_ADDRESS, 7002, 'over udp'), `${HOST_ADDRESS} over udp`);
    await tcp.stop();
    await udp.stop();
  },
  TOOLS,
);

live(
  'a published port is reached from outside, from containers, from its own and from the host; others are not',
  async (t) => {
    const { c1, c2, g1, far, near, host, engine1 } = rig();
    const tcp = await serve(c1, 'TCP', 80);
    const udp = await serve(c1, 'UDP', 53);
    const closed = await serve(c1, 'TCP', 81);
    const answers = async (from: Namespace, address: string, seen: string): Promise<void> => {
      const drops = (): Promise<string> => engine1.drops().then((all) => JSON.stringify(all));
      t.is(
        await askTcp(from, address, 8080, 'tcp'),
        `${seen} tcp`,
        `${from.label} ${address} ${await drops()}`,
      );
      t.is(
        await askUdp(from, address, 5353, 'udp'),
        `${seen} udp`,
        `${from.label} ${address} ${await drops()}`,
      );
    };
    await answers(far, HOST_ADDRESS, FAR_ADDRESS);
    await answers(near, HOST_ADDRESS, NEAR_ADDRESS);
    for (const container of [c2, g1, c1]) await answers(container, HOST_ADDRESS, HOST_ADDRESS);
    await answers(host, HOST_ADDRESS, HOST_ADDRESS);
    await answers(host, '127.0.0.1', '192.168.50.1');
    for (const [from, address, port] of [
      [far, HOST_ADDRESS, 81],
      [far, HOST_ADDRESS, 80],
      [host, '10.0.9.1', 80],
    ] as const)
      t.is(await askTcp(from, address, port, 'closed'), '');
    for (const running of [tcp, udp, closed]) await running.stop();
  },
  TOOLS,
);

live(
  'from outside nothing enters that was not published, nor by the host to others',
  async (t) => {
    const { c1, far, near, host } = rig();
    // Who knows of the networks may send there; the host's route leads to the TAP.
    near.ip('route', 'replace', '10.0.9.0/24', 'via', HOST_ADDRESS);
    far.ip('route', 'replace', '10.0.9.0/24', 'via', '203.0.113.1');
    const server = await serve(c1, 'TCP', 80);
    for (const outside of [near, far]) {
      t.is(await askTcp(outside, '10.0.9.1', 80, 'direct'), '');
      t.is((await ping(outside, '10.0.9.1', { count: 1 })).received, 0);
    }
    t.regex(
      await host.run('nft', ['list', 'table', 'ip', 'weft_host_h1_host']),
      /counter packets [1-9]\d* .* drop/,
    );
    // The host forwards by out0 for the containers, and for nobody else.
    t.is(await forwarding(host, 'out0'), '1');
    near.ip('route', 'replace', '198.51.100.0/24', 'via', HOST_ADDRESS);
    host.ip('route', 'replace', '198.51.100.0/24', 'via', '192.168.50.2', 'dev', 'under0', 'onlink');
    host.ip('neighbour', 'replace', '192.168.50.2', 'lladdr', '02:00:00:00:00:02', 'dev', 'under0');
    const sent = async (): Promise<number> => {
      const [{ stats64 }] = JSON.parse(host.ip('-j', '-s', 'link', 'show', 'under0')) as {
        stats64: { tx: { packets: number } };
      }[];
      return stats64.tx.packets;
    };
    const before = await sent();
    await ping(near, '198.51.100.1', { count: 20, interval: 0.01 });
    t.true((await sent()) - before < 20, 'forwarded for near');
    host.ip('route', 'del', '198.51.100.0/24');
    // What the loopback of the host serves is not for containers.
    const own = await serve(host, 'TCP', 7100);
    c1.ip('route', 'replace', '127.0.0.2/32', 'via', '10.0.9.254', 'dev', 'eth0', 'table', 'main');
    t.is(await askTcp(c1, '127.0.0.2', 7100, 'loopback'), '');
    await own.stop();
    await server.stop();
  },
  TOOLS,
);

live(
  'a reload publishes, takes back and ends connections; the others go on',
  async (t) => {
    const { c1, c2, far, engine1 } = rig();
    const file = engine1File();
    const echo = async (container: Namespace, port: number) => {
      const server = container.start('socat', ['-T', '6', `TCP-LISTEN:${port},reuseaddr,fork`, 'EXEC:cat']);
      await waitFor(async () => (await container.run('ss', ['-ltn'])).includes(`:${port}`), {
        what: 'a server',
      });
      return server;
    };
    const servers = [await echo(c1, 80), await echo(c2, 80), await echo(c2, 81)];
    const kept = talk(far, 8080);
    kept.child.stdin!.write('one\n');
    await kept.output(/one/);
    const more = [
      { endpoint: 'c2', protocol: 'tcp', port: '9000-9001', target: '80-81' },
      { endpoint: 'c2', protocol: 'tcp', port: 9002, target: 80, address: '192.168.50.1' },
    ];
    await engine1.change({ ...file, publish: [...(file['publish'] as object[]), ...more] });
    t.is(await askTcp(far, HOST_ADDRESS, 9001, 'range'), 'range');
    t.is(await askTcp(far, HOST_ADDRESS, 9002, 'address'), '');
    t.is(await askTcp(rig().host, '192.168.50.1', 9002, 'address'), 'address');
    const ended = talk(far, 9000);
    ended.child.stdin!.write('two\n');
    await ended.output(/two/);
    await engine1.change(file);
    // Its kernel hears that nobody is there: the connection is reset, and not merely silent.
    ended.child.stdin!.write('three\n');
    t.not((await ended.finish(10_000)).stdout, 'two\nthree\n');
    t.is(await askTcp(far, HOST_ADDRESS, 9001, 'range'), '');
    kept.child.stdin!.write('four\n');
    await kept.output(/four/);
    // The same port for another endpoint: connections do not go on with the old one.
    const other = { endpoint: 'c2', protocol: 'tcp', port: 8080, target: 81 };
    await engine1.change({ ...file, publish: [other] });
    t.is(await askTcp(far, HOST_ADDRESS, 8080, 'moved'), 'moved');
    kept.child.stdin!.write('five\n');
    t.notRegex((await kept.finish(10_000)).stdout, /five/);
    await engine1.change(file);
    for (const running of servers) await running.stop();
  },
  TOOLS,
);

live(
  'SCTP: out under the address of the host, and in by a published port; its CRC32c is right',
  async (t) => {
    const { c1, far, engine1 } = rig();
    const file = engine1File();
    const rule = { endpoint: 'c1', protocol: 'sctp', port: 8132, target: 132 };
    await engine1.change({ ...file, publish: [...(file['publish'] as object[]), rule] });
    const outside = await sctpServer(far);
    t.deepEqual(
      await associate(c1, FAR_ADDRESS, 9, 40_000),
      TO_CLIENT.map((chunk) => [FAR_ADDRESS, 9, 40_000, chunk, true]),
    );
    t.deepEqual(
      await outside.stop(),
      TO_SERVER.map((chunk) => [HOST_ADDRESS, 40_000, 9, chunk, true]),
    );
    const inside = await sctpServer(c1);
    t.deepEqual(
      await associate(far, HOST_ADDRESS, 8132, 40_002),
      TO_CLIENT.map((chunk) => [HOST_ADDRESS, 8132, 40_002, chunk, true]),
    );
    t.deepEqual(
      await inside.stop(),
      TO_SERVER.map((chunk) => [FAR_ADDRESS, 40_002, 132, chunk, true]),
    );
    await engine1.change(file);
  },
  { tools: ['nft'], skip: attacksMissing() },
);

live(
  'a datagram flow that was before its port was published finds the container',
  async (t) => {
    const { c1, far, engine1 } = rig();
    const file = engine1File();
    await engine1.change({ ...file, publish: [] });
    const ask = (line: string): Promise<string> =>
      far
        .exec('socat', ['-t', '1', '-', `UDP:${HOST_ADDRESS}:5353,sourceport=40404`], { input: `${line}\n` })
        .then(({ stdout }) => stdout.trim());
    t.is(await ask('nobody'), '');
    const server = await serve(c1, 'UDP', 53);
    await engine1.change(file);
    t.is(await ask('somebody'), `${FAR_ADDRESS} somebody`);
    await server.stop();
  },
  TOOLS,
);

live(
  'an automatic port is the same after a reload and a restart',
  async (t) => {
    const { c2, far, engine1 } = rig();
    const file = engine1File();
    const publish = [...(file['publish'] as object[]), { endpoint: 'c2', protocol: 'tcp', target: 80 }];
    const port = async (): Promise<number> => {
      const { stdout } = await engine1.cli('publish', 'ls', '--json');
      const rows = (JSON.parse(stdout) as { published: PublishRow[] }).published;
      return rows.find(({ endpoint }) => endpoint === 'c2')!.port;
    };
    await engine1.change({ ...file, publish });
    const first = await port();
    t.true(first >= 30_000 && first <= 32_767);
    const server = await serve(c2, 'TCP', 80);
    t.is(await askTcp(far, HOST_ADDRESS, first, 'automatic'), `${FAR_ADDRESS} automatic`);
    await engine1.change({ ...file, publish: publish.toReversed() });
    t.is(await port(), first);
    await engine1.stop();
    await engine1.start();
    t.is(await port(), first);
    t.is(await askTcp(far, HOST_ADDRESS, first, 'automatic'), `${FAR_ADDRESS} automatic`);
    await engine1.change(file);
    await server.stop();
  },
  TOOLS,
);

live(
  'a port that the host has is said at the start and at a reload, and nobody gets one that is published',
  async (t) => {
    const { host, engine1 } = rig();
    const file = engine1File();
    const taken = { ...file, publish: [{ endpoint: 'c1', protocol: 'tcp', port: 7200, target: 80 }] };
    const server = await serve(host, 'TCP', 7200);
    engine1.write({ ...taken, publish: [{ endpoint: 'c1', protocol: 'udp', port: 53 }, ...taken.publish] });
    const answer = await engine1.reload();
    t.regex(
      answer,
      /tcp port 7200 is in use on this host, so it cannot be endpoint "c1"'s; stop what listens/,
    );
    t.regex(answer, /not reloaded/);
    // What could be had of it was let go.
    const free = await serve(host, 'UDP', 53);
    await free.stop();
    engine1.write(file);
    t.regex(await engine1.reload(), /^reloaded$/m);
    const second = host.start('socat', ['TCP-LISTEN:8080,reuseaddr', '-']);
    const { code, stderr } = await second.finish();
    t.not(code, 0);
    t.regex(stderr, /Address already in use/);
    await engine1.stop();
    engine1.write({ ...taken, publish: taken.publish.map((rule) => ({ ...rule, address: '192.0.2.9' })) });
    t.regex((await engine1.refuse()).stderr, /192\.0\.2\.9 is no address of this host/);
    engine1.write(taken);
    t.regex((await engine1.refuse()).stderr, /tcp port 7200 is in use on this host/);
    t.deepEqual(await leftOvers(host), CLEAN);
    await server.stop();
    await engine1.start();
    engine1.write(file);
    t.regex(await engine1.reload(), /^reloaded$/m);
  },
  TOOLS,
);

live(
  'SIGTERM leaves nothing; a start after kill -9 replaces what was left, and open downloads go on',
  async (t) => {
    const { c1, host, engine1 } = rig();
    const ended = await download(t);
    await engine1.kill();
    t.is((await leftOvers(host)).tables, 'table ip weft_host_h1_host');
    await engine1.start();
    await ended();
    await reaches(t, c1, FAR_ADDRESS);
    t.is(await forwarding(host, 'out0'), '1');
    await engine1.stop();
    t.deepEqual(await leftOvers(host), CLEAN);
    // An uplink that the file has no more is cleaned up too.
    await engine1.start();
    await engine1.kill();
    const { uplinks, publish, networks, ...rest } = engine1File();
    t.truthy(uplinks ?? publish);
    engine1.write({ ...rest, networks: networks.map(({ uplink, ...network }) => network) });
    await engine1.start();
    t.deepEqual(await leftOvers(host), CLEAN);
    await engine1.stop();
    engine1.write(engine1File());
    await engine1.start();
  },
  TOOLS,
);

live(
  'a new process that takes over: connections out and in go on, without a reset in between',
  async (t) => {
    const { c1, far, host, engine1 } = rig();
    const server = c1.start('socat', ['-T', '20', 'TCP-LISTEN:80,reuseaddr', 'EXEC:cat']);
    await waitFor(async () => (await c1.run('ss', ['-ltn'])).includes(':80'), { what: 'a server' });
    const inward = talk(far, 8080);
    inward.child.stdin!.write('one\n');
    await inward.output(/one/);
    const ended = await download(t);
    t.is((await engine1.replace()).code, 0);
    inward.child.stdin!.write('two\n');
    await inward.output(/two/);
    await ended();
    t.is(await forwarding(host, 'out0'), '1');
    inward.child.stdin!.end();
    await inward.finish();
    await server.finish();
  },
  TOOLS,
);

live('an interface that comes later brings answers too', async (t) => {
  const { lab, host, c1 } = rig();
  const late = lab.host('late');
  lab.link(host, late, {
    ...{ nameA: 'late0', nameB: 'eth0' },
    ...{ addressesA: ['192.168.70.1/24'], addressesB: ['192.168.70.2/24'] },
  });
  await waitFor(async () => (await forwarding(host, 'late0')) === '1', { what: 'forwarding by late0' });
  await reaches(t, c1, '192.168.70.2');
});

live(
  'rules that somebody flushes, and forwarding that somebody takes back, are made again',
  async (t) => {
    const { host, c1, engine1 } = rig();
    await host.run('nft', ['flush', 'ruleset']);
    await waitFor(async () => (await leftOvers(host)).tables !== '', { what: 'the table' });
    t.regex(
      engine1.running!.stderr,
      /uplink host: its table ip weft_host_h1_host was removed, and is made again/,
    );
    await reaches(t, c1, FAR_ADDRESS);
    await host.run('sysctl', ['-qw', 'net.ipv4.conf.out0.forwarding=0']);
    await waitFor(async () => (await forwarding(host, 'out0')) === '1', { what: 'forwarding' });
    await reaches(t, c1, FAR_ADDRESS);
  },
  TOOLS,
);

live('TCP at speed, out and in; what is too long is said or cut', async (t) => {
  const { c1, far, near, engine1 } = rig();
  const out = await iperf3(c1, far, FAR_ADDRESS, { bytes: 60e6 });
  const back = await iperf3(c1, far, FAR_ADDRESS, { bytes: 60e6, reverse: true });
  t.true(out.bitsPerSecond > 1e7 && back.bitsPerSecond > 1e7, JSON.stringify([out, back]));
  t.log(
    `${(out.bitsPerSecond / 1e9).toFixed(2)} Gb/s out, ${(back.bitsPerSecond / 1e9).toFixed(2)} Gb/s back`,
  );
  const answered = await ping(c1, FAR_ADDRESS, { count: 2, size: 4000 });
  t.is(answered.received, 2, JSON.stringify(await engine1.drops()));
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
  near.ip('link', 'set', 'far0', 'mtu', '1500');
  far.ip('link', 'set', 'eth0', 'mtu', '1500');
  const hop = async (ttl: number): Promise<string> => {
    const text = await c1.exec('ping', ['-n', '-c', '1', '-W', '2', '-t', String(ttl), FAR_ADDRESS]);
    return /From (\S+)/.exec(text.stdout)?.[1] ?? text.stdout;
  };
  t.is(await hop(1), '10.0.9.254');
  t.regex(await hop(2), /^192\.168\./);
  t.is(await hop(3), NEAR_ADDRESS);
});
