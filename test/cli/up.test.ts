/** `weft up` that must refuse: with the right exit code, a message that names place and remedy, and nothing done. */
import { spawnSync } from 'node:child_process';
import { chmodSync, readdirSync } from 'node:fs';
import { basename } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { kernelVxlan, type Namespace } from '../../cli/lab.js';
import { native } from '../../native-bindings/index.js';
import { type Engine, linkOf, linksOf, live, MAIN, missing, Rig } from '../support/live.js';

/** A host with an underlay, and two containers. */
class Bench extends Rig {
  readonly host: Namespace;
  readonly containers: readonly [Namespace, Namespace];
  readonly engine0: Engine;

  constructor() {
    super();
    this.host = this.lab.host('h');
    this.containers = [this.lab.host('c1'), this.lab.host('c2')];
    this.host.ip('link', 'add', 'under0', 'type', 'veth', 'peer', 'name', 'far');
    this.host.ip('link', 'set', 'under0', 'up');
    this.host.addAddresses('under0', ['192.168.50.1/24']);
    this.engine0 = this.engine(this.host, '');
  }

  /** A sound file; tests spoil it. */
  get text(): string {
    const [one, two] = this.containers.map(({ name }) => name);
    return `node: hostA
underlay: { address: 192.168.50.1, port: 4789 }
networks:
  - name: blue
    vni: 42
    subnet: 10.0.9.0/24
    peers: [192.168.50.2]
endpoints:
  - { name: c1, network: blue, netns: ${one}, interface: eth0, address: 10.0.9.1/24 }
  - { name: c2, network: blue, netns: ${two}, interface: eth0, address: 10.0.9.2/24, mac: "02:42:0a:00:09:02" }
`;
  }
}

let rig: Bench;
test.before(() => {
  if (missing([]) === undefined) rig = new Bench();
});
test.after.always(() => rig?.close());

/** Line and column of the first place where a text stands in another. */
function placeOf(text: string, token: string): string {
  const before = text.slice(0, text.indexOf(token)).split('\n');
  return `${before.length}:${before.at(-1)!.length + 1}`;
}

const escaped = (text: string): string => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');

interface Refusal {
  readonly code: number;
  /** What stands at the place that the message names. */
  readonly at?: string;
  readonly message: RegExp;
  readonly remedy: RegExp;
  /** Interfaces that were there before, by container. */
  readonly links?: readonly [string[], string[]];
}

/** Starts an engine with this file and asserts that it refuses, and that it has left the host as it was. */
async function refuses(t: ExecutionContext, text: string, refusal: Refusal): Promise<void> {
  const { engine0, host, containers, directory } = rig;
  const { code, at, message, remedy, links = [[], []] } = refusal;
  const before = linksOf(host);
  engine0.write(text);
  const { code: ended, stdout, stderr } = await engine0.refuse();
  t.is(ended, code, stderr);
  t.is(stdout, '');
  const place = at === undefined ? '' : `:${placeOf(text, at)}`;
  const lines = stderr.split('\n').filter((line) => line.startsWith(`${engine0.file}${place}: `));
  t.is(lines.length, 1, `${place} in:\n${stderr}`);
  t.regex(lines[0], message);
  t.regex(lines[0].slice(lines[0].indexOf('; ')), remedy);
  t.notRegex(stderr, /^\s+at /m, 'no stack trace');
  t.deepEqual(
    containers.map((container) => linksOf(container).sort()),
    links,
  );
  t.deepEqual(linksOf(host), before);
  const left = readdirSync(directory).filter((name) => name !== basename(engine0.file));
  t.deepEqual(left, [], 'no socket and no state file');
}

