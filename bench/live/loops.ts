/** The bounds: the C loops of bench/peers, compiled when they are wanted. */
import { existsSync, mkdirSync, renameSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { runSync } from '../../control/command.js';
import { CARD, hasTool, INTERFACE, type Site, UNDERLAY_MTU } from './site.js';
import { Unavailable } from './unavailable.js';

const SOURCES = fileURLToPath(new URL('../../../bench/peers', import.meta.url));
const BINARIES = fileURLToPath(new URL('../peers', import.meta.url));
const UPLINK = 'up0';

/** @returns the path of the program. @throws Unavailable without a compiler. */
function compiled(name: string): string {
  const source = join(SOURCES, `${name}.c`);
  const program = join(BINARIES, name);
  const age = (file: string): number => (existsSync(file) ? statSync(file).mtimeMs : 0);
  if (age(program) > Math.max(age(source), age(join(SOURCES, 'tap.h')))) return program;
  if (!hasTool('cc')) throw new Unavailable('there is no C compiler; install it with "apt-get install gcc"');
  mkdirSync(BINARIES, { recursive: true });
  const fresh = `${program}.${process.pid}`;
  runSync('cc', ['-std=gnu11', '-O2', '-Wall', '-Wextra', '-Werror', '-o', fresh, source]);
  renameSync(fresh, program); // the old one may be running
  return program;
}

export async function tapLoop(site: Site): Promise<void> {
  const program = compiled('tap-loop');
  await site.start(
    0,
    'tap-loop',
    program,
    site.containers.flatMap(({ path }) => [path, INTERFACE]),
  );
  for (const index of site.containers.keys()) site.configureTap(index);
}

export async function uplinkLoop(site: Site): Promise<void> {
  const program = compiled('uplink-loop');
  if (!hasTool('nft')) throw new Unavailable('there is no nft; install it with "apt-get install nftables"');
  for (const [index, host] of site.hosts.entries()) {
    const other = 1 - index;
    await startUplink(site, index, [
      ...[program, site.containers[index].path, INTERFACE, UPLINK],
      ...[site.vtep(index), site.vtep(other), site.cardMac(index), site.cardMac(other)],
    ]);
    host.ipBatch([
      `link set dev ${UPLINK} addrgenmode none`,
      `link set dev ${UPLINK} arp off mtu ${UNDERLAY_MTU} up`,
    ]);
    await host.run('nft', ['-f', '-'], { input: rules(site.ipv6) });
    site.configureTap(index);
  }
}

async function startUplink(site: Site, index: number, [program, ...args]: string[]): Promise<void> {
  try {
    await site.start(index, 'uplink-loop', program, args);
  } catch (error) {
    if (!/cannot set the (vnet|offloads)/.test((error as Error).message)) throw error;
    throw new Unavailable('this kernel does not segment UDP tunnels on TAPs (Linux 6.17 does)');
  }
}

/** From the card to the uplink TAP and back, by the rules that Weft uses itself. */
function rules(ipv6: boolean): string {
  const match = ipv6 ? 'meta protocol ip6' : 'ip frag-off & 0x3fff == 0';
  return `table netdev loop {
  chain from_card {
    type filter hook ingress device "${CARD}" priority 0;
    ${match} udp dport 4789 fwd to "${UPLINK}"
  }
  chain from_loop {
    type filter hook ingress device "${UPLINK}" priority 0;
    fwd to "${CARD}"
  }
}
`;
}
