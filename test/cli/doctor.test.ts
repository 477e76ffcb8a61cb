import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import type { CommandResult, Lab, Namespace } from '../../cli/lab.js';
import type { Check } from '../../control/doctor/check.js';
import { nodeSatisfies } from '../../control/doctor/host.js';
import type { PeerReport } from '../../control/peers.js';
import { live, probing } from '../support/lab-test.js';

const WEFT = fileURLToPath(new URL('../../cli/main.js', import.meta.url));
const weft = (host: Namespace, ...args: string[]): Promise<CommandResult> =>
  host.exec(process.execPath, [WEFT, ...args]);

interface DoctorAnswer {
  readonly schemaVersion: number;
  readonly ok: boolean;
  readonly checks: readonly Check[];
}

async function doctor(host: Namespace, ...args: string[]): Promise<DoctorAnswer & { code: number }> {
  const { code, stdout, stderr } = await weft(host, 'doctor', '--json', ...args);
  if (!stdout) throw new Error(`doctor printed nothing; stderr: ${stderr}`);
  return { code, ...(JSON.parse(stdout) as DoctorAnswer) };
}

const named = ({ checks }: DoctorAnswer, name: string): Check | undefined =>
  checks.find((check) => check.name === name);

/** A file in a directory that goes with the test. */
function file(t: ExecutionContext, text: string): string {
  const directory = mkdtempSync(join(tmpdir(), 'weft-doctor-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const path = join(directory, 'weft.yaml');
  writeFileSync(path, text);
  return path;
}

interface NodeFile {
  readonly address?: string;
  readonly underlay?: string;
  readonly network?: string;
  readonly peers?: string;
  readonly netns?: string;
}

function nodeFile(t: ExecutionContext, options: NodeFile = {}): string {
  const { address = '10.1.0.1', underlay = '', network = '', peers = '10.2.0.1', netns } = options;
  const endpoints = netns
    ? `endpoints:\n  - { name: c1, network: blue, netns: ${netns}, interface: eth0, address: 10.0.9.1/24 }\n`
    : '';
  return file(
    t,
    `node: hostA
underlay: { address: "${address}"${underlay} }
networks:
  - { name: blue, vni: 42, subnet: 10.0.9.0/24, peers: [${peers}]${network} }
${endpoints}`,
  );
}

/** host a – router – host b over links of the given MTUs. */
function routed(lab: Lab, near: number, far: number): [Namespace, Namespace, Namespace] {
  const a = lab.host('a');
  const router = lab.host('router');
  const b = lab.host('b');
  lab.link(a, router, {
    nameA: 'under0',
    nameB: 'r0',
    mtu: near,
    addressesA: ['10.1.0.1/24', 'fd01::1/64'],
    addressesB: ['10.1.0.254/24', 'fd01::fe/64'],
  });
  lab.link(router, b, {
    nameA: 'r1',
    nameB: 'under0',
    mtu: far,
    addressesA: ['10.2.0.254/24', 'fd02::fe/64'],
    addressesB: ['10.2.0.1/24', 'fd02::1/64'],
  });
  router.enableForwarding();
  for (const [host, end] of [
    [a, 1],
    [b, 2],
  ] as const) {
    host.route('default', { via: `10.${end}.0.254` });
    host.route('default', { via: `fd0${end}::fe` });
  }
  return [a, router, b];
}

live(
  'the host alone: every probe has a verdict, nothing fails here, and nothing is left behind',
  async (t, lab) => {
    const host = lab.host('h');
    const before = host.ip('link', 'show');
    const answer = await doctor(host);
    t.is(answer.code, 0, JSON.stringify(answer));
    t.is(answer.schemaVersion, 1);
    t.true(answer.ok);
    for (const name of ['Node.js', 'Linux', 'CAP_NET_ADMIN', '/dev/net/tun', 'native addon', 'ip', 'nsenter'])
      t.is(named(answer, name)?.status, 'ok', name);
    for (const name of [
      'TAP offloads',
      'UDP-tunnel GSO',
      'UDP_SEGMENT, UDP_GRO',
      'AES-GCM',
      'nft',
      'nft netdev fwd',
      'cap',
    ])
      t.truthy(named(answer, name), name);
    for (const { name, status, remedy } of answer.checks)
      t.is(status === 'ok' || status === 'skip', remedy === undefined, `${name} needs a remedy or none`);
    t.is(host.ip('link', 'show'), before);
  },
);

live('as a table it says the same, with a line for each remedy', async (t, lab) => {
  const { code, stdout } = await weft(lab.host('h'), 'doctor');
  t.is(code, 0);
  t.regex(stdout, /^STATUS +CHECK +FOUND\n/);
  t.regex(stdout, /\nok +native addon +loads\n/);
  t.regex(stdout, /\n\d+ ok, \d+ warnings, 0 failed, \d+ skipped\n$/);
});

live('without rights it fails and says what to run as', async (t, lab) => {
  const { code, stdout } = await lab
    .host('h')
    .exec('setpriv', [
      '--bounding-set=-all',
      '--inh-caps=-all',
      '--',
      process.execPath,
      WEFT,
      'doctor',
      '--json',
    ]);
  t.is(code, 1);
  const answer = JSON.parse(stdout) as DoctorAnswer;
  t.false(answer.ok);
  t.like(named(answer, 'CAP_NET_ADMIN'), { status: 'fail', remedy: 'run as root, or with CAP_NET_ADMIN' });
  t.is(named(answer, 'CAP_NET_RAW')?.status, 'warn');
  t.is(named(answer, 'TAP offloads')?.status, 'fail');
});

probing('a node file that fits: namespace, underlay, port, path and MTU', async (t, lab) => {
  const [a] = routed(lab, 1500, 1500);
  const container = lab.host('c');
  const answer = await doctor(a, '-c', nodeFile(t, { netns: container.path }));
  t.is(answer.code, 0, JSON.stringify(answer.checks));
  for (const name of ['node file', `namespace ${container.path}`, 'UDP port 4789', 'VTEP 10.2.0.1'])
    t.is(named(answer, name)?.status, 'ok', name);
  t.regex(named(answer, 'underlay address')!.message, /10\.1\.0\.1 is on under0, MTU 1500/);
  t.regex(named(answer, 'VTEP 10.2.0.1')!.message, /path MTU 1500/);
  t.is(named(answer, 'MTU of blue to 10.2.0.1')?.message, 'blue: mtu 1450 is right');
});

probing('a smaller link in the middle: the number to put into mtu', async (t, lab) => {
  const [a] = routed(lab, 1500, 1400);
  const answer = await doctor(a, '-c', nodeFile(t));
  t.is(answer.code, 1);
  t.like(named(answer, 'VTEP 10.2.0.1'), { status: 'warn', remedy: 'write underlay.mtu: 1400' });
  t.like(named(answer, 'MTU of blue to 10.2.0.1'), { status: 'fail', remedy: 'write mtu: 1350 for blue' });

  const mended = await doctor(a, '-c', nodeFile(t, { network: ', mtu: 1350' }));
  t.is(mended.code, 0, JSON.stringify(mended.checks));
  t.is(named(mended, 'MTU of blue to 10.2.0.1')?.status, 'ok');
});

probing('what a node file asks for and the host lacks, each with its remedy', async (t, lab) => {
  const [a, , b] = routed(lab, 1500, 1500);
  const missing = await doctor(a, '-c', nodeFile(t, { netns: 'weft-no-such', address: '10.1.0.99' }));
  t.is(missing.code, 1);
  t.like(named(missing, 'namespace weft-no-such'), { status: 'fail', remedy: 'ip netns add weft-no-such' });
  t.like(named(missing, 'underlay address'), {
    status: 'fail',
    message: 'no interface of this host has 10.1.0.99',
  });

  const plain = await doctor(a, '-c', nodeFile(t, { netns: '/etc/hostname', underlay: ', mtu: 1600' }));
  t.like(named(plain, 'namespace /etc/hostname'), {
    status: 'fail',
    message: '/etc/hostname is not a network namespace',
  });
  t.like(named(plain, 'underlay address'), { status: 'fail', remedy: 'write mtu: 1500' });

  const bind = "require('dgram').createSocket('udp4').bind(4789, () => console.log('bound'))";
  const holder = a.start(process.execPath, ['-e', bind]);
  await holder.output(/bound/);
  t.like(named(await doctor(a, '-c', nodeFile(t)), 'UDP port 4789'), {
    status: 'fail',
    message: 'is taken on 10.1.0.1',
  });
  await holder.stop();

  await deafen(b);
  const silent = await doctor(a, '-c', nodeFile(t));
  t.is(silent.code, 0, 'a firewall may be why: a warning');
  t.like(named(silent, 'VTEP 10.2.0.1'), { status: 'warn', message: 'no answer' });
});

live('an invalid node file fails with its place', async (t, lab) => {
  const answer = await doctor(
    lab.host('h'),
    '-c',
    file(t, 'node: a\nunderlay: { address: 10.0.0.1, prot: 1 }\n'),
  );
  t.is(answer.code, 1);
  const { status, message, remedy } = named(answer, 'node file')!;
  t.is(status, 'fail');
  t.regex(message, /weft\.yaml:2:\d+: unknown key "prot"/);
  t.regex(remedy!, /port/);
});

const deafen = (host: Namespace): Promise<string> =>
  host.run('nft', ['-f', '-'], {
    input:
      'table inet deaf {\n chain in {\n type filter hook input priority 0\n meta l4proto icmp drop\n }\n}\n',
  });

interface PingAnswer {
  readonly schemaVersion: number;
  readonly ok: boolean;
  readonly interfaceMtu: number;
  readonly peers: readonly PeerReport[];
}

probing('peer ping: the path MTU exactly, and the verdict on the overlay', async (t, lab) => {
  const [a] = routed(lab, 1500, 1400);
  const { code, stdout, stderr } = await weft(a, 'peer', 'ping', '-c', nodeFile(t), '--json');
  t.is(code, 1, stderr);
  const answer = JSON.parse(stdout) as PingAnswer;
  t.like(answer, { schemaVersion: 1, ok: false, interfaceMtu: 1500 });
  t.is(answer.peers.length, 1);
  t.like(answer.peers[0], { vtep: '10.2.0.1', answered: true, mtu: 1400 });
  t.deepEqual(answer.peers[0].networks, [{ name: 'blue', mtu: 1450, largest: 1350, verdict: 'too-large' }]);

  const table = await weft(a, 'peer', 'ping', '-c', nodeFile(t, { network: ', mtu: 1300' }), '10.2.0.1');
  t.is(table.code, 0, table.stderr);
  t.regex(table.stdout, /10\.2\.0\.1 +\d+\.\d{3} +1400 +blue: mtu 1300 fits \(up to 1350 would\)/);
});

probing('peer ping over an IPv6 underlay takes 70 bytes off', async (t, lab) => {
  const [a] = routed(lab, 1500, 1400);
  const path = nodeFile(t, { address: 'fd01::1', peers: '"fd02::1"', network: ', mtu: 1330' });
  const { code, stdout } = await weft(a, 'peer', 'ping', '-c', path, '--json');
  const answer = JSON.parse(stdout) as PingAnswer;
  t.is(code, 0);
  t.is(answer.peers[0].mtu, 1400);
  t.deepEqual(answer.peers[0].networks, [{ name: 'blue', mtu: 1330, largest: 1330, verdict: 'right' }]);
});

probing('peer ping: who does not answer is said so, beside one who does', async (t, lab) => {
  const [a] = routed(lab, 1500, 1500);
  const path = nodeFile(t, { peers: '10.2.0.1, 10.2.0.77' });
  const { code, stdout } = await weft(a, 'peer', 'ping', '-c', path);
  t.is(code, 1);
  t.regex(stdout, /10\.2\.0\.1 +\d/);
  t.regex(stdout, /10\.2\.0\.77 +- +- +(no answer|a router says unreachable)/);
});

live('peer ping: wrong usage, wrong file, unknown VTEP', async (t, lab) => {
  const host = lab.host('h');
  const path = nodeFile(t);
  t.is((await weft(host, 'peer', 'ping')).code, 2);
  t.is((await weft(host, 'peer', 'ping', '-c', file(t, 'node: 7\n'))).code, 2);
  t.is((await weft(host, 'peer', 'ping', '-c', path, 'nonsense')).code, 2);
  const unknown = await weft(host, 'peer', 'ping', '-c', path, '10.9.9.9');
  t.is(unknown.code, 4);
  t.regex(unknown.stderr, /does not name the VTEP 10\.9\.9\.9; it has 10\.2\.0\.1/);
  const elsewhere = await weft(host, 'peer', 'ping', '-c', path);
  t.is(elsewhere.code, 1);
  t.regex(elsewhere.stderr, /no interface of this host has the underlay address 10\.1\.0\.1/);
});

live('peer ping without raw-socket says what to install', async (t, lab) => {
  const [a] = routed(lab, 1500, 1500);
  // A loader that does not find the package, as in an installation without optional ones.
  const hooks = `export async function resolve(name, context, next) {
    if (name === 'raw-socket') throw Object.assign(new Error('Cannot find package'), { code: 'ERR_MODULE_NOT_FOUND' });
    return next(name, context);
  }`;
  const loader = `import { register } from 'node:module';
    register(${JSON.stringify(`data:text/javascript,${encodeURIComponent(hooks)}`)});`;
  const node = [process.execPath, '--import', `data:text/javascript,${encodeURIComponent(loader)}`, WEFT];
  const path = nodeFile(t);
  const ping = await a.exec(node[0], [...node.slice(1), 'peer', 'ping', '-c', path]);
  t.is(ping.code, 1);
  t.regex(ping.stderr, /raw-socket is not installed; .*npm install raw-socket/);
  const answer = await a.exec(node[0], [...node.slice(1), 'doctor', '--json', '-c', path]);
  t.is(answer.code, 0);
  const checks = JSON.parse(answer.stdout) as DoctorAnswer;
  t.like(named(checks, 'raw-socket'), { status: 'warn' });
  t.like(named(checks, 'peers'), { status: 'warn' });
});

test('engines of package.json are read as npm reads them', (t) => {
  const range = '^20.19 || ^22.20 || >=24.12';
  for (const version of ['20.19.0', '20.20.2', '22.20.0', '24.12.1', '26.0.0'])
    t.true(nodeSatisfies(range, version), version);
  for (const version of ['18.20.0', '20.18.9', '21.5.0', '22.19.0', '23.9.0', '24.11.0'])
    t.false(nodeSatisfies(range, version), version);
});
