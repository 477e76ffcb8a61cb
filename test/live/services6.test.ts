/** Services over IPv6: three nodes with an nginx each, asked with curl, plain and encrypted. */
import { type Namespace, ping, waitFor } from '../../cli/lab.js';
import { encryptedOptions, sending } from '../support/encrypted.js';
import {
  clientAddress,
  clientAddress6,
  IngressRig,
  uplinkAddress,
  uplinkAddress6,
  VIP6,
  webService,
} from '../support/ingress.js';
import { live, Mesh, type MeshOptions, type NodeFile, overlayAddress, shared } from '../support/live.js';
import { curl, KeptConnection, Nginx, nginxMissing } from '../support/servers.js';

const WEB = { tools: ['curl'], skip: nginxMissing() };
const NODES = [1, 2, 3];
const own = (n: number): string => overlayAddress(n, true);
/** Addresses that nobody has, and a rule gives to the service. */
const MARKED = '203.0.113.9';
const MARKED6 = '2001:db8::9';

const forms: readonly { title: string; options: Partial<MeshOptions> }[] = [
  { title: 'plain', options: {} },
  { title: 'encrypted', options: encryptedOptions({ hosts: 3, encapsulation: 'udp', v6: true }) },
];

for (const { title, options } of forms) {
  const servers: Nginx[] = [];
  const rig = shared(async () => {
    const services = [webService({ vip6: VIP6, fwmark: 300 })];
    const rule = { mark: 300, network: 'blue', protocol: 'tcp' };
    const marks = ['203.0.113.0/24', '2001:db8::/32'].map((address) => ({ ...rule, address }));
    const made = await new IngressRig({ ...options, services, marks }).begin();
    if (options.network) for (const engine of made.engines) await sending(engine, 2);
    for (const container of made.containers) servers.push(await Nginx.start(made, container));
    await made.resolve6();
    return made;
  }, WEB.skip);
  /** Asks three times, so that each backend answers once. @returns who each backend saw. */
  const seenBy = async (from: Namespace, address: string, path: string): Promise<string[]> => {
    const answers: string[] = [];
    for (let i = 0; i < 3; i++) answers.push(await curl(from, `http://${address}/${path}`));
    if ([...answers].sort().join('') !== 'c1\nc2\nc3\n') throw new Error(`${path}: ${answers.join('')}`);
    return (await Promise.all(servers.map((server) => server.logged(`/${path}`, 1)))).flat();
  };

  live(
    `${title}: every node's published port, from outside; every backend logs the client's own address`,
    async (t) => {
      for (const node of NODES)
        for (const [i, client] of rig().clients.entries()) {
          const path = `outside-${node}-${client.label}`;
          const seen = await seenBy(client, `[${uplinkAddress6(node)}]:8080`, path);
          t.deepEqual(seen, Array(3).fill(clientAddress6(i + 1)), path);
        }
    },
    WEB,
  );

  live(
    `${title}: the virtual address, from each backend; the others log it, itself the virtual address`,
    async (t) => {
      for (const [i, container] of rig().containers.entries()) {
        const seen = await seenBy(container, `[${VIP6}]`, `inside-${container.label}`);
        t.deepEqual(
          seen,
          NODES.map((n) => (n === i + 1 ? VIP6 : own(i + 1))),
        );
      }
    },
    WEB,
  );

  live(
    `${title}: addresses of both families that a rule marks, from a backend`,
    async (t) => {
      const [container] = rig().containers;
      t.deepEqual(await seenBy(container, `[${MARKED6}]`, 'marked6'), [MARKED6, own(1), own(1)]);
      const v4 = overlayAddress(1);
      t.deepEqual(await seenBy(container, MARKED, 'marked'), [MARKED, v4, v4]);
      const { stdout } = await rig().engines[0].cli('service', 'ls');
      t.regex(stdout, /^FWM {2}300 rr\nFWM {2}300 IPv6 rr$/m);
    },
    WEB,
  );

  live(
    `${title}: a published port of its own node and of others, from a backend`,
    async (t) => {
      const { containers } = rig();
      for (const node of NODES) {
        const path = `backend-${node}`;
        const seen = await seenBy(containers[0], `[${uplinkAddress6(node)}]:8080`, path);
        // Out by its own uplink, as all that leaves; hairpinned at its own.
        t.deepEqual(seen, Array(3).fill(uplinkAddress6(1)), path);
      }
    },
    WEB,
  );

  live(
    `${title}: one client at all nodes at once, over IPv4 and IPv6, on connections that it keeps`,
    async (t) => {
      const client = rig().clients[1];
      const kept = NODES.flatMap((node) => [
        KeptConnection.open(client, `[${uplinkAddress6(node)}]`, 8080),
        KeptConnection.open(client, uplinkAddress(node), 8080),
      ]);
      const first = await Promise.all(kept.map((connection) => connection.ask()));
      for (let i = 0; i < 3; i++)
        t.deepEqual(await Promise.all(kept.map((connection) => connection.ask())), first);
      for (const connection of kept) await connection.close();
      const clients = servers.flatMap((server) => server.clients('/kept'));
      t.deepEqual([...new Set(clients)].sort(), [clientAddress(2), clientAddress6(2)]);
    },
    { ...WEB, tools: ['curl', 'socat'] },
  );

  live(
    `${title}: what is published and what is tracked, at both addresses`,
    async (t) => {
      const [engine] = rig().engines;
      const json = async (...command: string[]) =>
        JSON.parse((await engine.cli(...command, '--json')).stdout);
      const { published } = (await json('publish', 'ls')) as { published: Record<string, string>[] };
      t.deepEqual(
        published.map(({ address, service }) => [address, service]),
        [
          [uplinkAddress(1), 'web'],
          [uplinkAddress6(1), 'web'],
        ],
      );
      const { stdout } = await engine.cli('service', 'ls');
      t.regex(stdout, /^TCP {2}\[fd00:9::100\]:0 rr$/m);
      t.regex(stdout, /^ {2}-> \[fd00:9::3\]:0 +Masq +1 /m);
      const kept = KeptConnection.open(rig().containers[0], `[${VIP6}]`, 80);
      await kept.ask();
      const { flows } = (await json('conntrack', 'ls')) as { flows: Record<string, string>[] };
      const flow = flows.find(({ outside, state }) => outside === `[${VIP6}]:80` && state === 'established');
      t.regex(String(flow?.['inside']), /^\[fd00:9::[123]\]:80$/, JSON.stringify(flows));
      await kept.close();
    },
    { ...WEB, tools: ['curl', 'socat'] },
  );

  live(
    `${title}: the virtual address is a neighbour that keeps answering solicitations, and answers pings`,
    async (t) => {
      const [container] = rig().containers;
      const { received } = await ping(container, VIP6, { count: 2, deadlineS: 5 });
      t.is(received, 2);
      t.regex(container.ip('-6', 'neigh', 'show', VIP6), /lladdr 06:57:00:00:01:00 /);
      // Asked of the station itself, as a host does of what it knows.
      container.ip('-6', 'neigh', 'change', VIP6, 'dev', 'eth0', 'nud', 'probe');
      const again = await ping(container, VIP6, { count: 2, deadlineS: 5 });
      t.is(again.received, 2);
      t.regex(container.ip('-6', 'neigh', 'show', VIP6), /REACHABLE/);
    },
    WEB,
  );

  live(
    `${title}: connections from outside to a backend that is taken out end at once, those to others go on`,
    async (t) => {
      const [engine] = rig().engines;
      const [client] = rig().clients;
      const kept = NODES.map(() => KeptConnection.open(client, `[${uplinkAddress6(1)}]`, 8080));
      const names = await Promise.all(kept.map((connection) => connection.ask()));
      t.deepEqual([...names].sort(), ['c1', 'c2', 'c3']);
      const gone = kept[names.indexOf('c2')];
      t.is((await engine.cli('service', 'rm', 'web', own(2))).code, 0);
      await gone.running.ended;
      for (const [i, connection] of kept.entries())
        if (connection !== gone) {
          t.is(await connection.ask(), names[i]);
          await connection.close();
        }
      const answers = await Promise.all(
        NODES.map(() => curl(client, `http://[${uplinkAddress6(1)}]:8080/after`)),
      );
      t.false(answers.includes('c2\n'));
    },
    { ...WEB, tools: ['curl', 'socat'] },
  );
}

