import test from 'ava';
import fc from 'fast-check';
import { Addresses6, addressBytes, NO_ADDRESS } from '../../../engine/tables/addresses6.js';
import { words16 } from '../../../engine/wire/ipv6.js';
import { ip } from '../../support/frames.js';

const address = (n: number): Uint16Array => words16(ip(`2001:db8::${n.toString(16)}`));

test('an address has its number while somebody holds it', (t) => {
  const table = new Addresses6(4, 1);
  const one = table.hold(address(1), 0);
  t.is(table.hold(address(1), 0), one);
  t.is(table.find(address(1), 0), one);
  t.is(table.find(address(2), 0), NO_ADDRESS);
  table.release(one);
  t.is(table.find(address(1), 0), one);
  table.release(one);
  t.is(table.find(address(1), 0), NO_ADDRESS);
  t.is(table.size, 0);
});

test('when all numbers are taken there is none', (t) => {
  const table = new Addresses6(3, 1);
  const numbers = [1, 2, 3].map((n) => table.hold(address(n), 0));
  t.is(new Set(numbers).size, 3);
  t.is(table.hold(address(4), 0), NO_ADDRESS);
  t.is(table.hold(address(3), 0), numbers[2]);
  table.release(numbers[0]);
  t.not(table.hold(address(4), 0), NO_ADDRESS);
});

test('others read addresses by number, behind what else is in the memory', (t) => {
  const memory = new SharedArrayBuffer(64 + addressBytes(8));
  const table = new Addresses6(8, 1, memory, 64);
  const number = table.hold(address(7), 0);
  t.deepEqual(new Uint8Array(memory, 64 + number * 16, 16), ip('2001:db8::7'));
  t.true(new Uint8Array(memory, 0, 64).every((byte) => byte === 0));
});

test('property: a map from addresses to numbers, whatever comes and goes', (t) => {
  const steps = fc.array(fc.tuple(fc.boolean(), fc.nat(40)), { maxLength: 200 });
  fc.assert(
    fc.property(steps, (list) => {
      const table = new Addresses6(24, 7);
      const holds = new Map<number, number>();
      for (const [hold, n] of list) {
        const count = holds.get(n) ?? 0;
        if (hold) {
          if (table.hold(address(n), 0) !== NO_ADDRESS) holds.set(n, count + 1);
          else t.is(holds.size, 24);
        } else if (count > 0) {
          table.release(table.find(address(n), 0));
          if (count === 1) holds.delete(n);
          else holds.set(n, count - 1);
        }
        t.is(table.size, holds.size);
      }
      for (let n = 0; n <= 40; n++) t.is(table.find(address(n), 0) !== NO_ADDRESS, holds.has(n));
    }),
  );
});
