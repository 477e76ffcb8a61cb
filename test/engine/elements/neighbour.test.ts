import { spawnSync } from 'node:child_process';
import test from 'ava';
import fc from 'fast-check';
import { Lab, toolEnvironment, waitFor } from '../../../cli/lab.js';
import { createNeighbour } from '../../../engine/elements/neighbour.js';
import { Batch } from '../../../engine/graph.js';
import { LARGE_CAPACITY, OFFLOAD_NEEDS_CSUM, REMOTE } from '../../../engine/memory/frames.js';
import { Neighbours } from '../../../engine/tables/neighbours.js';
import { native } from '../../../native-bindings/index.js';
import { be16, concat, ethernet, ip, ipv6, mac, Rig, slowSum, station } from '../../support/frames.js';

const BROADCAST = mac('ff:ff:ff:ff:ff:ff');
const ZERO = new Uint8Array(6);
const ASKER = station(1);
const OWNER = mac('02:42:0a:80:fe:ff');
const STRANGER = station(9);
const COUNTERS = ['arp-answered', 'nd-answered', 'conflict', 'flooded'] as const;

/** The element with ports 0 and 1; known in domain 0: 10.0.9.1 and fd00::1 of ASKER, 10.0.9.2 and fd00::2 of OWNER. */
function neighbourRig() {
  const rig = new Rig();
  const table = new Neighbours(1);
  table.set(0, ip('10.0.9.1'), ASKER);
  table.set(0, ip('fd00::1'), ASKER);
  table.set(0, ip('10.0.9.2'), OWNER);
  table.set(0, ip('fd00::2'), OWNER);
  const sinks = [rig.sink(), rig.sink()];
  const flooded = rig.sink();
  const floods = new Batch(flooded);
  const ports: (Batch | null)[] = sinks.map((sink) => new Batch(sink));
  const element = createNeighbour(rig.context, table, { ports, flood: (frame) => floods.push(frame) });
  return {
    ports,
    send(bytes: Uint8Array, metadata: Parameters<Rig['put']>[1] = {}) {
      rig.feed(element, rig.put(bytes, { ingress: 1, ...metadata }));
      for (const batch of [...ports, floods]) batch?.flush();
      const [other, answers, rest] = [...sinks, flooded].map((sink) => sink.take());
      const counted = Object.fromEntries(
        COUNTERS.map((name) => [name, rig.counter('neighbour', name)]).filter(([, n]) => n !== 0),
      );
      return { other, answers, flooded: rest, counted };
    },
    finish: rig.finish.bind(rig),
  };
}

interface Arp {
  readonly operation?: number;
  readonly senderMac?: Uint8Array;
  readonly sender?: string;
  readonly targetMac?: Uint8Array;
  readonly target?: string;
  readonly from?: Uint8Array;
  readonly to?: Uint8Array;
  readonly head?: readonly [number, number, number];
}

function arp(o: Arp = {}): Uint8Array {
  const { operation = 1, senderMac = ASKER, sender = '10.0.9.1', targetMac = ZERO, target = '10.0.9.2' } = o;
  const { from = senderMac, to = BROADCAST, head = [1, 0x800, 0x604] } = o;
  const packet = concat(be16(...head, operation), senderMac, ip(sender), targetMac, ip(target));
  return ethernet({ to, from, type: 0x806 }, packet);
}

const lla = (type: number, address: Uint8Array): Uint8Array => concat(Uint8Array.of(type, 1), address);

interface Nd {
  readonly type?: number;
  readonly code?: number;
  readonly flags?: number;
  readonly source?: string;
  readonly destination?: string;
  readonly target?: string;
  readonly options?: Uint8Array;
  readonly from?: Uint8Array;
  readonly to?: Uint8Array;
  readonly hopLimit?: number;
  /** Added to the right checksum. */
  readonly wrong?: number;
}

/** A solicitation of ASKER for fd00::2 unless told otherwise. */
function nd(o: Nd = {}): Uint8Array {
  const { type = 135, code = 0, flags = 0, source = 'fd00::1', destination = 'ff02::1:ff00:2' } = o;
  const { target = 'fd00::2', options = lla(1, ASKER), from = ASKER, to = mac('33:33:ff:00:00:02') } = o;
  const { hopLimit = 255, wrong = 0 } = o;
  const message = concat(Uint8Array.of(type, code, 0, 0), Uint8Array.of(flags, 0, 0, 0), ip(target), options);
  const pseudo = concat(ip(source), ip(destination), be16(0, message.length, 0, 58));
  message.set(be16((~slowSum(concat(pseudo, message)) + wrong) & 0xffff), 2);
  return ethernet({ to, from, type: 0x86dd }, ipv6({ source, destination, next: 58, hopLimit }, message));
}

