/**
 * Encryption under SIGHUP: peers that come and go, a ring that moves on, networks that become encrypted and plain
 * again. Nothing of the unchanged is lost, and at no moment does a plain frame leave a host that encrypts.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { pythonMissing } from '../../bench/wire-traffic.js';
import { ping, waitFor } from '../../cli/lab.js';
import {
  assertNonces,
  assertSealed,
  assertWhole,
  encrypted,
  encryptedOptions,
  Flow,
  kernelDrops,
  outbound,
  type RingSecret,
  reached,
  record,
  secretOf,
  sending,
} from '../support/encrypted.js';
import { live, Mesh, type NodeFile, overlayAddress, shared, underlayAddress } from '../support/live.js';

const requirements = { tools: ['tcpdump'], skip: pythonMissing() };
const addresses = [1, 2, 3].map((n) => overlayAddress(n));
/** A peer that does not exist. */
const ABSENT = '192.168.50.99';

/** The file of a host with its network encrypted, or not. */
function fileWith(mesh: Mesh, n: number, isEncrypted: boolean): NodeFile {
  const file = mesh.fileOf(n);
  const peers = [underlayAddress(3 - n, false), ABSENT];
  return { ...file, networks: [{ ...file.networks[0], peers, encrypted: isEncrypted }] };
}

for (const mode of ['uplink', 'socket'] as const) {
  const mesh = shared(() => encrypted({ hosts: 2, encapsulation: 'udp', underlay: { mode } }));

  live(
    `underlay ${mode}: encrypted off and on by reload while next hops change: plain only while the file says so`,
    async (t) => {
      const { hosts, containers, engines } = mesh();
      await reached(t, containers[0], addresses[1]);
      const dropped = await engines[1].watchDrops();
      const recording = await record(mesh(), hosts[0]);
      const flow = await Flow.between(containers, addresses, 500);
      // Each change of a neighbour makes an engine with an uplink apply what it knows anew.
      const neighbour = `ip neigh replace ${ABSENT} dev under0 lladdr 02:00:00:00:00:0`;
      const forEver = `while :; do for n in 1 2; do ${neighbour}$n; sleep 0.01; done; done`;
      const restless = hosts[0].start('sh', ['-c', forEver]);
      const plainTimes: [number, number][] = [];
      for (let i = 0; i < 6; i++) {
        const from = Date.now();
        await engines[0].change(fileWith(mesh(), 1, false));
        await delay(50);
        await engines[0].change(fileWith(mesh(), 1, true));
        plainTimes.push([from, Date.now() + 1]);
        await delay(200);
      }
      await restless.stop('SIGKILL');
      await engines[0].change(mesh().fileOf(1));
      await sending(engines[0], 1);
      await reached(t, containers[0], addresses[1]);
      await flow.stop();
      const { plain, esp } = await recording.stop();
      const ours = plain.filter(({ from }) => from === underlayAddress(1, false));
      t.true(ours.length > 0, 'it was plain for a while');
      t.is(plain.length, ours.length, 'the other host never was');
      const outside = ours.filter(({ at }) => !plainTimes.some(([from, to]) => at >= from && at <= to));
      t.is(outside.length, 0, `of ${ours.length}`);
      assertNonces(t, esp, false);
      // A super-frame on the wire is more than one for whoever takes it.
      t.true((await dropped())['vxlan-decap plain-for-encrypted'] >= ours.length);
    },
    requirements,
  );

  live(
    `underlay ${mode}: a network made plain on both hosts, and encrypted again, carries traffic each time`,
    async (t) => {
      const { hosts, containers, engines } = mesh();
      const change = (isEncrypted: boolean) =>
        Promise.all(engines.map((engine, i) => engine.change(fileWith(mesh(), i + 1, isEncrypted))));
      await change(false);
      await reached(t, containers[0], addresses[1]);
      for (const engine of engines) t.deepEqual(await engine.associations(), []);
      await change(true);
      const recording = await record(mesh(), hosts[0]);
      for (const engine of engines) await sending(engine, 1);
      await reached(t, containers[0], addresses[1]);
      const recorded = await recording.stop();
      assertSealed(t, recorded);
      t.true(recorded.esp.length >= 6);
      await Promise.all(engines.map((engine, i) => engine.change(mesh().fileOf(i + 1))));
    },
    requirements,
  );
}

