/** `weft service` as a user meets it: what it prints, what it changes, and its exit codes. */
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { ask } from '../../cli/client.js';
import { type BackendRow, type ServiceRow, serve } from '../../control/api.js';
import { parseConfig } from '../../control/config.js';
import type { Daemon } from '../../control/daemon.js';
import { ServiceBook } from '../../control/services.js';
import type { BackendCounts } from '../../engine/tables/services.js';
import { MAIN } from '../support/live.js';

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

const CONFIG = parseConfig(
  `
node: a
underlay: { address: 192.168.50.1 }
ingress: { vni: 4096, subnet: 10.255.0.0/16 }
networks: [{ name: blue, vni: 42, subnet: 10.0.9.0/24, subnet6: "fd00:9::/64", gateway: 10.0.9.254, uplink: out }]
uplinks: [{ name: out, interface: eth0, address: 192.168.60.10/24 }]
services:
  - name: web
    network: blue
    vip: 10.0.9.100
    affinity: { timeout: 5m }
    ports: [{ protocol: tcp, port: 80, target: 8080 }, { protocol: tcp, port: 443 }]
    publish: [{ protocol: tcp, port: 8080, target: 80, mode: ingress }]
    backends: [{ address: 10.0.9.1 }, { address: 10.0.9.2, weight: 0 }]
    health: { http: { port: 8080, path: /alive }, interval: 5s }
  - { name: dns, network: blue, vip: 10.0.9.101, scheduler: sh, forwarding: dsr, vip6: "fd00:9::101", fwmark: 700, backends: [{ address: 10.0.9.3 }] }
`,
  'f',
);

/** A control socket behind which only services are answered for. */
async function socketOf(t: ExecutionContext) {
  const book = new ServiceBook();
  const tell = () => book.intents(CONFIG, { domainOf: () => 0, portOf: () => 1, uplinkOf: () => 0 }).services;
  tell();
  const counts: BackendCounts[] = [
    { id: 0, active: 3, inactive: 2, flows: 100, packets: 2000, bytes: 300_000, failures: 1 },
  ];
  const state = { applied: 0, asked: 0 };
  const daemon = {
    plan: { services: book },
    config: CONFIG,
    published: { current: [] },
    inspect: async () => {
      const more = 500 * state.asked++;
      return { backends: counts.map((one) => ({ ...one, packets: one.packets + more })) };
    },
    applyAgain: async () => {
      state.applied++;
    },
  };
  const directory = mkdtempSync(join(tmpdir(), 'weft-service-'));
  const socket = join(directory, 'sock');
  const server = await serve(daemon as unknown as Daemon, socket);
  t.teardown(() => {
    server.close();
    rmSync(directory, { recursive: true });
  });
  const run = (...args: string[]): Promise<Outcome> =>
    new Promise((resolve) => {
      execFile(process.execPath, [MAIN, ...args, '--socket', socket], (error, stdout, stderr) =>
        resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
      );
    });
  const weft = (...args: string[]) => run('service', ...args);
  const weights = () =>
    tell()
      .filter(({ address }) => address.length === 4)
      .map(({ backends }) => backends.map(({ weight }) => weight));
  return { book, socket, state, run, weft, weights };
}

test('service ls prints what ipvsadm does', async (t) => {
  const { book, weft } = await socketOf(t);
  book.hear(2, false);
  const { code, stdout, stderr } = await weft('ls');
  t.deepEqual([code, stderr], [0, '']);
  t.deepEqual(stdout.split('\n'), [
    'Service',
    'Prot LocalAddress:Port Scheduler Flags',
    '  -> RemoteAddress:Port          Forward Weight ActiveConn InActConn  State',
    'web',
    'TCP  10.0.9.100:80 rr persistent 300',
    'TCP  10.0.9.100:443 rr persistent 300',
    'FWM  256 rr persistent 300',
    '  -> 10.0.9.1:0                  Masq    1      3          2          up',
    '  -> 10.0.9.2:0                  Masq    0      0          0          drained',
    'dns',
    'TCP  10.0.9.101:0 sh',
    'UDP  10.0.9.101:0 sh',
    'TCP  [fd00:9::101]:0 sh',
    'UDP  [fd00:9::101]:0 sh',
    'FWM  700 sh',
    'FWM  700 IPv6 sh',
    '  -> 10.0.9.3:0                  Route   1      0          0          down',
    '',
  ]);
  t.is((await weft()).stdout, stdout, 'ls is what service does by itself');
});

