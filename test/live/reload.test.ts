/** SIGHUP: the difference is applied and nothing else; what is refused changes nothing. Containers that vanish. */
import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import type { ExecutionContext } from 'ava';
import { type Namespace, ping, type RunningCommand, waitFor } from '../../cli/lab.js';
import { linkOf, linksOf, live, Mesh, type NodeFile, overlayAddress, shared } from '../support/live.js';

const mesh = shared(() => Mesh.up({ hosts: 3 }));

/** The file of host 1 with changes. */
function fileWith({ peers = [2, 3], endpoints = [], network = {}, underlay = {} }: Change = {}): NodeFile {
  const file = mesh().fileOf(1);
  return {
    ...file,
    underlay: { ...file.underlay, ...underlay },
    networks: [{ ...file.networks[0], peers: peers.map((n) => `192.168.50.${n}`), ...network }],
    endpoints: [...file.endpoints, ...endpoints],
  };
}

interface Change {
  peers?: readonly number[];
  endpoints?: Record<string, unknown>[];
  network?: Record<string, unknown>;
  underlay?: Record<string, unknown>;
}

/** Pings a hundred times a second until `quiet` is called, which returns how many packets were lost. */
async function flow(from: Namespace, to: string): Promise<() => Promise<number>> {
  t0(await ping(from, to, { count: 1, deadlineS: 5 }));
  const running: RunningCommand = from.start('ping', ['-n', '-i', '0.01', to]);
  await running.output(/icmp_seq=5 /);
  return async () => {
    const last = [...running.stdout.matchAll(/icmp_seq=(\d+) /g)].at(-1)![1];
    await running.output(new RegExp(`icmp_seq=${Number(last) + 20} `));
    const { stdout } = await running.stop('SIGINT');
    const sequences = [...stdout.matchAll(/icmp_seq=(\d+) /g)].map(([, n]) => Number(n));
    return Math.max(...sequences) - new Set(sequences).size;
  };
}

function t0({ received }: { received: number }): void {
  if (received === 0) throw new Error('the flow does not get through before the test');
}

live(
  'endpoints added, changed and removed, MTU changed, a peer added: the other flow loses nothing',
  async (t) => {
    const { containers, engines, lab } = mesh();
    const [first, second, third] = containers;
    await engines[0].change(fileWith({ peers: [2] }));
    const quiet = await flow(first, overlayAddress(2));

    const extra = lab.host('extra');
    const endpoint = mesh().endpointOf(8, extra.name);
    await engines[0].change(fileWith({ peers: [2], endpoints: [endpoint] }));
    t.deepEqual(linksOf(extra), ['eth0']);
    t.true(
      (await ping(extra, overlayAddress(1), { count: 2, deadlineS: 10 })).received >= 2,
      'on the same host',
    );
    t.true((await ping(second, overlayAddress(8), { count: 2, deadlineS: 5 })).received >= 2, 'from another');

    const index = linkOf(extra, 'eth0')?.ifindex;
    const moved = { ...endpoint, address: '10.0.9.18/24', mac: '02:42:0a:00:09:99' };
    await engines[0].change(fileWith({ peers: [2], endpoints: [moved], network: { mtu: 1400 } }));
    const link = linkOf(extra, 'eth0');
    t.is(link?.ifindex, index, 'the interface is the same');
    t.is(link?.mtu, 1400);
    t.is(link?.address, '02:42:0a:00:09:99');
    t.deepEqual(
      link?.addr_info
        .filter(({ scope, local }) => scope === 'global' && !local.includes(':'))
        .map(({ local }) => local),
      ['10.0.9.18'],
    );
    t.is(linkOf(first, 'eth0')?.mtu, 1400);
    t.true((await ping(second, '10.0.9.18', { count: 2, deadlineS: 5 })).received >= 2);

    third.ip('neigh', 'flush', 'all');
    await engines[0].change(fileWith({ endpoints: [moved] }));
    t.is(linkOf(first, 'eth0')?.mtu, 1450);
    t.true((await ping(extra, overlayAddress(3), { count: 2, deadlineS: 5 })).received >= 2, 'the new peer');

    await engines[0].change(fileWith());
    t.deepEqual(linksOf(extra), []);
    t.false((await engines[0].fdb()).some(({ mac }) => mac === '02:42:0a:00:09:99'));
    t.is(await quiet(), 0, 'lost of the unchanged flow');
  },
);

