import test from 'ava';
import fc from 'fast-check';
import { parseIp } from '../../../control/addresses.js';
import type { StaticAssociation } from '../../../control/config.js';
import { InstalledAssociations } from '../../../control/keying/store.js';
import type { AssociationHandle, NewAssociation } from '../../../control/keying/types.js';
import { Secret } from '../../../control/secret.js';
import type { AssociationIntent } from '../../../engine/intent.js';
import { AssociationState, associationStateBytes } from '../../../engine/tables/association-state.js';
import { native } from '../../../native-bindings/index.js';

const A = '192.0.2.1';
const B = '192.0.2.2';

/** Workers and an addon that remember what they were told, in one list of events. */
class Host {
  readonly state: AssociationState;
  readonly events: string[] = [];
  /** Key bytes by slot. */
  readonly keys = new Map<number, Uint8Array>();
  /** What the workers have. */
  list: readonly AssociationIntent[] = [];
  /** Slots of lists that they refused: they may have them, until they take another list. */
  private doubtful: number[] = [];
  /** Promises to the workers that were not kept. */
  readonly broken: string[] = [];
  readonly lines: string[] = [];
  /** Outcomes of the next applies; past them they succeed. */
  readonly failures: boolean[] = [];
  /** While it is set, applies wait for it. */
  gate: Promise<void> | undefined;
  time = 0;
  readonly timers = new Set<() => void>();
  readonly store: InstalledAssociations;

  constructor(slots: number) {
    this.state = new AssociationState(new SharedArrayBuffer(associationStateBytes(slots)));
    this.store = new InstalledAssociations({
      state: this.state,
      native: {
        gcmInstall: ({ slot, key }) => {
          if (this.keys.has(slot)) throw new TypeError(`slot ${slot} is taken`);
          if (key.length % 8 !== 0) throw new TypeError('a key of a wrong length');
          if ([...this.doubtful, ...this.list.map((intent) => intent.slot)].includes(slot))
            this.broken.push(`slot ${slot} is used again while the workers may know it`);
          this.keys.set(slot, key.slice());
          this.events.push(`key ${slot}`);
        },
        gcmRemove: (slot) => {
          if (this.keys.delete(slot)) this.events.push(`wipe ${slot}`);
        },
      },
      apply: async (list) => {
        this.doubtful.push(...list.map(({ slot }) => slot));
        this.check(list);
        await this.gate;
        await new Promise(setImmediate);
        if (this.failures.shift()) throw new Error('the data plane did not answer');
        this.list = list;
        this.doubtful = [];
        this.events.push(`apply ${list.map(({ slot }) => slot).join(' ')}`.trim());
      },
      now: () => this.time,
      after: (_ms, call) => {
        this.timers.add(call);
        return () => void this.timers.delete(call);
      },
      log: (line) => void this.lines.push(line),
    });
  }

  private check(list: readonly AssociationIntent[]): void {
    const keyless = list.filter(({ slot }) => !this.keys.has(slot));
    if (keyless.length > 0) this.broken.push('the workers are told of a slot without a key');
    const places = list.map(({ direction, spi, vtep }) => (direction === 'in' ? `${spi}` : vtep.join('.')));
    if (new Set(places).size < places.length) this.broken.push('an SPI, or a peer that is sent to, twice');
  }

  /** Timers run out. */
  ring(): void {
    for (const call of [...this.timers]) {
      this.timers.delete(call);
      call();
    }
  }

  /** Until the store has nothing more to tell. */
  async settle(): Promise<void> {
    for (let i = 0; i < 20; i++) await new Promise(setImmediate);
  }
}

const fresh = (spi: number, key = 7): NewAssociation => ({
  spi,
  algorithm: 'aes-128-gcm-16',
  key: new Uint8Array(16).fill(key),
  salt: new Uint8Array(4),
  esn: true,
  window: 1024,
  keyId: 2,
  sessionId: '0123456789abcdef',
});

const fixed = (over: Partial<StaticAssociation> = {}): StaticAssociation => ({
  peer: A,
  direction: 'out',
  spi: 0x1001,
  algorithm: 'aes-256-gcm-12',
  key: new Secret('ab'.repeat(36)),
  esn: false,
  replayWindow: 64,
  ...over,
});

