import { createSocket } from 'node:dgram';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { ConfigError, parseConfig } from '../../control/config.js';
import { PublishedPorts } from '../../control/published.js';

const DIRECTORY = mkdtempSync(join(tmpdir(), 'weft-published-'));
/** Problems show their place in it. */
const FILE = join(DIRECTORY, 'weft.yaml');
test.after.always(() => rmSync(DIRECTORY, { recursive: true }));

/** A node with an uplink of a mode that publishes these. */
function config(mode: 'host' | 'router', ...publish: object[]) {
  const out = { name: 'out', interface: 'eth0', address: '192.168.60.10/24' };
  const text = JSON.stringify({
    node: 'h1',
    underlay: { address: '192.168.50.1' },
    uplinks: [mode === 'host' ? { name: 'out', mode } : out],
    networks: [{ name: 'blue', vni: 42, subnet: '10.0.9.0/24', gateway: '10.0.9.254', uplink: 'out' }],
    endpoints: [
      { name: 'c1', network: 'blue', netns: 'c1', interface: 'eth0', address: '10.0.9.1/24' },
      { name: 'c2', network: 'blue', netns: 'c2', interface: 'eth0', address: '10.0.9.2/24' },
    ],
    publish: publish.map((rule) => ({ protocol: 'tcp', ...rule })),
  });
  writeFileSync(FILE, text);
  return parseConfig(text, FILE);
}

const numbers = (ports: PublishedPorts): number[] => ports.current.map(({ port }) => port);

function listen(port: number, address = '127.0.0.1') {
  const server = createServer();
  return new Promise<() => Promise<void>>((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, address, () => resolve(() => new Promise((done) => server.close(() => done()))));
  });
}

test('a range is as many ports, each with its own target', (t) => {
  const ports = new PublishedPorts();
  const rule = { endpoint: 'c1', protocol: 'udp', port: '8000-8002', target: '53-55' };
  ports.prepare(FILE, config('router', rule)).commit();
  t.deepEqual(
    ports.current.map(({ port, target }) => [port, target]),
    [
      [8000, 53],
      [8001, 54],
      [8002, 55],
    ],
  );
});

test('an automatic port is in its range, its own, and the same whoever else is there and after a restart', (t) => {
  const rules = [1, 2, 3, 4, 5, 6, 7, 8, 9].map((target) => ({ endpoint: 'c1', target }));
  const ports = new PublishedPorts();
  ports.prepare(FILE, config('router', ...rules)).commit();
  const first = numbers(ports);
  t.is(new Set(first).size, rules.length);
  t.true(first.every((port) => port >= 30_000 && port <= 32_767));
  const again = new PublishedPorts();
  again.prepare(FILE, config('router', ...rules)).commit();
  t.deepEqual(numbers(again), first);
  // Another that comes first in the file takes none of theirs.
  ports.prepare(FILE, config('router', { endpoint: 'c2', target: 9 }, ...rules)).commit();
  t.deepEqual(
    ports.current.filter(({ endpoint }) => endpoint === 'c1').map(({ port }) => port),
    first,
  );
  // Who names a port gets it; the automatic one moves on.
  ports.prepare(FILE, config('router', rules[0], { endpoint: 'c2', port: first[0], target: 1 })).commit();
  t.deepEqual(
    ports.current.map(({ endpoint, port }) => [endpoint, port === first[0]]),
    [
      ['c2', true],
      ['c1', false],
    ],
  );
});

test('rules that are alike have a port each, and each keeps its own', (t) => {
  const rules = ['c1', 'c1', 'c1'].map((endpoint) => ({ endpoint, target: 80 }));
  const ports = new PublishedPorts();
  ports.prepare(FILE, config('router', ...rules)).commit();
  const first = numbers(ports);
  t.is(new Set(first).size, 3);
  ports.prepare(FILE, config('router', ...rules)).commit();
  t.deepEqual(numbers(ports), first);
  ports.prepare(FILE, config('router', ...rules.slice(1))).commit();
  t.deepEqual(numbers(ports), first.slice(0, 2));
});

