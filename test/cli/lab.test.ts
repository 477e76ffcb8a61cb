import { type ChildProcess, spawn } from 'node:child_process';
import fs from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import {
  CommandError,
  iperf3,
  kernelAttach,
  kernelVxlan,
  type Lab,
  type Namespace,
  ping,
  sweepStale,
  waitFor,
} from '../../cli/lab.js';
import { live } from '../support/lab-test.js';

const namespaces = () => (fs.existsSync('/run/netns') ? fs.readdirSync('/run/netns') : []);
const alive = (pid: number | undefined) => pid !== undefined && fs.existsSync(`/proc/${pid}/ns/net`);

function twoHosts(lab: Lab): [Namespace, Namespace] {
  const a = lab.host('hA');
  const b = lab.host('hB');
  const addressesA = ['192.168.50.1/24', 'fd50::1/64'];
  const addressesB = ['192.168.50.2/24', 'fd50::2/64'];
  lab.link(a, b, { nameA: 'ua', nameB: 'ub', mtu: 1400, addressesA, addressesB, macB: '02:00:00:00:00:0b' });
  return [a, b];
}

live('two hosts on a link reach each other over IPv4 and IPv6 at once', async (t, lab) => {
  const [a, b] = twoHosts(lab);
  for (const address of ['192.168.50.2', 'fd50::2']) {
    const result = await ping(a, address, { count: 3 });
    t.is(result.sent, 3);
    t.is(result.received, 3, address);
    t.true(result.rttMin > 0 && result.rttMin <= result.rttAvg && result.rttAvg <= result.rttMax);
  }
  t.regex(b.ip('link', 'show', 'ub'), /02:00:00:00:00:0b/);
});

live('ping with DF finds the MTU and counts what is lost', async (t, lab) => {
  const [a] = twoHosts(lab);
  const fits = await ping(a, '192.168.50.2', { count: 1, size: 1400 - 28, df: true });
  t.is(fits.received, 1);
  const tooLarge = await ping(a, '192.168.50.2', { count: 1, size: 1400 - 27, df: true });
  t.is(tooLarge.received, 0);
  t.true(Number.isNaN(tooLarge.rttAvg));
  await t.throwsAsync(ping(a, '203.0.113.1'), { instanceOf: CommandError, message: /hA.*unreachable/is });
});

live('routes lead through a namespace that forwards', async (t, lab) => {
  const [a, b] = twoHosts(lab);
  const c = lab.host('c');
  lab.link(b, c, { nameA: 'uc', nameB: 'eth0', addressesA: ['10.1.0.1/24'], addressesB: ['10.1.0.2/24'] });
  b.enableForwarding();
  a.route('10.1.0.0/24', { via: '192.168.50.2', dev: 'ua' });
  c.route('default', { via: '10.1.0.1' });
  t.is((await ping(a, '10.1.0.2', { count: 1 })).received, 1);
});

live("the kernel's vxlan joins containers on two hosts, over IPv4 and over IPv6", async (t, lab) => {
  const [a, b] = twoHosts(lab);
  for (const [vni, va, vb] of [
    [42, '192.168.50.1', '192.168.50.2'],
    [43, 'fd50::1', 'fd50::2'],
  ] as const) {
    const ca = lab.host(`cA${vni}`);
    const cb = lab.host(`cB${vni}`);
    const mac = '02:42:0a:00:09:02';
    const mtu = 1330;
    kernelVxlan(a, ca, { vni, local: va, remote: vb, underlayDev: 'ua', address: '10.0.9.1/24', mtu });
    kernelVxlan(b, cb, { vni, local: vb, remote: va, underlayDev: 'ub', address: '10.0.9.2/24', mac, mtu });
    t.is((await ping(ca, '10.0.9.2')).received, 3, `VNI ${vni}`);
    t.regex(ca.ip('neigh', 'show', '10.0.9.2'), new RegExp(mac));
  }
});

