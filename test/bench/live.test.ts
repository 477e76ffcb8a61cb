/** The live benchmark: its arithmetic, its table and chart, and one tiny round of the real thing. */
import { existsSync, readdirSync } from 'node:fs';
import test from 'ava';
import { selectContenders } from '../../bench/live/contenders.js';
import { MEASUREMENTS, machineTicks, roundTrips, udpArrived } from '../../bench/live/measure.js';
import { type ContenderReport, type LiveReport, runLive } from '../../bench/live/run.js';
import { percentile, rotated, short, summarise } from '../../bench/live/statistics.js';
import { chart } from '../../bench/live/svg.js';
import { tableRows } from '../../bench/live/table.js';
import { reached } from '../../bench/live/targets.js';
import { CommandError } from '../../cli/output.js';
import { live } from '../support/live.js';

test('a percentile is the nearest rank of all values, whatever their order', (t) => {
  const values = Array.from({ length: 200 }, (_, i) => 200 - i);
  t.is(percentile(values, 50), 100);
  t.is(percentile(values, 99), 198);
  t.is(percentile(values, 100), 200);
  t.is(percentile(values, 0), 1);
  t.is(percentile([7], 99), 7);
  t.is(values[0], 200, 'the values stay as they were');
  t.throws(() => percentile([], 50), { instanceOf: RangeError });
  t.throws(() => percentile([1], 101), { instanceOf: RangeError });
});

test('a summary has the median, the spread and the rounds in their order', (t) => {
  t.deepEqual(summarise([3, 10, 2]), { median: 3, min: 2, max: 10, samples: [3, 10, 2] });
  t.is(summarise([4, 1, 2, 10]).median, 3);
  t.throws(() => summarise([]), { instanceOf: RangeError });
});

test('rotation gives everybody every place once', (t) => {
  const names = ['a', 'b', 'c'];
  t.deepEqual(
    [0, 1, 2, 3].map((by) => rotated(names, by).join('')),
    ['abc', 'bca', 'cab', 'abc'],
  );
  t.deepEqual(rotated([], 2), []);
});

test('figures have three digits and no exponent', (t) => {
  t.deepEqual([0.012345, 4.5678, 12.34, 456.7, 123456, 0, Number.NaN].map(short), [
    ...['0.0123', '4.57', '12.3', '457', '123456', '0', '–'],
  ]);
});

test('every reply of ping counts, and nothing else it prints', (t) => {
  const output = `PING 10.0.9.2 (10.0.9.2) 56(84) bytes of data.
64 bytes from 10.0.9.2: icmp_seq=1 ttl=64 time=0.045 ms
64 bytes from 10.0.9.2: icmp_seq=2 ttl=64 time=12.3 ms
64 bytes from 10.0.9.2: icmp_seq=2 ttl=64 time=104 ms (DUP!)

--- 10.0.9.2 ping statistics ---
2 packets transmitted, 2 received, 0% packet loss, time 2ms
rtt min/avg/max/mdev = 0.045/6.172/12.300/6.127 ms
`;
  t.deepEqual(
    roundTrips(output).map((time) => Math.round(time)),
    [45, 12300],
  );
});

test('busy time of the machine leaves out idle, waiting and stolen time', (t) => {
  t.is(machineTicks('cpu  1 20 300 4000 50000 600000 7000000 80000000 9 9\ncpu0 5 5\n'), 7600321);
});

test('datagrams that found the socket full have arrived too', (t) => {
  const text = `Tcp: InErrs OutRsts
Tcp: 5 6
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors
Udp: 100 7 30 900 30
UdpLite: InDatagrams InErrors
UdpLite: 1 2
`;
  t.is(udpArrived(text), 130);
});

const figure = (median: number, ratios: { toKernel?: number; toLoop?: number } = {}) => ({
  ...summarise([median * 0.9, median, median * 1.25]),
  ...ratios,
});

const CONTENDERS: readonly ContenderReport[] = [
  {
    name: 'weft-uplink',
    title: 'Weft & <uplink>',
    role: 'weft',
    failures: [],
    figures: {
      'tcp1-ab': figure(8, { toKernel: 0.8, toLoop: 0.5 }),
      'rtt-idle-p50': figure(30, { toKernel: 1.2 }),
      'udp64-lost': figure(1),
    },
  },
  {
    name: 'kernel',
    title: 'Linux',
    role: 'kernel',
    failures: [],
    figures: { 'tcp1-ab': figure(10, { toKernel: 1 }), 'rtt-idle-p50': figure(25, { toKernel: 1 }) },
  },
  { name: 'ovs', title: 'Open vSwitch', role: 'other', skipped: 'not here', failures: [], figures: {} },
];

