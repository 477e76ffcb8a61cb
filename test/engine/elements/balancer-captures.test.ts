/** The shared captures through `balance`: every server in them is a service, and each packet comes back as it went. */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { loadCaptures } from '../../../control/replay.js';
import type { ServiceIntent } from '../../../engine/intent.js';
import { BalancerRig, backend, service } from '../../support/balancer.js';
import { answerTo, badChecksums, ends, TCP, UDP } from '../../support/nat.js';

const FOLDER = fileURLToPath(new URL('../../../../../shared/pcaps/nat-lb', import.meta.url));
const absent = existsSync(FOLDER) ? '' : ' [skipped: no captures at ../shared/pcaps beside the repository]';
const shared = absent ? test.skip : test;

/** The TCP and UDP packets of IPv4 of a capture that are no fragments, as frames. */
function framesOf(file: string): Uint8Array[] {
  const { memory, list } = loadCaptures([join(FOLDER, file)], { through: ['balance'], port: 4789 });
  const frames = [...list.offsets].map((at, i) => memory.u8.slice(at, at + list.lengths[i]!));
  return frames.filter(
    (frame) =>
      frame.length >= 42 &&
      ((frame[12]! << 8) | frame[13]!) === 0x800 &&
      (frame[23] === TCP || frame[23] === UDP) &&
      ((frame[20]! << 8) | frame[21]!) % 0x4000 === 0,
  );
}

/** A service for each address that is asked, by the first packet of its flow; each with two backends. */
function servicesOf(frames: readonly Uint8Array[]): ServiceIntent[] {
  const clients = new Set<string>();
  const found = new Map<string, ServiceIntent>();
  for (const frame of frames) {
    const [source, destination] = [frame.slice(26, 30), frame.slice(30, 34)];
    if (found.has(source.join('.')) || clients.has(destination.join('.')) || found.has(destination.join('.')))
      continue;
    if (destination[0]! >= 224 || found.size >= 60) continue;
    clients.add(source.join('.'));
    const id = found.size + 1;
    const at = (n: number) => ({ address: Uint8Array.of(100, 64, id, n) });
    const backends = [backend(id * 2, at(1)), backend(id * 2 + 1, at(2))];
    found.set(destination.join('.'), service({ id, address: destination, backends }));
  }
  return [...found.values()];
}

shared(
  `every packet of the captures to a server goes to a backend, and its answer comes as the server’s${absent}`,
  (t) => {
    let [there, back, refused] = [0, 0, 0];
    for (const file of readdirSync(FOLDER).sort()) {
      const frames = framesOf(file);
      const services = servicesOf(frames);
      const virtual = new Set(services.map(({ address }) => address.join('.')));
      const b = new BalancerRig(services, 20_000);
      for (const frame of frames) {
        // A virtual address asks nobody.
        if (virtual.has(frame.slice(26, 30).join('.')) && virtual.has(frame.slice(30, 34).join('.')))
          continue;
        if (!virtual.has(frame.slice(30, 34).join('.'))) {
          const before = frame.slice();
          t.deepEqual(b.one(frame), before, `${file}: what servers send has their own address`);
          continue;
        }
        const before = badChecksums(frame);
        const [out] = b.feed([frame]);
        // Of connections whose beginning the capture lacks, and of broken packets.
        if (out === undefined || out.bytes[30] !== 100 || out.bytes[31] !== 64) {
          refused++;
          continue;
        }
        there++;
        t.deepEqual(badChecksums(out.bytes), before, `${file}: ${ends(frame)}`);
        const [answer] = b.feed([answerTo(out.bytes)]);
        back++;
        // Padding is no part of the packet.
        const expected = answerTo(frame).slice(12, answer!.bytes.length);
        t.deepEqual(answer!.bytes.slice(12), expected, `${file}: ${ends(frame)}`);
      }
      b.rig.finish(t);
    }
    t.is(there, back);
    t.true(there > 2000, `${there} there, ${refused} refused`);
    t.log(`${there} there and back, ${refused} refused`);
  },
);
