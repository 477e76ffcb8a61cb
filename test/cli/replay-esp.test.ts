/** `weft replay` with ESP: what it seals tshark opens, what was sealed comes back whole, and keys are handled with care. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { openCapture } from '../../control/capture-files.js';
import type { Capture } from '../../engine/ports/capture/capture.js';
import { own, packet, weft } from '../support/replay.js';

const scratch = mkdtempSync(join(tmpdir(), 'weft-replay-esp-'));
test.after.always(() => rmSync(scratch, { recursive: true }));
const temporary = (name: string): string => join(scratch, name);

const SHARED = fileURLToPath(new URL('../../../../shared', import.meta.url));
const KNOWN_KEYS = join(SHARED, 'pcaps/esp/vectors__esp-aes-gcm-known-keys.pcap');
const VECTORS = join(SHARED, 'vectors/esp_gcm_vectors.json');

/** Writes a key file of its own for its owner alone. */
function keys(name: string, ...associations: string[]): string {
  const path = temporary(`${name}.yaml`);
  const list = associations.map((one) => `\n  - { ${one} }`).join('') || ' []';
  writeFileSync(path, `security_associations:${list}\n`, { mode: 0o600 });
  return path;
}

const KEY = '00112233445566778899aabbccddeeff0123456789abcdeffedcba98765432100a0b0c0d';
/** Key and salt for so many bits. */
const keyOf = (bits: number): string => KEY.slice(0, bits / 4) + KEY.slice(-8);

async function report(...args: string[]) {
  const { code, stdout, stderr } = await weft(...args, '--json');
  if (code !== 0) throw new Error(stderr);
  return { ...JSON.parse(stdout), stdout, stderr };
}

const CASES = [
  { bits: 128, icv: 16, v6: false, encapsulation: 'udp', port: 4500 },
  { bits: 192, icv: 12, v6: false, encapsulation: 'esp', port: 4500 },
  { bits: 256, icv: 8, v6: true, encapsulation: 'esp', port: 4500 },
  { bits: 256, icv: 16, v6: true, encapsulation: 'udp', port: 4501 },
] as const;

for (const one of CASES) {
  const { bits, icv, v6, encapsulation, port } = one;
  const name = `aes-${bits}-gcm-${icv} over IPv${v6 ? 6 : 4} as ${encapsulation}`;
  const [local, remote] = v6 ? ['fd00:50::1', 'fd00:50::2'] : ['192.168.50.1', '192.168.50.2'];
  const captures = ['tcp.pcap.gz', 'vlan-ping.pcap', 'nd-ping6.pcapng'].map(own);
  const common = `spi: 0x1001, algorithm: aes-${bits}-gcm-${icv}, key: "${keyOf(bits)}"`;
  const sealed = temporary(`sealed-${bits}-${icv}.pcapng`);
  const esp = ['--encapsulation', encapsulation, '--esp-port', String(port)];

  test.serial(
    `what is sealed with ${name} tshark opens and finds authentic, and comes back whole`,
    async (t) => {
      const out = keys(`out-${bits}-${icv}`, `peer: ${remote}, direction: out, ${common}`);
      const ends = ['--local', local, '--remote', remote, '--vni', '4097'];
      const through = ['--through', 'vxlan-encap,esp-encrypt'];
      const sealing = await report(
        ...captures,
        ...through,
        ...ends,
        ...esp,
        '--keys',
        out,
        '--write',
        sealed,
      );
      t.is(sealing.keys, 'file');
      t.is(sealing.delivered, sealing.frames);
      t.false(`${sealing.stdout}${sealing.stderr}`.includes(keyOf(bits)));
      opensInTshark(t, one, sealing.frames);

      const into = keys(`in-${bits}-${icv}`, `peer: ${local}, direction: in, ${common}`);
      const opened = temporary(`opened-${bits}-${icv}.pcapng`);
      const open = [sealed, '--through', 'esp-decrypt,vxlan-decap', ...esp, '--keys', into];
      const back = await report(...open, '--vni', '4097', '--write', opened);
      t.deepEqual([back.delivered, back.drops], [sealing.frames, {}]);
      const before = captures.map((path) => openCapture(path));
      const frames = before.flatMap((file) => Array.from({ length: file.count }, (_, i) => packet(file, i)));
      const after = openCapture(opened);
      t.deepEqual(
        Array.from({ length: after.count }, (_, i) => packet(after, i)),
        frames,
      );
      // What is inside cannot be looked for: without --vni there is but the usual one.
      const elsewhere = await report(...open);
      t.deepEqual(elsewhere.drops, { 'vxlan-decap: unknown-vni': sealing.frames });
      const twice = await report(sealed, ...open, '--vni', '4097', '--loop', '2');
      t.deepEqual(twice.drops, { 'esp-decrypt: replayed': 2 * sealing.frames });
    },
  );
}

