/** Checks of backends, segment by segment. */
import test from 'ava';
import {
  createProber,
  GOOD,
  NOT_HTTP,
  NOT_REACHED,
  SILENT,
  WAS_RESET,
} from '../../../engine/elements/balancer/prober.js';
import { Batch } from '../../../engine/graph.js';
import { BALANCER_PORT } from '../../../engine/intent.js';
import { OFFLOAD_NEEDS_CSUM } from '../../../engine/memory/frames.js';
import { BalancerRig, backend, service, VIP } from '../../support/balancer.js';
import {
  acknowledgment,
  answer,
  BACKEND,
  contentOf,
  FIRST,
  flagsOf,
  HEALTH,
  HTTP,
  PSH,
  rigOf,
  sequence,
} from '../../support/checks.js';
import { be16, ip, mac, Rig, station } from '../../support/frames.js';
import { ACK, badChecksums, ends, FIN, icmpError, numbers, RST, SYN, sourcePort } from '../../support/nat.js';
import { endsV6, icmpv6Error, soundV6 } from '../../support/nat6.js';

test('a port is looked at by a SYN from the virtual address, and its answer is reset', (t) => {
  const { b, syn, isUp, told } = rigOf(HEALTH);
  const first = syn();
  t.is(ends(first), `${VIP}:${sourcePort(first)} > ${BACKEND}:80`);
  t.true(sourcePort(first) >= 61_000);
  t.deepEqual([first.slice(0, 6), first.slice(6, 12)], [station(1), mac('06:57:0a:00:09:64')]);
  t.is(flagsOf(first), SYN);
  const reset = b.one(answer(first, { flags: SYN | ACK }));
  t.is(ends(reset), ends(first));
  t.is(flagsOf(reset), RST | ACK);
  t.deepEqual([sequence(reset), acknowledgment(reset)], [(sequence(first) + 1) >>> 0, (FIRST + 1) >>> 0]);
  t.deepEqual([first, reset].flatMap(badChecksums), []);
  t.true(isUp());
  t.deepEqual(told(), []);
  b.rig.finish(t);
});

test('frames of checks are the balancer’s own, of the domain of the service', (t) => {
  const b = new BalancerRig([service({ domain: 3, health: HEALTH, backends: [backend(1)] })]);
  const [sent] = b.check(2000);
  t.deepEqual([sent!.ingress, sent!.domain, sent!.offload], [BALANCER_PORT, 3, 0]);
  b.feed([answer(sent!.bytes, { flags: RST | ACK })], { domain: 2 });
  t.deepEqual(
    b.check(500).map(({ bytes }) => flagsOf(bytes)),
    [SYN],
    'an answer of another domain is none',
  );
  b.rig.finish(t);
});

test('silence: the SYN comes once more, then the check has failed and what may be there is reset', (t) => {
  const { b, syn, isUp, told } = rigOf({ ...HEALTH, failures: 1 });
  const first = syn();
  t.deepEqual(b.check(400), []);
  const [again] = b.check(100);
  t.deepEqual(again!.bytes, first);
  t.deepEqual(b.check(400), []);
  const [reset] = b.check(100);
  t.deepEqual([flagsOf(reset!.bytes), sequence(reset!.bytes)], [RST | ACK, (sequence(first) + 1) >>> 0]);
  t.false(isUp());
  t.deepEqual(told(), [SILENT]);
  const late = b.one(answer(first, { flags: SYN | ACK }));
  t.deepEqual([flagsOf(late), sequence(late)], [RST, (sequence(first) + 1) >>> 0], 'what is late is reset');
  t.deepEqual(b.feed([answer(first, { flags: RST | ACK })]), []);
  b.rig.finish(t);
});

test('one SYN that is lost is no failure', (t) => {
  const { b, syn, told } = rigOf({ ...HEALTH, failures: 1 });
  syn();
  const [again] = b.check(500);
  t.is(flagsOf(b.one(answer(again!.bytes, { flags: SYN | ACK }))), RST | ACK);
  t.deepEqual(told(), []);
  b.rig.finish(t);
});