const REPORT: LiveReport = {
  schemaVersion: 1,
  environment: {
    date: '2026-01-01T00:00:00.000Z',
    kernel: '6.18',
    cpu: 'Some CPU',
    processors: 2,
    node: 'v20',
    congestionControl: 'cubic',
    iperf3: 'iperf 3',
    openVswitch: undefined,
    wireguardGo: undefined,
    nebula: undefined,
    load: 0,
  },
  rounds: 3,
  seconds: 3,
  underlay: 'IPv4',
  topologies: [{ topology: 'two-hosts', title: 'Two hosts', contenders: CONTENDERS, targets: [] }],
};

test('the table has a row for each figure, named once, with spread and ratios', (t) => {
  t.deepEqual(tableRows({ contenders: CONTENDERS }), [
    ['TCP, 1 stream, A → B, Gb/s', 'Weft & <uplink>', '8', '7.2–10', '0.80', '0.50'],
    ['', 'Linux', '10', '9–12.5', '1.00', ''],
    ['UDP 64 B lost, %', 'Weft & <uplink>', '1', '0.9–1.25', '', ''],
    ['Round trip, idle, p50, µs', 'Weft & <uplink>', '30', '27–37.5', '1.20', ''],
    ['', 'Linux', '25', '22.5–31.3', '1.00', ''],
  ]);
});

test('the chart is sound XML with a bar for each figure, longest for the largest, and no background', (t) => {
  const svg = chart(REPORT);
  t.regex(svg, /^<svg xmlns="http:\/\/www\.w3\.org\/2000\/svg" viewBox="0 0 \d+ \d+"/);
  t.true(svg.endsWith('</svg>\n'));
  t.true(svg.includes('Weft &amp; &lt;uplink&gt;'));
  t.notRegex(svg, /NaN|Infinity|undefined|&(?!amp;|lt;|gt;|quot;)/);
  const bars = [...svg.matchAll(/<rect [^>]*width="([\d.]+)"[^>]*fill="(#[0-9a-f]{6})"/g)];
  t.is(bars.length, 4, 'losses have no bars');
  const widths = bars.map(([, width]) => Number(width));
  t.true(Math.abs(widths[0] / widths[1] - 8 / 10) < 0.01);
  t.true(Math.abs(widths[2] / widths[3] - 30 / 25) < 0.01);
  t.not(bars[0][2], bars[1][2], 'contenders differ in colour');
  // Every tag is closed: by itself, or by its end.
  const open = [...svg.matchAll(/<(\w+)[^>]*[^/]>/g)].map(([, name]) => name).sort();
  const closed = [...svg.matchAll(/<\/(\w+)>/g)].map(([, name]) => name).sort();
  t.deepEqual(open, closed);
});

test('in the chart every contender has a colour of its own, and the encrypted ones stand apart', (t) => {
  const [{ contenders: all }] = selectContenders(['two-hosts'], undefined);
  const contenders = all.map(
    ({ name, title, role, encrypted }): ContenderReport => ({
      ...{ name, title, role, failures: [], figures: { 'tcp1-ab': figure(1) } },
      ...(encrypted ? { encrypted } : {}),
    }),
  );
  const svg = chart({ ...REPORT, topologies: [{ ...REPORT.topologies[0], contenders }] });
  const bars = [...svg.matchAll(/<rect [^>]*y="([\d.]+)"[^>]*fill="(#[0-9a-f]{6})"/g)];
  t.is(bars.length, all.length);
  t.is(new Set(bars.map(([, , colour]) => colour)).size, all.length);
  const steps = bars.slice(1).map(([, y], i) => Number(y) - Number(bars[i][1]));
  const wider = steps.flatMap((step, i) => (step > Math.min(...steps) ? [all[i + 1].name] : []));
  t.deepEqual(wider, ['weft-encrypted-uplink']);
});

test('targets are reached or missed by the ratio of medians, and only where both sides were measured', (t) => {
  t.deepEqual(
    reached('two-hosts', CONTENDERS).map(({ text, ratio, reached }) => [text, ratio, reached]),
    [
      ['weft-uplink tcp1-ab ≥ 1 × kernel', 0.8, false],
      ['weft-uplink rtt-idle-p50 ≤ 1.3 × kernel', 1.2, true],
    ],
  );
});

const ENCRYPTED_WEFT = ['weft-encrypted-uplink', 'weft-encrypted-socket', 'weft-encrypted-esp'] as const;

