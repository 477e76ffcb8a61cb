import { Worker } from 'node:worker_threads';
import test, { type ExecutionContext } from 'ava';
import type { AssociationIntent } from '../../../engine/intent.js';
import { acquire, release } from '../../../engine/tables/association-lock.js';
import {
  AssociationState,
  associationStateBytes,
  MAX_ASSOCIATIONS,
  REFUSALS,
  WINDOW_WORDS,
} from '../../../engine/tables/association-state.js';
import { native } from '../../../native-bindings/index.js';
import { ESP_V4, type EspAssociation, makeEsp, outerEsp, plainPacket } from '../../support/esp.js';
import { ip, LOCAL_V4, payload } from '../../support/frames.js';
import type { SharingResult, SharingTask } from './support/association-worker.js';

const stateOf = (slots: number): AssociationState =>
  new AssociationState(new SharedArrayBuffer(associationStateBytes(slots)));

test('the arrays of all slots lie beside each other in one buffer', (t) => {
  const state = stateOf(5);
  t.is(state.slots, 5);
  const arrays = [
    state.packets,
    state.bytes,
    state.refused,
    state.sequence,
    state.mask,
    state.window,
    state.lock,
  ];
  let end = 0;
  for (const array of arrays) {
    t.is(array.buffer, state.buffer);
    t.is(array.byteOffset, end);
    end += array.byteLength;
  }
  t.is(end, state.buffer.byteLength);
  t.is(state.window.length, 5 * WINDOW_WORDS);
  t.is(new AssociationState().slots, MAX_ASSOCIATIONS);
});

test('two views of one buffer are one state', (t) => {
  const state = stateOf(2);
  const other = new AssociationState(state.buffer);
  state.begin(1, 77);
  t.is(other.last(1), 77);
  other.refused[REFUSALS.length + REFUSALS.indexOf('icv')] = 3;
  t.is(state.refusals(1).icv, 3);
  t.is(state.refusals(0).icv, 0);
});

test('a slot that begins anew holds nothing of the association before, and leaves its neighbours alone', (t) => {
  const state = stateOf(3);
  for (const array of [state.packets, state.bytes, state.refused, state.sequence, state.mask, state.window])
    array.fill(0xffff);
  state.lock.fill(1);
  state.begin(1);
  const fresh = stateOf(3);
  const of = ({ packets, bytes, refused, sequence, mask, window, lock }: AssociationState, slot: number) =>
    [packets, bytes, refused, sequence, mask, window, lock].map((array) => {
      const each = array.length / 3;
      return [...array.subarray(slot * each, (slot + 1) * each)];
    });
  t.deepEqual(of(state, 1), of(fresh, 1));
  for (const slot of [0, 2]) for (const part of of(state, slot)) t.true(part.every((value) => value !== 0));
});

test('last numbers are exact to 2^53', (t) => {
  const state = stateOf(1);
  for (const last of [0, 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 32 + 1, 2 ** 52 + 1, 2 ** 53 - 1]) {
    state.begin(0, last);
    t.is(state.last(0), last);
  }
});

test('refusals are told by name, each its own', (t) => {
  const state = stateOf(2);
  for (const [i] of REFUSALS.entries()) state.refused[REFUSALS.length + i] = i + 1;
  t.deepEqual(state.refusals(1), Object.fromEntries(REFUSALS.map((name, i) => [name, i + 1])) as never);
  t.true(Object.values(state.refusals(0)).every((count) => count === 0));
});

test('a lock is taken by one at a time, and each slot has its own', (t) => {
  const { lock } = stateOf(2);
  acquire(lock, 0);
  acquire(lock, 1);
  t.deepEqual([...lock], [1, 1]);
  release(lock, 0);
  t.deepEqual([...lock], [0, 1]);
  acquire(lock, 0);
  t.deepEqual([...lock], [1, 1]);
});

// --- Workers under the same associations ------------------------------------------------------------------------

const PEER = '192.0.2.2';
const WORKERS = 2;

function association(slot: number, direction: 'in' | 'out'): AssociationIntent {
  const common = { icv: 16, esn: false, window: 1024 } as const;
  return {
    slot,
    direction,
    spi: 0x3000 + slot,
    vtep: ip(direction === 'in' ? PEER : `192.0.2.${2 + slot}`),
    ...common,
  };
}

function installed(t: ExecutionContext, { slot, spi }: AssociationIntent): EspAssociation {
  const under = { spi, key: payload(16, slot), salt: payload(4, slot), icv: 16, esn: false } as const;
  native.gcmInstall({ ...under, slot });
  t.teardown(() => native.gcmRemove(slot));
  return under;
}