test('an automatic port is none of a service', (t) => {
  const rule = { endpoint: 'c1', target: 80 };
  const ports = new PublishedPorts();
  ports.prepare(FILE, config('router', rule)).commit();
  const [first] = numbers(ports);
  const publish = [{ protocol: 'tcp', port: first, mode: 'ingress' }];
  const text = JSON.stringify({
    ...JSON.parse(readFileSync(FILE, 'utf8')),
    ingress: { vni: 4096, subnet: '10.255.0.0/16' },
    services: [{ name: 'web', network: 'blue', vip: '10.0.9.100', publish }],
  });
  ports.prepare(FILE, parseConfig(text, FILE)).commit();
  const [next] = numbers(ports);
  t.true(next >= 30_000 && next <= 32_767 && next !== first, `${first} and ${next}`);
});

test('when no automatic port is left, the rule that wants one is named', (t) => {
  const all = [0, 1, 2].map((part) => {
    const first = 30_000 + part * 1000;
    return { endpoint: 'c1', port: `${first}-${Math.min(first + 999, 32_767)}` };
  });
  const ports = new PublishedPorts();
  const error = t.throws(() => ports.prepare(FILE, config('router', ...all, { endpoint: 'c2', target: 1 })), {
    instanceOf: ConfigError,
  });
  t.regex(error.message, /no tcp port from 30000 to 32767 is free for endpoint "c2"; write a port/);
});

test('with mode host ports are held; one that is taken is said, and nothing of that file is kept', async (t) => {
  const ports = new PublishedPorts();
  const here = { endpoint: 'c1', address: '127.0.0.1', target: 80 };
  ports.prepare(FILE, config('host', { ...here, port: 20_801 })).commit();
  await t.throwsAsync(listen(20_801), { code: 'EADDRINUSE' });
  const close = await listen(20_803);
  const next = config('host', { ...here, port: 20_802 }, { ...here, port: 20_803 });
  const error = t.throws(() => ports.prepare(FILE, next), { instanceOf: ConfigError });
  t.is(error.problems.length, 1);
  t.like(error.problems[0], { path: 'publish[1].port', host: true });
  t.regex(error.message, /tcp port 20803 of 127\.0\.0\.1 is in use on this host, .* endpoint "c1"/);
  // What was held is, and what was taken for the file that was refused is not.
  await t.throwsAsync(listen(20_801), { code: 'EADDRINUSE' });
  await (await listen(20_802))();
  await close();
  const prepared = ports.prepare(FILE, next);
  prepared.abandon();
  await (await listen(20_802))();
  ports.prepare(FILE, next).commit();
  await (await listen(20_801))();
  await t.throwsAsync(listen(20_803), { code: 'EADDRINUSE' });
  ports.close();
  await (await listen(20_803))();
});

for (const protocol of ['tcp', 'udp'])
  test(`a ${protocol} port goes from one address to all, and back, though it is ours meanwhile`, async (t) => {
    const ports = new PublishedPorts();
    const all = { endpoint: 'c1', protocol, port: protocol === 'tcp' ? 20_806 : 20_807, target: 80 };
    const one = { ...all, address: '127.0.0.1' };
    for (const rule of [all, one, all]) {
      ports.prepare(FILE, config('host', rule)).abandon();
      ports.prepare(FILE, config('host', rule)).commit();
      t.deepEqual(numbers(ports), [rule.port]);
    }
    if (protocol === 'tcp') await t.throwsAsync(listen(all.port), { code: 'EADDRINUSE' });
    ports.close();
    if (protocol === 'tcp') await (await listen(all.port))();
  });

test('an automatic port of mode host is one that the host has not', async (t) => {
  const rule = { endpoint: 'c1', protocol: 'udp', address: '127.0.0.1', target: 53 };
  const ports = new PublishedPorts();
  ports.prepare(FILE, config('host', rule)).commit();
  const [first] = numbers(ports);
  ports.close();
  const socket = createSocket('udp4');
  await new Promise<void>((resolve) => socket.bind(first, '127.0.0.1', resolve));
  const others = new PublishedPorts();
  others.prepare(FILE, config('host', rule)).commit();
  t.deepEqual(numbers(others), [first === 32_767 ? 30_000 : first + 1]);
  others.close();
  await new Promise<void>((resolve) => socket.close(() => resolve()));
});

test('an address that this host has not', (t) => {
  const ports = new PublishedPorts();
  const rule = { endpoint: 'c1', port: 20_805, address: '192.0.2.77' };
  t.throws(() => ports.prepare(FILE, config('host', rule)), {
    message: /192\.0\.2\.77 is no address of this host; write an address/,
  });
});