test('encrypted contenders are compared with the plain kernel and with one another', (t) => {
  const measured = (name: string, gigabits: number): ContenderReport => ({
    ...{ name, title: name, role: name === 'kernel' ? 'kernel' : 'other', failures: [] },
    figures: { 'tcp1-ab': figure(gigabits) },
  });
  const ours = measured('weft-encrypted-uplink', 6);
  const others = [measured('kernel', 10), measured('wireguard-go', 0.5), measured('nebula', 0.75)];
  t.deepEqual(
    reached('two-hosts', [ours, ...others]).map(({ text, ratio, reached }) => [text, ratio, reached]),
    [
      ['weft-encrypted-uplink tcp1-ab ≥ 0.5 × kernel (aim: 0.8)', 0.6, true],
      ['weft-encrypted-uplink tcp1-ab ≥ 10 × wireguard-go', 12, true],
      ['weft-encrypted-uplink tcp1-ab ≥ 10 × nebula', 8, false],
    ],
  );
});

test('contenders are picked by name or by family, and an unknown one is refused with the list', (t) => {
  const names = (only?: string[]) =>
    selectContenders(['one-host', 'two-hosts'], only).map(({ topology, contenders }) => [
      topology,
      ...contenders.map(({ name }) => name),
    ]);
  t.deepEqual(names(['weft']), [
    ['one-host', 'weft'],
    ['two-hosts', 'weft-uplink', 'weft-socket', ...ENCRYPTED_WEFT],
  ]);
  t.deepEqual(names(['weft-encrypted']), [['two-hosts', ...ENCRYPTED_WEFT]]);
  t.deepEqual(names(['ovs', 'nebula']), [['two-hosts', 'ovs', 'nebula']]);
  t.is(names().flat().length, 15);
  t.throws(() => names(['vpp']), { instanceOf: CommandError, message: /no contender vpp.*weft-socket/ });
});

live(
  'one tiny round: Weft beside the C loop on one host',
  async (t) => {
    const report = await runLive({
      plan: selectContenders(['one-host'], ['weft', 'c-loop']),
      measurements: MEASUREMENTS.filter(({ name }) => name === 'tcp1-ab'),
      rounds: 1,
      seconds: 1,
      cold: true,
      ipv6: false,
      step: () => undefined,
    });
    const [{ contenders, targets }] = report.topologies;
    for (const { name, skipped, failures, figures } of contenders) {
      t.deepEqual([name, skipped, failures], [name, undefined, []]);
      t.deepEqual(Object.keys(figures).sort(), ['cpu-tcp1', 'engine-tcp1', 'tcp1-ab']);
      t.true(figures['tcp1-ab'].median > 0);
      t.true(figures['tcp1-ab'].toLoop! > 0);
    }
    t.is(targets.length, 1);
  },
  { tools: ['iperf3', 'ping', 'cc'] },
);

live(
  'one tiny round: wireguard-go and Nebula pass traffic, and leave nothing behind',
  async (t) => {
    const before = existsSync('/run/wireguard') ? readdirSync('/run/wireguard') : [];
    const report = await runLive({
      plan: selectContenders(['two-hosts'], ['wireguard-go', 'nebula']),
      measurements: MEASUREMENTS.filter(({ name }) => name === 'tcp1-ab'),
      rounds: 1,
      seconds: 1,
      cold: true,
      ipv6: false,
      step: () => undefined,
    });
    const [{ contenders }] = report.topologies;
    t.is(contenders.length, 2);
    for (const { name, skipped, failures, figures } of contenders) {
      t.deepEqual([name, skipped, failures], [name, undefined, []]);
      t.true(figures['tcp1-ab'].median > 0);
      t.true(figures['engine-tcp1'].median > 0, 'the daemons are found and did the work');
    }
    t.deepEqual(existsSync('/run/wireguard') ? readdirSync('/run/wireguard') : [], before);
  },
  { tools: ['iperf3', 'ping', 'wireguard-go', 'wg', 'nebula', 'nebula-cert', 'tcpdump'] },
);

live(
  'what the kernel sends between the hosts can be read, and is refused where it is said to be encrypted',
  async (t) => {
    const [{ contenders }] = selectContenders(['two-hosts'], ['kernel']);
    const report = await runLive({
      plan: [
        {
          topology: 'two-hosts',
          contenders: contenders.map((one) => ({ ...one, encrypted: true as const })),
        },
      ],
      measurements: [],
      rounds: 1,
      seconds: 1,
      cold: true,
      ipv6: false,
      step: () => undefined,
    });
    t.deepEqual(report.topologies[0].contenders[0].failures, [
      'round 1, building: what it sends can be read between the hosts',
    ]);
  },
  { tools: ['iperf3', 'ping', 'tcpdump'] },
);
