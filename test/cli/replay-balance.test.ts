/** `weft replay --through balance`: services of a file, what they do, and what is said of a file that cannot be used. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { openCapture } from '../../control/capture-files.js';
import { badChecksums, ends, SYN } from '../support/nat.js';
import { endsV6, packetV6, soundV6 } from '../support/nat6.js';
import { pcap } from '../support/pcap-fixtures.js';
import { own, packet, weft } from '../support/replay.js';

const scratch = mkdtempSync(join(tmpdir(), 'weft-balance-'));
test.after.always(() => rmSync(scratch, { recursive: true }));

let files = 0;
function file(text: string): string {
  const path = join(scratch, `${files++}.yaml`);
  writeFileSync(path, text);
  return path;
}

/** The connection of the capture is to 10.0.9.2:8080. */
const WEB = `services:
  - name: web
    network: blue
    vip: 10.0.9.2
    ports: [ { protocol: tcp, port: 8080, target: 80 } ]
    backends: [ { address: 10.0.9.11 }, { address: 10.0.9.12, mac: "02:00:00:00:00:0c" } ]
`;

interface Report {
  readonly frames: number;
  readonly delivered: number;
  readonly flows: number;
  readonly drops: Record<string, number>;
  /** What was written of IPv4 with ports: MAC and ends of each packet. */
  readonly packets: readonly string[];
}

async function replay(through: string, services: string, ...args: string[]): Promise<Report> {
  const out = join(scratch, 'out.pcapng');
  const all = [own('tcp.pcap.gz'), '--through', through, '--services', services, '--write', out, '--json'];
  const { code, stdout, stderr } = await weft(...all, ...args);
  if (code !== 0) throw new Error(stderr);
  const written = openCapture(out);
  const packets: string[] = [];
  for (let i = 0; i < written.count; i++) {
    const frame = packet(written, i);
    if (frame.readUInt16BE(12) !== 0x800) continue;
    const bad = badChecksums(frame);
    packets.push(`${frame.toString('hex', 0, 6)} ${ends(frame)}${bad.length > 0 ? ` bad: ${bad}` : ''}`);
  }
  return { ...JSON.parse(stdout), packets };
}

test.serial('a connection to the virtual address goes to one backend, every checksum right', async (t) => {
  const { frames, delivered, flows, drops, packets } = await replay('balance', file(WEB));
  t.deepEqual([frames, delivered, flows, drops], [34, 34, 1, {}]);
  const there = packets.filter((one) => one.includes(' 10.0.9.1:46990 > '));
  t.deepEqual([...new Set(there)], ['02000000000c 10.0.9.1:46990 > 10.0.9.12:80']);
  t.deepEqual(
    packets.filter((one) => one.includes('bad')),
    [],
  );
  const { stdout } = await weft(own('tcp.pcap.gz'), '--through', 'balance', '--services', file(WEB));
  t.regex(stdout, /^tracked +1 +flows$/m);
});

test.serial('mark,balance: packets that a rule marks are for the service of the mark', async (t) => {
  const text = WEB.replace('vip: 10.0.9.2', 'vip: 10.0.9.100\n    fwmark: 7').concat(
    'marks: [ { mark: 7, network: blue, protocol: tcp, ports: 8000-8100, source: 10.0.9.1/32 } ]\n',
  );
  const { flows, drops, packets } = await replay('mark,balance', file(text));
  t.deepEqual([flows, drops], [1, {}]);
  // The port is not one of the virtual address, so it stays.
  t.true(packets.includes('02000000000c 10.0.9.1:46990 > 10.0.9.12:8080'));
  const unmarked = await replay('balance', file(text));
  t.deepEqual([unmarked.flows, unmarked.delivered], [0, 34]);
});

test.serial('a node’s whole file will do; what else is in it is passed over', async (t) => {
  const text = `node: a
underlay: { address: 192.168.50.1 }
ingress: { vni: 4096, subnet: 10.255.0.0/16 }
uplinks: [ { name: out, interface: eth0, address: 192.168.60.10/24 } ]
networks: [ { name: blue, vni: 7, subnet: 10.0.9.0/24 } ]
endpoints: [ { name: c, network: blue, address: 10.0.9.12/24, netns: c, mac: "02:00:00:00:00:99" } ]
${WEB.replace(', mac: "02:00:00:00:00:0c"', '')}    publish: [ { protocol: tcp, port: 8080, mode: ingress } ]
`;
  const { packets } = await replay('balance', file(text));
  t.true(packets.includes('020000000099 10.0.9.1:46990 > 10.0.9.12:80'), 'the MAC is the endpoint’s');
});

