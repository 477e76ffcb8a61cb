import test from 'ava';
import fc from 'fast-check';
import type { Lab, Namespace } from '../../cli/lab.js';
import { parseIp } from '../../control/addresses.js';
import { echoRequest, readEchoEvent } from '../../control/path-mtu/echo.js';
import type { PathResult } from '../../control/path-mtu.js';
import { probing } from '../support/lab-test.js';

const MODULE = new URL('../../control/path-mtu.js', import.meta.url).href;
const ADDRESSES = new URL('../../control/addresses.js', import.meta.url).href;

/** Measures in a process inside the namespace, since a socket belongs to the namespace of who opens it. */
async function measure(from: Namespace, source: string, to: string, limit: number): Promise<PathResult> {
  const script = `
    const { PathProber } = await import('${MODULE}');
    const { parseIp } = await import('${ADDRESSES}');
    const prober = await PathProber.open(parseIp('${source}'));
    console.log(JSON.stringify(await prober.measure(parseIp('${to}'), ${limit})));
    prober.close();`;
  const text = await from.run(process.execPath, ['--input-type=module', '-e', script]);
  return JSON.parse(text) as PathResult;
}

/** host a – router – host b, with an MTU on the second link. */
function routed(lab: Lab, mtu: number): [Namespace, Namespace, Namespace] {
  const a = lab.host('a');
  const router = lab.host('router');
  const b = lab.host('b');
  const near = { addressesA: ['10.1.0.1/24', 'fd01::1/64'], addressesB: ['10.1.0.254/24', 'fd01::fe/64'] };
  const far = { addressesA: ['10.2.0.254/24', 'fd02::fe/64'], addressesB: ['10.2.0.1/24', 'fd02::1/64'] };
  lab.link(a, router, { nameA: 'e0', nameB: 'r0', ...near });
  lab.link(router, b, { nameA: 'r1', nameB: 'e0', mtu, ...far });
  router.enableForwarding();
  a.route('default', { via: '10.1.0.254' });
  a.route('default', { via: 'fd01::fe' });
  b.route('default', { via: '10.2.0.254' });
  b.route('default', { via: 'fd02::fe' });
  return [a, router, b];
}

probing('a smaller link in the middle is found exactly, over IPv4 and IPv6', async (t, lab) => {
  const [a] = routed(lab, 1400);
  for (const [source, to] of [
    ['10.1.0.1', '10.2.0.1'],
    ['fd01::1', 'fd02::1'],
  ]) {
    const result = await measure(a, source, to, 1500);
    t.true(result.answered, to);
    t.is(result.mtu, 1400, to);
    t.true(result.rtt!.min > 0 && result.rtt!.min <= result.rtt!.avg && result.rtt!.avg <= result.rtt!.max);
    t.true(result.probes <= 10, `a router that speaks shortens the search: ${result.probes} echoes`);
  }
});

probing('a router that says nothing only makes it longer: the size is exact', async (t, lab) => {
  const [a, router] = routed(lab, 1371);
  // Drops what it would have to say, as a firewall that blocks all ICMP errors does.
  await router.run('nft', ['-f', '-'], {
    input: `table inet quiet {
      chain out {
        type filter hook output priority 0
        icmp type destination-unreachable drop
        icmpv6 type packet-too-big drop
      }
    }`,
  });
  const [four, six] = await Promise.all([
    measure(a, '10.1.0.1', '10.2.0.1', 1500),
    measure(a, 'fd01::1', 'fd02::1', 1500),
  ]);
  t.is(four.mtu, 1371);
  t.is(six.mtu, 1371);
  t.true(four.probes <= 3 + 16 * 2 && six.probes <= 3 + 16 * 2);
});

probing('a path as wide as the interface takes one echo beyond the round trips', async (t, lab) => {
  const [a] = routed(lab, 1500);
  const result = await measure(a, '10.1.0.1', '10.2.0.1', 1500);
  t.is(result.mtu, 1500);
  t.true(result.probes <= 5, `${result.probes} echoes, one of them perhaps lost`);
});

probing('an interface smaller than the limit, and jumbo frames', async (t, lab) => {
  const a = lab.host('a');
  const b = lab.host('b');
  lab.link(a, b, {
    nameA: 'e0',
    nameB: 'e0',
    mtu: 9000,
    addressesA: ['10.1.0.1/24'],
    addressesB: ['10.1.0.2/24'],
  });
  t.is((await measure(a, '10.1.0.1', '10.1.0.2', 9000)).mtu, 9000);
  t.is((await measure(a, '10.1.0.1', '10.1.0.2', 65_535)).mtu, 9000);
});