const six = shared(async () => {
  const rig = new Mesh({ hosts: 2 });
  const file = (n: number): NodeFile => {
    const { address6: address, ...endpoint } = rig.endpointOf(n);
    const [blue] = rig.fileOf(n).networks;
    const { subnet6: subnet, ...network } = blue;
    const backends = [1, 2].map((one) => ({ address: own(one) }));
    return {
      ...rig.fileOf(n),
      networks: [{ ...network, subnet }],
      endpoints: [{ ...endpoint, address }],
      services: [{ name: 'web', network: 'blue', vip: VIP6, backends }],
    };
  };
  await rig.start(...[1, 2].map((n) => rig.engine(rig.hosts[n - 1], file(n))));
  for (const container of rig.containers) await Nginx.start(rig, container);
  return rig;
}, WEB.skip);

live(
  'in an IPv6 network without uplink the virtual address is reached, too',
  async (t) => {
    const [container] = six().containers;
    await waitFor(async () => (await ping(container, own(2), { count: 1, deadlineS: 5 })).received === 1, {
      what: 'the other container',
    });
    const answers = [await curl(container, `http://[${VIP6}]/`), await curl(container, `http://[${VIP6}]/`)];
    t.deepEqual(answers.sort(), ['c1\n', 'c2\n']);
  },
  WEB,
);