test('service ls --json and inspect --json print all that is known', async (t) => {
  const { weft } = await socketOf(t);
  const { services, schemaVersion } = JSON.parse((await weft('ls', '--json')).stdout) as {
    schemaVersion: number;
    services: ServiceRow[];
  };
  t.is(schemaVersion, 1);
  t.deepEqual(
    services.map(({ name }) => name),
    ['web', 'dns'],
  );
  t.deepEqual(services[0], {
    ...{ name: 'web', network: 'blue', vip: '10.0.9.100', scheduler: 'rr', forwarding: 'masq', fwmark: 256 },
    ...{ affinitySeconds: 300, idleTimeoutSeconds: 7440 },
    ports: [
      { protocol: 'tcp', port: 80, target: 8080 },
      { protocol: 'tcp', port: 443, target: 443 },
    ],
    publish: [{ protocol: 'tcp', port: 8080, target: 80, mode: 'ingress', uplink: 'out' }],
    health: { kind: 'http', port: 8080, path: '/alive', interval: 5, timeout: 1, failures: 3, successes: 2 },
    backends: [
      {
        ...{ address: '10.0.9.1', mac: '02:42:0a:00:09:01', weight: 1, state: 'up', active: 3, inactive: 2 },
        ...{ connections: 100, packets: 2000, bytes: 300_000, failures: 1 },
      },
      {
        ...{ address: '10.0.9.2', mac: '02:42:0a:00:09:02', weight: 0, state: 'drained', active: 0 },
        ...{ inactive: 0, connections: 0, packets: 0, bytes: 0, failures: 0 },
      },
    ],
  });
  const { service } = JSON.parse((await weft('inspect', 'dns', '--json')).stdout) as { service: ServiceRow };
  t.deepEqual(service, services[1]);
});

test('service inspect prints a service for people', async (t) => {
  const { weft } = await socketOf(t);
  const { stdout } = await weft('inspect', 'web');
  for (const line of [
    /^vip +10\.0\.9\.100$/m,
    /^fwmark +256$/m,
    /^affinity +client, 300 s$/m,
    /^idle timeout +7440 s$/m,
    /^port +tcp 80 to 8080$/m,
    /^published +tcp 8080 of out to 80 \(ingress\)$/m,
    /^health +http 8080\/alive every 5 s, 1 s each; 3 failures, 2 successes$/m,
    /^backend +10\.0\.9\.1 02:42:0a:00:09:01, weight 1, up$/m,
  ])
    t.regex(stdout, line);
  const other = (await weft('inspect', 'dns')).stdout;
  t.regex(other, /^port +every port of tcp and udp$/m);
  t.regex(other, /^affinity +-$/m);
  t.regex(other, /^health +-$/m);
});

test('service backends prints numbers, and with --stats and --rate what went through', async (t) => {
  const { weft } = await socketOf(t);
  t.deepEqual((await weft('backends', 'web')).stdout.split('\n'), [
    'BACKEND   STATE    WEIGHT  ACTIVE  INACTIVE',
    '10.0.9.1  up            1       3         2',
    '10.0.9.2  drained       0       0         0',
    '',
  ]);
  const [title, row] = (await weft('backends', 'web', '--stats', '--rate')).stdout.split('\n');
  t.is(
    title.replace(/ +/g, ' '),
    'BACKEND STATE WEIGHT ACTIVE INACTIVE CONNS PACKETS BYTES FAILURES CPS PPS BPS',
  );
  // Each time it is asked, 500 packets more are there; how long that took is not the test's.
  t.regex(row.replace(/ +/g, ' '), /^10\.0\.9\.1 up 1 3 2 100 3000 300000 1 0 [1-9][0-9]* 0$/);
  const { service, backends } = JSON.parse((await weft('backends', 'web', '--rate', '--json')).stdout) as {
    service: string;
    backends: (BackendRow & { rates: { packets: number } })[];
  };
  t.is(service, 'web');
  t.true(backends[0].rates.packets > 0 && backends[0].rates.packets <= 500);
  t.is(backends[1].rates.packets, 0);
});