/** Files that are wrong in themselves: what is replaced by what, where the message points, what it says. */
const WRONG: readonly [
  title: string,
  from: string,
  to: string,
  at: string,
  message: RegExp,
  remedy: RegExp,
][] = [
  ['an unknown key', 'vni: 42', 'vnii: 42', 'vnii', /vnii/, /did you mean|vni|remove/],
  [
    'a bad underlay address',
    '192.168.50.1,',
    '192.168.50.999,',
    '192.168.50.999',
    /192\.168\.50\.999/,
    /write/,
  ],
  ['a bad MAC', '02:42:0a:00:09:02', '02:42:0a:00:09', '"02:42:0a:00:09"', /02:42:0a:00:09/, /write|six/],
  ['a multicast MAC', '02:42:0a:00:09:02', '03:42:0a:00:09:02', '"03:42', /03:42:0a:00:09:02/, /./],
  ['a VNI out of range', 'vni: 42', 'vni: 16777216', '16777216', /16777216/, /16777215/],
  ['VNI 0', 'vni: 42', 'vni: 0', '0\n', /VNI 0/, /1/],
  [
    'a duplicate name',
    'name: c2',
    'name: c1',
    'c1, network: blue, netns: SECOND',
    /c1/,
    /each endpoint its own name/,
  ],
  ['an address outside its network', '10.0.9.2/24', '10.0.10.2/24', '10.0.10.2/24', /10\.0\.10\.2/, /./],
  ['an address twice', '10.0.9.2/24', '10.0.9.1/24', '10.0.9.1/24, mac', /10\.0\.9\.1/, /./],
  ['an unknown network', 'network: blue, netns: SECOND', 'network: red, netns: SECOND', 'red,', /red/, /./],
  [
    'an encrypted network without keys',
    'vni: 42',
    'encrypted: true\n    vni: 42',
    'true',
    /encrypted, and there are no keys/,
    /add encryption\.keys/,
  ],
];

for (const [title, from, to, at, message, remedy] of WRONG) {
  live(`up refuses ${title}: exit 2, file, line, column and remedy`, async (t) => {
    const named = (text: string): string => text.replace('SECOND', rig.containers[1].name);
    const text = rig.text.replace(named(from), named(to));
    t.not(text, rig.text);
    // A duplicate is the second of its name.
    const place = named(at);
    await refuses(t, text, { code: 2, at: place, message, remedy });
  });
}

live('up names every problem of a file at once', async (t) => {
  const { engine0 } = rig;
  engine0.write(
    rig.text.replace('vni: 42', 'vni: -1').replace('10.0.9.2/24', '10.0.9.2/33').replace('port:', 'prt:'),
  );
  const { code, stderr } = await engine0.refuse();
  t.is(code, 2);
  t.is(stderr.trim().split('\n').length, 3, stderr);
});

live('up refuses a file that is no YAML, and one that is not there: exit 2', async (t) => {
  const message = /YAML/;
  await refuses(t, rig.text.replace('[192.168.50.2]', '[192.168.50.2'), {
    code: 2,
    at: 'endpoints:',
    message,
    remedy: /close/,
  });
  const none = `${rig.directory}/none.yaml`;
  const { code, stderr } = await rig.host.exec(process.execPath, [MAIN, 'up', '-c', none]);
  t.is(code, 2);
  t.is(stderr, `${none}: there is no such file; check the path, or copy one of examples/\n`);
});

live('up refuses a namespace that is not there: exit 1, and makes no other interface', async (t) => {
  const text = rig.text.replace(`netns: ${rig.containers[1].name}`, 'netns: nowhere');
  await refuses(t, text, {
    code: 1,
    at: 'nowhere',
    message: /the network namespace nowhere does not exist/,
    remedy: /ip netns add nowhere/,
  });
});

live('up refuses an underlay address that this host does not have: exit 1', async (t) => {
  await refuses(t, rig.text.replace('192.168.50.1,', '192.168.50.9,'), {
    code: 1,
    at: '192.168.50.9',
    message: /no interface of this host has the address 192\.168\.50\.9/,
    remedy: /ip address/,
  });
});

