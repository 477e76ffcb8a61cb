/** Two hosts on one underlay and one link outside: each has an uplink, and publishes what its own container serves. */
import type { Namespace } from '../../cli/lab.js';
import { live, Mesh, missing, overlayAddress, shared } from '../support/live.js';
import { curl, Nginx, nginxMissing } from '../support/servers.js';

const CLIENT = '192.168.60.200';
const uplink = (n: number): string => `192.168.60.${10 + n}`;

class TwoHosts extends Mesh {
  readonly client: Namespace;

  constructor() {
    super({ hosts: 2, network: { gateway: '10.0.9.254', uplink: 'out' } });
    this.client = this.lab.host('client');
    this.lab.bridgeUnderlay([...this.hosts, this.client], {
      label: 'world',
      device: 'out0',
      addresses: [['192.168.60.101/24'], ['192.168.60.102/24'], [`${CLIENT}/24`]],
    });
    for (const n of [1, 2]) {
      const engine = this.engine(this.hosts[n - 1], {
        ...this.fileOf(n),
        uplinks: [{ name: 'out', interface: 'out0', address: `${uplink(n)}/24` }],
        publish: [{ endpoint: `c${n}`, protocol: 'tcp', port: 8080, target: 80 }],
      });
      this.engines.push(engine);
    }
  }
}

const WEB = { tools: ['curl'], skip: nginxMissing() };
const servers: Nginx[] = [];
const rig = shared(async () => {
  const made = new TwoHosts();
  await made.start(...made.engines);
  for (const container of made.containers) servers.push(await Nginx.start(made, container));
  return made;
}, missing(WEB.tools) ?? WEB.skip);

live(
  'each is reached by its own address, at once and by one client, whose address both see',
  async (t) => {
    const { client } = rig();
    for (const n of [1, 2]) t.is(await curl(client, `http://${uplink(n)}:8080/one`), `c${n}\n`, `host ${n}`);
    const asked = Array.from({ length: 20 }, (_, i) =>
      curl(client, `http://${uplink(1 + (i % 2))}:8080/many`),
    );
    t.deepEqual(
      await Promise.all(asked),
      asked.map((_, i) => `c${1 + (i % 2)}\n`),
    );
    for (const server of servers) {
      t.deepEqual(await server.logged('/one', 1), [CLIENT]);
      t.deepEqual(await server.logged('/many', 10), Array(10).fill(CLIENT));
    }
  },
  WEB,
);

live(
  "a container reaches the other host's published port by both uplinks, and its container by the overlay",
  async (t) => {
    const { containers } = rig();
    for (const [n, other] of [
      [1, 2],
      [2, 1],
    ]) {
      const from = containers[n - 1];
      t.is(await curl(from, `http://${uplink(other)}:8080/out${n}`), `c${other}\n`);
      t.is(await curl(from, `http://${uplink(n)}:8080/own${n}`), `c${n}\n`);
      t.is(await curl(from, `http://${overlayAddress(other)}/direct${n}`), `c${other}\n`);
      t.deepEqual(await servers[other - 1].logged(`/out${n}`, 1), [uplink(n)]);
      t.deepEqual(await servers[n - 1].logged(`/own${n}`, 1), [uplink(n)]);
      t.deepEqual(await servers[other - 1].logged(`/direct${n}`, 1), [overlayAddress(n)]);
    }
  },
  WEB,
);
