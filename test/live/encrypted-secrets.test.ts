/** Secrets of a node's file: who may read it, and that nothing an engine says or leaves behind shows one. */
import { randomBytes } from 'node:crypto';
import { chmodSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { ask } from '../../cli/client.js';
import { waitFor } from '../../cli/lab.js';
import { type EncryptedOptions, encryptedOptions, reached, secretOf, sending } from '../support/encrypted.js';
import { live, Mesh, type NodeFile, overlayAddress, underlayAddress } from '../support/live.js';

const keys = [1, 2].map(secretOf);
const stranger = secretOf(1);
/** AES-128 and the salt, in hexadecimal; one a direction. */
const [there, back] = [randomBytes(20).toString('hex'), randomBytes(20).toString('hex')];
const SECRETS = [...keys, stranger].map(({ secret }) => secret).concat(there, back);

/** Asserts that no text holds a secret: not written as in the file, nor as bytes, nor a good part of either. */
function assertSilent(t: ExecutionContext, what: string, text: string): void {
  for (const [i, secret] of SECRETS.entries()) {
    const bytes = Buffer.from(secret, 'hex');
    const forms = [secret.slice(0, 16), secret.slice(-16), bytes.toString('base64').slice(0, 20)];
    forms.push(`${[...bytes.subarray(0, 8)].join(',')},`, bytes.subarray(0, 8).toString('latin1'));
    for (const form of forms)
      t.false(text.toLowerCase().includes(form.toLowerCase()), `${what} holds secret ${i}`);
  }
}

/** A mesh of which no engine runs. */
function meshOf(options: Partial<EncryptedOptions> = {}): Mesh {
  const mesh = new Mesh(encryptedOptions({ hosts: 2, encapsulation: 'udp', keys, ...options }));
  for (const [i, host] of mesh.hosts.entries()) mesh.engines.push(mesh.engine(host, mesh.fileOf(i + 1)));
  return mesh;
}

live(
  'a file with secrets that others may read is refused with exit 2 and the remedy, by a reload too',
  async (t) => {
    const mesh = meshOf();
    const [engine] = mesh.engines;
    try {
      for (const mode of [0o644, 0o640, 0o620, 0o602]) {
        chmodSync(engine.file, mode);
        const { code, stdout, stderr } = await engine.refuse();
        t.is(code, 2, stderr);
        t.is(stdout, '');
        t.regex(stderr, new RegExp(`chmod 600 ${engine.file}`));
        assertSilent(t, 'the refusal', stderr);
      }
      chmodSync(engine.file, 0o600);
      await engine.start();
      chmodSync(engine.file, 0o644);
      const answer = await engine.reload();
      t.regex(answer, /^not reloaded, nothing changed/m);
      t.regex(answer, /chmod 600/);
    } finally {
      mesh.close();
    }
  },
);

live('nothing that an engine says or leaves behind shows a secret, whatever goes wrong', async (t) => {
  const mesh = meshOf();
  const { containers, engines } = mesh;
  try {
    await mesh.start(...engines);
    for (const engine of engines) await sending(engine, 1);
    await reached(t, containers[0], overlayAddress(2));
    const [engine, other] = engines;
    const file = mesh.fileOf(1);
    const bad = (ring: unknown): NodeFile => ({ ...file, encryption: { keys: ring, encapsulation: 'udp' } });
    const [one, two] = keys;
    const wrong: (NodeFile | string)[] = [
      bad([one, { ...two, secret: two.secret.slice(1) }]),
      bad([one, { ...two, secret: `${two.secret.slice(1)}x` }]),
      bad([one, { id: 1, secret: two.secret }]),
      bad([one, { id: 2, secret: one.secret }]),
      bad([one, two, stranger, secretOf(4)]),
      bad([one.secret, two.secret]),
      bad({ [one.secret]: two.secret }),
      { ...file, [one.secret]: two.secret },
      { ...file, encryption: { keys, encapsulation: one.secret } },
      { ...file, security_associations: [{ peer: '192.168.50.2', direction: 'out', spi: 1, key: there }] },
      JSON.stringify(bad(keys)).slice(0, -5),
      `${JSON.stringify(file, null, 1)}\n${one.secret}: [`,
    ];
    for (const each of wrong) {
      engine.write(each);
      t.regex(await engine.reload(), /^not reloaded, nothing changed/m);
    }
    // A peer that has another secret, and an association that is written out.
    await engine.change(bad([stranger]));
    await other.change(mesh.fileOf(2));
    // Without an answer for as long as the engine runs.
    const silent = ask('POST', '/sa/rotate', { socket: other.socket }).catch((error: Error) => error.message);
    const peer = underlayAddress(2, false);
    const fixed = [
      { peer, direction: 'out', spi: 0x1001, algorithm: 'aes-128-gcm-16', key: there },
      { peer, direction: 'in', spi: 0x1002, algorithm: 'aes-128-gcm-16', key: back },
    ];
    await engine.change({ ...file, security_associations: fixed });
    t.is((await engine.associations()).length, 2);
    const refused = await engine.cli('sa', 'rotate');
    t.is(refused.code, 5);
    t.regex(refused.stderr, /all associations are static: write other keys into the files of both hosts/);
    engine.running!.child.kill('SIGUSR2');
    await waitFor(() => engine.running!.stderr.includes('"worker"'), { what: 'all counters' });

    for (const path of ['/status', '/sa', '/drops', '/fdb'])
      assertSilent(t, path, JSON.stringify(await ask('GET', path, { socket: engine.socket })));
    for (const command of [
      ['sa', 'ls'],
      ['sa', 'ls', '--json'],
      ['status'],
      ['status', '--json'],
      ['drops', '--all'],
    ]) {
      const { stdout, stderr } = await engine.cli(...command);
      assertSilent(t, command.join(' '), stdout + stderr);
    }
    assertSilent(t, 'a refused rotation', refused.stdout + refused.stderr);
    for (const name of ['cmdline', 'environ'])
      assertSilent(t, name, readFileSync(`/proc/${engine.pid}/${name}`, 'latin1'));
    for (const each of engines) {
      const { stdout, stderr } = await each.stop();
      assertSilent(t, 'stdout', stdout);
      assertSilent(t, 'stderr', stderr);
    }
    assertSilent(t, 'what became of a rotation', String(await silent));
    // The files are the operator's; all others are what the engines left.
    const left = readdirSync(mesh.directory).filter((name) => !name.endsWith('.yaml'));
    t.true(
      left.some((name) => name.endsWith('.sequences')),
      left.join(' '),
    );
    for (const name of left) {
      const path = join(mesh.directory, name);
      if (statSync(path).isFile()) assertSilent(t, name, readFileSync(path, 'latin1'));
    }
  } finally {
    mesh.close();
  }
});
