/** Services before real backends: three nodes with an nginx each, asked with curl, over each kind of underlay. */
import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import type { Namespace } from '../../cli/lab.js';
import { encryptedOptions, sending } from '../support/encrypted.js';
import { clientAddress, IngressRig, uplinkAddress, VIP, webService } from '../support/ingress.js';
import { live, type MeshOptions, missing, overlayAddress, shared, sniff } from '../support/live.js';
import { curl, dnsmasq, KeptConnection, Nginx, nginxMissing } from '../support/servers.js';

const WEB = { tools: ['curl'], skip: nginxMissing() };
const NODES = [1, 2, 3];

const sealed = (v6: boolean): Partial<MeshOptions> =>
  encryptedOptions({
    ...{ hosts: 3, encapsulation: 'udp', v6 },
    network: { gateway: '10.0.9.254', uplink: 'out' },
  });
const dns = webService({
  ...{ name: 'dns', vip: '10.0.9.53' },
  publish: [{ protocol: 'udp', port: 5353, target: 53, mode: 'ingress' }],
});
const forms: readonly { title: string; options: Partial<MeshOptions> }[] = [
  { title: 'underlay of IPv4', options: {} },
  { title: 'underlay of IPv6', options: { v6: true } },
  { title: 'encrypted', options: sealed(false) },
  { title: 'encrypted, underlay of IPv6', options: sealed(true) },
];