live('a network added beside the other, and removed', async (t) => {
  const { engines, lab, containers } = mesh();
  const quiet = await flow(containers[0], overlayAddress(2));
  const one = lab.host('net2a');
  const two = lab.host('net2b');
  const network = { name: 'green', vni: 77, subnet: '10.0.9.0/24' };
  const file = (n: number, peer: number, netns: string): NodeFile => {
    const base = mesh().fileOf(n);
    return {
      ...base,
      networks: [...base.networks, { ...network, peers: [`192.168.50.${peer}`] }],
      endpoints: [
        ...base.endpoints,
        { name: 'g', network: 'green', netns, interface: 'eth0', address: `10.0.9.${n}/24` },
      ],
    };
  };
  await engines[0].change(file(1, 2, one.name));
  await engines[1].change(file(2, 1, two.name));
  t.true((await ping(one, '10.0.9.2', { count: 3, deadlineS: 5 })).received >= 3);
  await engines[0].change(mesh().fileOf(1));
  const dropped = await engines[0].watchDrops();
  t.is((await ping(two, '10.0.9.1', { count: 1 })).received, 0);
  t.true((await dropped())['vxlan-decap unknown-vni'] > 0);
  await engines[1].change(mesh().fileOf(2));
  t.is(await quiet(), 0);
});

/** Writes a file that is to be refused, and checks that nothing changes. */
async function refused(t: ExecutionContext, file: NodeFile | string, expected: RegExp): Promise<void> {
  const { engines, containers } = mesh();
  const quiet = await flow(containers[0], overlayAddress(2));
  const status = await engines[0].status();
  const link = linkOf(containers[0], 'eth0');
  engines[0].write(file);
  const answer = await engines[0].reload();
  t.regex(answer, /^not reloaded, nothing changed/m);
  t.regex(answer, expected);
  const after = await engines[0].status();
  t.deepEqual(
    after.networks.map(({ stations: _, ...same }) => same),
    status.networks.map(({ stations: _, ...same }) => same),
  );
  t.deepEqual(
    after.endpoints.map(({ counters: _, ...same }) => same),
    status.endpoints.map(({ counters: _, ...same }) => same),
  );
  t.deepEqual(linkOf(containers[0], 'eth0'), link);
  t.is(await quiet(), 0);
  await engines[0].change(mesh().fileOf(1));
}

live('a bad file changes nothing, and the message names file, line and column', async (t) => {
  const { engines } = mesh();
  const text = readFileSync(engines[0].file, 'utf8').replace('"vni": 42', '"vni": 99999999');
  const line = text.split('\n').findIndex((each) => each.includes('99999999')) + 1;
  const column = text.split('\n')[line - 1].indexOf('99999999') + 1;
  await refused(t, text, new RegExp(`${engines[0].file}:${line}:${column}: .*16777215`));
  await refused(t, 'node: [', new RegExp(`${engines[0].file}:1:`));
});

live('what cannot change while the engine runs is refused, with the remedy', async (t) => {
  await refused(
    t,
    fileWith({ underlay: { address: 'fd50::1' }, network: { peers: [] } }),
    /yaml:\d+:\d+: underlay\.address cannot change while the engine runs.*restart weft up/,
  );
  await refused(t, fileWith({ underlay: { port: 4790 } }), /yaml:\d+:\d+: underlay\.port cannot change/);
});

live(
  'an endpoint that cannot be made changes nothing, and undoes those that were made before it',
  async (t) => {
    const { lab } = mesh();
    const good = lab.host('good');
    const taken = lab.host('taken');
    taken.ip('link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', 'other');
    const endpoints = [mesh().endpointOf(8, good.name), mesh().endpointOf(9, taken.name)];
    await refused(t, fileWith({ endpoints }), /yaml:\d+:\d+: .*eth0/);
    t.deepEqual(linksOf(good), []);
    t.deepEqual(linksOf(taken).sort(), ['eth0', 'other']);
    await refused(
      t,
      fileWith({ endpoints: [mesh().endpointOf(8, 'no_such_netns')] }),
      /no_such_netns does not exist/,
    );
  },
);

