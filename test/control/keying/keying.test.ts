import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inspect } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import { waitFor } from '../../../cli/lab.js';
import { type Config, ConfigError, parseConfig } from '../../../control/config.js';
import { Keying } from '../../../control/keying/keying.js';
import { RESERVE } from '../../../control/keying/persist.js';
import type { SaRow } from '../../../control/keying/store.js';
import { UnknownPeer } from '../../../control/keying/unknown-peer.js';
import type { AssociationIntent } from '../../../engine/intent.js';
import { AssociationState, associationStateBytes } from '../../../engine/tables/association-state.js';

const SECRETS = ['11', '22', '33'].map((pair) => pair.repeat(32));
const STATIC = [1, 2, 3, 4].map((n) => `c${n}`.repeat(20));

interface Written {
  readonly name?: string;
  readonly peers?: readonly number[];
  readonly encryption?: Record<string, unknown> | undefined;
  readonly associations?: readonly Record<string, unknown>[];
}

/** A port that nobody has on 127.0.0.0/8. */
async function freePort(): Promise<number> {
  const socket = await bound(0);
  const { port } = socket.address();
  socket.close();
  return port;
}

async function bound(port: number): Promise<Socket> {
  const socket = createSocket('udp4').bind({ port, address: '0.0.0.0', exclusive: true });
  await once(socket, 'listening');
  return socket;
}

const ring = (port: number, ...ids: number[]): Record<string, unknown> => ({
  exchange_port: port,
  keys: ids.map((id) => ({ id, secret: SECRETS[id - 1] })),
});

const fixed = (peer: number, direction: 'in' | 'out', key: number, over = {}): Record<string, unknown> => ({
  peer: `127.0.0.${peer}`,
  direction,
  spi: 0x1000 + key,
  algorithm: 'aes-128-gcm-16',
  key: `${STATIC[key - 1]}`,
  ...over,
});

/** A node at 127.0.0.`n`, with workers and slots that only remember. */
class Node {
  readonly state = new AssociationState(new SharedArrayBuffer(associationStateBytes(64)));
  readonly keys = new Map<number, string>();
  readonly lines: string[] = [];
  list: readonly AssociationIntent[] = [];
  /** Every list that the workers were told. */
  readonly lists: (readonly AssociationIntent[])[] = [];
  keying!: Keying;

  private constructor(
    readonly n: number,
    readonly directory: string,
  ) {}

  static make(t: ExecutionContext, n: number): Node {
    const directory = mkdtempSync(join(tmpdir(), 'weft-keying-'));
    const node = new Node(n, directory);
    t.teardown(() => {
      node.keying?.close();
      rmSync(directory, { recursive: true });
    });
    return node;
  }

  /** The config, which is also written where problems point to. */
  write({ name = `node${this.n}`, peers = [], encryption, associations }: Written): Config {
    const text = JSON.stringify(
      {
        node: name,
        underlay: { address: `127.0.0.${this.n}`, mtu: 1500 },
        networks: [
          {
            name: 'blue',
            vni: 42,
            subnet: '10.0.9.0/24',
            peers: peers.map((peer) => `127.0.0.${peer}`),
            encrypted: encryption !== undefined || associations !== undefined,
          },
          { name: 'plain', vni: 43, subnet: '10.0.10.0/24', peers: ['127.0.0.77'] },
        ],
        ...(encryption && { encryption }),
        ...(associations && { security_associations: associations }),
      },
      null,
      1,
    );
    writeFileSync(this.file, text);
    return parseConfig(text, this.file);
  }

  get file(): string {
    return join(this.directory, 'weft.yaml');
  }

  async open(written: Written, { shared = true } = {}): Promise<void> {
    this.keying = await Keying.open({
      file: this.file,
      config: this.write(written),
      state: shared ? this.state : undefined,
      stateFile: join(this.directory, 'state'),
      apply: async (list) => {
        await new Promise(setImmediate);
        this.list = list;
        this.lists.push(list);
      },
      log: (line) => void this.lines.push(line),
      native: {
        gcmInstall: ({ slot, key, salt }) => {
          if (this.keys.has(slot)) throw new TypeError(`slot ${slot} is taken`);
          this.keys.set(slot, Buffer.concat([key, salt]).toString('hex'));
        },
        gcmRemove: (slot) => void this.keys.delete(slot),
      },
    });
  }

  async up(written: Written): Promise<void> {
    await this.open(written);
    await this.keying.start();
  }