/** The advertisement that answers `nd()`. */
const advertisement = (o: Nd = {}): Uint8Array =>
  nd({
    type: 136,
    flags: 0x60,
    source: 'fd00::2',
    destination: 'fd00::1',
    options: lla(2, OWNER),
    from: OWNER,
    to: ASKER,
    ...o,
  });

test('ARP: a request for a known address is answered on the port it came from', (t) => {
  const rig = neighbourRig();
  const { answers, other, flooded, counted } = rig.send(arp());
  const reply = arp({
    operation: 2,
    senderMac: OWNER,
    sender: '10.0.9.2',
    targetMac: ASKER,
    target: '10.0.9.1',
    to: ASKER,
  });
  t.deepEqual(answers, [reply]);
  t.deepEqual([other, flooded], [[], []]);
  t.deepEqual(counted, { 'arp-answered': 1 });
  rig.finish(t);
});

test('ARP: padding behind a request does not come back', (t) => {
  const rig = neighbourRig();
  const { answers } = rig.send(concat(arp(), new Uint8Array(18).fill(0xaa)));
  t.is(answers[0].length, 42);
  rig.finish(t);
});

test('ARP: an asker nobody knows yet is answered as well', (t) => {
  const rig = neighbourRig();
  const { answers, counted } = rig.send(arp({ senderMac: STRANGER, sender: '10.0.9.77' }));
  t.is(answers.length, 1);
  t.deepEqual(answers[0].subarray(32, 42), concat(STRANGER, ip('10.0.9.77')));
  t.deepEqual(counted, { 'arp-answered': 1 });
  rig.finish(t);
});

test('ARP: a probe for an address of someone else is answered and counted (RFC 5227, 2.1.1)', (t) => {
  const rig = neighbourRig();
  const { answers, flooded, counted } = rig.send(arp({ senderMac: STRANGER, sender: '0.0.0.0' }));
  const reply = arp({
    operation: 2,
    senderMac: OWNER,
    sender: '10.0.9.2',
    targetMac: STRANGER,
    target: '0.0.0.0',
    to: STRANGER,
  });
  t.deepEqual(answers, [reply]);
  t.deepEqual(flooded, []);
  t.deepEqual(counted, { 'arp-answered': 1, conflict: 1 });
  rig.finish(t);
});