live('three hosts on a switched underlay reach each other, with no duplicate', async (t, lab) => {
  const ids = [1, 2, 3];
  const hosts = ids.map((id) => lab.host(`h${id}`));
  lab.bridgeUnderlay(hosts, { addresses: ids.map((id) => [`192.168.50.${id}/24`]), mtu: 1600 });
  const containers = hosts.map((host, i) => {
    const container = lab.host(`c${i + 1}`);
    const remotes = ids.filter((id) => id !== i + 1).map((id) => `192.168.50.${id}`);
    const local = `192.168.50.${i + 1}`;
    const address = `10.0.9.${i + 1}/24`;
    kernelVxlan(host, container, { vni: 7, local, remotes, underlayDev: 'under0', address, mtu: 1500 });
    return container;
  });
  const extra = lab.host('c4');
  t.is(kernelAttach(hosts[2]!, extra, 'br7', { address: '10.0.9.4/24', mtu: 1500 }), 'ct1');
  for (const target of ['10.0.9.2', '10.0.9.3', '10.0.9.4']) {
    const result = await ping(containers[0]!, target, { count: 2, size: 1472, df: true });
    t.deepEqual([result.received, result.duplicates], [2, 0], target);
  }
});

live('iperf3 reports what arrived, for TCP and UDP', async (t, lab) => {
  const [a, b] = twoHosts(lab);
  const tcp = await iperf3(a, b, '192.168.50.2', { seconds: 1 });
  t.true(tcp.bitsPerSecond > 0);
  t.is(tcp.lostPercent, 0);
  const udp = await iperf3(a, b, 'fd50::2', { seconds: 1, udp: true, length: 500, bandwidth: 4e6 });
  t.true(udp.packetsPerSecond > 0 && udp.packetsPerSecond < 1500, `${udp.packetsPerSecond} for 1000 offered`);
  t.true(udp.cpu.sender >= 0 && udp.cpu.receiver >= 0);
  await t.throwsAsync(iperf3(a, b, '192.168.50.99', { seconds: 1 }), {
    instanceOf: CommandError,
    message: /unable to connect/,
  });
});

live('a command has an exit code, an input and a time limit', async (t, lab) => {
  const a = lab.host('hA');
  t.deepEqual(await a.exec('cat', [], { input: 'woven' }), { code: 0, stdout: 'woven', stderr: '' });
  t.is((await a.exec('false')).code, 1);
  const failed = await t.throwsAsync(a.run('ls', ['/no/such/place']), { instanceOf: CommandError });
  t.is(failed?.code, 2);
  t.regex(failed?.message ?? '', /hA: ls \/no\/such\/place: exit code 2\n.*No such file/);
  await t.throwsAsync(a.exec('sleep', ['60'], { timeoutMs: 50 }), {
    message: /sleep 60: did not end within 50 ms/,
  });
  t.throws(() => a.ip('link', 'set', 'nowhere', 'up'), { instanceOf: CommandError, message: /nowhere/ });
});

live('a running command tells when it printed a line, and when it never will', async (t, lab) => {
  const a = lab.host('hA');
  const ready = a.start('sh', ['-c', 'echo ready 7; exec sleep 60']);
  t.is((await ready.output(/ready (\d)/))[1], '7');
  t.is((await ready.stop()).code, 128 + 15);
  const broken = a.start('sh', ['-c', 'echo no luck >&2; exit 3']);
  const error = await t.throwsAsync(broken.output(/ready/), { instanceOf: CommandError });
  t.is(error?.code, 3);
  t.regex(error?.message ?? '', /no luck/);
  const mute = a.start('sleep', ['60']);
  await t.throwsAsync(mute.output(/ready/, { timeoutMs: 20 }), { message: /did not print .* within 20 ms/ });
});

live('close ends what runs in the lab and removes every namespace', async (t, lab) => {
  const a = lab.host('hA');
  const name = a.name;
  // The second one is a grandchild that outlives its parent, as a daemon does.
  const child = a.start('sh', ['-c', 'sleep 61 & echo $!; exec sleep 62']);
  const grandchild = Number((await child.output(/(\d+)\n/))[1]);
  t.true(alive(child.child.pid) && alive(grandchild) && namespaces().includes(name));
  lab.close();
  t.false(alive(child.child.pid) || alive(grandchild));
  t.false(namespaces().includes(name));
  lab.close();
  t.throws(() => lab.host('late'), { message: /closed/ });
});