live('a reload that fails in the data plane is undone, and the next one is not hindered', async (t) => {
  const rig = await Mesh.up({ hosts: 1, underlay: { mode: 'socket' }, file: { workers: 2 } });
  try {
    const { engines, containers, lab } = rig;
    const [engine] = engines;
    const [other, fresh] = ['other', 'fresh'].map((label) => lab.host(label));
    const endpoints = [other, fresh].map(({ name }, i) => rig.endpointOf(8 + i, name));
    /** Peers of which there is room for those of one file, but not for two. */
    const fileWithPeers = (net: number, ...added: Record<string, unknown>[]): NodeFile => {
      const file = rig.fileOf(1);
      const peers = Array.from({ length: 2100 }, (_, i) => `10.${net}.${1 + (i >> 7)}.${1 + (i & 127)}`);
      const green = { name: 'green', vni: 43, subnet: '10.0.10.0/24', peers: [] };
      return {
        ...file,
        networks: [{ ...file.networks[0], peers }, green],
        endpoints: [...file.endpoints, ...added],
      };
    };
    const reaches = async (to: number): Promise<void> => {
      t.true((await ping(containers[0], overlayAddress(to), { count: 2, deadlineS: 5 })).received >= 2);
    };
    await engine.change(fileWithPeers(1, endpoints[0]));
    await reaches(8);
    const before = await engine.status();
    const known = await engine.fdb();

    // The endpoint that goes has gone, and the one that comes has not come, when the peers are found to be too many.
    engine.write(fileWithPeers(2, endpoints[1]));
    const answer = await engine.reload();
    t.regex(answer, /^not reloaded: more than 4096 VTEPs, those that go included: take them away first$/m);
    t.regex(answer, /^all is as it was before, but for connections that this file would have ended$/m);
    t.deepEqual(linksOf(fresh), []);
    await reaches(8);
    const after = await engine.status();
    t.deepEqual(after.networks, before.networks);
    t.deepEqual(
      after.endpoints.map(({ name, state }) => [name, state]),
      [
        ['c1', 'forwarding'],
        ['c8', 'forwarding'],
      ],
    );
    t.deepEqual(
      (await engine.fdb()).filter((row) => row.static),
      known.filter((row) => row.static),
    );

    await engine.change(fileWithPeers(1, ...endpoints));
    await reaches(8);
    await reaches(9);
    const swapped = fileWithPeers(1, ...endpoints);
    const [blue, green] = swapped.networks;
    await engine.change({
      ...swapped,
      networks: [
        { ...blue, vni: 43 },
        { ...green, vni: 42 },
      ],
    });
    t.deepEqual(
      (await engine.status()).networks.map(({ name, vni }) => [name, vni]),
      [
        ['blue', 43],
        ['green', 42],
      ],
    );
    await reaches(9);
  } finally {
    rig.close();
  }
});

/** Seconds of processor time that a process took during one second. */
async function busy(pid: number): Promise<number> {
  const ticks = (): number => {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return Number(fields[11]) + Number(fields[12]);
  };
  const before = ticks();
  await delay(1000);
  return (ticks() - before) / 100;
}

live('an interface deleted under the engine: the others go on, and SIGHUP brings it back', async (t) => {
  const { containers, engines, lab } = mesh();
  const victim = lab.host('victim');
  const file = fileWith({ endpoints: [mesh().endpointOf(8, victim.name)] });
  await engines[0].change(file);
  t.true((await ping(containers[1], overlayAddress(8), { count: 2, deadlineS: 5 })).received >= 2);
  const quiet = await flow(containers[0], overlayAddress(2));
  victim.ip('link', 'del', 'eth0');
  await isLost(t);
  t.true((await busy(engines[0].pid)) < 0.5, 'the engine does not spin');
  t.is(await quiet(), 0);
  await engines[0].change(file);
  t.true((await ping(containers[1], overlayAddress(8), { count: 2, deadlineS: 5 })).received >= 2);
  await engines[0].change(fileWith());
  t.deepEqual(linksOf(victim), []);
});

live('a namespace deleted under the engine: the others go on, and SIGHUP brings it back', async (t) => {
  const { containers, engines, lab } = mesh();
  const victim = lab.host('passing');
  const file = fileWith({ endpoints: [mesh().endpointOf(8, victim.name)] });
  await engines[0].change(file);
  t.true((await ping(containers[1], overlayAddress(8), { count: 2, deadlineS: 5 })).received >= 2);
  const quiet = await flow(containers[0], overlayAddress(2));
  await lab.namespaces[0].run('ip', ['netns', 'del', victim.name]);
  await isLost(t);
  t.true((await busy(engines[0].pid)) < 0.5, 'the engine does not spin');
  t.is(await quiet(), 0);
  await lab.namespaces[0].run('ip', ['netns', 'add', victim.name]);
  await engines[0].change(file);
  t.true((await ping(containers[1], overlayAddress(8), { count: 2, deadlineS: 5 })).received >= 2);
  t.deepEqual(
    (await engines[0].status()).endpoints.map(({ state }) => state),
    ['forwarding', 'forwarding'],
  );
  await engines[0].change(fileWith());
  t.deepEqual(linksOf(victim), []);
});

async function isLost(t: ExecutionContext): Promise<void> {
  const engine = mesh().engines[0];
  await waitFor(
    async () =>
      (await engine.status()).endpoints.some(({ name, state }) => name === 'c8' && state === 'lost'),
    { what: 'status to say lost' },
  );
  t.regex(engine.running!.stderr, /endpoint c8: its interface is gone/);
}
