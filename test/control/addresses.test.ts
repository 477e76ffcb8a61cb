import { isIP } from 'node:net';
import test from 'ava';
import fc from 'fast-check';
import {
  contains,
  deriveMac,
  isBroadcastAddress,
  isNetworkAddress,
  macBytes,
  parseIp,
  parseMac,
  parsePrefix,
  parseRange,
  parseSubnet,
  parseVtep,
  quote,
  ValueError,
} from '../../control/addresses.js';

function refusal(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (error instanceof ValueError) return `${error.message}; ${error.remedy}`;
    throw error;
  }
  return 'accepted';
}

test('IPv4 is four decimal parts', (t) => {
  const ip = parseIp('192.168.50.1');
  t.is(ip.family, 4);
  t.is(ip.text, '192.168.50.1');
  t.deepEqual([...ip.bytes], [192, 168, 50, 1]);
});

test('IPv6 is written as RFC 5952 says', (t) => {
  const cases = {
    'FD00:0:0:0:1::': 'fd00::1:0:0:0',
    '2001:DB8:0:0:0:0:2:1': '2001:db8::2:1',
    '2001:db8:0:1:1:1:1:1': '2001:db8:0:1:1:1:1:1',
    '2001:db8:0:0:1:0:0:1': '2001:db8::1:0:0:1',
    '64:ff9b::192.0.2.1': '64:ff9b::c000:201',
    '::1': '::1',
  };
  for (const [written, canonical] of Object.entries(cases)) {
    const ip = parseIp(written);
    t.is(ip.text, canonical);
    t.is(ip.family, 6);
    t.is(ip.bytes.length, 16);
  }
});

for (const bad of [
  '010.0.0.1',
  '1.2',
  '1.2.3.256',
  '0x7f.0.0.1',
  '1.2.3.4 ',
  '',
  'hostA',
  '1::2::3',
  ':'.repeat(70),
]) {
  test(`not an IP address: ${JSON.stringify(bad.slice(0, 20))}`, (t) => {
    t.regex(
      refusal(() => parseIp(bad)),
      /is not an IP address; write an IPv4 address such as/,
    );
  });
}

test('addresses with a zone, a prefix length or IPv4 inside are named as such', (t) => {
  t.regex(
    refusal(() => parseIp('fe80::1%eth0')),
    /"fe80::1%eth0" has a zone index; use a global/,
  );
  t.regex(
    refusal(() => parseIp('10.0.0.1/24')),
    /has a prefix length; write the address alone/,
  );
  t.is(
    refusal(() => parseIp('::ffff:10.0.0.1')),
    '"::ffff:10.0.0.1" is an IPv4-mapped IPv6 address; write it as IPv4: 10.0.0.1',
  );
});

test('a VTEP is a unicast host', (t) => {
  t.regex(
    refusal(() => parseVtep('224.0.0.1')),
    /224.0.0.1 is a multicast address/,
  );
  t.regex(
    refusal(() => parseVtep('ff02::1')),
    /ff02::1 is a multicast address/,
  );
  t.regex(
    refusal(() => parseVtep('0.0.0.0')),
    /0.0.0.0 is the unspecified address/,
  );
  t.regex(
    refusal(() => parseVtep('::')),
    /:: is the unspecified address/,
  );
  t.regex(
    refusal(() => parseVtep('255.255.255.255')),
    /is a broadcast address/,
  );
  t.regex(
    refusal(() => parseVtep('fe80::1')),
    /fe80::1 is link-local .*; use a global/,
  );
  t.is(parseVtep('127.0.0.1').text, '127.0.0.1');
  t.is(parseVtep('169.254.1.1').text, '169.254.1.1');
});

test('prefixes: length in range, network computed at every bit', (t) => {
  t.is(parsePrefix('10.255.255.255/9').network.text, '10.128.0.0');
  t.is(parsePrefix('10.255.255.255/0').network.text, '0.0.0.0');
  t.is(parsePrefix('10.0.9.1/32').network.text, '10.0.9.1');
  t.is(parsePrefix('FD00:9::1/64').text, 'fd00:9::1/64');
  t.is(parsePrefix('fd00:9:ffff::1/33').network.text, 'fd00:9:8000::');
  for (const bad of ['10.0.0.1/33', '10.0.0.1/', '10.0.0.1/-1', '10.0.0.1/08', '10.0.0.1/8/8', '::1/129']) {
    t.regex(
      refusal(() => parsePrefix(bad)),
      /is not a prefix length of IPv[46]; write a number of bits from 0 to/,
      bad,
    );
  }
  t.regex(
    refusal(() => parsePrefix('10.0.9.1')),
    /has no prefix length; write address\/length/,
  );
});

test('what a rule matches is an address or a prefix without host bits', (t) => {
  const told = ['10.0.9.7', '10.0.8.0/23', '0.0.0.0/0', 'FD00:9::7', 'fd00:9::/64'].map((text) => {
    const { network, length, text: own } = parseRange(text);
    return [own, network.text, length];
  });
  t.deepEqual(told, [
    ['10.0.9.7', '10.0.9.7', 32],
    ['10.0.8.0/23', '10.0.8.0', 23],
    ['0.0.0.0/0', '0.0.0.0', 0],
    ['fd00:9::7', 'fd00:9::7', 128],
    ['fd00:9::/64', 'fd00:9::', 64],
  ]);
  t.is(
    refusal(() => parseRange('fd00:9::1/64')),
    'fd00:9::1/64 has bits set after its prefix; write fd00:9::/64',
  );
});

