/** What stands before the bridge when there are services, and time that passes it by. */
import test from 'ava';
import { SILENT } from '../../engine/elements/balancer/prober.js';
import { Batch } from '../../engine/graph.js';
import type { HealthChange } from '../../engine/health.js';
import type { Intent, NeighbourIntent, ServiceIntent } from '../../engine/intent.js';
import { ServiceFront } from '../../engine/services.js';
import { DEFAULT_TIMEOUTS } from '../../engine/tables/connection.js';
import { Flows } from '../../engine/tables/flows.js';
import { addressWord, Gateways } from '../../engine/tables/gateways.js';
import { MAPPED_IPV4, Neighbours, NO_NEIGHBOUR } from '../../engine/tables/neighbours.js';
import { neighboursOf, VIRTUAL_MAC_LE } from '../../engine/tables/services.js';
import { backend, service, VIP } from '../support/balancer.js';
import { flagsOf, HEALTH } from '../support/checks.js';
import { syn } from '../support/connections.js';
import { ip, Rig, station } from '../support/frames.js';
import { SYN } from '../support/nat.js';

function frontRig() {
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
  const neighbours = new Neighbours(1);
  const flows = new Flows(400, 1, 1);
  const services = new ServiceFront(
    ...([rig.context, { flows: flows, addresses: null }, neighbours, batches] as const),
    ...([gateway, DEFAULT_TIMEOUTS, (told: readonly HealthChange[]) => changes.push(...told)] as const),
  );
  return { rig, sink, behind, front: front!, changes, neighbours, flows, services };
}

test('a tick that comes late is no time that a backend was given', (t) => {
  const { rig, sink, behind, changes, services } = frontRig();
  const health = { ...HEALTH, failures: 1, timeout: 1000, interval: 100_000 };
  services.apply({ services: [service({ health, backends: [backend(1)] })] } as unknown as Intent, []);
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

test('services and backends that are gone are neighbours for five more seconds, unless somebody else has the address', (t) => {
  const { neighbours, services } = frontRig();
  const was = service();
  const other = { domain: 0, address: ip('10.0.9.2'), mac: station(77) };
  const stranger = { domain: 0, address: ip('10.0.9.9'), mac: station(9) };
  const known = (address: string) => {
    const at = neighbours.lookup(0, 0, 0, MAPPED_IPV4, addressWord(ip(address)));
    return at === NO_NEIGHBOUR ? undefined : [0, 1, 2].map((i) => neighbours.macWord(at, i));
  };
  const words = (mac: Uint8Array) => [...new Uint16Array(Uint8Array.from(mac).buffer)];
  const apply = (
    one: readonly ServiceIntent[],
    there: readonly NeighbourIntent[],
    gone: readonly NeighbourIntent[],
  ) => services.apply({ services: one, neighbours: there } as unknown as Intent, gone);
  apply([was], neighboursOf(was), []);
  // A backend goes, then the service; meanwhile an endpoint gets the address of another backend.
  const left = service({ backends: [backend(1), backend(2)] });
  apply([left], neighboursOf(left), [...neighboursOf(was).slice(3), stranger]);
  for (let i = 0; i < 20; i++) services.tick();
  apply([], [other], neighboursOf(left));
  t.deepEqual(known(VIP), [VIRTUAL_MAC_LE, ...words(ip(VIP))]);
  for (const n of [1, 3]) t.deepEqual(known(`10.0.9.${n}`), words(station(n)));
  t.deepEqual([known('10.0.9.2'), known('10.0.9.9')], [undefined, undefined], 'which are not ours to set');
  for (let i = 0; i < 49; i++) services.tick();
  t.truthy(known(VIP));
  // Whoever is there by then stays.
  neighbours.set(other.domain, other.address, other.mac);
  services.tick();
  for (const address of [VIP, '10.0.9.1', '10.0.9.3']) t.is(known(address), undefined);
  t.deepEqual(known('10.0.9.2'), words(station(77)));
});

test('tables of schedulers are made piece by piece, and as long as there is one nobody sleeps', (t) => {
  const { rig, services } = frontRig();
  t.false(services.isBusy);
  services.apply({ services: [service({ scheduler: 'maglev' })], neighbours: [] } as unknown as Intent, []);
  let pieces = 0;
  for (; services.isBusy && pieces < 1000; pieces++) services.work();
  t.true(pieces > 1 && pieces < 100, `${pieces}`);
  rig.finish(t);
});

test('flows of a backend that goes are ended breath by breath, and nobody sleeps until the last of them', (t) => {
  const { rig, sink, behind, front, flows, services } = frontRig();
  const to = (...backends: number[]): Intent =>
    ({
      services: [service({ backends: backends.map((n) => backend(n)) })],
      neighbours: [],
    }) as unknown as Intent;
  services.apply(to(1), []);
  for (let port = 1; port <= 300; port++) rig.feed(front.next!, rig.put(syn(port)));
  behind.flush();
  t.is(sink.take().length, 300);
  t.is(flows.size, 300);
  while (services.isBusy) services.work();
  services.apply(to(2), []);
  let breaths = 0;
  for (; services.isBusy && breaths < 100; breaths++) services.work();
  t.is(flows.size, 0);
  t.true(breaths > 1 && breaths < 100, `${breaths}`);
  rig.finish(t);
});
