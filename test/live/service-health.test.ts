/** Backends that stop to answer, by three hosts that all have the service, and with real servers. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Namespace, type RunningCommand, waitFor } from '../../cli/lab.js';
import type { BackendRow } from '../../control/api.js';
import { type Engine, live, Mesh, overlayAddress, shared } from '../support/live.js';

const VIP = '10.0.9.100';
const [DIRECT, DIRECT6] = ['10.0.9.103', 'fd00:9::103'];
const [FIRST, SECOND] = [1, 2].map((n) => overlayAddress(n));
const HEALTH = { interval: '1s', timeout: '1s', failures: 2, successes: 2 };
const TOOLS = { tools: ['socat', 'ss', 'nft'] };

const services = [
  {
    ...{ name: 'web', network: 'blue', vip: VIP, backends: [{ address: FIRST }, { address: SECOND }] },
    ...{ ports: [{ protocol: 'tcp', port: 80, target: 8080 }] },
    health: { http: { port: 8080, path: '/health' }, ...HEALTH },
  },
  {
    ...{ name: 'raw', network: 'blue', vip: '10.0.9.101', backends: [{ address: SECOND }] },
    health: { tcp: 9000, ...HEALTH, interval: '5m', failures: 3 },
  },
  {
    ...{ name: 'six', network: 'blue', vip: '10.0.9.102', vip6: 'fd00:9::102' },
    backends: [{ address: SECOND, address6: overlayAddress(2, true) }],
    health: { http: { port: 8081 }, ...HEALTH },
  },
  {
    ...{ name: 'direct', network: 'blue', vip: DIRECT, vip6: DIRECT6, forwarding: 'dsr' },
    backends: [1, 2].map((n) => ({ address: overlayAddress(n), address6: overlayAddress(n, true) })),
    health: { http: { port: 8082 }, ...HEALTH },
  },
];
const network = { gateway: '10.0.9.254', gateway6: 'fd00:9::fe' };

const mesh = shared(() => Mesh.up({ hosts: 3, network, file: { services } }));

/** Takes nothing of TCP that comes in. */
const SILENT = 'table ip silent { chain in { type filter hook input priority 0; meta l4proto tcp drop; }; }';

/**
 * A server that says its container's name, asked for anything but its health; that is the status in its file. Who asks
 * for that is printed.
 */
const SERVER = `
const { readFileSync } = require('node:fs');
require('node:http').createServer((request, response) => {
  if (request.url === '/health') {
    console.log('checked by ' + request.socket.remoteAddress + ' ' + request.headers.host);
    response.statusCode = Number(readFileSync(process.argv[1], 'utf8'));
  }
  response.end(process.argv[2]);
}).listen(8080, '0.0.0.0', () => console.log('serving'));
`;

async function serve(n: number): Promise<RunningCommand> {
  const container = mesh().containers[n - 1];
  container.killChildren();
  say(n, 200);
  const running = container.start(process.execPath, ['-e', SERVER, fileOf(n), `c${n}`]);
  await running.output(/^serving$/m);
  return running;
}

const fileOf = (n: number): string => join(mesh().directory, `health-${n}`);
const say = (n: number, status: number): void => writeFileSync(fileOf(n), String(status));

/** Waits until every host says so of a backend. */
async function all(line: RegExp, since: readonly number[]): Promise<void> {
  await Promise.all(
    mesh().engines.map((engine, i) =>
      waitFor(() => line.test(saidSince(engine, since[i])), {
        what: `${line} of ${engine.host.label}, which says ${saidSince(engine, since[i])}`,
        timeoutMs: 30_000,
      }),
    ),
  );
}

const said = (): number[] => mesh().engines.map(({ running }) => running!.stderr.length);
const saidSince = (engine: Engine, at: number): string => engine.running!.stderr.slice(at);

async function states(engine: Engine, name = 'web'): Promise<string[]> {
  const { stdout } = await engine.cli('service', 'backends', name, '--json');
  return (JSON.parse(stdout) as { backends: BackendRow[] }).backends.map(({ state }) => state);
}

const settledRaw = (engine: Engine, state: string): Promise<unknown> =>
  waitFor(async () => (await states(engine, 'raw')).join() === state, { what: `raw ${state}` });

/** Who answered, asked so often by the third container; `-` where nobody did. */
async function answers(times: number, address = VIP, port = 80): Promise<string[]> {
  const found: string[] = [];
  for (let i = 0; i < times; i++) {
    const { stdout } = await ask(mesh().containers[2], address, port);
    found.push(/c\d$/.exec(stdout.trim())?.[0] ?? '-');
  }
  return found.sort();
}

const ask = (from: Namespace, address: string, port: number) =>
  from.exec('socat', ['-t', '3', '-', `TCP:${address}:${port},connect-timeout=3`], {
    input: 'GET / HTTP/1.0\r\n\r\n',
  });