test('a key is there before the workers hear of it, and wiped after they have heard that it is gone', async (t) => {
  const host = new Host(4);
  const handle = await host.store.installInbound(A, fresh(0x1001));
  t.deepEqual({ ...handle, peer: A }, handle);
  t.deepEqual(host.events, ['key 0', 'apply 0']);
  const [intent] = host.list;
  t.deepEqual(intent, {
    slot: 0,
    direction: 'in',
    spi: 0x1001,
    vtep: parseIp(A).bytes,
    icv: 16,
    esn: true,
    window: 1024,
  });
  host.store.remove(handle);
  await host.settle();
  t.deepEqual(host.events, ['key 0', 'apply 0', 'apply', 'wipe 0']);
  t.deepEqual(host.store.usage(handle), { packets: 0, bytes: 0, sequence: 0 });
});

test('what is asked for in one moment is told at once, and what comes meanwhile in one more list', async (t) => {
  const host = new Host(300);
  let open = (): void => undefined;
  host.gate = new Promise((resolve) => {
    open = resolve;
  });
  const many = Array.from({ length: 100 }, (_, i) => host.store.installInbound(A, fresh(1000 + i)));
  await host.settle();
  const more = Array.from({ length: 100 }, (_, i) => host.store.installInbound(B, fresh(2000 + i)));
  await host.settle();
  t.is(host.events.filter((event) => event.startsWith('apply')).length, 0);
  open();
  await Promise.all([...many, ...more]);
  t.is(host.events.filter((event) => event.startsWith('apply')).length, 2);
  t.is(host.list.length, 200);
});

test('one association sends to a peer: the former is wiped when its successor is in force', async (t) => {
  const host = new Host(4);
  const first = await host.store.installOutbound(A, fresh(0x100));
  await host.store.installOutbound(B, fresh(0x100));
  await host.store.installOutbound(A, fresh(0x200));
  t.deepEqual(host.events.slice(-3), ['key 2', 'apply 1 2', 'wipe 0']);
  host.store.remove(first);
  await host.settle();
  t.is(host.events.at(-1), 'wipe 0', 'the handle of what was replaced means nothing');
  t.deepEqual(
    host.store.rows().map(({ peer, spi, state }) => [peer, spi, state]),
    [
      [A, 0x200, 'sending'],
      [B, 0x100, 'sending'],
    ],
  );
});

test('two successors in one moment: the later sends, and both answers come', async (t) => {
  const host = new Host(4);
  const [first] = await Promise.all([
    host.store.installOutbound(A, fresh(0x100)),
    host.store.installOutbound(A, fresh(0x200)),
  ]);
  t.deepEqual(
    host.list.map(({ spi }) => spi),
    [0x200],
  );
  t.deepEqual([...host.keys.keys()], [1]);
  host.state.packets[0] = 5;
  t.is(host.store.usage(first).packets, 0);
});

test('the state of a slot begins anew: counts, window and, sending, a mask of chance', async (t) => {
  const host = new Host(2);
  const masks = new Set<string>();
  for (let i = 0; i < 4; i++) {
    host.state.packets.fill(9);
    host.state.window.fill(9);
    const { spi } = await host.store.installOutbound(A, fresh(0x100 + i));
    const slot = host.list[0].slot;
    t.is(host.list[0].spi, spi);
    t.is(host.state.packets[slot], 0);
    t.is(host.state.last(slot), 0);
    masks.add(host.state.mask.slice(slot * 2, slot * 2 + 2).join());
  }
  t.is(masks.size, 4);
});

test('a slot is used again as late as can be', async (t) => {
  const host = new Host(3);
  const used: number[] = [];
  for (let i = 0; i < 6; i++) {
    const handle = await host.store.installInbound(A, fresh(0x100 + i));
    used.push(host.list[0].slot);
    host.store.remove(handle);
    await host.settle();
  }
  t.deepEqual(used, [0, 1, 2, 0, 1, 2]);
});

test('an inbound SPI is there once; a removed one may be used by the next in the same moment', async (t) => {
  const host = new Host(4);
  const handle = await host.store.installInbound(A, fresh(0xabcd));
  await t.throwsAsync(host.store.installInbound(B, fresh(0xabcd)), {
    message: /inbound SPI 0x0000abcd is in use/,
  });
  t.is(host.keys.size, 1);
  host.store.remove(handle);
  await host.store.installInbound(B, fresh(0xabcd));
  t.deepEqual(host.events.slice(-3), ['key 1', 'apply 1', 'wipe 0']);
});

