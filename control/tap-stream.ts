/**
 * A TAP as a stream, for scripts: `new Tap()` is a Duplex whose `data` events are Ethernet frames and whose `write`
 * sends one. The interface of the npm package tuntap2, over Weft's own TAP.
 *
 * Not the hot path: every frame is copied, crosses a thread and becomes a Buffer, and each property is one call of
 * `ip`. The engine's ports are in engine/ports. Not handled: TUN devices, several queues, offloads (the kernel
 * segments and sums for us), devices that exist already.
 */
import { writevSync } from 'node:fs';
import { Duplex } from 'node:stream';
import { Worker } from 'node:worker_threads';
import { native } from '../native-bindings/index.js';
import { parseMac, parsePrefix } from './addresses.js';
import { runSync } from './command.js';
import { netnsPath } from './config.js';
import { PLAIN_HEADER, type ReaderData, STOP, TAKEN } from './tap-stream/shared.js';

/** Shortest and longest frame in bytes that `write` takes: an Ethernet header, and the largest MTU behind one. */
const SHORTEST_FRAME = 14;
const LONGEST_FRAME = 65_535 + SHORTEST_FRAME;
const HEADER = Buffer.alloc(PLAIN_HEADER);

export interface TapOptions {
  /** Interface name, at most 15 bytes; without it the kernel chooses `tap0`, `tap1` … */
  readonly name?: string;
  /** Network namespace, by name or path; without it the caller's own. */
  readonly netns?: string;
  readonly mac?: string;
  /** Bytes. */
  readonly mtu?: number;
  /** Such as `10.0.0.1/24`. */
  readonly ipv4?: string;
  readonly isUp?: boolean;
  /** Frames kept for a slow reader before the kernel has to keep, and then drop them; 64 unless told. */
  readonly highWaterMark?: number;
}

interface Link {
  readonly ifname: string;
  readonly address: string;
  readonly mtu: number;
  readonly flags: readonly string[];
  readonly addr_info?: readonly { family: string; local: string; prefixlen: number }[];
}

/** Taps whose thread must be told when the process exits: it sleeps in the kernel, and exit would wait for it. */
const reading = new Set<Tap>();
process.on('exit', () => {
  for (const tap of reading) tap.stopReading();
});

export class Tap extends Duplex {
  readonly isTap = true;
  readonly isTun = false;
  /** Interface name. */
  readonly name: string;
  private readonly netns: string;
  private readonly fd: number;
  private readonly wake: number;
  private readonly shared = new Int32Array(new SharedArrayBuffer(8));
  private reader: Worker | undefined;
  private readerGone: Promise<void> | undefined;
  /** A burst was pushed that filled the stream: the thread waits until `_read`. */
  private owing = false;

  /**
   * Makes the interface, down unless `isUp` is set. It goes with `release`, or with the process.
   * @throws Error with `code`, the errno's name (EPERM without rights, EEXIST for a name that is taken), and a
   *   message that says what to do; ValueError for a bad address.
   */
  constructor(options: TapOptions = {}) {
    super({ readableObjectMode: true, readableHighWaterMark: options.highWaterMark ?? 64 });
    this.netns = options.netns === undefined ? '' : netnsPath(options.netns);
    refuseExisting(options.name, this.netns);
    const tap = open(options.name ?? '', this.netns);
    this.fd = tap.fd;
    this.name = tap.name;
    this.wake = native.eventCreate();
    try {
      native.tapPlain(this.fd);
      if (options.mac !== undefined) this.mac = options.mac;
      if (options.mtu !== undefined) this.mtu = options.mtu;
      if (options.ipv4 !== undefined) this.ipv4 = options.ipv4;
      if (options.isUp !== undefined) this.isUp = options.isUp;
    } catch (error) {
      native.close(this.wake);
      native.close(this.fd);
      throw error;
    }
  }

  get mac(): string {
    return this.link().address;
  }

  /** @throws ValueError when it is not the MAC of one station. */
  set mac(value: string) {
    this.ip('link', 'set', 'dev', this.name, 'address', parseMac(value));
  }

  /** Bytes of IP packet. */
  get mtu(): number {
    return this.link().mtu;
  }

  /** @throws CommandError when the kernel refuses it. */
  set mtu(value: number) {
    this.ip('link', 'set', 'dev', this.name, 'mtu', String(value));
  }

  /** First IPv4 address with its prefix length; undefined when there is none. */
  get ipv4(): string | undefined {
    const address = this.link().addr_info?.find(({ family }) => family === 'inet');
    return address && `${address.local}/${address.prefixlen}`;
  }

  /** Replaces all IPv4 addresses; undefined leaves none. @throws ValueError for anything but `a.b.c.d/length`. */
  set ipv4(value: string | undefined) {
    const text = value === undefined ? undefined : parsePrefix(value).text;
    this.ip('-4', 'address', 'flush', 'dev', this.name);
    if (text !== undefined) this.ip('address', 'add', text, 'dev', this.name);
  }

