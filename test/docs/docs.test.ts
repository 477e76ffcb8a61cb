/** The documentation against the code: names that must agree, links that must lead somewhere, scripts that must run. */
import { spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { Lab, toolEnvironment } from '../../cli/lab.js';

const ROOT = fileURLToPath(new URL('../../../', import.meta.url));
const read = (path: string): string => readFileSync(join(ROOT, path), 'utf8');

const PAGES = [
  'README.md',
  'CONTRIBUTING.md',
  'examples/README.md',
  ...readdirSync(join(ROOT, 'docs'))
    .filter((name) => name.endsWith('.md'))
    .map((name) => `docs/${name}`),
];

/** An element is called as its file is, but for these. */
const elementOf = (file: string): string => basename(file, '.ts').replace(/^balancer\b/, 'balance');

/** `element reason`, of every REASONS list in the engine; an element is named by its file. */
function reasonsOfCode(): string[] {
  const outer = /OUTER_REASONS = \[([^\]]*)\] as const/.exec(read('engine/wire/outer.ts'))![1]!;
  const part = (file: string, name: string): string =>
    new RegExp(`${name}_REASONS = \\[([^\\]]*)\\] as const`).exec(read(`engine/elements/${file}.ts`))![1]!;
  const parts: Record<string, string> = {
    ...{ FLOW: part('nat/flow-maker', 'FLOW'), ERROR: part('nat/errors', 'ERROR') },
    ...{ BALANCE: part('balancer/chooser', 'BALANCE'), TRACK: part('mesh/tracks', 'TRACK') },
  };
  const found: string[] = [];
  for (const folder of ['engine/elements', 'engine/elements/balancer', 'engine/ports']) {
    for (const file of readdirSync(join(ROOT, folder)).filter((name) => name.endsWith('.ts'))) {
      const list = /const REASONS = \[([^\]]*)\] as const/.exec(read(`${folder}/${file}`))?.[1] ?? '';
      const whole = list
        .replace('...OUTER_REASONS', outer)
        .replace(/\.\.\.(FLOW|ERROR|BALANCE|TRACK)_REASONS/g, (_, kind: string) => parts[kind]!);
      for (const [, reason] of whole.matchAll(/'([^']+)'/g)) found.push(`${elementOf(file)} ${reason}`);
    }
  }
  return found;
}

test('docs/vxlan.md, gateway.md and services.md explain every drop reason of the engine, and no other', (t) => {
  const pages = ['vxlan', 'gateway', 'services'].map((page) => read(`docs/${page}.md`)).join('\n');
  const rows = [...pages.matchAll(/^\| `([\w-]+)` +\| `([\w-]+)` +\| \S/gm)];
  const explained = rows.map(([, element, reason]) => `${element} ${reason}`);
  const reasons = reasonsOfCode();
  t.true(reasons.length > 40);
  const notExplained = reasons.filter((reason) => !explained.includes(reason));
  const notInCode = explained.filter((reason) => !reasons.includes(reason));
  t.deepEqual({ notExplained, notInCode }, { notExplained: [], notInCode: [] });
  t.is(new Set(explained).size, explained.length);
});

test('links between pages lead to files that are there', (t) => {
  for (const page of PAGES) {
    for (const [, target] of read(page).matchAll(/\]\(([^)#]+)(?:#[^)]*)?\)/g)) {
      if (/^https?:/.test(target!)) continue;
      t.true(existsSync(join(ROOT, dirname(page), target!)), `${page}: ${target}`);
    }
  }
});

test('every page is in the index', (t) => {
  const index = read('docs/README.md');
  for (const page of PAGES.filter((name) => name.startsWith('docs/') && name !== 'docs/README.md'))
    t.true(index.includes(`(${basename(page)})`), page);
});

/** The fenced `sh` blocks of a page, which say of themselves that they can be pasted as a whole. */
function script(page: string): string {
  return [...read(page).matchAll(/^```sh\n([\s\S]*?)^```$/gm)].map(([, block]) => block).join('\n');
}

function bash(text: string): Promise<{ code: number | null; output: string }> {
  const child = spawn('bash', ['-euo', 'pipefail', '-s'], { cwd: ROOT, env: toolEnvironment() });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (chunk: string) => {
      output += chunk;
    });
  }
  // A script that fails midway must not leave engines that hold our pipes open.
  child.stdin.end(`trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n${text}`);
  return new Promise((resolve) => child.on('close', (code) => resolve({ code, output })));
}

