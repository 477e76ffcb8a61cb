/** `weft replay` as a user meets it: figures, exit codes, damage, the written capture, and tshark's opinion of it. */
import { execFileSync } from 'node:child_process';
import { linkSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { openCapture } from '../../control/capture-files.js';
import { OWN, own, packet, weft } from '../support/replay.js';

const CAPTURES = readdirSync(OWN).filter((name) => /\.pcap/.test(name));
const scratch = mkdtempSync(join(tmpdir(), 'weft-replay-'));
test.after.always(() => rmSync(scratch, { recursive: true }));

const temporary = (name: string): string => join(scratch, name);

test.serial('--json prints one object that accounts for every frame', async (t) => {
  const { code, stdout } = await weft(
    own('arp-ping.pcap'),
    own('tcp.pcap.gz'),
    '--through',
    'bridge,vxlan-encap',
    '--loop',
    '3',
    '--json',
  );
  t.is(code, 0);
  const report = JSON.parse(stdout);
  const files = [openCapture(own('arp-ping.pcap')), openCapture(own('tcp.pcap.gz'))];
  const count = files.reduce((sum, file) => sum + file.count, 0);
  t.is(report.schemaVersion, 1);
  t.is(report.frames, 3 * count);
  const dropped = Object.values<number>(report.drops).reduce((sum, drops) => sum + drops, 0);
  t.is(report.delivered + dropped, report.frames);
  t.is(report.delivered, report.frames);
  const bytes = files.reduce((sum, file) => sum + file.capturedLengths.reduce((a, b) => a + b, 0), 0);
  t.is(report.bytes, 3 * bytes);
  t.true(report.seconds > 0 && report.mpps > 0 && report.gbps > 0 && report.nsPerFrame > 0);
  t.true(Math.abs(report.mpps * report.nsPerFrame - 1000) < 1e-6);
  t.deepEqual(
    report.files.map(({ format, frames, skipped, problems }: Record<string, unknown>) => [
      format,
      frames,
      skipped,
      problems,
    ]),
    files.map((file) => [file.format, file.count, {}, []]),
  );
});

test.serial('without --json a table is printed, and talk goes elsewhere', async (t) => {
  const { code, stdout, stderr } = await weft(
    own('vlan-ping.pcap'),
    '--through',
    'vxlan-encap',
    '--inner-vlan',
    'discard',
  );
  t.is(code, 0);
  t.regex(stdout, /^delivered +0 +frames$/m);
  t.regex(stdout, /^dropped, vxlan-encap: inner-vlan +\d+ +frames$/m);
  t.regex(stderr, /too short/);
});

test.serial('VXLAN captures are taken apart whatever their VNI, or for one alone', async (t) => {
  const drops = async (...more: string[]): Promise<[number, Record<string, number>]> => {
    const { stdout } = await weft(own('underlay-ipv4.pcap'), '--through', 'vxlan-decap', '--json', ...more);
    const report = JSON.parse(stdout);
    return [report.frames - report.delivered, report.drops];
  };
  const [lost, reasons] = await drops();
  t.false('vxlan-decap: unknown-vni' in reasons);
  const [all, others] = await drops('--vni', '43');
  t.is(others['vxlan-decap: unknown-vni'], all - lost);
  t.true(all > lost);
  const [, ports] = await drops('--port', '8472');
  t.is(ports['vxlan-decap: not-vxlan-port'], all - lost);
});

test.serial(
  '--write keeps order and time, and says of every dropped frame who dropped it and why',
  async (t) => {
    const out = temporary('out.pcapng');
    const through = ['--through', 'vxlan-decap,bridge', '--vni', '42', '--loop', '2', '--json'];
    const input = openCapture(own('underlay-ipv4.pcap'));
    const { code, stdout } = await weft(
      own('underlay-ipv4.pcap'),
      own('arp-ping.pcap'),
      ...through,
      '--write',
      out,
    );
    t.is(code, 0);
    const report = JSON.parse(stdout);
    const other = openCapture(own('arp-ping.pcap'));
    const written = openCapture(out);
    t.is(written.count, input.count + other.count);
    t.is(report.frames, 2 * written.count);
    t.deepEqual(
      written.interfaces.map(({ name, linkType }) => [name, linkType]),
      [
        ['bridge', 1],
        ['dropped', 1],
      ],
    );
    for (let i = 0; i < written.count; i++) {
      const [from, at] = i < input.count ? [input, i] : [other, i - input.count];
      t.is(written.seconds[i], from.seconds[at]);
      t.is(written.nanoseconds[i], from.nanoseconds[at]);
    }
    const comments = execFileSync(
      'tshark',
      ['-r', out, '-Y', 'frame.interface_id == 1', '-T', 'fields', '-e', 'frame.comment'],
      {
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'ignore'],
      },
    );
    const lines = comments.trimEnd().split('\n');
    t.is(lines.length * 2, report.frames - report.delivered);
    const counted: Record<string, number> = {};
    for (const line of lines) {
      const reason = line.replace(/^dropped by /, '');
      counted[reason] = (counted[reason] ?? 0) + 2;
    }
    t.deepEqual(counted, report.drops);
  },
);