test('a page is asked for when the connection is open', (t) => {
  const { b, ask } = rigOf(HTTP);
  const { first, request } = ask();
  t.is(flagsOf(request), ACK | PSH);
  t.deepEqual([sequence(request), acknowledgment(request)], [(sequence(first) + 1) >>> 0, FIRST]);
  t.is(
    contentOf(request),
    `GET /health HTTP/1.1\r\nHost: ${VIP}\r\nUser-Agent: weft\r\nConnection: close\r\n\r\n`,
  );
  t.deepEqual(badChecksums(request), []);
  const ack = sequence(request) + contentOf(request).length;
  t.deepEqual(b.feed([answer(request, { flags: ACK, ack })]), []);
  t.deepEqual(b.feed([icmpError(first, { to: VIP, code: 3 })]), [], 'an error about the SYN is late');
  t.deepEqual(b.check(500), [], 'what arrived is not sent again');
  const reset = b.one(
    answer(request, { flags: ACK | PSH, ack, data: 'HTTP/1.1 200 OK\r\nServer: x\r\n\r\n' }),
  );
  t.deepEqual([flagsOf(reset), sequence(reset)], [RST | ACK, ack >>> 0]);
  b.rig.finish(t);
});

for (const [line, cause] of [
  ['HTTP/1.1 200 OK', 'good'],
  ['HTTP/1.0 204 No Content', 'good'],
  ['HTTP/1.1 301 Moved', 'good'],
  ['HTTP/1.1 399', 'good'],
  ['HTTP/1.1 404 Not Found', 404],
  ['HTTP/1.1 500 Internal Server Error', 500],
  ['HTTP/1.1 100 Continue', 100],
  ['HTTP/1.1 099 Nothing', NOT_HTTP],
  ['HTTP/1.1 2x0 OK', NOT_HTTP],
  ['SSH-2.0-OpenSSH_9.2p1', NOT_HTTP],
  ['\0\0\0\0\0\0\0\0\0\0\0\0', NOT_HTTP],
] as const)
  test(`${JSON.stringify(line)} is ${cause}`, (t) => {
    const { b, ask, told } = rigOf({ ...HTTP, failures: 1 });
    const { request } = ask();
    t.is(flagsOf(b.one(answer(request, { flags: ACK, data: `${line}\r\n` }))), RST | ACK);
    t.deepEqual(told(), cause === 'good' ? [] : [cause]);
    b.rig.finish(t);
  });

test('an answer may come in pieces, twice, too early, and over the end of the numbers', (t) => {
  const { b, ask, told } = rigOf({ ...HTTP, failures: 1 });
  const { request } = ask();
  const line = 'HTTP/1.1 503 ';
  const piece = (from: number, to: number) =>
    answer(request, { flags: ACK, seq: FIRST + from, data: line.slice(from, to) });
  const acknowledged = (frame: Uint8Array): number => (acknowledgment(b.one(frame)) - FIRST) >>> 0;
  t.deepEqual(b.feed([piece(3, 9), piece(12, 13)]), [], 'too early');
  t.is(acknowledged(piece(0, 3)), 3);
  t.deepEqual(b.feed([piece(0, 3)]), [], 'known');
  t.is(acknowledged(piece(1, 6)), 6);
  t.deepEqual(b.feed([piece(0, 3)]), [], 'long known');
  t.is(acknowledged(piece(6, 11)), 11);
  t.is(flagsOf(b.one(piece(0, 13))), RST | ACK);
  t.deepEqual(told(), [503]);
  b.rig.finish(t);
});

test('an answer that ends too soon is none', (t) => {
  const { b, ask, told } = rigOf({ ...HTTP, failures: 1 });
  const { request } = ask();
  b.one(answer(request, { flags: ACK, data: 'HTTP' }));
  t.deepEqual(
    b.feed([answer(request, { flags: ACK | FIN, seq: FIRST + 9 })]),
    [],
    'its end is still to come',
  );
  t.is(flagsOf(b.one(answer(request, { flags: ACK | FIN, seq: FIRST + 4 }))), RST | ACK);
  t.deepEqual(told(), [NOT_HTTP]);
  b.rig.finish(t);
});

test('a request that is lost comes again, after a time or a SYN that comes again', (t) => {
  const { b, ask, told } = rigOf({ ...HTTP, failures: 1 });
  const { first, request } = ask();
  t.deepEqual(b.one(answer(first, { flags: SYN | ACK, seq: FIRST - 1 })), request);
  t.deepEqual(b.feed([answer(first, { flags: SYN | ACK, seq: FIRST + 5 })]), [], 'another SYN');
  t.deepEqual(
    b.check(500).map(({ bytes }) => bytes),
    [request],
  );
  t.deepEqual(b.check(400), []);
  t.is(flagsOf(b.check(100)[0]!.bytes), RST | ACK);
  t.deepEqual(told(), [SILENT]);
  b.rig.finish(t);
});

