/** What services live through: backends that are drained and removed, a node that dies, floods; with real backends. */
import type { ExecutionContext } from 'ava';
import { type Namespace, waitFor } from '../../cli/lab.js';
import type { ConntrackList } from '../../control/api.js';
import { attack, attacksMissing } from '../support/attacks.js';
import { IngressRig, uplinkAddress, uplinkAddress6, VIP, VIP6, webService } from '../support/ingress.js';
import { type Engine, live, missing, overlayAddress, shared } from '../support/live.js';
import { Load } from '../support/load.js';
import { curl, KeptConnection, Nginx, nginxMissing } from '../support/servers.js';

const WEB = { tools: ['curl', 'socat'], skip: nginxMissing() };
const MAX_FLOWS = 16_384;
const STICKY = '10.0.9.101';
const STICKY6 = 'fd00:9::101';
const names = ['c1', 'c2', 'c3'];

const rig = shared(async () => {
  const sticky = webService({
    ...{ name: 'sticky', vip: STICKY, vip6: STICKY6, affinity: { by: 'client', timeout: '10m' } },
    publish: [{ protocol: 'tcp', port: 8081, target: 80, mode: 'ingress' }],
  });
  const watched = webService({
    ...{ name: 'watched', vip: '10.0.9.102', health: { tcp: 80, interval: '1s', failures: 2 } },
    publish: [{ protocol: 'tcp', port: 8082, target: 80, mode: 'ingress' }],
  });
  const made = new IngressRig({
    services: [webService({ vip6: VIP6 }), sticky, watched],
    file: { nat: { max_flows: MAX_FLOWS } },
  });
  await made.begin();
  for (const container of made.containers) await Nginx.start(made, container);
  await made.resolve6();
  return made;
}, missing(WEB.tools) ?? WEB.skip);

/** `weft service …` on nodes, as an operator does to each. */
async function service(engines: readonly Engine[], ...args: string[]): Promise<void> {
  const all = await Promise.all(engines.map((engine) => engine.cli('service', ...args)));
  for (const { code, stderr } of all) if (code !== 0) throw new Error(`service ${args.join(' ')}: ${stderr}`);
}

/** A kept connection to each backend from outside, by name of the backend. */
async function keptBy(node: number, port = 8080): Promise<Record<string, KeptConnection>> {
  return keptFrom(rig().clients[0], uplinkAddress(node), port);
}

/** The same from anywhere. Others may take their turns in between, so it may need more than three connections. */
async function keptFrom(
  from: Namespace,
  address: string,
  port: number,
): Promise<Record<string, KeptConnection>> {
  const kept: Record<string, KeptConnection> = {};
  for (let i = 0; i < 12 && Object.keys(kept).length < names.length; i++) {
    const connection = KeptConnection.open(from, address, port);
    const name = await connection.ask();
    if (kept[name] === undefined) kept[name] = connection;
    else await connection.close();
  }
  return kept;
}

/** Asserts that nothing of a load was lost. @returns who answered. */
async function assertNoneLost(t: ExecutionContext, load: Load): Promise<string[]> {
  const { sent, answers, failures } = await load.report();
  t.deepEqual(failures, {}, JSON.stringify({ sent, answers, failures }));
  t.is(
    Object.values(answers).reduce((sum, count) => sum + count, 0),
    sent,
  );
  t.log(`${sent} requests: ${JSON.stringify(answers)}`);
  return Object.keys(answers).sort();
}

live(
  'affinity: at each node a client comes to one backend; without it to all',
  async (t) => {
    for (const client of rig().clients) {
      for (const node of [1, 2, 3]) {
        const sticky = new Set<string>();
        const free = new Set<string>();
        for (let i = 0; i < 6; i++) {
          sticky.add(await curl(client, `http://${uplinkAddress(node)}:8081/`));
          free.add(await curl(client, `http://${uplinkAddress(node)}:8080/`));
        }
        t.is(sticky.size, 1, `${client.label} at node ${node}`);
        t.is(free.size, 3);
      }
    }
    const [caller] = rig().containers;
    const inside = new Set<string>();
    for (let i = 0; i < 6; i++) inside.add(await curl(caller, `http://${STICKY}/`));
    t.is(inside.size, 1);
  },
  WEB,
);

live(
  'drain during 1,000 requests a second: none is lost, none goes there afterwards, and who is there stays',
  async (t) => {
    const { clients, engines } = rig();
    const kept = await keptBy(1);
    const load = await Load.start(clients[0], {
      ...{ host: uplinkAddress(1), port: 8080, rate: 1000, seconds: 3 },
    });
    await service(engines, 'drain', 'web', overlayAddress(3));
    t.deepEqual(await assertNoneLost(t, load), names);
    for (const [name, connection] of Object.entries(kept)) t.is(await connection.ask(), name);
    const after = await Load.start(clients[1], {
      ...{ host: uplinkAddress(2), port: 8080, rate: 300, seconds: 0.5 },
    });
    t.deepEqual(await assertNoneLost(t, after), ['c1', 'c2']);
    await service(engines, 'weight', 'web', overlayAddress(3), '1');
    for (const connection of Object.values(kept)) await connection.close();
  },
  WEB,
);