test.serial('a damaged file is replayed as far as it goes and reported with its offset', async (t) => {
  const whole = readFileSync(own('arp-ping.pcap'));
  const cut = temporary('cut.pcap');
  writeFileSync(cut, whole.subarray(0, whole.length - 7));
  const { code, stdout, stderr } = await weft(cut, '--through', 'bridge', '--json');
  t.is(code, 0);
  const [file] = JSON.parse(stdout).files;
  t.is(file.frames, openCapture(own('arp-ping.pcap')).count - 1);
  t.is(file.problems.length, 1);
  t.true(stderr.includes(`cut.pcap: at byte ${file.problems[0].offset}: `), stderr);
});

test.serial('an unreadable file fails the command, after the others were replayed', async (t) => {
  const both = await weft('/nowhere/at-all.pcap', own('arp-ping.pcap'), '--through', 'bridge', '--json');
  t.is(both.code, 1);
  const report = JSON.parse(both.stdout);
  t.deepEqual(
    report.files.map(({ format }: { format: string }) => format),
    [null, 'pcap-le-us'],
  );
  t.true(report.delivered > 0);
  t.regex(both.stderr, /at-all\.pcap: there is no such file.*check the path/);
  t.regex(both.stderr, /1 of 2 files could not be read/);
  const none = await weft('/nowhere/at-all.pcap', '--through', 'bridge');
  t.is(none.code, 1);
  t.regex(none.stderr, /nothing was replayed/);
});

const USAGE: readonly [string, string[], RegExp][] = [
  [
    'an unknown element',
    ['x', '--through', 'brigde'],
    /no element "brigde"; did you mean bridge\?[\s\S]*vxlan-decap/,
  ],
  ['an element called like a property', ['x', '--through', 'constructor'], /no element "constructor"/],
  ['an empty chain', ['x', '--through', ''], /no element ""/],
  ['no chain', ['x'], /--through/],
  ['no file', ['--through', 'bridge'], /file/],
  ['a port out of range', ['x', '--through', 'bridge', '--port', '65536'], /1 to 65535/],
  ['a VNI out of range', ['x', '--through', 'bridge', '--vni', '16777216'], /16777215/],
  ['no whole number of loops', ['x', '--through', 'bridge', '--loop', '1.5'], /from 1/],
  ['an address that is none', ['x', '--through', 'bridge', '--local', '1.2.3'], /--local: "1\.2\.3"/],
  ['a group address', ['x', '--through', 'bridge', '--remote', '224.0.0.1'], /--remote: .*multicast/],
  [
    'addresses of two kinds',
    ['x', '--through', 'bridge', '--local', '1.2.3.4', '--remote', 'fd00::1'],
    /must agree/,
  ],
  ['IPv4 under --ipv6', ['x', '--through', 'bridge', '--local', '1.2.3.4', '--ipv6'], /must agree/],
];
for (const [name, args, message] of USAGE) {
  test.serial(`usage: ${name}`, async (t) => {
    const { code, stdout, stderr } = await weft(...args);
    t.is(code, 2);
    t.is(stdout, '');
    t.regex(stderr, message);
  });
}

test.serial('the output may not be one of the inputs, by whatever name, and must be writable', async (t) => {
  const input = temporary('input.pcap');
  const bytes = readFileSync(own('arp-ping.pcap'));
  writeFileSync(input, bytes);
  linkSync(input, temporary('same.pcap'));
  const same = await weft(input, '--through', 'bridge', '--write', temporary('same.pcap'));
  t.is(same.code, 2);
  t.regex(same.stderr, /same\.pcap is one of the captures/);
  t.deepEqual(readFileSync(input), bytes);
  const nowhere = await weft(input, '--through', 'bridge', '--write', '/nowhere/out.pcapng');
  t.is(nowhere.code, 1);
  t.regex(nowhere.stderr, /cannot write \/nowhere\/out\.pcapng: .*name a file/);
});

