/** The gateway while it runs: what is listed, ended, changed by SIGHUP, and what a restart leaves. */
import { waitFor } from '../../cli/lab.js';
import type { ConntrackList, PublishRow } from '../../control/api.js';
import { askTcp, FAR_ADDRESS, GatewayRig, serve, UPLINK_ADDRESS } from '../support/gateway.js';
import { type Engine, live, shared } from '../support/live.js';

const SOCAT = { tools: ['socat'] };
const rig = shared(() => GatewayRig.up());

async function json<T>(engine: Engine, ...args: string[]): Promise<T> {
  const { code, stdout, stderr } = await engine.cli(...args, '--json');
  if (code !== 0) throw new Error(`${args.join(' ')}: ${stderr}`);
  return JSON.parse(stdout) as T;
}

/** A connection from a container that says what it is told to, and shows what it hears. */
function talk(from: GatewayRig['c1'], address: string, port: number) {
  return from.start('socat', ['-', `TCP:${address}:${port}`], { stdio: ['pipe', 'pipe', 'pipe'] });
}

live(
  'flows are listed, counted and ended',
  async (t) => {
    const { c1, far, engine1 } = rig();
    const server = far.start('socat', ['TCP-LISTEN:7001,reuseaddr,fork', 'EXEC:cat']);
    await waitFor(async () => (await far.run('ss', ['-ltn'])).includes(':7001'), { what: 'a server' });
    const running = talk(c1, FAR_ADDRESS, 7001);
    running.child.stdin!.write('one\n');
    await running.output(/one/);
    const { flows } = await json<ConntrackList>(engine1, 'conntrack', 'ls', '--protocol', 'tcp');
    t.is(flows.length, 1);
    t.like(flows[0], { uplink: 'out', network: 'blue', state: 'established', remote: `${FAR_ADDRESS}:7001` });
    t.true(flows[0].inside.startsWith('10.0.9.1:'));
    // Its own port is in the range, and free: it keeps it.
    t.is(flows[0].outside, flows[0].inside.replace('10.0.9.1', UPLINK_ADDRESS));
    t.true(
      flows[0].packetsOut >= 3 && flows[0].packetsIn >= 2 && flows[0].bytes > 200 && flows[0].expires > 7000,
    );
    const stats = await json<ConntrackList>(engine1, 'conntrack', 'stats');
    t.is(stats.maxFlows, 262_144);
    t.true(stats.tracked >= 1 && stats.counters['flows-made'] >= 1);
    t.regex((await engine1.cli('conntrack', 'ls')).stdout, /tcp +established +blue +10\.0\.9\.1:/);
    t.is((await engine1.cli('conntrack', 'ls', '--network', 'red')).code, 4);
    t.regex((await engine1.cli('conntrack', 'ls', '--limit', '1')).stdout, /^PROTOCOL.*\n.*\n$/);
    for (const limit of ['many', '-1', '1.5', ''])
      t.like(await engine1.cli('conntrack', 'ls', '--limit', limit), { code: 2 }, limit);
    t.is((await engine1.cli('conntrack', 'flush', '--endpoint', 'c9')).code, 4);
    t.is((await json<{ ended: number }>(engine1, 'conntrack', 'flush', '--endpoint', 'c2')).ended, 0);
    t.true((await json<{ ended: number }>(engine1, 'conntrack', 'flush', '--endpoint', 'c1')).ended >= 1);
    t.is((await json<ConntrackList>(engine1, 'conntrack', 'ls', '--protocol', 'tcp')).matching, 0);
    // What goes on from inside makes its flow again, under the same port.
    running.child.stdin!.write('two\n');
    await running.output(/two/);
    const again = await json<ConntrackList>(engine1, 'conntrack', 'ls', '--protocol', 'tcp');
    t.is(again.flows[0].outside, flows[0].outside);
    await running.stop();
    await server.stop();
  },
  SOCAT,
);

live(
  'published ports come and go by SIGHUP, with their flows; the others stay',
  async (t) => {
    const { c1, c2, far, engine1 } = rig();
    const one = await serve(c1, 'TCP', 80);
    const two = await serve(c2, 'TCP', 80);
    const { published } = await json<{ published: PublishRow[] }>(engine1, 'publish', 'ls');
    t.deepEqual(
      published.map(
        ({ address, protocol, port, endpoint, target }) =>
          `${address} ${protocol} ${port} ${endpoint} ${target}`,
      ),
      [`${UPLINK_ADDRESS} tcp 8080 c1 80`, `${UPLINK_ADDRESS} udp 5353 c1 53`],
    );
    t.is(await askTcp(far, UPLINK_ADDRESS, 8080, 'a'), `${FAR_ADDRESS} a`);
    const file = rig().file();
    await engine1.change({ ...file, publish: [{ endpoint: 'c2', protocol: 'tcp', port: 8081, target: 80 }] });
    t.is(await askTcp(far, UPLINK_ADDRESS, 8080, 'b'), '');
    t.is(await askTcp(far, UPLINK_ADDRESS, 8081, 'c'), `${FAR_ADDRESS} c`);
    const { flows } = await json<ConntrackList>(engine1, 'conntrack', 'ls', '--protocol', 'tcp');
    t.true(flows.every(({ outside }) => outside !== `${UPLINK_ADDRESS}:8080`));
    // The same port for another endpoint.
    await engine1.change({ ...file, publish: [{ endpoint: 'c2', protocol: 'tcp', port: 8080, target: 80 }] });
    t.is(await askTcp(far, UPLINK_ADDRESS, 8080, 'd'), `${FAR_ADDRESS} d`);
    engine1.write({ ...file, uplinks: [{ ...(file['uplinks'] as object[])[0], gateway: '192.168.60.7' }] });
    t.regex(await engine1.reload(), /uplinks cannot change while the engine runs/);
    await engine1.change(file);
    await one.stop();
    await two.stop();
  },
  SOCAT,
);

