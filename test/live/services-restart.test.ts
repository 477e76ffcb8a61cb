/** Services while nodes are reloaded, replaced and killed: a transfer that is under way comes from a node that stays. */
import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import type { ExecutionContext } from 'ava';
import { IngressRig, uplinkAddress, VIP, webService } from '../support/ingress.js';
import { live, missing, overlayAddress, shared } from '../support/live.js';
import { Load } from '../support/load.js';
import { curl, KeptConnection, Nginx, nginxMissing } from '../support/servers.js';

const WEB = { tools: ['curl', 'socat'], skip: nginxMissing() };

/** All come in by the first node, and are served at the second. */
const rig = shared(async () => {
  const made = new IngressRig({ services: [webService({ backends: [{ address: overlayAddress(2) }] })] });
  await made.begin();
  await Nginx.start(made, made.containers[1], { files: made.directory });
  writeFileSync(`${made.directory}/large`, randomBytes(10 << 20));
  return made;
}, missing(WEB.tools) ?? WEB.skip);

/** What goes on while something happens: a transfer, and connections that are asked before and after. */
async function through(t: ExecutionContext, what: () => Promise<unknown>): Promise<void> {
  const { clients, containers, directory } = rig();
  const file = `${directory}/large`;
  const kept = [
    KeptConnection.open(clients[0], uplinkAddress(1), 8080),
    KeptConnection.open(containers[0], VIP, 80),
  ];
  for (const connection of kept) t.is(await connection.ask(), 'c2');
  const transfer = curl(clients[0], ...['--limit-rate', '4M', '-o', `${file}.got`], url('files/large'));
  // It is under way.
  await delay(500);
  await what();
  await transfer;
  t.true(readFileSync(file).equals(readFileSync(`${file}.got`)));
  for (const connection of kept) {
    t.is(await connection.ask(), 'c2');
    await connection.close();
  }
}

const url = (path: string): string => `http://${uplinkAddress(1)}:8080/${path}`;

live(
  'a reload of every node during requests loses none',
  async (t) => {
    const { clients, engines } = rig();
    await through(t, async () => {
      const load = await Load.start(clients[1], {
        ...{ host: uplinkAddress(1), port: 8080, rate: 500, seconds: 2 },
      });
      for (const engine of engines) t.regex(await engine.reload(), /^reloaded$/m);
      const { sent, answers, failures } = await load.report();
      t.deepEqual({ answers, failures }, { answers: { c2: sent }, failures: {} });
    });
  },
  WEB,
);

live(
  "a new process at the backend's node takes over; one that was killed is followed by the next",
  async (t) => {
    const [, second] = rig().engines;
    await through(t, () => second.replace());
    await through(t, async () => {
      await second.kill();
      await second.start();
    });
  },
  WEB,
);

live(
  'a new process at the node that clients come by takes over what comes from outside',
  async (t) => {
    const { clients, directory, engines } = rig();
    const kept = KeptConnection.open(clients[0], uplinkAddress(1), 8080);
    t.is(await kept.ask(), 'c2');
    const file = `${directory}/large`;
    const transfer = curl(clients[0], ...['--limit-rate', '4M', '-o', `${file}.got`], url('files/large'));
    await delay(500);
    await engines[0].replace();
    await transfer;
    t.true(readFileSync(file).equals(readFileSync(`${file}.got`)));
    t.is(await kept.ask(), 'c2');
    await kept.close();
  },
  WEB,
);
