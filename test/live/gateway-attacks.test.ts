/** Attacks on an uplink while its users go on: memory stays what it is, and what was refused is counted by reason. */
import { closeSync, openSync, readFileSync } from 'node:fs';
import type { ExecutionContext } from 'ava';
import { iperf3, type RunningCommand, waitFor } from '../../cli/lab.js';
import type { ConntrackList } from '../../control/conntrack.js';
import { type Attack, attack, attacksMissing } from '../support/attacks.js';
import {
  FAR_ADDRESS,
  FAR_ADDRESS6,
  GatewayRig,
  NEAR_ADDRESS,
  UPLINK_ADDRESS,
  UPLINK_ADDRESS6,
} from '../support/gateway.js';
import { live, shared } from '../support/live.js';
import { curl, listening, Nginx, nginxMissing } from '../support/servers.js';

const NEEDS = { tools: ['socat', 'curl'], skip: attacksMissing() ?? nginxMissing() };
const MAX_FLOWS = 4096;
const ECHO = 7007;
/** MAC of the uplink: 02:42 and its address. */
const STATION = '02:42:c0:a8:3c:0a';

const rig = shared(() =>
  GatewayRig.up({
    ipv6: true,
    file: {
      nat: { max_flows: MAX_FLOWS },
      publish: [
        { endpoint: 'c1', protocol: 'tcp', port: 8080, target: 80 },
        { endpoint: 'c2', protocol: 'tcp', port: 8007, target: ECHO },
        { endpoint: 'c1', protocol: 'udp', port: 5353, target: 53 },
      ],
    },
  }),
);

const onUplink = { device: 'in0', station: STATION, target: UPLINK_ADDRESS } as const;
const strike = (what: Pick<Attack, 'kind'> & Partial<Attack>): Promise<void> =>
  attack(rig().near, { ...onUplink, ...what });

async function conntrack(...args: string[]): Promise<ConntrackList> {
  const { stdout } = await rig().engine1.cli('conntrack', ...args, '--json');
  return JSON.parse(stdout) as ConntrackList;
}

const stats = (): Promise<ConntrackList> => conntrack('stats');
const listed = (): Promise<ConntrackList> =>
  conntrack('ls', '--protocol', 'tcp', '--limit', String(MAX_FLOWS));

/** Connections that were before the attack: out and in, which say what they are told to, and hear it back. */
class Witnesses {
  private said = 0;
  private constructor(private readonly talkers: readonly RunningCommand[]) {}

  static async begin(): Promise<Witnesses> {
    const { c1, c2, far } = rig();
    for (const server of [far, c2]) {
      server.start('socat', [`TCP6-LISTEN:${ECHO},reuseaddr,fork,ipv6only=0`, 'EXEC:cat']);
      await listening(server, 'tcp', ECHO);
    }
    const stdio = { stdio: ['pipe', 'pipe', 'pipe'] } as const;
    const made = new Witnesses([
      c1.start('socat', ['-', `TCP:${FAR_ADDRESS}:${ECHO}`], { stdio: [...stdio.stdio] }),
      c1.start('socat', ['-', `TCP:[${FAR_ADDRESS6}]:${ECHO}`], { stdio: [...stdio.stdio] }),
      far.start('socat', ['-', `TCP:[${UPLINK_ADDRESS6}]:8007`], { stdio: [...stdio.stdio] }),
      far.start('socat', ['-', `TCP:${UPLINK_ADDRESS}:8007`], { stdio: [...stdio.stdio] }),
    ]);
    await made.talk();
    return made;
  }

  async talk(): Promise<void> {
    const word = `word ${++this.said}`;
    for (const { child } of this.talkers) child.stdin!.write(`${word}\n`);
    for (const talker of this.talkers) await talker.output(new RegExp(`^${word}$`, 'm'));
  }

  async end(): Promise<void> {
    for (const talker of this.talkers) await talker.stop();
  }
}

let witnesses: Witnesses | undefined;
const talking = async (): Promise<Witnesses> => (witnesses ??= await Witnesses.begin());

/** Runs an attack while a file comes in by a published port and another goes out. @returns what was dropped. */
async function under(
  t: ExecutionContext,
  ...attacks: (() => Promise<void>)[]
): Promise<Record<string, number>> {
  const { c1, far, engine1, directory } = rig();
  const all = await talking();
  const drops = await engine1.watchDrops();
  const web = [
    await Nginx.start(rig(), c1, { files: directory }),
    await Nginx.start(rig(), far, { files: directory }),
  ];
  const file = `${directory}/file`;
  await far.run('dd', ['if=/dev/urandom', `of=${file}`, 'bs=1M', 'count=12']);
  const wanted = readFileSync(file);
  // Slow enough to last: they begin before the attack and end after.
  const transfers = [
    curl(far, '--limit-rate', '8M', '-o', `${directory}/in`, `http://${UPLINK_ADDRESS}:8080/files/file`),
    curl(c1, '--limit-rate', '8M', '-o', `${directory}/out`, `http://${FAR_ADDRESS}/files/file`),
  ];
  for (const each of attacks) await each();
  await all.talk();
  await Promise.all(transfers);
  for (const name of ['in', 'out']) t.true(wanted.equals(readFileSync(`${directory}/${name}`)), name);
  const { tracked, maxFlows } = await stats();
  t.is(maxFlows, MAX_FLOWS);
  t.true(tracked <= MAX_FLOWS, `${tracked} flows`);
  for (const { running } of web) await running.stop();
  return drops();
}