probing('who does not answer is no answer; where there is no route, the reason says so', async (t, lab) => {
  const [a, , b] = routed(lab, 1500);
  await b.run('nft', ['-f', '-'], {
    input: 'table inet deaf { chain in { type filter hook input priority 0; meta l4proto icmp drop\n }\n }',
  });
  t.like(await measure(a, '10.1.0.1', '10.2.0.1', 1500), {
    answered: false,
    reason: 'no answer',
    probes: 3,
  });
  a.ip('route', 'del', 'default');
  t.like(await measure(a, '10.1.0.1', '10.2.0.1', 1500), {
    answered: false,
    reason: 'cannot send: Network is unreachable',
  });
});

test('an echo request is a whole packet of the size asked for, with DF and a checksum that holds', (t) => {
  const four = echoRequest({
    source: parseIp('192.0.2.1'),
    destination: parseIp('192.0.2.2'),
    id: 0x1234,
    sequence: 7,
    size: 1401,
  });
  t.is(four.length, 1401);
  t.is(four.readUInt16BE(2), 1401);
  t.is(four.readUInt16BE(6), 0x4000);
  t.is(wordSum(four.subarray(20)), 0xffff);
  const source = parseIp('2001:db8::1');
  const destination = parseIp('2001:db8::2');
  const six = echoRequest({ source, destination, id: 0x1234, sequence: 7, size: 1401 });
  t.is(six.length, 1401);
  t.is(six.readUInt16BE(4), 1361);
  const pseudo = Buffer.concat([
    source.bytes,
    destination.bytes,
    Buffer.from([0, 0, 1361 >> 8, 1361 & 255, 0, 0, 0, 58]),
  ]);
  t.is(wordSum(Buffer.concat([pseudo, six.subarray(40)])), 0xffff);
});

test('replies and complaints of routers are read, whatever else comes is passed over', (t) => {
  const request = { source: parseIp('192.0.2.1'), destination: parseIp('192.0.2.2'), id: 5, sequence: 9 };
  const four = echoRequest({ ...request, size: 100 });
  t.is(readEchoEvent(4, four), undefined, 'our own request');
  const reply = Buffer.from(four);
  reply[20] = 0;
  t.deepEqual(readEchoEvent(4, reply), { kind: 'reply', id: 5, sequence: 9, size: 100 });
  const error = Buffer.concat([four.subarray(0, 20), Buffer.from([3, 4, 0, 0, 0, 0, 5, 0x78]), four]);
  t.deepEqual(readEchoEvent(4, error), { kind: 'too-big', id: 5, sequence: 9, mtu: 1400 });
  error[21] = 13;
  t.deepEqual(readEchoEvent(4, error), { kind: 'unreachable', id: 5, sequence: 9, code: 13 });
  t.is(readEchoEvent(4, error.subarray(0, 50)), undefined, 'cut short');

  const six = echoRequest({
    ...request,
    source: parseIp('2001:db8::1'),
    destination: parseIp('2001:db8::2'),
    size: 100,
  });
  const tooBig = Buffer.concat([Buffer.from([2, 0, 0, 0, 0, 0, 5, 0x78]), six]);
  t.deepEqual(readEchoEvent(6, tooBig), { kind: 'too-big', id: 5, sequence: 9, mtu: 1400 });
  const reply6 = Buffer.from(six.subarray(40));
  reply6[0] = 129;
  t.deepEqual(readEchoEvent(6, reply6), { kind: 'reply', id: 5, sequence: 9, size: 100 });
});

test('no bytes make the reader throw', (t) => {
  fc.assert(
    fc.property(
      fc.constantFrom(4 as const, 6 as const),
      fc.uint8Array({ maxLength: 120 }),
      (family, bytes) => {
        readEchoEvent(family, Buffer.from(bytes));
        // The same with a beginning that leads deeper.
        const head = family === 4 ? [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, ...Array(10).fill(1), 3, 4] : [2, 0];
        readEchoEvent(family, Buffer.from([...head, ...bytes]));
      },
    ),
    { numRuns: 2000 },
  );
  t.pass();
});

/** RFC 1071, independent of the sum under test. */
function wordSum(bytes: Buffer): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) {
    sum += (bytes[i] << 8) | (bytes[i + 1] ?? 0);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return sum;
}