test.serial('balance and nat share one table, which --max-flows bounds', async (t) => {
  const { flows, drops } = await replay('balance,nat', file(WEB), '--max-flows', '2');
  t.is(flows, 2);
  t.false('balance: table-full' in drops);
});

test.serial('IPv6: a virtual address answers pings', async (t) => {
  const text = WEB.replace('vip: 10.0.9.2', 'vip: 10.0.9.100\n    vip6: "fd00:9::2"').replace(
    'backends: [ { address: 10.0.9.11 },',
    'backends: [ { address: 10.0.9.11, address6: "fd00:9::11" },',
  );
  const out = join(scratch, 'v6.pcapng');
  const services = ['--services', file(text), '--write', out];
  const { code, stderr } = await weft(own('nd-ping6.pcapng'), '--through', 'balance', ...services);
  t.is(code, 0, stderr);
  const written = openCapture(out);
  const frames = Array.from({ length: written.count }, (_, i) => packet(written, i));
  const echoes = frames.filter((frame) => frame[20] === 58 && (frame[54] === 128 || frame[54] === 129));
  const requests = echoes.filter((frame) => frame[54] === 128 && frame[53] === 2);
  t.deepEqual([requests.length, echoes.length > 0], [0, true], 'each is its reply');
});

test.serial('IPv6: mark,balance: what a rule marks is for the half of IPv6 of the mark', async (t) => {
  const text = WEB.replace('vip: 10.0.9.2', 'vip: 10.0.9.100\n    vip6: "fd00:9::100"\n    fwmark: 7')
    .replace('10.0.9.11 }', '10.0.9.11, address6: "fd00:9::11" }')
    .concat('marks: [ { mark: 7, network: blue, protocol: tcp, ports: 8000-8100 } ]\n');
  const tcp = { protocol: 6, flags: SYN, source: 'fd00:9::1', destination: '2001:db8::9' };
  const [capture, out] = [join(scratch, 'marked.pcap'), join(scratch, 'marked-out.pcapng')];
  const sent = [8080, 8101].map((destinationPort) => packetV6({ ...tcp, destinationPort }));
  writeFileSync(capture, pcap(sent.map((data) => ({ data }))));
  const through = ['--through', 'mark,balance', '--services', file(text), '--write', out, '--json'];
  const { code, stdout, stderr } = await weft(capture, ...through);
  t.is(code, 0, stderr);
  t.like(JSON.parse(stdout), { flows: 1, delivered: 2, drops: {} });
  const written = openCapture(out);
  const frames = [0, 1].map((i) => packet(written, i));
  t.deepEqual(frames.map(endsV6), [
    '[fd00:9::1]:4000 > [fd00:9::11]:8080',
    '[fd00:9::1]:4000 > [2001:db8::9]:8101',
  ]);
  t.true(frames.every(soundV6));
});

test.serial('what begins nothing is dropped, and no error is made about it', async (t) => {
  const none = WEB.replace(/backends: .*/, 'backends: []');
  const { delivered, drops } = await replay('balance', file(none));
  // The SYN; what follows is answered by resets.
  t.deepEqual([delivered, drops], [33, { 'balance: no-backend': 1 }]);
});

for (const [title, text, through, message] of [
  ['no file', undefined, 'balance', /balance needs services; name a file of them with --services/],
  ['no file for marks', undefined, 'mark', /mark needs services/],
  ['an empty file', '', 'balance', /services is empty; add entries such as/],
  ['an unknown key', 'service: []', 'balance', /unknown key "service".*services/],
  ['a wrong address', WEB.replace('vip: 10.0.9.2', 'vip: 10.0.9'), 'balance', /:4:10: .*10\.0\.9/],
  [
    'one virtual address twice',
    WEB + WEB.replace('services:\n', '').replace('name: web', 'name: again'),
    'balance',
    /vip 10\.0\.9\.2 of network "blue"/,
  ],
  [
    'a network that the file leaves out',
    `networks: [ { name: red, vni: 7, subnet: 10.0.9.0/24 } ]\n${WEB}`,
    'balance',
    /there is no network "blue"/,
  ],
  [
    'a rule for an endpoint',
    `${WEB}    fwmark: 7\nendpoints: [ { name: c, network: blue, address: 10.0.9.1/24, netns: c } ]\nmarks: [ { mark: 7, network: blue, endpoint: c } ]\n`,
    'mark,balance',
    /a replay has no endpoints from which packets come; write source: its address/,
  ],
] as const)
  test.serial(`${title}: refused, with the place and the remedy`, async (t) => {
    const services = text === undefined ? [] : ['--services', file(text)];
    const { code, stderr } = await weft(own('tcp.pcap.gz'), '--through', through, ...services);
    t.is(code, 2, stderr);
    t.regex(stderr, message);
  });