test('when all slots are in use, what comes is refused and the former goes on sending', async (t) => {
  const host = new Host(2);
  await host.store.installOutbound(A, fresh(0x100));
  await host.store.installInbound(A, fresh(0x100));
  const before = [...host.events];
  await t.throwsAsync(host.store.installOutbound(A, fresh(0x200)), {
    message: /all 2 security associations/,
  });
  await t.throwsAsync(host.store.installInbound(A, fresh(0x200)));
  t.deepEqual(host.events, before);
});

test('a key that the addon refuses costs no slot', async (t) => {
  const host = new Host(1);
  await t.throwsAsync(host.store.installInbound(A, { ...fresh(0x100), key: new Uint8Array(15) }));
  await host.store.installInbound(A, fresh(0x100));
  t.is(host.list.length, 1);
});

test('refused once: the new ones are taken back, their keys wiped, the former sends', async (t) => {
  const host = new Host(2);
  await host.store.installOutbound(A, fresh(0x100));
  host.failures.push(true);
  await t.throwsAsync(host.store.installOutbound(A, fresh(0x200)), { message: /did not answer/ });
  t.deepEqual(
    host.list.map(({ spi }) => spi),
    [0x100],
  );
  t.deepEqual(host.events, ['key 0', 'apply 0', 'key 1', 'apply 0', 'wipe 1']);
  t.is(host.lines.length, 1);
  await host.store.installOutbound(A, fresh(0x300));
  t.deepEqual([...host.keys.keys()], [1]);
});

test('refused twice: keys are wiped at once, slots only when the workers have a list without them', async (t) => {
  const host = new Host(2);
  const handle = await host.store.installInbound(A, fresh(0x100));
  host.failures.push(true, true);
  host.store.remove(handle);
  await t.throwsAsync(host.store.installInbound(B, fresh(0x200)));
  t.is(host.keys.size, 0);
  await t.throwsAsync(host.store.installInbound(B, fresh(0x300)), { message: /all 2/ });
  await host.settle();
  t.is(host.list.length, 1, 'the workers were not told yet');
  host.ring();
  await host.settle();
  t.is(host.list.length, 0);
  t.is(host.timers.size, 0);
  await host.store.installInbound(B, fresh(0x300));
  t.is(host.keys.size, 1);
});

test('a static association: key and salt split, the sequence goes on, the copy of the key is overwritten', async (t) => {
  const host = new Host(2);
  const handle = await host.store.installStatic(fixed(), 2 ** 20);
  t.deepEqual(host.keys.get(0), new Uint8Array(32).fill(0xab));
  t.is(host.list[0].icv, 12);
  t.is(host.list[0].window, 64);
  t.is(host.store.usage(handle).sequence, 2 ** 20);
});

test('rows tell everything but keys', async (t) => {
  const host = new Host(8);
  await host.store.installInbound(B, fresh(0x100));
  host.time = 5000;
  await host.store.installInbound(B, fresh(0x101));
  await host.store.installOutbound(B, fresh(0x200));
  await host.store.installStatic(fixed(), 7);
  await host.store.installStatic(fixed({ direction: 'in' }), 0);
  await host.store.installStatic(
    fixed({ direction: 'in', spi: 0x1002, key: new Secret('cd'.repeat(36)) }),
    0,
  );
  host.time = 7999;
  host.state.packets[1] = 3;
  host.state.bytes[1] = 300;
  host.state.refused[7] = 2;
  const rows = host.store.rows();
  t.deepEqual(
    rows.map(({ peer, direction, spi, state, ageSeconds, keyId }) => [
      peer,
      direction,
      spi,
      state,
      ageSeconds,
      keyId,
    ]),
    [
      [A, 'out', 0x1001, 'sending', 2, 'static'],
      [A, 'in', 0x1002, 'receiving', 2, 'static'],
      [A, 'in', 0x1001, 'receiving', 2, 'static'],
      [B, 'out', 0x200, 'sending', 2, 2],
      [B, 'in', 0x101, 'receiving', 2, 2],
      [B, 'in', 0x100, 'old', 7, 2],
    ],
  );
  const row = rows[4];
  t.deepEqual(row, {
    peer: B,
    direction: 'in',
    spi: 0x101,
    algorithm: 'aes-128-gcm-16',
    keyId: 2,
    session: '0123456789abcdef',
    ageSeconds: 2,
    packets: 3,
    bytes: 300,
    sequence: 0,
    esn: true,
    replayWindow: 1024,
    refusals: { ...row.refusals, icv: 2, replayed: 0 },
    state: 'receiving',
  });
  t.false('session' in rows[0]);
  t.notRegex(JSON.stringify(rows), /abab|0707|"key"|salt/);
});

