/** Published services from outside: every node answers, whoever has the backend, which sees the client's address. */
import type { ExecutionContext } from 'ava';
import { type Namespace, type RunningCommand, waitFor } from '../../cli/lab.js';
import { askTcp, bracketed } from '../support/gateway.js';
import {
  clientAddress,
  clientAddress6,
  IngressRig,
  uplinkAddress,
  uplinkAddress6,
  VIP,
  webService,
} from '../support/ingress.js';
import { live, overlayAddress, shared } from '../support/live.js';
import { KeptConnection } from '../support/servers.js';

/** A service whose backend is on the second node; over UDP nobody listens behind port 8093. */
function secondService(name: string, last: number, more: object): Record<string, unknown> {
  const backends = [{ address: overlayAddress(2), address6: overlayAddress(2, true) }];
  return webService({ name, vip: `10.0.9.${last}`, vip6: `fd00:9::${last}`, backends, ...more });
}

const published = (protocol: string, port: number, target: number): Record<string, unknown> => ({
  ...{ protocol, port, target, mode: 'ingress' },
});

const services = [
  webService(),
  secondService('removed', 101, {
    publish: [published('tcp', 8091, 90), published('udp', 8092, 90), published('udp', 8093, 91)],
  }),
  secondService('gone', 103, { publish: [published('tcp', 8095, 90)] }),
  secondService('idle', 102, { publish: [published('tcp', 8094, 90)], idle_timeout: '2s' }),
];

/** In the second container. */
let keeper: RunningCommand;

const rig = shared(async () => {
  const made = await new IngressRig({ services }).begin();
  await Promise.all(made.containers.map(serve));
  keeper = await keep(made.containers[1]);
  await made.resolve6();
  return made;
});

/** Keeps connections without a word, and says how they end; over UDP it answers with 5,000 bytes. */
async function keep(container: Namespace): Promise<RunningCommand> {
  const script = `
    require('node:net').createServer((s) => {
      const { remoteAddress } = s;
      s.on('error', ({ code }) => console.log(code, remoteAddress)).write('welcome');
    }).listen(90, '::', () => console.log('listening'));
    const udp = require('node:dgram').createSocket('udp6');
    udp.on('message', (_, { address, port }) => udp.send(Buffer.alloc(5000), port, address)).bind(90, '::');`;
  const running = container.start(process.execPath, ['-e', script]);
  await running.output(/listening/);
  return running;
}

/** Says who was asked, and by whom. */
async function serve(container: Namespace): Promise<void> {
  container.start('socat', [
    'TCP-LISTEN:80,reuseaddr,fork',
    'SYSTEM:read line; echo "$SOCAT_SOCKADDR $SOCAT_PEERADDR"',
  ]);
  const asked = ['-H', '-n', '-lt', 'sport = :80'];
  await waitFor(async () => (await container.run('ss', asked)) !== '', { what: 'a server on port 80' });
}

/** Who answers, asked so often; each must have seen `caller`. */
async function answers(
  t: ExecutionContext,
  from: Namespace,
  address: string,
  port: number,
  caller: string,
  times = 3,
): Promise<string[]> {
  const found: string[] = [];
  for (let i = 0; i < times; i++) {
    const [backend = '', seen = ''] = (await askTcp(from, address, port, 'who')).split(' ');
    t.is(seen, caller, `${address}:${port} from ${from.label}`);
    found.push(backend);
  }
  return found.sort();
}

const all = [1, 2, 3].map((n) => overlayAddress(n));

live(
  'each node publishes, and each backend is reached by each with the address of the client',
  async (t) => {
    const { clients } = rig();
    for (const node of [1, 2, 3])
      for (const client of [1, 2])
        t.deepEqual(
          await answers(t, clients[client - 1], uplinkAddress(node), 8080, clientAddress(client)),
          all,
        );
  },
  { tools: ['socat'] },
);

live(
  'inside, every container reaches the service and is seen by its address; its own backend sees the virtual one',
  async (t) => {
    const { containers } = rig();
    for (const n of [1, 2, 3]) {
      const found: string[] = [];
      for (let i = 0; i < 3; i++) {
        const [backend = '', seen = ''] = (await askTcp(containers[n - 1], VIP, 80, 'who')).split(' ');
        t.is(seen, backend === overlayAddress(n) ? VIP : overlayAddress(n));
        found.push(backend);
      }
      t.deepEqual(found.sort(), all);
    }
  },
  { tools: ['socat'] },
);

/** What a datagram to a port comes to: the length of the answer, or an error. It is sent again while there is none. */
async function datagram(from: Namespace, address: string, port: number): Promise<string> {
  const script = `
    const [address, port] = process.argv.slice(1);
    const s = require('node:dgram').createSocket(address.includes(':') ? 'udp6' : 'udp4');
    const end = (how) => process.exit(console.log(how));
    s.on('message', ({ length }) => end(length)).on('error', ({ code }) => end(code));
    const send = () => s.send('who');
    s.connect(+port, address, () => setInterval(send, 500, send()));`;
  const { stdout } = await from.exec(process.execPath, ['-e', script, address, String(port)]);
  return stdout.trim();
}

const entries = [uplinkAddress(1), uplinkAddress6(1)];

live("a client hears from another node's backend that a port of UDP is closed", async (t) => {
  const [client] = rig().clients;
  for (const address of entries) t.is(await datagram(client, address, 8093), 'ECONNREFUSED', address);
});

live("a long answer of another node's backend comes whole, in fragments", async (t) => {
  const [client] = rig().clients;
  for (const address of entries) t.is(await datagram(client, address, 8092), '5000', address);
});

for (const [title, port, command] of [
  ['is removed', 8091, ['service', 'rm', 'removed', overlayAddress(2)]],
  ['loses its service', 8095, ['service', 'rm', 'gone']],
  ['has heard nothing for too long', 8094, []],
] as const)
  live(`a backend that ${title} is reset, as its client is, whichever node that came by`, async (t) => {
    const { clients, engines } = rig();
    const before = keeper.stdout.length;
    const resets = (seen: string): number =>
      keeper.stdout.slice(before).split(`ECONNRESET ${seen}\n`).length - 1;
    const kept = [1, 2]
      .flatMap((node) => [uplinkAddress(node), uplinkAddress6(node)])
      .map((address) => KeptConnection.open(clients[0], bracketed(address), port).running);
    await Promise.all(kept.map((running) => running.output(/welcome/)));
    if (command.length > 0) for (const engine of engines) t.is((await engine.cli(...command)).code, 0);
    for (const running of kept) t.regex((await running.finish(20_000)).stderr, /Connection reset by peer/);
    for (const seen of [`::ffff:${clientAddress(1)}`, clientAddress6(1)])
      await waitFor(() => resets(seen) === 2, {
        ...{ what: `the backend to be reset twice by ${seen}`, timeoutMs: 20_000 },
      });
  });
