/** Published services from outside: every node answers, whoever has the backend, which sees the client's address. */
import type { ExecutionContext } from 'ava';
import { type Namespace, waitFor } from '../../cli/lab.js';
import { askTcp } from '../support/gateway.js';
import { clientAddress, IngressRig, uplinkAddress, VIP, webService } from '../support/ingress.js';
import { live, overlayAddress, shared } from '../support/live.js';

const rig = shared(async () => {
  const made = await new IngressRig({ services: [webService()] }).begin();
  await Promise.all(made.containers.map(serve));
  return made;
});

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