/** The scripts use the names of the examples; a machine that has these namespaces already keeps them. */
const NAMES = ['hostA', 'hostB', 'cA', 'cB'];
const present = (): string[] => NAMES.filter((name) => existsSync(`/run/netns/${name}`));

function unavailable(tools: readonly string[]): string | undefined {
  if (!existsSync('/dev/net/tun')) return 'there is no /dev/net/tun';
  if (present().length > 0) return `there are namespaces ${present().join(', ')} already`;
  const directories = (toolEnvironment()['PATH'] ?? '').split(':');
  const missing = tools.find((tool) => !directories.some((directory) => existsSync(`${directory}/${tool}`)));
  return missing ? `it needs ${missing}` : Lab.unavailable();
}

for (const [page, shown, ...tools] of [
  ['docs/overlay.md', [/3 received, 0% packet loss/, /vtep 192\.168\.50\.2 .* learned/]],
  ['docs/kernel-peer.md', [/3 received, 0% packet loss/, /dst 192\.168\.50\.1 self/]],
  ['docs/operations.md', [/eth1 .*10\.0\.9\.3/, /reloaded/, /unknown key "nodes"/]],
  ['docs/vxlan.md', [/bridge,vxlan-encap/]],
  [
    'docs/gateway.md',
    [
      /3 received, 0% packet loss/,
      /icmp +active +blue +10\.0\.9\.1:\d+ +192\.168\.60\.10:\d+ +192\.168\.60\.1:0 +3 +3/,
      /seen as 192\.168\.60\.1\n[\s\S]*seen as 192\.168\.60\.10\n/,
      /1 packets transmitted, 0 received/,
      /nat +icmp-type +1/,
    ],
  ],
  [
    'docs/services.md',
    [
      /(?=(?:[\s\S]*c1 saw 192\.168\.60\.1\n){4})(?:[\s\S]*c2 saw 192\.168\.60\.1\n){2}/,
      /c2 saw 10\.0\.9\.100\n/,
      /-> 10\.0\.9\.1:0 +Masq +2 /,
      /gets no new flows\n(c2 saw 192\.168\.60\.1\n){3}/,
      /10\.0\.9\.2 is down: .*\n(c1 saw 192\.168\.60\.1\n){3}/,
    ],
  ],
  [
    'docs/encryption.md',
    [
      /\.4500: UDP-encap: ESP\(spi=0x/,
      /can be read 0 times/,
      /new keys with 1 peer\n/,
      /15 received, 0% packet loss/,
      /vxlan-decap +plain-for-encrypted +1/,
      /3 received, 0% packet loss[\s\S]*3 received, 0% packet loss/,
      /192\.168\.50\.1 → 192\.168\.50\.2 ESP/,
      /10\.0\.9\.1 → 10\.0\.9\.2 +ICMP .*Echo \(ping\) request/,
      /esp-decrypt,vxlan-decap[\s\S]*delivered +18/,
    ],
    'tcpdump',
    'tshark',
  ],
] as const) {
  const reason = unavailable(tools);
  const title = `the script of ${page} runs as it stands`;
  if (reason) {
    test.skip(`${title} [skipped: ${reason}]`, () => {});
    continue;
  }
  test.serial(title, async (t) => {
    t.teardown(async () => {
      const left = present();
      // A script that failed midway leaves its namespaces, and engines in them.
      for (const name of left)
        await bash(`ip netns pids ${name} | xargs -r kill -9; ip netns delete ${name}`);
    });
    const { code, output } = await bash(script(page));
    t.is(code, 0, output);
    for (const pattern of shown) t.regex(output, pattern);
    t.deepEqual(present(), []);
  });
}
