/** Two Weft hosts, IPv4 and IPv6 outside and inside, ordinary and jumbo underlays: what containers send arrives. */
import { createHash, randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { iperf3, type Namespace, ping } from '../../cli/lab.js';
import { linkOf, live, Mesh, overlayAddress, peer, shared } from '../support/live.js';
import type { UdpReport } from '../support/live-peer.js';

const FILE_BYTES = 3 << 20;
const sha256 = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

/** Sends a file of random bytes over TCP and compares what arrived. */
async function transfer(t: ExecutionContext, mesh: Mesh, from: Namespace, to: Namespace, address: string) {
  const source = join(mesh.directory, 'sent');
  const target = join(mesh.directory, 'received');
  writeFileSync(source, randomBytes(FILE_BYTES));
  const family = address.includes(':') ? '6' : '4';
  const server = to.start('socat', [
    ...['-d', '-d', '-u', `TCP${family}-LISTEN:7000,reuseaddr`, `OPEN:${target},creat,trunc`],
  ]);
  await server.output(/listening on/, { stream: 'stderr' });
  const host = family === '6' ? `[${address}]` : address;
  await from.run('socat', ['-u', `OPEN:${source}`, `TCP${family}:${host}:7000`]);
  await server.finish();
  t.is(sha256(target), sha256(source), `${from.label} to ${address}`);
}

async function udpSizes(t: ExecutionContext, mesh: Mesh, address: string, ...sizes: string[]): Promise<void> {
  const [from, to] = mesh.containers;
  const server = peer(to, 'udp-echo', address, '7001');
  await server.output(/^listening$/m);
  const { stdout } = await peer(from, 'udp-client', address, '7001', ...sizes).finish();
  await server.stop();
  const report = JSON.parse(stdout) as UdpReport;
  t.deepEqual(report.missing, []);
  t.is(report.intact, report.sent);
}

/** Runs a body and asserts that neither engine dropped a frame meanwhile. */
async function withoutDrops(t: ExecutionContext, mesh: Mesh, body: () => Promise<void>): Promise<void> {
  const watches = await Promise.all(mesh.engines.map((engine) => engine.watchDrops()));
  await body();
  for (const dropped of watches) t.deepEqual(await dropped(), {});
}

const variants = [4, 6].flatMap((outside) =>
  (['auto', 'socket'] as const).map((mode) => ({ outside, mode })),
);

for (const { outside, mode } of variants) {
  const mesh = shared(() => Mesh.up({ hosts: 2, v6: outside === 6, underlay: { mode } }));
  const title = `Weft to Weft over IPv${outside}, underlay ${mode}`;

  for (const inside of [4, 6]) {
    const address = overlayAddress(2, inside === 6);
    const back = overlayAddress(1, inside === 6);

    live(`${title}: ping over IPv${inside}, each packet once`, async (t) => {
      await withoutDrops(t, mesh(), async () => {
        const result = await ping(mesh().containers[0], address, { count: 10, interval: 0.1 });
        t.is(result.received, 10);
        t.is(result.duplicates, 0);
      });
      const status = await mesh().engines[0].status();
      t.true(status.underlay.counters['tx-frames'] >= 10);
      t.true(status.underlay.counters['rx-frames'] >= 10);
      t.is(status.slotsInUse, 0);
    });

    live(
      `${title}: a file over TCP and IPv${inside} arrives unchanged in both directions`,
      async (t) => {
        const [a, b] = mesh().containers;
        await transfer(t, mesh(), a, b, address);
        await transfer(t, mesh(), b, a, back);
        const status = await mesh().engines[0].status();
        t.is(status.slotsInUse, 0);
        t.true(status.endpoints[0].counters['rx-super'] > 0, 'the container sent super-frames');
      },
      { tools: ['socat'] },
    );

    live(
      `${title}: iperf3 over IPv${inside}`,
      async (t) => {
        const [a, b] = mesh().containers;
        const result = await iperf3(a, b, address, { bytes: 20e6 });
        t.log(`${(result.bitsPerSecond / 1e9).toFixed(2)} Gb/s`);
        t.true(result.bitsPerSecond > 0);
        t.is((await mesh().engines[0].status()).slotsInUse, 0);
      },
      { tools: ['iperf3'] },
    );

    live(`${title}: datagrams of 1 to 1,400 bytes and in fragments over IPv${inside}`, async (t) => {
      await withoutDrops(t, mesh(), async () => {
        await udpSizes(t, mesh(), address, '1-1400', '1401-1403', '8000', '20000');
      });
    });
  }

  live(`${title}: the interface has the overlay's MTU, which just fits`, async (t) => {
    const mtu = outside === 6 ? 1430 : 1450;
    const [a] = mesh().containers;
    const link = linkOf(a, 'eth0');
    t.is(link?.mtu, mtu);
    t.is((await mesh().engines[0].status()).networks[0].mtu, mtu);
    await withoutDrops(t, mesh(), async () => {
      const fits = await ping(a, overlayAddress(2), { count: 3, size: mtu - 28, df: true });
      t.is(fits.received, 3);
    });
  });

  live(`${title}: what is larger than the underlay is dropped and counted, not cut`, async (t) => {
    const [a] = mesh().containers;
    const mtu = linkOf(a, 'eth0')!.mtu;
    a.ip('link', 'set', 'eth0', 'mtu', '9000');
    const dropped = await mesh().engines[0].watchDrops();
    const result = await ping(a, overlayAddress(2), { count: 2, size: mtu - 27, df: true });
    a.ip('link', 'set', 'eth0', 'mtu', String(mtu));
    t.is(result.received, 0);
    const { path } = (await mesh().engines[0].status()).underlay;
    t.deepEqual(await dropped(), { [`${path === 'socket' ? 'underlay' : 'uplink'} too-big`]: 2 });
  });

  const jumbo = shared(() => Mesh.up({ hosts: 2, v6: outside === 6, mtu: 9000, underlay: { mode } }));

  live(`${title}, jumbo: MTU 9000 less the overhead, and full frames pass`, async (t) => {
    const mtu = outside === 6 ? 8930 : 8950;
    const [a] = jumbo().containers;
    t.is(linkOf(a, 'eth0')?.mtu, mtu);
    await withoutDrops(t, jumbo(), async () => {
      const fits = await ping(a, overlayAddress(2), { count: 3, size: mtu - 28, df: true });
      t.is(fits.received, 3);
      await udpSizes(t, jumbo(), overlayAddress(2), '1', '1400', '8000', String(mtu - 28), '20000');
    });
    t.is((await jumbo().engines[0].status()).slotsInUse, 0);
  });

  live(
    `${title}, jumbo: a file over TCP arrives unchanged`,
    async (t) => {
      const [a, b] = jumbo().containers;
      await transfer(t, jumbo(), a, b, overlayAddress(2));
      await transfer(t, jumbo(), b, a, overlayAddress(1, true));
    },
    { tools: ['socat'] },
  );
}