const trio = shared(() => encrypted({ hosts: 3, encapsulation: 'udp' }));

live(
  'a peer removed and added under traffic with another: its keys go and come, the others lose nothing',
  async (t) => {
    const { hosts, containers, engines, lab } = trio();
    const file = trio().fileOf(1);
    const without = { ...file, networks: [{ ...file.networks[0], peers: [underlayAddress(2, false)] }] };
    await reached(t, containers[0], addresses[1]);
    await reached(t, containers[0], addresses[2]);
    const recording = await record(trio(), hosts[0]);
    const before = await kernelDrops(lab.namespaces);
    const flow = await Flow.between(containers, addresses);
    for (let i = 0; i < 3; i++) {
      await engines[0].change(without);
      t.deepEqual(
        (await engines[0].associations()).filter(({ peer }) => peer === underlayAddress(3, false)),
        [],
      );
      const refused = await engines[0].watchDrops();
      t.is((await ping(containers[2], addresses[0], { count: 1 })).received, 0);
      t.true((await refused())['esp-decrypt unknown-spi'] > 0);
      await engines[0].change(file);
      await sending(engines[0], 2);
      await reached(t, containers[2], addresses[0]);
    }
    assertWhole(t, await flow.stop(), (await kernelDrops(lab.namespaces)) - before);
    const recorded = await recording.stop();
    assertSealed(t, recorded);
    assertNonces(t, recorded.esp);
  },
  requirements,
);

for (const encapsulation of ['udp', 'esp'] as const) {
  const secrets = [1, 2, 3, 4].map(secretOf);
  const mesh = shared(() => encrypted({ hosts: 2, encapsulation, keys: secrets.slice(0, 2) }));

  live(
    `ring of keys, ${encapsulation}: two turns, host by host, lose nothing, and each key sends in its turn`,
    async (t) => {
      const { hosts, containers, engines, lab } = mesh();
      await reached(t, containers[0], addresses[1]);
      const dropped = await Promise.all(engines.map((engine) => engine.watchDrops()));
      const recording = await record(mesh(), hosts[0]);
      const before = await kernelDrops(lab.namespaces);
      const flow = await Flow.between(containers, addresses);
      const fileOf = (n: number, keys: readonly RingSecret[]): NodeFile => ({
        ...mesh().fileOf(n),
        encryption: { keys, encapsulation },
      });
      const agreedUnder = (keyId: number) =>
        waitFor(
          async () => {
            const rows = (await Promise.all(engines.map(outbound))).flat();
            return rows.length === 2 && rows.every((row) => row.keyId === keyId && row.packets > 0);
          },
          { what: `both to send under key ${keyId}`, timeoutMs: 10_000 },
        );
      await agreedUnder(1);
      for (const first of [0, 1]) {
        for (const keys of [secrets.slice(first, first + 3), secrets.slice(first + 1, first + 3)]) {
          for (const [i, engine] of engines.entries()) {
            await engine.change(fileOf(i + 1, keys));
            await delay(300);
          }
          await agreedUnder(first + 2);
        }
      }
      assertWhole(t, await flow.stop(), (await kernelDrops(lab.namespaces)) - before);
      for (const each of dropped) t.deepEqual(await each(), {});
      const recorded = await recording.stop();
      assertSealed(t, recorded);
      assertNonces(t, recorded.esp);
    },
    requirements,
  );
}

live(
  'encryption cannot begin by reload where the engine began without: refused, nothing changes',
  async (t) => {
    const mesh = await Mesh.up({ hosts: 1 });
    const { file, network } = encryptedOptions({ hosts: 1, encapsulation: 'udp' });
    const plain = mesh.fileOf(1);
    mesh.engines[0].write({ ...plain, ...file, networks: [{ ...plain.networks[0], ...network }] });
    const answer = await mesh.engines[0].reload();
    t.regex(answer, /^not reloaded, nothing changed/m);
    t.regex(answer, /encryption cannot begin while the engine runs.*restart weft up/);
    mesh.close();
  },
);
