/**
 * The installed security associations: which slot each has, what the workers are told of them, and when a key goes.
 *
 * A key is in its slot before any worker hears of the slot, and is wiped after every worker has heard that the slot
 * is gone; only then is the slot used again. The workers hear of all changes of a moment at once, one list at a time.
 * When they refuse a list, or do not answer, its new associations are taken back and they are told so; a slot of
 * which they may have heard stays unused until they have taken a list without it.
 */
import { randomInt, webcrypto } from 'node:crypto';
import type { AssociationIntent } from '../../engine/intent.js';
import type { AssociationState, Refusal } from '../../engine/tables/association-state.js';
import type { native } from '../../native-bindings/index.js';
import { parseIp } from '../addresses.js';
import { type Algorithm, algorithmSizes, type StaticAssociation } from '../config.js';
import { FIRST_SPI, hexSpi } from './spi.js';
import type { AssociationHandle, AssociationStore, NewAssociation, Usage } from './types.js';

/** After the workers have refused a list twice, they are told again after so many ms. */
const RETRY_MS = 1000;

export interface StoreHost {
  readonly state: AssociationState;
  readonly native: Pick<typeof native, 'gcmInstall' | 'gcmRemove'>;
  /** Resolves when every worker has this list in place of the one before. Lists arrive in the order of the calls. */
  apply(associations: readonly AssociationIntent[]): Promise<void>;
  /** Milliseconds, never going back. */
  now(): number;
  /** Calls once after so many milliseconds, unless the returned function is called before. */
  after(ms: number, call: () => void): () => void;
  /** A line for people. */
  log(line: string): void;
}

/** An association as people see it; nothing in it is secret. */
export interface SaRow {
  /** VTEP. */
  readonly peer: string;
  readonly direction: 'in' | 'out';
  readonly spi: number;
  readonly algorithm: Algorithm;
  /** Of the ring's key that it came from. */
  readonly keyId: number | 'static';
  /** 16 hex digits, the same for both directions and on both hosts; absent from static ones. */
  readonly session?: string;
  readonly ageSeconds: number;
  /** Sent or accepted. */
  readonly packets: number;
  /** Of sealed payload. */
  readonly bytes: number;
  /** Last sent or highest accepted. */
  readonly sequence: number;
  readonly esn: boolean;
  /** Packets. */
  readonly replayWindow: number;
  readonly refusals: Readonly<Record<Refusal, number>>;
  /** `old`: a later generation receives beside it. */
  readonly state: 'sending' | 'receiving' | 'old';
}

type Origin = { readonly keyId: number; readonly sessionId: string } | 'static';

interface Entry extends AssociationHandle {
  readonly intent: AssociationIntent;
  readonly algorithm: Algorithm;
  readonly origin: Origin;
  /** By `now()`. */
  readonly since: number;
}

/** What is asked for and not answered. */
interface Fresh {
  readonly entry: Entry;
  resolve(handle: AssociationHandle): void;
  reject(error: Error): void;
}

type List = Map<string, Entry>;

/** What there is once in a list: an inbound SPI, or a peer that is sent to. */
const placeOf = ({ direction, spi, peer }: Entry): string =>
  direction === 'in' ? `in ${spi}` : `out ${peer}`;

export class InstalledAssociations implements AssociationStore {
  /** In the order in which they are used; what was used last comes last. */
  private readonly free: number[];
  /** Every slot that is not free. */
  private readonly held = new Set<Entry>();
  /** Those that count, by their handle. */
  private readonly known = new Map<AssociationHandle, Entry>();
  /** Inbound ones that count, by SPI. */
  private readonly spis = new Map<number, Entry>();
  /** What the workers took last. */
  private listed: List = new Map();
  private fresh: Fresh[] = [];
  /** What must not be in the next list, and holds its slot until the workers have taken one. */
  private readonly retiring = new Set<Entry>();
  private running = false;
  /** Whether a round was asked for while one was under way. */
  private again = false;
  private closed = false;
  private cancelRetry = (): void => undefined;