live(
  'a backend that is removed: its connections are reset, the others go on, and no request fails',
  async (t) => {
    const { clients, containers, engines } = rig();
    const all = [
      await keptBy(2),
      await keptFrom(clients[0], `[${uplinkAddress6(2)}]`, 8080),
      await keptFrom(containers[0], VIP, 80),
      await keptFrom(containers[0], `[${VIP6}]`, 80),
    ];
    await service(engines, 'rm', 'web', overlayAddress(3));
    for (const kept of all) {
      // It says nothing; that the service is over it hears from the engine.
      t.regex((await kept['c3'].running.finish(5000)).stderr, /Connection reset by peer/);
      for (const name of ['c1', 'c2']) {
        t.is(await kept[name].ask(), name);
        await kept[name].close();
      }
    }
    for (const [from, host, port] of [
      [clients[0], uplinkAddress(3), 8080],
      [containers[2], VIP, 80],
    ] as const) {
      const load = await Load.start(from, { host, port, rate: 500, seconds: 1 });
      t.deepEqual(await assertNoneLost(t, load), ['c1', 'c2'], from.label);
    }
    t.is(
      (await curl(containers[2], `http://${overlayAddress(3)}/`)).trim(),
      'c3',
      'it lives, but not for them',
    );
  },
  WEB,
);

live(
  'floods of SYNs from nobody, outside and inside: who is connected does not notice, and the table is what it was',
  async (t) => {
    const { clients, containers, engines } = rig();
    const outside = await keptBy(1);
    const inside = KeptConnection.open(containers[1], VIP, 80);
    const name = await inside.ask();
    const vip = containers[1].ip('neigh', 'show', VIP);
    const station = /lladdr (\S+)/.exec(vip)![1];
    const floods = Promise.all([
      attack(clients[1], {
        ...{ kind: 'syn', device: 'out0', station: '02:42:c0:a8:3c:0b', count: 30_000 },
        ...{ target: uplinkAddress(1), port: 8080 },
      }),
      attack(containers[1], {
        ...{ kind: 'syn', device: 'eth0', station, target: VIP, port: 80, count: 20_000, inside: true },
      }),
    ]);
    for (let round = 0; round < 5; round++) {
      for (const [backend, connection] of Object.entries(outside)) t.is(await connection.ask(), backend);
      t.is(await inside.ask(), name);
    }
    await floods;
    for (const [backend, connection] of Object.entries(outside)) {
      t.is(await connection.ask(), backend);
      await connection.close();
    }
    t.is(await inside.ask(), name);
    await inside.close();
    for (const engine of engines.slice(0, 2)) {
      const { stdout } = await engine.cli('conntrack', 'stats', '--json');
      const { tracked, maxFlows, counters } = JSON.parse(stdout) as ConntrackList;
      t.is(maxFlows, MAX_FLOWS);
      t.true(tracked <= MAX_FLOWS);
      t.log(
        `${tracked} tracked, ${counters['flows-evicted']} evicted, ${JSON.stringify(await engine.drops())}`,
      );
    }
    t.regex(await curl(clients[0], `http://${uplinkAddress(1)}:8080/`), /^c[12]\n$/);
    t.regex(await curl(containers[0], `http://${VIP}/`), /^c[12]\n$/);
  },
  { ...WEB, skip: attacksMissing() ?? nginxMissing() },
);

live(
  'a service whose last backend goes: who is connected is reset, and who comes is refused at once',
  async (t) => {
    const { clients, containers, engines } = rig();
    const all = [
      KeptConnection.open(clients[0], uplinkAddress(1), 8081),
      KeptConnection.open(clients[0], `[${uplinkAddress6(1)}]`, 8081),
      KeptConnection.open(containers[0], STICKY, 80),
      KeptConnection.open(containers[0], `[${STICKY6}]`, 80),
    ];
    await Promise.all(all.map((connection) => connection.ask()));
    for (const n of [1, 2, 3]) await service(engines, 'rm', 'sticky', overlayAddress(n));
    for (const { running } of all) t.regex((await running.finish(5000)).stderr, /Connection reset by peer/);
    // 7 is a refusal; 28 would be that nobody has answered.
    for (const host of [uplinkAddress(1), `[${uplinkAddress6(1)}]`]) {
      const asked = await clients[0].exec('curl', ['--connect-timeout', '5', `http://${host}:8081/`]);
      t.is(asked.code, 7, `${host}: ${asked.stderr}`);
    }
    const refused = await containers[0].exec('socat', ['-', `TCP:${STICKY}:80,connect-timeout=5`]);
    t.regex(refused.stderr, /No route to host|Connection refused/);
  },
  WEB,
);

live(
  'a node is killed: what runs on others goes on by them, its own is reset once it is down, and no request fails',
  async (t) => {
    const { clients, engines } = rig();
    const kept = [await keptBy(1, 8082), await keptBy(3, 8082)];
    const others = [engines[0], engines[2]];
    // In a flood its checks may have failed as well.
    const before = others.map(({ running }) => running!.stderr.length);
    const said = (i: number): string => others[i].running!.stderr.slice(before[i]);
    await engines[1].kill();
    for (const i of [0, 1]) {
      t.regex((await kept[i]['c2'].running.finish(20_000)).stderr, /Connection reset by peer/);
      t.regex(said(i), /^service watched: 10\.0\.9\.2 is down: /m);
      t.notRegex(said(i), /10\.0\.9\.[13] is down/);
    }
    for (const name of ['c1', 'c3'])
      for (const connections of kept) t.is(await connections[name].ask(), name);
    for (const node of [1, 3]) {
      const load = await Load.start(clients[node === 1 ? 0 : 1], {
        ...{ host: uplinkAddress(node), port: 8082, rate: 500, seconds: 1 },
      });
      t.deepEqual(await assertNoneLost(t, load), ['c1', 'c3']);
    }
    // It serves again when its node is back.
    await engines[1].start();
    for (const i of [0, 1])
      await waitFor(() => /^service watched: 10\.0\.9\.2 is up again$/m.test(said(i)), {
        what: `the backend up again: ${said(i)}`,
        timeoutMs: 20_000,
      });
    t.deepEqual(Object.keys(await keptBy(1, 8082)).sort(), names);
    t.deepEqual(Object.keys(await keptBy(2, 8082)).sort(), names);
  },
  WEB,
);
