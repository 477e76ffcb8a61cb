import test from 'ava';
import fc from 'fast-check';
import {
  NO_PORT,
  PortMappings,
  SPACE_ICMP,
  SPACE_TCP,
  SPACE_UDP,
} from '../../../engine/tables/port-mappings.js';
import { numbers } from '../../support/nat.js';

const endpointOf = (port: number, domain = 0): number =>
  ((domain + 1) << 16) | ((port & 0xff) << 8) | (port >>> 8);

function allocate(ports: PortMappings, inside: number, wanted: number, space = SPACE_UDP): number {
  const port = ports.allocate(space, inside, endpointOf(wanted), wanted);
  if (port !== NO_PORT) ports.use(space, port);
  return port;
}

test('a port that is free is kept; the next who wants it gets one of the same parity', (t) => {
  const ports = new PortMappings(1, 32768, 60999, numbers());
  t.is(allocate(ports, 1, 40000), 40000);
  for (let inside = 2; inside < 50; inside++) {
    const port = allocate(ports, inside, 40000);
    t.true(port % 2 === 0 && port !== 40000 && port >= 32768 && port <= 60999, `${port}`);
  }
  t.is(allocate(ports, 99, 40000, SPACE_TCP), 40000, 'each protocol has its own ports');
  t.is(allocate(ports, 99, 40000, SPACE_ICMP), 40000);
});

test('RFC 4787, REQ-3a and REQ-4: range and parity are kept while there is one, then parity, then neither', (t) => {
  const ports = new PortMappings(1, 1020, 1027, numbers());
  const got = Array.from({ length: 8 }, (_, inside) => allocate(ports, inside, 1020));
  t.deepEqual(got.slice(0, 2).sort(), [1020, 1022]);
  t.deepEqual(got.slice(2, 4).sort(), [1021, 1023]);
  t.deepEqual(got.slice(4, 6).sort(), [1024, 1026]);
  t.deepEqual(got.slice(6).sort(), [1025, 1027]);
  t.is(allocate(ports, 9, 1020), NO_PORT);
  t.is(ports.available(SPACE_UDP), 0);
});

test('a port is given back by its last user, and can be had again', (t) => {
  const ports = new PortMappings(1, 100, 100, numbers());
  t.is(allocate(ports, 1, 5), 100);
  ports.use(SPACE_UDP, 100);
  t.is(allocate(ports, 2, 5), NO_PORT);
  ports.release(SPACE_UDP, 100);
  t.is(ports.find(SPACE_UDP, 1, endpointOf(5)), 100);
  ports.release(SPACE_UDP, 100);
  t.is(ports.find(SPACE_UDP, 1, endpointOf(5)), NO_PORT);
  t.is(allocate(ports, 2, 5), 100);
});

test('a port that is claimed is nobody else’s, inside the range and outside', (t) => {
  const ports = new PortMappings(1, 8080, 8081, numbers());
  t.true(ports.claim(SPACE_TCP, 7, endpointOf(80), 8080));
  t.true(ports.claim(SPACE_TCP, 7, endpointOf(443), 443));
  t.false(ports.claim(SPACE_TCP, 8, endpointOf(80), 8080));
  t.is(ports.find(SPACE_TCP, 7, endpointOf(80)), 8080);
  t.is(ports.find(SPACE_TCP, 7, endpointOf(443)), 443);
  t.is(allocate(ports, 1, 8080, SPACE_TCP), 8081);
  t.is(allocate(ports, 2, 8080, SPACE_TCP), NO_PORT);
  ports.use(SPACE_TCP, 443);
  ports.release(SPACE_TCP, 443);
  t.is(allocate(ports, 3, 443, SPACE_TCP), NO_PORT, 'what was claimed outside the range is not given out');
});

test('some port of the range has the parity that is asked for, where there is one', (t) => {
  const ports = new PortMappings(1, 1001, 1002, numbers());
  for (let i = 0; i < 20; i++) t.deepEqual([ports.anyOf(0), ports.anyOf(1)], [1002, 1001]);
  const one = new PortMappings(1, 1001, 1001, numbers());
  t.deepEqual([one.anyOf(0), one.after(1001)], [1001, 1001]);
  const five = new PortMappings(1, 1001, 1005, numbers());
  t.deepEqual(
    [1001, 1003, 1005, 1002, 1004].map((port) => five.after(port)),
    [1003, 1005, 1001, 1004, 1002],
  );
});

test('property: a map between endpoints and ports, one to one, whatever comes and goes', (t) => {
  const step = fc.record({
    inside: fc.integer({ min: 0, max: 3 }),
    wanted: fc.integer({ min: 1000, max: 1020 }),
    space: fc.integer({ min: 0, max: 2 }),
    end: fc.boolean(),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 120 }), fc.integer(), (steps, seed) => {
      const ports = new PortMappings(seed, 1005, 1030, numbers());
      const model = new Map<string, number>();
      for (const { inside, wanted, space, end } of steps) {
        const name = `${space} ${inside} ${wanted}`;
        const known = model.get(name);
        t.is(ports.find(space, inside, endpointOf(wanted)), known ?? NO_PORT);
        if (end && known !== undefined) {
          ports.release(space, known);
          model.delete(name);
        } else if (!end && known === undefined) {
          const taken = new Set(
            [...model].filter(([key]) => key.startsWith(`${space}`)).map(([, port]) => port),
          );
          const port = allocate(ports, inside, wanted, space);
          t.is(port === NO_PORT, taken.size === 26);
          if (port === NO_PORT) continue;
          t.false(taken.has(port));
          t.true(port >= 1005 && port <= 1030);
          if (wanted >= 1005 && !taken.has(wanted)) t.is(port, wanted);
          model.set(name, port);
        }
        const inSpace = [...model.keys()].filter((key) => key.startsWith(`${space}`)).length;
        t.is(ports.available(space), 26 - inSpace);
      }
    }),
    { numRuns: 150 },
  );
});
