/**
 * What data-plane workers tell one another: where they saw a station. Each worker owns its forwarding table and
 * never waits for another; a station that one learned, or saw move, is told to the others through rings in shared
 * memory, one for each ordered pair, so each ring has one writer and one reader and needs no lock.
 *
 * A station that stays where it is is told again every quarter of its domain's ageing time, so that it does not age
 * in the tables of workers that none of its frames pass. When a ring is full the news is lost and counted: the
 * other worker floods until it is told again.
 *
 * An event is eight words: MAC low, MAC high with domain, 1 when remote, port, and four words of VTEP address –
 * workers may know the same VTEP by different numbers.
 */
import type { Context } from './graph.js';
import { REMOTE } from './memory/frames.js';
import type { Domains } from './tables/domains.js';
import type { MacTable } from './tables/mac-table.js';
import { addressBytes, type LocalVtep, type Vteps } from './tables/vteps.js';

const EVENTS = 1024;
const WORDS = 8;
/** Read and write cursors lie 128 bytes apart, so that reader and writer do not share a line. */
const CURSORS = 64;
const RING = CURSORS + EVENTS * WORDS;

/** Bytes of shared memory for the rings of `workers` workers. */
export function gossipBytes(workers: number): number {
  return workers * workers * RING * 4;
}

export interface Gossip {
  /** Tells the other workers that a station was seen at a port or VTEP. */
  tell(low: number, high: number, destination: number): void;
  /** Learns what the others told; returns how many events. Called at the start of a breath. */
  hear(): number;
  /** Every how many seconds a station of a domain that is still there is told again. */
  period(domain: number): number;
}

export function createGossip(
  context: Context,
  memory: SharedArrayBuffer,
  self: number,
  workers: number,
  tables: { table: MacTable; vteps: Vteps; domains: Domains; local: LocalVtep },
): Gossip {
  const { table, vteps, domains, local } = tables;
  const { addresses } = vteps;
  const { values } = context.counters;
  const { base } = context.counters.claim('gossip', ['told', 'heard', 'lost']);
  const [TOLD, HEARD, LOST] = [0, 1, 2];
  const words = new Uint32Array(memory);
  const ring = (from: number, to: number): number => (from * workers + to) * RING;
  const others = Array.from({ length: workers }, (_, worker) => worker).filter((worker) => worker !== self);
  const outgoing = others.map((worker) => ring(self, worker));
  const incoming = others.map((worker) => ring(worker, self));
  const address = new Uint32Array(4);

  function tell(low: number, high: number, destination: number): void {
    const remote = destination >= REMOTE;
    const vtep = (destination & 0xffff) * 4;
    for (const at of outgoing) {
      const write = words[at];
      if ((write - Atomics.load(words, at + CURSORS / 2)) >>> 0 >= EVENTS) {
        values[base + LOST]++;
        continue;
      }
      const event = at + CURSORS + (write % EVENTS) * WORDS;
      words[event] = low;
      words[event + 1] = high;
      words[event + 2] = remote ? 1 : 0;
      words[event + 3] = destination & 0xffff;
      for (let i = 0; i < 4; i++) words[event + 4 + i] = remote ? addresses[vtep + i] : 0;
      Atomics.store(words, at, write + 1);
      values[base + TOLD]++;
    }
  }

  function hear(): number {
    let count = 0;
    for (const at of incoming) {
      const end = Atomics.load(words, at);
      let read = words[at + CURSORS / 2];
      if (read === end) continue;
      for (; read !== end; read = (read + 1) >>> 0) {
        learn(at + CURSORS + (read % EVENTS) * WORDS);
        count++;
      }
      Atomics.store(words, at + CURSORS / 2, read);
    }
    if (count > 0) values[base + HEARD] += count;
    return count;
  }

  function learn(event: number): void {
    let destination = words[event + 3];
    if (words[event + 2] === 1) {
      for (let i = 0; i < 4; i++) address[i] = words[event + 4 + i];
      const vtep = vteps.add(addressBytes(address), false, local, context.seconds);
      if (vtep < 0) return;
      vteps.seen[vtep] = context.seconds;
      destination = REMOTE | vtep;
    }
    // An event may outlive its network: one that is gone learns nothing.
    if (domains.used[words[event + 1] >>> 16])
      table.learn(words[event], words[event + 1], destination, context.seconds);
  }

  function period(domain: number): number {
    const ageing = domains.ageing[domain];
    return ageing === 0 ? 64 : Math.max(1, Math.min(64, ageing >>> 2));
  }

  return { tell, hear, period };
}
