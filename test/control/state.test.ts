import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import {
  type RememberedHost,
  rememberedHost,
  rememberedTaps,
  rememberHost,
  rememberTaps,
} from '../../control/state.js';

const directory = mkdtempSync(join(tmpdir(), 'weft-state-'));
test.after.always(() => rmSync(directory, { recursive: true }));

const TAPS = [{ netns: '/run/netns/c1', interface: 'eth0' }];
const HOST: RememberedHost = { tables: ['ip weft_host_h1_host'], forwarding: ['4 eth0'] };

test('interfaces and what was changed of the host are noted apart; without either there is no file', (t) => {
  const path = join(directory, 'below', 'state');
  t.deepEqual(rememberedTaps(path), []);
  rememberTaps(path, TAPS);
  rememberHost(path, HOST);
  rememberTaps(path, []);
  t.deepEqual(rememberedHost(path), HOST);
  t.deepEqual(rememberedTaps(path), []);
  rememberTaps(path, TAPS);
  rememberHost(path);
  t.deepEqual(rememberedTaps(path), TAPS);
  rememberTaps(path, []);
  t.false(existsSync(path));
});

test('a damaged file costs the clean-up, and what is none of ours is not touched', (t) => {
  const path = join(directory, 'damaged');
  for (const text of ['', '{', '[]', '{"taps":1}', '{"host":{"tables":[1]}}']) {
    writeFileSync(path, text);
    t.deepEqual(rememberedTaps(path), []);
    t.deepEqual(rememberedHost(path), { tables: [], forwarding: [] });
  }
  const foreign = {
    tables: ['inet filter', 'ip weft_host_a b', ...HOST.tables],
    forwarding: ['4 ../x', '4 eth0'],
  };
  writeFileSync(path, JSON.stringify({ taps: TAPS, host: foreign }));
  t.deepEqual(rememberedHost(path), HOST);
  // As it was written before there were uplinks of mode host.
  writeFileSync(path, JSON.stringify({ taps: TAPS }));
  t.deepEqual(rememberedTaps(path), TAPS);
});
