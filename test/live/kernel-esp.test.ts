/**
 * The Linux kernel's own ESP as the peer of an encrypted network, over both families and encapsulations: Debian's kernel
 * in a VM, since that of this machine may have none. Associations are written out at both ends.
 */
import { randomBytes } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import type { ExecutionContext } from 'ava';
import { ping, waitFor } from '../../cli/lab.js';
import { ESP_IN_UDP_PORT, type KernelSa, type KernelSaState, refusals } from '../support/kernel-vm/esp.js';
import { EspMesh, newPair, type Pair, type Shape, shapeName } from '../support/kernel-vm/esp-mesh.js';
import { KernelVm } from '../support/kernel-vm.js';
import {
  inject,
  live,
  overlayAddress,
  type Sniffer,
  sendUdp,
  shared,
  sniff,
  underlayAddress,
} from '../support/live.js';

const skip = KernelVm.unavailable();
const requirements = { tools: ['tcpdump', 'socat'], skip };
const mesh = shared(() => EspMesh.boot(), skip);

/**
 * Inner packets from the shortest to the longest, in both families and directions. One request a call, with seconds for
 * its answer: of several, `ping` waits for the last ones no longer than the first one took.
 */
async function pings(t: ExecutionContext): Promise<void> {
  const { weft, vm, containers } = mesh();
  const { mtu } = (await weft.status()).networks[0];
  const sizes = (v6: boolean) => [0, 1, 2, 3, 16, 64, 577, mtu - (v6 ? 49 : 29), mtu - (v6 ? 48 : 28)];
  for (const v6 of [false, true]) {
    for (const size of sizes(v6)) {
      const options = { count: 1, size, interval: 5, deadlineS: 5, df: true };
      const { sent, received, duplicates } = await ping(containers[0], overlayAddress(2, v6), options);
      t.deepEqual({ size, sent, received, duplicates }, { size, sent: 1, received: 1, duplicates: 0 });
    }
  }
  const all = [false, true].flatMap((v6) => sizes(v6).map((size) => `${size} ${overlayAddress(1, v6)}`));
  const answers = await vm.sh(
    'while read -r size to; do ping -n -q -c 1 -i 5 -w 5 -M do -s $size $to | grep packets; done',
    { input: `${all.join('\n')}\n` },
  );
  const lossless = answers.split('\n').filter((line) => /^1 packets transmitted, 1 received, 0%/.test(line));
  t.is(lossless.length, all.length, answers);
}

/** Sends text through the VM's echo by TCP, and compares what comes back. */
async function echoed(t: ExecutionContext, v6: boolean): Promise<void> {
  const text = randomBytes(384_000).toString('base64');
  const to = v6 ? `TCP6:[${overlayAddress(2, true)}]:7` : `TCP4:${overlayAddress(2)}:7`;
  const { stdout, stderr } = await mesh().containers[0].exec('socat', ['-t', '20', '-', to], { input: text });
  t.is(stdout.length, text.length, stderr);
  t.true(stdout === text, 'what came back is not what was sent');
}

/** An ESP packet on the wire. */
interface Seen {
  readonly frame: Buffer;
  /** From the SPI on. */
  readonly esp: Buffer;
  readonly spi: number;
  /** Low half of the sequence number. */
  readonly sequence: number;
}

/** What the VTEPs sent each other, neighbours' questions aside; fails the test when it is not ESP, or a fragment. */
function espOf(t: ExecutionContext, sniffer: Sniffer, { v6, encapsulation }: Shape): Seen[] {
  const udp = encapsulation === 'udp';
  const all = sniffer.frames().map((text) => Buffer.from(text, 'hex'));
  return all
    .filter((frame) => frame.readUInt16BE(12) === (v6 ? 0x86dd : 0x0800))
    .map((frame) => ({ frame, protocol: frame[v6 ? 20 : 23], transport: frame.subarray(v6 ? 54 : 34) }))
    .filter(({ protocol }) => protocol !== (v6 ? 58 : 1))
    .map(({ frame, protocol, transport }) => {
      t.is(protocol, udp ? 17 : 50);
      if (!v6) t.is(frame.readUInt16BE(20) & 0x3fff, 0, 'a fragment');
      if (udp) t.is(transport.readUInt32BE(0), ESP_IN_UDP_PORT * 65537);
      const esp = transport.subarray(udp ? 8 : 0);
      return { frame, esp, spi: esp.readUInt32BE(0), sequence: esp.readUInt32BE(4) };
    });
}

const stateOf = async ({ spi }: KernelSa): Promise<KernelSaState> => (await mesh().peer.states()).get(spi)!;

