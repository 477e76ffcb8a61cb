/** What the tests of the configuration share: files that lack one thing, and the check of a refusal's places. */
import type { ExecutionContext } from 'ava';
import { stringify } from 'yaml';
import {
  type Config,
  ConfigError,
  type Network,
  type Problem,
  parseConfig,
  type Service,
} from '../../../control/config.js';
import { Secret } from '../../../control/secret.js';

// The fixed part of the format, word for word from the design.
export const DESIGN = `node: hostA
underlay: { address: 192.168.50.1, port: 4789 }
networks:
  - name: blue
    vni: 42
    subnet: 10.0.9.0/24
    gateway: 10.0.9.254        # optional
    mtu: 1450                  # optional; default underlay MTU less the overhead
    encrypted: false
    internal: false
    peers: [192.168.50.2]      # remote VTEPs when no store fills them in
endpoints:
  - { name: c1, network: blue, netns: cA, interface: eth0, address: 10.0.9.1/24, mac: "02:42:0a:00:09:01" }
`;

export function refusal(text: string): ConfigError {
  try {
    parseConfig(text, 'weft.yaml');
  } catch (error) {
    if (error instanceof ConfigError) return error;
    throw error;
  }
  throw new Error(`accepted:\n${text}`);
}

/**
 * Expects exactly the problems marked: each "▸" in the text stands where one is to be reported, in order; each
 * expectation is `path | message | remedy`, and message and remedy are to be contained.
 */
export function refuses(t: ExecutionContext, marked: string, ...expected: string[]): void {
  const places: { line: number; column: number }[] = [];
  const lines = marked.split('\n').map((line, index) => {
    const parts = line.split('▸');
    let column = 1;
    for (const part of parts.slice(0, -1)) places.push({ line: index + 1, column: (column += part.length) });
    return parts.join('');
  });
  const { problems, message } = refusal(lines.join('\n'));
  t.deepEqual(
    problems.map(({ line, column }) => ({ line, column })),
    places,
    message,
  );
  t.is(problems.length, expected.length, message);
  for (const [index, expectation] of expected.entries()) {
    const [path, what, remedy] = expectation.split(' | ');
    const problem: Problem = problems[index];
    t.is(problem.path, path, message);
    t.true(problem.message.includes(what), `${problem.message} has no ${what}`);
    t.true(problem.remedy.includes(remedy), `${problem.remedy} has no ${remedy}`);
    t.is(
      message.split('\n')[index],
      `weft.yaml:${problem.line}:${problem.column}: ${problem.message}; ${problem.remedy}`,
    );
  }
}

export const HEAD = 'node: hostA\nunderlay: { address: 192.168.50.1 }\n';
export const BLUE = 'name: blue, vni: 42, subnet: 10.0.9.0/24';
export const network = (keys: string) => `${HEAD}networks:\n  - { ${BLUE}, ${keys} }\n`;
export const underlay = (keys: string) => `node: hostA\nunderlay: { address: 192.168.50.1, ${keys} }\n`;
export const endpoint = (keys: string, net = '') =>
  `${HEAD}networks: [{ ${BLUE}${net} }]\nendpoints:\n  - { name: c1, network: blue, ${keys} }\n`;
export const LOCAL = 'netns: cA, interface: eth0';

/** One row a refusal: title, text with a "▸" at each place, then `path | message | remedy` for each. */
export type Row = readonly [title: string, text: string, ...expected: string[]];

/** A config with its secrets as hex: a Secret shows no difference to another. */
export function revealed(value: unknown): unknown {
  if (value instanceof Secret) return Buffer.from(value.bytes()).toString('hex');
  if (Array.isArray(value)) return value.map(revealed);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, revealed(part)]));
}

/** A config as the text of a node's file, secrets included, every default written out. */
export function formatConfig(config: Config): string {
  const { underlay, encryption } = config;
  const text = {
    node: config.node,
    workers: config.workers,
    underlay: {
      address: underlay.address,
      port: underlay.port,
      mtu: underlay.mtu,
      mode: underlay.mode,
      reserved_bits: underlay.reservedBits,
      accept: underlay.accept,
      ttl: underlay.ttl,
      tos: underlay.tos,
    },
    networks: config.networks.map(({ innerVlan, learningLimit, ...same }) => ({
      ...same,
      inner_vlan: innerVlan,
      learning_limit: learningLimit,
    })),
    endpoints: config.endpoints.map(({ kind: _, ...same }) => same),
    uplinks: config.uplinks.map(({ clampMss, ...same }) => ({ ...same, clamp_mss: clampMss })),
    publish: config.publish.map(({ count, port = 'auto', target, ...same }) => ({
      ...same,
      port: count === 1 ? port : `${port}-${Number(port) + count - 1}`,
      target: count === 1 ? target : `${target}-${target + count - 1}`,
    })),
    nat: {
      mapping: config.nat.mapping,
      ports: `${config.nat.ports.first}-${config.nat.ports.last}`,
      max_flows: config.nat.maxFlows,
      timeouts: config.nat.timeouts,
    },
    ingress: config.ingress && formatIngress(config.ingress),
    services: config.services.map(formatService),
    marks: config.marks.map(({ ports, ...same }) => ({
      ...same,
      ports: ports && `${ports.first}-${ports.last}`,
    })),
    encryption: encryption && {
      keys: encryption.keys,
      encapsulation: encryption.encapsulation,
      port: encryption.port,
      exchange_port: encryption.exchangePort,
      algorithm: encryption.algorithm,
      replay_window: encryption.replayWindow,
      rotate: encryption.rotate,
    },
    security_associations: config.associations.map(({ replayWindow, ...same }) => ({
      ...same,
      replay_window: replayWindow,
    })),
  };
  return stringify(revealed(text), { defaultStringType: 'QUOTE_DOUBLE', defaultKeyType: 'PLAIN' });
}

const formatIngress = ({ vni, subnet, peers, encrypted }: Network) => ({ vni, subnet, peers, encrypted });

function formatService({ affinity, idleTimeout, health, ...same }: Service): unknown {
  return {
    ...same,
    affinity: affinity === 0 ? undefined : { by: 'client', timeout: affinity },
    idle_timeout: idleTimeout,
    health: health && formatHealth(health),
  };
}

function formatHealth({ kind, port, path, ...same }: NonNullable<Service['health']>): unknown {
  return { ...same, ...(kind === 'tcp' ? { tcp: port } : { http: { port, path } }) };
}
