/** Three hosts on one encrypted network: what is flooded, keys of each pair, and a third that does not fit. */
import { randomBytes } from 'node:crypto';
import type { ExecutionContext } from 'ava';
import { pythonMissing } from '../../bench/wire-traffic.js';
import { ask } from '../../cli/client.js';
import { ping, waitFor } from '../../cli/lab.js';
import type { SaList } from '../../control/api.js';
import {
  assertNonces,
  assertSealed,
  assertWhole,
  encrypted,
  Flow,
  kernelDrops,
  outbound,
  reached,
  record,
  secretOf,
  sending,
} from '../support/encrypted.js';
import { ethernet, mac } from '../support/frames.js';
import {
  type Engine,
  inject,
  live,
  type Mesh,
  overlayAddress,
  overlayMac,
  seen,
  shared,
  sightings,
  sniff,
  underlayAddress,
} from '../support/live.js';

const requirements = { tools: ['tcpdump', 'socat'], skip: pythonMissing() };
const [first, second, third] = [1, 2, 3].map((n) => overlayAddress(n));
const peers = [1, 2, 3].map((n) => underlayAddress(n, false));

/** A marked broadcast from a container. */
const broadcast = (n: number, marker: Uint8Array): Uint8Array =>
  ethernet({ to: mac('ff:ff:ff:ff:ff:ff'), from: mac(overlayMac(n)) }, marker);

/** Runs a body while datagrams go both ways between containers 1 and 2, and asserts that none is lost. */
async function undisturbed(t: ExecutionContext, { containers, lab }: Mesh, body: () => Promise<void>) {
  await reached(t, containers[0], second);
  const before = await kernelDrops(lab.namespaces);
  const flow = await Flow.between(containers, [first, second], 500);
  await body();
  assertWhole(t, await flow.stop(), (await kernelDrops(lab.namespaces)) - before);
}

const exchangeDrops = async ({ socket }: Engine): Promise<SaList['exchangeDrops']> =>
  (await ask<SaList>('GET', '/sa', { socket })).exchangeDrops;

for (const encapsulation of ['udp', 'esp'] as const) {
  const keys = [1, 2].map(secretOf);
  const mesh = shared(() => encrypted({ hosts: 3, encapsulation, keys }));
  const title = `three hosts, ${encapsulation}`;

  live(
    `${title}: a broadcast reaches both others, to each under keys of its own`,
    async (t) => {
      const { hosts, containers } = mesh();
      const marker = randomBytes(40);
      const sniffers = await Promise.all(
        containers.slice(1).map((container) => sniff(container, 'eth0', 'ether proto 0x88b5')),
      );
      const recording = await record(mesh(), hosts[0]);
      await inject(containers[0], 'eth0', broadcast(1, marker));
      for (const sniffer of sniffers) await seen(sniffer, marker);
      // A neighbour that nobody knows yet is asked for by broadcast, too.
      for (const container of containers) container.ip('neigh', 'flush', 'dev', 'eth0');
      for (const to of [second, third]) await reached(t, containers[0], to);
      for (const sniffer of sniffers) {
        await sniffer.stop();
        t.is(sightings(sniffer, marker), 1);
      }
      const recorded = await recording.stop();
      assertSealed(t, recorded);
      assertNonces(t, recorded.esp);
      t.is(recorded.sightings(marker), 0);
      const spis = new Set(recorded.esp.filter(({ from }) => from === peers[0]).map(({ spi }) => spi));
      t.is(spis.size, 2);
    },
    requirements,
  );

  live(
    `${title}: new keys with one peer leave those with the other alone, and no traffic is lost with either`,
    async (t) => {
      const { containers, engines, lab } = mesh();
      const sessions = async () => {
        const rows = await outbound(engines[0]);
        return peers.slice(1).map((peer) => rows.find((row) => row.peer === peer)?.session);
      };
      await reached(t, containers[0], third);
      const [withSecond, withThird] = await sessions();
      const dropped = await Promise.all(engines.map((engine) => engine.watchDrops()));
      const before = await kernelDrops(lab.namespaces);
      const other = await Flow.between([containers[0], containers[2]], [first, third], 500, 7301);
      await undisturbed(t, mesh(), async () => {
        const { code, stdout, stderr } = await engines[0].cli('sa', 'rotate', peers[1]);
        t.is(code, 0, stdout + stderr);
        t.is((await engines[0].cli('sa', 'rotate', '192.168.50.77')).code, 4);
      });
      assertWhole(t, await other.stop(), (await kernelDrops(lab.namespaces)) - before);
      for (const each of dropped) t.deepEqual(await each(), {});
      const [now, still] = await sessions();
      t.not(now, withSecond);
      t.is(still, withThird);
    },
    requirements,
  );

  live(
    `${title}: one that has other secrets disturbs nobody, and is back when it has the right ones`,
    async (t) => {
      const { containers, engines } = mesh();
      const [one, , odd] = engines;
      await undisturbed(t, mesh(), async () => {
        await odd.stop();
        odd.write({ ...mesh().fileOf(3), encryption: { keys: [1, 2].map(secretOf), encapsulation } });
        await odd.start();
        // Its old keys are still there with the others, which do not know yet; it has none of them.
        await waitFor(async () => (await exchangeDrops(one))['bad-mac'] > 0, { what: 'a refusal' });
        t.is((await ping(containers[2], first, { count: 2 })).received, 0);
        t.is((await ping(containers[0], third, { count: 2 })).received, 0);
        t.true((await odd.drops())['esp-encrypt no-association'] > 0);
        t.deepEqual(await odd.associations(), []);
        await odd.change(mesh().fileOf(3));
        await sending(odd, 2);
        for (const container of [containers[0], containers[1]]) await reached(t, container, third);
      });
    },
    requirements,
  );

  live(
    `${title}: one whose file says plain gets nothing in and hears nothing`,
    async (t) => {
      const { hosts, containers, engines } = mesh();
      const [marker, answer] = [randomBytes(40), randomBytes(40)];
      const file = mesh().fileOf(3);
      await undisturbed(t, mesh(), async () => {
        await engines[2].change({ ...file, networks: [{ ...file.networks[0], encrypted: false }] });
        const sniffers = await Promise.all(
          containers.map((container) => sniff(container, 'eth0', 'ether proto 0x88b5')),
        );
        const dropped = await Promise.all(engines.slice(0, 2).map((engine) => engine.watchDrops()));
        const recording = await record(mesh(), hosts[0]);
        await inject(containers[2], 'eth0', broadcast(3, marker));
        for (const each of dropped)
          await waitFor(async () => (await each())['vxlan-decap plain-for-encrypted'] > 0, {
            what: 'a refusal',
          });
        await inject(containers[0], 'eth0', broadcast(1, answer));
        await seen(sniffers[1], answer);
        t.deepEqual(
          sniffers.map((sniffer) => sightings(sniffer, marker)),
          [0, 0, 0],
        );
        t.is(sightings(sniffers[2], answer), 0);
        for (const sniffer of sniffers) await sniffer.stop();
        const recorded = await recording.stop();
        t.is(recorded.sightings(answer), 0);
        t.is(recorded.plain.filter(({ from }) => from !== peers[2]).length, 0);
        await engines[2].change(file);
        await sending(engines[2], 2);
        await reached(t, containers[2], first);
      });
    },
    requirements,
  );
}
