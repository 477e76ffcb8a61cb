/** The shared captures through `nat`, judged by our own book, by tshark and, packet by packet, by scapy. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { toolEnvironment } from '../../../cli/lab.js';
import { loadCaptures } from '../../../control/replay.js';
import {
  answerTo,
  badChecksums,
  EXTERNAL,
  ends,
  framed,
  ICMP,
  NatRig,
  packet,
  REMOTE,
  SCTP,
  TCP,
  UDP,
} from '../../support/nat.js';
import { judged } from '../../support/tshark.js';

const FOLDER = fileURLToPath(new URL('../../../../../shared/pcaps/nat-lb', import.meta.url));
const absent = existsSync(FOLDER) ? '' : ' [skipped: no captures at ../shared/pcaps beside the repository]';
const shared = absent ? test.skip : test;
const noTshark =
  spawnSync('tshark', ['--version'], { env: toolEnvironment() }).status === 0
    ? ''
    : ' [skipped: no tshark here]';

/** The IPv4 packets of a capture, as frames; those of other link types with a header made for them. */
function framesOf(file: string): Uint8Array[] {
  const { memory, list } = loadCaptures([join(FOLDER, file)], { through: ['nat'], port: 4789 });
  const frames = [...list.offsets].map((at, i) => memory.u8.slice(at, at + list.lengths[i]!));
  return frames.filter((frame) => frame.length >= 34 && frame[12] === 8 && frame[13] === 0);
}

const captures = (): string[] => readdirSync(FOLDER).sort();
const roomy = (): NatRig => new NatRig({ maxFlows: 20_000, firstPort: 1024, lastPort: 65535 });
const isFragment = (frame: Uint8Array): boolean => ((frame[20]! << 8) | frame[21]!) % 0x4000 !== 0;
const isError = (frame: Uint8Array): boolean => frame[23] === ICMP && [3, 4, 11, 12].includes(typeOf(frame));
const typeOf = (frame: Uint8Array): number => frame[14 + (frame[14]! & 15) * 4]!;

shared(`every packet of the captures, as one from inside, comes back as it went${absent}`, (t) => {
  let [there, back] = [0, 0];
  for (const file of captures()) {
    const n = roomy();
    for (const frame of framesOf(file)) {
      const before = badChecksums(frame);
      const { outside } = n.feed(false, [frame]);
      if (outside.length !== 1 || isFragment(frame) || isError(frame)) continue;
      there++;
      const translated = outside[0]!.bytes;
      t.deepEqual(badChecksums(translated), before, `${file}: ${ends(frame)}`);
      const { inside } = n.feed(true, [answerTo(translated)]);
      back += inside.length;
      // An answer recomputes the checksum of ICMP, so one that was wrong is not the same any more.
      if (before.length === 0 || frame[23] !== ICMP)
        t.deepEqual(inside[0]?.bytes, answerTo(frame), `${file}: ${ends(frame)}`);
    }
    n.finish(t);
  }
  t.is(there, back);
  t.true(there > 5000, `${there}`);
});

