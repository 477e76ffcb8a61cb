/** What is said of backends that are found to live or not. */
import test from 'ava';
import { parseConfig } from '../../control/config.js';
import { hearHealth } from '../../control/health.js';
import { ServiceBook } from '../../control/services.js';
import { GOOD, NOT_HTTP, NOT_REACHED, SILENT, WAS_RESET } from '../../engine/elements/balancer/prober.js';
import { CONNECTIONS_FAILED } from '../../engine/health.js';

const NUMBERS = { domainOf: () => 0, portOf: () => 1, uplinkOf: () => 0 };

function said(health: string) {
  const config = parseConfig(
    `
node: a
underlay: { address: 192.168.50.1 }
networks: [{ name: blue, vni: 42, subnet: 10.0.9.0/24 }]
services:
  - { name: web, network: blue, vip: 10.0.9.100, health: ${health}, backends: [{ address: 10.0.9.2 }] }
`,
    'f',
  );
  const book = new ServiceBook();
  const [{ backends }] = book.intents(config, NUMBERS).services;
  return (cause: number, alive = false, backend = backends[0].id) => {
    const lines: string[] = [];
    hearHealth(book, config, [{ backend, alive, cause }], (line) => lines.push(line));
    return { lines, alive: book.intents(config, NUMBERS).services[0].backends[0].alive };
  };
}

test('who is down is said with the cause, and the book knows', (t) => {
  const tcp = said('{ tcp: 80 }');
  for (const [cause, why] of [
    [SILENT, 'no answer from port 80 (3 in a row)'],
    [WAS_RESET, 'port 80 refuses connections (3 in a row)'],
    [NOT_REACHED, 'port 80 cannot be reached (3 in a row)'],
    [CONNECTIONS_FAILED, '3 connections to port 80 failed within 2 s'],
  ] as const)
    t.deepEqual(tcp(cause), { lines: [`service web: 10.0.9.2 is down: ${why}`], alive: false });
  t.deepEqual(tcp(GOOD, true), { lines: ['service web: 10.0.9.2 is up again'], alive: true });
});

test('of a page the status is said', (t) => {
  const http = said('{ http: { port: 81, path: /health }, failures: 1 }');
  for (const [cause, why] of [
    [SILENT, 'no answer to a request from port 81'],
    [NOT_HTTP, 'port 81 does not speak HTTP'],
    [500, '/health is answered with status 500'],
  ] as const)
    t.deepEqual(http(cause).lines, [`service web: 10.0.9.2 is down: ${why}`]);
});

test('of a backend that is gone nothing is said', (t) => {
  t.deepEqual(said('{ tcp: 80 }')(SILENT, false, 7), { lines: [], alive: true });
});