/** Every packet is ESP that tshark decrypts, whose ICV it finds right, and in which it sees VXLAN. */
function opensInTshark(
  t: ExecutionContext,
  { bits, icv, v6, encapsulation, port }: (typeof CASES)[number],
  frames: number,
): void {
  const algorithm = `AES-GCM with ${icv} octet ICV [RFC4106]`;
  const association = [`IPv${v6 ? 6 : 4}`, '*', '*', '*', algorithm, `0x${keyOf(bits)}`, 'NULL', ''];
  const options = [
    'esp.enable_encryption_decode:TRUE',
    'esp.enable_authentication_check:TRUE',
    'ip.check_checksum:TRUE',
    'udp.check_checksum:TRUE',
    `uat:esp_sa:${association.map((field) => `"${field}"`).join(',')}`,
  ].flatMap((option) => ['-o', option]);
  const fields = ['frame.protocols', 'esp.spi', 'esp.sequence', 'esp.icv_good', 'vxlan.vni'];
  const checks = ['udp.dstport', v6 ? 'udp.checksum.status' : 'ip.checksum.status'];
  const output = execFileSync(
    'tshark',
    [
      ...[
        '-n',
        '-r',
        temporary(`sealed-${bits}-${icv}.pcapng`),
        ...options,
        '-d',
        `udp.port==${port},udpencap`,
      ],
      ...['-T', 'fields', '-E', 'occurrence=f', ...[...fields, ...checks].flatMap((field) => ['-e', field])],
    ],
    { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] },
  );
  const rows = output.trimEnd().split('\n');
  t.is(rows.length, frames);
  const outer = `eth:ethertype:${v6 ? 'ipv6' : 'ip'}:${encapsulation === 'udp' ? 'udp:udpencap:' : ''}esp:udp:vxlan:`;
  for (const [i, row] of rows.entries()) {
    const [protocols, spi, sequence, good, vni, udp, checksum] = row.split('\t');
    t.true(protocols.startsWith(outer), protocols);
    t.deepEqual([spi, sequence, good, vni], ['0x00001001', String(i + 1), '1', '4097']);
    t.is(udp, encapsulation === 'udp' ? String(port) : '4789');
    // IPv4: the outer header. IPv6: the outer UDP header, or of protocol 50 the one that was sealed.
    t.is(checksum, '1');
  }
}

test.serial('without keys a chain seals and opens under a random one, and says so', async (t) => {
  const through = ['--through', 'vxlan-encap,esp-encrypt,esp-decrypt,vxlan-decap'];
  for (const more of [[], ['--ipv6'], ['--encapsulation', 'esp'], ['--ipv6', '--encapsulation', 'esp']]) {
    const written = temporary('random.pcapng');
    const ran = await report(own('tcp.pcap.gz'), ...through, ...more, '--loop', '3', '--write', written);
    t.deepEqual([ran.keys, ran.delivered, ran.drops], ['random', ran.frames, {}]);
    t.regex(ran.stderr, /sealed under a random key/);
    const [before, after] = [openCapture(own('tcp.pcap.gz')), openCapture(written)];
    t.is(after.count, before.count);
    for (let i = 0; i < before.count; i++) t.deepEqual(packet(after, i), packet(before, i));
  }
  const plain = await report(own('tcp.pcap.gz'), '--through', 'bridge');
  t.is(plain.keys, null);
  t.notRegex(plain.stderr, /key/);
});

test.serial('bridges of two hosts with ESP between them: a chain from end to end', async (t) => {
  const chain = 'bridge,vxlan-encap,esp-encrypt,esp-decrypt,vxlan-decap,bridge';
  const { frames, delivered, drops } = await report(own('tcp.pcap.gz'), '--through', chain, '--loop', '2');
  // What the second bridge has learned to be behind the tunnel it does not send back there.
  t.deepEqual(Object.keys(drops), ['bridge: same-port']);
  t.is(delivered + drops['bridge: same-port'], frames);
  t.true(delivered > 0);
});

const OUT = `peer: 192.0.2.2, direction: out, spi: 0x1001, algorithm: aes-128-gcm-16, key: "${keyOf(128)}"`;
const IN = `peer: 192.0.2.1, direction: in, spi: 0x1001, algorithm: aes-128-gcm-16, key: "${keyOf(128)}"`;

test.serial('two runs under one key use no IV twice', async (t) => {
  const file = keys('twice', OUT);
  const ivs = new Set<string>();
  let packets = 0;
  for (const run of ['first', 'second']) {
    const written = temporary(`${run}.pcapng`);
    const through = ['--through', 'bridge,vxlan-encap,esp-encrypt', '--encapsulation', 'esp'];
    await report(own('tcp.pcap.gz'), ...through, '--keys', file, '--write', written);
    const capture = openCapture(written);
    packets += capture.count;
    for (let i = 0; i < capture.count; i++) ivs.add(packet(capture, i).subarray(42, 50).toString('hex'));
  }
  t.true(packets > 50);
  t.is(ivs.size, packets);
});

