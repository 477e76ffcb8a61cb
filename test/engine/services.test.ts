/** What stands before the bridge when there are services, and time that passes it by. */
import test from 'ava';
import { SILENT } from '../../engine/elements/balancer/prober.js';
import { Batch } from '../../engine/graph.js';
import type { HealthChange } from '../../engine/health.js';
import type { Intent } from '../../engine/intent.js';
import { ServiceFront } from '../../engine/services.js';
import { DEFAULT_TIMEOUTS } from '../../engine/tables/connection.js';
import { Flows } from '../../engine/tables/flows.js';
import { Gateways } from '../../engine/tables/gateways.js';
import { Neighbours } from '../../engine/tables/neighbours.js';
import { backend, service } from '../support/balancer.js';
import { flagsOf, HEALTH } from '../support/checks.js';
import { Rig } from '../support/frames.js';
import { SYN } from '../support/nat.js';

test('a tick that comes late is no time that a backend was given', (t) => {
  const rig = new Rig();
  rig.context.setTime(1000);
  const sink = rig.sink();
  const behind = new Batch(sink);
  const [front, station, tunnel] = [1, 2, 3].map(() => new Batch(sink));
  const batches = { behind, front: front!, station: station!, tunnel: tunnel!, ports: [] };
  const outside = (): Batch => behind;
  const gateway = {
    ...{ gateways: new Gateways(), outsideOf: outside, outsideOfV6: outside, inward: behind },
    balanceBy: () => undefined,
  };
  const changes: HealthChange[] = [];
  const services = new ServiceFront(
    ...([rig.context, { flows: new Flows(100, 1, 1), addresses: null }, new Neighbours(1), batches] as const),
    ...([gateway, DEFAULT_TIMEOUTS, (told: readonly HealthChange[]) => changes.push(...told)] as const),
  );
  const health = { ...HEALTH, failures: 1, timeout: 1000, interval: 100_000 };
  services.apply({
    services: [service({ health, backends: [backend(1)] })],
    neighbours: [],
  } as unknown as Intent);
  let now = 1000;
  const tick = (milliseconds: number): readonly number[] => {
    rig.context.setTime((now += milliseconds));
    services.tick();
    behind.flush();
    return sink.take().map(flagsOf);
  };
  let sent: readonly number[] = [];
  for (let i = 0; i < 11 && sent.length === 0; i++) sent = tick(100);
  t.deepEqual(sent, [SYN]);
  for (const _ of [1, 2]) tick(60_000);
  t.deepEqual(changes, []);
  for (let i = 0; i < 10; i++) tick(100);
  t.deepEqual(
    changes.map(({ cause }) => cause),
    [SILENT],
  );
  rig.finish(t);
});