  constructor(private readonly host: StoreHost) {
    this.free = Array.from({ length: host.state.slots }, (_, slot) => slot);
  }

  allocateSpi(): number {
    for (;;) {
      const spi = randomInt(FIRST_SPI, 2 ** 32);
      if (!this.spis.has(spi)) return spi;
    }
  }

  async installInbound(peer: string, association: NewAssociation): Promise<AssociationHandle> {
    return this.install(peer, 'in', association, association);
  }

  async installOutbound(peer: string, association: NewAssociation): Promise<AssociationHandle> {
    return this.install(peer, 'out', association, association);
  }

  /**
   * As the two above, for one that the config writes out.
   * @param last sequence number that an outbound one may have sent before.
   */
  async installStatic(association: StaticAssociation, last: number): Promise<AssociationHandle> {
    const { peer, direction, key: secret, replayWindow: window } = association;
    const bytes = secret.bytes();
    const split = algorithmSizes(association.algorithm).key;
    const key = bytes.subarray(0, split);
    const salt = bytes.subarray(split);
    try {
      // Not awaited: the key is copied when this returns.
      return this.install(peer, direction, { ...association, key, salt, window }, 'static', last);
    } finally {
      bytes.fill(0);
    }
  }

  /** Everything up to the promise is done at once: the caller's key is not looked at later. */
  private install(
    peer: string,
    direction: 'in' | 'out',
    association: Omit<NewAssociation, 'keyId' | 'sessionId'>,
    origin: Origin,
    last = 0,
  ): Promise<AssociationHandle> {
    if (this.closed) throw new Error('security associations are closed');
    const { spi, algorithm, esn, window, key, salt } = association;
    if (direction === 'in' && this.spis.has(spi)) throw new Error(`inbound SPI ${hexSpi(spi)} is in use`);
    const vtep = parseIp(peer).bytes;
    const { icv } = algorithmSizes(algorithm);
    const { state, native } = this.host;
    const slot = this.free.shift();
    if (slot === undefined) throw new Error(`all ${state.slots} security associations are in use`);
    try {
      native.gcmInstall({ slot, key, salt, icv, esn });
    } catch (error) {
      this.free.push(slot);
      throw error;
    }
    // An inbound IV is in the packet.
    state.begin(slot, last, direction === 'out' ? webcrypto.getRandomValues(new Uint8Array(8)) : undefined);
    const entry: Entry = {
      peer,
      direction,
      spi,
      intent: { slot, direction, spi, vtep, icv, esn, window },
      algorithm,
      origin: origin === 'static' ? origin : { keyId: origin.keyId, sessionId: origin.sessionId },
      since: this.host.now(),
    };
    this.held.add(entry);
    this.known.set(entry, entry);
    if (direction === 'in') this.spis.set(spi, entry);
    return new Promise((resolve, reject) => {
      this.fresh.push({ entry, resolve, reject });
      this.run();
    });
  }

  remove(handle: AssociationHandle): void {
    const entry = this.known.get(handle);
    if (entry === undefined || this.closed) return;
    this.retire(entry);
    this.run();
  }

  usage(handle: AssociationHandle): Usage {
    const entry = this.known.get(handle);
    if (entry === undefined) return { packets: 0, bytes: 0, sequence: 0 };
    const { state } = this.host;
    const { slot } = entry.intent;
    return { packets: state.packets[slot], bytes: state.bytes[slot], sequence: state.last(slot) };
  }

  /** What the workers have, by peer, sending first, then from the newest on. */
  rows(): SaRow[] {
    const newest = new Map<string, Entry>();
    const entries = [...this.listed.values()].filter((entry) => this.known.has(entry));
    for (const entry of entries) if (entry.direction === 'in') newest.set(entry.peer, entry);
    return entries
      .reverse()
      .sort((a, b) => compare(a.peer, b.peer) || compare(b.direction, a.direction))
      .map((entry) => this.row(entry, newest.get(entry.peer) === entry));
  }

