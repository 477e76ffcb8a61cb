/**
 * Round trip and path MTU to a host, by ICMP echoes with DF (RFC 1191, RFC 8201, RFC 4821 in spirit: what a router
 * says is a hint, an echo that came back is a fact).
 *
 * It uses the optional package raw-socket, on the main thread only (its addon loads in one thread of a process).
 *
 * Not handled: the way back. The answer may be fragmented there, so it is the path towards the host that is measured.
 */
import { randomInt } from 'node:crypto';
import type { Socket } from 'raw-socket';
import type { Ip } from './addresses.js';
import { type EchoEvent, echoRequest, ICMP, ICMPV6, readEchoEvent, smallestEcho } from './path-mtu/echo.js';

/** No answer within this many ms counts as loss, at most; less once the round trip is known. */
const LONGEST_TIMEOUT_MS = 1000;
const SHORTEST_TIMEOUT_MS = 250;
/** Echoes for the round trip, and tries of each size before it counts as too large. */
const ROUND_TRIPS = 3;
const TRIES = 2;
const MOST_HINTS = 8;
/** Payload of the echoes for the round trip, bytes; what `ping` sends. */
const SMALL_PAYLOAD = 56;

/** Linux's numbers (linux/in.h, linux/in6.h); raw-socket names only some of them. */
const IPPROTO_IP = 0;
const IP_HDRINCL = 3;
const IP_MTU_DISCOVER = 10;
const IPPROTO_IPV6 = 41;
const IPV6_MTU_DISCOVER = 23;
const IPV6_HDRINCL = 36;
/** DF always, and no heed of a path MTU the kernel remembers. */
const PMTUDISC_PROBE = 3;

/** There can be no probing here; `remedy` says what to do about it. */
export class ProbeUnavailable extends Error {
  override readonly name = 'ProbeUnavailable';
  constructor(
    message: string,
    readonly remedy: string,
  ) {
    super(message);
  }
}

export interface RoundTrip {
  /** Milliseconds. */
  readonly min: number;
  readonly avg: number;
  readonly max: number;
}

export interface PathResult {
  /** False when not one echo came back: `reason` says what was seen instead. */
  readonly answered: boolean;
  readonly reason: string | undefined;
  readonly rtt: RoundTrip | undefined;
  /** Largest IP packet in bytes that reached the host whole; at most the `limit` asked for. */
  readonly mtu: number | undefined;
  /** Echoes sent. */
  readonly probes: number;
}

type Outcome =
  | { readonly kind: 'reply'; readonly ms: number }
  | { readonly kind: 'too-big'; readonly mtu: number }
  | { readonly kind: 'lost'; readonly reason: string };

/** Sends echoes of one source address; several paths may be probed at the same time. */
export class PathProber {
  private readonly waiting = new Map<number, (event: EchoEvent) => void>();
  private readonly id = randomInt(1, 0x10000);
  private sequence = 0;

  private constructor(
    private readonly socket: Socket,
    private readonly source: Ip,
  ) {
    socket.on('message', (message) => {
      const event = readEchoEvent(source.family, message);
      if (event?.id === this.id) this.waiting.get(event.sequence)?.(event);
    });
    // A socket that fails answers nothing: every echo then ends by its timeout.
    socket.on('error', () => {});
  }

  /** @throws ProbeUnavailable when raw-socket is not there, does not load, or this process may not use it. */
  static async open(source: Ip): Promise<PathProber> {
    const raw = await loadRawSocket();
    const v6 = source.family === 6;
    try {
      const socket = raw.createSocket({
        protocol: v6 ? ICMPV6 : ICMP,
        addressFamily: v6 ? raw.AddressFamily.IPv6 : raw.AddressFamily.IPv4,
        bufferSize: 1 << 16,
      });
      const level = v6 ? IPPROTO_IPV6 : IPPROTO_IP;
      socket.setOption(level, v6 ? IPV6_HDRINCL : IP_HDRINCL, 1);
      socket.setOption(level, v6 ? IPV6_MTU_DISCOVER : IP_MTU_DISCOVER, PMTUDISC_PROBE);
      return new PathProber(socket, source);
    } catch (error) {
      throw new ProbeUnavailable(
        `cannot open a raw socket: ${(error as Error).message}`,
        'run as root, or give the process CAP_NET_RAW',
      );
    }
  }

  close(): void {
    this.socket.close();
  }

