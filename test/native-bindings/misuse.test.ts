import fs from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { Worker } from 'node:worker_threads';
import test from 'ava';
import { FrameMemory } from '../../engine/memory/frames.js';
import { native } from '../../native-bindings/index.js';

const addon = native as unknown as Record<string, (...args: unknown[]) => unknown>;
const EFAULT = -14;

function attached(): FrameMemory {
  const memory = new FrameMemory({ small: 8, large: 4 });
  native.attach(memory.u8, memory.off, memory.len, memory.freeLarge);
  return memory;
}

test.beforeEach(() => {
  attached();
});

test.serial('every call with no, wrong and far too large arguments throws or says an errno', (t) => {
  const values = [
    undefined,
    null,
    -1,
    0xffffffff,
    1e300,
    Number.NaN,
    'x',
    {},
    [],
    new Uint32Array(0),
    new Uint8Array(3),
    9n,
  ];
  const names = Object.keys(native).filter((name) => name !== 'close');
  t.true(names.length >= 17);
  let thrown = 0;
  for (const name of names) {
    for (let count = 0; count < 8; count++) {
      for (const value of values) {
        if (name === 'attach' || name.endsWith('Create')) continue;
        // Any object is a valid set of options: it would make a TAP.
        if (name === 'tapOpen' && typeof value === 'object') continue;
        try {
          // Descriptors -1 only: a number that is one of the process's own must not be written to.
          const result = addon[name](
            ...Array.from({ length: count }, (_, i) => (i === 0 && typeof value === 'number' ? -1 : value)),
          );
          if (name === 'checksum' || name === 'checksums') continue;
          t.true(typeof result !== 'number' || result <= 0, `${name} returned ${result}`);
        } catch (error) {
          thrown++;
          t.true(error instanceof Error, name);
        }
      }
    }
  }
  t.true(thrown > 500);
});

test.serial('closing what is not open is an error with its errno', (t) => {
  t.throws(() => native.close(-1), { code: 'EBADF' });
  t.throws(() => addon['close']('0'), { instanceOf: TypeError });
});

test.serial('attach refuses other arrays and keeps what was attached before', (t) => {
  const memory = attached();
  const { u8, off, len, freeLarge } = memory;
  for (const wrong of [null, {}, new Uint8Array(8), new Int32Array(8), new Float32Array(8)]) {
    t.throws(() => addon['attach'](u8, wrong, len, freeLarge), { instanceOf: TypeError });
    t.throws(() => addon['attach'](u8, off, len, wrong), { instanceOf: TypeError });
  }
  t.throws(() => addon['attach'](off, off, len, freeLarge), { instanceOf: TypeError });
  t.throws(() => native.attach(u8, off, len.subarray(1), freeLarge), { message: /off and len differ/ });
  t.is(native.checksum(u8.length - 1, 1, 0), 0);
});

test.serial('bad frame numbers, offsets and lengths are counted or EFAULT, never followed', (t) => {
  const memory = attached();
  const event = native.eventCreate();
  t.teardown(() => native.close(event));
  const socket = native.udpOpen({ address: '127.0.0.1', port: 0, ttl: 1, gro: false });
  t.teardown(() => native.close(socket));
  const failures = new Uint32Array(5);
  const send = (frame: number): number => native.udpSend(socket, 0, Uint32Array.of(frame), 1, 0, failures);
  const write = (frame: number, before = 0): number => {
    failures.fill(0);
    t.is(native.tapWrite(event, Uint32Array.of(frame), 1, before, failures), 0);
    return failures[3];
  };
  for (const frame of [12, 13, 0x7fffffff, 0xffffffff]) {
    t.is(send(frame), EFAULT);
    t.is(write(frame), 1);
  }
  memory.len[0] = 41;
  t.is(send(0), EFAULT, 'shorter than its outer header');
  for (const [off, len] of [
    [memory.u8.length - 10, 100],
    [0xffffffff, 100],
    [256, 0xffffffff],
    [0xfffffff0, 0xfffffff0],
  ]) {
    memory.off[0] = off;
    memory.len[0] = len;
    t.is(send(0), EFAULT);
    t.is(write(0), 1);
  }
  memory.off[0] = 10;
  memory.len[0] = 100;
  t.is(write(0, 12), 1, 'more in front than there is');
  t.is(native.udpSend(socket, 0, new Uint32Array(0), 0, 0, failures), 0);
  t.throws(() => native.udpSend(socket, 0, new Uint32Array(257), 257, 0, failures), {
    instanceOf: TypeError,
  });
  t.throws(() => native.udpSend(socket, 0, new Uint32Array(1), 2, 0, failures), { instanceOf: TypeError });
  t.throws(() => native.udpSend(socket, 0, new Uint32Array(1), 1, 0, new Uint32Array(4)), {
    instanceOf: TypeError,
  });
  t.throws(() => native.tapWrite(event, new Uint32Array(1), 2, 0, failures), { instanceOf: TypeError });
  t.throws(() => native.tapWrite(event, new Uint32Array(1), 1, 0, new Uint32Array(3)), {
    instanceOf: TypeError,
  });
});