  reload(written: Written): Promise<void> {
    return this.keying.reload(this.write(written));
  }

  /** The row that sends to a peer; undefined when there is none. */
  sending(peer: number): SaRow | undefined {
    return this.keying.list().find((row) => row.state === 'sending' && row.peer === `127.0.0.${peer}`);
  }

  keyOf(direction: 'in' | 'out', spi: number): string | undefined {
    return this.keys.get(this.list.find((one) => one.direction === direction && one.spi === spi)!.slot);
  }
}

async function agreed(...pairs: readonly [Node, Node][]): Promise<void> {
  await waitFor(
    () =>
      pairs.every(([a, b]) => {
        const [there, back] = [a.sending(b.n), b.sending(a.n)];
        return there !== undefined && back !== undefined && there.session === back.session;
      }),
    { what: 'keys to be agreed on' },
  );
}

test('without encryption nothing is bound and nothing is done', async (t) => {
  const node = Node.make(t, 2);
  await node.open({ peers: [3] }, { shared: false });
  await node.keying.start();
  await node.reload({ peers: [3, 4] });
  t.deepEqual(node.keying.list(), []);
  t.deepEqual(node.keying.waiting(), []);
  t.deepEqual(node.keying.drops(), {});
  t.deepEqual(node.lists, []);
  await t.throwsAsync(node.keying.rotate(), { message: /encrypts nothing: set "encrypted: true"/ });
  const refused = await t.throwsAsync(node.reload({ peers: [3], encryption: ring(7949, 1) }), {
    instanceOf: ConfigError,
  });
  t.regex(
    refused!.message,
    /weft\.yaml:\d+:\d+: encryption cannot begin while the engine runs; restart weft up/,
  );
});

test('two nodes agree, each with the key of the other, and again when they are told to', async (t) => {
  const port = await freePort();
  const [a, b] = [Node.make(t, 2), Node.make(t, 3)];
  await a.up({ peers: [3], encryption: ring(port, 1, 2) });
  t.deepEqual(a.keying.waiting(), ['127.0.0.3']);
  t.deepEqual(a.keying.list(), []);
  await b.up({ peers: [2], encryption: ring(port, 1, 2) });
  await agreed([a, b]);
  t.deepEqual(a.keying.waiting(), []);
  const before = a.sending(3)!;
  const [there, back] = [before.spi, b.sending(2)!.spi];
  t.is(a.keyOf('out', there), b.keyOf('in', there));
  t.is(a.keyOf('in', back), b.keyOf('out', back));
  t.not(a.keyOf('out', there), a.keyOf('in', back));
  t.deepEqual(await a.keying.rotate(), { peers: 1 });
  await agreed([a, b]);
  const after = a.sending(3)!;
  t.not(after.session, before.session);
  t.deepEqual(
    a.keying.list().map(({ state, session }) => [state, session]),
    [
      ['sending', after.session],
      ['receiving', after.session],
      ['old', before.session],
    ],
  );
  t.deepEqual(await b.keying.rotate('127.0.0.2'), { peers: 1 });
  for (const node of [a, b]) {
    node.keying.close();
    t.is(node.keys.size, 0);
    t.deepEqual(node.keying.list(), []);
  }
});

test('a port that another program has is told with its place in the file', async (t) => {
  const port = await freePort();
  const other = await bound(port);
  t.teardown(() => void other.close());
  const node = Node.make(t, 2);
  const error = await t.throwsAsync(node.open({ peers: [3], encryption: ring(port, 1) }), {
    instanceOf: ConfigError,
  });
  t.regex(
    error!.message,
    new RegExp(`weft\\.yaml:\\d+:\\d+: UDP port ${port} of 127\\.0\\.0\\.2 is in use; .*ss -ulpn`),
  );
  t.true((error as ConfigError).problems.every(({ host, line }) => host === true && line > 1));
});

test('only VTEPs of encrypted networks are peers, and a static association takes the place of the exchange', async (t) => {
  const port = await freePort();
  const node = Node.make(t, 2);
  const associations = [fixed(4, 'in', 1), fixed(4, 'out', 2)];
  await node.up({ peers: [3, 4], encryption: ring(port, 1), associations });
  t.deepEqual(node.keying.waiting(), ['127.0.0.3']);
  t.deepEqual(
    node.keying.list().map(({ peer, direction, spi, keyId, state }) => [peer, direction, spi, keyId, state]),
    [
      ['127.0.0.4', 'out', 0x1002, 'static', 'sending'],
      ['127.0.0.4', 'in', 0x1001, 'static', 'receiving'],
    ],
  );
  t.is(node.lists.length, 1, 'both are told at once');
  t.is(node.keyOf('in', 0x1001), STATIC[0]);
  const unknown = await t.throwsAsync(node.keying.rotate('127.0.0.77'), { instanceOf: UnknownPeer });
  t.is(unknown!.message, '127.0.0.77 is no peer of an encrypted network; they are 127.0.0.3');
  await t.throwsAsync(node.keying.rotate('127.0.0.4'), { message: /127\.0\.0\.4 are static/ });
});