  get isUp(): boolean {
    return this.link().flags.includes('UP');
  }

  set isUp(value: boolean) {
    this.ip('link', 'set', 'dev', this.name, value ? 'up' : 'down');
  }

  /** Removes the interface; settles when it is gone. Also while frames are read or written. */
  release(): Promise<void> {
    return new Promise((resolve) => {
      if (this.closed) resolve();
      else this.once('close', resolve).destroy();
    });
  }

  override _read(): void {
    if (!this.reader) this.startReading();
    if (!this.owing) return;
    this.owing = false;
    this.countBurst();
  }

  override _write(frame: Buffer, _encoding: string, done: (error?: Error) => void): void {
    if (frame.length < SHORTEST_FRAME || frame.length > LONGEST_FRAME) {
      done(
        new RangeError(`a frame has ${SHORTEST_FRAME} to ${LONGEST_FRAME} bytes, this one ${frame.length}`),
      );
      return;
    }
    try {
      // A TAP takes a frame at once or refuses it; there is nothing to wait for in another thread.
      writevSync(this.fd, [HEADER, frame]);
    } catch (error) {
      const down = (error as NodeJS.ErrnoException).code === 'EIO';
      done(down ? explain(error, `${this.name} is down; set isUp = true before writing`) : (error as Error));
      return;
    }
    done();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.stopReading();
    // The descriptor must outlive the thread that sleeps on it: its number could be another file's by then.
    (this.readerGone ?? Promise.resolve()).then(() => {
      reading.delete(this);
      native.close(this.wake);
      native.close(this.fd);
      done(error);
    });
  }

  /** Wakes the thread that reads and lets it end. */
  stopReading(): void {
    Atomics.store(this.shared, STOP, 1);
    this.countBurst();
    native.eventSignal(this.wake);
  }

  private startReading(): void {
    const workerData: ReaderData = { fd: this.fd, wake: this.wake, shared: this.shared };
    // Without the process's own options: `--input-type` of a `node -e`, say, would keep a file from loading.
    const reader = new Worker(new URL('./tap-stream/reader.js', import.meta.url), {
      workerData,
      execArgv: [],
    });
    this.reader = reader;
    this.readerGone = new Promise((resolve) => reader.once('exit', () => resolve()));
    reading.add(this);
    reader.on('error', (error) => this.destroy(error));
    reader.on('message', (frames: Uint8Array<ArrayBuffer>[]) => {
      let room = true;
      for (const { buffer } of frames) {
        if (this.destroyed) return; // a listener released it in the middle of the burst
        room = this.push(Buffer.from(buffer));
      }
      if (room) this.countBurst();
      else this.owing = true;
    });
  }

  /** Tells the thread that a burst was taken. */
  private countBurst(): void {
    Atomics.add(this.shared, TAKEN, 1);
    Atomics.notify(this.shared, TAKEN);
  }

  private link(): Link {
    return (JSON.parse(this.ip('-j', 'address', 'show', 'dev', this.name)) as Link[])[0];
  }

  private ip(...args: string[]): string {
    if (this.destroyed) throw new Error(`${this.name} was released`);
    return runIp(this.netns, args);
  }
}

function runIp(netns: string, args: readonly string[]): string {
  return netns ? runSync('nsenter', [`--net=${netns}`, '--', 'ip', ...args]) : runSync('ip', args);
}

/** Attaching to somebody's TAP would change its offloads and its persistence under them. */
function refuseExisting(name: string | undefined, netns: string): void {
  if (!name) return;
  const links = JSON.parse(runIp(netns, ['-j', 'link', 'show'])) as Link[];
  if (!links.some(({ ifname }) => ifname === name)) return;
  throw Object.assign(new Error(`there is an interface ${name} already; choose another name`), {
    code: 'EEXIST',
  });
}

/** What to do when a TAP cannot be opened, by errno. */
const REMEDIES: Readonly<Record<string, string>> = {
  EPERM: 'run as root, or with CAP_NET_ADMIN',
  EACCES: 'run as root, or with CAP_NET_ADMIN',
  ENOENT: 'modprobe tun, and check the namespace',
  ENODEV: 'modprobe tun',
};

function open(name: string, netns: string): { fd: number; name: string } {
  try {
    return native.tapOpen({ name, netns, persist: false, tunnel: false });
  } catch (error) {
    const { code = '', message } = error as NodeJS.ErrnoException;
    throw code in REMEDIES ? explain(error, `${message}; ${REMEDIES[code]}`) : error;
  }
}

/** The same error with its code and another message. */
function explain(error: unknown, message: string): Error {
  const { code } = error as NodeJS.ErrnoException;
  return Object.assign(new Error(message, { cause: error }), { code });
}