test('an acknowledgement of another connection is reset, and ours goes on', (t) => {
  const { b, syn, told } = rigOf({ ...HEALTH, failures: 1 });
  const first = syn();
  for (const ack of [sequence(first), sequence(first) + 2, sequence(first) + 0x8000_0000]) {
    const reset = b.one(answer(first, { flags: SYN | ACK, ack }));
    t.deepEqual([flagsOf(reset), sequence(reset)], [RST, ack >>> 0]);
    t.deepEqual(b.feed([answer(first, { flags: RST | ACK, ack })]), []);
  }
  t.deepEqual(b.feed([answer(first, { flags: ACK })]), [], 'no SYN');
  t.is(flagsOf(b.one(answer(first, { flags: SYN | ACK }))), RST | ACK);
  t.deepEqual(told(), []);
  b.rig.finish(t);
});

test('an RST of an open connection counts if it has the very number', (t) => {
  const { b, ask, told } = rigOf({ ...HTTP, failures: 1 });
  const { request } = ask();
  for (const seq of [FIRST + 1, FIRST - 1, 0])
    t.deepEqual(b.feed([answer(request, { flags: RST | ACK, seq })]), []);
  t.deepEqual(told(), []);
  t.deepEqual(b.feed([answer(request, { flags: RST, seq: FIRST, ack: 0 })]), []);
  t.deepEqual(told(), [WAS_RESET]);
  b.rig.finish(t);
});

test('what is malformed is nothing', (t) => {
  const { b, syn, told } = rigOf({ ...HEALTH, failures: 1 });
  const first = syn();
  const refusal = { flags: RST | ACK };
  const wrong = answer(first, refusal);
  wrong[50]! ^= 1;
  t.deepEqual(b.feed([wrong]), [], 'its checksum is wrong');
  for (const offset of [0, 0x40, 0x60, 0xf0])
    t.deepEqual(b.feed([answer(first, { ...refusal, offset })]), []);
  const short = answer(first, refusal);
  t.deepEqual(b.feed([short.slice(0, 50)]), []);
  t.deepEqual(told(), []);
  const partial = answer(first, { flags: SYN | ACK, options: Uint8Array.of(2, 4, 5, 180) });
  partial.set([0, 0], 50);
  const metadata = { offload: OFFLOAD_NEEDS_CSUM, csumStart: 34, csumOffset: 16 };
  t.is(b.feed([partial], metadata).length, 1, 'a container leaves the checksum to its card');
  t.deepEqual(told(), []);
  b.rig.finish(t);
});

test('an ICMP error about the SYN is a failure, about anything else it is not', (t) => {
  const { b, syn, told } = rigOf({ ...HEALTH, failures: 1 });
  const first = syn();
  const other = first.slice();
  other[41]! ^= 1;
  t.deepEqual(
    b.feed([
      ...[icmpError(other, { to: VIP }), icmpError(first, { to: VIP, code: 4 })],
      ...[icmpError(first, { to: VIP, type: 11, code: 0 }), icmpError(first, { to: VIP, carried: 4 })],
    ]),
    [],
  );
  t.deepEqual(told(), []);
  t.deepEqual(b.feed([icmpError(first, { to: VIP, code: 3, carried: 8 })]), []);
  t.deepEqual(told(), [NOT_REACHED]);
  b.rig.finish(t);
});

test('a flood of segments that nobody asked for changes nothing', (t) => {
  const { b, ask, isUp, told } = rigOf({ ...HTTP, failures: 1 });
  const { request } = ask();
  const random = numbers(7);
  const word = (): number => random(0x10000) * 0x10000 + random(0x10000);
  for (let i = 0; i < 3000; i++) {
    const one = answer(request, {
      flags: random(64) & ~SYN,
      seq: word(),
      ack: word(),
      data: 'x'.repeat(random(30)),
    });
    // Some are for other ports, with the checksum of this one.
    if (random(2) === 0) one.set(be16(61_000 + random(4536)), 36);
    t.true(b.feed([one]).length <= 1);
  }
  t.true(isUp());
  t.deepEqual(told(), []);
  t.is(flagsOf(b.one(answer(request, { flags: ACK, data: 'HTTP/1.1 200' }))), RST | ACK);
  b.rig.finish(t);
});