test('static associations alone need no socket', async (t) => {
  const port = await freePort();
  const other = await bound(port);
  t.teardown(() => void other.close());
  const node = Node.make(t, 2);
  const associations = [fixed(3, 'in', 1), fixed(3, 'out', 2)];
  await node.up({ peers: [3], encryption: { exchange_port: port }, associations });
  t.is(node.list.length, 2);
  await t.throwsAsync(node.keying.rotate(), { message: /all associations are static/ });
});

test('a static association that sends goes on after a stop and after a crash, and begins anew with another key', async (t) => {
  const written = (out = {}): Written => ({
    peers: [3],
    associations: [fixed(3, 'in', 1), fixed(3, 'out', 2, out)],
  });
  const node = Node.make(t, 2);
  const again = async (how: Written): Promise<SaRow> => {
    node.keys.clear();
    await node.up(how);
    return node.sending(3)!;
  };
  t.is((await again(written())).sequence, 0);
  const { slot } = node.list.find(({ direction }) => direction === 'out')!;
  node.state.sequence[slot * 2] = 1234;
  const masks = [node.state.mask.slice(slot * 2, slot * 2 + 2).join()];
  node.keying.close();
  t.is((await again(written())).sequence, 1234);
  masks.push(node.state.mask.slice(slot * 2, slot * 2 + 2).join());
  t.not(masks[0], masks[1]);
  // The next start follows a crash.
  const crashed = node.keying;
  t.is((await again(written())).sequence, 1234 + RESERVE);
  crashed.close();
  t.is((await again(written({ key: STATIC[2] }))).sequence, 0);
});

test('a reload does the difference: what stays keeps its slot, what changed is replaced in one list', async (t) => {
  const node = Node.make(t, 2);
  const base = [fixed(3, 'in', 1), fixed(3, 'out', 2)];
  await node.up({ peers: [3], associations: base });
  const before = node.list;
  await node.reload({ peers: [3], associations: base });
  t.is(node.lists.length, 1);
  await node.reload({ peers: [3], associations: [base[0], fixed(3, 'out', 2, { replay_window: 64 })] });
  t.is(node.lists.length, 1, 'the window of one that sends is nothing');
  await node.reload({ peers: [3], associations: [fixed(3, 'in', 1, { key: STATIC[2] }), base[1]] });
  t.is(node.lists.length, 2);
  t.is(node.keyOf('in', 0x1001), STATIC[2]);
  t.deepEqual(
    node.list.filter(({ direction }) => direction === 'out'),
    before.filter(({ direction }) => direction === 'out'),
  );
  t.is(node.keys.size, 2);
  await node.reload({ peers: [] });
  await waitFor(() => node.keys.size === 0, { what: 'the keys to be wiped' });
  t.deepEqual(node.list, []);
});

test('peers come and go, and change between the exchange and static associations', async (t) => {
  const port = await freePort();
  const [a, b, c] = [Node.make(t, 2), Node.make(t, 3), Node.make(t, 4)];
  const encryption = ring(port, 1);
  await a.up({ peers: [3], encryption });
  await b.up({ peers: [2], encryption });
  await c.up({ peers: [2], encryption });
  await agreed([a, b]);
  const kept = a.sending(3)!;
  await a.reload({ peers: [3, 4], encryption });
  await agreed([a, c]);
  t.is(a.sending(3)!.session, kept.session);
  const lists = a.lists.length;
  const associations = [fixed(4, 'in', 1), fixed(4, 'out', 2)];
  await a.reload({ peers: [3, 4], encryption, associations });
  t.is(a.lists.length, lists + 1, 'the one goes and the other comes in one list');
  t.is(a.sending(4)!.keyId, 'static');
  t.is(a.list.length, 4);
  await a.reload({ peers: [4], encryption });
  t.is(a.sending(3), undefined);
  await agreed([a, c]);
  t.deepEqual(new Set(a.keying.list().map(({ peer }) => peer)), new Set(['127.0.0.4']));
});

