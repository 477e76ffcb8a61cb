import test from 'ava';
import { ARP_CONFIRMED, ARP_USED, ArpCache, NdCache, NO_ENTRY } from '../../../engine/tables/arp-cache.js';
import { addressWord } from '../../../engine/tables/gateways.js';
import { words16 } from '../../../engine/wire/ipv6.js';
import { ip } from '../../support/frames.js';

const SEEDS = [1, 0x7fffffff, -5, 0x12345678];

test('a link of 24 bits has room for all its stations, which differ in their last byte alone', (t) => {
  for (const seed of SEEDS) {
    const cache = new ArpCache(seed);
    const all = Array.from({ length: 256 }, (_, host) => addressWord(ip(`192.168.60.${host}`)));
    for (const address of all) cache.add(address);
    t.is(all.filter((address) => cache.find(address) === NO_ENTRY).length, 0);
  }
});

test('so has one of IPv6', (t) => {
  for (const seed of SEEDS) {
    const cache = new NdCache(seed);
    const all = Array.from({ length: 256 }, (_, host) => words16(ip(`fd00:60::${host.toString(16)}`)));
    for (const address of all) cache.add(address, 0);
    t.is(all.filter((address) => cache.find(address, 0) === NO_ENTRY).length, 0);
  }
});

test('of many others few are displaced by each other', (t) => {
  for (const seed of SEEDS) {
    const cache = new ArpCache(seed);
    const all = Array.from({ length: 512 }, (_, n) => addressWord(ip(`10.${n & 3}.${n >>> 2}.7`)));
    for (const address of all) cache.add(address);
    t.true(all.filter((address) => cache.find(address) !== NO_ENTRY).length > 400);
  }
});

test('a neighbour that is used makes no room for those that only are asked for, or have asked', (t) => {
  for (const used of [0, 50]) {
    const cache = new ArpCache(1);
    const router = addressWord(ip('10.0.0.1'));
    const at = cache.add(router);
    cache.words[at + ARP_CONFIRMED] = 80;
    cache.words[at + ARP_USED] = 100;
    for (let n = 2; n < 10_000; n++) {
      const other = cache.add(addressWord(ip(`10.0.${n >>> 8}.${n & 0xff}`)));
      cache.words[other + ARP_CONFIRMED] = 100;
      cache.words[other + ARP_USED] = used;
    }
    t.is(cache.find(router), at);
  }
});