test('no more checks are under way at once than there are ports for', (t) => {
  const rig = new Rig();
  rig.context.setTime(1000);
  const sink = rig.sink();
  const out = new Batch(sink);
  const outcomes: number[] = [];
  const prober = createProber(rig.context, out, (_, outcome) => outcomes.push(outcome));
  const check = {
    domain: 0,
    own: ip(VIP),
    ownMac: mac('06:57:0a:00:09:64'),
    address: ip(BACKEND),
    mac: station(1),
    port: 80,
    request: null,
    timeout: 1000,
  };
  let begun = 0;
  while (prober.begin(check)) {
    begun++;
    out.flush();
  }
  t.is(begun, 4096);
  t.is(new Set(sink.take().map(sourcePort)).size, 4096);
  rig.context.setTime(2000);
  prober.tick(0);
  out.flush();
  t.deepEqual(outcomes, Array<number>(4096).fill(SILENT));
  t.true(prober.begin(check));
  out.flush();
  rig.finish(t);
});

/** A check over IPv6 with nothing around it, its outcomes, and what it sends. */
function proberV6(request: Uint8Array | null) {
  const rig = new Rig();
  rig.context.setTime(1000);
  const sink = rig.sink();
  const out = new Batch(sink);
  const outcomes: number[] = [];
  const prober = createProber(rig.context, out, (_, outcome) => outcomes.push(outcome));
  const ours = { own: ip('fd00:9::64'), ownMac: mac('06:57:00:00:00:64') };
  const ends = { domain: 0, ...ours, address: ip('fd00:9::1'), mac: station(1), port: 80 };
  prober.begin({ ...ends, request, timeout: 1000 });
  const sent = (): Uint8Array => {
    out.flush();
    return sink.one().bytes;
  };
  /** Whether a segment of the backend is taken, and an ICMPv6 error; both begin behind an IPv6 header. */
  const take = (bytes: Uint8Array, domain = 0): boolean =>
    given(bytes, (frame, t) => prober.take(frame, t), domain);
  const unreachable = (bytes: Uint8Array): boolean =>
    given(bytes, (frame, t) => prober.unreachable(frame, t));
  function given(bytes: Uint8Array, to: (frame: number, t: number) => boolean, domain = 0): boolean {
    const frame = rig.put(bytes, { domain });
    const taken = to(frame, (rig.memory.off[frame] + 54) >>> 1);
    if (!taken) rig.memory.free(frame);
    return taken;
  }
  return { rig, outcomes, sent, take, unreachable };
}

test('over IPv6 as over IPv4', (t) => {
  const { rig, outcomes, sent, take } = proberV6(Uint8Array.of(1, 2, 3));
  const syn = sent();
  t.deepEqual([syn.slice(0, 6), syn.slice(6, 12)], [station(1), mac('06:57:00:00:00:64')]);
  t.is(endsV6(syn), `[fd00:9::64]:${(syn[54]! << 8) | syn[55]!} > [fd00:9::1]:80`);
  t.true(soundV6(syn));
  const other = answer(syn, { flags: SYN | ACK });
  other[37]! ^= 1;
  t.false(take(other), 'from somebody else');
  const virtual = answer(syn, { flags: SYN | ACK });
  virtual[53]! ^= 1;
  t.false(take(virtual), 'to another virtual address');
  t.false(take(answer(syn, { flags: SYN | ACK }), 1), 'of another domain');
  t.true(take(answer(syn, { flags: SYN | ACK, seq: FIRST - 1 })));
  const request = sent();
  t.true(soundV6(request));
  t.deepEqual(request.slice(74), Uint8Array.of(1, 2, 3));
  t.true(take(answer(request, { flags: ACK, data: 'HTTP/1.1 200' })));
  t.true(soundV6(sent()));
  t.deepEqual(outcomes, [GOOD]);
  rig.finish(t);
});

test('an ICMPv6 error about the SYN is a failure, one that it was too big is not', (t) => {
  const { rig, outcomes, sent, unreachable } = proberV6(null);
  const syn = sent();
  t.true(unreachable(icmpv6Error(syn, { to: 'fd00:9::64', type: 2, code: 0 })));
  t.false(unreachable(icmpv6Error(syn, { to: 'fd00:9::64', carried: 4 })));
  t.deepEqual(outcomes, []);
  t.true(unreachable(icmpv6Error(syn, { to: 'fd00:9::64', type: 1, code: 4 })));
  t.deepEqual(outcomes, [NOT_REACHED]);
  rig.finish(t);
});