  private row(entry: Entry, newest: boolean): SaRow {
    const { peer, direction, spi, algorithm, origin, since, intent } = entry;
    const isStatic = origin === 'static';
    return {
      peer,
      direction,
      spi,
      algorithm,
      keyId: isStatic ? origin : origin.keyId,
      ...(isStatic ? {} : { session: origin.sessionId }),
      ageSeconds: Math.floor((this.host.now() - since) / 1000),
      ...this.usage(entry),
      esn: intent.esn,
      replayWindow: intent.window,
      refusals: this.host.state.refusals(intent.slot),
      state: direction === 'out' ? 'sending' : newest || isStatic ? 'receiving' : 'old',
    };
  }

  /** Wipes every key, whoever uses it: for when the workers have stopped. */
  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.cancelRetry();
    for (const entry of this.held) this.wipe(entry);
    for (const collection of [this.held, this.known, this.spis, this.listed, this.retiring])
      collection.clear();
    for (const { reject } of this.fresh.splice(0)) reject(new Error('security associations are closed'));
  }

  /** Tells the workers, in rounds, until nothing has changed since. */
  private run(): void {
    if (this.running) {
      this.again = true;
      return;
    }
    this.running = true;
    setImmediate(() => void this.rounds());
  }

  private async rounds(): Promise<void> {
    while (this.fresh.length > 0 || this.retiring.size > 0) {
      this.again = false;
      const settled = await this.round();
      // What the answers made others ask for belongs into one list.
      await new Promise(setImmediate);
      if (!settled && this.fresh.length === 0 && !this.again) break;
    }
    this.running = false;
  }

  /** @returns whether the workers know what they are to know. */
  private async round(): Promise<boolean> {
    this.cancelRetry();
    const fresh = this.fresh.splice(0);
    try {
      await this.tell(fresh);
      for (const { entry, resolve } of fresh) resolve(entry);
      return true;
    } catch (error) {
      for (const { entry } of fresh) this.retire(entry);
      const settled = this.closed || (await this.takeBack(error as Error));
      for (const { reject } of fresh) reject(error as Error);
      return settled;
    }
  }

  /** Nothing of what was refused stays in force; when even that is refused, nothing of it can be used. */
  private async takeBack(error: Error): Promise<boolean> {
    this.host.log(`security associations not changed: ${error.message}`);
    try {
      await this.tell([]);
      return true;
    } catch {
      for (const entry of this.retiring) this.wipe(entry);
      if (!this.closed) this.cancelRetry = this.host.after(RETRY_MS, () => this.run());
      return false;
    }
  }

  /** Gives the workers what is listed with what is fresh and without what retires, and frees what they leave. */
  private async tell(fresh: readonly Fresh[]): Promise<void> {
    const leaving = new Set(this.retiring);
    const list: List = new Map();
    for (const [place, entry] of this.listed) if (!leaving.has(entry)) list.set(place, entry);
    for (const { entry } of fresh) {
      const place = placeOf(entry);
      const former = list.get(place);
      if (former) leaving.add(former);
      list.delete(place);
      list.set(place, entry);
    }
    await this.host.apply(Array.from(list.values(), ({ intent }) => intent));
    if (this.closed) throw new Error('security associations are closed');
    this.listed = list;
    for (const entry of leaving) this.release(entry);
  }

  /** From here on it does not count; the workers have yet to hear of it. */
  private retire(entry: Entry): void {
    this.forget(entry);
    if (this.held.has(entry)) this.retiring.add(entry);
  }

  private release(entry: Entry): void {
    this.forget(entry);
    this.retiring.delete(entry);
    this.wipe(entry);
    this.held.delete(entry);
    this.free.push(entry.intent.slot);
  }

  private forget(entry: Entry): void {
    this.known.delete(entry);
    if (this.spis.get(entry.spi) === entry) this.spis.delete(entry.spi);
  }

  private wipe({ intent }: Entry): void {
    this.host.native.gcmRemove(intent.slot);
  }
}

const compare = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);