test('publish ls has the published ports of services', async (t) => {
  const { book, run } = await socketOf(t);
  t.deepEqual((await run('publish', 'ls')).stdout.split('\n'), [
    'UPLINK  PROTOCOL  AT                  ENDPOINT     TARGET',
    'out     tcp       192.168.60.10:8080  service web      80',
    '',
  ]);
  const { stdout } = await run('publish', 'ls', '--json');
  t.deepEqual((JSON.parse(stdout) as { published: unknown }).published, [
    { uplink: 'out', protocol: 'tcp', address: '192.168.60.10', port: 8080, service: 'web', target: 80 },
  ]);
  book.remove('web');
  t.is((await run('publish', 'ls')).stdout.split('\n').length, 2);
});

test('drain, weight and rm change what the data plane is told, once each', async (t) => {
  const { state, weft, weights } = await socketOf(t);
  t.deepEqual(await weft('drain', 'web', '10.0.9.1'), {
    ...{ code: 0, stdout: '', stderr: '10.0.9.1 gets no new flows\n' },
  });
  t.deepEqual(weights(), [[0, 0], [1]]);
  const { stdout } = await weft('weight', 'web', '10.0.9.2', '65535', '--json');
  t.deepEqual(JSON.parse(stdout), {
    ...{ schemaVersion: 1, service: 'web', backend: '10.0.9.2', weight: 65535 },
  });
  t.deepEqual(weights(), [[0, 65535], [1]]);
  t.is((await weft('weight', 'web', '10.0.9.1', '7')).stderr, '10.0.9.1 has weight 7\n');
  t.is((await weft('rm', 'web', '10.0.9.2')).stderr, '10.0.9.2 is no backend of web any more\n');
  t.deepEqual(weights(), [[7], [1]]);
  t.is((await weft('rm', 'dns')).stderr, 'service dns is gone\n');
  t.deepEqual(weights(), [[7]]);
  t.is(state.applied, 5);
});

test('exit codes: 4 for what is not there, 2 for what makes no sense', async (t) => {
  const { state, weft, weights } = await socketOf(t);
  for (const [args, said] of [
    [['inspect', 'w'], 'there is no service w'],
    [['backends', 'w'], 'there is no service w'],
    [['drain', 'w', '10.0.9.1'], 'there is no service w'],
    [['drain', 'web', '10.0.9.3'], 'service web has no backend 10.0.9.3'],
    [['weight', 'web', '10.0.9.3', '1'], 'service web has no backend 10.0.9.3'],
    [['rm', 'w'], 'there is no service w'],
    [['rm', 'web', '10.0.9.3'], 'service web has no backend 10.0.9.3'],
  ] as const)
    t.deepEqual(await weft(...args), { code: 4, stdout: '', stderr: `${said}\n` });
  for (const [args, said] of [
    [['drain', 'web', 'c1'], /"c1" is not an IP address/],
    [['weight', 'web', '10.0.9.1', '65536'], /"65536" is no weight; write a number from 0 to 65535/],
    [['weight', 'web', '10.0.9.1', '1.5'], /"1.5" is no weight/],
    [['weight', 'web', '10.0.9.1'], /missing required argument/],
  ] as const) {
    const { code, stderr } = await weft(...args);
    t.is(code, 2);
    t.regex(stderr, said);
  }
  t.deepEqual(weights(), [[1, 0], [1]]);
  t.is(state.applied, 0);
});

test('the daemon takes no weight that is none, whoever asks', async (t) => {
  const { socket, state, weights } = await socketOf(t);
  for (const weight of ['65536', '-1', '1.5', 'x', ''])
    await t.throwsAsync(
      ask('POST', `/services/weight?name=web&backend=10.0.9.1${weight && `&weight=${weight}`}`, { socket }),
      { message: 'a weight is a whole number from 0 to 65535' },
      weight,
    );
  t.deepEqual(weights(), [[1, 0], [1]]);
  t.is(state.applied, 0);
});
