/** The gateway's process comes and goes, and connections through it do not notice. */
import { existsSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import type { ExecutionContext } from 'ava';
import { type Namespace, type RunningCommand, waitFor } from '../../cli/lab.js';
import type { ConntrackList } from '../../control/api.js';
import { FAR_ADDRESS, GatewayRig, UPLINK_ADDRESS } from '../support/gateway.js';
import { type Engine, linksOf, live, peer, shared } from '../support/live.js';

const rig = shared(() => GatewayRig.up());
const flowFile = (): string => `${rig().engine1.socket}.state.flows`;

async function tcpFlows(engine: Engine): Promise<ConntrackList['flows']> {
  const { code, stdout, stderr } = await engine.cli('conntrack', 'ls', '--protocol', 'tcp', '--json');
  if (code !== 0) throw new Error(stderr);
  return (JSON.parse(stdout) as ConntrackList).flows;
}

interface Download {
  readonly server: RunningCommand;
  readonly client: RunningCommand;
}

/** A download that goes on until `whole`, of which something has come. */
async function download(
  from: Namespace,
  to: Namespace,
  address: string,
  port: number,
  at = port,
): Promise<Download> {
  const server = peer(from, 'slow-server', '0.0.0.0', String(at));
  await server.output(/^listening$/m);
  const client = peer(to, 'slow-client', address, String(port));
  await client.output(/^got 2$/m);
  return { server, client };
}

/** The whole came, and nothing else. */
async function whole(t: ExecutionContext, { server, client }: Download): Promise<void> {
  server.child.kill('SIGUSR1');
  const [, sent] = await server.output(/^sum (\w+)$/m, { timeoutMs: 30_000 });
  const [, got] = await client.output(/^sum (\w+)$/m, { timeoutMs: 30_000 });
  t.is(got, sent);
  t.notRegex(client.stdout, /failed/);
  await client.finish();
  await server.stop('SIGKILL');
}

const WAYS: readonly [string, (engine: Engine, t: ExecutionContext) => Promise<void>][] = [
  [
    'up --replace',
    async (engine, t) => {
      const { code, stderr } = await engine.replace();
      t.is(code, 0, stderr);
      t.regex(stderr, /^handed over to the next process, by the process that takes over$/m);
      t.regex(engine.running!.stderr, /^the daemon that ran has handed over$/m);
    },
  ],
  [
    'kill -9 and a start',
    async (engine) => {
      await engine.kill();
      await engine.start();
    },
  ],
  [
    'SIGUSR1 and a start',
    async (engine, t) => {
      t.is((await engine.stop('SIGUSR1')).code, 0);
      await engine.start();
    },
  ],
];

for (const [way, restart] of WAYS) {
  live(`${way}: open downloads through the uplink and from a published port go on`, async (t) => {
    const { c1, far, engine1 } = rig();
    // Whoever only receives sends nothing that could make a flow anew: without its flow this one hangs.
    const out = await download(far, c1, FAR_ADDRESS, 7010);
    const published = await download(c1, far, UPLINK_ADDRESS, 8080, 80);
    const before = await tcpFlows(engine1);
    t.is(before.length, 2);
    await restart(engine1, t);
    t.regex(engine1.running!.stderr, /^flows: [2-9] taken over, 0 not$/m);
    const after = await tcpFlows(engine1);
    const ends = (flows: ConntrackList['flows']) =>
      flows.map(({ inside, outside, remote, network, uplink }) => ({
        inside,
        outside,
        remote,
        network,
        uplink,
      }));
    t.deepEqual(ends(after), ends(before));
    // The seconds of two processes do not begin together.
    t.true(after.every(({ expires, state }) => expires > 7300 && expires <= 7441 && state === 'established'));
    t.true(after.every(({ packetsIn }, i) => packetsIn >= before[i].packetsIn));
    await whole(t, out);
    await whole(t, published);
    await engine1.cli('conntrack', 'flush');
  });
}

live(
  'flows whose network, endpoint or published port has gone with the restart are not taken over',
  async (t) => {
    const { c1, c2, g1, far, engine1 } = rig();
    const file = rig().file();
    const started = [
      await download(far, c1, FAR_ADDRESS, 7011),
      await download(far, c2, FAR_ADDRESS, 7012),
      await download(far, g1, FAR_ADDRESS, 7013),
      await download(c1, far, UPLINK_ADDRESS, 8080, 80),
    ];
    t.is((await tcpFlows(engine1)).length, 4);
    await engine1.kill();
    const [blue, , inner] = file.networks;
    // Another network comes first, and gets no number that flows are known by.
    const teal = {
      ...file.networks[1],
      name: 'teal',
      vni: 45,
      subnet: '10.0.12.0/24',
      gateway: '10.0.12.254',
    };
    const uplinks = [
      { name: 'other', interface: 'out0', address: '192.168.60.11/24' },
      ...(file['uplinks'] as object[]),
    ];
    const [one] = file.endpoints;
    engine1.write({ ...file, uplinks, networks: [teal, blue, inner], endpoints: [one], publish: [] });
    await engine1.start();
    t.regex(engine1.running!.stderr, /^flows: 1 taken over, 3 not$/m);
    const after = await tcpFlows(engine1);
    t.like(
      after.find(({ remote }) => remote === `${FAR_ADDRESS}:7011`),
      { uplink: 'out', network: 'blue', state: 'established' },
    );
    // The server that was published may have sent meanwhile, which is a flow of its own.
    t.false(after.some(({ remote, outside }) => /:701[23]$/.test(remote) || outside.endsWith(':8080')));
    await whole(t, started[0]);
    for (const { server, client } of started) {
      await server.stop('SIGKILL');
      await client.stop('SIGKILL');
    }
    // Another size of the table: it begins empty.
    await engine1.kill();
    engine1.write({ ...file, nat: { max_flows: 2048 } });
    await engine1.start();
    t.notRegex(engine1.running!.stderr, /taken over/);
    await engine1.stop();
    engine1.write(file);
    await engine1.start();
  },
);

live(
  "what must not be taken over is not: a file that is wrong, one that is another's, a table in use",
  async (t) => {
    const { c1, host, engine1 } = rig();
    t.is(statSync(flowFile()).mode & 0o777, 0o600);
    const { pid } = engine1;
    // A file that is refused is refused before anything is asked of who runs.
    const running = engine1.running!;
    engine1.write({ ...rig().file(), nat: { max_flows: 1 } });
    const refused = await engine1.launch('--replace').finish();
    t.is(refused.code, 2, refused.stderr);
    engine1.running = running;
    engine1.write(rig().file());
    t.is((await engine1.status()).pid, pid);
    t.deepEqual(linksOf(c1), ['eth0']);

    const other = rig().engine(host, { ...rig().file(), underlay: { address: '192.168.50.1', port: 4790 } });
    host.run('ln', ['-s', '/etc/passwd', `${other.socket}.state.flows`]);
    const link = await other.refuse();
    t.is(link.code, 1);
    t.regex(link.stderr, /:\d+:\d+: no file for the flows: .*is a symbolic link: remove it/);
  },
);

live('a daemon that cannot hand over, being older, is left alone, and that is said', async (t) => {
  const { engine1 } = rig();
  await engine1.stop();
  const older = createServer((_, response) => response.writeHead(404).end('{"error":"no such path"}\n'));
  await new Promise<void>((resolve) => older.listen(engine1.socket, resolve));
  const { code, stderr } = await engine1.launch('--replace').finish();
  t.is(code, 5);
  t.regex(stderr, /is too old to hand over: stop it first/);
  t.true(older.listening);
  await new Promise((resolve) => older.close(resolve));
  await engine1.start();
});

live('without a daemon, up --replace is a start; SIGTERM leaves no file of flows', async (t) => {
  const { c1, engine1 } = rig();
  await engine1.stop();
  t.deepEqual(linksOf(c1), []);
  t.false(existsSync(flowFile()));
  t.false(existsSync(`${flowFile()}.names`));
  await engine1.start('--replace');
  t.regex(engine1.running!.stderr, /^there is no daemon to take over from$/m);
  await waitFor(() => existsSync(flowFile()), { what: 'the file of flows' });
});
