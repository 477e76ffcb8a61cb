/** Services while nodes are reloaded, replaced and killed under transfers, at the backend's end and at the client's. */
import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import type { ExecutionContext } from 'ava';
import { type Namespace, waitFor } from '../../cli/lab.js';
import { IngressRig, uplinkAddress, VIP, VIP6, webService } from '../support/ingress.js';
import { type Engine, live, missing, type NodeFile, overlayAddress, shared } from '../support/live.js';
import { Load } from '../support/load.js';
import { curl, KeptConnection, Nginx, nginxMissing } from '../support/servers.js';

const WEB = { tools: ['curl', 'socat'], skip: nginxMissing() };

const ALL = '10.0.9.101';
const ALL6 = 'fd00:9::101';
const DIRECT = '10.0.9.102';

/** All come in by the first node. What is published is served at the second; `all` at each. */
const rig = shared(async () => {
  const second = { address: overlayAddress(2), address6: overlayAddress(2, true) };
  const inside = { publish: [] };
  const made = new IngressRig({
    services: [
      webService({ vip6: VIP6, backends: [second] }),
      webService({ ...inside, name: 'all', vip: ALL, vip6: ALL6 }),
      webService({
        ...{
          ...inside,
          name: 'direct',
          vip: DIRECT,
          forwarding: 'dsr',
          ports: [{ protocol: 'tcp', port: 80 }],
        },
        backends: [{ address: overlayAddress(3) }],
      }),
    ],
  });
  await made.begin();
  const [, , three] = made.containers;
  // What a server has to do for it, as with IPVS.
  await three.run('sysctl', ['-qw', 'net.ipv4.conf.all.arp_ignore=1', 'net.ipv4.conf.all.arp_announce=2']);
  three.ip('address', 'add', `${DIRECT}/32`, 'dev', 'lo');
  for (const container of made.containers) await Nginx.start(made, container, { files: made.directory });
  writeFileSync(`${made.directory}/large`, randomBytes(10 << 20));
  return made;
}, missing(WEB.tools) ?? WEB.skip);

/** What goes on while something happens: transfers, and connections that are asked before and after. */
async function through(t: ExecutionContext, what: () => Promise<unknown>): Promise<void> {
  const { clients, containers, directory } = rig();
  const file = `${directory}/large`;
  const kept = [
    KeptConnection.open(clients[0], uplinkAddress(1), 8080),
    ...[VIP, `[${VIP6}]`].map((vip) => KeptConnection.open(containers[0], vip, 80)),
  ];
  for (const connection of kept) t.is(await connection.ask(), 'c2');
  const transfers = [
    transfer(clients[0], `http://${uplinkAddress(1)}:8080/files/large`, `${file}.outside`),
    transfer(containers[0], `http://${VIP}/files/large`, `${file}.inside`),
  ];
  // They are under way.
  await delay(500);
  await what();
  await Promise.all(transfers);
  for (const got of ['outside', 'inside']) t.true(readFileSync(file).equals(readFileSync(`${file}.${got}`)));
  for (const connection of kept) {
    t.is(await connection.ask(), 'c2');
    await connection.close();
  }
}

const transfer = (from: Namespace, url: string, to: string): Promise<string> =>
  curl(from, '--limit-rate', '4M', '-o', to, url);

/** Connections of the first container to every backend of `all`, over IPv4 and IPv6, by the backend's name. */
async function keptToAll(): Promise<[string, KeptConnection][]> {
  const [container] = rig().containers;
  const kept: [string, KeptConnection][] = [];
  for (const vip of [ALL, ALL, ALL, `[${ALL6}]`, `[${ALL6}]`, `[${ALL6}]`]) {
    const connection = KeptConnection.open(container, vip, 80);
    kept.push([await connection.ask(), connection]);
  }
  return kept;
}

