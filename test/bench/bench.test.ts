/** The benchmarks measure what they say: traffic that is delivered whole, and reports that are complete. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { bench, groups, select } from '../../bench/harness.js';
import { micro } from '../../bench/micro.js';
import { chainOverTraffic, IMIX } from '../../bench/traffic.js';

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
  t.true(mpps >= medianMpps && cpuMpps > 0 && gbps > 0);
  t.true(Math.abs(nsPerFrame * mpps - 1000) < 1e-6);
});

test('scenarios are chosen by name and by group', (t) => {
  t.deepEqual(
    select(['core'])?.map(({ name }) => name),
    ['bridge', 'bridge,vxlan-encap', 'vxlan-decap,bridge'],
  );
  t.is(select(['bridge', 'nothing']), undefined);
  t.true(groups().includes('heap'));
  const names = (select([]) ?? []).map(({ name }) => name);
  t.is(new Set(names).size, names.length);
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
