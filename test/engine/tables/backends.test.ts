import test from 'ava';
import { Backends, MAX_WEIGHT, NO_SERVICE, RR } from '../../../engine/tables/backends.js';

function table(services = 2, capacity = 4): Backends {
  const backends = new Backends(services, capacity);
  for (let service = 0; service < services; service++) backends.open(service, RR);
  return backends;
}

test('a backend keeps its number while others come and go, and its service lists it in order', (t) => {
  const backends = table();
  const [a, b, c] = [1, 2, 3].map((address) => backends.add(0, address, 80, 1));
  backends.remove(b);
  const d = backends.add(0, 4, 80, 1);
  t.deepEqual([...backends.lists[0]], [a, c, d]);
  t.deepEqual(
    [a, c, d].map((backend) => backends.address[backend]),
    [1, 3, 4],
  );
  t.is(backends.service[b], NO_SERVICE);
  t.is(backends.size, 3);
});

test('a number is given to another as late as can be, and with nothing of what was there', (t) => {
  const backends = table(1, 3);
  const first = backends.add(0, 1, 80, 1);
  for (const counts of [backends.active, backends.inactive, backends.flows, backends.packets, backends.bytes])
    counts[first] = 7;
  backends.setUp(first, false);
  backends.remove(first);
  const others = [2, 3].map((address) => backends.add(0, address, 80, 1));
  t.false(others.includes(first));
  t.is(backends.add(0, 4, 443, 9), first);
  const { active, inactive, flows, packets, bytes, up, weight, port } = backends;
  t.deepEqual(
    [active, inactive, flows, packets, bytes, up, weight, port].map((values) => values[first]),
    [0, 0, 0, 0, 0, 1, 9, 443],
  );
});

test('how many may be chosen: up, and of a weight', (t) => {
  const backends = table();
  const [a, b, c] = [1, 0, 5].map((weight, i) => backends.add(0, i, 80, weight));
  t.is(backends.available[0], 2);
  backends.setUp(a, false);
  backends.setUp(a, false);
  backends.setUp(b, false);
  t.is(backends.available[0], 1);
  backends.setWeight(a, 9);
  backends.setWeight(b, 9);
  t.is(backends.available[0], 1);
  backends.setUp(b, true);
  t.is(backends.available[0], 2);
  backends.remove(c);
  backends.remove(a);
  t.is(backends.available[0], 1);
  t.is(backends.available[1], 0);
});

test('a service that is closed frees its backends, and can be opened again', (t) => {
  const backends = table();
  for (let i = 0; i < 3; i++) backends.add(0, i, 80, 1);
  const other = backends.add(1, 9, 80, 1);
  backends.close(0);
  backends.close(0);
  t.is(backends.size, 1);
  t.is(backends.service[other], 1);
  t.is(backends.available[0], 0);
  t.throws(() => backends.add(0, 1, 80, 1), { message: 'service 0 is not open' });
  backends.open(0, RR);
  for (let i = 0; i < 3; i++) backends.add(0, i, 80, 1);
  t.is(backends.lists[0].length, 3);
});

test('what there is no room for is refused with what there is room for', (t) => {
  const backends = table(1, 1);
  backends.add(0, 1, 80, 1);
  t.throws(() => backends.add(0, 2, 80, 1), { message: 'there is room for 1 backends of all services' });
  t.throws(() => backends.open(1, RR), { message: 'service 1 is not below 1' });
  t.throws(() => backends.open(0, 6), { message: 'there is no scheduler 6' });
  for (const weight of [-1, 0.5, MAX_WEIGHT + 1, Number.NaN])
    t.throws(() => backends.setWeight(0, weight), {
      message: /^weight .* is not a whole number in 0–65535$/,
    });
  t.throws(() => new Backends(0, 1), { message: /^there must be room/ });
});

test('10,000 services with 100,000 backends', (t) => {
  const backends = table(10_000, 100_000);
  for (let i = 0; i < 100_000; i++) backends.add(i % 10_000, i, 80, 1);
  t.is(backends.size, 100_000);
  t.true(
    backends.lists.every((list, service) => list.length === 10 && backends.service[list[9]] === service),
  );
});
