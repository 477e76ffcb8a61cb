import test from 'ava';
import { Batch, type Consumer, Drops, Stages } from '../../engine/graph.js';
import { BATCH_SIZE } from '../../engine/memory/frames.js';
import { dropped, payload, Rig } from '../support/frames.js';

/** Notes the frame numbers of every batch it is handed. */
class Recorder implements Consumer {
  readonly runs: number[][] = [];
  process(batch: Batch): void {
    this.runs.push([...batch.frames.subarray(0, batch.count)]);
  }
}

test('a batch hands on when it is full and when it is flushed, and never when it is empty', (t) => {
  const recorder = new Recorder();
  const batch = new Batch(recorder);
  batch.flush();
  for (let i = 0; i < BATCH_SIZE; i++) batch.push(i);
  t.is(recorder.runs.length, 0);
  batch.push(1000);
  t.is(recorder.runs.length, 1);
  t.is(recorder.runs[0].length, BATCH_SIZE);
  batch.flush();
  batch.flush();
  t.deepEqual(recorder.runs[1], [1000]);
  t.is(recorder.runs.length, 2);
});

test('a consumer put in place of another gets what is still in the batch', (t) => {
  const [before, after] = [new Recorder(), new Recorder()];
  const batch = new Batch(before);
  batch.push(7);
  batch.next = after;
  batch.flush();
  t.deepEqual([before.runs, after.runs], [[], [[7]]]);
});

test('stages empty first to last, so that a breath leaves nothing behind', (t) => {
  const last = new Recorder();
  const end = new Batch(last);
  const middle = new Batch({
    process: (batch) => {
      for (let i = 0; i < batch.count; i++) end.push(batch.frames[i] + 100);
    },
  });
  const start = new Batch({
    process: (batch) => {
      for (let i = 0; i < batch.count; i++) middle.push(batch.frames[i]);
    },
  });
  const stages = new Stages();
  for (const batch of [start, middle, end]) t.is(stages.add(batch), batch);
  for (let i = 0; i < BATCH_SIZE + 10; i++) start.push(i);
  stages.run();
  t.deepEqual([start.count, middle.count, end.count], [0, 0, 0]);
  t.deepEqual(
    last.runs.flat(),
    Array.from({ length: BATCH_SIZE + 10 }, (_, i) => i + 100),
  );
  stages.remove(end);
  stages.remove(end);
  start.push(1);
  stages.run();
  t.is(end.count, 1);
});

test('drops are counted by reason, seen before the slot is free, and free it', (t) => {
  const rig = new Rig();
  const drops = new Drops(rig.context, 'thing', ['one', 'other']);
  const seen: unknown[] = [];
  rig.context.dropObserver = (frame, element, reason) =>
    seen.push([element, reason, rig.memory.len[frame], rig.memory.inUse]);
  drops.drop(rig.put(payload(60)), 1);
  rig.context.dropObserver = null;
  drops.drop(rig.put(payload(61)), 1);
  drops.add(0, 5);
  t.deepEqual(seen, [['thing', 'other', 60, 1]]);
  t.deepEqual(dropped(drops), { one: 5, other: 2 });
  t.is(rig.counter('thing:drops', 'other'), 2);
  rig.finish(t);
});

test('the rest of a batch is dropped from where it is told', (t) => {
  const rig = new Rig();
  const drops = new Drops(rig.context, 'thing', ['one']);
  const ids = [1, 2, 3, 4].map((n) => rig.put(payload(n)));
  const batch = new Batch({
    process: (b) => {
      rig.memory.free(b.frames[0]);
      for (let i = 1; i < b.count; i++) drops.drop(b.frames[i], 0);
    },
  });
  for (const id of ids) batch.push(id);
  batch.flush();
  t.is(drops.count('one'), 3);
  drops.release();
  t.is(rig.context.counters.describe().length, 0);
  rig.finish(t);
});

test('time is given in milliseconds and kept in whole seconds too', (t) => {
  const { context } = new Rig();
  context.setTime(12_999);
  t.deepEqual([context.now, context.seconds], [12_999, 12]);
});