/** The packet that an error carries, with as many bytes as its header says, and how many of them were carried. */
function carriedBy(error: Uint8Array): { frame: Uint8Array; carried: number } | undefined {
  const at = 14 + (error[14]! & 15) * 4 + 8;
  const carried = error.slice(at, 14 + ((error[16]! << 8) | error[17]!));
  const length = (carried[2]! << 8) | carried[3]!;
  if (
    carried.length < 28 ||
    length < carried.length ||
    length > 1500 ||
    ((carried[6]! << 8) | carried[7]!) % 0x2000 !== 0
  )
    return undefined;
  const frame = new Uint8Array(14 + length);
  frame.set([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
  frame.set(carried, 14);
  return { frame, carried: carried.length };
}

shared(
  `the ICMP errors of the captures reach the flow they belong to, and are there what they were${absent}`,
  (t) => {
    const kinds = new Set<string>();
    let errors = 0;
    for (const file of captures()) {
      for (const error of framesOf(file).filter(isError)) {
        const about = carriedBy(error);
        if (about === undefined || badChecksums(error).length > 0 || badChecksums(about.frame).includes('ip'))
          continue;
        const n = roomy();
        // The packet goes out as it was sent, and the error comes back about what it became.
        const [sent] = n.feed(false, [about.frame]).outside;
        if (sent === undefined) continue;
        const header = 14 + (error[14]! & 15) * 4;
        const message = error.slice(header, 14 + ((error[16]! << 8) | error[17]!));
        message.set(sent.bytes.slice(14, 14 + about.carried), 8);
        message.set([0, 0], 2);
        const source = error.slice(26, 30).join('.');
        const fresh = framed({ source, destination: EXTERNAL, protocol: ICMP }, message);
        fresh.set(icmpChecksum(message), 36);
        const inside = n.in(fresh);
        t.deepEqual(inside.slice(34), error.slice(header, header + message.length), file);
        t.deepEqual(inside.slice(30, 34), about.frame.slice(26, 30));
        t.deepEqual(badChecksums(inside), []);
        errors++;
        kinds.add(`${typeOf(error)}/${about.frame[23]}`);
        n.finish(t);
      }
    }
    t.true(errors >= 20, `${errors} errors`);
    t.true(kinds.size >= 4, [...kinds].join());
  },
);

function icmpChecksum(message: Uint8Array): Uint8Array {
  let sum = 0;
  for (let i = 0; i < message.length; i += 2) sum += (message[i]! << 8) | (message[i + 1] ?? 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return Uint8Array.of((~sum >>> 8) & 0xff, ~sum & 0xff);
}

(absent || noTshark ? test.skip : test)(
  `tshark finds no checksum bad that was good before${absent || noTshark}`,
  (t) => {
    t.timeout(180_000);
    const before: Uint8Array[] = [];
    const after: Uint8Array[] = [];
    for (const file of captures()) {
      const n = roomy();
      for (const frame of framesOf(file)) {
        const { outside } = n.feed(false, [frame]);
        if (outside.length !== 1) continue;
        before.push(frame);
        after.push(outside[0]!.bytes);
      }
      n.finish(t);
    }
    const folder = mkdtempSync(join(tmpdir(), 'weft-nat-'));
    try {
      const damaged = [TCP, UDP, ICMP].map((protocol) => packet({ protocol }));
      for (const frame of damaged) frame[frame.length - 1]! ^= 1;
      t.deepEqual(judged(damaged, folder), [
        'tcp.checksum.status',
        'udp.checksum.status',
        'icmp.checksum.status',
      ]);
      const [was, is] = [judged(before, folder), judged(after, folder)];
      t.is(is.length, after.length);
      t.true(is.filter((bad) => bad === '').length > 4000);
      const spoilt = is.flatMap((bad, i) =>
        bad === was[i] ? [] : [`${ends(before[i]!)}: ${was[i]} became ${bad}`],
      );
      t.deepEqual(spoilt, []);
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
);

test("scapy's checksums are ours", (t) => {
  const n = roomy();
  const list = [TCP, UDP, ICMP, SCTP, 33, 136].flatMap((protocol) =>
    Array.from({ length: 20 }, (_, i) =>
      packet({
        ...{ protocol, sourcePort: 2000 + i * 997 },
        // Chunks of SCTP are whole words.
        content: new Uint8Array(protocol === SCTP ? i * 4 : i).fill(i * 31),
      }),
    ),
  );
  const translated = list.map((frame) => n.out(frame));
  const answered = translated.map((frame) => n.in(answerTo(frame)));
  // scapy takes each packet apart, forgets the checksums and makes it again; DCCP and UDP-Lite are raw to it.
  const script = `
import sys
from scapy.all import *
for line in sys.stdin:
    p = Ether(bytes.fromhex(line))
    del p[IP].chksum
    for layer in (TCP, UDP, ICMP, SCTP):
        if layer in p: del p[layer].chksum
    print(bytes(p).hex())
`;
  const hex = (frames: readonly Uint8Array[]): string =>
    frames.map((frame) => Buffer.from(frame).toString('hex')).join('\n');
  const result = spawnSync('/usr/bin/python3', ['-c', script], {
    encoding: 'utf8',
    env: toolEnvironment(),
    input: hex([...translated, ...answered]),
  });
  if (result.status !== 0) {
    t.log('skipped: python3-scapy is not installed');
    t.pass();
    return;
  }
  t.is(result.stdout.trim(), hex([...translated, ...answered]));
  t.true(translated.every((frame) => ends(frame).startsWith(EXTERNAL) && ends(frame).includes(REMOTE)));
});