/** Frames that must come out of `flood` as they went in, and what is counted besides `flooded`. */
const FLOODED: Record<string, [frame: Uint8Array, counted?: Record<string, number>]> = {
  'ARP: a request for an unknown address': [arp({ target: '10.0.9.3' })],
  "ARP: a probe for the prober's own address": [arp({ senderMac: OWNER, sender: '0.0.0.0' })],
  'ARP: an announcement that agrees': [arp({ target: '10.0.9.1' })],
  'ARP: an announcement that contradicts': [
    arp({ senderMac: STRANGER, sender: '10.0.9.2' }),
    { conflict: 1 },
  ],
  'ARP: a gratuitous reply that contradicts': [
    arp({ operation: 2, senderMac: STRANGER, sender: '10.0.9.2', targetMac: BROADCAST }),
    { conflict: 1 },
  ],
  'ARP: a reply to everybody that agrees': [arp({ operation: 2, target: '10.0.9.9' })],
  'ARP: a request from who claims the address of another': [
    arp({ senderMac: STRANGER, sender: '10.0.9.1' }),
    { conflict: 1 },
  ],
  'ARP: a request whose sender MAC is not the one it came from': [arp({ from: station(5) })],
  'ARP: another hardware type': [arp({ head: [6, 0x800, 0x604] })],
  'ARP: another protocol': [arp({ head: [1, 0x86dd, 0x604] })],
  'ARP: other address lengths': [arp({ head: [1, 0x800, 0x610] })],
  'ARP: operations other than request and reply': [arp({ operation: 3 })],
  'ARP: a tagged request': [ethernet({ to: BROADCAST, type: 0x806, tags: [5] }, arp().subarray(14))],
  'ND: a solicitation for an unknown address': [nd({ target: 'fd00::3' })],
  'ND: a hop limit that says it was routed': [nd({ hopLimit: 254 })],
  'ND: a code other than 0': [nd({ code: 1 })],
  'ND: a wrong checksum': [nd({ wrong: 1 })],
  'ND: a multicast target': [nd({ target: 'ff02::1' })],
  'ND: an option of length 0': [nd({ options: Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0) })],
  'ND: an option that ends behind the message': [nd({ options: Uint8Array.of(1, 2, 0, 0, 0, 0, 0, 0) })],
  'ND: a solicitation from a multicast address': [nd({ source: 'ff02::9' })],
  'ND: from :: with a source link-layer option': [nd({ source: '::' })],
  'ND: from :: to all nodes': [nd({ source: '::', options: new Uint8Array(0), destination: 'ff02::1' })],
  "ND: a duplicate address check for one's own address": [
    nd({ source: '::', options: new Uint8Array(0), from: OWNER }),
  ],
  'ND: a source link-layer address that is not the one it came from': [
    nd({ source: 'fd00::77', options: lla(1, STRANGER) }),
  ],
  'ND: a solicitation from who claims the address of another': [
    nd({ options: lla(1, STRANGER), from: STRANGER }),
    { conflict: 1 },
  ],
  'ND: an unsolicited advertisement that agrees': [
    advertisement({ flags: 0x20, destination: 'ff02::1', to: mac('33:33:00:00:00:01') }),
  ],
  'ND: an unsolicited advertisement that contradicts': [
    advertisement({
      flags: 0x20,
      destination: 'ff02::1',
      to: mac('33:33:00:00:00:01'),
      options: lla(2, STRANGER),
    }),
    { conflict: 1 },
  ],
  'ND: a contradicting advertisement with a wrong checksum': [
    advertisement({ flags: 0x20, destination: 'ff02::1', options: lla(2, STRANGER), wrong: 1 }),
  ],
  'ND: other ICMPv6': [nd({ type: 133 })],
  'plain broadcast': [ethernet({ to: BROADCAST }, new Uint8Array(46))],
};
for (const [title, [bytes, counted = {}]] of Object.entries(FLOODED)) {
  test(`flooded untouched – ${title}`, (t) => {
    const rig = neighbourRig();
    const result = rig.send(bytes);
    t.deepEqual(result, { other: [], answers: [], flooded: [bytes], counted: { ...counted, flooded: 1 } });
    rig.finish(t);
  });
}

test('what comes from a VTEP, has offload, or came from a port that is gone is flooded', (t) => {
  const rig = neighbourRig();
  let expected = 0;
  for (const bytes of [arp(), nd()]) {
    for (const metadata of [{ ingress: REMOTE | 1 }, { offload: OFFLOAD_NEEDS_CSUM }, { ingress: 7 }]) {
      const { answers, flooded, counted } = rig.send(bytes, metadata);
      t.deepEqual([answers, flooded], [[], [bytes]], JSON.stringify(metadata));
      t.deepEqual(counted, { flooded: ++expected });
    }
  }
  rig.finish(t);
});

test('a claim from a VTEP that contradicts is counted', (t) => {
  const rig = neighbourRig();
  const bytes = arp({ senderMac: STRANGER, sender: '10.0.9.2' });
  const { flooded, counted } = rig.send(bytes, { ingress: REMOTE | 1 });
  t.deepEqual(flooded, [bytes]);
  t.deepEqual(counted, { conflict: 1, flooded: 1 });
  rig.finish(t);
});

test('domains with the same addresses are kept apart', (t) => {
  const rig = neighbourRig();
  for (const bytes of [arp(), nd()]) t.deepEqual(rig.send(bytes, { domain: 3 }).flooded, [bytes]);
  rig.finish(t);
});

test('ND: a solicitation for a known address is answered, solicited and overriding (7.2.4)', (t) => {
  const rig = neighbourRig();
  const { answers, flooded, counted } = rig.send(nd());
  t.deepEqual(answers, [advertisement()]);
  t.deepEqual(flooded, []);
  t.deepEqual(counted, { 'nd-answered': 1 });
  rig.finish(t);
});

