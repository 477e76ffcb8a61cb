/**
 * Fail closed: without keys nothing of an encrypted network leaves, and it is counted and said. Underlays are recorded
 * from before the engines start until after they end.
 */
import { randomBytes } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import type { ExecutionContext } from 'ava';
import { pythonMissing } from '../../bench/wire-traffic.js';
import { ask } from '../../cli/client.js';
import { ping, waitFor } from '../../cli/lab.js';
import type { SaList } from '../../control/api.js';
import {
  assertSealed,
  encryptedOptions,
  kernelDrops,
  reached,
  record,
  secretOf,
  sending,
} from '../support/encrypted.js';
import { type Engine, live, Mesh, overlayAddress, overlayMac, underlayAddress } from '../support/live.js';

const requirements = { tools: ['tcpdump'], skip: pythonMissing() };
const addresses = [1, 2, 3].map((n) => overlayAddress(n));

const said = (engine: Engine, text: RegExp): string[] =>
  engine.running!.stderr.split('\n').filter((line) => text.test(line));

const waiting = async ({ socket }: Engine): Promise<string[]> => {
  const list = await ask<SaList>('GET', '/sa', { socket });
  return [...list.waiting].sort();
};

/** Records the underlay at every host; `sealed` ends that and asserts that nothing plain was there. */
async function recordAll(mesh: Mesh, marker: Uint8Array) {
  const recordings = await Promise.all(mesh.hosts.map((host) => record(mesh, host)));
  return async (t: ExecutionContext): Promise<void> => {
    for (const recording of recordings) {
      const recorded = await recording.stop();
      assertSealed(t, recorded);
      t.is(recorded.sightings(marker), 0, 'what containers sent is on the wire');
    }
  };
}

const variants = [
  { title: 'UDP, uplink', mode: 'uplink', encapsulation: 'udp', v6: false },
  { title: 'UDP, socket', mode: 'socket', encapsulation: 'udp', v6: false },
  { title: 'IP protocol 50 over IPv6', mode: 'auto', encapsulation: 'esp', v6: true },
] as const;

for (const { title, mode, encapsulation, v6 } of variants) {
  live(
    `ESP in ${title}: a peer with another secret and one that is down get nothing, until they have keys`,
    async (t) => {
      const keys = [secretOf(1)];
      const options = encryptedOptions({ hosts: 3, encapsulation, keys, v6, underlay: { mode } });
      const mesh = new Mesh(options);
      try {
        const marker = randomBytes(16);
        const sealed = await recordAll(mesh, marker);
        const { hosts, containers, engines } = mesh;
        for (const [i, host] of hosts.entries()) engines.push(mesh.engine(host, mesh.fileOf(i + 1)));
        const [first, second, third] = engines;
        const stranger = { keys: [secretOf(1)], encapsulation };
        second.write({ ...mesh.fileOf(2), encryption: stranger });
        await mesh.start(first, second);

        const pattern = { count: 3, pattern: Buffer.from(marker).toString('hex') };
        containers[0].ip('neigh', 'replace', addresses[1], 'lladdr', overlayMac(2), 'dev', 'eth0');
        // The one by a known address, the other by asking everybody for it.
        for (const to of addresses.slice(1)) t.is((await ping(containers[0], to, pattern)).received, 0);
        const peers = [2, 3].map((n) => underlayAddress(n, v6));
        const unkeyed = /no traffic keys are agreed with it yet/;
        await waitFor(() => said(first, unkeyed).length === 2, {
          what: 'words about both',
          timeoutMs: 15_000,
        });
        t.deepEqual(
          said(first, unkeyed)
            .map((line) => /^(\S+): /.exec(line)?.[1])
            .sort(),
          peers,
        );
        t.true((await first.drops())['esp-encrypt no-association'] >= 6);
        t.deepEqual(Object.keys(await first.drops()), ['esp-encrypt no-association']);
        t.deepEqual(await waiting(first), peers);
        t.deepEqual(await first.associations(), []);
        t.regex(first.running!.stderr, /does not know the secret of key 1; compare encryption\.keys/);

        await second.change(mesh.fileOf(2));
        await third.start();
        for (const engine of engines) await sending(engine, 2);
        for (const to of addresses.slice(1)) await reached(t, containers[0], to);
        await reached(t, containers[0], addresses[1], pattern);
        t.is(said(first, unkeyed).length, 2, 'once each');
        t.regex(first.running!.stderr, new RegExp(`${peers[0]}: agreed on keys`));

        const { ended } = containers[0].start('ping', ['-n', '-i', '0.005', '-w', '2', addresses[1]]);
        await delay(200);
        for (const engine of engines) t.is((await engine.stop()).code, 0);
        await ended;
        await sealed(t);
      } finally {
        mesh.close();
      }
    },
    requirements,
  );
}

live(
  'a VTEP that only a remote endpoint names is sent to under keys of its own',
  async (t) => {
    const options = encryptedOptions({ hosts: 2, encapsulation: 'udp' });
    const mesh = new Mesh(options);
    try {
      const { hosts, containers, engines } = mesh;
      for (const n of [1, 2]) {
        const file = mesh.fileOf(n);
        const remote = {
          name: 'far',
          network: 'blue',
          vtep: underlayAddress(3 - n, false),
          address: `${overlayAddress(3 - n)}/24`,
        };
        const networks = [{ ...file.networks[0], peers: [], learning: false }];
        engines.push(
          mesh.engine(hosts[n - 1], { ...file, networks, endpoints: [...file.endpoints, remote] }),
        );
      }
      const recording = await record(mesh, hosts[0]);
      await mesh.start(...engines);
      for (const engine of engines) await sending(engine, 1);
      const before = await kernelDrops(mesh.lab.namespaces);
      await reached(t, containers[0], addresses[1]);
      t.is(await kernelDrops(mesh.lab.namespaces), before);
      const recorded = await recording.stop();
      assertSealed(t, recorded);
      t.true(recorded.esp.length >= 6);
    } finally {
      mesh.close();
    }
  },
  requirements,
);