live(
  'a reload of every node during requests loses none',
  async (t) => {
    const { clients, engines } = rig();
    await through(t, async () => {
      const load = await Load.start(clients[1], {
        ...{ host: uplinkAddress(1), port: 8080, rate: 500, seconds: 2 },
      });
      for (const engine of engines) t.regex(await engine.reload(), /^reloaded$/m);
      const { sent, answers, failures } = await load.report();
      t.deepEqual({ answers, failures }, { answers: { c2: sent }, failures: {} });
    });
  },
  WEB,
);

live(
  "a new process at the backend's node takes over; one that was killed is followed by the next",
  async (t) => {
    const [, second] = rig().engines;
    await through(t, () => second.replace());
    await through(t, async () => {
      await second.kill();
      await second.start();
    });
  },
  WEB,
);

live(
  'a new process at the node that clients come by, replaced, restarted or killed, takes over all',
  async (t) => {
    const [first] = rig().engines;
    const kept = await keptToAll();
    t.deepEqual(kept.map(([name]) => name).sort(), ['c1', 'c1', 'c2', 'c2', 'c3', 'c3']);
    const direct = KeptConnection.open(rig().containers[0], DIRECT, 80);
    t.is(await direct.ask(), 'c3');
    await through(t, () => first.replace());
    await through(t, async () => {
      await first.stop('SIGUSR1');
      await first.start();
      await first.kill();
      await first.start();
    });
    const { stdout } = await first.cli('service', 'backends', 'all', '--json');
    const { backends } = JSON.parse(stdout) as { backends: { active: number }[] };
    t.deepEqual(
      backends.map(({ active }) => active),
      [1, 1, 1, 1, 1, 1],
    );
    for (const [name, connection] of kept) {
      t.is(await connection.ask(), name);
      await connection.close();
    }
    t.is(await direct.ask(), 'c3');
    await direct.close();
  },
  WEB,
);

live(
  'what was taken out of the file meanwhile: its connections are reset at once at both ends, all others go on',
  async (t) => {
    const { clients, containers, engines } = rig();
    const [first] = engines;
    const kept = await keptToAll();
    const direct = KeptConnection.open(containers[0], DIRECT, 80);
    t.is(await direct.ask(), 'c3');
    const outside = KeptConnection.open(clients[0], uplinkAddress(1), 8080);
    t.is(await outside.ask(), 'c2');
    const before = fileOf(first);
    const other = { address: overlayAddress(1), address6: overlayAddress(1, true) };
    const services = (before['services'] as { name: string; backends: unknown[] }[])
      .filter(({ name }) => name !== 'direct')
      .map((one) => ({ ...one, backends: one.name === 'all' ? one.backends.slice(0, 2) : [other] }));
    await first.kill();
    first.write({ ...before, services });
    await first.start();
    const gone = [...kept.filter(([name]) => name === 'c3').map(([, one]) => one), direct, outside];
    for (const { running } of gone) t.regex((await running.finish(5000)).stderr, /Connection reset by peer/);
    // One that is direct learns of it by what it sends.
    const own = ['-Htn', 'state', 'established', `sport = :80 and not src ${DIRECT}`];
    await waitFor(async () => (await containers[2].run('ss', own)) === '', {
      what: 'the end of connections at the backend that is gone',
    });
    const others = kept.filter(([name]) => name !== 'c3');
    for (const [name, connection] of others) t.is(await connection.ask(), name);
    // Not even a gateway is left, and so nothing that would track flows.
    const { uplinks, ingress, services: _, ...bare } = before;
    first.write({ ...bare, networks: before.networks.map(({ gateway, gateway6, uplink, ...rest }) => rest) });
    await first.replace();
    for (const [, { running }] of others)
      t.regex((await running.finish(5000)).stderr, /Connection reset by peer/);
  },
  WEB,
);

const fileOf = ({ file }: Engine): NodeFile => JSON.parse(readFileSync(file, 'utf8')) as NodeFile;