test.serial('receiving into slots that are not there is EFAULT', (t) => {
  const memory = attached();
  const socket = native.udpOpen({ address: '127.0.0.1', port: 0, ttl: 1, gro: false });
  t.teardown(() => native.close(socket));
  const addresses = new Uint8Array(16 * 256);
  const meta = new Uint32Array(4 * 256);
  const receive = (top: number, max: number, before = 0, capacity = 2000): number =>
    native.udpReceive(socket, top, max, before, capacity, addresses, meta);
  t.is(receive(4, 4), 0);
  t.is(receive(5, 1), EFAULT);
  t.is(receive(3, 4), EFAULT);
  t.is(receive(0, 1), EFAULT);
  t.is(receive(0xffffffff, 1), EFAULT);
  t.is(receive(4, 4, 0xffffffff), EFAULT);
  t.is(receive(4, 4, 0, 0xffffffff), EFAULT);
  t.is(native.tapRead(socket, 5, 1, 0, 100), EFAULT);
  t.is(native.tapRead(socket, 4, 4, 0xffffff00, 100), EFAULT);
  t.is(native.tapRead(socket, 4, 0, 0, 100), 0);
  memory.freeLarge[3] = 999;
  t.is(receive(4, 1), EFAULT);
  t.is(native.tapRead(socket, 4, 1, 0, 100), EFAULT);
  memory.freeLarge[3] = 8;
  t.throws(() => native.udpReceive(socket, 4, 4, 0, 100, new Uint8Array(63), meta), {
    instanceOf: TypeError,
  });
  t.throws(() => native.udpReceive(socket, 4, 4, 0, 100, addresses, new Uint32Array(15)), {
    instanceOf: TypeError,
  });
  t.is(native.udpReceive(-1, 4, 4, 0, 100, addresses, meta), -9, 'EBADF');
  t.is(native.tapRead(-1, 3, 1, 0, 100), -9);
});

test.serial('the frame memory attached stays although nobody else holds it', (t) => {
  setFlagsFromString('--expose-gc');
  const gc = runInNewContext('gc') as () => void;
  // Ordinary arrays too, whose bytes go back to the allocator with them.
  (() => {
    const u8 = new Uint8Array(1 << 22).fill(0xff);
    native.attach(u8, new Uint32Array(1000).fill(7), new Uint32Array(1000).fill(7), new Uint32Array(1000));
  })();
  for (let i = 0; i < 4; i++) {
    gc();
    t.truthy(new Uint8Array(1 << 22).fill(1));
  }
  t.is(native.checksum(0, 1 << 22, 0), 0xffff);
});

test.serial('before anything is attached there is no memory, in a worker thread as well', async (t) => {
  const path = new URL('../../../native-bindings/build/weft.node', import.meta.url).pathname;
  t.true(fs.existsSync(path));
  const source = `
    const { parentPort, workerData } = require('node:worker_threads');
    const native = require(workerData);
    let text = '';
    try { native.checksum(0, 1, 0); } catch (error) { text = error.message; }
    const fd = native.eventCreate();
    const write = native.tapWrite(fd, new Uint32Array(1), 1, 0, new Uint32Array(4));
    const read = native.tapRead(fd, 1, 1, 0, 10);
    native.close(fd);
    parentPort.postMessage([text, write, read]);`;
  const worker = new Worker(source, { eval: true, workerData: path });
  const answer = await new Promise((resolve, reject) => worker.on('message', resolve).on('error', reject));
  t.deepEqual(answer, ['checksum: the span lies outside the frame memory', 0, EFAULT]);
  await worker.terminate();
});

test.serial('sockets refuse what is no address, no port and no namespace', (t) => {
  const udp =
    (address: unknown, port: unknown = 0) =>
    () =>
      addon['udpOpen']({ address, port, ttl: 64, gro: false });
  for (const address of ['', 'localhost', '1.2.3', '1.2.3.4.5', '::1%lo', 7, null, 'x'.repeat(100)])
    t.throws(udp(address), { instanceOf: TypeError });
  for (const port of [-1, 65536, 70000])
    t.throws(udp('127.0.0.1', port), { instanceOf: TypeError, message: /port/ });
  t.throws(udp('198.51.100.77'), { code: 'EADDRNOTAVAIL', message: /198\.51\.100\.77/ });
  const tap = (options: object) => () =>
    addon['tapOpen']({ name: '', netns: '', persist: false, tunnel: false, ...options });
  t.throws(tap({ name: 'a-name-of-16-byte' }), { instanceOf: TypeError, message: /15 bytes/ });
  t.throws(tap({ netns: '/nowhere' }), { code: 'ENOENT', message: /\/nowhere.*network namespace/ });
  t.throws(tap({ netns: '/dev/null' }), { code: 'EINVAL', message: /enter the network namespace/ });
  t.throws(tap({ netns: 'x'.repeat(600) }), { instanceOf: TypeError });
  t.throws(tap({ name: 'a/b', netns: '' }), { instanceOf: Error });
});