test('ND: further options are passed over, and a missing one is read from the Ethernet header', (t) => {
  const rig = neighbourRig();
  const nonce = Uint8Array.of(14, 1, 1, 2, 3, 4, 5, 6);
  for (const options of [concat(nonce, lla(1, ASKER)), new Uint8Array(0)])
    t.deepEqual(rig.send(nd({ options })).answers, [advertisement()]);
  rig.finish(t);
});

test('ND: a duplicate address check is answered to all nodes, unsolicited, and counted (7.2.4)', (t) => {
  const rig = neighbourRig();
  const { answers, counted } = rig.send(nd({ source: '::', options: new Uint8Array(0), from: STRANGER }));
  t.deepEqual(answers, [
    advertisement({ flags: 0x20, destination: 'ff02::1', to: mac('33:33:00:00:00:01') }),
  ]);
  t.deepEqual(counted, { 'nd-answered': 1, conflict: 1 });
  rig.finish(t);
});

test('truncated at every length: flooded untouched, never answered', (t) => {
  const rig = neighbourRig();
  for (const bytes of [arp(), nd()]) {
    for (let length = 14; length < bytes.length; length++) {
      const cut = bytes.subarray(0, length);
      const { answers, flooded } = rig.send(cut);
      t.deepEqual([answers, flooded], [[], [Uint8Array.from(cut)]], `${length} bytes`);
    }
  }
  rig.finish(t);
});

test('fuzz: whatever comes is answered to its port or flooded untouched, and no slot leaks', (t) => {
  const rig = neighbourRig();
  const seeds = [arp(), nd(), ...Object.values(FLOODED).map(([bytes]) => bytes)];
  const mutation = fc.record({
    seed: fc.constantFrom(...seeds),
    changes: fc.array(fc.tuple(fc.nat(100), fc.nat(255)), { maxLength: 4 }),
    length: fc.integer({ min: 14, max: 120 }),
    ingress: fc.constantFrom(0, 1, 2, REMOTE, REMOTE | 3),
  });
  fc.assert(
    fc.property(mutation, ({ seed, changes, length, ingress }) => {
      const bytes = new Uint8Array(Math.max(length, Math.min(seed.length, length + 40)));
      bytes.set(seed.subarray(0, bytes.length));
      for (const [at, value] of changes) if (at < bytes.length) bytes[at] = value;
      const { answers, other, flooded } = rig.send(bytes, { ingress });
      if (answers.length + other.length + flooded.length !== 1) return false;
      if (flooded.length === 1) return Buffer.compare(flooded[0], bytes) === 0;
      return ingress < 2 && (ingress === 1 ? answers : other).length === 1;
    }),
    { numRuns: 5000 },
  );
  rig.finish(t);
});

/** Runs scapy on `script`, which prints frames in hexadecimal; undefined where there is none. */
function scapy(script: string): Uint8Array[] | undefined {
  const all = `from scapy.all import *\ndef show(p): print(bytes(p).hex())\n${script}`;
  const result = spawnSync('/usr/bin/python3', ['-c', all], { encoding: 'utf8', env: toolEnvironment() });
  if (result.status !== 0) return undefined;
  return result.stdout
    .trim()
    .split('\n')
    .map((line) => Uint8Array.from(Buffer.from(line, 'hex')));
}

test("scapy's requests get the answers scapy would make", (t) => {
  const asker = '02:00:00:00:00:01';
  const owner = '02:42:0a:80:fe:ff';
  const made = scapy(`
show(Ether(dst="ff:ff:ff:ff:ff:ff", src="${asker}")/ARP(hwsrc="${asker}", psrc="10.0.9.1", pdst="10.0.9.2"))
show(Ether(dst="${asker}", src="${owner}")/ARP(op=2, hwsrc="${owner}", psrc="10.0.9.2", hwdst="${asker}", pdst="10.0.9.1"))
show(Ether(dst="33:33:ff:00:00:02", src="${asker}")/IPv6(src="fd00::1", dst="ff02::1:ff00:2")/ICMPv6ND_NS(tgt="fd00::2")/ICMPv6NDOptSrcLLAddr(lladdr="${asker}"))
show(Ether(dst="${asker}", src="${owner}")/IPv6(src="fd00::2", dst="fd00::1")/ICMPv6ND_NA(R=0, S=1, O=1, tgt="fd00::2")/ICMPv6NDOptDstLLAddr(lladdr="${owner}"))
`);
  if (made === undefined) {
    t.log('skipped: python3-scapy is not installed');
    t.pass();
    return;
  }
  const rig = neighbourRig();
  t.deepEqual(rig.send(made[0]).answers, [made[1]]);
  t.deepEqual(rig.send(made[2]).answers, [made[3]]);
  rig.finish(t);
});

