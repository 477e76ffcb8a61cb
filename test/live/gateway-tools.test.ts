/** Through the gateway with the tools that users run: transfers, names, paths, and servers behind published ports. */
import { iperf3, type Namespace, ping } from '../../cli/lab.js';
import {
  FAR_ADDRESS,
  FAR_ADDRESS6,
  GatewayRig,
  NEAR_ADDRESS,
  NEAR_ADDRESS6,
  UPLINK_ADDRESS,
  UPLINK_ADDRESS6,
} from '../support/gateway.js';
import { live, shared } from '../support/live.js';
import { curl, dnsmasq, ftpMissing, ftpServer, Nginx, nginxMissing } from '../support/servers.js';

const CURL = { tools: ['curl'] };
const WEB = { ...CURL, skip: nginxMissing() };

const rig = shared(() => GatewayRig.up({ ipv6: true }));

/** Makes a file of so many MiB, and returns its SHA-256. */
async function randomFile(host: Namespace, file: string, mebibytes: number): Promise<string> {
  await host.run('dd', ['if=/dev/urandom', `of=${file}`, 'bs=1M', `count=${mebibytes}`]);
  return sumOf(host, file);
}

const sumOf = async (host: Namespace, file: string): Promise<string> =>
  (await host.run('sha256sum', [file])).slice(0, 64);

live(
  'curl: a large file out and back, over IPv4 and IPv6, is whole',
  async (t) => {
    const { c1, far, directory } = rig();
    const wanted = await randomFile(far, `${directory}/large`, 96);
    const server = await Nginx.start(rig(), far, { files: directory });
    for (const [host, seen] of [
      [FAR_ADDRESS, UPLINK_ADDRESS],
      [`[${FAR_ADDRESS6}]`, UPLINK_ADDRESS6],
    ]) {
      await curl(c1, '-o', `${directory}/got`, `http://${host}/files/large`);
      t.is(await sumOf(c1, `${directory}/got`), wanted);
      t.true((await server.logged('/files/large', 1)).includes(seen), server.log.join('\n'));
    }
    await server.running.stop();
  },
  WEB,
);

live('iperf3: TCP and UDP, out and reverse', async (t) => {
  const { c1, far, engine1 } = rig();
  for (const reverse of [false, true]) {
    const tcp = await iperf3(c1, far, FAR_ADDRESS, { bytes: 60e6, reverse, parallel: 4 });
    t.true(tcp.bitsPerSecond > 1e7, `${JSON.stringify(tcp)} ${JSON.stringify(await engine1.drops())}`);
    const udp = await iperf3(c1, far, FAR_ADDRESS, {
      ...{ seconds: 1, reverse, udp: true, bandwidth: 2e7, length: 1200 },
    });
    t.true(udp.lostPercent < 5, `${JSON.stringify(udp)} ${JSON.stringify(await engine1.drops())}`);
  }
});

live(
  'DNS: over UDP, over TCP, and over TCP because UDP was too short',
  async (t) => {
    const { c1, c2, far } = rig();
    // Of 1,400 bytes: too long for who announces no more than 512.
    const long = Array.from({ length: 6 }, (_, i) => `--txt-record=long.example,${String(i).repeat(220)}`);
    const server = await dnsmasq(far, { 'www.example': '198.51.100.7' }, ...long);
    const ask = (from: Namespace, ...args: string[]) => from.run('drill', [`@${FAR_ADDRESS}`, ...args]);
    t.regex(await ask(c1, 'www.example'), /^www\.example\.\s+\d+\s+IN\s+A\s+198\.51\.100\.7$/m);
    t.regex(await ask(c1, '-t', 'www.example'), /IN\s+A\s+198\.51\.100\.7$/m);
    t.regex(await ask(c1, '-b', '512', 'long.example', 'TXT'), /flags: .*\btc\b/);
    t.is((await ask(c1, '-t', 'long.example', 'TXT')).match(/IN\s+TXT/g)?.length, 6 + 1);
    t.regex(await c1.run('drill', [`@${FAR_ADDRESS6}`, 'www.example']), /198\.51\.100\.7$/m);
    // A resolver's way of asking: many at once, each from a port of its own.
    const many = Array.from({ length: 40 }, (_, i) => ask(i % 2 ? c1 : c2, `host${i}.www.example`));
    for (const [i, answer] of (await Promise.all(many)).entries())
      t.regex(answer, new RegExp(`^host${i}\\.www\\.example\\.\\s.*198\\.51\\.100\\.7$`, 'm'));
    t.regex(server.stderr, new RegExp(`query\\[A\\] www\\.example from ${UPLINK_ADDRESS}`));
    await server.stop();
  },
  { tools: ['dnsmasq', 'drill'] },
);

live('ping: small, large and many at once, over IPv4 and IPv6', async (t) => {
  const { c1, c2, g1, engine1 } = rig();
  // The first long answer over IPv6 is what tells the server of the network's MTU: routers do not cut (RFC 8200, 5).
  await ping(c1, FAR_ADDRESS6, { count: 1, size: 8000 });
  for (const address of [FAR_ADDRESS, FAR_ADDRESS6, '10.0.9.254', 'fd00:9::fe']) {
    const sizes = [0, 56, 1400, 8000].map((size) => ping(c1, address, { count: 5, size }));
    const inside = address.startsWith('10.') || address.startsWith('fd00:9:');
    const others = (inside ? [c2] : [c2, g1]).map((from) =>
      ping(from, address, { count: 20, interval: 0.1 }),
    );
    for (const { received, sent, duplicates } of await Promise.all([...sizes, ...others]))
      t.deepEqual([received, duplicates], [sent, 0], `${address} ${JSON.stringify(await engine1.drops())}`);
  }
});