live('refuses labels that are no names, or twice the same', async (t, lab) => {
  lab.host('hA');
  t.throws(() => lab.host('hA'), { message: /already/ });
  t.throws(() => lab.host('../hA'), { message: /letters/ });
  t.throws(() => lab.bridgeUnderlay(lab.namespaces, { addresses: [] }), { message: /1 hosts .* 0 lists/ });
});

test('waitFor returns the first truthy answer and names what did not come', async (t) => {
  let asked = 0;
  t.is(await waitFor(() => (++asked === 3 ? 'third' : undefined), { what: 'x', intervalMs: 1 }), 'third');
  const failing = () => {
    throw new Error('not yet');
  };
  const options = { what: 'the sun', timeoutMs: 5, intervalMs: 1 };
  await t.throwsAsync(waitFor(failing, options), {
    message: /5 ms in vain for the sun; last error: not yet/,
  });
});

/** A process that makes a lab with a command in it, prints the names, and then does what `last` says. */
async function otherProcess(
  t: ExecutionContext,
  last: string,
): Promise<{ child: ChildProcess; names: string[]; pid: number }> {
  const module = new URL('../../cli/lab.js', import.meta.url).href;
  const script = `
    import { Lab } from ${JSON.stringify(module)};
    const lab = Lab.create();
    const a = lab.host('hA'), b = lab.host('hB');
    lab.link(a, b, { nameA: 'ua', nameB: 'ub' });
    const sleeper = a.start('sleep', ['63']);
    console.log(JSON.stringify({ pid: sleeper.child.pid, names: [a.name, b.name] }));
    ${last}`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  let stdout = '';
  child.stdout.on('data', (chunk) => (stdout += chunk));
  await waitFor(() => stdout.includes('\n'), {
    what: 'the other process to make its lab',
    timeoutMs: 20_000,
  });
  return { child, ...(JSON.parse(stdout) as { names: string[]; pid: number }) };
}

const ended = (child: ChildProcess) =>
  waitFor(() => child.exitCode !== null || child.signalCode !== null, { what: 'the end', timeoutMs: 10_000 });

for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
  live(`${signal} in the middle of using a lab leaves nothing behind`, async (t) => {
    const { child, names, pid } = await otherProcess(t, 'setInterval(() => a.ip("link"), 1);');
    t.true(alive(pid) && names.every((name) => namespaces().includes(name)));
    child.kill(signal);
    await ended(child);
    t.is(child.signalCode, signal);
    t.false(alive(pid));
    t.deepEqual(
      names.filter((name) => namespaces().includes(name)),
      [],
    );
  });
}

live('an uncaught error leaves nothing behind', async (t) => {
  const { child, names, pid } = await otherProcess(t, 'setTimeout(() => { throw new Error("oh") }, 50);');
  await ended(child);
  t.is(child.exitCode, 1);
  t.false(alive(pid));
  t.deepEqual(
    names.filter((name) => namespaces().includes(name)),
    [],
  );
});

live('a program with its own signal handler keeps its lab until it exits', async (t) => {
  const last = `setInterval(() => {}, 1000); process.on('SIGTERM', () => { a.ip('link'); process.exit(5); });`;
  const { child, names } = await otherProcess(t, last);
  child.kill('SIGTERM');
  await ended(child);
  t.is(child.exitCode, 5);
  t.deepEqual(
    names.filter((name) => namespaces().includes(name)),
    [],
  );
});

live('sweepStale removes what a killed run left, and nothing of a living one', async (t, lab) => {
  const own = lab.host('hA');
  const { child, names, pid } = await otherProcess(t, 'setInterval(() => {}, 1000);');
  sweepStale();
  t.true(
    names.every((name) => namespaces().includes(name)),
    'the other run lives',
  );
  child.kill('SIGKILL');
  await ended(child);
  sweepStale();
  t.false(alive(pid));
  t.deepEqual(
    names.filter((name) => namespaces().includes(name)),
    [],
  );
  t.true(namespaces().includes(own.name));
});