const times = (n: number, ...who: string[]): string[] => who.flatMap((one) => Array<string>(n).fill(one));

/** Waits until every host has all backends of a service so. */
async function settledOf(name: string, ...wanted: string[]): Promise<void> {
  for (const engine of mesh().engines)
    await waitFor(async () => (await states(engine, name)).join() === wanted.join(), {
      what: `${wanted} at ${engine.host.label}, which says ${engine.running!.stderr}`,
      timeoutMs: 30_000,
    });
}

const settled = (...wanted: string[]): Promise<void> => settledOf('web', ...wanted);

live(
  'every host checks every backend, its own and those of others, from the virtual address',
  async (t) => {
    const servers = [await serve(1), await serve(2)];
    for (const [i, server] of servers.entries()) {
      // Three hosts ask once a second.
      await waitFor(() => server.stdout.split('checked').length > 12, {
        what: `checks of c${i + 1}: ${server.stdout}`,
      });
      const lines = server.stdout.trim().split('\n').slice(1);
      t.deepEqual(new Set(lines), new Set([`checked by ${VIP} ${VIP}`]));
    }
    await settled('up', 'up');
    t.deepEqual(await answers(10), times(5, 'c1', 'c2'));
  },
  TOOLS,
);

live(
  'a server that is killed is down, is asked no more, and is up when it serves again',
  async (t) => {
    await serve(1);
    const second = await serve(2);
    await settled('up', 'up');
    const before = said();
    await second.stop('SIGKILL');
    await all(/^service web: 10\.0\.9\.2 is down: port 8080 refuses connections \(2 in a row\)$/m, before);
    await settled('up', 'down');
    t.deepEqual(await answers(20), times(20, 'c1'));
    await serve(2);
    await all(/^service web: 10\.0\.9\.2 is up again$/m, before);
    t.deepEqual(await answers(10), times(5, 'c1', 'c2'));
  },
  TOOLS,
);

live(
  'a backend that falls silent is down, and who is connected to it hears at once',
  async (t) => {
    for (const n of [1, 2]) await serve(n);
    await settled('up', 'up');
    const { containers } = mesh();
    // One of two connections is with the second backend.
    const talks = [1, 2].map(() =>
      containers[2].start('socat', ['-d', '-', `TCP:${VIP}:80`], { stdio: ['pipe', 'pipe', 'pipe'] }),
    );
    const isOpen = async (): Promise<boolean> =>
      (await containers[2].run('ss', ['-H', '-n', '-t', `dst ${VIP}`])).split('ESTAB').length === 3;
    await waitFor(isOpen, { what: 'two connections' });
    const before = said();
    await containers[1].run('nft', ['-f', '-'], { input: SILENT });
    await all(
      /^service web: 10\.0\.9\.2 is down: no answer to a request from port 8080 \(2 in a row\)$/m,
      before,
    );
    const ended = await Promise.race(talks.map((talk) => talk.finish(30_000)));
    t.regex(ended.stderr, /reset by peer/);
    t.deepEqual(await answers(10), times(10, 'c1'));
    await containers[1].run('nft', ['delete', 'table', 'ip', 'silent']);
    await all(/^service web: 10\.0\.9\.2 is up again$/m, before);
    for (const talk of talks) await talk.stop('SIGKILL');
  },
  TOOLS,
);

live(
  'a server that says that it is not well is down',
  async (t) => {
    for (const n of [1, 2]) await serve(n);
    await settled('up', 'up');
    const before = said();
    say(1, 500);
    await all(
      /^service web: 10\.0\.9\.1 is down: \/health is answered with status 500 \(2 in a row\)$/m,
      before,
    );
    t.deepEqual(await answers(10), times(10, 'c2'));
    say(1, 204);
    await all(/^service web: 10\.0\.9\.1 is up again$/m, before);
  },
  TOOLS,
);

live(
  'connections that a backend refuses take it down before its next check; those to other ports do not',
  async (t) => {
    const [, , engine] = mesh().engines;
    await settledRaw(engine, 'up');
    const refused = async (port: number): Promise<void> => {
      const { stderr } = await ask(mesh().containers[2], '10.0.9.101', port);
      t.regex(stderr, /refused/);
    };
    for (let i = 0; i < 5; i++) await refused(9001);
    t.deepEqual(await states(engine, 'raw'), ['up']);
    for (let i = 0; i < 3; i++) await refused(9000);
    await settledRaw(engine, 'down');
    t.regex(
      engine.running!.stderr,
      /^service raw: 10\.0\.9\.2 is down: 3 connections to port 9000 failed within 300 s$/m,
    );
  },
  TOOLS,
);

