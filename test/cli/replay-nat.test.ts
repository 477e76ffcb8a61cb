/** `weft replay --through nat`: its options, what they do, and what is said of those that cannot be. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { openCapture } from '../../control/capture-files.js';
import { badChecksums, ends } from '../support/nat.js';
import { soundV6, sourceV6 } from '../support/nat6.js';
import { own, packet, weft } from '../support/replay.js';

const scratch = mkdtempSync(join(tmpdir(), 'weft-nat-'));
test.after.always(() => rmSync(scratch, { recursive: true }));

async function report(
  ...args: string[]
): Promise<{ frames: number; delivered: number; flows: number; drops: Record<string, number> }> {
  const { code, stdout, stderr } = await weft(...args, '--through', 'nat', '--json');
  if (code !== 0) throw new Error(stderr);
  return JSON.parse(stdout);
}

test.serial(
  'private addresses are inside unless told; flows are counted, and a loop finds them again',
  async (t) => {
    const once = await report(own('tcp.pcap.gz'));
    t.true(once.flows > 0);
    const twice = await report(own('tcp.pcap.gz'), '--loop', '2');
    t.is(twice.flows, once.flows);
    t.is(twice.delivered, 2 * once.delivered);
    const { stdout } = await weft(own('tcp.pcap.gz'), '--through', 'nat');
    t.regex(stdout, new RegExp(`^tracked +${once.flows} +flows$`, 'm'));
  },
);

test.serial(
  '--inside, --external and --nat-ports: what is written has the address and ports, and right checksums',
  async (t) => {
    const out = join(scratch, 'out.pcapng');
    const file = own('tcp.pcap.gz');
    const ports = ['--nat-ports', '50000-50009'];
    const { delivered, drops } = await report(
      file,
      '--inside',
      '10.0.9.1/32',
      '--external',
      '192.0.2.77',
      ...ports,
      '--write',
      out,
    );
    const written = openCapture(out);
    let seen = 0;
    for (let i = 0; i < written.count; i++) {
      const frame = packet(written, i);
      if (frame.readUInt16BE(12) !== 0x800 || !ends(frame).startsWith('192.0.2.77:')) continue;
      seen++;
      t.deepEqual(badChecksums(frame), []);
      const port = frame.readUInt16BE(34);
      t.true(port >= 50000 && port <= 50009);
    }
    t.true(seen > 0 && seen === delivered, `${seen} of ${delivered}`);
    t.true(drops['nat: no-side'] > 0, 'answers to an address of inside’s are of neither side');
  },
);

test.serial(
  '--inside may be given again, --max-flows bounds the table, --nat-mapping is either',
  async (t) => {
    const both = await report(
      own('tcp.pcap.gz'),
      '--inside',
      '10.0.9.1/32',
      '--inside',
      '10.0.9.2/32',
      '--nat-mapping',
      'endpoint-dependent',
    );
    t.false('nat: no-side' in both.drops);
    const one = await report(own('tcp.pcap.gz'), '--max-flows', '1');
    t.is(one.flows, 1);
  },
);

test.serial('--external6: IPv6 is translated as well, and what is written has its address', async (t) => {
  const out = join(scratch, 'six.pcapng');
  const file = own('nd-ping6.pcapng');
  const { drops: without } = await report(file);
  t.is(without['nat: not-ipv4'], 16);
  const options = ['--inside', 'fd00:9::1/128', '--external6', '2001:db8::9'];
  const { delivered, drops, flows } = await report(file, ...options, '--write', out);
  // Three requests go out; their replies are addressed to the inside, and Neighbour Discovery is no query.
  t.deepEqual([delivered, flows], [3, 1]);
  t.deepEqual(drops, { 'nat-v6: icmp-type': 1, 'nat-v6: no-side': 12 });
  const written = openCapture(out);
  const sources = Array.from({ length: written.count }, (_, i) => packet(written, i)).filter(
    (frame) => frame[54] === 128 && sourceV6(frame) === '2001:db8::9',
  );
  t.is(sources.length, 3);
  t.true(sources.every(soundV6));
});

for (const [args, message] of [
  [['--inside', 'fd00::/8'], /--inside: IPv6 is translated only with --external6; write --external6/],
  [['--external6', '192.0.2.9'], /--external6: 192\.0\.2\.9 is an IPv4 address; write it as --external/],
  [['--inside', '10.0.0.1'], /--inside: .*10\.0\.0\.1.* has no prefix length/],
  [['--external', '224.0.0.1'], /--external: 224\.0\.0\.1 is a multicast address/],
  [['--external', '2001:db8::1'], /--external: 2001:db8::1 is an IPv6 address; write it as --external6/],
  [['--nat-ports', '9-8'], /--nat-ports: "9-8" is no range of ports; write the first and the last/],
  [['--nat-ports', '0-8'], /--nat-ports: "0-8"/],
  [['--nat-ports', '1-65536'], /--nat-ports: "1-65536"/],
  [['--max-flows', '0'], /Write a number from 1 to 4194304/],
  [['--nat-mapping', 'symmetric'], /endpoint-independent, endpoint-dependent/],
] as const)
  test.serial(`${args.join(' ')} is refused with what to write instead`, async (t) => {
    const { code, stderr } = await weft(own('tcp.pcap.gz'), '--through', 'nat', ...args);
    t.is(code, 2, stderr);
    t.regex(stderr, message);
  });
