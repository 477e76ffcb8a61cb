/** Static associations between two Weft hosts, which have the same keys after a restart: no number, no IV twice. */
import { randomBytes } from 'node:crypto';
import { pythonMissing } from '../../bench/wire-traffic.js';
import { assertNonces, assertSealed, Flow, reached, record } from '../support/encrypted.js';
import { live, Mesh, type NodeFile, overlayAddress, shared, underlayAddress } from '../support/live.js';

const requirements = { tools: ['tcpdump'], skip: pythonMissing() };
const addresses = [1, 2].map((n) => overlayAddress(n));
/** SPI of what hosts 1 and 2 send. */
const SPIS = [0x1001, 0x1002];

class StaticMesh extends Mesh {
  readonly keys = SPIS.map(() => randomBytes(20).toString('hex'));

  static async start(mode: string, encapsulation: 'udp' | 'esp', esn: boolean): Promise<StaticMesh> {
    const file = { encryption: { encapsulation } };
    const mesh = new StaticMesh({ hosts: 2, underlay: { mode }, network: { encrypted: true }, file });
    for (const n of [1, 2]) mesh.engines.push(mesh.engine(mesh.hosts[n - 1], mesh.withAssociations(n, esn)));
    await mesh.start(...mesh.engines);
    return mesh;
  }

  withAssociations(n: number, esn: boolean): NodeFile {
    const associations = SPIS.map((spi, i) => ({
      peer: underlayAddress(3 - n, false),
      direction: i === n - 1 ? 'out' : 'in',
      spi,
      algorithm: 'aes-128-gcm-16',
      key: this.keys[i],
      esn,
    }));
    return { ...this.fileOf(n), security_associations: associations };
  }
}

for (const [mode, encapsulation, esn] of [
  ['uplink', 'udp', true],
  ['socket', 'udp', false],
  ['auto', 'esp', true],
] as const) {
  const mesh = shared(() => StaticMesh.start(mode, encapsulation, esn));

  live(
    `static, ${encapsulation}, underlay ${mode}, ${esn ? 'with' : 'without'} ESN: killed, stopped and started, a host sends on with numbers and IVs that are new`,
    async (t) => {
      const { hosts, containers, engines } = mesh();
      const [engine, peer] = engines;
      const recording = await record(mesh(), hosts[0]);
      await reached(t, containers[0], addresses[1]);
      const dropped = await peer.watchDrops();
      for (const end of ['kill', 'stop', 'kill'] as const) {
        const flow = await Flow.between(containers, addresses, 500, { kill: 7300, stop: 7301 }[end]);
        await reached(t, containers[0], addresses[1]);
        await engine[end]();
        await flow.stop();
        await engine.start();
        await reached(t, containers[0], addresses[1]);
      }
      t.deepEqual(await dropped(), {}, 'nothing is refused as seen before');
      const recorded = await recording.stop();
      assertSealed(t, recorded);
      const senders = assertNonces(t, recorded.esp, false);
      t.deepEqual(
        [1, 2].map((n) => [...(senders.get(underlayAddress(n, false)) ?? [])]),
        SPIS.map((spi) => [spi]),
      );
      const sent = recorded.esp.filter(({ spi }) => spi === SPIS[0]).map(({ sequence }) => sequence);
      t.deepEqual(
        sent,
        sent.toSorted((a, b) => a - b),
      );
      const refused = await engine.cli('sa', 'rotate');
      t.is(refused.code, 5, refused.stderr);
    },
    requirements,
  );
}
