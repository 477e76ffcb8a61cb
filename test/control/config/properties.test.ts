import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import {
  type Algorithm,
  algorithmSizes,
  type Config,
  ConfigError,
  defaultMtu,
  type Encryption,
  parseConfig,
  type Service,
  type StaticAssociation,
} from '../../../control/config.js';
import { Secret } from '../../../control/secret.js';
import { DESIGN, formatConfig, revealed } from './support.js';

const hexDigits = (bytes: number) =>
  fc.uint8Array({ minLength: bytes, maxLength: bytes }).map((value) => Buffer.from(value).toString('hex'));

const algorithm = fc
  .tuple(fc.constantFrom(128, 192, 256), fc.constantFrom(8, 12, 16))
  .map(([bits, icv]) => `aes-${bits}-gcm-${icv}` as Algorithm);

const encryption: fc.Arbitrary<Encryption> = fc.record({
  keys: fc.uniqueArray(
    fc.record({
      id: fc.integer({ min: 1, max: 2 ** 32 - 1 }),
      secret: hexDigits(32).map((s) => new Secret(s)),
    }),
    { minLength: 1, maxLength: 3, selector: ({ id }) => id },
  ),
  encapsulation: fc.constantFrom('esp', 'udp'),
  port: fc.constant(4500),
  exchangePort: fc.constant(7949),
  algorithm,
  replayWindow: fc.integer({ min: 32, max: 4096 }),
  rotate: fc.record({
    after: fc.integer({ min: 10, max: 2_592_000 }),
    packets: fc.integer({ min: 2 ** 16, max: 2 ** 36 }),
    bytes: fc.integer({ min: 2 ** 26, max: 2 ** 44 }),
  }),
});

/** At most one in each direction for the peers 2 to 9. */
const associations = fc.uniqueArray(
  fc
    .record({
      peer: fc.integer({ min: 2, max: 9 }),
      direction: fc.constantFrom('in', 'out'),
      spi: fc.integer({ min: 256, max: 2 ** 32 - 1 }),
      algorithm,
      esn: fc.boolean(),
      replayWindow: fc.integer({ min: 32, max: 4096 }),
    })
    .chain((one) =>
      hexDigits(algorithmSizes(one.algorithm).key + 4).map((key) => ({ ...one, key: new Secret(key) })),
    ),
  {
    maxLength: 6,
    comparator: (a, b) =>
      a.key.equals(b.key) || (a.direction === b.direction && (a.peer === b.peer || a.spi === b.spi)),
  },
);

/** Those with a peer that has both directions. */
function inPairs(
  all: readonly (Omit<StaticAssociation, 'peer'> & { readonly peer: number })[],
  vtep: (n: number) => string,
): StaticAssociation[] {
  const has = (peer: number, direction: string) =>
    all.some((one) => one.peer === peer && one.direction === direction);
  return all
    .filter(({ peer }) => has(peer, 'in') && has(peer, 'out'))
    .map((one) => ({ ...one, peer: vtep(one.peer) }));
}

const port = fc.integer({ min: 1, max: 65535 });
const seconds = fc.integer({ min: 1, max: 3600 });

/** Of the network 10.I.0.0/16; what other services have too is put in by `validFile`. */
const service = fc.record({
  scheduler: fc.constantFrom('rr', 'wrr', 'lc', 'wlc', 'sh', 'maglev'),
  forwarding: fc.constant('masq'),
  marked: fc.boolean(),
  affinity: fc.option(seconds, { nil: 0 }),
  idleTimeout: fc.integer({ min: 1, max: 2_592_000 }),
  ports: fc.uniqueArray(fc.record({ protocol: fc.constantFrom('tcp', 'udp'), port, target: port }), {
    maxLength: 3,
    selector: (one) => `${one.protocol} ${one.port}`,
  }),
  backends: fc.array(
    fc.record({
      weight: fc.integer({ min: 0, max: 65535 }),
      mac: fc.option(fc.constant('02:00:00:00:01:01'), { nil: undefined }),
    }),
    { maxLength: 3 },
  ),
  health: fc.option(
    fc.record({
      path: fc.option(fc.constantFrom('/', '/health?a=b'), { nil: undefined }),
      ...{ port, interval: fc.integer({ min: 100, max: 3600 }), timeout: fc.integer({ min: 1, max: 100 }) },
      ...{ failures: fc.integer({ min: 1, max: 100 }), successes: fc.integer({ min: 1, max: 100 }) },
    }),
    { nil: undefined },
  ),
});

