/** Which way the underlay is used, what is said of it, and what becomes of it when the host's network changes. */
import type { ExecutionContext } from 'ava';
import { echoServer, offloads, pythonMissing } from '../../bench/wire-traffic.js';
import { kernelVxlan, type Namespace, ping, waitFor } from '../../cli/lab.js';
import {
  type Engine,
  linkOf,
  linksOf,
  live,
  MAIN,
  Mesh,
  overlayAddress,
  Rig,
  sendUdp,
  shared,
} from '../support/live.js';
import { exchange, sentBy, wire } from '../support/offload.js';

const requirements = { tools: ['ethtool', 'nft', 'unshare', 'mount'], skip: pythonMissing() };

const mesh = shared(() => Mesh.up({ hosts: 2 }));

/** The mesh with both engines running as their files were, whatever the test before left. */
async function intact(): Promise<Mesh> {
  const { engines } = mesh();
  for (const [i, engine] of engines.entries()) {
    const { exitCode, signalCode } = engine.running!.child;
    if (exitCode === null && signalCode === null) continue;
    engine.write(mesh().fileOf(i + 1));
    await engine.start();
  }
  return mesh();
}
const sockets = shared(() => Mesh.up({ hosts: 2, underlay: { mode: 'socket' } }));

/** Asserts that a stream passes from container 1 to container 2 and back. */
async function streams(t: ExecutionContext, [a, b]: readonly Namespace[]): Promise<void> {
  const server = await echoServer(b, overlayAddress(2));
  await exchange(t, a, overlayAddress(2), ['bulk']);
  await server.stop();
}

const superFrames = async (engine: Engine): Promise<number> =>
  (await engine.status()).underlay.counters['tx-super'] ?? 0;

/** Waits until streams leave by the uplink again: the socket has no super-frames to count. */
async function backOnUplink(
  t: ExecutionContext,
  containers: readonly Namespace[],
  engines: readonly Engine[],
) {
  await waitFor(
    async () => {
      const before = await Promise.all(engines.map(superFrames));
      await streams(t, containers);
      const after = await Promise.all(engines.map(superFrames));
      return after.every((count, i) => count > before[i]);
    },
    { what: 'super-frames on the uplink', timeoutMs: 15_000 },
  );
}

/** Starts an engine that finds no usable nft, in mounts of its own. */
function launchWithoutNft(engine: Engine) {
  const up = [process.execPath, MAIN, 'up', '-c', engine.file, '--socket', engine.socket];
  const script = 'mount --bind /bin/false "$(command -v nft)" && exec "$@"';
  engine.running = engine.host.start('unshare', ['-m', 'sh', '-c', script, 'sh', ...up]);
  return engine.running;
}

live(
  'a way out that does not segment UDP: streams pass, and a refusal is said once',
  async (t) => {
    const { engines, containers, hosts } = sockets();
    await offloads(hosts[0], 'under0', 'off');
    const refused = async () => (await engines[0].status()).underlay.counters['gso-refused'];
    t.is(await refused(), 0);
    await streams(t, containers);
    const counted = await refused();
    const said = () => engines[0].running!.stderr.match(/does not segment UDP/g)?.length ?? 0;
    // Linux 6.11 and later segment in software; test/engine/ports/underlay-socket.test.ts has one that refuses.
    if (counted > 0) await waitFor(() => said() > 0, { what: 'a word about it' });
    await streams(t, containers);
    t.is(await refused(), counted, 'not tried again');
    t.is(said(), counted > 0 ? 1 : 0);
    await offloads(hosts[0], 'under0', 'on');
  },
  requirements,
);