live(
  'up refuses a UDP port that another program uses: exit 1',
  async (t) => {
    const other = rig.host.start('socat', ['-d', '-d', '-u', 'UDP4-RECV:4789,bind=192.168.50.1', 'STDOUT']);
    t.teardown(async () => void (await other.stop('SIGKILL')));
    await other.output(/starting data transfer/, { stream: 'stderr' });
    await refuses(t, rig.text, {
      code: 1,
      at: '4789',
      message: /UDP port 4789 of 192\.168\.50\.1 is in use/,
      remedy: /ss -ulpn.*another port/,
    });
  },
  { tools: ['socat'] },
);

live('up refuses the port of a kernel vxlan device: exit 1', async (t) => {
  const spare = rig.lab.host('spare');
  kernelVxlan(rig.host, spare, {
    vni: 7,
    local: '192.168.50.1',
    underlayDev: 'under0',
    address: '10.7.0.1/24',
  });
  t.teardown(() => {
    for (const device of ['vx7', 'br7', 'ct0']) rig.host.ip('link', 'del', device);
  });
  await refuses(t, rig.text, {
    code: 1,
    at: '4789',
    message: /UDP port 4789 of 192\.168\.50\.1 is in use/,
    remedy: /kernel vxlan/,
  });
});

live('up leaves an interface of another kind alone: exit 1, and undoes the others', async (t) => {
  const [, two] = rig.containers;
  two.ip('link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', 'far');
  t.teardown(() => two.ip('link', 'del', 'eth0'));
  const link = linkOf(two, 'eth0');
  await refuses(t, rig.text, {
    code: 1,
    at: 'eth0, address: 10.0.9.2',
    message: /endpoint c2: .*eth0/,
    remedy: /remove that interface, or choose another name/,
    links: [[], ['eth0', 'far']],
  });
  t.deepEqual(linkOf(two, 'eth0'), link);
});

live('up leaves a TAP of another program alone: exit 1, and the other keeps it as it was', async (t) => {
  const [, two] = rig.containers;
  const tap = native.tapOpen({ name: 'eth0', netns: two.path, persist: false, tunnel: false });
  const link = linkOf(two, 'eth0');
  await refuses(t, rig.text, {
    code: 1,
    at: 'eth0, address: 10.0.9.2',
    message: /endpoint c2: .*eth0/,
    remedy: /remove that interface, or choose another name/,
    links: [[], ['eth0']],
  });
  t.deepEqual(linkOf(two, 'eth0'), link);
  native.close(tap.fd);
  t.deepEqual(linksOf(two), [], 'it still goes with its program');
});

live(
  'up without the right to make interfaces: exit 1',
  async (t) => {
    const { engine0, host, containers } = rig;
    engine0.write(rig.text);
    const weft = [process.execPath, MAIN, 'up', '-c', engine0.file, '--socket', engine0.socket];
    const { code, stdout, stderr } = await host.exec('setpriv', ['--bounding-set', '-all', ...weft]);
    t.is(code, 1, stderr);
    t.is(stdout, '');
    t.regex(stderr, /needs root, with CAP_NET_ADMIN and CAP_SYS_ADMIN, to make interfaces; run it with sudo/);
    t.notRegex(stderr, /^\s+at /m);
    for (const container of containers) t.deepEqual(linksOf(container), []);
  },
  { tools: ['setpriv'] },
);

const asNobody = ['--reuid', '65534', '--regid', '65534', '--clear-groups'];
const readable = spawnSync('setpriv', [...asNobody, process.execPath, MAIN, '--version']).status === 0;

live(
  'up as nobody: exit 1, and says that it needs root',
  async (t) => {
    const { engine0, host, directory } = rig;
    engine0.write(rig.text);
    chmodSync(directory, 0o777);
    chmodSync(engine0.file, 0o644);
    const weft = [process.execPath, MAIN, 'up', '-c', engine0.file, '--socket', engine0.socket];
    const { code, stderr } = await host.exec('setpriv', [...asNobody, ...weft]);
    chmodSync(directory, 0o700);
    t.is(code, 1, stderr);
    t.regex(stderr, /weft up needs root, .* to make interfaces; run it with sudo/);
  },
  { tools: ['setpriv'], skip: readable ? undefined : 'nobody may not read this clone' },
);