const validFile = fc
  .record({
    six: fc.boolean(),
    port: fc.integer({ min: 1, max: 65535 }).filter((port) => port !== 4500 && port !== 7949),
    encryption: fc.option(encryption, { nil: undefined }),
    associations,
    mtu: fc.option(fc.integer({ min: 1400, max: 65535 }), { nil: undefined }),
    mode: fc.constantFrom('auto', 'socket', 'uplink'),
    ttl: fc.integer({ min: 1, max: 255 }),
    ingress: fc.boolean(),
    networks: fc.array(
      fc.record({
        dual: fc.boolean(),
        encrypted: fc.boolean(),
        ageing: fc.integer({ min: 1, max: 1_000_000 }),
        limit: fc.integer({ min: 0, max: 1048576 }),
        carry: fc.boolean(),
        peers: fc.integer({ min: 0, max: 3 }),
        services: fc.array(service, { maxLength: 3 }),
        endpoints: fc.array(fc.record({ remote: fc.boolean(), mac: fc.boolean() }), { maxLength: 4 }),
      }),
      { maxLength: 4 },
    ),
  })
  .map(({ six, port, encryption, associations, mtu, mode, ttl, ingress, networks }): Config => {
    const seals = (network: { encrypted: boolean }) => encryption !== undefined && network.encrypted;
    const vtep = (n: number) => (six ? `2001:db8::${n}` : `192.0.2.${n}`);
    const services = networks.flatMap((network, i) =>
      network.services.map(({ marked, backends, health, ...one }, s) => ({
        ...one,
        ...{ name: `s${i}.${s}`, network: `net${i}`, vip: `10.${i}.200.${s}`, publish: [] },
        vip6: network.dual ? `fd00:${i + 1}::200:${s}` : undefined,
        fwmark: marked ? 10 * i + s + 1 : undefined,
        backends: backends.map((backend, b) => ({
          address: `10.${i}.100.${b}`,
          address6: network.dual && b > 0 ? `fd00:${i + 1}::100:${b}` : undefined,
          ...backend,
        })),
        health: health && {
          kind: health.path === undefined ? ('tcp' as const) : ('http' as const),
          ...health,
        },
      })),
    ) as Service[];
    return {
      node: 'n',
      workers: 1,
      underlay: {
        address: vtep(1),
        port,
        mtu,
        mode: mode as 'auto',
        reservedBits: 'ignore',
        accept: 'any',
        ttl,
        tos: 'inherit-ecn',
      },
      networks: networks.map((network, i) => ({
        name: `net${i}`,
        vni: i + 1,
        subnet: `10.${i}.0.0/16`,
        subnet6: network.dual ? `fd00:${i + 1}::/64` : undefined,
        gateway: `10.${i}.255.254`,
        gateway6: undefined,
        uplink: undefined,
        masquerade: true,
        mtu:
          mtu === undefined
            ? undefined
            : defaultMtu(mtu, six ? 6 : 4, seals(network) ? encryption!.encapsulation : undefined),
        encrypted: seals(network),
        internal: network.dual,
        peers: Array.from({ length: network.peers }, (_, p) => vtep(p + 2)),
        innerVlan: network.carry ? 'carry' : 'discard',
        ageing: network.ageing,
        learningLimit: network.limit,
        learning: !network.carry,
      })),
      endpoints: networks.flatMap((network, i) =>
        network.endpoints.map(({ remote, mac }, e) => {
          const common = {
            name: `e${i}.${e}`,
            network: `net${i}`,
            address: `10.${i}.0.${e + 1}/16`,
            address6: network.dual ? `fd00:${i + 1}::${e + 1}/64` : undefined,
            mac: mac ? `02:00:00:00:00:0${e}` : `02:42:0a:0${i}:00:0${e + 1}`,
          };
          return remote
            ? ({ kind: 'remote', ...common, vtep: vtep(9) } as const)
            : ({ kind: 'local', ...common, netns: 'n', interface: `i${i}-${e}` } as const);
        }),
      ),
      uplinks: [],
      publish: [],
      nat: {
        ...{ mapping: 'endpoint-independent', ports: { first: 32768, last: 60999 }, maxFlows: 262144 },
        timeouts: { established: 7440, opening: 240, closing: 240, udp: 300, icmp: 60, other: 300 },
      },
      ingress: ingress
        ? {
            ...{
              name: 'ingress',
              vni: 4096,
              subnet: '10.255.0.0/16',
              subnet6: undefined,
              gateway: undefined,
            },
            ...{ gateway6: undefined, uplink: undefined, masquerade: true, encrypted: false, internal: true },
            ...{ innerVlan: 'discard', ageing: 300, learningLimit: 65536, learning: true, peers: [vtep(2)] },
            mtu: mtu === undefined ? undefined : defaultMtu(mtu, six ? 6 : 4),
          }
        : undefined,
      services,
      marks: services.flatMap(({ fwmark: mark, network, vip6 }) =>
        mark === undefined
          ? []
          : {
              ...{ mark, network, protocol: 'udp' as const, endpoint: undefined },
              ...(vip6 === undefined
                ? { address: '10.9.9.9', source: '10.8.0.0/13', ports: { first: mark, last: 65535 } }
                : { address: '2001:db8::/48', source: undefined, ports: undefined }),
            },
      ),
      encryption,
      associations: encryption === undefined ? [] : inPairs(associations, vtep),
    };
  });

