import test from 'ava';
import { Domains, LEARN, PEERS_ONLY } from '../../../engine/tables/domains.js';
import { MAX_DOMAINS } from '../../../engine/tables/mac-table.js';

const options = (vni: number) => ({ vni, flags: LEARN, ageing: 300 });

test('VNIs are found, 0 and 0xffffff too', (t) => {
  const domains = new Domains();
  domains.set(0, options(0));
  domains.set(MAX_DOMAINS - 1, options(0xffffff));
  t.is(domains.find(0), 0);
  t.is(domains.find(0xffffff), MAX_DOMAINS - 1);
  t.is(domains.find(1), -1);
});

test('a VNI belongs to one domain, a domain changes its VNI', (t) => {
  const domains = new Domains();
  domains.set(1, options(42));
  t.throws(() => domains.set(2, options(42)), { instanceOf: RangeError, message: /42 belongs to domain 1/ });
  t.is(domains.used[2], 0);
  domains.set(1, { vni: 43, flags: PEERS_ONLY, ageing: 7 });
  t.is(domains.find(42), -1);
  t.is(domains.find(43), 1);
  t.deepEqual([domains.flags[1], domains.ageing[1]], [PEERS_ONLY, 7]);
  domains.set(2, options(42));
  domains.set(2, options(42));
  t.is(domains.find(42), 2);
});

test('two domains change their VNIs with each other', (t) => {
  const domains = new Domains();
  domains.set(1, options(42));
  domains.set(2, options(43));
  for (const domain of [1, 2]) domains.freeVni(domain);
  t.deepEqual([domains.find(42), domains.find(43)], [-1, -1]);
  domains.set(1, options(43));
  domains.set(2, options(42));
  t.deepEqual([domains.find(42), domains.find(43)], [2, 1]);
  domains.freeVni(7);
  domains.remove(1);
  t.deepEqual([domains.find(42), domains.find(43)], [2, -1]);
});

test('a domain or VNI out of range is refused', (t) => {
  const domains = new Domains();
  for (const domain of [-1, MAX_DOMAINS])
    t.throws(() => domains.set(domain, options(1)), { instanceOf: RangeError });
  for (const vni of [-1, 0x1000000, 1.5])
    t.throws(() => domains.set(0, options(vni)), { instanceOf: RangeError });
  t.is(domains.used[0], 0);
});

test('a removed domain leaves nothing behind', (t) => {
  const domains = new Domains();
  domains.set(3, options(42));
  domains.addPort(3, 7);
  domains.setVteps(3, [1, 2]);
  domains.remove(3);
  domains.remove(3);
  t.is(domains.find(42), -1);
  t.is(domains.used[3], 0);
  domains.set(3, options(44));
  t.deepEqual([...domains.ports[3]], []);
  t.deepEqual([...domains.vteps[3]], []);
});

test('a port is a member once', (t) => {
  const domains = new Domains();
  for (const port of [5, 6, 5, 7]) domains.addPort(0, port);
  t.deepEqual([...domains.ports[0]], [5, 6, 7]);
  domains.removePort(0, 6);
  domains.removePort(0, 9);
  t.deepEqual([...domains.ports[0]], [5, 7]);
  t.deepEqual([...domains.ports[1]], []);
});
