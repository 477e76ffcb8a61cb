import test from 'ava';
import { ExchangeTenant } from '../../../control/keying/tenant.js';
import type { AssociationHandle, AssociationStore, NewAssociation } from '../../../control/keying/types.js';

const A = '192.0.2.1';
const B = '192.0.2.2';
const ANY = {} as NewAssociation;

/** A store that installs whatever comes, and a clock that runs when it is told to. */
class World implements AssociationStore {
  time = 0;
  readonly removed: AssociationHandle[] = [];
  readonly lines: string[] = [];
  private timers: { at: number; call: () => void }[] = [];
  private next = 256;

  tenant(heritage: ReturnType<ExchangeTenant['leave']> = new Map(), longestMs = 3_600_000): ExchangeTenant {
    const after = (ms: number, call: () => void): (() => void) => {
      const timer = { at: this.time + ms, call };
      this.timers.push(timer);
      return () => {
        this.timers = this.timers.filter((other) => other !== timer);
      };
    };
    const surroundings = {
      now: () => this.time,
      after,
      send: () => undefined,
      log: (line: string) => void this.lines.push(line),
    };
    return new ExchangeTenant(this, surroundings, heritage, longestMs);
  }

  pass(ms: number): void {
    this.time += ms;
    const due = this.timers.filter(({ at }) => at <= this.time);
    this.timers = this.timers.filter(({ at }) => at > this.time);
    for (const { call } of due) call();
  }

  allocateSpi(): number {
    return this.next;
  }

  async installInbound(peer: string): Promise<AssociationHandle> {
    return { peer, direction: 'in', spi: this.next++ };
  }

  async installOutbound(peer: string): Promise<AssociationHandle> {
    return { peer, direction: 'out', spi: this.next++ };
  }

  remove(handle: AssociationHandle): void {
    this.removed.push(handle);
  }

  usage(): { packets: number; bytes: number; sequence: number } {
    return { packets: 0, bytes: 0, sequence: 0 };
  }
}

/** A world where an exchange has left both directions with A and with B, and another serves the same peers. */
async function succession(longestMs?: number) {
  const world = new World();
  const former = world.tenant();
  former.serve([A, B]);
  const made = new Map<string, AssociationHandle[]>();
  for (const peer of [A, B])
    made.set(peer, [await former.installInbound(peer, ANY), await former.installOutbound(peer, ANY)]);
  const heritage = former.leave(() => {
    for (const handle of [...made.values()].flat()) former.remove(handle);
  });
  const tenant = world.tenant(heritage, longestMs);
  tenant.serve([A, B]);
  return { world, former, tenant, made };
}

test('what an exchange leaves stays until the next one sends to the peer, and half a minute more', async (t) => {
  const { world, tenant, made } = await succession();
  t.deepEqual(world.removed, []);
  await tenant.installInbound(A, ANY);
  world.pass(31_000);
  t.deepEqual(world.removed, [], 'receiving is not enough');
  await tenant.installOutbound(A, ANY);
  world.pass(29_000);
  t.deepEqual(world.removed, []);
  world.pass(2000);
  t.deepEqual(world.removed, made.get(A));
});

test('with a peer that does not agree it stays no longer than keys may', async (t) => {
  const { world, made } = await succession(60_000);
  world.pass(59_000);
  t.deepEqual(world.removed, []);
  world.pass(1000);
  t.deepEqual(world.removed, [...made.values()].flat());
});

test('of a peer that is taken away nothing stays', async (t) => {
  const { world, tenant, made } = await succession();
  tenant.serve([B]);
  t.deepEqual(world.removed, made.get(A));
});

test('what was left is left again when the next exchange ends early', async (t) => {
  const { world, tenant, made } = await succession();
  const own = await tenant.installInbound(A, ANY);
  const heritage = tenant.leave(() => tenant.remove(own));
  t.deepEqual(heritage.get(A), [...made.get(A)!, own]);
  t.deepEqual(heritage.get(B), made.get(B));
  t.deepEqual(world.removed, []);
  world.pass(3_600_000);
  t.deepEqual(world.removed, [], 'they are not its own any more');
});

test('an exchange that has ended installs nothing, removes at once, and is silent', async (t) => {
  const { world, former } = await succession();
  await t.throwsAsync(former.installInbound(A, ANY), { message: /192\.0\.2\.1 is no peer of the exchange/ });
  await t.throwsAsync(former.installOutbound(A, ANY));
  const late = { peer: A, direction: 'in', spi: 999 } as const;
  former.remove(late);
  t.deepEqual(world.removed, [late]);
  former.log('late');
  t.deepEqual(world.lines, []);
});

test('nothing is installed for who is no peer any more', async (t) => {
  const { tenant } = await succession();
  tenant.serve([B]);
  await t.throwsAsync(tenant.installOutbound(A, ANY), { message: /192\.0\.2\.1 is no peer of the exchange/ });
  await t.throwsAsync(tenant.installInbound(A, ANY));
  await t.notThrowsAsync(tenant.installOutbound(B, ANY));
});
