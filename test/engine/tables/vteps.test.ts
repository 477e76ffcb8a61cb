import test from 'ava';
import fc from 'fast-check';
import {
  addressBytes,
  addressWords,
  MAPPED,
  SAW_ESP_FOR_PLAIN,
  SAW_NO_ASSOCIATION,
  SAW_PLAIN_FOR_ENCRYPTED,
  TEMPLATE_WORDS,
  Vteps,
} from '../../../engine/tables/vteps.js';
import { ip, LOCAL_V4, LOCAL_V6, slowSum, station } from '../../support/frames.js';

const local = (v6 = false) => ({ address: ip(v6 ? LOCAL_V6 : LOCAL_V4), port: 4789, ttl: 64 });
const find = (vteps: Vteps, address: Uint8Array): number => vteps.find(...addressWords(address));

test('addresses become four words and bytes again', (t) => {
  t.deepEqual(addressWords(ip('192.0.2.1')), [0, 0, MAPPED, 0x010200c0]);
  for (const text of ['192.0.2.1', '255.255.255.255', '2001:db8::1', 'fe80::ffff:ffff:ffff:fffe'])
    t.deepEqual(addressBytes(Uint32Array.from(addressWords(ip(text)))), ip(text));
});

test('capacity must leave room beside REMOTE', (t) => {
  for (const capacity of [0, -1, 65536]) t.throws(() => new Vteps(capacity), { instanceOf: RangeError });
});

test('what is seen of a VTEP is told once, each kind by itself, and again when it was forgotten', (t) => {
  const vteps = new Vteps(3);
  const told = (): [number, number][] => {
    const all: [number, number][] = [];
    vteps.tell((vtep, saw) => all.push([vtep, saw]));
    return all;
  };
  for (const saw of [SAW_PLAIN_FOR_ENCRYPTED, SAW_NO_ASSOCIATION, SAW_NO_ASSOCIATION]) vteps.note(2, saw);
  vteps.note(0, SAW_ESP_FOR_PLAIN);
  const first = [
    [0, SAW_ESP_FOR_PLAIN],
    [2, SAW_NO_ASSOCIATION],
    [2, SAW_PLAIN_FOR_ENCRYPTED],
  ];
  t.deepEqual(told(), first as [number, number][]);
  vteps.note(2, SAW_PLAIN_FOR_ENCRYPTED);
  t.deepEqual(told(), []);
  vteps.forget(2, SAW_NO_ASSOCIATION);
  vteps.note(2, SAW_NO_ASSOCIATION);
  vteps.note(2, SAW_PLAIN_FOR_ENCRYPTED);
  t.deepEqual(told(), [[2, SAW_NO_ASSOCIATION]]);
});

test('a full table refuses the next one, and takes it when one goes', (t) => {
  const vteps = new Vteps(3);
  const at = (n: number) => ip(`198.51.100.${n}`);
  t.deepEqual(
    [0, 1, 2, 3, 1].map((n) => vteps.add(at(n), false, local(), 0)),
    [0, 1, 2, -1, 1],
  );
  t.is(vteps.learned, 3);
  vteps.remove(1);
  t.is(find(vteps, at(1)), -1);
  t.deepEqual([find(vteps, at(0)), find(vteps, at(2))], [0, 2]);
  t.is(vteps.add(at(3), false, local(), 0), 1);
  t.deepEqual(vteps.address(1), at(3));
});

test('a configured VTEP stays configured when it is heard of, a learned one is promoted', (t) => {
  const vteps = new Vteps(4);
  const [a, b] = [ip('192.0.2.7'), ip('192.0.2.8')];
  t.is(vteps.add(a, true, local(), 0), 0);
  t.is(vteps.add(a, false, local(), 5), 0);
  t.is(vteps.state[0], 1);
  t.is(vteps.add(b, false, local(), 5), 1);
  t.is(vteps.learned, 1);
  t.is(vteps.add(b, true, local(), 6), 1);
  t.deepEqual([vteps.state[1], vteps.learned], [1, 0]);
  vteps.unconfigure(1, 9);
  vteps.unconfigure(1, 10);
  t.deepEqual([vteps.state[1], vteps.learned, vteps.seen[1]], [2, 1, 9]);
});