  /**
   * Measures the round trip and finds the path MTU: the limit first, then what a router names, then halving.
   * @param limit largest packet tried, in bytes: the MTU of the interface.
   */
  async measure(destination: Ip, limit: number): Promise<PathResult> {
    const before = this.sequence;
    const small = Math.min(limit, smallestEcho(destination.family) + SMALL_PAYLOAD);
    const times: number[] = [];
    let reason = 'no answer';
    for (let i = 0; i < ROUND_TRIPS; i++) {
      const outcome = await this.echo(destination, small, LONGEST_TIMEOUT_MS);
      if (outcome.kind === 'reply') times.push(outcome.ms);
      else if (outcome.kind === 'lost') reason = outcome.reason;
    }
    const probes = (): number => this.sequence - before;
    if (times.length === 0)
      return { answered: false, reason, rtt: undefined, mtu: undefined, probes: probes() };
    const max = Math.max(...times);
    const avg = times.reduce((sum, ms) => sum + ms, 0) / times.length;
    const timeout = Math.min(LONGEST_TIMEOUT_MS, Math.max(SHORTEST_TIMEOUT_MS, max * 4));
    const mtu = await this.search(destination, small, limit, timeout);
    return {
      answered: true,
      reason: undefined,
      rtt: { min: Math.min(...times), avg, max },
      mtu,
      probes: probes(),
    };
  }

  /**
   * Largest size in [fits, limit] that comes back; `fits` does. Halving takes at most 16 sizes; what routers say
   * shortens that, and is believed only MOST_HINTS times, so that a lying one cannot make it long.
   */
  private async search(destination: Ip, fits: number, limit: number, timeout: number): Promise<number> {
    let low = fits;
    let high = limit;
    let next = limit;
    let hinted = false;
    for (let hints = 0; low < high; ) {
      const outcome = await this.trySize(destination, next, timeout);
      if (outcome.kind === 'reply') low = next;
      else high = next - 1;
      if (outcome.kind === 'reply' && hinted) {
        // One above the size a router named: if that does not fit, as it should, the end is found at once.
        next = low + 1;
        hinted = false;
        continue;
      }
      const hint = outcome.kind === 'too-big' ? outcome.mtu : 0;
      hinted = hint > low && hint <= high && ++hints <= MOST_HINTS;
      next = hinted ? hint : Math.ceil((low + high) / 2);
    }
    return low;
  }

  /** A loss may be a loss: tried twice. What a router says needs no second try. */
  private async trySize(destination: Ip, size: number, timeout: number): Promise<Outcome> {
    let outcome: Outcome = { kind: 'lost', reason: 'no answer' };
    for (let i = 0; i < TRIES && outcome.kind === 'lost'; i++) {
      outcome = await this.echo(destination, size, timeout);
    }
    return outcome;
  }

  private echo(destination: Ip, size: number, timeoutMs: number): Promise<Outcome> {
    const sequence = ++this.sequence & 0xffff;
    const packet = echoRequest({ source: this.source, destination, id: this.id, sequence, size });
    return new Promise((resolve) => {
      let sent = performance.now();
      const finish = (outcome: Outcome): void => {
        clearTimeout(timer);
        this.waiting.delete(sequence);
        resolve(outcome);
      };
      // Not before what has arrived was read: this thread may have been away for longer than the timeout.
      const timer = setTimeout(
        () => setImmediate(() => finish({ kind: 'lost', reason: 'no answer' })),
        timeoutMs,
      );
      this.waiting.set(sequence, (event) => {
        if (event.kind === 'too-big') finish({ kind: 'too-big', mtu: event.mtu });
        else if (event.kind === 'unreachable')
          finish({ kind: 'lost', reason: `a router says unreachable (code ${event.code})` });
        else if (event.size === size) finish({ kind: 'reply', ms: performance.now() - sent });
      });
      this.socket.send(
        packet,
        0,
        packet.length,
        destination.text,
        () => {
          sent = performance.now();
        },
        (error) => {
          // "Message too long" is the interface's own MTU; anything else no echo will cure.
          if (error) finish({ kind: 'lost', reason: `cannot send: ${error.message}` });
        },
      );
    });
  }
}

async function loadRawSocket(): Promise<typeof import('raw-socket').default> {
  try {
    return (await import('raw-socket')).default;
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const missing = code === 'ERR_MODULE_NOT_FOUND';
    throw new ProbeUnavailable(
      missing
        ? 'the optional package raw-socket is not installed'
        : `the optional package raw-socket does not load: ${message.split('\n')[0]}`,
      'in the directory of Weft: npm install raw-socket@1.8.1 && npm rebuild raw-socket (it needs make, g++ and python3)',
    );
  }
}