test.serial('the association that sends is the one with --remote, or the only one', async (t) => {
  const key = (digit: string): string => `algorithm: aes-128-gcm-16, key: "${digit.repeat(40)}"`;
  const two = keys(
    'two',
    `peer: 192.0.2.7, direction: out, spi: 0x107, ${key('7')}`,
    `peer: 192.0.2.8, direction: out, spi: 0x108, ${key('8')}`,
  );
  const spiWith = async (file: string, ...more: string[]): Promise<number> => {
    const written = temporary('spi.pcapng');
    const through = ['--through', 'vxlan-encap,esp-encrypt', '--encapsulation', 'esp'];
    await report(own('arp-ping.pcap'), ...through, '--keys', file, '--write', written, ...more);
    return packet(openCapture(written), 0).readUInt32BE(34);
  };
  t.is(await spiWith(two, '--remote', '192.0.2.8'), 0x108);
  t.is(await spiWith(two, '--remote', '192.0.2.7'), 0x107);
  t.is(await spiWith(keys('one', OUT), '--remote', '192.0.2.99'), 0x1001);
});

test.serial('a chain opens under the keys of a file what it sealed under them', async (t) => {
  const file = keys('mirror', OUT.replace('}', ''), IN.replace(keyOf(128), 'ab'.repeat(20)));
  const through = ['--through', 'vxlan-encap,esp-encrypt,esp-decrypt,vxlan-decap'];
  const {
    frames,
    delivered,
    drops,
    keys: origin,
  } = await report(own('tcp.pcap.gz'), ...through, '--keys', file);
  t.deepEqual([delivered, drops, origin], [frames, {}, 'file']);
});

const ABSENT = 'no captures and vectors beside the repository';
const shared = existsSync(KNOWN_KEYS) && existsSync(VECTORS);
(shared ? test.serial : test.serial.skip)(
  `the ESP packets of published tests open under their keys${shared ? '' : ` [skipped: ${ABSENT}]`}`,
  async (t) => {
    const { vectors } = JSON.parse(readFileSync(VECTORS, 'utf8')) as { vectors: Vector[] };
    const capture = openCapture(KNOWN_KEYS);
    t.is(vectors.length, capture.count);
    const known = mended(capture);
    for (const [i, vector] of vectors.entries()) {
      const bits = vector.key.length * 4;
      const frame = packet(capture, i);
      const peer = frame.readUInt16BE(12) === 0x800 ? [...frame.subarray(26, 30)].join('.') : V6_SOURCE;
      const file = keys(
        'vector',
        `peer: "${peer}", direction: in, spi: 0x${vector.spi}, algorithm: aes-${bits}-gcm-16, key: "${vector.key}${vector.salt}", esn: ${vector.esn_hi !== null}`,
      );
      if (Number.parseInt(vector.spi, 16) < 256) {
        const { code, stderr } = await weft(known, '--through', 'esp-decrypt', '--keys', file);
        t.is(code, 2);
        t.regex(stderr, /vector\.yaml:2:\d+: spi is a number, out of range; write a number from 256/);
        continue;
      }
      const { drops, delivered } = await report(known, '--through', 'esp-decrypt', '--keys', file);
      t.is(delivered, 0);
      t.deepEqual(drops, expected(vectors, vector), vector.name);
    }
  },
);

/** A copy in which every outer IPv4 checksum is right: of one packet it is wrong in the source already. */
function mended(capture: Capture): string {
  const path = temporary('mended.pcap');
  for (let i = 0; i < capture.count; i++) {
    const frame = packet(capture, i);
    if (frame.readUInt16BE(12) !== 0x800) continue;
    frame.writeUInt16BE(0, 24);
    let sum = 0;
    for (let at = 14; at < 34; at += 2) sum += frame.readUInt16BE(at);
    frame.writeUInt16BE(~((sum & 0xffff) + (sum >>> 16)) & 0xffff, 24);
  }
  writeFileSync(path, capture.bytes);
  return path;
}

const V6_SOURCE = '1234:1221:1745:1134:11fc:8971:df22:5678';

interface Vector {
  readonly name: string;
  readonly alg: string;
  readonly spi: string;
  readonly key: string;
  readonly salt: string;
  readonly esn_hi: string | null;
  readonly next_header?: number;
}

/**
 * What becomes of all packets under the key of one. Authentic ones are in tunnel mode (next header 4 or 41), which is
 * not ours, or dummies (59). One of them was sealed in the second half of its extended numbers, in which no window is
 * that has received nothing, and one is authentication alone (RFC 4543).
 */