async function share(task: Omit<SharingTask, 'gate' | 'workers'>): Promise<SharingResult[]> {
  const gate = new SharedArrayBuffer(4);
  const script = new URL('./support/association-worker.js', import.meta.url);
  const run = (): Promise<SharingResult> =>
    new Promise((resolve, reject) => {
      const worker = new Worker(script, { workerData: { ...task, gate, workers: WORKERS } });
      worker.once('message', resolve);
      worker.once('error', reject);
    });
  return Promise.all(Array.from({ length: WORKERS }, run));
}

const id = (n: number): Uint8Array => Uint8Array.of(n >>> 24, n >>> 16, n >>> 8, n);

test.serial('two workers receive the same packets: each is accepted once, by one of them', async (t) => {
  const state = stateOf(16);
  const associations = [association(4, 'in'), association(5, 'in')];
  const keys = associations.map((intent) => installed(t, intent));
  for (const { slot } of associations) state.begin(slot);
  const each = 16_000;
  const packets = Array.from({ length: each * 2 }, (_, n) => {
    // Runs of 64 packets of one association, then of the other.
    const sequence = ((n >> 7) << 6) + (n & 63) + 1;
    const content = Buffer.concat([new Uint8Array(8), id(n)]);
    return outerEsp(ESP_V4, makeEsp(keys[(n >> 6) & 1], { sequence }, content));
  });
  const task = { state: state.buffer, associations, local: ip(LOCAL_V4), receive: true, packets, rounds: 2 };
  const results = await share(task);
  const passed = results.flatMap((result) => result.passed);
  t.is(passed.length, packets.length);
  t.is(new Set(passed).size, packets.length, 'none twice');
  const shares = results.map((result) => result.passed.length);
  t.log(`${shares.join(' and ')} of ${packets.length}`);
  const refused = ({ drops }: SharingResult) => (drops['replayed'] ?? 0) + (drops['too-old'] ?? 0);
  for (const [k, result] of results.entries()) {
    t.is(shares[k] + refused(result), packets.length * 2);
    t.deepEqual(
      Object.keys(result.drops).filter((name) => name !== 'replayed' && name !== 'too-old'),
      [],
    );
  }
  for (const { slot } of associations) {
    t.is(state.packets[slot], each);
    t.is(state.last(slot), each);
    const { replayed, 'too-old': old, ...others } = state.refusals(slot);
    t.is(replayed + old, each * 3, 'counts are not lost either');
    t.true(Object.values(others).every((count) => count === 0));
    t.is(state.lock[slot], 0);
  }
});

test.serial(
  'two workers send under the same associations: no sequence number twice, and none left out',
  async (t) => {
    const state = stateOf(16);
    const associations = [association(6, 'out'), association(7, 'out')];
    for (const intent of associations) {
      installed(t, intent);
      state.begin(intent.slot, 100, payload(8, intent.slot));
    }
    const packets = Array.from({ length: 2000 }, (_, k) => plainPacket(ESP_V4, k & 63));
    const rounds = 10;
    const task = { state: state.buffer, associations, local: ip(LOCAL_V4), receive: false, packets, rounds };
    const results = await share(task);
    for (const { drops } of results) t.deepEqual(drops, {});
    const passed = results.flatMap((result) => result.passed);
    t.is(passed.length, WORKERS * rounds * packets.length);
    let sent = 0;
    for (const { slot, spi } of associations) {
      const own = passed.filter((header) => header.startsWith(spi.toString(16).padStart(8, '0')));
      const numbers = own.map((header) => Number.parseInt(header.slice(8, 16), 16)).sort((a, b) => a - b);
      t.true(numbers.every((number, k) => number === 101 + k));
      t.is(new Set(own.map((header) => header.slice(16))).size, own.length, 'no IV twice');
      t.is(state.packets[slot], own.length);
      t.is(state.last(slot), 100 + own.length);
      sent += own.length;
    }
    t.is(sent, passed.length);
  },
);

test.serial('two workers at the end of the numbers: the rest is given out once, then nothing', async (t) => {
  const state = stateOf(16);
  const intent = association(8, 'out');
  installed(t, intent);
  state.begin(8, 2 ** 32 - 1001);
  const packets = Array.from({ length: 1500 }, () => plainPacket(ESP_V4, 10));
  const results = await share({
    state: state.buffer,
    associations: [intent],
    local: ip(LOCAL_V4),
    receive: false,
    packets,
    rounds: 1,
  });
  t.is(new Set(results.flatMap(({ passed }) => passed)).size, 1000);
  t.is(
    results.reduce((sum, { passed }) => sum + passed.length, 0),
    1000,
  );
  t.is(
    results.reduce((sum, { drops }) => sum + (drops['exhausted'] ?? 0), 0),
    2000,
  );
  t.is(state.refusals(8).exhausted, 2000);
  t.is(state.last(8), 2 ** 32 - 1);
});