test('another ring, other options, another port: peers agree anew, and something always sends', async (t) => {
  const port = await freePort();
  const other = await freePort();
  const [a, b] = [Node.make(t, 2), Node.make(t, 3)];
  const both = async (encryption: Record<string, unknown>, name?: string): Promise<void> => {
    const before = a.sending(3)!.session;
    await a.reload({ peers: [3], encryption, ...(name && { name }) });
    await b.reload({ peers: [2], encryption });
    await waitFor(() => a.sending(3)!.session !== before, { what: 'another session' });
    await agreed([a, b]);
  };
  await a.up({ peers: [3], encryption: ring(port, 1) });
  await b.up({ peers: [2], encryption: ring(port, 1) });
  await agreed([a, b]);
  const first = a.lists.length;
  await both(ring(port, 1, 2, 3));
  t.is(a.sending(3)!.keyId, 2);
  await both({ ...ring(port, 1, 2, 3), algorithm: 'aes-256-gcm-16' });
  t.is(a.sending(3)!.algorithm, 'aes-256-gcm-16');
  await both({ ...ring(port, 1, 2, 3), rotate: { after: '1h' } }, 'renamed');
  await both(ring(other, 1, 2, 3));
  for (const list of a.lists.slice(first))
    t.is(list.filter(({ direction }) => direction === 'out').length, 1, 'at no time does nothing send');
  const old = await bound(port);
  old.close();
});

test('a port that is taken refuses the reload, and nothing has changed', async (t) => {
  const [port, taken] = [await freePort(), await freePort()];
  const other = await bound(taken);
  t.teardown(() => void other.close());
  const [a, b] = [Node.make(t, 2), Node.make(t, 3)];
  await a.up({ peers: [3], encryption: ring(port, 1) });
  await b.up({ peers: [2], encryption: ring(port, 1) });
  await agreed([a, b]);
  await t.throwsAsync(a.reload({ peers: [], encryption: ring(taken, 1) }), { instanceOf: ConfigError });
  t.not(a.sending(3), undefined);
  t.deepEqual(await a.keying.rotate(), { peers: 1 });
});

test('a port that was opened for a file which came to nothing is let go', async (t) => {
  const [port, other] = [await freePort(), await freePort()];
  const node = Node.make(t, 2);
  await node.up({ peers: [3], encryption: ring(port, 1) });
  await node.keying.prepare(node.write({ peers: [3], encryption: ring(other, 1) }));
  await t.throwsAsync(bound(other), { code: 'EADDRINUSE' });
  await node.reload({ peers: [3], encryption: ring(port, 1) });
  const now = await bound(other);
  now.close();
  await t.throwsAsync(bound(port), { code: 'EADDRINUSE' });
});

test('encryption that is taken out of the file wipes its keys and lets go of the port', async (t) => {
  const port = await freePort();
  const [a, b] = [Node.make(t, 2), Node.make(t, 3)];
  await a.up({ peers: [3], encryption: ring(port, 1) });
  await b.up({ peers: [2], encryption: ring(port, 1) });
  await agreed([a, b]);
  await a.reload({ peers: [3] });
  b.keying.close();
  await waitFor(() => a.keys.size === 0, { what: 'the keys to be wiped' });
  t.deepEqual(a.list, []);
  const now = await bound(port);
  now.close();
  await a.reload({ peers: [3], encryption: ring(port, 1) });
  t.deepEqual(a.keying.waiting(), ['127.0.0.3']);
});

test('no secret is in what people may print', async (t) => {
  const port = await freePort();
  const [a, b] = [Node.make(t, 2), Node.make(t, 3)];
  const associations = [fixed(4, 'in', 1), fixed(4, 'out', 2)];
  await a.up({ peers: [3, 4], encryption: ring(port, 1, 2), associations });
  await b.up({ peers: [2], encryption: ring(port, 1, 2) });
  await agreed([a, b]);
  const secrets = [...SECRETS, ...STATIC, ...a.keys.values()].map((key) => key.slice(0, 32));
  const { options: _, ...inside } = a.keying as unknown as { options: unknown };
  const shown = [
    JSON.stringify(a.keying.list()),
    inspect(inside, { depth: Number.POSITIVE_INFINITY, showHidden: true }),
    a.lines.join('\n'),
  ].join('\n');
  t.true(shown.includes('127.0.0.3'));
  for (const secret of secrets) t.false(shown.includes(secret));
});