function expected(vectors: readonly Vector[], under: Vector): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const vector of vectors) {
    const same = vector.key === under.key && vector.salt === under.salt && vector.esn_hi === under.esn_hi;
    const opens = same && vector.esn_hi === null && !vector.alg.includes('GMAC');
    const verdict = vector.next_header === 59 ? 'dummy' : 'bad-trailer';
    const reason = vector.spi !== under.spi ? 'unknown-spi' : opens ? verdict : 'icv';
    counts[`esp-decrypt: ${reason}`] = (counts[`esp-decrypt: ${reason}`] ?? 0) + 1;
  }
  return counts;
}

const USAGE: readonly [name: string, through: string, associations: string[] | null, message: RegExp][] = [
  ['esp-decrypt without keys', 'esp-decrypt,vxlan-decap', null, /there are no keys; give them with --keys/],
  ['keys that come behind', 'esp-decrypt,vxlan-encap,esp-encrypt', null, /there are no keys/],
  ['esp-encrypt of bare frames', 'bridge,esp-encrypt', null, /put vxlan-encap in front of it/],
  [
    'esp-encrypt of what was taken out',
    'vxlan-encap,vxlan-decap,esp-encrypt',
    null,
    /put vxlan-encap in front/,
  ],
  ['keys for a chain without ESP', 'bridge', [OUT], /no element of the chain uses keys/],
  ['esp-encrypt without a key that sends', 'vxlan-encap,esp-encrypt', [IN], /direction out; add one/],
  ['esp-decrypt without a key that receives', 'esp-decrypt', [OUT], /direction in; add those of the senders/],
  [
    'two keys that send, and neither is with the remote VTEP',
    'vxlan-encap,esp-encrypt',
    [OUT.replace('2.2', '2.3'), OUT.replace('2.2', '2.4').replace(keyOf(128), '12'.repeat(20))],
    /none of 2 outbound associations is with 192\.0\.2\.2; .*--remote/,
  ],
  ['an empty list', 'esp-decrypt', [], /usage\.yaml:1:1: security_associations is empty; add entries/],
  [
    'a key that is too short',
    'esp-decrypt',
    [IN.replace(/key: .*/, 'key: "1234"')],
    /usage\.yaml:2:\d+: key has 4 hex/,
  ],
  ['a key used twice', 'esp-decrypt', [IN, OUT], /this key with its salt is used twice/],
  ['an unknown key', 'esp-decrypt', [`${IN}, speed: 5`], /usage\.yaml:2:\d+: unknown key/],
];
for (const [name, through, associations, message] of USAGE) {
  test.serial(`usage: ${name}`, async (t) => {
    const file = associations === null ? [] : ['--keys', keys('usage', ...associations)];
    const { code, stdout, stderr } = await weft(own('tcp.pcap.gz'), '--through', through, ...file);
    t.is(code, 2, stderr);
    t.is(stdout, '');
    t.regex(stderr, message);
    t.false(stderr.includes(keyOf(128)));
  });
}

test.serial('a key file that others may read is refused, with the remedy', async (t) => {
  const path = temporary('open.yaml');
  writeFileSync(path, `security_associations: [{ ${IN} }]\n`, { mode: 0o644 });
  const args = [own('tcp.pcap.gz'), '--through', 'esp-decrypt', '--keys', path];
  const open = await weft(...args);
  t.is(open.code, 2);
  t.regex(
    open.stderr,
    /open\.yaml:1:1: the file holds secrets, and its mode 0644 .*; chmod 600 .*open\.yaml$/m,
  );
  t.false(open.stderr.includes(keyOf(128)));
  const absent = await weft(...args.slice(0, -1), temporary('nowhere.yaml'));
  t.is(absent.code, 2);
  t.regex(absent.stderr, /nowhere\.yaml: there is no such file/);
});

test.serial("a node's file will do, and is looked at for its associations alone", async (t) => {
  const path = temporary('node.yaml');
  const text = `node: hostA\nunderlay: { address: nonsense }\nsecurity_associations: [{ ${IN} }]\n`;
  writeFileSync(path, text, { mode: 0o600 });
  const { drops } = await report(own('underlay-ipv4.pcap'), '--through', 'esp-decrypt', '--keys', path);
  t.deepEqual(
    Object.keys(drops).filter((reason) => !/not-esp|not-ip/.test(reason)),
    [],
  );
  writeFileSync(path, `nodes: hostA\n${text}`, { mode: 0o600 });
  const { code, stderr } = await weft(own('tcp.pcap.gz'), '--through', 'esp-decrypt', '--keys', path);
  t.is(code, 2);
  t.regex(stderr, /node\.yaml:1:1: unknown key; did you mean node\?/);
});
