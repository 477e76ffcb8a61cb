/** `weft demo`: everything Weft does so far, shown and measured in half a minute on one machine. */
import { constants } from 'node:os';
import { type Command, InvalidArgumentError } from 'commander';
import type { DemoReport } from '../demo/demo.js';
import type { Measures } from '../demo/measure.js';
import type { Heard } from '../demo/wire.js';
import { CommandError, printJson, printTable, say } from '../output.js';

interface Flags {
  readonly json?: true;
  readonly seconds: number;
}

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

export function register(program: Command): void {
  program
    .command('demo')
    .description('two hosts in namespaces: containers talk over Weft, over Weft and the kernel, and figures')
    .option('--seconds <s>', 'duration of each TCP measurement', seconds, 2)
    .option('--json', 'print one JSON object')
    .action(demo);
}

function seconds(text: string): number {
  const value = Number(text);
  if (!/^[0-9]+$/.test(text) || value < 1 || value > 60)
    throw new InvalidArgumentError('Write a whole number of seconds from 1 to 60.');
  return value;
}

async function demo(flags: Flags): Promise<void> {
  const reason = await unavailable();
  if (reason !== undefined) throw new CommandError(`the demo cannot run here: ${reason}`);
  const { Demo, STEPS } = await import('../demo/demo.js');
  const { Progress } = await import('../demo/progress.js');
  const progress = new Progress(STEPS);
  for (const signal of SIGNALS) {
    process.once(signal, () => {
      progress.clear();
      say(`${signal}: the demo stops here`);
      process.exit(128 + constants.signals[signal]);
    });
  }
  let report: DemoReport;
  const running = new Demo(progress, flags.seconds);
  try {
    report = await running.run();
  } catch (error) {
    throw new CommandError((error as Error).message);
  } finally {
    progress.clear();
    running.close();
  }
  if (flags.json) printJson(report);
  else print(report);
}

/** Why there can be no demo here, with the remedy. */
async function unavailable(): Promise<string | undefined> {
  const { existsSync } = await import('node:fs');
  const { Lab, toolEnvironment } = await import('../lab.js');
  const reason = Lab.unavailable();
  if (reason !== undefined) return reason;
  if (!existsSync('/dev/net/tun'))
    return 'there is no /dev/net/tun; load it with "modprobe tun", or give this container the device (docker run --device /dev/net/tun)';
  const directories = (toolEnvironment()['PATH'] ?? '').split(':');
  for (const [tool, debian] of [
    ['ping', 'iputils-ping'],
    ['iperf3', 'iperf3'],
  ] as const) {
    if (!directories.some((directory) => existsSync(`${directory}/${tool}`)))
      return `it needs ${tool}; install it with "apt-get install ${debian}"`;
  }
  return undefined;
}

/** A figure with three significant digits: 0.0123, 4.56, 12.3, 456. */
function short(value: number): string {
  return value >= 100 ? String(Math.round(value)) : String(Number(value.toPrecision(3)));
}

const pings = ({ ping }: Pick<Measures, 'ping'>): string =>
  `${ping.received} of ${ping.sent}, ${Number(ping.rttAvgMs.toPrecision(2))} ms`;
const gigabits = ({ tcp }: Pick<Measures, 'tcp'>): string => `${short(tcp.bitsPerSecond / 1e9)} Gb/s`;

const cells: readonly { title: string; cell: (measures: Measures) => string }[] = [
  { title: 'ping c1 → c2', cell: pings },
  { title: 'TCP c1 → c2', cell: gigabits },
  {
    title: 'UDP c1 → c2',
    cell: ({ udp }) => `${short(udp.packetsPerSecond / 1e3)} k/s, ${short(udp.lostPercent)} % lost`,
  },
  { title: 'broadcast of c1', cell: ({ broadcast }) => `${broadcast.seen} of ${broadcast.sent} seen by c2` },
];

const HEARD = `VXLAN, ESP, KEYS (their exchange) and OTHER are packets on the wire to host B, where the kernel counts a super-frame
once; MARKS READ are pings of c1 in which a mark could be read there.`;