const unavailable = Lab.unavailable();
const live = unavailable ? test.skip : test;
live(
  `a kernel behind a TAP takes the answers${unavailable ? ` [skipped: ${unavailable}]` : ''}`,
  async (t) => {
    const lab = Lab.create();
    t.teardown(() => lab.close());
    const container = lab.host('c');
    const { fd } = native.tapOpen({ name: 'eth0', netns: container.path, persist: false, tunnel: false });
    t.teardown(() => native.close(fd));
    const rig = new Rig();
    const { memory } = rig;
    const table = new Neighbours(1);
    for (const address of ['10.0.9.2', 'fd00::2']) table.set(0, ip(address), OWNER);
    const failures = new Uint32Array(4);
    const port = new Batch({
      process(batch) {
        for (const frame of batch.frames.subarray(0, batch.count))
          memory.u8.fill(0, memory.off[frame] - 12, memory.off[frame]);
        native.tapWrite(fd, batch.frames, batch.count, 12, failures);
        for (const frame of batch.frames.subarray(0, batch.count)) memory.free(frame);
      },
    });
    const element = createNeighbour(rig.context, table, {
      ports: [port],
      flood: (frame) => memory.free(frame),
    });
    /** One breath: what the kernel sent as a group frame goes through the element. */
    function breathe(): void {
      const count = native.tapRead(fd, memory.freeLargeCount, 32, 12, LARGE_CAPACITY);
      const batch = new Batch(element);
      for (let i = 0; i < count; i++) {
        const frame = memory.takeLarge();
        memory.len[frame] -= 12;
        memory.ingress[frame] = 0;
        memory.domain[frame] = 0;
        if (memory.u8[memory.off[frame]] & 1) batch.push(frame);
        else memory.free(frame);
      }
      batch.flush();
      port.flush();
    }
    const neighbours = (state: RegExp) => () => {
      breathe();
      return state.test(container.ip('neigh', 'show', 'dev', 'eth0'));
    };

    container.ip('link', 'set', 'eth0', 'address', '02:00:00:00:00:01', 'up');
    container.addAddresses('eth0', ['10.0.9.1/24', 'fd00::1/64']);
    for (const address of ['10.0.9.2', 'fd00::2'])
      container.start('ping', ['-c', '100', '-i', '0.2', address]);
    const lladdr = '02:42:0a:80:fe:ff';
    await waitFor(neighbours(new RegExp(`10.0.9.2.* ${lladdr} .*REACHABLE`)), {
      what: 'the ARP answer',
      timeoutMs: 20_000,
    });
    await waitFor(neighbours(new RegExp(`fd00::2.* ${lladdr} .*REACHABLE`)), {
      what: 'the ND answer',
      timeoutMs: 20_000,
    });

    // Duplicate address detection: the kernel finds that fd00::2 is taken. It waits for an answer as long
    // as its retransmission time (RFC 4862, 5.4): a second is too little for a busy machine to breathe.
    await container.run('sh', [
      '-c',
      `for d in all eth0; do echo 1 > /proc/sys/net/ipv6/conf/$d/accept_dad; done
       echo 20000 > /proc/sys/net/ipv6/neigh/eth0/retrans_time_ms`,
    ]);
    // On a busy machine it was seen to ask nobody in 20 s, and to do so when the address was given once more.
    const claim = (what: 'add' | 'del'): string => container.ip('addr', what, 'fd00::2/64', 'dev', 'eth0');
    let claimed = 0;
    await waitFor(
      () => {
        if (Date.now() - claimed > 3000) {
          if (claimed > 0) claim('del');
          claim('add');
          claimed = Date.now();
        }
        breathe();
        return /fd00::2\/64 .*dadfailed/.test(container.ip('-6', 'addr', 'show', 'dev', 'eth0'));
      },
      { what: 'the duplicate to be found', timeoutMs: 30_000 },
    );
    t.true(rig.counter('neighbour', 'conflict') >= 1);
    t.deepEqual([...failures], [0, 0, 0, 0]);
    rig.finish(t);
  },
);