test('a subnet has no host bits and holds unicast hosts', (t) => {
  t.is(
    refusal(() => parseSubnet('10.0.9.1/24')),
    '10.0.9.1/24 has bits set after its prefix; write 10.0.9.0/24',
  );
  t.is(
    refusal(() => parseSubnet('fd00:9::1/64')),
    'fd00:9::1/64 has bits set after its prefix; write fd00:9::/64',
  );
  t.regex(
    refusal(() => parseSubnet('0.0.0.0/0')),
    /covers every address/,
  );
  t.regex(
    refusal(() => parseSubnet('239.1.0.0/16')),
    /is in the multicast range/,
  );
  t.regex(
    refusal(() => parseSubnet('127.0.0.0/8')),
    /is in the loopback range/,
  );
  t.is(parseSubnet('10.0.9.0/24').text, '10.0.9.0/24');
});

test('which addresses of a prefix are reserved', (t) => {
  const v4 = parsePrefix('10.0.8.0/23');
  t.true(contains(v4, parseIp('10.0.9.255')));
  t.false(contains(v4, parseIp('10.0.10.0')));
  t.false(contains(v4, parseIp('fd00::1')));
  t.true(isNetworkAddress(v4, parseIp('10.0.8.0')));
  t.false(isNetworkAddress(v4, parseIp('10.0.9.0')));
  t.true(isBroadcastAddress(v4, parseIp('10.0.9.255')));
  t.false(isBroadcastAddress(v4, parseIp('10.0.8.255')));
  const link = parsePrefix('10.0.8.0/31'); // RFC 3021: both are hosts.
  t.false(isNetworkAddress(link, parseIp('10.0.8.0')));
  t.false(isBroadcastAddress(link, parseIp('10.0.8.1')));
  const v6 = parsePrefix('fd00::/64');
  t.true(isNetworkAddress(v6, parseIp('fd00::'))); // RFC 4291 section 2.6.1.
  t.false(isBroadcastAddress(v6, parseIp('fd00::ffff:ffff:ffff:ffff')));
  t.false(isNetworkAddress(parsePrefix('fd00::/127'), parseIp('fd00::'))); // RFC 6164.
});

test('a MAC is one station, in lower case', (t) => {
  t.is(parseMac('02:42:0A:00:09:01'), '02:42:0a:00:09:01');
  t.deepEqual([...macBytes('02:42:0a:00:09:01')], [0x02, 0x42, 0x0a, 0x00, 0x09, 0x01]);
  t.regex(
    refusal(() => parseMac('00:00:00:00:00:00')),
    /zero MAC/,
  );
  t.regex(
    refusal(() => parseMac('01:00:5e:00:00:01')),
    /group MAC .*; clear that bit, as in "00:00:5e/,
  );
  t.regex(
    refusal(() => parseMac('ff:ff:ff:ff:ff:ff')),
    /group MAC .*; clear that bit, as in "fe:ff/,
  );
  for (const bad of ['02-42-0a-00-09-01', '0242.0a00.0901', '2:42:a:0:9:1', '02:42:0a:00:09', '']) {
    t.regex(
      refusal(() => parseMac(bad)),
      /is not a MAC address; write six octets in hexadecimal/,
      bad,
    );
  }
});

test('the MAC of an address is 02:42 and its last four bytes', (t) => {
  t.is(deriveMac(parseIp('10.0.9.1')), '02:42:0a:00:09:01');
  t.is(deriveMac(parseIp('fd00::12:3456:789a')), '02:42:34:56:78:9a');
});

test('quoted text is short and cannot drive a terminal', (t) => {
  t.is(quote('a\n\u001b[2J\u009b1\u202e'), '"a\\n\\u001b[2J\\u009b1\\u202e"');
  t.is(quote('x'.repeat(1000)).length, 62);
});

test('property: IPv4 and IPv6 text is stable, agrees with Node, and survives its bytes', (t) => {
  fc.assert(
    fc.property(fc.oneof(fc.ipV4(), fc.ipV6()), (text) => {
      // Refused: IPv4-mapped, and the deprecated ::a.b.c.d (RFC 4291, 2.5.5.1), which ipaddr.js takes for it.
      if (/^[0:]*:(ffff:)?\d+\.|^[0:]*:ffff:[\da-f]+:[\da-f]+$/i.test(text)) return;
      const ip = parseIp(text);
      t.is(isIP(text), ip.family);
      t.is(parseIp(ip.text).text, ip.text);
      const { bytes } = ip;
      const plain =
        ip.family === 4
          ? bytes.join('.')
          : Array.from({ length: 8 }, (_, i) => ((bytes[2 * i] << 8) | bytes[2 * i + 1]).toString(16)).join(
              ':',
            );
      t.is(parseIp(plain).text, ip.text);
    }),
  );
});

test('property: an address lies in its own prefix, and out of it once a kept bit flips', (t) => {
  fc.assert(
    fc.property(fc.ipV4(), fc.integer({ min: 1, max: 32 }), fc.nat(), (text, length, seed) => {
      const prefix = parsePrefix(`${text}/${length}`);
      t.true(contains(prefix, prefix.address));
      const bit = seed % 32;
      const flipped = [...prefix.address.bytes];
      flipped[bit >> 3] ^= 0x80 >> (bit & 7);
      t.is(contains(prefix, parseIp(flipped.join('.'))), bit >= length);
    }),
  );
});

test('property: any text is an address or a ValueError', (t) => {
  const readers = [parseIp, parseVtep, parsePrefix, parseSubnet, parseMac];
  fc.assert(
    fc.property(
      fc.oneof(fc.string(), fc.string({ unit: fc.constantFrom(...'0123456789abcdef:./%') })),
      (s) => {
        for (const read of readers) t.is(typeof refusal(() => read(s)), 'string');
      },
    ),
  );
});