/** Both ends have counted the same packets under the same numbers. */
async function agree(t: ExecutionContext, pair: Pair): Promise<void> {
  const counted = async (): Promise<[unknown, unknown]> => {
    const rows = await Promise.all([pair.in, pair.out].map((sa) => mesh().row(sa)));
    const states = await mesh().peer.states();
    const both = [rows, [pair.in, pair.out].map(({ spi }) => states.get(spi)!)];
    const [ours, theirs] = both.map((side) => side.map(({ packets, sequence }) => ({ packets, sequence })));
    return [ours, theirs];
  };
  // Either may have something of the other's before it still, such as a neighbour's question.
  await waitFor(async () => isDeepStrictEqual(...(await counted())), { what: 'the same counts' }).catch(
    () => undefined,
  );
  t.deepEqual(...(await counted()));
}

/** Starts to watch what the VM's kernel refuses; the function returned tells what it refused since. */
async function watchRefusals(): Promise<() => Promise<Record<string, number>>> {
  const before = await refusals(mesh().vm);
  return async () => {
    const all = Object.entries(await refusals(mesh().vm));
    const grown = all.map(([name, count]) => [name, count - (before[name] ?? 0)] as const);
    return Object.fromEntries(grown.filter(([, count]) => count > 0));
  };
}

/** Sends a packet that was seen once more: to the VM as Weft does, or to Weft as the VM does. */
async function again(to: 'vm' | 'weft', { frame, esp }: Seen, { v6, encapsulation }: Shape): Promise<void> {
  const { hosts, switch: wire } = mesh();
  if (to === 'weft') await inject(wire, 'p0', frame);
  // The checksum of a datagram that leaves is not complete where it was seen.
  else if (encapsulation === 'udp') await sendUdp(hosts[0], underlayAddress(2, v6), ESP_IN_UDP_PORT, esp);
  else await inject(hosts[0], 'under0', frame);
}

const shapes = [false, true].flatMap((v6) =>
  (['esp', 'udp'] as const).flatMap((encapsulation) =>
    (['auto', 'socket'] as const).map((mode): Shape => ({ v6, encapsulation, mode })),
  ),
);
const algorithms = ([128, 256, 192] as const).flatMap((bits) =>
  ([16, 12, 8] as const).map((icv) => ({ bits, icv })),
);
const variants = shapes
  .flatMap((shape) => [true, false].map((esn) => ({ shape, esn })))
  .map((variant, i) => ({ ...variant, ...algorithms[i % algorithms.length] }));

for (const { shape, esn, bits, icv } of variants) {
  const numbers = esn ? 'extended sequence numbers across 2^32' : '32-bit sequence numbers';
  live(
    `kernel ESP over ${shapeName(shape)}, aes-${bits}-gcm-${icv}, ${numbers}: every size passes, nothing twice`,
    async (t) => {
      // A wider window would reach below zero, and take the first numbers for some that wrapped.
      const near = { sequence: 2 ** 32 - 36, replayWindow: 32 };
      const pair = newPair({ bits, icv, esn, ...(esn ? near : {}) });
      await mesh().connect(shape, pair);
      const { hosts, weft } = mesh();
      const dropped = await weft.watchDrops();
      const refused = await watchRefusals();
      const sniffer = await sniff(hosts[0], 'under0', 'ip or ip6', 'inout');
      await pings(t);
      await agree(t, pair);
      await sniffer.stop();
      t.deepEqual(await dropped(), {});
      t.deepEqual(await refused(), {});
      const seen = espOf(t, sniffer, shape);
      const [sent, received] = [pair.in, pair.out].map(({ spi }) => seen.filter((one) => one.spi === spi));
      t.is(sent.length + received.length, seen.length);
      t.true(Math.min(sent.length, received.length) >= 36);
      for (const sa of [pair.in, pair.out]) t.is((await mesh().row(sa)).sequence >= 2 ** 32, esn);

      await again('weft', received.at(-1)!, shape);
      await again('vm', sent.at(-1)!, shape);
      await waitFor(async () => (await stateOf(pair.in)).replayed > 0, { what: 'a replay in the VM' });
      t.like(await stateOf(pair.in), { replayed: 1, failed: 0 });
      t.deepEqual(await refused(), { XfrmInStateSeqError: 1 });
      await waitFor(async () => Object.keys(await dropped()).length > 0, { what: 'a drop in Weft' });
      t.deepEqual(await dropped(), { 'esp-decrypt replayed': 1 });
      t.like(await mesh().row(pair.out), { refusals: { replayed: 1 } });

      await echoed(t, shape.v6);
      await agree(t, pair);
      t.deepEqual(await dropped(), { 'esp-decrypt replayed': 1 });
      t.deepEqual(await refused(), { XfrmInStateSeqError: 1 });
      t.is((await weft.status()).slotsInUse, 0);
    },
    requirements,
  );
}