for (const { title, options } of forms) {
  const servers: Nginx[] = [];
  const rig = shared(async () => {
    const made = await new IngressRig({ ...options, services: [webService(), dns] }).begin();
    if (options.network) for (const engine of made.engines) await sending(engine, 2);
    for (const container of made.containers)
      servers.push(await Nginx.start(made, container, { files: made.directory }));
    return made;
  }, missing(WEB.tools) ?? WEB.skip);
  /** Asks three times, so that each backend answers once. @returns who each backend saw. */
  const seenBy = async (from: Namespace, address: string, path: string): Promise<string[]> => {
    const answers: string[] = [];
    for (let i = 0; i < 3; i++) answers.push(await curl(from, `http://${address}/${path}`));
    if ([...answers].sort().join('') !== 'c1\nc2\nc3\n') throw new Error(`${path}: ${answers.join('')}`);
    return (await Promise.all(servers.map((server) => server.logged(`/${path}`, 1)))).flat();
  };

  live(
    `${title}: every node's published port, from outside; every backend logs the client`,
    async (t) => {
      for (const node of NODES)
        for (const [i, client] of rig().clients.entries()) {
          const path = `outside-${node}-${client.label}`;
          const seen = await seenBy(client, `${uplinkAddress(node)}:8080`, path);
          t.deepEqual(seen, Array(3).fill(clientAddress(i + 1)), path);
        }
    },
    WEB,
  );

  live(
    `${title}: the virtual address, from each backend; the others log it, itself the virtual address`,
    async (t) => {
      for (const [i, container] of rig().containers.entries()) {
        const seen = await seenBy(container, VIP, `inside-${container.label}`);
        t.deepEqual(
          seen,
          NODES.map((n) => (n === i + 1 ? VIP : overlayAddress(i + 1))),
        );
      }
    },
    WEB,
  );

  live(
    `${title}: a published port of its own node and of others, from a backend`,
    async (t) => {
      const { containers } = rig();
      for (const node of NODES) {
        const path = `backend-${node}`;
        const seen = await seenBy(containers[0], `${uplinkAddress(node)}:8080`, path);
        // Out by its own uplink, as all that leaves; hairpinned at its own.
        t.deepEqual(seen, Array(3).fill(uplinkAddress(1)), path);
      }
    },
    WEB,
  );

  live(
    `${title}: one client at all nodes at once, on connections that it keeps`,
    async (t) => {
      const client = rig().clients[1];
      // More than there are backends, all alive at the same time.
      const kept = [...NODES, ...NODES, ...NODES].map((node) =>
        KeptConnection.open(client, uplinkAddress(node), 8080),
      );
      const first = await Promise.all(kept.map((connection) => connection.ask()));
      t.deepEqual([...new Set(first)].sort(), ['c1', 'c2', 'c3']);
      for (let i = 0; i < 3; i++)
        t.deepEqual(await Promise.all(kept.map((connection) => connection.ask())), first);
      for (const connection of kept) await connection.close();
    },
    { ...WEB, tools: ['curl', 'socat'] },
  );

  live(
    `${title}: a service of UDP, asked by name outside and inside; every backend sees who asks`,
    async (t) => {
      const { clients, containers } = rig();
      const running = await Promise.all(
        containers.map((container, i) => dnsmasq(container, { 'who.example': `198.51.100.${i + 1}` })),
      );
      const ask = async (from: Namespace, ...args: string[]): Promise<string | undefined> =>
        /IN\s+A\s+198\.51\.100\.(\d)$/m.exec(await from.run('drill', args))?.[1];
      const callers: readonly [Namespace, string[], string][] = [
        ...NODES.map((n): [Namespace, string[], string] => [
          clients[0],
          ['-p', '5353', `@${uplinkAddress(n)}`],
          clientAddress(1),
        ]),
        [containers[0], ['@10.0.9.53'], overlayAddress(1)],
      ];
      for (const [i, [from, to, seen]] of callers.entries()) {
        const who = await Promise.all(NODES.map(() => ask(from, ...to, `a${i}.who.example`)));
        t.deepEqual([...new Set(who)].sort(), ['1', '2', '3'], to.join(' '));
        for (const [n, { stderr }] of running.entries()) {
          const itself = from === containers[n];
          t.true(stderr.includes(`query[A] a${i}.who.example from ${itself ? '10.0.9.53' : seen}\n`), stderr);
        }
      }
      for (const server of running) await server.stop();
    },
    { ...WEB, tools: ['curl', 'dnsmasq', 'drill'] },
  );

  live(
    `${title}: large files, from every backend by every node and to it, are whole`,
    async (t) => {
      const { clients, containers, directory, engines } = rig();
      const file = `${directory}/large`;
      writeFileSync(file, randomBytes(6 << 20));
      const wanted = readFileSync(file);
      const before = servers.map((server) => server.log.length);
      for (const [from, address] of [
        ...NODES.map((node) => [clients[0], `${uplinkAddress(node)}:8080`] as const),
        [containers[0], VIP] as const,
      ]) {
        for (let i = 0; i < 3; i++) {
          await curl(from, '-o', `${file}.got`, `http://${address}/files/large`);
          t.true(wanted.equals(readFileSync(`${file}.got`)), `${from.label} from ${address}`);
          await curl(from, '--data-binary', `@${file}`, `http://${address}/up`);
        }
      }
      for (const [i, server] of servers.entries()) t.true(server.log.length - before[i] >= 4);
      const longest = (await Promise.all(engines.map((engine) => engine.drops()))).map(
        (drops) => drops['gateway too-big'] ?? 0,
      );
      t.deepEqual(longest, [0, 0, 0]);
    },
    WEB,
  );

  if (options.network === undefined) continue;
  live(
    `${title}: nothing of it is plain on the underlay`,
    async (t) => {
      const { hosts, clients, containers } = rig();
      const watch = (filter: string) =>
        Promise.all(hosts.map((host) => sniff(host, 'under0', filter, 'inout')));
      const plain = await watch('udp port 4789');
      const sealed = await watch('udp port 4500');
      for (const node of NODES) await seenBy(clients[0], `${uplinkAddress(node)}:8080`, `sealed-${node}`);
      await seenBy(containers[1], VIP, 'sealed-inside');
      for (const sniffer of sealed) t.true(sniffer.frames().length > 10);
      for (const sniffer of plain) t.deepEqual(sniffer.frames(), []);
      for (const sniffer of [...plain, ...sealed]) await sniffer.stop();
    },
    { ...WEB, tools: ['curl', 'tcpdump'] },
  );
}
