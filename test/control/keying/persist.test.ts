import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import type { StaticAssociation } from '../../../control/config.js';
import { fingerprint, RESERVE, ReservedSequences } from '../../../control/keying/persist.js';
import { Secret } from '../../../control/secret.js';

const KEY = '00112233445566778899aabbccddeeff01020304';

const association = (over: Partial<StaticAssociation> = {}): StaticAssociation => ({
  peer: '192.0.2.2',
  direction: 'out',
  spi: 0x1001,
  algorithm: 'aes-128-gcm-16',
  key: new Secret(KEY),
  esn: true,
  replayWindow: 1024,
  ...over,
});

/** Path of a file in a folder that is not there yet, removed at the end. */
function place(t: ExecutionContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'weft-sequences-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  return join(directory, 'run', 'state');
}

/** A run of the engine: what it says, and what its association has sent. */
class Run {
  readonly lines: string[] = [];
  readonly sequences: ReservedSequences;
  readonly first: number;
  sent: number;

  constructor(path: string, one = association()) {
    this.sequences = new ReservedSequences(path, (line) => void this.lines.push(line));
    this.first = this.sequences.begin(one, () => this.sent);
    this.sent = this.first;
    this.sequences.save();
  }
}

test('a new association begins at zero, after a crash at what was reserved, after a stop where it was', (t) => {
  const path = place(t);
  const first = new Run(path);
  t.is(first.first, 0);
  first.sent = 1000;
  const second = new Run(path);
  t.is(second.first, RESERVE);
  second.sent += 500;
  second.sequences.close();
  t.is(new Run(path).first, RESERVE + 500);
});

test('more is reserved when half of it is used, and much more when much is sent', (t) => {
  const path = place(t);
  const run = new Run(path);
  const bound = (): number =>
    (JSON.parse(readFileSync(path, 'utf8')) as { sequences: Record<string, number> }).sequences[
      fingerprint(association())
    ];
  for (let i = 1; i < 16; i++) {
    run.sent = (RESERVE / 32) * i;
    run.sequences.look();
    t.is(bound(), RESERVE);
  }
  run.sent = RESERVE / 2;
  run.sequences.look();
  t.is(bound(), RESERVE / 2 + RESERVE);
  run.sent += RESERVE;
  run.sequences.look();
  t.is(bound(), run.sent + 16 * RESERVE);
  t.is(new Run(path).first, run.sent + 16 * RESERVE);
});

test('another key, SPI or peer is another association; its size and the direction of time do not matter', (t) => {
  const path = place(t);
  new Run(path).sequences.close();
  const used = new Run(path);
  used.sent = 77;
  used.sequences.close();
  for (const over of [
    { key: new Secret(KEY.replace('0', '1')) },
    { spi: 0x1002 },
    { peer: '192.0.2.3' },
    { key: new Secret(`${KEY.slice(0, -2)}05`) },
  ]) {
    t.is(new Run(path, association(over)).first, 0);
  }
  t.is(new Run(path, association({ esn: false })).first, 77, 'the same key goes on, whatever else changes');
});

test('the file has no key in it, is for its owner alone, and is never half there', (t) => {
  const path = place(t);
  const run = new Run(path);
  const text = readFileSync(path, 'utf8');
  t.false(text.includes(KEY.slice(0, 8)));
  t.is(statSync(path).mode & 0o777, 0o600);
  t.deepEqual(JSON.parse(text), { sequences: { [fingerprint(association())]: RESERVE } });
  t.throws(() => readFileSync(`${path}.new`), { code: 'ENOENT' });
  t.deepEqual(run.lines, []);
});

test('a file that is damaged is an empty one, said once; numbers that are none are passed over', (t) => {
  const path = place(t);
  new Run(path).sequences.close();
  for (const text of ['', '{', 'null', '[]', '{"sequences":null}']) {
    writeFileSync(path, text);
    const run = new Run(path);
    t.is(run.first, 0, text);
    t.is(run.lines.length, 1, text);
    t.regex(run.lines[0], /damaged/);
  }
  for (const value of ['"5"', '-1', '1.5', '1e300', 'null']) {
    writeFileSync(path, `{"sequences":{"${fingerprint(association())}":${value}}}`);
    t.is(new Run(path).first, 0, value);
  }
});

test('a file that cannot be written is said once, and sending goes on', (t) => {
  const path = place(t);
  new Run(path).sequences.close();
  const run = new Run(join(path, 'below a file'));
  run.sent = RESERVE;
  run.sequences.look();
  run.sequences.close();
  t.is(run.lines.length, 1);
  t.regex(run.lines[0], /cannot be kept for the next start/);
});

test('without extended sequence numbers, the last one is 2^32 - 1, and then another key is needed', (t) => {
  const path = place(t);
  const run = new Run(path, association({ esn: false }));
  run.sent = 2 ** 32 - 5;
  run.sequences.look();
  const next = new Run(path, association({ esn: false }));
  t.is(next.first, 2 ** 32 - 1);
  t.is(next.lines.length, 1);
  t.regex(next.lines[0], /192\.0\.2\.2 .*another key/);
  t.is(new Run(path, association({ esn: true })).first, 2 ** 32 - 1);
});

test('an association that ended keeps its number, and one that comes back goes on', (t) => {
  const path = place(t);
  const run = new Run(path);
  run.sent = 10;
  run.sequences.end(association());
  run.sequences.close();
  t.is(new Run(path).first, RESERVE);
});

test('only the newest associations are remembered', (t) => {
  const path = place(t);
  new Run(path).sequences.close();
  const many = Array.from({ length: 16_384 }, (_, i) => [`x${i}`, 5]);
  writeFileSync(path, JSON.stringify({ sequences: Object.fromEntries(many) }));
  t.is(new Run(path).first, 0);
  const { sequences } = JSON.parse(readFileSync(path, 'utf8')) as { sequences: Record<string, number> };
  t.is(Object.keys(sequences).length, 16_384);
  t.false('x0' in sequences);
  t.is(sequences[fingerprint(association())], RESERVE);
});

test('whatever is sent and however it ends, no start begins below what was sent', (t) => {
  const path = place(t);
  // Not more than half of what is reserved in a tenth of a second.
  const sends = fc.array(fc.nat(RESERVE / 2), { maxLength: 20 });
  fc.assert(
    fc.property(fc.array(fc.record({ sends, crash: fc.boolean() }), { maxLength: 6 }), (runs) => {
      rmSync(path, { force: true });
      let most = 0;
      for (const { sends, crash } of runs) {
        const run = new Run(path);
        t.true(run.first >= most);
        for (const count of sends) {
          run.sent += count;
          run.sequences.look();
        }
        most = run.sent;
        if (!crash) run.sequences.close();
      }
    }),
    { numRuns: 50 },
  );
});