test('property: a valid config survives its text', (t) => {
  fc.assert(
    fc.property(validFile, (config) => {
      t.deepEqual(revealed(parseConfig(formatConfig(config), 'f')), revealed(config));
    }),
    { numRuns: 100 },
  );
});

/** Parses, and holds every refusal to its promises. */
function onlyConfigError(t: ExecutionContext, text: string): void {
  try {
    parseConfig(text, 'f');
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    const lines = text.split('\n');
    if (error.problems.length === 0) t.fail(`no problem named for ${JSON.stringify(text)}`);
    for (const { line, column, message, remedy } of error.problems) {
      const inside = line >= 1 && line <= lines.length && column >= 1 && column <= lines[line - 1].length + 1;
      if (!inside) t.fail(`${line}:${column} is outside ${JSON.stringify(text)}: ${message}`);
      if (message === '' || remedy === '' || /[\r\n]/.test(message + remedy)) t.fail(`${message}; ${remedy}`);
    }
  }
  t.pass();
}

const WORDS = [
  ...'{}[]:,-?!&*#|>%@"\'\n \t~',
  ...[
    '\n  ',
    '\n- ',
    ': ',
    '---\n',
    '&a',
    '*a',
    '!!str ',
    '<<',
    'null',
    'true',
    '1',
    '0x10',
    '.nan',
    '1e999',
  ],
  ...['encryption', 'keys', 'secret', 'key', 'security_associations', 'rotate'],
  ...['node', 'underlay', 'networks', 'endpoints', 'name', 'vni', 'peers', 'address', 'mac', '__proto__'],
  ...['10.0.0.1', '10.0.0.0/8', 'fd00::', '\u0000', '\u2028', '\ufeff', '\r', 'é', '\ud800'],
];

test('property: any text is a config or a ConfigError with places inside it', (t) => {
  const text = fc.oneof(
    fc.string({ unit: 'binary' }),
    fc.array(fc.constantFrom(...WORDS), { maxLength: 40 }).map((words) => words.join('')),
    fc.json(),
  );
  fc.assert(
    fc.property(text, (value) => onlyConfigError(t, value)),
    { numRuns: 1500 },
  );
});

test('property: a valid file with pieces cut, doubled or replaced is a config or a ConfigError', (t) => {
  const cut = fc.record({
    at: fc.nat(DESIGN.length),
    length: fc.nat(12),
    put: fc.oneof(fc.constantFrom(...WORDS, ''), fc.nat(DESIGN.length - 20)),
  });
  fc.assert(
    fc.property(fc.array(cut, { minLength: 1, maxLength: 4 }), (cuts) => {
      let text = DESIGN;
      for (const { at, length, put } of cuts) {
        const piece = typeof put === 'number' ? DESIGN.slice(put, put + 20) : put;
        text = text.slice(0, at) + piece + text.slice(at + length);
      }
      onlyConfigError(t, text);
    }),
    { numRuns: 1500 },
  );
});