live(
  'a network that loses its uplink, and one that gets it, by SIGHUP',
  async (t) => {
    const { c2, far, i1, engine1 } = rig();
    const server = await serve(far, 'TCP', 7003);
    t.is(await askTcp(c2, FAR_ADDRESS, 7003, 'a'), `${UPLINK_ADDRESS} a`);
    const file = rig().file();
    const [blue, green, inner] = file.networks;
    const { uplink: _, ...closed } = blue;
    const { internal: __, ...opened } = inner;
    await engine1.change({ ...file, networks: [closed, green, { ...opened, uplink: 'out' }], publish: [] });
    t.is(await askTcp(c2, FAR_ADDRESS, 7003, 'b'), '');
    const { matching } = await json<ConntrackList>(engine1, 'conntrack', 'ls', '--network', 'blue');
    t.is(matching, 0);
    t.is(await askTcp(i1, FAR_ADDRESS, 7003, 'c'), `${UPLINK_ADDRESS} c`);
    await engine1.change(file);
    t.false(i1.ip('route', 'show', 'default').includes('via'));
    t.is(await askTcp(c2, FAR_ADDRESS, 7003, 'd'), `${UPLINK_ADDRESS} d`);
    await server.stop();
  },
  SOCAT,
);

live(
  'with an endpoint that goes by SIGHUP its flows go',
  async (t) => {
    const { c2, far, engine1 } = rig();
    const server = await serve(far, 'TCP', 7005);
    t.is(await askTcp(c2, FAR_ADDRESS, 7005, 'a'), `${UPLINK_ADDRESS} a`);
    const ofC2 = async (): Promise<number> => {
      const { flows } = await json<ConntrackList>(engine1, 'conntrack', 'ls', '--network', 'blue');
      return flows.filter(({ inside }) => inside.startsWith('10.0.9.2:')).length;
    };
    t.true((await ofC2()) > 0);
    const file = rig().file();
    await engine1.change({ ...file, endpoints: file.endpoints.filter(({ name }) => name !== 'c2') });
    t.is(await ofC2(), 0);
    await engine1.change(file);
    t.is(await askTcp(c2, FAR_ADDRESS, 7005, 'b'), `${UPLINK_ADDRESS} b`);
    await server.stop();
  },
  SOCAT,
);

live(
  'an engine that is killed and started again: a connection goes on when the container speaks',
  async (t) => {
    const { c1, far, engine1 } = rig();
    const server = far.start('socat', ['TCP-LISTEN:7004,reuseaddr,fork', 'EXEC:cat']);
    await waitFor(async () => (await far.run('ss', ['-ltn'])).includes(':7004'), { what: 'a server' });
    const running = talk(c1, FAR_ADDRESS, 7004);
    running.child.stdin!.write('before\n');
    await running.output(/before/);
    await engine1.kill();
    await engine1.start();
    running.child.stdin!.write('after\n');
    await running.output(/after/, { timeoutMs: 20_000 });
    t.regex(c1.ip('route', 'show', 'default'), /via 10\.0\.9\.254 dev eth0 proto 87 metric \d+/);
    await running.stop();
    await server.stop();
  },
  SOCAT,
);

live('an address or an interface that is not to be had is said, with its place in the file', async (t) => {
  const { host } = rig();
  const refusing = (uplink: object) =>
    rig().engine(host, {
      ...rig().file(),
      networks: [],
      endpoints: [],
      publish: [],
      uplinks: [uplink],
    } as never);
  const taken = await refusing({ name: 'out', interface: 'out0', address: '192.168.60.2/24' }).refuse();
  t.is(taken.code, 1);
  t.regex(taken.stderr, /:\d+:\d+: 192\.168\.60\.2 is this host's own address, on out0; write another/);
  const gone = await refusing({ name: 'out', interface: 'out9', address: '192.168.60.9/24' }).refuse();
  t.regex(gone.stderr, /:\d+:\d+: this host has no interface out9; write/);
});
