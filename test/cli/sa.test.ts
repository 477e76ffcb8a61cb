/** `weft sa` as a user meets it: what it prints, what it never prints, and its exit codes. */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { ping, waitFor } from '../../cli/lab.js';
import { type SaList, type SaRow, serve } from '../../control/api.js';
import type { Daemon } from '../../control/daemon.js';
import type { Keying } from '../../control/keying/keying.js';
import { UnknownPeer } from '../../control/keying/unknown-peer.js';
import { live, MAIN, Mesh, overlayAddress, shared } from '../support/live.js';

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

function weft(...args: string[]): Promise<Outcome> {
  return new Promise((resolve) => {
    execFile(process.execPath, [MAIN, 'sa', ...args], (error, stdout, stderr) =>
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    );
  });
}

const NONE = {
  icv: 0,
  replayed: 0,
  'too-old': 0,
  'wrong-source': 0,
  undersized: 0,
  'bad-trailer': 0,
  exhausted: 0,
};

const ROWS: readonly SaRow[] = [
  {
    peer: '192.168.50.2',
    direction: 'out',
    spi: 0x1a,
    algorithm: 'aes-128-gcm-16',
    keyId: 2,
    session: '0123456789abcdef',
    ageSeconds: 61,
    packets: 12,
    bytes: 3400,
    sequence: 12,
    esn: true,
    replayWindow: 1024,
    refusals: NONE,
    state: 'sending',
  },
  {
    peer: '192.168.50.3',
    direction: 'in',
    spi: 0xdeadbeef,
    algorithm: 'aes-256-gcm-8',
    keyId: 'static',
    ageSeconds: 5,
    packets: 0,
    bytes: 0,
    sequence: 0,
    esn: false,
    replayWindow: 64,
    refusals: { ...NONE, icv: 1, replayed: 3 },
    state: 'receiving',
  },
];

type Answers = Partial<Pick<Keying, 'list' | 'waiting' | 'drops' | 'rotate'>>;

/** A control socket behind which only keys are answered for. */
async function socketOf(t: ExecutionContext, answers: Answers): Promise<string> {
  const directory = mkdtempSync(join(tmpdir(), 'weft-sa-'));
  const socket = join(directory, 'sock');
  const keying = { list: () => [], waiting: () => [], drops: () => ({}), ...answers };
  const server = await serve({ keying } as unknown as Daemon, socket);
  t.teardown(() => {
    server.close();
    rmSync(directory, { recursive: true });
  });
  return socket;
}

test('sa ls prints a table', async (t) => {
  const socket = await socketOf(t, { list: () => [...ROWS] });
  const { code, stdout, stderr } = await weft('ls', '--socket', socket);
  t.is(code, 0);
  t.is(stderr, '');
  t.deepEqual(stdout.split('\n'), [
    'PEER          DIR  SPI         ALGORITHM       KEY      AGE  PACKETS  BYTES  SEQUENCE  STATE      REFUSED',
    '192.168.50.2  out  0x0000001a  aes-128-gcm-16  2       61 s       12   3400        12  sending    -',
    '192.168.50.3  in   0xdeadbeef  aes-256-gcm-8   static   5 s        0      0         0  receiving  icv 1, replayed 3',
    '',
  ]);
  t.is((await weft('--socket', socket)).stdout, stdout, 'ls is what sa does by itself');
});

test('sa ls --json prints what the daemon has', async (t) => {
  const list = { waiting: ['192.168.50.4'], exchangeDrops: { 'bad-mac': 3 } };
  const socket = await socketOf(t, {
    list: () => [...ROWS],
    waiting: () => list.waiting,
    drops: () => list.exchangeDrops,
  });
  const { code, stdout } = await weft('ls', '--json', '--socket', socket);
  t.is(code, 0);
  t.deepEqual(JSON.parse(stdout), { schemaVersion: 1, associations: ROWS, ...list });
});

test('sa ls says which peers have no keys, and that nothing is encrypted', async (t) => {
  const waiting = await weft('ls', '--socket', await socketOf(t, { waiting: () => ['192.168.50.4'] }));
  t.deepEqual([waiting.code, waiting.stdout], [0, '']);
  t.is(waiting.stderr, 'no keys with 192.168.50.4 yet: nothing encrypted is sent to it\n');
  const none = await weft('ls', '--socket', await socketOf(t, {}));
  t.deepEqual([none.code, none.stdout], [0, '']);
  t.is(none.stderr, 'there are no security associations: no network is encrypted\n');
});

