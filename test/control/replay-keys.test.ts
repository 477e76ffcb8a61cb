/** Keys of a replay in the addon: each run has its own slots, and leaves none behind. */
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { type ReplayOptions, replay } from '../../control/replay.js';
import { installKeys, type KeyedAssociation, randomKey } from '../../control/replay-keys.js';
import { native } from '../../native-bindings/index.js';

const CAPTURE = fileURLToPath(new URL('../../../pcaps/tcp.pcap.gz', import.meta.url));

/** Whether the addon has no key in a slot. */
function isEmpty(slot: number): boolean {
  const zeros = (length: number) => new Uint8Array(length);
  try {
    native.gcmInstall({ slot, key: zeros(16), salt: zeros(4), icv: 16, esn: false });
  } catch {
    return false;
  }
  native.gcmRemove(slot);
  return true;
}

const association = (more: Partial<KeyedAssociation> = {}): KeyedAssociation => ({
  vtep: Uint8Array.of(192, 0, 2, 2),
  direction: 'out',
  spi: 0x1001,
  algorithm: 'aes-256-gcm-12',
  key: randomKey('aes-256-gcm-12'),
  esn: true,
  replayWindow: 64,
  ...more,
});

test.serial('keys are in slots that nobody has, and gone when they are wiped', (t) => {
  const first = installKeys([association(), association({ direction: 'in' })]);
  const second = installKeys([association()]);
  t.deepEqual(
    [...first.associations, ...second.associations].map(({ slot }) => slot),
    [0, 1, 2],
  );
  const { vtep } = association();
  const intent = { slot: 1, direction: 'in', spi: 0x1001, vtep, icv: 12, esn: true, window: 64 } as const;
  t.deepEqual(first.associations[1], intent);
  t.deepEqual([0, 1, 2, 3].map(isEmpty), [false, false, false, true]);
  first.wipe();
  t.deepEqual([0, 1, 2].map(isEmpty), [true, true, false]);
  const third = installKeys([association(), association()]);
  t.deepEqual(
    third.associations.map(({ slot }) => slot),
    [0, 1],
  );
  first.wipe();
  t.deepEqual([0, 1].map(isEmpty), [false, false]);
  second.wipe();
  third.wipe();
  t.deepEqual([0, 1, 2].map(isEmpty), [true, true, true]);
});

test.serial('when one key cannot be installed, none is', (t) => {
  const short = association({ algorithm: 'aes-128-gcm-16' });
  t.throws(() => installKeys([association(), short]), { instanceOf: TypeError });
  t.true(isEmpty(0));
});

const OPTIONS: ReplayOptions = {
  through: ['vxlan-encap', 'esp-encrypt', 'esp-decrypt', 'vxlan-decap'],
  loops: 2,
  local: Uint8Array.of(192, 0, 2, 1),
  remote: Uint8Array.of(192, 0, 2, 2),
  port: 4789,
  carryVlan: true,
  strict: false,
};

test.serial('a replay wipes its keys, however it ends', (t) => {
  const { delivered, frames, keys } = replay([CAPTURE], OPTIONS);
  t.deepEqual([delivered, keys], [frames, 'random']);
  t.deepEqual([0, 1].map(isEmpty), [true, true]);
  t.throws(() => replay([CAPTURE], { ...OPTIONS, write: '/nowhere/out.pcapng' }), {
    message: /cannot write/,
  });
  t.deepEqual([0, 1].map(isEmpty), [true, true]);
});
