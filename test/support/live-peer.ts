/**
 * What runs inside a container or host of a live test, as a process of its own:
 *
 *   udp-echo ADDRESS PORT                 sends every datagram back
 *   udp-client ADDRESS PORT SIZE…         sends a datagram of each size (N or FIRST-LAST), prints what came back
 *   line-echo ADDRESS PORT                a TCP server that sends back what it gets
 *   line-client ADDRESS PORT              sends numbered lines, prints each that comes back in its turn
 *   slow-server ADDRESS PORT              sends to each who connects until SIGUSR1, and prints the sum of it
 *   slow-client ADDRESS PORT              never sends; prints how much it got, a line a mebibyte, and the sum of it
 *   witness DEVICE FILTER                 prints every frame that package cap sees, in hexadecimal
 */
import { createHash } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { connect, createServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

export type PeerMode =
  | 'udp-echo'
  | 'udp-client'
  | 'line-echo'
  | 'line-client'
  | 'slow-server'
  | 'slow-client'
  | 'witness';

/** What `udp-client` prints. */
export interface UdpReport {
  readonly sent: number;
  readonly intact: number;
  /** Sizes of which nothing, or something else, came back. */
  readonly missing: number[];
}

const print = (line: string): void => void process.stdout.write(`${line}\n`);

/** Bytes that tell the size of the datagram at every place. */
const pattern = (size: number): Buffer =>
  Buffer.from(Uint8Array.from({ length: size }, (_, i) => size * 7 + i * 13));

const family = (address: string): 'udp4' | 'udp6' => (address.includes(':') ? 'udp6' : 'udp4');

function udpEcho([address, port]: string[]): void {
  const socket = createSocket(family(address));
  socket.on('message', (message, from) => socket.send(message, from.port, from.address));
  socket.bind(Number(port), address, () => print('listening'));
}

async function udpClient([address, port, ...ranges]: string[]): Promise<void> {
  const sizes = ranges.flatMap((range) => {
    const [first, last = first] = range.split('-').map(Number);
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  });
  const socket = createSocket(family(address));
  const missing = new Set(sizes);
  let changed = (): void => undefined;
  socket.on('message', (message) => {
    if (message.equals(pattern(message.length))) missing.delete(message.length);
    changed();
  });
  await new Promise<void>((resolve) => socket.connect(Number(port), address, resolve));
  const answered = async (most: number, sent: readonly number[]): Promise<void> => {
    const deadline = Date.now() + 3000;
    while (sent.filter((size) => missing.has(size)).length > most && Date.now() < deadline) {
      await Promise.race([delay(deadline - Date.now()), new Promise<void>((resolve) => (changed = resolve))]);
    }
  };
  for (let i = 0; i < sizes.length; i += 32) {
    const some = sizes.slice(i, i + 32);
    for (const size of some) socket.send(pattern(size));
    await answered(0, some);
    if (missing.size > sizes.length - i) break;
  }
  print(JSON.stringify({ sent: sizes.length, intact: sizes.length - missing.size, missing: [...missing] }));
  process.exit(0);
}

function lineEcho([address, port]: string[]): void {
  const server = createServer((socket) => {
    socket.on('error', (error) => print(error.message));
    socket.pipe(socket);
  });
  server.listen(Number(port), address, () => print('listening'));
}

async function lineClient([address, port]: string[]): Promise<void> {
  const socket = connect(Number(port), address);
  let text = '';
  let next = 0;
  const end = (why: string): never => {
    print(`failed: ${why}`);
    process.exit(1);
  };
  socket.on('error', (error) => end(error.message));
  socket.on('close', () => end('closed'));
  socket.setEncoding('utf8').on('data', (chunk: string) => {
    const lines = (text + chunk).split('\n');
    text = lines.pop()!;
    for (const line of lines) {
      if (line !== String(next)) end(`line ${line} in place of ${next}`);
      print(line);
      next++;
    }
  });
  for (let n = 0; ; n++) {
    socket.write(`${n}\n`);
    await delay(10);
  }
}

/** Sixteen KiB in which each kibibyte tells its number of all. */
function numbered(part: number): Buffer {
  const chunk = Buffer.alloc(16384);
  for (let i = 0; i < 16; i++) chunk.fill(`${part * 16 + i} `, i * 1024, (i + 1) * 1024);
  return chunk;
}

function slowServer([address, port]: string[]): void {
  let enough = false;
  process.on('SIGUSR1', () => {
    enough = true;
  });
  const server = createServer(async (socket) => {
    socket.on('error', (error) => print(error.message));
    const hash = createHash('sha256');
    for (let part = 0; !enough; part++) {
      const chunk = numbered(part);
      hash.update(chunk);
      if (!socket.write(chunk)) await new Promise((resolve) => socket.once('drain', resolve));
      await delay(5);
    }
    socket.end();
    print(`sum ${hash.digest('hex')}`);
  });
  server.listen(Number(port), address, () => print('listening'));
}

function slowClient([address, port]: string[]): void {
  const hash = createHash('sha256');
  let bytes = 0;
  const socket = connect({ port: Number(port), host: address, allowHalfOpen: true });
  socket.on('error', (error) => print(`failed: ${error.message}`));
  socket.on('data', (chunk) => {
    hash.update(chunk);
    const before = bytes >> 20;
    bytes += chunk.length;
    if (bytes >> 20 !== before) print(`got ${bytes >> 20}`);
  });
  socket.on('end', () => {
    print(`sum ${hash.digest('hex')}`);
    socket.end();
  });
}

interface CapModule {
  Cap: new () => {
    open(device: string, filter: string, size: number, buffer: Buffer): string;
    setMinBytes?(bytes: number): void;
    on(event: 'packet', listener: (bytes: number) => void): void;
  };
}

async function witness([device, filter]: string[]): Promise<void> {
  // Optional and without types; a name that the compiler does not look up.
  const name = 'cap';
  const { default: cap } = (await import(name)) as { default: CapModule };
  const buffer = Buffer.alloc(65536);
  const session = new cap.Cap();
  session.open(device, filter, 4 << 20, buffer);
  session.setMinBytes?.(0);
  session.on('packet', (bytes) => print(buffer.toString('hex', 0, bytes)));
  print('listening');
}

const MODES: Record<PeerMode, (args: string[]) => void | Promise<void>> = {
  'udp-echo': udpEcho,
  'udp-client': udpClient,
  'line-echo': lineEcho,
  'line-client': lineClient,
  'slow-server': slowServer,
  'slow-client': slowClient,
  witness,
};

const [mode, ...args] = process.argv.slice(2);
await MODES[mode as PeerMode](args);