const FIELDS = [
  'eth.src',
  'eth.dst',
  'eth.type',
  'vlan.id',
  'vxlan.vni',
  'tcp.seq_raw',
  'icmp.seq',
  'icmpv6.type',
];

/** What `decodes` looks at of the whole packet, and of the outer one. */
const WHOLE = ['frame.len', 'frame.protocols'];
const OUTER = [
  ...['vxlan.vni', 'udp.checksum.status', 'udp.dstport', 'udp.length', 'ipv6.src', 'ip.checksum.status'],
];
const dissected = new Map<string, Map<string, string[]>[]>();

/** By packet and field all that tshark reads, from the outside in; once a file, since it takes long to start. */
function dissect(file: string): Map<string, string[]>[] {
  const known = dissected.get(file);
  if (known) return known;
  const fields = [...new Set([...WHOLE, ...OUTER, ...FIELDS])];
  const check = ['ip', 'udp'].flatMap((protocol) => ['-o', `${protocol}.check_checksum:TRUE`]);
  const wanted = fields.flatMap((field) => ['-e', field]);
  const output = execFileSync(
    'tshark',
    ['-n', '-r', file, ...check, '-T', 'fields', '-E', 'occurrence=a', '-E', 'aggregator=|', ...wanted],
    {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    },
  );
  const rows = output
    .trimEnd()
    .split('\n')
    .map((line) => line.split('\t'))
    .map((cells) => new Map(fields.map((field, i) => [field, (cells[i] ?? '').split('|')])));
  dissected.set(file, rows);
  return rows;
}

/** tshark and the bytes on what `vxlan-encap` made of a capture. */
function decodes(t: ExecutionContext, input: string, output: string, v6: boolean): void {
  const outer = v6 ? 70 : 50;
  const [before, after] = [openCapture(input), openCapture(output)];
  t.is(after.count, before.count);
  for (let i = 0; i < before.count; i++) t.deepEqual(packet(after, i).subarray(outer), packet(before, i));
  const [inside, outside] = [dissect(input), dissect(output)];
  const innermost = (rows: readonly Map<string, string[]>[]) =>
    rows.map((row) => FIELDS.filter((field) => field !== 'vxlan.vni').map((field) => row.get(field)!.at(-1)));
  t.deepEqual(innermost(outside), innermost(inside));
  // Status 1 is good, 3 not present: the UDP checksum may be left out over IPv4 alone.
  const columns = [...WHOLE, ...OUTER.slice(0, 4), v6 ? 'ipv6.src' : 'ip.checksum.status'];
  const rows = outside.map((row) => columns.map((field) => row.get(field)![0]));
  rows.forEach(([length, protocols, vni, udpStatus, port, udpLength, last], i) => {
    const [innerLength, innerProtocols] = WHOLE.map((field) => inside[i].get(field)![0]);
    t.is(Number(length), Number(innerLength) + outer);
    t.is(protocols, `eth:ethertype:${v6 ? 'ipv6' : 'ip'}:udp:vxlan:${innerProtocols}`);
    t.deepEqual([vni, port, Number(udpLength)], ['4097', '4789', Number(innerLength) + 16]);
    t.is(udpStatus, v6 ? '1' : '3');
    t.is(last, v6 ? 'fd00:50::1' : '1');
  });
}

for (const name of CAPTURES) {
  for (const v6 of [false, true]) {
    test.serial(`tshark decodes ${name} inside ${v6 ? 'IPv6' : 'IPv4'} to the very frame`, async (t) => {
      const out = temporary(`${name}-${v6 ? 6 : 4}.pcapng`);
      const ends = v6 ? ['--local', 'fd00:50::1', '--remote', 'fd00:50::2'] : [];
      const { code, stderr } = await weft(
        own(name),
        '--through',
        'vxlan-encap',
        '--vni',
        '4097',
        '--write',
        out,
        ...ends,
      );
      t.is(code, 0, stderr);
      decodes(t, own(name), out, v6);
    });
  }
}