live(
  'a flood of SYNs to a published port: those who are connected go on, and others still get in',
  async (t) => {
    const { far, engine1 } = rig();
    const before = (await stats()).counters['flows-evicted'];
    const grown = await under(t, () => strike({ kind: 'syn', port: 8080, count: 16_000 }));
    const evicted = (await stats()).counters['flows-evicted'] - before;
    // Who only began makes room for whoever begins; what the engine is too slow for is counted at its door.
    t.true(
      evicted + (grown['nat table-full'] ?? 0) + (grown['uplink out queue-full'] ?? 0) > 10_000,
      `${evicted} ${JSON.stringify(grown)}`,
    );
    const web = await Nginx.start(rig(), rig().c1);
    t.is(await curl(far, `http://${UPLINK_ADDRESS}:8080/`), 'c1\n', JSON.stringify(await engine1.drops()));
    await web.running.stop();
    t.log(`${evicted} evicted, ${JSON.stringify(grown)}`);
  },
  NEEDS,
);

live(
  'a flood of SYNs of IPv6 from stations that are not there: neighbours that are stay known',
  async (t) => {
    const { far, near, engine1 } = rig();
    const grown = await under(t, () =>
      strike({ kind: 'syn6', source: 'fd00:60::', target: UPLINK_ADDRESS6, port: 8080, count: 12_000 }),
    );
    t.log(JSON.stringify(grown));
    const web = await Nginx.start(rig(), rig().c1);
    for (const from of [far, near])
      t.is(
        await curl(from, `http://[${UPLINK_ADDRESS6}]:8080/`),
        'c1\n',
        JSON.stringify(await engine1.drops()),
      );
    await web.running.stop();
  },
  NEEDS,
);

live(
  'a flood of datagrams from as many sources: no memory is taken for it, and what is not published is counted',
  async (t) => {
    const { engine1 } = rig();
    const resident = (): number =>
      Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${engine1.pid}/status`, 'utf8'))![1]);
    const flood = (): Promise<void> => strike({ kind: 'udp', port: 5353, count: 50_000 });
    await flood();
    const before = resident();
    const grown = await under(t, flood, flood);
    t.true(grown['nat not-published'] > 50_000, JSON.stringify(grown));
    // KiB; 32 MiB is what V8 may take and give back, and 335 bytes for each datagram.
    t.true(resident() - before < 32_768, `${before} KiB, then ${resident()} KiB`);
    t.log(`${before} KiB, then ${resident()} KiB; ${JSON.stringify(grown)}`);
  },
  NEEDS,
);

live(
  'a scan of all ports finds those that are published',
  async (t) => {
    const { near } = rig();
    // Answers to SYNs: SYN and ACK, or RST.
    const file = `${rig().directory}/answers`;
    const fd = openSync(file, 'w');
    const capture = near.start(
      'tcpdump',
      ['-i', 'in0', '-n', '-l', '-Q', 'in', `tcp and src ${UPLINK_ADDRESS} and dst ${NEAR_ADDRESS}`],
      { stdio: ['ignore', fd, 'pipe'] },
    );
    await capture.output(/listening on/, { stream: 'stderr' });
    const grown = await under(t, () => strike({ kind: 'scan', source: NEAR_ADDRESS }));
    t.true(grown['nat not-published'] > 60_000, JSON.stringify(grown));
    await capture.stop();
    closeSync(fd);
    const ports = [...readFileSync(file, 'utf8').matchAll(/192\.168\.60\.10\.(\d+) > /g)].map(
      ([, port]) => port,
    );
    t.deepEqual([...new Set(ports)].sort(), ['8007', '8080']);
    t.log(JSON.stringify(grown));
  },
  { ...NEEDS, tools: [...NEEDS.tools, 'tcpdump'] },
);

live(
  'fragments without end, over one another and too long disturb nobody; those without a beginning are counted',
  async (t) => {
    const { c2, engine1 } = rig();
    const drops = await engine1.watchDrops();
    await under(t, () => strike({ kind: 'fragments', source: FAR_ADDRESS, port: 5353, count: 2000 }));
    // The last ones still wait for their beginning.
    const dropped = async (): Promise<number> => (await drops())['nat fragment'] ?? 0;
    await waitFor(async () => (await dropped()) > 1800, {
      what: 'fragments dropped',
      timeoutMs: 20_000,
    });
    // Those of others still find one another; c1's own kernel is busy with those it got, as any server's would be.
    const { stdout } = await c2.exec('ping', ['-n', '-c', '5', '-i', '0.2', '-s', '4000', FAR_ADDRESS]);
    t.regex(stdout, /, 5 received/, JSON.stringify(await engine1.drops()));
  },
  NEEDS,
);

live(
  'forged resets and ICMP errors end no connection',
  async (t) => {
    const { c1, far } = rig();
    await talking();
    const { flows } = await listed();
    const found = flows.find(({ remote }) => remote === `${FAR_ADDRESS}:${ECHO}`)!;
    const port = Number(found.outside.split(':')[1]);
    const forged = { source: FAR_ADDRESS, remotePort: ECHO, port, count: 1000 };
    const transfer = iperf3(c1, far, FAR_ADDRESS, { seconds: 3, reverse: true });
    const grown = await under(
      t,
      () => strike({ kind: 'rst', ...forged }),
      () => strike({ kind: 'icmp', ...forged }),
    );
    t.true(grown['nat icmp-no-flow'] > 300, JSON.stringify(grown));
    t.true((await transfer).bitsPerSecond > 1e7);
    const after = (await listed()).flows.find(
      ({ outside, remote }) => outside === found.outside && remote === found.remote,
    );
    t.is(after?.state, 'established');
    t.log(JSON.stringify(grown));
  },
  NEEDS,
);

live(
  'after all of it the connections that were there before still are',
  async (t) => {
    await t.notThrowsAsync(async () => (await talking()).talk());
    await (await talking()).end();
  },
  NEEDS,
);