live('a second daemon on the same control socket is refused: exit 1, and the first goes on', async (t) => {
  const { engine0, containers, host } = rig;
  engine0.write(rig.text);
  t.teardown(() => engine0.kill());
  await engine0.start();
  const again = [MAIN, 'up', '-c', engine0.file, '--socket', engine0.socket];
  const { code, stderr } = await host.exec(process.execPath, again);
  t.is(code, 1);
  t.regex(stderr, /another daemon answers on .*; stop it|another daemon answers on .*: stop it/);
  const other = await host.exec(process.execPath, [...again.slice(0, -1), `${engine0.socket}2`]);
  t.is(other.code, 1);
  t.regex(other.stderr, /UDP port 4789 of 192\.168\.50\.1 is in use/);
  t.deepEqual(containers.map(linksOf), [['eth0'], ['eth0']]);
  t.is((await engine0.status()).endpoints.length, 2);
  await engine0.stop();
});

live('status, fdb and drops: text for people, JSON with schemaVersion, and exit codes', async (t) => {
  const { engine0, containers } = rig;
  engine0.write(rig.text);
  t.teardown(() => engine0.kill());
  await engine0.start();
  await containers[0].run('ping', ['-c', '1', '-w', '5', '10.0.9.2']);

  const status = await engine0.cli('status');
  t.is(status.code, 0);
  t.regex(
    status.stdout,
    /^node hostA, up \d+ s, pid \d+.*\nunderlay 192\.168\.50\.1 port 4789 on under0, MTU 1500/,
  );
  t.regex(status.stdout, /^blue +42 +1450 +2 +192\.168\.50\.2$/m);
  t.regex(
    status.stdout,
    new RegExp(`^c1 +blue +${escaped(containers[0].name)}/eth0 +10\\.0\\.9\\.1/24 +forwarding`, 'm'),
  );
  const json = JSON.parse((await engine0.cli('status', '--json')).stdout);
  t.like(json, { schemaVersion: 1, node: 'hostA', pid: engine0.pid });

  const fdb = await engine0.cli('fdb');
  t.regex(fdb.stdout, /^blue +02:42:0a:00:09:01 +endpoint c1 +- +static$/m);
  const entries = JSON.parse((await engine0.cli('fdb', 'ls', '--json')).stdout);
  t.is(entries.schemaVersion, 1);
  t.is(entries.entries.length, 2);
  t.is((await engine0.cli('fdb', 'get', '02:42:0A:00:09:01')).code, 0);
  const unknown = await engine0.cli('fdb', 'get', '02:00:00:00:00:01');
  t.is(unknown.code, 4);
  t.is(unknown.stdout, '');
  t.regex(unknown.stderr, /02:00:00:00:00:01 is not in the forwarding table/);
  t.is((await engine0.cli('fdb', 'flush')).code, 0);

  const drops = await engine0.cli('drops', '--all');
  t.regex(drops.stdout, /^vxlan-decap +unknown-vni +0$/m);
  const rows = JSON.parse((await engine0.cli('drops', '--all', '--json')).stdout);
  t.is(rows.schemaVersion, 1);
  t.true(
    rows.drops.some(
      ({ element, reason }: Record<string, string>) => element === 'bridge' && reason === 'runt',
    ),
  );

  await engine0.stop();
  for (const command of [['status'], ['fdb'], ['drops', '--json']]) {
    const { code, stdout, stderr } = await engine0.cli(...command);
    t.is(code, 3, command.join(' '));
    t.is(stdout, '');
    t.regex(stderr, /no daemon listens there; start one with "weft up -c weft\.yaml"/);
  }
});

live('usage: exit 2 for a command, an option or a file that is missing', async (t) => {
  for (const args of [['up'], ['up', '-c'], ['nonsense'], ['status', '--nonsense']]) {
    const { code, stderr } = await rig.host.exec(process.execPath, [MAIN, ...args]);
    t.is(code, 2, `${args.join(' ')}: ${stderr}`);
  }
});
