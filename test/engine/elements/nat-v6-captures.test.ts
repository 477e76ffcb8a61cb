/** The IPv6 of the shared captures through `nat-v6`, judged by our own book and by tshark. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { toolEnvironment } from '../../../cli/lab.js';
import { loadCaptures } from '../../../control/replay.js';
import { be16, slowSum } from '../../support/frames.js';
import { destinationV6, ICMPV6, NatRigV6, packetV6, sourceV6 } from '../../support/nat6.js';
import { judged } from '../../support/tshark.js';

const FOLDER = fileURLToPath(new URL('../../../../../shared/pcaps/nat-lb', import.meta.url));
const absent = existsSync(FOLDER) ? '' : ' [skipped: no captures at ../shared/pcaps beside the repository]';
const shared = absent ? test.skip : test;
const noTshark =
  spawnSync('tshark', ['--version'], { env: toolEnvironment() }).status === 0
    ? ''
    : ' [skipped: no tshark here]';

/** The IPv6 packets of a capture, as frames; those of other link types with a header made for them. */
function framesOf(file: string): Uint8Array[] {
  const { memory, list } = loadCaptures([join(FOLDER, file)], { through: ['nat'], port: 4789 });
  const frames = [...list.offsets].map((at, i) => memory.u8.slice(at, at + list.lengths[i]!));
  return frames.filter((frame) => frame.length >= 54 && frame[12] === 0x86 && frame[13] === 0xdd);
}

const captures = (): string[] => readdirSync(FOLDER).sort();
const roomy = (): NatRigV6 => new NatRigV6({ maxFlows: 20_000, firstPort: 1024, lastPort: 65535 });

/** Protocol and place of the transport header; undefined of fragments and of what is cut short. */
function transportOf(frame: Uint8Array): { protocol: number; at: number } | undefined {
  let [protocol, at] = [frame[20]!, 54];
  while (protocol === 0 || protocol === 43 || protocol === 60) {
    if (at + 8 > frame.length) return undefined;
    [protocol, at] = [frame[at]!, at + 8 * (frame[at + 1]! + 1)];
  }
  return at + 8 <= frame.length && protocol !== 44 ? { protocol, at } : undefined;
}

/** The answer to a packet: addresses and ports change places, which leaves every sum as it is; an echo becomes a reply. */
function answered(frame: Uint8Array, protocol: number, at: number): Uint8Array {
  const whole = frame.slice();
  whole.set(frame.slice(38, 54), 22);
  whole.set(frame.slice(22, 38), 38);
  if (protocol !== ICMPV6) {
    whole.set(frame.slice(at + 2, at + 4), at);
    whole.set(frame.slice(at, at + 2), at + 2);
    return whole;
  }
  whole[at] = 129;
  const old = (frame[at + 2]! << 8) | frame[at + 3]!;
  whole.set(be16(~slowSum(be16(~old & 0xffff, ~0x8000 & 0xffff, 0x8100)) & 0xffff), at + 2);
  return whole;
}

shared(`every packet of the captures, as one from inside, comes back as it went${absent}`, (t) => {
  let [there, back] = [0, 0];
  for (const file of captures()) {
    const rig = roomy();
    for (const frame of framesOf(file)) {
      const [left] = rig.feed(false, [frame]).outside;
      const found = transportOf(frame);
      if (left === undefined || found === undefined) continue;
      const { protocol, at } = found;
      if (protocol === ICMPV6 && frame[at] !== 128) continue;
      there++;
      const { inside } = rig.feed(true, [answered(left.bytes, protocol, at)]);
      back += inside.length;
      const length = 54 + ((frame[18]! << 8) | frame[19]!);
      const wanted = answered(frame, protocol, at).slice(0, length);
      t.deepEqual(
        Buffer.from(inside[0]?.bytes ?? []),
        Buffer.from(wanted),
        `${file}: ${sourceV6(frame)} > ${destinationV6(frame)}`,
      );
    }
    rig.nat.flush();
    rig.rig.finish(t);
  }
  t.is(there, back);
  t.true(there > 2000, `${there}`);
});

(absent || noTshark ? test.skip : test)(
  `tshark finds no checksum bad that was good before, fragments put together${absent || noTshark}`,
  (t) => {
    t.timeout(180_000);
    const before: Uint8Array[] = [];
    const after: Uint8Array[] = [];
    for (const file of captures()) {
      const rig = roomy();
      for (const frame of framesOf(file)) {
        const { outside } = rig.feed(false, [frame]);
        if (outside.length !== 1) continue;
        before.push(frame);
        after.push(outside[0]!.bytes);
      }
      rig.nat.flush();
    }
    const folder = mkdtempSync(join(tmpdir(), 'weft-nat-'));
    try {
      const damaged = [6, 17, ICMPV6].map((protocol) => packetV6({ protocol }));
      for (const frame of damaged) frame[frame.length - 1]! ^= 1;
      t.deepEqual(judged(damaged, folder), [
        'tcp.checksum.status',
        'udp.checksum.status',
        'icmpv6.checksum.status',
      ]);
      const [was, is] = [judged(before, folder), judged(after, folder)];
      t.is(is.length, after.length);
      t.true(
        is.filter((bad) => bad === '').length > 500,
        `${is.filter((bad) => bad === '').length} of ${is.length}`,
      );
      const spoilt = is.flatMap((bad, i) =>
        bad === was[i]
          ? []
          : [`${sourceV6(before[i]!)} > ${destinationV6(before[i]!)}: ${was[i]} became ${bad}`],
      );
      t.deepEqual(spoilt, []);
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
);