/** Packets by kind, and marks that could be read; dashes where nobody listened. */
function heardCells(heard: Heard | undefined): string[] {
  if (!heard) return ['-', '-', '-', '-', '-'];
  const { vxlan, esp, keys, other, marked, read } = heard;
  return [...[vxlan, esp, keys, other].map(String), `${read} of ${marked}`];
}

const counted = (counts: Readonly<Record<string, number>>): string =>
  Object.entries(counts)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, count]) => `${count} by ${name}`)
    .join(', ');

function print({ stages, outside, encryption, engines, replay, seconds: total }: DemoReport): void {
  const out = (line: string): void => {
    process.stdout.write(`${line}\n`);
  };
  out('Two hosts, a container on each: c1 10.0.9.1 on host A, c2 10.0.9.2 on host B, in VXLAN 42.');
  out('');
  printTable(
    [{ title: '' }, { title: 'WEFT – WEFT' }, { title: 'WEFT – KERNEL' }, { title: 'KERNEL – KERNEL' }],
    cells.map(({ title, cell }) => [title, cell(stages.weft), cell(stages.mixed), cell(stages.kernel)]),
  );
  out('');
  printTable(
    [{ title: 'FROM' }, { title: 'TO' }, { title: 'BY' }, { title: 'ANSWERED' }, { title: 'SEEN AS' }],
    outside.map(({ from, to, via, answered, seen }) => [from, to, via, counted(answered), seen.join(', ')]),
  );
  out('');
  const { heard, deaf } = encryption;
  printTable(
    [
      { title: 'WEFT – WEFT' },
      { title: 'PING' },
      { title: 'TCP' },
      { title: 'VXLAN', align: 'right' },
      { title: 'ESP', align: 'right' },
      { title: 'KEYS', align: 'right' },
      { title: 'OTHER', align: 'right' },
      { title: 'MARKS READ' },
    ],
    [
      ['plain', pings(stages.weft), gigabits(stages.weft), ...heardCells(heard?.plain)],
      ['encrypted', pings(encryption), gigabits(encryption), ...heardCells(heard?.encrypted)],
    ],
  );
  out('');
  printTable(
    [
      { title: 'ENGINE' },
      { title: 'UNDERLAY' },
      { title: 'VXLAN SENT', align: 'right' },
      { title: 'VXLAN RECEIVED', align: 'right' },
      { title: 'FRAMES DROPPED' },
    ],
    engines.map(({ node, path, vxlanSent, vxlanReceived, drops }) => [
      node,
      path,
      String(vxlanSent),
      String(vxlanReceived),
      dropped(drops),
    ]),
  );
  out('');
  printTable(
    [
      { title: 'REPLAY' },
      { title: 'THROUGH' },
      { title: 'FRAMES', align: 'right' },
      { title: 'MPPS', align: 'right' },
      { title: 'NS/FRAME', align: 'right' },
      { title: 'DROPPED' },
    ],
    [
      [
        replay.file,
        replay.through,
        String(replay.frames),
        short(replay.mpps),
        short(replay.nsPerFrame),
        dropped(replay.drops),
      ],
    ],
  );
  say(`
KERNEL is Linux's own bridge and vxlan on that host. UDP is 1400-byte datagrams, 200 Mb/s offered.
${deaf === undefined ? HEARD : `Nobody could listen on the wire: ${deaf}`}
WORLD is 192.168.60.9, outside of the overlay; SEEN AS is the address that servers saw. c1 sees itself as the service's.
It took ${total.toFixed(0)} s; namespaces, processes and files are gone again.

Next:
  docs/overlay.md    the same two hosts by hand, with "weft up -c examples/two-hosts-hostA.yaml"
  docs/gateway.md    out to the world, and ports that are reached from it
  docs/services.md   several containers behind one address
  docs/encryption.md the same, encrypted, and what that protects
  docs/replay.md     your own captures: "weft replay FILE --through ${replay.through}"
  README.md          what works and what does not yet; CONTRIBUTING.md, how the code is laid out
weft is "node dist/cli/main.js" here.`);
}

function dropped(drops: Record<string, number>): string {
  const rows = Object.entries(drops);
  return rows.length === 0 ? 'none' : rows.map(([reason, count]) => `${count} (${reason})`).join(', ');
}