/** Addresses of the routers that traceroute shows, hop by hop. */
async function traceroute(from: Namespace, ...args: string[]): Promise<string[]> {
  const stdout = await from.run('traceroute', ['-n', '-q', '2', '-w', '2', '-m', '6', ...args]);
  return stdout
    .split('\n')
    .slice(1)
    .flatMap((line) => /^\s*\d+\s+(\S+)/.exec(line)?.[1] ?? []);
}

live(
  'traceroute: by UDP, ICMP and TCP, out; by ICMP, and by TCP to a published port, in',
  async (t) => {
    const { c1, far } = rig();
    const web = await Nginx.start(rig(), c1);
    const way = ['10.0.9.254', NEAR_ADDRESS, FAR_ADDRESS];
    const way6 = ['fd00:9::fe', NEAR_ADDRESS6, FAR_ADDRESS6];
    for (const method of [[], ['-I'], ['-T', '-p', '7999']]) {
      t.deepEqual(await traceroute(c1, ...method, FAR_ADDRESS), way, method.join(' '));
      t.deepEqual(await traceroute(c1, '-6', ...method, FAR_ADDRESS6), way6, `-6 ${method.join(' ')}`);
    }
    t.deepEqual(await traceroute(far, '-I', UPLINK_ADDRESS), ['203.0.113.1', UPLINK_ADDRESS]);
    t.deepEqual(await traceroute(far, '-6', '-I', UPLINK_ADDRESS6), ['2001:db8::1', UPLINK_ADDRESS6]);
    // The uplink is a hop before its published port, which stands for a container one hop behind.
    const published = ['203.0.113.1', UPLINK_ADDRESS, UPLINK_ADDRESS];
    t.deepEqual(await traceroute(far, '-T', '-p', '8080', UPLINK_ADDRESS), published);
    await web.running.stop();
  },
  { tools: ['traceroute'], skip: nginxMissing() },
);

live(
  'FTP, passive: a file from a server outside, by EPSV and by PASV',
  async (t) => {
    const { c1, far, directory } = rig();
    const wanted = await randomFile(far, `${directory}/ftp-file`, 8);
    const server = await ftpServer(far, directory);
    for (const how of [['--ftp-pasv'], ['--ftp-pasv', '--disable-epsv']]) {
      await curl(c1, ...how, '-o', `${directory}/ftp-got`, `ftp://${FAR_ADDRESS}/ftp-file`);
      t.is(await sumOf(c1, `${directory}/ftp-got`), wanted, how.join(' '));
    }
    t.regex(await curl(c1, `ftp://${FAR_ADDRESS}/`), /ftp-file/);
    await server.stop();
  },
  { ...CURL, skip: ftpMissing() },
);

live(
  'a published nginx: from outside, where its log has the client, from another container, from itself',
  async (t) => {
    const { c1, c2, g1, far, near, directory } = rig();
    const wanted = await randomFile(c1, `${directory}/published`, 32);
    const web = await Nginx.start(rig(), c1, { files: directory });
    const callers: [string, Namespace, string, string][] = [
      ['far', far, UPLINK_ADDRESS, FAR_ADDRESS],
      ['near', near, UPLINK_ADDRESS, NEAR_ADDRESS],
      ['far6', far, `[${UPLINK_ADDRESS6}]`, FAR_ADDRESS6],
      // Hairpinned, as RFC 4787 REQ-9 has it: under the outside address.
      ['c2', c2, UPLINK_ADDRESS, UPLINK_ADDRESS],
      ['g1', g1, UPLINK_ADDRESS, UPLINK_ADDRESS],
      ['c1', c1, UPLINK_ADDRESS, UPLINK_ADDRESS],
    ];
    for (const [path, from, address, seen] of callers) {
      t.is(await curl(from, `http://${address}:8080/${path}`), 'c1\n', path);
      t.deepEqual(await web.logged(`/${path}`, 1), [seen]);
    }
    for (const from of [far, c2, c1]) {
      await curl(from, '-o', `${directory}/got`, `http://${UPLINK_ADDRESS}:8080/files/published`);
      t.is(await sumOf(from, `${directory}/got`), wanted, from.label);
    }
    await web.running.stop();
  },
  WEB,
);

live(
  'a published DNS server: asked from outside, whose address it sees, and from containers',
  async (t) => {
    const { c1, c2, far } = rig();
    const server = await dnsmasq(c1, { 'in.example': '10.0.9.1' });
    for (const [from, seen] of [
      [far, FAR_ADDRESS],
      [c2, UPLINK_ADDRESS],
      [c1, UPLINK_ADDRESS],
    ] as const) {
      const name = `${from.label}.in.example`;
      const answer = await from.run('drill', ['-p', '5353', `@${UPLINK_ADDRESS}`, name]);
      t.regex(answer, /IN\s+A\s+10\.0\.9\.1$/m, from.label);
      t.regex(server.stderr, new RegExp(`query\\[A\\] ${name} from ${seen}\\b`.replaceAll('.', '\\.')));
    }
    await server.stop();
  },
  { tools: ['dnsmasq', 'drill'] },
);
