/** The benchmarks measure what they say: traffic that is delivered whole, and reports that are complete. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { bench, groups, select } from '../../bench/harness.js';
import { micro } from '../../bench/micro.js';
import { chainOverTraffic, type EspTraffic, IMIX } from '../../bench/traffic.js';

for (const chain of [['bridge'], ['bridge', 'vxlan-encap'], ['vxlan-decap', 'bridge']]) {
  for (const v6 of [false, true]) {
    for (const [name, lengths] of [
      ['64', [64]],
      ['IMIX', IMIX],
    ] as const) {
      test(`traffic of ${name} B through ${chain}${v6 ? ', IPv6' : ''} is delivered whole`, (t) => {
        const run = chainOverTraffic({ chain, lengths, stations: 256, frames: 4096, v6 });
        run.pass();
        run.pass();
        const { frames, bytes, delivered, drops } = run.totals();
        t.deepEqual([frames, delivered, drops], [8192, 8192, {}]);
        const mean = lengths.reduce((sum, length) => sum + length, 0) / lengths.length;
        const outer = chain[0] === 'vxlan-decap' ? (v6 ? 70 : 50) : 0;
        t.true(Math.abs(bytes / frames - outer - mean) < mean / 100);
        // Destinations are known: learned from the traffic, or put in as the local ones.
        t.is(run.tools.stations.size, chain[0] === 'vxlan-decap' ? 512 : 256);
      });
    }
  }
}

const GCM: EspTraffic = { algorithm: 'aes-128-gcm-16', peers: 1 };

/** Bytes that are in front of and behind `length` sealed bytes in ESP over UDP; the trailer ends on a multiple of 4. */
const inEsp = (length: number): number => 8 + 8 + 8 + ((length + 2 + 3) & ~3) + 16;

for (const v6 of [false, true]) {
  for (const length of [64, 512, 1400]) {
    const outer = v6 ? 54 : 34;
    for (const [name, given] of [
      ['esp-encrypt', outer + length],
      ['esp-decrypt', outer + inEsp(length)],
    ] as const) {
      test(`${length} sealed bytes through ${name}${v6 ? ', IPv6' : ''} are delivered whole, pass after pass`, (t) => {
        const run = chainOverTraffic({
          chain: [name],
          lengths: [length],
          stations: 256,
          frames: 1024,
          v6,
          esp: GCM,
        });
        run.pass();
        run.pass();
        const { frames, bytes, delivered, drops } = run.totals();
        t.deepEqual([frames, delivered, drops], [2048, 2048, {}]);
        t.is(bytes, 2048 * given);
      });
    }
  }
}

test('a chain that ends with esp-encrypt takes frames, and seals what comes of them', (t) => {
  const chain = ['bridge', 'vxlan-encap', 'esp-encrypt'];
  const run = chainOverTraffic({ chain, lengths: IMIX, stations: 256, frames: 1200, v6: false, esp: GCM });
  const lengths: number[] = [];
  const { len } = run.tools.context.frames;
  run.observe({
    delivered: (frame) => lengths.push(len[frame]),
    dropped: (_frame, _index, element, reason) => t.fail(`${element}: ${reason}`),
    breath() {},
  });
  const sealed = (length: number) => 34 + inEsp(8 + 8 + length);
  t.deepEqual(lengths.slice(0, 12), IMIX.map(sealed));
  t.is(run.totals().bytes, 100 * IMIX.reduce((sum, length) => sum + length, 0));
});

for (const name of ['esp-encrypt', 'esp-decrypt']) {
  test(`${name} of many peers: each has a share of the packets`, (t) => {
    const esp: EspTraffic = { algorithm: 'aes-256-gcm-16', peers: 50, library: 'openssl' };
    const run = chainOverTraffic({
      chain: [name],
      lengths: [64],
      stations: 256,
      frames: 4096,
      v6: false,
      esp,
    });
    run.pass();
    t.deepEqual(run.totals().drops, {});
    const { packets } = run.tools.associations.state;
    const used = packets.filter((count) => count > 0);
    t.is(used.length, 50);
    t.is(
      used.reduce((sum, count) => sum + count, 0),
      4096,
    );
    // At random, but nobody has nearly none or nearly all.
    t.true(Math.min(...used) > 40 && Math.max(...used) < 140);
  });
}

test('IMIX is seven small, four middle and one large', (t) => {
  const count = (length: number) => IMIX.filter((one) => one === length).length;
  t.deepEqual([count(64), count(570), count(1518)], [7, 4, 1]);
});

test('the harness runs rounds in processes of their own and reports them', async (t) => {
  const selected = select(['bridge']) ?? [];
  const lines: string[] = [];
  const report = await bench(selected, { seconds: 0.02, rounds: 2, say: (line) => lines.push(line) });
  t.is(lines.length, 2);
  const [{ name, mpps, medianMpps, cpuMpps, nsPerFrame, gbps, floorMpps, extra }] = report.scenarios;
  t.deepEqual({ name, floorMpps, extra }, { name: 'bridge', floorMpps: 30, extra: { droppedPercent: 0 } });
  t.true(['ipsec-mb', 'openssl'].includes(report.gcm));
  t.true(mpps >= medianMpps && cpuMpps > 0 && gbps > 0);
  t.true(Math.abs(nsPerFrame * mpps - 1000) < 1e-6);
});

test('scenarios are chosen by name and by group', (t) => {
  t.deepEqual(
    select(['core'])?.map(({ name }) => name),
    ['bridge', 'bridge,vxlan-encap', 'vxlan-decap,bridge'],
  );
  t.deepEqual(
    select(['esp'])?.flatMap(({ name, floor }) => (floor === undefined ? [] : [[name, floor]])),
    ['esp-encrypt', 'esp-decrypt'].flatMap((way) => [
      [`${way} 64`, 10],
      [`${way} 512`, 8],
      [`${way} 1400`, 6],
    ]),
  );
  t.is(select(['bridge', 'nothing']), undefined);
  t.true(groups().includes('heap'));
  const names = (select([]) ?? []).map(({ name }) => name);
  t.is(new Set(names).size, names.length);
  for (const { name, against } of select([]) ?? [])
    t.true(against === undefined || names.includes(against), `${name} against ${against}`);
});

test('functions are timed by the package benchmark', async (t) => {
  t.timeout(60_000);
  const results = await micro(0.01, () => {});
  t.true(results.length >= 11);
  for (const { name, medianNs, p99Ns, samples } of results)
    t.true(medianNs > 0 && p99Ns >= medianNs && samples > 0, name);
});

test('weft bench refuses an unknown scenario and lists the known ones', async (t) => {
  const main = fileURLToPath(new URL('../../cli/main.js', import.meta.url));
  const { code, stderr } = await new Promise<{ code: unknown; stderr: string }>((resolve) => {
    execFile(process.execPath, [main, 'bench', 'nonsense'], (error, _stdout, stderr) =>
      resolve({ code: error?.code, stderr }),
    );
  });
  t.is(code, 2);
  t.regex(stderr, /vxlan-decap,bridge/);
});
