/** Backends of a service changed while it runs, as an operator does. */
import type { ExecutionContext } from 'ava';
import { type Namespace, waitFor } from '../../cli/lab.js';
import type { BackendRow } from '../../control/api.js';
import { askTcp } from '../support/gateway.js';
import { live, Mesh, overlayAddress, shared } from '../support/live.js';

const VIP = '10.0.9.100';
const [FIRST, SECOND, CALLER] = [1, 2, 3].map((n) => overlayAddress(n));

const serviceOf = (more: Record<string, unknown> = {}) => ({
  name: 'web',
  network: 'blue',
  vip: VIP,
  ports: [{ protocol: 'tcp', port: 80, target: 8080 }],
  backends: [{ address: FIRST }, { address: SECOND }],
  ...more,
});

/** Only the caller's host has the service: any other would serve what reaches it. */
const mesh = shared(async () => {
  const made = await Mesh.up({ hosts: 3, without: [3] });
  made.engines[2].write({ ...made.fileOf(3), services: [serviceOf()] });
  await made.start(made.engines[2]);
  return made;
});

/** Says who was asked, and by whom. */
async function serve(container: Namespace): Promise<void> {
  container.start('socat', [
    'TCP-LISTEN:8080,reuseaddr,fork',
    'SYSTEM:read line; echo "$SOCAT_SOCKADDR $SOCAT_PEERADDR"',
  ]);
  const asked = ['-H', '-n', '-lt', 'sport = :8080'];
  await waitFor(async () => (await container.run('ss', asked)) !== '', { what: 'a server on port 8080' });
}

/** Who answered, asked so often. Each saw the caller's own address. */
async function answers(t: ExecutionContext, times: number): Promise<string[]> {
  const found: string[] = [];
  for (let i = 0; i < times; i++) {
    const [backend, caller = ''] = (await askTcp(mesh().containers[2], VIP, 80, 'who')).split(' ');
    if (backend !== '') t.is(caller, CALLER);
    found.push(backend);
  }
  return found.sort();
}

live(
  'weft service: drain, weight and rm, and what a reload makes of them',
  async (t) => {
    const { containers, engines } = mesh();
    const engine = engines[2];
    await Promise.all([serve(containers[0]), serve(containers[1])]);
    const service = async (...args: string[]) => {
      const { code, stderr, stdout } = await engine.cli('service', ...args);
      t.is(code, 0, stderr);
      return stdout;
    };
    const backends = async () =>
      (JSON.parse(await service('backends', 'web', '--json')) as { backends: BackendRow[] }).backends;

    t.deepEqual(await answers(t, 4), [FIRST, FIRST, SECOND, SECOND]);
    t.regex(await service('ls'), /^TCP {2}10\.0\.9\.100:80 rr\n(.*\n)* {2}-> 10\.0\.9\.1:8080 +Masq +1 /m);
    const counted = await backends();
    t.deepEqual(
      counted.map(({ connections, state, failures }) => ({ connections, state, failures })),
      [1, 2].map(() => ({ connections: 2, state: 'up', failures: 0 })),
    );
    t.true(counted.every(({ packets, bytes }) => packets >= 8 && bytes > packets * 40));

    await service('drain', 'web', FIRST);
    t.deepEqual(await answers(t, 3), [SECOND, SECOND, SECOND]);
    await engine.change({ ...mesh().fileOf(3), services: [serviceOf()] });
    t.deepEqual(await answers(t, 2), [SECOND, SECOND], 'a reload keeps what was set');
    await service('weight', 'web', FIRST, '1');
    t.deepEqual(await answers(t, 2), [FIRST, SECOND]);

    await service('rm', 'web', SECOND);
    t.deepEqual(await answers(t, 2), [FIRST, FIRST]);
    const edited = serviceOf({ backends: [{ address: FIRST }, { address: SECOND, weight: 2 }] });
    await engine.change({ ...mesh().fileOf(3), services: [edited] });
    t.deepEqual(await answers(t, 2), [FIRST, SECOND], 'an entry that was edited counts again');

    await service('rm', 'web');
    t.deepEqual(await answers(t, 1), ['']);
    t.is((await engine.cli('service', 'inspect', 'web')).code, 4);
  },
  { tools: ['socat', 'ss'] },
);
