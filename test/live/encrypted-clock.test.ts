/**
 * A wall clock that is set, forward and back: traffic keys are made anew, since the machine may be a copy of another,
 * and traffic goes on. The clock of an engine is set by a module that it loads first, not the machine's.
 */
import { renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pythonMissing } from '../../bench/wire-traffic.js';
import { waitFor } from '../../cli/lab.js';
import {
  assertNonces,
  assertSealed,
  encryptedOptions,
  outbound,
  reached,
  record,
  sending,
} from '../support/encrypted.js';
import { type Engine, live, MAIN, Mesh, overlayAddress, shared, underlayAddress } from '../support/live.js';

const requirements = { tools: ['tcpdump'], skip: pythonMissing() };
const YEAR_MS = 365 * 86_400_000;

/** Date.now() of the process is off by the ms that a file names. */
const CLOCK = (path: string): string => `import { readFileSync } from 'node:fs';
const now = Date.now;
Date.now = () => now() + Number(readFileSync(${JSON.stringify(path)}, 'utf8'));`;

class ClockMesh extends Mesh {
  static async start(mode: string): Promise<ClockMesh> {
    const mesh = new ClockMesh(encryptedOptions({ hosts: 2, encapsulation: 'udp', underlay: { mode } }));
    for (const n of [1, 2]) {
      mesh.engines.push(mesh.engine(mesh.hosts[n - 1], mesh.fileOf(n)));
      mesh.setClock(n, 0);
      writeFileSync(join(mesh.directory, `clock-${n}.mjs`), CLOCK(mesh.offset(n)));
    }
    for (const [i, engine] of mesh.engines.entries()) {
      const up = [MAIN, 'up', '-c', engine.file, '--socket', engine.socket];
      const clock = ['--import', join(mesh.directory, `clock-${i + 1}.mjs`)];
      engine.running = engine.host.start(process.execPath, [...clock, ...up]);
      await engine.running.output(/^ready$/m, { timeoutMs: 30_000 });
    }
    for (const engine of mesh.engines) await sending(engine, 1);
    return mesh;
  }

  private offset(n: number): string {
    return join(this.directory, `offset-${n}`);
  }

  setClock(n: number, ms: number): void {
    // At once, for the engine looks at any time.
    writeFileSync(`${this.offset(n)}.new`, String(ms));
    renameSync(`${this.offset(n)}.new`, this.offset(n));
  }
}

const steps = (engine: Engine): number =>
  engine.running!.stderr.match(/the clock was set by -?\d+ s, so all traffic keys are made anew/g)?.length ??
  0;

for (const mode of ['uplink', 'socket']) {
  const mesh = shared(() => ClockMesh.start(mode));

  live(
    `underlay ${mode}: a clock set on one host, on the other, and on both at once: new keys, nothing plain, no nonce twice`,
    async (t) => {
      const { hosts, containers, engines } = mesh();
      const recording = await record(mesh(), hosts[0]);
      await reached(t, containers[0], overlayAddress(2));
      const sessions = new Set((await outbound(engines[0])).map(({ session }) => session));
      let now = [0, 0];
      for (const offsets of [
        [YEAR_MS, 0],
        [YEAR_MS, -YEAR_MS],
        [0, 0],
        [5000, 5000],
        [0, 0],
      ]) {
        const before = engines.map(steps);
        const moved = offsets.map((offset, i) => offset !== now[i]);
        now = offsets;
        for (const [i, offset] of offsets.entries()) mesh().setClock(i + 1, offset);
        await waitFor(() => engines.every((engine, i) => !moved[i] || steps(engine) > before[i]), {
          what: 'engines to notice',
        });
        for (const engine of engines) await sending(engine, 1);
        await reached(t, containers[0], overlayAddress(2));
        await reached(t, containers[1], overlayAddress(1));
        const session = await waitFor(
          async () => {
            const [[mine], [theirs]] = await Promise.all(engines.map(outbound));
            return mine?.session === theirs?.session ? mine?.session : undefined;
          },
          { what: 'one session' },
        );
        t.false(sessions.has(session));
        sessions.add(session);
      }
      t.deepEqual(engines.map(steps), [4, 4]);
      const recorded = await recording.stop();
      assertSealed(t, recorded);
      const senders = assertNonces(t, recorded.esp, false);
      for (const n of [1, 2]) t.true(senders.get(underlayAddress(n, false))!.size >= 6);
    },
    requirements,
  );
}
