/** What was dropped and why: counted every time, said once. */

/** Why a message of the exchange was dropped, or not answered as its sender wanted. */
const EXCHANGE_DROPS = [
  'malformed',
  'other-version',
  'unknown-peer',
  'wrong-address',
  'unknown-key',
  'bad-mac',
  'bad-share',
  'algorithm',
  /** Too many that need a MAC computed. */
  'rate',
  /** Belongs to no exchange under way: late, repeated, or recorded by somebody. */
  'stale',
  /** Asks for an exchange while we ask for one, which goes first. */
  'collision',
  /** Came while associations were being installed. */
  'busy',
] as const;
export type ExchangeDrop = (typeof EXCHANGE_DROPS)[number];

/** Addresses that are no peer's and are named in the log; anybody can send from any number of them. */
const MOST_STRANGERS = 64;

export class Refusals {
  readonly #counts = new Map<ExchangeDrop, number>(EXCHANGE_DROPS.map((reason) => [reason, 0]));
  readonly #said = new Map<string, Set<string>>();
  readonly #strangers = new Set<string>();

  constructor(private readonly log: (line: string) => void) {}

  get counts(): Readonly<Record<ExchangeDrop, number>> {
    return Object.fromEntries(this.#counts) as Record<ExchangeDrop, number>;
  }

  /** @param line what people ought to know, without the sender; left out for what is part of the game. */
  count(reason: ExchangeDrop, sender: string, line?: string): void {
    this.#counts.set(reason, this.#counts.get(reason)! + 1);
    if (line !== undefined) this.say(sender, reason, line);
  }

  /** Says a line about a sender once for each `topic`. */
  say(sender: string, topic: string, line: string): void {
    const topics = this.#said.get(sender) ?? new Set();
    if (topics.has(topic)) return;
    this.#said.set(sender, topics.add(topic));
    this.log(`${sender}: ${line}`);
  }

  /** Counts what came from an address that is no peer's. */
  stranger(sender: string): void {
    this.count('unknown-peer', sender);
    if (this.#strangers.size >= MOST_STRANGERS || this.#strangers.has(sender)) return;
    this.#strangers.add(sender);
    this.log(
      `${sender}: asks for keys and is no peer here; if it should be, add it to the peers of a network`,
    );
  }

  /** Whether anything was said of a peer since the last time; from now on all of it may be said again. */
  forget(peer: string): boolean {
    return this.#said.delete(peer);
  }
}

/** So many a second, and as many at once after a quiet second. */
export class Budget {
  #left: number;
  #last: number;

  constructor(
    private readonly perSecond: number,
    private readonly now: () => number,
  ) {
    this.#left = perSecond;
    this.#last = now();
  }

  /** Whether there is one left; it is spent. */
  spend(): boolean {
    const now = this.now();
    this.#left = Math.min(this.perSecond, this.#left + ((now - this.#last) * this.perSecond) / 1000);
    this.#last = now;
    if (this.#left < 1) return false;
    this.#left -= 1;
    return true;
  }
}