test('closing wipes all keys at once, answers who waits, and installs nothing any more', async (t) => {
  const host = new Host(4);
  await host.store.installInbound(A, fresh(0x100));
  let open = (): void => undefined;
  host.gate = new Promise((resolve) => {
    open = resolve;
  });
  const flying = host.store.installInbound(A, fresh(0x101));
  await host.settle();
  const waiting = host.store.installOutbound(A, fresh(0x102));
  t.is(host.keys.size, 3);
  host.store.close();
  t.is(host.keys.size, 0);
  await t.throwsAsync(waiting, { message: /closed/ });
  open();
  await t.throwsAsync(flying, { message: /closed/ });
  await t.throwsAsync(host.store.installInbound(A, fresh(0x103)), { message: /closed/ });
  t.is(host.keys.size, 0);
  t.deepEqual(host.store.rows(), []);
});

test('SPIs come from the whole range and are not those in use', async (t) => {
  const host = new Host(1);
  const drawn = new Set(Array.from({ length: 1000 }, () => host.store.allocateSpi()));
  t.true([...drawn].every((spi) => Number.isInteger(spi) && spi >= 256 && spi < 2 ** 32));
  t.true(drawn.size > 990);
  t.true([...drawn].some((spi) => spi >= 2 ** 31) && [...drawn].some((spi) => spi < 2 ** 31));
});

test('the real addon takes and wipes the keys', async (t) => {
  const state = new AssociationState();
  const store = new InstalledAssociations({
    state,
    native,
    apply: async () => undefined,
    now: () => 0,
    after: () => () => undefined,
    log: () => undefined,
  });
  const handle = await store.installStatic(fixed(), 0);
  t.throws(
    () =>
      native.gcmInstall({ slot: 0, key: new Uint8Array(16), salt: new Uint8Array(4), icv: 16, esn: false }),
    {
      instanceOf: TypeError,
    },
  );
  store.remove(handle);
  for (let i = 0; i < 10; i++) await new Promise(setImmediate);
  t.notThrows(() =>
    native.gcmInstall({ slot: 0, key: new Uint8Array(16), salt: new Uint8Array(4), icv: 16, esn: false }),
  );
  native.gcmRemove(0);
  store.close();
});

type Step =
  | { readonly do: 'in' | 'out'; readonly peer: number }
  | { readonly do: 'remove'; readonly which: number }
  | { readonly do: 'fail' | 'wait' | 'ring' };

const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ do: fc.constantFrom('in' as const, 'out' as const), peer: fc.integer({ min: 1, max: 4 }) }),
  fc.record({ do: fc.constant('remove' as const), which: fc.nat(20) }),
  fc.record({ do: fc.constantFrom('fail' as const, 'wait' as const, 'ring' as const) }),
);

test('whatever the order: no slot is lost, none is used early, every key is wiped', async (t) => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 60 }), async (steps) => {
      const slots = 6;
      const host = new Host(slots);
      const held = new Set<AssociationHandle>();
      const pending: Promise<unknown>[] = [];
      let spi = 256;
      for (const one of steps) {
        if (one.do === 'in' || one.do === 'out') {
          const peer = `192.0.2.${one.peer}`;
          const install = one.do === 'in' ? host.store.installInbound : host.store.installOutbound;
          pending.push(
            install.call(host.store, peer, fresh(spi++)).then(
              (handle) => held.add(handle),
              (error: Error) => {
                if (!/did not answer|all 6/.test(error.message)) throw error;
              },
            ),
          );
        } else if (one.do === 'remove') {
          const handle = [...held][one.which % Math.max(1, held.size)];
          if (handle) host.store.remove(handle);
          held.delete(handle);
        } else if (one.do === 'fail') host.failures.push(true);
        else if (one.do === 'ring') host.ring();
        else await new Promise(setImmediate);
      }
      await Promise.all(pending);
      host.failures.length = 0;
      for (const handle of held) host.store.remove(handle);
      for (let i = 0; i < 3; i++) {
        await host.settle();
        host.ring();
      }
      t.deepEqual(host.list, []);
      t.is(host.keys.size, 0);
      const all = await Promise.all(
        Array.from({ length: slots }, (_, i) => host.store.installInbound(A, fresh(1 << (20 + i)))),
      );
      t.is(all.length, slots);
      t.is(new Set(host.list.map(({ slot }) => slot)).size, slots);
      host.store.close();
      t.is(host.keys.size, 0);
      t.deepEqual(host.broken, []);
    }),
    { numRuns: 200 },
  );
});