test('a slot used anew holds nothing of the VTEP before', (t) => {
  const vteps = new Vteps(1);
  vteps.add(ip('192.0.2.7'), true, local(), 0);
  vteps.setLink(0, station(1), station(2));
  vteps.remove(0);
  vteps.add(ip('192.0.2.8'), true, local(), 0);
  const fresh = new Vteps(1);
  fresh.add(ip('192.0.2.8'), true, local(), 0);
  t.deepEqual(vteps.templates, fresh.templates);
  t.deepEqual(vteps.headerSum, fresh.headerSum);
});

test('the stored sum is the one of the stored header', (t) => {
  const vteps = new Vteps(2);
  vteps.add(ip('198.51.100.200'), true, local(), 0);
  const bytes = new Uint8Array(vteps.templates.buffer);
  const sum = slowSum(bytes.slice(6 + 14, 6 + 34));
  t.is(((vteps.headerSum[0] & 0xff) << 8) | (vteps.headerSum[0] >>> 8), sum);
  t.is(vteps.templates.length, 2 * TEMPLATE_WORDS);
  const six = new Vteps(1);
  six.add(ip('2001:db8::2'), true, local(true), 0);
  const header = new Uint8Array(six.templates.buffer).slice(2);
  const pseudo = slowSum(Uint8Array.from([...header.slice(22, 54), 0, 17, ...header.slice(56, 58)]));
  t.is(((six.headerSum[0] & 0xff) << 8) | (six.headerSum[0] >>> 8), pseudo);
});

test('property: the table is a map from addresses to small numbers', (t) => {
  const addresses = [
    ...Array.from({ length: 12 }, (_, n) => ip(`198.51.100.${n}`)),
    ...Array.from({ length: 12 }, (_, n) => ip(`2001:db8::${n}`)),
  ];
  const operation = fc.record({
    what: fc.constantFrom('add', 'add', 'configure', 'unconfigure', 'remove'),
    n: fc.nat(23),
  });
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 120 }), (operations) => {
      const vteps = new Vteps(10);
      const model = new Map<number, { vtep: number; configured: boolean }>();
      for (const { what, n } of operations) {
        const known = model.get(n);
        if (what === 'add' || what === 'configure') {
          const configured = what === 'configure';
          const vtep = vteps.add(addresses[n], configured, local(n >= 12), 0);
          if (known) {
            t.is(vtep, known.vtep);
            known.configured ||= configured;
          } else if (model.size === 10) t.is(vtep, -1);
          else {
            t.false([...model.values()].some((other) => other.vtep === vtep));
            model.set(n, { vtep, configured });
          }
        } else if (known && what === 'remove') {
          vteps.remove(known.vtep);
          model.delete(n);
        } else if (known) {
          vteps.unconfigure(known.vtep, 1);
          known.configured = false;
        }
      }
      for (const [n, address] of addresses.entries()) t.is(find(vteps, address), model.get(n)?.vtep ?? -1);
      t.is(vteps.learned, [...model.values()].filter(({ configured }) => !configured).length);
      for (const [n, { vtep, configured }] of model) {
        t.deepEqual(vteps.address(vtep), addresses[n]);
        t.is(vteps.state[vtep], configured ? 1 : 2);
      }
    }),
    { numRuns: 200 },
  );
});

test('VTEPs of one network, whose addresses differ in the last byte alone, have slots of their own', (t) => {
  const vteps = new Vteps(4096);
  for (const prefix of ['192.168.50.', '2001:db8::']) {
    const homes = Array.from({ length: 256 }, (_, host) => {
      const address = ip(`${prefix}${prefix.includes(':') ? host.toString(16) : host}`);
      return vteps['slot'](...addressWords(address));
    });
    t.is(new Set(homes).size, 256);
  }
});