live(
  'no usable nft: sockets, and status and stderr say why',
  async (t) => {
    const { engines, containers, hosts } = await intact();
    await engines[0].stop();
    const running = launchWithoutNft(engines[0]);
    await running.output(/^ready$/m, { timeoutMs: 30_000 });
    const { underlay } = await engines[0].status();
    t.is(underlay.path, 'socket');
    t.regex(underlay.why, /rules .* refused/);
    t.is(running.stderr.match(/^.*underlay: UDP sockets \(.*refused/gm)?.length, 1);
    const shown = await engines[0].cli('status');
    t.regex(shown.stdout, /socket/);
    t.true(shown.stdout.includes(underlay.why), shown.stdout);
    t.deepEqual(linksOf(hosts[0]), ['under0'], 'no uplink device is kept');
    await streams(t, containers);
    await engines[0].stop();
    await engines[0].start();
    t.is((await engines[0].status()).underlay.path, 'uplink');
  },
  requirements,
);

live(
  'mode uplink without a usable nft: refused with exit 1 and a remedy, nothing left',
  async (t) => {
    const { engines, hosts, containers } = await intact();
    const file = mesh().fileOf(1);
    await engines[0].stop();
    engines[0].write({ ...file, underlay: { ...file.underlay, mode: 'uplink' } });
    const { code, stdout, stderr } = await launchWithoutNft(engines[0]).finish(30_000);
    t.is(code, 1);
    t.is(stdout, '');
    t.regex(stderr, /cannot have an uplink TAP/);
    t.regex(stderr, /mode: auto/);
    t.regex(stderr, new RegExp(`${engines[0].file}:\\d+:\\d+`));
    t.deepEqual(linksOf(hosts[0]), ['under0']);
    t.deepEqual(linksOf(containers[0]), []);
    engines[0].write(file);
    await engines[0].start();
  },
  requirements,
);

live(
  'a path with a smaller MTU: what is too big is counted, and peer ping names the right one',
  async (t) => {
    const { engines, containers, hosts } = sockets();
    hosts[0].route('192.168.50.2/32', { dev: 'under0', mtu: 1400 });
    const dropped = await engines[0].watchDrops();
    t.is((await ping(containers[0], overlayAddress(2), { count: 2, size: 1400, df: true })).received, 0);
    t.deepEqual(await dropped(), { 'underlay too-big': 2 });
    hosts[0].ip('route', 'del', '192.168.50.2/32');

    // A switch tells nobody what it drops; only a probe finds that.
    const { switch: at } = sockets();
    at.ip('link', 'set', 'p1', 'mtu', '1400');
    hosts[1].ip('link', 'set', 'under0', 'mtu', '1400');
    const told = await hosts[0].exec(process.execPath, [MAIN, 'peer', 'ping', '-c', engines[0].file]);
    at.ip('link', 'set', 'p1', 'mtu', '1500');
    hosts[1].ip('link', 'set', 'under0', 'mtu', '1500');
    if (told.stderr.includes('raw-socket is not installed')) t.log('peer ping needs the optional raw-socket');
    else t.regex(told.stdout, /mtu 1450 is too large for the path, it should be 1350/);
    t.true(
      (await ping(containers[0], overlayAddress(2), { count: 2, size: 1400, deadlineS: 5 })).received >= 2,
    );
  },
);

/** Rules of a host without those of ours. */
async function ruleset(host: Namespace, family = ''): Promise<string> {
  return host.run('nft', ['list', 'ruleset', ...(family ? [family] : [])]);
}

live(
  "the host's firewall, addresses and own vxlan are undisturbed by an uplink",
  async (t) => {
    const { engines, hosts, containers, lab } = await intact();
    await engines[0].stop();
    const [one, two] = hosts;
    await one.run('nft', ['-f', '-'], {
      input: `table inet filter {
        chain input { type filter hook input priority 0; policy accept; tcp dport 22 drop; }
        chain forward { type filter hook forward priority 0; policy accept; udp dport 4789 drop; }
      }
      table netdev mine {
        chain in { type filter hook ingress device "under0" priority 10; policy accept; tcp dport 22 drop; }
      }`,
    });
    t.teardown(() => one.run('nft', ['flush', 'ruleset']));
    const rules = await ruleset(one);
    const kernels = [lab.host('k1'), lab.host('k2')];
    kernels.forEach((container, i) => {
      kernelVxlan(hosts[i], container, {
        ...{ vni: 77, port: 8472, underlayDev: 'under0', address: `10.77.0.${i + 1}/24` },
        ...{ local: `192.168.50.${i + 1}`, remote: `192.168.50.${2 - i}` },
      });
    });
    const servers = [await echoServer(two, '192.168.50.2'), await echoServer(kernels[1], '10.77.0.2')];
    const undisturbed = async (): Promise<void> => {
      await exchange(t, one, '192.168.50.2', ['bulk', 'udp-few', 'fragments']);
      await exchange(t, kernels[0], '10.77.0.2', ['bulk', 'udp-few', 'fragments']);
      t.is(await ruleset(one, 'inet'), rules.slice(0, rules.indexOf('table netdev')));
      t.true((await ruleset(one)).includes('table netdev mine'));
    };
    await engines[0].start();
    t.is((await engines[0].status()).underlay.path, 'uplink');
    await undisturbed();
    await streams(t, containers);

    // A datagram to our own port in fragments: the host puts it together, the socket gets it, decapsulation drops it.
    const dropped = await engines[0].watchDrops();
    await sendUdp(two, '192.168.50.1', 4789, new Uint8Array(3000).fill(0x55));
    await waitFor(async () => Object.keys(await dropped()).some((name) => name.startsWith('vxlan-decap ')), {
      what: 'the fragments to arrive',
    });
    await streams(t, containers);

    await engines[0].stop();
    t.is(await ruleset(one), rules);
    t.false(linksOf(one).some((name) => name.startsWith('weft')));
    await undisturbed();
    for (const server of servers) await server.stop();
  },
  { ...requirements, tools: [...requirements.tools, 'socat'] },
);

for (const mode of ['auto', 'socket'] as const) {
  live(
    `kill -9: the uplink device is gone, and a start with mode ${mode} replaces the rules`,
    async (t) => {
      const { engines, hosts, containers } = await intact();
      const file = mesh().fileOf(1);
      const tables = async () =>
        [...(await ruleset(hosts[0])).matchAll(/^table netdev (\S+)/gm)].map(([, n]) => n);
      t.deepEqual(await tables(), ['weft_192_168_50_1_4789']);
      await engines[0].kill();
      await waitFor(() => !linksOf(hosts[0]).some((name) => name.startsWith('weft')), { what: 'no device' });
      t.deepEqual(await tables(), ['weft_192_168_50_1_4789'], 'the table stays');
      engines[0].write({ ...file, underlay: { ...file.underlay, mode } });
      await engines[0].start();
      t.deepEqual(await tables(), mode === 'auto' ? ['weft_192_168_50_1_4789'] : []);
      await streams(t, containers);
      if (mode === 'auto') return;
      await engines[0].stop();
      engines[0].write(file);
      await engines[0].start();
    },
    requirements,
  );
}

live(
  'rules that somebody flushes are made again: streams pass whole',
  async (t) => {
    const { engines, hosts, containers } = await intact();
    const table = /table netdev weft_192_168_50_1_4789 \{[\s\S]*fwd to "under0"/;
    t.regex(await ruleset(hosts[0]), table);
    await hosts[0].run('nft', ['flush', 'ruleset']);
    await waitFor(async () => table.test(await ruleset(hosts[0])), { what: 'the rules', timeoutMs: 30_000 });
    t.regex(
      engines[0].running!.stderr,
      /underlay: its table netdev weft_192_168_50_1_4789 was removed, and is made again/,
    );
    await backOnUplink(t, containers, engines);
  },
  requirements,
);

/** Gives every interface of the underlay an MTU, and waits until both engines have it. */
async function setMtu(t: ExecutionContext, { hosts, switch: at, engines }: Mesh, mtu: number): Promise<void> {
  for (const port of ['p0', 'p1']) at.ip('link', 'set', port, 'mtu', String(mtu));
  for (const [i, host] of hosts.entries()) {
    host.ip('link', 'set', 'under0', 'mtu', String(mtu));
    const said = new RegExp(`under0 has an MTU of ${mtu} now`);
    await engines[i].running!.output(said, { stream: 'stderr', timeoutMs: 30_000 });
    t.is(linkOf(host, 'weft0')?.mtu, mtu);
    // Asked behind what the worker was told.
    await engines[i].status();
  }
}

live(
  "the MTU of the underlay's interface is followed, down and up",
  async (t) => {
    const { engines, containers, hosts } = await intact();
    const dropped = await engines[0].watchDrops();
    const answers = async (size: number): Promise<number> =>
      (await ping(containers[0], overlayAddress(2), { count: 1, size, df: true, deadlineS: 5 })).received;
    t.is(await answers(1400), 1);
    await setMtu(t, mesh(), 1400);
    t.is((await ping(containers[0], overlayAddress(2), { count: 2, size: 1400, df: true })).received, 0);
    t.deepEqual(await dropped(), { 'uplink too-big': 2 });
    t.is(linkOf(containers[0], 'eth0')?.mtu, 1450, 'networks follow at a reload');
    await engines[0].change(mesh().fileOf(1));
    t.is(linkOf(containers[0], 'eth0')?.mtu, 1350);
    await streams(t, containers);
    await setMtu(t, mesh(), 2000);
    containers[0].ip('link', 'set', 'eth0', 'mtu', '1950');
    t.is(await answers(1900), 1);
    t.deepEqual(await dropped(), { 'uplink too-big': 2 });
    await setMtu(t, mesh(), 1500);
    await engines[0].change(mesh().fileOf(1));
    t.is(linkOf(hosts[0], 'weft0')?.mtu, 1500);
  },
  requirements,
);

live(
  'the peer changes its MAC and says so: traffic stays on the uplink',
  async (t) => {
    const { engines, hosts, containers } = await intact();
    await hosts[1].run('sh', ['-c', 'echo 1 > /proc/sys/net/ipv4/conf/under0/arp_notify']);
    await streams(t, containers);
    hosts[1].ip('link', 'set', 'under0', 'address', '02:00:00:00:77:02');
    await backOnUplink(t, containers, engines);
    const capture = await wire(mesh(), hosts[1], 'under0');
    await streams(t, containers);
    const packets = await capture.stop();
    t.true(sentBy(packets, 1, false).length > 0);
    t.true(
      sentBy(packets, 1, false).every(({ to }) => to === '02:00:00:00:77:02'),
      'to the new MAC',
    );
    t.true(
      sentBy(packets, 2, false).every(({ by }) => by === '02:00:00:00:77:02'),
      'from the new MAC',
    );
  },
  { ...requirements, tools: [...requirements.tools, 'tcpdump', 'tshark'] },
);

live(
  'the peer changes its MAC and the neighbour is flushed: traffic goes on',
  async (t) => {
    const { engines, hosts, containers } = await intact();
    await hosts[1].run('sh', ['-c', 'echo 0 > /proc/sys/net/ipv4/conf/under0/arp_notify']);
    hosts[1].ip('link', 'set', 'under0', 'address', '02:00:00:00:77:03');
    hosts[0].ip('neigh', 'flush', 'all');
    t.true((await ping(containers[0], overlayAddress(2), { count: 1, deadlineS: 10 })).received > 0);
    await backOnUplink(t, containers, engines);
  },
  requirements,
);

live(
  'the underlay goes down and comes up again: traffic goes on',
  async (t) => {
    const { engines, hosts, containers } = await intact();
    hosts[0].ip('link', 'set', 'under0', 'down');
    t.is((await ping(containers[0], overlayAddress(2), { count: 2, interval: 0.2 })).received, 0);
    hosts[0].ip('link', 'set', 'under0', 'up');
    t.true((await ping(containers[0], overlayAddress(2), { count: 1, deadlineS: 10 })).received > 0);
    await backOnUplink(t, containers, engines);
    t.is((await engines[0].status()).slotsInUse, 0);
  },
  requirements,
);

/** Hosts in two subnets, with two routers between them. */
class Routed extends Rig {
  readonly hosts = [this.lab.host('h1'), this.lab.host('h2')];
  readonly routers = [this.lab.host('r1'), this.lab.host('r2')];
  readonly containers = [this.lab.host('c1'), this.lab.host('c2')];
  readonly engines: Engine[] = [];

  constructor(readonly v6: boolean) {
    super();
    const address = (side: number, host: number) =>
      v6 ? `fd5${side}::${host}/64` : `192.168.5${side}.${host}/24`;
    for (const side of [0, 1]) {
      this.lab.bridgeUnderlay([this.hosts[side], ...this.routers], {
        addresses: [[address(side, side + 1)], [address(side, 101)], [address(side, 102)]],
        device: side === 0 ? 'under0' : 'under1',
        label: `switch${side}`,
      });
    }
    for (const router of this.routers) router.enableForwarding();
    this.via(1);
    const local = (n: number) => address(n - 1, n).split('/')[0];
    for (const n of [1, 2]) {
      const network = { name: 'blue', vni: 42, subnet: '10.0.9.0/24', peers: [local(3 - n)] };
      const netns = this.containers[n - 1].name;
      const endpoint = {
        name: 'c',
        network: 'blue',
        netns,
        interface: 'eth0',
        address: `${overlayAddress(n)}/24`,
      };
      const file = { underlay: { address: local(n) }, networks: [network], endpoints: [endpoint] };
      this.engines.push(this.engine(this.hosts[n - 1], file));
    }
  }

  /** Sends everything by one of the routers. */
  via(router: 1 | 2): void {
    this.hosts.forEach((host, side) => {
      host.route('default', { via: this.v6 ? `fd5${side}::10${router}` : `192.168.5${side}.10${router}` });
    });
  }
}

for (const v6 of [false, true]) {
  live(
    `VTEPs in different subnets over IPv${v6 ? 6 : 4}: by the gateway, and by another one when the route changes`,
    async (t) => {
      const rig = new Routed(v6);
      try {
        await rig.start(...rig.engines);
        await backOnUplink(t, rig.containers, rig.engines);
        rig.via(2);
        for (const device of ['under0', 'under1']) rig.routers[0].ip('link', 'set', device, 'down');
        t.true((await ping(rig.containers[0], overlayAddress(2), { count: 1, deadlineS: 10 })).received > 0);
        await backOnUplink(t, rig.containers, rig.engines);
      } finally {
        rig.close();
      }
    },
    requirements,
  );
}