live(
  'when the host of a backend is killed the others serve on, and use the backend again when the host is back',
  async (t) => {
    for (const n of [1, 2]) await serve(n);
    await settled('up', 'up');
    const [first, second, third] = mesh().engines;
    const before = said();
    const down = /^service web: 10\.0\.9\.2 is down: /m;
    await second!.kill();
    for (const engine of [first!, third!])
      await waitFor(() => down.test(saidSince(engine, before[mesh().engines.indexOf(engine)]!)), {
        what: `a backend down at ${engine.host.label}`,
        timeoutMs: 30_000,
      });
    t.deepEqual(await answers(20), times(20, 'c1'));
    await second!.start();
    await settled('up', 'up');
    t.deepEqual(await answers(10), times(5, 'c1', 'c2'));
  },
  TOOLS,
);

live(
  'what was found out outlasts a reload; without checks a backend is up',
  async (t) => {
    await serve(2);
    mesh().containers[0].killChildren();
    await settled('down', 'up');
    const [engine] = mesh().engines;
    const file = mesh().fileOf(1);
    await engine!.change({ ...file, services: [{ ...services[0], scheduler: 'wrr' }] });
    t.deepEqual(await states(engine!), ['down', 'up']);
    const { health: _, ...unchecked } = services[0]!;
    await engine!.change({ ...file, services: [unchecked] });
    t.deepEqual(await states(engine!), ['up', 'up']);
    await engine!.change(file);
    await waitFor(async () => (await states(engine!)).join() === 'down,up', { what: 'checks again' });
  },
  TOOLS,
);

live(
  'over IPv6 a backend is checked, and lives, for itself',
  async (t) => {
    const { containers } = mesh();
    containers[1].killChildren();
    await settledOf('six', 'down', 'down');
    const before = said();
    const server = `require('node:http').createServer((request, response) => {
      console.log('checked by ' + request.socket.remoteAddress + ' ' + request.headers.host);
      response.end();
    }).listen({ port: 8081, host: '::', ipv6Only: true });`;
    const running = containers[1].start(process.execPath, ['-e', server]);
    await running.output(/^checked by fd00:9::102 \[fd00:9:0:0:0:0:0:102\]$/m, { timeoutMs: 30_000 });
    await settledOf('six', 'down', 'up');
    await all(/^service six: fd00:9::2 is up again$/m, before);
    await running.stop('SIGKILL');
    await settledOf('six', 'down', 'down');
    t.pass();
  },
  TOOLS,
);

/** A server of both families that says its container's name; who asks for what at which address is printed. */
const DIRECT_SERVER = `
require('node:http').createServer((request, response) => {
  const { remoteAddress, localAddress } = request.socket;
  console.log(remoteAddress, localAddress, request.headers.host);
  response.end(process.argv[1]);
}).listen(8082, '::', () => console.log('serving'));
`;

live(
  'backends that have the virtual address themselves are checked at it, from the gateway, by every host',
  async (t) => {
    const { containers } = mesh();
    await settledOf('direct', 'down', 'down', 'down', 'down');
    const servers = [];
    for (const n of [1, 2]) {
      const container = containers[n - 1];
      for (const [key, value] of [['ignore', 1] as const, ['announce', 2] as const])
        await container.run('sysctl', ['-qw', `net.ipv4.conf.all.arp_${key}=${value}`]);
      for (const address of [`${DIRECT}/32`, `${DIRECT6}/128`])
        container.ip('addr', 'add', address, 'dev', 'lo');
      servers.push(container.start(process.execPath, ['-e', DIRECT_SERVER, `c${n}`]));
    }
    await settledOf('direct', 'up', 'up', 'up', 'up');
    for (const { stdout } of servers)
      t.deepEqual([...new Set(stdout.trim().split('\n').slice(1))].sort(), [
        `::ffff:10.0.9.254 ::ffff:${DIRECT} ${DIRECT}`,
        `fd00:9::fe ${DIRECT6} [fd00:9:0:0:0:0:0:103]`,
      ]);
    // The host of a backend does not choose again for who asks on the third.
    t.deepEqual(await answers(10, DIRECT, 8082), times(5, 'c1', 'c2'));
    t.deepEqual(await answers(10, `[${DIRECT6}]`, 8082), times(5, 'c1', 'c2'));
    const before = said();
    containers[1].ip('addr', 'del', `${DIRECT}/32`, 'dev', 'lo');
    await all(
      /^service direct: 10\.0\.9\.2 is down: no answer to a request from port 8082 \(2 in a row\)$/m,
      before,
    );
    await settledOf('direct', 'up', 'down', 'up', 'up');
    t.deepEqual(await answers(4, DIRECT, 8082), times(4, 'c1'));
    await servers[0]!.stop('SIGKILL');
    await all(/^service direct: fd00:9::1 is down: port 8082 refuses connections \(2 in a row\)$/m, before);
  },
  TOOLS,
);
