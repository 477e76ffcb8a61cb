/** The end of an engine, wanted and unwanted: what containers keep when it is killed, what is left when it stops. */
import { existsSync, readdirSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import type { ExecutionContext } from 'ava';
import { type Namespace, ping, waitFor } from '../../cli/lab.js';
import {
  type Engine,
  linkOf,
  linksOf,
  live,
  Mesh,
  overlayAddress,
  peer,
  shared,
  underlayAddress,
} from '../support/live.js';

const mesh = shared(() => Mesh.up({ hosts: 2 }));
const socketMesh = shared(() => Mesh.up({ hosts: 2, underlay: { mode: 'socket' } }));

for (const [path, rig] of [
  ['the default path', mesh],
  ['sockets', socketMesh],
] as const) {
  live(
    `kill -9 under traffic and a restart over ${path}: interface and open TCP connection stay`,
    async (t) => {
      const { containers, engines } = rig();
      const [a, b] = containers;
      const server = peer(b, 'line-echo', overlayAddress(2), '7100');
      await server.output(/^listening$/m);
      const client = peer(a, 'line-client', overlayAddress(2), '7100');
      await client.output(/^20$/m);
      const before = linkOf(a, 'eth0');

      await engines[0].kill();
      const orphan = linkOf(a, 'eth0');
      t.is(orphan?.ifindex, before?.ifindex);
      t.deepEqual(orphan?.addr_info, before?.addr_info);
      t.is((await ping(a, overlayAddress(2), { count: 1 })).received, 0, 'nobody forwards meanwhile');

      await engines[0].start();
      t.true((await ping(a, overlayAddress(2), { count: 1, deadlineS: 10 })).received > 0);
      const after = linkOf(a, 'eth0');
      t.is(after?.ifindex, before?.ifindex);
      t.is(after?.address, before?.address);
      t.deepEqual(after?.addr_info, before?.addr_info);

      // TCP sends again what was lost, after a pause that has doubled a few times.
      const reached = Number(client.stdout.trim().split('\n').at(-1));
      await client.output(new RegExp(`^${reached + 50}$`, 'm'), { timeoutMs: 20_000 });
      t.is(client.child.exitCode, null);
      t.notRegex(client.stdout, /failed/);
      t.regex(client.stdout, /^0\n1\n2\n/);
      await client.stop('SIGKILL');
      await server.stop('SIGKILL');
    },
  );
}

live('kill -9 and a restart without the endpoint: the left-over interface is gone', async (t) => {
  const { containers, engines } = mesh();
  const extra = mesh().lab.host('extra');
  const file = mesh().fileOf(1);
  await engines[0].change({ ...file, endpoints: [...file.endpoints, mesh().endpointOf(8, extra.name)] });
  t.deepEqual(linksOf(extra), ['eth0']);
  await engines[0].kill();
  t.deepEqual(linksOf(extra), ['eth0']);
  engines[0].write(file);
  await engines[0].start();
  t.deepEqual(linksOf(extra), []);
  t.true((await ping(containers[0], overlayAddress(2), { count: 3, deadlineS: 5 })).received >= 3);
});

live('kill -9 twice, and a start between that is killed before it is ready: nothing piles up', async (t) => {
  const { containers, engines, hosts } = mesh();
  await engines[0].kill();
  const half = engines[0].launch();
  await waitFor(() => existsSync(`/proc/${half.child.pid}/fd`), { what: 'the process' });
  await delay(150);
  await engines[0].kill();
  await engines[0].start();
  t.deepEqual(linksOf(containers[0]), ['eth0']);
  t.true(linksOf(hosts[0]).length <= 2, linksOf(hosts[0]).join(' '));
  t.true((await ping(containers[0], overlayAddress(2), { count: 3, deadlineS: 5 })).received >= 3);
});

/** What there is of ours in the network of a host: devices, nft tables, sockets of the VXLAN port. */
async function tracesIn(host: Namespace): Promise<string> {
  const rules = await host.exec('nft', ['list', 'ruleset']);
  const sockets = await host.exec('ss', ['-Hulpn']);
  const devices = linksOf(host).filter((name) => name !== 'under0');
  return `${devices.join(' ')}${rules.stdout}${sockets.stdout}`.trim();
}

async function nothingLeft(
  t: ExecutionContext,
  rig: Mesh,
  engine: Engine,
  namespaces: string[],
): Promise<void> {
  t.deepEqual(linksOf(rig.containers[0]), []);
  t.is(await tracesIn(rig.hosts[0]), '');
  const files = readdirSync(rig.directory).filter((name) =>
    `${rig.directory}/${name}`.startsWith(engine.socket),
  );
  t.deepEqual(files, [], 'socket and state file');
  t.deepEqual(readdirSync('/run/netns').filter(isOurs), namespaces);
}

/** Namespaces of other tests come and go beside these. */
const isOurs = (name: string): boolean => name.startsWith(mesh().hosts[0].name.replace(/\d+-h1$/, ''));

for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  live(`${signal}: exit 0 and nothing left behind`, async (t) => {
    const { engines } = mesh();
    const namespaces = readdirSync('/run/netns').filter(isOurs);
    const { code, stderr, stdout } = await engines[0].stop(signal);
    t.is(code, 0, stderr);
    t.is(stdout, 'ready\n');
    t.regex(stderr, new RegExp(`stopped by ${signal}`));
    await nothingLeft(t, mesh(), engines[0], namespaces);
    await engines[0].start();
  });
}

live('SIGTERM during the start: exit 0 and nothing left behind', async (t) => {
  const { engines, lab } = mesh();
  const file = mesh().fileOf(1);
  // Many endpoints, so that there is a middle of the start in which to be hit.
  const crowd = lab.host('crowd');
  const many = Array.from({ length: 20 }, (_, i) => ({
    ...mesh().endpointOf(100 + i, crowd.name),
    interface: `eth${i}`,
  }));
  await engines[0].stop();
  engines[0].write({ ...file, endpoints: [...file.endpoints, ...many] });
  const namespaces = readdirSync('/run/netns').filter(isOurs);
  const running = engines[0].launch();
  await waitFor(() => linksOf(crowd).length > 0, { what: 'the first interface' });
  const { code, stderr } = await running.stop('SIGTERM');
  t.is(code, 0, stderr);
  t.deepEqual(linksOf(crowd), []);
  await nothingLeft(t, mesh(), engines[0], namespaces);
  engines[0].write(file);
  await engines[0].start();
});

live('two SIGTERMs in a row end the engine, and the next start mends what the second left', async (t) => {
  const { engines } = mesh();
  const { child } = engines[0].running!;
  child.kill('SIGTERM');
  child.kill('SIGTERM');
  const { code } = await engines[0].running!.finish(10_000);
  // The second may come after the end (0), within the clean-up (1), or before there is a handler for it (143).
  t.true([0, 1, 143].includes(code), String(code));
  await engines[0].start();
  t.true((await ping(mesh().containers[0], overlayAddress(2), { count: 3, deadlineS: 5 })).received >= 3);
});

live('a peer that is away and comes back is reached again', async (t) => {
  const { containers, engines } = mesh();
  await engines[1].stop();
  t.is((await ping(containers[0], overlayAddress(2), { count: 1 })).received, 0);
  await engines[1].start();
  t.true((await ping(containers[0], overlayAddress(2), { count: 3, deadlineS: 10 })).received >= 3);
  const fdb = await engines[1].fdb();
  t.true(fdb.some(({ vtep }) => vtep === underlayAddress(1, false)));
});
