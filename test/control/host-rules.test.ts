import test from 'ava';
import { runSync } from '../../control/command.js';
import { type HostRules, hostRules, hostTable } from '../../control/host-rules.js';

const EMPTY: HostRules = {
  family: 4,
  table: 'weft_host_h1_host',
  tap: 'weft-host',
  ...{ prefixes: [], masqueraded: [], clampMss: false, opened: [], published: [], self: '192.0.2.1' },
};

const FULL: HostRules = {
  ...EMPTY,
  prefixes: ['10.0.9.0/24', '10.0.10.0/24'],
  masqueraded: ['10.0.9.0/24'],
  clampMss: true,
  opened: ['eth0', 'with.dot'],
  published: [
    { protocol: 'tcp', address: undefined, port: 8080, to: '10.0.9.1', target: 80 },
    { protocol: 'sctp', address: undefined, port: 9, to: '10.0.9.1', target: 9 },
    { protocol: 'udp', address: '127.0.0.1', port: 53, to: '10.0.9.1', target: 53 },
    { protocol: 'udp', address: '192.0.2.1', port: 54, to: '10.0.9.1', target: 53 },
  ],
};

const SIX: HostRules = {
  ...FULL,
  ...{ family: 6, self: undefined, prefixes: ['fd00:9::/64'], masqueraded: ['fd00:9::/64'] },
  published: [{ protocol: 'tcp', address: undefined, port: 8080, to: 'fd00:9::1', target: 80 }],
};

const nft = (text: string): string =>
  runSync('unshare', ['--net', 'nft', '-c', '-f', '-'], { input: text, timeoutMs: 10_000 });

function usable(): boolean {
  try {
    nft('table ip weft_x {}\n');
    return true;
  } catch {
    return false;
  }
}

for (const [title, rules] of Object.entries({
  'empty rules': EMPTY,
  'full rules': FULL,
  'IPv6 rules': SIX,
})) {
  if (usable()) test(`nft takes ${title}`, (t) => t.notThrows(() => nft(hostRules(rules))));
  else test.skip(`nft takes ${title} [skipped: it needs nft, unshare and root]`, () => {});
}

test('the table is replaced as a whole, in one transaction', (t) => {
  const lines = hostRules(FULL).split('\n');
  t.deepEqual(lines.slice(0, 3), [
    'table ip weft_host_h1_host {}',
    'delete table ip weft_host_h1_host',
    'table ip weft_host_h1_host {',
  ]);
});

test('ports of one address are apart from those of all; a target that two ports have is written once', (t) => {
  const text = hostRules(FULL);
  t.regex(text, /map here .*127\.0\.0\.1 \. udp \. 53 : 10\.0\.9\.1 \. 53, 192\.0\.2\.1 \. udp \. 54 : /);
  t.regex(text, /map anywhere .*tcp \. 8080 : 10\.0\.9\.1 \. 80, sctp \. 9 : 10\.0\.9\.1 \. 9 \}/);
  t.regex(
    text,
    /set targets .*\{ tcp \. 10\.0\.9\.1 \. 80, sctp \. 10\.0\.9\.1 \. 9, udp \. 10\.0\.9\.1 \. 53 \}/,
  );
});

test('a table has a name for each node and uplink, of letters that nft takes', (t) => {
  t.is(hostTable('h1.example', 'my-out'), 'weft_host_h1_example_my_out');
});
