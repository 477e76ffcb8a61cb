/**
 * What leaves the overlay and comes in: servers that say who asked them, in containers and outside, asked from both
 * sides, through address translation, a published port, a virtual address and the routing mesh.
 */
import type { Lab, Namespace, RunningCommand } from '../lab.js';

/** Interface of each host and of the world on the link between them, and their addresses there. */
const DEVICE = 'out0';
const HOST_ADDRESSES = ['192.168.60.1/24', '192.168.60.2/24'];
const WORLD_ADDRESS = '192.168.60.9';
/** Of the engines' own routers, by host. */
const UPLINK_ADDRESSES = ['192.168.60.11', '192.168.60.12'] as const;
const VIP = '10.0.9.100';
/** Where servers listen, and where host A publishes c1 alone and both hosts the service. */
const SERVER_PORT = 80;
const PUBLISHED_PORT = 8081;
const SERVICE_PORT = 8080;
/** Times that a service is asked. */
const TIMES = 10;

/** Answers each connection with its name and the address of who asked. */
const SERVER = `require('node:net').createServer((socket) => {
  socket.on('error', () => {});
  socket.end(process.argv[1] + ' ' + socket.remoteAddress.replace('::ffff:', ''));
}).listen(${SERVER_PORT}, () => console.log('ready'));`;

/** Asks an address so often, one after the other, and prints what each answered. */
const CLIENT = `const [, address, port, times] = process.argv;
const ask = (left) => left > 0 && require('node:net').connect({ host: address, port, timeout: 2000 })
  .on('data', (data) => console.log(String(data)))
  .on('timeout', function () { this.destroy(); })
  .on('error', (error) => console.log('none ' + error.code))
  .on('close', () => ask(left - 1));
ask(Number(times));`;

/** One way that was tried. */
export interface Asked {
  readonly from: string;
  readonly to: string;
  readonly via: string;
  readonly asked: number;
  /** How often each answered, and whom it saw. */
  readonly answered: Readonly<Record<string, number>>;
  readonly seen: readonly string[];
}

/** Joins the hosts to a world outside of the overlay. */
export function buildOutside(lab: Lab, hosts: readonly Namespace[]): Namespace {
  const world = lab.host('world');
  const addresses = [...HOST_ADDRESSES, `${WORLD_ADDRESS}/24`].map((address) => [address]);
  lab.bridgeUnderlay([...hosts, world], { label: 'street', device: DEVICE, addresses });
  return world;
}

/** Keys of a node's file: the way out, and, with services, what is reached from outside. */
export function outsideConfig(host: number, endpoint: string, backends: readonly string[]): string {
  const uplink = `{ name: out, interface: ${DEVICE}, address: ${UPLINK_ADDRESSES[host]}/24 }`;
  if (backends.length === 0) return `uplinks:\n  - ${uplink}\n`;
  return `uplinks:
  - ${uplink}
publish:
  - { endpoint: ${endpoint}, protocol: tcp, port: ${PUBLISHED_PORT}, target: ${SERVER_PORT} }
services:
  - name: web
    network: blue
    vip: ${VIP}
    publish: [ { protocol: tcp, port: ${SERVICE_PORT}, target: ${SERVER_PORT}, mode: ingress } ]
    backends: [ ${backends.map((address) => `{ address: ${address} }`).join(', ')} ]
`;
}

/** Asks by every way; the containers and the world have servers meanwhile. */
export async function askOutside(
  containers: readonly [Namespace, Namespace],
  world: Namespace,
): Promise<Asked[]> {
  const [c1, c2] = containers;
  const servers = await Promise.all([c1, c2, world].map(serve));
  try {
    const [a, b] = UPLINK_ADDRESSES;
    return [
      await ask(c1, WORLD_ADDRESS, SERVER_PORT, 1, 'masquerade of host A'),
      await ask(world, a, PUBLISHED_PORT, 1, 'port that host A publishes for c1'),
      await ask(c1, VIP, SERVER_PORT, TIMES, 'service, inside'),
      await ask(world, a, SERVICE_PORT, TIMES, 'service, by host A'),
      await ask(world, b, SERVICE_PORT, TIMES, 'service, by host B'),
    ];
  } finally {
    await Promise.all(servers.map((server) => server.stop('SIGKILL')));
  }
}

async function serve(where: Namespace): Promise<RunningCommand> {
  const server = where.start(process.execPath, ['-e', SERVER, where.label]);
  await server.output(/^ready$/m);
  return server;
}

async function ask(
  from: Namespace,
  address: string,
  port: number,
  times: number,
  via: string,
): Promise<Asked> {
  const args = ['-e', CLIENT, address, String(port), String(times)];
  const stdout = await from.run(process.execPath, args, { timeoutMs: 30_000 });
  const answers = stdout
    .trim()
    .split('\n')
    .map((line) => line.split(' '));
  const answered: Record<string, number> = {};
  for (const [who = 'none'] of answers) answered[who] = (answered[who] ?? 0) + 1;
  const seen = [...new Set(answers.filter(([who]) => who !== 'none').map(([, address = '']) => address))];
  return { from: from.label, to: `${address}:${port}`, via, asked: times, answered, seen };
}