test('sa rotate asks for one peer or for all', async (t) => {
  const asked: (string | undefined)[] = [];
  const socket = await socketOf(t, {
    rotate: async (peer) => {
      asked.push(peer);
      return { peers: peer === undefined ? 2 : 1 };
    },
  });
  const all = await weft('rotate', '--socket', socket);
  t.deepEqual(all, { code: 0, stdout: '', stderr: 'new keys with 2 peers\n' });
  const one = await weft('rotate', '192.168.50.2', '--json', '--socket', socket);
  t.is(one.code, 0);
  t.deepEqual(JSON.parse(one.stdout), { schemaVersion: 1, peers: 1 });
  await weft('rotate', 'FD50:0:0::2', '--socket', socket);
  t.deepEqual(asked, [undefined, '192.168.50.2', 'fd50::2'], 'addresses are canonical');
});

test('sa rotate exits with 2 for no address, 4 for no peer, 5 when it cannot be done, 3 without a daemon', async (t) => {
  const socket = await socketOf(t, {
    rotate: async (peer) => {
      if (peer === '192.168.50.9') throw new UnknownPeer('192.168.50.9 is no peer');
      throw new Error('no answer from 192.168.50.2: the keys there are stay in use');
    },
  });
  const outcome = async (...args: string[]): Promise<[number, string]> => {
    const { code, stdout, stderr } = await weft('rotate', ...args);
    t.is(stdout, '');
    return [code, stderr];
  };
  t.deepEqual(await outcome('--socket', socket), [
    5,
    'no answer from 192.168.50.2: the keys there are stay in use\n',
  ]);
  t.deepEqual(await outcome('192.168.50.9', '--socket', socket), [4, '192.168.50.9 is no peer\n']);
  const [code, text] = await outcome('hostB', '--socket', socket);
  t.is(code, 2);
  t.regex(text, /"hostB" is not an IP address; write/);
  const [unreachable, why] = await outcome('--socket', `${socket}.none`);
  t.is(unreachable, 3);
  t.regex(why, /no daemon listens there; start one/);
});

const SECRETS = [1, 2].map((id) => ({ id, secret: randomBytes(32).toString('hex') }));

const mesh = shared(() =>
  Mesh.up({ hosts: 2, network: { encrypted: true }, file: { encryption: { keys: SECRETS } } }),
);

async function list(socket: string): Promise<SaList> {
  const { stdout } = await weft('ls', '--json', '--socket', socket);
  return JSON.parse(stdout) as SaList;
}

live('sa rotate under traffic: new keys on both hosts, nothing lost, no secret shown', async (t) => {
  const { engines, containers } = mesh();
  const sockets = engines.map(({ socket }) => socket);
  const current = async (socket: string): Promise<SaRow | undefined> =>
    (await list(socket)).associations.find(({ state }) => state === 'sending');
  await waitFor(async () => (await Promise.all(sockets.map(current))).every((row) => row !== undefined), {
    what: 'keys to be agreed on',
    timeoutMs: 20_000,
  });
  const before = (await current(sockets[0]))!;
  await ping(containers[0], overlayAddress(2), { count: 1 });
  const [traffic, rotated] = await Promise.all([
    ping(containers[0], overlayAddress(2), { count: 20, interval: 0.1 }),
    weft('rotate', '192.168.50.2', '--socket', sockets[0]),
  ]);
  t.deepEqual(rotated, { code: 0, stdout: '', stderr: 'new keys with 1 peer\n' });
  t.is(traffic.received, 20);
  const [here, there] = await Promise.all(sockets.map(current));
  t.not(here!.session, before.session);
  t.is(here!.session, there!.session);
  t.true(here!.packets > 0 && here!.bytes > here!.packets);
  t.is(here!.sequence, here!.packets);
  const table = await weft('ls', '--socket', sockets[0]);
  t.regex(table.stdout, /^192\.168\.50\.2 +out +0x[0-9a-f]{8} +aes-128-gcm-16 +1 /m);
  t.regex(table.stdout, /^192\.168\.50\.2 +in .* old /m);
  const shown = [
    table.stdout,
    JSON.stringify(await list(sockets[0])),
    ...engines.map(({ running }) => running!.stderr),
  ];
  for (const { secret } of SECRETS) t.false(shown.join('\n').includes(secret.slice(0, 16)));
});

live('sa rotate: 4 for a VTEP that is none, 5 when the peer is dead, whose keys stay', async (t) => {
  const [engine, other] = mesh().engines;
  const unknown = await weft('rotate', '192.168.50.77', '--socket', engine.socket);
  t.is(unknown.code, 4);
  t.is(unknown.stderr, '192.168.50.77 is no peer of an encrypted network; they are 192.168.50.2\n');
  await other.kill();
  const silent = await weft('rotate', '--socket', engine.socket);
  t.is(silent.code, 5);
  t.regex(silent.stderr, /no answer from 192\.168\.50\.2/);
  t.true((await list(engine.socket)).associations.some(({ state }) => state === 'sending'));
});
