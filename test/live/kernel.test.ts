/** Weft and the Linux kernel's own bridge and vxlan as each other's peers, IPv4 and IPv6 outside. */
import { createHash, randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { iperf3, kernelVxlan, ping, waitFor } from '../../cli/lab.js';
import { live, Mesh, overlayAddress, overlayMac, peer, shared, underlayAddress } from '../support/live.js';
import type { UdpReport } from '../support/live-peer.js';

const FILE_BYTES = 2 << 20;

/** Host 1 runs Weft, host 2 the kernel's vxlan; with all offloads of the kernel on, but for Weft's socket path. */
async function besideKernel(v6: boolean, mode: string): Promise<Mesh> {
  const mesh = await Mesh.up({ hosts: 2, v6, without: [2], underlay: { mode } });
  try {
    kernelVxlan(mesh.hosts[1], mesh.containers[1], {
      vni: 42,
      local: underlayAddress(2, v6),
      remote: underlayAddress(1, v6),
      underlayDev: 'under0',
      address: [`${overlayAddress(2)}/24`, `${overlayAddress(2, true)}/64`],
      mac: overlayMac(2),
      mtu: v6 ? 1430 : 1450,
    });
    // On a veth the peer leaves inner checksums to its card, and a socket is not told (docs/kernel-peer.md).
    const features = ['tx', 'tx-udp_tnl-segmentation', 'tx-udp_tnl-csum-segmentation'];
    if ((await mesh.engines[0].status()).underlay.path === 'socket') {
      await mesh.hosts[1].run('ethtool', ['-K', 'under0', ...features.flatMap((name) => [name, 'off'])]);
    }
  } catch (error) {
    mesh.close();
    throw error;
  }
  return mesh;
}

/** Sends random bytes over TCP from container `from` to the other, and compares digests. */
async function transfer(t: ExecutionContext, mesh: Mesh, from: number, v6: boolean, bytes = FILE_BYTES) {
  const [source, target] = ['sent', 'received'].map((name) => join(mesh.directory, name));
  const to = 3 - from;
  writeFileSync(source, randomBytes(bytes));
  const server = mesh.containers[to - 1].start('socat', [
    ...['-d', '-d', '-u', `TCP${v6 ? 6 : 4}-LISTEN:7000,reuseaddr`, `OPEN:${target},creat,trunc`],
  ]);
  await server.output(/listening on/, { stream: 'stderr' });
  const address = v6 ? `[${overlayAddress(to, true)}]` : overlayAddress(to);
  await mesh.containers[from - 1].run('socat', ['-u', `OPEN:${source}`, `TCP${v6 ? 6 : 4}:${address}:7000`]);
  await server.finish();
  const digest = (path: string) => createHash('sha256').update(readFileSync(path)).digest('hex');
  t.is(digest(target), digest(source), `from container ${from}`);
}

async function udpSizes(t: ExecutionContext, mesh: Mesh, from: number): Promise<void> {
  const to = 3 - from;
  const server = peer(mesh.containers[to - 1], 'udp-echo', overlayAddress(to), '7001');
  await server.output(/^listening$/m);
  const sizes = ['1-64', '500-510', '1300-1403', '8000'];
  const client = peer(mesh.containers[from - 1], 'udp-client', overlayAddress(to), '7001', ...sizes);
  const report = JSON.parse((await client.finish()).stdout) as UdpReport;
  await server.stop();
  t.deepEqual(report.missing, []);
}

const variants = [4, 6].flatMap((outside) =>
  (['auto', 'socket'] as const).map((mode) => ({ outside, mode })),
);

for (const { outside, mode } of variants) {
  const v6 = outside === 6;
  const mesh = shared(() => besideKernel(v6, mode));
  const title = `Weft and a kernel vxlan over IPv${outside}, underlay ${mode}`;

  live(
    `${title}: ping, TCP with super-frames, and UDP, in both directions`,
    async (t) => {
      const dropped = await mesh().engines[0].watchDrops();
      for (const inner6 of [false, true]) {
        for (const from of [1, 2]) {
          const result = await ping(mesh().containers[from - 1], overlayAddress(3 - from, inner6), {
            count: 5,
          });
          t.is(result.received, 5);
          t.is(result.duplicates, 0);
          await transfer(t, mesh(), from, inner6);
        }
      }
      await udpSizes(t, mesh(), 1);
      await udpSizes(t, mesh(), 2);
      t.deepEqual(await dropped(), {});
      const fdb = await mesh().engines[0].fdb();
      t.like(
        fdb.find(({ mac }) => mac === overlayMac(2)),
        { vtep: underlayAddress(2, v6), static: false },
      );
      t.is((await mesh().engines[0].status()).slotsInUse, 0);
    },
    { tools: ['socat'] },
  );

  live(
    `${title}: iperf3 in both directions`,
    async (t) => {
      const [a, b] = mesh().containers;
      for (const reverse of [false, true]) {
        const result = await iperf3(a, b, overlayAddress(2), { bytes: 20e6, reverse });
        t.log(`${reverse ? 'from' : 'to'} the kernel: ${(result.bitsPerSecond / 1e9).toFixed(2)} Gb/s`);
        t.true(result.bitsPerSecond > 0);
      }
    },
    { tools: ['iperf3'] },
  );

  live(
    `${title}: tshark finds sound packets on the underlay`,
    async (t) => {
      const [host, other] = mesh().hosts;
      // Checksums are filled in by whoever receives unless the cards of the lab are told not to put them off.
      for (const each of [host, other])
        await each.run('ethtool', ['-K', 'under0', 'tx', 'off', 'tso', 'off', 'gso', 'off', 'gro', 'off']);
      const capture = join(mesh().directory, 'underlay.pcap');
      const filter = v6 ? 'ip6 and udp' : 'udp';
      const tcpdump = other.start('tcpdump', [
        ...['-i', 'under0', '-n', '-s', '0', '-U', '-w', capture, '--immediate-mode'],
        ...['-B', '16384', `${filter} and (dst port 4789)`],
      ]);
      await tcpdump.output(/listening on/, { stream: 'stderr' });
      for (const inner6 of [false, true]) {
        t.true(
          (await ping(mesh().containers[0], overlayAddress(2, inner6), { count: 2, deadlineS: 10 }))
            .received >= 2,
        );
        for (const from of [1, 2]) await transfer(t, mesh(), from, inner6, 100_000);
      }
      await udpSizes(t, mesh(), 1);
      await tcpdump.stop('SIGINT');
      const packets = await dissect(mesh(), capture);
      const ours = packets.filter(({ source }) => source === underlayAddress(1, v6));
      t.true(ours.length > 100 && packets.length > ours.length);
      t.deepEqual([...new Set(packets.flatMap(({ checksums }) => checksums))].filter(isBad), []);
      t.deepEqual([...new Set(packets.map(({ vni }) => vni))], ['42']);
      const ports = new Set(ours.map(({ port }) => Number(port)));
      for (const port of ports) t.true(port >= 49152 && port <= 65535, String(port));
      t.true(ports.size > 1, 'flows differ in their source port');
      t.deepEqual([...new Set(ours.map(({ ttl }) => ttl))], ['64']);
      if (!v6) t.true(ours.every(({ df }) => df));
    },
    { tools: ['socat', 'tcpdump', 'tshark', 'ethtool'] },
  );
}

interface Dissected {
  readonly source: string;
  readonly port: string;
  readonly ttl: string;
  readonly df: boolean;
  readonly vni: string;
  /** Of every layer: 0 bad, 1 good, 2 unverified, 3 not present. */
  readonly checksums: string[];
}

const isBad = (status: string): boolean => status !== '1' && status !== '2' && status !== '3';

/** What tshark reads of each packet; of repeated fields the first is the outer one. */
async function dissect(mesh: Mesh, capture: string): Promise<Dissected[]> {
  const fields = ['ip.src', 'ipv6.src', 'udp.srcport', 'ip.ttl', 'ipv6.hlim', 'ip.flags.df', 'vxlan.vni'];
  const sums = ['ip', 'udp', 'tcp', 'icmp', 'icmpv6'].map((layer) => `${layer}.checksum.status`);
  const verify = ['ip', 'udp', 'tcp'].flatMap((layer) => ['-o', `${layer}.check_checksum:TRUE`]);
  const { code, stdout, stderr } = await waitFor(
    () =>
      mesh.hosts[1].exec('tshark', [
        ...['-n', '-r', capture, ...verify, '-d', 'udp.port==4789,vxlan', '-T', 'fields'],
        ...['-E', 'separator=;', '-E', 'occurrence=a', '-E', 'aggregator=,'],
        ...[...fields, ...sums].flatMap((field) => ['-e', field]),
      ]),
    { what: 'tshark' },
  );
  if (code !== 0) throw new Error(`tshark: ${stderr}`);
  return stdout
    .trim()
    .split('\n')
    .map((line) => {
      const cells = line.split(';').map((cell) => cell.split(',').filter((value) => value !== ''));
      const [v4, v6, port, ttl, hops, df, vni, ...status] = cells;
      const outer6 = v6[0]?.startsWith('fd50') === true;
      return {
        source: outer6 ? v6[0] : v4[0],
        port: port[0],
        ttl: outer6 ? hops[0] : ttl[0],
        df: df[0] === '1' || df[0] === 'True',
        vni: vni[0],
        checksums: status.flat(),
      };
    });
}
